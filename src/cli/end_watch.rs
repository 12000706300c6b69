//! `mainstay end-watch`: a person takes the end of a watch upon themselves.

use super::Context;
use super::client::Client;
use super::exit::{Exit, Failure};
use crate::model::EnvironmentName;
use crate::model::deploy_view::EnvironmentView;

/// End the watch of the deploy under way: it serves, and nobody says that it is good
///
/// The release stays `unverified`: `mainstay rollback` goes back to one that was verified before it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 it serves from now on, 2 nothing is being watched there.

Example:
  mainstay end-watch production")]
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
    let path = format!("environments/{}/end-watch", args.environment);
    let view: EnvironmentView = client.post(&path, &serde_json::json!({})).await?;
    if context.ui.json {
        context.ui.json(&view);
    } else {
        let number = view.current.map(|current| format!("release {} of ", current.release.number)).unwrap_or_default();
        context.ui.out(format!("{number}{} serves, unverified", args.environment));
    }
    Ok(Exit::Good)
}
