//! Rules that hold for every restore and everything kept for one, each on real servers: whose bytes count, which key opens,
//! what is never written over, and what an expiry leaves.

use super::world::{World, stop};
use crate::support::faulty::{Call, Faults, Faulty, What};
use crate::support::postgres::{Options as ServerOptions, Server};
use async_trait::async_trait;
use mainstay::backup::catalog::expire::{ExpireError, Report, Settings, expire};
use mainstay::backup::catalog::manifest::{Frontier, Proof, ProofKind, VERSION};
use mainstay::backup::catalog::retention::Policy;
use mainstay::backup::repository::{BackupId, Item, RepositoryError};
use mainstay::backup::restore::{self, Into, Target, Wish};
use mainstay::backup::seal::{Checker, Opener, new_key_set};
use mainstay::model::{Lsn, Timeline};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

pub(super) const DAY: Duration = Duration::from_secs(86_400);

async fn small(version: u32) -> World {
    let world = World::new(version, ServerOptions { segment_mib: Some(1), ..ServerOptions::default() }).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn r05_a_shorter_piece_never_stands_for_a_longer_one_and_segments_are_handed_out_whole() {
    for version in Server::versions() {
        let world = small(version).await;
        world.backup().await;
        world.rows_to(20_000).await;
        let size = world.segment_size().await;
        // Of each segment there is a first part too, as a writer leaves it that died before it had taken its pieces away; of
        // the last one there are two pieces that begin at one place.
        let end: Lsn = world.server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
        world.ship_to(Timeline(1), end).await;
        let plan = world.plan(Target::Latest).await;
        assert!(plan.log.segments.len() > 2, "{plan}");
        let mut start = plan.base.start.segment_start(size);
        while start < end {
            let file = fs::read(world.server.data().join("pg_wal").join(size.name(Timeline(1), start).to_string()));
            let length = ((end.0.min(start.0 + size.bytes()) - start.0) / 2) as usize;
            let piece = Item::Piece { timeline: Timeline(1), first: start, last: Lsn(start.0 + length as u64) };
            world.put(piece, &file.unwrap()[..length]).await;
            start = Lsn(start.0 + size.bytes());
        }

        let plan = world.plan(Target::Latest).await;
        let mut options = world.options();
        let Into::Server(server) = &options.into else { unreachable!() };
        options.into = Into::Folder { owner: server.user };
        restore::restore(world.repository.clone(), world.opener(), &plan, &options, Default::default()).await.unwrap();
        let mut segments = 0;
        for entry in fs::read_dir(options.data.join("mainstay-restore/wal")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.len() == 24 {
                segments += 1;
                assert_eq!(entry.metadata().unwrap().len(), size.bytes(), "{name}");
            }
        }
        assert!(segments >= plan.log.segments.len(), "{segments} of {}", plan.log.segments.len());
        let server = Server::on(version, &options.data, ServerOptions::default()).await;
        server.until("SELECT pg_is_in_recovery()", "f").await;
        assert_eq!(server.value("SELECT count(*) FROM t").await, "20000", "PostgreSQL {version}");
    }
}

/// Counts what is read.
#[derive(Default)]
struct Reads(AtomicUsize);

#[async_trait]
impl Faults for Reads {
    async fn before(&self, call: &Call<'_>) -> Result<(), RepositoryError> {
        self.0.fetch_add(usize::from(call.what == What::Get), Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_another_key_is_told_before_anything_is_read_and_the_right_one_needs_nothing_else() {
    for version in Server::versions() {
        let world = small(version).await;
        world.backup().await;
        world.rows_to(10).await;
        world.ship().await;
        let plan = world.plan(Target::Latest).await;
        let stranger = new_key_set().unwrap();
        let opener = Opener::new(stranger.identity, Checker::new(vec![world.keys.signing.public()]));
        let (options, reads) = (world.options(), Faulty::over(world.repository.clone(), Reads::default()));
        let refused = restore::restore(reads.clone(), opener, &plan, &options, Default::default()).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("none of the identities opens it"), "{refused}");
        assert_eq!(reads.faults.0.load(Ordering::SeqCst), 0, "something was read");
        assert!(!options.data.exists());
        // What another one signed is not believed.
        let opener = Opener::new(world.keys.identity.clone(), Checker::new(vec![stranger.signing.public()]));
        let held = restore::survey(&*world.repository, &opener, &world.cluster.source, None).await;
        let plans = held.is_ok_and(|holdings| restore::plan(&holdings, &Wish::new(Target::Latest)).is_ok());
        assert!(!plans, "signatures of a stranger are believed");
        assert_eq!(world.back_to(Target::Latest).await.rows().await, 10, "PostgreSQL {version}");
    }
}

/// What stands beside a folder and was moved there.
fn aside(data: &Path) -> Vec<PathBuf> {
    let name = data.file_name().unwrap().to_str().unwrap();
    let entries = fs::read_dir(data.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path != data && path.file_name().unwrap().to_str().unwrap().starts_with(name)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_nothing_that_is_there_is_written_over() {
    for version in Server::versions() {
        let world = small(version).await;
        world.backup().await;
        world.rows_to(10).await;
        world.ship().await;
        let plan = world.plan(Target::Latest).await;
        let into = |data: &Path, force: bool| restore::Options { data: data.to_owned(), force, ..world.options() };

        // The repository itself, what is in it and what it is in; by another name too.
        let repository = world.folder.path().join("repository");
        std::os::unix::fs::symlink(&repository, world.folder.path().join("link")).unwrap();
        for place in ["repository", "repository/new", "link/shop-db/new", "."] {
            for force in [false, true] {
                let refused = world.restore(&plan, &into(&world.folder.path().join(place), force)).await.err().unwrap();
                assert!(refused.to_string().contains("the repository is"), "{place}: {refused}");
            }
        }
        assert!(!repository.join("new").exists() && !repository.join("shop-db/new").exists());

        // A port at which another listens: known before anything is made.
        let taken = into(&world.folder.path().join("taken"), false);
        let Into::Server(server) = &taken.into else { unreachable!() };
        let other = std::net::TcpListener::bind(("127.0.0.1", server.port)).unwrap();
        let refused = world.restore(&plan, &taken).await.err().unwrap().to_string();
        assert!(refused.contains(&format!("port {} of this machine is in use", server.port)), "{refused}");
        assert!(!taken.data.exists());
        drop(other);

        // A server that runs there, asked for by force or not.
        for force in [false, true] {
            let refused = world.restore(&plan, &into(world.server.data(), force)).await.err().unwrap().to_string();
            assert!(refused.contains("a PostgreSQL server runs in it"), "{refused}");
        }
        assert_eq!(world.server.value("SELECT count(*) FROM t").await, "10");

        // Somebody's files.
        let foreign = world.folder.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("notes"), "mine").unwrap();
        let refused = world.restore(&plan, &into(&foreign, false)).await.err().unwrap().to_string();
        assert!(refused.contains("it is not empty") && refused.contains("--force"), "{refused}");
        assert_eq!(fs::read_to_string(foreign.join("notes")).unwrap(), "mine");
        assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);

        // A cluster that is stopped: moved aside, where it still starts with all it had.
        let old = world.restore(&plan, &into(&world.folder.path().join("old"), false)).await.unwrap();
        let data = old.report.data.clone();
        assert_eq!(old.value("INSERT INTO t VALUES (11); SELECT count(*) FROM t").await, "11");
        let mut ended = Server::command(version, "pg_ctl");
        let ended = ended.arg("-D").arg(&data).args(["-m", "fast", "-w", "stop"]).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        assert!(world.restore(&plan, &into(&data, false)).await.is_err());
        assert!(aside(&data).is_empty());
        let new = world.restore(&plan, &into(&data, true)).await.unwrap();
        assert_eq!(new.rows().await, 10);
        let [moved] = &aside(&data)[..] else { panic!("{:?}", aside(&data)) };
        let server = Server::on(version, moved, ServerOptions::default()).await;
        assert_eq!(server.value("SELECT count(*) FROM t").await, "11", "PostgreSQL {version}");
        drop((server, new));
        stop(&data);
    }
}

/// Says of a backup that it opened.
fn started() -> Vec<u8> {
    let (at, kind, detail, log) = (jiff::Timestamp::now(), ProofKind::Started, "it opened".to_owned(), Vec::new());
    let proof = Proof { version: VERSION, at, kind, good: true, detail, reached: None, took_secs: 1, log };
    serde_json::to_vec(&proof).unwrap()
}

/// Ten days go by, in which nothing is written: what the writer and the place say then.
pub(super) async fn ten_days_on(world: &World, time: u64) -> jiff::Timestamp {
    let late = jiff::Timestamp::now() + 10 * DAY;
    let end = world.plan(Target::Latest).await.end;
    let (timeline, acknowledged) = (end.timeline, end.lsn);
    let frontier = Frontier { version: VERSION, timeline, acknowledged, at: late, server_time: Some(late) };
    let item = Item::Frontier(1_000 + time);
    world.put(item.clone(), &serde_json::to_vec(&frontier).unwrap()).await;
    let file = world.folder.path().join("repository").join(world.key(item).to_string());
    fs::File::options().write(true).open(&file).unwrap().set_modified(SystemTime::now() + 10 * DAY).unwrap();
    late
}

pub(super) async fn expired(world: &World, now: jiff::Timestamp, dry_run: bool) -> Result<Report, ExpireError> {
    expired_to(world, now, dry_run, 1).await
}

async fn expired_to(world: &World, now: jiff::Timestamp, dry_run: bool, backups: u32) -> Result<Report, ExpireError> {
    let policy = Policy { window: Duration::ZERO, backups };
    let settings = Settings { policy, grace: Duration::ZERO, dry_run, now };
    let checker = Checker::new(vec![world.keys.signing.public()]);
    expire(&*world.repository, &checker, &world.sealer, &world.cluster.source, settings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn r18_r19_an_expiry_leaves_the_last_good_and_the_proven_backup_and_both_restore() {
    for version in Server::versions() {
        let world = small(version).await;
        let mut backups = Vec::new();
        for rows in [10, 20, 30] {
            backups.push(world.backup().await.backup);
            world.rows_to(rows).await;
            world.ship().await;
        }
        world.put(Item::Proof(backups[0].clone(), 1), &started()).await;
        let late = ten_days_on(&world, 0).await;

        // A clock that is wrong by a day, either way, plans the same.
        let mut plans = Vec::new();
        for now in [late - DAY, late, late + DAY] {
            let report = expired(&world, now, true).await.unwrap();
            plans.push(report.clusters[0].plan.as_ref().unwrap().backups.keys().cloned().collect::<Vec<_>>());
        }
        let kept = vec![backups[0].clone(), backups[2].clone()];
        assert!(plans.iter().all(|plan| *plan == kept), "{plans:?}");
        // The first run marks, the second one takes.
        let marked = expired(&world, late, false).await.unwrap();
        assert_eq!(marked.deleted.objects, 0);
        let taken = expired(&world, late, false).await.unwrap();
        assert!(taken.deleted.objects > 3, "{:?}", taken.deleted);
        assert_eq!(world.holdings().await.backups.keys().cloned().collect::<Vec<_>>(), kept);
        // Once more, and then again: what is needed stays.
        assert_eq!(expired(&world, late + 20 * DAY, false).await.unwrap().deleted.objects, 0);
        for backup in kept {
            let wish = Wish { backup: Some(backup), ..Wish::new(Target::Latest) };
            let plan = world.try_plan(wish).await.unwrap();
            let restored = world.restore(&plan, &world.options()).await.unwrap();
            assert_eq!(restored.rows().await, 30, "PostgreSQL {version}");
        }
        // A disk that is not mounted: an empty place is not believed.
        let place = world.folder.path().join("repository");
        let objects = place.join(world.cluster.source.as_str());
        fs::rename(objects, world.folder.path().join("elsewhere")).unwrap();
        assert!(matches!(expired(&world, late, false).await, Err(ExpireError::Empty { .. })));
    }
}

/// What is there after an expiry: the newest so many and the newest that was proven at the least, and nothing that was gone.
async fn kept_at(world: &World, taken: &[BackupId], proven: Option<&BackupId>, backups: u32) -> BTreeSet<BackupId> {
    let there: BTreeSet<BackupId> = world.holdings().await.backups.keys().cloned().collect();
    let mut wanted: BTreeSet<BackupId> = taken.iter().rev().take(backups as usize).cloned().collect();
    wanted.extend(proven.cloned());
    let taken: BTreeSet<BackupId> = taken.iter().cloned().collect();
    assert!(wanted.is_subset(&there) && there.is_subset(&taken), "{wanted:?} of {taken:?}: {there:?}");
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn soak_r16_after_each_expiry_of_a_random_history_everything_kept_restores_and_opens() {
    let version = 17;
    let world = small(version).await;
    let (mut taken, mut proven, mut rows, mut restores, mut removed) = (Vec::new(), None, 0, 0, 0);
    let roll = |sides: u32| getrandom::u32().unwrap() % sides;
    for step in 0..10_u32 {
        for _ in 0..1 + roll(3) {
            rows += 1 + roll(3_000);
            world.rows_to(rows).await;
            if roll(2) == 0 {
                world.server.sql("SELECT pg_switch_wal()").await;
            }
            if taken.is_empty() || roll(3) > 0 {
                let backup = world.backup().await.backup;
                if roll(4) == 0 {
                    world.put(Item::Proof(backup.clone(), 1), &started()).await;
                    proven = Some(backup.clone());
                }
                taken.push(backup);
            }
        }
        world.ship().await;
        let late = ten_days_on(&world, u64::from(step)).await;
        let backups = 1 + roll(3);
        for _ in 0..2 {
            removed += expired_to(&world, late, false, backups).await.unwrap().deleted.objects;
        }
        let kept = kept_at(&world, &taken, proven.as_ref(), backups).await;
        taken.retain(|backup| kept.contains(backup));
        for backup in kept {
            let wish = Wish { backup: Some(backup.clone()), ..Wish::new(Target::Latest) };
            let plan = world.try_plan(wish).await.unwrap_or_else(|error| panic!("step {step}, {backup}: {error}"));
            let options = world.options();
            let restored = world.restore(&plan, &options).await.unwrap();
            assert_eq!(restored.rows().await, rows, "step {step}, {backup}");
            drop(restored);
            fs::remove_dir_all(&options.data).unwrap();
            restores += 1;
        }
    }
    assert!(removed > 20, "{removed}");
    println!(
        "recovery: 10 expiries of a random history took {removed} objects; all {restores} restores of what was kept opened"
    );
}
