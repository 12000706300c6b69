//! A server that writes log, is promoted and is backed up, with a time of its own; and what of it must be restorable.

use super::lab::Lab;
use jiff::Timestamp;
use mainstay::backup::catalog::dumps::{DatabaseDump, DumpManifest, StreamFacts};
use mainstay::backup::catalog::history::{self, Ancestor};
use mainstay::backup::catalog::holdings::Holdings;
use mainstay::backup::catalog::index::Catalogue;
use mainstay::backup::catalog::manifest::{
    ArchiveFacts, Frontier, Gap, Manifest, ObjectFacts, Proof, ProofKind, ServerFacts,
};
use mainstay::backup::catalog::marks::{adopted, refuse_marked};
use mainstay::backup::catalog::note;
use mainstay::backup::catalog::path::{End, path};
use mainstay::backup::catalog::retention::Policy;
use mainstay::backup::repository::{Archive, BackupId, DumpItem, DumpStream, Item, Repository};
use mainstay::model::{Lsn, SegmentSize, Timeline};
use std::collections::{BTreeMap, BTreeSet, HashSet};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const HOUR: i64 = 3_600;
pub(crate) const DAY: i64 = 24 * HOUR;

/// A backup that was finished.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) id: BackupId,
    pub(crate) timeline: Timeline,
    pub(crate) stop: Lsn,
    pub(crate) ended: i64,
    pub(crate) parent: Option<BackupId>,
}

/// The server, and what was done.
pub(crate) struct World {
    pub(crate) lab: Lab,
    /// Seconds.
    pub(crate) now: i64,
    pub(crate) timeline: Timeline,
    pub(crate) end: Lsn,
    pub(crate) ancestors: Vec<Ancestor>,
    pub(crate) taken: Vec<Taken>,
    /// Logical copies that were finished, and when.
    pub(crate) copies: Vec<(BackupId, i64)>,
    /// Log that was lost: the byte after it.
    pub(crate) lost: Vec<(Timeline, Lsn, Lsn)>,
    frontier: u64,
    proofs: BTreeMap<BackupId, u64>,
    drawn: u32,
}

impl World {
    pub(crate) fn new() -> World {
        World::in_lab(Lab::new())
    }

    pub(crate) fn in_lab(lab: Lab) -> World {
        let (timeline, end) = (Timeline(1), Lsn(3 * MIB));
        World {
            lab,
            now: 1_790_000_000,
            timeline,
            end,
            ancestors: Vec::new(),
            taken: Vec::new(),
            copies: Vec::new(),
            lost: Vec::new(),
            frontier: 0,
            proofs: BTreeMap::new(),
            drawn: 0,
        }
    }

    /// The same world with a repository of its own.
    pub(crate) fn fork(&self) -> World {
        World {
            lab: self.lab.fork(),
            ancestors: self.ancestors.clone(),
            taken: self.taken.clone(),
            copies: self.copies.clone(),
            lost: self.lost.clone(),
            proofs: self.proofs.clone(),
            ..*self
        }
    }

    pub(crate) fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    pub(crate) fn pass(&mut self, secs: i64) {
        self.now += secs;
        self.lab.layer.faults().clock = World::at(self.now);
    }

    fn size() -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    /// The bytes of the log as a server on this timeline has them: the ancestor's up to where it was left.
    pub(crate) fn bytes(&self, timeline: Timeline, ancestors: &[Ancestor], from: Lsn, to: Lsn) -> Vec<u8> {
        // Runs of 997 bytes, cut where a timeline was left.
        let mut bytes = Vec::with_capacity((to.0 - from.0) as usize);
        let mut at = from.0;
        while at < to.0 {
            let left = ancestors.iter().find(|one| at < one.ends.0);
            let owner = left.map_or(timeline, |one| one.timeline);
            let end = to.0.min((at / 997 + 1) * 997).min(left.map_or(u64::MAX, |one| one.ends.0));
            bytes.resize((end - from.0) as usize, (u64::from(owner.0) * 31 + at / 997) as u8);
            at = end;
        }
        let mut segment = from.segment_end(World::size());
        while segment < to {
            let mut header = [0_u8; 40];
            header[8..16].copy_from_slice(&segment.0.to_le_bytes());
            header[24..32].copy_from_slice(&self.lab.cluster.system.0.to_le_bytes());
            header[32..36].copy_from_slice(&(MIB as u32).to_le_bytes());
            let at = (segment.0 - from.0) as usize;
            let length = header.len().min(bytes.len() - at);
            bytes[at..at + length].copy_from_slice(&header[..length]);
            segment = Lsn(segment.0 + MIB);
        }
        bytes
    }

    /// Writes log up to a place: pieces of a quarter segment, and a whole segment where one is full.
    pub(crate) async fn write(&mut self, bytes: u64) {
        let goal = Lsn(self.end.0 + bytes);
        while self.end < goal {
            let last = Lsn(goal.0.min(self.end.0 + MIB / 4).min(Lsn(self.end.0 + 1).segment_end(World::size()).0));
            self.piece(self.timeline, &self.ancestors.clone(), self.end, last).await;
            self.end = last;
            let begins = Lsn(last.0 - 1).segment_start(World::size());
            let whole = self.lost.iter().all(|(_, _, to)| *to <= begins);
            if last.segment_start(World::size()) == last && whole {
                self.segment(begins).await;
            }
        }
    }

    pub(crate) async fn piece(&self, timeline: Timeline, ancestors: &[Ancestor], first: Lsn, last: Lsn) {
        let key = self.lab.key(Item::Piece { timeline, first, last });
        let note = [(note::ACKNOWLEDGED, first.to_string()), (note::SERVER_TIME, World::at(self.now).to_string())];
        self.lab.put(&key, &self.bytes(timeline, ancestors, first, last), &note).await;
    }

    async fn segment(&self, first: Lsn) {
        let key = self.lab.key(Item::Segment(World::size().name(self.timeline, first)));
        let last = Lsn(first.0 + MIB);
        let note = [(note::ACKNOWLEDGED, last.to_string()), (note::SERVER_TIME, World::at(self.now).to_string())];
        self.lab.put(&key, &self.bytes(self.timeline, &self.ancestors, first, last), &note).await;
    }

    pub(crate) async fn frontier(&mut self) {
        self.frontier += 1;
        let (acknowledged, at, server_time) = (self.end, World::at(self.now), Some(World::at(self.now)));
        let frontier = Frontier { version: 1, timeline: self.timeline, acknowledged, at, server_time };
        let key = self.lab.key(Item::Frontier(self.frontier));
        self.lab.put(&key, &serde_json::to_vec(&frontier).unwrap(), &[]).await;
    }

    /// The server is promoted; the old one goes on for a while and does not know.
    pub(crate) async fn promote(&mut self, zombie: u64) {
        let (old, before) = (self.timeline, self.ancestors.clone());
        self.ancestors.push(Ancestor { timeline: old, ends: self.end });
        self.timeline = Timeline(old.0 + 1);
        let file: String =
            self.ancestors.iter().map(|one| format!("{}\t{}\tpromoted\n", one.timeline, one.ends)).collect();
        let note = [(note::ANCESTORS, history::note(&self.ancestors))];
        self.lab.put(&self.lab.key(Item::History(self.timeline)), file.as_bytes(), &note).await;
        if zombie > 0 {
            self.piece(old, &before, self.end, Lsn(self.end.0 + zombie)).await;
        }
        // What the new one sends begins with the segment it was born in.
        let begins = self.end.segment_start(World::size());
        if begins < self.end && !self.lost.iter().any(|(_, _, to)| *to > begins) {
            self.piece(self.timeline, &self.ancestors.clone(), begins, self.end).await;
        }
    }

    /// The slot is lost: log is missing for good.
    pub(crate) async fn lose(&mut self, bytes: u64) {
        let (from, to) = (self.end, Lsn(self.end.0 + bytes));
        let (at, why) = (World::at(self.now), "the slot was lost".to_owned());
        let gap = Gap { version: 1, timeline: self.timeline, from, to, at, why };
        let key = self.lab.key(Item::Gap { timeline: self.timeline, from, to });
        self.lab.put(&key, &serde_json::to_vec(&gap).unwrap(), &[]).await;
        self.lost.push((self.timeline, from, to));
        self.end = to;
    }

    /// Takes a backup. With `dies_before_manifest` its objects are left. `None` when it was refused because an expiry means to
    /// delete what it builds on.
    pub(crate) async fn take(&mut self, parent: Option<BackupId>, dies_before_manifest: bool) -> Option<BackupId> {
        let begun = self.begin(parent).await?;
        if dies_before_manifest {
            return None;
        }
        self.finish(begun).await
    }

    /// All but the manifest.
    pub(crate) async fn begin(&mut self, parent: Option<BackupId>) -> Option<Manifest> {
        if !self.may_adopt(parent.as_ref()).await {
            return None;
        }
        self.drawn += 1;
        let id: BackupId =
            format!("{}-{:08x}", World::at(self.now).strftime("%Y%m%dT%H%M%SZ"), self.drawn).parse().unwrap();
        let (start, began) = (Lsn(self.end.0 + 40), World::at(self.now));
        self.write(MIB / 8).await;
        let mut objects = Vec::new();
        let chunks = [0, 1].map(|number| Item::Chunk { backup: id.clone(), archive: Archive::Base, number });
        for item in chunks.into_iter().chain([Item::Index(id.clone()), Item::ServerManifest(id.clone())]) {
            let key = self.lab.key(item);
            let receipt = self.lab.put(&key, key.to_string().repeat(20).as_bytes(), &[]).await;
            let seal = receipt.unchecked().unwrap();
            objects.push(ObjectFacts { key: key.to_string(), plain: seal.plain, stored: seal.stored });
        }
        let server = ServerFacts {
            system: self.lab.cluster.system,
            version: 150_018,
            segment_size: World::size(),
            block_size: 8_192,
            data_checksums: true,
            settings: BTreeMap::new(),
            tablespaces: BTreeMap::new(),
            databases: BTreeMap::new(),
        };
        let archives = vec![ArchiveFacts { archive: Archive::Base, location: None, chunks: 2, bytes: 100 }];
        Some(Manifest {
            version: 1,
            backup: id,
            server,
            timeline: self.timeline,
            start,
            stop: self.end,
            stop_timeline: self.timeline,
            began,
            ended: began,
            parent,
            whole_because: None,
            archives,
            objects,
            made_by: "a test".into(),
        })
    }

    pub(crate) async fn finish(&mut self, mut manifest: Manifest) -> Option<BackupId> {
        if !self.may_adopt(manifest.parent.as_ref()).await {
            return None;
        }
        manifest.ended = World::at(self.now);
        let id = manifest.backup.clone();
        let key = self.lab.key(Item::Manifest(id.clone()));
        self.lab.put(&key, &serde_json::to_vec(&manifest).unwrap(), &[]).await;
        let Manifest { timeline, stop, parent, .. } = manifest;
        self.taken.push(Taken { id: id.clone(), timeline, stop, ended: self.now, parent });
        Some(id)
    }

    async fn may_adopt(&self, parent: Option<&BackupId>) -> bool {
        let Some(id) = parent else { return true };
        let Ok(stored) = self.lab.layer.get(&self.lab.key(Item::Manifest(id.clone()))).await else { return false };
        let manifest: Manifest = serde_json::from_slice(stored.bytes()).unwrap();
        let names = adopted(&self.lab.cluster, &manifest);
        refuse_marked(&self.lab.layer, &self.lab.checker, &self.lab.cluster, &names).await.is_ok()
    }

    /// Makes a logical copy. With `dies_before_manifest` its objects are left.
    pub(crate) async fn copy(&mut self, dies_before_manifest: bool) {
        self.drawn += 1;
        let id: BackupId =
            format!("{}-{:08x}", World::at(self.now).strftime("%Y%m%dT%H%M%SZ"), self.drawn).parse().unwrap();
        let mut objects = Vec::new();
        let mut streams = Vec::new();
        for (stream, chunks) in [(DumpStream::Globals, 1), (DumpStream::Database(5), 2)] {
            let mut bytes = 0;
            for number in 0..chunks {
                let key = self.lab.key(Item::Dump(id.clone(), DumpItem::Chunk { stream, number }));
                let receipt = self.lab.put(&key, key.to_string().repeat(20).as_bytes(), &[]).await;
                let seal = receipt.unchecked().unwrap();
                bytes += seal.plain.bytes;
                objects.push(ObjectFacts { key: key.to_string(), plain: seal.plain, stored: seal.stored });
            }
            streams.push(StreamFacts { chunks, bytes });
        }
        if dies_before_manifest {
            return;
        }
        let text = |text: &str| text.to_owned();
        let (name, encoding, collate, ctype) = (text("shop"), text("UTF8"), text("C"), text("C"));
        let manifest = DumpManifest {
            version: 1,
            backup: id.clone(),
            system: self.lab.cluster.system,
            server_version: 150_018,
            program: text("pg_dump (PostgreSQL) 15.18"),
            began: World::at(self.now),
            ended: World::at(self.now),
            globals: streams[0],
            role_passwords: true,
            databases: vec![DatabaseDump { oid: 5, name, encoding, collate, ctype, stream: streams[1] }],
            objects,
            made_by: text("a test"),
        };
        let key = self.lab.key(Item::Dump(id.clone(), DumpItem::Manifest));
        self.lab.put(&key, &serde_json::to_vec(&manifest).unwrap(), &[]).await;
        self.copies.push((id, self.now));
    }

    /// Copies that the policy promises are there, and every one that is there opens to what was put into it.
    async fn whole_copies(&self, holdings: &Holdings, policy: Policy, opened: &mut HashSet<String>) {
        let begins = self.now - policy.window.as_secs() as i64;
        let start = self.copies.iter().filter(|(_, ended)| *ended <= begins).map(|(_, ended)| *ended).max();
        let newest = self.copies.len().saturating_sub((policy.backups as usize).max(1));
        for (nth, (id, ended)) in self.copies.iter().enumerate() {
            let promised = nth >= newest || start.is_none_or(|start| *ended >= start);
            let there = holdings.dumps.good.get(id);
            assert!(there.is_some() || !promised, "{id} was promised at {}", World::at(self.now));
            let Some(dump) = there else { continue };
            assert_eq!(dump.unusable(), None);
            for object in &dump.manifest.objects {
                let plain = self.open(&object.key, opened).await;
                assert!(plain.is_none_or(|plain| plain == object.key.repeat(20).into_bytes()));
            }
        }
    }

    pub(crate) async fn prove(&mut self, id: &BackupId) {
        let number = self.proofs.entry(id.clone()).or_default();
        *number += 1;
        let proof = Proof {
            version: 1,
            at: World::at(self.now),
            kind: ProofKind::Started,
            good: true,
            detail: "started".into(),
            reached: None,
            took_secs: 1,
            log: Vec::new(),
        };
        let key = self.lab.key(Item::Proof(id.clone(), *number));
        self.lab.put(&key, &serde_json::to_vec(&proof).unwrap(), &[]).await;
    }

    pub(crate) async fn catalogue(&self) -> Catalogue {
        let mut catalogue = self.lab.read().await.unwrap();
        catalogue.open_histories(&self.lab.layer, &self.lab.opener).await.unwrap();
        assert_eq!(catalogue.bad, []);
        catalogue
    }

    /// Backups on the newest line.
    fn on_line(&self) -> impl Iterator<Item = &Taken> {
        let ends = |timeline| match self.ancestors.iter().find(|one| one.timeline == timeline) {
            Some(one) => one.ends,
            None if timeline == self.timeline => Lsn(u64::MAX),
            None => Lsn(0),
        };
        self.taken.iter().filter(move |taken| taken.stop <= ends(taken.timeline))
    }

    /// Backups that the policy promises at the true present.
    pub(crate) fn promised(&self, policy: Policy) -> BTreeSet<BackupId> {
        let begins = self.now - policy.window.as_secs() as i64;
        let line: Vec<&Taken> = self.on_line().collect();
        let start = line.iter().filter(|taken| taken.ended <= begins).map(|taken| taken.ended).max();
        let mut promised: BTreeSet<BackupId> = line
            .iter()
            .filter(|taken| start.is_none_or(|start| taken.ended >= start))
            .map(|taken| taken.id.clone())
            .collect();
        promised.extend(line.iter().rev().take((policy.backups as usize).max(1)).map(|taken| taken.id.clone()));
        for id in promised.clone() {
            let mut next = Some(id);
            while let Some(id) = next {
                next = self.taken.iter().find(|taken| taken.id == id).and_then(|taken| taken.parent.clone());
                promised.insert(id);
            }
        }
        promised
    }

    /// Everything that is kept has all it needs: its chain, and its log to the end. `opened` remembers what was opened before,
    /// since nothing is ever written twice.
    pub(crate) async fn whole(&self, policy: Policy, opened: &mut HashSet<String>) {
        let catalogue = self.catalogue().await;
        let holdings = &catalogue.clusters[&self.lab.cluster.system];
        self.whole_copies(holdings, policy, opened).await;
        for id in self.promised(policy) {
            assert!(holdings.backups.contains_key(&id), "{id} was promised at {}", World::at(self.now));
        }
        for taken in self.taken.iter().filter(|taken| holdings.backups.contains_key(&taken.id)) {
            let chain = holdings.chain(&taken.id).unwrap_or_else(|why| panic!("{}: {why}", taken.id));
            for object in chain.iter().flat_map(|backup| &backup.manifest.objects) {
                let plain = self.open(&object.key, opened).await;
                assert!(plain.is_none_or(|plain| plain == object.key.repeat(20).into_bytes()));
            }
            let own = path(holdings, &taken.id, taken.timeline, End::Consistent)
                .unwrap_or_else(|why| panic!("{}: {why}", taken.id));
            assert_eq!(own.to.max(taken.stop), own.to);
            if self.on_line().any(|one| one.id == taken.id) {
                self.to_the_end(holdings, taken, opened).await;
            }
        }
    }

    /// A restore of the newest place, or of the last one before log was lost, gives the server's bytes.
    async fn to_the_end(&self, holdings: &Holdings, taken: &Taken, opened: &mut HashSet<String>) {
        let lost = self.lost.iter().filter(|(_, from, _)| *from >= taken.stop).min_by_key(|(_, from, _)| *from);
        let on_way = lost.filter(|(timeline, from, _)| {
            self.ancestors.iter().find(|one| one.timeline == *timeline).is_none_or(|one| *from < one.ends)
        });
        let (end, to) = match on_way {
            Some((_, from, _)) if *from == taken.stop => (End::Consistent, *from),
            Some((_, from, _)) => (End::At(Lsn(from.0 - 1)), *from),
            None => (End::Newest, self.end),
        };
        let path = path(holdings, &taken.id, self.timeline, end).unwrap_or_else(|why| panic!("{}: {why}", taken.id));
        assert_eq!(path.to, to, "{}", taken.id);
        for part in &path.log {
            let name = holdings.log_key(&part.object).to_string();
            if let Some(plain) = self.open(&name, opened).await {
                let at = |lsn: Lsn| (lsn.0 - part.object.first.0) as usize;
                let ours = self.bytes(self.timeline, &self.ancestors, part.from, part.to);
                // Headers stand where segments begin, and so are not seen by a cut in the middle of one.
                let stored = &plain[at(part.from)..at(part.to)];
                let differ = stored.iter().zip(&ours).filter(|(a, b)| a != b).count();
                assert!(differ <= 40, "{name}");
            }
        }
    }

    async fn open(&self, name: &str, opened: &mut HashSet<String>) -> Option<Vec<u8>> {
        if !opened.insert(name.to_owned()) {
            return None;
        }
        let key = name.parse().unwrap();
        let stored = self.lab.layer.get(&key).await.unwrap();
        Some(self.lab.opener.open(&key, &stored).unwrap().1)
    }
}
