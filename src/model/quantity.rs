//! Durations (`90s`, `15m`, `2h`, `7d`) and sizes (`512MiB`) as people write them in files and flags.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time written as a number with a unit: `250ms`, `90s`, `15m`, `2h`, `7d`. Whole numbers only, at most 10 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

/// A number of bytes written with a binary unit: `512MiB`, `64KiB`, `2GiB`, or plain bytes `1000B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Why a duration or size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is not {what}; write {example}")]
pub struct BadQuantity {
    shown: String,
    what: &'static str,
    example: &'static str,
}

/// Ten years: more is a slip of the hand, and keeps arithmetic on deadlines far from overflow.
const SPAN_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

impl FromStr for Span {
    type Err = BadQuantity;
    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity { shown: shown(text), what: "a duration", example: "`90s`, `15m`, `2h` or `7d`" };
        let (number, unit) = split_unit(text.trim());
        let number: u64 = number.parse().map_err(|_| bad())?;
        let millis_per_unit: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let span = number.checked_mul(millis_per_unit).map(Duration::from_millis).ok_or_else(bad)?;
        if span > SPAN_MAX { Err(bad()) } else { Ok(Span(span)) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis() as u64;
        for (per, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
            if millis >= per && millis.is_multiple_of(per) {
                return write!(f, "{}{unit}", millis / per);
            }
        }
        write!(f, "{millis}ms")
    }
}

impl FromStr for ByteSize {
    type Err = BadQuantity;
    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity { shown: shown(text), what: "a size", example: "`512MiB`, `64KiB` or `2GiB`" };
        let (number, unit) = split_unit(text.trim());
        let number: u64 = number.parse().map_err(|_| bad())?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(bad()),
        };
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A number of bytes as people read it, in the largest binary unit that leaves at least one: `3.4 GiB`.
/// [`ByteSize`] is exact.
pub fn rounded_bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (1..UNITS.len()).rev().find(|power| count >> (10 * power) > 0).unwrap_or(0);
    let value = count as f64 / (1_u64 << (10 * power)) as f64;
    match power {
        0 => format!("{count} B"),
        _ if value < 9.95 => format!("{value:.1} {}", UNITS[power]),
        _ => format!("{value:.0} {}", UNITS[power]),
    }
}

macro_rules! as_text {
    ($type:ident, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}
as_text!(Span, "^[0-9]+(ms|s|m|h|d)$");
as_text!(ByteSize, "^[0-9]+(B|KiB|MiB|GiB|TiB)$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in ["250ms", "90s", "15m", "2h", "7d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["512MiB", "64KiB", "2GiB", "1000B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for bad in ["", "15", "m", "-1s", "1.5h", "99999999999999999999d", "20000d", "5 minutes"] {
            let message = bad.parse::<Span>().unwrap_err().to_string();
            assert!(message.contains("`15m`"), "{message}");
        }
        for bad in ["", "12", "12MB", "99999999999999999TiB", "99999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rounded_bytes_have_few_digits_and_never_a_thousand_of_a_larger_unit() {
        let shown = |count| rounded_bytes(count);
        assert_eq!([0, 999, 1_024, 9 << 20, 3 << 30].map(shown), ["0 B", "999 B", "1.0 KiB", "9.0 MiB", "3.0 GiB"]);
        assert_eq!([10_189, 10_188, 600 << 30, u64::MAX].map(shown), ["10 KiB", "9.9 KiB", "600 GiB", "16777216 TiB"]);
    }
}
