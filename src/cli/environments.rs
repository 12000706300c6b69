//! `mainstay environments`: what runs where, and whether it is what should.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::{Tone, Ui};
use super::{Context, deploys, words};
use crate::model::EnvironmentName;
use crate::model::deploy::DeployStatus;
use crate::model::deploy_view::{DeployView, EnvironmentView, RevertView, RuleView};
use jiff::Timestamp;

/// Show the environments, or one of them whole
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay environments               a line each; exit code 1 when a person has to act
  mainstay environments production    what runs there, what differs, what is held")]
pub struct Args {
    /// Only this one, whole
    environment: Option<EnvironmentName>,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or knows no such environment.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let ui = &context.ui;
    let found: Vec<EnvironmentView> = match &args.environment {
        Some(name) => vec![client.get(&format!("environments/{name}"), &[]).await?],
        None => client.get("environments", &[]).await?,
    };
    let exit = if found.iter().any(|one| one.attention.is_some()) { Exit::Bad } else { Exit::Good };
    if ui.json {
        match (&args.environment, found.first()) {
            (Some(_), Some(one)) => ui.json(one),
            _ => ui.json(&found),
        }
        return Ok(exit);
    }
    if found.is_empty() {
        ui.say("mainstay.yml has no `environments`");
    }
    let now = Timestamp::now();
    if args.environment.is_some() {
        found.iter().for_each(|one| whole(ui, one, now));
        return Ok(exit);
    }
    let rows: Vec<Vec<Cell>> = found.iter().map(|one| row(one, now)).collect();
    if !rows.is_empty() {
        for line in table::lines(ui, &["ENVIRONMENT", "STATE", "RELEASE", "WHAT", "SINCE", "NOTE"], &rows, ui.columns())
        {
            ui.out(line);
        }
    }
    Ok(exit)
}

fn tone(state: &str) -> Tone {
    match state {
        "verified" => Tone::Good,
        "attention" | "held" | "drifted" | "rolling-back" => Tone::Bad,
        "empty" | "unverified" => Tone::Dim,
        _ => Tone::Strong,
    }
}

fn what(one: &EnvironmentView) -> String {
    one.current.as_ref().map_or(String::new(), |current| {
        let from = &current.release.provenance;
        format!("{} {}", from.repo, &from.commit.as_str()[..7])
    })
}

fn note(one: &EnvironmentView) -> String {
    let hold = one.holds.first();
    let held = hold.map(|hold| match &hold.commit {
        Some(commit) => format!("{} is held: {}", &commit[..commit.len().min(7)], hold.reason),
        None => format!("held by {}: {}", hold.by, hold.reason),
    });
    let waiting = one.deploys.iter().find(|deploy| deploy.status == DeployStatus::Waiting);
    let waits = waiting.and_then(|deploy| Some(format!("mainstay approve {}", deploy.approval?)));
    let drift = (!one.drift.is_empty()).then(|| format!("{} settings differ", one.drift.len()));
    let frozen = one.frozen_until.map(|until| format!("frozen until {}", until.strftime("%Y-%m-%d %H:%MZ")));
    let attention = one.attention.as_deref().and_then(|why| why.lines().next()).map(str::to_owned);
    attention.or(waits).or(drift).or(held).or(frozen).unwrap_or_default()
}

fn row(one: &EnvironmentView, now: Timestamp) -> Vec<Cell> {
    let number = one.current.as_ref().map_or(String::new(), |current| current.release.number.to_string());
    let since = one.current.as_ref().map_or(String::new(), |current| words::ago(current.release.at, now));
    vec![
        Cell::toned(Tone::Strong, one.name.as_str()),
        Cell::toned(tone(&one.state), one.state.as_str()),
        number.into(),
        what(one).into(),
        since.into(),
        words::clean(&note(one)).into(),
    ]
}

/// What became of the pull request, in a line.
fn taken_back(revert: &RevertView) -> String {
    let why = revert.why.as_deref().unwrap_or_default();
    let why = words::clean(why.lines().next().unwrap_or_default());
    match (&revert.url, revert.state.as_str()) {
        (Some(url), _) => format!("taken back by {}", words::clean(url)),
        (None, "waiting") if why.is_empty() => format!("{} will take it back", words::clean(&revert.branch)),
        (None, "waiting") => format!("{} will take it back; not yet: {why}", words::clean(&revert.branch)),
        (None, _) => format!("no pull request: {why}"),
    }
}

fn whole(ui: &Ui, one: &EnvironmentView, now: Timestamp) {
    let (name, state) = (ui.paint(Tone::Strong, one.name.as_str()), ui.paint(tone(&one.state), &one.state));
    ui.out(format!("{name} ({}): {state}", one.target));
    if let Some(attention) = &one.attention {
        let mut lines = attention.lines().map(words::clean);
        let first = lines.next().unwrap_or_default();
        ui.out(format!("  {} {first}", ui.paint(Tone::Bad, "a person has to act:")));
        lines.for_each(|hint| ui.out(format!("    {hint}")));
    }
    match &one.current {
        Some(current) => {
            let verified = if one.verified == Some(current.release.number) { "verified" } else { "not verified" };
            let at = words::ago(current.release.at, now);
            ui.out(format!("  release {} of {}, {at}, {verified}", current.release.number, what(one)));
            for (service, image) in &current.release.images {
                ui.out(format!("    {} {}", words::clean(service), words::clean(image)));
            }
            if let Some(place) = &current.recorded {
                ui.out(format!("    written down as {}", words::clean(place)));
            }
        }
        None => ui.out("  nothing was deployed here yet"),
    }
    for deploy in &one.deploys {
        ui.out(format!("  {}", deploys::line(ui, deploy)));
        answers(ui, deploy, now).into_iter().for_each(|line| ui.out(line));
    }
    if let Some(last) = &one.last {
        ui.out(format!("  last: {}", deploys::line(ui, last)));
        answers(ui, last, now).into_iter().for_each(|line| ui.out(line));
    }
    for hold in &one.holds {
        let held = hold.commit.as_deref().map_or("everything", |commit| &commit[..commit.len().min(7)]);
        let strict = if hold.strict { ", until somebody releases it" } else { "" };
        ui.out(format!("  held: {held}{strict}, by {}: {}", words::clean(&hold.by), words::clean(&hold.reason)));
        if let Some(revert) = &hold.revert {
            ui.out(format!("    {}", taken_back(revert)));
        }
    }
    if let Some(until) = one.frozen_until {
        ui.out(format!("  frozen until {}", until.strftime("%Y-%m-%d %H:%M:%SZ")));
    }
    for drift in &one.drift {
        ui.out(format!("  {} {}", ui.paint(Tone::Strong, "drift:"), words::clean(&drift.item)));
        let side = |sign: &str, tone: Tone, value: &Option<String>| {
            if let Some(value) = value {
                ui.out(ui.paint(tone, format!("    {sign} {}", words::clean(value))));
            }
        };
        side("-", Tone::Bad, &drift.wanted);
        side("+", Tone::Good, &drift.found);
    }
    if !one.drift.is_empty() {
        ui.say(format!("`mainstay repair {}` puts the release back", one.name));
    }
    let rows: Vec<Vec<Cell>> = one
        .instances
        .iter()
        .map(|instance| {
            let tone = if instance.healthy { Tone::Good } else { Tone::Bad };
            vec![
                words::clean(&instance.service).into(),
                words::clean(&instance.name).into(),
                Cell::toned(tone, words::clean(&instance.state)),
                instance.restarts.to_string().into(),
                words::clean(&instance.image).into(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        for line in table::lines(ui, &["SERVICE", "INSTANCE", "STATE", "RESTARTS", "IMAGE"], &rows, ui.columns()) {
            ui.out(line);
        }
    }
}

/// What each health rule said last, a line each.
fn answers(ui: &Ui, deploy: &DeployView, now: Timestamp) -> Vec<String> {
    let line = |answer: &RuleView| {
        let last = &answer.last;
        let sign = if last.good { ui.paint(Tone::Good, "✓") } else { ui.paint(Tone::Bad, "✗") };
        let ago = words::ago(last.at, now);
        format!("    {sign} {}: {}, {ago}", words::clean(&answer.rule), words::clean(&last.said))
    };
    deploy.health.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_said_last_is_shown_with_its_deploy() {
        let now: Timestamp = "2026-03-01T10:10:00Z".parse().unwrap();
        let answer = |rule: usize, good: bool, said: &str| {
            serde_json::json!({ "rule": format!("rule {rule}"), "last": {
                "rule": rule, "at": "2026-03-01T10:09:58Z", "good": good, "took_us": 3, "said": said
            } })
        };
        let deploy: DeployView = serde_json::from_value(serde_json::json!({
            "id": 3, "environment": "production", "kind": "deploy", "status": "watching", "release": 2, "fallback": 1,
            "what": "shop 1a2b3c4", "by": "ana", "approval": null, "why": null, "by_request": false,
            "created_at": "2026-03-01T10:09:00Z", "applied_at": null, "bad_at": null, "put_back_at": null,
            "finished_at": null, "probes": [],
            "health": [answer(0, true, "200 in 3 ms"), answer(1, false, "connection\nrefused")]
        }))
        .unwrap();
        let lines = answers(&Ui::new(false, "never", 0), &deploy, now);
        assert_eq!(lines, ["    ✓ rule 0: 200 in 3 ms, 2s ago", "    ✗ rule 1: connection refused, 2s ago"]);
    }
}
