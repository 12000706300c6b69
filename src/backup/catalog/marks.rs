//! What expiries mean to delete, and what keeps them from taking what a backup in progress is built on. In: marks that were
//! read, names. Out: whether a name is marked, since when, and whether that is long enough. Callers: `expire`, `take`.
//!
//! # Why no backup loses what it adopts
//! An expiry marks, waits for the grace, reads the repository anew, and deletes what is still unneeded. A backup calls
//! [`refuse_marked`] with what it adopts ([`adopted`], and what an interrupted try left) when it begins, and again right
//! before it writes its manifest. A mark that was there is seen by it, and it fails. A mark that comes later is at least the
//! grace older than the deletion, and the manifest is seen by the expiry long before. Clocks take no part in it.

use super::holdings::{Holdings, Marked};
use super::manifest::{Manifest, Mark, VERSION};
use crate::backup::repository::{Cluster, Item, Key, Repository, RepositoryError};
use crate::backup::seal::{Checker, SealError};
use crate::model::text::moment;
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How long what is marked waits, unless told otherwise: longer than any restore or backup reads what was listed before.
pub const GRACE: Duration = Duration::from_secs(86_400);
/// Names in one mark: about 1 MiB of JSON.
pub const MARK_KEYS: usize = 10_000;

/// Why something may not be adopted. `Display` fits after "failed to build on an earlier backup: ".
#[derive(Debug, thiserror::Error)]
pub enum Adopt {
    /// An expiry means to delete it.
    #[error(
        "{name} is marked to be deleted since {}\nhint: take a whole backup; the next expiry tells whether the mark was wrong",
        moment(*.since)
    )]
    Marked {
        /// The first one.
        name: String,
        /// Since when.
        since: Timestamp,
    },
    /// A mark cannot be believed, so it may be this one that says so.
    #[error("the mark {name} is bad: {error}")]
    Doubtful {
        /// The mark.
        name: String,
        /// What is wrong with it.
        error: SealError,
    },
    /// A mark is of a version that is not known.
    #[error("the mark {name} is of version {version}, this Mainstay knows {VERSION}")]
    Version {
        /// The mark.
        name: String,
        /// Its version.
        version: u32,
    },
    /// The place cannot be reached, or refuses.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Where the marks of a cluster are.
pub fn prefix(cluster: &Cluster) -> String {
    format!("{}mark/", Key::of_cluster(cluster))
}

/// The names that a difference to this backup adopts. What that one is a difference to is marked only together with it.
pub fn adopted(cluster: &Cluster, parent: &Manifest) -> HashSet<String> {
    let manifest = Key::Of(cluster.clone(), Item::Manifest(parent.backup.clone())).to_string();
    parent.objects.iter().map(|object| object.key.clone()).chain([manifest]).collect()
}

/// Fails when an expiry means to delete one of these objects. Reads every mark: one listing, and one read each.
///
/// # Errors
/// When one is marked, or it cannot be said.
pub async fn refuse_marked(
    repository: &dyn Repository,
    checker: &Checker,
    cluster: &Cluster,
    names: &HashSet<String>,
) -> Result<(), Adopt> {
    for listed in repository.list(&prefix(cluster)).await? {
        // A foreign name is no mark.
        let Ok(key @ Key::Of(_, Item::Mark(_))) = listed.name.parse::<Key>() else { continue };
        let stored = match repository.get(&key).await {
            // An expiry has just done with it: what it named is gone or needed again.
            Err(RepositoryError::Absent { .. }) => continue,
            stored => stored?,
        };
        let doubtful = |error| Adopt::Doubtful { name: key.to_string(), error };
        let (_, mark) = checker.document::<Mark>(&key, &stored).map_err(doubtful)?;
        if mark.version != VERSION {
            return Err(Adopt::Version { name: key.to_string(), version: mark.version });
        }
        if let Some(name) = mark.keys.iter().find(|name| names.contains(*name)) {
            return Err(Adopt::Marked { name: name.clone(), since: mark.at });
        }
    }
    Ok(())
}

/// The marks of a cluster by name, and two clocks to judge them by.
pub(super) struct Marks<'a> {
    /// The oldest mark of each name that is not of a time to come.
    by_name: HashMap<&'a str, &'a Marked>,
}

impl<'a> Marks<'a> {
    /// A mark of a time to come was written by a clock that ran ahead, and would be ripe when that time has come: it counts as
    /// none, so that what it names is marked again, and waits from now on.
    pub(super) fn of(holdings: &'a Holdings, now: Timestamp) -> Marks<'a> {
        let mut by_name = HashMap::new();
        for marked in holdings.marks.iter().filter(|marked| marked.mark.at <= now) {
            for name in &marked.mark.keys {
                by_name.entry(name.as_str()).or_insert(marked);
            }
        }
        Marks { by_name }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Marked> {
        self.by_name.get(name).copied()
    }
}

/// Whether a mark has waited for `grace`, by our clock since its own time, and by the place's clock since it was written.
/// One of them may be wrong by any amount: then the other one decides, and it waits longer, never less.
pub fn ripe(marked: &Marked, now: Timestamp, place_now: Timestamp, grace: Duration) -> bool {
    let waited = |since: Timestamp, until: Timestamp| {
        u64::try_from(until.as_second().saturating_sub(since.as_second())).is_ok_and(|secs| secs >= grace.as_secs())
    };
    waited(marked.mark.at, now) && waited(marked.object.written, place_now)
}

/// Marks that are to be written anew, because something that they name is needed again, with the names that stay in them; and
/// those of which nothing is left.
pub(super) struct Tidy<'a> {
    pub(super) rewrite: Vec<(&'a Marked, Vec<String>)>,
    pub(super) done: Vec<&'a Marked>,
}

/// What to do about the marks of a cluster. `going` are the names that may go now, all of them listed.
pub(super) fn tidy<'a>(holdings: &'a Holdings, going: &HashSet<String>) -> Tidy<'a> {
    let mut tidy = Tidy { rewrite: Vec::new(), done: Vec::new() };
    for marked in &holdings.marks {
        let left: Vec<String> = marked.mark.keys.iter().filter(|name| going.contains(*name)).cloned().collect();
        let needed = |name: &String| !going.contains(name) && holdings.has(name);
        if left.is_empty() {
            tidy.done.push(marked);
        } else if marked.mark.keys.iter().any(needed) {
            tidy.rewrite.push((marked, left));
        }
    }
    tidy
}
