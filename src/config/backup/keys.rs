//! Every key that a file of `backups` may have, by the part it stands in. The reader refuses all others, and the schema is
//! held against these lists.

pub(in crate::config) const TOP_KEYS: &[&str] = &[
    "postgres",
    "password",
    "kind",
    "databases",
    "bin",
    "image",
    "network",
    "rpo",
    "rto",
    "schedule",
    "incremental",
    "ship-every",
    "synchronous",
    "step-down",
    "slot",
    "wal-lag",
    "keep",
    "from",
    "restore",
];
pub(in crate::config) const TOP_LATER: &[&str] = &["redis", "drill"];
/// What only base backups and their log have a use for.
pub(super) const PHYSICAL_KEYS: &[&str] =
    &["rto", "incremental", "ship-every", "synchronous", "step-down", "slot", "wal-lag"];
/// What only logical copies have a use for.
pub(super) const LOGICAL_KEYS: &[&str] = &["databases", "bin", "image", "network"];
pub(in crate::config) const INCREMENTAL_KEYS: &[&str] = &["schedule", "chain"];
pub(in crate::config) const KEEP_KEYS: &[&str] = &["window", "backups"];
pub(in crate::config) const WAL_LAG_KEYS: &[&str] = &["policy", "warn", "alarm", "drop"];
pub(in crate::config) const RESTORE_KEYS: &[&str] = &[
    "into", "target", "user", "bin", "port", "password", "then", "checks", "image", "volume", "name", "listen",
    "network",
];
/// Of these, what only the restore of a base backup has a use for.
pub(super) const RESTORE_PHYSICAL_KEYS: &[&str] = &["target", "user", "port", "volume", "name", "listen"];
pub(in crate::config) const CHECK_KEYS: &[&str] = &["sql", "database"];
