//! What a server says of itself: what a restore must give it again, and what it must not lack.
//!
//! Most comes from `SHOW` on the connection for replication. Tablespaces, collations and extensions need SQL; where the
//! role may not connect to a database, they stay empty, and the reason is told.

use super::address::Address;
use super::connect::{Connection, Purpose};
use super::error::PostgresError;
use crate::backup::catalog::manifest::{DatabaseFacts, ServerFacts};
use crate::config::secret::Secret;
use crate::model::SegmentSize;
use std::collections::BTreeMap;

/// The settings that are kept. A server that has not all of them, or does not show some to this role, leaves them out.
///
/// The first five must be at least as large on a server that recovers, or it stops; then what else must be there for it to
/// start or to mean the same; then where its files are, for a person.
const SETTINGS: [&str; 33] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "wal_level",
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
    "summarize_wal",
    "segment_size",
    "track_commit_timestamp",
    "full_page_writes",
    "wal_log_hints",
    "wal_compression",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "wal_keep_size",
    "wal_sender_timeout",
    "archive_mode",
    "synchronous_standby_names",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "TimeZone",
    "shared_buffers",
    "huge_pages",
    "server_version",
    "config_file",
    "hba_file",
    "ident_file",
    "data_directory",
];

/// Settings that belong to a database: a connection for replication, which has none, shows what no database has. The last
/// two are settings before 16 only.
const OF_DATABASE: [&str; 3] = ["server_encoding", "lc_collate", "lc_ctype"];

/// Databases whose extensions are looked at, each over a connection of its own. Clusters with more exist; the rest is named
/// as left out.
const MAX_DATABASES: usize = 200;

/// What a server said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// For the manifest.
    pub server: ServerFacts,
    /// What could not be had, with the reason, for people.
    pub left_out: Vec<String>,
}

impl Connection {
    /// Asks the server for its facts: over this connection, which is for replication, and where that works over connections
    /// for SQL to the same address, with the same password.
    ///
    /// # Errors
    /// When the connection for replication breaks, or the server does not say what a restore cannot do without.
    pub async fn facts(&mut self, address: &Address, password: Option<&Secret>) -> Result<Facts, PostgresError> {
        let identity = self.identify().await?;
        let mut settings = BTreeMap::new();
        let mut left_out = Vec::new();
        for name in SETTINGS {
            if let Some(value) = self.show(name).await? {
                settings.insert(name.to_owned(), value);
            }
        }
        let hidden: Vec<_> = ["data_directory", "config_file", "shared_preload_libraries"]
            .into_iter()
            .filter(|name| !settings.contains_key(*name))
            .collect();
        if !hidden.is_empty() {
            left_out.push(format!(
                "{}: the role may not see them (GRANT pg_read_all_settings TO \"{}\")",
                hidden.join(", "),
                address.user
            ));
        }
        let must = |name: &str, value: Option<String>| {
            value
                .ok_or_else(|| PostgresError::protocol("ask for facts", format!("a server without the setting {name}")))
        };
        let odd = |name: &str, value: &str| PostgresError::protocol("ask for facts", format!("{name} = {value}"));
        let text = must("server_version_num", self.show("server_version_num").await?)?;
        let version = text.parse().map_err(|_| odd("server_version_num", &text))?;
        let text = must("wal_segment_size", self.show("wal_segment_size").await?)?;
        let segment_size =
            size(&text).and_then(|bytes| SegmentSize::new(bytes).ok()).ok_or_else(|| odd("wal_segment_size", &text))?;
        let text = must("block_size", self.show("block_size").await?)?;
        let block_size = text.parse().map_err(|_| odd("block_size", &text))?;
        let data_checksums = must("data_checksums", self.show("data_checksums").await?)? == "on";
        let mut server = ServerFacts {
            system: identity.system,
            version,
            segment_size,
            block_size,
            data_checksums,
            settings,
            tablespaces: BTreeMap::new(),
            databases: BTreeMap::new(),
        };
        if let Err(error) = by_sql(&mut server, &mut left_out, address, password).await {
            left_out.push(format!("tablespaces, collations, extensions: {error}"));
        }
        Ok(Facts { server, left_out })
    }
}

/// What only SQL tells.
async fn by_sql(
    server: &mut ServerFacts,
    left_out: &mut Vec<String>,
    address: &Address,
    password: Option<&Secret>,
) -> Result<(), PostgresError> {
    let mut connection = Connection::open(address, password, Purpose::Sql).await?;
    // The address may name several servers.
    let rows = connection.query("SELECT system_identifier FROM pg_catalog.pg_control_system()").await;
    if let Ok(rows) = rows
        && let Some(found) = rows.first("system_identifier").and_then(|text| text.parse().ok())
        && found != server.system
    {
        return Err(PostgresError::OtherCluster { found, wanted: server.system });
    }
    for name in OF_DATABASE {
        if let Some(value) = connection.show(name).await? {
            server.settings.insert(name.to_owned(), value);
        }
    }
    let spaces = "SELECT oid, pg_catalog.pg_tablespace_location(oid) AS place FROM pg_catalog.pg_tablespace \
                  WHERE spcname NOT IN ('pg_default', 'pg_global')";
    let rows = connection.query(spaces).await?;
    for at in 0..rows.rows.len() {
        if let (Some(Ok(oid)), Some(place)) = (rows.text(at, "oid").map(str::parse), rows.text(at, "place")) {
            server.tablespaces.insert(oid, place.to_owned());
        }
    }
    let rows = connection.query(databases(server.major())).await?;
    connection.close().await;
    let mut names = Vec::new();
    for at in 0..rows.rows.len() {
        let Some(name) = rows.text(at, "name") else { continue };
        let text = |column| rows.text(at, column).filter(|text| !text.is_empty());
        // `libc en_US.UTF-8 2.36`: the provider, the name, and the version that indexes were built with.
        let collation =
            [text("provider"), text("collation"), text("version")].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let facts = DatabaseFacts { collation: Some(collation), extensions: BTreeMap::new() };
        server.databases.insert(name.to_owned(), facts);
        names.push(name.to_owned());
    }
    if names.len() > MAX_DATABASES {
        left_out.push(format!(
            "extensions of {} databases: only the first {MAX_DATABASES} are looked at",
            names.len() - MAX_DATABASES
        ));
    }
    for name in names.into_iter().take(MAX_DATABASES) {
        match extensions(address, password, &name).await {
            Ok(found) => {
                if let Some(facts) = server.databases.get_mut(&name) {
                    facts.extensions = found;
                }
            }
            Err(error) => left_out.push(format!("extensions of the database {name}: {error}")),
        }
    }
    Ok(())
}

/// The databases that one can connect to, with the collation of each and the version that it was made with.
fn databases(major: u32) -> &'static str {
    match major {
        17.. => {
            "SELECT datname AS name, CASE datlocprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END AS provider, \
             coalesce(datlocale, datcollate) AS collation, datcollversion AS version \
             FROM pg_catalog.pg_database WHERE datallowconn ORDER BY datname"
        }
        15 | 16 => {
            "SELECT datname AS name, CASE datlocprovider WHEN 'i' THEN 'icu' ELSE 'libc' END AS provider, \
             coalesce(daticulocale, datcollate) AS collation, datcollversion AS version \
             FROM pg_catalog.pg_database WHERE datallowconn ORDER BY datname"
        }
        // No version is kept with the database. What the system's library has now is what new indexes are built with.
        _ => {
            "SELECT datname AS name, 'libc' AS provider, datcollate AS collation, \
             (SELECT pg_catalog.pg_collation_actual_version(c.oid) FROM pg_catalog.pg_collation c \
              WHERE c.collprovider = 'c' AND c.collcollate = datcollate AND c.collcollate NOT IN ('C', 'POSIX') LIMIT 1) AS version \
             FROM pg_catalog.pg_database WHERE datallowconn ORDER BY datname"
        }
    }
}

async fn extensions(
    address: &Address,
    password: Option<&Secret>,
    database: &str,
) -> Result<BTreeMap<String, String>, PostgresError> {
    let address = Address { database: Some(database.to_owned()), ..address.clone() };
    let mut connection = Connection::open(&address, password, Purpose::Sql).await?;
    let rows = connection.query("SELECT extname, extversion FROM pg_catalog.pg_extension").await?;
    connection.close().await;
    let pair = |at| Some((rows.text(at, "extname")?.to_owned(), rows.text(at, "extversion")?.to_owned()));
    Ok((0..rows.rows.len()).filter_map(pair).collect())
}

/// A setting of memory or of a length in bytes, as `SHOW` prints it: `16MB`, `1GB`, `8192`. `None` when it is none.
pub fn size(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at].parse().ok()?;
    let unit = match text[at..].trim() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_memory_are_read() {
        for (text, bytes) in
            [("16MB", Some(16 << 20)), ("1GB", Some(1 << 30)), ("8192", Some(8192)), ("-1", None), ("1XB", None)]
        {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
