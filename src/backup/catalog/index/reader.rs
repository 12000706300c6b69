//! The documents of one cluster, read and judged.

use super::{Bad, BadKind, Catalogue, CatalogueError, FRONTIERS_READ, PROOFS_READ, READS_AT_ONCE, RECEIPTS_READ};
use super::{Read, bad, get, place_bad, seal_bad};
use crate::backup::catalog::history;
use crate::backup::catalog::holdings::{Backup, History, Holdings, LogObject, Marked, Missing, Object, Reached, Tick};
use crate::backup::catalog::manifest::{Frontier, Gap, Manifest, Mark, ObjectFacts, Proof, VERSION};
use crate::backup::catalog::note;
use crate::backup::repository::{BackupId, Cluster, DumpItem, Item, Key, Repository, RepositoryError, Stored};
use crate::backup::seal::{Checker, Seal};
use crate::model::{Lsn, SegmentName, SegmentSize, Timeline};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};

/// The objects of a cluster by what they are, before any was read.
pub(super) struct Sorted {
    holdings: Holdings,
    segments: Vec<(SegmentName, Object)>,
    gaps: Vec<Object>,
    marks: Vec<(u64, Object)>,
    bases: BTreeMap<BackupId, Folder>,
    dumps: BTreeMap<BackupId, Folder>,
}

/// What is in the folder of a backup.
#[derive(Default)]
pub(super) struct Folder {
    pub(super) manifest: Option<Object>,
    pub(super) objects: Vec<Object>,
    pub(super) proofs: BTreeMap<u64, Object>,
}

impl Folder {
    fn newest_proofs(&self) -> impl Iterator<Item = u64> + '_ {
        self.proofs.keys().rev().take(PROOFS_READ).copied()
    }
}

fn newest_frontiers(holdings: &Holdings) -> impl Iterator<Item = u64> + '_ {
    holdings.frontiers.keys().rev().take(FRONTIERS_READ).copied()
}

/// Which kind of backup a folder is of.
#[derive(Clone, Copy)]
pub(super) enum Of {
    Base,
    Dump,
}

impl Of {
    pub(super) fn manifest(self, id: &BackupId) -> Item {
        match self {
            Of::Base => Item::Manifest(id.clone()),
            Of::Dump => Item::Dump(id.clone(), DumpItem::Manifest),
        }
    }

    fn proof(self, id: &BackupId, number: u64) -> Item {
        match self {
            Of::Base => Item::Proof(id.clone(), number),
            Of::Dump => Item::Dump(id.clone(), DumpItem::Proof(number)),
        }
    }

    fn prefix(self, cluster: &Cluster, id: &BackupId) -> String {
        match self {
            Of::Base => Key::of_backup(cluster, id),
            Of::Dump => Key::of_dump(cluster, id),
        }
    }

    fn folders(self, sorted: &mut Sorted) -> &mut BTreeMap<BackupId, Folder> {
        match self {
            Of::Base => &mut sorted.bases,
            Of::Dump => &mut sorted.dumps,
        }
    }
}

impl Sorted {
    pub(super) fn new(cluster: Cluster) -> Sorted {
        let holdings = Holdings::new(cluster);
        let (bases, dumps) = (BTreeMap::new(), BTreeMap::new());
        Sorted { holdings, segments: Vec::new(), gaps: Vec::new(), marks: Vec::new(), bases, dumps }
    }

    pub(super) fn take(&mut self, item: Item, object: Object) {
        match item {
            Item::History(timeline) => {
                self.holdings.histories.insert(timeline, History { object, ancestors: None });
            }
            Item::Segment(name) => self.segments.push((name, object)),
            Item::Piece { timeline, first, last } => {
                let Object { bytes, written, .. } = object;
                let piece = LogObject { first, last, timeline, whole: false, bytes, written };
                self.holdings.log.entry(timeline).or_default().push(piece);
            }
            Item::Frontier(number) => {
                self.holdings.frontiers.insert(number, object);
            }
            Item::Gap { .. } => self.gaps.push(object),
            Item::Mark(number) => self.marks.push((number, object)),
            Item::Manifest(backup) => self.bases.entry(backup).or_default().manifest = Some(object),
            Item::Proof(backup, number) => {
                self.bases.entry(backup).or_default().proofs.insert(number, object);
            }
            Item::Chunk { backup, .. } | Item::Index(backup) | Item::ServerManifest(backup) => {
                self.bases.entry(backup).or_default().objects.push(object);
            }
            Item::Dump(copy, item) => {
                let folder = self.dumps.entry(copy).or_default();
                match item {
                    DumpItem::Manifest => folder.manifest = Some(object),
                    DumpItem::Proof(number) => drop(folder.proofs.insert(number, object)),
                    DumpItem::Chunk { .. } => folder.objects.push(object),
                }
            }
        }
    }
}

pub(super) struct Reader<'a> {
    repository: &'a dyn Repository,
    checker: &'a Checker,
    /// Documents that were read already.
    ahead: HashMap<Key, Read<Stored>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(repository: &'a dyn Repository, checker: &'a Checker) -> Reader<'a> {
        Reader { repository, checker, ahead: HashMap::new() }
    }

    /// Everything of one cluster.
    pub(super) async fn cluster(
        &mut self,
        catalogue: &mut Catalogue,
        sorted: Sorted,
    ) -> Result<Holdings, CatalogueError> {
        self.ahead = self.read_ahead(&sorted).await?;
        let Sorted { mut holdings, segments, gaps, marks, bases, dumps } = sorted;
        self.bases(catalogue, &mut holdings, bases).await?;
        self.dumps(catalogue, &mut holdings, dumps).await?;
        self.place_segments(catalogue, &mut holdings, segments).await?;
        self.frontiers(catalogue, &mut holdings).await?;
        self.gaps(catalogue, &mut holdings, gaps).await?;
        self.marks(catalogue, &mut holdings, marks).await?;
        self.notes(catalogue, &mut holdings).await?;
        holdings.clock.sort_by_key(|tick| (tick.timeline, tick.lsn, tick.at));
        Ok(holdings)
    }

    /// Every document that the listing alone tells to read: at once, and not kind after kind, each of which would wait for the
    /// store anew.
    async fn read_ahead(&self, sorted: &Sorted) -> Result<HashMap<Key, Read<Stored>>, CatalogueError> {
        let holdings = &sorted.holdings;
        let mut keys: Vec<Key> = Vec::new();
        for (of, folders) in [(Of::Base, &sorted.bases), (Of::Dump, &sorted.dumps)] {
            for (id, folder) in folders {
                keys.extend(folder.manifest.as_ref().map(|object| object.key.clone()));
                keys.extend(folder.newest_proofs().map(|number| holdings.key(of.proof(id, number))));
            }
        }
        keys.extend(newest_frontiers(holdings).map(|number| holdings.key(Item::Frontier(number))));
        keys.extend(
            sorted.gaps.iter().chain(sorted.marks.iter().map(|(_, mark)| mark)).map(|object| object.key.clone()),
        );
        let reads = keys.iter().map(|key| get(self.repository, key));
        let read = in_order(reads).await?;
        Ok(keys.into_iter().zip(read).collect())
    }

    /// The backups, with their newest checks.
    async fn bases(
        &self,
        catalogue: &mut Catalogue,
        holdings: &mut Holdings,
        bases: BTreeMap<BackupId, Folder>,
    ) -> Result<(), CatalogueError> {
        let bases = self.finished_meanwhile(holdings, Of::Base, bases).await?;
        let manifests = bases.iter().map(|(id, folder)| {
            let key = folder.manifest.as_ref().map(|_| holdings.key(Item::Manifest(id.clone())));
            async move {
                match key {
                    Some(key) => Ok(Some(self.document::<Manifest>(key).await?)),
                    None => Ok(None),
                }
            }
        });
        let manifests: Vec<Option<Read<(Seal, Manifest)>>> = in_order(manifests).await?;
        let mut checked = self.proofs(catalogue, holdings, Of::Base, &bases).await?;
        for ((id, folder), read) in bases.into_iter().zip(manifests) {
            let Some((read, object)) = read.zip(folder.manifest) else {
                let left = folder.objects.into_iter().chain(folder.proofs.into_values());
                holdings.unfinished.insert(id, left.collect());
                continue;
            };
            let sound = read.and_then(|(_, manifest)| known(&object.key, manifest.version, manifest));
            match sound.and_then(|manifest| sound_manifest(&object.key, &holdings.cluster, &id, manifest)) {
                Ok(manifest) => {
                    let proofs = checked.remove(&id).unwrap_or_default().into_iter().collect();
                    let proof_objects = folder.proofs.into_values().collect();
                    let backup = Backup {
                        stored_bytes: object.bytes + manifest.objects.iter().map(|one| one.stored.bytes).sum::<u64>(),
                        missing: missing(&manifest.objects, &folder.objects),
                        extra: extra(&manifest.objects, folder.objects),
                        manifest,
                        object,
                        proofs,
                        proof_objects,
                    };
                    let Manifest { stop_timeline, stop, ended, .. } = &backup.manifest;
                    holdings.clock.push(Tick { timeline: *stop_timeline, lsn: *stop, at: *ended });
                    holdings.segment_size = Some(backup.manifest.server.segment_size);
                    holdings.backups.insert(id, backup);
                }
                Err(bad) => {
                    let objects = folder.objects.into_iter().chain(folder.proofs.into_values()).chain([object]);
                    holdings.doubtful.insert(id, objects.collect());
                    catalogue.bad.push(bad);
                }
            }
        }
        Ok(())
    }

    /// The newest checks of each backup.
    pub(super) async fn proofs(
        &self,
        catalogue: &mut Catalogue,
        holdings: &Holdings,
        of: Of,
        folders: &BTreeMap<BackupId, Folder>,
    ) -> Result<HashMap<BackupId, BTreeMap<u64, Proof>>, CatalogueError> {
        let proofs = folders.iter().flat_map(|(id, folder)| folder.newest_proofs().map(move |number| (number, id)));
        let proofs = proofs.map(|(number, id)| {
            let key = holdings.key(of.proof(id, number));
            async move { Ok((id.clone(), number, self.document::<Proof>(key).await?)) }
        });
        let mut checked: HashMap<BackupId, BTreeMap<u64, Proof>> = HashMap::new();
        for (id, number, read) in in_order(proofs).await? {
            match read.and_then(|(_, proof)| known(&holdings.key(of.proof(&id, number)), proof.version, proof)) {
                Ok(proof) => {
                    checked.entry(id).or_default().insert(number, proof);
                }
                Err(bad) => catalogue.bad.push(bad),
            }
        }
        Ok(checked)
    }

    /// What makes a backup exist is not believed to be absent on a listing's word alone. One that is there may have been
    /// written since the listing: then a second listing shows it.
    pub(super) async fn finished_meanwhile(
        &self,
        holdings: &Holdings,
        of: Of,
        mut bases: BTreeMap<BackupId, Folder>,
    ) -> Result<BTreeMap<BackupId, Folder>, CatalogueError> {
        let unfinished: Vec<BackupId> =
            bases.iter().filter(|(_, folder)| folder.manifest.is_none()).map(|(id, _)| id.clone()).collect();
        let there = unfinished.iter().map(|id| {
            let key = holdings.key(of.manifest(id));
            async move {
                match self.repository.receipt(&key).await {
                    Err(RepositoryError::Absent { .. }) => Ok(false),
                    Ok(_) | Err(RepositoryError::Damaged { .. }) => Ok(true),
                    Err(error) => Err(error.into()),
                }
            }
        });
        let there = in_order(there).await?;
        for (id, _) in unfinished.into_iter().zip(there).filter(|(_, there)| *there) {
            let mut again = Sorted::new(holdings.cluster.clone());
            for listed in self.repository.list(&of.prefix(&holdings.cluster, &id)).await? {
                let Ok(Key::Of(cluster, item)) = listed.name.parse::<Key>() else { continue };
                let key = Key::Of(cluster, item.clone());
                again.take(item, Object { key, bytes: listed.bytes, written: listed.written });
            }
            match of.folders(&mut again).remove(&id).filter(|folder| folder.manifest.is_some()) {
                Some(folder) => bases.insert(id, folder),
                None => {
                    let name = holdings.key(of.manifest(&id)).to_string();
                    return Err(CatalogueError::Doubtful { place: self.repository.place(), name });
                }
            };
        }
        Ok(bases)
    }

    /// Names of segments become places, once the length of segments is known.
    async fn place_segments(
        &self,
        catalogue: &mut Catalogue,
        holdings: &mut Holdings,
        segments: Vec<(SegmentName, Object)>,
    ) -> Result<(), CatalogueError> {
        if let (None, Some((_, newest))) = (holdings.segment_size, segments.last()) {
            match self.receipt(&newest.key).await? {
                Ok(seal) => holdings.segment_size = SegmentSize::new(seal.plain.bytes).ok(),
                Err(bad) => catalogue.bad.push(bad),
            }
        }
        for (name, object) in segments {
            let placed = holdings.segment_size.and_then(|size| Some((name.start(size)?, size)));
            let Some((first, size)) = placed else {
                holdings.unplaced.push(object);
                continue;
            };
            let Object { bytes, written, .. } = object;
            let last = Lsn(first.0.saturating_add(size.bytes()));
            let segment = LogObject { first, last, timeline: name.timeline, whole: true, bytes, written };
            holdings.log.entry(name.timeline).or_default().push(segment);
        }
        for log in holdings.log.values_mut() {
            log.sort_unstable();
        }
        Ok(())
    }

    /// The newest frontiers.
    async fn frontiers(&self, catalogue: &mut Catalogue, holdings: &mut Holdings) -> Result<(), CatalogueError> {
        let newest: Vec<u64> = newest_frontiers(holdings).collect();
        let reads = newest.iter().map(|number| self.document::<Frontier>(holdings.key(Item::Frontier(*number))));
        let reads: Vec<Read<(Seal, Frontier)>> = in_order(reads).await?;
        for (index, (number, read)) in newest.iter().zip(reads).enumerate() {
            let key = holdings.key(Item::Frontier(*number));
            match read.and_then(|(_, frontier)| known(&key, frontier.version, frontier)) {
                Ok(frontier) => {
                    let Frontier { timeline, acknowledged, at, server_time, .. } = frontier;
                    acknowledge(holdings, timeline, acknowledged);
                    holdings.clock.push(Tick { timeline, lsn: acknowledged, at: server_time.unwrap_or(at) });
                    holdings.reached.push(Reached { number: *number, frontier });
                }
                Err(bad) => {
                    if index == 0 {
                        holdings.frontier_doubt = Some(bad.why.clone());
                    }
                    catalogue.bad.push(bad);
                }
            }
        }
        holdings.reached.reverse();
        Ok(())
    }

    async fn gaps(
        &self,
        catalogue: &mut Catalogue,
        holdings: &mut Holdings,
        gaps: Vec<Object>,
    ) -> Result<(), CatalogueError> {
        let reads = gaps.iter().map(|object| self.document::<Gap>(object.key.clone()));
        for (object, read) in gaps.iter().zip(in_order(reads).await?) {
            let sound = read.and_then(|(_, gap)| known(&object.key, gap.version, gap)).and_then(|gap| {
                let named = Item::Gap { timeline: gap.timeline, from: gap.from, to: gap.to };
                match object.key == holdings.key(named) {
                    true => Ok(gap),
                    false => Err(bad(&object.key, BadKind::Contents, "its name says another range than it does")),
                }
            });
            match sound {
                Ok(gap) => holdings.gaps.push((object.clone(), gap)),
                Err(bad) => catalogue.bad.push(bad),
            }
        }
        holdings.gaps.sort_by_key(|(_, gap)| (gap.timeline, gap.from, gap.to));
        Ok(())
    }

    async fn marks(
        &self,
        catalogue: &mut Catalogue,
        holdings: &mut Holdings,
        marks: Vec<(u64, Object)>,
    ) -> Result<(), CatalogueError> {
        let reads = marks.iter().map(|(_, object)| self.document::<Mark>(object.key.clone()));
        let reads = in_order(reads).await?;
        for ((number, object), read) in marks.into_iter().zip(reads) {
            match read.and_then(|(_, mark)| known(&object.key, mark.version, mark)) {
                Ok(mark) => holdings.marks.push(Marked { number, object, mark }),
                Err(bad) => catalogue.bad.push(bad),
            }
        }
        holdings.marks.sort_by_key(|marked| marked.number);
        Ok(())
    }

    /// What is said beside history files, and beside the newest parts of the log.
    async fn notes(&self, catalogue: &mut Catalogue, holdings: &mut Holdings) -> Result<(), CatalogueError> {
        let files: Vec<(Timeline, Key)> =
            holdings.histories.iter().map(|(timeline, found)| (*timeline, found.object.key.clone())).collect();
        let newest = |log: &Vec<LogObject>| {
            let mut log: Vec<LogObject> = log.clone();
            log.sort_unstable_by_key(|object| std::cmp::Reverse(object.last));
            log.truncate(RECEIPTS_READ);
            log
        };
        let newest: Vec<(LogObject, Key)> =
            holdings.log.values().flat_map(newest).map(|object| (object, holdings.log_key(&object))).collect();
        let keys = files.iter().map(|(_, key)| key).chain(newest.iter().map(|(_, key)| key));
        let mut seals = in_order(keys.map(|key| self.receipt(key))).await?.into_iter();
        for ((timeline, key), read) in files.iter().zip(seals.by_ref()) {
            let noted = read.and_then(|seal| match seal.note.get(note::ANCESTORS) {
                None => Ok(None),
                Some(text) => history::parse_note(*timeline, text)
                    .map(Some)
                    .map_err(|error| bad(key, BadKind::Contents, format!("the note beside it: {error}"))),
            });
            match noted {
                Ok(ancestors) => {
                    if let Some(found) = holdings.histories.get_mut(timeline) {
                        found.ancestors = ancestors;
                    }
                }
                Err(bad) => catalogue.bad.push(bad),
            }
        }
        for ((object, key), read) in newest.iter().zip(seals) {
            let seal = match read {
                Ok(seal) => seal,
                // A segment takes the place of its pieces while we read: not there any more is no sign of damage.
                Err(Bad { kind: BadKind::Gone, .. }) if !object.whole => continue,
                Err(bad) => {
                    catalogue.bad.push(bad);
                    continue;
                }
            };
            match seal.note.get(note::ACKNOWLEDGED).map(|text| text.parse::<Lsn>()) {
                Some(Ok(lsn)) => acknowledge(holdings, object.timeline, lsn),
                Some(Err(error)) => catalogue.bad.push(bad(key, BadKind::Contents, format!("its note: {error}"))),
                None => {}
            }
            let server_time = seal.note.get(note::SERVER_TIME).and_then(|text| text.parse().ok());
            let at = server_time.unwrap_or(seal.at);
            holdings.clock.push(Tick { timeline: object.timeline, lsn: object.last, at });
        }
        Ok(())
    }

    pub(super) async fn document<T: DeserializeOwned>(&self, key: Key) -> Result<Read<(Seal, T)>, CatalogueError> {
        let read = match self.ahead.get(&key) {
            Some(read) => read.clone(),
            None => get(self.repository, &key).await?,
        };
        Ok(match read {
            Ok(stored) => self.checker.document(&key, &stored).map_err(|error| seal_bad(&key, &error)),
            Err(bad) => Err(bad),
        })
    }

    async fn receipt(&self, key: &Key) -> Result<Read<Seal>, CatalogueError> {
        match self.repository.receipt(key).await {
            Ok(receipt) => Ok(self.checker.receipt(key, &receipt).map_err(|error| seal_bad(key, &error))),
            Err(error) => Ok(Err(place_bad(key, error)?)),
        }
    }
}

/// Runs reads [`READS_AT_ONCE`] at a time; results in the order asked. Boxed at once, so that the whole can be sent to
/// another thread whatever the reads borrow.
pub(super) fn in_order<'a, T: Send + 'a>(
    reads: impl Iterator<Item = impl Future<Output = Result<T, CatalogueError>> + Send + 'a>,
) -> BoxFuture<'a, Result<Vec<T>, CatalogueError>> {
    let reads: Vec<BoxFuture<'a, Result<T, CatalogueError>>> = reads.map(FutureExt::boxed).collect();
    futures_util::stream::iter(reads).buffered(READS_AT_ONCE).try_collect().boxed()
}

fn acknowledge(holdings: &mut Holdings, timeline: Timeline, lsn: Lsn) {
    let furthest = holdings.acknowledged.entry(timeline).or_default();
    *furthest = lsn.max(*furthest);
}

pub(super) fn known<T>(key: &Key, version: u32, document: T) -> Read<T> {
    match version {
        VERSION => Ok(document),
        other => Err(bad(key, BadKind::Contents, format!("it is of version {other}, this Mainstay knows {VERSION}"))),
    }
}

/// A manifest speaks of its own backup, its own cluster, and objects in its own folder.
fn sound_manifest(key: &Key, cluster: &Cluster, id: &BackupId, manifest: Manifest) -> Read<Manifest> {
    let wrong = |why: String| Err(bad(key, BadKind::Contents, why));
    if manifest.backup != *id {
        return wrong(format!("it is the manifest of {}", manifest.backup));
    }
    if manifest.server.system != cluster.system {
        return wrong(format!("it is of the cluster {}", manifest.server.system));
    }
    if manifest.start > manifest.stop || manifest.timeline > manifest.stop_timeline {
        return wrong("it ends before it begins".into());
    }
    let folder = Key::of_backup(cluster, id);
    let own = |name: &str| name.starts_with(&folder) && name.parse::<Key>().is_ok();
    if let Some(object) = manifest.objects.iter().find(|object| !own(&object.key)) {
        return wrong(format!("it names {}, which is not in its folder", object.key));
    }
    let chunks: u64 = manifest.archives.iter().map(|archive| u64::from(archive.chunks)).sum();
    if (manifest.objects.len() as u64) < chunks {
        return wrong(format!("it names {} objects and has {chunks} chunks", manifest.objects.len()));
    }
    Ok(manifest)
}

/// What a manifest names and the listing does not show as it should be.
pub(super) fn missing(named: &[ObjectFacts], listed: &[Object]) -> Vec<Missing> {
    let lengths: HashMap<String, u64> = listed.iter().map(|object| (object.key.to_string(), object.bytes)).collect();
    let wrong = |name: &str, stored: u64| match lengths.get(name) {
        None => Some((BadKind::Gone, "it is not there".to_owned())),
        Some(bytes) if *bytes != stored => {
            Some((BadKind::Damaged, format!("it has {bytes} bytes, {stored} were stored")))
        }
        Some(_) => None,
    };
    let each = named.iter().filter_map(|object| {
        let (kind, why) = wrong(&object.key, object.stored.bytes)?;
        Some(Missing { name: object.key.clone(), kind, why })
    });
    each.collect()
}

/// What the listing shows in a backup's folder and its manifest does not name.
pub(super) fn extra(named: &[ObjectFacts], listed: Vec<Object>) -> Vec<Object> {
    let named: std::collections::HashSet<&str> = named.iter().map(|object| object.key.as_str()).collect();
    listed.into_iter().filter(|object| !named.contains(object.key.to_string().as_str())).collect()
}
