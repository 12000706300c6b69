//! Questions to a restored server. In: SQL. Out: what it answered. The answers go into the report; a server that answers
//! wrongly stays open, since people will want to look at it.

use super::start::Host;
use crate::backup::source::postgres::{Address, Connection, Purpose};
use serde::Serialize;
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
pub(super) async fn ask(host: Host<'_>, data: &Path, checks: &[Check]) -> Vec<Checked> {
    let mut checked = Vec::with_capacity(checks.len());
    for check in checks {
        checked.push(judged(check, one(host, data, check)).await);
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

async fn one(host: Host<'_>, data: &Path, check: &Check) -> Result<String, String> {
    single(&host.query(data, &check.database, &check.sql).await?)
}

async fn answer(address: &Address, check: &Check) -> Result<String, String> {
    let mut connection = Connection::open(address, None, Purpose::Sql).await.map_err(|error| error.to_string())?;
    let rows = connection.query(&check.sql).await.map_err(|error| error.to_string())?;
    connection.close().await;
    let text =
        |value: &Option<bytes::Bytes>| value.as_deref().map_or("null".into(), String::from_utf8_lossy).into_owned();
    let rows: Vec<Vec<String>> = rows.rows.iter().map(|row| row.iter().map(text).collect()).collect();
    single(&rows)
}

/// The one value that a check gives.
fn single(rows: &[Vec<String>]) -> Result<String, String> {
    match rows {
        [row] if row.len() == 1 => Ok(row[0].clone()),
        [] => Err("it gave no row".into()),
        [row, ..] => Err(format!("it gave {} rows of {} columns, not one of one", rows.len(), row.len())),
    }
}
