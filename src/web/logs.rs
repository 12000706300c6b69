//! The log stream of a run: stored lines first, attempt after attempt, then live lines of whatever runs.
//!
//! Enters through `GET /api/v1/runs/{id}/logs`; lines come from `logs`, which attempts exist from the store.

use super::api::{Named, Parameters};
use super::{App, Problem, stopped};
use crate::logs::hub::LogStore;
use crate::logs::read::LogReader;
use crate::model::api::{LogLineView, RunDetail};
use crate::model::log::LogLine;
use crate::model::{AttemptId, RunId, StepName};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Lines of one attempt.
type Lines = BoxStream<'static, Result<LogLine, Problem>>;

/// Pieces between the reader and the client's connection: with [`BATCH`] lines each, at most some MiB for one client.
const PIECES: usize = 8;
/// Lines in one piece, when so many are there at once.
const BATCH: usize = 128;
/// Attempts followed at the same time in one stream: more than steps run at once by default (8), less than open files allow.
const LIVE_MAX: usize = 64;
/// The most lines that `tail` gives of each attempt.
const TAIL_MAX: u32 = 10_000;
/// The store is looked at this often even when nothing was signalled.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    step: Option<StepName>,
    attempt: Option<u32>,
    #[serde(default)]
    after: u64,
    tail: Option<u32>,
    #[serde(default)]
    follow: bool,
}

impl Wish {
    fn check(&self) -> Result<(), Problem> {
        let clash = [
            (self.attempt.is_some() && self.step.is_none(), "`attempt` needs `step`"),
            (self.after > 0 && self.attempt.is_none(), "`after` needs `attempt`"),
            (self.tail.is_some() && (self.follow || self.after > 0), "`tail` goes with neither `follow` nor `after`"),
        ];
        match clash.iter().find(|(is, _)| *is) {
            Some((_, why)) => Err(Problem::wrong(format!("read the query: {why}"))),
            None => Ok(()),
        }
    }

    fn wants(&self, id: &AttemptId) -> bool {
        self.step.as_ref().is_none_or(|step| *step == id.step) && self.attempt.is_none_or(|n| n == id.attempt)
    }
}

pub(super) async fn lines(
    State(app): State<Arc<App>>,
    Named(run): Named,
    Parameters(wish): Parameters<Wish>,
) -> Result<Response, Problem> {
    wish.check()?;
    let detail = app.runs.run_detail(run).await?.ok_or_else(|| Problem::no_run(run))?;
    if let Some(step) = &wish.step
        && !detail.steps.iter().any(|known| known.name == *step)
    {
        let names: Vec<&str> = detail.steps.iter().map(|step| step.name.as_str()).collect();
        return Err(Problem::not_found(format!("find the step `{step}` in run #{run}"))
            .hint(format!("it has {}", names.join(", "))));
    }
    let place = Arc::clone(&app.log_places).try_acquire_owned().map_err(|_| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "open another log stream: too many are open")
            .hint("close one of them, or try again later")
    })?;
    let (out, pieces) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        // The channel's end tells the client that this was all; an error cuts the connection, so that nobody takes a
        // broken log for a whole one.
        if let Err(problem) = feed(&app, run, &wish, &out).await {
            tracing::warn!(run = %run, error = problem.error, "a log stream was cut");
            let _ = out.send(Err(std::io::Error::other(problem.error))).await;
        }
        drop(place);
    });
    let body =
        futures_util::stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|piece| (piece, pieces)) });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

type Out = mpsc::Sender<Result<Bytes, std::io::Error>>;
/// Lines with the attempt they belong to.
type Tagged = BoxStream<'static, (AttemptId, Vec<Result<LogLine, Problem>>)>;

/// Sends everything wanted; ends when all is sent, the client has gone, or the daemon stops.
async fn feed(app: &App, run: RunId, wish: &Wish, out: &Out) -> Result<(), Problem> {
    let mut changes = app.changes.clone();
    let stopping = &app.stopping;
    let mut taken = BTreeSet::new();
    let mut live: SelectAll<Tagged> = SelectAll::new();
    let mut seen = None;
    let mut over = false;
    loop {
        // Marked as seen before it is read: what changes meanwhile wakes us again.
        changes.mark_unchanged();
        let version = app.runs.run_version(run).await?;
        if seen != Some(version) {
            let Some(detail) = app.runs.run_detail(run).await? else { return Ok(()) };
            over = detail.summary.status.is_final();
            seen = Some(version);
            for (id, ended) in attempts(&detail, wish) {
                if taken.contains(&id) {
                    continue;
                }
                if wish.follow && !ended && live.len() >= LIVE_MAX {
                    // Its turn comes when another has ended.
                    seen = None;
                    break;
                }
                let lines = open(app, &id, wish, ended).await?;
                taken.insert(id.clone());
                if wish.follow && (!ended || !live.is_empty()) {
                    live.push(lines);
                } else if !copy(lines, out, stopping).await? {
                    return Ok(());
                }
            }
        }
        if live.is_empty() && (over || !wish.follow) {
            return Ok(());
        }
        tokio::select! {
            Some((id, batch)) = live.next() => {
                if !send(&id, batch, out, stopping).await? {
                    return Ok(());
                }
            }
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = out.closed() => return Ok(()),
            () = stopped(stopping) => return Ok(()),
        }
    }
}

/// The wanted attempts in the order they started, and whether they are over.
fn attempts(detail: &RunDetail, wish: &Wish) -> Vec<(AttemptId, bool)> {
    let mut all: Vec<(Timestamp, AttemptId, bool)> = Vec::new();
    // A step that waits for others writes nothing; nobody should wait for it to end.
    for step in detail.steps.iter().filter(|step| step.has_log()) {
        for attempt in &step.attempts {
            let id = AttemptId { run: detail.summary.id, step: step.name.clone(), attempt: attempt.attempt };
            if wish.wants(&id) {
                all.push((attempt.started_at, id, attempt.ended_at.is_some()));
            }
        }
    }
    all.sort();
    all.into_iter().map(|(_, id, ended)| (id, ended)).collect()
}

async fn open(app: &App, id: &AttemptId, wish: &Wish, ended: bool) -> Result<Tagged, Problem> {
    let lines: Lines = match wish.tail {
        Some(count) => {
            futures_util::stream::iter(tail_of(&app.logs, id, count.min(TAIL_MAX)).await?.into_iter().map(Ok)).boxed()
        }
        None => lines_of(&app.logs, id, wish.after, wish.follow && !ended).await?,
    };
    let id = id.clone();
    Ok(lines.ready_chunks(BATCH).map(move |batch| (id.clone(), batch)).boxed())
}

/// All of one attempt. False when nobody reads any more.
async fn copy(
    mut lines: impl Stream<Item = (AttemptId, Vec<Result<LogLine, Problem>>)> + Unpin,
    out: &Out,
    stopping: &watch::Receiver<bool>,
) -> Result<bool, Problem> {
    while let Some((id, batch)) = lines.next().await {
        if !send(&id, batch, out, stopping).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn send(
    id: &AttemptId,
    batch: Vec<Result<LogLine, Problem>>,
    out: &Out,
    stopping: &watch::Receiver<bool>,
) -> Result<bool, Problem> {
    let mut piece = Vec::new();
    for line in batch {
        let view = LogLineView::new(id, line?);
        serde_json::to_writer(&mut piece, &view)
            .map_err(|error| Problem::unavailable(format!("write a log line: {error}")))?;
        piece.push(b'\n');
    }
    tokio::select! {
        sent = out.send(Ok(piece.into())) => Ok(sent.is_ok()),
        // A client that does not read must not hold up the daemon's end.
        () = stopped(stopping) => Ok(false),
    }
}

/// The lines with numbers above `after`, in order. With `follow` the stream waits for lines not yet written and ends
/// when the attempt's log is finished; otherwise it ends with the last stored line. No log is an empty one. A stream
/// that is dropped leaves nothing behind.
async fn lines_of(store: &LogStore, id: &AttemptId, after: u64, follow: bool) -> Result<Lines, Problem> {
    if follow {
        let id = id.clone();
        return Ok(store.follow(&id, after + 1).map(move |line| line.map_err(|e| unreadable(&id, &e))).boxed());
    }
    let Some(mut reader) = reader(store, id).await? else { return Ok(futures_util::stream::empty().boxed()) };
    reader.seek_line(after + 1);
    let id = id.clone();
    let frames = futures_util::stream::try_unfold(reader, move |reader| {
        let id = id.clone();
        async move {
            let (lines, reader) = off_thread(&id, reader, |reader| reader.next_lines()).await?;
            Ok((!lines.is_empty()).then_some((lines, reader)))
        }
    });
    let lines = frames.map(|frame| match frame {
        Ok(lines) => lines.into_iter().map(Ok).collect(),
        Err(problem) => vec![Err(problem)],
    });
    Ok(lines.flat_map(futures_util::stream::iter).boxed())
}

/// The last `count` stored lines.
async fn tail_of(store: &LogStore, id: &AttemptId, count: u32) -> Result<Vec<LogLine>, Problem> {
    let Some(reader) = reader(store, id).await? else { return Ok(Vec::new()) };
    let read = move |reader: &mut LogReader| {
        reader.seek_tail(u64::from(count))?;
        let mut all = Vec::new();
        // Lines written meanwhile come too; they make the tail no longer than was asked for.
        while all.len() < count as usize {
            let more = reader.next_lines()?;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        all.truncate(count as usize);
        Ok(all)
    };
    off_thread(id, reader, read).await.map(|(lines, _)| lines)
}

/// The stored log; `None` when nothing was written yet.
async fn reader(store: &LogStore, id: &AttemptId) -> Result<Option<LogReader>, Problem> {
    let (store, id) = (store.clone(), id.clone());
    let opened = tokio::task::spawn_blocking(move || (store.reader(&id), id)).await;
    match opened.map_err(|_| Problem::unavailable("read a log: the daemon is stopping"))? {
        (Ok(reader), _) => Ok(Some(reader)),
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        (Err(error), id) => Err(unreadable(&id, &error)),
    }
}

/// Files are read off the async threads.
async fn off_thread<T: Send + 'static>(
    id: &AttemptId,
    mut reader: LogReader,
    work: impl FnOnce(&mut LogReader) -> std::io::Result<T> + Send + 'static,
) -> Result<(T, LogReader), Problem> {
    let done = tokio::task::spawn_blocking(move || work(&mut reader).map(|value| (value, reader))).await;
    done.map_err(|_| Problem::unavailable("read a log: the daemon is stopping"))?
        .map_err(|error| unreadable(id, &error))
}

fn unreadable(id: &AttemptId, error: &std::io::Error) -> Problem {
    tracing::error!(attempt = %id, %error, "a stored log cannot be read");
    Problem::unavailable(format!("read the log of {id}")).hint("the daemon's log says why")
}
