use super::super::chunks::Chunker;
use super::super::tests_tar::{self as made, Builder};
use super::*;
use crate::backup::catalog::manifest::Continues;
use proptest::prelude::*;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

impl Unpacker {
    /// Writes a chunk in pieces that end anywhere.
    pub(in crate::backup::take) fn chunk(&self, place: &ChunkPlace, plain: &[u8]) -> Result<Written, UnpackError> {
        let mut chunk = self.begin(place)?;
        plain.chunks(4_099).try_for_each(|piece| chunk.write(piece))?;
        chunk.end()
    }
}

/// An archive cut into chunks, with its index.
struct Cut {
    chunks: Vec<(ChunkPlace, Vec<u8>)>,
    index: Index,
    facts: Vec<ArchiveFacts>,
}

fn cut(tar: &[u8], limit: usize) -> Cut {
    let mut chunker = Chunker::new(Archive::Base, limit).unwrap();
    let mut chunks = Vec::new();
    let mut data = tar;
    while !data.is_empty() {
        chunks.extend(chunker.push(&mut data).unwrap());
    }
    let (last, whole) = chunker.finish().unwrap();
    chunks.push(last);
    let chunks: Vec<_> = chunks.into_iter().map(|chunk| (chunk.place, chunk.bytes.to_vec())).collect();
    let index = Index { chunks: chunks.iter().map(|(place, _)| place.clone()).collect() };
    let facts = ArchiveFacts { archive: Archive::Base, location: None, chunks: whole.chunks, bytes: whole.bytes };
    Cut { chunks, index, facts: vec![facts] }
}

/// A chunk that was not made by a chunker: what an attacker would send.
fn forged(tar: &[u8]) -> Cut {
    let place = ChunkPlace { archive: Archive::Base, number: 0, offset: 0, continues: None };
    let facts = ArchiveFacts { archive: Archive::Base, location: None, chunks: 1, bytes: tar.len() as u64 };
    Cut { chunks: vec![(place.clone(), tar.to_vec())], index: Index { chunks: vec![place] }, facts: vec![facts] }
}

fn unpacker(cut: &Cut, root: &Path, withheld: &[&str]) -> Unpacker {
    let target = Target {
        roots: BTreeMap::from([(Archive::Base, root.to_owned())]),
        withheld: withheld.iter().map(|path| path.as_bytes().to_vec()).collect(),
        // Whom everybody may give files to.
        owner: Some((nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())),
    };
    Unpacker::new(target, &cut.index, &cut.facts).unwrap()
}

/// Everything below a folder: path, kind, mode, content or target, and which names are one file.
fn look(root: &Path) -> BTreeMap<PathBuf, (char, u32, Vec<u8>, Option<PathBuf>)> {
    let mut seen = BTreeMap::new();
    let mut one_file: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(std::fs::DirEntry::path);
        for entry in entries {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            let name = path.strip_prefix(root).unwrap().to_owned();
            let mode = meta.mode() & 0o7777;
            let of = if meta.is_dir() {
                todo.push(path);
                ('d', mode, Vec::new(), None)
            } else if meta.is_symlink() {
                ('l', 0, std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(), None)
            } else {
                let first = one_file.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
                ('f', mode, std::fs::read(&path).unwrap(), (meta.nlink() > 1).then_some(first))
            };
            seen.insert(name, of);
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn chunks_in_any_order_make_the_tree_that_tar_makes(
        tree in made::tree(), blocks in 32_usize..120, seed in any::<u64>(), twice in any::<bool>(),
    ) {
        let tar = made::tar_of(&tree);
        let cut = cut(&tar, blocks * 512);
        let (expected, got) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut archive = tar::Archive::new(&tar[..]);
        archive.set_preserve_permissions(true);
        archive.unpack(expected.path()).unwrap();

        let unpacker = unpacker(&cut, got.path(), &[]);
        let mut order: Vec<usize> = (0..cut.chunks.len()).flat_map(|n| vec![n; 1 + usize::from(twice)]).collect();
        shuffle(&mut order, seed);
        // Two at once, as a restore does.
        std::thread::scope(|scope| {
            let (one, two) = order.split_at(order.len() / 2);
            for half in [one, two] {
                scope.spawn(|| half.iter().for_each(|n| {
                    unpacker.chunk(&cut.chunks[*n].0, &cut.chunks[*n].1).unwrap();
                }));
            }
        });
        unpacker.finish().unwrap();
        prop_assert_eq!(look(got.path()), look(expected.path()));
    }

    #[test]
    fn a_damaged_chunk_writes_nothing_outside(mut tar in tree_bytes(), flips in proptest::collection::vec((any::<u32>(), any::<u8>()), 1..8)) {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("in");
        std::fs::create_dir(&root).unwrap();
        for (at, byte) in flips {
            let at = at as usize % tar.len();
            tar[at] = byte;
            let head = at / 512 * 512;
            made::sum(&mut tar[head..head + 512]);
        }
        let forged = forged(&tar);
        let unpacker = unpacker(&forged, &root, &[]);
        let _ = unpacker.chunk(&forged.chunks[0].0, &forged.chunks[0].1);
        let _ = unpacker.finish();
        prop_assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 1);
    }
}

fn tree_bytes() -> impl Strategy<Value = Vec<u8>> {
    made::tree().prop_map(|tree| made::tar_of(&tree))
}

fn shuffle(order: &mut [usize], mut seed: u64) {
    for at in (1..order.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (seed >> 33) as usize % (at + 1));
    }
}

/// Unpacks an archive that a hostile writer signed; the root is `in` beside an `out`.
fn attack(tar: &[u8]) -> (tempfile::TempDir, Result<(), UnpackError>) {
    let base = tempfile::tempdir().unwrap();
    for folder in ["in", "out"] {
        std::fs::create_dir(base.path().join(folder)).unwrap();
    }
    let forged = forged(tar);
    let unpacker = unpacker(&forged, &base.path().join("in"), &[]);
    let result = unpacker.chunk(&forged.chunks[0].0, &forged.chunks[0].1).and_then(|_| unpacker.finish().map(drop));
    assert_eq!(std::fs::read_dir(base.path().join("out")).unwrap().count(), 0, "something came out");
    (base, result)
}

#[test]
fn nothing_leaves_the_target() {
    let attacks = [
        Builder::new().file(b"../out/a", 0o600, b"x").end(),
        Builder::new().file(b"/out/a", 0o600, b"x").end(),
        Builder::new().file(b"a/../../out/a", 0o600, b"x").end(),
        Builder::new().header(b"..", b'5', 0, b"", 0o700).end(),
        Builder::new().header(b"l", b'2', 0, b"../out", 0o777).file(b"l/a", 0o600, b"x").end(),
        Builder::new().header(b"l", b'2', 0, b"../out/a", 0o777).file(b"l", 0o600, b"x").end(),
        Builder::new().header(b"l", b'2', 0, b"../out", 0o777).header(b"l/a", b'2', 0, b"b", 0o777).end(),
        Builder::new().header(b"l", b'2', 0, b"../out", 0o777).header(b"l/d/", b'5', 0, b"", 0o700).end(),
        Builder::new().header(b"l", b'2', 0, b"../out", 0o777).header(b"l", b'5', 0, b"", 0o700).end(),
        Builder::new().header(b"h", b'1', 0, b"../out", 0o600).end(),
        Builder::new().header(b"h", b'1', 0, b"/etc/hostname", 0o600).end(),
        Builder::new()
            .header(b"l", b'2', 0, b"../out", 0o777)
            .file(b"a", 0o600, b"")
            .header(b"l/h", b'1', 0, b"a", 0o600)
            .end(),
        Builder::new().extended(b'L', b"../out/a\0").file(b"a", 0o600, b"x").end(),
        Builder::new().extended(b'x', &made::record(b"path", b"../out/a")).file(b"a", 0o600, b"x").end(),
    ];
    for (number, tar) in attacks.iter().enumerate() {
        let (_base, result) = attack(tar);
        assert!(result.is_err(), "attack {number} went through");
    }
}

#[test]
fn a_link_is_made_and_never_followed() {
    let (base, result) = attack(&Builder::new().header(b"l", b'2', 0, b"/nowhere/at/all", 0o777).end());
    result.unwrap();
    assert_eq!(std::fs::read_link(base.path().join("in/l")).unwrap(), Path::new("/nowhere/at/all"));
    let link_first = Builder::new().header(b"l", b'2', 0, b"../out", 0o777).file(b"l/a", 0o600, b"x").end();
    let error = attack(&link_first).1.unwrap_err().to_string();
    assert!(error.contains("never followed"), "{error}");
}

#[test]
fn what_is_withheld_comes_back_and_is_not_written() {
    let control: Vec<u8> = (0..8_192).map(|at| (at % 251) as u8).collect();
    let tar = Builder::new()
        .file(b"backup_label", 0o600, b"START")
        .file(b"base/1", 0o600, &vec![1; 20_000])
        .file(b"global/pg_control", 0o640, &control)
        .end();
    // Chunks as long as one header and a half of it: the file is cut.
    let mut chunks = cut(&tar, 16_384);
    let border = 512 + 512 + 512 + 20_480 + 512 + 1_024;
    chunks.index.chunks.truncate(1);
    chunks.chunks.clear();
    let continues = Continues { path_hex: hex::encode("global/pg_control"), at: 1_024, left: 8_192 - 1_024 };
    let place = ChunkPlace { archive: Archive::Base, number: 1, offset: border, continues: Some(continues) };
    chunks.chunks.push((chunks.index.chunks[0].clone(), tar[..border as usize].to_vec()));
    chunks.chunks.push((place.clone(), tar[border as usize..].to_vec()));
    chunks.index.chunks.push(place);
    chunks.facts[0].chunks = 2;

    let root = tempfile::tempdir().unwrap();
    let unpacker = unpacker(&chunks, root.path(), &["global/pg_control", "tablespace_map"]);
    for (place, plain) in chunks.chunks.iter().rev() {
        unpacker.chunk(place, plain).unwrap();
    }
    let (held, _) = unpacker.finish().unwrap();
    assert_eq!(held, BTreeMap::from([(b"global/pg_control".to_vec(), Withheld { bytes: control, mode: 0o640 })]));
    assert!(!root.path().join("global/pg_control").exists());
    assert!(root.path().join("backup_label").exists());

    // Half of it is not it.
    let unpacker = self::unpacker(&chunks, root.path(), &["global/pg_control"]);
    unpacker.chunk(&chunks.chunks[1].0, &chunks.chunks[1].1).unwrap();
    assert!(matches!(unpacker.finish(), Err(UnpackError::Missing(_))));
}

#[test]
fn what_was_there_before_does_not_show() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a"), vec![9; 5_000]).unwrap();
    let cut = cut(&Builder::new().file(b"a", 0o640, b"new").end(), 16_384);
    unpacker(&cut, root.path(), &[]).chunk(&cut.chunks[0].0, &cut.chunks[0].1).unwrap();
    assert_eq!(std::fs::read(root.path().join("a")).unwrap(), b"new");
    assert_eq!(std::fs::metadata(root.path().join("a")).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn a_chunk_that_is_not_what_the_index_says_is_refused() {
    let tar = Builder::new().file(b"a", 0o600, &vec![1; 40_000]).file(b"b", 0o600, &vec![2; 40_000]).end();
    let whole = cut(&tar, 16_384);
    let root = tempfile::tempdir().unwrap();
    let unpacker = unpacker(&whole, root.path(), &[]);
    let (place, plain) = &whole.chunks[1];
    assert!(unpacker.chunk(place, &plain[..plain.len() - 1]).is_err());
    assert!(unpacker.chunk(&whole.chunks[2].0, plain).is_err());
    let mut other = place.clone();
    other.number = 99;
    assert!(unpacker.chunk(&other, plain).is_err());

    // An index with a hole, one too many, one too few, one of another archive, one that begins in the middle.
    let new = |index: &Index| {
        let roots = BTreeMap::from([(Archive::Base, root.path().to_owned())]);
        Unpacker::new(Target { roots, ..Target::default() }, index, &whole.facts)
    };
    let mut index = whole.index.clone();
    index.chunks.remove(1);
    assert!(new(&index).is_err());
    index = whole.index.clone();
    index.chunks.push(index.chunks[0].clone());
    assert!(new(&index).is_err());
    index = whole.index.clone();
    index.chunks[1].archive = Archive::Tablespace(5);
    assert!(new(&index).is_err());
    index = whole.index.clone();
    index.chunks[0].offset = 512;
    assert!(new(&index).is_err());
    index = whole.index.clone();
    // Says that the second chunk begins elsewhere in the file than the first one ends.
    if let Some(continues) = &mut index.chunks[1].continues {
        continues.at += 512;
        continues.left -= 512;
    }
    assert!(new(&index).unwrap().chunk(&index.chunks[0], &whole.chunks[0].1).is_err());
}

#[test]
fn files_that_their_owner_may_not_write_come_whole_and_may_come_again() {
    let tar = Builder::new().file(b"key", 0o400, &vec![1; 40_000]).end();
    let cut = cut(&tar, 16_384);
    assert!(cut.chunks.len() > 2);
    let root = tempfile::tempdir().unwrap();
    let twice = || {
        for _ in 0..2 {
            let target =
                Target { roots: BTreeMap::from([(Archive::Base, root.path().to_owned())]), ..Target::default() };
            let unpacker = Unpacker::new(target, &cut.index, &cut.facts).unwrap();
            for (place, plain) in &cut.chunks {
                unpacker.chunk(place, plain).unwrap();
            }
            unpacker.finish().unwrap();
            let path = root.path().join("key");
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o400);
            assert_eq!(std::fs::read(path).unwrap(), vec![1; 40_000]);
        }
    };
    let nobody = Uid::from_raw(65_534);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if nix::unistd::geteuid().is_root() {
                // Root may write to everything. This thread alone becomes somebody else for the file system.
                std::os::unix::fs::chown(root.path(), Some(65_534), Some(65_534)).unwrap();
                nix::unistd::setfsuid(nobody);
            }
            twice();
        });
    });
}
