//! What is done about a source in trouble, on real servers: a slot that would fill a disk, commits that would hang.

use crate::support::postgres::{Options, Server};
use crate::support::store::S3Server;
use crate::support::store_proxy::{Fault, Rule, StoreProxy};
use futures_util::FutureExt as _;
use mainstay::backup::catalog::index::Catalogue;
use mainstay::backup::keeper::{BackedUp, Book, Entry, Episode, Keeper, Kind, Opening, Setup, Wanted};
use mainstay::backup::logical::Way;
use mainstay::backup::repository::s3::{S3, S3Settings};
use mainstay::backup::seal::{Checker, KeySet, Sealer, SigningKey, new_key_set_for};
use mainstay::config::backup::{Around, Source, parse};
use mainstay::config::secret::SecretStore;
use mainstay::model::SourceName;
use mainstay::model::source_view::{ConcernKind, SourceState, SourceView};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long anything may take on a machine that is busy with the other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A keeper whose store can be broken, and what it wrote down.
struct Lab {
    proxy: StoreProxy,
    settings: S3Settings,
    keys: KeySet,
    source: Source,
    /// What a daemon has in its database: open episodes, and all that was told.
    open: Arc<Mutex<Vec<Episode>>>,
    told: Arc<Mutex<Vec<(ConcernKind, bool)>>>,
    keeper: Keeper,
    stop: watch::Sender<bool>,
    _store: S3Server,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new(server: &Server, more: &str) -> Lab {
        let store = S3Server::shared();
        let proxy = StoreProxy::start(&store.address());
        let settings = S3Settings { endpoint: Some(proxy.endpoint()), ..store.settings() };
        let folder = tempfile::tempdir().unwrap();
        let keys = new_key_set_for(SigningKey::open(&folder.path().join("sign.key")).unwrap());
        let secrets = SecretStore::new(Path::new("/nowhere"));
        let around = Around { env: &|_| None, folder: Path::new("/"), store: &secrets, repos: None };
        let text = format!("postgres: \"postgres://postgres@127.0.0.1:{}/?sslmode=disable\"\n{more}", server.port());
        let source = parse(&SourceName::new("shop-db").unwrap(), "shop-db.yml", &text, &around).unwrap();
        let stop = watch::Sender::new(false);
        let keeper = Keeper::new(stop.subscribe());
        let (open, told) = (Arc::default(), Arc::default());
        let lab = Lab { proxy, settings, keys, source, open, told, keeper, stop, _store: store, folder };
        lab.tend();
        lab
    }

    fn checker(&self) -> Checker {
        Checker::new(vec![self.keys.signing.public()])
    }

    fn tend(&self) {
        let (settings, source, checker) = (self.settings.clone(), self.source.clone(), self.checker());
        let sealer = Sealer::new(std::slice::from_ref(&self.keys.recipient), self.keys.signing.clone()).unwrap();
        let state = self.folder.path().to_owned();
        let opening: Opening = Arc::new(move || {
            let (settings, source) = (settings.clone(), source.clone());
            let (sealer, checker, state) = (sealer.clone(), checker.clone(), state.clone());
            async move {
                let repository = Arc::new(S3::open(settings).await.map_err(|error| error.to_string())?);
                let (programs, state) = (Way::Here(None), state.clone());
                Ok(Setup { source, repository, sealer, checker, owner: "the test".into(), state, programs })
            }
            .boxed()
        });
        let (open, told) = (Arc::clone(&self.open), Arc::clone(&self.told));
        let book: Book = Arc::new(move |entry| {
            let mut open = open.lock().unwrap();
            match entry {
                Entry::Read => {}
                Entry::Begin(episode) => {
                    told.lock().unwrap().push((episode.kind, false));
                    open.push(episode);
                }
                Entry::End(kind, _) => {
                    told.lock().unwrap().push((kind, true));
                    open.retain(|episode| episode.kind != kind);
                }
            }
            std::future::ready(Ok(open.clone())).boxed()
        });
        let config = "repos: { a: /x }\n";
        let config = mainstay::config::daemon::parse("mainstay.yml", config, &|_| None, Path::new("/srv")).unwrap();
        self.keeper.configure(vec![Wanted { source: self.source.clone(), place: config.repository, opening, book }]);
    }

    /// Another process takes its place, with what is written down.
    async fn restart(&mut self) {
        self.stop.send_replace(true);
        self.keeper.join().await;
        self.stop = watch::Sender::new(false);
        self.keeper = Keeper::new(self.stop.subscribe());
        self.tend();
    }

    /// The store is good by then: one that is not is waited for.
    async fn end(self) {
        self.proxy.calm();
        self.stop.send_replace(true);
        self.keeper.join().await;
    }

    fn view(&self) -> SourceView {
        self.keeper.views().remove(0)
    }

    async fn until(&self, what: &str, so: impl Fn(&SourceView) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !so(&self.view()) {
            assert!(Instant::now() < end, "not {what}: {:#?}", self.view());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn break_store(&self) {
        self.proxy.rule(Rule::new(Fault::Answer(503)));
    }

    fn told(&self) -> Vec<(ConcernKind, bool)> {
        self.told.lock().unwrap().clone()
    }
}

fn has(view: &SourceView, kind: ConcernKind) -> bool {
    view.concerns.iter().any(|concern| concern.kind == kind)
}

async fn write(server: &Server, mebibytes: u32) {
    let sql = format!(
        "select count(pg_logical_emit_message(false, 'x', repeat(n::text, 100000))) from generate_series(100, 99 + {mebibytes} * 4) n"
    );
    server.sql(&sql).await;
}

/// The repository is away, and the log that waits for it reaches what the file says: the slot goes, the server may throw
/// its log away, and what that costs is on record. When the repository is back, a base backup begins a new whole.
#[tokio::test]
async fn r09_a_slot_that_holds_back_too_much_is_dropped_and_a_new_base_backup_ends_the_gap() {
    let options = Options {
        segment_mib: Some(1),
        ..Options::with(&["min_wal_size = 2MB", "max_wal_size = 8MB", "wal_keep_size = 0"])
    };
    let server = Server::start(17, options).await;
    let mut lab = Lab::new(
        &server,
        "ship-every: 200ms\nwal-lag: { policy: drop-slot, warn: 16MiB, alarm: 20MiB, drop: 24MiB }\n",
    );
    lab.until("backed up", |view| view.last_backup.is_some()).await;
    let first = lab.view().last_backup.unwrap();
    lab.break_store();
    write(&server, 30).await;
    lab.until("dropped", |view| has(view, ConcernKind::SlotDropped)).await;
    server.until("select count(*) from pg_replication_slots", "0").await;
    for _ in 0..3 {
        server.sql("select pg_switch_wal()").await;
        server.sql("checkpoint").await;
    }
    // A process that comes after it does not drop what is not there, and still knows that a base backup is due.
    lab.proxy.calm();
    lab.restart().await;
    lab.until("backed up again", |view| view.last_backup.as_ref().is_some_and(|last| last.id != first.id)).await;
    lab.until("well again", |view| view.concerns.is_empty() && view.state == SourceState::Shipping).await;
    let told = lab.told();
    let dropped = |over| told.iter().filter(|one| **one == (ConcernKind::SlotDropped, over)).count();
    assert_eq!((dropped(false), dropped(true)), (1, 1), "{told:?}");
    assert!(told.contains(&(ConcernKind::LagAlarm, false)), "people hear of it before: {told:?}");
    let repository = S3::open(lab.settings.clone()).await.unwrap();
    let catalogue = Catalogue::read(&repository, &lab.checker(), &lab.source.name).await.unwrap();
    let holdings = catalogue.newest_cluster().unwrap();
    assert_eq!(holdings.gaps.len(), 1, "what is gone is on record");
    lab.end().await;
}

/// Somebody has put another cluster where the source was: nothing of it is taken, neither log nor base, before a person says
/// that it is the source now.
#[tokio::test]
async fn r04_a_base_backup_of_another_cluster_is_not_taken_until_somebody_says_so() {
    let (first, second) = (Server::start(15, Options::default()).await, Server::start(17, Options::default()).await);
    let mut lab = Lab::new(&first, "");
    lab.until("backed up", |view| view.last_backup.is_some()).await;
    lab.source.postgres = second.address();
    lab.restart().await;
    lab.until("stuck", |view| view.state == SourceState::Stuck && view.words.contains("--new-cluster")).await;
    let asked = lab.keeper.back_up(&lab.source.name, Kind::Whole).await.unwrap();
    assert!(matches!(&asked, BackedUp::Failed(failed) if failed.words.contains("--new-cluster")), "{asked:?}");
    let repository = S3::open(lab.settings.clone()).await.unwrap();
    let clusters = async || {
        let catalogue = Catalogue::read(&repository, &lab.checker(), &lab.source.name).await.unwrap();
        catalogue.clusters.values().map(|holdings| holdings.backups.len()).collect::<Vec<_>>()
    };
    assert_eq!(clusters().await, [1], "nothing of the other one");
    lab.keeper.take_over(&lab.source.name).unwrap();
    let first_backup = lab.view().last_backup.unwrap().id;
    lab.until("taken over", |view| view.last_backup.as_ref().is_some_and(|last| last.id != first_backup)).await;
    lab.until("shipping", |view| view.state == SourceState::Shipping).await;
    assert_eq!(clusters().await, [1, 1], "each has its own");
    lab.end().await;
}

/// The repository is away, and a commit hangs: after the stated time the standby steps down and the commit returns; a process
/// that comes after knows what to put back, and does when all is stored.
#[tokio::test]
async fn a_synchronous_standby_steps_down_and_up_again() {
    let server = Server::start(15, Options::default()).await;
    server.sql("create role keeper login replication").await;
    server.sql("create table t (n int)").await;
    let mut lab = Lab::new(&server, "synchronous: true\nstep-down: 3s\n");
    lab.until("backed up", |view| view.last_backup.is_some()).await;
    server.sql("alter system set synchronous_standby_names = 'FIRST 1 (mainstay, \"other one\")'").await;
    server.sql("select pg_reload_conf()").await;
    server.until("select sync_state from pg_stat_replication where application_name = 'mainstay'", "sync").await;
    // The other one is named here and does not exist: the rule without us must not wait for it either.
    server.sql("alter system set synchronous_standby_names = 'mainstay'").await;
    server.sql("select pg_reload_conf()").await;
    server.until("show synchronous_standby_names", "mainstay").await;

    lab.break_store();
    let began = Instant::now();
    server.sql("insert into t values (1)").await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(30), "{took:?}");
    lab.until("told", |view| has(view, ConcernKind::SteppedDown)).await;
    assert_eq!(server.value("show synchronous_standby_names").await, "");
    // Commits go on meanwhile.
    server.sql("insert into t values (2)").await;
    lab.proxy.calm();
    lab.restart().await;
    lab.until("known", |view| has(view, ConcernKind::SteppedDown)).await;
    server.until("show synchronous_standby_names", "mainstay").await;
    lab.until("well again", |view| !has(view, ConcernKind::SteppedDown)).await;
    server.sql("insert into t values (3)").await;
    let told = lab.told();
    let stepped = |over| told.iter().filter(|one| **one == (ConcernKind::SteppedDown, over)).count();
    assert_eq!((stepped(false), stepped(true)), (1, 1), "{told:?}");
    lab.end().await;
}

/// A role that may not is told of with the commands that let it, and steps down once they were run.
#[tokio::test]
async fn a_role_that_may_not_step_down_is_told_with_the_commands_that_let_it() {
    let server = Server::start(15, Options::default()).await;
    server.sql("create role keeper login replication").await;
    server.sql("create table t (n int)").await;
    let mut lab = Lab::new(&server, "synchronous: true\nstep-down: 2s\n");
    lab.source.postgres.user = "keeper".into();
    lab.restart().await;
    lab.until("backed up", |view| view.last_backup.is_some()).await;
    server.sql("alter system set synchronous_standby_names = 'mainstay'").await;
    server.sql("select pg_reload_conf()").await;
    server.until("select sync_state from pg_stat_replication where application_name = 'mainstay'", "sync").await;
    lab.break_store();
    let address = server.address();
    let waiting = tokio::spawn(async move {
        let open = mainstay::backup::source::postgres::Connection::open(
            &address,
            None,
            mainstay::backup::source::postgres::Purpose::Sql,
        );
        open.await.unwrap().query("insert into t values (1)").await.unwrap();
    });
    lab.until("told", |view| has(view, ConcernKind::CannotStepDown)).await;
    let words = lab.view().concerns.iter().map(|one| one.words.clone()).collect::<Vec<_>>().join("\n");
    let commands: Vec<&str> = words.lines().filter_map(|line| line.strip_prefix("hint: ")).collect();
    assert_eq!(commands.len(), 2, "{words}");
    assert!(!waiting.is_finished(), "nobody may let it go on");
    for sql in commands {
        // What was told is what helps, word for word.
        server.sql(&format!("set synchronous_commit = local; {sql}")).await;
    }
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    lab.until("stepped down", |view| has(view, ConcernKind::SteppedDown) && !has(view, ConcernKind::CannotStepDown))
        .await;
    lab.end().await;
}
