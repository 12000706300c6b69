//! Small words for people: durations, ages, signs for states, and text made safe for a terminal.

use super::ui::{Tone, Ui};
use crate::model::api::{StepState, StepView};
use crate::model::{RunId, RunStatus, StepOutcome};
use jiff::Timestamp;
use std::time::Duration;

pub use crate::model::text::{clean, shell_word};

/// A duration in at most two units: `340ms`, `12s`, `1m 04s`, `2h 05m`, `3d 02h`.
pub fn took(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0 => format!("{}ms", span.as_millis()),
        1..60 => format!("{secs}s"),
        60..3_600 => format!("{}m {:02}s", secs / 60, secs % 60),
        3_600..86_400 => format!("{}h {:02}m", secs / 3_600, secs / 60 % 60),
        _ => format!("{}d {:02}h", secs / 86_400, secs / 3_600 % 24),
    }
}

/// How long ago, in one unit: `now`, `12s ago`, `3m ago`, `5h ago`, `9d ago`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    match between(then, now).as_secs() {
        0 => "now".into(),
        s @ 1..60 => format!("{s}s ago"),
        s @ 60..3_600 => format!("{}m ago", s / 60),
        s @ 3_600..86_400 => format!("{}h ago", s / 3_600),
        s => format!("{}d ago", s / 86_400),
    }
}

/// The time between two instants; none when a clock was set back between them.
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// How long something took, or takes so far.
pub fn span(from: Option<Timestamp>, to: Option<Timestamp>, now: Timestamp) -> String {
    from.map(|from| took(between(from, to.unwrap_or(now)))).unwrap_or_default()
}

/// `main` for `refs/heads/main`, `v1` for `refs/tags/v1`.
pub fn short_ref(git_ref: &str) -> &str {
    git_ref.strip_prefix("refs/heads/").or_else(|| git_ref.strip_prefix("refs/tags/")).unwrap_or(git_ref)
}

/// Sign and tone of a run's status.
pub fn status_sign(status: RunStatus) -> (&'static str, Tone) {
    match status {
        RunStatus::Queued => ("·", Tone::Dim),
        RunStatus::Running => ("●", Tone::Active),
        RunStatus::Succeeded => ("✓", Tone::Good),
        RunStatus::Failed => ("✗", Tone::Bad),
        RunStatus::Cancelled => ("◌", Tone::Dim),
        RunStatus::Errored => ("!", Tone::Bad),
    }
}

/// Sign and tone of a step.
pub fn step_sign(step: &StepView) -> (&'static str, Tone) {
    match (step.state, step.outcome) {
        (StepState::Waiting | StepState::Ready, _) => ("·", Tone::Dim),
        (StepState::Running, _) | (StepState::Done, None) => ("●", Tone::Active),
        (StepState::Done, Some(StepOutcome::Succeeded)) => ("✓", Tone::Good),
        (StepState::Done, Some(StepOutcome::Failed)) => ("✗", Tone::Bad),
        (StepState::Done, Some(StepOutcome::FailedAllowed)) => ("~", Tone::Active),
        (StepState::Done, Some(StepOutcome::Skipped)) => ("-", Tone::Dim),
        (StepState::Done, Some(StepOutcome::Cancelled)) => ("◌", Tone::Dim),
    }
}

/// `#12`, or `#12 and #13`.
pub fn run_list(runs: &[RunId]) -> String {
    runs.iter().map(|run| format!("#{run}")).collect::<Vec<_>>().join(" and ")
}

/// A log line made safe for a terminal: colours (`ESC [ … m`) stay when colour is wanted, tabs stay, every other
/// control character and escape sequence goes: a step must not set the window's title or the clipboard.
pub fn safe_log(text: &str, color: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut painted = false;
    while let Some(c) = chars.next() {
        match c {
            '\t' => out.push(c),
            // What a carriage return would overwrite is not wanted in a stored line: keep the last state only.
            '\r' => {
                if chars.peek().is_some() {
                    out.clear();
                    painted = false;
                }
            }
            '\u{1b}' => match chars.next() {
                Some('[') => {
                    let mut parameters = String::new();
                    let end = loop {
                        match chars.next() {
                            Some(c @ '\u{20}'..='\u{3f}') => parameters.push(c),
                            other => break other,
                        }
                    };
                    if end == Some('m') && color {
                        out.push_str(&format!("\u{1b}[{parameters}m"));
                        painted = true;
                    }
                }
                // Strings (titles, clipboard): up to BEL or ESC \.
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    while let Some(c) = chars.next() {
                        if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                _ => {}
            },
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    if painted {
        out.push_str("\u{1b}[0m");
    }
    out
}

/// A colour for the n-th step's prefix, so that neighbours differ.
pub fn step_color(ui: &Ui, n: usize, text: &str) -> String {
    /// Readable on dark and light grounds; red and green are kept for verdicts.
    const CODES: [&str; 6] = ["36", "35", "34", "33", "96", "95"];
    if ui.color { format!("\u{1b}[{}m{text}\u{1b}[0m", CODES[n % CODES.len()]) } else { text.to_owned() }
}

/// Reads an input as given on the command line.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it has the form KEY=VALUE".into()),
    }
}

/// How many repositories, in words.
pub(super) fn repositories(count: usize) -> String {
    if count == 1 { "1 repository".to_owned() } else { format!("{count} repositories") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_at_most_two_units() {
        let shown = |secs| took(Duration::from_secs(secs));
        assert_eq!(took(Duration::from_millis(340)), "340ms");
        assert_eq!(
            (shown(12), shown(64), shown(7_500), shown(266_400)),
            ("12s".into(), "1m 04s".into(), "2h 05m".into(), "3d 02h".into())
        );
    }

    #[test]
    fn a_title_cannot_turn_a_line_around() {
        assert_eq!(clean("a\u{202e}b\nc שלום"), "a b c שלום");
    }

    #[test]
    fn a_clock_that_was_set_back_shows_no_negative_age() {
        let now: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-03-01T10:05:00Z".parse().unwrap();
        assert_eq!(ago(later, now), "now");
        assert_eq!(ago(now, later), "5m ago");
    }

    #[test]
    fn colours_of_a_log_stay_and_tricks_go() {
        let hostile = "\u{1b}]0;owned\u{7}\u{1b}[31mred\u{1b}[2J\u{1b}]52;c;AAAA\u{1b}\\ end\u{8}";
        assert_eq!(safe_log(hostile, true), "\u{1b}[31mred end\u{1b}[0m");
        assert_eq!(safe_log(hostile, false), "red end");
        assert_eq!(safe_log("10%\r100%\r", false), "100%");
        assert_eq!(safe_log("cut \u{1b}[3", true), "cut ");
    }

    #[test]
    fn a_title_cannot_hold_control_characters() {
        assert_eq!(clean("fix\u{1b}[2J\nall"), "fix [2J all");
    }
}
