//! Questions with short answers: who the server is, its settings, history files, SQL.

use super::Identity;
use super::connect::{Connection, Purpose};
use super::error::PostgresError;
use super::wire::Rows;
use crate::model::{Lsn, SystemId, Timeline};
use bytes::Bytes;

/// SQLSTATEs of a setting that this version does not have, and of one that the role may not see.
const NO_SUCH_SETTING: &str = "42704";
const NOT_ALLOWED: &str = "42501";

impl Connection {
    /// Who the server is and how far its log is flushed.
    ///
    /// # Errors
    /// When the connection breaks, or is none for replication.
    pub async fn identify(&mut self) -> Result<Identity, PostgresError> {
        let rows = one(self.wire.ask("identify the server", "IDENTIFY_SYSTEM").await?);
        let read = || {
            let system = SystemId(rows.first("systemid")?.parse().ok()?);
            let timeline = Timeline(rows.first("timeline")?.parse().ok()?);
            let flushed = rows.first("xlogpos")?.parse().ok()?;
            Some(Identity { system, timeline, flushed })
        };
        read().ok_or_else(|| self.wire.wrong("an answer to IDENTIFY_SYSTEM without its columns"))
    }

    /// A setting; `None` when this version does not have it, or the role may not see it.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn show(&mut self, name: &str) -> Result<Option<String>, PostgresError> {
        // No name of a setting has other characters, and the text goes into a command.
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.')) {
            return Err(PostgresError::Usage(format!(
                "ask for the setting `{}`: no setting has this name",
                name.escape_debug()
            )));
        }
        match self.wire.ask(&format!("ask for the setting {name}"), &format!("SHOW {name}")).await {
            Ok(sets) => {
                let value = one(sets).rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
                Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
            }
            Err(PostgresError::Refused { error, .. }) if error.code == NO_SUCH_SETTING || error.code == NOT_ALLOWED => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether it replays another server's log rather than writing its own.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn in_recovery(&mut self) -> Result<bool, PostgresError> {
        // Every transaction of a standby is read-only; that of a primary is not, because the start of this connection set
        // default_transaction_read_only to off. `in_hot_standby` says the same, but not on 13.
        match self.show("transaction_read_only").await?.as_deref() {
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            _ => Err(self.wire.wrong("a server that does not say whether it may be written to")),
        }
    }

    /// The history file of a timeline, byte for byte; `None` for the first, which has none.
    ///
    /// # Errors
    /// When the connection breaks, or the server does not have it.
    pub async fn history(&mut self, timeline: Timeline) -> Result<Option<Bytes>, PostgresError> {
        if timeline.0 <= 1 {
            return Ok(None);
        }
        let doing = format!("read the history of timeline {timeline}");
        let rows = one(self.wire.ask(&doing, &format!("TIMELINE_HISTORY {timeline}")).await?);
        // 13 calls the content bytea and sends it as it is all the same.
        let row = rows.rows.into_iter().next().unwrap_or_default();
        match <[_; 2]>::try_from(row) {
            Ok([Some(name), Some(content)]) if name == timeline.history_file().as_bytes() => Ok(Some(content)),
            _ => Err(self.wire.wrong("an answer to TIMELINE_HISTORY that is not this file")),
        }
    }

    /// Runs SQL by the simple protocol and gives the last result set, values as text. The connection must be one for SQL.
    ///
    /// # Errors
    /// When the server refuses, or the connection breaks.
    pub async fn query(&mut self, sql: &str) -> Result<Rows, PostgresError> {
        if self.purpose != Purpose::Sql {
            return Err(PostgresError::Usage("run SQL: this connection is for replication".into()));
        }
        let sets = self.wire.ask("run SQL", sql).await?;
        Ok(sets.into_iter().next_back().unwrap_or_default())
    }
}

/// The first result set.
fn one(sets: Vec<Rows>) -> Rows {
    sets.into_iter().next().unwrap_or_default()
}

/// A place in the log and a timeline, from a result set.
pub(super) fn place(rows: &Rows, lsn: &str, timeline: &str) -> Option<(Lsn, Timeline)> {
    Some((rows.first(lsn)?.parse().ok()?, Timeline(rows.first(timeline)?.parse().ok()?)))
}

/// A text as a literal of a command.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
