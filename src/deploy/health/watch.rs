//! Asks all rules, each in its own rhythm, and hands every answer over.
//!
//! In come the rules and what the target knows; out go [`Probe`]s, until the future or the receiver is dropped. Called by
//! `deploy` from the moment on at which a release serves. Nothing is kept here: whoever receives stores and judges.

use super::{Surroundings, ask};
use crate::config::daemon::environment::HealthRule;
use crate::model::Span;
use crate::model::deploy::Probe;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// Room for answers on their way: some seconds of every rule an environment may have. A receiver that is slower than
/// that slows the questions down.
pub const ANSWERS_WAITING: usize = 64;

/// How long a question may take and still be of use. A release that hangs must be found within twice the interval times
/// the failures allowed, so the questions that find it, after up to one interval of rest, may last
/// `every * (2 - 1 / failures)` each.
pub fn useful_timeout(rule: &HealthRule) -> Duration {
    let failures = rule.failures.max(1);
    rule.timeout.0.min(rule.every.0 * (2 * failures - 1) / failures)
}

/// Asks until dropped. A rule is never asked twice at once: its next question is asked at its next beat, or at once when
/// the last one took longer than an interval. A question without an answer is bad when its time is over.
pub async fn follow(rules: &[HealthRule], around: watch::Receiver<Surroundings>, answers: mpsc::Sender<Probe>) {
    let asking = rules.iter().enumerate().map(|(index, rule)| one(index, rule, around.clone(), answers.clone()));
    futures_util::future::join_all(asking).await;
}

async fn one(index: usize, rule: &HealthRule, around: watch::Receiver<Surroundings>, answers: mpsc::Sender<Probe>) {
    let mut rule = rule.clone();
    let timeout = useful_timeout(&rule);
    // Whole milliseconds, which is what people are shown.
    rule.timeout = Span(Duration::from_millis(timeout.as_millis().max(1) as u64));
    let mut beats = tokio::time::interval(rule.every.0.max(Duration::from_millis(1)));
    // Kept to the beat: what one answer takes does not push the next question back. A missed beat is made up for once,
    // not as often as it was missed.
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut asked_late = false;
    loop {
        if !asked_late {
            beats.tick().await;
        }
        let began = tokio::time::Instant::now();
        let now = *around.borrow();
        let probe = ask(index, &rule, &now).await;
        if answers.send(probe).await.is_err() {
            return;
        }
        asked_late = began.elapsed() > rule.every.0;
        if asked_late {
            // The beat that was missed is this one.
            beats.reset();
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
