//! Promise: every act leaves an entry that says who did it and how that is known; an entry that was tampered with is found.

use crate::people::{Team, good, own_name};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

impl Team {
    /// The audit, the oldest first.
    fn audit(&self) -> Vec<Value> {
        let mut entries = self.0.cli(&["audit", "--limit", "500"]).as_array().unwrap().clone();
        entries.reverse();
        entries
    }

    /// Each act: what, by whom, whether that is a person, how that is known, to what.
    fn acts(&self) -> Vec<String> {
        let word = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
        let told = |e: &Value| {
            let words = [word(e, "act"), word(e, "who"), e["person"].to_string(), word(e, "way"), word(e, "subject")];
            words.join("|")
        };
        self.audit().iter().map(told).collect()
    }

    /// `audit --verify`: exit code and verdict.
    fn verify(&self, more: &[&str]) -> (i32, Value) {
        let output = self.0.try_cli(&[&["audit", "--verify"], more].concat());
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
    }
}

#[test]
fn every_act_is_recorded_with_who_did_it() {
    let mut team = Team::new();
    let me = own_name();
    let (token, _) = team.token(&["ben", "--name", "laptop"]);
    let shared = team.shared_token();
    let first = good(&team.over_tcp(&token, &["trigger", "shop", "--ref", "main"]))["runs"][0].as_u64().unwrap();
    team.0.wait_running(first, "wait");
    team.0.cli(&["cancel", &first.to_string()]);
    let ended = team.0.wait_run(first);
    assert_eq!(ended["status"], "cancelled");
    let second = good(&team.over_tcp(&shared, &["retry", &first.to_string()]))["runs"][0].as_u64().unwrap();
    assert_eq!(team.0.run(second).unwrap()["actor"], "the token file");
    good(&team.over_tcp(&token, &["cancel", &second.to_string()]));
    team.0.wait_run(second);
    let third = good(&team.over_tcp(&shared, &["inbox", "replay", "1"]))["runs"][0].as_u64().unwrap();
    team.0.cli(&["cancel", &third.to_string()]);
    team.0.wait_run(third);
    // Refused, or without effect: no entry.
    assert!(!team.0.try_cli(&["cancel", &third.to_string()]).status.success());
    assert!(!team.0.try_cli(&["retry", "999"]).status.success());
    assert!(!team.0.try_cli(&["trigger", "shop", "--ref", "nowhere"]).status.success());
    assert!(!team.0.try_cli(&["inbox", "replay", "999"]).status.success());
    assert!(!team.over_tcp(&token, &["token", "create", "ana"]).status.success());
    team.0.cli(&["reload"]);
    team.people("ben: { mail: nonsense }");
    assert!(!team.0.try_cli(&["reload"]).status.success());
    // What a signal changes is recorded too.
    team.people("ana: {}, ben: {}, cem: {}");
    let known = team.audit().len();
    kill(team.0.pid(), Signal::SIGHUP).unwrap();
    team.0.wait("the reload by a signal", || (team.audit().len() > known).then_some(()));
    team.people("ana: {}, ben: {}");
    good(&team.over_tcp(&token, &["reload"]));
    team.0.cli(&["token", "revoke", "1"]);

    let wanted = [
        format!("token-create|{me}|false|socket|ben"),
        "trigger|ben|true|token|shop".to_owned(),
        format!("cancel|{me}|false|socket|run {first}"),
        format!("retry|the token file|false|shared-token|run {first}"),
        format!("cancel|ben|true|token|run {second}"),
        "replay|the token file|false|shared-token|inbox 1".to_owned(),
        format!("cancel|{me}|false|socket|run {third}"),
        "reload|SIGHUP|false|signal|mainstay.yml".to_owned(),
        "reload|ben|true|token|mainstay.yml".to_owned(),
        format!("token-revoke|{me}|false|socket|ben"),
    ];
    assert_eq!(team.acts(), wanted);
    let entries = team.audit();
    let details = |n: usize| &entries[n]["details"];
    assert_eq!((details(0)["token"].as_u64(), details(0)["name"].as_str()), (Some(1), Some("laptop")));
    assert_eq!((details(1)["inbox"].as_u64(), details(1)["ref"].as_str()), (Some(1), Some("refs/heads/main")));
    assert_eq!((details(3)["run"].as_u64(), details(3)["actor"].as_str()), (Some(second), Some("ben")));
    assert_eq!(details(5)["inbox"], 2);
    assert_eq!(details(7)["changes"][0], "cem is a person now");
    let secret = &token["mainstay_".len()..];
    assert!(entries.iter().all(|entry| !entry.to_string().contains(secret)), "the audit shows a token");

    // The chain goes on over a daemon that was killed.
    team.0.restart();
    let (token, _) = team.token(&["ana"]);
    good(&team.over_tcp(&token, &["runs"]));
    let (code, verdict) = team.verify(&[]);
    assert_eq!((code, verdict["entries"].as_u64(), &verdict["broken"]), (0, Some(11), &Value::Null), "{verdict}");
    team.0.end(1);
}

#[test]
fn what_was_tampered_with_is_found_and_named() {
    let team = Team::new();
    assert_eq!(team.verify(&[]).0, 0);
    for _ in 0..3 {
        team.token(&["ana"]);
        team.token(&["ben"]);
    }
    let entries = team.audit();
    let hash = |seq: usize| entries[seq - 1]["hash"].as_str().unwrap();
    let (code, verdict) = team.verify(&["--expect", &hash(4).to_uppercase()]);
    assert_eq!((code, verdict["newest"].as_str(), verdict["expected_at"].as_u64()), (0, Some(hash(6)), Some(4)));
    assert_eq!(team.verify(&["--expect", &"0".repeat(64)]).0, 1, "a hash that no entry has was found");
    assert_eq!(team.0.try_cli(&["audit", "--verify", "--expect", "abc"]).status.code(), Some(2));

    let tamper = |sql: &str, seq: u64, why: &str| {
        let database = team.database();
        database.execute_batch("CREATE TABLE kept AS SELECT * FROM audit").unwrap();
        database.execute_batch(sql).unwrap();
        let (code, verdict) = team.verify(&[]);
        assert_eq!((code, verdict["broken"]["seq"].as_u64()), (1, Some(seq)), "{sql}: {verdict}");
        assert!(verdict["broken"]["why"].as_str().unwrap().contains(why), "{sql}: {verdict}");
        let words = team.0.command().args(["audit", "--verify"]).output().unwrap();
        let words = String::from_utf8(words.stdout).unwrap();
        assert!(words.contains(&format!("broken at entry {seq}:")), "{words}");
        let restore = "DELETE FROM audit; INSERT INTO audit SELECT * FROM kept; DROP TABLE kept";
        database.execute_batch(restore).unwrap();
        assert_eq!(team.verify(&[]).0, 0);
    };
    tamper("UPDATE audit SET who = 'ana', person = 1 WHERE seq = 3", 3, "changed");
    tamper("DELETE FROM audit WHERE seq = 4", 4, "missing");
    let swap = "UPDATE audit SET seq = -2 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 5;
                UPDATE audit SET seq = 5 WHERE seq = -2";
    tamper(swap, 2, "does not follow entry 1");

    // A cut tail is seen by who kept the newest hash, and only by them.
    team.database().execute("DELETE FROM audit WHERE seq = 6", ()).unwrap();
    assert_eq!(team.verify(&[]).0, 0);
    let (code, verdict) = team.verify(&["--expect", hash(6)]);
    assert_eq!((code, &verdict["expected_at"]), (1, &Value::Null), "{verdict}");
    team.0.end(0);
}
