//! Which timelines a timeline came from. In: a history file as the server gives it, or the note beside it, which says the
//! same without an identity. Out: its ancestors. Callers: `index`, `ship` (which writes the note), `restore`.
//!
//! Source of the form: PostgreSQL's `timeline.c` and the chapter "Continuous Archiving" of its manual.

use crate::model::{Lsn, Timeline};

/// A timeline that another one came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// It.
    pub timeline: Timeline,
    /// The byte after the last one of it that belongs to the descendant's history.
    pub ends: Lsn,
}

/// The longest history that is read: a line is some 60 bytes, and a cluster is not promoted ten thousand times.
pub const HISTORY_MAX_BYTES: usize = 1 << 20;

/// Why a history file does not read. `Display` fits after "failed to read 00000002.history: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHistory {
    /// Longer than [`HISTORY_MAX_BYTES`].
    #[error("it is longer than 1 MiB")]
    TooLong,
    /// A line that is none.
    #[error("line {line} is not a timeline, the place where it was left, and a reason")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// Timelines or places that go backward.
    #[error("line {line} goes backward: each timeline is newer than the one before it, and was left later")]
    Order {
        /// Counted from 1.
        line: usize,
    },
    /// It names itself, or a newer one, as its ancestor.
    #[error("timeline {0} cannot come from itself or from a newer one")]
    Own(Timeline),
}

/// The ancestors that the history file of `timeline` names, oldest first.
///
/// # Errors
/// When it is none that a server writes.
pub fn parse(timeline: Timeline, file: &[u8]) -> Result<Vec<Ancestor>, BadHistory> {
    if file.len() > HISTORY_MAX_BYTES {
        return Err(BadHistory::TooLong);
    }
    // The reason may hold any bytes: a restore point's name goes there as the user wrote it.
    let mut ancestors: Vec<Ancestor> = Vec::new();
    for (index, line) in file.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        let number = index + 1;
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let mut word = || words.next().and_then(|word| std::str::from_utf8(word).ok());
        let read = word().zip(word()).and_then(|(timeline, at)| Some((timeline.parse().ok()?, at.parse().ok()?)));
        let (ancestor, ends) = read.ok_or(BadHistory::Line { line: number })?;
        push(timeline, &mut ancestors, Ancestor { timeline: Timeline(ancestor), ends }, number)?;
    }
    Ok(ancestors)
}

fn push(own: Timeline, ancestors: &mut Vec<Ancestor>, next: Ancestor, line: usize) -> Result<(), BadHistory> {
    if next.timeline.0 == 0 {
        return Err(BadHistory::Line { line });
    }
    if next.timeline >= own {
        return Err(BadHistory::Own(own));
    }
    if ancestors.last().is_some_and(|before| before.timeline >= next.timeline || before.ends > next.ends) {
        return Err(BadHistory::Order { line });
    }
    ancestors.push(next);
    Ok(())
}

/// The text for the note [`ANCESTORS`](super::note::ANCESTORS): `1@0/3000148,2@0/50001D8`.
pub fn note(ancestors: &[Ancestor]) -> String {
    let each: Vec<String> = ancestors.iter().map(|one| format!("{}@{}", one.timeline, one.ends)).collect();
    each.join(",")
}

/// What [`note`] wrote.
///
/// # Errors
/// When it did not write that.
pub fn parse_note(timeline: Timeline, text: &str) -> Result<Vec<Ancestor>, BadHistory> {
    let mut ancestors = Vec::new();
    for (index, word) in text.split(',').filter(|word| !word.is_empty()).enumerate() {
        let line = index + 1;
        let read = word.split_once('@').and_then(|(timeline, at)| Some((timeline.parse().ok()?, at.parse().ok()?)));
        let (ancestor, ends) = read.ok_or(BadHistory::Line { line })?;
        push(timeline, &mut ancestors, Ancestor { timeline: Timeline(ancestor), ends }, line)?;
    }
    Ok(ancestors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ancestor(timeline: u32, ends: u64) -> Ancestor {
        Ancestor { timeline: Timeline(timeline), ends: Lsn(ends) }
    }

    #[test]
    fn a_history_file_is_read_as_the_server_reads_it() {
        let file =
            b"1\t0/3000148\tno recovery target specified\n\n# a note\n2\t0/50001D8\tat restore point \"caf\xe9\"\n";
        assert_eq!(parse(Timeline(3), file), Ok(vec![ancestor(1, 0x300_0148), ancestor(2, 0x500_01D8)]));
        // Timelines may be skipped: 2 was somebody else's.
        assert_eq!(parse(Timeline(3), b"1\t0/3000148\treason"), Ok(vec![ancestor(1, 0x300_0148)]));
        assert_eq!(parse(Timeline(2), b""), Ok(vec![]));
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        for (file, why) in [
            (&b"1"[..], BadHistory::Line { line: 1 }),
            (b"one\t0/3000148\tx", BadHistory::Line { line: 1 }),
            (b"0\t0/3000148\tx", BadHistory::Line { line: 1 }),
            (b"1\t3000148\tx", BadHistory::Line { line: 1 }),
            (b"1\t0/1\tx\n1\t0/2\tx", BadHistory::Order { line: 2 }),
            (b"1\t0/2\tx\n2\t0/1\tx", BadHistory::Order { line: 2 }),
            (b"3\t0/1\tx", BadHistory::Own(Timeline(3))),
            (b"4\t0/1\tx", BadHistory::Own(Timeline(3))),
        ] {
            assert_eq!(parse(Timeline(3), file), Err(why), "{}", String::from_utf8_lossy(file));
        }
        assert_eq!(parse(Timeline(3), &vec![b'\n'; HISTORY_MAX_BYTES + 1]), Err(BadHistory::TooLong));
    }

    proptest! {
        #[test]
        fn the_note_says_what_the_file_says(steps in proptest::collection::vec((1_u32..4, 0_u64..1 << 40), 0..6)) {
            let (mut timeline, mut at) = (0, 0);
            let ancestors: Vec<Ancestor> = steps.iter().map(|(line, bytes)| {
                (timeline, at) = (timeline + line, at + bytes);
                ancestor(timeline, at)
            }).collect();
            let file: String = ancestors.iter().map(|one| format!("{}\t{}\tbecause\n", one.timeline, one.ends)).collect();
            let own = Timeline(timeline + 1);
            prop_assert_eq!(parse(own, file.as_bytes()), Ok(ancestors.clone()));
            prop_assert_eq!(parse_note(own, &note(&ancestors)), Ok(ancestors));
        }

        #[test]
        fn any_bytes_read_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Timeline(7), &bytes);
            let _ = parse_note(Timeline(7), &String::from_utf8_lossy(&bytes));
        }
    }
}
