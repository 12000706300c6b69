//! The driver's part that concerns attempts: from a ready step to a task that runs it, by way of its image, its turn and
//! the recorded start; and what is made ahead for the steps that come next.

use super::{Driver, Message};
use crate::config::expression;
use crate::engine::EngineError;
use crate::engine::decide::{likely_next, status_seen_by};
use crate::engine::event::RunEvent;
use crate::engine::turns::Turn;
use crate::model::outcome::AttemptResult;
use crate::model::plan::{PlannedStep, WhenStatus};
use crate::model::{AttemptEnd, AttemptId, StepName};
use crate::runtime::{ResolvedImage, StepSpec, Word};
use crate::step;
use crate::step::container::{AttemptJob, patiently};
use crate::step::environment::{Facts, environment};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Pause before an image that could not be had is asked for again; doubles with each attempt.
const IMAGE_RETRY_PAUSE: Duration = Duration::from_secs(1);

impl Driver<'_> {
    /// Attempts that an earlier daemon had started are followed again; they keep their turn.
    pub(super) fn take_up_attempts(&mut self) {
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
            if self.row.plan.step(&name).is_some_and(|step| step.kind.only_waits()) {
                self.spawn_wait(&name, attempt, started_at);
                continue;
            }
            let turn = self.shared.turns.seize(&self.row.trigger.repo);
            self.spawn_attempt(&name, attempt, started_at, turn, true);
        }
    }

    /// Brings a ready step one move nearer to its start: its image, then its turn, then the recorded start, after which
    /// `commit` begins it.
    pub(super) fn start(&mut self, name: &StepName, attempt: u32) -> Result<(), EngineError> {
        let Some(step) = self.row.plan.step(name).cloned() else { return Ok(()) };
        if step.kind.only_waits() {
            return self.start_waiting(&step, attempt);
        }
        let reference = match self.image_of(&step) {
            Ok(reference) => reference,
            Err(complaint) => {
                return self.fail_unstarted(name, attempt, AttemptEnd::EngineError { detail: complaint });
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
        if self.state.parked {
            // A place under the limit of runs comes first: `tend_space` asks for it.
            return Ok(());
        }
        let free = || self.shared.turns.try_take(&self.row.trigger.repo);
        let Some(turn) = self.granted.remove(name).or_else(free) else {
            self.queue_for_turn(name);
            return Ok(());
        };
        self.note(&RunEvent::StepStarted { step: name.clone(), attempt })?;
        self.noted.starts.push((name.clone(), attempt, turn));
        Ok(())
    }

    pub(super) fn fail_unstarted(&mut self, step: &StepName, attempt: u32, end: AttemptEnd) -> Result<(), EngineError> {
        self.note(&RunEvent::StepStarted { step: step.clone(), attempt })?;
        let result = AttemptResult { end, outputs: BTreeMap::new(), began_at: None, ended_at: Timestamp::now() };
        self.note(&RunEvent::StepEnded { step: step.clone(), attempt, result })
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
    pub(super) fn resolve_ahead(&mut self) {
        let references: BTreeSet<String> =
            likely_next(&self.state).into_iter().filter_map(|step| self.image_of(step).ok()).collect();
        for reference in references {
            if !self.state.images.contains_key(&reference) {
                self.resolve(reference, Duration::ZERO);
            }
        }
    }

    /// Makes and starts containers for the steps that come next, as far as the bound on waiting ones allows.
    pub(super) fn look_ahead(&mut self) {
        if self.state.space.is_none() || self.state.parked {
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

    pub(super) fn spawn_attempt(
        &mut self,
        name: &StepName,
        attempt: u32,
        started_at: Timestamp,
        turn: Turn,
        recovered: bool,
    ) {
        // A step that runs because the run was cancelled is not stopped by that.
        let runs_then = self.row.plan.step(name).is_some_and(|step| step.when_status.contains(&WhenStatus::Cancelled));
        let (cancel, cancelled) = watch::channel(self.state.cancelled_by.is_some() && recovered && !runs_then);
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

    pub(super) fn image_of(&self, step: &PlannedStep) -> Result<String, String> {
        self.fill(&step.image)
    }

    /// Puts outputs and inputs into one of our own keys.
    pub(super) fn fill(&self, text: &str) -> Result<String, String> {
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
}
