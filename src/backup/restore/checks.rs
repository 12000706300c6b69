//! Questions to a restored server. In: SQL. Out: what it answered. The answers go into the report; a server that answers
//! wrongly stays open, since people will want to look at it.

use super::start::LocalServer;
use crate::backup::source::postgres::{Address, Connection, Purpose};
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A question may count the rows of a large table.
const WITHIN: Duration = Duration::from_secs(600);

/// A query with one row of one column, true when all is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// It.
    pub sql: String,
    /// The database it is asked in.
    pub database: String,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// What it was asked.
    pub sql: String,
    /// In which database.
    pub database: String,
    /// Whether the answer was true.
    pub passed: bool,
    /// The answer, or why there was none.
    pub answer: String,
}

/// Asks each question, one after the other.
pub(super) async fn ask(server: &LocalServer, data: &Path, checks: &[Check]) -> Vec<Checked> {
    let mut checked = Vec::with_capacity(checks.len());
    for check in checks {
        checked.push(judged(check, one(server, data, check)).await);
    }
    checked
}

/// Asks one question at a server of which the address is known.
pub(in crate::backup) async fn ask_at(address: &Address, check: &Check) -> Checked {
    let address = Address { database: Some(check.database.clone()), ..address.clone() };
    judged(check, answer(&address, check)).await
}

async fn judged(check: &Check, asking: impl Future<Output = Result<String, String>>) -> Checked {
    let asked = tokio::time::timeout(WITHIN, asking).await;
    let answer = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs())));
    let passed = answer.as_deref() == Ok("t");
    let answer = answer.unwrap_or_else(|why| why);
    Checked { sql: check.sql.clone(), database: check.database.clone(), passed, answer }
}

async fn one(server: &LocalServer, data: &Path, check: &Check) -> Result<String, String> {
    let place = place(data).ok_or("the server does not say where it listens")?;
    let (role, database) = (escaped(&server.role), escaped(&check.database));
    let url = format!("postgres://{role}@{}:{}/{database}", escaped(&place), server.port);
    let address = Address::parse(&url).map_err(|error| error.to_string())?;
    answer(&address, check).await
}

async fn answer(address: &Address, check: &Check) -> Result<String, String> {
    let mut connection = Connection::open(address, None, Purpose::Sql).await.map_err(|error| error.to_string())?;
    let rows = connection.query(&check.sql).await.map_err(|error| error.to_string())?;
    connection.close().await;
    match &rows.rows[..] {
        [row] if row.len() == 1 => {
            let value = row[0].as_deref().map_or("null".into(), String::from_utf8_lossy);
            Ok(value.into_owned())
        }
        other => Err(format!("it gave {} rows of {} columns, not one of one", other.len(), rows.columns.len())),
    }
}

/// Where the server listens: the folder of its socket, else its address, as `postmaster.pid` says.
fn place(data: &Path) -> Option<String> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    [4, 5].into_iter().find_map(|index| lines.get(index).filter(|line| !line.is_empty())).map(|line| (*line).to_owned())
}

/// As a part of an address.
fn escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}
