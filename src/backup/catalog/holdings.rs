//! What a repository holds of one cluster: plain data, made by `index`, asked by `window`, `path`, `retention`, `verify`.

use super::dumps::Dumps;
use super::history::Ancestor;
use super::index::BadKind;
use super::manifest::{Frontier, Gap, Manifest, Mark, Proof};
use crate::backup::repository::{BackupId, Cluster, DumpItem, Item, Key};
use crate::model::text::moment;
use crate::model::{Lsn, SegmentSize, Timeline};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// An object, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub key: Key,
    /// Its length as stored.
    pub bytes: u64,
    /// When the place says it was written, by a clock that may be wrong.
    pub written: Timestamp,
}

/// A segment or a piece of the log: from `first` up to, not including, `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogObject {
    /// Its first byte.
    pub first: Lsn,
    /// The byte after its last one.
    pub last: Lsn,
    /// The timeline that it was written on.
    pub timeline: Timeline,
    /// A whole segment, or a piece.
    pub whole: bool,
    /// Its length as stored.
    pub bytes: u64,
    /// When the place says it was written.
    pub written: Timestamp,
}

/// A base backup whose manifest is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// What makes it exist.
    pub manifest: Manifest,
    /// The object of that.
    pub object: Object,
    /// All it takes in the repository, in bytes.
    pub stored_bytes: u64,
    /// Objects of its manifest that the listing lacks, or shows with another length.
    pub missing: Vec<Missing>,
    /// Objects in its folder that its manifest does not name: what an interrupted try left.
    pub extra: Vec<Object>,
    /// The newest checks of it that were read, oldest first.
    pub proofs: Vec<(u64, Proof)>,
    /// The objects of all its checks.
    pub proof_objects: Vec<Object>,
}

/// An object of a backup that the listing does not show as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// Gone, or of another length.
    pub kind: BadKind,
    /// The same in words.
    pub why: String,
}

/// What the repository says of where a timeline came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Its history file.
    pub object: Object,
    /// Its ancestors, oldest first; `None` while nobody has opened the file and no note beside it says them.
    pub ancestors: Option<Vec<Ancestor>>,
}

/// Keys that an expiry means to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Which.
    pub number: u64,
    /// Its object.
    pub object: Object,
    /// What it says.
    pub mark: Mark,
}

/// A frontier that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Which.
    pub number: u64,
    /// What it says.
    pub frontier: Frontier,
}

/// A place in the log and a time at which it had been written: the server's clock where it is known, else the writer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// The timeline.
    pub timeline: Timeline,
    /// The place.
    pub lsn: Lsn,
    /// The time.
    pub at: Timestamp,
}

/// Everything of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Which.
    pub cluster: Cluster,
    /// The length of its segments, as its newest backup says, or else its newest segment.
    pub segment_size: Option<SegmentSize>,
    /// Backups, by age.
    pub backups: BTreeMap<BackupId, Backup>,
    /// Backups whose manifest is listed and is not good: kept, never used.
    pub doubtful: BTreeMap<BackupId, Vec<Object>>,
    /// Objects of backups without a manifest: running, interrupted, or half expired.
    pub unfinished: BTreeMap<BackupId, Vec<Object>>,
    /// Logical copies.
    pub dumps: Dumps,
    /// The log, by timeline, each sorted by place.
    pub log: BTreeMap<Timeline, Vec<LogObject>>,
    /// Segments whose place is not known, because nothing says how long the segments of this cluster are.
    pub unplaced: Vec<Object>,
    /// History files.
    pub histories: BTreeMap<Timeline, History>,
    /// Every frontier, by number.
    pub frontiers: BTreeMap<u64, Object>,
    /// The newest frontiers, oldest first.
    pub reached: Vec<Reached>,
    /// The newest frontier is listed and does not verify: how far the log was acknowledged is not known.
    pub frontier_doubt: Option<String>,
    /// Log that is known to be missing, with the objects that say so.
    pub gaps: Vec<(Object, Gap)>,
    /// What expiries have marked, oldest first.
    pub marks: Vec<Marked>,
    /// The furthest acknowledged place by timeline, of all that was read.
    pub acknowledged: BTreeMap<Timeline, Lsn>,
    /// Places with times, sorted by place.
    pub clock: Vec<Tick>,
}

/// Why a backup cannot be used. `Display` fits after "the backup X cannot be used: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is none of this name whose manifest is good.
    #[error("there is no backup {0} with a manifest that verifies")]
    Unknown(BackupId),
    /// Objects of it are gone or cut.
    #[error("{backup} lacks {} of its objects, the first is {}: {}", .missing.len(), .missing[0].name, .missing[0].why)]
    Missing {
        /// The one of the chain that lacks them.
        backup: BackupId,
        /// Which; at least one.
        missing: Vec<Missing>,
    },
    /// The newest check of it failed.
    #[error("the check of {backup} at {} found it bad: {detail}", moment(*.at))]
    Failed {
        /// The one of the chain that failed.
        backup: BackupId,
        /// When.
        at: Timestamp,
        /// What was found.
        detail: String,
    },
    /// It is the difference to one that is not there.
    #[error("{backup} is the difference to {parent}, which is not there")]
    Orphan {
        /// The difference.
        backup: BackupId,
        /// What it needs.
        parent: BackupId,
    },
    /// It cannot be the difference to what it names.
    #[error("{backup} cannot be the difference to {parent}: {why}")]
    NotNext {
        /// The difference.
        backup: BackupId,
        /// What it names.
        parent: BackupId,
        /// What does not fit.
        why: &'static str,
    },
    /// Its chain comes back to itself, or its parent is newer.
    #[error("the chain of {0} does not go back in time")]
    Circle(BackupId),
    /// Its segments have another length than the cluster's now.
    #[error("{0} is of a time when the segments of this cluster had another length")]
    SegmentSize(BackupId),
}

impl LogObject {
    /// Which object it is. `size` is the cluster's.
    pub fn item(&self, size: SegmentSize) -> Item {
        match self.whole {
            true => Item::Segment(size.name(self.timeline, self.first)),
            false => Item::Piece { timeline: self.timeline, first: self.first, last: self.last },
        }
    }
}

impl Backup {
    /// Its name.
    pub fn id(&self) -> &BackupId {
        &self.manifest.backup
    }

    /// The newest check, when that found it bad.
    pub fn failed(&self) -> Option<&Proof> {
        failed(&self.proofs)
    }

    /// The strongest check that it passed since the last one that it failed.
    pub fn proven(&self) -> Option<&Proof> {
        proven(&self.proofs)
    }
}

/// Of checks, oldest first: the newest, when that found its object bad.
pub(super) fn failed(proofs: &[(u64, Proof)]) -> Option<&Proof> {
    proofs.last().map(|(_, proof)| proof).filter(|proof| !proof.good)
}

/// Of checks, oldest first: the strongest good one since the last bad one.
pub(super) fn proven(proofs: &[(u64, Proof)]) -> Option<&Proof> {
    let since = proofs.iter().rposition(|(_, proof)| !proof.good).map_or(0, |bad| bad + 1);
    proofs[since..].iter().map(|(_, proof)| proof).max_by_key(|proof| (proof.kind, proof.at))
}

impl Holdings {
    /// Nothing yet.
    pub fn new(cluster: Cluster) -> Holdings {
        Holdings {
            cluster,
            segment_size: None,
            backups: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            dumps: Dumps::default(),
            log: BTreeMap::new(),
            unplaced: Vec::new(),
            histories: BTreeMap::new(),
            frontiers: BTreeMap::new(),
            reached: Vec::new(),
            frontier_doubt: None,
            gaps: Vec::new(),
            marks: Vec::new(),
            acknowledged: BTreeMap::new(),
            clock: Vec::new(),
        }
    }

    /// The name of something of this cluster.
    pub fn key(&self, item: Item) -> Key {
        Key::Of(self.cluster.clone(), item)
    }

    /// The name of a part of the log.
    pub fn log_key(&self, object: &LogObject) -> Key {
        // Parts of the log have a place only where the length of segments is known, except pieces, which need none.
        self.key(object.item(self.segment_size.unwrap_or(SegmentSize::USUAL)))
    }

    /// What a backup is the difference to; `None` for a whole one.
    ///
    /// # Errors
    /// When that is not there, or does not fit. Whether it is good is not looked at.
    pub fn parent(&self, backup: &Backup) -> Result<Option<&Backup>, Unusable> {
        let Some(id) = &backup.manifest.parent else { return Ok(None) };
        if backup.id() <= id {
            return Err(Unusable::Circle(backup.id().clone()));
        }
        let Some(parent) = self.backups.get(id) else {
            return Err(Unusable::Orphan { backup: backup.id().clone(), parent: id.clone() });
        };
        let (now, then) = (&backup.manifest.server, &parent.manifest.server);
        let why = if now.major() != then.major() {
            "it is of another major version"
        } else if (now.block_size, now.data_checksums) != (then.block_size, then.data_checksums) {
            "its pages are of another length, or only one of the two has checksums"
        } else {
            return Ok(Some(parent));
        };
        Err(Unusable::NotNext { backup: backup.id().clone(), parent: id.clone(), why })
    }

    /// A backup with all that it is the difference to, the whole one first.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn chain(&self, backup: &BackupId) -> Result<Vec<&Backup>, Unusable> {
        let mut chain: Vec<&Backup> = Vec::new();
        let mut next = Some(self.backups.get(backup).ok_or_else(|| Unusable::Unknown(backup.clone()))?);
        while let Some(one) = next {
            let id = one.id();
            if !one.missing.is_empty() {
                return Err(Unusable::Missing { backup: id.clone(), missing: one.missing.clone() });
            }
            if let Some(proof) = one.failed() {
                return Err(Unusable::Failed { backup: id.clone(), at: proof.at, detail: proof.detail.clone() });
            }
            if self.segment_size.is_some_and(|size| size != one.manifest.server.segment_size) {
                return Err(Unusable::SegmentSize(id.clone()));
            }
            chain.push(one);
            next = self.parent(one)?;
        }
        chain.reverse();
        Ok(chain)
    }

    /// Whether anything but logical copies, and what expiries say of those, is there.
    pub fn has_physical(&self) -> bool {
        let backups = !self.backups.is_empty() || !self.doubtful.is_empty() || !self.unfinished.is_empty();
        let log = !self.log.is_empty() || !self.unplaced.is_empty() || !self.histories.is_empty();
        backups || log || !self.frontiers.is_empty() || !self.gaps.is_empty()
    }

    /// The newest backup that can be used.
    pub fn newest_usable(&self) -> Option<&Backup> {
        self.usable().next()
    }

    /// Backups that can be used, **newest first**: the newest one is the first, not the last.
    pub fn usable(&self) -> impl Iterator<Item = &Backup> {
        self.backups.values().rev().filter(|backup| self.chain(backup.id()).is_ok())
    }

    /// The newest frontier.
    pub fn newest_frontier(&self) -> Option<&Frontier> {
        self.reached.last().map(|reached| &reached.frontier)
    }

    /// The timeline that `latest` means: the one of the newest frontier, else of the newest log, else of the newest backup.
    pub fn newest_timeline(&self) -> Option<Timeline> {
        let by_log = || self.log.iter().rev().find(|(_, log)| !log.is_empty()).map(|(timeline, _)| *timeline);
        let by_backup = || self.backups.values().next_back().map(|backup| backup.manifest.stop_timeline);
        self.newest_frontier().map(|frontier| frontier.timeline).or_else(by_log).or_else(by_backup)
    }

    /// The newest time at or before a place of a timeline that anything in the repository names.
    pub fn time_of(&self, timeline: Timeline, lsn: Lsn) -> Option<Timestamp> {
        self.clock.iter().filter(|tick| tick.timeline == timeline && tick.lsn <= lsn).map(|tick| tick.at).max()
    }

    /// Whether an object of this name was listed.
    pub fn has(&self, name: &str) -> bool {
        let Ok(Key::Of(cluster, item)) = name.parse::<Key>() else { return false };
        if cluster != self.cluster {
            return false;
        }
        let one_of =
            |objects: &[Object]| objects.iter().any(|object| object.key == Key::Of(cluster.clone(), item.clone()));
        match &item {
            Item::History(timeline) => self.histories.contains_key(timeline),
            Item::Segment(segment) => match self.segment_size.and_then(|size| segment.start(size)) {
                Some(first) => self.log_at(segment.timeline, first).any(|object| object.whole),
                None => one_of(&self.unplaced),
            },
            Item::Piece { timeline, first, last } => {
                self.log_at(*timeline, *first).any(|object| !object.whole && object.last == *last)
            }
            Item::Frontier(number) => self.frontiers.contains_key(number),
            Item::Gap { .. } => {
                self.gaps.iter().any(|(object, _)| object.key == Key::Of(cluster.clone(), item.clone()))
            }
            Item::Mark(number) => self.marks.iter().any(|marked| marked.number == *number),
            Item::Manifest(id)
            | Item::Chunk { backup: id, .. }
            | Item::Index(id)
            | Item::ServerManifest(id)
            | Item::Proof(id, _) => {
                if let Some(objects) = self.unfinished.get(id).or_else(|| self.doubtful.get(id)) {
                    return one_of(objects);
                }
                let Some(backup) = self.backups.get(id) else { return false };
                let named = backup.manifest.objects.iter().any(|object| object.key == name);
                let missing = backup.missing.iter().any(|missing| missing.name == name);
                let beside = one_of(&backup.extra) || one_of(&backup.proof_objects);
                backup.object.key == Key::Of(cluster.clone(), item.clone()) || beside || (named && !missing)
            }
            Item::Dump(id, DumpItem::Chunk { .. } | DumpItem::Manifest | DumpItem::Proof(_)) => {
                self.dumps.has(id, &Key::Of(cluster.clone(), item.clone()))
            }
        }
    }

    /// What begins at a place of a timeline.
    fn log_at(&self, timeline: Timeline, first: Lsn) -> impl Iterator<Item = &LogObject> {
        let log = self.log.get(&timeline).map(Vec::as_slice).unwrap_or_default();
        log[log.partition_point(|object| object.first < first)..].iter().take_while(move |object| object.first == first)
    }
}

#[cfg(test)]
pub(crate) mod make;
