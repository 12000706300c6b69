//! The engine's own client, which knows what a stack is. It gets the document through its standard input and nothing of
//! our environment but what it needs to find the engine and the registries' credentials.

use crate::deploy::target::TargetError;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// It answers in a fraction of a second; only an engine that hangs takes longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// What it needs of our environment.
const KEPT: [&str; 3] = ["PATH", "HOME", "DOCKER_CONFIG"];
/// A service changed while the client looked at it, or its network is still going: the next try finds it quiet.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

pub(super) struct Client {
    /// `unix:///path` or `tcp://host:port`.
    endpoint: String,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Refused {
    /// The client is not there, or knows no stacks.
    Missing(String),
    /// The engine is not there.
    Unreachable(String),
    /// The document is no stack.
    Document(String),
    /// The engine would not.
    Engine(String),
}

impl Client {
    pub(super) fn new(endpoint: &str) -> Self {
        let endpoint = endpoint.strip_prefix("http://").map_or(endpoint.to_owned(), |rest| format!("tcp://{rest}"));
        Client { endpoint }
    }

    /// Its version, and that it knows stacks.
    pub(super) async fn look(&self) -> Result<String, Refused> {
        let help = self.run(&["stack", "deploy", "--help"], b"").await?;
        if !help.status.success() || !text(&help.stdout).contains("--compose-file") {
            return Err(Refused::Missing("the `docker` client that is installed knows no `docker stack`".to_owned()));
        }
        let version = self.run(&["--version"], b"").await?;
        Ok(text(&version.stdout).trim().trim_start_matches("Docker version ").to_owned())
    }

    /// Hands over a stack; gives back what the client said about it. Returns before anything of it runs.
    pub(super) async fn deploy(&self, stack: &str, document: &str) -> Result<Vec<String>, Refused> {
        let mut arguments = vec!["stack", "deploy", "--with-registry-auth", "--resolve-image", "never"];
        // Newer clients would wait by themselves, and older ones do not know the word.
        let help = self.run(&["stack", "deploy", "--help"], b"").await?;
        if text(&help.stdout).contains("--detach") {
            arguments.push("--detach=true");
        }
        arguments.extend(["--compose-file", "-", stack]);
        let mut said = String::new();
        for _ in 0..TRIES {
            let done = self.run(&arguments, document.as_bytes()).await?;
            said = text(&done.stderr);
            if done.status.success() {
                return Ok(said.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect());
            }
            if !passes(&said) {
                break;
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        Err(sort(said))
    }

    /// Removes a stack; one that is not there is fine.
    pub(super) async fn remove(&self, stack: &str) -> Result<(), Refused> {
        let done = self.run(&["stack", "rm", stack], b"").await?;
        // A network that is still used is left to the next call.
        if done.status.success() || text(&done.stderr).contains("ailed to remove") {
            return Ok(());
        }
        Err(sort(text(&done.stderr)))
    }

    /// Sets a label of a service, which restarts nothing.
    pub(super) async fn label(&self, service: &str, label: &str, value: &str) -> Result<(), Refused> {
        let label = format!("{label}={value}");
        let done = self.run(&["service", "update", "--detach", "--label-add", &label, service], b"").await?;
        if done.status.success() {
            return Ok(());
        }
        Err(sort(text(&done.stderr)))
    }

    async fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Output, Refused> {
        let mut command = Command::new("docker");
        command.args(arguments).env_clear().env("DOCKER_HOST", &self.endpoint).current_dir("/");
        command.envs(KEPT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // A client that outlives a killed daemon could undo what the daemon's successor does.
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Into::into));
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Refused::Missing("the `docker` client is not installed".to_owned()),
            _ => Refused::Missing(format!("the `docker` client cannot be started: {error}")),
        })?;
        let run = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A client that refuses its arguments does not read.
                let _ = stdin.write_all(input).await;
            }
            child.wait_with_output().await
        };
        match tokio::time::timeout(ANSWER_WITHIN, run).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(Refused::Missing(format!("the `docker` client cannot be run: {error}"))),
            Err(_) => Err(Refused::Unreachable(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the next try may find better.
fn passes(said: &str) -> bool {
    said.contains("update out of sequence") || (said.contains("network") && said.contains("not found"))
}

fn sort(said: String) -> Refused {
    let said = said.trim().to_owned();
    let away = ["Cannot connect to the Docker daemon", "connection refused", "error during connect", "no such host"];
    let document = [
        "Additional property",
        "must be a",
        "unsupported Compose file",
        "yaml:",
        "Invalid interpolation",
        "invalid reference",
    ];
    if away.iter().any(|words| said.contains(words)) {
        Refused::Unreachable(said)
    } else if document.iter().any(|words| said.contains(words)) {
        Refused::Document(said)
    } else {
        Refused::Engine(said)
    }
}

impl Refused {
    /// For everything but an engine that would not, which says nothing about what the target holds.
    pub(super) fn error(self, endpoint: &str) -> Result<String, TargetError> {
        match self {
            Refused::Missing(why) => Err(missing_client(&why)),
            Refused::Unreachable(detail) => Err(TargetError::Unreachable { endpoint: endpoint.to_owned(), detail }),
            Refused::Document(why) => Err(TargetError::Render(format!("the `docker` client says: {why}"))),
            Refused::Engine(why) => Ok(why),
        }
    }
}

fn missing_client(why: &str) -> TargetError {
    TargetError::Missing(format!(
        "use the swarm: {why}\nhint: stacks go through the engine's own client: install `docker.io` of Debian, or `docker-ce-cli`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_says_tells_whose_fault_it_is() {
        let document = "services.app Additional property imag is not allowed\n";
        assert!(matches!(sort(document.to_owned()), Refused::Document(_)));
        let away = "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?";
        assert!(matches!(sort(away.to_owned()), Refused::Unreachable(_)));
        let engine = "network \"web\" is declared as external, but could not be found";
        assert!(matches!(sort(engine.to_owned()), Refused::Engine(_)));
        assert!(passes("failed to update service x: rpc error: code = Unknown desc = update out of sequence"));
    }
}
