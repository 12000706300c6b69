//! What the files say, and whether it makes sense.
//!
//! Text comes in from `trigger`, `daemon` and `cli`; out go a [`pipeline::Pipeline`] or a [`daemon::Daemon`] that need no
//! further doubt, or [`finding::Findings`]: everything that is wrong, each with its place. Two stages: `yaml` reads what is
//! written, `pipeline` and `daemon` say what it means.

mod check;
pub mod expression;
pub mod finding;
mod globs;
pub(crate) mod needs;
pub mod pipeline;
pub mod schedule;
pub mod secret;
mod yaml;

pub use finding::{Finding, Findings, Severity};
