//! The same on a real S3 server behind a proxy that loses answers and refuses.

use super::checks::check;
use super::lab::Lab;
use super::world::{DAY, HOUR, World};
use crate::support::store::{LOCKED, S3Server};
use crate::support::store_proxy::{Fault, Rule, StoreProxy};
use mainstay::backup::catalog::expire::ExpireError;
use mainstay::backup::catalog::index::CatalogueError;
use mainstay::backup::catalog::retention::Policy;
use mainstay::backup::repository::s3::{S3, S3Settings};
use mainstay::backup::repository::{BackupId, Item, Repository, RepositoryError};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

const POLICY: Policy = Policy { window: Duration::from_secs(86_400), backups: 1 };

async fn world(settings: S3Settings) -> World {
    let mut world = World::in_lab(Lab::over(Arc::new(S3::open(settings).await.unwrap())));
    world.pass(HOUR);
    world.write(50_000).await;
    for _ in 0..6 {
        world.take(None, false).await.unwrap();
        world.write(50_000).await;
        world.pass(DAY);
    }
    world.frontier().await;
    world
}

async fn there(world: &World) -> Vec<BackupId> {
    world.catalogue().await.clusters[&world.lab.cluster.system].backups.keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r18_on_a_store_that_loses_answers_and_refuses_nothing_needed_goes() {
    let server = S3Server::shared();
    let proxy = StoreProxy::start(&server.address());
    let settings = S3Settings { endpoint: Some(proxy.endpoint()), trying: Duration::from_secs(3), ..server.settings() };
    let mut world = world(settings).await;
    let ids: Vec<BackupId> = world.taken.iter().map(|taken| taken.id.clone()).collect();
    // Answers are lost and requests refused now and then, through both phases.
    proxy.rule(Rule::new(Fault::LoseAnswer).method("DELETE").every(5));
    proxy.rule(Rule::new(Fault::LoseAnswer).method("PUT").key("/mark/").times(1));
    proxy.rule(Rule::new(Fault::Answer(503)).every(9));
    let marked = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    assert_eq!(marked.deleted.objects, 0);
    world.pass(DAY);
    // A listing that fails is no empty one, and one that is refused neither.
    for status in [500, 403] {
        proxy.rule(Rule::new(Fault::Answer(status)).method("GET").query("list-type=2"));
        let before = proxy.count("DELETE", "");
        let error = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap_err();
        let place = matches!(
            &error,
            ExpireError::Catalogue(CatalogueError::Repository(
                RepositoryError::Unreachable { .. } | RepositoryError::Refused { .. }
            ))
        );
        assert!(place, "{status}: {error}");
        assert_eq!(proxy.count("DELETE", ""), before);
        proxy.calm();
    }
    proxy.rule(Rule::new(Fault::LoseAnswer).method("DELETE").every(5));
    proxy.rule(Rule::new(Fault::Answer(503)).every(9));
    let report = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    let due = report.clusters[0].due.objects;
    assert!(due > 15);
    assert_eq!((report.deleted.objects + report.absent, report.locked.len()), (due, 0));
    proxy.calm();
    assert_eq!(there(&world).await, ids[4..]);
    world.whole(POLICY, &mut HashSet::new()).await;
    // The check of what is left, and one while the store is down for one object.
    proxy.rule(Rule::new(Fault::Answer(503)).method("GET").key(format!("{}/base/000001", ids[5])));
    let down = check(&world, None, 0).await.unwrap();
    assert_eq!((down.exit_code(), down.findings.len()), (3, 0));
    proxy.calm();
    let good = check(&world, Some(&world.lab.opener), 0).await.unwrap();
    assert_eq!((good.exit_code(), good.proofs), (0, 2), "{:?}", good.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r18_what_a_bucket_locks_is_reported_and_stays_whole() {
    let server = S3Server::shared();
    // Long enough to outlast the test, short enough for the server's disk.
    let settings =
        S3Settings { bucket: LOCKED.into(), object_lock: Some(Duration::from_secs(600)), ..server.settings() };
    let mut world = world(settings).await;
    world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    world.pass(DAY);
    let report = world.lab.expire(POLICY, World::at(world.now), false).await.unwrap();
    let manifests = world.taken[..4].iter().map(|taken| world.lab.key(Item::Manifest(taken.id.clone())).to_string());
    let manifests: HashSet<String> = manifests.collect();
    assert!(report.locked.iter().cloned().collect::<HashSet<_>>().is_superset(&manifests), "{:?}", report.locked);
    assert_eq!(there(&world).await.len(), 6);
    world.whole(Policy { window: Duration::from_secs(86_400 * 100), backups: 6 }, &mut HashSet::new()).await;
    // The place itself says so too.
    let one = world.lab.key(Item::Manifest(world.taken[0].id.clone()));
    assert!(world.lab.layer.get(&one).await.is_ok());
}
