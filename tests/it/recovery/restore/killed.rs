//! A restore that is killed at each of its calls to the store: it never leaves something that opens, and goes on when it is
//! called again.

use super::world::{Restored, World, gone, options, server_at};
use crate::support::faulty::Deadly;
use crate::support::postgres::{Options as ServerOptions, Server};
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::restore::{self, Feeding, Options, Progress, Target, Wish};
use mainstay::backup::seal::{Checker, Identities, Opener};
use mainstay::model::SourceName;
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const CHILD: &str = "MAINSTAY_TEST_RESTORE_CHILD";

/// Everything a restore needs, from a folder.
async fn again(folder: &Path, data: &Path, at: usize) -> (restore::Report, Options) {
    let identities = Identities::parse(&fs::read_to_string(folder.join("identity")).unwrap()).unwrap();
    let checker = Checker::new(identities.signers().to_vec());
    let opener = Opener::new(identities, checker);
    let inner = Folder::open(folder.join("repository")).unwrap();
    let source = SourceName::new("shop-db").unwrap();
    let holdings = restore::survey(&inner, &opener, &source, None).await.unwrap();
    let plan = restore::plan(&holdings, &Wish::new(Target::Latest)).unwrap();
    let deadly = Deadly::before(Arc::new(inner), at);
    let mut options = options(15, data, folder);
    options.feeding = Feeding { patience: Duration::from_millis(500), at_once: 1, ..options.feeding };
    let report = restore::restore(deadly, opener, &plan, &options, Arc::new(Progress::default())).await.unwrap();
    (report, options)
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_killed_restore_never_opens_and_goes_on() {
    if let Ok(child) = std::env::var(CHILD) {
        let mut parts = child.split('\n');
        let folder = PathBuf::from(parts.next().unwrap());
        let data = PathBuf::from(parts.next().unwrap());
        again(&folder, &data, parts.next().unwrap().parse().unwrap()).await;
        return;
    }
    let world = World::new(15, ServerOptions { segment_mib: Some(1), ..ServerOptions::default() }).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    world.backup().await;
    for rows in [10, 20, 30] {
        world.rows_to(rows).await;
        world.server.sql("SELECT pg_switch_wal()").await;
    }
    world.ship().await;
    let folder = world.folder.path();
    fs::write(folder.join("identity"), world.keys.identity_file(jiff::Timestamp::now())).unwrap();

    // One place is restored into again and again, killed ever later; and a fresh one at each.
    let on = folder.join("goes on");
    let (mut killed, mut goes_on, mut by_hand) = (0, 0, 0);
    for at in 1.. {
        let fresh = folder.join(format!("fresh {at}"));
        let died = child(folder, &fresh, at);
        goes_on += usize::from(child(folder, &on, at));
        for data in [&fresh, &on] {
            // Its server, if it had one, gives up by itself: nobody brings the log.
            gone(data, Duration::from_secs(20));
        }
        if !died {
            break;
        }
        killed += 1;
        let complete = fresh.join("global/pg_control").exists();
        if (!complete && at % 4 == 1) || (complete && by_hand < 3) {
            by_hand += usize::from(complete);
            refuses_to_open(&fresh).await;
        }
        // Killed before it made the folder there is none.
        if fresh.exists() {
            fs::remove_dir_all(&fresh).unwrap();
        }
        assert!(killed < 100, "it never ends well");
    }
    assert!(killed >= 10 && by_hand >= 2, "{killed} {by_hand}");
    println!("recovery: {} kills of a restore; 0 servers opened early", killed + goes_on + 1);
    // The last run of each ended well; once more on a place that was left half-way, in this process.
    let half = folder.join("half");
    assert!(child(folder, &half, killed));
    gone(&half, Duration::from_secs(20));
    let (report, options) = again(folder, &half, usize::MAX).await;
    let restored = Restored::new(report, &options);
    assert_eq!(restored.rows().await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_restore_that_died_when_its_server_was_open_goes_on() {
    let world = World::new(15, ServerOptions::default()).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    world.backup().await;
    world.rows_to(10).await;
    world.ship().await;
    let plan = world.plan(Target::Latest).await;
    let options = world.options();
    let restored = world.restore(&plan, &options).await.unwrap();
    let reached = restored.report.reached;
    drop(restored);
    // As it was before the last step: the word that it is half done is still there.
    let state = format!("{}\nan earlier boot\nthe newest state\nbase complete\n", plan.digest());
    fs::write(options.data.join(".mainstay-restore"), state).unwrap();
    let again = world.restore_from(world.repository.clone(), &plan, &options).await;
    let again = again.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((again.rows().await, again.report.reached), (10, reached));
    assert_eq!(again.report.new_timeline.map(|timeline| timeline.0), Some(2), "it was not promoted again");
}

/// While a restore is interrupted, backups are taken on: it goes on with what it began with, and to the newest state.
#[tokio::test(flavor = "multi_thread")]
async fn r21_a_restore_goes_on_with_its_base_although_there_is_a_newer_one() {
    let world = World::new(15, ServerOptions::default()).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    let first = world.backup().await;
    world.rows_to(10).await;
    world.ship().await;
    let (plan, options) = (world.plan(Target::Latest).await, world.options());
    // The log does not read: it ends when the base is in place.
    let log = plan.log.segments.iter().flat_map(|segment| &segment.parts);
    let parts: Vec<PathBuf> = log.map(|part| world.folder.path().join(format!("repository/{}", part.key))).collect();
    let good: Vec<Vec<u8>> = parts.iter().map(|part| fs::read(part).unwrap()).collect();
    parts.iter().zip(&good).for_each(|(part, good)| fs::write(part, vec![b'x'; good.len()]).unwrap());
    let error = world.restore(&plan, &options).await.err().unwrap();
    assert!(options.data.join(".mainstay-restore").exists(), "{error}");
    parts.iter().zip(good).for_each(|(part, good)| fs::write(part, good).unwrap());
    gone(&options.data, Duration::from_secs(20));

    let second = world.backup().await;
    world.rows_to(20).await;
    world.ship().await;
    let (holdings, wish) = (world.holdings().await, Wish::new(Target::Latest));
    let fresh = restore::plan_for(None, &holdings, &wish).unwrap();
    let on = restore::plan_for(Some(&options.data), &holdings, &wish).unwrap();
    assert_eq!((&fresh.base.backup, &on.base.backup), (&second.backup, &first.backup));
    // Something else is wanted: that is another restore, and it is refused here.
    let other = Wish::new(Target::Backup(second.backup.clone()));
    let other = restore::plan_for(Some(&options.data), &holdings, &other).unwrap();
    assert_eq!(other.base.backup, second.backup);
    assert!(world.restore(&other, &options).await.err().unwrap().to_string().contains("began here"));
    assert_eq!(world.restore(&on, &options).await.unwrap().rows().await, 20);
}

/// Runs this test in a process of its own that restores and is killed at that call. Whether it was.
fn child(folder: &Path, data: &Path, at: usize) -> bool {
    if data.join("PG_VERSION").exists() && !data.join(".mainstay-restore").exists() {
        // It is complete already.
        return false;
    }
    let name = "recovery::restore::killed::r21_a_killed_restore_never_opens_and_goes_on";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, format!("{}\n{}\n{at}", folder.display(), data.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    use std::os::unix::process::ExitStatusExt as _;
    if output.status.signal() == Some(Signal::SIGKILL as i32) {
        return true;
    }
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "killed at {at}: {}", String::from_utf8_lossy(&said));
    super::world::stop(data);
    false
}

/// Somebody starts a server on what a killed restore left.
async fn refuses_to_open(data: &Path) {
    let mut command = Server::command(15, "postgres");
    command.arg("-D").arg(data).args(["-c", "listen_addresses=", "-c", "unix_socket_directories="]);
    let mut server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = std::time::Instant::now();
    loop {
        if let Some(status) = server.try_wait().unwrap() {
            assert!(!status.success(), "{status}");
            return;
        }
        let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        assert!(!text.lines().nth(7).unwrap_or_default().starts_with("ready"), "it opened");
        assert!(began.elapsed() < Duration::from_secs(20), "it neither opens nor ends");
        assert!(server_at(data).is_some() || server.try_wait().is_ok());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
