//! Environments, releases and deploys as the API and the command line show them.

use super::candidate::short;
use super::{DeployError, Deploys, Standing, health, revert};
use crate::config::daemon::freeze;
use crate::model::deploy::{DeployKind, DeployStatus, Probe};
use crate::model::deploy_view::{DeployView, EnvironmentView, HoldView, LeaseView, ReleaseView, RevertView, RuleView};
use crate::model::{DeployId, EnvironmentName};
use crate::store::{HoldRow, ReleaseRow};
use jiff::Timestamp;
use std::time::Duration;

/// Answers of health rules shown with a deploy.
const PROBES_SHOWN: u32 = 100;
/// A target that does not say what runs within this time is shown without.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

impl Deploys {
    /// All environments, by name. Their targets are not asked.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn environments(&self) -> Result<Vec<EnvironmentView>, DeployError> {
        let names: Vec<_> = self.shared.setups().environments.keys().cloned().collect();
        let mut views = Vec::new();
        for name in names {
            views.push(self.environment_stored(&name).await?);
        }
        Ok(views)
    }

    /// One environment, and what its target says runs there.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn environment(&self, name: &EnvironmentName) -> Result<EnvironmentView, DeployError> {
        let mut view = self.environment_stored(name).await?;
        let setup = self.shared.setup(name)?;
        if let Ok(Ok(observed)) = tokio::time::timeout(LOOK_WITHIN, setup.target.observe()).await {
            view.instances = observed.instances;
        }
        if let Some(last) = self.shared.store.last_deploy(name).await? {
            view.last = Some(deploy(self.shared.standing(last.id).await?));
        }
        let begun = view.deploys.iter_mut().filter(|deploy| deploy.status.holds_environment());
        for deploy in begun.chain(&mut view.last) {
            let answers = self.shared.store.last_probes(deploy.id).await?;
            deploy.health =
                answers.into_iter().map(|last| RuleView { rule: rule(&view.health, &last), last }).collect();
        }
        Ok(view)
    }

    async fn environment_stored(&self, name: &EnvironmentName) -> Result<EnvironmentView, DeployError> {
        let setup = self.shared.setup(name)?;
        let store = &self.shared.store;
        let stored = store.environment(name).await?;
        let current = match stored.current {
            Some(number) => store.release(name, number).await?.map(release),
            None => None,
        };
        let mut deploys = Vec::new();
        for row in store.open_deploys(Some(name.clone())).await? {
            deploys.push(deploy(self.shared.standing(row.id).await?));
        }
        let mut holds = Vec::new();
        for row in store.holds(name).await? {
            let revert = match row.deploy {
                Some(deploy) => self.revert(deploy).await?,
                None => None,
            };
            holds.push(hold(row, revert));
        }
        let lease = store.lease(name).await?;
        // Nothing was ever stored of one whose history is not taken.
        let attention = self.shared.barred_history(name).or(stored.attention);
        let under_way = deploys.iter().find(|deploy| deploy.status.holds_environment());
        let state = if let Some(deploy) = under_way {
            deploy.status.as_str()
        } else if attention.is_some() {
            "attention"
        } else if holds.iter().any(|hold| hold.commit.is_none()) {
            "held"
        } else if deploys.iter().any(|deploy| deploy.status == DeployStatus::Waiting) {
            DeployStatus::Waiting.as_str()
        } else if !stored.drift.is_empty() {
            "drifted"
        } else {
            match stored.current {
                None => "empty",
                Some(_) if stored.current == stored.verified => "verified",
                Some(_) => "unverified",
            }
        };
        Ok(EnvironmentView {
            name: name.clone(),
            target: setup.config.target.kind().to_owned(),
            state: state.to_owned(),
            current,
            verified: stored.verified,
            deploys,
            holds,
            attention,
            drift: stored.drift,
            looked_at: stored.looked_at,
            instances: Vec::new(),
            frozen_until: freeze::frozen_until(&setup.config.freeze, Timestamp::now()),
            lease: lease.map(|lease| LeaseView { owner: lease.owner, deploy: lease.deploy, until: lease.until }),
            health: setup.config.health.iter().map(health::words).collect(),
            last: None,
        })
    }

    /// The releases of an environment, the newest first.
    ///
    /// # Errors
    /// When there is no such environment.
    pub async fn releases(&self, name: &EnvironmentName, limit: u32) -> Result<Vec<ReleaseView>, DeployError> {
        self.shared.setup(name)?;
        Ok(self.shared.store.releases(name, limit).await?.into_iter().map(release).collect())
    }

    /// The newest deploys of an environment, the newest first.
    ///
    /// # Errors
    /// When there is no such environment.
    pub async fn deploys(&self, name: &EnvironmentName, limit: u32) -> Result<Vec<DeployView>, DeployError> {
        self.shared.setup(name)?;
        let mut views = Vec::new();
        for row in self.shared.store.list_deploys(name, limit).await? {
            let revert = self.revert(row.id).await?;
            views.push(DeployView { revert, ..deploy(self.shared.standing(row.id).await?) });
        }
        Ok(views)
    }

    /// One deploy, with the newest answers of its health rules.
    ///
    /// # Errors
    /// When there is none of that number.
    pub async fn deploy(&self, id: DeployId) -> Result<DeployView, DeployError> {
        let mut view = deploy(self.shared.standing(id).await?);
        view.probes = self.shared.store.probes(id, PROBES_SHOWN).await?;
        view.revert = self.revert(id).await?;
        Ok(view)
    }

    async fn revert(&self, id: DeployId) -> Result<Option<RevertView>, DeployError> {
        let row = self.shared.store.revert_of(id).await?;
        Ok(row.map(|row| RevertView {
            state: row.state.as_str().to_owned(),
            branch: revert::branch_of(&row.wanted),
            url: row.url,
            why: row.why,
        }))
    }
}

fn release(row: ReleaseRow) -> ReleaseView {
    ReleaseView {
        release: row.release,
        deploy: row.deploy,
        status: row.status,
        verified_at: row.verified_at,
        recorded: row.recorded,
    }
}

fn hold(row: HoldRow, revert: Option<RevertView>) -> HoldView {
    HoldView {
        commit: row.revision.map(|(_, commit)| commit.to_string()),
        reason: row.reason,
        by: row.by,
        since: row.since,
        strict: row.strict,
        revert,
    }
}

fn deploy(standing: Standing) -> DeployView {
    let Standing { row, state, .. } = standing;
    let from = &row.request.provenance;
    DeployView {
        id: row.id,
        environment: row.request.environment.clone(),
        kind: row.request.kind,
        status: row.status,
        release: row.release,
        fallback: state.fallback,
        what: format!("{} {}", from.repo, short(&from.commit)),
        by: row.request.by.clone(),
        approval: state.approval,
        why: state.why,
        by_request: state.bad_by.is_some() || row.request.kind == DeployKind::Rollback,
        created_at: row.created_at,
        applied_at: state.applied_at,
        bad_at: state.bad.map(|(at, _)| at),
        put_back_at: state.put_back_at,
        finished_at: row.finished_at,
        revert: None,
        probes: Vec::new(),
        health: Vec::new(),
    }
}

/// The rule that gave an answer, in words, as far as `mainstay.yml` still has it.
fn rule(rules: &[String], answer: &Probe) -> String {
    rules.get(answer.rule).cloned().unwrap_or_else(|| format!("rule {}", answer.rule + 1))
}
