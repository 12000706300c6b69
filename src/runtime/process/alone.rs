//! A command of this machine apart from any run, under a shim, so that it outlives the daemon that started it: also
//! the one whose end it brings about.
//!
//! ```text
//! DIR/NAME/        lock, shim, log, exit
//! ```

use super::files::Attempt;
use super::{Process, blocking, io_error, logs, start_shim};
use crate::model::log::LogCursor;
use crate::runtime::apart::{Collected, CommandEnd};
use crate::runtime::helper::wire::{self, Order};
use crate::runtime::{Found, RuntimeError};
use futures_util::StreamExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the exit file is looked for: a command takes seconds at least, and people wait for it.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Between asking a command to end and ending it. Tools that hold locks on their state need some seconds to let go.
const GRACE: Duration = Duration::from_secs(10);

/// A folder of such commands.
#[derive(Debug, Clone)]
pub struct Alone {
    dir: PathBuf,
    shim: PathBuf,
}

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// By it the command is found again; a part of a file name.
    pub name: &'a str,
    /// What `sh -e -c` is given.
    pub script: &'a str,
    /// Where it starts.
    pub folder: &'a Path,
    /// Variables on top of `PATH` and `HOME`. They reach the shim through a pipe, and no file.
    pub environment: &'a [(String, String)],
    /// Servers that it started go on when it has ended by itself; without, everything that it left is ended.
    pub leaves_servers: bool,
}

impl Alone {
    /// Keeps commands in `dir`; `shim` is the program that is started as `SHIM shim FOLDER` (ourselves).
    pub fn new(dir: PathBuf, shim: PathBuf) -> Alone {
        Alone { dir, shim }
    }

    fn attempt(&self, name: &str) -> Result<Attempt, RuntimeError> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(RuntimeError::Gone { what: format!("the command `{}`", name.escape_debug()) });
        }
        Ok(Attempt::new(self.dir.join(name)))
    }

    /// Whether a command of that name has begun, and may have ended.
    pub fn has_begun(&self, name: &str) -> Result<bool, RuntimeError> {
        Ok(self.attempt(name)?.find().map_err(io_error("look at the command"))?.begun)
    }

    /// The names of all that were started and not forgotten.
    pub fn names(&self) -> Result<Vec<String>, RuntimeError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("list the commands"))?,
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Runs a command to its end, or waits for the one of that name that runs, or tells how it ended: one name never
    /// begins twice. A future that is dropped leaves it running.
    ///
    /// # Errors
    /// [`RuntimeError::Gone`] when it was lost: the machine was restarted, or somebody killed its shim.
    pub async fn run(&self, task: &Task<'_>, timeout: Duration) -> Result<CommandEnd, RuntimeError> {
        let attempt = self.attempt(task.name)?;
        let made = attempt.clone();
        blocking("make the command's folder", move || made.make()).await?;
        let look = || attempt.find().map_err(io_error("look at the command"));
        if !look()?.begun {
            start_shim(&self.shim, &attempt, &wire::word_line(&order(task)?)).await?;
        }
        let until = Instant::now() + timeout;
        let mut timed_out = false;
        let code = loop {
            match look()?.found {
                Found::Exited { code, .. } => break code,
                Found::Absent => {
                    return Err(RuntimeError::Gone {
                        what: format!(
                            "the end of `{}`: it was lost with the machine, or killed from outside",
                            task.name
                        ),
                    });
                }
                Found::Alive if !timed_out && Instant::now() >= until => {
                    timed_out = true;
                    Process::end(&attempt, GRACE).await?;
                }
                Found::Alive => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        let mut collected = Collected::default();
        let mut output = logs::follow(attempt, LogCursor::default());
        while let Some(chunk) = output.next().await {
            collected.take(&chunk?);
        }
        Ok(collected.end(code, timed_out))
    }

    /// Ends the command if it runs, and forgets how it ended. Nothing there is success.
    pub async fn forget(&self, name: &str) -> Result<(), RuntimeError> {
        let attempt = self.attempt(name)?;
        Process::end(&attempt, GRACE).await?;
        Process::remove_attempt(attempt).await
    }
}

/// Tells the shim to leave what the command started.
pub(super) const LEAVES: &str = "MAINSTAY_LEAVES_SERVERS";

fn order(task: &Task<'_>) -> Result<Order, RuntimeError> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = |text: &str| text.as_bytes().to_vec();
    // In front of the word, as the shim expects it. Nobody looks for this nonce: what the command prints is no log.
    let nonce = getrandom::u64().map_err(|e| io_error("get random bytes")(std::io::Error::other(e.to_string())))?;
    let nonce = (b"MAINSTAY_NONCE".to_vec(), format!("{nonce:016x}").into_bytes());
    let environment = task.environment.iter().map(|(name, value)| (bytes(name), bytes(value)));
    // Before the nonce, where no variable of a command can come to stand.
    let leaves = task.leaves_servers.then(|| (bytes(LEAVES), bytes("1")));
    Ok(Order {
        argv: vec![bytes("/bin/sh"), bytes("-e"), bytes("-c"), bytes(task.script)],
        env: leaves.into_iter().chain([nonce]).chain(environment).collect(),
        cwd: task.folder.as_os_str().as_bytes().to_vec(),
        output: Vec::new(),
    })
}
