//! One stretch of the log: what the server sends is put, and what is stored is acknowledged.
//!
//! Puts run beside each other and beside reading. When it ends, however it ends, what has come is put first: a server that
//! died may have been the only place that had it.

use super::assemble::{Assembler, Cut, Range, Wrong};
use super::frontier::Frontiers;
use super::prepare::Prepared;
use super::status::{Activity, Board};
use super::store::Store;
use super::sweep::Sweeper;
use super::{Job, ShipError};
use crate::backup::catalog::manifest::{Frontier, VERSION};
use crate::backup::catalog::note;
use crate::backup::repository::{Item, Key};
use crate::backup::source::postgres::{Connection, PostgresError, Progress, Reporter, WalEvent, WalOptions, WalStream};
use crate::model::{Lsn, Timeline};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A server that says nothing for this long, even when it is asked, is gone: its own `wal_sender_timeout`.
const PATIENCE: Duration = Duration::from_secs(60);
/// The status and what the server is told of bytes that only came are brought up to date this often.
const TICK: Duration = Duration::from_secs(1);

/// How a stretch ended well.
#[derive(Debug)]
pub(super) enum Ended {
    /// Told to stop.
    Stopped,
    /// The timeline is over, and all of it is stored. The connection, when it can be used on.
    Timeline(Option<Connection>),
}

/// What became of something that was put.
enum Done {
    Log { range: Range, segment: bool, newest: Option<Timestamp>, result: Result<(), ShipError> },
    Frontier { acknowledged: (Timeline, Lsn), result: Result<u64, ShipError> },
}

struct Session<'a> {
    store: &'a Store,
    sweeper: &'a Sweeper,
    board: &'a Board,
    prepared: &'a Prepared,
    synchronous: bool,
    log: Assembler,
    reporter: Reporter,
    puts: JoinSet<Done>,
    frontiers: Frontiers,
    frontier_under_way: bool,
    acknowledged: Lsn,
    server_end: Lsn,
    /// The server's clock with the newest bytes that came.
    newest: Option<Timestamp>,
    /// The server's clock at a moment up to which everything is stored.
    stored_time: Option<Timestamp>,
}

/// Reads one stretch until it ends, and stores it.
#[expect(clippy::too_many_arguments, reason = "what a shipper consists of, lent for one stretch")]
pub(super) async fn run(
    job: &Job,
    store: &Store,
    sweeper: &Sweeper,
    board: &Board,
    prepared: &Prepared,
    connection: Connection,
    failures: &mut u32,
    stop: &mut watch::Receiver<bool>,
) -> Result<Ended, ShipError> {
    let leg = prepared.leg;
    let options = WalOptions {
        slot: Some(job.slot.clone()),
        system: prepared.cluster.system,
        from: leg.start,
        timeline: leg.timeline,
        standby: job.standby,
        patience: PATIENCE,
    };
    let mut stream = WalStream::start(connection, options).await?;
    let mut session = Session {
        store,
        sweeper,
        board,
        prepared,
        synchronous: job.synchronous,
        log: Assembler::new(prepared.rules, leg.start, leg.frontier, prepared.known.clone(), Instant::now()),
        reporter: stream.reporter(),
        puts: JoinSet::new(),
        frontiers: prepared.frontiers.clone(),
        frontier_under_way: false,
        acknowledged: leg.frontier.max(leg.before),
        server_end: Lsn(0),
        newest: None,
        stored_time: None,
    };
    session.acknowledge();
    let read = session.read(&mut stream, failures, stop).await;
    if matches!(&read, Err(error) if !matches!(error, ShipError::Postgres(_))) {
        // Something is wrong with what came, or with what is stored: nothing more is put on top of it.
        return read;
    }
    session.drain().await?;
    if matches!(read, Ok(Ended::Stopped)) {
        session.last_frontier().await;
    }
    let came = session.log.received() > leg.start;
    match read {
        // The last report goes out with it.
        Ok(Ended::Stopped) => _ = stream.stop().await,
        Ok(Ended::Timeline(_)) => return Ok(Ended::Timeline(stream.stop().await)),
        // Gone in the middle, not before the beginning: where the hole begins now, the next look at what is stored tells.
        Err(ShipError::Postgres(error)) if came && matches!(*error, PostgresError::LogRemoved { .. }) => {
            return Err(ShipError::Broken(error.to_string()));
        }
        Err(error) => return Err(error),
    }
    read
}

impl Session<'_> {
    /// Reads until the timeline ends, the server fails, or somebody says stop.
    async fn read(
        &mut self,
        stream: &mut WalStream,
        failures: &mut u32,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Ended, ShipError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            while let Some(cut) = self.log.due(now) {
                self.put(cut);
            }
            let due = self.log.next_due(now).unwrap_or(now + TICK);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
                Some(done) = self.puts.join_next() => self.done(done.map_err(|error| ShipError::Broken(error.to_string()))?)?,
                _ = tick.tick() => self.tick(),
                () = tokio::time::sleep_until(due.into()) => {}
                // Where two segments wait to be stored, nothing more is read: the server keeps it.
                event = stream.next(), if self.log.room() => {
                    let event = event?;
                    if *failures != 0 || self.server_end == Lsn(0) {
                        *failures = 0;
                        self.streaming();
                    }
                    if let WalEvent::TimelineEnds { next, at } = event {
                        tracing::info!(timeline = %self.prepared.leg.timeline, next = %next, at = %at, "the timeline has ended");
                        return Ok(Ended::Timeline(None));
                    }
                    self.take(event)?;
                }
            }
        }
    }

    fn streaming(&self) {
        let leg = self.prepared.leg;
        self.board.change(|status| {
            status.activity = Activity::Streaming;
            status.words = format!("reading timeline {} from {}", leg.timeline, leg.start);
            status.last_error = None;
        });
    }

    /// Takes what the server sent.
    fn take(&mut self, event: WalEvent) -> Result<(), ShipError> {
        match event {
            WalEvent::Bytes { start, bytes, server_end, server_time } => {
                (self.server_end, self.newest) = (server_end, Some(server_time));
                let cuts = self.log.bytes(start, &bytes, Instant::now()).map_err(|wrong| self.wrong(wrong))?;
                cuts.into_iter().for_each(|cut| self.put(cut));
            }
            WalEvent::Alive { server_end, server_time } => {
                self.server_end = server_end;
                if self.log.durable() >= server_end {
                    self.stored_time = Some(server_time);
                }
            }
            WalEvent::TimelineEnds { .. } => {}
        }
        let (received, server_end) = (self.log.received(), self.server_end);
        self.board.change(|status| (status.received, status.server_end) = (Some(received), Some(server_end)));
        Ok(())
    }

    fn wrong(&self, wrong: Wrong) -> ShipError {
        match wrong {
            Wrong::Hole { expected, got } => PostgresError::Hole { expected, got }.into(),
            Wrong::Differs(range) => ShipError::TwoHistories { name: self.key(range, false).to_string() },
        }
    }

    fn key(&self, (first, last): Range, segment: bool) -> Key {
        let timeline = self.prepared.leg.timeline;
        let item = match segment {
            true => Item::Segment(self.prepared.rules.segment.name(timeline, first)),
            false => Item::Piece { timeline, first, last },
        };
        Key::Of(self.prepared.cluster.clone(), item)
    }

    /// Begins to put a part of the log.
    fn put(&mut self, cut: Cut) {
        let Cut { range, segment, bytes } = cut;
        let (key, store, board, newest) =
            (self.key(range, segment), self.store.clone(), self.board.clone(), self.newest);
        // Of this timeline's own objects: what was acknowledged of its parent says nothing of what is under its names.
        let acknowledged = self.acknowledged.min(self.log.durable());
        let mut facts = BTreeMap::from([(note::ACKNOWLEDGED.to_owned(), acknowledged.to_string())]);
        facts.extend(newest.map(|time| (note::SERVER_TIME.to_owned(), time.to_string())));
        self.puts.spawn(async move {
            let result = store.put_until_stored(key, bytes, facts, &board).await;
            Done::Log { range, segment, newest, result }
        });
    }

    /// Something was put.
    fn done(&mut self, done: Done) -> Result<(), ShipError> {
        match done {
            Done::Log { range, segment, newest, result } => {
                result?;
                let superseded = self.log.stored(range, segment);
                superseded.into_iter().for_each(|range| self.sweeper.delete(self.key(range, false)));
                if self.log.durable() >= range.1 {
                    self.stored_time = self.stored_time.max(newest);
                }
                self.acknowledge();
                self.board.change(|status| status.last_error = None);
            }
            Done::Frontier { acknowledged, result } => {
                self.frontier_under_way = false;
                match result {
                    Ok(number) => self.frontiers.wrote(number, acknowledged, Instant::now()),
                    // The log itself goes on; the next tick tries again.
                    Err(error) => {
                        tracing::warn!(%error, "a frontier cannot be stored");
                        self.board.failed(&error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the server what is durable, and everybody else.
    fn acknowledge(&mut self) {
        self.acknowledged = self.acknowledged.max(self.log.durable());
        // A commit with `remote_write` may count on what came only where nothing more is promised.
        let write = if self.synchronous { self.acknowledged } else { self.log.received().max(self.acknowledged) };
        self.reporter.report(Progress { write, flush: self.acknowledged, apply: self.acknowledged });
        let waiting = self.log.oldest_waiting().map_or(Duration::ZERO, |since| since.elapsed());
        let (timeline, durable) = (self.prepared.leg.timeline, self.log.durable());
        let (acknowledged, stored_time) = (self.acknowledged, self.stored_time);
        self.board.change(|status| {
            (status.timeline, status.durable, status.acknowledged) =
                (Some(timeline), Some(durable), Some(acknowledged));
            status.durable_time = stored_time.or(status.durable_time);
            status.waiting = waiting;
        });
    }

    fn tick(&mut self) {
        self.acknowledge();
        if let Some(acknowledged) = self.sayable().filter(|at| self.frontiers.due(*at, Instant::now())) {
            self.put_frontier(acknowledged);
        }
    }

    /// What a frontier may say: this timeline's place, once its own objects reach as far as what was acknowledged before it.
    fn sayable(&self) -> Option<(Timeline, Lsn)> {
        let said = !self.frontier_under_way && self.log.durable() >= self.acknowledged;
        said.then_some((self.prepared.leg.timeline, self.acknowledged))
    }

    fn put_frontier(&mut self, acknowledged: (Timeline, Lsn)) {
        let frontier = Frontier {
            version: VERSION,
            timeline: acknowledged.0,
            acknowledged: acknowledged.1,
            at: Timestamp::now(),
            server_time: self.stored_time,
        };
        let (store, cluster, number) = (self.store.clone(), self.prepared.cluster.clone(), self.frontiers.number);
        self.frontier_under_way = true;
        self.puts.spawn(async move {
            let result = store.put_frontier(&cluster, number, &frontier).await;
            Done::Frontier { acknowledged, result }
        });
    }

    /// Puts what has come and waits until all of it is stored.
    async fn drain(&mut self) -> Result<(), ShipError> {
        if let Some(cut) = self.log.rest(Instant::now()) {
            self.put(cut);
        }
        while let Some(done) = self.puts.join_next().await {
            self.done(done.map_err(|error| ShipError::Broken(error.to_string()))?)?;
        }
        Ok(())
    }

    /// At a stop: how far everything is stored, if that is not said yet.
    async fn last_frontier(&mut self) {
        if let Some(acknowledged) = self.sayable().filter(|at| self.frontiers.changed(*at)) {
            self.put_frontier(acknowledged);
        }
        while let Some(done) = self.puts.join_next().await {
            if let Ok(done) = done {
                // A frontier's failure is told there.
                let _ = self.done(done);
            }
        }
    }
}
