//! `mainstay rollback`: back to what was good.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Context, deploys};
use crate::model::EnvironmentName;
use crate::model::deploy_view::{DeployStarted, EnvironmentView, RollbackRequest};

/// Put the last verified release back, and hold the one that serves
///
/// A deploy under way is taken back; otherwise the release before the one that serves is deployed. No approval is needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay rollback                      when there is one environment only
  mainstay rollback production --to 5    to that release

Exit codes: 0 the earlier release serves and is well, 1 it does not: a person has to act.")]
pub struct Args {
    /// The environment [default: the only one]
    environment: Option<EnvironmentName>,
    /// To this release [default: the last one that was verified]
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    /// Do not wait for the end
    #[arg(short, long)]
    detach: bool,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer, or there is nothing to go back to.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let name = match &args.environment {
        Some(name) => name.clone(),
        None => the_only_one(&client).await?,
    };
    let request = RollbackRequest { to: args.to };
    let started: DeployStarted = client.post(&format!("environments/{name}/rollback"), &request).await?;
    deploys::follow(&client, context, &started, args.detach).await
}

async fn the_only_one(client: &Client) -> Result<EnvironmentName, Failure> {
    let mut all: Vec<EnvironmentView> = client.get("environments", &[]).await?;
    match (all.pop(), all.len()) {
        (Some(one), 0) => Ok(one.name),
        (None, _) => Err(Failure::wrong("roll back: mainstay.yml has no `environments`")),
        (Some(last), _) => {
            let mut names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
            names.push(last.name.as_str());
            let failure = Failure::wrong("roll back: there is more than one environment");
            Err(names.iter().fold(failure, |failure, name| failure.hint(format!("mainstay rollback {name}"))))
        }
    }
}
