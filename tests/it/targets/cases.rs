//! What every target promises.

use super::lab::{Lab, Version, apply, good, serves};
use crate::support::soak;
use mainstay::deploy::target::{Left, TargetError};
use std::time::Duration;

pub(super) async fn what_is_absent_is_made_and_made_again_changes_nothing(lab: &dyn Lab) {
    assert!(lab.target().observe().await.unwrap().items.is_empty(), "there is something before anything was applied");
    let release = lab.release(1, Version::One);
    good(lab, &release).await;
    serves(lab, Version::One).await;
    let (seen, started) = (lab.target().observe().await.unwrap(), lab.started().await);
    assert!(!seen.items.is_empty());
    assert!(seen.instances.iter().all(|instance| instance.healthy), "{:?}", seen.instances);
    good(lab, &release).await;
    assert_eq!(lab.started().await, started, "something was started anew");
    assert_eq!(lab.target().observe().await.unwrap().drift_from(&seen), []);
    serves(lab, Version::One).await;
}

pub(super) async fn a_new_release_takes_the_place_of_the_old_and_the_way_back_too(lab: &dyn Lab) {
    let (one, two) = (lab.release(1, Version::One), lab.release(2, Version::Two));
    good(lab, &one).await;
    let before = lab.target().observe().await.unwrap();
    good(lab, &two).await;
    serves(lab, Version::Two).await;
    assert_ne!(lab.target().observe().await.unwrap().drift_from(&before), [], "nothing to see of the new release");
    good(lab, &one).await;
    serves(lab, Version::One).await;
    assert_eq!(lab.target().observe().await.unwrap().drift_from(&before), []);
}

/// Each reason holds all of its words, and the old version serves as before, at the latest when it was put back.
pub(super) async fn a_release_that_crashes_or_is_never_well_leaves_the_old_one_serving(lab: &dyn Lab) {
    let one = lab.release(1, Version::One);
    good(lab, &one).await;
    for (number, version, words) in
        [(2, Version::Crashes, &["out of luck", "3"][..]), (3, Version::Sick, &["not today"])]
    {
        let (why, left) = match apply(lab, &lab.release(number, version)).await {
            Err(TargetError::Bad { why, left }) => (why, left),
            other => panic!("a bad release ended as {other:?}"),
        };
        for word in words {
            assert!(why.contains(word), "the reason does not say {word:?}: {why}");
        }
        assert!(lab.serving().await.iter().any(|word| word == "one"), "nothing of the old version serves");
        if left == Left::Mixed {
            good(lab, &one).await;
        }
        serves(lab, Version::One).await;
    }
}

/// A daemon that dies in the middle, here and there; its successor tries the same again.
pub(super) async fn an_apply_that_was_cut_off_can_be_repeated(lab: &dyn Lab) {
    good(lab, &lab.release(1, Version::One)).await;
    let mut number = 1;
    for (moment, version) in moments().into_iter().zip([Version::Two, Version::Three].into_iter().cycle()) {
        number += 1;
        let release = lab.release(number, version);
        cut_off(lab, number, version, moment).await;
        assert!(!lab.serving().await.is_empty(), "nothing serves after a cut at {moment:?}");
        good(lab, &release).await;
        serves(lab, version).await;
    }
    println!("cut_off_and_repeated: {} moments on {}", number - 1, lab.target().kind());
}

/// A daemon that dies in the middle, and its successor is told to go back.
pub(super) async fn another_release_can_be_applied_over_one_that_was_cut_off(lab: &dyn Lab) {
    let one = lab.release(1, Version::One);
    good(lab, &one).await;
    let mut number = 1;
    for (moment, version) in
        moments().into_iter().zip([Version::Two, Version::Crashes, Version::Sick].into_iter().cycle())
    {
        number += 1;
        cut_off(lab, number, version, moment).await;
        good(lab, &one).await;
        serves(lab, Version::One).await;
    }
    println!("cut_off_and_taken_back: {} moments on {}", number - 1, lab.target().kind());
}

/// From before anything was done to nearly the end: two of them in the gate, and all the way under `make soak`.
fn moments() -> Vec<Duration> {
    let all: Vec<_> = (0..=20).map(|n| Duration::from_millis(5 + n * 150)).collect();
    match soak() {
        Some(_) => all,
        None => vec![all[2], all[9]],
    }
}

async fn cut_off(lab: &dyn Lab, number: u64, version: Version, after: Duration) {
    let release = lab.release(number, version);
    let cut = tokio::time::timeout(after, apply(lab, &release)).await;
    println!("release {number} ({}) cut off after {after:?}: {}", version.word(), cut.is_err());
}

pub(super) async fn a_change_made_by_hand_is_put_back_and_removing_leaves_nothing(lab: &dyn Lab) {
    lab.target().remove().await.unwrap_or_else(|error| panic!("failed to {error} where nothing is"));
    let one = lab.release(1, Version::One);
    good(lab, &one).await;
    let before = lab.target().observe().await.unwrap();
    let item = lab.change_by_hand().await;
    let drift = lab.target().observe().await.unwrap().drift_from(&before);
    assert!(drift.iter().any(|one| one.item == item), "{item} is not among {drift:?}");
    good(lab, &one).await;
    assert_eq!(lab.target().observe().await.unwrap().drift_from(&before), []);
    serves(lab, Version::One).await;
    assert_ne!(lab.left().await, Vec::<String>::new());
    for _ in 0..2 {
        lab.target().remove().await.unwrap_or_else(|error| panic!("failed to {error}"));
        assert_eq!(lab.left().await, Vec::<String>::new());
        assert!(lab.target().observe().await.unwrap().items.is_empty());
    }
}
