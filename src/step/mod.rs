//! What one attempt of one step does: from the recorded start to the recorded end.
//!
//! `engine::drive` calls in with a job that holds everything decided; out comes how it ended. One file per kind of
//! step; this release has `container`.

pub mod container;
pub mod environment;
