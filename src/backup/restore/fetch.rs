//! Objects out of a repository, many at once and within a bound of memory: checked, opened, counted.
//!
//! In: names and expected lengths. Out: plain bytes. Callers: `base` (the chunks of a backup) and `feeder` (the log); both
//! draw on one budget, in the order in which they ask.

use super::RestoreError;
use super::log::LogPart;
use crate::backup::repository::{Item, Key, Repository, RepositoryError};
use crate::backup::seal::{Opener, Seal};
use crate::model::{Lsn, SegmentSize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What objects may take at once, stored and plain together, in KiB: with what the client of a store holds of the same
/// bytes while it reads them, the whole stays below 256 MiB.
const BUDGET_KIB: u32 = 144 << 10;

/// Objects under way at once: 50 ms to a store and 8 MiB an object still fill a line of 10 Gbit/s.
const AT_ONCE: usize = 12;
/// A piece is replaced by a larger one, and that by its segment: more often than this, something else is wrong.
const STAND_INS_TRIED: usize = 4;

/// How far a restore is: counted as objects arrive, read by whoever shows it.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// Stored bytes of the base that have been unpacked.
    base_done: AtomicU64,
    base_total: AtomicU64,
    /// Stored bytes of the log that have been staged.
    log_done: AtomicU64,
    log_total: AtomicU64,
    objects: AtomicU64,
}

/// A moment of [`Progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Moment {
    /// Stored bytes of the base that are in place.
    pub base_done_bytes: u64,
    /// Of these.
    pub base_total_bytes: u64,
    /// Stored bytes of the log that were handed on to the server's side.
    pub log_done_bytes: u64,
    /// Of these; a target before the end needs fewer.
    pub log_total_bytes: u64,
    /// Objects read.
    pub objects: u64,
    /// Seconds since it began.
    pub elapsed_secs: u64,
    /// Seconds until the base and the log are there at the rate so far; `None` while nothing has arrived.
    pub left_secs: Option<u64>,
}

impl Default for Progress {
    fn default() -> Progress {
        let zero = || AtomicU64::new(0);
        Progress {
            began: Instant::now(),
            base_done: zero(),
            base_total: zero(),
            log_done: zero(),
            log_total: zero(),
            objects: zero(),
        }
    }
}

impl Progress {
    pub(super) fn expect(&self, base_bytes: u64, log_bytes: u64) {
        self.base_total.store(base_bytes, Ordering::Relaxed);
        self.log_total.store(log_bytes, Ordering::Relaxed);
    }

    pub(super) fn base(&self, bytes: u64) {
        self.base_done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn log(&self, bytes: u64) {
        self.log_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How far it is now.
    pub fn now(&self) -> Moment {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let (base_done, base_total) = (read(&self.base_done), read(&self.base_total));
        let (log_done, log_total) = (read(&self.log_done), read(&self.log_total));
        let elapsed = self.began.elapsed();
        let (done, total) = (base_done + log_done, base_total + log_total);
        let left = total.saturating_sub(done) as f64 * elapsed.as_secs_f64() / done as f64;
        Moment {
            base_done_bytes: base_done,
            base_total_bytes: base_total,
            log_done_bytes: log_done,
            log_total_bytes: log_total,
            objects: read(&self.objects),
            elapsed_secs: elapsed.as_secs(),
            left_secs: (done > 0).then_some(left.ceil() as u64),
        }
    }
}

/// Reads objects of one repository.
#[derive(Clone)]
pub(super) struct Fetch {
    repository: Arc<dyn Repository>,
    opener: Opener,
    memory: Arc<Semaphore>,
    width: Arc<Semaphore>,
    pub(super) progress: Arc<Progress>,
}

/// An object's plain bytes, and its share of the memory until it is dropped.
pub(super) struct Opened {
    pub(super) seal: Seal,
    pub(super) bytes: Vec<u8>,
    _share: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Fetch {
    pub(super) fn new(repository: Arc<dyn Repository>, opener: Opener, progress: Arc<Progress>) -> Fetch {
        let memory = Arc::new(Semaphore::new(BUDGET_KIB as usize));
        Fetch { repository, opener, memory, width: Arc::new(Semaphore::new(AT_ONCE)), progress }
    }

    /// Reads an object of about these lengths. Waits for its share of the memory first, in the order of asking.
    pub(super) async fn open(&self, key: &Key, stored: u64, plain: u64) -> Result<Opened, RestoreError> {
        // One object alone may be larger than the budget; it then waits for all of it.
        let kib = u32::try_from((stored + plain).div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, BUDGET_KIB);
        let closed = "nobody closes the budget";
        let memory = self.memory.clone().acquire_many_owned(kib).await.expect(closed);
        let width = self.width.clone().acquire_owned().await.expect(closed);
        let object = self.repository.get(key).await?;
        let (opener, name) = (self.opener.clone(), key.clone());
        let opened = tokio::task::spawn_blocking(move || opener.open(&name, &object)).await;
        let opened = opened.map_err(|error| RestoreError::io("open an object", std::io::Error::other(error)))?;
        let (seal, bytes) = opened.map_err(|source| RestoreError::Open { key: key.to_string(), source })?;
        crate::failpoint!("restore-object-opened");
        self.progress.objects.fetch_add(1, Ordering::Relaxed);
        Ok(Opened { seal, bytes, _share: (memory, width) })
    }

    /// Reads a part of the log. A piece goes as soon as something larger stands for it, and a writer may be at work while we
    /// restore: then the same bytes are read from that.
    pub(super) async fn open_part(&self, part: &LogPart, size: SegmentSize) -> Result<Opened, RestoreError> {
        let plain = part.last.0 - part.first.0;
        let mut asked = self.open(&part.key, part.stored_bytes, plain).await;
        for _ in 0..STAND_INS_TRIED {
            match asked {
                Err(RestoreError::Repository(RepositoryError::Absent { .. })) => {}
                answered => return answered,
            }
            let Some((key, first, stored, plain)) = self.stand_in(part, size).await? else { break };
            asked = self.open(&key, stored, plain).await.and_then(|mut larger| {
                let from = (part.first.0 - first.0) as usize;
                let to = (part.last.0 - first.0) as usize;
                let detail = || "it is shorter than its name says".to_owned();
                let missing = || RestoreError::Pieces { key: key.to_string(), detail: detail() };
                larger.bytes = larger.bytes.get(from..to).ok_or_else(missing)?.to_vec();
                Ok(larger)
            });
        }
        asked
    }

    /// What holds the bytes of a piece that is gone: its segment, or a larger piece. Its name, its first byte, and its lengths
    /// as stored and opened.
    async fn stand_in(&self, part: &LogPart, size: SegmentSize) -> Result<Option<(Key, Lsn, u64, u64)>, RestoreError> {
        let Key::Of(cluster, Item::Piece { timeline, .. }) = &part.key else { return Ok(None) };
        let segment = Key::Of(cluster.clone(), Item::Segment(size.name(*timeline, part.first)));
        match self.repository.receipt(&segment).await {
            Ok(_) => return Ok(Some((segment, part.first.segment_start(size), size.bytes(), size.bytes()))),
            Err(RepositoryError::Absent { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let prefix = format!("{}piece/{:08X}/", Key::of_cluster(cluster), timeline.0);
        let listed = self.repository.list(&prefix).await?;
        let larger = listed.iter().filter_map(|object| match object.name.parse() {
            Ok(Key::Of(cluster, Item::Piece { timeline, first, last })) if first <= part.first && last >= part.last => {
                let key = Key::Of(cluster, Item::Piece { timeline, first, last });
                Some((key, first, object.bytes, last.0 - first.0))
            }
            _ => None,
        });
        Ok(larger.min_by_key(|(.., plain)| *plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_is_left() {
        let progress = Progress::default();
        assert_eq!(progress.now().left_secs, None);
        progress.expect(100, 50);
        progress.base(100);
        progress.log(50);
        let now = progress.now();
        assert_eq!((now.base_done_bytes, now.log_done_bytes, now.left_secs), (100, 50, Some(0)));
    }
}
