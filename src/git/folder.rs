//! A working tree as it is, for `mainstay run`: tracked files and untracked ones that Git does not ignore.

use super::{Change, GitError, shown};
use git2::Repository;
use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The largest file taken; it is held in memory.
const FILE_MAX_BYTES: u64 = 2 << 30;
/// Folders in folders.
const DEPTH_MAX: usize = 512;

/// Streams the working tree at `path`. Links are sent as links and never followed; `.git` is left out everywhere, since
/// a copy of the whole history would cost more than the run. Sockets, pipes and devices are left out. A folder that is
/// no repository is sent whole. Files that are tracked are sent even where an ignore rule names them.
///
/// # Errors
/// When a file cannot be read or the sink fails.
pub fn folder(path: &Path, sink: &mut dyn FnMut(Change<'_>) -> io::Result<()>) -> Result<(), GitError> {
    super::init();
    let root = path.canonicalize().map_err(GitError::io(format!("open the folder {}", path.display())))?;
    // A folder below the top of a repository follows the rules of that repository.
    let repo = Repository::discover(&root).ok().filter(|r| !r.is_bare());
    let rules = match &repo {
        Some(repo) => {
            let index = repo.index().map_err(GitError::git("read the index of the working tree"))?;
            let top = repo.workdir().and_then(|w| w.canonicalize().ok()).unwrap_or_else(|| root.clone());
            let prefix = root.strip_prefix(&top).unwrap_or(Path::new("")).to_owned();
            Some(Rules { repo, index, prefix })
        }
        None => None,
    };
    walk(&root, &mut Vec::new(), rules.as_ref(), 0, sink)
}

struct Rules<'r> {
    repo: &'r Repository,
    index: git2::Index,
    /// From the top of the working tree to the folder that is sent.
    prefix: std::path::PathBuf,
}

impl Rules<'_> {
    fn leaves_out(&self, path: &[u8], is_dir: bool) -> bool {
        let full = self.prefix.join(OsStr::from_bytes(path));
        let mut probe = full.as_os_str().as_bytes().to_vec();
        if is_dir {
            probe.push(b'/');
        }
        if !self.repo.is_path_ignored(OsStr::from_bytes(&probe)).unwrap_or(false) {
            return false;
        }
        let tracked = if is_dir {
            self.index.find_prefix(probe.as_slice()).is_ok()
        } else {
            self.index.get_path(&full, 0).is_some()
        };
        !tracked
    }
}

fn walk(
    root: &Path,
    path: &mut Vec<u8>,
    rules: Option<&Rules<'_>>,
    depth: usize,
    sink: &mut dyn FnMut(Change<'_>) -> io::Result<()>,
) -> Result<(), GitError> {
    let here = root.join(OsStr::from_bytes(path));
    let doing = || format!("read {}", here.display());
    if depth > DEPTH_MAX {
        return Err(GitError::Hostile { path: shown(path), why: "the folder is nested too deeply" });
    }
    let mut entries =
        std::fs::read_dir(&here).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(GitError::io(doing()))?;
    // The same order every time, whatever the file system keeps.
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        if name.as_bytes().eq_ignore_ascii_case(b".git") {
            continue;
        }
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let full = entry.path();
        let reading = || format!("read {}", full.display());
        let kind = entry.file_type().map_err(GitError::io(reading()))?;
        let left_out = rules.is_some_and(|r| r.leaves_out(path, kind.is_dir()));
        let send = |sink: &mut dyn FnMut(Change<'_>) -> io::Result<()>, change: Change<'_>| {
            sink(change).map_err(GitError::io("fill the workspace"))
        };
        if left_out {
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&full).map_err(GitError::io(reading()))?;
            send(sink, Change::Link { path: path.clone(), target: target.as_os_str().as_bytes().to_vec() })?;
        } else if kind.is_dir() {
            send(sink, Change::Dir(path.clone()))?;
            walk(root, path, rules, depth + 1, sink)?;
        } else if kind.is_file() {
            // Not through a link, even when one was put here a moment ago.
            let file = std::fs::File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&full);
            let file = file.map_err(GitError::io(reading()))?;
            let meta = file.metadata().map_err(GitError::io(reading()))?;
            let mut data = Vec::new();
            file.take(FILE_MAX_BYTES + 1).read_to_end(&mut data).map_err(GitError::io(reading()))?;
            if data.len() as u64 > FILE_MAX_BYTES {
                return Err(GitError::TooBig { what: shown(path), limit_bytes: FILE_MAX_BYTES });
            }
            let executable = meta.mode() & 0o100 != 0;
            send(sink, Change::File { path: path.clone(), executable, data: Cow::Owned(data) })?;
        }
        path.truncate(length);
    }
    Ok(())
}
