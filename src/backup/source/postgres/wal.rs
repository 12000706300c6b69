//! The log as the server writes it: `START_REPLICATION`, and what we tell the server of it.
//!
//! A task of its own holds the connection. It checks that bytes are contiguous from the place that was asked for, answers
//! the server's questions at once and sends a status every few seconds, whatever the caller does with the data meanwhile:
//! when nobody takes events it stops reading, not answering.
//!
//! What the caller reports as flushed is a promise with no way back: the server removes its log up to there. It is never
//! made smaller, and never goes beyond the end of the log that the server itself has told, because a server believes both.
//! Source: the manual's "Streaming Replication Protocol", and `PhysicalConfirmReceivedLocation` in `walsender.c`.

use super::WalEvent;
use super::connect::{Connection, Purpose};
use super::error::PostgresError;
use super::reader::{Reader, removed};
use crate::model::{Lsn, SystemId, Timeline};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Events that wait for the caller: 16 of usually at most 128 KiB. More would not be faster: the server's socket buffer is
/// behind it.
const WAITING_EVENTS: usize = 16;
/// A status goes at least this often: what `wal_receiver_status_interval` of a standby is set to is 10 s, which a server
/// with a short `wal_sender_timeout` would not wait for.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Not more often than this on a timer, however short the server's patience.
const STATUS_AT_MOST: Duration = Duration::from_millis(100);
/// Where and how to read.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// The slot that keeps the log for us.
    pub slot: Option<String>,
    /// The cluster that must answer.
    pub system: SystemId,
    /// The first byte. A segment that is to be kept whole is read from its border: only there its header stands.
    pub from: Lsn,
    /// On this timeline.
    pub timeline: Timeline,
    /// Read from a standby too. Otherwise one is refused: it may be a primary that was replaced.
    pub standby: bool,
    /// When the server says nothing for so long, not even on being asked, the connection is dead.
    pub patience: Duration,
}

impl WalOptions {
    /// From that place, without a slot, from a primary only, with a minute's patience.
    pub fn new(system: SystemId, timeline: Timeline, from: Lsn) -> WalOptions {
        WalOptions { slot: None, system, from, timeline, standby: false, patience: Duration::from_secs(60) }
    }
}

/// What the caller has of the log: each is the place after the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Received.
    pub write: Lsn,
    /// Durable. The server removes its log up to here.
    pub flush: Lsn,
    /// Applied, for `synchronous_commit = remote_apply`.
    pub apply: Lsn,
}

impl Progress {
    /// All three at one place, as durable log in a repository is.
    pub fn all(at: Lsn) -> Progress {
        Progress { write: at, flush: at, apply: at }
    }

    /// Never smaller than before, never beyond the server's end. Zero says nothing.
    pub(super) fn advance(self, wanted: Progress, server_end: Lsn) -> Progress {
        let step = |before: Lsn, wanted: Lsn| before.max(wanted.min(server_end));
        Progress {
            write: step(self.write, wanted.write),
            flush: step(self.flush, wanted.flush),
            apply: step(self.apply, wanted.apply),
        }
    }

    fn max(self, other: Progress) -> Progress {
        self.advance(other, Lsn(u64::MAX))
    }
}

/// Tells the server what is durable. Clones tell the same server.
#[derive(Debug, Clone)]
pub struct Reporter {
    wanted: watch::Sender<Progress>,
}

impl Reporter {
    /// Reports; the server learns it at once. A smaller place than one reported before changes nothing, one beyond the end
    /// of the server's log counts as that end until the log is longer.
    pub fn report(&self, progress: Progress) {
        self.wanted.send_if_modified(|before| {
            let after = before.max(progress);
            let changed = *before != after;
            *before = after;
            changed
        });
    }
}

/// The log, as it arrives.
pub struct WalStream {
    events: mpsc::Receiver<Result<WalEvent, PostgresError>>,
    reporter: Reporter,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Option<Connection>>,
}

impl std::fmt::Debug for WalStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WalStream")
    }
}

impl WalStream {
    /// Begins to read.
    ///
    /// # Errors
    /// [`PostgresError::OtherCluster`], [`PostgresError::Standby`], [`PostgresError::Ahead`], [`PostgresError::LogRemoved`], or what the server
    /// refuses with: the place is not in its history, the slot is in use or missing.
    pub async fn start(mut connection: Connection, options: WalOptions) -> Result<WalStream, PostgresError> {
        if connection.purpose != Purpose::Replication {
            return Err(PostgresError::Usage("read the log: this connection is for SQL".into()));
        }
        let identity = connection.identify().await?;
        if identity.system != options.system {
            return Err(PostgresError::OtherCluster { found: identity.system, wanted: options.system });
        }
        if !options.standby && connection.in_recovery().await? {
            return Err(PostgresError::Standby);
        }
        if options.timeline == identity.timeline && options.from > identity.flushed {
            return Err(PostgresError::Ahead { from: options.from, end: identity.flushed });
        }
        let status_every = match connection.show("wal_sender_timeout").await?.as_deref().and_then(duration) {
            Some(timeout) if !timeout.is_zero() => (timeout / 3).clamp(STATUS_AT_MOST, STATUS_EVERY),
            _ => STATUS_EVERY,
        };
        let (mut sent, mut told) = (Progress::default(), false);
        let slot = match &options.slot {
            Some(name) => {
                if !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
                    return Err(PostgresError::Usage(format!(
                        "read the log: `{}` is no name of a slot",
                        name.escape_debug()
                    )));
                }
                // What an earlier connection promised holds on this one. Older servers do not tell it here.
                if connection.major() >= 15
                    && let Some(slot) = connection.slot(name).await?
                {
                    told = true;
                    sent.flush = slot.restart.unwrap_or_default();
                }
                format!("SLOT {name} ")
            }
            None => String::new(),
        };
        let text = format!("START_REPLICATION {slot}PHYSICAL {} TIMELINE {}", options.from, options.timeline);
        connection.wire.command("read the log", &text).await?;
        let first = connection.wire.expect().await.map_err(|error| removed(error, &options, told))?;
        let (wanted, wants) = watch::channel(Progress::default());
        let (sender, events) = mpsc::channel(WAITING_EVENTS);
        let (stop, stopped) = oneshot::channel();
        let reader = Reader {
            connection,
            expected: options.from,
            server_end: identity.flushed,
            sent,
            status_every,
            deaf: false,
            told,
            options,
        };
        let task = match first.tag {
            b'W' => tokio::spawn(reader.run(sender, wants, stopped)),
            // The timeline ends exactly here: the server goes over to its end at once.
            b'T' => {
                let mut reader = reader;
                let event = reader.timeline_end(Some(first)).await?;
                tokio::spawn(async move {
                    let _ = sender.send(Ok(event)).await;
                    Some(reader.connection)
                })
            }
            other => {
                return Err(reader
                    .connection
                    .wire
                    .wrong(format!("a message `{}` in place of the log", other.escape_ascii())));
            }
        };
        Ok(WalStream { events, reporter: Reporter { wanted }, stop: Some(stop), task })
    }

    /// The next event. After `TimelineEnds` and after an error nothing more comes. May be dropped and called again.
    ///
    /// # Errors
    /// [`PostgresError::Hole`] when bytes are missing or doubled; [`PostgresError::ShuttingDown`] when the server stops: the
    /// caller waits before it comes back; [`PostgresError::LogRemoved`] when the server no longer has the log.
    pub async fn next(&mut self) -> Result<WalEvent, PostgresError> {
        self.events.recv().await.unwrap_or_else(|| Err(PostgresError::Cut { doing: "read the log".into() }))
    }

    /// What tells the server how far the log is durable.
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// Reports; see [`Reporter::report`].
    pub fn report(&self, write: Lsn, flush: Lsn, apply: Lsn) {
        self.reporter.report(Progress { write, flush, apply });
    }

    /// Stops cleanly, after a last status, and gives the connection back, ready for the next command; `None` when it broke.
    /// Events that nobody took are dropped.
    pub async fn stop(mut self) -> Option<Connection> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        // Or a full queue would keep the task from seeing the stop.
        self.events.close();
        while self.events.recv().await.is_some() {}
        self.task.await.ok().flatten()
    }
}

/// A setting of time as `SHOW` prints it: `1min`, `500ms`, `0`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at].parse().ok()?;
    let millis = match text[at..].trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(millis)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r01_what_is_reported_never_goes_back_and_never_beyond_the_server() {
        let mut sent = Progress::default();
        for (wanted, server_end, flush) in
            [(10, 5, 5), (10, 8, 8), (3, 20, 8), (10, 20, 10), (0, 30, 10), (u64::MAX, 30, 30)]
        {
            sent = sent.advance(Progress::all(Lsn(wanted)), Lsn(server_end));
            assert_eq!(sent, Progress::all(Lsn(flush)));
        }
    }

    #[test]
    fn settings_of_time_are_read() {
        for (text, millis) in [
            ("1min", Some(60_000)),
            ("500ms", Some(500)),
            ("0", Some(0)),
            ("2h", Some(7_200_000)),
            ("x", None),
            ("5 weeks", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
