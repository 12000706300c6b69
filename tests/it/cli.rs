//! Promise: the command line says what it does, where it looked, and what to try; its exit codes are the documented ones.

use crate::api_daemon::{Daemon, sample};
use assert_cmd::Command;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

fn mainstay(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("mainstay").unwrap();
    // What the person who runs the tests has set must not change them.
    for name in [
        "MAINSTAY_CONFIG",
        "MAINSTAY_STATE",
        "MAINSTAY_URL",
        "MAINSTAY_TOKEN_FILE",
        "MAINSTAY_LOG",
        "COLUMNS",
        "NO_COLOR",
    ] {
        command.env_remove(name);
    }
    command.env("TZ", "UTC").args(arguments).timeout(Duration::from_secs(60));
    command
}

/// Runs it off the async threads, with the daemon's state folder.
async fn at(daemon: &Daemon, arguments: &[&str]) -> Said {
    let state = daemon.state();
    let mut command = mainstay(arguments);
    command.env("MAINSTAY_STATE", state);
    Said::from(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn say(arguments: &[&str], folder: &Path) -> Said {
    mainstay(arguments).current_dir(folder).output().unwrap().into()
}

#[test]
fn the_help_page_groups_the_commands() {
    let said = say(&["--help"], Path::new("/"));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    for group in ["Start:", "Pipelines:", "Runs:", "Deploys:", "Recovery:", "Options:", "Exit codes:"] {
        assert!(said.out.contains(&format!("\n{group}")), "{group} is not on\n{}", said.out);
    }
    assert!(!said.out.contains("shim"), "{}", said.out);
    assert!(said.out.lines().all(|line| line.chars().count() <= 100), "a line is too long:\n{}", said.out);
}

#[test]
fn help_of_commands() {
    for name in [
        "trigger",
        "runs",
        "show",
        "logs",
        "retry",
        "inbox",
        "doctor",
        "token",
        "audit",
        "approvals",
        "approve",
        "reject",
        "key",
        "backup",
        "backups",
        "restore",
        "verify",
        "expire",
    ] {
        let said = say(&[name, "--help"], Path::new("/"));
        assert_eq!(said.code, Some(0));
        insta::assert_snapshot!(format!("help_{name}"), said.out);
    }
}

#[test]
fn nothing_asked_for_and_nonsense_are_wrong_requests() {
    let said = say(&[], Path::new("/"));
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
    assert!(said.err.contains("Usage:"), "{}", said.err);
    let said = say(&["trigr"], Path::new("/"));
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("trigger"), "the nearest command is not named: {}", said.err);
    let said = say(&["--json", "trigger", "shop", "--input", "x"], Path::new("/"));
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
    let document: serde_json::Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(document["exit"], 2);
    assert!(document["error"].as_str().unwrap().contains("KEY=VALUE"), "{document}");
}

#[test]
fn without_a_daemon_it_says_where_it_looked_and_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let said = say(&["runs"], folder.path());
    assert_eq!((said.code, said.out.as_str()), (Some(3), ""));
    insta::assert_snapshot!("nobody_answers", said.err);
    std::fs::write(folder.path().join("mainstay.yml"), "state: data\nrepos: {}\n").unwrap();
    let said = say(&["--json", "runs"], folder.path());
    assert_eq!((said.code, said.out.as_str()), (Some(3), ""));
    let document: serde_json::Value = serde_json::from_str(&said.err).unwrap();
    insta::assert_snapshot!("nobody_answers_json", serde_json::to_string_pretty(&document).unwrap());
}

#[test]
fn a_configuration_that_is_named_and_missing_is_an_error() {
    let said = say(&["--config", "nowhere.yml", "runs"], Path::new("/"));
    assert_eq!(said.code, Some(2));
    insta::assert_snapshot!("configuration_missing", said.err);
}

#[test]
fn settings_and_sources_of_backups_are_checked_together() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("backups")).unwrap();
    let settings = "repository: { url: 's3://shop', endpiont: 'https://s3.example.com' }\nrepos: { shop: /x }\n";
    write("mainstay.yml", settings);
    write("backups/shop-db.yml", "postgres: postgres://backup@db/?sslmode=verify-full\nkeep: { widow: 7d }\n");
    write("backups/stock.yml", "postgres: postgres://backup:hunter2@stock\nfrom: [{ repo: shpo, branches: main }]\n");
    let said = say(&["validate"], folder.path());
    assert_eq!(said.code, Some(2));
    insta::assert_snapshot!("validate_sources", said.out);
    let said = say(&["--json", "validate", "backups"], folder.path());
    let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let files = document["files"].as_array().unwrap();
    assert!(said.code == Some(2) && files.len() == 2, "{document}");
    assert!(files.iter().all(|file| file["kind"] == "source" && file["ok"] == false), "{document}");
    let said = say(&["schema", "backup"], folder.path());
    let schema: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(schema["title"], "Mainstay source of backups");
}

#[test]
fn the_token_never_crosses_a_network_in_clear_text() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = mainstay(&["runs"]);
    let said =
        Said::from(command.env("MAINSTAY_URL", "http://ci.example.com").current_dir(folder.path()).output().unwrap());
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("clear text") && said.err.contains("hint: use https"), "{}", said.err);
}

#[test]
fn completion_scripts_parse() {
    for shell in ["bash", "zsh", "fish"] {
        let script = say(&["completions", shell], Path::new("/")).out;
        assert!(script.contains("trigger") && script.contains("follow"), "{shell} knows too little");
        // Only bash is on every machine; the others are checked where they are.
        let check = std::process::Command::new(shell).arg("-n").stdin(std::process::Stdio::piped()).spawn();
        match check {
            Ok(mut child) => {
                use std::io::Write;
                child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
                assert!(child.wait().unwrap().success(), "{shell} does not parse its script");
            }
            Err(error) => assert!(shell != "bash", "bash is needed for this test: {error}"),
        }
    }
}

#[test]
fn a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let said = say(&["man", "pages"], folder.path());
    assert_eq!(said.code, Some(0), "{}", said.err);
    let read = |name: &str| std::fs::read_to_string(folder.path().join("pages").join(name)).unwrap();
    assert!(read("mainstay.1").contains("Exit codes"));
    assert!(read("mainstay-logs.1").contains("follow"));
    assert!(read("mainstay-inbox-replay.1").contains("replay"));
    assert!(!folder.path().join("pages/mainstay-shim.1").exists());
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("mainstay"))
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &[][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_listed_and_shown() {
    let daemon = Daemon::start().await;
    assert_eq!(at(&daemon, &["runs"]).await.err, "no runs\n");
    let said = at(&daemon, &["show", "latest"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("there is none yet"), "{}", said.err);
    daemon.memory.put(sample(11, "success"));
    daemon.memory.put(sample(12, "failure"));
    for n in 1..=15 {
        daemon.memory.log(12, "test", 1, &format!("line {n}"), n == 15);
    }
    let said = at(&daemon, &["runs"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    let rows: Vec<&str> = said.out.lines().collect();
    assert!(rows[0].starts_with("RUN  STATUS     REPO"), "{}", said.out);
    assert!(rows[1].starts_with("#12  ✗ failure  shop") && rows[2].starts_with("#11  ✓ success  shop"), "{}", said.out);
    let said = at(&daemon, &["runs", "--status", "success", "--json"]).await;
    let found: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((found[0]["id"].as_u64(), found.as_array().unwrap().len()), (Some(11), 1));
    for name in ["12", "#12", "latest"] {
        let said = at(&daemon, &["show", name]).await;
        assert!(
            said.out.contains("Run #12") && said.out.contains("line 15") && said.out.contains("line 6\n"),
            "{}",
            said.out
        );
        assert!(!said.out.contains("line 5\n"), "{}", said.out);
        for command in ["mainstay logs 12 test", "mainstay retry 12 --from test", "mainstay run .mainstay/ci.yml"] {
            assert!(said.out.contains(command), "{command} is not in\n{}", said.out);
        }
    }
    let said = at(&daemon, &["show", "99"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.starts_with("mainstay: failed to find run #99\nhint: "), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_logs_come_step_by_step_and_cut_as_asked() {
    let daemon = Daemon::start().await;
    daemon.memory.put(sample(12, "failure"));
    daemon.memory.log(12, "test", 1, "testing", false);
    daemon.memory.log(12, "build", 1, "\u{1b}]0;owned\u{7}compiling", true);
    daemon.memory.log(12, "test", 1, "failed", true);
    let said = at(&daemon, &["logs", "12"]).await;
    assert_eq!(said.out, "build | compiling\ntest  | testing\ntest  | failed\n");
    assert_eq!(at(&daemon, &["logs", "12", "test", "--tail", "1"]).await.out, "failed\n");
    let said = at(&daemon, &["logs", "12", "build", "--timestamps"]).await;
    assert_eq!(said.out, "2026-03-01 10:00:00.001 compiling\n");
    let said = at(&daemon, &["--json", "logs", "12", "build"]).await;
    let line: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(line["text"], "\u{1b}]0;owned\u{7}compiling");
    let said = at(&daemon, &["logs", "12", "tset"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("hint: it has build, test"), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_run_is_shown_to_its_end_over_a_restart_of_the_daemon() {
    let daemon = Daemon::start().await;
    daemon.memory.put(sample(12, "running"));
    daemon.memory.log(12, "build", 1, "compiling", true);
    daemon.memory.log(12, "test", 1, "one", false);
    let memory = daemon.memory.clone();
    let mut command = mainstay(&["logs", "latest", "-f"]);
    command.env("MAINSTAY_STATE", daemon.state());
    let follower = tokio::task::spawn_blocking(move || Said::from(command.output().unwrap()));
    tokio::time::sleep(Duration::from_millis(700)).await;
    memory.log(12, "test", 1, "two", false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stopped = daemon.stop(Duration::from_secs(5)).await.unwrap();
    memory.log(12, "test", 1, "three", false);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let daemon = stopped.start().await;
    memory.log(12, "test", 1, "four", true);
    memory.put(sample(12, "failure"));
    let said = follower.await.unwrap();
    assert_eq!(said.out, "build | compiling\ntest  | one\ntest  | two\ntest  | three\ntest  | four\n", "{}", said.err);
    assert_eq!(said.code, Some(1), "a failed run that was followed");
    assert!(said.err.contains("run #12: failure"), "{}", said.err);
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_reach_the_daemon_and_refusals_reach_the_person() {
    let daemon = Daemon::start().await;
    daemon.memory.put(sample(12, "running"));
    daemon.memory.put(sample(11, "failure"));
    let said =
        at(&daemon, &["trigger", "shop", "--ref", "v1", "--pipeline", "ci", "--input", "a=1", "--input", "b=x=y"])
            .await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "started #12\n"), "{}", said.err);
    assert_eq!(at(&daemon, &["cancel", "#12"]).await.out, "run #12 is being cancelled\n");
    assert_eq!(at(&daemon, &["retry", "11", "--from", "test"]).await.out, "started #12\n");
    assert_eq!(at(&daemon, &["inbox", "replay", "41"]).await.out, "started #13\n");
    assert_eq!(at(&daemon, &["reload"]).await.out, "reloaded:\n  watches `till`\n");
    assert_eq!(
        daemon.memory.wishes(),
        [
            r#"trigger shop Some("v1") Some(PipelineName("ci")) {"a": "1", "b": "x=y"}"#,
            "cancel 12",
            r#"retry 11 Some(StepName("test"))"#,
            "replay 41",
            "reload",
        ]
    );
    assert!(at(&daemon, &["inbox"]).await.out.contains("41  done   shop  main  -..1a2b3c4d  hook,poll"));
    let said = at(&daemon, &["trigger", "nothing"]).await;
    assert_eq!(
        (said.code, said.err.as_str()),
        (Some(2), "mainstay: failed to find the repository `nothing`\nhint: mainstay.yml names shop\n")
    );
    let said = at(&daemon, &["cancel", "11"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("it is over already"), "{}", said.err);
    assert_eq!(at(&daemon, &["status"]).await.code, Some(0));
    daemon.memory.not_ready("the state folder is full");
    let said = at(&daemon, &["status"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("the state folder is full"), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_the_token_file_opens_the_door() {
    let daemon = Daemon::start().await;
    let folder = tempfile::tempdir().unwrap();
    let ask = |token: &str| {
        let file = folder.path().join("token");
        std::fs::write(&file, token).unwrap();
        let mut command = mainstay(&["status"]);
        command.env("MAINSTAY_URL", daemon.url("")).env("MAINSTAY_TOKEN_FILE", file);
        async { Said::from(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()) }
    };
    assert_eq!(ask(&format!("{}\n", daemon.token)).await.code, Some(0));
    let said = ask("wrong").await;
    assert_eq!(said.code, Some(4));
    assert!(said.err.contains("the token is absent or wrong"), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_the_engine_of_this_machine_and_leaves_nothing() {
    let daemon = Daemon::start().await;
    let said = at(&daemon, &["--json", "doctor"]).await;
    let checks: Vec<serde_json::Value> = serde_json::from_str(&said.out).unwrap();
    let state = |name: &str| checks.iter().find(|check| check["name"] == name).map(|check| check["state"].clone());
    for name in ["container engine", "engine clock", "run a container", "state folder", "socket"] {
        assert_eq!(state(name).unwrap(), "good", "{name}: is the Docker engine up, with an image? {}", said.out);
    }
    assert!(state("run networks").is_some() && state("kernel").is_some(), "{}", said.out);
    assert_eq!(state("daemon").unwrap(), "poor", "the running one says that it is version 1.2.3: {}", said.out);
    let left =
        std::process::Command::new("docker").args(["ps", "-aq", "--filter", "label=mainstay.doctor"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "a container was left");
}

#[test]
fn doctor_says_what_is_missing_and_how_to_mend_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mainstay.yml"), "repoz: {}\n").unwrap();
    let mut command = mainstay(&["doctor"]);
    let gone = format!("unix://{}/docker.sock", folder.path().display());
    let said = Said::from(command.env("DOCKER_HOST", &gone).current_dir(folder.path()).output().unwrap());
    assert_eq!(said.code, Some(3), "{}{}", said.out, said.err);
    assert!(said.out.contains(&format!("✗ container engine  {gone}: No such file or directory")), "{}", said.out);
    assert!(said.out.contains("mend: start it: `systemctl start docker`"), "{}", said.out);
    assert!(
        said.out.contains("mend: `mainstay validate ./mainstay.yml`")
            || said.out.contains("mend: `mainstay validate mainstay.yml`"),
        "{}",
        said.out
    );
    assert!(said.err.contains("2 things are missing"), "{}", said.err);
}
