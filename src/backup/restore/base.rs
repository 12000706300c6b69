//! The base: its chunks into the data directory and the tablespaces, many at once, and `pg_control` last.

use super::RestoreError;
use super::fetch::{Fetch, Opened};
use super::place::{Place, give, give_all, sync};
use super::plan::{Plan, PlannedObject};
use super::settings::{write, write_bytes};
use crate::backup::catalog::manifest::{ChunkPlace, Index};
use crate::backup::repository::{Archive, Item, Key};
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
    for space in plan.tablespaces.values() {
        place.tablespace(space, force)?;
    }
    let index = read_index(fetch, plan).await?;
    let mut held = chunks(fetch, plan, &index, place).await?;
    if !held.contains_key(PG_CONTROL.as_bytes()) {
        // An earlier run wrote the chunk that it is in, and did not come as far as writing it down.
        place.done.clear();
        held = chunks(fetch, plan, &index, place).await?;
    }
    let control = held.remove(PG_CONTROL.as_bytes());
    let control = control.ok_or_else(|| RestoreError::Incomplete(format!("the backup has no {PG_CONTROL}")))?;
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

async fn read_index(fetch: &Fetch, plan: &Plan) -> Result<Index, RestoreError> {
    let opened = open(fetch, &plan.index).await?;
    fetch.progress.base(plan.index.stored_bytes);
    serde_json::from_slice(&opened.bytes).map_err(|error| {
        RestoreError::Incomplete(format!("the index of backup {} does not read: {error}", plan.base.backup))
    })
}

/// Reads an object of the base, and makes sure that it is the one that the manifest means.
async fn open(fetch: &Fetch, object: &PlannedObject) -> Result<Opened, RestoreError> {
    let opened = fetch.open(&object.key, object.stored_bytes, object.plain_bytes).await?;
    if opened.seal.plain.bytes != object.plain_bytes || opened.seal.plain.sha256 != object.plain_sha256 {
        return Err(RestoreError::Incomplete(format!(
            "{} is not the object that the backup's manifest names",
            object.key
        )));
    }
    Ok(opened)
}

/// Unpacks every chunk that is not done; gives the files that were held back.
async fn chunks(
    fetch: &Fetch,
    plan: &Plan,
    index: &Index,
    place: &mut Place,
) -> Result<BTreeMap<Vec<u8>, Withheld>, RestoreError> {
    let mut roots: BTreeMap<Archive, PathBuf> =
        plan.tablespaces.iter().map(|(oid, path)| (Archive::Tablespace(*oid), path.clone())).collect();
    roots.insert(Archive::Base, place.data.clone());
    let withheld = BTreeSet::from([PG_CONTROL.as_bytes().to_vec(), TABLESPACE_MAP.as_bytes().to_vec()]);
    let target = Target { roots, withheld, owner: place.owner() };
    let unpacker = Arc::new(Unpacker::new(target, index, &plan.base.archives).map_err(unpack)?);
    let places: BTreeMap<(Archive, u32), &ChunkPlace> =
        index.chunks.iter().map(|chunk| ((chunk.archive, chunk.number), chunk)).collect();
    let last = plan.base.archives.iter().find(|facts| facts.archive == Archive::Base).map_or(0, |facts| facts.chunks);
    let mut running = JoinSet::new();
    for object in &plan.chunks {
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
    chunk: ChunkPlace,
    unpacker: Arc<Unpacker>,
) -> Result<String, RestoreError> {
    let opened = open(&fetch, &object).await?;
    let written = tokio::task::spawn_blocking(move || {
        let written = unpacker.chunk(&chunk, &opened.bytes);
        // Before the caller is told: whoever waits for all of them is then alone with it.
        drop((unpacker, opened));
        written
    });
    written.await.map_err(|error| RestoreError::io("unpack", std::io::Error::other(error)))?.map_err(unpack)?;
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
