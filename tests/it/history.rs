//! The deploy history survives the loss of the daemon: another one reads it back from Git, if it is told to trust it.

use crate::git_transports::git;
use crate::support::stage::Stage;
use crate::support::{failpoints, http};
use serde_json::{Value, json};
use std::path::Path;

/// Three releases, the second of which was rolled back and is held; the held commit.
fn with_a_past(stage: &Stage) -> String {
    stage.good("good-1");
    let bad = stage.push("bad-2");
    assert_eq!(stage.ended(&bad)["steps"][0]["attempts"][0]["end"]["how"], "rolled-back");
    // Beside it, not on top of it, and with one push: the first commit is not deployed again.
    let work = &stage.daemon.work;
    git(work, &["reset", "-q", "--hard", "HEAD~1"]);
    std::fs::write(work.join(".mainstay/release.yml"), Stage::pipeline("good-3")).unwrap();
    git(work, &["commit", "-q", "-am", "deploy good-3"]);
    git(work, &["push", "-q", "--force", "origin", "HEAD:main"]);
    let third = git(work, &["rev-parse", "HEAD"]);
    assert_eq!(stage.ended(&third)["status"], "success");
    entries(stage, 4);
    bad
}

/// The titles of the chain in the repository, the newest first, once there are so many.
fn entries(stage: &Stage, count: usize) -> Vec<String> {
    stage.wait("the history in Git", |stage| {
        let log = git(&stage.daemon.bare, &["log", "--first-parent", "--format=%s", "refs/mainstay/production"]);
        let titles: Vec<_> = log.lines().filter(|title| title.starts_with("production")).map(str::to_owned).collect();
        assert!(titles.len() <= count, "{titles:#?}");
        (titles.len() == count).then_some(titles)
    })
}

fn tip(stage: &Stage) -> String {
    git(&stage.daemon.bare, &["rev-parse", "refs/mainstay/production"])
}

/// Every entry of the chain is signed by one of these keys.
fn all_signed_by(stage: &Stage, count: usize, keys: &[String]) {
    let allowed = stage.daemon.dir.path().join("allowed");
    let lines: Vec<_> = keys.iter().map(|key| format!("mainstay@localhost {key}\n")).collect();
    std::fs::write(&allowed, lines.concat()).unwrap();
    let setting = format!("gpg.ssh.allowedSignersFile={}", allowed.display());
    for n in 0..count {
        let entry = format!("refs/mainstay/production{}", "^".repeat(n));
        git(&stage.daemon.bare, &["-c", &setting, "verify-commit", &entry]);
    }
}

fn public_key(state: &Path) -> String {
    std::fs::read_to_string(state.join("sign.pub")).unwrap().trim().to_owned()
}

fn numbers(stage: &Stage) -> Vec<u64> {
    let releases = stage.api("environments/production/releases");
    releases.as_array().unwrap().iter().map(|row| row["release"]["number"].as_u64().unwrap()).collect()
}

/// How often a history was taken over, as the audit has it.
fn taken(stage: &Stage) -> Vec<Value> {
    let audit = stage.api("audit?limit=100");
    audit.as_array().unwrap().iter().filter(|entry| entry["act"] == "history-taken").cloned().collect()
}

#[test]
fn a_daemon_that_lost_its_state_goes_on_with_its_history() {
    let mut stage = Stage::started("watch: 300ms", "");
    let bad = with_a_past(&stage);
    let before = stage.environment();
    let key = public_key(&stage.daemon.state());
    stage.daemon.lose_state(&["sign.key"]);
    // Somebody takes the chance.
    stage.app.change_by_hand("good-by-hand");
    stage.daemon.start();

    let view = stage.wait("the history", |stage| {
        let view = stage.environment();
        view["current"].is_object().then_some(view)
    });
    assert_eq!(view["current"]["release"], before["current"]["release"]);
    assert_eq!((&view["verified"], &view["attention"]), (&json!(3), &Value::Null), "{view:#}");
    assert_eq!(view["holds"], before["holds"]);
    assert_eq!(view["holds"][0]["commit"], bad.as_str());
    let releases = stage.api("environments/production/releases");
    assert_eq!(numbers(&stage), [3, 2, 1]);
    let verified: Vec<_> = (0..3).map(|n| releases[n]["verified_at"].is_string()).collect();
    assert_eq!(verified, [true, false, true], "{releases:#}");
    assert!(releases[2]["recorded"].as_str().unwrap().ends_with("in refs/mainstay/production"), "{releases:#}");
    let deploys = stage.deploys();
    let ended: Vec<_> = deploys.iter().map(|deploy| (deploy["status"].as_str(), deploy["release"].as_u64())).collect();
    assert_eq!(ended, [(Some("verified"), Some(3)), (Some("rolled-back"), Some(2)), (Some("verified"), Some(1))]);
    assert!(deploys[1]["why"].as_str().unwrap().contains("503"), "{deploys:#?}");
    assert_eq!(deploys[1]["fallback"], 1);

    // What was changed by hand meanwhile is found.
    let drift = stage.wait("the drift", |stage| Some(stage.environment()["drift"][0].clone()).filter(Value::is_object));
    let drift = (&drift["item"], &drift["wanted"], &drift["found"]);
    assert_eq!(drift, (&json!("api.image"), &json!("good-3"), &json!("good-by-hand")));

    let answer = stage.daemon.try_cli(&["rollback", "production", "--to", "1"]);
    assert_eq!(answer.status.code(), Some(0), "{}", String::from_utf8_lossy(&answer.stderr));
    assert_eq!(stage.app.serves().as_deref(), Some("good-1"));
    stage.good("good-4");
    let titles = entries(&stage, 6);
    assert!(titles[0].starts_with("production 4: shop ") && titles[0].ends_with(" verified"), "{titles:#?}");
    assert!(titles[1].starts_with("production: rolled back to 1 "), "{titles:#?}");
    assert!(titles[4].starts_with("production 2: shop ") && titles[4].contains(" rolled back: "), "{titles:#?}");
    all_signed_by(&stage, 6, &[key]);
    git(&stage.daemon.bare, &["fsck", "--full", "--strict"]);

    // What was held is held.
    git(&stage.daemon.work, &["push", "-q", "--force", "origin", &format!("{bad}:refs/heads/main")]);
    let run = stage.ended(&bad);
    let end = &run["steps"][0]["attempts"][0]["end"];
    assert!(end["detail"].as_str().unwrap().contains("is held in production"), "{run:#}");
    // And all of that is done once.
    stage.daemon.restart();
    stage.wait("the state", |stage| (stage.environment()["state"] == "verified").then_some(()));
    assert_eq!(numbers(&stage), [4, 3, 2, 1]);
    assert_eq!(taken(&stage).len(), 1);
    assert_eq!(stage.daemon.cli(&["audit", "--verify"])["broken"], Value::Null);
    stage.daemon.end(0);
}

#[test]
fn a_history_that_no_trusted_key_vouches_for_bars_deploys_until_its_key_is_named() {
    let mut stage = Stage::started("watch: 300ms", "");
    with_a_past(&stage);
    let old = public_key(&stage.daemon.state());
    let there = tip(&stage);
    stage.daemon.lose_state(&[]);
    stage.daemon.start();

    let view = stage.wait("the word about it", |stage| {
        let view = stage.environment();
        view["attention"].is_string().then_some(view)
    });
    assert_eq!(view["state"], "attention");
    let said = view["attention"].as_str().unwrap();
    assert!(said.contains("no trusted key vouches for") && said.contains("SHA256:"), "{said}");
    let words: Vec<_> = old.split(' ').take(2).collect();
    let line = format!("releases: {{ trusted: [\"{}\"] }}", words.join(" "));
    assert!(said.contains(&line), "{said}");
    assert_eq!(stage.daemon.try_cli(&["environments"]).status.code(), Some(1));
    let found: Value = serde_json::from_slice(&stage.daemon.try_cli(&["doctor", "--no-run"]).stdout).unwrap();
    let check = found.as_array().unwrap().iter().find(|check| check["name"] == "environment").unwrap();
    assert!(check["found"].as_str().unwrap().starts_with("production: refs/mainstay/production of shop "), "{check:#}");
    assert!(check["mend"][0].as_str().unwrap().contains(&line), "{check:#}");
    // Nothing is deployed, and no second history begins.
    let run = stage.ended(&stage.push("good-4"));
    let end = &run["steps"][0]["attempts"][0]["end"];
    assert_eq!(end["how"], "refused", "{run:#}");
    assert!(end["detail"].as_str().unwrap().contains("no trusted key vouches for"), "{end}");
    let answer = stage.daemon.try_cli(&["rollback", "production", "--to", "1"]);
    assert_eq!(answer.status.code(), Some(4), "{}", String::from_utf8_lossy(&answer.stderr));
    assert_eq!((stage.app.serves().as_deref(), tip(&stage)), (Some("good-3"), there));
    assert_eq!(numbers(&stage), [0; 0]);

    // The very line that it asks for.
    let path = stage.daemon.dir.path().join("mainstay.yml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}{line}\n")).unwrap();
    stage.daemon.cli(&["reload"]);
    stage.wait("the history", |stage| (numbers(stage) == [3, 2, 1]).then_some(()));
    assert_eq!(stage.environment()["attention"], Value::Null);
    let signers = taken(&stage)[0]["details"]["signed_by"].clone();
    assert_eq!(signers.as_array().unwrap().len(), 1, "{signers}");
    let answer = stage.daemon.try_cli(&["rollback", "production", "--to", "1"]);
    assert_eq!(answer.status.code(), Some(0), "{}", String::from_utf8_lossy(&answer.stderr));
    assert_eq!(stage.app.serves().as_deref(), Some("good-1"));
    stage.good("good-5");
    let titles = entries(&stage, 6);
    assert!(titles[0].starts_with("production 4: shop "), "{titles:#?}");
    let new = public_key(&stage.daemon.state());
    assert_ne!(new, old);
    all_signed_by(&stage, 6, &[old, new]);
    stage.daemon.end(0);
}

/// Kills the daemon at its n-th record or act after the loss of its state, for the first few n: the history is taken once.
#[test]
fn killed_while_it_is_taken_over_a_history_is_taken_once() {
    let mut stage = Stage::new(Some(failpoints::binary().to_owned()), "watch: 300ms", "");
    stage.daemon.start();
    with_a_past(&stage);
    let mut kills = 0;
    for point in 1..=10_u32 {
        stage.daemon.lose_state(&["sign.key"]);
        stage.daemon.spawn(&[("MAINSTAY_FAILPOINT", point.to_string())]);
        let mut died = !stage.daemon.wait_answer();
        for _ in 0..100 {
            let known = http::get(&stage.daemon.socket(), "/api/v1/environments/production");
            if died || known.is_ok_and(|view| view["current"].is_object()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            died = stage.daemon.has_ended();
        }
        stage.daemon.kill9();
        stage.daemon.start();
        kills += u32::from(died);
        stage.wait("the history", |stage| (numbers(stage) == [3, 2, 1]).then_some(()));
        assert_eq!(stage.environment()["holds"].as_array().unwrap().len(), 1, "point {point}");
        assert_eq!(taken(&stage).len(), 1, "point {point}");
        assert_eq!(stage.deploys().len(), 3, "point {point}: {:#?}", stage.deploys());
    }
    assert!(kills > 0, "no point was hit");
    let answer = stage.daemon.try_cli(&["rollback", "production", "--to", "1"]);
    assert_eq!(answer.status.code(), Some(0), "{}", String::from_utf8_lossy(&answer.stderr));
    entries(&stage, 5);
    stage.daemon.end(0);
}
