//! Every kind of message, as it reads: a change of a sentence shows in a snapshot.

use super::*;
use crate::notify::Letter;

fn environment() -> EnvironmentName {
    "production".parse().unwrap()
}

fn at() -> Timestamp {
    "2026-05-04T09:30:00Z".parse().unwrap()
}

fn subject() -> Subject {
    Subject {
        title: "deploy shop 1a2b3c4d to production".into(),
        warning: Some("It still contains 9f8e7d6c, which was rolled back on Friday: /healthz answered 500.".into()),
        repo: "shop".into(),
        git_ref: "refs/heads/main".into(),
        commit: "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d".into(),
        commits: vec!["1a2b3c4d Ana: Cart: count what is in it, also when a guest comes back".into(); 32],
        images: [(
            "api".to_owned(),
            "registry.example.com/shop/api@sha256:4c1f0d8e5b7a69f3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b9"
                .to_owned(),
        )]
        .into(),
        config_diff:
            "--- production/6\n+++ production/7\n@@ -4,7 +4,7 @@\n   api:\n-    replicas: 2\n+    replicas: 3\n     \
                      environment:\n       LEVEL: info & <loud>\n"
                .into(),
        results: vec![("test".into(), "good, 41s".into()), ("load".into(), "p95 84 ms, no errors".into())],
        staging: Some("staging/12 has been healthy for 2 h".into()),
        way_back: "production/6 is put back, in about 4 s; nothing in the schema changed".into(),
        message: Some("Please have a look at the new prices.\nThey are in cents now.".into()),
    }
}

fn asked(link: Option<&str>) -> Message {
    Message::ApprovalAsked {
        approval: ApprovalId(3),
        environment: Some(environment()),
        person: Some("ana".parse().unwrap()),
        subject: subject(),
        link: link.map(str::to_owned),
        required: 2,
        expires_at: at(),
        run: Some(RunId(12)),
        run_url: Some("https://ci.example.com/runs/12".into()),
        how_by_cli: "mainstay approve 3".into(),
    }
}

/// One of each, by a name for its snapshot.
fn all() -> Vec<(&'static str, Message)> {
    let url = || Some("https://ci.example.com/runs/12".to_owned());
    let decided = |verdict, withdrawn| Message::ApprovalDecided {
        approval: ApprovalId(3),
        environment: Some(environment()),
        title: "deploy shop 1a2b3c4d to production".into(),
        person: "ben".parse().unwrap(),
        verdict,
        channel: Channel::Mail,
        withdrawn,
        standing: "1 of 2".into(),
        message: None,
        link: None,
        withdraw_hint: Some("ben can take it back until the deploy starts: mainstay withdraw 3".into()),
        run: Some(RunId(12)),
        run_url: url(),
    };
    let deploy = |status, why: Option<&str>, way_back: Option<&str>| Message::Deploy {
        environment: environment(),
        deploy: DeployId(41),
        release: Some(7),
        status,
        title: "shop 1a2b3c4d".into(),
        why: why.map(str::to_owned),
        back: matches!(status, DeployStatus::RolledBack | DeployStatus::RollbackFailed).then(|| Back {
            bad: 7,
            bad_what: "shop 1a2b3c4d".into(),
            to: 6,
            to_what: "shop 9f8e7d6c".into(),
        }),
        way_back: way_back.map(str::to_owned),
        run: Some(RunId(12)),
        run_url: url(),
    };
    let revert = |url: Option<&str>, why: Option<&str>, needless| Message::Revert {
        environment: environment(),
        deploy: DeployId(41),
        release: 7,
        title: "shop 1a2b3c4d".into(),
        branch: "mainstay/revert-production-7".into(),
        base: "main".into(),
        url: url.map(str::to_owned),
        why: why.map(str::to_owned),
        needless,
        run: Some(RunId(12)),
    };
    let drift = |stage| Message::Drift {
        environment: environment(),
        release: 7,
        differences: vec![
            Drift { item: "api.replicas".into(), wanted: Some("3".into()), found: Some("1".into()) },
            Drift { item: "api.env.DEBUG".into(), wanted: None, found: Some("1".into()) },
        ],
        stage,
        why: (stage == DriftStage::RepairFailed).then(|| "the engine does not answer".into()),
    };
    let source = |concern, words: &str, over| Message::Source {
        source: "shop-db".parse().unwrap(),
        concern,
        words: words.into(),
        since: at(),
        over,
    };
    vec![
        ("asked", asked(Some("https://ci.example.com/approve/0123456789abcdef?proof=feedface"))),
        ("asked_without_link", asked(None)),
        (
            "code",
            Message::ApprovalCode {
                approval: ApprovalId(3),
                person: "ana".parse().unwrap(),
                code: "482913".into(),
                minutes: 10,
                run: None,
            },
        ),
        ("approved", decided(Verdict::Approve, false)),
        ("rejected", decided(Verdict::Reject, false)),
        ("taken_back", decided(Verdict::Approve, true)),
        (
            "expired",
            Message::ApprovalEnded {
                approval: ApprovalId(3),
                environment: None,
                title: "deploy shop 1a2b3c4d to production".into(),
                state: ApprovalState::Expired,
                note: Some("1 of 2 said yes".into()),
                run: Some(RunId(12)),
                run_url: url(),
            },
        ),
        ("verified", deploy(DeployStatus::Verified, None, Some("mainstay rollback production puts production/6 back"))),
        (
            "rolled_back",
            deploy(
                DeployStatus::RolledBack,
                Some("/healthz answered 500 three times in a row, 20 s after the switch"),
                Some("production/6 serves again; 1a2b3c4d is held until a revert or mainstay release-hold production"),
            ),
        ),
        (
            "rollback_failed",
            deploy(
                DeployStatus::RollbackFailed,
                Some("the image of production/6 is gone"),
                Some("mainstay rollback production --to 5"),
            ),
        ),
        ("revert_opened", revert(Some("https://git.example.com/shop/api/pulls/12"), None, false)),
        (
            "revert_given_up",
            revert(None, Some("git.example.com answered 401\nhint: `forge.token` is none that it takes"), false),
        ),
        ("revert_needless", revert(None, Some("the branch has taken 1a2b3c4d back already"), true)),
        (
            "source_not_safe",
            source(
                ConcernKind::NotSafe,
                "nothing new is safe: failed to store a piece: reach s3.example.com: it answered 503",
                false,
            ),
        ),
        (
            "source_cannot_step_down",
            source(
                ConcernKind::CannotStepDown,
                "commits may hang until the repository is back, for Mainstay cannot step down: the role may not set \
                 synchronous_standby_names\nhint: GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO \
                 \"mainstay\";\nhint: GRANT EXECUTE ON FUNCTION pg_reload_conf() TO \"mainstay\";",
                false,
            ),
        ),
        ("source_well_again", source(ConcernKind::Rpo, "what would be lost is well under the `rpo` again", true)),
        ("drift_found", drift(DriftStage::Found)),
        ("drift_repaired", drift(DriftStage::Repaired)),
        ("drift_not_repaired", drift(DriftStage::RepairFailed)),
    ]
}

#[test]
fn every_message_as_a_mail() {
    for (name, message) in all() {
        let letter = Letter::of(&message);
        insta::assert_snapshot!(name, format!("Subject: {}\n\n{}", letter.subject, letter.text));
        // Both forms say the same: each word of ours in the text is in the HTML.
        for fact in message.words().facts {
            assert!(letter.html.contains(fact.0), "{name}: {} is not in the HTML", fact.0);
        }
        // To look at in a browser.
        if let Ok(folder) = std::env::var("MAINSTAY_LETTERS") {
            std::fs::write(format!("{folder}/{name}.html"), &letter.html).unwrap();
        }
    }
}

#[test]
fn every_message_reads_back_from_the_outbox() {
    for (name, message) in all() {
        let stored = message.to_json().unwrap().to_string();
        assert_eq!(serde_json::from_str::<Message>(&stored).unwrap(), message, "{name}");
    }
    // As one was written once: what is in somebody's outbox stays readable.
    let old = r#"{"kind":"approval-decided","approval":3,"environment":null,"title":"t","person":"ben",
                  "verdict":"approve","channel":"cli","standing":"1 of 1","withdraw_hint":null,"run":12,"run_url":null}"#;
    assert!(matches!(serde_json::from_str(old).unwrap(), Message::ApprovalDecided { withdrawn: false, .. }));
}

#[test]
fn codes_and_questions_have_an_end_and_news_has_none() {
    for (name, message) in all() {
        let end = message.useless_after(at());
        match message {
            Message::ApprovalCode { .. } => assert_eq!(end, Some(at() + SignedDuration::from_mins(10))),
            Message::ApprovalAsked { .. } => assert_eq!(end, Some(at())),
            _ => assert_eq!(end, None, "{name}"),
        }
    }
}

#[test]
fn what_is_kept_and_posted_has_no_way_to_decide_in_it() {
    for (name, message) in all() {
        let public = message.without_secrets().to_json().unwrap().to_string();
        assert!(!public.contains("feedface") && !public.contains("482913"), "{name}: {public}");
    }
}

#[test]
fn every_trouble_of_a_source_says_what_to_do() {
    let mut subjects = std::collections::BTreeSet::new();
    for concern in ConcernKind::ALL {
        let message = Message::Source {
            source: "shop-db".parse().unwrap(),
            concern,
            words: "something".into(),
            since: at(),
            over: false,
        };
        let letter = Letter::of(&message);
        assert!(subjects.insert(letter.subject.clone()), "{}", letter.subject);
        assert!(letter.text.contains("What now") && letter.html.contains("What now"), "{}", letter.text);
        // These are told of logical copies, too.
        if matches!(concern, ConcernKind::BackupFailed | ConcernKind::Damaged | ConcernKind::NotSafe) {
            assert!(!letter.text.contains("base backup"), "{}", letter.text);
        }
    }
}
