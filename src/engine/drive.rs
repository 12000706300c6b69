//! One run, from its turn to its last event: look at the state, decide, record, act, record.
//!
//! Exactly one driver per run records events (`Shared::ensure_driver`). Everything slow happens in tasks that report
//! back as a [`Message`]; the driver itself only folds, decides and records. After a crash the same loop starts from
//! the stored events and finds what it had made by name.

use super::decide::{Decision, decide, likely_next, status_seen_by};
use super::event::RunEvent;
use super::state::{Carried, RunState};
use super::turns::Turn;
use super::{Command, EngineError, RepoSetup, Settings, Shared, close};
use crate::config::expression;
use crate::logs::mask::Masker;
use crate::model::outcome::AttemptResult;
use crate::model::plan::PlannedStep;
use crate::model::{AttemptEnd, AttemptId, RunId, RunStatus, StepName};
use crate::runtime::{ResolvedImage, RuntimeError, SpaceName, StepSpec, Word};
use crate::step;
use crate::step::container::{AttemptJob, patiently, turned};
use crate::step::environment::{Facts, environment};
use crate::store::{EventRow, RowChange, RunRow};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Pause before an image that could not be had is asked for again; doubles with each attempt.
const IMAGE_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause before asking again for a network while all are in use.
const NETWORK_RETRY_PAUSE: Duration = Duration::from_millis(500);

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

    /// Takes a space and fills its workspace; the first containers are made meanwhile.
    async fn open_space(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), EngineError> {
        let carried: Option<Carried> = self.row.carried.as_deref().map(serde_json::from_str).transpose()?;
        let kept = carried.and_then(|carried| carried.space);
        if self.state.filled {
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
                    self.take(message).await?;
                    self.look_ahead();
                }
                Some(command) = commands.recv() => self.obey(command).await?,
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
                Ok(space) => return self.record(RunEvent::SpaceTaken { space }).await,
                Err(error @ RuntimeError::NoNetworkLeft { .. }) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(run = %self.run, %error, "the run waits for a network");
                    }
                }
                Err(error) => return self.end_in_error(format!("failed to {error}")).await,
            }
            tokio::select! {
                () = tokio::time::sleep(NETWORK_RETRY_PAUSE) => {}
                Some(command) = commands.recv() => self.obey(command).await?,
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

    async fn end_in_error(&mut self, error: String) -> Result<(), EngineError> {
        self.record(RunEvent::Ended { status: RunStatus::Errored, error: Some(error) }).await
    }

    /// Attempts that an earlier daemon had started are followed again; they keep their turn.
    fn take_up_attempts(&mut self) {
        let open: Vec<_> = self
            .state
            .steps
            .iter()
            .filter_map(|(name, progress)| {
                let attempt = self.state.running_attempt(name)?;
                Some((name.clone(), attempt, progress.attempts.last()?.started_at))
            })
            .collect();
        for (name, attempt, started_at) in open {
            let turn = self.shared.turns.seize(&self.row.trigger.repo);
            self.spawn_attempt(&name, attempt, started_at, turn, true);
        }
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

    /// Brings a ready step one move nearer to its start: its image, then its turn, then the recorded start.
    async fn start(&mut self, name: &StepName, attempt: u32) -> Result<(), EngineError> {
        let Some(step) = self.row.plan.step(name).cloned() else { return Ok(()) };
        let reference = match self.image_of(&step) {
            Ok(reference) => reference,
            Err(complaint) => {
                return self.fail_unstarted(name, attempt, AttemptEnd::EngineError { detail: complaint }).await;
            }
        };
        if !self.state.images.contains_key(&reference) {
            let pause = match attempt {
                1 => Duration::ZERO,
                later => IMAGE_RETRY_PAUSE * 2_u32.saturating_pow(later - 2).min(32),
            };
            self.resolve(reference, pause);
            return Ok(());
        }
        let Some(turn) = self.granted.remove(name) else {
            self.queue_for_turn(name);
            return Ok(());
        };
        self.record(RunEvent::StepStarted { step: name.clone(), attempt }).await?;
        crate::failpoint!("engine.started");
        self.spawn_attempt(name, attempt, Timestamp::now(), turn, false);
        Ok(())
    }

    async fn fail_unstarted(&mut self, step: &StepName, attempt: u32, end: AttemptEnd) -> Result<(), EngineError> {
        self.record(RunEvent::StepStarted { step: step.clone(), attempt }).await?;
        let result = AttemptResult { end, outputs: BTreeMap::new(), began_at: None, ended_at: Timestamp::now() };
        self.record(RunEvent::StepEnded { step: step.clone(), attempt, result }).await
    }

    fn queue_for_turn(&mut self, name: &StepName) {
        if self.queued.contains_key(name) {
            return;
        }
        let (turns, repo) = (self.shared.turns.clone(), self.row.trigger.repo.clone());
        let (sender, step) = (self.sender.clone(), name.clone());
        let task = tokio::spawn(async move {
            let turn = turns.take(&repo).await;
            // A driver that is gone drops the message, and with it the turn.
            let _ = sender.send(Message::Turn { step, turn });
        });
        self.queued.insert(name.clone(), task);
    }

    fn resolve(&mut self, reference: String, pause: Duration) {
        if !self.resolving.insert(reference.clone()) {
            return;
        }
        let (runtime, sender, run) = (Arc::clone(&self.repo.runtime), self.sender.clone(), self.run);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let progress = |words: String| tracing::info!(%run, "{words}");
            let result = patiently(|| runtime.resolve_image(&reference, &progress)).await;
            let _ = sender.send(Message::Image { reference, result });
        });
    }

    /// Has the images of the first steps looked for, which takes as long as getting a space and needs none.
    fn resolve_ahead(&mut self) {
        let references: BTreeSet<String> =
            likely_next(&self.state).into_iter().filter_map(|step| self.image_of(step).ok()).collect();
        for reference in references {
            if !self.state.images.contains_key(&reference) {
                self.resolve(reference, Duration::ZERO);
            }
        }
    }

    /// Makes and starts containers for the steps that come next, as far as the bound on waiting ones allows.
    fn look_ahead(&mut self) {
        if self.state.space.is_none() {
            return;
        }
        let next: Vec<PlannedStep> = likely_next(&self.state).into_iter().cloned().collect();
        for step in next {
            if self.ahead.contains_key(&step.name) {
                continue;
            }
            // An image that depends on outputs is known only when the step is ready.
            let Ok(reference) = self.image_of(&step) else { continue };
            let Some(image) = self.state.images.get(&reference).cloned() else {
                self.resolve(reference, Duration::ZERO);
                continue;
            };
            let Ok(permit) = Arc::clone(&self.shared.waiting).try_acquire_owned() else { return };
            let Some(spec) = self.spec(&step, 1, image) else { return };
            let runtime = Arc::clone(&self.repo.runtime);
            let task = tokio::spawn(async move {
                match runtime.prepare(&spec).await {
                    Ok(()) => Some(permit),
                    Err(error) => {
                        // The start itself makes what is missing, and reports what is wrong.
                        tracing::debug!(attempt = %spec.id, %error, "failed to start a container ahead");
                        None
                    }
                }
            });
            self.ahead.insert(step.name.clone(), task);
        }
    }

    fn spec(&self, step: &PlannedStep, attempt: u32, image: ResolvedImage) -> Option<StepSpec> {
        Some(StepSpec {
            id: AttemptId { run: self.run, step: step.name.clone(), attempt },
            space: self.state.space.clone()?,
            repo: self.row.trigger.repo.clone(),
            image,
            resources: step.resources,
            shares_holder: step.shares_holder,
        })
    }

    fn spawn_attempt(&mut self, name: &StepName, attempt: u32, started_at: Timestamp, turn: Turn, recovered: bool) {
        let (cancel, cancelled) = watch::channel(self.state.cancelled_by.is_some() && recovered);
        // A step that runs because the run was cancelled is not stopped by that.
        self.attempts.insert(name.clone(), cancel);
        let ahead = self.ahead.remove(name);
        let (sender, step) = (self.sender.clone(), name.clone());
        let job = self.job(name, attempt, started_at, cancelled, recovered);
        self.running.spawn(async move {
            // Still being made: waiting for it is quicker than making it twice.
            let _permit = match ahead {
                Some(task) if attempt == 1 => task.await.ok().flatten(),
                _ => None,
            };
            drop(_permit);
            let result = match job {
                Ok(job) => step::container::run(job).await,
                Err(complaint) => Some(AttemptResult {
                    end: AttemptEnd::EngineError { detail: complaint },
                    outputs: BTreeMap::new(),
                    began_at: None,
                    ended_at: Timestamp::now(),
                }),
            };
            drop(turn);
            if let Some(result) = result {
                let _ = sender.send(Message::Ended { step, attempt, result });
            }
        });
    }

    fn job(
        &self,
        name: &StepName,
        attempt: u32,
        started_at: Timestamp,
        cancel: watch::Receiver<bool>,
        recovered: bool,
    ) -> Result<AttemptJob, String> {
        let step = self.row.plan.step(name).ok_or("the plan has no such step")?;
        let image = self.state.images.get(&self.image_of(step)?).cloned().ok_or("the image is not pinned")?;
        let own = step
            .environment
            .iter()
            .map(|(key, value)| Ok((key.clone(), self.fill(value)?)))
            .collect::<Result<BTreeMap<_, _>, String>>()?;
        if let Some(missing) = step.secrets.iter().find(|name| !self.repo.secrets.contains_key(*name)) {
            return Err(format!(
                "the secret `{missing}` is not given to this repository; name it under `repos.{}.secrets` in mainstay.yml",
                self.row.trigger.repo
            ));
        }
        let facts = Facts {
            run: self.run,
            trigger: &self.row.trigger,
            url: self.settings.public_url.as_ref().map_or(String::new(), |url| format!("{url}/runs/{}", self.run)),
            status: status_seen_by(&self.state, step),
        };
        let word = Word {
            commands: step.commands.clone(),
            args: step.args.clone(),
            environment: environment(&facts, step, own, &self.repo.secrets),
        };
        Ok(AttemptJob {
            runtime: Arc::clone(&self.repo.runtime),
            spec: self.spec(step, attempt, image).ok_or("the run has no space")?,
            word,
            logs: self.shared.logs.clone(),
            masker: Arc::clone(&self.masker),
            limit: self.settings.log,
            started_at,
            deadline: started_at + step.timeout.0,
            timeout_text: step.timeout.to_string(),
            grace: self.settings.grace,
            cancel,
            stop: self.shared.stop.subscribe(),
            recovered,
            once: step.once,
            instance: self.shared.store.instance().clone(),
        })
    }

    fn image_of(&self, step: &PlannedStep) -> Result<String, String> {
        self.fill(&step.image)
    }

    /// Puts outputs and inputs into one of our own keys.
    fn fill(&self, text: &str) -> Result<String, String> {
        expression::fill(text, &|name: &str| {
            let mut parts = name.splitn(3, '.');
            match (parts.next()?, parts.next()?, parts.next()) {
                ("inputs", input, None) => self.row.trigger.inputs.get(input).cloned(),
                ("steps", step, Some(key)) => {
                    let step = StepName::new(step).ok()?;
                    Some(self.state.outputs(&step)?.get(key).cloned().unwrap_or_default())
                }
                _ => None,
            }
        })
        .map_err(|error| error.to_string())
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
