//! Promise: it is known who asks; a personal token counts exactly as long as it should, and only the daemon's own user
//! makes one.

use crate::support::daemon::{Daemon, Setup};
use serde_json::Value;
use std::process::Output;

/// A step that is there until somebody stops it.
const PIPELINE: &str =
    "on: manual\nsteps:\n  wait:\n    image: debian:12\n    commands: [\"echo here\", \"sleep 600\"]\n";

/// The real daemon, with Ana and Ben, and steps as plain processes: nothing here is about containers.
pub(crate) struct Team(pub(crate) Daemon);

impl Team {
    pub(crate) fn new() -> Team {
        let mut daemon = Daemon::new(&Setup { hook: false, ..Setup::new(PIPELINE) });
        let file = daemon.dir.path().join("mainstay.yml");
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(|line| if line.starts_with("runtime:") { "runtime: process" } else { line });
        let text = format!("{}\n    trusted: true\n", lines.collect::<Vec<_>>().join("\n"));
        std::fs::write(&file, text).unwrap();
        let team = Team(daemon);
        team.people("ana: { unix: nobody-here }, ben: {}");
        daemon = team.0;
        daemon.start();
        Team(daemon)
    }

    /// Writes who is a person; in force after the next reload.
    pub(crate) fn people(&self, users: &str) {
        let file = self.0.dir.path().join("mainstay.yml");
        let text = std::fs::read_to_string(&file).unwrap();
        let rest: Vec<_> = text.lines().filter(|line| !line.starts_with("people:")).collect();
        std::fs::write(&file, format!("people: {{ users: {{ {users} }} }}\n{}\n", rest.join("\n"))).unwrap();
    }

    pub(crate) fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.0.state().join("mainstay.db")).unwrap()
    }
}

impl std::ops::Deref for Team {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

/// The document that a command left with 0.
pub(crate) fn good(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a command said that was refused, with that exit code.
fn refused(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{said}");
    let document: Value = serde_json::from_str(&said).unwrap();
    format!("{}\n{}", document["error"].as_str().unwrap(), document["hints"])
}

/// The name of whoever runs the tests, as a user of this machine.
pub(crate) fn own_name() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().expect("the tests' user has no name").name
}

#[test]
fn a_personal_token_gives_the_api_in_its_persons_name_until_it_is_revoked() {
    let mut team = Team::new();
    let (token, id) = team.token(&["ben", "--name", "laptop"]);
    let digits = token.strip_prefix("mainstay_").unwrap();
    assert!(digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{token}");
    let run = good(&team.over_tcp(&token, &["trigger", "shop"]))["runs"][0].as_u64().unwrap();
    assert_eq!(team.0.run(run).unwrap()["actor"], "ben");
    good(&team.over_tcp(&token, &["cancel", "latest"]));
    team.0.wait_run(run);

    let listed = good(&team.over_tcp(&token, &["token", "list"]));
    assert_eq!((listed[0]["person"].as_str(), listed[0]["state"].as_str()), (Some("ben"), Some("in-force")));
    assert!(!listed.to_string().contains(digits), "{listed}");

    // It is a stored token: another daemon on the same state takes it too.
    team.0.restart();
    good(&team.over_tcp(&token, &["runs"]));

    team.0.cli(&["token", "revoke", &id.to_string()]);
    let said = refused(&team.over_tcp(&token, &["runs"]), 4);
    assert!(said.contains("token 1 of ben was revoked at 20"), "{said}");
    let said = refused(&team.0.try_cli(&["token", "revoke", &id.to_string()]), 2);
    assert!(said.contains("it was revoked at"), "{said}");
    assert!(refused(&team.0.try_cli(&["token", "revoke", "99"]), 2).contains("find token 99"));
    assert_eq!(team.0.cli(&["token", "list"])[0]["state"], "revoked");
    team.0.end(0);
}

#[test]
fn whoever_has_a_token_cannot_make_or_end_one_over_tcp() {
    let team = Team::new();
    let (token, id) = team.token(&["ben"]);
    for shown in [token.clone(), team.shared_token()] {
        for act in [["token", "create", "ana"], ["token", "revoke", &id.to_string()]] {
            let said = refused(&team.over_tcp(&shown, &act), 4);
            assert!(said.contains("over TCP") && said.contains("Unix socket only"), "{said}");
        }
        good(&team.over_tcp(&shown, &["runs"]));
    }
    for wrong in ["", "mainstay_", &token[..72], &token.to_uppercase(), &format!("mainstay_{}", "0".repeat(64))] {
        for act in [&["runs"][..], &["token", "create", "ana"]] {
            let said = refused(&team.over_tcp(wrong, act), 4);
            assert!(said.contains("the token is absent or wrong"), "{said}");
        }
    }
    assert_eq!(team.0.cli(&["token", "list"]).as_array().unwrap().len(), 1);
    team.0.end(0);
}

#[test]
fn a_token_ends_when_it_says() {
    let team = Team::new();
    let (short, _) = team.token(&["ana", "--expires", "1s"]);
    let (long, id) = team.token(&["ana", "--expires", "1h"]);
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let said = refused(&team.over_tcp(&short, &["runs"]), 4);
    assert!(said.contains("token 1 of ana expired at 20"), "{said}");
    good(&team.over_tcp(&long, &["runs"]));
    // An hour later, as the daemon sees it.
    let now = jiff::Timestamp::now().as_millisecond();
    team.database().execute("UPDATE tokens SET expires_at = ?1 WHERE id = ?2", (now, id as i64)).unwrap();
    assert!(refused(&team.over_tcp(&long, &["runs"]), 4).contains("token 2 of ana expired"));
    assert_eq!(team.0.cli(&["token", "list"])[0]["state"], "expired");
    assert!(refused(&team.0.try_cli(&["token", "create", "ana", "--expires", "0s"]), 2).contains("over at once"));
    team.0.end(0);
}

#[test]
fn a_token_of_somebody_who_left_is_not_taken() {
    let team = Team::new();
    assert!(refused(&team.0.try_cli(&["token", "create", "cem"]), 2).contains("there is no such person"));
    let (bens, _) = team.token(&["ben"]);
    let (anas, _) = team.token(&["ana"]);
    good(&team.over_tcp(&bens, &["runs"]));
    team.people("ana: {}");
    good(&team.over_tcp(&bens, &["runs"]));
    let changes = team.0.cli(&["reload"])["changes"].to_string();
    assert!(changes.contains("ben is no longer a person"), "{changes}");
    let said = refused(&team.over_tcp(&bens, &["runs"]), 4);
    assert!(said.contains("token 1 of ben belongs to nobody: that person is not in mainstay.yml"), "{said}");
    good(&team.over_tcp(&anas, &["runs"]));
    assert_eq!(team.0.cli(&["token", "list"])[1]["state"], "person-gone");
    team.0.end(0);
}

#[test]
fn the_socket_knows_a_user_as_the_person_whose_name_it_is() {
    let team = Team::new();
    let triggered = || {
        let run = team.0.cli(&["trigger", "shop"])["runs"][0].as_u64().unwrap();
        team.0.cli(&["cancel", &run.to_string()]);
        let run = team.0.wait_run(run);
        run["actor"].as_str().unwrap().to_owned()
    };
    assert_eq!(triggered(), own_name());
    team.people(&format!("ana: {{ unix: [{}, somebody] }}", own_name()));
    team.0.cli(&["reload"]);
    assert_eq!(triggered(), "ana");
    team.0.end(0);
}
