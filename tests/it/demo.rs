//! `mainstay demo` from the bare binary: two real runs on the real engine, and nothing left of them afterwards.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn demo(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(["demo", "--dir"]).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What the engine holds of the demo's daemon, by the name that its state folder gives it.
fn left(dir: &Path) -> String {
    let database = rusqlite::Connection::open(dir.join("state/mainstay.db")).unwrap();
    let instance: String =
        database.query_row("SELECT value FROM meta WHERE key = 'instance'", [], |row| row.get(0)).unwrap();
    let label = format!("label=mainstay.instance={instance}");
    let mut found = String::new();
    for kind in [&["container", "ls", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
        let output = Command::new("docker").args(kind).args(["--quiet", "--filter", &label]).output();
        let output = output.expect("docker is not installed: tests/setup/prepare.sh test");
        assert!(output.status.success(), "the Docker engine does not answer: tests/setup/prepare.sh test");
        found.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    found
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn wait_for(child: &mut Child, limit: Duration) -> i32 {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("the demo did not end within {limit:?}");
}

/// One test, because two demos at once would see each other's containers in `left`.
#[test]
fn both_ways_out_of_a_demo_leave_nothing() {
    a_push_passes_and_the_next_one_fails();
    interrupted_it_stops_its_daemon_and_says_130();
}

fn a_push_passes_and_the_next_one_fails() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("demo");
    let output = demo(&dir).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for wanted in ["ok: words", "wanted:", "mainstay retry 2 --from words", "What to try next"] {
        assert!(said.contains(wanted), "`{wanted}` is missing in:\n{said}");
    }
    assert!(!dir.join("daemon.pid").exists());
    assert_eq!(left(&dir), "");
}

fn interrupted_it_stops_its_daemon_and_says_130() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("demo");
    let mut child = demo(&dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid_file = dir.join("daemon.pid");
    let until = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(&pid_file).map_or(0, |file| file.len()) == 0 {
        assert!(Instant::now() < until, "no daemon was started");
        std::thread::sleep(Duration::from_millis(5));
    }
    let daemon: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(wait_for(&mut child, Duration::from_secs(60)), 130);
    assert!(kill(Pid::from_raw(daemon), None).is_err(), "the daemon still runs");
    assert_eq!(left(&dir), "");
}
