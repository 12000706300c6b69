use super::super::tests_tar::{self as made, Builder};
use super::*;
use proptest::prelude::*;

/// Cuts an archive that comes in pieces of `step` bytes.
fn cut(tar: &[u8], step: usize, limit: usize) -> Result<(Vec<Chunk>, Whole), TarError> {
    let mut chunker = Chunker::new(Archive::Base, limit)?;
    let mut chunks = Vec::new();
    for mut piece in tar.chunks(step) {
        while !piece.is_empty() {
            chunks.extend(chunker.push(&mut piece)?);
        }
    }
    let (last, whole) = chunker.finish()?;
    chunks.push(last);
    Ok((chunks, whole))
}

fn limit() -> impl Strategy<Value = usize> {
    (32_usize..200).prop_map(|blocks| blocks * 512)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chunks_are_the_archive_and_each_can_be_read_alone(tree in made::tree(), step in 1_usize..70_000, limit in limit()) {
        let tar = made::tar_of(&tree);
        let (chunks, whole) = cut(&tar, step, limit).unwrap();
        prop_assert_eq!(chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect::<Vec<u8>>(), tar.clone());
        prop_assert_eq!((whole.bytes, whole.chunks as usize), (tar.len() as u64, chunks.len()));
        let mut offset = 0;
        for (number, chunk) in chunks.iter().enumerate() {
            prop_assert_eq!((chunk.place.number as usize, chunk.place.offset), (number, offset));
            prop_assert!(chunk.bytes.len() <= limit && !chunk.bytes.is_empty());
            // Nothing but the last one is short by more than what moving to a border may cost.
            prop_assert!(number + 1 == chunks.len() || chunk.bytes.len() + limit / SLACK_DIVISOR + 16 * 1024 >= limit);
            offset += chunk.bytes.len() as u64;
            let mut reader = Reader::at(chunk.place.offset, chunk.place.continues.as_ref()).unwrap();
            let mut rest = &chunk.bytes[..];
            while reader.next(&mut rest).unwrap().is_some() {}
            match chunks.get(number + 1).map(|next| &next.place.continues) {
                None => reader.finish().unwrap(),
                Some(None) => prop_assert_eq!(reader.stand(), Stand::Header { since: offset }),
                Some(Some(there)) => prop_assert_eq!(reader.stand(), Stand::Inside(there.clone())),
            }
        }
        // A cut does not depend on how the bytes arrive.
        prop_assert_eq!(cut(&tar, 512, limit).unwrap().0, chunks);
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..4_096), step in 1_usize..600) {
        let _ = cut(&bytes, step, 16_384);
    }

    #[test]
    fn an_archive_that_stops_early_is_an_error(tree in made::tree(), part in 0.0_f64..1.0) {
        let tar = made::tar_of(&tree);
        let length = ((tar.len() - 1) as f64 * part) as usize;
        let truncated = matches!(cut(&tar[..length], 10_000, 65_536), Err(TarError::Truncated { .. }));
        prop_assert!(truncated);
    }

    #[test]
    fn a_header_with_one_wrong_byte_is_an_error(place in 0_usize..512, bit in 0_u8..8) {
        let mut tar = Builder::new().file(b"base/5/1259", 0o600, b"abc").end();
        tar[place] ^= 1 << bit;
        // Bytes of the sum itself may come out as the same number in another spelling.
        let same_number = (148..156).contains(&place);
        prop_assert!(cut(&tar, 512, 65_536).is_err() || same_number);
    }
}

#[test]
fn a_file_of_100_gib_is_understood_by_its_header() {
    for header in [made::base_256(b"base/5/1", 100 << 30), made::pax(b"base/5/1", 100 << 30)] {
        let mut chunker = Chunker::new(Archive::Base, 65_536).unwrap();
        let mut data = &header[..];
        assert!(chunker.push(&mut data).unwrap().is_none());
        let begins = header.len() as u64;
        let mut content = &[7; 65_536][..];
        let chunk = chunker.push(&mut content).unwrap().unwrap();
        assert_eq!((chunk.bytes.len(), chunk.place.continues), (65_536, None));
        let at = 65_536 - begins;
        let there = Continues { path_hex: hex::encode("base/5/1"), at, left: (100 << 30) - at };
        assert_eq!(chunker.continues, Some(there));
    }
}

#[test]
fn short_files_are_not_cut() {
    let mut builder = Builder::new();
    for number in 0..40 {
        builder = builder.file(format!("f{number}").as_bytes(), 0o600, &[1; 3_000]);
    }
    let (chunks, _) = cut(&builder.end(), 999, 65_536).unwrap();
    assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.place.continues.is_none()));
}

#[test]
fn what_cannot_be_restored_is_an_error_that_names_the_member() {
    let end = |builder: Builder| builder.end();
    let cases = [
        (end(Builder::new().file(b"../etc/passwd", 0o600, b"")), "../etc/passwd"),
        (end(Builder::new().file(b"/etc/passwd", 0o600, b"")), "/etc/passwd"),
        (end(Builder::new().file(b"a/../../b", 0o600, b"")), "a/../../b"),
        (end(Builder::new().header(b"dev/null", b'3', 0, b"", 0o600)), "of type `3`"),
        (end(Builder::new().header(b"pipe", b'6', 0, b"", 0o600)), "of type `6`"),
        (
            end(Builder::new().header(b"holes", b'S', 0, b"", 0o600)),
            "`holes` at byte 0 cannot be restored: it is a sparse file",
        ),
        (
            end(Builder::new().extended(b'x', &made::record(b"GNU.sparse.major", b"1")).file(b"h", 0o600, b"")),
            "GNU.sparse.major",
        ),
        (
            end(Builder::new().extended(b'g', &made::record(b"path", b"all")).file(b"h", 0o600, b"")),
            "gives `path` to all",
        ),
        (end(Builder::new().file(b"same", 0o600, b"").file(b"./same", 0o600, b"")), "`same` at byte 512"),
        (end(Builder::new().extended(b'x', b"7 path=x")), "does not read"),
        (end(Builder::new().extended(b'L', b"long\0")), "followed by no member"),
        (end(Builder::new().header(b"folder/", b'5', 10, b"", 0o700)), "has content"),
        (end(Builder::new().header(b"link", b'2', 0, b"", 0o777)), "leads nowhere"),
        ([end(Builder::new()), vec![1; 512]].concat(), "follows the zeros"),
        ([end(Builder::new()), vec![0; 70_000]].concat(), "64 KiB of zeros"),
        (
            [Builder::new().file(b"a", 0o600, b"").bytes(), vec![0; 512], Builder::new().file(b"b", 0o600, b"").end()]
                .concat(),
            "follows the zeros",
        ),
    ];
    for (tar, says) in cases {
        let error = cut(&tar, 1_000, 1 << 20).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    let mut negative = Builder::new().header(b"n", b'0', 0, b"", 0o600).bytes();
    negative[124] = 0xFF;
    made::sum(&mut negative);
    assert!(cut(&negative, 512, 65_536).unwrap_err().to_string().contains("length is no number"));
}

#[test]
fn headers_that_change_nothing_are_read_over() {
    let comment = made::record(b"comment", b"made by hand");
    let tar = Builder::new()
        .extended(b'g', &comment)
        .extended(b'x', &made::record(b"mtime", b"1.5"))
        .file(b"a", 0o600, b"x")
        .end();
    assert_eq!(cut(&tar, 100, 65_536).unwrap().1, Whole { bytes: tar.len() as u64, chunks: 1 });
}
