//! The container engine stops, dies and comes back in the middle of a run: every run ends in a state that says so.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

use crate::support::daemon::{Daemon, Setup, chatter, check_chatter};
use crate::support::dockerd::Dockerd;
use crate::support::soak;
use std::time::Duration;

const LINES: u32 = 45;

/// `first` runs when the engine goes; `later` shares its network and was started ahead, `beside` has one of its own.
fn pipeline(retries: &str) -> String {
    let body = chatter(LINES, 3, "0.3");
    format!(
        "steps:
  first:
    image: busybox:latest
    needs: []
    retries: {retries}
    commands:
      - |
        {body}
  later:
    image: busybox:latest
    needs: [first]
    when: {{ status: always }}
    commands: [echo later]
  beside:
    image: busybox:latest
    needs: [first]
    when: {{ status: always }}
    commands: [echo beside]
"
    )
}

#[test]
fn in_mid_run_the_attempt_is_lost_and_later_steps_run() {
    let dockerd = Dockerd::start("busybox:latest");
    let (mut failed, mut restarts) = (0, 0);
    let mut daemons = Vec::new();
    for (retries, succeeds) in [("1", true), ("0", false)] {
        let text = pipeline(retries);
        let setup = Setup { engine: dockerd.engine.clone(), ..Setup::new(&text) };
        daemons.push((Daemon::started(&setup), succeeds));
    }
    for signal in ["-TERM", "-KILL"] {
        for daemon_too in [false, true] {
            // The gate takes one of each.
            if soak().is_none() && daemon_too != (signal == "-KILL") {
                continue;
            }
            restarts += 1;
            let mut runs = Vec::new();
            for (daemon, succeeds) in &daemons {
                let run = daemon.wait_begun(&daemon.push(signal));
                runs.push((run, *succeeds));
            }
            for ((daemon, _), (run, _)) in daemons.iter_mut().zip(&runs) {
                daemon.wait_running(*run, "first");
                if daemon_too {
                    daemon.kill9();
                }
            }
            dockerd.down(signal);
            std::thread::sleep(Duration::from_millis(300));
            dockerd.up();
            for ((daemon, _), (run, succeeds)) in daemons.iter_mut().zip(runs) {
                if daemon_too {
                    daemon.start();
                }
                let detail = daemon.wait_run(run);
                let what = format!("engine {signal}, daemon killed: {daemon_too}: {detail:#}");
                let attempts = detail["steps"][0]["attempts"].as_array().unwrap();
                assert_eq!(attempts[0]["end"]["how"], "lost-container", "{what}");
                assert_eq!(detail["status"], if succeeds { "success" } else { "failure" }, "{what}");
                assert_eq!(attempts.len(), if succeeds { 2 } else { 1 }, "{what}");
                for later in [1, 2] {
                    assert_eq!(detail["steps"][later]["outcome"], "succeeded", "{what}");
                }
                if succeeds {
                    check_chatter(&daemon.logs(run, "first").unwrap(), 2, LINES, "after the engine came back");
                } else {
                    failed += 1;
                }
            }
        }
    }
    println!(
        "in_mid_run: {restarts} restarts of the engine under 2 runs each: {} attempts lost, and said so",
        restarts * 2
    );
    for (daemon, succeeds) in daemons {
        daemon.end(if succeeds { 0 } else { failed });
    }
}

#[test]
fn an_engine_that_is_away_costs_time_and_no_run() {
    let dockerd = Dockerd::start("busybox:latest");
    let text = pipeline("1");
    let mut daemon = Daemon::started(&Setup { engine: dockerd.engine.clone(), ..Setup::new(&text) });
    let run = daemon.wait_begun(&daemon.push("calm"));
    assert_eq!(daemon.wait_run(run)["status"], "success");
    // A push while the engine is down waits for it; so does a daemon that is started meanwhile.
    for kill in [false, true] {
        dockerd.down("-KILL");
        let commit = daemon.push("while it is away");
        let run = daemon.wait_begun(&commit);
        std::thread::sleep(Duration::from_millis(500));
        if kill {
            daemon.restart();
        }
        dockerd.up();
        let detail = daemon.wait_run(run);
        assert_eq!(detail["status"], "success", "{detail:#}");
        check_chatter(&daemon.logs(run, "first").unwrap(), 1, LINES, "a run that waited for the engine");
    }
    // What a killed daemon had left there is gone as well, although its successor came before the engine did.
    daemon.end(0);
}
