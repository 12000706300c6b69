//! One run, from its turn to its last event: look at the state, decide, record, act, record.
//!
//! Exactly one driver per run records events (`Shared::ensure_driver`). Everything slow happens in tasks that report
//! back as a [`Message`]; the driver itself only folds, decides and records. After a crash the same loop starts from
//! the stored events and finds what it had made by name. What concerns the run's [`space`], its [`attempt`]s, steps that
//! [`wait`] for others and how a run is [`park`]ed meanwhile has a file each.

mod attempt;
mod park;
mod space;
mod wait;

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
use crate::store::{Act, ActKind, EventRow, RowChange, RunRow};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Reports that one write makes durable at most: enough for all that ends together, and no one waits long for its own.
const REPORTS_AT_ONCE: usize = 64;

/// How long an ended run waits for containers that are still being made: starts on a busy machine take seconds.
const MAKING_WITHIN: Duration = Duration::from_secs(60);

/// How long an ended run waits for those who are told that nobody waits for them any more.
const CALLED_OFF_WITHIN: Duration = Duration::from_secs(10);

/// What the driver's tasks report.
enum Message {
    Image { reference: String, result: Result<ResolvedImage, RuntimeError> },
    Turn { step: StepName, turn: Turn },
    Ended { step: StepName, attempt: u32, result: AttemptResult },
}

/// A run's place under the limit of runs, while it is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It counts.
    Held,
    /// Given up; whether it is asked for again.
    GivenUp { wanted: bool },
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
    /// Who pushed or triggered the runs that this one repeats.
    original_actor: Vec<String>,
    /// Its place under the limit of runs.
    place: Place,
    /// Since when the run only waits.
    waits_since: Option<Instant>,
    /// What a parked run gives back, on its way out.
    giving_back: Option<JoinHandle<()>>,
    /// Events that `state` holds and the store does not yet, and what waits for them to be durable.
    noted: Noted,
}

/// What one write makes durable, and what is done right after it.
#[derive(Default)]
struct Noted {
    events: Vec<(EventRow, RowChange)>,
    /// What people did, of which some of the events tell.
    acts: Vec<Act>,
    /// Attempts to begin, each with its turn.
    starts: Vec<(StepName, u32, Turn)>,
    /// Attempts that wait for others.
    waits: Vec<(StepName, u32)>,
    /// People to answer.
    answers: Vec<oneshot::Sender<Result<(), EngineError>>>,
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
    let original_actor = wait::original_actor(shared, &row).await?;
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
        original_actor,
        place: Place::Held,
        waits_since: None,
        giving_back: None,
        noted: Noted::default(),
    };
    let mut stop = shared.stop.subscribe();
    let ended = tokio::select! {
        biased;
        () = turned(&mut stop) => Ok(false),
        result = driver.run_to_end(&mut commands) => result.map(|()| true),
    };
    if ended.is_err() {
        // Nothing could be recorded (a full disk). The next driver takes the attempts up: two must not write one log.
        driver.running.shutdown().await;
    }
    if ended? {
        driver.call_off().await;
        driver.await_containers().await;
        close::close(shared, run).await
    } else {
        Ok(())
    }
}

/// Ends a run that cannot be driven.
async fn give_up(shared: &Arc<Shared>, run: RunId, mut state: RunState, why: &str) -> Result<(), EngineError> {
    let event = RunEvent::Ended { status: RunStatus::Errored, error: Some(why.to_owned()) };
    let event = fold(&mut state, &event)?;
    shared.store.append_events(run, vec![event], Vec::new()).await?;
    shared.announce();
    close::close(shared, run).await
}

/// Moves the state by one event, and says how the event is stored.
fn fold(state: &mut RunState, event: &RunEvent) -> Result<(EventRow, RowChange), EngineError> {
    let at = Timestamp::now();
    state.apply(event, at)?;
    let change = match event {
        RunEvent::Begun { .. } => RowChange { status: Some(RunStatus::Running), error: None },
        RunEvent::Ended { status, error } => RowChange { status: Some(*status), error: error.clone() },
        _ => RowChange::default(),
    };
    Ok((EventRow { seq: state.seq, at, event: serde_json::to_string(event)? }, change))
}

impl Driver<'_> {
    async fn run_to_end(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), EngineError> {
        while let Ok(command) = commands.try_recv() {
            self.obey(command);
        }
        self.commit().await?;
        self.begin().await?;
        if self.state.status == RunStatus::Running {
            if self.state.parked {
                self.park_again();
            } else {
                self.open_space(commands).await?;
            }
            self.take_up_attempts();
        }
        while !self.state.status.is_final() {
            self.settle().await?;
            if self.state.status.is_final() {
                break;
            }
            if self.tend_space(commands).await? {
                continue;
            }
            self.look_ahead();
            self.next_reports(commands).await?;
        }
        Ok(())
    }

    /// Decides until nothing is left to decide, and makes all of it durable at once, with the reports that led to it.
    async fn settle(&mut self) -> Result<(), EngineError> {
        loop {
            let before = self.state.seq;
            for decision in decide(&self.state) {
                self.act(decision)?;
            }
            if self.state.seq == before {
                return self.commit().await;
            }
        }
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

    fn act(&mut self, decision: Decision) -> Result<(), EngineError> {
        match decision {
            Decision::Skip { step, reason, cancelled } => self.note(&RunEvent::StepSkipped { step, reason, cancelled }),
            Decision::Start { step, attempt } => self.start(&step, attempt),
            Decision::Stop { step, .. } => {
                if let Some(flag) = self.attempts.get(&step) {
                    flag.send_replace(true);
                }
                Ok(())
            }
            Decision::End { status } => self.note(&RunEvent::Ended { status, error: None }),
        }
    }

    /// Waits for the next report, and takes those that have come together with it.
    async fn next_reports(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), EngineError> {
        let time_to_park = self.time_to_park();
        tokio::select! {
            Some(message) = self.messages.recv() => self.take(message)?,
            Some(command) = commands.recv() => self.obey(command),
            () = time_to_park => return Ok(()),
        }
        for _ in 0..REPORTS_AT_ONCE {
            let Ok(message) = self.messages.try_recv() else { break };
            self.take(message)?;
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), EngineError> {
        match message {
            Message::Image { reference, result: Ok(image) } => {
                self.resolving.remove(&reference);
                self.note(&RunEvent::ImagePinned { image: ResolvedImage { reference, ..image } })
            }
            Message::Image { reference, result: Err(error) } => {
                self.resolving.remove(&reference);
                self.image_failed(&reference, &error.to_string())
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
                self.note(&RunEvent::StepEnded { step, attempt, result })
            }
        }
    }

    /// An image that cannot be had fails the attempts of the steps that are ready for it; others may never need it.
    fn image_failed(&mut self, reference: &str, detail: &str) -> Result<(), EngineError> {
        for decision in decide(&self.state) {
            let Decision::Start { step: name, attempt } = decision else { continue };
            let Some(step) = self.row.plan.step(&name).cloned() else { continue };
            if !step.kind.only_waits() && self.image_of(&step).as_deref() == Ok(reference) {
                let end = AttemptEnd::ImagePull { detail: detail.to_owned() };
                self.fail_unstarted(&name, attempt, end)?;
            }
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        let (by, done) = match command {
            Command::Cancel { by, done } => (by, done),
            Command::Resume => {
                self.shared.parked().remove(&self.run);
                self.place = Place::Held;
                return;
            }
        };
        match self.note(&RunEvent::CancelRequested { by: by.who().to_owned() }) {
            Ok(()) => {
                let (subject, details) = (format!("run {}", self.run), serde_json::json!({}));
                self.noted.acts.push(Act { by, kind: ActKind::Cancel, subject, details });
                self.noted.answers.push(done);
            }
            // Nobody may be waiting any more.
            Err(error) => drop(done.send(Err(error))),
        }
    }

    /// Moves the state; the event is durable after the next commit, and nothing may be done because of it before.
    fn note(&mut self, event: &RunEvent) -> Result<(), EngineError> {
        self.noted.events.push(fold(&mut self.state, event)?);
        Ok(())
    }

    /// Makes what was noted durable in one write, then does what waited for it.
    async fn commit(&mut self) -> Result<(), EngineError> {
        let Noted { events, acts, starts, waits, answers } = std::mem::take(&mut self.noted);
        if !events.is_empty() {
            self.shared.store.append_events(self.run, events, acts).await?;
            self.shared.announce();
        }
        for (step, attempt, turn) in starts {
            crate::failpoint!("engine.started");
            self.spawn_attempt(&step, attempt, Timestamp::now(), turn, false);
        }
        for (step, attempt) in waits {
            crate::failpoint!("engine.started");
            self.spawn_wait(&step, attempt, Timestamp::now());
        }
        for answer in answers {
            let _ = answer.send(Ok(()));
        }
        Ok(())
    }

    async fn record(&mut self, event: RunEvent) -> Result<(), EngineError> {
        self.note(&event)?;
        self.commit().await
    }

    /// A run that ended in an error may have steps that others are still asked about: they are told.
    async fn call_off(&mut self) {
        let plan = &self.row.plan;
        let waits = |step: &StepName| plan.step(step).is_some_and(|step| step.kind.only_waits());
        let mut open: BTreeSet<StepName> = self.attempts.keys().filter(|step| waits(step)).cloned().collect();
        for step in &open {
            self.attempts[step].send_replace(true);
        }
        let until = tokio::time::Instant::now() + CALLED_OFF_WITHIN;
        while !open.is_empty() {
            match tokio::time::timeout_at(until, self.messages.recv()).await {
                Ok(Some(Message::Ended { step, .. })) => open.remove(&step),
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => return,
            };
        }
    }

    /// Lets the engine finish the containers it makes ahead before they are removed: some lose count of a network's
    /// users when a container goes while it starts.
    async fn await_containers(&mut self) {
        let made = futures_util::future::join_all(std::mem::take(&mut self.ahead).into_values());
        if tokio::time::timeout(MAKING_WITHIN, made).await.is_err() {
            tracing::debug!(run = %self.run, "the engine does not finish the containers made ahead");
        }
        // What is given back now would be removed twice at once.
        if let Some(task) = self.giving_back.take()
            && tokio::time::timeout(MAKING_WITHIN, task).await.is_err()
        {
            tracing::debug!(run = %self.run, "the engine does not take back what the run gave up");
        }
    }
}

impl Drop for Driver<'_> {
    /// Attempts end by themselves or were told to by the daemon's stop; what only prepares ends here.
    fn drop(&mut self) {
        for task in self.queued.values() {
            task.abort();
        }
        for task in self.ahead.values() {
            task.abort();
        }
        if let Some(task) = &self.giving_back {
            task.abort();
        }
    }
}
