//! What people and systems are told arrives: whole, once where that can be had, in order, and to nobody else.
//!
//! A real mail server (`support::smtp`) and a real HTTP receiver, both on loopback.

mod mail;
mod outbox;
mod post;

use crate::support::receiver::Receiver;
use crate::support::smtp::MailServer;
use jiff::Timestamp;
use mainstay::config::daemon::notify::{Notify, Webhook, WebhookFormat};
use mainstay::config::daemon::{People, Person};
use mainstay::config::secret::Secret;
use mainstay::model::approval::{Channel, Subject, Verdict};
use mainstay::model::deploy::DeployStatus;
use mainstay::model::{ApprovalId, DeployId, InstanceId, PersonName, RunId};
use mainstay::notify::{Channels, Message, outbox as sending};
use mainstay::store::{OutboxRow, OutboxState, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A store, and a sender at work on it.
struct Post {
    store: Store,
    channels: watch::Sender<Arc<Channels>>,
    stopping: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    folder: tempfile::TempDir,
}

impl Post {
    fn start(channels: Channels) -> Post {
        let folder = tempfile::tempdir().unwrap();
        Post::start_in(folder, channels)
    }

    fn start_in(folder: tempfile::TempDir, channels: Channels) -> Post {
        let store = Store::open(folder.path()).unwrap();
        let (channels, receiver) = watch::channel(Arc::new(channels));
        let (stopping, stop) = watch::channel(false);
        let task = tokio::spawn(sending::run(store.clone(), receiver, Arc::default(), stop));
        Post { store, channels, stopping, task, folder }
    }

    /// As a killed daemon: nothing more is done, nothing more is recorded.
    async fn kill(self) -> tempfile::TempDir {
        self.task.abort();
        let _ = self.task.await;
        self.folder
    }

    /// As a daemon that is told to stop.
    async fn stop(self) -> tempfile::TempDir {
        self.stopping.send(true).unwrap();
        self.task.await.unwrap();
        self.folder
    }

    async fn put(&self, key: &str, channel: &str, recipient: &str, message: &Message) {
        let message = message.to_json().unwrap();
        self.store.put_message(key.into(), channel.into(), recipient.into(), message).await.unwrap();
    }

    async fn mail(&self, key: &str, to: &str, message: &Message) {
        self.put(key, "mail", to, message).await;
    }

    async fn row(&self, key: &str) -> OutboxRow {
        let rows = self.store.list_messages(None, 1000).await.unwrap();
        rows.into_iter().find(|row| row.key == key).unwrap_or_else(|| panic!("no row `{key}`"))
    }

    /// The row as soon as it stands there.
    async fn row_once(&self, key: &str, what: impl Fn(&OutboxRow) -> bool) -> OutboxRow {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let row = self.row(key).await;
            if what(&row) {
                return row;
            }
            assert!(Instant::now() < until, "it stays {row:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn row_in(&self, key: &str, state: OutboxState) -> OutboxRow {
        self.row_once(key, |row| row.state == state).await
    }
}

fn person(name: &str) -> PersonName {
    PersonName::new(name).unwrap()
}

fn instance() -> InstanceId {
    InstanceId("7e57ab1e".into())
}

/// Ana, Ben and Cem have a mailbox; Dora has none.
fn people() -> People {
    let with = |mail: Option<&str>| Person { mail: mail.map(str::to_owned), ..Person::default() };
    let mut people = People::default();
    for name in ["ana", "ben", "cem"] {
        people.users.insert(person(name), with(Some(&format!("{name}@example.com"))));
    }
    people.users.insert(person("dora"), with(None));
    people
}

fn by_mail(server: &MailServer) -> Channels {
    let notify = Notify { smtp: Some(server.settings()), ..Notify::default() };
    Channels::new(&notify, &people(), &instance()).unwrap()
}

fn by_webhook(receiver: &Receiver, format: WebhookFormat) -> Channels {
    let webhook =
        Webhook { url: Secret::new(receiver.url()), format, secret: Some(Secret::new("between us")), inbound: None };
    let notify = Notify { smtp: None, webhooks: [("board".to_owned(), webhook)].into(), alerts: None };
    Channels::new(&notify, &people(), &instance()).unwrap()
}

const LINK: &str = "https://ci.example.com/approve/0123456789abcdef?proof=feedface";
const RUN_URL: &str = "https://ci.example.com/runs/12";

fn asked(to: &str) -> Message {
    Message::ApprovalAsked {
        approval: ApprovalId(3),
        environment: Some("production".parse().unwrap()),
        person: Some(person(to)),
        subject: Subject {
            title: "deploy shop 1a2b3c4d to production".into(),
            warning: Some("It still contains 9f8e7d6c, which was rolled back on Friday: checkout answered 500.".into()),
            repo: "shop".into(),
            git_ref: "refs/heads/main".into(),
            commit: "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d".into(),
            commits: vec!["1a2b3c4d Ana: Cart: count what is in it".into(), "0a0b0c0d Ben: Prices in cents".into()],
            images: [("api".to_owned(), "registry.example.com/shop/api@sha256:4c1f".to_owned())].into(),
            config_diff: "--- release 6\n+++ release 7\n@@ -4,3 +4,3 @@\n   api:\n-    replicas: 2\n+    replicas: 3\n"
                .into(),
            results: vec![("test".into(), "good, 41 s".into()), ("load".into(), "p95 84 ms, 0 errors".into())],
            staging: Some("staging/12 has been healthy for 2 h".into()),
            way_back: "release production/6 is put back, about 4 s; nothing in the schema changed".into(),
            message: Some("Please have a look at the new prices.".into()),
        },
        link: Some(LINK.into()),
        required: 2,
        expires_at: Timestamp::now() + Duration::from_secs(24 * 3600),
        run: Some(RunId(12)),
        run_url: Some(RUN_URL.into()),
        how_by_cli: "mainstay approve 3".into(),
    }
}

fn decided(run: u64, by: &str) -> Message {
    Message::ApprovalDecided {
        approval: ApprovalId(3),
        environment: Some("production".parse().unwrap()),
        title: "deploy shop 1a2b3c4d to production".into(),
        person: person(by),
        verdict: Verdict::Approve,
        channel: Channel::Mail,
        withdrawn: false,
        standing: "1 of 2".into(),
        message: None,
        link: None,
        withdraw_hint: Some("It can be taken back with `mainstay withdraw 3` until the deploy starts.".into()),
        run: Some(RunId(run)),
        run_url: Some(RUN_URL.into()),
    }
}

fn rolled_back(release: u64) -> Message {
    Message::Deploy {
        environment: "production".parse().unwrap(),
        deploy: DeployId(40 + release),
        release: Some(release),
        status: DeployStatus::RolledBack,
        title: format!("shop release {release}"),
        why: Some("http://127.0.0.1:8080/healthz answered 500 three times in a row".into()),
        back: None,
        way_back: Some("production/6 serves again; 1a2b3c4d is held until a revert or `mainstay release-hold`".into()),
        run: Some(RunId(12)),
        run_url: Some(RUN_URL.into()),
    }
}

fn code(minutes: u32) -> Message {
    Message::ApprovalCode {
        approval: ApprovalId(3),
        person: person("ana"),
        code: "482913".into(),
        minutes,
        run: Some(RunId(12)),
    }
}
