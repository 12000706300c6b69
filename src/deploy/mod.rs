//! Deploys: an environment is brought to a release, watched, and taken back when it turns bad.

pub mod health;
pub mod shell;
pub mod target;
