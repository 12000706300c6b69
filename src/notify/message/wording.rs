//! Every sentence of every message: words, which `letter` makes into a mail and `post` into what chat systems take.

use super::{Back, DriftStage, Message};
use crate::model::approval::{ApprovalState, Channel, Verdict};
use crate::model::deploy::{DeployStatus, Drift};
use crate::model::source_view::ConcernKind;
use crate::model::{ApprovalId, EnvironmentName, SourceName};
use crate::notify::words::{Action, Body, Tone, Words, block, line};
use jiff::Timestamp;

/// Commits in a message: a screen of a phone; the page behind the link has them all.
const COMMITS_MAX: usize = 12;
/// Steps, and images; most pipelines and stacks have fewer than ten.
const PAIRS_MAX: usize = 40;
/// Changed settings in a message, for the same reason.
const DRIFT_MAX: usize = 40;
/// Lines and bytes of a configuration diff: more is no reading for a phone.
const DIFF_MAX_LINES: usize = 200;
const DIFF_MAX_BYTES: usize = 16 << 10;

impl Message {
    /// The sentences.
    pub(in crate::notify) fn words(&self) -> Words {
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
