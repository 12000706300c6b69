//! From a repository back to a server that answers: on real servers, whole and broken repositories, and killed restores.

mod broken;
mod contained;
mod killed;
mod targets;
mod world;
