//! The log as it is written: whole, in order, and answered for.

use super::proxy::{Act, Proxy, message};
use super::{end_of, read_to, segment_size, stream_of};
use crate::support::postgres::{Options, Server, Stop};
use mainstay::backup::source::postgres::{
    Address, Connection, PostgresError, Purpose, WalEvent, WalOptions, WalStream,
};
use mainstay::model::{Lsn, SystemId, Timeline};
use std::fs;
use std::time::{Duration, Instant};

async fn over(address: &Address, options: WalOptions) -> Result<WalStream, PostgresError> {
    let connection = Connection::open(address, None, Purpose::Replication).await?;
    WalStream::start(connection, options).await
}

/// From the beginning of the segment that is being written, and the place where the log ends now.
async fn here(server: &Server) -> (WalOptions, Lsn) {
    let mut connection = server.replication().await;
    let size = segment_size(&mut connection).await;
    let identity = connection.identify().await.unwrap();
    (WalOptions::new(identity.system, identity.timeline, identity.flushed.segment_start(size)), end_of(server).await)
}

#[tokio::test]
async fn r04_segments_of_every_size_are_those_on_the_servers_disk() {
    for version in Server::versions() {
        for mib in [1, 64] {
            let server = Server::start(version, Options { segment_mib: Some(mib), ..Options::default() }).await;
            let (mut stream, from) = stream_of(&server, None).await;
            server.sql("CREATE TABLE t AS SELECT g, repeat('x', 200) FROM generate_series(1, 15000) g").await;
            let end = end_of(&server).await;
            assert!(mib == 64 || end.0 - from.0 > 3 << 20);
            let bytes = read_to(&mut stream, from, end).await;
            let mut connection = stream.stop().await.unwrap();
            let size = segment_size(&mut connection).await;
            assert_eq!(size.bytes(), u64::from(mib) << 20);
            let mut at = from;
            while at < end {
                let name = size.name(Timeline(1), at);
                assert_eq!(
                    server.value(&format!("SELECT pg_walfile_name('{}')", Lsn(at.0 + 1))).await,
                    name.to_string()
                );
                let file = fs::read(server.data().join("pg_wal").join(name.to_string())).unwrap();
                let (skip, length) = ((at.0 - from.0) as usize, size.bytes().min(end.0 - at.0) as usize);
                assert!(file[..length] == bytes[skip..skip + length], "{name}");
                at = Lsn(at.0 + size.bytes());
            }
        }
    }
}

#[tokio::test]
async fn r04_another_cluster_is_refused_until_told() {
    let server = Server::start(15, Options::default()).await;
    let (options, _) = here(&server).await;
    let other = WalOptions { system: SystemId(options.system.0 ^ 1), ..options.clone() };
    let error = over(&server.address(), other).await.unwrap_err();
    assert!(matches!(error, PostgresError::OtherCluster { .. }), "{error}");
    assert!(error.to_string().contains(&options.system.to_string()), "{error}");
    // A place that is not written yet, and a timeline that is none of its.
    let ahead = WalOptions { from: Lsn(options.from.0 + (1 << 40)), ..options.clone() };
    let error = over(&server.address(), ahead).await.unwrap_err();
    assert!(matches!(error, PostgresError::Ahead { .. }) && error.to_string().contains("hint:"), "{error}");
    let strange = WalOptions { timeline: Timeline(7), ..options };
    assert!(matches!(over(&server.address(), strange).await, Err(PostgresError::Refused { .. })));
}

/// The log's messages only, numbered from 0.
fn on_log(mut act: impl FnMut(usize, &[u8]) -> Act + Send + 'static) -> Box<super::proxy::Meddle> {
    let mut number = 0;
    Box::new(move |_, tag, body| {
        if tag != b'd' || body.first() != Some(&b'w') {
            return Act::Pass;
        }
        number += 1;
        act(number - 1, body)
    })
}

#[tokio::test]
async fn r03_a_message_that_is_lost_doubled_or_shifted_is_a_hole() {
    for version in Server::versions() {
        let server = Server::start(version, Options::default()).await;
        server.sql("CREATE TABLE t AS SELECT g, repeat('x', 200) FROM generate_series(1, 10000) g").await;
        let (options, end) = here(&server).await;
        // The first message counts too: what comes is checked against what was asked for.
        for at in [0, 1, 5] {
            for fault in ["lost", "doubled", "later", "earlier", "shortened"] {
                let meddle = on_log(move |number, body| {
                    if number != at {
                        return Act::Pass;
                    }
                    let shifted = |by: i64| {
                        let start = u64::from_be_bytes(body[1..9].try_into().unwrap()).wrapping_add_signed(by);
                        Act::Replace(message(b'd', &[&body[..1], &start.to_be_bytes(), &body[9..]].concat()))
                    };
                    match fault {
                        "lost" => Act::Drop,
                        "doubled" => Act::Replace([message(b'd', body), message(b'd', body)].concat()),
                        "later" => shifted(8),
                        "earlier" => shifted(-8),
                        _ => Act::Replace(message(b'd', &body[..body.len() - 1])),
                    }
                });
                let proxy = Proxy::start(server.port(), meddle).await;
                let mut stream = over(&proxy.address(), options.clone()).await.unwrap();
                let mut place = options.from;
                let error = loop {
                    match stream.next().await {
                        Ok(WalEvent::Bytes { start, bytes, .. }) => {
                            assert_eq!(start, place, "{fault} {at}");
                            place = Lsn(start.0 + bytes.len() as u64);
                            assert!(place < end, "{fault} {at}: it went on to the end");
                        }
                        Ok(_) => {}
                        Err(error) => break error,
                    }
                };
                assert!(
                    matches!(error, PostgresError::Hole { expected, .. } if expected == place),
                    "{fault} {at}: {error}"
                );
                assert!(stream.next().await.is_err());
            }
        }
    }
}

#[tokio::test]
async fn kinds_of_messages_that_are_not_known_are_passed_over() {
    let server = Server::start(15, Options::default()).await;
    server.sql("CREATE TABLE t AS SELECT g, repeat('x', 200) FROM generate_series(1, 5000) g").await;
    let (options, end) = here(&server).await;
    let meddle = on_log(|_, body| Act::Replace([message(b'd', b"s and more"), message(b'd', body)].concat()));
    let proxy = Proxy::start(server.port(), meddle).await;
    let mut stream = over(&proxy.address(), options.clone()).await.unwrap();
    read_to(&mut stream, options.from, end).await;
    // What is cut off is not.
    for bad in [&b""[..], b"w", b"w\0\0\0\0\0\0\0\0", b"k\0"] {
        let proxy = Proxy::start(server.port(), on_log(move |_, _| Act::Replace(message(b'd', bad)))).await;
        let error = over(&proxy.address(), options.clone()).await.unwrap().next().await.unwrap_err();
        assert!(matches!(error, PostgresError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn r10_a_caller_that_is_slow_does_not_lose_the_connection() {
    for version in Server::versions() {
        let server = Server::start(version, Options::with(&["wal_sender_timeout = 1500ms", "autovacuum = off"])).await;
        server.connection().await;
        let mut connection = server.replication().await;
        connection.create_slot("slow").await.unwrap();
        let (mut stream, from) = stream_of(&server, Some("slow")).await;
        // Much more than waits in queues and sockets.
        server.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 60000) g").await;
        let end = end_of(&server).await;
        assert!(end.0 - from.0 > 30 << 20);
        let walsender = "SELECT pid || ' ' || backend_start FROM pg_stat_replication WHERE state <> 'startup'";
        let before = server.value(walsender).await;
        // Nothing is taken for longer than twice the server's patience, and the server stays in touch all the same.
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(3300) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(server.value(walsender).await, before);
        }
        assert_eq!(
            server
                .value(
                    "SELECT reply_time > now() - interval '1.5 seconds' FROM pg_stat_replication WHERE state <> 'startup'"
                )
                .await,
            "t"
        );
        read_to(&mut stream, from, end).await;
        // And nothing to send for as long.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(server.value(walsender).await, before);
        assert!(stream.stop().await.is_some());
    }
}

#[tokio::test]
async fn a_connection_without_a_sign_of_life_is_given_up() {
    let server = Server::start(15, Options::default()).await;
    let (options, _) = here(&server).await;
    // Everything after the log began is lost on the way.
    let mut begun = false;
    let meddle = move |_: usize, tag: u8, _: &[u8]| {
        let act = if begun { Act::Drop } else { Act::Pass };
        begun |= tag == b'W';
        act
    };
    let proxy = Proxy::start(server.port(), Box::new(meddle)).await;
    // Short of wal_sender_timeout the server would not speak by itself.
    server.sql("ALTER SYSTEM SET wal_sender_timeout = '600ms'").await;
    server.sql("SELECT pg_reload_conf()").await;
    let options = WalOptions { patience: Duration::from_secs(1), ..options };
    let mut stream = over(&proxy.address(), options).await.unwrap();
    let began = Instant::now();
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, PostgresError::Silent { .. }) && error.is_passing(), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(10));
    // It was asked first: a status whose last byte is 1.
    let sent = proxy.sent.lock().unwrap().clone();
    let asked = sent.windows(39).any(|w| w.starts_with(b"d\0\0\0\x26r") && w[38] == 1);
    assert!(asked, "nobody asked the server for a sign of life");
}

#[tokio::test]
async fn r08_a_standby_is_refused_unless_it_is_wanted() {
    for version in Server::versions() {
        let primary = Server::start(version, Options::default()).await;
        let standby = Server::standby(&primary, Options::default()).await;
        let (options, _) = here(&primary).await;
        let mut connection = standby.replication().await;
        assert!(connection.in_recovery().await.unwrap());
        let error = WalStream::start(connection, options.clone()).await.unwrap_err();
        assert!(matches!(error, PostgresError::Standby) && error.to_string().contains("hint:"), "{error}");
        primary.sql("CREATE TABLE t AS SELECT 1").await;
        let end = end_of(&primary).await;
        let mut stream = over(&standby.address(), WalOptions { standby: true, ..options.clone() }).await.unwrap();
        read_to(&mut stream, options.from, end).await;
        // A primary that forbids writes by default is none.
        primary.sql("ALTER SYSTEM SET default_transaction_read_only = on").await;
        primary.sql("SELECT pg_reload_conf()").await;
        primary.until("SELECT setting FROM pg_settings WHERE name = 'archive_timeout'", "0").await;
        assert!(!primary.replication().await.in_recovery().await.unwrap());
    }
}

#[tokio::test]
async fn r08_a_server_that_stops_is_told_from_one_that_broke() {
    for version in Server::versions() {
        let mut server = Server::start(version, Options::default()).await;
        let (mut stream, mut at) = stream_of(&server, None).await;
        server.signal_stop(Stop::Fast);
        // It waits until its last byte is reported.
        let error = loop {
            match stream.next().await {
                Ok(WalEvent::Bytes { start, bytes, .. }) => {
                    assert_eq!(start, at);
                    at = Lsn(at.0 + bytes.len() as u64);
                    stream.report(at, at, at);
                }
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, PostgresError::ShuttingDown { .. }) && error.is_passing(), "{version}: {error}");
        assert!(server.ended().await.success());
        let error = Connection::open(&server.address(), None, Purpose::Replication).await.unwrap_err();
        assert!(error.is_passing(), "{error}");

        server.start_again().await;
        let (mut stream, _) = stream_of(&server, None).await;
        server.stop(Stop::Kill).await;
        let error = loop {
            if let Err(error) = stream.next().await {
                break error;
            }
        };
        assert!(matches!(error, PostgresError::Cut { .. } | PostgresError::Io { .. }) && error.is_passing(), "{error}");
        assert!(stream.stop().await.is_none());
    }
}

#[tokio::test]
async fn a_commit_waits_for_the_report_of_a_synchronous_standby() {
    for version in Server::versions() {
        let server = Server::start(version, Options::default()).await;
        server.sql("CREATE TABLE t (a int)").await;
        let (mut stream, mut at) = stream_of(&server, None).await;
        server.sql("ALTER SYSTEM SET synchronous_standby_names = 'mainstay'").await;
        server.sql("SELECT pg_reload_conf()").await;
        // A candidate only once it has reported.
        let end = end_of(&server).await;
        at = Lsn(at.0 + read_to(&mut stream, at, end).await.len() as u64);
        stream.report(at, at, at);
        server.until("SELECT sync_state FROM pg_stat_replication WHERE state <> 'startup'", "sync").await;
        for level in ["remote_write", "on", "remote_apply"] {
            let mut connection = server.connection().await;
            connection.query(&format!("SET synchronous_commit = {level}")).await.unwrap();
            let commit =
                tokio::spawn(async move { connection.query("INSERT INTO t VALUES (1)").await.map(|_| Instant::now()) });
            // What was received is not reported, so nobody may be told yes.
            let wait = Instant::now() + Duration::from_millis(300);
            while Instant::now() < wait {
                if let Ok(Ok(WalEvent::Bytes { start, bytes, .. })) =
                    tokio::time::timeout(Duration::from_millis(50), stream.next()).await
                {
                    at = Lsn(start.0 + bytes.len() as u64);
                }
            }
            assert!(!commit.is_finished(), "{level}: told yes too soon");
            let reported = Instant::now();
            stream.report(at, at, at);
            let told = tokio::time::timeout(Duration::from_secs(10), commit).await.unwrap().unwrap().unwrap();
            // Well before the next status that goes by the clock.
            assert!(told - reported < Duration::from_secs(3), "{level}: {:?}", told - reported);
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_leaves_the_slot_free() {
    let server = Server::start(17, Options::default()).await;
    server.replication().await.create_slot("s").await.unwrap();
    let (stream, _) = stream_of(&server, Some("s")).await;
    let (options, _) = here(&server).await;
    let again = || over_slot(&server, &options);
    assert_eq!(again().await.unwrap_err().code(), Some("55006"));
    drop(stream);
    server.until("SELECT active::text FROM pg_replication_slots", "false").await;
    let stream = again().await.unwrap();
    // Stopped with events that nobody took.
    server.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g").await;
    let mut connection = stream.stop().await.unwrap();
    connection.identify().await.unwrap();
}

async fn over_slot(server: &Server, options: &WalOptions) -> Result<WalStream, PostgresError> {
    over(&server.address(), WalOptions { slot: Some("s".into()), ..options.clone() }).await
}
