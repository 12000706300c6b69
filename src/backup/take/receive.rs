//! Takes a base backup off the server: every event in its order, archives into chunks, chunks on their way.
//!
//! What is out of order, cut short, or lacks what a restore needs is an error: no stream that is only nearly right becomes
//! a backup.

use super::chunks::{CHUNK_BYTES, Chunk, Chunker};
use super::stow::Stow;
use super::{BaseStream, Phase, Progress, TakeError, Telling};
use crate::backup::catalog::manifest::{ArchiveFacts, Index};
use crate::backup::repository::{Archive, BackupId, Cluster, Item, Key};
use crate::backup::source::postgres::BaseEvent;
use crate::model::{Lsn, Timeline};
use bytes::Bytes;
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;

/// The longest manifest of a server that is taken, in bytes: about 1.7 million files. It is held in memory, and stored as one object.
const SERVER_MANIFEST_LIMIT: usize = 256 << 20;

/// The stream's first event, taken apart.
#[derive(Debug, Clone)]
pub(super) struct Begun {
    pub(super) start: Lsn,
    pub(super) timeline: Timeline,
    pub(super) archives: Vec<(Archive, Option<String>)>,
    pub(super) estimated_bytes: Option<u64>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) stop: Lsn,
    pub(super) stop_timeline: Timeline,
    pub(super) archives: Vec<ArchiveFacts>,
    pub(super) index: Index,
    pub(super) server_manifest: Bytes,
}

/// Where the chunks go, and what they are called.
pub(super) struct Way<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) backup: &'a BackupId,
    pub(super) stow: &'a mut Stow,
    pub(super) tell: &'a Telling,
}

struct Receiving<'a> {
    way: Way<'a>,
    estimated_bytes: Option<u64>,
    coming: VecDeque<(Archive, Option<String>)>,
    /// The archive that is being received.
    now: Option<(ArchiveFacts, Chunker)>,
    tablespaces: bool,
    archives: Vec<ArchiveFacts>,
    index: Index,
    server_manifest: Vec<u8>,
    received: u64,
}

/// Receives what follows `begun`, to the end.
///
/// # Errors
/// When the stream fails, is not whole, or a chunk cannot be stored.
pub(super) async fn receive(events: &mut BaseStream, begun: &Begun, way: Way<'_>) -> Result<Received, TakeError> {
    let mut receiving = Receiving {
        way,
        estimated_bytes: begun.estimated_bytes,
        coming: begun.archives.iter().cloned().collect(),
        now: None,
        tablespaces: begun.archives.len() > 1,
        archives: Vec::new(),
        index: Index::default(),
        server_manifest: Vec::new(),
        received: 0,
    };
    while let Some(event) = events.next().await {
        match event? {
            BaseEvent::Begin { .. } => return Err(out_of_order("it begins twice")),
            BaseEvent::Archive(archive) => receiving.archive(archive).await?,
            BaseEvent::Data(bytes) => receiving.data(&bytes).await?,
            BaseEvent::ServerManifest(bytes) => receiving.manifest(&bytes).await?,
            BaseEvent::End { stop, timeline } => {
                let received = receiving.end(stop, timeline, begun).await?;
                return match events.next().await {
                    None => Ok(received),
                    Some(Err(error)) => Err(error.into()),
                    Some(Ok(_)) => Err(out_of_order("something follows its end")),
                };
            }
        }
    }
    Err(out_of_order("it stops before its end"))
}

fn out_of_order(what: &str) -> TakeError {
    TakeError::OutOfOrder(what.to_owned())
}

impl Receiving<'_> {
    async fn archive(&mut self, archive: Archive) -> Result<(), TakeError> {
        self.close().await?;
        if !self.server_manifest.is_empty() {
            return Err(out_of_order("an archive follows the manifest"));
        }
        let next = self.coming.pop_front().filter(|(next, _)| *next == archive);
        let (archive, location) =
            next.ok_or_else(|| out_of_order("an archive comes that was not announced as the next"))?;
        let facts = ArchiveFacts { archive, location, chunks: 0, bytes: 0 };
        let chunker = Chunker::new(archive, CHUNK_BYTES).map_err(|error| TakeError::Archive { archive, error })?;
        self.now = Some((facts, chunker));
        Ok(())
    }

    async fn data(&mut self, mut bytes: &[u8]) -> Result<(), TakeError> {
        self.received += bytes.len() as u64;
        while !bytes.is_empty() {
            let (facts, chunker) = self.now.as_mut().ok_or_else(|| out_of_order("data come outside of an archive"))?;
            let archive = facts.archive;
            if let Some(chunk) = chunker.push(&mut bytes).map_err(|error| TakeError::Archive { archive, error })? {
                self.lay(chunk).await?;
            }
        }
        Ok(())
    }

    /// Ends the archive that is being received.
    async fn close(&mut self) -> Result<(), TakeError> {
        let Some((mut facts, chunker)) = self.now.take() else { return Ok(()) };
        let archive = facts.archive;
        if archive == Archive::Base {
            // Without these a server starts as if it had crashed, from the wrong place, or without its tablespaces.
            let needed: &[&str] = &["backup_label", "global/pg_control", "tablespace_map"];
            for name in &needed[..if self.tablespaces { 3 } else { 2 }] {
                if !chunker.has(name.as_bytes()) {
                    return Err(TakeError::OutOfOrder(format!("the archive of the data directory holds no `{name}`")));
                }
            }
        }
        let (chunk, whole) = chunker.finish().map_err(|error| TakeError::Archive { archive, error })?;
        self.lay(chunk).await?;
        (facts.chunks, facts.bytes) = (whole.chunks, whole.bytes);
        self.archives.push(facts);
        Ok(())
    }

    async fn lay(&mut self, chunk: Chunk) -> Result<(), TakeError> {
        let (archive, number) = (chunk.place.archive, chunk.place.number);
        self.index.chunks.push(chunk.place);
        let item = Item::Chunk { backup: self.way.backup.clone(), archive, number };
        self.way.stow.lay(Key::Of(self.way.cluster.clone(), item), chunk.bytes).await?;
        let (received_bytes, estimated_bytes, stored_bytes) =
            (self.received, self.estimated_bytes, self.way.stow.stored);
        (self.way.tell)(Progress { phase: Phase::Receiving, received_bytes, estimated_bytes, stored_bytes });
        Ok(())
    }

    async fn manifest(&mut self, bytes: &[u8]) -> Result<(), TakeError> {
        self.close().await?;
        if !self.coming.is_empty() {
            return Err(out_of_order("its manifest comes before its archives"));
        }
        if self.server_manifest.len() + bytes.len() > SERVER_MANIFEST_LIMIT {
            return Err(out_of_order("its manifest is longer than 256 MiB"));
        }
        self.server_manifest.extend_from_slice(bytes);
        Ok(())
    }

    async fn end(mut self, stop: Lsn, stop_timeline: Timeline, begun: &Begun) -> Result<Received, TakeError> {
        self.close().await?;
        if !self.coming.is_empty() {
            return Err(out_of_order("an archive that was announced did not come"));
        }
        if stop <= begun.start || stop_timeline < begun.timeline {
            return Err(out_of_order("it ends before it began"));
        }
        check_manifest(&self.server_manifest)?;
        Ok(Received {
            stop,
            stop_timeline,
            archives: self.archives,
            index: self.index,
            server_manifest: self.server_manifest.into(),
        })
    }
}

/// The manifest's last line is the SHA-256 of all lines before it. Source: the manual's "Backup Manifest Format".
fn check_manifest(manifest: &[u8]) -> Result<(), TakeError> {
    const LAST: &[u8] = b"\"Manifest-Checksum\": \"";
    let wrong = || out_of_order("the server's manifest of it is not whole");
    let place = manifest.windows(LAST.len()).rposition(|window| window == LAST).ok_or_else(wrong)?;
    let said = manifest[place + LAST.len()..].strip_suffix(b"\"}\n").ok_or_else(wrong)?;
    let sum = hex::encode(Sha256::digest(&manifest[..place]));
    (said == sum.as_bytes()).then_some(()).ok_or_else(wrong)
}
