//! `mainstay status`: one look at the daemon.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::ui::Tone;
use super::{Context, words};
use crate::model::api::DaemonStatus;
use jiff::Timestamp;

/// Say whether the daemon runs and what it does
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command. A daemon that cannot carry out runs now is exit code 1.
///
/// # Errors
/// When the daemon does not answer.
pub async fn run(_args: &Args, context: &Context) -> Result<Exit, Failure> {
    let status: DaemonStatus = Client::new(&context.place)?.get("status", &[]).await?;
    let ui = &context.ui;
    let ready = status.runtime_ok && status.not_ready.is_empty();
    if ui.json {
        ui.json(&status);
    } else {
        let (sign, tone) = if ready { ("✓", Tone::Good) } else { ("✗", Tone::Bad) };
        ui.out(format!(
            "{} mainstay {}, up {}; {}; {}; {} running, {} waiting",
            ui.paint(tone, sign),
            words::clean(&status.version),
            words::took(words::between(status.started_at, Timestamp::now())),
            words::clean(&status.runtime),
            words::repositories(status.repos),
            status.running,
            status.queued,
        ));
        for reason in &status.not_ready {
            ui.out(format!("  {}", ui.paint(Tone::Bad, words::clean(reason))));
        }
    }
    Ok(if ready { Exit::Good } else { Exit::Bad })
}
