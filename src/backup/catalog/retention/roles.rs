//! Which backups stay, and from where on the log does.

use super::{Policy, Refused, Why};
use crate::backup::catalog::holdings::{Backup, Holdings};
use crate::backup::catalog::window::{line, on};
use crate::backup::repository::BackupId;
use crate::model::{Lsn, Timeline};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// What a backup may be needed for.
pub(super) struct Roles<'a> {
    pub(super) holdings: &'a Holdings,
    pub(super) policy: &'a Policy,
    pub(super) cutoff: Timestamp,
}

impl Roles<'_> {
    /// Every backup that stays, with every reason.
    pub(super) fn backups(&self) -> Result<BTreeMap<BackupId, BTreeSet<Why>>, Refused> {
        let holdings = self.holdings;
        // Newest first, and the same of those that were proven.
        let usable: Vec<&Backup> = holdings.usable().collect();
        if usable.is_empty() {
            let (cluster, source_name) = (holdings.cluster.system.to_string(), holdings.cluster.source.to_string());
            return Err(Refused::NothingGood { cluster, source_name });
        }
        let mut kept: BTreeMap<BackupId, BTreeSet<Why>> = BTreeMap::new();
        let mut keep = |backup: &Backup, why: Why| {
            kept.entry(backup.id().clone()).or_default().insert(why);
        };
        for backup in holdings.backups.values().filter(|backup| backup.manifest.ended > self.cutoff) {
            keep(backup, if usable.iter().any(|one| one.id() == backup.id()) { Why::Window } else { Why::Unusable });
        }
        let newest = holdings.newest_timeline();
        for timeline in self.timelines() {
            let Ok(line) = line(holdings, timeline) else {
                // Any of them may be what this timeline goes on from.
                let before = usable.iter().filter(|backup| backup.manifest.timeline <= timeline);
                before.for_each(|backup| keep(backup, Why::UnknownLine(timeline)));
                continue;
            };
            let on_line: Vec<&Backup> = usable.iter().copied().filter(|backup| on(&line, &backup.manifest)).collect();
            if Some(timeline) == newest || self.alive(timeline) {
                let mut old = on_line.iter().filter(|backup| backup.manifest.ended <= self.cutoff);
                if let Some(start) = old.next() {
                    keep(start, Why::WindowStart(timeline));
                    if start.proven().is_none()
                        && let Some(proven) = old.find(|backup| backup.proven().is_some())
                    {
                        keep(proven, Why::ProvenStart(timeline));
                    }
                }
            }
            if Some(timeline) == newest {
                self.by_count(&on_line, &mut keep);
            }
        }
        // A line without any backup of its own must not leave the cluster without one.
        self.last(&usable, &mut keep);
        self.chains(&mut kept);
        for id in holdings.doubtful.keys() {
            kept.entry(id.clone()).or_default().insert(Why::Doubtful);
            // It may be the difference to any of those back to the newest that is none itself.
            for (before, backup) in holdings.backups.range(..id.clone()).rev() {
                kept.entry(before.clone()).or_default().insert(Why::MayBeUnder(id.clone()));
                if backup.manifest.parent.is_none() {
                    break;
                }
            }
        }
        Ok(kept)
    }

    /// Every timeline that anything is there of.
    fn timelines(&self) -> BTreeSet<Timeline> {
        let log = self.holdings.log.iter().filter(|(_, log)| !log.is_empty()).map(|(timeline, _)| *timeline);
        let backups = self.holdings.backups.values().map(|backup| backup.manifest.stop_timeline);
        log.chain(backups).chain(self.holdings.newest_timeline()).collect()
    }

    /// Whether anything was written on this timeline within the window, or it is not known.
    fn alive(&self, timeline: Timeline) -> bool {
        let ticks = self.holdings.clock.iter().filter(|tick| tick.timeline == timeline);
        ticks.map(|tick| tick.at).max().is_none_or(|last| last > self.cutoff)
    }

    fn by_count(&self, usable: &[&Backup], keep: &mut impl FnMut(&Backup, Why)) {
        let many = self.policy.backups as usize;
        usable.iter().take(many).for_each(|backup| keep(backup, Why::Newest(self.policy.backups)));
        let proven = usable.iter().filter(|backup| backup.proven().is_some());
        proven.take(many).for_each(|backup| keep(backup, Why::NewestProven(self.policy.backups)));
        self.last(usable, keep);
    }

    fn last(&self, usable: &[&Backup], keep: &mut impl FnMut(&Backup, Why)) {
        if let Some(backup) = usable.first() {
            keep(backup, Why::LastGood);
        }
        if let Some(backup) = usable.iter().find(|backup| backup.proven().is_some()) {
            keep(backup, Why::LastProven);
        }
    }

    /// What the kept ones are differences to.
    fn chains(&self, kept: &mut BTreeMap<BackupId, BTreeSet<Why>>) {
        let heads: Vec<BackupId> = kept.keys().cloned().collect();
        for head in heads {
            let mut next = self.holdings.backups.get(&head).and_then(|backup| backup.manifest.parent.clone());
            // A chain goes back in time, so it ends; one that does not is cut here and is unusable anyway.
            let mut newer = head.clone();
            while let Some(id) = next.filter(|id| *id < newer) {
                let Some(parent) = self.holdings.backups.get(&id) else { break };
                kept.entry(id.clone()).or_default().insert(Why::ChainOf(head.clone()));
                next = parent.manifest.parent.clone();
                newer = id;
            }
        }
    }
}

/// The place in the log from which on everything stays, and the backup that needs it.
pub(super) fn floor(holdings: &Holdings, kept: &BTreeMap<BackupId, BTreeSet<Why>>) -> Result<(Lsn, BackupId), Refused> {
    let start = |backup: &Backup| backup.manifest.start.segment_start(backup.manifest.server.segment_size);
    let mut starts: Vec<(Lsn, BackupId)> =
        kept.keys().filter_map(|id| Some((start(holdings.backups.get(id)?), id.clone()))).collect();
    for id in holdings.doubtful.keys() {
        // Where it starts is not believed. It is not before the start of the backup before it.
        let before = holdings.backups.range(..id.clone()).next_back();
        starts.push((before.map_or(Lsn(0), |(_, backup)| start(backup)), id.clone()));
    }
    starts.into_iter().min().ok_or_else(|| Refused::NothingGood {
        cluster: holdings.cluster.system.to_string(),
        source_name: holdings.cluster.source.to_string(),
    })
}
