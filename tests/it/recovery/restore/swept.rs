//! Processes that do the whole of it, killed with `kill -9` at one call to the store after the other: a base backup of a real
//! server into a bucket while its log is shipped there, then expiries of what that left. What can be seen is whole after each
//! kill, no log is missing that the server was told of, and everything that is kept restores.

use super::world::{Restored, options};
use crate::support::faulty::Deadly;
use crate::support::postgres::{Options as ServerOptions, Server};
use crate::support::store::{S3Server, folder};
use crate::support::store_proxy::{StoreProxy, When};
use mainstay::backup::catalog::expire::{self, expire};
use mainstay::backup::catalog::manifest::{Frontier, Manifest};
use mainstay::backup::catalog::retention::Policy;
use mainstay::backup::keeper::{Kind, Setup, once};
use mainstay::backup::logical::Way;
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::repository::s3::{S3, S3Settings};
use mainstay::backup::repository::{BackupId, Item, Key, Put, Repository};
use mainstay::backup::restore::{self, Target, Wish};
use mainstay::backup::seal::{Checker, Identities, Opener, Sealed, Sealer, SigningKey, new_key_set_for};
use mainstay::backup::ship::Shipper;
use mainstay::config::backup::{Around, parse};
use mainstay::config::secret::SecretStore;
use mainstay::model::{Lsn, SourceName};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Tells the process that it is the one to be killed: what it does, and with what, a line each.
const CHILD: &str = "MAINSTAY_TEST_SWEPT";
/// So many of all calls of a backup in the gate; under `make soak` also each of them, on both sides.
const SAMPLE: usize = 5;
/// Of an expiry each so many-th in the gate; every one under `make soak`.
const STEP: usize = 37;
const DAY: Duration = Duration::from_secs(86_400);
/// What an expiry leaves of backups.
const KEPT: u32 = 2;

fn source() -> SourceName {
    SourceName::new("shop-db").unwrap()
}

/// A server, a bucket, keys in files.
struct Swept {
    server: Server,
    store: S3,
    settings: S3Settings,
    proxy: StoreProxy,
    folder: tempfile::TempDir,
    recipient: String,
    rows: u32,
    /// What was opened before; nothing is ever written twice.
    opened: HashSet<String>,
}

impl Swept {
    async fn new(version: u32) -> Swept {
        let bucket = S3Server::shared();
        let settings = bucket.settings();
        let folder = tempfile::Builder::new().prefix("mainstay-swept").tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let keys = new_key_set_for(SigningKey::open(&folder.path().join("sign.key")).unwrap());
        fs::write(folder.path().join("identity"), keys.identity_file(jiff::Timestamp::now())).unwrap();
        let server = Server::start(version, ServerOptions { segment_mib: Some(1), ..ServerOptions::default() }).await;
        server.sql("CREATE TABLE t (i int)").await;
        let store = S3::open(settings.clone()).await.unwrap();
        let proxy = StoreProxy::start(&bucket.address());
        // The server of all tests stays while its handle does.
        std::mem::forget(bucket);
        let (recipient, opened) = (keys.recipient, HashSet::new());
        Swept { server, store, settings, proxy, folder, recipient, rows: 0, opened }
    }

    fn opener(&self) -> Opener {
        opener(self.folder.path())
    }

    async fn write(&mut self) {
        self.rows += 100;
        self.server.sql(&format!("INSERT INTO t SELECT generate_series({}, {})", self.rows - 99, self.rows)).await;
    }

    /// A backup by a process of its own, killed at that call. At which one that was; nothing when it lived.
    fn back_up(&self, at: usize, when: When) -> Option<String> {
        let folder = self.folder.path().display().to_string();
        let told =
            ["backup", &self.proxy.endpoint(), &self.settings.prefix, &self.recipient, &folder, &self.server.url()];
        let killed = child(&told.join("\n"), |pid| self.proxy.kill_at(pid, at, when));
        killed.then(|| self.proxy.told().1.unwrap())
    }

    /// Everything that can be seen is whole, and the log from each backup to what the server was told of is there.
    async fn whole(&mut self) -> BTreeSet<BackupId> {
        let opener = self.opener();
        let seen = whole(&self.store, &opener, &mut self.opened).await;
        let told = self.server.value("SELECT restart_lsn FROM pg_replication_slots").await;
        if seen.is_empty() {
            return seen;
        }
        let holdings = restore::survey(&self.store, &opener, &source(), None).await.unwrap();
        for id in &seen {
            let wish = Wish { backup: Some(id.clone()), ..Wish::new(Target::Latest) };
            let plan = restore::plan(&holdings, &wish).unwrap_or_else(|error| panic!("{id}: {error}"));
            assert!(told.parse::<Lsn>().is_ok_and(|told| plan.end.lsn >= told), "told {told}, stored {}", plan.end.lsn);
        }
        seen
    }
}

fn opener(folder: &Path) -> Opener {
    let identities = Identities::parse(&fs::read_to_string(folder.join("identity")).unwrap()).unwrap();
    let checker = Checker::new(identities.signers().to_vec());
    Opener::new(identities, checker)
}

/// The backups that can be seen, every object of each opened.
async fn whole(store: &dyn Repository, opener: &Opener, opened: &mut HashSet<String>) -> BTreeSet<BackupId> {
    let mut seen = BTreeSet::new();
    for object in store.list("").await.unwrap() {
        let Ok(key @ Key::Of(_, Item::Manifest(_))) = object.name.parse::<Key>() else { continue };
        let stored = store.get(&key).await.unwrap();
        let (_, manifest): (_, Manifest) = opener.checker().document(&key, &stored).unwrap();
        for object in &manifest.objects {
            let key: Key = object.key.parse().unwrap();
            if opened.contains(&object.key) {
                store.receipt(&key).await.unwrap();
                continue;
            }
            let (seal, _) = opener.open(&key, &store.get(&key).await.unwrap()).unwrap();
            assert_eq!((&seal.plain, &seal.stored), (&object.plain, &object.stored));
            opened.insert(object.key.clone());
        }
        seen.insert(manifest.backup);
    }
    seen
}

/// Runs this test in a process of its own, which is made ready to be killed before it does anything. Whether it was killed.
fn child(told: &str, ready: impl FnOnce(Pid)) -> bool {
    let name = "recovery::restore::swept::r11_r16_killed_at_any_call_to_the_store_nothing_kept_is_lost";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, told)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    ready(Pid::from_raw(child.id() as i32));
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.signal() == Some(Signal::SIGKILL as i32) {
        return true;
    }
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    false
}

async fn act(told: &str) {
    std::io::stdin().read_exact(&mut [0; 3]).unwrap();
    match told.split('\n').collect::<Vec<_>>()[..] {
        ["backup", endpoint, prefix, recipient, folder, url] => {
            back_up(endpoint, prefix, recipient, Path::new(folder), url).await;
        }
        ["expire", recipient, folder, repository, at] => {
            expire_at(recipient, Path::new(folder), Path::new(repository), at.parse().unwrap()).await;
        }
        _ => panic!("{told}"),
    }
}

fn sealer(recipient: &str, folder: &Path) -> Sealer {
    Sealer::new(&[recipient.to_owned()], SigningKey::open(&folder.join("sign.key")).unwrap()).unwrap()
}

/// As `mainstay backup` does it without a daemon.
async fn back_up(endpoint: &str, prefix: &str, recipient: &str, folder: &Path, url: &str) {
    let settings = S3Server::shared().settings();
    let settings = S3Settings { endpoint: Some(endpoint.to_owned()), prefix: prefix.to_owned(), ..settings };
    let (secrets, sealer) = (SecretStore::new(&folder.join("state")), sealer(recipient, folder));
    let around = Around { env: &|_| None, folder, store: &secrets, repos: None };
    let text = format!("postgres: \"{url}\"\nship-every: 100ms\n");
    let setup = Setup {
        programs: Way::Here(None),
        source: parse(&source(), "backups/shop-db.yml", &text, &around).unwrap(),
        repository: Arc::new(S3::open(settings).await.unwrap()),
        checker: Checker::new(vec![sealer.public()]),
        sealer,
        owner: "the one that is killed".into(),
        state: folder.to_owned(),
    };
    let shipper = Shipper::start(once::shipping(&setup, false));
    once::back_up(&setup, Kind::Whole, shipper.status(), Arc::new(|_| {})).await.unwrap();
    assert!(shipper.stop(Duration::from_secs(30)).await);
}

/// Ten days from now nobody needs more than the newest backups: the first run marks the rest, the second one takes it.
async fn expire_at(recipient: &str, folder: &Path, repository: &Path, at: usize) {
    let sealer = sealer(recipient, folder);
    let checker = Checker::new(vec![sealer.public()]);
    let deadly = Deadly::before(Arc::new(Folder::open(repository).unwrap()), at);
    let policy = Policy { window: Duration::ZERO, backups: KEPT };
    let now = jiff::Timestamp::now() + 10 * DAY;
    let settings = expire::Settings { policy, grace: Duration::ZERO, dry_run: false, now };
    for _ in 0..2 {
        let report = expire(deadly.as_ref(), &checker, &sealer, &source(), settings).await.unwrap();
        assert!(!report.troubled(), "{report:?}");
    }
}

/// Every object as it is, in a folder; and as it is ten days on, when nothing else was written.
async fn mirrored(world: &Swept, to: &Path) {
    let mirror = folder(to);
    let mut newest = None;
    for object in world.store.list("").await.unwrap() {
        let Ok(key) = object.name.parse::<Key>() else { continue };
        if matches!(key, Key::Lease(_)) {
            continue;
        }
        let stored = world.store.get(&key).await.unwrap();
        if let Key::Of(cluster, Item::Frontier(number)) = &key {
            let (_, frontier): (_, Frontier) = world.opener().checker().document(&key, &stored).unwrap();
            newest = Some((Key::Of(cluster.clone(), Item::Frontier(number + 1)), frontier));
        }
        let sealed = Sealed { bytes: stored.bytes().clone(), receipt: stored.receipt().clone() };
        assert_eq!(mirror.put_new(&key, &sealed).await.unwrap(), Put::Stored);
    }
    let (key, mut frontier) = newest.expect("a frontier was stored at the end of shipping");
    frontier.at += 10 * DAY;
    let text = serde_json::to_vec(&frontier).unwrap();
    let sealed = sealer(&world.recipient, world.folder.path()).seal(&key, &text, BTreeMap::new()).unwrap();
    assert_eq!(mirror.put_new(&key, &sealed).await.unwrap(), Put::Stored);
    let file = fs::File::options().write(true).open(to.join(key.to_string())).unwrap();
    file.set_modified(SystemTime::now() + 10 * DAY).unwrap();
}

/// The same objects, each under a second name: a deletion takes one of them.
fn copied(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-al").args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// What the kills of backups came to.
#[derive(Default)]
struct Counted {
    kills: usize,
    /// Killed when the manifest was stored: the backup is there, and nobody was told.
    there: usize,
}

impl Swept {
    /// Backups one after the other, each killed at one of these calls. What could be seen stays, and is whole.
    async fn killed_at(&mut self, points: impl IntoIterator<Item = (usize, When)>, counted: &mut Counted) {
        let mut seen = self.whole().await;
        for (at, when) in points {
            self.write().await;
            // What an earlier one has stored may make a call less.
            let Some(call) = self.back_up(at, when) else {
                seen = self.whole().await;
                continue;
            };
            let now = self.whole().await;
            assert!(seen.is_subset(&now) && now.len() <= seen.len() + 1, "killed {when:?} {call}");
            counted.kills += 1;
            counted.there += now.len() - seen.len();
            seen = now;
        }
        // Whoever comes next takes it up, and does it whole.
        self.write().await;
        assert_eq!(self.back_up(usize::MAX, When::Before), None);
        assert_eq!(self.whole().await.len(), seen.len() + 1);
    }

    /// Restores the newest state from each of these backups, and counts the rows.
    async fn restores(&self, repository: Arc<dyn Repository>, backups: &BTreeSet<BackupId>, name: &str) {
        let here = self.folder.path();
        let holdings = restore::survey(repository.as_ref(), &self.opener(), &source(), None).await.unwrap();
        for (number, id) in backups.iter().enumerate() {
            let wish = Wish { backup: Some(id.clone()), ..Wish::new(Target::Latest) };
            let plan = restore::plan(&holdings, &wish).unwrap();
            let options = options(self.server.version(), &here.join(format!("{name} {number}")), here);
            let report = restore::restore(repository.clone(), self.opener(), &plan, &options, Arc::default()).await;
            let restored = Restored::new(report.unwrap_or_else(|error| panic!("{id}: {error}")), &options);
            assert_eq!(restored.rows().await, self.rows, "{id}");
            drop(restored);
            fs::remove_dir_all(&options.data).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_r16_killed_at_any_call_to_the_store_nothing_kept_is_lost() {
    if let Ok(told) = std::env::var(CHILD) {
        return act(&told).await;
    }
    let all = std::env::var_os("MAINSTAY_SOAK").is_some();
    let mut world = Swept::new(17).await;
    world.write().await;
    assert_eq!(world.back_up(usize::MAX, When::Before), None);
    let calls = world.proxy.told().0;
    let mut counted = Counted::default();
    let some = (1..=SAMPLE).map(|n| (1 + (calls - 1) * n / (SAMPLE + 1), [When::After, When::Before][n % 2]));
    world.killed_at(some, &mut counted).await;
    world.write().await;
    assert_eq!(world.back_up(usize::MAX, When::Before), None);
    let seen = world.whole().await;
    let newest: BTreeSet<BackupId> = seen.iter().rev().take(KEPT as usize).cloned().collect();

    // Expiries of all that, each on a copy of its own.
    let here = world.folder.path().to_owned();
    let mirror = here.join("mirror");
    mirrored(&world, &mirror).await;
    let told = |repository: &Path, at: usize| {
        let [folder, repository] = [&here, repository].map(|path: &Path| path.display().to_string());
        ["expire", &world.recipient, &folder, &repository, &at.to_string()].join("\n")
    };
    let (opener, copy, step) = (world.opener(), here.join("copy"), if all { 1 } else { STEP });
    let (mut kills, mut at, mut opened) = (0, 1, HashSet::new());
    loop {
        let _ = fs::remove_dir_all(&copy);
        copied(&mirror, &copy);
        let died = child(&told(&copy, at), |_| {});
        let repository = Folder::open(&copy).unwrap();
        let now = whole(&repository, &opener, &mut opened).await;
        assert!(newest.is_subset(&now) && now.is_subset(&seen), "killed at {at}: {now:?}");
        if !died {
            assert_eq!(now, newest);
            break;
        }
        kills += 1;
        // The next one ends it.
        assert!(!child(&told(&copy, usize::MAX), |_| {}));
        assert_eq!(whole(&repository, &opener, &mut opened).await, newest, "killed at {at}");
        at += step;
    }
    assert!(kills >= 4, "{kills}");
    // What an expiry has left, with the log that it left, is the database.
    world.restores(Arc::new(Folder::open(&copy).unwrap()), &newest, "kept").await;

    if all {
        let every = (1..=calls).flat_map(|at| [(at, When::Before), (at, When::After)]);
        world.killed_at(every, &mut counted).await;
        let seen = world.whole().await;
        world.restores(Arc::new(S3::open(world.settings.clone()).await.unwrap()), &seen, "whole").await;
    }
    let Counted { kills: of_backups, there } = counted;
    // The last calls may be more than are made.
    assert!(of_backups >= if all { 2 * calls - 8 } else { SAMPLE - 1 }, "{of_backups} of {calls}");
    println!(
        "recovery: {of_backups} kills of a backup at its {calls} calls, {there} after its manifest; 0 broken, 0 lost"
    );
    println!("recovery: {kills} kills of an expiry; everything kept restores, with {} rows", world.rows);
}
