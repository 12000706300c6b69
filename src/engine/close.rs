//! After a run: everything of it leaves the engine, but for the workspace of a failed run, kept for a while.

use super::{EngineError, Shared};
use crate::model::{RunId, RunStatus};
use crate::runtime::SpaceName;
use crate::step::container::patiently;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// How often the engine is told to remove a run's things, and the pause between: what it still refuses then it refuses for
/// long. The run is closed all the same, and what is left is the periodic sweep's.
const CLOSING_ROUNDS: u32 = 3;
const CLOSING_PAUSE: Duration = Duration::from_secs(1);

/// Closes an ended run in the background, unless its driver is doing so already.
pub(super) fn close_later(shared: &Arc<Shared>, run: RunId) {
    // A driver that finds its run ended closes it; going through it keeps one task per run.
    shared.ensure_driver(run, None);
}

/// Removes what the engine holds of an ended run and records that.
pub(super) async fn close(shared: &Shared, run: RunId) -> Result<(), EngineError> {
    let (row, state) = shared.load(run).await?;
    let Some(repo) = shared.repo(&row.trigger.repo) else {
        // The repository has left the configuration; its things went with the sweep at start, or go with the next one.
        shared.store.close_run(run, None).await?;
        return Ok(());
    };
    if row.plan.steps.iter().all(|step| step.kind.only_waits()) && state.space.is_none() && state.lost.is_empty() {
        // Nothing was ever made for it, and an engine that is away has no say in it.
        shared.store.close_run(run, None).await?;
        return Ok(());
    }
    let settings = shared.settings();
    let keep = settings.keep.filter(|_| row.status == RunStatus::Failed && state.filled && state.space.is_some());
    crate::failpoint!("engine.close.before");
    for round in 1.. {
        let removed = async {
            for lost in &state.lost {
                patiently(|| repo.runtime.close(run, Some(lost), false)).await?;
            }
            patiently(|| repo.runtime.close(run, state.space.as_ref(), keep.is_some())).await
        };
        let Err(error) = removed.await else { break };
        if round == CLOSING_ROUNDS {
            // Engines under load now and then count a container that is gone among a network's until they restart.
            tracing::warn!(%run, %error, "failed to clean up after a run; the sweep goes on trying");
            break;
        }
        tracing::debug!(%run, %error, "failed to clean up after a run; trying again");
        tokio::time::sleep(CLOSING_PAUSE).await;
    }
    crate::failpoint!("engine.close.after");
    let kept = state.space.zip(keep).map(|(space, keep)| (space.0, Timestamp::now() + keep));
    shared.store.close_run(run, kept).await?;
    if !settings.keep_spaces_ready {
        return Ok(());
    }
    // The next push of this repository begins in a space that is there already.
    let source = shared.workspace_source(&repo, &row.trigger);
    let name = row.trigger.repo;
    tokio::spawn(async move { repo.runtime.warm(&name, &source).await });
    Ok(())
}

/// Removes kept workspaces whose time has come.
pub(super) async fn expire_kept(shared: &Shared) -> Result<(), EngineError> {
    let now = Timestamp::now();
    for (run, repo, space, until) in shared.store.kept_spaces().await? {
        if until > now {
            continue;
        }
        if let Some(repo) = shared.repo(&repo)
            && let Err(error) = repo.runtime.close(run, Some(&SpaceName(space)), false).await
        {
            tracing::warn!(%run, %error, "failed to remove a kept workspace; it will be tried again");
            continue;
        }
        shared.store.forget_kept_space(run).await?;
    }
    Ok(())
}
