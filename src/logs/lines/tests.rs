use super::*;
use crate::logs::mask::tests::{assert_hidden, printed_forms, secret};
use proptest::prelude::*;

type Lines = Vec<(i64, bool, Vec<u8>)>;

fn stream(masker: &Arc<Masker>, piece_bytes: usize) -> StreamLines {
    StreamLines::new(Stream::Stdout, masker.clone(), piece_bytes, StreamPosition::default(), Carry::default())
}

fn lines_of(masker: &Arc<Masker>, piece_bytes: usize, output: &[u8], cuts: impl Iterator<Item = usize>) -> Lines {
    let (mut found, mut lines, mut rest) = (Lines::new(), stream(masker, piece_bytes), output);
    let mut sink = |p: Piece<'_>| found.push((p.at_nanos, p.continues, p.text.to_vec()));
    for cut in cuts {
        if rest.is_empty() {
            break;
        }
        let (part, after) = rest.split_at(cut.clamp(1, rest.len()));
        lines.push(7, part, &mut sink);
        rest = after;
    }
    lines.finish(&mut sink);
    found
}

fn texts(output: &[u8]) -> Vec<String> {
    let lines = lines_of(&Arc::new(Masker::none()), 1000, output, std::iter::repeat(output.len()));
    lines.into_iter().map(|(_, _, text)| String::from_utf8(text).unwrap()).collect()
}

#[test]
fn lines_end_with_either_kind_of_newline() {
    assert_eq!(texts(b"a\nb\r\n\n\r\nc"), ["a", "b", "", "", "c"]);
    assert_eq!(texts(b"a\r\r\nb\r"), ["a", "b"]);
    assert_eq!(texts(b""), [""; 0]);
}

#[test]
fn a_progress_bar_leaves_what_a_terminal_would_show() {
    assert_eq!(texts(b"10 %\r50 %\r100 %\ndone\n"), ["100 %", "done"]);
    assert_eq!(texts(b"downloading\rdone\n"), ["doneloading"]);
    assert_eq!(texts(b"downloading\r\x1b[2Kok\n"), ["ok"]);
}

#[test]
fn a_half_covered_secret_is_hidden() {
    let masker = Arc::new(Masker::new([b"correct-horse-battery".to_vec()]));
    let found = lines_of(&masker, 1000, b"x correct-horse-battery\rdone\n", std::iter::repeat(5));
    // What is covered is the masked text: a terminal would show the end of the secret.
    assert_eq!(found, [(7, false, b"done*".to_vec())]);
    // And one that is put together by covering.
    let found = lines_of(&masker, 1000, b"xxxxxxxx-horse-battery\r correct\n", std::iter::repeat(5));
    assert_eq!(found, [(7, false, b" ***".to_vec())]);
}

#[test]
fn an_endless_progress_bar_takes_no_memory() {
    let masker = Arc::new(Masker::none());
    let mut lines = stream(&masker, 100);
    for i in 0..20_000 {
        lines.push(i, b"\x1b[32m# 12 %\x1b[0m\r", &mut |_| panic!("nothing is to be stored yet"));
    }
    assert!(lines.text.capacity() + lines.shown.as_ref().unwrap().capacity() + lines.scratch.capacity() < 1000);
    assert_eq!(lines.stored().0.bytes, 0, "an unfinished line is not stored");
}

#[test]
fn a_long_line_comes_in_pieces() {
    let masker = Arc::new(Masker::none());
    let found = lines_of(&masker, 4, b"0123456789\nab\n", std::iter::repeat(3));
    let shown: Vec<_> = found.iter().map(|(_, continues, text)| (*continues, text.as_slice())).collect();
    assert_eq!(shown, [(false, &b"0123"[..]), (true, b"4567"), (true, b"89"), (false, b"ab")]);
}

#[test]
fn the_position_follows_the_seconds_of_what_is_stored() {
    const SECOND: i64 = 1_000_000_000;
    let masker = Arc::new(Masker::none());
    let mut lines = stream(&masker, 100);
    let at = |lines: &StreamLines| {
        let p = lines.stored().0;
        (p.bytes, p.second, p.bytes_before_second)
    };
    lines.push(5 * SECOND, b"a\n", &mut |_| {});
    assert_eq!(at(&lines), (2, 5, 0));
    lines.push(7 * SECOND, b"bb\nc", &mut |_| {});
    assert_eq!(at(&lines), (5, 7, 2));
    lines.push(9 * SECOND, b"c", &mut |_| {});
    assert_eq!(at(&lines), (5, 7, 2), "the line that waits began in second 7");
    lines.push(9 * SECOND, b"\n", &mut |_| {});
    assert_eq!(at(&lines), (8, 9, 6));
    // The clock is set back: from now on nothing but the start is sure.
    lines.push(4 * SECOND, b"d\n", &mut |_| {});
    assert_eq!(at(&lines), (10, 0, 0));
    lines.push(11 * SECOND, b"e\n", &mut |_| {});
    assert_eq!(at(&lines), (12, 0, 0));
    let (position, carry) = lines.stored();
    let mut resumed = StreamLines::new(Stream::Stdout, masker.clone(), 100, position, carry);
    resumed.push(12 * SECOND, b"f\n", &mut |_| {});
    assert_eq!(at(&resumed), (14, 0, 0), "a writer that goes on knows it too");
}

#[test]
fn a_mark_ends_the_line_before_it_and_is_counted() {
    let masker = Arc::new(Masker::none());
    let (mut found, mut lines) = (Vec::new(), stream(&masker, 100));
    let mut sink = |p: Piece<'_>| found.push(p.text.to_vec());
    lines.push(1, b"no newline", &mut sink);
    lines.skip(1, 30, &mut sink);
    lines.push(1, b"late", &mut sink);
    assert_eq!(lines.stored().0.bytes, 40);
    lines.finish(&mut sink);
    assert_eq!(lines.stored().0.bytes, 44);
    assert_eq!(found, [b"no newline".to_vec(), b"late".to_vec()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The promise of the whole room: nothing of a secret is stored, wherever the engine, the pieces and a restart cut.
    #[test]
    fn nothing_of_a_secret_survives_any_cut(
        secrets in proptest::collection::vec(secret(), 1..3),
        picks in proptest::collection::vec((any::<usize>(), any::<usize>(), "[.:;G-P\n\r]{0,9}"), 0..10),
        cuts in proptest::collection::vec(1_usize..40, 1..20),
        piece_bytes in 1_usize..60,
    ) {
        let masker = Arc::new(Masker::new(secrets.clone()));
        let mut output = Vec::new();
        for (secret, form, noise) in &picks {
            output.extend_from_slice(noise.as_bytes());
            let forms = printed_forms(&secrets[secret % secrets.len()]);
            output.extend_from_slice(&forms[form % forms.len()]);
        }
        let whole = lines_of(&masker, piece_bytes, &output, std::iter::repeat(output.len().max(1)));
        let cut = lines_of(&masker, piece_bytes, &output, cuts.into_iter().cycle());
        prop_assert_eq!(&whole, &cut);
        let mut joined = Vec::new();
        for (_, continues, text) in whole {
            if !continues {
                joined.push(b'\n');
            }
            joined.extend_from_slice(&text);
        }
        assert_hidden(&secrets, &joined);
    }

    /// A stream taken up again at any stored position gives the rest of the same lines.
    #[test]
    fn lines_are_the_same_after_a_restart_anywhere(
        output in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), b'a'..=b'e', Just(b'\xff')], 0..300),
        piece_bytes in 1_usize..20,
        seed in any::<u64>(),
    ) {
        let masker = Arc::new(Masker::new([b"abcd".to_vec(), b"eaeae".to_vec()]));
        let whole = lines_of(&masker, piece_bytes, &output, std::iter::repeat(1000));
        let (mut found, mut seed) = (Lines::new(), seed);
        let (mut position, mut carry) = (StreamPosition::default(), Carry::default());
        for _ in 0..40 {
            let mut lines = StreamLines::new(Stream::Stdout, masker.clone(), piece_bytes, position, carry);
            let mut sink = |p: Piece<'_>| found.push((p.at_nanos, p.continues, p.text.to_vec()));
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let rest = &output[position.bytes as usize..];
            lines.push(7, &rest[..((seed >> 33) as usize % 60).min(rest.len())], &mut sink);
            (position, carry) = lines.stored();
        }
        let mut lines = StreamLines::new(Stream::Stdout, masker, piece_bytes, position, carry);
        let mut sink = |p: Piece<'_>| found.push((p.at_nanos, p.continues, p.text.to_vec()));
        lines.push(7, &output[position.bytes as usize..], &mut sink);
        lines.finish(&mut sink);
        prop_assert_eq!(found, whole);
    }
}
