//! How far the services of a stack are on their way to a release. Looks and judges; no I/O.
//!
//! In come what the engine said before the release was handed over, and what it says now; out goes a verdict for each
//! service. The engine itself replaces tasks one after the other and puts a service back when a new task fails.

use super::hand_over::{Manner, RELEASE};
use super::observe::{is_of, short, template};
use crate::runtime::docker::{SwarmService, SwarmTask};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// So often a task of one place may fail where nothing was before, and the engine keeps trying: services of a new stack
/// end until those that they need are there.
const FIRST_FAILURES_MAX: usize = 3;
/// A task that was started stays up for so long before it counts; what ends at once is running, too, for a moment.
const STEADY: Duration = Duration::from_secs(1);

/// How a task ends that should not have. One that is stopped because it is unhealthy, and ends with 0, is `complete`.
const ENDED: [&str; 3] = ["failed", "rejected", "complete"];

/// What the engine said at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    pub(super) services: Vec<SwarmService>,
    pub(super) tasks: Vec<SwarmTask>,
    /// Nodes that nobody hears from.
    pub(super) silent: BTreeSet<String>,
}

/// Where one service stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it is the release, and nothing else of it runs.
    Done,
    /// On its way; in words.
    Going(String),
    /// The engine puts it back.
    GoingBack(String),
    /// It did not come up, and the engine will not try more.
    Bad {
        why: String,
        /// The engine put it back.
        put_back: bool,
    },
}

/// One apply as it goes on.
pub(super) struct Rollout<'a> {
    stack: &'a str,
    /// The number of the release, as the label says it.
    release: String,
    before: Look,
    /// When each new task was first seen running.
    running: BTreeMap<String, Instant>,
}

impl Look {
    pub(super) fn service(&self, name: &str) -> Option<&SwarmService> {
        self.services.iter().find(|service| service.name == name)
    }

    pub(super) fn tasks_of(&self, service: &SwarmService) -> impl Iterator<Item = &SwarmTask> {
        self.tasks.iter().filter(|task| task.service == service.id)
    }

    /// All of the service is as its spec says, and no update is under way: going back to this is safe.
    fn is_settled(&self, service: &SwarmService) -> bool {
        let update_over = matches!(service.update.as_deref(), None | Some("completed" | "rollback_completed"));
        let wanted: Vec<_> = self.tasks_of(service).filter(|task| task.desired == "running").collect();
        let well = wanted.iter().all(|task| task.state == "running" && is_of(task, service));
        update_over && well && replicas(service).is_none_or(|replicas| wanted.len() as u64 == replicas)
    }
}

/// How many there should be; `None` where it is one for each node.
fn replicas(service: &SwarmService) -> Option<u64> {
    service.spec["Mode"]["Replicated"].as_object()?;
    Some(service.spec["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(0))
}

fn release_of(service: &SwarmService) -> &str {
    service.spec["Labels"][RELEASE].as_str().unwrap_or_default()
}

impl<'a> Rollout<'a> {
    pub(super) fn new(stack: &'a str, release: u64, before: Look) -> Self {
        Rollout { stack, release: release.to_string(), before, running: BTreeMap::new() }
    }

    /// How each service that is there already is best brought to the release.
    pub(super) fn manners(&self) -> BTreeMap<String, Manner> {
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        let manner = |service: &SwarmService| {
            let settled = self.before.is_settled(service);
            let has = release_of(service);
            Manner {
                // The engine goes back to what it was told last, which is the same again, or half of something.
                no_way_back: !settled || has == self.release,
                // To an earlier release, or away from something broken.
                at_once: !settled || number(has) > number(&self.release),
            }
        };
        self.before
            .services
            .iter()
            .map(|service| (short(self.stack, &service.name).to_owned(), manner(service)))
            .collect()
    }

    /// Where each of the wanted services stands.
    pub(super) fn judge(&mut self, wanted: &[String], look: &Look) -> BTreeMap<String, Verdict> {
        for task in look.tasks.iter().filter(|task| task.state == "running") {
            self.running.entry(task.id.clone()).or_insert_with(Instant::now);
        }
        wanted.iter().map(|name| (name.clone(), self.judge_one(&format!("{}_{name}", self.stack), look))).collect()
    }

    fn judge_one(&self, full_name: &str, look: &Look) -> Verdict {
        let Some(service) = look.service(full_name) else {
            return Verdict::Going("the engine has not made it yet".to_owned());
        };
        let said = || service.message.trim().to_owned();
        match service.update.as_deref() {
            Some("rollback_started") => return Verdict::GoingBack(said()),
            Some("rollback_completed") => {
                return Verdict::Bad { why: said(), put_back: release_of(service) != self.release };
            }
            Some("rollback_paused" | "paused") => return Verdict::Bad { why: said(), put_back: false },
            _ if release_of(service) != self.release => {
                return Verdict::Bad { why: "somebody else changed it meanwhile".to_owned(), put_back: false };
            }
            _ => {}
        }
        if let Some(why) = self.fails_from_the_start(service, look) {
            return Verdict::Bad { why, put_back: false };
        }
        self.progress(service, look)
    }

    /// Where the engine has nothing to go back to, it tries for ever.
    fn fails_from_the_start(&self, service: &SwarmService, look: &Look) -> Option<String> {
        if service.update.as_deref() == Some("updating") {
            return None;
        }
        let mut failed: BTreeMap<(u64, &str), usize> = BTreeMap::new();
        for task in self.new_failures(service, look) {
            let place = if task.slot == 0 { (0, task.node.as_str()) } else { (task.slot, "") };
            *failed.entry(place).or_default() += 1;
        }
        let most = failed.into_values().max().unwrap_or(0);
        (most >= FIRST_FAILURES_MAX).then(|| format!("one of its tasks failed {most} times"))
    }

    fn new_failures<'l>(&'l self, service: &'l SwarmService, look: &'l Look) -> impl Iterator<Item = &'l SwarmTask> {
        let known = |task: &SwarmTask| {
            self.before.tasks.iter().any(|old| old.id == task.id && ENDED.contains(&old.state.as_str()))
        };
        look.tasks_of(service)
            .filter(move |task| ENDED.contains(&task.state.as_str()) && is_of(task, service) && !known(task))
    }

    fn progress(&self, service: &SwarmService, look: &Look) -> Verdict {
        let (new, old): (Vec<_>, Vec<_>) = look.tasks_of(service).partition(|task| is_of(task, service));
        let wanted: Vec<_> = new.iter().filter(|task| task.desired == "running").collect();
        let up =
            wanted.iter().filter(|task| task.state == "running" && !look.silent.contains(&task.node)).count() as u64;
        let all = replicas(service).unwrap_or(wanted.len().max(1) as u64);
        // Of either spec: what is no longer wanted is still there until it has ended.
        let goes = |task: &&&SwarmTask| task.desired != "running" || !is_of(task, service);
        let ending =
            old.iter().chain(&new).filter(goes).filter(|task| is_alive(task) && !look.silent.contains(&task.node));
        let ending = ending.count();
        if up < all {
            let slow = wanted.iter().find(|task| task.state != "running");
            let slow = slow.map(|task| match task.error.as_str() {
                "" => format!("; one is {}", task.state),
                error => format!("; one is {}: {error}", task.state),
            });
            return Verdict::Going(format!("{up} of {all} run the release{}", slow.unwrap_or_default()));
        }
        if ending > 0 {
            return Verdict::Going(format!("{up} of {all} run the release; {ending} of the old still end"));
        }
        if service.update.as_deref() == Some("updating") {
            return Verdict::Going(format!("{up} of {all} run the release; the engine watches them for a moment"));
        }
        let was_running =
            |task: &SwarmTask| self.before.tasks.iter().any(|old| old.id == task.id && old.state == "running");
        let steady = |task: &SwarmTask| {
            was_running(task) || self.running.get(&task.id).is_some_and(|since| since.elapsed() >= STEADY)
        };
        if wanted.iter().all(|task| steady(task)) {
            return Verdict::Done;
        }
        Verdict::Going(format!("{up} of {all} run the release; they have just begun"))
    }

    /// The task that says best why a service is bad: the newest that failed, made from what the release wanted of it.
    pub(super) fn culprit<'l>(&self, name: &str, look: &'l Look) -> Option<&'l SwarmTask> {
        let service = look.service(&format!("{}_{name}", self.stack))?;
        let known: BTreeSet<_> = self.before.tasks.iter().map(|task| (task.id.as_str(), task.state.as_str())).collect();
        let failed = |task: &&SwarmTask| {
            ENDED.contains(&task.state.as_str()) && !known.contains(&(task.id.as_str(), task.state.as_str()))
        };
        let failed = look.tasks_of(service).filter(failed).max_by(|a, b| a.since.cmp(&b.since));
        let stuck = |task: &&SwarmTask| task.desired == "running" && task.state != "running";
        failed.or_else(|| look.tasks_of(service).filter(stuck).max_by(|a, b| a.since.cmp(&b.since)))
    }

    /// Nothing of the stack but the service that was put back was touched, and nothing was in the middle of something
    /// before: what served before serves as before.
    pub(super) fn is_as_before(&self, look: &Look) -> bool {
        let same = |service: &SwarmService| {
            self.before.service(&service.name).is_some_and(|old| {
                self.before.is_settled(old) && look.is_settled(service) && is_same(&old.spec, &service.spec)
            })
        };
        look.services.iter().all(same) && self.before.services.iter().all(|old| look.service(&old.name).is_some())
    }

    /// Whether another service than this one is no longer what it was.
    pub(super) fn others_changed(&self, name: &str, look: &Look) -> bool {
        let full_name = format!("{}_{name}", self.stack);
        let changed = |service: &SwarmService| {
            self.before.service(&service.name).is_none_or(|old| !is_same(&old.spec, &service.spec))
        };
        look.services.iter().any(|service| service.name != full_name && changed(service))
    }
}

/// Labels of ours and the manner of the update aside.
fn is_same(old: &Value, new: &Value) -> bool {
    let parts = |spec: &Value| {
        let template = template(&spec["TaskTemplate"]);
        (template, spec["TaskTemplate"]["Placement"].clone(), spec["Mode"].clone(), spec["EndpointSpec"].clone())
    };
    parts(old) == parts(new)
}

fn is_alive(task: &SwarmTask) -> bool {
    !["complete", "shutdown", "failed", "rejected", "remove", "orphaned", "new", "pending"]
        .contains(&task.state.as_str())
}

#[cfg(test)]
mod tests;
