//! `mainstay inbox`: what the world reported, and what became of it.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::Tone;
use super::{Context, trigger, words};
use crate::model::api::{InboxView, Started};
use jiff::Timestamp;

/// List what was reported (pushes, webhooks, schedules) and what became of it
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  mainstay inbox              why did my push start nothing?
  mainstay inbox replay 41    take that report again, as if it had just come")]
pub struct Args {
    #[command(subcommand)]
    act: Option<Act>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Take a report again: it starts the runs that it would start now
    Replay {
        /// Its number in the list
        id: u64,
    },
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let ui = &context.ui;
    if let Some(Act::Replay { id }) = args.act {
        let started: Started = client.post(&format!("inbox/{id}/replay"), &serde_json::json!({})).await?;
        trigger::report(context, &started, false);
        return Ok(Exit::Good);
    }
    let found: Vec<InboxView> = client.get("inbox", &[("limit", args.limit.to_string())]).await?;
    if ui.json {
        ui.json(&found);
        return Ok(Exit::Good);
    }
    if found.is_empty() {
        ui.say("nothing was reported yet");
        return Ok(Exit::Good);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<Cell>> = found.iter().map(|entry| row(entry, now)).collect();
    for line in
        table::lines(ui, &["ID", "STATE", "REPO", "REF", "CHANGE", "FROM", "WHEN", "OUTCOME"], &rows, ui.columns())
    {
        ui.out(line);
    }
    Ok(Exit::Good)
}

fn row(entry: &InboxView, now: Timestamp) -> Vec<Cell> {
    let tone = match entry.state.as_str() {
        "pending" => Tone::Active,
        "dropped" => Tone::Dim,
        _ => Tone::Good,
    };
    let short = |oid: &crate::model::Oid| if oid.is_zero() { "-".to_owned() } else { oid.short().to_owned() };
    let feeders: Vec<&str> = entry.feeders.iter().map(|feeder| feeder.as_str()).collect();
    let mut outcome = words::run_list(&entry.runs);
    if let Some(reason) = &entry.reason {
        outcome =
            [outcome, words::clean(reason)].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
    }
    vec![
        Cell::toned(Tone::Strong, entry.id.to_string()),
        Cell::toned(tone, entry.state.as_str()),
        entry.repo.as_str().into(),
        table::cut(&words::clean(words::short_ref(&entry.git_ref)), 24).into(),
        Cell::toned(Tone::Dim, format!("{}..{}", short(&entry.old), short(&entry.new))),
        feeders.join(",").into(),
        words::ago(entry.at, now).into(),
        outcome.into(),
    ]
}
