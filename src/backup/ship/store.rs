//! Sealing and putting, until it is stored: what is put here is never given up, because nothing else has it.
//!
//! Callers are the session (pieces, segments, frontiers) and its preparation (history files, gaps).

use super::ShipError;
use super::assemble::{Known, Range};
use super::status::Board;
use crate::backup::catalog::history::{self, Ancestor};
use crate::backup::catalog::manifest::{Frontier, Gap};
use crate::backup::catalog::note;
use crate::backup::repository::{Cluster, Item, Key, Put, Repository, RepositoryError};
use crate::backup::seal::{Checker, Receipt, Sealed, Sealer};
use crate::model::Timeline;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Between two tries of a put that failed for good, that is after all that the repository tried itself.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Receipts asked for at once at a start: a few hundred pieces in a second or two.
const RECEIPTS_AT_ONCE: usize = 8;

/// Where a source's log goes, and the seal under it. Clones are the same one.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) repository: Arc<dyn Repository>,
    pub(super) sealer: Sealer,
    pub(super) checker: Checker,
}

impl Store {
    /// Puts an object, again and again until it is stored. What failed meanwhile stands in the status.
    ///
    /// # Errors
    /// When other content is stored under this name, or something that nobody vouches for.
    pub(super) async fn put_until_stored(
        &self,
        key: Key,
        plain: Bytes,
        note: BTreeMap<String, String>,
        board: &Board,
    ) -> Result<(), ShipError> {
        let object = self.seal(&key, plain, note).await?;
        let mut pause = RETRY;
        loop {
            match self.put_once(&key, &object).await {
                Ok(()) => return Ok(()),
                Err(ShipError::Repository(error)) => {
                    tracing::warn!(%error, key = %key, "the log cannot be stored; trying again");
                    board.failed(&error);
                }
                Err(other) => return Err(other),
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn seal(&self, key: &Key, plain: Bytes, note: BTreeMap<String, String>) -> Result<Sealed, ShipError> {
        let (sealer, key) = (self.sealer.clone(), key.clone());
        // Up to 16 MiB are compressed: 100 ms of a core, too long for a thread that also answers the server.
        let sealed = tokio::task::spawn_blocking(move || sealer.seal(&key, &plain, note)).await;
        Ok(sealed.map_err(|error| ShipError::Broken(error.to_string()))??)
    }

    /// Stores an object, or finds it stored with the same content.
    async fn put_once(&self, key: &Key, object: &Sealed) -> Result<(), ShipError> {
        match self.repository.put_new(key, object).await? {
            Put::Stored => Ok(()),
            Put::Exists(receipt) => self.same(key, &receipt, &object.receipt),
        }
    }

    fn same(&self, key: &Key, stored: &Receipt, ours: &Receipt) -> Result<(), ShipError> {
        self.checker.receipt(key, stored).map_err(|error| ShipError::Doubtful { name: key.to_string(), error })?;
        match stored.same_content(ours) {
            true => Ok(()),
            false => Err(ShipError::TwoHistories { name: key.to_string() }),
        }
    }

    /// Puts a document that is stored under the next free number, or once under its name.
    async fn put_document<T: Serialize>(&self, key: &Key, document: &T) -> Result<Put, ShipError> {
        let text = serde_json::to_vec(document).map_err(|error| ShipError::Broken(error.to_string()))?;
        let sealed = self.seal(key, text.into(), BTreeMap::new()).await?;
        Ok(self.repository.put_new(key, &sealed).await?)
    }

    /// Stores a frontier under the first free number from `number` on; answers that number.
    pub(super) async fn put_frontier(
        &self,
        cluster: &Cluster,
        mut number: u64,
        frontier: &Frontier,
    ) -> Result<u64, ShipError> {
        loop {
            let key = Key::Of(cluster.clone(), Item::Frontier(number));
            match self.put_document(&key, frontier).await? {
                Put::Stored => return Ok(number),
                Put::Exists(_) => number += 1,
            }
        }
    }

    /// Records that log is missing for good. One that is on record stays as it is: it says the same.
    pub(super) async fn put_gap(&self, cluster: &Cluster, gap: &Gap) -> Result<(), ShipError> {
        let key = Key::Of(cluster.clone(), Item::Gap { timeline: gap.timeline, from: gap.from, to: gap.to });
        if let Put::Exists(receipt) = self.put_document(&key, gap).await? {
            self.checker
                .receipt(&key, &receipt)
                .map_err(|error| ShipError::Doubtful { name: key.to_string(), error })?;
        }
        Ok(())
    }

    /// Stores a timeline's history file, or finds the same one stored.
    pub(super) async fn put_history(
        &self,
        cluster: &Cluster,
        timeline: Timeline,
        file: Vec<u8>,
        ancestors: &[Ancestor],
        listed: bool,
    ) -> Result<(), ShipError> {
        let key = Key::Of(cluster.clone(), Item::History(timeline));
        let note = BTreeMap::from([(note::ANCESTORS.to_owned(), history::note(ancestors))]);
        let object = self.seal(&key, file.into(), note).await?;
        match listed {
            // Read-only where there is nothing to write: this is done at every start.
            true => self.same(&key, &self.repository.receipt(&key).await?, &object.receipt),
            false => self.put_once(&key, &object).await,
        }
    }

    /// What the repository says of pieces that will come again, so that they can be compared.
    pub(super) async fn known(
        &self,
        cluster: &Cluster,
        timeline: Timeline,
        ranges: Vec<Range>,
    ) -> Result<Vec<Known>, ShipError> {
        let ask = |range: Range| async move {
            let key = Key::Of(cluster.clone(), Item::Piece { timeline, first: range.0, last: range.1 });
            match self.repository.receipt(&key).await {
                Ok(receipt) => {
                    let doubtful = |error| ShipError::Doubtful { name: key.to_string(), error };
                    let seal = self.checker.receipt(&key, &receipt).map_err(doubtful)?;
                    Ok(Some(Known { range, sha256: seal.plain.sha256 }))
                }
                // An expiry, or a fold that the last writer began, was faster.
                Err(RepositoryError::Absent { .. }) => Ok(None),
                Err(error) => Err(ShipError::from(error)),
            }
        };
        let answers: Vec<Result<Option<Known>, ShipError>> =
            futures_util::stream::iter(ranges.into_iter().map(ask)).buffer_unordered(RECEIPTS_AT_ONCE).collect().await;
        answers.into_iter().filter_map(Result::transpose).collect()
    }
}

/// Within a quarter of it: many writers that wait for one store must not come back together.
pub(super) fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.75 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}
