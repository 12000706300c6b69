//! Containers of a Compose project, as a deploy looks at them: what they were made from, how they are, and the few acts
//! that need no Compose file: start, stop, remove.

use super::Docker;
use super::container::{self, remove};
use super::engine::{is_gone, status};
use crate::runtime::RuntimeError;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum, RestartPolicyNameEnum};
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptions, ListNetworksOptions, StartContainerOptions, StopContainerOptions,
};
use std::collections::{BTreeMap, HashMap};

/// The label with which Compose says to which project a container or network belongs.
pub(crate) const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const ONE_OFF: &str = "com.docker.compose.oneoff";

/// One container of a project.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) project: String,
    pub(crate) service: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<String>,
    /// Place in the container, and what is there.
    pub(crate) mounts: BTreeMap<String, String>,
    /// Port of the container, and what of the host leads to it; an empty text where the engine chooses.
    pub(crate) ports: BTreeMap<String, String>,
    pub(crate) running: bool,
    /// The engine's word for its state.
    pub(crate) state: String,
    pub(crate) exit_code: i64,
    /// Of its own health check, where it has one.
    pub(crate) well: Option<bool>,
    /// Its health check has given up on it; with what it said last.
    pub(crate) ill: Option<String>,
    pub(crate) restarts: u64,
    pub(crate) started_at: Option<jiff::Timestamp>,
    /// It is started anew when it ends well, so its end is never what was wanted.
    pub(crate) never_ends: bool,
}

fn member(found: ContainerInspectResponse) -> Option<Member> {
    let config = found.config.unwrap_or_default();
    let mut labels = config.labels.unwrap_or_default();
    if labels.get(ONE_OFF).is_some_and(|text| text == "True") {
        return None;
    }
    let state = found.state.unwrap_or_default();
    let host = found.host_config.unwrap_or_default();
    let health = state.health.unwrap_or_default();
    let said = health.log.as_ref().and_then(|log| log.last()?.output.clone()).unwrap_or_default().trim().to_owned();
    let policy = host.restart_policy.and_then(|policy| policy.name);
    let mounts = found.mounts.unwrap_or_default().into_iter().filter_map(|mount| {
        let source = mount.name.filter(|name| !name.is_empty()).or(mount.source).unwrap_or_default();
        Some((mount.destination?, source))
    });
    let ports = host.port_bindings.unwrap_or_default().into_iter().map(|(port, of_host)| {
        let of_host = of_host.unwrap_or_default().into_iter();
        let named = of_host.map(|one| match (one.host_ip.filter(|ip| !ip.is_empty()), one.host_port) {
            (Some(ip), port) => format!("{ip}:{}", port.unwrap_or_default()),
            (None, port) => port.unwrap_or_default(),
        });
        (port, named.collect::<Vec<_>>().join(","))
    });
    let status = state.status.unwrap_or(ContainerStateStatusEnum::EMPTY);
    Some(Member {
        name: found.name?.trim_start_matches('/').to_owned(),
        project: labels.remove(PROJECT)?,
        service: labels.remove(SERVICE)?,
        image: config.image.unwrap_or_default(),
        command: config.entrypoint.unwrap_or_default().into_iter().chain(config.cmd.unwrap_or_default()).collect(),
        environment: config.env.unwrap_or_default(),
        mounts: mounts.collect(),
        ports: ports.collect(),
        running: status == ContainerStateStatusEnum::RUNNING,
        state: status.to_string(),
        exit_code: state.exit_code.unwrap_or_default(),
        well: match health.status {
            None | Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) => None,
            Some(status) => Some(status == HealthStatusEnum::HEALTHY),
        },
        ill: (health.status == Some(HealthStatusEnum::UNHEALTHY)).then_some(said),
        restarts: found.restart_count.and_then(|count| count.try_into().ok()).unwrap_or_default(),
        started_at: state.started_at.and_then(|at| at.parse().ok()),
        never_ends: matches!(policy, Some(RestartPolicyNameEnum::ALWAYS | RestartPolicyNameEnum::UNLESS_STOPPED)),
    })
}

impl Docker {
    /// The containers that carry a label, `NAME=VALUE`, by name.
    pub(crate) async fn members(&self, label: &str) -> Result<Vec<Member>, RuntimeError> {
        let engine = &self.inner.engine;
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let listed = engine.api.list_containers(Some(options)).await;
        let listed = listed.map_err(|e| engine.error("list the project's containers", &e))?;
        let mut members = Vec::new();
        for id in listed.into_iter().filter_map(|one| one.id) {
            match engine.api.inspect_container(&id, None::<InspectContainerOptions>).await {
                Ok(found) => members.extend(member(found)),
                // Removed since.
                Err(e) if is_gone(&e) => {}
                Err(e) => return Err(engine.error("look at a container of the project", &e)),
            }
        }
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(members)
    }

    /// Asks a container to end, in its own way and its own time, and keeps it. Nothing there is success.
    pub(crate) async fn stop_member(&self, name: &str) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        match engine.api.stop_container(name, None::<StopContainerOptions>).await {
            Err(e) if matches!(status(&e), Some(304 | 404)) => Ok(()),
            other => other.map_err(|e| engine.error(format!("stop {name}"), &e)),
        }
    }

    /// Starts a container that was stopped; one that runs stays as it is.
    pub(crate) async fn start_member(&self, name: &str) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        match engine.api.start_container(name, None::<StartContainerOptions>).await {
            Err(e) if status(&e) == Some(304) => Ok(()),
            other => other.map_err(|e| engine.error(format!("start {name} again"), &e)),
        }
    }

    /// Stops and removes a container with its unnamed volumes. Nothing there is success.
    pub(crate) async fn remove_member(&self, name: &str) -> Result<(), RuntimeError> {
        self.stop_member(name).await?;
        remove(&self.inner.engine, name).await
    }

    /// Removes the networks that carry a label, `NAME=VALUE`, but those of the projects to keep. One that somebody
    /// else's container is in stays.
    pub(crate) async fn remove_networks(&self, label: &str, keep: &[&str]) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        let listed = engine.api.list_networks(Some(ListNetworksOptions { filters: Some(filters) })).await;
        let listed = listed.map_err(|e| engine.error("list the project's networks", &e))?;
        for network in listed {
            let project = network.labels.as_ref().and_then(|labels| labels.get(PROJECT));
            let Some(name) = network.name.filter(|_| project.is_none_or(|project| !keep.contains(&&**project))) else {
                continue;
            };
            match super::space::remove_network(engine, &name).await {
                Err(error @ RuntimeError::Refused { .. }) => tracing::warn!(network = name, %error, "a network stays"),
                other => other?,
            }
        }
        Ok(())
    }

    /// The last lines that a container printed.
    pub(crate) async fn last_lines(&self, name: &str) -> Result<Vec<String>, RuntimeError> {
        // What runs goes on printing: only what has ended has a last line.
        match container::look(&self.inner.engine, name).await? {
            container::State::Exited { .. } => Ok(self.output(name).await?.end(0, false).tail),
            _ => Ok(Vec::new()),
        }
    }
}
