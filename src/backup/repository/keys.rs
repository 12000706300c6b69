//! The name of every object in a repository. `docs/repository-format.md` says the same for people.

use crate::model::{Lsn, SegmentName, SourceName, SystemId, Timeline};
use std::fmt;
use std::str::FromStr;

/// One database cluster as a source has seen it. A source that is pointed at a new cluster keeps the old one's objects apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cluster {
    /// The source.
    pub source: SourceName,
    /// The cluster behind it.
    pub system: SystemId,
}

/// The name of a backup: when it began (UTC) and a random part, `20261123T101500Z-1a2b3c4d`. Names sort by age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct BackupId(String);

/// One archive of a base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Archive {
    /// The data directory.
    Base,
    /// The tablespace with this OID.
    Tablespace(u32),
}

/// The name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The source's own file, so that a bare machine knows how to restore it; a new number with each change.
    Source(SourceName, u64),
    /// Who writes for this source now. The one object that is replaced.
    Lease(SourceName),
    /// Something of one cluster.
    Of(Cluster, Item),
}

/// What is kept of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// A timeline's history file, byte for byte.
    History(Timeline),
    /// A whole WAL segment.
    Segment(SegmentName),
    /// A part of a segment that was not full yet: the bytes from `first` up to, not including, `last`.
    Piece {
        /// The timeline it was written on.
        timeline: Timeline,
        /// Its first byte.
        first: Lsn,
        /// The byte after its last one.
        last: Lsn,
    },
    /// How far the log was acknowledged at a time; numbers go up by one.
    Frontier(u64),
    /// Log that is missing for good, from `from` up to, not including, `to`.
    Gap {
        /// The timeline it is missing on.
        timeline: Timeline,
        /// Where it begins.
        from: Lsn,
        /// Where the log goes on.
        to: Lsn,
    },
    /// Keys that an expiry means to delete, and since when.
    Mark(u64),
    /// A part of an archive of a base backup; the archive is its parts in order.
    Chunk {
        /// The backup.
        backup: BackupId,
        /// The archive.
        archive: Archive,
        /// From 0, without holes.
        number: u32,
    },
    /// Where each chunk of a backup stands in its archive.
    Index(BackupId),
    /// The server's own manifest of a backup, byte for byte.
    ServerManifest(BackupId),
    /// What makes a backup exist; written last.
    Manifest(BackupId),
    /// What a check of a backup found; numbers go up by one.
    Proof(BackupId, u64),
    /// Something of a logical copy.
    Dump(BackupId, DumpItem),
}

/// What is kept of a logical copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DumpItem {
    /// A part of one of its streams; the stream is its parts in order.
    Chunk {
        /// Which stream.
        stream: DumpStream,
        /// From 0, without holes.
        number: u32,
    },
    /// What makes the copy exist; written last.
    Manifest,
    /// What a check of the copy found; numbers go up by one.
    Proof(u64),
}

/// One stream of a logical copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DumpStream {
    /// Roles and the like, as SQL: what `pg_dumpall --globals-only` writes.
    Globals,
    /// The database with this OID: what `pg_dump --format=custom` writes.
    Database(u32),
}

/// Whether an object is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// zstd, then age: what the database holds.
    Sealed,
    /// JSON, signed only: nothing that the database holds, and readable without an identity.
    Open,
}

impl Key {
    /// How this object is stored.
    pub fn form(&self) -> Form {
        match self {
            Key::Of(_, Item::History(_) | Item::Segment(_) | Item::Piece { .. } | Item::Chunk { .. })
            | Key::Of(_, Item::Index(_) | Item::ServerManifest(_) | Item::Dump(_, DumpItem::Chunk { .. }))
            // It may hold host names and commands, though no passwords.
            | Key::Source(..) => Form::Sealed,
            Key::Lease(_) | Key::Of(_, Item::Frontier(_) | Item::Gap { .. } | Item::Mark(_))
            | Key::Of(_, Item::Manifest(_) | Item::Proof(..) | Item::Dump(_, DumpItem::Manifest | DumpItem::Proof(_))) => {
                Form::Open
            }
        }
    }

    /// Everything of a source.
    pub fn of_source(source: &SourceName) -> String {
        format!("{source}/")
    }

    /// Everything of a cluster.
    pub fn of_cluster(cluster: &Cluster) -> String {
        format!("{}/{}/", cluster.source, cluster.system)
    }

    /// Everything of a backup.
    pub fn of_backup(cluster: &Cluster, backup: &BackupId) -> String {
        format!("{}/{}/base/{backup}/", cluster.source, cluster.system)
    }

    /// Everything of a logical copy.
    pub fn of_dump(cluster: &Cluster, copy: &BackupId) -> String {
        format!("{}/{}/dump/{copy}/", cluster.source, cluster.system)
    }
}

impl BackupId {
    /// A name for a backup that begins now. Names are in the order of their moments, within a second too: of the last eight
    /// digits, the first four are the 65,536ths of the second that have gone by. The others are random.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new(now: jiff::Timestamp) -> Result<BackupId, getrandom::Error> {
        let nanos = u64::try_from(now.subsec_nanosecond()).unwrap_or_default();
        let fraction = (nanos << 16) / 1_000_000_000;
        let random = getrandom::u32()? & 0xffff;
        Ok(BackupId(format!("{}-{fraction:04x}{random:04x}", now.strftime("%Y%m%dT%H%M%SZ"))))
    }

    /// When it began, to the second.
    pub fn began(&self) -> Option<jiff::Timestamp> {
        let text = self.0.get(..15)?;
        Some(
            jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S", text)
                .ok()?
                .to_zoned(jiff::tz::TimeZone::UTC)
                .ok()?
                .timestamp(),
        )
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        let wrong = || BadKey(text.chars().take(40).collect());
        let (time, random) = text.split_once('-').ok_or_else(wrong)?;
        let id = BackupId(text.to_owned());
        let plain = time.len() == 16 && time.ends_with('Z') && time.is_ascii();
        let random = random.len() == 8 && random.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (plain && random && id.began().is_some()).then_some(id).ok_or_else(wrong)
    }
}

impl<'de> serde::Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A name in a repository that Mainstay does not give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name that Mainstay gives")]
pub struct BadKey(String);

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Archive::Base => f.write_str("base"),
            Archive::Tablespace(oid) => oid.fmt(f),
        }
    }
}

impl fmt::Display for DumpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DumpStream::Globals => f.write_str("globals"),
            DumpStream::Database(oid) => oid.fmt(f),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Source(source, number) => write!(f, "{source}/source/{number:010}.zst.age"),
            Key::Lease(source) => write!(f, "{source}/lease.json"),
            Key::Of(cluster, item) => write!(f, "{}/{}/{item}", cluster.source, cluster.system),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::History(timeline) => write!(f, "history/{:08X}.history.zst.age", timeline.0),
            Item::Segment(name) => write!(f, "wal/{:08X}/{name}.zst.age", name.timeline.0),
            Item::Piece { timeline, first, last } => {
                write!(f, "piece/{:08X}/{:016X}-{:016X}.zst.age", timeline.0, first.0, last.0)
            }
            Item::Frontier(number) => write!(f, "frontier/{number:010}.json"),
            Item::Gap { timeline, from, to } => write!(f, "gap/{:08X}/{:016X}-{:016X}.json", timeline.0, from.0, to.0),
            Item::Mark(number) => write!(f, "mark/{number:010}.json"),
            Item::Chunk { backup, archive, number } => write!(f, "base/{backup}/{archive}/{number:06}.zst.age"),
            Item::Index(backup) => write!(f, "base/{backup}/index.zst.age"),
            Item::ServerManifest(backup) => write!(f, "base/{backup}/backup_manifest.zst.age"),
            Item::Manifest(backup) => write!(f, "base/{backup}/manifest.json"),
            Item::Proof(backup, number) => write!(f, "base/{backup}/proof/{number:010}.json"),
            Item::Dump(copy, DumpItem::Chunk { stream, number }) => {
                write!(f, "dump/{copy}/{stream}/{number:06}.zst.age")
            }
            Item::Dump(copy, DumpItem::Manifest) => write!(f, "dump/{copy}/manifest.json"),
            Item::Dump(copy, DumpItem::Proof(number)) => write!(f, "dump/{copy}/proof/{number:010}.json"),
        }
    }
}

impl FromStr for Key {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        let key = parse(text).ok_or_else(|| BadKey(text.chars().take(200).flat_map(char::escape_debug).collect()))?;
        // One name, one spelling: whatever else reads as the same key is none.
        if key.to_string() == text { Ok(key) } else { Err(BadKey(text.chars().take(200).collect())) }
    }
}

fn parse(text: &str) -> Option<Key> {
    let parts: Vec<&str> = text.split('/').collect();
    let source = SourceName::new(*parts.first()?).ok()?;
    let item = match &parts[1..] {
        ["lease.json"] => return Some(Key::Lease(source)),
        ["source", number] => return Some(Key::Source(source, number.strip_suffix(".zst.age")?.parse().ok()?)),
        [_, "history", file] => Item::History(timeline(file.strip_suffix(".history.zst.age")?)?),
        [_, "wal", _, file] => Item::Segment(file.strip_suffix(".zst.age")?.parse().ok()?),
        [_, "piece", line, file] => {
            let (first, last) = range(file.strip_suffix(".zst.age")?)?;
            Item::Piece { timeline: timeline(line)?, first, last }
        }
        [_, "frontier", file] => Item::Frontier(number(file)?),
        [_, "gap", line, file] => {
            let (from, to) = range(file.strip_suffix(".json")?)?;
            Item::Gap { timeline: timeline(line)?, from, to }
        }
        [_, "mark", file] => Item::Mark(number(file)?),
        [_, "base", backup, "index.zst.age"] => Item::Index(backup.parse().ok()?),
        [_, "base", backup, "backup_manifest.zst.age"] => Item::ServerManifest(backup.parse().ok()?),
        [_, "base", backup, "manifest.json"] => Item::Manifest(backup.parse().ok()?),
        [_, "base", backup, "proof", file] => Item::Proof(backup.parse().ok()?, number(file)?),
        [_, "base", backup, archive, file] => {
            let archive = match *archive {
                "base" => Archive::Base,
                oid => Archive::Tablespace(oid.parse().ok()?),
            };
            let number = file.strip_suffix(".zst.age")?.parse().ok()?;
            Item::Chunk { backup: backup.parse().ok()?, archive, number }
        }
        [_, "dump", copy, rest @ ..] => Item::Dump(copy.parse().ok()?, dump_item(rest)?),
        _ => return None,
    };
    Some(Key::Of(Cluster { source, system: parts.get(1)?.parse().ok()? }, item))
}

fn dump_item(parts: &[&str]) -> Option<DumpItem> {
    match parts {
        ["manifest.json"] => Some(DumpItem::Manifest),
        ["proof", file] => Some(DumpItem::Proof(number(file)?)),
        [stream, file] => {
            let stream = match *stream {
                "globals" => DumpStream::Globals,
                oid => DumpStream::Database(oid.parse().ok()?),
            };
            Some(DumpItem::Chunk { stream, number: file.strip_suffix(".zst.age")?.parse().ok()? })
        }
        _ => None,
    }
}

fn timeline(text: &str) -> Option<Timeline> {
    Some(Timeline(u32::from_str_radix(text, 16).ok()?))
}

fn number(file: &str) -> Option<u64> {
    file.strip_suffix(".json")?.parse().ok()
}

fn range(text: &str) -> Option<(Lsn, Lsn)> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?);
    (first < last).then_some((Lsn(first), Lsn(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_kind() -> Vec<Key> {
        let source = SourceName::new("shop-db").unwrap();
        let cluster = Cluster { source: source.clone(), system: SystemId(7_432_101_234_567_890_123) };
        let backup: BackupId = "20261123T101500Z-1a2b3c4d".parse().unwrap();
        let mut keys = vec![Key::Source(source.clone(), 3), Key::Lease(source)];
        let items = [
            Item::History(Timeline(0x1A)),
            Item::Segment("0000001A0000002A000000FF".parse().unwrap()),
            Item::Piece { timeline: Timeline(1), first: Lsn(0x2A_0300_0148), last: Lsn(0x2A_0300_0200) },
            Item::Frontier(12),
            Item::Gap { timeline: Timeline(1), from: Lsn(1 << 24), to: Lsn(3 << 24) },
            Item::Mark(1),
            Item::Chunk { backup: backup.clone(), archive: Archive::Base, number: 0 },
            Item::Chunk { backup: backup.clone(), archive: Archive::Tablespace(16_384), number: 12 },
            Item::Index(backup.clone()),
            Item::ServerManifest(backup.clone()),
            Item::Manifest(backup.clone()),
            Item::Proof(backup.clone(), 2),
            Item::Dump(backup.clone(), DumpItem::Chunk { stream: DumpStream::Globals, number: 0 }),
            Item::Dump(backup.clone(), DumpItem::Chunk { stream: DumpStream::Database(16_384), number: 1_000_000 }),
            Item::Dump(backup.clone(), DumpItem::Manifest),
            Item::Dump(backup, DumpItem::Proof(2)),
        ];
        keys.extend(items.into_iter().map(|item| Key::Of(cluster.clone(), item)));
        keys
    }

    #[test]
    fn every_name_reads_back_as_the_key_it_was_made_of() {
        for key in every_kind() {
            assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
        }
    }

    #[test]
    fn a_name_has_one_spelling() {
        for text in [
            "",
            "shop-db",
            "shop-db/",
            "shop-db/lease",
            "../shop-db/lease.json",
            "shop-db/7/wal/00000002/000000010000000000000003.zst.age",
            "shop-db/7/wal/00000001/00000001000000000000000a.zst.age",
            "shop-db/07/frontier/0000000001.json",
            "shop-db/7/frontier/1.json",
            "shop-db/7/frontier/+000000001.json",
            "shop-db/7/piece/00000001/0000000000000200-0000000000000100.zst.age",
            "shop-db/7/base/20261123T101500Z-1a2b3c4d/base/../000000.zst.age",
            "shop-db/7/base/20261323T101500Z-1a2b3c4d/manifest.json",
            "shop-db/7/dump/20261123T101500Z-1a2b3c4d/016384/000000.zst.age",
            "shop-db/7/dump/20261123T101500Z-1a2b3c4d/globals/0.zst.age",
            "shop-db/7/dump/20261123T101500Z-1a2b3c4d/index.zst.age",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }

    #[test]
    fn backups_are_named_by_when_they_began() {
        let now: jiff::Timestamp = "2026-11-23T10:15:00.7Z".parse().unwrap();
        let id = BackupId::new(now).unwrap();
        assert!(id.to_string().starts_with("20261123T101500Z-"));
        assert_eq!(id.began(), Some("2026-11-23T10:15:00Z".parse().unwrap()));
        assert_ne!(id, BackupId::new(now).unwrap());
    }

    #[test]
    fn names_of_backups_are_in_the_order_of_their_moments() {
        let at = |text: &str| BackupId::new(text.parse().unwrap()).unwrap().to_string();
        let moments =
            ["2026-11-23T10:15:00Z", "2026-11-23T10:15:00.0001Z", "2026-11-23T10:15:00.9Z", "2026-11-23T10:15:01Z"];
        let names: Vec<String> = moments.map(at).into();
        assert!(names.is_sorted() && names[2].starts_with("20261123T101500Z-e666"), "{names:?}");
        for (name, moment) in names.iter().zip(moments) {
            let second: jiff::Timestamp = moment.parse().unwrap();
            let began = name.parse::<BackupId>().unwrap().began().unwrap();
            assert_eq!(began.as_second(), second.as_second());
        }
    }
}
