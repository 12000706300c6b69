//! What the engine says of a stack, as settings that can be compared and instances that can be counted.
//!
//! Only settings that a stack file can hold stand here, by names that people know from it. What changes by itself, or with
//! every apply, does not: our labels, how many tasks are replaced at once, what an update does when it fails.

use super::hand_over::SECRETS;
use crate::model::deploy::{Instance, Observation};
use crate::runtime::docker::{SwarmService, SwarmTask};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

/// Enough of a digest to see that a value is another one, too little to try values against.
const DIGEST_CHARS: usize = 12;

/// Everything there is of a stack.
pub(super) fn observation(
    stack: &str,
    services: &[SwarmService],
    tasks: &[SwarmTask],
    networks: &HashMap<String, String>,
) -> Observation {
    let mut seen = Observation::default();
    for service in services {
        let name = short(stack, &service.name);
        for (item, value) in items(stack, &service.spec, networks) {
            seen.items.insert(format!("{name}.{item}"), value);
        }
        seen.instances.extend(instances(name, service, tasks));
    }
    seen
}

/// A service's name in the stack file.
pub(super) fn short<'a>(stack: &str, name: &'a str) -> &'a str {
    name.strip_prefix(stack).and_then(|rest| rest.strip_prefix('_')).unwrap_or(name)
}

/// A task's spec is its service's as it was then. The engine fits placement anew without a new task.
pub(super) fn is_of(task: &SwarmTask, service: &SwarmService) -> bool {
    template(&task.spec) == template(&service.spec["TaskTemplate"])
}

/// What of a task's spec makes the engine replace the task.
pub(super) fn template(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(entries) = spec.as_object_mut() {
        for name in ["Placement", "Runtime"] {
            entries.remove(name);
        }
        // Absent and zero are the same.
        if entries.get("ForceUpdate").is_some_and(|count| count == 0) {
            entries.remove("ForceUpdate");
        }
    }
    spec
}

fn instances<'a>(
    name: &'a str,
    service: &'a SwarmService,
    tasks: &'a [SwarmTask],
) -> impl Iterator<Item = Instance> + 'a {
    let ours: Vec<_> = tasks.iter().filter(|task| task.service == service.id).collect();
    let wanted: Vec<_> = ours.iter().copied().filter(|task| task.desired == "running").collect();
    wanted.into_iter().map(move |task| {
        let same_place = |other: &&&SwarmTask| match task.slot {
            0 => other.node == task.node,
            slot => other.slot == slot,
        };
        let ended = |other: &&&SwarmTask| {
            other.id != task.id && ["failed", "rejected", "complete"].contains(&other.state.as_str())
        };
        let restarts = ours.iter().filter(same_place).filter(ended).filter(|other| is_of(other, service)).count();
        let healthy = task.state == "running";
        let place = if task.slot == 0 { task.node.clone() } else { task.slot.to_string() };
        Instance {
            service: name.to_owned(),
            name: format!("{name}.{place}.{}", task.id),
            image: text(&task.spec["ContainerSpec"]["Image"]),
            healthy,
            restarts: restarts as u64,
            state: if healthy || task.error.is_empty() {
                task.state.clone()
            } else {
                format!("{}: {}", task.state, task.error)
            },
        }
    })
}

fn items(stack: &str, spec: &Value, networks: &HashMap<String, String>) -> BTreeMap<String, String> {
    let mut items = BTreeMap::new();
    let template = &spec["TaskTemplate"];
    let container = &template["ContainerSpec"];
    let mut put = |name: String, value: String| {
        if !value.is_empty() {
            items.insert(name, value);
        }
    };
    put("image".into(), text(&container["Image"]));
    put("mode".into(), spec["Mode"].as_object().and_then(|mode| mode.keys().next()).cloned().unwrap_or_default());
    put("replicas".into(), text(&spec["Mode"]["Replicated"]["Replicas"]));
    for entry in list(&container["Env"]) {
        let entry = text(entry);
        let (name, value) = entry.split_once('=').unwrap_or((&entry, ""));
        // An empty value is one as well.
        put(format!("env.{name}"), if value.is_empty() { "(empty)".to_owned() } else { value.to_owned() });
    }
    for (key, name) in [
        ("Command", "entrypoint"),
        ("Args", "command"),
        ("User", "user"),
        ("Dir", "working_dir"),
        ("Hostname", "hostname"),
        ("ReadOnly", "read_only"),
        ("Init", "init"),
        ("TTY", "tty"),
        ("StopSignal", "stop_signal"),
        ("Hosts", "extra_hosts"),
        ("DNSConfig", "dns"),
        ("Sysctls", "sysctls"),
        ("CapabilityAdd", "cap_add"),
        ("CapabilityDrop", "cap_drop"),
        ("Ulimits", "ulimits"),
        ("Groups", "groups"),
    ] {
        put(name.into(), text(&container[key]));
    }
    put("stop_grace_period".into(), span(&container["StopGracePeriod"]));
    let check = &container["Healthcheck"];
    put("healthcheck.test".into(), text(&check["Test"]));
    for (key, name) in [("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start_period")] {
        put(format!("healthcheck.{name}"), span(&check[key]));
    }
    put("healthcheck.retries".into(), text(&check["Retries"]));
    for mount in list(&container["Mounts"]) {
        let read_only = if mount["ReadOnly"] == true { " (read-only)" } else { "" };
        put(
            format!("volume.{}", text(&mount["Target"])),
            format!("{} {}{read_only}", text(&mount["Type"]), text(&mount["Source"])),
        );
    }
    for (kind, key, name) in [("config", "Configs", "ConfigName"), ("secret", "Secrets", "SecretName")] {
        for one in list(&container[key]) {
            put(format!("{kind}.{}", text(&one[name])), text(&one["File"]["Name"]));
        }
    }
    for network in list(&template["Networks"]) {
        let id = text(&network["Target"]);
        let name = networks.get(&id).map_or(id.as_str(), |name| short(stack, name)).to_owned();
        let mut aliases: Vec<_> = list(&network["Aliases"]).map(text).collect();
        aliases.sort();
        put(format!("network.{name}"), aliases.join(", "));
    }
    labels(&spec["Labels"], "deploy.label", &mut put);
    labels(&container["Labels"], "label", &mut put);
    let resources = &template["Resources"];
    for (part, name) in [("Limits", "limit"), ("Reservations", "reservation")] {
        put(
            format!("{name}.cpus"),
            resources[part]["NanoCPUs"].as_f64().map(|n| (n / 1e9).to_string()).unwrap_or_default(),
        );
        put(format!("{name}.memory"), text(&resources[part]["MemoryBytes"]));
        put(format!("{name}.pids"), text(&resources[part]["Pids"]));
    }
    let mut constraints: Vec<_> = list(&template["Placement"]["Constraints"]).map(text).collect();
    constraints.sort();
    put("constraints".into(), constraints.join(", "));
    put("max_replicas_per_node".into(), text(&template["Placement"]["MaxReplicas"]));
    let restart = &template["RestartPolicy"];
    put("restart.condition".into(), text(&restart["Condition"]));
    put("restart.delay".into(), span(&restart["Delay"]));
    put("restart.max_attempts".into(), text(&restart["MaxAttempts"]));
    put("logging".into(), text(&template["LogDriver"]));
    put("update.order".into(), text(&spec["UpdateConfig"]["Order"]));
    put("update.delay".into(), span(&spec["UpdateConfig"]["Delay"]));
    put("endpoint_mode".into(), text(&spec["EndpointSpec"]["Mode"]));
    for port in list(&spec["EndpointSpec"]["Ports"]) {
        let protocol = port["Protocol"].as_str().unwrap_or("tcp");
        let published =
            format!("{} {}", text(&port["PublishedPort"]), port["PublishMode"].as_str().unwrap_or("ingress"));
        put(format!("port.{}/{protocol}", text(&port["TargetPort"])), published);
    }
    hide(spec["Labels"][SECRETS].as_str().unwrap_or_default(), &mut items);
    items
}

/// Settings that hold secrets stand there as short digests.
fn hide(names: &str, items: &mut BTreeMap<String, String>) {
    for name in names.split(',').filter(|name| !name.is_empty()) {
        // A part of a setting is hidden with the whole: `healthcheck` is several items, and `labels` are `label.…`.
        let part =
            |item: &str, of: &str| item.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let of = |item: &str| part(item, name) || name.strip_suffix('s').is_some_and(|one| part(item, one));
        for (_, value) in items.iter_mut().filter(|(item, _)| of(item)) {
            let digest = hex::encode(Sha256::digest(value.as_bytes()));
            *value = format!("sha256:{}", &digest[..DIGEST_CHARS]);
        }
    }
}

fn labels(labels: &Value, prefix: &str, put: &mut impl FnMut(String, String)) {
    for (name, value) in labels.as_object().into_iter().flatten() {
        if !name.starts_with("mainstay.") && !name.starts_with("com.docker.stack.") {
            put(format!("{prefix}.{name}"), text(value));
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn span(nanos: &Value) -> String {
    match nanos.as_u64() {
        None | Some(0) => String::new(),
        Some(nanos) if nanos % 1_000_000_000 == 0 => format!("{}s", nanos / 1_000_000_000),
        Some(nanos) => format!("{}ms", nanos as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(env: &str) -> SwarmService {
        let spec = json!({
            "Name": "shop_api",
            "Labels": { "com.docker.stack.namespace": "shop", "mainstay.release": "3", "mainstay.secrets": "env.PASSWORD", "team": "a" },
            "TaskTemplate": {
                "ContainerSpec": { "Image": "api@sha256:1", "Env": [env, "PASSWORD=hunter22"] },
                "Networks": [{ "Target": "n1", "Aliases": ["api"] }],
                "RestartPolicy": { "Condition": "any", "Delay": 5_000_000_000_u64 },
                "Placement": { "Constraints": ["node.role==worker"] },
                "ForceUpdate": 0, "Runtime": "container",
            },
            "Mode": { "Replicated": { "Replicas": 2 } },
            "EndpointSpec": { "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host" }] },
        });
        SwarmService { id: "s".into(), name: "shop_api".into(), spec, update: None, message: String::new() }
    }

    fn task(id: &str, slot: u64, state: &str, desired: &str, env: &str) -> SwarmTask {
        let mut spec = service(env).spec["TaskTemplate"].clone();
        spec.as_object_mut().unwrap().remove("Runtime");
        SwarmTask {
            id: id.into(),
            service: "s".into(),
            slot,
            node: "n".into(),
            spec,
            state: state.into(),
            desired: desired.into(),
            since: String::new(),
            error: "task: non-zero exit (3)".into(),
            exit_code: None,
            container: None,
        }
    }

    #[test]
    fn settings_have_the_names_of_the_stack_file_and_secrets_are_digests() {
        let networks = HashMap::from([("n1".to_owned(), "shop_net".to_owned())]);
        let seen = observation("shop", &[service("LEVEL=info")], &[], &networks);
        let lines: Vec<_> = seen.items.iter().map(|(item, value)| format!("{item} = {value}")).collect();
        assert_eq!(
            lines,
            [
                "api.constraints = node.role==worker",
                "api.deploy.label.team = a",
                "api.env.LEVEL = info",
                "api.env.PASSWORD = sha256:20d2fe5e369d",
                "api.image = api@sha256:1",
                "api.mode = Replicated",
                "api.network.net = api",
                "api.port.80/tcp = 8080 host",
                "api.replicas = 2",
                "api.restart.condition = any",
                "api.restart.delay = 5s",
            ]
        );
    }

    #[test]
    fn restarts_are_the_failed_tasks_of_the_slot_that_had_the_same_spec() {
        let tasks = [
            task("a", 1, "running", "running", "LEVEL=info"),
            task("b", 1, "failed", "shutdown", "LEVEL=info"),
            task("c", 1, "complete", "shutdown", "LEVEL=info"),
            task("d", 1, "failed", "shutdown", "LEVEL=debug"),
            task("e", 1, "shutdown", "shutdown", "LEVEL=info"),
            task("f", 2, "starting", "running", "LEVEL=info"),
        ];
        let seen = observation("shop", &[service("LEVEL=info")], &tasks, &HashMap::new());
        let shown: Vec<_> =
            seen.instances.iter().map(|i| (i.name.as_str(), i.healthy, i.restarts, i.state.as_str())).collect();
        assert_eq!(
            shown,
            [("api.1.a", true, 2, "running"), ("api.2.f", false, 0, "starting: task: non-zero exit (3)")]
        );
    }
}
