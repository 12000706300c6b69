//! Where a log ends: its last whole record, found by reading records as a server does.
//!
//! In: the bytes of the last segments of a log. Out: [`Tail`]. Called before a server is started, so that the server can be
//! told to reach exactly that record: one that cannot then refuses to open, whatever made its log end early.
//!
//! Source of the form: PostgreSQL's `xlog_internal.h`, `xlogrecord.h` and `xlogreader.c`; unchanged from 13 to 18.

use crate::model::{Lsn, SegmentSize, SystemId, Timeline};

/// A page of the log has a short header, the first one of a segment a long one.
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
/// Flags of a page.
const CONTINUES: u16 = 0x0001;
const LONG: u16 = 0x0002;
/// Records begin with their length, and are at least this long.
const RECORD_HEADER: usize = 24;
/// No record is longer: `XLogRecordMaxSize` since 16, and what a reader could allocate before.
const RECORD_MAX: u32 = 1 << 30;
/// `RM_XLOG_ID` and its `XLOG_SWITCH`: what follows in the segment is nothing.
const RMGR_XLOG: u8 = 0;
const SWITCH: u8 = 0x40;

/// How a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Where its last whole record begins; `None` when none begins in what was read.
    pub last: Option<Lsn>,
    /// Where that record ends.
    pub end: Lsn,
}

/// Why a segment is not what it is called, or a log does not read. `Display` fits after "failed to read SEGMENT: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLog {
    /// It does not begin as a segment does.
    #[error("it does not begin with the header of a WAL segment")]
    NoHeader,
    /// It is of another cluster.
    #[error("it was written by cluster {found}, this is a backup of {expected}")]
    System {
        /// Whose it is.
        found: SystemId,
        /// Whose it should be.
        expected: SystemId,
    },
    /// Its segments or pages have another length.
    #[error("it says that {what} have {found} bytes, those of this cluster have {expected}")]
    Size {
        /// Segments or pages.
        what: &'static str,
        /// What it says.
        found: u64,
        /// What it should say.
        expected: u64,
    },
    /// It belongs elsewhere in the log.
    #[error("it was written for {found}, not for {expected}")]
    Place {
        /// Where it says it belongs.
        found: Lsn,
        /// Where it should.
        expected: Lsn,
    },
    /// It is of a timeline that comes after the one it is named after.
    #[error("it was written on timeline {found}, which is newer than {expected}")]
    Timeline {
        /// What it says.
        found: Timeline,
        /// What its name says.
        expected: Timeline,
    },
    /// A record that is wholly there is not what was written.
    #[error("the record at {0} is damaged, though its bytes are those that the server sent")]
    Record(Lsn),
    /// A page that is wholly there has no header.
    #[error("the page at {0} has no header of a page")]
    Page(Lsn),
}

/// What a segment must say of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Its cluster.
    pub system: SystemId,
    /// How long segments are.
    pub segment_size: SegmentSize,
    /// How long pages of the log are, where known. Servers do not report it; nearly all are built with 8 KiB.
    pub page_size: Option<u32>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Checks the header that each segment begins with; `head` is at least its first 40 bytes. Gives the length of its pages.
///
/// # Errors
/// When it is not the segment that begins at `start` on `timeline`, or one of its ancestors.
pub fn check_header(head: &[u8], start: Lsn, timeline: Timeline, expected: Expected) -> Result<u32, BadLog> {
    let read = || {
        let (magic, info, of) = (u16_at(head, 0)?, u16_at(head, 2)?, u32_at(head, 4)?);
        let (place, system, segment, page) =
            (u64_at(head, 8)?, u64_at(head, 24)?, u32_at(head, 32)?, u32_at(head, 36)?);
        // Every version's magic is 0xD1xx; which one is the server's own business.
        (magic >> 8 == 0xD1 && info & LONG != 0).then_some((of, place, system, segment, page))
    };
    let (of, place, system, segment, page) = read().ok_or(BadLog::NoHeader)?;
    if SystemId(system) != expected.system {
        return Err(BadLog::System { found: SystemId(system), expected: expected.system });
    }
    if u64::from(segment) != expected.segment_size.bytes() {
        let (found, expected) = (u64::from(segment), expected.segment_size.bytes());
        return Err(BadLog::Size { what: "segments", found, expected });
    }
    let wanted = expected.page_size.unwrap_or(page);
    if page != wanted || !page.is_power_of_two() || !(1 << 10..=1 << 16).contains(&page) {
        return Err(BadLog::Size { what: "pages of the log", found: page.into(), expected: wanted.into() });
    }
    if Lsn(place) != start {
        return Err(BadLog::Place { found: Lsn(place), expected: start });
    }
    // A timeline begins with a copy of its parent's segment, whose pages name the parent.
    if of > timeline.0 {
        return Err(BadLog::Timeline { found: Timeline(of), expected: timeline });
    }
    Ok(page)
}

/// The last whole record of a log that begins with whole segments at `start` and ends at `start + log.len()`.
///
/// # Errors
/// When a record or page before the end is not what a server writes.
pub fn tail(log: &[u8], start: Lsn, size: SegmentSize, page_size: u32) -> Result<Tail, BadLog> {
    let reader = Reader { log, start, size, page: page_size as usize };
    let mut found = Tail { last: None, end: start };
    let Some(mut at) = reader.first_record()? else { return Ok(found) };
    let mut record = Vec::new();
    while let Some((begins, end)) = reader.record(at, &mut record)? {
        found = Tail { last: Some(begins), end: Lsn(start.0 + end as u64) };
        let switched = record[17] == RMGR_XLOG && record[16] & 0xF0 == SWITCH;
        at = match switched {
            true => {
                let end = Lsn(start.0 + end as u64).segment_end(size);
                found.end = end;
                (end.0 - start.0) as usize
            }
            false => end.next_multiple_of(8),
        };
    }
    Ok(found)
}

struct Reader<'a> {
    log: &'a [u8],
    start: Lsn,
    size: SegmentSize,
    page: usize,
}

impl Reader<'_> {
    /// The flags and the rest of a continued record at a page's start, and the header's length; `None` beyond the end.
    fn page_header(&self, at: usize) -> Result<Option<(u16, u32, usize)>, BadLog> {
        let place = self.start.0 + at as u64;
        let length = if place.is_multiple_of(self.size.bytes()) { LONG_HEADER } else { SHORT_HEADER };
        let Some(header) = self.log.get(at..at + length) else { return Ok(None) };
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (magic, info) = (u16_at(header, 0).unwrap_or(0), u16_at(header, 2).unwrap_or(0));
        if magic >> 8 != 0xD1 || u64_at(header, 8) != Some(place) {
            return Err(BadLog::Page(Lsn(place)));
        }
        Ok(Some((info, u32_at(header, 16).unwrap_or(0), length)))
    }

    /// Where the first record begins that does so after the start: one that came from before is passed over.
    fn first_record(&self) -> Result<Option<usize>, BadLog> {
        let mut page = 0;
        loop {
            let Some((info, rest, header)) = self.page_header(page)? else { return Ok(None) };
            let rest = if info & CONTINUES != 0 { rest as usize } else { 0 };
            if rest <= self.page - header {
                let at = page + header + rest.next_multiple_of(8);
                return Ok(Some(at));
            }
            page += self.page;
        }
    }

    /// Reads the record at `at`; gives where it begins and ends, or `None` when the log ends before it does.
    fn record(&self, mut at: usize, record: &mut Vec<u8>) -> Result<Option<(Lsn, usize)>, BadLog> {
        record.clear();
        if at.is_multiple_of(self.page) {
            let Some((_, _, header)) = self.page_header(at)? else { return Ok(None) };
            at += header;
        }
        let begins = Lsn(self.start.0 + at as u64);
        // Records are aligned to 8 bytes, so the length is never split.
        let Some(length) = u32_at(self.log, at) else { return Ok(None) };
        if length == 0 && self.log[at..].iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !(RECORD_HEADER as u32..=RECORD_MAX).contains(&length) {
            return Err(BadLog::Record(begins));
        }
        let mut left = length as usize;
        loop {
            let here = left.min(self.page - at % self.page);
            let Some(part) = self.log.get(at..at + here) else { return Ok(None) };
            record.extend_from_slice(part);
            (left, at) = (left - here, at + here);
            if left == 0 {
                break;
            }
            let Some((info, rest, header)) = self.page_header(at)? else { return Ok(None) };
            if info & CONTINUES == 0 {
                // The server crashed in the middle of this record and began anew here: what was is no record.
                return self.record(at, record);
            }
            if rest as usize != left {
                return Err(BadLog::Record(begins));
            }
            at += header;
        }
        let sum = crc32c(crc32c(!0, &record[RECORD_HEADER..]), &record[..RECORD_HEADER - 4]) ^ !0;
        if u32_at(record, RECORD_HEADER - 4) != Some(sum) {
            return Err(BadLog::Record(begins));
        }
        Ok(Some((begins, at)))
    }
}

/// CRC-32C, which the log is summed with, by table: a few MiB are read so, once in a restore.
fn crc32c(mut sum: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82F6_3B78 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    for byte in bytes {
        sum = TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Lsn = Lsn(16 << 20);
    const PAGE: usize = 8192;

    /// A log as a server writes it, record by record.
    struct Writer {
        log: Vec<u8>,
    }

    impl Writer {
        fn new() -> Writer {
            Writer { log: Vec::new() }
        }

        fn page(&mut self, rest: usize) {
            let at = START.0 + self.log.len() as u64;
            let long = at.is_multiple_of(16 << 20);
            let info = if long { LONG } else { 0 } | if rest > 0 { CONTINUES } else { 0 };
            self.log.extend(0xD110_u16.to_le_bytes());
            self.log.extend(info.to_le_bytes());
            self.log.extend(1_u32.to_le_bytes());
            self.log.extend(at.to_le_bytes());
            self.log.extend((rest as u32).to_le_bytes());
            self.log.extend([0; 4]);
            if long {
                self.log.extend(7_u64.to_le_bytes());
                self.log.extend((16_u32 << 20).to_le_bytes());
                self.log.extend((PAGE as u32).to_le_bytes());
            }
        }

        fn record(&mut self, kind: (u8, u8), content: &[u8]) -> Lsn {
            self.log.resize(self.log.len().next_multiple_of(8), 0);
            if self.log.len().is_multiple_of(PAGE) {
                self.page(0);
            }
            let begins = Lsn(START.0 + self.log.len() as u64);
            let mut record = ((RECORD_HEADER + content.len()) as u32).to_le_bytes().to_vec();
            record.extend([0; 12]);
            record.extend([kind.1, kind.0, 0, 0]);
            let sum = crc32c(crc32c(!0, content), &record) ^ !0;
            record.extend(sum.to_le_bytes());
            record.extend(content);
            let mut rest = &record[..];
            while !rest.is_empty() {
                if self.log.len().is_multiple_of(PAGE) {
                    self.page(rest.len());
                }
                let here = rest.len().min(PAGE - self.log.len() % PAGE);
                self.log.extend(&rest[..here]);
                rest = &rest[here..];
            }
            begins
        }
    }

    fn find(log: &[u8]) -> Result<Tail, BadLog> {
        tail(log, START, SegmentSize::USUAL, PAGE as u32)
    }

    #[test]
    fn the_sum_is_the_known_one() {
        assert_eq!(crc32c(!0, b"123456789") ^ !0, 0xE306_9283);
    }

    #[test]
    fn the_last_whole_record_is_found_wherever_the_log_is_cut() {
        let mut writer = Writer::new();
        let mut begins = Vec::new();
        for length in [0, 100, 7_000, 3, 20_000, 9, 40] {
            let at = writer.record((10, 0), &vec![7; length]);
            begins.push((at, Lsn(START.0 + writer.log.len() as u64)));
        }
        for cut in (40..writer.log.len()).step_by(97).chain([writer.log.len()]) {
            let end = Lsn(START.0 + cut as u64);
            let whole = begins.iter().rev().find(|(_, ends)| *ends <= end);
            let found = find(&writer.log[..cut]).unwrap();
            assert_eq!(found.last, whole.map(|(at, _)| *at), "cut at {cut}");
            // Zeros behind, as a padded segment has them, change nothing.
            let mut padded = writer.log[..cut].to_vec();
            padded.resize(cut + 30_000, 0);
            match (find(&padded), found.last) {
                (Ok(again), last) => assert_eq!(again.last, last, "cut at {cut}"),
                // A record or a page's header cut in its middle is completed with zeros: it does not fit.
                (Err(BadLog::Record(at) | BadLog::Page(at)), _) => {
                    assert!(at > found.last.unwrap_or(START), "cut at {cut}");
                }
                (Err(other), _) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn a_switch_fills_its_segment() {
        let mut writer = Writer::new();
        let switch = writer.record((RMGR_XLOG, SWITCH), &[]);
        writer.log.resize(16 << 20, 0);
        assert_eq!(find(&writer.log).unwrap(), Tail { last: Some(switch), end: Lsn(32 << 20) });
        let next = writer.record((10, 0), b"on the other side");
        assert_eq!(find(&writer.log).unwrap().last, Some(next));
    }

    #[test]
    fn a_damaged_record_is_no_end() {
        let mut writer = Writer::new();
        writer.record((10, 0), &[1; 50]);
        let second = writer.record((10, 0), &[2; 50]);
        writer.record((10, 0), &[3; 50]);
        let at = (second.0 - START.0) as usize + 30;
        writer.log[at] ^= 1;
        assert_eq!(find(&writer.log), Err(BadLog::Record(second)));
    }

    #[test]
    fn a_segment_says_whose_it_is() {
        let mut writer = Writer::new();
        writer.record((10, 0), b"x");
        let expected = Expected { system: SystemId(7), segment_size: SegmentSize::USUAL, page_size: None };
        let check = |log: &[u8], start, timeline, expected| check_header(log, start, Timeline(timeline), expected);
        assert_eq!(check(&writer.log, START, 1, expected), Ok(8192));
        assert_eq!(check(&writer.log, START, 2, expected), Ok(8192), "a copy of the parent's");
        assert!(matches!(
            check(&writer.log, START, 1, Expected { system: SystemId(8), ..expected }),
            Err(BadLog::System { .. })
        ));
        let small = SegmentSize::new(1 << 20).unwrap();
        assert!(matches!(
            check(&writer.log, START, 1, Expected { segment_size: small, ..expected }),
            Err(BadLog::Size { .. })
        ));
        assert!(matches!(check(&writer.log, Lsn(32 << 20), 1, expected), Err(BadLog::Place { .. })));
        assert!(matches!(check(&writer.log, START, 0, expected), Err(BadLog::Timeline { .. })));
        assert_eq!(check(&[0; 40], START, 1, expected), Err(BadLog::NoHeader));
        assert_eq!(check(&writer.log[..39], START, 1, expected), Err(BadLog::NoHeader));
    }
}
