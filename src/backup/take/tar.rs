//! Reads a tar stream as it goes by: where members begin and end, what they are called, how long they are.
//!
//! Bytes enter in pieces of any size, from the beginning of an archive or from any chunk of it; events leave. Callers are
//! `chunks`, which cuts an archive, and `unpack`, which writes it. Source of the forms: POSIX `pax` (ustar and its extended
//! headers) and the chapter "Basic Tar Format" of GNU tar's manual. What is not understood is an error that names the
//! member: an archive that is only half understood cannot be restored.

use crate::backup::catalog::manifest::Continues;

/// Everything in an archive is padded to blocks of this many bytes.
pub(super) const BLOCK: usize = 512;

/// Extended headers of one member, all together. Names are at most a few kilobytes long on any system; a megabyte stays far
/// below a chunk, so that headers and their member never part.
const EXTENDED_LIMIT: u64 = 1 << 20;

/// Zeros at the end. Two blocks are asked for; `tar` programs pad to 10 KiB, some to their tape's record.
const TRAILER_LIMIT: u64 = 64 << 10;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    SymbolicLink,
    HardLink,
}

/// A member's header, with what its extended headers say put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name, without empty and `.` parts; never absolute, never with `..`. Empty for the archive's own folder.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Where a link leads, as it is written.
    pub(super) link: Vec<u8>,
    /// How much content follows.
    pub(super) size: u64,
    /// Its permission bits.
    pub(super) mode: u32,
    /// Where its first header, extended ones included, begins in the archive.
    pub(super) offset: u64,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A member begins; its content follows when `size` is not 0.
    Member(Member),
    /// Content of the member that began last: its place there, and the bytes.
    Content { at: u64, bytes: &'a [u8] },
}

/// Between which bytes the reader stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stand {
    /// At the border of two members, or behind some of the headers, or of the zeros at the end, that begin at `since`.
    Header { since: u64 },
    /// Before the rest of a member's content.
    Inside(Continues),
    /// In the zeros that fill a member's last block.
    Padding,
    /// Behind at least two blocks of zeros, that begin at `since`.
    Over { since: u64 },
}

/// Why an archive cannot be read. `Display` names the member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header whose sum does not fit, or that says what none may say.
    #[error("the header at byte {offset}{} is damaged: {what}", named(.path))]
    Damaged {
        /// Where it begins in the archive.
        offset: u64,
        /// The member, as far as it is known.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A kind of member or of extended header that Mainstay does not read.
    #[error("the member{} at byte {offset} cannot be restored: {what}", named(.path))]
    Unknown {
        /// Where it begins in the archive.
        offset: u64,
        /// The member, as far as it is known.
        path: String,
        /// What it is.
        what: String,
    },
    /// The archive ends before it is over.
    #[error("the archive ends at byte {offset}, in the middle of {inside}")]
    Truncated {
        /// Its length.
        offset: u64,
        /// What was not over.
        inside: String,
    },
}

fn named(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" `{path}`") }
}

/// A path for people.
pub(super) fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

#[derive(Debug)]
enum State {
    /// Filling a header block.
    Header { block: Box<[u8; BLOCK]>, filled: usize },
    /// Filling the content of an extended header of this kind; `left` counts the padding too.
    Extended { kind: u8, size: usize, bytes: Vec<u8>, left: u64 },
    /// In a member's content.
    Content { size: u64, at: u64 },
    /// In the padding after it.
    Padding { left: u64 },
    /// In the zeros at the end; counts bytes.
    Zeros { seen: u64 },
}

/// What extended headers said of the member to come.
#[derive(Debug, Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Follows a tar stream. See the head of this file.
#[derive(Debug)]
pub(super) struct Reader {
    offset: u64,
    /// Where the headers that are being read, or the zeros at the end, began.
    since: u64,
    state: State,
    overrides: Overrides,
    /// The member whose content is being read.
    path: Vec<u8>,
}

fn header() -> State {
    State::Header { block: Box::new([0; BLOCK]), filled: 0 }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

impl Reader {
    /// Stands at `offset` of an archive: at a member's header, or inside the member that goes over.
    ///
    /// # Errors
    /// When no archive can be cut there.
    pub(super) fn at(offset: u64, continues: Option<&Continues>) -> Result<Reader, TarError> {
        let mut reader =
            Reader { offset, since: offset, state: header(), overrides: Overrides::default(), path: Vec::new() };
        if let Some(continues) = continues {
            let written = hex::decode(&continues.path_hex).unwrap_or_default();
            reader.path = plain_path(&written)
                .filter(|path| !path.is_empty() && *path == written)
                .ok_or_else(|| reader.unknown("the name of the member that goes over is none", &written))?;
            let size = continues.at.checked_add(continues.left).filter(|_| continues.left > 0);
            let size = size.ok_or_else(|| reader.unknown("its length is none", &written))?;
            reader.state = State::Content { size, at: continues.at };
        }
        if !offset.is_multiple_of(BLOCK as u64) {
            return Err(reader.unknown("a chunk of an archive begins at a whole block", &[]));
        }
        Ok(reader)
    }

    /// How many bytes of the archive lie behind it.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Where it stands.
    pub(super) fn stand(&self) -> Stand {
        match self.state {
            State::Header { .. } | State::Extended { .. } => Stand::Header { since: self.since },
            State::Zeros { seen } if seen < 2 * BLOCK as u64 => Stand::Header { since: self.since },
            State::Zeros { .. } => Stand::Over { since: self.since },
            State::Padding { .. } => Stand::Padding,
            State::Content { size, at } => {
                Stand::Inside(Continues { path_hex: hex::encode(&self.path), at, left: size - at })
            }
        }
    }

    /// Whether the archive may end here.
    ///
    /// # Errors
    /// When it may not.
    pub(super) fn finish(&self) -> Result<(), TarError> {
        let inside = match &self.state {
            State::Zeros { seen } if *seen >= 2 * BLOCK as u64 && seen.is_multiple_of(BLOCK as u64) => return Ok(()),
            State::Zeros { .. } => "its closing zeros".to_owned(),
            State::Header { filled: 0, .. } => "its members: the closing zeros are missing".to_owned(),
            State::Header { .. } | State::Extended { .. } => "a header".to_owned(),
            State::Content { .. } | State::Padding { .. } => format!("`{}`", shown(&self.path)),
        };
        Err(TarError::Truncated { offset: self.offset, inside })
    }

    /// Reads on. `None` when the input is used up.
    ///
    /// # Errors
    /// When the archive is damaged, or is not understood.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, TarError> {
        while !input.is_empty() {
            match &mut self.state {
                State::Header { block, filled } => {
                    let bytes = split(input, (BLOCK - *filled) as u64);
                    block[*filled..*filled + bytes.len()].copy_from_slice(bytes);
                    *filled += bytes.len();
                    self.offset += bytes.len() as u64;
                    if *filled == BLOCK
                        && let Some(member) = self.block()?
                    {
                        return Ok(Some(Event::Member(member)));
                    }
                }
                State::Extended { bytes, left, .. } => {
                    let more = split(input, *left);
                    bytes.extend_from_slice(more);
                    *left -= more.len() as u64;
                    self.offset += more.len() as u64;
                    if *left == 0 {
                        self.extended()?;
                    }
                }
                State::Content { size, at } => {
                    let bytes = split(input, *size - *at);
                    let place = *at;
                    *at += bytes.len() as u64;
                    self.offset += bytes.len() as u64;
                    if *at == *size {
                        let left = padding(*size);
                        self.after_content(left);
                    }
                    return Ok(Some(Event::Content { at: place, bytes }));
                }
                State::Padding { left } => {
                    // POSIX leaves open what stands here; some writers do not clear their buffers.
                    let bytes = split(input, *left);
                    let left = *left - bytes.len() as u64;
                    self.offset += bytes.len() as u64;
                    self.after_content(left);
                }
                State::Zeros { seen } => {
                    let bytes = split(input, u64::MAX);
                    *seen += bytes.len() as u64;
                    let (seen, offset) = (*seen, self.offset);
                    self.offset += bytes.len() as u64;
                    if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
                        let offset = offset + place as u64;
                        let what = "something follows the zeros that end the archive".to_owned();
                        return Err(TarError::Damaged { offset, path: String::new(), what });
                    }
                    if seen > TRAILER_LIMIT {
                        return Err(self.damaged("more than 64 KiB of zeros end the archive", &[]));
                    }
                }
            }
        }
        Ok(None)
    }

    fn after_content(&mut self, left: u64) {
        if left == 0 {
            (self.state, self.since) = (header(), self.offset);
        } else {
            self.state = State::Padding { left };
        }
    }

    /// Takes a whole header block.
    fn block(&mut self) -> Result<Option<Member>, TarError> {
        let State::Header { block, .. } = std::mem::replace(&mut self.state, header()) else { return Ok(None) };
        let block: &[u8; BLOCK] = &block;
        if block.iter().all(|byte| *byte == 0) {
            if self.offset - self.since > BLOCK as u64 {
                return Err(self.damaged("an extended header is followed by no member", &[]));
            }
            self.state = State::Zeros { seen: BLOCK as u64 };
            return Ok(None);
        }
        let short = until_nul(&block[..100]).to_vec();
        let sum: u64 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
        if number(&block[148..156]) != Some(sum) {
            return Err(self.damaged("its sum does not fit", &short));
        }
        let size = number(&block[124..136]).ok_or_else(|| self.damaged("its length is no number", &short))?;
        match block[156] {
            kind @ (b'x' | b'g' | b'L' | b'K') => {
                let whole = size
                    .checked_add(padding(size))
                    .filter(|whole| (self.offset - self.since).saturating_add(*whole) <= EXTENDED_LIMIT);
                let left = whole.ok_or_else(|| self.unknown("its extended headers are too long", &short))?;
                // Empty ones have no content to wait for.
                self.state =
                    State::Extended { kind, size: size as usize, bytes: Vec::with_capacity(left as usize), left };
                if left == 0 {
                    self.extended()?;
                }
                Ok(None)
            }
            kind => self.member(block, kind, size, &short).map(Some),
        }
    }

    fn member(&mut self, block: &[u8; BLOCK], kind: u8, size: u64, short: &[u8]) -> Result<Member, TarError> {
        let overrides = std::mem::take(&mut self.overrides);
        let written = overrides.path.unwrap_or_else(|| {
            let prefix = until_nul(&block[345..500]);
            // GNU's own form keeps times where ustar keeps the front of long names.
            let ustar = &block[257..263] == b"ustar\0";
            if ustar && !prefix.is_empty() { [prefix, b"/", short].concat() } else { short.to_vec() }
        });
        let path = plain_path(&written);
        let path = path.ok_or_else(|| self.unknown("its name leads out of the archive, or is empty", &written))?;
        // Before POSIX a folder was a file whose name ends with a slash.
        let kind = match kind {
            b'0' | 0 if written.ends_with(b"/") => Kind::Folder,
            b'0' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'5' => Kind::Folder,
            b'S' => return Err(self.unknown("it is a sparse file", &written)),
            other => {
                return Err(self.unknown(&format!("it is of type `{}`", other.escape_ascii()), &written));
            }
        };
        if path.is_empty() && kind != Kind::Folder {
            return Err(self.unknown("its name leads out of the archive, or is empty", &written));
        }
        let size = overrides.size.unwrap_or(size);
        if size > 0 && kind != Kind::File {
            return Err(self.unknown("it is no file and has content", &written));
        }
        if i64::try_from(size).is_err() {
            return Err(self.damaged("no file is so long", &written));
        }
        let link = overrides.link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec());
        let linked = matches!(kind, Kind::HardLink | Kind::SymbolicLink);
        if linked && (link.is_empty() || link.contains(&0)) {
            return Err(self.damaged("it is a link that leads nowhere", &written));
        }
        let mode = number(&block[100..108]).ok_or_else(|| self.damaged("its mode is no number", &written))?;
        let offset = self.since;
        if size == 0 {
            self.after_content(0);
        } else {
            self.state = State::Content { size, at: 0 };
            self.path.clone_from(&path);
        }
        let link = if linked { link } else { Vec::new() };
        Ok(Member { path, kind, link, size, mode: (mode & 0o7777) as u32, offset })
    }

    /// Takes a whole extended header.
    fn extended(&mut self) -> Result<(), TarError> {
        let State::Extended { kind, size, bytes, .. } = std::mem::replace(&mut self.state, header()) else {
            return Ok(());
        };
        let content = &bytes[..size];
        match kind {
            b'L' => self.overrides.path = Some(until_nul(content).to_vec()),
            b'K' => self.overrides.link = Some(until_nul(content).to_vec()),
            _ => self.records(content, kind == b'g')?,
        }
        Ok(())
    }

    /// The records of a POSIX extended header: `LENGTH KEY=VALUE\n`, the length counting itself.
    fn records(&mut self, mut content: &[u8], global: bool) -> Result<(), TarError> {
        while !content.is_empty() {
            let broken = || self.damaged("its extended header does not read", &[]);
            let space = content.iter().position(|b| *b == b' ').ok_or_else(broken)?;
            let length = decimal(&content[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(broken)?;
            let (record, rest) = content.split_at_checked(length).filter(|_| length > space).ok_or_else(broken)?;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(broken)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                // What changes nothing that is restored.
                b"comment" | b"mtime" | b"atime" | b"ctime" | b"uname" | b"gname" | b"uid" | b"gid" => {}
                // A chunk is read without those before it, so nothing may hold for all members that follow.
                _ if global => {
                    return Err(self.unknown(&format!("an extended header gives `{}` to all", shown(key)), &[]));
                }
                b"hdrcharset" => {}
                b"path" => self.overrides.path = Some(value.to_vec()),
                b"linkpath" => self.overrides.link = Some(value.to_vec()),
                b"size" => self.overrides.size = Some(decimal(value).ok_or_else(broken)?),
                _ => {
                    let path = self.overrides.path.clone().unwrap_or_default();
                    return Err(self.unknown(&format!("its extended header says `{}`", shown(key)), &path));
                }
            }
            content = rest;
        }
        Ok(())
    }

    fn damaged(&self, what: &str, path: &[u8]) -> TarError {
        TarError::Damaged { offset: self.since, path: shown(path), what: what.to_owned() }
    }

    fn unknown(&self, what: &str, path: &[u8]) -> TarError {
        TarError::Unknown { offset: self.since, path: shown(path), what: what.to_owned() }
    }
}

/// Takes at most `most` bytes off the front.
fn split<'a>(input: &mut &'a [u8], most: u64) -> &'a [u8] {
    let (front, rest) = input.split_at(usize::try_from(most).unwrap_or(usize::MAX).min(input.len()));
    *input = rest;
    front
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The parts of a path that name something. `None` when it is absolute, leads upwards, holds a zero byte, or is empty.
pub(super) fn plain_path(path: &[u8]) -> Option<Vec<u8>> {
    if path.is_empty() || path.starts_with(b"/") || path.contains(&0) {
        return None;
    }
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<&[u8]> = parts.collect();
    (!parts.contains(&b"..".as_slice())).then(|| parts.join(&b'/'))
}

/// A number of a header: octal digits, or base 256 when the first bit is set. `None` for a negative one, or none at all.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (first, rest) = field.split_first()?;
        // The first byte is 0x80 for what is not negative, with room for more bits that no length needs.
        return (*first == 0x80)
            .then(|| rest.iter().try_fold(0_u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte))))?;
    }
    let text = field.split(|byte| *byte == 0).next()?;
    let text = text.trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    text.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}
