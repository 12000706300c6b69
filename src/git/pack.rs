//! Writing what a Git repository consists of as bytes: packs with their index, and the file `.git/index`.
//!
//! Packs made here hold whole objects in stored (uncompressed) zlib blocks: a workspace lives for one run or is
//! brought up to date by difference, and packing it tighter would cost more time than the run's first second has.

use aws_lc_rs::digest;

/// The kinds of object, with the numbers the pack format gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Commit = 1,
    Tree = 2,
    Blob = 3,
}

/// A pack under construction.
pub(super) struct PackWriter {
    data: Vec<u8>,
    /// Object id, CRC of its packed bytes, offset.
    entries: Vec<([u8; 20], u32, u32)>,
}

/// A finished pack and its index.
pub(super) struct Pack {
    /// The hex digits in `pack-....pack`.
    pub(super) name: String,
    pub(super) pack: Vec<u8>,
    pub(super) idx: Vec<u8>,
}

/// The length of a pack's header: magic, version, number of objects.
const HEADER_BYTES: usize = 12;

impl PackWriter {
    pub(super) fn new() -> Self {
        PackWriter { data: vec![0; HEADER_BYTES], entries: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes so far; the caller finishes the pack when it is large enough.
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    pub(super) fn add(&mut self, kind: Kind, oid: &[u8; 20], body: &[u8]) {
        let start = self.data.len();
        // Type and length: 4 bits of length in the first byte, then 7 at a time.
        let mut rest = body.len() as u64;
        let mut byte = ((kind as u8) << 4) | (rest & 0x0f) as u8;
        rest >>= 4;
        while rest > 0 {
            self.data.push(byte | 0x80);
            byte = (rest & 0x7f) as u8;
            rest >>= 7;
        }
        self.data.push(byte);
        store_zlib(&mut self.data, body);
        let crc = crc32fast::hash(&self.data[start..]);
        // Packs are cut at 16 MiB and a larger object is alone in its pack, so every start fits 31 bits.
        self.entries.push((*oid, crc, start as u32));
    }

    pub(super) fn finish(mut self) -> Pack {
        let count = self.entries.len() as u32;
        self.data[..4].copy_from_slice(b"PACK");
        self.data[4..8].copy_from_slice(&2_u32.to_be_bytes());
        self.data[8..12].copy_from_slice(&count.to_be_bytes());
        let trailer = sha1(&self.data);
        self.data.extend_from_slice(&trailer);

        self.entries.sort_unstable();
        let mut idx = Vec::with_capacity(8 + 1024 + self.entries.len() * 28 + 40);
        idx.extend_from_slice(b"\xfftOc");
        idx.extend_from_slice(&2_u32.to_be_bytes());
        let mut at = 0;
        for first in 0..=255_u8 {
            while self.entries.get(at).is_some_and(|(oid, ..)| oid[0] <= first) {
                at += 1;
            }
            idx.extend_from_slice(&(at as u32).to_be_bytes());
        }
        for (oid, ..) in &self.entries {
            idx.extend_from_slice(oid);
        }
        for (_, crc, _) in &self.entries {
            idx.extend_from_slice(&crc.to_be_bytes());
        }
        for (_, _, offset) in &self.entries {
            idx.extend_from_slice(&offset.to_be_bytes());
        }
        idx.extend_from_slice(&trailer);
        let idx_trailer = sha1(&idx);
        idx.extend_from_slice(&idx_trailer);
        Pack { name: hex::encode(trailer), pack: self.data, idx }
    }
}

/// The zlib frame around `body` with stored blocks only.
fn store_zlib(out: &mut Vec<u8>, body: &[u8]) {
    out.reserve(body.len() + body.len() / 65_535 * 5 + 16);
    out.extend_from_slice(&[0x78, 0x01]);
    let mut chunks = body.chunks(65_535).peekable();
    if chunks.peek().is_none() {
        out.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    }
    while let Some(chunk) = chunks.next() {
        let length = chunk.len() as u16;
        out.push(u8::from(chunks.peek().is_none()));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(chunk);
    }
    out.extend_from_slice(&adler32(body).to_be_bytes());
}

fn adler32(body: &[u8]) -> u32 {
    const MOD: u32 = 65_521;
    let (mut a, mut b) = (1_u32, 0_u32);
    // 5552 is the longest run after which the sums still fit 32 bits.
    for chunk in body.chunks(5_552) {
        for &byte in chunk {
            a += u32::from(byte);
            b += a;
        }
        a %= MOD;
        b %= MOD;
    }
    (b << 16) | a
}

/// One line of `.git/index`.
pub(super) struct IndexEntry<'a> {
    pub(super) mode: u32,
    pub(super) oid: [u8; 20],
    pub(super) path: &'a [u8],
}

/// The file `.git/index`, version 2. Entries come sorted by path. Times and sizes are zero, which makes git compare
/// contents at its first look and fill them in.
pub(super) fn index_file<'a>(entries: impl ExactSizeIterator<Item = IndexEntry<'a>>) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 + entries.len() * 112 + 20);
    out.extend_from_slice(b"DIRC");
    out.extend_from_slice(&2_u32.to_be_bytes());
    out.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    for entry in entries {
        let start = out.len();
        out.extend_from_slice(&[0; 24]); // ctime, mtime, device, inode
        out.extend_from_slice(&entry.mode.to_be_bytes());
        out.extend_from_slice(&[0; 12]); // user, group, size
        out.extend_from_slice(&entry.oid);
        let flags = entry.path.len().min(0x0fff) as u16;
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(entry.path);
        // One to eight zeros, up to a multiple of eight.
        let padded = (out.len() - start) / 8 * 8 + 8;
        out.resize(start + padded, 0);
    }
    let trailer = sha1(&out);
    out.extend_from_slice(&trailer);
    out
}

/// SHA-1, as the file formats of Git want it; nothing here rests on it being hard to forge.
fn sha1(data: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, data).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adler_matches_known_values() {
        assert_eq!(adler32(b""), 1);
        assert_eq!(adler32(b"Wikipedia"), 0x11E6_0398);
        assert_eq!(adler32(&[0xff; 100_000]), {
            let (mut a, mut b) = (1_u64, 0_u64);
            for _ in 0..100_000 {
                a = (a + 255) % 65_521;
                b = (b + a) % 65_521;
            }
            ((b << 16) | a) as u32
        });
    }

    #[test]
    fn git_itself_accepts_a_pack_made_here() {
        let dir = tempfile::tempdir().unwrap();
        let mut pack = PackWriter::new();
        let big = vec![b'x'; 200_000];
        for body in [&b""[..], b"hello\n", &big] {
            let oid = git2::Oid::hash_object(git2::ObjectType::Blob, body).unwrap();
            pack.add(Kind::Blob, oid.as_bytes().try_into().unwrap(), body);
        }
        let pack = pack.finish();
        let path = dir.path().join(format!("pack-{}.pack", pack.name));
        std::fs::write(&path, &pack.pack).unwrap();
        std::fs::write(path.with_extension("idx"), &pack.idx).unwrap();
        super::super::testing::git(dir.path(), &["verify-pack", path.to_str().unwrap()]);
    }
}
