//! Incremental backups as the keeper takes them: beside a shipper, of a real server, what cannot be had is whole and says why.

use crate::support::postgres::{Options, Server};
use crate::support::store;
use mainstay::backup::catalog::manifest::Manifest;
use mainstay::backup::keeper::once::{back_up, shipping};
use mainstay::backup::keeper::{Kind, Setup};
use mainstay::backup::logical::Way;
use mainstay::backup::repository::{Item, Key};
use mainstay::backup::restore::{self, Into, Options as RestoreOptions, Progress, Target, Wish};
use mainstay::backup::seal::{Checker, KeySet, Opener, Sealer, new_key_set};
use mainstay::backup::ship::{Activity, Shipper};
use mainstay::backup::verify::{Settings, verify};
use mainstay::config::backup::{Around, parse};
use mainstay::config::secret::SecretStore;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long anything may take on a machine that is busy with the other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn setup(server: &Server, folder: &Path, keys: &KeySet, incremental: &str) -> Setup {
    let state = folder.join("state");
    let store = SecretStore::new(&state);
    let around = Around { env: &|_| None, folder, store: &store, repos: None };
    let text = format!(
        "postgres: \"postgres://postgres@127.0.0.1:{}/?sslmode=disable\"\nship-every: 200ms\n{incremental}\n",
        server.port()
    );
    let source = parse(&"shop-db".parse().unwrap(), "shop-db.yml", &text, &around).unwrap_or_else(|e| panic!("{e}"));
    let place = folder.join("repository");
    Setup {
        programs: Way::Here(None),
        source,
        repository: Arc::new(store::folder(&place)),
        sealer: Sealer::new(std::slice::from_ref(&keys.recipient), keys.signing.clone()).unwrap(),
        checker: Checker::new(vec![keys.signing.public()]),
        owner: "a test".into(),
        state,
    }
}

async fn take(setup: &Setup, kind: Kind, shipper: &Shipper) -> Manifest {
    let taken = tokio::time::timeout(PATIENCE, back_up(setup, kind, shipper.status(), Arc::new(|_| {})));
    taken.await.expect("it comes to an end").unwrap_or_else(|error| panic!("{error}"))
}

fn why(manifest: &Manifest) -> &str {
    assert_eq!(manifest.parent, None);
    manifest.whole_because.as_deref().expect("it says why it is whole")
}

async fn streaming(shipper: &Shipper) {
    let mut status = shipper.status();
    let streams = status.wait_for(|status| status.activity == Activity::Streaming);
    tokio::time::timeout(PATIENCE, streams).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_the_keeper_takes_what_has_changed_and_else_says_why() {
    for version in Server::versions().into_iter().filter(|version| *version >= 17) {
        of_version(version).await;
    }
}

async fn of_version(version: u32) {
    let server = Server::start(version, Options::default()).await;
    server.sql("CREATE TABLE t AS SELECT a, repeat('x', 100) b FROM generate_series(1, 40000) a").await;
    let folder = tempfile::Builder::new().prefix("mainstay-incremental-").tempdir().unwrap();
    let keys = new_key_set().unwrap();
    let setup = setup(&server, folder.path(), &keys, "incremental: { schedule: '0 * * * *', chain: 2 }");
    let kept = folder.path().join("state/backups/shop-db.manifest");
    let shipper = Shipper::start(shipping(&setup, false));
    streaming(&shipper).await;

    // Nothing to build on yet; then a server that keeps no summaries.
    let first = take(&setup, Kind::Incremental, &shipper).await;
    assert!(why(&first).contains("is not kept here"), "{}", why(&first));
    let plain = take(&setup, Kind::Incremental, &shipper).await;
    assert!(why(&plain).contains("summarize_wal"), "{}", why(&plain));
    server.sql("ALTER SYSTEM SET summarize_wal = on").await;
    server.sql("SELECT pg_reload_conf()").await;
    server.until("SHOW summarize_wal", "on").await;
    let whole = take(&setup, Kind::Whole, &shipper).await;
    assert_eq!((&whole.parent, &whole.whole_because), (&None, &None), "it was asked for");

    let bytes = |manifest: &Manifest| manifest.archives.iter().map(|facts| facts.bytes).sum::<u64>();
    let mut last = whole.clone();
    for number in 1..=2 {
        server.sql(&format!("UPDATE t SET b = 'changed' WHERE a = {number}")).await;
        let next = take(&setup, Kind::Incremental, &shipper).await;
        assert_eq!(next.parent.as_ref(), Some(&last.backup), "{:?}", next.whole_because);
        assert!(bytes(&next) * 2 < bytes(&whole), "{} of {}", bytes(&next), bytes(&whole));
        last = next;
    }
    // What was written is checked and restored as a chain.
    let opener = Opener::new(keys.identity.clone(), setup.checker.clone());
    let settings = Settings { sample: 1, seed: 1, now: jiff::Timestamp::now() };
    let (repository, checker, name) = (setup.repository.as_ref(), &setup.checker, &setup.source.name);
    for opened in [None, Some(&opener)] {
        let report = verify(repository, checker, opened, Some(&setup.sealer), name, settings).await.unwrap();
        assert_eq!(report.findings, []);
        assert_eq!(report.proofs, 5, "one for each backup");
    }
    let holdings = restore::survey(repository, &opener, name, None).await.unwrap();
    let plan = restore::plan(&holdings, &Wish::new(Target::Backup(last.backup.clone()))).unwrap();
    assert_eq!(plan.ancestors.iter().map(|one| &one.manifest).collect::<Vec<_>>().len(), 2, "{plan}");
    let files = RestoreOptions {
        data: folder.path().join("restored"),
        into: Into::Folder { owner: None },
        force: false,
        feeding: restore::Feeding::default(),
        checks: Vec::new(),
    };
    let restored = restore::restore(setup.repository.clone(), opener, &plan, &files, Arc::new(Progress::default()));
    restored.await.unwrap_or_else(|error| panic!("{error}\n{plan}"));
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let again = Server::on(version, &files.data, Options::default()).await;
    assert_eq!(again.value("SELECT count(*) FROM t WHERE b = 'changed'").await, "2");
    drop(again);

    // Two rest on it already.
    let full = take(&setup, Kind::Incremental, &shipper).await;
    assert!(why(&full).contains(&format!("2 incremental backups rest on {} already", whole.backup)), "{}", why(&full));
    // The manifest that is kept is of another backup than those in the repository.
    std::fs::write(&kept, "{}").unwrap();
    let strange = take(&setup, Kind::Incremental, &shipper).await;
    assert!(why(&strange).contains("not in the repository any more"), "{}", why(&strange));
    // An object of the newest is gone.
    let manifest = &strange.objects[0].key;
    std::fs::remove_file(folder.path().join("repository").join(manifest)).unwrap();
    let broken = take(&setup, Kind::Incremental, &shipper).await;
    assert!(why(&broken).contains("cannot be used"), "{}", why(&broken));

    // An expiry means to delete what it would build on.
    let cluster = mainstay::backup::repository::Cluster { source: name.clone(), system: broken.server.system };
    let key = Key::Of(cluster, Item::Mark(1));
    let names = vec![broken.objects[0].key.clone()];
    let mark = mainstay::backup::catalog::manifest::Mark { version: 1, at: jiff::Timestamp::now(), keys: names };
    let mark = setup.sealer.seal(&key, &serde_json::to_vec(&mark).unwrap(), std::collections::BTreeMap::new()).unwrap();
    setup.repository.put_new(&key, &mark).await.unwrap();
    let marked = take(&setup, Kind::Incremental, &shipper).await;
    assert!(why(&marked).contains("marked to be deleted"), "{}", why(&marked));
    // And with what it gave one can go on.
    let next = take(&setup, Kind::Incremental, &shipper).await;
    assert_eq!(next.parent.as_ref(), Some(&marked.backup));
    assert!(shipper.stop(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_a_server_before_17_gives_whole_backups_and_says_so() {
    let server = Server::start(15, Options::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let keys = new_key_set().unwrap();
    let setup = setup(&server, folder.path(), &keys, "incremental: { schedule: '0 * * * *' }");
    let shipper = Shipper::start(shipping(&setup, false));
    streaming(&shipper).await;
    take(&setup, Kind::Whole, &shipper).await;
    let second = take(&setup, Kind::Incremental, &shipper).await;
    assert!(why(&second).contains("PostgreSQL 15 has no incremental backups"), "{}", why(&second));
    // Where the file does not ask for them, nothing is to be said.
    let plain = Setup {
        source: {
            let mut source = setup.source.clone();
            source.incremental = None;
            source
        },
        ..setup
    };
    let third = take(&plain, Kind::Incremental, &shipper).await;
    assert_eq!((third.parent, third.whole_because), (None, None));
    assert!(shipper.stop(PATIENCE).await);
}
