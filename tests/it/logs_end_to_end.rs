//! Logs from a step's process to the person who reads them, and how long they are kept.

use crate::hostile::lab::Lab;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_followed_log_has_every_line_once_in_order_and_soon() {
    let lab = Lab::start("", "");
    let pipeline = b"steps:\n  count:\n    image: busybox\n    commands:\n      - for i in $(seq 1 20); do echo line $i; sleep 0.1; done\n      - seq 1 20000 | sed 's/^/many /'\n";
    let commit = lab.push("main", &[(".mainstay/ci.yml", pipeline)]);
    lab.wait("the run", || (!lab.runs().is_empty()).then_some(()));
    let mut follow = lab
        .command()
        .args(["--json", "logs", "latest", "-f"])
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let before = Instant::now();
    let mut first_seen = None;
    let mut lines = Vec::new();
    for line in BufReader::new(follow.stdout.take().unwrap()).lines() {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        if line["text"] == "line 1" {
            first_seen = Some(before.elapsed());
        }
        if line["text"] == "line 20" {
            let live = before.elapsed() - first_seen.unwrap();
            assert!(live > Duration::from_millis(1_200), "the lines came at once, {live:?}: nothing was followed");
        }
        lines.push(line);
    }
    assert!(follow.wait().unwrap().success());
    let expected: Vec<String> =
        (1..=20).map(|n| format!("line {n}")).chain((1..=20_000).map(|n| format!("many {n}"))).collect();
    let told: Vec<&str> = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
    let own: Vec<&str> =
        told.into_iter().filter(|text| text.starts_with("line ") || text.starts_with("many ")).collect();
    assert!(own.iter().eq(expected.iter()), "{} of {} lines", own.len(), expected.len());
    let numbers: Vec<u64> = lines.iter().map(|line| line["n"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "numbers have holes");
    lab.ended(&commit);
    let again = lab.json(&["runs"]);
    assert_eq!(again[0]["status"], "success");
}

#[test]
fn what_is_old_is_forgotten_with_its_logs_and_the_newest_stays() {
    let mut lab = Lab::start("keep: { for: 1s, runs: 2 }", "");
    let pipeline = b"steps:\n  one: { image: busybox, commands: ['echo here'] }\n";
    let mut commits = vec![lab.push("main", &[(".mainstay/ci.yml", pipeline)])];
    lab.ended(&commits[0]);
    for n in 2..=4 {
        commits.push(lab.commit_and_push("main", &format!("number {n}")));
        lab.ended(&commits[n - 1]);
    }
    let retried = lab.cli(&["retry", "1"]);
    assert!(retried.status.success(), "{}", super::hostile::lab::text(&retried));
    lab.wait("five ended runs", || {
        let runs = lab.runs();
        (runs.len() == 5 && runs.iter().all(|run| run["status"] == "success")).then_some(())
    });
    lab.wait("their end in the engine", || {
        let db = rusqlite::Connection::open(lab.state().join("mainstay.db")).ok()?;
        let open: i64 = db.query_row("SELECT count(*) FROM runs WHERE closed = 0", [], |row| row.get(0)).ok()?;
        (open == 0).then_some(())
    });
    std::thread::sleep(Duration::from_millis(1_100));
    // Housekeeping looks at start, and every ten minutes.
    lab.stop();
    lab.serve();
    lab.wait("two runs", || (lab.runs().len() == 2).then_some(()));
    let runs = lab.runs();
    assert_eq!((runs[0]["id"].as_u64(), runs[1]["id"].as_u64()), (Some(5), Some(4)));
    assert!(runs[0].get("retry_of").is_none(), "it names a run that is gone: {}", runs[0]);
    let mut logs: Vec<_> = std::fs::read_dir(lab.state().join("logs"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    logs.sort();
    assert_eq!(logs, ["4", "5"]);
    assert_eq!(lab.cli(&["show", "1"]).status.code(), Some(2));
    let inbox = lab.json(&["inbox"]);
    assert!(inbox.as_array().unwrap().len() <= 2, "{inbox}");
    // The next push is the sixth run: numbers are never used twice.
    let next = lab.commit_and_push("main", "after");
    assert_eq!(lab.ended(&next)["id"], 6);
    lab.alive();
}
