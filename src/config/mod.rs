//! What the files say, and whether it makes sense.
//!
//! Text comes in from `trigger`, `daemon` and `cli`; out go a [`pipeline::Pipeline`], a [`daemon::Daemon`] or a
//! [`backup::Source`] that need no further doubt, or [`finding::Findings`]: everything that is wrong, each with its place. Two
//! stages: `yaml` reads what is written, `pipeline`, `daemon` and `backup` say what it means.

pub mod backup;
mod check;
pub mod daemon;
pub mod expression;
pub mod finding;
mod globs;
mod interpolate;
pub(crate) mod needs;
pub mod pipeline;
mod recipient;
pub mod schedule;
pub mod schema;
pub mod secret;
pub(crate) mod yaml;

pub use finding::{Finding, Findings, Severity};

use crate::small_file;
use std::path::Path;

/// Reads a file people write: regular, of bounded size, UTF-8.
///
/// # Errors
/// One finding that says why it cannot be read.
pub fn read_file(path: &Path) -> Result<String, Finding> {
    small_file::read_text(path, small_file::TEXT_MAX_BYTES)
        .map_err(|error| Finding::general(format!("the file cannot be read: {error}")))
}
