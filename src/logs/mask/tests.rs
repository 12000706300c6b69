use super::*;
use proptest::prelude::*;

fn masked(values: &[&str], line: &str) -> String {
    let masker = Masker::new(values.iter().map(|v| v.as_bytes().to_vec()));
    String::from_utf8(masker.mask_line(line.as_bytes()).into_owned()).unwrap()
}

#[test]
fn every_form_of_a_value_is_hidden() {
    let value = r#"p@ss/wörd "1" \ it's <a+b>"#;
    let forms = [
        value.to_owned(),
        hex::encode(value),
        hex::encode_upper(value),
        STANDARD.encode(value),
        STANDARD.encode(value).trim_end_matches('=').to_owned(),
        URL_SAFE.encode(value),
        "p%40ss%2Fw%C3%B6rd%20%221%22%20%5C%20it%27s%20%3Ca%2Bb%3E".to_owned(),
        "p%40ss%2fw%c3%b6rd%20%221%22%20%5c%20it%27s%20%3ca%2bb%3e".to_owned(),
        "p%40ss%2Fw%C3%B6rd+%221%22+%5C+it%27s+%3Ca%2Bb%3E".to_owned(),
        serde_json::to_string(value).unwrap().trim_matches('"').to_owned() + r#""#,
        r#"p@ss/w\u00f6rd \"1\" \\ it's <a+b>"#.to_owned(),
        r#"p@ss/wörd \"1\" \\ it's \u003ca+b\u003e"#.to_owned(),
        r#"p@ss\/wörd \"1\" \\ it's <a+b>"#.to_owned(),
        r#"p@ss/wörd "1" \ it'\''s <a+b>"#.to_owned(),
    ];
    for form in forms {
        assert_eq!(masked(&[value], &format!("a: {form}.")), "a: ***.", "{form}");
    }
}

#[test]
fn base64_of_a_longer_text_loses_the_value_at_each_of_the_three_places() {
    let value = "tr0ub4dor&3-correct";
    for before in ["", "u", "us", "use", "user:"] {
        for after in ["", "@", "@h", "@host"] {
            let line = format!("Basic {}", STANDARD.encode(format!("{before}{value}{after}")));
            let shown = masked(&[value], &line);
            assert!(shown.contains("***"), "{line}");
            let kept: usize = shown.len() - "Basic ***".len();
            // What is left encodes the neighbours only: whole groups of them, and no padding after the value.
            assert!(kept <= (before.len() + after.len()) * 4 / 3 + 2, "{line} became {shown}");
        }
    }
}

#[test]
fn base64_folded_over_lines_is_hidden_at_every_offset() {
    let value = "A-rather-long-token-0123456789-abcdefghijklmnop";
    let masker = Masker::new([value.as_bytes().to_vec()]);
    for (width, offset) in (0..76).map(|o| (76, o)).chain((0..64).map(|o| (64, o))) {
        let text = format!("{}{value}{}", "x".repeat(offset), "y".repeat(30));
        let encoded = STANDARD.encode(&text);
        let lines: Vec<_> = encoded.as_bytes().chunks(width).map(|line| masker.mask_line(line).into_owned()).collect();
        let first = (offset * 8).div_ceil(6);
        let inner = &encoded.as_bytes()[first..(offset + value.len()) * 8 / 6];
        for window in inner.windows(FOLD_CHARS) {
            let leaks = lines.iter().any(|line| memchr::memmem::find(line, window).is_some());
            assert!(!leaks, "offset {offset} of {width}: {:?}", String::from_utf8_lossy(window));
        }
    }
}

#[test]
fn a_folded_key_in_an_indented_list_is_hidden() {
    let value: Vec<u8> = (0..=255).collect();
    let masker = Masker::new([value.clone()]);
    for line in STANDARD.encode(&value).as_bytes().chunks(60) {
        let line = [b"    \"", line, b"\","].concat();
        assert_eq!(masker.mask_line(&line), &b"    \"***\","[..]);
    }
}

#[test]
fn a_value_of_several_lines_is_hidden_line_by_line_but_not_its_short_lines() {
    let key =
        "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\r\n}\nshort\nEFAASCBKcwggSjAgEAAoIBAQ\n-----END KEY-----\n";
    assert_eq!(masked(&[key], "x MIIEvQIBADANBgkqhkiG9w0BAQ y"), "x *** y");
    assert_eq!(masked(&[key], "}"), "}");
    assert_eq!(masked(&[key], "short"), "short");
    assert_eq!(masked(&[key], &format!("{{\"key\":{}}}", serde_json::to_string(key).unwrap())), "{\"key\":\"***\"}");
}

#[test]
fn a_value_from_a_file_is_hidden_without_its_last_newline() {
    assert_eq!(masked(&["hunter2\n"], "login hunter2!"), "login ***!");
}

#[test]
fn too_short_values_are_named_and_hide_nothing() {
    let masker = Masker::new([b"abc".to_vec(), b"long enough".to_vec(), b"".to_vec(), b"\n1\n".to_vec()]);
    assert_eq!(masker.refused(), [0, 3]);
    assert_eq!(masker.mask_line(b"abc 1 abcd"), &b"abc 1 abcd"[..]);
}

#[test]
fn of_values_that_overlap_both_are_hidden() {
    let values = ["abcdefgh12345678", "12345678zzzzzzzz", "cdefgh"];
    assert_eq!(masked(&values, ">abcdefgh12345678zzzzzzzz<"), ">***<");
    assert_eq!(masked(&values, ">cdefgh<>cdefghcdefgh<"), ">***<>***<");
}

#[test]
fn a_long_value_is_hidden_whole() {
    let value: Vec<u8> = (0..9_000_u32).map(|i| b'!' + (i.wrapping_mul(2_654_435_761) >> 25) as u8 % 90).collect();
    let masker = Masker::new([value.clone()]);
    assert!(masker.overlap() < 32 * 1024, "{}", masker.overlap());
    assert_eq!(masker.mask_line(&value), &b"***"[..]);
    assert_eq!(masker.mask_line(hex::encode(&value).as_bytes()), &b"***"[..]);
    assert_eq!(masker.mask_line(STANDARD.encode(&value).as_bytes()), &b"***"[..]);
}

#[test]
fn debug_output_shows_no_value() {
    assert!(!format!("{:?}", Masker::new([b"hunter22".to_vec()])).contains("hunter"));
}

/// The forms of a value that a program is likely to print.
pub(in crate::logs) fn printed_forms(value: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(value).into_owned();
    vec![
        value.to_vec(),
        hex::encode(value).into_bytes(),
        hex::encode_upper(value).into_bytes(),
        STANDARD.encode(value).into_bytes(),
        URL_SAFE.encode(value).into_bytes(),
        percent(value, b"-_.~", true, false),
        percent(value, b"-_.~", false, true),
        serde_json::to_string(&text).unwrap().trim_matches('"').as_bytes().to_vec(),
    ]
}

/// Values of bytes that the noise below does not use, so that what survives is a leak and not chance.
pub(in crate::logs) fn secret() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        prop_oneof![b'a'..=b'z', b'0'..=b'9', Just(b'/'), Just(b'"'), Just(b' '), Just(b'+')],
        8..40,
    )
    .prop_map(|mut value| {
        // Neither end is white space: it would be told apart from its trimmed form only by the noise.
        value[0] = b'q';
        *value.last_mut().unwrap() = b'7';
        value
    })
}

/// Fails when eight bytes in a row of a printed form are in the output.
pub(in crate::logs) fn assert_hidden(secrets: &[Vec<u8>], output: &[u8]) {
    for secret in secrets {
        for form in printed_forms(secret) {
            for window in form.windows(8) {
                assert!(
                    memchr::memmem::find(output, window).is_none(),
                    "{:?} of {:?} is in {:?}",
                    String::from_utf8_lossy(window),
                    String::from_utf8_lossy(secret),
                    String::from_utf8_lossy(output)
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_of_a_secret_survives_in_a_line(
        secrets in proptest::collection::vec(secret(), 1..4),
        picks in proptest::collection::vec((any::<usize>(), any::<usize>(), "[.:;G-P]{0,12}"), 0..8),
    ) {
        let mut line = Vec::new();
        for (secret, form, noise) in &picks {
            line.extend_from_slice(noise.as_bytes());
            let forms = printed_forms(&secrets[secret % secrets.len()]);
            line.extend_from_slice(&forms[form % forms.len()]);
        }
        let masker = Masker::new(secrets.clone());
        assert_hidden(&secrets, &masker.mask_line(&line));
    }

    #[test]
    fn a_line_without_secrets_is_unchanged(
        secrets in proptest::collection::vec(secret(), 1..4),
        line in proptest::collection::vec(prop_oneof![0_u8..b'%', 0x80_u8..=0xff], 0..200),
    ) {
        let masker = Masker::new(secrets);
        prop_assert_eq!(masker.mask_line(&line), &line[..]);
    }
}
