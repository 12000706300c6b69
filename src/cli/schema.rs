//! (to be written)

use super::exit::{Exit, Failure};
use super::ui::Ui;

/// Print the JSON schema of a file people write
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// (to be written)
pub fn run(_args: &Args, _ui: &Ui) -> Result<Exit, Failure> {
    Ok(Exit::Good)
}
