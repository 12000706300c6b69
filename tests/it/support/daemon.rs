//! The real binary as a daemon, with a repository, a state folder and a port of its own, that may be killed and started.

use super::engine::DockerEngine;
use super::http;
use crate::git_transports::git;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The webhook's secret of the watched repository.
pub(crate) const HOOK_SECRET: &str = "soak";
/// How long anything may take on a busy machine before it counts as stuck.
pub(crate) const STUCK: Duration = Duration::from_secs(90);

/// What a daemon is made from.
pub(crate) struct Setup<'a> {
    /// The text of the only pipeline.
    pub(crate) pipeline: &'a str,
    /// Where the daemon finds its engine: the usual one, another one, or a proxy in front of it.
    pub(crate) docker_host: Option<String>,
    /// The engine that is asked what is left.
    pub(crate) engine: DockerEngine,
    /// Which program.
    pub(crate) program: PathBuf,
    /// How often the repository is looked at.
    pub(crate) poll: &'a str,
    /// Whether pushes are told by a hook.
    pub(crate) hook: bool,
}

impl<'a> Setup<'a> {
    pub(crate) fn new(pipeline: &'a str) -> Setup<'a> {
        Setup {
            pipeline,
            docker_host: None,
            engine: DockerEngine::usual(),
            program: env!("CARGO_BIN_EXE_mainstay").into(),
            poll: "1h",
            hook: true,
        }
    }
}

pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) engine: DockerEngine,
    pub(crate) program: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) bare: PathBuf,
    child: Option<Child>,
    instance: Option<String>,
}

impl Daemon {
    /// Makes everything a daemon needs; starts none.
    pub(crate) fn new(setup: &Setup<'_>) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let (work, bare) = (dir.path().join("work"), dir.path().join("shop.git"));
        git(dir.path(), &["init", "-q", "--bare", "-b", "main", "shop.git"]);
        git(dir.path(), &["init", "-q", "-b", "main", "work"]);
        git(&work, &["remote", "add", "origin", "../shop.git"]);
        std::fs::create_dir(work.join(".mainstay")).unwrap();
        std::fs::write(work.join(".mainstay/ci.yml"), setup.pipeline).unwrap();
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-q", "-m", "first [skip ci]"]);
        git(&work, &["push", "-q", "origin", "main"]);
        let port = crate::support::ports::free();
        let host = setup.docker_host.clone().unwrap_or_else(|| setup.engine.host());
        let config = format!(
            "server: {{ listen: \"127.0.0.1:{port}\" }}\nstate: state\nruntime: {{ docker: {{ host: \"{host}\" }} }}\n\
             repos:\n  shop:\n    url: {}\n    poll: {}\n    webhook: {{ kind: generic, secret: {HOOK_SECRET} }}\n",
            bare.display(),
            setup.poll,
        );
        std::fs::write(dir.path().join("mainstay.yml"), config).unwrap();
        let daemon = Daemon {
            dir,
            engine: setup.engine.clone(),
            program: setup.program.clone(),
            work,
            bare,
            child: None,
            instance: None,
        };
        if setup.hook {
            daemon.cli(&["hook", "install", &daemon.bare.to_string_lossy()]);
        }
        daemon
    }

    /// A daemon that answers.
    pub(crate) fn started(setup: &Setup<'_>) -> Daemon {
        let mut daemon = Daemon::new(setup);
        daemon.start();
        daemon
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state().join("mainstay.sock")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.dir.path().join("mainstay.yml"));
        command.env_remove("MAINSTAY_URL").env_remove("MAINSTAY_STATE").env_remove("DOCKER_HOST");
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Starts the process without waiting for anything.
    pub(crate) fn spawn(&mut self, environment: &[(&str, String)]) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.command();
        command.arg("serve").stdout(log.try_clone().unwrap()).stderr(log);
        command.env("MAINSTAY_LOG", "warn,mainstay=debug");
        for (name, value) in environment {
            command.env(name, value);
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(&mut self) {
        self.spawn(&[]);
        assert!(self.wait_answer(), "the daemon ended at once");
    }

    /// Waits until it answers; false when it ended instead.
    pub(crate) fn wait_answer(&mut self) -> bool {
        let until = Instant::now() + STUCK;
        while Instant::now() < until {
            if http::get(&self.socket(), "/api/v1/status").is_ok() {
                self.instance();
                return true;
            }
            if self.has_ended() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the daemon does not answer");
    }

    pub(crate) fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("the daemon does not run");
        Pid::from_raw(i32::try_from(child.id()).unwrap())
    }

    /// Whether the process is gone by itself (or by a fail point).
    pub(crate) fn has_ended(&mut self) -> bool {
        let Some(child) = &mut self.child else { return true };
        if child.try_wait().unwrap().is_none() {
            return false;
        }
        self.child = None;
        true
    }

    /// `kill -9`.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; how long it took to stop, and how it left.
    pub(crate) fn term(&mut self) -> (Duration, ExitStatus) {
        let since = Instant::now();
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let mut child = self.child.take().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return (since.elapsed(), status);
            }
            if since.elapsed() > STUCK {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("the daemon does not stop\n{}", self.log_end());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `kill -9`, and another one.
    pub(crate) fn restart(&mut self) {
        self.kill9();
        self.start();
    }

    /// Kills it, and takes its state folder away but for what is named; the next one is another daemon.
    pub(crate) fn lose_state(&mut self, keep: &[&str]) {
        self.kill9();
        let instance = self.instance();
        self.engine.forget(&instance);
        self.instance = None;
        for entry in std::fs::read_dir(self.state()).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if keep.iter().any(|kept| entry.file_name() == *kept) {
                continue;
            }
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }
    }

    /// A command with `--json`, which has to leave with 0.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Value {
        let output = self.try_cli(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "mainstay {arguments:?}: {}\n{said}", output.status);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// A command over TCP, with the token in a file.
    pub(crate) fn over_tcp(&self, token: &str, arguments: &[&str]) -> Output {
        let file = self.dir.path().join("shown.token");
        std::fs::write(&file, format!("{token}\n")).unwrap();
        let text = std::fs::read_to_string(self.dir.path().join("mainstay.yml")).unwrap();
        let address = text.split('"').find(|part| part.starts_with("127.0.0.1:")).unwrap().to_owned();
        let mut command = self.command();
        command.env("MAINSTAY_URL", format!("http://{address}")).env("MAINSTAY_TOKEN_FILE", file);
        command.arg("--json").args(arguments).output().unwrap()
    }

    /// A new token of that person: its text and number.
    pub(crate) fn token(&self, arguments: &[&str]) -> (String, u64) {
        let made = self.cli(&[&["token", "create"], arguments].concat());
        (made["token"].as_str().unwrap().to_owned(), made["id"].as_u64().unwrap())
    }

    pub(crate) fn shared_token(&self) -> String {
        std::fs::read_to_string(self.state().join("token")).unwrap().trim().to_owned()
    }

    pub(crate) fn try_cli(&self, arguments: &[&str]) -> Output {
        self.command().arg("--json").args(arguments).output().unwrap()
    }

    /// Commits and pushes; the commit.
    pub(crate) fn push(&self, message: &str) -> String {
        git(&self.work, &["commit", "-q", "--allow-empty", "-m", message]);
        git(&self.work, &["push", "-q", "origin", "main"]);
        git(&self.work, &["rev-parse", "HEAD"])
    }

    /// Numbers of the runs of a commit.
    pub(crate) fn runs_of(&self, commit: &str) -> Vec<u64> {
        let Ok(runs) = http::get(&self.socket(), "/api/v1/runs?limit=50") else { return Vec::new() };
        let of = |run: &&Value| run["commit"].as_str() == Some(commit);
        let mut runs: Vec<u64> = runs.as_array().unwrap().iter().filter(of).filter_map(|r| r["id"].as_u64()).collect();
        runs.sort_unstable();
        runs
    }

    /// Waits until the commit has a run.
    pub(crate) fn wait_begun(&self, commit: &str) -> u64 {
        self.wait("a run of the push", || self.runs_of(commit).first().copied())
    }

    pub(crate) fn run(&self, run: u64) -> Option<Value> {
        http::get(&self.socket(), &format!("/api/v1/runs/{run}")).ok()
    }

    /// Waits until the run has ended, and all of its steps have left the engine; the run.
    pub(crate) fn wait_run(&self, run: u64) -> Value {
        let ended = self.wait(&format!("the end of run {run}"), || {
            let detail = self.run(run)?;
            (!matches!(detail["status"].as_str(), Some("queued" | "running"))).then_some(detail)
        });
        self.wait(&format!("the steps of run {run} to leave the engine"), || {
            self.engine.steps(self.instance.as_deref()?, run).is_empty().then_some(())
        });
        ended
    }

    /// Waits until a step has an attempt that runs.
    pub(crate) fn wait_running(&self, run: u64, step: &str) {
        self.wait(&format!("step {step} of run {run} to begin"), || {
            let lines = self.logs(run, step).ok()?;
            (!lines.is_empty()).then_some(())
        });
    }

    /// Asks until there is an answer.
    pub(crate) fn wait<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + STUCK;
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            if Instant::now() > until {
                let runs = http::get(&self.socket(), "/api/v1/runs/latest").unwrap_or_default();
                let held = self.instance.as_deref().map(|i| self.engine.held(i));
                panic!(
                    "waited {STUCK:?} in vain for {what}\nnewest run: {runs:#}\nengine: {held:#?}\n{}",
                    self.log_end()
                );
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// The lines of a step, all attempts: attempt, stream, text.
    pub(crate) fn logs(&self, run: u64, step: &str) -> std::io::Result<Vec<(u64, String, String)>> {
        let path = format!("/api/v1/runs/{run}/logs?step={step}");
        let (status, body) = http::ask(&self.socket(), "GET", &path, &[], b"")?;
        if status != 200 {
            return Err(std::io::Error::other(format!("{status}")));
        }
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let lines = String::from_utf8_lossy(&body).into_owned();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        Ok(lines.map(|l| (l["attempt"].as_u64().unwrap_or(0), text(&l, "stream"), text(&l, "text"))).collect())
    }

    /// What tells this daemon's things in the engine from others'.
    pub(crate) fn instance(&mut self) -> String {
        if let Some(known) = &self.instance {
            return known.clone();
        }
        let database = rusqlite::Connection::open_with_flags(
            self.state().join("mainstay.db"),
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        );
        let query = "SELECT value FROM meta WHERE key = 'instance'";
        let instance: String = database.unwrap().query_row(query, [], |row| row.get(0)).unwrap();
        self.instance = Some(instance.clone());
        instance
    }

    /// What the database says of the runs: number, status, whether closed, the workspace that is kept.
    fn runs_stored(&self) -> Vec<(i64, String, bool, Option<String>)> {
        let database = rusqlite::Connection::open_with_flags(
            self.state().join("mainstay.db"),
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        );
        let database = database.unwrap();
        let mut query = database.prepare("SELECT id, status, closed, kept_space FROM runs").unwrap();
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    pub(crate) fn log_whole(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    pub(crate) fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("the daemon's log:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
    }

    /// Stops it in order, and asks the engine whether anything is left; `kept` workspaces of failed runs may be.
    pub(crate) fn end(mut self, kept: usize) {
        if self.child.is_none() {
            self.start();
        }
        let instance = self.instance();
        let (_, status) = self.term();
        assert!(status.success(), "it left with {status}");
        let engine = self.engine.clone();
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let left: Vec<_> = engine.held(&instance).into_iter().filter(|one| !one.starts_with("volume ")).collect();
            if left.is_empty() {
                break;
            }
            assert!(
                Instant::now() < until,
                "left after the stop: {left:#?}\nruns (number, status, closed, kept): {:#?}\nas the engine has it: {:#?}\n{}",
                self.runs_stored(),
                left.iter().map(|one| engine.described(one)).collect::<Vec<_>>(),
                self.log_end(),
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let volumes = engine.held(&instance);
        assert!(
            volumes.len() <= kept,
            "more than the {kept} kept workspaces is left: {volumes:#?}\nruns (number, status, closed, kept): {:#?}\nmade: {:#?}",
            self.runs_stored(),
            volumes.iter().map(|one| engine.described(one)).collect::<Vec<_>>()
        );
    }
}

impl Drop for Daemon {
    /// Whatever happened: no process and nothing in the engine outlives the test.
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("{}", self.log_end());
        }
        if let Some(instance) = &self.instance
            && self.engine.answers()
        {
            self.engine.forget(instance);
        }
    }
}

/// A tiny program in a file, for `sh`: numbered lines on both streams, `lines` of each.
pub(crate) fn chatter(lines: u32, every: u32, pause: &str) -> String {
    format!(
        "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo \"out $i\"; echo \"err $i\" >&2; \
         if [ $((i % {every})) = 0 ]; then sleep {pause}; fi; done"
    )
}

/// Panics unless the log of a step's attempt holds the numbered lines of [`chatter`], each once and in order.
pub(crate) fn check_chatter(lines: &[(u64, String, String)], attempt: u64, count: u32, whose: &str) {
    for (stream, prefix) in [("stdout", "out "), ("stderr", "err ")] {
        let got: Vec<&str> = lines
            .iter()
            .filter(|(a, s, text)| *a == attempt && s == stream && text.starts_with(prefix))
            .map(|(_, _, text)| text.as_str())
            .collect();
        let wanted: Vec<String> = (1..=count).map(|n| format!("{prefix}{n}")).collect();
        assert!(got == wanted, "{whose}, attempt {attempt}, {stream}: lines lost, doubled or out of order:\n{got:?}");
    }
}

pub(crate) fn hmac_of(body: &[u8]) -> String {
    format!("sha256={}", mainstay::trigger::webhook::sign(HOOK_SECRET.as_bytes(), body))
}

/// A path that fits into a socket's name.
pub(crate) fn short_socket(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    assert!(path.as_os_str().len() < 100, "{} is too long for a socket", path.display());
    path
}
