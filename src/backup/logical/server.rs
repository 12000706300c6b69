//! What is asked of a server before it is copied, or before a copy goes into it.

use crate::backup::source::postgres::{Address, Connection, PostgresError, Purpose};
use crate::model::SystemId;
use std::collections::BTreeSet;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Which cluster.
    pub(super) system: SystemId,
    /// `server_version_num`.
    pub(super) version: u32,
    /// Whether this role may read the passwords of roles.
    pub(super) reads_passwords: bool,
    /// All databases, by name.
    pub(super) databases: Vec<Found>,
    /// All roles.
    pub(super) roles: BTreeSet<String>,
}

/// A database that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) oid: u32,
    pub(super) name: String,
    pub(super) encoding: String,
    pub(super) collate: String,
    pub(super) ctype: String,
    pub(super) template: bool,
    pub(super) connectable: bool,
    /// Sessions in it, our own not counted.
    pub(super) sessions: u64,
}

impl Seen {
    pub(super) fn major(&self) -> u32 {
        self.version / 10_000
    }

    pub(super) fn database(&self, name: &str) -> Option<&Found> {
        self.databases.iter().find(|one| one.name == name)
    }
}

/// Asks for all of it, in the database of the address.
pub(super) async fn look(connection: &mut Connection) -> Result<Seen, PostgresError> {
    let wrong =
        || PostgresError::Protocol { doing: "ask what is there".into(), what: "an answer does not read".into() };
    let rows = connection
        .query(
            "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS system, \
             pg_catalog.current_setting('server_version_num') AS version, \
             pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT') AS passwords",
        )
        .await?;
    let read = || {
        // The server prints it as a signed number.
        let system = SystemId(rows.first("system")?.parse::<i64>().ok()?.cast_unsigned());
        Some((system, rows.first("version")?.parse().ok()?, rows.first("passwords")? == "t"))
    };
    let (system, version, reads_passwords) = read().ok_or_else(wrong)?;
    let rows = connection
        .query(
            "SELECT d.oid, datname AS name, pg_catalog.pg_encoding_to_char(encoding) AS encoding, datcollate AS collate, \
             datctype AS ctype, datistemplate AS template, datallowconn AS connectable, (SELECT pg_catalog.count(*) FROM \
             pg_catalog.pg_stat_activity a WHERE a.datid = d.oid AND a.pid <> pg_catalog.pg_backend_pid()) AS sessions \
             FROM pg_catalog.pg_database d ORDER BY datname COLLATE \"C\"",
        )
        .await?;
    let one = |at| {
        let text = |column| rows.text(at, column).map(str::to_owned);
        Some(Found {
            oid: text("oid")?.parse().ok()?,
            name: text("name")?,
            encoding: text("encoding")?,
            collate: text("collate")?,
            ctype: text("ctype")?,
            template: text("template")? == "t",
            connectable: text("connectable")? == "t",
            sessions: text("sessions")?.parse().ok()?,
        })
    };
    let databases = (0..rows.rows.len()).map(one).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    let rows = connection.query("SELECT rolname AS name FROM pg_catalog.pg_roles").await?;
    let roles = (0..rows.rows.len()).map(|at| rows.text(at, "name").map(str::to_owned));
    let roles = roles.collect::<Option<_>>().ok_or_else(wrong)?;
    Ok(Seen { system, version, reads_passwords, databases, roles })
}

/// A connection for SQL to one database of a server.
pub(super) async fn open(address: &Address, database: &str) -> Result<Connection, PostgresError> {
    let address = Address { database: Some(database.to_owned()), ..address.clone() };
    Connection::open(&address, None, Purpose::Sql).await
}

/// Whether nobody has made anything in a database. What `initdb` made has lower numbers.
pub(super) async fn is_empty(address: &Address, database: &str) -> Result<bool, PostgresError> {
    /// `FirstNormalObjectId` of PostgreSQL's `access/transam.h`.
    const FIRST_OWN: u32 = 16_384;
    let catalogs =
        ["class", "proc", "type", "namespace", "extension", "largeobject_metadata", "operator", "foreign_server"];
    let any = catalogs.map(|one| format!("EXISTS (SELECT 1 FROM pg_catalog.pg_{one} WHERE oid >= {FIRST_OWN})"));
    let mut connection = open(address, database).await?;
    let rows = connection.query(&format!("SELECT {} AS any", any.join(" OR "))).await?;
    connection.close().await;
    Ok(rows.first("any") == Some("f"))
}
