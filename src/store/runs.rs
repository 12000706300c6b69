//! Runs and their events.
//!
//! A run's row holds what was decided before it began (trigger, plan) and a copy of its status for lists; its truth is
//! its events. `engine` writes both in one transaction and folds the events back into a state.

use super::audit::{self, Act, ActKind};
use super::{InboxId, Store, StoreError, inbox};
use crate::model::api::{RunFilter, RunSummary};
use crate::model::ids::PipelineName;
use crate::model::{Asker, Plan, RepoName, RunId, RunStatus, TriggerEvent};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

/// A run to be stored.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// What made it.
    pub trigger: TriggerEvent,
    /// What it will do.
    pub plan: Plan,
    /// `Queued`, or `Errored` with the reason when it could not be planned.
    pub status: RunStatus,
    /// Why it could not be planned.
    pub error: Option<String>,
    /// The run it repeats.
    pub retry_of: Option<RunId>,
    /// JSON of what it takes over from that run.
    pub carried: Option<String>,
}

/// A run as stored, without its events.
#[derive(Debug, Clone)]
pub struct RunRow {
    /// Its number.
    pub id: RunId,
    /// What made it.
    pub trigger: TriggerEvent,
    /// What it does.
    pub plan: Plan,
    /// JSON of what it took over from the run it repeats.
    pub carried: Option<String>,
    /// The run it repeats.
    pub retry_of: Option<RunId>,
    /// Where it stands.
    pub status: RunStatus,
    /// Why it could not be carried out.
    pub error: Option<String>,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When driving began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The workspace kept of it.
    pub kept_space: Option<String>,
}

/// One stored event: its JSON is the engine's.
#[derive(Debug, Clone)]
pub struct EventRow {
    /// Its place in the run, from 1.
    pub seq: u64,
    /// When it was recorded.
    pub at: Timestamp,
    /// The JSON document.
    pub event: String,
}

/// What an event changes in the run's row, in the same transaction.
#[derive(Debug, Clone, Default)]
pub struct RowChange {
    /// The new status.
    pub status: Option<RunStatus>,
    /// Why it could not be carried out.
    pub error: Option<String>,
}

/// A run whose things in the engine may still be there.
#[derive(Debug, Clone)]
pub struct OpenRun {
    /// Its number.
    pub id: RunId,
    /// Its repository.
    pub repo: RepoName,
    /// Where it stands.
    pub status: RunStatus,
}

impl Store {
    /// Stores the runs that an inbox row started and closes that row, in one transaction.
    ///
    /// # Errors
    /// When the row was closed before: then another call has stored its runs.
    pub async fn create_runs(
        &self,
        inbox_id: Option<InboxId>,
        runs: Vec<NewRun>,
        note: Option<String>,
    ) -> Result<Vec<RunId>, StoreError> {
        self.write(move |tx| {
            if let Some(id) = inbox_id {
                inbox::set_inbox_state(tx, id, "done", note.as_deref())?;
            }
            runs.iter().map(|run| insert_run(tx, inbox_id, run)).collect()
        })
        .await
    }

    /// The runs that an inbox row started.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn runs_of_inbox(&self, inbox: InboxId) -> Result<Vec<RunId>, StoreError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT id FROM runs WHERE inbox_id = ?1 ORDER BY id")?;
            let rows = statement.query_map([inbox.0 as i64], |row| Ok(RunId(row.get::<_, i64>(0)? as u64)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Adds events, what each changes in the run's row, and the acts of people that they tell about, all or none.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a place in the run is taken: two drivers, which must never be.
    pub async fn append_events(
        &self,
        run: RunId,
        events: Vec<(EventRow, RowChange)>,
        acts: Vec<Act>,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            events.iter().try_for_each(|(row, change)| append_event(tx, run, row, change))?;
            acts.iter().try_for_each(|act| audit::record(tx, act, Timestamp::now()))
        })
        .await
    }

    /// The run and its events.
    ///
    /// # Errors
    /// When the database does not answer or a document does not read back.
    pub async fn load_run(&self, run: RunId) -> Result<Option<(RunRow, Vec<EventRow>)>, StoreError> {
        self.read(move |db| {
            let Some(row) = db
                .query_row(&format!("SELECT {RUN_COLUMNS} FROM runs WHERE id = ?1"), [run.0 as i64], |row| {
                    Ok(run_row(row))
                })
                .optional()?
            else {
                return Ok(None);
            };
            Ok(Some((row?, events(db, run)?)))
        })
        .await
    }

    /// How many events the run has: it grows with every change.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn run_version(&self, run: RunId) -> Result<u64, StoreError> {
        self.read(move |db| {
            let count: i64 = db.query_row(
                "SELECT coalesce(max(seq), 0) FROM run_events WHERE run_id = ?1",
                [run.0 as i64],
                |row| row.get(0),
            )?;
            Ok(count as u64)
        })
        .await
    }

    /// Runs, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, StoreError> {
        let filter = filter.clone();
        self.read(move |db| {
            let limit = filter.limit.min(RunFilter::LIMIT_MAX);
            let mut statement = db.prepare_cached(&format!(
                "SELECT {RUN_COLUMNS} FROM runs
                 WHERE (?1 IS NULL OR repo = ?1) AND (?2 IS NULL OR status = ?2) AND (?3 IS NULL OR id < ?3)
                 ORDER BY id DESC LIMIT ?4"
            ))?;
            let rows = statement.query_map(
                params![
                    filter.repo.as_ref().map(RepoName::as_str),
                    filter.status.map(RunStatus::as_str),
                    filter.before.map(|id| id.0 as i64),
                    i64::from(limit)
                ],
                |row| Ok(run_row(row)),
            )?;
            rows.map(|row| Ok(row??.summary())).collect()
        })
        .await
    }

    /// The newest run's number.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn latest_run(&self) -> Result<Option<RunId>, StoreError> {
        self.read(|db| {
            let id: Option<i64> = db.query_row("SELECT max(id) FROM runs", [], |row| row.get(0))?;
            Ok(id.map(|id| RunId(id as u64)))
        })
        .await
    }

    /// Runs whose things in the engine may still be there, oldest first: queued, running, and ended but not yet closed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open_runs(&self) -> Result<Vec<OpenRun>, StoreError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT id, repo, status FROM runs WHERE closed = 0 ORDER BY id")?;
            let rows = statement
                .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?)))?;
            rows.map(|row| {
                let (id, repo, status) = row?;
                Ok(OpenRun { id: RunId(id as u64), repo: stored_name(repo)?, status: stored_status(&status)? })
            })
            .collect()
        })
        .await
    }

    /// Marks that the engine holds nothing of the run any more, but the workspace kept until a time, if any.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn close_run(&self, run: RunId, kept: Option<(String, Timestamp)>) -> Result<(), StoreError> {
        self.write(move |tx| {
            let (space, until) = kept.map(|(space, until)| (space, until.as_millisecond())).unzip();
            tx.execute(
                "UPDATE runs SET closed = 1, kept_space = ?2, kept_until = ?3 WHERE id = ?1",
                params![run.0 as i64, space, until],
            )?;
            Ok(())
        })
        .await
    }

    /// Workspaces kept of ended runs: run, space, until when.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn kept_spaces(&self) -> Result<Vec<(RunId, RepoName, String, Timestamp)>, StoreError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, repo, kept_space, kept_until FROM runs WHERE kept_space IS NOT NULL AND kept_until IS NOT NULL",
            )?;
            let rows = statement.query_map([], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get::<_, i64>(3)?))
            })?;
            rows.map(|row| {
                let (id, repo, space, until) = row?;
                Ok((RunId(id as u64), stored_name(repo)?, space, stored_time(until)))
            })
            .collect()
        })
        .await
    }

    /// Forgets a kept workspace: it was taken over by a retry, or removed.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn forget_kept_space(&self, run: RunId) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.execute("UPDATE runs SET kept_space = NULL, kept_until = NULL WHERE id = ?1", [run.0 as i64])?;
            Ok(())
        })
        .await
    }

    /// Stores a run that repeats another, takes over its kept workspace, and records who wanted that with `details`, in
    /// one transaction.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn create_retry(
        &self,
        run: NewRun,
        takes_space_of: Option<RunId>,
        by: &Asker,
        mut details: serde_json::Value,
    ) -> Result<RunId, StoreError> {
        let by = by.clone();
        self.write(move |tx| {
            if let Some(old) = takes_space_of {
                tx.execute("UPDATE runs SET kept_space = NULL, kept_until = NULL WHERE id = ?1", [old.0 as i64])?;
            }
            let id = insert_run(tx, None, &run)?;
            details["run"] = id.0.into();
            let subject = run.retry_of.map_or_else(String::new, |old| format!("run {old}"));
            audit::record(tx, &Act { by, kind: ActKind::Retry, subject, details }, Timestamp::now())?;
            Ok(id)
        })
        .await
    }

    /// How many runs there are by status.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn count_runs(&self) -> Result<Vec<(RunStatus, u64)>, StoreError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT status, count(*) FROM runs GROUP BY status")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            rows.map(|row| {
                let (status, count) = row?;
                Ok((stored_status(&status)?, count as u64))
            })
            .collect()
        })
        .await
    }
}

impl RunRow {
    /// What lists show of it.
    pub fn summary(self) -> RunSummary {
        RunSummary {
            id: self.id,
            repo: self.trigger.repo,
            pipeline: self.plan.pipeline,
            event: self.trigger.kind,
            git_ref: self.trigger.git_ref,
            title: self.trigger.commit.title().to_owned(),
            commit: self.trigger.commit.sha,
            author: self.trigger.commit.author,
            actor: self.trigger.actor,
            status: self.status,
            error: self.error,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            retry_of: self.retry_of,
        }
    }
}

const RUN_COLUMNS: &str =
    "id, trigger, plan, carried, retry_of, status, error, created_at, started_at, finished_at, kept_space";

fn run_row(row: &Row<'_>) -> Result<RunRow, StoreError> {
    let trigger: String = row.get(1)?;
    let plan: String = row.get(2)?;
    let status: String = row.get(5)?;
    Ok(RunRow {
        id: RunId(row.get::<_, i64>(0)? as u64),
        trigger: serde_json::from_str(&trigger)?,
        plan: serde_json::from_str(&plan)?,
        carried: row.get(3)?,
        retry_of: row.get::<_, Option<i64>>(4)?.map(|id| RunId(id as u64)),
        status: stored_status(&status)?,
        error: row.get(6)?,
        created_at: stored_time(row.get(7)?),
        started_at: row.get::<_, Option<i64>>(8)?.map(stored_time),
        finished_at: row.get::<_, Option<i64>>(9)?.map(stored_time),
        kept_space: row.get(10)?,
    })
}

fn events(db: &Connection, run: RunId) -> Result<Vec<EventRow>, StoreError> {
    let mut statement = db.prepare_cached("SELECT seq, at, event FROM run_events WHERE run_id = ?1 ORDER BY seq")?;
    let rows = statement.query_map([run.0 as i64], |row| {
        Ok(EventRow { seq: row.get::<_, i64>(0)? as u64, at: stored_time(row.get(1)?), event: row.get(2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn append_event(tx: &Transaction<'_>, run: RunId, row: &EventRow, change: &RowChange) -> Result<(), StoreError> {
    let at = row.at.as_millisecond();
    let added = tx
        .prepare_cached("INSERT OR IGNORE INTO run_events (run_id, seq, at, event) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![run.0 as i64, row.seq as i64, at, row.event])?;
    if added == 0 {
        return Err(StoreError::Conflict(format!("add event {} to run #{run}: that place is taken", row.seq)));
    }
    if let Some(status) = change.status {
        tx.execute(
            "UPDATE runs SET status = ?2, error = coalesce(?3, error),
                started_at = CASE WHEN ?4 THEN coalesce(started_at, ?6) ELSE started_at END,
                finished_at = CASE WHEN ?5 THEN ?6 ELSE finished_at END
             WHERE id = ?1",
            params![run.0 as i64, status.as_str(), change.error, status == RunStatus::Running, status.is_final(), at],
        )?;
    }
    Ok(())
}

fn insert_run(tx: &Transaction<'_>, inbox_id: Option<InboxId>, run: &NewRun) -> Result<RunId, StoreError> {
    let now = Timestamp::now().as_millisecond();
    let over = run.status.is_final();
    let pipeline: &PipelineName = &run.plan.pipeline;
    tx.execute(
        "INSERT INTO runs (inbox_id, repo, pipeline, trigger, plan, carried, retry_of, status, error, created_at,
                           finished_at, closed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        params![
            inbox_id.map(|id| id.0 as i64),
            run.trigger.repo.as_str(),
            pipeline.as_str(),
            serde_json::to_string(&run.trigger)?,
            serde_json::to_string(&run.plan)?,
            run.carried,
            run.retry_of.map(|id| id.0 as i64),
            run.status.as_str(),
            run.error,
            now,
            over.then_some(now),
            over,
        ],
    )?;
    Ok(RunId(tx.last_insert_rowid() as u64))
}

fn stored_status(text: &str) -> Result<RunStatus, StoreError> {
    text.parse().map_err(StoreError::Conflict)
}

fn stored_name(text: String) -> Result<RepoName, StoreError> {
    RepoName::new(text).map_err(|bad| StoreError::Conflict(format!("read a stored repository name: {bad}")))
}

/// Milliseconds back to a time. Out of range cannot come from us; the epoch shows it for what it is.
pub(super) fn stored_time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}
