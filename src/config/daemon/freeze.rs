//! When nothing is deployed: every week, or once.
//!
//! Text such as `Fri 16:00 Europe/Paris` comes in from `environment`; `deploy` asks [`frozen_until`] before it begins.
//! Around clock changes a freeze is rather longer than shorter: what a change skips or repeats belongs to it.

use super::environment::{Freeze, FreezeTime};
use crate::config::finding::shown;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Which end of a freeze a time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    From,
    To,
}

/// How a time is written.
pub(super) const FORMS: &str =
    "write `Fri 16:00 Europe/Paris` for every week, or `2026-12-23 18:00 Europe/Paris` for once; UTC without a zone";

const DAYS: [(&str, Weekday); 7] = [
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];

/// Freezes that follow each other without a gap are one. So many in a row make months: whoever writes that means never.
const ROW_MAX: usize = 200;

/// Reads a time as written.
pub(super) fn read(text: &str, end: End) -> Result<FreezeTime, String> {
    let bad = || format!("`{}` is not a time of a freeze", shown(text));
    let words: Vec<&str> = text.split_whitespace().take(4).collect();
    let (day, time, zone) = match words.as_slice() {
        [day, time] => (*day, *time, "UTC"),
        [day, time, zone] => (*day, *time, *zone),
        _ => return Err(bad()),
    };
    let zone = TimeZone::get(zone)
        .map_err(|_| format!("`{}` is not a time zone; write one such as `Europe/Paris` or `UTC`", shown(zone)))?;
    let time = time_of_day(time).ok_or_else(bad)?;
    if let Some(day) = weekday(day) {
        return Ok(FreezeTime::Weekly { day, time, zone });
    }
    let date: Date = day.parse().ok().filter(|_| day.len() == 10).ok_or_else(bad)?;
    let at = moment(date, time, &zone, end).ok_or_else(bad)?;
    Ok(FreezeTime::Once { at })
}

/// `Fri`, `friday`.
fn weekday(word: &str) -> Option<Weekday> {
    let word = word.to_ascii_lowercase();
    DAYS.into_iter().find(|(name, _)| word == *name || word == name[..3]).map(|(_, day)| day)
}

/// `16:00`.
fn time_of_day(word: &str) -> Option<Time> {
    let (hour, minute) = word.split_once(':')?;
    let number = |text: &str| {
        let plain = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse::<i8>().ok()).flatten()
    };
    Time::new(number(hour)?, number(minute).filter(|_| minute.len() == 2)?, 0, 0).ok()
}

/// The instant of a time of day there. Of two, and where a clock change skips it, the one that makes the freeze longer.
fn moment(date: Date, time: Time, zone: &TimeZone, end: End) -> Option<Timestamp> {
    let either = zone.to_ambiguous_timestamp(date.to_datetime(time));
    match end {
        End::From => either.earlier().ok(),
        End::To => either.later().ok(),
    }
}

impl Freeze {
    /// Whether it is one: both ends of a kind, and the second after the first.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match (&self.from, &self.to) {
            (FreezeTime::Weekly { .. }, FreezeTime::Weekly { .. }) if self.from == self.to => {
                Err("this freeze begins when it ends: nothing could ever be deployed")
            }
            (FreezeTime::Weekly { .. }, FreezeTime::Weekly { .. }) => Ok(()),
            (FreezeTime::Once { at: from }, FreezeTime::Once { at: to }) if from < to => Ok(()),
            (FreezeTime::Once { .. }, FreezeTime::Once { .. }) => Err("this freeze ends before it begins"),
            _ => Err("both ends of a freeze are of one kind: days of the week, or dates"),
        }
    }

    /// When the freeze ends that this moment is in; `None` when it is in none. The end itself is outside.
    pub fn until(&self, at: Timestamp) -> Option<Timestamp> {
        match (&self.from, &self.to) {
            (FreezeTime::Once { at: from }, FreezeTime::Once { at: to }) => (*from <= at && at < *to).then_some(*to),
            (FreezeTime::Weekly { day, time, zone }, FreezeTime::Weekly { .. }) => {
                let today = at.to_zoned(zone.clone()).date();
                // A freeze is shorter than a week. Tomorrow counts where midnight is skipped.
                let dates = (-1..=8_i64).filter_map(|back| today.checked_sub(Span::new().days(back)).ok());
                dates
                    .filter(|date| date.weekday() == *day)
                    .filter_map(|date| moment(date, *time, zone, End::From))
                    .filter(|start| *start <= at)
                    .filter_map(|start| self.to.first_after(start))
                    .filter(|end| at < *end)
                    .max()
            }
            _ => None,
        }
    }
}

impl FreezeTime {
    fn first_after(&self, start: Timestamp) -> Option<Timestamp> {
        match self {
            FreezeTime::Once { at } => (*at > start).then_some(*at),
            FreezeTime::Weekly { day, time, zone } => {
                let first = start.to_zoned(zone.clone()).date();
                (0..=8_i64)
                    .filter_map(|on| first.checked_add(Span::new().days(on)).ok())
                    .filter(|date| date.weekday() == *day)
                    .filter_map(|date| moment(date, *time, zone, End::To))
                    .find(|end| *end > start)
            }
        }
    }
}

/// When something may be deployed again; `None` when nothing is frozen at that moment.
pub fn frozen_until(freezes: &[Freeze], at: Timestamp) -> Option<Timestamp> {
    let mut until = None;
    for _ in 0..ROW_MAX {
        let now = until.unwrap_or(at);
        let Some(end) = freezes.iter().filter_map(|freeze| freeze.until(now)).max() else { break };
        until = Some(end);
    }
    until
}

/// Weekly freezes that leave no gap: whatever repeats every week has one within eight days of any moment.
pub(super) fn never_ends(freezes: &[Freeze]) -> bool {
    let weekly: Vec<Freeze> =
        freezes.iter().filter(|freeze| matches!(freeze.from, FreezeTime::Weekly { .. })).cloned().collect();
    let probe = Timestamp::from_second(1_700_000_000).unwrap_or_default();
    let past = probe + jiff::SignedDuration::from_hours(15 * 24);
    frozen_until(&weekly, probe).is_some_and(|until| until > past)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freeze(from: &str, to: &str) -> Freeze {
        let freeze = Freeze { from: read(from, End::From).unwrap(), to: read(to, End::To).unwrap() };
        freeze.check().unwrap();
        freeze
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// (from, to, moment, until)
    #[test]
    fn inside_and_outside() {
        let weekend = ("Fri 16:00 Europe/Paris", "Mon 08:00 Europe/Paris");
        let night = ("Sat 22:00 Europe/Paris", "Sun 02:30 Europe/Paris");
        let after = ("Sun 02:30 Europe/Paris", "Sun 12:00 Europe/Paris");
        let nearly_a_week = ("Wed 10:00", "Wed 09:00");
        let table = [
            // 2026-11-06 is a Friday, and Paris is one hour ahead.
            (weekend, "2026-11-06T14:59:59Z", None),
            (weekend, "2026-11-06T15:00:00Z", Some("2026-11-09T07:00:00Z")),
            (weekend, "2026-11-08T12:00:00Z", Some("2026-11-09T07:00:00Z")),
            (weekend, "2026-11-09T06:59:59Z", Some("2026-11-09T07:00:00Z")),
            (weekend, "2026-11-09T07:00:00Z", None),
            (weekend, "2026-11-11T12:00:00Z", None),
            // Spring, 29 March: it begins at +01 and ends at +02.
            (weekend, "2026-03-27T14:59:59Z", None),
            (weekend, "2026-03-27T15:00:00Z", Some("2026-03-30T06:00:00Z")),
            (weekend, "2026-03-30T06:00:00Z", None),
            // Autumn, 25 October: it begins at +02 and ends at +01.
            (weekend, "2026-10-23T13:59:59Z", None),
            (weekend, "2026-10-23T14:00:00Z", Some("2026-10-26T07:00:00Z")),
            (weekend, "2026-10-26T06:59:59Z", Some("2026-10-26T07:00:00Z")),
            (weekend, "2026-10-26T07:00:00Z", None),
            // 02:30 is skipped in spring: the end comes after the gap, the beginning before it.
            (night, "2026-03-29T01:29:59Z", Some("2026-03-29T01:30:00Z")),
            (night, "2026-03-29T01:30:00Z", None),
            (after, "2026-03-29T00:29:59Z", None),
            (after, "2026-03-29T00:30:00Z", Some("2026-03-29T10:00:00Z")),
            // 02:30 comes twice in autumn: the end is the second, the beginning the first.
            (night, "2026-10-25T01:29:59Z", Some("2026-10-25T01:30:00Z")),
            (night, "2026-10-25T01:30:00Z", None),
            (after, "2026-10-25T00:29:59Z", None),
            (after, "2026-10-25T00:30:00Z", Some("2026-10-25T11:00:00Z")),
            // All but an hour; 2026-11-11 is a Wednesday.
            (nearly_a_week, "2026-11-11T08:59:59Z", Some("2026-11-11T09:00:00Z")),
            (nearly_a_week, "2026-11-11T09:00:00Z", None),
            (nearly_a_week, "2026-11-11T09:59:59Z", None),
            (nearly_a_week, "2026-11-11T10:00:00Z", Some("2026-11-18T09:00:00Z")),
            // Two zones, 2026-11-08 is a Sunday.
            (("Sun 22:00 UTC", "Mon 08:00 Asia/Tokyo"), "2026-11-08T22:30:00Z", Some("2026-11-08T23:00:00Z")),
            // Once, over a clock change.
            (
                ("2026-10-24 18:00 Europe/Paris", "2026-10-26 06:00 Europe/Paris"),
                "2026-10-25T12:00:00Z",
                Some("2026-10-26T05:00:00Z"),
            ),
            (("2026-12-23 18:00 Europe/Paris", "2027-01-02 08:00 Europe/Paris"), "2026-12-23T16:59:59Z", None),
            (
                ("2026-12-23 18:00 Europe/Paris", "2027-01-02 08:00 Europe/Paris"),
                "2026-12-23T17:00:00Z",
                Some("2027-01-02T07:00:00Z"),
            ),
            (("2026-12-23 18:00", "2027-01-02 08:00"), "2027-01-02T08:00:00Z", None),
        ];
        for ((from, to), moment, until) in table {
            assert_eq!(freeze(from, to).until(at(moment)), until.map(at), "{from} to {to} at {moment}");
        }
    }

    #[test]
    fn freezes_that_touch_are_one() {
        let list = [
            freeze("Fri 16:00", "Mon 08:00"),
            freeze("2026-11-09 07:00", "2026-11-13 17:00"),
            freeze("2026-11-20 00:00", "2026-11-20 01:00"),
        ];
        let until = |moment| frozen_until(&list, at(moment)).map(|t| t.to_string());
        // The second begins within the first and ends within the next weekend's.
        assert_eq!(until("2026-11-07T00:00:00Z").as_deref(), Some("2026-11-16T08:00:00Z"));
        assert_eq!(until("2026-11-18T00:00:00Z"), None);
        assert_eq!(until("2026-11-20T00:30:00Z").as_deref(), Some("2026-11-20T01:00:00Z"));
        assert_eq!(frozen_until(&[], at("2026-11-20T00:30:00Z")), None);
        assert!(!never_ends(&list));
        assert!(never_ends(&[freeze("Mon 00:00", "Thu 12:00"), freeze("Thu 11:00", "Mon 00:00")]));
        assert!(!never_ends(&[freeze("Mon 00:00", "Thu 12:00"), freeze("Thu 12:01", "Mon 00:00")]));
    }

    #[test]
    fn every_minute_of_a_week_agrees_with_a_count_by_hand() {
        // What a freeze in UTC is, said in minutes of the week.
        let weekly = freeze("Fri 16:00 UTC", "Mon 08:00 UTC");
        let start = at("2026-10-19T00:00:00Z"); // A Monday.
        for minute in 0..7 * 1440 {
            let now = start + jiff::SignedDuration::from_mins(minute);
            let inside = !(8 * 60..4 * 1440 + 16 * 60).contains(&minute);
            assert_eq!(weekly.until(now).is_some(), inside, "{now}");
        }
    }

    #[test]
    fn times_are_read_in_all_their_forms_and_no_others() {
        for good in ["Fri 16:00", "friday 16:00 UTC", "SUN 00:00 Europe/Paris", "2026-12-23 8:00", " Mon  08:00 UTC "] {
            read(good, End::From).unwrap_or_else(|why| panic!("{good}: {why}"));
        }
        for (bad, words) in [
            ("", "is not a time"),
            ("Fri", "is not a time"),
            ("16:00 Fri", "is not a time"),
            ("Fri 25:00", "is not a time"),
            ("Fri 24:00", "is not a time"),
            ("Fri 8", "is not a time"),
            ("Fri 8:0", "is not a time"),
            ("Fri 08:00 Europe/Pariss", "is not a time zone"),
            ("Fri 08:00 UTC extra", "is not a time"),
            ("Fr 08:00", "is not a time"),
            ("2026-02-30 08:00", "is not a time"),
            ("20261223 08:00", "is not a time"),
            ("2026-12-23T08:00 08:00", "is not a time"),
        ] {
            let said = read(bad, End::To).unwrap_err();
            assert!(said.contains(words), "{bad}: {said}");
        }
        assert!(read(&"x".repeat(1_000_000), End::To).unwrap_err().len() < 200);
    }

    #[test]
    fn what_is_no_freeze_is_refused() {
        for (from, to, words) in [
            ("Fri 16:00", "Fri 16:00", "begins when it ends"),
            ("Fri 16:00", "2026-12-24 16:00", "of one kind"),
            ("2026-12-24 16:00", "Fri 16:00", "of one kind"),
            ("2026-12-24 16:00", "2026-12-24 16:00", "ends before it begins"),
            ("2026-12-24 16:00", "2026-12-23 16:00", "ends before it begins"),
        ] {
            let freeze = Freeze { from: read(from, End::From).unwrap(), to: read(to, End::To).unwrap() };
            assert!(freeze.check().unwrap_err().contains(words), "{from} {to}");
        }
    }
}
