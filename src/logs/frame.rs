//! One frame of a stored log: its bytes, both ways. `docs/decisions/0004-log-frames.md` has the table.
//!
//! A frame is a header, a body compressed by zstd, and a footer that gives the frame's length, so that a reader can
//! walk from the end. Called by `file` and `read`.

use super::lines::Carry;
use crate::model::log::{LogCursor, LogLine, Stream, StreamPosition};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use zstd::bulk::{Compressor, Decompressor};

const MAGIC: &[u8; 4] = b"MSLG";
const FOOTER_MAGIC: &[u8; 4] = b"GLSM";
const VERSION: u8 = 1;
pub(super) const HEADER_BYTES: usize = 144;
pub(super) const FOOTER_BYTES: usize = 8;
/// What a body may unpack to. The writer stays far below; a forged header cannot make a reader take more memory.
pub(super) const RAW_MAX_BYTES: usize = 4 * 1024 * 1024;
/// zstd adds less than a thousandth and a few bytes to what it cannot compress.
const BODY_MAX_BYTES: usize = RAW_MAX_BYTES + RAW_MAX_BYTES / 128;
/// The fastest level: logs compress about 8:1 at it already, and the budget is CPU.
const ZSTD_LEVEL: i32 = 1;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Lines, or a cursor alone.
    Lines = 0,
    /// The attempt is over.
    End = 1,
}

/// All of a frame but its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// The limit was reached; what came since is counted only.
    pub(super) limit_reached: bool,
    body_bytes: u32,
    raw_bytes: u32,
    body_crc: u32,
    /// Lines in this frame.
    pub(super) lines: u32,
    /// The number of its first line.
    pub(super) first_number: u64,
    pub(super) first_at: i64,
    /// Where reading goes on behind this frame.
    pub(super) cursor: LogCursor,
    /// What belongs to the cursor's positions, stdout first.
    pub(super) carries: [Carry; 2],
    /// Bytes of lines stored up to and with this frame.
    pub(super) stored_bytes: u64,
    /// Bytes of lines dropped since the limit.
    pub(super) dropped_bytes: u64,
}

impl Header {
    pub(super) fn new(kind: Kind) -> Self {
        Header {
            kind,
            limit_reached: false,
            body_bytes: 0,
            raw_bytes: 0,
            body_crc: 0,
            lines: 0,
            first_number: 1,
            first_at: 0,
            cursor: LogCursor::default(),
            carries: [Carry::default(); 2],
            stored_bytes: 0,
            dropped_bytes: 0,
        }
    }

    /// The whole frame's length.
    pub(super) fn frame_bytes(&self) -> u64 {
        (HEADER_BYTES + FOOTER_BYTES) as u64 + u64::from(self.body_bytes)
    }

    /// The number of the first line behind this frame.
    pub(super) fn next_number(&self) -> u64 {
        self.first_number + u64::from(self.lines)
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, self.kind as u8, u8::from(self.limit_reached), 0]);
        out.extend_from_slice(&[0; 4]);
        for number in [self.body_bytes, self.raw_bytes, self.body_crc, self.lines, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.first_number.to_le_bytes());
        out.extend_from_slice(&self.first_at.to_le_bytes());
        for position in [&self.cursor.stdout, &self.cursor.stderr] {
            out.extend_from_slice(&position.bytes.to_le_bytes());
            out.extend_from_slice(&position.second.to_le_bytes());
            out.extend_from_slice(&position.bytes_before_second.to_le_bytes());
        }
        for carry in &self.carries {
            out.extend_from_slice(&u32::from(carry.open).to_le_bytes());
            out.extend_from_slice(&carry.hidden.to_le_bytes());
            out.extend_from_slice(&carry.at_nanos.to_le_bytes());
        }
        out.extend_from_slice(&self.stored_bytes.to_le_bytes());
        out.extend_from_slice(&self.dropped_bytes.to_le_bytes());
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&out);
        let crc = header_crc(&bytes);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let mut fields = Fields(bytes);
        if fields.take()? != *MAGIC || fields.take()? != [VERSION] {
            return None;
        }
        let [kind, limit_reached, _] = fields.take()?;
        if fields.u32()? != header_crc(bytes) {
            return None;
        }
        let kind = match kind {
            0 => Kind::Lines,
            1 => Kind::End,
            _ => return None,
        };
        let (body_bytes, raw_bytes, body_crc, lines) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        fields.u32()?;
        let (first_number, first_at) = (fields.u64()?, fields.i64()?);
        let mut position =
            || Some(StreamPosition { bytes: fields.u64()?, second: fields.i64()?, bytes_before_second: fields.u64()? });
        let cursor = LogCursor { stdout: position()?, stderr: position()? };
        let mut carry = || Some(Carry { open: fields.u32()? != 0, hidden: fields.u32()?, at_nanos: fields.i64()? });
        let carries = [carry()?, carry()?];
        let header = Header {
            kind,
            limit_reached: limit_reached != 0,
            body_bytes,
            raw_bytes,
            body_crc,
            lines,
            first_number,
            first_at,
            cursor,
            carries,
            stored_bytes: fields.u64()?,
            dropped_bytes: fields.u64()?,
        };
        let sizes_fit = body_bytes as usize <= BODY_MAX_BYTES && raw_bytes as usize <= RAW_MAX_BYTES;
        (sizes_fit && first_number.checked_add(u64::from(lines)).is_some()).then_some(header)
    }
}

/// Over all of the header but the sum itself.
fn header_crc(bytes: &[u8; HEADER_BYTES]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..8]);
    crc.update(&bytes[12..]);
    crc.finalize()
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }
}

/// The lines of a frame while they are collected.
#[derive(Default)]
pub(super) struct Body {
    pub(super) raw: Vec<u8>,
    pub(super) lines: u32,
    pub(super) first_at: i64,
    last_at: i64,
}

/// A line's tag: two bits of stream, one of "goes on with the piece before it".
const CONTINUES: u8 = 4;

impl Body {
    pub(super) fn add(&mut self, stream: Stream, at_nanos: i64, continues: bool, text: &[u8]) {
        if self.lines == 0 {
            (self.first_at, self.last_at) = (at_nanos, at_nanos);
        }
        let stream = match stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
            Stream::System => 2,
        };
        self.raw.push(stream | if continues { CONTINUES } else { 0 });
        // Times of the two streams go forth and back, so differences have a sign: small either way with zigzag.
        let later = at_nanos.wrapping_sub(self.last_at);
        put_number(&mut self.raw, ((later << 1) ^ (later >> 63)) as u64);
        put_number(&mut self.raw, text.len() as u64);
        self.raw.extend_from_slice(text);
        self.last_at = at_nanos;
        self.lines += 1;
    }

    pub(super) fn clear(&mut self) {
        // A step that was loud once shall not keep a quarter of a MiB for the rest of its life.
        let used = self.raw.len();
        self.raw.clear();
        if used < self.raw.capacity() / 16 {
            self.raw.shrink_to(used);
        }
        self.lines = 0;
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// The frame as it is stored. The header's sizes and sums are filled in here.
pub(super) fn encode(mut header: Header, raw: &[u8]) -> io::Result<Vec<u8>> {
    // One context for all steps: each would cost about a MiB.
    static COMPRESSOR: Mutex<Option<Compressor<'static>>> = Mutex::new(None);
    let body_max = zstd::zstd_safe::compress_bound(raw.len());
    let mut frame = vec![0; HEADER_BYTES + body_max + FOOTER_BYTES];
    let mut body_bytes = 0;
    if !raw.is_empty() {
        let mut compressor = COMPRESSOR.lock().unwrap_or_else(PoisonError::into_inner);
        let compressor = match &mut *compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(ZSTD_LEVEL)?),
        };
        body_bytes = compressor.compress_to_buffer(raw, &mut frame[HEADER_BYTES..HEADER_BYTES + body_max])?;
    }
    let too_large = |_| io::Error::new(io::ErrorKind::InvalidData, "a log frame grew past 4 GiB");
    header.body_bytes = u32::try_from(body_bytes).map_err(too_large)?;
    header.raw_bytes = u32::try_from(raw.len()).map_err(too_large)?;
    header.body_crc = crc32fast::hash(&frame[HEADER_BYTES..HEADER_BYTES + body_bytes]);
    frame[..HEADER_BYTES].copy_from_slice(&header.encode());
    frame.truncate(HEADER_BYTES + body_bytes);
    let frame_bytes = u32::try_from(header.frame_bytes()).map_err(too_large)?;
    frame.extend_from_slice(&frame_bytes.to_le_bytes());
    frame.extend_from_slice(FOOTER_MAGIC);
    Ok(frame)
}

/// The header at that place, if a header is there and all of its frame is within `file_bytes`.
pub(super) fn header_at(file: &File, offset: u64, file_bytes: u64) -> io::Result<Option<Header>> {
    if offset.saturating_add((HEADER_BYTES + FOOTER_BYTES) as u64) > file_bytes {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    if !read_whole(file, &mut bytes, offset)? {
        return Ok(None);
    }
    Ok(Header::decode(&bytes).filter(|header| offset + header.frame_bytes() <= file_bytes))
}

/// The frame's stored body, if it and the footer are as they were written.
pub(super) fn body_at(file: &File, offset: u64, header: &Header) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; header.body_bytes as usize + FOOTER_BYTES];
    if !read_whole(file, &mut bytes, offset + HEADER_BYTES as u64)? {
        return Ok(None);
    }
    let (body, footer) = bytes.split_at(header.body_bytes as usize);
    let sound = footer_length(footer) == Some(header.frame_bytes()) && crc32fast::hash(body) == header.body_crc;
    bytes.truncate(header.body_bytes as usize);
    Ok(sound.then_some(bytes))
}

/// Where the frame that ends at `end` begins, and its header.
pub(super) fn frame_before(file: &File, end: u64, file_bytes: u64) -> io::Result<Option<(u64, Header)>> {
    let mut footer = [0; FOOTER_BYTES];
    let Some(footer_at) = end.checked_sub(FOOTER_BYTES as u64) else { return Ok(None) };
    if !read_whole(file, &mut footer, footer_at)? {
        return Ok(None);
    }
    let Some(start) = footer_length(&footer).and_then(|length| end.checked_sub(length)) else { return Ok(None) };
    let header = header_at(file, start, file_bytes)?;
    Ok(header.filter(|header| start + header.frame_bytes() == end).map(|header| (start, header)))
}

fn footer_length(footer: &[u8]) -> Option<u64> {
    let (length, magic) = footer.split_first_chunk()?;
    (magic == FOOTER_MAGIC).then(|| u64::from(u32::from_le_bytes(*length)))
}

/// False when the file ends before: it may have been cut back between the question for its length and this.
fn read_whole(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lines in a body; `None` when it is not what a writer writes.
pub(super) fn lines_in(header: &Header, body: &[u8], decompressor: &mut Decompressor<'static>) -> Option<Vec<LogLine>> {
    if header.lines == 0 {
        return Some(Vec::new());
    }
    let raw = decompressor.decompress(body, header.raw_bytes as usize).ok()?;
    let mut rest = &raw[..];
    // A line takes at least three bytes, so a forged count cannot reserve more than the body allows.
    let mut lines = Vec::with_capacity((header.lines as usize).min(raw.len() / 3));
    let mut at_nanos = header.first_at;
    for number in header.first_number..header.next_number() {
        let (&tag, after) = rest.split_first()?;
        rest = after;
        let later = take_number(&mut rest)?;
        at_nanos = at_nanos.wrapping_add((later >> 1) as i64 ^ -((later & 1) as i64));
        let length = usize::try_from(take_number(&mut rest)?).ok()?;
        let (text, after) = rest.split_at_checked(length)?;
        rest = after;
        let stream = match tag & 3 {
            0 => Stream::Stdout,
            1 => Stream::Stderr,
            2 => Stream::System,
            _ => return None,
        };
        lines.push(LogLine { number, at_nanos, stream, continues: tag & CONTINUES != 0, bytes: text.to_vec() });
    }
    rest.is_empty().then_some(lines)
}
