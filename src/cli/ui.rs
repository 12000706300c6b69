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
    /// Escape sequences are wanted on stderr.
    pub color_err: bool,
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
        let wanted = |terminal: bool| match when {
            "always" => true,
            "never" => false,
            _ => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        let color = wanted(io::stdout().is_terminal()) && !json;
        Ui { json, color, color_err: wanted(io::stderr().is_terminal()) && !json, verbosity }
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
            self.complain(line);
        }
    }

    /// What must be said even with `-q`: errors. On stderr.
    pub fn complain(&self, line: impl AsRef<str>) {
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{}", line.as_ref());
    }

    /// Bytes for stdout as they are: a generated file. A closed pipe ends the process quietly.
    pub fn raw(&self, bytes: &[u8]) {
        let mut stdout = io::stdout().lock();
        if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
            std::process::exit(0);
        }
    }

    /// How many columns a line may have: the terminal's width; without a terminal, as many as it likes.
    pub fn columns(&self) -> Option<usize> {
        let named = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|n| *n >= 20);
        if !io::stdout().is_terminal() {
            return named;
        }
        named.or_else(|| terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0)))
    }

    /// The text in that tone, when colour is on.
    pub fn paint(&self, tone: Tone, text: impl AsRef<str>) -> String {
        painted(self.color, tone, text.as_ref())
    }

    /// The same for stderr.
    pub fn paint_err(&self, tone: Tone, text: impl AsRef<str>) -> String {
        painted(self.color_err, tone, text.as_ref())
    }
}

fn painted(color: bool, tone: Tone, text: &str) -> String {
    if !color {
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
