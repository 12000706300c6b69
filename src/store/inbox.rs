//! (to be written)
use super::{Store, StoreError};
use crate::model::ids::PipelineName;
use crate::model::{EventKind, Oid, RepoName};
use jiff::Timestamp;
use rusqlite::Transaction;
use std::collections::BTreeMap;
pub(super) fn close_inbox_row(
    _tx: &Transaction<'_>,
    _id: u64,
    _state: &str,
    _reason: Option<&str>,
) -> Result<(), StoreError> {
    Ok(())
}
pub struct InboxRow {
    pub id: u64,
    pub repo: RepoName,
    pub git_ref: String,
    pub kind: EventKind,
    pub old: Oid,
    pub new: Oid,
    pub actor: Option<String>,
    pub pipeline: Option<PipelineName>,
    pub inputs: BTreeMap<String, String>,
    pub at: Timestamp,
}
impl Store {
    pub async fn pending_inbox(&self, _limit: usize) -> Result<Vec<InboxRow>, StoreError> {
        Ok(Vec::new())
    }
}
