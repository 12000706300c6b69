//! An expiry beside the backup of a real server that builds on what the expiry means to delete: the backup fails, or all that
//! it rests on stays.

use super::chain::{versions, whole, world};
use super::rules::{DAY, expired, ten_days_on};
use super::world::World;
use crate::support::faulty::{Call, Faults, Faulty, What};
use async_trait::async_trait;
use jiff::Timestamp;
use mainstay::backup::catalog::expire::{Settings, expire};
use mainstay::backup::catalog::retention::Policy;
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::repository::{BackupId, Cluster, Item, Key, RepositoryError};
use mainstay::backup::restore::{Target, Wish};
use mainstay::backup::seal::{Checker, Sealer};
use mainstay::backup::take::{self, TakeError, Taken};
use std::sync::Arc;
use std::time::Duration;

/// Two whole backups with rows in between; of the older one only what rests on it keeps it.
async fn two(version: u32) -> (World, Taken, Taken) {
    let world = world(version).await;
    for sql in
        ["CREATE TABLE t (i int)", "CREATE TABLE large AS SELECT a, repeat('x', 200) b FROM generate_series(1, 9000) a"]
    {
        world.server.sql(sql).await;
    }
    world.rows_to(10).await;
    let old = whole(&world).await;
    world.rows_to(20).await;
    let new = whole(&world).await;
    world.rows_to(30).await;
    world.ship().await;
    (world, old, new)
}

fn on(world: &World, parent: &Taken) -> take::Wish {
    let checker = Checker::new(vec![world.keys.signing.public()]);
    let (manifest, server_manifest) = (parent.manifest.clone(), parent.server_manifest.clone());
    take::Wish::Difference(Box::new(take::Parent { manifest, server_manifest, checker }))
}

async fn kept(world: &World) -> Vec<BackupId> {
    world.holdings().await.backups.keys().cloned().collect()
}

/// Each of them, restored with all of the log after it.
async fn all_open(world: &World, backups: &[&Taken], rows: u32) {
    for taken in backups {
        let wish = Wish { backup: Some(taken.manifest.backup.clone()), ..Wish::new(Target::Latest) };
        let plan = world.try_plan(wish).await.unwrap();
        let restored = world.restore(&plan, &world.options()).await.unwrap_or_else(|error| panic!("{error}\n{plan}"));
        assert_eq!(restored.rows().await, rows, "{}", taken.manifest.backup);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_difference_of_a_real_server_to_what_is_marked_meanwhile_fails_and_nothing_kept_is_lost() {
    for version in versions() {
        let (world, old, new) = two(version).await;
        let late = ten_days_on(&world, 0).await;
        // The server has sent the difference when the expiry marks what it is the difference to.
        let marks = async { assert_eq!(expired(&world, late, false).await.unwrap().deleted.objects, 0) };
        let taken = world.take_into(world.repository.clone(), on(&world, &old), |_| {}, marks).await;
        let error = taken.expect_err("it rests on what is to go");
        assert!(
            matches!(&error, TakeError::Parent { parent, .. } if *parent == old.manifest.backup),
            "PostgreSQL {version}: {error}"
        );
        assert_eq!(kept(&world).await, [old.manifest.backup.clone(), new.manifest.backup.clone()]);
        // Begun now it is whole, and says why.
        let next = world.take(on(&world, &old), |_| {}).await;
        assert!(next.manifest.whole_because.as_ref().is_some_and(|why| why.contains("marked")), "{:?}", next.manifest);
        // What was marked goes, with what the failed one left; all else opens.
        let late = ten_days_on(&world, 1).await;
        let mut deleted = 0;
        for times in 1..=3 {
            deleted += expired(&world, late + times * DAY, false).await.unwrap().deleted.objects;
        }
        assert!(deleted > 3, "{deleted}");
        assert_eq!(kept(&world).await, std::slice::from_ref(&next.manifest.backup));
        all_open(&world, &[&next], 30).await;
    }
}

/// Has an expiry mark what is not needed, right before a backup's manifest reaches the place.
struct MarksBeforeManifest {
    repository: Arc<Folder>,
    checker: Checker,
    sealer: Sealer,
    cluster: Cluster,
    now: Timestamp,
}

#[async_trait]
impl Faults for MarksBeforeManifest {
    async fn before(&self, call: &Call<'_>) -> Result<(), RepositoryError> {
        if call.what == What::Put && matches!(call.key, Some(Key::Of(_, Item::Manifest(_)))) {
            let policy = Policy { window: Duration::ZERO, backups: 1 };
            let settings = Settings { policy, grace: Duration::ZERO, dry_run: false, now: self.now };
            let report = expire(&*self.repository, &self.checker, &self.sealer, &self.cluster.source, settings).await;
            assert_eq!(report.unwrap().deleted.objects, 0);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_mark_between_the_last_look_of_a_real_difference_and_its_manifest_takes_nothing_from_it() {
    for version in versions() {
        let (world, old, new) = two(version).await;
        let late = ten_days_on(&world, 0).await;
        let marks = MarksBeforeManifest {
            repository: world.repository.clone(),
            checker: Checker::new(vec![world.keys.signing.public()]),
            sealer: world.sealer.clone(),
            cluster: world.cluster.clone(),
            now: late,
        };
        let place = Faulty::over(world.repository.clone(), marks);
        let taken = world.take_into(place, on(&world, &old), |_| {}, std::future::ready(())).await.unwrap();
        assert_eq!(taken.manifest.parent.as_ref(), Some(&old.manifest.backup), "{:?}", taken.manifest.whole_because);
        world.rows_to(40).await;
        world.ship().await;
        // What it rests on was marked, and its time is over: it is needed again.
        let late = ten_days_on(&world, 1).await;
        let mut rescued = Vec::new();
        for times in 1..=3 {
            let report = expired(&world, late + times * DAY, false).await.unwrap();
            rescued.extend(report.clusters.into_iter().flat_map(|cluster| cluster.rescued));
        }
        let manifest = world.key(Item::Manifest(old.manifest.backup.clone())).to_string();
        assert!(rescued.contains(&manifest), "PostgreSQL {version}: {rescued:?}");
        let there = kept(&world).await;
        assert!(there.contains(&old.manifest.backup) && there.contains(&taken.manifest.backup), "{there:?}, {new:?}");
        all_open(&world, &[&old, &taken], 40).await;
    }
}
