//! The log of real servers, shipped into a repository: what was acknowledged is there, whatever dies.

#![allow(clippy::print_stdout, reason = "what was measured is part of the answer")]

mod faults;
mod flow;
mod follow;
mod kill;
mod lease;

use crate::support::postgres::Server;
use crate::support::store;
use mainstay::backup::catalog::manifest::{Frontier, Gap};
use mainstay::backup::repository::{Cluster, Item, Key, Repository, RepositoryError};
use mainstay::backup::seal::{Checker, KeySet, Opener, Sealer, SigningKey, new_key_set_for};
use mainstay::backup::ship::{Activity, Job, Shipper, Status};
use mainstay::model::{Lsn, SegmentSize, SourceName, Timeline};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long anything may take on a machine that is busy with the other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A repository and its keys.
struct Place {
    folder: tempfile::TempDir,
    repository: Arc<dyn Repository>,
    keys: KeySet,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let repository = Arc::new(store::folder(&folder.path().join("repository")));
        Place::of(folder, repository)
    }

    /// In a repository that is there; the signing key is in a file, so that another process can have it.
    fn of(folder: tempfile::TempDir, repository: Arc<dyn Repository>) -> Place {
        let signing = SigningKey::open(&folder.path().join("sign.key")).unwrap();
        Place { folder, repository, keys: new_key_set_for(signing) }
    }

    fn sealer(&self) -> Sealer {
        Sealer::new(std::slice::from_ref(&self.keys.recipient), self.keys.signing.clone()).unwrap()
    }

    fn checker(&self) -> Checker {
        Checker::new(vec![self.keys.signing.public()])
    }

    fn job(&self, server: &Server) -> Job {
        Job {
            source: SourceName::new("db").unwrap(),
            address: server.address(),
            password: None,
            slot: "mainstay_db".into(),
            ship_every: Duration::from_millis(200),
            synchronous: false,
            standby: false,
            new_cluster: false,
            repository: self.repository.clone(),
            sealer: self.sealer(),
            checker: self.checker(),
        }
    }

    async fn keys_of(&self, cluster: &Cluster) -> Vec<Item> {
        let listed = self.repository.list(&Key::of_cluster(cluster)).await.unwrap();
        let item = |name: &str| match name.parse().unwrap() {
            Key::Of(_, item) => item,
            other => panic!("{other}"),
        };
        listed.iter().map(|object| item(&object.name)).collect()
    }

    async fn document<T: serde::de::DeserializeOwned>(&self, cluster: &Cluster, item: Item) -> T {
        let key = Key::Of(cluster.clone(), item);
        self.checker().document(&key, &self.repository.get(&key).await.unwrap()).unwrap().1
    }

    async fn frontiers(&self, cluster: &Cluster) -> Vec<Frontier> {
        let mut all = Vec::new();
        for item in self.keys_of(cluster).await {
            if matches!(item, Item::Frontier(_)) {
                all.push(self.document(cluster, item).await);
            }
        }
        all
    }

    async fn gaps(&self, cluster: &Cluster) -> Vec<Gap> {
        let mut all = Vec::new();
        for item in self.keys_of(cluster).await {
            if matches!(item, Item::Gap { .. }) {
                all.push(self.document(cluster, item).await);
            }
        }
        all
    }

    async fn histories(&self, cluster: &Cluster) -> Vec<Timeline> {
        let items = self.keys_of(cluster).await.into_iter();
        items.filter_map(|item| if let Item::History(timeline) = item { Some(timeline) } else { None }).collect()
    }

    /// The log of a timeline as it is stored: where it begins, and its bytes up to the first hole. Parts that overlap agree.
    async fn log(&self, cluster: &Cluster, timeline: Timeline, size: SegmentSize) -> (Lsn, Vec<u8>) {
        let mut parts = None;
        // A piece may go while we look: its segment has come instead, and a new listing shows it.
        for _ in 0..50 {
            parts = self.parts(cluster, timeline, size).await;
            if parts.is_some() {
                break;
            }
        }
        let parts = parts.expect("a listing that holds for as long as it takes to read it");
        let begin = parts.keys().next().map_or(Lsn(0), |range| range.0);
        let mut log: Vec<u8> = Vec::new();
        for ((first, last), plain) in parts {
            let end = Lsn(begin.0 + log.len() as u64);
            if first > end {
                break;
            }
            let shared = (end.0.min(last.0) - first.0) as usize;
            let at = (first.0 - begin.0) as usize;
            assert!(log[at..at + shared] == plain[..shared], "parts that overlap at {first} do not agree");
            log.extend_from_slice(&plain[shared..]);
        }
        (begin, log)
    }

    /// Everything that is stored of a timeline; `None` when something went while it was read.
    async fn parts(
        &self,
        cluster: &Cluster,
        timeline: Timeline,
        size: SegmentSize,
    ) -> Option<BTreeMap<(Lsn, Lsn), Vec<u8>>> {
        let opener = Opener::new(self.keys.identity.clone(), self.checker());
        let mut parts = BTreeMap::new();
        for item in self.keys_of(cluster).await {
            let range = match &item {
                Item::Segment(name) if name.timeline == timeline => {
                    let start = name.start(size).unwrap();
                    (start, Lsn(start.0 + size.bytes()))
                }
                Item::Piece { timeline: on, first, last } if *on == timeline => (*first, *last),
                _ => continue,
            };
            let key = Key::Of(cluster.clone(), item);
            let stored = match self.repository.get(&key).await {
                Ok(stored) => stored,
                Err(RepositoryError::Absent { .. }) => return None,
                Err(error) => panic!("{error}"),
            };
            let (seal, plain) = opener.open(&key, &stored).unwrap();
            assert_eq!(plain.len() as u64, range.1.0 - range.0.0);
            assert!(seal.note.contains_key("acknowledged") && seal.note.contains_key("server-time"), "{key}");
            parts.insert(range, plain);
        }
        Some(parts)
    }

    /// What is stored is, byte for byte, what the server has in its own files; the place up to which it is.
    async fn is_the_servers(&self, server: &Server, cluster: &Cluster, timeline: Timeline, size: SegmentSize) -> Lsn {
        let (begin, log) = self.log(cluster, timeline, size).await;
        let mut compared = 0;
        for (number, part) in log.chunks(size.bytes() as usize).enumerate() {
            let at = Lsn(begin.0 + number as u64 * size.bytes());
            assert_eq!(at, at.segment_start(size), "the stored log begins with a whole segment");
            let Ok(file) = std::fs::read(server.data().join("pg_wal").join(size.name(timeline, at).to_string())) else {
                continue;
            };
            assert!(file[..part.len()] == *part, "segment {at} differs from the server's");
            compared += 1;
        }
        assert!(compared > 0, "the server had none of the files any more");
        Lsn(begin.0 + log.len() as u64)
    }
}

async fn cluster(server: &Server) -> Cluster {
    let system = server.value("SELECT system_identifier FROM pg_control_system()").await;
    Cluster { source: SourceName::new("db").unwrap(), system: system.parse().unwrap() }
}

async fn end_of_log(server: &Server) -> Lsn {
    server.value("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap()
}

/// Waits until the status is as wanted.
async fn until(shipper: &Shipper, what: &str, wanted: impl FnMut(&Status) -> bool) -> Status {
    let mut status = shipper.status();
    let found = tokio::time::timeout(PATIENCE, status.wait_for(wanted)).await.map(|status| status.unwrap().clone());
    found.unwrap_or_else(|_| panic!("never {what}: {:?}", shipper.status().borrow()))
}

/// Waits until everything that the server has written is stored.
async fn until_shipped(shipper: &Shipper, server: &Server, timeline: u32) -> Lsn {
    let end = end_of_log(server).await;
    until(shipper, &format!("{end} of timeline {timeline}"), |status| status.has(Timeline(timeline), end)).await;
    end
}

/// The log without its pages' headers, which may stand in the middle of a record.
fn records(log: &[u8]) -> Vec<u8> {
    // XLP_LONG_HEADER: the first page of a segment has 40 bytes, the others 24.
    let header = |page: &[u8]| if page.len() > 2 && page[2] & 2 != 0 { 40 } else { 24 };
    log.chunks(8192).flat_map(|page| &page[header(page).min(page.len())..]).copied().collect()
}

fn holds(log: &[u8], text: &str) -> bool {
    records(log).windows(text.len()).any(|window| window == text.as_bytes())
}

fn said(what: &str, began: Instant) {
    println!("{what}: {} ms", began.elapsed().as_millis());
}

fn has_folder(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}
