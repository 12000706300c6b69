//! The peer: pgBackRest from Debian's packages, set up as its manual advises for this store.

use super::Store;
use super::cluster::{BIN, Cluster, as_user, make, wait_until_open};
use super::cost::{Cost, run as timed};
use super::store::{ACCESS_KEY, BUCKET, SECRET_KEY};
use crate::lab::run;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

pub(super) fn version() -> String {
    run(Command::new("pgbackrest").arg("version")).trim().to_owned()
}

/// A repository of its own.
pub(super) struct Peer {
    folder: PathBuf,
    data: PathBuf,
    port: u16,
}

impl Peer {
    /// A new repository, to which the server's log goes from now on.
    pub(super) fn new(place: &Path, cluster: &Cluster, store: &Store) -> Peer {
        let folder = place.join("peer");
        for part in ["", "log", "lock", "spool", "repository"] {
            make(&folder.join(part));
        }
        let peer = Peer { folder, data: cluster.data.clone(), port: cluster.port };
        peer.look_at(store);
        run(peer.command().arg("stanza-create"));
        let config = peer.folder.join("peer.conf");
        cluster.archive(&format!("pgbackrest --config={} --stanza=main archive-push %p", config.display()));
        peer
    }

    /// From now on the repository is reached so.
    pub(super) fn look_at(&self, store: &Store) {
        let at = &self.folder;
        let place = match store {
            Store::Folder => format!("repo1-path={}\n", at.join("repository").display()),
            Store::Bucket { port, ca } => format!(
                // Small files go together into one object, or each is a request of its own.
                "repo1-type=s3\nrepo1-path=/{}\nrepo1-s3-endpoint=localhost\nrepo1-storage-port={port}\n\
                 repo1-storage-host=127.0.0.1\nrepo1-storage-verify-tls=n\nrepo1-storage-ca-file={}\n\
                 repo1-s3-uri-style=path\nrepo1-s3-region=us-east-1\nrepo1-s3-bucket={BUCKET}\n\
                 repo1-s3-key={ACCESS_KEY}\nrepo1-s3-key-secret={SECRET_KEY}\nrepo1-bundle=y\n",
                at.strip_prefix("/").unwrap_or(at).display(),
                ca.display()
            ),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let config = format!(
            "[global]\n{place}compress-type=zst\ncompress-level=3\nprocess-max={cores}\nstart-fast=y\n\
             log-path={log}\nlock-path={lock}\nspool-path={spool}\nlog-level-console=warn\nlog-level-file=off\n\
             archive-async=y\narchive-get-queue-max=1GiB\nrepo1-retention-full=2\n\
             [main]\npg1-path={data}\npg1-port={port}\npg1-socket-path={socket}\npg1-user=postgres\n",
            log = at.join("log").display(),
            lock = at.join("lock").display(),
            spool = at.join("spool").display(),
            data = self.data.display(),
            port = self.port,
            socket = self.data.parent().unwrap_or(&self.data).display(),
        );
        fs::write(at.join("peer.conf"), config).expect("the configuration is written");
    }

    fn command(&self) -> Command {
        let mut command = as_user("pgbackrest");
        command.arg(format!("--config={}", self.folder.join("peer.conf").display())).arg("--stanza=main");
        command
    }

    /// A full backup.
    pub(super) fn backup(&self, cluster: &Cluster) -> Cost {
        let before = cluster.cpu();
        let mut command = self.command();
        let (mut cost, _) = timed(command.args(["--type=full", "backup"]), &self.folder.join("log.txt"));
        cost.server_cpu = cluster.cpu() - before;
        cost
    }

    /// The files of the newest backup, without any log.
    pub(super) fn restore_files(&self, target: &Path) -> Cost {
        make(target);
        fs::set_permissions(target, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("a mode is set");
        let mut command = self.command();
        command.arg(format!("--pg1-path={}", target.display())).arg("restore");
        timed(&mut command, &self.folder.join("log.txt")).0
    }

    /// The newest state, open on a port.
    pub(super) fn restore_latest(&self, target: &Path, port: u16) -> Cost {
        let began = Instant::now();
        let mut cost = self.restore_files(target);
        let path = self.folder.join("server.log");
        let log = fs::File::create(&path).expect("a log is made");
        let mut server = as_user(format!("{BIN}/postgres"));
        server.arg("-D").arg(target).args(["-c", &format!("port={port}"), "-c", "archive_mode=off"]);
        let mut child = server.stdout(Stdio::null()).stderr(log).spawn().expect("the server starts");
        wait_until_open(&path);
        cost.seconds = began.elapsed().as_secs_f64();
        // It ends with `stop`, and is then nobody's child that was not waited for.
        std::thread::spawn(move || child.wait());
        cost
    }

    /// Bytes that the newest backup takes.
    pub(super) fn stored(&self) -> u64 {
        let said = run(self.command().args(["info", "--output=json"]));
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("no answer in JSON: {said}"));
        let backups = said[0]["backup"].as_array().expect("there are backups");
        backups.last().expect("there is a backup")["info"]["repository"]["delta"].as_u64().expect("it says its length")
    }
}
