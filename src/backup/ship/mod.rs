//! The log as it is written, on its way into the repository: what a server commits is there seconds later.
//!
//! In: a server, a repository, a seal. Out: pieces, whole segments, history files, frontiers, records of gaps, and what the
//! server is told of them; and a [`Status`] for all who ask. Callers: the daemon's keeper and `take`, which waits until the
//! log of a base backup is durable.
//!
//! ```text
//! server -> WalStream -> assemble (what to put, how far it is durable) -> store (seal, put) -> repository
//!                 ^------------------- acknowledged: the gap-free prefix -------------------------'
//! ```
//!
//! # What survives what
//! Nothing is kept but what is in the repository. A start lists it, finds the first hole (`resume`), and has the server
//! send again from the beginning of that segment, so that the segment can be put whole. What comes again is compared with
//! what is stored. A writer that is killed anywhere, a server that goes away, another one that takes its place: all begin
//! there. The server keeps what was not acknowledged, and nothing is acknowledged that is not durable.
//!
//! | file | what it holds |
//! |---|---|
//! | `assemble` | which bytes go when, and how far everything is durable; no I/O |
//! | `resume` | where to read on; no I/O |
//! | `frontier` | when a frontier is due; no I/O |
//! | `prepare` | from a connection to a stretch of the log: whose it is, history files, slot, gaps |
//! | `session` | one stretch: read, put, acknowledge |
//! | `store` | seal and put until it is stored |
//! | `sweep` | pieces that a segment stands for go |
//! | `lease` | one writer per source |

mod assemble;
mod frontier;
pub mod lease;
mod prepare;
mod resume;
mod session;
mod status;
mod store;
mod sweep;

pub use status::{Activity, Status};

use super::repository::{Repository, RepositoryError};
use super::seal::{Checker, SealError, Sealer};
use super::source::postgres::{Address, Connection, PostgresError, Purpose};
use crate::config::secret::Secret;
use crate::model::{Lsn, SourceName, SystemId, Timeline};
use prepare::Prepared;
use session::Ended;
use status::Board;
use std::sync::Arc;
use std::time::Duration;
use store::{Store, jittered};
use sweep::Sweeper;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A server that stops, or one that must not be read, is left alone for at least this long: a program that comes back every
/// second keeps a primary from handing over to its standby.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// The first pause after a broken connection.
const AGAIN: Duration = Duration::from_millis(500);
/// No pause is longer: a server that is back has its log shipped within a minute.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What to ship, and where.
#[derive(Clone)]
pub struct Job {
    /// The source.
    pub source: SourceName,
    /// Where its server is.
    pub address: Address,
    /// The password, where the address has none.
    pub password: Option<Secret>,
    /// The name of the replication slot.
    pub slot: String,
    /// The longest that a byte waits before it is put; the loss that is possible is this and the time of a put.
    pub ship_every: Duration,
    /// Be a synchronous standby: commits wait until they are in the repository.
    pub synchronous: bool,
    /// Read from a standby too.
    pub standby: bool,
    /// Take a cluster that is not the one which is stored for this source.
    pub new_cluster: bool,
    /// Where the log goes.
    pub repository: Arc<dyn Repository>,
    /// Seals it.
    pub sealer: Sealer,
    /// Whom to believe of what is stored.
    pub checker: Checker,
}

/// A shipper at work. Dropped, it ends at once; what was not put the server still has.
#[derive(Debug)]
pub struct Shipper {
    board: Board,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Shipper {
    /// Begins to ship; goes on until it is stopped, whatever happens to the server and the repository.
    pub fn start(job: Job) -> Shipper {
        let (stop, stopped) = watch::channel(false);
        let board = Board::new();
        let task = tokio::spawn(ship(job, board.clone(), stopped));
        Shipper { board, stop, task }
    }

    /// How it stands, now and from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.board.watch()
    }

    /// Puts what has come, and a frontier, and ends. True when that was done within `grace`; otherwise what is missing is
    /// still on the server.
    pub async fn stop(mut self, grace: Duration) -> bool {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(grace, &mut self.task).await.is_ok();
        self.board.activity(Activity::Stopped, "stopped");
        ended
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why the log is not shipped now. `Display` fits after "failed to ship the log: failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The server.
    #[error(transparent)]
    Postgres(Box<PostgresError>),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The seal.
    #[error("seal the log: {0}")]
    Seal(#[from] SealError),
    /// The server is another cluster than the one that is stored.
    #[error(
        "go on with this source: its server is the cluster {found}, and the repository holds {}\nhint: if the cluster was made anew (initdb, pg_upgrade, a restored dump), `mainstay backup {} --new-cluster` says yes to it, once; or give it a source of its own, another file in `backups/`. What is stored of the old one stays as it is either way",
        .stored.iter().map(SystemId::to_string).collect::<Vec<_>>().join(", "), .source_name
    )]
    OtherCluster {
        /// The source.
        source_name: SourceName,
        /// Those that are stored.
        stored: Vec<SystemId>,
        /// The one that answered.
        found: SystemId,
    },
    /// The repository holds what this server does not have.
    #[error("go on with this source: {0}")]
    Refused(String),
    /// Under one name there are two contents.
    #[error(
        "store {name}: it is stored with other content: two servers have written one history\nhint: find out which of them is the primary, stop the other, and give one of them a source of its own; nothing that is stored was changed"
    )]
    TwoHistories {
        /// The name.
        name: String,
    },
    /// What is stored is signed by nobody that is trusted, or damaged.
    #[error("go on after {name}: {error}")]
    Doubtful {
        /// The name.
        name: String,
        /// What is wrong.
        error: SealError,
    },
    /// The server's log is shorter than what is stored of it.
    #[error(
        "go on at {stored} of timeline {timeline}: the server's log ends at {flushed}: it was put back to an older state\nhint: a server that was restored is promoted to a timeline of its own; this one was not, and would write other log under the same names"
    )]
    ServerBehind {
        /// The timeline.
        timeline: Timeline,
        /// How far it is stored.
        stored: Lsn,
        /// Where the server's ends.
        flushed: Lsn,
    },
    /// Our own side.
    #[error("{0}")]
    Broken(String),
}

impl From<PostgresError> for ShipError {
    fn from(error: PostgresError) -> ShipError {
        ShipError::Postgres(Box::new(error))
    }
}

impl ShipError {
    /// Whether to come back later is all there is to do.
    fn is_passing(&self) -> bool {
        match self {
            // 55006: the slot is in use; mostly by the connection that we lost, until the server sees that too.
            ShipError::Postgres(error) => error.is_passing() || error.code() == Some("55006"),
            ShipError::Repository(RepositoryError::Unreachable { .. }) | ShipError::Broken(_) => true,
            _ => false,
        }
    }
}

/// How long to wait after the `failures`th failure in a row.
fn pause(error: &ShipError, failures: u32) -> Duration {
    let first = match error {
        ShipError::Postgres(error) if matches!(**error, PostgresError::ShuttingDown { .. }) => LEFT_ALONE,
        error if error.is_passing() => AGAIN,
        _ => LEFT_ALONE,
    };
    (first * 2_u32.saturating_pow(failures.saturating_sub(1).min(8))).min(PAUSE_MAX)
}

/// Ships until it is told to stop: connect, prepare, read a stretch of the log; after each end of one, again.
async fn ship(job: Job, board: Board, mut stop: watch::Receiver<bool>) {
    let store = Store { repository: job.repository.clone(), sealer: job.sealer.clone(), checker: job.checker.clone() };
    let sweeper = Sweeper::start(job.repository.clone());
    let mut failures = 0;
    loop {
        let served = attempt(&job, &store, &sweeper, &board, &mut failures, &mut stop).await;
        let Err(error) = served else { break };
        failures += 1;
        let wait = pause(&error, failures).max(if failures > 1 { AGAIN } else { Duration::ZERO });
        tell(&board, &job, &error);
        // Longer, never shorter: the least that a server is left alone stays the least.
        let wait = wait.max(jittered(wait));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    board.activity(Activity::Stopped, "stopped");
}

/// One connection after another, as long as nothing fails. Ends well only when told to stop.
async fn attempt(
    job: &Job,
    store: &Store,
    sweeper: &Sweeper,
    board: &Board,
    failures: &mut u32,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), ShipError> {
    let mut connection = None;
    loop {
        let prepared = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => Connection::open(&job.address, job.password.as_ref(), Purpose::Replication).await?,
            };
            let prepared = prepare::prepare(job, store, sweeper, &mut open).await?;
            Ok::<_, ShipError>((open, prepared))
        };
        let (open, prepared) = tokio::select! {
            prepared = prepared => prepared?,
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        board.change(|status| status.system = Some(prepared.cluster.system));
        match session::run(job, store, sweeper, board, &prepared, open, failures, stop).await {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::Timeline(open)) => connection = open,
            Err(ShipError::Postgres(error)) if matches!(*error, PostgresError::LogRemoved { .. }) => {
                record_gap(store, board, &prepared, &error).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Log is gone from the server that is not stored: that goes on record, and the next stretch begins after it.
async fn record_gap(store: &Store, board: &Board, prepared: &Prepared, error: &PostgresError) -> Result<(), ShipError> {
    let gaps = prepared.gaps(error)?;
    for gap in &gaps {
        store.put_gap(&prepared.cluster, gap).await?;
        tracing::error!(timeline = %gap.timeline, from = %gap.from, to = %gap.to, why = %gap.why, "log is missing for good");
    }
    let words: Vec<String> =
        gaps.iter().map(|gap| format!("{} to {} of timeline {}", gap.from, gap.to, gap.timeline)).collect();
    let needs = format!(
        "the log from {} is gone from the server before it was stored: take a base backup",
        words.join(" and ")
    );
    board.change(|status| status.needs_base = Some(needs));
    Ok(())
}

/// Says once what went wrong, in the log and in the status.
fn tell(board: &Board, job: &Job, error: &ShipError) {
    match error.is_passing() {
        true => tracing::warn!(source = %job.source, %error, "the log is not shipped now"),
        false => tracing::error!(source = %job.source, %error, "the log is not shipped"),
    }
    board.change(|status| {
        status.activity = if error.is_passing() { Activity::Waiting } else { Activity::Refused };
        if status.activity == Activity::Refused {
            status.system = None;
        }
        status.words = format!("failed to {error}");
        status.last_error = Some(error.to_string());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::source::postgres::ServerError;

    #[test]
    fn r08_a_server_that_stops_is_left_alone_for_ten_seconds_and_then_longer() {
        let going =
            ShipError::from(PostgresError::ShuttingDown { doing: "read".into(), error: ServerError::default() });
        let broken = ShipError::from(PostgresError::Cut { doing: "read".into() });
        let standby = ShipError::from(PostgresError::Standby);
        assert_eq!(pause(&going, 1), Duration::from_secs(10));
        assert_eq!(pause(&going, 2), Duration::from_secs(20));
        assert_eq!(pause(&standby, 1), Duration::from_secs(10));
        assert_eq!(pause(&broken, 1), Duration::from_millis(500));
        assert_eq!(pause(&broken, 99), Duration::from_secs(60));
    }
}
