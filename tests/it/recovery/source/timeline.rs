//! Timelines: they end, others go on, and the history says where.

use super::{end_of, read_to, segment_size};
use crate::support::postgres::{Options, Server, Stop};
use mainstay::backup::source::postgres::{WalEvent, WalOptions, WalStream};
use mainstay::model::{Lsn, Timeline};
use std::fs;

#[tokio::test]
async fn r06_timelines_are_followed_through_two_promotions() {
    for version in Server::versions() {
        let mut old = Server::start(version, Options::default()).await;
        old.sql("CREATE TABLE t (a int)").await;
        let first = Server::standby(&old, Options::default()).await;
        let mut connection = first.replication().await;
        let size = segment_size(&mut connection).await;
        let identity = connection.identify().await.unwrap();
        let from = identity.flushed.segment_start(size);
        let options = WalOptions { standby: true, ..WalOptions::new(identity.system, identity.timeline, from) };
        let mut stream = WalStream::start(connection, options.clone()).await.unwrap();
        old.sql("INSERT INTO t SELECT generate_series(1, 1000)").await;
        let end = end_of(&old).await;
        let mut at = Lsn(from.0 + read_to(&mut stream, from, end).await.len() as u64);
        first.until(&format!("SELECT (pg_last_wal_replay_lsn() >= '{end}')::text"), "true").await;
        old.stop(Stop::Kill).await;
        first.promote().await;
        // In the middle of the stream.
        let (next, switch) = loop {
            match stream.next().await.unwrap() {
                WalEvent::Bytes { start, bytes, .. } => {
                    assert_eq!(start, at);
                    at = Lsn(at.0 + bytes.len() as u64);
                }
                WalEvent::Alive { .. } => {}
                WalEvent::TimelineEnds { next, at } => break (next, at),
            }
        };
        assert_eq!(next, Timeline(2));
        assert!(end <= switch && switch <= at, "{end} {switch} {at}");
        assert!(stream.next().await.is_err());
        let mut connection = stream.stop().await.unwrap();
        let history = connection.history(next).await.unwrap().unwrap();
        assert_eq!(history, fs::read(first.data().join("pg_wal/00000002.history")).unwrap());
        assert!(String::from_utf8_lossy(&history).contains(&switch.to_string()));

        // Asked for exactly the end of the old one, the server says so at once.
        let exact = WalOptions { from: switch, ..options.clone() };
        let mut stream = WalStream::start(connection, exact).await.unwrap();
        assert_eq!(stream.next().await.unwrap(), WalEvent::TimelineEnds { next, at: switch });
        let connection = stream.stop().await.unwrap();
        // The new one begins in the segment of the switch, which it has whole.
        let begin = switch.segment_start(size);
        let on = WalOptions { standby: false, timeline: next, from: begin, ..options.clone() };
        let mut stream = WalStream::start(connection, on).await.unwrap();
        first.sql("INSERT INTO t VALUES (7)").await;
        let end = end_of(&first).await;
        let bytes = read_to(&mut stream, begin, end).await;
        let file = fs::read(first.data().join("pg_wal").join(size.name(next, begin).to_string())).unwrap();
        let length = bytes.len().min(file.len());
        assert!(bytes[..length] == file[..length]);
        stream.stop().await;

        // A second one while nobody looked: both ancestors' files are there, and the way is first 1, then 2, then 3.
        let second = Server::standby(&first, Options::default()).await;
        let end = end_of(&first).await;
        second.until(&format!("SELECT (pg_last_wal_replay_lsn() >= '{end}')::text"), "true").await;
        drop(first);
        // It has the log since its base backup, which began a segment.
        let begin = end.segment_start(size);
        second.promote().await;
        let mut connection = second.replication().await;
        assert_eq!(connection.identify().await.unwrap().timeline, Timeline(3));
        for timeline in [2, 3] {
            let file = fs::read(second.data().join("pg_wal").join(Timeline(timeline).history_file())).unwrap();
            assert_eq!(connection.history(Timeline(timeline)).await.unwrap().unwrap(), file);
        }
        let mut way = Vec::new();
        let mut options = WalOptions { standby: false, from: begin, timeline: Timeline(2), ..options };
        while options.timeline != Timeline(3) {
            let mut stream = WalStream::start(connection, options.clone()).await.unwrap();
            let (next, at) = loop {
                if let WalEvent::TimelineEnds { next, at } = stream.next().await.unwrap() {
                    break (next, at);
                }
            };
            way.push(next);
            options = WalOptions { timeline: next, from: at.segment_start(size), ..options };
            connection = stream.stop().await.unwrap();
        }
        assert_eq!(way, [Timeline(3)]);
        WalStream::start(connection, options).await.unwrap();
    }
}
