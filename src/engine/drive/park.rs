//! The driver's part for a run that only waits for people and deploys: it gives back its place under the limit of runs and
//! everything of its space but the workspace, and takes both again when a step needs them.
//!
//! That it is parked is recorded before anything is given back; that it is not, after the space can be used again. A
//! daemon that is killed in between finds a parked run, gives back whatever there is, and goes on from there.

use super::space::NETWORK_RETRY_PAUSE;
use super::{Driver, MAKING_WITHIN, Place};
use crate::engine::decide::{Decision, decide, only_waits};
use crate::engine::event::RunEvent;
use crate::engine::{Command, EngineError};
use crate::runtime::RuntimeError;
use crate::step::container::patiently;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often an engine is told to take back what it refuses to, and the pause between: closing the run tries again.
const ROUNDS: u32 = 3;
const ROUND_PAUSE: Duration = Duration::from_secs(1);

impl Driver<'_> {
    /// Parks the run when it has only waited for a while, and takes it up again when a step is ready. True when there may
    /// be something to decide again.
    pub(super) async fn tend_space(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<bool, EngineError> {
        let wanted = self.wants_space();
        if self.state.parked {
            if wanted && self.place == Place::Held {
                self.unpark(commands).await?;
                return Ok(true);
            }
            self.give_up_place(wanted);
            return Ok(false);
        }
        let idle = only_waits(&self.state) && !wanted;
        self.waits_since = idle.then(|| self.waits_since.unwrap_or_else(Instant::now));
        if self.waits_since.is_some_and(|since| since.elapsed() >= self.settings.park_after) {
            self.waits_since = None;
            self.park().await?;
        }
        Ok(false)
    }

    /// Returns when the run should be parked, if it only waits.
    pub(super) fn time_to_park(&self) -> impl Future<Output = ()> + use<> {
        let left = self.waits_since.map(|since| self.settings.park_after.saturating_sub(since.elapsed()));
        async move {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        }
    }

    /// A step with a container is ready.
    fn wants_space(&self) -> bool {
        decide(&self.state).iter().any(|decision| match decision {
            Decision::Start { step, .. } => self.row.plan.step(step).is_some_and(|step| !step.kind.only_waits()),
            _ => false,
        })
    }

    async fn park(&mut self) -> Result<(), EngineError> {
        self.record(RunEvent::Parked { space: self.state.space.clone() }).await?;
        crate::failpoint!("engine.parked");
        self.park_again();
        Ok(())
    }

    /// Gives back what a parked run may still hold. An earlier daemon may have been killed before it had.
    pub(super) fn park_again(&mut self) {
        self.give_up_place(false);
        let Some(space) = self.state.space.clone() else { return };
        let (runtime, run) = (Arc::clone(&self.repo.runtime), self.run);
        let ahead = std::mem::take(&mut self.ahead);
        self.giving_back = Some(tokio::spawn(async move {
            // Some engines lose count of a network's users when a container goes while it starts.
            let _ = tokio::time::timeout(MAKING_WITHIN, join_all(ahead.into_values())).await;
            for round in 1..=ROUNDS {
                let closed = patiently(|| runtime.close(run, Some(&space), true)).await;
                let Err(error) = closed else { break };
                tracing::warn!(%run, round, %error, "failed to give back what a waiting run does not need");
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            crate::failpoint!("engine.given-back");
        }));
    }

    /// Says whether the run, which does not count, wants to count again.
    fn give_up_place(&mut self, wanted: bool) {
        let place = Place::GivenUp { wanted };
        if self.place != place {
            self.place = place;
            self.shared.parked().insert(self.run, wanted);
            self.shared.wake.notify_one();
        }
    }

    /// Makes the space usable again; reports and commands are taken meanwhile.
    async fn unpark(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), EngineError> {
        let Some(space) = self.state.space.clone() else {
            return self.end_in_error("the run has no workspace to go on in".into()).await;
        };
        let (runtime, run, repo) = (Arc::clone(&self.repo.runtime), self.run, self.row.trigger.repo.clone());
        let given_back = self.giving_back.take();
        let mut opening = tokio::spawn(async move {
            if let Some(given_back) = given_back {
                let _ = given_back.await;
            }
            crate::failpoint!("engine.unpark.before");
            let mut told = false;
            let reopened = loop {
                match patiently(|| runtime.reopen_space(run, &repo, &space)).await {
                    Err(error @ RuntimeError::NoNetworkLeft { .. }) => {
                        if !std::mem::replace(&mut told, true) {
                            tracing::warn!(%run, %error, "the run waits for a network");
                        }
                        tokio::time::sleep(NETWORK_RETRY_PAUSE).await;
                    }
                    answer => break answer,
                }
            };
            crate::failpoint!("engine.unpark.after");
            reopened
        });
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                Some(message) = self.messages.recv() => {
                    self.take(message)?;
                    self.commit().await?;
                }
                Some(command) = commands.recv() => {
                    self.obey(command);
                    self.commit().await?;
                }
            }
        };
        match opened {
            Ok(Ok(space)) => {
                self.record(RunEvent::Unparked { space }).await?;
                crate::failpoint!("engine.unparked");
                Ok(())
            }
            Ok(Err(error)) => {
                self.end_in_error(format!("failed to take the workspace up again: failed to {error}")).await
            }
            Err(panic) => self.end_in_error(format!("failed to take the workspace up again: {panic}")).await,
        }
    }
}
