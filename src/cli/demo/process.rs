//! The processes a demo runs: commands as a user would type them, and the daemon, which never outlives the demo.
//!
//! Every wait looks at the signals, so that the way out is always past the daemon's stop.

use super::Demo;
use crate::cli::exit::{Exit, Failure};
use crate::model::api::DaemonStatus;
use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The daemon answers within a second; a cold, busy machine was given this much.
const DAEMON_START: Duration = Duration::from_secs(60);
/// A graceful stop hands running steps over and gives up its pool; past this it is not graceful any more.
pub(super) const DAEMON_STOP: Duration = Duration::from_secs(30);
/// Both projects take seconds; a first image pull may take a minute or two on a slow line.
const RUN_ENDS: Duration = Duration::from_secs(10 * 60);
/// How often a child is looked at; short enough not to be seen.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Set by Ctrl-C, TERM and HUP; every wait looks at it, so that the way out is always past the daemon's stop.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

impl Demo<'_> {
    pub(super) fn start_daemon(&self) -> Result<Daemon<'_>, Failure> {
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
            match self.status()? {
                Some(status) if status.runtime_ok && status.not_ready.is_empty() => return Ok(daemon),
                // It has looked for its engine in vain; a demo does not wait until somebody starts one.
                Some(status) if !status.runtime_ok && !status.runtime.is_empty() => {
                    return Err(self.daemon_failure(&format!("run anything: {}", status.runtime)));
                }
                _ => {}
            }
            if Instant::now() > until {
                return Err(self.daemon_failure("start the daemon: it does not answer"));
            }
            pause(Duration::from_millis(100))?;
        }
    }

    pub(super) fn mainstay(&self, arguments: &[&str]) -> Result<Ended, Failure> {
        let mut command = self.program(&self.program);
        command.args(arguments);
        self.shown("mainstay", command, &arguments.join(" "))
    }

    pub(super) fn git(&self, arguments: &[&str]) -> Result<Ended, Failure> {
        self.shown("git", self.folder.git(arguments), &arguments.join(" "))
    }

    pub(super) fn shown(&self, name: &str, mut command: Command, arguments: &str) -> Result<Ended, Failure> {
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
    pub(super) fn answer(&self, arguments: &[&str]) -> Result<Option<Vec<u8>>, Failure> {
        let output = self.program(&self.program).args(arguments).stdin(Stdio::null()).output();
        let output = output.context("run mainstay")?;
        Ok(output.status.success().then_some(output.stdout))
    }

    /// What the daemon says of itself, ready or not; `None` when it does not answer.
    fn status(&self) -> Result<Option<DaemonStatus>, Failure> {
        let output = self.program(&self.program).args(["--json", "status"]).stdin(Stdio::null()).output();
        Ok(serde_json::from_slice(&output.context("run mainstay")?.stdout).ok())
    }

    pub(super) fn quiet_git(&self, arguments: &[&str]) -> Result<(), Failure> {
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
pub(super) struct Ended(pub(super) ExitStatus, String);

impl Ended {
    pub(super) fn good(self) -> Result<(), Failure> {
        if self.0.success() {
            return Ok(());
        }
        Err(Failure::new(Exit::Bad, anyhow!("get `{}` done: {}", self.1, self.0)))
    }
}

/// The demo's daemon; dropping it stops it.
pub(super) struct Daemon<'a> {
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

    pub(super) fn stop(mut self) -> Result<(), Failure> {
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

/// The user has had enough.
#[derive(Debug, thiserror::Error)]
#[error("finish: interrupted")]
pub(super) struct Interrupted;

pub(super) fn listen_for_signals() -> Result<(), Failure> {
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

pub(super) fn pause(time: Duration) -> Result<(), Failure> {
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

pub(super) fn terminate(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended by itself, which is as good.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}
