//! Every sentence of the contract, on every kind of place.

use super::*;
use futures_util::future::join_all;
use mainstay::backup::repository::{Deleted, Put, Replaced, RepositoryError};
use mainstay::backup::seal::Receipt;

macro_rules! on_every_place {
    ($($sentence:ident)*) => {
        mod on_a_folder {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sentence() {
                super::$sentence(&super::Place::folder()).await;
            })*
        }
        mod on_s3 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sentence() {
                super::$sentence(&super::Place::s3().await).await;
            })*
        }
        mod on_s3_that_misbehaves {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sentence() {
                super::$sentence(&super::Place::misbehaving().await).await;
            })*
        }
    };
}

on_every_place! {
    what_is_stored_comes_back_as_it_was
    a_name_is_written_once
    what_is_not_there_is_absent
    a_listing_is_whole_and_in_order
    what_is_deleted_is_gone_and_its_name_is_free
    of_32_writers_of_a_name_one_is_told_that_it_stored_it
    a_reader_sees_nothing_or_the_whole_object
    the_lease_is_replaced_by_who_has_seen_it_last
    a_large_object_goes_and_comes_in_parts
    what_was_given_up_can_be_repeated
    many_tasks_at_once_are_no_trouble
}

async fn stored(repository: &dyn Repository, key: &Key, object: &Sealed) {
    assert_eq!(repository.put_new(key, object).await.unwrap(), Put::Stored, "{key}");
}

fn absent<T: std::fmt::Debug>(answer: Result<T, RepositoryError>) -> bool {
    matches!(answer, Err(RepositoryError::Absent { .. }))
}

async fn what_is_stored_comes_back_as_it_was(place: &Place) {
    let abilities = place.ours.abilities().await.unwrap();
    assert!(abilities.write_once && abilities.replace_if && !abilities.object_lock);
    for (key, content) in [(piece(1), random(1)), (segment(), random(1 << 20)), (manifest(), b"{}".to_vec())] {
        let object = place.sealed(&key, &content);
        stored(&*place.ours, &key, &object).await;
        let back = place.theirs.get(&key).await.unwrap();
        assert_eq!((back.bytes(), back.receipt()), (&object.bytes, &object.receipt));
        assert_eq!(place.theirs.receipt(&key).await.unwrap(), object.receipt);
    }
}

async fn a_name_is_written_once(place: &Place) {
    let key = piece(1);
    let (first, second) = (place.sealed(&key, b"content"), place.sealed(&key, b"content"));
    assert_ne!(first.bytes, second.bytes);
    stored(&*place.ours, &key, &first).await;
    // The same again is the repetition of a try whose answer was lost.
    stored(&*place.ours, &key, &first).await;
    stored(&*place.theirs, &key, &first).await;
    let put = place.theirs.put_new(&key, &second).await.unwrap();
    assert_eq!(put, Put::Exists(first.receipt.clone()));
    assert!(first.receipt.same_content(&second.receipt));
    let Put::Exists(found) = place.ours.put_new(&key, &place.sealed(&key, b"other")).await.unwrap() else {
        panic!("written over")
    };
    assert!(!found.same_content(&place.sealed(&key, b"other").receipt));
    assert_eq!(place.ours.get(&key).await.unwrap().bytes(), &first.bytes);
}

async fn what_is_not_there_is_absent(place: &Place) {
    stored(&*place.ours, &piece(1), &place.sealed(&piece(1), b"x")).await;
    assert!(absent(place.ours.get(&piece(2)).await));
    assert!(absent(place.ours.receipt(&piece(2)).await));
    assert!(absent(place.ours.get(&segment()).await));
    assert_eq!(place.ours.delete(&piece(2)).await.unwrap(), Deleted::Absent);
    assert_eq!(place.ours.lease(&Key::Lease(source())).await.unwrap(), None);
    assert_eq!(place.ours.list("shop-db/7432101234567890123/wal/").await.unwrap(), []);
    assert_eq!(place.ours.list("nobody/").await.unwrap(), []);
}

async fn a_listing_is_whole_and_in_order(place: &Place) {
    let mut lengths = BTreeMap::new();
    for key in (0..12).map(|number| piece(number * 7 % 12)).chain([segment(), manifest(), of(Item::Frontier(3))]) {
        let object = place.sealed(&key, key.to_string().as_bytes());
        stored(&*place.ours, &key, &object).await;
        lengths.insert(key.to_string(), object.bytes.len() as u64);
    }
    let names = |prefix: &str| {
        let (theirs, prefix) = (Arc::clone(&place.theirs), prefix.to_owned());
        async move { theirs.list(&prefix).await.unwrap().into_iter().map(|found| found.name).collect::<Vec<_>>() }
    };
    let all = place.theirs.list("").await.unwrap();
    let found: Vec<_> = all.iter().map(|listed| (listed.name.clone(), listed.bytes)).collect();
    assert_eq!(found, lengths.clone().into_iter().collect::<Vec<_>>());
    let now = jiff::Timestamp::now();
    assert!(all.iter().all(|listed| (now.as_second() - listed.written.as_second()).abs() < 120), "{all:?}");
    let starting = |prefix: &str| lengths.keys().filter(|name| name.starts_with(prefix)).cloned().collect::<Vec<_>>();
    for prefix in [
        "shop-db/",
        "shop-db/7432101234567890123/piece/",
        // Not only whole parts of a name.
        "shop-db/7432101234567890123/piece/00000001/00000000000005",
        "shop-db/7432101234567890123/p",
        "shop-d",
    ] {
        assert!(!starting(prefix).is_empty(), "{prefix}");
        assert_eq!(names(prefix).await, starting(prefix), "{prefix}");
    }
    assert_eq!(names("shop-db/7432101234567890123/piece/00000001/9").await, Vec::<String>::new());
}

async fn what_is_deleted_is_gone_and_its_name_is_free(place: &Place) {
    let (key, other) = (piece(1), piece(2));
    stored(&*place.ours, &key, &place.sealed(&key, b"first")).await;
    stored(&*place.ours, &other, &place.sealed(&other, b"other")).await;
    assert_eq!(place.ours.delete(&key).await.unwrap(), Deleted::Gone);
    assert_eq!(place.ours.delete(&key).await.unwrap(), Deleted::Absent);
    assert!(absent(place.theirs.get(&key).await));
    assert!(absent(place.theirs.receipt(&key).await));
    assert_eq!(place.theirs.list("").await.unwrap().len(), 1);
    let again = place.sealed(&key, b"second");
    stored(&*place.theirs, &key, &again).await;
    assert_eq!(place.ours.get(&key).await.unwrap().bytes(), &again.bytes);
}

async fn of_32_writers_of_a_name_one_is_told_that_it_stored_it(place: &Place) {
    let key = manifest();
    let objects: Vec<_> = (0..32).map(|n: i32| place.sealed(&key, format!("writer {n}").as_bytes())).collect();
    let writers = objects.iter().enumerate().map(|(n, object)| {
        let repository = Arc::clone(if n % 2 == 0 { &place.ours } else { &place.theirs });
        let (key, object) = (key.clone(), object.clone());
        tokio::spawn(async move { repository.put_new(&key, &object).await.unwrap() })
    });
    let told: Vec<Put> = join_all(writers).await.into_iter().map(Result::unwrap).collect();
    let winners: Vec<_> = (0..told.len()).filter(|n| told[*n] == Put::Stored).collect();
    assert_eq!(winners.len(), 1, "{told:?}");
    let winner = &objects[winners[0]];
    let others: Vec<&Receipt> =
        told.iter().filter_map(|put| if let Put::Exists(found) = put { Some(found) } else { None }).collect();
    assert!(others.len() == 31 && others.iter().all(|found| **found == winner.receipt));
    assert_eq!(place.ours.get(&key).await.unwrap().bytes(), &winner.bytes);
}

async fn a_reader_sees_nothing_or_the_whole_object(place: &Place) {
    for number in 0..3 {
        let key = piece(number);
        let object = place.sealed(&key, &random(2 << 20));
        let (repository, ours, written) = (Arc::clone(&place.ours), key.clone(), object.clone());
        let writer = tokio::spawn(async move { repository.put_new(&ours, &written).await.unwrap() });
        let mut seen = false;
        while !seen {
            match place.theirs.get(&key).await {
                Ok(back) => {
                    assert_eq!((back.bytes(), back.receipt()), (&object.bytes, &object.receipt));
                    seen = true;
                }
                Err(RepositoryError::Absent { .. }) => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(writer.await.unwrap(), Put::Stored);
    }
}

async fn the_lease_is_replaced_by_who_has_seen_it_last(place: &Place) {
    let key = Key::Lease(source());
    let lease = |holder: &str| place.sealed(&key, format!("{{\"holder\":\"{holder}\"}}").as_bytes());
    let (first, second) = (lease("one"), lease("two"));
    assert_eq!(place.theirs.replace_lease(&key, &first, Some("\"none\"")).await.unwrap(), Replaced::Changed);
    assert_eq!(place.ours.replace_lease(&key, &first, None).await.unwrap(), Replaced::Done);
    assert_eq!(place.theirs.replace_lease(&key, &second, None).await.unwrap(), Replaced::Changed);
    let seen = place.theirs.lease(&key).await.unwrap().unwrap();
    assert_eq!((seen.stored.bytes(), seen.stored.receipt()), (&first.bytes, &first.receipt));
    assert_eq!(place.theirs.replace_lease(&key, &second, Some(&seen.version)).await.unwrap(), Replaced::Done);
    assert_eq!(
        place.ours.replace_lease(&key, &lease("one again"), Some(&seen.version)).await.unwrap(),
        Replaced::Changed
    );
    let now = place.ours.lease(&key).await.unwrap().unwrap();
    assert_eq!(now.stored.bytes(), &second.bytes);
    // An ordinary look and the listing know it too.
    assert_eq!(place.ours.get(&key).await.unwrap(), now.stored);
    assert_eq!(place.ours.list("shop-db/lease").await.unwrap().len(), 1);

    let objects: Vec<_> = (0..12).map(|n| lease(&format!("racer {n}"))).collect();
    let racers = objects.iter().enumerate().map(|(n, object)| {
        let repository = Arc::clone(if n % 2 == 0 { &place.ours } else { &place.theirs });
        let (key, object, version) = (key.clone(), object.clone(), now.version.clone());
        tokio::spawn(async move { repository.replace_lease(&key, &object, Some(&version)).await.unwrap() })
    });
    let told: Vec<Replaced> = join_all(racers).await.into_iter().map(Result::unwrap).collect();
    let winners: Vec<_> = (0..told.len()).filter(|n| told[*n] == Replaced::Done).collect();
    assert_eq!(winners.len(), 1, "{told:?}");
    assert_eq!(place.theirs.lease(&key).await.unwrap().unwrap().stored.bytes(), &objects[winners[0]].bytes);
}

async fn a_large_object_goes_and_comes_in_parts(place: &Place) {
    let key = segment();
    let object = place.sealed(&key, &random(17 << 20));
    stored(&*place.ours, &key, &object).await;
    stored(&*place.theirs, &key, &object).await;
    let other = place.sealed(&key, b"other");
    assert_eq!(place.theirs.put_new(&key, &other).await.unwrap(), Put::Exists(object.receipt.clone()));
    let back = place.theirs.get(&key).await.unwrap();
    assert!(back.bytes() == &object.bytes && back.receipt() == &object.receipt);
}

async fn what_was_given_up_can_be_repeated(place: &Place) {
    place.ours.abilities().await.unwrap();
    for (number, size) in (0..4).zip([1 << 10, 17 << 20, 200 << 10, 20]) {
        let key = piece(number);
        let object = place.sealed(&key, &random(size));
        for micros in [300, 3_000, 30_000] {
            let _ = tokio::time::timeout(Duration::from_micros(micros), place.ours.put_new(&key, &object)).await;
            let _ = tokio::time::timeout(Duration::from_micros(micros), place.theirs.get(&key)).await;
        }
        stored(&*place.theirs, &key, &object).await;
        assert!(place.ours.get(&key).await.unwrap().bytes() == &object.bytes);
    }
}

async fn many_tasks_at_once_are_no_trouble(place: &Place) {
    let writers = (0..60).map(|number| {
        let repository = Arc::clone(if number % 2 == 0 { &place.ours } else { &place.theirs });
        let key = piece(number);
        let object = place.sealed(&key, format!("piece {number}").as_bytes());
        tokio::spawn(async move {
            assert_eq!(repository.put_new(&key, &object).await.unwrap(), Put::Stored);
            assert_eq!(repository.get(&key).await.unwrap().bytes(), &object.bytes);
            if number % 3 == 0 {
                assert_eq!(repository.delete(&key).await.unwrap(), Deleted::Gone);
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    assert_eq!(place.ours.list("").await.unwrap().len(), 40);
}

/// A process that writes to a folder is killed at a random moment, many times. Each time everything that is listed is whole,
/// the lease reads, and the next process goes on.
#[test]
fn a_writer_killed_at_any_moment_leaves_whole_objects_and_a_lease_that_reads() {
    const KILLS: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    store::folder(dir.path());
    let seals = sealer();
    let lease = Key::Lease(source());
    let pieces: Vec<_> = (0..300).map(|n| (piece(n), sealed(&seals, &piece(n), &random(3_000)))).collect();
    let leases: Vec<_> = (0..300).map(|n| sealed(&seals, &lease, format!("{{\"holder\":{n}}}").as_bytes())).collect();
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut before = 0;
    for kill in 0..KILLS {
        // SAFETY: nothing else runs in this process yet but the harness's main thread, which waits.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let done = std::panic::catch_unwind(|| {
                    run().block_on(async {
                        let repository = store::folder(dir.path());
                        for ((key, object), next) in pieces.iter().zip(&leases).skip(before) {
                            assert!(repository.put_new(key, object).await.is_ok());
                            let seen = repository.lease(&lease).await.unwrap().map(|seen| seen.version);
                            let replaced = repository.replace_lease(&lease, next, seen.as_deref()).await.unwrap();
                            assert_eq!(replaced, Replaced::Done);
                        }
                    });
                });
                // SAFETY: ends the child here, without the harness's own end.
                unsafe { libc::_exit(if done.is_ok() { 0 } else { 1 }) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                std::thread::sleep(Duration::from_micros(5_000 + getrandom::u64().unwrap() % 25_000));
                nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert!(!matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 1..)), "{ended:?}");
            }
        }
        run().block_on(async {
            let repository = store::folder(dir.path());
            repository.lease(&lease).await.unwrap();
            let listed = repository.list("shop-db/7432101234567890123/").await.unwrap();
            for found in &listed {
                let key: Key = found.name.parse().unwrap();
                let object = &pieces.iter().find(|(other, _)| *other == key).unwrap().1;
                assert_eq!(repository.get(&key).await.unwrap().bytes(), &object.bytes, "after kill {kill}");
            }
            // In order and without a hole: what was said to be stored is.
            let names: Vec<_> = listed.iter().map(|found| found.name.as_str()).collect();
            assert!(pieces.iter().take(names.len()).map(|(key, _)| key.to_string()).eq(names.iter().copied()));
            assert!(names.len() >= before);
            before = names.len();
        });
    }
    assert!(before > 0, "no process lived long enough to store anything");
    println!("recovery: {KILLS} kills of a process that writes into a folder; 0 objects torn");
}
