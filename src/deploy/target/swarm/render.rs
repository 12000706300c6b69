//! A stack file and a release's images become the one document that is handed to the engine's client.
//!
//! In come the file's text, images by service and texts for `${NAME}`; out goes JSON (which is YAML) with sorted keys, the
//! same for the same content, or all that is wrong with the file, each with its place. No I/O. Secrets stay `${NAME}` in
//! it, and a literal dollar is `$$`, as the engine's client reads it too.

use super::order::{Order, order_of};
use crate::config::finding::{Finding, Findings};
use crate::config::yaml::{self, Key, Kind, Node, Place, Scalar, Value as Written};
use crate::deploy::target::{RenderInput, Rendered};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The format of stack files, as far as every client from 20.10 on knows it.
const VERSION: &str = "3.9";
/// What a stack file may have at its top.
const TOP: [&str; 6] = ["version", "services", "networks", "volumes", "configs", "secrets"];
/// What a service of a stack file may have.
#[rustfmt::skip]
const SERVICE: [&str; 49] = [
    "build", "cap_add", "cap_drop", "cgroup_parent", "cgroupns_mode", "command", "configs", "container_name",
    "credential_spec", "depends_on", "deploy", "devices", "dns", "dns_search", "domainname", "entrypoint", "environment",
    "expose", "external_links", "extra_hosts", "healthcheck", "hostname", "image", "init", "ipc", "isolation", "labels",
    "links", "logging", "mac_address", "network_mode", "networks", "pid", "ports", "privileged", "read_only", "restart",
    "secrets", "security_opt", "shm_size", "stdin_open", "stop_grace_period", "stop_signal", "sysctls", "tmpfs", "tty",
    "user", "volumes", "working_dir",
];
/// Known as well, and rarely used.
const SERVICE_TOO: [&str; 2] = ["ulimits", "userns_mode"];
/// Where a number or a truth is wanted, and a variable may stand for it without quotes.
const TYPED: [&str; 14] = [
    "replicas",
    "parallelism",
    "max_failure_ratio",
    "max_attempts",
    "target",
    "published",
    "retries",
    "mode",
    "pids",
    "init",
    "read_only",
    "external",
    "attachable",
    "internal",
];
/// The engine asks a new task whether it is well this often; with its own default of 30 s a new version of two replicas
/// takes a minute to come up, and as long to be put back.
pub(super) const HEALTH_EVERY_NANOS: u64 = 1_000_000_000;
/// For so long after a task was replaced its failure counts against the update.
const MONITOR_NANOS: u64 = 1_000_000_000;

/// Puts images and variables into a stack file. `name` is the file's, for people.
pub(super) fn render(name: &str, input: &RenderInput, downtime_allowed: bool) -> Result<Rendered, Findings> {
    let source = input.file.as_deref().unwrap_or_default();
    let root = yaml::read(name, source)?;
    let mut reader = Reader { source, input, wrong: Vec::new() };
    let mut document = reader.document(&root);
    if reader.wrong.is_empty() {
        reader.images(&root, &mut document);
    }
    let mut replicas = BTreeMap::new();
    if reader.wrong.is_empty() {
        for (service, place) in services_of(&root) {
            let value = &mut document["services"][&service];
            reader.roll_out(&service, place, value, downtime_allowed);
            if let Some(count) = replicas_of(value) {
                replicas.insert(service, count);
            }
        }
    }
    if !reader.wrong.is_empty() {
        return Err(Findings::new(name, source, reader.wrong));
    }
    document.sort_all_objects();
    let text = serde_json::to_string_pretty(&document).unwrap_or_default() + "\n";
    Ok(Rendered { text, replicas })
}

struct Reader<'a> {
    source: &'a str,
    input: &'a RenderInput,
    wrong: Vec<Finding>,
}

impl Reader<'_> {
    fn error(&mut self, place: Place, message: impl AsRef<str>) {
        self.wrong.push(Finding::at(self.source, place, message));
    }

    fn error_with_hint(&mut self, place: Place, message: impl AsRef<str>, hint: impl AsRef<str>) {
        self.wrong.push(Finding::at(self.source, place, message).hint(hint));
    }

    fn document(&mut self, root: &Node) -> Value {
        let Written::Map(entries) = &root.value else {
            self.error(root.place, "a stack file is a map with `services`");
            return Value::Null;
        };
        for (key, node) in entries {
            let what = key.name.as_str();
            match what {
                "version" => self.version(node),
                "services" => self.services(node),
                "configs" | "secrets" => self.files(what, node),
                "name" => self.error_with_hint(
                    key.place,
                    "`name` is no part of a stack file",
                    "the stack's name stands in `mainstay.yml`",
                ),
                _ if TOP.contains(&what) || what.starts_with("x-") => {}
                _ => self.error(key.place, format!("`{what}` is not known at the top of a stack file")),
            }
        }
        if !entries.iter().any(|(key, _)| key.name == "services") {
            self.error(root.place, "there are no `services`");
        }
        let mut document = Map::new();
        for (key, node) in entries.iter().filter(|(key, _)| !key.name.starts_with("x-")) {
            document.insert(key.name.clone(), self.value(&key.name, node));
        }
        let newer = document.get("version").and_then(Value::as_str).is_some_and(|version| minor(version) > Some(9));
        if !newer {
            document.insert("version".to_owned(), json!(VERSION));
        }
        Value::Object(document)
    }

    fn version(&mut self, node: &Node) {
        let text = scalar(node).map(|scalar| scalar.text.as_str()).unwrap_or_default();
        if text != "3" && minor(text).is_none() {
            let hint = "write `version: \"3.8\"`, or leave it out; files of version 2 are for Compose";
            self.error_with_hint(node.place, "a stack file has version 3", hint);
        }
    }

    fn services(&mut self, node: &Node) {
        let Written::Map(services) = &node.value else {
            return self.error(node.place, "`services` is a map of services by name");
        };
        if services.is_empty() {
            self.error(node.place, "there is no service");
        }
        for (name, service) in services {
            let Written::Map(entries) = &service.value else {
                self.error(name.place, format!("service `{}` is a map", name.name));
                continue;
            };
            for (key, node) in entries {
                self.service_key(key, node);
            }
        }
    }

    fn service_key(&mut self, key: &Key, node: &Node) {
        let what = key.name.as_str();
        match what {
            "env_file" | "extends" => self.error_with_hint(
                key.place,
                format!("`{what}` names another file, and a release is this file alone"),
                "write the variables under `environment`; `${NAME}` takes them from `variables` of the environment",
            ),
            "labels" => self.labels(node),
            "deploy" => {
                if !matches!(node.value, Written::Map(_)) {
                    self.error(node.place, "`deploy` is a map");
                }
                for (key, node) in entries(node) {
                    if key.name == "labels" {
                        self.labels(node);
                    }
                }
            }
            _ if SERVICE.contains(&what) || SERVICE_TOO.contains(&what) || what.starts_with("x-") => {}
            _ => self.error(key.place, format!("`{what}` is not known in a service of a stack file")),
        }
    }

    /// Ours say what belongs to which daemon; a clean-up goes by them.
    fn labels(&mut self, node: &Node) {
        let mut refuse = |place: Place, name: &str| {
            if name.starts_with("mainstay.") {
                self.error(place, "labels that begin with `mainstay.` are Mainstay's own");
            }
        };
        match &node.value {
            Written::Map(entries) => entries.iter().for_each(|(key, _)| refuse(key.place, &key.name)),
            Written::List(items) => items.iter().for_each(|item| {
                refuse(item.place, scalar(item).map(|scalar| scalar.text.as_str()).unwrap_or_default());
            }),
            _ => {}
        }
    }

    /// Configs and secrets that come from files beside this one are not part of a release.
    fn files(&mut self, what: &str, node: &Node) {
        for (_, one) in entries(node) {
            for (key, _) in entries(one).iter().filter(|(key, _)| key.name == "file") {
                let kind = what.trim_end_matches('s');
                self.error_with_hint(
                    key.place,
                    "`file` names another file, and a release is this file alone",
                    format!("make it with `docker {kind} create NAME FILE`, and say `external: true` here"),
                );
            }
        }
    }

    fn value(&mut self, key: &str, node: &Node) -> Value {
        match &node.value {
            Written::Null => Value::Null,
            Written::Scalar(scalar) => self.scalar(key, scalar, node.place),
            Written::List(items) => items.iter().map(|item| self.value("", item)).collect(),
            Written::Map(entries) => {
                let filled = entries.iter().filter(|(key, _)| !key.name.starts_with("x-"));
                Value::Object(filled.map(|(key, node)| (key.name.clone(), self.value(&key.name, node))).collect())
            }
        }
    }

    fn scalar(&mut self, key: &str, scalar: &Scalar, place: Place) -> Value {
        match scalar.kind {
            Kind::Bool => Value::Bool(scalar.text == "true"),
            Kind::Number => number(&scalar.text).unwrap_or_else(|| Value::String(scalar.text.clone())),
            Kind::Text => match fill(&scalar.text, self.input) {
                Ok(text) if text != scalar.text && TYPED.contains(&key) => match text.as_str() {
                    "true" => Value::Bool(true),
                    "false" => Value::Bool(false),
                    _ => number(&text).unwrap_or(Value::String(text)),
                },
                Ok(text) => Value::String(text),
                Err((message, hint)) => {
                    self.error_with_hint(place, message, hint);
                    Value::Null
                }
            },
        }
    }

    /// Every service gets the release's image, if it has one for it.
    fn images(&mut self, root: &Node, document: &mut Value) {
        let places: BTreeMap<_, _> = services_of(root).collect();
        for (service, image) in &self.input.images {
            if !places.contains_key(service) {
                let known: Vec<_> = places.keys().map(|name| format!("`{name}`")).collect();
                let message = format!("the release has an image for `{service}`, and the file has no such service");
                self.wrong.push(Finding::general(message).hint(format!("its services are {}", known.join(", "))));
                continue;
            }
            document["services"][service]["image"] = json!(image.replace('$', "$$"));
        }
        for (service, place) in places {
            let value = &mut document["services"][&service];
            // What it is built from is another's matter.
            value.as_object_mut().map(|entries| entries.remove("build"));
            if value["image"].as_str().is_none_or(str::is_empty) {
                let hint = "write `image` in the file, or give the deploy step an image for it";
                self.error_with_hint(place, format!("service `{service}` has no image"), hint);
            }
        }
    }

    /// How the engine brings a new version up: the old one goes when the new one is well, and comes back when it is not.
    fn roll_out(&mut self, name: &str, place: Place, service: &mut Value, downtime_allowed: bool) {
        let mode = service["deploy"]["mode"].as_str().unwrap_or("replicated");
        if !["replicated", "global"].contains(&mode) {
            let hint = "run what ends by itself as a step of the pipeline, before the deploy";
            return self.error_with_hint(place, format!("service `{name}` is a job (`mode: {mode}`)"), hint);
        }
        let order = match order_of(name, service, downtime_allowed) {
            Ok(order) => order,
            Err((message, hint)) => return self.error_with_hint(place, message, hint),
        };
        let order = match order {
            Order::StartFirst => "start-first",
            Order::StopFirst => "stop-first",
        };
        if !service["deploy"].is_object() {
            service["deploy"] = json!({});
        }
        for part in ["update_config", "rollback_config"] {
            if !service["deploy"][part].is_object() {
                service["deploy"][part] = json!({});
            }
        }
        let update = &mut service["deploy"]["update_config"];
        update["order"] = json!(order);
        update["failure_action"] = json!("rollback");
        update["monitor"] = at_most(&update["monitor"], MONITOR_NANOS);
        if update["parallelism"].is_null() {
            update["parallelism"] = json!(1);
        }
        let back = &mut service["deploy"]["rollback_config"];
        *back = json!({ "order": order, "parallelism": 0, "failure_action": "pause", "monitor": at_most(&Value::Null, MONITOR_NANOS) });
        if let Some(check) = service.get_mut("healthcheck").filter(|check| check.is_object()) {
            healthcheck(check);
        }
    }
}

/// Asked every second at least; what tolerates a long pause goes on doing so, by more retries.
fn healthcheck(check: &mut Value) {
    let off = check["disable"] == json!(true) || check["test"][0] == json!("NONE");
    if off {
        return;
    }
    let written = check["interval"].as_str().and_then(nanos);
    if let (Some(interval), Some(retries)) = (written, check["retries"].as_u64())
        && interval > HEALTH_EVERY_NANOS
    {
        check["retries"] = json!(retries.saturating_mul(interval.div_ceil(HEALTH_EVERY_NANOS)));
    }
    check["interval"] = at_most(&check["interval"], HEALTH_EVERY_NANOS);
}

fn at_most(written: &Value, limit: u64) -> Value {
    match written.as_str().and_then(nanos) {
        // Zero is the engine's word for its default.
        Some(nanos) if nanos > 0 && nanos <= limit => written.clone(),
        _ => json!("1s"),
    }
}

/// `1m30s`, `500ms`, `1.5h`: as the engine's client writes spans.
fn nanos(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let units = [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
        let (word, factor) = units
            .into_iter()
            .find(|(word, _)| unit.starts_with(word) && !unit[word.len()..].starts_with(|c: char| c.is_alphabetic()))?;
        total += amount * factor;
        rest = &unit[word.len()..];
    }
    (total > 0.0 || text.trim().starts_with('0')).then_some(total as u64)
}

fn replicas_of(service: &Value) -> Option<u64> {
    match service["deploy"]["mode"].as_str() {
        Some("global") => None,
        _ => Some(service["deploy"]["replicas"].as_u64().unwrap_or(1)),
    }
}

fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("3.")?.parse().ok()
}

fn scalar(node: &Node) -> Option<&Scalar> {
    match &node.value {
        Written::Scalar(scalar) => Some(scalar),
        _ => None,
    }
}

fn entries(node: &Node) -> &[(Key, Node)] {
    match &node.value {
        Written::Map(entries) => entries,
        _ => &[],
    }
}

/// Names of the services, and where each is written.
fn services_of(root: &Node) -> impl Iterator<Item = (String, Place)> {
    let services = entries(root).iter().filter(|(key, _)| key.name == "services");
    services.flat_map(|(_, node)| entries(node)).map(|(key, _)| (key.name.clone(), key.place))
}

/// A number as the engine's client would read it: file modes are written with a leading zero.
fn number(text: &str) -> Option<Value> {
    let digits = text.replace('_', "");
    let radix =
        |prefix: &str, radix| digits.strip_prefix(prefix).and_then(|rest| u64::from_str_radix(rest, radix).ok());
    if let Some(value) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Some(json!(value));
    }
    if let Some(rest) = digits.strip_prefix('0').filter(|rest| !rest.is_empty())
        && let Ok(value) = u64::from_str_radix(rest, 8)
    {
        return Some(json!(value));
    }
    let whole = digits.parse::<u64>().map(|n| json!(n)).or_else(|_| digits.parse::<i64>().map(|n| json!(n)));
    whole.ok().or_else(|| digits.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| json!(n)))
}

type Wrong = (String, String);

/// Puts in what is no secret.
fn fill(text: &str, input: &RenderInput) -> Result<String, Wrong> {
    let wrong = |message: String, hint: &str| Err((message, hint.to_owned()));
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push_str("$$");
            rest = after;
            continue;
        }
        let Some(inner) = after.strip_prefix('{') else {
            return wrong("a `$` stands alone".to_owned(), "write `${NAME}` for a variable, `$$` for a dollar");
        };
        let Some(end) = inner.find('}') else {
            return wrong("`${` has no `}` after it".to_owned(), "write `$${` for a plain `${`");
        };
        let (name, otherwise) = match inner[..end].split_once(":-") {
            Some((name, otherwise)) => (name, Some(otherwise)),
            None => (&inner[..end], None),
        };
        let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !named || name.as_bytes()[0].is_ascii_digit() {
            let hint = "there are `${NAME}` and `${NAME:-otherwise}`; write `$$` for a dollar";
            return wrong(format!("`${{{name}}}` is not understood"), hint);
        }
        if input.secret_names.iter().any(|secret| secret == name) {
            out.push_str(&format!("${{{name}}}"));
        } else {
            match input.variables.get(name).map(String::as_str).or(otherwise) {
                Some(value) => out.push_str(&value.replace('$', "$$")),
                None => {
                    let hint = format!("set it under `variables` of the environment in `mainstay.yml`: `{name}: …`");
                    return Err((format!("the variable `{name}` is not set"), hint));
                }
            }
        }
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests;
