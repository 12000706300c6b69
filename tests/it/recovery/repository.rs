//! What a repository promises, shown on every kind of place: a folder, an S3 bucket, and the bucket behind a proxy that
//! misbehaves at every few calls. `contract` is the suite that all of them pass; the others are about S3 alone.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

mod contract;
mod faults;
mod rights;

use crate::support::store::{self, S3Server};
use crate::support::store_proxy::{Fault, Rule, StoreProxy};
use mainstay::backup::repository::s3::{S3, S3Settings};
use mainstay::backup::repository::{BackupId, Cluster, Item, Key, Repository};
use mainstay::backup::seal::{Sealed, Sealer, new_key_set};
use mainstay::model::{Lsn, SourceName, SystemId, Timeline};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A place under test, opened twice as by two processes, and what has to live as long.
struct Place {
    ours: Arc<dyn Repository>,
    theirs: Arc<dyn Repository>,
    seals: Sealer,
    _hold: Box<dyn Send>,
}

impl Place {
    fn folder() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (store::folder(dir.path()), store::folder(dir.path()));
        Place { ours: Arc::new(ours), theirs: Arc::new(theirs), seals: sealer(), _hold: Box::new(dir) }
    }

    async fn s3() -> Place {
        let server = S3Server::shared();
        let settings = server.settings();
        Place::of(settings.clone(), settings, server).await
    }

    /// Each kind of call goes wrong at every few of them, in another way each time.
    async fn misbehaving() -> Place {
        let server = S3Server::shared();
        let proxy = StoreProxy::start(&server.address());
        for (fault, method, every) in [
            (Fault::LoseAnswer, "PUT", 4),
            (Fault::Answer(503), "PUT", 5),
            (Fault::Answer(409), "PUT", 7),
            (Fault::CutRequest, "PUT", 9),
            (Fault::FlipSent, "PUT", 11),
            (Fault::NoChecksum, "PUT", 3),
            (Fault::Delay(Duration::from_millis(20)), "PUT", 2),
            (Fault::CutAnswer, "GET", 4),
            (Fault::Flip, "GET", 9),
            (Fault::Answer(500), "GET", 7),
            (Fault::CutBefore, "HEAD", 3),
            (Fault::LoseAnswer, "POST", 3),
            (Fault::LoseAnswer, "DELETE", 3),
        ] {
            // A flipped bit in the words of a listing may read as another word; there it is for TLS to notice.
            let key = if matches!(fault, Fault::Flip) { "shop-db/" } else { "" };
            proxy.rule(Rule::new(fault).method(method).key(key).every(every));
        }
        let settings = S3Settings { endpoint: Some(proxy.endpoint()), ..server.settings() };
        // Several things may go wrong with one object, one after the other.
        let settings = S3Settings { trying: Duration::from_secs(60), ..settings };
        Place::of(settings.clone(), settings, (server, proxy)).await
    }

    async fn of(ours: S3Settings, theirs: S3Settings, hold: impl Send + 'static) -> Place {
        Place {
            ours: Arc::new(s3(ours).await),
            theirs: Arc::new(s3(theirs).await),
            seals: sealer(),
            _hold: Box::new(hold),
        }
    }

    /// Sealed anew each time: what is encrypted differs even for the same content.
    fn sealed(&self, key: &Key, content: &[u8]) -> Sealed {
        sealed(&self.seals, key, content)
    }
}

async fn s3(settings: S3Settings) -> S3 {
    S3::open(settings).await.unwrap()
}

fn sealer() -> Sealer {
    let keys = new_key_set().unwrap();
    Sealer::new(&[keys.recipient], keys.signing).unwrap()
}

fn sealed(seals: &Sealer, key: &Key, content: &[u8]) -> Sealed {
    let note = BTreeMap::from([("acknowledged".to_owned(), "0/3000148".to_owned())]);
    seals.seal(key, content, note).unwrap()
}

fn source() -> SourceName {
    SourceName::new("shop-db").unwrap()
}

fn of(item: Item) -> Key {
    Key::Of(Cluster { source: source(), system: SystemId(7_432_101_234_567_890_123) }, item)
}

fn piece(number: u64) -> Key {
    let first = number * 0x100;
    of(Item::Piece { timeline: Timeline(1), first: Lsn(first), last: Lsn(first + 0x80) })
}

fn segment() -> Key {
    of(Item::Segment("0000000100000000000000A3".parse().unwrap()))
}

fn manifest() -> Key {
    of(Item::Manifest("20261123T101500Z-1a2b3c4d".parse::<BackupId>().unwrap()))
}

/// Bytes that do not compress.
fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
