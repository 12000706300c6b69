//! The container engine stops, dies and comes back in the middle of a run: every run ends in a state that says so.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

use crate::support::daemon::{Daemon, Setup, chatter, check_chatter, short_socket};
use crate::support::dockerd::Dockerd;
use crate::support::http;
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

#[test]
fn an_engine_that_is_missing_at_the_start_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let socket = short_socket(folder.path(), "engine.sock");
    let text = "steps:\n  test: { image: debian:12, commands: [echo tested] }\n";
    let setup = Setup { docker_host: Some(format!("unix://{}", socket.display())), ..Setup::new(text) };
    let daemon = Daemon::started(&setup);
    let readyz = |daemon: &Daemon| {
        let (status, body) = http::ask(&daemon.socket(), "GET", "/readyz", &[], b"").unwrap();
        (status, String::from_utf8(body).unwrap())
    };
    let reason = format!("failed to reach the container engine at unix://{}: ", socket.display());
    daemon.wait("the reason why it is not ready", || {
        let (status, body) = readyz(&daemon);
        (status == 503 && body.starts_with(&reason)).then_some(())
    });
    let run = daemon.wait_begun(&daemon.push("while there is none"));
    let log = daemon.log_end();
    assert!(log.contains("`mainstay doctor` says what is missing"), "{log}");
    assert_eq!(log.matches("\"level\":\"WARN\"").count(), 1, "one warning is enough\n{log}");
    std::os::unix::fs::symlink(&daemon.engine.socket, &socket).unwrap();
    daemon.wait("readiness", || (readyz(&daemon) == (200, "ready\n".into())).then_some(()));
    assert_eq!(daemon.wait_run(run)["status"], "success", "{}", daemon.log_end());
    let log = daemon.log_end();
    assert!(log.contains("the engine answers again"), "{log}");
    daemon.end(0);
}
