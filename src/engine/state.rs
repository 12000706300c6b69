//! What a run's events add up to. Loading a run and driving it go through the same [`RunState::apply`].

use super::event::RunEvent;
use crate::model::outcome::AttemptResult;
use crate::model::plan::{PlannedStep, RetryOn};
use crate::model::{AttemptEnd, Plan, RunStatus, StepName, StepOutcome};
use crate::runtime::{ResolvedImage, SpaceName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An event that cannot follow what came before it: the log is damaged, or two drivers were at work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("apply event `{event}`: {why}")]
pub struct IllegalEvent {
    event: String,
    why: String,
}

/// One attempt, as far as it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When its start was recorded.
    pub started_at: Timestamp,
    /// What it left, once it ended.
    pub result: Option<AttemptResult>,
}

/// Where one step stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepProgress {
    /// Its attempts, the first one first.
    pub attempts: Vec<Attempt>,
    /// Why it did not run, if it was skipped.
    pub skipped: Option<Skip>,
    /// What it takes over from the run that this one repeats.
    pub carried: Option<CarriedStep>,
}

/// Why a step did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// In words.
    pub reason: String,
    /// It would have run, had the run not been cancelled.
    pub cancelled: bool,
}

/// What a retry takes over of one step instead of running it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedStep {
    /// How it ended there.
    pub outcome: StepOutcome,
    /// Its outputs.
    pub outputs: BTreeMap<String, String>,
}

/// What a retry takes over of the run it repeats.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Carried {
    /// The kept workspace.
    pub space: Option<SpaceName>,
    /// Steps that are not run again.
    pub steps: BTreeMap<StepName, CarriedStep>,
}

/// A run as its events describe it.
#[derive(Debug, Clone)]
pub struct RunState {
    plan: Arc<Plan>,
    /// Number of events applied.
    pub seq: u64,
    /// Where it stands.
    pub status: RunStatus,
    /// Why it could not be carried out.
    pub error: Option<String>,
    /// The runtime it stays with.
    pub runtime: Option<String>,
    /// Its space.
    pub space: Option<SpaceName>,
    /// Spaces it gave up. An engine may still finish what a killed daemon had asked for there, so they are removed once
    /// more when the run is closed.
    pub lost: Vec<SpaceName>,
    /// The workspace holds the commit.
    pub filled: bool,
    /// It only waits: of its space only the workspace is there.
    pub parked: bool,
    /// Images pinned so far, by the name written in the pipeline.
    pub images: BTreeMap<String, ResolvedImage>,
    /// Who asked for it to stop.
    pub cancelled_by: Option<String>,
    /// Progress by step; every step of the plan is here.
    pub steps: BTreeMap<StepName, StepProgress>,
}

impl RunState {
    /// A run before its first event.
    pub fn new(plan: Arc<Plan>, carried: Option<&Carried>) -> Self {
        let mut steps: BTreeMap<StepName, StepProgress> =
            plan.steps.iter().map(|s| (s.name.clone(), StepProgress::default())).collect();
        for (name, carried) in carried.iter().flat_map(|c| &c.steps) {
            if let Some(step) = steps.get_mut(name) {
                step.carried = Some(carried.clone());
            }
        }
        RunState {
            plan,
            seq: 0,
            status: RunStatus::Queued,
            error: None,
            runtime: None,
            space: None,
            lost: Vec::new(),
            filled: false,
            parked: false,
            images: BTreeMap::new(),
            cancelled_by: None,
            steps,
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Moves to the next state, or says why the event cannot be.
    ///
    /// # Errors
    /// [`IllegalEvent`] when it contradicts what came before; the state is unchanged then.
    pub fn apply(&mut self, event: &RunEvent, at: Timestamp) -> Result<(), IllegalEvent> {
        let refuse = |why: String| {
            Err(IllegalEvent {
                event: serde_json::to_string(event).unwrap_or_default().chars().take(200).collect(),
                why,
            })
        };
        if self.status.is_final() {
            return refuse(format!("the run has ended ({})", self.status));
        }
        if self.status == RunStatus::Queued
            && !matches!(event, RunEvent::Begun { .. } | RunEvent::CancelRequested { .. } | RunEvent::Ended { .. })
        {
            return refuse("the run has not begun".into());
        }
        match event {
            RunEvent::Begun { runtime } => {
                if self.status != RunStatus::Queued {
                    return refuse("the run has begun already".into());
                }
                self.status = RunStatus::Running;
                self.runtime = Some(runtime.clone());
            }
            RunEvent::SpaceTaken { space } => {
                if let Some(had) = &self.space {
                    return refuse(format!("the run has the space {} already", had.0));
                }
                self.space = Some(space.clone());
            }
            RunEvent::SpaceLost { space } => {
                if self.space.as_ref() != Some(space) || self.filled || self.parked {
                    return refuse("only the run's own space, before it is filled, can be given up".into());
                }
                self.space = None;
                self.lost.push(space.clone());
            }
            RunEvent::WorkspaceFilled => {
                if self.space.is_none() {
                    return refuse("the run has no space".into());
                }
                self.filled = true;
            }
            RunEvent::Parked { space } => {
                if self.space != *space || self.filled != space.is_some() || self.parked {
                    return refuse("only the run's own space, filled and in use, can be parked".into());
                }
                if self.plan.steps.iter().any(|s| !s.kind.only_waits() && self.running_attempt(&s.name).is_some()) {
                    return refuse("a step of the run is using its space".into());
                }
                self.parked = true;
            }
            RunEvent::Unparked { space } => {
                if self.space.as_ref() != Some(space) || !self.parked {
                    return refuse("only a parked space can be taken up again".into());
                }
                self.parked = false;
            }
            RunEvent::ImagePinned { image } => {
                self.images.entry(image.reference.clone()).or_insert_with(|| image.clone());
            }
            RunEvent::StepStarted { step, attempt } => {
                let progress = match self.steps.get_mut(step) {
                    None => return refuse("the plan has no such step".into()),
                    Some(progress) => progress,
                };
                if progress.skipped.is_some() || progress.carried.is_some() {
                    return refuse("the step does not run".into());
                }
                if self.parked && !self.plan.step(step).is_some_and(|step| step.kind.only_waits()) {
                    return refuse("the run's space is parked".into());
                }
                let under_way = progress.attempts.last().is_some_and(|a| a.result.is_none());
                if under_way || *attempt as usize != progress.attempts.len() + 1 {
                    return refuse(format!("attempt {attempt} is not the next one"));
                }
                progress.attempts.push(Attempt { started_at: at, result: None });
            }
            RunEvent::StepEnded { step, attempt, result } => {
                let last = self.steps.get_mut(step).map(|p| (p.attempts.len(), p.attempts.last_mut()));
                match last {
                    Some((count, Some(open))) if count == *attempt as usize && open.result.is_none() => {
                        open.result = Some(result.clone());
                    }
                    _ => return refuse(format!("attempt {attempt} is not under way")),
                }
            }
            RunEvent::StepSkipped { step, reason, cancelled } => match self.steps.get_mut(step) {
                Some(progress) if progress.attempts.is_empty() && progress.skipped.is_none() => {
                    progress.skipped = Some(Skip { reason: reason.clone(), cancelled: *cancelled });
                }
                _ => return refuse("the step has begun or was skipped before".into()),
            },
            RunEvent::CancelRequested { by } => {
                if self.cancelled_by.is_none() {
                    self.cancelled_by = Some(by.clone());
                }
            }
            RunEvent::Ended { status, error } => {
                if !status.is_final() {
                    return refuse(format!("`{status}` is no end"));
                }
                self.status = *status;
                self.error.clone_from(error);
            }
        }
        self.seq += 1;
        Ok(())
    }

    /// How the step ended, once nothing more will happen to it.
    pub fn outcome(&self, name: &StepName) -> Option<StepOutcome> {
        let progress = self.steps.get(name)?;
        let step = self.plan.step(name)?;
        if let Some(carried) = &progress.carried {
            return Some(carried.outcome);
        }
        if let Some(skip) = &progress.skipped {
            return Some(if skip.cancelled { StepOutcome::Cancelled } else { StepOutcome::Skipped });
        }
        let result = progress.attempts.last()?.result.as_ref()?;
        match result.end {
            AttemptEnd::Exited { code: 0 } => Some(StepOutcome::Succeeded),
            AttemptEnd::Cancelled => Some(StepOutcome::Cancelled),
            _ if self.may_retry(step, progress) => None,
            _ if step.allow_failure => Some(StepOutcome::FailedAllowed),
            _ => Some(StepOutcome::Failed),
        }
    }

    /// True when the last attempt failed in a way that the step's `retries` name, and attempts are left.
    fn may_retry(&self, step: &PlannedStep, progress: &StepProgress) -> bool {
        let Some(result) = progress.attempts.last().and_then(|a| a.result.as_ref()) else { return false };
        if self.cancelled_by.is_some() || progress.attempts.len() > step.retries.max as usize {
            return false;
        }
        let began = result.began_at.is_some();
        if step.once && began {
            return false;
        }
        let kind = match result.end {
            AttemptEnd::Exited { .. } => RetryOn::Failure,
            AttemptEnd::TimedOut => RetryOn::Timeout,
            AttemptEnd::LostContainer { .. } | AttemptEnd::EngineError { .. } => RetryOn::LostContainer,
            AttemptEnd::ImagePull { .. } => RetryOn::ImagePull,
            AttemptEnd::DeployFailed { .. } | AttemptEnd::RecoveryFailed { .. } => RetryOn::Failure,
            // Asked again it would be refused again; what was rolled back is held.
            AttemptEnd::Cancelled | AttemptEnd::Refused { .. } | AttemptEnd::RolledBack { .. } => return false,
        };
        step.retries.on.contains(&kind)
    }

    /// Whether the step is a deploy that turned bad and was taken back.
    pub fn was_rolled_back(&self, name: &StepName) -> bool {
        let last = self.steps.get(name).and_then(|progress| progress.attempts.last());
        let end = last.and_then(|attempt| attempt.result.as_ref()).map(|result| &result.end);
        matches!(end, Some(AttemptEnd::RolledBack { .. }))
    }

    /// The attempt under way, if any.
    pub fn running_attempt(&self, name: &StepName) -> Option<u32> {
        let progress = self.steps.get(name)?;
        let open = progress.attempts.last()?.result.is_none();
        open.then_some(progress.attempts.len() as u32)
    }

    /// The step's outputs, once it has ended.
    pub fn outputs(&self, name: &StepName) -> Option<&BTreeMap<String, String>> {
        let progress = self.steps.get(name)?;
        if let Some(carried) = &progress.carried {
            return Some(&carried.outputs);
        }
        progress.attempts.last()?.result.as_ref().map(|r| &r.outputs)
    }
}
