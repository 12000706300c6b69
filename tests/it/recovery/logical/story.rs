//! Logical copies as their users see them: the real program, with a daemon and without one.

use super::bench::ask;
use crate::support::postgres::{Options, Server};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Lab {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Lab {
    fn new(from: &Server, to: &Server) -> Lab {
        let lab = Lab { folder: tempfile::tempdir().unwrap(), daemon: None };
        lab.mainstay(&["key", "new", "keys"]);
        std::fs::rename(lab.at("keys/identity.txt"), lab.at("identity.txt")).unwrap();
        let identity = std::fs::read_to_string(lab.at("identity.txt")).unwrap();
        let recipient = identity.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
        let config = format!(
            "server: {{ listen: \"127.0.0.1:0\" }}\nstate: state\nrepository:\n  url: repository\n  encrypt-to: [{recipient}]\n  \
             sign-with: keys/sign.key\n"
        );
        std::fs::write(lab.at("mainstay.yml"), config).unwrap();
        std::fs::create_dir(lab.at("backups")).unwrap();
        let source = format!(
            "kind: logical\npostgres: \"postgres://postgres@127.0.0.1:{}/crm?sslmode=disable\"\nrpo: 25h\nschedule: \"0 2 * * \
             *\"\nrestore:\n  into: \"postgres://postgres@127.0.0.1:{}/?sslmode=disable\"\n  checks: [{{ sql: \"select count(*) > 0 \
             from people\", database: crm }}]\n  then: echo $MAINSTAY_SOURCE > told\n",
            from.port(),
            to.port()
        );
        std::fs::write(lab.at("backups/crm.yml"), source).unwrap();
        lab
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        for name in ["MAINSTAY_CONFIG", "MAINSTAY_STATE", "MAINSTAY_URL", "PGPASSWORD"] {
            command.env_remove(name);
        }
        command
    }

    fn code(&self, args: &[&str]) -> (i32, String) {
        let out = self.command(args).output().unwrap();
        (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    }

    fn mainstay(&self, args: &[&str]) -> String {
        let (code, said) = self.code(args);
        assert_eq!(code, 0, "mainstay {}:\n{said}", args.join(" "));
        said
    }

    fn json(&self, args: &[&str]) -> Value {
        let out = self.command(&[&["--json"], args].concat()).output().unwrap();
        serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {out:?}"))
    }
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_copied_shown_checked_and_brought_to_another_server() {
    let (from, to) = tokio::join!(Server::start(15, Options::default()), Server::start(17, Options::default()));
    from.sql("CREATE DATABASE crm").await;
    ask(&from, "crm", "CREATE TABLE people AS SELECT generate_series(1, 300) id").await;
    let mut lab = Lab::new(&from, &to);
    lab.mainstay(&["validate"]);
    // Nothing of a slot or of replication is asked for a source that has neither.
    let (_, found) = lab.code(&["doctor", "--no-run"]);
    let fit = found.contains("crm: SQL connects to PostgreSQL 15") && found.contains("crm: pg_dump (PostgreSQL)");
    assert!(fit && !found.contains("slot") && !found.contains("replication"), "{found}");
    let said = lab.mainstay(&["backup", "--alone", "--new-cluster"]);
    assert!(said.starts_with("crm: backup 2") && said.contains("is complete"), "{said}");
    assert!(!said.contains("taken over"), "{said}");

    // A daemon: it knows the copy that is there, and makes one when it is asked.
    let log = std::fs::File::create(lab.at("daemon.log")).unwrap();
    lab.daemon = Some(lab.command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    until("the daemon does not tend it", || {
        let (code, said) = lab.code(&["--json", "status"]);
        let status: Value = serde_json::from_str(said.trim()).unwrap_or_default();
        code == 0 && status["sources"][0]["state"] == "scheduled" && status["sources"][0]["last_backup"].is_object()
    });
    ask(&from, "crm", "INSERT INTO people SELECT generate_series(301, 400)").await;
    let said = lab.mainstay(&["backup", "crm", "--new-cluster"]);
    assert!(
        said.contains("note: the server is the cluster") && said.contains("nothing had to be taken over"),
        "{said}"
    );
    let status = lab.json(&["status"]);
    assert!(status["sources"][0]["next_backup"].is_string() && status["sources"][0]["log"].is_null(), "{status:#}");

    // Beside everything else: both copies are read, and proved.
    until("the copies are not checked", || {
        let checked = lab.json(&["status"])["sources"][0]["checked"].clone();
        checked["objects"].as_u64().is_some_and(|objects| objects >= 4) && checked["wrong"] == 0
    });

    let shown = lab.mainstay(&["backups"]);
    assert!(
        shown.contains("LOGICAL COPY") && shown.contains("PostgreSQL 15") && !shown.contains("can be restored"),
        "{shown}"
    );
    let listed = lab.json(&["backups", "crm"]);
    let copies = listed[0]["clusters"][0]["copies"].as_array().unwrap();
    assert_eq!(copies.len(), 2, "{listed:#}");
    let (first, began) =
        (copies[0]["manifest"]["backup"].as_str().unwrap(), copies[0]["manifest"]["began"].as_str().unwrap());
    let verified = lab.mainstay(&["verify", "crm", "--full", "--identity", "identity.txt"]);
    assert!(verified.contains("nothing is wrong") && verified.contains("2 proofs stored"), "{verified}");
    assert!(lab.mainstay(&["backups"]).contains("✓ opened"));
    assert!(lab.mainstay(&["expire", "crm", "--dry-run"]).contains(&format!("{first} stays: ")));

    // A bare machine: the repository and the identity, and nothing of the daemon's.
    std::fs::create_dir(lab.at("bare")).unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/?sslmode=disable", to.port());
    let repository = lab.at("repository").display().to_string();
    let identity = lab.at("identity.txt").display().to_string();
    let bare = ["--repository", &repository, "--identity", &identity];
    let plan = lab.mainstay(&restore(&["--latest", "--dry-run", "--into", &url], &bare));
    assert!(plan.contains("the newest copy") && plan.contains("database crm: "), "{plan}");
    for (more, words) in [
        (vec!["--at", began, "--into", &url], "no copy had ended by"),
        (vec!["--latest", "--target", "somewhere"], "is about base backups"),
        (vec!["--point", "x"], "is about base backups"),
        (vec!["--backup", "20200101T000000Z-00000000"], "there is no logical copy"),
    ] {
        let (code, said) = lab.code(&restore(&more, &bare));
        assert!(code == 2 && said.contains(words), "{code}: {said}");
    }
    // Into the server that the file in the repository names; commands of that file are only shown.
    let said = lab.mainstay(&restore(&["--latest"], &bare));
    assert!(said.contains("echo $MAINSTAY_SOURCE > told") && !lab.at("told").exists(), "{said}");
    assert_eq!(ask(&to, "crm", "SELECT count(*) FROM people").await, "400");

    // Beside its configuration, once more: it is there now. The older one in its place, and what follows a restore.
    let with_identity = ["--identity", "identity.txt"];
    let (code, said) = lab.code(&[&["restore", "crm", "--backup", first], &with_identity[..]].concat());
    assert!(code == 2 && said.contains("holds something"), "{code}: {said}");
    let report = lab.json(&[&["restore", "crm", "--backup", first, "--force"], &with_identity[..]].concat());
    assert_eq!(
        (&report["good"], &report["report"]["checks"][0]["passed"]),
        (&Value::Bool(true), &Value::Bool(true)),
        "{report:#}"
    );
    assert_eq!(ask(&to, "crm", "SELECT count(*) FROM people").await, "300");
    assert_eq!(told(&lab.at("told")), "crm\n");
}

/// The restore of the source on a bare machine.
fn restore<'a>(more: &[&'a str], bare: &[&'a str]) -> Vec<&'a str> {
    [&["restore", "crm"], more, bare].concat()
}

fn told(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
