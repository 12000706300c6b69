//! Slots: the log stays until we have it.

use super::{end_of, read_to, stream_of};
use crate::support::postgres::{Options, Server};
use mainstay::backup::source::postgres::{PostgresError, WalOptions, WalStatus, WalStream};
use mainstay::model::Lsn;

/// Connections that are not only open.
const STREAMING: &str = "FROM pg_stat_replication WHERE state <> 'startup'";

#[tokio::test]
async fn r01_the_server_keeps_what_was_not_reported_and_only_that() {
    for version in Server::versions() {
        let server = Server::start(version, Options::default()).await;
        let mut connection = server.replication().await;
        assert!(!connection.drop_slot("mainstay").await.unwrap());
        assert!(connection.create_slot("mainstay").await.unwrap());
        // Twice is once.
        assert!(!connection.create_slot("mainstay").await.unwrap());
        let mut sql = server.connection().await;
        let made = sql.slot("mainstay").await.unwrap().unwrap();
        assert!(made.restart.is_some() && made.active == Some(false) && made.wal_status == Some(WalStatus::Reserved));
        assert_eq!(sql.slot("none").await.unwrap(), None);
        if version >= 15 {
            let seen = connection.slot("mainstay").await.unwrap().unwrap();
            assert_eq!((seen.restart, seen.timeline.map(|t| t.0)), (made.restart, Some(1)));
            assert_eq!(connection.slot("none").await.unwrap(), None);
        } else {
            assert!(matches!(connection.slot("mainstay").await, Err(PostgresError::Usage(_))));
        }
        let restart = "SELECT restart_lsn::text FROM pg_replication_slots";

        let (mut stream, from) = stream_of(&server, Some("mainstay")).await;
        server.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 10000) g").await;
        let end = end_of(&server).await;
        read_to(&mut stream, from, end).await;
        // In use: it stays.
        let error = connection.drop_slot("mainstay").await.unwrap_err();
        assert_eq!(error.code(), Some("55006"), "{error}");
        assert_eq!(sql.slot("mainstay").await.unwrap().unwrap().active, Some(true));
        // Received is not durable: nothing was reported, the slot is where it was.
        assert_eq!(server.value(restart).await, made.restart.unwrap().to_string());
        let promised = made.restart.unwrap();
        // A smaller place than the slot's, from an earlier connection: servers from 15 on tell us where it is.
        if version >= 15 {
            stream.report(from, from, from);
            server.until(&format!("SELECT write_lsn::text {STREAMING}"), &from.to_string()).await;
            assert_eq!(server.value(restart).await, promised.to_string());
        }
        let middle = Lsn(promised.0 + (end.0 - promised.0) / 2);
        stream.report(end, middle, middle);
        server.until(restart, &middle.to_string()).await;
        assert_eq!(server.value(&format!("SELECT write_lsn::text {STREAMING}")).await, end.to_string());
        // Back is not possible, and beyond the server's end neither: the slot never passes it, however far it was reported.
        stream.report(from, from, from);
        stream.report(Lsn(u64::MAX), Lsn(u64::MAX), Lsn(u64::MAX));
        for _ in 0..20 {
            server.sql("INSERT INTO t SELECT generate_series(1, 100)").await;
            assert_eq!(server.value("SELECT restart_lsn <= pg_current_wal_lsn() AND restart_lsn >= confirmed FROM pg_replication_slots, \
                 (SELECT flush_lsn AS confirmed FROM pg_stat_replication WHERE state <> 'startup') s").await, "t");
            let at: Lsn = server.value(restart).await.parse().unwrap();
            assert!(at >= middle, "{at} is before {middle}");
        }
        let mut back = stream.stop().await.unwrap();
        let at: Lsn = server.value(restart).await.parse().unwrap();
        assert!(at >= middle && at <= end_of(&server).await);
        // The same connection goes on, and the slot can go.
        assert!(back.drop_slot("mainstay").await.unwrap());
    }
}

#[tokio::test]
async fn r09_a_slot_that_lost_its_log_says_so() {
    for version in Server::versions() {
        let small = ["max_slot_wal_keep_size = 2MB", "wal_keep_size = 0", "max_wal_size = 2MB", "min_wal_size = 2MB"];
        let server = Server::start(version, Options { segment_mib: Some(1), ..Options::with(&small) }).await;
        let mut connection = server.replication().await;
        connection.create_slot("late").await.unwrap();
        let (stream, from) = stream_of(&server, Some("late")).await;
        let mut connection = stream.stop().await.unwrap();
        for _ in 0..8 {
            server.sql("SELECT pg_switch_wal()").await;
            server.sql("CREATE TABLE IF NOT EXISTS t (a int); INSERT INTO t SELECT generate_series(1, 3000)").await;
        }
        server.sql("CHECKPOINT").await;
        let state = server.connection().await.slot("late").await.unwrap().unwrap();
        assert_eq!(state.wal_status, Some(WalStatus::Lost));
        let identity = connection.identify().await.unwrap();
        // With the slot, and without, where some versions find out only when they read.
        for slot in [Some("late".to_owned()), None] {
            let options = WalOptions { slot, ..WalOptions::new(identity.system, identity.timeline, from) };
            let error = match WalStream::start(server.replication().await, options).await {
                Err(error) => error,
                Ok(mut stream) => stream.next().await.unwrap_err(),
            };
            assert!(matches!(error, PostgresError::LogRemoved { .. }), "{version}: {error:?}");
            assert!(error.to_string().contains("hint:") && !error.is_passing(), "{error}");
        }
    }
}
