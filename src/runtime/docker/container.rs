//! An attempt's container: made, started, given its word, waited for, stopped, removed.

use super::engine::{Engine, SPACE, alias, connect, is_gone, status};
use super::image::{self, Facts, HELPER_PATH};
use super::space::Spaces;
use crate::model::plan::Resources;
use crate::model::{AttemptId, RunId};
use crate::runtime::helper::{self, WORKSPACE, wire};
use crate::runtime::{Found, RuntimeError, SpaceName, StepSpec, Word, nonce};
use bollard::container::AttachContainerResults;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerStateStatusEnum, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig,
    Mount, MountType, NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, EventsOptions, InspectContainerOptions, KillContainerOptions,
    RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Where a step's outputs go: memory of the container itself, so that it is there in any image and for any user.
const OUTPUT_FOLDER: &str = "/.mainstay-out";
const OUTPUT_PATH: &str = "/.mainstay-out/output";
/// The outputs file may have 64 KiB; a little more lets the helper see that there is too much.
const OUTPUT_MOUNT: &str = "size=256k,mode=0777";
/// Enough for any build, and an end for what only multiplies itself.
pub(super) const PIDS_DEFAULT: i64 = 4_096;
/// The engine copies the word and closes at once; one that does not in this time is not well.
const WORD_WITHIN: Duration = Duration::from_secs(10);
/// A removal, or a making, that another call has begun: how often and how long we look for its end, together 10 s.
pub(super) const REMOVAL_LOOKS: u32 = 200;
pub(super) const REMOVAL_LOOK_EVERY: Duration = Duration::from_millis(50);
/// The exit code of a process that KILL ended.
const KILLED: i64 = 137;
/// How long after a container's end the engine may still hear that its memory was short. A second was enough with
/// every core busy; what has no such news waits this long for it.
const SHORTAGE_HEARD_WITHIN: Duration = Duration::from_secs(2);

/// The capabilities a step's root has. Never NET_RAW, NET_ADMIN, MKNOD, AUDIT_WRITE.
pub(super) const CAPABILITIES: [&str; 10] = [
    // Package managers and build tools unpack files of other owners and modes,
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    // end processes that became another user,
    "KILL",
    // become another user themselves (apt, su, postgres),
    "SETGID",
    "SETUID",
    // or give rights away for good (setpriv).
    "SETPCAP",
    // Test servers open the ports they open in earnest,
    "NET_BIND_SERVICE",
    // and sshd, among others, locks its first half into an empty folder.
    "SYS_CHROOT",
];

/// What the engine says about a container.
pub(super) async fn state_of(engine: &Engine, name: &str) -> Result<Found, RuntimeError> {
    Ok(match look(engine, name).await? {
        State::Absent => Found::Absent,
        State::Created | State::Running => Found::Alive,
        State::Exited { code, out_of_memory } => Found::Exited { code, out_of_memory },
    })
}

pub(super) enum State {
    Absent,
    Created,
    Running,
    Exited { code: i32, out_of_memory: bool },
}

pub(super) async fn look(engine: &Engine, name: &str) -> Result<State, RuntimeError> {
    Ok(look_closer(engine, name).await?.0)
}

/// The state, and the space the container was made for.
async fn look_closer(engine: &Engine, name: &str) -> Result<(State, Option<String>), RuntimeError> {
    let found = match engine.api.inspect_container(name, None::<InspectContainerOptions>).await {
        Err(e) if is_gone(&e) => return Ok((State::Absent, None)),
        other => other.map_err(|e| engine.error(format!("look at the container {name}"), &e))?,
    };
    let space = found.config.and_then(|config| config.labels?.remove(SPACE));
    let limited = found.host_config.and_then(|host| host.memory).is_some_and(|limit| limit > 0);
    let state = found.state.unwrap_or_default();
    let state = match state.status {
        Some(ContainerStateStatusEnum::CREATED) => State::Created,
        Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD) => {
            let mut out_of_memory = state.oom_killed.unwrap_or_default();
            if limited && state.exit_code == Some(KILLED) && !out_of_memory {
                let id = found.id.as_deref().unwrap_or(name);
                out_of_memory = heard_of_shortage(engine, id, state.started_at, state.finished_at).await;
            }
            State::Exited { code: state.exit_code.and_then(|code| code.try_into().ok()).unwrap_or(-1), out_of_memory }
        }
        Some(ContainerStateStatusEnum::REMOVING) => State::Absent,
        _ => State::Running,
    };
    Ok((state, space))
}

/// Whether the engine tells of a shortage of memory in a container that has ended. The kernel's word of it reaches the
/// engine beside the word of the end, and may come second: the state then says "no" for ever, and the engine's events
/// alone say "yes". Times are the engine's own, as it wrote them.
async fn heard_of_shortage(engine: &Engine, id: &str, began: Option<String>, ended: Option<String>) -> bool {
    let time = |text: Option<String>| text.and_then(|text| text.parse::<Timestamp>().ok());
    let (Some(began), Some(ended)) = (time(began), time(ended)) else { return false };
    let text = |at: Timestamp| format!("{}.{:09}", at.as_second(), at.subsec_nanosecond());
    let filters = [("container", id), ("event", "oom")].map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
    let options = EventsOptions {
        since: Some(text(began)),
        until: ended.checked_add(SHORTAGE_HEARD_WITHIN).ok().map(text),
        filters: Some(filters.into()),
    };
    let mut events = engine.api.events(Some(options)).boxed();
    // The engine ends this by its own clock; one that does not is not waited for.
    matches!(tokio::time::timeout(SHORTAGE_HEARD_WITHIN * 2, events.next()).await, Ok(Some(Ok(_))))
}

/// The state of an attempt's container. One that was made for a space the run has given up is removed: a daemon that was
/// killed had asked for it, the engine made it late, and nobody told it anything.
async fn look_for(engine: &Engine, spec: &StepSpec, name: &str) -> Result<State, RuntimeError> {
    match look_closer(engine, name).await? {
        (_, Some(space)) if space != spec.space.0 => remove(engine, name).await.map(|()| State::Absent),
        (state, _) => Ok(state),
    }
}

fn body(engine: &Engine, spec: &StepSpec, defaults: Resources) -> ContainerCreateBody {
    let memory = spec.resources.memory.or(defaults.memory).map(|size| size.0 as i64);
    let cpus = spec.resources.millicpus.or(defaults.millicpus).map(|milli| milli as i64 * 1_000_000);
    let pids = spec.resources.pids.or(defaults.pids).map_or(PIDS_DEFAULT, i64::from);
    let strings = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let network = if spec.shares_holder { format!("container:{}", spec.space.0) } else { spec.space.0.clone() };
    let endpoint = EndpointSettings { aliases: Some(vec![alias(&spec.id.step)]), ..Default::default() };
    ContainerCreateBody {
        image: Some(spec.image.id.clone()),
        entrypoint: Some(strings(&[HELPER_PATH, "step", &nonce(&engine.instance, &spec.id)])),
        working_dir: Some(WORKSPACE.to_owned()),
        open_stdin: Some(true),
        stdin_once: Some(false),
        attach_stdin: Some(false),
        tty: Some(false),
        stop_signal: Some("SIGTERM".to_owned()),
        // A health check of the image would run commands before the step has begun.
        healthcheck: Some(HealthConfig { test: Some(strings(&["NONE"])), ..Default::default() }),
        labels: Some(engine.step_labels(&spec.id, &spec.space, &spec.repo)),
        networking_config: (!spec.shares_holder)
            .then(|| NetworkingConfig { endpoints_config: Some(HashMap::from([(spec.space.0.clone(), endpoint)])) }),
        host_config: Some(HostConfig {
            network_mode: Some(network),
            mounts: Some(vec![workspace_mount(&spec.space.0), image::helper_mount()]),
            tmpfs: Some(HashMap::from([(OUTPUT_FOLDER.to_owned(), OUTPUT_MOUNT.to_owned())])),
            security_opt: Some(strings(&["no-new-privileges"])),
            cap_drop: Some(strings(&["ALL"])),
            cap_add: Some(strings(&CAPABILITIES)),
            memory,
            // Memory and swap together: no swap on top.
            memory_swap: memory,
            nano_cpus: cpus,
            pids_limit: Some(pids),
            log_config: Some(log_without_rotation()),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..Default::default() }),
            auto_remove: Some(false),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Lines are read from the engine's log after a crash of ours, so none may have been rotated away. The size overrides
/// what the engine's own settings say for containers that say nothing.
pub(super) fn log_without_rotation() -> HostConfigLogConfig {
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([("max-size".to_owned(), "1000p".to_owned())])),
    }
}

pub(super) fn workspace_mount(volume: &str) -> Mount {
    Mount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.to_owned()),
        target: Some(WORKSPACE.to_owned()),
        // What an image has at /workspace is not the repository.
        volume_options: Some(bollard::models::MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
        ..Default::default()
    }
}

/// Makes the container and starts it up to where it waits. One that waits, runs or has ended stays as it is. True when
/// it was started now, so that it waits for certain.
pub(super) async fn prepare(engine: &Engine, spec: &StepSpec, defaults: Resources) -> Result<bool, RuntimeError> {
    let name = engine.container(&spec.id);
    let make = || {
        let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        engine.api.create_container(Some(options), body(engine, spec, defaults))
    };
    let mut looks = 0;
    let mut made_anew = false;
    loop {
        match make().await {
            Ok(_) => return start(engine, spec, &name).await.map(|()| true),
            Err(e) if status(&e) == Some(409) => match look_for(engine, spec, &name).await? {
                State::Created => match start(engine, spec, &name).await {
                    // An engine that was killed while it started one may know it and its process apart ("id already in
                    // use"). Nothing has begun in it, so another one does as well.
                    Err(RuntimeError::Refused { detail, .. }) if !made_anew => {
                        tracing::info!(attempt = %spec.id, detail, "a container cannot be started; another one is made");
                        made_anew = true;
                        remove(engine, &name).await?;
                    }
                    started => return started.map(|()| true),
                },
                State::Running | State::Exited { .. } => return Ok(false),
                // Somebody has the name and no container yet: the engine still makes, or gives up, what a daemon that was
                // killed had asked for.
                State::Absent if looks < REMOVAL_LOOKS => {
                    looks += 1;
                    tokio::time::sleep(REMOVAL_LOOK_EVERY).await;
                }
                State::Absent => return Err(engine.error(format!("make the container {name}"), &e)),
            },
            Err(e) if is_gone(&e) && e.to_string().contains("image") => {
                return Err(RuntimeError::Image {
                    image: spec.image.reference.clone(),
                    detail: "it was removed from the engine".to_owned(),
                });
            }
            Err(e) => return Err(engine.error(format!("make the container {name}"), &e)),
        }
    }
}

async fn start(engine: &Engine, spec: &StepSpec, name: &str) -> Result<(), RuntimeError> {
    let doing = || format!("start the container {name}");
    let first = engine.api.start_container(name, None::<StartContainerOptions>).await;
    let Err(first) = first else { return Ok(()) };
    if !spec.shares_holder || status(&first).is_none() {
        return Err(engine.error(doing(), &first));
    }
    // The engine restarted and the run's holder did not survive: bring it back, and with it the network to join.
    let holder = engine.api.start_container(&spec.space.0, None::<StartContainerOptions>).await;
    holder.map_err(|e| engine.error("start the run's holder again", &e))?;
    let second = engine.api.start_container(name, None::<StartContainerOptions>).await;
    second.map_err(|e| engine.error(doing(), &e))
}

/// Attempts whose container this process saw started and has not given the word: nobody needs to ask the engine about
/// them before the word, which is the one moment at which milliseconds count. A container that died since takes no
/// word; the next try asks.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashSet<AttemptId>>);

impl Waiting {
    pub(super) fn add(&self, id: &AttemptId) {
        self.lock().insert(id.clone());
    }

    pub(super) fn take(&self, id: &AttemptId) -> bool {
        self.lock().remove(id)
    }

    /// Forgets the attempts of a run that is over.
    pub(super) fn forget(&self, run: RunId) {
        self.lock().retain(|id| id.run != run);
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<AttemptId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes and starts what is not there, after a restart of ours or for a step that was not started ahead. False when it
/// has ended already: there is nobody to say the word to.
pub(super) async fn ensure_waiting(
    engine: &Engine,
    spec: &StepSpec,
    defaults: Resources,
) -> Result<bool, RuntimeError> {
    match look_for(engine, spec, &engine.container(&spec.id)).await? {
        State::Running => Ok(true),
        State::Exited { .. } => Ok(false),
        State::Absent | State::Created => prepare(engine, spec, defaults).await.map(|_| true),
    }
}

/// Says the word to a container that waits, after its user was given the workspace.
pub(super) async fn release(
    engine: &Engine,
    spec: &StepSpec,
    word: &Word,
    facts: &Facts,
    spaces: &Spaces,
) -> Result<bool, RuntimeError> {
    let name = engine.container(&spec.id);
    let user = user_of(engine, &name, &facts.user).await?;
    spaces.own(engine, &spec.space, user).await?;
    let order = helper::order(word, &facts.command(&word.args), WORKSPACE, OUTPUT_PATH);
    say(engine, &name, &order).await
}

/// Gives a container's helper its word. False when it has ended and nobody listens any more.
pub(super) async fn say(engine: &Engine, name: &str, order: &wire::Order) -> Result<bool, RuntimeError> {
    let doing = || format!("give the word to {name}");
    let options = AttachContainerOptions { stream: true, stdin: true, ..Default::default() };
    let AttachContainerResults { mut output, mut input } = match engine.api.attach_container(name, Some(options)).await
    {
        Ok(attached) => attached,
        // It has ended since: nothing to say any more, and `wait` tells how.
        Err(e) if status(&e) == Some(409) => return Ok(false),
        Err(e) => return Err(engine.error(doing(), &e)),
    };
    let line = wire::word_line(order);
    let say = async {
        input.write_all(&line).await?;
        input.flush().await?;
        input.shutdown().await?;
        // The engine closes its half when all was copied into the container.
        while let Some(said) = output.next().await {
            said?;
        }
        Ok::<_, Error>(())
    };
    match tokio::time::timeout(WORD_WITHIN, say).await {
        Ok(said) => said.map(|()| true).map_err(|e| engine.error(doing(), &e)),
        Err(_) => match look(engine, name).await? {
            State::Exited { .. } => Ok(false),
            _ => Err(engine.unreachable("it does not take the word")),
        },
    }
}

/// User and group number of a container's image user; names are looked up in the container's own files.
pub(super) async fn user_of(engine: &Engine, name: &str, user: &str) -> Result<(u32, u32), RuntimeError> {
    let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    if user.is_empty() {
        return Ok((0, 0));
    }
    if let (Ok(user), Some(Ok(group))) = (user.parse(), group.map(str::parse)) {
        return Ok((user, group));
    }
    let passwd = image::read_file(engine, name, "/etc/passwd").await?.unwrap_or_default();
    let field = |file: &[u8], key: &str, at: usize| -> Option<Vec<String>> {
        let lines = String::from_utf8_lossy(file);
        let found = lines.lines().map(|l| l.split(':').map(str::to_owned).collect::<Vec<_>>());
        found.into_iter().find(|f| f.get(at).is_some_and(|v| v == key))
    };
    let refused = |what: &str| RuntimeError::Refused {
        doing: "give the workspace to the image's user".to_owned(),
        detail: format!("the image has no {what}"),
    };
    let entry = field(&passwd, user, 0).or_else(|| field(&passwd, user, 2));
    let number = |entry: &[String], at: usize| entry.get(at).and_then(|v| v.parse::<u32>().ok());
    let user_number = match (entry.as_deref().and_then(|e| number(e, 2)), user.parse()) {
        (Some(number), _) => number,
        (None, Ok(number)) => number,
        (None, Err(_)) => return Err(refused(&format!("user `{user}`"))),
    };
    let group_number = match group.map(|g| (g, g.parse())) {
        None => entry.as_deref().and_then(|e| number(e, 3)).unwrap_or(0),
        Some((_, Ok(number))) => number,
        Some((group, Err(_))) => {
            let file = image::read_file(engine, name, "/etc/group").await?.unwrap_or_default();
            let entry = field(&file, group, 0).ok_or_else(|| refused(&format!("group `{group}`")))?;
            number(&entry, 2).ok_or_else(|| refused(&format!("group `{group}`")))?
        }
    };
    Ok((user_number, group_number))
}

/// Whether the run's holder, which never ends by itself, runs since before the attempt did. It is asked for over a new
/// connection: an engine that is about to stop answers on the old ones while it ends its containers.
pub(super) async fn undisturbed(engine: &Engine, space: &SpaceName, id: &AttemptId) -> Result<bool, RuntimeError> {
    let api = connect(&engine.endpoint)?;
    let started = async |name: &str| match api.inspect_container(name, None::<InspectContainerOptions>).await {
        Err(e) if is_gone(&e) => Ok((false, None)),
        Err(e) => Err(engine.error(format!("look at the container {name}"), &e)),
        Ok(found) => {
            let state = found.state.unwrap_or_default();
            Ok((state.running.unwrap_or_default(), state.started_at.and_then(|at| at.parse::<Timestamp>().ok())))
        }
    };
    let ((runs, holder), (_, attempt)) = (started(&space.0).await?, started(&engine.container(id)).await?);
    Ok(runs && holder.zip(attempt).is_none_or(|(holder, attempt)| holder <= attempt))
}

/// Waits until the process has ended.
pub(super) async fn wait(engine: &Engine, id: &AttemptId) -> Result<Found, RuntimeError> {
    wait_named(engine, &engine.container(id)).await
}

/// Waits until a container's process has ended.
pub(super) async fn wait_named(engine: &Engine, name: &str) -> Result<Found, RuntimeError> {
    let doing = || format!("wait for {name}");
    loop {
        match look(engine, name).await? {
            State::Absent => return Err(RuntimeError::Gone { what: format!("the container {name}") }),
            State::Exited { code, out_of_memory } => return Ok(Found::Exited { code, out_of_memory }),
            // Between making and starting it; `not-running` would be true already.
            State::Created => tokio::time::sleep(REMOVAL_LOOK_EVERY).await,
            State::Running => {
                let options = WaitContainerOptions { condition: "not-running".to_owned() };
                let mut waiting = engine.api.wait_container(name, Some(options)).boxed();
                match waiting.next().await {
                    Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => {}
                    Some(Err(e)) if is_gone(&e) => {}
                    Some(Err(e)) => return Err(engine.error(doing(), &e)),
                    None => return Err(engine.unreachable("it ended the call before the container ended")),
                }
            }
        }
    }
}

pub(super) async fn signal(engine: &Engine, name: &str, signal: &str) -> Result<(), RuntimeError> {
    let options = KillContainerOptions { signal: signal.to_owned() };
    match engine.api.kill_container(name, Some(options)).await {
        // Not there, or not running any more.
        Err(e) if matches!(status(&e), Some(404 | 409)) => Ok(()),
        // Older engines answer 500 for a container that ended at that moment.
        Err(e) if status(&e) == Some(500) && e.to_string().contains("not running") => Ok(()),
        other => other.map_err(|e| engine.error(format!("send {signal} to {name}"), &e)),
    }
}

/// TERM, then KILL after `grace`.
pub(super) async fn stop(engine: &Engine, id: &AttemptId, grace: Duration) -> Result<(), RuntimeError> {
    stop_named(engine, &engine.container(id), grace).await
}

/// The same for a container by its name.
pub(super) async fn stop_named(engine: &Engine, name: &str, grace: Duration) -> Result<(), RuntimeError> {
    match look(engine, name).await? {
        State::Absent | State::Exited { .. } => return Ok(()),
        // Never started: there is no process to end, and nobody may start it now.
        State::Created => return remove(engine, name).await,
        State::Running => signal(engine, name, "SIGTERM").await?,
    }
    let ended = |waited: Result<Found, RuntimeError>| match waited {
        Ok(_) | Err(RuntimeError::Gone { .. }) => Ok(()),
        Err(error) => Err(error),
    };
    if let Ok(waited) = tokio::time::timeout(grace, wait_named(engine, name)).await {
        return ended(waited);
    }
    signal(engine, name, "SIGKILL").await?;
    ended(wait_named(engine, name).await)
}

/// Removes a container with its anonymous volumes, running or not. Nothing there is success.
pub(super) async fn remove(engine: &Engine, name: &str) -> Result<(), RuntimeError> {
    let doing = || format!("remove the container {name}");
    for _ in 0..REMOVAL_LOOKS {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match engine.api.remove_container(name, Some(options)).await {
            Ok(()) => return Ok(()),
            Err(e) if is_gone(&e) => return Ok(()),
            // Somebody else's call is removing it.
            Err(e) if status(&e) == Some(409) => tokio::time::sleep(REMOVAL_LOOK_EVERY).await,
            Err(e) => return Err(engine.error(doing(), &e)),
        }
    }
    Err(RuntimeError::Refused { doing: doing(), detail: "another removal of it does not end".to_owned() })
}
