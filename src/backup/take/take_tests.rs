use super::tests_tar::Builder;
use super::*;
use crate::backup::repository::folder::Folder;
use crate::backup::repository::{Abilities, Deleted, Leased, Listed, Put, Replaced, Stored};
use crate::backup::seal::{Checker, KeySet, Opener, Receipt, Sealed, new_key_set};
use crate::model::{SegmentSize, SourceName, SystemId};
use async_trait::async_trait;
use futures_util::FutureExt as _;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use tokio::sync::Notify;

static KEYS: LazyLock<KeySet> = LazyLock::new(|| new_key_set().unwrap());

fn cluster() -> Cluster {
    Cluster { source: SourceName::new("shop-db").unwrap(), system: SystemId(7) }
}

fn facts(version: u32) -> ServerFacts {
    ServerFacts {
        system: SystemId(7),
        version,
        segment_size: SegmentSize::USUAL,
        block_size: 8_192,
        data_checksums: true,
        settings: BTreeMap::new(),
        tablespaces: BTreeMap::new(),
        databases: BTreeMap::new(),
    }
}

fn job(repository: Arc<dyn Repository>, wish: Wish) -> Job {
    let sealer = Sealer::new(std::slice::from_ref(&KEYS.recipient), KEYS.signing.clone()).unwrap();
    Job { cluster: cluster(), server: facts(170_000), repository, sealer, wish, tell: Arc::new(|_| {}) }
}

fn server_manifest() -> Bytes {
    let body = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"Files\": [],\n";
    let sum = hex::encode(Sha256::digest(body.as_bytes()));
    format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n").into()
}

fn base_tar() -> Vec<u8> {
    Builder::new()
        .file(b"backup_label", 0o600, b"START WAL LOCATION: 0/2000028\n")
        .file(b"tablespace_map", 0o600, b"16384 /srv/fast\n")
        .file(b"base/5/1259", 0o600, &vec![7; 70_000])
        .file(b"global/pg_control", 0o600, &[1; 8_192])
        .end()
}

/// A small backup with a tablespace.
fn whole() -> Vec<BaseEvent> {
    let tablespace = Archive::Tablespace(16_384);
    vec![
        BaseEvent::Begin {
            start: Lsn(0x200_0028),
            timeline: Timeline(1),
            archives: vec![(tablespace, Some("/srv/fast".into())), (Archive::Base, None)],
            estimated_bytes: None,
        },
        BaseEvent::Archive(tablespace),
        BaseEvent::Data(Builder::new().header(b"PG_17_202406281/", b'5', 0, b"", 0o700).end().into()),
        BaseEvent::Archive(Archive::Base),
        BaseEvent::Data(base_tar()[..40_000].to_vec().into()),
        BaseEvent::Data(base_tar()[40_000..].to_vec().into()),
        BaseEvent::ServerManifest(server_manifest()),
        BaseEvent::End { stop: Lsn(0x200_0100), timeline: Timeline(1) },
    ]
}

type Opened = Result<BaseStream, PostgresError>;

fn streams(events: Vec<BaseEvent>) -> impl Fn(Option<Bytes>) -> BoxFuture<'static, Opened> + Send {
    move |_| {
        let events = events.clone();
        async move { Ok(stream::iter(events.into_iter().map(Ok)).boxed()) }.boxed()
    }
}

fn at_once(_: LogSpan) -> BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>> {
    async { Ok(()) }.boxed()
}

/// Backups that are visible, each checked to the last byte.
async fn visible(repository: &dyn Repository) -> Vec<Manifest> {
    let checker = Checker::new(vec![KEYS.signing.public()]);
    let opener = Opener::new(KEYS.identity.clone(), checker.clone());
    let mut manifests = Vec::new();
    for object in repository.list(&Key::of_cluster(&cluster())).await.unwrap() {
        let key: Key = object.name.parse().unwrap();
        let Key::Of(_, Item::Manifest(_)) = &key else { continue };
        let (_, manifest): (_, Manifest) = checker.document(&key, &repository.get(&key).await.unwrap()).unwrap();
        for object in &manifest.objects {
            let key: Key = object.key.parse().unwrap();
            let (seal, _) = opener.open(&key, &repository.get(&key).await.unwrap()).unwrap();
            assert_eq!((&seal.plain, &seal.stored), (&object.plain, &object.stored));
        }
        manifests.push(manifest);
    }
    manifests
}

/// What goes wrong at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    StopBefore,
    StopAfter,
    FailBefore,
    FailAfter,
    /// What is stored vanishes again.
    Lose,
}

/// In place of a number: at each call.
const EVERY: usize = 0;

/// A repository in which something goes wrong at the n-th call.
struct Faulty {
    inner: Folder,
    calls: AtomicUsize,
    at: usize,
    fault: Fault,
    stopped: Notify,
    order: Mutex<Vec<String>>,
}

impl Faulty {
    async fn call<T>(
        &self,
        doing: String,
        key: Option<&Key>,
        act: impl Future<Output = Result<T, RepositoryError>>,
    ) -> Result<T, RepositoryError> {
        let now = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.order.lock().unwrap().push(doing.clone());
        if now != self.at && self.at != EVERY {
            return act.await;
        }
        let fail = || RepositoryError::Unreachable { doing, detail: "on purpose".into() };
        match self.fault {
            Fault::FailBefore => Err(fail()),
            Fault::FailAfter => act.await.and(Err(fail())),
            Fault::Lose => {
                let done = act.await;
                if let Some(key) = key {
                    self.inner.delete(key).await.unwrap();
                }
                done
            }
            Fault::StopBefore | Fault::StopAfter => {
                if self.fault == Fault::StopAfter {
                    let _ = act.await;
                }
                self.stopped.notify_one();
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl Repository for Faulty {
    fn place(&self) -> String {
        self.inner.place()
    }
    async fn abilities(&self) -> Result<Abilities, RepositoryError> {
        self.inner.abilities().await
    }
    async fn put_new(&self, key: &Key, object: &Sealed) -> Result<Put, RepositoryError> {
        self.call(format!("put {key}"), Some(key), self.inner.put_new(key, object)).await
    }
    async fn get(&self, key: &Key) -> Result<Stored, RepositoryError> {
        self.call(format!("get {key}"), None, self.inner.get(key)).await
    }
    async fn receipt(&self, key: &Key) -> Result<Receipt, RepositoryError> {
        self.call(format!("receipt {key}"), None, self.inner.receipt(key)).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        self.call(format!("list {prefix}"), None, self.inner.list(prefix)).await
    }
    async fn delete(&self, key: &Key) -> Result<Deleted, RepositoryError> {
        self.inner.delete(key).await
    }
    async fn lease(&self, key: &Key) -> Result<Option<Leased>, RepositoryError> {
        self.inner.lease(key).await
    }
    async fn replace_lease(&self, key: &Key, object: &Sealed, seen: Option<&str>) -> Result<Replaced, RepositoryError> {
        self.inner.replace_lease(key, object, seen).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_a_backup_is_visible_with_everything_behind_it_or_not_at_all() {
    for fault in [Fault::StopBefore, Fault::StopAfter, Fault::FailBefore, Fault::FailAfter, Fault::Lose] {
        let mut ended_well = false;
        for at in 1..100 {
            let place = tempfile::tempdir().unwrap();
            let inner = Folder::create(place.path().join("r")).unwrap();
            let faulty = Arc::new(Faulty {
                inner: inner.clone(),
                calls: AtomicUsize::new(0),
                at,
                fault,
                stopped: Notify::new(),
                order: Mutex::default(),
            });
            let result = tokio::select! {
                result = take(job(faulty.clone(), Wish::Whole), streams(whole()), at_once) => Some(result),
                () = faulty.stopped.notified() => None,
            };
            let seen = visible(&inner).await;
            if let Some(Ok(taken)) = &result {
                assert_eq!(seen, std::slice::from_ref(&taken.manifest), "{fault:?} at {at}");
            }
            let last = faulty.order.lock().unwrap().last().cloned().unwrap();
            let manifest_was_sent = last.ends_with("/manifest.json");
            assert!(seen.is_empty() || manifest_was_sent, "{fault:?} at {at}: {last}");
            if faulty.calls.load(Ordering::SeqCst) < at {
                result.unwrap().unwrap();
                // Four objects, their list, their receipts; the manifest as the last of all, and its receipt.
                assert_eq!(at, 4 + 1 + 4 + 2 + 1);
                ended_well = true;
                break;
            }
            match fault {
                Fault::Lose if at <= 4 => assert!(matches!(result, Some(Err(TakeError::NotAsStored { .. }))), "{at}"),
                Fault::Lose if at == 10 => assert!(matches!(result, Some(Err(TakeError::ReadBack { .. })))),
                // Reading loses nothing.
                Fault::Lose => assert!(result.unwrap().is_ok()),
                Fault::StopBefore | Fault::StopAfter => assert!(result.is_none()),
                Fault::FailBefore | Fault::FailAfter => assert!(result.unwrap().is_err(), "{fault:?} at {at}"),
            }
        }
        assert!(ended_well, "{fault:?}: it never ended well");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_the_log_is_durable_before_the_manifest_is_stored() {
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::create(place.path().join("r")).unwrap();
    let (seen, there) = (Arc::new(Mutex::new(None)), folder.clone());
    let note = Arc::clone(&seen);
    let durable = move |span: LogSpan| {
        async move {
            let names = there.list("").await.unwrap().len();
            *note.lock().unwrap() = Some((span, names, visible(&there).await.len()));
            Err("the slot is gone".into())
        }
        .boxed()
    };
    let error = take(job(Arc::new(folder.clone()), Wish::Whole), streams(whole()), durable).await.unwrap_err();
    assert!(error.to_string().contains("keep the log from 0/2000028 to 0/2000100"), "{error}");
    let span =
        LogSpan { timeline: Timeline(1), start: Lsn(0x200_0028), stop_timeline: Timeline(1), stop: Lsn(0x200_0100) };
    assert_eq!(*seen.lock().unwrap(), Some((span, 4, 0)));
    assert!(visible(&folder).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_stream_that_is_not_whole_makes_no_backup() {
    let all = whole();
    let mut streams_of: Vec<(String, Vec<BaseEvent>)> = Vec::new();
    for length in 0..all.len() {
        streams_of.push((format!("cut after {length}"), all[..length].to_vec()));
        let mut without = all.clone();
        without.remove(length);
        streams_of.push((format!("without {length}"), without));
        let mut twice = all.clone();
        twice.insert(length, all[length].clone());
        streams_of.push((format!("twice {length}"), twice));
        if length + 1 < all.len() {
            let mut swapped = all.clone();
            swapped.swap(length, length + 1);
            streams_of.push((format!("swapped {length}"), swapped));
        }
    }
    let mut replace = |what: &str, at: usize, event: BaseEvent| {
        let mut events = all.clone();
        events[at] = event;
        streams_of.push((what.to_owned(), events));
    };
    replace("a manifest cut short", 6, BaseEvent::ServerManifest(server_manifest().slice(..60)));
    let mut changed = server_manifest().to_vec();
    changed[5] ^= 1;
    replace("a manifest that was changed", 6, BaseEvent::ServerManifest(changed.into()));
    replace("it ends before it began", 7, BaseEvent::End { stop: Lsn(1), timeline: Timeline(1) });
    for missing in [&b"backup_label"[..], b"tablespace_map", b"global/pg_control"] {
        let mut tar = base_tar();
        let at = tar.windows(missing.len()).position(|window| window == missing).unwrap();
        tar[at] = b'X';
        super::tests_tar::sum(&mut tar[at..at + 512]);
        let mut events = all.clone();
        events.splice(4..6, [BaseEvent::Data(tar.into())]);
        streams_of.push((format!("without {}", missing.escape_ascii()), events));
    }
    for (what, events) in streams_of {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::create(place.path().join("r")).unwrap();
        let result = take(job(Arc::new(folder.clone()), Wish::Whole), streams(events), at_once).await;
        assert!(result.is_err(), "{what}");
        assert!(visible(&folder).await.is_empty(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_an_error_of_the_server_after_all_data_makes_no_backup() {
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::create(place.path().join("r")).unwrap();
    for length in 0..=whole().len() {
        let open = move |_| {
            let events = whole().into_iter().take(length).map(Ok);
            let error = PostgresError::Usage("checksum verification failure".into());
            async move { Ok(stream::iter(events.chain([Err(error)])).boxed()) }.boxed()
        };
        let error = take(job(Arc::new(folder.clone()), Wish::Whole), open, at_once).await.unwrap_err();
        assert!(
            matches!(&error, TakeError::Stream(error) if matches!(**error, PostgresError::Usage(_))),
            "{length}: {error}"
        );
    }
    assert!(visible(&folder).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_a_difference_that_cannot_be_had_becomes_a_whole_backup_that_says_why() {
    let place = tempfile::tempdir().unwrap();
    let folder: Arc<dyn Repository> = Arc::new(Folder::create(place.path().join("r")).unwrap());
    let first = take(job(folder.clone(), Wish::Whole), streams(whole()), at_once).await.unwrap();
    assert_eq!((&first.manifest.parent, &first.manifest.whole_because), (&None, &None));
    let checker = Checker::new(vec![KEYS.signing.public()]);
    let (manifest, server_manifest) = (first.manifest.clone(), first.server_manifest.clone());
    let parent = Parent { manifest, server_manifest, checker };
    let wish = |parent: &Parent| Wish::Difference(Box::new(parent.clone()));

    let second = take(job(folder.clone(), wish(&parent)), streams(whole()), at_once).await.unwrap();
    assert_eq!(second.manifest.parent, Some(first.manifest.backup.clone()));
    assert_eq!(second.manifest.whole_because, None);

    // The server refuses, when it is asked or with its first answer.
    for late in [false, true] {
        let open = move |parent: Option<Bytes>| {
            async move {
                let refused = || PostgresError::TakeWhole { why: "no summaries".into() };
                match parent {
                    Some(_) if late => Ok(stream::iter([Err(refused())]).boxed()),
                    Some(_) => Err(refused()),
                    None => Ok(stream::iter(whole().into_iter().map(Ok)).boxed()),
                }
            }
            .boxed()
        };
        let third = take(job(folder.clone(), wish(&parent)), open, at_once).await.unwrap();
        assert_eq!((third.manifest.parent, third.manifest.whole_because.as_deref()), (None, Some("no summaries")));
    }

    // What we know without asking: then it is not asked for.
    let never = |parent: Option<Bytes>| {
        assert!(parent.is_none(), "a difference was asked for");
        streams(whole())(None)
    };
    let mut other = parent.clone();
    other.manifest.server.data_checksums = false;
    let mut broken = parent.clone();
    broken.server_manifest = Bytes::from_static(b"{}");
    let mut elsewhere = parent.clone();
    elsewhere.manifest.server.system = SystemId(8);
    for (parent, says) in [(other, "checksums"), (broken, "not the one"), (elsewhere, "another cluster")] {
        let taken = take(job(folder.clone(), wish(&parent)), never, at_once).await.unwrap();
        assert!(taken.manifest.whole_because.as_deref().unwrap().contains(says));
    }
    let mut old = job(folder.clone(), wish(&parent));
    old.server.version = 150_018;
    let taken = take(old, never, at_once).await.unwrap();
    assert!(taken.manifest.whole_because.unwrap().contains("PostgreSQL 15 has no incremental backups"));
    let because = Wish::WholeBecause("the parent was expired".into());
    let taken = take(job(folder, because), never, at_once).await.unwrap();
    assert_eq!(taken.manifest.whole_because.as_deref(), Some("the parent was expired"));
}

/// Says of every object that it exists: one sealed from the same plain bytes, or from others, by us or by somebody else.
struct Repeats {
    inner: Folder,
    sealer: Sealer,
    other_bytes: bool,
}

#[async_trait]
impl Repository for Repeats {
    fn place(&self) -> String {
        self.inner.place()
    }
    async fn abilities(&self) -> Result<Abilities, RepositoryError> {
        self.inner.abilities().await
    }
    async fn put_new(&self, key: &Key, object: &Sealed) -> Result<Put, RepositoryError> {
        let ours = Opener::new(KEYS.identity.clone(), Checker::new(vec![KEYS.signing.public()]));
        let plain = match key.form() {
            crate::backup::repository::Form::Open => object.bytes.to_vec(),
            crate::backup::repository::Form::Sealed => {
                let stored = Stored::new(object.bytes.clone(), object.receipt.clone());
                ours.open(key, &stored).unwrap().1
            }
        };
        let plain = if self.other_bytes { b"other".to_vec() } else { plain };
        let before = self.sealer.seal(key, &plain, BTreeMap::new()).unwrap();
        assert_eq!(self.inner.put_new(key, &before).await?, Put::Stored);
        self.inner.put_new(key, object).await
    }
    async fn get(&self, key: &Key) -> Result<Stored, RepositoryError> {
        self.inner.get(key).await
    }
    async fn receipt(&self, key: &Key) -> Result<Receipt, RepositoryError> {
        self.inner.receipt(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        self.inner.list(prefix).await
    }
    async fn delete(&self, key: &Key) -> Result<Deleted, RepositoryError> {
        self.inner.delete(key).await
    }
    async fn lease(&self, key: &Key) -> Result<Option<Leased>, RepositoryError> {
        self.inner.lease(key).await
    }
    async fn replace_lease(&self, key: &Key, object: &Sealed, seen: Option<&str>) -> Result<Replaced, RepositoryError> {
        self.inner.replace_lease(key, object, seen).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_an_earlier_try_stored_counts_when_it_is_ours_and_the_same() {
    let stranger = new_key_set().unwrap();
    for (signing, other_bytes, good) in
        [(&KEYS.signing, false, true), (&KEYS.signing, true, false), (&stranger.signing, false, false)]
    {
        let place = tempfile::tempdir().unwrap();
        let inner = Folder::create(place.path().join("r")).unwrap();
        let sealer = Sealer::new(std::slice::from_ref(&KEYS.recipient), signing.clone()).unwrap();
        let repeats = Repeats { inner: inner.clone(), sealer, other_bytes };
        let result = take(job(Arc::new(repeats), Wish::Whole), streams(whole()), at_once).await;
        assert_eq!(result.is_ok(), good, "{result:?}");
        assert_eq!(visible(&inner).await.len(), usize::from(good));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_unpacks_again() {
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::create(place.path().join("r")).unwrap();
    let phases = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&phases);
    let mut job = job(Arc::new(folder.clone()), Wish::Whole);
    job.tell = Arc::new(move |progress| told.lock().unwrap().push(progress.phase));
    let taken = take(job, streams(whole()), at_once).await.unwrap();
    let mut phases = phases.lock().unwrap().clone();
    assert!(phases.is_sorted());
    phases.dedup();
    assert_eq!(phases, [Phase::Opening, Phase::Receiving, Phase::WaitingForLog, Phase::ReadingBack, Phase::Done]);

    let opener = Opener::new(KEYS.identity.clone(), Checker::new(vec![KEYS.signing.public()]));
    let mut plain = Vec::new();
    for object in &taken.manifest.objects {
        let key: Key = object.key.parse().unwrap();
        plain.push(opener.open(&key, &folder.get(&key).await.unwrap()).unwrap().1);
    }
    assert_eq!(plain.pop().unwrap(), taken.server_manifest);
    let index: super::super::catalog::manifest::Index = serde_json::from_slice(&plain.pop().unwrap()).unwrap();
    assert_eq!(plain.concat()[1_536..], base_tar());
    let roots = [(Archive::Tablespace(16_384), "t"), (Archive::Base, "d")];
    let roots: BTreeMap<_, _> = roots.map(|(archive, name)| (archive, place.path().join(name))).into();
    roots.values().for_each(|root| std::fs::create_dir(root).unwrap());
    let target = Target { roots, ..Target::default() };
    let unpacker = Unpacker::new(target, &index, &taken.manifest.archives).unwrap();
    for (place, plain) in index.chunks.iter().zip(&plain).rev() {
        unpacker.chunk(place, plain).unwrap();
    }
    unpacker.finish().unwrap();
    assert_eq!(std::fs::read(place.path().join("d/base/5/1259")).unwrap(), vec![7; 70_000]);
    assert!(place.path().join("t/PG_17_202406281").is_dir());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_does_not_fill_the_memory() {
    let place = tempfile::tempdir().unwrap();
    let faulty = Arc::new(Faulty {
        inner: Folder::create(place.path().join("r")).unwrap(),
        calls: AtomicUsize::new(0),
        at: EVERY,
        fault: Fault::StopBefore,
        stopped: Notify::new(),
        order: Mutex::default(),
    });
    // A file of a GiB that does not compress.
    let pulled = Arc::new(AtomicUsize::new(0));
    let begin = whole().remove(0);
    let BaseEvent::Begin { start, timeline, estimated_bytes, .. } = begin else { panic!() };
    let begin = BaseEvent::Begin { start, timeline, archives: vec![(Archive::Base, None)], estimated_bytes };
    let header = super::tests_tar::base_256(b"base/5/1", 1 << 30);
    let first = [begin, BaseEvent::Archive(Archive::Base), BaseEvent::Data(header.into())];
    let count = Arc::clone(&pulled);
    let open = move |_| {
        let count = Arc::clone(&count);
        let mut random = vec![0; 1 << 20];
        let data = std::iter::repeat_with(move || {
            getrandom::fill(&mut random).unwrap();
            count.fetch_add(random.len(), Ordering::SeqCst);
            BaseEvent::Data(Bytes::copy_from_slice(&random))
        });
        let events = first.clone().into_iter().chain(data.take(1 << 10));
        async move { Ok(stream::iter(events.map(Ok)).boxed()) }.boxed()
    };
    let running = tokio::spawn(take(job(faulty.clone(), Wish::Whole), open, at_once));
    let (mut last, mut quiet) = (0, 0);
    while quiet < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        let now = pulled.load(Ordering::SeqCst);
        quiet = if now > 0 && now == last { quiet + 1 } else { 0 };
        last = now;
    }
    assert!(!running.is_finished());
    running.abort();
    // What may be on its way, the chunk that fills, and the event that is being taken.
    assert!(last <= (96 + 16 + 1) << 20, "{} MiB", last >> 20);
    // And it did go on while it could: more than one chunk is on its way.
    assert!(last >= 48 << 20, "{} MiB", last >> 20);
}
