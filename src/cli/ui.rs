//! Where words go: data to stdout, people's words to stderr, colour only where it is wanted.

use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// How this invocation talks.
#[derive(Debug, Clone)]
pub struct Ui {
    /// Stdout carries JSON and nothing else.
    pub json: bool,
    /// Escape sequences are wanted on stdout.
    pub color: bool,
    /// -1 quiet, 0 usual, 1 and more verbose.
    pub verbosity: i8,
}

/// A colour or weight, by meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Went well.
    Good,
    /// Went wrong.
    Bad,
    /// Under way.
    Active,
    /// Less important.
    Dim,
    /// A title.
    Strong,
}

impl Ui {
    /// `when` is `auto`, `always` or `never`; `auto` is colour on a terminal unless `NO_COLOR` is set.
    pub fn new(json: bool, when: &str, verbosity: i8) -> Self {
        let color = match when {
            "always" => true,
            "never" => false,
            _ => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        Ui { json, color: color && !json, verbosity }
    }

    /// Data for stdout, a line. A closed pipe ends the process quietly, as `head` expects.
    pub fn out(&self, line: impl AsRef<str>) {
        let mut stdout = io::stdout().lock();
        if writeln!(stdout, "{}", line.as_ref()).and_then(|()| stdout.flush()).is_err() {
            std::process::exit(0);
        }
    }

    /// One JSON document, or one line of a stream, on stdout.
    pub fn json(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.out(text),
            Err(error) => self.say(format!("mainstay: failed to write JSON: {error}")),
        }
    }

    /// Words for people, on stderr unless `-q`.
    pub fn say(&self, line: impl AsRef<str>) {
        if self.verbosity >= 0 {
            let _ = writeln!(io::stderr().lock(), "{}", line.as_ref());
        }
    }

    /// The text in that tone, when colour is on.
    pub fn paint(&self, tone: Tone, text: impl AsRef<str>) -> String {
        let text = text.as_ref();
        if !self.color {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Active => "33",
            Tone::Dim => "2",
            Tone::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}
