//! From when to when a cluster can be restored, and where it cannot. In: [`Holdings`]. Out: plain data. No I/O.
//! Callers: the command `backups`, `expire`, `verify`, the keeper's alerts; `path` shares the arithmetic of lines.
//!
//! A *line* is a timeline with its ancestors, each up to where it was left. Log counts as there when segments and pieces
//! of the line cover it without a hole; they may overlap. A segment of a descendant that begins before its timeline did
//! holds a copy of the ancestor's bytes, as the server makes it.

use super::holdings::{Holdings, LogObject, Unusable};
use crate::backup::repository::BackupId;
use crate::model::{Lsn, Timeline};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

/// One timeline of a line, from `begins` up to, not including, `ends`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The timeline.
    pub timeline: Timeline,
    /// Where the line comes onto it; 0/0 for the first.
    pub begins: Lsn,
    /// Where the line leaves it; the highest place for the last.
    pub ends: Lsn,
}

/// Why the line of a timeline is not known. `Display` fits after "failed to follow timeline N: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoLine {
    /// Its history file is not in the repository.
    #[error("its history file {} is not in the repository", .0.history_file())]
    Absent(Timeline),
    /// Nothing that can be read says where it came from.
    #[error(
        "its history file {} is encrypted and nothing beside it says what is in it\nhint: give an identity with `--identity FILE`",
        .0.history_file()
    )]
    Unread(Timeline),
}

/// A place in the log, with a time at which it was reached where one is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Point {
    /// The timeline.
    pub timeline: Timeline,
    /// The place.
    pub lsn: Lsn,
    /// A time at which the log had come this far at most.
    pub at: Option<Timestamp>,
}

/// Every place between two points can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The first one: the oldest backup is consistent there.
    pub from: Point,
    /// The log ends before this one.
    pub to: Point,
    /// The backups that it is restored from, oldest first.
    pub backups: Vec<BackupId>,
}

/// Log that is not there although later log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// The line's timeline where it begins.
    pub timeline: Timeline,
    /// The first missing byte.
    pub from: Lsn,
    /// Where the log goes on.
    pub to: Lsn,
    /// What it is.
    pub kind: HoleKind,
}

/// What kind of hole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoleKind {
    /// It is recorded as lost, for this reason.
    Recorded(String),
    /// It was acknowledged to the server, and is not there: an error.
    Acknowledged,
    /// It was never acknowledged: what lies after it is a tail that is cut.
    Tail,
}

/// What can be restored of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// Spans of the newest line first, then of branches that were left; each line's by place.
    pub spans: Vec<Span>,
    /// Holes at or after the oldest usable backup, by line and place.
    pub holes: Vec<Hole>,
    /// Backups that cannot be used, and why.
    pub unusable: Vec<(BackupId, Unusable)>,
    /// Timelines whose ancestors are not known: what is shown of them is less than there is.
    pub unknown: Vec<(Timeline, NoLine)>,
    /// Why it is not known how far the log was acknowledged, when that is so.
    pub doubt: Option<String>,
}

impl Window {
    /// The newest place that can be restored.
    pub fn newest(&self) -> Option<Point> {
        let line = self.spans.first()?.to.timeline;
        self.spans.iter().filter(|span| span.to.timeline == line).map(|span| span.to).max_by_key(|to| to.lsn)
    }

    /// Whether acknowledged log is missing somewhere in it, or nothing is known of that.
    pub fn damaged(&self) -> bool {
        self.doubt.is_some() || self.holes.iter().any(|hole| hole.kind == HoleKind::Acknowledged)
    }
}

/// A timeline with its ancestors, oldest first.
///
/// # Errors
/// When its history is not in the repository, or was not read.
pub fn line(holdings: &Holdings, timeline: Timeline) -> Result<Vec<Step>, NoLine> {
    let ancestors = match holdings.histories.get(&timeline) {
        // The first timeline of a cluster has no history.
        None if timeline == Timeline(1) => &[][..],
        None => return Err(NoLine::Absent(timeline)),
        Some(history) => history.ancestors.as_deref().ok_or(NoLine::Unread(timeline))?,
    };
    let mut begins = Lsn(0);
    let mut steps = Vec::with_capacity(ancestors.len() + 1);
    for ancestor in ancestors {
        steps.push(Step { timeline: ancestor.timeline, begins, ends: ancestor.ends });
        begins = ancestor.ends;
    }
    steps.push(Step { timeline, begins, ends: Lsn(u64::MAX) });
    Ok(steps)
}

/// The parts of the log that count for a line, with the range that each counts for, sorted by where that begins.
pub fn on_line(holdings: &Holdings, line: &[Step]) -> Vec<(Lsn, Lsn, LogObject)> {
    let mut parts: Vec<(Lsn, Lsn, LogObject)> = Vec::new();
    for step in line {
        let log = holdings.log.get(&step.timeline).map(Vec::as_slice).unwrap_or_default();
        let counted = log.iter().filter(|object| object.first < step.ends);
        parts.extend(counted.map(|object| (object.first, object.last.min(step.ends), *object)));
    }
    parts.sort_by_key(|(first, end, object)| {
        (*first, std::cmp::Reverse(*end), std::cmp::Reverse(object.timeline), !object.whole)
    });
    parts
}

/// Where the log of a line is without holes.
pub fn ranges(parts: &[(Lsn, Lsn, LogObject)]) -> Vec<(Lsn, Lsn)> {
    let mut ranges: Vec<(Lsn, Lsn)> = Vec::new();
    for (first, end, _) in parts {
        match ranges.last_mut() {
            Some(range) if *first <= range.1 => range.1 = range.1.max(*end),
            _ => ranges.push((*first, *end)),
        }
    }
    ranges
}

/// The furthest place of a line that anything says was acknowledged.
pub fn acknowledged(holdings: &Holdings, line: &[Step]) -> Option<Lsn> {
    // What was acknowledged on a timeline after the line left it is not of this line.
    let of = |step: &Step| Some(holdings.acknowledged.get(&step.timeline)?.min(&step.ends)).copied();
    line.iter().filter_map(of).max()
}

/// The step of a line that holds a place.
pub fn step_at(line: &[Step], lsn: Lsn) -> Option<&Step> {
    line.iter().find(|step| lsn < step.ends)
}

/// The record that says why log of a line is missing from `from` on, if there is one.
pub fn recorded(holdings: &Holdings, line: &[Step], from: Lsn, to: Lsn) -> Option<String> {
    let on_line = |timeline: Timeline, at: Lsn| line.iter().any(|step| step.timeline == timeline && at < step.ends);
    let of = |gap: &super::manifest::Gap| gap.from < to && from < gap.to && on_line(gap.timeline, gap.from);
    holdings.gaps.iter().find(|(_, gap)| of(gap)).map(|(_, gap)| gap.why.clone())
}

/// What can be restored of a cluster.
pub fn window(holdings: &Holdings) -> Window {
    let mut window = Window { doubt: holdings.frontier_doubt.clone(), ..Window::default() };
    for id in holdings.backups.keys() {
        if let Err(why) = holdings.chain(id) {
            window.unusable.push((id.clone(), why));
        }
    }
    // Newest first; a timeline that an earlier line has passed through is looked at only from where that left it.
    let mut passed: BTreeMap<Timeline, Lsn> = BTreeMap::new();
    let newest = holdings.newest_timeline();
    let mut timelines: Vec<Timeline> = holdings.log.keys().copied().collect();
    timelines.extend(holdings.backups.values().map(|backup| backup.manifest.stop_timeline));
    timelines.extend(newest);
    timelines.sort_unstable();
    timelines.dedup();
    timelines.sort_by_key(|timeline| (Some(*timeline) == newest, *timeline));
    for timeline in timelines.into_iter().rev() {
        let line = line(holdings, timeline).unwrap_or_else(|why| {
            window.unknown.push((timeline, why));
            vec![Step { timeline, begins: Lsn(0), ends: Lsn(u64::MAX) }]
        });
        let known_to = passed.get(&timeline).copied().unwrap_or_default();
        window.add_line(holdings, &line, known_to);
        for step in &line {
            let left = passed.entry(step.timeline).or_default();
            *left = step.ends.max(*left);
        }
    }
    window
}

impl Window {
    /// Adds what a line gives after `known_to`, the place up to which another line has said the same.
    fn add_line(&mut self, holdings: &Holdings, line: &[Step], known_to: Lsn) {
        let point = |lsn: Lsn| {
            // The place at a border is the end of what came before it.
            let timeline = line.iter().find(|step| lsn <= step.ends).map_or(Timeline(1), |step| step.timeline);
            Point {
                timeline,
                lsn,
                at: line.iter().rev().find_map(|step| holdings.time_of(step.timeline, lsn.min(step.ends))),
            }
        };
        let ranges = ranges(&on_line(holdings, line));
        let usable: Vec<_> = holdings.usable().filter(|backup| on(line, &backup.manifest)).collect();
        let mut spans: BTreeMap<Lsn, Span> = BTreeMap::new();
        for backup in usable.iter().rev() {
            let manifest = &backup.manifest;
            let reach = ranges.iter().find(|(first, end)| *first <= manifest.start && manifest.start < *end);
            // Its own log is missing: nothing is restored from it.
            let Some((_, to)) = reach.filter(|(_, to)| *to >= manifest.stop) else { continue };
            if *to <= known_to {
                continue;
            }
            let span = spans.entry(*to).or_insert_with(|| Span {
                from: point(manifest.stop.max(known_to)),
                to: point(*to),
                backups: Vec::new(),
            });
            span.backups.push(backup.id().clone());
        }
        let oldest = usable.iter().map(|backup| backup.manifest.start).min();
        let acknowledged = acknowledged(holdings, line).unwrap_or_default();
        let mut holes: Vec<(Lsn, Lsn)> = ranges.windows(2).map(|pair| (pair[0].1, pair[1].0)).collect();
        // Acknowledged, and nothing of it or after it is there.
        let end = ranges.last().map(|range| range.1).or(oldest).unwrap_or(Lsn(u64::MAX));
        if acknowledged > end {
            holes.push((end, acknowledged));
        }
        for (from, to) in holes {
            if oldest.is_none_or(|oldest| to <= oldest) || to <= known_to {
                continue;
            }
            let kind = match recorded(holdings, line, from, to) {
                Some(why) => HoleKind::Recorded(why),
                None if from < acknowledged => HoleKind::Acknowledged,
                None => HoleKind::Tail,
            };
            let timeline = step_at(line, from).map_or(Timeline(1), |step| step.timeline);
            self.holes.push(Hole { timeline, from, to, kind });
        }
        self.spans.extend(spans.into_values());
    }
}

/// Whether a backup was taken on this line: it began and ended before the line left its timelines.
pub fn on(line: &[Step], manifest: &super::manifest::Manifest) -> bool {
    let has = |timeline: Timeline, lsn: Lsn| line.iter().any(|step| step.timeline == timeline && lsn <= step.ends);
    has(manifest.timeline, manifest.start) && has(manifest.stop_timeline, manifest.stop)
}

#[cfg(test)]
mod tests {
    use super::super::holdings::make::{MIB, at, empty, id};
    use super::super::manifest::ProofKind;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_backup_and_its_log_are_one_span() {
        let holdings =
            empty().with_backup(0, 1, 3, 4, None).with_segments(1, 3, 8).with_piece(1, 8 * MIB, 8 * MIB + 500);
        let holdings = holdings.with_frontier(1, 1, 8 * MIB + 500, 9);
        let window = window(&holdings);
        let from = Point { timeline: Timeline(1), lsn: Lsn(4 * MIB + 200), at: Some(at(1)) };
        let to = Point { timeline: Timeline(1), lsn: Lsn(8 * MIB + 500), at: Some(at(9)) };
        assert_eq!(window.spans, [Span { from, to, backups: vec![id(0)] }]);
        assert_eq!((window.newest(), window.holes.len(), window.damaged()), (Some(to), 0, false));
        let two = holdings.with_backup(9, 1, 6, 7, None);
        assert_eq!(two.newest_usable().map(|backup| backup.id().clone()), Some(id(9)));
    }

    #[test]
    fn a_hole_is_an_error_a_recorded_loss_or_a_tail() {
        let holed = || {
            empty()
                .with_backup(0, 1, 3, 3, None)
                .with_segments(1, 3, 6)
                .with_segments(1, 7, 9)
                .with_backup(8, 1, 7, 8, None)
        };
        let kind =
            |holdings: &Holdings| window(holdings).holes.iter().map(|hole| hole.kind.clone()).collect::<Vec<_>>();
        assert_eq!(kind(&holed()), [HoleKind::Tail]);
        assert_eq!(kind(&holed().with_frontier(1, 1, 6 * MIB, 1)), [HoleKind::Tail]);
        assert_eq!(kind(&holed().with_frontier(1, 1, 6 * MIB + 1, 1)), [HoleKind::Acknowledged]);
        assert_eq!(
            kind(&holed().with_frontier(1, 1, 9 * MIB, 1).with_gap(1, 6, 7)),
            [HoleKind::Recorded("the slot was lost".into())]
        );
        // Two spans, one before it and one after it.
        let spans = window(&holed()).spans;
        assert_eq!(
            spans.iter().map(|span| (span.from.lsn.0, span.to.lsn.0)).collect::<Vec<_>>(),
            [(3 * MIB + 200, 6 * MIB), (7 * MIB + MIB + 200, 9 * MIB)]
        );
        // Acknowledged, and all after it is gone too.
        let cut = empty().with_backup(0, 1, 3, 3, None).with_segments(1, 3, 6).with_frontier(1, 1, 7 * MIB, 1);
        assert_eq!(
            window(&cut).holes,
            [Hole { timeline: Timeline(1), from: Lsn(6 * MIB), to: Lsn(7 * MIB), kind: HoleKind::Acknowledged }]
        );
        assert!(window(&cut).damaged());
        // Before the oldest backup nobody needs it.
        assert_eq!(kind(&empty().with_segments(1, 1, 2).with_segments(1, 3, 5).with_backup(0, 1, 3, 3, None)), []);
    }

    #[test]
    fn a_line_goes_over_promotions_and_leaves_old_branches() {
        // Timeline 1 went on after 2 was born from it at 5 MiB + 300: a server that did not know that it was dead.
        let switch = 5 * MIB + 300;
        let holdings = empty().with_backup(0, 1, 3, 3, None).with_segments(1, 3, 8).with_history(2, &[(1, switch)]);
        let holdings = holdings.with_segments(2, 5, 7).with_frontier(1, 2, 7 * MIB, 2);
        let window = window(&holdings);
        let ends = window.spans.iter().map(|span| (span.from.lsn, span.to.timeline, span.to.lsn)).collect::<Vec<_>>();
        assert_eq!(ends, [(Lsn(3 * MIB + 200), Timeline(2), Lsn(7 * MIB)), (Lsn(switch), Timeline(1), Lsn(8 * MIB)),]);
        assert_eq!(window.newest().unwrap().timeline, Timeline(2));
        assert_eq!(window.holes, []);
    }

    #[test]
    fn without_its_history_a_timeline_stands_alone_and_says_so() {
        let holdings = empty().with_backup(0, 1, 3, 3, None).with_segments(1, 3, 5).with_segments(2, 4, 7);
        let alone = window(&holdings);
        assert_eq!(alone.unknown, [(Timeline(2), NoLine::Absent(Timeline(2)))]);
        assert_eq!(alone.spans.len(), 1);
        let mut holdings = holdings.with_history(2, &[(1, 4 * MIB)]);
        holdings.histories.get_mut(&Timeline(2)).unwrap().ancestors = None;
        assert_eq!(window(&holdings).unknown, [(Timeline(2), NoLine::Unread(Timeline(2)))]);
    }

    #[test]
    fn a_backup_found_bad_gives_no_window() {
        let holdings =
            empty().with_backup(0, 1, 3, 3, None).with_segments(1, 3, 5).with_proof(0, false, ProofKind::Stored);
        let window = window(&holdings);
        assert_eq!((window.spans.len(), window.unusable.len()), (0, 1));
        assert_eq!(window.newest(), None);
    }

    proptest! {
        /// Ranges are what a byte-by-byte count says.
        #[test]
        fn ranges_are_the_covered_bytes(pieces in proptest::collection::vec((0_u64..60, 1_u64..12), 0..20)) {
            let mut holdings = empty();
            let mut covered = [false; 80];
            for (first, length) in pieces {
                holdings = holdings.with_piece(1, first, first + length);
                covered[first as usize..(first + length) as usize].fill(true);
            }
            let line = line(&holdings, Timeline(1)).unwrap();
            let ranges = ranges(&on_line(&holdings, &line));
            for (at, covered) in covered.iter().enumerate() {
                let within = ranges.iter().any(|(first, end)| first.0 <= at as u64 && (at as u64) < end.0);
                prop_assert_eq!(within, *covered);
            }
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}
