//! Writes the members of one chunk below the folder of its archive, step by step from there, following no link.

use super::super::tar::{Kind, Member, plain_path};
use super::{Held, UnpackError, Unpacker, Written};
use crate::backup::catalog::manifest::Continues;
use crate::backup::repository::Archive;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{fchown, fchownat, linkat, symlinkat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// The longest file that is handed back instead of being written. `pg_control` has 8 KiB, a `tablespace_map` a line for each
/// tablespace.
const WITHHELD_LIMIT: u64 = 1 << 20;

/// Whoever wrote so much into a file has the disk begin with it at once. Left to itself the kernel waits until a tenth of
/// the memory is unwritten or half a minute is over, and the disk idles while chunks are opened and works alone at the end.
const WRITE_BACK_BYTES: u64 = 1 << 20;

/// How something that is there is looked at: no link is followed, and no pipe waited for.
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

/// What receives the content of the member that is being read.
enum Open {
    Nothing,
    /// A file, its path, and how much was written into it.
    File(File, PathBuf, u64),
    Held(Vec<u8>),
}

/// Writes the members of one chunk.
pub(super) struct Writer<'a> {
    of: &'a Unpacker,
    archive: Archive,
    root: &'a Path,
    opened: &'a OwnedFd,
    /// The folder that was used last: members of one folder stand together.
    folder: Option<(Vec<u8>, OwnedFd)>,
    open: Open,
    pub(super) written: Written,
}

impl<'a> Writer<'a> {
    pub(super) fn new(of: &'a Unpacker, archive: Archive, root: &'a Path, opened: &'a OwnedFd) -> Self {
        Writer { of, archive, root, opened, folder: None, open: Open::Nothing, written: Written::default() }
    }

    pub(super) fn begin(&mut self, member: Member) -> Result<(), UnpackError> {
        self.leave();
        match member.kind {
            Kind::Folder => self.make_folder(&member),
            Kind::SymbolicLink => self.symbolic_link(&member),
            Kind::HardLink => {
                let mut links = self.of.links.lock().unwrap_or_else(PoisonError::into_inner);
                links.insert((self.archive, member.offset), member);
                Ok(())
            }
            Kind::File if self.is_withheld(&member.path) => self.hold(&member.path, member.size, Some(member.mode)),
            Kind::File => self.file(&member.path, member.size, Some(member.mode)),
        }
    }

    /// Goes on with a file whose beginning is in an earlier chunk.
    pub(super) fn go_on(&mut self, continues: &Continues) -> Result<(), UnpackError> {
        // The reader has checked both.
        let path = hex::decode(&continues.path_hex).unwrap_or_default();
        let size = continues.at + continues.left;
        if self.is_withheld(&path) { self.hold(&path, size, None) } else { self.file(&path, size, None) }
    }

    /// Ends with the file that was written last.
    pub(super) fn leave(&mut self) {
        if let Open::File(file, _, bytes) = std::mem::replace(&mut self.open, Open::Nothing)
            && bytes >= WRITE_BACK_BYTES
        {
            // SAFETY: no memory is passed, and the file is open. Only a wish, so that its answer does not matter: whoever
            // called syncs in the end, and is told then what could not be written.
            unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
        }
    }

    pub(super) fn content(&mut self, at: u64, bytes: &[u8]) -> Result<(), UnpackError> {
        match &mut self.open {
            Open::Nothing => {}
            Open::File(file, path, written) => {
                file.write_all_at(bytes, at).map_err(|error| UnpackError::Write { path: path.clone(), error })?;
                *written += bytes.len() as u64;
                self.written.bytes += bytes.len() as u64;
            }
            Open::Held(path) => {
                let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(held) = held.get_mut(path) {
                    // Within the length: the reader gives no more content than the header says.
                    held.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
                    held.parts.insert(at, bytes.len() as u64);
                }
            }
        }
        Ok(())
    }

    fn is_withheld(&self, path: &[u8]) -> bool {
        self.archive == Archive::Base && self.of.withheld.contains(path)
    }

    fn hold(&mut self, path: &[u8], size: u64, mode: Option<u32>) -> Result<(), UnpackError> {
        if size > WITHHELD_LIMIT {
            return Err(self.failed(path, io::Error::other("it is too long to be held back")));
        }
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Held { bytes: vec![0; size as usize], mode: None, parts: BTreeMap::new() };
        let held = held.entry(path.to_vec()).or_insert_with(fresh);
        if held.bytes.len() as u64 != size {
            return Err(self.failed(path, io::Error::other("two chunks say different lengths")));
        }
        held.mode = mode.or(held.mode);
        self.open = Open::Held(path.to_vec());
        Ok(())
    }

    /// Opens a file, and makes it when nobody has. `mode` comes with the member's header.
    fn file(&mut self, path: &[u8], size: u64, mode: Option<u32>) -> Result<(), UnpackError> {
        let opened = self.open_file(path, size, mode).map_err(|error| self.failed(path, error))?;
        let path = self.path(path);
        self.written.files.push(path.clone());
        self.open = Open::File(opened, path, 0);
        Ok(())
    }

    fn open_file(&mut self, path: &[u8], size: u64, mode: Option<u32>) -> io::Result<File> {
        let owner = self.of.owner;
        let (folder, name) = self.parent(path, true)?;
        // O_NONBLOCK: were it a pipe that somebody put there, opening it would wait for a reader.
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let ours = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = match openat(folder, name, flags, ours) {
            // An earlier run came to its end and took our own right to write away.
            Err(Errno::EACCES) => {
                fchmod(openat(folder, name, READ, Mode::empty())?, ours)?;
                File::from(openat(folder, name, flags, ours)?)
            }
            other => File::from(other?),
        };
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("something that is no file is there already"));
        }
        // Whoever comes first gives it its length, so that it is never longer, whatever was there before.
        if found.len() != size {
            file.set_len(size)?;
        }
        if let Some((user, group)) = owner {
            fchown(&file, Some(user), Some(group))?;
        }
        if let Some(mode) = mode.map(|mode| mode & 0o777) {
            let now = mode | 0o600;
            if file.metadata()?.permissions().mode() & 0o7777 != now {
                file.set_permissions(Permissions::from_mode(now))?;
            }
            if now != mode {
                let mut modes = self.of.modes.lock().unwrap_or_else(PoisonError::into_inner);
                modes.insert((self.archive, path.to_vec()), mode);
            }
        }
        Ok(file)
    }

    /// Gives a file that is whole its mode.
    pub(super) fn mode(&mut self, path: &[u8], mode: u32) -> Result<(), UnpackError> {
        let set = (|| {
            let (folder, name) = self.parent(path, false)?;
            let file = File::from(openat(folder, name, READ, Mode::empty())?);
            file.set_permissions(Permissions::from_mode(mode))
        })();
        set.map_err(|error| self.failed(path, error))
    }

    fn make_folder(&mut self, member: &Member) -> Result<(), UnpackError> {
        let made = (|| {
            let folder = self.walk(&member.path, true)?;
            // Its owner may always enter and write: files of it may come later.
            let mode = Permissions::from_mode(member.mode & 0o777 | 0o700);
            File::from(folder).set_permissions(mode)
        })();
        self.written.folders.insert(self.path(&member.path));
        made.map_err(|error| self.failed(&member.path, error))
    }

    fn symbolic_link(&mut self, member: &Member) -> Result<(), UnpackError> {
        let owner = self.of.owner;
        let leads = OsStr::from_bytes(&member.link);
        let made = (|| {
            let (folder, name) = self.parent(&member.path, true)?;
            match symlinkat(leads, folder, name) {
                Err(Errno::EEXIST) if readlinkat(folder, name).ok().as_deref() == Some(leads) => {}
                other => other?,
            }
            if let Some((user, group)) = owner {
                fchownat(folder, name, Some(user), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            Ok(())
        })();
        made.map_err(|error| self.failed(&member.path, error))
    }

    pub(super) fn hard_link(&mut self, member: &Member) -> Result<(), UnpackError> {
        let made = (|| {
            let out = || io::Error::other("it is a link that leads out of the archive");
            let leads = plain_path(&member.link).filter(|path| !path.is_empty()).ok_or_else(out)?;
            let (folder, name) = self.parent(&leads, false)?;
            let (folder, name) = (folder.try_clone()?, name.to_owned());
            let (own_folder, own_name) = self.parent(&member.path, true)?;
            match linkat(&folder, name.as_os_str(), own_folder, own_name, AtFlags::empty()) {
                Err(Errno::EEXIST) => {
                    let one = fstatat(&folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                    let other = fstatat(own_folder, own_name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                    let same = (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino);
                    same.then_some(()).ok_or_else(|| io::Error::other("something else is there already"))
                }
                other => Ok(other?),
            }
        })();
        made.map_err(|error| self.failed(&member.path, error))
    }

    /// The folder a member is in, and its name there.
    fn parent<'p>(&mut self, path: &'p [u8], make: bool) -> io::Result<(&OwnedFd, &'p OsStr)> {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = slash.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
        if self.folder.as_ref().is_none_or(|(known, _)| known != parent) {
            let opened = self.walk(parent, make)?;
            self.written.folders.insert(self.path(parent));
            self.folder = Some((parent.to_vec(), opened));
        }
        match &self.folder {
            Some((_, folder)) => Ok((folder, OsStr::from_bytes(name))),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    /// Opens a folder below the root step by step, following no link, and makes what is missing.
    fn walk(&self, path: &[u8], make: bool) -> io::Result<OwnedFd> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut folder = self.opened.try_clone()?;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let name = OsStr::from_bytes(part);
            let below = match openat(&folder, name, flags, Mode::empty()) {
                Err(Errno::ENOENT) if make => {
                    match mkdirat(&folder, name, Mode::S_IRWXU) {
                        // Another chunk was here first.
                        Err(Errno::EEXIST) => {}
                        other => other?,
                    }
                    let made = openat(&folder, name, flags, Mode::empty())?;
                    if let Some((user, group)) = self.of.owner {
                        fchown(made.as_fd(), Some(user), Some(group))?;
                    }
                    made
                }
                other => other?,
            };
            folder = below;
        }
        Ok(folder)
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.root.to_owned() } else { self.root.join(OsStr::from_bytes(path)) }
    }

    fn failed(&self, path: &[u8], error: io::Error) -> UnpackError {
        UnpackError::Write { path: self.path(path), error }
    }
}
