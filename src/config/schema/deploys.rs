//! The shape of `environments` and `notify` in `mainstay.yml`.

use super::{OneOrMany, Patterns, Text};
use crate::model::Span;
use crate::model::ids::{EnvironmentName, PipelineName, RepoName};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Whose deploy histories in Git are believed, when the daemon has none of its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Releases {
    /// Public keys of earlier daemons, as in their `sign.pub`; the daemon's own need not be named.
    trusted: Option<OneOrMany<String>>,
}

/// A place that releases are deployed to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Environment {
    /// Who may deploy here; anything else is refused.
    from: Vec<Source>,
    /// What is brought to a release.
    target: Target,
    /// What must hold for a release to be well.
    health: Option<Vec<HealthRule>>,
    /// How long the rules are asked after they first held; when it is not said 5m, and 0s without rules.
    watch: Option<Span>,
    /// The longest time bringing the target to a release may take; 10m when it is not said.
    timeout: Option<Span>,
    /// What happens when a release turns bad.
    rollback: Option<Rollback>,
    /// Who has to say yes first.
    approval: Option<EnvironmentApproval>,
    /// When nothing is deployed; rollbacks always are.
    freeze: Option<Vec<Freeze>>,
    /// A daemon that has not renewed its lease for this long is taken for dead; 30s when it is not said.
    lease: Option<Span>,
    /// How often what runs is compared with what should; 60s when it is not said.
    reconcile: Option<Span>,
    /// What was changed by hand is put back.
    self_heal: Option<bool>,
    /// Whether the target may be without a serving version for moments.
    downtime: Option<Downtime>,
    /// Where `mainstay promote` takes the release from when it is not told.
    promote_from: Option<EnvironmentName>,
    /// Commands of the daemon's machine around a deploy.
    hooks: Option<Hooks>,
    /// How the version of the database schema is known.
    schema: Option<Schema>,
    /// Texts that the target's file may name as `${NAME}`; secrets as `${secret:NAME}`.
    variables: Option<BTreeMap<String, Text>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    /// The watched repository.
    repo: RepoName,
    /// Patterns of branches; `!` excludes.
    branches: Patterns,
    /// Its pipelines; all when it is not said.
    pipelines: Option<OneOrMany<PipelineName>>,
}

/// What is deployed to: one of these.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Target {
    /// A stack of a Docker swarm.
    swarm: Option<SwarmTarget>,
    /// A Compose project.
    compose: Option<ComposeTarget>,
    /// Commands of your own.
    command: Option<CommandTarget>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SwarmTarget {
    /// The stack file, in the repository.
    stack: String,
    /// The repository with the file.
    repo: RepoName,
    /// The stack's name; the environment's when it is not said.
    name: Option<String>,
    /// A manager of the swarm: `unix:///PATH` or `tcp://HOST:PORT`.
    host: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ComposeTarget {
    /// The Compose file, in the repository.
    file: String,
    /// The repository with the file.
    repo: RepoName,
    /// The project's name; the environment's when it is not said.
    project: Option<String>,
    /// The engine: `unix:///PATH` or `tcp://HOST:PORT`.
    host: Option<String>,
    /// A command of the daemon's machine that moves the traffic from the old project to the new one.
    switch: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CommandTarget {
    /// The image they run in; as processes of the daemon's machine when it is not said.
    image: Option<String>,
    /// The repository with the files.
    repo: RepoName,
    /// Brings everything to the release.
    up: OneOrMany<String>,
    /// Prints `NAME=VALUE` lines of what is there; 0 when it is well.
    status: OneOrMany<String>,
    /// Removes everything.
    down: OneOrMany<String>,
}

/// One of `http`, `tcp`, `command`, `restarts` and `prometheus`, and how it is asked.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HealthRule {
    /// A GET of this address.
    http: Option<String>,
    /// A connection to `HOST:PORT`.
    tcp: Option<String>,
    /// A command of the daemon's machine that must end with 0.
    command: Option<String>,
    /// How often containers may have been started anew since the release serves.
    restarts: Option<u32>,
    /// A query whose every value must satisfy a comparison.
    prometheus: Option<Prometheus>,
    /// With `http`: the statuses that are good; 200 to 299 when it is not said.
    status: Option<OneOrMany<u16>>,
    /// With `http`: a text that the answer must hold.
    body: Option<Text>,
    /// With `http`: the answer must be whole within this time.
    latency: Option<Span>,
    /// How often it is asked; 1s when it is not said.
    every: Option<Span>,
    /// So many bad answers in a row make a release bad; 3 when it is not said.
    failures: Option<u32>,
    /// It must hold within this time after the release serves; 60s when it is not said.
    within: Option<Span>,
    /// One question may take this long; 5s when it is not said.
    timeout: Option<Span>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Prometheus {
    /// The server, as `http://HOST:PORT`.
    url: String,
    /// The query.
    query: String,
    /// What must be true of each value: `< 0.01`.
    expect: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rollback {
    /// The last verified release is put back by itself; true when it is not said.
    auto: Option<bool>,
    /// What the repository is told of a rollback; nothing when it is not said.
    git: Option<RollbackGit>,
}

/// What the repository is told.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum RollbackGit {
    /// Nothing.
    None,
    /// A tag on the commit that turned bad.
    Tag,
    /// A branch that takes the bad release back, and a pull request for it.
    RevertPr,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct EnvironmentApproval {
    /// People and groups.
    from: OneOrMany<String>,
    /// How many of them; 1 when it is not said.
    required: Option<u32>,
    /// Without an answer within this time it is rejected; 24h when it is not said.
    expires: Option<Span>,
    /// The ways that count; all when it is not said.
    by: Option<OneOrMany<Way>>,
    /// The author, the pusher and whoever triggered count too.
    allow_self: Option<bool>,
    /// A pusher who is nobody in `people` does not make approval impossible.
    allow_unknown_pusher: Option<bool>,
    /// What a newer run does to an older one that waits for its yes; supersede when it is not said.
    newer: Option<Newer>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Newer {
    /// It takes its place.
    Supersede,
    /// It waits until the older one is decided.
    Wait,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Way {
    Mail,
    Webhook,
    Cli,
}

/// A time in which nothing is deployed: `Fri 16:00 Europe/Paris`, or `2026-12-23 18:00 Europe/Paris`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Freeze {
    from: String,
    to: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Downtime {
    Allowed,
    Never,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Hooks {
    /// Before the target is touched.
    before: Option<OneOrMany<String>>,
    /// After the release serves and its rules held.
    after: Option<OneOrMany<String>>,
    /// After a rollback.
    rollback: Option<OneOrMany<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Schema {
    /// A command that prints the version.
    version: String,
    /// A command that ends with 0 when the way back from `$FROM` to `$TO` loses nothing.
    reversible: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Notify {
    /// The mail server.
    smtp: Option<Smtp>,
    /// Systems that are told, by name.
    webhooks: Option<BTreeMap<String, NotifyWebhook>>,
    /// The people and groups who are mailed when a source of backups is in trouble; everybody with an address when it is not
    /// said.
    alerts: Option<OneOrMany<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Smtp {
    /// `smtps://USER@HOST` (TLS), `smtp://USER@HOST` (STARTTLS), `smtp+plain://127.0.0.1`.
    url: String,
    /// Who sends: `Mainstay <ci@example.com>`.
    from: String,
    /// The user, where it does not stand in `url`.
    user: Option<String>,
    /// Best written as `${secret:NAME}`.
    password: Option<String>,
    /// A PEM file with the authority that signed the server's certificate, when it is one of your own.
    authority: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NotifyWebhook {
    /// Where messages are posted.
    url: String,
    /// Their form; `generic` when it is not said.
    format: Option<WebhookFormat>,
    /// Signs what is sent; best written as `${secret:NAME}`.
    secret: Option<String>,
    /// What it may send back.
    inbound: Option<Inbound>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum WebhookFormat {
    Generic,
    Slack,
    Teams,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Inbound {
    /// Signs what comes in; best written as `${secret:NAME}`.
    secret: String,
    /// The people it may speak for.
    people: OneOrMany<String>,
}
