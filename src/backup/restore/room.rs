//! Does the base fit on the disk? Asked before anything is fetched: hours later it costs those hours.
//!
//! In: folders and the bytes that go into each. Out: an error when a file system has less than that free. File systems that
//! compress are not asked, since what goes in takes less there than it says. What is found may change: a disk that fills later is
//! an error of writing then, and the same restore goes on when there is room.

use super::RestoreError;
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

/// Fails when what goes into these folders is more than their file systems have free.
pub(super) fn check<'a>(needs: impl IntoIterator<Item = (&'a Path, u64)>) -> Result<(), RestoreError> {
    let mut by_device: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    for (folder, bytes) in needs {
        let io = |source| RestoreError::io(format!("look at {}", folder.display()), source);
        let device = std::fs::metadata(folder).map_err(io)?.dev();
        let needed = &mut by_device.entry(device).or_insert((folder, 0)).1;
        *needed = needed.saturating_add(bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

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
