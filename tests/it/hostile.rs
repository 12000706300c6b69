//! Input that wants to do harm, through the real daemon and the real command line: every one has a clear error of bounded
//! size, and the daemon is alive after all of them.

mod disk;
mod files;
pub(crate) mod lab;
mod reports;
mod secrets;
mod steps;
