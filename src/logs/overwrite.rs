//! What a terminal would show of a line in which a program went back to the start with `\r`, as progress bars do.
//!
//! In comes what is shown and the text written over it, both masked; out goes what is shown then. Called by `lines`.
//! The rules, which are those of a terminal as far as a stored line needs them:
//! - new text covers as many characters of the old as it has; the rest of the old stays;
//! - an escape sequence is no character; those of the covered part go with it;
//! - `ESC [ K` and `ESC [ J` take away what is right of them, `ESC [ 2 K` the whole line up to there.

/// Writes `new` over `shown`. What is shown never gets longer than `max` bytes: if it would, only `new` stays.
pub(super) fn write_over(shown: &mut Vec<u8>, mut new: &[u8], max: usize) {
    let mut erases = false;
    let mut columns = 0;
    let mut rest = new;
    while let Some((unit, after)) = next_unit(rest) {
        match unit {
            Unit::Column => columns += 1,
            Unit::Nothing => {}
            Unit::EraseRight => erases = true,
            Unit::EraseLine => {
                shown.clear();
                new = after;
                columns = 0;
            }
        }
        rest = after;
    }
    if erases || shown.is_empty() {
        shown.clear();
        shown.extend_from_slice(new);
        return;
    }
    let mut kept = &shown[..];
    while columns > 0
        && let Some((unit, after)) = next_unit(kept)
    {
        columns -= usize::from(matches!(unit, Unit::Column));
        kept = after;
    }
    // Continuation bytes of the last covered character.
    while let [0x80..=0xbf, after @ ..] = kept {
        kept = after;
    }
    if new.len() + kept.len() > max {
        kept = &[];
    }
    let covered = shown.len() - kept.len();
    shown.splice(..covered, new.iter().copied());
}

enum Unit {
    Column,
    Nothing,
    EraseRight,
    EraseLine,
}

/// The first character or escape sequence, and what follows it.
fn next_unit(text: &[u8]) -> Option<(Unit, &[u8])> {
    match text {
        [] => None,
        [0x1b, b'[', rest @ ..] => {
            // Parameters, then one letter that says what to do.
            let end = rest.iter().position(|b| !(0x20..=0x3f).contains(b)).unwrap_or(rest.len());
            let unit = match (rest.get(end), &rest[..end]) {
                (Some(b'K'), b"2") => Unit::EraseLine,
                (Some(b'K'), b"" | b"0") | (Some(b'J'), _) => Unit::EraseRight,
                _ => Unit::Nothing,
            };
            Some((unit, rest.get(end + 1..).unwrap_or_default()))
        }
        [0x1b, b']', rest @ ..] => {
            // A title or link: up to BEL or the escape that ends it.
            let end = rest.iter().position(|&b| b == 0x07 || b == 0x1b).unwrap_or(rest.len());
            let end = if rest.get(end) == Some(&0x1b) { end + 2 } else { end + 1 };
            Some((Unit::Nothing, rest.get(end..).unwrap_or_default()))
        }
        [0x1b, rest @ ..] => Some((Unit::Nothing, rest.get(1..).unwrap_or_default())),
        // Control bytes, and all but the first byte of a UTF-8 character.
        [0..=0x1f | 0x7f..=0xbf, rest @ ..] => Some((Unit::Nothing, rest)),
        [_, rest @ ..] => Some((Unit::Column, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::write_over;

    fn shown(parts: &[&str]) -> String {
        let mut shown = Vec::new();
        parts.iter().for_each(|part| write_over(&mut shown, part.as_bytes(), 1000));
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn new_text_covers_what_it_is_long_enough_for() {
        assert_eq!(shown(&["10 %", "20 %", "done"]), "done");
        assert_eq!(shown(&["downloading", "done"]), "doneloading");
        assert_eq!(shown(&["äöü end", "ab"]), "abü end");
        assert_eq!(shown(&["ab", "", ""]), "ab");
    }

    #[test]
    fn erasing_sequences_leave_nothing_of_the_old() {
        assert_eq!(shown(&["downloading", "done\u{1b}[K"]), "done\u{1b}[K");
        assert_eq!(shown(&["downloading\u{1b}[2K", "ok"]), "ok");
        assert_eq!(shown(&["downloading", "\u{1b}[2Kok"]), "ok");
    }

    #[test]
    fn colours_are_no_characters() {
        assert_eq!(shown(&["\u{1b}[31mred\u{1b}[0m!", "\u{1b}[32mok"]), "\u{1b}[32mokd\u{1b}[0m!");
    }

    #[test]
    fn what_is_shown_stays_bounded() {
        let mut shown = b"x".repeat(90);
        for _ in 0..1000 {
            write_over(&mut shown, b"\x1b[31m", 100);
            assert!(shown.len() <= 100);
        }
    }

    #[test]
    fn unfinished_sequences_are_no_trap() {
        for end in ["\u{1b}", "\u{1b}[", "\u{1b}[3", "\u{1b}]0;t", "\u{1b}]0;t\u{1b}"] {
            shown(&["old text", end, "new"]);
        }
    }
}
