//! Places in the write-ahead log of a PostgreSQL cluster: LSNs, timelines, segments, and the cluster they belong to.
//!
//! Source of the forms: PostgreSQL's `xlogdefs.h`, `xlog_internal.h` and the chapter "WAL Internals" of its manual.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log, `X/Y` in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// A timeline, from 1. A cluster begins a new one at each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

/// What tells one cluster from every other: the number that `initdb` draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

/// The length of a WAL segment in bytes: a power of two from 1 MiB to 1 GiB, fixed by `initdb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SegmentSize(u32);

/// The name of a WAL segment: 24 hexadecimal digits, timeline first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline it was written on.
    pub timeline: Timeline,
    high: u32,
    low: u32,
}

/// Why a text is none of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is not {what}")]
pub struct BadPlace {
    shown: String,
    what: &'static str,
}

fn bad(text: &str, what: &'static str) -> BadPlace {
    BadPlace { shown: text.chars().take(40).flat_map(char::escape_debug).collect(), what }
}

/// Digits of a number in base 16, upper or lower case, nothing else.
fn hex(text: &str) -> Option<u32> {
    let digits = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl Lsn {
    /// The beginning of the segment that holds this byte.
    #[must_use]
    pub fn segment_start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0 & !(size.bytes() - 1))
    }

    /// The first border of a segment at or after this place.
    #[must_use]
    pub fn segment_end(self, size: SegmentSize) -> Lsn {
        Lsn(self.0.div_ceil(size.bytes()) * size.bytes())
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = BadPlace;
    fn from_str(text: &str) -> Result<Self, BadPlace> {
        let (high, low) = text.split_once('/').ok_or_else(|| bad(text, "an LSN such as `0/3000148`"))?;
        let both = hex(high).zip(hex(low)).ok_or_else(|| bad(text, "an LSN such as `0/3000148`"))?;
        Ok(Lsn(u64::from(both.0) << 32 | u64::from(both.1)))
    }
}

impl Timeline {
    /// The name of its history file, `00000002.history`.
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = BadPlace;
    fn from_str(text: &str) -> Result<Self, BadPlace> {
        text.parse().map(SystemId).map_err(|_| bad(text, "the system identifier of a cluster"))
    }
}

impl SegmentSize {
    /// 16 MiB, what `initdb` takes unless it is told otherwise.
    pub const USUAL: SegmentSize = SegmentSize(16 << 20);

    /// A size in bytes, if a server can have it.
    ///
    /// # Errors
    /// When it is no power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<SegmentSize, BadPlace> {
        match u32::try_from(bytes) {
            Ok(bytes) if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) => Ok(SegmentSize(bytes)),
            _ => Err(bad(&bytes.to_string(), "the size of a WAL segment: a power of two from 1 MiB to 1 GiB")),
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// The segment that holds this byte, on that timeline.
    pub fn name(self, timeline: Timeline, at: Lsn) -> SegmentName {
        let number = at.0 / self.bytes();
        let per_high = (1_u64 << 32) / self.bytes();
        // An LSN has 64 bits, so both quotients fit into 32.
        SegmentName { timeline, high: (number / per_high) as u32, low: (number % per_high) as u32 }
    }
}

impl<'de> Deserialize<'de> for SegmentSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SegmentSize::new(u64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl SegmentName {
    /// Where it begins. `None` when no server with segments of that size gives this name.
    pub fn start(self, size: SegmentSize) -> Option<Lsn> {
        let low = u64::from(self.low) * size.bytes();
        (low < 1 << 32).then(|| Lsn(u64::from(self.high) << 32 | low))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.high, self.low)
    }
}

impl FromStr for SegmentName {
    type Err = BadPlace;
    fn from_str(text: &str) -> Result<Self, BadPlace> {
        let wrong = || bad(text, "the name of a WAL segment");
        let parts = (text.len() == 24 && text.is_ascii()).then(|| text.split_at(8)).ok_or_else(wrong)?;
        let (high, low) = parts.1.split_at(8);
        let numbers = hex(parts.0).zip(hex(high)).zip(hex(low)).ok_or_else(wrong)?;
        let ((timeline, high), low) = numbers;
        Ok(SegmentName { timeline: Timeline(timeline), high, low })
    }
}

/// LSNs, system identifiers and names of segments are texts in every document: 64-bit numbers do not survive JSON readers.
macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Lsn, SystemId, SegmentName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_servers_give() {
        // What pg_walfile_name says for these places, on servers with segments of 16 MiB, 1 MiB and 64 MiB.
        for (size, at, name) in [
            (16 << 20, "0/3000148", "000000010000000000000003"),
            (16 << 20, "2A/FF000000", "000000010000002A000000FF"),
            (1 << 20, "0/3000148", "000000010000000000000030"),
            (64 << 20, "1/8000000", "000000010000000100000002"),
        ] {
            let size = SegmentSize::new(size).unwrap();
            let at: Lsn = at.parse().unwrap();
            let segment = size.name(Timeline(1), at);
            assert_eq!(segment.to_string(), name);
            assert_eq!(name.parse::<SegmentName>().unwrap(), segment);
            assert_eq!(segment.start(size), Some(at.segment_start(size)));
        }
        // A name of small segments, which a server with large ones never gives.
        assert_eq!("000000010000000000000FFF".parse::<SegmentName>().unwrap().start(SegmentSize::USUAL), None);
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in ["", "/", "0/", "1/123456789", "g/1", "0/+1", "0 /1", "0/1/2"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
        for text in
            ["", "00000001000000000000000G", "0000000100000000000000", "00000002.history", "00000001000000000000003é"]
        {
            assert!(text.parse::<SegmentName>().is_err(), "{text}");
        }
        for size in [0, 1, 512 << 10, 3 << 20, 2 << 30, u64::MAX] {
            assert!(SegmentSize::new(size).is_err(), "{size}");
        }
    }

    #[test]
    fn borders_are_where_segments_meet() {
        let size = SegmentSize::USUAL;
        let border = Lsn(32 << 20);
        assert_eq!((border.segment_start(size), border.segment_end(size)), (border, border));
        assert_eq!(Lsn(border.0 + 1).segment_start(size), border);
        assert_eq!(Lsn(border.0 + 1).segment_end(size), Lsn(48 << 20));
    }
}
