//! Writes chunks of a base backup into folders, in any order and many at once.
//!
//! A chunk's plain bytes enter with its place; files leave, each at its length and every byte at its offset, whoever came
//! first. Called by `restore`, on threads that may block. Nothing is ever written outside the folder of its archive: names that lead out are
//! refused, and no link that an archive brings is followed.

mod write;

use super::chunks::CHUNK_LIMIT;
use super::tar::{Event, Member, Reader, Stand, TarError, shown};
use crate::backup::catalog::manifest::{ArchiveFacts, ChunkPlace, Index};
use crate::backup::repository::Archive;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use write::Writer;

/// Where a backup goes.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// The folder of each archive. They exist, are empty, and nobody else writes there.
    pub roots: BTreeMap<Archive, PathBuf>,
    /// Files of the data directory that are not written but handed back, such as `global/pg_control`.
    pub withheld: BTreeSet<Vec<u8>>,
    /// User and group that everything is given to; needs the rights of root. Without: whoever runs this.
    pub owner: Option<(u32, u32)>,
}

/// What one chunk made. The caller decides when they are synced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// Files that it wrote to.
    pub files: Vec<PathBuf>,
    /// Folders that it made or put something into.
    pub folders: BTreeSet<PathBuf>,
    /// Bytes of content that it wrote.
    pub bytes: u64,
}

/// A file that was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Why a backup cannot be unpacked. `Display` fits after "failed to unpack: ".
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The index of the backup does not fit its manifest, or itself.
    #[error("the index of the backup is no index of its archives: {0}")]
    Index(String),
    /// A chunk is not what the index says.
    #[error("chunk {number} of archive {archive}: {what}")]
    Chunk {
        /// Of which archive.
        archive: Archive,
        /// Its number there.
        number: u32,
        /// What does not fit.
        what: String,
    },
    /// A chunk does not read.
    #[error("chunk {number} of archive {archive}: {error}")]
    Tar {
        /// Of which archive.
        archive: Archive,
        /// Its number there.
        number: u32,
        /// What is wrong.
        error: TarError,
    },
    /// Something could not be written.
    #[error("write {}: {error}{}", .path.display(), hint(.error))]
    Write {
        /// What.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// A file to be handed back did not come whole.
    #[error("`{0}` is not whole: a part of it did not come")]
    Missing(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP | Errno::ENOTDIR) => "\nhint: the path leads through a link, which is never followed",
        Some(Errno::ENOSPC | Errno::EDQUOT) => "\nhint: make room, or restore to another place with `--target DIR`",
        Some(Errno::EPERM) => "\nhint: files are given to another user only by root",
        _ => "",
    }
}

/// A chunk that is to come.
#[derive(Debug)]
struct Expected {
    place: ChunkPlace,
    bytes: u64,
    /// How the next one begins; `None` after the last one.
    next: Option<ChunkPlace>,
}

#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    mode: Option<u32>,
    /// Where each part that came begins, and its length.
    parts: BTreeMap<u64, u64>,
}

/// Writes chunks. See the head of this file.
#[derive(Debug)]
pub struct Unpacker {
    roots: BTreeMap<Archive, (PathBuf, OwnedFd)>,
    withheld: BTreeSet<Vec<u8>>,
    owner: Option<(Uid, Gid)>,
    expected: BTreeMap<(Archive, u32), Expected>,
    held: Mutex<BTreeMap<Vec<u8>, Held>>,
    /// Hard links by archive and place: what they lead to may come later.
    links: Mutex<BTreeMap<(Archive, u64), Member>>,
    /// Modes of files that even their owner may not write to: later chunks have to.
    modes: Mutex<BTreeMap<(Archive, Vec<u8>), u32>>,
}

impl Unpacker {
    /// Checks the index and opens the folders.
    ///
    /// # Errors
    /// When the index does not fit the archives, or a folder is missing.
    pub fn new(target: Target, index: &Index, archives: &[ArchiveFacts]) -> Result<Unpacker, UnpackError> {
        let expected = expect(index, archives)?;
        let mut roots = BTreeMap::new();
        for facts in archives {
            let root = target.roots.get(&facts.archive);
            let root = root.ok_or_else(|| UnpackError::Index(format!("no folder is given for {}", facts.archive)))?;
            let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let opened = open(root, flags, Mode::empty())
                .map_err(|error| UnpackError::Write { path: root.clone(), error: error.into() })?;
            roots.insert(facts.archive, (root.clone(), opened));
        }
        Ok(Unpacker {
            roots,
            withheld: target.withheld,
            owner: target.owner.map(|(user, group)| (Uid::from_raw(user), Gid::from_raw(group))),
            expected,
            held: Mutex::default(),
            links: Mutex::default(),
            modes: Mutex::default(),
        })
    }

    /// Begins to write what a chunk holds; its plain bytes then go to [`Chunk::write`], and [`Chunk::end`] says that it was
    /// all. Many may be under way at once, in any order, and one may be written again. When every chunk of an archive was
    /// ended without an error, every file of it is whole: each must end as the next one begins.
    ///
    /// # Errors
    /// When the index does not name the chunk, or something cannot be written.
    pub fn begin(&self, place: &ChunkPlace) -> Result<Chunk<'_>, UnpackError> {
        let (archive, number) = (place.archive, place.number);
        let wrong = |what: &str| UnpackError::Chunk { archive, number, what: what.to_owned() };
        let expected = self.expected.get(&(archive, number)).filter(|expected| expected.place == *place);
        let expected = expected.ok_or_else(|| wrong("the index does not name it"))?;
        let (root, opened) = self.roots.get(&archive).ok_or_else(|| wrong("no folder is given for it"))?;
        let reader = Reader::at(place.offset, place.continues.as_ref());
        let reader = reader.map_err(|error| UnpackError::Tar { archive, number, error })?;
        let mut writer = Writer::new(self, archive, root, opened);
        if let Some(continues) = &place.continues {
            writer.go_on(continues)?;
        }
        Ok(Chunk { expected, reader, writer, bytes: 0 })
    }

    /// Makes the hard links, gives files that nobody may write to their modes, and hands back what was withheld, by name.
    /// Call it when every chunk is written.
    ///
    /// # Errors
    /// When a link leads out of its archive or to nothing, or a withheld file did not come whole.
    pub fn finish(self) -> Result<(BTreeMap<Vec<u8>, Withheld>, Written), UnpackError> {
        let mut written = Written::default();
        let links = std::mem::take(&mut *self.links.lock().unwrap_or_else(PoisonError::into_inner));
        for ((archive, _), member) in &links {
            let Some((root, opened)) = self.roots.get(archive) else { continue };
            let mut writer = Writer::new(&self, *archive, root, opened);
            writer.hard_link(member)?;
            written.folders.append(&mut writer.written.folders);
        }
        let modes = std::mem::take(&mut *self.modes.lock().unwrap_or_else(PoisonError::into_inner));
        for ((archive, path), mode) in &modes {
            let Some((root, opened)) = self.roots.get(archive) else { continue };
            Writer::new(&self, *archive, root, opened).mode(path, *mode)?;
        }
        let mut back = BTreeMap::new();
        for (path, held) in self.held.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let whole = held.parts.values().sum::<u64>() == held.bytes.len() as u64;
            let Some(mode) = held.mode.filter(|_| whole) else { return Err(UnpackError::Missing(shown(&path))) };
            back.insert(path, Withheld { bytes: held.bytes, mode });
        }
        Ok((back, written))
    }
}

/// A chunk that is being written.
pub struct Chunk<'a> {
    expected: &'a Expected,
    reader: Reader,
    writer: Writer<'a>,
    /// How many came.
    bytes: u64,
}

impl Chunk<'_> {
    /// Writes what these bytes hold, which follow those before.
    ///
    /// # Errors
    /// When they are more than the index says, are no archive, or something cannot be written.
    pub fn write(&mut self, plain: &[u8]) -> Result<(), UnpackError> {
        self.bytes += plain.len() as u64;
        if self.bytes > self.expected.bytes {
            return Err(self.wrong(format!("it has more than {} bytes", self.expected.bytes)));
        }
        let mut rest = plain;
        while let Some(event) = self.reader.next(&mut rest).map_err(|error| self.expected.tar(error))? {
            match event {
                Event::Member(member) => self.writer.begin(member)?,
                Event::Content { at, bytes } => self.writer.content(at, bytes)?,
            }
        }
        Ok(())
    }

    /// Says that it was all.
    ///
    /// # Errors
    /// When it is not the chunk that the index means.
    pub fn end(mut self) -> Result<Written, UnpackError> {
        if self.bytes != self.expected.bytes {
            return Err(self.wrong(format!("it has {} bytes and should have {}", self.bytes, self.expected.bytes)));
        }
        self.writer.leave();
        match (&self.expected.next, self.reader.stand()) {
            (None, _) => self.reader.finish().map_err(|error| self.expected.tar(error))?,
            (Some(next), Stand::Header { since }) if since == next.offset && next.continues.is_none() => {}
            (Some(next), Stand::Inside(there)) if next.continues.as_ref() == Some(&there) => {}
            (Some(_), there) => {
                tracing::debug!(?there, expected = ?self.expected, "a chunk ends elsewhere");
                return Err(self.wrong("it does not end where the next one begins".into()));
            }
        }
        Ok(self.writer.written)
    }

    fn wrong(&self, what: String) -> UnpackError {
        UnpackError::Chunk { archive: self.expected.place.archive, number: self.expected.place.number, what }
    }
}

impl Expected {
    fn tar(&self, error: TarError) -> UnpackError {
        UnpackError::Tar { archive: self.place.archive, number: self.place.number, error }
    }
}

/// What the index says, once it is checked against the archives.
fn expect(index: &Index, archives: &[ArchiveFacts]) -> Result<BTreeMap<(Archive, u32), Expected>, UnpackError> {
    let wrong = |what: String| UnpackError::Index(what);
    let mut places: BTreeMap<Archive, Vec<&ChunkPlace>> = BTreeMap::new();
    for place in &index.chunks {
        places.entry(place.archive).or_default().push(place);
    }
    let mut expected = BTreeMap::new();
    for facts in archives {
        let archive = facts.archive;
        let places = places.remove(&archive).unwrap_or_default();
        if places.len() != facts.chunks as usize || places.is_empty() {
            return Err(wrong(format!("{} chunks of archive {archive} instead of {}", places.len(), facts.chunks)));
        }
        for (number, place) in places.iter().enumerate() {
            let next = places.get(number + 1);
            let bytes = next.map_or(facts.bytes, |next| next.offset).checked_sub(place.offset);
            let bytes = bytes.filter(|bytes| (1..=CHUNK_LIMIT as u64).contains(bytes));
            let begins = number > 0 || (place.offset == 0 && place.continues.is_none());
            let (Some(bytes), true, true) = (bytes, place.number as usize == number, begins) else {
                return Err(wrong(format!("chunk {number} of archive {archive} cannot begin at {}", place.offset)));
            };
            let next = next.map(|next| (*next).clone());
            expected.insert((archive, place.number), Expected { place: (*place).clone(), bytes, next });
        }
    }
    match places.keys().next() {
        Some(other) => Err(wrong(format!("archive {other} is not one of the backup's"))),
        None => Ok(expected),
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
