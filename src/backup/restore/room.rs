//! Does the base fit on the disk? Asked before anything is fetched: hours later it costs those hours.
//!
//! In: folders and the bytes that go into each. Out: an error when a file system has less than that free. File systems that
//! compress are not asked, since what goes in takes less there than it says. What is found may change: a disk that fills later is
//! an error of writing then, and the same restore goes on when there is room.

use super::RestoreError;
use super::feeder::STAGE;
use crate::model::quantity::rounded_bytes;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// `f_type` of file systems that compress: Btrfs and ZFS. Source: `linux/magic.h`, and OpenZFS's `zfs_super.c`.
const COMPRESS: [i64; 2] = [0x9123_683E, 0x2FC1_2FC1];

/// There is no room. `Display` fits after "failed to restore: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write into {}: it needs {}, and {} are free there\nhint: make room, or restore to another place with `--target DIR`",
    .folder.display(),
    rounded_bytes(*.needed_bytes),
    rounded_bytes(*.free_bytes)
)]
pub struct NoRoom {
    /// A folder on that file system.
    pub folder: PathBuf,
    /// What goes into it and its neighbours, in bytes.
    pub needed_bytes: u64,
    /// What is free for us.
    pub free_bytes: u64,
}

/// Fails when what goes into these folders is more than their file systems have free. What they hold already is an earlier
/// run's, which a full disk may have ended: it is written over, and counts as free.
pub(super) fn check<'a>(needs: impl IntoIterator<Item = (&'a Path, u64)>) -> Result<(), RestoreError> {
    let mut by_device: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    for (folder, bytes) in needs {
        let io = |source| RestoreError::io(format!("look at {}", folder.display()), source);
        let device = std::fs::metadata(folder).map_err(io)?.dev();
        let needed = &mut by_device.entry(device).or_insert((folder, 0)).1;
        *needed = needed.saturating_add(bytes.saturating_sub(held_bytes(folder)));
    }
    for (folder, needed_bytes) in by_device.into_values() {
        let found = nix::sys::statfs::statfs(folder)
            .map_err(|error| RestoreError::io(format!("look at {}", folder.display()), error.into()))?;
        if COMPRESS.contains(&found.filesystem_type().0) {
            continue;
        }
        let free_bytes = found.blocks_available().saturating_mul(found.block_size().unsigned_abs());
        if free_bytes < needed_bytes {
            return Err(NoRoom { folder: folder.to_owned(), needed_bytes, free_bytes }.into());
        }
    }
    Ok(())
}

/// What a folder's files take of the disk, but for the log that waits there: it goes before the end.
fn held_bytes(folder: &Path) -> u64 {
    let mut bytes: u64 = 0;
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        // What cannot be read counts as nothing: then more room is asked for, not less.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(facts) = entry.metadata() else { continue };
            match facts.is_dir() {
                true if entry.file_name() == STAGE => {}
                true => todo.push(entry.path()),
                false => bytes = bytes.saturating_add(facts.blocks().saturating_mul(512)),
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_full_disk_left_behind_is_not_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base/5");
        std::fs::create_dir_all(&base).unwrap();
        std::fs::create_dir(dir.path().join(STAGE)).unwrap();
        assert_eq!(held_bytes(dir.path()), 0);
        std::fs::write(base.join("1259"), vec![1; 300_000]).unwrap();
        std::fs::write(dir.path().join(STAGE).join("log"), vec![1; 300_000]).unwrap();
        assert!((300_000..600_000).contains(&held_bytes(dir.path())), "{}", held_bytes(dir.path()));
    }

    #[test]
    fn what_goes_into_one_file_system_is_counted_together() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for folder in [&one, &two] {
            std::fs::create_dir(folder).unwrap();
        }
        check([(&*one, 1), (&*two, 1)]).unwrap();
        let most = u64::MAX / 2;
        let error = check([(&*one, most), (&*two, most)]).unwrap_err();
        let RestoreError::Room(NoRoom { folder, needed_bytes, free_bytes }) = &error else { panic!("{error}") };
        assert_eq!((folder, *needed_bytes), (&one, 2 * most));
        assert!(*free_bytes > 0 && error.to_string().contains("are free there"), "{error}");
        // A little more than is free, which is about what it was a moment ago.
        assert!(check([(&*one, free_bytes.saturating_mul(2))]).is_err());
        assert!(check([(&*one, 1), (&*dir.path().join("nowhere"), 1)]).is_err());
    }
}
