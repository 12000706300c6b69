use super::*;
use crate::config::daemon::environment::HealthCheck;
use crate::model::Span;
use proptest::prelude::*;

fn rule(failures: u32, within_secs: u64) -> HealthRule {
    HealthRule {
        check: HealthCheck::Tcp("127.0.0.1:80".into()),
        every: Span(Duration::from_secs(1)),
        failures,
        within: Span(Duration::from_secs(within_secs)),
        timeout: Span(Duration::from_secs(5)),
    }
}

fn at(millis: i64) -> Timestamp {
    // A quarter past twelve, to read the words by.
    "2026-03-01T12:15:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_millis(millis)
}

fn probe(rule: usize, millis: i64, good: bool) -> Probe {
    Probe { rule, at: at(millis), good, took_us: 2_000, said: if good { "200 in 2 ms" } else { "503 in 2 ms" }.into() }
}

/// The verdict after a row of answers, `+` and `-`, one a second from the first second on.
fn after(rules: &[HealthRule], answers: &[&str]) -> Verdict {
    let mut judge = Judge::new(rules, at(0));
    let most = answers.iter().map(|row| row.len()).max().unwrap_or(0);
    for second in 0..most {
        for (index, row) in answers.iter().enumerate() {
            match row.as_bytes().get(second) {
                Some(b'+') => judge.take(&probe(index, 1_000 * (second as i64 + 1), true)),
                Some(b'-') => judge.take(&probe(index, 1_000 * (second as i64 + 1), false)),
                _ => {}
            }
        }
    }
    judge.verdict(at(1_000 * most as i64 + 10))
}

fn is_bad(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Bad { .. })
}

#[test]
fn verdicts_by_table() {
    let one = [rule(3, 10)];
    let two = [rule(3, 10), rule(2, 5)];
    let table: &[(&[HealthRule], &[&str], &str)] = &[
        (&[], &[], "healthy"),
        (&one, &[""], "pending"),
        (&one, &["-----"], "pending"),
        (&one, &["---------+"], "bad"), // 10 s and 2 ms
        (&one, &["--------+"], "healthy"),
        (&one, &["-----------"], "bad"),
        (&one, &["+"], "healthy"),
        (&one, &["+--"], "healthy"),
        (&one, &["+---"], "bad"),
        (&one, &["+--+--+--"], "healthy"),
        (&one, &["+--+---+++"], "bad"),
        (&two, &["+", "-"], "pending"),
        (&two, &["+", "-+"], "healthy"),
        (&two, &["+", "-----"], "bad"),
        // It held, and no longer does when the other begins to.
        (&two, &["+---", "---+"], "pending"),
        (&two, &["+---+", "---+"], "healthy"),
        (&two, &["+--", "--+"], "healthy"),
        (&two, &["+---", "--++"], "bad"),
        (&two, &["++++++++", "+--"], "bad"),
        (&two, &["++++++++", "+-+-+-+-"], "healthy"),
    ];
    for (rules, answers, wanted) in table {
        let found = match after(rules, answers) {
            Verdict::Pending => "pending",
            Verdict::Healthy => "healthy",
            Verdict::Bad { .. } => "bad",
        };
        assert_eq!(found, *wanted, "{answers:?} of {} rules", rules.len());
    }
}

#[test]
fn the_reason_names_rule_count_times_and_last_answer() {
    let Verdict::Bad { why } = after(&[rule(3, 10)], &["++---"]) else { panic!("it is not bad") };
    assert_eq!(why, "tcp 127.0.0.1:80 was bad 3 times in a row since 12:15:03, last at 12:15:05 UTC: 503 in 2 ms");
    let Verdict::Bad { why } = after(&[rule(1, 10)], &["++-"]) else { panic!("it is not bad") };
    assert_eq!(why, "tcp 127.0.0.1:80 was bad at 12:15:03 UTC: 503 in 2 ms");
    let Verdict::Bad { why } = after(&[rule(3, 4)], &["-----"]) else { panic!("it is not bad") };
    assert_eq!(why, "tcp 127.0.0.1:80 did not hold within 4s: 503 in 2 ms");
}

#[test]
fn a_rule_nobody_asked_is_no_failure_of_the_release() {
    let judge = Judge::new(&[rule(3, 10)], at(0));
    assert_eq!(judge.verdict(at(3_600_000)), Verdict::Pending);
}

#[test]
fn an_hour_in_which_nobody_looked_is_no_time() {
    let mut judge = Judge::new(&[rule(3, 20)], at(0));
    for second in 1..=5 {
        judge.take(&probe(0, second * 1_000, false));
    }
    let hour = 3_600_000;
    assert!(is_bad(&{
        let mut other = judge.clone();
        (6..=21).for_each(|second| other.take(&probe(0, second * 1_000, false)));
        other.verdict(at(21_000))
    }));
    // The gap counts as one interval and one timeout: six seconds.
    for second in 5..=13 {
        judge.take(&probe(0, hour + second * 1_000, false));
        assert_eq!(judge.verdict(at(hour + second * 1_000 + 5)), Verdict::Pending, "after {second} s");
    }
    judge.take(&probe(0, hour + 13_500, true));
    assert_eq!(judge.verdict(at(hour + 14_000)), Verdict::Healthy);
}

#[test]
fn a_clock_that_is_set_back_neither_panics_nor_gives_time_away() {
    let mut judge = Judge::new(&[rule(3, 4)], at(100_000));
    judge.take(&probe(0, 0, false));
    assert_eq!(judge.verdict(at(0)), Verdict::Pending);
    judge.take(&Probe { took_us: u64::MAX, ..probe(0, 1_000, false) });
    judge.take(&probe(7, 1_000, false));
    let _ = judge.verdict(Timestamp::MIN);
    let _ = judge.verdict(Timestamp::MAX);
}

proptest! {
    /// Against the rule as one would say it: once all held, bad exactly when some rule has its failures in a row.
    #[test]
    fn after_all_held_only_rows_of_bad_answers_count(
        failures in proptest::collection::vec(1u32..5, 1..4),
        answers in proptest::collection::vec((0usize..4, any::<bool>()), 0..60),
    ) {
        let rules: Vec<_> = failures.iter().map(|f| rule(*f, 1_000)).collect();
        let mut judge = Judge::new(&rules, at(0));
        for index in 0..rules.len() {
            judge.take(&probe(index, 100, true));
        }
        prop_assert_eq!(judge.verdict(at(200)), Verdict::Healthy);
        let mut rows = vec![0u32; rules.len()];
        let mut bad = false;
        for (step, (index, good)) in answers.iter().enumerate() {
            judge.take(&probe(*index, 1_000 * (step as i64 + 1), *good));
            if let Some(row) = rows.get_mut(*index) {
                *row = if *good { 0 } else { *row + 1 };
                bad = bad || *row >= failures[*index];
            }
            prop_assert_eq!(is_bad(&judge.verdict(at(1_000 * (step as i64 + 1) + 10))), bad);
        }
    }

    /// What is bad stays bad, and what was healthy never becomes pending again.
    #[test]
    fn a_verdict_never_goes_back(
        rules in proptest::collection::vec((1u32..4, 1u64..20), 1..4),
        answers in proptest::collection::vec((0usize..3, any::<bool>(), 0i64..3_000), 0..80),
    ) {
        let rules: Vec<_> = rules.iter().map(|(f, w)| rule(*f, *w)).collect();
        let mut judge = Judge::new(&rules, at(0));
        let (mut now, mut rank) = (0, 0);
        for (index, good, pause) in answers {
            now += pause;
            judge.take(&probe(index, now, good));
            let next = match judge.verdict(at(now + 2)) {
                Verdict::Pending => 0,
                Verdict::Healthy => 1,
                Verdict::Bad { .. } => 2,
            };
            prop_assert!(next >= rank, "from {rank} to {next}");
            rank = next;
        }
    }

    /// A pause in which nobody looked may be as long as it likes.
    #[test]
    fn the_length_of_an_absence_changes_nothing(
        rules in proptest::collection::vec((1u32..4, 1u64..40), 1..3),
        before in proptest::collection::vec((0usize..3, any::<bool>(), 0i64..3_000), 0..20),
        after in proptest::collection::vec((0usize..3, any::<bool>(), 0i64..3_000), 0..20),
        away in 10_000i64..100_000_000,
    ) {
        let rules: Vec<_> = rules.iter().map(|(f, w)| rule(*f, *w)).collect();
        let verdict = |absence: i64| {
            let mut judge = Judge::new(&rules, at(0));
            let mut now = 0;
            for (index, good, pause) in &before {
                now += pause;
                judge.take(&probe(*index, now, *good));
            }
            now += absence;
            for (index, good, pause) in &after {
                now += pause;
                judge.take(&probe(*index, now, *good));
            }
            // The words hold times of day.
            is_bad(&judge.verdict(at(now + 2)))
        };
        // A rule last asked long before the absence is past its longest gap in both cases.
        prop_assert_eq!(verdict(10_000 + 60_000), verdict(away + 60_000));
    }
}
