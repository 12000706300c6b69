//! Steps that wait: what an approval or a deploy asks of the world outside the run, and who answers.
//!
//! Enters from `drive` a [`GateAsk`] for each attempt of a step that needs no container. Leaves, when the people or the
//! deploy are through, the attempt's result. The engine knows nothing else of environments and people: `daemon` gives it
//! an implementation that asks `deploy` and `approval`, and a run without a daemon has [`Nobody`].

use crate::model::ids::PipelineName;
use crate::model::outcome::AttemptResult;
use crate::model::plan::StepKind;
use crate::model::{AttemptEnd, AttemptId, Plan, TriggerEvent};
use async_trait::async_trait;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// What a waiting step asks of the world outside the run.
#[derive(Debug, Clone)]
pub struct GateAsk {
    /// Which attempt. It makes what is begun outside findable again.
    pub attempt: AttemptId,
    /// What made the run. `actor` is who pushed, triggered or repeated it.
    pub trigger: TriggerEvent,
    /// Who pushed or triggered the runs that this one repeats, the nearest first.
    pub original_actor: Vec<String>,
    /// The pipeline.
    pub pipeline: PipelineName,
    /// All of the run's steps, as they were planned.
    pub plan: Arc<Plan>,
    /// What the step is to do, with outputs and inputs filled in.
    pub kind: StepKind,
    /// For an approval with an environment: the images, by service, of the deploys to it that come after. One that
    /// depends on a step which has not ended stands as it is written: no yes is for bytes that nobody knows.
    pub deploy_images: BTreeMap<String, String>,
    /// Steps of the run that are over, in plan order, and how each ended.
    pub results: Vec<(String, String)>,
}

/// Who lets waiting steps pass.
///
/// `pass` is called once for each attempt, and again for the same attempt by a later process: then it finds what the
/// first call began, and goes on waiting for that. A future that is dropped leaves it going. Calls for different
/// attempts run at the same time. Once `cancel` is true (the run was cancelled, or the step's time is over) what has not
/// begun does not begin, what can be ended is ended, and `pass` returns soon with how that went.
#[async_trait]
pub trait Gates: Send + Sync {
    /// Waits until the step is through, and says how it ended.
    async fn pass(&self, ask: GateAsk, cancel: watch::Receiver<bool>) -> AttemptResult;
}

/// Nobody to ask: a run without a daemon.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

#[async_trait]
impl Gates for Nobody {
    async fn pass(&self, ask: GateAsk, _cancel: watch::Receiver<bool>) -> AttemptResult {
        let detail = match &ask.kind {
            StepKind::Approval(_) => "an approval needs the daemon: push, or `mainstay trigger`",
            StepKind::Backup(_) => "a backup in a pipeline needs the daemon: push, or `mainstay backup`",
            StepKind::Restore(_) => "a restore in a pipeline needs the daemon: push, or `mainstay restore`",
            StepKind::Container | StepKind::Deploy(_) => "a deploy needs the daemon: push, or `mainstay promote`",
        };
        ended(AttemptEnd::Refused { detail: detail.to_owned() })
    }
}

/// A result without outputs, of something that never was a process.
pub(super) fn ended(end: AttemptEnd) -> AttemptResult {
    AttemptResult { end, outputs: BTreeMap::new(), began_at: None, ended_at: Timestamp::now() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{EnvironmentName, Oid, RepoName};
    use crate::model::plan::DeployStep;
    use crate::model::trigger::{CommitInfo, EventKind};
    use crate::model::{RunId, StepName};

    #[tokio::test]
    async fn without_a_daemon_a_deploy_is_refused_and_the_way_is_told() {
        let pipeline = PipelineName::new("release").unwrap();
        let environment = EnvironmentName::new("production").unwrap();
        let at = Timestamp::UNIX_EPOCH;
        let ask = GateAsk {
            attempt: AttemptId { run: RunId(1), step: StepName::new("live").unwrap(), attempt: 1 },
            trigger: TriggerEvent {
                repo: RepoName::new("shop").unwrap(),
                kind: EventKind::Manual,
                git_ref: "refs/heads/main".into(),
                commit: CommitInfo { sha: Oid::zero(), message: String::new(), author: String::new(), authored_at: at },
                before: None,
                actor: None,
                pipeline: None,
                inputs: BTreeMap::new(),
                at,
            },
            original_actor: Vec::new(),
            plan: Arc::new(Plan {
                pipeline: pipeline.clone(),
                file: String::new(),
                digest: String::new(),
                steps: Vec::new(),
            }),
            pipeline,
            kind: StepKind::Deploy(DeployStep { environment, images: BTreeMap::new(), promote: None, rollback: None }),
            deploy_images: BTreeMap::new(),
            results: Vec::new(),
        };
        let result = Nobody.pass(ask, watch::Sender::new(false).subscribe()).await;
        assert!(matches!(result.end, AttemptEnd::Refused { detail } if detail.contains("mainstay promote")));
    }
}
