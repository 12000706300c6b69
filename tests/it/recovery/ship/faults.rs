//! A store that is late, and writers that are killed.

use super::*;
use crate::support::faulty::{Call, Faults, Faulty, What};
use crate::support::postgres::{Options, Stop};
use async_trait::async_trait;
use mainstay::backup::source::postgres::{Connection, Purpose};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

/// A door before the repository: while it is shut, puts of the log hang, or are stored and never answered.
struct Door {
    open: watch::Sender<bool>,
    /// Every second put is stored before it hangs.
    store_first: bool,
}

impl Door {
    fn before(place: &Place, store_first: bool) -> Arc<Faulty<Door>> {
        Faulty::over(place.repository.clone(), Door { open: watch::Sender::new(true), store_first })
    }

    fn stores_first(&self, call: &Call<'_>) -> bool {
        self.store_first && call.number.is_multiple_of(2)
    }

    async fn wait(&self, call: &Call<'_>) {
        if call.what == What::Put {
            self.open.subscribe().wait_for(|open| *open).await.unwrap();
        }
    }
}

#[async_trait]
impl Faults for Door {
    async fn before(&self, call: &Call<'_>) -> Result<(), RepositoryError> {
        if !self.stores_first(call) {
            self.wait(call).await;
        }
        Ok(())
    }
    async fn after(&self, call: &Call<'_>) -> Result<(), RepositoryError> {
        if self.stores_first(call) {
            self.wait(call).await;
        }
        Ok(())
    }
}

/// Where the server thinks that everything before is safe.
async fn promised(server: &Server) -> Lsn {
    server.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'mainstay_db'").await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_r10_the_server_is_told_only_what_is_stored_and_is_answered_while_the_store_hangs() {
    for version in Server::versions() {
        let settings = ["wal_sender_timeout = '2s'", "max_wal_size = 1GB"];
        let server = Server::start(version, Options::with(&settings)).await;
        server.sql("CREATE TABLE t (x text)").await;
        let place = Place::new();
        let door = Door::before(&place, true);
        let mut job = place.job(&server);
        job.repository = door.clone();
        let shipper = Shipper::start(job);
        until_shipped(&shipper, &server, 1).await;
        let cluster = cluster(&server).await;
        let walsender = "SELECT pid FROM pg_stat_replication";
        let pid = server.value(walsender).await;
        door.faults.open.send_replace(false);
        let before = end_of_log(&server).await;
        // More than the writer may hold: it has to stop reading, not answering.
        server.sql("INSERT INTO t SELECT repeat(md5(i::text), 20) FROM generate_series(1, 100000) i").await;
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            let (begin, log) = place.log(&cluster, Timeline(1), SegmentSize::USUAL).await;
            let (promised, stored) = (promised(&server).await, Lsn(begin.0 + log.len() as u64));
            assert!(promised <= stored, "the server was told {promised}, stored is {stored}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(server.value(walsender).await, pid, "the connection lived three times the server's patience");
        let status = shipper.status().borrow().clone();
        assert!(status.waiting > Duration::from_secs(3) && status.lag_bytes() > Some(0), "{status:?}");
        assert!(status.received.unwrap().0 - before.0 < 50 << 20, "memory is bounded: {status:?}");
        door.faults.open.send_replace(true);
        let end = until_shipped(&shipper, &server, 1).await;
        assert!(place.is_the_servers(&server, &cluster, Timeline(1), SegmentSize::USUAL).await >= end);
        assert!(shipper.stop(PATIENCE).await);
        let (promised, server_end) = (promised(&server).await, end_of_log(&server).await);
        assert!(promised >= end && promised <= server_end);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_killed_at_any_moment_is_followed_by_one_that_loses_nothing() {
    let server = Server::start(17, Options { segment_mib: Some(1), ..Options::default() }).await;
    server.sql("CREATE TABLE t (x text)").await;
    let place = Place::new();
    let mut writer = server.connection().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = stop.clone();
    let load = tokio::spawn(async move {
        while !told.load(std::sync::atomic::Ordering::Relaxed) {
            writer.query("INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 2000) i").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let cluster = cluster(&server).await;
    // Something is stored from the beginning on; before that the slot is where the server made it.
    let shipper = Shipper::start(place.job(&server));
    until_shipped(&shipper, &server, 1).await;
    drop(shipper);
    let mut acknowledged = Lsn(0);
    for round in 0..10_u64 {
        let door = Door::before(&place, round % 2 == 0);
        let mut job = place.job(&server);
        job.repository = door.clone();
        job.ship_every = Duration::from_millis(30);
        let shipper = Shipper::start(job);
        until(&shipper, "streaming", |status| status.activity == Activity::Streaming).await;
        tokio::time::sleep(Duration::from_millis(137 * round % 700)).await;
        // What is under way hangs, some of it stored and some not, when the writer dies.
        door.faults.open.send_replace(false);
        tokio::time::sleep(Duration::from_millis(60)).await;
        drop(shipper);
        acknowledged = acknowledged.max(promised(&server).await);
        let (begin, log) = place.log(&cluster, Timeline(1), SegmentSize::new(1 << 20).unwrap()).await;
        assert!(begin.0 + log.len() as u64 >= acknowledged.0, "round {round}: {acknowledged} was acknowledged");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    load.await.unwrap();
    let shipper = Shipper::start(place.job(&server));
    let end = until_shipped(&shipper, &server, 1).await;
    assert!(place.is_the_servers(&server, &cluster, Timeline(1), SegmentSize::new(1 << 20).unwrap()).await >= end);
    assert!(place.gaps(&cluster).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_come_is_stored_although_the_server_died_first() {
    let mut server = Server::start(15, Options::default()).await;
    server.sql("CREATE TABLE t (x text)").await;
    let place = Place::new();
    let door = Door::before(&place, false);
    let mut job = place.job(&server);
    job.repository = door.clone();
    let shipper = Shipper::start(job);
    until_shipped(&shipper, &server, 1).await;
    let cluster = cluster(&server).await;
    door.faults.open.send_replace(false);
    server.sql("INSERT INTO t VALUES ('the last row of all')").await;
    let end = end_of_log(&server).await;
    until(&shipper, "received", |status| status.received >= Some(end)).await;
    server.stop(Stop::Kill).await;
    std::fs::remove_dir_all(server.data()).unwrap();
    assert!(!has_folder(server.data()));
    door.faults.open.send_replace(true);
    until(&shipper, "the last row", |status| status.has(Timeline(1), end)).await;
    let (_, log) = place.log(&cluster, Timeline(1), SegmentSize::USUAL).await;
    assert!(holds(&log, "the last row of all"));
    drop(place.folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_synchronous_commit_is_lost_when_server_and_writer_are_killed() {
    // All of the log is read again at each kill; ten thousand of them are committed to the real daemon, in `story::kills`.
    let wanted: usize = if std::env::var("MAINSTAY_SOAK").is_ok() { 1_000 } else { 150 };
    // A quick machine has done all of them before anything is killed: the client goes on until this was, too.
    let killed = Arc::new(AtomicUsize::new(0));
    let least = 8;
    let mut server = Server::start(17, Options::with(&["synchronous_standby_names = '*'"])).await;
    let place = Place::new();
    let begin = |door: &Arc<Faulty<Door>>, server: &Server| {
        let mut job = place.job(server);
        (job.synchronous, job.repository) = (true, door.clone());
        Shipper::start(job)
    };
    let mut door = Door::before(&place, false);
    let mut shipper = begin(&door, &server);
    server.until("SELECT sync_state FROM pg_stat_replication", "sync").await;
    server.sql("CREATE TABLE t (x text)").await;
    let cluster = cluster(&server).await;
    // One commit after the other; those that the server said yes to.
    let yes = Arc::new(Mutex::new(Vec::<usize>::new()));
    let (said, address, counted) = (yes.clone(), server.address(), killed.clone());
    let client = tokio::spawn(async move {
        let (mut number, mut count) = (0, 0);
        let goes_on = |count| count < wanted || counted.load(Ordering::Relaxed) < least;
        while goes_on(count) {
            let Ok(mut connection) = Connection::open(&address, None, Purpose::Sql).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            while goes_on(count) {
                number += 1;
                if connection.query(&format!("INSERT INTO t VALUES ('commit-{number:08}.')")).await.is_err() {
                    break;
                }
                said.lock().unwrap().push(number);
                count += 1;
            }
        }
    });
    // What the repository alone has of it, as if server and writer were gone for good at this moment.
    let missing = async || {
        let yes = yes.lock().unwrap().clone();
        let (_, log) = place.log(&cluster, Timeline(1), SegmentSize::USUAL).await;
        let records = records(&log);
        let commit = |text: &&[u8]| text.starts_with(b"commit-") && text[15] == b'.';
        let found: std::collections::BTreeSet<&[u8]> = records.windows(16).filter(commit).collect();
        let texts = yes.iter().map(|number| format!("commit-{number:08}."));
        texts.filter(|text| !found.contains(text.as_bytes())).collect::<Vec<_>>()
    };
    let mut kills = 0_usize;
    while !client.is_finished() {
        let pause = 150 + getrandom::u32().unwrap() % 500;
        tokio::time::sleep(Duration::from_millis(pause.into())).await;
        // What is on its way when it dies does not arrive.
        door.faults.open.send_replace(false);
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(shipper);
        let lost = missing().await;
        assert!(lost.is_empty(), "kill {kills}: {lost:?}");
        if kills % 4 == 3 {
            server.stop(Stop::Kill).await;
            let _ = std::fs::remove_file(server.data().join("postmaster.pid"));
            server.start_again().await;
        }
        door = Door::before(&place, false);
        shipper = begin(&door, &server);
        kills += 1;
        killed.store(kills, Ordering::Relaxed);
    }
    client.await.unwrap();
    drop((shipper, server));
    let lost = missing().await;
    println!("recovery: {} acknowledged commits, {kills} kills, {} missing", yes.lock().unwrap().len(), lost.len());
    assert!(lost.is_empty() && kills >= least, "{kills} kills, {lost:?}");
}
