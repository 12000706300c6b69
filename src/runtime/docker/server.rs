//! A server that is to stay: the container that a restore leaves running, its volume, and what has to be known of an image
//! and of other containers before.
//!
//! In come plain words of the restore, out go plain facts; what they mean is its own business. These containers carry no
//! label of an instance, and no sweep removes them.

use super::Docker;
use super::container::{self, State, look, wait_named};
use super::engine::is_gone;
use crate::runtime::{Found, RuntimeError};
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerCreateBody, ContainerSummaryStateEnum, ContainerUpdateBody, HealthConfig, HostConfig, Mount, MountType,
    MountVolumeOptions, PortBinding, RestartPolicy, RestartPolicyNameEnum, VolumeCreateRequest,
};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, ListContainersOptions, LogsOptions, RemoveVolumeOptions,
    RenameContainerOptions, StartContainerOptions,
};
use futures_util::StreamExt;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The engine's own limit of `/dev/shm` is 64 MiB, at which a query with parallel workers fails. This is a bound, and no
/// memory until it is used.
const SHARED_MEMORY_BYTES: i64 = 1 << 30;
/// A server that is asked to stop by the engine writes a checkpoint first.
const STOP_SECS: i64 = 120;
/// What one question to an image or a server may answer; more is cut.
const ANSWER_MAX_BYTES: usize = 1 << 20;
/// A question to an image starts a container and some small programs.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// An engine names a container that is asked to stop by signals, and one that died may still be shown as running.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// What an image says of itself.
#[derive(Debug, Clone)]
pub(crate) struct ImageSays {
    /// Its content's name; containers are made from it.
    pub(crate) id: String,
    /// Variables.
    pub(crate) environment: BTreeMap<String, String>,
    /// Places that it wants a volume at.
    pub(crate) volumes: Vec<String>,
}

/// A volume.
#[derive(Debug, Clone)]
pub(crate) struct VolumeFacts {
    /// Where its files are on the engine's machine.
    pub(crate) place: PathBuf,
    /// A folder of the engine and nothing else: no other driver, nothing that is mounted only while it is used.
    pub(crate) plain: bool,
}

/// Where something of the host stands in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A volume by its name.
    Volume(String),
    /// A folder.
    Folder(PathBuf),
}

/// A container, whosever it is.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) name: String,
    /// Runs, or may go on at any time.
    pub(crate) lives: bool,
    pub(crate) labels: HashMap<String, String>,
    /// Volumes by name, and folders.
    pub(crate) uses: Vec<Source>,
    /// Ports of the host that lead to it.
    pub(crate) ports: Vec<u16>,
}

/// A server that is to be started.
#[derive(Debug, Clone)]
pub(crate) struct ServerSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: HashMap<String, String>,
    /// The image's id.
    pub(crate) image: &'a str,
    pub(crate) user: &'a str,
    /// The program and its arguments; the image's entrypoint is not run.
    pub(crate) command: Vec<String>,
    /// What is mounted, and where.
    pub(crate) data: (&'a Source, &'a str),
    /// Address and port of the host, and the port of the server.
    pub(crate) published: (IpAddr, u16, u16),
    /// A network to join in place of the usual one.
    pub(crate) network: Option<&'a str>,
}

fn mount(source: &Source, target: &str, read_only: bool) -> Mount {
    let (typ, source) = match source {
        Source::Volume(name) => (MountType::VOLUME, name.clone()),
        Source::Folder(path) => (MountType::BIND, path.display().to_string()),
    };
    // What the image has at that place stays out of a volume.
    let options = MountVolumeOptions { no_copy: Some(true), ..Default::default() };
    Mount {
        volume_options: (typ == MountType::VOLUME).then_some(options),
        typ: Some(typ),
        source: Some(source),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Default::default()
    }
}

impl Docker {
    /// The image, pulled when the engine does not have it.
    pub(crate) async fn image_says(
        &self,
        reference: &str,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<ImageSays, RuntimeError> {
        let engine = &self.inner.engine;
        let id = self.inner.images.resolve(engine, reference, progress).await?.id;
        let found = engine.api.inspect_image(&id).await;
        let config = found.map_err(|e| engine.error("look at the image", &e))?.config.unwrap_or_default();
        let pairs = config.env.unwrap_or_default().into_iter();
        let pairs = pairs.filter_map(|pair| pair.split_once('=').map(|(name, value)| (name.into(), value.into())));
        Ok(ImageSays { id, environment: pairs.collect(), volumes: config.volumes.unwrap_or_default() })
    }

    /// What a script prints, run by the image's `sh` as root in a container that sees no network and can write nowhere
    /// but into itself. It is gone afterwards, also when this process ends before it.
    pub(crate) async fn ask_image(
        &self,
        image: &str,
        script: &str,
        sees: Option<(&Source, &str)>,
    ) -> Result<String, RuntimeError> {
        let engine = &self.inner.engine;
        let doing = || "ask the image".to_owned();
        let strings = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            user: Some("0:0".to_owned()),
            entrypoint: Some(strings(&["sh", "-c", script])),
            cmd: Some(Vec::new()),
            working_dir: Some("/".to_owned()),
            healthcheck: Some(HealthConfig { test: Some(strings(&["NONE"])), ..Default::default() }),
            host_config: Some(HostConfig {
                auto_remove: Some(true),
                network_mode: Some("none".to_owned()),
                mounts: sees.map(|(source, at)| vec![mount(source, at, true)]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let made = engine.api.create_container(None::<CreateContainerOptions>, body).await;
        let id = made.map_err(|e| engine.error(doing(), &e))?.id;
        let asked = async {
            let options = AttachContainerOptions { stream: true, stdout: true, stderr: true, ..Default::default() };
            let attached = engine.api.attach_container(&id, Some(options)).await;
            let AttachContainerResults { output, .. } = attached.map_err(|e| engine.error(doing(), &e))?;
            let started = engine.api.start_container(&id, None::<StartContainerOptions>).await;
            started.map_err(|e| engine.error(doing(), &e))?;
            collected(output).await.map_err(|e| engine.error(doing(), &e))
        };
        let answer = tokio::time::timeout(ANSWER_WITHIN, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(engine.unreachable("a container of the image does not end")));
        if answer.is_err() {
            container::remove(engine, &id).await?;
        }
        answer.map(|(stdout, _)| stdout)
    }

    /// The volume of that name, if there is one.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<VolumeFacts>, RuntimeError> {
        let engine = &self.inner.engine;
        match engine.api.inspect_volume(name).await {
            Ok(found) => Ok(Some(VolumeFacts {
                plain: found.driver == "local" && found.options.is_empty(),
                place: found.mountpoint.into(),
            })),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(engine.error(format!("look at the volume {name}"), &e)),
        }
    }

    /// Makes a volume; one that is there stays as it is.
    pub(crate) async fn make_volume(&self, name: &str, labels: HashMap<String, String>) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        let request = VolumeCreateRequest { name: Some(name.to_owned()), labels: Some(labels), ..Default::default() };
        let made = engine.api.create_volume(request).await;
        made.map(|_| ()).map_err(|e| engine.error(format!("make the volume {name}"), &e))
    }

    /// Removes a volume that was just made and holds nothing.
    pub(crate) async fn unmake_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        let removed = engine.api.remove_volume(name, None::<RemoveVolumeOptions>).await;
        removed.map_err(|e| engine.error(format!("remove the volume {name}"), &e))
    }

    /// The folder in which the engine keeps what is its own, on its machine.
    pub(crate) async fn root(&self) -> Result<PathBuf, RuntimeError> {
        let engine = &self.inner.engine;
        let info = engine.api.info().await.map_err(|e| engine.error("ask the engine where its files are", &e))?;
        Ok(info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".to_owned()).into())
    }

    /// Whether there is a network of that name.
    pub(crate) async fn has_network(&self, name: &str) -> Result<bool, RuntimeError> {
        let engine = &self.inner.engine;
        match engine.api.inspect_network(name, None).await {
            Ok(_) => Ok(true),
            Err(e) if is_gone(&e) => Ok(false),
            Err(e) => Err(engine.error(format!("look at the network {name}"), &e)),
        }
    }

    /// Every container that the engine has, whosever it is.
    pub(crate) async fn all_containers(&self) -> Result<Vec<Seen>, RuntimeError> {
        let engine = &self.inner.engine;
        let options = ListContainersOptions { all: true, ..Default::default() };
        let listed = engine.api.list_containers(Some(options)).await;
        let listed = listed.map_err(|e| engine.error("list the containers", &e))?;
        let seen = listed.into_iter().filter_map(|one| {
            use ContainerSummaryStateEnum as State;
            let ended = matches!(one.state, Some(State::CREATED | State::EXITED | State::DEAD | State::REMOVING));
            let uses = one.mounts.unwrap_or_default().into_iter().filter_map(|mount| {
                let named = mount.name.filter(|name| !name.is_empty()).map(Source::Volume);
                named.or_else(|| mount.source.map(|path| Source::Folder(path.into())))
            });
            Some(Seen {
                name: one.names?.into_iter().next()?.trim_start_matches('/').to_owned(),
                lives: !ended,
                labels: one.labels.unwrap_or_default(),
                uses: uses.collect(),
                ports: one.ports.unwrap_or_default().into_iter().filter_map(|port| port.public_port).collect(),
            })
        });
        Ok(seen.collect())
    }

    /// Makes the container and starts it. It stays as it ends, and is not started again by itself.
    pub(crate) async fn start_server(&self, spec: &ServerSpec<'_>) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        let (listen, outer, inner) = spec.published;
        let inner = format!("{inner}/tcp");
        let binding = PortBinding { host_ip: Some(listen.to_string()), host_port: Some(outer.to_string()) };
        let mut command = spec.command.iter().cloned();
        let body = ContainerCreateBody {
            image: Some(spec.image.to_owned()),
            user: Some(spec.user.to_owned()),
            entrypoint: Some(command.by_ref().take(1).collect()),
            cmd: Some(command.collect()),
            labels: Some(spec.labels.clone()),
            exposed_ports: Some(vec![inner.clone()]),
            // What ends PostgreSQL's sessions, and then itself, in order.
            stop_signal: Some("SIGINT".to_owned()),
            stop_timeout: Some(STOP_SECS),
            host_config: Some(HostConfig {
                mounts: Some(vec![mount(spec.data.0, spec.data.1, false)]),
                port_bindings: Some(HashMap::from([(inner, Some(vec![binding]))])),
                network_mode: spec.network.map(str::to_owned),
                shm_size: Some(SHARED_MEMORY_BYTES),
                restart_policy: Some(policy(RestartPolicyNameEnum::NO)),
                auto_remove: Some(false),
                ..Default::default()
            }),
            ..Default::default()
        };
        let options = CreateContainerOptions { name: Some(spec.name.to_owned()), ..Default::default() };
        let made = engine.api.create_container(Some(options), body).await;
        made.map_err(|e| engine.error(format!("make the container {}", spec.name), &e))?;
        let started = engine.api.start_container(spec.name, None::<StartContainerOptions>).await;
        started.map_err(|e| engine.error(format!("start the container {}", spec.name), &e))
    }

    /// Waits until its process has ended; gives the exit code.
    pub(crate) async fn server_ended(&self, name: &str) -> Result<i32, RuntimeError> {
        match wait_named(&self.inner.engine, name).await? {
            Found::Exited { code, .. } => Ok(code),
            _ => Err(RuntimeError::Gone { what: format!("the container {name}") }),
        }
    }

    /// The end of what it has written, both streams in the order in which they came.
    pub(crate) async fn server_says(&self, name: &str, bytes: usize) -> Result<String, RuntimeError> {
        let engine = &self.inner.engine;
        let options = LogsOptions { stdout: true, stderr: true, ..Default::default() };
        let mut output = engine.api.logs(name, Some(options)).boxed();
        let mut text = Vec::new();
        while let Some(part) = output.next().await {
            let part = part.map_err(|e| engine.error(format!("read the messages of {name}"), &e))?;
            text.extend_from_slice(&part.into_bytes());
            // Cut now and then, not at each line.
            if text.len() > 2 * bytes {
                text.drain(..text.len() - bytes);
            }
        }
        text.drain(..text.len().saturating_sub(bytes));
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs a program in it; gives its exit code and what it wrote, of each stream.
    pub(crate) async fn ask_server(
        &self,
        name: &str,
        user: &str,
        command: Vec<String>,
    ) -> Result<(i64, String, String), RuntimeError> {
        let engine = &self.inner.engine;
        let wrong = |e: &Error| engine.error(format!("run {} in {name}", command[0]), e);
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            user: Some(user.to_owned()),
            cmd: Some(command.clone()),
            ..Default::default()
        };
        let id = engine.api.create_exec(name, options).await.map_err(|e| wrong(&e))?.id;
        let started = engine.api.start_exec(&id, None::<StartExecOptions>).await.map_err(|e| wrong(&e))?;
        let (stdout, stderr) = match started {
            StartExecResults::Attached { output, .. } => collected(output).await.map_err(|e| wrong(&e))?,
            StartExecResults::Detached => (String::new(), String::new()),
        };
        let ended = engine.api.inspect_exec(&id).await.map_err(|e| wrong(&e))?;
        Ok((ended.exit_code.unwrap_or(-1), stdout, stderr))
    }

    /// Sends its first process a signal. One that has ended is told nothing.
    pub(crate) async fn signal_server(&self, name: &str, signal: &str) -> Result<(), RuntimeError> {
        container::signal(&self.inner.engine, name, signal).await
    }

    /// Ends its process with the first of these signals that does it in time; KILL is added. Nothing there is success.
    pub(crate) async fn end_server(&self, name: &str, signal: &str) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        for signal in [signal, "SIGKILL"] {
            match look(engine, name).await? {
                State::Absent | State::Created | State::Exited { .. } => return Ok(()),
                State::Running => container::signal(engine, name, signal).await?,
            }
            if let Ok(ended) = tokio::time::timeout(GONE_WITHIN, wait_named(engine, name)).await {
                return match ended {
                    Ok(_) | Err(RuntimeError::Gone { .. }) => Ok(()),
                    Err(error) => Err(error),
                };
            }
        }
        Err(RuntimeError::Refused { doing: format!("stop the container {name}"), detail: "it does not end".into() })
    }

    /// Removes a container that has ended. Nothing there is success; named volumes stay.
    pub(crate) async fn remove_server(&self, name: &str) -> Result<(), RuntimeError> {
        container::remove(&self.inner.engine, name).await
    }

    /// Gives a container another name.
    pub(crate) async fn rename_server(&self, name: &str, new: &str) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        let renamed = engine.api.rename_container(name, RenameContainerOptions { name: new.to_owned() }).await;
        renamed.map_err(|e| engine.error(format!("rename the container {name}"), &e))
    }

    /// From now on it comes back after the engine or the machine was started anew, unless somebody stops it.
    pub(crate) async fn keep_server(&self, name: &str) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        let policy = policy(RestartPolicyNameEnum::UNLESS_STOPPED);
        let body = ContainerUpdateBody { restart_policy: Some(policy), ..Default::default() };
        let kept = engine.api.update_container(name, body).await;
        kept.map_err(|e| engine.error(format!("have the engine keep {name} running"), &e))
    }
}

fn policy(name: RestartPolicyNameEnum) -> RestartPolicy {
    RestartPolicy { name: Some(name), maximum_retry_count: None }
}

/// Both streams of an output to its end.
async fn collected(
    mut output: impl futures_util::Stream<Item = Result<LogOutput, Error>> + Unpin,
) -> Result<(String, String), Error> {
    let mut texts = [Vec::new(), Vec::new()];
    while let Some(part) = output.next().await {
        let part = part?;
        let text = &mut texts[usize::from(matches!(part, LogOutput::StdErr { .. }))];
        if text.len() < ANSWER_MAX_BYTES {
            text.extend_from_slice(&part.into_bytes());
        }
    }
    let [stdout, stderr] = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok((stdout, stderr))
}
