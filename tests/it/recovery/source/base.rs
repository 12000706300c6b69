//! Base backups: the tree is what the server has, and what is not whole is none.

use super::proxy::{Act, Proxy, message};
use crate::support::postgres::{Options, Server, Stop, run, unpack};
use mainstay::backup::repository::Archive;
use mainstay::backup::source::postgres::{BaseBackup, BaseEvent, BaseOptions, Connection, PostgresError, Purpose};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

/// What stands at a path: its kind, its mode, its bytes.
type Entry = (char, u32, Vec<u8>);

fn tree(top: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(top).unwrap().to_owned();
        let mode = meta.mode() & 0o7777;
        if meta.is_symlink() {
            found.insert(name, ('l', 0, fs::read_link(&path).unwrap().into_os_string().into_vec()));
        } else if meta.is_dir() {
            found.insert(name, ('d', mode, Vec::new()));
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.insert(name, ('f', mode, fs::read(&path).unwrap()));
        }
    }
    found
}

/// CRC-32C as the server's manifest has it, least significant byte first.
fn crc32c(bytes: &[u8]) -> String {
    static TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
        std::array::from_fn(|byte| {
            (0..8).fold(byte as u32, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 })
        })
    });
    let table = &*TABLE;
    let crc = bytes.iter().fold(!0_u32, |crc, byte| (crc >> 8) ^ table[usize::from(crc as u8 ^ byte)]);
    hex::encode((!crc).to_le_bytes())
}

async fn tablespace(server: &Server, name: &str, folder: &str) {
    let place = server.new_folder(OsStr::new(folder));
    server.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display())).await;
    server
        .sql(&format!(
            "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT g, repeat('x', 99) FROM generate_series(1, 2000) g"
        ))
        .await;
}

/// A cluster with what is hard to copy: tablespaces, empty folders, names that are long or no UTF-8.
async fn awkward(version: u32) -> Server {
    let server = Server::start(version, Options { checksums: true, ..Options::with(&["autovacuum = off"]) }).await;
    for (name, folder) in [("one", "space one"), ("two", "space\\two")] {
        tablespace(&server, name, folder).await;
    }
    server.sql("CREATE UNLOGGED TABLE gone AS SELECT 1").await;
    let data = server.data();
    // The longest path that the server's own tar can hold, and bytes that are no text.
    for name in [
        OsStr::new(&"l".repeat(99)),
        OsStr::from_bytes(b"not\xff\xfeutf8"),
        OsStr::new("a line\nbreak"),
        OsStr::new("empty"),
    ] {
        fs::write(data.join(name), name.as_bytes()).unwrap();
        Server::give(&data.join(name));
    }
    fs::write(data.join("empty"), "").unwrap();
    fs::create_dir_all(data.join("nothing/in/here")).unwrap();
    fs::set_permissions(data.join("nothing"), fs::Permissions::from_mode(0o700)).unwrap();
    Server::give(&data.join("nothing"));
    server.sql("CHECKPOINT").await;
    server
}

#[tokio::test]
async fn r13_a_backup_is_what_the_server_has() {
    for version in Server::versions() {
        let server = awkward(version).await;
        let ours = tempfile::tempdir().unwrap();
        let (data, spaces) = (ours.path().join("data"), ours.path().join("spaces"));
        fs::create_dir(&data).unwrap();
        let options = BaseOptions { label: "it's a label".into(), ..BaseOptions::default() };
        let mut backup = BaseBackup::start(server.replication().await, &options, None).await.unwrap();
        let unpacked = unpack(&mut backup, &data, &spaces).await;
        // The data directory last, each with whole blocks and the two of zeros.
        assert_eq!(unpacked.bytes.len(), 3);
        assert_eq!(unpacked.bytes[2].0, Archive::Base);
        assert!(unpacked.bytes.iter().all(|(_, bytes)| bytes % 512 == 0 && *bytes >= 1024));
        let [BaseEvent::Begin { start, archives, estimated_bytes, timeline }, BaseEvent::End { stop, .. }] =
            &unpacked.events[..]
        else {
            panic!("{:?}", unpacked.events)
        };
        assert!(start < stop && timeline.0 == 1);
        assert!(estimated_bytes.is_some_and(|bytes| bytes > 5_000_000));
        for (archive, location) in archives {
            match archive {
                Archive::Base => assert_eq!(*location, None),
                Archive::Tablespace(oid) => {
                    let sql = format!("SELECT pg_tablespace_location({oid})");
                    assert_eq!(location.as_deref(), Some(server.value(&sql).await.as_str()));
                }
            }
        }
        let found = tree(&data);
        let label = String::from_utf8(found[Path::new("backup_label")].2.clone()).unwrap();
        assert!(
            label.contains("LABEL: it's a label") && label.contains(&format!("START WAL LOCATION: {start}")),
            "{label}"
        );
        assert!(found.contains_key(Path::new("tablespace_map")));
        assert_eq!(found[Path::new("nothing/in/here")].0, 'd');
        as_its_manifest_says(&data, &unpacked.server_manifest);
        // Debian's program reads what is not newer than itself.
        if version <= 15 {
            as_pg_basebackup(&server, &found, &unpacked.tablespaces);
        }
        // A place that no link in a tar file can hold stands in the map.
        let long = "t".repeat(200);
        tablespace(&server, "long", &long).await;
        let ours = tempfile::tempdir().unwrap();
        let (data, spaces) = (ours.path().join("data"), ours.path().join("spaces"));
        fs::create_dir(&data).unwrap();
        let mut backup = BaseBackup::start(server.replication().await, &options, None).await.unwrap();
        let unpacked = unpack(&mut backup, &data, &spaces).await;
        let BaseEvent::Begin { archives, .. } = &unpacked.events[0] else { panic!("{:?}", unpacked.events) };
        assert!(archives.iter().any(|(_, place)| place.as_deref().is_some_and(|place| place.ends_with(&long))));
        assert_eq!(unpacked.bytes.len(), 4);
        as_its_manifest_says(&data, &unpacked.server_manifest);
    }
}

/// Every file with the length and digest that the server computed, and no other.
fn as_its_manifest_says(data: &Path, manifest: &[u8]) {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    let mut told = BTreeMap::new();
    for file in manifest["Files"].as_array().unwrap() {
        let path = match file["Path"].as_str() {
            Some(path) => path.as_bytes().to_vec(),
            None => hex::decode(file["Encoded-Path"].as_str().unwrap()).unwrap(),
        };
        told.insert(path, (file["Size"].as_u64().unwrap(), file["Checksum"].as_str().unwrap().to_owned()));
    }
    assert!(told.contains_key(&b"not\xff\xfeutf8"[..]));
    let mut todo = vec![data.to_owned()];
    let mut seen = 0;
    while let Some(path) = todo.pop() {
        // Through the links of tablespaces.
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let name = path.strip_prefix(data).unwrap().as_os_str().as_bytes().to_vec();
        let Some((size, checksum)) = told.get(&name) else {
            // Written by `unpack` for the tablespaces' new places.
            assert_eq!(name, b"tablespace_map");
            continue;
        };
        if name != b"tablespace_map" {
            let bytes = fs::read(&path).unwrap();
            assert_eq!((bytes.len() as u64, crc32c(&bytes)), (*size, checksum.clone()), "{path:?}");
        }
        seen += 1;
    }
    assert_eq!(seen, told.len());
}

fn as_pg_basebackup(server: &Server, ours: &BTreeMap<PathBuf, Entry>, spaces: &BTreeMap<u32, PathBuf>) {
    let theirs = tempfile::tempdir().unwrap();
    fs::set_permissions(theirs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Server::give(theirs.path());
    let mut command = Server::command(15, "pg_basebackup");
    command.args([
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-X",
        "none",
        "-c",
        "fast",
        "--no-sync",
        "-p",
        &server.port().to_string(),
    ]);
    command.arg("-D").arg(theirs.path().join("data"));
    let links = fs::read_dir(server.data().join("pg_tblspc")).unwrap().map(|entry| entry.unwrap());
    for (at, link) in links.enumerate() {
        let place = fs::read_link(link.path()).unwrap();
        command.arg(format!("--tablespace-mapping={}={}/space{at}", place.display(), theirs.path().display()));
    }
    run(&mut command);
    let theirs = tree(&theirs.path().join("data"));
    // Ours has the map in place of links, as backups that are kept must; both have a label, a manifest and a checkpoint of their own.
    let own = ["tablespace_map", "backup_label", "backup_manifest", "global/pg_control"].map(Path::new);
    let names = |tree: &BTreeMap<PathBuf, Entry>| {
        tree.iter()
            .filter(|(path, _)| !own.contains(&path.as_path()))
            .map(|(path, (kind, mode, _))| (path.clone(), *kind, *mode))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(ours), names(&theirs));
    for (path, (kind, _, bytes)) in ours {
        if *kind == 'f' && !own.contains(&path.as_path()) {
            assert!(*bytes == theirs[path].2, "{path:?} differs");
        }
        if *kind == 'l' {
            let oid: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let there = PathBuf::from(std::ffi::OsString::from_vec(theirs[path].2.clone()));
            let (mut ours, mut theirs) = (tree(&spaces[&oid]), tree(&there));
            // The folder itself was made here.
            let top = Path::new("");
            assert!(ours.remove(top).is_some() && theirs.remove(top).is_some());
            assert!(ours.len() >= 3 && ours == theirs, "tablespace {oid} differs");
        }
    }
}

#[tokio::test]
async fn r13_a_path_that_no_tar_of_the_server_holds_is_refused() {
    let server = Server::start(15, Options::default()).await;
    let long = server.data().join("l".repeat(120));
    fs::write(&long, "x").unwrap();
    Server::give(&long);
    let error = outcome(&server.address()).await.unwrap_err();
    assert!(matches!(&error, PostgresError::Refused { error, .. } if error.message.contains("too long")), "{error}");
}

/// Takes a backup and throws it away: how many events, or why not.
async fn outcome(address: &mainstay::backup::source::postgres::Address) -> Result<usize, PostgresError> {
    let connection = Connection::open(address, None, Purpose::Replication).await?;
    let mut backup = BaseBackup::start(connection, &BaseOptions::default(), None).await?;
    let (mut events, mut ended) = (0, false);
    while let Some(event) = backup.next().await? {
        assert!(!ended, "an event after the end");
        ended = matches!(event, BaseEvent::End { .. });
        events += 1;
    }
    assert!(ended, "no end, and no error");
    assert!(backup.into_connection().is_some());
    Ok(events)
}

#[tokio::test]
async fn r12_a_stream_that_is_cut_or_lacks_a_message_has_no_end() {
    for version in Server::versions() {
        let server = Server::start(version, Options::default()).await;
        // First the kinds of all messages, from the connection's beginning.
        let kinds = Arc::new(Mutex::new(Vec::new()));
        let seen = kinds.clone();
        let proxy = Proxy::start(
            server.port(),
            Box::new(move |_, tag, _| {
                seen.lock().unwrap().push(tag);
                Act::Pass
            }),
        )
        .await;
        outcome(&proxy.address()).await.unwrap();
        let kinds = kinds.lock().unwrap().clone();
        let last = kinds.len() - 1;
        assert_eq!(kinds[last], b'Z');
        let ready = kinds.iter().position(|tag| *tag == b'Z').unwrap();
        // Progress comes by the clock, so numbers of messages differ between runs by a few: count from the end of a part.
        let copy_done = kinds.iter().filter(|tag| **tag == b'c').count();
        let data = kinds.iter().filter(|tag| **tag == b'd').count();
        let cut_at = |at: usize| -> Box<super::proxy::Meddle> {
            Box::new(move |number, _, _| if number == at { Act::Cut } else { Act::Pass })
        };
        for at in [ready, ready + 1, ready + 3, ready + 8, ready + 20, ready + data / 2] {
            let proxy = Proxy::start(server.port(), cut_at(at)).await;
            let error = outcome(&proxy.address()).await.unwrap_err();
            assert!(
                matches!(error, PostgresError::Cut { .. } | PostgresError::Io { .. }),
                "cut after {at} of {last}: {error}"
            );
        }
        // Every message after the data: cut behind it, and left out.
        let after = kinds.iter().rposition(|tag| *tag == b'd').unwrap();
        let tail = kinds[after + 1..].to_vec();
        assert_eq!(tail, b"cTDCCZ", "{version}");
        for (step, cut) in (0..tail.len()).flat_map(|step| [(step, true), (step, false)]) {
            let (mut done, mut number) = (0, 0);
            let meddle = move |_: usize, tag: u8, _: &[u8]| {
                done += usize::from(tag == b'c');
                if done < copy_done {
                    return Act::Pass;
                }
                number += 1;
                match (number - 1 == step, cut) {
                    // The last one may well be the end.
                    (true, true) if step == 5 => Act::Pass,
                    (true, true) => Act::Cut,
                    (true, false) if step == 5 => Act::Cut,
                    (true, false) => Act::Drop,
                    _ => Act::Pass,
                }
            };
            let proxy = Proxy::start(server.port(), Box::new(meddle)).await;
            let result = outcome(&proxy.address()).await;
            assert_eq!(
                result.is_ok(),
                step == 5,
                "{version}: {} {}: {result:?}",
                tail[step] as char,
                if cut { "cut" } else { "dropped" }
            );
        }
    }
}

#[tokio::test]
async fn r12_an_archive_that_is_missing_or_doubled_has_no_end() {
    let server = awkward(15).await;
    for (name, double) in [(&b"base.tar\0"[..], false), (b"base.tar\0", true), (b"5", false), (b"5", true)] {
        // `n` begins an archive. Without it, its data would go on the archive before.
        let meddle =
            move |_: usize, tag: u8, body: &[u8]| match body {
                [b'n', rest @ ..]
                    if tag == b'd' && (rest.starts_with(name) || name == b"5" && rest[0].is_ascii_digit()) =>
                {
                    if double { Act::Replace([message(b'd', body), message(b'd', body)].concat()) } else { Act::Drop }
                }
                _ => Act::Pass,
            };
        let proxy = Proxy::start(server.port(), Box::new(meddle)).await;
        let error = outcome(&proxy.address()).await.unwrap_err();
        assert!(matches!(error, PostgresError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn r12_damaged_pages_fail_the_backup_and_are_named() {
    for version in Server::versions() {
        let mut server = Server::start(version, Options { checksums: true, ..Options::default() }).await;
        server.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 20000) g").await;
        let file = server.value("SELECT pg_relation_filepath('t')").await;
        server.stop(Stop::Fast).await;
        let path = server.data().join(&file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[8192 * 3 + 4000] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        server.start_again().await;
        let error = outcome(&server.address()).await.unwrap_err();
        assert!(matches!(error, PostgresError::Damaged { .. }), "{version}: {error}");
        let said = error.to_string();
        assert!(said.contains(&file) && said.contains("hint:"), "{said}");
    }
}

#[tokio::test]
async fn a_server_that_stops_in_a_backup_says_so() {
    let server = Server::start(17, Options::default()).await;
    server.sql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 100000) g").await;
    let options = BaseOptions { max_rate_kib: Some(4096), estimate: false, ..BaseOptions::default() };
    let mut backup = BaseBackup::start(server.replication().await, &options, None).await.unwrap();
    assert!(matches!(backup.next().await.unwrap(), Some(BaseEvent::Begin { estimated_bytes: None, .. })));
    server.signal_stop(Stop::Fast);
    let error = loop {
        match backup.next().await {
            Ok(event) => assert!(event.is_some(), "it went on to its end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PostgresError::ShuttingDown { .. }) && error.is_passing(), "{error}");
    assert!(backup.next().await.is_err());
}
