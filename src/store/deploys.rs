//! Deploys: what is asked of environments, and the facts about it in order.
//!
//! Everything that a fact changes (the environment, holds, the audit, messages) is written with it, in one transaction.
//! A process that no longer has the environment's lease can write none of it.

use super::environments::{insert_release, set_environment};
use super::holds::{NewHold, hold, lift};
use super::{Act, Store, StoreError, audit, stored_time};
use crate::model::deploy::{DeployRequest, DeployStatus, Observation, Probe, Release};
use crate::model::{DeployId, EnvironmentName};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

/// Answers of health rules kept of one deploy: an hour of ten rules asked each second, newest first.
const PROBES_KEPT: i64 = 36_000;

/// Deploys whose answers are kept, over all environments: what anybody still looks into.
const PROBED_DEPLOYS: i64 = 200;

/// A deploy as it stands in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct DeployRow {
    /// Its number.
    pub id: DeployId,
    /// What was asked.
    pub request: DeployRequest,
    /// Where it stands.
    pub status: DeployStatus,
    /// Its release, once it has one.
    pub release: Option<u64>,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A fact about a deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeployEventRow {
    /// Its place in the deploy, from 1.
    pub seq: u64,
    /// When it was recorded.
    pub at: Timestamp,
    /// The JSON document.
    pub event: String,
}

/// What a fact changes beside the deploy itself.
#[derive(Debug, Clone, Default)]
pub struct Effects {
    /// The process that must have the lease; `None` before there is one.
    pub owner: Option<String>,
    /// The release that was made.
    pub release: Option<Release>,
    /// The deploy's release from now on: a new one, or an earlier one that is put back.
    pub release_number: Option<u64>,
    /// The release that should serve from now on, and what the target shows of it.
    pub current: Option<(u64, Option<Observation>)>,
    /// The release that is good to go back to from now on.
    pub verified: Option<u64>,
    /// Why a person has to act; `Some(None)` when nobody has to any more.
    pub attention: Option<Option<String>>,
    /// The revision that nothing deploys by itself again.
    pub hold: Option<NewHold>,
    /// Holds that are over: which, by whom, why.
    pub lift: Vec<(u64, String, String)>,
    /// The environment is free again.
    pub frees: bool,
    /// What goes into the audit.
    pub acts: Vec<Act>,
    /// Messages: key, channel, recipient, document.
    pub messages: Vec<(String, String, String, serde_json::Value)>,
}

const COLUMNS: &str = "id, request, status, release, created_at, finished_at";

impl Store {
    /// Stores what is asked, once per key; true when it is new.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn create_deploy(
        &self,
        request: DeployRequest,
        act: Option<Act>,
    ) -> Result<(DeployId, bool), StoreError> {
        self.write(move |tx| {
            let known: Option<i64> = tx
                .query_row("SELECT id FROM deploys WHERE key = ?1", [&request.key], |row| row.get(0))
                .optional()?;
            if let Some(id) = known {
                return Ok((DeployId(id as u64), false));
            }
            let now = Timestamp::now();
            let kind = serde_json::to_value(request.kind)?;
            tx.execute(
                "INSERT INTO deploys (key, environment, kind, request, status, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    request.key,
                    request.environment.as_str(),
                    kind.as_str(),
                    serde_json::to_string(&request)?,
                    DeployStatus::Queued.as_str(),
                    now.as_millisecond()
                ],
            )?;
            let id = DeployId(tx.last_insert_rowid() as u64);
            tx.execute("DELETE FROM probes WHERE deploy_id <= ?1", [id.0 as i64 - PROBED_DEPLOYS])?;
            tx.execute("INSERT OR IGNORE INTO environments (name) VALUES (?1)", [request.environment.as_str()])?;
            if let Some(act) = act {
                audit::record(tx, &act, now)?;
            }
            Ok((id, true))
        })
        .await
    }

    /// The deploy that was asked for with that key.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn deploy_of_key(&self, key: String) -> Result<Option<DeployId>, StoreError> {
        self.read(move |db| {
            let sql = "SELECT id FROM deploys WHERE key = ?1";
            Ok(db.query_row(sql, [key], |row| Ok(DeployId(row.get::<_, i64>(0)? as u64))).optional()?)
        })
        .await
    }

    /// Adds a fact, the status it leads to, and what it changes.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the place is taken, or the lease is another's.
    pub async fn append_deploy(
        &self,
        id: DeployId,
        row: DeployEventRow,
        status: DeployStatus,
        effects: Effects,
    ) -> Result<(), StoreError> {
        self.write(move |tx| append(tx, id, &row, status, &effects)).await
    }

    /// The deploy and its facts.
    ///
    /// # Errors
    /// When the database fails or a document does not read back.
    pub async fn load_deploy(&self, id: DeployId) -> Result<Option<(DeployRow, Vec<DeployEventRow>)>, StoreError> {
        self.read(move |db| {
            let sql = format!("SELECT {COLUMNS} FROM deploys WHERE id = ?1");
            let Some(row) = db.query_row(&sql, [id.0 as i64], |row| Ok(deploy(row))).optional()? else {
                return Ok(None);
            };
            Ok(Some((row?, events(db, id)?)))
        })
        .await
    }

    /// Deploys that have not ended, the oldest first; of one environment, or of all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open_deploys(&self, environment: Option<EnvironmentName>) -> Result<Vec<DeployRow>, StoreError> {
        self.read(move |db| {
            let sql = format!(
                "SELECT {COLUMNS} FROM deploys WHERE finished_at IS NULL AND (?1 IS NULL OR environment = ?1) ORDER BY id"
            );
            list(db, &sql, params![environment.as_ref().map(EnvironmentName::as_str)])
        })
        .await
    }

    /// The newest deploys of an environment, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_deploys(&self, environment: &EnvironmentName, limit: u32) -> Result<Vec<DeployRow>, StoreError> {
        let environment = environment.clone();
        self.read(move |db| {
            let sql = format!("SELECT {COLUMNS} FROM deploys WHERE environment = ?1 ORDER BY id DESC LIMIT ?2");
            list(db, &sql, params![environment.as_str(), limit])
        })
        .await
    }

    /// The newest deploy of an environment that began and is over.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn last_deploy(&self, name: &EnvironmentName) -> Result<Option<DeployRow>, StoreError> {
        let name = name.clone();
        self.read(move |db| {
            let sql = format!(
                "SELECT {COLUMNS} FROM deploys WHERE environment = ?1 AND finished_at IS NOT NULL AND release IS NOT NULL
                 ORDER BY finished_at DESC, id DESC LIMIT 1"
            );
            Ok(list(db, &sql, params![name.as_str()])?.pop())
        })
        .await
    }

    /// Deploys that began, ended, and are not told of in the environment's ref yet, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unrecorded_deploys(&self, name: &EnvironmentName, limit: u32) -> Result<Vec<DeployRow>, StoreError> {
        let name = name.clone();
        self.read(move |db| {
            let sql = format!(
                "SELECT {COLUMNS} FROM deploys WHERE environment = ?1 AND recorded = 0 AND finished_at IS NOT NULL
                 AND release IS NOT NULL ORDER BY finished_at, id LIMIT ?2"
            );
            list(db, &sql, params![name.as_str(), limit])
        })
        .await
    }

    /// Stores answers of health rules; the oldest of a deploy are forgotten when there are very many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_probes(&self, id: DeployId, probes: Vec<Probe>) -> Result<(), StoreError> {
        self.write(move |tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO probes (deploy_id, rule, at, good, took_us, said) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for probe in &probes {
                let (rule, took) = (probe.rule as i64, probe.took_us as i64);
                let at = probe.at.as_millisecond();
                insert.execute(params![id.0 as i64, rule, at, probe.good, took, probe.said])?;
            }
            tx.execute(
                "DELETE FROM probes WHERE deploy_id = ?1 AND id <= (SELECT id FROM probes WHERE deploy_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                params![id.0 as i64, PROBES_KEPT],
            )?;
            Ok(())
        })
        .await
    }

    /// What each health rule answered last, in the order of the rules.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn last_probes(&self, id: DeployId) -> Result<Vec<Probe>, StoreError> {
        self.read(move |db| {
            let sql = "SELECT rule, at, good, took_us, said FROM probes
                       WHERE id IN (SELECT max(id) FROM probes WHERE deploy_id = ?1 GROUP BY rule) ORDER BY rule";
            Ok(db.prepare_cached(sql)?.query_map([id.0 as i64], probe)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The newest answers of health rules, the oldest of them first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn probes(&self, id: DeployId, limit: u32) -> Result<Vec<Probe>, StoreError> {
        self.read(move |db| {
            let sql = "SELECT rule, at, good, took_us, said FROM probes WHERE deploy_id = ?1 ORDER BY id DESC LIMIT ?2";
            let mut query = db.prepare_cached(sql)?;
            let rows = query.query_map(params![id.0 as i64, limit], probe)?;
            let mut probes: Vec<Probe> = rows.collect::<Result<_, _>>()?;
            probes.reverse();
            Ok(probes)
        })
        .await
    }
}

fn append(
    tx: &Transaction<'_>,
    id: DeployId,
    row: &DeployEventRow,
    status: DeployStatus,
    effects: &Effects,
) -> Result<(), StoreError> {
    let environment: String =
        tx.query_row("SELECT environment FROM deploys WHERE id = ?1", [id.0 as i64], |row| row.get(0))?;
    if let Some(owner) = &effects.owner {
        let sql = "SELECT owner FROM leases WHERE environment = ?1 AND deploy_id = ?2";
        let holder: Option<String> =
            tx.query_row(sql, params![environment, id.0 as i64], |row| row.get(0)).optional()?;
        if holder.as_ref() != Some(owner) {
            return Err(StoreError::Conflict(format!(
                "go on with deploy #{id}: the lease of {environment} is another's"
            )));
        }
    }
    let taken = tx.execute(
        "INSERT OR IGNORE INTO deploy_events (deploy_id, seq, at, event) VALUES (?1, ?2, ?3, ?4)",
        params![id.0 as i64, row.seq as i64, row.at.as_millisecond(), row.event],
    )?;
    if taken == 0 {
        return Err(StoreError::Conflict(format!("record event {} of deploy #{id}: the place is taken", row.seq)));
    }
    let finished = status.is_final().then(|| row.at.as_millisecond());
    tx.execute(
        "UPDATE deploys SET status = ?2, finished_at = ?3, release = coalesce(?4, release) WHERE id = ?1",
        params![id.0 as i64, status.as_str(), finished, effects.release_number.map(|number| number as i64)],
    )?;
    if let Some(release) = &effects.release {
        insert_release(tx, id, release)?;
    }
    set_environment(tx, &environment, effects)?;
    if let Some(new) = &effects.hold {
        hold(tx, new, row.at)?;
    }
    for (which, by, why) in &effects.lift {
        lift(tx, *which, by, why, row.at)?;
    }
    if effects.frees {
        tx.execute("DELETE FROM leases WHERE environment = ?1 AND deploy_id = ?2", params![environment, id.0 as i64])?;
    }
    for act in &effects.acts {
        audit::record(tx, act, row.at)?;
    }
    for (key, channel, recipient, message) in &effects.messages {
        super::outbox::put(tx, key, channel, recipient, message, row.at)?;
    }
    Ok(())
}

fn probe(row: &Row<'_>) -> rusqlite::Result<Probe> {
    Ok(Probe {
        rule: row.get::<_, i64>(0)? as usize,
        at: stored_time(row.get(1)?),
        good: row.get(2)?,
        took_us: row.get::<_, i64>(3)? as u64,
        said: row.get(4)?,
    })
}

fn events(db: &Connection, id: DeployId) -> Result<Vec<DeployEventRow>, StoreError> {
    let mut query = db.prepare_cached("SELECT seq, at, event FROM deploy_events WHERE deploy_id = ?1 ORDER BY seq")?;
    let rows = query.query_map([id.0 as i64], |row| {
        Ok(DeployEventRow { seq: row.get::<_, i64>(0)? as u64, at: stored_time(row.get(1)?), event: row.get(2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn list(db: &Connection, sql: &str, params: &[&dyn rusqlite::ToSql]) -> Result<Vec<DeployRow>, StoreError> {
    let mut query = db.prepare_cached(sql)?;
    let mut rows = query.query(params)?;
    let mut deploys = Vec::new();
    while let Some(row) = rows.next()? {
        deploys.push(deploy(row)?);
    }
    Ok(deploys)
}

fn deploy(row: &Row<'_>) -> Result<DeployRow, StoreError> {
    let status: String = row.get(2)?;
    Ok(DeployRow {
        id: DeployId(row.get::<_, i64>(0)? as u64),
        request: serde_json::from_str(&row.get::<_, String>(1)?)?,
        status: status.parse().map_err(StoreError::Conflict)?,
        release: row.get::<_, Option<i64>>(3)?.map(|number| number as u64),
        created_at: stored_time(row.get(4)?),
        finished_at: row.get::<_, Option<i64>>(5)?.map(stored_time),
    })
}
