//! What a step that waits asks of deploys and approvals, and how that ends. Called by `daemon` for the engine; every call
//! may be repeated by a later process, and then finds what the first one began.

use super::admit::Admission;
use super::candidate::{self, Words};
use super::{DeployError, Deploys};
use crate::model::approval::{ApprovalPolicy, ApprovalRequest, ApprovalState, ApprovalView, Channel, Newer, Subject};
use crate::model::deploy::{DeployKind, DeployRequest, DeployStatus, Provenance};
use crate::model::plan::{ApprovalStep, DeployStep, RollbackTo};
use crate::model::{ApprovalId, Asker, AttemptId, DeployId, EnvironmentName, Span};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

/// A wait looks at what is stored at least this often: bounds what a lost wake-up costs.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// An approval of a step that does not say how long it waits.
const EXPIRES: Duration = Duration::from_secs(24 * 3600);

/// A step that waits.
#[derive(Debug, Clone)]
pub struct Asking {
    /// The attempt.
    pub attempt: AttemptId,
    /// Where the code comes from.
    pub provenance: Provenance,
    /// Everybody who pushed, triggered or repeated the run.
    pub started_by: Vec<String>,
    /// Steps of the run that are over, and how they ended.
    pub results: Vec<(String, String)>,
}

/// What the deploys after an approval would put there.
#[derive(Debug, Clone, Default)]
pub struct Later {
    /// Images by service, outputs filled in as far as they are known.
    pub images: BTreeMap<String, String>,
    /// They take the images of what serves there.
    pub promote: Option<EnvironmentName>,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// The step is done; these are its outputs.
    Yes(BTreeMap<String, String>),
    /// It was not allowed.
    Refused(String),
    /// The deploy turned bad, and the release before serves again.
    RolledBack(String),
    /// The deploy turned bad, and nothing was put back.
    Failed(String),
    /// The run was cancelled.
    Cancelled,
}

impl Deploys {
    /// Deploys for a step, and waits for the end.
    ///
    /// # Errors
    /// When the store fails; what was asked goes on.
    pub async fn pass_deploy(
        &self,
        asking: &Asking,
        step: &DeployStep,
        mut cancel: watch::Receiver<bool>,
    ) -> Result<Passed, DeployError> {
        let mut changes = self.changes();
        let id = match self.ask_for(asking, step).await {
            Ok(id) => id,
            Err(DeployError::Unknown(why) | DeployError::NotNow(why) | DeployError::Refused(why)) => {
                return Ok(Passed::Refused(why));
            }
            Err(error) => return Err(error),
        };
        loop {
            let standing = self.standing(id).await?;
            let why = standing.state.why.clone().unwrap_or_default();
            let outputs = || {
                let release = standing.row.release.map_or(String::new(), |number| number.to_string());
                BTreeMap::from([
                    ("deploy".to_owned(), id.to_string()),
                    ("release".to_owned(), release),
                    ("status".to_owned(), standing.row.status.to_string()),
                ])
            };
            match standing.row.status {
                DeployStatus::Verified | DeployStatus::Unverified => return Ok(Passed::Yes(outputs())),
                DeployStatus::RolledBack => return Ok(Passed::RolledBack(why)),
                DeployStatus::Failed | DeployStatus::RollbackFailed => return Ok(Passed::Failed(why)),
                DeployStatus::Refused | DeployStatus::Superseded => return Ok(Passed::Refused(why)),
                DeployStatus::Cancelled => return Ok(Passed::Cancelled),
                _ => {}
            }
            if *cancel.borrow_and_update() {
                // One that has begun is brought to an end that is stated, whoever waits for it.
                let _ = self.cancel(id, "the run's end").await;
                return Ok(Passed::Cancelled);
            }
            wait(&mut changes, &mut cancel).await;
        }
    }

    async fn ask_for(&self, asking: &Asking, step: &DeployStep) -> Result<DeployId, DeployError> {
        if let Some(to) = &step.rollback {
            return self.ask_back(asking, &step.environment, to).await;
        }
        let mut images = step.images.clone();
        let mut promoted_from = None;
        if let Some(from) = &step.promote {
            let (number, bytes) = self.promoted(&step.environment, from).await?;
            images = bytes;
            promoted_from = Some((from.clone(), number));
        }
        let request = request(asking, &step.environment, images, promoted_from);
        self.request(request, None).await
    }

    /// The release whose bytes a promotion takes, and its images.
    async fn promoted(
        &self,
        to: &EnvironmentName,
        from: &EnvironmentName,
    ) -> Result<(u64, BTreeMap<String, String>), DeployError> {
        self.history(from).await?;
        let number = self.shared.store.environment(from).await?.verified.ok_or_else(|| {
            DeployError::NotNow(format!("promote {from} to {to}: nothing was verified in {from} yet"))
        })?;
        let row = self.shared.store.release(from, number).await?;
        let row = row.ok_or_else(|| DeployError::Unknown(format!("find release {number} of {from}")))?;
        Ok((number, row.release.images))
    }

    /// A step that goes back is what a person who goes back asks for; again for the same attempt, it is the same request.
    async fn ask_back(
        &self,
        asking: &Asking,
        environment: &EnvironmentName,
        to: &str,
    ) -> Result<DeployId, DeployError> {
        let setup = self.shared.setup(environment)?;
        let from = &asking.provenance;
        if !setup.config.from.iter().any(|source| source.allows(&from.repo, &from.git_ref, &from.pipeline)) {
            return Err(DeployError::Refused(format!(
                "{}, pipeline {} may not roll {environment} back",
                from.repo, from.pipeline
            )));
        }
        let to = match to.parse::<RollbackTo>() {
            Ok(RollbackTo::Previous) => None,
            Ok(RollbackTo::Release(number)) => Some(number),
            Err(why) => return Err(DeployError::Refused(format!("roll {environment} back: {why}"))),
        };
        // What was rolled back comes back by a person's word, not by a push.
        if let Some(number) = to
            && let Some(row) = self.shared.store.release(environment, number).await?
        {
            let of = Some((row.release.provenance.repo, row.release.provenance.commit));
            if self.shared.store.holds(environment).await?.iter().any(|hold| hold.revision == of) {
                return Err(DeployError::Refused(format!(
                    "release {number} of {environment} is held\nhint: `mainstay release-hold {environment}`, or `mainstay rollback {environment} --to {number}`"
                )));
            }
        }
        let AttemptId { run, step, attempt } = &asking.attempt;
        let by = from.actor.clone().unwrap_or_else(|| format!("run #{run}"));
        self.go_back(environment, to, Some(format!("run/{run}/{step}/{attempt}")), &Asker::user(by)).await
    }

    /// Asks people for a step, and waits for what they say.
    ///
    /// # Errors
    /// When the store fails; the question stays.
    pub async fn pass_approval(
        &self,
        asking: &Asking,
        step: &ApprovalStep,
        later: &Later,
        mut cancel: watch::Receiver<bool>,
    ) -> Result<Passed, DeployError> {
        let (mut changes, mut answers) = (self.changes(), self.shared.approvals.changes());
        let mut asked: Option<ApprovalId> = None;
        let _place = step.environment.as_ref().map(|environment| self.shared.stand_in_line(environment, asking));
        loop {
            let now = match &step.environment {
                Some(environment) => self.ask_about(asking, step, environment, later).await,
                None => self.ask_gate(asking, step).await.map(Some),
            };
            let id = match now {
                Ok(Some(id)) => id,
                // Somebody comes first.
                Ok(None) => {
                    if *cancel.borrow_and_update() {
                        return Ok(Passed::Cancelled);
                    }
                    tokio::select! {
                        () = wait(&mut changes, &mut cancel) => {}
                        _ = answers.changed() => {}
                    }
                    continue;
                }
                Err(DeployError::Refused(why) | DeployError::Unknown(why) | DeployError::NotNow(why)) => {
                    if let Some(before) = asked {
                        self.shared.approvals.void(before, &why).await?;
                    }
                    return Ok(Passed::Refused(why));
                }
                Err(error) => return Err(error),
            };
            if let Some(before) = asked.replace(id)
                && before != id
            {
                self.shared.approvals.void(before, "what it was asked for has changed").await?;
            }
            let Some(view) = self.shared.approvals.view(id).await? else {
                return Ok(Passed::Refused(format!("approval {id} is gone")));
            };
            if let Some(passed) = passed(&view) {
                return Ok(passed);
            }
            if *cancel.borrow_and_update() {
                self.shared.approvals.void(id, "the run has ended").await?;
                return Ok(Passed::Cancelled);
            }
            tokio::select! {
                () = wait(&mut changes, &mut cancel) => {}
                _ = answers.changed() => {}
            }
        }
    }

    /// The request that the environment's own policy makes of what the run would deploy there; none while something else
    /// comes first.
    async fn ask_about(
        &self,
        asking: &Asking,
        step: &ApprovalStep,
        environment: &EnvironmentName,
        later: &Later,
    ) -> Result<Option<ApprovalId>, DeployError> {
        let mut images = later.images.clone();
        if let Some(from) = &later.promote {
            images = self.promoted(environment, from).await?.1;
        }
        if let Some(unknown) = images.iter().find(|(_, image)| image.contains("${{")) {
            return Err(DeployError::Refused(format!(
                "ask for approval: the image of `{}` is not known yet\nhint: the approval needs the step that makes it",
                unknown.0
            )));
        }
        let request = request(asking, environment, images, None);
        let candidate = self.shared.candidate_of(&request).await?;
        let warning = match &candidate.admission {
            Admission::Refuse(why) => return Err(DeployError::Refused(why.clone())),
            Admission::Ask(warning) => warning.clone(),
            Admission::Supersede(_) | Admission::Wait | Admission::Begin { .. } => None,
        };
        if let Some(id) = candidate.approval {
            return Ok(Some(id));
        }
        if candidate.admission == Admission::Wait {
            return Ok(None);
        }
        let words = Words {
            deploy: None,
            warning,
            results: asking.results.clone(),
            message: step.message.clone(),
            inputs: step.inputs.clone(),
        };
        let asked = self.shared.approval_request(&candidate, &request, words).await?;
        let asked = asked.ok_or_else(|| {
            DeployError::Refused(format!(
                "ask for approval: {environment} has no `approval` in mainstay.yml, and an approval that nobody gives does not count"
            ))
        })?;
        let id = self.shared.approvals.ensure(asked).await?;
        self.supersede_older(id, environment, asking).await?;
        Ok(Some(id))
    }

    /// A newer run that reaches the same approval takes the place of an older one that waits there.
    async fn supersede_older(
        &self,
        id: ApprovalId,
        environment: &EnvironmentName,
        asking: &Asking,
    ) -> Result<(), DeployError> {
        let policy = self.shared.setup(environment)?.config.approval.clone();
        if policy.is_some_and(|policy| policy.newer == Newer::Wait) {
            return Ok(());
        }
        let from = &asking.provenance;
        let Some(mirror) = self.shared.setups().mirrors.get(&from.repo).cloned() else { return Ok(()) };
        for older in self.shared.approvals.list(true).await? {
            let same = older.environment.as_ref() == Some(environment) && older.subject.repo == from.repo.as_str();
            if older.id >= id || !same || older.run == Some(from.run) {
                continue;
            }
            let Ok(commit) = older.subject.commit.parse() else { continue };
            if mirror.is_ancestor(&commit, &from.commit).unwrap_or(false) {
                self.shared.approvals.void(older.id, &format!("superseded by run #{}", from.run)).await?;
            }
        }
        Ok(())
    }

    /// The request of a gate that the pipeline itself sets up.
    async fn ask_gate(&self, asking: &Asking, step: &ApprovalStep) -> Result<ApprovalId, DeployError> {
        let from = &asking.provenance;
        let document = serde_json::json!(["mainstay-gate-1", from.run, asking.attempt.step, from.repo, from.commit]);
        let binding = hex::encode(Sha256::digest(document.to_string().as_bytes()));
        let policy = ApprovalPolicy {
            from: step.from.clone(),
            required: step.required,
            expires: step.expires.unwrap_or(Span(EXPIRES)),
            by: vec![Channel::Mail, Channel::Webhook, Channel::Cli],
            allow_self: false,
            // It guards nothing that whoever pushes could not change in the pipeline itself.
            allow_unknown_pusher: true,
            // Each run is asked about by itself.
            newer: Newer::default(),
        };
        let people = self.shared.approvals.people();
        let (excluded, unknown_pusher) = candidate::started(&people, from.actor.as_ref(), &asking.started_by, &[]);
        let request = ApprovalRequest {
            key: format!("run/{}/{}", from.run, asking.attempt.step),
            environment: None,
            run: Some(from.run),
            step: Some(asking.attempt.step.clone()),
            deploy: None,
            binding,
            subject: Subject {
                title: format!("go on with {} in run #{} of {}", asking.attempt.step, from.run, from.repo),
                repo: from.repo.to_string(),
                git_ref: from.git_ref.clone(),
                commit: from.commit.to_string(),
                results: asking.results.clone(),
                way_back: format!("mainstay cancel {}", from.run),
                message: step.message.clone(),
                ..Subject::default()
            },
            policy,
            excluded,
            unknown_pusher,
            inputs: step.inputs.clone(),
        };
        Ok(self.shared.approvals.ensure(request).await?)
    }
}

fn request(
    asking: &Asking,
    environment: &EnvironmentName,
    images: BTreeMap<String, String>,
    promoted_from: Option<(EnvironmentName, u64)>,
) -> DeployRequest {
    let AttemptId { run, step, attempt } = &asking.attempt;
    DeployRequest {
        environment: environment.clone(),
        kind: DeployKind::Deploy,
        key: format!("run/{run}/{step}/{attempt}"),
        provenance: asking.provenance.clone(),
        started_by: asking.started_by.clone(),
        step: Some(step.clone()),
        images,
        release: None,
        promoted_from,
        by: asking.provenance.actor.clone().unwrap_or_else(|| "a push".to_owned()),
        skip_watch: false,
    }
}

/// What a request that is over, or can never be granted, means for the step.
fn passed(view: &ApprovalView) -> Option<Passed> {
    let why = |word: &str| view.note.clone().unwrap_or_else(|| format!("approval {} {word}", view.id));
    match view.state {
        ApprovalState::Open if (view.eligible.len() as u32) < view.required => {
            Some(Passed::Refused(why("can be given by nobody")))
        }
        ApprovalState::Open => None,
        ApprovalState::Granted | ApprovalState::Used => {
            let standing = view.decisions.iter().filter(|decision| decision.withdrawn_at.is_none());
            let mut outputs: BTreeMap<String, String> = standing.clone().flat_map(|d| d.inputs.clone()).collect();
            let by: Vec<_> = standing.map(|decision| decision.person.to_string()).collect();
            outputs.insert("approved_by".to_owned(), by.join(","));
            Some(Passed::Yes(outputs))
        }
        ApprovalState::Rejected => Some(Passed::Refused(why("was rejected"))),
        ApprovalState::Expired => Some(Passed::Refused(why("expired"))),
        ApprovalState::Void => Some(Passed::Refused(why("is void"))),
    }
}

async fn wait(changes: &mut watch::Receiver<u64>, cancel: &mut watch::Receiver<bool>) {
    tokio::select! {
        _ = changes.changed() => {}
        () = crate::step::container::turned(cancel) => {}
        () = tokio::time::sleep(LOOK_EVERY) => {}
    }
}
