//! One writer per source.

use super::*;
use mainstay::backup::ship::lease::{Lease, LeaseError, Standing};

const TTL: Duration = Duration::from_millis(900);

async fn take(place: &Place, owner: &str) -> Result<Lease, LeaseError> {
    Lease::take(place.repository.clone(), place.sealer(), place.checker(), SourceName::new("db").unwrap(), owner, TTL)
        .await
}

#[tokio::test]
async fn a_living_holder_is_named_a_dead_one_followed_and_one_that_is_done_gives_it_back() {
    let place = Place::new();
    let first = take(&place, "daemon on alpha").await.unwrap();
    assert_eq!(*first.standing().borrow(), Standing::Held);
    let refused = take(&place, "daemon on beta").await.unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, LeaseError::Held { .. }) && text.contains("daemon on alpha does so since 2"), "{text}");
    // Dead, and nobody's clock is asked: only the time in which it did not beat.
    drop(first);
    let died = Instant::now();
    let second = take(&place, "daemon on beta").await.unwrap();
    assert!(died.elapsed() >= TTL, "{:?}", died.elapsed());
    second.release().await;
    let given_back = Instant::now();
    let third = take(&place, "daemon on gamma").await.unwrap();
    assert!(given_back.elapsed() < TTL / 2, "{:?}", given_back.elapsed());
    drop(third);
}

#[tokio::test]
async fn a_holder_that_was_followed_learns_it_and_a_name_that_runs_once_takes_over_at_once() {
    let place = Place::new();
    let first = take(&place, "daemon on alpha").await.unwrap();
    let began = Instant::now();
    let second = take(&place, "daemon on alpha").await.unwrap();
    assert!(began.elapsed() < TTL / 2, "{:?}", began.elapsed());
    let mut standing = first.standing();
    let lost =
        tokio::time::timeout(PATIENCE, standing.wait_for(|standing| matches!(standing, Standing::Lost(_)))).await;
    assert!(matches!(&*lost.unwrap().unwrap(), Standing::Lost(to) if to.contains("daemon on alpha")));
    tokio::time::sleep(TTL).await;
    assert_eq!(*second.standing().borrow(), Standing::Held);
}

#[tokio::test]
async fn of_many_that_come_at_once_one_has_it() {
    let place = Place::new();
    let tries = (0..6).map(|number| {
        let place = &place;
        async move { take(place, &format!("daemon {number}")).await }
    });
    let taken: Vec<_> = futures_util::future::join_all(tries).await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(taken.len(), 1);
    tokio::time::sleep(TTL * 2).await;
    assert_eq!(*taken[0].standing().borrow(), Standing::Held);
}
