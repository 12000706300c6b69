//! The folder itself: its marker, paths below it that leave it nowhere, temporary files, and errors in words.

use super::super::{Listed, RepositoryError};
use super::{TRIES, parent};
use crate::small_file;
use jiff::Timestamp;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

/// What is ours in the root and no object.
const OWN: &str = ".mainstay";
/// First line of the marker; another number is another layout.
const FORMAT: &str = "mainstay repository 1";
/// A temporary file this old has no writer any more; the largest object is written in minutes.
const STALE_SECS: i64 = 24 * 3600;
/// How often temporary files are looked through by one process.
const SWEEP_SECS: i64 = 3600;

/// The folder of a repository.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) root: PathBuf,
    /// What the marker said when it was opened.
    marker: String,
    /// When temporary files were last looked through, by the folder's own clock.
    swept: AtomicI64,
}

/// A file that goes when this is dropped, whatever name it has been given meanwhile.
pub(super) struct Temporary {
    pub(super) path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The folders that an object's name leads through, the root not among them; the innermost last.
pub(super) struct Parents(Vec<PathBuf>);

impl Parents {
    pub(super) fn are_there(&self) -> bool {
        self.0.iter().all(|folder| folder.is_dir())
    }

    /// Makes durable which names the innermost folder holds.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.last().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// Removes what nothing is in; a writer that just wanted to use it makes it again.
    pub(super) fn remove_empty(&self) {
        for folder in self.0.iter().rev() {
            if fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

impl Place {
    pub(super) fn open(root: &Path) -> Result<Place, RepositoryError> {
        let doing = format!("open the repository {}", root.display());
        // Absolute, so that nothing moves when somebody changes the working folder.
        let root = std::path::absolute(root).map_err(|error| fault(&doing, root, error))?;
        let marker = read_marker(&doing, &root)?;
        Ok(Place { root, marker, swept: AtomicI64::new(0) })
    }

    pub(super) fn create(root: &Path) -> Result<Place, RepositoryError> {
        let doing = format!("make a repository in {}", root.display());
        let failed = |error| fault(&doing, root, error);
        let root = std::path::absolute(root).map_err(failed)?;
        match fs::metadata(&root) {
            Ok(found) if !found.is_dir() => return Err(failed(io::ErrorKind::NotADirectory.into())),
            Ok(_) if root.join(OWN).join("repository").exists() => return Place::open(&root),
            Ok(_) => {
                let other = fs::read_dir(&root).map_err(failed)?.find_map(|entry| {
                    let name = entry.ok()?.file_name();
                    // What a new file system holds, and what a killed creation left.
                    (name != "lost+found" && name != OWN).then_some(name)
                });
                if let Some(other) = other {
                    let detail = format!(
                        "it is no repository, and not empty: `{}` is in it\nhint: give a folder that is empty or does not exist",
                        other.display()
                    );
                    return Err(RepositoryError::Refused { doing, detail });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_folder(&root).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        }
        make_folder(&root.join(OWN)).map_err(failed)?;
        for inner in ["tmp", "lock"] {
            make_folder(&root.join(OWN).join(inner)).map_err(failed)?;
        }
        let place = Place { root: root.clone(), marker: String::new(), swept: AtomicI64::new(0) };
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| failed(io::Error::other(error)))?;
        let marker =
            place.write_temporary(format!("{FORMAT}\n{}\n", hex::encode(random)).as_bytes()).map_err(failed)?;
        // Of two who make it at once the first one's counts.
        match fs::hard_link(&marker.path, root.join(OWN).join("repository")) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => sync(&root.join(OWN)).map_err(failed)?,
        }
        Place::open(&root)
    }

    /// Whether this is still the folder that was opened.
    pub(super) fn here(&self, doing: &str) -> Result<(), RepositoryError> {
        if read_marker(doing, &self.root)? == self.marker {
            return Ok(());
        }
        let detail = format!(
            "another repository is at {} now\nhint: is another disk mounted there? restart when that is meant",
            self.root.display()
        );
        Err(RepositoryError::Refused { doing: doing.to_owned(), detail })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn lock_file(&self, number: u8) -> PathBuf {
        self.root.join(OWN).join("lock").join(format!("{number:02x}"))
    }

    /// The folders on the way to an object; `None` when one is not there.
    pub(super) fn parents(&self, name: &str) -> Result<Option<Parents>, RepositoryError> {
        let mut found = Vec::new();
        for folder in self.on_the_way(name)? {
            match fs::symlink_metadata(&folder) {
                Ok(is) if is.is_dir() => found.push(folder),
                Ok(_) => return Err(self.strange(name, &folder)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(self.fault(&format!("read {name}"), error)),
            }
        }
        Ok(Some(Parents(found)))
    }

    /// The folders on the way to an object, made where they are not there.
    pub(super) fn make_parents(&self, name: &str) -> Result<Parents, RepositoryError> {
        let (mut found, mut tries) = (Vec::new(), 0);
        let way = self.on_the_way(name)?;
        while let Some(folder) = way.get(found.len()) {
            match fs::symlink_metadata(folder) {
                Ok(is) if is.is_dir() => {}
                Ok(_) => return Err(self.strange(name, folder)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => match make_folder(folder) {
                    Ok(()) => {}
                    // Somebody deleted the last object in the one above, and that with it: from the root again.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                        (found, tries) = (Vec::new(), tries + 1);
                        continue;
                    }
                    Err(error) => return Err(self.fault(&format!("store {name}"), error)),
                },
                Err(error) => return Err(self.fault(&format!("store {name}"), error)),
            }
            found.push(folder.clone());
        }
        Ok(Parents(found))
    }

    /// Opens a file by an object's name; `None` when there is none.
    pub(super) fn open_file(&self, name: &str) -> Result<Option<File>, RepositoryError> {
        if self.parents(name)?.is_none() {
            return Ok(None);
        }
        // Not through a link, and without waiting for whoever writes into a named pipe.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(self.path(name));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(self.strange(name, &self.path(name))),
            Err(error) => return Err(self.fault(&format!("read {name}"), error)),
        };
        match file.metadata() {
            Ok(is) if is.is_file() => Ok(Some(file)),
            Ok(_) => Err(self.strange(name, &self.path(name))),
            Err(error) => Err(self.fault(&format!("read {name}"), error)),
        }
    }

    /// Every file below the folder that `prefix` names up to its last `/`.
    pub(super) fn files_under(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        let doing = format!("list {prefix}");
        let fault = |error| self.fault(&doing, error);
        let (start, _) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        // `start/x` only to ask for the folders on its way; no object has a name that is refused here.
        if !start.is_empty() && (components(start).is_none() || self.parents(&format!("{start}/x"))?.is_none()) {
            return Ok(Vec::new());
        }
        let (mut found, mut folders) = (Vec::new(), vec![start.to_owned()]);
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(self.root.join(&folder)) {
                Ok(entries) => entries,
                // Its last object was deleted since.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_empty() => continue,
                Err(error) => return Err(fault(error)),
            };
            for entry in entries {
                let entry = entry.map_err(fault)?;
                let file = entry.file_name();
                if folder.is_empty() && (file == OWN || file == "lost+found") {
                    continue;
                }
                let name = joined(&folder, &file);
                let is = match entry.metadata() {
                    Ok(is) => is,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(fault(error)),
                };
                if is.is_dir() {
                    folders.push(name);
                } else if is.is_symlink() {
                    // Objects may be behind it, and a listing is whole or fails.
                    return Err(self.strange(&name, &entry.path()));
                } else if is.is_file() {
                    found.push(Listed { name, bytes: is.len(), written: written(&is) });
                }
            }
        }
        Ok(found)
    }

    /// Writes and syncs a file that has no name of its own yet.
    pub(super) fn write_temporary(&self, content: &[u8]) -> io::Result<Temporary> {
        let mut random = [0; 12];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = self.root.join(OWN).join("tmp").join(hex::encode(random));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let temporary = Temporary { path };
        file.write_all(content)?;
        file.sync_all()?;
        self.sweep(&file.metadata()?);
        Ok(temporary)
    }

    /// Clears what killed writers left. Ages are by the folder's clock, as the newest file has it: ours may differ.
    fn sweep(&self, newest: &Metadata) {
        let now = newest.mtime();
        if now - self.swept.load(Ordering::Relaxed) < SWEEP_SECS {
            return;
        }
        self.swept.store(now, Ordering::Relaxed);
        let Ok(entries) = fs::read_dir(self.root.join(OWN).join("tmp")) else { return };
        for entry in entries.flatten() {
            if entry.metadata().is_ok_and(|is| is.is_file() && now - is.mtime() > STALE_SECS) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn on_the_way(&self, name: &str) -> Result<Vec<PathBuf>, RepositoryError> {
        let Some(mut parts) = components(name) else {
            let detail = "it is no name for an object in a folder".to_owned();
            return Err(RepositoryError::Refused { doing: format!("use {}", name.escape_debug()), detail });
        };
        parts.pop();
        let mut at = self.root.clone();
        let step = |part: &str| {
            at.push(part);
            at.clone()
        };
        Ok(parts.into_iter().map(step).collect())
    }

    fn strange(&self, name: &str, path: &Path) -> RepositoryError {
        let detail = format!(
            "{} is a link, or neither a file nor a folder, and is not followed\nhint: put the thing itself in its place; to use another disk, mount it as the whole repository",
            path.display()
        );
        RepositoryError::Refused { doing: format!("use {name}"), detail }
    }

    pub(super) fn fault(&self, doing: &str, error: io::Error) -> RepositoryError {
        fault(doing, &self.root, error)
    }
}

/// The parts of a name, when it is one that stays below the root.
fn components(name: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = name.split('/').collect();
    let plain = |part: &&str| !part.is_empty() && *part != "." && *part != ".." && !part.contains('\0');
    (parts.iter().all(plain) && parts[0] != OWN).then_some(parts)
}

fn joined(folder: &str, file: &OsStr) -> String {
    // What is not UTF-8 is no name of ours; it is shown as well as it can be.
    let file = file.to_string_lossy();
    if folder.is_empty() { file.into_owned() } else { format!("{folder}/{file}") }
}

fn written(is: &Metadata) -> Timestamp {
    Timestamp::new(is.mtime(), i32::try_from(is.mtime_nsec()).unwrap_or_default()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Makes a folder that only its owner may enter, and makes that durable. One that is there is left as it is.
fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn read_marker(doing: &str, root: &Path) -> Result<String, RepositoryError> {
    let failed = |error| fault(doing, root, error);
    let refused = |detail: String| Err(RepositoryError::Refused { doing: doing.to_owned(), detail });
    let text = match small_file::read_text(&root.join(OWN).join("repository"), small_file::KEY_MAX_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refused(format!(
                "{} is no repository: it has no {OWN}/repository\nhint: is its disk mounted?\nhint: is the path right?",
                root.display()
            ));
        }
        Err(error) => return Err(failed(error)),
    };
    match text.lines().next() {
        Some(FORMAT) => Ok(text),
        other => refused(format!(
            "{} is a repository of another form: `{}`\nhint: use the Mainstay that wrote it, or a newer one",
            root.display(),
            other.unwrap_or_default().chars().take(60).collect::<String>().escape_debug()
        )),
    }
}

/// Whether these credentials, this mount or an attribute of the file forbid it.
pub(super) fn denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
}

fn fault(doing: &str, root: &Path, error: io::Error) -> RepositoryError {
    let (doing, root) = (doing.to_owned(), root.display());
    match error.raw_os_error() {
        // Only a hard link is refused like this on a disk that one may write to.
        Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS) => {
            let detail = format!(
                "{error}\nhint: the file system of {root} must have hard links and locks, as ext4, xfs, btrfs, zfs and NFS have"
            );
            RepositoryError::Refused { doing, detail }
        }
        Some(libc::EACCES) => {
            let detail = format!(
                "{error}\nhint: {root} must belong to the user that Mainstay runs as (id {})",
                nix::unistd::geteuid()
            );
            RepositoryError::Refused { doing, detail }
        }
        Some(libc::EROFS) => {
            let detail = format!("{error}\nhint: {root} is mounted for reading only");
            RepositoryError::Refused { doing, detail }
        }
        Some(libc::ENOTDIR) => {
            let detail = format!(
                "{error}\nhint: {root} must be a folder, and so must all before the last part of an object's name"
            );
            RepositoryError::Refused { doing, detail }
        }
        Some(libc::ENAMETOOLONG | libc::ELOOP | libc::EISDIR) => {
            RepositoryError::Refused { doing, detail: error.to_string() }
        }
        Some(libc::ENOSPC | libc::EDQUOT) => {
            let detail = format!("{error}\nhint: make room on the disk of {root}, or keep less");
            RepositoryError::Unreachable { doing, detail }
        }
        _ if error.kind() == io::ErrorKind::NotADirectory => {
            RepositoryError::Refused { doing, detail: format!("{root} is not a folder") }
        }
        _ if error.kind() == io::ErrorKind::NotFound => {
            let detail = format!("{error}\nhint: is the disk of {root} mounted?");
            RepositoryError::Unreachable { doing, detail }
        }
        _ => RepositoryError::Unreachable { doing, detail: error.to_string() },
    }
}
