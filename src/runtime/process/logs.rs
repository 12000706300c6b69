//! The captured output of a step: frames of one append-only file, followed by looking at its length.

use super::files::Attempt;
use super::{LOOK_EVERY, io_error};
use crate::model::log::{LogChunk, LogCursor, Stream};
use crate::runtime::{Found, RuntimeError};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use std::fs::File;
use std::io::{self, Read};

/// A frame begins with: stream (one byte), time in nanoseconds (eight), length (four).
const HEADER_BYTES: usize = 13;
/// The most that is read at once, which bounds the memory of one follower.
const READ_BYTES: usize = 256 << 10;

/// Appends a frame to `out`.
pub(super) fn frame(out: &mut Vec<u8>, stream: Stream, at_nanos: i64, data: &[u8]) {
    out.push(u8::from(stream == Stream::Stderr));
    out.extend_from_slice(&at_nanos.to_le_bytes());
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out.extend_from_slice(data);
}

/// A frame being handed over, line by line.
struct Open {
    stream: Stream,
    at_nanos: i64,
    data: Bytes,
}

struct Follow {
    attempt: Attempt,
    file: Option<File>,
    buffer: BytesMut,
    open: Option<Open>,
    /// Bytes that were taken over before, per stream.
    skip: [u64; 2],
    /// The process had ended before the last look: what was read since is all.
    last: bool,
    done: bool,
}

/// The output from a cursor to its end.
pub(super) fn follow(attempt: Attempt, from: LogCursor) -> BoxStream<'static, Result<LogChunk, RuntimeError>> {
    let state = Follow {
        attempt,
        file: None,
        buffer: BytesMut::new(),
        open: None,
        skip: [from.stdout.bytes, from.stderr.bytes],
        last: false,
        done: false,
    };
    stream::unfold(state, |mut state| async move {
        if state.done {
            return None;
        }
        let item = state.next().await.map_err(io_error("read the step's output")).transpose()?;
        state.done = item.is_err();
        Some((item, state))
    })
    .boxed()
}

impl Follow {
    async fn next(&mut self) -> io::Result<Option<LogChunk>> {
        loop {
            if let Some(chunk) = self.line() {
                return Ok(Some(chunk));
            }
            if self.parse() {
                continue;
            }
            if self.read()? {
                continue;
            }
            if self.last {
                return Ok(None);
            }
            self.last = !matches!(self.attempt.find()?.found, Found::Alive);
            if !self.last {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// The next line of the open frame, or its last piece.
    fn line(&mut self) -> Option<LogChunk> {
        let open = self.open.as_mut()?;
        let length = memchr::memchr(b'\n', &open.data).map_or(open.data.len(), |at| at + 1);
        let chunk = LogChunk { stream: open.stream, at_nanos: open.at_nanos, data: open.data.split_to(length) };
        if open.data.is_empty() {
            self.open = None;
        }
        Some(chunk)
    }

    /// Opens the next whole frame of the buffer. A frame that is not whole is still being written, or was cut off by a
    /// crash of the machine, and then is the end.
    fn parse(&mut self) -> bool {
        let Some(head) = self.buffer.first_chunk::<HEADER_BYTES>() else { return false };
        let stream = if head[0] == 0 { Stream::Stdout } else { Stream::Stderr };
        let mut at_nanos = [0; 8];
        at_nanos.copy_from_slice(&head[1..9]);
        let length = u32::from_le_bytes([head[9], head[10], head[11], head[12]]) as usize;
        if self.buffer.len() < HEADER_BYTES + length {
            return false;
        }
        let mut data = self.buffer.split_to(HEADER_BYTES + length).split_off(HEADER_BYTES).freeze();
        let skip = &mut self.skip[usize::from(stream == Stream::Stderr)];
        let known = (*skip).min(data.len() as u64);
        *skip -= known;
        let data = data.split_off(known as usize);
        if !data.is_empty() {
            self.open = Some(Open { stream, at_nanos: i64::from_le_bytes(at_nanos), data });
        }
        true
    }

    fn read(&mut self) -> io::Result<bool> {
        let file = match &mut self.file {
            Some(file) => file,
            none => match File::open(self.attempt.log()) {
                Ok(file) => none.insert(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            },
        };
        let before = self.buffer.len();
        self.buffer.resize(before + READ_BYTES, 0);
        let read = file.read(&mut self.buffer[before..]);
        self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
        read.map(|count| count > 0)
    }
}
