//! The driver's part that concerns steps that wait for people and deploys: no image, no turn, no container. Their start is
//! recorded, then somebody else is asked, then what they said is recorded.

use super::{Driver, Message};
use crate::engine::event::RunEvent;
use crate::engine::gate::{GateAsk, Gates, ended};
use crate::engine::{EngineError, Shared};
use crate::model::outcome::AttemptResult;
use crate::model::plan::{ApprovalStep, DeployStep, PlannedStep, RestoreStep, RestoreTo, StepKind};
use crate::model::{AttemptEnd, AttemptId, StepName, StepOutcome};
use crate::step::container::turned;
use crate::store::RunRow;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Runs that repeat runs that repeat runs: nobody has so many, and a damaged row must not make a circle.
const REPEATS_MAX: usize = 1_000;

/// Who pushed or triggered the runs that this one repeats, the nearest first. Only asked for where it matters.
pub(super) async fn original_actor(shared: &Shared, row: &RunRow) -> Result<Vec<String>, EngineError> {
    let mut actors = Vec::new();
    if !row.plan.steps.iter().any(|step| step.kind.only_waits()) {
        return Ok(actors);
    }
    let mut next = row.retry_of;
    for _ in 0..REPEATS_MAX {
        let Some(run) = next else { break };
        let Some((row, _)) = shared.store.load_run(run).await? else { break };
        actors.extend(row.trigger.actor);
        next = row.retry_of;
    }
    Ok(actors)
}

impl Driver<'_> {
    /// Records that the step waits; `commit` then asks.
    pub(super) fn start_waiting(&mut self, step: &PlannedStep, attempt: u32) -> Result<(), EngineError> {
        if let Err(complaint) = self.ask(step, attempt) {
            return self.fail_unstarted(&step.name, attempt, AttemptEnd::EngineError { detail: complaint });
        }
        self.note(&RunEvent::StepStarted { step: step.name.clone(), attempt })?;
        self.noted.waits.push((step.name.clone(), attempt));
        Ok(())
    }

    /// Asks, or asks again after a restart: whoever is asked finds what was begun.
    pub(super) fn spawn_wait(&mut self, name: &StepName, attempt: u32, started_at: Timestamp) {
        let Some(step) = self.row.plan.step(name).cloned() else { return };
        let ask = self.ask(&step, attempt);
        let cancel = watch::Sender::new(false);
        self.attempts.insert(name.clone(), cancel.clone());
        let deadline = started_at + step.timeout.0;
        let gates = self.shared.gates();
        let mut stop = self.shared.stop.subscribe();
        let (sender, step) = (self.sender.clone(), name.clone());
        self.running.spawn(async move {
            let passed = async {
                match ask {
                    Ok(ask) => pass(&*gates, ask, &cancel, deadline).await,
                    Err(complaint) => ended(AttemptEnd::EngineError { detail: complaint }),
                }
            };
            tokio::select! {
                biased;
                () = turned(&mut stop) => {}
                result = passed => {
                    let _ = sender.send(Message::Ended { step, attempt, result });
                }
            }
        });
    }

    fn ask(&self, step: &PlannedStep, attempt: u32) -> Result<GateAsk, String> {
        let plan = Arc::clone(self.state.plan());
        let kind = match &step.kind {
            StepKind::Deploy(deploy) => StepKind::Deploy(DeployStep {
                images: self.filled(&deploy.images)?,
                rollback: deploy.rollback.as_deref().map(|to| self.fill(to)).transpose()?,
                ..deploy.clone()
            }),
            StepKind::Approval(approval) => StepKind::Approval(ApprovalStep {
                message: approval.message.as_deref().map(|message| self.fill(message)).transpose()?,
                ..approval.clone()
            }),
            StepKind::Backup(backup) => StepKind::Backup(backup.clone()),
            StepKind::Restore(restore) => {
                let to = match restore.to.option() {
                    (option, Some(text)) => RestoreTo::from_option(option, self.fill(text)?),
                    (_, None) => None,
                };
                StepKind::Restore(RestoreStep { to: to.unwrap_or(RestoreTo::Latest), ..restore.clone() })
            }
            StepKind::Container => return Err("a step with an image waits for nobody".into()),
        };
        let deploy_images = match &kind {
            StepKind::Approval(ApprovalStep { environment: Some(environment), .. }) => {
                let deploys = later(&plan.steps, &step.name).filter_map(|later| match &later.kind {
                    StepKind::Deploy(deploy) if deploy.environment == *environment => Some(&deploy.images),
                    _ => None,
                });
                deploys.flatten().map(|(service, image)| (service.clone(), self.filled_if_known(image))).collect()
            }
            _ => BTreeMap::new(),
        };
        let results =
            plan.steps.iter().filter_map(|other| Some((other.name.to_string(), self.result_of(&other.name)?)));
        Ok(GateAsk {
            attempt: AttemptId { run: self.run, step: step.name.clone(), attempt },
            trigger: self.row.trigger.clone(),
            original_actor: self.original_actor.clone(),
            pipeline: plan.pipeline.clone(),
            kind,
            deploy_images,
            results: results.collect(),
            plan,
        })
    }

    fn filled(&self, values: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
        values.iter().map(|(key, value)| Ok((key.clone(), self.fill(value)?))).collect()
    }

    /// As it is written when it names a step that has not ended.
    fn filled_if_known(&self, text: &str) -> String {
        self.fill(text).unwrap_or_else(|_| text.to_owned())
    }

    /// How a step ended, in words for people.
    fn result_of(&self, name: &StepName) -> Option<String> {
        let outcome = self.state.outcome(name)?;
        let progress = self.state.steps.get(name)?;
        let end = progress.attempts.last().and_then(|last| last.result.as_ref()).map(|result| result.end.to_string());
        // What is to be tried is no part of a sentence.
        let end = end.map(|end| end.lines().next().unwrap_or_default().to_owned());
        Some(match (outcome, end, &progress.skipped) {
            (StepOutcome::Succeeded, ..) => "succeeded".to_owned(),
            (StepOutcome::Skipped, _, Some(skip)) => format!("skipped: {}", skip.reason),
            (StepOutcome::FailedAllowed, Some(end), _) => format!("failed, which is allowed: {end}"),
            (StepOutcome::Failed, Some(end), _) => format!("failed: {end}"),
            (StepOutcome::Cancelled, ..) => "cancelled".to_owned(),
            (StepOutcome::Skipped, ..) => "skipped".to_owned(),
            (StepOutcome::FailedAllowed | StepOutcome::Failed, ..) => "failed".to_owned(),
        })
    }
}

/// The steps that come after this one. Plan order puts every step after what it needs, so one pass finds them.
fn later<'a>(steps: &'a [PlannedStep], name: &'a StepName) -> impl Iterator<Item = &'a PlannedStep> {
    let mut after = BTreeSet::from([name]);
    steps.iter().filter(move |step| {
        let is_after = step.needs.iter().any(|need| after.contains(need));
        is_after && after.insert(&step.name)
    })
}

/// Waits for the gate; at the deadline it is told that nobody wants it any more, and has the last word on how far it is.
async fn pass(gates: &dyn Gates, ask: GateAsk, cancel: &watch::Sender<bool>, deadline: Timestamp) -> AttemptResult {
    let id = ask.attempt.clone();
    let left = Timestamp::now().until(deadline).ok().and_then(|span| Duration::try_from(span).ok());
    // A panic there must not leave a step that nobody ends.
    let mut passing = std::pin::pin!(AssertUnwindSafe(gates.pass(ask, cancel.subscribe())).catch_unwind());
    let (mut timed_out, first) = tokio::select! {
        passed = &mut passing => (false, Some(passed)),
        () = tokio::time::sleep(left.unwrap_or(Duration::ZERO)) => (true, None),
    };
    let passed = match first {
        Some(passed) => passed,
        None => {
            timed_out &= !cancel.send_replace(true);
            passing.await
        }
    };
    match passed {
        Ok(result) if timed_out && result.end == AttemptEnd::Cancelled => {
            AttemptResult { end: AttemptEnd::TimedOut, ..result }
        }
        Ok(result) => result,
        Err(_) => {
            tracing::error!(attempt = %id, "waiting for a step broke off with a defect of Mainstay");
            ended(AttemptEnd::EngineError { detail: "waiting for it broke off with a defect of Mainstay".into() })
        }
    }
}
