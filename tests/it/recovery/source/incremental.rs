//! Differences, and when a whole backup is the answer.

use crate::support::postgres::{Options, Server, unpack};
use mainstay::backup::source::postgres::{BaseBackup, BaseOptions, Connection, PostgresError};
use std::fs;

async fn whole(server: &Server) -> (Vec<u8>, u64) {
    let mut backup = BaseBackup::start(server.replication().await, &BaseOptions::default(), None).await.unwrap();
    taken(&mut backup).await
}

/// The server's manifest, and how many bytes came.
async fn taken(backup: &mut BaseBackup) -> (Vec<u8>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let unpacked = unpack(backup, folder.path(), folder.path()).await;
    (unpacked.server_manifest, unpacked.bytes.iter().map(|(_, bytes)| bytes).sum())
}

async fn difference(connection: Connection, parent: &[u8]) -> Result<BaseBackup, PostgresError> {
    let mut parent = parent;
    let mut backup = BaseBackup::start(connection, &BaseOptions::default(), Some(&mut parent)).await?;
    // Whether it can be had is known with the first event.
    assert!(matches!(backup.next().await?, Some(mainstay::backup::source::postgres::BaseEvent::Begin { .. })));
    Ok(backup)
}

async fn why_whole(connection: Connection, parent: &[u8]) -> String {
    match difference(connection, parent).await {
        Err(error @ PostgresError::TakeWhole { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn r14_a_difference_is_had_where_the_server_can_and_else_the_reason() {
    for version in Server::versions() {
        if version < 17 {
            let server = Server::start(version, Options::default()).await;
            let (manifest, _) = whole(&server).await;
            let why = why_whole(server.replication().await, &manifest).await;
            assert!(why.contains(&format!("PostgreSQL {version}")), "{why}");
            continue;
        }
        let server = Server::start(version, Options::default()).await;
        let (before, _) = whole(&server).await;
        let why = why_whole(server.replication().await, &before).await;
        assert!(why.contains("summarize_wal = on"), "{why}");

        server.sql("ALTER SYSTEM SET summarize_wal = on").await;
        server.sql("SELECT pg_reload_conf()").await;
        server.until("SHOW summarize_wal", "on").await;
        server.sql("CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 50000) g").await;
        // The summarizer begins with the oldest log there is; wait until it has some.
        server
            .until("SELECT (count(*) > 0)::text FROM pg_stat_activity WHERE backend_type = 'walsummarizer'", "true")
            .await;
        let (parent, all) = whole(&server).await;
        server.sql("UPDATE t SET g = 0 WHERE g < 50").await;
        let mut backup = difference(server.replication().await, &parent).await.unwrap();
        let (second, some) = taken(&mut backup).await;
        assert!(some < all / 2, "{some} of {all}");
        assert!(String::from_utf8_lossy(&second).contains("INCREMENTAL."));
        assert!(backup.into_connection().is_some());

        // What is no manifest, what is not whole, and another cluster's.
        for bad in [&b"no manifest"[..], b"", &parent[..parent.len() / 2]] {
            let why = why_whole(server.replication().await, bad).await;
            assert!(why.contains("manifest"), "{why}");
        }
        let other = Server::start(version, Options::with(&["summarize_wal = on"])).await;
        let (strange, _) = whole(&other).await;
        let why = why_whole(server.replication().await, &strange).await;
        assert!(why.contains("identifier"), "{why}");
        // The summaries are gone.
        let summaries = server.data().join("pg_wal/summaries");
        for entry in fs::read_dir(&summaries).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let why = why_whole(server.replication().await, &parent).await;
        assert!(why.contains("summar"), "{why}");
        // And a whole one can be had, on the spot.
        whole(&server).await;
    }
}
