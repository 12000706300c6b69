//! Masking, framing, storing and reading log lines.
//!
//! In come chunks of a step's output from `runtime`, passed on by `step`; out go stored lines for `web` and `cli`.
//! On the way: [`mark`] takes the helper's marks out, `lines` makes lines of chunks (with `overwrite` for progress
//! bars and [`mask`] for secrets), [`mod@file`] stores them in frames with the cursor to go on from, [`read`] reads them,
//! and [`hub`] wakes those who follow. The format and why it is so: `docs/decisions/0004-log-frames.md`.

pub mod file;
mod frame;
pub mod hub;
mod lines;
pub mod mark;
pub mod mask;
mod overwrite;
pub mod read;
