//! Looks at a source while it is tended: tells people what is wrong, and does what its file wants done about it.
//!
//! In: what the tending shows ([`SourceView`]), and, while that is not good, what the server says of its slot. Out: episodes
//! in the [`Book`], a slot that is dropped before it fills the server's disk, a standby that steps down so that commits go on.
//! It runs beside the tending, since it matters most while that hangs.
//!
//! Everything is written down before it is done, and may be done twice: a watcher that is killed anywhere is followed by one
//! that finds in the book what was begun.

use super::concern::{Change, Episode, Judge, Seen, may_drop};
use crate::backup::source::postgres::standby::{self, Held};
use crate::backup::source::postgres::{Address, Connection, PostgresError, Purpose};
use crate::config::backup::{LagPolicy, Source};
use crate::model::quantity::rounded_bytes;
use crate::model::source_view::{Concern, ConcernKind, SourceState, SourceView};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, watch};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);
/// While the log is not stored the server is asked this often: even 500 MB/s of log is 2.5 GB between two looks.
const ASK: Duration = Duration::from_secs(5);
/// Older than this, what the shipper knows of the server's end is not believed: it reads no further while it waits.
const FRESH: Duration = Duration::from_secs(5);
/// A server that takes longer to say a word is asked again later.
const ANSWER: Duration = Duration::from_secs(20);
/// Our own connection was closed; the server notices that within this, or somebody else has the slot.
const LET_GO_WITHIN: Duration = Duration::from_secs(10);
/// A standby steps up again when it has been this close behind for this long.
const CLOSE_BYTES: u64 = 16 << 20;
const CLOSE_MS: u64 = 2_000;
const CLOSE_FOR: Duration = Duration::from_secs(5);

/// What is written down of a source beyond the life of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: only read.
    Read,
    /// Something went wrong; people are told. One of its kind that is open already is left as it is.
    Begin(Episode),
    /// It is over, and why. People are told when nothing else is wrong.
    End(ConcernKind, String),
}

/// Writes an entry down, durably and with the messages about it, and answers what is open then.
pub type Book = Arc<dyn Fn(Entry) -> BoxFuture<'static, Result<Vec<Episode>, String>> + Send + Sync>;

/// What the tending and the watching of a source have in common.
pub(super) struct Shared {
    pub(super) view: watch::Sender<SourceView>,
    /// The watcher wants the slot for itself: whoever tends closes its connections.
    pub(super) aside: watch::Sender<bool>,
    /// Held by whoever has connections that use the slot.
    pub(super) slot: Mutex<()>,
}

/// What a standby that has stepped down must find again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SteppedDown {
    /// What the setting said before.
    before: String,
    /// What it says meanwhile.
    meanwhile: String,
    /// It stood in a file that people write, and comes back by taking ours away.
    by_hand: bool,
}

struct Watcher<'a> {
    source: &'a Source,
    book: &'a Book,
    shared: &'a Shared,
    judge: Judge,
    open: Vec<Episode>,
    /// When the server was asked last, and what its slot held back.
    asked: Option<(Instant, Option<Held>)>,
    /// Since when the log has been close behind.
    close: Option<Instant>,
    /// When it was last tried to step down.
    tried: Option<Instant>,
    /// The server has said that no commit waits for us.
    down: bool,
    /// What was logged last, so that a failure is not logged each second.
    said: Option<String>,
}

/// Watches a source; ends when it is dropped.
pub(super) async fn guard(source: &Source, book: &Book, shared: &Shared) {
    let open = loop {
        match book(Entry::Read).await {
            Ok(open) => break open,
            Err(error) => tracing::error!(source = %source.name, "failed to {error}"),
        }
        tokio::time::sleep(ASK).await;
    };
    let judge = Judge::new(source.clone(), Instant::now());
    let mut watcher =
        Watcher { source, book, shared, judge, open, asked: None, close: None, tried: None, down: false, said: None };
    watcher.show();
    loop {
        watcher.look().await;
        tokio::time::sleep(LOOK).await;
    }
}

impl Watcher<'_> {
    async fn look(&mut self) {
        let view = self.shared.view.borrow().clone();
        // Another process that tends it watches it, too; logical copies have no slot.
        let slotless = self.source.logical.is_some() || view.state == SourceState::Elsewhere;
        if slotless || Judge::is_safe(&view, FRESH) {
            self.asked = None;
        } else if self.asked.is_none_or(|(at, _)| at.elapsed() >= ASK) {
            let held = self.ask().await;
            self.asked = Some((Instant::now(), held));
        }
        let by_shipper = || view.log.as_ref().filter(|_| Judge::is_safe(&view, FRESH)).map(|log| log.lag_bytes());
        let held = self.asked.and_then(|(_, held)| held);
        let seen = Seen { now: Instant::now(), view: &view, held: held.map(|held| held.bytes).or_else(by_shipper) };
        for change in self.judge.look(seen, &self.open) {
            match change {
                Change::Begin(kind, words) => self.begin(kind, words, None).await,
                Change::End(kind, words) => self.end(kind, words).await,
            };
        }
        if let (LagPolicy::DropSlot { at }, Some(held)) = (self.source.wal_lag.policy, held)
            && held.bytes > at.0
            && may_drop(&self.open, &held.restart.to_string())
        {
            self.drop_slot(held).await;
        }
        if view.state != SourceState::Elsewhere {
            self.stand(&view).await;
        }
    }

    /// What the slot holds back, by the server's own word.
    async fn ask(&self) -> Option<Held> {
        let asked = async {
            let mut connection = match Connection::open(&self.source.postgres, None, Purpose::Sql).await {
                Ok(connection) => connection,
                // From 15 on the other kind of connection answers too.
                Err(error) if error.is_passing() => return Err(error),
                Err(_) => Connection::open(&self.source.postgres, None, Purpose::Replication).await?,
            };
            let held = connection.held(&self.source.slot).await;
            connection.close().await;
            held
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(held)) => held,
            Ok(Err(error)) => {
                tracing::debug!(source = %self.source.name, %error, "what the slot holds back is not known");
                None
            }
            Err(_) => None,
        }
    }

    /// Drops our slot, so that the server lives on. What that costs is written down first.
    async fn drop_slot(&mut self, held: Held) {
        let LagPolicy::DropSlot { at } = self.source.wal_lag.policy else { return };
        let slot = &self.source.slot;
        let words = format!(
            "the slot {slot} held back {} of log, more than `wal-lag.drop`, {at}, and is dropped so that the server's disk does \
             not fill. What was not stored since {} may be gone: there is a gap in what can be restored, up to the end of the \
             base backup that is taken as soon as the log arrives again",
            rounded_bytes(held.bytes),
            held.restart
        );
        if !self.begin(ConcernKind::SlotDropped, words, Some(held.restart.to_string())).await {
            return;
        }
        self.shared.aside.send_replace(true);
        let dropped = {
            let _alone = self.shared.slot.lock().await;
            tokio::time::timeout(ANSWER + LET_GO_WITHIN, remove(&self.source.postgres, slot)).await
        };
        self.shared.aside.send_replace(false);
        match dropped {
            Ok(Ok(_)) => tracing::warn!(source = %self.source.name, slot, "dropped the replication slot"),
            Ok(Err(error)) => self.say(format!("failed to {error}")),
            Err(_) => self.say("failed to remove the slot: the server does not answer".into()),
        }
        // What is left of it is asked for before anything else is done about it.
        self.asked = None;
    }

    /// Steps down when commits have hung for too long, and up again when all is well.
    async fn stand(&mut self, view: &SourceView) {
        let stepped = self.open.iter().find(|episode| episode.kind == ConcernKind::SteppedDown);
        if let Some(memo) = stepped.map(|episode| episode.memo.clone().unwrap_or_default()) {
            let log = view.log.as_ref().filter(|_| view.state == SourceState::Shipping);
            let close = log.is_some_and(|log| log.lag_ms <= CLOSE_MS && log.lag_bytes() <= CLOSE_BYTES);
            self.close = if close { self.close.or(Some(Instant::now())) } else { None };
            if self.close.is_some_and(|since| since.elapsed() >= CLOSE_FOR) {
                self.step_up(&memo).await;
                self.close = None;
            } else if !self.down
                && self.may_try()
                && let Err(why) = self.stay_down(&memo).await
            {
                self.say(format!("failed to step down: {why}"));
            }
            return;
        }
        let Some(limit) = self.source.step_down else { return };
        if Judge::is_safe(view, limit.0) || self.judge.unsafe_for(Instant::now()) < limit.0 {
            if view.state == SourceState::Shipping && self.is_open(ConcernKind::CannotStepDown) {
                self.end(ConcernKind::CannotStepDown, "commits are stored again".into()).await;
            }
            return;
        }
        if !self.may_try() {
            return;
        }
        if let Err(why) = self.step_down(limit.0).await {
            self.say(format!("failed to step down: {why}"));
            if !self.is_open(ConcernKind::CannotStepDown) {
                let words =
                    format!("commits may hang until the repository is back, for Mainstay cannot step down: {why}");
                self.begin(ConcernKind::CannotStepDown, words, None).await;
            }
        }
    }

    /// The server is asked every few seconds: what it says may change.
    fn may_try(&mut self) -> bool {
        let rested = self.tried.is_none_or(|at| at.elapsed() >= ASK);
        if rested {
            self.tried = Some(Instant::now());
        }
        rested
    }

    async fn step_down(&mut self, limit: Duration) -> Result<(), String> {
        let ours = self.source.postgres.application_name.clone();
        let mut connection = answered(Connection::open(&self.source.postgres, None, Purpose::Sql)).await?;
        // Nobody waits for us: another process keeps up under the same name, or nothing was written.
        if answered(connection.is_kept_up(&ours)).await? {
            connection.close().await;
            return Ok(());
        }
        let names = answered(connection.standby_names()).await?;
        let meanwhile = standby::without(&names.text, &ours).map_err(|error| error.to_string())?;
        if meanwhile == names.text {
            connection.close().await;
            return Ok(());
        }
        if !answered(connection.may_set_standby_names()).await? {
            let grants = standby::grants(&self.source.postgres.user, connection.major());
            connection.close().await;
            return Err(format!("the role may not set synchronous_standby_names\nhint: {}", grants.join("\nhint: ")));
        }
        let memo = SteppedDown { before: names.text, meanwhile, by_hand: names.by_hand };
        let words = format!(
            "RPO 0 is not held: for {} s nothing was stored, and commits go on without the repository. \
             synchronous_standby_names was `{}` and is `{}` until all is stored again",
            limit.as_secs(),
            memo.before,
            memo.meanwhile
        );
        let text = serde_json::to_string(&memo).map_err(|error| error.to_string())?;
        // Before it is done: what is to be put back must be known whatever happens then.
        if !self.begin(ConcernKind::SteppedDown, words, Some(text)).await {
            return Err("write down what is to be put back".into());
        }
        let set = answered(connection.set_standby_names(Some(&memo.meanwhile), &memo.meanwhile)).await;
        connection.close().await;
        self.down = set.is_ok();
        if self.is_open(ConcernKind::CannotStepDown) {
            self.end(ConcernKind::CannotStepDown, "commits go on".into()).await;
        }
        // What failed half-way is finished by the next look.
        set
    }

    /// Finishes what was written down and perhaps not done.
    async fn stay_down(&mut self, memo: &str) -> Result<(), String> {
        let memo = read(memo)?;
        let mut connection = answered(Connection::open(&self.source.postgres, None, Purpose::Sql)).await?;
        let set = if answered(connection.standby_names()).await?.text == memo.before {
            answered(connection.set_standby_names(Some(&memo.meanwhile), &memo.meanwhile)).await
        } else {
            Ok(())
        };
        connection.close().await;
        self.down = set.is_ok();
        set
    }

    /// Puts back what was before, unless somebody has changed it meanwhile.
    async fn step_up(&mut self, memo: &str) {
        let put_back = async {
            let memo = read(memo)?;
            let mut connection = answered(Connection::open(&self.source.postgres, None, Purpose::Sql)).await?;
            let now = answered(connection.standby_names()).await?.text;
            let words = if now == memo.before {
                "commits wait for the repository as before".to_owned()
            } else if now == memo.meanwhile {
                let value = (!memo.by_hand).then_some(memo.before.as_str());
                answered(connection.set_standby_names(value, &memo.before)).await?;
                format!("synchronous_standby_names is `{}` again: commits wait for the repository", memo.before)
            } else {
                format!("synchronous_standby_names was changed to `{now}` by somebody else, and stays so")
            };
            connection.close().await;
            Ok::<_, String>(words)
        };
        match put_back.await {
            Ok(words) => {
                tracing::warn!(source = %self.source.name, "{words}");
                self.down = false;
                self.end(ConcernKind::SteppedDown, words).await;
            }
            Err(why) => self.say(format!("failed to make commits wait for the repository again: {why}")),
        }
    }

    fn is_open(&self, kind: ConcernKind) -> bool {
        self.open.iter().any(|episode| episode.kind == kind)
    }

    /// Writes down that something is wrong. True when that is durable.
    async fn begin(&mut self, kind: ConcernKind, words: String, memo: Option<String>) -> bool {
        if self.is_open(kind) {
            return true;
        }
        tracing::warn!(source = %self.source.name, concern = kind.as_str(), "{words}");
        let episode = Episode { kind, since: Timestamp::now(), words, memo };
        self.write(Entry::Begin(episode)).await
    }

    async fn end(&mut self, kind: ConcernKind, words: String) -> bool {
        self.write(Entry::End(kind, words)).await
    }

    async fn write(&mut self, entry: Entry) -> bool {
        match (self.book)(entry).await {
            Ok(open) => {
                self.open = open;
                self.show();
                true
            }
            Err(error) => {
                self.say(format!("failed to {error}"));
                false
            }
        }
    }

    fn show(&self) {
        let shown =
            |episode: &Episode| Concern { kind: episode.kind, since: episode.since, words: episode.words.clone() };
        let mut concerns: Vec<Concern> = self.open.iter().map(shown).collect();
        concerns.sort_by_key(|concern| (concern.since, concern.kind));
        self.shared.view.send_if_modified(|view| {
            let other = view.concerns != concerns;
            view.concerns = concerns;
            other
        });
    }

    /// Logs a failure, once as long as it stays the same.
    fn say(&mut self, words: String) {
        if self.said.as_ref() != Some(&words) {
            tracing::error!(source = %self.source.name, "{words}");
            self.said = Some(words);
        }
    }
}

fn read(memo: &str) -> Result<SteppedDown, String> {
    serde_json::from_str(memo).map_err(|error| format!("read what was before: {error}"))
}

/// Within a bound: a server that hangs must not keep the watcher from looking.
async fn answered<T>(asking: impl Future<Output = Result<T, PostgresError>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, asking).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("hear from the server within {} s", ANSWER.as_secs())),
    }
}

/// Removes a slot, once the server has noticed that we left it. False when there was none.
async fn remove(address: &Address, slot: &str) -> Result<bool, PostgresError> {
    /// object_in_use
    const IN_USE: &str = "55006";
    let mut connection = Connection::open(address, None, Purpose::Replication).await?;
    let end = Instant::now() + LET_GO_WITHIN;
    let removed = loop {
        match connection.drop_slot(slot).await {
            Err(error) if error.code() == Some(IN_USE) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            removed => break removed,
        }
    };
    connection.close().await;
    removed
}
