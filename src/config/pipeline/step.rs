//! What stands under one step's name.

use super::{
    COMMANDS_MAX_BYTES, IMAGE_MAX_BYTES, Placed, RESOURCES_KEYS, RETRIES_KEYS, RETRIES_MAX, RETRY_WORDS, Reader,
    STATUS_WORDS, STEP_KEYS, STEP_LATER, Step, TIMEOUT_MIN, WHEN_KEYS, WHEN_LATER,
};
use crate::config::check::{Checker, Fields, variable_name};
use crate::config::expression::{self, Reference};
use crate::config::finding::shown;
use crate::config::yaml::{Node, Place, Value};
use crate::model::plan::{Resources, Retries, RetryOn, StepKind, WhenStatus};
use crate::model::{ByteSize, Span, StepName};
use std::collections::BTreeMap;

impl Reader<'_> {
    pub(super) fn step(&mut self, name: StepName, name_at: Place, node: &Node) -> Option<Placed> {
        let what = format!("the step `{name}`");
        let fields = self.check.fields(node, &what, STEP_KEYS, STEP_LATER)?;
        let mut references = Vec::new();
        let needs = self.needs(&fields);
        let timeout = fields.get("timeout").and_then(|node| {
            let span: Span = self.check.parsed(node, "`timeout`")?;
            if span.0 < TIMEOUT_MIN {
                self.check.error(node.place, "a timeout is at least 1s");
            }
            Some(span)
        });
        let allow_failure =
            fields.get("allow-failure").and_then(|n| self.check.boolean(n, "`allow-failure`")).unwrap_or(false);
        let when_status = match fields.get("when") {
            Some(node) => self.when(node),
            None => vec![WhenStatus::Success],
        };
        let empty = Step {
            name,
            kind: StepKind::Container,
            image: String::new(),
            commands: Vec::new(),
            args: Vec::new(),
            environment: BTreeMap::new(),
            secrets: Vec::new(),
            needs: Vec::new(),
            timeout,
            retries: Retries::default(),
            allow_failure,
            once: false,
            resources: Resources::default(),
            when_status,
        };
        let (step, kind_at) = match self.waiting_kind(&fields, &mut references) {
            Some((kind, kind_at)) => {
                self.approval_runs_on_success(&kind, &empty.when_status, fields.get("when"));
                (Step { kind, ..empty }, kind_at)
            }
            None => (self.container(empty, &fields, &what, name_at, &mut references), name_at),
        };
        Some(Placed { step, name_at, kind_at, needs, references })
    }

    /// What only a step in a container has.
    fn container(
        &mut self,
        step: Step,
        fields: &Fields<'_>,
        what: &str,
        name_at: Place,
        references: &mut Vec<(Reference, Place)>,
    ) -> Step {
        let image = self.image(fields, what, name_at, references);
        let commands = self.commands(fields, what);
        let args = self.text_list(fields, "args");
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
        let environment = self.environment(fields, references);
        let secrets = self.secrets(fields, &environment);
        let once = fields.get("once").and_then(|n| self.check.boolean(n, "`once`")).unwrap_or(false);
        let retries = fields.get("retries").map(|n| self.retries(n, once)).unwrap_or_default();
        let resources = fields.get("resources").map(|n| self.resources(n)).unwrap_or_default();
        let image = image.unwrap_or_default();
        Step { image, commands, args, environment, secrets, retries, once, resources, ..step }
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
                    "a step names the container image it runs in, such as `image: alpine:3`, or it is a `deploy`, an `approval`, a `backup` or a `restore`",
                );
            }
            return None;
        };
        let text = self.check.text(node, "`image`")?;
        let found = self.expressions(node, text, references);
        let plain = found == 0;
        if text.is_empty() || text.len() > IMAGE_MAX_BYTES {
            self.check.error(node.place, format!("an image has 1 to {IMAGE_MAX_BYTES} bytes"));
        } else if plain {
            self.is_image(node, text);
        }
        Some(text.to_owned())
    }

    /// Notes a text that is no image reference.
    pub(super) fn is_image(&mut self, node: &Node, text: &str) {
        if text.starts_with('-') || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:@+".contains(&b)) {
            self.check.error_with_hint(
                node.place,
                format!("`{}` is not an image reference", shown(text)),
                "write it as `NAME:TAG`, `HOST/PATH:TAG` or `NAME@sha256:DIGEST`; variables of the shell are not read here",
            );
        }
    }

    /// Notes what a text refers to; returns how many expressions there are.
    pub(super) fn expressions(&mut self, node: &Node, text: &str, references: &mut Vec<(Reference, Place)>) -> usize {
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
}

/// CPUs as a number with at most three decimals: 0.1 to 1024.
pub(in crate::config) fn cpus(check: &mut Checker<'_>, node: &Node) -> Option<u64> {
    let text = check.text(node, "`cpus`")?;
    let millis = text.parse::<f64>().ok().filter(|c| (0.1..=1024.0).contains(c)).map(|c| (c * 1000.0).round() as u64);
    if millis.is_none() {
        check.error(node.place, "`cpus` is a number from 0.1 to 1024, such as `2` or `0.5`");
    }
    millis
}

/// Memory: at least the 6 MiB under which engines refuse a container.
pub(in crate::config) fn memory(check: &mut Checker<'_>, node: &Node) -> Option<ByteSize> {
    let size: ByteSize = check.parsed(node, "`memory`")?;
    if size.0 < 6 * 1024 * 1024 {
        check.error(node.place, "`memory` is at least 6MiB: less does not start");
    }
    Some(size)
}

/// Processes and threads. Under 10 not even a shell with a pipe and our helper fits.
pub(in crate::config) fn pids(check: &mut Checker<'_>, node: &Node) -> Option<u32> {
    check.number(node, "`pids`", 10..=4_194_304).map(|n| n as u32)
}
