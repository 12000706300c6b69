//! Marks an instant in the log of sources, by a name (`pg_create_restore_point`). Called through the daemon by deploys.

use super::{Keeper, Kept};
use crate::backup::source::postgres::{Connection, Purpose};
use crate::config::backup::Source;
use crate::model::SourceName;
use crate::model::source_view::SourceState;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

/// A deploy waits for this. A server that takes longer has other troubles, and the deploy goes on unmarked.
const WITHIN: Duration = Duration::from_secs(3);

impl Keeper {
    /// Marks now in the log of every source that is shipped, at the same time. Gives the places of those that took it; what
    /// failed is told in the daemon's log. `name` is plain text of at most 63 bytes.
    pub async fn mark(&self, name: &str) -> BTreeMap<SourceName, String> {
        let shipped = |kept: &&Kept| kept.view.borrow().state == SourceState::Shipping;
        let sources: Vec<Source> = {
            let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.values().filter(shipped).map(|kept| kept.source.clone()).collect()
        };
        let marking = sources.into_iter().map(|source| async move {
            let marked = tokio::time::timeout(WITHIN, mark(&source, name)).await;
            match marked.unwrap_or_else(|_| Err(format!("the server took longer than {} s", WITHIN.as_secs()))) {
                Ok(place) => Some((source.name, place)),
                Err(why) => {
                    tracing::warn!(source = %source.name, "no recovery point `{name}` is made: {why}\nhint: the role needs a line in pg_hba.conf for the database postgres, and GRANT EXECUTE ON FUNCTION pg_create_restore_point(text)");
                    None
                }
            }
        });
        futures_util::future::join_all(marking).await.into_iter().flatten().collect()
    }
}

async fn mark(source: &Source, name: &str) -> Result<String, String> {
    let open = Connection::open(&source.postgres, None, Purpose::Sql).await;
    let mut connection = open.map_err(|error| error.to_string())?;
    let sql = format!("SELECT pg_create_restore_point('{}') AS place", name.replace('\'', "''"));
    let rows = connection.query(&sql).await.map_err(|error| error.to_string());
    connection.close().await;
    rows?.text(0, "place").map(str::to_owned).ok_or_else(|| "the server's answer names no place".to_owned())
}
