//! The folders of a plan, as they are written into: absolute, behind their links, and each its own.

use super::{PlaceError, io, refused};
use crate::backup::repository::Repository;
use crate::backup::restore::RestoreError;
use crate::backup::restore::plan::Plan;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// The folders of a plan's tablespaces, as they are written into.
pub(super) fn of_plan(plan: &Plan, data: &Path) -> Result<Vec<PathBuf>, RestoreError> {
    let spaces = plan.tablespaces.values().map(|space| absolute(space)).collect::<Result<Vec<_>, _>>()?;
    apart(data, &spaces)?;
    Ok(spaces)
}

/// Whether a plan's folders are apart from the repository: what is written into it would be taken for an object, and
/// `--force` would move it aside before it is read.
///
/// # Errors
/// When one is in it, or it is in one.
pub fn apart_from(repository: &dyn Repository, data: &Path, plan: &Plan) -> Result<(), RestoreError> {
    let Some(root) = repository.folder() else { return Ok(()) };
    let root = absolute(root)?;
    for folder in plan.tablespaces.values().map(PathBuf::as_path).chain([data]) {
        let folder = absolute(folder)?;
        if folder.starts_with(&root) || root.starts_with(&folder) {
            return Err(refused(&folder, PlaceError::Repository(root)));
        }
    }
    Ok(())
}

/// Where a folder is; there may be nothing yet.
pub(super) fn absolute(data: &Path) -> Result<PathBuf, RestoreError> {
    let path = std::path::absolute(data).map_err(io("find", data))?;
    let text = path.to_str().ok_or_else(|| refused(data, PlaceError::Name("its path is not UTF-8".into())))?;
    if text.contains(['\n', '\r']) {
        return Err(refused(
            data,
            PlaceError::Name("a line break in its path cannot be written into a server's settings".into()),
        ));
    }
    if path.parent().is_none() {
        return Err(refused(data, PlaceError::Name("the root of the file system is no place for a server".into())));
    }
    // What is behind a link is what is written into, given away and moved aside. There may be nothing yet.
    match fs::canonicalize(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => beyond(&path).map_err(io("find", data)),
        real => real.map_err(io("find", data)),
    }
}

/// A path of which the end is not there yet, with the links of its beginning resolved.
fn beyond(path: &Path) -> std::io::Result<PathBuf> {
    let (Some(above), Some(name)) = (path.parent(), path.components().next_back()) else { return Ok(path.to_owned()) };
    let Component::Normal(name) = name else {
        return Err(std::io::Error::other("`..` follows what is not there"));
    };
    match fs::canonicalize(above) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(beyond(above)?.join(name)),
        above => Ok(above?.join(name)),
    }
}

/// Every folder of a plan must be its own: neither is one in another, nor do two have the same.
fn apart(data: &Path, spaces: &[PathBuf]) -> Result<(), RestoreError> {
    for (index, space) in spaces.iter().enumerate() {
        let inside = |what: &str| Err(refused(space, PlaceError::Name(what.into())));
        if space.starts_with(data) {
            return inside("a tablespace cannot be inside the data directory");
        }
        if data.starts_with(space) {
            return inside("the data directory cannot be inside a tablespace");
        }
        if spaces[..index].iter().any(|other| space.starts_with(other) || other.starts_with(space)) {
            return inside("two tablespaces cannot share a folder, nor can one be inside the other");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r20_every_folder_of_a_plan_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("disk")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("disk"), dir.path().join("link")).unwrap();
        let at = |path: &str| absolute(&dir.path().join(path)).unwrap();
        let told = |data: &str, spaces: &[&str]| {
            apart(&at(data), &spaces.iter().map(|space| at(space)).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        told("data", &["one", "two", "one-more"]).unwrap();
        for (data, spaces) in [
            ("data", &["data/one"][..]),
            ("disk/new/data", &["link/new"]),
            ("data", &["one", "one"]),
            ("data", &["disk/one", "link/one"]),
            ("data", &["one/in", "one"]),
        ] {
            told(data, spaces).unwrap_err();
        }
        // What is not there yet cannot be walked back from.
        absolute(&dir.path().join("missing/../data")).unwrap_err();
        assert_eq!(at("link/new/one"), fs::canonicalize(dir.path()).unwrap().join("disk/new/one"));
    }
}
