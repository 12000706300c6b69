//! When each scheduled pipeline is due next.
//!
//! Enters: what the pipeline files of the default branch say, and ticks (`trigger::schedule`). Leaves: what is due, and
//! an inbox row per tick. A tick and the next due time are written in one transaction, so no tick is taken twice.

use super::inbox::{InboxId, NewRow, insert, parsed, taken};
use super::{Store, StoreError};
use crate::model::ids::PipelineName;
use crate::model::trigger::{EventKind, Feeder};
use crate::model::{Oid, RepoName};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

/// One schedule of one pipeline: the spec as written, with its zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScheduleKey {
    /// The watched repository.
    pub repo: RepoName,
    /// The pipeline.
    pub pipeline: PipelineName,
    /// As written, such as `0 3 * * * Europe/Paris`.
    pub spec: String,
}

impl Store {
    /// Makes the stored schedules of a repository those that its files name now. Known ones keep their due time; new
    /// ones get the one given with them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_schedules(
        &self,
        repo: &RepoName,
        wanted: Vec<(PipelineName, String, Timestamp)>,
    ) -> Result<(), StoreError> {
        let repo = repo.clone();
        self.write(move |tx| {
            let mut known = Vec::new();
            {
                let mut query = tx.prepare_cached("SELECT pipeline, spec FROM schedules WHERE repo = ?1")?;
                let mut rows = query.query([repo.as_str()])?;
                while let Some(row) = rows.next()? {
                    known.push((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
                }
            }
            for (pipeline, spec) in &known {
                if !wanted.iter().any(|(p, s, _)| p.as_str() == pipeline && s == spec) {
                    tx.execute(
                        "DELETE FROM schedules WHERE repo = ?1 AND pipeline = ?2 AND spec = ?3",
                        params![repo.as_str(), pipeline, spec],
                    )?;
                }
            }
            for (pipeline, spec, next) in &wanted {
                tx.execute(
                    "INSERT OR IGNORE INTO schedules (repo, pipeline, spec, next_due) VALUES (?1, ?2, ?3, ?4)",
                    params![repo.as_str(), pipeline.as_str(), spec, next.as_millisecond()],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Forgets the schedules of repositories that are no longer watched.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_schedules_of(&self, repos: Vec<RepoName>) -> Result<(), StoreError> {
        self.write(move |tx| {
            let names: Vec<&str> = repos.iter().map(RepoName::as_str).collect();
            tx.execute(
                "DELETE FROM schedules WHERE repo NOT IN (SELECT value FROM json_each(?1))",
                [serde_json::to_string(&names)?],
            )?;
            Ok(())
        })
        .await
    }

    /// Schedules that are due, the longest waiting first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn due_schedules(&self, now: Timestamp) -> Result<Vec<(ScheduleKey, Timestamp)>, StoreError> {
        self.read(move |db| {
            let sql = "SELECT repo, pipeline, spec, next_due FROM schedules WHERE next_due <= ?1 ORDER BY next_due";
            let mut query = db.prepare_cached(sql)?;
            let mut rows = query.query([now.as_millisecond()])?;
            let mut due = Vec::new();
            while let Some(row) = rows.next()? {
                let key = ScheduleKey { repo: parsed(row, 0)?, pipeline: parsed(row, 1)?, spec: row.get(2)? };
                due.push((key, time(row.get(3)?)));
            }
            Ok(due)
        })
        .await
    }

    /// When the next schedule is due.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_schedule(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(|db| {
            let next: Option<Option<i64>> =
                db.query_row("SELECT min(next_due) FROM schedules", [], |row| row.get(0)).optional()?;
            Ok(next.flatten().map(time))
        })
        .await
    }

    /// Takes a tick: moves the schedule from `due` to `next`, and stores a row for `run`, the tick that is to run with
    /// the commit it runs at; without it the tick is passed over. Returns the row, or `None` when there is none: the tick
    /// was taken before, or another schedule of the same pipeline was due at the same instant.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accept_scheduled(
        &self,
        key: &ScheduleKey,
        due: Timestamp,
        next: Timestamp,
        run: Option<(Timestamp, String, Oid)>,
    ) -> Result<Option<InboxId>, StoreError> {
        let key = key.clone();
        self.write(move |tx| {
            let moved = tx.execute(
                "UPDATE schedules SET next_due = ?5 WHERE repo = ?1 AND pipeline = ?2 AND spec = ?3 AND next_due = ?4",
                params![
                    key.repo.as_str(),
                    key.pipeline.as_str(),
                    key.spec,
                    due.as_millisecond(),
                    next.as_millisecond()
                ],
            )?;
            let Some((tick, git_ref, commit)) = run.filter(|_| moved == 1) else { return Ok(None) };
            let delivery = format!("{}@{}", key.pipeline, tick.as_millisecond());
            if taken(tx, Feeder::Schedule, &key.repo, &delivery)? {
                return Ok(None);
            }
            let row = NewRow {
                repo: &key.repo,
                git_ref: &git_ref,
                kind: EventKind::Schedule,
                old: &Oid::zero(),
                new: &commit,
                actor: None,
                pipeline: Some(key.pipeline.clone()),
                inputs: Default::default(),
                due: Some(tick),
            };
            let delivery = format!("{delivery}/0");
            insert(tx, row, 0, Feeder::Schedule, Some(&delivery), Timestamp::now()).map(Some)
        })
        .await
    }
}

fn time(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
