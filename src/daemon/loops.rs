//! The daemon's loops. Each looks at stored state and does what is due; being woken only makes it look sooner.

use super::wire::Made;
use super::{Core, DRAIN_WITHIN, Health, Sweeping};
use crate::engine::begin::pipelines_at;
use crate::model::api::RunFilter;
use crate::model::ids::PipelineName;
use crate::model::{RepoName, RunStatus};
use crate::step::container::turned;
use crate::trigger::{schedule, spool, watch};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch as watching;
use tokio::task::JoinSet;

/// The engine's loop looks at least this often: bounds what a lost wake-up costs.
const TICK: Duration = Duration::from_secs(1);
/// How old the answers of health checks may be.
const HEALTH_EVERY: Duration = Duration::from_secs(5);
/// Kept workspaces are looked through this often; they are kept for hours.
const EXPIRE_EVERY: Duration = Duration::from_secs(300);
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
pub(super) fn start(core: &Arc<Core>, hook: crate::trigger::socket::Listener, left: Sweeping) -> Loops {
    let mut loops = Loops { tasks: JoinSet::new() };
    let intake = &core.intake;
    loops.until_stop(core, hook.run(Arc::clone(intake)));
    loops.until_stop(core, spool::run(Arc::clone(intake)));
    loops.until_stop(core, watch::run(Arc::clone(intake)));
    loops.until_stop(core, schedule::run(Arc::clone(intake), schedules_of(core), next_after()));
    loops.until_stop(core, engine(Arc::clone(core)));
    loops.until_stop(core, health(Arc::clone(core)));
    loops.until_stop(core, expire(Arc::clone(core)));
    // Not cut off by the stop, which would leave half a space: giving up the pool waits for it.
    tokio::spawn(warm(Arc::clone(core)));
    loops.tasks.spawn(sweep(left, core.stopping.subscribe()));
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
    loop {
        let health = look(&core).await;
        *core.health.write().unwrap_or_else(PoisonError::into_inner) = health;
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}

async fn look(core: &Core) -> Health {
    let mut health = Health { runtime_ok: true, ..Health::default() };
    let parts = core.parts();
    let mut names = Vec::new();
    for Made { runtime, .. } in &parts.runtimes {
        match runtime.ping().await {
            Ok(version) => names.push(version),
            Err(error) => {
                health.runtime_ok = false;
                names.push(format!("{}: failed to {error}", runtime.name()));
                health.not_ready.push(format!("failed to {error}"));
            }
        }
    }
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
    match core.engine.store().count_pending_inbox().await {
        Ok(count) => health.inbox_pending = count as usize,
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

/// Removes what earlier daemons left, as soon as their engines answer. A stop waits a while for what is under way, so
/// that it leaves nothing behind either.
async fn sweep(mut left: Sweeping, mut stopping: watching::Receiver<bool>) {
    loop {
        tokio::select! {
            () = left.sweep() => {}
            () = async { turned(&mut stopping).await; tokio::time::sleep(DRAIN_WITHIN).await; } => return,
        }
        if left.runtimes.is_empty() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(HEALTH_EVERY) => {}
            () = turned(&mut stopping) => return,
        }
    }
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
        let Some(mirror) = parts.mirrors.get(repo) else { return Ok(Vec::new()) };
        let files = mirror.resolve("").and_then(|head| pipelines_at(mirror, &head.commit));
        let mut specs: Vec<(PipelineName, String)> = Vec::new();
        for file in files.map_err(|error| error.to_string())? {
            // A broken file is told to whoever pushed it; its schedules rest meanwhile.
            let Ok(pipeline) = file.pipeline else { continue };
            specs.extend(pipeline.on.schedule.iter().map(|schedule| (file.name.clone(), schedule.as_str().to_owned())));
        }
        Ok(specs)
    })
}

/// When a schedule is due after an instant.
fn next_after() -> schedule::NextAfter {
    Arc::new(|spec, after| spec.parse::<crate::config::schedule::Schedule>().ok()?.next_after(after))
}
