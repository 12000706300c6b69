//! Puts a backup that is a difference on top of the one it is the difference to, in place.
//!
//! A data directory enters that is that of the earlier backup, and the unpacked difference; it leaves as the data directory of
//! the later one. Called by `restore`, once for each difference of a chain, oldest first, on threads that may block. What it does is
//! what `pg_combinebackup` does, but changed pages are written into the file where it lies, and all other files are moved: the
//! cost is that of the difference, not that of the whole.
//!
//! Source of the form: `backup/basebackup_incremental.c` and `pg_combinebackup/reconstruct.c` of PostgreSQL 17.

use super::unpack::Written;
use crate::backup::repository::Archive;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// How long a file of a relation gets on a server that was not built otherwise (`segment_size`), in bytes.
pub const USUAL_SEGMENT_BYTES: u64 = 1 << 30;

/// What the name of a file with changed pages begins with.
const PREFIX: &[u8] = b"INCREMENTAL.";
/// `INCREMENTAL_MAGIC`.
const MAGIC: u32 = 0xD3AE_1F0D;
/// Pages that follow one another are copied in runs of this many bytes at most.
const RUN_BYTES: usize = 1 << 20;
/// A label has some ten short lines.
const LABEL_LIMIT: u64 = 1 << 20;

/// How a server keeps its relations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// The length of a page in bytes: `block_size`.
    pub page_bytes: u32,
    /// How long a file gets: `segment_size`, [`USUAL_SEGMENT_BYTES`] on nearly all.
    pub segment_bytes: u64,
}

/// Why a difference cannot be put on top. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum CombineError {
    /// A file could not be read or written.
    #[error("combine backups: {doing} {}: {error}", .path.display())]
    Io {
        /// What was done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// A file of the difference is not what it should be.
    #[error("combine backups: {}: {what}", .path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The difference is one to another backup.
    #[error("combine backups: {0}")]
    NotNext(String),
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CombineError {
    move |error| CombineError::Io { doing, path: path.to_owned(), error }
}

fn damaged(path: &Path, what: impl Into<String>) -> CombineError {
    CombineError::Damaged { path: path.to_owned(), what: what.into() }
}

/// Makes the data directory of the later backup out of that of the earlier one, in place.
///
/// `onto` has the folders of the earlier backup's archives, and a new folder for each archive that only the later one has. `difference`
/// has the folders of the unpacked difference, best on the same file systems; it is used up. Both have their
/// `backup_label`. Names in `keep`, at the top of each folder, are left as they are. Nothing is synced: the answer names what
/// was written.
///
/// Interrupted, it may be called again with the difference unpacked anew.
///
/// # Errors
/// When the difference is not one to this backup, is damaged, or something cannot be written. Then `onto` is neither backup.
pub fn combine(
    onto: &BTreeMap<Archive, PathBuf>,
    difference: &BTreeMap<Archive, PathBuf>,
    pages: Pages,
    keep: &BTreeSet<OsString>,
) -> Result<Written, CombineError> {
    let base = |of: &BTreeMap<Archive, PathBuf>| {
        of.get(&Archive::Base)
            .cloned()
            .ok_or_else(|| CombineError::NotNext("no folder is given for the data directory".into()))
    };
    let place = base(onto)?.join("backup_label");
    let label = next_label(&place, &base(difference)?.join("backup_label"))?;
    let mut of_base = keep.clone();
    of_base.insert("backup_label".into());

    let mut work = Work { pages, written: Written::default() };
    for (archive, from) in difference {
        let missing = || CombineError::NotNext(format!("no folder is given for archive {archive}"));
        let to = onto.get(archive).ok_or_else(missing)?;
        let keep = if *archive == Archive::Base { &of_base } else { keep };
        work.folder(from, to, *archive, Path::new(""), keep)?;
    }
    // Tablespaces that were dropped in between.
    for (_, gone) in onto.iter().filter(|(archive, _)| !difference.contains_key(archive)) {
        work.sweep(gone, keep)?;
    }
    // Last: until then this is no whole backup.
    fs::write(&place, label).map_err(io("write", &place))?;
    work.written.files.push(place);
    Ok(work.written)
}

struct Work {
    pages: Pages,
    written: Written,
}

impl Work {
    /// Brings one folder to what the difference says, and those below it.
    fn folder(
        &mut self,
        from: &Path,
        to: &Path,
        archive: Archive,
        path: &Path,
        keep: &BTreeSet<OsString>,
    ) -> Result<(), CombineError> {
        let mut names = keep.clone();
        let has_pages = holds_relations(archive, path);
        for name in list(from)?.into_iter().filter(|name| !keep.contains(name)) {
            let source = from.join(&name);
            let found = source.symlink_metadata().map_err(io("look at", &source))?;
            let stripped = name.as_bytes().strip_prefix(PREFIX).filter(|rest| !rest.is_empty());
            let last = match stripped {
                Some(rest) if has_pages && found.is_file() => OsStr::from_bytes(rest).to_owned(),
                _ => name.clone(),
            };
            let target = to.join(&last);
            if last != name {
                self.patch(&source, &found, &target)?;
            } else if found.is_dir() {
                make_folder(&target, &found)?;
                self.folder(&source, &target, archive, &path.join(&name), &BTreeSet::new())?;
            } else {
                replace(&source, &found, &target)?;
                if found.is_file() {
                    self.written.files.push(target);
                }
            }
            if !names.insert(last) {
                return Err(damaged(&source, "it is there whole and as a difference"));
            }
        }
        self.written.folders.insert(to.to_owned());
        self.sweep(to, &names)
    }

    /// Removes what the later backup has no more.
    fn sweep(&mut self, folder: &Path, names: &BTreeSet<OsString>) -> Result<(), CombineError> {
        for name in list(folder)?.into_iter().filter(|name| !names.contains(name)) {
            let path = folder.join(name);
            let folder = path.symlink_metadata().map_err(io("look at", &path))?.is_dir();
            let removed = if folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(io("remove", &path))?;
        }
        self.written.folders.insert(folder.to_owned());
        Ok(())
    }

    /// Writes the pages of an incremental file into the earlier file.
    fn patch(&mut self, source: &Path, found: &Metadata, target: &Path) -> Result<(), CombineError> {
        let from = File::open(source).map_err(io("open", source))?;
        let header = Header::read(&from, found.len(), source, self.pages)?;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(target);
        let file = opened.map_err(io("open the earlier", target))?;
        let size = u64::from(self.pages.page_bytes);
        let was = file.metadata().map_err(io("look at", target))?;
        if !was.is_file() || !was.len().is_multiple_of(size) {
            return Err(damaged(target, "the earlier file is no row of pages"));
        }
        // What lay beyond was cut off in between; where the file is longer again, its pages are in the difference, or zero.
        let kept = u64::from(header.kept) * size;
        if was.len() > kept {
            file.set_len(kept).map_err(io("shorten", target))?;
        }
        file.set_len(u64::from(header.length) * size).map_err(io("lengthen", target))?;

        let mut buffer = Vec::new();
        let mut numbers = &header.numbers[..];
        let mut at = header.bytes;
        while let Some(first) = numbers.first() {
            let most = (RUN_BYTES / size as usize).max(1);
            let run = numbers.iter().take(most).zip(*first..).take_while(|(number, next)| *number == next).count();
            buffer.resize(run * size as usize, 0);
            from.read_exact_at(&mut buffer, at).map_err(io("read", source))?;
            file.write_all_at(&buffer, u64::from(*first) * size).map_err(io("write", target))?;
            at += buffer.len() as u64;
            numbers = &numbers[run..];
            self.written.bytes += buffer.len() as u64;
        }
        if was.mode() != found.mode() {
            file.set_permissions(found.permissions()).map_err(io("set the mode of", target))?;
        }
        self.written.files.push(target.to_owned());
        Ok(())
    }
}

/// The head of an incremental file: magic, count, kept length, page numbers; then zeros up to a whole page when pages follow.
struct Header {
    /// Below this page number, what is not in the difference is as it was.
    kept: u32,
    /// The pages in it, going up.
    numbers: Vec<u32>,
    /// How many pages the file has in the end.
    length: u32,
    /// Its own length.
    bytes: u64,
}

impl Header {
    fn read(file: &File, length: u64, path: &Path, pages: Pages) -> Result<Header, CombineError> {
        let mut head = [0; 12];
        file.read_exact_at(&mut head, 0).map_err(io("read", path))?;
        // Files are written in the order of bytes of their server; only servers with this one are restored here.
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (magic, count, kept) = (word(0), word(4), word(8));
        if magic != MAGIC {
            return Err(damaged(path, format!("it begins with {magic:08x}, not with the mark of an incremental file")));
        }
        let limit = u32::try_from(pages.segment_bytes / u64::from(pages.page_bytes)).unwrap_or(u32::MAX);
        if count > limit {
            return Err(damaged(path, format!("it says that it has {count} pages; no file has more than {limit}")));
        }
        let page_bytes = u64::from(pages.page_bytes);
        let head_bytes = 12 + 4 * u64::from(count);
        let bytes = if count == 0 { head_bytes } else { head_bytes.next_multiple_of(page_bytes) };
        let whole = bytes + u64::from(count) * page_bytes;
        if length != whole {
            return Err(damaged(path, format!("it has {length} bytes; with {count} pages it has {whole}")));
        }
        let mut list = vec![0; count as usize * 4];
        file.read_exact_at(&mut list, 12).map_err(io("read", path))?;
        let numbers: Vec<u32> = list.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        if !numbers.is_sorted_by(|a, b| a < b) || numbers.last().is_some_and(|last| *last >= limit) {
            return Err(damaged(path, "its page numbers do not go up, or go too far"));
        }
        // For a relation of several files some servers write here where the whole relation was cut. No file is longer than a
        // segment, so that what is meant is the end of this one.
        let kept = kept.min(limit);
        let length = numbers.last().map_or(kept, |last| kept.max(last + 1));
        Ok(Header { kept, numbers, length, bytes })
    }
}

/// Only relations come as pages; anywhere else a file of such a name is one that somebody called so.
fn holds_relations(archive: Archive, path: &Path) -> bool {
    archive != Archive::Base || path.starts_with("base") || path.starts_with("global")
}

fn list(folder: &Path) -> Result<Vec<OsString>, CombineError> {
    let entries = fs::read_dir(folder).map_err(io("list", folder))?;
    let names: io::Result<Vec<OsString>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    names.map_err(io("list", folder))
}

/// A folder of the same mode and owner.
fn make_folder(target: &Path, like: &Metadata) -> Result<(), CombineError> {
    match target.symlink_metadata() {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(target).map_err(io("remove", target))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io("look at", target)(error)),
    }
    fs::create_dir(target).map_err(io("make", target))?;
    fs::set_permissions(target, like.permissions()).map_err(io("set the mode of", target))?;
    own(target, like)
}

/// Puts a file or link in the place of whatever was there.
fn replace(source: &Path, found: &Metadata, target: &Path) -> Result<(), CombineError> {
    if target.symlink_metadata().is_ok_and(|there| there.is_dir()) {
        fs::remove_dir_all(target).map_err(io("remove", target))?;
    }
    match fs::rename(source, target) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices && found.is_file() => {
            // Not through a link that may be there.
            match fs::remove_file(target) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("remove", target)(error)),
                _ => {}
            }
            fs::copy(source, target).map_err(io("copy to", target))?;
            own(target, found)
        }
        other => other.map_err(io("move to", target)),
    }
}

fn own(target: &Path, like: &Metadata) -> Result<(), CombineError> {
    let now = target.symlink_metadata().map_err(io("look at", target))?;
    if (now.uid(), now.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    std::os::unix::fs::lchown(target, Some(like.uid()), Some(like.gid())).map_err(io("give away", target))
}

/// Where a label says that its backup begins, and that which it is the difference to.
struct Label {
    start: (Vec<u8>, Vec<u8>),
    parent: Option<(Vec<u8>, Vec<u8>)>,
    /// It, as that of a whole backup.
    whole: Vec<u8>,
}

/// The label of the later backup as that of a whole one, when it is the difference to the earlier one.
fn next_label(earlier: &Path, later: &Path) -> Result<Vec<u8>, CombineError> {
    let (before, after) = (label(earlier)?, label(later)?);
    let show = |(place, timeline): &(Vec<u8>, Vec<u8>)| {
        format!("{} on timeline {}", place.escape_ascii(), timeline.escape_ascii())
    };
    let Some(parent) = &after.parent else {
        return Err(CombineError::NotNext(format!("{} is of a whole backup, not of a difference", later.display())));
    };
    // Called again after it had come to its end.
    let repeated = before.start == after.start;
    if before.parent.is_some() || (*parent != before.start && !repeated) {
        return Err(CombineError::NotNext(format!(
            "the backup from {} is the difference to one from {}, not to that from {}",
            show(&after.start),
            show(parent),
            show(&before.start)
        )));
    }
    Ok(after.whole)
}

fn label(path: &Path) -> Result<Label, CombineError> {
    let length = path.symlink_metadata().map_err(io("look at", path))?.len();
    if length > LABEL_LIMIT {
        return Err(damaged(path, "it is too long for a label"));
    }
    let text = fs::read(path).map_err(io("read", path))?;
    let value = |name: &str| {
        let mut lines = text.split(|byte| *byte == b'\n');
        // `START WAL LOCATION: 0/2000028 (file …)`: the first word is the value.
        let rest = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b": "))?;
        Some(rest.split(|byte| *byte == b' ').next()?.to_vec())
    };
    let missing = || damaged(path, "it does not say where the backup begins");
    let start = value("START WAL LOCATION").zip(value("START TIMELINE")).ok_or_else(missing)?;
    let parent = value("INCREMENTAL FROM LSN").zip(value("INCREMENTAL FROM TLI"));
    let lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"INCREMENTAL FROM "));
    let whole = lines.flatten().copied().collect();
    Ok(Label { start, parent, whole })
}

#[cfg(test)]
#[path = "combine_tests.rs"]
mod tests;
