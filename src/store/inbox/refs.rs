//! What was last accepted for the refs of a repository: the ground on which the next report is judged.
//!
//! Enters: the base line of a repository seen for the first time, and where its HEAD points. Read by the feeders.

use super::parsed;
use crate::model::{Oid, RepoName};
use crate::store::{Store, StoreError};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeMap;

/// What the store last accepted for the refs of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownRefs {
    /// Full ref name to what it held and its generation. A deleted ref stays, with zero.
    pub refs: BTreeMap<String, (Oid, u64)>,
    /// The default branch's full ref name.
    pub head: Option<String>,
}

impl Store {
    /// What was last accepted for a repository's refs; `None` before its base line was taken.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn known_refs(&self, repo: &RepoName) -> Result<Option<KnownRefs>, StoreError> {
        let repo = repo.clone();
        self.read(move |db| {
            let head: Option<Option<String>> = db
                .prepare_cached("SELECT head FROM repos WHERE repo = ?1")?
                .query_row([repo.as_str()], |row| row.get(0))
                .optional()?;
            let Some(head) = head else { return Ok(None) };
            let mut refs = BTreeMap::new();
            let mut query = db.prepare_cached("SELECT git_ref, oid, generation FROM refs WHERE repo = ?1")?;
            let mut rows = query.query([repo.as_str()])?;
            while let Some(row) = rows.next()? {
                refs.insert(row.get(0)?, (parsed(row, 1)?, row.get::<_, i64>(2)? as u64));
            }
            Ok(Some(KnownRefs { refs, head }))
        })
        .await
    }

    /// Takes the refs of a repository seen for the first time as they are, without runs. What a hook reported before is
    /// kept: where it differs, the next comparison tells. Does nothing the second time. Says whether it was the first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn base_line(
        &self,
        repo: &RepoName,
        refs: BTreeMap<String, Oid>,
        head: Option<String>,
    ) -> Result<bool, StoreError> {
        let repo = repo.clone();
        self.write(move |tx| {
            let first = tx.execute(
                "INSERT OR IGNORE INTO repos (repo, seen_at, head) VALUES (?1, ?2, ?3)",
                params![repo.as_str(), Timestamp::now().as_millisecond(), head],
            )? == 1;
            if first {
                let mut insert = tx.prepare_cached(
                    "INSERT OR IGNORE INTO refs (repo, git_ref, oid, generation) VALUES (?1, ?2, ?3, 0)",
                )?;
                for (git_ref, oid) in &refs {
                    insert.execute(params![repo.as_str(), git_ref, oid.as_str()])?;
                }
            }
            Ok(first)
        })
        .await
    }

    /// The default branch's full ref name, as far as it is known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn head(&self, repo: &RepoName) -> Result<Option<String>, StoreError> {
        let repo = repo.clone();
        self.read(move |db| {
            let mut query = db.prepare_cached("SELECT head FROM repos WHERE repo = ?1")?;
            Ok(query.query_row([repo.as_str()], |row| row.get(0)).optional()?.flatten())
        })
        .await
    }

    /// Records which branch HEAD names.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_head(&self, repo: &RepoName, head: Option<String>) -> Result<(), StoreError> {
        let repo = repo.clone();
        self.write(move |tx| {
            tx.execute("UPDATE repos SET head = ?2 WHERE repo = ?1", params![repo.as_str(), head])?;
            Ok(())
        })
        .await
    }
}
