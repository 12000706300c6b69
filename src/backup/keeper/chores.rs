//! What follows a backup of either kind, and is done once a day anyway: what is stored is checked, then the old goes. Beside
//! everything else, since with many objects or a slow store it takes its time; one that is cut off is done again after the
//! next backup.

use super::Setup;
use crate::backup::catalog::retention::Policy;
use crate::backup::catalog::{expire, marks};
use crate::backup::verify;
use crate::model::source_view::{CheckedObjects, SourceView};
use jiff::Timestamp;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Where backups are made less often, the chores are done this often.
const EVERY: Duration = Duration::from_secs(86_400);
/// One of so many objects that were read before is read again by a check.
const SAMPLE: u64 = 50;

/// Those of one source: under way, or done some time ago.
pub(super) struct Chores<T> {
    under_way: JoinSet<T>,
    begun: Instant,
}

impl<T: Send + 'static> Chores<T> {
    /// None yet; the first are due in a day, or after a backup.
    pub(super) fn new() -> Chores<T> {
        Chores { under_way: JoinSet::new(), begun: Instant::now() }
    }

    /// Whether a day has passed since the last.
    pub(super) fn are_due(&self) -> bool {
        self.begun.elapsed() >= EVERY
    }

    /// Begins them.
    pub(super) fn begin(&mut self, chores: impl Future<Output = T> + Send + 'static) {
        self.under_way.spawn(chores);
        self.begun = Instant::now();
    }

    /// What they gave, when they end; never, without any.
    pub(super) async fn ended(&mut self) -> T {
        loop {
            match self.under_way.join_next().await {
                Some(Ok(given)) => return given,
                Some(Err(error)) => tracing::error!(%error, "a check of what is stored ended in the middle"),
                None => std::future::pending().await,
            }
        }
    }
}

/// Checks what is stored, then lets go what is too old.
pub(super) async fn chores(setup: &Setup, view: &watch::Sender<SourceView>) {
    // Before anything goes: a backup that is found damaged must not be the reason that an older one does.
    check(setup, view).await;
    expire(setup).await;
}

/// Lets go what is older than the source's file wants. What fails is told and tried again after the next backup.
async fn expire(setup: &Setup) {
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

/// Reads what no check has read before, and a sample of the rest; stores the proof. A place that cannot be reached proves
/// nothing, and the next check reads it.
async fn check(setup: &Setup, view: &watch::Sender<SourceView>) {
    let source = &setup.source.name;
    let now = Timestamp::now();
    let settings = verify::Settings { sample: SAMPLE, seed: now.as_second().unsigned_abs(), now };
    let (repository, checker) = (setup.repository.as_ref(), &setup.checker);
    let report = match verify::verify(repository, checker, None, Some(&setup.sealer), source, settings).await {
        Ok(report) => report,
        Err(error) => return tracing::warn!(%source, "failed to {error}"),
    };
    if let Some(why) = &report.ended_early {
        tracing::warn!(%source, "the check of what is stored ended before it was done: {why}");
    }
    for finding in &report.findings {
        tracing::error!(%source, name = finding.name, "what is stored is not what it should be: {}", finding.why);
    }
    if report.findings.is_empty() && report.ended_early.is_some() {
        return;
    }
    let of_log = report.clusters.iter().map(|cluster| cluster.log_read.objects);
    let backups = report.clusters.iter().flat_map(|cluster| cluster.backups.iter().chain(&cluster.dumps));
    let of_backups = backups.map(|backup| backup.read.objects);
    let objects = of_log.chain(of_backups).sum();
    let first = report.findings.first().map(|finding| format!("{}: {}", finding.name, finding.why));
    let wrong = report.findings.len() as u64;
    tracing::info!(%source, objects, wrong, "checked what is stored");
    view.send_modify(|view| view.checked = Some(CheckedObjects { at: Timestamp::now(), objects, wrong, first }));
}
