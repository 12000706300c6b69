//! A source with a repository, and restores from it.

use crate::support::postgres::{Options as ServerOptions, Server};
use crate::support::store;
use bytes::Bytes;
use jiff::Timestamp;
use mainstay::backup::catalog::holdings::Holdings;
use mainstay::backup::catalog::manifest::{Frontier, Manifest, VERSION};
use mainstay::backup::catalog::note;
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::repository::{Cluster, Item, Key, Repository};
use mainstay::backup::restore::{
    self, Feeding, Into, LocalServer, Options, Plan, Progress, Report, RestoreError, Target, Wish,
};
use mainstay::backup::seal::{Checker, KeySet, Opener, Sealer, new_key_set};
use mainstay::backup::source::postgres::{Address, BaseBackup, BaseOptions, Connection, Purpose};
use mainstay::backup::take::{self, Taken};
use mainstay::model::{Lsn, SegmentName, SourceName, Timeline};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A source, its repository, and a folder for what is restored.
pub(super) struct World {
    pub(super) server: Server,
    pub(super) repository: Arc<Folder>,
    pub(super) keys: KeySet,
    pub(super) cluster: Cluster,
    /// Seen by every user: servers run as `postgres`.
    pub(super) folder: tempfile::TempDir,
    pub(super) sealer: Sealer,
    frontiers: AtomicU64,
    restores: AtomicU64,
}

impl World {
    pub(super) async fn new(version: u32, options: ServerOptions) -> World {
        let server = Server::start(version, options).await;
        let folder = tempfile::Builder::new().prefix("mainstay-restore").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let repository = Arc::new(store::folder(&folder.path().join("repository")));
        let keys = new_key_set().unwrap();
        let sealer = Sealer::new(std::slice::from_ref(&keys.recipient), keys.signing.clone()).unwrap();
        let system = server.replication().await.identify().await.unwrap().system;
        let cluster = Cluster { source: SourceName::new("shop-db").unwrap(), system };
        let (frontiers, restores) = (AtomicU64::new(0), AtomicU64::new(0));
        World { server, repository, keys, cluster, folder, sealer, frontiers, restores }
    }

    pub(super) fn opener(&self) -> Opener {
        Opener::new(self.keys.identity.clone(), Checker::new(vec![self.keys.signing.public()]))
    }

    pub(super) fn key(&self, item: Item) -> Key {
        Key::Of(self.cluster.clone(), item)
    }

    /// Stores an object of the log as its writer would; one that is there stays.
    pub(super) async fn put(&self, item: Item, plain: &[u8]) {
        let key = self.key(item);
        let mut notes = BTreeMap::new();
        if matches!(key, Key::Of(_, Item::Segment(_) | Item::Piece { .. })) {
            notes.insert(note::SERVER_TIME.to_owned(), Timestamp::now().to_string());
        }
        let sealed = self.sealer.seal(&key, plain, notes).unwrap();
        self.repository.put_new(&key, &sealed).await.unwrap();
    }

    /// A base backup, and all of the log so far.
    pub(super) async fn backup(&self) -> Manifest {
        self.backup_with(|_| {}).await
    }

    /// The same, of a server that says something else of itself.
    pub(super) async fn backup_with(&self, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Manifest {
        self.take(take::Wish::Whole, change).await.manifest
    }

    /// What has changed since an earlier one, and all of the log so far.
    pub(super) async fn difference(&self, to: &Taken) -> Taken {
        let checker = Checker::new(vec![self.keys.signing.public()]);
        let (manifest, server_manifest) = (to.manifest.clone(), to.server_manifest.clone());
        let parent = take::Parent { manifest, server_manifest, checker };
        let taken = self.take(take::Wish::Difference(Box::new(parent)), |_| {}).await;
        assert_eq!(taken.manifest.parent.as_ref(), Some(&to.manifest.backup), "{:?}", taken.manifest.whole_because);
        taken
    }

    /// A backup of this kind, and all of the log so far.
    pub(super) async fn take(&self, wish: take::Wish, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Taken {
        // The log is stored right after: what is tested here is the way back.
        let taken = self.take_into(self.repository.clone(), wish, change, std::future::ready(())).await.unwrap();
        self.ship().await;
        taken
    }

    /// A backup through this repository; `meanwhile` is done when the server has sent it, before its manifest is written.
    pub(super) async fn take_into(
        &self,
        repository: Arc<dyn Repository>,
        wish: take::Wish,
        change: impl FnOnce(&mut BTreeMap<String, String>),
        meanwhile: impl Future<Output = ()> + Send,
    ) -> Result<Taken, take::TakeError> {
        let address = self.server.address();
        let mut connection = self.server.replication().await;
        let mut server = connection.facts(&address, None).await.unwrap().server;
        change(&mut server.settings);
        let (cluster, sealer, tell) = (self.cluster.clone(), self.sealer.clone(), Arc::new(|_| {}));
        let job = take::Job { cluster, server, repository, sealer, wish, tell };
        let open = move |parent: Option<Bytes>| -> futures_util::future::BoxFuture<'static, _> {
            let address = address.clone();
            Box::pin(async move {
                let connection = Connection::open(&address, None, Purpose::Replication).await?;
                let options = BaseOptions { fast_checkpoint: true, ..BaseOptions::default() };
                let mut manifest = parent.map(std::io::Cursor::new);
                let parent = manifest.as_mut().map(|reader| reader as _);
                Ok(take::events(BaseBackup::start(connection, &options, parent).await?))
            })
        };
        let (sent, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, waits) = (sent.clone(), ended.clone());
        let durable = |_| -> futures_util::future::BoxFuture<'static, _> {
            Box::pin(async move {
                told.notify_one();
                waits.notified().await;
                Ok(())
            })
        };
        let aside = async {
            sent.notified().await;
            meanwhile.await;
            ended.notify_one();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            taken = take::take(job, open, durable) => taken,
            () = aside => unreachable!("it never ends"),
        }
    }

    /// Stores the server's log as far as it is flushed: segments, a piece, history files, a frontier.
    pub(super) async fn ship(&self) {
        let flushed: Lsn = self.server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
        let timeline = self.server.value("SELECT timeline_id FROM pg_control_checkpoint()").await.parse().unwrap();
        self.ship_to(Timeline(timeline), flushed).await;
    }

    pub(super) async fn ship_to(&self, timeline: Timeline, flushed: Lsn) {
        let size = self.segment_size().await;
        let wal = self.server.data().join("pg_wal");
        let mut names: Vec<String> =
            fs::read_dir(&wal).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        for name in names {
            let bytes = |length: u64| fs::read(wal.join(&name)).unwrap()[..length as usize].to_vec();
            if let Some(of) = name.strip_suffix(".history") {
                let of = Timeline(u32::from_str_radix(of, 16).unwrap());
                self.put(Item::History(of), &fs::read(wal.join(&name)).unwrap()).await;
                continue;
            }
            let Ok(segment) = name.parse::<SegmentName>() else { continue };
            let start = segment.start(size).unwrap();
            if segment.timeline == timeline && start < flushed {
                let length = (flushed.0 - start.0).min(size.bytes());
                match length == size.bytes() {
                    true => self.put(Item::Segment(segment), &bytes(length)).await,
                    false => self.put(Item::Piece { timeline, first: start, last: flushed }, &bytes(length)).await,
                }
            }
        }
        self.frontier(timeline, flushed).await;
    }

    pub(super) async fn frontier(&self, timeline: Timeline, acknowledged: Lsn) {
        let now = Timestamp::now();
        let frontier = Frontier { version: VERSION, timeline, acknowledged, at: now, server_time: Some(now) };
        let number = self.frontiers.fetch_add(1, Ordering::Relaxed);
        self.put(Item::Frontier(number), &serde_json::to_vec(&frontier).unwrap()).await;
    }

    pub(super) async fn segment_size(&self) -> mainstay::model::SegmentSize {
        let bytes = self.server.value("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'").await;
        mainstay::model::SegmentSize::new(bytes.parse().unwrap()).unwrap()
    }

    /// Adds rows up to this number to the table `t`.
    pub(super) async fn rows_to(&self, last: u32) {
        self.server
            .sql(&format!(
                "INSERT INTO t SELECT i FROM generate_series((SELECT coalesce(max(i), 0) + 1 FROM t), {last}) i"
            ))
            .await;
    }

    pub(super) async fn holdings(&self) -> Holdings {
        restore::survey(&*self.repository, &self.opener(), &self.cluster.source, None).await.unwrap()
    }

    pub(super) async fn plan(&self, target: Target) -> Plan {
        self.try_plan(Wish::new(target)).await.unwrap()
    }

    pub(super) async fn try_plan(&self, wish: Wish) -> Result<Plan, restore::PlanError> {
        restore::plan(&self.holdings().await, &wish)
    }

    /// How many places were given out.
    pub(super) fn next(&self) -> u64 {
        self.restores.fetch_add(1, Ordering::Relaxed)
    }

    /// A new place, and how a server is started there.
    pub(super) fn options(&self) -> Options {
        let number = self.next();
        // Paths with spaces and quotes are paths.
        let data = self.folder.path().join(format!("it's \"restored\" {number}"));
        options(self.server.version(), &data, self.folder.path())
    }

    pub(super) async fn restore(&self, plan: &Plan, options: &Options) -> Result<Restored, RestoreError> {
        self.restore_from(self.repository.clone(), plan, options).await
    }

    pub(super) async fn restore_from(
        &self,
        repository: Arc<dyn Repository>,
        plan: &Plan,
        options: &Options,
    ) -> Result<Restored, RestoreError> {
        let progress = Arc::new(Progress::default());
        let report = restore::restore(repository, self.opener(), plan, options, progress.clone()).await?;
        let now = progress.now();
        assert_eq!(now.base_done_bytes, now.base_total_bytes, "all of the base is counted once");
        Ok(Restored::new(report, options))
    }

    /// Plans and restores, which must work.
    pub(super) async fn back_to(&self, target: Target) -> Restored {
        let plan = self.plan(target).await;
        self.restore(&plan, &self.options()).await.unwrap_or_else(|error| panic!("{error}\n{plan}"))
    }
}

/// Into a server of these programs at this place.
pub(super) fn options(version: u32, data: &Path, folder: &Path) -> Options {
    let user = nix::unistd::geteuid().is_root().then(|| {
        let user = User::from_name("postgres").unwrap().unwrap();
        (user.uid.as_raw(), user.gid.as_raw())
    });
    let socket = folder.join("s");
    let _ = fs::create_dir(&socket);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    let port = crate::support::ports::free();
    let role = "postgres".to_owned();
    let server = LocalServer { bin: Server::bin(version), user, port, role, socket: Some(socket) };
    let feeding = Feeding { patience: Duration::from_secs(2), ..Feeding::default() };
    Options { data: data.to_owned(), into: Into::Server(server), force: false, feeding, checks: Vec::new() }
}

/// A restored server; stopped when this goes.
pub(super) struct Restored {
    pub(super) report: Report,
    data: PathBuf,
    address: Address,
}

impl Restored {
    pub(super) fn new(report: Report, options: &Options) -> Restored {
        let Into::Server(server) = &options.into else { panic!("no server was asked for") };
        let socket = server.socket.as_ref().unwrap().display().to_string().replace('/', "%2F");
        let address = Address::parse(&format!("postgres://postgres@{socket}:{}/", server.port)).unwrap();
        Restored { report, data: options.data.clone(), address }
    }

    pub(super) async fn value(&self, sql: &str) -> String {
        let mut connection = Connection::open(&self.address, None, Purpose::Sql).await.unwrap();
        let rows = connection.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let value = rows.rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
        String::from_utf8(value.to_vec()).unwrap()
    }

    /// How many rows there are, when they are those from 1 on.
    pub(super) async fn rows(&self) -> u32 {
        assert_eq!(self.value("SELECT pg_is_in_recovery()").await, "f");
        self.value("SELECT CASE WHEN coalesce(max(i), 0) = count(*) THEN count(*) END FROM t").await.parse().unwrap()
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        stop(&self.data);
    }
}

/// The process of the server at a place, if one runs.
pub(super) fn server_at(data: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?);
    kill(pid, None).is_ok().then_some(pid)
}

/// Stops the server at a place, if one runs.
pub(super) fn stop(data: &Path) {
    let Some(pid) = server_at(data) else { return };
    let _ = kill(pid, Signal::SIGQUIT);
    gone(data, Duration::from_secs(20));
}

/// Waits until no server runs at a place.
pub(super) fn gone(data: &Path, within: Duration) {
    let until = Instant::now() + within;
    while server_at(data).is_some() {
        assert!(Instant::now() < until, "the server in {} goes on", data.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
