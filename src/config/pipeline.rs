//! A pipeline file: what starts it, and its steps. Language reference: `docs/user-guide/pipelines.md`.

use super::check::{Checker, Fields, nearest, variable_name};
use super::expression::{self, Reference};
use super::finding::{Finding, Findings, shown};
pub use super::globs::Globs;
use super::needs::Needs;
use super::schedule::Schedule;
use super::yaml::{self, Key, Node, Place, Value};
use crate::model::ids::PipelineName;
use crate::model::plan::{Resources, Retries, RetryOn, WhenStatus};
use crate::model::{ByteSize, Span, StepName};
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

/// One input of a manual run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub kind: InputKind,
    /// Its value when it is not given.
    pub default: Option<String>,
    /// It must be given.
    pub required: bool,
    /// What it is for, in words.
    pub description: Option<String>,
}

/// What an input takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputKind {
    /// Any text.
    Text,
    /// `true` or `false`.
    Boolean,
    /// A decimal number.
    Number,
    /// One of these.
    Choice(Vec<String>),
}

impl InputKind {
    /// Checks a value.
    ///
    /// # Errors
    /// What would be right, as a fragment that fits after "must be".
    pub fn check(&self, value: &str) -> Result<(), String> {
        match self {
            InputKind::Text => Ok(()),
            InputKind::Boolean if matches!(value, "true" | "false") => Ok(()),
            InputKind::Boolean => Err("`true` or `false`".to_owned()),
            InputKind::Number if value.parse::<f64>().is_ok_and(f64::is_finite) => Ok(()),
            InputKind::Number => Err("a number".to_owned()),
            InputKind::Choice(options) if options.iter().any(|o| o == value) => Ok(()),
            InputKind::Choice(options) => Err(format!("one of {}", options.join(", "))),
        }
    }
}

/// One step as its file means it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: StepName,
    /// The image; may hold expressions.
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
/// Inputs are asked for one by one in a form.
const INPUTS_MAX: usize = 50;

pub(super) const TOP_KEYS: &[&str] = &["on", "steps"];
const TOP_LATER: &[&str] = &["services", "include", "concurrency", "checkout", "workspace"];
pub(super) const ON_KEYS: &[&str] = &["push", "schedule", "manual"];
const ON_LATER: &[&str] = &["pull_request", "pull-request"];
pub(super) const PUSH_KEYS: &[&str] = &["branches", "tags"];
const PUSH_LATER: &[&str] = &["paths"];
const GLOB_KEYS: &[&str] = &["include", "exclude"];
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
];
const STEP_LATER: &[&str] = &[
    "matrix",
    "cache",
    "artifacts",
    "report",
    "build",
    "deploy",
    "approval",
    "load",
    "backup",
    "restore",
    "drill",
    "services",
    "checkout",
    "workspace",
    "concurrency",
    "include",
];
pub(super) const RETRIES_KEYS: &[&str] = &["max", "on"];
pub(super) const RESOURCES_KEYS: &[&str] = &["cpus", "memory", "pids"];
const WHEN_KEYS: &[&str] = &["status"];
const WHEN_LATER: &[&str] = &["event", "branch", "path", "tag", "if", "required"];

const RETRY_WORDS: &[(&str, RetryOn)] = &[
    ("failure", RetryOn::Failure),
    ("timeout", RetryOn::Timeout),
    ("lost-container", RetryOn::LostContainer),
    ("image-pull", RetryOn::ImagePull),
];
const ALL_STATUS: &[WhenStatus] = &[WhenStatus::Success, WhenStatus::Failure, WhenStatus::Cancelled];
const STATUS_WORDS: &[(&str, &[WhenStatus])] = &[
    ("success", &[WhenStatus::Success]),
    ("failure", &[WhenStatus::Failure]),
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

    fn triggers(&mut self, node: &Node) -> Triggers {
        let mut on = Triggers::default();
        // `on: push` and `on: [push, manual]` are short for maps without settings.
        if matches!(node.value, Value::Scalar(_) | Value::List(_)) {
            for item in self.check.items(node, "`on`") {
                let Some(word) = self.check.text(item, "an event under `on`") else { continue };
                match word {
                    "push" => on.push = Some(PushTrigger { branches: Some(Globs::all()), tags: None }),
                    "manual" => on.manual = Some(ManualTrigger::default()),
                    _ => {
                        let key = Key { name: word.to_owned(), place: item.place };
                        self.check.known_key(&key, "`on`", &["push", "manual"], ON_LATER);
                    }
                }
            }
            return on;
        }
        let Some(fields) = self.check.fields(node, "`on`", ON_KEYS, ON_LATER) else { return on };
        if let Some(node) = fields.get("push") {
            on.push = self.push(node);
        }
        if let Some(node) = fields.get("schedule") {
            for item in self.check.items(node, "`schedule`") {
                on.schedule.extend(self.check.parsed::<Schedule>(item, "schedule"));
            }
        }
        if let Some(node) = fields.get("manual") {
            on.manual = Some(self.manual(node));
        }
        if fields.entries.is_empty() {
            let warning = Finding::at(self.check.source, node.place, "nothing starts this pipeline: `on` is empty");
            self.check.findings.push(warning.warning().hint("leave `on` out for every push and manual runs"));
        }
        on
    }

    fn push(&mut self, node: &Node) -> Option<PushTrigger> {
        let fields = self.check.fields(node, "`push`", PUSH_KEYS, PUSH_LATER)?;
        let branches = fields.get("branches").map(|node| self.globs(node, "`branches`"));
        let tags = fields.get("tags").map(|node| self.globs(node, "`tags`"));
        // With `tags` alone, branches do not start it; with nothing, branches do.
        let branches = if branches.is_none() && tags.is_none() { Some(Globs::all()) } else { branches };
        Some(PushTrigger { branches, tags })
    }

    fn globs(&mut self, node: &Node, what: &str) -> Globs {
        let mut include: Vec<(&str, Place)> = Vec::new();
        let mut exclude: Vec<(&str, Place)> = Vec::new();
        if let Value::Map(_) = node.value {
            let Some(fields) = self.check.fields(node, what, GLOB_KEYS, &[]) else { return Globs::all() };
            for (key, list) in [("include", &mut include), ("exclude", &mut exclude)] {
                for item in fields.get(key).map(|n| self.check.items(n, &format!("`{key}`"))).unwrap_or_default() {
                    list.extend(self.check.text(item, "a pattern").map(|text| (text, item.place)));
                }
            }
        } else {
            for item in self.check.items(node, what) {
                let Some(text) = self.check.text(item, "a pattern") else { continue };
                match text.strip_prefix('!') {
                    Some(text) => exclude.push((text, item.place)),
                    None => include.push((text, item.place)),
                }
            }
            if include.is_empty() && exclude.is_empty() && matches!(node.value, Value::List(_)) {
                self.check.error(node.place, format!("{what} is empty: nothing would match"));
            }
        }
        for (text, place) in include.iter().chain(&exclude) {
            if text.is_empty() || text.len() > 255 {
                self.check.error(*place, "a pattern has 1 to 255 bytes");
                return Globs::all();
            }
        }
        let texts = |list: &[(&'_ str, Place)]| list.iter().map(|(text, _)| (*text).to_owned()).collect::<Vec<_>>();
        let (include_texts, exclude_texts) = (texts(&include), texts(&exclude));
        let include_texts: Vec<&str> = include_texts.iter().map(String::as_str).collect();
        let exclude_texts: Vec<&str> = exclude_texts.iter().map(String::as_str).collect();
        Globs::new(&include_texts, &exclude_texts).unwrap_or_else(|(n, why)| {
            let place = include.iter().chain(&exclude).nth(n).map_or(node.place, |(_, place)| *place);
            self.check.error(place, format!("this pattern does not read: {why}"));
            Globs::all()
        })
    }

    fn manual(&mut self, node: &Node) -> ManualTrigger {
        let mut manual = ManualTrigger::default();
        let Some(fields) = self.check.fields(node, "`manual`", &["inputs"], &[]) else { return manual };
        let Some(inputs) = fields.get("inputs") else { return manual };
        for (key, node) in self.check.entries(inputs, "`inputs`").unwrap_or_default() {
            if !expression::is_key(&key.name) {
                let message =
                    format!("`{}` is not a name for an input: letters, digits, `_` and `-`", shown(&key.name));
                self.check.error(key.place, message);
            }
            manual.inputs.extend(self.input(key, node));
        }
        if manual.inputs.len() > INPUTS_MAX {
            self.check.error(inputs.place, format!("there are {} inputs; at most {INPUTS_MAX}", manual.inputs.len()));
        }
        manual
    }

    fn input(&mut self, key: &Key, node: &Node) -> Option<Input> {
        let what = format!("the input `{}`", shown(&key.name));
        let fields = self.check.fields(node, &what, INPUT_KEYS, &[])?;
        let mut options = Vec::new();
        if let Some(node) = fields.get("options") {
            for item in self.check.items(node, "`options`") {
                options.extend(self.check.text(item, "an option").map(str::to_owned));
            }
        }
        let words = [("string", 0), ("boolean", 1), ("number", 2), ("choice", 3)];
        let kind = match fields.get("type") {
            Some(node) => self.check.word(node, "`type`", &words)?,
            None => 0,
        };
        let kind = match kind {
            0 => InputKind::Text,
            1 => InputKind::Boolean,
            2 => InputKind::Number,
            _ => InputKind::Choice(options.clone()),
        };
        match &kind {
            InputKind::Choice(_) if options.is_empty() => {
                self.check.error(key.place, format!("{what} is a choice and needs `options`"));
            }
            InputKind::Choice(_) => {}
            _ if fields.get("options").is_some() => {
                self.check.error(key.place, format!("{what} has `options`, which only `type: choice` has"));
            }
            _ => {}
        }
        let default = fields.get("default").and_then(|node| {
            let text = self.check.text(node, "`default`")?.to_owned();
            if let Err(why) = kind.check(&text) {
                self.check.error(node.place, format!("the default of {what} must be {why}"));
            }
            Some(text)
        });
        let required = fields.get("required").and_then(|n| self.check.boolean(n, "`required`")).unwrap_or(false);
        let description =
            fields.get("description").and_then(|n| self.check.text(n, "`description`")).map(str::to_owned);
        Some(Input { name: key.name.clone(), kind, default, required, description })
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

    fn step(&mut self, name: StepName, name_at: Place, node: &Node) -> Option<Placed> {
        let what = format!("the step `{name}`");
        let fields = self.check.fields(node, &what, STEP_KEYS, STEP_LATER)?;
        let mut references = Vec::new();
        let image = self.image(&fields, &what, name_at, &mut references);
        let commands = self.commands(&fields, &what);
        let args = self.text_list(&fields, "args");
        for arg in fields.get("args").map(|n| self.check.items(n, "`args`")).unwrap_or_default() {
            self.no_expression(arg, "args");
        }
        if let (Some(_), Some((key, _))) = (fields.get("commands"), fields.entry("args")) {
            self.check.error_with_hint(
                key.place,
                format!("{what} has both `commands` and `args`"),
                "`commands` run in a shell; `args` go to the image's own entrypoint instead",
            );
        }
        let environment = self.environment(&fields, &mut references);
        let secrets = self.secrets(&fields, &environment);
        let needs = self.needs(&fields);
        let timeout = fields.get("timeout").and_then(|node| {
            let span: Span = self.check.parsed(node, "`timeout`")?;
            if span.0 < TIMEOUT_MIN {
                self.check.error(node.place, "a timeout is at least 1s");
            }
            Some(span)
        });
        let once = fields.get("once").and_then(|n| self.check.boolean(n, "`once`")).unwrap_or(false);
        let retries = fields.get("retries").map(|n| self.retries(n, once)).unwrap_or_default();
        let allow_failure =
            fields.get("allow-failure").and_then(|n| self.check.boolean(n, "`allow-failure`")).unwrap_or(false);
        let resources = fields.get("resources").map(|n| self.resources(n)).unwrap_or_default();
        let when_status = match fields.get("when") {
            Some(node) => self.when(node),
            None => vec![WhenStatus::Success],
        };
        let step = Step {
            name,
            image: image.unwrap_or_default(),
            commands,
            args,
            environment,
            secrets,
            needs: Vec::new(),
            timeout,
            retries,
            allow_failure,
            once,
            resources,
            when_status,
        };
        Some(Placed { step, name_at, needs, references })
    }

    fn image(
        &mut self,
        fields: &Fields<'_>,
        what: &str,
        name_at: Place,
        references: &mut Vec<(Reference, Place)>,
    ) -> Option<String> {
        let Some(node) = fields.get("image") else {
            // A kind of step that this version does not have is told about already.
            if !fields.entries.iter().any(|(key, _)| STEP_LATER.contains(&key.name.as_str())) {
                self.check.error_with_hint(
                    name_at,
                    format!("{what} has no `image`"),
                    "every step names the container image it runs in, such as `image: alpine:3`",
                );
            }
            return None;
        };
        let text = self.check.text(node, "`image`")?;
        let found = self.expressions(node, text, references);
        let plain = found == 0;
        if text.is_empty() || text.len() > IMAGE_MAX_BYTES {
            self.check.error(node.place, format!("an image has 1 to {IMAGE_MAX_BYTES} bytes"));
        } else if plain
            && (text.starts_with('-') || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:@+".contains(&b)))
        {
            self.check.error_with_hint(
                node.place,
                format!("`{}` is not an image reference", shown(text)),
                "write it as `NAME:TAG`, `HOST/PATH:TAG` or `NAME@sha256:DIGEST`; variables of the shell are not read here",
            );
        }
        Some(text.to_owned())
    }

    /// Notes what a text refers to; returns how many expressions there are.
    fn expressions(&mut self, node: &Node, text: &str, references: &mut Vec<(Reference, Place)>) -> usize {
        match expression::references(text) {
            Ok(found) => {
                let count = found.len();
                references.extend(found.into_iter().map(|reference| (reference, node.place)));
                count
            }
            Err(why) => {
                self.check.error(node.place, why.to_string());
                1
            }
        }
    }

    fn no_expression(&mut self, node: &Node, key: &str) {
        if let Value::Scalar(scalar) = &node.value
            && scalar.text.contains("${{")
        {
            self.check.error_with_hint(
                node.place,
                format!("`${{{{ }}}}` is not read in `{key}`: what it stands for could run as a command"),
                "put it into a variable under `environment:` and use that, in double quotes: \"$NAME\"",
            );
        }
    }

    fn commands(&mut self, fields: &Fields<'_>, what: &str) -> Vec<String> {
        let Some(node) = fields.get("commands") else { return Vec::new() };
        let mut commands = Vec::new();
        for item in self.check.items(node, "`commands`") {
            if let Value::Map(_) = item.value {
                self.check.error_with_hint(
                    item.place,
                    "a command is a text, but YAML reads a map here",
                    "`: ` inside a command makes it a map; put the whole command in quotes",
                );
                continue;
            }
            self.no_expression(item, "commands");
            commands.extend(self.check.text(item, "a command").map(str::to_owned));
        }
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            self.check.error_with_hint(
                node.place,
                format!("`commands` of {what} is empty"),
                "leave `commands` out to run the image's own entrypoint",
            );
        }
        let bytes: usize = commands.iter().map(String::len).sum();
        if bytes > COMMANDS_MAX_BYTES {
            self.check.error_with_hint(
                node.place,
                format!("`commands` of {what} have {bytes} bytes; at most {COMMANDS_MAX_BYTES}"),
                "put the script into a file of the repository and run that",
            );
        }
        commands
    }

    fn text_list(&mut self, fields: &Fields<'_>, key: &str) -> Vec<String> {
        let Some(node) = fields.get(key) else { return Vec::new() };
        let mut list = Vec::new();
        for item in self.check.items(node, &format!("`{key}`")) {
            list.extend(self.check.text(item, &format!("an item of `{key}`")).map(str::to_owned));
        }
        list
    }

    fn environment(
        &mut self,
        fields: &Fields<'_>,
        references: &mut Vec<(Reference, Place)>,
    ) -> BTreeMap<String, String> {
        let Some(node) = fields.get("environment") else { return BTreeMap::new() };
        let mut environment = BTreeMap::new();
        for (key, value, text) in self.check.variables(node, "`environment`") {
            if key.name.starts_with("MAINSTAY_") {
                self.check.error(key.place, "names that begin with `MAINSTAY_` are set by Mainstay itself");
            }
            self.expressions(value, text, references);
            environment.insert(key.name.clone(), text.to_owned());
        }
        environment
    }

    fn secrets(&mut self, fields: &Fields<'_>, environment: &BTreeMap<String, String>) -> Vec<String> {
        let Some(node) = fields.get("secrets") else { return Vec::new() };
        if let Value::Map(_) = node.value {
            self.check.error_with_hint(
                node.place,
                "`secrets` is a list of names",
                "values are kept with `mainstay secrets set NAME`, never in the file: `secrets: [NAME]`",
            );
            return Vec::new();
        }
        let mut secrets: Vec<String> = Vec::new();
        for item in self.check.items(node, "`secrets`") {
            let Some(name) = self.check.text(item, "the name of a secret") else { continue };
            if let Err(why) = variable_name(name) {
                self.check.error(item.place, why);
            } else if environment.contains_key(name) {
                self.check.error(item.place, format!("`{name}` is both a secret and in `environment`"));
            } else if secrets.iter().any(|s| s == name) {
                self.check.error(item.place, format!("the secret `{name}` is named twice"));
            } else {
                secrets.push(name.to_owned());
            }
        }
        secrets
    }

    fn needs(&mut self, fields: &Fields<'_>) -> Option<Vec<(StepName, Place)>> {
        if let (Some(_), Some((key, _))) = (fields.get("needs"), fields.entry("depends_on")) {
            self.check.error(key.place, "`depends_on` is another word for `needs`; write only one of them");
        }
        let node = fields.get("needs").or_else(|| fields.get("depends_on"))?;
        let mut needs: Vec<(StepName, Place)> = Vec::new();
        for item in self.check.items(node, "`needs`") {
            let Some(name) = self.check.parsed::<StepName>(item, "`needs`") else { continue };
            if needs.iter().any(|(n, _)| *n == name) {
                self.check.error(item.place, format!("`{name}` is named twice"));
            } else {
                needs.push((name, item.place));
            }
        }
        Some(needs)
    }

    fn retries(&mut self, node: &Node, once: bool) -> Retries {
        // What is nobody's fault is tried again by default; a failing test is not.
        let usual = if once { vec![RetryOn::ImagePull] } else { vec![RetryOn::LostContainer, RetryOn::ImagePull] };
        let range = 0..=RETRIES_MAX;
        if let Value::Scalar(_) = node.value {
            let max = self.check.number(node, "`retries`", range).unwrap_or(0) as u32;
            return Retries { max, on: if max == 0 { Vec::new() } else { usual } };
        }
        let Some(fields) = self.check.fields(node, "`retries`", RETRIES_KEYS, &[]) else { return Retries::default() };
        let Some(max) = fields.get("max") else {
            self.check.error(node.place, "`retries` needs `max`: how many attempts may follow the first");
            return Retries::default();
        };
        let max = self.check.number(max, "`max`", range).unwrap_or(0) as u32;
        let on = match fields.get("on") {
            None => usual,
            Some(node) => {
                let mut on = Vec::new();
                for item in self.check.items(node, "`on`") {
                    let Some(kind) = self.check.word(item, "`on`", RETRY_WORDS) else { continue };
                    if once && kind != RetryOn::ImagePull {
                        self.check.error_with_hint(
                            item.place,
                            "a step marked `once` is never begun a second time",
                            "only `image-pull` can be retried: its process has not begun",
                        );
                    }
                    if !on.contains(&kind) {
                        on.push(kind);
                    }
                }
                on
            }
        };
        Retries { max, on }
    }

    fn resources(&mut self, node: &Node) -> Resources {
        let mut resources = Resources::default();
        let Some(fields) = self.check.fields(node, "`resources`", RESOURCES_KEYS, &[]) else { return resources };
        resources.millicpus = fields.get("cpus").and_then(|n| cpus(&mut self.check, n));
        resources.memory = fields.get("memory").and_then(|n| memory(&mut self.check, n));
        resources.pids = fields.get("pids").and_then(|n| pids(&mut self.check, n));
        resources
    }

    fn when(&mut self, node: &Node) -> Vec<WhenStatus> {
        let mut list = Vec::new();
        let Some(fields) = self.check.fields(node, "`when`", WHEN_KEYS, WHEN_LATER) else { return list };
        let Some(node) = fields.get("status") else { return vec![WhenStatus::Success] };
        for item in self.check.items(node, "`status`") {
            if matches!(&item.value, Value::Scalar(s) if s.text == "rolled-back") {
                self.check.error(item.place, "`rolled-back` is part of the language, but not of this version");
                continue;
            }
            for status in self.check.word(item, "`status`", STATUS_WORDS).unwrap_or_default() {
                if !list.contains(status) {
                    list.push(*status);
                }
            }
        }
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            self.check.error(node.place, "`status` is empty: the step would never run");
        }
        list
    }

    /// Resolves `needs`, and checks everything that more than one step has a say in.
    fn graph(&mut self, mut placed: Vec<Placed>, on: &Triggers) -> Vec<Step> {
        let graph_rules = placed.iter().any(|p| p.needs.is_some());
        let names: Vec<StepName> = placed.iter().map(|p| p.step.name.clone()).collect();
        for n in 0..placed.len() {
            if !graph_rules {
                placed[n].step.needs = n.checked_sub(1).map(|before| names[before].clone()).into_iter().collect();
                continue;
            }
            for (name, place) in placed[n].needs.clone().unwrap_or_default() {
                if names.contains(&name) {
                    placed[n].step.needs.push(name);
                    continue;
                }
                let known: Vec<&str> = names.iter().map(StepName::as_str).collect();
                let near = nearest(name.as_str(), &known).map(|near| format!("did you mean `{near}`?"));
                let finding = self.check.error(place, format!("there is no step `{name}`"));
                finding.hints.extend(near);
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
        for (n, p) in placed.iter().enumerate() {
            self.references(p, n, &needs, &names, on);
        }
        placed.into_iter().map(|p| p.step).collect()
    }

    fn references(&mut self, placed: &Placed, n: usize, needs: &Needs, names: &[StepName], on: &Triggers) {
        if placed.references.is_empty() {
            return;
        }
        let before = needs.before(n);
        for (reference, place) in &placed.references {
            match reference {
                Reference::Output { step, .. } => match names.iter().position(|name| name == step) {
                    None => {
                        let known: Vec<&str> = names.iter().map(StepName::as_str).collect();
                        let near = nearest(step.as_str(), &known).map(|near| format!("did you mean `{near}`?"));
                        self.check.error(*place, format!("there is no step `{step}`")).hints.extend(near);
                    }
                    Some(at) if !before.contains(&at) => self.check.error_with_hint(
                        *place,
                        format!("`{}` does not wait for `{step}`, whose output it uses", placed.step.name),
                        format!("add `{step}` to its `needs`"),
                    ),
                    Some(_) => {}
                },
                Reference::Input(name) => {
                    let known: Vec<&str> =
                        on.manual.iter().flat_map(|m| &m.inputs).map(|input| input.name.as_str()).collect();
                    if !known.contains(&name.as_str()) {
                        let near = nearest(name, &known).map(|near| format!("did you mean `{near}`?"));
                        let finding = self.check.error(*place, format!("there is no input `{name}`"));
                        finding.hints.push(near.unwrap_or_else(|| "inputs stand under `on.manual.inputs`".to_owned()));
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

/// CPUs as a number with at most three decimals: 0.1 to 1024.
pub(super) fn cpus(check: &mut Checker<'_>, node: &Node) -> Option<u64> {
    let text = check.text(node, "`cpus`")?;
    let millis = text.parse::<f64>().ok().filter(|c| (0.1..=1024.0).contains(c)).map(|c| (c * 1000.0).round() as u64);
    if millis.is_none() {
        check.error(node.place, "`cpus` is a number from 0.1 to 1024, such as `2` or `0.5`");
    }
    millis
}

/// Memory: at least the 6 MiB under which engines refuse a container.
pub(super) fn memory(check: &mut Checker<'_>, node: &Node) -> Option<ByteSize> {
    let size: ByteSize = check.parsed(node, "`memory`")?;
    if size.0 < 6 * 1024 * 1024 {
        check.error(node.place, "`memory` is at least 6MiB: less does not start");
    }
    Some(size)
}

/// Processes and threads. Under 10 not even a shell with a pipe and our helper fits.
pub(super) fn pids(check: &mut Checker<'_>, node: &Node) -> Option<u32> {
    check.number(node, "`pids`", 10..=4_194_304).map(|n| n as u32)
}

#[cfg(test)]
mod tests;
