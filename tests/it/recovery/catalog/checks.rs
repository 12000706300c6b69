//! The check: what it reads, what it finds, what it proves, and what it leaves open.

use super::lab::{Lab, sent};
use super::world::{DAY, HOUR, MIB, World};
use mainstay::backup::catalog::index::BadKind;
use mainstay::backup::catalog::manifest::ProofKind;
use mainstay::backup::repository::{Archive, BackupId, Item, Key, Repository};
use mainstay::backup::seal::{Opener, new_key_set};
use mainstay::backup::verify::{Report, Settings, VerifyError, verify};
use mainstay::model::{Lsn, SegmentSize, Timeline};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) async fn check(world: &World, opener: Option<&Opener>, sample: u64) -> Result<Report, VerifyError> {
    let Lab { layer, checker, sealer, cluster, .. } = &world.lab;
    layer.faults().read.clear();
    let settings = Settings { sample, seed: 1, now: World::at(world.now) };
    sent(verify(layer, checker, opener, Some(sealer), &cluster.source, settings)).await
}

async fn two_backups() -> World {
    let mut world = World::new();
    world.pass(HOUR);
    world.write(100_000).await;
    for _ in 0..2 {
        world.take(None, false).await.unwrap();
        world.write(2 * MIB).await;
        world.pass(DAY);
        world.frontier().await;
    }
    world
}

fn file(world: &World, item: Item) -> PathBuf {
    world.lab.root.join(world.lab.key(item).to_string())
}

fn chunk(backup: &BackupId) -> Item {
    Item::Chunk { backup: backup.clone(), archive: Archive::Base, number: 1 }
}

fn second_segment() -> Item {
    Item::Segment(SegmentSize::new(MIB).unwrap().name(Timeline(1), Lsn(4 * MIB)))
}

async fn proofs(world: &World) -> Vec<Vec<(ProofKind, bool)>> {
    let catalogue = world.catalogue().await;
    let backups = catalogue.newest_cluster().unwrap().backups.values();
    backups.map(|backup| backup.proofs.iter().map(|(_, proof)| (proof.kind, proof.good)).collect()).collect()
}

#[tokio::test]
async fn what_was_read_once_is_not_read_again() {
    let mut world = two_backups().await;
    let first = check(&world, None, 0).await.unwrap();
    assert_eq!((first.exit_code(), first.findings.len(), first.proofs), (0, 0, 2));
    let cluster = &first.clusters[0];
    assert!(cluster.backups.iter().all(|one| one.whole && one.read.objects == 4 && one.known.objects == 0));
    assert_eq!(proofs(&world).await, [[(ProofKind::Stored, true)], [(ProofKind::Stored, true)]]);
    // Again: only pieces, which a segment may replace any time.
    let again = check(&world, None, 0).await.unwrap();
    assert_eq!((again.exit_code(), again.proofs), (0, 0));
    assert!(again.clusters[0].backups.iter().all(|one| one.read.objects == 0 && one.known.objects == 4));
    let read = world.lab.layer.faults().read.clone();
    assert!(
        read.iter().all(|name| !name.contains("/wal/") && !name.ends_with(".age") || name.contains("/piece/")),
        "{read:?}"
    );
    // A sample of all is all.
    assert_eq!(check(&world, None, 1).await.unwrap().clusters[0].log_known.objects, 0);
    // What is new is read: a backup, and log; the proof says how far.
    world.take(None, false).await.unwrap();
    world.write(MIB).await;
    let more = check(&world, None, 0).await.unwrap();
    assert_eq!(more.clusters[0].backups.iter().map(|one| one.read.objects).collect::<Vec<_>>(), [0, 0, 4]);
    assert_eq!((more.clusters[0].log_known.objects, more.proofs), (again.clusters[0].log_known.objects, 1));
    // With an identity everything is opened once, and that is known too.
    let opened = check(&world, Some(&world.lab.opener), 0).await.unwrap();
    assert_eq!((opened.exit_code(), opened.kind, opened.proofs), (0, ProofKind::Opened, 3));
    assert!(opened.clusters[0].backups.iter().all(|one| one.read.objects == 4));
    let opened = check(&world, Some(&world.lab.opener), 0).await.unwrap();
    assert!(opened.clusters[0].backups.iter().all(|one| one.known.objects == 4));
    world.catalogue().await;
}

#[tokio::test]
async fn damage_is_named_exactly_and_proven() {
    let world = two_backups().await;
    let (one, two) = (world.taken[0].id.clone(), world.taken[1].id.clone());
    assert_eq!(check(&world, None, 0).await.unwrap().exit_code(), 0);
    // A byte of the first backup rots, the second one loses an object, and a segment is cut.
    let path = file(&world, chunk(&one));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    std::fs::remove_file(file(&world, chunk(&two))).unwrap();
    let segment = file(&world, second_segment());
    let whole = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, &whole[..whole.len() - 1]).unwrap();
    // What is gone or cut is seen at once; what rots, when it is read.
    let seen = check(&world, None, 0).await.unwrap();
    assert_eq!(seen.exit_code(), 1);
    let names = |report: &Report| {
        report.findings.iter().map(|finding| (finding.name.clone(), finding.kind)).collect::<Vec<_>>()
    };
    let name = |item: Item| world.lab.key(item).to_string();
    assert_eq!(names(&seen), [(name(chunk(&two)), BadKind::Gone)]);
    let all = check(&world, None, 1).await.unwrap();
    assert_eq!(
        names(&all),
        [
            (name(chunk(&one)), BadKind::Damaged),
            (name(chunk(&two)), BadKind::Gone),
            (name(second_segment()), BadKind::Damaged),
        ]
    );
    assert_eq!(proofs(&world).await.iter().map(|proofs| proofs.last().unwrap().1).collect::<Vec<_>>(), [false, false]);
    // The same again is no news.
    assert_eq!(check(&world, None, 1).await.unwrap().proofs, 0);
    // Mended, the first one is read as a whole and is good again.
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    std::fs::write(&segment, &whole).unwrap();
    let mended = check(&world, None, 0).await.unwrap();
    assert_eq!(mended.clusters[0].backups[0].read.objects, 4);
    assert_eq!(names(&mended), [(name(chunk(&two)), BadKind::Gone)]);
    assert!(proofs(&world).await[0].last().unwrap().1);
}

#[tokio::test]
async fn a_difference_without_its_parent_is_found() {
    let mut world = two_backups().await;
    let parent = world.taken[1].id.clone();
    let middle = world.take(Some(parent.clone()), false).await.unwrap();
    let newest = world.take(Some(middle.clone()), false).await.unwrap();
    for opener in [None, Some(&world.lab.opener)] {
        assert_eq!(check(&world, opener, 0).await.unwrap().findings, []);
    }
    // Somebody takes the one in the middle away; what is left of it is nobody's.
    std::fs::remove_file(file(&world, Item::Manifest(middle.clone()))).unwrap();
    let name = world.lab.key(Item::Manifest(newest.clone())).to_string();
    for opener in [None, Some(&world.lab.opener)] {
        let found = check(&world, opener, 0).await.unwrap();
        assert_eq!(found.exit_code(), 1);
        let why = format!("{newest} is the difference to {middle}, which is not there");
        let said = |finding: &mainstay::backup::verify::Finding| finding.name == name && finding.why == why;
        assert!(found.findings.iter().any(said), "{:?}", found.findings);
    }
    let catalogue = world.lab.read().await.unwrap();
    let newest_usable = catalogue.newest_cluster().unwrap().newest_usable().unwrap().id().clone();
    assert_eq!(newest_usable, parent, "nothing is built on it, and nothing restored from it");
}

#[tokio::test]
async fn the_sources_own_file_is_checked_too() {
    let world = two_backups().await;
    for number in [1, 2] {
        let key = Key::Source(world.lab.cluster.source.clone(), number);
        world.lab.put(&key, b"postgres: postgres://db", &[]).await;
    }
    assert_eq!(check(&world, Some(&world.lab.opener), 0).await.unwrap().exit_code(), 0);
    let newest = Key::Source(world.lab.cluster.source.clone(), 2).to_string();
    std::fs::write(world.lab.root.join(&newest), "other").unwrap();
    let report = check(&world, None, 0).await.unwrap();
    assert_eq!(
        report.findings.iter().map(|finding| (&finding.name, finding.kind)).collect::<Vec<_>>(),
        [(&newest, BadKind::Damaged)]
    );
}

#[tokio::test]
async fn a_place_that_cannot_be_reached_is_no_damage() {
    let world = two_backups().await;
    let name = world.lab.key(chunk(&world.taken[1].id)).to_string();
    world.lab.layer.faults().unreachable.insert(name);
    let report = check(&world, None, 0).await.unwrap();
    assert_eq!((report.exit_code(), report.findings.len()), (3, 0));
    assert!(report.ended_early.as_ref().is_some_and(|why| why.contains("503")));
    // What was read before is proven, and nothing is said of the other.
    assert_eq!(report.clusters[0].backups.iter().map(|one| one.whole).collect::<Vec<_>>(), [true, false]);
    assert_eq!(proofs(&world).await.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0]);
    // The place itself.
    let listing = world.lab.key(Item::Manifest(world.taken[0].id.clone())).to_string();
    world.lab.layer.faults().unreachable.insert(listing);
    assert!(matches!(check(&world, None, 0).await, Err(VerifyError::Catalogue(_))));
}

#[tokio::test]
async fn with_an_identity_it_sees_what_digests_do_not() {
    let mut world = two_backups().await;
    // Signed and stored as it should be, and yet log of another cluster: its header says so.
    let last = world.end.segment_end(SegmentSize::new(MIB).unwrap());
    world.write(last.0 - world.end.0).await;
    let first = last;
    world.end = Lsn(first.0 + MIB);
    let key = world.lab.key(Item::Segment(SegmentSize::new(MIB).unwrap().name(Timeline(1), first)));
    let mut plain = world.bytes(Timeline(1), &[], first, world.end);
    plain[24] ^= 1;
    world.lab.put(&key, &plain, &[]).await;
    assert_eq!(check(&world, None, 0).await.unwrap().exit_code(), 0);
    let report = check(&world, Some(&world.lab.opener), 0).await.unwrap();
    assert_eq!((report.exit_code(), report.findings.len()), (1, 1));
    assert_eq!((report.findings[0].name.clone(), report.findings[0].kind), (key.to_string(), BadKind::Contents));
    // A segment of the wrong length is seen without one.
    let short = world.lab.key(Item::Piece { timeline: Timeline(1), first: world.end, last: Lsn(world.end.0 + 100) });
    world.lab.put(&short, &[7; 99], &[]).await;
    let report = check(&world, None, 0).await.unwrap();
    assert_eq!(report.findings.iter().map(|finding| &finding.name).collect::<Vec<_>>(), [&short.to_string()]);
    // An identity that opens nothing is the wrong one, and no damage.
    let other = new_key_set().unwrap();
    let wrong = Opener::new(other.identity, world.lab.checker.clone());
    assert!(matches!(check(&world, Some(&wrong), 0).await, Err(VerifyError::Identity { .. })));
}

#[tokio::test]
async fn another_object_under_a_good_name_and_signature_is_found() {
    let world = two_backups().await;
    let key = world.lab.key(chunk(&world.taken[0].id));
    let before = world.lab.layer.get(&key).await.unwrap();
    // Whoever holds the signing key could write it again; the manifest remembers which one it was.
    let sealed = world.lab.sealer.seal(&key, &vec![1; before.bytes().len()], BTreeMap::new()).unwrap();
    world.lab.layer.delete(&key).await.unwrap();
    world.lab.layer.put_new(&key, &sealed).await.unwrap();
    let report = check(&world, None, 0).await.unwrap();
    assert_eq!(report.exit_code(), 1);
    assert_eq!(report.findings[0].name, key.to_string());
}
