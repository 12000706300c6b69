//! Health rules being asked about a release that serves: their answers, what they add up to, and where they are kept.

use super::health::judge::Judge;
use super::health::{Surroundings, watch as health_watch};
use super::{DeployError, Setup, Shared};
use crate::config::daemon::environment::HealthCheck;
use crate::model::DeployId;
use crate::model::deploy::Probe;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How often containers are counted while a rule about restarts is asked.
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// Answers on their way from the rules: far more than are ever asked at once.
const ANSWERS_QUEUED: usize = 256;
/// Answers taken from the store after a crash: all that a watch of an hour with a few rules has.
const ANSWERS_READ: u32 = 36_000;
/// Good answers are stored so many at once.
const ANSWERS_AT_ONCE: usize = 16;

/// Rules being asked; dropping it ends that.
pub(super) struct Asked {
    /// What the answers add up to.
    pub(super) judge: Judge,
    /// Answers as they come.
    pub(super) answers: mpsc::Receiver<Probe>,
    deploy: DeployId,
    unstored: Vec<Probe>,
    task: JoinHandle<()>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asked {
    /// Begins to ask, and takes into account what was answered since the release serves. `restarts` is how often the
    /// target's containers had been started anew by then.
    pub(super) async fn begin(
        shared: &Shared,
        setup: &Arc<Setup>,
        deploy: DeployId,
        since: Timestamp,
        restarts: u64,
    ) -> Result<Asked, DeployError> {
        let rules = setup.config.health.clone();
        let mut judge = Judge::new(&rules, since);
        for probe in shared.store.probes(deploy, ANSWERS_READ).await? {
            if probe.at >= since {
                judge.take(&probe);
            }
        }
        let (answers, receiver) = mpsc::channel(ANSWERS_QUEUED);
        let (count, counted) = watch::channel(Surroundings { restarts_since: None });
        let counts = rules.iter().any(|rule| matches!(rule.check, HealthCheck::Restarts(_)));
        let setup = Arc::clone(setup);
        let task = tokio::spawn(async move {
            let asking = health_watch::follow(&rules, counted, answers);
            let counting = async {
                if counts {
                    count_restarts(&setup, restarts, &count).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::join!(asking, counting);
        });
        Ok(Asked { judge, answers: receiver, deploy, unstored: Vec::new(), task })
    }

    /// Takes an answer; news is stored at once, the rest when there is enough of it.
    pub(super) async fn take(&mut self, shared: &Shared, probe: Probe, news: bool) -> Result<(), DeployError> {
        self.judge.take(&probe);
        self.unstored.push(probe);
        if news || self.unstored.len() >= ANSWERS_AT_ONCE { self.store(shared).await } else { Ok(()) }
    }

    /// Stores what is not stored yet.
    pub(super) async fn store(&mut self, shared: &Shared) -> Result<(), DeployError> {
        if !self.unstored.is_empty() {
            shared.store.add_probes(self.deploy, std::mem::take(&mut self.unstored)).await?;
        }
        Ok(())
    }
}

async fn count_restarts(setup: &Setup, before: u64, count: &watch::Sender<Surroundings>) {
    loop {
        if let Ok(observed) = setup.target.observe().await {
            count.send_replace(Surroundings { restarts_since: Some(observed.restarts().saturating_sub(before)) });
        }
        tokio::time::sleep(COUNT_EVERY).await;
    }
}
