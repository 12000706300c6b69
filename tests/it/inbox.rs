//! One push is one accepted row, whoever tells about it, in whatever order, however often.

use crate::git_transports::git;
use mainstay::git::Mirror;
use mainstay::model::ids::PipelineName;
use mainstay::model::trigger::Feeder;
use mainstay::model::{Asker, EventKind, Oid, RepoName};
use mainstay::store::{Answer, InboxRow, RefReport, Report, ScheduleKey, Seen, Store, Verdict};
use mainstay::trigger::hook::{self, Notified};
use mainstay::trigger::{Intake, RefChange, WatchedRepo, WebhookConfig, schedule, socket, spool, watch, webhook};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A bare repository, a working tree that pushes to it, and a daemon's intake.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) work: PathBuf,
    pub(crate) bare: PathBuf,
    pub(crate) intake: Arc<Intake>,
    pub(crate) wake: Arc<Notify>,
}

pub(crate) const SECRET: &str = "s3cret";

impl World {
    pub(crate) fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q", "--bare", "-b", "main", "shop.git"]);
        git(dir.path(), &["init", "-q", "-b", "main", "work"]);
        let (work, bare) = (dir.path().join("work"), dir.path().join("shop.git"));
        git(&work, &["remote", "add", "origin", "../shop.git"]);
        git(&work, &["commit", "-q", "--allow-empty", "-m", "first"]);
        git(&work, &["push", "-q", "origin", "main"]);
        let (intake, wake) = World::open(dir.path(), &bare);
        World { dir, work, bare, intake, wake }
    }

    /// A daemon on that state folder, as after a restart.
    pub(crate) fn open(dir: &Path, bare: &Path) -> (Arc<Intake>, Arc<Notify>) {
        let store = Store::open(&dir.join("state")).unwrap();
        let mirror = Mirror::open(&dir.join("state/mirrors/shop.git"), bare.to_str().unwrap(), None).unwrap();
        let webhook = Some(WebhookConfig { kind: webhook::Kind::Github, secret: SECRET.into() });
        let repo = WatchedRepo {
            name: shop(),
            mirror,
            poll: Some(Duration::from_millis(100)),
            branch: None,
            runs_per_push: 10_000,
            webhook,
        };
        let wake = Arc::new(Notify::new());
        (Intake::new(store, vec![repo], Arc::clone(&wake)), wake)
    }

    pub(crate) fn commit(&self) -> Oid {
        git(&self.work, &["commit", "-q", "--allow-empty", "-m", "next"]);
        self.head()
    }

    pub(crate) fn head(&self) -> Oid {
        git(&self.work, &["rev-parse", "HEAD"]).parse().unwrap()
    }

    /// Pushes and says what a hook would be told about it.
    pub(crate) fn push(&self, git_ref: &str, new: Option<&Oid>) -> RefChange {
        let old = std::process::Command::new("git")
            .args(["rev-parse", "--verify", "-q", git_ref])
            .current_dir(&self.bare)
            .output()
            .unwrap();
        let old = String::from_utf8(old.stdout).unwrap().trim().parse().unwrap_or_else(|_| Oid::zero());
        let from = new.map_or("", Oid::as_str);
        git(&self.work, &["push", "-q", "--force", "origin", &format!("{from}:{git_ref}")]);
        RefChange { git_ref: git_ref.into(), old, new: new.cloned().unwrap_or_else(Oid::zero) }
    }

    pub(crate) async fn tell(&self, feeder: Feeder, delivery: &str, change: &RefChange) -> Verdict {
        let verdicts =
            self.intake.report_push(feeder, &shop(), Some(delivery.into()), None, vec![change.clone()]).await;
        verdicts.unwrap().remove(0)
    }

    pub(crate) async fn look(&self) -> usize {
        watch::look_now(&self.intake, &shop()).await.unwrap()
    }

    pub(crate) async fn pending(&self) -> Vec<InboxRow> {
        self.intake.store().pending_inbox(10_000).await.unwrap()
    }
}

pub(crate) fn shop() -> RepoName {
    RepoName::new("shop").unwrap()
}

fn oid(digit: char) -> Oid {
    digit.to_string().repeat(40).parse().unwrap()
}

#[tokio::test]
async fn the_first_look_is_a_base_line_and_starts_nothing() {
    let w = World::new();
    assert_eq!(w.look().await, 0);
    assert!(w.pending().await.is_empty());
    let next = w.commit();
    w.push("refs/heads/main", Some(&next));
    assert_eq!(w.look().await, 1);
    assert_eq!(w.look().await, 0, "what was accepted is not reported again");
    let rows = w.pending().await;
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0].new, rows[0].kind, rows[0].git_ref.as_str()), (&next, EventKind::Push, "refs/heads/main"));
}

#[tokio::test]
async fn a_mark_of_mainstays_own_is_recorded_once_and_starts_nothing() {
    let w = World::new();
    w.look().await;
    let head = w.head();
    let own = w.push("refs/tags/mainstay/rolled-back/production-7", Some(&head));
    for feeder in [Feeder::Hook, Feeder::Webhook] {
        let verdict = w.tell(feeder, "1", &own).await;
        assert!(matches!(verdict, Verdict::Own(_) | Verdict::Joined(_)), "{feeder:?}: {verdict:?}");
    }
    w.look().await;
    assert_eq!(w.look().await, 0);
    assert!(w.pending().await.is_empty());
    let rows = w.intake.store().list_inbox(10).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((rows[0].state.as_str(), rows[0].new == head), ("dropped", true));
    assert!(rows[0].reason.as_deref().unwrap().contains("Mainstay's own"), "{rows:?}");
    let release = w.push("refs/tags/v7", Some(&head));
    assert!(matches!(w.tell(Feeder::Hook, "2", &release).await, Verdict::Accepted(_)));
    // Seen by a look alone.
    w.push("refs/tags/mainstay/rolled-back/production-8", Some(&head));
    w.look().await;
    assert_eq!(w.pending().await.len(), 1);
}

#[tokio::test]
async fn a_push_before_the_first_start_runs_when_its_hook_left_a_message() {
    let w = World::new();
    let program = Path::new("/nonexistent/mainstay");
    hook::install(&w.bare, &shop(), &w.dir.path().join("hook.sock"), program).unwrap();
    let next = w.commit();
    w.push("refs/heads/main", Some(&next));
    assert_eq!(w.look().await, 0, "nothing is left for the look itself");
    let rows = w.pending().await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0].new, next);
    assert!(rows[0].actor.is_some());
    assert_eq!(std::fs::read_dir(w.bare.join(hook::SPOOL_DIR)).unwrap().count(), 0);
}

#[tokio::test]
async fn the_same_push_told_in_every_order_is_one_row() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        let w = World::new();
        w.look().await;
        let next = w.commit();
        let change = w.push("refs/heads/main", Some(&next));
        let mut accepted = 0;
        for feeder in order.iter().chain(&order) {
            match feeder {
                0 => accepted += usize::from(matches!(w.tell(Feeder::Hook, "h1", &change).await, Verdict::Accepted(_))),
                1 => {
                    let verdict = w.tell(Feeder::Webhook, "w1", &change).await;
                    accepted += usize::from(matches!(verdict, Verdict::Accepted(_)));
                }
                _ => accepted += w.look().await,
            }
        }
        assert_eq!((accepted, w.pending().await.len()), (1, 1), "order {order:?}");
        // Once more with new delivery ids, as a forge's "redeliver" button does.
        for (feeder, id) in [(Feeder::Hook, "h2"), (Feeder::Webhook, "w2")] {
            let verdict = w.tell(feeder, id, &change).await;
            assert!(matches!(verdict, Verdict::Stale(_)), "order {order:?}: {verdict:?}");
        }
        assert_eq!(w.pending().await.len(), 1);
    }
}

#[tokio::test]
async fn the_same_push_told_at_the_same_time_is_one_row() {
    for _ in 0..20 {
        let w = World::new();
        w.look().await;
        let next = w.commit();
        let change = w.push("refs/heads/main", Some(&next));
        let shop = shop();
        let told = tokio::join!(
            w.tell(Feeder::Hook, "h", &change),
            w.tell(Feeder::Webhook, "w", &change),
            watch::look_now(&w.intake, &shop),
            w.tell(Feeder::Hook, "h", &change),
            w.tell(Feeder::Webhook, "w", &change),
        );
        told.2.unwrap();
        assert_eq!(w.pending().await.len(), 1);
    }
}

#[tokio::test]
async fn there_and_back_runs_both_and_a_replay_runs_nothing() {
    let w = World::new();
    w.look().await;
    let first = w.head();
    let second = w.commit();
    let there = w.push("refs/heads/main", Some(&second));
    assert!(matches!(w.tell(Feeder::Hook, "1", &there).await, Verdict::Accepted(_)));
    assert!(matches!(w.tell(Feeder::Webhook, "1", &there).await, Verdict::Joined(_)));
    let back = w.push("refs/heads/main", Some(&first));
    assert!(matches!(w.tell(Feeder::Hook, "2", &back).await, Verdict::Accepted(_)));
    let again = w.push("refs/heads/main", Some(&second));
    assert!(matches!(w.tell(Feeder::Hook, "3", &again).await, Verdict::Accepted(_)));
    assert!(matches!(w.tell(Feeder::Webhook, "2", &back).await, Verdict::Joined(_)));
    assert!(matches!(w.tell(Feeder::Webhook, "3", &again).await, Verdict::Joined(_)));
    assert_eq!(w.tell(Feeder::Hook, "2", &back).await, Verdict::Replayed);
    assert_eq!(w.tell(Feeder::Webhook, "1", &there).await, Verdict::Replayed);
    assert_eq!(w.look().await, 0);
    let rows: Vec<Oid> = w.pending().await.into_iter().map(|r| r.new).collect();
    assert_eq!(rows, [second.clone(), first, second]);
}

#[tokio::test]
async fn every_kind_of_change_has_its_outcome() {
    let w = World::new();
    w.look().await;
    let first = w.head();
    let second = w.commit();
    // A branch is created.
    let create = w.push("refs/heads/team/x", Some(&first));
    assert!(matches!(w.tell(Feeder::Hook, "1", &create).await, Verdict::Accepted(_)));
    // It is forced to something else.
    git(&w.work, &["checkout", "-q", "--orphan", "other"]);
    let other = w.commit();
    let forced = w.push("refs/heads/team/x", Some(&other));
    assert!(matches!(w.tell(Feeder::Hook, "2", &forced).await, Verdict::Accepted(_)));
    // It is deleted: recorded, and nothing runs.
    let deleted = w.push("refs/heads/team/x", None);
    let Verdict::Accepted(gone) = w.tell(Feeder::Hook, "3", &deleted).await else { panic!("not accepted") };
    // And made again, from the same commit.
    let again = w.push("refs/heads/team/x", Some(&other));
    assert!(matches!(w.tell(Feeder::Hook, "4", &again).await, Verdict::Accepted(_)));
    // A tag, an annotated one.
    git(&w.work, &["tag", "-m", "one", "v1", second.as_str()]);
    let tag: Oid = git(&w.work, &["rev-parse", "v1"]).parse().unwrap();
    let tagged = w.push("refs/tags/v1", Some(&tag));
    assert!(matches!(w.tell(Feeder::Hook, "5", &tagged).await, Verdict::Accepted(_)));
    // Several refs in one push, one of them ours.
    let several = vec![
        RefChange { git_ref: "refs/mainstay/production".into(), old: Oid::zero(), new: first.clone() },
        w.push("refs/heads/a", Some(&first)),
        w.push("refs/heads/b", Some(&second)),
        RefChange { git_ref: "refs/notes/commits".into(), old: Oid::zero(), new: first.clone() },
    ];
    let verdicts = w
        .intake
        .report_push(Feeder::Hook, &shop(), Some("6".into()), Some("ana".into()), several.clone())
        .await
        .unwrap();
    assert!(
        matches!(
            verdicts.as_slice(),
            [Verdict::Refused(_), Verdict::Accepted(_), Verdict::Accepted(_), Verdict::Refused(_)]
        ),
        "{verdicts:?}"
    );
    let verdicts = w.intake.report_push(Feeder::Hook, &shop(), Some("6".into()), None, several).await.unwrap();
    assert_eq!(verdicts, vec![Verdict::Replayed; 4]);
    assert_eq!(w.look().await, 0, "all of it is known");

    let rows: Vec<_> = w.pending().await.into_iter().map(|r| (r.git_ref, r.kind, r.new)).collect();
    let push = |name: &str, new: &Oid| (format!("refs/heads/{name}"), EventKind::Push, new.clone());
    assert_eq!(
        rows,
        [
            push("team/x", &first),
            push("team/x", &other),
            push("team/x", &other),
            ("refs/tags/v1".into(), EventKind::Tag, tag),
            push("a", &first),
            push("b", &second),
        ]
    );
    let shown = w.intake.store().list_inbox(100).await.unwrap();
    let view = shown.iter().find(|v| v.id == gone.0).unwrap();
    assert_eq!((view.state.as_str(), view.reason.as_deref()), ("done", Some("deleted: nothing runs")));
    assert_eq!(view.feeders, [Feeder::Hook]);
}

#[tokio::test]
async fn a_poll_sees_the_same_kinds_of_change() {
    let w = World::new();
    git(&w.work, &["push", "-q", "origin", "main:gone", "main:moved"]);
    w.look().await;
    let next = w.commit();
    w.push("refs/heads/gone", None);
    w.push("refs/heads/moved", Some(&next));
    w.push("refs/heads/new", Some(&next));
    w.push("refs/tags/v1", Some(&next));
    assert_eq!(w.look().await, 4);
    let mut rows: Vec<_> = w.pending().await.into_iter().map(|r| r.git_ref).collect();
    rows.sort();
    assert_eq!(rows, ["refs/heads/moved", "refs/heads/new", "refs/tags/v1"]);
    w.push("refs/heads/gone", Some(&next));
    assert_eq!(w.look().await, 1, "a branch that comes back is new");
}

#[tokio::test]
async fn a_late_report_is_dropped_with_a_reason_that_people_see() {
    let w = World::new();
    w.look().await;
    let second = w.commit();
    let late = w.push("refs/heads/main", Some(&second));
    let third = w.commit();
    w.push("refs/heads/main", Some(&third));
    assert_eq!(w.look().await, 1);
    let Verdict::Stale(why) = w.tell(Feeder::Webhook, "w", &late).await else { panic!("not stale") };
    assert!(why.contains("came late") && why.contains(third.short()), "{why}");
    let shown = w.intake.store().list_inbox(10).await.unwrap();
    assert_eq!((shown[0].state.as_str(), shown[0].reason.as_deref()), ("dropped", Some(why.as_str())));
    assert_eq!(w.tell(Feeder::Webhook, "w", &late).await, Verdict::Replayed);
    assert_eq!(w.pending().await.len(), 1);
}

#[tokio::test]
async fn the_first_feeder_that_knows_who_pushed_fills_it_in() {
    let w = World::new();
    w.look().await;
    let next = w.commit();
    let change = w.push("refs/heads/main", Some(&next));
    assert_eq!(w.look().await, 1);
    assert_eq!(w.pending().await[0].actor, None);
    for (feeder, who) in [(Feeder::Webhook, "ana"), (Feeder::Hook, "git")] {
        let verdict =
            w.intake.report_push(feeder, &shop(), Some("d".into()), Some(who.into()), vec![change.clone()]).await;
        assert!(matches!(verdict.unwrap()[0], Verdict::Joined(_)));
    }
    assert_eq!(w.pending().await[0].actor.as_deref(), Some("ana"));
}

#[tokio::test]
async fn what_was_answered_survives_a_restart() {
    let w = World::new();
    w.look().await;
    let next = w.commit();
    let change = w.push("refs/heads/main", Some(&next));
    w.tell(Feeder::Hook, "h", &change).await;
    let before = w.pending().await;
    // A second daemon on the same folder, without the first one having closed anything: as after `kill -9`.
    let (intake, _) = World::open(w.dir.path(), &w.bare);
    assert_eq!(intake.store().pending_inbox(10).await.unwrap(), before);
    let again = intake.report_push(Feeder::Hook, &shop(), Some("h".into()), None, vec![change]).await.unwrap();
    assert_eq!(again, [Verdict::Replayed]);
    assert_eq!(watch::look_now(&intake, &shop()).await.unwrap(), 0);
    // What was pushed while nobody ran is found by comparing.
    let next = w.commit();
    w.push("refs/heads/main", Some(&next));
    let (intake, _) = World::open(w.dir.path(), &w.bare);
    assert_eq!(watch::look_now(&intake, &shop()).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_is_answered_after_the_rows_are_stored_and_wakes_the_engine() {
    let w = World::new();
    w.look().await;
    let path = w.dir.path().join("hook.sock");
    // A socket left by a killed daemon is in the way.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = socket::Listener::bind(&path).unwrap();
    assert!(socket::Listener::bind(&path).is_err(), "two daemons on one socket");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let server = tokio::spawn(listener.run(Arc::clone(&w.intake)));
    let next = w.commit();
    let change = w.push("refs/heads/main", Some(&next));
    let line = format!("{} {} {}\n", change.old, change.new, change.git_ref);
    let (bare, socket) = (w.bare.clone(), path.clone());
    let told = tokio::task::spawn_blocking(move || hook::notify(&bare, "shop", &socket, line.as_bytes()));
    assert_eq!(told.await.unwrap().unwrap(), Notified::Told);
    tokio::time::timeout(Duration::from_secs(1), w.wake.notified()).await.expect("the engine was not woken");
    let rows = w.pending().await;
    assert_eq!(rows.len(), 1);
    assert!(rows[0].actor.is_some(), "the user at the other end of the socket");

    // Somebody who is no hook: answered, and nothing happens.
    for text in ["GET / HTTP/1.0\r\n\r\nend\n", "mainstay-push 1\nrepo ../x\ndelivery 1\nactor \nend\n", "\nend\n"] {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("error "), "{text:?}: {answer:?}");
    }
    // A repository that is not watched (yet): the message stays for later.
    let (bare, socket) = (w.bare.clone(), path.clone());
    let line = format!("{} {} refs/heads/x\n", Oid::zero(), next);
    let told = tokio::task::spawn_blocking(move || hook::notify(&bare, "other", &socket, line.as_bytes()));
    assert!(matches!(told.await.unwrap().unwrap(), Notified::Spooled(_)));
    server.abort();
    let _ = server.await;
    assert!(!path.exists(), "the socket goes with its daemon");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_branches_in_one_push_are_taken_within_a_second() {
    let w = World::new();
    w.look().await;
    let path = w.dir.path().join("hook.sock");
    let _server = tokio::spawn(socket::Listener::bind(&path).unwrap().run(Arc::clone(&w.intake)));
    let head = w.head();
    let specs: Vec<String> = (0..1_000).map(|n| format!("refs/heads/team/branch-{n}")).collect();
    let lines: String = specs.iter().map(|r| format!("{} {head} {r}\n", Oid::zero())).collect();
    let update: String = specs.iter().map(|r| format!("create {r} {head}\n")).collect();
    crate::git_transports::git_with_input(&w.bare, &["update-ref", "--stdin"], &update);
    let (bare, socket) = (w.bare.clone(), path.clone());
    let before = Instant::now();
    let told = tokio::task::spawn_blocking(move || hook::notify(&bare, "shop", &socket, lines.as_bytes())).await;
    let took = before.elapsed();
    assert_eq!(told.unwrap().unwrap(), Notified::Told);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(w.pending().await.len(), 1_000);
    let before = Instant::now();
    assert_eq!(w.look().await, 0);
    // And the same seen by a poll alone.
    let update: String = specs.iter().map(|r| format!("delete {r}\n")).collect();
    crate::git_transports::git_with_input(&w.bare, &["update-ref", "--stdin"], &update);
    assert_eq!(w.look().await, 1_000);
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
}

#[tokio::test]
async fn damaged_and_foreign_files_in_the_spool_are_put_aside() {
    let w = World::new();
    w.look().await;
    let dir = w.bare.join(hook::SPOOL_DIR);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("1.push"), "mainstay-push 1\nrepo shop\n").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("2.push")).unwrap();
    std::fs::write(dir.join(".3.tmp"), "half written").unwrap();
    let next = w.commit();
    let change = w.push("refs/heads/main", Some(&next));
    let good = format!(
        "mainstay-push 1\nrepo shop\ndelivery 4\nactor ana\n{} {} {}\nend\n",
        change.old, change.new, change.git_ref
    );
    std::fs::write(dir.join("4.push"), good).unwrap();
    assert_eq!(spool::take(&w.intake, &shop()).await.unwrap(), 1);
    assert_eq!(w.pending().await.len(), 1);
    assert!(dir.join("1.bad").exists() && !dir.join("4.push").exists());
    assert_eq!(spool::take(&w.intake, &shop()).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_finds_pushes_and_recovers_from_a_repository_that_was_away() {
    let w = World::new();
    let _watch = tokio::spawn(watch::run(Arc::clone(&w.intake)));
    let known = async || w.intake.store().known_refs(&shop()).await.unwrap();
    let until = async |what: &str, done: &dyn Fn(usize, bool) -> bool| {
        let before = Instant::now();
        loop {
            if done(w.pending().await.len(), known().await.is_some()) {
                return;
            }
            assert!(before.elapsed() < Duration::from_secs(20), "{what} did not happen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    until("the base line", &|_, known| known).await;
    let next = w.commit();
    w.push("refs/heads/main", Some(&next));
    until("the first push", &|rows, _| rows == 1).await;
    // Away, pushed to meanwhile, and back.
    let away = w.dir.path().join("away.git");
    std::fs::rename(&w.bare, &away).unwrap();
    let next = w.commit();
    git(&w.work, &["push", "-q", away.to_str().unwrap(), &format!("{next}:refs/heads/main")]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::rename(&away, &w.bare).unwrap();
    w.intake.poll_soon(&shop());
    until("the second push", &|rows, _| rows == 2).await;
}

#[tokio::test]
async fn manual_triggers_and_replays_are_rows_too() {
    let w = World::new();
    let request = mainstay::model::api::TriggerRequest {
        repo: shop(),
        git_ref: Some("main".into()),
        pipeline: Some(PipelineName::new("release").unwrap()),
        inputs: [("level".to_owned(), "full".to_owned())].into(),
    };
    let id = w.intake.trigger(request.clone(), &Asker::user("ana")).await.unwrap();
    let row = w.intake.store().inbox_row(id).await.unwrap().unwrap();
    assert_eq!((row.kind, &row.new, row.git_ref.as_str()), (EventKind::Manual, &w.head(), "refs/heads/main"));
    assert_eq!((row.actor.as_deref(), row.inputs["level"].as_str()), (Some("ana"), "full"));
    let bad = mainstay::model::api::TriggerRequest { git_ref: Some("nope".into()), ..request };
    assert!(w.intake.trigger(bad, &Asker::user("ana")).await.is_err());
    let again = w.intake.store().replay_inbox(id, &Asker::user("ben")).await.unwrap();
    let copy = w.intake.store().inbox_row(again).await.unwrap().unwrap();
    assert_eq!((copy.new, copy.inputs, copy.actor.as_deref()), (row.new, row.inputs, Some("ben")));
    let none = mainstay::store::InboxId(999);
    assert!(w.intake.store().replay_inbox(none, &Asker::user("ben")).await.is_err());
}

#[tokio::test]
async fn a_tick_is_taken_once() {
    let w = World::new();
    let store = w.intake.store();
    let at = |seconds: i64| jiff::Timestamp::from_second(seconds).unwrap();
    let pipeline = PipelineName::new("nightly").unwrap();
    let specs = ["0 3 * * *", "0 3 * * 1"];
    let wanted: Vec<_> = specs.iter().map(|s| (pipeline.clone(), s.to_string(), at(100))).collect();
    store.set_schedules(&shop(), wanted.clone()).await.unwrap();
    let keys: Vec<_> =
        specs.iter().map(|s| ScheduleKey { repo: shop(), pipeline: pipeline.clone(), spec: s.to_string() }).collect();
    let run = || Some((at(100), "refs/heads/main".to_owned(), oid('1')));
    let first = store.accept_scheduled(&keys[0], at(100), at(200), run()).await.unwrap();
    assert!(first.is_some());
    // The same again, as after a crash before the answer; and another spec of the same pipeline at the same instant.
    assert_eq!(store.accept_scheduled(&keys[0], at(100), at(200), run()).await.unwrap(), None);
    assert_eq!(store.accept_scheduled(&keys[1], at(100), at(300), run()).await.unwrap(), None);
    assert_eq!(w.pending().await.len(), 1);
    assert_eq!(w.pending().await[0].at, at(100), "the time it was due");
    // Known ones keep their due time, also over a restart; those no longer named go.
    store.set_schedules(&shop(), wanted[..1].to_vec()).await.unwrap();
    assert_eq!(store.next_schedule().await.unwrap(), Some(at(200)));
    let (intake, _) = World::open(w.dir.path(), &w.bare);
    assert_eq!(intake.store().due_schedules(at(250)).await.unwrap(), [(keys[0].clone(), at(200))]);
    store.keep_schedules_of(Vec::new()).await.unwrap();
    assert_eq!(store.next_schedule().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_run_by_the_clock_with_the_commit_of_that_moment() {
    let w = World::new();
    let next = w.commit();
    w.push("refs/heads/main", Some(&next));
    let pipeline = PipelineName::new("nightly").unwrap();
    let specs: schedule::Specs = Arc::new(move |_| Ok(Some(vec![(pipeline.clone(), "every second".into())])));
    let next_after: schedule::NextAfter = Arc::new(|_, after| jiff::Timestamp::from_second(after.as_second() + 1).ok());
    let running = tokio::spawn(schedule::run(Arc::clone(&w.intake), specs, next_after));
    let before = Instant::now();
    while w.pending().await.len() < 3 {
        assert!(before.elapsed() < Duration::from_secs(10), "the schedule did not run");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.abort();
    let rows = w.pending().await;
    assert!(rows.iter().all(|r| r.kind == EventKind::Schedule && r.new == next && r.git_ref == "refs/heads/main"));
    let mut times: Vec<_> = rows.iter().map(|r| r.at).collect();
    times.dedup();
    assert_eq!(times.len(), rows.len(), "no tick ran twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_of_a_repository_that_could_not_be_fetched_stay() {
    let w = World::new();
    let due = jiff::Timestamp::from_second(4_000_000_000).unwrap();
    let nightly = (PipelineName::new("nightly").unwrap(), "0 3 * * *".to_owned(), due);
    w.intake.store().set_schedules(&shop(), vec![nightly]).await.unwrap();
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let specs: schedule::Specs = Arc::new({
        let asked = Arc::clone(&asked);
        move |_| {
            asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(None)
        }
    });
    let running = tokio::spawn(schedule::run(Arc::clone(&w.intake), specs, Arc::new(|_, _| None)));
    let before = Instant::now();
    while asked.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        assert!(before.elapsed() < Duration::from_secs(10), "nobody asked for the schedules");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    running.abort();
    assert_eq!(w.intake.store().next_schedule().await.unwrap(), Some(due));
}

/// What may happen in a random history of one branch.
#[derive(Debug, Clone)]
enum Happening {
    Push(char),
    Hook,
    Webhook,
    WebhookOutOfOrder,
    Poll,
    PollOfAnOldListing,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => prop::sample::select(vec!['a', 'b', 'c', '0']).prop_map(Happening::Push),
        2 => Just(Happening::Hook),
        2 => Just(Happening::Webhook),
        1 => Just(Happening::WebhookOutOfOrder),
        2 => Just(Happening::Poll),
        1 => Just(Happening::PollOfAnOldListing),
    ]
}

/// The branch, its feeders' messages under way, and the store.
struct History {
    store: Store,
    now: Oid,
    pushes: usize,
    accepted: usize,
    hooks: VecDeque<(usize, Oid, Oid)>,
    webhooks: VecDeque<(usize, Oid, Oid)>,
    /// What a slow poll read from store and branch some time ago.
    old_look: Option<(Oid, u64, Oid)>,
}

const BRANCH: &str = "refs/heads/main";

impl History {
    async fn known(&self) -> (Oid, u64) {
        let known = self.store.known_refs(&shop()).await.unwrap().unwrap();
        known.refs.get(BRANCH).cloned().unwrap_or((Oid::zero(), 0))
    }

    async fn tell(&mut self, feeder: Feeder, delivery: Option<String>, old: Oid, new: Oid, mut seen: Option<Seen>) {
        for _ in 0..3 {
            let change = RefReport { git_ref: BRANCH.into(), old: old.clone(), new: new.clone(), seen: seen.clone() };
            let report = Report {
                feeder,
                repo: shop(),
                delivery: delivery.clone(),
                actor: None,
                changes: vec![change],
                starts: 20,
            };
            match self.store.report(report).await.unwrap() {
                Answer::Decided(verdicts) => {
                    self.accepted += usize::from(matches!(verdicts[0], Verdict::Accepted(_)));
                    return;
                }
                Answer::Look(look) => seen = Some(Seen { oid: self.now.clone(), generation: look[0].1 }),
            }
        }
        panic!("the store keeps asking");
    }

    async fn poll(&mut self, look: (Oid, u64, Oid)) {
        let (old, generation, new) = look;
        if old != new {
            let seen = Some(Seen { oid: new.clone(), generation });
            self.tell(Feeder::Poll, None, old, new, seen).await;
        }
    }

    async fn happen(&mut self, what: Happening) {
        match what {
            Happening::Push(to) => {
                let new = oid(to);
                if new != self.now {
                    let change = (self.pushes, std::mem::replace(&mut self.now, new.clone()), new);
                    self.pushes += 1;
                    self.hooks.push_back(change.clone());
                    self.webhooks.push_back(change);
                }
            }
            Happening::Hook => {
                if let Some((n, old, new)) = self.hooks.pop_front() {
                    self.tell(Feeder::Hook, Some(format!("h{n}")), old, new, None).await;
                }
            }
            Happening::Webhook | Happening::WebhookOutOfOrder => {
                let late = matches!(what, Happening::WebhookOutOfOrder);
                let message = if late { self.webhooks.pop_back() } else { self.webhooks.pop_front() };
                if let Some((n, old, new)) = message {
                    self.tell(Feeder::Webhook, Some(format!("w{n}")), old, new, None).await;
                }
            }
            Happening::Poll => {
                let (old, generation) = self.known().await;
                self.poll((old, generation, self.now.clone())).await;
            }
            Happening::PollOfAnOldListing => {
                let (old, generation) = self.known().await;
                let fresh = (old, generation, self.now.clone());
                if let Some(look) = self.old_look.replace(fresh) {
                    self.poll(look).await;
                }
            }
        }
    }
}

/// Tells a history of a branch that holds `a`, in a store of its own.
fn play(story: impl AsyncFnOnce(&mut History)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let store = Store::open(dir.path()).unwrap();
        store.base_line(&shop(), [(BRANCH.to_owned(), oid('a'))].into(), None).await.unwrap();
        story(&mut History {
            store,
            now: oid('a'),
            pushes: 0,
            accepted: 0,
            hooks: VecDeque::new(),
            webhooks: VecDeque::new(),
            old_look: None,
        })
        .await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn no_history_runs_more_than_was_pushed_or_forgets_where_the_branch_is(
        history in proptest::collection::vec(happening(), 1..30),
    ) {
        play(async |h| {
            for what in history.clone() {
                h.happen(what).await;
            }
            while !h.hooks.is_empty() || !h.webhooks.is_empty() {
                h.happen(Happening::Hook).await;
                h.happen(Happening::Webhook).await;
            }
            h.happen(Happening::Poll).await;
            assert!(h.accepted <= h.pushes, "{} accepted of {} pushes: {history:?}", h.accepted, h.pushes);
            assert_eq!(h.known().await.0, h.now, "{history:?}");
        });
    }

    #[test]
    fn with_hooks_in_time_every_push_is_accepted_exactly_once(
        pushes in proptest::collection::vec(prop::sample::select(vec!['a', 'b', 'c', '0']), 1..12),
        between in proptest::collection::vec(happening(), 0..12),
    ) {
        play(async |h| {
            let mut between = between.into_iter().filter(|b| !matches!(b, Happening::Push(_)));
            for to in pushes {
                h.happen(Happening::Push(to)).await;
                h.happen(Happening::Hook).await;
                if let Some(what) = between.next() {
                    h.happen(what).await;
                }
            }
            while !h.webhooks.is_empty() {
                h.happen(Happening::WebhookOutOfOrder).await;
            }
            h.happen(Happening::Poll).await;
            assert_eq!(h.accepted, h.pushes);
        });
    }
}
