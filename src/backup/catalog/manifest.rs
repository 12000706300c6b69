//! The documents of a repository: what makes a backup exist, how far the log was acknowledged, what is missing.
//!
//! All are JSON, signed, not encrypted, and hold nothing of what the database holds. Readers refuse a version that they do
//! not know. `docs/repository-format.md` describes each field for people.

use crate::backup::repository::{Archive, BackupId};
use crate::backup::seal::Extent;
use crate::model::{Lsn, SegmentSize, SystemId, Timeline};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of these documents that this Mainstay writes.
pub const VERSION: u32 = 1;

/// What makes a base backup exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// The version of this document.
    pub version: u32,
    /// The backup.
    pub backup: BackupId,
    /// What the server said of itself.
    pub server: ServerFacts,
    /// The timeline it began on.
    pub timeline: Timeline,
    /// Where replay begins: `START WAL LOCATION` of its label.
    pub start: Lsn,
    /// Where it becomes consistent. Every byte of the log from `start` to here was in the repository before this
    /// document was written.
    pub stop: Lsn,
    /// The timeline it ended on.
    pub stop_timeline: Timeline,
    /// When it began and ended, by the writer's clock.
    pub began: Timestamp,
    /// When its last byte was stored.
    pub ended: Timestamp,
    /// The backup that this one is the difference to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<BackupId>,
    /// Why it is whole although a difference was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_because: Option<String>,
    /// Its archives, the data directory last.
    pub archives: Vec<ArchiveFacts>,
    /// The objects of its archives in order, then the index and the server's manifest.
    pub objects: Vec<ObjectFacts>,
    /// What it was made by.
    pub made_by: String,
}

/// An archive of a backup: a tar file in chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ArchiveFacts {
    /// Which.
    pub archive: Archive,
    /// Where a tablespace was on the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Its chunks.
    pub chunks: u32,
    /// Its length.
    pub bytes: u64,
}

/// An object that a backup consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObjectFacts {
    /// Its name in the repository.
    pub key: String,
    /// Its bytes before sealing.
    pub plain: Extent,
    /// Its bytes as stored.
    pub stored: Extent,
}

/// Where the chunks of a backup stand in their archives, so that each can be unpacked alone. Encrypted: it names files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub struct Index {
    /// One entry a chunk, in the order of the manifest's objects.
    pub chunks: Vec<ChunkPlace>,
}

/// How a chunk begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChunkPlace {
    /// The archive.
    pub archive: Archive,
    /// Its number there.
    pub number: u32,
    /// Its first byte in the archive. It begins at a member's header, or inside the member that `continues` names.
    pub offset: u64,
    /// The member whose content was not over when the chunk began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Continues>,
}

/// A member of an archive that goes over from the chunk before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Continues {
    /// Its path, in hexadecimal: names of files are bytes, not text.
    pub path_hex: String,
    /// How much of its content stands in earlier chunks.
    pub at: u64,
    /// How much is left, without the padding to a whole block.
    pub left: u64,
}

/// What a server said of itself; what a restore must give it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServerFacts {
    /// Which cluster.
    pub system: SystemId,
    /// `server_version_num`, such as 150018.
    pub version: u32,
    /// The length of its WAL segments.
    pub segment_size: SegmentSize,
    /// The length of its pages.
    pub block_size: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Settings that recovery or the new server depends on, by name: `max_connections`, `shared_preload_libraries`, …
    pub settings: BTreeMap<String, String>,
    /// Its tablespaces: OID to place.
    #[serde(default)]
    pub tablespaces: BTreeMap<u32, String>,
    /// Facts that need an ordinary connection: collation versions, extensions. Empty where that was not to be had.
    #[serde(default)]
    pub databases: BTreeMap<String, DatabaseFacts>,
}

impl ServerFacts {
    /// The major version, such as 15.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }
}

/// What a restore must know of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub struct DatabaseFacts {
    /// Its collation, with the version that its indexes were built with.
    #[serde(default)]
    pub collation: Option<String>,
    /// Its extensions: name to version.
    #[serde(default)]
    pub extensions: BTreeMap<String, String>,
}

/// How far the log was acknowledged at a time. A restore that cannot reach the newest one fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Frontier {
    /// The version of this document.
    pub version: u32,
    /// The timeline that was being written.
    pub timeline: Timeline,
    /// Everything before this place was durable in the repository and acknowledged to the server.
    pub acknowledged: Lsn,
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// The server's clock with its newest byte.
    #[serde(default)]
    pub server_time: Option<Timestamp>,
}

/// Log that is missing for good. Nothing is restored across it; a backup that begins after it ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Gap {
    /// The version of this document.
    pub version: u32,
    /// The timeline.
    pub timeline: Timeline,
    /// The first missing byte.
    pub from: Lsn,
    /// Where the log goes on.
    pub to: Lsn,
    /// When it was found.
    pub at: Timestamp,
    /// Why, in words.
    pub why: String,
}

/// Objects that an expiry means to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mark {
    /// The version of this document.
    pub version: u32,
    /// When they were found to be needed by nothing.
    pub at: Timestamp,
    /// Their names.
    pub keys: Vec<String>,
}

/// What a check of a backup found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Proof {
    /// The version of this document.
    pub version: u32,
    /// When.
    pub at: Timestamp,
    /// What was done.
    pub kind: ProofKind,
    /// Whether the backup is good.
    pub good: bool,
    /// What was seen, in words.
    pub detail: String,
    /// The place in the log that was reached, where a server was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Lsn>,
    /// How long it took, in seconds.
    pub took_secs: u64,
    /// The log that has been read with the same care by this check or by earlier ones, so that it is not read each time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<LogRead>,
}

/// A range of the log that a check has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogRead {
    /// The timeline that its objects are of.
    pub timeline: Timeline,
    /// The first byte.
    pub from: Lsn,
    /// The byte after the last one.
    pub to: Lsn,
}

/// How a backup was checked; a later kind says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProofKind {
    /// Every object is there with the length and digest it was stored with.
    Stored,
    /// Every object was opened, and its plain bytes are those that were sealed.
    Opened,
    /// A server was started from it.
    Started,
}
