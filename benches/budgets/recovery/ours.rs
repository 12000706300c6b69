//! Our side: the program's own commands, and its daemon.

use super::Store;
use super::cluster::{BIN, Cluster};
use super::cost::{Cost, run as timed};
use super::store::{ACCESS_KEY, BUCKET, SECRET_KEY};
use crate::lab::{program, run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(600);

/// Keys, settings and a repository.
pub(super) struct Ours {
    folder: PathBuf,
    recipient: String,
}

/// A daemon that is told to stop when this is dropped.
pub(super) struct Shipping {
    pub(super) child: Child,
}

impl Drop for Shipping {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::SIGTERM);
        let _ = self.child.wait();
    }
}

impl Ours {
    /// A new repository.
    pub(super) fn new(place: &Path, cluster: &Cluster, store: &Store) -> Ours {
        let folder = place.join("ours");
        fs::create_dir_all(folder.join("backups")).expect("a folder is made");
        run(Command::new(program()).args(["key", "new"]).arg(folder.join("keys")));
        let identity = fs::read_to_string(folder.join("keys/identity.txt")).expect("there is an identity");
        let recipient = identity.lines().find_map(|line| line.strip_prefix("# public key: "));
        let ours = Ours { recipient: recipient.expect("it names its public half").to_owned(), folder };
        // A repository of its own has a slot of its own.
        let slot = format!("bench_{}", place.file_name().and_then(|name| name.to_str()).unwrap_or("x"));
        let source = format!(
            "postgres: \"postgres://backup@127.0.0.1:{}/postgres?sslmode=disable\"\nslot: {slot}\n",
            cluster.port
        );
        fs::write(ours.folder.join("backups/db.yml"), source).expect("a source is written");
        ours.look_at(store);
        ours
    }

    /// From now on the repository is reached so.
    pub(super) fn look_at(&self, store: &Store) {
        let at = &self.folder;
        let place = match store {
            Store::Folder => format!("url: {}", at.join("repository").display()),
            Store::Bucket { port, ca } => format!(
                "url: \"s3://{BUCKET}/{}\"\n  endpoint: \"https://localhost:{port}\"\n  region: us-east-1\n  ca: {}\n  \
                 access-key: {ACCESS_KEY}\n  secret-key: {SECRET_KEY}",
                at.parent().and_then(|place| place.file_name()).and_then(|name| name.to_str()).unwrap_or("x"),
                ca.display()
            ),
        };
        let config = format!(
            "server: {{ listen: \"127.0.0.1:0\" }}\nstate: {}\nrepository:\n  {place}\n  encrypt-to: [{}]\n  \
             sign-with: {}\n",
            at.join("state").display(),
            self.recipient,
            at.join("keys/sign.key").display()
        );
        fs::write(at.join("mainstay.yml"), config).expect("the configuration is written");
    }

    fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.arg("--config").arg(self.folder.join("mainstay.yml")).arg("--json");
        command
    }

    /// A base backup. Its cost, and its name.
    pub(super) fn backup(&self, cluster: &Cluster) -> (Cost, String) {
        let before = cluster.cpu();
        let mut command = self.command();
        let (mut cost, said) = timed(command.args(["backup", "db", "--alone"]), &self.folder.join("log"));
        cost.server_cpu = cluster.cpu() - before;
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("no answer in JSON: {said}"));
        (cost, said["backup"].as_str().expect("it names the backup").to_owned())
    }

    fn restore(&self, target: &Path, arguments: &[&str]) -> Cost {
        let mut command = self.command();
        command.args(["restore", "db", "--identity"]).arg(self.folder.join("keys/identity.txt"));
        timed(command.arg("--target").arg(target).args(arguments), &self.folder.join("log")).0
    }

    /// The files of a backup, with the log that it needs.
    pub(super) fn restore_files(&self, backup: &str, target: &Path) -> Cost {
        self.restore(target, &["--backup", backup, "--files-only"])
    }

    /// The newest state, open on a port.
    pub(super) fn restore_latest(&self, target: &Path, port: u16) -> Cost {
        self.restore(target, &["--latest", "--bin", BIN, "--port", &port.to_string()])
    }

    /// Bytes that a backup takes.
    pub(super) fn stored(&self, backup: &str) -> u64 {
        let said = run(self.command().args(["backups", "db"]));
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("no answer in JSON: {said}"));
        let clusters = said.as_array().into_iter().flatten().flat_map(|source| source["clusters"].as_array());
        let backups = clusters.flatten().flat_map(|cluster| cluster["backups"].as_array()).flatten();
        let stored =
            backups.filter(|one| one["manifest"]["backup"] == backup).find_map(|one| one["stored-bytes"].as_u64());
        stored.unwrap_or_else(|| panic!("{backup} is not among the backups"))
    }

    /// A daemon that ships the log.
    pub(super) fn daemon(&self) -> Shipping {
        let log = fs::File::create(self.folder.join("daemon.log")).expect("a log is made");
        let mut command = Command::new(program());
        command.arg("--config").arg(self.folder.join("mainstay.yml")).arg("serve");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Shipping { child: command.spawn().expect("the daemon starts") }
    }

    /// Waits until what the server has written so far is durable in the repository: then it says so to the server.
    pub(super) fn wait_until_stored(&self, cluster: &Cluster) {
        let written = cluster.ask("select pg_current_wal_flush_lsn()");
        let done = format!("select coalesce(max(flush_lsn) >= '{written}', false) from pg_stat_replication");
        let end = Instant::now() + PATIENCE;
        while cluster.ask(&done) != "t" {
            assert!(Instant::now() < end, "{written} is not stored");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
