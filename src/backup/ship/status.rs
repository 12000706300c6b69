//! How shipping stands, for `status`, metrics, and for whoever waits until a place of the log is durable.

use crate::model::{Lsn, SystemId, Timeline};
use jiff::Timestamp;
use std::time::Duration;
use tokio::sync::watch;

/// What a shipper does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// Connecting, or reading what is stored.
    #[default]
    Starting,
    /// Reading the log.
    Streaming,
    /// The server is away; it will be tried again.
    Waiting,
    /// The server or the repository is not what was expected: a person is needed. It is tried again all the same.
    Refused,
    /// Told to stop.
    Stopped,
}

/// How shipping stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// What it does.
    pub activity: Activity,
    /// The same in words, with the cause.
    pub words: String,
    /// Whose log is shipped: a cluster that this source is known to be, or that somebody said yes to.
    pub system: Option<SystemId>,
    /// The timeline that is read.
    pub timeline: Option<Timeline>,
    /// Everything before this place has come from the server.
    pub received: Option<Lsn>,
    /// Everything of `timeline` before this place is in the repository.
    pub durable: Option<Lsn>,
    /// What the server was told: it may remove its log up to here.
    pub acknowledged: Option<Lsn>,
    /// The end of the server's log, as it told last.
    pub server_end: Option<Lsn>,
    /// The server's clock at a moment up to which everything is in the repository.
    pub durable_time: Option<Timestamp>,
    /// How long the oldest byte that came and is not durable has waited.
    pub waiting: Duration,
    /// What failed last and has not succeeded since.
    pub last_error: Option<String>,
    /// Why a new base backup is needed: log is missing, and nothing before it can be restored past it.
    pub needs_base: Option<String>,
}

impl Status {
    /// Bytes of the server's log that are not in the repository.
    pub fn lag_bytes(&self) -> Option<u64> {
        Some(self.server_end?.0.saturating_sub(self.durable?.0))
    }

    /// Whether everything of `timeline` before `at` is in the repository. A timeline that has ended is there to its end.
    pub fn has(&self, timeline: Timeline, at: Lsn) -> bool {
        match (self.timeline, self.durable) {
            (Some(now), Some(durable)) => now > timeline || (now == timeline && durable >= at),
            _ => false,
        }
    }
}

/// Where the status is written. Clones write the same one.
#[derive(Debug, Clone)]
pub(super) struct Board(watch::Sender<Status>);

impl Board {
    pub(super) fn new() -> Board {
        Board(watch::Sender::new(Status { words: "starting".into(), ..Status::default() }))
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    /// Changes it; those who watch wake when something is different.
    pub(super) fn change(&self, change: impl FnOnce(&mut Status)) {
        self.0.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    pub(super) fn activity(&self, activity: Activity, words: impl Into<String>) {
        self.change(|status| (status.activity, status.words) = (activity, words.into()));
    }

    pub(super) fn failed(&self, error: &impl std::fmt::Display) {
        self.change(|status| status.last_error = Some(error.to_string()));
    }
}
