//! `mainstay hold`: nothing is deployed to an environment for now.

use super::Context;
use super::client::Client;
use super::exit::{Exit, Failure};
use crate::model::EnvironmentName;
use crate::model::deploy_view::{EnvironmentView, HoldRequest};

/// Deploy nothing to an environment until `release-hold`
///
/// A rollback is possible all the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mainstay hold production --reason 'the migration runs until noon'")]
pub struct Args {
    /// The environment
    environment: EnvironmentName,
    /// Why; shown to everybody who is kept waiting
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let request = HoldRequest { reason: args.reason.clone() };
    let view: EnvironmentView = client.post(&format!("environments/{}/hold", args.environment), &request).await?;
    if context.ui.json {
        context.ui.json(&view);
    } else {
        context.ui.out(format!("{0} is held; `mainstay release-hold {0}` ends that", args.environment));
    }
    Ok(Exit::Good)
}
