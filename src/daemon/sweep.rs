//! Sweeping the engines: what belongs to nobody goes, at start, from time to time, and at the stop.
//!
//! Enters the engine's open runs and kept workspaces (what is alive), and the runtimes. Leaves engines that hold nothing
//! else of this daemon. Called by the daemon's start, its loops and its stop.

use crate::engine::Engine;
use crate::model::RunId;
use crate::model::api::RunFilter;
use crate::runtime::{Leftover, Living, Runtime, RuntimeError, SpaceName};
use crate::step::container::turned;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often the engines are looked through while the daemon runs. An engine that has not answered a call in two minutes
/// has failed it for us and may still carry it out: a thing in the making is left over in one listing, and known to its
/// run, or really left over, in the next. A leftover costs a subnet and some memory until then.
pub const LATE_EVERY: Duration = Duration::from_secs(180);
/// An engine that was away at the start is asked again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Giving up the pool takes a removal or two, seconds on a busy machine; an engine that hangs must not keep the daemon
/// from stopping, and what stays is swept by the next one.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Runs that are not closed, with their spaces, kept workspaces, and what the runtimes hold ready.
///
/// Safe while runs begin, end and are repeated: what is read first is what others move things away from.
async fn living(engine: &Engine, runtimes: &[Arc<dyn Runtime>]) -> anyhow::Result<Living> {
    let store = engine.store();
    // A run that begins after this is newer than all that are known.
    let last = store.list_runs(&RunFilter { limit: 1, ..RunFilter::default() }).await?;
    let newest = last.first().map_or(RunId(0), |run| run.id);
    let kept = async || store.kept_spaces().await.map(|kept| kept.into_iter().map(|(_, _, space, _)| SpaceName(space)));
    // Before: a retry may take one over meanwhile. After: a run may close meanwhile and leave one.
    let mut spaces: Vec<_> = kept().await?.collect();
    let runs: Vec<_> = store.open_runs().await?.into_iter().map(|run| run.id).collect();
    spaces.extend(engine.spaces_of(&runs).await?);
    spaces.extend(kept().await?);
    // Two runtimes may share one engine, and see each other's spaces there.
    spaces.extend(runtimes.iter().flat_map(|runtime| runtime.held_spaces()));
    Ok(Living { runs, newest, spaces })
}

/// What is to be removed of earlier daemons, by what was true when this one started.
pub(super) struct Left {
    /// Where it has not been done yet.
    runtimes: Vec<Arc<dyn Runtime>>,
    living: Living,
}

impl Left {
    /// Looks at what is alive, and at nothing else.
    pub(super) async fn of_earlier(engine: &Engine, runtimes: Vec<Arc<dyn Runtime>>) -> anyhow::Result<Left> {
        Ok(Left { living: living(engine, &runtimes).await?, runtimes })
    }

    /// Removes it as soon as the engines answer. A stop waits a while for what is under way, so that it leaves nothing
    /// behind either.
    pub(super) async fn sweep(mut self, mut stopping: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = self.sweep_once() => {}
                () = async { turned(&mut stopping).await; tokio::time::sleep(DRAIN_WITHIN).await; } => return,
            }
            if self.runtimes.is_empty() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN_AFTER) => {}
                () = turned(&mut stopping) => return,
            }
        }
    }

    /// An engine that is away keeps its leftovers until the next try.
    async fn sweep_once(&mut self) {
        for runtime in std::mem::take(&mut self.runtimes) {
            match runtime.sweep(Some(&self.living)).await {
                Ok(()) => continue,
                // That it is away is for the health check to say.
                Err(error @ RuntimeError::Unreachable { .. }) => {
                    tracing::debug!(runtime = runtime.name(), %error, "leftovers of an earlier daemon wait");
                }
                Err(error) => {
                    tracing::warn!(runtime = runtime.name(), %error, "failed to sweep leftovers of an earlier daemon");
                }
            }
            self.runtimes.push(runtime);
        }
    }
}

/// Removes, until dropped, what engines finished making only after its run had closed; the rule is [`Late`]'s.
pub async fn late(engine: &Engine, runtimes: impl Fn() -> Vec<Arc<dyn Runtime>>, every: Duration) {
    let mut late = Late::default();
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = late.round(engine, &runtimes()).await {
            tracing::warn!("failed to find out what is alive, nothing is swept: {error:#}");
        }
    }
}

/// What was left over in the last round, which is what the next one may remove.
#[derive(Debug, Default)]
pub struct Late {
    seen: Vec<Leftover>,
    /// What the runtimes had against it in the last round: told once, not every three minutes.
    refused: BTreeSet<String>,
}

impl Late {
    /// Lists what is left over, and removes of it what was left over in the round before too.
    ///
    /// # Errors
    /// When it cannot be known what is alive. What a runtime has against it is logged.
    pub async fn round(&mut self, engine: &Engine, runtimes: &[Arc<dyn Runtime>]) -> anyhow::Result<()> {
        let seen = std::mem::take(&mut self.seen);
        let refused_before = std::mem::take(&mut self.refused);
        let living = living(engine, runtimes).await?;
        for runtime in runtimes {
            match sweep_seen(&**runtime, &living, &seen).await {
                Ok(stale) => self.seen.extend(stale),
                // That it is away is for the health check to say.
                Err(error @ RuntimeError::Unreachable { .. }) => {
                    tracing::debug!(runtime = runtime.name(), %error, "nothing is swept");
                }
                Err(error) => {
                    let error = error.to_string();
                    if !refused_before.contains(&error) {
                        tracing::warn!(runtime = runtime.name(), error, "failed to sweep leftovers; trying again");
                    }
                    self.refused.insert(error);
                    // What it refused to let go is still known, so that the next round tries again.
                    self.seen.extend(seen.iter().cloned());
                }
            }
        }
        Ok(())
    }
}

/// Removes what is left over and was `seen` before; what is left over for the first time.
async fn sweep_seen(runtime: &dyn Runtime, living: &Living, seen: &[Leftover]) -> Result<Vec<Leftover>, RuntimeError> {
    let (again, first): (Vec<_>, Vec<_>) =
        runtime.stale(Some(living)).await?.into_iter().partition(|thing| seen.contains(thing));
    if !again.is_empty() {
        runtime.discard(&again).await?;
        let names: Vec<_> = again.iter().map(|thing| thing.name.as_str()).collect();
        tracing::info!(runtime = runtime.name(), things = names.join(" "), "removed what was left over");
    }
    Ok(first)
}

/// Gives up the pools, closes what has ended and was not closed when the stop came, and sweeps once more: what an earlier
/// daemon had asked for when it was killed may have been made only after this one had swept.
pub(super) async fn leave_nothing(engine: &Engine, runtimes: Vec<Arc<dyn Runtime>>) {
    let stays = "leftovers stay until the next start";
    for runtime in &runtimes {
        if tokio::time::timeout(DRAIN_WITHIN, runtime.drain_pool()).await.is_err() {
            tracing::warn!(runtime = runtime.name(), "{stays}");
        }
    }
    match tokio::time::timeout(DRAIN_WITHIN, engine.close_ended()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "{stays}"),
        Err(_) => tracing::warn!("{stays}"),
    }
    // Without knowing what is alive nothing can be called left over.
    let Ok(living) = living(engine, &[]).await else { return };
    for runtime in runtimes {
        match tokio::time::timeout(DRAIN_WITHIN, runtime.sweep(Some(&living))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(runtime = runtime.name(), %error, "{stays}"),
            Err(_) => tracing::warn!(runtime = runtime.name(), "{stays}"),
        }
    }
}
