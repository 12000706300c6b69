//! When a schedule is due: five cron fields and a time zone, `0 3 * * * Europe/Paris`.
//!
//! The rule around clock changes: a fixed time (`30 2 * * *`) that the spring change skips is due once, at the first
//! instant after the gap; one that the autumn change repeats is due once, the first time. What repeats within the hour
//! (`*/15 * * * *`) follows the real time that passes: nothing extra in spring, every quarter of the doubled hour in
//! autumn. Day of month and day of week are joined by *or* when both are restricted, and 0 and 7 are both Sunday, as in
//! the cron of every Unix.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use std::str::FromStr;

/// A schedule as written, and understood.
#[derive(Debug, Clone)]
pub struct Schedule {
    written: String,
    cron: Cron,
    zone: TimeZone,
}

/// Why a schedule was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSchedule {
    /// Not five fields, or five and a zone.
    #[error(
        "a schedule has five fields (minute, hour, day of month, month, day of week) and a time zone; this one has {0}"
    )]
    Fields(usize),
    /// The fields do not read.
    #[error("`{fields}` is no cron expression: {detail}")]
    Cron {
        /// The five fields.
        fields: String,
        /// What is wrong with them.
        detail: String,
    },
    /// No such zone.
    #[error("`{0}` is not a time zone; write one such as `Europe/Paris` or `UTC`")]
    Zone(String),
    /// 31 February.
    #[error("`{0}` never comes")]
    Never(String),
}

/// The longest schedule that is looked at; a list of every minute of the hour has 170 bytes.
const WRITTEN_MAX_BYTES: usize = 300;

impl Schedule {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The first due time after `after`; `None` when there is none in the years the calendar knows.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let from = after.to_zoned(self.zone.clone());
        let next: Zoned = self.cron.find_next_occurrence(&from, false).ok()?;
        // Guards a loop that calls this again and again.
        (next.timestamp() > after).then(|| next.timestamp())
    }

    /// The last due time in `(after, until]`: what was missed while nobody looked, once, however often it came.
    pub fn previous_between(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let from = until.to_zoned(self.zone.clone());
        let last: Zoned = self.cron.find_previous_occurrence(&from, true).ok()?;
        (last.timestamp() > after && last.timestamp() <= until).then(|| last.timestamp())
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}
impl Eq for Schedule {}

impl FromStr for Schedule {
    type Err = BadSchedule;

    fn from_str(text: &str) -> Result<Self, BadSchedule> {
        let bounded: String = text.chars().take(WRITTEN_MAX_BYTES + 1).collect();
        let parts: Vec<&str> = bounded.split_whitespace().collect();
        if !(5..=6).contains(&parts.len()) || bounded.len() > WRITTEN_MAX_BYTES {
            return Err(BadSchedule::Fields(text.split_whitespace().take(1_000).count()));
        }
        let fields = parts[..5].join(" ");
        let cron_error = |detail: String| BadSchedule::Cron { fields: fields.clone(), detail };
        let known = |c: char| c.is_ascii_alphanumeric() || "*/,-#".contains(c);
        if let Some(odd) = fields.chars().find(|c| !known(*c) && *c != ' ') {
            return Err(cron_error(format!("`{}` has no meaning here", odd.escape_debug())));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(&fields).map_err(|e| cron_error(e.to_string()))?;
        let zone_name = parts.get(5).copied().unwrap_or("UTC");
        let zone = TimeZone::get(zone_name).map_err(|_| BadSchedule::Zone(zone_name.to_owned()))?;
        let schedule = Schedule { written: parts.join(" "), cron, zone };
        // Any fixed point does: what comes at all comes within the 28 years after which weekdays and leap years repeat.
        let probe = Timestamp::from_second(1_700_000_000).unwrap_or_default();
        if schedule.next_after(probe).is_none() {
            return Err(BadSchedule::Never(fields));
        }
        Ok(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(spec: &str, from: &str, until: &str) -> Vec<String> {
        let schedule: Schedule = spec.parse().unwrap();
        let (mut at, until): (Timestamp, Timestamp) = (from.parse().unwrap(), until.parse().unwrap());
        let mut found = Vec::new();
        while let Some(next) = schedule.next_after(at).filter(|next| *next <= until) {
            found.push(next.to_zoned(schedule.zone.clone()).strftime("%d %H:%M %z").to_string());
            at = next;
        }
        found
    }

    #[test]
    fn a_time_in_the_spring_gap_comes_once_right_after_it() {
        // Paris, 29 March 2026: 02:00 becomes 03:00.
        let days = due("30 2 * * * Europe/Paris", "2026-03-28T00:00:00Z", "2026-03-30T12:00:00Z");
        assert_eq!(days, ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]);
    }

    #[test]
    fn a_time_in_the_autumn_double_hour_comes_once() {
        // Paris, 25 October 2026: 03:00 becomes 02:00.
        let days = due("30 2 * * * Europe/Paris", "2026-10-24T00:00:00Z", "2026-10-26T12:00:00Z");
        assert_eq!(days, ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]);
    }

    #[test]
    fn what_repeats_within_the_hour_follows_real_time() {
        let spring = due("*/30 * * * * Europe/Paris", "2026-03-29T00:10:00Z", "2026-03-29T01:40:00Z");
        assert_eq!(spring, ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200"]);
        let autumn = due("*/30 * * * * Europe/Paris", "2026-10-24T23:40:00Z", "2026-10-25T01:40:00Z");
        assert_eq!(autumn, ["25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100"]);
    }

    #[test]
    fn both_zero_and_seven_are_sunday_and_days_are_joined_by_or() {
        // 2026-11-01 is a Sunday.
        for spec in ["0 0 * * 0", "0 0 * * 7", "0 0 * * SUN"] {
            assert_eq!(due(spec, "2026-11-01T12:00:00Z", "2026-11-09T00:00:00Z"), ["08 00:00 +0000"], "{spec}");
        }
        let either = due("0 0 13 * 5", "2026-11-01T00:00:00Z", "2026-11-20T23:00:00Z");
        assert_eq!(either, ["06 00:00 +0000", "13 00:00 +0000", "20 00:00 +0000"]);
    }

    #[test]
    fn what_was_missed_is_found_once() {
        let schedule: Schedule = "0 * * * *".parse().unwrap();
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        let found = schedule.previous_between(at("2026-01-01T00:00:00Z"), at("2026-01-03T10:30:00Z"));
        assert_eq!(found, Some(at("2026-01-03T10:00:00Z")));
        assert_eq!(schedule.previous_between(at("2026-01-03T10:00:00Z"), at("2026-01-03T10:59:00Z")), None);
        // The end belongs to the range, the beginning does not.
        let found = schedule.previous_between(at("2026-01-03T10:00:00Z"), at("2026-01-03T11:00:00Z"));
        assert_eq!(found, Some(at("2026-01-03T11:00:00Z")));
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        for (bad, words) in [
            ("", "this one has 0"),
            ("0 3 * *", "this one has 4"),
            ("0 0 3 * * * Europe/Paris", "this one has 7"),
            ("61 3 * * *", "no cron expression"),
            ("0 3 * * * Europe/Pariss", "not a time zone"),
            ("0 0 31 2 *", "never comes"),
            ("@daily", "this one has 1"),
            ("0 3 * * ? UTC", "has no meaning"),
        ] {
            let message = bad.parse::<Schedule>().unwrap_err().to_string();
            assert!(message.contains(words), "{bad}: {message}");
        }
        let huge = "*,".repeat(1_000_000);
        assert!(huge.parse::<Schedule>().unwrap_err().to_string().len() < 500);
    }
}
