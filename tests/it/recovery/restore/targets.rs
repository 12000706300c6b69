//! Every kind of target, on real servers, from a repository and an identity alone.

use super::world::{World, server_at};
use crate::support::postgres::{Options as ServerOptions, Server, Stop};
use jiff::Timestamp;
use mainstay::backup::repository::Repository as _;
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::restore::place::{self, Watched};
use mainstay::backup::restore::{self, Check, Feeding, Into, Options, PlanError, Program, Tablespace, Target, Wish};
use mainstay::backup::seal::{Checker, Identities, Opener};
use mainstay::model::Lsn;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn r23_r24_every_target_is_reached_and_reported_or_refused_in_the_plan() {
    for version in Server::versions() {
        every_target(version).await;
    }
}

async fn every_target(version: u32) {
    let world = World::new(version, ServerOptions::default()).await;
    world.server.sql("CREATE TABLE t (i int PRIMARY KEY)").await;
    world.rows_to(10).await;
    let backup = world.backup().await;
    world.rows_to(20).await;
    world.server.sql("SELECT pg_create_restore_point('before it''s gone')").await;
    let place: Lsn = world.server.value("SELECT pg_current_wal_lsn()").await.parse().unwrap();
    let before: Timestamp = world.server.value("SELECT clock_timestamp()").await.parse().unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    world.rows_to(30).await;
    world.server.sql("SELECT pg_switch_wal()").await;
    world.rows_to(40).await;
    let last: Timestamp = world.server.value("SELECT clock_timestamp()").await.parse().unwrap();
    world.ship().await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let idle: Timestamp = world.server.value("SELECT clock_timestamp()").await.parse().unwrap();
    // Nothing was written; the frontier says that time went by.
    world.ship().await;

    let latest = world.back_to(Target::Latest).await;
    assert_eq!(latest.rows().await, 40, "PostgreSQL {version}");
    let report = &latest.report;
    let plan = world.plan(Target::Latest).await;
    assert_eq!((report.base.clone(), report.reached), (backup.backup.clone(), Some(plan.end.lsn)), "{report:?}");
    assert_eq!(report.timeline.zip(report.new_timeline).map(|(a, b)| (a.0, b.0)), Some((1, 2)));
    let at = report.last_transaction.unwrap();
    assert!(before < at && at <= last, "{before} {at} {last}");
    assert_eq!(latest.value("SHOW archive_mode").await, "off");
    let auto = fs::read_to_string(report.data.join("postgresql.auto.conf")).unwrap();
    assert!(!auto.contains("restore_command") && !auto.contains("recovery_target"), "{auto}");
    for left in ["mainstay-restore", ".mainstay-restore", "recovery.signal"] {
        assert!(!report.data.join(left).exists(), "{left} is left");
    }
    drop(latest);

    let noted = |notes: &[String]| notes.iter().any(|note| note.contains("nothing was written between"));
    let targets = [
        (Target::Time(before), 20, false),
        (Target::Time(idle), 40, true),
        (Target::Lsn(place), 20, false),
        (Target::Point("before it's gone".into()), 20, false),
        (Target::Backup(backup.backup.clone()), 10, false),
        (Target::Lsn(plan.end.lsn), 40, true),
    ];
    // The kinds differ in what the server is told, which is the same for all versions: one of them, and the soak, has all.
    let shown = if version == 15 || Server::versions().len() > 2 { targets.len() } else { 2 };
    for (target, rows, ended) in targets.into_iter().take(shown) {
        let restored = world.back_to(target.clone()).await;
        assert_eq!(restored.rows().await, rows, "PostgreSQL {version}: {target}");
        assert_eq!(noted(&restored.report.notes), ended, "{target}: {:?}", restored.report.notes);
    }

    refusals(&world, plan.end.lsn, version).await;
}

/// R23: what there is not is refused before anything is written.
async fn refusals(world: &World, end: Lsn, version: u32) {
    let refused = async |wish: Wish| world.try_plan(wish).await.unwrap_err().to_string();
    let late = refused(Wish::new(Target::Lsn(Lsn(end.0 + 1)))).await;
    assert!(late.contains("after the end of the log") && late.contains(&end.to_string()), "{late}");
    let late = refused(Wish::new(Target::Time(Timestamp::now() + Duration::from_secs(60)))).await;
    assert!(late.contains("after the end of the log") && late.contains("--latest"), "{late}");
    let early = refused(Wish::new(Target::Lsn(Lsn(1 << 20)))).await;
    assert!(early.contains("is consistent"), "{early}");
    let early = refused(Wish::new(Target::Time(Timestamp::UNIX_EPOCH))).await;
    assert!(early.contains("earliest state"), "{early}");
    let other = Program { major: version + 1, block_size: None };
    let wrong = world.try_plan(Wish { program: Some(other), ..Wish::new(Target::Latest) }).await;
    assert!(matches!(wrong, Err(PlanError::Version { .. })), "{wrong:?}");
    let pages = Program { major: version, block_size: Some(32_768) };
    let wrong = world.try_plan(Wish { program: Some(pages), ..Wish::new(Target::Latest) }).await;
    assert!(matches!(wrong, Err(PlanError::PageSize { .. })), "{wrong:?}");
    let program = restore::start::program(&Server::bin(version)).await.unwrap();
    assert_eq!((program.major, program.block_size), (version, Some(8_192)));
    let plan = world.try_plan(Wish { program: Some(program), ..Wish::new(Target::Latest) }).await.unwrap();
    let (text, json) = (plan.to_string(), serde_json::to_value(&plan).unwrap());
    assert!(text.contains("acknowledged to") && text.contains("takes"), "{text}");
    assert_eq!(json["end"]["lsn"], plan.end.lsn.to_string());
    // A name that is nowhere: the server reads all of the log and does not open.
    let plan = world.plan(Target::Point("no such point".into())).await;
    let options = world.options();
    let error = world.restore(&plan, &options).await.err().unwrap().to_string();
    assert!(error.contains("did not open") && error.contains("mainstay backups"), "{error}");
    assert_eq!(server_at(&options.data), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn r25_r26_r27_repository_and_identity_are_enough_and_stay_as_they_were() {
    for version in Server::versions() {
        repository_and_identity(version).await;
    }
}

async fn repository_and_identity(version: u32) {
    let mut world =
        World::new(version, ServerOptions { segment_mib: Some(1), checksums: true, ..ServerOptions::default() }).await;
    let space = world.server.new_folder(OsStr::new("fast disk"));
    world.server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    world.server.sql("CREATE TABLE elsewhere TABLESPACE fast AS SELECT i FROM generate_series(1, 10000) i").await;
    world.backup_with(|settings| drop(settings.insert("max_connections".into(), "77".into()))).await;
    world.rows_to(50_000).await;
    world.server.sql("UPDATE elsewhere SET i = i + 1").await;
    world.ship().await;
    // Beside the server that runs, its tablespace is not taken, whatever is forced, and nothing is begun.
    let (plan, options) = (world.plan(Target::Latest).await, Options { force: true, ..world.options() });
    let error = world.restore(&plan, &options).await.err().unwrap().to_string();
    assert!(error.contains("it is a tablespace of the server of process") && error.contains("--tablespace"), "{error}");
    assert!(place::check(&options.data, &plan, true, Watched::ByItsFile).is_err() && !options.data.exists());
    assert_eq!(world.server.value("SELECT count(*) FROM elsewhere").await, "10000");
    world.server.stop(Stop::Kill).await;

    // Everything anew, from text.
    let file = world.keys.identity_file(Timestamp::now());
    let identities = Identities::parse(&file).unwrap();
    let checker = Checker::new(identities.signers().to_vec());
    let opener = Opener::new(identities, checker);
    let repository = Arc::new(Folder::open(world.folder.path().join("repository")).unwrap());
    let holdings = restore::survey(&*repository, &opener, &world.cluster.source, None).await.unwrap();
    let oid = *holdings.backups.values().next().unwrap().manifest.server.tablespaces.keys().next().unwrap();
    let elsewhere = world.folder.path().join("spaces/moved");
    let mut wish = Wish::new(Target::Latest);
    wish.tablespaces.insert(Tablespace::Oid(oid), elsewhere.clone());
    let plan = restore::plan(&holdings, &wish).unwrap();
    assert!(plan.log.segments.len() > 3, "{plan}");
    let room = serde_json::to_value(&plan).unwrap()["room"].clone();
    assert!(room["base"].is_u64() && room[oid.to_string()].is_u64(), "{room}");

    let listed = repository.list("").await.unwrap();
    // Fetched one by one as asked for, and many ahead on little disk: the same, for every version.
    let (one, little) =
        (Feeding { at_once: 1, ..Feeding::default() }, Feeding { ahead_bytes: 0, ..Feeding::default() });
    let ways = [Feeding::default(), one, Feeding { at_once: 8, ..little }];
    let shown = if version == 17 || Server::versions().len() > 2 { ways.len() } else { 1 };
    for feeding in ways.into_iter().take(shown) {
        let mut options = world.options();
        options.feeding = feeding;
        let asked = ["SELECT count(*) = 50000 FROM t", "SELECT count(*) = 7 FROM t", "SELECT 1 FROM nowhere"];
        options.checks = asked.map(|sql| Check { sql: sql.into(), database: "postgres".into() }).to_vec();
        let restored = world.restore(&plan, &options).await.unwrap();
        let checks = &restored.report.checks;
        assert_eq!(checks.iter().map(|check| check.passed).collect::<Vec<_>>(), [true, false, false], "{checks:?}");
        assert!(!restored.report.good() && checks[2].answer.contains("does not exist"), "{checks:?}");
        assert_eq!(restored.rows().await, 50_000);
        assert_eq!(restored.value("SELECT sum(i) FROM elsewhere").await, "50015000");
        assert!(fs::read_dir(&elsewhere).unwrap().count() > 0);
        // R26: as many connections as the log was written with.
        assert_eq!(restored.value("SHOW max_connections").await, "77");
        assert!(restored.report.notes.iter().any(|note| note.contains("max_connections is 77")));
        // R25: it writes, ends segments, and tells nobody.
        assert_eq!(restored.value("INSERT INTO t VALUES (0); SELECT pg_switch_wal() IS NOT NULL").await, "t");
        assert_eq!(restored.value("SELECT setting FROM pg_settings WHERE name = 'archive_mode'").await, "off");
        drop(restored);
        fs::remove_dir_all(&elsewhere).unwrap();
    }
    // In its own stead, and it runs no more: what is in its tablespace goes aside, and that is said.
    let plan = restore::plan(&holdings, &Wish::new(Target::Latest)).unwrap();
    let options = world.options();
    assert!(place::check(&options.data, &plan, false, Watched::ByItsFile).is_err());
    let options = Options { force: true, ..options };
    assert_eq!(place::check(&options.data, &plan, true, Watched::ByItsFile).unwrap(), [space.as_path()]);
    let restored = world.restore(&plan, &options).await.unwrap();
    let [aside] = &restored.report.moved_aside[..] else { panic!("{:?}", restored.report) };
    assert!(aside.starts_with(space.parent().unwrap()) && fs::read_dir(aside).unwrap().count() > 0, "{aside:?}");
    assert_eq!(restored.value("SELECT sum(i) FROM elsewhere").await, "50015000");
    drop(restored);
    assert_eq!(repository.list("").await.unwrap(), listed, "r25: the repository is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_started_by_hand_and_needs_nobody() {
    let world = World::new(15, ServerOptions::default()).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    world.backup().await;
    world.rows_to(10).await;
    world.server.sql("SELECT pg_switch_wal()").await;
    world.rows_to(20).await;
    world.ship().await;
    let plan = world.plan(Target::Latest).await;
    let mut options = world.options();
    let Into::Server(server) = &options.into else { unreachable!() };
    options.into = Into::Folder { owner: server.user };
    let report =
        restore::restore(world.repository.clone(), world.opener(), &plan, &options, Arc::default()).await.unwrap();
    assert!(report.next.starts_with("postgres -D '") && report.reached.is_none(), "{report:?}");
    assert!(!options.data.join(".mainstay-restore").exists());
    // Elsewhere by now, and the repository is gone.
    let moved = world.folder.path().join("moved");
    fs::rename(&options.data, &moved).unwrap();
    fs::remove_dir_all(world.folder.path().join("repository")).unwrap();
    let by_hand = Server::on(15, &moved, ServerOptions::default()).await;
    by_hand.until("SELECT pg_is_in_recovery()", "f").await;
    assert_eq!(by_hand.value("SELECT count(*) FROM t").await, "20");
}

/// Of the log only what the backup needs is laid out, and a server looks ahead of that.
#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_backup_are_opened_by_hand_at_its_end() {
    for version in Server::versions() {
        let world = World::new(version, ServerOptions { segment_mib: Some(1), ..ServerOptions::default() }).await;
        world.server.sql("CREATE TABLE t (i int)").await;
        world.rows_to(10).await;
        let backup = world.backup().await.backup;
        for rows in [20, 30, 40] {
            world.rows_to(rows).await;
            world.server.sql("SELECT pg_switch_wal()").await;
        }
        world.ship().await;
        let plan = world.plan(Target::Backup(backup)).await;
        let mut options = world.options();
        let Into::Server(server) = &options.into else { unreachable!() };
        options.into = Into::Folder { owner: server.user };
        restore::restore(world.repository.clone(), world.opener(), &plan, &options, Arc::default()).await.unwrap();
        let laid_out = fs::read_dir(options.data.join("mainstay-restore/wal")).unwrap();
        let laid_out = laid_out.filter(|entry| entry.as_ref().unwrap().file_name().len() == 24).count();
        assert!(laid_out == plan.log.wanted && laid_out < plan.log.segments.len(), "{laid_out}: {plan}");
        let by_hand = Server::on(version, &options.data, ServerOptions::default()).await;
        by_hand.until("SELECT pg_is_in_recovery()", "f").await;
        assert_eq!(by_hand.value("SELECT count(*) FROM t").await, "10", "PostgreSQL {version}");
        drop(by_hand);
        // Where the backup's last record is not whole the log ends before it, and that is no end for a server.
        fs::remove_dir_all(&options.data).unwrap();
        restore::restore(world.repository.clone(), world.opener(), &plan, &options, Arc::default()).await.unwrap();
        let last = &plan.log.segments[plan.log.wanted - 1];
        let file = options.data.join("mainstay-restore/wal").join(last.name.to_string());
        let file = fs::File::options().write(true).open(file).unwrap();
        // The record of the backup's end has 34 bytes, and 6 that fill it up.
        file.write_all_at(&[0; 40], plan.base.stop.0 - last.begins.0 - 40).unwrap();
        let mut postgres = Server::command(version, "postgres");
        postgres.arg("-D").arg(&options.data).args(["-c", "unix_socket_directories="]);
        postgres.args(["-p", &crate::support::ports::free().to_string()]);
        let ended = tokio::task::spawn_blocking(move || postgres.output().unwrap()).await.unwrap();
        let log = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && log.contains("redo starts"), "PostgreSQL {version}: {log}");
        assert!(
            log.contains("recovery ended before configured recovery target was reached"),
            "PostgreSQL {version}: {log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_followed_and_the_older_branch_can_be_chosen() {
    let mut world = World::new(15, ServerOptions { segment_mib: Some(1), ..ServerOptions::default() }).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    world.backup().await;
    world.rows_to(20_000).await;
    world.ship().await;
    // A standby takes over in the middle of a segment, and the old primary goes on for a while.
    let standby = Server::standby(&world.server, ServerOptions::default()).await;
    standby.until("SELECT count(*) FROM t", "20000").await;
    standby.promote().await;
    world.rows_to(20_005).await;
    let old: Lsn = world.server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
    world.ship_to(mainstay::model::Timeline(1), old).await;
    std::mem::replace(&mut world.server, standby).stop(Stop::Kill).await;
    world.rows_to(30_000).await;
    let new: Lsn = world.server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
    world.ship_to(mainstay::model::Timeline(2), new).await;

    let latest = world.back_to(Target::Latest).await;
    assert_eq!(latest.rows().await, 30_000);
    assert_eq!(latest.report.timeline.zip(latest.report.new_timeline).map(|(a, b)| (a.0, b.0)), Some((2, 3)));
    drop(latest);
    let first = Wish { timeline: Some(mainstay::model::Timeline(1)), ..Wish::new(Target::Latest) };
    let plan = world.try_plan(first).await.unwrap();
    let old = world.restore(&plan, &world.options()).await.unwrap();
    assert_eq!(old.rows().await, 20_005);
    assert_eq!(old.report.new_timeline.map(|timeline| timeline.0), Some(3), "2 is taken");
}
