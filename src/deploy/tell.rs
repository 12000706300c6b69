//! What people are told about deploys: rows for the outbox, written with the fact they tell about.

use super::candidate::short;
use super::{Setups, Shared};
use crate::config::daemon::environment::RollbackGit;
use crate::model::deploy::{DeployRequest, DeployStatus, Drift};
use crate::model::{DeployId, EnvironmentName};
use crate::notify::message::{Back, DriftStage, Message};

/// A message for the outbox: key, channel, recipient, document.
pub(super) type Outgoing = (String, String, String, serde_json::Value);

impl Shared {
    /// What runs otherwise than it should, and what was done about it, for everybody who is told about the environment.
    pub(super) fn told_of_drift(
        &self,
        key: &str,
        environment: &EnvironmentName,
        release: u64,
        differences: Vec<Drift>,
        stage: DriftStage,
        why: Option<String>,
    ) -> Vec<Outgoing> {
        let message = Message::Drift { environment: environment.clone(), release, differences, stage, why };
        outgoing(&self.setups(), environment, key, &message)
    }

    /// That a deploy got somewhere, for everybody who is told about its environment.
    pub(super) fn told(
        &self,
        id: DeployId,
        request: &DeployRequest,
        release: Option<u64>,
        (status, why): (DeployStatus, Option<String>),
        back: Option<Back>,
    ) -> Vec<Outgoing> {
        let setups = self.setups();
        let environment = &request.environment;
        let from = &request.provenance;
        let way_back = match status {
            DeployStatus::RollbackFailed | DeployStatus::Failed => Some(format!(
                "look at it: mainstay environments {environment}; then mainstay release-hold {environment}"
            )),
            DeployStatus::Verified | DeployStatus::Unverified => Some(format!("mainstay rollback {environment}")),
            DeployStatus::RolledBack if self.proposes_reverts(environment) => {
                Some(format!("{} is held; a pull request that takes it back follows", short(&from.commit)))
            }
            DeployStatus::RolledBack => Some(format!(
                "{} is held: push a commit that takes it back, or mainstay release-hold {environment}",
                short(&from.commit)
            )),
            _ => None,
        };
        let message = Message::Deploy {
            environment: environment.clone(),
            deploy: id,
            release,
            status,
            title: format!("{} {}", from.repo, short(&from.commit)),
            why,
            back,
            way_back,
            run: Some(from.run),
            // There is no page of a run yet; `mainstay show` has it.
            run_url: None,
        };
        outgoing(&setups, environment, &format!("deploy/{id}/{status}"), &message)
    }

    fn proposes_reverts(&self, environment: &EnvironmentName) -> bool {
        self.setup(environment).is_ok_and(|setup| setup.config.rollback.git == RollbackGit::RevertPr)
    }
}

/// A message to everybody who is told about an environment.
pub(super) fn outgoing(setups: &Setups, environment: &EnvironmentName, key: &str, message: &Message) -> Vec<Outgoing> {
    let Ok(document) = serde_json::to_value(message) else { return Vec::new() };
    let told = setups.told.get(environment).map(Vec::as_slice).unwrap_or_default();
    told.iter()
        .map(|(channel, recipient)| {
            (format!("{key}/{channel}/{recipient}"), channel.clone(), recipient.clone(), document.clone())
        })
        .collect()
}
