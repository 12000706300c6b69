//! Steps that wait, for the engine: answered from `deploy`, `approval` and the keeper of sources. And the targets of the environments.

use super::recovery::DataSteps;
use super::{alerts, wire};
use crate::backup::keeper::Keeper;
use crate::config::daemon::environment::TargetConfig;
use crate::config::daemon::{Daemon, DockerSettings, RuntimeChoice};
use crate::deploy::gate::{Asking, Later, Passed};
use crate::deploy::points::Points;
use crate::deploy::target::Target;
use crate::deploy::target::command::{Command, CommandParts};
use crate::deploy::target::compose::{Compose, ComposeParts};
use crate::deploy::target::swarm::Swarm;
use crate::deploy::{Deploys, Setup, Setups};
use crate::engine::gate::{GateAsk, Gates};
use crate::git::Mirror;
use crate::model::deploy::Provenance;
use crate::model::outcome::AttemptResult;
use crate::model::plan::{ApprovalStep, StepKind};
use crate::model::{AttemptEnd, EnvironmentName, InstanceId, RepoName, SourceName};
use crate::notify::forge::Forge;
use anyhow::Context;
use async_trait::async_trait;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Pause before the store is asked again when it failed.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Marks recovery points in the sources that the keeper tends.
pub(super) struct KeeperPoints(pub(super) Keeper);

#[async_trait]
impl Points for KeeperPoints {
    async fn mark(&self, name: &str) -> BTreeMap<SourceName, String> {
        self.0.mark(name).await
    }
}

/// Lets waiting steps pass as deploys and approvals say.
pub(super) struct DaemonGates {
    pub(super) deploys: Deploys,
    pub(super) data: DataSteps,
}

#[async_trait]
impl Gates for DaemonGates {
    async fn pass(&self, ask: GateAsk, cancel: watch::Receiver<bool>) -> AttemptResult {
        let data = match &ask.kind {
            StepKind::Backup(step) => Some(self.data.back_up(&ask, step, cancel.clone()).await),
            StepKind::Restore(step) => Some(self.data.restore(&ask, step, cancel.clone()).await),
            StepKind::Container | StepKind::Deploy(_) | StepKind::Approval(_) => None,
        };
        if let Some((end, outputs)) = data {
            return AttemptResult { end, outputs, began_at: None, ended_at: Timestamp::now() };
        }
        let asking = asking(&ask);
        let passed = loop {
            let passed = match &ask.kind {
                StepKind::Deploy(step) => self.deploys.pass_deploy(&asking, step, cancel.clone()).await,
                StepKind::Approval(step) => {
                    self.deploys.pass_approval(&asking, step, &later(&ask, step), cancel.clone()).await
                }
                _ => Ok(Passed::Refused("it is no step that waits".to_owned())),
            };
            match passed {
                Ok(passed) => break passed,
                Err(error) => {
                    tracing::warn!(attempt = %ask.attempt, %error, "failed to look after a waiting step; trying again");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        };
        let (end, outputs) = match passed {
            Passed::Yes(outputs) => (AttemptEnd::Exited { code: 0 }, outputs),
            Passed::Refused(detail) => (AttemptEnd::Refused { detail }, BTreeMap::new()),
            Passed::RolledBack(detail) => (AttemptEnd::RolledBack { detail }, BTreeMap::new()),
            Passed::Failed(detail) => (AttemptEnd::DeployFailed { detail }, BTreeMap::new()),
            Passed::Cancelled => (AttemptEnd::Cancelled, BTreeMap::new()),
        };
        AttemptResult { end, outputs, began_at: None, ended_at: Timestamp::now() }
    }
}

/// What the run would deploy to the environment of an approval.
fn later(ask: &GateAsk, step: &ApprovalStep) -> Later {
    let promote = ask.plan.steps.iter().find_map(|other| match &other.kind {
        StepKind::Deploy(deploy) if Some(&deploy.environment) == step.environment.as_ref() => deploy.promote.clone(),
        _ => None,
    });
    Later { images: ask.deploy_images.clone(), promote }
}

fn asking(ask: &GateAsk) -> Asking {
    // The first in the chain pushed it; whoever repeated it started it too.
    let actor = ask.original_actor.last().cloned().or_else(|| ask.trigger.actor.clone());
    let started_by = ask.original_actor.iter().cloned().chain(ask.trigger.actor.clone()).collect();
    Asking {
        attempt: ask.attempt.clone(),
        provenance: Provenance {
            repo: ask.trigger.repo.clone(),
            git_ref: ask.trigger.git_ref.clone(),
            commit: ask.trigger.commit.sha.clone(),
            pipeline: ask.pipeline.clone(),
            run: ask.attempt.run,
            actor,
        },
        started_by,
        results: ask.results.clone(),
    }
}

/// What deploys need of the configuration.
///
/// # Errors
/// When the settings of a target or a forge cannot be used.
pub(super) fn setups(
    config: &Daemon,
    instance: &InstanceId,
    mirrors: &BTreeMap<RepoName, Arc<Mirror>>,
) -> anyhow::Result<Setups> {
    let mut environments = BTreeMap::new();
    let mut told = BTreeMap::new();
    for (name, environment) in &config.environments {
        let target = target(config, instance, name, mirrors)
            .with_context(|| format!("use the target of the environment {name}"))?;
        environments.insert(name.clone(), Arc::new(Setup { config: environment.clone(), target }));
        told.insert(name.clone(), told_about(config, name));
    }
    let mut forges = BTreeMap::new();
    for (name, repo) in &config.repos {
        if let Some(settings) = &repo.forge {
            let forge = Forge::new(settings).map_err(|why| anyhow::anyhow!("use the forge of {name}: {why}"))?;
            forges.insert(name.clone(), Arc::new(forge));
        }
    }
    let trusted = config.trusted_releases.clone();
    Ok(Setups { environments, mirrors: mirrors.clone(), forges, told, trusted })
}

/// Whoever decides about an environment hears what came of it; where nobody decides, everybody who has an address.
fn told_about(config: &Daemon, name: &EnvironmentName) -> Vec<(String, String)> {
    let environment = config.environments.get(name);
    let people = match environment.and_then(|environment| environment.approval.as_ref()) {
        Some(policy) => config.people.members(&policy.from),
        None => config.people.users.keys().cloned().collect(),
    };
    alerts::reached(config, people)
}

fn target(
    config: &Daemon,
    instance: &InstanceId,
    name: &EnvironmentName,
    mirrors: &BTreeMap<RepoName, Arc<Mirror>>,
) -> anyhow::Result<Arc<dyn Target>> {
    let Some(environment) = config.environments.get(name) else { anyhow::bail!("there is no environment {name}") };
    Ok(match &environment.target {
        TargetConfig::Swarm(settings) => Arc::new(Swarm::new(settings, environment.downtime_allowed)?),
        TargetConfig::Compose(settings) => {
            let mirror = mirrors.get(&settings.repo).with_context(|| format!("watch {}", settings.repo))?;
            let engine = match (&settings.host, &config.runtime) {
                (Some(host), _) => DockerSettings { host: Some(host.clone()), ..DockerSettings::default() },
                (None, RuntimeChoice::Docker(engine)) => engine.clone(),
                (None, RuntimeChoice::Process) => DockerSettings::default(),
            };
            Arc::new(Compose::new(ComposeParts {
                environment: name.clone(),
                instance: instance.clone(),
                config: settings.clone(),
                downtime_allowed: environment.downtime_allowed,
                mirror: mirror.dir().to_owned(),
                dir: config.state.join("environments").join(name.as_str()),
                shim: std::env::current_exe().context("find this program's own file")?,
                docker: wire::docker(config, &engine, instance)?,
                secrets: environment.secrets(),
            }))
        }
        TargetConfig::Command(settings) => {
            let mirror = mirrors.get(&settings.repo).with_context(|| format!("watch {}", settings.repo))?;
            let docker = match (&settings.image, &config.runtime) {
                (Some(_), RuntimeChoice::Docker(engine)) => Some(wire::docker(config, engine, instance)?),
                (Some(_), RuntimeChoice::Process) => {
                    anyhow::bail!("run its commands in an image: the daemon's runtime is `process`")
                }
                (None, _) => None,
            };
            Arc::new(Command::new(CommandParts {
                environment: name.clone(),
                instance: instance.clone(),
                config: settings.clone(),
                mirror: mirror.dir().to_owned(),
                dir: config.state.join("environments").join(name.as_str()),
                shim: std::env::current_exe().context("find this program's own file")?,
                docker,
                secrets: environment.secrets(),
            }))
        }
    })
}
