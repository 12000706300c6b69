//! Webhooks end in the same inbox: signed ones once, all others not at all.

use crate::inbox::{SECRET, World, shop};
use mainstay::model::RepoName;
use mainstay::store::Verdict;
use mainstay::trigger::webhook::{Taken, WebhookError, sign};
use mainstay::trigger::{IntakeError, RefChange};

fn body(change: &RefChange) -> Vec<u8> {
    serde_json::json!({
        "ref": change.git_ref, "before": change.old, "after": change.new,
        "sender": {"login": "ana"}, "repository": {"full_name": "team/shop"},
    })
    .to_string()
    .into_bytes()
}

async fn send(w: &World, secret: &str, delivery: &str, body: &[u8]) -> Result<Taken, IntakeError> {
    let signature = format!("sha256={}", sign(secret.as_bytes(), body));
    let find = |name: &str| match name {
        "x-hub-signature-256" => Some(signature.as_str()),
        "x-github-event" => Some("push"),
        "x-github-delivery" => Some(delivery),
        _ => None,
    };
    w.intake.webhook(&shop(), &find, body).await
}

#[tokio::test]
async fn a_signed_push_is_taken_once_and_names_its_sender() {
    let w = World::new();
    w.look().await;
    let next = w.commit();
    let change = w.push("refs/heads/main", Some(&next));
    let taken = send(&w, SECRET, "d1", &body(&change)).await.unwrap();
    assert!(matches!(&taken, Taken::Push(v) if matches!(v[..], [Verdict::Accepted(_)])), "{taken:?}");
    assert_eq!(send(&w, SECRET, "d1", &body(&change)).await.unwrap(), Taken::Push(vec![Verdict::Replayed]));
    // Somebody who saw the request sends it with a new id.
    let again = send(&w, SECRET, "d2", &body(&change)).await.unwrap();
    assert!(matches!(&again, Taken::Push(v) if matches!(v[..], [Verdict::Stale(_)])), "{again:?}");
    let rows = w.pending().await;
    assert_eq!((rows.len(), rows[0].actor.as_deref()), (1, Some("ana")));
    assert_eq!(w.look().await, 0);
}

#[tokio::test]
async fn a_wrong_signature_leaves_nothing_behind() {
    let w = World::new();
    w.look().await;
    let next = w.commit();
    let change = w.push("refs/heads/main", Some(&next));
    let error = send(&w, "wrong", "d1", &body(&change)).await.unwrap_err();
    assert!(matches!(error, IntakeError::Webhook(WebhookError::BadSignature)), "{error}");
    assert!(w.intake.store().list_inbox(10).await.unwrap().is_empty());
    // The id is still free for the real one.
    let taken = send(&w, SECRET, "d1", &body(&change)).await.unwrap();
    assert!(matches!(&taken, Taken::Push(v) if matches!(v[..], [Verdict::Accepted(_)])), "{taken:?}");
}

#[tokio::test]
async fn a_signed_lie_about_a_ref_is_found_out() {
    let w = World::new();
    w.look().await;
    let change = RefChange { git_ref: "refs/heads/main".into(), old: w.head(), new: "1".repeat(40).parse().unwrap() };
    let taken = send(&w, SECRET, "d1", &body(&change)).await.unwrap();
    assert!(matches!(&taken, Taken::Push(v) if matches!(v[..], [Verdict::Stale(_)])), "{taken:?}");
    assert!(w.pending().await.is_empty());
}

#[tokio::test]
async fn a_repository_that_is_not_watched_or_away_says_so() {
    let w = World::new();
    w.look().await;
    let find = |_: &str| None;
    let error = w.intake.webhook(&RepoName::new("other").unwrap(), &find, b"").await.unwrap_err();
    assert!(matches!(error, IntakeError::UnknownRepo(_)), "{error}");
    let next = w.commit();
    let change = w.push("refs/heads/main", Some(&next));
    std::fs::rename(&w.bare, w.dir.path().join("away")).unwrap();
    let error = send(&w, SECRET, "d1", &body(&change)).await.unwrap_err();
    assert!(matches!(error, IntakeError::Git(_)), "{error}");
    std::fs::rename(w.dir.path().join("away"), &w.bare).unwrap();
    let taken = send(&w, SECRET, "d1", &body(&change)).await.unwrap();
    assert!(matches!(&taken, Taken::Push(v) if matches!(v[..], [Verdict::Accepted(_)])), "nothing was taken before");
}
