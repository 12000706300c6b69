//! What is missing, damaged or out of reach never makes a smaller database that opens.

use super::world::{World, gone, server_at};
use crate::support::faulty::{Call, Faults, Faulty, What};
use crate::support::postgres::{Options as ServerOptions, Server};
use async_trait::async_trait;
use mainstay::backup::repository::{Item, Key, Repository, RepositoryError};
use mainstay::backup::restore::{Feeding, RestoreError, Target};
use mainstay::model::Lsn;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A backup, then eight segments with a row each.
async fn eight_segments(version: u32) -> World {
    let world = World::new(version, ServerOptions { segment_mib: Some(1), ..ServerOptions::default() }).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    world.backup().await;
    for row in 1..=8 {
        world.rows_to(row).await;
        world.server.sql("SELECT pg_switch_wal()").await;
    }
    world.ship().await;
    world
}

/// The stored files of the segments after the base, in order.
async fn stored_segments(world: &World) -> Vec<(Key, PathBuf)> {
    let plan = world.plan(Target::Latest).await;
    let parts = plan.log.segments.iter().flat_map(|segment| &segment.parts);
    parts.map(|part| (part.key.clone(), world.folder.path().join("repository").join(part.key.to_string()))).collect()
}

/// Segments are out of reach: the one of this name alone, or all from it on.
struct Cut {
    from: Key,
    only: bool,
}

impl Cut {
    fn before(world: &World, from: &Key, only: bool) -> Arc<Faulty<Cut>> {
        Faulty::over(world.repository.clone(), Cut { from: from.clone(), only })
    }
}

#[async_trait]
impl Faults for Cut {
    async fn before(&self, call: &Call<'_>) -> Result<(), RepositoryError> {
        let Call { what: What::Get, key: Some(key @ Key::Of(_, Item::Segment(_))), .. } = call else { return Ok(()) };
        let (name, from) = (key.to_string(), self.from.to_string());
        if name == from || (!self.only && name > from) {
            // As a store that is down answers, when every try within the time allowed has failed.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let (doing, detail) = (format!("read {name}"), "connection refused".into());
            return Err(RepositoryError::Unreachable { doing, detail });
        }
        Ok(())
    }
}

/// It failed, nothing runs, and the server never said that it accepts connections.
async fn never_open(
    world: &World,
    repository: Arc<dyn Repository>,
    plan: &mainstay::backup::restore::Plan,
) -> RestoreError {
    let mut options = world.options();
    // Nearly everything is replayed before the fault is met.
    options.feeding = Feeding { at_once: 1, ..options.feeding };
    let error = match world.restore_from(repository, plan, &options).await {
        Err(error) => error,
        Ok(restored) => panic!("a server opened with {} rows", restored.rows().await),
    };
    gone(&options.data, Duration::from_secs(1));
    let log = fs::read_to_string(options.data.join("mainstay-restore.log")).unwrap_or_default();
    assert!(!log.contains("ready to accept") && !log.contains("selected new timeline"), "{log}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_no_fault_in_the_log_opens_a_smaller_database() {
    for version in Server::versions() {
        let world = eight_segments(version).await;
        let plan = world.plan(Target::Latest).await;
        let segments = stored_segments(&world).await;
        // The sixth after the one that the base began in.
        let (key, path) = &segments[6];
        let good = fs::read(path).unwrap();

        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle..middle + 3].copy_from_slice(&[0xFF; 3]);
        fs::write(path, &bad).unwrap();
        let error = never_open(&world, world.repository.clone(), &plan).await;
        assert!(error.to_string().contains(&key.to_string()), "{error}");

        fs::write(path, &good[..good.len() - 100]).unwrap();
        never_open(&world, world.repository.clone(), &plan).await;

        fs::remove_file(path).unwrap();
        let error = never_open(&world, world.repository.clone(), &plan).await;
        assert!(matches!(error, RestoreError::Repository(RepositoryError::Absent { .. })), "{error}");
        // And a new plan does not even begin.
        let refused = world.try_plan(mainstay::backup::restore::Wish::new(Target::Latest)).await.unwrap_err();
        assert!(refused.to_string().contains("is missing"), "{refused}");
        fs::write(path, &good).unwrap();

        let cut = Cut::before(&world, key, false);
        // The end of the log is read first, and is out of reach too: nothing starts.
        never_open(&world, cut, &plan).await;
        let only = Cut::before(&world, key, true);
        let error = never_open(&world, only, &plan).await;
        assert!(error.to_string().contains("connection refused"), "{error}");

        let restored = world.back_to(Target::Latest).await;
        assert_eq!(restored.rows().await, 8, "PostgreSQL {version}: whole again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_a_log_that_ends_early_by_itself_does_not_open() {
    let world = eight_segments(15).await;
    let plan = world.plan(Target::Latest).await;
    // The writer itself stored nonsense: signed, of the right length, and no record goes on there. PostgreSQL takes that
    // for the end of the log and would open.
    let (key, path) = &stored_segments(&world).await[4];
    let Key::Of(_, item @ Item::Segment(_)) = key else { panic!("{key}") };
    let whole = world.opener().open(key, &world.repository.get(key).await.unwrap()).unwrap().1;
    let mut torn = whole.clone();
    torn[100..].fill(0);
    fs::remove_file(path).unwrap();
    fs::remove_file(format!("{}.seal", path.display())).unwrap();
    world.put(item.clone(), &torn).await;
    let error = never_open(&world, world.repository.clone(), &plan).await;
    assert!(error.to_string().contains("did not open"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r23_what_the_frontier_promises_must_be_there() {
    let world = eight_segments(15).await;
    let end = world.plan(Target::Latest).await.end;
    world.frontier(end.timeline, Lsn(end.lsn.0 + 8)).await;
    let refused = world.try_plan(mainstay::backup::restore::Wish::new(Target::Latest)).await.unwrap_err().to_string();
    assert!(refused.contains("is missing"), "{refused}");
    assert!(server_at(world.folder.path()).is_none());
}
