use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt as _;

const PAGE: usize = 512;
const PAGES: Pages = Pages { page_bytes: PAGE as u32, segment_bytes: 64 * PAGE as u64 };

/// A relation's file, a number for each page.
type Relation = Vec<u32>;

#[derive(Debug, Clone)]
enum Change {
    Write(usize, u32),
    Cut(usize),
    /// By so many pages, of which the first ones are written and the rest stay zero.
    Grow(usize, usize, u32),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<usize>(), 1_u32..1_000).prop_map(|(at, with)| Change::Write(at, with)),
        1 => any::<usize>().prop_map(Change::Cut),
        2 => (0_usize..9, 0_usize..9, 1_u32..1_000).prop_map(|(by, written, with)| Change::Grow(by, written, with)),
    ]
}

/// What happens, and the incremental file that a server writes for it.
fn happens(relation: &mut Relation, changes: &[Change]) -> Vec<u8> {
    let mut kept = relation.len();
    let mut changed = BTreeSet::new();
    for change in changes {
        match *change {
            Change::Write(..) if relation.is_empty() => {}
            Change::Write(at, with) => {
                let at = at % relation.len();
                relation[at] = with;
                changed.insert(at);
            }
            Change::Cut(to) => {
                relation.truncate(to % (relation.len() + 1));
                kept = kept.min(relation.len());
                changed.retain(|at| *at < relation.len());
            }
            Change::Grow(by, written, with) => {
                for n in 0..by.min(60 - relation.len()) {
                    if n < written {
                        changed.insert(relation.len());
                    }
                    relation.push(if n < written { with + n as u32 } else { 0 });
                }
            }
        }
    }
    // Pages in which nothing stands yet are not in the log; the last one is, or its file had not that length.
    if relation.len() > kept {
        changed.insert(relation.len() - 1);
    }
    incremental(kept as u32, &changed.into_iter().map(|at| (at as u32, relation[at])).collect::<Vec<_>>())
}

fn incremental(kept: u32, pages: &[(u32, u32)]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [MAGIC, pages.len() as u32, kept].into_iter().chain(pages.iter().map(|(at, _)| *at)) {
        file.extend(word.to_le_bytes());
    }
    if !pages.is_empty() {
        file.resize(file.len().next_multiple_of(PAGE), 0);
    }
    pages.iter().for_each(|(_, with)| file.extend(page(*with)));
    file
}

fn page(with: u32) -> Vec<u8> {
    with.to_le_bytes().repeat(PAGE / 4)
}

fn bytes(relation: &Relation) -> Vec<u8> {
    relation.iter().flat_map(|with| page(*with)).collect()
}

fn label_of(start: usize, parent: Option<usize>) -> String {
    let parent = parent.map(|parent| format!("INCREMENTAL FROM LSN: 0/{parent}000028\nINCREMENTAL FROM TLI: 1\n"));
    let parent = parent.unwrap_or_default();
    format!(
        "START WAL LOCATION: 0/{start}000028 (file 00000001000000000000000{start})\nCHECKPOINT LOCATION: 0/{start}000080\n\
         BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-23 10:00:00 UTC\nLABEL: mainstay\nSTART TIMELINE: 1\n{parent}"
    )
}

fn of(path: &str, content: impl AsRef<[u8]>) -> (&str, Vec<u8>) {
    (path, content.as_ref().to_vec())
}

/// Writes files below a new folder.
fn backup(root: &Path, name: &str, files: &[(&str, Vec<u8>)]) -> BTreeMap<Archive, PathBuf> {
    let base = root.join(name);
    for (path, content) in files {
        fs::create_dir_all(base.join(path).parent().unwrap()).unwrap();
        fs::write(base.join(path), content).unwrap();
    }
    BTreeMap::from([(Archive::Base, base)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_chain_gives_what_the_server_had(
        first in proptest::collection::vec(1_u32..1_000, 0..20),
        chain in proptest::collection::vec(proptest::collection::vec(change(), 0..12), 1..4),
        twice in any::<bool>(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let label = label_of(1, None);
        let onto = backup(root.path(), "onto", &[of("base/5/1259", bytes(&first)), of("backup_label", &label)]);
        let mut relation = first;
        for (number, changes) in chain.iter().enumerate() {
            let file = happens(&mut relation, changes);
            let label = label_of(number + 2, Some(number + 1));
            for again in 0..=usize::from(twice) {
                let name = format!("difference-{number}-{again}");
                let files = [of("base/5/INCREMENTAL.1259", &file), of("backup_label", &label)];
                combine(&onto, &backup(root.path(), &name, &files), PAGES, &BTreeSet::new()).unwrap();
            }
            let base = &onto[&Archive::Base];
            prop_assert_eq!(fs::read(base.join("base/5/1259")).unwrap(), bytes(&relation));
            prop_assert_eq!(fs::read_to_string(base.join("backup_label")).unwrap(), label_of(number + 2, None));
        }
    }

    #[test]
    fn no_header_is_too_strange(words in proptest::collection::vec(any::<u32>(), 0..8), tail in 0_usize..3_000, real in any::<bool>()) {
        let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        if real && file.len() >= 4 {
            file[..4].copy_from_slice(&MAGIC.to_le_bytes());
        }
        file.resize(file.len() + tail, 0);
        let root = tempfile::tempdir().unwrap();
        let onto = backup(root.path(), "onto", &[of("base/5/1", [1; 2 * PAGE]), of("backup_label", label_of(1, None))]);
        let label = label_of(2, Some(1));
        let files = [of("base/5/INCREMENTAL.1", &file), of("backup_label", &label)];
        let _ = combine(&onto, &backup(root.path(), "difference", &files), PAGES, &BTreeSet::new());
        prop_assert!(fs::metadata(onto[&Archive::Base].join("base/5/1")).unwrap().len() <= PAGES.segment_bytes);
    }
}

#[test]
fn files_come_stay_and_go_with_the_difference() {
    let root = tempfile::tempdir().unwrap();
    let first = label_of(1, None);
    let mut onto = backup(
        root.path(),
        "onto",
        &[
            of("backup_label", &first),
            of("base/5/1", bytes(&vec![1, 2])),
            of("base/5/gone", b"gone"),
            of("base/6/1", b"a dropped database"),
            of("pg_xact/0000", b"old"),
            of("INCREMENTAL.mine", b"somebody's own file"),
            of("kept by restore", b"state"),
        ],
    );
    let second = label_of(2, Some(1));
    let mut difference = backup(
        root.path(),
        "difference",
        &[
            of("backup_label", &second),
            of("base/5/INCREMENTAL.1", incremental(2, &[(1, 9)])),
            of("base/7/2", b"a new database"),
            of("pg_xact/0000", b"new"),
            of("INCREMENTAL.mine", b"changed"),
        ],
    );
    fs::create_dir(difference[&Archive::Base].join("pg_wal")).unwrap();
    fs::set_permissions(difference[&Archive::Base].join("pg_wal"), fs::Permissions::from_mode(0o750)).unwrap();
    for (archive, was, is) in [(10, Some("gone"), None), (11, None, Some("new"))] {
        let folders = [(&mut onto, "onto", was), (&mut difference, "difference", is)];
        for (map, name, file) in folders {
            let folder = root.path().join(format!("{name}-{archive}"));
            fs::create_dir(&folder).unwrap();
            if let Some(file) = file {
                fs::write(folder.join(file), file).unwrap();
            }
            if name == "onto" || file.is_some() {
                map.insert(Archive::Tablespace(archive), folder);
            }
        }
    }
    let keep = BTreeSet::from(["kept by restore".into()]);
    let written = combine(&onto, &difference, PAGES, &keep).unwrap();
    let base = &onto[&Archive::Base];
    let mut files = Vec::new();
    let mut todo: Vec<PathBuf> = onto.values().cloned().collect();
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                files.push((path.strip_prefix(root.path()).unwrap().display().to_string(), fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    let expected = [
        of("onto-11/new", b"new"),
        of("onto/INCREMENTAL.mine", b"changed"),
        of("onto/backup_label", label_of(2, None)),
        of("onto/base/5/1", bytes(&vec![1, 9])),
        of("onto/base/7/2", b"a new database"),
        of("onto/kept by restore", b"state"),
        of("onto/pg_xact/0000", b"new"),
    ];
    assert_eq!(files, expected.map(|(path, content)| (path.to_owned(), content)));
    assert_eq!(fs::metadata(base.join("pg_wal")).unwrap().permissions().mode() & 0o777, 0o750);
    assert!(!base.join("base/6").exists());
    assert!(written.files.contains(&base.join("base/5/1")) && written.folders.contains(&base.join("base/5")));
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = incremental(2, &[(0, 9), (1, 9)]);
    let changed = |at: usize, with: u32| {
        let mut file = good.clone();
        file[at..at + 4].copy_from_slice(&with.to_le_bytes());
        file
    };
    let second = label_of(2, Some(1));
    let cases: Vec<(&str, Vec<u8>, String, &str)> = vec![
        ("another mark", changed(0, 7), second.clone(), "mark of an incremental file"),
        ("too many", changed(4, 65), second.clone(), "no file has more than 64"),
        ("one more", changed(4, 3), second.clone(), "with 3 pages it has"),
        ("twice the same", changed(12, 1), second.clone(), "do not go up"),
        ("too far", changed(16, 64), second.clone(), "go too far"),
        ("cut short", good[..good.len() - 1].to_vec(), second.clone(), "with 2 pages it has"),
        ("longer", [&good[..], &[0]].concat(), second.clone(), "with 2 pages it has"),
        ("no head", good[..11].to_vec(), second.clone(), "read"),
        ("whole", good.clone(), label_of(2, None), "not of a difference"),
        ("another parent", good.clone(), label_of(3, Some(2)), "not to that from 0/1000028 on timeline 1"),
        ("another timeline", good.clone(), second.replace("FROM TLI: 1", "FROM TLI: 2"), "on timeline 2"),
        ("no label", good.clone(), "LABEL: x\n".into(), "does not say where"),
    ];
    for (what, file, label, says) in cases {
        let root = tempfile::tempdir().unwrap();
        let files = [of("base/5/1", [1; 2 * PAGE]), of("backup_label", label_of(1, None))];
        let onto = backup(root.path(), "onto", &files);
        let files = [of("base/5/INCREMENTAL.1", &file), of("backup_label", &label)];
        let difference = backup(root.path(), "difference", &files);
        let error = combine(&onto, &difference, PAGES, &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains(says), "{what}: {error}");
        assert_eq!(fs::read(onto[&Archive::Base].join("base/5/1")).unwrap(), [1; 2 * PAGE], "{what}");
        assert_eq!(fs::read_to_string(onto[&Archive::Base].join("backup_label")).unwrap(), label_of(1, None), "{what}");
    }
    // A difference to a file that is not there, and one beside the whole file.
    let beside = vec![of("base/5/INCREMENTAL.1", &good), of("base/5/1", b"whole")];
    for mut files in [vec![of("base/5/INCREMENTAL.2", &good)], beside] {
        let root = tempfile::tempdir().unwrap();
        let before = [of("base/5/1", [1; 2 * PAGE]), of("backup_label", label_of(1, None))];
        let onto = backup(root.path(), "onto", &before);
        files.push(of("backup_label", &second));
        assert!(combine(&onto, &backup(root.path(), "difference", &files), PAGES, &BTreeSet::new()).is_err());
        assert_eq!(fs::read_to_string(onto[&Archive::Base].join("backup_label")).unwrap(), label_of(1, None));
    }
}

#[test]
fn a_length_beyond_the_segment_means_its_end() {
    let root = tempfile::tempdir().unwrap();
    let relation: Relation = (1..=64).collect();
    let files = [of("base/5/1", bytes(&relation)), of("backup_label", label_of(1, None))];
    let onto = backup(root.path(), "onto", &files);
    let label = label_of(2, Some(1));
    let file = incremental(200, &[(3, 9)]);
    let files = [of("base/5/INCREMENTAL.1", &file), of("backup_label", &label)];
    combine(&onto, &backup(root.path(), "difference", &files), PAGES, &BTreeSet::new()).unwrap();
    let mut expected = relation;
    expected[3] = 9;
    assert_eq!(fs::read(onto[&Archive::Base].join("base/5/1")).unwrap(), bytes(&expected));
}
