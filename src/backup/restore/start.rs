//! A restored server: started, followed until it is open, and looked at. In: a data directory that is ready, and what runs
//! a server there: `local` programs of this machine, or a `container`. Out: how far it came. Both are told apart here and
//! nowhere below; the tests of a restore run on both.
//!
//! What a server does is read from its own files and its log, so that no role, password or access rule has to be known:
//! the status in `postmaster.pid` (as `pg_ctl` does), the history file of the timeline it begins, its messages.

mod container;
mod local;

use super::RestoreError;
use super::container::Container;
use super::plan::Program;
use crate::backup::catalog::history;
use crate::model::{Lsn, Timeline};
use jiff::Timestamp;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

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
const SHOWN_BYTES: usize = 3000;
/// Messages are searched in this much of their end: a recovery without debugging writes a line a segment.
const SEARCHED_BYTES: usize = 4 << 20;

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

/// What runs a server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Host<'a> {
    /// Programs of this machine.
    Local(&'a LocalServer),
    /// A container that is to be left running.
    Container(&'a Container),
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

/// What asks `postgres` how long its pages are, without a data directory; first of all, so that it answers root too. It is
/// fixed when PostgreSQL is built.
pub(super) const PAGE_QUESTION: [&str; 6] = ["-C", "block_size", "-D", "/", "-c", "config_file=/dev/null"];

/// Asks the programs what they are.
///
/// # Errors
/// When `postgres` is not there or does not say its version.
pub async fn program(bin: &Path) -> Result<Program, RestoreError> {
    let path = bin.join("postgres");
    let ask = async |arguments: &[&str]| {
        let asked = Command::new(&path).args(arguments).stdin(Stdio::null()).output().await;
        let output = asked.map_err(|error| RestoreError::io(format!("run {}", path.display()), error))?;
        Ok::<_, RestoreError>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = ask(&["--version"]).await?;
    let major =
        major_of(&text).ok_or_else(|| RestoreError::Server(format!("{} says `{}`", path.display(), text.trim())))?;
    Ok(Program { major, block_size: ask(&PAGE_QUESTION).await?.trim().parse().ok() })
}

/// The major version in what `postgres --version` says: `postgres (PostgreSQL) 15.18 (Debian …)`, `18beta1`.
pub(super) fn major_of(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl Host<'_> {
    /// Takes away what an interrupted restore left running in the place. Called by whoever holds its lock.
    pub(super) async fn clear(&self) -> Result<(), RestoreError> {
        match self {
            // It was refused when the place was taken.
            Host::Local(_) => Ok(()),
            Host::Container(container) => container::clear(container).await,
        }
    }

    /// Starts it; it goes on when this process ends.
    pub(super) async fn start(&self, data: &Path) -> Result<Running, RestoreError> {
        match self {
            Host::Local(server) => local::start(server, data).map(|running| Running::Local(Box::new(running))),
            Host::Container(container) => container::start(container, data).await.map(Running::Container),
        }
    }

    /// Asks the open server; gives each row as its columns, in text.
    pub(super) async fn query(&self, data: &Path, database: &str, sql: &str) -> Result<Vec<Vec<String>>, String> {
        match self {
            Host::Local(server) => local::query(server, data, database, sql).await,
            Host::Container(container) => container::query(container, data, database, sql).await,
        }
    }
}

/// A server that was started here.
pub(super) enum Running {
    Local(Box<local::Running>),
    Container(container::Running),
}

impl Running {
    /// Waits until it is open or gone. May be dropped and called again.
    pub(super) async fn outcome(&mut self) -> Result<Outcome, RestoreError> {
        match self {
            Running::Local(server) => server.outcome().await,
            Running::Container(server) => server.outcome().await,
        }
    }

    /// Stops it at once, without a checkpoint, and waits until it is gone: it may be open, or open later, and nobody would look
    /// at it any more. Gives back why, which must be heard also when it cannot be stopped.
    pub(super) async fn give_up(self, why: RestoreError) -> RestoreError {
        let stopped = match self {
            Running::Local(server) => server.stop().await,
            Running::Container(server) => server.stop().await,
        };
        if let Err(error) = stopped {
            tracing::error!(%error, "the server that failed to be restored could not be stopped, and may be open");
        }
        why
    }

    /// Has it read its configuration again, and be started again by whoever keeps it: it is recovered.
    pub(super) async fn settle(&self) -> Result<(), RestoreError> {
        match self {
            Running::Local(server) => server.reload(),
            Running::Container(server) => server.settle().await?,
        }
        Ok(())
    }

    /// How far it came; asked when it is open.
    pub(super) async fn reached(&self) -> Result<Reached, RestoreError> {
        let (data, messages) = match self {
            Running::Local(server) => (server.data(), server.log(SEARCHED_BYTES)),
            Running::Container(server) => (server.data(), server.log(SEARCHED_BYTES).await),
        };
        let time =
            messages.rsplit_once(LAST_TRANSACTION).and_then(|(_, rest)| rest.lines().next()?.trim().parse().ok());
        let (now, timeline, lsn) = newest_history(data)?;
        Ok(Reached { timeline, lsn, now, last_transaction: time })
    }
}

/// What the end of a server means that did not open, from its messages.
fn refused(ended: &str, messages: &str) -> Outcome {
    if messages.contains(ENDED_EARLY) {
        return Outcome::EndedEarly;
    }
    let mut shown = messages.len().saturating_sub(SHOWN_BYTES);
    while !messages.is_char_boundary(shown) {
        shown += 1;
    }
    Outcome::Refused(format!("it ended with {ended}:\n{}", messages[shown..].trim_end()))
}

/// Line 1 and 8 of `postmaster.pid`: the process, and whether it is `ready`.
fn status(data: &Path) -> Option<(u32, String)> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().collect();
    Some((lines.first()?.trim().parse().ok()?, lines.get(7)?.trim().to_owned()))
}

/// Where the server listens: the folder of its socket, else its address, as `postmaster.pid` says.
pub(super) fn listens(data: &Path) -> Result<String, String> {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let found = [4, 5].into_iter().find_map(|index| lines.get(index).filter(|line| !line.is_empty()));
    found.map(|line| (*line).to_owned()).ok_or_else(|| "the server does not say where it listens".into())
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
