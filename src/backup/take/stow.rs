//! Seals objects on all cores and stores them, many at once, in bounded memory; afterwards reads back what was stored.
//!
//! Plain bytes enter with their key; facts about what lies in the repository leave, in the order of entering.

use super::TakeError;
use crate::backup::catalog::manifest::ObjectFacts;
use crate::backup::repository::{Key, Put, Repository};
use crate::backup::seal::{Checker, Receipt, Sealer};
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};

/// Bytes of objects that are between entering and lying in the repository: plain ones count twice while they are sealed, since the
/// sealed ones are then there too, and for a moment the compressed ones beside them. Three chunks are sealed at once; with
/// the chunk that fills and the codecs' own memory a backup stays below 200 MiB even where nothing compresses.
const MEMORY_BYTES: usize = 96 << 20;

/// Memory is counted in units of this many bytes.
const UNIT_BYTES: usize = 4 << 10;

/// Requests at once: enough to hide 50 ms of latency behind objects of 5 MiB at 800 MB/s.
const PUTS: usize = 8;

/// Receipts that are read back at once. They are small, so their latency is all there is.
const READS: usize = 16;

/// An object that lies in the repository.
#[derive(Debug, Clone)]
pub(super) struct Laid {
    key: Key,
    receipt: Receipt,
    /// What the manifest says of it.
    pub(super) facts: ObjectFacts,
}

/// See the head of this file. Dropped, it stops what runs; what is stored stays.
pub(super) struct Stow {
    to: Arc<Place>,
    running: JoinSet<(usize, Result<Laid, TakeError>)>,
    laid: Vec<Option<Laid>>,
    /// Bytes that lie in the repository.
    pub(super) stored: u64,
}

struct Place {
    repository: Arc<dyn Repository>,
    sealer: Sealer,
    memory: Arc<Semaphore>,
    cores: Semaphore,
    puts: Semaphore,
}

impl Stow {
    pub(super) fn new(repository: Arc<dyn Repository>, sealer: Sealer) -> Stow {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let to = Place {
            repository,
            sealer,
            memory: Arc::new(Semaphore::new(MEMORY_BYTES / UNIT_BYTES)),
            cores: Semaphore::new(cores),
            puts: Semaphore::new(PUTS),
        };
        Stow { to: Arc::new(to), running: JoinSet::new(), laid: Vec::new(), stored: 0 }
    }

    /// Takes an object in; waits while too many are on their way.
    ///
    /// # Errors
    /// When one that was taken in before failed.
    pub(super) async fn lay(&mut self, key: Key, plain: Bytes) -> Result<(), TakeError> {
        let units = units(plain.len() * 2);
        let permit = loop {
            tokio::select! {
                biased;
                Some(done) = self.running.join_next() => self.keep(done)?,
                // Never closed.
                Ok(permit) = Arc::clone(&self.to.memory).acquire_many_owned(units) => break permit,
            }
        };
        let (to, number) = (Arc::clone(&self.to), self.laid.len());
        self.laid.push(None);
        self.running.spawn(async move { (number, to.lay(key, plain, permit).await) });
        Ok(())
    }

    /// Waits until all lie in the repository.
    ///
    /// # Errors
    /// When one failed.
    pub(super) async fn all(&mut self) -> Result<(), TakeError> {
        while let Some(done) = self.running.join_next().await {
            self.keep(done)?;
        }
        Ok(())
    }

    /// What lies there, in the order of entering. Empty places are those of which [`Stow::all`] was not awaited.
    pub(super) fn laid(&self) -> impl Iterator<Item = &Laid> {
        self.laid.iter().flatten()
    }

    /// Reads the receipt of every object back, and the list of them: each must be there as it was stored.
    ///
    /// # Errors
    /// When one is not, or that cannot be said.
    pub(super) async fn read_back(&self, prefix: &str) -> Result<(), TakeError> {
        let place = &self.to;
        let listed = place.repository.list(prefix).await.map_err(|error| TakeError::ReadBack { error })?;
        let listed: BTreeMap<&str, u64> = listed.iter().map(|object| (object.name.as_str(), object.bytes)).collect();
        for laid in self.laid() {
            let wrong = |what: String| TakeError::NotAsStored { key: laid.facts.key.clone(), what };
            match listed.get(laid.facts.key.as_str()) {
                Some(bytes) if *bytes == laid.facts.stored.bytes => {}
                Some(bytes) => {
                    return Err(wrong(format!("it has {bytes} bytes, {} were stored", laid.facts.stored.bytes)));
                }
                None => return Err(wrong("it is not in the list of the backup's objects".into())),
            }
        }
        stream::iter(self.laid().map(Ok)).try_for_each_concurrent(READS, |laid| place.read_back(laid)).await
    }

    /// Reads the receipt of the newest object back.
    ///
    /// # Errors
    /// As [`Stow::read_back`].
    pub(super) async fn read_back_newest(&self) -> Result<(), TakeError> {
        let newest = self.laid.last().and_then(Option::as_ref);
        self.to.read_back(newest.ok_or_else(|| TakeError::Broken("nothing was stored".into()))?).await
    }

    fn keep(&mut self, done: Result<(usize, Result<Laid, TakeError>), JoinError>) -> Result<(), TakeError> {
        let (number, laid) = done.map_err(|error| TakeError::Broken(error.to_string()))?;
        let laid = laid?;
        self.stored += laid.facts.stored.bytes;
        self.laid[number] = Some(laid);
        Ok(())
    }
}

impl Place {
    async fn read_back(&self, laid: &Laid) -> Result<(), TakeError> {
        let receipt = self.repository.receipt(&laid.key).await.map_err(|error| TakeError::ReadBack { error })?;
        if receipt == laid.receipt {
            return Ok(());
        }
        Err(TakeError::NotAsStored { key: laid.facts.key.clone(), what: "its receipt is another one".into() })
    }

    async fn lay(&self, key: Key, plain: Bytes, mut memory: OwnedSemaphorePermit) -> Result<Laid, TakeError> {
        let closed = |_| TakeError::Broken("it is being stopped".into());
        let core = self.cores.acquire().await.map_err(closed)?;
        let (sealer, of) = (self.sealer.clone(), key.clone());
        let sealed = tokio::task::spawn_blocking(move || sealer.seal(&of, &plain, BTreeMap::new()));
        let sealed = sealed.await.map_err(|error| TakeError::Broken(error.to_string()))?;
        let sealed = sealed.map_err(|error| TakeError::Seal { key: key.to_string(), error })?;
        drop(core);
        let held = memory.num_permits();
        drop(memory.split(held.saturating_sub(units(sealed.bytes.len()) as usize)));

        let _put = self.puts.acquire().await.map_err(closed)?;
        let put = self.repository.put_new(&key, &sealed).await;
        let put = put.map_err(|error| TakeError::Store { error })?;
        let receipt = match put {
            Put::Stored => sealed.receipt,
            // An earlier try whose answer was lost: ours, and of the same plain bytes.
            Put::Exists(found) if found.same_content(&sealed.receipt) => {
                let ours = Checker::new(vec![self.sealer.public()]);
                ours.receipt(&key, &found).map_err(|error| TakeError::Seal { key: key.to_string(), error })?;
                found
            }
            Put::Exists(_) => return Err(TakeError::Taken { key: key.to_string() }),
        };
        let seal = receipt.unchecked().map_err(|error| TakeError::Seal { key: key.to_string(), error })?;
        let facts = ObjectFacts { key: seal.key, plain: seal.plain, stored: seal.stored };
        Ok(Laid { key, receipt, facts })
    }
}

/// Whole units, one at least, and never more than there are.
fn units(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT_BYTES).clamp(1, MEMORY_BYTES / UNIT_BYTES) as u32
}
