//! What the HTTP API says, shared by the server (`web`) and the command line (`cli`). Field names are a public
//! contract: `--json` prints these documents as they are.

use super::approval::ApprovalState;
use super::ids::{ApprovalId, Oid, PersonName, PipelineName, RepoName, RunId, StepName};
use super::log::Stream;
use super::outcome::{AttemptEnd, RunStatus, StepOutcome};
use super::plan::StepKind;
use super::trigger::{EventKind, Feeder};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One run in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RunSummary {
    /// Its number.
    pub id: RunId,
    /// The watched repository.
    pub repo: RepoName,
    /// The pipeline.
    pub pipeline: PipelineName,
    /// Why it exists.
    pub event: EventKind,
    /// The full ref name.
    pub git_ref: String,
    /// The commit.
    pub commit: Oid,
    /// First line of the commit message.
    pub title: String,
    /// Author of the commit.
    pub author: String,
    /// Who pushed or triggered, as far as whoever told about it knew; of a repeated run it is who repeated it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<String>,
    /// Where it stands.
    pub status: RunStatus,
    /// Why it could not be carried out, when it could not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When driving began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The run that this one repeats.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_of: Option<RunId>,
}

/// One run, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RunDetail {
    /// What lists show too.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// Its steps, in plan order.
    pub steps: Vec<StepView>,
    /// Inputs of a manual run.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub inputs: BTreeMap<String, String>,
    /// It only waits for people or deploys: it holds nothing but its workspace, and no place under the limits.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub parked: bool,
    /// The pipeline's file in the repository; absent when the run could not be planned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
}

/// Which runs a list shows, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunFilter {
    /// Only runs of this repository.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub repo: Option<RepoName>,
    /// Only runs that stand there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<RunStatus>,
    /// Only runs with a smaller number: the next page.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<RunId>,
    /// At most so many; the server never gives more than [`RunFilter::LIMIT_MAX`].
    #[serde(default = "RunFilter::limit_default")]
    pub limit: u32,
}

impl RunFilter {
    /// The most runs in one answer: about 300 KiB of JSON.
    pub const LIMIT_MAX: u32 = 500;
    /// A screen full.
    pub const fn limit_default() -> u32 {
        20
    }
}

impl Default for RunFilter {
    fn default() -> Self {
        RunFilter { repo: None, status: None, before: None, limit: Self::limit_default() }
    }
}

/// How a step stands, for showing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Waits for what it needs.
    Waiting,
    /// Could start, and waits for its turn under the limits.
    Ready,
    /// Runs.
    Running,
    /// See the outcome.
    Done,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StepView {
    /// Its name.
    pub name: StepName,
    /// Its image; empty when it is no container.
    pub image: String,
    /// What it does, when it is no container.
    #[serde(skip_serializing_if = "StepKind::is_container", default)]
    pub kind: StepKind,
    /// What it needs.
    pub needs: Vec<StepName>,
    /// Where it stands.
    pub state: StepState,
    /// How it ended, once it has.
    pub outcome: Option<StepOutcome>,
    /// Why it was skipped or failed, or what it waits for, in words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Every attempt so far.
    pub attempts: Vec<AttemptView>,
    /// What it wrote to `$MAINSTAY_OUTPUT`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub outputs: BTreeMap<String, String>,
}

impl StepView {
    /// Whether its attempts write a log: only containers do.
    pub fn has_log(&self) -> bool {
        self.kind.is_container()
    }
}

/// One attempt of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AttemptView {
    /// From 1.
    pub attempt: u32,
    /// When its start was recorded.
    pub started_at: Timestamp,
    /// When its process began, by the helper's mark.
    pub began_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub end: Option<AttemptEnd>,
}

/// One line of a log, as the API streams it: JSON lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LogLineView {
    /// The step.
    pub step: StepName,
    /// The attempt.
    pub attempt: u32,
    /// Its number in that log, from 1.
    pub n: u64,
    /// When, by the engine's clock.
    pub at: Timestamp,
    /// Which stream.
    pub stream: Stream,
    /// The text, where the bytes are UTF-8; else with U+FFFD in place of what is not.
    pub text: String,
    /// It goes on with the line before it in its stream: a line too long to be kept in one piece.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub continues: bool,
}

impl LogLineView {
    /// A stored line of that attempt, as it is shown.
    pub fn new(id: &super::AttemptId, line: super::log::LogLine) -> Self {
        LogLineView {
            step: id.step.clone(),
            attempt: id.attempt,
            n: line.number,
            at: Timestamp::from_nanosecond(i128::from(line.at_nanos)).unwrap_or(Timestamp::UNIX_EPOCH),
            stream: line.stream,
            text: String::from_utf8(line.bytes)
                .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
            continues: line.continues,
        }
    }
}

/// What `POST /api/v1/trigger` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TriggerRequest {
    /// The watched repository.
    pub repo: RepoName,
    /// A branch, tag, full ref or commit id; the default branch when absent.
    #[serde(rename = "ref", default)]
    pub git_ref: Option<String>,
    /// Only this pipeline; otherwise every one with `on.manual`.
    #[serde(default)]
    pub pipeline: Option<PipelineName>,
    /// Inputs, checked against `on.manual.inputs`.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
}

/// What trigger, retry and inbox replay answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Started {
    /// The runs that were stored.
    pub runs: Vec<RunId>,
    /// Why pipelines did not run, in words, when some did not.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}

/// What `POST /api/v1/runs/{id}/retry` takes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryRequest {
    /// Begin at this step, keeping what came before; the whole run when absent.
    #[serde(default)]
    pub from: Option<StepName>,
}

/// One accepted or refused report of the world, as `mainstay inbox` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InboxView {
    /// Its number.
    pub id: u64,
    /// The repository.
    pub repo: RepoName,
    /// The ref.
    pub git_ref: String,
    /// From.
    pub old: Oid,
    /// To.
    pub new: Oid,
    /// What kind of event.
    pub event: EventKind,
    /// Which feeders reported it.
    pub feeders: Vec<Feeder>,
    /// When it was accepted.
    pub at: Timestamp,
    /// `pending`, `done`, or `dropped`.
    pub state: String,
    /// Why nothing runs, or what was noticed.
    pub reason: Option<String>,
    /// Runs it started.
    pub runs: Vec<RunId>,
}

/// What `GET /api/v1/status` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DaemonStatus {
    /// Version of the daemon.
    pub version: String,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// Name and version of the engine, or why it does not answer.
    pub runtime: String,
    /// Whether the engine answers.
    pub runtime_ok: bool,
    /// How many repositories it watches.
    pub repos: usize,
    /// Runs by status that are not over.
    pub queued: usize,
    /// Runs being driven.
    pub running: usize,
    /// Accepted reports that are not looked at yet.
    #[serde(default)]
    pub inbox_pending: usize,
    /// Runs that are over, by the word of their status.
    #[serde(default)]
    pub finished: BTreeMap<String, u64>,
    /// Messages to people and other systems that are not with them.
    #[serde(default)]
    pub messages: MessageFigures,
    /// Sources of backups, and how each stands.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sources: Vec<super::source_view::SourceView>,
    /// Why the daemon cannot carry out runs now, a sentence each; empty when it can.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub not_ready: Vec<String>,
}

/// Messages that are not where they should be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MessageFigures {
    /// Not sent yet.
    pub waiting: u64,
    /// The oldest of those that failed at least once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stuck: Option<StuckMessage>,
    /// Given up in the last thirty days.
    pub given_up: u64,
    /// The one given up last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_given_up: Option<StuckMessage>,
}

/// A message that was not sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StuckMessage {
    /// `mail`, or the name of a webhook.
    pub channel: String,
    /// A person, for mail; empty for a webhook.
    pub recipient: String,
    /// When it was written.
    pub since: Timestamp,
    /// What went wrong last.
    pub error: String,
}

/// What `POST /hooks/{repo}` answers once the report is durable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HookAccepted {
    /// Numbers of the inbox rows that the report made or joined.
    pub inbox: Vec<u64>,
    /// What was not taken, and why.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}

/// What `POST /api/v1/reload` answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Reloaded {
    /// What is different now, a sentence each; empty when the file says what was already in force.
    pub changes: Vec<String>,
}

/// What `POST /api/v1/runs/{id}/cancel` answers: the wish is durable, the run ends soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Cancelling {
    /// The run.
    pub run: RunId,
}

/// What `POST /api/v1/tokens` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Whose it will be.
    pub person: PersonName,
    /// What it is for, at most 100 characters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// From then on it is not taken; absent: until it is revoked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_at: Option<Timestamp>,
}

/// Whether a personal token is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TokenState {
    /// It is.
    InForce,
    /// Its time is over.
    Expired,
    /// Somebody ended it.
    Revoked,
    /// Its person is not in `mainstay.yml`.
    PersonGone,
}

impl TokenState {
    /// The word on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            TokenState::InForce => "in force",
            TokenState::Expired => "expired",
            TokenState::Revoked => "revoked",
            TokenState::PersonGone => "person gone",
        }
    }
}

/// A personal token, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TokenView {
    /// Its number.
    pub id: u64,
    /// Whose it is.
    pub person: PersonName,
    /// What it is for.
    pub name: Option<String>,
    /// Whether it is taken.
    pub state: TokenState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// From then on it is not taken.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What `POST /api/v1/tokens` answers: the only time that the token's text is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TokenCreated {
    /// The text to be sent as `Authorization: Bearer …`.
    pub token: String,
    /// What is stored of it.
    #[serde(flatten)]
    pub stored: TokenView,
}

impl std::fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCreated").field("stored", &self.stored).finish_non_exhaustive()
    }
}

/// What `POST /api/v1/approvals/{id}/approve` and `…/reject` take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionRequest {
    /// What is given along with a yes, checked against the request's inputs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub inputs: BTreeMap<String, String>,
    /// What is said along with it, at most 1000 characters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
}

/// What `POST /webhooks/approvals/{name}` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DecisionHeard {
    /// The request.
    pub approval: ApprovalId,
    /// Where it stands now.
    pub state: ApprovalState,
    /// The message had been taken before, and changed nothing now.
    pub again: bool,
}

/// Which entries of the audit a list shows, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditFilter {
    /// Only entries with a smaller number: the next page.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<u64>,
    /// At most so many; the server never gives more than [`RunFilter::LIMIT_MAX`].
    #[serde(default = "RunFilter::limit_default")]
    pub limit: u32,
}

/// One entry of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AuditEntry {
    /// Its number, from 1 without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who did it.
    pub who: String,
    /// Whether that is a person of `mainstay.yml`; else it is a user of the machine, the token file, or a signal.
    pub person: bool,
    /// How it is known who: `socket`, `token`, `shared-token`, `signal`, `mail`, `webhook` or `daemon`.
    pub way: String,
    /// What was done: `trigger`, `cancel`, `approve`, …; the user guide lists them.
    pub act: String,
    /// To what.
    pub subject: String,
    /// What else is to be known.
    pub details: serde_json::Value,
    /// The hash of the entry before; zeros in the first.
    pub previous: String,
    /// SHA-256 over this entry, `previous` included.
    pub hash: String,
}

/// What `GET /api/v1/audit/verify` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AuditVerdict {
    /// Good entries, from the first on.
    pub entries: u64,
    /// The hash of the last good entry; worth noting elsewhere when nothing is broken.
    pub newest: Option<String>,
    /// Which good entry has the hash that was asked for, if one has.
    pub expected_at: Option<u64>,
    /// The first entry that does not fit.
    pub broken: Option<AuditBreak>,
}

/// Where the chain of the audit breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AuditBreak {
    /// The number that the entry should have.
    pub seq: u64,
    /// What is wrong with it, in words.
    pub why: String,
}

/// The body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ApiError {
    /// What is wrong, in a sentence.
    pub error: String,
    /// What to try.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hints: Vec<String>,
}
