//! The shape of the files for editors, as JSON Schema (draft 2020-12). The checks that a file must pass are in
//! `pipeline`, `daemon` and `backup`; a test holds the keys here and there together.
#![allow(dead_code, reason = "the fields exist for their names and types; values are read by deserialising in tests")]

mod deploys;
mod recovery;

use crate::model::ids::{EnvironmentName, GroupName, PersonName, RepoName, SourceName, StepName};
use crate::model::plan::RetryOn;
use crate::model::{ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The schema of a pipeline file.
pub fn pipeline() -> serde_json::Value {
    titled(schemars::schema_for!(PipelineFile).to_value(), "Mainstay pipeline")
}

/// The schema of `mainstay.yml`.
pub fn daemon() -> serde_json::Value {
    titled(schemars::schema_for!(DaemonFile).to_value(), "Mainstay settings")
}

/// The schema of a file of `backups`.
pub fn backup() -> serde_json::Value {
    titled(schemars::schema_for!(recovery::SourceFile).to_value(), "Mainstay source of backups")
}

fn titled(mut schema: serde_json::Value, title: &str) -> serde_json::Value {
    schema["title"] = title.into();
    schema
}

/// One value, or a list of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

/// A text; numbers and booleans count as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Text {
    Words(String),
    Bool(bool),
    Number(f64),
}

/// One file, one pipeline, named after the file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PipelineFile {
    /// What starts it. Without it: every push to a branch, and people.
    on: Option<On>,
    /// The steps. Without `needs` anywhere they run in the order written.
    steps: Steps,
}

/// What starts a pipeline.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum On {
    Events(OneOrMany<Event>),
    Settings(Box<OnSettings>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Event {
    Push,
    Manual,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OnSettings {
    /// Branches and tags that move.
    push: Option<Push>,
    /// Five cron fields and a time zone: `0 3 * * * Europe/Paris`.
    schedule: Option<OneOrMany<String>>,
    /// People, by `mainstay trigger`.
    manual: Option<Manual>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Push {
    /// Patterns of branches; `!` excludes.
    branches: Option<Patterns>,
    /// Patterns of tags; `!` excludes.
    tags: Option<Patterns>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Patterns {
    List(OneOrMany<Text>),
    Both(IncludeExclude),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct IncludeExclude {
    include: Option<OneOrMany<Text>>,
    exclude: Option<OneOrMany<Text>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Manual {
    /// What a person may give along.
    inputs: Option<BTreeMap<String, Input>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// What it takes; `string` when it is not said.
    r#type: Option<InputType>,
    /// The values of a choice.
    options: Option<Vec<Text>>,
    /// Its value when it is not given.
    default: Option<Text>,
    /// It must be given.
    required: Option<bool>,
    /// What it is for.
    description: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum InputType {
    String,
    Boolean,
    Number,
    Choice,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Steps {
    Map(BTreeMap<StepName, Step>),
    List(Vec<Step>),
}

/// One step: a container, a deploy, an approval, a backup or a restore.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Step {
    /// Its name, where `steps` is a list.
    name: Option<StepName>,
    /// The container image; a step has this, `deploy`, `approval`, `backup` or `restore`.
    image: Option<String>,
    /// Shell lines, run under `sh -e`. Without them the image's entrypoint runs with `args`.
    commands: Option<OneOrMany<Text>>,
    /// Arguments for the image's entrypoint.
    args: Option<OneOrMany<Text>>,
    /// Environment variables. Values may hold `${{ steps.NAME.KEY }}` and `${{ inputs.NAME }}`.
    environment: Option<BTreeMap<String, Text>>,
    /// Names of secrets it is given as environment variables.
    secrets: Option<OneOrMany<String>>,
    /// Steps that must have ended before.
    needs: Option<OneOrMany<StepName>>,
    /// Another word for `needs`.
    #[serde(rename = "depends_on")]
    depends_on: Option<OneOrMany<StepName>>,
    /// It is stopped after this long.
    timeout: Option<Span>,
    /// When it is tried again.
    retries: Option<Retries>,
    /// Its failure does not count.
    allow_failure: Option<bool>,
    /// Never begun a second time.
    once: Option<bool>,
    /// Limits of its own.
    resources: Option<Resources>,
    /// When it runs.
    when: Option<When>,
    /// Brings an environment of `mainstay.yml` to this commit, and ends with its watch.
    deploy: Option<Deploy>,
    /// Waits for people.
    approval: Option<Approval>,
    /// Takes a base backup of a source, and waits until it exists.
    backup: Option<Backup>,
    /// Brings a source back, to the place that its file names.
    restore: Option<Restored>,
}

/// Which source is backed up.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Backup {
    /// A file of `backups/` beside `mainstay.yml`, without its extension.
    source: SourceName,
}

/// At most one of `at`, `lsn`, `point` and `backup`; the newest state where none is named. They may hold expressions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Restored {
    /// A file of `backups/` beside `mainstay.yml`, without its extension.
    source: SourceName,
    /// The state of a time: `2026-11-23T02:59:59Z`.
    at: Option<Text>,
    /// The state of a place in the log: `0/16B3748`.
    lsn: Option<Text>,
    /// The state of a restore point.
    point: Option<Text>,
    /// The state at the end of a backup.
    backup: Option<Text>,
}

/// At most one of `images`, `promote` and `rollback`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Deploy {
    /// Where to.
    environment: EnvironmentName,
    /// Images by service. Values may hold `${{ steps.NAME.KEY }}` and `${{ inputs.NAME }}`.
    images: Option<BTreeMap<String, String>>,
    /// Takes the images that serve in this environment.
    promote: Option<EnvironmentName>,
    /// Puts an earlier release back: `previous`, or its number. May hold expressions.
    rollback: Option<Text>,
}

/// Either `environment`, or `from` with what belongs to it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Approval {
    /// Asks by the policy of this environment.
    environment: Option<EnvironmentName>,
    /// People and groups.
    from: Option<OneOrMany<String>>,
    /// How many of them; 1 when it is not said.
    required: Option<u32>,
    /// Without an answer within this time it is rejected; 24h when it is not said.
    expires: Option<Span>,
    /// What they are told.
    message: Option<String>,
    /// What they may give along with a yes; these become outputs of the step.
    inputs: Option<BTreeMap<String, Input>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Retries {
    Max(u8),
    Settings(RetrySettings),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RetrySettings {
    /// Attempts after the first, 0 to 10.
    max: u8,
    /// The kinds of failure that are tried again; `lost-container` and `image-pull` when it is not said.
    on: Option<OneOrMany<RetryOn>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Resources {
    /// CPUs, such as `2` or `0.5`.
    cpus: Option<f64>,
    /// Memory without swap.
    memory: Option<ByteSize>,
    /// Processes and threads.
    pids: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct When {
    /// The states of the run so far for which it runs; `success` when it is not said.
    status: Option<OneOrMany<Status>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Success,
    Failure,
    RolledBack,
    Cancelled,
    Always,
}

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

#[cfg(test)]
mod tests {
    use super::super::{backup as sources, daemon as settings, pipeline as language};
    use super::*;

    fn deserialise<T: serde::de::DeserializeOwned>(file: &str, text: &str) {
        // As editors read it: `on` is a text in YAML 1.2.
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options::<T>(text, options).unwrap_or_else(|e| panic!("{file}: {e}"));
    }

    fn keys(schema: &serde_json::Value) -> Vec<&str> {
        let mut keys: Vec<_> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn the_schemas_and_the_readers_know_the_same_keys() {
        let (pipeline, daemon, backup) = (pipeline(), daemon(), backup());
        for schema in [&pipeline, &daemon, &backup] {
            assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        }
        let table: &[(&serde_json::Value, &[&str])] = &[
            (&pipeline, language::TOP_KEYS),
            (&pipeline["$defs"]["OnSettings"], language::ON_KEYS),
            (&pipeline["$defs"]["Push"], language::PUSH_KEYS),
            (&pipeline["$defs"]["Input"], language::INPUT_KEYS),
            (&pipeline["$defs"]["Step"], language::STEP_KEYS),
            (&pipeline["$defs"]["RetrySettings"], language::RETRIES_KEYS),
            (&pipeline["$defs"]["Resources"], language::RESOURCES_KEYS),
            (&pipeline["$defs"]["Deploy"], language::DEPLOY_KEYS),
            (&pipeline["$defs"]["Approval"], language::APPROVAL_KEYS),
            (&pipeline["$defs"]["Backup"], language::BACKUP_KEYS),
            (&pipeline["$defs"]["Restored"], language::RESTORE_KEYS),
            (&daemon, settings::TOP_KEYS),
            (&daemon["$defs"]["Server"], settings::SERVER_KEYS),
            (&daemon["$defs"]["Docker"], settings::DOCKER_KEYS),
            (&daemon["$defs"]["Credentials"], settings::CREDENTIAL_KEYS),
            (&daemon["$defs"]["Limits"], settings::LIMIT_KEYS),
            (&daemon["$defs"]["Keep"], settings::KEEP_KEYS),
            (&daemon["$defs"]["Releases"], settings::RELEASES_KEYS),
            (&daemon["$defs"]["People"], settings::PEOPLE_KEYS),
            (&daemon["$defs"]["Person"], settings::PERSON_KEYS),
            (&daemon["$defs"]["Repo"], settings::REPO_KEYS),
            (&daemon["$defs"]["Forge"], settings::FORGE_KEYS),
            (&daemon["$defs"]["Webhook"], settings::WEBHOOK_KEYS),
            (&daemon["$defs"]["Environment"], settings::ENVIRONMENT_KEYS),
            (&daemon["$defs"]["Source"], settings::SOURCE_KEYS),
            (&daemon["$defs"]["Target"], settings::TARGET_KEYS),
            (&daemon["$defs"]["SwarmTarget"], settings::SWARM_KEYS),
            (&daemon["$defs"]["ComposeTarget"], settings::COMPOSE_KEYS),
            (&daemon["$defs"]["CommandTarget"], settings::COMMAND_TARGET_KEYS),
            (&daemon["$defs"]["HealthRule"], settings::HEALTH_KEYS),
            (&daemon["$defs"]["Prometheus"], settings::PROMETHEUS_KEYS),
            (&daemon["$defs"]["Rollback"], settings::ROLLBACK_KEYS),
            (&daemon["$defs"]["EnvironmentApproval"], settings::APPROVAL_KEYS),
            (&daemon["$defs"]["Freeze"], settings::FREEZE_KEYS),
            (&daemon["$defs"]["Hooks"], settings::HOOKS_KEYS),
            (&daemon["$defs"]["Schema"], settings::SCHEMA_KEYS),
            (&daemon["$defs"]["Notify"], settings::NOTIFY_KEYS),
            (&daemon["$defs"]["Smtp"], settings::SMTP_KEYS),
            (&daemon["$defs"]["NotifyWebhook"], settings::NOTIFY_WEBHOOK_KEYS),
            (&daemon["$defs"]["Inbound"], settings::INBOUND_KEYS),
            (&daemon["$defs"]["Repository"], settings::REPOSITORY_KEYS),
            (&backup, sources::TOP_KEYS),
            (&backup["$defs"]["Incremental"], sources::INCREMENTAL_KEYS),
            (&backup["$defs"]["KeepBackups"], sources::KEEP_KEYS),
            (&backup["$defs"]["WalLag"], sources::WAL_LAG_KEYS),
            (&backup["$defs"]["Restore"], sources::RESTORE_KEYS),
            (&backup["$defs"]["SqlCheck"], sources::CHECK_KEYS),
            (&backup["$defs"]["Source"], settings::SOURCE_KEYS),
        ];
        for (schema, known) in table {
            let mut known = known.to_vec();
            known.sort_unstable();
            assert_eq!(keys(schema), known);
            assert_eq!(schema["additionalProperties"], false);
        }
    }

    #[test]
    fn what_ships_has_the_shape_of_the_schema() {
        let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines")];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                if path.extension().is_none_or(|e| e != "yml") {
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let file = path.display().to_string();
                deserialise::<PipelineFile>(&file, &text);
                let name = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
                let pipeline = language::parse(name, &file, &text).unwrap_or_else(|e| panic!("{e}"));
                assert!(pipeline.warnings.is_empty(), "{file}: {:?}", pipeline.warnings);
                seen += 1;
            }
        }
        assert!(seen >= 5, "only {seen} examples were found");
        deserialise::<DaemonFile>("mainstay.yml", crate::cli::init::MAINSTAY_YML);
        deserialise::<recovery::SourceFile>("postgres.yml", include_str!("../../backups/postgres.yml"));
        deserialise::<PipelineFile>("build.yml", crate::cli::init::BUILD_YML);
    }

    fn examples_in(page: &str) -> Vec<String> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/user-guide").join(page);
        let text = std::fs::read_to_string(path).unwrap();
        let blocks = text.split("```yaml\n").skip(1);
        blocks.map(|block| block.split("\n```").next().unwrap_or_default().to_owned() + "\n").collect()
    }

    #[test]
    fn the_examples_of_the_user_guide_are_right() {
        let pipelines = examples_in("pipelines.md");
        assert!(pipelines.len() >= 2);
        for text in pipelines {
            deserialise::<PipelineFile>("pipelines.md", &text);
            let read = language::parse("example".parse().unwrap(), "pipelines.md", &text);
            assert!(read.unwrap_or_else(|e| panic!("{e}")).warnings.is_empty(), "{text}");
        }
        // Each part of the settings stands by itself there; together they are one file.
        let parts = examples_in("configuration.md");
        assert!(parts.len() >= 3);
        let text = parts.concat();
        deserialise::<DaemonFile>("configuration.md", &text);
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let store = crate::config::secret::SecretStore::new(&state);
        for name in text.split("${secret:").skip(1).filter_map(|rest| rest.split('}').next()) {
            let board = name == "BOARD_URL";
            let value = if board { "https://chat.example.com/hook".into() } else { format!("0123456789abcdef-{name}") };
            store.set(name, &crate::config::secret::Secret::new(value)).unwrap();
        }
        store.set("DEPLOY_TOKEN", &crate::config::secret::Secret::new("x")).unwrap();
        let text = text
            .replace("${file:/run/keys/git}", "x")
            .replace("state: /var/lib/mainstay", &format!("state: {}", state.display()));
        let read = settings::parse("configuration.md", &text, &|_| None, folder.path());
        let read = read.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((read.environments.len(), read.notify.webhooks.len()), (2, 2));
        let repository = read.repository;
        assert!(matches!(repository.place, settings::RepositoryPlace::Bucket(_)) && repository.encrypt_to.len() == 1);
        let examples = examples_in("recovery.md");
        assert!(examples.len() >= 3);
        for text in examples {
            deserialise::<recovery::SourceFile>("recovery.md", &text);
            let name = "shop-db".parse().unwrap();
            for name in ["SHOP_DB", "CRM_DB", "NEW_DB"] {
                store.set(name, &crate::config::secret::Secret::new("x")).unwrap();
            }
            let (env, folder) = (|_: &str| None, folder.path());
            let around = sources::Around { env: &env, folder, store: &store, repos: Some(&["shop"]) };
            sources::parse(&name, "recovery.md", &text, &around).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}
