//! Pieces that something larger stands for are deleted, beside everything else and in no hurry: what is not deleted here,
//! because the place keeps it or because too much is waiting, an expiry takes later.

use super::store::Store;
use crate::backup::repository::{Cluster, Deleted, Item, Key, Repository};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Pieces that wait to be deleted: some minutes' worth. What comes when it is full is left to the expiry.
const WAITING: usize = 1024;

/// Deletes pieces. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Sweeper {
    sender: mpsc::Sender<Key>,
    task: JoinHandle<()>,
}

impl Sweeper {
    pub(super) fn start(repository: Arc<dyn Repository>) -> Sweeper {
        let (sender, mut keys) = mpsc::channel::<Key>(WAITING);
        let task = tokio::spawn(async move {
            while let Some(key) = keys.recv().await {
                match repository.delete(&key).await {
                    Ok(Deleted::Gone | Deleted::Absent) => {}
                    Ok(Deleted::Locked) => {
                        tracing::debug!(key = %key, "the place keeps a piece; an expiry takes it later");
                    }
                    Err(error) => tracing::debug!(key = %key, %error, "a piece is left to the expiry"),
                }
            }
        });
        Sweeper { sender, task }
    }

    /// Deletes an object some time soon, perhaps.
    pub(super) fn delete(&self, key: Key) {
        let _ = self.sender.try_send(key);
    }

    /// Pieces that a writer left which ended between a segment and its pieces; only where the segment is what it should be.
    pub(super) fn left_over(&self, store: &Store, cluster: &Cluster, folded: Vec<(Key, Vec<Item>)>) {
        let (store, cluster, sender) = (store.clone(), cluster.clone(), self.sender.clone());
        tokio::spawn(async move {
            for (segment, pieces) in folded {
                let Ok(receipt) = store.repository.receipt(&segment).await else { continue };
                if store.checker.receipt(&segment, &receipt).is_err() || sender.capacity() < pieces.len() {
                    continue;
                }
                for piece in pieces {
                    let _ = sender.try_send(Key::Of(cluster.clone(), piece));
                }
            }
        });
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}
