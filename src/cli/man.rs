//! `mainstay man`: a manual page for every command.

use super::exit::{Exit, Failure};
use super::ui::Ui;
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// Write a manual page for every command into a folder
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mainstay man /usr/local/share/man/man1 && man mainstay-logs")]
pub struct Args {
    /// The folder; made when it is not there
    dir: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When the folder cannot be written.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit, Failure> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("make the folder {}", args.dir.display()))?;
    let mut command = super::command();
    // Fills in global options and full names of subcommands.
    command.build();
    let mut written = Vec::new();
    pages(&command, "mainstay", &args.dir, &mut written)?;
    if ui.json {
        ui.json(&written);
    } else {
        ui.say(format!("wrote {} pages to {}", written.len(), args.dir.display()));
    }
    Ok(Exit::Good)
}

fn pages(command: &clap::Command, name: &str, dir: &Path, written: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let file = dir.join(format!("{name}.1"));
    let mut page = Vec::new();
    // The page's title is one word; the usage line inside keeps the blank between command and subcommand.
    clap_mangen::Man::new(command.clone()).title(name).render(&mut page).context("make a manual page")?;
    std::fs::write(&file, page).with_context(|| format!("write {}", file.display()))?;
    written.push(file);
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        pages(sub, &format!("{name}-{}", sub.get_name()), dir, written)?;
    }
    Ok(())
}
