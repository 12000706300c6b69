use super::*;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use proptest::prelude::*;

fn chunk(at_nanos: i64, data: &[u8]) -> LogChunk {
    LogChunk { stream: Stream::Stdout, at_nanos, data: Bytes::copy_from_slice(data) }
}

/// The text, the marks, and the bytes accounted for, of output cut at these lengths.
fn filtered(from: u64, output: &[u8], mut cuts: impl Iterator<Item = usize>) -> (Vec<u8>, Vec<Mark>, u64) {
    let mut cursor = LogCursor::default();
    cursor.stdout.bytes = from;
    let mut filter = MarkFilter::new("n0nce", &cursor);
    let (mut passed, mut rest, mut at) = (Vec::new(), output, 0);
    while !rest.is_empty() {
        let (part, after) = rest.split_at(cuts.next().unwrap_or(rest.len()).clamp(1, rest.len()));
        filter.push(chunk(at, part), &mut passed);
        (rest, at) = (after, at + 1);
    }
    filter.finish(&mut passed);
    let (mut text, mut marks, mut bytes, mut newest) = (Vec::new(), Vec::new(), 0, 0);
    for part in passed {
        let at = match part {
            Passed::Text(chunk) => {
                text.extend_from_slice(&chunk.data);
                bytes += chunk.data.len() as u64;
                chunk.at_nanos
            }
            Passed::Skipped { bytes: skipped, at_nanos, .. } => {
                bytes += skipped;
                at_nanos
            }
            Passed::Mark(mark) => {
                marks.push(mark);
                continue;
            }
        };
        assert!(at >= newest, "times went back");
        newest = at;
    }
    (text, marks, bytes)
}

fn end_mark(raw: &[u8]) -> Vec<u8> {
    format!("\x1emainstay:end:n0nce:{}\n", STANDARD.encode(raw)).into_bytes()
}

#[test]
fn marks_are_found_however_the_output_is_cut() {
    let output =
        [&b"\x1emainstay:begin:n0nce:1700000000123456789\nhello\nno newline"[..], &end_mark(b"A=1\n"), b"late\n"]
            .concat();
    for size in 1..output.len() {
        let (text, marks, bytes) = filtered(0, &output, std::iter::repeat(size));
        assert_eq!(text, b"hello\nno newlinelate\n", "{size}");
        assert_eq!(marks, [Mark::Begin { at_nanos: 1_700_000_000_123_456_789 }, Mark::End { raw: b"A=1\n".to_vec() }]);
        assert_eq!(bytes, output.len() as u64);
    }
}

#[test]
fn a_begin_is_one_only_at_the_very_start() {
    let begin = b"\x1emainstay:begin:n0nce:17\n";
    assert_eq!(filtered(0, begin, std::iter::empty()).1, [Mark::Begin { at_nanos: 17 }]);
    assert_eq!(filtered(5, begin, std::iter::empty()).0, begin);
    assert_eq!(filtered(0, &[b"x", &begin[..]].concat(), std::iter::empty()).1, []);
}

#[test]
fn what_only_looks_like_a_mark_is_text() {
    for text in [
        &b"\x1e"[..],
        b"\x1emainstay:end:other:QQ==\n",
        b"\x1emainstay:end:n0nce:not base64\n",
        b"\x1emainstay:end:n0nce:A\n",
        b"\x1emainstay:begin:n0nce:99999999999999999999\n",
        b"\x1emainstay:begin:n0nce:\n",
        b"\x1e\x1e\x1emainstay\x1e",
    ] {
        let (kept, marks, _) = filtered(0, text, std::iter::repeat(3));
        assert_eq!((&kept[..], &marks[..]), (text, &[][..]));
    }
    // A mark that begins inside a broken one is still found.
    let output = [b"\x1emainstay:end:n0nce:QUJD", &end_mark(b"x")[..]].concat();
    assert_eq!(filtered(0, &output, std::iter::repeat(7)).1, [Mark::End { raw: b"x".to_vec() }]);
}

#[test]
fn outputs_of_64_kib_fit_and_endless_ones_are_text() {
    let raw = vec![b'v'; OUTPUTS_MAX_BYTES];
    let (text, marks, _) = filtered(0, &end_mark(&raw), std::iter::repeat(16 * 1024));
    assert_eq!((text.len(), &marks[..]), (0, &[Mark::End { raw }][..]));
    let endless = [&b"\x1emainstay:end:n0nce:"[..], &[b'A'; 300_000]].concat();
    let (text, marks, _) = filtered(0, &endless, std::iter::repeat(16 * 1024));
    assert_eq!((text, marks), (endless, vec![]));
}

#[test]
fn stderr_is_passed_on_as_it_is() {
    let mut out = Vec::new();
    let chunk = LogChunk { stream: Stream::Stderr, ..chunk(1, &end_mark(b"x")) };
    MarkFilter::new("n0nce", &LogCursor::default()).push(chunk.clone(), &mut out);
    assert_eq!(out, [Passed::Text(chunk)]);
}

#[test]
fn outputs_are_read_line_by_line() {
    let (found, complaints) = outputs(b"A=1\nlong-key_2=a=b\r\n\nA=2\nEMPTY=\n");
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [("A".into(), "2".into()), ("EMPTY".into(), String::new()), ("long-key_2".into(), "a=b".into())]
    );
    assert_eq!(complaints, [""; 0]);
}

#[test]
fn complaints_about_outputs_show_no_value_and_are_bounded() {
    let (found, complaints) = outputs(b"no equals hunter2\n1x=hunter2\n\x1b[31m=hunter2\nOK=\xff\nB=1\n");
    assert_eq!(found.len(), 1);
    assert_eq!(complaints.len(), 4);
    assert!(complaints.iter().all(|c| !c.contains("hunter2") && !c.contains('\u{1b}')), "{complaints:?}");
    assert!(outputs(&b"x\n".repeat(10_000)).1.len() <= COMPLAINTS_MAX + 1);
    let many: String = (0..1000).map(|i| format!("K{i}=v\n")).collect();
    let (found, complaints) = outputs(many.as_bytes());
    assert_eq!((found.len(), complaints.len()), (OUTPUTS_MAX_KEYS, 1));
    let big = format!("A=1\nB={}\n", "x".repeat(OUTPUTS_MAX_BYTES));
    let (found, complaints) = outputs(big.as_bytes());
    assert_eq!((found.len(), complaints.len()), (1, 1));
}

#[tokio::test]
async fn marks_are_found_in_a_whole_log() {
    let chunks = [&b"\x1emainstay:begin:n0nce:5\n"[..], b"text\n", &end_mark(b"A=1\n")];
    let log = futures_util::stream::iter(chunks.map(|data| Ok::<_, String>(chunk(0, data))));
    assert_eq!(find("n0nce", log).await, Ok(Marks { begin: Some(5), end: Some(b"A=1\n".to_vec()) }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_byte_is_lost_or_changed(
        parts in proptest::collection::vec(prop_oneof![
            Just(b"\x1e".to_vec()), Just(b"\x1emainstay:end:n0nce:".to_vec()), Just(b"QUJD".to_vec()), Just(b"\n".to_vec()),
            Just(b"\x1emainstay:begin:n0nce:12".to_vec()), Just(b"\x1emain".to_vec()), proptest::collection::vec(any::<u8>(), 0..6),
        ], 0..20),
        cuts in proptest::collection::vec(1_usize..9, 1..20),
    ) {
        let output = parts.concat();
        let whole = filtered(0, &output, std::iter::empty());
        let cut = filtered(0, &output, cuts.into_iter().cycle());
        prop_assert_eq!(&whole, &cut);
        prop_assert_eq!(whole.2, output.len() as u64);
        if whole.1.is_empty() {
            prop_assert_eq!(whole.0, output);
        }
    }
}
