//! A restored server: started, followed until it is open, and looked at. In: a data directory that is ready, local programs.
//! Out: how far it came.
//!
//! What a server does is read from its own files and its log, so that no role, password or access rule has to be known:
//! the status in `postmaster.pid` (as `pg_ctl` does), the history file of the timeline it begins, its messages.

use super::RestoreError;
use super::plan::Program;
use crate::backup::catalog::history;
use crate::model::{Lsn, Timeline};
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// Its messages while it recovers, in the data directory; kept.
pub const LOG_FILE: &str = "mainstay-restore.log";

/// What PostgreSQL says when its log ends before the target; since 13 it does not open then.
const ENDED_EARLY: &str = "recovery ended before configured recovery target was reached";
/// What it says at the end about the newest transaction.
const LAST_TRANSACTION: &str = "last completed transaction was at log time ";

/// How often its status is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A server that is told to stop gets this long before it is told again, harder.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// As much of its messages as is shown, from the end.
const SHOWN_BYTES: u64 = 3000;
/// Messages are searched in this much of their end: a recovery without debugging writes a line a segment.
const SEARCHED_BYTES: u64 = 4 << 20;

/// Local programs, and how the server is to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalServer {
    /// The folder of `postgres`.
    pub bin: PathBuf,
    /// Whose process it is, and whose files: user and group. PostgreSQL refuses to run as root. Without: our own.
    pub user: Option<(u32, u32)>,
    /// Its port.
    pub port: u16,
    /// The role that checks are asked as; one that may sign in from here without a password.
    pub role: String,
    /// The folder of its Unix socket; what its configuration says unless it is given.
    pub socket: Option<PathBuf>,
}

/// How the server ended instead of opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It accepts connections and writes.
    Open,
    /// The log was over before the target was met, and it did not open.
    EndedEarly,
    /// It did not open for another reason: the end of its messages.
    Refused(String),
}

/// How far a recovery came, from what the server has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    /// The timeline that was replayed last.
    pub(super) timeline: Timeline,
    /// The byte after the last one that was replayed.
    pub(super) lsn: Lsn,
    /// The timeline that the server writes now.
    pub(super) now: Timeline,
    /// When the last transaction that is there ended.
    pub(super) last_transaction: Option<Timestamp>,
}

/// Asks the programs what they are.
///
/// # Errors
/// When `postgres` is not there or does not say its version.
pub async fn program(bin: &Path) -> Result<Program, RestoreError> {
    let path = bin.join("postgres");
    let asked = Command::new(&path).arg("--version").stdin(Stdio::null()).output().await;
    let output = asked.map_err(|error| RestoreError::io(format!("run {}", path.display()), error))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `postgres (PostgreSQL) 15.18 (Debian …)`, `18beta1`.
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    let major =
        digits.parse().map_err(|_| RestoreError::Server(format!("{} says `{}`", path.display(), text.trim())))?;
    Ok(Program { major, block_size: None })
}

/// A server that was started here.
pub(super) struct Running {
    child: Child,
    data: PathBuf,
    /// Its messages from this start on begin here.
    log_begins: u64,
}

/// Starts it; it goes on when this process ends.
pub(super) fn start(server: &LocalServer, data: &Path) -> Result<Running, RestoreError> {
    let log_path = data.join(LOG_FILE);
    let wrong = |error| RestoreError::io(format!("write {}", log_path.display()), error);
    let log = File::options().create(true).append(true).mode(0o600).open(&log_path).map_err(wrong)?;
    super::place::give(&log_path, server.user)?;
    let log_begins = log.metadata().map_err(wrong)?.len();
    let path = server.bin.join("postgres");
    let mut command = Command::new(&path);
    command.arg("-D").arg(data).current_dir(data).stdin(Stdio::null()).process_group(0);
    let set = |name: &str, value: &str| format!("{name}={value}");
    let mut settings = vec![
        set("port", &server.port.to_string()),
        // Its messages are read here, whatever its configuration does with them.
        set("logging_collector", "off"),
        set("log_destination", "stderr"),
        set("log_min_messages", "log"),
        set("lc_messages", "C"),
        set("config_file", &data.join("postgresql.conf").display().to_string()),
        set("hba_file", &data.join("pg_hba.conf").display().to_string()),
        set("ident_file", &data.join("pg_ident.conf").display().to_string()),
    ];
    if let Some(socket) = &server.socket {
        settings.push(set("unix_socket_directories", &super::settings::listed(socket)));
    }
    for setting in settings {
        command.arg("-c").arg(setting);
    }
    if let Some((user, group)) = server.user {
        command.uid(user).gid(group);
    }
    // Nothing of our environment is the server's business: it may hold credentials of the store.
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
        .env("LC_ALL", "C");
    let copy = log.try_clone().map_err(wrong)?;
    command.stdout(copy).stderr(log);
    let child = command.spawn().map_err(|error| RestoreError::io(format!("run {}", path.display()), error))?;
    Ok(Running { child, data: data.to_owned(), log_begins })
}

impl Running {
    /// Waits until it is open or gone. May be dropped and called again.
    pub(super) async fn outcome(&mut self) -> Result<Outcome, RestoreError> {
        loop {
            let ended = self.child.try_wait().map_err(|error| RestoreError::io("watch the server", error))?;
            if let Some(status) = ended {
                let log = self.log(SEARCHED_BYTES);
                return Ok(match log.contains(ENDED_EARLY) {
                    true => Outcome::EndedEarly,
                    false => Outcome::Refused(format!("it ended with {status}:\n{}", self.log(SHOWN_BYTES).trim_end())),
                });
            }
            if self.status() == Some("ready".into()) {
                return Ok(Outcome::Open);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The eighth line of `postmaster.pid`, when that is of this process.
    fn status(&self) -> Option<String> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        (lines.first()?.trim().parse() == Ok(self.child.id()?)).then_some(())?;
        Some(lines.get(7)?.trim().to_owned())
    }

    /// The end of its messages since this start.
    pub(super) fn log(&self, bytes: u64) -> String {
        let read = || {
            let mut file = File::open(self.data.join(LOG_FILE))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.log_begins.max(length.saturating_sub(bytes))))?;
            let mut text = Vec::new();
            file.take(bytes).read_to_end(&mut text)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
        };
        read().unwrap_or_else(|error| format!("its messages cannot be read: {error}"))
    }

    /// Stops it at once, without a checkpoint, and waits until it is gone.
    pub(super) async fn stop(mut self) -> Result<(), RestoreError> {
        for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
            let Some(pid) = self.child.id() else { return Ok(()) };
            // It may have ended since.
            let _ = kill(Pid::from_raw(pid as i32), signal);
            if tokio::time::timeout(STOP_WITHIN, self.child.wait()).await.is_ok() {
                return Ok(());
            }
        }
        Err(RestoreError::Server("it does not stop".into()))
    }

    /// Has it read its configuration again.
    pub(super) fn reload(&self) {
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGHUP);
        }
    }

    /// How far it came; asked when it is open.
    pub(super) fn reached(&self) -> Result<Reached, RestoreError> {
        let messages = self.log(SEARCHED_BYTES);
        let time =
            messages.rsplit_once(LAST_TRANSACTION).and_then(|(_, rest)| rest.lines().next()?.trim().parse().ok());
        let (now, timeline, lsn) = newest_history(&self.data)?;
        Ok(Reached { timeline, lsn, now, last_transaction: time })
    }
}

/// The newest timeline in `pg_wal`, which an opening server begins, and where it left which other one.
fn newest_history(data: &Path) -> Result<(Timeline, Timeline, Lsn), RestoreError> {
    let folder = data.join("pg_wal");
    let wrong = |error| RestoreError::io(format!("read {}", folder.display()), error);
    let mut newest = None;
    for entry in fs::read_dir(&folder).map_err(wrong)? {
        let name = entry.map_err(wrong)?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".history")).filter(|digits| digits.len() == 8);
        newest = newest.max(digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()));
    }
    let none = || RestoreError::Server("it is open and has not begun a timeline of its own".into());
    let now = Timeline(newest.ok_or_else(none)?);
    let file = fs::read(folder.join(now.history_file())).map_err(wrong)?;
    let ancestors =
        history::parse(now, &file).map_err(|error| RestoreError::Server(format!("{}: {error}", now.history_file())))?;
    let parent = ancestors.last().ok_or_else(none)?;
    Ok((now, parent.timeline, parent.ends))
}
