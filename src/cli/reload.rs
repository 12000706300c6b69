//! `mainstay reload`: the daemon reads its configuration again.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Context, words};
use crate::model::api::Reloaded;

/// Make the daemon read its configuration again
///
/// The whole file is checked first; when anything in it is wrong, nothing changes. SIGHUP does the same.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or the file is wrong.
pub async fn run(_args: &Args, context: &Context) -> Result<Exit, Failure> {
    let answer: Reloaded = Client::new(&context.place)?.post("reload", &serde_json::json!({})).await?;
    let ui = &context.ui;
    if ui.json {
        ui.json(&answer);
    } else if answer.changes.is_empty() {
        ui.out("reloaded; nothing changed");
    } else {
        ui.out("reloaded:");
        for change in &answer.changes {
            ui.out(format!("  {}", words::clean(change)));
        }
    }
    Ok(Exit::Good)
}
