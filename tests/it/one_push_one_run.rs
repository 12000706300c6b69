//! A push is one run, whoever tells about it, however often, and whoever was down meanwhile.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

use crate::git_transports::git;
use crate::support::daemon::{Daemon, Setup, hmac_of};
use crate::support::{Random, http, soak};
use std::time::Duration;

const QUICK: &str = "steps:\n  hello:\n    image: busybox:latest\n    commands: [echo hello]\n";

/// What a forge would send about the newest push, with a delivery id of its own.
fn webhook(daemon: &Daemon, old: &str, new: &str, delivery: &str) -> Option<u16> {
    let body = serde_json::json!({
        "delivery": delivery, "actor": "ana",
        "refs": [{ "ref": "refs/heads/main", "old": old, "new": new }],
    })
    .to_string();
    let signature = hmac_of(body.as_bytes());
    let headers = [("X-Mainstay-Signature", signature.as_str()), ("Content-Type", "application/json")];
    http::ask(&daemon.socket(), "POST", "/hooks/shop", &headers, body.as_bytes()).ok().map(|(status, _)| status)
}

#[test]
fn a_run_names_who_pushed() {
    let daemon = Daemon::started(&Setup { hook: false, ..Setup::new(QUICK) });
    let old = git(&daemon.work, &["rev-parse", "HEAD"]);
    let commit = daemon.push("by ana");
    assert_eq!(webhook(&daemon, &old, &commit, "one"), Some(202));
    let run = daemon.wait_begun(&commit);
    let detail = daemon.wait_run(run);
    assert_eq!(detail["actor"], "ana", "{detail:#}");
    assert_eq!(daemon.cli(&["runs"])[0]["actor"], "ana");
    daemon.end(0);
}

#[test]
fn hook_webhook_and_poll_at_once_with_kills_in_between() {
    let count = soak().map_or(5, |n| n / 4);
    let mut random = Random::new("hook_webhook_and_poll_at_once");
    let mut daemon = Daemon::started(&Setup { poll: "1s", ..Setup::new(QUICK) });
    let mut told = 0;
    for round in 0..count {
        let old = git(&daemon.work, &["rev-parse", "HEAD"]);
        // The daemon may die before the push, while it is told, and after.
        let early = random.below(4) == 0;
        if early {
            daemon.kill9();
        }
        let commit = daemon.push(&format!("round {round}"));
        told += 1;
        if early {
            daemon.start();
        }
        let delivery = format!("d{round}");
        for _ in 0..1 + random.below(3) {
            std::thread::sleep(Duration::from_millis(random.below(60)));
            told += usize::from(webhook(&daemon, &old, &commit, &delivery) == Some(202));
            if random.below(2) == 0 {
                std::thread::sleep(Duration::from_millis(random.below(300)));
                daemon.restart();
            }
        }
        let run = daemon.wait_begun(&commit);
        daemon.wait_run(run);
        // Told again after it is over: the same delivery, and one with a new id.
        told += usize::from(webhook(&daemon, &old, &commit, &delivery) == Some(202));
        told += usize::from(webhook(&daemon, &old, &commit, &format!("{delivery}-again")) == Some(202));
    }
    // Two more looks at the refs, and nobody finds anything new.
    std::thread::sleep(Duration::from_millis(2_500));
    let runs = http::get(&daemon.socket(), "/api/v1/runs?limit=500").unwrap();
    let mut commits: Vec<_> = runs.as_array().unwrap().iter().map(|run| run["commit"].to_string()).collect();
    let all = commits.len();
    commits.sort();
    commits.dedup();
    assert_eq!((all, commits.len()), (count, count), "runs, commits that ran: {runs:#}");
    println!("hook_webhook_and_poll_at_once: {count} pushes, told {told} times beside the polls, {all} runs");
    daemon.end(0);
}

#[test]
fn a_push_made_while_the_daemon_is_down_runs_when_it_starts() {
    for hook in [true, false] {
        let mut daemon = Daemon::started(&Setup { hook, ..Setup::new(QUICK) });
        // Without a hook there is nothing to tell an old push from a new one until the refs were looked at once.
        daemon.wait("the first look at the refs", || {
            let database = rusqlite::Connection::open_with_flags(
                daemon.state().join("mainstay.db"),
                rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
            );
            let seen = database.ok()?.query_row("SELECT count(*) FROM refs", [], |row| row.get::<_, i64>(0)).ok()?;
            (seen > 0).then_some(())
        });
        for kill in [true, false] {
            if kill {
                daemon.kill9();
            } else {
                daemon.term();
            }
            let commit = daemon.push(&format!("hook {hook}, killed {kill}"));
            daemon.start();
            let run = daemon.wait_begun(&commit);
            assert_eq!(daemon.wait_run(run)["status"], "success");
            assert_eq!(daemon.runs_of(&commit), [run]);
        }
        daemon.end(0);
    }
}
