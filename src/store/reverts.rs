//! Reverts: releases that were rolled back and are to be taken back in their repository, and what came of it.
//!
//! Enters: what is to be taken back, by [`put`], in the transaction that marks its deploy as written down; and from
//! `deploy` each try. Leaves: what is due, and what people are shown. The inbox asks whether a commit is one of these.

use super::{Act, Store, StoreError, audit, stored_time};
use crate::model::{DeployId, EnvironmentName, Oid, RepoName, RunId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

/// What is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The deploy that rolled it back. One deploy takes back one release.
    pub deploy: DeployId,
    /// Where.
    pub environment: EnvironmentName,
    /// The repository.
    pub repo: RepoName,
    /// The branch that was deployed from.
    pub base: String,
    /// The release that turned bad.
    pub release: u64,
    /// Its commit.
    pub bad: Oid,
    /// The release that was put back.
    pub good_release: u64,
    /// Its commit.
    pub good: Oid,
    /// Why, in words.
    pub why: String,
    /// The run that brought it.
    pub run: RunId,
    /// When it was rolled back.
    pub at: Timestamp,
}

/// Where a revert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevertState {
    /// To be done, now or later.
    Waiting,
    /// The pull request is there.
    Open,
    /// There was nothing to take back.
    Needless,
    /// It will not be done; the row says why.
    GivenUp,
}

impl RevertState {
    /// The word used in the store and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            RevertState::Waiting => "waiting",
            RevertState::Open => "open",
            RevertState::Needless => "needless",
            RevertState::GivenUp => "given-up",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        let all = [RevertState::Waiting, RevertState::Open, RevertState::Needless, RevertState::GivenUp];
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| StoreError::Conflict(format!("read a stored revert: `{text}` is no state of one")))
    }
}

/// A revert as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevertRow {
    /// What is to be taken back.
    pub wanted: Wanted,
    /// Where it stands.
    pub state: RevertState,
    /// The commit that takes it back; it was pushed, or was about to be.
    pub commit: Option<Oid>,
    /// How often it was tried.
    pub tries: u32,
    /// Since when it is to be done.
    pub created_at: Timestamp,
    /// The pull request.
    pub url: Option<String>,
    /// Why it is not done, or not yet.
    pub why: Option<String>,
}

/// How a revert ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevertEnd {
    /// Any but `waiting`.
    pub state: RevertState,
    /// The pull request.
    pub url: Option<String>,
    /// Why there is none.
    pub why: Option<String>,
}

const COLUMNS: &str = "wanted, state, commit_sha, tries, created_at, url, why";

/// Writes down that something is to be taken back; nothing happens when it is there.
pub(super) fn put(tx: &Transaction<'_>, wanted: &Wanted, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "INSERT OR IGNORE INTO reverts (deploy_id, repo, wanted, next_at, created_at) VALUES (?1, ?2, ?3, ?4, ?4)",
        params![wanted.deploy.0 as i64, wanted.repo.as_str(), serde_json::to_string(wanted)?, now.as_millisecond()],
    )?;
    Ok(())
}

/// Whether Mainstay made that commit to take something back, and pushed it.
pub(super) fn is_own(tx: &Transaction<'_>, repo: &RepoName, commit: &Oid) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM reverts WHERE commit_sha = ?2 AND repo = ?1)";
    Ok(tx.prepare_cached(sql)?.query_row(params![repo.as_str(), commit.as_str()], |row| row.get(0))?)
}

impl Store {
    /// What is due, the oldest first.
    ///
    /// # Errors
    /// When the database fails or a document does not read back.
    pub async fn reverts_due(&self, now: Timestamp, limit: u32) -> Result<Vec<RevertRow>, StoreError> {
        self.read(move |db| {
            let sql = format!(
                "SELECT {COLUMNS} FROM reverts WHERE state = 'waiting' AND next_at <= ?1 ORDER BY deploy_id LIMIT ?2"
            );
            let mut query = db.prepare_cached(&sql)?;
            let mut found = query.query(params![now.as_millisecond(), limit])?;
            let mut rows = Vec::new();
            while let Some(row) = found.next()? {
                rows.push(read(row)?);
            }
            Ok(rows)
        })
        .await
    }

    /// The revert of what a deploy rolled back.
    ///
    /// # Errors
    /// As for [`reverts_due`](Self::reverts_due).
    pub async fn revert_of(&self, deploy: DeployId) -> Result<Option<RevertRow>, StoreError> {
        self.read(move |db| {
            let sql = format!("SELECT {COLUMNS} FROM reverts WHERE deploy_id = ?1");
            let mut query = db.prepare_cached(&sql)?;
            let mut rows = query.query([deploy.0 as i64])?;
            rows.next()?.map(read).transpose()
        })
        .await
    }

    /// The commit that is about to be pushed. Durable when it answers: the inbox must know it before anybody reports it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revert_made(&self, deploy: DeployId, commit: &Oid) -> Result<(), StoreError> {
        let commit = commit.clone();
        self.write(move |tx| {
            let sql = "UPDATE reverts SET commit_sha = ?2 WHERE deploy_id = ?1";
            tx.execute(sql, params![deploy.0 as i64, commit.as_str()])?;
            Ok(())
        })
        .await
    }

    /// It failed, and is tried again at `next`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revert_failed(&self, deploy: DeployId, why: String, next: Timestamp) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.execute(
                "UPDATE reverts SET tries = tries + 1, why = ?2, next_at = ?3 WHERE deploy_id = ?1 AND state = 'waiting'",
                params![deploy.0 as i64, why, next.as_millisecond()],
            )?;
            Ok(())
        })
        .await
    }

    /// It is over: what came of it, what goes into the audit, and the messages about it. Nothing happens when it was over
    /// already.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_revert(
        &self,
        deploy: DeployId,
        end: RevertEnd,
        act: Act,
        messages: Vec<(String, String, String, serde_json::Value)>,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            let now = Timestamp::now();
            let changed = tx.execute(
                "UPDATE reverts SET state = ?2, url = ?3, why = ?4, tries = tries + 1, ended_at = ?5
                 WHERE deploy_id = ?1 AND state = 'waiting'",
                params![deploy.0 as i64, end.state.as_str(), end.url, end.why, now.as_millisecond()],
            )?;
            if changed == 0 {
                return Ok(());
            }
            audit::record(tx, &act, now)?;
            for (key, channel, recipient, message) in &messages {
                super::outbox::put(tx, key, channel, recipient, message, now)?;
            }
            Ok(())
        })
        .await
    }

    /// Makes all that waits due: the settings have changed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hasten_reverts(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let sql = "UPDATE reverts SET next_at = ?1 WHERE state = 'waiting' AND next_at > ?1";
            Ok(tx.execute(sql, [now.as_millisecond()])?)
        })
        .await
    }

    /// The revision that a deploy held when it rolled something back, also when the hold is over.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn held_by_deploy(&self, deploy: DeployId) -> Result<Option<(RepoName, Oid)>, StoreError> {
        self.read(move |db| {
            let sql = "SELECT repo, commit_sha FROM holds WHERE deploy_id = ?1 ORDER BY id LIMIT 1";
            let found: Option<(String, String)> =
                db.query_row(sql, [deploy.0 as i64], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            Ok(found.and_then(|(repo, commit)| Some((RepoName::new(repo).ok()?, commit.parse().ok()?))))
        })
        .await
    }
}

fn read(row: &Row<'_>) -> Result<RevertRow, StoreError> {
    let commit: Option<String> = row.get(2)?;
    let parsed = |text: String| text.parse::<Oid>().map_err(|error| StoreError::Conflict(error.to_string()));
    Ok(RevertRow {
        wanted: serde_json::from_str(&row.get::<_, String>(0)?)?,
        state: RevertState::parse(&row.get::<_, String>(1)?)?,
        commit: commit.map(parsed).transpose()?,
        tries: row.get(3)?,
        created_at: stored_time(row.get(4)?),
        url: row.get(5)?,
        why: row.get(6)?,
    })
}
