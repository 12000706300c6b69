//! What is shown of a source of backups: how far its log is safe, when it was last copied whole, from when to when it can
//! be restored.

use super::{Lsn, SourceName, Timeline};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A source as its keeper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceView {
    /// Its name.
    #[schemars(with = "String")]
    pub name: SourceName,
    /// What it does.
    pub state: SourceState,
    /// The same in words, with the reason when it is not as it should be.
    pub words: String,
    /// Since when it is so.
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// How far its log is safe; none before the first byte.
    pub log: Option<LogView>,
    /// The backup under way.
    pub backup: Option<UnderWay>,
    /// The newest backup that this daemon knows of.
    pub last_backup: Option<LastBackup>,
    /// From when on it can be restored without a hole, by the server's clock: the end of the oldest base backup after the
    /// newest gap. None before the first one.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub window_start: Option<Timestamp>,
    /// How long a restore to the newest state would take now; none before the first backup.
    #[serde(default)]
    pub restore: Option<RestoreForecast>,
    /// What the last check of the stored objects found, since the daemon started.
    #[serde(default)]
    pub checked: Option<CheckedObjects>,
    /// When the schedule asks for the next one.
    #[schemars(with = "Option<String>")]
    pub next_backup: Option<Timestamp>,
    /// How the last try at a backup failed; gone with the next good one.
    pub failed_backup: Option<FailedBackup>,
    /// The most that may be lost, in seconds, where its file says.
    pub rpo_secs: Option<u64>,
    /// The longest that a restore may take, in seconds, where its file says.
    pub rto_secs: Option<u64>,
    /// What is wrong with it now, the oldest first. People were told of each.
    #[serde(default)]
    pub concerns: Vec<Concern>,
}

/// Something that is wrong with a source, from its beginning to its end: an episode of which people are told once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Concern {
    /// What.
    pub kind: ConcernKind,
    /// Since when.
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// In words, as it was when it began.
    pub words: String,
}

/// What may be wrong with a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConcernKind {
    /// For longer than a minute nothing new was safe.
    NotSafe,
    /// The slot holds back more than `wal-lag.warn`.
    LagWarn,
    /// The slot holds back more than `wal-lag.alarm`.
    LagAlarm,
    /// What would be lost now comes near the `rpo`.
    Rpo,
    /// A restore would take about as long as the `rto`, or longer.
    Rto,
    /// A base backup came to nothing.
    BackupFailed,
    /// What is stored is damaged, or not there.
    Damaged,
    /// The slot was dropped: until the next base backup there is a gap in what can be restored.
    SlotDropped,
    /// Commits do not wait for the repository any more: RPO 0 is not held.
    SteppedDown,
    /// Commits hang, and the role may not let them go on.
    CannotStepDown,
}

impl ConcernKind {
    /// Every kind.
    pub const ALL: [ConcernKind; 10] = [
        ConcernKind::NotSafe,
        ConcernKind::LagWarn,
        ConcernKind::LagAlarm,
        ConcernKind::Rpo,
        ConcernKind::Rto,
        ConcernKind::BackupFailed,
        ConcernKind::Damaged,
        ConcernKind::SlotDropped,
        ConcernKind::SteppedDown,
        ConcernKind::CannotStepDown,
    ];

    /// The word in the store, the API and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ConcernKind::NotSafe => "not-safe",
            ConcernKind::LagWarn => "lag-warn",
            ConcernKind::LagAlarm => "lag-alarm",
            ConcernKind::Rpo => "rpo",
            ConcernKind::Rto => "rto",
            ConcernKind::BackupFailed => "backup-failed",
            ConcernKind::Damaged => "damaged",
            ConcernKind::SlotDropped => "slot-dropped",
            ConcernKind::SteppedDown => "stepped-down",
            ConcernKind::CannotStepDown => "cannot-step-down",
        }
    }

    /// The kind of that word.
    pub fn of(word: &str) -> Option<ConcernKind> {
        ConcernKind::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// What a source does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// It is looked at for the first time.
    Starting,
    /// Its log arrives in the repository.
    Shipping,
    /// Logical copies of it are made when they are due.
    Scheduled,
    /// Another process writes for it.
    Elsewhere,
    /// Its log does not arrive; it is tried again.
    Failing,
    /// A person has to do something first.
    Stuck,
}

/// How far a log is safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogView {
    /// The timeline that is written.
    #[schemars(with = "u32")]
    pub timeline: Timeline,
    /// How far the server's log is flushed.
    #[schemars(with = "String")]
    pub server_end: Lsn,
    /// Everything before this place is in the repository.
    #[schemars(with = "String")]
    pub durable: Lsn,
    /// The age of the oldest byte that is not, in milliseconds: what would be lost now.
    pub lag_ms: u64,
}

impl LogView {
    /// Bytes of the server's log that are not in the repository.
    pub fn lag_bytes(&self) -> u64 {
        self.server_end.0.saturating_sub(self.durable.0)
    }
}

/// A backup under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnderWay {
    /// When it began.
    #[schemars(with = "String")]
    pub began: Timestamp,
    /// Bytes of the server that are stored.
    pub bytes: u64,
    /// Bytes that the server means to send, where it says so.
    pub of_bytes: Option<u64>,
    /// What is done now, in words.
    pub phase: String,
    /// Only what has changed since the backup before was asked for.
    #[serde(default)]
    pub incremental: bool,
}

/// A check of stored objects: what had not been read before, and a sample of the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckedObjects {
    /// When it ended.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// How many objects were read.
    pub objects: u64,
    /// How many things are wrong: objects that are damaged or missing, holes in the log.
    pub wrong: u64,
    /// The first of them, in words.
    pub first: Option<String>,
}

/// How long a restore to the newest state would take, in seconds: as fast as the last base backup was stored, and as servers
/// usually replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreForecast {
    /// Fetching the base.
    pub base_secs: u64,
    /// Fetching and replaying the log since.
    pub log_secs: u64,
    /// All of it.
    pub total_secs: u64,
}

/// A backup that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastBackup {
    /// Its name.
    pub id: String,
    /// When it began.
    #[schemars(with = "String")]
    pub began: Timestamp,
    /// When its last byte was stored.
    #[schemars(with = "String")]
    pub ended: Timestamp,
    /// The backup that it is the difference to; none when it is whole.
    #[serde(default)]
    pub parent: Option<String>,
    /// Why it is whole although only what had changed was asked for.
    #[serde(default)]
    pub whole_because: Option<String>,
    /// The cluster that it is of, by its system identifier.
    #[serde(default)]
    pub cluster: Option<String>,
}

/// A try at a backup that came to nothing. What it stored is no backup, and is let go in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailedBackup {
    /// When it failed.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Why, in words that begin with `failed to`.
    pub words: String,
}

/// The wish for a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackupWish {
    /// All of it, even where the source's file has `incremental`.
    pub full: bool,
}

/// The daemon's answer to the wish for a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupAsked {
    /// The source.
    #[schemars(with = "String")]
    pub source: SourceName,
    /// It was under way already, and is the answer to this wish too.
    pub joined: bool,
    /// A backup that began at this moment or later is the answer, by the daemon's clock.
    #[schemars(with = "String")]
    pub since: Timestamp,
}
