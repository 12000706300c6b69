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

use std::io::Read as _;
use std::path::Path;

/// Reads a file people write: regular, of bounded size, UTF-8.
///
/// # Errors
/// One finding that says why it cannot be read.
pub fn read_file(path: &Path) -> Result<String, Finding> {
    let failed = |error: std::io::Error| Finding::general(format!("failed to read the file: {error}"));
    let file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Finding::general("this is not a file"));
    }
    let mut bytes = Vec::new();
    // One byte more than is allowed, so that `yaml::read` sees and says that it is too large.
    file.take(yaml::TEXT_MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > yaml::TEXT_MAX_BYTES {
        return Err(Finding::general("the file is longer than 1 MiB, which no pipeline or settings file is"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Finding::general(format!("the file is not UTF-8 text (line {line})"))
    })
}
