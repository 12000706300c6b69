//! The contract between a run and whatever executes its steps.
//!
//! In come specifications made by `step`; out go processes, their logs and their exits. Two engines implement it:
//! `docker` (any Docker-compatible socket) and `process` (plain processes, for trusted repositories only). The suite
//! in `tests/it/conformance.rs` runs on both.

pub mod apart;
pub mod docker;
mod helper;
pub mod process;

pub(crate) use helper::script as script_of;

use crate::model::log::{LogChunk, LogCursor, Stream};
use crate::model::plan::Resources;
use crate::model::{AttemptId, InstanceId, RepoName, RunId};
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::time::Duration;

/// Why an engine could not do what was asked. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine does not answer. Trying again later is right; nothing is known about what it did.
    #[error("reach the container engine at {endpoint}: {detail}")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What the connection said.
        detail: String,
    },
    /// The image is not there and could not be pulled.
    #[error("get the image `{image}`: {detail}")]
    Image {
        /// As written in the pipeline.
        image: String,
        /// What the engine or the registry said.
        detail: String,
    },
    /// The thing asked about does not exist (any more).
    #[error("find {what}")]
    Gone {
        /// What was looked for.
        what: String,
    },
    /// All subnets set aside for run networks are in use; the run waits.
    #[error("get a network for the run: all {total} subnets of {range} are in use")]
    NoNetworkLeft {
        /// The configured range.
        range: String,
        /// How many networks fit in it.
        total: usize,
    },
    /// The engine answered, and said no.
    #[error("{doing}: {detail}")]
    Refused {
        /// What was asked of it.
        doing: String,
        /// What it said.
        detail: String,
    },
    /// Something on this machine failed (files, pipes).
    #[error("{doing}: {source}")]
    Io {
        /// What was attempted.
        doing: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// The place in which one run lives: its workspace and, where the engine has them, its network and holder.
/// Made in advance, taken by one run, never shared and never used again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpaceName(pub String);

/// What a workspace is filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkspaceSource {
    /// A commit of a bare mirror: `/workspace` becomes a real clone of depth one with that commit checked out.
    Commit {
        /// The bare repository on the daemon's disk.
        mirror: PathBuf,
        /// The commit.
        commit: crate::model::Oid,
        /// The short branch or tag name HEAD shall show, if any.
        branch: Option<String>,
        /// The URL to record as `origin`.
        origin: String,
    },
    /// A working tree as it is: everything Git does not ignore (`mainstay run`).
    Folder(PathBuf),
}

/// Everything an engine needs to make a step's process, except what must stay unseen until it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSpec {
    /// Which attempt; names and labels are made from it.
    pub id: AttemptId,
    /// The run's space.
    pub space: SpaceName,
    /// The repository, for labels.
    pub repo: RepoName,
    /// The resolved image: what [`Runtime::resolve_image`] returned.
    pub image: ResolvedImage,
    /// Limits; `None` fields take the engine's configured defaults.
    pub resources: Resources,
    /// Joins the holder's network namespace instead of having its own on the run's network.
    pub shares_holder: bool,
}

/// An image pinned for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// As written in the pipeline.
    pub reference: String,
    /// The content id (`sha256:...`) that containers are made from; empty for the process runtime.
    pub id: String,
}

/// What a waiting process is told when its step becomes ready. Never visible in the engine's own records.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Shell lines under `sh -e`, each echoed; empty means the image's entrypoint with `args`.
    pub commands: Vec<String>,
    /// Arguments for the image's entrypoint.
    pub args: Vec<String>,
    /// Environment on top of the image's own. Holds secrets.
    pub environment: Vec<(String, String)>,
}

impl std::fmt::Debug for Word {
    /// Names only: the values hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.environment.iter().map(|(name, _)| name).collect();
        f.debug_struct("Word").field("commands", &self.commands.len()).field("environment", &names).finish()
    }
}

/// What an engine knows about an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing of that name.
    Absent,
    /// It exists; whether its process got the word is for the log to say.
    Alive,
    /// It is over.
    Exited {
        /// The exit code.
        code: i32,
        /// Killed for want of memory.
        out_of_memory: bool,
    },
}

/// Whose things a sweep leaves alone: those named here, runs newer than `newest`, and spaces made by this process. So
/// what was true when a daemon started may be used later too.
#[derive(Debug, Clone)]
pub struct Living {
    /// Runs that are not closed.
    pub runs: Vec<RunId>,
    /// The newest run known.
    pub newest: RunId,
    /// Spaces of those runs, kept workspaces, and spaces that another runtime of this process has made.
    pub spaces: Vec<SpaceName>,
}

impl Living {
    fn has_run(&self, run: RunId) -> bool {
        run > self.newest || self.runs.contains(&run)
    }
}

/// One thing of ours that an engine holds, for `doctor`, tests and clean-up reports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leftover {
    /// `container`, `network`, `volume` or `process`.
    pub kind: &'static str,
    /// Its name in the engine.
    pub name: String,
    /// The run it belongs to, when it belongs to one.
    pub run: Option<RunId>,
}

/// Something that executes steps.
///
/// Order of calls for one run: `take_space`, then `fill` once, then for each attempt `prepare` (any time after
/// `take_space`, also while `fill` runs), `release`, `logs` and `wait` (at once), `remove`; at the end `close`.
/// `stop` may come at any time after `prepare`.
///
/// Every call may be repeated after a crash, by another process, with the same names, and then finds what the first
/// one made: `prepare` and `release` of an attempt that already waits, runs or has ended succeed and change nothing.
/// A process that got two words begins once. Calls for different attempts may run at the same time. A future that is
/// dropped leaves things that `close` and `sweep` find.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// `docker` or `process`, for people.
    fn name(&self) -> &'static str;

    /// Asks the engine whether it is there; returns its name and version for people.
    async fn ping(&self) -> Result<String, RuntimeError>;

    /// Finds the image, pulling it when the engine does not have it; `progress` is told in sentences.
    async fn resolve_image(
        &self,
        reference: &str,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<ResolvedImage, RuntimeError>;

    /// Hands out a space, made in advance for that repository when there is one. The caller records the name before
    /// it calls anything else with it; a space nobody recorded is swept.
    async fn take_space(&self, run: RunId, repo: &RepoName) -> Result<SpaceName, RuntimeError>;

    /// Makes the kept workspace of an ended run usable for another one: everything of a space but its files is made
    /// anew. Returns the name under which it goes on, which the caller records.
    async fn reopen_space(&self, run: RunId, repo: &RepoName, kept: &SpaceName) -> Result<SpaceName, RuntimeError>;

    /// Puts the source into the space's `/workspace`. Only once per space; after a crash in the middle the space is
    /// given up with `close` and another one taken.
    async fn fill(&self, space: &SpaceName, source: &WorkspaceSource) -> Result<(), RuntimeError>;

    /// Makes the attempt's process and starts it up to the point where it waits for its word.
    async fn prepare(&self, spec: &StepSpec) -> Result<(), RuntimeError>;

    /// Gives the word: the user's command begins. Makes what `prepare` makes when that was not called. False when the
    /// process had ended before this call could tell it anything.
    async fn release(&self, spec: &StepSpec, word: &Word) -> Result<bool, RuntimeError>;

    /// Follows the attempt's output from a cursor to its end; the stream ends when the process has ended and all its
    /// output was handed over. The helper's marks are part of the stream (`logs::mark` takes them out). A cursor
    /// counts every byte this stream yields.
    async fn logs(
        &self,
        id: &AttemptId,
        from: LogCursor,
    ) -> Result<BoxStream<'static, Result<LogChunk, RuntimeError>>, RuntimeError>;

    /// Waits until the process has ended. [`RuntimeError::Gone`] when there is none.
    async fn wait(&self, id: &AttemptId) -> Result<Found, RuntimeError>;

    /// Looks without waiting.
    async fn find(&self, id: &AttemptId) -> Result<Found, RuntimeError>;

    /// Whether the engine has kept everything running from before that attempt's start until now. One that stops or
    /// dies takes all processes along, and their exit codes then say nothing about the steps.
    async fn undisturbed(&self, space: &SpaceName, id: &AttemptId) -> Result<bool, RuntimeError>;

    /// SIGTERM to the process group, SIGKILL after `grace`; returns when it has ended. Nothing there is success.
    async fn stop(&self, id: &AttemptId, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes the attempt and what it left, its log in the engine too. Nothing there is success.
    async fn remove(&self, id: &AttemptId) -> Result<(), RuntimeError>;

    /// Removes everything of the run: attempts, network, holder, and the workspace unless `keep_workspace`. Asks the
    /// engine whether anything is left and fails if so. Nothing there is success.
    async fn close(&self, run: RunId, space: Option<&SpaceName>, keep_workspace: bool) -> Result<(), RuntimeError>;

    /// Everything of this daemon instance that the engine holds.
    async fn leftovers(&self) -> Result<Vec<Leftover>, RuntimeError>;

    /// Spaces that this process made and has not given up, those made in advance among them.
    fn held_spaces(&self) -> Vec<SpaceName>;

    /// What of this instance belongs to nobody who is alive; everything when nobody is.
    async fn stale(&self, living: Option<&Living>) -> Result<Vec<Leftover>, RuntimeError>;

    /// Removes these things, whosever they are. What is gone already is success.
    async fn discard(&self, things: &[Leftover]) -> Result<(), RuntimeError>;

    /// Removes whatever of this instance belongs to nobody who is alive; everything when nobody is.
    async fn sweep(&self, living: Option<&Living>) -> Result<(), RuntimeError> {
        // Once more after something went: an earlier daemon's parts may have been made while that took its time.
        for _ in 0..2 {
            let stale = self.stale(living).await?;
            if stale.is_empty() {
                break;
            }
            self.discard(&stale).await?;
        }
        Ok(())
    }

    /// Makes a space ready for the next run of that repository, in the background, up to the pool's bound.
    /// Best effort: failing costs the next run some milliseconds, nothing else.
    async fn warm(&self, repo: &RepoName, source: &WorkspaceSource);

    /// Gives up the spaces made in advance; running attempts are left alone. Called at a graceful stop.
    async fn drain_pool(&self);
}

/// What an attempt's marks carry, so that no other program's output can be taken for one: known to the daemon that made
/// the attempt and to its successors, derived from nothing that changes.
pub fn nonce(instance: &InstanceId, id: &AttemptId) -> String {
    let name = format!("{instance}/{}/{}/{}", id.run, id.step, id.attempt);
    hex::encode(&Sha256::digest(name.as_bytes())[..8])
}

/// Moves a cursor past a chunk that was taken over; with it an engine that opens its log again keeps its own place.
///
/// A clock that was set back makes the time of a stream useless for finding a place in it. The cursor then holds the
/// latest second seen as a negative number, which reads as "from the start", until the clock is past it again.
pub fn advance(cursor: &mut LogCursor, chunk: &LogChunk) {
    let position = match chunk.stream {
        Stream::Stdout => &mut cursor.stdout,
        Stream::Stderr => &mut cursor.stderr,
        Stream::System => return,
    };
    let second = chunk.at_nanos.div_euclid(1_000_000_000);
    if second > position.second.abs() {
        position.second = second;
        position.bytes_before_second = position.bytes;
    } else if second < position.second {
        position.second = -position.second;
        position.bytes_before_second = 0;
    }
    position.bytes += chunk.data.len() as u64;
}
