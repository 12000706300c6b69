//! Tracing to stderr: text on a terminal, JSON lines elsewhere. Called once by `cli`.
//!
//! What may be logged: names, numbers, commit ids, durations, sentences of errors. Never: values of secrets or of a
//! step's environment, tokens, request headers or bodies, log lines of steps (those go through `logs`, which masks).
//! Types that carry such values print names only in `Debug`.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Names the filter, in the usual `target=level` form; it goes before `-v` and `-q`.
pub const FILTER_VARIABLE: &str = "MAINSTAY_LOG";

/// Libraries that would write headers or frames, and so tokens, at their finer levels. They are held at `warn`
/// whatever the filter says.
const HELD_BACK: &[&str] = &["bollard", "hyper", "hyper_util", "reqwest", "rustls", "h2"];

/// Who is talking: a daemon tells what it does, a command is silent unless asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// `mainstay serve`.
    Daemon,
    /// Everything else.
    Command,
}

/// Starts tracing. A second call changes nothing.
pub fn init(voice: Voice, verbosity: i8) {
    let wanted = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.trim().is_empty());
    let (filter, complaint) = filter(voice, verbosity, wanted.as_deref());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Failing means that somebody (a test) has set one already.
    let _ = if std::io::stderr().is_terminal() {
        builder.with_target(false).compact().try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    };
    if let Some(complaint) = complaint {
        tracing::warn!(variable = FILTER_VARIABLE, "the filter is not understood and was left out: {complaint}");
    }
}

fn filter(voice: Voice, verbosity: i8, wanted: Option<&str>) -> (EnvFilter, Option<String>) {
    let level = match (voice, verbosity) {
        (Voice::Daemon, ..=-1) => "warn",
        (Voice::Daemon, 0) | (Voice::Command, 1) => "warn,mainstay=info",
        (Voice::Command, ..=-1) => "error",
        (Voice::Command, 0) => "warn",
        (Voice::Daemon, 1) | (Voice::Command, 2) => "warn,mainstay=debug",
        _ => "info,mainstay=trace",
    };
    let (mut filter, complaint) = match wanted.map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(level), Some(error.to_string())),
        None => (EnvFilter::new(level), None),
    };
    for library in HELD_BACK {
        if let Ok(directive) = format!("{library}=warn").parse() {
            filter = filter.add_directive(directive);
        }
    }
    (filter, complaint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_for_frames_of_the_http_library_is_not_granted() {
        let (filter, complaint) = filter(Voice::Command, 0, Some("hyper=trace,mainstay=debug"));
        let shown = filter.to_string();
        assert!(complaint.is_none());
        assert!(shown.contains("hyper=warn") && !shown.contains("hyper=trace"), "{shown}");
        assert!(shown.contains("mainstay=debug"), "{shown}");
    }

    #[test]
    fn a_filter_that_is_not_understood_is_told_and_replaced() {
        let (filter, complaint) = filter(Voice::Daemon, 0, Some("mainstay=loud"));
        assert!(complaint.is_some());
        assert!(filter.to_string().contains("mainstay=info"), "{filter}");
    }
}
