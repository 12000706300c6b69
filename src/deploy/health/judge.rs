//! Answers in, a verdict out. No I/O and no clock of its own: the same answers give the same verdict at any time.
//!
//! First every rule has to hold within its own time after the release serves. From the moment on at which all do, the
//! release is healthy, and so many bad answers of one rule in a row make it bad. Time counts only as far as somebody
//! looked: a daemon that was away for an hour comes back to the place where it left.

use super::words;
use crate::config::daemon::environment::HealthRule;
use crate::model::deploy::Probe;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// What the answers say about the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Some rule has not held yet, and still has time.
    Pending,
    /// Every rule holds, or has not been bad often enough since it did.
    Healthy,
    /// It is bad, and stays so.
    Bad {
        /// In words: which rule, how often, when, what was said last.
        why: String,
    },
}

#[derive(Debug, Clone)]
struct RuleState {
    words: String,
    within: Duration,
    failures: u32,
    /// The longest time between two answers while somebody looks; longer ones count as this.
    gap_max: Duration,
    /// Time in which somebody looked, up to the last answer.
    looked: Duration,
    /// When the last answer came; in the beginning, when the release began to serve.
    last_at: Timestamp,
    last_said: Option<String>,
    holds: bool,
    /// Bad answers since the last good one, and when the first of them was asked.
    bad_in_a_row: u32,
    bad_since: Timestamp,
    bad_last: Timestamp,
}

/// Folds the answers of one release.
#[derive(Debug, Clone)]
pub struct Judge {
    rules: Vec<RuleState>,
    healthy: bool,
    bad: Option<String>,
}

/// The time from one to the other; none when clocks were set back between them.
fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from).max(SignedDuration::ZERO)).unwrap_or_default()
}

fn clock(at: Timestamp) -> impl std::fmt::Display {
    at.strftime("%H:%M:%S")
}

impl RuleState {
    /// Time in which somebody looked, up to `now`.
    fn looked_until(&self, now: Timestamp) -> Duration {
        self.looked + between(self.last_at, now).min(self.gap_max)
    }

    fn late(&self) -> String {
        let said = self.last_said.as_deref().unwrap_or("never asked");
        format!("{} did not hold within {}: {said}", self.words, crate::model::Span(self.within))
    }

    fn often(&self) -> String {
        let (said, last) = (self.last_said.as_deref().unwrap_or_default(), clock(self.bad_last));
        match self.bad_in_a_row {
            1 => format!("{} was bad at {last} UTC: {said}", self.words),
            count => {
                let since = clock(self.bad_since);
                format!("{} was bad {count} times in a row since {since}, last at {last} UTC: {said}", self.words)
            }
        }
    }
}

impl Judge {
    /// A judge of a release that serves since `since`.
    pub fn new(rules: &[HealthRule], since: Timestamp) -> Judge {
        let state = |rule: &HealthRule| RuleState {
            words: words(rule),
            within: rule.within.0,
            failures: rule.failures.max(1),
            // A question is asked at most one interval after the last, and takes at most its timeout.
            gap_max: rule.every.0 + rule.timeout.0,
            looked: Duration::ZERO,
            last_at: since,
            last_said: None,
            holds: false,
            bad_in_a_row: 0,
            bad_since: since,
            bad_last: since,
        };
        Judge { rules: rules.iter().map(state).collect(), healthy: rules.is_empty(), bad: None }
    }

    /// Takes an answer in. Answers of one rule come in the order in which they were asked; one of a rule that is not
    /// there is nobody's.
    pub fn take(&mut self, probe: &Probe) {
        let Some(rule) = self.rules.get_mut(probe.rule).filter(|_| self.bad.is_none()) else { return };
        let took = SignedDuration::from_micros(i64::try_from(probe.took_us).unwrap_or(i64::MAX));
        // Answers count when they are there, as they do for whoever asks for the verdict meanwhile.
        let answered = probe.at.checked_add(took).unwrap_or(probe.at);
        let in_time = rule.looked_until(answered) <= rule.within;
        rule.looked = rule.looked_until(answered);
        rule.last_at = answered.max(rule.last_at);
        rule.last_said = Some(probe.said.clone());
        if probe.good {
            rule.bad_in_a_row = 0;
        } else {
            if rule.bad_in_a_row == 0 {
                rule.bad_since = probe.at;
            }
            rule.bad_in_a_row += 1;
            rule.bad_last = probe.at;
        }
        let too_often = rule.bad_in_a_row >= rule.failures;
        if !rule.holds && !in_time {
            self.bad = Some(rule.late());
        } else if !rule.holds {
            rule.holds = probe.good;
        } else if too_often && (self.healthy || !in_time) {
            self.bad = Some(rule.often());
        } else if too_often {
            // It held for a moment while others had yet to begin, and has time left to hold again.
            rule.holds = false;
        }
        self.healthy = self.healthy || self.rules.iter().all(|rule| rule.holds);
    }

    /// What the answers so far say at this moment.
    pub fn verdict(&self, now: Timestamp) -> Verdict {
        if let Some(why) = &self.bad {
            return Verdict::Bad { why: why.clone() };
        }
        if self.healthy {
            return Verdict::Healthy;
        }
        // A rule that nobody has asked yet says nothing about the release.
        let late = |rule: &&RuleState| !rule.holds && rule.last_said.is_some() && rule.looked_until(now) > rule.within;
        match self.rules.iter().find(late) {
            Some(rule) => Verdict::Bad { why: rule.late() },
            None => Verdict::Pending,
        }
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
