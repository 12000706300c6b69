//! A cheap answer to "can any ref of this repository on this machine have changed?".

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What the places that hold refs looked like. Equal fingerprints mean that no ref moved in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RefsFingerprint(u64);

/// Younger changes are not trusted: file times are coarse, and a second change may hide behind the same time.
const RACY: Duration = Duration::from_secs(2);
/// Folders of refs looked at; a repository with more is listed in full instead.
const FOLDERS_MAX: usize = 10_000;

/// Looks at `packed-refs`, `HEAD`, the reftable list and every folder under `refs/`. Git replaces refs by renaming a
/// lock file, so the folder's time moves with each of them. `None` means that nothing can be said: something is too
/// young, or this is no repository.
pub fn fingerprint(path: &Path) -> Option<RefsFingerprint> {
    let git_dir = if path.join("HEAD").is_file() { path.to_owned() } else { path.join(".git") };
    let trusted = SystemTime::now().checked_sub(RACY)?;
    let mut hasher = DefaultHasher::new();
    let mut look = |at: &Path, must_exist: bool| -> Option<()> {
        let meta = match std::fs::symlink_metadata(at) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                0_u8.hash(&mut hasher);
                return Some(());
            }
            Err(_) => return None,
        };
        if meta.modified().ok()? > trusted {
            return None;
        }
        (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.len()).hash(&mut hasher);
        Some(())
    };
    look(&git_dir.join("HEAD"), true)?;
    look(&git_dir.join("packed-refs"), false)?;
    look(&git_dir.join("reftable/tables.list"), false)?;
    let mut folders = vec![git_dir.join("refs")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        seen += 1;
        if seen > FOLDERS_MAX {
            return None;
        }
        // The time first: what changes after it is seen next time.
        look(&folder, true)?;
        // A folder's link count is two plus its subfolders on most file systems; reading a thousand names to find
        // no subfolder is what this saves. Where the count says nothing (1), the names are read.
        let links = std::fs::symlink_metadata(&folder).ok()?.nlink();
        if links == 2 {
            continue;
        }
        for entry in std::fs::read_dir(&folder).ok()? {
            let entry = entry.ok()?;
            if entry.file_type().ok()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Some(RefsFingerprint(hasher.finish()))
}
