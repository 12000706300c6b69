//! A run goes on, and loses nothing, whenever and wherever its daemon is killed.
//!
//! Three ways to choose the moment: any (a clock), every call to the engine (a proxy that counts, before the engine
//! hears of the call and after it has done it), and every record (fail points in a daemon built for that). The gate
//! tries a sample of each; `make soak` tries all of them.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

use crate::support::daemon::{Daemon, STUCK, Setup, chatter, check_chatter, short_socket};
use crate::support::engine::DockerEngine;
use crate::support::proxy::{Proxy, When};
use crate::support::{Random, failpoints, soak};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Lines each step writes on each of its streams.
const LINES: u32 = 40;

/// Six steps: one, then two side by side, then one, then two side by side. Each keeps a journal in the workspace, and
/// the last shows it.
fn six_steps() -> String {
    let mut text = String::from("steps:\n");
    let shape = [("a", ""), ("b", "a"), ("c", "a"), ("d", "b, c"), ("e", "d"), ("f", "d")];
    for (name, needs) in shape {
        let show =
            if name == "f" { "while ! grep -q 'e ended' journal; do sleep 0.05; done; cat journal" } else { "true" };
        text.push_str(&format!(
            "  {name}:\n    image: busybox:latest\n    needs: [{needs}]\n    commands:\n      - echo \"$CI_STEP_NAME began\" >> journal\n      \
             - |\n        {}\n      - echo \"$CI_STEP_NAME ended\" >> journal\n      - {show}\n",
            chatter(LINES, 10, "0.06"),
        ));
    }
    text
}

/// Everything a run of [`six_steps`] must have come to when only its daemon was ever killed.
fn check_six(daemon: &Daemon, run: u64, what: &str) {
    let detail = daemon.wait_run(run);
    assert_eq!(detail["status"], "success", "{what}: {detail:#}\n{}", daemon.log_end());
    for step in detail["steps"].as_array().unwrap() {
        let name = step["name"].as_str().unwrap();
        let attempts = step["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 1, "{what}: step {name} was tried more than once: {step:#}");
        assert!(attempts[0]["began_at"].is_string(), "{what}: nobody knows when step {name} began: {step:#}");
        let lines = daemon.logs(run, name).unwrap();
        check_chatter(&lines, 1, LINES, &format!("{what}: run {run} step {name}"));
    }
    let lines = daemon.logs(run, "f").unwrap();
    let mut journal: Vec<&str> = lines.iter().map(|(_, _, text)| text.as_str()).collect();
    journal.retain(|line| line.ends_with(" began") || line.ends_with(" ended"));
    journal.retain(|line| line.len() == "x began".len());
    journal.sort_unstable();
    let mut wanted: Vec<String> = "abcdef".chars().map(|c| format!("{c} began")).collect();
    wanted.extend("abcde".chars().map(|c| format!("{c} ended")));
    wanted.push("f ended".into());
    wanted.sort_unstable();
    assert_eq!(journal, wanted, "{what}: a step ran twice, or not at all");
}

/// Waits for the daemon's death or the end of the push's run; true when it died.
fn dies(daemon: &mut Daemon, commit: &str) -> bool {
    let until = Instant::now() + STUCK;
    loop {
        if daemon.has_ended() {
            return true;
        }
        let over = |run: Value| !matches!(run["status"].as_str(), Some("queued" | "running"));
        if daemon.runs_of(commit).first().and_then(|run| daemon.run(*run)).is_some_and(over) {
            // Closing the run is part of it.
            std::thread::sleep(Duration::from_millis(300));
            return daemon.has_ended();
        }
        assert!(Instant::now() < until, "neither killed nor done\n{}", daemon.log_end());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn at_any_moment() {
    let count = soak().unwrap_or(5);
    let mut random = Random::new("at_any_moment");
    let mut daemon = Daemon::started(&Setup::new(&six_steps()));
    let since = Instant::now();
    let calm = daemon.wait_begun(&daemon.push("calm"));
    check_six(&daemon, calm, "calm");
    let span = since.elapsed().as_millis() as u64;
    let mut kills = 0;
    for round in 1..=count {
        let commit = daemon.push(&format!("round {round}"));
        let moment = Duration::from_millis(random.below(span));
        std::thread::sleep(moment);
        daemon.kill9();
        kills += 1;
        // A successor that is killed while it picks things up is part of life.
        while random.below(3) == 0 {
            daemon.spawn(&[]);
            std::thread::sleep(Duration::from_millis(random.below(400)));
            daemon.kill9();
            kills += 1;
        }
        daemon.start();
        let run = daemon.wait_begun(&commit);
        check_six(&daemon, run, &format!("round {round}, killed after {moment:?}"));
        assert_eq!(daemon.runs_of(&commit), [run], "one push, one run");
    }
    println!(
        "at_any_moment: {count} runs of 6 steps, {kills} kills, 0 stuck, 0 lines lost or doubled, 0 steps run twice"
    );
    daemon.end(0);
}

/// The n-th points to try: all up to where nothing is hit any more, or some of them spread over `about` points.
fn points(about: usize, some: usize, random: &mut Random) -> Box<dyn Iterator<Item = usize>> {
    if soak().is_some() {
        return Box::new(1..);
    }
    let stride = about.div_ceil(some);
    let first = 1 + random.below(stride as u64) as usize;
    Box::new((0..some).map(move |i| first + i * stride))
}

#[test]
fn at_every_call_to_the_engine() {
    let mut random = Random::new("at_every_call_to_the_engine");
    for when in [When::Before, When::After] {
        let folder = tempfile::tempdir().unwrap();
        let engine = DockerEngine::usual();
        let proxy = Proxy::start(&short_socket(folder.path(), "engine.sock"), &engine.socket);
        let pipeline = six_steps();
        let host = Some(format!("unix://{}", proxy.socket.display()));
        let mut daemon = Daemon::started(&Setup { docker_host: host, engine, ..Setup::new(&pipeline) });
        let (before, _) = proxy.told();
        let calm = daemon.wait_begun(&daemon.push("calm"));
        check_six(&daemon, calm, "calm");
        let calls = proxy.told().0 - before;
        let mut kills = 0;
        for n in points(calls, 3, &mut random) {
            proxy.kill_at(daemon.pid(), n, when);
            let commit = daemon.push(&format!("call {n}"));
            let died = dies(&mut daemon, &commit);
            proxy.calm();
            let what = format!("call {n} of about {calls}: {:?}", proxy.told().1);
            if died {
                kills += 1;
                daemon.start();
            }
            let run = daemon.wait_begun(&commit);
            check_six(&daemon, run, &what);
            if !died && soak().is_some() {
                break;
            }
        }
        println!("at_every_call_to_the_engine: {when:?}: a run makes about {calls} calls; killed at {kills} of them");
        assert!(kills >= 2, "the proxy killed nobody");
        daemon.end(0);
    }
}

#[test]
fn at_every_record() {
    let mut random = Random::new("at_every_record");
    let pipeline = six_steps();
    let mut daemon = Daemon::new(&Setup { program: failpoints::binary().into(), ..Setup::new(&pipeline) });
    daemon.start();
    let calm = daemon.wait_begun(&daemon.push("calm"));
    check_six(&daemon, calm, "calm");
    let mut kills = 0;
    for n in points(60, 5, &mut random) {
        daemon.kill9();
        daemon.spawn(&[("MAINSTAY_FAILPOINT", n.to_string())]);
        let commit = daemon.push(&format!("record {n}"));
        let died = dies(&mut daemon, &commit);
        if died {
            kills += 1;
            // The successor is killed too, at one of the first things it records.
            if random.below(2) == 0 {
                daemon.spawn(&[("MAINSTAY_FAILPOINT", (1 + random.below(12)).to_string())]);
                kills += usize::from(dies(&mut daemon, &commit));
                daemon.kill9();
            }
            daemon.start();
        }
        let run = daemon.wait_begun(&commit);
        check_six(&daemon, run, &format!("record {n}"));
        assert_eq!(daemon.runs_of(&commit), [run], "one push, one run");
        if !died && soak().is_some() {
            println!("at_every_record: a run passes {} points", n - 1);
            break;
        }
    }
    println!("at_every_record: {kills} kills");
    assert!(kills >= 3, "no fail point was reached");
    // One that survived its run still has a point to die at, which its stop might be.
    daemon.kill9();
    daemon.start();
    daemon.end(0);
}

/// One step that must never begin twice, and one that tells how often it did.
const ONCE: &str = "steps:
  deploy:
    image: busybox:latest
    once: true
    retries: { max: 1, on: [image-pull] }
    commands: [echo begun >> journal, sleep 0.3]
  tell:
    image: busybox:latest
    needs: [deploy]
    when: { status: always }
    commands: ['touch journal', 'while read line; do echo \"journal: $line\"; done < journal']
";

#[test]
fn a_step_marked_once_never_begins_twice() {
    let mut random = Random::new("a_step_marked_once_never_begins_twice");
    let (mut kills, mut unknown) = (0, 0);
    for when in [When::Before, When::After] {
        let folder = tempfile::tempdir().unwrap();
        let engine = DockerEngine::usual();
        let proxy = Proxy::start(&short_socket(folder.path(), "engine.sock"), &engine.socket);
        let host = Some(format!("unix://{}", proxy.socket.display()));
        let mut daemon = Daemon::started(&Setup { docker_host: host, engine, ..Setup::new(ONCE) });
        let mut failed = 0;
        for n in points(30, 3, &mut random) {
            proxy.kill_at(daemon.pid(), n, when);
            let commit = daemon.push(&format!("call {n}"));
            let died = dies(&mut daemon, &commit);
            proxy.calm();
            if died {
                kills += 1;
                daemon.start();
            }
            let run = daemon.wait_begun(&commit);
            let detail = daemon.wait_run(run);
            let what = format!("{:?}: {detail:#}", proxy.told().1);
            let begun = daemon.logs(run, "tell").unwrap();
            let begun = begun.iter().filter(|(_, _, text)| text == "journal: begun").count();
            let deploy = &detail["steps"][0];
            assert_eq!(deploy["attempts"].as_array().unwrap().len(), 1, "{what}");
            match detail["status"].as_str() {
                Some("success") => assert_eq!(begun, 1, "{what}"),
                _ => {
                    assert_eq!(deploy["attempts"][0]["end"]["how"], "lost-container", "{what}");
                    assert!(begun <= 1, "it began {begun} times: {what}");
                    failed += 1;
                }
            }
            if !died && soak().is_some() {
                break;
            }
        }
        unknown += failed;
        daemon.end(failed);
    }
    println!("a_step_marked_once_never_begins_twice: {kills} kills, {unknown} of them ended in `cannot be known`");
    assert!(kills >= 2, "the proxy killed nobody");
}

/// One step that runs for a while.
fn long_step(more: &str) -> String {
    let body = chatter(LINES, 4, "0.2");
    format!("steps:\n  long:\n    image: busybox:latest\n{more}    commands:\n      - |\n        {body}\n")
}

#[test]
fn a_stopped_daemon_leaves_steps_running_and_the_next_one_finishes_them() {
    let mut daemon = Daemon::started(&Setup::new(&long_step("")));
    let run = daemon.wait_begun(&daemon.push("go"));
    daemon.wait_running(run, "long");
    let (took, status) = daemon.term();
    assert!(status.success() && took < Duration::from_secs(3), "{status} after {took:?}");
    let instance = daemon.instance();
    let steps = daemon.engine.steps(&instance, run);
    assert_eq!(steps.len(), 1, "the step does not go on without the daemon: {:?}", daemon.engine.held(&instance));
    daemon.start();
    let detail = daemon.wait_run(run);
    assert_eq!(detail["status"], "success", "{detail:#}");
    assert_eq!(detail["steps"][0]["attempts"].as_array().unwrap().len(), 1);
    check_chatter(&daemon.logs(run, "long").unwrap(), 1, LINES, "long");
    println!("a_stopped_daemon: stopped in {took:?}");
    daemon.end(0);
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let mut daemon = Daemon::started(&Setup::new(&long_step("")));
    let second = daemon.command().arg("serve").output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(2), "{said}");
    assert!(said.contains("another daemon has it") && said.contains(&format!("pid {}", daemon.pid())), "{said}");
    assert!(daemon.run(1).is_none() && !daemon.has_ended(), "the first one was disturbed");
    daemon.end(0);
}

#[test]
fn what_was_lost_while_nobody_looked_is_said_and_nothing_is_stuck() {
    let mut daemon = Daemon::started(&Setup::new(&long_step("")));
    let run = daemon.wait_begun(&daemon.push("go"));
    daemon.wait_running(run, "long");
    daemon.kill9();
    let instance = daemon.instance();
    daemon.engine.lose(&instance);
    daemon.start();
    let detail = daemon.wait_run(run);
    assert_eq!(detail["status"], "failure", "{detail:#}");
    assert_eq!(detail["steps"][0]["attempts"][0]["end"]["how"], "lost-container", "{detail:#}");
    // The next push is none the worse for it.
    let next = daemon.wait_begun(&daemon.push("next"));
    assert_eq!(daemon.wait_run(next)["status"], "success");
    // The workspace of a failed run is kept. It was lost with the rest; an engine that is asked for a container of that
    // run once more makes it again, empty.
    daemon.end(1);
}
