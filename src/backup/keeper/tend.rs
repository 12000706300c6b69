//! The task that tends one source: take the lease, ship, and take a base backup whenever one is due.

use super::{Kind, Opening, Setup, logical, once, view};
use crate::backup::catalog::index::Catalogue;
use crate::backup::catalog::manifest::Manifest;
use crate::backup::catalog::retention::Policy;
use crate::backup::catalog::{expire, marks};
use crate::backup::ship::lease::{Lease, LeaseError, Standing};
use crate::backup::ship::{Activity, Shipper, Status};
use crate::backup::take::Progress;
use crate::config::backup::Source;
use crate::model::source_view::{FailedBackup, LastBackup, SourceState, SourceView};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// After a failure the source is left alone for so long, and longer with each further one.
pub(super) const AGAIN: Duration = Duration::from_secs(5);
pub(super) const AGAIN_MAX: Duration = Duration::from_secs(300);
/// How often the clock is looked at for backups that are due: a schedule has minutes.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// What has come is put and a frontier stored before we end; a store that does not take it in this time does not at all.
const GRACE: Duration = Duration::from_secs(15);

/// A writer that died is followed after this long; three beats of the lease fit into it.
pub const LEASE_TTL: Duration = Duration::from_secs(30);

type Backup = JoinHandle<Result<Manifest, once::BackUpError>>;

/// Tends a source until it is told to stop; failures are shown, and tried again.
pub(super) async fn tend(
    source: Source,
    opening: Opening,
    mut wishes: mpsc::Receiver<Kind>,
    view: watch::Sender<SourceView>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0_u32;
    while !*stop.borrow() {
        let failed = tokio::select! {
            failed = once_over(&opening, &mut wishes, &view, stop.clone()) => failed,
            // Opening a repository may hang; nothing was begun then that would need an end.
            () = too_long_after(stop.clone()) => return,
        };
        let Err(why) = failed else { return };
        failures += 1;
        tracing::error!(source = %source.name, "failed to keep the source safe: {why}");
        view.send_modify(|view| {
            if view.state != SourceState::Elsewhere {
                view::turn(view, SourceState::Failing, format!("failed to {why}"));
            }
        });
        let pause = (AGAIN * 2_u32.saturating_pow(failures.min(10) - 1)).min(AGAIN_MAX);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Some time after the stop: whoever still has not ended by then hangs.
async fn too_long_after(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
    tokio::time::sleep(GRACE * 2).await;
}

/// From opening the repository to a stop or a failure.
async fn once_over(
    opening: &Opening,
    wishes: &mut mpsc::Receiver<Kind>,
    view: &watch::Sender<SourceView>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let setup = opening().await?;
    let lease = take_lease(&setup, view).await?;
    if let Some(what) = &setup.source.logical {
        return logical::tend(&setup, what, lease, wishes, view, stop).await;
    }
    let (mut last, whole_began) = newest(&setup).await?.unzip();
    let shipper = Shipper::start(once::shipping(&setup));
    let (mut shipped, mut standing) = (shipper.status(), lease.standing());
    let mut tended = Tended {
        setup: &setup,
        view,
        backup: None,
        tried: None,
        answered: None,
        whole_began,
        wanted: None,
        kind: Kind::Whole,
    };
    tended.show_last(last.as_ref());
    let ended = loop {
        tended.show(&shipped.borrow_and_update().clone());
        if let Standing::Lost(who) = &*standing.borrow_and_update() {
            break Err(format!("go on: {who}"));
        }
        if tended.backup.is_none() {
            let now = Timestamp::now();
            if let Some(kind) = tended.wanted.take() {
                tended.begin(shipper.status(), kind);
            } else if tended.is_due(last.as_ref(), &shipped.borrow(), now) {
                let kind = tended.kind(last.as_ref(), &shipped.borrow(), now);
                tended.begin(shipper.status(), kind);
            }
        }
        tokio::select! {
            () = stopped(&mut stop) => break Ok(()),
            Some(kind) = wishes.recv() => tended.wish(kind),
            ended = ended(&mut tended.backup) => {
                if let Some(taken) = tended.end(ended) {
                    last = Some(taken);
                    tended.show_last(last.as_ref());
                    expire(&setup).await;
                }
            }
            _ = shipped.changed() => {}
            Ok(()) = standing.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    };
    if let Some(backup) = tended.backup.take() {
        backup.abort();
    }
    shipper.stop(GRACE).await;
    lease.release().await;
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

/// Lets go what is older than the source's file wants. What fails is told and tried again after the next backup.
pub(super) async fn expire(setup: &Setup) {
    let keep = setup.source.keep;
    let settings = expire::Settings {
        policy: Policy { window: keep.window.0, backups: keep.backups },
        grace: marks::GRACE,
        dry_run: false,
        now: Timestamp::now(),
    };
    let source = &setup.source.name;
    match expire::expire(setup.repository.as_ref(), &setup.checker, &setup.sealer, source, settings).await {
        Ok(report) => {
            let refused = report.clusters.iter().filter_map(|one| one.plan.as_ref().err());
            for why in refused {
                tracing::error!(%source, "nothing is let go: {why}");
            }
            tracing::info!(%source, deleted = report.deleted.objects, bytes = report.deleted.bytes, "looked for what is too old");
        }
        Err(error) => tracing::error!(%source, "failed to {error}"),
    }
}

/// The end of the backup under way; never, without one.
async fn ended(backup: &mut Option<Backup>) -> Result<Manifest, String> {
    match backup {
        None => std::future::pending().await,
        Some(task) => match task.await {
            Ok(Ok(manifest)) => Ok(manifest),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("go on: {error}")),
        },
    }
}

/// The newest backup that can be used, and when the whole one that it rests on began.
async fn newest(setup: &Setup) -> Result<Option<(Manifest, Timestamp)>, String> {
    let read = Catalogue::read(setup.repository.as_ref(), &setup.checker, &setup.source.name).await;
    let catalogue = read.map_err(|error| error.to_string())?;
    let Some(holdings) = catalogue.newest_cluster() else { return Ok(None) };
    let chain = holdings.newest_usable().and_then(|backup| holdings.chain(backup.id()).ok()).unwrap_or_default();
    let ends = chain.first().zip(chain.last());
    Ok(ends.map(|(whole, newest)| (newest.manifest.clone(), whole.manifest.began)))
}

struct Tended<'a> {
    setup: &'a Setup,
    view: &'a watch::Sender<SourceView>,
    backup: Option<Backup>,
    /// When the last try that failed ended, and how many did in a row.
    tried: Option<(Timestamp, u32)>,
    /// The gap that the last backup was the answer to.
    answered: Option<String>,
    /// When the newest whole backup began.
    whole_began: Option<Timestamp>,
    /// What somebody wants and what is under way does not answer.
    wanted: Option<Kind>,
    /// What is under way.
    kind: Kind,
}

impl Tended<'_> {
    fn show(&self, status: &Status) {
        self.view.send_if_modified(|view| {
            let before = view.clone();
            view::shipping(view, status, &self.setup.source.wal_lag);
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
        let whole = last.is_none() || gap || self.whole_scheduled().is_some_and(|due| due <= now);
        match self.setup.source.incremental {
            Some(_) if !whole => Kind::Incremental,
            _ => Kind::Whole,
        }
    }

    /// Somebody wants a backup. What is under way answers it, unless that is less than what is wanted.
    fn wish(&mut self, kind: Kind) {
        let kind = if self.setup.source.incremental.is_some() { kind } else { Kind::Whole };
        if self.backup.is_none() || (self.kind == Kind::Incremental && kind == Kind::Whole) {
            self.wanted = Some(kind);
        }
    }

    /// Whether a backup is due: there is none, log is missing since the last one, or the schedule says so. One that was
    /// missed while nobody looked is made up for once.
    fn is_due(&self, last: Option<&Manifest>, status: &Status, now: Timestamp) -> bool {
        let needed = last.is_none() || (status.needs_base.is_some() && status.needs_base != self.answered);
        let scheduled = last.is_some() && self.scheduled(last).is_some_and(|due| due <= now);
        // Without a log that arrives, a backup would wait for it in vain.
        let possible = status.activity == Activity::Streaming;
        let rested = self.tried.is_none_or(|(at, failures)| {
            let pause = (AGAIN * 2_u32.saturating_pow(failures.min(10))).min(AGAIN_MAX);
            now.duration_since(at).unsigned_abs() >= pause
        });
        (needed || scheduled) && possible && rested
    }

    fn begin(&mut self, shipped: watch::Receiver<Status>, kind: Kind) {
        self.kind = kind;
        self.answered.clone_from(&shipped.borrow().needs_base);
        let (setup, view, began) = (self.setup.clone(), self.view.clone(), Timestamp::now());
        tracing::info!(source = %setup.source.name, ?kind, "a base backup begins");
        let tell = move |progress: Progress| view.send_modify(|view| view::under_way(view, began, kind, progress));
        self.backup = Some(tokio::spawn(async move { once::back_up(&setup, kind, shipped, Arc::new(tell)).await }));
    }

    fn end(&mut self, ended: Result<Manifest, String>) -> Option<Manifest> {
        self.backup = None;
        let failed = |why| FailedBackup { at: Timestamp::now(), words: format!("failed to {why}") };
        let failed = ended.as_ref().err().map(failed);
        self.view.send_modify(|view| {
            view.backup = None;
            view.failed_backup.clone_from(&failed);
        });
        match ended {
            Ok(manifest) => {
                tracing::info!(source = %self.setup.source.name, backup = %manifest.backup, "a base backup was taken");
                self.tried = None;
                if manifest.parent.is_none() {
                    self.whole_began = Some(manifest.began);
                }
                Some(manifest)
            }
            Err(why) => {
                tracing::error!(source = %self.setup.source.name, "failed to take a base backup: {why}");
                self.answered = None;
                let failures = self.tried.map_or(1, |(_, failures)| failures + 1);
                self.tried = Some((Timestamp::now(), failures));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::catalog::holdings::make::{at, empty, id};
    use crate::backup::repository::folder::Folder;
    use crate::backup::seal::{Checker, Sealer, new_key_set};
    use crate::config::backup::{Around, parse};

    fn setup(folder: &std::path::Path, more: &str) -> Setup {
        let store = crate::config::secret::SecretStore::new(folder);
        let around = Around { env: &|_| None, folder, store: &store, repos: None };
        let text = format!("postgres: \"postgres://backup@127.0.0.1/?sslmode=disable\"\n{more}\n");
        let source = parse(&"shop-db".parse().unwrap(), "shop-db.yml", &text, &around).unwrap();
        let keys = new_key_set().unwrap();
        Setup {
            source,
            repository: Arc::new(Folder::create(folder.join("repository")).unwrap()),
            sealer: Sealer::new(std::slice::from_ref(&keys.recipient), keys.signing.clone()).unwrap(),
            checker: Checker::new(vec![keys.signing.public()]),
            owner: "a test".into(),
            state: folder.to_owned(),
        }
    }

    /// What is due at an hour when the whole backup began at hour 1 and the last one at another. These hours are 13 minutes past
    /// those of UTC.
    fn due(more: &str, last: i64, now: i64, gap: bool) -> Option<Kind> {
        let dir = tempfile::tempdir().unwrap();
        let setup = setup(dir.path(), more);
        let (view, _) = watch::channel(view::starting(&setup.source));
        let holdings = empty().with_backup(1, 1, 1, 2, None).with_backup(last, 1, 3, 4, (last > 1).then_some(1));
        let last = &holdings.backups[&id(last)].manifest;
        let tended = Tended {
            setup: &setup,
            view: &view,
            backup: None,
            tried: None,
            answered: None,
            whole_began: Some(at(1)),
            wanted: None,
            kind: Kind::Whole,
        };
        let needs_base = gap.then(|| "log was lost".to_owned());
        let status = Status { activity: Activity::Streaming, needs_base, ..Status::default() };
        tended.is_due(Some(last), &status, at(now)).then(|| tended.kind(Some(last), &status, at(now)))
    }

    #[test]
    fn whole_ones_and_incremental_ones_have_schedules_of_their_own() {
        // Every two hours; a whole one each day at noon.
        let both = "schedule: '0 12 * * *'\nincremental: { schedule: '0 */2 * * *' }";
        let noon = (1..26).find(|hour| at(*hour).strftime("%H").to_string() == "12").unwrap();
        let (whole, incremental) = (Some(Kind::Whole), Some(Kind::Incremental));
        assert_eq!(due(both, 1, 1, false), None);
        assert!((2..=3).any(|hour| hour < noon && due(both, 1, hour, false) == incremental), "an even hour came");
        // After the noon it is a whole one, however new the last incremental one is.
        assert_eq!(due(both, noon - 1, noon, false), whole);
        assert_eq!(due(both, 1, 26, false), whole);
        // Without a schedule for whole ones they come from the bound of the chain.
        let only = "incremental: { schedule: '0 */2 * * *' }";
        assert_eq!((due(only, 1, 26, false), due(only, 1, 1, false)), (incremental, None));
        assert_eq!(due("schedule: '0 12 * * *'", 1, 26, false), whole);
        assert_eq!(due("", 1, 26, false), None);
        // Log was lost: what is built on now has nothing missing under it.
        for more in [both, only, ""] {
            assert_eq!(due(more, 1, 1, true), whole);
        }
    }

    #[test]
    fn a_wish_for_a_whole_one_waits_for_an_incremental_one() {
        let dir = tempfile::tempdir().unwrap();
        for (more, running, asked, wanted) in [
            ("incremental: { schedule: '0 * * * *' }", None, Kind::Incremental, Some(Kind::Incremental)),
            ("incremental: { schedule: '0 * * * *' }", Some(Kind::Incremental), Kind::Incremental, None),
            ("incremental: { schedule: '0 * * * *' }", Some(Kind::Incremental), Kind::Whole, Some(Kind::Whole)),
            ("incremental: { schedule: '0 * * * *' }", Some(Kind::Whole), Kind::Incremental, None),
            ("", Some(Kind::Whole), Kind::Whole, None),
            ("", None, Kind::Incremental, Some(Kind::Whole)),
        ] {
            let place = tempfile::tempdir_in(dir.path()).unwrap();
            let setup = setup(place.path(), more);
            let (view, _) = watch::channel(view::starting(&setup.source));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let backup = running.map(|_| runtime.spawn(std::future::pending()));
            let (kind, whole_began) = (running.unwrap_or(Kind::Whole), None);
            let mut tended = Tended {
                setup: &setup,
                view: &view,
                backup,
                tried: None,
                answered: None,
                whole_began,
                wanted: None,
                kind,
            };
            tended.wish(asked);
            assert_eq!(tended.wanted, wanted, "{more:?} {running:?} {asked:?}");
        }
    }
}
