//! The outbox: messages to people and systems, written with what they tell about and sent afterwards.
//!
//! Enters: a message, by [`put`], inside the transaction that writes its cause, so that neither is stored without the
//! other; and from `notify::outbox` what became of it. Leaves: what is due, in order, and what is stuck, for showing.
//!
//! A row is `waiting`, then `sending` before the first byte leaves, then `sent`; or `waiting` again after a failure that
//! may pass; or `given-up`. A row that is found in `sending` when the daemon starts was cut off: nobody knows whether it
//! arrived.

use super::{Store, StoreError, stored_time};
use crate::model::api::{MessageFigures, StuckMessage};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde_json::Value;

/// A message that failed so often no longer holds back those behind it: about fifteen seconds with the pauses between
/// tries, which covers a server's restart. After that, fresh news counts for more than order.
const HOLDS_BACK_TRIES: u32 = 4;
/// Rows forgotten in one transaction, so that a push never waits for it.
const ROWS_AT_ONCE: i64 = 500;

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxState {
    /// To be sent, now or later.
    Waiting,
    /// Being sent, or cut off while it was.
    Sending,
    /// The other side took it.
    Sent,
    /// It will not be sent; the row says why.
    GivenUp,
}

impl OutboxState {
    /// The word used in the store and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            OutboxState::Waiting => "waiting",
            OutboxState::Sending => "sending",
            OutboxState::Sent => "sent",
            OutboxState::GivenUp => "given-up",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        let all = [OutboxState::Waiting, OutboxState::Sending, OutboxState::Sent, OutboxState::GivenUp];
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| StoreError::Conflict(format!("read a stored message: `{text}` is no state of one")))
    }
}

/// One message to one recipient.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxRow {
    /// Its number; a smaller one was written earlier.
    pub id: i64,
    /// The same key is the same message.
    pub key: String,
    /// `mail`, or the name of a webhook.
    pub channel: String,
    /// A person's name for mail; empty for a webhook.
    pub recipient: String,
    /// The message as JSON.
    pub message: Value,
    /// Where it stands.
    pub state: OutboxState,
    /// How often it was tried.
    pub tries: u32,
    /// When it is tried next.
    pub next_at: Timestamp,
    /// When it was written.
    pub created_at: Timestamp,
    /// When the other side took it.
    pub sent_at: Option<Timestamp>,
    /// What went wrong last.
    pub error: Option<String>,
}

const COLUMNS: &str = "id, key, channel, recipient, message, state, tries, next_at, created_at, sent_at, error";

/// Due at ?1, and not behind another to the same recipient: one that is being sent, or an older one that is due too or
/// has failed less than ?2 times. `state IN (…)` beside the exact state: without it SQLite does not see that the partial
/// indexes fit.
const DUE: &str = "state IN ('waiting', 'sending') AND state = 'waiting' AND next_at <= ?1
    AND NOT EXISTS (
        SELECT 1 FROM outbox AS other
        WHERE other.state IN ('waiting', 'sending')
          AND other.channel = mine.channel AND other.recipient = mine.recipient
          AND (other.state = 'sending' OR (other.id < mine.id AND (other.tries < ?2 OR other.next_at <= ?1))))";

/// Writes a message down, to be sent after the transaction; nothing happens when one with that key is there.
pub(super) fn put(
    tx: &Transaction<'_>,
    key: &str,
    channel: &str,
    recipient: &str,
    message: &Value,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT OR IGNORE INTO outbox (key, channel, recipient, message, next_at, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
    )?
    .execute(params![key, channel, recipient, serde_json::to_string(message)?, now.as_millisecond()])?;
    Ok(())
}

impl Store {
    /// Writes a message down that tells about nothing else in the store.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn put_message(
        &self,
        key: String,
        channel: String,
        recipient: String,
        message: Value,
    ) -> Result<(), StoreError> {
        self.write(move |tx| put(tx, &key, &channel, &recipient, &message, Timestamp::now())).await
    }

    /// Whether there is something to send now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn messages_due(&self, now: Timestamp) -> Result<bool, StoreError> {
        self.read(move |db| {
            let sql = format!("SELECT EXISTS (SELECT 1 FROM outbox AS mine WHERE {DUE})");
            let values = params![now.as_millisecond(), HOLDS_BACK_TRIES];
            Ok(db.prepare_cached(&sql)?.query_row(values, |row| row.get(0))?)
        })
        .await
    }

    /// Takes up to `limit` messages that are due and marks them `sending`; durable when it answers. At most one per
    /// channel and recipient, the oldest, and none while another of them is being sent.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim_messages(&self, now: Timestamp, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        self.write(move |tx| {
            let sql = format!("SELECT {COLUMNS} FROM outbox AS mine WHERE {DUE} ORDER BY id LIMIT ?3");
            let mut rows = Vec::new();
            {
                let mut query = tx.prepare_cached(&sql)?;
                let mut found = query.query(params![now.as_millisecond(), HOLDS_BACK_TRIES, limit])?;
                while let Some(row) = found.next()? {
                    rows.push(read(row)?);
                }
            }
            for row in &mut rows {
                tx.prepare_cached("UPDATE outbox SET state = 'sending', tries = tries + 1 WHERE id = ?1")?
                    .execute([row.id])?;
                row.state = OutboxState::Sending;
                row.tries += 1;
            }
            Ok(rows)
        })
        .await
    }

    /// The other side took it. `kept` replaces the message: the same without what only its reader may know. What waits
    /// for the same channel is due at once, for the way is open again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn message_sent(&self, id: i64, kept: Value, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.prepare_cached(
                "UPDATE outbox SET state = 'sent', sent_at = ?2, error = NULL, message = ?3
                 WHERE id = ?1 AND state = 'sending'",
            )?
            .execute(params![id, now.as_millisecond(), serde_json::to_string(&kept)?])?;
            tx.prepare_cached(
                "UPDATE outbox SET next_at = ?2
                 WHERE state IN ('waiting', 'sending') AND state = 'waiting' AND next_at > ?2
                   AND channel = (SELECT channel FROM outbox WHERE id = ?1)",
            )?
            .execute(params![id, now.as_millisecond()])?;
            Ok(())
        })
        .await
    }

    /// It failed, and is tried again at `next`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn message_failed(&self, id: i64, error: String, next: Timestamp) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.prepare_cached(
                "UPDATE outbox SET state = 'waiting', next_at = ?2, error = ?3 WHERE id = ?1 AND state = 'sending'",
            )?
            .execute(params![id, next.as_millisecond(), error])?;
            Ok(())
        })
        .await
    }

    /// It will not be sent. `kept` as for [`Store::message_sent`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn give_up_message(&self, id: i64, error: String, kept: Value) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.prepare_cached(
                "UPDATE outbox SET state = 'given-up', error = ?2, message = ?3 WHERE id = ?1 AND state = 'sending'",
            )?
            .execute(params![id, error, serde_json::to_string(&kept)?])?;
            Ok(())
        })
        .await
    }

    /// At start: what was cut off while it was being sent is to be sent again. Returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn recover_messages(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| {
            Ok(tx.execute(
                "UPDATE outbox SET state = 'waiting', next_at = ?1
                 WHERE state IN ('waiting', 'sending') AND state = 'sending'",
                [now.as_millisecond()],
            )?)
        })
        .await
    }

    /// Makes all that waits due: the ways to send have changed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hasten_messages(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| {
            Ok(tx.execute(
                "UPDATE outbox SET next_at = ?1
                 WHERE state IN ('waiting', 'sending') AND state = 'waiting' AND next_at > ?1",
                [now.as_millisecond()],
            )?)
        })
        .await
    }

    /// The newest messages, the newest first; only those with a smaller number than `before`, when it is given.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_messages(&self, before: Option<i64>, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        self.read(move |db| {
            let sql = format!("SELECT {COLUMNS} FROM outbox WHERE id < ?1 ORDER BY id DESC LIMIT ?2");
            let mut query = db.prepare_cached(&sql)?;
            let mut found = query.query(params![before.unwrap_or(i64::MAX), limit])?;
            let mut rows = Vec::new();
            while let Some(row) = found.next()? {
                rows.push(read(row)?);
            }
            Ok(rows)
        })
        .await
    }

    /// What waits and what was given up.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn message_figures(&self) -> Result<MessageFigures, StoreError> {
        self.read(figures).await
    }

    /// Forgets messages from before that time that are sent or given up. Returns how many went; some may be left when
    /// it is many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_messages(&self, before: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| {
            Ok(tx.execute(
                "DELETE FROM outbox WHERE id IN (
                     SELECT id FROM outbox WHERE created_at < ?1 AND state IN ('sent', 'given-up') ORDER BY id LIMIT ?2)",
                params![before.as_millisecond(), ROWS_AT_ONCE],
            )?)
        })
        .await
    }
}

fn figures(db: &Connection) -> Result<MessageFigures, StoreError> {
    let count =
        |sql: &str| -> Result<u64, StoreError> { Ok(db.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64) };
    let one = |which: &str| -> Result<Option<StuckMessage>, StoreError> {
        let sql = format!("SELECT channel, recipient, created_at, error FROM outbox WHERE {which} LIMIT 1");
        let read = |row: &Row<'_>| {
            Ok(StuckMessage {
                channel: row.get(0)?,
                recipient: row.get(1)?,
                since: stored_time(row.get(2)?),
                error: row.get(3)?,
            })
        };
        Ok(db.prepare_cached(&sql)?.query_row([], read).optional()?)
    };
    Ok(MessageFigures {
        waiting: count("SELECT count(*) FROM outbox WHERE state IN ('waiting', 'sending')")?,
        stuck: one("state IN ('waiting', 'sending') AND error IS NOT NULL ORDER BY id")?,
        given_up: count("SELECT count(*) FROM outbox WHERE state = 'given-up'")?,
        last_given_up: one("state = 'given-up' AND error IS NOT NULL ORDER BY id DESC")?,
    })
}

fn read(row: &Row<'_>) -> Result<OutboxRow, StoreError> {
    Ok(OutboxRow {
        id: row.get(0)?,
        key: row.get(1)?,
        channel: row.get(2)?,
        recipient: row.get(3)?,
        message: serde_json::from_str(&row.get::<_, String>(4)?)?,
        state: OutboxState::parse(&row.get::<_, String>(5)?)?,
        tries: row.get(6)?,
        next_at: stored_time(row.get(7)?),
        created_at: stored_time(row.get(8)?),
        sent_at: row.get::<_, Option<i64>>(9)?.map(stored_time),
        error: row.get(10)?,
    })
}
