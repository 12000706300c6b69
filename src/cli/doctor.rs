//! doctor
use super::Context;
use super::exit::{Exit, Failure};

/// See whether this machine has what a daemon needs
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// None.
pub async fn run(_args: &Args, _context: &Context) -> Result<Exit, Failure> {
    Ok(Exit::Good)
}
