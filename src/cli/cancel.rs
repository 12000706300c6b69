//! `mainstay cancel`: asks a run to stop.

use super::Context;
use super::client::Client;
use super::exit::{Exit, Failure};
use crate::model::api::Cancelling;

/// Stop a run that waits or runs
///
/// Running steps get SIGTERM, and SIGKILL after their grace time; steps with `when: status: cancelled` still run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: 12, #12 or latest
    run: String,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer, does not know the run, or the run is over already.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let run = client.run_number(&args.run).await?;
    let answer: Cancelling = client.post(&format!("runs/{run}/cancel"), &serde_json::json!({})).await?;
    if context.ui.json {
        context.ui.json(&answer);
    } else {
        context.ui.out(format!("run #{run} is being cancelled"));
    }
    Ok(Exit::Good)
}
