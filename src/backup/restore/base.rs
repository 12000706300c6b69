//! The base: its chunks into the data directory and the tablespaces, many at once, and `pg_control` last. Where it is a
//! difference, what it is the difference to comes first, oldest first, and each is put on top of the one before.

use super::fetch::Fetch;
use super::place::{Place, give, give_all, sync};
use super::plan::{Plan, PlannedObject};
use super::settings::{write, write_bytes};
use super::{RestoreError, chain, room};
use crate::backup::catalog::manifest::{ArchiveFacts, ChunkPlace, Index, Manifest};
use crate::backup::repository::{Archive, Item, Key};
use crate::backup::seal::Seal;
use crate::backup::take::{Target, Unpacker, Withheld};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Without it no server starts, so it is put in place when everything else is there and synced.
const PG_CONTROL: &str = "global/pg_control";
/// Where tablespaces are; written anew when one of them goes elsewhere.
const TABLESPACE_MAP: &str = "tablespace_map";

/// Chunks handed to the fetching side at once: each waits there for its share of the memory.
const WAITING: usize = 32;

fn unpack(error: crate::backup::take::UnpackError) -> RestoreError {
    RestoreError::Unpack(error)
}

/// Puts the whole base in place; what an earlier run of the same plan has done is not done again.
pub(super) async fn restore(fetch: &Fetch, plan: &Plan, place: &mut Place, force: bool) -> Result<(), RestoreError> {
    for (oid, space) in &plan.tablespaces {
        place.tablespace(*oid, space, force)?;
    }
    let mut roots: BTreeMap<Archive, PathBuf> =
        plan.tablespaces.iter().map(|(oid, path)| (Archive::Tablespace(*oid), path.clone())).collect();
    roots.insert(Archive::Base, place.data.clone());
    let below = plan.ancestors.iter();
    let below: Vec<Part<'_>> =
        below.map(|one| Part { manifest: &one.manifest, chunks: &one.chunks, index: &one.index }).collect();
    let newest = Part { manifest: &plan.base, chunks: &plan.chunks, index: &plan.index };
    if !below.first().unwrap_or(&newest).is_begun(place) {
        room::check(roots.iter().filter_map(|(archive, root)| Some((&**root, *plan.room.get(archive)?))))?;
    }

    for (number, part) in below.iter().enumerate() {
        let line = chain::in_place(&part.manifest.backup);
        if place.done.contains(&line) {
            fetch.progress.base(part.stored_bytes());
            continue;
        }
        put(fetch, part, &roots, number > 0, place).await?;
        place.note(&line)?;
        crate::failpoint!("restore-ancestor-in-place");
    }
    let (mut held, control) = put(fetch, &newest, &roots, !below.is_empty(), place).await?;
    if !below.is_empty() {
        chain::check_label(&place.data, plan.base.start)?;
    }
    tablespaces(plan, place, held.remove(TABLESPACE_MAP.as_bytes()))?;
    give_all(&place.data, place.owner())?;
    durable(plan, place, &control).await
}

/// Everything synced, then `pg_control`, then the word that the base is complete.
async fn durable(plan: &Plan, place: &mut Place, control: &Withheld) -> Result<(), RestoreError> {
    let folders: Vec<PathBuf> = std::iter::once(place.data.clone()).chain(plan.tablespaces.values().cloned()).collect();
    let synced = tokio::task::spawn_blocking(move || sync(&folders)).await;
    synced.map_err(|error| RestoreError::io("sync", std::io::Error::other(error)))??;
    crate::failpoint!("restore-base-synced");
    write_bytes(&place.data.join(PG_CONTROL), place.owner(), control.mode, &control.bytes)?;
    crate::failpoint!("restore-control-written");
    place.base_complete()
}

/// One backup of a chain; the only one, mostly.
struct Part<'a> {
    manifest: &'a Manifest,
    chunks: &'a [PlannedObject],
    index: &'a PlannedObject,
}

impl Part<'_> {
    fn stored_bytes(&self) -> u64 {
        self.chunks.iter().chain([self.index]).map(|object| object.stored_bytes).sum()
    }

    /// Whether an earlier run has unpacked anything of it.
    fn is_begun(&self, place: &Place) -> bool {
        self.chunks.iter().any(|object| place.done.contains(&object.key.to_string()))
    }

    /// Lets all of it be unpacked again.
    fn forget(&self, place: &mut Place) {
        for object in self.chunks {
            place.done.remove(&object.key.to_string());
        }
    }
}

/// Unpacks a backup, a difference beside the others and then on top of them; gives what was held back, and its `pg_control`.
async fn put(
    fetch: &Fetch,
    part: &Part<'_>,
    roots: &BTreeMap<Archive, PathBuf>,
    difference: bool,
    place: &mut Place,
) -> Result<(BTreeMap<Vec<u8>, Withheld>, Withheld), RestoreError> {
    let Manifest { backup, archives, server, .. } = part.manifest;
    let archives: Vec<ArchiveFacts> =
        archives.iter().filter(|facts| roots.contains_key(&facts.archive)).cloned().collect();
    let mut into = roots.clone();
    if difference {
        into = chain::beside(roots, &archives.iter().map(|facts| facts.archive).collect());
        if place.done.contains(&chain::begun(backup)) {
            // Files of it were moved and pages of it written, maybe not all: it is put on top once more, from its beginning.
            part.forget(place);
        }
        if !part.is_begun(place) {
            chain::make(&into, place.owner())?;
        }
    }
    let mut index = read_index(fetch, part).await?;
    // Tablespaces that are dropped by the end of the chain are not fetched.
    index.chunks.retain(|chunk| roots.contains_key(&chunk.archive));
    let mut held = chunks(fetch, part, &index, &archives, &into, place).await?;
    if !held.contains_key(PG_CONTROL.as_bytes()) {
        // An earlier run wrote the chunk that it is in, and did not come as far as writing it down.
        part.forget(place);
        held = chunks(fetch, part, &index, &archives, &into, place).await?;
    }
    let control = held.remove(PG_CONTROL.as_bytes());
    let control = control.ok_or_else(|| RestoreError::Incomplete(format!("backup {backup} has no {PG_CONTROL}")))?;
    if difference {
        chain::put_on_top(place, backup, server, roots, into).await?;
    }
    Ok((held, control))
}

async fn read_index(fetch: &Fetch, part: &Part<'_>) -> Result<Index, RestoreError> {
    let object = part.index;
    let (seal, bytes) = fetch.open(&object.key, object.stored_bytes, object.plain_bytes).await?;
    is_meant(object, &seal)?;
    fetch.progress.base(object.stored_bytes);
    serde_json::from_slice(&bytes).map_err(|error| {
        RestoreError::Incomplete(format!("the index of backup {} does not read: {error}", part.manifest.backup))
    })
}

/// Makes sure that an object of the base is the one that the manifest means.
fn is_meant(object: &PlannedObject, seal: &Seal) -> Result<(), RestoreError> {
    match seal.plain.bytes == object.plain_bytes && seal.plain.sha256 == object.plain_sha256 {
        true => Ok(()),
        false => {
            Err(RestoreError::Incomplete(format!("{} is not the object that the backup's manifest names", object.key)))
        }
    }
}

/// Unpacks every chunk that is not done; gives the files that were held back.
async fn chunks(
    fetch: &Fetch,
    part: &Part<'_>,
    index: &Index,
    archives: &[ArchiveFacts],
    roots: &BTreeMap<Archive, PathBuf>,
    place: &mut Place,
) -> Result<BTreeMap<Vec<u8>, Withheld>, RestoreError> {
    let withheld = BTreeSet::from([PG_CONTROL.as_bytes().to_vec(), TABLESPACE_MAP.as_bytes().to_vec()]);
    let target = Target { roots: roots.clone(), withheld, owner: place.owner() };
    let unpacker = Arc::new(Unpacker::new(target, index, archives).map_err(unpack)?);
    let places: BTreeMap<(Archive, u32), &ChunkPlace> =
        index.chunks.iter().map(|chunk| ((chunk.archive, chunk.number), chunk)).collect();
    let last = archives.iter().find(|facts| facts.archive == Archive::Base).map_or(0, |facts| facts.chunks);
    let mut running = JoinSet::new();
    for object in part.chunks {
        let Key::Of(_, Item::Chunk { archive, number, .. }) = &object.key else { continue };
        // What is held back is held in memory. Servers send `tablespace_map` first and `pg_control` last.
        let holds = *archive == Archive::Base && (*number == 0 || *number + 1 >= last);
        if place.done.contains(&object.key.to_string()) && !holds {
            fetch.progress.base(object.stored_bytes);
            continue;
        }
        let chunk = places.get(&(*archive, *number)).copied().cloned();
        let chunk = chunk.ok_or_else(|| RestoreError::Incomplete(format!("the index does not name {}", object.key)))?;
        while running.len() >= WAITING {
            ended(running.join_next().await, place)?;
        }
        running.spawn(one(fetch.clone(), object.clone(), chunk, unpacker.clone()));
    }
    while let Some(done) = running.join_next().await {
        ended(Some(done), place)?;
    }
    let unpacker =
        Arc::into_inner(unpacker).ok_or_else(|| RestoreError::Incomplete("a chunk is still being written".into()))?;
    Ok(unpacker.finish().map_err(unpack)?.0)
}

async fn one(
    fetch: Fetch,
    object: PlannedObject,
    place: ChunkPlace,
    unpacker: Arc<Unpacker>,
) -> Result<String, RestoreError> {
    let fetched = fetch.fetch(&object.key, object.stored_bytes).await?;
    let planned = object.clone();
    let written = fetch.take(fetched, move |mut opening| {
        is_meant(&planned, opening.seal())?;
        let mut chunk = unpacker.begin(&place).map_err(unpack)?;
        while let Some(piece) = opening.next()? {
            chunk.write(piece).map_err(unpack)?;
        }
        chunk.end().map_err(unpack)
    });
    written.await?;
    fetch.progress.base(object.stored_bytes);
    Ok(object.key.to_string())
}

fn ended(
    done: Option<Result<Result<String, RestoreError>, tokio::task::JoinError>>,
    place: &mut Place,
) -> Result<(), RestoreError> {
    let Some(done) = done else { return Ok(()) };
    let key = done.map_err(|error| RestoreError::io("unpack", std::io::Error::other(error)))??;
    place.chunk_done(&key)?;
    crate::failpoint!("restore-chunk-done");
    Ok(())
}

/// The links in `pg_tblspc`, and the map that a recovering server makes them from again.
fn tablespaces(plan: &Plan, place: &Place, map: Option<Withheld>) -> Result<(), RestoreError> {
    let moved = plan.tablespaces.iter().any(|(oid, path)| {
        plan.base.archives.iter().any(|facts| {
            facts.archive == Archive::Tablespace(*oid) && facts.location.as_deref().map(Path::new) != Some(path)
        })
    });
    let path = place.data.join(TABLESPACE_MAP);
    match map {
        Some(map) if !moved => write_bytes(&path, place.owner(), map.mode, &map.bytes)?,
        _ if plan.tablespaces.is_empty() => {}
        _ => write(&path, place.owner(), &map_of(&plan.tablespaces))?,
    }
    let folder = place.data.join("pg_tblspc");
    for (oid, space) in &plan.tablespaces {
        let link = folder.join(oid.to_string());
        let doing = || format!("link {}", link.display());
        match fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(RestoreError::io(doing(), error)),
            _ => {}
        }
        std::os::unix::fs::symlink(space, &link).map_err(|error| RestoreError::io(doing(), error))?;
        give(&link, place.owner())?;
    }
    Ok(())
}

/// As servers write it: a line each, with a backslash before line breaks and backslashes.
fn map_of(tablespaces: &BTreeMap<u32, PathBuf>) -> String {
    let mut text = String::new();
    for (oid, path) in tablespaces {
        let path = path.to_string_lossy().replace('\\', "\\\\").replace('\n', "\\\n").replace('\r', "\\\r");
        text += &format!("{oid} {path}\n");
    }
    text
}
