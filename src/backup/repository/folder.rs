//! A repository in a folder: a disk of its own, or a network mount.
//!
//! | in the folder | what it is |
//! |---|---|
//! | `NAME` | an object, byte for byte |
//! | `NAME.seal` | its receipt, as JSON |
//! | `.mainstay/repository` | says that this is a repository, and which one |
//! | `.mainstay/tmp/`, `.mainstay/lock/` | files that are being written; locks |
//!
//! An object is written under a temporary name, synced, and linked to its own name, receipt first: a reader sees nothing
//! or all of it, and of two writers one is told. Whoever is killed leaves temporary files and at most a receipt without an
//! object; neither is listed, and the next writer replaces the one and in time clears the other.
//!
//! A disk that is not mounted must never look like a repository that holds nothing. So a folder counts only with its
//! marker, [`Folder::open`] never makes one, and every call looks whether the marker is still the one seen at first.
//! Names inside are never followed through symbolic links.

mod lock;
mod place;

use super::{Abilities, Deleted, Key, Leased, Listed, Put, Replaced, Repository, RepositoryError, Stored};
use crate::backup::seal::{Extent, Receipt, Sealed};
use async_trait::async_trait;
use bytes::Bytes;
use lock::Lock;
use place::Place;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Goes behind an object's name and makes the name of its receipt.
const SEAL: &str = ".seal";
/// Nothing that Mainstay stores is larger; what says that it is, is damaged. A segment is 1 GiB at most.
const BYTES_MAX: u64 = 2 << 30;
/// A receipt is about 1 KiB.
const RECEIPT_BYTES_MAX: u64 = 64 << 10;
/// How often a read begins anew because the object was deleted and written again in the middle of it.
const TRIES: usize = 5;

/// A folder as a repository. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Folder {
    place: Arc<Place>,
}

impl Folder {
    /// The repository at `path`.
    ///
    /// # Errors
    /// When there is none: then its disk may not be mounted, and nothing is made. See [`Folder::create`].
    pub fn open(path: impl AsRef<Path>) -> Result<Folder, RepositoryError> {
        Ok(Folder { place: Arc::new(Place::open(path.as_ref())?) })
    }

    /// The repository at `path`; makes one when there is no such folder or nothing in it.
    ///
    /// For the moment somebody says that they want a new repository here, not for every start.
    ///
    /// # Errors
    /// When it cannot be made, or something else is in the folder.
    pub fn create(path: impl AsRef<Path>) -> Result<Folder, RepositoryError> {
        Ok(Folder { place: Arc::new(Place::create(path.as_ref())?) })
    }

    /// Runs `act` where it may wait for the disk.
    async fn there<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Place) -> Result<T, RepositoryError> + Send + 'static,
    ) -> Result<T, RepositoryError> {
        let place = Arc::clone(&self.place);
        let done = tokio::task::spawn_blocking(move || act(&place)).await;
        done.unwrap_or_else(|error| {
            Err(RepositoryError::Unreachable { doing: "use the repository".to_owned(), detail: error.to_string() })
        })
    }
}

#[async_trait]
impl Repository for Folder {
    fn place(&self) -> String {
        self.place.root.display().to_string()
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.place.root)
    }

    async fn abilities(&self) -> Result<Abilities, RepositoryError> {
        self.there(|place| {
            place.here("use the repository")?;
            Ok(Abilities { write_once: true, replace_if: true, object_lock: false })
        })
        .await
    }

    async fn put_new(&self, key: &Key, object: &Sealed) -> Result<Put, RepositoryError> {
        let (name, object) = (key.to_string(), object.clone());
        self.there(move |place| put_new(place, &name, &object)).await
    }

    async fn get(&self, key: &Key) -> Result<Stored, RepositoryError> {
        let (name, lease) = (key.to_string(), matches!(key, Key::Lease(_)));
        self.there(move |place| {
            // The lease alone is replaced, and is looked at when nobody is doing that.
            let _lock = lease.then(|| Lock::to_read(place, &name)).transpose()?;
            get(place, &name)
        })
        .await
    }

    async fn receipt(&self, key: &Key) -> Result<Receipt, RepositoryError> {
        let (name, lease) = (key.to_string(), matches!(key, Key::Lease(_)));
        self.there(move |place| {
            let _lock = lease.then(|| Lock::to_read(place, &name)).transpose()?;
            receipt(place, &name)
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        let prefix = prefix.to_owned();
        self.there(move |place| list(place, &prefix)).await
    }

    async fn delete(&self, key: &Key) -> Result<Deleted, RepositoryError> {
        let name = key.to_string();
        self.there(move |place| delete(place, &name)).await
    }

    async fn lease(&self, key: &Key) -> Result<Option<Leased>, RepositoryError> {
        let name = key.to_string();
        self.there(move |place| {
            let _lock = Lock::to_read(place, &name)?;
            read_lease(place, &name)
        })
        .await
    }

    async fn replace_lease(&self, key: &Key, object: &Sealed, seen: Option<&str>) -> Result<Replaced, RepositoryError> {
        let (name, object, seen) = (key.to_string(), object.clone(), seen.map(str::to_owned));
        self.there(move |place| replace_lease(place, &name, &object, seen.as_deref())).await
    }
}

fn put_new(place: &Place, name: &str, object: &Sealed) -> Result<Put, RepositoryError> {
    let doing = format!("store {name}");
    let fault = |error| place.fault(&doing, error);
    fits(&doing, object)?;
    place.here(&doing)?;
    // Most repetitions end here, without a second copy on the disk.
    if let Some(put) = there_already(place, name, object)? {
        return Ok(put);
    }
    let bytes = place.write_temporary(&object.bytes).map_err(fault)?;
    let receipt = place.write_temporary(&receipt_text(&object.receipt)).map_err(fault)?;
    let at = place.path(name);
    loop {
        let parents = place.make_parents(name)?;
        let _lock = Lock::to_write(place, name)?;
        if let Some(put) = there_already(place, name, object)? {
            return Ok(put);
        }
        // A receipt without an object is a killed writer's, and no reader has looked at it.
        match fs::rename(&receipt.path, seal_of(&at)) {
            // Somebody deleted the last object beside it and the folder with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !parents.are_there() => continue,
            other => other.map_err(fault)?,
        }
        // Synced in between, so that no crash keeps the object and loses what says what it is.
        parents.sync().map_err(fault)?;
        fs::hard_link(&bytes.path, &at).map_err(fault)?;
        parents.sync().map_err(fault)?;
        return Ok(Put::Stored);
    }
}

/// What is to be said when an object of this name is there.
fn there_already(place: &Place, name: &str, object: &Sealed) -> Result<Option<Put>, RepositoryError> {
    let doing = format!("store {name}");
    let found = match receipt(place, name) {
        Ok(found) => found,
        Err(RepositoryError::Absent { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    // Its writer may have been killed before it was durable, and what we answer says that it is.
    let at = place.path(name);
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
    sync(&at)
        .and_then(|()| sync(&seal_of(&at)))
        .and_then(|()| sync(parent(&at)))
        .map_err(|e| place.fault(&doing, e))?;
    if found != object.receipt {
        return Ok(Some(Put::Exists(found)));
    }
    // The same receipt: an earlier try of ours, if the bytes are there too.
    get(place, name)?;
    Ok(Some(Put::Stored))
}

fn get(place: &Place, name: &str) -> Result<Stored, RepositoryError> {
    let doing = format!("read {name}");
    let fault = |error| place.fault(&doing, error);
    let damaged = |detail: String| RepositoryError::Damaged { name: name.to_owned(), detail };
    for _ in 0..TRIES {
        let (mut file, bytes, receipt) = opened(place, name)?;
        let extent = stored(name, &receipt)?;
        if bytes != extent.bytes {
            return Err(damaged(format!("{bytes} bytes long instead of {}", extent.bytes)));
        }
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
        // One more than there should be, to notice what grew behind our back.
        (&mut file).take(bytes + 1).read_to_end(&mut content).map_err(fault)?;
        let found = Stored::new(Bytes::from(content), receipt);
        if *found.extent() == extent {
            return Ok(found);
        }
        // Deleted and written again between the two opens: then another file has the name now.
        if !replaced(&file, &place.path(name)).map_err(fault)? {
            return Err(damaged("its content is not what its receipt names".to_owned()));
        }
    }
    Err(RepositoryError::Unreachable { doing, detail: format!("it changed {TRIES} times while it was read") })
}

fn receipt(place: &Place, name: &str) -> Result<Receipt, RepositoryError> {
    let (_, bytes, receipt) = opened(place, name)?;
    let extent = stored(name, &receipt)?;
    if bytes != extent.bytes {
        let detail = format!("{bytes} bytes long instead of {}", extent.bytes);
        return Err(RepositoryError::Damaged { name: name.to_owned(), detail });
    }
    Ok(receipt)
}

/// An object's file, its length and its receipt.
fn opened(place: &Place, name: &str) -> Result<(File, u64, Receipt), RepositoryError> {
    let doing = format!("read {name}");
    let fault = |error| place.fault(&doing, error);
    let damaged = |detail: String| RepositoryError::Damaged { name: name.to_owned(), detail };
    let absent = || RepositoryError::Absent { name: name.to_owned() };
    for _ in 0..TRIES {
        place.here(&doing)?;
        let Some(file) = place.open_file(name)? else { return Err(absent()) };
        let bytes = file.metadata().map_err(fault)?.len();
        if bytes > BYTES_MAX {
            return Err(damaged(format!("{bytes} bytes long, more than anything that Mainstay stores")));
        }
        let Some(seal) = place.open_file(&format!("{name}{SEAL}"))? else {
            // Between an object's removal and its receipt's.
            if replaced(&file, &place.path(name)).map_err(fault)? {
                continue;
            }
            return Err(damaged(format!("its receipt {name}{SEAL} is missing")));
        };
        let mut text = Vec::new();
        seal.take(RECEIPT_BYTES_MAX).read_to_end(&mut text).map_err(fault)?;
        let receipt = serde_json::from_slice(&text).map_err(|e| damaged(format!("its receipt does not read: {e}")))?;
        return Ok((file, bytes, receipt));
    }
    Err(absent())
}

/// Whether `path` no longer names this open file.
fn replaced(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(now) => Ok((now.dev(), now.ino()) != (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn list(place: &Place, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
    place.here(&format!("list {prefix}"))?;
    let mut found = place.files_under(prefix)?;
    found.retain(|listed| !listed.name.ends_with(SEAL) && listed.name.starts_with(prefix));
    found.sort_by(|a, b| a.name.cmp(&b.name));
    // A disk that went away in the middle gives a short listing without an error.
    place.here(&format!("list {prefix}"))?;
    Ok(found)
}

fn delete(place: &Place, name: &str) -> Result<Deleted, RepositoryError> {
    let doing = format!("delete {name}");
    place.here(&doing)?;
    let Some(parents) = place.parents(name)? else { return Ok(Deleted::Absent) };
    let _lock = match Lock::to_write(place, name) {
        // Not even a lock may be written here: a mount to read from.
        Err(RepositoryError::Refused { .. }) if place.open_file(name)?.is_some() => return Ok(Deleted::Locked),
        other => other?,
    };
    let at = place.path(name);
    // The object first: what is left by a kill is a receipt alone, which is nothing.
    let was = match gone(&at) {
        Ok(was) => was,
        Err(error) if place::denied(&error) => return Ok(Deleted::Locked),
        Err(error) => return Err(place.fault(&doing, error)),
    };
    parents.sync().map_err(|error| place.fault(&doing, error))?;
    gone(&seal_of(&at)).map_err(|error| place.fault(&doing, error))?;
    parents.remove_empty();
    Ok(if was { Deleted::Gone } else { Deleted::Absent })
}

fn read_lease(place: &Place, name: &str) -> Result<Option<Leased>, RepositoryError> {
    match get(place, name) {
        Ok(stored) => {
            let version = stored.extent().sha256.clone();
            Ok(Some(Leased { stored, version }))
        }
        Err(RepositoryError::Absent { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Two files cannot be replaced in one act. The old lease goes first: killed in between, there is none, which only frees
/// what its holder was writing anew or somebody was allowed to take over.
fn replace_lease(place: &Place, name: &str, object: &Sealed, seen: Option<&str>) -> Result<Replaced, RepositoryError> {
    let doing = format!("replace {name}");
    let fault = |error| place.fault(&doing, error);
    fits(&doing, object)?;
    place.here(&doing)?;
    let bytes = place.write_temporary(&object.bytes).map_err(fault)?;
    let receipt = place.write_temporary(&receipt_text(&object.receipt)).map_err(fault)?;
    let parents = place.make_parents(name)?;
    let _lock = Lock::to_write(place, name)?;
    let now = read_lease(place, name)?;
    if now.as_ref().map(|lease| lease.version.as_str()) != seen {
        return Ok(Replaced::Changed);
    }
    let at = place.path(name);
    gone(&at).map_err(fault)?;
    parents.sync().map_err(fault)?;
    fs::rename(&receipt.path, seal_of(&at)).map_err(fault)?;
    parents.sync().map_err(fault)?;
    fs::hard_link(&bytes.path, &at).map_err(fault)?;
    parents.sync().map_err(fault)?;
    Ok(Replaced::Done)
}

/// Whether the receipt is about these bytes, as far as a glance tells: a fault of the caller's, found before it is stored.
fn fits(doing: &str, object: &Sealed) -> Result<(), RepositoryError> {
    let refused = |detail: String| RepositoryError::Refused { doing: doing.to_owned(), detail };
    let seal = object.receipt.unchecked().map_err(|error| refused(error.to_string()))?;
    if seal.stored.bytes != object.bytes.len() as u64 {
        return Err(refused(format!("its receipt is of {} bytes, it has {}", seal.stored.bytes, object.bytes.len())));
    }
    Ok(())
}

fn stored(name: &str, receipt: &Receipt) -> Result<Extent, RepositoryError> {
    let seal = receipt.unchecked();
    let damaged = |error: crate::backup::seal::SealError| RepositoryError::Damaged {
        name: name.to_owned(),
        detail: error.to_string(),
    };
    Ok(seal.map_err(damaged)?.stored)
}

fn receipt_text(receipt: &Receipt) -> Vec<u8> {
    serde_json::to_vec(receipt).expect("two strings are always JSON")
}

fn seal_of(object: &Path) -> PathBuf {
    let mut name = object.as_os_str().to_owned();
    name.push(SEAL);
    PathBuf::from(name)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// Removes a file; whether there was one.
fn gone(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
