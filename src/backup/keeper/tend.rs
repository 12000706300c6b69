//! The task that tends one source: take the lease, ship, and take a base backup whenever one is due.

use super::chores::{Chores, chores};
use super::forecast::{Base, needs_base};
use super::guard::{Book, Shared, guard};
use super::work::{Tries, Work, ended, pause, show_end};
use super::{Kind, Opening, Setup, Wish, logical, once, view};
use crate::backup::catalog::index::Catalogue;
use crate::backup::catalog::manifest::Manifest;
use crate::backup::catalog::window::window;
use crate::backup::restore::estimate::Estimate;
use crate::backup::ship::lease::{Lease, LeaseError, Standing};
use crate::backup::ship::{Activity, Shipper, Status};
use crate::backup::take::{Phase, Progress};
use crate::config::backup::Source;
use crate::model::source_view::{ConcernKind, FailedBackup, LastBackup, RestoreForecast, SourceState, SourceView};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};

/// How often the clock is looked at for backups that are due: a schedule has minutes.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// What has come is put and a frontier stored before we end; a store that does not take it in this time does not at all.
const GRACE: Duration = Duration::from_secs(15);
/// The same when the slot is to be dropped: the server's disk fills, and what hangs has hung for long.
const GRACE_ASIDE: Duration = Duration::from_secs(1);

/// A writer that died is followed after this long; three beats of the lease fit into it.
pub const LEASE_TTL: Duration = Duration::from_secs(30);

/// Tends a source until it is told to stop, and watches over it; failures are shown, and tried again.
pub(super) async fn tend(
    source: Source,
    opening: Opening,
    book: Book,
    mut wishes: mpsc::Receiver<Wish>,
    view: watch::Sender<SourceView>,
    stop: watch::Receiver<bool>,
) {
    let shared = Shared { view, aside: watch::Sender::new(false), slot: Mutex::default() };
    tokio::select! {
        () = again_and_again(&source, &opening, &mut wishes, &shared, stop) => {}
        () = guard(&source, &book, &shared) => {}
    }
}

async fn again_and_again(
    source: &Source,
    opening: &Opening,
    wishes: &mut mpsc::Receiver<Wish>,
    shared: &Shared,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0_u32;
    // Kept beyond a time that is cut off: who waits for it would never hear of it.
    let mut wanted = None;
    while !*stop.borrow() {
        let mut aside = shared.aside.subscribe();
        tokio::select! {
            _ = aside.wait_for(|aside| !*aside) => {}
            () = told(&mut stop) => return,
        }
        let ended = {
            let _slot = shared.slot.lock().await;
            tokio::select! {
                ended = once_over(opening, wishes, &mut wanted, shared, stop.clone()) => ended,
                // Opening a repository may hang; nothing was begun then that would need an end.
                () = too_long_after(stop.clone()) => return,
                () = too_long_aside(aside) => Ok(Ended::Aside),
            }
        };
        shared.view.send_modify(|view| {
            // Cut off with all else. Whoever waits for it hears so.
            if view.backup.take().is_some() {
                let words = "failed to go on: the source was let go of meanwhile".to_owned();
                view.failed_backup = Some(FailedBackup { at: Timestamp::now(), words });
            }
        });
        let why = match ended {
            Ok(Ended::Stopped) => return,
            Ok(Ended::Aside) => continue,
            Err(why) => why,
        };
        failures += 1;
        tracing::error!(source = %source.name, "failed to keep the source safe: {why}");
        shared.view.send_modify(|view| {
            if view.state != SourceState::Elsewhere {
                view::turn(view, SourceState::Failing, format!("failed to {why}"));
            }
        });
        tokio::select! {
            () = tokio::time::sleep(pause(failures - 1)) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// How a look at a source ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Told to stop.
    Stopped,
    /// Told to let go of the slot for a moment.
    Aside,
}

/// Until somebody says so.
pub(super) async fn told(word: &mut watch::Receiver<bool>) {
    let _ = word.wait_for(|word| *word).await;
}

/// Some time after the stop: whoever still has not ended by then hangs.
async fn too_long_after(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
    tokio::time::sleep(GRACE * 2).await;
}

/// When the slot is wanted and is not let go in order.
async fn too_long_aside(mut aside: watch::Receiver<bool>) {
    if aside.wait_for(|aside| *aside).await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(GRACE_ASIDE * 3).await;
}

/// From opening the repository to a stop or a failure.
async fn once_over(
    opening: &Opening,
    wishes: &mut mpsc::Receiver<Wish>,
    wanted: &mut Option<Wish>,
    shared: &Shared,
    mut stop: watch::Receiver<bool>,
) -> Result<Ended, String> {
    let (view, mut aside) = (&shared.view, shared.aside.subscribe());
    let setup = opening().await?;
    let lease = take_lease(&setup, view).await?;
    if let Some(what) = &setup.source.logical {
        return logical::tend(&setup, what, lease, wishes, wanted, view, stop).await.map(|()| Ended::Stopped);
    }
    let mut newest = newest(&setup).await?;
    let mut last = newest.manifest.take();
    view.send_modify(|view| view.window_start = newest.window_start);
    let mut shipper = Shipper::start(once::shipping(&setup, *wanted == Some(Wish::NewCluster)));
    let (mut shipped, mut standing) = (shipper.status(), lease.standing());
    let mut tended = Tended {
        setup: &setup,
        view,
        chain_bytes: newest.chain_bytes,
        backup: None,
        tries: Tries::default(),
        answered: None,
        whole_began: newest.whole_began,
        wanted,
        kind: Kind::Whole,
    };
    tended.show_last(last.as_ref());
    let mut chores = Chores::new();
    let chore = || {
        let (setup, view) = (setup.clone(), view.clone());
        async move { after(&setup, &view).await }
    };
    let ended = loop {
        tended.show(&shipped.borrow_and_update().clone(), last.as_ref());
        if let Standing::Lost(who) = &*standing.borrow_and_update() {
            break Err(format!("go on: {who}"));
        }
        if tended.backup.is_none() {
            let now = Timestamp::now();
            if let Some(wish) = tended.wanted.take() {
                tended.begin(shipper.status(), wish.kind());
            } else if tended.is_due(last.as_ref(), &shipped.borrow(), now) {
                let kind = tended.kind(last.as_ref(), &shipped.borrow(), now);
                tended.begin(shipper.status(), kind);
            }
        }
        if chores.are_due() {
            chores.begin(chore());
        }
        tokio::select! {
            () = told(&mut stop) => break Ok(Ended::Stopped),
            () = told(&mut aside) => break Ok(Ended::Aside),
            Some(wish) = wishes.recv() => match wish {
                Wish::Backup(_) => tended.wish(wish),
                Wish::NewCluster => {
                    tracing::warn!(source = %setup.source.name, "a person says that another cluster may take this source's place");
                    tended.drop_backup();
                    // Noted before anything is waited for: that may be cut off.
                    tended.wish(wish);
                    shipper.stop(GRACE_ASIDE).await;
                    shipper = Shipper::start(once::shipping(&setup, true));
                    shipped = shipper.status();
                }
            },
            ended = ended(&mut tended.backup) => {
                if let Some(taken) = tended.end(ended) {
                    let own = stored_bytes(&taken);
                    tended.chain_bytes = if taken.parent.is_some() { tended.chain_bytes + own } else { own };
                    last = Some(taken);
                    tended.show_last(last.as_ref());
                    chores.begin(chore());
                }
            }
            newest = chores.ended() => {
                let Some(newest) = newest else { continue };
                // It may have looked before the newest backup was there.
                let same = newest.manifest.as_ref().map(|one| &one.backup) == last.as_ref().map(|one| &one.backup);
                if !same {
                    continue;
                }
                tended.chain_bytes = newest.chain_bytes;
                view.send_modify(|view| view.window_start = newest.window_start);
            }
            _ = shipped.changed() => {}
            Ok(()) = standing.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    };
    drop(tended);
    let grace = if ended == Ok(Ended::Aside) { GRACE_ASIDE } else { GRACE };
    shipper.stop(grace).await;
    // A store that does not answer must not keep the slot from being let go.
    let _ = tokio::time::timeout(grace, lease.release()).await;
    ended
}

/// Waits for the right to write as long as somebody else has it, and shows who.
async fn take_lease(setup: &Setup, view: &watch::Sender<SourceView>) -> Result<Lease, String> {
    let taken = Lease::take(
        setup.repository.clone(),
        setup.sealer.clone(),
        setup.checker.clone(),
        setup.source.name.clone(),
        &setup.owner,
        LEASE_TTL,
    );
    taken.await.map_err(|error| {
        if let LeaseError::Held { owner, .. } = &error {
            view.send_modify(|view| view::turn(view, SourceState::Elsewhere, format!("{owner} keeps it safe")));
        }
        error.to_string()
    })
}

/// What follows a backup, and is done once a day anyway: what is stored is checked, and the old goes. Answers how it stands
/// then, where that can be read.
async fn after(setup: &Setup, view: &watch::Sender<SourceView>) -> Option<Newest> {
    chores(setup, view).await;
    newest(setup).await.ok()
}

/// What the repository says of a source.
#[derive(Debug, Default)]
struct Newest {
    /// The newest backup that can be used.
    manifest: Option<Manifest>,
    /// Its bytes as stored, with all that it builds on.
    chain_bytes: u64,
    /// When the whole one that it rests on began.
    whole_began: Option<Timestamp>,
    /// From when on the source can be restored without a hole.
    window_start: Option<Timestamp>,
}

async fn newest(setup: &Setup) -> Result<Newest, String> {
    let read = Catalogue::read(setup.repository.as_ref(), &setup.checker, &setup.source.name).await;
    let catalogue = read.map_err(|error| error.to_string())?;
    let Some(holdings) = catalogue.newest_cluster() else { return Ok(Newest::default()) };
    let window = window(holdings);
    let end = window.newest().map(|point| (point.timeline, point.lsn));
    // Of several spans the one that reaches to now; a restore to before a hole is another matter.
    let span = window.spans.iter().find(|span| Some((span.to.timeline, span.to.lsn)) == end);
    let oldest = span.and_then(|span| holdings.backups.get(span.backups.first()?));
    let newest = holdings.newest_usable();
    let chain = newest.and_then(|backup| holdings.chain(backup.id()).ok()).unwrap_or_default();
    Ok(Newest {
        manifest: newest.map(|backup| backup.manifest.clone()),
        whole_began: chain.first().map(|whole| whole.manifest.began),
        chain_bytes: chain.iter().map(|backup| stored_bytes(&backup.manifest)).sum(),
        window_start: oldest.map(|backup| backup.manifest.ended),
    })
}

/// How long a backup took; nothing, when the clock was put back meanwhile.
fn took(manifest: &Manifest) -> Duration {
    Duration::try_from(manifest.ended.duration_since(manifest.began)).unwrap_or_default()
}

fn stored_bytes(manifest: &Manifest) -> u64 {
    manifest.objects.iter().map(|object| object.stored.bytes).sum()
}

struct Tended<'a> {
    setup: &'a Setup,
    view: &'a watch::Sender<SourceView>,
    /// What the newest backup needs to be restored, in bytes as stored.
    chain_bytes: u64,
    backup: Option<Work<Manifest>>,
    /// Those that failed.
    tries: Tries,
    /// The gap that the last backup was the answer to.
    answered: Option<String>,
    /// When the newest whole backup began.
    whole_began: Option<Timestamp>,
    /// What somebody wants and what is under way does not answer. It outlives this.
    wanted: &'a mut Option<Wish>,
    /// What is under way.
    kind: Kind,
}

impl Tended<'_> {
    fn show(&self, status: &Status, last: Option<&Manifest>) {
        let restore = self.forecast(last, status);
        self.view.send_if_modified(|view| {
            let before = view.clone();
            view::shipping(view, status);
            view.restore = restore.map(|now| RestoreForecast {
                base_secs: now.base_secs,
                log_secs: now.log_secs,
                total_secs: now.total_secs,
            });
            *view != before
        });
    }

    fn show_last(&self, last: Option<&Manifest>) {
        let next = self.scheduled(last);
        self.view.send_modify(|view| {
            view.last_backup = last.map(LastBackup::from);
            view.next_backup = next;
        });
    }

    /// When the schedules ask for the next one.
    fn scheduled(&self, last: Option<&Manifest>) -> Option<Timestamp> {
        let incremental = self.setup.source.incremental.as_ref();
        let began = last.map_or_else(Timestamp::now, |manifest| manifest.began);
        let incremental = incremental.and_then(|incremental| incremental.schedule.next_after(began));
        [self.whole_scheduled(), incremental].into_iter().flatten().min()
    }

    /// When the schedule asks for the next whole one.
    fn whole_scheduled(&self) -> Option<Timestamp> {
        let schedule = self.setup.source.schedule.as_ref()?;
        schedule.next_after(self.whole_began.unwrap_or_else(Timestamp::now))
    }

    /// What kind of backup is due: whole ones begin the chains, and answer lost log.
    fn kind(&self, last: Option<&Manifest>, status: &Status, now: Timestamp) -> Kind {
        let gap = status.needs_base.is_some() && status.needs_base != self.answered;
        let dropped = last.is_none_or(|last| self.was_dropped_since(last.began));
        let whole = dropped || gap || self.whole_scheduled().is_some_and(|due| due <= now);
        match self.setup.source.incremental {
            Some(_) if !whole => Kind::Incremental,
            _ => Kind::Whole,
        }
    }

    /// Somebody wants a backup. What is under way answers it, unless that is less than what is wanted.
    fn wish(&mut self, wish: Wish) {
        let wish = if self.setup.source.incremental.is_some() { wish } else { wish.max(Wish::Backup(Kind::Whole)) };
        if self.backup.is_none() || (self.kind == Kind::Incremental && wish.kind() == Kind::Whole) {
            // Of two the one that asks for more: it answers both.
            *self.wanted = (*self.wanted).max(Some(wish));
        }
    }

    /// How long a restore to the newest state would take now.
    fn forecast(&self, last: Option<&Manifest>, status: &Status) -> Option<Estimate> {
        let last = last?;
        // What a difference took is the server's reading, and says nothing of how fast bytes come.
        let own_bytes = if last.parent.is_none() { stored_bytes(last) } else { 0 };
        let base = Base { chain_bytes: self.chain_bytes, own_bytes, took: took(last) };
        // On another timeline too: places are counted on.
        Some(base.restore(status.durable?.0.saturating_sub(last.start.0)))
    }

    /// Whether a backup keeps a restore under the `rto`.
    fn is_needed(&self, last: Option<&Manifest>, status: &Status, now: Timestamp) -> bool {
        let (Some(rto), Some(last)) = (self.setup.source.rto, last) else { return false };
        let since = Duration::try_from(now.duration_since(last.began)).unwrap_or_default();
        self.forecast(Some(last), status).is_some_and(|restore| needs_base(restore, rto.0.as_secs(), since, took(last)))
    }

    /// Whether a backup is due: there is none, log is missing since the last one, a restore would take too long without, or
    /// the schedule says so. One that was missed while nobody looked is made up for once.
    fn is_due(&self, last: Option<&Manifest>, status: &Status, now: Timestamp) -> bool {
        let needed = last.is_none() || (status.needs_base.is_some() && status.needs_base != self.answered);
        let needed = needed || last.is_some_and(|last| self.was_dropped_since(last.began));
        let needed = needed || self.is_needed(last, status, now);
        let scheduled = last.is_some() && self.scheduled(last).is_some_and(|due| due <= now);
        // Without a log that arrives, a backup would wait for it in vain.
        let possible = status.activity == Activity::Streaming;
        (needed || scheduled) && possible && self.tries.have_rested(now)
    }

    /// Whether the slot was dropped after that: whatever log is missing then, a new base backup begins a new whole.
    fn was_dropped_since(&self, began: Timestamp) -> bool {
        let view = self.view.borrow();
        view.concerns.iter().any(|one| one.kind == ConcernKind::SlotDropped && one.since >= began)
    }

    fn begin(&mut self, shipped: watch::Receiver<Status>, kind: Kind) {
        self.kind = kind;
        self.answered.clone_from(&shipped.borrow().needs_base);
        let (setup, view, began) = (self.setup.clone(), self.view.clone(), Timestamp::now());
        tracing::info!(source = %setup.source.name, ?kind, "a base backup begins");
        // From now on: who waits for one that is cut off before it says anything hears of that.
        let nothing = Progress { phase: Phase::Opening, received_bytes: 0, estimated_bytes: None, stored_bytes: 0 };
        view.send_modify(|view| {
            view.backup = None;
            view::under_way(view, began, kind, nothing);
        });
        let tell = move |progress: Progress| view.send_modify(|view| view::under_way(view, began, kind, progress));
        self.backup = Some(tokio::spawn(async move { once::back_up(&setup, kind, shipped, Arc::new(tell)).await }));
    }

    fn drop_backup(&mut self) {
        if let Some(backup) = self.backup.take() {
            backup.abort();
        }
    }

    fn end(&mut self, ended: Result<Manifest, String>) -> Option<Manifest> {
        self.backup = None;
        show_end(self.view, &ended);
        match ended {
            Ok(manifest) => {
                tracing::info!(source = %self.setup.source.name, backup = %manifest.backup, "a base backup was taken");
                self.tries = Tries::default();
                if manifest.parent.is_none() {
                    self.whole_began = Some(manifest.began);
                }
                Some(manifest)
            }
            Err(why) => {
                tracing::error!(source = %self.setup.source.name, "failed to take a base backup: {why}");
                self.answered = None;
                self.tries.failed(Timestamp::now());
                None
            }
        }
    }
}

impl Drop for Tended<'_> {
    fn drop(&mut self) {
        self.drop_backup();
    }
}

#[cfg(test)]
mod tests;
