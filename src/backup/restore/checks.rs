//! Questions to a restored server. In: SQL. Out: what it answered. The answers go into the report; a server that answers
//! wrongly stays open, since people will want to look at it.

use super::start::Host;
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
        let asked = tokio::time::timeout(WITHIN, one(host, data, check)).await;
        let answer = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs())));
        let passed = answer.as_deref() == Ok("t");
        let answer = answer.unwrap_or_else(|why| why);
        checked.push(Checked { sql: check.sql.clone(), database: check.database.clone(), passed, answer });
    }
    checked
}

async fn one(host: Host<'_>, data: &Path, check: &Check) -> Result<String, String> {
    single(&host.query(data, &check.database, &check.sql).await?)
}

/// The one value of an answer.
fn single(rows: &[Vec<String>]) -> Result<String, String> {
    match rows {
        [row] if row.len() == 1 => Ok(row[0].clone()),
        [] => Err("it gave no row".into()),
        [row, ..] => Err(format!("it gave {} rows of {} columns, not one of one", rows.len(), row.len())),
    }
}
