//! One writer per source: a small signed object in the repository that only who has seen it last can replace.
//!
//! In: a repository and a name for the writer. Out: a [`Lease`] that beats by itself until it is released, dropped or lost.
//! Callers: whoever runs a shipper, a backup or an expiry.
//!
//! Nobody's clock is believed. Who finds a lease watches it for the holder's time to live, by its own measure: a beat in
//! that time means that the holder is alive. A lease is advice to writers that mean well; what protects the data is that
//! objects are written once, and that a server gives a slot to one reader. Where a place cannot replace on a condition
//! there is no lease, and the slot is the lock.

use crate::backup::repository::{Key, Leased, Replaced, Repository, RepositoryError};
use crate::backup::seal::{Checker, SealError, Sealer};
use crate::model::SourceName;
use crate::model::text::moment;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Beats in a time to live: two may fail or come late.
const BEATS: u32 = 3;
/// A holder is not believed when it asks for more: a wrong number must not lock a source for a day.
const TTL_MAX: Duration = Duration::from_secs(600);
/// Tries to take a lease that others take and give back at the same time.
const RACES: usize = 16;

/// What the object says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Claim {
    version: u32,
    owner: String,
    /// Drawn for each [`Lease`]: two processes of one name are told apart.
    nonce: String,
    since: Timestamp,
    beat: u64,
    ttl_millis: u64,
    released: bool,
}

/// How a lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Ours, by the last beat.
    Held,
    /// No beat succeeded for the time to live: somebody else may have it. Tried on.
    Doubtful(String),
    /// Somebody else has it; in words. Nothing may be written any more.
    Lost(String),
    /// There is none, for this place cannot keep one: the replication slot is the lock.
    SlotIsTheLock,
}

/// Why a lease was not taken. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Its holder is alive.
    #[error(
        "write for {source_name}: {owner} does so since {}\nhint: stop it first, or wait: when it is gone, its place is free after {} s",
        moment(*.since),
        .ttl.as_secs()
    )]
    Held {
        /// The source.
        source_name: SourceName,
        /// Who.
        owner: String,
        /// Since when, by its clock.
        since: Timestamp,
        /// How long after its death it may be followed.
        ttl: Duration,
    },
    /// It was taken and given back by others again and again.
    #[error("write for {0}: others took its lease at the same moment, many times")]
    Contended(SourceName),
    /// What is stored there is no lease that is trusted.
    #[error("read {name}: {error}")]
    Doubtful {
        /// Its name.
        name: String,
        /// What is wrong.
        error: SealError,
    },
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Our own side.
    #[error("write the lease: {0}")]
    Seal(#[from] SealError),
}

/// The right to write for a source. Dropped, it is not given back: it ends after its time to live.
#[derive(Debug)]
pub struct Lease {
    standing: watch::Receiver<Standing>,
    beating: Option<Beating>,
}

#[derive(Debug)]
struct Beating {
    release: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Holder {
    repository: Arc<dyn Repository>,
    sealer: Sealer,
    checker: Checker,
    key: Key,
    claim: Claim,
}

/// What a try to beat found.
enum Beat {
    Done,
    Lost(String),
}

impl Lease {
    /// Takes the lease of a source. Another's that is alive is told within a third of its time to live; a dead one's is
    /// taken over after all of it. One with the same `owner` is taken over at once: the name must be that of something
    /// that runs once, such as a daemon that holds the lock on its state.
    ///
    /// # Errors
    /// When somebody else holds it, or that cannot be found out.
    pub async fn take(
        repository: Arc<dyn Repository>,
        sealer: Sealer,
        checker: Checker,
        source: SourceName,
        owner: &str,
        ttl: Duration,
    ) -> Result<Lease, LeaseError> {
        if !repository.abilities().await?.replace_if {
            let (_, standing) = watch::channel(Standing::SlotIsTheLock);
            return Ok(Lease { standing, beating: None });
        }
        let nonce = getrandom::u64().map_err(|error| SealError::Broken(error.to_string()))?;
        let claim = Claim {
            version: 1,
            owner: owner.to_owned(),
            nonce: format!("{nonce:016x}"),
            since: Timestamp::now(),
            beat: 0,
            ttl_millis: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            released: false,
        };
        let mut holder = Holder { repository, sealer, checker, key: Key::Lease(source.clone()), claim };
        for _ in 0..RACES {
            let seen = match holder.read().await? {
                None => None,
                Some((there, version)) if there.released || there.owner == owner => Some(version),
                Some((there, version)) => match holder.outlive(&there, version).await? {
                    Some(version) => Some(version),
                    None => continue,
                },
            };
            if holder.write(seen.as_deref()).await? == Replaced::Done {
                return Ok(holder.keep(ttl));
            }
        }
        Err(LeaseError::Contended(source))
    }

    /// How it stands, now and from now on.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Gives it back, so that the next writer need not wait. What fails only makes it wait.
    pub async fn release(mut self) {
        if let Some(mut beating) = self.beating.take() {
            beating.release.send_replace(true);
            // A place that does not answer is not waited for longer than the next writer would wait.
            let _ = tokio::time::timeout(Duration::from_secs(10), &mut beating.task).await;
        }
    }
}

impl Holder {
    async fn read(&self) -> Result<Option<(Claim, String)>, LeaseError> {
        let Some(Leased { stored, version }) = self.repository.lease(&self.key).await? else { return Ok(None) };
        let doubtful = |error| LeaseError::Doubtful { name: self.key.to_string(), error };
        let (_, claim) = self.checker.document::<Claim>(&self.key, &stored).map_err(doubtful)?;
        if claim.version != 1 {
            return Err(doubtful(SealError::Unreadable(format!(
                "it is of version {}, this Mainstay knows 1",
                claim.version
            ))));
        }
        Ok(Some((claim, version)))
    }

    async fn write(&mut self, seen: Option<&str>) -> Result<Replaced, LeaseError> {
        self.claim.beat += 1;
        let text = serde_json::to_vec(&self.claim).map_err(|error| SealError::Broken(error.to_string()))?;
        let sealed = self.sealer.seal(&self.key, &text, BTreeMap::new())?;
        Ok(self.repository.replace_lease(&self.key, &sealed, seen).await?)
    }

    /// Watches another's lease for its time to live. Its version when it did not change, `None` when it is free now.
    async fn outlive(&self, there: &Claim, version: String) -> Result<Option<String>, LeaseError> {
        let ttl = Duration::from_millis(there.ttl_millis).min(TTL_MAX);
        let began = Instant::now();
        loop {
            tokio::time::sleep((ttl / BEATS).min(ttl.saturating_sub(began.elapsed()))).await;
            match self.read().await? {
                None => return Ok(None),
                Some((now, _)) if now.released => return Ok(None),
                Some((now, seen)) if seen != version => {
                    let Key::Lease(source_name) = self.key.clone() else { return Ok(None) };
                    return Err(LeaseError::Held { source_name, owner: now.owner, since: now.since, ttl });
                }
                // Measured to the moment before this answer was asked for would be too long; after it, it is safe.
                Some(_) if began.elapsed() >= ttl => return Ok(Some(version)),
                Some(_) => {}
            }
        }
    }

    /// Beats until released or lost.
    fn keep(mut self, ttl: Duration) -> Lease {
        let (told, standing) = watch::channel(Standing::Held);
        let (release, mut released) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut last = Instant::now();
            loop {
                let released = tokio::time::timeout(ttl / BEATS, released.wait_for(|released| *released)).await.is_ok();
                if released {
                    self.claim.released = true;
                    let _ = self.beat().await;
                    return;
                }
                let began = Instant::now();
                match self.beat().await {
                    Ok(Beat::Done) => {
                        last = began;
                        told.send_if_modified(|standing| std::mem::replace(standing, Standing::Held) != Standing::Held);
                    }
                    Ok(Beat::Lost(to)) => {
                        tracing::error!(key = %self.key, to, "the lease is lost");
                        told.send_replace(Standing::Lost(to));
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(key = %self.key, %error, "the lease could not be renewed");
                        if last.elapsed() >= ttl {
                            told.send_replace(Standing::Doubtful(error.to_string()));
                        }
                    }
                }
            }
        });
        Lease { standing, beating: Some(Beating { release, task }) }
    }

    async fn beat(&mut self) -> Result<Beat, LeaseError> {
        for _ in 0..RACES {
            let seen = match self.read().await? {
                Some((there, version)) if there.nonce == self.claim.nonce => Some(version),
                Some((there, _)) => {
                    return Ok(Beat::Lost(format!("{} has it since {}", there.owner, moment(there.since))));
                }
                // Somebody deleted it. Nobody has taken it: it is ours as before.
                None => None,
            };
            if self.write(seen.as_deref()).await? == Replaced::Done {
                return Ok(Beat::Done);
            }
        }
        Ok(Beat::Lost("others replace it all the time".into()))
    }
}
