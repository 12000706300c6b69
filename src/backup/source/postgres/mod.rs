//! A PostgreSQL cluster, seen through the replication protocol: facts, base backups, and the log as it is written.
//!
//! Callers are `take` (a base backup) and `ship` (the log). Bytes leave as the server sent them; what they mean is said in
//! events. Source of the protocol: the manual's chapters "Streaming Replication Protocol" and "Message Formats".

pub mod advise;
pub mod standby;

mod address;
mod ask;
mod base;
mod connect;
mod error;
mod facts;
mod reader;
mod slot;
mod tls;
mod wal;
mod wire;

pub use address::{Address, AddressError, ChannelBinding, Host, Roots, Target, Tls};
pub use base::{BaseBackup, BaseOptions};
pub use connect::{Connection, Purpose};
pub use error::{PostgresError, ServerError, ServerWords};
pub use facts::{Facts, size};
pub use slot::{SlotState, WalStatus};
pub use wal::{Progress, Reporter, WalOptions, WalStream};
pub use wire::{ANSWER_BYTES, FRAME_BYTES, Rows};

use crate::backup::repository::Archive;
use crate::model::{Lsn, SystemId, Timeline};
use bytes::Bytes;
use jiff::Timestamp;

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub system: SystemId,
    /// The timeline that it writes, or replays.
    pub timeline: Timeline,
    /// How far its log is flushed.
    pub flushed: Lsn,
}

/// A base backup as it arrives, in this order: `Begin`; for each archive `Archive` and its `Data`; `ServerManifest` parts;
/// `End`. A stream that fails or stops before `End` is no backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseEvent {
    /// It begins.
    Begin {
        /// Where replay will begin.
        start: Lsn,
        /// On which timeline.
        timeline: Timeline,
        /// The archives that will come, with the place of each tablespace; the data directory last.
        archives: Vec<(Archive, Option<String>)>,
        /// Bytes the server expects to send, where it says so.
        estimated_bytes: Option<u64>,
    },
    /// The next archive begins. The data up to the next event is a whole tar file with its two zero blocks at the end,
    /// whatever the server's version.
    Archive(Archive),
    /// Bytes of the archive.
    Data(Bytes),
    /// Bytes of the server's manifest.
    ServerManifest(Bytes),
    /// It is whole: no checksum failed, and the server said so to the end.
    End {
        /// Where the backup becomes consistent.
        stop: Lsn,
        /// On which timeline.
        timeline: Timeline,
    },
}

/// The log as it arrives. Bytes are contiguous from the place that was asked for: a hole is an error, never a jump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalEvent {
    /// Bytes of the log.
    Bytes {
        /// The place of the first one.
        start: Lsn,
        /// They.
        bytes: Bytes,
        /// How far the server's own log is flushed.
        server_end: Lsn,
        /// The server's clock.
        server_time: Timestamp,
    },
    /// Nothing new.
    Alive {
        /// How far the server's own log is flushed.
        server_end: Lsn,
        /// The server's clock.
        server_time: Timestamp,
    },
    /// This timeline has ended at that place, and another goes on from there.
    TimelineEnds {
        /// The next one.
        next: Timeline,
        /// Where it began.
        at: Lsn,
    },
}
