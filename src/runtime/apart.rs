//! A command apart from any run, found again by its name: what a deploy starts, and its successor waits for.
//!
//! Two engines carry such commands out: `docker` in a container with the repository's files, `process` under a shim.
//! Both end in a [`CommandEnd`].

use crate::model::log::{LogChunk, Stream};
use std::collections::VecDeque;

/// So many of the last lines are kept, of both streams, in the order in which they came.
pub const TAIL_LINES: usize = 50;
/// A longer line is cut where it is shown.
const LINE_MAX_BYTES: usize = 1 << 10;
/// So much of standard output is kept: what a `status` prints is some lines.
const STDOUT_MAX_BYTES: usize = 1 << 20;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandEnd {
    /// Its exit code; 128 and the signal's number when one ended it.
    pub code: i32,
    /// It was stopped because its time was over.
    pub timed_out: bool,
    /// What it wrote to standard output, from the beginning, as far as it is kept.
    pub stdout: String,
    /// The last lines of both streams.
    pub tail: Vec<String>,
}

/// Puts the pieces of an output together.
#[derive(Default)]
pub(super) struct Collected {
    stdout: Vec<u8>,
    tail: VecDeque<String>,
    open: [Vec<u8>; 2],
    /// The helper or the shim has said that the command begins.
    pub(super) begun: bool,
}

impl Collected {
    pub(super) fn take(&mut self, chunk: &LogChunk) {
        let index = usize::from(chunk.stream == Stream::Stderr);
        let mut open = std::mem::take(&mut self.open[index]);
        open.extend_from_slice(&chunk.data);
        while let Some(end) = memchr::memchr(b'\n', &open) {
            let line: Vec<u8> = open.drain(..=end).collect();
            self.line(chunk.stream, &line);
        }
        if open.len() > LINE_MAX_BYTES {
            self.line(chunk.stream, &std::mem::take(&mut open));
        }
        self.open[index] = open;
    }

    fn line(&mut self, stream: Stream, line: &[u8]) {
        // The marks of the helper, which only it writes at a line's beginning.
        if stream == Stream::Stdout && line.starts_with(b"\x1emainstay:") {
            self.begun = self.begun || line.starts_with(b"\x1emainstay:begin:");
            return;
        }
        if stream == Stream::Stdout && self.stdout.len() < STDOUT_MAX_BYTES {
            self.stdout.extend_from_slice(line);
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        let shown = &line[..line.len().min(LINE_MAX_BYTES)];
        self.tail.push_back(String::from_utf8_lossy(shown).trim_end_matches(['\n', '\r']).to_owned());
    }

    pub(super) fn end(mut self, code: i32, timed_out: bool) -> CommandEnd {
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            let rest = std::mem::take(&mut self.open[index]);
            if !rest.is_empty() {
                self.line(stream, &rest);
            }
        }
        let stdout = String::from_utf8_lossy(&self.stdout).into_owned();
        CommandEnd { code, timed_out, stdout, tail: self.tail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(stream: Stream, data: &str) -> LogChunk {
        LogChunk { stream, at_nanos: 0, data: data.to_owned().into() }
    }

    #[test]
    fn pieces_become_lines_and_marks_are_left_out() {
        let mut all = Collected::default();
        all.take(&chunk(Stream::Stdout, "\u{1e}mainstay:begin:x:1\nhal"));
        all.take(&chunk(Stream::Stderr, "why"));
        all.take(&chunk(Stream::Stdout, "f\n"));
        assert!(all.begun);
        let end = all.end(3, false);
        assert_eq!((end.code, end.stdout.as_str()), (3, "half\n"));
        assert_eq!(end.tail, ["half", "why"]);
    }

    #[test]
    fn much_output_is_cut_in_front_and_long_lines_behind() {
        let mut all = Collected::default();
        for n in 0..100 {
            all.take(&chunk(Stream::Stderr, &format!("line {n}\n")));
        }
        all.take(&chunk(Stream::Stdout, &"x".repeat(5 << 20)));
        let end = all.end(0, false);
        assert_eq!(end.tail.len(), TAIL_LINES);
        assert_eq!(end.tail[0], "line 51");
        assert!(end.tail.iter().all(|line| line.len() <= LINE_MAX_BYTES));
    }
}
