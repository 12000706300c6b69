//! Differences: each is unpacked beside what is in place, put on top of it, and gone, before the next one comes.
//!
//! In: the folders of the data directory and its tablespaces, and one unpacked difference. Out: the same folders, as of that
//! backup. Called by `base`, oldest first. A second copy of the base is never made: what lies on disk is the base and one
//! difference.
//!
//! What was done is written down as lines of the place's state: the name of each chunk that was unpacked; [`begun`] before
//! the first file is touched by a difference, from when on its chunks are used up and are fetched again by a run that goes on;
//! [`in_place`] when a backup that another one goes on top of is whole.

use super::RestoreError;
use super::feeder::STAGE;
use super::place::{Place, STATE, give};
use super::start::LOG_FILE;
use crate::backup::catalog::manifest::ServerFacts;
use crate::backup::repository::{Archive, BackupId};
use crate::backup::source::postgres::size;
use crate::backup::take::{CombineError, Pages, USUAL_SEGMENT_BYTES, combine};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Where a difference is unpacked, in each folder that it goes on top of: on the same file system, so that whole files are
/// moved and not copied.
const BESIDE: &str = ".mainstay-difference";

/// The line that says that this difference is being put on top.
pub(super) fn begun(backup: &BackupId) -> String {
    format!("on top {backup}")
}

/// The line that says that this backup is whole, and waits for the next difference.
pub(super) fn in_place(backup: &BackupId) -> String {
    format!("in place {backup}")
}

/// The folders that a difference with these archives is unpacked into.
pub(super) fn beside(roots: &BTreeMap<Archive, PathBuf>, archives: &BTreeSet<Archive>) -> BTreeMap<Archive, PathBuf> {
    let wanted = roots.iter().filter(|(archive, _)| archives.contains(archive));
    wanted.map(|(archive, root)| (*archive, root.join(BESIDE))).collect()
}

/// Makes these folders anew, empty.
pub(super) fn make(beside: &BTreeMap<Archive, PathBuf>, owner: Option<(u32, u32)>) -> Result<(), RestoreError> {
    remove(beside.values())?;
    for folder in beside.values() {
        let io = |source| RestoreError::io(format!("make {}", folder.display()), source);
        fs::DirBuilder::new().mode(0o700).create(folder).map_err(io)?;
        give(folder, owner)?;
    }
    Ok(())
}

/// Puts the difference in `beside` on top of what is in `roots`, and takes away what is left of it.
pub(super) async fn put_on_top(
    place: &mut Place,
    backup: &BackupId,
    server: &ServerFacts,
    roots: &BTreeMap<Archive, PathBuf>,
    beside: BTreeMap<Archive, PathBuf>,
) -> Result<(), RestoreError> {
    place.note(&begun(backup))?;
    crate::failpoint!("restore-difference-begun");
    let (onto, pages, lock) = (roots.clone(), pages(server), place.hold()?);
    let work = move || {
        // Until it is done nobody else writes here, even when whoever asked for it has given up.
        let _lock = lock;
        let keep: BTreeSet<OsString> = [BESIDE, STATE, STAGE, LOG_FILE].map(OsString::from).into();
        combine(&onto, &beside, pages, &keep)?;
        remove(beside.values())
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| RestoreError::io("combine backups", std::io::Error::other(error)))??;
    crate::failpoint!("restore-difference-on-top");
    Ok(())
}

fn remove<'a>(folders: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), RestoreError> {
    for folder in folders {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(RestoreError::io(format!("remove {}", folder.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The label in a data directory must be that of this backup: the chain was put together to its end, and of nothing else.
pub(super) fn check_label(data: &Path, start: crate::model::Lsn) -> Result<(), RestoreError> {
    let path = data.join("backup_label");
    let text = fs::read(&path).map_err(|error| RestoreError::io(format!("read {}", path.display()), error))?;
    let text = String::from_utf8_lossy(&text);
    let says = text.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: ")?.split(' ').next());
    if says == Some(start.to_string().as_str()) && !text.contains("INCREMENTAL FROM ") {
        return Ok(());
    }
    let what = format!("it begins at {}, and its manifest says {start}", says.unwrap_or("no place"));
    Err(CombineError::Damaged { path, what }.into())
}

fn pages(server: &ServerFacts) -> Pages {
    let said = server.settings.get("segment_size").and_then(|text| size(text));
    Pages { page_bytes: server.block_size, segment_bytes: said.unwrap_or(USUAL_SEGMENT_BYTES) }
}
