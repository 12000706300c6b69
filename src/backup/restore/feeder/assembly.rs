//! One segment of the log, put together in its file out of the objects that hold its parts.

use super::stage::{Stage, io};
use crate::backup::restore::RestoreError;
use crate::backup::restore::fetch::Opening;
use crate::backup::restore::plan::{LogPart, PlannedSegment};
use crate::backup::restore::tail::{Expected, check_header};
use crate::model::Lsn;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// One segment being put together in its file.
pub(super) struct Assembly {
    stage: Stage,
    segment: PlannedSegment,
    expected: Expected,
    file: File,
    path: PathBuf,
    /// The byte after the last one that is there.
    filled: Lsn,
}

impl Assembly {
    pub(super) fn new(stage: &Stage, segment: &PlannedSegment, expected: Expected) -> Result<Assembly, RestoreError> {
        let path = stage.wal(&format!("{}.new", segment.name));
        let file = stage.create(&path)?;
        // The server takes files of exactly this length; what no part covers reads as zeros.
        file.set_len(expected.segment_size.bytes()).map_err(io("write", &path))?;
        Ok(Assembly { stage: stage.clone(), segment: segment.clone(), expected, file, path, filled: segment.begins })
    }

    /// Writes the bytes of a part behind those that are there. Where both have a byte, they must have the same. `first` is the
    /// first byte of the object that holds it.
    pub(super) fn add(&mut self, part: &LogPart, first: Lsn, mut opening: Opening<'_>) -> Result<(), RestoreError> {
        let differs = |what: &str| RestoreError::Pieces { key: part.key.to_string(), detail: what.to_owned() };
        let holds = opening.seal().plain.bytes;
        if first.0 + holds < part.last.0 || (*opening.key() == part.key && first.0 + holds > part.last.0) {
            return Err(differs("it has not the length that its name says"));
        }
        let until = part.until.min(self.segment.ends);
        if part.first > self.filled || part.first < self.segment.begins || until <= part.first {
            return Err(differs("it does not join the part of the log before it"));
        }
        // What the object holds before the part and behind it is read past: it counts once its end was seen.
        let (mut at, known) = (first.0, self.filled.0);
        while let Some(piece) = opening.next()? {
            let of_piece = |lsn: u64| usize::try_from(lsn.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            let (from, old, to) = (of_piece(part.first.0), of_piece(known), of_piece(until.0));
            if from < to {
                let place = at + from as u64 - self.segment.begins.0;
                let (there, new) = piece[from..to].split_at(old.clamp(from, to) - from);
                if !self.holds(place, there).map_err(io("read", &self.path))? {
                    return Err(differs("it holds other bytes than the part of the log before it, for the same place"));
                }
                self.file.write_all_at(new, place + there.len() as u64).map_err(io("write", &self.path))?;
            }
            at += piece.len() as u64;
        }
        self.filled = self.filled.max(until);
        Ok(())
    }

    /// Whether the file has these bytes at this place.
    fn holds(&self, place: u64, bytes: &[u8]) -> std::io::Result<bool> {
        let mut there = vec![0; bytes.len()];
        self.file.read_exact_at(&mut there, place)?;
        Ok(there == bytes)
    }

    pub(super) fn end(self, name: &str) -> Result<(), RestoreError> {
        if self.filled != self.segment.ends {
            let detail = format!("the parts of {name} end at {}, not at {}", self.filled, self.segment.ends);
            return Err(RestoreError::Pieces { key: name.to_owned(), detail });
        }
        let mut head = [0; 40];
        self.file.read_exact_at(&mut head, 0).map_err(io("read", &self.path))?;
        check_header(&head, self.segment.begins, self.segment.name.timeline, self.expected)
            .map_err(|source| RestoreError::Log { segment: name.to_owned(), source })?;
        self.stage.ready(name, &self.file)
    }
}
