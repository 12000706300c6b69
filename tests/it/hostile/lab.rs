//! A daemon of its own for each test: a state folder, a bare repository with the hook, a working tree to push from.

use crate::git_transports::{git, git_with_input};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const STUCK: Duration = Duration::from_secs(90);

pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) work: PathBuf,
    pub(crate) bare: PathBuf,
    pub(crate) port: u16,
    child: Option<Child>,
}

impl Lab {
    /// `top` goes to the top of mainstay.yml, `repo` into the settings of the watched repository `shop`.
    pub(crate) fn start(top: &str, repo: &str) -> Lab {
        Lab::start_with(top, repo, |_| {})
    }

    /// The same, with something to be done before the daemon starts.
    pub(crate) fn start_with(top: &str, repo: &str, before: impl FnOnce(&Lab)) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        git(at, &["init", "-q", "--bare", "-b", "main", "shop.git"]);
        git(at, &["init", "-q", "-b", "main", "work"]);
        let (work, bare) = (at.join("work"), at.join("shop.git"));
        git(&work, &["remote", "add", "origin", "../shop.git"]);
        git(&work, &["commit", "-q", "--allow-empty", "-m", "first"]);
        git(&work, &["push", "-q", "origin", "main"]);
        let port = crate::support::ports::free();
        std::fs::write(
            at.join("mainstay.yml"),
            format!(
                "server: {{ listen: \"127.0.0.1:{port}\" }}\nstate: state\n{top}\nrepos:\n  shop:\n    url: {}\n    poll: 1h\n{repo}\n",
                bare.display()
            ),
        )
        .unwrap();
        let mut lab = Lab { dir, work, bare, port, child: None };
        let installed = lab.cli(&["hook", "install", lab.bare.to_str().unwrap(), "--repo", "shop"]);
        assert!(installed.status.success(), "{}", text(&installed));
        before(&lab);
        lab.serve();
        lab
    }

    /// Starts the daemon and waits until it has taken its base line.
    pub(crate) fn serve(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("daemon.log")).unwrap();
        let child = self.command().arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        self.wait("the daemon's answer", || {
            assert!(self.log().lines().count() < 10_000, "the daemon talks without end");
            self.cli(&["status"]).status.success().then_some(())
        });
        self.wait("the base line", || {
            let db = rusqlite::Connection::open(self.state().join("mainstay.db")).ok()?;
            db.query_row("SELECT 1 FROM repos", [], |_| Ok(())).ok()
        });
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.current_dir(self.dir.path()).arg("--config").arg(self.dir.path().join("mainstay.yml"));
        command.env_remove("MAINSTAY_STATE").env("NO_COLOR", "1");
        command
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// What a good command says as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.cli(&[&["--json"], arguments].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{arguments:?}: {}", text(&output)))
    }

    /// Writes files, commits all of the working tree, pushes it to `branch`; returns the commit.
    pub(crate) fn push(&self, branch: &str, files: &[(&str, &[u8])]) -> String {
        for (path, content) in files {
            let path = self.work.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        git(&self.work, &["add", "-A"]);
        self.commit_and_push(branch, "next")
    }

    pub(crate) fn commit_and_push(&self, branch: &str, message: &str) -> String {
        git_with_input(&self.work, &["commit", "-q", "--allow-empty", "--cleanup=verbatim", "-F", "-"], message);
        self.push_head(branch)
    }

    pub(crate) fn push_head(&self, branch: &str) -> String {
        git(&self.work, &["push", "-q", "--force", "origin", &format!("HEAD:refs/heads/{branch}")]);
        git(&self.work, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub(crate) fn runs(&self) -> Vec<Value> {
        self.json(&["runs", "--limit", "500"]).as_array().unwrap().clone()
    }

    /// The run of that commit, once it is over.
    pub(crate) fn ended(&self, commit: &str) -> Value {
        let run = self.wait(&format!("the end of the run of {commit}"), || {
            let run = self.runs().into_iter().find(|run| run["commit"] == commit)?;
            (!["queued", "running"].contains(&run["status"].as_str()?)).then_some(run)
        });
        self.json(&["show", &run["id"].to_string()])
    }

    /// All log lines of a run as people see them.
    pub(crate) fn logs(&self, run: &Value) -> String {
        String::from_utf8_lossy(&self.cli(&["logs", &run["id"].to_string()]).stdout).into_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("no daemon was started").id()
    }

    /// It is there, it answers, and it has not been another one meanwhile.
    pub(crate) fn alive(&mut self) {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
        assert!(ended.is_none(), "the daemon ended with {ended:?}:\n{}", self.log());
        let status = self.cli(&["status"]);
        assert!(status.status.success(), "{}\n{}", text(&status), self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    /// The most memory that the daemon ever held, in MiB.
    pub(crate) fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1_024
    }

    pub(crate) fn wait<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + STUCK;
        loop {
            if let Some(found) = ask() {
                return found;
            }
            assert!(Instant::now() < until, "{what} did not come:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What tells this daemon's things in the engine from others'.
    pub(crate) fn instance(&self) -> Option<String> {
        let db = rusqlite::Connection::open(self.state().join("mainstay.db")).ok()?;
        db.query_row("SELECT value FROM meta WHERE key = 'instance'", [], |row| row.get(0)).ok()
    }

    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                assert!(std::thread::panicking(), "the daemon does not stop:\n{}", self.log());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let instance = self.instance();
        self.stop();
        // A test that broke off leaves steps running, as a stopped daemon does.
        let Some(instance) = instance else { return };
        let filter = format!("label=mainstay.instance={instance}");
        for (list, remove) in [
            (&["ps", "-aq"][..], &["rm", "-f"][..]),
            (&["network", "ls", "-q"], &["network", "rm"]),
            (&["volume", "ls", "-q"], &["volume", "rm"]),
        ] {
            let found = docker(&[list, &["--filter", &filter]].concat());
            let ids: Vec<&str> = found.split_whitespace().collect();
            if !ids.is_empty() {
                docker(&[remove, &ids].concat());
            }
        }
    }
}

pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output();
    let output = output.expect("docker is not installed: tests/setup/prepare.sh test");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Every file below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found
}
