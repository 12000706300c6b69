//! The daemon's loops. Each looks at stored state and does what is due; being woken only makes it look sooner.

use super::wire::Made;
use super::{Core, Health, sweep};
use crate::engine::begin::pipelines_at;
use crate::git::Tidied;
use crate::model::api::RunFilter;
use crate::model::ids::PipelineName;
use crate::model::{RepoName, RunStatus};
use crate::step::container::turned;
use crate::trigger::{schedule, spool, watch};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// The engine's loop looks at least this often: bounds what a lost wake-up costs.
const TICK: Duration = Duration::from_secs(1);
/// How old the answers of health checks may be.
const HEALTH_EVERY: Duration = Duration::from_secs(5);
/// Kept workspaces are looked through this often; they are kept for hours.
const EXPIRE_EVERY: Duration = Duration::from_secs(300);
/// Requests for approval whose time is over are looked for this often: they end that much late at the most.
const APPROVALS_EVERY: Duration = Duration::from_secs(2);
/// Old runs are looked for this often, and mirrors tidied; both are kept for days or pushes by the hundred.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(600);
/// Old runs forgotten before the housekeeping looks up again.
const OLD_RUNS_AT_ONCE: u32 = 100;
/// With less than this the database cannot write its journal for long.
const DISK_LOW_BYTES: u64 = 8 << 20;
/// Spaces made ready at start, for the repositories that ran last.
const WARM_AT_START: usize = 2;

/// The loops under way.
pub(super) struct Loops {
    tasks: JoinSet<()>,
}

impl Loops {
    /// Waits until all have seen that the daemon stops.
    pub(super) async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Starts every loop; each ends when the daemon stops.
pub(super) fn start(core: &Arc<Core>, hook: crate::trigger::socket::Listener, left: sweep::Left) -> Loops {
    let mut loops = Loops { tasks: JoinSet::new() };
    let intake = &core.intake;
    loops.until_stop(core, hook.run(Arc::clone(intake)));
    loops.until_stop(core, spool::run(Arc::clone(intake)));
    loops.until_stop(core, watch::run(Arc::clone(intake)));
    loops.until_stop(core, schedule::run(Arc::clone(intake), schedules_of(core), next_after()));
    loops.until_stop(core, engine(Arc::clone(core)));
    loops.until_stop(core, health(Arc::clone(core)));
    loops.until_stop(core, expire(Arc::clone(core)));
    loops.until_stop(core, approvals(Arc::clone(core)));
    // Ends by itself at the stop, when what is on its way has arrived or was given up.
    loops.tasks.spawn(messages(Arc::clone(core)));
    loops.until_stop(core, housekeeping(Arc::clone(core)));
    // Not cut off by the stop, which would leave half a space: giving up the pool waits for it.
    tokio::spawn(warm(Arc::clone(core)));
    loops.tasks.spawn(left.sweep(core.stopping.subscribe()));
    loops.until_stop(core, sweep_late(Arc::clone(core)));
    loops
}

impl Loops {
    fn until_stop(&mut self, core: &Core, work: impl Future<Output = ()> + Send + 'static) {
        let mut stopping = core.stopping.subscribe();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = turned(&mut stopping) => {}
                () = work => {}
            }
        });
    }
}

/// Begins what is in the inbox and starts what is queued.
async fn engine(core: Arc<Core>) {
    loop {
        for result in [core.engine.begin_pending().await, core.engine.tick().await] {
            if let Err(error) = result {
                tracing::error!(%error, "the engine's loop failed; it will try again");
                tokio::time::sleep(TICK).await;
            }
        }
        let _ = tokio::time::timeout(TICK, core.wake.notified()).await;
    }
}

/// Keeps the answers for health checks fresh.
async fn health(core: Arc<Core>) {
    let mut away = BTreeSet::new();
    loop {
        let health = look(&core, &mut away).await;
        *core.health.write().unwrap_or_else(PoisonError::into_inner) = health;
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}

/// `away` holds the engines that did not answer the last time: each is told of once, and once more when it is back.
async fn look(core: &Core, away: &mut BTreeSet<String>) -> Health {
    let mut health = Health { runtime_ok: true, ..Health::default() };
    let parts = core.parts();
    let mut names = Vec::new();
    let mut silent = BTreeSet::new();
    for Made { runtime, .. } in &parts.runtimes {
        match runtime.ping().await {
            Ok(version) => names.push(version),
            Err(error) => {
                health.runtime_ok = false;
                names.push(format!("{}: failed to {error}", runtime.name()));
                health.not_ready.push(format!("failed to {error}"));
                silent.insert(error.to_string());
            }
        }
    }
    for error in silent.difference(away) {
        tracing::warn!("failed to {error}; runs wait until it answers, `mainstay doctor` says what is missing");
    }
    if silent.is_empty() && !away.is_empty() {
        tracing::info!(runtime = names.join(", "), "the engine answers again");
    }
    *away = silent;
    health.runtime = names.join(", ");
    match core.engine.store().count_runs().await {
        Ok(counts) => {
            for (status, count) in counts {
                match status {
                    RunStatus::Queued => health.queued = count as usize,
                    RunStatus::Running => health.running = count as usize,
                    over => {
                        health.finished.insert(over.to_string(), count);
                    }
                }
            }
        }
        Err(error) => health.not_ready.push(format!("failed to {error}")),
    }
    let state = core.config().state.clone();
    match tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&state).map(|fs| (state, fs))).await {
        Ok(Ok((state, fs))) if fs.blocks_available().saturating_mul(fs.fragment_size()) < DISK_LOW_BYTES => {
            health.not_ready.push(format!("the disk of the state folder {} is full", state.display()));
        }
        // A file system that does not say how much is left will say it when something is written.
        _ => {}
    }
    match core.engine.store().count_pending_inbox().await {
        Ok(count) => health.inbox_pending = count as usize,
        Err(error) => health.not_ready.push(format!("failed to {error}")),
    }
    match core.engine.store().message_figures().await {
        Ok(figures) => health.messages = figures,
        Err(error) => health.not_ready.push(format!("failed to {error}")),
    }
    health
}

/// Removes kept workspaces whose time has come.
async fn expire(core: Arc<Core>) {
    loop {
        if let Err(error) = core.engine.expire_kept().await {
            tracing::error!(%error, "failed to remove kept workspaces");
        }
        tokio::time::sleep(EXPIRE_EVERY).await;
    }
}

/// Sends what was written for people.
async fn messages(core: Arc<Core>) {
    let written = Arc::new(Notify::new());
    let sending = crate::notify::outbox::run(
        core.engine.store().clone(),
        core.channels.subscribe(),
        Arc::clone(&written),
        core.stopping.subscribe(),
    );
    let (mut deploys, mut approvals) = (core.deploys.changes(), core.approvals.changes());
    let waking = async {
        loop {
            tokio::select! {
                Ok(()) = deploys.changed() => {}
                Ok(()) = approvals.changed() => {}
                else => return std::future::pending::<()>().await,
            }
            written.notify_one();
        }
    };
    tokio::select! {
        () = sending => {}
        () = waking => {}
    }
}

/// Ends what nobody decided in time.
async fn approvals(core: Arc<Core>) {
    loop {
        match core.approvals.expire_due().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "requests for approval expired"),
            Err(error) => {
                tracing::error!(%error, "failed to end overdue requests for approval; it will be tried again");
            }
        }
        tokio::time::sleep(APPROVALS_EVERY).await;
    }
}

/// Forgets what is old and tidies the mirrors.
async fn housekeeping(core: Arc<Core>) {
    loop {
        match forget_old(&core).await {
            Ok((0, 0)) => {}
            Ok((runs, reports)) => tracing::info!(runs, reports, "forgot old runs and reports"),
            Err(error) => tracing::error!("failed to forget old runs, it will be tried again: {error:#}"),
        }
        if let Err(error) = forget_restores(&core).await {
            tracing::warn!("failed to forget the restores of runs that are over: {error:#}");
        }
        let mirrors: Vec<_> = core.parts().mirrors.iter().map(|(n, m)| (n.clone(), Arc::clone(m))).collect();
        for (repo, mirror) in mirrors {
            // One at a time: this is nobody's errand.
            match tokio::task::spawn_blocking(move || mirror.tidy()).await {
                Ok(Ok(tidied)) if tidied == Tidied::default() => {}
                Ok(Ok(tidied)) => tracing::info!(%repo, tidied.loose, tidied.packs, "tidied the mirror"),
                Ok(Err(error)) => tracing::warn!(%repo, %error, "failed to tidy a mirror; it works all the same"),
                Err(error) => tracing::error!(%repo, %error, "tidying a mirror broke off"),
            }
        }
        tokio::time::sleep(HOUSEKEEPING_EVERY).await;
    }
}

/// What a restore of a pipeline said is kept until its run is over.
async fn forget_restores(core: &Core) -> anyhow::Result<()> {
    // In this order: the run of a restore that begins from now on is open when the runs are looked at.
    let kept = core.data.kept()?;
    let open: Vec<_> = core.engine.store().open_runs().await?.into_iter().map(|run| run.id).collect();
    for (name, run) in kept {
        if !run.is_some_and(|run| open.contains(&run)) {
            core.data.forget(&name).await?;
        }
    }
    Ok(())
}

/// How many runs and reports went. Logs go before the run's row, so that a kill in between leaves nothing unowned.
async fn forget_old(core: &Core) -> anyhow::Result<(usize, usize)> {
    let keep = core.config().keep.clone();
    let before = Timestamp::now().checked_sub(keep.age.0)?;
    let (store, logs) = (core.engine.store(), core.engine.logs());
    let (mut runs, mut reports) = (0, 0);
    loop {
        let old = store.old_runs(before, keep.runs, OLD_RUNS_AT_ONCE).await?;
        if old.is_empty() {
            break;
        }
        for run in old {
            let logs = logs.clone();
            tokio::task::spawn_blocking(move || logs.remove_run(run)).await??;
            store.forget_run(run).await?;
            runs += 1;
        }
    }
    loop {
        match store.forget_inbox(before).await? {
            0 => return Ok((runs, reports)),
            some => reports += some,
        }
    }
}

/// Removes what an engine finished making only after its run had closed.
async fn sweep_late(core: Arc<Core>) {
    sweep::late(&core.engine, || core.runtimes(), sweep::LATE_EVERY).await;
}

/// Makes spaces ready for the repositories that ran last, so that the first push after a start is quick too.
async fn warm(core: Arc<Core>) {
    let recent = core.engine.store().list_runs(&RunFilter::default()).await.unwrap_or_default();
    let mut seen = BTreeSet::new();
    for run in recent {
        if seen.len() < WARM_AT_START && seen.insert(run.repo) {
            core.engine.warm(run.id).await;
        }
    }
}

/// The schedules that a repository's pipelines name on its default branch now.
fn schedules_of(core: &Arc<Core>) -> schedule::Specs {
    let core = Arc::clone(core);
    Arc::new(move |repo: &RepoName| {
        let parts = core.parts();
        let Some(mirror) = parts.mirrors.get(repo) else { return Ok(Some(Vec::new())) };
        // The push that calls for this may have brought its objects alone: the mirror's refs are as of the last fetch.
        if let Err(error) = mirror.fetch() {
            tracing::debug!(%repo, %error, "schedules are read from the commit seen last");
            if mirror.refs().map_err(|error| error.to_string())?.refs.is_empty() {
                return Ok(None);
            }
        }
        // Nothing was pushed there yet.
        if mirror.default_branch().map_err(|error| error.to_string())?.is_none() {
            return Ok(Some(Vec::new()));
        }
        let files = mirror.resolve("").and_then(|head| pipelines_at(mirror, &head.commit));
        let mut specs: Vec<(PipelineName, String)> = Vec::new();
        for file in files.map_err(|error| error.to_string())? {
            // A broken file is told to whoever pushed it; its schedules rest meanwhile.
            let Ok(pipeline) = file.pipeline else { continue };
            specs.extend(pipeline.on.schedule.iter().map(|schedule| (file.name.clone(), schedule.as_str().to_owned())));
        }
        Ok(Some(specs))
    })
}

/// When a schedule is due after an instant.
fn next_after() -> schedule::NextAfter {
    Arc::new(|spec, after| spec.parse::<crate::config::schedule::Schedule>().ok()?.next_after(after))
}
