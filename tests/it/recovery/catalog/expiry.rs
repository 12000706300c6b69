//! Two phases, races, kills, locks, listings that lie.

use super::world::{DAY, HOUR, World};
use mainstay::backup::catalog::expire::ExpireError;
use mainstay::backup::catalog::index::CatalogueError;
use mainstay::backup::catalog::manifest::Mark;
use mainstay::backup::catalog::retention::{Go, Policy, Refused};
use mainstay::backup::repository::{BackupId, Item};
use std::collections::HashSet;
use std::time::Duration;

const POLICY: Policy = Policy { window: Duration::from_secs(2 * 86_400), backups: 1 };

/// Ten days of a backup a day; the third is a difference to the second. The window begins from the eighth.
async fn ten_days() -> World {
    let mut world = World::new();
    world.pass(HOUR);
    world.write(100_000).await;
    for day in 0..10 {
        let parent = (day == 2).then(|| world.taken[1].id.clone());
        world.take(parent, false).await.unwrap();
        world.write(100_000).await;
        world.pass(DAY);
    }
    world.frontier().await;
    world
}

async fn there(world: &World) -> Vec<BackupId> {
    world.catalogue().await.clusters[&world.lab.cluster.system].backups.keys().cloned().collect()
}

fn ids(world: &World, which: std::ops::RangeInclusive<usize>) -> Vec<BackupId> {
    world.taken[which].iter().map(|taken| taken.id.clone()).collect()
}

#[tokio::test]
async fn what_is_unneeded_is_marked_first_and_goes_after_the_grace() {
    let mut world = ten_days().await;
    let all = world.lab.names().await;
    let now = |world: &World| World::at(world.now);
    let plan = world.lab.expire(POLICY, now(&world), true).await.unwrap();
    assert_eq!(world.lab.names().await, all, "a dry run writes nothing");
    assert!(plan.clusters[0].fresh.objects > 20 && plan.clusters[0].due.objects == 0);
    let first = world.lab.expire(POLICY, now(&world), false).await.unwrap();
    assert_eq!((first.deleted.objects, first.clusters[0].fresh), (0, plan.clusters[0].fresh));
    assert_eq!(world.lab.names().await.len(), all.len() + 1, "one mark");
    // Just before the grace is over nothing goes, and no second mark names the same.
    world.pass(DAY - HOUR);
    let early = world.lab.expire(POLICY, now(&world), false).await.unwrap();
    assert_eq!((early.deleted.objects, early.clusters[0].fresh.objects), (0, 0));
    world.pass(HOUR);
    let late = world.lab.expire(POLICY, now(&world), false).await.unwrap();
    assert_eq!((late.deleted, late.locked.len(), late.absent), (plan.clusters[0].fresh, 0, 0));
    assert_eq!(there(&world).await, ids(&world, 7..=9));
    world.whole(POLICY, &mut HashSet::new()).await;
    // Nothing is left of the old ones, not even a mark but the newest.
    let names = world.lab.names().await;
    assert!(ids(&world, 0..=6).iter().all(|id| names.iter().all(|name| !name.contains(&id.to_string()))));
    assert_eq!(names.iter().filter(|name| name.contains("/mark/")).count(), 1);
}

#[tokio::test]
async fn r17_a_backup_that_adopts_what_is_marked_fails_and_one_that_was_faster_is_kept() {
    // It began before the mark, and looks again before its manifest: it fails.
    let mut world = ten_days().await;
    let old = world.taken[3].id.clone();
    let begun = world.begin(Some(old.clone())).await.unwrap();
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!(world.finish(begun).await, None);
    // It comes after the mark: it does not even begin.
    assert_eq!(world.take(Some(old), false).await, None);

    // Its manifest was there before the mark, though the expiry had begun: what it adopted is needed, and is not marked.
    let mut world = ten_days().await;
    let old = world.taken[3].id.clone();
    let begun = world.begin(Some(old.clone())).await.unwrap();
    let plan = world.lab.expire(POLICY, World::at(world.now), true).await.unwrap();
    assert!(!plan.clusters[0].plan.as_ref().unwrap().backups.contains_key(&old));
    let new = world.finish(begun).await.unwrap();
    for _ in 0..3 {
        world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
        world.pass(DAY + HOUR);
    }
    let there = there(&world).await;
    assert!(there.contains(&old) && there.contains(&new) && there.len() < 10);
    world.whole(POLICY, &mut HashSet::new()).await;
}

#[tokio::test]
async fn r17_a_mark_that_lands_between_the_last_look_and_the_manifest_takes_nothing() {
    let mut world = ten_days().await;
    let old = world.taken[3].id.clone();
    let begun = world.begin(Some(old.clone())).await.unwrap();
    // The look is done, the expiry marks, the manifest is written: nobody saw the other.
    let id = begun.backup.clone();
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    let key = world.lab.key(Item::Manifest(id.clone()));
    world.lab.put(&key, &serde_json::to_vec(&begun).unwrap(), &[]).await;
    world.pass(DAY + HOUR);
    let report = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert!(report.deleted.objects > 0);
    assert!(report.clusters[0].rescued.contains(&world.lab.key(Item::Manifest(old.clone())).to_string()));
    let there = there(&world).await;
    assert!(there.contains(&old) && there.contains(&id));
    // It is not marked any more: what is unneeded again waits anew.
    let catalogue = world.catalogue().await;
    let marks = &catalogue.clusters[&world.lab.cluster.system].marks;
    assert!(marks.iter().flat_map(|marked| &marked.mark.keys).all(|name| !name.contains(&old.to_string())));
}

#[tokio::test]
async fn r18_neither_clock_alone_ends_the_grace() {
    let world = ten_days().await;
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    for (ours, place) in [(DAY * 400, HOUR), (HOUR, DAY * 400), (-DAY, DAY + HOUR), (DAY + HOUR, -DAY)] {
        let world = world.fork();
        world.lab.layer.faults().clock = World::at(world.now + place);
        let report = world.lab.expire(POLICY, World::at(world.now + ours), false).await.unwrap();
        assert_eq!(report.deleted.objects, 0, "{ours} {place}");
    }
}

#[tokio::test]
async fn r18_a_listing_that_lies_takes_nothing() {
    let mut world = ten_days().await;
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    world.pass(2 * DAY);
    let all = world.lab.names().await;
    let now = World::at(world.now);
    let hide = |world: &World, names: &[String]| world.lab.layer.faults().hidden = names.iter().cloned().collect();
    // Empty.
    hide(&world, &all);
    assert!(matches!(world.lab.expire(POLICY, now, false).await, Err(ExpireError::Empty { .. })));
    // Without a manifest that is there.
    let manifest = world.lab.key(Item::Manifest(world.taken[8].id.clone())).to_string();
    hide(&world, std::slice::from_ref(&manifest));
    let error = world.lab.expire(POLICY, now, false).await.unwrap_err();
    assert!(matches!(error, ExpireError::Catalogue(CatalogueError::Doubtful { .. })), "{error}");
    assert!(error.to_string().contains(&manifest));
    // Without the whole folder of the newest backup, and without the end of the log: acknowledged log is missing.
    let newest = world.taken[9].id.to_string();
    let log: Vec<String> = all.iter().filter(|name| name.contains("/piece/")).cloned().collect();
    hide(&world, &log[log.len() - 3..]);
    let report = world.lab.expire(POLICY, now, false).await.unwrap();
    assert!(matches!(report.clusters[0].plan, Err(Refused::Hole { .. })), "{:?}", report.clusters[0].plan);
    // Without some backups: those that are left are kept all the more.
    let some: Vec<String> = all.iter().filter(|name| name.contains(&newest)).cloned().collect();
    hide(&world, &some);
    let _ = world.lab.expire(POLICY, now, false).await;
    hide(&world, &[]);
    let left = world.lab.names().await;
    assert!(ids(&world, 7..=9).iter().all(|id| left.contains(&world.lab.key(Item::Manifest(id.clone())).to_string())));
    world.whole(POLICY, &mut HashSet::new()).await;
}

#[tokio::test]
async fn r18_what_is_locked_is_told_and_stays_whole() {
    let mut world = ten_days().await;
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    world.pass(2 * DAY);
    // The difference is locked: so it, what it is the difference to, and their log stay.
    let locked = world.lab.key(Item::Manifest(world.taken[2].id.clone())).to_string();
    world.lab.layer.faults().locked.insert(locked.clone());
    let report = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!(report.locked, std::slice::from_ref(&locked));
    assert!(report.deleted.objects > 0);
    let mut left = ids(&world, 1..=2);
    left.extend(ids(&world, 7..=9));
    assert_eq!(there(&world).await, left);
    world.whole(POLICY, &mut HashSet::new()).await;
    // When the lock is over, they go.
    world.lab.layer.faults().locked.clear();
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!(there(&world).await, ids(&world, 7..=9));
}

#[tokio::test]
async fn r18_what_was_needed_again_waits_anew_when_it_no_longer_is() {
    let mut world = ten_days().await;
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    // Somebody wants a month: all that was marked is needed again.
    let month = Policy { window: Duration::from_secs(30 * 86_400), ..POLICY };
    world.pass(DAY + HOUR);
    let rescued = world.lab.expire(month, World::at(world.now), false).await.unwrap().clusters.remove(0).rescued;
    assert!(rescued.len() > 20 && there(&world).await.len() == 10, "{rescued:?}");
    let catalogue = world.catalogue().await;
    let marks = &catalogue.clusters[&world.lab.cluster.system].marks;
    // What whole segments stand for is gone. The number stays taken.
    assert_eq!(marks.iter().map(|marked| (marked.number, marked.mark.keys.len())).collect::<Vec<_>>(), [(2, 0)]);
    // They want two days after all: nothing goes before a grace of its own.
    let again = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert!(again.deleted.objects == 0 && again.clusters[0].fresh.objects > 20, "{again:?}");
    assert_eq!(there(&world).await.len(), 10);
    world.pass(DAY + HOUR);
    let late = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!(late.deleted, again.clusters[0].fresh);
    assert_eq!(there(&world).await, ids(&world, 7..=9));
    world.whole(POLICY, &mut HashSet::new()).await;
}

#[tokio::test]
async fn r18_a_mark_of_a_time_to_come_neither_deletes_nor_holds_anything_back() {
    let mut world = ten_days().await;
    // Somebody ran an expiry on a machine whose clock was a year ahead.
    let ahead = world.lab.expire(POLICY, World::at(world.now + 365 * DAY), false).await.unwrap();
    let marked = ahead.clusters[0].fresh.objects;
    assert!(marked > 20 && ahead.deleted.objects == 0, "{ahead:?}");
    // For the right clock nothing of it waits yet: it is marked once more, and waits from now on.
    let first = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    let waits = &first.clusters[0];
    assert_eq!((first.deleted.objects, waits.due.objects, waits.waiting.objects), (0, 0, 0));
    assert!(waits.fresh.objects > 20, "{waits:?}");
    world.pass(DAY - HOUR);
    let early = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!((early.deleted.objects, early.clusters[0].fresh.objects), (0, 0));
    assert_eq!(there(&world).await.len(), 10);
    world.pass(HOUR);
    let late = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!(late.deleted, waits.fresh);
    assert_eq!(there(&world).await, ids(&world, 7..=9));
    world.whole(POLICY, &mut HashSet::new()).await;
}

#[tokio::test]
async fn r18_log_stays_as_long_as_a_backup_that_reads_it_is_seen() {
    let mut world = ten_days().await;
    // An earlier run, killed while it put its marks in order, left one that names log alone.
    let plan = world.lab.expire(POLICY, World::at(world.now), true).await.unwrap();
    let plan = plan.clusters[0].plan.as_ref().unwrap();
    let log = plan.drop.iter().filter(|dropped| dropped.why == Go::Log);
    let keys: Vec<String> = log.map(|dropped| dropped.object.key.to_string()).collect();
    assert!(keys.len() > 5, "{keys:?}");
    let mark = Mark { version: 1, at: World::at(world.now), keys: keys.clone() };
    world.lab.put(&world.lab.key(Item::Mark(1)), &serde_json::to_vec(&mark).unwrap(), &[]).await;
    world.pass(DAY + HOUR);
    // The log has waited long enough; the backups that read it have not.
    let early = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!(early.clusters[0].due.objects, keys.len() as u64);
    assert_eq!((early.deleted.objects, there(&world).await.len()), (0, 10));
    world.whole(POLICY, &mut HashSet::new()).await;
    world.pass(DAY + HOUR);
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!(there(&world).await, ids(&world, 7..=9));
    let left = world.lab.names().await;
    assert!(keys.iter().all(|key| !left.contains(key)));
    world.whole(POLICY, &mut HashSet::new()).await;
}

#[tokio::test]
async fn an_expiry_killed_at_any_call_leaves_everything_kept_whole() {
    let mut opened = HashSet::new();
    let mut world = ten_days().await;
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    world.pass(2 * DAY);
    let goes: Vec<String> = ids(&world, 0..=6).iter().map(ToString::to_string).collect();
    // Each call in turn: it is carried out and the answer is lost, or it is not. Every third here, all of them in a long run.
    let step = if std::env::var_os("MAINSTAY_SOAK").is_some() { 1 } else { 3 };
    let (mut dying, mut killed) = (1, 0);
    loop {
        let world = world.fork();
        world.lab.layer.faults().dies_at = Some((dying, (dying / step) % 2 == 0));
        let run = world.lab.expire(POLICY, World::at(world.now), false).await;
        world.lab.layer.faults().dies_at = None;
        world.whole(POLICY, &mut opened).await;
        if let Err(error) = &run {
            assert!(error.to_string().contains("killed"), "{error}");
            killed += 1;
            // Half-deleted backups are seen for what they are: the next run takes the rest.
            world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
            world.whole(POLICY, &mut opened).await;
        }
        assert_eq!(there(&world).await, ids(&world, 7..=9), "killed at {dying}");
        let names = world.lab.names().await;
        assert!(goes.iter().all(|id| names.iter().all(|name| !name.contains(id))), "killed at {dying}: {names:?}");
        if run.is_ok() {
            break;
        }
        dying += step;
    }
    assert!(dying > 100 && killed > 30, "{dying} {killed}");
    println!("recovery: an expiry cut off at {killed} of its {dying} calls; everything kept is whole");
}
