//! A pipeline file: what starts it, and its steps. Language reference: `docs/user-guide/pipelines.md`.

mod on;
mod recovery;
mod step;
mod waits;

pub(super) use step::{cpus, memory, pids};

use super::check::Checker;
use super::expression::Reference;
use super::finding::{Finding, Findings};
pub use super::globs::Globs;
use super::needs::Needs;
use super::schedule::Schedule;
use super::yaml::{self, Key, Node, Place, Value};
use crate::model::ids::{EnvironmentName, PipelineName, SourceName};
pub use crate::model::input::{Input, InputKind};
use crate::model::plan::{BackupStep, DeployStep, Resources, RestoreStep, Retries, RetryOn, StepKind, WhenStatus};
use crate::model::{Span, StepName};
use std::collections::{BTreeMap, HashMap};

/// A pipeline as its file means it. The graph has no cycles and every name in it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// Its name: the file's name without the extension.
    pub name: PipelineName,
    /// What starts it.
    pub on: Triggers,
    /// The steps, in the order written.
    pub steps: Vec<Step>,
    /// What is allowed and yet may not do what its author expects.
    pub warnings: Vec<Finding>,
}

impl Pipeline {
    /// The environments that its steps name, each with the step; `true` for those that it deploys to.
    pub fn environments(&self) -> impl Iterator<Item = (&StepName, &EnvironmentName, bool)> {
        self.steps.iter().flat_map(|step| {
            let (deploys, others) = match &step.kind {
                StepKind::Container | StepKind::Backup(_) | StepKind::Restore(_) => (None, None),
                StepKind::Deploy(DeployStep { environment, promote, .. }) => (Some(environment), promote.as_ref()),
                StepKind::Approval(approval) => (None, approval.environment.as_ref()),
            };
            let deploys = deploys.map(|environment| (&step.name, environment, true));
            deploys.into_iter().chain(others.map(|environment| (&step.name, environment, false)))
        })
    }
}

impl Pipeline {
    /// The sources of backups that its steps name, each with the step.
    pub fn sources(&self) -> impl Iterator<Item = (&StepName, &SourceName)> {
        self.steps.iter().filter_map(|step| match &step.kind {
            StepKind::Backup(BackupStep { source }) | StepKind::Restore(RestoreStep { source, .. }) => {
                Some((&step.name, source))
            }
            StepKind::Container | StepKind::Deploy(_) | StepKind::Approval(_) => None,
        })
    }
}

/// What starts a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Triggers {
    /// Branches and tags that move.
    pub push: Option<PushTrigger>,
    /// Times.
    pub schedule: Vec<Schedule>,
    /// People.
    pub manual: Option<ManualTrigger>,
}

/// Which pushes start a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushTrigger {
    /// Branches; `None`: no branch does.
    pub branches: Option<Globs>,
    /// Tags; `None`: no tag does.
    pub tags: Option<Globs>,
}

/// What a person may give along.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ManualTrigger {
    /// The inputs, in the order written.
    pub inputs: Vec<Input>,
}

/// One step as its file means it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: StepName,
    /// What it does.
    pub kind: StepKind,
    /// The image; may hold expressions. Empty when it runs no container, as is everything that only a container has.
    pub image: String,
    /// Shell lines; empty: the image's entrypoint with `args`.
    pub commands: Vec<String>,
    /// Arguments for the image's entrypoint.
    pub args: Vec<String>,
    /// Environment variables; values may hold expressions.
    pub environment: BTreeMap<String, String>,
    /// Names of secrets.
    pub secrets: Vec<String>,
    /// The steps that must have ended before; without `needs` anywhere in the file, the step written before.
    pub needs: Vec<StepName>,
    /// It is stopped after this long.
    pub timeout: Option<Span>,
    /// When it is tried again.
    pub retries: Retries,
    /// Its failure does not count.
    pub allow_failure: bool,
    /// Never begun a second time.
    pub once: bool,
    /// Limits of its own.
    pub resources: Resources,
    /// For which states of the run it runs.
    pub when_status: Vec<WhenStatus>,
}

/// More steps than a person can read; each is a container.
pub const STEPS_MAX: usize = 1_000;
/// An engine takes a command of 2 MiB at most; all lines of a step travel in one frame.
const COMMANDS_MAX_BYTES: usize = 256 * 1024;
/// The longest image reference: a registry's name, a path of 255 bytes, a tag of 128 and a digest fit.
const IMAGE_MAX_BYTES: usize = 512;
/// An attempt is minutes; more tries than this hide a broken step.
const RETRIES_MAX: u64 = 10;
/// Under this long no container has started.
const TIMEOUT_MIN: std::time::Duration = std::time::Duration::from_secs(1);
/// Nobody decides in less.
const EXPIRES_MIN: std::time::Duration = std::time::Duration::from_secs(1);
/// It stands above everything else in a mail that is read on a phone.
const MESSAGE_MAX_CHARS: usize = 500;
/// Inputs are asked for one by one in a form.
const INPUTS_MAX: usize = 50;

pub(super) const TOP_KEYS: &[&str] = &["on", "steps"];
const TOP_LATER: &[&str] = &["services", "include", "concurrency", "checkout", "workspace"];
pub(super) const ON_KEYS: &[&str] = &["push", "schedule", "manual"];
const ON_LATER: &[&str] = &["pull_request", "pull-request"];
pub(super) const PUSH_KEYS: &[&str] = &["branches", "tags"];
const PUSH_LATER: &[&str] = &["paths"];
pub(super) const INPUT_KEYS: &[&str] = &["type", "options", "default", "required", "description"];
pub(super) const STEP_KEYS: &[&str] = &[
    "name",
    "image",
    "commands",
    "args",
    "environment",
    "secrets",
    "needs",
    "depends_on",
    "timeout",
    "retries",
    "allow-failure",
    "once",
    "resources",
    "when",
    "deploy",
    "approval",
    "backup",
    "restore",
];
const STEP_LATER: &[&str] = &[
    "matrix",
    "cache",
    "artifacts",
    "report",
    "build",
    "load",
    "drill",
    "services",
    "checkout",
    "workspace",
    "concurrency",
    "include",
];
pub(super) const RETRIES_KEYS: &[&str] = &["max", "on"];
pub(super) const DEPLOY_KEYS: &[&str] = &["environment", "images", "promote", "rollback"];
pub(super) const APPROVAL_KEYS: &[&str] = &["environment", "from", "required", "expires", "message", "inputs"];
pub(super) const BACKUP_KEYS: &[&str] = &["source"];
pub(super) const RESTORE_KEYS: &[&str] = &["source", "at", "lsn", "point", "backup"];
pub(super) const RESOURCES_KEYS: &[&str] = &["cpus", "memory", "pids"];
const WHEN_KEYS: &[&str] = &["status"];
const WHEN_LATER: &[&str] = &["event", "branch", "path", "tag", "if", "required"];

const RETRY_WORDS: &[(&str, RetryOn)] = &[
    ("failure", RetryOn::Failure),
    ("timeout", RetryOn::Timeout),
    ("lost-container", RetryOn::LostContainer),
    ("image-pull", RetryOn::ImagePull),
];
const ALL_STATUS: &[WhenStatus] =
    &[WhenStatus::Success, WhenStatus::Failure, WhenStatus::RolledBack, WhenStatus::Cancelled];
const STATUS_WORDS: &[(&str, &[WhenStatus])] = &[
    ("success", &[WhenStatus::Success]),
    ("failure", &[WhenStatus::Failure]),
    ("rolled-back", &[WhenStatus::RolledBack]),
    ("cancelled", &[WhenStatus::Cancelled]),
    ("always", ALL_STATUS),
];

/// Reads a pipeline. `file` is its name for people, `text` its content.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn parse(name: PipelineName, file: &str, text: &str) -> Result<Pipeline, Findings> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = yaml::read(file, text)?;
    let mut reader = Reader { check: Checker::new(text) };
    let pipeline = reader.pipeline(name, &root);
    let findings = Findings::new(file, text, reader.check.findings);
    match pipeline {
        Some(mut pipeline) if !findings.has_errors() => {
            pipeline.warnings = findings.list;
            Ok(pipeline)
        }
        // Nothing is returned without a reason; should a reason be missing, say at least that.
        _ if findings.list.is_empty() => {
            Err(Findings::new(file, text, vec![Finding::general("the file is not a pipeline")]))
        }
        _ => Err(findings),
    }
}

/// A step and the places that later checks point at.
struct Placed {
    step: Step,
    name_at: Place,
    /// Where it says what it does, when it is no container.
    kind_at: Place,
    needs: Option<Vec<(StepName, Place)>>,
    references: Vec<(Reference, Place)>,
}

struct Reader<'s> {
    check: Checker<'s>,
}

impl Reader<'_> {
    fn pipeline(&mut self, name: PipelineName, root: &Node) -> Option<Pipeline> {
        if matches!(root.value, Value::Null) {
            self.check.findings.push(
                Finding::general("the file is empty")
                    .hint("a pipeline needs at least `steps:`; `mainstay init` writes an example"),
            );
            return None;
        }
        let entries = self.check.entries(root, "a pipeline")?;
        for (key, _) in entries {
            if !is_on(key) {
                self.check.known_key(key, "the pipeline", TOP_KEYS, TOP_LATER);
            }
        }
        let on = match entries.iter().find(|(key, _)| is_on(key)) {
            Some((_, node)) => self.triggers(node),
            None => Triggers {
                push: Some(PushTrigger { branches: Some(Globs::all()), tags: None }),
                schedule: Vec::new(),
                manual: Some(ManualTrigger::default()),
            },
        };
        let Some((_, steps)) = entries.iter().find(|(key, _)| key.name == "steps") else {
            self.check.findings.push(Finding::general("there is no `steps` in the pipeline"));
            return None;
        };
        let placed = self.steps(steps)?;
        let steps = self.graph(placed, &on);
        Some(Pipeline { name, on, steps, warnings: Vec::new() })
    }

    fn steps(&mut self, node: &Node) -> Option<Vec<Placed>> {
        let mut named: Vec<(String, Place, &Node)> = Vec::new();
        match &node.value {
            Value::Map(entries) => {
                for (key, step) in entries {
                    named.push((key.name.clone(), key.place, step));
                }
            }
            Value::List(items) => {
                for item in items {
                    let Some(entries) = self.check.entries(item, "a step") else { continue };
                    match entries.iter().find(|(key, _)| key.name == "name") {
                        Some((_, name)) => {
                            if let Some(text) = self.check.text(name, "`name`") {
                                named.push((text.to_owned(), name.place, item));
                            }
                        }
                        None => self.check.error_with_hint(
                            item.place,
                            "this step has no name",
                            "write `- name: NAME`, or write `steps` as a map with names as keys",
                        ),
                    }
                }
            }
            _ => {
                self.check.error(node.place, "`steps` is a map of steps, or a list of steps with names");
                return None;
            }
        }
        if named.is_empty() {
            self.check.error(node.place, "there are no steps");
            return None;
        }
        if named.len() > STEPS_MAX {
            self.check.error(node.place, format!("there are {} steps; at most {STEPS_MAX}", named.len()));
            return None;
        }
        let mut seen: HashMap<String, Place> = HashMap::new();
        let mut placed = Vec::new();
        for (name, place, node) in named {
            match StepName::new(name.as_str()) {
                Ok(step) => {
                    if seen.insert(name.clone(), place).is_some() {
                        self.check.error(place, format!("there are two steps named `{name}`"));
                    }
                    placed.extend(self.step(step, place, node));
                }
                Err(why) => {
                    self.check.error(place, why.to_string());
                }
            }
        }
        Some(placed)
    }

    /// Resolves `needs`, and checks everything that more than one step has a say in.
    fn graph(&mut self, mut placed: Vec<Placed>, on: &Triggers) -> Vec<Step> {
        let graph_rules = placed.iter().any(|p| p.needs.is_some());
        let names: Vec<StepName> = placed.iter().map(|p| p.step.name.clone()).collect();
        let known: Vec<&str> = names.iter().map(StepName::as_str).collect();
        for (n, placed) in placed.iter_mut().enumerate() {
            if !graph_rules {
                placed.step.needs = n.checked_sub(1).map(|before| names[before].clone()).into_iter().collect();
                continue;
            }
            for (name, place) in placed.needs.take().unwrap_or_default() {
                if names.contains(&name) {
                    placed.step.needs.push(name);
                    continue;
                }
                self.check.unknown_name(place, "step", name.as_str(), &known, None);
            }
        }
        let needs = Needs::of(placed.iter().map(|p| (&p.step.name, p.step.needs.as_slice())));
        // Two steps of one name make positions ambiguous; that is an error already.
        for cycle in needs.cycles() {
            let way: Vec<&str> = cycle.iter().chain(cycle.first()).map(|&n| names[n].as_str()).collect();
            let message = if cycle.len() == 1 {
                format!("the step `{}` needs itself", way[0])
            } else {
                format!("these steps wait for each other for ever: {}", way.join(" -> "))
            };
            self.check.error_with_hint(placed[cycle[0]].name_at, message, "`a -> b` reads: `a` needs `b`");
        }
        for n in 0..placed.len() {
            self.references(&placed, n, &needs, &names, on);
        }
        self.approvals_know_what_they_approve(&placed, &needs);
        placed.into_iter().map(|p| p.step).collect()
    }

    fn references(&mut self, all: &[Placed], n: usize, needs: &Needs, names: &[StepName], on: &Triggers) {
        let placed = &all[n];
        if placed.references.is_empty() {
            return;
        }
        let before = needs.before(n);
        for (reference, place) in &placed.references {
            match reference {
                Reference::Output { step, key } => match names.iter().position(|name| name == step) {
                    None => {
                        let known: Vec<&str> = names.iter().map(StepName::as_str).collect();
                        self.check.unknown_name(*place, "step", step.as_str(), &known, None);
                    }
                    Some(at) if !before.contains(&at) => self.check.error_with_hint(
                        *place,
                        format!("`{}` does not wait for `{step}`, whose output it uses", placed.step.name),
                        format!("add `{step}` to its `needs`"),
                    ),
                    Some(at) => {
                        if let StepKind::Approval(approval) = &all[at].step.kind {
                            let known: Vec<&str> = approval.inputs.iter().map(|input| input.name.as_str()).collect();
                            if !known.contains(&key.as_str()) {
                                let what = format!("input of the approval `{step}`");
                                let otherwise = Some("what people give along with a yes stands under its `inputs`");
                                self.check.unknown_name(*place, &what, key, &known, otherwise);
                            }
                        }
                    }
                },
                Reference::Input(name) => {
                    let known: Vec<&str> =
                        on.manual.iter().flat_map(|m| &m.inputs).map(|input| input.name.as_str()).collect();
                    if !known.contains(&name.as_str()) {
                        let otherwise = Some("inputs stand under `on.manual.inputs`");
                        self.check.unknown_name(*place, "input", name, &known, otherwise);
                    }
                }
            }
        }
    }
}

/// `on` is the boolean `true` to readers of YAML 1.1; a file that such a tool rewrote still means `on`.
fn is_on(key: &Key) -> bool {
    matches!(key.name.as_str(), "on" | "true")
}

#[cfg(test)]
mod tests;
