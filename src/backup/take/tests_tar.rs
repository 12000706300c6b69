//! Archives for tests: random trees written by the `tar` crate, and hand-made ones that it would not write.

use proptest::prelude::*;
use std::collections::BTreeMap;

/// A node of a random tree, by its path.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// As many bytes, counted up from `first`.
    File {
        length: usize,
        first: u8,
        mode: u32,
    },
    Folder,
    Symbolic(Vec<u8>),
    /// To the n-th file.
    Hard(usize),
}

pub(super) type Tree = BTreeMap<Vec<u8>, Node>;

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-z0-9_][a-z0-9_.]{1,12}".prop_map(String::into_bytes),
        // Longer than the 100 bytes of an old header.
        1 => "[a-z]{101,220}".prop_map(String::into_bytes),
        // No text in any encoding.
        1 => proptest::collection::vec(128_u8..=255, 1..20),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let length = prop_oneof![
        2 => Just(0),
        6 => 1_usize..3_000,
        2 => 1_usize..200_000,
    ];
    prop_oneof![
        8 => (length, any::<u8>(), prop_oneof![Just(0o600), Just(0o640), Just(0o444)])
            .prop_map(|(length, first, mode)| Node::File { length, first, mode }),
        1 => Just(Node::Folder),
        1 => name().prop_map(Node::Symbolic),
        1 => any::<usize>().prop_map(Node::Hard),
    ]
}

/// Content of which every byte says where it was.
fn counted(length: usize, first: u8) -> Vec<u8> {
    (0..length).map(|at| first.wrapping_add((at % 251) as u8)).collect()
}

/// A tree two folders deep.
pub(super) fn tree() -> impl Strategy<Value = Tree> {
    let path = (proptest::collection::vec("[a-c]", 0..3), name());
    let path = path.prop_map(|(folders, name)| {
        // Folders are of a kind of name that no file has.
        let mut path: Vec<u8> = folders.iter().flat_map(|folder| format!("{folder}#/").into_bytes()).collect();
        path.extend(name);
        path
    });
    proptest::collection::btree_map(path, node(), 0..24)
}

/// The archive of a tree, as the `tar` crate writes it.
pub(super) fn tar_of(tree: &Tree) -> Vec<u8> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let files: Vec<&Vec<u8>> =
        tree.iter().filter(|(_, node)| matches!(node, Node::File { .. })).map(|(p, _)| p).collect();
    let mut builder = tar::Builder::new(Vec::new());
    let mut folders = std::collections::BTreeSet::new();
    for (path, node) in tree {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            if folders.insert(path[..at].to_vec()) {
                let mut header = header(tar::EntryType::Directory, 0o750, 0);
                builder.append_data(&mut header, OsStr::from_bytes(&path[..at]), &[][..]).unwrap();
            }
        }
        let place = OsStr::from_bytes(path);
        match node {
            Node::File { length, first, mode } => {
                let content = counted(*length, *first);
                let mut header = header(tar::EntryType::Regular, *mode, content.len());
                builder.append_data(&mut header, place, &content[..]).unwrap();
            }
            Node::Folder => {
                let mut header = header(tar::EntryType::Directory, 0o700, 0);
                builder.append_data(&mut header, place, &[][..]).unwrap();
            }
            Node::Symbolic(to) => {
                let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                builder.append_link(&mut header, place, OsStr::from_bytes(to)).unwrap();
            }
            Node::Hard(number) if !files.is_empty() => {
                let to = files[number % files.len()];
                // The crate unpacks in order: what a link leads to must be there.
                if to < path {
                    let mut header = header(tar::EntryType::Link, 0o600, 0);
                    builder.append_link(&mut header, place, OsStr::from_bytes(to)).unwrap();
                }
            }
            Node::Hard(_) => {}
        }
    }
    builder.into_inner().unwrap()
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header
}

/// Writes archives block by block, right or wrong.
pub(super) struct Builder(Vec<u8>);

impl Builder {
    pub(super) fn new() -> Builder {
        Builder(Vec::new())
    }

    pub(super) fn header(mut self, path: &[u8], kind: u8, size: u64, link: &[u8], mode: u32) -> Builder {
        let mut block = vec![0; 512];
        block[..path.len()].copy_from_slice(path);
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        sum(&mut block);
        self.0.extend(block);
        self
    }

    pub(super) fn file(self, path: &[u8], mode: u32, content: &[u8]) -> Builder {
        self.header(path, b'0', content.len() as u64, b"", mode).content(content)
    }

    pub(super) fn extended(self, kind: u8, content: &[u8]) -> Builder {
        self.header(b"@", kind, content.len() as u64, b"", 0o600).content(content)
    }

    fn content(mut self, content: &[u8]) -> Builder {
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1_024]);
        self.0
    }
}

/// Puts the right sum into a header.
pub(super) fn sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A record of a POSIX extended header.
pub(super) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// The header of a file of that length, the way GNU and PostgreSQL write those over 8 GiB.
pub(super) fn base_256(path: &[u8], size: u64) -> Vec<u8> {
    let mut block = Builder::new().header(path, b'0', 0, b"", 0o600).bytes();
    block[124] = 0x80;
    block[125..128].fill(0);
    block[128..136].copy_from_slice(&size.to_be_bytes());
    sum(&mut block);
    block
}

/// The same, the way POSIX says.
pub(super) fn pax(path: &[u8], size: u64) -> Vec<u8> {
    Builder::new()
        .extended(b'x', &record(b"size", size.to_string().as_bytes()))
        .header(path, b'0', 0, b"", 0o600)
        .bytes()
}
