//! From a repository back to a server that answers: on real servers, whole and broken repositories, and killed restores.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

mod broken;
mod chain;
mod contained;
mod killed;
mod racing;
mod rules;
mod swept;
mod targets;
mod world;
