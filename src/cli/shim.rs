//! `mainstay shim`: the process that stands beside a step of the process runtime. Not for people.

use super::exit::{Exit, Failure};
use std::ffi::OsString;

/// Stands beside a step of the process runtime
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
    words: Vec<OsString>,
}

/// Hands over to the process runtime.
///
/// # Errors
/// When the process runtime refuses the words.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    match crate::runtime::process::shim_main(&args.words) {
        Ok(()) => Ok(Exit::Good),
        Err(error) => Err(Failure::wrong(format!("stand beside a step: {error}"))),
    }
}
