//! `mainstay approvals`: what people are asked, and one request whole.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::{Tone, Ui};
use super::{Context, words};
use crate::model::ApprovalId;
use crate::model::approval::{ApprovalState, ApprovalView, Decision, Verdict};
use crate::model::input::{Input, InputKind};
use jiff::Timestamp;

/// List what waits for somebody's yes, or show one request whole
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay approvals            what waits now
  mainstay approvals 3          everything that is needed to decide
  mainstay approve 3            say yes")]
pub struct Args {
    /// Show this request whole: 3 or #3
    id: Option<ApprovalId>,
    /// Also those that are over
    #[arg(long, conflicts_with = "id")]
    all: bool,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer, or does not know the request.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let (ui, now) = (&context.ui, Timestamp::now());
    if let Some(id) = args.id {
        let view: ApprovalView = client.get(&format!("approvals/{id}"), &[]).await?;
        if ui.json {
            ui.json(&view);
        } else {
            whole(ui, &view, now).iter().for_each(|line| ui.out(line));
        }
        return Ok(Exit::Good);
    }
    let found: Vec<ApprovalView> = client.get("approvals", &[("all", args.all.to_string())]).await?;
    if ui.json {
        ui.json(&found);
        return Ok(Exit::Good);
    }
    if found.is_empty() {
        ui.say(if args.all { "nobody was asked anything yet" } else { "nothing waits for approval" });
        return Ok(Exit::Good);
    }
    for line in list(ui, &found, now) {
        ui.out(line);
    }
    if found.iter().any(|view| view.state == ApprovalState::Open) {
        ui.say("`mainstay approvals ID` shows one whole; `mainstay approve ID` or `mainstay reject ID` answers it");
    }
    Ok(Exit::Good)
}

fn list(ui: &Ui, found: &[ApprovalView], now: Timestamp) -> Vec<String> {
    let rows: Vec<Vec<Cell>> = found
        .iter()
        .map(|view| {
            let (sign, tone) = sign(view.state);
            let waits = view.state == ApprovalState::Open;
            let may = view.eligible.iter().filter(|person| !view.counted.contains(person));
            let may = may.map(|person| person.as_str()).collect::<Vec<_>>().join(",");
            vec![
                Cell::toned(Tone::Strong, view.id.to_string()),
                Cell::toned(tone, format!("{sign} {}", view.state)),
                format!("{} of {}", view.counted.len(), view.required).into(),
                if waits { may } else { String::new() }.into(),
                if waits { words::took(words::between(now, view.expires_at)) } else { String::new() }.into(),
                words::ago(view.created_at, now).into(),
                words::clean(&view.subject.title).into(),
            ]
        })
        .collect();
    table::lines(ui, &["ID", "STATE", "VOTES", "WAITS FOR", "LEFT", "ASKED", "WHAT"], &rows, ui.columns())
}

/// Everything that is needed to decide.
fn whole(ui: &Ui, view: &ApprovalView, now: Timestamp) -> Vec<String> {
    let subject = &view.subject;
    let (sign, tone) = sign(view.state);
    let mut out = Vec::new();
    if let Some(warning) = &subject.warning {
        out.extend([ui.paint(Tone::Bad, words::clean(warning)), String::new()]);
    }
    out.push(format!(
        "{}  {}",
        ui.paint(Tone::Strong, format!("Approval {}", view.id)),
        ui.paint(tone, format!("{sign} {}, {} of {} said yes", view.state, view.counted.len(), view.required))
    ));
    out.push(words::clean(&subject.title));
    let mut about = Vec::new();
    about.extend(view.environment.as_ref().map(|environment| format!("environment {environment}")));
    about.extend(view.run.map(|run| format!("run #{run}")));
    let commit: String = subject.commit.chars().take(8).collect();
    about.push(format!(
        "{} {} @ {commit}",
        words::clean(&subject.repo),
        words::clean(words::short_ref(&subject.git_ref))
    ));
    about.push(format!("asked {}", words::ago(view.created_at, now)));
    if view.state == ApprovalState::Open {
        about.push(format!("{} left", words::took(words::between(now, view.expires_at))));
    }
    out.push(ui.paint(Tone::Dim, about.join(", ")));
    if let Some(note) = &view.note {
        out.extend([String::new(), ui.paint(Tone::Active, words::clean(note))]);
    }
    let mut block = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            out.extend([String::new(), ui.paint(Tone::Strong, title)]);
            out.extend(lines.into_iter().map(|line| format!("  {line}")));
        }
    };
    let text = |text: &str| text.lines().map(words::clean).collect::<Vec<_>>();
    block("what the pipeline says", subject.message.as_deref().map(text).unwrap_or_default());
    block("commits", subject.commits.iter().map(|commit| words::clean(commit)).collect());
    block(
        "images",
        subject.images.iter().map(|(name, image)| format!("{} {}", words::clean(name), words::clean(image))).collect(),
    );
    block("configuration", subject.config_diff.lines().map(|line| diff(ui, line)).collect());
    block(
        "checks",
        subject.results.iter().map(|(what, how)| format!("{}: {}", words::clean(what), words::clean(how))).collect(),
    );
    block("the environment before", subject.staging.as_deref().map(text).unwrap_or_default());
    block("the way back", text(&subject.way_back));
    block("inputs", view.inputs.iter().map(input).collect());
    block("said so far", view.decisions.iter().map(|decision| said(view, decision, now)).collect());
    block("does not count", view.excluded.iter().map(|e| format!("{}: {}", e.person, words::clean(&e.why))).collect());
    if view.state == ApprovalState::Open {
        let waits: Vec<&str> = view
            .eligible
            .iter()
            .filter(|person| !view.counted.contains(person))
            .map(|person| person.as_str())
            .collect();
        block("waits for", if waits.is_empty() { Vec::new() } else { vec![waits.join(", ")] });
        let inputs = view.inputs.iter().filter(|input| input.required && input.default.is_none());
        let inputs: String = inputs.map(|input| format!(" --input {}=…", input.name)).collect();
        out.extend([
            String::new(),
            format!("  yes  {}", ui.paint(Tone::Strong, format!("mainstay approve {}{inputs}", view.id))),
            format!("  no   {}", ui.paint(Tone::Strong, format!("mainstay reject {} --message WHY", view.id))),
        ]);
    }
    out
}

fn diff(ui: &Ui, line: &str) -> String {
    let clean = words::clean(line);
    match line.as_bytes() {
        [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] | [b'@', b'@', ..] => ui.paint(Tone::Dim, clean),
        [b'+', ..] => ui.paint(Tone::Good, clean),
        [b'-', ..] => ui.paint(Tone::Bad, clean),
        _ => clean,
    }
}

fn input(input: &Input) -> String {
    let kind = match &input.kind {
        InputKind::Text => "text".to_owned(),
        InputKind::Boolean => "true or false".to_owned(),
        InputKind::Number => "a number".to_owned(),
        InputKind::Choice(options) => {
            format!("one of {}", options.iter().map(|o| words::clean(o)).collect::<Vec<_>>().join(", "))
        }
    };
    let mut line = format!("{}: {kind}", words::clean(&input.name));
    match &input.default {
        Some(default) => line.push_str(&format!(", {} when it is not given", words::clean(default))),
        None if input.required => line.push_str(", must be given"),
        None => {}
    }
    if let Some(about) = &input.description {
        line.push_str(&format!(" ({})", words::clean(about)));
    }
    line
}

fn said(view: &ApprovalView, decision: &Decision, now: Timestamp) -> String {
    let word = match decision.verdict {
        Verdict::Approve => "approved",
        Verdict::Reject => "rejected",
    };
    let mut line = format!("{} {word} {}", decision.person, words::ago(decision.at, now));
    if decision.withdrawn_at.is_some() {
        line.push_str(", and took it back");
    } else if decision.verdict == Verdict::Approve && !view.counted.contains(&decision.person) {
        line.push_str(", which does not count any more");
    }
    for (name, value) in &decision.inputs {
        line.push_str(&format!(", {}={}", words::clean(name), words::clean(value)));
    }
    if let Some(message) = &decision.message {
        line.push_str(&format!(": {}", words::clean(message)));
    }
    line
}

fn sign(state: ApprovalState) -> (&'static str, Tone) {
    match state {
        ApprovalState::Open => ("●", Tone::Active),
        ApprovalState::Granted | ApprovalState::Used => ("✓", Tone::Good),
        ApprovalState::Rejected => ("✗", Tone::Bad),
        ApprovalState::Expired => ("✗", Tone::Dim),
        ApprovalState::Void => ("◌", Tone::Dim),
    }
}

/// Where a request stands after an answer, in a line.
pub(super) fn outcome(view: &ApprovalView) -> String {
    match view.state {
        ApprovalState::Open => {
            let waits: Vec<&str> = view
                .eligible
                .iter()
                .filter(|person| !view.counted.contains(person))
                .map(|person| person.as_str())
                .collect();
            let (have, need) = (view.counted.len(), view.required);
            let waits = if waits.is_empty() { "nobody".to_owned() } else { waits.join(", ") };
            format!("{have} of {need} said yes; it waits for {waits}")
        }
        ApprovalState::Granted => "it is granted".to_owned(),
        state => match &view.note {
            // `rejected by ana` says it all.
            Some(note) if note.starts_with(state.as_str()) => format!("it is {}", words::clean(note)),
            Some(note) => format!("it is {state}, {}", words::clean(note)),
            None => format!("it is {state}"),
        },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli) fn sample() -> ApprovalView {
        serde_json::from_value(serde_json::json!({
            "id": 3, "environment": "production", "run": 12, "step": "go-live", "state": "open", "deploy": null,
            "subject": {
                "title": "deploy shop 1a2b3c4d to production", "warning": null, "repo": "shop",
                "git_ref": "refs/heads/main", "commit": "1a2b3c4d".repeat(5),
                "commits": ["1a2b3c4d Ana: Fix the till", "5e6f7a8b Cem: Round the last cent"],
                "images": { "api": "registry.example.com/shop/api@sha256:0123" },
                "config_diff": "@@ -3,3 +3,3 @@\n services:\n-  replicas: 2\n+  replicas: 3",
                "results": [["test", "succeeded after 2m 04s"], ["load", "p95 140 ms"]],
                "staging": "release 7, verified 20 min ago", "way_back": "mainstay rollback production", "message": null
            },
            "required": 2, "eligible": ["ben", "dee"], "counted": ["ben"],
            "excluded": [{"person": "ana", "why": "author of 1a2b3c4d"}],
            "inputs": [{"name": "window", "kind": {"choice": ["now", "night"]}, "default": "now", "required": false, "description": "when"},
                       {"name": "ticket", "kind": "text", "default": null, "required": true, "description": null}],
            "decisions": [{"person": "ben", "verdict": "approve", "channel": "mail", "inputs": {"ticket": "T-1", "window": "now"},
                           "message": "looks right", "at": "2026-03-01T10:05:00Z", "withdrawn_at": null}],
            "created_at": "2026-03-01T10:00:00Z", "expires_at": "2026-03-02T10:00:00Z", "note": null
        }))
        .unwrap()
    }

    #[test]
    fn a_request_is_laid_out_for_deciding() {
        let ui = Ui::new(false, "never", 0);
        let now = "2026-03-01T10:10:00Z".parse().unwrap();
        let mut over = sample();
        over.id = ApprovalId(2);
        over.state = ApprovalState::Rejected;
        let text = [list(&ui, &[sample(), over], now), vec![String::new()], whole(&ui, &sample(), now)].concat();
        insta::assert_snapshot!(text.join("\n"));
    }
}
