use super::*;
use crate::backup::repository::{Cluster, Item};
use crate::backup::seal::{Extent, Seal};
use crate::model::{SourceName, SystemId};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

fn key(number: u64) -> Key {
    let cluster = Cluster { source: SourceName::new("shop-db").unwrap(), system: SystemId(7) };
    Key::Of(cluster, Item::Frontier(number))
}

/// A sealed object as far as a repository looks: digests are right, the signature is none.
fn object(key: &Key, content: &[u8]) -> Sealed {
    let extent = Extent::of(content);
    let seal = Seal {
        version: 1,
        key: key.to_string(),
        plain: extent.clone(),
        stored: extent,
        recipients: Vec::new(),
        at: "2026-11-23T10:15:00Z".parse().unwrap(),
        note: BTreeMap::new(),
        signer: "nobody".to_owned(),
    };
    let receipt = Receipt { seal: serde_json::to_string(&seal).unwrap(), signature: "none".to_owned() };
    Sealed { bytes: Bytes::copy_from_slice(content), receipt }
}

fn mode(path: PathBuf) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn text(error: &RepositoryError) -> String {
    error.to_string()
}

#[tokio::test]
async fn a_folder_without_its_marker_is_never_an_empty_repository() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repository");
    assert!(matches!(Folder::open(&root).unwrap_err(), RepositoryError::Refused { .. }));
    fs::create_dir(&root).unwrap();
    let error = Folder::open(&root).unwrap_err();
    assert!(text(&error).contains("is its disk mounted?"), "{error}");

    let folder = Folder::create(&root).unwrap();
    folder.put_new(&key(1), &object(&key(1), b"one")).await.unwrap();
    // The disk goes away under it: nothing is absent, nothing is empty, nothing is written.
    fs::rename(&root, dir.path().join("elsewhere")).unwrap();
    fs::create_dir(&root).unwrap();
    for error in [
        folder.get(&key(1)).await.unwrap_err(),
        folder.list("").await.unwrap_err(),
        folder.put_new(&key(2), &object(&key(2), b"two")).await.unwrap_err(),
        folder.delete(&key(1)).await.unwrap_err(),
        folder.lease(&key(1)).await.unwrap_err(),
        folder.abilities().await.unwrap_err(),
    ] {
        assert!(matches!(error, RepositoryError::Refused { .. }), "{error:?}");
    }
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);

    // Another repository in its place is not taken for it either.
    Folder::create(&root).unwrap();
    let error = folder.list("").await.unwrap_err();
    assert!(text(&error).contains("another repository"), "{error}");
}

#[test]
fn a_repository_is_made_only_where_nothing_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("photo.jpg"), b"x").unwrap();
    let error = Folder::create(dir.path()).unwrap_err();
    assert!(text(&error).contains("photo.jpg"), "{error}");
    let error = Folder::create(dir.path().join("photo.jpg")).unwrap_err();
    assert!(text(&error).contains("not a folder"), "{error}");

    let root = dir.path().join("new");
    let first = Folder::create(&root).unwrap();
    let again = Folder::create(&root).unwrap();
    assert_eq!(first.place.root, again.place.root);
    assert!(Folder::open(&root).is_ok());
    fs::write(root.join(".mainstay/repository"), "mainstay repository 2\n").unwrap();
    assert!(text(&Folder::open(&root).unwrap_err()).contains("another form"));
}

#[tokio::test]
async fn files_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repository");
    let folder = Folder::create(&root).unwrap();
    folder.put_new(&key(1), &object(&key(1), b"one")).await.unwrap();
    let name = key(1).to_string();
    assert_eq!(mode(root.join(&name)), 0o600);
    assert_eq!(mode(root.join(format!("{name}.seal"))), 0o600);
    assert_eq!(mode(root.join("shop-db")), 0o700);
    assert_eq!(mode(root.clone()), 0o700);
    assert_eq!(fs::read_dir(root.join(".mainstay/tmp")).unwrap().count(), 0, "temporary files are gone");
}

#[tokio::test]
async fn what_a_killed_writer_left_is_nothing_and_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path()).unwrap();
    let name = key(1).to_string();
    // Killed between the receipt and the object.
    fs::create_dir_all(parent(&folder.place.path(&name))).unwrap();
    fs::write(seal_of(&folder.place.path(&name)), receipt_text(&object(&key(1), b"never").receipt)).unwrap();
    let left = dir.path().join(".mainstay/tmp/old");
    fs::write(&left, b"half").unwrap();
    let young = dir.path().join(".mainstay/tmp/young");
    fs::write(&young, b"half").unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    File::options().write(true).open(&left).unwrap().set_modified(old).unwrap();

    assert!(matches!(folder.get(&key(1)).await, Err(RepositoryError::Absent { .. })));
    assert_eq!(folder.list("").await.unwrap(), []);
    let ours = object(&key(1), b"one");
    // A process of its own, as after a kill.
    let folder = Folder::open(dir.path()).unwrap();
    assert_eq!(folder.put_new(&key(1), &ours).await.unwrap(), Put::Stored);
    assert_eq!(folder.get(&key(1)).await.unwrap().receipt(), &ours.receipt);
    assert!(!left.exists() && young.exists());
}

#[tokio::test]
async fn damage_on_the_disk_is_damage_and_not_absence() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path()).unwrap();
    let at = |number: u64| folder.place.path(&key(number).to_string());
    for number in 1..=4 {
        folder.put_new(&key(number), &object(&key(number), b"content")).await.unwrap();
    }
    fs::write(at(1), b"Content").unwrap();
    fs::write(at(2), b"cont").unwrap();
    fs::remove_file(seal_of(&at(3))).unwrap();
    fs::write(seal_of(&at(4)), b"{").unwrap();
    for (number, words) in
        [(1, "not what its receipt"), (2, "4 bytes long instead of 7"), (3, "is missing"), (4, "does not read")]
    {
        let error = folder.get(&key(number)).await.unwrap_err();
        assert!(matches!(error, RepositoryError::Damaged { .. }), "{error:?}");
        assert!(text(&error).contains(words), "{error}");
        // Neither is it written over.
        let put = folder.put_new(&key(number), &object(&key(number), b"content")).await;
        assert!(matches!(put, Err(RepositoryError::Damaged { .. })), "{number}: {put:?}");
    }
    assert_eq!(folder.list("").await.unwrap().len(), 4);
}

#[tokio::test]
async fn links_are_not_followed() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = Folder::create(dir.path()).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("shop-db")).unwrap();
    let ours = object(&key(1), b"one");
    for error in [
        folder.put_new(&key(1), &ours).await.unwrap_err(),
        folder.get(&key(1)).await.unwrap_err(),
        folder.delete(&key(1)).await.unwrap_err(),
        folder.list("").await.unwrap_err(),
        folder.list("shop-db/").await.unwrap_err(),
    ] {
        assert!(matches!(error, RepositoryError::Refused { .. }), "{error:?}");
        assert!(text(&error).contains("not followed"), "{error}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(folder.list("../").await.unwrap(), []);
    assert_eq!(folder.list(".mainstay/").await.unwrap(), []);
}

#[tokio::test]
async fn a_deleted_object_leaves_no_folders_behind() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path()).unwrap();
    folder.put_new(&key(1), &object(&key(1), b"one")).await.unwrap();
    folder.put_new(&key(2), &object(&key(2), b"two")).await.unwrap();
    assert_eq!(folder.delete(&key(1)).await.unwrap(), Deleted::Gone);
    assert!(dir.path().join("shop-db/7/frontier").is_dir());
    assert_eq!(folder.delete(&key(2)).await.unwrap(), Deleted::Gone);
    assert!(!dir.path().join("shop-db").exists());
    assert_eq!(folder.delete(&key(2)).await.unwrap(), Deleted::Absent);
}

#[tokio::test]
async fn a_lease_whose_writer_was_killed_in_the_middle_is_none_and_can_be_taken() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path()).unwrap();
    let lease = Key::Lease(SourceName::new("shop-db").unwrap());
    let (first, second) = (object(&lease, b"first"), object(&lease, b"second"));
    folder.replace_lease(&lease, &first, None).await.unwrap();
    let seen = folder.lease(&lease).await.unwrap().unwrap();
    // Killed before the new receipt, and after it.
    let at = folder.place.path(&lease.to_string());
    for receipt in [&first.receipt, &second.receipt] {
        let _ = fs::remove_file(&at);
        fs::write(seal_of(&at), receipt_text(receipt)).unwrap();
        assert_eq!(folder.lease(&lease).await.unwrap(), None);
        let replaced = folder.replace_lease(&lease, &second, Some(&seen.version)).await.unwrap();
        assert_eq!(replaced, Replaced::Changed);
        assert_eq!(folder.replace_lease(&lease, &second, None).await.unwrap(), Replaced::Done);
        assert_eq!(folder.get(&lease).await.unwrap().bytes, second.bytes);
    }
}

#[tokio::test]
async fn a_writer_that_hangs_holds_up_its_name_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path()).unwrap();
    let name = key(1).to_string();
    let held = Lock::to_write(&folder.place, &name).unwrap();
    let (other, ours) = (folder.clone(), object(&key(1), b"one"));
    let waiting = tokio::spawn(async move { other.put_new(&key(1), &ours).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    drop(held);
    assert_eq!(waiting.await.unwrap().unwrap(), Put::Stored);
}

#[test]
fn what_the_system_refuses_is_said_with_what_to_try() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::create(dir.path()).unwrap();
    let said = |number: i32| place.fault("store x", io::Error::from_raw_os_error(number));
    for number in [libc::EACCES, libc::EROFS, libc::EPERM, libc::EOPNOTSUPP, libc::ENOTDIR] {
        let error = said(number);
        assert!(matches!(error, RepositoryError::Refused { .. }) && text(&error).contains("\nhint: "), "{error:?}");
    }
    for number in [libc::ENOSPC, libc::EDQUOT, libc::ENOENT] {
        let error = said(number);
        assert!(matches!(error, RepositoryError::Unreachable { .. }) && text(&error).contains("\nhint: "), "{error:?}");
    }
    for number in [libc::EIO, libc::ESTALE, libc::ENODEV, libc::ETIMEDOUT] {
        assert!(matches!(said(number), RepositoryError::Unreachable { .. }));
    }
}
