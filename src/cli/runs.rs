//! `mainstay runs`: a table of runs, the newest first.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::Tone;
use super::{Context, words};
use crate::model::api::{RunFilter, RunSummary};
use crate::model::{RepoName, RunId, RunStatus};
use jiff::Timestamp;

/// List runs, the newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay runs --repo shop --status failure
  mainstay --json runs --limit 100 | jq -r '.[].id'")]
pub struct Args {
    /// Only runs of this repository
    #[arg(long, value_name = "REPO")]
    repo: Option<RepoName>,
    /// Only runs in this state: queued, running, success, failure, cancelled or error
    #[arg(long, value_name = "STATUS")]
    status: Option<RunStatus>,
    /// Only runs before this one: the next page
    #[arg(long, value_name = "RUN")]
    before: Option<RunId>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = RunFilter::limit_default(), value_parser = clap::value_parser!(u32).range(1..=i64::from(RunFilter::LIMIT_MAX)))]
    limit: u32,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let filter = RunFilter { repo: args.repo.clone(), status: args.status, before: args.before, limit: args.limit };
    let found = Client::new(&context.place)?.runs(&filter).await?;
    let ui = &context.ui;
    if ui.json {
        ui.json(&found);
        return Ok(Exit::Good);
    }
    if found.is_empty() {
        ui.say("no runs");
        return Ok(Exit::Good);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<Cell>> = found.iter().map(|run| row(run, now)).collect();
    let head = ["RUN", "STATUS", "REPO", "PIPELINE", "REF", "COMMIT", "WHEN", "TOOK", "TITLE"];
    for line in table::lines(ui, &head, &rows, ui.columns()) {
        ui.out(line);
    }
    if found.len() == args.limit as usize
        && let Some(last) = found.last()
    {
        ui.say(format!("there may be more: `mainstay runs --before {}`", last.id));
    }
    Ok(Exit::Good)
}

fn row(run: &RunSummary, now: Timestamp) -> Vec<Cell> {
    let (sign, tone) = words::status_sign(run.status);
    let title = match &run.error {
        // Findings go on with the lines they are about; `show` has those.
        Some(error) => {
            let first = error.lines().next().unwrap_or_default();
            format!("{} ({})", words::clean(&run.title), words::clean(first))
        }
        None => words::clean(&run.title),
    };
    vec![
        Cell::toned(Tone::Strong, format!("#{}", run.id)),
        Cell::toned(tone, format!("{sign} {}", run.status)),
        run.repo.as_str().into(),
        run.pipeline.as_str().into(),
        // A ref name may be 250 bytes long; the table should not be.
        table::cut(&words::clean(words::short_ref(&run.git_ref)), 24).into(),
        Cell::toned(Tone::Dim, run.commit.short()),
        words::ago(run.created_at, now).into(),
        words::span(run.started_at, run.finished_at, now).into(),
        title.into(),
    ]
}
