//! What `doctor` asks the container engine. Speaks its HTTP API by itself, so that it can tell apart what the runtime
//! would report as one failure.

use super::machine::disk;
use super::{Check, State};
use crate::config::daemon::{DockerSettings, Ipv4Range};
use crate::deploy::target::swarm::has_routing_mesh;
use jiff::Timestamp;
use reqwest::{Client, Method, Url};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The prefix length of one run's network, as the Docker runtime cuts them.
const RUN_PREFIX: u8 = 25;
/// The oldest API that has what we use; Docker 20.10 has it.
const API_WANTED: (u64, u64) = (1, 41);
/// Log times of the engine and times of events are shown side by side.
const CLOCK_POOR_SECS: u64 = 2;
/// An engine that takes longer is no help.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Fewer than the steps that run at once by default, each possibly in a run of its own.
const NETWORKS_POOR: usize = 8;

struct Engine {
    http: Client,
    base: Url,
    shown: String,
}

pub(super) async fn look(settings: &DockerSettings, try_run: bool, checks: &mut Vec<Check>) {
    const NAME: &str = "container engine";
    let engine = match Engine::find(settings) {
        Ok(engine) => engine,
        Err(error) => {
            return checks.push(Check::missing(NAME, error, "set `runtime: { docker: { host: … } }` or DOCKER_HOST"));
        }
    };
    let version = match engine.get("version").await {
        Ok(version) => version,
        Err(error) => {
            let mut check =
                Check::missing(NAME, format!("{}: {error}", engine.shown), "start it: `systemctl start docker`");
            if error.contains("ermission denied") {
                check.mend = vec!["let the daemon's user use it: `usermod -aG docker USER`, then log in anew".into()];
            } else {
                check.mend.push(
                    "install it where there is none, or use `runtime: process` for repositories you trust".into(),
                );
            }
            return checks.push(check);
        }
    };
    checks.push(version_check(NAME, &engine.shown, &version));
    match engine.get("info").await {
        Ok(info) => {
            checks.push(clock(&info, Timestamp::now()));
            checks.push(kernel(&info));
            checks.push(swarm(&info, engine.is_local() && !has_routing_mesh()));
            let root = PathBuf::from(info["DockerRootDir"].as_str().unwrap_or("/var/lib/docker"));
            // Of an engine elsewhere the folder is not ours to look at.
            if engine.is_local() && root.is_dir() {
                checks.push(disk("engine disk", &root));
            }
        }
        Err(error) => checks.push(Check::poor("engine facts", error, "see the engine's log")),
    }
    match engine.get("networks").await {
        Ok(networks) => checks.push(run_networks(settings.networks, &networks)),
        Err(error) => checks.push(Check::poor("run networks", error, "see the engine's log")),
    }
    if try_run {
        checks.push(container(&engine).await);
    }
}

impl Engine {
    fn find(settings: &DockerSettings) -> Result<Engine, String> {
        let named = settings.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()));
        let shown = named.unwrap_or_else(|| "unix:///var/run/docker.sock".into());
        let builder = Client::builder().timeout(ANSWER_WITHIN).connect_timeout(Duration::from_secs(5));
        let (builder, base) = match shown.split_once("://") {
            Some(("unix", path)) => (builder.unix_socket(Path::new(path).to_owned()), "http://localhost/".to_owned()),
            Some(("tcp" | "http", rest)) => (builder, format!("http://{rest}/")),
            _ => return Err(format!("`{shown}` is no address of an engine")),
        };
        let base = Url::parse(&base).map_err(|error| format!("`{shown}`: {error}"))?;
        Ok(Engine { http: builder.build().map_err(|error| error.to_string())?, base, shown })
    }

    fn is_local(&self) -> bool {
        self.shown.starts_with("unix:")
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        self.ask(Method::GET, path, None).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, String> {
        let url = self.base.join(path).map_err(|error| error.to_string())?;
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(|error| innermost(&error))?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(|error| innermost(&error))?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        Err(value["message"].as_str().map_or_else(|| format!("it answered {status}"), str::to_owned))
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn version_check(name: &'static str, shown: &str, version: &Value) -> Check {
    let text = |key: &str| version[key].as_str().unwrap_or("?").to_owned();
    let found = format!("{} {} (API {}) at {shown}", text("Os"), text("Version"), text("ApiVersion"));
    let api =
        text("ApiVersion").split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match api {
        Some(api) if api >= API_WANTED => Check::good(name, found),
        _ => Check::missing(name, found, "install Docker 20.10 or newer (API 1.41)"),
    }
}

fn clock(info: &Value, now: Timestamp) -> Check {
    const NAME: &str = "engine clock";
    let Some(theirs) = info["SystemTime"].as_str().and_then(|text| text.parse::<Timestamp>().ok()) else {
        return Check::poor(NAME, "the engine does not tell its time", "compare `date` on both machines");
    };
    let apart = now.duration_since(theirs).unsigned_abs();
    if apart.as_secs() >= CLOCK_POOR_SECS {
        return Check::poor(
            NAME,
            format!("{} s apart from ours", apart.as_secs()),
            "run a time service (chrony, systemd-timesyncd) on both machines",
        );
    }
    Check::good(NAME, "agrees with ours")
}

/// What limits of steps rest on.
fn kernel(info: &Value) -> Check {
    const NAME: &str = "kernel";
    let found = format!(
        "{}, cgroups {}, storage {}",
        info["KernelVersion"].as_str().unwrap_or("?"),
        info["CgroupVersion"].as_str().unwrap_or("1"),
        info["Driver"].as_str().unwrap_or("?")
    );
    let limits = [("MemoryLimit", "memory"), ("PidsLimit", "pids"), ("CpuCfsQuota", "cpus")];
    let absent: Vec<&str> =
        limits.into_iter().filter(|(key, _)| info[key] == json!(false)).map(|(_, name)| name).collect();
    if absent.is_empty() {
        return Check::good(NAME, found);
    }
    let mend = "enable the cgroup controllers (on Debian: `cgroup_enable=memory` on the kernel's command line)";
    Check::poor(NAME, format!("{found}; limits without effect: {}", absent.join(", ")), mend)
}

/// Whether stacks can be deployed there.
fn swarm(info: &Value, no_mesh: bool) -> Check {
    const NAME: &str = "swarm";
    let swarm = &info["Swarm"];
    match (swarm["ControlAvailable"].as_bool(), swarm["LocalNodeState"].as_str()) {
        (Some(true), _) => {
            let nodes = swarm["Nodes"].as_u64().unwrap_or(1);
            let found = format!("a manager of {nodes} node{}", if nodes == 1 { "" } else { "s" });
            if no_mesh {
                return Check::good(
                    NAME,
                    format!(
                        "{found}; this kernel has no IPVS, so no routing mesh: use `endpoint_mode: dnsrr`, and `mode: host` for ports"
                    ),
                );
            }
            Check::good(NAME, found)
        }
        (_, None | Some("inactive")) => {
            Check::good(NAME, "none; `docker swarm init` makes one, for environments with `target: { swarm: … }`")
        }
        (_, Some(state)) => Check::poor(
            NAME,
            format!("no manager that can decide ({state}) {}", swarm["Error"].as_str().unwrap_or_default()).trim(),
            "name a manager as the `host` of environments that deploy stacks",
        ),
    }
}

/// How many more run networks fit into the configured range beside what the engine has already.
fn run_networks(range: Ipv4Range, networks: &Value) -> Check {
    const NAME: &str = "run networks";
    let taken: Vec<(u32, u32)> = networks
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|network| network["IPAM"]["Config"].as_array().into_iter().flatten())
        .filter_map(|config| span(config["Subnet"].as_str()?))
        .collect();
    let size = 1_u32 << (32 - RUN_PREFIX);
    let total = 1_usize << RUN_PREFIX.saturating_sub(range.prefix);
    let first = u32::from(range.address);
    let fit = (0..total)
        .map(|n| first + n as u32 * size)
        .filter(|start| taken.iter().all(|(from, to)| start + (size - 1) < *from || start > to))
        .count();
    let found = format!("{fit} of {total} fit into {range}");
    let mend =
        "set `runtime: { docker: { networks: … } }` to a larger or freer range; runs wait for a network meanwhile";
    match fit {
        0 => Check::missing(NAME, found, mend),
        1..NETWORKS_POOR => Check::poor(NAME, found, mend),
        _ => Check::good(NAME, found),
    }
}

/// First and last address of `10.0.0.0/8`; `None` for IPv6.
fn span(subnet: &str) -> Option<(u32, u32)> {
    let (address, prefix) = subnet.split_once('/')?;
    let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    let host = u32::MAX.checked_shr(prefix).unwrap_or(0);
    Some((address & !host, address | host))
}

/// Makes, starts and removes a container from the smallest image that is there.
async fn container(engine: &Engine) -> Check {
    const NAME: &str = "run a container";
    let images = match engine.get("images/json").await {
        Ok(images) => images,
        Err(error) => return Check::missing(NAME, error, "see the engine's log"),
    };
    let smallest =
        images.as_array().into_iter().flatten().min_by_key(|image| image["Size"].as_u64().unwrap_or(u64::MAX));
    let Some(image) = smallest.and_then(|image| image["Id"].as_str()) else {
        return Check::poor(NAME, "no image is there to try with", "`docker pull debian:12`, then look again");
    };
    let wish = json!({
        "Image": image, "Entrypoint": ["true"], "Cmd": [], "Labels": { "mainstay.doctor": "1" },
        "HostConfig": { "NetworkMode": "none", "Memory": 64 << 20, "PidsLimit": 64, "CapDrop": ["ALL"] },
    });
    let made = match engine.ask(Method::POST, "containers/create", Some(wish)).await {
        Ok(made) => made,
        Err(error) => return Check::missing(NAME, format!("failed to create one: {error}"), "see the engine's log"),
    };
    let Some(id) = made["Id"].as_str() else {
        return Check::missing(NAME, "the engine made one and does not say which", "see the engine's log");
    };
    let started = engine.ask(Method::POST, &format!("containers/{id}/start"), None).await;
    let ended = match &started {
        Ok(_) => engine.ask(Method::POST, &format!("containers/{id}/wait"), None).await.map(|_| ()),
        // An image without `true`: the engine came as far as the program itself.
        Err(error) if error.contains("executable file not found") || error.contains("no such file") => Ok(()),
        Err(error) => Err(error.clone()),
    };
    // On every way: nothing of ours stays.
    let removed = engine.ask(Method::DELETE, &format!("containers/{id}?force=true&v=true"), None).await;
    match (ended, removed) {
        (Ok(()), Ok(_)) => Check::good(NAME, "made, started and removed one"),
        (Ok(()), Err(error)) => Check {
            state: State::Poor,
            ..Check::missing(NAME, format!("failed to remove it: {error}"), format!("`docker rm -f {id}`"))
        },
        (Err(error), _) => Check::missing(
            NAME,
            format!("failed to start one: {error}"),
            "`docker run --rm debian:12 true` by hand shows more",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(subnets: &[&str]) -> Value {
        subnets.iter().map(|subnet| json!({ "IPAM": { "Config": [{ "Subnet": subnet }] } })).collect()
    }

    #[test]
    fn networks_of_others_take_their_room() {
        let range: Ipv4Range = "10.213.0.0/22".parse().unwrap();
        let found = |subnets: &[&str]| run_networks(range, &networks(subnets)).found;
        assert_eq!(found(&["172.17.0.0/16", "fd00::/8"]), "8 of 8 fit into 10.213.0.0/22");
        assert_eq!(found(&["10.213.0.0/25"]), "7 of 8 fit into 10.213.0.0/22");
        assert_eq!(found(&["10.213.0.64/26", "10.213.1.0/24"]), "5 of 8 fit into 10.213.0.0/22");
        assert_eq!(run_networks(range, &networks(&["10.0.0.0/8"])).state, State::Missing);
    }

    #[test]
    fn a_swarm_is_wanted_by_those_who_deploy_stacks_only() {
        let look = |swarm: Value, no_mesh| {
            let check = super::swarm(&json!({ "Swarm": swarm }), no_mesh);
            (check.state, check.found)
        };
        let manager = json!({ "LocalNodeState": "active", "ControlAvailable": true, "Nodes": 3 });
        assert_eq!(look(manager.clone(), false), (State::Good, "a manager of 3 nodes".to_owned()));
        assert!(look(manager, true).1.contains("no routing mesh"));
        assert_eq!(look(json!({ "LocalNodeState": "inactive", "ControlAvailable": false }), true).0, State::Good);
        let worker = json!({ "LocalNodeState": "active", "ControlAvailable": false, "Error": "" });
        assert_eq!(look(worker, false), (State::Poor, "no manager that can decide (active)".to_owned()));
    }

    #[test]
    fn a_clock_that_is_apart_is_told() {
        let now: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        assert_eq!(clock(&json!({ "SystemTime": "2026-03-01T10:00:01.5Z" }), now).state, State::Good);
        let late = clock(&json!({ "SystemTime": "2026-03-01T12:00:30.123456789+02:00" }), now);
        assert_eq!((late.state, late.found.as_str()), (State::Poor, "30 s apart from ours"));
        assert_eq!(clock(&Value::Null, now).state, State::Poor);
    }

    #[test]
    fn an_engine_that_is_too_old_is_missing() {
        let check =
            |api: &str| version_check("e", "x", &json!({ "Version": "1", "ApiVersion": api, "Os": "linux" })).state;
        assert_eq!((check("1.41"), check("1.52"), check("2.0")), (State::Good, State::Good, State::Good));
        assert_eq!((check("1.40"), check("")), (State::Missing, State::Missing));
    }

    #[test]
    fn limits_without_effect_are_named() {
        assert_eq!(kernel(&json!({ "MemoryLimit": true, "PidsLimit": true, "CpuCfsQuota": true })).state, State::Good);
        let check = kernel(&json!({ "MemoryLimit": false, "PidsLimit": true, "CpuCfsQuota": false }));
        assert!(check.found.ends_with("limits without effect: memory, cpus"), "{}", check.found);
    }
}
