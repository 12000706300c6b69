//! What is wrong with sources of backups: episodes that are open, each written with the messages that tell of it.
//!
//! Enters: an episode, from the daemon's keeper. Leaves: what is open, also after a restart, so that nobody is told twice and
//! what was done about it can be undone.

use super::audit::{self, Act};
use super::{Outgoing, Store, StoreError, outbox, stored_time};
use crate::model::SourceName;
use jiff::Timestamp;
use rusqlite::{Connection, params};

/// An open episode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConcernRow {
    /// What is wrong, as one word.
    pub kind: String,
    /// Since when; whole milliseconds.
    pub since: Timestamp,
    /// In words.
    pub words: String,
    /// What must be remembered to finish or to undo what was done about it.
    pub memo: Option<String>,
}

/// What is written along with a change.
#[derive(Debug, Clone, Default)]
pub struct ConcernEffects {
    /// Messages to people.
    pub messages: Vec<Outgoing>,
    /// What is to be recorded.
    pub act: Option<Act>,
}

impl Store {
    /// What is open for a source.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn concerns(&self, source: SourceName) -> Result<Vec<ConcernRow>, StoreError> {
        self.read(move |db| open(db, &source)).await
    }

    /// Opens an episode and writes what tells of it; nothing happens when one of its kind is open. Answers what is open then.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_concern(
        &self,
        source: SourceName,
        row: ConcernRow,
        effects: ConcernEffects,
    ) -> Result<Vec<ConcernRow>, StoreError> {
        self.write(move |tx| {
            let added = tx
                .prepare_cached(
                    "INSERT OR IGNORE INTO concerns (source, kind, since, words, memo) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![source.as_str(), row.kind, row.since.as_millisecond(), row.words, row.memo])?;
            if added == 1 {
                write(tx, &effects)?;
            }
            open(tx, &source)
        })
        .await
    }

    /// Ends an episode. `act` is recorded; the messages are written only when nothing else is open for the source. Nothing
    /// happens when it is not open. Answers what is open then.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_concern(
        &self,
        source: SourceName,
        kind: String,
        mut effects: ConcernEffects,
    ) -> Result<Vec<ConcernRow>, StoreError> {
        self.write(move |tx| {
            let gone = tx
                .prepare_cached("DELETE FROM concerns WHERE source = ?1 AND kind = ?2")?
                .execute(params![source.as_str(), kind])?;
            let left = open(tx, &source)?;
            if gone == 1 {
                if !left.is_empty() {
                    effects.messages.clear();
                }
                write(tx, &effects)?;
            }
            Ok(left)
        })
        .await
    }
}

fn write(tx: &rusqlite::Transaction<'_>, effects: &ConcernEffects) -> Result<(), StoreError> {
    let now = Timestamp::now();
    for out in &effects.messages {
        outbox::put(tx, &out.key, &out.channel, &out.recipient, &out.message, now)?;
    }
    if let Some(act) = &effects.act {
        audit::record(tx, act, now)?;
    }
    Ok(())
}

fn open(db: &Connection, source: &SourceName) -> Result<Vec<ConcernRow>, StoreError> {
    let mut query =
        db.prepare_cached("SELECT kind, since, words, memo FROM concerns WHERE source = ?1 ORDER BY since, kind")?;
    let rows = query.query_map([source.as_str()], |row| {
        Ok(ConcernRow { kind: row.get(0)?, since: stored_time(row.get(1)?), words: row.get(2)?, memo: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Asker;
    use crate::store::ActKind;
    use serde_json::json;

    fn row(kind: &str, since: i64) -> ConcernRow {
        let since = Timestamp::from_millisecond(since).unwrap();
        ConcernRow { kind: kind.into(), since, words: "something".into(), memo: Some("x".into()) }
    }

    fn effects(key: &str) -> ConcernEffects {
        let out = Outgoing { key: key.into(), channel: "mail".into(), recipient: "ana".into(), message: json!({}) };
        let kind = ActKind::StepDown;
        let act = Act { by: Asker::daemon(), kind, subject: "source shop-db".into(), details: json!({}) };
        ConcernEffects { messages: vec![out], act: Some(act) }
    }

    #[tokio::test]
    async fn an_episode_is_told_once_and_all_is_well_only_when_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let shop: SourceName = "shop-db".parse().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let told = async |store: &Store| store.list_messages(None, 100).await.unwrap().len();
        store.begin_concern(shop.clone(), row("lag-warn", 5), effects("a")).await.unwrap();
        let again = store.begin_concern(shop.clone(), row("lag-warn", 9), effects("b")).await.unwrap();
        assert_eq!(again, [row("lag-warn", 5)], "the first one stands");
        store.begin_concern(shop.clone(), row("rpo", 7), effects("c")).await.unwrap();
        assert_eq!(told(&store).await, 2);
        drop(store);

        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.concerns(shop.clone()).await.unwrap(), [row("lag-warn", 5), row("rpo", 7)]);
        assert_eq!(store.concerns("other".parse().unwrap()).await.unwrap(), []);
        let left = store.end_concern(shop.clone(), "lag-warn".into(), effects("d")).await.unwrap();
        assert_eq!((left, told(&store).await), (vec![row("rpo", 7)], 2));
        assert_eq!(store.end_concern(shop.clone(), "rpo".into(), effects("e")).await.unwrap(), []);
        assert_eq!(told(&store).await, 3);
        // Twice is once.
        store.end_concern(shop, "rpo".into(), effects("f")).await.unwrap();
        assert_eq!(told(&store).await, 3);
        assert_eq!(store.list_audit(None, 100).await.unwrap().len(), 4);
    }
}
