//! Backups that are the difference to another one.

use super::bench::{Bench, copy_wal};
use crate::support::postgres::{Options, Server};
use mainstay::backup::repository::Archive;
use mainstay::backup::source::postgres::BaseOptions;
use mainstay::backup::take::{Pages, Parent, Taken, USUAL_SEGMENT_BYTES, Wish, combine};
use std::collections::BTreeSet;

fn parent(bench: &Bench, taken: &Taken) -> Wish {
    let (manifest, server_manifest) = (taken.manifest.clone(), taken.server_manifest.clone());
    let parent = Parent { manifest, server_manifest, checker: bench.checker() };
    Wish::Difference(Box::new(parent))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_a_server_without_summaries_gives_a_whole_backup_and_says_why() {
    let server = Server::start(17, Options::default()).await;
    let bench = Bench::new().await;
    let first = bench.backup_as(&server, Wish::Whole, BaseOptions::default()).await.unwrap();
    let second = bench.backup_as(&server, parent(&bench, &first), BaseOptions::default()).await.unwrap();
    assert!(second.manifest.parent.is_none());
    let why = second.manifest.whole_because.unwrap();
    assert!(why.contains("summarize_wal"), "{why}");
}

/// What a database holds, in one value.
const SUM: &str = "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM (\
    SELECT 'big', a, b FROM big UNION ALL SELECT 'small', a, b FROM small UNION ALL SELECT 'fast', a, b FROM fast) t";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_differences_is_rebuilt_and_starts() {
    for version in Server::versions().into_iter().filter(|version| *version >= 17) {
        chain(version).await;
    }
}

async fn chain(version: u32) {
    let settings = ["summarize_wal = on", "wal_keep_size = 1GB", "autovacuum = off"];
    let options = Options { checksums: true, ..Options::with(&settings) };
    let server = Server::start(version, options).await;
    let space = server.new_folder(std::ffi::OsStr::new("fast"));
    for sql in [
        "CREATE TABLE big AS SELECT a, repeat('x', 100) b FROM generate_series(1, 60000) a",
        "CREATE TABLE small AS SELECT a, 'first' b FROM generate_series(1, 5000) a",
        "CREATE TABLE dropped AS SELECT 1 a",
        "CREATE DATABASE gone",
    ] {
        server.sql(sql).await;
    }
    let bench = Bench::new().await;
    let whole = bench.backup_as(&server, Wish::Whole, BaseOptions::default()).await.unwrap();

    for sql in [
        &format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()),
        "CREATE TABLE fast TABLESPACE fast AS SELECT a, 'fast' b FROM generate_series(1, 20000) a",
        "UPDATE big SET b = 'changed' WHERE a BETWEEN 100 AND 150",
        // A file that gets shorter, and longer again.
        "DELETE FROM small WHERE a > 1000",
        "VACUUM small",
        "DROP TABLE dropped",
        "DROP DATABASE gone",
    ] {
        server.sql(sql).await;
    }
    let first = bench.backup_as(&server, parent(&bench, &whole), BaseOptions::default()).await.unwrap();
    for sql in [
        "UPDATE big SET b = 'again' WHERE a = 30000",
        "INSERT INTO small SELECT a, 'second' FROM generate_series(1, 3000) a",
        "UPDATE fast SET b = 'second' WHERE a = 7",
    ] {
        server.sql(sql).await;
    }
    let sum = server.value(SUM).await;
    let second = bench.backup_as(&server, parent(&bench, &first), BaseOptions::default()).await.unwrap();

    for (taken, before) in [(&first, &whole), (&second, &first)] {
        assert_eq!(taken.manifest.parent.as_ref(), Some(&before.manifest.backup), "{:?}", taken.manifest.whole_because);
    }
    let bytes = |taken: &Taken| taken.manifest.archives.iter().map(|archive| archive.bytes).sum::<u64>();
    assert!(bytes(&second) * 3 < bytes(&whole), "{} of {}", bytes(&second), bytes(&whole));

    // The whole one, and the differences on top of it.
    let control = "global/pg_control";
    let mut roots = bench.unpack(&whole.manifest, "whole", &[control]).await;
    for (number, taken) in [&first, &second].into_iter().enumerate() {
        let difference = bench.unpack(&taken.manifest, &format!("difference-{number}"), &[control]).await;
        let of_relations = std::fs::read_dir(difference[&Archive::Base].join("base/5")).unwrap();
        let names: Vec<_> = of_relations.map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name.to_string_lossy().starts_with("INCREMENTAL.")), "{names:?}");
        for archive in difference.keys() {
            roots.entry(*archive).or_insert_with(|| bench.folder(&format!("whole-{archive}")));
        }
        let pages = Pages { page_bytes: taken.manifest.server.block_size, segment_bytes: USUAL_SEGMENT_BYTES };
        combine(&roots, &difference, pages, &BTreeSet::new()).unwrap();
    }
    let base = roots[&Archive::Base].clone();
    bench.write_withheld(&base);
    copy_wal(&server, &base);
    let mut map = String::new();
    for (archive, root) in roots.iter().filter(|(archive, _)| **archive != Archive::Base) {
        Server::give(root);
        map.push_str(&format!("{archive} {}\n", root.display()));
    }
    std::fs::write(base.join("tablespace_map"), map).unwrap();
    let label = std::fs::read_to_string(base.join("backup_label")).unwrap();
    assert!(!label.contains("INCREMENTAL") && label.contains(&second.manifest.start.to_string()), "{label}");

    let restored = Server::on(version, &base, Options::default()).await;
    assert_eq!(restored.value(SUM).await, sum);
    // Every page of every relation is read and its checksum looked at.
    restored.sql("VACUUM (DISABLE_PAGE_SKIPPING)").await;
    let databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database";
    assert_eq!(restored.value(databases).await, "postgres,template0,template1");
}
