//! The history of an environment, read back from Git into a store that knows nothing of it: after the loss of the state
//! folder.

use super::environments::set_environment;
use super::holds::{NewHold, hold};
use super::{Act, Effects, Store, StoreError, audit};
use crate::model::deploy::{DeployRequest, DeployStatus, Observation, Release};
use crate::model::{DeployId, EnvironmentName};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use std::collections::BTreeMap;

/// Everything that a history says of an environment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PastEnvironment {
    /// Its releases, the oldest first.
    pub releases: Vec<PastRelease>,
    /// Its deploys, the oldest first.
    pub deploys: Vec<PastDeploy>,
    /// The release that should serve, and what the target showed of it.
    pub current: Option<(u64, Option<Observation>)>,
    /// The last one that was verified.
    pub verified: Option<u64>,
    /// Why a person has to act.
    pub attention: Option<String>,
    /// What is held, and since when.
    pub holds: Vec<(NewHold, Timestamp)>,
}

/// A release of the past.
#[derive(Debug, Clone, PartialEq)]
pub struct PastRelease {
    /// The release.
    pub release: Release,
    /// The deploy that made it.
    pub deploy: DeployId,
    /// When it was verified.
    pub verified_at: Option<Timestamp>,
    /// The commit that tells of it, and where that is.
    pub recorded: String,
}

/// A deploy of the past.
#[derive(Debug, Clone, PartialEq)]
pub struct PastDeploy {
    /// Its number, where that is free still.
    pub id: DeployId,
    /// What was asked.
    pub request: DeployRequest,
    /// How it ended.
    pub status: DeployStatus,
    /// Its release.
    pub release: u64,
    /// When it ended.
    pub at: Timestamp,
    /// The one fact about it, a JSON document.
    pub event: String,
}

impl Store {
    /// Takes a history over, whole or not at all; false when releases of the environment are known, and nothing is done.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_history(
        &self,
        name: &EnvironmentName,
        past: PastEnvironment,
        act: Act,
    ) -> Result<bool, StoreError> {
        let name = name.clone();
        self.write(move |tx| {
            let sql = "SELECT EXISTS (SELECT 1 FROM releases WHERE environment = ?1)";
            if tx.query_row(sql, [name.as_str()], |row| row.get(0))? {
                return Ok(false);
            }
            tx.execute("INSERT OR IGNORE INTO environments (name) VALUES (?1)", [name.as_str()])?;
            let mut numbers = BTreeMap::new();
            for deploy in &past.deploys {
                numbers.insert(deploy.id, insert_deploy(tx, &name, deploy)?);
            }
            let number_of = |deploy: DeployId| numbers.get(&deploy).copied().unwrap_or(deploy);
            for past in &past.releases {
                tx.execute(
                    "INSERT INTO releases (environment, number, deploy_id, release, verified_at, recorded)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        name.as_str(),
                        past.release.number as i64,
                        number_of(past.deploy).0 as i64,
                        serde_json::to_string(&past.release)?,
                        past.verified_at.map(Timestamp::as_millisecond),
                        past.recorded
                    ],
                )?;
            }
            let effects = Effects { current: past.current, attention: Some(past.attention), ..Effects::default() };
            set_environment(tx, name.as_str(), &effects)?;
            let verified = past.verified.map(|number| number as i64);
            tx.execute("UPDATE environments SET verified = ?2 WHERE name = ?1", params![name.as_str(), verified])?;
            for (new, since) in past.holds {
                hold(tx, &NewHold { deploy: new.deploy.map(number_of), ..new }, since)?;
            }
            audit::record(tx, &act, Timestamp::now())?;
            Ok(true)
        })
        .await
    }
}

/// Stores a deploy under its own number, or under a new one where another has it; the number.
fn insert_deploy(tx: &Transaction<'_>, name: &EnvironmentName, past: &PastDeploy) -> Result<DeployId, StoreError> {
    let sql = "SELECT 1 FROM deploys WHERE id = ?1";
    let taken = tx.query_row(sql, [past.id.0 as i64], |_| Ok(())).optional()?.is_some();
    let at = past.at.as_millisecond();
    tx.execute(
        "INSERT INTO deploys (id, key, environment, kind, request, status, release, created_at, finished_at, recorded)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, 1)",
        params![
            (!taken).then_some(past.id.0 as i64),
            past.request.key,
            name.as_str(),
            serde_json::to_value(past.request.kind)?.as_str(),
            serde_json::to_string(&past.request)?,
            past.status.as_str(),
            past.release as i64,
            at
        ],
    )?;
    let id = DeployId(tx.last_insert_rowid() as u64);
    tx.execute(
        "INSERT INTO deploy_events (deploy_id, seq, at, event) VALUES (?1, 1, ?2, ?3)",
        params![id.0 as i64, at, past.event],
    )?;
    Ok(id)
}
