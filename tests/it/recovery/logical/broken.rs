//! Cut, killed, damaged, gone: never a copy that is none, never a database that looks whole and is not.

use super::bench::{Bench, IMAGE, ask, databases};
use super::contained::docker;
use crate::support::postgres::{Options, Server};
use mainstay::backup::logical::{self, InImage, Job, RestoreError, Way};
use mainstay::backup::source::postgres::{Address, Connection, Purpose};
use mainstay::backup::verify::{Settings, verify};
use mainstay::config::backup::Databases;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

both_ways!(
    a_dump_that_is_cut_in_the_middle_is_no_copy,
    a_stream_counts_only_when_its_program_ended_well,
    r21_a_damaged_copy_never_becomes_a_database_with_fewer_rows,
    a_restore_whose_program_is_killed_leaves_nothing_that_looks_whole,
);

pub(super) fn shop() -> Databases {
    Databases::Named(vec!["shop".into()])
}

/// A server with a database of more than two objects.
pub(super) async fn with_shop() -> Server {
    let server = Server::start(15, Options::default()).await;
    server.sql("CREATE DATABASE shop").await;
    ask(
        &server,
        "shop",
        "CREATE TABLE orders AS SELECT id, repeat(md5(id::text), 32) AS text FROM generate_series(1, 40000) id",
    )
    .await;
    server
}

/// Children of this process that run a program against a port: other tests run the same programs.
pub(super) fn running(program: &str, port: u16) -> Option<Pid> {
    let port = format!("PGPORT={port}");
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let of = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
        let is = of("comm")?.trim_ascii_end() == program.as_bytes();
        let ours = of("environ")?.split(|byte| *byte == 0).any(|one| one == port.as_bytes());
        (is && ours).then(|| Pid::from_raw(pid))
    })
}

async fn a_dump_that_is_cut_in_the_middle_is_no_copy(bench: Bench) {
    let server = with_shop().await;
    let port = server.port();
    let killed = |failed: String| assert!(failed.contains("pg_dump") && failed.contains("SIGKILL"), "{failed}");
    // Before it has written a row: it waits for this lock.
    let shop_of = Address { database: Some("shop".into()), ..server.address() };
    let mut session = Connection::open(&shop_of, None, Purpose::Sql).await.unwrap();
    session.query("BEGIN; LOCK TABLE orders").await.unwrap();
    let dumping = tokio::spawn(logical::dump(bench.job(&server.address(), shop())));
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' AND wait_event_type = 'Lock'";
    server.until(waits, "1").await;
    kill(running("pg_dump", port).unwrap(), Signal::SIGKILL).unwrap();
    killed(dumping.await.unwrap().unwrap_err().to_string());
    session.close().await;
    // In the midst of rows: one object of them has come, and it cannot go on before we have looked.
    let mut job = bench.job(&server.address(), shop());
    job.tell = Arc::new(move |progress| {
        if progress.received_bytes > 16 << 20
            && let Some(pid) = running("pg_dump", port)
        {
            kill(pid, Signal::SIGKILL).unwrap();
        }
    });
    killed(tokio::spawn(logical::dump(job)).await.unwrap().unwrap_err().to_string());
    for holdings in bench.catalogue().await.clusters.values() {
        assert!(holdings.dumps.good.is_empty() && !holdings.dumps.unfinished.is_empty());
        assert!(logical::plan(holdings, logical::Wanted::Latest).is_err());
    }
}

/// A program that takes the place of `pg_dump`, on this machine or in an image.
struct Stand {
    way: Way,
    _folder: tempfile::TempDir,
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Way::Image(image) = &self.way {
            docker(&["rmi", "-f", &image.image]);
        }
    }
}

fn in_place_of_pg_dump(bench: &Bench, script: &str) -> Stand {
    let folder = tempfile::tempdir().unwrap();
    let of_image = matches!(bench.way, Way::Image(_));
    let real = if of_image { "/usr/lib/postgresql/15/bin".into() } else { Server::bin(15) };
    for (name, text) in [("pg_dump", script), ("pg_dumpall", "exec \"$REAL/pg_dumpall\" \"$@\"")] {
        let text = format!(
            "#!/bin/sh\nREAL={}\n[ \"$1\" = --version ] && exec \"$REAL/{name}\" --version\n{text}\n",
            real.display()
        );
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let Way::Image(usual) = &bench.way else {
        return Stand { way: Way::Here(Some(folder.path().to_owned())), _folder: folder };
    };
    let file =
        format!("FROM {IMAGE}\nCOPY pg_dump pg_dumpall /stand/\nENV PATH=/stand:{}:/usr/bin:/bin\n", real.display());
    std::fs::write(folder.path().join("Dockerfile"), file).unwrap();
    let name = format!("mainstay-stand-{}-{}", std::process::id(), folder.path().file_name().unwrap().display());
    let name = name.to_lowercase().replace("-.", "-");
    let (good, said) = docker(&["build", "-q", "-t", &name, folder.path().to_str().unwrap()]);
    assert!(good, "{said}");
    Stand { way: Way::Image(InImage { image: name, ..usual.clone() }), _folder: folder }
}

async fn a_stream_counts_only_when_its_program_ended_well(bench: Bench) {
    let server = with_shop().await;
    for (script, words) in [
        // All of it came, and the program failed at the very end.
        ("\"$REAL/pg_dump\" \"$@\"; echo 'at the end' >&2; exit 3", "exit status: 3: at the end"),
        ("exit 0", "pg_dump wrote no archive"),
        ("\"$REAL/pg_dump\" \"$@\" | head -c 1000000; kill -9 $$", "SIGKILL"),
    ] {
        let stand = in_place_of_pg_dump(&bench, script);
        let job = Job { programs: stand.way.clone(), ..bench.job(&server.address(), shop()) };
        let failed = logical::dump(job).await.unwrap_err().to_string();
        assert!(failed.contains(words), "{failed}");
    }
    assert!(bench.holdings().await.dumps.good.is_empty());
    // An archive that is cut although its program says that it ended well is told by the restore.
    let stand = in_place_of_pg_dump(&bench, "\"$REAL/pg_dump\" \"$@\" | head -c 20000000");
    logical::dump(Job { programs: stand.way.clone(), ..bench.job(&server.address(), shop()) }).await.unwrap();
    server.sql("ALTER DATABASE shop RENAME TO elsewhere").await;
    let failed = bench.restore(&bench.options(&server)).await.unwrap_err();
    unfinished(&server, &failed).await;
}

/// It failed, no database has got its name, and what was begun says that it is not finished.
async fn unfinished(server: &Server, failed: &RestoreError) {
    let RestoreError::Left { left, .. } = failed else { panic!("{failed}") };
    assert_eq!(left.len(), 1, "{failed}");
    let there = databases(server).await;
    assert!(!there.contains(&"shop".to_owned()), "{there:?}");
    let unfinished: Vec<&String> = there.iter().filter(|name| name.starts_with("mainstay_unfinished_")).collect();
    assert!(unfinished.len() == 1 && left[0] == format!("DROP DATABASE \"{}\"", unfinished[0]), "{left:?} {there:?}");
    let words = server
        .value("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname LIKE 'mainstay%'")
        .await;
    assert!(words.starts_with("not a whole copy of shop"), "{words}");
    server.sql(&left[0]).await;
}

async fn r21_a_damaged_copy_never_becomes_a_database_with_fewer_rows(bench: Bench) {
    let server = with_shop().await;
    let copy = bench.dump(&server, shop()).await.unwrap();
    server.sql("ALTER DATABASE shop RENAME TO elsewhere").await;
    let rows = copy.objects.iter().filter(|object| !object.key.contains("/globals/"));
    let rows: Vec<_> = rows.map(|object| bench.root.join(&object.key)).collect();
    assert!(rows.len() > 2, "{rows:?}");
    let last = &rows[rows.len() - 1];

    // Damaged in its last object, when all the others are in the database already.
    let whole = std::fs::read(last).unwrap();
    let mut damaged = whole.clone();
    let at = damaged.len() - 100;
    damaged[at] ^= 1;
    writable(last);
    std::fs::write(last, &damaged).unwrap();
    let failed = bench.restore(&bench.options(&server)).await.unwrap_err();
    unfinished(&server, &failed).await;

    // Verify tells it, and then it is not even begun.
    let settings = Settings { sample: 1, seed: 1, now: jiff::Timestamp::now() };
    let check = |opener| verify(bench.place(), &bench.checker, opener, Some(&bench.sealer), &bench.source, settings);
    let report = check(None).await.unwrap();
    assert_eq!((report.exit_code(), report.findings.len(), report.proofs), (1, 1, 1), "{report:?}");
    let refused = logical::plan(&bench.holdings().await, logical::Wanted::Latest).unwrap_err();
    assert!(refused.to_string().contains("found it bad"), "{refused}");

    // Mended, and checked to the last byte, it is good again.
    std::fs::write(last, &whole).unwrap();
    let report = check(Some(&bench.opener)).await.unwrap();
    assert_eq!((report.exit_code(), report.proofs), (0, 1), "{report:?}");
    let report = check(Some(&bench.opener)).await.unwrap();
    assert_eq!(report.proofs, 0);
    bench.restore(&bench.options(&server)).await.unwrap();
    assert_eq!(ask(&server, "shop", "SELECT count(*) FROM orders").await, "40000");

    // Gone in the middle of a restore that was planned before.
    server.sql("ALTER DATABASE shop RENAME TO again").await;
    let plan = bench.plan().await;
    std::fs::remove_file(last).unwrap();
    let options = bench.options(&server);
    let tell: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(|_| ());
    let failed = logical::restore(bench.repository(), bench.opener.clone(), &plan, &options, tell).await.unwrap_err();
    unfinished(&server, &failed).await;
    let refused = logical::plan(&bench.holdings().await, logical::Wanted::Latest).unwrap_err();
    assert!(refused.to_string().contains("lacks 1 of its objects"), "{refused}");
    assert_eq!(ask(&server, "elsewhere", "SELECT count(*) FROM orders").await, "40000");
}

fn writable(path: &std::path::Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

async fn a_restore_whose_program_is_killed_leaves_nothing_that_looks_whole(bench: Bench) {
    let server = with_shop().await;
    bench.dump(&server, shop()).await.unwrap();
    server.sql("ALTER DATABASE shop RENAME TO elsewhere").await;
    let options = bench.options(&server);
    let plan = bench.plan().await;
    let (repository, opener) = (bench.repository(), bench.opener.clone());
    let tell: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(|_| ());
    let restoring = tokio::spawn(async move { logical::restore(repository, opener, &plan, &options, tell).await });
    let until = Instant::now() + Duration::from_secs(30);
    // Killed when it fills the database: it is connected to that then.
    let filling =
        "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'mainstay_unfinished%' AND state = 'active'";
    while server.value(filling).await == "0" {
        assert!(Instant::now() < until && !restoring.is_finished(), "pg_restore was not seen");
    }
    kill(running("pg_restore", server.port()).expect("pg_restore is gone"), Signal::SIGKILL).unwrap();
    let failed = restoring.await.unwrap().unwrap_err();
    assert!(failed.to_string().contains("pg_restore"), "{failed}");
    server.until("SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'mainstay_unfinished%'", "0").await;
    unfinished(&server, &failed).await;
    bench.restore(&bench.options(&server)).await.unwrap();
    assert_eq!(ask(&server, "shop", "SELECT count(*) FROM orders").await, "40000");
    assert!(bench.repository().list("").await.unwrap().len() > 3);
}
