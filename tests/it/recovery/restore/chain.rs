//! Chains of incremental backups: what comes back is what the server had; what is broken comes not back at all; what was killed
//! goes on.

use super::world::{World, gone, options};
use crate::support::faulty::Deadly;
use crate::support::postgres::{Options as ServerOptions, Server};
use mainstay::backup::catalog::manifest::Manifest;
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::repository::{Archive, Item};
use mainstay::backup::restore::{self, Into, Options, Progress, RestoreError, Tablespace, Target, Wish};
use mainstay::backup::seal::{Checker, Identities, Opener};
use mainstay::backup::take::{self, Taken};
use mainstay::model::SourceName;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Versions that give differences.
pub(super) fn versions() -> impl Iterator<Item = u32> {
    Server::versions().into_iter().filter(|version| *version >= 17)
}

pub(super) async fn world(version: u32) -> World {
    let settings = ["summarize_wal = on", "wal_keep_size = 1GB", "autovacuum = off"];
    let options = ServerOptions { checksums: true, segment_mib: Some(1), ..ServerOptions::with(&settings) };
    World::new(version, options).await
}

pub(super) async fn whole(world: &World) -> Taken {
    world.take(take::Wish::Whole, |_| {}).await
}

/// What the database holds, in one value.
const SUM: &str = "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM (SELECT 'big' AS of, a, b FROM big UNION ALL \
    SELECT 'cut', a, b FROM cut UNION ALL SELECT 'emptied', a, b FROM emptied UNION ALL SELECT 'kept', a, b FROM kept UNION ALL \
    SELECT 'later', a, b FROM later) t";

#[tokio::test(flavor = "multi_thread")]
async fn r14_a_chain_comes_back_as_the_server_was() {
    for version in versions() {
        comes_back(version).await;
    }
}

async fn comes_back(version: u32) {
    let world = world(version).await;
    let server = &world.server;
    let spaces = ["kept", "brief", "later"].map(|name| (name, server.new_folder(OsStr::new(name))));
    let space = |at: usize| format!("CREATE TABLESPACE {} LOCATION '{}'", spaces[at].0, spaces[at].1.display());
    for sql in [
        &space(0),
        &space(1),
        "CREATE TABLE big AS SELECT a, repeat('x', 100) b FROM generate_series(1, 30000) a",
        "CREATE INDEX by_b ON big (b, a)",
        "CREATE TABLE cut AS SELECT a, 'first' b FROM generate_series(1, 5000) a",
        "CREATE TABLE emptied AS SELECT a, 'first' b FROM generate_series(1, 20000) a",
        "CREATE TABLE kept TABLESPACE kept AS SELECT a, 'kept' b FROM generate_series(1, 20000) a",
        "CREATE TABLE brief TABLESPACE brief AS SELECT 1 a",
        "CREATE TABLE dropped AS SELECT 1 a",
        "CREATE UNLOGGED TABLE unlogged AS SELECT 1 a",
        "CREATE DATABASE gone",
    ] {
        server.sql(sql).await;
    }
    let first = whole(&world).await;
    for sql in [
        "UPDATE big SET b = 'changed' WHERE a BETWEEN 100 AND 150",
        // A file that gets shorter, and one that is another one.
        "DELETE FROM cut WHERE a > 1000",
        "VACUUM cut",
        "TRUNCATE emptied",
        "DROP TABLE dropped",
        "DROP DATABASE gone",
        "DROP TABLE brief",
        "DROP TABLESPACE brief",
        &space(2),
        "CREATE TABLE later TABLESPACE later AS SELECT a, 'later' b FROM generate_series(1, 5000) a",
    ] {
        server.sql(sql).await;
    }
    let second = world.difference(&first).await;
    let sum_of_second = server.value(SUM).await;
    for sql in [
        "UPDATE big SET b = 'again' WHERE a = 20000",
        // It grows over where it was cut.
        "INSERT INTO cut SELECT a, 'second' FROM generate_series(1, 8000) a",
        "INSERT INTO emptied SELECT a, 'second' FROM generate_series(1, 300) a",
        "UPDATE kept SET b = 'second' WHERE a = 7",
        "UPDATE later SET b = 'second' WHERE a % 100 = 0",
        "CREATE DATABASE new",
    ] {
        server.sql(sql).await;
    }
    let third = world.difference(&second).await;
    server.sql("UPDATE big SET b = 'log only' WHERE a = 29999").await;
    world.ship().await;
    let sum = server.value(SUM).await;

    // Tablespaces go elsewhere: where they were, the server still has them.
    let moved = |manifest: &Manifest, name: &str| -> BTreeMap<Tablespace, PathBuf> {
        let oids = manifest.archives.iter().filter_map(|facts| match facts.archive {
            Archive::Tablespace(oid) => Some(oid),
            Archive::Base => None,
        });
        oids.map(|oid| (Tablespace::Oid(oid), world.folder.path().join(format!("{name} {oid}")))).collect()
    };
    let wish = Wish { tablespaces: moved(&third.manifest, "latest"), ..Wish::new(Target::Latest) };
    let plan = world.try_plan(wish).await.unwrap();
    let named: Vec<_> = plan.ancestors.iter().map(|one| one.manifest.backup.clone()).collect();
    assert_eq!(named, [first.manifest.backup.clone(), second.manifest.backup.clone()]);
    assert_eq!(plan.base.backup, third.manifest.backup);
    let shown = plan.to_string();
    for backup in named.iter().chain([&plan.base.backup]) {
        assert!(shown.contains(&backup.to_string()), "{shown}");
    }
    let bytes = |taken: &Taken| taken.manifest.archives.iter().map(|facts| facts.bytes).sum::<u64>();
    assert!(bytes(&second).max(bytes(&third)) * 2 < bytes(&first), "differences are small");
    let room: u64 = plan.room.values().sum();
    assert!(room > bytes(&first) / 2 && room < bytes(&first) + bytes(&second) + bytes(&third), "{room}");
    // The dropped tablespace is in the first backup and is not fetched.
    assert_eq!(plan.tablespaces.len(), 2);
    assert!(first.manifest.archives.len() == 3 && plan.ancestors[0].chunks.len() < first.manifest.objects.len() - 2);

    let restored = world.restore(&plan, &world.options()).await.unwrap_or_else(|error| panic!("{error}\n{plan}"));
    assert_eq!(restored.value(SUM).await, sum, "PostgreSQL {version}");
    assert_eq!(restored.value("SELECT count(*) FROM big WHERE b = 'log only'").await, "1");
    // Every page of every relation is read and its checksum looked at; and each row is found through its index.
    restored.value("SELECT count(*) FROM pg_class, pg_database").await;
    for table in ["big", "cut", "emptied", "kept", "later"] {
        restored.value(&format!("SELECT count(*) FROM {table}")).await;
    }
    restored.value("SET enable_seqscan = off; SELECT count(*) FROM big WHERE b = 'again'").await;
    let databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database";
    assert_eq!(restored.value(databases).await, "new,postgres,template0,template1");
    let left =
        files(&restored.report.data).into_keys().chain(plan.tablespaces.values().flat_map(|at| files(at).into_keys()));
    let left: Vec<_> = left
        .filter(|path| path.to_string_lossy().contains("mainstay-") && !path.ends_with("mainstay-restore.log"))
        .collect();
    assert_eq!(left, [] as [PathBuf; 0]);
    drop(restored);

    // The end of the one in the middle, without what came after.
    let target = Target::Backup(second.manifest.backup.clone());
    let wish = Wish { tablespaces: moved(&second.manifest, "middle"), ..Wish::new(target) };
    let plan = world.try_plan(wish).await.unwrap();
    assert_eq!(plan.ancestors.len(), 1);
    let restored = world.restore(&plan, &world.options()).await.unwrap_or_else(|error| panic!("{error}\n{plan}"));
    assert_eq!(restored.value(SUM).await, sum_of_second, "PostgreSQL {version}");
}

/// A whole backup and two differences, each with a row more.
async fn three(version: u32) -> (World, [Taken; 3]) {
    let world = world(version).await;
    for sql in [
        "CREATE TABLE t (i int)",
        "CREATE TABLE large AS SELECT a, repeat('x', 200) b FROM generate_series(1, 20000) a",
    ] {
        world.server.sql(sql).await;
    }
    let first = whole(&world).await;
    let mut taken = vec![first];
    for rows in [1, 2] {
        world.rows_to(rows).await;
        // On nearly every page, so that putting it on top takes a moment.
        world.server.sql(&format!("UPDATE large SET b = 'changed {rows}' WHERE a % 50 = {rows}")).await;
        let next = world.difference(&taken[rows as usize - 1]).await;
        taken.push(next);
    }
    world.rows_to(3).await;
    world.ship().await;
    (world, taken.try_into().unwrap_or_else(|_| panic!("three")))
}

fn files_only(data: PathBuf, like: &Options) -> Options {
    let Into::Server(server) = &like.into else { panic!("a server") };
    Options { data, into: Into::Folder { owner: server.user }, ..like.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_a_chain_with_a_fault_is_never_started() {
    let (world, taken) = three(17).await;
    let plan = world.plan(Target::Latest).await;
    assert_eq!(plan.ancestors.len(), 2);
    let stored =
        |taken: &Taken, object: usize| world.folder.path().join("repository").join(&taken.manifest.objects[object].key);
    let refused = async |why: &str| -> RestoreError {
        let options = world.options();
        let error = match world.restore(&plan, &options).await {
            Err(error) => error,
            Ok(restored) => panic!("{why}: a server opened with {} rows", restored.rows().await),
        };
        assert!(!options.data.join("global/pg_control").exists(), "{why}: a server could start");
        gone(&options.data, Duration::from_secs(1));
        error
    };
    for (number, taken) in taken.iter().enumerate() {
        let path = stored(taken, 0);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0xFF;
        fs::write(&path, &bad).unwrap();
        let error = refused("a changed byte").await;
        assert!(error.to_string().contains(&taken.manifest.objects[0].key), "{number}: {error}");
        fs::remove_file(&path).unwrap();
        refused("a part that is gone").await;
        // A new plan takes an older backup that is whole, and all of the log since, or there is none.
        match (number, world.try_plan(Wish::new(Target::Latest)).await) {
            (0, Err(error)) => assert!(error.to_string().contains("no backup"), "{error}"),
            (1 | 2, Ok(older)) => assert_eq!(older.ancestors.len(), number - 1, "{older}"),
            (_, other) => panic!("{number}: {other:?}"),
        }
        fs::write(&path, &good).unwrap();
    }
    // Two of another chain in place of each other: what was signed for one backup is not believed of another.
    let (one, two) = (stored(&taken[1], 0), stored(&taken[2], 0));
    let (a, b) = (fs::read(&one).unwrap(), fs::read(&two).unwrap());
    fs::write(&one, &b).unwrap();
    refused("the part of another").await;
    fs::write(&one, &a).unwrap();
    // No room for it: said before anything is fetched.
    let mut large = plan.clone();
    large.room.insert(Archive::Base, u64::MAX / 2);
    let options = world.options();
    let Err(error) = world.restore(&large, &options).await else { panic!("it fits") };
    assert!(matches!(error, RestoreError::Room(_)), "{error}");
    assert_eq!(files(&options.data).len(), 1, "its own state only");
    // And with room it goes on in the same place.
    assert_eq!(world.restore(&plan, &options).await.unwrap_or_else(|error| panic!("{error}")).rows().await, 3);

    // A writer whose manifest leaves one out: signed, and everything is there.
    let mut skips = taken[2].manifest.clone();
    skips.parent = Some(taken[0].manifest.backup.clone());
    let item = Item::Manifest(skips.backup.clone());
    fs::remove_file(world.folder.path().join("repository").join(world.key(item.clone()).to_string())).unwrap();
    let seal = world.folder.path().join("repository").join(format!("{}.seal", world.key(item.clone())));
    let _ = fs::remove_file(seal);
    world.put(item, &serde_json::to_vec(&skips).unwrap()).await;
    let plan = world.plan(Target::Latest).await;
    assert_eq!(plan.ancestors.len(), 1);
    let options = world.options();
    let Err(error) = world.restore(&plan, &options).await else { panic!("it opened") };
    assert!(matches!(&error, RestoreError::Combine(_)) && error.to_string().contains("not to that from"), "{error}");
    assert!(!options.data.join("global/pg_control").exists());
}

const CHILD: &str = "MAINSTAY_TEST_CHAIN_CHILD";

/// Restores the files of a chain, killed at that call to the store.
async fn again(folder: &Path, data: &Path, at: usize) {
    let identities = Identities::parse(&fs::read_to_string(folder.join("identity")).unwrap()).unwrap();
    let checker = Checker::new(identities.signers().to_vec());
    let opener = Opener::new(identities, checker);
    let inner = Folder::open(folder.join("repository")).unwrap();
    let source = SourceName::new("shop-db").unwrap();
    let holdings = restore::survey(&inner, &opener, &source, None).await.unwrap();
    let plan = restore::plan(&holdings, &Wish::new(Target::Latest)).unwrap();
    let options = files_only(data.to_owned(), &options(17, data, folder));
    let progress = Arc::new(Progress::default());
    restore::restore(Deadly::before(Arc::new(inner), at), opener, &plan, &options, progress.clone()).await.unwrap();
    let now = progress.now();
    assert_eq!(now.base_done_bytes, now.base_total_bytes, "all of the base is counted once");
}

/// Killed at each call to the store until the base is there, and while each difference is put on top: what is left cannot be
/// started, and the same restore makes of it, byte for byte, what it would have made at once.
#[tokio::test(flavor = "multi_thread")]
async fn r21_a_killed_restore_of_a_chain_goes_on() {
    if let Ok(child) = std::env::var(CHILD) {
        let mut parts = child.split('\n').map(PathBuf::from);
        let (folder, data, at) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        again(&folder, &data, at.to_str().unwrap().parse().unwrap()).await;
        return;
    }
    let (world, taken) = three(17).await;
    let folder = world.folder.path();
    fs::write(folder.join("identity"), world.keys.identity_file(jiff::Timestamp::now())).unwrap();
    let reference = folder.join("at once");
    again(folder, &reference, usize::MAX).await;
    let wanted = files(&reference);
    assert!(wanted.contains_key(Path::new("global/pg_control")));

    let goes_on = folder.join("goes on");
    // Each restore is a process of its own: the gate takes every third call, the long run all.
    let step = if std::env::var_os("MAINSTAY_SOAK").is_some() { 1 } else { 3 };
    let mut killed = 0;
    for at in (1..).step_by(step) {
        let data = folder.join(format!("killed {at}"));
        let died = ended(child(folder, &data, at));
        // All of the log comes beside the base where it is as short as here: past the last call it ends well.
        if !died || data.join("global/pg_control").exists() {
            break;
        }
        killed += 1;
        // One place is killed ever later; and some of the fresh ones go on to their end.
        if !is_done(&goes_on) {
            ended(child(folder, &goes_on, at));
        }
        if at % 4 == 0 {
            again(folder, &data, usize::MAX).await;
            assert_same(&files(&data), &wanted, &format!("killed at call {at}"));
        }
        // The first calls are made before anything is.
        if data.exists() {
            fs::remove_dir_all(&data).unwrap();
        }
        assert!(killed < 60, "it never comes to its end");
    }
    // An index and a part of each backup, before and after each.
    assert!(killed * step >= 3 * 2 * 2, "{killed} kills");
    if !is_done(&goes_on) {
        again(folder, &goes_on, usize::MAX).await;
    }
    assert_same(&files(&goes_on), &wanted, "killed ever later");

    // Not at a call, but while files are changed.
    for (number, taken) in taken[1..].iter().enumerate() {
        let data = folder.join(format!("on top {number}"));
        let mut torn = 0;
        for wait_micros in [0, 2_000] {
            if !is_done(&data) {
                torn += u32::from(killed_on_top(folder, &data, &taken.manifest, Duration::from_micros(wait_micros)));
            }
        }
        assert!(torn >= 1, "no kill came while it was put on top");
        if !is_done(&data) {
            again(folder, &data, usize::MAX).await;
        }
        assert_same(&files(&data), &wanted, "killed while a difference was put on top");
    }
}

/// Whether a restore into this place has come to its end.
fn is_done(data: &Path) -> bool {
    data.join("PG_VERSION").exists() && !data.join(".mainstay-restore").exists()
}

/// Kills a restore a moment after it began to put this difference on top. Whether it was not done with the base.
fn killed_on_top(folder: &Path, data: &Path, difference: &Manifest, wait: Duration) -> bool {
    let line = format!("on top {}", difference.backup);
    let lines = || fs::read_to_string(data.join(".mainstay-restore")).unwrap_or_default().matches(&line).count();
    let before = lines();
    let mut child = child(folder, data, usize::MAX);
    loop {
        if lines() > before {
            std::thread::sleep(wait);
            break;
        }
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    child.wait().unwrap();
    !data.join("global/pg_control").exists()
}

/// Runs this test in a process of its own that restores and is killed at that call.
fn child(folder: &Path, data: &Path, at: usize) -> Child {
    let name = "recovery::restore::chain::r21_a_killed_restore_of_a_chain_goes_on";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command.env(CHILD, format!("{}\n{}\n{at}", folder.display(), data.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Whether it was killed; it must have ended well otherwise.
fn ended(mut child: Child) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    let status = child.wait().unwrap();
    let died = status.signal() == Some(Signal::SIGKILL as i32);
    assert!(died || status.success(), "{status}");
    died
}

/// Every file below a folder but the log's: its mode, and a digest of what is in it.
fn files(root: &Path) -> BTreeMap<PathBuf, (u32, String)> {
    use sha2::{Digest as _, Sha256};
    let (mut files, mut todo) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            // The script's folder, which a run makes anew.
            if name == Path::new("mainstay-restore") {
                continue;
            }
            if meta.is_dir() {
                todo.push(path.clone());
                files.insert(name, (meta.mode(), String::new()));
            } else if meta.is_file() {
                files.insert(name, (meta.mode(), hex::encode(Sha256::digest(fs::read(&path).unwrap()))));
            }
        }
    }
    files
}

fn assert_same(got: &BTreeMap<PathBuf, (u32, String)>, wanted: &BTreeMap<PathBuf, (u32, String)>, what: &str) {
    let differ: Vec<_> = wanted.keys().chain(got.keys()).filter(|path| got.get(*path) != wanted.get(*path)).collect();
    assert!(differ.is_empty(), "{what}: {differ:?}");
}
