//! `mainstay show`: one run with its graph, and for a failed step what to do next.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::{Tone, Ui};
use super::{Context, words};
use crate::model::api::{LogLineView, RunDetail, StepState, StepView};
use crate::model::plan::{PlannedStep, Resources, Retries, StepKind};
use crate::model::{AttemptEnd, Plan, RunStatus, Span, StepName, StepOutcome};
use crate::plan::{self, show::Tone as DrawTone};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Show a run: its graph, how each step went, and what to do about a failed one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay show latest
  mainstay --json show 12 | jq '.steps[] | {name, outcome}'")]
pub struct Args {
    /// The run: 12, #12 or latest
    #[arg(default_value = "latest")]
    run: String,
}

/// Enough to recognise the error, and no more than a screen with three failed steps.
const LAST_LINES: usize = 10;

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or does not know the run.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let run = client.run(client.run_number(&args.run).await?).await?;
    let ui = &context.ui;
    if ui.json {
        ui.json(&run);
        return Ok(Exit::Good);
    }
    let now = Timestamp::now();
    for line in head(ui, &run, now) {
        ui.out(line);
    }
    for line in graph(ui, &run, now) {
        ui.out(line);
    }
    for step in run.steps.iter().filter(|step| step.outcome == Some(StepOutcome::Failed)) {
        let last = last_lines(&client, &run, step).await;
        for line in failed(ui, &run, step, &last) {
            ui.out(line);
        }
    }
    Ok(Exit::Good)
}

fn head(ui: &Ui, run: &RunDetail, now: Timestamp) -> Vec<String> {
    let s = &run.summary;
    let (sign, tone) = words::status_sign(s.status);
    let time = words::span(s.started_at, s.finished_at, now);
    let status = match s.status {
        RunStatus::Queued => format!("{sign} waits since {}", words::ago(s.created_at, now)),
        RunStatus::Running if run.parked => format!("{sign} waits, begun {time} ago"),
        RunStatus::Running => format!("{sign} runs for {time}"),
        other if time.is_empty() => format!("{sign} {other}"),
        other => format!("{sign} {other} after {time}"),
    };
    let mut out = vec![format!("{}  {}", ui.paint(Tone::Strong, format!("Run #{}", s.id)), ui.paint(tone, status))];
    out.push(format!(
        "{} {} on {} @ {}  {}",
        s.repo,
        s.pipeline,
        words::clean(words::short_ref(&s.git_ref)),
        s.commit.short(),
        words::clean(&s.title)
    ));
    let again = s.retry_of.map(|run| format!(", repeats #{run}")).unwrap_or_default();
    let about = format!(
        "{}, commit by {}, {}{again}",
        s.event.as_str(),
        words::clean(&s.author),
        words::ago(s.created_at, now)
    );
    out.push(ui.paint(Tone::Dim, about));
    if !run.inputs.is_empty() {
        let inputs: Vec<String> =
            run.inputs.iter().map(|(key, value)| format!("{key}={}", words::clean(value))).collect();
        out.push(format!("inputs: {}", inputs.join(" ")));
    }
    if let Some(error) = &s.error {
        out.push(String::new());
        // Findings of a pipeline file come with their source lines; only their control characters go.
        out.extend(error.lines().map(|line| ui.paint(Tone::Bad, words::safe_log(line, false))));
    }
    out.push(String::new());
    out
}

/// The graph as `plan` draws it, with the state of each step; then a line for each step that has more to say. What
/// failed gets a block of its own further down.
pub(super) fn graph(ui: &Ui, run: &RunDetail, now: Timestamp) -> Vec<String> {
    let steps: BTreeMap<&StepName, &StepView> = run.steps.iter().map(|step| (&step.name, step)).collect();
    let state = |name: &StepName| steps.get(name).map(|step| cell(step, now));
    let paint = |tone: DrawTone, text: &str| match tone {
        DrawTone::Plain => text.to_owned(),
        DrawTone::Good => ui.paint(Tone::Good, text),
        DrawTone::Bad => ui.paint(Tone::Bad, text),
        DrawTone::Active => ui.paint(Tone::Active, text),
        DrawTone::Dim => ui.paint(Tone::Dim, text),
    };
    let drawn = plan::show::text_painted(&outline(run), &state, ui.columns(), &paint);
    let mut out: Vec<String> = drawn.lines().map(|line| line.trim_end().to_owned()).collect();
    let rows: Vec<Vec<Cell>> = run
        .steps
        .iter()
        .filter(|step| step.outcome != Some(StepOutcome::Failed))
        .map(|step| (step, note(step)))
        .filter(|(_, note)| !note.is_empty())
        .map(|(step, note)| vec![step.name.as_str().into(), Cell::toned(words::step_sign(step).1, note)])
        .collect();
    if !rows.is_empty() {
        out.push(String::new());
        out.extend(table::lines(ui, &["", ""], &rows, ui.columns()).into_iter().skip(1));
    }
    out
}

fn cell(step: &StepView, now: Timestamp) -> plan::show::Cell {
    let (sign, tone) = words::step_sign(step);
    let tone = match tone {
        Tone::Good => DrawTone::Good,
        Tone::Bad => DrawTone::Bad,
        Tone::Active => DrawTone::Active,
        Tone::Dim => DrawTone::Dim,
        Tone::Strong => DrawTone::Plain,
    };
    // Ends are told by the sign, and below the drawing in full; it should fit a terminal.
    let word = match step.state {
        StepState::Running if step.has_log() => "runs",
        StepState::Running => "waits",
        _ => "",
    };
    plan::show::Cell { glyph: sign.chars().next().unwrap_or(' '), word: word.into(), time: step_time(step, now), tone }
}

/// As much of the plan as a drawing needs: names and edges.
fn outline(run: &RunDetail) -> Plan {
    let step = |step: &StepView| PlannedStep {
        name: step.name.clone(),
        image: step.image.clone(),
        commands: Vec::new(),
        args: Vec::new(),
        environment: BTreeMap::new(),
        secrets: Vec::new(),
        needs: step.needs.clone(),
        timeout: Span(Duration::ZERO),
        retries: Retries::default(),
        allow_failure: false,
        when_status: Vec::new(),
        once: false,
        resources: Resources::default(),
        shares_holder: false,
        kind: step.kind.clone(),
    };
    Plan {
        pipeline: run.summary.pipeline.clone(),
        file: run.file.clone().unwrap_or_default(),
        digest: String::new(),
        steps: run.steps.iter().map(step).collect(),
    }
}

fn step_time(step: &StepView, now: Timestamp) -> String {
    let Some(last) = step.attempts.last() else { return String::new() };
    words::span(Some(last.began_at.unwrap_or(last.started_at)), last.ended_at, now)
}

/// What is worth saying about a step that did not simply succeed.
fn note(step: &StepView) -> String {
    let mut parts = Vec::new();
    match (step.state, step.outcome) {
        (StepState::Ready, _) => parts.push("waits for its turn".to_owned()),
        (_, Some(StepOutcome::Skipped)) => parts.push("skipped".to_owned()),
        (_, Some(StepOutcome::FailedAllowed)) => parts.push("failed, which is allowed".to_owned()),
        _ => {}
    }
    if let Some(reason) = &step.reason {
        // What is to be tried stands below, a line each.
        parts.push(words::clean(reason.lines().next().unwrap_or_default()));
    } else if let Some(end) = step.attempts.last().and_then(|last| last.end.as_ref()).filter(|end| !end.is_success()) {
        parts.push(words::clean(end.to_string().lines().next().unwrap_or_default()));
    }
    if step.attempts.len() > 1 {
        parts.push(format!("attempt {}", step.attempts.len()));
    }
    parts.join(", ")
}

async fn last_lines(client: &Client, run: &RunDetail, step: &StepView) -> Vec<LogLineView> {
    let Some(last) = step.attempts.last().filter(|_| step.has_log()) else { return Vec::new() };
    let query =
        [("step", step.name.to_string()), ("attempt", last.attempt.to_string()), ("tail", LAST_LINES.to_string())];
    // The log is a help here: without it the rest is still worth showing.
    match client.log_lines(run.summary.id, &query).await {
        Ok(lines) => lines.filter_map(async |line| line.ok()).collect().await,
        Err(_) => Vec::new(),
    }
}

fn failed(ui: &Ui, run: &RunDetail, step: &StepView, last: &[LogLineView]) -> Vec<String> {
    let (id, name) = (run.summary.id, &step.name);
    let why = note(step);
    let mut out = vec![
        String::new(),
        ui.paint(Tone::Bad, format!("{name} failed: {}", if why.is_empty() { "no reason recorded" } else { &why })),
    ];
    let end = step.attempts.last().and_then(|last| last.end.as_ref()).map(ToString::to_string).unwrap_or_default();
    out.extend(end.lines().skip(1).map(|hint| format!("  {}", words::clean(hint))));
    out.extend(
        last.iter().map(|line| format!("  {} {}", ui.paint(Tone::Dim, "|"), words::safe_log(&line.text, ui.color))),
    );
    let mut table = vec![match (&step.kind, step.attempts.last().and_then(|last| last.end.as_ref())) {
        // What was rolled back is held: trying it again would only be refused.
        (StepKind::Deploy(deploy), Some(AttemptEnd::RolledBack { .. })) => {
            ("what serves, and what is held".to_owned(), format!("mainstay environments {}", deploy.environment))
        }
        _ => (format!("again from `{name}` on"), format!("mainstay retry {id} --from {name}")),
    }];
    if step.has_log() {
        table.insert(0, ("the whole log".to_owned(), format!("mainstay logs {id} {name}")));
    }
    if let Some(file) = run.file.as_ref().filter(|_| step.has_log()) {
        table.push(("here, from your working tree".to_owned(), format!("mainstay run {file}")));
    }
    let rows: Vec<Vec<Cell>> = table
        .into_iter()
        .map(|(what, command)| vec![format!("  {what}").into(), Cell::toned(Tone::Strong, command)])
        .collect();
    out.extend(table::lines(ui, &["", ""], &rows, None).into_iter().skip(1));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> RunDetail {
        let oid = "1a2b3c4d".repeat(5);
        let attempt = |n: u32, end: serde_json::Value| json!({"attempt": n, "started_at": "2026-03-01T10:00:05Z", "began_at": "2026-03-01T10:00:06Z", "ended_at": "2026-03-01T10:00:37Z", "end": end});
        let good = json!({"how": "exited", "code": 0});
        serde_json::from_value(json!({
            "id": 12, "repo": "shop", "pipeline": "ci", "event": "push", "git_ref": "refs/heads/main", "commit": oid,
            "title": "Fix the till", "author": "Ana <ana@example.com>", "status": "failure",
            "created_at": "2026-03-01T10:00:00Z", "started_at": "2026-03-01T10:00:01Z", "finished_at": "2026-03-01T10:01:05Z",
            "file": ".mainstay/ci.yml",
            "steps": [
                {"name": "build", "image": "rust", "needs": [], "state": "done", "outcome": "succeeded", "attempts": [attempt(1, good)]},
                {"name": "lint", "image": "rust", "needs": [], "state": "done", "outcome": "failed-allowed", "attempts": [attempt(1, json!({"how": "exited", "code": 2}))]},
                {"name": "test", "image": "rust", "needs": ["build"], "state": "done", "outcome": "failed",
                 "attempts": [attempt(1, json!({"how": "timed-out"})), attempt(2, json!({"how": "exited", "code": 101}))]},
                {"name": "image", "image": "kaniko", "needs": ["test", "lint"], "state": "done", "outcome": "skipped", "reason": "`test` failed", "attempts": []}
            ]
        }))
        .unwrap()
    }

    #[test]
    fn what_is_to_be_tried_stands_below_the_reason_once() {
        let ui = Ui::new(false, "never", 0);
        let mut run = sample();
        let end = AttemptEnd::Refused { detail: "restore x: it may not\nhint: `from` names who may".into() };
        run.steps[2].reason = Some(end.to_string());
        run.steps[2].attempts[1].end = Some(end);
        let text = failed(&ui, &run, &run.steps[2], &[]).join("\n");
        assert!(
            text.contains("test failed: refused: restore x: it may not, attempt 2\n  hint: `from` names"),
            "{text}"
        );
        assert_eq!(text.matches("hint:").count(), 1, "{text}");
        let graph = graph(&ui, &run, "2026-03-01T10:03:00Z".parse().unwrap()).join("\n");
        assert!(!graph.contains("hint:"), "{graph}");
    }

    #[test]
    fn a_failed_run_shows_its_graph_and_the_way_on() {
        let ui = Ui::new(false, "never", 0);
        let run = sample();
        let now = "2026-03-01T10:03:00Z".parse().unwrap();
        let line = LogLineView {
            step: StepName::new("test").unwrap(),
            attempt: 2,
            n: 7,
            at: now,
            stream: crate::model::log::Stream::Stderr,
            text: "\u{1b}[31massertion failed\u{1b}[0m".into(),
            continues: false,
        };
        let text = [head(&ui, &run, now), graph(&ui, &run, now), failed(&ui, &run, &run.steps[2], &[line])].concat();
        insta::assert_snapshot!(text.join("\n"));
    }
}
