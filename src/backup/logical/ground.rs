//! The ground that a copy is restored on: what is on the server already, and whether that may be put aside. Asked before
//! anything is made; `restore` works on what is found here.

use super::plan::Plan;
use super::restore::{Options, RestoreError};
use super::server::{Found, Seen, is_empty, look, open};
use super::sql::quoted;
use crate::backup::catalog::dumps::DatabaseDump;
use crate::model::text::{clean, count};
use jiff::Timestamp;

/// What an unfinished database's name begins with.
const UNFINISHED: &str = "mainstay_unfinished_";

/// A name for a database that is not whole yet. Random, too: of two restores that begin in one second each has its own, and
/// none is told to remove what the other one fills.
pub(super) fn unfinished(oid: u32, now: Timestamp, random: u32) -> String {
    format!("{UNFINISHED}{oid}_{}_{random:08x}", now.strftime("%Y%m%d%H%M%S"))
}

/// What takes a database away.
pub(super) fn drop_of(name: &str) -> String {
    format!("DROP DATABASE {}", quoted(name))
}

/// Unfinished databases that nobody is connected to. A restore under way is, but for moments.
fn leftovers(there: &[Found]) -> Vec<String> {
    let left = there.iter().filter(|one| one.name.starts_with(UNFINISHED) && one.sessions == 0);
    left.map(|one| one.name.clone()).collect()
}

/// The server that a copy goes to, as it was found.
pub(super) struct Ground {
    pub(super) seen: Seen,
    /// The database in which the server is spoken with.
    pub(super) place: String,
    /// Databases that will be put aside.
    pub(super) aside: Vec<String>,
    /// Unfinished databases of restores that did not end, and that nobody is connected to.
    pub(super) leftovers: Vec<String>,
}

impl Ground {
    /// Looks at the server, and whether what is there may be put aside.
    pub(super) async fn survey(plan: &Plan, options: &Options) -> Result<Ground, RestoreError> {
        let names: Vec<&str> = plan.copy.databases.iter().map(|database| database.name.as_str()).collect();
        let (seen, place) = Ground::meet(options, &names).await?;
        let mut aside = Vec::new();
        for database in &plan.copy.databases {
            let Some(found) = seen.database(&database.name) else { continue };
            aside.push(found.name.clone());
            fits(database, found, options).await?;
        }
        let leftovers = leftovers(&seen.databases);
        Ok(Ground { seen, place, aside, leftovers })
    }

    /// What is left there of earlier restores, and what takes it away.
    pub(super) fn left(&self) -> Option<String> {
        let names: Vec<String> = self.leftovers.iter().map(|name| drop_of(name)).collect();
        let what = match names.len() {
            0 => return None,
            1 => "an unfinished database of a restore that did not end is there, and nobody is connected to it"
                .to_owned(),
            n => format!(
                "{n} unfinished databases of restores that did not end are there, and nobody is connected to them"
            ),
        };
        Some(format!("{what}; unless another restore is under way, remove with: {}", names.join("; ")))
    }

    /// Speaks with the server in a database that none of the copy's will take the name of.
    async fn meet(options: &Options, taken: &[&str]) -> Result<(Seen, String), RestoreError> {
        let named = options.into.database();
        let mut failed = None;
        for place in [named, "postgres", "template1"] {
            if taken.contains(&place) {
                continue;
            }
            match open(&options.into, place).await {
                Ok(mut connection) => {
                    let seen = look(&mut connection).await;
                    connection.close().await;
                    return Ok((seen?, place.to_owned()));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.map_or_else(
            || RestoreError::Refused("no database is left to work from: all are to be restored".into()),
            RestoreError::Postgres,
        ))
    }
}

/// Whether what is there may be put aside.
async fn fits(database: &DatabaseDump, found: &Found, options: &Options) -> Result<(), RestoreError> {
    let name = clean(&found.name);
    if found.sessions > 0 {
        return Err(RestoreError::Refused(format!(
            "the database {name} is in use by {}\nhint: end them first; it is put aside under another name at the end",
            count(found.sessions, "session")
        )));
    }
    if options.force {
        return Ok(());
    }
    if !found.connectable || !is_empty(&options.into, &found.name).await? {
        return Err(RestoreError::Refused(format!(
            "the database {name} is there, and holds something\nhint: `--force` puts it aside under another name; nothing is \
             dropped"
        )));
    }
    if found.encoding != database.encoding {
        return Err(RestoreError::Refused(format!(
            "the empty database {name} has the encoding {}, the copy is in {}\nhint: remove it; the restore makes one as it was",
            found.encoding, database.encoding
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_restores_of_one_second_have_names_of_their_own_that_fit() {
        let now: Timestamp = "2026-11-23T10:15:00Z".parse().unwrap();
        let (one, other) = (unfinished(u32::MAX, now, 1), unfinished(u32::MAX, now, u32::MAX));
        assert_ne!(one, other);
        assert_eq!(unfinished(16_385, now, 0xab), "mainstay_unfinished_16385_20261123101500_000000ab");
        assert!(other.len() <= super::super::restore::NAME_BYTES, "{other}");
    }
}
