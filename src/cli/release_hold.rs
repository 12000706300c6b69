//! `mainstay release-hold`: deploys are possible again.

use super::Context;
use super::client::Client;
use super::exit::{Exit, Failure};
use crate::model::EnvironmentName;
use crate::model::deploy_view::HoldReleased;

/// Lift the holds of an environment: what was rolled back may be deployed again
///
/// It also says that a person has seen to a deploy that failed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The environment
    environment: EnvironmentName,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let path = format!("environments/{}/release-hold", args.environment);
    let done: HoldReleased = client.post(&path, &serde_json::json!({})).await?;
    if context.ui.json {
        context.ui.json(&done);
    } else {
        let holds = if done.lifted == 1 { "1 hold" } else { &format!("{} holds", done.lifted) };
        context.ui.out(format!("{holds} of {} lifted", args.environment));
    }
    Ok(Exit::Good)
}
