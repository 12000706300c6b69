//! The door to the engine: what its errors mean, and the names and labels of everything we make in it.

use crate::model::{AttemptId, InstanceId, RepoName, RunId, StepName};
use crate::runtime::{Leftover, RuntimeError, SpaceName};
use bollard::errors::Error;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use hyperlocal::UnixConnector;
use std::collections::HashMap;

pub(super) const INSTANCE: &str = "mainstay.instance";
pub(super) const RUN: &str = "mainstay.run";
pub(super) const STEP: &str = "mainstay.step";
pub(super) const ATTEMPT: &str = "mainstay.attempt";
pub(super) const SPACE: &str = "mainstay.space";
pub(super) const REPO: &str = "mainstay.repo";
/// On what several daemons use together: the helper's image and volume.
pub(super) const SHARED: &str = "mainstay.shared";

/// A connection to one engine, on behalf of one daemon.
pub(super) struct Engine {
    pub(super) api: bollard::Docker,
    /// For people.
    pub(super) endpoint: String,
    pub(super) instance: InstanceId,
}

/// Seconds for one call of the engine to answer. A start on a busy machine takes seconds; this is for an engine that hangs.
const CALL_TIMEOUT_SECS: u64 = 120;

/// A client with connections of its own. Reaches out to nobody: an engine that is away is noticed by the first call.
pub(super) fn connect(endpoint: &str) -> Result<bollard::Docker, RuntimeError> {
    let version = bollard::API_DEFAULT_VERSION;
    let api = match endpoint.strip_prefix("unix://") {
        // The library's own way refuses a socket that is not there yet; this is the same without that look.
        Some(path) => {
            let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(UnixConnector);
            let send = move |request| {
                let answer = client.request(request);
                async move { answer.await.map_err(Error::from) }
            };
            let address = format!("unix://{}", hex::encode(path));
            bollard::Docker::connect_with_custom_transport(send, Some(address), CALL_TIMEOUT_SECS, version)
        }
        None => bollard::Docker::connect_with_http(endpoint, CALL_TIMEOUT_SECS, version),
    };
    api.map_err(|e| RuntimeError::Unreachable { endpoint: endpoint.to_owned(), detail: e.to_string() })
}

/// The status the engine answered with, when it answered.
pub(super) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// True when the thing asked about does not exist.
pub(super) fn is_gone(error: &Error) -> bool {
    status(error) == Some(404)
}

/// The causes below an error, in one line: the connection's own words are at the bottom. What only names the client's
/// layers above them says nothing to anybody.
fn chain(error: &dyn std::error::Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut at = Some(error);
    while let Some(cause) = at {
        let said = cause.to_string();
        let of_the_client = said.starts_with("Error in the hyper") || said.starts_with("client error (");
        if !causes.iter().any(|above| above.contains(&said)) && (!of_the_client || cause.source().is_none()) {
            causes.push(said);
        }
        at = cause.source();
    }
    causes.join(": ")
}

/// An error of ours from one of the engine's. `doing` fits after "failed to ...".
pub(super) fn error_at(endpoint: &str, doing: impl Into<String>, error: &Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { message, .. } => {
            RuntimeError::Refused { doing: doing.into(), detail: message.trim().to_owned() }
        }
        Error::DockerStreamError { error } => {
            RuntimeError::Refused { doing: doing.into(), detail: error.trim().to_owned() }
        }
        Error::JsonDataError { .. } | Error::JsonSerdeError { .. } | Error::URLEncodedError { .. } => {
            RuntimeError::Refused { doing: doing.into(), detail: chain(error) }
        }
        // Connection refused, reset, closed in the middle, too slow: the engine is away, or going.
        _ => RuntimeError::Unreachable { endpoint: endpoint.to_owned(), detail: chain(error) },
    }
}

impl Engine {
    /// An error of ours from one of the engine's. `doing` fits after "failed to ...".
    pub(super) fn error(&self, doing: impl Into<String>, error: &Error) -> RuntimeError {
        error_at(&self.endpoint, doing, error)
    }

    pub(super) fn unreachable(&self, detail: impl Into<String>) -> RuntimeError {
        RuntimeError::Unreachable { endpoint: self.endpoint.clone(), detail: detail.into() }
    }

    /// The name of an attempt's container.
    pub(super) fn container(&self, id: &AttemptId) -> String {
        format!("mainstay-{}-r{}-{}-a{}", self.instance, id.run, id.step, id.attempt)
    }

    pub(super) fn step_labels(&self, id: &AttemptId, space: &SpaceName, repo: &RepoName) -> HashMap<String, String> {
        let label = |name: &str, value: &dyn std::fmt::Display| (name.to_owned(), value.to_string());
        HashMap::from([
            label(INSTANCE, &self.instance),
            label(RUN, &id.run),
            label(STEP, &id.step),
            label(ATTEMPT, &id.attempt),
            label(SPACE, &space.0),
            label(REPO, repo),
        ])
    }

    /// Labels of a space's own things: it is made before anybody knows for which run.
    pub(super) fn space_labels(&self, space: &SpaceName) -> HashMap<String, String> {
        HashMap::from([(INSTANCE.to_owned(), self.instance.to_string()), (SPACE.to_owned(), space.0.clone())])
    }

    /// A filter for this daemon's things, and of one run when given.
    pub(super) fn ours(&self, run: Option<RunId>) -> HashMap<String, Vec<String>> {
        let mut labels = vec![format!("{INSTANCE}={}", self.instance)];
        labels.extend(run.map(|run| format!("{RUN}={run}")));
        HashMap::from([("label".to_owned(), labels)])
    }

    /// One thing of ours, by the labels it carries.
    pub(super) fn leftover(kind: &'static str, name: &str, labels: &HashMap<String, String>) -> Leftover {
        let run = labels.get(RUN).and_then(|run| run.parse().ok());
        Leftover { kind, name: name.trim_start_matches('/').to_owned(), run }
    }
}

/// The name by which other steps of the run reach a step.
pub(super) fn alias(step: &StepName) -> String {
    step.as_str().to_ascii_lowercase()
}

pub(super) fn shared_labels() -> HashMap<String, String> {
    HashMap::from([(SHARED.to_owned(), "true".to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_the_engine_counts_as_its_refusal() {
        let engine = Engine {
            api: bollard::Docker::connect_with_http("127.0.0.1:1", 1, bollard::API_DEFAULT_VERSION).unwrap(),
            endpoint: "tcp://127.0.0.1:1".to_owned(),
            instance: InstanceId("0badcafe".to_owned()),
        };
        let refused = Error::DockerResponseServerError { status_code: 409, message: "taken\n".to_owned() };
        assert_eq!(engine.error("make it", &refused).to_string(), "make it: taken");
        assert!(matches!(engine.error("make it", &Error::RequestTimeoutError), RuntimeError::Unreachable { .. }));
    }
}
