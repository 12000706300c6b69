//! The task that holds the connection while the log is read: what comes is checked, what the server asks is answered.
//!
//! Started by [`super::wal::WalStream`], told of progress by its reporters, and gone when it is stopped, dropped, or when
//! the log ends.

use super::WalEvent;
use super::ask::place;
use super::connect::Connection;
use super::error::{PostgresError, ServerWords};
use super::wal::{Progress, WalOptions};
use super::wire::{Frame, Rows, columns, row};
use crate::model::Lsn;
use bytes::{Buf as _, Bytes};
use jiff::Timestamp;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

/// How long a stop waits for the server's goodbye.
const STOP: Duration = Duration::from_secs(10);
/// 2000-01-01 in microseconds since 1970: where the server's clock begins.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// What the task knows.
pub(super) struct Reader {
    pub(super) connection: Connection,
    pub(super) options: WalOptions,
    /// The place that must come next.
    pub(super) expected: Lsn,
    /// The end of the server's log, as it told last.
    pub(super) server_end: Lsn,
    /// What was reported last.
    pub(super) sent: Progress,
    pub(super) status_every: Duration,
    /// Nothing can be sent any more. What the server said before it went is still to be read: it says why.
    pub(super) deaf: bool,
    /// The server has said that the slot is a physical one.
    pub(super) told: bool,
}

/// What one message was.
enum Step {
    Event(WalEvent),
    Nothing,
    TimelineEnds,
}

impl Reader {
    /// Until the log ends, an error, or a stop; gives the connection back when it is ready for the next command.
    pub(super) async fn run(
        mut self,
        sender: mpsc::Sender<Result<WalEvent, PostgresError>>,
        mut wants: watch::Receiver<Progress>,
        stop: oneshot::Receiver<()>,
    ) -> Option<Connection> {
        match self.read(&sender, &mut wants, stop).await {
            Ok(Ended::Timeline) => match self.timeline_end(None).await {
                Ok(event) => {
                    let _ = sender.send(Ok(event)).await;
                    Some(self.connection)
                }
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    None
                }
            },
            Ok(Ended::Stopped) => {
                let wanted = *wants.borrow();
                tokio::time::timeout(STOP, self.goodbye(wanted)).await.unwrap_or(false).then_some(self.connection)
            }
            Err(error) => {
                let _ = sender.send(Err(removed(error, &self.options, self.told))).await;
                None
            }
        }
    }

    async fn read(
        &mut self,
        sender: &mpsc::Sender<Result<WalEvent, PostgresError>>,
        wants: &mut watch::Receiver<Progress>,
        mut stop: oneshot::Receiver<()>,
    ) -> Result<Ended, PostgresError> {
        let mut status = tokio::time::interval(self.status_every);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When something last came, or could not come because nobody took it.
        let mut heard = Instant::now();
        let mut asked = false;
        let mut waiting: Option<WalEvent> = None;
        // The reporters may all go; the stream goes on.
        let mut reports = true;
        loop {
            tokio::select! {
                biased;
                // Told to stop, or the stream was dropped.
                _ = &mut stop => return Ok(Ended::Stopped),
                changed = wants.changed(), if reports => match changed {
                    Ok(()) => {
                        let wanted = *wants.borrow_and_update();
                        self.status(wanted, false).await?;
                    }
                    Err(_) => reports = false,
                },
                _ = status.tick() => {
                    if waiting.is_some() {
                        heard = Instant::now();
                    }
                    let silent = heard.elapsed();
                    if silent >= self.options.patience {
                        return Err(PostgresError::Silent { doing: "read the log".into(), seconds: silent.as_secs() });
                    }
                    // Half of the patience is left for the answer.
                    let ask = silent >= self.options.patience / 2 && !asked;
                    asked |= ask;
                    let wanted = *wants.borrow();
                    self.status(wanted, ask).await?;
                }
                place = sender.reserve(), if waiting.is_some() => match (place, waiting.take()) {
                    (Ok(place), Some(event)) => {
                        place.send(Ok(event));
                        heard = Instant::now();
                    }
                    _ => return Ok(Ended::Stopped),
                },
                frame = self.connection.wire.read(), if waiting.is_none() => {
                    (heard, asked) = (Instant::now(), false);
                    let wanted = *wants.borrow();
                    match self.step(frame?, wanted).await? {
                        Step::Nothing => {}
                        Step::TimelineEnds => return Ok(Ended::Timeline),
                        Step::Event(event) => match sender.try_send(Ok(event)) {
                            Ok(()) => {}
                            Err(mpsc::error::TrySendError::Full(Ok(event))) => waiting = Some(event),
                            Err(_) => return Ok(Ended::Stopped),
                        },
                    }
                }
            }
        }
    }

    async fn step(&mut self, frame: Frame, wanted: Progress) -> Result<Step, PostgresError> {
        let wire = &self.connection.wire;
        match frame.tag {
            b'd' => {}
            b'c' => return Ok(Step::TimelineEnds),
            b'E' => return Err(wire.refused(&frame.body)),
            // A server that stops sends what it has, waits for our receipt, and says so.
            b'C' => {
                let error = ServerWords {
                    severity: "FATAL".into(),
                    code: "57P01".into(),
                    message: "it is shutting down".into(),
                    ..ServerWords::default()
                };
                return Err(PostgresError::ShuttingDown { doing: "read the log".into(), error: error.into() });
            }
            other => return Err(wire.wrong(format!("a message `{}` in the log", other.escape_ascii()))),
        }
        let mut body = frame.body;
        let short = || PostgresError::protocol("read the log", "a message that is cut off");
        match body.try_get_u8().map_err(|_| short())? {
            b'w' => {
                let start = Lsn(body.try_get_u64().map_err(|_| short())?);
                let (server_end, server_time) = self.end_and_time(&mut body).ok_or_else(short)?;
                if start != self.expected {
                    return Err(PostgresError::Hole { expected: self.expected, got: start });
                }
                let end = start.0.checked_add(body.len() as u64).ok_or_else(short)?;
                self.expected = Lsn(end);
                // It has what it sent.
                self.server_end = self.server_end.max(Lsn(end));
                if body.is_empty() {
                    return Ok(Step::Event(WalEvent::Alive { server_end, server_time }));
                }
                Ok(Step::Event(WalEvent::Bytes { start, bytes: body, server_end, server_time }))
            }
            b'k' => {
                let (server_end, server_time) = self.end_and_time(&mut body).ok_or_else(short)?;
                if body.try_get_u8().map_err(|_| short())? == 1 {
                    self.status(wanted, false).await?;
                }
                Ok(Step::Event(WalEvent::Alive { server_end, server_time }))
            }
            // Newer servers have more kinds, for other uses.
            _ => Ok(Step::Nothing),
        }
    }

    fn end_and_time(&mut self, body: &mut Bytes) -> Option<(Lsn, Timestamp)> {
        let end = Lsn(body.try_get_u64().ok()?);
        let time = Timestamp::from_microsecond(body.try_get_i64().ok()?.checked_add(EPOCH_MICROS)?).ok()?;
        self.server_end = self.server_end.max(end);
        Some((end, time))
    }

    /// Sends a standby status update.
    async fn status(&mut self, wanted: Progress, ask: bool) -> Result<(), PostgresError> {
        self.sent = self.sent.advance(wanted, self.server_end);
        let now = Timestamp::now().as_microsecond() - EPOCH_MICROS;
        let mut message = Vec::with_capacity(39);
        // Its length: itself, the kind, three places, the clock, the question.
        message.extend_from_slice(&[b'd', 0, 0, 0, 4 + 1 + 24 + 8 + 1, b'r']);
        for place in [self.sent.write, self.sent.flush, self.sent.apply] {
            message.extend_from_slice(&place.0.to_be_bytes());
        }
        message.extend_from_slice(&now.to_be_bytes());
        message.push(u8::from(ask));
        if !self.deaf {
            match self.connection.wire.send(&message).await {
                Err(PostgresError::Io { .. }) => self.deaf = true,
                other => return other,
            }
        }
        Ok(())
    }

    /// The server has ended the COPY: we end our half, and it says where the log goes on. `first` is the answer's first
    /// message, if it came already.
    pub(super) async fn timeline_end(&mut self, first: Option<Frame>) -> Result<WalEvent, PostgresError> {
        let wire = &mut self.connection.wire;
        let mut rows = Rows::default();
        match first {
            Some(frame) => rows.columns = columns(&frame.body),
            None => wire.send(b"c\0\0\0\x04").await?,
        }
        loop {
            let frame = wire.expect().await?;
            match frame.tag {
                b'T' => rows.columns = columns(&frame.body),
                b'D' if rows.rows.is_empty() => rows.rows.extend(row(&frame.body)),
                b'C' => {}
                b'Z' => break,
                other => {
                    return Err(wire.wrong(format!("a message `{}` at the end of a timeline", other.escape_ascii())));
                }
            }
        }
        let end = place(&rows, "next_tli_startpos", "next_tli");
        let (at, next) = end.ok_or_else(|| self.connection.wire.wrong("an end of a timeline without the next one"))?;
        // The server sends all of a timeline before it ends it.
        if at > self.expected {
            return Err(PostgresError::Hole { expected: self.expected, got: at });
        }
        Ok(WalEvent::TimelineEnds { next, at })
    }

    /// Tells what is durable for the last time, and ends the COPY from our side. What the server has sent meanwhile is thrown away: it will be asked for again.
    async fn goodbye(&mut self, wanted: Progress) -> bool {
        if self.status(wanted, false).await.is_err() {
            return false;
        }
        let wire = &mut self.connection.wire;
        if wire.send(b"c\0\0\0\x04").await.is_err() {
            return false;
        }
        loop {
            match wire.read().await {
                Ok(frame) if frame.tag == b'Z' => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

/// How reading ended without an error.
enum Ended {
    Timeline,
    Stopped,
}

/// undefined_file: the segment is not there any more. 55000 with a slot of which the server has `told` that it is a physical
/// one, as servers from 15 on do: the slot's log is gone. Older ones begin to read all the same, and miss the segment.
pub(super) fn removed(error: PostgresError, options: &WalOptions, told: bool) -> PostgresError {
    match error {
        PostgresError::Refused { error, .. } if error.code == "58P01" || (error.code == "55000" && told) => {
            PostgresError::LogRemoved { error, from: options.from, timeline: options.timeline }
        }
        other => other,
    }
}
