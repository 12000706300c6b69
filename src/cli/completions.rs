//! `mainstay completions`: a completion script for a shell.

use super::exit::{Exit, Failure};
use super::ui::Ui;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay completions bash > /etc/bash_completion.d/mainstay
  mainstay completions zsh > \"${fpath[1]}/_mainstay\"
  mainstay completions fish > ~/.config/fish/completions/mainstay.fish")]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

/// Runs the command.
///
/// # Errors
/// None at present.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "mainstay", &mut script);
    ui.raw(&script);
    Ok(Exit::Good)
}
