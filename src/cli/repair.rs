//! `mainstay repair`: what was changed by hand is put back.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Context, deploys};
use crate::model::EnvironmentName;
use crate::model::deploy_view::DeployStarted;

/// Put the release that should serve back, where something was changed by hand
#[derive(Debug, clap::Args)]
#[command(after_help = "`mainstay environments ENV` shows what differs.")]
pub struct Args {
    /// The environment
    environment: EnvironmentName,
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
    let path = format!("environments/{}/repair", args.environment);
    let started: DeployStarted = client.post(&path, &serde_json::json!({})).await?;
    deploys::follow(&client, context, &started, args.detach).await
}
