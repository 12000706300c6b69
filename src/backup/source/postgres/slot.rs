//! A physical replication slot: what makes the server keep its log until we have it.

use super::connect::{Connection, Purpose};
use super::error::PostgresError;
use super::wire::Rows;
use crate::model::{Lsn, Timeline};

/// duplicate_object, undefined_object.
const EXISTS: &str = "42710";
const MISSING: &str = "42704";

/// What a server tells of a slot. What it did not tell is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotState {
    /// The oldest byte of the log that the server keeps for it. `None` when nothing is reserved, or it is lost.
    pub restart: Option<Lsn>,
    /// The timeline of that place.
    pub timeline: Option<Timeline>,
    /// Whether somebody reads from it.
    pub active: Option<bool>,
    /// Whether its log is still there.
    pub wal_status: Option<WalStatus>,
    /// How many bytes may still be written before its log may go, where `max_slot_wal_keep_size` sets a limit.
    pub safe_bytes: Option<i64>,
}

/// `pg_replication_slots.wal_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalStatus {
    /// There, and within `max_wal_size`.
    Reserved,
    /// There, beyond `max_wal_size`.
    Extended,
    /// It may go at the next checkpoint.
    Unreserved,
    /// Some of it is gone: the slot is of no use any more.
    Lost,
}

/// The name of a slot, as servers take it.
fn checked(name: &str) -> Result<&str, PostgresError> {
    let good = (1..=63).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if good {
        Ok(name)
    } else {
        Err(PostgresError::Usage(format!(
            "use the slot `{}`: a name has 1 to 63 of a-z, 0-9 and _",
            name.escape_debug()
        )))
    }
}

impl Connection {
    /// Makes a physical slot that keeps the log from now on, or leaves one of that name as it is. True when it was made.
    ///
    /// # Errors
    /// When no slot is free (`max_replication_slots`), the role may not, or the connection is none for replication.
    pub async fn create_slot(&mut self, name: &str) -> Result<bool, PostgresError> {
        let name = checked(name)?;
        let options = if self.major() < 15 { "RESERVE_WAL" } else { "(RESERVE_WAL)" };
        let text = format!("CREATE_REPLICATION_SLOT {name} PHYSICAL {options}");
        match self.wire.ask(&format!("make the slot {name}"), &text).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(EXISTS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a slot; false when there was none. One that is in use stays, with an error.
    ///
    /// # Errors
    /// When it is in use (SQLSTATE 55006), or the connection is none for replication.
    pub async fn drop_slot(&mut self, name: &str) -> Result<bool, PostgresError> {
        let name = checked(name)?;
        match self.wire.ask(&format!("remove the slot {name}"), &format!("DROP_REPLICATION_SLOT {name}")).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(MISSING) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The state of a physical slot; `None` when there is none of that name. A connection for SQL tells all of it; one for
    /// replication its place only, and nothing before 15.
    ///
    /// # Errors
    /// When the slot is a logical one, and on a connection for replication to 13 or 14.
    pub async fn slot(&mut self, name: &str) -> Result<Option<SlotState>, PostgresError> {
        let name = checked(name)?;
        let doing = format!("look at the slot {name}");
        let sets = match self.purpose {
            Purpose::Replication if self.major() < 15 => {
                return Err(PostgresError::Usage(format!(
                    "{doing}: PostgreSQL {} tells it to SQL only\nhint: let pg_hba.conf admit this role to the database as well",
                    self.major()
                )));
            }
            Purpose::Replication => self.wire.ask(&doing, &format!("READ_REPLICATION_SLOT {name}")).await?,
            Purpose::Sql => {
                let text = format!(
                    "SELECT slot_type, restart_lsn, active, wal_status, safe_wal_size FROM pg_catalog.pg_replication_slots WHERE slot_name = '{name}'"
                );
                self.wire.ask(&doing, &text).await?
            }
        };
        let rows = sets.into_iter().next().unwrap_or_default();
        match rows.first("slot_type") {
            None => Ok(None),
            Some("physical") => {
                state(&rows).map(Some).ok_or_else(|| self.wire.wrong("a slot in words that are not known here"))
            }
            Some(_) => Err(PostgresError::Usage(format!(
                "{doing}: it is a logical slot\nhint: give this source a name of its own for its slot"
            ))),
        }
    }
}

fn state(rows: &Rows) -> Option<SlotState> {
    // A missing column and NULL are `None`; a text that cannot be read is an error.
    fn read<T>(rows: &Rows, column: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
        rows.first(column).map_or(Some(None), |text| parse(text).map(Some))
    }
    Some(SlotState {
        restart: read(rows, "restart_lsn", |text| text.parse().ok())?,
        timeline: read(rows, "restart_tli", |text| text.parse().ok().map(Timeline))?,
        active: read(rows, "active", |text| matches!(text, "t" | "f").then_some(text == "t"))?,
        wal_status: read(rows, "wal_status", |text| match text {
            "reserved" => Some(WalStatus::Reserved),
            "extended" => Some(WalStatus::Extended),
            "unreserved" => Some(WalStatus::Unreserved),
            "lost" => Some(WalStatus::Lost),
            _ => None,
        })?,
        safe_bytes: read(rows, "safe_wal_size", |text| text.parse().ok())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_commands_are_refused() {
        for name in ["", "A", "a b", "a;drop", "a\"", "é", &"a".repeat(64)] {
            assert!(checked(name).is_err(), "{name}");
        }
        assert_eq!(checked("mainstay_shop_db1").unwrap(), "mainstay_shop_db1");
    }
}
