//! Where the log is to be read on from: what is stored, and the history of the server that is there now, in; the next
//! stretch of one timeline out. No I/O.
//!
//! The answer comes from the repository and never from the slot: a slot does not follow a failover, and says nothing of
//! what was stored.

use super::assemble::{Range, Rules};
use crate::backup::catalog::history::Ancestor;
use crate::backup::repository::{Cluster, Item, Key};
use crate::model::{Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// What a repository holds of the log of one cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Archive {
    lines: BTreeMap<Timeline, Line>,
    /// History files.
    pub(super) histories: BTreeSet<Timeline>,
    /// The newest frontier's number.
    pub(super) newest_frontier: Option<u64>,
    /// What that frontier says.
    pub(super) acknowledged: Option<(Timeline, Lsn)>,
}

/// What it holds of one timeline.
#[derive(Debug, Clone, Default)]
struct Line {
    segments: BTreeSet<Range>,
    pieces: BTreeSet<Range>,
    gaps: BTreeSet<Range>,
}

/// A stretch of a timeline to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) timeline: Timeline,
    /// Where to begin: a border of a unit.
    pub(super) start: Lsn,
    /// Everything before is stored.
    pub(super) frontier: Lsn,
    /// How far the history before this timeline is stored: what may be acknowledged from the first byte on.
    pub(super) before: Lsn,
}

/// Why nothing may be written now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "the repository holds timeline {stored}, and this server is on timeline {server}: it is an older server, whose place another one took\nhint: point the source at the server that was promoted"
    )]
    Older { stored: Timeline, server: Timeline },
    #[error(
        "the repository holds the segment {0}, which a server with segments of this size does not have\nhint: the size was changed with pg_resetwal; give the source a new name, so that the two are kept apart"
    )]
    SegmentSize(String),
}

impl Archive {
    /// Reads the names of a listing.
    pub(super) fn read<'a>(
        names: impl Iterator<Item = &'a str>,
        cluster: &Cluster,
        rules: Rules,
    ) -> Result<Archive, Refused> {
        let mut archive = Archive::default();
        for name in names {
            let Ok(Key::Of(of, item)) = name.parse() else { continue };
            if of != *cluster {
                continue;
            }
            match item {
                Item::History(timeline) => _ = archive.histories.insert(timeline),
                Item::Segment(segment) => {
                    let start = segment.start(rules.segment).ok_or(Refused::SegmentSize(segment.to_string()))?;
                    let range = (start, Lsn(start.0 + rules.segment.bytes()));
                    archive.lines.entry(segment.timeline).or_default().segments.insert(range);
                }
                Item::Piece { timeline, first, last } => {
                    archive.lines.entry(timeline).or_default().pieces.insert((first, last));
                }
                Item::Gap { timeline, from, to } => {
                    _ = archive.lines.entry(timeline).or_default().gaps.insert((from, to));
                }
                Item::Frontier(number) => archive.newest_frontier = archive.newest_frontier.max(Some(number)),
                _ => {}
            }
        }
        Ok(archive)
    }

    /// The pieces of a timeline from `start` on that no larger one stands for.
    pub(super) fn pieces(&self, timeline: Timeline, start: Lsn) -> Vec<Range> {
        let Some(line) = self.lines.get(&timeline) else { return Vec::new() };
        let mut pieces: Vec<Range> = line.pieces.iter().filter(|piece| piece.0 >= start).copied().collect();
        // By first byte, the longest first: one that ends no later than what was kept lies inside it.
        pieces.sort_by_key(|piece| (piece.0, std::cmp::Reverse(piece.1)));
        let mut reach = Lsn(0);
        pieces.retain(|piece| {
            let new = piece.1 > reach;
            reach = reach.max(piece.1);
            new
        });
        pieces
    }

    /// Pieces that a stored segment stands for: what a writer left that ended between the two. With the segment's first byte.
    pub(super) fn folded(&self) -> Vec<(Timeline, Lsn, Vec<Range>)> {
        let mut all = Vec::new();
        for (timeline, line) in &self.lines {
            for segment in &line.segments {
                let inside = |piece: &&Range| piece.0 >= segment.0 && piece.1 <= segment.1;
                let pieces: Vec<Range> =
                    line.pieces.range((segment.0, Lsn(0))..(segment.1, Lsn(0))).filter(inside).copied().collect();
                if !pieces.is_empty() {
                    all.push((*timeline, segment.0, pieces));
                }
            }
        }
        all
    }

    /// The stretch to read next from a server on `current` with these ancestors; `None` when nothing of its history is
    /// stored yet, so that it begins where the server can give it.
    pub(super) fn next_leg(
        &self,
        rules: Rules,
        current: Timeline,
        ancestors: &[Ancestor],
    ) -> Result<Option<Leg>, Refused> {
        let acknowledged = self.acknowledged.map(|(timeline, _)| timeline);
        let newest = self.lines.keys().next_back().copied().max(acknowledged);
        if let Some(stored) = newest.filter(|stored| *stored > current) {
            return Err(Refused::Older { stored, server: current });
        }
        let chain = chain(current, ancestors);
        let held = |timeline: Timeline| self.lines.contains_key(&timeline) || acknowledged == Some(timeline);
        let Some(mut at) = chain.iter().rposition(|(timeline, _)| held(*timeline)) else { return Ok(None) };
        // Where a timeline was born counts only when what was before it is ours too.
        let earlier = at.checked_sub(1).and_then(|before| chain[before].1.filter(|_| held(chain[before].0)));
        let born = |ends: Lsn| ends.segment_start(rules.segment);
        let mut before = earlier.unwrap_or_default();
        let Some(mut frontier) = self.frontier(chain[at].0, earlier.map(born)) else { return Ok(None) };
        while let Some(ends) = chain[at].1.filter(|ends| frontier >= *ends) {
            at += 1;
            (before, frontier) = (ends, born(ends));
        }
        Ok(Some(Leg { timeline: chain[at].0, start: rules.unit_start(frontier), frontier, before }))
    }

    /// Up to where a timeline is stored without a hole.
    fn frontier(&self, timeline: Timeline, born: Option<Lsn>) -> Option<Lsn> {
        let line = self.lines.get(&timeline).cloned().unwrap_or_default();
        let mut runs: Vec<Range> = Vec::new();
        let all: BTreeSet<Range> = line.segments.into_iter().chain(line.pieces).chain(line.gaps).collect();
        for range in all {
            match runs.last_mut() {
                Some(run) if range.0 <= run.1 => run.1 = run.1.max(range.1),
                _ => runs.push(range),
            }
        }
        let acknowledged = self.acknowledged.filter(|(on, _)| *on == timeline).map(|(_, at)| at);
        let run = match acknowledged {
            // Holes further down are what an expiry left. A hole right here is loss: what can still be had is read again.
            Some(at) => runs.iter().rev().find(|run| run.0 <= at),
            None => runs.first().filter(|run| born.is_none_or(|born| run.0 <= born)),
        };
        run.map(|run| run.1).or(born).or(acknowledged)
    }
}

/// The timelines of a history, oldest first, each with where it ends; the last one goes on.
fn chain(current: Timeline, ancestors: &[Ancestor]) -> Vec<(Timeline, Option<Lsn>)> {
    let ended = ancestors.iter().map(|ancestor| (ancestor.timeline, Some(ancestor.ends)));
    ended.chain([(current, None)]).collect()
}

/// The timeline to ask for at a place that was never stored, with the place: no timeline is read before its first segment.
pub(super) fn first_leg(rules: Rules, from: Lsn, current: Timeline, ancestors: &[Ancestor]) -> Leg {
    let born = ancestors.last().map_or(Lsn(0), |parent| parent.ends.segment_start(rules.segment));
    let start = from.segment_start(rules.segment).max(born);
    Leg { timeline: current, start, frontier: start, before: start }
}

/// What is missing when the log cannot be had from `leg.frontier` on and goes on at `to`: one part for each timeline.
pub(super) fn missing(
    rules: Rules,
    leg: Leg,
    to: Lsn,
    current: Timeline,
    ancestors: &[Ancestor],
) -> Vec<(Timeline, Range)> {
    let mut parts = Vec::new();
    let mut from = leg.frontier;
    for (timeline, ends) in chain(current, ancestors).into_iter().skip_while(|(timeline, _)| *timeline != leg.timeline)
    {
        let until = ends.map_or(to, |ends| ends.min(to));
        if from < until {
            parts.push((timeline, (from, until)));
        }
        match ends {
            Some(ends) if ends <= to => from = ends.segment_start(rules.segment),
            _ => break,
        }
    }
    parts
}

/// A history file's ancestors' files, made from it: each is the lines before its own. Servers copy them in just so, and one
/// that was restored may lack the old files.
pub(super) fn file_of_ancestor(file: &[u8], ancestor: Timeline) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        let number = line.trim_ascii().split(u8::is_ascii_whitespace).next().unwrap_or_default();
        if number == ancestor.0.to_string().as_bytes() {
            break;
        }
        kept.extend_from_slice(line);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SegmentSize, SourceName, SystemId};
    use std::time::Duration;

    const MIB: u64 = 1 << 20;

    fn rules() -> Rules {
        Rules { segment: SegmentSize::new(MIB).unwrap(), ship_every: Duration::from_secs(1), synchronous: false }
    }

    fn cluster() -> Cluster {
        Cluster { source: SourceName::new("db").unwrap(), system: SystemId(7) }
    }

    fn archive(items: Vec<Item>) -> Archive {
        let names: Vec<String> = items.into_iter().map(|item| Key::Of(cluster(), item).to_string()).collect();
        Archive::read(names.iter().map(String::as_str), &cluster(), rules()).unwrap()
    }

    fn segment(timeline: u32, number: u64) -> Item {
        Item::Segment(rules().segment.name(Timeline(timeline), Lsn(number * MIB)))
    }

    fn piece(timeline: u32, first: u64, last: u64) -> Item {
        Item::Piece { timeline: Timeline(timeline), first: Lsn(first), last: Lsn(last) }
    }

    fn leg(timeline: u32, start: u64, frontier: u64, before: u64) -> Option<Leg> {
        Some(Leg { timeline: Timeline(timeline), start: Lsn(start), frontier: Lsn(frontier), before: Lsn(before) })
    }

    fn ends(timeline: u32, at: u64) -> Ancestor {
        Ancestor { timeline: Timeline(timeline), ends: Lsn(at) }
    }

    #[test]
    fn it_goes_on_where_what_is_stored_has_its_first_hole() {
        let next = |items| archive(items).next_leg(rules(), Timeline(1), &[]).unwrap();
        assert_eq!(next(vec![]), None);
        assert_eq!(next(vec![segment(1, 3), segment(1, 4)]), leg(1, 5 * MIB, 5 * MIB, 0));
        assert_eq!(next(vec![segment(1, 3), piece(1, 4 * MIB, 4 * MIB + 9)]), leg(1, 4 * MIB, 4 * MIB + 9, 0));
        // A piece after a hole says nothing of the bytes before it; a gap that is on record does.
        assert_eq!(next(vec![segment(1, 3), piece(1, 4 * MIB + 1, 4 * MIB + 9)]), leg(1, 4 * MIB, 4 * MIB, 0));
        let gap = Item::Gap { timeline: Timeline(1), from: Lsn(4 * MIB), to: Lsn(6 * MIB) };
        assert_eq!(next(vec![segment(1, 3), gap]), leg(1, 6 * MIB, 6 * MIB, 0));
    }

    #[test]
    fn a_hole_that_an_expiry_left_is_not_read_again_and_one_above_the_frontier_is() {
        let mut stored = archive(vec![segment(1, 1), segment(1, 5), piece(1, 6 * MIB, 6 * MIB + 8)]);
        stored.acknowledged = Some((Timeline(1), Lsn(6 * MIB)));
        assert_eq!(stored.next_leg(rules(), Timeline(1), &[]).unwrap(), leg(1, 6 * MIB, 6 * MIB + 8, 0));
        // Acknowledged, and not there: read again from the last place before.
        stored.acknowledged = Some((Timeline(1), Lsn(9 * MIB)));
        assert_eq!(stored.next_leg(rules(), Timeline(1), &[]).unwrap(), leg(1, 6 * MIB, 6 * MIB + 8, 0));
    }

    #[test]
    fn r07_after_a_failover_the_old_timeline_is_read_to_its_end_first() {
        let history = [ends(1, 4 * MIB + 100), ends(2, 6 * MIB + 5)];
        let next = |items| archive(items).next_leg(rules(), Timeline(3), &history).unwrap();
        assert_eq!(next(vec![segment(1, 3), piece(1, 4 * MIB, 4 * MIB + 50)]), leg(1, 4 * MIB, 4 * MIB + 50, 0));
        // Its end is stored: the next one begins with the whole segment, for it holds the old one's bytes too.
        let whole = vec![segment(1, 3), piece(1, 4 * MIB, 4 * MIB + 100)];
        assert_eq!(next(whole.clone()), leg(2, 4 * MIB, 4 * MIB, 4 * MIB + 100));
        // More than the new server ever had: that stays, and is not of its history.
        assert_eq!(next(vec![segment(1, 3), segment(1, 4)]), leg(2, 4 * MIB, 4 * MIB, 4 * MIB + 100));
        let further = [whole, vec![segment(2, 4), segment(2, 5), piece(2, 6 * MIB, 6 * MIB + 5)]].concat();
        assert_eq!(next(further), leg(3, 6 * MIB, 6 * MIB, 6 * MIB + 5));
        // The new timeline's first bytes are missing although the old one's end is there.
        let hole = vec![segment(1, 3), piece(1, 4 * MIB, 4 * MIB + 100), segment(2, 5)];
        assert_eq!(next(hole), leg(2, 4 * MIB, 4 * MIB, 4 * MIB + 100));
    }

    #[test]
    fn r08_a_server_whose_place_another_took_is_refused() {
        let stored = archive(vec![segment(1, 3), segment(2, 4)]);
        let refused = stored.next_leg(rules(), Timeline(1), &[]);
        assert_eq!(refused, Err(Refused::Older { stored: Timeline(2), server: Timeline(1) }));
        // A restore to before timeline 2 makes timeline 3, which has not 2 among its ancestors.
        let next = stored.next_leg(rules(), Timeline(3), &[ends(1, 4 * MIB)]).unwrap();
        assert_eq!(next, leg(3, 4 * MIB, 4 * MIB, 4 * MIB));
    }

    #[test]
    fn r07_a_hole_over_a_switch_is_a_part_on_each_timeline() {
        let from = leg(1, 4 * MIB, 4 * MIB + 50, 0).unwrap();
        let history = [ends(1, 5 * MIB + 100)];
        let parts = missing(rules(), from, Lsn(8 * MIB), Timeline(2), &history);
        let expected =
            [(Timeline(1), (Lsn(4 * MIB + 50), Lsn(5 * MIB + 100))), (Timeline(2), (Lsn(5 * MIB), Lsn(8 * MIB)))];
        assert_eq!(parts, expected);
        // On record, they lead to where the log goes on.
        let gaps = parts.iter().map(|(timeline, (from, to))| Item::Gap { timeline: *timeline, from: *from, to: *to });
        let items = [piece(1, 4 * MIB, 4 * MIB + 50)].into_iter().chain(gaps).collect();
        let next = archive(items).next_leg(rules(), Timeline(2), &history).unwrap();
        assert_eq!(next, leg(2, 8 * MIB, 8 * MIB, 5 * MIB + 100));
        // Before the switch it is a part of the old timeline alone.
        let parts = missing(rules(), from, Lsn(5 * MIB), Timeline(2), &history);
        assert_eq!(parts, [(Timeline(1), (Lsn(4 * MIB + 50), Lsn(5 * MIB)))]);
    }

    #[test]
    fn the_files_of_ancestors_are_in_the_newest_one() {
        let file = b"1\t0/3000148\tno recovery target specified\n\n2\t0/50001D8\tno recovery target specified\n";
        assert_eq!(file_of_ancestor(file, Timeline(2)), b"1\t0/3000148\tno recovery target specified\n\n");
        assert_eq!(file_of_ancestor(file, Timeline(3)), file);
    }

    #[test]
    fn only_the_outermost_pieces_are_looked_at_and_folded_ones_are_found() {
        let stored =
            archive(vec![piece(1, 10, 20), piece(1, 0, 30), piece(1, 20, 30), piece(1, 30, 40), segment(1, 0)]);
        assert_eq!(stored.pieces(Timeline(1), Lsn(0)), [(Lsn(0), Lsn(30)), (Lsn(30), Lsn(40))]);
        assert_eq!(stored.folded()[0].2.len(), 4);
    }
}
