//! Sends what stands in the outbox.
//!
//! Enters: rows that others wrote in the transaction of their cause (`store::outbox`), and a wake-up when there is one;
//! `daemon` starts [`run`]. Leaves: mail and posts, and in each row what became of it.
//!
//! **What is promised.** A message that was written is sent at least once, or given up with a reason that is logged and
//! shown: the other side refused it for good, its time was over, or it could not be sent for three days. Each row is
//! marked `sending`, durably, before the first byte leaves, and `sent` after the other side took it. So it arrives twice
//! only when the daemon died, or the other side's answer was lost, between that side taking it and our record of it; and
//! then with the same `Message-ID` (mail) or `X-Mainstay-Delivery` (webhook), by which mailboxes and receivers can tell.
//! Nothing arrives twice because of a restart alone: a daemon that is told to stop finishes what it is sending.
//!
//! **Order.** To one recipient one message goes at a time, in the order in which they were written. A message that failed
//! four times, about fifteen seconds, no longer holds back those behind it.

use super::channels::{Channels, Failure};
use super::message::Message;
use crate::store::{OutboxRow, Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Messages on their way at once: one per recipient, and mail servers look askance at more connections from one sender.
const AT_ONCE: usize = 4;
/// A wake-up that was lost costs this much.
const TICK: Duration = Duration::from_secs(1);
/// One try: connecting, TLS, and a server that checks for spam before it answers.
const TRY_WITHIN: Duration = Duration::from_secs(60);
/// The pause after the first failure; it doubles with each.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause; the first message that gets through wakes the others.
const PAUSE_LONGEST: Duration = Duration::from_secs(3600);
/// A weekend without a mail server loses nothing; news older than this helps nobody.
pub(crate) const GIVE_UP_AFTER: SignedDuration = SignedDuration::from_hours(72);
/// When the daemon stops, what is on its way may take this long; most mail takes under a second.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Sent messages are kept this long, so that the same cause, told of again, is not sent again.
const KEEP: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How often old ones are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// Sends until the daemon stops. `channels` is replaced on reload; `wake` is told when a row was written.
pub async fn run(
    store: Store,
    mut channels: watch::Receiver<Arc<Channels>>,
    wake: Arc<Notify>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut sending = JoinSet::new();
    let mut recovered = false;
    let mut forget_at = tokio::time::Instant::now();
    while !*stopping.borrow() {
        match look(&store, &channels, &mut sending, &mut recovered).await {
            Ok(()) => {}
            Err(StoreError::Closed) => break,
            Err(error) => tracing::error!("failed to {error}; messages wait until it works"),
        }
        if forget_at <= tokio::time::Instant::now() {
            forget_at += FORGET_EVERY;
            if let Err(error) = store.forget_messages(Timestamp::now() - KEEP).await {
                tracing::warn!("failed to {error}; old messages are kept for now");
            }
        }
        tokio::select! {
            result = stopping.changed() => if result.is_err() { break },
            Some(_) = sending.join_next() => {}
            () = wake.notified() => {}
            Ok(()) = channels.changed() => {
                if let Err(error) = store.hasten_messages(Timestamp::now()).await {
                    tracing::warn!("failed to {error}; messages are tried at their usual time");
                }
            }
            () = tokio::time::sleep(TICK) => {}
        }
    }
    // What is cut off after this is sent again at the next start, with the same id.
    let rest = async { while sending.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
        tracing::warn!(
            left = sending.len(),
            "stopped while messages were being sent; they are sent again at the start"
        );
    }
}

/// Begins to send what is due, as far as there is room.
async fn look(
    store: &Store,
    channels: &watch::Receiver<Arc<Channels>>,
    sending: &mut JoinSet<()>,
    recovered: &mut bool,
) -> Result<(), StoreError> {
    if !*recovered {
        let cut_off = store.recover_messages(Timestamp::now()).await?;
        if cut_off > 0 {
            tracing::info!(cut_off, "messages were cut off while they were being sent; they are sent again");
        }
        *recovered = true;
    }
    let room = AT_ONCE.saturating_sub(sending.len());
    if room == 0 || !store.messages_due(Timestamp::now()).await? {
        return Ok(());
    }
    for row in store.claim_messages(Timestamp::now(), room as u32).await? {
        let channels = Arc::clone(&channels.borrow());
        sending.spawn(deliver(store.clone(), channels, row));
    }
    Ok(())
}

/// One try at one message, up to the record of what became of it.
async fn deliver(store: Store, channels: Arc<Channels>, row: OutboxRow) {
    let message: Option<Message> = serde_json::from_value(row.message.clone()).ok();
    crate::failpoint!("notify.send.before");
    let result = attempt(&channels, &row, message.as_ref()).await;
    crate::failpoint!("notify.send.after");
    let now = Timestamp::now();
    let verdict = verdict(result, &row, now, getrandom::u32().unwrap_or(u32::MAX / 2));
    let kept = message.map(Message::without_secrets).and_then(|m| m.to_json().ok()).unwrap_or(row.message);
    let (id, key, channel, recipient, tries) = (row.id, &row.key, &row.channel, &row.recipient, row.tries);
    match &verdict {
        Verdict::Sent => tracing::info!(key, channel, recipient, tries, "message sent"),
        Verdict::Again { why, at } => {
            tracing::warn!(key, channel, recipient, tries, %at, "failed to send a message, it will be tried again: {why}");
        }
        Verdict::GivenUp(why) => tracing::error!(key, channel, recipient, tries, "gave up a message: {why}"),
    }
    // What the other side took and we forget would be sent again: keep trying to write it down.
    loop {
        let recorded = match verdict.clone() {
            Verdict::Sent => store.message_sent(id, kept.clone(), now).await,
            Verdict::Again { why, at } => store.message_failed(id, why, at).await,
            Verdict::GivenUp(why) => store.give_up_message(id, why, kept.clone()).await,
        };
        match recorded {
            Ok(()) | Err(StoreError::Closed) => return,
            Err(error) => tracing::error!(key, "failed to {error}; what became of a message is not recorded yet"),
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn attempt(channels: &Channels, row: &OutboxRow, message: Option<&Message>) -> Result<(), Failure> {
    let Some(message) = message else {
        return Err(Failure::Never("it cannot be read: another version of Mainstay wrote it".into()));
    };
    if message.useless_after(row.created_at).is_some_and(|end| end < Timestamp::now()) {
        let last = row.error.as_deref().map(|error| format!("; the last try: {error}")).unwrap_or_default();
        return Err(Failure::Never(format!("its time was over before it could be sent{last}")));
    }
    let sent = channels.send(&row.key, &row.channel, &row.recipient, message, row.created_at);
    tokio::time::timeout(TRY_WITHIN, sent)
        .await
        .unwrap_or_else(|_| Err(Failure::later(format!("no answer within {} s", TRY_WITHIN.as_secs()))))
}

/// What becomes of a message after a try.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Sent,
    Again { why: String, at: Timestamp },
    GivenUp(String),
}

fn verdict(result: Result<(), Failure>, row: &OutboxRow, now: Timestamp, random: u32) -> Verdict {
    let (why, after) = match result {
        Ok(()) => return Verdict::Sent,
        Err(Failure::Never(why)) => return Verdict::GivenUp(why),
        Err(Failure::Later { why, after }) => (why, after),
    };
    if now.duration_since(row.created_at) >= GIVE_UP_AFTER {
        return Verdict::GivenUp(format!("not sent within three days; the last try: {why}"));
    }
    let wait = pause(row.tries, random).max(after.unwrap_or_default().min(PAUSE_LONGEST));
    Verdict::Again { why, at: now + wait }
}

/// Doubles with each try; a quarter more or less, so that many do not come back at once.
pub(crate) fn pause(tries: u32, random: u32) -> Duration {
    let doubled = PAUSE_FIRST.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(PAUSE_LONGEST);
    doubled.mul_f64(0.75 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::OutboxState;

    fn row(tries: u32, age: SignedDuration) -> OutboxRow {
        OutboxRow {
            id: 1,
            key: "k".into(),
            channel: "mail".into(),
            recipient: "ana".into(),
            message: serde_json::json!({}),
            state: OutboxState::Sending,
            tries,
            next_at: Timestamp::now(),
            created_at: Timestamp::now() - age,
            sent_at: None,
            error: None,
        }
    }

    #[test]
    fn pauses_double_up_to_an_hour_and_are_never_all_the_same() {
        let middle = u32::MAX / 2;
        let near = |tries, secs: f64| (pause(tries, middle).as_secs_f64() - secs).abs() < 0.01 * secs;
        assert!(near(1, 1.0) && near(2, 2.0) && near(5, 16.0) && near(12, 2048.0));
        assert!(near(13, 3600.0) && near(u32::MAX, 3600.0));
        assert_eq!(pause(1, 0), Duration::from_millis(750));
        assert_eq!(pause(1, u32::MAX), Duration::from_millis(1250));
    }

    #[test]
    fn three_days_are_the_end_and_a_refusal_is_it_at_once() {
        let later = || Err(Failure::later("450 try later"));
        let now = Timestamp::now();
        let day = SignedDuration::from_hours(24);
        assert!(matches!(verdict(later(), &row(40, 2 * day), now, 0), Verdict::Again { .. }));
        let Verdict::GivenUp(why) = verdict(later(), &row(40, 3 * day + SignedDuration::from_secs(60)), now, 0) else {
            panic!("not given up")
        };
        assert!(why.contains("three days") && why.contains("450"), "{why}");
        assert_eq!(
            verdict(Err(Failure::Never("550 no such user".into())), &row(1, day), now, 0),
            Verdict::GivenUp("550 no such user".into())
        );
    }

    #[test]
    fn the_other_side_may_ask_for_a_longer_pause_but_not_for_more_than_an_hour() {
        let now = Timestamp::now();
        for (asked, waits) in [(30, 30), (100_000, 3600)] {
            let later = Failure::Later { why: "429".into(), after: Some(Duration::from_secs(asked)) };
            let Verdict::Again { at, .. } = verdict(Err(later), &row(1, SignedDuration::ZERO), now, 0) else {
                panic!("not tried again")
            };
            assert_eq!(at.duration_since(now).as_secs(), waits);
        }
    }
}
