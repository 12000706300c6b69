//! What the daemon and the helper say to each other, both directions, in one file that both are compiled from.
//!
//! To a waiting step goes one line, the *word*: `W CRC32 BASE64`. To a holder goes a stream of frames. Either may be
//! cut off by a crash of the sender and begun again by its successor on the same pipe, so both can be found in the
//! middle of rubbish.

/// What a waiting step is told to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Order {
    /// The program and its arguments.
    pub(crate) argv: Vec<Vec<u8>>,
    /// Environment on top of what the container has.
    pub(crate) env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where it starts.
    pub(crate) cwd: Vec<u8>,
    /// The file that takes the step's outputs.
    pub(crate) output: Vec<u8>,
}

/// A word longer than this is no word of ours: environment and script together are bounded by what exec takes (2 MiB).
pub(crate) const WORD_MAX_BYTES: usize = 4 << 20;

/// The line that carries an order. It begins with a line's end, which finishes whatever a crashed sender began.
pub(crate) fn word_line(order: &Order) -> Vec<u8> {
    let mut raw = Vec::new();
    let put = |raw: &mut Vec<u8>, bytes: &[u8]| {
        raw.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        raw.extend_from_slice(bytes);
    };
    put(&mut raw, &order.cwd);
    put(&mut raw, &order.output);
    raw.extend_from_slice(&(order.argv.len() as u32).to_le_bytes());
    for argument in &order.argv {
        put(&mut raw, argument);
    }
    for (name, value) in &order.env {
        put(&mut raw, name);
        put(&mut raw, value);
    }
    format!("\nW {:08x} {}\n", crc32(&raw), base64(&raw)).into_bytes()
}

/// The order in a line, if the line is whole and unharmed.
pub(crate) fn parse_word(line: &[u8]) -> Option<Order> {
    let rest = line.strip_prefix(b"W ")?;
    let (crc, encoded) = rest.split_at_checked(8)?;
    let raw = unbase64(encoded.strip_prefix(b" ")?)?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    if crc != crc32(&raw) {
        return None;
    }
    let mut rest = raw.as_slice();
    let cwd = take(&mut rest)?.to_vec();
    let output = take(&mut rest)?.to_vec();
    let count = take_number(&mut rest)?;
    let mut argv = Vec::new();
    for _ in 0..count {
        argv.push(take(&mut rest)?.to_vec());
    }
    let mut env = Vec::new();
    while !rest.is_empty() {
        env.push((take(&mut rest)?.to_vec(), take(&mut rest)?.to_vec()));
    }
    Some(Order { argv, env, cwd, output })
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_number(rest)? as usize;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

/// The longest body of a frame: half of what a pipe holds by default, so that one frame never fills it alone.
pub(crate) const BODY_MAX_BYTES: usize = 32 << 10;
/// A frame begins with: two fixed letters, kind, one zero byte, length of the body, session, CRC-32 of those 16 bytes.
pub(crate) const HEADER_BYTES: usize = 20;

/// What a frame says. The numbers go over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A sender begins; whatever another one began is void.
    Open = 1,
    /// Remove the path, whatever it is.
    Remove = 2,
    /// Make the folder.
    Dir = 3,
    /// A file begins: one byte executable, eight bytes size, the path. [`Kind::Data`] follows until the size is reached.
    File = 4,
    /// The next bytes of the file.
    Data = 5,
    /// A link: two bytes length of the path, the path, the target.
    Link = 6,
    /// Everything belongs to user (four bytes) and group (four bytes).
    Chown = 7,
    /// Answer now: all was done, or the first thing that went wrong.
    Commit = 8,
    /// The answer: all was done.
    Done = 9,
    /// The answer: what went wrong, as text.
    Failed = 10,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        use Kind::{Chown, Commit, Data, Dir, Done, Failed, File, Link, Open, Remove};
        [Open, Remove, Dir, File, Data, Link, Chown, Commit, Done, Failed].into_iter().find(|k| *k as u8 == number)
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) length: usize,
    pub(crate) session: u64,
}

/// Appends a frame.
pub(crate) fn frame(out: &mut Vec<u8>, session: u64, kind: Kind, body: &[&[u8]]) {
    let length: usize = body.iter().map(|part| part.len()).sum();
    debug_assert!(length <= BODY_MAX_BYTES);
    let start = out.len();
    out.extend_from_slice(&[b'M', b'S', kind as u8, 0]);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&session.to_le_bytes());
    let crc = crc32(&out[start..start + 16]);
    out.extend_from_slice(&crc.to_le_bytes());
    for part in body {
        out.extend_from_slice(part);
    }
}

/// Reads the head of a frame; `None` when these bytes are not one.
pub(crate) fn header(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if bytes[..2] != *b"MS" || number(16) != crc32(&bytes[..16]) {
        return None;
    }
    let length = number(4) as usize;
    let session = u64::from(number(8)) | u64::from(number(12)) << 32;
    (length <= BODY_MAX_BYTES).then_some(Header { kind: Kind::of(bytes[2])?, length, session })
}

/// What a sender says first: enough nothing to complete a frame that another one left half said, then [`Kind::Open`].
pub(crate) fn opening(session: u64) -> Vec<u8> {
    let mut out = vec![0; BODY_MAX_BYTES + HEADER_BYTES];
    frame(&mut out, session, Kind::Open, &[]);
    out
}

/// Takes whole frames out of a stream of bytes, skipping what is none.
#[derive(Default)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    at: usize,
}

impl Frames {
    /// Takes in more bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Option<(Header, &[u8])> {
        loop {
            let head = self.buffer.get(self.at..self.at + HEADER_BYTES)?.first_chunk::<HEADER_BYTES>()?;
            let Some(header) = header(head) else {
                // Not the start of a frame: go to the next byte that may be one.
                let from = self.at + 1;
                self.at = self.buffer[from..].iter().position(|b| *b == b'M').map_or(self.buffer.len(), |n| from + n);
                continue;
            };
            let body = self.at + HEADER_BYTES;
            if self.buffer.len() < body + header.length {
                return None;
            }
            self.at = body + header.length;
            return Some((header, &self.buffer[body..body + header.length]));
        }
    }
}

const CRC: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut n = 0;
    while n < 256 {
        let mut c = n as u32;
        let mut bit = 0;
        while bit < 8 {
            c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
            bit += 1;
        }
        table[n] = c;
        n += 1;
    }
    table
};

/// The CRC-32 of zip and Ethernet.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| CRC[((crc ^ u32::from(*b)) & 0xff) as usize] ^ (crc >> 8))
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with the usual digits and padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let number = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            if n <= group.len() {
                out.push(char::from(DIGITS[(number >> (18 - 6 * n)) as usize & 63]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.chunks(4) {
        let mut number = 0;
        for n in 0..4 {
            let digit = match group.get(n) {
                None => 0,
                Some(b @ b'A'..=b'Z') => b - b'A',
                Some(b @ b'a'..=b'z') => b - b'a' + 26,
                Some(b @ b'0'..=b'9') => b - b'0' + 52,
                Some(b'+') => 62,
                Some(b'/') => 63,
                Some(_) => return None,
            };
            number = number << 6 | u32::from(digit);
        }
        out.extend_from_slice(&number.to_be_bytes()[1..group.len().max(1)]);
    }
    Some(out)
}
