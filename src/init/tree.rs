//! Writes into a workspace: folders, files, links, removals, one owner for all.
//!
//! Every path is walked component by component from the root's descriptor and no link is ever followed, so that a
//! tree holding `lib -> /etc` cannot make anybody write to `/etc`.

use super::sys;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// A folder that is written to.
pub(crate) struct Tree {
    root: OwnedFd,
    /// The folder of the last path: trees come in order, so most files find their folder open.
    last: Option<(Vec<u8>, OwnedFd)>,
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Refuses a path that is none, or leads out of the tree.
fn check(path: &[u8]) -> io::Result<()> {
    // What the kernel takes at most in one path.
    if path.is_empty() || path.len() > 4096 {
        return Err(bad("the path is empty or too long"));
    }
    if path.split(|b| *b == b'/').any(|part| part.is_empty() || part == b"." || part == b"..") {
        return Err(bad("the path leads out of the workspace"));
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn is(error: &io::Error, numbers: &[i32]) -> bool {
    error.raw_os_error().is_some_and(|n| numbers.contains(&n))
}

/// The names in an open folder. Goes by `/proc`, where a descriptor can be read by path without walking one.
fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()))?
        .map(|entry| Ok(entry?.file_name().as_bytes().to_vec()))
        .collect()
}

fn remove_all(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match sys::unlink(dir, name) {
        Ok(()) => return Ok(()),
        Err(e) if is(&e, &[sys::ENOENT]) => return Ok(()),
        Err(e) if is(&e, &[sys::EISDIR, sys::EPERM]) => {}
        Err(e) => return Err(e),
    }
    let inner = sys::open_dir(dir, name)?;
    for entry in names(inner.as_fd())? {
        remove_all(inner.as_fd(), &entry)?;
    }
    sys::remove_dir(dir, name)
}

fn chown_all(dir: BorrowedFd<'_>, user: u32, group: u32) -> io::Result<()> {
    sys::chown_open(dir, user, group)?;
    for entry in names(dir)? {
        match sys::open_dir(dir, &entry) {
            Ok(inner) => chown_all(inner.as_fd(), user, group)?,
            // Not a folder, or gone since: a step that runs beside us may remove its own files.
            Err(_) => match sys::chown_at(dir, &entry, user, group) {
                Err(e) if !is(&e, &[sys::ENOENT]) => return Err(e),
                _ => {}
            },
        }
    }
    Ok(())
}

impl Tree {
    /// Opens the folder everything goes into.
    pub(crate) fn open(root: &std::path::Path) -> io::Result<Self> {
        Ok(Tree { root: File::open(root)?.into(), last: None })
    }

    /// Opens a folder of the tree, making what is missing.
    fn folder(&mut self, path: &[u8]) -> io::Result<BorrowedFd<'_>> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let mut at = self.root.try_clone()?;
            check(path)?;
            for part in path.split(|b| *b == b'/') {
                at = match sys::open_dir(at.as_fd(), part) {
                    Err(e) if is(&e, &[sys::ENOENT]) => {
                        sys::make_dir(at.as_fd(), part)?;
                        sys::open_dir(at.as_fd(), part)?
                    }
                    other => other?,
                };
            }
            self.last = Some((path.to_vec(), at));
        }
        match &self.last {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(bad("the folder is not open")),
        }
    }

    fn place<'a>(&mut self, path: &'a [u8]) -> io::Result<(BorrowedFd<'_>, &'a [u8])> {
        check(path)?;
        let (folder, name) = split(path);
        Ok((self.folder(folder)?, name))
    }

    /// Removes the path with all below it. Nothing there is success.
    pub(crate) fn remove(&mut self, path: &[u8]) -> io::Result<()> {
        check(path)?;
        // What was open may be what is removed.
        self.last = None;
        let (folder, name) = split(path);
        let mut at = self.root.try_clone()?;
        for part in folder.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            at = match sys::open_dir(at.as_fd(), part) {
                // The folder is gone, or is a file or a link by now: nothing of that path is there.
                Err(e) if is(&e, &[sys::ENOENT, sys::ENOTDIR]) => return Ok(()),
                other => other?,
            };
        }
        remove_all(at.as_fd(), name)
    }

    /// Makes a folder. One that is there already stays with what it holds.
    pub(crate) fn dir(&mut self, path: &[u8]) -> io::Result<()> {
        check(path)?;
        self.folder(path).map(|_| ())
    }

    /// Makes a file, in place of whatever had that name; its bytes are written by the caller.
    pub(crate) fn file(&mut self, path: &[u8], executable: bool) -> io::Result<File> {
        let (dir, name) = self.place(path)?;
        let mode = if executable { 0o755 } else { 0o644 };
        match sys::create_file(dir, name, mode) {
            Err(e) if is(&e, &[sys::EEXIST]) => {}
            other => return other,
        }
        self.remove(path)?;
        let (dir, name) = self.place(path)?;
        sys::create_file(dir, name, mode)
    }

    /// Makes a link, in place of whatever had that name.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        match sys::symlink(target, dir, name) {
            Err(e) if is(&e, &[sys::EEXIST]) => {}
            other => return other,
        }
        self.remove(path)?;
        let (dir, name) = self.place(path)?;
        sys::symlink(target, dir, name)
    }

    /// Gives everything to one user and group.
    pub(crate) fn chown(&mut self, user: u32, group: u32) -> io::Result<()> {
        chown_all(self.root.as_fd(), user, group)
    }
}
