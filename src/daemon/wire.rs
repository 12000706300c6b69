//! From a checked configuration to the things that carry it out: runtimes, mirrors, the engine's settings.

use crate::backup::logical::{Way, Whose};
use crate::config::backup::Source;
use crate::config::daemon::{Credentials, Daemon, DockerSettings, Repo, RuntimeChoice};
use crate::config::secret::Secret;
use crate::engine::{GRACE, KEEP_FAILED, Origin, PARK_AFTER, RepoSetup, Settings};
use crate::git::{Auth, Mirror, without_credentials};
use crate::logs::file::LogLimit;
use crate::model::plan::Resources;
use crate::model::{InstanceId, RepoName};
use crate::plan::Defaults;
use crate::runtime::docker::{Docker, DockerConfig};
use crate::runtime::process::Process;
use crate::runtime::{Runtime, RuntimeError};
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Everything made from one reading of the configuration.
pub struct Wired {
    /// What the engine knows of each repository.
    pub repos: BTreeMap<RepoName, RepoSetup>,
    /// The mirrors, for the triggers.
    pub mirrors: BTreeMap<RepoName, Arc<Mirror>>,
    /// Each runtime once, for health and clean-up.
    pub runtimes: Vec<Made>,
    /// The engine's settings.
    pub settings: Settings,
}

/// A runtime and what it was made from: made again only when that changes, since it holds spaces ready.
#[derive(Clone)]
pub struct Made {
    choice: RuntimeChoice,
    registries: BTreeMap<String, Credentials>,
    resources: Resources,
    /// The runtime.
    pub runtime: Arc<dyn Runtime>,
}

impl Made {
    /// The very same runtime.
    pub fn is(&self, other: &Made) -> bool {
        Arc::ptr_eq(&self.runtime, &other.runtime)
    }
}

/// Makes runtimes and mirrors, taking over those of `before` whose settings are the same; reaches out to nobody.
///
/// # Errors
/// When a mirror's folder cannot be made, or a secret that a repository is given is not stored.
pub fn wire(config: &Daemon, instance: &InstanceId, before: &[Made]) -> anyhow::Result<Wired> {
    let mut runtimes = Runtimes { config, instance, before, made: Vec::new() };
    let mut repos = BTreeMap::new();
    let mut mirrors = BTreeMap::new();
    for (name, repo) in &config.repos {
        let mirror = Arc::new(mirror(&config.state, name, repo)?);
        let setup = RepoSetup {
            runtime: runtimes.get(config.runtime_of(repo))?,
            origin: Origin::Mirror { mirror: Arc::clone(&mirror), url: without_credentials(&repo.url) },
            secrets: secrets(config, name, repo)?,
        };
        mirrors.insert(name.clone(), mirror);
        repos.insert(name.clone(), setup);
    }
    Ok(Wired { repos, mirrors, runtimes: runtimes.made, settings: settings(config) })
}

/// The configuration's own runtime, for a run without a daemon.
///
/// # Errors
/// When its settings cannot be used.
pub fn runtime(config: &Daemon, instance: &InstanceId) -> anyhow::Result<Arc<dyn Runtime>> {
    Runtimes { config, instance, before: &[], made: Vec::new() }.get(&config.runtime)
}

/// The engine's settings as the configuration has them.
pub fn settings(config: &Daemon) -> Settings {
    let limits = &config.limits;
    Settings {
        steps: limits.steps as usize,
        waiting: limits.waiting as usize,
        log: LogLimit { bytes: limits.log.0, ..LogLimit::default() },
        grace: GRACE,
        keep: Some(KEEP_FAILED),
        park_after: PARK_AFTER,
        keep_spaces_ready: true,
        public_url: Some(config.server.public_url.clone()).filter(|url| !url.is_empty()),
        masked: config.secret_values().iter().map(|secret| secret.expose().to_owned()).collect(),
        plan_defaults: Defaults { timeout: limits.timeout },
    }
}

struct Runtimes<'a> {
    config: &'a Daemon,
    instance: &'a InstanceId,
    before: &'a [Made],
    made: Vec<Made>,
}

impl Runtimes<'_> {
    fn get(&mut self, choice: &RuntimeChoice) -> anyhow::Result<Arc<dyn Runtime>> {
        let (registries, resources) = (&self.config.registries, self.config.limits.resources);
        let same =
            |made: &&Made| made.choice == *choice && made.registries == *registries && made.resources == resources;
        if let Some(made) = self.made.iter().find(same) {
            return Ok(Arc::clone(&made.runtime));
        }
        if let Some(made) = self.before.iter().find(same) {
            self.made.push(made.clone());
            return Ok(Arc::clone(&made.runtime));
        }
        let runtime: Arc<dyn Runtime> = match choice {
            RuntimeChoice::Docker(settings) => Arc::new(docker(self.config, settings, self.instance)?),
            RuntimeChoice::Process => {
                let shim = std::env::current_exe().context("find this program's own file")?;
                Arc::new(Process::new(self.config.state.join("process"), self.instance.clone(), shim)?)
            }
        };
        self.made.push(Made {
            choice: choice.clone(),
            registries: registries.clone(),
            resources,
            runtime: Arc::clone(&runtime),
        });
        Ok(runtime)
    }
}

pub(super) fn docker(config: &Daemon, settings: &DockerSettings, instance: &InstanceId) -> anyhow::Result<Docker> {
    let registries = config
        .registries
        .iter()
        .map(|(host, login)| (host.clone(), (login.username.clone(), login.password.expose().to_owned())))
        .collect();
    let networks = settings.networks.to_string();
    Ok(Docker::connect(DockerConfig {
        host: settings.host.clone(),
        networks: networks.parse().map_err(|why| anyhow::anyhow!("use the network range {networks}: {why}"))?,
        defaults: config.limits.resources,
        registries,
        ..DockerConfig::new(instance.clone()).map_err(anyhow::Error::msg)?
    })?)
}

/// The engine of the configuration, where there is one; else `$DOCKER_HOST`, or the usual socket. For what carries no
/// instance's label.
///
/// # Errors
/// When its address cannot be used.
pub fn engine(config: Option<&Daemon>) -> Result<Docker, RuntimeError> {
    let refused = |detail| RuntimeError::Refused { doing: "use the container engine".to_owned(), detail };
    let mut settings = DockerConfig::new(InstanceId("apart".into())).map_err(refused)?;
    if let Some(daemon) = config {
        if let RuntimeChoice::Docker(docker) = &daemon.runtime {
            settings.host = docker.host.clone();
        }
        let logins = daemon.registries.iter();
        settings.registries = logins
            .map(|(host, login)| (host.clone(), (login.username.clone(), login.password.expose().to_owned())))
            .collect();
    }
    Docker::connect(settings)
}

/// Where the programs of a source's logical copies come from; `progress` hears what is pulled.
///
/// # Errors
/// When the engine's address cannot be used.
pub fn programs(
    config: &Daemon,
    source: &Source,
    progress: Arc<dyn Fn(String) + Send + Sync>,
) -> Result<Way, RuntimeError> {
    let Some(copies) = &source.logical else { return Ok(Way::Here(None)) };
    // What lies around of whoever had this folder before is of the same source.
    let whose = Whose::Holder(format!("{} {}", host(), config.state.display()));
    Way::of(&copies.programs, &source.name, whose, progress, || engine(Some(config)))
}

/// The machine's name.
pub(super) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or("a machine").to_owned()
}

fn mirror(state: &Path, name: &RepoName, repo: &Repo) -> anyhow::Result<Mirror> {
    let auth = repo
        .auth
        .as_ref()
        .map(|login| Auth::Basic { user: login.username.clone(), password: login.password.expose().to_owned() });
    Ok(Mirror::open(&state.join("mirrors").join(format!("{name}.git")), &repo.url, auth)?)
}

fn secrets(config: &Daemon, name: &RepoName, repo: &Repo) -> anyhow::Result<BTreeMap<String, Secret>> {
    let store = config.secret_store();
    repo.secrets
        .iter()
        .map(|secret| {
            let value = store.get(secret)?.with_context(|| {
                format!("give `{name}` the secret `{secret}`: it is not stored\nhint: mainstay secrets set {secret}")
            })?;
            Ok((secret.clone(), value))
        })
        .collect()
}
