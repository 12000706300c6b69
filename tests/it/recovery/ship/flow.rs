//! The way it goes when nothing breaks.

use super::*;
use crate::support::postgres::Options;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_on_an_idle_server_is_stored_within_three_seconds() {
    for version in Server::versions() {
        let server = Server::start(version, Options::default()).await;
        server.sql("CREATE TABLE t (x text)").await;
        let place = Place::new();
        let mut job = place.job(&server);
        job.ship_every = Duration::from_secs(1);
        let shipper = Shipper::start(job);
        until_shipped(&shipper, &server, 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let committed = Instant::now();
        server.sql("INSERT INTO t VALUES ('the-row-of-the-idle-server')").await;
        let end = end_of_log(&server).await;
        until(&shipper, "the row", |status| status.has(Timeline(1), end)).await;
        assert!(committed.elapsed() < Duration::from_secs(3), "{:?}", committed.elapsed());
        said(&format!("PostgreSQL {version}, a row on an idle server"), committed);
        // Without the shipper, the daemon, or the server: what is in the repository is enough.
        let cluster = cluster(&server).await;
        drop((shipper, server));
        let (_, log) = place.log(&cluster, Timeline(1), SegmentSize::USUAL).await;
        assert!(holds(&log, "the-row-of-the-idle-server"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_any_length_replace_their_pieces_and_are_the_servers_own() {
    let versions = Server::versions();
    for (index, mib) in [1, 64].into_iter().enumerate() {
        let options = Options { segment_mib: Some(mib), ..Options::with(&["min_wal_size = 256MB"]) };
        let server = Server::start(versions[index % versions.len()], options).await;
        let size = SegmentSize::new(u64::from(mib) << 20).unwrap();
        server.sql("CREATE TABLE t (x text)").await;
        let place = Place::new();
        let shipper = Shipper::start(place.job(&server));
        for _ in 0..6 {
            server.sql("INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 10000) i").await;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let end = until_shipped(&shipper, &server, 1).await;
        let cluster = cluster(&server).await;
        assert!(place.is_the_servers(&server, &cluster, Timeline(1), size).await >= end);
        assert!(shipper.stop(PATIENCE).await);
        let items = place.keys_of(&cluster).await;
        let segments = items.iter().filter(|item| matches!(item, Item::Segment(_))).count();
        assert_eq!(segments > 3, mib == 1, "{items:?}");
        let last = place.frontiers(&cluster).await.pop().unwrap();
        assert!(last.acknowledged >= end && last.timeline == Timeline(1) && last.server_time.is_some(), "{last:?}");
        // Acknowledged is what the slot keeps no longer.
        let slot: Lsn = server.value("SELECT restart_lsn FROM pg_replication_slots").await.parse().unwrap();
        assert!(
            slot >= end && slot <= last.acknowledged,
            "the slot is at {slot}, {} was acknowledged",
            last.acknowledged
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_commit_returns_when_it_is_stored() {
    let options = Options::with(&["synchronous_standby_names = '*'"]);
    let server = Server::start(Server::versions()[0], options).await;
    let place = Place::new();
    let mut job = place.job(&server);
    job.synchronous = true;
    let shipper = Shipper::start(job);
    server.until("SELECT sync_state FROM pg_stat_replication", "sync").await;
    let cluster = cluster(&server).await;
    let mut connection = server.connection().await;
    connection.query("CREATE TABLE t (x text)").await.unwrap();
    let mut took = Vec::new();
    for number in 0..40 {
        let began = Instant::now();
        for level in ["on", "remote_apply"] {
            connection
                .query(&format!("SET synchronous_commit = {level}; INSERT INTO t VALUES ('row-{number}-{level}.')"))
                .await
                .unwrap();
        }
        took.push(began.elapsed() / 2);
        if number % 10 == 0 {
            // The moment the server said yes, and with nothing but the repository.
            let (_, log) = place.log(&cluster, Timeline(1), SegmentSize::USUAL).await;
            assert!(holds(&log, &format!("row-{number}-on.")) && holds(&log, &format!("row-{number}-remote_apply.")));
        }
    }
    took.sort_unstable();
    println!("a synchronous commit into a folder: p50 {:?}, p99 {:?}", took[20], took[39]);
    assert!(shipper.stop(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_burst_of_writes_the_lag_is_shown_and_nothing_is_lost() {
    let server = Server::start(15, Options::default()).await;
    server.sql("CREATE TABLE t (x text)").await;
    let place = Place::new();
    let mut job = place.job(&server);
    job.ship_every = Duration::from_secs(1);
    let shipper = Shipper::start(job);
    until(&shipper, "streaming", |status| status.activity == Activity::Streaming).await;
    let begun = end_of_log(&server).await;
    let mut writer = server.connection().await;
    let stop = Instant::now() + Duration::from_secs(6);
    let load = tokio::spawn(async move {
        while Instant::now() < stop {
            writer.query("INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 5000) i").await.unwrap();
        }
    });
    // Each commit's place with its time; answered when the status says that it is stored.
    let mut status = shipper.status();
    let (mut asked, mut lags) = (std::collections::VecDeque::new(), Vec::new());
    while Instant::now() < stop || !asked.is_empty() {
        if Instant::now() < stop {
            asked.push_back((Instant::now(), end_of_log(&server).await));
        }
        let _ = tokio::time::timeout(Duration::from_millis(20), status.changed()).await;
        while asked.front().is_some_and(|(_, at)| status.borrow().has(Timeline(1), *at)) {
            lags.extend(asked.pop_front().map(|(committed, _)| committed.elapsed()));
        }
        assert!(Instant::now() < stop + PATIENCE, "{:?}", status.borrow());
    }
    load.await.unwrap();
    let end = until_shipped(&shipper, &server, 1).await;
    lags.sort_unstable();
    println!(
        "commit to durable under load, ship-every 1 s: p50 {:?}, p99 {:?} of {}; {} MiB/s",
        lags[lags.len() / 2],
        lags[(lags.len() * 99 / 100).min(lags.len() - 1)],
        lags.len(),
        (end.0 - begun.0) / (6 << 20)
    );
    assert!(place.is_the_servers(&server, &cluster(&server).await, Timeline(1), SegmentSize::USUAL).await >= end);
}
