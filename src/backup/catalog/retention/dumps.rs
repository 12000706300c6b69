//! Which logical copies stay. They stand alone: no log, no chains.

use super::{Go, MARGIN, MAY_RUN, Plan, Policy, Refused, Why, before, named};
use crate::backup::catalog::dumps::Dump;
use crate::backup::catalog::holdings::Holdings;
use crate::backup::repository::BackupId;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Every copy that stays, with every reason.
///
/// # Errors
/// When there are copies, none of them can be used, and nothing else is there that could be.
pub(super) fn kept(
    holdings: &Holdings,
    policy: &Policy,
    cutoff: Timestamp,
) -> Result<BTreeMap<BackupId, BTreeSet<Why>>, Refused> {
    let dumps = &holdings.dumps;
    let mut kept: BTreeMap<BackupId, BTreeSet<Why>> = BTreeMap::new();
    if dumps.is_empty() {
        return Ok(kept);
    }
    let usable: Vec<&Dump> = dumps.usable().collect();
    if usable.is_empty() && !holdings.has_physical() {
        let (cluster, source_name) = (holdings.cluster.system.to_string(), holdings.cluster.source.to_string());
        return Err(Refused::NothingGood { cluster, source_name });
    }
    let mut keep = |dump: &Dump, why: Why| {
        kept.entry(dump.id().clone()).or_default().insert(why);
    };
    for dump in dumps.good.values() {
        let good = dump.unusable().is_none();
        if dump.manifest.ended > cutoff {
            keep(dump, if good { Why::Window } else { Why::Unusable });
        } else if usable.is_empty() {
            // None is left to rely on: the bad ones are all there is.
            keep(dump, Why::Unusable);
        }
    }
    if let Some(start) = usable.iter().find(|dump| dump.manifest.ended <= cutoff) {
        keep(start, Why::CopyBefore);
    }
    let many = policy.backups as usize;
    let proven: Vec<&Dump> = usable.iter().copied().filter(|dump| dump.proven().is_some()).collect();
    usable.iter().take(many).for_each(|dump| keep(dump, Why::Newest(policy.backups)));
    proven.iter().take(many).for_each(|dump| keep(dump, Why::NewestProven(policy.backups)));
    usable.iter().take(1).for_each(|dump| keep(dump, Why::LastGood));
    proven.iter().take(1).for_each(|dump| keep(dump, Why::LastProven));
    for id in dumps.doubtful.keys() {
        kept.entry(id.clone()).or_default().insert(Why::Doubtful);
    }
    Ok(kept)
}

impl Plan {
    pub(super) fn sort_dumps(&mut self, holdings: &Holdings) {
        let dumps = &holdings.dumps;
        for (id, dump) in &dumps.good {
            match self.dumps.get(id).and_then(|whys| whys.first()).cloned() {
                Some(why) => {
                    let listed = (dump.manifest.objects.len() - dump.missing.len()) as u64 + 1;
                    self.keep(&why, listed, dump.stored_bytes);
                    dump.proof_objects.iter().for_each(|object| self.keep(&Why::Proof, 1, object.bytes));
                }
                None => {
                    self.go(&dump.object, Go::Manifest);
                    for object in named(holdings, &dump.object, &dump.manifest.objects, &dump.missing) {
                        self.go(&object, Go::OfBackup);
                    }
                    dump.proof_objects.iter().for_each(|object| self.go(object, Go::OfBackup));
                }
            }
            // As beside base backups: nobody writes there any more, and the margin is for clocks.
            let fresh = self.dumps.contains_key(id) && dump.manifest.ended > before(self.as_of, MARGIN);
            for object in &dump.extra {
                if fresh { self.keep(&Why::MayRun, 1, object.bytes) } else { self.go(object, Go::Extra) }
            }
        }
        for objects in dumps.doubtful.values() {
            objects.iter().for_each(|object| self.keep(&Why::Doubtful, 1, object.bytes));
        }
        for (id, objects) in &dumps.unfinished {
            let later = dumps.good.range(id.clone()..).next().is_some();
            let old = id.began().is_some_and(|began| began <= before(self.as_of, MAY_RUN));
            if later && old {
                objects.iter().for_each(|object| self.go(object, Go::Unfinished));
            } else {
                self.dumps.entry(id.clone()).or_default().insert(Why::MayRun);
                objects.iter().for_each(|object| self.keep(&Why::MayRun, 1, object.bytes));
            }
        }
    }
}
