//! Who hears of a source in trouble, and how it is looked at: the real program, a real mail server, a store that goes away.

use crate::support::postgres::{Options, Server};
use crate::support::smtp::{Mail, MailServer};
use crate::support::store::{BUCKET, S3Server};
use crate::support::store_proxy::{Fault, Rule, StoreProxy};
use mainstay::config::daemon::notify::SmtpSecurity;
use serde_json::Value;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a machine that is busy with the other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with one synchronous source, whose store can be broken, and people who have addresses.
struct Lab {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
    proxy: StoreProxy,
    mail: MailServer,
    secret: String,
    _store: S3Server,
}

impl Lab {
    fn new(server: &Server) -> Lab {
        let store = S3Server::shared();
        let settings = store.settings();
        let keys = settings.credentials.clone().unwrap();
        let proxy = StoreProxy::start(&store.address());
        let mail = MailServer::start(SmtpSecurity::Plain);
        let secret = keys.secret_key.expose().to_owned();
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab { folder, daemon: None, proxy, mail, secret, _store: store };
        assert!(lab.said(&["key", "new", "keys"]).status.success());
        let identity = std::fs::read_to_string(lab.folder.path().join("keys/identity.txt")).unwrap();
        let recipient = identity.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
        let config = format!(
            "server: {{ listen: \"127.0.0.1:0\" }}\nstate: state\nrepository:\n  url: \"s3://{BUCKET}/{}\"\n  endpoint: \"{}\"\n  \
             path-style: true\n  access-key: \"{}\"\n  secret-key: \"${{STORE_SECRET}}\"\n  encrypt-to: [{recipient}]\n  \
             sign-with: keys/sign.key\npeople:\n  users: {{ ana: {{ mail: ana@example.com }}, ben: {{ mail: ben@example.com }} }}\n  \
             groups: {{ on-call: [ana] }}\nnotify: {{ smtp: {{ url: \"smtp+plain://127.0.0.1:{}\", from: ci@example.com }}, \
             alerts: on-call }}\n",
            settings.prefix.trim_matches('/'),
            lab.proxy.endpoint(),
            keys.access_key,
            lab.mail.port(),
        );
        std::fs::write(lab.folder.path().join("mainstay.yml"), config).unwrap();
        std::fs::create_dir(lab.folder.path().join("backups")).unwrap();
        let source = format!(
            "postgres: \"postgres://postgres@127.0.0.1:{}/?sslmode=disable\"\nsynchronous: true\nstep-down: 2s\n",
            server.port()
        );
        std::fs::write(lab.folder.path().join("backups/shop-db.yml"), source).unwrap();
        lab
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null()).env("STORE_SECRET", &self.secret);
        for name in ["MAINSTAY_CONFIG", "MAINSTAY_STATE", "MAINSTAY_URL"] {
            command.env_remove(name);
        }
        command
    }

    fn said(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let all: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        serde_json::from_slice(&self.said(&all).stdout).unwrap_or_default()
    }

    fn serve(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = self.command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn until(&self, what: &str, so: impl Fn(&Value) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !so(&self.json(&["status"])["sources"][0]) {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "not {what}: {:#}\n{log}", self.json(&["status"]));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What `doctor` finds missing of what backups need, with what mends it.
    fn missing(&self) -> Vec<(String, Vec<String>)> {
        let found = self.json(&["doctor", "--no-run"]);
        let ours = ["source", "repository", "repository clock", "backup keys"];
        let checks: Vec<&Value> =
            found.as_array().unwrap().iter().filter(|check| ours.contains(&check["name"].as_str().unwrap())).collect();
        assert!(checks.len() >= 3, "{found:#}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let missing = checks.iter().filter(|check| check["state"] == "missing");
        missing
            .map(|check| (text(&check["found"]), check["mend"].as_array().unwrap().iter().map(text).collect()))
            .collect()
    }

    fn metrics(&self) -> String {
        let socket = self.folder.path().join("state/mainstay.sock");
        let (status, body) = crate::support::http::ask(&socket, "GET", "/metrics", &[], b"").unwrap();
        assert_eq!(status, 200);
        String::from_utf8(body).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill();
    }
}

fn subjects(mails: &[Mail]) -> Vec<&str> {
    mails.iter().map(|mail| mail.header("Subject")).collect()
}

/// The repository goes away under a synchronous source: whoever is on call is mailed that commits go on without it, once,
/// whatever happens to the daemon, and once more when all is well; `status`, metrics and audit say the same.
#[tokio::test]
async fn whoever_is_on_call_hears_of_trouble_once_and_of_its_end_once() {
    let server = Server::start(15, Options::default()).await;
    server.sql("create table t (n int)").await;
    let mut lab = Lab::new(&server);
    lab.serve();
    lab.until("backed up", |source| source["last_backup"].is_object() && source["window_start"].is_string());

    // What is missing is told with the words that mend it.
    let missing = lab.missing();
    let [(found, mend)] = &missing[..] else { panic!("{missing:#?}") };
    assert!(found.starts_with("shop-db: synchronous_standby_names"), "{found}");
    for sql in mend {
        server.sql(sql).await;
    }
    server.until("select sync_state from pg_stat_replication where application_name = 'mainstay'", "sync").await;
    let missing = lab.missing();
    assert!(missing.is_empty(), "{missing:#?}");

    lab.proxy.rule(Rule::new(Fault::Answer(503)));
    server.sql("insert into t values (1)").await;
    let mails = lab.mail.wait_for(1);
    assert_eq!(subjects(&mails), ["[shop-db] RPO 0 is NOT held: commits go on without the repository"]);
    assert_eq!(mails[0].to, ["ana@example.com"]);
    for part in [&mails[0].text, &mails[0].html] {
        assert!(part.contains("synchronous_standby_names was") && part.contains("What now"), "{part}");
    }
    let status = lab.said(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&status.stdout).contains("RPO 0 is not held"), "{status:?}");
    let metrics = lab.metrics();
    for line in [
        "mainstay_source_concern{source=\"shop-db\",concern=\"stepped-down\"} 1",
        "mainstay_source_concern{source=\"shop-db\",concern=\"slot-dropped\"} 0",
        "mainstay_source_backup_failed{source=\"shop-db\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    for name in [
        "source_lag_seconds",
        "source_lag_bytes",
        "source_last_backup_time_seconds",
        "source_window_start_time_seconds",
    ] {
        assert!(metrics.contains(&format!("mainstay_{name}{{source=\"shop-db\"}} ")), "{name}\n{metrics}");
    }

    lab.kill();
    lab.proxy.calm();
    lab.serve();
    server.until("show synchronous_standby_names", "FIRST 1 (\"mainstay\")").await;
    let mails = lab.mail.wait_for(2);
    lab.until("well again", |source| source["concerns"].as_array().is_some_and(|all| all.is_empty()));
    assert_eq!(subjects(&mails)[1..], ["[shop-db] all is well again"]);
    let audit = lab.json(&["audit"]);
    let acts: Vec<&str> = audit.as_array().unwrap().iter().map(|entry| entry["act"].as_str().unwrap()).collect();
    assert_eq!(acts, ["step-up", "step-down"], "{audit:#}");
    assert!(lab.said(&["audit", "--verify"]).status.success());
    server.sql("insert into t values (2)").await;
    assert_eq!(lab.mail.mails().len(), 2, "nobody else, and nobody twice");
}
