//! Who may do what, who is who, and what may not go: locks, credentials, certificates, and words that help.

use super::*;
use crate::support::store::{KEPT, LOCKED, READER, WRITER, credentials};
use mainstay::backup::repository::{Deleted, Put, RepositoryError};
use mainstay::backup::seal::Receipt;
use std::time::Instant;

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn put(s3: &S3, key: &Key, content: &[u8]) -> Receipt {
    let object = sealed(&sealer(), key, content);
    assert_eq!(s3.put_new(key, &object).await.unwrap(), Put::Stored, "{key}");
    object.receipt
}

#[tokio::test]
async fn what_is_locked_stays() {
    let server = S3Server::shared();
    let locks = S3Settings { object_lock: Some(DAY), piece_lock: Some(Duration::from_secs(3600)), ..server.settings() };
    let ours = s3(S3Settings { bucket: LOCKED.to_owned(), ..locks.clone() }).await;
    let abilities = ours.abilities().await.unwrap();
    assert!(abilities.object_lock && abilities.write_once && abilities.replace_if, "{abilities:?}");
    let large = of(Item::Segment("0000000100000000000000A4".parse().unwrap()));
    let keys = [segment(), manifest(), piece(1), of(Item::Frontier(1))];
    for key in &keys {
        put(&ours, key, b"content").await;
    }
    // In parts too.
    put(&ours, &large, &random(17 << 20)).await;
    for key in keys.iter().chain([&large]) {
        assert_eq!(ours.delete(key).await.unwrap(), Deleted::Locked, "{key}");
        // Not hidden behind a marker either.
        assert!(ours.get(key).await.is_ok(), "{key}");
    }
    let client = server.client();
    for (key, hours) in [(&keys[0], 24), (&large, 24), (&keys[2], 1)] {
        let at = format!("{}/{key}", locks.prefix);
        let head = client.head_object().bucket(LOCKED).key(at).send().await.unwrap();
        assert_eq!(head.object_lock_mode().map(|mode| mode.as_str()), Some("COMPLIANCE"));
        let left = head.object_lock_retain_until_date().unwrap().secs() - jiff::Timestamp::now().as_second();
        assert!((hours * 3600 - 120..=hours * 3600).contains(&left), "{left}");
    }
    // What is not locked goes with all its versions, and its name is free.
    let mark = of(Item::Mark(1));
    put(&ours, &mark, b"{}").await;
    assert_eq!(ours.delete(&mark).await.unwrap(), Deleted::Gone);
    assert_eq!(ours.delete(&mark).await.unwrap(), Deleted::Absent);
    put(&ours, &mark, b"{}").await;
    assert_eq!(ours.delete(&mark).await.unwrap(), Deleted::Gone);
    let versions =
        client.list_object_versions().bucket(LOCKED).prefix(format!("{}/{mark}", locks.prefix)).send().await.unwrap();
    assert_eq!((versions.versions().len(), versions.delete_markers().len()), (0, 0));
    // A lease lives in such a bucket too.
    let lease = Key::Lease(source());
    let object = sealed(&sealer(), &lease, b"{}");
    ours.replace_lease(&lease, &object, None).await.unwrap();
    let seen = ours.lease(&lease).await.unwrap().unwrap();
    ours.replace_lease(&lease, &sealed(&sealer(), &lease, b"{ }"), Some(&seen.version)).await.unwrap();
    assert_eq!(ours.delete(&lease).await.unwrap(), Deleted::Gone);
}

#[tokio::test]
async fn a_lock_that_the_bucket_does_not_have_is_refused() {
    let server = S3Server::shared();
    let ours = s3(S3Settings { object_lock: Some(DAY), ..server.settings() }).await;
    assert!(!ours.abilities().await.unwrap().object_lock);
    let error = ours.put_new(&segment(), &sealed(&sealer(), &segment(), b"x")).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("object lock"), "{error}");
    put(&ours, &piece(1), b"x").await;
}

#[tokio::test]
async fn who_may_only_write_does_not_delete() {
    let server = S3Server::shared();
    let settings = S3Settings { bucket: KEPT.to_owned(), credentials: Some(credentials(WRITER)), ..server.settings() };
    let ours = s3(settings.clone()).await;
    let receipt = put(&ours, &piece(1), b"content").await;
    assert_eq!(ours.delete(&piece(1)).await.unwrap(), Deleted::Locked);
    assert_eq!(ours.receipt(&piece(1)).await.unwrap(), receipt);
    // Other credentials, for deleting alone.
    let all = server.settings().credentials;
    let ours = s3(S3Settings { delete_credentials: all, ..settings }).await;
    assert_eq!(ours.delete(&piece(1)).await.unwrap(), Deleted::Gone);
    assert_eq!(ours.delete(&piece(1)).await.unwrap(), Deleted::Absent);
}

#[tokio::test]
async fn who_may_only_read_restores_and_writes_nothing() {
    let server = S3Server::shared();
    let settings = server.settings();
    let receipt = put(&s3(settings.clone()).await, &piece(1), b"content").await;
    let proxy = StoreProxy::start(&server.address());
    let settings = S3Settings { endpoint: Some(proxy.endpoint()), credentials: Some(credentials(READER)), ..settings };
    let ours = s3(settings).await;
    assert_eq!(ours.list("").await.unwrap().len(), 1);
    assert_eq!(ours.get(&piece(1)).await.unwrap().receipt(), &receipt);
    // Reading finds nothing out by writing.
    assert!(proxy.calls().iter().all(|call| call.method == "GET"), "{:?}", proxy.calls());
    let error = ours.put_new(&piece(2), &sealed(&sealer(), &piece(2), b"x")).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("s3:PutObject"), "{error}");
}

#[tokio::test]
async fn what_cannot_work_says_so_quickly_and_what_to_try() {
    let server = S3Server::shared();
    let usual =
        || S3Settings { trying: Duration::from_secs(60), attempt: Duration::from_secs(30), ..server.settings() };
    let free = crate::support::ports::free();
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("foreign.pem");
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other", "-keyout", "/dev/null", "-out"])
        .arg(&foreign)
        .output();
    assert!(made.unwrap().status.success());
    let (all, wrong) = (crate::support::store::ACCESS_KEY, "wrong-secret");
    let tls = || S3Settings { endpoint: Some(server.tls_endpoint()), ..usual() };
    let cases = [
        (
            "no such bucket",
            S3Settings { bucket: "mainstay-none".to_owned(), ..usual() },
            "make the bucket `mainstay-none`",
        ),
        (
            "unknown key",
            S3Settings { credentials: Some(credentials(("NOBODY", wrong))), ..usual() },
            "access key is not known",
        ),
        (
            "wrong secret",
            S3Settings { credentials: Some(credentials((all, wrong))), ..usual() },
            "secret key is not that",
        ),
        (
            "nobody listens",
            S3Settings { endpoint: Some(format!("http://127.0.0.1:{free}")), ..usual() },
            "is the store running?",
        ),
        ("its own authority", tls(), "with `ca`"),
        ("another authority", S3Settings { ca: Some(foreign.clone()), ..tls() }, "with `ca`"),
    ];
    let shown = cases.map(async |(what, settings, words)| {
        let began = Instant::now();
        let ours = s3(settings).await;
        for error in [
            ours.abilities().await.map(drop).unwrap_err(),
            ours.get(&piece(1)).await.map(drop).unwrap_err(),
            ours.list("").await.map(drop).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.contains("\nhint: ") && text.contains(words), "{what}: {text}");
            let doubt = matches!(error, RepositoryError::Refused { .. } | RepositoryError::Unreachable { .. });
            assert!(doubt && !text.contains(wrong), "{what}: {text}");
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", began.elapsed());
    });
    futures_util::future::join_all(shown).await;
}

#[tokio::test]
async fn without_keys_in_the_settings_the_usual_environment_counts() {
    let server = S3Server::shared();
    let settings = S3Settings { credentials: None, ..server.settings() };
    // SAFETY: nextest gives this test a process of its own, in which nothing else looks at the environment now.
    let set = |name: &str, value: &str| unsafe { std::env::set_var(name, value) };
    set("AWS_EC2_METADATA_DISABLED", "true");
    for file in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
        set(file, "/dev/null");
    }
    let error = s3(settings.clone()).await.list("").await.unwrap_err();
    assert!(matches!(error, RepositoryError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("hint: set AWS_ACCESS_KEY_ID"), "{error}");
    set("AWS_ACCESS_KEY_ID", crate::support::store::ACCESS_KEY);
    set("AWS_SECRET_ACCESS_KEY", crate::support::store::SECRET_KEY);
    put(&s3(settings).await, &piece(1), b"content").await;
}

#[tokio::test]
async fn the_right_authority_is_enough_for_tls() {
    let server = S3Server::shared();
    let settings =
        S3Settings { endpoint: Some(server.tls_endpoint()), ca: Some(server.ca().to_owned()), ..server.settings() };
    let ours = s3(settings).await;
    let receipt = put(&ours, &piece(1), b"content").await;
    assert_eq!(ours.get(&piece(1)).await.unwrap().receipt(), &receipt);
    put(&ours, &segment(), &random(17 << 20)).await;
}
