//! Holdings for tests of what does no I/O.

use super::*;
use crate::backup::catalog::manifest::{ProofKind, ServerFacts, VERSION};
use crate::model::{SourceName, SystemId};

/// A MiB: segments in these tests have one.
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn at(hours: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + hours * 3_600).unwrap()
}

pub(crate) fn id(hours: i64) -> BackupId {
    format!("{}-00000000", at(hours).strftime("%Y%m%dT%H%M%SZ")).parse().unwrap()
}

pub(crate) fn empty() -> Holdings {
    let cluster = Cluster { source: SourceName::new("db").unwrap(), system: SystemId(7) };
    Holdings { segment_size: Some(SegmentSize::new(MIB).unwrap()), ..Holdings::new(cluster) }
}

pub(crate) fn object(holdings: &Holdings, item: Item) -> Object {
    Object { key: holdings.key(item), bytes: 100, written: at(0) }
}

/// Places are in MiB here.
impl Holdings {
    pub(crate) fn with_backup(
        mut self,
        hours: i64,
        timeline: u32,
        start: u64,
        stop: u64,
        parent: Option<i64>,
    ) -> Holdings {
        let server = ServerFacts {
            system: self.cluster.system,
            version: 150_018,
            segment_size: SegmentSize::new(MIB).unwrap(),
            block_size: 8_192,
            data_checksums: true,
            settings: BTreeMap::new(),
            tablespaces: BTreeMap::new(),
            databases: BTreeMap::new(),
        };
        let manifest = Manifest {
            version: VERSION,
            backup: id(hours),
            server,
            timeline: Timeline(timeline),
            start: Lsn(start * MIB + 40),
            stop: Lsn(stop * MIB + 200),
            stop_timeline: Timeline(timeline),
            began: at(hours),
            ended: at(hours + 1),
            parent: parent.map(id),
            whole_because: None,
            archives: Vec::new(),
            objects: Vec::new(),
            made_by: "a test".into(),
        };
        let (lsn, ended) = (manifest.stop, manifest.ended);
        let object = object(&self, Item::Manifest(id(hours)));
        let (missing, extra, proofs, proof_objects) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let backup = Backup { manifest, object, stored_bytes: 1_000, missing, extra, proofs, proof_objects };
        self.backups.insert(id(hours), backup);
        self.clock.push(Tick { timeline: Timeline(timeline), lsn, at: ended });
        self
    }

    pub(crate) fn with_proof(mut self, hours: i64, good: bool, kind: ProofKind) -> Holdings {
        let backup = self.backups.get_mut(&id(hours)).unwrap();
        let number = backup.proofs.len() as u64 + 1;
        let proof = Proof {
            version: VERSION,
            at: at(hours + 2),
            kind,
            good,
            detail: "seen".into(),
            reached: None,
            took_secs: 1,
            log: Vec::new(),
        };
        backup.proofs.push((number, proof));
        self
    }

    pub(crate) fn with_segments(mut self, timeline: u32, from: u64, to: u64) -> Holdings {
        let log = self.log.entry(Timeline(timeline)).or_default();
        log.extend((from..to).map(|mib| LogObject {
            first: Lsn(mib * MIB),
            last: Lsn((mib + 1) * MIB),
            timeline: Timeline(timeline),
            whole: true,
            bytes: 100,
            written: at(0),
        }));
        log.sort_unstable();
        self
    }

    /// A piece, in bytes.
    pub(crate) fn with_piece(mut self, timeline: u32, first: u64, last: u64) -> Holdings {
        let log = self.log.entry(Timeline(timeline)).or_default();
        let (first, last, timeline) = (Lsn(first), Lsn(last), Timeline(timeline));
        log.push(LogObject { first, last, timeline, whole: false, bytes: 10, written: at(0) });
        log.sort_unstable();
        self
    }

    /// Places of ancestors in bytes.
    pub(crate) fn with_history(mut self, timeline: u32, ancestors: &[(u32, u64)]) -> Holdings {
        let ancestors =
            ancestors.iter().map(|(timeline, ends)| Ancestor { timeline: Timeline(*timeline), ends: Lsn(*ends) });
        let ancestors = Some(ancestors.collect());
        let object = object(&self, Item::History(Timeline(timeline)));
        self.histories.insert(Timeline(timeline), History { object, ancestors });
        self
    }

    pub(crate) fn with_frontier(mut self, number: u64, timeline: u32, acknowledged: u64, hours: i64) -> Holdings {
        let (timeline, acknowledged) = (Timeline(timeline), Lsn(acknowledged));
        let frontier = Frontier { version: VERSION, timeline, acknowledged, at: at(hours), server_time: None };
        self.frontiers.insert(number, object(&self, Item::Frontier(number)));
        self.reached.push(Reached { number, frontier });
        self.clock.push(Tick { timeline, lsn: acknowledged, at: at(hours) });
        let furthest = self.acknowledged.entry(timeline).or_default();
        *furthest = acknowledged.max(*furthest);
        self
    }

    /// Lost log, in MiB.
    pub(crate) fn with_gap(mut self, timeline: u32, from: u64, to: u64) -> Holdings {
        let (timeline, from, to) = (Timeline(timeline), Lsn(from * MIB), Lsn(to * MIB));
        let gap = Gap { version: VERSION, timeline, from, to, at: at(0), why: "the slot was lost".into() };
        self.gaps.push((object(&self, Item::Gap { timeline, from, to }), gap));
        self
    }
}
