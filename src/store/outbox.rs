//! The outbox: messages to people and systems, written with what they tell about and sent afterwards.
//!
//! Enters: a message, by [`put`], inside the transaction that writes its cause, so that neither is stored without the other.

use super::StoreError;
use jiff::Timestamp;
use rusqlite::{Transaction, params};
use serde_json::Value;

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
