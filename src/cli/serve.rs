//! `mainstay serve`: the daemon in the foreground, for systemd or a terminal.

use super::exit::{Exit, Failure};
use super::ui::Ui;
use crate::config::Findings;
use std::path::Path;

/// Watch the repositories and run what is pushed: the daemon
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start: a wrong file, a state folder in use or a port taken. An engine that is away is waited for.
pub fn run(_args: &Args, config: Option<&Path>, ui: &Ui) -> Result<Exit, Failure> {
    let Some(config) = config else {
        return Err(Failure::wrong("find a configuration: there is no mainstay.yml here nor in /etc/mainstay")
            .hint("`mainstay init` writes one; `--config FILE` names one elsewhere"));
    };
    share_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("mainstay")
        .build()
        .map_err(|error| Failure::wrong(format!("start the daemon's threads: {error}")))?;
    match runtime.block_on(crate::daemon::serve(config)) {
        Ok(()) => {
            // Blocking work (a fetch that hangs) must not hold up the stop; everything that counts is stored.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            Ok(Exit::Good)
        }
        Err(error) => Err(match error.downcast_ref::<Findings>() {
            Some(findings) => {
                ui.say(findings.render(ui.color_err));
                Failure::wrong(format!("read {}", config.display()))
            }
            None => Failure::from(error),
        }),
    }
}

/// Has all threads share two heaps. The allocator would make up to eight per core and give none back: what a log's
/// reader takes there and another thread lets go stays, and five chatty steps double the daemon's memory.
#[cfg(target_env = "gnu")]
fn share_heaps() {
    const HEAPS: libc::c_int = 2;
    // SAFETY: sets a number inside the allocator, under its own lock. It refuses only numbers below zero.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
}

#[cfg(not(target_env = "gnu"))]
fn share_heaps() {}
