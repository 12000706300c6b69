//! Cuts an archive into chunks that can each be sealed, stored and unpacked alone.
//!
//! A tar stream enters in pieces of any size; chunks with their places leave. The chunks of an archive, one after the other,
//! are the archive byte for byte: a stock `tar` reads it. No I/O.

use super::tar::{Event, Member, Reader, Stand, TarError, shown};
use crate::backup::catalog::manifest::{ChunkPlace, Continues};
use crate::backup::repository::Archive;
use bytes::Bytes;
use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

/// No chunk is longer than this, in bytes: what a reader has to have room for. Format, not tuning.
pub const CHUNK_LIMIT: usize = 32 << 20;

/// How long chunks are made, in bytes. Half the limit: a chunk is sealed by one core, and while it is, its plain and its sealed
/// bytes are both in memory; of this length, three at once and one that fills stay below 200 MiB even where nothing
/// compresses, and at 3:1 a stored chunk of 5 MiB still makes a request's latency small against its transfer.
pub(super) const CHUNK_BYTES: usize = 16 << 20;

/// A cut moves back to a border between members when that leaves at most an eighth of the chunk: files shorter than that
/// are never cut, and the number of chunks grows by an eighth at most.
const SLACK_DIVISOR: usize = 8;

/// A part of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) place: ChunkPlace,
    pub(super) bytes: Bytes,
}

/// Cuts one archive. See the head of this file.
pub(super) struct Chunker {
    archive: Archive,
    limit: usize,
    reader: Reader,
    /// What the next chunk begins with.
    buffer: Vec<u8>,
    /// Where that begins.
    first: u64,
    continues: Option<Continues>,
    number: u32,
    /// The newest border between members; at or after `first`.
    border: u64,
    /// The names seen so far, as hashes: eight bytes a file. Chunks are unpacked in any order, so that of two members of one name
    /// either could win.
    names: HashSet<u64>,
    hasher: RandomState,
}

/// What is known of a whole archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    /// Its length.
    pub(super) bytes: u64,
    /// How many chunks it makes.
    pub(super) chunks: u32,
}

impl Chunker {
    /// Begins an archive.
    ///
    /// # Errors
    /// Never: its beginning is a border.
    pub(super) fn new(archive: Archive, limit: usize) -> Result<Chunker, TarError> {
        Ok(Chunker {
            archive,
            limit,
            reader: Reader::at(0, None)?,
            buffer: Vec::with_capacity(limit),
            first: 0,
            continues: None,
            number: 0,
            border: 0,
            names: HashSet::new(),
            hasher: RandomState::new(),
        })
    }

    /// Takes bytes up to the next cut off `data`, and gives the chunk when there is one. Call it until `data` is empty.
    ///
    /// # Errors
    /// When the archive is damaged or is not understood.
    pub(super) fn push(&mut self, data: &mut &[u8]) -> Result<Option<Chunk>, TarError> {
        let room = (self.limit - self.buffer.len()).min(data.len());
        let (now, later) = data.split_at(room);
        *data = later;
        self.buffer.extend_from_slice(now);
        let mut rest = now;
        while let Some(event) = self.reader.next(&mut rest)? {
            if let Event::Member(member) = event {
                self.border = member.offset;
                self.once(&member)?;
            }
        }
        if let Stand::Header { since } | Stand::Over { since } = self.reader.stand() {
            self.border = since;
        }
        if self.buffer.len() == self.limit { self.cut().map(Some) } else { Ok(None) }
    }

    /// Ends the archive: its last chunk, and what is known of it now.
    ///
    /// # Errors
    /// When it is not whole.
    pub(super) fn finish(mut self) -> Result<(Chunk, Whole), TarError> {
        self.reader.finish()?;
        let bytes = self.reader.offset();
        // A cut never falls behind the closing zeros, so something is left.
        let chunk = self.chunk(bytes, None);
        Ok((chunk, Whole { bytes, chunks: self.number }))
    }

    /// Whether a member of this name has begun.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.names.contains(&self.hasher.hash_one(path))
    }

    fn once(&mut self, member: &Member) -> Result<(), TarError> {
        if self.names.insert(self.hasher.hash_one(member.path.as_slice())) {
            return Ok(());
        }
        let what = "it is there twice".to_owned();
        Err(TarError::Unknown { offset: member.offset, path: shown(&member.path), what })
    }

    /// Cuts where it costs least. The buffer is full, and its end a whole block.
    fn cut(&mut self) -> Result<Chunk, TarError> {
        let end = self.reader.offset();
        let near = end - self.border <= (self.limit / SLACK_DIVISOR) as u64;
        match self.reader.stand() {
            Stand::Inside(continues) if self.border == self.first || !near => Ok(self.chunk(end, Some(continues))),
            _ if self.border > self.first => Ok(self.chunk(self.border, None)),
            // Headers and closing zeros are far shorter than a chunk.
            _ => Err(TarError::Unknown {
                offset: self.first,
                path: String::new(),
                what: "its headers fill a chunk".to_owned(),
            }),
        }
    }

    /// Takes the chunk up to `end`; what follows it stays for the next.
    fn chunk(&mut self, end: u64, continues: Option<Continues>) -> Chunk {
        let rest = self.buffer.split_off((end - self.first) as usize);
        let bytes = std::mem::replace(&mut self.buffer, Vec::with_capacity(self.limit));
        self.buffer.extend_from_slice(&rest);
        let place = ChunkPlace {
            archive: self.archive,
            number: self.number,
            offset: self.first,
            continues: std::mem::replace(&mut self.continues, continues),
        };
        self.number += 1;
        self.first = end;
        self.border = self.border.max(end);
        Chunk { place, bytes: Bytes::from(bytes) }
    }
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
