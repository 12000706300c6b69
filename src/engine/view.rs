//! A run as people and the API see it: the fold of its events, laid out by step.

use super::state::{RunState, StepProgress};
use super::{Engine, EngineError};
use crate::model::api::{AttemptView, RunDetail, StepState, StepView};
use crate::model::plan::{ApprovalStep, PlannedStep, StepKind};
use crate::model::{RunId, RunStatus};

impl Engine {
    /// The run, whole; `None` when there is no such run.
    ///
    /// # Errors
    /// When the store does not answer or the run's events contradict each other.
    pub async fn run_detail(&self, run: RunId) -> Result<Option<RunDetail>, EngineError> {
        let (row, state) = match self.shared.load(run).await {
            Ok(loaded) => loaded,
            Err(EngineError::NoSuchRun(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let steps = row.plan.steps.iter().map(|step| step_view(&state, step)).collect();
        let inputs = row.trigger.inputs.clone();
        let file = (!row.plan.steps.is_empty()).then(|| row.plan.file.clone());
        let parked = state.parked && !state.status.is_final();
        Ok(Some(RunDetail { summary: row.summary(), steps, inputs, parked, file }))
    }
}

fn step_view(state: &RunState, step: &PlannedStep) -> StepView {
    let none = StepProgress::default();
    let progress = state.steps.get(&step.name).unwrap_or(&none);
    let outcome = state.outcome(&step.name);
    let ready = state.status == RunStatus::Running && step.needs.iter().all(|n| state.outcome(n).is_some());
    let shown = if outcome.is_some() {
        StepState::Done
    } else if state.running_attempt(&step.name).is_some() {
        StepState::Running
    } else if ready {
        StepState::Ready
    } else {
        StepState::Waiting
    };
    let last_end = progress.attempts.last().and_then(|a| a.result.as_ref()).map(|r| &r.end);
    let reason = match (&progress.skipped, &progress.carried, last_end) {
        (Some(skip), _, _) => Some(skip.reason.clone()),
        (_, Some(_), _) => Some("kept from the run that this one repeats".to_owned()),
        (_, _, Some(end)) if !end.is_success() => Some(end.to_string()),
        (None, None, None) if shown == StepState::Running => waits_for(&step.kind),
        _ => None,
    };
    let attempts = progress
        .attempts
        .iter()
        .enumerate()
        .map(|(index, attempt)| AttemptView {
            attempt: index as u32 + 1,
            started_at: attempt.started_at,
            began_at: attempt.result.as_ref().and_then(|r| r.began_at),
            ended_at: attempt.result.as_ref().map(|r| r.ended_at),
            end: attempt.result.as_ref().map(|r| r.end.clone()),
        })
        .collect();
    StepView {
        name: step.name.clone(),
        image: step.image.clone(),
        kind: step.kind.clone(),
        needs: step.needs.clone(),
        state: shown,
        outcome,
        reason,
        attempts,
        outputs: state.outputs(&step.name).cloned().unwrap_or_default(),
    }
}

/// What a step waits for while it is under way, in words, when it waits for others.
fn waits_for(kind: &StepKind) -> Option<String> {
    match kind {
        StepKind::Container => None,
        StepKind::Deploy(deploy) => Some(format!("waits for the deploy to {}", deploy.environment)),
        StepKind::Approval(ApprovalStep { environment: Some(environment), .. }) => {
            Some(format!("waits for approval for {environment}"))
        }
        StepKind::Backup(backup) => Some(format!("waits for the backup of {}", backup.source)),
        StepKind::Restore(restore) => Some(format!("waits for the restore of {}", restore.source)),
        StepKind::Approval(approval) => Some(format!("waits for approval by {}", approval.from.join(", "))),
    }
}
