//! `mainstay retry`: repeats a run as a new one.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Context, logs, trigger};
use crate::model::StepName;
use crate::model::api::{RetryRequest, Started};

/// Repeat a run, whole or from a step on
///
/// The new run takes the same commit and the same plan. With --from, what came before that step is taken over.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay retry latest
  mainstay retry 12 --from test --follow")]
pub struct Args {
    /// The run: 12, #12 or latest
    run: String,
    /// Begin at this step and keep what came before
    #[arg(long, value_name = "STEP")]
    from: Option<StepName>,
    /// Show the log of the new run, until it ends
    #[arg(short, long)]
    follow: bool,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer, does not know the run or the step, or the run is not over.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let run = client.run_number(&args.run).await?;
    let started: Started = client.post(&format!("runs/{run}/retry"), &RetryRequest { from: args.from.clone() }).await?;
    trigger::report(context, &started, args.follow);
    match started.runs.first() {
        Some(new) if args.follow => logs::follow(&client, context, *new, &logs::Wish::default()).await,
        _ => Ok(Exit::Good),
    }
}
