//! `mainstay serve` (to be written)

use super::exit::{Exit, Failure};
use super::ui::Ui;
use std::path::Path;

/// Watch the repositories and run what is pushed: the daemon
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// (to be written)
pub fn run(_args: &Args, _config: Option<&Path>, _ui: &Ui) -> Result<Exit, Failure> {
    Err(Failure::wrong("serve: not in this build"))
}
