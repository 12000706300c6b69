//! Writes the log of one attempt: an append-only file of frames.
//!
//! In come chunks without marks, from `step`; out go frames of masked lines, each with the place in the engine's log
//! from which reading goes on behind it. A writer may be killed at any byte: the next one cuts the file back to its
//! last whole frame, asks the engine from there, and the file ends up with the same lines, none lost and none twice.
//!
//! Dropping a writer loses nothing either: an unfinished line is not part of the cursor. [`LogWriter::finish`] is for
//! the end of the attempt only.

use super::frame::{self, Body, Header, Kind};
use super::hub::Publisher;
use super::lines::{Piece, StreamLines};
use super::mask::Masker;
use crate::model::log::{LogChunk, LogCursor, Stream};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A frame is written when its lines take this much: compresses nearly as well as more would, and is half a
/// millisecond of work.
const FRAME_BYTES: usize = 256 * 1024;
/// A chunk is taken in parts of this size, so that one huge chunk does not make one huge frame.
const PART_BYTES: usize = 64 * 1024;
/// Behind the limit only the cursor moves; it is stored after this much, which is what a restart then reads again.
const DROPPED_PER_FRAME: u64 = 64 * 1024 * 1024;
/// What Mainstay itself may add to a log behind its limit: the reason why the step ended must not be dropped.
const SYSTEM_BEYOND_LIMIT_BYTES: u64 = 64 * 1024;
/// The longest piece of a line that may be configured; keeps a frame below what readers accept.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// How much of a step's output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimit {
    /// Bytes of lines, with their ends. What comes later is counted, not stored.
    pub bytes: u64,
    /// A longer line is stored in pieces of this many bytes (before masking). At most 1 MiB.
    pub line_bytes: usize,
}

impl Default for LogLimit {
    /// 256 MiB of lines: more than a person can look through, and 50 such steps fit on a small disk.
    /// 64 KiB of a line: what a page can show as one.
    fn default() -> Self {
        LogLimit { bytes: 256 * 1024 * 1024, line_bytes: 64 * 1024 }
    }
}

/// What a log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSummary {
    /// Lines and pieces of lines stored.
    pub lines: u64,
    /// Bytes stored, before compression, with one for the end of each line.
    pub bytes: u64,
    /// Bytes not stored because of the limit.
    pub dropped_bytes: u64,
}

/// Writes the log of one attempt. After an error it is of no use: drop it and open again.
pub struct LogWriter {
    file: File,
    path: PathBuf,
    /// Where the next frame goes.
    end: u64,
    stdout: StreamLines,
    stderr: StreamLines,
    masker: Arc<Masker>,
    stage: Stage,
    /// The last frame in the file says that the attempt is over.
    finished: bool,
    broken: bool,
    publisher: Option<Publisher>,
}

/// Lines that wait for their frame, and the sums over the whole log.
struct Stage {
    limit: u64,
    body: Body,
    next_number: u64,
    stored_bytes: u64,
    dropped_bytes: u64,
    dropped_since_frame: u64,
    limit_reached: bool,
}

impl LogWriter {
    /// Opens or makes the file, cuts it back to its last whole frame, and says from where the engine's log is to be
    /// read on.
    ///
    /// # Errors
    /// When the file cannot be opened, read or cut.
    pub fn open(path: &Path, masker: Arc<Masker>, limit: LogLimit) -> io::Result<(LogWriter, LogCursor)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut end = 0;
        let mut last = Header::new(Kind::Lines);
        // Every frame is checked, not only the last: after a power cut any block of a file may be missing.
        while let Some(header) = frame::header_at(&file, end, file_bytes)? {
            if header.first_number != last.next_number() || frame::body_at(&file, end, &header)?.is_none() {
                break;
            }
            end += header.frame_bytes();
            last = header;
        }
        if end < file_bytes {
            tracing::debug!(path = %path.display(), end, file_bytes, "cutting a log back to its last whole frame");
            file.set_len(end)?;
        }
        let piece_bytes = limit.line_bytes.min(LINE_BYTES_MAX);
        let lines = |stream, position, carry| StreamLines::new(stream, masker.clone(), piece_bytes, position, carry);
        let writer = LogWriter {
            stdout: lines(Stream::Stdout, last.cursor.stdout, last.carries[0]),
            stderr: lines(Stream::Stderr, last.cursor.stderr, last.carries[1]),
            masker: masker.clone(),
            file,
            path: path.to_owned(),
            end,
            stage: Stage {
                limit: limit.bytes,
                body: Body::default(),
                next_number: last.next_number(),
                stored_bytes: last.stored_bytes,
                dropped_bytes: last.dropped_bytes,
                dropped_since_frame: 0,
                limit_reached: last.limit_reached,
            },
            finished: last.kind == Kind::End,
            broken: false,
            publisher: None,
        };
        Ok((writer, last.cursor))
    }

    /// Tells followers of every frame from now on.
    pub(super) fn publish_to(&mut self, publisher: Publisher) {
        self.publisher = Some(publisher);
    }

    /// Takes the next chunk; writes a frame when enough has come together.
    ///
    /// # Errors
    /// When a frame cannot be written.
    pub fn push(&mut self, chunk: &LogChunk) -> io::Result<()> {
        if chunk.stream == Stream::System {
            return self.push_system_at(chunk.at_nanos, &chunk.data);
        }
        for part in chunk.data.chunks(PART_BYTES) {
            let lines = if chunk.stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
            lines.push(chunk.at_nanos, part, &mut |piece| self.stage.add(&piece));
            self.flush_when_full()?;
        }
        Ok(())
    }

    /// Counts bytes of the engine's log that are not text (marks). A line they interrupt is over.
    ///
    /// # Errors
    /// When a frame cannot be written.
    pub fn skip(&mut self, stream: Stream, at_nanos: i64, bytes: u64) -> io::Result<()> {
        let lines = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
            Stream::System => return Ok(()),
        };
        lines.skip(at_nanos, bytes, &mut |piece| self.stage.add(&piece));
        self.flush_when_full()
    }

    /// Adds Mainstay's own words, with the time of now. They are masked like everything else. They are not part of the
    /// cursor: what was not flushed when the process is killed is gone.
    ///
    /// # Errors
    /// When a frame cannot be written.
    pub fn push_system(&mut self, text: &str) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
        self.push_system_at(now, text.as_bytes())
    }

    fn push_system_at(&mut self, at_nanos: i64, text: &[u8]) -> io::Result<()> {
        for line in text.strip_suffix(b"\n").unwrap_or(text).split(|&b| b == b'\n') {
            let masked = self.masker.mask_line(line);
            for (index, part) in masked.chunks(PART_BYTES).enumerate() {
                self.stage.add(&Piece { stream: Stream::System, at_nanos, text: part, continues: index > 0 });
            }
            self.flush_when_full()?;
        }
        Ok(())
    }

    /// True when lines wait that `flush` would store.
    pub fn pending(&self) -> bool {
        self.stage.body.lines > 0
    }

    /// Writes the waiting lines as a frame and wakes followers. They survive the process then, though not yet a power
    /// cut: the engine's own log still has them.
    ///
    /// # Errors
    /// When the frame cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.pending() { self.write_frame(Kind::Lines) } else { Ok(()) }
    }

    /// The attempt is over: stores an unfinished last line too, says in the file that nothing more comes, and with
    /// `sync` returns when all of it is on the disk. Safe to repeat.
    ///
    /// # Errors
    /// When a frame cannot be written or synced.
    pub fn finish(&mut self, sync: bool) -> io::Result<LogSummary> {
        self.stdout.finish(&mut |piece| self.stage.add(&piece));
        self.stderr.finish(&mut |piece| self.stage.add(&piece));
        if self.pending() || !self.finished {
            self.write_frame(Kind::End)?;
        }
        if sync {
            self.file.sync_all()?;
            // The name of a new file is in its folder.
            if let Some(folder) = self.path.parent() {
                File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?.sync_all()?;
            }
        }
        Ok(self.summary())
    }

    /// What the log holds, waiting lines included.
    pub fn summary(&self) -> LogSummary {
        LogSummary {
            lines: self.stage.next_number - 1,
            bytes: self.stage.stored_bytes,
            dropped_bytes: self.stage.dropped_bytes,
        }
    }

    fn flush_when_full(&mut self) -> io::Result<()> {
        if self.stage.body.raw.len() >= FRAME_BYTES || self.stage.dropped_since_frame >= DROPPED_PER_FRAME {
            self.write_frame(Kind::Lines)?;
        }
        Ok(())
    }

    fn write_frame(&mut self, kind: Kind) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write to this log failed"));
        }
        let (stdout, stdout_carry) = self.stdout.stored();
        let (stderr, stderr_carry) = self.stderr.stored();
        let stage = &mut self.stage;
        let mut header = Header::new(kind);
        header.limit_reached = stage.limit_reached;
        header.lines = stage.body.lines;
        header.first_number = stage.next_number - u64::from(stage.body.lines);
        header.first_at = stage.body.first_at;
        header.cursor = LogCursor { stdout, stderr };
        header.carries = [stdout_carry, stderr_carry];
        header.stored_bytes = stage.stored_bytes;
        header.dropped_bytes = stage.dropped_bytes;
        let written = frame::encode(header, &stage.body.raw).and_then(|frame| {
            self.file.write_all_at(&frame, self.end)?;
            Ok(frame.len() as u64)
        });
        match written {
            Ok(bytes) => self.end += bytes,
            Err(error) => {
                // Half a frame may be there; readers pass over it and the next writer cuts it off.
                self.broken = true;
                return Err(error);
            }
        }
        stage.body.clear();
        stage.dropped_since_frame = 0;
        self.finished = kind == Kind::End;
        if let Some(publisher) = &self.publisher {
            publisher.publish(stage.next_number - 1);
        }
        Ok(())
    }
}

impl Stage {
    fn add(&mut self, piece: &Piece<'_>) {
        let bytes = piece.text.len() as u64 + 1;
        let limit = match piece.stream {
            Stream::System => self.limit.saturating_add(SYSTEM_BEYOND_LIMIT_BYTES),
            Stream::Stdout | Stream::Stderr => self.limit,
        };
        let is_output = piece.stream != Stream::System;
        if (is_output && self.limit_reached) || self.stored_bytes + bytes > limit {
            if is_output && !self.limit_reached {
                self.limit_reached = true;
                let text = format!("the log has reached its limit of {} bytes; what follows is not kept", self.limit);
                self.store(Stream::System, piece.at_nanos, false, text.as_bytes());
            }
            self.dropped_bytes += bytes;
            self.dropped_since_frame += bytes;
            return;
        }
        self.store(piece.stream, piece.at_nanos, piece.continues, piece.text);
    }

    fn store(&mut self, stream: Stream, at_nanos: i64, continues: bool, text: &[u8]) {
        self.body.add(stream, at_nanos, continues, text);
        self.next_number += 1;
        self.stored_bytes += text.len() as u64 + 1;
    }
}
