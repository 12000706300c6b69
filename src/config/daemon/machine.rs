//! Where the daemon listens, what carries steps out, and how much of everything there may be: the parts of `mainstay.yml` that
//! are about this machine and no repository.

use super::{
    Credentials, DOCKER_KEYS, DockerSettings, KEEP_KEYS, Keep, LIMIT_KEYS, Limits, Reader, RuntimeChoice, SERVER_KEYS,
    Server,
};
use crate::config::finding::shown;
use crate::config::pipeline::{cpus, memory, pids};
use crate::config::yaml::{Node, Value};
use crate::model::{ByteSize, Span};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

impl Reader<'_, '_> {
    pub(super) fn server(&mut self, node: Option<&Node>) -> Server {
        let mut listen = SocketAddr::from(([127, 0, 0, 1], 8420));
        let fields = node.and_then(|node| self.check.fields(node, "`server`", SERVER_KEYS, &[]));
        if let Some(node) = fields.as_ref().and_then(|f| f.get("listen")) {
            match self.check.text(node, "`listen`").map(str::parse::<SocketAddr>) {
                Some(Ok(address)) if address.ip().is_loopback() => listen = address,
                Some(Ok(address)) => self.check.error_with_hint(
                    node.place,
                    format!("`{address}` can be reached from elsewhere, and this version has no sign-in yet"),
                    "listen on 127.0.0.1 and put a proxy with sign-in in front of it",
                ),
                Some(Err(_)) => {
                    self.check.error(node.place, "`listen` is an address and a port, such as `127.0.0.1:8420`");
                }
                None => {}
            }
        }
        let mut public_url = format!("http://{listen}");
        if let Some(node) = fields.as_ref().and_then(|f| f.get("public-url"))
            && let Some(text) = self.check.text(node, "`public-url`")
        {
            if (text.starts_with("http://") || text.starts_with("https://")) && !text.contains(char::is_whitespace) {
                public_url = text.trim_end_matches('/').to_owned();
            } else {
                self.check.error(node.place, "`public-url` begins with `https://` or `http://`");
            }
        }
        Server { listen, public_url }
    }

    pub(super) fn runtime(&mut self, node: &Node) -> Option<RuntimeChoice> {
        if let Value::Scalar(_) = node.value {
            let docker = self.check.word(node, "`runtime`", &[("docker", true), ("process", false)])?;
            return Some(if docker {
                RuntimeChoice::Docker(DockerSettings::default())
            } else {
                RuntimeChoice::Process
            });
        }
        let fields = self.check.fields(node, "`runtime`", &["docker"], &["swarm", "kubernetes"])?;
        let mut settings = DockerSettings::default();
        let Some(node) = fields.get("docker") else {
            self.check.error(node.place, "`runtime` is `docker`, `process`, or `{docker: {...}}`");
            return None;
        };
        let fields = self.check.fields(node, "`docker`", DOCKER_KEYS, &[])?;
        settings.host = fields.get("host").and_then(|node| self.engine_host(node));
        if let Some(node) = fields.get("networks") {
            settings.networks = self.check.parsed(node, "`networks`").unwrap_or(settings.networks);
        }
        Some(RuntimeChoice::Docker(settings))
    }

    /// Where an engine answers.
    pub(super) fn engine_host(&mut self, node: &Node) -> Option<String> {
        let text = self.check.text(node, "`host`")?;
        let at = |prefix: &str| text.strip_prefix(prefix).filter(|rest| !rest.is_empty());
        let address = at("tcp://").or_else(|| at("http://"));
        let is_address = address.is_some_and(|address| {
            let parsed = address.parse::<axum::http::uri::Authority>();
            parsed.is_ok_and(|address| address.port_u16().is_some() || address.host() == address.as_str())
        });
        if !is_address && at("unix:///").is_none() {
            self.check.error(node.place, "`host` is `unix:///PATH` or `tcp://HOST:PORT`");
        }
        Some(text.to_owned())
    }

    pub(super) fn registries(&mut self, node: &Node) -> BTreeMap<String, Credentials> {
        let mut registries = BTreeMap::new();
        for (key, node) in self.check.entries(node, "`registries`").unwrap_or_default() {
            let host = key.name.as_str();
            if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b)) {
                self.check.error(key.place, "a registry is named by its host, such as `registry.example.com:5000`");
            }
            if let Some(credentials) = self.credentials(node, &format!("the registry `{}`", shown(host))) {
                registries.insert(host.to_owned(), credentials);
            }
        }
        registries
    }

    pub(super) fn keep(&mut self, node: &Node) -> Keep {
        let mut keep = Keep::default();
        let Some(fields) = self.check.fields(node, "`keep`", KEEP_KEYS, &[]) else { return keep };
        if let Some(node) = fields.get("for")
            && let Some(age) = self.check.parsed::<Span>(node, "`for`")
        {
            if age.0 < Duration::from_secs(1) {
                self.check.error(node.place, "`for` is at least 1s");
            }
            keep.age = age;
        }
        if let Some(node) = fields.get("runs")
            && let Some(runs) = self.check.number(node, "`runs`", 0..=1_000_000)
        {
            keep.runs = runs as u32;
        }
        keep
    }

    pub(super) fn limits(&mut self, node: &Node) -> Limits {
        let mut limits = Limits::default();
        let Some(fields) = self.check.fields(node, "`limits`", LIMIT_KEYS, &[]) else { return limits };
        // An engine on one machine does not start more than this in a useful time.
        let counts = [
            ("steps", &mut limits.steps, 1),
            ("waiting", &mut limits.waiting, 0),
            ("runs-per-push", &mut limits.runs_per_push, 1),
        ];
        for (key, slot, least) in counts {
            if let Some(node) = fields.get(key)
                && let Some(number) = self.check.number(node, &format!("`{key}`"), least..=1_000)
            {
                *slot = number as u32;
            }
        }
        if let Some(node) = fields.get("log")
            && let Some(size) = self.check.parsed::<ByteSize>(node, "`log`")
        {
            if size.0 < 1 << 20 {
                self.check.error(node.place, "`log` is at least 1MiB");
            }
            limits.log = size;
        }
        if let Some(node) = fields.get("cpus") {
            limits.resources.millicpus = cpus(self.check, node);
        }
        if let Some(node) = fields.get("memory") {
            limits.resources.memory = memory(self.check, node);
        }
        if let Some(node) = fields.get("pids") {
            limits.resources.pids = pids(self.check, node);
        }
        if let Some(node) = fields.get("timeout")
            && let Some(span) = self.check.parsed::<Span>(node, "`timeout`")
        {
            if span.0 < Duration::from_secs(1) {
                self.check.error(node.place, "a timeout is at least 1s");
            }
            limits.timeout = span;
        }
        limits
    }
}
