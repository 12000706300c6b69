//! What is wrong with a file, and where: the error type of this room.

use super::yaml::Place;
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde::Serialize;
use std::fmt;

/// Whether a file can be used in spite of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken; it may not do what its author expects.
    Warning,
}

/// One thing that is wrong, and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether the file is refused for it.
    pub severity: Severity,
    /// What is wrong, in a sentence without a full stop.
    pub message: String,
    /// The line, from 1; 0 when it is about the file as a whole.
    pub line: usize,
    /// The column in characters, from 1; 0 when it is about the file as a whole.
    pub column: usize,
    /// How many characters of the line it is about.
    pub length: usize,
    /// What to try, a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// The longest message or hint that is kept: text out of a hostile file must not fill a screen.
const WORDS_MAX_CHARS: usize = 500;
/// How much of a long source line is shown.
const LINE_SHOWN_CHARS: usize = 110;
/// How many findings are kept; who has more mends these first.
const FINDINGS_MAX: usize = 50;

impl Finding {
    /// An error about the file as a whole.
    pub fn general(message: impl AsRef<str>) -> Self {
        Finding {
            severity: Severity::Error,
            message: clean(message.as_ref()),
            line: 0,
            column: 0,
            length: 0,
            hints: Vec::new(),
        }
    }

    /// An error at a place of the source.
    pub(crate) fn at(source: &str, place: Place, message: impl AsRef<str>) -> Self {
        let offset = source.floor_char_boundary(place.offset.min(source.len()));
        let before = &source[..offset];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line_end = source[offset..].find('\n').map_or(source.len(), |i| offset + i);
        let end = source.floor_char_boundary((offset + place.length).min(line_end)).max(offset);
        Finding {
            line: before.matches('\n').count() + 1,
            column: source[line_start..offset].chars().count() + 1,
            length: source[offset..end].trim_end().chars().count(),
            ..Finding::general(message)
        }
    }

    /// Adds what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.hints.push(clean(hint.as_ref()));
        self
    }

    /// Makes it a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

/// All that is wrong with one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The file, as the reader knows it.
    pub file: String,
    /// Its text, for showing the lines.
    #[serde(skip)]
    source: String,
    /// The findings, in the order of their places.
    pub list: Vec<Finding>,
}

impl Findings {
    /// Collects findings about a file whose text is `source`; they are put in the order of their places and bounded.
    pub fn new(file: &str, source: &str, mut list: Vec<Finding>) -> Self {
        list.sort_by_key(|f| (f.line, f.column));
        list.dedup();
        if list.len() > FINDINGS_MAX {
            list.truncate(FINDINGS_MAX);
            list.push(Finding::general("and more, not shown; mend these first"));
        }
        Findings { file: clean(file), source: source.to_owned(), list }
    }

    /// The same, about a file that the reader knows by another name.
    #[must_use]
    pub fn of_file(mut self, file: &str) -> Self {
        self.file = clean(file);
        self
    }

    /// True when the file is refused.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|f| f.severity == Severity::Error)
    }

    /// Every finding with its source line underlined, and its hints; with escape sequences when `color`.
    pub fn render(&self, color: bool) -> String {
        let mut out = String::new();
        for (index, finding) in self.list.iter().enumerate() {
            if index > 0 {
                out.push_str("\n\n");
            }
            out.push_str(&self.render_one(finding, color));
        }
        out
    }

    fn render_one(&self, finding: &Finding, color: bool) -> String {
        let level = match finding.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let group = level.primary_title(finding.message.as_str());
        let source_line = finding.line.checked_sub(1).and_then(|n| self.source.lines().nth(n));
        let shown = source_line.map(|line| Shown::new(line, finding));
        let mut group = match &shown {
            Some(shown) => {
                let snippet = Snippet::source(shown.text.as_str())
                    .line_start(finding.line)
                    .annotation(AnnotationKind::Primary.span(shown.from..shown.to));
                if shown.cut_at_start {
                    // The renderer counts columns in what it is shown, so the place is given apart.
                    let place = Origin::path(self.file.as_str()).line(finding.line).char_column(finding.column);
                    group.element(place).element(snippet)
                } else {
                    group.element(snippet.path(self.file.as_str()))
                }
            }
            None => group.element(Origin::path(self.file.as_str())),
        };
        for hint in &finding.hints {
            group = group.element(Level::HELP.with_name("hint").message(hint.as_str()));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.decor_style(DecorStyle::Ascii).render(&[group])
    }
}

/// The piece of a source line that is shown, and the bytes of it that are underlined.
struct Shown {
    text: String,
    from: usize,
    to: usize,
    cut_at_start: bool,
}

impl Shown {
    fn new(line: &str, finding: &Finding) -> Self {
        let column = finding.column.saturating_sub(1);
        // Far to the right in a long line: begin a little before the place.
        let skipped = if column + finding.length.min(40) > LINE_SHOWN_CHARS { column.saturating_sub(30) } else { 0 };
        let mut text = String::new();
        let (mut from, mut to) = (None, 0);
        if skipped > 0 {
            text.push_str("... ");
        }
        let mut rest = line.chars().enumerate().skip(skipped);
        for (n, c) in rest.by_ref().take(LINE_SHOWN_CHARS) {
            if n == column {
                from = Some(text.len());
            }
            // A tab would shift the underline, a control character could drive the terminal.
            text.push(if c == '\t' {
                ' '
            } else if is_unsafe(c) {
                '\u{fffd}'
            } else {
                c
            });
            if n < column + finding.length.max(1) {
                to = text.len();
            }
        }
        let from = from.unwrap_or(text.len());
        let to = to.max(from);
        if rest.next().is_some() {
            text.push_str(" ...");
        }
        Shown { text, from, to, cut_at_start: skipped > 0 }
    }
}

/// True for what must not reach a terminal: control characters and the marks that turn the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
}

/// Bounded, on one line, and safe to print.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == WORDS_MAX_CHARS {
            out.push_str("...");
            break;
        }
        match c {
            '\n' => out.push_str("\\n"),
            c if is_unsafe(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// A piece of text from a file for use inside a message: short, and safe to print.
pub(crate) fn shown(text: &str) -> String {
    let mut out = clean(&text.chars().take(60).collect::<String>());
    if text.chars().nth(60).is_some() {
        out.push_str("...");
    }
    out
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Findings {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_around_the_place_and_nothing_reaches_the_terminal() {
        let line = format!("a: [{} \u{202e}oops\u{1b}[31m, {}]", "x".repeat(50_000), "y".repeat(50_000));
        let offset = line.find("oops").unwrap();
        let finding = Finding::at(&line, Place { offset, length: 4 }, "bad \u{1b}[31m\nword \u{202e}").hint("h\u{7}");
        let text = Findings::new("f\u{1b}.yml", &line, vec![finding]).render(false);
        let first: Vec<&str> = text.lines().take(2).collect();
        assert_eq!(first, ["error: bad \\u{1b}[31m\\nword \\u{202e}", " --> f\\u{1b}.yml:1:50007"]);
        assert!(text.contains("1 | ... xxx") && text.contains(" \u{fffd}oops\u{fffd}[31m, yyy"), "{text}");
        assert!(
            text.contains("  |                                   ^^^^\n") && text.ends_with("= hint: h\\u{7}"),
            "{text}"
        );
        assert!(!text.contains(|c: char| c != '\n' && is_unsafe(c)) && text.len() < 600);
    }
}
