//! A daemon of its own with a bare repository, driven like a user drives it; everything is gone when it is dropped.

use crate::{Effort, tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

/// The longest that anything measured here may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Clock ticks of `/proc/PID/stat` in a second: the same on every Linux that runs containers.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;
/// Secrets whose values are looked for in every log.
const SECRETS: usize = 20;

/// The binary that is measured.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("MAINSTAY_BENCH_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_mainstay").into(), PathBuf::from)
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is right").as_secs_f64()
}

/// A stored time as seconds since 1970.
pub(crate) fn seconds(time: &Value) -> f64 {
    let text = time.as_str().unwrap_or_else(|| panic!("{time} is no time"));
    text.parse::<jiff::Timestamp>().expect("times are in the usual form").as_nanosecond() as f64 / 1e9
}

/// Runs a command to its end, which must be a good one, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?} ended with {}: {errors}{text}", out.status);
    text.into_owned()
}

/// Git in a folder, untouched by the user's own settings.
pub(crate) fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(folder).args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for (name, value) in [("NAME", "Bench"), ("EMAIL", "bench@example.com")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    run(&mut command)
}

/// What the peer's `docker run` is given besides: nothing, unless `MAINSTAY_BENCH_DOCKER_RUN` says otherwise, for an
/// engine whose default bridge does not work (`--network NAME`). Printed with the machine, since it changes the peer.
pub(crate) fn docker_run_options() -> Vec<String> {
    let options = std::env::var("MAINSTAY_BENCH_DOCKER_RUN").unwrap_or_default();
    options.split_whitespace().map(str::to_owned).collect()
}

/// The docker client.
pub(crate) fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
}

/// The daemon's process.
pub(crate) struct Daemon {
    child: Child,
    config: PathBuf,
    state: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(folder: &Path) -> Daemon {
        let daemon = Daemon::spawn(folder);
        let end = Instant::now() + Duration::from_secs(60);
        while daemon.get("/readyz").is_none() {
            assert!(Instant::now() < end, "the daemon is not ready after a minute: see {}", folder.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// Starts it; `folder` holds its configuration and state.
    pub(crate) fn spawn(folder: &Path) -> Daemon {
        let config = folder.join("mainstay.yml");
        let log = File::options().create(true).append(true).open(folder.join("daemon.log")).expect("a log is made");
        let child = Command::new(program())
            .args(["--config".as_ref(), config.as_os_str(), "serve".as_ref()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        Daemon { child, config, state: folder.join("state") }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The answer to a question over the socket; `None` when it is none or not good.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.state.join("mainstay.sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// A run as the API shows it.
    pub(crate) fn show(&self, run: u64) -> Option<Value> {
        serde_json::from_str(&self.get(&format!("/api/v1/runs/{run}"))?).ok()
    }

    /// A command of the program.
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        run(Command::new(program()).arg("--config").arg(&self.config).args(arguments))
    }

    /// Starts a pipeline and returns the run's number.
    pub(crate) fn trigger(&self, pipeline: &str) -> u64 {
        let answer = self.command(&["--json", "trigger", "shop", "--pipeline", pipeline]);
        let answer: Value = serde_json::from_str(&answer).expect("an answer in JSON");
        answer["runs"][0].as_u64().unwrap_or_else(|| panic!("no run was started: {answer}"))
    }

    /// Waits until the run has ended well.
    pub(crate) fn ended(&self, run: u64) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(detail) = self.show(run).filter(|detail| !detail["finished_at"].is_null()) {
                assert_eq!(detail["status"], "success", "run #{run} did not end well: {detail}");
                return detail;
            }
            assert!(Instant::now() < end, "run #{run} has not ended after ten minutes");
            // Seldom: being asked is work, and what is measured is in the stored times.
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until nothing of any run is left in the engine, the next space is ready, and the daemon is quiet.
    pub(crate) fn rest(&self) {
        let end = Instant::now() + PATIENCE;
        let mut quiet = 0;
        let mut before = self.cpu_ticks();
        while quiet < 2 {
            assert!(Instant::now() < end, "the daemon does not come to rest");
            std::thread::sleep(Duration::from_millis(200));
            let ticks = self.cpu_ticks();
            quiet = if ticks <= before + 1 && self.has_spares() { quiet + 1 } else { 0 };
            before = ticks;
        }
    }

    /// True when every run is closed and two spaces are ready: a filled one, and after it is ready a blank one.
    fn has_spares(&self) -> bool {
        let open: i64 = self
            .database()
            .query_row("SELECT count(*) FROM runs WHERE closed = 0", [], |row| row.get(0))
            .expect("the runs are counted");
        let filter = format!("label=mainstay.instance={}", self.instance());
        open == 0 && docker(&["ps", "-q", "--filter", &filter]).lines().count() >= 2
    }

    fn database(&self) -> Connection {
        let opened = Connection::open_with_flags(self.state.join("mainstay.db"), OpenFlags::SQLITE_OPEN_READ_ONLY);
        opened.expect("the state database opens")
    }

    /// By what its things in the engine are known.
    pub(crate) fn instance(&self) -> String {
        let database = self.database();
        let query = "SELECT value FROM meta WHERE key = 'instance'";
        database.query_row(query, [], |row| row.get(0)).expect("the database knows its instance")
    }

    /// Its events of a run: milliseconds since 1970 and the JSON document.
    pub(crate) fn events(&self, run: u64) -> Vec<(i64, String)> {
        let database = self.database();
        let mut query = database
            .prepare("SELECT at, event FROM run_events WHERE run_id = ?1 ORDER BY seq")
            .expect("the events are there");
        let rows = query.query_map([run as i64], |row| Ok((row.get(0)?, row.get(1)?))).expect("the events are there");
        rows.collect::<Result<_, _>>().expect("the events are read")
    }

    /// CPU time so far, user and system, all threads.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the daemon runs");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a stat line").1.split_whitespace().collect();
        // The 14th and 15th field of the line, of which two stand before the closing parenthesis.
        fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
    }

    /// A line of `/proc/PID/status` in MiB: `VmRSS`, `VmHWM`.
    pub(crate) fn memory_mib(&self, line: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the daemon runs");
        let value = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
        value.expect("the line is there").trim().parse::<f64>().expect("a number") / 1024.0
    }

    /// Forgets the highest memory use so far.
    pub(crate) fn reset_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("the peak is forgotten");
    }

    /// As `kill -9` does it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the daemon is killed");
        self.child.wait().expect("the daemon has ended");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon, the repository it watches, and the working tree from which is pushed.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
    daemon: Mutex<Option<Daemon>>,
    instance: String,
    versions: Mutex<usize>,
}

impl Lab {
    /// Makes everything and waits until the first run is over.
    pub(crate) fn start(pipelines: &[(&str, String)], _effort: Effort) -> Lab {
        let folder = tempfile::Builder::new().prefix("mainstay-bench-").tempdir().expect("there is room");
        let at = folder.path();
        let (work, bare) = (at.join("work"), at.join("shop.git"));
        fs::create_dir_all(work.join(".mainstay")).expect("a folder is made");
        git(at, &["init", "-q", "--bare", "-b", "main", "shop.git"]);
        git(at, &["init", "-q", "--bare", "-b", "main", "peer.git"]);
        git(&work, &["init", "-q", "-b", "main"]);
        tree::write(&work);
        for (name, text) in pipelines {
            fs::write(work.join(format!(".mainstay/{name}.yml")), text).expect("a pipeline is written");
        }
        git(&work, &["add", "."]);
        git(&work, &["commit", "-q", "-m", "the tree"]);
        let secrets = at.join("state/secrets");
        fs::create_dir_all(&secrets).expect("a folder is made");
        let mut names = Vec::new();
        for n in 0..SECRETS {
            let name = format!("SECRET_{n}");
            let path = secrets.join(&name);
            fs::write(&path, format!("s3cr3t-{n:02}-{:020x}/+=", n * 0x1234_5678_9abc)).expect("a secret is written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a secret is for its owner");
            names.push(name);
        }
        fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).expect("secrets are for their owner");
        let config = format!(
            "server: {{ listen: \"127.0.0.1:0\" }}\nstate: {}\nlimits: {{ steps: {}, log: 1GiB }}\nrepos:\n  shop: {{ url: {}, poll: 1h, secrets: [{}] }}\n",
            at.join("state").display(),
            tree::WIDE,
            bare.display(),
            names.join(", ")
        );
        fs::write(at.join("mainstay.yml"), config).expect("the configuration is written");
        git(&work, &["push", "-q", &bare.display().to_string(), "main"]);
        git(&work, &["push", "-q", &at.join("peer.git").display().to_string(), "main"]);
        let daemon = Daemon::start(at);
        daemon.command(&["hook", "install", &bare.display().to_string()]);
        let instance = daemon.instance();
        let lab = Lab { folder, daemon: Mutex::new(Some(daemon)), instance, versions: Mutex::new(0) };
        lab.with(|daemon| {
            daemon.ended(daemon.trigger("row"));
            daemon.rest();
        });
        lab
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Does something with the daemon.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Daemon) -> T) -> T {
        let mut daemon = self.daemon.lock().expect("nobody panicked with it");
        act(daemon.as_mut().expect("the daemon runs"))
    }

    /// Commits a change of ten files.
    pub(crate) fn commit(&self) {
        let version = {
            let mut versions = self.versions.lock().expect("nobody panicked with it");
            *versions += 1;
            *versions
        };
        let work = self.folder().join("work");
        tree::change(&work, version);
        git(&work, &["commit", "-q", "-a", "-m", &format!("change {version}")]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut daemon = self.daemon.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(daemon.take());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder().join("daemon.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            crate::print(format_args!("the daemon's last words:"));
            last.iter().rev().for_each(|line| crate::print(format_args!("  {line}")));
        }
        // A stopped daemon leaves nothing but what a failed measurement left running.
        let label = format!("label=mainstay.instance={}", self.instance);
        for (list, remove) in [
            (&["ps", "-aq", "--filter", &label][..], &["rm", "-f"][..]),
            (&["network", "ls", "-q", "--filter", &label], &["network", "rm"]),
            (&["volume", "ls", "-q", "--filter", &label], &["volume", "rm"]),
        ] {
            let Ok(found) = Command::new("docker").args(list).output() else { continue };
            let text = String::from_utf8_lossy(&found.stdout).into_owned();
            let names: Vec<&str> = text.split_whitespace().collect();
            if !names.is_empty() {
                let _ = Command::new("docker").args(remove).args(names).output();
            }
        }
    }
}
