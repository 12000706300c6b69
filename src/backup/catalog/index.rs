//! A repository read back: one listing, and the open documents in it. In: a repository and whom to believe. Out: a
//! [`Catalogue`]. Callers: `take`, `ship`, `restore`, `expire`, `verify`, the commands.
//!
//! # Requests
//! One listing of the source, then at most: one read per manifest, per gap, per mark, and per unfinished backup (is its
//! manifest really absent?); [`PROOFS_READ`] per backup; [`FRONTIERS_READ`] per cluster; one receipt per history file;
//! [`RECEIPTS_READ`] receipts per timeline; one receipt when no backup says how long segments are. Never one per segment or
//! piece. [`READS_AT_ONCE`] at a time.

mod dumps;
mod reader;

use super::history;
use super::holdings::{Holdings, Object};
use crate::backup::repository::{Key, Listed, Repository, RepositoryError, Stored};
use crate::backup::seal::{Checker, Opener, SealError};
use crate::model::{SourceName, SystemId};
use jiff::Timestamp;
use reader::{Reader, Sorted};
use std::collections::BTreeMap;

/// Frontiers read per cluster: one would do; four say how fast the log moves, and stand in when the writer died at one.
pub const FRONTIERS_READ: usize = 4;
/// Checks read per backup: the newest decides, the ones before say what else was done since the last bad one.
pub const PROOFS_READ: usize = 4;
/// Receipts of segments and pieces read per timeline: the newest carry the furthest acknowledgement.
pub const RECEIPTS_READ: usize = 4;
/// Reads at once: enough to hide 100 ms of a distant store, few enough for the 50 connections of one client.
pub const READS_AT_ONCE: usize = 16;

/// What a repository holds of a source.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// The source.
    pub source: SourceName,
    /// The place, in words.
    pub place: String,
    /// When the listing was asked for, by our clock.
    pub read: Timestamp,
    /// How many objects were listed.
    pub listed: usize,
    /// The newest time at which the place says that an object was written, by its clock.
    pub newest_written: Option<Timestamp>,
    /// Each cluster that the source has had.
    pub clusters: BTreeMap<SystemId, Holdings>,
    /// The source's own file, by number.
    pub sources: BTreeMap<u64, Object>,
    /// The lease is there.
    pub lease: bool,
    /// Objects with names that Mainstay does not give: shown, never read, never deleted.
    pub foreign: Vec<Listed>,
    /// Documents that are not what they should be: shown, never used, never deleted.
    pub bad: Vec<Bad>,
}

/// A document that is listed and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// Its object.
    pub key: Key,
    /// What kind of thing is wrong.
    pub kind: BadKind,
    /// The same in words.
    pub why: String,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BadKind {
    /// It was listed, or named by a manifest, and is not there.
    Gone,
    /// Its bytes are not those that were stored.
    Damaged,
    /// Its signature does not fit, or is by nobody we trust.
    Untrusted,
    /// It is of a version that this Mainstay does not know, or says what cannot be.
    Contents,
}

/// Why a catalogue could not be read. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The place cannot be reached, or refuses.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A listing that cannot be right.
    #[error(
        "list {place}: it left out {name}, which is there\nhint: the store's listing is not whole; try again, and do not \
         believe what it says of other objects"
    )]
    Doubtful {
        /// The place.
        place: String,
        /// What it left out.
        name: String,
    },
}

/// What reading one object came to, short of a failure of the place.
type Read<T> = Result<T, Bad>;

impl Catalogue {
    /// Reads what `repository` holds of `source`. An empty repository gives an empty catalogue; whoever deletes must not
    /// take that for an answer.
    ///
    /// # Errors
    /// When the place cannot be reached or refuses, or its listing contradicts itself.
    pub async fn read(
        repository: &dyn Repository,
        checker: &Checker,
        source: &SourceName,
    ) -> Result<Catalogue, CatalogueError> {
        let read = Timestamp::now();
        let listing = repository.list(&Key::of_source(source)).await?;
        let mut catalogue = Catalogue {
            source: source.clone(),
            place: repository.place(),
            read,
            listed: listing.len(),
            newest_written: listing.iter().map(|object| object.written).max(),
            clusters: BTreeMap::new(),
            sources: BTreeMap::new(),
            lease: false,
            foreign: Vec::new(),
            bad: Vec::new(),
        };
        let mut sorted: BTreeMap<SystemId, Sorted> = BTreeMap::new();
        for object in listing {
            catalogue.sort(object, &mut sorted);
        }
        let mut reader = Reader::new(repository, checker);
        for (system, sorted) in sorted {
            let holdings = reader.cluster(&mut catalogue, sorted).await?;
            catalogue.clusters.insert(system, holdings);
        }
        Ok(catalogue)
    }

    /// Opens the history files and takes what they say for the ancestry of timelines, in place of the notes beside them.
    /// One read per file. A file that does not open or read is added to `bad`.
    ///
    /// # Errors
    /// When the place cannot be reached or refuses.
    pub async fn open_histories(&mut self, repository: &dyn Repository, opener: &Opener) -> Result<(), CatalogueError> {
        for holdings in self.clusters.values_mut() {
            for (timeline, found) in &mut holdings.histories {
                let key = found.object.key.clone();
                let opened = match get(repository, &key).await? {
                    Err(bad) => Err(bad),
                    Ok(stored) => opener.open(&key, &stored).map_err(|error| seal_bad(&key, &error)),
                };
                let parsed = opened.and_then(|(_, file)| {
                    history::parse(*timeline, &file).map_err(|error| bad(&key, BadKind::Contents, error))
                });
                match parsed {
                    Ok(ancestors) if found.ancestors.as_ref().is_some_and(|noted| *noted != ancestors) => {
                        self.bad.push(bad(
                            &key,
                            BadKind::Contents,
                            "the note beside it names other ancestors than it does",
                        ));
                        found.ancestors = None;
                    }
                    Ok(ancestors) => found.ancestors = Some(ancestors),
                    Err(bad) => {
                        found.ancestors = None;
                        self.bad.push(bad);
                    }
                }
            }
        }
        Ok(())
    }

    /// The cluster that the source has now: the one with the newest frontier, backup or
    /// logical copy. `None` when there is none.
    pub fn newest_cluster(&self) -> Option<&Holdings> {
        let newest = |holdings: &&Holdings| {
            let frontier = holdings.newest_frontier().map(|frontier| frontier.at);
            let dump = holdings.dumps.good.values().next_back().map(|dump| dump.manifest.ended);
            frontier.max(holdings.backups.values().next_back().map(|backup| backup.manifest.ended)).max(dump)
        };
        self.clusters.values().max_by_key(newest)
    }

    /// One listed object into its drawer.
    fn sort(&mut self, listed: Listed, sorted: &mut BTreeMap<SystemId, Sorted>) {
        let Ok(key) = listed.name.parse::<Key>() else {
            self.foreign.push(listed);
            return;
        };
        let object = Object { key: key.clone(), bytes: listed.bytes, written: listed.written };
        match key {
            Key::Lease(_) => self.lease = true,
            Key::Source(_, number) => {
                self.sources.insert(number, object);
            }
            Key::Of(cluster, item) => {
                sorted.entry(cluster.system).or_insert_with(|| Sorted::new(cluster)).take(item, object);
            }
        }
    }
}

async fn get(repository: &dyn Repository, key: &Key) -> Result<Read<Stored>, CatalogueError> {
    match repository.get(key).await {
        Ok(stored) => Ok(Ok(stored)),
        Err(error) => Ok(Err(place_bad(key, error)?)),
    }
}

fn bad(key: &Key, kind: BadKind, why: impl std::fmt::Display) -> Bad {
    Bad { key: key.clone(), kind, why: why.to_string() }
}

/// What the place says of one object is the object's fault, or else the place's.
pub(crate) fn place_bad(key: &Key, error: RepositoryError) -> Result<Bad, RepositoryError> {
    match error {
        RepositoryError::Absent { .. } => Ok(bad(key, BadKind::Gone, "it is not there")),
        RepositoryError::Damaged { detail, .. } => Ok(bad(key, BadKind::Damaged, detail)),
        error @ (RepositoryError::Unreachable { .. } | RepositoryError::Refused { .. }) => Err(error),
    }
}

/// What is wrong with an object that does not check or open.
pub(crate) fn seal_bad(key: &Key, error: &SealError) -> Bad {
    let kind = match error {
        SealError::Forged | SealError::Untrusted(_) => BadKind::Untrusted,
        SealError::Unreadable(_) => BadKind::Contents,
        SealError::Mismatch(_) | SealError::Damaged(_) | SealError::NoIdentity { .. } | SealError::Broken(_) => {
            BadKind::Damaged
        }
    };
    bad(key, kind, error)
}
