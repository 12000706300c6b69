//! Makes masked lines of a step's output and keeps count of what of it is stored.
//!
//! In come pieces of the two streams as the engine cut them; out go whole lines, or pieces of very long ones, masked,
//! and for each stream the position behind the last of them. Called by `file`, which stores both together.
//!
//! What comes out depends on the bytes alone, never on how they were cut: a writer that begins again at a stored
//! position gives the same lines as one that never stopped.

use super::mask::{Edges, Masker};
use super::overwrite::write_over;
use crate::model::log::{Stream, StreamPosition};
use std::collections::VecDeque;
use std::sync::Arc;

/// Whole seconds remembered ahead of a position, while a line is incomplete. More only saves rereading.
const SECONDS_AHEAD: usize = 64;

/// A line or a piece of one, ready to store.
pub(super) struct Piece<'a> {
    pub(super) stream: Stream,
    /// When its line began.
    pub(super) at_nanos: i64,
    /// Masked.
    pub(super) text: &'a [u8],
    /// It goes on with the line of the piece before it in the same stream.
    pub(super) continues: bool,
}

/// What must be stored with a position that is in the middle of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Carry {
    /// A piece of the line is stored.
    pub(super) open: bool,
    /// That many bytes behind the position are part of a secret that is hidden already.
    pub(super) hidden: u32,
    /// When the line began.
    pub(super) at_nanos: i64,
}

/// One stream's unfinished line and position.
pub(super) struct StreamLines {
    stream: Stream,
    masker: Arc<Masker>,
    piece_bytes: usize,
    position: Tracker,
    /// The part of the line since the last cut or `\r`.
    text: Vec<u8>,
    /// That many bytes at its start are hidden already.
    hidden: usize,
    /// `text` goes on where a piece was cut.
    text_continues: bool,
    /// A piece of the line was given out.
    open: bool,
    /// What a terminal shows of the line before the last `\r`, masked; `None` while there was none.
    shown: Option<Vec<u8>>,
    /// Something of the line was read.
    begun: bool,
    at_nanos: i64,
    scratch: Vec<u8>,
}

impl StreamLines {
    pub(super) fn new(
        stream: Stream,
        masker: Arc<Masker>,
        piece_bytes: usize,
        at: StreamPosition,
        carry: Carry,
    ) -> Self {
        StreamLines {
            stream,
            masker,
            piece_bytes: piece_bytes.max(1),
            position: Tracker::new(at, carry),
            text: Vec::new(),
            hidden: carry.hidden as usize,
            text_continues: carry.open,
            open: carry.open,
            shown: None,
            begun: carry.open,
            at_nanos: carry.at_nanos,
            scratch: Vec::new(),
        }
    }

    /// The position behind everything given out, and what belongs to it.
    pub(super) fn stored(&self) -> (StreamPosition, Carry) {
        (self.position.stored(), self.position.carry)
    }

    /// The most bytes of an unfinished line kept in memory before a piece of it is given out.
    fn text_max(&self) -> usize {
        self.piece_bytes + self.masker.overlap()
    }

    pub(super) fn push(&mut self, at_nanos: i64, data: &[u8], sink: &mut impl FnMut(Piece<'_>)) {
        self.position.arrived(at_nanos, data.len() as u64);
        let plain = memchr::memchr(b'\r', data).is_none();
        let mut rest = data;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if plain && !self.begun && end <= self.text_max() {
                let text = self.masker.mask_line(line);
                sink(Piece { stream: self.stream, at_nanos, text: &text, continues: false });
            } else {
                self.add(at_nanos, line, (after.len() + 1) as u64, sink);
                self.end_line(sink);
            }
            self.position.store(after.len() as u64, Carry::default());
            rest = after;
        }
        if !rest.is_empty() {
            self.add(at_nanos, rest, 0, sink);
        }
    }

    /// Bytes that are not text: the line before them is over.
    pub(super) fn skip(&mut self, at_nanos: i64, bytes: u64, sink: &mut impl FnMut(Piece<'_>)) {
        self.finish(sink);
        self.position.arrived(at_nanos, bytes);
        self.position.store(0, Carry::default());
    }

    /// Nothing more comes: what there is of a line is given out.
    pub(super) fn finish(&mut self, sink: &mut impl FnMut(Piece<'_>)) {
        // Of an open line with nothing behind its last piece there is nothing left to say.
        if !self.text.is_empty() || self.shown.as_ref().is_some_and(|shown| !shown.is_empty()) {
            self.end_line(sink);
        } else {
            self.reset();
        }
        self.position.store(0, Carry::default());
    }

    /// Adds a part of a line; `behind` bytes of the chunk follow it.
    fn add(&mut self, at_nanos: i64, part: &[u8], behind: u64, sink: &mut impl FnMut(Piece<'_>)) {
        if !self.begun {
            self.begun = true;
            self.at_nanos = at_nanos;
        }
        let mut rest = part;
        loop {
            let segment = memchr::memchr(b'\r', rest);
            let (mut text, after) = match segment {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, &[][..]),
            };
            while !text.is_empty() {
                let taken = text.len().min(self.text_max() + 1 - self.text.len());
                self.text.extend_from_slice(&text[..taken]);
                text = &text[taken..];
                if self.text.len() > self.text_max() {
                    let unread = text.len() + usize::from(segment.is_some()) + after.len();
                    self.cut(unread as u64 + behind, sink);
                }
            }
            if segment.is_none() {
                return;
            }
            self.go_back();
            rest = after;
        }
    }

    /// Gives out one piece of a line too long to wait for its end. What a `\r` left of it is covered by now.
    fn cut(&mut self, behind: u64, sink: &mut impl FnMut(Piece<'_>)) {
        self.shown = None;
        self.scratch.clear();
        let edges = Edges { starts_line: !self.text_continues, ends_line: false };
        let cut = self.piece_bytes;
        self.hidden = self.masker.mask_piece(&self.text, cut, self.hidden, edges, &mut self.scratch);
        sink(Piece { stream: self.stream, at_nanos: self.at_nanos, text: &self.scratch, continues: self.open });
        self.text.drain(..cut);
        self.text_continues = true;
        self.open = true;
        let carry = Carry { open: true, hidden: self.hidden as u32, at_nanos: self.at_nanos };
        self.position.store(behind + self.text.len() as u64, carry);
    }

    /// A `\r`: what was read since the last one is written over what is shown.
    fn go_back(&mut self) {
        let mut shown = self.shown.take().unwrap_or_default();
        self.mask_text();
        write_over(&mut shown, &self.scratch, self.piece_bytes);
        self.shown = Some(shown);
        self.text.clear();
        self.hidden = 0;
        self.text_continues = false;
    }

    /// Masks before anything is covered: of a half covered secret nobody would recognise the other half.
    fn mask_text(&mut self) {
        self.scratch.clear();
        let edges = Edges { starts_line: !self.text_continues, ends_line: true };
        self.masker.mask_piece(&self.text, self.text.len(), self.hidden, edges, &mut self.scratch);
    }

    fn end_line(&mut self, sink: &mut impl FnMut(Piece<'_>)) {
        if self.shown.is_some() {
            self.go_back();
            // And once more for what was put together by covering.
            let shown = self.shown.take().unwrap_or_default();
            let text = self.masker.mask_line(&shown);
            sink(Piece { stream: self.stream, at_nanos: self.at_nanos, text: &text, continues: self.open });
        } else {
            self.mask_text();
            sink(Piece { stream: self.stream, at_nanos: self.at_nanos, text: &self.scratch, continues: self.open });
        }
        self.reset();
    }

    fn reset(&mut self) {
        self.text.clear();
        self.hidden = 0;
        self.text_continues = false;
        self.open = false;
        self.shown = None;
        self.begun = false;
    }
}

/// Counts a stream's bytes and knows, for what is stored of it, a second from which the engine can be asked again.
struct Tracker {
    arrived: u64,
    stored: StreamPosition,
    carry: Carry,
    /// Whole seconds that began behind the stored position, with the bytes before them.
    ahead: VecDeque<(i64, u64)>,
    newest_second: i64,
    /// The engine's clock was set back once: its times cannot be used to find a place in this log any more.
    timeless: bool,
}

impl Tracker {
    fn new(stored: StreamPosition, carry: Carry) -> Self {
        Tracker {
            arrived: stored.bytes,
            stored,
            carry,
            ahead: VecDeque::new(),
            newest_second: stored.second,
            timeless: stored.bytes > 0 && stored.second == 0,
        }
    }

    fn arrived(&mut self, at_nanos: i64, bytes: u64) {
        let second = at_nanos.div_euclid(1_000_000_000).max(0);
        if second < self.newest_second {
            self.timeless = true;
            self.ahead.clear();
        } else if second > self.newest_second && !self.timeless {
            self.newest_second = second;
            if self.ahead.len() == SECONDS_AHEAD {
                self.ahead.pop_back();
            }
            self.ahead.push_back((second, self.arrived));
        }
        self.arrived += bytes;
    }

    /// All but the last `behind` bytes are stored.
    fn store(&mut self, behind: u64, carry: Carry) {
        self.stored.bytes = self.arrived - behind;
        self.carry = carry;
        while let Some(&(second, before)) = self.ahead.front()
            && before <= self.stored.bytes
        {
            self.stored.second = second;
            self.stored.bytes_before_second = before;
            self.ahead.pop_front();
        }
    }

    fn stored(&self) -> StreamPosition {
        if self.timeless { StreamPosition { second: 0, bytes_before_second: 0, ..self.stored } } else { self.stored }
    }
}

#[cfg(test)]
mod tests;
