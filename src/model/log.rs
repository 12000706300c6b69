//! Log lines and the place in an engine's log from which reading goes on.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Said by Mainstay itself about the step (cut logs, retries, lost containers).
    System,
}

/// A piece of a step's output as the engine hands it over: whole lines end in `\n`; long lines come in several pieces,
/// and pieces of the two streams come in no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// Which stream.
    pub stream: Stream,
    /// Nanoseconds since 1970 by the engine's clock, never backwards within a stream as long as that clock is not set back.
    pub at_nanos: i64,
    /// The bytes.
    pub data: Bytes,
}

/// How far one stream of an engine's log has been taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamPosition {
    /// Bytes of the stream taken over so far.
    pub bytes: u64,
    /// A whole second (since 1970) such that `bytes_before_second` bytes of the stream have earlier times; 0 = from the start.
    pub second: i64,
    /// Bytes of the stream with times before `second`.
    pub bytes_before_second: u64,
}

/// How far an engine's log has been taken over: stored with every frame of ours, and enough to go on with no line lost
/// and none twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogCursor {
    /// Standard output.
    pub stdout: StreamPosition,
    /// Standard error.
    pub stderr: StreamPosition,
}

/// One stored line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Its number in the step's log, from 1.
    pub number: u64,
    /// Nanoseconds since 1970.
    pub at_nanos: i64,
    /// Which stream.
    pub stream: Stream,
    /// It goes on, without a line's end between, with the line before it in the same stream: a very long line is
    /// stored in pieces.
    pub continues: bool,
    /// The masked bytes, without the line's end. Not always UTF-8.
    pub bytes: Vec<u8>,
}
