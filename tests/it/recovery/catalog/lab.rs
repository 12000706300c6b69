//! A repository in a folder, keys, and a thin layer before it that tells a time of its own and can be killed.

use async_trait::async_trait;
use jiff::Timestamp;
use mainstay::backup::catalog::expire::{self, ExpireError, expire};
use mainstay::backup::catalog::index::{Catalogue, CatalogueError};
use mainstay::backup::catalog::retention::Policy;
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::repository::{
    Abilities, Cluster, Deleted, Item, Key, Leased, Listed, Put, Replaced, Repository, RepositoryError, Stored,
};
use mainstay::backup::seal::{Checker, Opener, Receipt, Sealed, Sealer, new_key_set};
use mainstay::model::{SourceName, SystemId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What the layer is to do.
#[derive(Default)]
pub(crate) struct Faults {
    /// The time that the place tells for what is written now.
    pub(crate) clock: Timestamp,
    written: HashMap<String, Timestamp>,
    /// Calls since it was set to 0.
    pub(crate) calls: u64,
    /// The process dies at this call, which the place carries out or not.
    pub(crate) dies_at: Option<(u64, bool)>,
    /// Names that a listing leaves out.
    pub(crate) hidden: HashSet<String>,
    /// Names that the next listing leaves out, because they are written right after it.
    pub(crate) later: HashSet<String>,
    /// Names that the place keeps.
    pub(crate) locked: HashSet<String>,
    /// Reads that the place does not answer.
    pub(crate) unreachable: HashSet<String>,
    /// Names that were read as a whole.
    pub(crate) read: Vec<String>,
}

/// The place, seen through the layer.
pub(crate) struct Layer {
    place: Arc<dyn Repository>,
    faults: Mutex<Faults>,
}

enum Fate {
    Lives,
    DiesAfter,
}

impl Layer {
    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }

    /// Counts a call. The dead do nothing any more.
    fn call(&self) -> Result<Fate, RepositoryError> {
        let mut faults = self.faults();
        faults.calls += 1;
        match faults.dies_at {
            Some((at, true)) if faults.calls == at => Ok(Fate::DiesAfter),
            Some((at, _)) if faults.calls >= at => Err(dead()),
            _ => Ok(Fate::Lives),
        }
    }
}

fn dead() -> RepositoryError {
    RepositoryError::Unreachable { doing: "live".into(), detail: "killed".into() }
}

fn unless_dead<T>(fate: &Fate, done: T) -> Result<T, RepositoryError> {
    match fate {
        Fate::Lives => Ok(done),
        Fate::DiesAfter => Err(dead()),
    }
}

#[async_trait]
impl Repository for Layer {
    fn place(&self) -> String {
        self.place.place()
    }
    async fn abilities(&self) -> Result<Abilities, RepositoryError> {
        self.place.abilities().await
    }
    async fn put_new(&self, key: &Key, object: &Sealed) -> Result<Put, RepositoryError> {
        let fate = self.call()?;
        let put = self.place.put_new(key, object).await?;
        if put == Put::Stored {
            let mut faults = self.faults();
            let clock = faults.clock;
            faults.written.insert(key.to_string(), clock);
        }
        unless_dead(&fate, put)
    }
    async fn get(&self, key: &Key) -> Result<Stored, RepositoryError> {
        let fate = self.call()?;
        {
            let mut faults = self.faults();
            if faults.unreachable.contains(&key.to_string()) {
                return Err(RepositoryError::Unreachable {
                    doing: format!("read {key}"),
                    detail: "503, 10 times".into(),
                });
            }
            faults.read.push(key.to_string());
        }
        unless_dead(&fate, self.place.get(key).await?)
    }
    async fn receipt(&self, key: &Key) -> Result<Receipt, RepositoryError> {
        let fate = self.call()?;
        unless_dead(&fate, self.place.receipt(key).await?)
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        let fate = self.call()?;
        let mut listed = self.place.list(prefix).await?;
        let mut faults = self.faults();
        let later = std::mem::take(&mut faults.later);
        listed.retain(|object| !faults.hidden.contains(&object.name) && !later.contains(&object.name));
        for object in &mut listed {
            if let Some(written) = faults.written.get(&object.name) {
                object.written = *written;
            }
        }
        unless_dead(&fate, listed)
    }
    async fn delete(&self, key: &Key) -> Result<Deleted, RepositoryError> {
        let fate = self.call()?;
        if self.faults().locked.contains(&key.to_string()) {
            return Ok(Deleted::Locked);
        }
        unless_dead(&fate, self.place.delete(key).await?)
    }
    async fn lease(&self, key: &Key) -> Result<Option<Leased>, RepositoryError> {
        self.place.lease(key).await
    }
    async fn replace_lease(&self, key: &Key, object: &Sealed, seen: Option<&str>) -> Result<Replaced, RepositoryError> {
        self.place.replace_lease(key, object, seen).await
    }
}

/// A repository with its keys.
pub(crate) struct Lab {
    pub(crate) layer: Layer,
    pub(crate) sealer: Sealer,
    pub(crate) stranger: Sealer,
    pub(crate) checker: Checker,
    pub(crate) opener: Opener,
    pub(crate) cluster: Cluster,
    /// Where a folder is; empty for other places.
    pub(crate) root: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("repository");
        let folder = Arc::new(Folder::create(&root).unwrap());
        Lab { root, _dir: Some(dir), ..Lab::over(folder) }
    }

    /// Another place.
    pub(crate) fn over(place: Arc<dyn Repository>) -> Lab {
        let (keys, other) = (new_key_set().unwrap(), new_key_set().unwrap());
        let sealer = Sealer::new(std::slice::from_ref(&keys.recipient), keys.signing.clone()).unwrap();
        let stranger = Sealer::new(std::slice::from_ref(&keys.recipient), other.signing.clone()).unwrap();
        let checker = Checker::new(vec![keys.signing.public()]);
        let opener = Opener::new(keys.identity.clone(), checker.clone());
        let cluster =
            Cluster { source: SourceName::new("shop-db").unwrap(), system: SystemId(7_432_101_234_567_890_123) };
        let layer = Layer { place, faults: Mutex::default() };
        Lab { layer, sealer, stranger, checker, opener, cluster, root: PathBuf::new(), _dir: None }
    }

    /// A copy of it, as it is now.
    pub(crate) fn fork(&self) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("repository");
        copy(&self.root, &root);
        let faults = self.layer.faults();
        let faults = Faults { clock: faults.clock, written: faults.written.clone(), ..Faults::default() };
        Lab {
            layer: Layer { place: Arc::new(Folder::open(&root).unwrap()), faults: Mutex::new(faults) },
            sealer: self.sealer.clone(),
            stranger: self.stranger.clone(),
            checker: self.checker.clone(),
            opener: self.opener.clone(),
            cluster: self.cluster.clone(),
            root,
            _dir: Some(dir),
        }
    }

    pub(crate) fn key(&self, item: Item) -> Key {
        Key::Of(self.cluster.clone(), item)
    }

    /// Stores an object of this name; it must be new.
    pub(crate) async fn put(&self, key: &Key, plain: &[u8], note: &[(&str, String)]) -> Receipt {
        let note: BTreeMap<String, String> =
            note.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let sealed = self.sealer.seal(key, plain, note).unwrap();
        assert_eq!(self.layer.put_new(key, &sealed).await.unwrap(), Put::Stored, "{key}");
        sealed.receipt
    }

    pub(crate) async fn read(&self) -> Result<Catalogue, CatalogueError> {
        sent(Catalogue::read(&self.layer, &self.checker, &self.cluster.source)).await
    }

    pub(crate) async fn expire(
        &self,
        policy: Policy,
        now: Timestamp,
        dry_run: bool,
    ) -> Result<expire::Report, ExpireError> {
        let settings = expire::Settings { policy, grace: Duration::from_secs(86_400), dry_run, now };
        sent(expire(&self.layer, &self.checker, &self.sealer, &self.cluster.source, settings)).await
    }

    /// Every name that is there.
    pub(crate) async fn names(&self) -> Vec<String> {
        self.layer.place.list("").await.unwrap().into_iter().map(|object| object.name).collect()
    }
}

/// The daemon runs these on any of its threads.
pub(crate) fn sent<F: Future + Send>(future: F) -> F {
    future
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let there = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &there),
            false => drop(std::fs::copy(entry.path(), there).unwrap()),
        }
    }
}
