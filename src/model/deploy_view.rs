//! What the API and the command line say about environments, releases and deploys.

use super::deploy::{DeployKind, DeployStatus, Drift, Instance, Probe, Release};
use super::ids::{ApprovalId, DeployId, EnvironmentName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An environment as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EnvironmentView {
    /// Its name.
    pub name: EnvironmentName,
    /// The kind of its target.
    pub target: String,
    /// In a word: `empty`, `verified`, `unverified`, `drifted`, `held`, `attention`, or the status of the deploy under way.
    pub state: String,
    /// The release that should serve.
    pub current: Option<ReleaseView>,
    /// The last release that was verified.
    pub verified: Option<u64>,
    /// Deploys that are not over, the oldest first.
    pub deploys: Vec<DeployView>,
    /// What is held.
    pub holds: Vec<HoldView>,
    /// Why a person has to act.
    pub attention: Option<String>,
    /// What runs otherwise than it should, as of `looked_at`.
    pub drift: Vec<Drift>,
    /// When what runs was last compared with what should.
    pub looked_at: Option<Timestamp>,
    /// What runs now, when it was asked for and the target answers.
    pub instances: Vec<Instance>,
    /// A freeze lasts until then.
    pub frozen_until: Option<Timestamp>,
    /// Who acts on it now, for which deploy, and until when unless renewed.
    pub lease: Option<LeaseView>,
    /// The health rules in words.
    pub health: Vec<String>,
    /// The last deploy that began and is over, when one environment is asked for.
    #[serde(default)]
    pub last: Option<DeployView>,
}

/// Who acts on an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LeaseView {
    /// The process.
    pub owner: String,
    /// For which deploy.
    pub deploy: DeployId,
    /// Until when, unless it is renewed.
    pub until: Timestamp,
}

/// A hold in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HoldView {
    /// The held commit; `None`: the whole environment.
    pub commit: Option<String>,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
    /// Only `release-hold` lifts it, or a revert; nothing that still contains it may be tried again.
    pub strict: bool,
    /// The pull request that takes it back, where the environment asks for one.
    #[serde(default)]
    pub revert: Option<RevertView>,
}

/// A pull request that takes back what was rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RevertView {
    /// `waiting`, `open` (it was opened), `needless` (there was nothing to take back), or `given-up`.
    pub state: String,
    /// The branch that it is from.
    pub branch: String,
    /// Where it is.
    pub url: Option<String>,
    /// Why there is none, or not yet.
    pub why: Option<String>,
}

/// A release and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ReleaseView {
    /// The release.
    pub release: Release,
    /// The deploy that made it.
    pub deploy: DeployId,
    /// Where that deploy stands, or how it ended. A release may be verified later, by a repair.
    pub status: DeployStatus,
    /// When it was verified.
    pub verified_at: Option<Timestamp>,
    /// The commit that tells of it in the environment's Git ref, and where that is.
    pub recorded: Option<String>,
}

/// A deploy as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DeployView {
    /// Its number.
    pub id: DeployId,
    /// Where.
    pub environment: EnvironmentName,
    /// Why.
    pub kind: DeployKind,
    /// Where it stands.
    pub status: DeployStatus,
    /// Its release.
    pub release: Option<u64>,
    /// The release it goes back to.
    pub fallback: Option<u64>,
    /// Repository and commit: `shop 1a2b3c4`.
    pub what: String,
    /// Who asked.
    pub by: String,
    /// The request that people are asked with.
    pub approval: Option<ApprovalId>,
    /// Why it stands there, in words.
    pub why: Option<String>,
    /// A person asked for the rollback, or it is one.
    pub by_request: bool,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When the target served it.
    pub applied_at: Option<Timestamp>,
    /// When it turned bad.
    pub bad_at: Option<Timestamp>,
    /// When the release before served again.
    pub put_back_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The pull request that takes it back, where it was rolled back and the environment asks for one.
    #[serde(default)]
    pub revert: Option<RevertView>,
    /// The newest answers of the health rules, when they were asked for.
    pub probes: Vec<Probe>,
    /// What each health rule said last, when one environment is asked for.
    #[serde(default)]
    pub health: Vec<RuleView>,
}

/// A health rule, and what it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RuleView {
    /// The rule in words.
    pub rule: String,
    /// Its last answer.
    pub last: Probe,
}

/// What is asked with `promote`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The environment whose release it is; the one that `promote-from` names when it is not said.
    pub from: Option<EnvironmentName>,
    /// Which release; the last verified one when it is not said.
    pub release: Option<u64>,
    /// Do not wait for the end of the watch before it, and serve without one.
    #[serde(default)]
    pub now: bool,
}

/// What is asked with `rollback`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Which release to go back to; the last verified one when it is not said.
    pub to: Option<u64>,
}

/// What is asked with `hold`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// Why.
    pub reason: Option<String>,
}

/// The deploy that a request became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DeployStarted {
    /// Its number.
    pub deploy: DeployId,
}

/// What `release-hold` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HoldReleased {
    /// So many holds were in force.
    pub lifted: usize,
}
