//! An S3 store that fails in every way, and writers that are killed at one call to it after the other.

use super::*;
use crate::support::postgres::Options;
use crate::support::store::{S3Server, credentials};
use crate::support::store_proxy::{Fault, Rule, StoreProxy, When};
use mainstay::backup::repository::s3::{S3, S3Settings};
use mainstay::backup::source::postgres::Address;
use nix::unistd::Pid;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Between two transactions of a thousand rows.
const PAUSE: Duration = Duration::from_millis(40);
/// Set for the child alone: what it ships, from where, to where.
const CHILD: &str = "MAINSTAY_TEST_SHIPS";

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

async fn busy(server: &Server, stop: Arc<AtomicBool>, pause: Duration) -> tokio::task::JoinHandle<()> {
    server.sql("CREATE TABLE t (x text)").await;
    let mut writer = server.connection().await;
    tokio::spawn(async move {
        while !stop.load(Ordering::Relaxed) {
            writer.query("INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 1000) i").await.unwrap();
            tokio::time::sleep(pause).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_through_a_store_that_fails_and_loses_answers_nothing_is_lost() {
    let store = S3Server::shared();
    let proxy = StoreProxy::start(&store.address());
    let settings = store.settings();
    let place = Place::of(tempfile::tempdir().unwrap(), Arc::new(S3::open(settings.clone()).await.unwrap()));
    let settings = S3Settings { endpoint: Some(proxy.endpoint()), ..settings };
    let server = Server::start(15, Options { segment_mib: Some(1), ..Options::default() }).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = busy(&server, stop.clone(), PAUSE).await;
    proxy.rule(Rule::new(Fault::LoseAnswer).method("PUT").every(5));
    proxy.rule(Rule::new(Fault::CutRequest).method("PUT").every(7));
    proxy.rule(Rule::new(Fault::Answer(503)).every(6));
    proxy.rule(Rule::new(Fault::Delay(Duration::from_millis(200))).every(3));
    let mut job = place.job(&server);
    job.repository = Arc::new(S3::open(settings).await.unwrap());
    let shipper = Shipper::start(job);
    let cluster = cluster(&server).await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let durable = shipper.status().borrow().acknowledged.unwrap_or_default();
        let (begin, log) = place.log(&cluster, Timeline(1), size()).await;
        assert!(begin.0 + log.len() as u64 >= durable.0 || log.is_empty(), "{durable} is told to be stored");
    }
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    let end = until_shipped(&shipper, &server, 1).await;
    let (calls, _) = proxy.told();
    assert!(calls > 40, "{calls} calls");
    assert!(place.is_the_servers(&server, &cluster, Timeline(1), size()).await >= end);
    assert!(shipper.stop(PATIENCE).await);
}

/// Ships until it is killed.
async fn child(text: &str) {
    let words: Vec<&str> = text.split('\n').collect();
    let [endpoint, prefix, access, secret, server, recipient, key] = words[..] else { panic!("{text}") };
    let settings = S3Settings {
        prefix: prefix.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        path_style: true,
        credentials: Some(credentials((access, secret))),
        ..S3Settings::new(crate::support::store::BUCKET)
    };
    let signing = SigningKey::read(Path::new(key)).unwrap();
    let job = Job {
        source: SourceName::new("db").unwrap(),
        address: Address::parse(server).unwrap(),
        password: None,
        slot: "mainstay_db".into(),
        ship_every: Duration::from_millis(50),
        synchronous: false,
        standby: false,
        new_cluster: false,
        repository: Arc::new(S3::open(settings).await.unwrap()),
        checker: Checker::new(vec![signing.public()]),
        sealer: Sealer::new(&[recipient.to_owned()], signing).unwrap(),
    };
    let shipper = Shipper::start(job);
    tokio::time::sleep(PATIENCE).await;
    panic!("nobody killed it: {:?}", shipper.status().borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_at_any_call_to_the_store_loses_nothing() {
    if let Ok(text) = std::env::var(CHILD) {
        return child(&text).await;
    }
    let store = S3Server::shared();
    let proxy = StoreProxy::start(&store.address());
    // Nobody but this test reads everything again and again: it has time.
    let settings = S3Settings { attempt: PATIENCE, trying: 2 * PATIENCE, ..store.settings() };
    let place = Place::of(tempfile::tempdir().unwrap(), Arc::new(S3::open(settings.clone()).await.unwrap()));
    let server = Server::start(17, Options { segment_mib: Some(1), ..Options::default() }).await;
    let stop = Arc::new(AtomicBool::new(false));
    // All that was stored is read again after each kill, so a long sweep writes less.
    let all = std::env::var("MAINSTAY_SOAK").is_ok();
    let load = busy(&server, stop.clone(), if all { 10 * PAUSE } else { PAUSE }).await;
    let cluster = cluster(&server).await;
    let key = place.folder.path().join("sign.key");
    let words = [
        &proxy.endpoint(),
        &settings.prefix,
        crate::support::store::ACCESS_KEY,
        crate::support::store::SECRET_KEY,
        &server.url(),
        &place.keys.recipient,
        key.to_str().unwrap(),
    ];
    // All calls of a start, some of its stride; every one of the first 60 when there is time.
    let sweep: Vec<usize> = if all { (1..=60).collect() } else { vec![1, 6, 7, 8, 10, 12, 15, 19, 24] };
    let name = std::thread::current().name().unwrap().to_owned();
    let mut killed = Vec::new();
    for (round, n) in sweep.into_iter().enumerate() {
        let when = if round % 2 == 0 { When::After } else { When::Before };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env(CHILD, words.join("\n"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        proxy.kill_at(Pid::from_raw(child.id() as i32), n, when);
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "it made only {} calls", proxy.told().0);
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
        killed.push(proxy.told().1.unwrap());
        let slot = server.value("SELECT restart_lsn FROM pg_replication_slots").await;
        let (begin, log) = place.log(&cluster, Timeline(1), size()).await;
        if let (false, Ok(told)) = (log.is_empty(), slot.parse::<Lsn>()) {
            assert!(begin.0 + log.len() as u64 >= told.0, "killed at {killed:?}: the server was told {told}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    let shipper = Shipper::start(place.job(&server));
    let end = until_shipped(&shipper, &server, 1).await;
    assert!(place.is_the_servers(&server, &cluster, Timeline(1), size()).await >= end);
    assert!(place.gaps(&cluster).await.is_empty());
    assert!(shipper.stop(PATIENCE).await);
    println!("recovery: {} kills of a process that ships; 0 bytes lost", killed.len());
}

/// The store takes a minute for whatever is put of the log, longer than one try has, and acts all the same. The server is
/// answered meanwhile, is told nothing that is not stored, and how far behind it is can be seen; then everything is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_r10_a_put_of_a_minute_loses_nothing_and_the_lag_is_shown() {
    const MINUTE: Duration = Duration::from_secs(60);
    let store = S3Server::shared();
    let proxy = StoreProxy::start(&store.address());
    let settings = store.settings();
    let place = Place::of(tempfile::tempdir().unwrap(), Arc::new(S3::open(settings.clone()).await.unwrap()));
    for version in Server::versions() {
        let options = Options { segment_mib: Some(1), ..Options::with(&["wal_sender_timeout = '5s'"]) };
        let server = Server::start(version, options).await;
        let stop = Arc::new(AtomicBool::new(false));
        let load = busy(&server, stop.clone(), PAUSE).await;
        let mut job = place.job(&server);
        // Each version is a cluster of its own; the time that one try and all of them have is what it is for everybody.
        job.new_cluster = true;
        let usual = S3Settings::new(crate::support::store::BUCKET);
        let (attempt, trying) = (usual.attempt, usual.trying);
        let slow = S3Settings { endpoint: Some(proxy.endpoint()), attempt, trying, ..settings.clone() };
        job.repository = Arc::new(S3::open(slow).await.unwrap());
        let shipper = Shipper::start(job);
        until_shipped(&shipper, &server, 1).await;
        let cluster = cluster(&server).await;
        let walsender = "SELECT pid FROM pg_stat_replication";
        let pid = server.value(walsender).await;
        for log in ["/piece/", "/wal/"] {
            proxy.rule(Rule::new(Fault::Delay(MINUTE)).method("PUT").key(log));
        }
        let began = Instant::now();
        let (mut waited, mut behind) = (Duration::ZERO, 0);
        while began.elapsed() < MINUTE - Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(server.value(walsender).await, pid, "the connection was lost after {:?}", began.elapsed());
            let slot: Lsn = server.value("SELECT restart_lsn FROM pg_replication_slots").await.parse().unwrap();
            let (begin, log) = place.log(&cluster, Timeline(1), size()).await;
            assert!(begin.0 + log.len() as u64 >= slot.0, "the server was told {slot}");
            let status = shipper.status().borrow().clone();
            (waited, behind) = (waited.max(status.waiting), behind.max(status.lag_bytes().unwrap_or(0)));
        }
        assert!(waited > Duration::from_secs(40) && behind > 0, "{waited:?}, {behind} bytes are shown");
        proxy.calm();
        stop.store(true, Ordering::Relaxed);
        load.await.unwrap();
        let end = until_shipped(&shipper, &server, 1).await;
        assert!(place.is_the_servers(&server, &cluster, Timeline(1), size()).await >= end);
        assert!(place.gaps(&cluster).await.is_empty());
        assert!(shipper.stop(PATIENCE).await);
        println!("recovery: PostgreSQL {version}, a put of 60 s: shown {waited:?} and {behind} bytes behind; 0 lost");
    }
}
