//! Promise: what people say counts for exactly what they were shown, once, and only if it was them: over mailed links that
//! are replayed, prefetched, forwarded, guessed, late, or whose reader has lost the role; over signed webhooks; over the API
//! and the command line; and when several people speak at once.

use crate::api_daemon::{ANAS_TOKEN, Daemon, asked, rules};
use crate::people::{Team, good};
use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use mainstay::approval::{Answer, ApprovalError, Approvals, Clock, NotGranted, Refusal, Rules, webhook};
use mainstay::config::daemon::notify::Inbound;
use mainstay::config::secret::Secret;
use mainstay::model::approval::{ApprovalRequest, ApprovalState, Channel, Excluded, Verdict};
use mainstay::model::input::{Input, InputKind};
use mainstay::model::{ApprovalId, Asker, PersonName, Way};
use mainstay::store::Store;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// A web room with a store, whose clock can be set.
struct Lab {
    daemon: Daemon,
    wall: Arc<Mutex<Timestamp>>,
    http: reqwest::Client,
}

/// What a browser saw.
struct Seen {
    status: u16,
    text: String,
}

fn name(text: &str) -> PersonName {
    PersonName::new(text).unwrap()
}

impl Lab {
    async fn new() -> Lab {
        Self::by(rules()).await
    }

    async fn by(rules: Rules) -> Lab {
        let wall = Arc::new(Mutex::new("2026-03-01T10:00:00Z".parse::<Timestamp>().unwrap()));
        let told = Arc::clone(&wall);
        let daemon = Daemon::with(rules, Clock::new(move || *told.lock().unwrap())).await;
        Lab { daemon, wall, http: reqwest::Client::new() }
    }

    fn approvals(&self) -> &Approvals {
        &self.daemon.approvals
    }

    /// Sets the clock on, or back.
    fn pass(&self, minutes: i64) {
        let mut wall = self.wall.lock().unwrap();
        *wall = wall.checked_add(SignedDuration::from_mins(minutes)).unwrap();
    }

    async fn ask(&self, request: ApprovalRequest) -> ApprovalId {
        self.approvals().ensure(request).await.unwrap()
    }

    async fn state(&self, id: ApprovalId) -> ApprovalState {
        self.approvals().view(id).await.unwrap().unwrap().state
    }

    fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.daemon.state().join("mainstay.db")).unwrap()
    }

    /// Messages to that person, the oldest first.
    fn mailbox(&self, person: &str) -> Vec<Value> {
        let db = self.database();
        let sql = "SELECT message FROM outbox WHERE channel = 'mail' AND recipient = ?1 ORDER BY id";
        let mut query = db.prepare(sql).unwrap();
        let rows = query.query_map([person], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|text| serde_json::from_str(&text.unwrap()).unwrap()).collect()
    }

    /// The path of the link that was mailed to them last.
    fn link(&self, person: &str) -> String {
        let mails = self.mailbox(person);
        let link = mails.iter().rev().find_map(|mail| mail["link"].as_str()).expect("no link was mailed");
        link.strip_prefix("https://ci.example.com").unwrap().to_owned()
    }

    /// The digits that were mailed to them last.
    fn code(&self, person: &str) -> String {
        let mails = self.mailbox(person);
        mails.iter().rev().find_map(|mail| mail["code"].as_str()).expect("no digits were mailed").to_owned()
    }

    async fn get(&self, path: &str) -> Seen {
        self.send(Method::GET, path, &[]).await
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Seen {
        self.send(Method::POST, path, form).await
    }

    async fn send(&self, method: Method, path: &str, form: &[(&str, &str)]) -> Seen {
        let mut request = self.http.request(method.clone(), self.daemon.url(path));
        if method == Method::POST {
            let encode = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
            let body: Vec<String> = form.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
            request = request.header("content-type", "application/x-www-form-urlencoded").body(body.join("&"));
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let headers = answer.headers().clone();
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        assert_eq!(headers["cache-control"], "no-store");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"), "{policy}");
        let text = answer.text().await.unwrap();
        assert!(!text.contains("<script") && !text.contains("http://") && !text.contains("https://"), "{text}");
        Seen { status, text }
    }

    /// Both forms, with the digits from the mailbox.
    async fn say(&self, person: &str, path: &str, verdict: &str) -> Seen {
        let asked = self.post(path, &[("verdict", verdict)]).await;
        assert_eq!(asked.status, 200, "{}", asked.text);
        let code = self.code(person);
        self.post(path, &[("verdict", verdict), ("code", &code)]).await
    }

    /// Everything in the database that an approval could change.
    fn dump(&self) -> Vec<String> {
        let db = self.database();
        let mut out = Vec::new();
        for table in ["approvals", "decisions", "links", "heard", "outbox", "audit"] {
            let mut query = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
            let columns = query.column_count();
            let mut rows = query.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let cells: Vec<String> = (0..columns).map(|n| format!("{:?}", row.get_ref(n).unwrap())).collect();
                out.push(format!("{table}: {}", cells.join(" ")));
            }
        }
        out
    }

    /// How often something stands in the audit.
    async fn acts(&self, act: &str) -> Vec<Value> {
        let entries = self.daemon.store.list_audit(None, 500).await.unwrap();
        assert!(self.daemon.store.verify_audit(None).await.unwrap().broken.is_none());
        let entries = entries.into_iter().filter(|entry| entry.act == act);
        entries.map(|entry| json!({ "who": entry.who, "way": entry.way, "details": entry.details })).collect()
    }
}

fn says(person: &str, verdict: Verdict) -> Answer {
    Answer { person: name(person), verdict, channel: Channel::Cli, inputs: Default::default(), message: None }
}

async fn decide(
    approvals: &Approvals,
    id: ApprovalId,
    person: &str,
    verdict: Verdict,
) -> Result<ApprovalState, Refusal> {
    let by = Asker::person(name(person), Way::Token);
    match approvals.decide(id, says(person, verdict), &by).await {
        Ok(view) => Ok(view.state),
        Err(ApprovalError::Refused(refusal)) => Err(refusal),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_link_shows_on_get_and_decides_with_the_mailed_digits_once() {
    let lab = Lab::new().await;
    let id = lab.ask(asked("a", &["managers"], 2)).await;
    assert_eq!(lab.ask(asked("a", &["managers"], 2)).await, id, "the same key is the same request");
    assert!(lab.mailbox("cem").is_empty() && lab.mailbox("ben").len() == 1 && lab.mailbox("ana").len() == 1);
    let link = lab.link("ana");
    let page = lab.get(&link).await;
    assert_eq!(page.status, 200);
    for words in ["deploy shop 1a2b3c4d to production", "mainstay rollback production", "0 of 2", "Approve", "Reject"] {
        assert!(page.text.contains(words), "{words} is not in\n{}", page.text);
    }
    let asked = lab.post(&link, &[("verdict", "approve"), ("message", "looks\nright")]).await;
    assert!(asked.status == 200 && asked.text.contains("Six digits were mailed to ana"), "{}", asked.text);
    assert_eq!(lab.state(id).await, ApprovalState::Open);
    let code = lab.code("ana");
    assert!(!asked.text.contains(&code), "the page shows the digits");
    // Without the message the answer is another one.
    let wrong = lab.post(&link, &[("verdict", "approve"), ("code", &code)]).await;
    assert_eq!(wrong.status, 403);
    let done = lab.post(&link, &[("verdict", "approve"), ("message", "looks\r\nright"), ("code", &code)]).await;
    assert!(done.status == 200 && done.text.contains("You approved it"), "{}", done.text);

    // Replays of everything change nothing.
    let before = lab.dump();
    for _ in 0..5 {
        assert_eq!(lab.get(&link).await.status, 410);
        assert_eq!(
            lab.post(&link, &[("verdict", "approve"), ("message", "looks\nright"), ("code", &code)]).await.status,
            410
        );
        assert_eq!(lab.post(&link, &[("verdict", "reject")]).await.status, 410);
    }
    assert_eq!(lab.dump(), before);
    let view = lab.approvals().view(id).await.unwrap().unwrap();
    assert_eq!((view.state, view.counted.len(), view.decisions.len()), (ApprovalState::Open, 1, 1));
    assert_eq!(view.decisions[0].message.as_deref(), Some("looks\nright"));

    // Everybody is told, and the giver has a way back, which is a new link.
    let told = lab.mailbox("ben").pop().unwrap();
    assert_eq!((told["kind"].as_str(), told["standing"].as_str()), (Some("approval-decided"), Some("1 of 2")));
    assert!(told["link"].is_null() && told["withdraw_hint"].is_null());
    let back = lab.link("ana");
    assert_ne!(back, link);
    assert!(lab.get(&back).await.text.contains("Take it back"));
    let done = lab.say("ana", &back, "withdraw").await;
    assert!(done.status == 200 && done.text.contains("You took back your answer"), "{}", done.text);
    assert!(lab.approvals().view(id).await.unwrap().unwrap().counted.is_empty());
    assert_eq!(lab.say("ana", &lab.link("ana"), "approve").await.status, 200);
    assert_eq!(lab.say("ben", &lab.link("ben"), "approve").await.status, 200);
    assert_eq!(lab.state(id).await, ApprovalState::Granted);
    let acts = (lab.acts("approve").await, lab.acts("withdraw").await, lab.acts("approval-granted").await);
    assert_eq!((acts.0.len(), acts.1.len(), acts.2.len()), (3, 1, 1));
    assert_eq!((acts.0[0]["who"].as_str(), acts.0[0]["way"].as_str()), (Some("ben"), Some("mail")));
    lab.approvals().use_for(id, "binding of a").await.unwrap();
    assert_eq!(lab.get(&lab.link("ben")).await.status, 410);
}

#[tokio::test]
async fn looking_changes_nothing_whatever_is_sent_along() {
    let lab = Lab::new().await;
    lab.ask(asked("a", &["managers"], 1)).await;
    let link = lab.link("ana");
    assert_eq!(lab.post(&link, &[("verdict", "approve")]).await.status, 200);
    let code = lab.code("ana");
    let before = lab.dump();
    let query = format!("{link}?verdict=approve&code={code}&_method=POST");
    for path in [&link, &query] {
        for method in [Method::GET, Method::HEAD] {
            for (header, value) in [
                ("x-http-method-override", "POST"),
                ("x-method-override", "POST"),
                ("purpose", "prefetch"),
                ("sec-purpose", "prefetch;prerender"),
                ("content-type", "application/x-www-form-urlencoded"),
                ("user-agent", "a mail scanner"),
            ] {
                let body = format!("verdict=approve&code={code}");
                let request = lab.http.request(method.clone(), lab.daemon.url(path)).header(header, value).body(body);
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK, "{method} {path} {header}");
                assert_eq!(answer.headers()["referrer-policy"], "no-referrer");
                assert_eq!(answer.text().await.unwrap().is_empty(), method == Method::HEAD);
            }
        }
        for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let answer = lab.http.request(method, lab.daemon.url(path)).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        }
    }
    assert_eq!(lab.dump(), before, "a look changed something");
}

#[tokio::test]
async fn whoever_it_was_forwarded_to_cannot_answer() {
    let lab = Lab::new().await;
    let id = lab.ask(asked("a", &["managers"], 1)).await;
    let link = lab.link("ana");
    // Cem got the mail from Ana. The digits go to her all the same.
    let page = lab.post(&link, &[("verdict", "approve")]).await;
    assert_eq!(page.status, 200);
    assert!(lab.mailbox("cem").is_empty() && !page.text.contains("ana@example.com"), "{}", page.text);
    let code = lab.code("ana");
    let wrong = if code == "000000" { "000001" } else { "000000" };
    for left in (1..5).rev() {
        let seen = lab.post(&link, &[("verdict", "approve"), ("code", wrong)]).await;
        assert_eq!(seen.status, 403);
        assert!(seen.text.contains(&format!("{left} ")), "{}", seen.text);
        // New digits do not bring new tries.
        if left == 3 {
            assert_eq!(lab.post(&link, &[("verdict", "approve")]).await.status, 200);
        }
    }
    assert_eq!(lab.post(&link, &[("verdict", "approve"), ("code", "")]).await.status, 429);
    let code = lab.code("ana");
    assert_eq!(
        lab.post(&link, &[("verdict", "approve"), ("code", &code)]).await.status,
        429,
        "the right digits came too late"
    );
    assert_eq!((lab.get(&link).await.status, lab.state(id).await), (429, ApprovalState::Open));
    let dead = lab.acts("approval-link-dead").await;
    assert_eq!((dead.len(), dead[0]["details"]["person"].as_str()), (1, Some("ana")));
    // Ben's is another link.
    assert_eq!(lab.say("ben", &lab.link("ben"), "approve").await.status, 200);
}

#[tokio::test]
async fn digits_are_few_short_lived_and_for_one_answer() {
    let lab = Lab::new().await;
    let id = lab.ask(asked("a", &["managers"], 1)).await;
    let link = lab.link("ana");
    assert_eq!(lab.post(&link, &[("verdict", "maybe")]).await.status, 400);
    assert_eq!(lab.post(&link, &[("verdict", "approve"), ("code", "123456")]).await.status, 410, "none were asked for");
    lab.post(&link, &[("verdict", "reject")]).await;
    let code = lab.code("ana");
    assert_eq!(
        lab.post(&link, &[("verdict", "approve"), ("code", &code)]).await.status,
        403,
        "digits for a no gave a yes"
    );
    lab.pass(11);
    let late = lab.post(&link, &[("verdict", "reject"), ("code", &code)]).await;
    assert!(late.status == 410 && late.text.contains("too old"), "{}", late.text);
    lab.pass(-20);
    assert_eq!(
        lab.post(&link, &[("verdict", "reject"), ("code", &code)]).await.status,
        410,
        "a clock set back made them young"
    );
    for nth in 2..=10 {
        assert_eq!(lab.post(&link, &[("verdict", "reject")]).await.status, 200, "{nth}");
    }
    assert_eq!(lab.post(&link, &[("verdict", "reject")]).await.status, 429);
    assert_eq!(lab.mailbox("ana").iter().filter(|mail| mail["kind"] == "approval-code").count(), 10);
    let code = lab.code("ana");
    let spaced = format!(" {} {} ", &code[..3], &code[3..]);
    assert_eq!(lab.post(&link, &[("verdict", "reject"), ("code", &spaced)]).await.status, 200);
    assert_eq!(lab.state(id).await, ApprovalState::Rejected);
}

#[tokio::test]
async fn what_is_late_stays_late_when_the_clock_is_set_back() {
    let lab = Lab::new().await;
    let id = lab.ask(asked("a", &["managers"], 1)).await;
    let noticed = lab.ask(asked("b", &["ana"], 1)).await;
    let b = lab.link("ana");
    let a = lab.link("ben");
    assert_eq!(lab.post(&a, &[("verdict", "approve")]).await.status, 200);
    let code = lab.code("ben");
    lab.pass(61);
    assert_eq!(lab.get(&a).await.status, 410);
    assert_eq!(lab.post(&a, &[("verdict", "approve"), ("code", &code)]).await.status, 410);
    assert!(matches!(
        decide(lab.approvals(), id, "ana", Verdict::Approve).await,
        Err(Refusal::Over { state: ApprovalState::Expired, .. })
    ));
    assert_eq!(lab.state(id).await, ApprovalState::Expired, "whoever comes too late makes it known");
    assert_eq!(lab.approvals().expire_due().await.unwrap(), 1);
    assert_eq!(lab.state(noticed).await, ApprovalState::Expired);
    let note = lab.approvals().view(noticed).await.unwrap().unwrap().note;
    assert_eq!(note.as_deref(), Some("0 of 1 said yes in time"));
    lab.pass(-24 * 60);
    let before = lab.dump();
    for link in [&a, &b] {
        assert_eq!(lab.get(link).await.status, 410);
        assert_eq!(lab.post(link, &[("verdict", "approve")]).await.status, 410);
    }
    assert!(decide(lab.approvals(), noticed, "ana", Verdict::Approve).await.is_err());
    assert!(lab.approvals().use_for(id, "binding of a").await.is_err());
    assert_eq!(lab.dump(), before);
    assert_eq!(lab.acts("approval-expired").await.len(), 2);
    // A new daemon on the same state goes by the time that is on record.
    let wall = Arc::clone(&lab.wall);
    let again = Approvals::with_clock(
        lab.daemon.store.clone(),
        &lab.daemon.state(),
        rules(),
        Clock::new(move || *wall.lock().unwrap()),
    );
    let again = again.unwrap();
    again.recover().await.unwrap();
    let c = again.ensure(asked("c", &["ana"], 1)).await.unwrap();
    let view = again.view(c).await.unwrap().unwrap();
    assert!(view.created_at >= "2026-03-01T11:00:00Z".parse().unwrap(), "{}", view.created_at);
}

#[tokio::test]
async fn a_role_that_was_taken_away_ends_link_vote_and_grant() {
    let lab = Lab::new().await;
    let id = lab.ask(asked("a", &["managers"], 1)).await;
    let (anas, bens) = (lab.link("ana"), lab.link("ben"));
    assert_eq!(lab.post(&bens, &[("verdict", "approve")]).await.status, 200);
    let code = lab.code("ben");
    assert_eq!(lab.say("ana", &anas, "approve").await.status, 200);
    assert_eq!(lab.state(id).await, ApprovalState::Granted);

    let mut fewer = rules();
    fewer.people.groups.insert("managers".parse().unwrap(), [name("cem")].into());
    lab.approvals().configure(fewer).await.unwrap();
    assert_eq!(lab.state(id).await, ApprovalState::Open, "Ana's vote still counts");
    assert!(matches!(lab.approvals().use_for(id, "binding of a").await, Err(NotGranted::Open { missing: 1, .. })));
    for seen in [
        lab.get(&bens).await,
        lab.post(&bens, &[("verdict", "approve")]).await,
        lab.post(&bens, &[("verdict", "approve"), ("code", &code)]).await,
        lab.post(&bens, &[("verdict", "reject")]).await,
        lab.get(&lab.link("ana")).await,
    ] {
        assert!(seen.status == 403 && seen.text.contains("is not among those who may: managers"), "{}", seen.text);
    }
    assert!(matches!(decide(lab.approvals(), id, "ben", Verdict::Reject).await, Err(Refusal::NotYours { .. })));
    // Who now may is asked.
    assert_eq!(lab.say("cem", &lab.link("cem"), "approve").await.status, 200);
    assert_eq!((lab.state(id).await, lab.acts("approval-reopened").await.len()), (ApprovalState::Granted, 1));

    // Between the grant and its use, without anybody having counted: use counts.
    let mut nobody = rules();
    nobody.people.users.remove("cem");
    nobody.people.groups.insert("managers".parse().unwrap(), [].into());
    let wall = Arc::clone(&lab.wall);
    let clock = Clock::new(move || *wall.lock().unwrap());
    let other = Approvals::with_clock(lab.daemon.store.clone(), &lab.daemon.state(), nobody, clock).unwrap();
    let refused = other.use_for(id, "binding of a").await.unwrap_err();
    assert!(matches!(&refused, NotGranted::Open { impossible: Some(_), .. }), "{refused}");
}

#[tokio::test]
async fn ten_thousand_forged_links_decide_nothing() {
    let lab = Lab::new().await;
    let id = lab.ask(asked("a", &["managers"], 1)).await;
    let real = lab.link("ana").strip_prefix("/a/").unwrap().to_owned();
    assert_eq!(lab.post(&format!("/a/{real}"), &[("verdict", "approve")]).await.status, 200);
    let code = lab.code("ana");
    let before = lab.dump();
    let alphabet: Vec<char> = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars().collect();
    let forged = |nth: usize| -> String {
        let mut random = [0_u8; 64];
        getrandom::fill(&mut random).unwrap();
        let letters = random.map(|byte| alphabet[usize::from(byte) % 64]);
        // The half of them has the real link's name, and guesses the rest; some differ in one letter only.
        let mut token: Vec<char> = real.chars().collect();
        match nth % 4 {
            0 => letters.iter().collect(),
            1 => token[..22].iter().chain(&letters[22..]).collect(),
            2 => {
                let at = usize::from(random[0]) % 64;
                token[at] =
                    if token[at] == letters[at] { alphabet[(usize::from(random[1]) + 1) % 64] } else { letters[at] };
                token.iter().collect()
            }
            _ => letters[..usize::from(random[0]) % 64].iter().collect::<String>() + "x",
        }
    };
    let mut seen = 0;
    let tries = futures_util::stream::iter((0..10_000).map(forged).filter(|token| *token != real).map(|token| {
        let request = lab.http.post(lab.daemon.url(&format!("/a/{token}")));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let request = request.body(format!("verdict=approve&code={code}"));
        async move { request.send().await.unwrap().status().as_u16() }
    }));
    let mut tries = tries.buffer_unordered(16);
    while let Some(status) = tries.next().await {
        assert_eq!(status, 404);
        seen += 1;
    }
    assert!(seen > 9_900, "{seen}");
    assert_eq!(lab.dump(), before);
    assert_eq!(lab.state(id).await, ApprovalState::Open);
    // They did not even use up the real one's tries.
    assert_eq!(lab.post(&format!("/a/{real}"), &[("verdict", "approve"), ("code", &code)]).await.status, 200);
}

#[tokio::test]
async fn people_who_speak_at_once_are_counted_one_after_the_other() {
    let lab = Lab::new().await;
    for round in 0..30 {
        // Two of two.
        let key = format!("both {round}");
        let id = lab.ask(asked(&key, &["managers"], 2)).await;
        let (ana, ben) = tokio::join!(
            decide(lab.approvals(), id, "ana", Verdict::Approve),
            decide(lab.approvals(), id, "ben", Verdict::Approve)
        );
        let granted = [&ana, &ben].iter().filter(|end| ***end == Ok(ApprovalState::Granted)).count();
        assert_eq!(granted, 1, "{ana:?} {ben:?}");
        // Begun and rejected at once: one of them, never both.
        let binding = format!("binding of {key}");
        let (used, no) =
            tokio::join!(lab.approvals().use_for(id, &binding), decide(lab.approvals(), id, "ben", Verdict::Reject));
        match (&used, &no) {
            (Ok(_), Err(Refusal::Over { state: ApprovalState::Used, .. })) => {}
            (Err(NotGranted::Ended { state: ApprovalState::Rejected, .. }), Ok(ApprovalState::Rejected)) => {}
            other => panic!("{other:?}"),
        }
        // The same person over two links and the API: one decision stands.
        let key = format!("one {round}");
        let id = lab.ask(asked(&key, &["managers"], 1)).await;
        let (one, two, three) = tokio::join!(
            decide(lab.approvals(), id, "ana", Verdict::Approve),
            decide(lab.approvals(), id, "ana", Verdict::Approve),
            decide(lab.approvals(), id, "ana", Verdict::Approve)
        );
        assert_eq!(
            (one, two, three),
            (Ok(ApprovalState::Granted), Ok(ApprovalState::Granted), Ok(ApprovalState::Granted))
        );
        let view = lab.approvals().view(id).await.unwrap().unwrap();
        assert_eq!(view.decisions.len(), 1);
        // A yes and a no at once end with the no, whichever came first.
        let id = lab.ask(asked(&format!("split {round}"), &["managers"], 1)).await;
        let (_, no) = tokio::join!(
            decide(lab.approvals(), id, "ana", Verdict::Approve),
            decide(lab.approvals(), id, "ben", Verdict::Reject)
        );
        assert_eq!((no, lab.state(id).await), (Ok(ApprovalState::Rejected), ApprovalState::Rejected));
    }
    assert_eq!(lab.acts("approval-granted").await.len().min(60), 60);
}

#[tokio::test]
async fn one_link_used_twice_at_once_decides_once() {
    let lab = Lab::new().await;
    let id = lab.ask(asked("a", &["managers"], 2)).await;
    let link = lab.link("ana");
    assert_eq!(lab.post(&link, &[("verdict", "approve")]).await.status, 200);
    let code = lab.code("ana");
    let form = [("verdict", "approve"), ("code", code.as_str())];
    let (a, b, c) = tokio::join!(lab.post(&link, &form), lab.post(&link, &form), lab.post(&link, &form));
    let mut statuses = [a.status, b.status, c.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 410, 410]);
    assert_eq!((lab.acts("approve").await.len(), lab.state(id).await), (1, ApprovalState::Open));
}

#[tokio::test]
async fn it_is_used_once_for_what_it_was_given_for() {
    let lab = Lab::new().await;
    let inputs = || {
        let input = |name: &str, kind, default: Option<&str>, required| Input {
            name: name.into(),
            kind,
            default: default.map(str::to_owned),
            required,
            description: None,
        };
        let window = InputKind::Choice(vec!["now".into(), "night".into()]);
        vec![input("window", window, Some("now"), false), input("ticket", InputKind::Text, None, true)]
    };
    let id = lab.ask(ApprovalRequest { inputs: inputs(), ..asked("a", &["managers"], 2) }).await;
    let give = async |person: &str, pairs: &[(&str, &str)]| {
        let inputs = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let answer = Answer { inputs, ..says(person, Verdict::Approve) };
        let done = lab.approvals().decide(id, answer, &Asker::person(name(person), Way::Token)).await;
        done.map(|view| view.state).map_err(|error| error.to_string())
    };
    let table: [(&[(&str, &str)], &str); 3] = [
        (&[], "`ticket` must be given"),
        (&[("ticket", "T-1"), ("window", "later")], "`window` must be one of now, night"),
        (&[("ticket", "T-1"), ("extra", "1")], "no input `extra`"),
    ];
    for (pairs, words) in table {
        let error = give("ana", pairs).await.unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(give("ana", &[("ticket", "T-1")]).await, Ok(ApprovalState::Open));
    let error = give("ben", &[("ticket", "T-2")]).await.unwrap_err();
    assert!(error.contains("ana has approved it with `ticket` = `T-1`, not `T-2`"), "{error}");
    // The same over the page: it says so before digits are mailed.
    let link = lab.link("ben");
    let seen = lab.post(&link, &[("verdict", "approve"), ("input.ticket", "T-2")]).await;
    assert!(
        seen.status == 409 && seen.text.contains("T-1") && lab.mailbox("ben").iter().all(|m| m["code"].is_null()),
        "{}",
        seen.text
    );
    let form = [("verdict", "approve"), ("input.ticket", "T-1"), ("input.window", "")];
    assert_eq!(lab.post(&link, &form).await.status, 200);
    let code = lab.code("ben");
    assert_eq!(lab.post(&link, &[&form[..], &[("code", code.as_str())]].concat()).await.status, 200);
    assert_eq!(lab.state(id).await, ApprovalState::Granted);
    let used = lab.approvals().use_for(id, "binding of a").await.unwrap();
    assert_eq!(used, [("ticket".to_owned(), "T-1".to_owned()), ("window".to_owned(), "now".to_owned())].into());
    // A daemon that died right after asks again.
    assert_eq!(lab.approvals().use_for(id, "binding of a").await.unwrap(), used);
    assert_eq!(lab.acts("approval-used").await.len(), 1);
    assert!(matches!(lab.approvals().use_for(id, "another").await, Err(NotGranted::Ended { .. })));
    assert!(lab.approvals().withdraw(id, &name("ana"), &Asker::daemon()).await.is_err(), "it had begun");

    let id = lab.ask(asked("b", &["managers"], 1)).await;
    assert_eq!(decide(lab.approvals(), id, "ana", Verdict::Approve).await, Ok(ApprovalState::Granted));
    assert!(matches!(lab.approvals().use_for(id, "another commit").await, Err(NotGranted::Changed(_))));
    assert_eq!((lab.state(id).await, lab.acts("approval-void").await.len()), (ApprovalState::Void, 1));
    assert!(lab.approvals().use_for(id, "binding of b").await.is_err());

    let own = ApprovalRequest {
        excluded: vec![Excluded { person: name("ana"), why: "author of 1a2b3c4d".into() }],
        ..asked("c", &["managers"], 1)
    };
    let id = lab.ask(own).await;
    let refused = decide(lab.approvals(), id, "ana", Verdict::Approve).await.unwrap_err().to_string();
    assert!(refused.contains("ana may not approve their own change (author of 1a2b3c4d)"), "{refused}");
    assert_eq!(
        lab.mailbox("ana").iter().filter(|m| m["kind"] == "approval-asked" && m["approval"] == json!(id)).count(),
        0
    );
}

#[tokio::test]
async fn another_system_speaks_for_its_people_once_per_message() {
    let mut with = rules();
    let inbound = Inbound { secret: Secret::new("s3cret"), people: vec![name("ana"), name("cem")] };
    with.webhooks.insert("board".into(), Some(inbound));
    with.webhooks.insert("mute".into(), None);
    let lab = Lab::by(with).await;
    let id = lab.ask(asked("a", &["managers"], 2)).await;
    let told: i64 = lab.database().query_row("SELECT count(*) FROM outbox WHERE channel IN ('board', 'mute') AND message LIKE '%approval-asked%' AND message LIKE '%\"link\":null%'", [], |r| r.get(0)).unwrap();
    assert_eq!(told, 2, "systems are told, and get no link");
    let send = async |to: &str, secret: &str, minutes: i64, body: Value| {
        let stamp = (lab.wall.lock().unwrap().as_second() + minutes * 60).to_string();
        let body = body.to_string();
        let request = lab.http.post(lab.daemon.url(&format!("/webhooks/approvals/{to}")));
        let signature = webhook::sign(secret.as_bytes(), &stamp, body.as_bytes());
        let request =
            request.header("x-mainstay-timestamp", stamp).header("x-mainstay-signature", signature).body(body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let says = |message: &str, person: &str, verdict: &str| json!({ "id": message, "approval": id, "person": person, "verdict": verdict });
    let before = lab.dump();
    assert_eq!(send("board", "wrong", 0, says("m1", "ana", "approve")).await.0, 401);
    assert_eq!(send("board", "s3cret", 6, says("m1", "ana", "approve")).await.0, 401);
    assert_eq!(send("board", "s3cret", -6, says("m1", "ana", "approve")).await.0, 401);
    assert_eq!(send("mute", "s3cret", 0, says("m1", "ana", "approve")).await.0, 404);
    assert_eq!(send("other", "s3cret", 0, says("m1", "ana", "approve")).await.0, 404);
    assert_eq!(send("board", "s3cret", 0, says("m1", "ben", "approve")).await.0, 403, "it may not speak for Ben");
    assert_eq!(send("board", "s3cret", 0, says("", "ana", "approve")).await.0, 400);
    assert_eq!(lab.dump(), before);
    assert_eq!(send("board", "s3cret", 0, says("m0", "cem", "approve")).await.0, 403, "Cem is no manager");
    let (status, answer) = send("board", "s3cret", 0, says("m1", "ana", "approve")).await;
    assert_eq!((status, &answer), (200, &json!({ "approval": id, "state": "open", "again": false })));
    // Ana takes it back; a replay of the message does not bring it again.
    lab.approvals().withdraw(id, &name("ana"), &Asker::person(name("ana"), Way::Token)).await.unwrap();
    let (status, answer) = send("board", "s3cret", 0, says("m1", "ana", "approve")).await;
    assert_eq!((status, &answer["again"]), (200, &json!(true)));
    assert!(lab.approvals().view(id).await.unwrap().unwrap().counted.is_empty());
    assert_eq!(send("board", "s3cret", 0, says("m2", "ana", "approve")).await.1["again"], false);
    let acts = lab.acts("approve").await;
    assert_eq!((acts.len(), acts[0]["way"].as_str()), (2, Some("webhook")));
    let huge = json!({ "id": "x".repeat(2 << 20) });
    let stamp = lab.wall.lock().unwrap().as_second().to_string();
    let body = huge.to_string();
    let signature = webhook::sign(b"s3cret", &stamp, body.as_bytes());
    let request = lab.http.post(lab.daemon.url("/webhooks/approvals/board")).header("x-mainstay-timestamp", &stamp);
    assert_eq!(request.header("x-mainstay-signature", signature).body(body).send().await.unwrap().status(), 413);
}

#[tokio::test]
async fn forms_of_other_sites_and_other_names_are_refused() {
    let lab = Lab::new().await;
    let id = lab.ask(asked("a", &["managers"], 1)).await;
    let link = lab.link("ana");
    let send = async |header: &'static str, value: &'static str| {
        let request = lab.http.post(lab.daemon.url(&link)).header(header, value);
        let request = request.header("content-type", "application/x-www-form-urlencoded").body("verdict=approve");
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(send("origin", "https://evil.example").await, 403);
    assert_eq!(send("host", "evil.example").await, 421);
    assert!(lab.mailbox("ana").iter().all(|mail| mail["code"].is_null()), "digits were mailed for another site");
    assert_eq!(send("origin", "null").await, 200);
    assert_eq!(send("origin", "https://ci.example.com").await, 200);
    assert_eq!(lab.state(id).await, ApprovalState::Open);
    let text = lab.http.post(lab.daemon.url(&link)).header("content-type", "text/plain").body("verdict=approve");
    assert_eq!(text.send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn over_the_api_only_people_answer() {
    let lab = Lab::new().await;
    lab.ask(asked("a", &["managers"], 2)).await;
    let other = lab.ask(asked("b", &["ben"], 1)).await;
    let send = async |token: &str, path: String, body: Value| {
        let request =
            lab.http.post(lab.daemon.url(&format!("/api/v1/approvals/{path}"))).bearer_auth(token).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let shared = lab.daemon.token.clone();
    let (status, told) = send(&shared, "1/approve".into(), json!({})).await;
    assert!(status == 403 && told["hints"].to_string().contains("personal token"), "{told}");
    assert_eq!(send(ANAS_TOKEN, format!("{other}/approve"), json!({})).await.0, 403);
    assert_eq!(send(ANAS_TOKEN, "99/approve".into(), json!({})).await.0, 404);
    assert_eq!(send(ANAS_TOKEN, "x/approve".into(), json!({})).await.0, 400);
    assert_eq!(send(ANAS_TOKEN, "1/withdraw".into(), json!({})).await.0, 409);
    assert_eq!(send(ANAS_TOKEN, "1/approve".into(), json!({ "message": "x".repeat(1_001) })).await.0, 400);
    let (status, view) = send(ANAS_TOKEN, "1/approve".into(), json!({ "message": "fine" })).await;
    assert_eq!((status, &view["counted"], &view["state"]), (200, &json!(["ana"]), &json!("open")));
    let list = lab.http.get(lab.daemon.url("/api/v1/approvals")).bearer_auth(&shared).send().await.unwrap();
    let list: Value = list.json().await.unwrap();
    assert_eq!((list.as_array().unwrap().len(), &list[1]["decisions"][0]["message"]), (2, &json!("fine")));
    assert!(!list.to_string().contains("/a/"), "the API shows links");
}

#[test]
fn the_command_line_answers_for_the_person_it_is() {
    let team = Team::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // What waits is put there from outside: the daemon reads it from its own database.
    runtime.block_on(async {
        let store = Store::open(&team.0.state()).unwrap();
        let approvals = Approvals::open(store, &team.0.state(), Rules::default()).unwrap();
        approvals.ensure(asked("a", &["ana", "ben"], 2)).await.unwrap();
        approvals.ensure(asked("b", &["ben"], 1)).await.unwrap();
    });
    let (ana, _) = team.token(&["ana"]);
    let list = good(&team.over_tcp(&ana, &["approvals"]));
    assert_eq!((list.as_array().unwrap().len(), &list[1]["eligible"]), (2, &json!(["ana", "ben"])));
    let refused = |output: std::process::Output, words: &str| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(4) && said.contains(words), "{:?} {said}", output.status);
    };
    refused(team.over_tcp(&team.shared_token(), &["approve", "1"]), "personal token");
    refused(team.0.try_cli(&["approve", "1"]), "only people of mainstay.yml may");
    refused(team.over_tcp(&ana, &["approve", "2"]), "is not among those who may: ben");
    let view = good(&team.over_tcp(&ana, &["approve", "#1", "--message", "fine"]));
    assert_eq!(view["counted"], json!(["ana"]));
    // Over the socket the user of this machine is Ben from now on.
    team.people(&format!("ana: {{}}, ben: {{ unix: {} }}", crate::people::own_name()));
    team.0.cli(&["reload"]);
    assert_eq!(team.0.cli(&["approve", "1"])["state"], "granted");
    assert_eq!(team.0.cli(&["withdraw", "1"])["state"], "open");
    assert_eq!(team.0.cli(&["reject", "2", "--message", "no"])["state"], "rejected");
    assert_eq!(team.0.try_cli(&["approve", "2"]).status.code(), Some(2));
    assert_eq!(team.0.cli(&["approvals"]).as_array().unwrap().len(), 1);
    assert_eq!(team.0.cli(&["approvals", "--all"]).as_array().unwrap().len(), 2);
    let said = team.0.command().args(["approvals", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("deploy shop 1a2b3c4d to production") && said.contains("mainstay approve 1"), "{said}");
    let audit = team.0.cli(&["audit", "--limit", "50"]).to_string();
    for act in ["approval-asked", "approve", "reject", "withdraw", "approval-granted"] {
        assert!(audit.contains(&format!("\"{act}\"")), "{act} is not in {audit}");
    }
    team.0.end(0);
}
