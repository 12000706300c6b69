//! A command apart from any run, in a container of its own with the repository's files: what a deploy of kind `command`
//! starts, and its successor waits for.
//!
//! In come an image, a commit and shell text; out comes how it ended. The helper is process 1 here too, so that secrets
//! reach the command through its word and never stand in what the engine tells about a container. These things belong
//! to no run: they carry no label of an instance, and no sweep removes them.

use super::container::{self, CAPABILITIES, PIDS_DEFAULT, State, log_without_rotation, look, remove};
use super::engine::{Engine, is_gone, status};
use super::image::{self, HELPER_PATH};
use super::{Docker, logs, space};
use crate::git::{Change, checkout};
use crate::model::Oid;
use crate::model::log::LogCursor;
use crate::runtime::apart::{Collected, CommandEnd};
use crate::runtime::helper::WORKSPACE;
use crate::runtime::helper::wire::Order;
use crate::runtime::{Found, ResolvedImage, RuntimeError};
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, Mount, MountType, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptions, ListContainersOptions, StartContainerOptions, UploadToContainerOptions,
};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// Where a command keeps what has to be there the next time.
pub(crate) const STATE: &str = "/state";
/// Between asking a command to end and ending it. Tools that hold locks on their state need some seconds to let go.
const GRACE: Duration = Duration::from_secs(10);
/// Pieces of the archive on their way to the engine, and their size: reading and sending overlap, in 1 MiB.
const PIECES_WAITING: usize = 8;
const PIECE_BYTES: usize = 128 << 10;
/// How often we look anew because nothing had begun, and the pause before that: an engine may still be making what a
/// daemon that was killed had asked for.
const TRIES: usize = 10;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OneOff<'a> {
    /// The container's name: by it the command is found again.
    pub(crate) name: &'a str,
    /// Labels of the container and the volume.
    pub(crate) labels: &'a BTreeMap<String, String>,
    /// The image.
    pub(crate) image: &'a str,
    /// The bare repository, and the commit that stands in `/workspace`.
    pub(crate) files: (&'a Path, &'a Oid),
    /// The volume at `/state`; made when it is not there.
    pub(crate) volume: &'a str,
    /// What `sh -e -c` is given.
    pub(crate) script: &'a str,
    /// Variables on top of the image's own.
    pub(crate) environment: &'a [(String, String)],
}

impl Docker {
    /// Runs a command to its end, or waits for the one of that name that runs, or tells how it ended: while the
    /// container of that name is there the command never begins twice. The container stays, so that whoever asks next
    /// is told the same, until [`Docker::remove_one_off`]. A future that is dropped leaves it running.
    pub(crate) async fn one_off(
        &self,
        one: &OneOff<'_>,
        timeout: Duration,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<CommandEnd, RuntimeError> {
        let engine = &self.inner.engine;
        for tries_left in (0..TRIES).rev() {
            match look(engine, one.name).await? {
                State::Absent => {
                    let image = self.inner.images.resolve(engine, one.image, progress).await?;
                    if self.begin(one, &image).await? {
                        break;
                    }
                }
                // It is given its word once more: it takes the first and swallows the others.
                State::Running if container::say(engine, one.name, &order(one)).await? => break,
                State::Running => {}
                State::Exited { .. } if self.output(one.name).await?.begun => break,
                // Nobody gave it a word.
                State::Created | State::Exited { .. } => remove(engine, one.name).await?,
            }
            if tries_left == 0 {
                return Err(engine.unreachable(format!("{} ends before it can be told anything", one.name)));
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
        let mut timed_out = false;
        let waited = match tokio::time::timeout(timeout, container::wait_named(engine, one.name)).await {
            Ok(waited) => waited?,
            Err(_) => {
                timed_out = true;
                container::stop_named(engine, one.name, GRACE).await?;
                container::wait_named(engine, one.name).await?
            }
        };
        let Found::Exited { code, .. } = waited else {
            return Err(RuntimeError::Gone { what: format!("the container {}", one.name) });
        };
        Ok(self.output(one.name).await?.end(code, timed_out))
    }

    /// Makes the container with its files, starts it and gives it its word. False when it has to be looked at again.
    async fn begin(&self, one: &OneOff<'_>, image: &ResolvedImage) -> Result<bool, RuntimeError> {
        let engine = &self.inner.engine;
        image::ensure_helper(engine).await?;
        let facts = self.inner.images.facts(engine, image).await?;
        let volume = bollard::models::VolumeCreateRequest {
            name: Some(one.volume.to_owned()),
            labels: Some(one.labels.clone().into_iter().collect()),
            ..Default::default()
        };
        engine.api.create_volume(volume).await.map_err(|e| engine.error("make the environment's volume", &e))?;
        let options = CreateContainerOptions { name: Some(one.name.to_owned()), ..Default::default() };
        match engine.api.create_container(Some(options), body(one, image)).await {
            Ok(_) => {}
            // Another call of ours was quicker, or a killed daemon's comes late: it is looked at again.
            Err(e) if status(&e) == Some(409) => return Ok(false),
            Err(e) => return Err(engine.error(format!("make the container {}", one.name), &e)),
        }
        let user = container::user_of(engine, one.name, &facts.user).await?;
        fill(engine, one, user).await?;
        let started = engine.api.start_container(one.name, None::<StartContainerOptions>).await;
        started.map_err(|e| engine.error(format!("start the container {}", one.name), &e))?;
        container::say(engine, one.name, &order(one)).await
    }

    pub(super) async fn output(&self, name: &str) -> Result<Collected, RuntimeError> {
        let mut collected = Collected::default();
        let mut output = logs::follow(self.inner.engine.clone(), name.to_owned(), LogCursor::default());
        while let Some(chunk) = output.next().await {
            collected.take(&chunk?);
        }
        Ok(collected)
    }

    /// Whether there is a container of that name.
    pub(crate) async fn has_one_off(&self, name: &str) -> Result<bool, RuntimeError> {
        Ok(!matches!(look(&self.inner.engine, name).await?, State::Absent))
    }

    /// Removes the container, after it was ended if it runs. Nothing there is success.
    pub(crate) async fn remove_one_off(&self, name: &str) -> Result<(), RuntimeError> {
        container::stop_named(&self.inner.engine, name, GRACE).await?;
        remove(&self.inner.engine, name).await
    }

    /// Names and ages in seconds of the containers that carry all these labels.
    pub(crate) async fn one_offs(&self, labels: &[String]) -> Result<Vec<(String, i64)>, RuntimeError> {
        let engine = &self.inner.engine;
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let listed = engine.api.list_containers(Some(options)).await;
        let listed = listed.map_err(|e| engine.error("list containers by their labels", &e))?;
        let now = jiff::Timestamp::now().as_second();
        let named = listed.into_iter().filter_map(|one| {
            let name = one.names?.into_iter().next()?;
            Some((name.trim_start_matches('/').to_owned(), now - one.created.unwrap_or(now)))
        });
        Ok(named.collect())
    }

    /// Removes a volume. Nothing there is success.
    pub(crate) async fn remove_environment_volume(&self, name: &str) -> Result<(), RuntimeError> {
        space::remove_volume(&self.inner.engine, name).await
    }
}

fn order(one: &OneOff<'_>) -> Order {
    let bytes = |text: &str| text.as_bytes().to_vec();
    let git = [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", WORKSPACE)];
    let environment = one.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Order {
        argv: vec![bytes("/bin/sh"), bytes("-e"), bytes("-c"), bytes(one.script)],
        env: git.into_iter().chain(environment).map(|(name, value)| (bytes(name), bytes(value))).collect(),
        cwd: bytes(WORKSPACE),
        output: Vec::new(),
    }
}

fn body(one: &OneOff<'_>, image: &ResolvedImage) -> ContainerCreateBody {
    let strings = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let state = Mount {
        typ: Some(MountType::VOLUME),
        source: Some(one.volume.to_owned()),
        target: Some(STATE.to_owned()),
        ..Default::default()
    };
    ContainerCreateBody {
        image: Some(image.id.clone()),
        // What the helper prints into the log is told from the command's words by its first letter alone: whoever writes
        // `up` in `mainstay.yml` has no reason to lie about it.
        entrypoint: Some(strings(&[HELPER_PATH, "step", "apart"])),
        working_dir: Some(WORKSPACE.to_owned()),
        open_stdin: Some(true),
        stdin_once: Some(false),
        attach_stdin: Some(false),
        tty: Some(false),
        stop_signal: Some("SIGTERM".to_owned()),
        healthcheck: Some(HealthConfig { test: Some(strings(&["NONE"])), ..Default::default() }),
        labels: Some(one.labels.clone().into_iter().collect()),
        host_config: Some(HostConfig {
            mounts: Some(vec![state, image::helper_mount()]),
            security_opt: Some(strings(&["no-new-privileges"])),
            cap_drop: Some(strings(&["ALL"])),
            cap_add: Some(strings(&CAPABILITIES)),
            pids_limit: Some(PIDS_DEFAULT),
            log_config: Some(log_without_rotation()),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..Default::default() }),
            auto_remove: Some(false),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Puts the commit's files into `/workspace`, and gives that and `/state` to the image's user.
async fn fill(engine: &Engine, one: &OneOff<'_>, user: (u32, u32)) -> Result<(), RuntimeError> {
    let doing = "put the files of the release into the container";
    let (to_engine, mut pieces) = mpsc::channel::<Bytes>(PIECES_WAITING);
    let (mirror, commit) = (one.files.0.to_owned(), one.files.1.clone());
    let reading = tokio::task::spawn_blocking(move || write_archive(&mirror, &commit, user, to_engine));
    let body = futures_util::stream::poll_fn(move |context| pieces.poll_recv(context));
    let options = UploadToContainerOptions { path: "/".to_owned(), ..Default::default() };
    let sent = engine.api.upload_to_container(one.name, Some(options), bollard::body_stream(body)).await;
    let io = |source| RuntimeError::Io { doing: doing.to_owned(), source };
    let read = reading.await.map_err(|error| io(io::Error::other(error)))?;
    match (sent, read) {
        // The engine went away, and the reader only noticed that.
        (Err(error), Err(read)) if read.kind() == io::ErrorKind::BrokenPipe => Err(engine.error(doing, &error)),
        (_, Err(read)) => Err(io(read)),
        (Err(error), Ok(())) if is_gone(&error) => Err(engine.unreachable("the container went away")),
        (sent, Ok(())) => sent.map_err(|error| engine.error(doing, &error)),
    }
}

/// Gives what is written to the engine, piece by piece.
struct Pieces {
    buffer: Vec<u8>,
    to_engine: mpsc::Sender<Bytes>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.buffer);
        self.to_engine.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn write_archive(mirror: &Path, commit: &Oid, user: (u32, u32), to_engine: mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut archive = tar::Builder::new(Pieces { buffer: Vec::new(), to_engine });
    let header = |kind: tar::EntryType, mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(u64::from(user.0));
        header.set_gid(u64::from(user.1));
        header.set_size(0);
        header
    };
    let folder = WORKSPACE.trim_start_matches('/');
    let inside = |path: &[u8]| -> PathBuf { Path::new(folder).join(OsStr::from_bytes(path)) };
    for top in [folder, STATE.trim_start_matches('/')] {
        archive.append_data(&mut header(tar::EntryType::Directory, 0o755), format!("{top}/"), io::empty())?;
    }
    let mut sink = |change: Change<'_>| match change {
        // Nothing was there before.
        Change::Remove(_) => Ok(()),
        Change::Dir(path) => {
            archive.append_data(&mut header(tar::EntryType::Directory, 0o755), inside(&path), io::empty())
        }
        Change::Link { path, target } => {
            let target = Path::new(OsStr::from_bytes(&target));
            archive.append_link(&mut header(tar::EntryType::Symlink, 0o777), inside(&path), target)
        }
        Change::File { path, executable, data } => {
            let mut header = header(tar::EntryType::Regular, if executable { 0o755 } else { 0o644 });
            header.set_size(data.len() as u64);
            archive.append_data(&mut header, inside(&path), &*data)
        }
    };
    let done = checkout(mirror, commit, None, None, "", &mut sink);
    done.map_err(|error| match error {
        crate::git::GitError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => source,
        other => io::Error::other(other.to_string()),
    })?;
    archive.into_inner()?.flush()
}
