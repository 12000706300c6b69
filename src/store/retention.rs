//! Forgetting what is old, in small transactions, so that a push never waits for it.

use super::{Store, StoreError};
use crate::model::RunId;
use jiff::Timestamp;
use rusqlite::params;

/// Inbox rows forgotten in one transaction.
const ROWS_AT_ONCE: i64 = 500;

impl Store {
    /// Runs that may be forgotten, oldest first: ended before that time, nothing of them is left in the engine, and
    /// not among the newest `newest` of their repository.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn old_runs(&self, before: Timestamp, newest: u32, limit: u32) -> Result<Vec<RunId>, StoreError> {
        self.read(move |db| {
            let mut query = db.prepare_cached(
                "SELECT id FROM runs
                 WHERE closed = 1 AND kept_space IS NULL AND finished_at < ?1
                   AND (SELECT count(*) FROM (SELECT 1 FROM runs newer WHERE newer.repo = runs.repo
                        AND newer.id > runs.id LIMIT ?2)) >= ?2
                 ORDER BY id LIMIT ?3",
            )?;
            let rows = query.query_map(params![before.as_millisecond(), newest, limit], |row| {
                Ok(RunId(row.get::<_, i64>(0)? as u64))
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Forgets a run and its events. What repeated it no longer names it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn forget_run(&self, run: RunId) -> Result<(), StoreError> {
        self.write(move |tx| {
            let id = run.0 as i64;
            tx.execute("DELETE FROM run_events WHERE run_id = ?1", [id])?;
            tx.execute("UPDATE runs SET retry_of = NULL WHERE retry_of = ?1", [id])?;
            tx.execute("DELETE FROM runs WHERE id = ?1 AND closed = 1", [id])?;
            Ok(())
        })
        .await
    }

    /// Forgets inbox rows and reports from before that time, but for those that wait, have runs, or are the newest of
    /// their ref. Returns how many went; some may be left when it is many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn forget_inbox(&self, before: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let before = before.as_millisecond();
            let old: Vec<i64> = tx
                .prepare_cached(
                    "SELECT id FROM inbox
                     WHERE at < ?1 AND state <> 'pending'
                       AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.inbox_id = inbox.id)
                       AND NOT EXISTS (SELECT 1 FROM refs WHERE refs.repo = inbox.repo AND refs.git_ref = inbox.git_ref
                                       AND refs.generation = inbox.generation AND refs.generation > 0)
                     ORDER BY id LIMIT ?2",
                )?
                .query_map([before, ROWS_AT_ONCE], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for id in &old {
                tx.prepare_cached("DELETE FROM reports WHERE inbox_id = ?1")?.execute([id])?;
                tx.prepare_cached("DELETE FROM inbox WHERE id = ?1")?.execute([id])?;
            }
            Ok(old.len())
        })
        .await
    }
}
