//! Recovery on real servers and real stores: what goes into a repository comes back, or somebody is told.

mod alarms;
mod catalog;
mod incremental;
mod keeper;
mod logical;
mod repository;
mod restore;
mod ship;
mod source;
mod story;
mod take;
