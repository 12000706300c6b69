//! What an S3 store and the way to it may do wrong, one thing at a time, and what must come of it.

use super::*;
use crate::support::store::BUCKET;
use crate::support::store_proxy::When;
use futures_util::future::join_all;
use mainstay::backup::repository::s3::{Checksums, ReadBack};
use mainstay::backup::repository::{Deleted, Put, Replaced, RepositoryError};
use std::time::Instant;

/// A bucket behind a proxy that behaves until it is told otherwise. What the store can do is found out already.
struct Behind {
    server: S3Server,
    proxy: StoreProxy,
    settings: S3Settings,
    s3: S3,
    seals: Sealer,
}

impl Behind {
    async fn new() -> Behind {
        Behind::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut S3Settings)) -> Behind {
        let server = S3Server::shared();
        let proxy = StoreProxy::start(&server.address());
        let mut settings = S3Settings { endpoint: Some(proxy.endpoint()), ..server.settings() };
        change(&mut settings);
        let s3 = s3(settings.clone()).await;
        s3.abilities().await.unwrap();
        proxy.forget();
        Behind { server, proxy, settings, s3, seals: sealer() }
    }

    fn sealed(&self, key: &Key, content: &[u8]) -> Sealed {
        sealed(&self.seals, key, content)
    }

    /// Stores one small object with this rule in force; what was said, and how often the store was asked to put and told
    /// to look.
    async fn put(&self, rule: Rule) -> (Result<Put, RepositoryError>, usize, usize) {
        self.proxy.rule(rule);
        let key = piece(1);
        let put = self.s3.put_new(&key, &self.sealed(&key, b"content")).await;
        self.proxy.calm();
        if put.is_ok() {
            assert!(self.s3.get(&key).await.is_ok());
        }
        (put, self.proxy.count("PUT", "/piece/"), self.proxy.count("HEAD", "/piece/"))
    }
}

fn stored_after((put, puts, heads): (Result<Put, RepositoryError>, usize, usize)) -> (usize, usize) {
    assert_eq!(put.unwrap(), Put::Stored);
    (puts, heads)
}

#[tokio::test]
async fn r02_a_200_counts_when_it_names_the_digest_of_what_is_stored() {
    // The store says which digest it has: one request, no more.
    let behind = Behind::new().await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::Delay(Duration::ZERO))).await), (1, 0));
    // It does not: it is asked.
    let behind = Behind::new().await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::NoChecksum)).await), (1, 1));
    // With MD5 it is the ETag that names it.
    let behind = Behind::with(|settings| settings.checksums = Checksums::WhenRequired).await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::NoChecksum)).await), (1, 0));
    // It says 200 and has nothing: stored in the end, not believed before.
    let behind = Behind::new().await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::Pretend).method("PUT").times(2)).await), (3, 2));
}

#[tokio::test]
async fn r02_a_200_for_ever_without_an_object_is_an_error() {
    let behind = Behind::with(|settings| settings.trying = Duration::from_secs(1)).await;
    let (put, puts, _) = behind.put(Rule::new(Fault::Pretend).method("PUT")).await;
    let error = put.unwrap_err();
    assert!(matches!(error, RepositoryError::Unreachable { .. }), "{error:?}");
    assert!(puts > 1 && error.to_string().contains("has nothing of that name"), "{error}");
}

#[tokio::test]
async fn r02_bytes_that_changed_on_their_way_are_sent_again() {
    for checksums in [Checksums::WhenSupported, Checksums::WhenRequired] {
        let behind = Behind::with(|settings| settings.checksums = checksums).await;
        let (puts, _) = stored_after(behind.put(Rule::new(Fault::FlipSent).method("PUT").times(1)).await);
        assert_eq!(puts, 2, "{checksums:?}");
    }
}

#[tokio::test]
async fn r02_read_back_asks_as_much_as_it_is_told_to() {
    let behind = Behind::with(|settings| settings.read_back = ReadBack::Head).await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::Delay(Duration::ZERO))).await), (1, 1));
    let behind = Behind::with(|settings| settings.read_back = ReadBack::Whole).await;
    let key = piece(1);
    assert_eq!(behind.s3.put_new(&key, &behind.sealed(&key, b"content")).await.unwrap(), Put::Stored);
    assert_eq!(behind.proxy.count("GET", "/piece/"), 1);
    // A store that keeps other bytes than it was given, and has the right length and digest to show.
    behind.proxy.rule(Rule::new(Fault::Flip).method("GET").key("/piece/"));
    let key = piece(2);
    let error = behind.s3.put_new(&key, &behind.sealed(&key, b"content")).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error:?}");
}

#[tokio::test]
async fn r02_a_lost_answer_is_asked_for_and_not_guessed() {
    let behind = Behind::new().await;
    // Stored, unheard; sent again, taken; looked at: ours.
    assert_eq!(stored_after(behind.put(Rule::new(Fault::LoseAnswer).method("PUT").times(1)).await), (2, 1));
    let behind = Behind::new().await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::CutAnswer).method("PUT").times(1)).await), (2, 1));
    let behind = Behind::new().await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::LoseAnswer).method("PUT").times(3)).await), (4, 1));
    let behind = Behind::new().await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::CutRequest).method("PUT").times(2)).await), (3, 0));
    // The answer to the question is lost too.
    let behind = Behind::new().await;
    behind.proxy.rule(Rule::new(Fault::LoseAnswer).method("HEAD").times(2));
    assert_eq!(stored_after(behind.put(Rule::new(Fault::LoseAnswer).method("PUT").times(1)).await), (2, 3));
}

#[tokio::test]
async fn r02_a_lost_answer_to_a_write_that_came_second_says_that_another_was_first() {
    let behind = Behind::new().await;
    let key = piece(1);
    let first = behind.sealed(&key, b"content");
    let theirs = s3(S3Settings { endpoint: Some(behind.server.endpoint()), ..behind.settings.clone() }).await;
    assert_eq!(theirs.put_new(&key, &first).await.unwrap(), Put::Stored);
    let (put, puts, heads) = behind.put(Rule::new(Fault::LoseAnswer).method("PUT").times(1)).await;
    assert_eq!((put.unwrap(), puts, heads), (Put::Exists(first.receipt), 2, 1));
}

#[tokio::test]
async fn r02_a_412_is_compared_and_a_409_is_tried_again() {
    // Taken, says the store, and has nothing: a lie, or deleted since.
    let behind = Behind::new().await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::Answer(412)).method("PUT").times(2)).await), (3, 2));
    let behind = Behind::new().await;
    assert_eq!(stored_after(behind.put(Rule::new(Fault::Answer(409)).method("PUT").times(3)).await), (4, 0));
    let behind = Behind::with(|settings| settings.trying = Duration::from_secs(1)).await;
    let (put, ..) = behind.put(Rule::new(Fault::Answer(409)).method("PUT")).await;
    assert!(matches!(put, Err(RepositoryError::Unreachable { .. })), "{put:?}");
}

#[tokio::test]
async fn r02_what_passes_is_tried_until_it_has() {
    for fault in [
        Fault::Answer(500),
        Fault::Answer(503),
        Fault::Answer(429),
        Fault::AnswerCode(400, "RequestTimeout"),
        Fault::AnswerCode(502, ""),
        Fault::CutBefore,
    ] {
        let behind = Behind::new().await;
        let (puts, _) = stored_after(behind.put(Rule::new(fault.clone()).method("PUT").times(3)).await);
        assert_eq!(puts, 4, "{fault:?}");
    }
    // A store that hears and does not answer.
    let behind = Behind::with(|settings| settings.attempt = Duration::from_millis(300)).await;
    let (puts, _) =
        stored_after(behind.put(Rule::new(Fault::Delay(Duration::from_secs(2))).method("PUT").times(1)).await);
    assert_eq!(puts, 2);
}

#[tokio::test]
async fn r02_tries_end_when_their_time_is_used_up() {
    let behind = Behind::with(|settings| settings.trying = Duration::from_millis(1_500)).await;
    let began = Instant::now();
    let (put, puts, _) = behind.put(Rule::new(Fault::Answer(503))).await;
    let error = put.unwrap_err();
    assert!(matches!(error, RepositoryError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("tried {puts} times")), "{error}");
    assert!((3..60).contains(&puts) && began.elapsed() < Duration::from_secs(6), "{puts} in {:?}", began.elapsed());
    behind.proxy.rule(Rule::new(Fault::Answer(503)));
    let key = piece(1);
    // No doubt is absence, and no part is a listing.
    for error in [
        behind.s3.get(&key).await.unwrap_err(),
        behind.s3.receipt(&key).await.unwrap_err(),
        behind.s3.list("").await.unwrap_err(),
        behind.s3.delete(&key).await.unwrap_err(),
        behind.s3.lease(&Key::Lease(source())).await.unwrap_err(),
    ] {
        assert!(matches!(error, RepositoryError::Unreachable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn only_the_store_s_own_word_makes_an_object_absent() {
    let behind = Behind::with(|settings| settings.trying = Duration::from_millis(300)).await;
    let key = piece(1);
    behind.s3.put_new(&key, &behind.sealed(&key, b"content")).await.unwrap();
    for fault in [
        // Some machine on the way, a bucket that went, rights that went.
        Fault::AnswerCode(404, ""),
        Fault::AnswerCode(404, "NoSuchBucket"),
        Fault::AnswerCode(404, "NotFound"),
        Fault::AnswerCode(403, "AccessDenied"),
        Fault::AnswerCode(410, "Gone"),
        Fault::AnswerCode(301, "PermanentRedirect"),
    ] {
        behind.proxy.rule(Rule::new(fault.clone()));
        for error in [
            behind.s3.get(&key).await.map(drop).unwrap_err(),
            behind.s3.receipt(&key).await.map(drop).unwrap_err(),
            behind.s3.lease(&key).await.map(drop).unwrap_err(),
            behind.s3.list("").await.map(drop).unwrap_err(),
            behind.s3.delete(&key).await.map(drop).unwrap_err(),
        ] {
            assert!(matches!(error, RepositoryError::Refused { .. }), "{fault:?}: {error:?}");
        }
        behind.proxy.calm();
    }
    // A HEAD that answers 404 by mistake is not believed either.
    behind.proxy.rule(Rule::new(Fault::Answer(404)).method("HEAD"));
    let error = behind.s3.receipt(&key).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn what_somebody_hid_behind_a_delete_marker_is_not_absent() {
    let behind = Behind::new().await;
    let key = segment();
    behind.s3.put_new(&key, &behind.sealed(&key, b"content")).await.unwrap();
    // As Amazon says it; the store of these tests does not say why it has none.
    behind.proxy.rule(Rule::new(Fault::Hide).key("/wal/"));
    for error in [
        behind.s3.get(&key).await.map(drop).unwrap_err(),
        behind.s3.receipt(&key).await.map(drop).unwrap_err(),
        behind.s3.delete(&key).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, RepositoryError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains("remove the delete marker"), "{error}");
    }
}

#[tokio::test]
async fn what_is_not_what_was_stored_is_fetched_again_and_then_damaged() {
    let behind = Behind::new().await;
    let key = piece(1);
    let object = behind.sealed(&key, &random(10_000));
    behind.s3.put_new(&key, &object).await.unwrap();
    for fault in [Fault::Flip, Fault::Shorten(7), Fault::Shorten(20_000), Fault::CutAnswer] {
        behind.proxy.rule(Rule::new(fault.clone()).method("GET").times(1));
        assert_eq!(behind.s3.get(&key).await.unwrap().bytes(), &object.bytes, "{fault:?}");
        behind.proxy.calm();
    }
    behind.proxy.rule(Rule::new(Fault::Flip).method("GET"));
    let error = behind.s3.get(&key).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error:?}");
    behind.proxy.calm();

    // Behind our back: other bytes of the same length with the receipt of the right ones; one without a receipt; a short one.
    let client = behind.server.client();
    let at = |key: &Key| format!("{}/{key}", behind.settings.prefix);
    let head = client.head_object().bucket(BUCKET).key(at(&key)).send().await.unwrap();
    for (number, bytes, metadata) in [
        (2, random(object.bytes.len()), head.metadata().cloned()),
        (3, object.bytes.to_vec(), None),
        (4, object.bytes[1..].to_vec(), head.metadata().cloned()),
    ] {
        let key = piece(number);
        let put = client.put_object().bucket(BUCKET).key(at(&key)).set_metadata(metadata).body(bytes.into());
        put.send().await.unwrap();
        let error = behind.s3.get(&key).await.unwrap_err();
        assert!(matches!(error, RepositoryError::Damaged { .. }), "{error:?}");
        // And is not taken for what somebody wants to store.
        let put = behind.s3.put_new(&key, &behind.sealed(&key, b"content")).await;
        assert!(!matches!(put, Ok(Put::Stored)), "{put:?}");
    }
}

#[tokio::test]
async fn a_store_without_conditional_writes_is_looked_at_before_and_after() {
    let server = S3Server::shared();
    let proxy = StoreProxy::start(&server.address());
    for header in ["if-none-match", "if-match"] {
        proxy.rule(Rule::new(Fault::Answer(501)).method("PUT").header(header));
    }
    let settings = S3Settings { endpoint: Some(proxy.endpoint()), ..server.settings() };
    let (ours, seals) = (s3(settings).await, sealer());
    let abilities = ours.abilities().await.unwrap();
    assert!(!abilities.write_once && !abilities.replace_if, "{abilities:?}");

    let key = piece(1);
    let first = sealed(&seals, &key, b"content");
    proxy.rule(Rule::new(Fault::LoseAnswer).method("PUT").key("/piece/").times(1));
    proxy.forget();
    assert_eq!(ours.put_new(&key, &first).await.unwrap(), Put::Stored);
    // Before, not there; after the lost answer, ours: it is sent once.
    assert_eq!((proxy.count("PUT", "/piece/"), proxy.count("HEAD", "/piece/")), (1, 2));
    assert_eq!(
        ours.put_new(&key, &sealed(&seals, &key, b"content")).await.unwrap(),
        Put::Exists(first.receipt.clone())
    );
    assert_eq!(ours.get(&key).await.unwrap().bytes(), &first.bytes);
    let lease = Key::Lease(source());
    let error = ours.replace_lease(&lease, &sealed(&seals, &lease, b"{}"), None).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn what_a_store_can_do_is_asked_once_and_its_mishaps_are_no_answer() {
    let server = S3Server::shared();
    let proxy = StoreProxy::start(&server.address());
    proxy.rule(Rule::new(Fault::LoseAnswer).method("PUT").every(2));
    proxy.rule(Rule::new(Fault::Answer(503)).every(3));
    let ours = s3(S3Settings { endpoint: Some(proxy.endpoint()), ..server.settings() }).await;
    let abilities = join_all((0..4).map(|_| ours.abilities())).await;
    assert!(
        abilities.iter().all(|found| found.as_ref().is_ok_and(|found| found.write_once && found.replace_if)),
        "{abilities:?}"
    );
    let (asked, _) = proxy.told();
    ours.abilities().await.unwrap();
    assert_eq!(proxy.told().0, asked);
    assert_eq!(ours.list("").await.unwrap(), [], "what it is tried on is no object");
}

#[tokio::test]
async fn a_lease_whose_answer_was_lost_is_still_held() {
    let behind = Behind::new().await;
    let key = Key::Lease(source());
    let (first, second) = (behind.sealed(&key, b"{\"holder\":1}"), behind.sealed(&key, b"{\"holder\":2}"));
    behind.proxy.rule(Rule::new(Fault::LoseAnswer).method("PUT").times(1));
    assert_eq!(behind.s3.replace_lease(&key, &first, None).await.unwrap(), Replaced::Done);
    let seen = behind.s3.lease(&key).await.unwrap().unwrap();
    behind.proxy.calm();
    behind.proxy.rule(Rule::new(Fault::LoseAnswer).method("PUT").times(2));
    assert_eq!(behind.s3.replace_lease(&key, &second, Some(&seen.version)).await.unwrap(), Replaced::Done);
    assert_eq!(behind.s3.delete(&key).await.unwrap(), Deleted::Gone);
    let seen = behind.s3.lease(&key).await.unwrap();
    assert_eq!(seen, None);
    assert_eq!(behind.s3.replace_lease(&key, &first, Some("\"gone\"")).await.unwrap(), Replaced::Changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r02_a_listing_of_thousands_is_whole_or_an_error() {
    const MANY: usize = 2_010;
    let behind = Behind::with(|settings| settings.trying = Duration::from_millis(700)).await;
    let client = behind.server.client();
    let names: Vec<String> = (0..MANY).map(|number| format!("shop-db/7/frontier/{number:010}.json")).collect();
    // Plain objects do: a listing looks at names.
    for some in names.chunks(64) {
        let puts = some.iter().map(|name| {
            let put = client.put_object().bucket(BUCKET).key(format!("{}/{name}", behind.settings.prefix));
            put.body(Vec::from(*b"{}").into()).send()
        });
        assert!(join_all(puts).await.iter().all(Result::is_ok));
    }
    let listed = behind.s3.list("shop-db/").await.unwrap();
    assert!(listed.iter().map(|listed| &listed.name).eq(&names), "{} of {MANY}", listed.len());
    assert_eq!(behind.proxy.count("GET", ""), 3);

    let page = |fault: Fault| Rule::new(fault).method("GET").query("continuation-token");
    behind.proxy.rule(page(Fault::Answer(500)).times(2));
    assert_eq!(behind.s3.list("shop-db/").await.unwrap().len(), MANY);
    for fault in [Fault::Answer(500), Fault::CutAnswer, Fault::CutBefore, Fault::Shorten(2_000), Fault::Answer(403)] {
        behind.proxy.calm();
        behind.proxy.rule(page(fault.clone()));
        let error = behind.s3.list("shop-db/").await.map(|listed| listed.len());
        assert!(error.is_err(), "{fault:?}: {error:?}");
    }
}

/// Parts of the object `segment`, on the wire.
const PART: &str = "partNumber=";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_repeated_one_by_one_and_a_few_at_a_time() {
    let behind = Behind::with(|settings| settings.attempt = Duration::from_secs(30)).await;
    // Not encrypted: this is about parts, and the bytes are many.
    let key = manifest();
    let object = behind.sealed(&key, &random(41 << 20));
    behind.proxy.rule(Rule::new(Fault::Answer(503)).query("partNumber=2").times(2));
    behind.proxy.rule(Rule::new(Fault::LoseAnswer).query("partNumber=5").times(1));
    behind.proxy.rule(Rule::new(Fault::LoseAnswer).method("POST").query("uploadId").times(1));
    behind.proxy.rule(Rule::new(Fault::Delay(Duration::from_millis(400))).query(PART));
    assert_eq!(behind.s3.put_new(&key, &object).await.unwrap(), Put::Stored);
    let parts = behind.proxy.calls().iter().filter(|call| call.query.contains(PART)).count();
    assert_eq!(parts, 6 + 3);
    assert!((2..=4).contains(&behind.proxy.most_at_once()), "{}", behind.proxy.most_at_once());
    behind.proxy.calm();
    behind.proxy.forget();
    behind.proxy.rule(Rule::new(Fault::CutAnswer).method("GET").from(3).times(2));
    behind.proxy.rule(Rule::new(Fault::Delay(Duration::from_millis(50))));
    let back = behind.s3.get(&key).await.unwrap();
    assert!(back.bytes() == &object.bytes && back.receipt() == &object.receipt);
    assert_eq!(behind.proxy.count("GET", ""), 6 + 2);
    assert!((2..=4).contains(&behind.proxy.most_at_once()), "{}", behind.proxy.most_at_once());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_fails_or_is_given_up_leaves_nothing_behind() {
    let behind = Behind::with(|settings| settings.trying = Duration::from_millis(500)).await;
    let key = manifest();
    let object = behind.sealed(&key, &random(17 << 20));
    let client = behind.server.client();
    let left = || async {
        let listed =
            client.list_multipart_uploads().bucket(BUCKET).prefix(&behind.settings.prefix).send().await.unwrap();
        listed.uploads().len()
    };
    for rule in [
        Rule::new(Fault::Answer(403)).query("partNumber=2"),
        Rule::new(Fault::Answer(503)).query("partNumber=3"),
        Rule::new(Fault::Answer(403)).method("POST").query("uploadId"),
    ] {
        behind.proxy.rule(rule.clone());
        assert!(behind.s3.put_new(&key, &object).await.is_err(), "{rule:?}");
        assert_eq!(left().await, 0, "{rule:?}");
        behind.proxy.calm();
    }
    // The caller goes away in the middle.
    behind.proxy.rule(Rule::new(Fault::Delay(Duration::from_millis(700))).query(PART));
    let given_up = tokio::time::timeout(Duration::from_millis(400), behind.s3.put_new(&key, &object)).await;
    assert!(given_up.is_err());
    let end = Instant::now() + Duration::from_secs(10);
    while left().await > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(left().await, 0);
    assert!(matches!(behind.s3.get(&key).await, Err(RepositoryError::Absent { .. })));
    behind.proxy.calm();
    // Another one's object comes in between: the last call is refused, and nothing of ours stays.
    behind.proxy.rule(Rule::new(Fault::Delay(Duration::from_millis(400))).query(PART));
    let small = behind.sealed(&key, b"theirs");
    let theirs = s3(S3Settings { endpoint: Some(behind.server.endpoint()), ..behind.settings.clone() }).await;
    let (put, _) = tokio::join!(behind.s3.put_new(&key, &object), async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(theirs.put_new(&key, &small).await.unwrap(), Put::Stored);
    });
    assert_eq!(put.unwrap(), Put::Exists(small.receipt));
    assert_eq!(left().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_a_put_of_a_minute_holds_up_nobody_else() {
    let behind = Behind::with(|settings| settings.attempt = Duration::from_secs(90)).await;
    let slow = segment();
    behind.proxy.rule(Rule::new(Fault::Delay(Duration::from_secs(60))).method("PUT").key("/wal/"));
    let (s3, object) = (behind.s3.clone(), behind.sealed(&slow, b"slow"));
    let waiting = tokio::spawn(async move { s3.put_new(&slow, &object).await });
    while behind.proxy.count("PUT", "/wal/") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    for number in 0..20 {
        let key = piece(number);
        assert_eq!(behind.s3.put_new(&key, &behind.sealed(&key, b"content")).await.unwrap(), Put::Stored);
        behind.s3.get(&key).await.unwrap();
    }
    assert_eq!(behind.s3.list("").await.unwrap().len(), 20);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_kills_at_the_call_it_is_told_before_or_after_the_store_acts() {
    for (when, n, there) in [(When::Before, 2, false), (When::After, 3, true)] {
        let behind = Behind::with(|settings| settings.trying = Duration::ZERO).await;
        let mut victim = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        behind.proxy.kill_at(nix::unistd::Pid::from_raw(victim.id() as i32), n, when);
        for number in 1..n as u64 {
            let key = piece(number);
            behind.s3.put_new(&key, &behind.sealed(&key, b"x")).await.unwrap();
            assert!(victim.try_wait().unwrap().is_none());
        }
        let key = piece(n as u64);
        assert!(behind.s3.put_new(&key, &behind.sealed(&key, b"x")).await.is_err());
        assert!(!victim.wait().unwrap().success());
        let (calls, at) = behind.proxy.told();
        assert!(calls == n && at.as_ref().is_some_and(|at| at.starts_with(&format!("{when:?} PUT"))), "{calls} {at:?}");
        behind.proxy.calm();
        assert_eq!(behind.s3.get(&key).await.is_ok(), there);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_dies_is_an_error_and_no_absence() {
    let mut server = S3Server::own();
    let settings = S3Settings { trying: Duration::from_secs(1), ..server.settings() };
    let (ours, seals) = (s3(settings).await, sealer());
    let key = piece(1);
    let object = sealed(&seals, &key, b"content");
    assert_eq!(ours.put_new(&key, &object).await.unwrap(), Put::Stored);
    server.kill();
    let began = Instant::now();
    for error in [
        ours.get(&key).await.map(drop).unwrap_err(),
        ours.put_new(&key, &object).await.map(drop).unwrap_err(),
        ours.list("").await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, RepositoryError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("hint: is http://127.0.0.1"), "{error}");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
