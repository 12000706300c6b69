//! What a server says of itself.

use crate::support::postgres::{Options, Server};
use mainstay::backup::source::postgres::{Address, Connection, Purpose};
use mainstay::model::SegmentSize;
use std::ffi::OsStr;

#[tokio::test]
async fn r26_facts_are_those_of_the_server() {
    for version in Server::versions() {
        let options = Options {
            segment_mib: Some(64),
            checksums: version != 15,
            ..Options::with(&["max_connections = 33", "max_locks_per_transaction = 77"])
        };
        let server = Server::start(version, options).await;
        let place = server.new_folder(OsStr::new("space"));
        server.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display())).await;
        server.sql("CREATE DATABASE shop").await;
        server.sql("CREATE ROLE backup LOGIN REPLICATION").await;
        let mut connection = server.replication().await;
        let found = connection.facts(&server.address(), None).await.unwrap();
        assert_eq!(found.left_out, [""; 0]);
        let facts_found = found.server;
        assert_eq!(facts_found.system, connection.identify().await.unwrap().system);
        assert_eq!(facts_found.version.to_string(), server.value("SHOW server_version_num").await);
        assert_eq!((facts_found.major(), facts_found.block_size), (version, 8192));
        assert_eq!(facts_found.segment_size, SegmentSize::new(64 << 20).unwrap());
        assert_eq!(facts_found.data_checksums, version != 15);
        for (name, value) in [
            ("max_connections", "33"),
            ("max_locks_per_transaction", "77"),
            ("wal_level", "replica"),
            ("server_encoding", "UTF8"),
        ] {
            assert_eq!(facts_found.settings[name], value, "{name}");
        }
        assert_eq!(facts_found.settings["data_directory"], server.data().display().to_string());
        assert_eq!(facts_found.settings.contains_key("summarize_wal"), version >= 17);
        assert_eq!(facts_found.tablespaces.values().collect::<Vec<_>>(), [&place.display().to_string()]);
        let names: Vec<_> = facts_found.databases.keys().map(String::as_str).collect();
        assert_eq!(names, ["postgres", "shop", "template1"]);
        assert!(facts_found.databases["shop"].extensions.contains_key("plpgsql"));
        assert!(facts_found.databases["shop"].collation.as_deref().unwrap().starts_with("libc C"));

        // A role that may not see everything.
        let address = Address::parse(&format!("postgres://backup@127.0.0.1:{}/", server.port())).unwrap();
        let mut connection = Connection::open(&address, None, Purpose::Replication).await.unwrap();
        let found = connection.facts(&address, None).await.unwrap();
        assert!(!found.server.settings.contains_key("data_directory"));
        assert_eq!(found.server.settings["max_connections"], "33");
        assert!(found.left_out[0].contains("GRANT pg_read_all_settings TO \"backup\""), "{:?}", found.left_out);
        assert_eq!(found.server.databases.len(), 3);
    }
}

#[tokio::test]
async fn without_sql_the_rest_is_there_and_the_reason_is_told() {
    let hba = vec!["host all backup all reject".into(), "host shop postgres all reject".into()];
    let server = Server::start(17, Options { hba, ..Options::default() }).await;
    server.sql("CREATE ROLE backup LOGIN REPLICATION").await;
    server.sql("CREATE DATABASE shop").await;
    let address = Address::parse(&format!("postgres://backup@127.0.0.1:{}/?sslmode=disable", server.port())).unwrap();
    let mut connection = Connection::open(&address, None, Purpose::Replication).await.unwrap();
    let found = connection.facts(&address, None).await.unwrap();
    assert!(found.server.databases.is_empty() && found.server.tablespaces.is_empty());
    assert!(
        found.left_out.iter().any(|why| why.contains("pg_hba.conf") && why.contains("28000")),
        "{:?}",
        found.left_out
    );
    // One database that it may not connect to.
    let found = connection.facts(&server.address(), None).await.unwrap();
    assert_eq!(found.server.databases.len(), 3);
    assert!(found.server.databases["shop"].extensions.is_empty());
    assert!(found.left_out.iter().any(|why| why.contains("database shop")), "{:?}", found.left_out);
}
