//! Holds: revisions that turned bad, and environments that a person stopped. Nothing deploys them by itself.

use super::{Act, Store, StoreError, audit, stored_time};
use crate::model::{DeployId, EnvironmentName, Oid, RepoName};
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};

/// A hold to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHold {
    /// The environment.
    pub environment: EnvironmentName,
    /// The revision; `None` holds the whole environment.
    pub revision: Option<(RepoName, Oid)>,
    /// What served before it.
    pub good: Option<Oid>,
    /// The deploy that turned bad; `None` when a person asks.
    pub deploy: Option<DeployId>,
    /// Why, in words.
    pub reason: String,
    /// Who.
    pub by: String,
    /// A later try turned bad too: only a person lifts it.
    pub strict: bool,
}

/// A hold in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRow {
    /// Its number.
    pub id: u64,
    /// The revision; `None`: the whole environment.
    pub revision: Option<(RepoName, Oid)>,
    /// What served before it.
    pub good: Option<Oid>,
    /// The deploy that turned bad.
    pub deploy: Option<DeployId>,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// Only a person lifts it.
    pub strict: bool,
    /// Since when.
    pub since: Timestamp,
}

impl Store {
    /// The holds in force, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn holds(&self, environment: &EnvironmentName) -> Result<Vec<HoldRow>, StoreError> {
        let environment = environment.clone();
        self.read(move |db| {
            let sql = "SELECT id, repo, commit_sha, good_sha, deploy_id, reason, by, strict, since FROM holds
                       WHERE environment = ?1 AND lifted_at IS NULL ORDER BY id";
            let mut query = db.prepare_cached(sql)?;
            let mut rows = query.query([environment.as_str()])?;
            let mut holds = Vec::new();
            while let Some(row) = rows.next()? {
                holds.push(read(row)?);
            }
            Ok(holds)
        })
        .await
    }

    /// Makes a hold that a person asks for.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn make_hold(&self, new: NewHold, act: Act) -> Result<(), StoreError> {
        self.write(move |tx| {
            let now = Timestamp::now();
            hold(tx, &new, now)?;
            audit::record(tx, &act, now)
        })
        .await
    }

    /// Lifts every hold of an environment; how many there were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lift_holds(&self, environment: &EnvironmentName, by: &str, act: Act) -> Result<usize, StoreError> {
        let (environment, by) = (environment.clone(), by.to_owned());
        self.write(move |tx| {
            let now = Timestamp::now();
            let lifted = tx.execute(
                "UPDATE holds SET lifted_at = ?2, lifted_by = ?3, lifted_why = 'released by hand'
                 WHERE environment = ?1 AND lifted_at IS NULL",
                params![environment.as_str(), now.as_millisecond(), by],
            )?;
            if lifted > 0 {
                audit::record(tx, &act, now)?;
            }
            Ok(lifted)
        })
        .await
    }
}

/// A hold of the same revision that is in force already becomes the new one.
pub(super) fn hold(tx: &Transaction<'_>, new: &NewHold, at: Timestamp) -> Result<(), StoreError> {
    let (repo, commit) = new.revision.as_ref().map_or(("", ""), |(repo, commit)| (repo.as_str(), commit.as_str()));
    tx.execute(
        "UPDATE holds SET lifted_at = ?4, lifted_by = ?5, lifted_why = 'replaced'
         WHERE environment = ?1 AND repo = ?2 AND commit_sha = ?3 AND lifted_at IS NULL",
        params![new.environment.as_str(), repo, commit, at.as_millisecond(), new.by],
    )?;
    tx.execute(
        "INSERT INTO holds (environment, repo, commit_sha, good_sha, deploy_id, reason, by, strict, since)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            new.environment.as_str(),
            repo,
            commit,
            new.good.as_ref().map(Oid::as_str),
            new.deploy.map(|deploy| deploy.0 as i64),
            new.reason,
            new.by,
            new.strict,
            at.as_millisecond()
        ],
    )?;
    Ok(())
}

pub(super) fn lift(tx: &Transaction<'_>, id: u64, by: &str, why: &str, at: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE holds SET lifted_at = ?2, lifted_by = ?3, lifted_why = ?4 WHERE id = ?1 AND lifted_at IS NULL",
        params![id as i64, at.as_millisecond(), by, why],
    )?;
    Ok(())
}

fn read(row: &Row<'_>) -> Result<HoldRow, StoreError> {
    let parsed = |text: String| text.parse::<Oid>().map_err(|error| StoreError::Conflict(error.to_string()));
    let (repo, commit): (String, String) = (row.get(1)?, row.get(2)?);
    let revision = if commit.is_empty() {
        None
    } else {
        let repo = RepoName::new(repo).map_err(|error| StoreError::Conflict(error.to_string()))?;
        Some((repo, parsed(commit)?))
    };
    Ok(HoldRow {
        id: row.get::<_, i64>(0)? as u64,
        revision,
        good: row.get::<_, Option<String>>(3)?.map(parsed).transpose()?,
        deploy: row.get::<_, Option<i64>>(4)?.map(|id| DeployId(id as u64)),
        reason: row.get(5)?,
        by: row.get(6)?,
        strict: row.get(7)?,
        since: stored_time(row.get(8)?),
    })
}
