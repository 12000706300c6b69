//! The inbox: one durable row per thing that may start runs, whoever told us about it.
//!
//! Enters: reports of feeders (`trigger`), manual triggers (`web`), schedule ticks. Leaves: rows for the engine, oldest
//! first. Everything is written before anybody is answered.
//!
//! A change of a ref is a *generation*: old -> new, counted per ref. Several feeders tell about the same push; the
//! first is accepted, the others join. What a feeder says late is dropped, with a reason. Here are the rows; [`report`]
//! takes what feeders say, [`judge`] is the one place where that is judged, and [`refs`] keeps what was last accepted.

mod judge;
mod refs;
mod report;

pub use refs::KnownRefs;
pub use report::{Answer, CHANGES_MAX, RefReport, Report, Seen, Verdict};

use super::audit::{self, Act, ActKind};
use super::{Store, StoreError};
use crate::model::api::InboxView;
use crate::model::ids::PipelineName;
use crate::model::trigger::{EventKind, Feeder};
use crate::model::{Asker, Oid, RepoName, RunId};
use jiff::Timestamp;
use rusqlite::{Connection, Row, Transaction, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;

/// The number of an inbox row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InboxId(pub u64);

impl fmt::Display for InboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// An accepted thing, with all that is needed to make a [`TriggerEvent`](crate::model::TriggerEvent) of it but the commit's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxRow {
    /// Its number.
    pub id: InboxId,
    /// The watched repository.
    pub repo: RepoName,
    /// The full ref name; for a manual trigger of a bare commit it may be a commit id.
    pub git_ref: String,
    /// What kind of event.
    pub kind: EventKind,
    /// What the ref held before; zero when it was created or when this is not about a change.
    pub old: Oid,
    /// What to run: a commit, or the tag object of an annotated tag.
    pub new: Oid,
    /// Who pushed or triggered.
    pub actor: Option<String>,
    /// Only this pipeline.
    pub pipeline: Option<PipelineName>,
    /// Inputs of a manual trigger.
    pub inputs: BTreeMap<String, String>,
    /// When it was accepted; for a schedule, the time it was due.
    pub at: Timestamp,
}

/// The columns that are kept as one document.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Details {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    actor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pipeline: Option<PipelineName>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    inputs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    due: Option<Timestamp>,
}

/// A thing to be written into the inbox.
pub(super) struct NewRow<'a> {
    pub(super) repo: &'a RepoName,
    pub(super) git_ref: &'a str,
    pub(super) kind: EventKind,
    pub(super) old: &'a Oid,
    pub(super) new: &'a Oid,
    pub(super) actor: Option<String>,
    pub(super) pipeline: Option<PipelineName>,
    pub(super) inputs: BTreeMap<String, String>,
    pub(super) due: Option<Timestamp>,
}

impl Store {
    /// Stores a manual trigger, and who wanted it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accept_manual(
        &self,
        repo: &RepoName,
        git_ref: String,
        commit: Oid,
        by: &Asker,
        pipeline: Option<PipelineName>,
        inputs: BTreeMap<String, String>,
    ) -> Result<InboxId, StoreError> {
        let (repo, by) = (repo.clone(), by.clone());
        self.write(move |tx| {
            // The values of inputs are in the run; the audit is kept longer than they should be.
            let mut details = json!({ "ref": git_ref, "commit": commit, "inputs": inputs.keys().collect::<Vec<_>>() });
            if let Some(pipeline) = &pipeline {
                details["pipeline"] = pipeline.as_str().into();
            }
            let row = NewRow {
                repo: &repo,
                git_ref: &git_ref,
                kind: EventKind::Manual,
                old: &Oid::zero(),
                new: &commit,
                actor: Some(by.who().to_owned()),
                pipeline,
                inputs,
                due: None,
            };
            let now = Timestamp::now();
            let id = insert(tx, row, 0, Feeder::Manual, None, now)?;
            details["inbox"] = id.0.into();
            audit::record(tx, &Act { by, kind: ActKind::Trigger, subject: repo.to_string(), details }, now)?;
            Ok(id)
        })
        .await
    }

    /// Rows the engine has not handled, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pending_inbox(&self, limit: usize) -> Result<Vec<InboxRow>, StoreError> {
        self.read(move |db| {
            let sql = "SELECT id, repo, git_ref, kind, old, new, details, at FROM inbox WHERE state = 'pending' ORDER BY id LIMIT ?1";
            let mut query = db.prepare_cached(sql)?;
            let mut rows = query.query([limit as i64])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(inbox_row(row)?);
            }
            Ok(found)
        })
        .await
    }

    /// One row, whatever its state.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn inbox_row(&self, id: InboxId) -> Result<Option<InboxRow>, StoreError> {
        self.read(move |db| find_row(db, id)).await
    }

    /// Why a row that is done started nothing, or not everything.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn inbox_note(&self, id: InboxId) -> Result<Option<String>, StoreError> {
        self.read(move |db| {
            let mut query = db.prepare_cached("SELECT reason FROM inbox WHERE id = ?1")?;
            Ok(query.query_row([id.0 as i64], |row| row.get(0))?)
        })
        .await
    }

    /// The newest rows, for showing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_inbox(&self, limit: usize) -> Result<Vec<InboxView>, StoreError> {
        self.read(move |db| {
            let sql =
                "SELECT id, repo, git_ref, kind, old, new, at, state, reason FROM inbox ORDER BY id DESC LIMIT ?1";
            let mut query = db.prepare_cached(sql)?;
            let mut feeders =
                db.prepare_cached("SELECT DISTINCT feeder FROM reports WHERE inbox_id = ?1 ORDER BY feeder")?;
            let mut runs = db.prepare_cached("SELECT id FROM runs WHERE inbox_id = ?1 ORDER BY id")?;
            let mut rows = query.query([limit as i64])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                let mut view = InboxView {
                    id: id as u64,
                    repo: parsed(row, 1)?,
                    git_ref: row.get(2)?,
                    event: word(row, 3)?,
                    old: parsed(row, 4)?,
                    new: parsed(row, 5)?,
                    feeders: Vec::new(),
                    at: time(row.get(6)?),
                    state: row.get(7)?,
                    reason: row.get(8)?,
                    runs: Vec::new(),
                };
                let mut told = feeders.query([id])?;
                while let Some(row) = told.next()? {
                    view.feeders.push(word(row, 0)?);
                }
                let mut started = runs.query([id])?;
                while let Some(row) = started.next()? {
                    view.runs.push(RunId(row.get::<_, i64>(0)? as u64));
                }
                found.push(view);
            }
            Ok(found)
        })
        .await
    }

    /// Stores the content of a row once more, as somebody's wish, and whose; the kind of event stays.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when there is no such row, or it was a deletion.
    pub async fn replay_inbox(&self, id: InboxId, by: &Asker) -> Result<InboxId, StoreError> {
        let by = by.clone();
        self.write(move |tx| {
            let Some(row) = find_row(tx, id)? else {
                return Err(StoreError::Conflict(format!("find the inbox entry {id}")));
            };
            if row.new.is_zero() {
                return Err(StoreError::Conflict(format!("replay the inbox entry {id}: it records a deletion")));
            }
            let again = NewRow {
                repo: &row.repo,
                git_ref: &row.git_ref,
                kind: row.kind,
                old: &row.old,
                new: &row.new,
                actor: Some(by.who().to_owned()),
                pipeline: row.pipeline,
                inputs: row.inputs,
                due: None,
            };
            let now = Timestamp::now();
            let new = insert(tx, again, 0, Feeder::Manual, None, now)?;
            let mut details = json!({ "inbox": new.0, "repo": row.repo, "ref": row.git_ref, "commit": row.new });
            if let Some(actor) = &row.actor {
                details["actor"] = actor.as_str().into();
            }
            audit::record(tx, &Act { by, kind: ActKind::Replay, subject: format!("inbox {id}"), details }, now)?;
            Ok(new)
        })
        .await
    }

    /// How many rows wait to be begun.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count_pending_inbox(&self) -> Result<u64, StoreError> {
        self.read(|db| {
            let count: i64 =
                db.query_row("SELECT count(*) FROM inbox WHERE state = 'pending'", [], |row| row.get(0))?;
            Ok(count as u64)
        })
        .await
    }
}

/// Marks a pending row as handled (`done`) or given up (`dropped`), inside the transaction that writes what followed
/// from it. A row that was handled before is a conflict, which undoes that transaction: what follows from a row is
/// written once.
pub(super) fn set_inbox_state(
    tx: &Transaction<'_>,
    id: InboxId,
    state: &str,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    let sql = "UPDATE inbox SET state = ?2, reason = ?3 WHERE id = ?1 AND state = 'pending'";
    let changed = tx.prepare_cached(sql)?.execute(params![id.0 as i64, state, reason])?;
    if changed == 0 {
        return Err(StoreError::Conflict(format!("close inbox row {id}: it is not pending")));
    }
    Ok(())
}

/// Writes a row and the report that made it.
pub(super) fn insert(
    tx: &Transaction<'_>,
    row: NewRow<'_>,
    generation: u64,
    feeder: Feeder,
    delivery: Option<&str>,
    now: Timestamp,
) -> Result<InboxId, StoreError> {
    let details = Details { actor: row.actor, pipeline: row.pipeline, inputs: row.inputs, due: row.due };
    let deleted = row.new.is_zero();
    let (state, reason) = if deleted { ("done", Some("deleted: nothing runs")) } else { ("pending", None) };
    tx.prepare_cached(
        "INSERT INTO inbox (repo, git_ref, kind, old, new, generation, details, at, state, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        row.repo.as_str(),
        row.git_ref,
        row.kind.as_str(),
        row.old.as_str(),
        row.new.as_str(),
        generation as i64,
        serde_json::to_string(&details)?,
        now.as_millisecond(),
        state,
        reason,
    ])?;
    let id = InboxId(tx.last_insert_rowid() as u64);
    let report = ReportRow {
        feeder,
        delivery: delivery.map(str::to_owned),
        repo: row.repo,
        git_ref: row.git_ref,
        old: row.old,
        new: row.new,
    };
    report.insert(tx, Some(id), "accepted", None, now)?;
    Ok(id)
}

/// True when the delivery id was taken before. The refs of one message are told apart by a number after the id, and
/// the first that is stored gets 0.
pub(super) fn taken(tx: &Transaction<'_>, feeder: Feeder, repo: &RepoName, delivery: &str) -> Result<bool, StoreError> {
    let mut query = tx.prepare_cached("SELECT 1 FROM reports WHERE feeder = ?1 AND repo = ?2 AND delivery = ?3")?;
    Ok(query.exists(params![feeder.as_str(), repo.as_str(), format!("{delivery}/0")])?)
}

struct ReportRow<'a> {
    feeder: Feeder,
    delivery: Option<String>,
    repo: &'a RepoName,
    git_ref: &'a str,
    old: &'a Oid,
    new: &'a Oid,
}

impl ReportRow<'_> {
    fn insert(
        self,
        tx: &Transaction<'_>,
        id: Option<InboxId>,
        verdict: &str,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        tx.prepare_cached(
            "INSERT INTO reports (inbox_id, feeder, delivery, repo, git_ref, old, new, at, verdict, reason)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            id.map(|id| id.0 as i64),
            self.feeder.as_str(),
            self.delivery,
            self.repo.as_str(),
            self.git_ref,
            self.old.as_str(),
            self.new.as_str(),
            now.as_millisecond(),
            verdict,
            reason,
        ])?;
        Ok(())
    }
}

fn find_row(db: &Connection, id: InboxId) -> Result<Option<InboxRow>, StoreError> {
    let sql = "SELECT id, repo, git_ref, kind, old, new, details, at FROM inbox WHERE id = ?1";
    let mut query = db.prepare_cached(sql)?;
    let mut rows = query.query([id.0 as i64])?;
    rows.next()?.map(inbox_row).transpose()
}

fn inbox_row(row: &Row<'_>) -> Result<InboxRow, StoreError> {
    let details: Details = serde_json::from_str(&row.get::<_, String>(6)?)?;
    Ok(InboxRow {
        id: InboxId(row.get::<_, i64>(0)? as u64),
        repo: parsed(row, 1)?,
        git_ref: row.get(2)?,
        kind: word(row, 3)?,
        old: parsed(row, 4)?,
        new: parsed(row, 5)?,
        actor: details.actor,
        pipeline: details.pipeline,
        inputs: details.inputs,
        at: details.due.unwrap_or(time(row.get(7)?)),
    })
}

fn time(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A column that holds a checked name or id.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: fmt::Display,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| StoreError::Conflict(format!("read a stored value: {error}")))
}

/// A column that holds the word of an enum, as serde writes it.
fn word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    Ok(serde_json::from_value(serde_json::Value::String(text))?)
}
