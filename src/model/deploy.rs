//! Deploys as plain data: what is asked for, what a release holds, where a deploy stands, what a target shows.

use super::ids::{EnvironmentName, Oid, PipelineName, RepoName, RunId, StepName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why something is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeployKind {
    /// A step of a pipeline.
    Deploy,
    /// A release of another environment.
    Promote,
    /// An earlier release of this environment, by a person or because the one after it turned bad.
    Rollback,
    /// The release that should run already: what was changed by hand is put back.
    Repair,
}

/// Where a deploy stands. An environment has at most one deploy from `applying` to `rolling-back`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeployStatus {
    /// Another deploy of the environment is not over.
    Queued,
    /// People have to say yes.
    Waiting,
    /// The target is being brought to the release.
    Applying,
    /// It serves; the health rules have not all held yet.
    Checking,
    /// The health rules held, and are still being asked.
    Watching,
    /// It turned bad; the rollback is under way.
    RollingBack,
    /// Good: the watch ended with every rule holding.
    Verified,
    /// A person ended the watch early, or asked for none: it serves, and nobody says that it is good.
    Unverified,
    /// It turned bad, and the release before serves again.
    RolledBack,
    /// It turned bad, and nothing was put back: there is nothing to go back to, or the environment says not to.
    Failed,
    /// It turned bad, and going back failed too: a person has to act.
    RollbackFailed,
    /// It was not allowed to begin: rights, hold, freeze, approval.
    Refused,
    /// A newer one took its place before it began.
    Superseded,
    /// Somebody stopped it before it began.
    Cancelled,
}

impl DeployStatus {
    /// All, in the order in which a deploy may go through them.
    pub const ALL: [DeployStatus; 14] = [
        DeployStatus::Queued,
        DeployStatus::Waiting,
        DeployStatus::Applying,
        DeployStatus::Checking,
        DeployStatus::Watching,
        DeployStatus::RollingBack,
        DeployStatus::Verified,
        DeployStatus::Unverified,
        DeployStatus::RolledBack,
        DeployStatus::Failed,
        DeployStatus::RollbackFailed,
        DeployStatus::Refused,
        DeployStatus::Superseded,
        DeployStatus::Cancelled,
    ];

    /// The word used in the store and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            DeployStatus::Queued => "queued",
            DeployStatus::Waiting => "waiting",
            DeployStatus::Applying => "applying",
            DeployStatus::Checking => "checking",
            DeployStatus::Watching => "watching",
            DeployStatus::RollingBack => "rolling-back",
            DeployStatus::Verified => "verified",
            DeployStatus::Unverified => "unverified",
            DeployStatus::RolledBack => "rolled-back",
            DeployStatus::Failed => "failed",
            DeployStatus::RollbackFailed => "rollback-failed",
            DeployStatus::Refused => "refused",
            DeployStatus::Superseded => "superseded",
            DeployStatus::Cancelled => "cancelled",
        }
    }
    /// Nothing more will happen to it.
    pub fn is_final(self) -> bool {
        !matches!(
            self,
            DeployStatus::Queued
                | DeployStatus::Waiting
                | DeployStatus::Applying
                | DeployStatus::Checking
                | DeployStatus::Watching
                | DeployStatus::RollingBack
        )
    }
    /// It has the environment for itself, and the target may be in the middle of something.
    pub fn holds_environment(self) -> bool {
        matches!(
            self,
            DeployStatus::Applying | DeployStatus::Checking | DeployStatus::Watching | DeployStatus::RollingBack
        )
    }
}

impl std::fmt::Display for DeployStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for DeployStatus {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        DeployStatus::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no deploy status"))
    }
}

/// Where the code of a deploy comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Provenance {
    /// The watched repository.
    pub repo: RepoName,
    /// The full ref name that was pushed or named.
    pub git_ref: String,
    /// The commit.
    pub commit: Oid,
    /// The pipeline that asked.
    pub pipeline: PipelineName,
    /// The run that asked.
    pub run: RunId,
    /// Who pushed or triggered, as the run knows it; nobody may approve what they started themselves.
    pub actor: Option<String>,
}

/// What is asked of an environment. Stored before anybody is answered, never changed afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployRequest {
    /// Which environment.
    pub environment: EnvironmentName,
    /// Why.
    pub kind: DeployKind,
    /// Makes a repeated request the same request: `run/12/production/1`, `cli/…`.
    pub key: String,
    /// Where the code comes from. For a rollback and a repair: that of the release that is put back.
    pub provenance: Provenance,
    /// Everybody who pushed, triggered, repeated or promoted it: none of them may say yes to it.
    pub started_by: Vec<String>,
    /// The step of that run, when a step asks.
    pub step: Option<StepName>,
    /// Images by the name of the service they are for, each as a digest reference or an image id.
    pub images: BTreeMap<String, String>,
    /// The release of this environment to put back, for a rollback or a repair.
    pub release: Option<u64>,
    /// The environment and release whose bytes these are, for a promotion.
    pub promoted_from: Option<(EnvironmentName, u64)>,
    /// Who asked, for people; `mainstay` for the daemon itself.
    pub by: String,
    /// Serve without a watch: the deploy ends `unverified`.
    pub skip_watch: bool,
}

/// What was put into an environment, for good. Numbered per environment, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Release {
    /// The environment.
    pub environment: EnvironmentName,
    /// Its number there.
    pub number: u64,
    /// When it was made.
    pub at: Timestamp,
    /// Where its code comes from.
    pub provenance: Provenance,
    /// The images, by service, as digests or image ids.
    pub images: BTreeMap<String, String>,
    /// The kind of target it was rendered for: `swarm`, `compose`, `command`.
    pub target: String,
    /// The rendered configuration: the target's file with the images put in, exactly as handed to the target.
    pub rendered: String,
    /// SHA-256 of `rendered`, in hex.
    pub config_hash: String,
    /// Replicas by service, as far as the target has such a thing.
    pub replicas: BTreeMap<String, u64>,
    /// Names of the variables and secrets that went in, each with a short digest of its value.
    pub secrets: BTreeMap<String, String>,
    /// The version of the database schema when it was made, if the environment says how to ask.
    pub schema: Option<String>,
    /// The recovery point right before it, as `mainstay:production/13: shop-db at 0/16B3748`; `none` without a source
    /// that could be marked.
    pub recovery_point: String,
    /// The environment and release it was promoted from.
    pub promoted_from: Option<(EnvironmentName, u64)>,
}

/// What a target shows now: compared with what it showed when a release was verified, this is drift.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Observation {
    /// Settings that should stay as they are, such as `api.image`, `api.replicas`, `api.env.LEVEL`. Values that are
    /// secrets stand here as short digests.
    pub items: BTreeMap<String, String>,
    /// What runs.
    pub instances: Vec<Instance>,
}

/// One container, task or process of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Instance {
    /// The service it belongs to.
    pub service: String,
    /// Its name or id in the target.
    pub name: String,
    /// The image it was made from, as the target says it.
    pub image: String,
    /// It runs and its own health check, if any, says it is well.
    pub healthy: bool,
    /// How often it was started anew, as far as the target knows.
    pub restarts: u64,
    /// The target's word for its state, and the reason when it is not well.
    pub state: String,
}

/// One line of a drift: a setting that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Drift {
    /// Which setting.
    pub item: String,
    /// What it should be; `None` when it should not be there.
    pub wanted: Option<String>,
    /// What it is; `None` when it is not there.
    pub found: Option<String>,
}

impl Observation {
    /// The most that any one container was started anew.
    pub fn restarts(&self) -> u64 {
        self.instances.iter().map(|instance| instance.restarts).max().unwrap_or(0)
    }

    /// What differs from `wanted` here, by setting. Instances come and go and are not compared.
    pub fn drift_from(&self, wanted: &Observation) -> Vec<Drift> {
        let names: std::collections::BTreeSet<_> = wanted.items.keys().chain(self.items.keys()).collect();
        names
            .into_iter()
            .filter(|name| wanted.items.get(*name) != self.items.get(*name))
            .map(|name| Drift {
                item: name.clone(),
                wanted: wanted.items.get(name).cloned(),
                found: self.items.get(name).cloned(),
            })
            .collect()
    }
}

/// The answer of one health rule at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Probe {
    /// Which rule, counted from 0 in the order of `health` in `mainstay.yml`.
    pub rule: usize,
    /// When it was asked.
    pub at: Timestamp,
    /// It held.
    pub good: bool,
    /// How long the answer took, in microseconds.
    pub took_us: u64,
    /// In words: what was seen, such as `200 in 3 ms` or `connection refused`.
    pub said: String,
}
