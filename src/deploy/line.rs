//! Who comes first, where `newer: wait` says that nobody is overtaken: what is asked for an environment waits for what a
//! commit before its own asks for there, until that is decided and has begun, or never will.
//!
//! Enter the deploys that have not begun, the questions of approval steps, and the steps that have not been asked yet:
//! those are known to this process alone, and stand in line again when the next one goes on with their runs. Leaves one
//! that comes first. Commits decide, and among the same commit the run and the deploy that came first, so that two never
//! wait for each other.

use super::candidate::allowed;
use super::gate::Asking;
use super::{DeployError, Setup, Shared};
use crate::model::approval::Newer;
use crate::model::deploy::{DeployKind, DeployRequest, DeployStatus};
use crate::model::{DeployId, EnvironmentName, Oid, RepoName, RunId};
use std::sync::{Arc, Mutex, PoisonError};

/// A step that has reached the approval of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiter {
    number: u64,
    environment: EnvironmentName,
    repo: RepoName,
    commit: Oid,
    run: RunId,
}

/// The steps that have reached an approval, asked or not.
#[derive(Debug, Default)]
pub(super) struct Line(Mutex<(u64, Vec<Waiter>)>);

/// A place in the line; dropped, it is free.
pub(super) struct Place {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.line.0.lock().unwrap_or_else(PoisonError::into_inner).1.retain(|one| one.number != self.number);
        // Whoever stood behind it may be next.
        self.shared.announce();
    }
}

/// Another one that asks for the environment: its commit, its run and deploy, and what people call it.
struct Other {
    commit: Oid,
    order: (RunId, DeployId),
    words: String,
}

/// A step that is no deploy yet comes after the deploys of its run.
pub(super) const NO_DEPLOY: DeployId = DeployId(u64::MAX);

impl Shared {
    /// Takes a place for a step that has reached an approval.
    pub(super) fn stand_in_line(self: &Arc<Self>, environment: &EnvironmentName, asking: &Asking) -> Place {
        let from = &asking.provenance;
        let mut line = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, waiters) = &mut *line;
        *next += 1;
        let number = *next;
        waiters.push(Waiter {
            number,
            environment: environment.clone(),
            repo: from.repo.clone(),
            commit: from.commit.clone(),
            run: from.run,
        });
        Place { shared: Arc::clone(self), number }
    }

    /// What comes before a request that has not begun, in words; nothing where newer ones do not wait. `deploy` is its
    /// number, [`None`] for the approval step before it.
    pub(super) async fn comes_first(
        &self,
        setup: &Setup,
        request: &DeployRequest,
        deploy: Option<DeployId>,
    ) -> Result<Option<String>, DeployError> {
        let waits = setup.config.approval.as_ref().is_some_and(|policy| policy.newer == Newer::Wait);
        if !waits || !matches!(request.kind, DeployKind::Deploy | DeployKind::Promote) {
            return Ok(None);
        }
        let (environment, from) = (&request.environment, &request.provenance);
        let others = self.others(setup, environment, &from.repo).await?;
        let Some(mirror) = self.setups().mirrors.get(&from.repo).cloned() else { return Ok(None) };
        let (commit, order) = (from.commit.clone(), (from.run, deploy.unwrap_or(NO_DEPLOY)));
        let first = tokio::task::spawn_blocking(move || {
            let before = |other: &Other| match other.commit == commit {
                true => other.order < order,
                false => mirror.is_ancestor(&other.commit, &commit).unwrap_or(false),
            };
            others.into_iter().find(before).map(|other| other.words)
        });
        first.await.map_err(|error| DeployError::NotNow(format!("read the history: {error}")))
    }

    /// Everything of a repository that asks for the environment and has not begun.
    async fn others(
        &self,
        setup: &Setup,
        environment: &EnvironmentName,
        repo: &RepoName,
    ) -> Result<Vec<Other>, DeployError> {
        let mut others = Vec::new();
        for row in self.store.open_deploys(Some(environment.clone())).await? {
            let from = &row.request.provenance;
            let waits = matches!(row.status, DeployStatus::Queued | DeployStatus::Waiting)
                && matches!(row.request.kind, DeployKind::Deploy | DeployKind::Promote);
            // What may not come here takes nobody's place.
            if waits && from.repo == *repo && allowed(setup, &row.request) {
                let words = format!("deploy #{}", row.id);
                others.push(Other { commit: from.commit.clone(), order: (from.run, row.id), words });
            }
        }
        for asked in self.approvals.list(true).await? {
            // The question of a deploy counts with its deploy.
            let (Some(run), None) = (asked.run, asked.deploy) else { continue };
            if asked.environment.as_ref() != Some(environment) || asked.subject.repo != repo.as_str() {
                continue;
            }
            let Ok(commit) = asked.subject.commit.parse() else { continue };
            // A yes that a run has left behind is used by nobody.
            if self.store.load_run(run).await?.is_some_and(|(row, _)| !row.status.is_final()) {
                others.push(Other { commit, order: (run, NO_DEPLOY), words: format!("approval {}", asked.id) });
            }
        }
        let line = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiters = line.1.iter().filter(|one| one.environment == *environment && one.repo == *repo);
        others.extend(waiters.map(|one| Other {
            commit: one.commit.clone(),
            order: (one.run, NO_DEPLOY),
            words: format!("run #{}", one.run),
        }));
        Ok(others)
    }
}
