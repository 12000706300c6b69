//! The shape of a pipeline file.

use super::{OneOrMany, Patterns, Text};
use crate::model::ids::{EnvironmentName, SourceName, StepName};
use crate::model::plan::RetryOn;
use crate::model::{ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

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
