//! `mainstay graph FILE`: the steps of a pipeline as a graph.

use super::exit::{Exit, Failure};
use super::ui::{Tone, Ui};
use super::validate::read_pipeline;
use crate::plan::{self, show};
use std::path::PathBuf;

/// Draw a pipeline's graph
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How to draw them.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// A way of drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For the terminal.
    Text,
    /// For Graphviz.
    Dot,
    /// For Markdown pages.
    Mermaid,
    /// A picture.
    Svg,
}

/// Runs the command.
///
/// # Errors
/// When the file is not a valid pipeline.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit, Failure> {
    let (pipeline, digest) = read_pipeline(&args.file).map_err(Failure::of_files)?;
    let file = args.file.display().to_string();
    let plan = plan::make(&pipeline, &file, &digest, &plan::Defaults::default()).map_err(Failure::of_files)?;
    if ui.json {
        ui.json(&plan);
        return Ok(Exit::Good);
    }
    let none = |_: &_| None;
    let text = match args.format {
        Format::Text => show::text_painted(&plan, &none, ui.columns(), &|_, label| ui.paint(Tone::Strong, label)),
        Format::Dot => show::dot(&plan, &none),
        Format::Mermaid => show::mermaid(&plan, &none),
        Format::Svg => show::svg(&plan, &none),
    };
    ui.out(text.trim_end_matches('\n'));
    Ok(Exit::Good)
}
