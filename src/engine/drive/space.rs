//! The driver's part that concerns the run's space: taken, filled, given up, or taken over from the run it repeats.

use super::Driver;
use crate::engine::decide::needs_space;
use crate::engine::event::RunEvent;
use crate::engine::state::Carried;
use crate::engine::{Command, EngineError};
use crate::runtime::{RuntimeError, SpaceName};
use crate::step::container::patiently;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pause before asking again for a network while all are in use.
pub(super) const NETWORK_RETRY_PAUSE: Duration = Duration::from_millis(500);

impl Driver<'_> {
    /// Takes a space and fills its workspace; the first containers are made meanwhile.
    pub(super) async fn open_space(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<(), EngineError> {
        let carried: Option<Carried> = self.row.carried.as_deref().map(serde_json::from_str).transpose()?;
        let kept = carried.and_then(|carried| carried.space);
        if self.state.filled {
            return Ok(());
        }
        // Deploys and approvals take place elsewhere.
        if kept.is_none() && self.state.space.is_none() && !needs_space(&self.state) {
            return Ok(());
        }
        if let Some(kept) = kept {
            return self.reopen_kept(&kept).await;
        }
        // An earlier daemon was killed while it filled this one: what is in it cannot be known.
        self.give_up_space().await?;
        loop {
            self.resolve_ahead();
            self.take_space(commands).await?;
            if self.state.status.is_final() || self.state.space.is_none() {
                return Ok(());
            }
            self.fill_space(commands).await?;
            if self.state.status.is_final() || self.state.filled {
                return Ok(());
            }
        }
    }

    /// Gives up a space that may be half filled, with the containers made ahead in it.
    async fn give_up_space(&mut self) -> Result<(), EngineError> {
        let Some(space) = self.state.space.clone() else { return Ok(()) };
        for (_, task) in std::mem::take(&mut self.ahead) {
            task.abort();
        }
        let runtime = Arc::clone(&self.repo.runtime);
        if let Err(error) = patiently(|| runtime.close(self.run, Some(&space), false)).await {
            tracing::warn!(run = %self.run, %error, "failed to remove a half-filled space; it goes when the run is closed");
        }
        self.record(RunEvent::SpaceLost { space }).await
    }

    async fn fill_space(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), EngineError> {
        let runtime = Arc::clone(&self.repo.runtime);
        self.look_ahead();
        let source = self.shared.workspace_source(&self.repo, &self.row.trigger);
        let Some(space) = self.state.space.clone() else { return Ok(()) };
        let filling = tokio::spawn({
            let runtime = Arc::clone(&runtime);
            async move { runtime.fill(&space, &source).await }
        });
        // Reports are taken while the workspace fills: images get pinned and containers started in the same time.
        let mut filling = filling;
        let filled = loop {
            tokio::select! {
                filled = &mut filling => break filled,
                Some(message) = self.messages.recv() => {
                    self.take(message)?;
                    self.commit().await?;
                    self.look_ahead();
                }
                Some(command) = commands.recv() => {
                    self.obey(command);
                    self.commit().await?;
                }
            }
        };
        match filled {
            Ok(Ok(())) => self.record(RunEvent::WorkspaceFilled).await,
            // The engine went away in the middle: what is in the workspace cannot be known.
            Ok(Err(error @ RuntimeError::Unreachable { .. })) => {
                tracing::warn!(run = %self.run, %error, "lost the engine while the workspace was filled; another space is taken");
                self.give_up_space().await
            }
            Ok(Err(error)) => self.end_in_error(format!("failed to fill the workspace: failed to {error}")).await,
            Err(panic) => self.end_in_error(format!("failed to fill the workspace: {panic}")).await,
        }
    }

    /// Waits for a space as long as it takes, or until the run is cancelled.
    async fn take_space(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), EngineError> {
        let mut told = false;
        while self.state.cancelled_by.is_none() {
            let runtime = Arc::clone(&self.repo.runtime);
            let taken = patiently(|| runtime.take_space(self.run, &self.row.trigger.repo)).await;
            match taken {
                Ok(space) => {
                    let recorded = self.record(RunEvent::SpaceTaken { space: space.clone() }).await;
                    if recorded.is_err() {
                        // A full disk: nobody would know of it, and the next try takes another one. Should the record be
                        // there after all, a space that is gone is taken for lost.
                        let _ = runtime.close(self.run, Some(&space), false).await;
                    }
                    return recorded;
                }
                Err(error @ RuntimeError::NoNetworkLeft { .. }) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(run = %self.run, %error, "the run waits for a network");
                    }
                }
                Err(error) => return self.end_in_error(format!("failed to {error}")).await,
            }
            tokio::select! {
                () = tokio::time::sleep(NETWORK_RETRY_PAUSE) => {}
                Some(command) = commands.recv() => {
                    self.obey(command);
                    self.commit().await?;
                }
            }
        }
        Ok(())
    }

    /// Goes on in the workspace that the repeated run left behind.
    async fn reopen_kept(&mut self, kept: &SpaceName) -> Result<(), EngineError> {
        let runtime = Arc::clone(&self.repo.runtime);
        match patiently(|| runtime.reopen_space(self.run, &self.row.trigger.repo, kept)).await {
            Ok(space) => {
                if self.state.space.is_none() {
                    self.record(RunEvent::SpaceTaken { space }).await?;
                }
                self.record(RunEvent::WorkspaceFilled).await
            }
            Err(error) => self.end_in_error(format!("failed to take over the kept workspace: {error}")).await,
        }
    }
}
