//! Base backups of real servers: taken into a repository, unpacked again, compared, started.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

mod bench;
mod differences;
mod killed;

use self::bench::{Bench, Tree, look};
use crate::support::postgres::{Options, Server, Stop, run};
use mainstay::backup::repository::Archive;
use mainstay::backup::source::postgres::{BaseOptions, PostgresError};
use mainstay::backup::take::{TakeError, Wish};
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Nothing changes a file unless it is asked to.
const QUIET: &[&str] = &["autovacuum = off", "checkpoint_timeout = 1h", "bgwriter_lru_maxpages = 0"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r13_what_is_unpacked_is_what_the_server_sent_and_what_pg_basebackup_writes() {
    for version in Server::versions() {
        let server = Server::start(version, Options::with(QUIET)).await;
        let space = server.new_folder(OsStr::new("fast space"));
        for sql in [
            &format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()),
            "CREATE TABLE in_fast TABLESPACE fast AS SELECT generate_series(1, 10000) a",
            // Longer than a chunk.
            "CREATE TABLE big AS SELECT generate_series(1, 600000) a",
            "CREATE UNLOGGED TABLE unlogged AS SELECT 1 a",
        ] {
            server.sql(sql).await;
        }
        let data = server.data();
        fs::create_dir(data.join("empty folder")).unwrap();
        for name in [&b"not \xFF\xFE text"[..], &[b'n'; 99], b"-dash", b"new\nline"] {
            fs::write(data.join(OsStr::from_bytes(name)), name).unwrap();
        }
        fs::set_permissions(data.join("-dash"), fs::Permissions::from_mode(0o640)).unwrap();
        Server::give(data);
        server.sql("CHECKPOINT").await;

        let bench = Bench::new().await;
        let (taken, events) = bench.backup_with_events(&server, Wish::Whole).await;
        assert!(taken.manifest.archives.iter().any(|archive| archive.archive == Archive::Base && archive.chunks > 1));
        let [(Archive::Tablespace(oid), Some(location)), (Archive::Base, None)] = &events.archives[..] else {
            panic!("{:?}", events.archives)
        };
        assert_eq!(Path::new(location), space);

        // The chunks of an archive are the archive: what a stock tar reads below.
        let plain = bench.plain(&taken.manifest).await;
        for (archive, bytes) in &events.bytes {
            let chunks = plain.chunks.iter().filter(|(place, _)| place.archive == *archive);
            assert!(chunks.flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<u8>>() == *bytes, "{archive}");
        }
        assert_eq!(plain.server_manifest, taken.server_manifest);

        // Byte for byte what the server sent, backup_label and tablespace_map too.
        let got = bench.unpack(&taken.manifest, "got", &[]).await;
        for (archive, bytes) in &events.bytes {
            let sent = bench.folder(&format!("sent-{archive}"));
            let mut tar =
                Command::new("tar").args(["-xpf-", "--no-same-owner", "-C"]).arg(&sent).stdin(Stdio::piped()).spawn();
            let tar = tar.as_mut().unwrap();
            tar.stdin.take().unwrap().write_all(bytes).unwrap();
            assert!(tar.wait().unwrap().success());
            assert_same(&look(&got[archive]), &look(&sent));
        }
        assert!(
            got[&Archive::Base].join("backup_label").exists() && got[&Archive::Base].join("tablespace_map").exists()
        );
        assert!(got[&Archive::Base].join("empty folder").is_dir());

        if version == 15 {
            let theirs = bench.folder("theirs");
            fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
            let their_space = bench.folder("their-space");
            fs::set_permissions(bench.path(), fs::Permissions::from_mode(0o755)).unwrap();
            Server::give(&theirs);
            Server::give(&their_space);
            let mut program = Server::command(15, "pg_basebackup");
            program.args(["-X", "none", "-c", "fast", "-h", "127.0.0.1", "-U", "postgres", "-p"]);
            program.arg(server.port().to_string()).arg("-D").arg(&theirs);
            program.arg(format!("-T{}={}", space.display(), their_space.display()));
            run(&mut program);
            // Two backups differ in what says when they were made.
            let apart = ["backup_label", "backup_manifest", "tablespace_map", "global/pg_control"];
            let rest = |tree: Tree| -> Tree {
                let other = |path: &Path| {
                    apart.iter().any(|name| path == Path::new(name)) || path.starts_with(format!("pg_tblspc/{oid}"))
                };
                tree.into_iter().filter(|(path, _)| !other(path)).collect()
            };
            assert_same(&rest(look(&got[&Archive::Base])), &rest(look(&theirs)));
            assert_same(&look(&got[&Archive::Tablespace(*oid)]), &look(&their_space));

            // And what PostgreSQL's own program says of it.
            let base = &got[&Archive::Base];
            fs::write(base.join("backup_manifest"), &taken.server_manifest).unwrap();
            std::os::unix::fs::symlink(&got[&Archive::Tablespace(*oid)], base.join(format!("pg_tblspc/{oid}")))
                .unwrap();
            // Files that PostgreSQL does not know of are in its manifest too.
            run(Command::new(Server::bin(15).join("pg_verifybackup")).arg("-n").arg(base));
        }
    }
}

fn assert_same(got: &Tree, expected: &Tree) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(expected));
    for (path, node) in got {
        assert!(*node == expected[path], "{} differs", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_under_load_starts_and_adds_up() {
    for version in Server::versions() {
        let settings = ["wal_keep_size = 2GB", "max_wal_size = 4GB", "synchronous_commit = off"];
        let server = Server::start(version, Options::with(&settings)).await;
        let port = server.port().to_string();
        let pgbench = |arguments: &[&str]| {
            let mut program = Server::command(15, "pgbench");
            program.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port]).args(arguments).arg("postgres");
            program
        };
        run(&mut pgbench(&["-i", "-q", "-s", "2"]));
        let mut load =
            pgbench(&["-n", "-c", "2", "-T", "60"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        server.until("SELECT count(*) > 100 FROM pgbench_history", "t").await;

        let bench = Bench::new().await;
        let before = server.value("SELECT count(*) FROM pgbench_history").await;
        // Slow enough that the load changes what was sent already.
        let options = BaseOptions { max_rate_kib: Some(24 << 10), ..BaseOptions::default() };
        let taken = bench.backup_as(&server, Wish::Whole, options).await.unwrap();
        let after = server.value("SELECT count(*) FROM pgbench_history").await;
        load.kill().unwrap();
        load.wait().unwrap();
        assert!(after.parse::<u64>().unwrap() > before.parse::<u64>().unwrap() + 100, "no load: {before} to {after}");

        let control = "global/pg_control";
        let got = bench.unpack(&taken.manifest, "got", &[control]).await;
        let base = &got[&Archive::Base];
        assert!(!base.join(control).exists());
        bench.write_withheld(base);
        bench::copy_wal(&server, base);
        let restored = Server::on(version, base, Options::default()).await;
        let sums = "SELECT count(*) FILTER (WHERE delta IS NOT NULL) >= (SELECT 100), sum(delta) = (SELECT sum(abalance) FROM pgbench_accounts), \
            sum(delta) = (SELECT sum(bbalance) FROM pgbench_branches), sum(delta) = (SELECT sum(tbalance) FROM pgbench_tellers) FROM pgbench_history";
        let rows = restored.sql(&format!("SELECT row(x.*)::text FROM ({sums}) x")).await;
        assert_eq!(rows.rows[0][0].as_deref(), Some(&b"(t,t,t,t)"[..]));
        let count: u64 = restored.value("SELECT count(*) FROM pgbench_history").await.parse().unwrap();
        assert!(count >= before.parse().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_damaged_pages_make_no_backup() {
    let options = Options { checksums: true, ..Options::with(QUIET) };
    let server = Server::start(15, options).await;
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) a").await;
    let file = server.value("SELECT pg_relation_filepath('t')").await;
    server.sql("CHECKPOINT").await;
    let table = fs::File::options().write(true).open(server.data().join(file)).unwrap();
    table.write_all_at(b"rotten", 8_192 * 3 + 4_000).unwrap();
    let bench = Bench::new().await;
    let error = bench.backup_as(&server, Wish::Whole, BaseOptions::default()).await.unwrap_err();
    assert!(matches!(&error, TakeError::Stream(error) if matches!(**error, PostgresError::Damaged { .. })), "{error}");
    assert_eq!(bench.manifests().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_server_that_dies_while_it_sends_makes_no_backup() {
    let mut server = Server::start(17, Options::with(QUIET)).await;
    server.sql("CREATE TABLE big AS SELECT generate_series(1, 600000) a").await;
    let bench = Bench::new().await;
    let options = BaseOptions { max_rate_kib: Some(8 << 10), ..BaseOptions::default() };
    let backup = bench.backup_as(&server, Wish::Whole, options);
    let (result, ()) = tokio::join!(backup, async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        server.signal_stop(Stop::Kill);
    });
    let error = result.unwrap_err();
    assert!(matches!(error, TakeError::Stream(_)), "{error}");
    assert_eq!(bench.manifests().await, 0);
    let _ = server.ended().await;
}
