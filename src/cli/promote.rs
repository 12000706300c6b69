//! `mainstay promote`: the same bytes, one environment further.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Context, deploys};
use crate::model::EnvironmentName;
use crate::model::deploy_view::{DeployStarted, PromoteRequest};

/// Deploy the release of another environment; nothing is built again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay promote production                       what is verified where `promote-from` says
  mainstay promote production --from staging --release 7

Exit codes: 0 it is verified, 1 it turned bad, 4 it was refused or rejected.")]
pub struct Args {
    /// Where to
    environment: EnvironmentName,
    /// Where from [default: `promote-from` of the environment in mainstay.yml]
    #[arg(long, value_name = "ENV")]
    from: Option<EnvironmentName>,
    /// Which release of it [default: the last one that was verified there]
    #[arg(long, value_name = "N")]
    release: Option<u64>,
    /// Do not wait for the end of a watch, and serve without one
    #[arg(long)]
    now: bool,
    /// Do not wait for the end
    #[arg(short, long)]
    detach: bool,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let request = PromoteRequest { from: args.from.clone(), release: args.release, now: args.now };
    let started: DeployStarted = client.post(&format!("environments/{}/promote", args.environment), &request).await?;
    deploys::follow(&client, context, &started, args.detach).await
}
