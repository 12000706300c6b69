//! A message in words, without a form: what `message` says, and what `letter` and `post` give a look to.
//!
//! Much of it was written by strangers: commit subjects, step names, file contents. [`line()`] and [`block`] make such
//! text harmless for any form: no control characters, no characters that turn the direction of reading, no new lines
//! where one line is meant, and no web addresses that a reader's program would make into links. Escaping for HTML or
//! for a chat system is left to whoever writes that form.

/// One line of a message: more than any commit subject or image reference needs.
const LINE_MAX_CHARS: usize = 400;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    /// The subject line of a mail, the first line elsewhere.
    pub(super) subject: String,
    /// Above everything else.
    pub(super) headline: String,
    pub(super) tone: Tone,
    /// What must not be overlooked.
    pub(super) warning: Option<String>,
    /// Whole sentences, a paragraph each.
    pub(super) intro: Vec<String>,
    /// Digits to be typed somewhere.
    pub(super) code: Option<String>,
    pub(super) facts: Vec<(&'static str, String)>,
    /// The only link.
    pub(super) action: Option<Action>,
    pub(super) sections: Vec<(&'static str, Body)>,
    /// What it does, and the command that does it.
    pub(super) command: Option<(&'static str, String)>,
}

/// How it is meant; shown as a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Ask,
    Good,
    Bad,
    Note,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Action {
    pub(super) label: &'static str,
    pub(super) url: String,
    /// What is to be known about it; may be empty.
    pub(super) note: &'static str,
}

/// What stands under a section's title.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    Lines(Vec<String>),
    Pairs(Vec<(String, String)>),
    Text(String),
    /// A unified diff.
    Diff(String),
}

impl Words {
    pub(super) fn new(subject: String, tone: Tone) -> Words {
        Words {
            headline: subject.clone(),
            subject,
            tone,
            warning: None,
            intro: Vec::new(),
            code: None,
            facts: Vec::new(),
            action: None,
            sections: Vec::new(),
            command: None,
        }
    }

    pub(super) fn section(&mut self, title: &'static str, body: Body) {
        self.sections.push((title, body));
    }

    /// A section of names with values, the first `max` of them; none when there are none.
    pub(super) fn pairs<'a>(
        &mut self,
        title: &'static str,
        all: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
        max: usize,
    ) {
        let count = all.len();
        let mut shown: Vec<_> = all.take(max).map(|(name, value)| (line(name), line(value))).collect();
        if count > max {
            shown.push(("…".into(), format!("and {} more", count - max)));
        }
        if count > 0 {
            self.section(title, Body::Pairs(shown));
        }
    }

    /// A section of lines, the first `max` of them; none when there are none.
    pub(super) fn lines(&mut self, title: &'static str, lines: &[String], max: usize) {
        if lines.is_empty() {
            return;
        }
        let mut shown: Vec<String> = lines.iter().take(max).map(|text| line(text)).collect();
        if lines.len() > max {
            shown.push(format!("… and {} more", lines.len() - max));
        }
        self.section(title, Body::Lines(shown));
    }
}

/// Somebody's text as one line.
pub(super) fn line(text: &str) -> String {
    let mut clean = String::new();
    for (count, c) in text.trim().chars().enumerate() {
        if count == LINE_MAX_CHARS {
            clean.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            // One blank for any number of them, so that nothing can be pushed out of sight.
            if !clean.ends_with(' ') {
                clean.push(' ');
            }
        } else if !turns(c) {
            clean.push(c);
        }
    }
    unlinked(&clean)
}

/// Somebody's text as lines, at most so many and so large.
pub(super) fn block(text: &str, max_lines: usize, max_bytes: usize) -> String {
    let mut clean = String::new();
    for (lines, row) in text.trim_end().split('\n').enumerate() {
        if lines == max_lines || clean.len() + row.len() > max_bytes {
            clean.push_str("… and more");
            break;
        }
        for c in row.trim_end_matches('\r').chars() {
            match c {
                '\t' => clean.push_str("    "),
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => clean.push(' '),
                c if turns(c) => {}
                c => clean.push(c),
            }
        }
        clean.push('\n');
    }
    unlinked(clean.trim_end())
}

/// Characters that make text read in another order than it stands, or that cannot be seen at all.
fn turns(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{61c}' | '\u{feff}')
}

/// Mail programs make links of what looks like an address. The only link is ours: a word joiner, which nobody sees,
/// keeps others from becoming one.
fn unlinked(text: &str) -> String {
    text.replace("://", ":\u{2060}//").replace("www.", "www\u{2060}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_cannot_hide_or_turn_anything() {
        let table = [
            ("  a b ", "a b"),
            ("a\r\nBcc: eve@example.net\n\n\n\nb", "a Bcc: eve@example.net b"),
            ("a\u{2028}b\u{0}\u{7}c", "a b c"),
            ("a\u{202e}b\u{200b}c\u{feff}\u{2066}d", "abcd"),
            ("see https://x.example", "see https:\u{2060}//x.example"),
            ("see www.x.example", "see www\u{2060}.x.example"),
            ("Zoë’s 🚀 <b>&amp;", "Zoë’s 🚀 <b>&amp;"),
        ];
        for (said, wanted) in table {
            assert_eq!(line(said), wanted);
        }
        assert_eq!(line(&"ä".repeat(5_000)).chars().count(), LINE_MAX_CHARS + 1);
    }

    #[test]
    fn a_block_keeps_its_lines_and_is_bounded() {
        assert_eq!(block("+a\r\n\n-b\tc\n\n\n", 10, 1000), "+a\n\n-b    c");
        assert_eq!(block("1\n2\n3", 2, 1000), "1\n2\n… and more");
        assert_eq!(block(&format!("1\n{}", "x".repeat(100)), 10, 50), "1\n… and more");
        assert_eq!(block("\u{1b}[31m\u{202e}x http://y", 10, 1000), " [31mx http:\u{2060}//y");
    }
}
