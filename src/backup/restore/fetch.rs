//! Objects out of a repository, many at once and within a bound of memory: checked, opened, counted.
//!
//! In: names and expected lengths. Out: plain bytes. Callers: `base` (the chunks of a backup) and `feeder` (the log); both
//! draw on one budget, in the order in which they ask.

use super::RestoreError;
use super::log::LogPart;
use crate::backup::repository::{Item, Key, Repository, RepositoryError, Stored};
use crate::backup::seal::{Opener, Pieces, Seal, SealError};
use crate::model::{Lsn, SegmentSize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What objects may take at once, stored and plain together, in KiB: with what the client of a store holds of the same
/// bytes while it reads them, the whole stays below 256 MiB.
const BUDGET_KIB: u32 = 144 << 10;

/// What an object that is opened piece by piece takes beside its stored bytes: zstd's window, and buffers.
const OPENING_BYTES: u64 = 3 << 20;
const CLOSED: &str = "nobody closes a bound";

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
    cores: Arc<Semaphore>,
    pub(super) progress: Arc<Progress>,
}

/// An object as it is stored, and its share of the memory until it is dropped.
pub(super) struct Fetched {
    key: Key,
    object: Stored,
    _share: OwnedSemaphorePermit,
}

/// An object that is being opened.
pub(super) struct Opening<'a> {
    key: &'a Key,
    pieces: Pieces<'a>,
}

impl Opening<'_> {
    pub(super) fn key(&self) -> &Key {
        self.key
    }

    pub(super) fn seal(&self) -> &Seal {
        self.pieces.seal()
    }

    /// The next bytes; `None` behind the last ones, when all of them are what was sealed.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, RestoreError> {
        self.pieces.next().map_err(|source| not_opened(self.key, source))
    }
}

fn not_opened(key: &Key, source: SealError) -> RestoreError {
    RestoreError::Open { key: key.to_string(), source }
}

impl Fetch {
    pub(super) fn new(repository: Arc<dyn Repository>, opener: Opener, progress: Arc<Progress>) -> Fetch {
        let bound = |permits: usize| Arc::new(Semaphore::new(permits));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let (memory, width, cores) = (bound(BUDGET_KIB as usize), bound(AT_ONCE), bound(cores));
        Fetch { repository, opener, memory, width, cores, progress }
    }

    /// The same, but for a core: it is a server's.
    pub(super) fn beside_a_server(&self) -> Fetch {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1));
        Fetch { cores: Arc::new(Semaphore::new(cores)), ..self.clone() }
    }

    /// Reads a small object whole. Waits for its share of the memory first, in the order of asking.
    pub(super) async fn open(&self, key: &Key, stored: u64, plain: u64) -> Result<(Seal, Vec<u8>), RestoreError> {
        let fetched = self.get(key, stored + plain).await?;
        let opener = self.opener.clone();
        self.work(move || opener.open(&fetched.key, &fetched.object).map_err(|source| not_opened(&fetched.key, source)))
            .await
    }

    /// Fetches an object, to be opened piece by piece.
    pub(super) async fn fetch(&self, key: &Key, stored: u64) -> Result<Fetched, RestoreError> {
        self.get(key, stored + OPENING_BYTES).await
    }

    /// Opens what was fetched, and hands it on as it is opened, so that it is never held whole: `take` is called where it may
    /// block, and waits for a core.
    pub(super) async fn take<T: Send + 'static>(
        &self,
        fetched: Fetched,
        take: impl FnOnce(Opening<'_>) -> Result<T, RestoreError> + Send + 'static,
    ) -> Result<T, RestoreError> {
        let opener = self.opener.clone();
        self.work(move || {
            let Fetched { key, object, _share } = &fetched;
            let pieces = opener.pieces(key, object).map_err(|source| not_opened(key, source))?;
            take(Opening { key, pieces })
        })
        .await
    }

    async fn get(&self, key: &Key, bytes: u64) -> Result<Fetched, RestoreError> {
        // One object alone may be larger than the budget; it then waits for all of it.
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, BUDGET_KIB);
        let share = self.memory.clone().acquire_many_owned(kib).await.expect(CLOSED);
        let _under_way = self.width.acquire().await.expect(CLOSED);
        Ok(Fetched { key: key.clone(), object: self.repository.get(key).await?, _share: share })
    }

    /// Does what takes a core, as many at once as there are.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
    ) -> Result<T, RestoreError> {
        let _core = self.cores.acquire().await.expect(CLOSED);
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|error| RestoreError::io("open an object", std::io::Error::other(error)))??;
        crate::failpoint!("restore-object-opened");
        self.progress.objects.fetch_add(1, Ordering::Relaxed);
        Ok(done)
    }

    /// Fetches a part of the log: the object that holds it, and that object's first byte. A piece goes as soon as something
    /// larger stands for it, and a writer may be at work while we restore: then it is that.
    pub(super) async fn fetch_part(&self, part: &LogPart, size: SegmentSize) -> Result<(Fetched, Lsn), RestoreError> {
        let mut asked = self.fetch(&part.key, part.stored_bytes).await.map(|fetched| (fetched, part.first));
        for _ in 0..STAND_INS_TRIED {
            match asked {
                Err(RestoreError::Repository(RepositoryError::Absent { .. })) => {}
                answered => return answered,
            }
            let Some((key, first, stored)) = self.stand_in(part, size).await? else { break };
            asked = self.fetch(&key, stored).await.map(|fetched| (fetched, first));
        }
        asked
    }

    /// What holds the bytes of a piece that is gone: its segment, or a larger piece. Its name, its first byte, and its length.
    async fn stand_in(&self, part: &LogPart, size: SegmentSize) -> Result<Option<(Key, Lsn, u64)>, RestoreError> {
        let Key::Of(cluster, Item::Piece { timeline, .. }) = &part.key else { return Ok(None) };
        let segment = Key::Of(cluster.clone(), Item::Segment(size.name(*timeline, part.first)));
        match self.repository.receipt(&segment).await {
            Ok(_) => return Ok(Some((segment, part.first.segment_start(size), size.bytes()))),
            Err(RepositoryError::Absent { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let prefix = format!("{}piece/{:08X}/", Key::of_cluster(cluster), timeline.0);
        let listed = self.repository.list(&prefix).await?;
        let larger = listed.iter().filter_map(|object| match object.name.parse() {
            Ok(Key::Of(cluster, Item::Piece { timeline, first, last })) if first <= part.first && last >= part.last => {
                let key = Key::Of(cluster, Item::Piece { timeline, first, last });
                Some((last.0 - first.0, (key, first, object.bytes)))
            }
            _ => None,
        });
        Ok(larger.min_by_key(|(plain, _)| *plain).map(|(_, found)| found))
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
