//! Servers that go, come back, and take each other's place.

use super::*;
use crate::support::postgres::{Options, Stop};
use mainstay::backup::source::postgres::Address;

const MIB: u64 = 1 << 20;

fn small() -> Options {
    Options { segment_mib: Some(1), ..Options::default() }
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

/// Restarts a server as a standby of nobody, and promotes it: the next timeline, with the old log beside it.
async fn next_timeline(server: &mut Server) {
    server.stop(Stop::Fast).await;
    let signal = server.data().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    Server::give(&signal);
    server.start_again().await;
    server.promote().await;
}

/// Two servers on copies of one data folder: the same cluster, on the same timeline.
async fn twins() -> (Server, Server, tempfile::TempDir) {
    let mut first = Server::start(15, small()).await;
    first.sql("CREATE TABLE t (x text)").await;
    first.stop(Stop::Fast).await;
    let copy = tempfile::tempdir().unwrap();
    let data = copy.path().join("data");
    assert!(std::process::Command::new("cp").arg("-a").arg(first.data()).arg(&data).status().unwrap().success());
    std::fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    first.start_again().await;
    (first, Server::on(15, &data, small()).await, copy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_another_cluster_is_refused_until_somebody_says_so() {
    let (first, second) = (Server::start(15, Options::default()).await, Server::start(17, Options::default()).await);
    let place = Place::new();
    let shipper = Shipper::start(place.job(&first));
    until_shipped(&shipper, &first, 1).await;
    assert!(shipper.stop(PATIENCE).await);
    let shipper = Shipper::start(place.job(&second));
    let status = until(&shipper, "refused", |status| status.activity == Activity::Refused).await;
    let (old, new) = (cluster(&first).await, cluster(&second).await);
    assert!(
        status.words.contains(&old.system.to_string()) && status.words.contains(&new.system.to_string()),
        "{}",
        status.words
    );
    assert!(place.keys_of(&new).await.is_empty());
    drop(shipper);
    let mut job = place.job(&second);
    job.new_cluster = true;
    let shipper = Shipper::start(job);
    until_shipped(&shipper, &second, 1).await;
    // The old one's log is where it was.
    assert!(!place.keys_of(&old).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_two_servers_that_write_one_history_are_found_out() {
    let (first, second, _copy) = twins().await;
    let place = Place::new();
    let shipper = Shipper::start(place.job(&first));
    first.sql("INSERT INTO t VALUES ('written by the first')").await;
    until_shipped(&shipper, &first, 1).await;
    assert!(shipper.stop(PATIENCE).await);
    let cluster = cluster(&first).await;
    let before = place.log(&cluster, Timeline(1), size()).await;
    second.sql("INSERT INTO t SELECT 'written by the second' FROM generate_series(1, 10000)").await;
    let shipper = Shipper::start(place.job(&second));
    let status = until(&shipper, "refused", |status| status.activity == Activity::Refused).await;
    assert!(status.words.contains("two servers have written one history"), "{}", status.words);
    let after = place.log(&cluster, Timeline(1), size()).await;
    assert!(before == after, "nothing was put on top of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_two_servers_promoted_to_one_timeline_are_found_out() {
    let (mut first, mut second, _copy) = twins().await;
    let place = Place::new();
    next_timeline(&mut first).await;
    let shipper = Shipper::start(place.job(&first));
    until_shipped(&shipper, &first, 2).await;
    assert!(shipper.stop(PATIENCE).await);
    second.sql("INSERT INTO t SELECT 'only here' FROM generate_series(1, 100)").await;
    next_timeline(&mut second).await;
    let shipper = Shipper::start(place.job(&second));
    let status = until(&shipper, "refused", |status| status.activity == Activity::Refused).await;
    assert!(status.words.contains("00000002.history") && status.words.contains("two servers"), "{}", status.words);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_two_promotions_while_nobody_looked_are_followed_with_their_history_files() {
    for version in Server::versions() {
        let mut server = Server::start(version, small()).await;
        server.sql("CREATE TABLE t (x text)").await;
        let place = Place::new();
        let shipper = Shipper::start(place.job(&server));
        until_shipped(&shipper, &server, 1).await;
        assert!(shipper.stop(PATIENCE).await);
        for promotion in 1..3 {
            server
                .sql(&format!("INSERT INTO t SELECT 'before promotion {promotion}' FROM generate_series(1, 20000)"))
                .await;
            next_timeline(&mut server).await;
        }
        server.sql("INSERT INTO t VALUES ('after both')").await;
        let shipper = Shipper::start(place.job(&server));
        let status = until(&shipper, "something of the log", |status| status.durable.is_some()).await;
        assert_eq!(status.timeline, Some(Timeline(1)), "the old timeline comes first");
        let cluster = cluster(&server).await;
        assert_eq!(place.histories(&cluster).await, [Timeline(2), Timeline(3)], "history files come before any log");
        until_shipped(&shipper, &server, 3).await;
        assert!(place.gaps(&cluster).await.is_empty());
        // Each timeline is whole up to where the next one began.
        let file = std::fs::read_to_string(server.data().join("pg_wal/00000003.history")).unwrap();
        let ends: Vec<Lsn> = file
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| line.split('\t').nth(1).unwrap().parse().unwrap())
            .collect();
        for (index, end) in ends.iter().enumerate() {
            let (begin, log) = place.log(&cluster, Timeline(index as u32 + 1), size()).await;
            assert_eq!(begin.0 + log.len() as u64, end.0, "timeline {}", index + 1);
            if let Some(before) = index.checked_sub(1) {
                assert_eq!(begin, ends[before].segment_start(size()), "it begins with a whole segment");
            }
        }
        let (_, log) = place.log(&cluster, Timeline(3), size()).await;
        assert!(holds(&log, "after both"));
        assert!(shipper.stop(PATIENCE).await);
        assert_eq!(place.frontiers(&cluster).await.pop().unwrap().timeline, Timeline(3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r07_a_primary_killed_in_mid_segment_is_followed_by_its_standby_without_a_hole() {
    for version in Server::versions() {
        let mut primary = Server::start(version, small()).await;
        primary.sql("CREATE TABLE t (x text)").await;
        let standby = Server::standby(&primary, Options::default()).await;
        let place = Place::new();
        let mut job = place.job(&primary);
        let (one, other) = (primary.port(), standby.port());
        let both = format!(
            "postgres://postgres@127.0.0.1:{one},127.0.0.1:{other}/?sslmode=disable&target_session_attrs=primary"
        );
        job.address = Address::parse(&both).unwrap();
        let shipper = Shipper::start(job);
        primary.sql("INSERT INTO t SELECT 'on the first' FROM generate_series(1, 30000)").await;
        until_shipped(&shipper, &primary, 1).await;
        let end = end_of_log(&primary).await;
        let cluster = cluster(&primary).await;
        standby.until(&format!("SELECT pg_last_wal_receive_lsn() >= '{end}'"), "t").await;
        primary.stop(Stop::Kill).await;
        standby.promote().await;
        standby.sql("INSERT INTO t VALUES ('on the second')").await;
        until_shipped(&shipper, &standby, 2).await;
        assert!(place.gaps(&cluster).await.is_empty(), "{:?}", place.gaps(&cluster).await);
        let (_, log) = place.log(&cluster, Timeline(2), size()).await;
        assert!(holds(&log, "on the second"));
        let (begin, log) = place.log(&cluster, Timeline(1), size()).await;
        let switch = std::fs::read_to_string(standby.data().join("pg_wal/00000002.history")).unwrap();
        let switch: Lsn = switch.split('\t').nth(1).unwrap().parse().unwrap();
        assert!(begin.0 + log.len() as u64 >= switch.0 && switch >= end, "timeline 1 is stored to its end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r08_a_standby_is_refused_and_nothing_is_made_on_it() {
    let primary = Server::start(15, Options::default()).await;
    let standby = Server::standby(&primary, Options::default()).await;
    let place = Place::new();
    let shipper = Shipper::start(place.job(&standby));
    let status = until(&shipper, "refused", |status| status.activity == Activity::Refused).await;
    assert!(status.words.contains("standby"), "{}", status.words);
    assert_eq!(standby.value("SELECT count(*) FROM pg_replication_slots").await, "0");
    drop(shipper);
    // Said to be wanted, it is read.
    let mut job = place.job(&standby);
    job.standby = true;
    let shipper = Shipper::start(job);
    primary.sql("CREATE TABLE t (x text)").await;
    until_shipped(&shipper, &primary, 1).await;
    assert_eq!(standby.value("SELECT count(*) FROM pg_replication_slots").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r08_a_server_that_was_shut_down_is_left_alone_for_ten_seconds() {
    let mut server = Server::start(15, Options::default()).await;
    let place = Place::new();
    let shipper = Shipper::start(place.job(&server));
    until_shipped(&shipper, &server, 1).await;
    let stopped = Instant::now();
    server.stop(Stop::Fast).await;
    until(&shipper, "waiting", |status| status.activity == Activity::Waiting).await;
    server.start_again().await;
    until(&shipper, "streaming", |status| status.activity == Activity::Streaming).await;
    assert!(stopped.elapsed() >= Duration::from_secs(10), "it came back after {:?}", stopped.elapsed());
    // The server's last words, its shutdown checkpoint, are stored too.
    until_shipped(&shipper, &server, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r09_log_that_went_while_nobody_read_it_is_a_gap_on_record() {
    for version in Server::versions() {
        let mut options = small();
        let settings =
            ["wal_keep_size = 0", "max_slot_wal_keep_size = '2MB'", "min_wal_size = '2MB'", "max_wal_size = '4MB'"];
        options.settings = settings.iter().map(|line| (*line).to_owned()).collect();
        let server = Server::start(version, options).await;
        server.sql("CREATE TABLE t (x text)").await;
        let place = Place::new();
        let shipper = Shipper::start(place.job(&server));
        let stored = until_shipped(&shipper, &server, 1).await;
        assert!(shipper.stop(PATIENCE).await);
        for _ in 0..4 {
            server.sql("INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 60000) i").await;
            server.sql("CHECKPOINT").await;
        }
        server.until("SELECT wal_status FROM pg_replication_slots", "lost").await;
        let shipper = Shipper::start(place.job(&server));
        let status = until(&shipper, "a base backup asked for", |status| status.needs_base.is_some()).await;
        assert!(status.needs_base.as_ref().unwrap().contains("take a base backup"), "{status:?}");
        let end = until_shipped(&shipper, &server, 1).await;
        let cluster = cluster(&server).await;
        let gaps = place.gaps(&cluster).await;
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert!(gaps[0].from >= stored && gaps[0].to <= end && !gaps[0].why.is_empty(), "{gaps:?}");
        // What is stored ends where the gap begins, so nobody takes what comes after for its continuation.
        let (begin, log) = place.log(&cluster, Timeline(1), size()).await;
        assert_eq!(begin.0 + log.len() as u64, gaps[0].from.0);
        drop(shipper);
        // The gap is passed by every later start.
        let shipper = Shipper::start(place.job(&server));
        server.sql("INSERT INTO t VALUES ('after the gap')").await;
        until_shipped(&shipper, &server, 1).await;
        assert_eq!(place.gaps(&cluster).await.len(), 1);
    }
}
