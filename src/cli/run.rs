//! `mainstay run` (to be written)

use super::exit::{Exit, Failure};
use super::ui::Ui;
use std::path::Path;

/// Run a pipeline here, from the working tree, without a daemon
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// (to be written)
pub fn run(_args: &Args, _config: Option<&Path>, _ui: &Ui) -> Result<Exit, Failure> {
    Err(Failure::wrong("run: not in this build"))
}
