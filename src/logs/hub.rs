//! Where logs are, and how those who follow one are woken.
//!
//! In come attempts; out go their writers, readers, and streams of lines for `web` and `cli`. A stream ends when the
//! file says that the attempt is over, so it does not matter which daemon wrote the end. Wake-ups only save time: a
//! follower looks at the file by itself every now and then.

use super::file::{LogLimit, LogWriter};
use super::mask::Masker;
use super::read::LogReader;
use crate::model::log::{LogCursor, LogLine};
use crate::model::{AttemptId, RunId};
use futures_util::stream::{self, Stream};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a follower sleeps without being woken: long enough to cost nothing, short enough for a person.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Entries kept before those without followers are looked for.
const ENTRIES_BEFORE_CLEANING: usize = 64;

/// Tells followers of an attempt's log that there is more. Cheap to clone.
#[derive(Clone, Default)]
pub struct LogHub {
    followed: Arc<Mutex<HashMap<AttemptId, watch::Sender<u64>>>>,
}

impl LogHub {
    /// The number of lines stored, as it grows. Ends (the sender is gone) after [`LogHub::close`].
    pub fn watch(&self, id: &AttemptId) -> watch::Receiver<u64> {
        let mut followed = self.lock();
        if followed.len() >= ENTRIES_BEFORE_CLEANING {
            followed.retain(|_, sender| sender.receiver_count() > 0);
        }
        followed.entry(id.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Says how many lines are stored now.
    pub fn publish(&self, id: &AttemptId, lines: u64) {
        if let Some(sender) = self.lock().get(id) {
            sender.send_replace(lines);
        }
    }

    /// Nothing more will be written for this attempt, not even an end: its followers read what is there and stop.
    pub fn close(&self, id: &AttemptId) {
        self.lock().remove(id);
    }

    fn close_run(&self, run: RunId) {
        self.lock().retain(|id, _| id.run != run);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptId, watch::Sender<u64>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer's end of the hub.
pub(super) struct Publisher {
    hub: LogHub,
    id: AttemptId,
}

impl Publisher {
    pub(super) fn publish(&self, lines: u64) {
        self.hub.publish(&self.id, lines);
    }
}

/// The folder with all logs: `<state>/logs/<run>/<step>.<attempt>.log`. Cheap to clone.
#[derive(Clone)]
pub struct LogStore {
    dir: Arc<Path>,
    hub: LogHub,
}

impl LogStore {
    /// The logs in that state folder. Nothing is made until something is written.
    pub fn new(state: &Path) -> Self {
        LogStore { dir: state.join("logs").into(), hub: LogHub::default() }
    }

    /// Who wakes followers.
    pub fn hub(&self) -> &LogHub {
        &self.hub
    }

    /// The file of an attempt's log.
    pub fn path(&self, id: &AttemptId) -> PathBuf {
        self.run_dir(id.run).join(format!("{}.{}.log", id.step, id.attempt))
    }

    fn run_dir(&self, run: RunId) -> PathBuf {
        self.dir.join(run.0.to_string())
    }

    /// Opens an attempt's log for writing, as [`LogWriter::open`] does; its frames wake followers.
    ///
    /// # Errors
    /// When the folder or file cannot be made or read.
    pub fn writer(&self, id: &AttemptId, masker: Arc<Masker>, limit: LogLimit) -> io::Result<(LogWriter, LogCursor)> {
        std::fs::create_dir_all(self.run_dir(id.run))?;
        let (mut writer, cursor) = LogWriter::open(&self.path(id), masker, limit)?;
        writer.publish_to(Publisher { hub: self.hub.clone(), id: id.clone() });
        Ok((writer, cursor))
    }

    /// Opens an attempt's log for reading.
    ///
    /// # Errors
    /// When it has none, or it cannot be opened.
    pub fn reader(&self, id: &AttemptId) -> io::Result<LogReader> {
        LogReader::open(&self.path(id))
    }

    /// Removes all logs of a run; their followers stop. None there is success.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_run(&self, run: RunId) -> io::Result<()> {
        let removed = std::fs::remove_dir_all(self.run_dir(run));
        self.hub.close_run(run);
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The lines of an attempt from that number on: those that are there, then the new ones as they come, until the
    /// attempt is over. A log that does not exist yet is waited for; for an attempt that will never have one the
    /// caller drops the stream or somebody calls [`LogHub::close`].
    pub fn follow(&self, id: &AttemptId, from: u64) -> impl Stream<Item = io::Result<LogLine>> + Send + use<> {
        let follower = Follower {
            path: self.path(id),
            from,
            reader: None,
            more: self.hub.watch(id),
            ready: VecDeque::new(),
            closed: false,
        };
        stream::try_unfold(follower, |mut follower| async move {
            let line = follower.next().await?;
            Ok(line.map(|line| (line, follower)))
        })
    }
}

struct Follower {
    path: PathBuf,
    from: u64,
    reader: Option<LogReader>,
    more: watch::Receiver<u64>,
    ready: VecDeque<LogLine>,
    closed: bool,
}

/// What a look at the file found.
struct Look {
    reader: Option<LogReader>,
    lines: Vec<LogLine>,
    over: bool,
}

impl Follower {
    async fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            // Marked as seen before looking, so that what is published while we look wakes us again.
            self.more.mark_unchanged();
            let closed = self.closed || self.more.has_changed().is_err();
            let (path, from, reader) = (self.path.clone(), self.from, self.reader.take());
            let look = tokio::task::spawn_blocking(move || look(&path, from, reader)).await;
            let look = look.map_err(io::Error::other)??;
            self.reader = look.reader;
            if !look.lines.is_empty() {
                self.ready = look.lines.into();
                continue;
            }
            if look.over || closed {
                return Ok(None);
            }
            // An elapsed time is as good a reason to look as a change.
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, self.more.changed()).await {
                self.closed = true;
            }
        }
    }
}

fn look(path: &Path, from: u64, reader: Option<LogReader>) -> io::Result<Look> {
    let mut reader = match reader {
        Some(reader) => reader,
        None => match LogReader::open(path) {
            Ok(mut reader) => {
                reader.seek_line(from);
                reader
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Look { reader: None, lines: Vec::new(), over: false });
            }
            Err(error) => return Err(error),
        },
    };
    let lines = reader.next_lines()?;
    let over = lines.is_empty() && (reader.finished() || reader.removed()?);
    Ok(Look { reader: Some(reader), lines, over })
}
