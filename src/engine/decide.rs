//! What comes next: a pure function of the state. `drive` asks it after every event, until nothing is left.

use super::state::RunState;
use crate::model::plan::{PlannedStep, StepKind, WhenStatus};
use crate::model::{RunStatus, StepName, StepOutcome};
use std::collections::{BTreeSet, VecDeque};

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
/// things stand or that stand behind one that waits for people, and only first attempts.
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
            let runs = runs_when(step, WhenStatus::Success) && trouble(state, step).is_none();
            let waits = step.kind.only_waits() || waiting_ancestor(state, step);
            untouched && modest && runs && !waits
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
    match trouble(state, step) {
        Some(_) if runs_when(step, WhenStatus::Failure) => Standing::Runs,
        Some(trouble) if trouble.rolled_back && runs_when(step, WhenStatus::RolledBack) => Standing::Runs,
        Some(trouble) => Standing::Skipped { reason: trouble.reason, cancelled: false },
        None if runs_when(step, WhenStatus::Success) => Standing::Runs,
        None => Standing::Skipped { reason: "nothing that it needs failed".into(), cancelled: false },
    }
}

fn runs_when(step: &PlannedStep, status: WhenStatus) -> bool {
    step.when_status.contains(&status)
}

/// What went wrong with the steps that a step needs.
struct Trouble {
    /// In words.
    reason: String,
    /// A deploy among them was rolled back.
    rolled_back: bool,
}

/// What went wrong among all that this step needs, directly or through others. An approval counts as given only when
/// somebody gave it: one that was skipped, or whose failure is allowed, is trouble for whatever comes after it.
fn trouble(state: &RunState, step: &PlannedStep) -> Option<Trouble> {
    let mut found: Option<Trouble> = None;
    for ancestor in ancestors(state, step) {
        let reason = match (state.outcome(&ancestor.name), &ancestor.kind) {
            (Some(StepOutcome::Failed), _) => format!("`{}` failed", ancestor.name),
            (Some(StepOutcome::Skipped | StepOutcome::FailedAllowed), StepKind::Approval(_)) => {
                format!("the approval `{}` was not given", ancestor.name)
            }
            _ => continue,
        };
        let rolled_back = state.was_rolled_back(&ancestor.name);
        found.get_or_insert(Trouble { reason, rolled_back: false }).rolled_back |= rolled_back;
    }
    found
}

/// Whether a step that this one needs, near or far, waits for others than the engine, and is not over.
fn waiting_ancestor(state: &RunState, step: &PlannedStep) -> bool {
    ancestors(state, step).any(|ancestor| ancestor.kind.only_waits() && state.outcome(&ancestor.name).is_none())
}

/// All that the step needs, directly or through others; the nearest first.
fn ancestors<'a>(state: &'a RunState, step: &'a PlannedStep) -> impl Iterator<Item = &'a PlannedStep> {
    let mut seen = BTreeSet::new();
    let mut open: VecDeque<&StepName> = step.needs.iter().collect();
    std::iter::from_fn(move || {
        loop {
            let name = open.pop_front()?;
            if let Some(found) = state.plan().step(name).filter(|_| seen.insert(name)) {
                open.extend(&found.needs);
                return Some(found);
            }
        }
    })
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
    } else {
        match trouble(state, step) {
            Some(trouble) if trouble.rolled_back => "rolled-back",
            Some(_) => RunStatus::Failed.as_str(),
            None => RunStatus::Succeeded.as_str(),
        }
    }
}

/// Whether nothing of the run is under way but steps that wait for others: it could be parked. The caller looks whether
/// anything is about to start.
pub fn only_waits(state: &RunState) -> bool {
    let mut waits = false;
    for step in &state.plan().steps {
        match state.running_attempt(&step.name) {
            Some(_) if !step.kind.only_waits() => return false,
            Some(_) => waits = true,
            None => {}
        }
    }
    // A space that is not filled yet is just being got.
    let settled = state.filled || state.space.is_none();
    waits && settled && state.cancelled_by.is_none() && state.status == RunStatus::Running
}

/// Whether anything that is left of the run takes place in its space.
pub fn needs_space(state: &RunState) -> bool {
    state.plan().steps.iter().any(|step| !step.kind.only_waits() && state.outcome(&step.name).is_none())
}
