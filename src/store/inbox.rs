//! (to be written)
use super::StoreError;
use rusqlite::Transaction;
pub(super) fn close_inbox_row(_tx: &Transaction<'_>, _id: u64, _state: &str, _reason: Option<&str>) -> Result<(), StoreError> { Ok(()) }
