//! What a run will do, decided before it begins and stored with it. Made by `plan`, never changed afterwards.

use super::ids::{EnvironmentName, PipelineName, StepName};
use super::input::Input;
use super::quantity::{ByteSize, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A pipeline at one commit, checked and expanded into a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The pipeline's name.
    pub pipeline: PipelineName,
    /// The file it was read from, in the repository.
    pub file: String,
    /// SHA-256 of that file's bytes, in hex.
    pub digest: String,
    /// The steps, in an order in which each comes after all that it needs.
    pub steps: Vec<PlannedStep>,
}

impl Plan {
    /// The step of that name.
    pub fn step(&self, name: &StepName) -> Option<&PlannedStep> {
        self.steps.iter().find(|s| s.name == *name)
    }
}

/// One step of a plan, with all defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Its name.
    pub name: StepName,
    /// The image as written; the digest is pinned when the run first uses it.
    pub image: String,
    /// Shell lines, run under `sh -e` with each echoed. Empty: the image's own entrypoint runs with `args`.
    pub commands: Vec<String>,
    /// Arguments for the image's entrypoint; only without `commands`.
    pub args: Vec<String>,
    /// The step's `environment`. Values may hold `${{ steps.NAME.KEY }}` and `${{ inputs.NAME }}`, filled in when it starts.
    pub environment: BTreeMap<String, String>,
    /// Names of the secrets it is given as environment variables.
    pub secrets: Vec<String>,
    /// The steps that must have ended before it starts.
    pub needs: Vec<StepName>,
    /// It is stopped after this long.
    pub timeout: Span,
    /// How often and for what it is tried again.
    pub retries: Retries,
    /// Its failure does not count.
    pub allow_failure: bool,
    /// For which states of the run so far it runs.
    pub when_status: Vec<WhenStatus>,
    /// Never begun a second time: when it cannot be known whether it ran, the step fails and says so.
    pub once: bool,
    /// Limits of its own; the daemon's `limits` where `None`.
    pub resources: Resources,
    /// It may use the network namespace of the run's holder: no step that shares it can ever run beside it.
    pub shares_holder: bool,
    /// What an attempt of it does.
    #[serde(default)]
    pub kind: StepKind,
}

/// What an attempt of a step does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Runs a container of `image`.
    #[default]
    Container,
    /// Brings an environment to the run's commit, and waits until its watch has ended.
    Deploy(DeployStep),
    /// Waits for people.
    Approval(ApprovalStep),
}

impl StepKind {
    /// The word that screens and the API have for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            StepKind::Container => "container",
            StepKind::Deploy(_) => "deploy",
            StepKind::Approval(_) => "approval",
        }
    }
    /// What it waits for while it is under way, in words, when it waits for others.
    pub fn waits_for(&self) -> Option<String> {
        match self {
            StepKind::Container => None,
            StepKind::Deploy(deploy) => Some(format!("waits for the deploy to {}", deploy.environment)),
            StepKind::Approval(ApprovalStep { environment: Some(environment), .. }) => {
                Some(format!("waits for approval for {environment}"))
            }
            StepKind::Approval(approval) => Some(format!("waits for approval by {}", approval.from.join(", "))),
        }
    }
    /// It needs no container, no workspace and no turn: it waits for others.
    pub fn only_waits(&self) -> bool {
        !matches!(self, StepKind::Container)
    }
}

/// The `deploy` of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployStep {
    /// Which environment of `mainstay.yml`.
    pub environment: EnvironmentName,
    /// Images by service. Values may hold `${{ steps.NAME.KEY }}` and `${{ inputs.NAME }}`, filled in when it starts.
    pub images: BTreeMap<String, String>,
    /// Takes the images, and nothing else, from the release that serves in this environment.
    pub promote: Option<EnvironmentName>,
}

/// The `approval` of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalStep {
    /// The environment whose policy in `mainstay.yml` decides. Exactly one of this and `from` is there.
    pub environment: Option<EnvironmentName>,
    /// Names of people and groups: a gate of the pipeline itself, which whoever may change the pipeline may change.
    pub from: Vec<String>,
    /// How many of `from`.
    pub required: u32,
    /// Without an answer within this time it is rejected; the environment's own time when it names one.
    pub expires: Option<Span>,
    /// What people are told.
    pub message: Option<String>,
    /// What they may give along; these become the step's outputs.
    pub inputs: Vec<Input>,
}

/// When a failed attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retries {
    /// Attempts after the first; 0 to 10.
    pub max: u32,
    /// The kinds of end that are retried.
    pub on: Vec<RetryOn>,
}

/// A kind of failure that may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// The process exited with a code other than 0.
    Failure,
    /// The timeout passed.
    Timeout,
    /// The container was lost (engine restarted, container removed by somebody).
    LostContainer,
    /// The image could not be pulled.
    ImagePull,
}

/// A state of the run so far for which a step may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhenStatus {
    /// Nothing that counts has failed. The default.
    Success,
    /// Something that counts has failed.
    Failure,
    /// The run was cancelled.
    Cancelled,
    /// A deploy that this step needs was rolled back, which is a failure too. (`always` is all four.)
    RolledBack,
}

/// CPU, memory and process limits of one step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// In thousandths of a CPU.
    pub millicpus: Option<u64>,
    /// Memory, without swap.
    pub memory: Option<ByteSize>,
    /// How many processes and threads.
    pub pids: Option<u32>,
}
impl Eq for Resources {}
