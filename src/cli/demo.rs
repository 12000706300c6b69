//! `mainstay demo`: the whole way from a push to its result, on this machine, in a folder of its own.
//!
//! Enters a project (a folder, or the small one in the binary); leaves two finished runs on the screen, one good and
//! one with a broken test. Everything is done by the commands a user would type, so what is seen is what users get.
//! The daemon is a child that is stopped, and waited for, however the demo ends.

use super::exit::{Exit, Failure};
use super::ui::{Tone, Ui};
use crate::daemon::wire;
use crate::model::api::RunSummary;
use crate::store::Store;
use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// See two pushes run on this machine: one passes, one breaks a test
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay demo
  mainstay demo --image busybox --dir /tmp/try")]
pub struct Args {
    /// A project to push: a folder with `source/` (the first commit, with its pipeline) and `break.patch` (the second)
    /// [default: a word counter of ten lines]
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// The image for the built-in project's steps; it needs a shell and the usual small commands
    #[arg(long, value_name = "IMAGE", default_value = BUILT_IN_IMAGE, conflicts_with = "project")]
    image: String,
    /// Where to put the repository, the working tree and the daemon's state [default: ./mainstay-demo]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What the built-in pipeline is written for; in reach of most engines.
const BUILT_IN_IMAGE: &str = "alpine:3";
/// The built-in project: path, text.
const BUILT_IN: &[(&str, &str)] = &[
    (".mainstay/build.yml", include_str!("../../pipelines/demo/tally/build.yml")),
    ("tally.sh", include_str!("../../pipelines/demo/tally/source/tally.sh")),
    ("tests/words.sh", include_str!("../../pipelines/demo/tally/source/tests/words.sh")),
    ("tests/nothing.sh", include_str!("../../pipelines/demo/tally/source/tests/nothing.sh")),
    ("tests/large.sh", include_str!("../../pipelines/demo/tally/source/tests/large.sh")),
];
const BUILT_IN_BREAK: &str = include_str!("../../pipelines/demo/tally/break.patch");

/// The folder's name when none is given, and how many demos may run side by side in one place.
const USUAL_DIR: &str = "mainstay-demo";
const SIDE_BY_SIDE: u32 = 9;
/// A file by which a folder is known as a demo's; its lock is held while the demo runs.
const MARK: &str = ".mainstay-demo";
/// The daemon answers within a second; a cold, busy machine was given this much.
const DAEMON_START: Duration = Duration::from_secs(60);
/// A graceful stop hands running steps over and gives up its pool; past this it is not graceful any more.
const DAEMON_STOP: Duration = Duration::from_secs(30);
/// From the end of the push to a stored run: milliseconds with the hook, and one poll without it.
const RUN_APPEARS: Duration = Duration::from_secs(30);
/// Both projects take seconds; a first image pull may take a minute or two on a slow line.
const RUN_ENDS: Duration = Duration::from_secs(10 * 60);
/// How often a child is looked at; short enough not to be seen.
const LOOK: Duration = Duration::from_millis(20);

/// Set by Ctrl-C, TERM and HUP; every wait looks at it, so that the way out is always past the daemon's stop.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the command.
///
/// # Errors
/// When Git or the engine is missing, the folder is somebody else's, or a run does not end as it should.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit, Failure> {
    listen_for_signals()?;
    let folder = Folder::take(args.dir.as_deref())?;
    let demo = Demo::new(folder, ui)?;
    match play(&demo, args) {
        Err(failure) if failure.error.is::<Interrupted>() => {
            ui.say("interrupted; the demo's daemon has been stopped");
            Ok(Exit::Interrupted)
        }
        other => other,
    }
}

/// The story, stage by stage.
fn play(demo: &Demo<'_>, args: &Args) -> Result<Exit, Failure> {
    demo.title("A repository with a project and its pipeline");
    let patch = demo.make_project(args)?;
    demo.make_repository()?;
    demo.write_config()?;
    for file in demo.pipelines()? {
        demo.mainstay(&["validate", &file])?.good()?;
        demo.mainstay(&["graph", &file])?.good()?;
    }

    demo.title("A daemon that watches it");
    let daemon = demo.start_daemon()?;
    demo.mainstay(&["hook", "install", &demo.folder.bare().to_string_lossy()])?.good()?;

    demo.title("A push");
    let first = demo.push_and_follow()?;
    if !first.good {
        return Err(Failure::new(Exit::Bad, anyhow!("get the first run through: run {} failed", first.run))
            .hint(format!("the daemon's log is in {}", demo.folder.log().display())));
    }

    demo.title("A push that breaks a test");
    demo.git(&["am", "--quiet", &patch.to_string_lossy()])?.good()?;
    demo.git(&["show", "--unified=1", "--format=%s", "HEAD"])?.good()?;
    let second = demo.push_and_follow()?;
    if second.good {
        return Err(Failure::new(Exit::Bad, anyhow!("see run {} fail: its broken test passed", second.run)));
    }
    demo.say("That is what was to be seen: the run failed, and `logs --follow` left with exit code 1.");
    demo.mainstay(&["runs"])?.good()?;

    demo.title("Stopping the daemon");
    daemon.stop()?;
    demo.next_steps(second.run);
    if demo.ui.json {
        demo.ui.json(&serde_json::json!({
            "dir": demo.folder.path, "runs": [
                { "id": first.run, "exit": 0 }, { "id": second.run, "exit": 1 },
            ],
        }));
    }
    Ok(Exit::Good)
}

/// How a followed run ended.
struct Followed {
    run: u64,
    good: bool,
}

struct Demo<'a> {
    ui: &'a Ui,
    folder: Folder,
    /// This very binary.
    program: PathBuf,
}

impl<'a> Demo<'a> {
    fn new(folder: Folder, ui: &'a Ui) -> Result<Self, Failure> {
        let program = std::env::current_exe().context("find this program's own file")?;
        Ok(Demo { ui, folder, program })
    }

    fn say(&self, text: impl AsRef<str>) {
        self.ui.say(text);
    }

    fn title(&self, text: &str) {
        self.say("");
        self.say(self.ui.paint_err(Tone::Strong, format!("== {text}")));
    }

    /// A command as a user would type it, before what it says.
    fn prompt(&self, line: &str) {
        self.say(self.ui.paint_err(Tone::Dim, format!("$ {line}")));
    }

    /// Puts the first commit's files into the working tree; returns the patch for the second.
    fn make_project(&self, args: &Args) -> Result<PathBuf, Failure> {
        let work = self.folder.work();
        if let Some(project) = &args.project {
            let (source, patch) = (project.join("source"), project.join("break.patch"));
            if !source.is_dir() || !patch.is_file() {
                return Err(Failure::wrong(format!("read the project {}", project.display()))
                    .hint("it is a folder with `source/` (the first commit) and `break.patch` (the second)"));
            }
            copy_folder(&source, &work)?;
            return Ok(fs::canonicalize(patch)?);
        }
        for (name, text) in BUILT_IN {
            let file = work.join(name);
            fs::create_dir_all(file.parent().unwrap_or(&work))?;
            // Only pipelines name an image.
            let text = text.replace(&format!("image: {BUILT_IN_IMAGE}\n"), &format!("image: {}\n", args.image));
            fs::write(file, text)?;
        }
        let patch = self.folder.path.join("break.patch");
        fs::write(&patch, BUILT_IN_BREAK)?;
        Ok(patch)
    }

    /// A bare repository, as a team has on its server, and a clone's worth of remote in the working tree.
    fn make_repository(&self) -> Result<(), Failure> {
        let bare = self.folder.bare();
        self.quiet_git(&["init", "--quiet", "--bare", "--initial-branch=main", &bare.to_string_lossy()])?;
        self.quiet_git(&["init", "--quiet", "--initial-branch=main", "."])?;
        self.quiet_git(&["remote", "add", "origin", &bare.to_string_lossy()])?;
        self.quiet_git(&["add", "--all"])?;
        self.quiet_git(&["commit", "--quiet", "--message=The project, and its pipeline"])?;
        self.say(format!("bare repository: {}", bare.display()));
        self.say(format!("working tree:    {}", self.folder.work().display()));
        Ok(())
    }

    fn write_config(&self) -> Result<(), Failure> {
        // A port of its own, so that a daemon already on this machine is not in the way.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let text = format!(
            "# Written by `mainstay demo`.\nserver: {{ listen: \"127.0.0.1:{port}\" }}\nstate: {}\nrepos:\n  demo: {{ url: {} }}\n",
            quoted(&self.folder.state()),
            quoted(&self.folder.bare()),
        );
        fs::write(self.folder.config(), &text)?;
        self.say(format!("configuration:   {}", self.folder.config().display()));
        for line in text.lines().skip(1) {
            self.say(format!("    {line}"));
        }
        Ok(())
    }

    fn pipelines(&self) -> Result<Vec<String>, Failure> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.folder.work().join(".mainstay"))? {
            files.push(format!(".mainstay/{}", entry?.file_name().to_string_lossy()));
        }
        files.sort();
        Ok(files)
    }

    fn start_daemon(&self) -> Result<Daemon<'_>, Failure> {
        self.prompt("mainstay serve &");
        let log = File::create(self.folder.log())?;
        let child = self
            .program(&self.program)
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is for the demo alone, which then stops the daemon in order.
            .process_group(0)
            .spawn()
            .context("start the daemon")?;
        fs::write(self.folder.pid(), child.id().to_string())?;
        let mut daemon = Daemon { demo: self, child: Some(child) };
        let until = Instant::now() + DAEMON_START;
        loop {
            if daemon.has_ended()? {
                return Err(self.daemon_failure("start the daemon: it ended at once"));
            }
            if self.answer(&["status"])?.is_some() {
                return Ok(daemon);
            }
            if Instant::now() > until {
                return Err(self.daemon_failure("start the daemon: it does not answer"));
            }
            pause(Duration::from_millis(100))?;
        }
    }

    /// The end of the daemon's log says more than we know.
    fn daemon_failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(self.folder.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(15)..] {
            self.say(format!("    {line}"));
        }
        Failure::new(Exit::Unreachable, anyhow!("{what}"))
            .hint(format!("its whole log is {}", self.folder.log().display()))
            .hint("`mainstay doctor` says what this machine lacks")
    }

    fn push_and_follow(&self) -> Result<Followed, Failure> {
        // Without the counters that Git would draw for a terminal.
        self.shown("git", self.folder.git(&["push", "--no-progress", "origin", "main"]), "push origin main")?.good()?;
        let run = self.run_of_head()?;
        let good = match self.mainstay(&["logs", &run.to_string(), "--follow"])?.0.code() {
            Some(0) => true,
            Some(1) => false,
            _ => return Err(self.daemon_failure(&format!("follow run {run}"))),
        };
        self.mainstay(&["show", &run.to_string()])?.good()?;
        Ok(Followed { run, good })
    }

    /// The number of the run that the last push began.
    fn run_of_head(&self) -> Result<u64, Failure> {
        let head = self.folder.git(&["rev-parse", "HEAD"]).output().context("run git")?;
        let head = String::from_utf8_lossy(&head.stdout).trim().to_owned();
        let until = Instant::now() + RUN_APPEARS;
        while Instant::now() < until {
            if let Some(json) = self.answer(&["--json", "runs"])? {
                let runs: Vec<RunSummary> = serde_json::from_slice(&json).context("read what `mainstay runs` says")?;
                if let Some(run) = runs.iter().find(|run| run.commit.to_string() == head) {
                    return Ok(run.id.0);
                }
            }
            pause(LOOK)?;
        }
        Err(self.daemon_failure("find the run of the push"))
    }

    fn next_steps(&self, run: u64) {
        let dir = self.folder.path.display();
        let pipelines = self.pipelines().unwrap_or_default();
        let pipeline = pipelines.first().map_or(".mainstay/build.yml", String::as_str);
        self.title("What to try next");
        self.say(format!("Everything is in {dir}"));
        self.say("Nothing of it runs any more. The next `mainstay demo` here replaces it, `rm -r` removes it.");
        self.say("");
        if !self.is_on_path() {
            self.say(format!("  export PATH={}:$PATH", shell_word(self.program.parent().unwrap_or(Path::new("/")))));
        }
        self.say(format!("  export MAINSTAY_CONFIG={}", shell_word(&self.folder.config())));
        self.say(format!("  cd {}", shell_word(&self.folder.work())));
        for (command, what) in [
            ("mainstay serve >../daemon.log 2>&1 &".to_owned(), "the daemon again; it still knows both runs"),
            (format!("mainstay show {run}"), "the failed run, and the commands to repeat it"),
            (format!("mainstay run {pipeline}"), "the same here, from the working tree, no push"),
            ("git revert --no-edit HEAD".to_owned(), "mend it, then"),
            ("git push origin main".to_owned(), "push that, and"),
            ("mainstay logs latest -f".to_owned(), "watch it pass"),
            ("kill %1".to_owned(), "stop the daemon"),
        ] {
            self.say(format!("  {command:38}{}", self.ui.paint_err(Tone::Dim, what)));
        }
        self.say("");
        self.say("In a project of your own, begin with `mainstay init`.");
    }

    /// Whether `mainstay`, typed in this shell, is this program.
    fn is_on_path(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = std::env::split_paths(&path).map(|dir| dir.join("mainstay")).find(|file| file.is_file());
        first.and_then(|file| fs::canonicalize(file).ok()) == fs::canonicalize(&self.program).ok()
    }

    // ---- commands, shown as a user would type them ------------------------------------------------------------

    fn mainstay(&self, arguments: &[&str]) -> Result<Ended, Failure> {
        let mut command = self.program(&self.program);
        command.args(arguments);
        self.shown("mainstay", command, &arguments.join(" "))
    }

    fn git(&self, arguments: &[&str]) -> Result<Ended, Failure> {
        self.shown("git", self.folder.git(arguments), &arguments.join(" "))
    }

    fn shown(&self, name: &str, mut command: Command, arguments: &str) -> Result<Ended, Failure> {
        let line = format!("{name} {arguments}");
        self.prompt(&line);
        command.stdin(Stdio::null());
        if self.ui.json {
            command.stdout(std::io::stderr());
        }
        let mut child = command.spawn().with_context(|| format!("run {name}"))?;
        let status = wait(&mut child, RUN_ENDS).with_context(|| format!("wait for `{line}`"))?;
        Ok(Ended(status, line))
    }

    /// A command whose answer only we need; `None` when it did not succeed.
    fn answer(&self, arguments: &[&str]) -> Result<Option<Vec<u8>>, Failure> {
        let output = self.program(&self.program).args(arguments).stdin(Stdio::null()).output();
        let output = output.context("run mainstay")?;
        Ok(output.status.success().then_some(output.stdout))
    }

    fn quiet_git(&self, arguments: &[&str]) -> Result<(), Failure> {
        let status = self.folder.git(arguments).stdin(Stdio::null()).status();
        let status = status.map_err(|error| {
            Failure::new(Exit::Unreachable, anyhow!("run git: {error}")).hint("install it: apt-get install git")
        })?;
        Ended(status, format!("git {}", arguments.join(" "))).good()
    }

    fn program(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder.work())
            .env("MAINSTAY_CONFIG", self.folder.config())
            // Of another daemon, perhaps; this one has its own.
            .env_remove("MAINSTAY_STATE");
        command
    }
}

/// How a shown command ended.
struct Ended(ExitStatus, String);

impl Ended {
    fn good(self) -> Result<(), Failure> {
        if self.0.success() {
            return Ok(());
        }
        Err(Failure::new(Exit::Bad, anyhow!("get `{}` done: {}", self.1, self.0)))
    }
}

/// The demo's daemon; dropping it stops it.
struct Daemon<'a> {
    demo: &'a Demo<'a>,
    child: Option<Child>,
}

impl Daemon<'_> {
    fn has_ended(&mut self) -> Result<bool, Failure> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    fn stop(mut self) -> Result<(), Failure> {
        let status = self.end()?;
        let _ = fs::remove_file(self.demo.folder.pid());
        if status.success() {
            self.demo.say("stopped; what it knows of the runs stays in its state folder");
            return Ok(());
        }
        Err(self.demo.daemon_failure(&format!("stop the daemon in order: {status}")))
    }

    /// TERM, and a wait that no second Ctrl-C cuts short; KILL only past all patience. Then the engine is cleared.
    fn end(&mut self) -> Result<ExitStatus, Failure> {
        let status = self.end_process()?;
        self.demo.folder.clear_engine()?;
        Ok(status)
    }

    fn end_process(&mut self) -> Result<ExitStatus, Failure> {
        let Some(mut child) = self.child.take() else { return Err(Failure::wrong("stop a daemon twice")) };
        terminate(child.id());
        let until = Instant::now() + DAEMON_STOP;
        while Instant::now() < until {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
        }
        child.kill()?;
        Ok(child.wait()?)
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.end();
            let _ = fs::remove_file(self.demo.folder.pid());
        }
    }
}

// ---- the folder ---------------------------------------------------------------------------------------------------

/// The demo's own folder, held by the lock on its mark.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Held open for its lock.
    _mark: File,
}

impl Folder {
    /// The named folder, or the first of the usual ones that no other demo is using.
    fn take(named: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = named {
            return Self::claim(path)?.ok_or_else(|| {
                Failure::wrong(format!("use {}: another demo is running there", path.display()))
                    .hint("name another folder with --dir")
            });
        }
        for n in 1..=SIDE_BY_SIDE {
            let name = if n == 1 { USUAL_DIR.to_owned() } else { format!("{USUAL_DIR}-{n}") };
            if let Some(folder) = Self::claim(Path::new(&name))? {
                return Ok(folder);
            }
        }
        Err(Failure::wrong(format!("find a folder: {SIDE_BY_SIDE} demos are running here"))
            .hint("name a folder with --dir"))
    }

    /// Makes the folder, or empties one that an earlier demo left. `None` when a running demo holds it.
    fn claim(path: &Path) -> Result<Option<Self>, Failure> {
        let mark = path.join(MARK);
        let empty = fs::read_dir(path).map(|mut entries| entries.next().is_none()).unwrap_or(true);
        if !empty && !mark.is_file() {
            return Err(Failure::wrong(format!("use {}: it holds something that no demo made", path.display()))
                .hint("name another folder with --dir"));
        }
        fs::create_dir_all(path).with_context(|| format!("make the folder {}", path.display()))?;
        let file = File::options().create(true).append(true).open(&mark)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        let folder = Folder { path: fs::canonicalize(path)?, _mark: file };
        folder.stop_orphan();
        folder.clear_engine()?;
        for entry in fs::read_dir(&folder.path)? {
            let entry = entry?;
            if entry.file_name() == MARK {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::create_dir_all(folder.work())?;
        Ok(Some(folder))
    }

    /// A demo that was killed outright could not stop its daemon. Only a process that still names our configuration
    /// in its environment is ours; the number alone may long be another's.
    fn stop_orphan(&self) {
        let Some(pid) = fs::read_to_string(self.pid()).ok().and_then(|text| text.trim().parse::<u32>().ok()) else {
            return;
        };
        let ours = format!("MAINSTAY_CONFIG={}", self.config().display());
        let alive = || {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == ours.as_bytes()))
        };
        if alive() {
            terminate(pid);
            let until = Instant::now() + DAEMON_STOP;
            while alive() && Instant::now() < until {
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Takes out of the engine what a stopped daemon left there on purpose: steps that go on without it, and the
    /// workspace of the failed run, which would wait a day for a `retry --from`.
    fn clear_engine(&self) -> Result<(), Failure> {
        let state = self.state();
        if !state.join("mainstay.db").is_file() {
            return Ok(());
        }
        let config = crate::config::daemon::load(&self.config()).map_err(anyhow::Error::from)?;
        let clearing = async {
            let store = Store::open(&state).map_err(anyhow::Error::from)?;
            let runtime = wire::runtime(&config, store.instance())?;
            runtime.sweep(None).await.map_err(|error| Failure::unreachable(error.to_string()))?;
            for (run, ..) in store.kept_spaces().await.map_err(anyhow::Error::from)? {
                store.forget_kept_space(run).await.map_err(anyhow::Error::from)?;
            }
            // With it go the helper's volume and image, when no other daemon uses them.
            runtime.drain_pool().await;
            Ok(())
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(clearing)
    }

    fn work(&self) -> PathBuf {
        self.path.join("work")
    }
    fn bare(&self) -> PathBuf {
        self.path.join("demo.git")
    }
    fn state(&self) -> PathBuf {
        self.path.join("state")
    }
    fn config(&self) -> PathBuf {
        self.path.join("mainstay.yml")
    }
    fn log(&self) -> PathBuf {
        self.path.join("daemon.log")
    }
    fn pid(&self) -> PathBuf {
        self.path.join("daemon.pid")
    }

    /// Git in the working tree, deaf to the settings of whoever runs the demo: signing, templates, hooks.
    fn git(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.current_dir(self.work()).arg("--no-pager").args(arguments);
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_TEMPLATE_DIR"] {
            command.env_remove(name);
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Mainstay Demo");
            command.env(format!("GIT_{who}_EMAIL"), "demo@example.com");
        }
        command
    }
}

/// A path as one word of a shell line.
fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().all(|c| c.is_alphanumeric() || "/._-+:@,".contains(c)) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A path as a YAML string, whatever characters it holds.
fn quoted(path: &Path) -> serde_json::Value {
    path.to_string_lossy().into_owned().into()
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_folder(&source, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("copy {}", source.display()))?;
        }
    }
    Ok(())
}

// ---- waiting ------------------------------------------------------------------------------------------------------

/// The user has had enough.
#[derive(Debug, thiserror::Error)]
#[error("finish: interrupted")]
struct Interrupted;

fn listen_for_signals() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut int, mut term, mut hup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = int.recv() => {} _ = term.recv() => {} _ = hup.recv() => {} }
            INTERRUPTED.store(true, Ordering::SeqCst);
            // The handlers stay: a second Ctrl-C does not cut the daemon's stop short.
            std::future::pending::<()>().await;
        });
    })?;
    Ok(())
}

fn check_interrupt() -> Result<(), Interrupted> {
    if INTERRUPTED.load(Ordering::SeqCst) { Err(Interrupted) } else { Ok(()) }
}

fn pause(time: Duration) -> Result<(), Failure> {
    check_interrupt().map_err(|error| Failure::new(Exit::Interrupted, error))?;
    std::thread::sleep(time);
    Ok(())
}

fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            // A child that Ctrl-C ended looks like a failed one.
            check_interrupt()?;
            return Ok(status);
        }
        if let Err(interrupted) = check_interrupt() {
            terminate(child.id());
            child.wait()?;
            return Err(interrupted.into());
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            bail!("it took longer than {} s", limit.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}

fn terminate(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended by itself, which is as good.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pipeline::{self, Pipeline};
    use crate::model::ids::PipelineName;

    fn parse(text: &str) -> Pipeline {
        pipeline::parse(PipelineName::new("build").unwrap(), "build.yml", text)
            .unwrap_or_else(|findings| panic!("{}", findings.render(false)))
    }

    fn built_in(folder: &Folder) -> PathBuf {
        let ui = Ui::new(false, "never", -1);
        let demo = Demo {
            ui: &ui,
            folder: Folder::claim(&folder.path.join("inner")).unwrap().unwrap(),
            program: "/bin/false".into(),
        };
        let args = Args { project: None, image: "some/image:7".into(), dir: None };
        let patch = demo.make_project(&args).unwrap();
        demo.make_repository().unwrap();
        demo.folder.git(&["push", "--quiet", "origin", "main"]).status().map(|s| assert!(s.success())).unwrap();
        patch
    }

    fn scratch() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::claim(&dir.path().join("demo")).unwrap().unwrap();
        (dir, folder)
    }

    #[test]
    fn both_pipelines_are_graphs_that_fan_out() {
        for text in [BUILT_IN[0].1, include_str!("../../pipelines/demo/zlib/build.yml")] {
            let pipeline = parse(text);
            assert!(pipeline.warnings.is_empty(), "{:?}", pipeline.warnings);
            assert!(pipeline.steps.len() >= 6, "a demo of a graph has steps");
            let waiting = |one: &pipeline::Step| pipeline.steps.iter().filter(|s| s.needs.contains(&one.name)).count();
            assert!(pipeline.steps.iter().map(waiting).max() >= Some(3), "three steps wait for the same one");
        }
    }

    #[test]
    fn the_built_in_test_passes_until_the_patch_breaks_it() {
        let (_dir, folder) = scratch();
        let patch = built_in(&folder);
        let inner = patch.parent().unwrap().join("work");
        let words = || {
            fs::create_dir_all(inner.join("dist")).unwrap();
            fs::copy(inner.join("tally.sh"), inner.join("dist/tally")).unwrap();
            // The test's scratch files have fixed names: fine in a container, here they go to a folder of their own.
            let script = fs::read_to_string(inner.join("tests/words.sh")).unwrap();
            let script = script.replace("/tmp/", &format!("{}/", folder.path.display()));
            Command::new("sh").current_dir(&inner).args(["-c", &script]).output().unwrap()
        };
        let before = words();
        assert!(before.status.success(), "{before:?}");
        let git = Command::new("git")
            .current_dir(&inner)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "am", "--quiet"])
            .arg(&patch)
            .output()
            .unwrap();
        assert!(git.status.success(), "{git:?}");
        let after = words();
        assert_eq!(after.status.code(), Some(1), "{after:?}");
    }

    #[test]
    fn the_image_is_put_into_every_step() {
        let (_dir, folder) = scratch();
        let work = built_in(&folder).parent().unwrap().join("work");
        let pipeline = parse(&fs::read_to_string(work.join(".mainstay/build.yml")).unwrap());
        assert!(pipeline.steps.iter().all(|step| step.image == "some/image:7"));
    }

    #[test]
    fn a_demos_folder_is_taken_over_and_a_strangers_is_not() {
        let (dir, folder) = scratch();
        let path = folder.path.clone();
        assert!(Folder::claim(&path).unwrap().is_none(), "held by the first");
        fs::write(path.join("left"), "over").unwrap();
        drop(folder);
        let again = Folder::claim(&path).unwrap().expect("free again");
        assert!(!again.path.join("left").exists(), "an earlier demo's files go");

        let strange = dir.path().join("strange");
        fs::create_dir(&strange).unwrap();
        fs::write(strange.join("thesis.txt"), "ten years of work").unwrap();
        let refused = Folder::claim(&strange).unwrap_err();
        assert_eq!(refused.exit, Exit::Wrong);
        assert!(strange.join("thesis.txt").exists());
    }

    #[test]
    fn an_orphaned_daemon_is_stopped_and_a_reused_number_is_not() {
        let (_dir, folder) = scratch();
        let mut orphan = Command::new("sleep").arg("60").env("MAINSTAY_CONFIG", folder.config()).spawn().unwrap();
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(folder.pid(), other.id().to_string()).unwrap();
        folder.stop_orphan();
        assert!(other.try_wait().unwrap().is_none(), "a stranger with that number lives on");
        fs::write(folder.pid(), orphan.id().to_string()).unwrap();
        // Nobody but this test reaps it, so it stays as a zombie without an environment.
        folder.stop_orphan();
        assert!(orphan.wait().unwrap().code().is_none(), "ended by a signal");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
