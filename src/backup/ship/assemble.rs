//! Bytes of the log in, decisions out: which piece to put now, which segment is whole, and how far everything is durable.
//!
//! Entered from `stream` with what the server sends and with what became of each put; nothing here does I/O or reads a clock.
//!
//! - Bytes that are new go as a *piece* when `ship_every` has passed since the last cut, so an idle server's lone commit
//!   goes at once and a busy one's commits wait `ship_every` at most. There is no cut by size: it would promise no smaller
//!   loss than `ship_every` does, and cost requests; under load a segment is full before, and goes whole.
//! - A *whole* segment goes when its last byte has come, from memory, and then stands for its pieces. One that fills within
//!   `ship_every` never had a piece.
//! - Every [`MERGE_AFTER`]th piece begins where the last such one ended, so it stands for the pieces between: a segment that
//!   takes hours to fill consists of a few hundred pieces at most, not of thousands.
//! - The log is *durable* up to the first byte that no acknowledged put covers, in whatever order the puts end.

use crate::model::{Lsn, SegmentSize};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The most that is kept to be put as a whole. Segments of up to this length go whole; of longer ones this much goes as one
/// piece, so that what is held (two of these, two pieces, and what they are sealed to) stays under 160 MiB.
pub(super) const LARGEST_UNIT: u64 = 16 << 20;

/// Pieces on their way at once. The second one hides the store's latency; what arrives while both are under way goes
/// together in the next, so a store that hangs makes pieces larger, never more.
const PIECES_AT_ONCE: usize = 2;

/// Whole segments on their way at once; no more is read from the server until one of them is stored.
const WHOLE_AT_ONCE: usize = 2;

/// At one piece a second this is a larger piece a minute, and each byte is stored three times at most: in a piece, in a
/// larger one, and in its segment.
const MERGE_AFTER: usize = 64;

/// How the log is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The length of the server's segments.
    pub(super) segment: SegmentSize,
    /// The least time between two pieces.
    pub(super) ship_every: Duration,
    /// Whether commits wait for us: then a piece goes as soon as the last one is stored.
    pub(super) synchronous: bool,
}

impl Rules {
    /// What is put as a whole: a segment, or a part of a long one.
    pub(super) fn unit(self) -> u64 {
        self.segment.bytes().min(LARGEST_UNIT)
    }

    /// The beginning of the unit that holds this byte.
    pub(super) fn unit_start(self, at: Lsn) -> Lsn {
        Lsn(at.0 - at.0 % self.unit())
    }
}

/// A part of the log: its first byte, and the one after its last.
pub(super) type Range = (Lsn, Lsn);

/// Something to put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) range: Range,
    /// A whole segment; a piece otherwise.
    pub(super) segment: bool,
    pub(super) bytes: Bytes,
}

/// Bytes that were stored before, by an earlier writer of this history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) range: Range,
    /// SHA-256 of its bytes in hexadecimal, as the repository says.
    pub(super) sha256: String,
}

/// Why the bytes that came cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("the server sent the log from {got}, and {expected} was to come: what is between is missing")]
    Hole { expected: Lsn, got: Lsn },
    #[error("the server's log from {} to {} is not what is stored under that name", .0.0, .0.1)]
    Differs(Range),
}

/// A put that has not ended.
#[derive(Debug)]
struct Out {
    range: Range,
    whole: bool,
    /// When its first new byte came.
    arrived: Instant,
}

/// One timeline's log on its way.
#[derive(Debug)]
pub(super) struct Assembler {
    rules: Rules,
    /// Where `open` begins.
    base: Lsn,
    /// The bytes of the unit that is being filled, from `base` on.
    open: Vec<u8>,
    /// Everything before is stored or on its way.
    cut: Lsn,
    last_cut: Instant,
    /// When the first byte after `cut` came.
    waiting_since: Option<Instant>,
    /// Where the next larger piece begins, and the pieces cut since.
    merged: Lsn,
    cuts: usize,
    durable: Lsn,
    /// Acknowledged beyond a hole.
    beyond: Vec<Range>,
    out: Vec<Out>,
    /// Pieces stored that nothing larger stands for yet.
    pieces: BTreeSet<Range>,
    /// Larger objects stored, kept while a piece inside them may still be on its way.
    larger: Vec<Range>,
    known: Vec<Known>,
}

impl Assembler {
    /// Begins at `start`, where everything before `frontier` is stored already: `known` are the pieces from `start` on.
    pub(super) fn new(rules: Rules, start: Lsn, frontier: Lsn, known: Vec<Known>, now: Instant) -> Assembler {
        let pieces: BTreeSet<Range> = known.iter().map(|k| k.range).filter(|r| r.0 >= start).collect();
        let cuts = pieces.iter().filter(|r| rules.unit_start(r.0) == rules.unit_start(frontier)).count();
        let mut known: Vec<Known> = known.into_iter().filter(|k| k.range.0 >= start).collect();
        known.sort_by_key(|k| std::cmp::Reverse(k.range.1));
        Assembler {
            rules,
            base: start,
            open: Vec::new(),
            cut: frontier.max(start),
            // What a server sends at first is what it had: a piece of its first message would be one for nothing.
            last_cut: now,
            waiting_since: None,
            merged: start,
            cuts,
            durable: frontier.max(start),
            beyond: Vec::new(),
            out: Vec::new(),
            pieces,
            larger: Vec::new(),
            known,
        }
    }

    /// Everything before has come.
    pub(super) fn received(&self) -> Lsn {
        Lsn(self.base.0 + self.open.len() as u64)
    }

    /// Everything before is stored.
    pub(super) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Whether more may be read from the server.
    pub(super) fn room(&self) -> bool {
        self.out.iter().filter(|out| out.whole).count() < WHOLE_AT_ONCE
    }

    /// When the oldest byte came that is not durable yet.
    pub(super) fn oldest_waiting(&self) -> Option<Instant> {
        let out = self.out.iter().filter(|out| out.range.1 > self.durable).map(|out| out.arrived);
        out.chain(self.waiting_since).min()
    }

    /// Takes bytes; answers what is whole now.
    pub(super) fn bytes(&mut self, start: Lsn, mut bytes: &[u8], now: Instant) -> Result<Vec<Cut>, Wrong> {
        let expected = self.received();
        if start != expected {
            return Err(Wrong::Hole { expected, got: start });
        }
        let mut cuts = Vec::new();
        while !bytes.is_empty() {
            let end = Lsn(self.rules.unit_start(self.received()).0 + self.rules.unit());
            let left = end.0 - self.received().0;
            let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.open.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.agrees_with_known()?;
            if self.received() > self.cut && self.waiting_since.is_none() {
                self.waiting_since = Some(now);
            }
            if self.received() == end {
                self.unit_is_full(now, &mut cuts);
            }
        }
        Ok(cuts)
    }

    /// What was stored before and came again is the same.
    fn agrees_with_known(&mut self) -> Result<(), Wrong> {
        let received = self.received();
        while let Some(known) = self.known.pop_if(|known| known.range.1 <= received) {
            // One that begins in an earlier unit does not exist: no piece crosses a unit's border, but for those of a
            // program with other units; their bytes are checked when the segment is put.
            if known.range.0 >= self.base {
                let digest = hex::encode(Sha256::digest(self.slice(known.range)));
                if known.sha256 != digest {
                    return Err(Wrong::Differs(known.range));
                }
            }
        }
        Ok(())
    }

    fn slice(&self, range: Range) -> &[u8] {
        let at = |lsn: Lsn| usize::try_from(lsn.0 - self.base.0).expect("a unit is no longer than 16 MiB");
        &self.open[at(range.0)..at(range.1)]
    }

    fn unit_is_full(&mut self, now: Instant, cuts: &mut Vec<Cut>) {
        let end = self.received();
        let whole = end.0 - self.base.0 == self.rules.unit();
        // Without its beginning it cannot go whole. And a commit that waits does not wait for 16 MiB.
        if self.cut < end && (!whole || self.rules.synchronous) {
            cuts.push(self.piece(self.cut, now));
        }
        let open = std::mem::take(&mut self.open);
        if whole {
            let range = (self.base, end);
            self.out.push(Out { range, whole: true, arrived: self.waiting_since.unwrap_or(now) });
            let segment = self.rules.unit() == self.rules.segment.bytes();
            cuts.push(Cut { range, segment, bytes: Bytes::from(open) });
        }
        self.base = end;
        self.merged = end;
        self.cuts = 0;
        // Where a frontier lies beyond this unit, its bytes are stored already.
        self.cut = self.cut.max(end);
        self.last_cut = now;
        self.waiting_since = None;
    }

    /// The piece that is to go now, if any.
    pub(super) fn due(&mut self, now: Instant) -> Option<Cut> {
        self.next_due(now).is_some_and(|at| at <= now).then(|| self.cut_now(now))
    }

    /// When the next piece will be due, as things are.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let pieces = self.out.iter().filter(|out| !out.whole).count();
        let most = if self.rules.synchronous { 1 } else { PIECES_AT_ONCE };
        if self.cut >= self.received() || pieces >= most {
            return None;
        }
        Some(if self.rules.synchronous { now } else { self.last_cut + self.rules.ship_every })
    }

    /// Everything that has come and is not on its way: at a timeline's end, when the server is gone, at a stop.
    pub(super) fn rest(&mut self, now: Instant) -> Option<Cut> {
        (self.cut < self.received()).then(|| self.cut_now(now))
    }

    fn cut_now(&mut self, now: Instant) -> Cut {
        self.cuts += 1;
        let first = if self.cuts >= MERGE_AFTER { self.merged } else { self.cut };
        let cut = self.piece(first, now);
        if self.cuts >= MERGE_AFTER {
            self.merged = cut.range.1;
            self.cuts = 0;
        }
        cut
    }

    fn piece(&mut self, first: Lsn, now: Instant) -> Cut {
        let range = (first, self.received());
        let bytes = Bytes::copy_from_slice(self.slice(range));
        self.out.push(Out { range, whole: false, arrived: self.waiting_since.unwrap_or(now) });
        self.cut = range.1;
        self.last_cut = now;
        self.waiting_since = None;
        Cut { range, segment: false, bytes }
    }

    /// A put is stored; answers the pieces that something larger stands for now.
    pub(super) fn stored(&mut self, range: Range, segment: bool) -> Vec<Range> {
        let inside = |a: &Range, b: &Range| b.0 <= a.0 && a.1 <= b.1;
        if let Some(at) = self.out.iter().position(|out| out.range == range) {
            self.out.swap_remove(at);
        }
        self.reach(range);
        let mut superseded: Vec<Range> = self.pieces.iter().filter(|piece| inside(piece, &range)).copied().collect();
        superseded.retain(|piece| segment || *piece != range);
        for piece in &superseded {
            self.pieces.remove(piece);
        }
        if !segment && self.larger.iter().any(|larger| inside(&range, larger) && range != *larger) {
            superseded.push(range);
        } else if !segment {
            self.pieces.insert(range);
        }
        self.larger.push(range);
        // A piece that was put before a larger one began lies before or inside it.
        match self.out.iter().map(|out| out.range.0).min() {
            Some(first) => self.larger.retain(|larger| larger.1 > first),
            None => self.larger.clear(),
        }
        // What lies in earlier units is done with, but for what a whole one still on its way will stand for.
        let oldest = self.out.iter().map(|out| out.range.0).chain([self.base]).min().unwrap_or(self.base);
        self.pieces.retain(|piece| piece.1 > oldest);
        superseded
    }

    fn reach(&mut self, range: Range) {
        self.beyond.push(range);
        while let Some(at) = self.beyond.iter().position(|range| range.0 <= self.durable) {
            self.durable = self.durable.max(self.beyond.swap_remove(at).1);
        }
    }
}

#[cfg(test)]
mod tests;
