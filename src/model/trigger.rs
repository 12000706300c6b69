//! What made a run happen: one typed value that needs no further doubt.

use super::ids::{Oid, PipelineName, RepoName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The kind of event, as pipelines name it under `on:` and steps see it in `CI_RUN_EVENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A branch moved or was created.
    Push,
    /// A tag was created or moved.
    Tag,
    /// A time in the pipeline's `on.schedule` came.
    Schedule,
    /// Somebody ran `mainstay trigger` or `mainstay run`.
    Manual,
}

impl EventKind {
    /// The word used in files, in `CI_RUN_EVENT` and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Push => "push",
            EventKind::Tag => "tag",
            EventKind::Schedule => "schedule",
            EventKind::Manual => "manual",
        }
    }
}

/// Tags below this are Mainstay's own marks: recorded when they appear, and never run.
pub const OWN_TAGS: &str = "refs/tags/mainstay/";

/// Branches that Mainstay makes are below this. What it pushed there is recorded and never run; what people push there is.
pub const OWN_BRANCHES: &str = "refs/heads/mainstay/";

/// Who told us: each feeder of the one inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Feeder {
    /// The post-receive hook, over the socket or its spool.
    Hook,
    /// A forge's webhook.
    Webhook,
    /// Our own look at the refs, on a timer and at start.
    Poll,
    /// The pipeline's own schedule.
    Schedule,
    /// A person.
    Manual,
}

impl Feeder {
    /// The word used in the store and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            Feeder::Hook => "hook",
            Feeder::Webhook => "webhook",
            Feeder::Poll => "poll",
            Feeder::Schedule => "schedule",
            Feeder::Manual => "manual",
        }
    }
}

/// A commit, as much of it as runs and people need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitInfo {
    /// Its id.
    pub sha: Oid,
    /// The whole message, cut at 16 KiB.
    pub message: String,
    /// `Name <mail>` of the author.
    pub author: String,
    /// When it was authored.
    pub authored_at: Timestamp,
}

impl CommitInfo {
    /// The first line of the message.
    pub fn title(&self) -> &str {
        self.message.lines().next().unwrap_or("")
    }
}

/// One thing that happened and may start runs. The commit is pinned: the branch is not read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerEvent {
    /// The watched repository.
    pub repo: RepoName,
    /// What happened.
    pub kind: EventKind,
    /// The full ref name, such as `refs/heads/main`.
    pub git_ref: String,
    /// The commit to run.
    pub commit: CommitInfo,
    /// What the ref pointed at before; zero when it was created, `None` when it is not about a change.
    pub before: Option<Oid>,
    /// Who pushed or triggered, as far as the feeder knows.
    pub actor: Option<String>,
    /// Only this pipeline is meant (schedule, `trigger --pipeline`); `None` means every pipeline that matches.
    pub pipeline: Option<PipelineName>,
    /// Typed inputs of a manual event, as text.
    pub inputs: BTreeMap<String, String>,
    /// When it was accepted.
    pub at: Timestamp,
}

impl TriggerEvent {
    /// The branch name, when the ref is a branch.
    pub fn branch(&self) -> Option<&str> {
        self.git_ref.strip_prefix("refs/heads/")
    }
    /// The tag name, when the ref is a tag.
    pub fn tag(&self) -> Option<&str> {
        self.git_ref.strip_prefix("refs/tags/")
    }
}
