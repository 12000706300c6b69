//! Cancel and timeout: TERM, some time to clean up, KILL; then the steps that run always; then nothing is left.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

use crate::support::daemon::{Daemon, Setup};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A step that answers TERM by cleaning up, one that does not care, and what has to run whatever happened.
fn pipeline(timeout: &str) -> String {
    format!(
        "steps:
  polite:
    image: busybox:latest
    needs: []
    timeout: {timeout}
    commands: ['trap \"echo cleaned >> polite; echo cleaned; exit 7\" TERM; echo begun; while :; do sleep 0.1; done']
  deaf:
    image: busybox:latest
    needs: []
    timeout: {timeout}
    commands: ['trap \"\" TERM; echo begun; while :; do sleep 0.1; done']
  after:
    image: busybox:latest
    needs: [polite, deaf]
    commands: [echo never]
  always:
    image: busybox:latest
    needs: [after]
    when: {{ status: always }}
    commands: ['echo status=$CI_RUN_STATUS', 'cat polite']
"
    )
}

fn step<'a>(run: &'a Value, name: &str) -> &'a Value {
    run["steps"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap()
}

fn says(daemon: &Daemon, run: u64, name: &str, wanted: &str) {
    let lines = daemon.logs(run, name).unwrap();
    assert!(lines.iter().any(|(_, _, text)| text == wanted), "`{wanted}` is not in the log of {name}: {lines:#?}");
}

#[test]
fn cancel_stops_what_runs_and_runs_what_must() {
    let mut daemon = Daemon::started(&Setup::new(&pipeline("10m")));
    for killed in [false, true] {
        let run = daemon.wait_begun(&daemon.push("go"));
        daemon.wait_running(run, "polite");
        daemon.wait_running(run, "deaf");
        let since = Instant::now();
        daemon.cli(&["cancel", &run.to_string()]);
        if killed {
            // The wish was durable before it was answered.
            std::thread::sleep(Duration::from_millis(300));
            daemon.restart();
        }
        let detail = daemon.wait_run(run);
        assert_eq!(detail["status"], "cancelled", "{detail:#}");
        for name in ["polite", "deaf"] {
            assert_eq!(step(&detail, name)["attempts"][0]["end"]["how"], "cancelled", "{name}: {detail:#}");
        }
        assert_eq!(step(&detail, "after")["outcome"], "cancelled", "{detail:#}");
        assert_eq!(step(&detail, "always")["outcome"], "succeeded", "{detail:#}");
        says(&daemon, run, "polite", "cleaned");
        says(&daemon, run, "always", "cleaned");
        says(&daemon, run, "always", "status=cancelled");
        let took = since.elapsed();
        assert!(took > Duration::from_secs(9), "the deaf step had no time to stop by itself: {took:?}");
        println!("cancel, daemon killed meanwhile: {killed}: over after {took:?}");
    }
    daemon.end(0);
}

#[test]
fn a_timeout_stops_the_step_and_fails_the_run() {
    let mut daemon = Daemon::started(&Setup::new(&pipeline("2s")));
    let run = daemon.wait_begun(&daemon.push("go"));
    daemon.wait_running(run, "polite");
    // The time counts while nobody is there.
    daemon.kill9();
    std::thread::sleep(Duration::from_secs(2));
    daemon.start();
    let detail = daemon.wait_run(run);
    assert_eq!(detail["status"], "failure", "{detail:#}");
    for name in ["polite", "deaf"] {
        assert_eq!(step(&detail, name)["attempts"][0]["end"]["how"], "timed-out", "{name}: {detail:#}");
    }
    assert_eq!(step(&detail, "after")["outcome"], "skipped", "{detail:#}");
    assert_eq!(step(&detail, "always")["outcome"], "succeeded", "{detail:#}");
    says(&daemon, run, "always", "cleaned");
    daemon.end(1);
}
