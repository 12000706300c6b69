//! What comes next: a pure function of the state. `drive` asks it after every event, until nothing is left.

use super::state::RunState;
use crate::model::plan::{PlannedStep, WhenStatus};
use crate::model::{RunStatus, StepName, StepOutcome};
use std::collections::BTreeSet;

/// One thing to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Record that the step will not run.
    Skip {
        /// The step.
        step: StepName,
        /// Why, in words.
        reason: String,
        /// Because the run was cancelled.
        cancelled: bool,
    },
    /// Begin this attempt as soon as the limits allow.
    Start {
        /// The step.
        step: StepName,
        /// From 1.
        attempt: u32,
    },
    /// The run was cancelled: stop this attempt.
    Stop {
        /// The step.
        step: StepName,
        /// From 1.
        attempt: u32,
    },
    /// Nothing is left.
    End {
        /// How the run ended.
        status: RunStatus,
    },
}

/// Everything to do now. Decisions about different steps do not depend on each other's order.
pub fn decide(state: &RunState) -> Vec<Decision> {
    if state.status != RunStatus::Running {
        // A run that was cancelled before its turn ends without one.
        return match (state.status, &state.cancelled_by) {
            (RunStatus::Queued, Some(_)) => vec![Decision::End { status: RunStatus::Cancelled }],
            _ => Vec::new(),
        };
    }
    let plan = state.plan();
    let mut decisions = Vec::new();
    let mut open = false;
    for step in &plan.steps {
        if state.outcome(&step.name).is_some() {
            continue;
        }
        open = true;
        if let Some(attempt) = state.running_attempt(&step.name) {
            if state.cancelled_by.is_some() && !runs_when(step, WhenStatus::Cancelled) {
                decisions.push(Decision::Stop { step: step.name.clone(), attempt });
            }
            continue;
        }
        if !step.needs.iter().all(|need| state.outcome(need).is_some()) {
            continue;
        }
        decisions.push(match standing(state, step) {
            Standing::Runs => {
                let attempt = state.steps.get(&step.name).map_or(0, |p| p.attempts.len() as u32) + 1;
                Decision::Start { step: step.name.clone(), attempt }
            }
            Standing::Skipped { reason, cancelled } => Decision::Skip { step: step.name.clone(), reason, cancelled },
        });
    }
    if !open {
        decisions.push(Decision::End { status: final_status(state) });
    }
    decisions
}

/// Steps that will probably become ready next, nearest first: their containers may be made and started ahead.
///
/// Never steps marked `once` or with limits of their own (they may be large), never those that would be skipped as
/// things stand, and only first attempts.
pub fn likely_next(state: &RunState) -> Vec<&PlannedStep> {
    let plan = state.plan();
    if state.status != RunStatus::Running || state.cancelled_by.is_some() {
        return Vec::new();
    }
    plan.steps
        .iter()
        .filter(|step| {
            let untouched = state
                .steps
                .get(&step.name)
                .is_some_and(|p| p.attempts.is_empty() && p.skipped.is_none() && p.carried.is_none());
            let modest = !step.once && step.resources == crate::model::plan::Resources::default();
            untouched && modest && runs_when(step, WhenStatus::Success) && failed_ancestor(state, step).is_none()
        })
        .collect()
}

enum Standing {
    Runs,
    Skipped { reason: String, cancelled: bool },
}

/// Whether a step whose needs have all ended runs, by the states of what it needs, near and far.
///
/// Only ancestors count, never steps that happen to run beside it: so the answer does not depend on timing.
fn standing(state: &RunState, step: &PlannedStep) -> Standing {
    if let Some(by) = &state.cancelled_by {
        return if runs_when(step, WhenStatus::Cancelled) {
            Standing::Runs
        } else {
            Standing::Skipped { reason: format!("the run was cancelled by {by}"), cancelled: true }
        };
    }
    match failed_ancestor(state, step) {
        Some(_) if runs_when(step, WhenStatus::Failure) => Standing::Runs,
        Some(failed) => Standing::Skipped { reason: format!("`{failed}` failed"), cancelled: false },
        None if runs_when(step, WhenStatus::Success) => Standing::Runs,
        None => Standing::Skipped { reason: "nothing that it needs failed".into(), cancelled: false },
    }
}

fn runs_when(step: &PlannedStep, status: WhenStatus) -> bool {
    step.when_status.contains(&status)
}

/// The first step that failed among all that this one needs, directly or through others.
fn failed_ancestor<'a>(state: &'a RunState, step: &'a PlannedStep) -> Option<&'a StepName> {
    let plan = state.plan();
    let mut seen = BTreeSet::new();
    let mut open: Vec<&StepName> = step.needs.iter().collect();
    while let Some(name) = open.pop() {
        if !seen.insert(name) {
            continue;
        }
        if state.outcome(name) == Some(StepOutcome::Failed) {
            return Some(name);
        }
        if let Some(step) = plan.step(name) {
            open.extend(&step.needs);
        }
    }
    None
}

fn final_status(state: &RunState) -> RunStatus {
    let mut outcomes = state.plan().steps.iter().filter_map(|step| state.outcome(&step.name));
    if state.cancelled_by.is_some() && outcomes.clone().any(|o| o == StepOutcome::Cancelled) {
        RunStatus::Cancelled
    } else if outcomes.any(|o| o == StepOutcome::Failed) {
        RunStatus::Failed
    } else {
        RunStatus::Succeeded
    }
}

/// The state of the run as a step sees it in `CI_RUN_STATUS`: by what it needs, near and far.
pub fn status_seen_by(state: &RunState, step: &PlannedStep) -> &'static str {
    if state.cancelled_by.is_some() {
        RunStatus::Cancelled.as_str()
    } else if failed_ancestor(state, step).is_some() {
        RunStatus::Failed.as_str()
    } else {
        RunStatus::Succeeded.as_str()
    }
}
