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

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::*;
    use crate::backup::catalog::dumps::make::{at, id, with_copies};
    use crate::backup::catalog::holdings::{Missing, Object};
    use crate::backup::catalog::index::BadKind;
    use crate::backup::repository::{DumpItem, DumpStream, Item};
    use proptest::prelude::*;
    use std::time::Duration;

    fn policy(days: u64, backups: u32) -> Policy {
        Policy { window: Duration::from_secs(days * 86_400), backups }
    }

    fn kept(holdings: &Holdings, policy: &Policy, hours: i64) -> Vec<BackupId> {
        plan(holdings, policy, at(hours)).unwrap().dumps.into_keys().collect()
    }

    fn break_it(holdings: &mut Holdings, hours: i64) {
        let missing = Missing { name: "x".into(), kind: BadKind::Gone, why: "it is not there".into() };
        holdings.dumps.good.get_mut(&id(hours)).unwrap().missing.push(missing);
    }

    #[test]
    fn copies_of_the_window_stay_and_the_one_before_it() {
        let days: Vec<i64> = (0..30).map(|day| day * 24).collect();
        let holdings = with_copies(&days);
        let plan = plan(&holdings, &policy(7, 1), at(30 * 24)).unwrap();
        // A day more than the window, for clocks; and the one that had ended before that.
        assert_eq!(plan.dumps.keys().next(), Some(&id(21 * 24)));
        assert!(plan.dumps[&id(21 * 24)].contains(&Why::CopyBefore));
        assert_eq!((plan.dumps.len(), plan.backups.len()), (9, 0));
        // Manifests first, the newest of them first; then what they name.
        assert_eq!(plan.drop[0].object.key, holdings.key(Item::Dump(id(20 * 24), DumpItem::Manifest)));
        assert_eq!((plan.drop.len(), plan.drop[21].why), (21 * 3, Go::OfBackup));
        assert_eq!(kept(&holdings, &policy(0, 3), 9_000), [id(27 * 24), id(28 * 24), id(29 * 24)]);
    }

    #[test]
    fn r18_the_last_good_copy_never_goes() {
        let mut holdings = with_copies(&[0, 24, 48]);
        break_it(&mut holdings, 24);
        break_it(&mut holdings, 48);
        assert_eq!(kept(&holdings, &policy(0, 0), 9_000), [id(0)]);
        break_it(&mut holdings, 0);
        assert!(matches!(plan(&holdings, &policy(0, 0), at(9_000)), Err(Refused::NothingGood { .. })));
        // Beside good base backups the bad copies stay all the same, and a plan that takes one thing of a good copy is refused.
        let mut both = with_copies(&[0, 24]).with_backup(0, 1, 3, 4, None).with_segments(1, 3, 9);
        let good = plan(&both, &policy(0, 1), at(9_000)).unwrap();
        assert_eq!((good.dumps.len(), good.backups.len()), (1, 1));
        let mut worse = good.clone();
        let key = both.key(Item::Dump(id(24), DumpItem::Manifest));
        let object = Object { key, bytes: 1, written: at(0) };
        worse.drop.push(super::super::Dropped { object, why: Go::Manifest });
        assert!(matches!(super::super::check(&both, &worse), Err(Refused::Loses { .. })));
        break_it(&mut both, 0);
        break_it(&mut both, 24);
        assert_eq!(kept(&both, &policy(0, 0), 9_000), [id(0), id(24)]);
    }

    #[test]
    fn what_is_not_finished_goes_only_when_a_later_one_is_and_it_is_old() {
        let mut holdings = with_copies(&[0, 48]);
        for hours in [24, 72] {
            let chunk = DumpItem::Chunk { stream: DumpStream::Globals, number: 0 };
            let object = Object { key: holdings.key(Item::Dump(id(hours), chunk)), bytes: 1, written: at(0) };
            holdings.dumps.unfinished.insert(id(hours), vec![object]);
        }
        let at_all = policy(1_000, 1);
        let unfinished = |hours| {
            let plan = plan(&holdings, &at_all, at(hours)).unwrap();
            plan.drop.iter().filter(|dropped| dropped.why == Go::Unfinished).count()
        };
        assert_eq!((unfinished(24 + 47), unfinished(24 + 49), unfinished(9_000)), (0, 1, 1));
    }

    proptest! {
        /// Whatever there is: the newest usable one stays, so do the newest so many, and all usable ones of the window.
        #[test]
        fn what_is_promised_stays(
            hours in proptest::collection::btree_set(0_i64..400, 1..14),
            bad in proptest::collection::vec(any::<bool>(), 14),
            days in 0_u64..20,
            count in 0_u32..5,
            now in 0_i64..600,
        ) {
            let hours: Vec<i64> = hours.into_iter().collect();
            let mut holdings = with_copies(&hours);
            for (hour, bad) in hours.iter().zip(&bad) {
                if *bad {
                    break_it(&mut holdings, *hour);
                }
            }
            let good: Vec<i64> = hours.iter().zip(&bad).filter(|(_, bad)| !**bad).map(|(hour, _)| *hour).collect();
            let planned = plan(&holdings, &policy(days, count), at(now));
            prop_assert_eq!(planned.is_err(), good.is_empty());
            if let Ok(planned) = planned {
                let newest = good.iter().rev().take(count.max(1) as usize);
                let window = good.iter().filter(|hour| **hour + 1 >= now - days as i64 * 24);
                for hour in newest.chain(window) {
                    prop_assert!(planned.dumps.contains_key(&id(*hour)), "{} of {:?}", hour, good);
                }
            }
        }
    }
}
