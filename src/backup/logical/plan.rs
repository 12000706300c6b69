//! Which copy a restore takes. In: what a repository holds, and what is wanted. Out: a [`Plan`]. No I/O.
//!
//! A copy holds the moment at which each of its databases began to be read. Of a time only this is sure: a copy that had ended
//! by then holds nothing later. An older copy is never taken in place of a newer one that cannot be used: that would be fewer
//! rows, and nobody would know.

use crate::backup::catalog::dumps::{Dump, DumpManifest};
use crate::backup::catalog::holdings::Holdings;
use crate::backup::repository::{BackupId, Cluster};
use crate::model::quantity::rounded_bytes;
use crate::model::text::{clean, count, moment, moment_from};
use jiff::Timestamp;
use serde::Serialize;
use std::fmt;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// The newest copy.
    Latest,
    /// The newest one that had ended by then.
    At(Timestamp),
    /// This one.
    Copy(BackupId),
}

/// What will be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// The source and its cluster.
    #[serde(skip)]
    pub cluster: Cluster,
    /// What was asked for.
    pub wanted: Wanted,
    /// The copy.
    pub copy: DumpManifest,
    /// Bytes to read from the repository.
    pub stored_bytes: u64,
}

/// Why there is no plan. `Display` fits after "failed to restore: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCopy {
    /// There is none.
    #[error(
        "there is no logical copy of {0}\nhint: `mainstay backup {0}` makes one; `mainstay backups {0}` shows what there is"
    )]
    None(String),
    /// None had ended by then.
    #[error("no copy had ended by {at}\nhint: the oldest is {oldest}, ended by {}", moment_from(*.ended))]
    TooEarly {
        /// The time.
        at: Timestamp,
        /// The oldest copy.
        oldest: BackupId,
        /// When that ended.
        ended: Timestamp,
    },
    /// The one that is meant cannot be used.
    #[error(
        "the copy that is meant cannot be used: {why}\nhint: an older one holds less; name it when that will do: `--backup {}`",
        .older.as_ref().map_or("ID".to_owned(), ToString::to_string)
    )]
    Unusable {
        /// Why.
        why: String,
        /// The next older one that can be used.
        older: Option<BackupId>,
    },
    /// There is none of this name.
    #[error("there is no logical copy {0}\nhint: `mainstay backups` shows what there is")]
    Unknown(BackupId),
}

/// Which copy.
///
/// # Errors
/// When there is none that will do.
pub fn plan(holdings: &Holdings, wanted: Wanted) -> Result<Plan, NoCopy> {
    let dumps = &holdings.dumps;
    let by = |at: &Timestamp| dumps.good.values().rev().find(|dump| dump.manifest.ended <= *at);
    let found = match &wanted {
        Wanted::Latest => dumps.good.values().next_back(),
        Wanted::At(at) => by(at),
        Wanted::Copy(id) => Some(dumps.good.get(id).ok_or_else(|| match dumps.doubtful.contains_key(id) {
            true => unbelieved(holdings, id),
            false => NoCopy::Unknown(id.clone()),
        })?),
    };
    // One whose manifest cannot be believed may be the one that is meant.
    let doubtful = match &wanted {
        Wanted::Latest => dumps.doubtful.keys().next_back(),
        Wanted::At(at) => dumps.doubtful.keys().rev().find(|id| id.began().is_none_or(|began| began <= *at)),
        Wanted::Copy(_) => None,
    };
    if let Some(id) = doubtful.filter(|id| found.is_none_or(|dump| dump.id() < *id)) {
        return Err(unbelieved(holdings, id));
    }
    let Some(dump) = found else {
        return Err(match (&wanted, dumps.good.values().next()) {
            (Wanted::At(at), Some(oldest)) => {
                NoCopy::TooEarly { at: *at, oldest: oldest.id().clone(), ended: oldest.manifest.ended }
            }
            _ => NoCopy::None(holdings.cluster.source.to_string()),
        });
    };
    if let Some(why) = dump.unusable() {
        return Err(NoCopy::Unusable { why, older: older(holdings, dump.id()) });
    }
    let Dump { manifest: copy, stored_bytes, .. } = dump.clone();
    Ok(Plan { cluster: holdings.cluster.clone(), wanted, copy, stored_bytes })
}

fn unbelieved(holdings: &Holdings, id: &BackupId) -> NoCopy {
    let why = format!("the manifest of {id} cannot be believed; `mainstay verify` says why");
    NoCopy::Unusable { why, older: older(holdings, id) }
}

fn older(holdings: &Holdings, id: &BackupId) -> Option<BackupId> {
    holdings.dumps.usable().map(Dump::id).find(|one| *one < id).cloned()
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Latest => f.write_str("the newest copy"),
            Wanted::At(at) => write!(f, "the newest copy that had ended by {at}"),
            Wanted::Copy(id) => write!(f, "the copy {id}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copy = &self.copy;
        writeln!(f, "{}: {}", self.cluster.source, self.wanted)?;
        writeln!(
            f,
            "  {}, begun {}, ended {}, of PostgreSQL {}",
            copy.backup,
            moment(copy.began),
            moment(copy.ended),
            copy.major()
        )?;
        writeln!(f, "  what was committed after its databases began to be read is not in it")?;
        for database in &copy.databases {
            writeln!(f, "  database {}: {}", clean(&database.name), rounded_bytes(database.stream.bytes))?;
        }
        write!(f, "  {}, {} to read", count(copy.objects.len(), "object"), rounded_bytes(self.stored_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::catalog::dumps::make::{at, with_copies};
    use crate::backup::catalog::holdings::Missing;
    use crate::backup::catalog::index::BadKind;

    fn id(holdings: &Holdings, nth: usize) -> BackupId {
        holdings.dumps.good.keys().nth(nth).unwrap().clone()
    }

    #[test]
    fn a_time_takes_the_newest_copy_that_had_ended_by_then() {
        // Begun at 0, 24 and 48 hours, each an hour long.
        let holdings = with_copies(&[0, 24, 48]);
        let taken = |wanted| plan(&holdings, wanted).map(|plan| plan.copy.backup);
        assert_eq!(taken(Wanted::Latest).unwrap(), id(&holdings, 2));
        assert_eq!(taken(Wanted::At(at(49))).unwrap(), id(&holdings, 2));
        assert_eq!(taken(Wanted::At(at(48))).unwrap(), id(&holdings, 1));
        assert_eq!(taken(Wanted::At(at(1))).unwrap(), id(&holdings, 0));
        assert!(matches!(taken(Wanted::At(at(0))), Err(NoCopy::TooEarly { .. })));
        assert_eq!(taken(Wanted::Copy(id(&holdings, 1))).unwrap(), id(&holdings, 1));
        assert!(matches!(taken(Wanted::Copy("20200101T000000Z-00000000".parse().unwrap())), Err(NoCopy::Unknown(_))));
        assert!(matches!(plan(&with_copies(&[]), Wanted::Latest), Err(NoCopy::None(_))));
    }

    #[test]
    fn an_older_copy_is_never_taken_unasked() {
        let mut holdings = with_copies(&[0, 24, 48]);
        let (middle, newest) = (id(&holdings, 1), id(&holdings, 2));
        let missing = Missing { name: "x".into(), kind: BadKind::Gone, why: "it is not there".into() };
        holdings.dumps.good.get_mut(&newest).unwrap().missing.push(missing);
        let refused = plan(&holdings, Wanted::Latest).unwrap_err();
        assert!(matches!(&refused, NoCopy::Unusable { older, .. } if *older == Some(middle.clone())), "{refused}");
        assert!(plan(&holdings, Wanted::At(at(48))).is_ok());
        // The same of one whose manifest nobody believes.
        let dump = holdings.dumps.good.remove(&newest).unwrap();
        holdings.dumps.doubtful.insert(newest.clone(), vec![dump.object]);
        for wanted in [Wanted::Latest, Wanted::At(at(60)), Wanted::Copy(newest)] {
            assert!(matches!(plan(&holdings, wanted), Err(NoCopy::Unusable { .. })));
        }
        assert!(plan(&holdings, Wanted::Copy(middle)).is_ok());
    }
}
