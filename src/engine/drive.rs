//! One run, from its turn to its last event: look at the state, decide, record, act, record.
//!
//! Exactly one driver per run records events (`Shared::ensure_driver`). Everything slow happens in tasks that report
//! back as a [`Message`]; the driver itself only folds, decides and records. After a crash the same loop starts from
//! the stored events and finds what it had made by name. What concerns the run's [`space`] and its [`attempt`]s has a
//! file each.

mod attempt;
mod space;

use super::decide::{Decision, decide};
use super::event::RunEvent;
use super::state::RunState;
use super::turns::Turn;
use super::{Command, EngineError, RepoSetup, Settings, Shared, close};
use crate::logs::mask::Masker;
use crate::model::outcome::AttemptResult;
use crate::model::{AttemptEnd, RunId, RunStatus, StepName};
use crate::runtime::{ResolvedImage, RuntimeError};
use crate::step::container::turned;
use crate::store::{EventRow, RowChange, RunRow};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// What the driver's tasks report.
enum Message {
    Image { reference: String, result: Result<ResolvedImage, RuntimeError> },
    Turn { step: StepName, turn: Turn },
    Ended { step: StepName, attempt: u32, result: AttemptResult },
}

struct Driver<'a> {
    shared: &'a Arc<Shared>,
    settings: Arc<Settings>,
    run: RunId,
    row: RunRow,
    repo: RepoSetup,
    state: RunState,
    masker: Arc<Masker>,
    sender: mpsc::UnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
    /// Images being resolved.
    resolving: BTreeSet<String>,
    /// Steps that wait for a turn.
    queued: BTreeMap<StepName, JoinHandle<()>>,
    /// Turns granted and not used yet.
    granted: BTreeMap<StepName, Turn>,
    /// Attempts under way, each with the flag that stops it.
    attempts: BTreeMap<StepName, watch::Sender<bool>>,
    /// Their tasks.
    running: JoinSet<()>,
    /// Containers made and started ahead.
    ahead: BTreeMap<StepName, JoinHandle<Option<OwnedSemaphorePermit>>>,
}

/// Drives the run until it has ended and is closed, or the daemon stops.
pub(super) async fn drive(
    shared: &Arc<Shared>,
    run: RunId,
    mut commands: mpsc::UnboundedReceiver<Command>,
) -> Result<(), EngineError> {
    let (row, state) = shared.load(run).await?;
    if row.status.is_final() {
        return close::close(shared, run).await;
    }
    let Some(repo) = shared.repo(&row.trigger.repo) else {
        return give_up(shared, run, state, "its repository is no longer in mainstay.yml").await;
    };
    if state.runtime.as_deref().is_some_and(|name| name != repo.runtime.name()) {
        return give_up(shared, run, state, "its repository was given another runtime while it ran").await;
    }
    let (sender, messages) = mpsc::unbounded_channel();
    let mut driver = Driver {
        shared,
        settings: shared.settings(),
        run,
        masker: shared.masker(&repo),
        repo,
        row,
        state,
        sender,
        messages,
        resolving: BTreeSet::new(),
        queued: BTreeMap::new(),
        granted: BTreeMap::new(),
        attempts: BTreeMap::new(),
        running: JoinSet::new(),
        ahead: BTreeMap::new(),
    };
    let mut stop = shared.stop.subscribe();
    let ended = tokio::select! {
        biased;
        () = turned(&mut stop) => Ok(false),
        result = driver.run_to_end(&mut commands) => result.map(|()| true),
    };
    driver.abandon_tasks();
    if ended.is_err() {
        // Nothing could be recorded (a full disk). The next driver takes the attempts up: two must not write one log.
        driver.running.shutdown().await;
    }
    if ended? { close::close(shared, run).await } else { Ok(()) }
}

/// Ends a run that cannot be driven.
async fn give_up(shared: &Arc<Shared>, run: RunId, mut state: RunState, why: &str) -> Result<(), EngineError> {
    let event = RunEvent::Ended { status: RunStatus::Errored, error: Some(why.to_owned()) };
    record(shared, run, &mut state, event).await?;
    close::close(shared, run).await
}

/// Writes one event and moves the state; nothing is done before it is durable.
async fn record(shared: &Shared, run: RunId, state: &mut RunState, event: RunEvent) -> Result<(), EngineError> {
    let at = Timestamp::now();
    let mut next = state.clone();
    next.apply(&event, at)?;
    let change = match &event {
        RunEvent::Begun { .. } => RowChange { status: Some(RunStatus::Running), error: None },
        RunEvent::Ended { status, error } => RowChange { status: Some(*status), error: error.clone() },
        _ => RowChange::default(),
    };
    let row = EventRow { seq: next.seq, at, event: serde_json::to_string(&event)? };
    shared.store.append_event(run, row, change).await?;
    *state = next;
    shared.announce();
    Ok(())
}

impl Driver<'_> {
    async fn run_to_end(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), EngineError> {
        while let Ok(command) = commands.try_recv() {
            self.obey(command).await?;
        }
        self.begin().await?;
        if self.state.status == RunStatus::Running {
            self.open_space(commands).await?;
            self.take_up_attempts();
        }
        while !self.state.status.is_final() {
            let before = self.state.seq;
            for decision in decide(&self.state) {
                self.act(decision).await?;
            }
            if self.state.seq != before {
                continue;
            }
            self.look_ahead();
            self.next_report(commands).await?;
        }
        Ok(())
    }

    async fn begin(&mut self) -> Result<(), EngineError> {
        if self.state.status == RunStatus::Queued && self.state.cancelled_by.is_none() {
            let runtime = self.repo.runtime.name().to_owned();
            self.record(RunEvent::Begun { runtime }).await?;
        }
        Ok(())
    }

    async fn end_in_error(&mut self, error: String) -> Result<(), EngineError> {
        self.record(RunEvent::Ended { status: RunStatus::Errored, error: Some(error) }).await
    }

    async fn act(&mut self, decision: Decision) -> Result<(), EngineError> {
        match decision {
            Decision::Skip { step, reason, cancelled } => {
                self.record(RunEvent::StepSkipped { step, reason, cancelled }).await
            }
            Decision::Start { step, attempt } => self.start(&step, attempt).await,
            Decision::Stop { step, .. } => {
                if let Some(flag) = self.attempts.get(&step) {
                    flag.send_replace(true);
                }
                Ok(())
            }
            Decision::End { status } => self.record(RunEvent::Ended { status, error: None }).await,
        }
    }

    async fn next_report(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), EngineError> {
        tokio::select! {
            Some(message) = self.messages.recv() => self.take(message).await,
            Some(command) = commands.recv() => self.obey(command).await,
            else => Ok(()),
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), EngineError> {
        match message {
            Message::Image { reference, result: Ok(image) } => {
                self.resolving.remove(&reference);
                self.record(RunEvent::ImagePinned { image: ResolvedImage { reference, ..image } }).await
            }
            Message::Image { reference, result: Err(error) } => {
                self.resolving.remove(&reference);
                self.image_failed(&reference, &error.to_string()).await
            }
            Message::Turn { step, turn } => {
                self.queued.remove(&step);
                self.granted.insert(step, turn);
                Ok(())
            }
            Message::Ended { step, attempt, result } => {
                self.attempts.remove(&step);
                while self.running.try_join_next().is_some() {}
                crate::failpoint!("engine.ended");
                self.record(RunEvent::StepEnded { step, attempt, result }).await
            }
        }
    }

    /// An image that cannot be had fails the attempts of the steps that are ready for it; others may never need it.
    async fn image_failed(&mut self, reference: &str, detail: &str) -> Result<(), EngineError> {
        for decision in decide(&self.state) {
            let Decision::Start { step: name, attempt } = decision else { continue };
            let Some(step) = self.row.plan.step(&name).cloned() else { continue };
            if self.image_of(&step).as_deref() == Ok(reference) {
                let end = AttemptEnd::ImagePull { detail: detail.to_owned() };
                self.fail_unstarted(&name, attempt, end).await?;
            }
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command) -> Result<(), EngineError> {
        let Command::Cancel { by, done } = command;
        let result = self.record(RunEvent::CancelRequested { by }).await;
        let _ = done.send(result);
        Ok(())
    }

    async fn record(&mut self, event: RunEvent) -> Result<(), EngineError> {
        record(self.shared, self.run, &mut self.state, event).await
    }

    /// Ends the tasks that only prepare; attempts end by themselves or were told to by the daemon's stop.
    fn abandon_tasks(&mut self) {
        for (_, task) in std::mem::take(&mut self.queued) {
            task.abort();
        }
        for (_, task) in std::mem::take(&mut self.ahead) {
            task.abort();
        }
    }
}
