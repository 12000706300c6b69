#![allow(clippy::print_stdout, reason = "what was measured is part of the answer")]

use super::*;
use crate::config::daemon::environment::HealthCheck;
use crate::deploy::health::{Judge, Verdict};
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const WELL: u8 = 0;
const ILL: u8 = 1;
const HANGS: u8 = 2;

/// An HTTP server whose answer can be turned, and the number of questions it has had at most at once.
struct Turning {
    url: String,
    mode: Arc<AtomicU8>,
    most: Arc<AtomicUsize>,
}

async fn turning() -> Turning {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/healthz", listener.local_addr().unwrap());
    let (mode, most, open) =
        (Arc::new(AtomicU8::new(WELL)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (mode_now, most_now) = (mode.clone(), most.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mode, most, open) = (mode_now.clone(), most_now.clone(), open.clone());
            tokio::spawn(async move {
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = match mode.load(Ordering::SeqCst) {
                    WELL => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                    ILL => "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
                    _ => "",
                };
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.read(&mut request).await;
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Turning { url, mode, most }
}

fn rule(url: &str, every_millis: u64, failures: u32) -> HealthRule {
    HealthRule {
        check: HealthCheck::Http { url: url.to_owned(), status: Vec::new(), body: None, latency: None },
        every: Span(Duration::from_millis(every_millis)),
        failures,
        within: Span(Duration::from_secs(60)),
        timeout: Span(Duration::from_secs(5)),
    }
}

/// From the moment a well release turns until the judge says so.
async fn detection(turn_to: u8, failures: u32) -> (Duration, usize, String) {
    let server = turning().await;
    let rules = [rule(&server.url, 200, failures)];
    let (around, seen) = watch::channel(Surroundings::default());
    let (answers, mut received) = mpsc::channel(ANSWERS_WAITING);
    let mut judge = Judge::new(&rules, Timestamp::now());
    let mut judging = std::pin::pin!(async {
        let mut turned = None;
        let mut healthy = 0;
        loop {
            judge.take(&received.recv().await.expect("it goes on asking"));
            match judge.verdict(Timestamp::now()) {
                Verdict::Healthy if turned.is_none() => {
                    healthy += 1;
                    if healthy == 3 {
                        // Right after an answer: the worst moment, since the next question is a whole interval away.
                        server.mode.store(turn_to, Ordering::SeqCst);
                        turned = Some(Instant::now());
                    }
                }
                Verdict::Bad { why } => break (turned.expect("it was bad before it turned").elapsed(), why),
                _ => {}
            }
        }
    });
    let (time, why) = tokio::select! {
        found = &mut judging => found,
        () = follow(&rules, seen, answers) => unreachable!("it asks until dropped"),
    };
    drop(around);
    (time, server.most.load(Ordering::SeqCst), why)
}

/// What a loaded machine may add to a budget that is about intervals.
const SLACK: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_release_that_turns_ill_is_found_within_twice_the_interval_times_the_failures() {
    for failures in [1, 3] {
        let (time, _, why) = detection(ILL, failures).await;
        let budget = Duration::from_millis(200) * 2 * failures;
        println!("ill, {failures} failures allowed: found after {time:?} of {budget:?}: {why}");
        assert!(time <= budget + SLACK, "{failures}: {time:?}");
        assert!(time >= Duration::from_millis(150) * failures, "{failures}: {time:?}");
        assert!(why.contains("503 in "), "{why}");
    }
}

#[tokio::test]
async fn a_release_that_hangs_is_found_in_the_same_time() {
    for failures in [1, 3] {
        let (time, _, why) = detection(HANGS, failures).await;
        let budget = Duration::from_millis(200) * 2 * failures;
        println!("hangs, {failures} failures allowed: found after {time:?} of {budget:?}: {why}");
        assert!(time <= budget + SLACK, "{failures}: {time:?}");
        assert!(why.contains("no answer within "), "{why}");
    }
}

#[tokio::test]
async fn rules_keep_their_own_beat_whatever_the_others_do() {
    let (well, hangs) = (turning().await, turning().await);
    hangs.mode.store(HANGS, Ordering::SeqCst);
    let rules = [rule(&well.url, 100, 3), rule(&hangs.url, 300, 3)];
    let (_around, seen) = watch::channel(Surroundings::default());
    let (answers, mut received) = mpsc::channel(ANSWERS_WAITING);
    let began = Timestamp::now();
    let _ = tokio::time::timeout(Duration::from_millis(2_050), follow(&rules, seen, answers)).await;
    let mut asked = [Vec::new(), Vec::new()];
    while let Some(probe) = received.recv().await {
        asked[probe.rule].push(probe.at);
    }
    // 21 beats of 100 ms, less what a busy machine swallows; never more than beats.
    assert!((12..=21).contains(&asked[0].len()), "{} questions", asked[0].len());
    // On the grid: the last is where its number says, so what each answer took has not added up.
    let last = asked[0].last().unwrap().duration_since(began).as_millis();
    assert!((last % 100) < 60, "the last was asked {last} ms after the first");
    // Timeouts of 500 ms, one after the other.
    assert!((3..=5).contains(&asked[1].len()), "{} questions", asked[1].len());
    assert_eq!(well.most.load(Ordering::SeqCst), 1, "asked twice at once");
}

#[tokio::test]
async fn a_receiver_that_is_gone_ends_the_asking() {
    let server = turning().await;
    let (_around, seen) = watch::channel(Surroundings::default());
    let (answers, received) = mpsc::channel(1);
    drop(received);
    let rules = [rule(&server.url, 10, 1)];
    tokio::time::timeout(Duration::from_secs(5), follow(&rules, seen, answers)).await.expect("it went on asking");
}

#[test]
fn the_useful_timeout_keeps_the_budget() {
    for failures in 1..10 {
        for every in [50, 1_000, 30_000] {
            let rule = HealthRule { timeout: Span(Duration::from_secs(3600)), ..rule("", every, failures) };
            let worst = rule.every.0 + useful_timeout(&rule) * failures;
            assert!(worst <= rule.every.0 * 2 * failures, "{failures} failures, every {every} ms: {worst:?}");
        }
    }
    let short = HealthRule { timeout: Span(Duration::from_millis(5)), ..rule("", 1_000, 3) };
    assert_eq!(useful_timeout(&short), Duration::from_millis(5));
}
