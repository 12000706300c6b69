//! Environments, their releases, and the lease under which one process acts on one.

use super::deploys::Effects;
use super::reverts::{self, Wanted};
use super::{Act, ActKind, Store, StoreError, audit, stored_time};
use crate::model::deploy::{DeployStatus, Drift, Observation, Release};
use crate::model::{Asker, DeployId, EnvironmentName};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use std::time::Duration;

/// What is stored of an environment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EnvironmentRow {
    /// The release that should serve.
    pub current: Option<u64>,
    /// The last one that was verified.
    pub verified: Option<u64>,
    /// What the target showed when `current` was put in place.
    pub observed: Option<Observation>,
    /// Why a person has to act.
    pub attention: Option<String>,
    /// What differed at the last look.
    pub drift: Vec<Drift>,
    /// When that was.
    pub looked_at: Option<Timestamp>,
}

/// A release and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseRow {
    /// The release.
    pub release: Release,
    /// The deploy that made it.
    pub deploy: DeployId,
    /// Where that deploy stands, or how it ended.
    pub status: DeployStatus,
    /// When it was verified.
    pub verified_at: Option<Timestamp>,
    /// The commit that tells of it in the environment's ref, and where that is.
    pub recorded: Option<String>,
}

/// Who may act on an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// For which deploy.
    pub deploy: DeployId,
    /// The process.
    pub owner: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when, unless it is renewed.
    pub until: Timestamp,
}

/// What came of asking for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is the caller's.
    Yes,
    /// It is the caller's; its owner before was dead.
    Over(Lease),
    /// It is another's.
    No(Lease),
}

impl Store {
    /// What is stored of an environment; nothing is stored before it is first deployed to.
    ///
    /// # Errors
    /// When the database fails or a document does not read back.
    pub async fn environment(&self, name: &EnvironmentName) -> Result<EnvironmentRow, StoreError> {
        let name = name.clone();
        self.read(move |db| {
            let sql =
                "SELECT current, verified, observed, attention, drift, looked_at FROM environments WHERE name = ?1";
            type Found = (Option<i64>, Option<i64>, Option<String>, Option<String>, Option<String>, Option<i64>);
            let found: Option<Found> = db
                .query_row(sql, [name.as_str()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
                })
                .optional()?;
            let Some((current, verified, observed, attention, drift, looked_at)) = found else {
                return Ok(EnvironmentRow::default());
            };
            Ok(EnvironmentRow {
                current: current.map(|n| n as u64),
                verified: verified.map(|n| n as u64),
                observed: observed.map(|text| serde_json::from_str(&text)).transpose()?,
                attention,
                drift: drift.map(|text| serde_json::from_str(&text)).transpose()?.unwrap_or_default(),
                looked_at: looked_at.map(stored_time),
            })
        })
        .await
    }

    /// Stores what a look at the target found, and the messages about it: key, channel, recipient, document.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_drift(
        &self,
        name: &EnvironmentName,
        drift: Vec<Drift>,
        messages: Vec<(String, String, String, serde_json::Value)>,
    ) -> Result<(), StoreError> {
        let name = name.clone();
        self.write(move |tx| {
            for (key, channel, recipient, message) in &messages {
                super::outbox::put(tx, key, channel, recipient, message, Timestamp::now())?;
            }
            tx.execute(
                "UPDATE environments SET drift = ?2, looked_at = ?3 WHERE name = ?1",
                params![name.as_str(), serde_json::to_string(&drift)?, Timestamp::now().as_millisecond()],
            )?;
            Ok(())
        })
        .await
    }

    /// A person has seen to it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn clear_attention(&self, name: &EnvironmentName, act: Act) -> Result<(), StoreError> {
        let name = name.clone();
        self.write(move |tx| {
            tx.execute("UPDATE environments SET attention = NULL WHERE name = ?1", [name.as_str()])?;
            audit::record(tx, &act, Timestamp::now())
        })
        .await
    }

    /// The releases of an environment, the newest first.
    ///
    /// # Errors
    /// When the database fails or a document does not read back.
    pub async fn releases(&self, name: &EnvironmentName, limit: u32) -> Result<Vec<ReleaseRow>, StoreError> {
        self.select_releases("environment = ?1 ORDER BY number DESC LIMIT ?2", name, limit).await
    }

    /// One release.
    ///
    /// # Errors
    /// When the database fails or the document does not read back.
    pub async fn release(&self, name: &EnvironmentName, number: u64) -> Result<Option<ReleaseRow>, StoreError> {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Ok(self.select_releases("environment = ?1 AND number = ?2", name, number).await?.pop())
    }

    async fn select_releases(
        &self,
        which: &'static str,
        name: &EnvironmentName,
        number: u32,
    ) -> Result<Vec<ReleaseRow>, StoreError> {
        let name = name.clone();
        self.read(move |db| {
            let sql = format!(
                "SELECT release, deploy_id, verified_at, recorded, coalesce((SELECT status FROM deploys WHERE id = deploy_id), 'unverified')
                 FROM releases WHERE {which}"
            );
            let mut query = db.prepare_cached(&sql)?;
            let mut rows = query.query(params![name.as_str(), number])?;
            let mut releases = Vec::new();
            while let Some(row) = rows.next()? {
                let status: String = row.get(4)?;
                releases.push(ReleaseRow {
                    status: status.parse().map_err(StoreError::Conflict)?,
                    release: serde_json::from_str(&row.get::<_, String>(0)?)?,
                    deploy: DeployId(row.get::<_, i64>(1)? as u64),
                    verified_at: row.get::<_, Option<i64>>(2)?.map(stored_time),
                    recorded: row.get(3)?,
                });
            }
            Ok(releases)
        })
        .await
    }

    /// The number that the next release of an environment gets.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_release(&self, name: &EnvironmentName) -> Result<u64, StoreError> {
        let name = name.clone();
        self.read(move |db| {
            let sql = "SELECT coalesce(max(number), 0) + 1 FROM releases WHERE environment = ?1";
            Ok(db.query_row(sql, [name.as_str()], |row| row.get::<_, i64>(0))? as u64)
        })
        .await
    }

    /// Notes that the environment's ref tells of a deploy, of its release where, and what is to be taken back of it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_recorded(
        &self,
        deploy: DeployId,
        name: &EnvironmentName,
        number: Option<u64>,
        place: String,
        revert: Option<Wanted>,
    ) -> Result<(), StoreError> {
        let name = name.clone();
        self.write(move |tx| {
            if let Some(revert) = &revert {
                reverts::put(tx, revert, Timestamp::now())?;
            }
            tx.execute("UPDATE deploys SET recorded = 1 WHERE id = ?1", [deploy.0 as i64])?;
            tx.execute(
                "UPDATE releases SET recorded = ?3 WHERE environment = ?1 AND number = ?2",
                params![name.as_str(), number.map(|number| number as i64), place],
            )?;
            Ok(())
        })
        .await
    }

    /// Takes or renews the lease of an environment. One that has run out, or whose owner `is_dead`, is taken over, with an
    /// entry in the audit; a living owner's is not.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_lease(
        &self,
        name: &EnvironmentName,
        deploy: DeployId,
        owner: &str,
        within: Duration,
        is_dead: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Taken, StoreError> {
        let (name, owner) = (name.clone(), owner.to_owned());
        self.write(move |tx| {
            let now = Timestamp::now();
            let held = lease(tx, name.as_str())?;
            if let Some(held) = &held
                && held.owner != owner
                && held.until > now
                && !is_dead(&held.owner)
            {
                return Ok(Taken::No(held.clone()));
            }
            let until = now + within;
            let since = held.as_ref().filter(|held| held.owner == owner).map_or(now, |held| held.since);
            tx.execute(
                "INSERT INTO leases (environment, deploy_id, owner, since, until) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (environment) DO UPDATE SET deploy_id = ?2, owner = ?3, since = ?4, until = ?5",
                params![name.as_str(), deploy.0 as i64, owner, since.as_millisecond(), until.as_millisecond()],
            )?;
            let Some(before) = held.filter(|held| held.owner != owner) else { return Ok(Taken::Yes) };
            let details = serde_json::json!({
                "deploy": deploy.0, "from": before.owner, "to": owner, "its_time_was_over_at": before.until.to_string(),
            });
            let subject = format!("environment {name}");
            audit::record(tx, &Act { by: Asker::daemon(), kind: ActKind::LeaseTaken, subject, details }, now)?;
            Ok(Taken::Over(before))
        })
        .await
    }

    /// Who may act on an environment.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lease(&self, name: &EnvironmentName) -> Result<Option<Lease>, StoreError> {
        let name = name.clone();
        self.read(move |db| lease(db, name.as_str())).await
    }
}

fn lease(db: &rusqlite::Connection, name: &str) -> Result<Option<Lease>, StoreError> {
    let sql = "SELECT deploy_id, owner, since, until FROM leases WHERE environment = ?1";
    let found = db.query_row(sql, [name], |row| {
        Ok(Lease {
            deploy: DeployId(row.get::<_, i64>(0)? as u64),
            owner: row.get(1)?,
            since: stored_time(row.get(2)?),
            until: stored_time(row.get(3)?),
        })
    });
    Ok(found.optional()?)
}

pub(super) fn insert_release(tx: &Transaction<'_>, deploy: DeployId, release: &Release) -> Result<(), StoreError> {
    let environment = release.environment.as_str();
    let last: i64 =
        tx.query_row("SELECT coalesce(max(number), 0) FROM releases WHERE environment = ?1", [environment], |row| {
            row.get(0)
        })?;
    if last + 1 != release.number as i64 {
        return Err(StoreError::Conflict(format!(
            "make release {} of {environment}: the last one is {last}",
            release.number
        )));
    }
    tx.execute(
        "INSERT INTO releases (environment, number, deploy_id, release) VALUES (?1, ?2, ?3, ?4)",
        params![environment, release.number as i64, deploy.0 as i64, serde_json::to_string(release)?],
    )?;
    Ok(())
}

pub(super) fn set_environment(tx: &Transaction<'_>, name: &str, effects: &Effects) -> Result<(), StoreError> {
    if let Some((number, observed)) = &effects.current {
        let observed = observed.as_ref().map(serde_json::to_string).transpose()?;
        tx.execute(
            "UPDATE environments SET current = ?2, observed = ?3, drift = NULL WHERE name = ?1",
            params![name, *number as i64, observed],
        )?;
    }
    if let Some(number) = effects.verified {
        tx.execute("UPDATE environments SET verified = ?2 WHERE name = ?1", params![name, number as i64])?;
        tx.execute(
            "UPDATE releases SET verified_at = coalesce(verified_at, ?3) WHERE environment = ?1 AND number = ?2",
            params![name, number as i64, Timestamp::now().as_millisecond()],
        )?;
    }
    if let Some(attention) = &effects.attention {
        tx.execute("UPDATE environments SET attention = ?2 WHERE name = ?1", params![name, attention])?;
    }
    Ok(())
}
