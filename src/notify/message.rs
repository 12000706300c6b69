//! Everything that a person or another system may be told, and every sentence of it.
//!
//! Enters: a [`Message`], made where its cause is stored; it is kept as JSON in the outbox, so a variant or a field that
//! was ever written must stay readable. Leaves: words, which `letter` makes into a mail and `post` into what chat
//! systems take.

use super::words::{Action, Body, Tone, Words, block, line};
use crate::model::approval::{ApprovalState, Channel, Subject, Verdict};
use crate::model::deploy::{DeployStatus, Drift};
use crate::model::source_view::ConcernKind;
use crate::model::{ApprovalId, DeployId, EnvironmentName, PersonName, RunId, SourceName};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Commits in a message: a screen of a phone; the page behind the link has them all.
const COMMITS_MAX: usize = 12;
/// Steps, and images; most pipelines and stacks have fewer than ten.
const PAIRS_MAX: usize = 40;
/// Changed settings in a message, for the same reason.
const DRIFT_MAX: usize = 40;
/// Lines and bytes of a configuration diff: more is no reading for a phone.
const DIFF_MAX_LINES: usize = 200;
const DIFF_MAX_BYTES: usize = 16 << 10;

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

    /// The sentences.
    pub(super) fn words(&self) -> Words {
        match self {
            Message::ApprovalAsked { .. } => self.asked(),
            Message::ApprovalCode { approval, code, minutes, .. } => code_words(*approval, code, *minutes),
            Message::ApprovalDecided { .. } => self.decided(),
            Message::ApprovalEnded { approval, environment, title, state, note, run, run_url } => {
                let (word, said, tone) = ended(*state);
                Words {
                    intro: vec![format!("Request {approval} {said}: {}.", line(title))],
                    facts: facts([("Why", note.as_deref().map(line)), ("Run", run.map(|run| format!("#{run}")))]),
                    action: run_action(run_url.as_deref()),
                    ..Words::new(prefixed(environment.as_ref(), &format!("{word}: {}", line(title))), tone)
                }
            }
            Message::Deploy { .. } => self.deploy(),
            Message::Revert { .. } => self.revert(),
            Message::Drift { environment, release, differences, stage, why } => {
                drift(environment, *release, differences, *stage, why.as_deref())
            }
            Message::Source { source, concern, words, since, over } => {
                of_source(source, *concern, words, *since, *over)
            }
        }
    }

    fn asked(&self) -> Words {
        let Message::ApprovalAsked {
            approval,
            environment,
            subject,
            link,
            required,
            expires_at,
            run,
            run_url,
            how_by_cli,
            ..
        } = self
        else {
            unreachable!("only called for that variant");
        };
        let short: String = subject.commit.chars().take(8).collect();
        let what = if subject.repo.is_empty() {
            line(&subject.title)
        } else {
            line(&format!("{} {short}", subject.repo)).trim_end().to_owned()
        };
        let mut words = Words::new(prefixed(environment.as_ref(), &format!("approve {what}?")), Tone::Ask);
        words.headline = capital(&format!("{}?", line(&subject.title).trim_end_matches(['?', '.'])));
        words.warning = subject.warning.as_deref().map(line);
        words.intro.push(match required {
            0 | 1 => format!("One yes is enough, one no ends it. It is rejected by itself on {}.", time(*expires_at)),
            n => format!(
                "{n} people have to say yes, one no ends it. It is rejected by itself on {}.",
                time(*expires_at)
            ),
        });
        words.facts = facts([
            ("Environment", environment.as_ref().map(ToString::to_string)),
            ("Repository", some(&subject.repo)),
            ("Branch", some(subject.git_ref.trim_start_matches("refs/heads/"))),
            ("Commit", some(&subject.commit)),
            ("Run", run.map(|run| format!("#{run}"))),
            ("Request", Some(approval.to_string())),
            ("Before it", subject.staging.as_deref().map(line)),
            ("Way back", some(&subject.way_back)),
        ]);
        words.action = match link {
            Some(url) => Some(Action {
                label: "Look at it and decide",
                url: url.clone(),
                note: "The link is yours alone and good for one decision. Opening it decides nothing: the page asks.",
            }),
            None => run_action(run_url.as_deref()),
        };
        if let Some(message) = subject.message.as_deref().filter(|m| !m.trim().is_empty()) {
            words.section("The pipeline says", Body::Text(block(message, DIFF_MAX_LINES, DIFF_MAX_BYTES)));
        }
        words.lines("Commits since the last release", &subject.commits, COMMITS_MAX);
        words.pairs("Steps so far", subject.results.iter().map(|(step, end)| (step, end)), PAIRS_MAX);
        words.section(
            "Configuration",
            if subject.config_diff.trim().is_empty() {
                Body::Text("Nothing changes in the rendered configuration.".into())
            } else {
                Body::Diff(block(&subject.config_diff, DIFF_MAX_LINES, DIFF_MAX_BYTES))
            },
        );
        words.pairs("Images", subject.images.iter(), PAIRS_MAX);
        words.command = Some(("On the command line", line(how_by_cli)));
        words
    }

    fn decided(&self) -> Words {
        let Message::ApprovalDecided {
            approval,
            environment,
            title,
            person,
            verdict,
            channel,
            withdrawn,
            standing,
            message,
            withdraw_hint,
            link,
            run,
            run_url,
        } = self
        else {
            unreachable!("only called for that variant");
        };
        let (said, tone) = match (withdrawn, verdict) {
            (true, Verdict::Approve) => ("took back their yes to", Tone::Note),
            (true, Verdict::Reject) => ("took back their no to", Tone::Note),
            (false, Verdict::Approve) => ("approved", Tone::Good),
            (false, Verdict::Reject) => ("rejected", Tone::Bad),
        };
        let way = match channel {
            Channel::Mail => "with the link in their mail",
            Channel::Webhook => "through another system that may speak for them",
            Channel::Cli => "on the command line",
        };
        let (title, standing) = (line(title), line(standing));
        let mut intro = vec![format!("{person} {said} “{title}” {way}.")];
        intro.extend(message.as_deref().map(|said| format!("They say: {}", line(said))));
        intro.extend(withdraw_hint.as_deref().map(line));
        intro.push(format!("If you are {person} and this was not you, tell the others at once."));
        let said = format!("{person} {said} {title} ({standing})");
        Words {
            headline: said.clone(),
            intro,
            facts: facts([
                ("Yes so far", some(&standing)),
                ("Environment", environment.as_ref().map(ToString::to_string)),
                ("Run", run.map(|run| format!("#{run}"))),
                ("Request", Some(approval.to_string())),
            ]),
            action: match link {
                Some(url) => Some(Action { label: "Take it back, or answer anew", url: line(url), note: "" }),
                None => run_action(run_url.as_deref()),
            },
            ..Words::new(prefixed(environment.as_ref(), &said), tone)
        }
    }

    fn deploy(&self) -> Words {
        let Message::Deploy { environment, deploy, release, status, title, why, back, way_back, run, run_url } = self
        else {
            unreachable!("only called for that variant");
        };
        let (said, tone) = deployed(*status);
        let failed = *status == DeployStatus::RollbackFailed;
        let said = match back {
            Some(back) => taken_back(back, failed),
            None => format!("{} {said}", line(title)),
        };
        let again = back.as_ref().filter(|_| !failed);
        Words {
            headline: capital(&said),
            facts: facts([
                ("Why", why.as_deref().map(line)),
                ("What now", way_back.as_deref().map(line)),
                ("Release", release.map(|number| format!("{environment}/{number}"))),
                ("Serves", again.map(|back| format!("{environment}/{}, {}", back.to, line(&back.to_what)))),
                ("Deploy", Some(deploy.to_string())),
                ("Run", run.map(|run| format!("#{run}"))),
            ]),
            action: run_action(run_url.as_deref()),
            ..Words::new(prefixed(Some(environment), &said), tone)
        }
    }

    fn revert(&self) -> Words {
        let Message::Revert { environment, deploy, release, title, branch, base, url, why, needless, run } = self
        else {
            unreachable!("only called for that variant");
        };
        let (title, base) = (line(title), line(base));
        let (said, what_now, tone) = match url {
            Some(_) => (
                format!("a pull request takes {title} back"),
                Some(format!("merge it: what {base} holds then is deployed as usual, and nothing is held any more")),
                Tone::Note,
            ),
            None if *needless => (format!("no pull request is needed to take {title} back"), None, Tone::Note),
            None => (
                format!("no pull request takes {title} back"),
                Some(format!("as long as {base} holds it, what is pushed on top of it is held with it")),
                Tone::Bad,
            ),
        };
        Words {
            headline: capital(&said),
            facts: facts([
                ("Why", why.as_deref().map(line)),
                ("What now", what_now),
                ("Branch", (!needless).then(|| line(branch))),
                ("Release", Some(format!("{environment}/{release}"))),
                ("Deploy", Some(deploy.to_string())),
                ("Run", run.map(|run| format!("#{run}"))),
            ]),
            action: url.as_ref().map(|url| Action { label: "See the pull request", url: url.clone(), note: "" }),
            ..Words::new(prefixed(Some(environment), &said), tone)
        }
    }
}

/// What went, and what came: both are named wherever only a subject is seen.
fn taken_back(back: &Back, failed: bool) -> String {
    let (bad, to) = (line(&back.bad_what), line(&back.to_what));
    match failed {
        false => format!("release {} ({bad}) was rolled back to release {} ({to})", back.bad, back.to),
        true => format!(
            "the ROLLBACK of release {} ({bad}) to release {} ({to}) FAILED: a person has to act",
            back.bad, back.to
        ),
    }
}

fn code_words(approval: ApprovalId, code: &str, minutes: u32) -> Words {
    Words {
        code: Some(line(code)),
        intro: vec![
            format!("Somebody opened your link of request {approval} and is about to decide in your name."),
            format!("If that is you, type this code into the page. It is good for {minutes} minutes."),
            "If it is not you, do nothing: without the code nothing is decided. Your mail was passed on or is read by \
             somebody else; tell the others."
                .into(),
        ],
        // Not in the subject: phones show subjects on locked screens.
        ..Words::new(format!("Your code for request {approval}"), Tone::Ask)
    }
}

fn drift(
    environment: &EnvironmentName,
    release: u64,
    differences: &[Drift],
    stage: DriftStage,
    why: Option<&str>,
) -> Words {
    let (said, tone, rest) = match stage {
        DriftStage::Found => (
            "what runs is not what was released",
            Tone::Bad,
            "Nothing was changed. `mainstay repair` puts the release back; with `self-heal: true` that happens by itself.",
        ),
        DriftStage::Repaired => ("a change made by hand was put back", Tone::Note, "The release runs again as it was."),
        DriftStage::RepairFailed => {
            ("a change made by hand could not be put back", Tone::Bad, "A person has to look at it.")
        }
    };
    let mut words = Words::new(prefixed(Some(environment), said), tone);
    words.headline = capital(said);
    words.intro = vec![format!("Release {environment}/{release} should run, and this differed."), rest.into()];
    words.facts = facts([("Why", why.map(line))]);
    let shown = |value: &Option<String>| value.as_deref().map_or("nothing".to_owned(), line);
    let lines: Vec<String> = differences
        .iter()
        .map(|d| format!("{}: {} instead of {}", line(&d.item), shown(&d.found), shown(&d.wanted)))
        .collect();
    words.lines("Found", &lines, DRIFT_MAX);
    words
}

fn of_source(source: &SourceName, concern: ConcernKind, words: &str, since: Timestamp, over: bool) -> Words {
    let (said, what_now) = trouble(concern);
    let mut lines = words.lines().map(line);
    let first = lines.next().unwrap_or_default();
    let hints: Vec<String> = lines.map(|hint| hint.trim_start_matches("hint: ").to_owned()).collect();
    if over {
        return Words {
            headline: "All is well again".into(),
            intro: vec![format!("{}.", capital(&first).trim_end_matches('.'))],
            facts: facts([
                ("Source", Some(source.to_string())),
                ("It was", Some(said.to_owned())),
                ("Since", Some(time(since))),
            ]),
            command: Some(("See how it stands", "mainstay status".into())),
            ..Words::new(format!("[{source}] all is well again"), Tone::Good)
        };
    }
    let mut told = Words {
        headline: capital(said),
        intro: vec![format!("{}.", capital(&first).trim_end_matches('.'))],
        facts: facts([
            ("Source", Some(source.to_string())),
            ("Since", Some(time(since))),
            ("What now", Some(what_now.to_owned())),
        ]),
        command: Some(("See how it stands", "mainstay status".into())),
        ..Words::new(format!("[{source}] {said}"), Tone::Bad)
    };
    told.lines("What mends it", &hints, PAIRS_MAX);
    told
}

/// What is the matter, in a few words, and what a person does about it.
fn trouble(concern: ConcernKind) -> (&'static str, &'static str) {
    match concern {
        ConcernKind::NotSafe => (
            "what the database writes is NOT safe now",
            "find out why; Mainstay goes on trying, and the server keeps its log meanwhile",
        ),
        ConcernKind::LagWarn => {
            ("log piles up on the database's disk", "see that the repository can be reached, and keeps up")
        }
        ConcernKind::LagAlarm => (
            "much log piles up on the database's disk",
            "act before that disk is full: bring the repository back, or make room; dropping the slot costs a gap",
        ),
        ConcernKind::Rpo => (
            "the RPO is about to be missed",
            "bring the repository back; what is on the server's disk is safe as long as the server is",
        ),
        ConcernKind::Rto => (
            "a restore would take longer than the RTO",
            "where a base backup helps it is taken by itself; otherwise a faster way to the repository, or another `rto`",
        ),
        ConcernKind::BackupFailed => ("a backup failed", "it is tried again by itself; see why it failed"),
        ConcernKind::Damaged => (
            "what is stored in the repository is damaged or missing",
            "see `mainstay verify`, and take a new backup: what comes after it can be restored",
        ),
        ConcernKind::SlotDropped => (
            "the replication slot was dropped",
            "bring the repository back: a base backup is taken then by itself, and ends the gap",
        ),
        ConcernKind::SteppedDown => (
            "RPO 0 is NOT held: commits go on without the repository",
            "bring the repository back: commits wait for it again by themselves when all is stored",
        ),
        ConcernKind::CannotStepDown => (
            "commits hang, and Mainstay may not let them go on",
            "bring the repository back, or take Mainstay out of synchronous_standby_names by hand",
        ),
    }
}

/// The word for a subject line, the same in a sentence, and how it is meant.
fn ended(state: ApprovalState) -> (&'static str, &'static str, Tone) {
    match state {
        ApprovalState::Open => ("open", "is open", Tone::Note),
        ApprovalState::Granted => ("approved", "has all the answers it needs", Tone::Good),
        ApprovalState::Used => {
            ("approved and under way", "was approved, and what it was asked for has begun", Tone::Good)
        }
        ApprovalState::Rejected => ("rejected", "was rejected", Tone::Bad),
        ApprovalState::Expired => ("expired", "expired before enough people answered, which counts as a no", Tone::Bad),
        ApprovalState::Void => {
            ("void", "is void: what it was asked for has changed or is no longer wanted", Tone::Note)
        }
    }
}

fn deployed(status: DeployStatus) -> (&'static str, Tone) {
    match status {
        DeployStatus::Queued => ("waits for the deploy before it", Tone::Note),
        DeployStatus::Waiting => ("waits for people", Tone::Note),
        DeployStatus::Applying => ("is being deployed", Tone::Note),
        DeployStatus::Checking => ("serves and is being checked", Tone::Note),
        DeployStatus::Watching => ("serves and is being watched", Tone::Note),
        DeployStatus::RollingBack => ("turned bad and is being rolled back", Tone::Bad),
        DeployStatus::Verified => ("is verified", Tone::Good),
        DeployStatus::Unverified => ("serves, and nobody watched it", Tone::Note),
        DeployStatus::RolledBack => ("was rolled back", Tone::Bad),
        DeployStatus::Failed => ("failed, and nothing was put back", Tone::Bad),
        DeployStatus::RollbackFailed => ("turned bad, and the ROLLBACK FAILED: a person has to act", Tone::Bad),
        DeployStatus::Refused => ("was refused", Tone::Bad),
        DeployStatus::Superseded => ("gave way to a newer one", Tone::Note),
        DeployStatus::Cancelled => ("was cancelled", Tone::Note),
    }
}

fn prefixed(environment: Option<&EnvironmentName>, rest: &str) -> String {
    match environment {
        Some(environment) => format!("[{environment}] {rest}"),
        None => capital(rest),
    }
}

fn run_action(url: Option<&str>) -> Option<Action> {
    url.map(|url| Action { label: "See the run", url: url.to_owned(), note: "" })
}

fn facts<const N: usize>(all: [(&'static str, Option<String>); N]) -> Vec<(&'static str, String)> {
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn some(text: &str) -> Option<String> {
    Some(line(text)).filter(|text| !text.is_empty())
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// One zone for everybody: people who approve sit in several.
fn time(at: Timestamp) -> String {
    at.strftime("%a %-d %b %Y at %H:%M UTC").to_string()
}

#[cfg(test)]
mod tests;
