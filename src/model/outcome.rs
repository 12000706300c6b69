//! How attempts, steps and runs end.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum AttemptEnd {
    /// The process exited by itself. 128 + n stands for death by signal n, as in a shell.
    Exited {
        /// The exit code.
        code: i32,
    },
    /// The step's `timeout` passed and it was stopped.
    TimedOut,
    /// Somebody cancelled the run.
    Cancelled,
    /// The container was gone when we looked for it, after its process may have begun.
    LostContainer {
        /// What was seen.
        detail: String,
    },
    /// The image could not be had.
    ImagePull {
        /// What the engine said.
        detail: String,
    },
    /// The engine could not create or start it; its process never began.
    EngineError {
        /// What the engine said.
        detail: String,
    },
    /// It was not allowed: rights, a hold, a freeze, an approval that was rejected or expired, a newer run.
    Refused {
        /// Why, in words.
        detail: String,
    },
    /// The deploy failed, and nothing was put back.
    DeployFailed {
        /// What happened, in words.
        detail: String,
    },
    /// There is no backup in the end, or what was to be restored is not there.
    RecoveryFailed {
        /// What happened, in words.
        detail: String,
    },
    /// The deploy turned bad, and the release before it serves again.
    RolledBack {
        /// What was seen, in words.
        detail: String,
    },
}

impl AttemptEnd {
    /// True when the step did what it should.
    pub fn is_success(&self) -> bool {
        matches!(self, AttemptEnd::Exited { code: 0 })
    }
}

impl std::fmt::Display for AttemptEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AttemptEnd::Exited { code } => write!(f, "exit code {code}"),
            AttemptEnd::TimedOut => f.write_str("timed out"),
            AttemptEnd::Cancelled => f.write_str("cancelled"),
            AttemptEnd::LostContainer { detail } => write!(f, "container lost: {detail}"),
            AttemptEnd::ImagePull { detail } => write!(f, "image not available: {detail}"),
            AttemptEnd::EngineError { detail } => write!(f, "engine error: {detail}"),
            AttemptEnd::Refused { detail } => write!(f, "refused: {detail}"),
            AttemptEnd::DeployFailed { detail } => write!(f, "deploy failed: {detail}"),
            AttemptEnd::RecoveryFailed { detail } => write!(f, "recovery failed: {detail}"),
            AttemptEnd::RolledBack { detail } => write!(f, "rolled back: {detail}"),
        }
    }
}

/// What one attempt left behind; recorded when it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptResult {
    /// How it ended.
    pub end: AttemptEnd,
    /// The `KEY=value` lines it wrote to `$MAINSTAY_OUTPUT`.
    pub outputs: BTreeMap<String, String>,
    /// When its process began, by the helper's own mark; `None` when it never began.
    pub began_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// Where a step of a run stands at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepOutcome {
    /// It did what it should.
    Succeeded,
    /// It failed, and its failure counts.
    Failed,
    /// It failed, and `allow-failure` says that this does not count.
    FailedAllowed,
    /// It never ran.
    Skipped,
    /// The run was cancelled before or while it ran.
    Cancelled,
}

impl StepOutcome {
    /// True when steps that need this one may start.
    pub fn satisfies_needs(self) -> bool {
        matches!(self, StepOutcome::Succeeded | StepOutcome::FailedAllowed | StepOutcome::Skipped)
    }
}

/// Where a run stands. In JSON it is the word of [`RunStatus::as_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunStatus {
    /// Stored, waiting for its turn.
    Queued,
    /// Being driven.
    Running,
    /// All steps that count ended well.
    #[serde(rename = "success")]
    Succeeded,
    /// A step that counts failed.
    #[serde(rename = "failure")]
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It could not be planned or carried out: the pipeline file is wrong, or the engine could not serve it.
    #[serde(rename = "error")]
    Errored,
}

impl RunStatus {
    /// True when nothing more will happen.
    pub fn is_final(self) -> bool {
        !matches!(self, RunStatus::Queued | RunStatus::Running)
    }
    /// The word that is stored, shown, and given to steps as `CI_RUN_STATUS`.
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Queued => "queued",
            RunStatus::Running => "running",
            RunStatus::Succeeded => "success",
            RunStatus::Failed => "failure",
            RunStatus::Cancelled => "cancelled",
            RunStatus::Errored => "error",
        }
    }
}

impl std::str::FromStr for RunStatus {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        use RunStatus::{Cancelled, Errored, Failed, Queued, Running, Succeeded};
        [Queued, Running, Succeeded, Failed, Cancelled, Errored]
            .into_iter()
            .find(|status| status.as_str() == s)
            .ok_or_else(|| {
                format!("`{s}` is no run status; one of queued, running, success, failure, cancelled, error")
            })
    }
}

impl std::fmt::Display for RunStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
