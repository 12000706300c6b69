//! The facts of a run. They are recorded before what they announce is done, and after what they report has happened.

use crate::model::outcome::AttemptResult;
use crate::model::{RunStatus, StepName};
use crate::runtime::{ResolvedImage, SpaceName};
use serde::{Deserialize, Serialize};

/// One fact. The stored form is this JSON; add fields only with defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum RunEvent {
    /// The run got its turn; it stays with this runtime.
    Begun {
        /// `docker` or `process`.
        runtime: String,
    },
    /// The run lives in this space from now on.
    SpaceTaken {
        /// Its name.
        space: SpaceName,
    },
    /// The space is given up: whether its workspace is whole could not be known. Another follows.
    SpaceLost {
        /// Its name.
        space: SpaceName,
    },
    /// The run only waits: everything of its space but the workspace is about to be given back, and its place in the
    /// limit of runs is.
    Parked {
        /// Its name; a run that was never going to need one has none.
        space: Option<SpaceName>,
    },
    /// The run has a place again, and its space can be used again.
    Unparked {
        /// Its name.
        space: SpaceName,
    },
    /// The workspace holds the commit.
    WorkspaceFilled,
    /// For this run the image's name means this content.
    ImagePinned {
        /// Name and content.
        image: ResolvedImage,
    },
    /// The attempt is about to be given its word.
    StepStarted {
        /// The step.
        step: StepName,
        /// From 1.
        attempt: u32,
    },
    /// The attempt ended, and its log is whole.
    StepEnded {
        /// The step.
        step: StepName,
        /// From 1.
        attempt: u32,
        /// What it left behind.
        result: AttemptResult,
    },
    /// The step will not run.
    StepSkipped {
        /// The step.
        step: StepName,
        /// Why, in words.
        reason: String,
        /// It would have run, had the run not been cancelled.
        #[serde(default)]
        cancelled: bool,
    },
    /// Somebody wants the run to stop.
    CancelRequested {
        /// Who.
        by: String,
    },
    /// Nothing more will happen.
    Ended {
        /// How it ended.
        status: RunStatus,
        /// Why it could not be carried out, when that is how it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}
