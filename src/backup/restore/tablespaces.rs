//! Where the tablespaces of a restored cluster go: where they were, or where somebody wants them. No I/O.

use super::plan::PlanError;
use crate::backup::catalog::manifest::Manifest;
use crate::backup::repository::Archive;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

/// How a tablespace is called by who wants it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tablespace {
    /// By its OID.
    Oid(u32),
    /// By the folder that it was in, as the source's server says it.
    Folder(PathBuf),
}

impl std::str::FromStr for Tablespace {
    type Err = String;
    fn from_str(text: &str) -> Result<Tablespace, String> {
        match text.parse() {
            Ok(oid) => Ok(Tablespace::Oid(oid)),
            Err(_) if text.starts_with('/') => Ok(Tablespace::Folder(text.into())),
            Err(_) => Err(format!("`{text}` is neither the OID of a tablespace nor the folder that it was in")),
        }
    }
}

impl fmt::Display for Tablespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tablespace::Oid(oid) => write!(f, "OID {oid}"),
            Tablespace::Folder(folder) => write!(f, "folder {}", folder.display()),
        }
    }
}

/// Where each tablespace of a backup goes, by its OID: where it was, unless it is wanted elsewhere.
///
/// # Errors
/// When one is wanted elsewhere that is none of this backup.
pub(super) fn tablespaces(
    manifest: &Manifest,
    moved: &BTreeMap<Tablespace, PathBuf>,
) -> Result<BTreeMap<u32, PathBuf>, PlanError> {
    let (mut places, mut known, mut named) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    for facts in &manifest.archives {
        if let Archive::Tablespace(oid) = facts.archive {
            let own = facts.location.as_ref().map(PathBuf::from);
            known.push(own.as_ref().map_or_else(|| oid.to_string(), |own| format!("{oid} in {}", own.display())));
            let names = [Some(Tablespace::Oid(oid)), own.clone().map(Tablespace::Folder)].into_iter().flatten();
            let to = names.filter_map(|name| moved.get_key_value(&name)).next();
            named.extend(to.map(|(name, _)| name));
            let place = to.map(|(_, to)| to.clone()).or(own);
            places
                .insert(oid, place.ok_or_else(|| PlanError::Manifest(manifest.backup.clone(), "tablespaces' places"))?);
        }
    }
    match moved.keys().find(|name| !named.contains(name)) {
        None => Ok(places),
        Some(name) => {
            Err(PlanError::Tablespace(name.clone(), if known.is_empty() { "none".into() } else { known.join(", ") }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tablespace_is_called_by_its_number_or_its_folder() {
        assert_eq!("16400".parse(), Ok(Tablespace::Oid(16400)));
        assert_eq!("/srv/fast".parse(), Ok(Tablespace::Folder("/srv/fast".into())));
        for bad in ["", "fast", "-1", "./fast"] {
            assert!(bad.parse::<Tablespace>().is_err(), "{bad}");
        }
    }
}
