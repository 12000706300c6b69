//! `mainstay.yml`: what the daemon watches, where it keeps things, and how much it may use. Reference:
//! `docs/user-guide/configuration.md`.

pub mod environment;
mod forge;
pub mod freeze;
mod keys;
mod machine;
pub mod notify;
mod people;
mod repo;
pub mod repository;

pub use environment::Environment;
pub use forge::{Forge, ForgeKind};
pub use notify::Notify;
pub use people::{People, Person};
pub use repository::{AccessKeys, Bucket, Checksums, Repository, RepositoryPlace};

pub(super) use keys::*;

use super::check::{Checker, shown_text};
use super::finding::{Finding, Findings, shown};
use super::interpolate::{self, Sources};
use super::secret::{Secret, SecretStore};
use super::yaml::{self, Node, Value};
use crate::model::ids::{EnvironmentName, RepoName};
use crate::model::plan::Resources;
use crate::model::{ByteSize, PublicKey, Span};
use environment::Around;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The settings of a daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct Daemon {
    /// The HTTP listener.
    pub server: Server,
    /// The folder for state: database, mirrors, logs, secrets.
    pub state: PathBuf,
    /// Where backups go.
    pub repository: Repository,
    /// What executes steps.
    pub runtime: RuntimeChoice,
    /// Credentials for image registries, by host.
    pub registries: BTreeMap<String, Credentials>,
    /// How much it may use.
    pub limits: Limits,
    /// How long what is over is kept.
    pub keep: Keep,
    /// The people who may ask, and the groups they are in.
    pub people: People,
    /// Where releases are deployed to.
    pub environments: BTreeMap<EnvironmentName, Environment>,
    /// Keys whose signature on an entry of a deploy history is believed, beside the daemon's own.
    pub trusted_releases: Vec<PublicKey>,
    /// How people are told.
    pub notify: Notify,
    /// The watched repositories.
    pub repos: BTreeMap<RepoName, Repo>,
    secrets: Vec<Secret>,
}

impl Daemon {
    /// Every secret and password that stands in the settings, for masking logs.
    pub fn secret_values(&self) -> &[Secret] {
        &self.secrets
    }
    /// The store of secrets in the state folder.
    pub fn secret_store(&self) -> SecretStore {
        SecretStore::new(&self.state)
    }
    /// What executes the steps of a repository.
    pub fn runtime_of<'d>(&'d self, repo: &'d Repo) -> &'d RuntimeChoice {
        repo.runtime.as_ref().unwrap_or(&self.runtime)
    }
}

/// The HTTP listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where it listens; loopback only in this version.
    pub listen: SocketAddr,
    /// How people reach it, without a slash at the end; `http://LISTEN` when it is not set.
    pub public_url: String,
}

/// What executes steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// Containers of a Docker-compatible engine.
    Docker(DockerSettings),
    /// Plain processes of this machine, for trusted repositories only.
    Process,
}

/// How to use a Docker engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerSettings {
    /// `unix:///path` or `tcp://host:port`; `None`: `$DOCKER_HOST`, or the usual socket.
    pub host: Option<String>,
    /// The range that run networks are cut from.
    pub networks: Ipv4Range,
}

impl Default for DockerSettings {
    fn default() -> Self {
        DockerSettings { host: None, networks: Ipv4Range { address: Ipv4Addr::new(10, 213, 0, 0), prefix: 16 } }
    }
}

/// A range of IPv4 addresses, as `10.213.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Range {
    /// The first address.
    pub address: Ipv4Addr,
    /// How many leading bits are fixed.
    pub prefix: u8,
}

impl FromStr for Ipv4Range {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{}` is not a range of addresses; write one such as `10.213.0.0/16`", shown(text));
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        // A run's network needs a /28 or so; a range under a /24 would serve only a handful of runs.
        if !(8..=24).contains(&prefix) {
            return Err(format!("`{}` must have a prefix from 8 to 24", shown(text)));
        }
        if u32::from(address) & (u32::MAX >> prefix) != 0 {
            return Err(format!("`{}` does not begin at a border of /{prefix}", shown(text)));
        }
        Ok(Ipv4Range { address, prefix })
    }
}

impl std::fmt::Display for Ipv4Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A name and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password or token.
    pub password: Secret,
}

/// How much the daemon may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Steps that run at once.
    pub steps: u32,
    /// Containers that are started ahead and wait for their word.
    pub waiting: u32,
    /// Runs that one push may start.
    pub runs_per_push: u32,
    /// Log bytes that are kept of a step.
    pub log: ByteSize,
    /// What a step may use that does not say it itself.
    pub resources: Resources,
    /// A step that does not say it itself is stopped after this long.
    pub timeout: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            steps: 8,
            waiting: 8,
            runs_per_push: 20,
            log: ByteSize(256 << 20),
            resources: Resources { millicpus: None, memory: None, pids: Some(4096) },
            timeout: Span(Duration::from_secs(3_600)),
        }
    }
}

/// How long runs that are over, their logs and what was reported are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// Everything is kept this long.
    pub age: Span,
    /// The newest runs of each repository are kept however old they are.
    pub runs: u32,
}

impl Default for Keep {
    fn default() -> Self {
        Keep { age: Span(Duration::from_secs(90 * 86_400)), runs: 50 }
    }
}

/// A watched repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// Where it is: an absolute path, or a `file`, `https`, `http`, `ssh` or `user@host:path` URL.
    pub url: String,
    /// The only branch that is watched; all when `None`.
    pub branch: Option<String>,
    /// How often its refs are looked at.
    pub poll: Span,
    /// The webhook it is told by.
    pub webhook: Option<Webhook>,
    /// The secrets its steps may ask for.
    pub secrets: Vec<String>,
    /// Its commits may do what needs trust: run as plain processes.
    pub trusted: bool,
    /// What executes its steps, when not the daemon's.
    pub runtime: Option<RuntimeChoice>,
    /// Name and password for fetching, and for what Mainstay pushes.
    pub auth: Option<Credentials>,
    /// Where pull requests for it are opened.
    pub forge: Option<Forge>,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Whose format it has.
    pub kind: WebhookKind,
    /// The shared secret that signs it.
    pub secret: Secret,
}

/// Whose format a webhook has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookKind {
    /// GitHub.
    Github,
    /// GitLab.
    Gitlab,
    /// Gitea.
    Gitea,
    /// Forgejo.
    Forgejo,
    /// Anything that can send a signed JSON document.
    Generic,
}

/// A lease is renewed several times in its time, each a write to the disk; a disk that is slow for a moment must not
/// make a living daemon look dead.
const LEASE_LEAST: Duration = Duration::from_secs(5);
/// Each look asks the engine about everything it runs.
const COMPARED_LEAST: Duration = Duration::from_secs(1);

type Environments = BTreeMap<EnvironmentName, Environment>;

/// The state folder when nothing is said, beside the file.
const USUAL_STATE: &str = "mainstay-data";
/// How often refs are looked at when nothing says how often.
const POLL: Span = Span(Duration::from_secs(60));
/// Looking more often than this keeps a core busy for nothing.
const POLL_MIN: Duration = Duration::from_secs(1);

/// Reads the daemon's file with this process's environment.
///
/// # Errors
/// The file cannot be read, or everything that is wrong with it.
pub fn load(path: &Path) -> Result<Daemon, Findings> {
    let shown_path = path.display().to_string();
    let text = super::read_file(path).map_err(|finding| Findings::new(&shown_path, "", vec![finding]))?;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    parse(&shown_path, &text, &|name| std::env::var(name).ok(), folder)
}

/// Reads the text of a daemon's file. Relative paths start at `folder`, which is absolute.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn parse(file: &str, text: &str, env: &dyn Fn(&str) -> Option<String>, folder: &Path) -> Result<Daemon, Findings> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut root = yaml::read(file, text)?;
    let mut check = Checker::new(text);
    let mut secrets = Vec::new();
    let state = read_state(&mut root, &mut check, env, folder);
    let store = SecretStore::new(&state);
    let from = Sources { env, folder, secrets: Some(&store) };
    interpolate::fill(&mut root, text, &from, &mut secrets, &mut check.findings);
    let daemon = Reader { check: &mut check, secrets: &mut secrets, store: &store, folder }.daemon(&root, state);
    let findings = Findings::new(file, text, check.findings);
    match daemon {
        Some(mut daemon) if !findings.has_errors() => {
            secrets.sort();
            secrets.dedup();
            daemon.secrets = secrets;
            Ok(daemon)
        }
        _ => Err(findings),
    }
}

/// What the files of `backups` may refer to. It is known as soon as the settings read as YAML, however wrong they are.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// The state folder, which keeps the secrets.
    pub(super) state: PathBuf,
    /// The names of the watched repositories, also of those that do not read; `None` when there are no settings.
    pub(super) repos: Option<Vec<String>>,
}

/// Reads no more of a daemon's file than what stands beside it must know; `None` when not even that reads.
pub(super) fn surroundings(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Option<Surroundings> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    if !path.exists() {
        return Some(Surroundings { state: folder.join(USUAL_STATE), repos: None });
    }
    let text = super::read_file(path).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut root = yaml::read("", text).ok()?;
    let mut check = Checker::new(text);
    let state = read_state(&mut root, &mut check, env, folder);
    let Value::Map(entries) = &root.value else { return None };
    let repos = entries.iter().find(|(key, _)| key.name == "repos").map(|(_, node)| keys_of(node));
    let repos = repos.unwrap_or_default().into_iter().map(str::to_owned).collect();
    check.findings.is_empty().then_some(Surroundings { state, repos: Some(repos) })
}

/// The state folder comes first: it holds the secrets that other values may name. Its node is emptied of `${...}`, so
/// that a mistake in it is told once.
fn read_state(
    root: &mut Node,
    check: &mut Checker<'_>,
    env: &dyn Fn(&str) -> Option<String>,
    folder: &Path,
) -> PathBuf {
    let usual = folder.join(USUAL_STATE);
    let Value::Map(entries) = &mut root.value else { return usual };
    let Some((_, node)) = entries.iter_mut().find(|(key, _)| key.name == "state") else { return usual };
    let before = check.findings.len();
    let from = Sources { env, folder, secrets: None };
    interpolate::fill(node, check.source, &from, &mut Vec::new(), &mut check.findings);
    let failed = check.findings.len() > before;
    let node = node.clone();
    entries.retain(|(key, _)| key.name != "state");
    if failed {
        return usual;
    }
    match check.text(&node, "`state`") {
        Some("") => {
            check.error(node.place, "`state` is empty");
            usual
        }
        Some(text) => plain_path(&folder.join(text)),
        None => usual,
    }
}

/// Takes settings out of nodes, here and in the files of `backups`.
pub(super) struct Reader<'c, 's> {
    pub(super) check: &'c mut Checker<'s>,
    /// What is masked in logs.
    pub(super) secrets: &'c mut Vec<Secret>,
    pub(super) store: &'c SecretStore,
    /// Relative paths start here; absolute.
    pub(super) folder: &'c Path,
}

impl Reader<'_, '_> {
    fn daemon(&mut self, root: &Node, state: PathBuf) -> Option<Daemon> {
        let beside = [TOP_KEYS, &["backups"]].concat();
        let fields = self.check.fields(root, "the settings", &beside, &[])?;
        if let Some((key, _)) = fields.entry("backups") {
            self.check.error_with_hint(
                key.place,
                "sources of backups stand in files of their own",
                "`backups/NAME.yml` in the folder of this file, one for each source; where backups go is `repository` here",
            );
        }
        let repository = fields.get("repository").and_then(|node| self.repository(node, &state));
        let repository = repository.unwrap_or_else(|| Repository::usual(&state));
        let runtime = match fields.get("runtime") {
            Some(node) => self.runtime(node)?,
            None => RuntimeChoice::Docker(DockerSettings::default()),
        };
        let server = self.server(fields.get("server"));
        let limits = fields.get("limits").map(|node| self.limits(node)).unwrap_or_default();
        let keep = fields.get("keep").map(|node| self.keep(node)).unwrap_or_default();
        let people = fields.get("people").map(|node| self.people(node)).unwrap_or_default();
        let registries = fields.get("registries").map(|node| self.registries(node)).unwrap_or_default();
        let mut repos = BTreeMap::new();
        let mut repo_names = Vec::new();
        let mut without_forge = Vec::new();
        match fields.get("repos") {
            Some(node) => {
                for (key, node) in self.check.entries(node, "`repos`").unwrap_or_default() {
                    repo_names.push(key.name.as_str());
                    if !has_key(node, "forge") {
                        without_forge.push(key.name.as_str());
                    }
                    match RepoName::new(key.name.as_str()) {
                        Ok(name) => {
                            if let Some(repo) = self.repo(&name, node, &runtime) {
                                repos.insert(name, repo);
                            }
                        }
                        Err(why) => {
                            self.check.error(key.place, why.to_string());
                        }
                    }
                }
            }
            // A daemon that keeps backups may watch no repository at all.
            None if fields.get("repository").is_some() => {}
            None => {
                let finding = Finding::general("there is no `repos` in the settings");
                let hint =
                    "name what to watch: `repos: { NAME: PATH-OR-URL }`; a daemon for backups alone has `repository`";
                self.check.findings.push(finding.hint(hint));
            }
        }
        let notify = fields.get("notify").map(|node| self.notify(node, &people)).unwrap_or_default();
        let environments = match fields.get("environments") {
            Some(node) => {
                let around = Around {
                    repo_names,
                    without_forge,
                    people: &people,
                    notify: &notify,
                    has_smtp: fields.get("notify").is_some_and(|node| has_key(node, "smtp")),
                    names: keys_of(node),
                };
                self.environments(node, &around)
            }
            None => Environments::new(),
        };
        let trusted_releases = fields.get("releases").map(|node| self.releases(node)).unwrap_or_default();
        Some(Daemon {
            server,
            state,
            repository,
            runtime,
            registries,
            limits,
            keep,
            people,
            environments,
            trusted_releases,
            notify,
            repos,
            secrets: Vec::new(),
        })
    }

    fn releases(&mut self, node: &Node) -> Vec<PublicKey> {
        let Some(fields) = self.check.fields(node, "`releases`", RELEASES_KEYS, &[]) else { return Vec::new() };
        let Some(node) = fields.get("trusted") else { return Vec::new() };
        self.public_keys(
            node,
            "`trusted`",
            "a key is the line in `sign.pub` of the daemon that wrote the history: `ssh-ed25519 AAAA...`",
        )
    }

    /// A list of public keys, each at most once.
    fn public_keys(&mut self, node: &Node, what: &str, hint: &str) -> Vec<PublicKey> {
        let mut keys: Vec<PublicKey> = Vec::new();
        for item in self.check.items(node, what) {
            let Some(line) = self.check.text(item, what) else { continue };
            match line.parse::<PublicKey>() {
                Ok(key) if keys.contains(&key) => {
                    self.check.error(item.place, format!("the key {} stands here twice", key.fingerprint()));
                }
                Ok(key) => keys.push(key),
                Err(why) => self.check.error_with_hint(item.place, format!("{what}: {why}"), hint),
            }
        }
        keys
    }

    fn credentials(&mut self, node: &Node, what: &str) -> Option<Credentials> {
        let fields = self.check.fields(node, what, CREDENTIAL_KEYS, &[])?;
        let username = fields.get("username").and_then(|n| self.check.text(n, "`username`"));
        let password = fields.get("password").and_then(|n| self.secret(n, "`password`"));
        for key in CREDENTIAL_KEYS {
            if fields.get(key).is_none() {
                self.check.error(node.place, format!("{what} needs `{key}`"));
            }
        }
        Some(Credentials { username: username?.to_owned(), password: password? })
    }

    /// A file that must be there.
    pub(super) fn file(&mut self, node: &Node, what: &str) -> Option<PathBuf> {
        let path = plain_path(&self.folder.join(self.check.line(node, what)?));
        if !path.is_file() {
            let told = path.display().to_string();
            self.check.error(node.place, format!("there is no file `{}`", shown_text(node, &told)));
        }
        Some(path)
    }

    /// A value that is a secret wherever it came from.
    pub(super) fn secret(&mut self, node: &Node, what: &str) -> Option<Secret> {
        let text = self.check.text(node, what)?;
        if text.is_empty() {
            self.check.error(node.place, format!("{what} is empty"));
            return None;
        }
        let secret = Secret::new(text);
        self.secrets.push(secret.clone());
        Some(secret)
    }
}

/// The keys of a map as written.
fn keys_of(node: &Node) -> Vec<&str> {
    match &node.value {
        Value::Map(entries) => entries.iter().map(|(key, _)| key.name.as_str()).collect(),
        _ => Vec::new(),
    }
}

fn has_key(node: &Node, key: &str) -> bool {
    keys_of(node).contains(&key)
}

/// Without `.` and inner `..`, which other programs would show to people.
pub(super) fn plain_path(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if out.file_name().is_some() => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests;
