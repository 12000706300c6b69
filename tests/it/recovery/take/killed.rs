//! A writer that is killed, and a store that fails, at every call in turn: a backup is there whole, or not at all.

use crate::support::store::S3Server;
use crate::support::store_proxy::{Fault, Rule, StoreProxy, When};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use mainstay::backup::catalog::manifest::{Manifest, ServerFacts};
use mainstay::backup::repository::s3::{S3, S3Settings};
use mainstay::backup::repository::{Archive, Cluster, Item, Key, Repository};
use mainstay::backup::seal::{Checker, KeySet, Opener, Sealer, SigningKey, new_key_set_for};
use mainstay::backup::source::postgres::{BaseEvent, PostgresError};
use mainstay::backup::take::{BaseStream, Job, LogSpan, TakeError, Taken, Wish, take};
use mainstay::model::{Lsn, SegmentSize, SourceName, SystemId, Timeline};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Tells the process that it is the one to be killed: endpoint, prefix, recipient and signing key, a line each.
const CHILD: &str = "MAINSTAY_TEST_TAKE_CHILD";

fn cluster() -> Cluster {
    Cluster { source: SourceName::new("shop-db").unwrap(), system: SystemId(7) }
}

/// A small backup, with a tablespace.
fn events() -> Vec<BaseEvent> {
    let archive = |files: &[(&str, usize)]| {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, length) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(*length as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, path, &vec![7; *length][..]).unwrap();
        }
        BaseEvent::Data(builder.into_inner().unwrap().into())
    };
    let manifest = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [],\n";
    let sum = hex::encode(Sha256::digest(manifest.as_bytes()));
    let tablespace = Archive::Tablespace(16_384);
    vec![
        BaseEvent::Begin {
            start: Lsn(0x200_0028),
            timeline: Timeline(1),
            archives: vec![(tablespace, Some("/srv/fast".into())), (Archive::Base, None)],
            estimated_bytes: None,
        },
        BaseEvent::Archive(tablespace),
        archive(&[("PG_15_202209061/5/16385", 8_192)]),
        BaseEvent::Archive(Archive::Base),
        archive(&[("backup_label", 200), ("tablespace_map", 20), ("base/5/1", 50_000), ("global/pg_control", 8_192)]),
        BaseEvent::ServerManifest(format!("{manifest}\"Manifest-Checksum\": \"{sum}\"}}\n").into()),
        BaseEvent::End { stop: Lsn(0x200_0100), timeline: Timeline(1) },
    ]
}

async fn back_up(repository: Arc<dyn Repository>, sealer: Sealer) -> Result<Taken, TakeError> {
    let server = ServerFacts {
        system: SystemId(7),
        version: 150_000,
        segment_size: SegmentSize::USUAL,
        block_size: 8_192,
        data_checksums: false,
        settings: BTreeMap::new(),
        tablespaces: BTreeMap::new(),
        databases: BTreeMap::new(),
    };
    let job = Job { cluster: cluster(), server, repository, sealer, wish: Wish::Whole, tell: Arc::new(|_| {}) };
    let open = |_: Option<Bytes>| -> BoxFuture<'static, Result<BaseStream, PostgresError>> {
        async { Ok(stream::iter(events().into_iter().map(Ok)).boxed()) }.boxed()
    };
    let durable =
        |_: LogSpan| -> BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>> { async { Ok(()) }.boxed() };
    take(job, open, durable).await
}

/// The backups that can be seen, every object of each opened.
async fn visible(repository: &dyn Repository, keys: &KeySet) -> usize {
    let checker = Checker::new(vec![keys.signing.public()]);
    let opener = Opener::new(keys.identity.clone(), checker.clone());
    let mut seen = 0;
    for object in repository.list("").await.unwrap() {
        let key: Key = object.name.parse().unwrap();
        let Key::Of(_, Item::Manifest(_)) = &key else { continue };
        let (_, manifest): (_, Manifest) = checker.document(&key, &repository.get(&key).await.unwrap()).unwrap();
        assert_eq!(manifest.objects.len(), 4);
        for object in &manifest.objects {
            let key: Key = object.key.parse().unwrap();
            let (seal, _) = opener.open(&key, &repository.get(&key).await.unwrap()).unwrap();
            assert_eq!((&seal.plain, &seal.stored), (&object.plain, &object.stored));
        }
        seen += 1;
    }
    seen
}

fn keys(folder: &Path) -> KeySet {
    new_key_set_for(SigningKey::open(&folder.join("sign.key")).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_a_killed_writer_leaves_a_whole_backup_or_none() {
    if let Ok(told) = std::env::var(CHILD) {
        return child(&told).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let keys = keys(folder.path());
    let server = S3Server::shared();
    let proxy = StoreProxy::start(&server.address());
    let name = "recovery::take::killed::r11_a_killed_writer_leaves_a_whole_backup_or_none";
    for when in [When::Before, When::After] {
        let settings = server.settings();
        let store = S3::open(settings.clone()).await.unwrap();
        let (mut whole, mut killed) = (0, 0);
        for at in 1..100 {
            let told: [&str; 4] =
                [&proxy.endpoint(), &settings.prefix, &keys.recipient, folder.path().to_str().unwrap()];
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(CHILD, told.join("\n"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            proxy.kill_at(Pid::from_raw(child.id() as i32), at, when);
            child.stdin.take().unwrap().write_all(b"go\n").unwrap();
            let output = child.wait_with_output().unwrap();
            let now = visible(&store, &keys).await;
            if output.status.signal() != Some(Signal::SIGKILL as i32) {
                let said = [output.stdout, output.stderr].concat();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
                assert_eq!(now, whole + 1);
                break;
            }
            killed += 1;
            let (_, call) = proxy.told();
            let call = call.unwrap();
            // It is there only from the moment its manifest was stored.
            assert!(now == whole || (now == whole + 1 && call.contains("manifest.json")), "{when:?}: {at}: {call}");
            whole = now;
        }
        // Four objects, list, four receipts, manifest, its receipt: at the least.
        assert!((11..100).contains(&killed), "{killed}");
        // Killed when the manifest was stored and nobody had heard of it, and with its receipt.
        assert!(whole <= 3, "{whole}");
        println!("recovery: {killed} kills of a process that backs up, {when:?} each call; 0 backups broken");
    }
}

/// Takes a backup when it is told to, and is killed in the middle.
async fn child(told: &str) {
    let [endpoint, prefix, recipient, folder] = told.split('\n').collect::<Vec<_>>()[..] else { panic!("{told}") };
    std::io::stdin().read_exact(&mut [0; 3]).unwrap();
    let sealer = Sealer::new(&[recipient.to_owned()], SigningKey::open(&Path::new(folder).join("sign.key")).unwrap());
    let store = store_at(endpoint, prefix).await;
    back_up(Arc::new(store), sealer.unwrap()).await.unwrap();
}

async fn store_at(endpoint: &str, prefix: &str) -> S3 {
    let settings = S3Server::shared().settings();
    S3::open(S3Settings { endpoint: Some(endpoint.to_owned()), prefix: prefix.to_owned(), ..settings }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r11_a_store_that_fails_at_any_call_leaves_a_whole_backup_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let keys = keys(folder.path());
    let server = S3Server::shared();
    let proxy = StoreProxy::start(&server.address());
    // Whether it passes when tried again.
    let faults =
        [(Fault::LoseAnswer, true), (Fault::Answer(503), true), (Fault::Answer(403), false), (Fault::Pretend, false)];
    for (fault, passes) in faults {
        let mut ended_well = false;
        for at in 1..100 {
            let settings = server.settings();
            let behind = S3::open(settings.clone()).await.unwrap();
            let store = store_at(&proxy.endpoint(), &settings.prefix).await;
            let sealer = Sealer::new(std::slice::from_ref(&keys.recipient), keys.signing.clone()).unwrap();
            proxy.calm();
            proxy.forget();
            proxy.rule(Rule::new(fault.clone()).from(at).times(1));
            let result = back_up(Arc::new(store), sealer).await;
            let calls = proxy.calls().len();
            let seen = visible(&behind, &keys).await;
            match &result {
                Ok(_) => assert_eq!(seen, 1, "{fault:?} at {at}"),
                // The manifest may be there, when it was what came after it that failed.
                Err(error) => assert!(!passes && seen <= 1, "{fault:?} at {at}: {error}"),
            }
            if calls < at {
                println!("recovery: {fault:?} at each of the {calls} calls of a backup; 0 backups broken");
                ended_well = true;
                break;
            }
        }
        assert!(ended_well, "{fault:?}");
    }
}
