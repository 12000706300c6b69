//! What people are told of a deploy that comes back, and of what was changed by hand: over a real webhook.

use crate::support::receiver::Receiver;
use crate::support::stage::Stage;
use serde_json::{Value, json};

/// A stage whose messages go to a receiver.
fn stage(receiver: &Receiver, more: &str) -> Stage {
    Stage::started(more, &format!("notify: {{ webhooks: {{ board: {{ url: \"{}\" }} }} }}\n", receiver.url()))
}

/// The one message that is about that, as soon as it is there.
fn told(stage: &Stage, receiver: &Receiver, about: impl Fn(&Value) -> bool) -> Value {
    stage.wait("the message", |_| {
        let documents: Vec<_> = receiver.posts().iter().map(|post| post.json()).collect();
        let found: Vec<_> = documents.into_iter().filter(|document| about(&document["message"])).collect();
        assert!(found.len() <= 1, "told twice: {found:#?}");
        found.into_iter().next()
    })
}

#[test]
fn a_rollback_names_what_was_taken_back_and_what_serves() {
    let receiver = Receiver::start();
    let stage = stage(&receiver, "watch: 300ms");
    let first = stage.good("good-1");
    let bad = stage.push("bad-2");
    assert_eq!(stage.ended(&bad)["steps"][0]["attempts"][0]["end"]["how"], "rolled-back");
    let said = told(&stage, &receiver, |message| message["status"] == "rolled-back");
    let title =
        format!("[production] release 2 (shop {}) was rolled back to release 1 (shop {})", &bad[..7], &first[..7]);
    assert_eq!(said["title"], title.as_str());
    assert_eq!((&said["message"]["release"], &said["message"]["back"]["to"]), (&json!(2), &json!(1)), "{said:#}");
    assert!(said["text"].as_str().unwrap().contains(&format!("production/1, shop {}", &first[..7])), "{said:#}");
    stage.daemon.cli(&["release-hold", "production"]);

    // The same when a person asks for it.
    let third = stage.good("good-3");
    assert_eq!(stage.daemon.try_cli(&["rollback", "production"]).status.code(), Some(0));
    let said = told(&stage, &receiver, |message| message["back"]["bad"] == 3);
    let title =
        format!("[production] release 3 (shop {}) was rolled back to release 1 (shop {})", &third[..7], &first[..7]);
    assert_eq!((&said["title"], &said["message"]["status"]), (&json!(title), &json!("verified")), "{said:#}");
    stage.daemon.end(0);
}

#[test]
fn what_is_changed_by_hand_is_told_and_that_it_was_put_back_too() {
    let receiver = Receiver::start();
    let stage = stage(&receiver, "watch: 300ms");
    stage.good("good-1");
    stage.app.change_by_hand("good-by-hand");
    let found = told(&stage, &receiver, |message| message["stage"] == "found");
    assert_eq!(found["message"]["differences"][0]["found"], "good-by-hand", "{found:#}");
    assert_eq!(stage.daemon.try_cli(&["repair", "production"]).status.code(), Some(0));
    let repaired = told(&stage, &receiver, |message| message["stage"] == "repaired");
    assert_eq!(repaired["title"], "[production] a change made by hand was put back");
    assert_eq!(repaired["message"]["differences"], found["message"]["differences"]);
    stage.daemon.end(0);
}

#[test]
fn an_environment_that_heals_itself_tells_how_that_went() {
    let receiver = Receiver::start();
    let heals = stage(&receiver, "watch: 300ms\nself-heal: true");
    heals.good("good-1");
    heals.app.change_by_hand("good-by-hand");
    let repaired = told(&heals, &receiver, |message| message["stage"] == "repaired");
    assert_eq!(repaired["message"]["differences"][0]["found"], "good-by-hand", "{repaired:#}");
    assert!(receiver.posts().iter().all(|post| post.json()["message"]["stage"] != "found"), "told before it was over");
    heals.daemon.end(0);
}
