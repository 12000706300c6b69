//! A repository read back: what is good is used, what is not is shown.

use super::world::{DAY, HOUR, MIB, World};
use mainstay::backup::catalog::index::{BadKind, CatalogueError};
use mainstay::backup::catalog::manifest::Frontier;
use mainstay::backup::catalog::path::{End, NoPath, path};
use mainstay::backup::catalog::window::{NoLine, window};
use mainstay::backup::repository::{Item, Repository};
use mainstay::model::{Lsn, Timeline};
use std::collections::BTreeMap;

#[tokio::test]
async fn a_catalogue_is_read_with_a_bounded_number_of_requests() {
    let mut world = World::new();
    world.pass(HOUR);
    world.write(100_000).await;
    let first = world.take(None, false).await.unwrap();
    for _ in 0..9 {
        world.pass(HOUR);
        world.write(700_000).await;
        world.frontier().await;
    }
    world.promote(50_000).await;
    world.write(2 * MIB).await;
    world.frontier().await;
    let objects = world.lab.names().await.len();
    world.lab.layer.faults().calls = 0;
    let catalogue = world.lab.read().await.unwrap();
    let calls = world.lab.layer.faults().calls;
    // A listing, a manifest, four frontiers, a history file's receipt, four receipts for each of two timelines.
    assert_eq!((calls, catalogue.listed, catalogue.bad.len(), catalogue.foreign.len()), (15, objects, 0, 0));
    let holdings = catalogue.newest_cluster().unwrap();
    assert_eq!(holdings.newest_timeline(), Some(Timeline(2)));
    // Without any identity the note beside the history file says where timeline 2 came from.
    let window = window(holdings);
    assert_eq!((window.newest().unwrap().lsn, window.damaged()), (world.end, false));
    assert_eq!(window.newest().unwrap().at, Some(World::at(world.now)));
    assert_eq!(path(holdings, &first, Timeline(2), End::Newest).unwrap().to, world.end);
}

#[tokio::test]
async fn what_is_bad_is_shown_and_never_used() {
    let mut world = World::new();
    world.pass(HOUR);
    world.write(100_000).await;
    let good = world.take(None, false).await.unwrap();
    world.pass(DAY);
    let manifest = world.begin(None).await.unwrap();
    world.frontier().await;
    // A manifest by somebody whom nobody vouches for.
    let key = world.lab.key(Item::Manifest(manifest.backup.clone()));
    let sealed = world.lab.stranger.seal(&key, &serde_json::to_vec(&manifest).unwrap(), BTreeMap::new()).unwrap();
    world.lab.layer.put_new(&key, &sealed).await.unwrap();
    // One of a version to come.
    let mut later = manifest.clone();
    later.backup = "20300101T000000Z-00000001".parse().unwrap();
    later.version = 2;
    let later_key = world.lab.key(Item::Manifest(later.backup.clone()));
    world.lab.put(&later_key, &serde_json::to_vec(&later).unwrap(), &[]).await;
    // One under another backup's name.
    let moved_key = world.lab.key(Item::Manifest("20300101T000000Z-00000002".parse().unwrap()));
    world.lab.put(&moved_key, &serde_json::to_vec(&manifest).unwrap(), &[]).await;
    // And a file that somebody put there.
    std::fs::write(world.lab.root.join("shop-db/README"), "mine").unwrap();
    std::fs::write(world.lab.root.join("shop-db/README.seal"), "{}").unwrap();
    let catalogue = world.lab.read().await.unwrap();
    let bad: BTreeMap<String, BadKind> = catalogue.bad.iter().map(|bad| (bad.key.to_string(), bad.kind)).collect();
    let expected = [(&key, BadKind::Untrusted), (&later_key, BadKind::Contents), (&moved_key, BadKind::Contents)];
    assert_eq!(bad, expected.map(|(key, kind)| (key.to_string(), kind)).into_iter().collect());
    assert_eq!(catalogue.foreign.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["shop-db/README"]);
    let holdings = catalogue.newest_cluster().unwrap();
    assert_eq!(holdings.backups.keys().collect::<Vec<_>>(), [&good]);
    assert_eq!(holdings.doubtful.len(), 3);
    // A frontier that does not verify: nobody can say how far the log was acknowledged.
    let key = world.lab.key(Item::Frontier(9));
    let frontier = Frontier {
        version: 1,
        timeline: Timeline(1),
        acknowledged: Lsn(0),
        at: World::at(world.now),
        server_time: None,
    };
    let sealed = world.lab.stranger.seal(&key, &serde_json::to_vec(&frontier).unwrap(), BTreeMap::new()).unwrap();
    world.lab.layer.put_new(&key, &sealed).await.unwrap();
    let catalogue = world.lab.read().await.unwrap();
    let holdings = catalogue.newest_cluster().unwrap();
    assert!(matches!(path(holdings, &good, Timeline(1), End::Newest), Err(NoPath::Doubt(_))));
}

#[tokio::test]
async fn a_place_that_does_not_answer_is_no_empty_one() {
    let mut world = World::new();
    world.pass(HOUR);
    world.write(100_000).await;
    let id = world.take(None, false).await.unwrap();
    let manifest = world.lab.key(Item::Manifest(id)).to_string();
    world.lab.layer.faults().unreachable.insert(manifest);
    assert!(matches!(world.lab.read().await, Err(CatalogueError::Repository(_))));
}

#[tokio::test]
async fn history_files_are_opened_where_an_identity_is_given() {
    let mut world = World::new();
    world.pass(HOUR);
    world.write(100_000).await;
    let id = world.take(None, false).await.unwrap();
    let switch = world.end;
    // As another writer may have stored it: nothing beside it.
    let key = world.lab.key(Item::History(Timeline(2)));
    world.lab.put(&key, format!("1\t{switch}\tno recovery target specified\n").as_bytes(), &[]).await;
    let mut catalogue = world.lab.read().await.unwrap();
    let line = |catalogue: &mainstay::backup::catalog::index::Catalogue| {
        path(catalogue.newest_cluster().unwrap(), &id, Timeline(2), End::Newest).map(|path| path.to)
    };
    assert_eq!(line(&catalogue), Err(NoPath::Line { timeline: Timeline(2), why: NoLine::Unread(Timeline(2)) }));
    catalogue.open_histories(&world.lab.layer, &world.lab.opener).await.unwrap();
    assert_eq!(line(&catalogue), Ok(switch));
    // One that is no history file.
    world.lab.put(&world.lab.key(Item::History(Timeline(3))), b"nonsense", &[]).await;
    let mut catalogue = world.lab.read().await.unwrap();
    catalogue.open_histories(&world.lab.layer, &world.lab.opener).await.unwrap();
    assert_eq!(catalogue.bad.len(), 1);
}

#[tokio::test]
async fn a_backup_that_is_finished_while_the_place_is_read_is_no_lie() {
    let mut world = World::new();
    world.pass(HOUR);
    world.write(100_000).await;
    let id = world.take(None, false).await.unwrap();
    let manifest = world.lab.key(Item::Manifest(id.clone())).to_string();
    // Written between the listing and the look.
    world.lab.layer.faults().later.insert(manifest.clone());
    assert!(world.catalogue().await.newest_cluster().unwrap().chain(&id).is_ok());
    // Left out again and again.
    world.lab.layer.faults().hidden.insert(manifest.clone());
    let error = world.lab.read().await.unwrap_err();
    assert!(matches!(&error, CatalogueError::Doubtful { name, .. } if *name == manifest), "{error}");
}
