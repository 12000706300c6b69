//! What may go, and why the rest stays. In: [`Holdings`], a policy, an instant. Out: a [`Plan`], which names every object
//! that may go and a reason for every one that stays. No I/O. Caller: `expire`.
//!
//! # Rules
//! - Time is counted back from [`as_of`]: the newest time in a signed document, and never later than our own clock, with
//!   [`MARGIN`] to spare. A clock that is wrong by a day, ours or the store's, loosens nothing.
//! - On every line that was alive in the window: the backups of the window, and the newest one before it, from which the
//!   window begins. On the newest line the newest `backups`, whatever their age.
//! - A backup that was proven takes such a place before a newer one that was not; that one stays too. The newest good backup
//!   never goes, nor does what a kept one is the difference to.
//! - The log goes only up to the start of the oldest backup that stays. History files and the source's own file stay.
//! - Logical copies need no log and no other copy: those of the window stay, the newest one before it, and the newest `backups`.
//! - What cannot be judged stays: backups whose manifest is bad, with the log that they may need; foreign names.

mod check;
mod dumps;
mod roles;

pub use check::{check, remaining};

use super::holdings::{Holdings, LogObject, Missing, Object};
use super::index::Catalogue;
use super::manifest::ObjectFacts;
use super::window::{line, on};
use crate::backup::repository::{BackupId, Key};
use crate::model::{Lsn, Timeline};
use jiff::Timestamp;
use roles::Roles;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// What every decision by time leaves to spare: the clocks of writers and stores may be wrong by this much.
pub const MARGIN: Duration = Duration::from_secs(86_400);
/// An unfinished backup may be running for this long. The longest base backup that makes sense takes a day.
pub const MAY_RUN: Duration = Duration::from_secs(2 * 86_400);
/// One a minute is written: all of a day stay, so that the last hours can be followed.
pub const FRONTIERS_KEPT: u64 = 1_440;
/// Of older ones, about one an hour stays.
pub const FRONTIERS_THINNED: u64 = 64;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Every instant this far back can be restored.
    pub window: Duration,
    /// At least so many backups are kept, whatever their age.
    pub backups: u32,
}

/// Why something stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It ended within the window.
    Window,
    /// The window of this timeline begins from it.
    WindowStart(Timeline),
    /// The same, as the newest one that was proven.
    ProvenStart(Timeline),
    /// It is one of the newest so many.
    Newest(u32),
    /// It is one of the newest so many that were proven.
    NewestProven(u32),
    /// It is the newest good one.
    LastGood,
    /// It is the newest one that was proven.
    LastProven,
    /// Another that stays is the difference to it.
    ChainOf(BackupId),
    /// It cannot be used, and is of the window: somebody may want to see why.
    Unusable,
    /// Its manifest cannot be believed, so neither can it be said that nobody needs it.
    Doubtful,
    /// This one may be the difference to it: its manifest cannot be believed.
    MayBeUnder(BackupId),
    /// It may be running.
    MayRun,
    /// Where this timeline came from is not known.
    UnknownLine(Timeline),
    /// A restore of a backup that stays reads it: this one is the first.
    Log(BackupId),
    /// Its place in the log is not known.
    Unplaced,
    /// Each restore over a promotion needs it.
    History,
    /// It says how far the log was acknowledged.
    Frontier,
    /// It says why log is missing that a backup that stays would need.
    Gap,
    /// It is what a check of a backup that stays found.
    Proof,
    /// An expiry has something in hand.
    Mark,
    /// It is the newest logical copy from before the window: the state that the window begins with.
    CopyBefore,
}

impl std::fmt::Display for Why {
    /// In words that fit behind "it stays: ".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::Window => f.write_str("it ended within the window"),
            Why::WindowStart(timeline) => write!(f, "the window of timeline {timeline} begins from it"),
            Why::ProvenStart(timeline) => {
                write!(f, "the window of timeline {timeline} begins from it, and it is proven")
            }
            Why::Newest(count) => write!(f, "it is one of the newest {count}"),
            Why::NewestProven(count) => write!(f, "it is one of the newest {count} that are proven"),
            Why::LastGood => f.write_str("it is the newest good one"),
            Why::LastProven => f.write_str("it is the newest that is proven"),
            Why::ChainOf(backup) => write!(f, "{backup} is the difference to it"),
            Why::Unusable => f.write_str("it cannot be used, and somebody may want to see why"),
            Why::Doubtful => f.write_str("its manifest cannot be believed"),
            Why::MayBeUnder(backup) => {
                write!(f, "{backup}, whose manifest cannot be believed, may be the difference to it")
            }
            Why::MayRun => f.write_str("it may be running"),
            Why::UnknownLine(timeline) => write!(f, "where timeline {timeline} came from is not known"),
            Why::Log(backup) => write!(f, "a restore of {backup} reads it"),
            Why::Unplaced => f.write_str("its place in the log is not known"),
            Why::History => f.write_str("each restore over a promotion needs it"),
            Why::Frontier => f.write_str("it says how far the log was acknowledged"),
            Why::Gap => f.write_str("it says why log is missing"),
            Why::Proof => f.write_str("it is what a check found"),
            Why::Mark => f.write_str("an expiry has something in hand"),
            Why::CopyBefore => f.write_str("it is the copy that the window begins with"),
        }
    }
}

/// Why something may go. In the order in which it is deleted, so that a backup that is seen is never a broken one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Go {
    /// The manifest of a backup that nothing needs.
    Manifest,
    /// The rest of such a backup.
    OfBackup,
    /// A backup that was never finished, or is half deleted, and a later one was finished.
    Unfinished,
    /// Beside a backup, and not of it.
    Extra,
    /// Log from before the oldest backup that stays.
    Log,
    /// A piece that a whole segment stands for.
    Folded,
    /// A frontier that newer ones stand for.
    Frontier,
    /// A record of missing log from before the oldest backup that stays.
    Gap,
}

/// An object that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// It.
    pub object: Object,
    /// Why.
    pub why: Go,
}

/// How much of something stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sum {
    /// Objects.
    pub objects: u64,
    /// Bytes as stored.
    pub bytes: u64,
}

/// What stays and what may go of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The instant that the window is counted back from.
    pub as_of: Timestamp,
    /// Where the window begins, with its margin.
    pub cutoff: Timestamp,
    /// Backups that stay, each with every reason; also those that are doubtful or may be running.
    pub backups: BTreeMap<BackupId, BTreeSet<Why>>,
    /// Logical copies that stay, in the same way.
    pub dumps: BTreeMap<BackupId, BTreeSet<Why>>,
    /// The log from here on stays.
    pub floor: Lsn,
    /// The backup that needs it.
    pub floor_of: BackupId,
    /// How much stays, by reason. An object with several reasons counts under the first.
    pub kept: BTreeMap<Why, Sum>,
    /// What may go, in the order of deletion.
    pub drop: Vec<Dropped>,
}

/// Why nothing may go. `Display` fits after "failed to expire: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no backup to rely on.
    #[error(
        "no backup of cluster {cluster} can be used, so nothing of it may go\nhint: take one with `mainstay backup {source_name}`; \
         `mainstay verify {source_name}` says what is wrong with those there are"
    )]
    NothingGood {
        /// The cluster.
        cluster: String,
        /// The source.
        source_name: String,
    },
    /// Log after the newest backup is missing although it was acknowledged: the listing is doubtful, or the place damaged.
    #[error(
        "the log of timeline {timeline} from {from} to {to} was acknowledged and is not listed: what else is listed cannot be relied on\n\
         hint: run `mainstay verify`; when that log is really lost, take a new backup first"
    )]
    Hole {
        /// The timeline.
        timeline: Timeline,
        /// The first missing byte.
        from: Lsn,
        /// Where the log goes on.
        to: Lsn,
    },
    /// The newest frontier does not verify.
    #[error("it is not known how far the log was acknowledged: the newest frontier is bad: {0}")]
    Doubt(String),
    /// The plan itself would take something from what stays. Never seen; checked each time.
    #[error(
        "the plan would take {what} from the backup {backup}, which stays: nothing is deleted\nhint: please report this"
    )]
    Loses {
        /// The backup.
        backup: BackupId,
        /// What it would lose.
        what: String,
    },
}

/// The instant that windows are counted back from: the newest time in a signed document of the source, and not later than
/// `now`. A source that has written nothing for a year keeps what it has.
pub fn as_of(catalogue: &Catalogue, now: Timestamp) -> Timestamp {
    let each = catalogue.clusters.values();
    let newest = each.flat_map(|holdings| {
        let frontiers = holdings.reached.iter().map(|reached| reached.frontier.at);
        let dumps = holdings.dumps.good.values().map(|dump| dump.manifest.ended);
        frontiers.chain(holdings.backups.values().map(|backup| backup.manifest.ended)).chain(dumps)
    });
    newest.max().map_or(now, |newest| newest.min(now))
}

/// What stays and what may go.
///
/// # Errors
/// When nothing may go: see [`Refused`].
pub fn plan(holdings: &Holdings, policy: &Policy, as_of: Timestamp) -> Result<Plan, Refused> {
    if let Some(why) = &holdings.frontier_doubt {
        return Err(Refused::Doubt(why.clone()));
    }
    let cutoff = before(as_of, policy.window.saturating_add(MARGIN));
    let dumps = dumps::kept(holdings, policy, cutoff)?;
    // Where nothing but logical copies is, there is no log that a backup could need.
    let newest_dump = holdings.dumps.usable().next().filter(|_| !holdings.has_physical());
    let (backups, (floor, floor_of)) = match newest_dump {
        Some(dump) => (BTreeMap::new(), (Lsn(0), dump.id().clone())),
        None => {
            let backups = Roles { holdings, policy, cutoff }.backups()?;
            let floor = roles::floor(holdings, &backups)?;
            (backups, floor)
        }
    };
    let mut plan = Plan { as_of, cutoff, backups, dumps, floor, floor_of, kept: BTreeMap::new(), drop: Vec::new() };
    plan.whole_after_newest(holdings)?;
    plan.sort_backups(holdings);
    plan.sort_dumps(holdings);
    plan.sort_log(holdings);
    plan.sort_documents(holdings, policy);
    // Newest backups first, so that a difference goes before what it is the difference to; the log oldest first.
    plan.drop.sort_by(|a, b| {
        a.why.cmp(&b.why).then_with(|| match a.why {
            Go::Manifest | Go::OfBackup | Go::Unfinished | Go::Extra => b.object.key.cmp(&a.object.key),
            // These come by place or number already, and the sort leaves equals as they are.
            Go::Log | Go::Folded | Go::Frontier | Go::Gap => std::cmp::Ordering::Equal,
        })
    });
    check(holdings, &plan)?;
    Ok(plan)
}

fn before(at: Timestamp, long: Duration) -> Timestamp {
    let secs = i64::try_from(long.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(at.as_second().saturating_sub(secs)).unwrap_or(Timestamp::MIN)
}

impl Plan {
    /// The log after the newest good backup is whole as far as it was acknowledged, or recorded as lost.
    fn whole_after_newest(&self, holdings: &Holdings) -> Result<(), Refused> {
        let Some(timeline) = holdings.newest_timeline() else { return Ok(()) };
        let Ok(line) = line(holdings, timeline) else { return Ok(()) };
        let Some(newest) = holdings.usable().find(|backup| on(&line, &backup.manifest)) else { return Ok(()) };
        let window = super::window::window(holdings);
        // What a branch that was left has lost after the newest line left it is nobody's loss.
        let ours = |hole: &super::window::Hole| {
            line.iter().any(|step| step.timeline == hole.timeline && hole.from < step.ends)
        };
        let after = |hole: &&super::window::Hole| hole.to > newest.manifest.start && ours(hole);
        let mut lost = window.holes.iter().filter(|hole| hole.kind == super::window::HoleKind::Acknowledged);
        match lost.find(after) {
            None => Ok(()),
            Some(hole) => Err(Refused::Hole { timeline: hole.timeline, from: hole.from, to: hole.to }),
        }
    }

    fn keep(&mut self, why: &Why, objects: u64, bytes: u64) {
        let sum = self.kept.entry(why.clone()).or_default();
        (sum.objects, sum.bytes) = (sum.objects + objects, sum.bytes + bytes);
    }

    fn go(&mut self, object: &Object, why: Go) {
        self.drop.push(Dropped { object: object.clone(), why });
    }

    fn sort_backups(&mut self, holdings: &Holdings) {
        for (id, backup) in &holdings.backups {
            match self.backups.get(id).and_then(|whys| whys.first()).cloned() {
                Some(why) => {
                    let listed = (backup.manifest.objects.len() - backup.missing.len()) as u64 + 1;
                    self.keep(&why, listed, backup.stored_bytes);
                    for object in &backup.proof_objects {
                        self.keep(&Why::Proof, 1, object.bytes);
                    }
                }
                None => {
                    self.go(&backup.object, Go::Manifest);
                    for object in named(holdings, &backup.object, &backup.manifest.objects, &backup.missing) {
                        self.go(&object, Go::OfBackup);
                    }
                    backup.proof_objects.iter().for_each(|object| self.go(object, Go::OfBackup));
                }
            }
            // Nobody writes into the folder of a backup that is finished; the margin is for clocks.
            let fresh = self.backups.contains_key(id) && backup.manifest.ended > before(self.as_of, MARGIN);
            for object in &backup.extra {
                if fresh { self.keep(&Why::MayRun, 1, object.bytes) } else { self.go(object, Go::Extra) }
            }
        }
        for objects in holdings.doubtful.values() {
            objects.iter().for_each(|object| self.keep(&Why::Doubtful, 1, object.bytes));
        }
        for (id, objects) in &holdings.unfinished {
            // One writer at a time: a later one that was finished says that this one will not be. And it is old.
            let later = holdings.backups.range(id.clone()..).next().is_some();
            let old = id.began().is_some_and(|began| began <= before(self.as_of, MAY_RUN));
            if later && old {
                objects.iter().for_each(|object| self.go(object, Go::Unfinished));
            } else {
                self.backups.entry(id.clone()).or_default().insert(Why::MayRun);
                objects.iter().for_each(|object| self.keep(&Why::MayRun, 1, object.bytes));
            }
        }
    }

    fn sort_log(&mut self, holdings: &Holdings) {
        let why = Why::Log(self.floor_of.clone());
        // By place over all timelines, so that the log goes oldest first.
        let mut log: Vec<&LogObject> = holdings.log.values().flatten().collect();
        log.sort_by_key(|object| (object.last, object.first, object.timeline));
        for object in log {
            let listed = || Object { key: holdings.log_key(object), bytes: object.bytes, written: object.written };
            if object.last <= self.floor {
                self.go(&listed(), Go::Log);
            } else if folded(holdings, object) {
                self.go(&listed(), Go::Folded);
            } else {
                self.keep(&why, 1, object.bytes);
            }
        }
        for object in &holdings.unplaced {
            self.keep(&Why::Unplaced, 1, object.bytes);
        }
    }

    fn sort_documents(&mut self, holdings: &Holdings, policy: &Policy) {
        let newest = holdings.frontiers.keys().next_back().copied().unwrap_or_default();
        let minutes = policy.window.saturating_add(MARGIN).as_secs() / 60;
        for (number, object) in &holdings.frontiers {
            let age = newest - number;
            let thinned = number % FRONTIERS_THINNED == 0 && age < minutes.saturating_add(FRONTIERS_KEPT);
            if age < FRONTIERS_KEPT || thinned {
                self.keep(&Why::Frontier, 1, object.bytes);
            } else {
                self.go(object, Go::Frontier);
            }
        }
        for (object, gap) in &holdings.gaps {
            if gap.to <= self.floor { self.go(object, Go::Gap) } else { self.keep(&Why::Gap, 1, object.bytes) }
        }
        for history in holdings.histories.values() {
            self.keep(&Why::History, 1, history.object.bytes);
        }
        for marked in &holdings.marks {
            self.keep(&Why::Mark, 1, marked.object.bytes);
        }
    }

    /// Objects and bytes that may go.
    pub fn dropped(&self) -> Sum {
        let bytes = self.drop.iter().map(|dropped| dropped.object.bytes).sum();
        Sum { objects: self.drop.len() as u64, bytes }
    }
}

/// The objects that a manifest names and that are listed.
fn named(holdings: &Holdings, manifest: &Object, objects: &[ObjectFacts], missing: &[Missing]) -> Vec<Object> {
    let gone: HashSet<&str> = missing.iter().map(|missing| missing.name.as_str()).collect();
    let there = objects.iter().filter(|object| !gone.contains(object.key.as_str()));
    // Names were read when the manifest was; one that does not read is foreign, and foreign objects are never deleted.
    let object = |facts: &ObjectFacts| {
        let key: Key = facts.key.parse().ok()?;
        let own = matches!(&key, Key::Of(cluster, _) if *cluster == holdings.cluster);
        own.then_some(Object { key, bytes: facts.stored.bytes, written: manifest.written })
    };
    there.filter_map(object).collect()
}

/// Whether a whole segment of the same timeline stands for a piece.
fn folded(holdings: &Holdings, piece: &LogObject) -> bool {
    if piece.whole {
        return false;
    }
    let Some(log) = holdings.log.get(&piece.timeline) else { return false };
    // The segment begins at or before the piece, and no two begin at one place.
    let upto = log.partition_point(|object| object.first <= piece.first);
    let size = holdings.segment_size.map_or(0, |size| size.bytes());
    let near = log[..upto].iter().rev().take_while(|object| object.first.0.saturating_add(size) > piece.first.0);
    near.into_iter().any(|object| object.whole && object.last >= piece.last)
}

#[cfg(test)]
mod tests;
