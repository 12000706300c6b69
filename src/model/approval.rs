//! Approvals as plain data: what people are asked, and what they say.

use super::ids::{ApprovalId, DeployId, EnvironmentName, PersonName, RunId, StepName};
use super::input::Input;
use super::quantity::Span;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A way in which a decision may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// A link in a mail.
    Mail,
    /// A signed message from another system.
    Webhook,
    /// `mainstay approve`, or the API with a personal token.
    Cli,
}

/// Who has to say yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalPolicy {
    /// Names of people and groups of `mainstay.yml`.
    pub from: Vec<String>,
    /// How many of them; at least 1.
    pub required: u32,
    /// Without an answer within this time it is rejected.
    pub expires: Span,
    /// The ways that count.
    pub by: Vec<Channel>,
    /// The author, the pusher and whoever triggered count too.
    pub allow_self: bool,
    /// A pusher who is nobody in `people` does not make approval impossible.
    pub allow_unknown_pusher: bool,
    /// What becomes of a request when a newer run gets as far.
    #[serde(default)]
    pub newer: Newer,
}

/// What a newer run does to an older one that waits for the same yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Newer {
    /// It takes its place: the older one is not asked about any more.
    #[default]
    Supersede,
    /// It waits: people are asked about it when the older one is decided and has begun, or never will.
    Wait,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ApprovalState {
    /// Waiting for people.
    Open,
    /// Enough people said yes; it may be withdrawn until it is used.
    Granted,
    /// What it was given for has begun.
    Used,
    /// Somebody said no.
    Rejected,
    /// Nobody decided in time.
    Expired,
    /// What it was asked for has changed, or is no longer wanted.
    Void,
}

impl ApprovalState {
    /// The word used in the store and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            ApprovalState::Open => "open",
            ApprovalState::Granted => "granted",
            ApprovalState::Used => "used",
            ApprovalState::Rejected => "rejected",
            ApprovalState::Expired => "expired",
            ApprovalState::Void => "void",
        }
    }
    /// Nothing more can be said about it.
    pub fn is_final(self) -> bool {
        !matches!(self, ApprovalState::Open | ApprovalState::Granted)
    }
}

impl std::fmt::Display for ApprovalState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for ApprovalState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        use ApprovalState::{Expired, Granted, Open, Rejected, Used, Void};
        let all = [Open, Granted, Used, Rejected, Expired, Void];
        all.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("`{text}` is no state of an approval"))
    }
}

/// What a person says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Yes.
    Approve,
    /// No; one is enough.
    Reject,
}

impl Verdict {
    /// The word used in the store and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Approve => "approve",
            Verdict::Reject => "reject",
        }
    }
}

/// Somebody who may not decide, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Excluded {
    /// The person.
    pub person: PersonName,
    /// `author of 1a2b3c4`, `pushed it`, `triggered it`.
    pub why: String,
}

/// What people need in order to decide. Everything in it is text for showing; nothing is read back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Subject {
    /// One line: `deploy shop 1a2b3c4 to production`.
    pub title: String,
    /// Stands above everything else when it is there: that the change still contains a revision that was rolled back.
    pub warning: Option<String>,
    /// The repository.
    pub repo: String,
    /// The branch or tag.
    pub git_ref: String,
    /// The commit.
    pub commit: String,
    /// Commits since the environment's last release, newest first: `1a2b3c4 Ana: subject`.
    pub commits: Vec<String>,
    /// Images by service.
    pub images: BTreeMap<String, String>,
    /// What changes in the rendered configuration, as a unified diff; empty when nothing does.
    pub config_diff: String,
    /// Steps of the run so far and how they ended.
    pub results: Vec<(String, String)>,
    /// How the environment before this one is doing, if there is one.
    pub staging: Option<String>,
    /// How to undo it.
    pub way_back: String,
    /// What the pipeline says about it.
    pub message: Option<String>,
}

/// A request for approval, as it is made. Never changed afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRequest {
    /// The same key is the same request: `run/12/go-live` or `deploy/7`, and the binding.
    pub key: String,
    /// The environment whose policy it is, if it is one's.
    pub environment: Option<EnvironmentName>,
    /// The run.
    pub run: Option<RunId>,
    /// The run's step that waits.
    pub step: Option<StepName>,
    /// The deploy that waits.
    pub deploy: Option<DeployId>,
    /// SHA-256, in hex, over everything that the answer is about: run, environment, commit, images, configuration. An
    /// answer counts for nothing else.
    pub binding: String,
    /// For showing.
    pub subject: Subject,
    /// Who has to say yes. Who is in a group is looked up when it counts, not here.
    pub policy: ApprovalPolicy,
    /// Who may not.
    pub excluded: Vec<Excluded>,
    /// The pusher, when nobody in `people` has that name: nobody can be sure not to approve their own change.
    pub unknown_pusher: Option<String>,
    /// What may be given along with a yes.
    pub inputs: Vec<Input>,
}

/// A person's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Decision {
    /// Who.
    pub person: PersonName,
    /// What they said.
    pub verdict: Verdict,
    /// How it came in.
    pub channel: Channel,
    /// What they gave along.
    pub inputs: BTreeMap<String, String>,
    /// What they said along with it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
    /// When.
    pub at: Timestamp,
    /// When they took it back.
    pub withdrawn_at: Option<Timestamp>,
}

/// A request as it stands, for the command line and the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ApprovalView {
    /// Its number.
    pub id: ApprovalId,
    /// The environment whose policy it is.
    pub environment: Option<EnvironmentName>,
    /// The run.
    pub run: Option<RunId>,
    /// The step.
    pub step: Option<StepName>,
    /// Where it stands.
    pub state: ApprovalState,
    /// The deploy that waits.
    pub deploy: Option<DeployId>,
    /// For showing.
    pub subject: Subject,
    /// How many have to say yes.
    pub required: u32,
    /// Who may, as things stand now.
    pub eligible: Vec<PersonName>,
    /// Whose yes counts so far.
    pub counted: Vec<PersonName>,
    /// Who may not, and why.
    pub excluded: Vec<Excluded>,
    /// What may be given along with a yes.
    pub inputs: Vec<Input>,
    /// What was said so far, also what was taken back.
    pub decisions: Vec<Decision>,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When it is rejected by itself.
    pub expires_at: Timestamp,
    /// Why nobody can approve it, or why it ended as it did, in words.
    pub note: Option<String>,
}
