//! What stays and what goes, by table and by chance.

use super::super::holdings::Missing;
use super::super::holdings::make::{MIB, at, empty, id, object};
use super::super::index::BadKind;
use super::super::manifest::ProofKind;
use super::*;
use crate::backup::repository::{Archive, Item};
use proptest::prelude::*;

const DAY: i64 = 24;

fn policy(days: u64, backups: u32) -> Policy {
    Policy { window: Duration::from_secs(days * 86_400), backups }
}

/// A backup a day, whole log.
fn daily(days: i64) -> Holdings {
    let mut holdings = empty().with_segments(1, 0, days as u64 * 10 + 5);
    for day in 0..days {
        holdings = holdings.with_backup(day * DAY, 1, day as u64 * 10, day as u64 * 10 + 1, None);
    }
    holdings.with_frontier(1, 1, (days as u64 * 10 + 5) * MIB, days * DAY)
}

fn kept(holdings: &Holdings, policy: &Policy, hours: i64) -> Vec<BackupId> {
    plan(holdings, policy, at(hours)).unwrap().backups.into_keys().collect()
}

#[test]
fn the_window_begins_from_the_backup_before_it() {
    // 30 days old; the window is 7 days and a day to spare: the start is the one that had ended 8 days ago.
    let holdings = daily(30);
    let plan = plan(&holdings, &policy(7, 1), at(30 * DAY)).unwrap();
    assert_eq!(plan.backups.keys().next(), Some(&id(21 * DAY)));
    assert_eq!(plan.backups.len(), 9);
    assert!(plan.backups[&id(21 * DAY)].contains(&Why::WindowStart(Timeline(1))));
    assert_eq!((plan.floor, &plan.floor_of), (Lsn(210 * MIB), &id(21 * DAY)));
    let log = plan.drop.iter().filter(|dropped| dropped.why == Go::Log).count();
    assert_eq!((log, plan.drop.len()), (210, 210 + 21));
    // Manifests go first, newest first.
    assert_eq!(plan.drop[0].object.key, holdings.key(Item::Manifest(id(20 * DAY))));
    assert_eq!(plan.drop[21].object.key, holdings.log_key(&holdings.log[&Timeline(1)][0]));
    // Every object of the listing is in one of both.
    let kept: u64 = plan.kept.values().map(|sum| sum.objects).sum();
    assert_eq!(kept + plan.dropped().objects, 305 + 30 + 1);
}

#[test]
fn so_many_stay_whatever_their_age() {
    let holdings = daily(3);
    assert_eq!(kept(&holdings, &policy(1, 2), 400 * DAY), [id(DAY), id(2 * DAY)]);
}

#[test]
fn r16_everything_kept_has_its_chain_and_its_log() {
    // A difference of today to one of long ago.
    let holdings = daily(30).with_backup(30 * DAY, 1, 301, 302, Some(2 * DAY));
    let plan = plan(&holdings, &policy(1, 1), at(31 * DAY)).unwrap();
    assert_eq!(plan.backups[&id(2 * DAY)], BTreeSet::from([Why::ChainOf(id(30 * DAY))]));
    assert_eq!(plan.floor, Lsn(20 * MIB));
    // A plan that would take any one thing from what stays is refused, whatever it is.
    let mut objects: Vec<Object> = vec![holdings.backups[&id(2 * DAY)].object.clone()];
    let log = holdings.log[&Timeline(1)].iter().filter(|segment| segment.last > plan.floor);
    objects.extend(log.map(|segment| object(&holdings, segment.item(holdings.segment_size.unwrap()))));
    assert!(objects.len() > 200);
    for object in objects {
        let mut worse = plan.clone();
        worse.drop.push(Dropped { object: object.clone(), why: Go::Log });
        assert!(matches!(check(&holdings, &worse), Err(Refused::Loses { .. })), "{}", object.key);
    }
    let holdings = holdings.with_history(2, &[(1, 300 * MIB)]);
    let mut worse = plan;
    worse.drop.push(Dropped { object: holdings.histories[&Timeline(2)].object.clone(), why: Go::Log });
    assert!(matches!(check(&holdings, &worse), Err(Refused::Loses { .. })));
}

#[test]
fn r16_the_line_that_was_left_keeps_the_start_of_the_newest_one() {
    // Timeline 2 was born at 55 MiB. The old server went on and was even backed up, later than anything before the window.
    let holdings =
        empty().with_backup(0, 1, 50, 51, None).with_segments(1, 50, 90).with_backup(2 * DAY, 1, 60, 61, None);
    let holdings =
        holdings.with_history(2, &[(1, 55 * MIB)]).with_segments(2, 55, 99).with_backup(20 * DAY, 2, 95, 96, None);
    let holdings = holdings.with_frontier(1, 2, 99 * MIB, 21 * DAY);
    let plan = plan(&holdings, &policy(7, 1), at(21 * DAY)).unwrap();
    // The window of timeline 2 begins from the first backup. The second one is of a branch that is dead for longer.
    assert_eq!(plan.backups.keys().collect::<Vec<_>>(), [&id(0), &id(20 * DAY)]);
    assert_eq!(plan.floor, Lsn(50 * MIB));
    // When nobody can say where timeline 2 came from, nothing that it may need goes.
    let mut unknown = holdings.clone();
    unknown.histories.get_mut(&Timeline(2)).unwrap().ancestors = None;
    assert_eq!(kept(&unknown, &policy(7, 1), 21 * DAY).len(), 3);
}

#[test]
fn r18_the_last_good_backup_never_goes() {
    let holdings = daily(1);
    assert_eq!(kept(&holdings, &policy(0, 0), 4_000 * DAY), [id(0)]);
    // The newer ones were found bad, or lack something, or their parent is gone.
    let mut holdings = daily(4).with_proof(3 * DAY, false, ProofKind::Opened);
    holdings.backups.get_mut(&id(2 * DAY)).unwrap().missing.push(Missing {
        name: "x".into(),
        kind: BadKind::Gone,
        why: "it is not there".into(),
    });
    holdings.backups.get_mut(&id(DAY)).unwrap().manifest.parent = Some(id(-5));
    assert!(kept(&holdings, &policy(0, 0), 4_000 * DAY).contains(&id(0)));
    // There is none: nothing goes.
    let none = daily(3).with_proof(0, false, ProofKind::Opened).with_proof(DAY, false, ProofKind::Opened);
    let none = none.with_proof(2 * DAY, false, ProofKind::Stored);
    assert!(matches!(plan(&none, &policy(0, 0), at(9 * DAY)), Err(Refused::NothingGood { .. })));
    assert!(matches!(plan(&empty().with_segments(1, 1, 5), &policy(0, 0), at(0)), Err(Refused::NothingGood { .. })));
}

#[test]
fn r18_a_doubtful_listing_takes_nothing() {
    let mut holed = daily(30);
    holed.log.get_mut(&Timeline(1)).unwrap().remove(302);
    assert!(matches!(plan(&holed, &policy(7, 1), at(30 * DAY)), Err(Refused::Hole { .. })));
    // On record as lost, it is no doubt.
    assert!(plan(&holed.clone().with_gap(1, 302, 303), &policy(7, 1), at(30 * DAY)).is_ok());
    // The end of the log is not listed.
    let mut cut = daily(30);
    cut.log.get_mut(&Timeline(1)).unwrap().truncate(303);
    assert!(matches!(plan(&cut, &policy(7, 1), at(30 * DAY)), Err(Refused::Hole { .. })));
    let mut doubt = daily(30);
    doubt.frontier_doubt = Some("forged".into());
    assert!(matches!(plan(&doubt, &policy(7, 1), at(30 * DAY)), Err(Refused::Doubt(_))));
    // A manifest that is not believed keeps its objects, and the log from the backup before it on.
    let mut forged = daily(30);
    let backup = forged.backups.remove(&id(10 * DAY)).unwrap();
    forged.doubtful.insert(id(10 * DAY), vec![backup.object.clone()]);
    let plan = plan(&forged, &policy(7, 1), at(30 * DAY)).unwrap();
    assert_eq!(plan.floor, Lsn(90 * MIB));
    assert!(plan.drop.iter().all(|dropped| dropped.object != backup.object));
    // And what it may be the difference to: the one before it, with the chain of that one.
    assert_eq!(plan.backups[&id(9 * DAY)], BTreeSet::from([Why::MayBeUnder(id(10 * DAY))]));
    assert!(!plan.backups.contains_key(&id(8 * DAY)));
    forged.backups.get_mut(&id(9 * DAY)).unwrap().manifest.parent = Some(id(8 * DAY));
    let plan = super::plan(&forged, &policy(7, 1), at(30 * DAY)).unwrap();
    assert!(plan.backups[&id(8 * DAY)].contains(&Why::MayBeUnder(id(10 * DAY))));
    assert!(!plan.backups.contains_key(&id(7 * DAY)));
}

#[test]
fn r19_a_proven_backup_outranks_a_newer_unproven_one() {
    let holdings = daily(30).with_proof(5 * DAY, true, ProofKind::Started);
    let kept = |holdings: &Holdings, backups| plan(holdings, &policy(7, backups), at(30 * DAY)).unwrap().backups;
    let first = kept(&holdings, 1);
    assert!(first[&id(5 * DAY)].is_superset(&BTreeSet::from([
        Why::LastProven,
        Why::NewestProven(1),
        Why::ProvenStart(Timeline(1))
    ])));
    // The newest stays too.
    assert!(first[&id(29 * DAY)].contains(&Why::LastGood));
    // A newer one that is proven takes its place.
    let newer = holdings.clone().with_proof(15 * DAY, true, ProofKind::Stored);
    assert!(!kept(&newer, 1).contains_key(&id(5 * DAY)));
    assert!(kept(&newer, 2).contains_key(&id(5 * DAY)));
    // One that was proven and found bad since is not proven.
    let worse = newer.with_proof(15 * DAY, false, ProofKind::Stored);
    assert!(kept(&worse, 1).contains_key(&id(5 * DAY)));
}

#[test]
fn unfinished_backups_go_when_a_later_one_is_done_and_they_are_old() {
    let mut holdings = daily(10);
    for hours in [3 * DAY + 5, 9 * DAY + 5] {
        let chunk = Item::Chunk { backup: id(hours), archive: Archive::Base, number: 0 };
        holdings.unfinished.insert(id(hours), vec![object(&holdings, chunk)]);
    }
    let gone = |hours| {
        let drop = plan(&holdings, &policy(4_000, 1), at(hours)).unwrap().drop;
        drop.iter().map(|dropped| dropped.object.key.clone()).collect::<Vec<_>>()
    };
    let old = holdings.key(Item::Chunk { backup: id(3 * DAY + 5), archive: Archive::Base, number: 0 });
    assert_eq!(gone(10 * DAY), std::slice::from_ref(&old));
    // However late: none was finished after the other one.
    assert_eq!(gone(400 * DAY), [old]);
    assert!(gone(5 * DAY).is_empty());
}

#[test]
fn pieces_that_a_segment_stands_for_and_old_frontiers_go() {
    let mut holdings = daily(2).with_piece(1, 3 * MIB + 5, 3 * MIB + 9).with_piece(1, 24 * MIB + 5, 25 * MIB + 9);
    holdings = holdings.with_piece(1, 25 * MIB, 25 * MIB + 9).with_frontier(70, 1, 25 * MIB + 9, 50);
    holdings = holdings.with_frontier(5_000, 1, 25 * MIB + 9, 50);
    let plan = plan(&holdings, &policy(300, 1), at(2 * DAY)).unwrap();
    let gone: Vec<_> = plan.drop.iter().map(|dropped| (dropped.why, dropped.object.key.clone())).collect();
    let piece = Item::Piece { timeline: Timeline(1), first: Lsn(3 * MIB + 5), last: Lsn(3 * MIB + 9) };
    let numbers = [1, 70].map(|number| (Go::Frontier, holdings.key(Item::Frontier(number))));
    assert_eq!(gone, [(Go::Folded, holdings.key(piece)), numbers[0].clone(), numbers[1].clone()]);
}

proptest! {
    /// Whatever the clocks say, within a day: every instant of the promised window that could be restored still can.
    #[test]
    fn r18_clock_skew_of_a_day_changes_nothing(
        gaps in proptest::collection::vec(3_i64..80, 4..30),
        days in 1_u64..12,
        backups in 0_u32..4,
        ours in -24_i64..=24,
        writer in -24_i64..=24,
        proven in proptest::collection::vec(any::<bool>(), 30),
    ) {
        let (mut holdings, mut hours, mut mib) = (empty(), 0, 0);
        let mut ended = Vec::new();
        for (gap, proven) in gaps.iter().zip(&proven) {
            (hours, mib) = (hours + gap, mib + *gap as u64);
            holdings = holdings.with_backup(hours, 1, mib, mib, None);
            ended.push(hours + 1);
            if *proven {
                holdings = holdings.with_proof(hours, true, ProofKind::Stored);
            }
        }
        holdings = holdings.with_segments(1, 0, mib + 2);
        // The frontier carries the writer's clock, the plan ours.
        let present = hours + 30;
        let holdings = holdings.with_frontier(1, 1, (mib + 2) * MIB, present + writer);
        let as_of = at(present + ours).min(at(present + writer).max(at(hours + 1)));
        let plan = plan(&holdings, &policy(days, backups), as_of).unwrap();
        // What the window promises at the true present.
        let begins = present - days as i64 * DAY;
        let start = ended.iter().copied().filter(|ended| *ended <= begins).max();
        for ended in ended.iter().filter(|ended| start.is_none_or(|start| **ended >= start)) {
            prop_assert!(plan.backups.contains_key(&id(ended - 1)));
        }
        prop_assert!(plan.backups.len() >= (backups as usize).min(gaps.len()));
        let starts = plan.backups.keys().map(|id| holdings.backups[id].manifest.start).min().unwrap();
        prop_assert!(plan.drop.iter().all(|dropped| dropped.why != Go::Log || !matches!(
            &dropped.object.key, Key::Of(_, Item::Segment(name)) if name.start(holdings.segment_size.unwrap()).unwrap() >= starts)));
    }
}
