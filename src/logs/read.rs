//! Reads stored logs, also while they grow.
//!
//! In comes a file that `file` writes, perhaps at this moment; out go its lines, for `web` and `cli`. Whatever is not
//! a whole, sound frame ends the log for now: a torn last frame is one that is still being written, or that the next
//! writer cuts off.

use super::file::LogSummary;
use super::frame::{self, Header, Kind};
use crate::model::log::LogLine;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zstd::bulk::Decompressor;

/// A place in a stored log. As an iterator it gives lines until there are no more for now; later it may give more.
pub struct LogReader {
    file: File,
    /// Where the next frame begins.
    offset: u64,
    /// Lines before this number are passed over.
    from: u64,
    /// The number the next frame must begin with.
    expected: u64,
    finished: bool,
    waiting: VecDeque<LogLine>,
    decompressor: Decompressor<'static>,
}

impl LogReader {
    /// Opens a log at its first line.
    ///
    /// # Errors
    /// When there is no such file or it cannot be opened.
    pub fn open(path: &Path) -> io::Result<LogReader> {
        Ok(LogReader {
            file: File::open(path)?,
            offset: 0,
            from: 1,
            expected: 1,
            finished: false,
            waiting: VecDeque::new(),
            decompressor: Decompressor::new()?,
        })
    }

    /// Goes on from the line of that number, forward or back. Frames before it are passed over by their headers.
    pub fn seek_line(&mut self, number: u64) {
        (self.offset, self.expected, self.finished) = (0, 1, false);
        self.from = number.max(1);
        self.waiting.clear();
    }

    /// Goes on from the last `count` lines that are there now, found from the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn seek_tail(&mut self, count: u64) -> io::Result<()> {
        let (mut start, mut header) = match self.last_frame()? {
            Some(last) => last,
            None => {
                self.seek_line(1);
                return Ok(());
            }
        };
        self.waiting.clear();
        self.finished = false;
        self.from = header.next_number().saturating_sub(count).max(1);
        let file_bytes = self.file.metadata()?.len();
        while header.first_number > self.from {
            match frame::frame_before(&self.file, start, file_bytes)? {
                Some((before, earlier)) if earlier.next_number() == header.first_number => {
                    (start, header) = (before, earlier);
                }
                _ => {
                    let from = self.from;
                    self.seek_line(from);
                    return Ok(());
                }
            }
        }
        (self.offset, self.expected) = (start, header.first_number);
        Ok(())
    }

    /// The lines of the next frame that has any; none when there is no more for now.
    ///
    /// # Errors
    /// When the file cannot be read. What cannot be understood is no error but the end for now.
    pub fn next_lines(&mut self) -> io::Result<Vec<LogLine>> {
        if !self.waiting.is_empty() {
            return Ok(self.waiting.drain(..).collect());
        }
        loop {
            let file_bytes = self.file.metadata()?.len();
            let Some(header) = frame::header_at(&self.file, self.offset, file_bytes)? else { return Ok(Vec::new()) };
            if header.first_number != self.expected {
                return Ok(Vec::new());
            }
            let mut lines = Vec::new();
            if header.next_number() > self.from {
                let Some(body) = frame::body_at(&self.file, self.offset, &header)? else { return Ok(Vec::new()) };
                let Some(found) = frame::lines_in(&header, &body, &mut self.decompressor) else {
                    return Ok(Vec::new());
                };
                lines = found;
                let before = self.from.saturating_sub(header.first_number).min(lines.len() as u64);
                lines.drain(..before as usize);
            }
            self.offset += header.frame_bytes();
            self.expected = header.next_number();
            self.finished = header.kind == Kind::End;
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    /// True when the frame read last says that the attempt is over.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// True when the file was removed since it was opened.
    pub fn removed(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }

    /// What the log holds now, and whether the attempt is over, without reading lines.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn summary(&self) -> io::Result<(LogSummary, bool)> {
        let Some((_, last)) = self.last_frame()? else { return Ok((LogSummary::default(), false)) };
        let lines = last.next_number() - 1;
        let summary = LogSummary { lines, bytes: last.stored_bytes, dropped_bytes: last.dropped_bytes };
        Ok((summary, last.kind == Kind::End))
    }

    /// The last whole frame: from the end, or by all headers from the start when the end is torn.
    fn last_frame(&self) -> io::Result<Option<(u64, Header)>> {
        let file_bytes = self.file.metadata()?.len();
        if let Some(last) = frame::frame_before(&self.file, file_bytes, file_bytes)? {
            return Ok(Some(last));
        }
        let (mut offset, mut expected, mut last) = (0, 1, None);
        while let Some(header) = frame::header_at(&self.file, offset, file_bytes)? {
            if header.first_number != expected {
                break;
            }
            last = Some((offset, header));
            offset += header.frame_bytes();
            expected = header.next_number();
        }
        Ok(last)
    }
}

impl Iterator for LogReader {
    type Item = io::Result<LogLine>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.waiting.is_empty() {
            match self.next_lines() {
                Ok(lines) => self.waiting = lines.into(),
                Err(error) => return Some(Err(error)),
            }
        }
        self.waiting.pop_front().map(Ok)
    }
}
