//! Everything that a person or another system may be told.
//!
//! Enters: a [`Message`], made where its cause is stored; it is kept as JSON in the outbox, so a variant or a field that
//! was ever written must stay readable. Leaves: the words of it, from `wording`.

mod wording;

use crate::model::approval::{ApprovalState, Channel, Subject, Verdict};
use crate::model::deploy::{DeployStatus, Drift};
use crate::model::source_view::ConcernKind;
use crate::model::{ApprovalId, DeployId, EnvironmentName, PersonName, RunId, SourceName};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant, reason = "a handful live at once, each on its way to or from JSON")]
pub enum Message {
    /// Somebody has to say yes or no. To a person with their own link, or to a webhook without one.
    ApprovalAsked {
        /// Which request.
        approval: ApprovalId,
        /// The environment whose policy asks.
        environment: Option<EnvironmentName>,
        /// Whom it is for; nobody in particular when it goes to a webhook.
        person: Option<PersonName>,
        /// What it is about.
        subject: Subject,
        /// That person's own link. Never sent to a webhook.
        link: Option<String>,
        /// How many have to say yes.
        required: u32,
        /// Without an answer it is rejected then.
        expires_at: Timestamp,
        /// The run that asks; its messages make one thread.
        run: Option<RunId>,
        /// Where the run is shown.
        run_url: Option<String>,
        /// The command that says yes: `mainstay approve 3`.
        how_by_cli: String,
    },
    /// The six digits that make sure that whoever opened the link reads this mailbox.
    ApprovalCode {
        /// Which request.
        approval: ApprovalId,
        /// Whom it is for.
        person: PersonName,
        /// The digits.
        code: String,
        /// How long they are good for.
        minutes: u32,
        /// The run that asks.
        run: Option<RunId>,
    },
    /// Somebody said yes or no, or took it back.
    ApprovalDecided {
        /// Which request.
        approval: ApprovalId,
        /// The environment whose policy asks.
        environment: Option<EnvironmentName>,
        /// What it is about, in a line.
        title: String,
        /// Who said it.
        person: PersonName,
        /// What they said.
        verdict: Verdict,
        /// How it came in.
        channel: Channel,
        /// They took it back.
        #[serde(default)]
        withdrawn: bool,
        /// How it stands now: `1 of 2`.
        standing: String,
        /// What they said along with it.
        #[serde(default)]
        message: Option<String>,
        /// How its giver takes it back on the command line, as long as that can be done.
        withdraw_hint: Option<String>,
        /// The giver's own link, to take it back or to answer anew. Never sent to anybody else.
        #[serde(default)]
        link: Option<String>,
        /// The run that asks.
        run: Option<RunId>,
        /// Where the run is shown.
        run_url: Option<String>,
    },
    /// A request is over.
    ApprovalEnded {
        /// Which request.
        approval: ApprovalId,
        /// The environment whose policy asked.
        environment: Option<EnvironmentName>,
        /// What it was about, in a line.
        title: String,
        /// How it ended.
        state: ApprovalState,
        /// Why.
        note: Option<String>,
        /// The run that asked.
        run: Option<RunId>,
        /// Where the run is shown.
        run_url: Option<String>,
    },
    /// A deploy got somewhere: it is verified, was rolled back, failed.
    Deploy {
        /// Where.
        environment: EnvironmentName,
        /// Which deploy.
        deploy: DeployId,
        /// The release it put there.
        release: Option<u64>,
        /// Where it stands.
        status: DeployStatus,
        /// What it is, in a few words that a verb can follow: `shop 1a2b3c4`.
        title: String,
        /// Why it stands there: the health rule that failed, what it saw.
        why: Option<String>,
        /// What was taken back, and what serves in its place: by itself, or because a person asked.
        #[serde(default)]
        back: Option<Back>,
        /// What to do about it, or how to undo it.
        way_back: Option<String>,
        /// The run that asked for it.
        run: Option<RunId>,
        /// Where the run is shown.
        run_url: Option<String>,
    },
    /// What was rolled back is to be taken back in its repository: by a pull request, or by a person's hand.
    Revert {
        /// Where it was rolled back.
        environment: EnvironmentName,
        /// The deploy that was.
        deploy: DeployId,
        /// Its release.
        release: u64,
        /// What it is, in a few words: `shop 1a2b3c4`.
        title: String,
        /// The branch that takes it back.
        branch: String,
        /// The branch it is for.
        base: String,
        /// The pull request.
        url: Option<String>,
        /// Why there is none.
        why: Option<String>,
        /// There was nothing to take back.
        #[serde(default)]
        needless: bool,
        /// The run that brought it.
        run: Option<RunId>,
    },
    /// What runs is not what should.
    Drift {
        /// Where.
        environment: EnvironmentName,
        /// The release that should run.
        release: u64,
        /// What differs.
        differences: Vec<Drift>,
        /// What was done about it.
        stage: DriftStage,
        /// Why it could not be repaired, when it could not.
        why: Option<String>,
    },
    /// A source of backups is in trouble, or all is well with it again.
    Source {
        /// Which.
        source: SourceName,
        /// What it is about: the newest trouble, or the one that ended last.
        concern: ConcernKind,
        /// What was found.
        words: String,
        /// Since when.
        since: Timestamp,
        /// It is over, and nothing else is wrong.
        over: bool,
    },
}

/// A release that was taken back, and the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    /// The release that is gone.
    pub bad: u64,
    /// Its repository and commit: `shop 5d6e7f8`.
    pub bad_what: String,
    /// The release that was put back.
    pub to: u64,
    /// Its repository and commit.
    pub to_what: String,
}

/// What was done about a drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftStage {
    /// Nothing: the environment does not heal itself.
    Found,
    /// The release was put back.
    Repaired,
    /// The release could not be put back.
    RepairFailed,
}

impl Message {
    /// For JSON columns.
    ///
    /// # Errors
    /// None that happen: everything in a message has a JSON form.
    pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::to_value(self)
    }

    /// What messages of one thread share: they are shown together.
    pub fn thread(&self) -> String {
        match self {
            Message::ApprovalAsked { run: Some(run), .. }
            | Message::ApprovalCode { run: Some(run), .. }
            | Message::ApprovalDecided { run: Some(run), .. }
            | Message::ApprovalEnded { run: Some(run), .. }
            | Message::Deploy { run: Some(run), .. }
            | Message::Revert { run: Some(run), .. } => format!("run-{run}"),
            Message::ApprovalAsked { approval, .. }
            | Message::ApprovalCode { approval, .. }
            | Message::ApprovalDecided { approval, .. }
            | Message::ApprovalEnded { approval, .. } => format!("approval-{approval}"),
            Message::Deploy { deploy, .. } | Message::Revert { deploy, .. } => format!("deploy-{deploy}"),
            Message::Drift { environment, release, .. } => format!("drift-{environment}-{release}"),
            Message::Source { source, .. } => format!("source-{source}"),
        }
    }

    /// After this moment nobody has any use for it, and it is not sent.
    pub fn useless_after(&self, written: Timestamp) -> Option<Timestamp> {
        match self {
            Message::ApprovalCode { minutes, .. } => {
                written.checked_add(SignedDuration::from_mins(i64::from(*minutes))).ok()
            }
            Message::ApprovalAsked { expires_at, .. } => Some(*expires_at),
            _ => None,
        }
    }

    /// Only its reader may see it: it never goes to a webhook.
    pub fn is_private(&self) -> bool {
        matches!(self, Message::ApprovalCode { .. })
    }

    /// The same without what only its reader may know: what a webhook is told, and what is kept once it is sent.
    pub fn without_secrets(mut self) -> Message {
        match &mut self {
            Message::ApprovalAsked { link, .. } | Message::ApprovalDecided { link, .. } => *link = None,
            Message::ApprovalCode { code, .. } => code.clear(),
            _ => {}
        }
        self
    }
}

#[cfg(test)]
mod tests;
