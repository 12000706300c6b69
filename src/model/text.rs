//! Small words for people that several rooms say: counts, moments, and names that were given by others.

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

/// Text from outside on one line without control characters: a commit title must not move the cursor or set a title,
/// nor turn around the order in which the rest of the line is read.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || turns_direction(c) { ' ' } else { c }).collect()
}

/// The marks by which a text changes its own reading direction. Letters of right-to-left scripts need none of them.
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text as one word of a shell line.
pub fn shell_word(text: &str) -> String {
    if !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "/._-+:@,=".contains(c)) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `1 object`, `2 objects`: of a word that takes an s.
pub fn count<N: TryInto<u64>>(number: N, one: &str) -> String {
    // What does not fit is many.
    let number = number.try_into().unwrap_or(u64::MAX);
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {one}{end}")
}

/// A moment to the second: the one that it lies in.
pub fn moment(at: Timestamp) -> String {
    rounded(at, RoundMode::Floor)
}

/// The first whole second that is not before a moment: what may be named from then on.
pub fn moment_from(at: Timestamp) -> String {
    rounded(at, RoundMode::Ceil)
}

fn rounded(at: Timestamp, mode: RoundMode) -> String {
    // At the end of all time there is no next second.
    at.round(TimestampRound::new().smallest(Unit::Second).mode(mode)).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_moments_are_short() {
        assert_eq!([0_usize, 1, 2].map(|n| count(n, "object")), ["0 objects", "1 object", "2 objects"]);
        let at: Timestamp = "2026-11-23T10:15:00.999999999Z".parse().unwrap();
        assert_eq!((moment(at), moment_from(at)), ("2026-11-23T10:15:00Z".into(), "2026-11-23T10:15:01Z".into()));
        let even: Timestamp = "2026-11-23T10:15:00Z".parse().unwrap();
        assert_eq!((moment(even), moment_from(even)), (even.to_string(), even.to_string()));
        assert_eq!(moment_from(Timestamp::MAX), Timestamp::MAX.to_string());
    }

    #[test]
    fn names_stay_as_they_are_but_for_what_moves_the_cursor() {
        assert_eq!(clean("it's \"Ünï\" \\ $x"), "it's \"Ünï\" \\ $x");
        assert_eq!(clean("a\nb\u{1b}[2Jc\u{202e}d"), "a b [2Jc d");
    }
}
