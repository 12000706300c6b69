//! The exact objects that one restore needs, or what is missing. In: [`Holdings`], a backup, a timeline, an end. Out: a
//! [`Path`]. No I/O. Callers: `restore`, `retention`'s check, `verify`.
//!
//! Fail closed: a path is given only when everything on it is listed. What recovery may then find absent is what the path
//! does not name.

use super::holdings::{Backup, Holdings, LogObject, Unusable};
use super::window::{NoLine, Step, acknowledged, line, on, on_line, ranges, recorded};
use crate::backup::repository::BackupId;
use crate::model::{Lsn, Timeline};

/// Where a restore is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As far as the log goes. It must go at least as far as was ever acknowledged.
    Newest,
    /// At this place: the log must go beyond it, and it must not lie before the backup is consistent.
    At(Lsn),
    /// Where the backup is consistent.
    Consistent,
}

/// What one restore needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path<'a> {
    /// The backup with all that it is the difference to, the whole one first.
    pub chain: Vec<&'a Backup>,
    /// The timelines that the log goes through, oldest first; the last is the one asked for.
    pub line: Vec<Step>,
    /// Parts of the log in order, each with the range that it counts for. Together they cover `from..to` without a hole;
    /// neighbours may overlap, and must then agree byte for byte.
    pub log: Vec<Part>,
    /// The first so many parts reach the end that was asked for. The ones after it are read only by a record that begins
    /// there and goes on.
    pub wanted: usize,
    /// Where replay begins.
    pub from: Lsn,
    /// The byte after the last one of the log that can be had on this line without a hole.
    pub to: Lsn,
    /// The end that was asked for: `to` for [`End::Newest`].
    pub end: Lsn,
    /// Timelines of this line that have a history file in the repository, the last of which is required.
    pub histories: Vec<Timeline>,
    /// Parts after a hole that was never acknowledged: not used, to be reported.
    pub cut: Vec<LogObject>,
}

/// A part of the log on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The object.
    pub object: LogObject,
    /// The first byte that is taken from it.
    pub from: Lsn,
    /// The byte after the last one that is taken from it: its own end, or where the line leaves its timeline.
    pub to: Lsn,
}

/// Why there is no such path. `Display` fits after "failed to restore: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    /// The backup cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The timeline's history is not known.
    #[error("timeline {timeline} cannot be followed: {why}")]
    Line {
        /// The timeline.
        timeline: Timeline,
        /// Why.
        why: NoLine,
    },
    /// The backup is of another branch.
    #[error(
        "the backup {backup} was taken on timeline {own} at {stop}, which is not in the history of timeline {target}\n\
         hint: choose an older backup, or the backup's own timeline"
    )]
    OtherBranch {
        /// The backup.
        backup: BackupId,
        /// Its timeline.
        own: Timeline,
        /// Where it is consistent.
        stop: Lsn,
        /// The timeline asked for.
        target: Timeline,
    },
    /// Log is missing that was acknowledged, or that the backup cannot do without.
    #[error(
        "the log from {from} to {to} on timeline {timeline} is missing\nhint: `mainstay verify` shows what else is; a \
         restore that ends before {from}, or from a backup after {to}, is not touched by it"
    )]
    Hole {
        /// The timeline where it begins.
        timeline: Timeline,
        /// The first missing byte.
        from: Lsn,
        /// Where the log goes on, or how far it was acknowledged.
        to: Lsn,
    },
    /// Log is recorded as lost.
    #[error(
        "the log from {from} to {to} on timeline {timeline} was lost: {why}\nhint: restore to a place before {from}, or from a \
         backup after {to}"
    )]
    Lost {
        /// The timeline where it begins.
        timeline: Timeline,
        /// The first missing byte.
        from: Lsn,
        /// Where the log goes on.
        to: Lsn,
        /// Why.
        why: String,
    },
    /// The end lies before the backup is consistent.
    #[error("{end} lies before {stop}, where the backup {backup} is consistent\nhint: choose an older backup")]
    TooEarly {
        /// The backup.
        backup: BackupId,
        /// Where it is consistent.
        stop: Lsn,
        /// The end asked for.
        end: Lsn,
    },
    /// The end lies after the end of the log.
    #[error(
        "{end} lies after the end of the log on timeline {timeline}, which is {to}\nhint: `--latest` restores all of it"
    )]
    TooLate {
        /// The timeline asked for.
        timeline: Timeline,
        /// Where its log ends.
        to: Lsn,
        /// The end asked for.
        end: Lsn,
    },
    /// The newest record of how far the log was acknowledged does not verify.
    #[error("it is not known how far the log was acknowledged: the newest frontier is bad: {0}")]
    Doubt(String),
}

/// What a restore of `backup` to `end` on `target` needs.
///
/// # Errors
/// When there is no such path, with what is missing.
pub fn path<'a>(holdings: &'a Holdings, backup: &BackupId, target: Timeline, end: End) -> Result<Path<'a>, NoPath> {
    let chain = holdings.chain(backup)?;
    let manifest = &chain[chain.len() - 1].manifest;
    let line = line(holdings, target).map_err(|why| NoPath::Line { timeline: target, why })?;
    if !on(&line, manifest) {
        let (backup, own, stop) = (backup.clone(), manifest.stop_timeline, manifest.stop);
        return Err(NoPath::OtherBranch { backup, own, stop, target });
    }
    if let End::At(end) = end
        && end < manifest.stop
    {
        return Err(NoPath::TooEarly { backup: backup.clone(), stop: manifest.stop, end });
    }
    let cover = cover(holdings, &line, manifest.start);
    let acknowledged = acknowledged(holdings, &line).unwrap_or_default();
    let goal = match end {
        End::Consistent => manifest.stop,
        End::At(end) => Lsn(end.0.saturating_add(1)),
        End::Newest => {
            if let Some(why) = &holdings.frontier_doubt {
                return Err(NoPath::Doubt(why.clone()));
            }
            // The timeline asked for must be reached, whatever is known of acknowledgements.
            let begins = line.last().map(|step| step.begins).unwrap_or_default();
            let lost = lost_after(holdings, &line, cover.to).map_or(cover.to, |lost| lost.1);
            manifest.stop.max(begins).max(acknowledged).max(lost)
        }
    };
    if cover.to < goal {
        return Err(why_not(holdings, &line, &cover, goal, end, acknowledged.max(manifest.stop)));
    }
    let end = match end {
        End::Newest => cover.to,
        End::At(end) => end,
        End::Consistent => manifest.stop,
    };
    let wanted = match end {
        end if end >= cover.to => cover.log.len(),
        end => cover.log.iter().position(|part| part.to > end).map_or(cover.log.len(), |index| index + 1),
    };
    let histories = line.iter().map(|step| step.timeline).filter(|timeline| holdings.histories.contains_key(timeline));
    Ok(Path {
        histories: histories.collect(),
        chain,
        log: cover.log,
        wanted,
        from: manifest.start,
        to: cover.to,
        end,
        cut: cover.cut,
        line,
    })
}

impl Path<'_> {
    /// The length of the base backups' objects as stored.
    pub fn base_bytes(&self) -> u64 {
        self.chain.iter().map(|backup| backup.stored_bytes).sum()
    }

    /// The length of the wanted log as stored.
    pub fn log_bytes(&self) -> u64 {
        self.log[..self.wanted].iter().map(|part| part.object.bytes).sum()
    }
}

/// The log that can be had from a place on, without a hole.
struct Cover {
    log: Vec<Part>,
    to: Lsn,
    /// What lies after the first hole.
    cut: Vec<LogObject>,
}

/// As few parts as will do: of those that hold the next byte always the one that goes furthest.
fn cover(holdings: &Holdings, line: &[Step], from: Lsn) -> Cover {
    let parts = on_line(holdings, line);
    let mut log = Vec::new();
    let (mut at, mut next) = (from, 0);
    loop {
        let mut best: Option<(Lsn, LogObject)> = None;
        while let Some((first, end, object)) = parts.get(next)
            && *first <= at
        {
            if *end > at && best.is_none_or(|(furthest, _)| *end > furthest) {
                best = Some((*end, *object));
            }
            next += 1;
        }
        let Some((end, object)) = best else { break };
        log.push(Part { object, from: at.max(object.first), to: end });
        at = end;
    }
    let cut = parts.iter().filter(|(first, _, _)| *first > at).map(|(_, _, object)| *object).collect();
    Cover { log, to: at, cut }
}

/// The first recorded loss of a line that ends after a place.
fn lost_after(holdings: &Holdings, line: &[Step], at: Lsn) -> Option<(Lsn, Lsn, Timeline)> {
    let on_line = |timeline: Timeline, from: Lsn| line.iter().any(|step| step.timeline == timeline && from < step.ends);
    let gaps = holdings.gaps.iter().map(|(_, gap)| gap).filter(|gap| gap.to > at && on_line(gap.timeline, gap.from));
    gaps.map(|gap| (gap.from, gap.to, gap.timeline)).min()
}

fn why_not(holdings: &Holdings, line: &[Step], cover: &Cover, goal: Lsn, end: End, needed: Lsn) -> NoPath {
    let from = cover.to;
    let known = ranges(&on_line(holdings, line));
    let to = known.iter().map(|range| range.0).find(|first| *first > from).unwrap_or(goal.max(needed));
    let timeline = line.iter().find(|step| from < step.ends).or(line.last()).map_or(Timeline(1), |step| step.timeline);
    if let Some(why) = recorded(holdings, line, from, to) {
        return NoPath::Lost { timeline, from, to, why };
    }
    match end {
        // Nothing says that there was ever more.
        End::At(end) if from >= needed => {
            NoPath::TooLate { timeline: line.last().map_or(timeline, |step| step.timeline), to: from, end }
        }
        _ => NoPath::Hole { timeline, from, to },
    }
}

#[cfg(test)]
mod tests {
    use super::super::holdings::make::{MIB, empty, id};
    use super::super::manifest::ProofKind;
    use super::*;
    use proptest::prelude::*;

    fn whole() -> Holdings {
        empty().with_backup(0, 1, 3, 4, None).with_segments(1, 3, 8)
    }

    fn go(holdings: &Holdings, target: u32, end: End) -> Result<Path<'_>, NoPath> {
        path(holdings, &id(0), Timeline(target), end)
    }

    #[test]
    fn the_newest_end_is_the_end_of_the_log() {
        let holdings = whole().with_piece(1, 8 * MIB, 8 * MIB + 99).with_frontier(1, 1, 8 * MIB + 50, 1);
        let path = go(&holdings, 1, End::Newest).unwrap();
        assert_eq!((path.from.0, path.to.0, path.end.0), (3 * MIB + 40, 8 * MIB + 99, 8 * MIB + 99));
        assert_eq!((path.log.len(), path.wanted, path.cut.len()), (6, 6, 0));
        assert_eq!((path.base_bytes(), path.log_bytes()), (1_000, 510));
        // The parts meet.
        assert!(path.log.windows(2).all(|pair| pair[0].to == pair[1].from));
    }

    #[test]
    fn a_place_needs_the_log_beyond_it() {
        let holdings = whole();
        let at = |place| go(&holdings, 1, End::At(Lsn(place)));
        assert_eq!(at(5 * MIB + 1).unwrap().wanted, 3);
        assert_eq!(at(8 * MIB - 1).unwrap().wanted, 5);
        assert!(matches!(at(8 * MIB), Err(NoPath::TooLate { to: Lsn(to), .. }) if to == 8 * MIB));
        assert!(matches!(at(4 * MIB + 199), Err(NoPath::TooEarly { .. })));
        assert!(at(4 * MIB + 200).is_ok());
        assert_eq!(go(&holdings, 1, End::Consistent).unwrap().wanted, 2);
    }

    #[test]
    fn r23_what_is_missing_is_said_when_the_plan_is_made() {
        // Acknowledged, and not there.
        let hole = empty().with_backup(0, 1, 3, 4, None).with_segments(1, 3, 6).with_segments(1, 7, 9);
        let acked = hole.clone().with_frontier(1, 1, 9 * MIB, 1);
        let error = NoPath::Hole { timeline: Timeline(1), from: Lsn(6 * MIB), to: Lsn(7 * MIB) };
        assert_eq!(go(&acked, 1, End::Newest), Err(error.clone()));
        assert_eq!(go(&acked, 1, End::At(Lsn(8 * MIB))), Err(error));
        assert!(go(&acked, 1, End::At(Lsn(6 * MIB - 1))).is_ok());
        // Never acknowledged: cut, and reported.
        let unacked = hole.clone().with_frontier(1, 1, 6 * MIB, 1);
        let path = go(&unacked, 1, End::Newest).unwrap();
        assert_eq!((path.to, path.cut.len()), (Lsn(6 * MIB), 2));
        // Recorded as lost.
        assert!(matches!(go(&hole.with_gap(1, 6, 7), 1, End::Newest), Err(NoPath::Lost { .. })));
        // A hole in what the backup itself needs, though nothing says it was acknowledged.
        let own = empty().with_backup(0, 1, 3, 4, None).with_segments(1, 3, 4).with_segments(1, 5, 9);
        assert!(matches!(go(&own, 1, End::Consistent), Err(NoPath::Hole { from: Lsn(from), .. }) if from == 4 * MIB));
        assert!(matches!(go(&own, 1, End::Newest), Err(NoPath::Hole { .. })));
        // Its first byte.
        assert!(matches!(
            go(&empty().with_backup(0, 1, 3, 4, None).with_segments(1, 4, 9), 1, End::Newest),
            Err(NoPath::Hole { .. })
        ));
        // The frontier says more than the log has.
        let short = whole().with_frontier(1, 1, 8 * MIB + 1, 1);
        assert_eq!(
            go(&short, 1, End::Newest),
            Err(NoPath::Hole { timeline: Timeline(1), from: Lsn(8 * MIB), to: Lsn(8 * MIB + 1) })
        );
        // The frontier does not verify.
        let mut doubt = whole();
        doubt.frontier_doubt = Some("its signature does not fit".into());
        assert!(matches!(go(&doubt, 1, End::Newest), Err(NoPath::Doubt(_))));
        // A history file.
        assert!(matches!(go(&whole(), 2, End::Newest), Err(NoPath::Line { why: NoLine::Absent(_), .. })));
        // The chain.
        let orphan = empty().with_backup(0, 1, 3, 4, Some(-5)).with_segments(1, 3, 8);
        assert!(matches!(go(&orphan, 1, End::Newest), Err(NoPath::Unusable(Unusable::Orphan { .. }))));
        let failed = whole().with_proof(0, true, ProofKind::Opened).with_proof(0, false, ProofKind::Stored);
        assert!(matches!(go(&failed, 1, End::Newest), Err(NoPath::Unusable(Unusable::Failed { .. }))));
        assert!(go(&failed.with_proof(0, true, ProofKind::Stored), 1, End::Newest).is_ok());
    }

    #[test]
    fn a_path_goes_over_a_promotion_in_the_middle_of_a_segment() {
        let switch = 5 * MIB + 300;
        // The old timeline's last segment was never full; the new one's pieces begin where it was born.
        let pieces = empty().with_backup(0, 1, 3, 4, None).with_segments(1, 3, 5).with_piece(1, 5 * MIB, 5 * MIB + 400);
        let pieces = pieces.with_history(2, &[(1, switch)]).with_piece(2, switch, 6 * MIB).with_segments(2, 6, 8);
        let path = go(&pieces, 2, End::Newest).unwrap();
        let parts = path.log.iter().map(|part| (part.object.timeline.0, part.from.0, part.to.0)).collect::<Vec<_>>();
        assert_eq!(parts[2..4], [(1, 5 * MIB, switch), (2, switch, 6 * MIB)]);
        assert_eq!((path.to, path.histories.clone()), (Lsn(8 * MIB), vec![Timeline(2)]));
        // Or there is its whole segment, which begins with a copy.
        let copied = empty()
            .with_backup(0, 1, 3, 4, None)
            .with_segments(1, 3, 5)
            .with_history(2, &[(1, switch)])
            .with_segments(2, 5, 8);
        let path = go(&copied, 2, End::Newest).unwrap();
        assert_eq!((path.log[2].object.timeline, path.log.len()), (Timeline(2), 5));
        // What the old timeline wrote after the switch is of no use.
        let zombie = whole().with_history(2, &[(1, switch)]).with_frontier(1, 2, 6 * MIB, 1);
        assert!(matches!(go(&zombie, 2, End::Newest), Err(NoPath::Hole { from: Lsn(from), .. }) if from == switch));
        // Promoted, and nothing written since.
        let fresh = whole().with_history(2, &[(1, switch)]);
        assert_eq!(go(&fresh, 2, End::Newest).unwrap().to, Lsn(switch));
        // A backup of the branch that was left.
        let left = empty()
            .with_backup(0, 1, 6, 6, None)
            .with_segments(1, 3, 8)
            .with_history(2, &[(1, switch)])
            .with_segments(2, 5, 8);
        assert!(matches!(go(&left, 2, End::Newest), Err(NoPath::OtherBranch { .. })));
        assert!(go(&left, 1, End::Newest).is_ok());
    }

    proptest! {
        /// A path covers every byte once asked for, of the right timelines, or there is a byte that nothing covers.
        #[test]
        fn a_path_has_every_byte(
            one in proptest::collection::vec((0_u64..90, 1_u64..30), 0..12),
            two in proptest::collection::vec((0_u64..90, 1_u64..30), 0..12),
            switch in 1_u64..90,
            end in 0_u64..120,
        ) {
            let base = 3 * MIB;
            let mut holdings = empty().with_backup(0, 1, 3, 3, None).with_history(2, &[(1, base + 200 + switch)]);
            // What the backup itself needs is there.
            holdings = holdings.with_piece(1, base, base + 201);
            let mut covered = [false; 160];
            covered[0] = true;
            for (first, length) in &one {
                holdings = holdings.with_piece(1, base + 200 + first, base + 200 + first + length);
                covered[*first as usize..(first + length).min(switch).max(*first) as usize].fill(true);
            }
            for (first, length) in &two {
                holdings = holdings.with_piece(2, base + 200 + first, base + 200 + first + length);
                covered[*first as usize..(first + length) as usize].fill(true);
            }
            let reach = covered.iter().position(|covered| !covered).unwrap() as u64;
            match path(&holdings, &id(0), Timeline(2), End::At(Lsn(base + 200 + end))) {
                Ok(path) => {
                    prop_assert!(end < reach);
                    prop_assert_eq!(path.to.0, base + 200 + reach);
                    prop_assert!(path.log.windows(2).all(|pair| pair[0].to == pair[1].from));
                    prop_assert_eq!((path.log[0].from, path.log[path.log.len() - 1].to), (path.from, path.to));
                    prop_assert!(path.log.iter().all(|part| part.object.first <= part.from && part.to <= part.object.last));
                    let ends = base + 200 + switch;
                    prop_assert!(path.log.iter().all(|part| part.object.timeline == Timeline(2) || part.to.0 <= ends));
                    prop_assert!(path.log[path.wanted - 1].to > path.end);
                }
                Err(_) => prop_assert!(end >= reach),
            }
        }
    }
}
