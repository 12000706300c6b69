//! The shape of `mainstay.yml`, but for environments, messages and the repository.

use super::{OneOrMany, Text, deploys, recovery};
use crate::model::ids::{EnvironmentName, GroupName, PersonName, RepoName};
use crate::model::{ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The daemon's settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DaemonFile {
    /// The HTTP listener.
    server: Option<Server>,
    /// The folder for state; `./mainstay-data` beside this file when it is not said.
    state: Option<String>,
    /// Where backups go; a folder in the state folder when it is not said.
    repository: Option<recovery::Repository>,
    /// What executes steps; `docker` when it is not said.
    runtime: Option<Runtime>,
    /// Credentials for image registries, by host.
    registries: Option<BTreeMap<String, Credentials>>,
    /// How much the daemon may use.
    limits: Option<Limits>,
    /// How long what is over is kept.
    keep: Option<Keep>,
    /// The people who may ask, and their groups.
    people: Option<People>,
    /// The watched repositories, by name; needed where there is no `repository`.
    repos: Option<BTreeMap<RepoName, RepoEntry>>,
    /// Where releases are deployed to, by name.
    environments: Option<BTreeMap<EnvironmentName, deploys::Environment>>,
    /// Whose deploy histories are believed.
    releases: Option<deploys::Releases>,
    /// How people are told.
    notify: Option<deploys::Notify>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Server {
    /// Address and port; loopback only.
    listen: Option<String>,
    /// How people reach it.
    public_url: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Runtime {
    Word(RuntimeWord),
    Settings(RuntimeSettings),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum RuntimeWord {
    Docker,
    Process,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RuntimeSettings {
    docker: Docker,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Docker {
    /// `unix:///PATH` or `tcp://HOST:PORT`.
    host: Option<String>,
    /// The range that run networks are cut from; `10.213.0.0/16` when it is not said.
    networks: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Credentials {
    username: String,
    /// Best written as `${secret:NAME}`.
    password: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Limits {
    /// Steps that run at once; 8 when it is not said.
    steps: Option<u32>,
    /// Containers started ahead; 8 when it is not said.
    waiting: Option<u32>,
    /// Branches and tags of one push that may start runs; 20 when it is not said.
    runs_per_push: Option<u32>,
    /// Log bytes kept of a step; 256MiB when it is not said.
    log: Option<ByteSize>,
    /// CPUs of a step that does not say it itself.
    cpus: Option<f64>,
    /// Memory of a step that does not say it itself.
    memory: Option<ByteSize>,
    /// Processes of a step; 4096 when it is not said.
    pids: Option<u32>,
    /// A step is stopped after this long; 1h when it is not said.
    timeout: Option<Span>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Keep {
    /// Runs that are over, their logs and reports are kept this long; 90d when it is not said.
    r#for: Option<Span>,
    /// The newest runs of each repository stay however old they are; 50 when it is not said.
    runs: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct People {
    /// People, by the name that stands in runs and in the audit.
    users: Option<BTreeMap<PersonName, Option<Person>>>,
    /// Groups of them, by name.
    groups: Option<BTreeMap<GroupName, OneOrMany<PersonName>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Person {
    /// Their one mail address.
    mail: Option<String>,
    /// The addresses under which they commit.
    git: Option<OneOrMany<String>>,
    /// Their names on forges.
    forge: Option<OneOrMany<Text>>,
    /// Their names as users of this machine.
    unix: Option<OneOrMany<Text>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum RepoEntry {
    Url(String),
    Settings(Box<Repo>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Repo {
    /// A path, `https://`, `ssh://`, `USER@HOST:PATH` or `file://`.
    url: String,
    /// The only branch that is watched.
    branch: Option<String>,
    /// How often its refs are looked at; 60s when it is not said.
    poll: Option<Span>,
    /// The webhook it is told by.
    webhook: Option<Webhook>,
    /// Names of the secrets its steps may ask for.
    secrets: Option<OneOrMany<String>>,
    /// Its commits may do what needs trust.
    trusted: Option<bool>,
    /// What executes its steps.
    runtime: Option<Runtime>,
    /// Name and password for fetching, and for what Mainstay pushes.
    auth: Option<Credentials>,
    /// Where pull requests for it are opened.
    forge: Option<Forge>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Forge {
    /// Whose API it speaks.
    kind: ForgeKind,
    /// Where the API begins; known from the repository's address when that names a server.
    url: Option<String>,
    /// The repository there, `OWNER/NAME`; known from the repository's address when that names a server.
    project: Option<String>,
    /// A token that may open pull requests, best written as `${secret:NAME}`.
    token: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ForgeKind {
    Github,
    Gitlab,
    Gitea,
    Forgejo,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Webhook {
    /// Whose format it has.
    kind: WebhookKind,
    /// The shared secret, best written as `${secret:NAME}`.
    secret: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum WebhookKind {
    Github,
    Gitlab,
    Gitea,
    Forgejo,
    Generic,
}
