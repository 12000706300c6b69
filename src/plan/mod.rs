//! (Pipeline, trigger) becomes a plan. No I/O: everything here can be tested by table.
//!
//! A checked [`Pipeline`] and a [`TriggerEvent`](crate::model::TriggerEvent) come in from `engine` and `cli`; a [`Plan`] goes out, or a sentence on
//! why nothing runs.

pub mod inputs;
mod matching;
pub mod show;

pub use crate::config::{expression, schedule};
pub use matching::matches;

use crate::config::needs::Needs;
use crate::config::pipeline::Pipeline;
use crate::config::{Finding, Findings};
use crate::model::plan::{PlannedStep, StepKind};
use crate::model::{Plan, Span, StepName};
use std::collections::HashSet;
use std::time::Duration;

/// What steps get that say nothing themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// A step is stopped after this long.
    pub timeout: Span,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults { timeout: Span(Duration::from_secs(3_600)) }
    }
}

/// A deploy and an approval end by their own rules: health, watch, expiry; a backup and a restore take what the data take.
/// This is for what those do not see.
const WAITING: Duration = Duration::from_secs(24 * 3_600);
/// After an approval's own end, so that this is what is told.
const AFTER_EXPIRY: Duration = Duration::from_secs(60);

fn usual_timeout(kind: &StepKind, defaults: &Defaults) -> Span {
    match kind {
        StepKind::Container => defaults.timeout,
        StepKind::Deploy(_) | StepKind::Backup(_) | StepKind::Restore(_) => Span(WAITING),
        StepKind::Approval(approval) => {
            Span(approval.expires.map_or(WAITING, |expires| WAITING.max(expires.0 + AFTER_EXPIRY)))
        }
    }
}

/// Makes the plan of a pipeline. `digest` is the SHA-256 of the file's bytes, in hex.
///
/// # Errors
/// When steps wait for each other, which only a pipeline that did not come from `config::pipeline::parse` can.
pub fn make(pipeline: &Pipeline, file: &str, digest: &str, defaults: &Defaults) -> Result<Plan, Findings> {
    let needs = Needs::of(pipeline.steps.iter().map(|step| (&step.name, step.needs.as_slice())));
    let cycles = needs.cycles();
    if !cycles.is_empty() {
        let sentence = |cycle: Vec<usize>| {
            let way: Vec<&str> = cycle.iter().chain(cycle.first()).map(|&n| pipeline.steps[n].name.as_str()).collect();
            Finding::general(format!("these steps wait for each other for ever: {}", way.join(" -> ")))
        };
        return Err(Findings::new(file, "", cycles.into_iter().map(sentence).collect()));
    }
    let sharing: HashSet<usize> = needs.longest_chain().into_iter().collect();
    let steps = needs.order().into_iter().map(|n| {
        let step = &pipeline.steps[n];
        PlannedStep {
            name: step.name.clone(),
            image: step.image.clone(),
            commands: step.commands.clone(),
            args: step.args.clone(),
            environment: step.environment.clone(),
            secrets: step.secrets.clone(),
            needs: step.needs.clone(),
            timeout: step.timeout.unwrap_or_else(|| usual_timeout(&step.kind, defaults)),
            retries: step.retries.clone(),
            allow_failure: step.allow_failure,
            when_status: step.when_status.clone(),
            once: step.once,
            resources: step.resources,
            shares_holder: sharing.contains(&n) && step.kind.is_container(),
            kind: step.kind.clone(),
        }
    });
    Ok(Plan {
        pipeline: pipeline.name.clone(),
        file: file.to_owned(),
        digest: digest.to_owned(),
        steps: steps.collect(),
    })
}

/// The steps by the earliest time they can start: those of a layer need only steps of the layers before.
pub fn layers(plan: &Plan) -> Vec<Vec<&StepName>> {
    let needs = Needs::of(plan.steps.iter().map(|step| (&step.name, step.needs.as_slice())));
    let mut depth = vec![0_usize; plan.steps.len()];
    let mut layers: Vec<Vec<&StepName>> = Vec::new();
    for n in needs.order() {
        depth[n] = needs.0[n].iter().map(|&need| depth[need] + 1).max().unwrap_or(0);
        if layers.len() <= depth[n] {
            layers.resize_with(depth[n] + 1, Vec::new);
        }
        layers[depth[n]].push(&plan.steps[n].name);
    }
    layers
}
