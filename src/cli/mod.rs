//! The command line: one file per command.

pub mod demo;
pub mod exit;
pub mod graph;
pub mod init;
pub mod plan;
pub mod schema;
pub mod ui;
pub mod validate;
