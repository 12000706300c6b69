//! Steps as containers of a Docker-compatible engine, reached by its socket.
//!
//! Everything made there carries this daemon's labels and a name derived from run, step and attempt, so that a
//! successor finds it; nothing without those labels is ever touched. Two things are used by several daemons of one
//! engine together, named by their content and labelled `mainstay.shared`: the helper's image and its volume.

mod container;
mod engine;
mod frames;
mod holder;
mod image;
mod logs;
mod network;
pub(crate) mod oneoff;
pub(crate) mod project;
pub(crate) mod server;
mod space;
mod swarm;
pub(crate) mod tools;

pub use image::Registries;
pub use network::Cidr;
pub use swarm::{LocalImage, NAMESPACE, SwarmManager, SwarmService, SwarmState, SwarmTask};

use super::{
    Found, Leftover, Living, ResolvedImage, Runtime, RuntimeError, SpaceName, StepSpec, Word, WorkspaceSource,
};
use crate::model::log::{LogChunk, LogCursor};
use crate::model::plan::Resources;
use crate::model::{AttemptId, InstanceId, RepoName, RunId};
use async_trait::async_trait;
use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions, ListVolumesOptions};
use engine::{Engine, RUN, SPACE};
use futures_util::stream::{BoxStream, StreamExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Calls of clean-up under way at once: an engine removes one thing after the other anyway.
const SHORT_WIDTH: usize = 8;

/// How to reach an engine, and what to make in it.
#[derive(Clone)]
pub struct DockerConfig {
    /// `unix:///path`, `tcp://host:port` or `http://host:port`; without it `$DOCKER_HOST`, then the usual socket.
    pub host: Option<String>,
    /// Whose things they are.
    pub instance: InstanceId,
    /// The range that run networks are cut from.
    pub networks: Cidr,
    /// The prefix length of one run's network: 25 gives it 125 containers.
    pub subnet: u8,
    /// Limits of steps that set none themselves.
    pub defaults: Resources,
    /// Credentials for pulling.
    pub registries: Registries,
    /// How many spaces are kept ready in advance.
    pub pool: usize,
}

impl DockerConfig {
    /// The usual engine and the documented defaults.
    pub fn new(instance: InstanceId) -> Result<Self, String> {
        Ok(DockerConfig {
            host: None,
            instance,
            networks: "10.213.0.0/16".parse()?,
            subnet: 25,
            defaults: Resources::default(),
            registries: Registries::new(),
            pool: 4,
        })
    }
}

/// A Docker-compatible engine.
#[derive(Clone)]
pub struct Docker {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<Engine>,
    images: image::Images,
    spaces: space::Spaces,
    defaults: Resources,
    waiting: container::Waiting,
}

impl Docker {
    /// Prepares to speak with an engine, and reaches out to nobody: [`Runtime::ping`] asks whether it is there.
    pub fn connect(config: DockerConfig) -> Result<Self, RuntimeError> {
        let from_environment = || std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        let host = config.host.or_else(from_environment);
        let endpoint = host.unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
        let refused = |detail: String| RuntimeError::Refused { doing: "use the container engine".to_owned(), detail };
        if !["unix://", "tcp://", "http://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(refused(format!("`{endpoint}` is not understood; write unix:///path or tcp://host:port")));
        }
        let api = engine::connect(&endpoint)?;
        let subnets = network::Subnets::new(config.networks, config.subnet).map_err(refused)?;
        Ok(Docker {
            inner: Arc::new(Inner {
                engine: Arc::new(Engine { api, endpoint, instance: config.instance }),
                images: image::Images::new(config.registries),
                spaces: space::Spaces::new(subnets, config.pool),
                defaults: config.defaults,
                waiting: container::Waiting::default(),
            }),
        })
    }

    async fn containers(&self, run: Option<RunId>) -> Result<Vec<(String, HashMap<String, String>)>, RuntimeError> {
        let engine = &self.inner.engine;
        let options = ListContainersOptions { all: true, filters: Some(engine.ours(run)), ..Default::default() };
        let listed = engine.api.list_containers(Some(options)).await;
        let listed = listed.map_err(|e| engine.error("list our containers", &e))?;
        let name = |names: Option<Vec<String>>| names.unwrap_or_default().into_iter().next();
        Ok(listed
            .into_iter()
            .filter_map(|c| Some((name(c.names)?.trim_start_matches('/').to_owned(), c.labels.unwrap_or_default())))
            .collect())
    }

    async fn networks(&self) -> Result<Vec<(String, HashMap<String, String>)>, RuntimeError> {
        let engine = &self.inner.engine;
        let options = ListNetworksOptions { filters: Some(engine.ours(None)) };
        let listed = engine.api.list_networks(Some(options)).await;
        let listed = listed.map_err(|e| engine.error("list our networks", &e))?;
        Ok(listed.into_iter().filter_map(|n| Some((n.name?, n.labels.unwrap_or_default()))).collect())
    }

    /// By name, not by label: an engine that makes a container for a daemon which was killed, after the volume was
    /// removed, makes the volume again by itself, and with no label.
    async fn volumes(&self) -> Result<Vec<(String, HashMap<String, String>)>, RuntimeError> {
        let engine = &self.inner.engine;
        let prefix = space::name_prefix(engine);
        let filters = HashMap::from([("name".to_owned(), vec![prefix.clone()])]);
        let listed = engine.api.list_volumes(Some(ListVolumesOptions { filters: Some(filters) })).await;
        let listed = listed.map_err(|e| engine.error("list our volumes", &e))?;
        // The engine looks for the prefix anywhere in a name.
        let ours = listed.volumes.unwrap_or_default().into_iter().filter(|volume| volume.name.starts_with(&prefix));
        Ok(ours
            .map(|mut volume| {
                volume.labels.entry(SPACE.to_owned()).or_insert_with(|| volume.name.clone());
                (volume.name, volume.labels)
            })
            .collect())
    }

    async fn remove_containers(&self, names: Vec<String>) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        let removals = names.into_iter().map(|name| async move { container::remove(engine, &name).await });
        all(removals.collect()).await
    }
}

/// Carries out all of them, some at a time; the first failure is told after all were tried.
async fn all(acts: Vec<impl Future<Output = Result<(), RuntimeError>>>) -> Result<(), RuntimeError> {
    let results: Vec<_> = futures_util::stream::iter(acts).buffer_unordered(SHORT_WIDTH).collect().await;
    results.into_iter().collect()
}

#[async_trait]
impl Runtime for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    async fn ping(&self) -> Result<String, RuntimeError> {
        let engine = &self.inner.engine;
        let version = engine.api.version().await.map_err(|e| engine.error("ask the engine for its version", &e))?;
        let product = version.platform.map(|platform| platform.name).filter(|name| !name.is_empty());
        Ok(format!("{} {}", product.as_deref().unwrap_or("Docker"), version.version.unwrap_or_default()))
    }

    async fn resolve_image(
        &self,
        reference: &str,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<ResolvedImage, RuntimeError> {
        self.inner.images.resolve(&self.inner.engine, reference, progress).await
    }

    async fn take_space(&self, _run: RunId, repo: &RepoName) -> Result<SpaceName, RuntimeError> {
        self.inner.spaces.take(&self.inner.engine, repo).await
    }

    async fn reopen_space(&self, _run: RunId, _repo: &RepoName, kept: &SpaceName) -> Result<SpaceName, RuntimeError> {
        self.inner.spaces.reopen(&self.inner.engine, kept).await?;
        Ok(kept.clone())
    }

    async fn fill(&self, space: &SpaceName, source: &WorkspaceSource) -> Result<(), RuntimeError> {
        self.inner.spaces.fill(&self.inner.engine, space, source).await
    }

    async fn prepare(&self, spec: &StepSpec) -> Result<(), RuntimeError> {
        if container::prepare(&self.inner.engine, spec, self.inner.defaults).await? {
            self.inner.waiting.add(&spec.id);
        }
        Ok(())
    }

    async fn release(&self, spec: &StepSpec, word: &Word) -> Result<bool, RuntimeError> {
        let Inner { engine, images, spaces, defaults, waiting } = &*self.inner;
        let facts = images.facts(engine, &spec.image).await?;
        if waiting.take(&spec.id) {
            match container::release(engine, spec, word, &facts, spaces).await {
                // Gone since it was made, by a restart of the engine for instance: what is there now is looked at.
                Ok(false) | Err(RuntimeError::Gone { .. } | RuntimeError::Refused { .. }) => {}
                said => return said,
            }
        }
        if !container::ensure_waiting(engine, spec, *defaults).await? {
            return Ok(false);
        }
        container::release(engine, spec, word, &facts, spaces).await
    }

    async fn logs(
        &self,
        id: &AttemptId,
        from: LogCursor,
    ) -> Result<BoxStream<'static, Result<LogChunk, RuntimeError>>, RuntimeError> {
        let name = self.inner.engine.container(id);
        match container::state_of(&self.inner.engine, &name).await? {
            Found::Absent => Err(RuntimeError::Gone { what: format!("the log of {name}") }),
            _ => Ok(logs::follow(self.inner.engine.clone(), name, from)),
        }
    }

    async fn wait(&self, id: &AttemptId) -> Result<Found, RuntimeError> {
        container::wait(&self.inner.engine, id).await
    }

    async fn find(&self, id: &AttemptId) -> Result<Found, RuntimeError> {
        container::state_of(&self.inner.engine, &self.inner.engine.container(id)).await
    }

    async fn undisturbed(&self, space: &SpaceName, id: &AttemptId) -> Result<bool, RuntimeError> {
        container::undisturbed(&self.inner.engine, space, id).await
    }

    async fn stop(&self, id: &AttemptId, grace: Duration) -> Result<(), RuntimeError> {
        self.inner.waiting.take(id);
        container::stop(&self.inner.engine, id, grace).await
    }

    async fn remove(&self, id: &AttemptId) -> Result<(), RuntimeError> {
        self.inner.waiting.take(id);
        container::remove(&self.inner.engine, &self.inner.engine.container(id)).await
    }

    async fn close(&self, run: RunId, space: Option<&SpaceName>, keep_workspace: bool) -> Result<(), RuntimeError> {
        self.inner.waiting.forget(run);
        let containers = self.containers(Some(run)).await?;
        self.remove_containers(containers.into_iter().map(|(name, _)| name).collect()).await?;
        if let Some(space) = space {
            self.inner.spaces.remove(&self.inner.engine, space, keep_workspace).await?;
        }
        let is_of_space = |labels: &HashMap<String, String>| space.is_some_and(|s| labels.get(SPACE) == Some(&s.0));
        let is_of_run = |labels: &HashMap<String, String>| labels.get(RUN) == Some(&run.to_string());
        let (containers, networks, volumes) = tokio::try_join!(self.containers(None), self.networks(), self.volumes())?;
        let volumes = volumes.into_iter().filter(|_| !keep_workspace);
        let left: Vec<_> = containers
            .into_iter()
            .chain(networks)
            .chain(volumes)
            .filter(|(_, labels)| is_of_space(labels) || is_of_run(labels))
            .map(|(name, _)| name)
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(RuntimeError::Refused {
            doing: format!("remove everything of run #{run}"),
            detail: format!("the engine still has {}", left.join(", ")),
        })
    }

    async fn leftovers(&self) -> Result<Vec<Leftover>, RuntimeError> {
        let (containers, networks, volumes) = tokio::try_join!(self.containers(None), self.networks(), self.volumes())?;
        let kind = |kind: &'static str, list: Vec<(String, HashMap<String, String>)>| {
            list.into_iter().map(move |(name, labels)| Engine::leftover(kind, &name, &labels))
        };
        let mut all: Vec<_> =
            kind("container", containers).chain(kind("network", networks)).chain(kind("volume", volumes)).collect();
        all.sort();
        Ok(all)
    }

    fn held_spaces(&self) -> Vec<SpaceName> {
        self.inner.spaces.made_here()
    }

    async fn stale(&self, living: Option<&Living>) -> Result<Vec<Leftover>, RuntimeError> {
        let (containers, networks, volumes) = tokio::try_join!(self.containers(None), self.networks(), self.volumes())?;
        let spaces = &self.inner.spaces;
        let kept = |name: &str, labels: &HashMap<String, String>| {
            let space = labels.get(SPACE).map(String::as_str).unwrap_or_default();
            let run = labels.get(RUN).and_then(|run| run.parse::<RunId>().ok());
            living.is_some_and(|living| match run {
                Some(run) => living.has_run(run),
                None if image::is_giving(name) => true,
                None => living.spaces.iter().any(|known| known.0 == space) || spaces.is_made_here(space),
            })
        };
        let lists = [("container", containers), ("network", networks), ("volume", volumes)];
        Ok(lists
            .into_iter()
            .flat_map(|(kind, list)| list.into_iter().map(move |(name, labels)| (kind, name, labels)))
            .filter(|(_, name, labels)| !kept(name, labels))
            .map(|(kind, name, labels)| Engine::leftover(kind, &name, &labels))
            .collect())
    }

    async fn discard(&self, things: &[Leftover]) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        let of = |kind| things.iter().filter(move |thing| thing.kind == kind).map(|thing| thing.name.as_str());
        // Containers first: networks and volumes go only when nobody uses them.
        self.remove_containers(of("container").map(str::to_owned).collect()).await?;
        let networks = of("network").map(|name| space::remove_network(engine, name)).collect();
        let volumes = of("volume").map(|name| space::remove_volume(engine, name)).collect();
        // Both are tried to their end: one that is refused does not keep the others.
        let (networks, volumes) = tokio::join!(all(networks), all(volumes));
        networks.and(volumes)
    }

    async fn warm(&self, repo: &RepoName, source: &WorkspaceSource) {
        if let Err(error) = self.inner.spaces.warm(&self.inner.engine, repo, source).await {
            tracing::warn!(repo = repo.as_str(), %error, "no space is ready in advance for the next run");
        }
    }

    async fn drain_pool(&self) {
        self.inner.spaces.drain(&self.inner.engine).await;
    }
}
