//! `mainstay schema [pipeline|daemon|backup]`: the JSON Schema of a file, for editors.

use super::exit::{Exit, Failure};
use super::ui::Ui;
use crate::config::schema;

/// Print the JSON schema of a file people write
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which file.
    #[arg(value_enum, default_value_t = Which::Pipeline)]
    pub which: Which,
}

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// `.mainstay/*.yml`
    Pipeline,
    /// `mainstay.yml`
    Daemon,
    /// `backups/*.yml`
    Backup,
}

/// Runs the command.
///
/// # Errors
/// None: the schema is part of the program.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit, Failure> {
    let schema = match args.which {
        Which::Pipeline => schema::pipeline(),
        Which::Daemon => schema::daemon(),
        Which::Backup => schema::backup(),
    };
    if ui.json {
        ui.json(&schema);
    } else {
        ui.out(format!("{schema:#}"));
    }
    Ok(Exit::Good)
}
