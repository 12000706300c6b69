//! Takes the helper's marks out of a step's output.
//!
//! In come the chunks of one attempt in order; out go the same chunks without the marks, what was taken out (so that
//! cursors, which count the engine's bytes, stay right), and the marks. Called by `step` between `Runtime::logs` and
//! [`LogWriter`](super::file::LogWriter).
//!
//! The marks are `\x1emainstay:begin:NONCE:UNIX_NANOS\n`, the very first bytes of stdout, and
//! `\x1emainstay:end:NONCE:BASE64\n` on stdout once the command has ended, which may follow bytes without a newline and
//! arrives in pieces. The nonce is known to the helper alone, so that a command cannot write a mark by accident.
//!
//! A mark that a stored cursor has passed is not seen again. After a restart, an end that is still unknown when the
//! attempt is over is looked for from the start of the engine's log: [`find`].

use crate::model::log::{LogChunk, LogCursor, Stream};
use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use futures_util::{Stream as AsyncStream, StreamExt};
use std::collections::{BTreeMap, VecDeque};

/// A longer mark is text: the helper writes at most 64 KiB of outputs, which are 88 KiB of base64.
const MARK_MAX_BYTES: usize = 128 * 1024;
/// The most bytes of outputs that are read.
pub const OUTPUTS_MAX_BYTES: usize = 64 * 1024;
/// The most outputs of one step: far more than people write, and small enough to keep with the run.
pub const OUTPUTS_MAX_KEYS: usize = 256;
/// Complaints are for people; after this many the next is no help.
const COMPLAINTS_MAX: usize = 20;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the helper said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// The command begins.
    Begin {
        /// When, in nanoseconds since 1970, by the clock of the step's machine.
        at_nanos: i64,
    },
    /// The command has ended.
    End {
        /// What it had written to `$MAINSTAY_OUTPUT`; see [`outputs`].
        raw: Vec<u8>,
    },
}

/// A part of the output after the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// The command's own bytes: for `LogWriter::push`.
    Text(LogChunk),
    /// Bytes of a mark that was taken out: for `LogWriter::skip`.
    Skipped {
        /// The stream they were taken from.
        stream: Stream,
        /// Their time.
        at_nanos: i64,
        /// How many.
        bytes: u64,
    },
    /// A mark; comes before its `Skipped`, so that a caller who records it first never stores a cursor behind it.
    Mark(Mark),
}

/// Takes marks out of the chunks of one attempt.
pub struct MarkFilter {
    begin: Vec<u8>,
    end: Vec<u8>,
    /// Bytes of stdout seen so far, those held included.
    offset: u64,
    /// Chunks that may be the beginning of a mark, and their bytes in one piece.
    held: Vec<LogChunk>,
    bytes: Vec<u8>,
    /// That many of `bytes` fit a mark.
    checked: usize,
    at_start: bool,
}

enum Verdict {
    More,
    /// The bytes up to here are text.
    Text(usize),
    /// The bytes up to here are this mark.
    Found(usize, Mark),
}

impl MarkFilter {
    /// A filter for an attempt whose log is read from `from` on.
    pub fn new(nonce: &str, from: &LogCursor) -> Self {
        MarkFilter {
            begin: format!("\x1emainstay:begin:{nonce}:").into_bytes(),
            end: format!("\x1emainstay:end:{nonce}:").into_bytes(),
            offset: from.stdout.bytes,
            held: Vec::new(),
            bytes: Vec::new(),
            checked: 0,
            at_start: false,
        }
    }

    /// Takes the next chunk and adds what can be said to `out`.
    pub fn push(&mut self, chunk: LogChunk, out: &mut Vec<Passed>) {
        if chunk.stream != Stream::Stdout {
            out.push(Passed::Text(chunk));
            return;
        }
        if self.held.is_empty() && memchr::memchr(0x1e, &chunk.data).is_none() {
            self.offset += chunk.data.len() as u64;
            out.push(Passed::Text(chunk));
            return;
        }
        self.search(chunk, out);
    }

    /// The output is over: bytes held as the beginning of a mark were text.
    pub fn finish(&mut self, out: &mut Vec<Passed>) {
        out.extend(self.held.drain(..).map(Passed::Text));
        self.bytes.clear();
        self.checked = 0;
    }

    fn search(&mut self, chunk: LogChunk, out: &mut Vec<Passed>) {
        let mut todo = VecDeque::from([chunk]);
        while let Some(mut chunk) = todo.pop_front() {
            if self.held.is_empty() {
                let start = memchr::memchr(0x1e, &chunk.data).unwrap_or(chunk.data.len());
                if start > 0 {
                    let text = chunk.data.split_to(start);
                    self.offset += start as u64;
                    out.push(Passed::Text(LogChunk { data: text, ..chunk }));
                }
                if chunk.data.is_empty() {
                    continue;
                }
                self.at_start = self.offset == 0;
            }
            self.bytes.extend_from_slice(&chunk.data);
            self.offset += chunk.data.len() as u64;
            self.held.push(chunk);
            let (decided, mark) = match self.verdict() {
                Verdict::More => continue,
                Verdict::Text(decided) => (decided, None),
                Verdict::Found(decided, mark) => (decided, Some(mark)),
            };
            let is_mark = mark.is_some();
            out.extend(mark.map(Passed::Mark));
            let mut left = decided;
            let mut rest = Vec::new();
            for mut chunk in self.held.drain(..) {
                let taken = left.min(chunk.data.len());
                left -= taken;
                let data = chunk.data.split_to(taken);
                let (stream, at_nanos) = (chunk.stream, chunk.at_nanos);
                if taken > 0 && is_mark {
                    out.push(Passed::Skipped { stream, at_nanos, bytes: taken as u64 });
                } else if taken > 0 {
                    out.push(Passed::Text(LogChunk { stream, at_nanos, data }));
                }
                if !chunk.data.is_empty() {
                    rest.push(chunk);
                }
            }
            self.offset -= (self.bytes.len() - decided) as u64;
            self.bytes.clear();
            self.checked = 0;
            rest.into_iter().rev().for_each(|chunk| todo.push_front(chunk));
        }
    }

    fn verdict(&mut self) -> Verdict {
        let is_begin = self.at_start && fits(&self.begin, &self.bytes);
        let head = if is_begin { &self.begin } else { &self.end };
        if !fits(head, &self.bytes) {
            // No byte of a head but the first can begin another mark.
            let same = head.iter().zip(&self.bytes).take_while(|(a, b)| a == b).count();
            return Verdict::Text(same.max(1));
        }
        let from = self.checked.max(head.len());
        let Some(body) = self.bytes.get(from..) else { return Verdict::More };
        let is_body = |b: &u8| b.is_ascii_digit() || (!is_begin && (b.is_ascii_alphanumeric() || b"+/=".contains(b)));
        let good = from + body.iter().take_while(|b| is_body(b)).count();
        // i64 nanoseconds have at most 19 digits.
        let most = if is_begin { head.len() + 19 } else { MARK_MAX_BYTES };
        if good > most {
            return Verdict::Text(good);
        }
        self.checked = good;
        match self.bytes.get(good) {
            None => Verdict::More,
            Some(b'\n') => {
                let body = &self.bytes[head.len()..good];
                let mark = if is_begin {
                    std::str::from_utf8(body).ok().and_then(|s| s.parse().ok()).map(|at_nanos| Mark::Begin { at_nanos })
                } else {
                    BASE64.decode(body).ok().map(|raw| Mark::End { raw })
                };
                mark.map_or(Verdict::Text(good + 1), |mark| Verdict::Found(good + 1, mark))
            }
            Some(_) => Verdict::Text(good),
        }
    }
}

/// One is the beginning of the other.
fn fits(head: &[u8], bytes: &[u8]) -> bool {
    head.iter().zip(bytes).all(|(a, b)| a == b)
}

/// The marks of an attempt, looked for in the whole of its output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// When the command began, if it did.
    pub begin: Option<i64>,
    /// The outputs as written, if the command ended. Of several ends the last counts: the helper writes after the command.
    pub end: Option<Vec<u8>>,
}

impl Marks {
    /// Adds a mark.
    pub fn add(&mut self, mark: Mark) {
        match mark {
            Mark::Begin { at_nanos } => self.begin = Some(at_nanos),
            Mark::End { raw } => self.end = Some(raw),
        }
    }
}

/// Reads an attempt's output, which must be from the start and end by itself, for its marks alone.
///
/// # Errors
/// The first error of the output.
pub async fn find<E>(nonce: &str, output: impl AsyncStream<Item = Result<LogChunk, E>>) -> Result<Marks, E> {
    let mut output = std::pin::pin!(output);
    let mut filter = MarkFilter::new(nonce, &LogCursor::default());
    let (mut marks, mut passed) = (Marks::default(), Vec::new());
    while let Some(chunk) = output.next().await {
        filter.push(chunk?, &mut passed);
        for part in passed.drain(..) {
            if let Passed::Mark(mark) = part {
                marks.add(mark);
            }
        }
    }
    Ok(marks)
}

/// Reads the `KEY=value` lines a step wrote to `$MAINSTAY_OUTPUT`, and complains about what is none, without showing
/// values. Keys are `[A-Za-z_][A-Za-z0-9_-]*`; of a key written twice the last value counts.
pub fn outputs(raw: &[u8]) -> (BTreeMap<String, String>, Vec<String>) {
    let mut found = BTreeMap::new();
    let mut complaints = Vec::new();
    let mut taken = raw;
    if raw.len() > OUTPUTS_MAX_BYTES {
        let whole = memchr::memrchr(b'\n', &raw[..OUTPUTS_MAX_BYTES]).map_or(0, |end| end + 1);
        taken = &raw[..whole];
        complaints.push(format!("outputs are limited to 64 KiB; what was written after byte {whole} is ignored"));
    }
    for (index, line) in taken.split(|&b| b == b'\n').enumerate() {
        if complaints.len() >= COMPLAINTS_MAX {
            complaints.push("more lines like these follow".into());
            break;
        }
        let number = index + 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let Some(equals) = memchr::memchr(b'=', line) else {
            complaints.push(format!("output line {number} has no `=`"));
            continue;
        };
        let (key, value) = (&line[..equals], &line[equals + 1..]);
        if !is_key(key) {
            let shown = String::from_utf8_lossy(&key[..key.len().min(40)]).escape_debug().to_string();
            complaints.push(format!(
                "output line {number}: the key `{shown}` may hold only letters, digits, `_` and `-`, and begins with a letter or `_`"
            ));
            continue;
        }
        let key = String::from_utf8_lossy(key).into_owned();
        let Ok(value) = std::str::from_utf8(value) else {
            complaints.push(format!("output line {number}: the value of `{}` is not UTF-8", shorten(&key)));
            continue;
        };
        if found.len() >= OUTPUTS_MAX_KEYS && !found.contains_key(&key) {
            complaints.push(format!(
                "a step has at most {OUTPUTS_MAX_KEYS} outputs; those from line {number} on are ignored"
            ));
            break;
        }
        found.insert(key, value.to_owned());
    }
    (found, complaints)
}

fn is_key(key: &[u8]) -> bool {
    key.first().is_some_and(|&b| b.is_ascii_alphabetic() || b == b'_')
        && key.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// A checked key is ASCII, so it can be cut at any byte.
fn shorten(key: &str) -> &str {
    &key[..key.len().min(40)]
}

#[cfg(test)]
mod tests;
