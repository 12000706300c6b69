//! Hides secrets in log lines before they are stored.
//!
//! In come the values a step was given and lines of its output; out go the same lines with `***` in the place of every
//! value, in every form below. Called by `lines`, and by whoever shows text that did not come from a log.
//!
//! Forms of a value: itself; base64 (both alphabets, at each of the three places it can have in a longer encoded text,
//! padded or not); percent-encoded by the usual rules, in both cases of hex; escaped as in JSON; quoted for a shell;
//! hex in both cases. A value of several lines is hidden as a whole in the encoded forms, and each of its lines of
//! eight bytes and more in all forms: a shorter line (`}` or `-----`) would hide half of every log.
//!
//! Base64 and hex that a tool folded over lines: a line that begins or ends with eight or more characters of an
//! encoded value loses them. Lines are looked at one at a time, so a piece of less than eight characters stays.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use std::borrow::Cow;
use std::collections::HashMap;

/// What stands in the place of a hidden value.
pub const HIDDEN: &[u8] = b"***";
/// Shorter values are not hidden: three bytes occur by chance in nearly every log.
pub const SECRET_MIN_BYTES: usize = 4;
/// A line of a value of several lines is hidden by itself from this length on.
const LINE_MIN_BYTES: usize = 8;
/// A longer value is hidden block by block, so that what must be held back of a long line stays small.
const BLOCK_BYTES: usize = 4096;
/// The characters at a line's end or beginning that make it a piece of a folded value: 8 of them are 48 bits.
const FOLD_CHARS: usize = 8;
/// A value like `AAAA...` has the same eight characters at many places; looking at the first few is enough.
const FOLD_PLACES_TRIED: usize = 16;
/// A base64 match may grow by one character on each side and by two `=`.
const GROWTH_BYTES: usize = 4;

/// Hides a fixed set of secrets. Cheap to share, made once per attempt.
pub struct Masker {
    finder: Finder,
    /// By pattern id: how the match of a base64 form grows over characters that hold bits of its neighbours too.
    grow: Vec<Grow>,
    folded: Folded,
    longest: usize,
    refused: Vec<usize>,
}

enum Finder {
    Nothing,
    Some(AhoCorasick),
    /// The values are too many to search for: no text is safe to show.
    Everything,
}

#[derive(Debug, Clone, Copy, Default)]
struct Grow {
    left: bool,
    right: bool,
}

/// A run of bytes to hide, from the first to before the second.
type Run = (usize, usize);

/// Where in a line a text stands; only real line ends are looked at for folded values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edges {
    pub(super) starts_line: bool,
    pub(super) ends_line: bool,
}

impl Edges {
    const WHOLE: Edges = Edges { starts_line: true, ends_line: true };
}

impl Masker {
    /// A masker for these values. Values of less than four bytes are not hidden; [`Masker::refused`] names them.
    pub fn new(values: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut patterns = Patterns::default();
        let mut refused = Vec::new();
        for (index, value) in values.into_iter().enumerate() {
            if value.is_empty() {
                continue;
            }
            let trimmed = value.trim_ascii_end();
            if trimmed.len() < SECRET_MIN_BYTES {
                refused.push(index);
                continue;
            }
            patterns.add_value(&value);
            // Secrets read from files end in a newline which a program often takes off.
            patterns.add_value(trimmed);
            if trimmed.iter().any(|b| matches!(b, b'\n' | b'\r')) {
                let lines = trimmed.split(|b| matches!(b, b'\n' | b'\r'));
                lines.filter(|line| line.len() >= LINE_MIN_BYTES).for_each(|line| patterns.add_value(line));
            }
        }
        patterns.build(refused)
    }

    /// A masker that hides nothing.
    pub fn none() -> Self {
        Self::new([])
    }

    /// The places, in the order given to `new`, of values too short to hide.
    pub fn refused(&self) -> &[usize] {
        &self.refused
    }

    /// How many bytes must be held back when a line is cut in pieces, so that no value crosses the cut unseen.
    pub fn overlap(&self) -> usize {
        if self.longest == 0 { 0 } else { self.longest - 1 + GROWTH_BYTES }
    }

    /// A whole line (without its end) with every secret hidden.
    pub fn mask_line<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        let runs = self.runs(line, 0, Edges::WHOLE);
        if runs.is_empty() {
            return Cow::Borrowed(line);
        }
        let mut out = Vec::with_capacity(line.len());
        write_hidden(line, &runs, line.len(), 0, &mut out);
        Cow::Owned(out)
    }

    /// Masks the first `cut` bytes of `text` into `out`, knowing that the first `carried` bytes belong to a value
    /// whose `***` was written with the piece before. Returns how many bytes after the cut are hidden already.
    ///
    /// `text` must go on for [`Masker::overlap`] bytes after the cut, or end with the line.
    pub(super) fn mask_piece(&self, text: &[u8], cut: usize, carried: usize, edges: Edges, out: &mut Vec<u8>) -> usize {
        let runs = self.runs(text, carried, edges);
        write_hidden(text, &runs, cut, carried, out)
    }

    /// What to hide in the text: sorted, neither overlapping nor touching.
    fn runs(&self, text: &[u8], carried: usize, edges: Edges) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        match &self.finder {
            Finder::Nothing => return runs,
            Finder::Everything => return if text.is_empty() { runs } else { vec![(0, text.len())] },
            // All overlapping matches: of two secrets that share bytes, both must go.
            Finder::Some(finder) => {
                for found in finder.find_overlapping_iter(text) {
                    runs.push(self.grow[found.pattern().as_usize()].over(text, found.start(), found.end()));
                }
            }
        }
        if carried > 0 {
            runs.push((0, carried));
        }
        if edges.starts_line {
            runs.extend(self.folded.at_start(text));
        }
        if edges.ends_line {
            runs.extend(self.folded.at_end(text));
        }
        if runs.len() > 1 {
            runs.sort_unstable();
            runs.dedup_by(|next, kept| {
                let joined = next.0 <= kept.1;
                if joined {
                    kept.1 = kept.1.max(next.1);
                }
                joined
            });
        }
        runs
    }
}

impl std::fmt::Debug for Masker {
    /// Counts only: the patterns are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masker").field("patterns", &self.grow.len()).finish_non_exhaustive()
    }
}

fn write_hidden(text: &[u8], runs: &[Run], cut: usize, carried: usize, out: &mut Vec<u8>) -> usize {
    let mut shown = 0;
    for &(start, end) in runs {
        if start >= cut {
            break;
        }
        out.extend_from_slice(&text[shown..start]);
        if !(start == 0 && carried > 0) {
            out.extend_from_slice(HIDDEN);
        }
        if end >= cut {
            return end - cut;
        }
        shown = end;
    }
    out.extend_from_slice(&text[shown..cut]);
    0
}

impl Grow {
    fn over(self, text: &[u8], mut start: usize, mut end: usize) -> Run {
        if self.left && start > 0 && canonical(text[start - 1]).is_some() {
            start -= 1;
        }
        if self.right && text.get(end).is_some_and(|&b| canonical(b).is_some()) {
            end += 1;
            end += text[end..].iter().take(2).take_while(|&&b| b == b'=').count();
        }
        (start, end)
    }
}

/// The byte as a character of the standard base64 alphabet, when it is one of either alphabet.
fn canonical(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => Some(byte),
        b'-' => Some(b'+'),
        b'_' => Some(b'/'),
        _ => None,
    }
}

/// The search patterns while they are collected.
#[derive(Default)]
struct Patterns {
    found: HashMap<Vec<u8>, Grow>,
    folded: Folded,
}

impl Patterns {
    fn add_value(&mut self, value: &[u8]) {
        if value.len() <= BLOCK_BYTES {
            self.add_forms(value);
            return;
        }
        value.chunks_exact(BLOCK_BYTES).for_each(|block| self.add_forms(block));
        // The rest may be a few bytes: a whole block ending where the value ends covers it.
        self.add_forms(&value[value.len() - BLOCK_BYTES..]);
    }

    fn add_forms(&mut self, value: &[u8]) {
        if self.found.contains_key(value) {
            return;
        }
        self.add(value.to_vec(), Grow::default());
        for digits in [hex::encode(value), hex::encode_upper(value)] {
            self.folded.add(digits.as_bytes());
            self.add(digits.into_bytes(), Grow::default());
        }
        for before in 0..3 {
            self.add_base64(value, before);
        }
        for keep in [&b"-_.~"[..], b"-_.~/", b"-_.!~*'()", b"-_.!~*'();/?:@&=+$,#", b"*-._"] {
            for upper in [true, false] {
                self.add(percent(value, keep, upper, false), Grow::default());
                self.add(percent(value, keep, upper, true), Grow::default());
            }
        }
        let text = String::from_utf8_lossy(value);
        for escapes in JsonEscapes::ALL {
            self.add(escapes.apply(&text), Grow::default());
        }
        self.add(text.replace('\'', r"'\''").into_bytes(), Grow::default());
    }

    /// The characters that the value alone decides when `before` bytes of other text stand in its first group of three.
    fn add_base64(&mut self, value: &[u8], before: usize) {
        let mut padded = vec![0; before];
        padded.extend_from_slice(value);
        let first = (before * 8).div_ceil(6);
        let end = padded.len() * 8 / 6;
        let grow = Grow { left: before != 0, right: !padded.len().is_multiple_of(3) };
        let encoded = STANDARD.encode(&padded).into_bytes();
        let standard = &encoded[first..end];
        // Where nothing follows the value, the last character is its own too.
        let alone = encoded.iter().position(|&b| b == b'=').unwrap_or(encoded.len());
        self.folded.add(&encoded[first..alone]);
        self.add(standard.to_vec(), grow);
        self.add(URL_SAFE.encode(&padded).into_bytes()[first..end].to_vec(), grow);
    }

    fn add(&mut self, pattern: Vec<u8>, grow: Grow) {
        // Lines hold no newline, so such a pattern would only make the search larger.
        if pattern.len() < SECRET_MIN_BYTES || pattern.contains(&b'\n') {
            return;
        }
        let known = self.found.entry(pattern).or_default();
        known.left |= grow.left;
        known.right |= grow.right;
    }

    fn build(mut self, refused: Vec<usize>) -> Masker {
        let longest = self.found.keys().map(Vec::len).max().unwrap_or(0);
        let (patterns, grow): (Vec<_>, Vec<_>) = self.found.into_iter().unzip();
        let finder = if patterns.is_empty() {
            Finder::Nothing
        } else {
            // Not the fastest kind but a compact one: fifty running steps with twenty secrets each hold one of these.
            AhoCorasick::builder()
                .kind(Some(AhoCorasickKind::ContiguousNFA))
                .match_kind(MatchKind::Standard)
                .build(&patterns)
                .map_or(Finder::Everything, Finder::Some)
        };
        self.folded.seal();
        Masker { finder, grow, folded: self.folded, longest, refused }
    }
}

fn percent(value: &[u8], keep: &[u8], upper: bool, plus: bool) -> Vec<u8> {
    let digits: &[u8; 16] = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    let mut out = Vec::with_capacity(value.len() * 3);
    for &b in value {
        if b.is_ascii_alphanumeric() || keep.contains(&b) {
            out.push(b);
        } else if plus && b == b' ' {
            out.push(b'+');
        } else {
            out.extend([b'%', digits[usize::from(b >> 4)], digits[usize::from(b & 15)]]);
        }
    }
    out
}

/// How the usual JSON writers differ.
#[derive(Clone, Copy)]
struct JsonEscapes {
    /// Everything outside ASCII as `\uXXXX`.
    ascii: bool,
    /// `<`, `>`, `&` too.
    html: bool,
    /// `/` as `\/`.
    slash: bool,
    /// Upper-case hex digits.
    upper: bool,
}

impl JsonEscapes {
    const PLAIN: JsonEscapes = JsonEscapes { ascii: false, html: false, slash: false, upper: false };
    const ALL: [JsonEscapes; 6] = [
        Self::PLAIN,
        JsonEscapes { ascii: true, ..Self::PLAIN },
        JsonEscapes { ascii: true, upper: true, ..Self::PLAIN },
        JsonEscapes { html: true, ..Self::PLAIN },
        JsonEscapes { slash: true, ..Self::PLAIN },
        JsonEscapes { ascii: true, slash: true, ..Self::PLAIN },
    ];

    fn apply(self, text: &str) -> Vec<u8> {
        let mut out = String::with_capacity(text.len() * 2);
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '/' if self.slash => out.push_str("\\/"),
                c if c < ' ' || (self.html && matches!(c, '<' | '>' | '&')) || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&if self.upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") });
                    }
                }
                c => out.push(c),
            }
        }
        out.into_bytes()
    }
}

/// Finds pieces of folded base64 and hex at the ends of a line, by the eight characters there.
#[derive(Default)]
struct Folded {
    forms: Vec<Box<[u8]>>,
    /// Eight characters of a form, which form, and where; sorted.
    windows: Vec<(u64, u32, u32)>,
}

impl Folded {
    fn add(&mut self, form: &[u8]) {
        let Ok(id) = u32::try_from(self.forms.len()) else { return };
        for (offset, window) in form.windows(FOLD_CHARS).enumerate() {
            if let Some(key) = key(window) {
                self.windows.push((key, id, offset as u32));
            }
        }
        self.forms.push(form.into());
    }

    fn seal(&mut self) {
        self.windows.sort_unstable();
        self.windows.dedup();
        self.windows.shrink_to_fit();
    }

    fn at_start(&self, text: &[u8]) -> Option<Run> {
        let start = text.iter().take_while(|b| is_wrapping(**b)).count();
        let window = text.get(start..start + FOLD_CHARS)?;
        let end = self.places(window).map(|(form, offset)| {
            let same = text[start..].iter().zip(&form[offset..]).take_while(|(a, b)| canonical(**a) == Some(**b));
            start + same.count()
        });
        let end = end.max()?;
        Some((start, end + text[end..].iter().take(2).take_while(|&&b| b == b'=').count()))
    }

    fn at_end(&self, text: &[u8]) -> Option<Run> {
        let end = text.len() - text.iter().rev().take_while(|b| is_wrapping(**b) || **b == b'=').count();
        let window = text.get(end.checked_sub(FOLD_CHARS)?..end)?;
        let start = self.places(window).map(|(form, offset)| {
            let form = form[..offset + FOLD_CHARS].iter().rev();
            let same = text[..end].iter().rev().zip(form).take_while(|(a, b)| canonical(**a) == Some(**b));
            end - same.count()
        });
        Some((start.min()?, end))
    }

    fn places(&self, window: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
        let key = key(window);
        let first = key.map_or(self.windows.len(), |key| self.windows.partition_point(|w| w.0 < key));
        self.windows[first..]
            .iter()
            .take_while(move |w| Some(w.0) == key)
            .take(FOLD_PLACES_TRIED)
            .map(|&(_, form, offset)| (&*self.forms[form as usize], offset as usize))
    }
}

/// Eight base64 characters as a number; most line ends have other bytes among them and cost nothing more.
fn key(window: &[u8]) -> Option<u64> {
    let mut key = 0;
    for &b in window {
        key = key << 8 | u64::from(canonical(b)?);
    }
    Some(key)
}

/// What stands around folded text: indentation, quotes, the end of a quoted line.
fn is_wrapping(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'\\' | b',')
}

#[cfg(test)]
pub(super) mod tests;
