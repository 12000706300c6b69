//! A Docker engine asked what it holds of one daemon: by the labels it should carry, and by the instance in its name in
//! case it does not.

use super::http;
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Clone)]
pub(crate) struct DockerEngine {
    pub(crate) socket: PathBuf,
}

impl DockerEngine {
    /// The machine's own.
    pub(crate) fn usual() -> DockerEngine {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
        let socket = host.strip_prefix("unix://").unwrap_or_else(|| {
            panic!("these tests need the engine's Unix socket, to put a proxy in front of it; DOCKER_HOST is {host}")
        });
        let engine = DockerEngine { socket: socket.into() };
        assert!(engine.answers(), "the Docker engine at {host} does not answer: tests/setup/prepare.sh test");
        engine
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub(crate) fn answers(&self) -> bool {
        http::get(&self.socket, "/version").is_ok()
    }

    fn ask(&self, path: &str) -> Value {
        http::get(&self.socket, path).unwrap_or_else(|e| panic!("failed to ask the engine for {path}: {e}"))
    }

    /// Containers, networks and volumes of a daemon, each with its kind in front.
    pub(crate) fn held(&self, instance: &str) -> Vec<String> {
        let mut held = Vec::new();
        let mark = format!("mainstay.instance={instance}");
        let ours = |entry: &Value, name: &str| {
            let label = entry["Labels"]["mainstay.instance"].as_str() == Some(instance);
            label || name.contains(instance) || entry["Labels"].as_str().is_some_and(|all| all.contains(&mark))
        };
        for entry in array(&self.ask("/containers/json?all=1")) {
            let name = entry["Names"][0].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
            if ours(entry, &name) {
                held.push(format!("container {name} ({})", entry["Status"].as_str().unwrap_or_default()));
            }
        }
        for entry in array(&self.ask("/networks")) {
            let name = entry["Name"].as_str().unwrap_or_default();
            if ours(entry, name) {
                held.push(format!("network {name}"));
            }
        }
        for entry in array(&self.ask("/volumes")["Volumes"]) {
            let name = entry["Name"].as_str().unwrap_or_default();
            if ours(entry, name) {
                held.push(format!("volume {name}"));
            }
        }
        held.sort();
        held
    }

    /// One line of [`held`](Self::held) as the engine describes it.
    pub(crate) fn described(&self, one: &str) -> Value {
        let mut words = one.split(' ');
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = match kind {
            "container" => format!("/containers/{name}/json"),
            _ => format!("/{kind}s/{name}"),
        };
        http::get(&self.socket, &path).unwrap_or(Value::Null)
    }

    /// Names of the containers of one run's steps.
    pub(crate) fn steps(&self, instance: &str, run: u64) -> Vec<String> {
        let part = format!("mainstay-{instance}-r{run}-");
        let held = self.held(instance).into_iter();
        held.filter_map(|one| Some(one.strip_prefix("container ")?.split(' ').next()?.to_owned()))
            .filter(|name| name.starts_with(&part))
            .collect()
    }

    /// Waits until the engine holds nothing of the daemon that `wanted` names.
    pub(crate) fn wait_gone(&self, instance: &str, within: Duration, wanted: impl Fn(&str) -> bool) {
        let until = Instant::now() + within;
        loop {
            let left: Vec<_> = self.held(instance).into_iter().filter(|one| wanted(one)).collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "left in the engine after {within:?}: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Removes all that the engine holds of a daemon, as a reinstalled machine would have lost it, and looks that it
    /// stays away: an engine may still be making what a killed daemon had asked for.
    pub(crate) fn lose(&self, instance: &str) {
        let until = Instant::now() + Duration::from_secs(30);
        let mut quiet = 0;
        while quiet < 3 {
            self.remove_once(instance);
            let left = self.held(instance);
            assert!(Instant::now() < until, "the engine does not let go of {left:#?}");
            quiet = if left.is_empty() { quiet + 1 } else { 0 };
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Removes what the engine holds of a daemon at the end of a test, as far as that goes.
    pub(crate) fn forget(&self, instance: &str) {
        for round in 0..3 {
            self.remove_once(instance);
            if self.held(instance).is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(200 * round));
        }
    }

    fn remove_once(&self, instance: &str) {
        for one in self.held(instance) {
            let mut words = one.split(' ');
            let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let path = match kind {
                "container" => format!("/containers/{name}?force=1&v=1"),
                "network" => format!("/networks/{name}"),
                _ => format!("/volumes/{name}?force=1"),
            };
            let _ = http::ask(&self.socket, "DELETE", &path, &[], b"");
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
