//! What a deploy asks a manager of a Docker swarm.
//!
//! In come the name of a stack, a task, an image; out go its services and tasks as plain data. Called by
//! `deploy::target::swarm`. Nothing is made here: stacks are handed to the engine's own client, and only a service that a
//! release no longer has is removed.

use super::engine::{connect, error_at, is_gone};
use crate::runtime::RuntimeError;
use bollard::query_parameters::{
    ListContainersOptions, ListNetworksOptions, ListNodesOptions, ListServicesOptions, ListTasksOptions, LogsOptions,
};
use futures_util::StreamExt;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// The label by which the engine's client knows what belongs to a stack.
pub const NAMESPACE: &str = "com.docker.stack.namespace";
/// A node that is away keeps its logs; this long is waited for them.
const LOG_WITHIN: Duration = Duration::from_secs(3);
/// Of one failed task: a stack trace fits, a flood does not.
const LOG_BYTES_MAX: usize = 8 * 1024;

/// A manager of a swarm, as far as a deploy needs one.
#[derive(Clone)]
pub struct SwarmManager {
    api: bollard::Docker,
    endpoint: String,
}

/// What an engine says of its swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmState {
    /// The engine's version.
    pub version: String,
    /// `active`, `inactive`, `pending`, `locked`, `error`.
    pub state: String,
    /// It is a manager, and the managers are enough to decide.
    pub is_manager: bool,
    /// Nodes that are part of the swarm, whatever their state.
    pub nodes: u64,
    /// The engine's own node.
    pub node: String,
    /// What it complains about.
    pub error: String,
}

/// A service of a stack.
#[derive(Debug, Clone)]
pub struct SwarmService {
    /// The engine's id.
    pub id: String,
    /// The full name: stack, `_`, service.
    pub name: String,
    /// As the engine keeps it, without what it would fill in by itself.
    pub spec: Value,
    /// The last update's `State`, if there was one.
    pub update: Option<String>,
    /// What the engine says about that update.
    pub message: String,
}

/// One task: an attempt to have one container of a service.
#[derive(Debug, Clone)]
pub struct SwarmTask {
    /// The engine's id.
    pub id: String,
    /// Its service's id.
    pub service: String,
    /// Its place among the service's replicas, from 1; 0 where there is one for each node.
    pub slot: u64,
    /// The node it is on.
    pub node: String,
    /// What it was made from.
    pub spec: Value,
    /// Where it is: `new` … `running`, `failed`, `shutdown`.
    pub state: String,
    /// Where the engine wants it to be.
    pub desired: String,
    /// When it came to this state, as the engine writes it.
    pub since: String,
    /// Why it is not well.
    pub error: String,
    /// How its process ended.
    pub exit_code: Option<i64>,
    /// Its container.
    pub container: Option<String>,
}

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// The engine's id of it.
    pub id: String,
    /// As registries have it: `NAME@sha256:…`; none when no registry has it.
    pub digests: Vec<String>,
}

impl SwarmManager {
    /// Prepares to speak with an engine, and reaches out to nobody.
    ///
    /// # Errors
    /// When the address cannot be one.
    pub fn new(host: Option<&str>) -> Result<Self, RuntimeError> {
        let from_environment = || std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        let endpoint = host.map(str::to_owned).or_else(from_environment);
        let endpoint = endpoint.unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
        if !["unix://", "tcp://", "http://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(RuntimeError::Refused {
                doing: "use the swarm".to_owned(),
                detail: format!("`{endpoint}` is not understood; write unix:///path or tcp://host:port"),
            });
        }
        Ok(SwarmManager { api: connect(&endpoint)?, endpoint })
    }

    /// Where it is.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn error(&self, doing: &str, error: &bollard::errors::Error) -> RuntimeError {
        error_at(&self.endpoint, doing, error)
    }

    /// Whether it is a manager, and of how many nodes.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn state(&self) -> Result<SwarmState, RuntimeError> {
        let info = self.api.info().await.map_err(|e| self.error("ask the engine for its swarm", &e))?;
        let swarm = info.swarm.unwrap_or_default();
        Ok(SwarmState {
            version: info.server_version.unwrap_or_default(),
            state: swarm.local_node_state.map(|state| state.to_string()).unwrap_or_default(),
            is_manager: swarm.control_available.unwrap_or_default(),
            nodes: swarm.nodes.and_then(|nodes| u64::try_from(nodes).ok()).unwrap_or_default(),
            node: swarm.node_id.unwrap_or_default(),
            error: swarm.error.unwrap_or_default(),
        })
    }

    /// The services of a stack, in the order of their names.
    ///
    /// # Errors
    /// When the engine does not answer, or is no manager.
    pub async fn services(&self, stack: &str) -> Result<Vec<SwarmService>, RuntimeError> {
        let options = ListServicesOptions { filters: Some(of_stack(stack)), ..Default::default() };
        let listed = self.api.list_services(Some(options)).await;
        let listed = listed.map_err(|e| self.error("list the stack's services", &e))?;
        let mut services: Vec<_> = listed
            .into_iter()
            .map(|service| {
                let spec = plain(&service.spec);
                let status = service.update_status.unwrap_or_default();
                SwarmService {
                    id: service.id.unwrap_or_default(),
                    name: spec["Name"].as_str().unwrap_or_default().to_owned(),
                    spec,
                    update: status.state.map(|state| state.to_string()).filter(|state| !state.is_empty()),
                    message: status.message.unwrap_or_default(),
                }
            })
            .collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(services)
    }

    /// All tasks of a stack that the engine still remembers, in the order of their slots; newer ones of a slot first.
    ///
    /// # Errors
    /// When the engine does not answer, or is no manager.
    pub async fn tasks(&self, stack: &str) -> Result<Vec<SwarmTask>, RuntimeError> {
        let listed = self.api.list_tasks(Some(ListTasksOptions { filters: Some(of_stack(stack)) })).await;
        let mut listed = listed.map_err(|e| self.error("list the stack's tasks", &e))?;
        listed.sort_by(|a, b| (a.slot, &b.created_at).cmp(&(b.slot, &a.created_at)));
        Ok(listed
            .into_iter()
            .map(|task| {
                let status = task.status.unwrap_or_default();
                let container = status.container_status.unwrap_or_default();
                let ended = container.container_id.is_some();
                SwarmTask {
                    id: task.id.unwrap_or_default(),
                    service: task.service_id.unwrap_or_default(),
                    slot: task.slot.and_then(|slot| u64::try_from(slot).ok()).unwrap_or_default(),
                    node: task.node_id.unwrap_or_default(),
                    spec: plain(&task.spec),
                    state: status.state.map(|state| state.to_string()).unwrap_or_default(),
                    desired: task.desired_state.map(|state| state.to_string()).unwrap_or_default(),
                    since: plain(&status.timestamp).as_str().unwrap_or_default().to_owned(),
                    error: status.err.filter(|error| !error.is_empty()).or(status.message).unwrap_or_default(),
                    exit_code: container.exit_code.filter(|_| ended),
                    container: container.container_id.filter(|id| !id.is_empty()),
                }
            })
            .collect())
    }

    /// Nodes that the managers do not hear from: what they last said of their tasks is no longer true.
    ///
    /// # Errors
    /// When the engine does not answer, or is no manager.
    pub async fn silent_nodes(&self) -> Result<BTreeSet<String>, RuntimeError> {
        let nodes = self.api.list_nodes(None::<ListNodesOptions>).await;
        let nodes = nodes.map_err(|e| self.error("list the swarm's nodes", &e))?;
        let silent = nodes.into_iter().filter(|node| {
            node.status.as_ref().and_then(|status| status.state).is_some_and(|state| state.to_string() != "ready")
        });
        Ok(silent.filter_map(|node| node.id).collect())
    }

    /// Names of networks by their ids.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn network_names(&self) -> Result<HashMap<String, String>, RuntimeError> {
        let networks = self.api.list_networks(None::<ListNetworksOptions>).await;
        let networks = networks.map_err(|e| self.error("list the networks", &e))?;
        Ok(networks.into_iter().filter_map(|network| Some((network.id?, network.name?))).collect())
    }

    /// What the health check of a container printed last; nothing when the container is on another node, or has none.
    pub async fn health_output(&self, container: &str) -> Option<String> {
        let inspected = self.api.inspect_container(container, None).await.ok()?;
        let last = inspected.state?.health?.log?.pop()?;
        last.output.map(|output| output.trim().to_owned()).filter(|output| !output.is_empty())
    }

    /// The last lines that a task printed, wherever it ran. What cannot be had in time is left out.
    pub async fn log_end(&self, task: &str, lines: usize) -> String {
        let options = LogsOptions { stdout: true, stderr: true, tail: lines.to_string(), ..Default::default() };
        let mut log = Box::pin(self.api.task_logs(task, Some(options)));
        let mut text = Vec::new();
        let read = async {
            while let Some(Ok(piece)) = log.next().await {
                text.extend_from_slice(&piece.into_bytes());
                if text.len() > LOG_BYTES_MAX {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(LOG_WITHIN, read).await;
        text.truncate(LOG_BYTES_MAX);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// An image by any of its names, if this engine has it.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn image(&self, reference: &str) -> Result<Option<LocalImage>, RuntimeError> {
        match self.api.inspect_image(reference).await {
            Ok(image) => Ok(Some(LocalImage {
                id: image.id.unwrap_or_default(),
                digests: image.repo_digests.unwrap_or_default(),
            })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(self.error("look at an image", &error)),
        }
    }

    /// Removes a service; one that is gone already is fine.
    ///
    /// # Errors
    /// When the engine refuses or does not answer.
    pub async fn remove_service(&self, id: &str) -> Result<(), RuntimeError> {
        match self.api.delete_service(id).await {
            Err(error) if !is_gone(&error) => Err(self.error("remove a service", &error)),
            _ => Ok(()),
        }
    }

    /// What there still is of a stack: its services, its networks, and its containers on this node.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn left(&self, stack: &str) -> Result<Vec<String>, RuntimeError> {
        let mut left: Vec<_> =
            self.services(stack).await?.into_iter().map(|service| format!("service {}", service.name)).collect();
        let options = ListNetworksOptions { filters: Some(of_stack(stack)) };
        let networks = self.api.list_networks(Some(options)).await;
        let networks = networks.map_err(|e| self.error("list the stack's networks", &e))?;
        left.extend(networks.into_iter().map(|network| format!("network {}", network.name.unwrap_or_default())));
        let options = ListContainersOptions { all: true, filters: Some(of_stack(stack)), ..Default::default() };
        let containers = self.api.list_containers(Some(options)).await;
        let containers = containers.map_err(|e| self.error("list the stack's containers", &e))?;
        left.extend(containers.into_iter().map(|container| {
            let name = container.names.unwrap_or_default().into_iter().next().unwrap_or_default();
            format!("container {}", name.trim_start_matches('/'))
        }));
        Ok(left)
    }
}

fn of_stack(stack: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{NAMESPACE}={stack}")])])
}

/// As JSON, without what says nothing: so that two of them can be compared.
fn plain(value: &impl serde::Serialize) -> Value {
    let mut value = serde_json::to_value(value).unwrap_or_default();
    strip(&mut value);
    value
}

/// Removes nulls, and lists and maps that are empty.
fn strip(value: &mut Value) {
    let says_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    };
    match value {
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Object(entries) => {
            entries.values_mut().for_each(strip);
            // `Global: {}` is a mode, and says it by being there.
            entries.retain(|name, value| name.starts_with("Global") || !says_nothing(value));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_says_nothing_does_not_make_two_specs_differ() {
        let mut said = json!({ "a": null, "b": [], "c": { "d": { "e": null } }, "Mode": { "Global": {} }, "n": 0 });
        strip(&mut said);
        assert_eq!(said, json!({ "Mode": { "Global": {} }, "n": 0 }));
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        let refused = SwarmManager::new(Some("ssh://elsewhere")).err().map(|error| error.to_string());
        assert!(refused.is_some_and(|text| text.contains("unix:///path")));
    }
}
