//! The replication client on real servers.

mod advise;
mod base;
mod connect;
mod facts;
mod incremental;
mod proxy;
mod slot;
mod timeline;
mod wal;

use crate::support::postgres::Server;
use mainstay::backup::source::postgres::{Connection, Purpose, WalEvent, WalOptions, WalStream};
use mainstay::model::{Lsn, SegmentSize};

/// A stream from the beginning of the segment that is being written.
async fn stream_of(server: &Server, slot: Option<&str>) -> (WalStream, Lsn) {
    let mut connection = server.replication().await;
    let size = segment_size(&mut connection).await;
    let identity = connection.identify().await.unwrap();
    let from = identity.flushed.segment_start(size);
    let options =
        WalOptions { slot: slot.map(str::to_owned), ..WalOptions::new(identity.system, identity.timeline, from) };
    (WalStream::start(connection, options).await.unwrap(), from)
}

async fn segment_size(connection: &mut Connection) -> SegmentSize {
    let text = connection.show("wal_segment_size").await.unwrap().unwrap();
    SegmentSize::new(text.strip_suffix("MB").unwrap().parse::<u64>().unwrap() << 20).unwrap()
}

/// Reads up to a place, and gives the bytes.
async fn read_to(stream: &mut WalStream, from: Lsn, end: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    while from.0 + (bytes.len() as u64) < end.0 {
        if let WalEvent::Bytes { start, bytes: more, .. } = stream.next().await.unwrap() {
            assert_eq!(start.0, from.0 + bytes.len() as u64);
            bytes.extend_from_slice(&more);
        }
    }
    bytes
}

/// The end of the flushed log.
async fn end_of(server: &Server) -> Lsn {
    server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap()
}

#[tokio::test]
async fn a_server_is_asked_over_both_kinds_of_connections() {
    for version in Server::versions() {
        let server = Server::start(version, crate::support::postgres::Options::default()).await;
        let mut connection = server.replication().await;
        let identity = connection.identify().await.unwrap();
        assert_eq!(connection.major(), version);
        assert!(!connection.in_recovery().await.unwrap());
        // What the version does not have, and what no version has.
        assert_eq!(connection.show("no_such_setting").await.unwrap(), None);
        assert!(connection.show("port; DROP").await.is_err());
        assert_eq!(connection.history(identity.timeline).await.unwrap(), None);
        // A refusal leaves the connection ready for the next question.
        assert!(connection.history(mainstay::model::Timeline(9)).await.is_err());
        assert_eq!(connection.identify().await.unwrap().system, identity.system);
        assert!(connection.query("SELECT 1").await.unwrap_err().to_string().contains("replication"));
        connection.close().await;

        let mut socket = Connection::open(&server.socket_address(), None, Purpose::Sql).await.unwrap();
        let rows = socket.query("SELECT 1 AS a, NULL AS b, 'é' AS c").await.unwrap();
        assert_eq!((rows.first("a"), rows.first("b"), rows.first("c")), (Some("1"), None, Some("é")));
        let error = socket.query("SELECT no_such_column").await.unwrap_err();
        assert_eq!(error.code(), Some("42703"));
        assert_eq!(socket.query("SELECT 2 AS a").await.unwrap().first("a"), Some("2"));
    }
}
