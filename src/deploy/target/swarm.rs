//! Stacks of a Docker swarm.
//!
//! In comes a release, whose rendered form is a stack file; it is handed to the engine's own client, and the engine brings
//! the services to it: a new task beside the old one, and the old one goes when the new one is well. This room looks on
//! until that is over, and says in words what went wrong. It never stops or scales anything itself; only after all of a
//! release serves, services that it no longer has are removed. Everything carries the stack's name, so that a successor
//! of a daemon that died finds it. Called by `deploy`.

mod client;
mod hand_over;
mod observe;
mod order;
mod render;
mod rollout;

use super::{Apply, Left, RenderInput, Rendered, Target, TargetError};
use crate::config::daemon::environment::SwarmTarget;
use crate::logs::mask::Masker;
use crate::model::deploy::Observation;
use crate::runtime::RuntimeError;
use crate::runtime::docker::{SwarmManager, SwarmState};
use async_trait::async_trait;
use client::Client;
use rollout::{Look, Rollout, Verdict};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How often the engine is asked how far it is. Each look costs it a few milliseconds; people notice half a second.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// An engine that is away for a moment, as in a restart or while managers elect, is asked again for so long.
const AWAY_MAX: Duration = Duration::from_secs(15);
/// The engine puts a service back in a few seconds; afterwards the caller does it.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Stopping the tasks of a stack: the usual grace of 10 s, several times over on a busy machine.
const REMOVED_WITHIN: Duration = Duration::from_secs(120);
/// How often the client is asked again to remove what was still used.
const REMOVE_EVERY: Duration = Duration::from_secs(2);
/// What a task printed at its end: enough for an error, and it fits into a mail.
const LOG_LINES: usize = 8;
/// A longer line is data, not a message.
const LINE_CHARS_MAX: usize = 300;

/// A stack of a swarm.
pub struct Swarm {
    stack: String,
    file: String,
    manager: SwarmManager,
    client: Client,
    downtime_allowed: bool,
}

impl Swarm {
    /// Prepares to speak with a manager, and reaches out to nobody.
    ///
    /// # Errors
    /// When the manager's address cannot be one.
    pub fn new(config: &SwarmTarget, downtime_allowed: bool) -> Result<Self, TargetError> {
        let manager = SwarmManager::new(config.host.as_deref()).map_err(error)?;
        Ok(Swarm {
            stack: config.name.clone(),
            file: config.stack.clone(),
            client: Client::new(manager.endpoint()),
            manager,
            downtime_allowed,
        })
    }

    async fn look(&self) -> Result<Look, RuntimeError> {
        let services = self.manager.services(&self.stack).await?;
        let tasks = self.manager.tasks(&self.stack).await?;
        // Only where something seems to be left running is it asked whether that may be believed.
        let doubtful = tasks.iter().any(|task| task.desired != "running" && task.state == "running");
        let silent = if doubtful { self.manager.silent_nodes().await? } else { Default::default() };
        Ok(Look { services, tasks, silent })
    }

    async fn manager_state(&self) -> Result<SwarmState, TargetError> {
        let state = self.manager.state().await.map_err(error)?;
        if state.is_manager {
            return Ok(state);
        }
        let endpoint = self.manager.endpoint();
        let (what, hint) = match state.state.as_str() {
            "inactive" => (
                "is part of no swarm".to_owned(),
                "`docker swarm init` there makes it one of a single node, which is enough".to_owned(),
            ),
            "locked" => ("is a locked manager".to_owned(), "`docker swarm unlock` there".to_owned()),
            "active" if state.error.is_empty() => {
                ("is a worker of its swarm".to_owned(), "name a manager as the target's `host`".to_owned())
            }
            other => (
                format!("is in a swarm that cannot decide ({other}) {}", state.error).trim().to_owned(),
                "more than half of the managers have to be there: `docker node ls`".to_owned(),
            ),
        };
        Err(TargetError::Missing(format!("use the swarm: the engine at {endpoint} {what}\nhint: {hint}")))
    }

    /// An image that only this engine has cannot run elsewhere; one that nobody has cannot run at all.
    async fn check_images(&self, document: &Value, nodes: u64) -> Result<(), TargetError> {
        let services = document["services"].as_object().into_iter().flatten();
        for (service, image) in services.filter_map(|(name, service)| Some((name, service["image"].as_str()?))) {
            // Its digest says what it is, and a registry has it.
            if image.contains('@') {
                continue;
            }
            let is_id = image.starts_with("sha256:");
            let known = self.manager.image(image).await.map_err(error)?;
            if is_id && known.is_none() {
                return Err(TargetError::Missing(format!(
                    "bring up the release: the image of `{service}` is {image}, which this engine does not have any more\n\
                     hint: build it again, or push images to a registry: then a release names them by digest"
                )));
            }
            let only_here = is_id || known.is_some_and(|image| image.digests.is_empty());
            if nodes > 1 && only_here {
                return Err(TargetError::Missing(format!(
                    "bring up the release: the image of `{service}` is only on one of the {nodes} nodes of the swarm\n\
                     hint: push it to a registry that all nodes reach, and let the release name it by digest"
                )));
            }
        }
        Ok(())
    }

    /// The client keeps an image that somebody set by hand as long as the file says what it said before; without its own
    /// note of that it does not.
    async fn forget_images_set_by_hand(&self, look: &Look, document: &Value) -> Result<(), client::Refused> {
        const NOTE: &str = "com.docker.stack.image";
        for service in &look.services {
            let name = observe::short(&self.stack, &service.name);
            let wanted = document["services"][name]["image"].as_str().map(|image| image.replace("$$", "$"));
            let noted = service.spec["Labels"][NOTE].as_str();
            let is = service.spec["TaskTemplate"]["ContainerSpec"]["Image"].as_str();
            if wanted.as_deref() == noted && wanted.as_deref() != is {
                self.client.label(&service.name, NOTE, "").await?;
            }
        }
        Ok(())
    }

    /// Looks on until all wanted services are done, or one is bad.
    async fn follow(
        &self,
        rollout: &mut Rollout<'_>,
        wanted: &[String],
        apply: &Apply<'_>,
        until: Instant,
    ) -> Result<(), TargetError> {
        let mut told = BTreeMap::new();
        let mut heard = Instant::now();
        let mut back_until = None;
        loop {
            let look = match self.look().await {
                Ok(look) => look,
                Err(_) if heard.elapsed() < AWAY_MAX => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(lost) => return Err(error(lost)),
            };
            heard = Instant::now();
            let verdicts = rollout.judge(wanted, &look);
            for (name, verdict) in &verdicts {
                let line = match verdict {
                    Verdict::Done => "serves the release".to_owned(),
                    Verdict::Going(line) => line.clone(),
                    Verdict::GoingBack(line) => format!("is put back by the engine: {line}"),
                    Verdict::Bad { why, .. } => format!("did not come up: {why}"),
                };
                if told.insert(name.clone(), line.clone()).as_ref() != Some(&line) {
                    (apply.progress)(format!("{name}: {line}"));
                }
            }
            if verdicts.values().all(|verdict| *verdict == Verdict::Done) {
                return Ok(());
            }
            let bad = verdicts.iter().find_map(|(name, verdict)| match verdict {
                Verdict::Bad { why, put_back } => Some((name, why, *put_back)),
                _ => None,
            });
            let going_back = verdicts.iter().find(|(_, verdict)| matches!(verdict, Verdict::GoingBack(_)));
            if let Some((name, why, put_back)) = bad {
                let left = if put_back { self.left(rollout, &look).await } else { Left::Mixed };
                return Err(self.bad(rollout, name, why, &look, left, apply).await);
            }
            if let Some((name, Verdict::GoingBack(why))) = going_back {
                let until = *back_until.get_or_insert_with(|| Instant::now() + BACK_WITHIN);
                // With others on the new release there is nothing to wait for: the caller puts all of them back.
                if rollout.others_changed(name, &look) || Instant::now() > until {
                    return Err(self.bad(rollout, name, why, &look, Left::Mixed, apply).await);
                }
            } else if Instant::now() > until {
                let late = verdicts.iter().find_map(|(name, verdict)| match verdict {
                    Verdict::Going(line) => Some((name, line)),
                    _ => None,
                });
                if let Some((name, line)) = late {
                    let why = format!("not up within {} s: {line}", apply.timeout.as_secs());
                    let left = if rollout.is_as_before(&look) { Left::Before } else { Left::Mixed };
                    return Err(self.bad(rollout, name, &why, &look, left, apply).await);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What the stack holds after the engine put a service back; what it just stopped is given the time to end.
    async fn left(&self, rollout: &Rollout<'_>, look: &Look) -> Left {
        let until = Instant::now() + BACK_WITHIN;
        let mut look = look.clone();
        loop {
            if rollout.is_as_before(&look) {
                return Left::Before;
            }
            let changed =
                look.services.iter().any(|one| rollout.others_changed(observe::short(&self.stack, &one.name), &look));
            if changed || Instant::now() > until {
                return Left::Mixed;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            look = match self.look().await {
                Ok(look) => look,
                Err(_) => return Left::Mixed,
            };
        }
    }

    async fn bad(
        &self,
        rollout: &Rollout<'_>,
        name: &str,
        why: &str,
        look: &Look,
        left: Left,
        apply: &Apply<'_>,
    ) -> TargetError {
        let mut words = format!("service `{name}`: {why}");
        if let Some(task) = rollout.culprit(name, look) {
            // `finished`, `started` say nothing of what is wrong.
            let said = !["finished", "started", ""].contains(&task.error.as_str());
            if said && !why.contains(&task.error) {
                words.push_str(&format!("; its task said: {}", task.error));
            }
            if let Some(code) = task.exit_code.filter(|code| *code != 0 && !task.error.contains(&format!("({code})"))) {
                words.push_str(&format!("; exit code {code}"));
            }
            if let Some(container) = &task.container
                && let Some(said) = self.manager.health_output(container).await
            {
                words.push_str(&format!("; its health check said: {}", last_lines(&said, 2)));
            }
            let log = last_lines(&self.manager.log_end(&task.id, LOG_LINES).await, LOG_LINES);
            if !log.is_empty() {
                words.push_str(&format!("; it printed last:\n{log}"));
            }
        }
        // What a program prints may be what it was given.
        let masker = Masker::new(apply.secrets.values().map(|value| value.clone().into_bytes()));
        let masked: Vec<_> = words
            .lines()
            .map(|line| String::from_utf8_lossy(&masker.mask_line(line.as_bytes())).into_owned())
            .collect();
        TargetError::Bad { why: masked.join("\n"), left }
    }
}

/// The last lines of a text that a stranger wrote, fit for a terminal.
fn last_lines(text: &str, lines: usize) -> String {
    let clean = |line: &str| -> String {
        line.chars().filter(|c| !c.is_control()).take(LINE_CHARS_MAX).collect::<String>().trim_end().to_owned()
    };
    let all: Vec<_> = text.lines().map(clean).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn error(error: RuntimeError) -> TargetError {
    match error {
        RuntimeError::Unreachable { endpoint, detail } => TargetError::Unreachable { endpoint, detail },
        other => TargetError::Missing(other.to_string()),
    }
}

#[async_trait]
impl Target for Swarm {
    fn kind(&self) -> &'static str {
        "swarm"
    }

    async fn ping(&self) -> Result<String, TargetError> {
        let state = self.manager_state().await?;
        let client = match self.client.look().await {
            Ok(version) => version,
            Err(refused) => refused.error(self.manager.endpoint())?,
        };
        let nodes = if state.nodes == 1 { "1 node".to_owned() } else { format!("{} nodes", state.nodes) };
        let mesh = match has_routing_mesh() {
            true => String::new(),
            false if self.manager.endpoint().starts_with("unix:") => {
                "; this kernel has no IPVS, so no routing mesh: use `endpoint_mode: dnsrr`, and publish ports with `mode: host`"
                    .to_owned()
            }
            false => String::new(),
        };
        Ok(format!("Docker {}, a swarm of {nodes}, client {client}{mesh}", state.version))
    }

    async fn pin(&self, image: &str) -> Result<String, TargetError> {
        if image.contains('@') || image.starts_with("sha256:") {
            return Ok(image.to_owned());
        }
        // One that is not here yet is the registry's to name; the swarm pulls it by its tag.
        let Some(known) = self.manager.image(image).await.map_err(error)? else { return Ok(image.to_owned()) };
        let last = image.rfind('/').map_or(0, |at| at + 1);
        let name = image[last..].find(':').map_or(image, |at| &image[..last + at]);
        let named = known.digests.into_iter().find(|digest| digest.split('@').next() == Some(name));
        Ok(named.unwrap_or(known.id))
    }

    fn render(&self, input: &RenderInput) -> Result<Rendered, TargetError> {
        render::render(&self.file, input, self.downtime_allowed).map_err(|findings| {
            let place =
                |line: usize| if line == 0 { findings.file.clone() } else { format!("{}:{line}", findings.file) };
            let lines: Vec<_> = findings
                .list
                .iter()
                .map(|one| {
                    let hints: String = one.hints.iter().map(|hint| format!("\nhint: {hint}")).collect();
                    format!("{}: {}{hints}", place(one.line), one.message)
                })
                .collect();
            TargetError::Render(lines.join("\n"))
        })
    }

    async fn apply(&self, apply: &Apply<'_>) -> Result<(), TargetError> {
        let until = Instant::now() + apply.timeout;
        let state = self.manager_state().await?;
        let before = self.look().await.map_err(error)?;
        let mut rollout = Rollout::new(&self.stack, apply.release.number, before.clone());
        let document = hand_over::document(apply.release, apply.secrets, &rollout.manners())?;
        self.check_images(&document, state.nodes).await?;
        let wanted: Vec<String> =
            document["services"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
        let handed = async {
            self.forget_images_set_by_hand(&before, &document).await?;
            self.client.deploy(&self.stack, &document.to_string()).await
        };
        match handed.await {
            Ok(said) => {
                said.into_iter().filter(|line| !line.contains("detach")).for_each(|line| (apply.progress)(line));
            }
            Err(refused) => {
                let why = refused.error(self.manager.endpoint())?;
                let look = self.look().await.map_err(error)?;
                let left = if rollout.is_as_before(&look) { Left::Before } else { Left::Mixed };
                return Err(TargetError::Bad { why: last_lines(&why, LOG_LINES), left });
            }
        }
        self.follow(&mut rollout, &wanted, apply, until).await?;
        for service in &before.services {
            let name = observe::short(&self.stack, &service.name);
            if !wanted.iter().any(|wanted| wanted == name) {
                (apply.progress)(format!("{name}: is not in the release, and is removed"));
                self.manager.remove_service(&service.id).await.map_err(error)?;
            }
        }
        Ok(())
    }

    async fn observe(&self) -> Result<Observation, TargetError> {
        self.manager_state().await?;
        let look = self.look().await.map_err(error)?;
        let networks = self.manager.network_names().await.map_err(error)?;
        Ok(observe::observation(&self.stack, &look.services, &look.tasks, &networks))
    }

    async fn remove(&self) -> Result<(), TargetError> {
        self.manager_state().await?;
        let until = Instant::now() + REMOVED_WITHIN;
        loop {
            let left = self.manager.left(&self.stack).await.map_err(error)?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(TargetError::Missing(format!(
                    "remove the stack `{}`: the engine still has {} after {} s",
                    self.stack,
                    left.join(", "),
                    REMOVED_WITHIN.as_secs()
                )));
            }
            if left.iter().any(|one| !one.starts_with("container"))
                && let Err(refused) = self.client.remove(&self.stack).await
            {
                let why = refused.error(self.manager.endpoint())?;
                tracing::warn!(stack = self.stack, why, "the stack is not removed yet");
            }
            let again = Instant::now() + REMOVE_EVERY;
            while Instant::now() < again && !self.manager.left(&self.stack).await.map_err(error)?.is_empty() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// Published ports and virtual addresses of services need IPVS in the kernel: loaded, built in, or there to be loaded.
pub(crate) fn has_routing_mesh() -> bool {
    if Path::new("/proc/net/ip_vs").exists() || Path::new("/sys/module/ip_vs").exists() {
        return true;
    }
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let modules = Path::new("/lib/modules").join(release.trim());
    ["modules.dep", "modules.builtin"]
        .iter()
        .any(|list| std::fs::read_to_string(modules.join(list)).is_ok_and(|text| text.contains("/ip_vs.ko")))
}
