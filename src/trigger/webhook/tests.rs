use super::*;
use crate::model::Oid;
use proptest::prelude::*;

const SECRET: &[u8] = b"a shared secret";
const ZERO: &str = "0000000000000000000000000000000000000000";

fn push_body(git_ref: &str) -> Vec<u8> {
    let new = "1".repeat(40);
    format!(
        r#"{{"ref":"{git_ref}","before":"{ZERO}","after":"{new}","sender":{{"login":"ana"}},"pusher":{{"name":"a@x"}},"user_username":"ana","commits":[{{"id":"x","message":"\u00e9"}}]}}"#
    )
    .into_bytes()
}

fn headers_for(kind: Kind, secret: &[u8], body: &[u8]) -> Vec<(&'static str, String)> {
    let mac = sign(secret, body);
    let own = |text: &str| text.to_owned();
    match kind {
        Kind::Github => vec![
            ("x-hub-signature-256", format!("sha256={mac}")),
            ("x-github-event", own("push")),
            ("x-github-delivery", own("72d3162e-cc78-11e3-81ab-4c9367dc0958")),
        ],
        Kind::Gitlab => vec![
            ("x-gitlab-token", String::from_utf8_lossy(secret).into_owned()),
            ("x-gitlab-event", own("Push Hook")),
            ("x-gitlab-event-uuid", own("uuid-1")),
            ("idempotency-key", own("key-1")),
        ],
        Kind::Gitea => {
            vec![("x-gitea-signature", mac), ("x-gitea-event", own("push")), ("x-gitea-delivery", own("d-1"))]
        }
        Kind::Forgejo => {
            vec![("x-forgejo-signature", mac), ("x-forgejo-event", own("push")), ("x-forgejo-delivery", own("d-1"))]
        }
        Kind::Generic => vec![("x-mainstay-signature", format!("sha256={mac}"))],
    }
}

fn ask(kind: Kind, secret: &[u8], headers: &[(&str, String)], body: &[u8]) -> Result<Notification, WebhookError> {
    let find = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
    verify_and_parse(kind, secret, &find, body)
}

const ALL: [Kind; 5] = [Kind::Github, Kind::Gitlab, Kind::Gitea, Kind::Forgejo, Kind::Generic];

fn body_for(kind: Kind) -> Vec<u8> {
    if kind == Kind::Generic {
        let new = "1".repeat(40);
        return format!(
            r#"{{"delivery":"d-1","actor":"ana","refs":[{{"ref":"refs/heads/main","old":"{ZERO}","new":"{new}"}}]}}"#
        )
        .into_bytes();
    }
    push_body("refs/heads/main")
}

#[test]
fn each_forge_is_understood() {
    for kind in ALL {
        let body = body_for(kind);
        let Notification::Push { delivery, actor, changes } =
            ask(kind, SECRET, &headers_for(kind, SECRET, &body), &body).unwrap()
        else {
            panic!("{kind:?}: no push")
        };
        assert!(!delivery.is_empty());
        assert_eq!(actor.as_deref(), Some("ana"), "{kind:?}");
        let new: Oid = "1".repeat(40).parse().unwrap();
        assert_eq!(changes, [RefChange { git_ref: "refs/heads/main".into(), old: Oid::zero(), new }], "{kind:?}");
    }
}

#[test]
fn a_wrong_or_missing_signature_is_refused_before_the_body_is_read() {
    for kind in ALL {
        let body = b"{ this is no JSON".to_vec();
        let right = headers_for(kind, SECRET, &body);
        assert!(matches!(ask(kind, SECRET, &right, &body), Err(WebhookError::Body(_))), "{kind:?}");
        let wrong = headers_for(kind, b"another secret", &body);
        assert_eq!(ask(kind, SECRET, &wrong, &body), Err(WebhookError::BadSignature), "{kind:?}");
        let missing: Vec<_> = right[1..].to_vec();
        let error = ask(kind, SECRET, &missing, &body).unwrap_err();
        assert!(matches!(error, WebhookError::Header(_)), "{kind:?}: {error}");
        let empty = headers_for(kind, b"", &body);
        assert_eq!(ask(kind, b"", &empty, &body), Err(WebhookError::NotConfigured), "{kind:?}: an empty secret");
        assert_eq!(WebhookError::BadSignature.status(), 401);
    }
}

/// The example of GitHub's documentation.
#[test]
fn the_documented_example_of_github_verifies() {
    assert_eq!(
        sign(b"It's a Secret to Everybody", b"Hello, World!"),
        "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    );
}

#[test]
fn pings_and_other_events_are_answered() {
    let body = b"{\"zen\":\"x\"}";
    let mut headers = headers_for(Kind::Github, SECRET, body);
    headers[1].1 = "ping".into();
    assert_eq!(ask(Kind::Github, SECRET, &headers, body), Ok(Notification::Ping));
    headers[1].1 = "issues".into();
    assert!(
        matches!(ask(Kind::Github, SECRET, &headers, body), Ok(Notification::Ignored(what)) if what.contains("issues"))
    );
    let body = br#"{"delivery":"x"}"#;
    assert_eq!(ask(Kind::Generic, SECRET, &headers_for(Kind::Generic, SECRET, body), body), Ok(Notification::Look));
    let body = push_body("refs/tags/v1");
    let mut headers = headers_for(Kind::Gitlab, SECRET, &body);
    headers[1].1 = "Tag Push Hook".into();
    assert!(
        matches!(ask(Kind::Gitlab, SECRET, &headers, &body), Ok(Notification::Push { delivery, .. }) if delivery == "key-1")
    );
}

#[test]
fn odd_deliveries_and_bodies_are_refused_with_words() {
    let body = push_body("refs/heads/main");
    let mut headers = headers_for(Kind::Github, SECRET, &body);
    headers.push(("content-type", "application/x-www-form-urlencoded".into()));
    let error = ask(Kind::Github, SECRET, &headers, &body).unwrap_err();
    assert!(error.to_string().contains("hint: set the webhook's content type"), "{error}");
    headers.pop();
    headers[2].1 = "two words".into();
    assert_eq!(ask(Kind::Github, SECRET, &headers, &body), Err(WebhookError::Header("X-GitHub-Delivery")));
    headers.remove(2);
    assert_eq!(ask(Kind::Github, SECRET, &headers, &body), Err(WebhookError::Header("X-GitHub-Delivery")));
    let many: Vec<String> =
        (0..=REFS_MAX).map(|n| format!(r#"{{"ref":"refs/heads/{n}","old":"{ZERO}","new":"{ZERO}"}}"#)).collect();
    let body = format!(r#"{{"delivery":"x","refs":[{}]}}"#, many.join(","));
    let result = ask(Kind::Generic, SECRET, &headers_for(Kind::Generic, SECRET, body.as_bytes()), body.as_bytes());
    assert!(matches!(result, Err(WebhookError::Body(_))), "{result:?}");
    let huge = vec![b' '; BODY_MAX_BYTES + 1];
    let result = ask(Kind::Generic, SECRET, &[("x-mainstay-signature", "sha256=00".into())], &huge);
    assert!(matches!(result, Err(WebhookError::Body(_))), "{result:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(kind in 0..5_usize, body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let kind = ALL[kind];
        let _ = ask(kind, SECRET, &headers_for(kind, SECRET, &body), &body);
    }

    #[test]
    fn no_json_makes_a_parser_panic(
        kind in 0..5_usize,
        git_ref in ".{0,40}",
        before in "[0-9a-fA-F]{0,44}",
        after in ".{0,41}",
        sender in proptest::option::of(".{0,300}"),
    ) {
        let kind = ALL[kind];
        let body = if kind == Kind::Generic {
            serde_json::json!({"delivery": git_ref, "refs": [{"ref": git_ref, "old": before, "new": after}]})
        } else {
            serde_json::json!({"ref": git_ref, "before": before, "after": after, "sender": {"login": sender}})
        };
        let body = body.to_string().into_bytes();
        if let Ok(Notification::Push { actor: Some(actor), .. }) = ask(kind, SECRET, &headers_for(kind, SECRET, &body), &body) {
            prop_assert!(actor.chars().count() <= 128 && !actor.chars().any(char::is_control));
        }
    }

    #[test]
    fn a_changed_signature_or_body_is_never_accepted(kind in 0..5_usize, at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let kind = ALL[kind];
        let body = body_for(kind);
        let right = headers_for(kind, SECRET, &body);
        // The credential is the first header; every change of any of its bytes must be refused.
        let mut bytes = right[0].1.clone().into_bytes();
        let place = at.index(bytes.len());
        bytes[place] ^= flip;
        if let Ok(changed) = String::from_utf8(bytes) {
            // Hex digits may be written large or small.
            prop_assume!(!changed.eq_ignore_ascii_case(&right[0].1) || kind == Kind::Gitlab);
            let mut headers = right.clone();
            headers[0].1 = changed;
            let result = ask(kind, SECRET, &headers, &body);
            prop_assert!(matches!(result, Err(WebhookError::BadSignature | WebhookError::Header(_))), "{:?}", result);
        }
        if kind != Kind::Gitlab {
            let mut body = body.clone();
            let place = at.index(body.len());
            body[place] ^= flip;
            prop_assert_eq!(ask(kind, SECRET, &right, &body), Err(WebhookError::BadSignature));
        }
    }
}
