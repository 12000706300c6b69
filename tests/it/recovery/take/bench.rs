//! A repository in a folder, with the keys to it, and what is done with backups in these tests.

use crate::support::postgres::Server;
use crate::support::store;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use mainstay::backup::catalog::manifest::{ChunkPlace, Index, Manifest, ServerFacts};
use mainstay::backup::repository::{Archive, Cluster, Item, Key, Repository};
use mainstay::backup::seal::{Checker, KeySet, Opener, Sealer, new_key_set};
use mainstay::backup::source::postgres::{BaseBackup, BaseEvent, BaseOptions, Connection, PostgresError, Purpose};
use mainstay::backup::take::{
    BaseStream, Job, LogSpan, TakeError, Taken, Target, Unpacker, Wish, Withheld, events, take,
};
use mainstay::model::{SegmentSize, SourceName};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(super) struct Bench {
    folder: tempfile::TempDir,
    pub(super) repository: Arc<dyn Repository>,
    keys: KeySet,
    withheld: Mutex<BTreeMap<Vec<u8>, Withheld>>,
}

/// What a server sent.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) archives: Vec<(Archive, Option<String>)>,
    pub(super) bytes: BTreeMap<Archive, Vec<u8>>,
}

/// The plain bytes of a backup.
pub(super) struct Plain {
    pub(super) chunks: Vec<(ChunkPlace, Vec<u8>)>,
    pub(super) index: Index,
    pub(super) server_manifest: Vec<u8>,
}

/// Path to kind, mode, and content or target.
pub(super) type Tree = BTreeMap<PathBuf, (char, u32, Vec<u8>)>;

impl Bench {
    pub(super) async fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let repository = Arc::new(store::folder(&folder.path().join("repository")));
        Bench { folder, repository, keys: new_key_set().unwrap(), withheld: Mutex::default() }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A new folder.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub(super) async fn backup_as(
        &self,
        server: &Server,
        wish: Wish,
        options: BaseOptions,
    ) -> Result<Taken, TakeError> {
        self.backup(server, wish, options, None).await
    }

    /// A backup, and what the server sent for it.
    pub(super) async fn backup_with_events(&self, server: &Server, wish: Wish) -> (Taken, Sent) {
        let sent = Arc::new(Mutex::new(Sent::default()));
        let taken = self.backup(server, wish, BaseOptions::default(), Some(Arc::clone(&sent))).await.unwrap();
        (taken, std::mem::take(&mut *sent.lock().unwrap()))
    }

    async fn backup(
        &self,
        server: &Server,
        wish: Wish,
        options: BaseOptions,
        sent: Option<Arc<Mutex<Sent>>>,
    ) -> Result<Taken, TakeError> {
        let (cluster, facts) = facts(server).await;
        let sealer = Sealer::new(std::slice::from_ref(&self.keys.recipient), self.keys.signing.clone()).unwrap();
        let repository = Arc::clone(&self.repository);
        let job = Job { cluster, server: facts, repository, sealer, wish, tell: Arc::new(|_| {}) };
        let address = server.address();
        let open = move |parent: Option<Bytes>| {
            let (address, options, sent) = (address.clone(), options.clone(), sent.clone());
            async move {
                let connection = Connection::open(&address, None, Purpose::Replication).await?;
                let backup = match parent {
                    None => BaseBackup::start(connection, &options, None).await?,
                    Some(parent) => BaseBackup::start(connection, &options, Some(&mut &parent[..])).await?,
                };
                Ok(record(events(backup), sent))
            }
            .boxed()
        };
        let at_once =
            |_: LogSpan| -> BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>> { async { Ok(()) }.boxed() };
        take(job, open, at_once).await
    }

    pub(super) fn checker(&self) -> Checker {
        Checker::new(vec![self.keys.signing.public()])
    }

    fn opener(&self) -> Opener {
        Opener::new(self.keys.identity.clone(), self.checker())
    }

    /// Opens everything that a manifest names.
    pub(super) async fn plain(&self, manifest: &Manifest) -> Plain {
        let opener = self.opener();
        let mut opened = Vec::new();
        for object in &manifest.objects {
            let key: Key = object.key.parse().unwrap();
            opened.push(opener.open(&key, &self.repository.get(&key).await.unwrap()).unwrap().1);
        }
        let server_manifest = opened.pop().unwrap();
        let index: Index = serde_json::from_slice(&opened.pop().unwrap()).unwrap();
        assert_eq!(index.chunks.len(), opened.len());
        Plain { chunks: index.chunks.iter().cloned().zip(opened).collect(), index, server_manifest }
    }

    /// Unpacks a backup, its last chunk first, each archive into a folder of its own.
    pub(super) async fn unpack(
        &self,
        manifest: &Manifest,
        name: &str,
        withheld: &[&str],
    ) -> BTreeMap<Archive, PathBuf> {
        let plain = self.plain(manifest).await;
        let archives = manifest.archives.iter().map(|facts| facts.archive);
        let roots: BTreeMap<_, _> =
            archives.map(|archive| (archive, self.folder(&format!("{name}-{archive}")))).collect();
        let withheld: BTreeSet<Vec<u8>> = withheld.iter().map(|path| path.as_bytes().to_vec()).collect();
        let target = Target { roots: roots.clone(), withheld, owner: None };
        let unpacker = Unpacker::new(target, &plain.index, &manifest.archives).unwrap();
        for (place, bytes) in plain.chunks.iter().rev() {
            let mut chunk = unpacker.begin(place).unwrap();
            bytes.chunks(128 << 10).for_each(|piece| chunk.write(piece).unwrap());
            chunk.end().unwrap();
        }
        *self.withheld.lock().unwrap() = unpacker.finish().unwrap().0;
        roots
    }

    /// Writes what the last unpacking held back.
    pub(super) fn write_withheld(&self, base: &Path) {
        for (path, file) in self.withheld.lock().unwrap().iter() {
            fs::write(base.join(std::ffi::OsStr::from_bytes(path)), &file.bytes).unwrap();
        }
    }

    /// How many backups are visible.
    pub(super) async fn manifests(&self) -> usize {
        let listed = self.repository.list("").await.unwrap();
        let keys = listed.iter().filter_map(|object| object.name.parse::<Key>().ok());
        keys.filter(|key| matches!(key, Key::Of(_, Item::Manifest(_)))).count()
    }
}

fn record(stream: BaseStream, sent: Option<Arc<Mutex<Sent>>>) -> BaseStream {
    let Some(sent) = sent else { return stream };
    let mut archive = None;
    let see = move |event: &Result<BaseEvent, PostgresError>| {
        let mut sent = sent.lock().unwrap();
        match event {
            Ok(BaseEvent::Begin { archives, .. }) => sent.archives.clone_from(archives),
            Ok(BaseEvent::Archive(now)) => archive = Some(*now),
            Ok(BaseEvent::Data(bytes)) => sent.bytes.entry(archive.unwrap()).or_default().extend_from_slice(bytes),
            _ => {}
        }
    };
    stream.inspect(see).boxed()
}

async fn facts(server: &Server) -> (Cluster, ServerFacts) {
    let mut connection = server.replication().await;
    let identity = connection.identify().await.unwrap();
    let checksums = connection.show("data_checksums").await.unwrap();
    let facts = ServerFacts {
        system: identity.system,
        version: connection.version(),
        segment_size: SegmentSize::USUAL,
        block_size: 8_192,
        data_checksums: checksums.as_deref() == Some("on"),
        settings: BTreeMap::new(),
        tablespaces: BTreeMap::new(),
        databases: BTreeMap::new(),
    };
    connection.close().await;
    (Cluster { source: SourceName::new("shop-db").unwrap(), system: identity.system }, facts)
}

/// Everything below a folder.
pub(super) fn look(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let node = if meta.is_symlink() {
                ('l', 0, fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
            } else if meta.is_dir() {
                todo.push(path);
                ('d', meta.mode() & 0o7777, Vec::new())
            } else {
                ('f', meta.mode() & 0o7777, fs::read(&path).unwrap())
            };
            tree.insert(name, node);
        }
    }
    tree
}

/// Gives a restored data folder the log of its server, and the mode that servers ask for.
pub(super) fn copy_wal(server: &Server, base: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    for entry in fs::read_dir(server.data().join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), base.join("pg_wal").join(entry.file_name())).unwrap();
        }
    }
    fs::set_permissions(base, fs::Permissions::from_mode(0o700)).unwrap();
    let mut above = base.parent();
    while let Some(folder) =
        above.filter(|folder| folder.starts_with(std::env::temp_dir()) && *folder != std::env::temp_dir())
    {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        above = folder.parent();
    }
}
