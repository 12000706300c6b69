//! Programs of an image, with their input and output streamed: a container that is there only so that they can be run in it.
//!
//! In: an image, a network, labels. Out: for each program a stream into it, one out of it, its exit code and its last words.
//! Who uses it decides what is run. The container's first process lives as long as somebody holds its input: when we end,
//! however we do, the engine closes that, and the container is gone with all that runs in it. These containers carry no
//! label of an instance, and no sweep of a daemon removes them.
//!
//! The engine's streams may be cut without anybody saying so, and the program then goes on and ends well. So a shell in the
//! container writes a mark and the exit code behind the program's last byte: what comes without them is not all there was.
//! The mark is also how we know the end: an engine may keep the connection open for as long as it has input that the program
//! did not take.

use super::Docker;
use super::container::{self, State, log_without_rotation, look};
use crate::runtime::RuntimeError;
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, RestartPolicy, RestartPolicyNameEnum};
use bollard::query_parameters::{AttachContainerOptions, CreateContainerOptions, StartContainerOptions};
use bytes::{Buf as _, BytesMut};
use futures_util::{Stream, StreamExt as _};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

/// Memory of the container, in which files are put that no disk is to have.
pub(crate) const FOLDER: &str = "/mainstay";
/// Authorities of a system are under 1 MiB, lists of what an archive holds a few.
const FOLDER_MOUNT: &str = "size=32m,mode=1777";
/// Nobody, in numbers: images need not know the name.
const USER: &str = "65534:65534";
/// A program of PostgreSQL is one process for each of its jobs.
const PIDS: i64 = 256;
/// One read of the engine's stream: its frames hold 32 KiB at the most.
const READ_BYTES: usize = 64 << 10;
/// What has come and was not read yet; then the program waits.
const OUTPUT_BYTES: usize = 256 << 10;
/// As much of what a program says is kept, from the end.
const SAID_BYTES: usize = 4 << 10;
/// An engine under load takes seconds to start a container; one that takes longer is not well.
const START_WITHIN: Duration = Duration::from_secs(60);
/// What is not running and younger than this may be about to be started by somebody.
const YOUNG_SECS: i64 = 60;
/// Keeps the container: ends when nobody holds its input.
const KEEP: &str = "exec cat >/dev/null";
/// Runs a program. A mark follows what it says and what it writes, and behind the latter its exit code.
const RUN: &str = "mark=$1; shift; \"$@\"; code=$?; printf %s \"$mark\" >&2; printf '%s%03d' \"$mark\" \"$code\"";
/// Takes a file, seen by nobody else.
const TAKE: &str = "umask 077; cat >\"$1\"";
const CODE_DIGITS: usize = 3;

/// A container for programs.
#[derive(Debug, Clone)]
pub(crate) struct ToolsSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: HashMap<String, String>,
    /// The image's id.
    pub(crate) image: &'a str,
    /// `host`, or one of the engine's by its name.
    pub(crate) network: &'a str,
}

/// A container in which programs can be run. Dropped, it is removed.
pub(crate) struct Tools {
    docker: Docker,
    name: String,
    /// Its first process' input: it ends with it. Nobody waits for this lock: it only lets threads share what is behind it.
    life: Mutex<Option<AttachContainerResults>>,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolEnd {
    /// Its exit code; of a signal 128 and its number.
    pub(crate) code: i32,
    /// Its last words.
    pub(crate) said: String,
}

/// A program that runs. Dropped before its end, its container is removed, and only then does its input end.
pub(crate) struct Tool {
    docker: Docker,
    container: String,
    input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    output: Option<DuplexStream>,
    end: Option<JoinHandle<Result<ToolEnd, RuntimeError>>>,
    /// Its end, when that was seen while something was given to it.
    ended: Option<Result<ToolEnd, RuntimeError>>,
}

impl Docker {
    /// Makes such a container and starts it.
    pub(crate) async fn start_tools(&self, spec: &ToolsSpec<'_>) -> Result<Tools, RuntimeError> {
        let engine = &self.inner.engine;
        let strings = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let body = ContainerCreateBody {
            image: Some(spec.image.to_owned()),
            user: Some(USER.to_owned()),
            entrypoint: Some(strings(&["sh", "-c", KEEP])),
            cmd: Some(Vec::new()),
            working_dir: Some("/".to_owned()),
            labels: Some(spec.labels.clone()),
            open_stdin: Some(true),
            // The engine closes it when whoever is attached goes away.
            stdin_once: Some(true),
            attach_stdin: Some(true),
            tty: Some(false),
            healthcheck: Some(HealthConfig { test: Some(strings(&["NONE"])), ..Default::default() }),
            host_config: Some(HostConfig {
                network_mode: Some(spec.network.to_owned()),
                readonly_rootfs: Some(true),
                tmpfs: Some(HashMap::from([(FOLDER.to_owned(), FOLDER_MOUNT.to_owned())])),
                security_opt: Some(strings(&["no-new-privileges"])),
                cap_drop: Some(strings(&["ALL"])),
                pids_limit: Some(PIDS),
                log_config: Some(log_without_rotation()),
                restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..Default::default() }),
                auto_remove: Some(true),
                ..Default::default()
            }),
            ..Default::default()
        };
        let options = CreateContainerOptions { name: Some(spec.name.to_owned()), ..Default::default() };
        let made = engine.api.create_container(Some(options), body).await;
        made.map_err(|e| engine.error(format!("make the container {}", spec.name), &e))?;
        let mut tools = Tools { docker: self.clone(), name: spec.name.to_owned(), life: Mutex::new(None) };
        crate::failpoint!("tools: made, not started");
        let doing = || format!("start the container {}", spec.name);
        let started = async {
            let options = AttachContainerOptions { stream: true, stdin: true, ..Default::default() };
            tools.life = Mutex::new(Some(engine.api.attach_container(spec.name, Some(options)).await?));
            engine.api.start_container(spec.name, None::<StartContainerOptions>).await
        };
        let started = match tokio::time::timeout(START_WITHIN, started).await {
            Ok(started) => started.map_err(|e| engine.error(doing(), &e)),
            Err(_) => Err(engine.unreachable("it does not start a container")),
        };
        match started {
            Ok(()) => Ok(tools),
            Err(error) => {
                tools.close().await;
                Err(error)
            }
        }
    }

    /// Removes containers that carry all these labels: every one, or those that do not run and are not about to.
    pub(crate) async fn sweep_tools(&self, labels: &[String], every: bool) -> Result<(), RuntimeError> {
        let engine = &self.inner.engine;
        for (name, age_secs) in self.one_offs(labels).await? {
            let ended = !matches!(look(engine, &name).await?, State::Running);
            if every || (ended && age_secs > YOUNG_SECS) {
                container::remove(engine, &name).await?;
            }
        }
        Ok(())
    }
}

impl Tools {
    /// Begins a program with these variables on top of the image's own. Without `takes` its input is empty; without `gives`
    /// what it writes is thrown away.
    pub(crate) async fn run(
        &self,
        command: &[String],
        environment: &[(String, String)],
        (takes, gives): (bool, bool),
    ) -> Result<Tool, RuntimeError> {
        let engine = &self.docker.inner.engine;
        let wrong = |e: &Error| engine.error(format!("run {} in {}", command[0], self.name), e);
        let random = getrandom::u64().map_err(|error| RuntimeError::Io {
            doing: format!("run {}", command[0]),
            source: io::Error::other(error.to_string()),
        })?;
        let mark = format!("\nmainstay-{random:016x}-");
        let shell = ["sh", "-c", RUN, "sh", &mark].map(str::to_owned);
        let options = CreateExecOptions {
            attach_stdin: Some(takes),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            cmd: Some(shell.into_iter().chain(command.iter().cloned()).collect()),
            ..Default::default()
        };
        let id = engine.api.create_exec(&self.name, options).await.map_err(|e| wrong(&e))?.id;
        let options = StartExecOptions { output_capacity: Some(READ_BYTES), ..Default::default() };
        let started = engine.api.start_exec(&id, Some(options)).await.map_err(|e| wrong(&e))?;
        let StartExecResults::Attached { output, input } = started else {
            return Err(engine.unreachable("it gives no streams of a program"));
        };
        let (near, far) = tokio::io::duplex(OUTPUT_BYTES);
        let (near, far) = if gives { (Some(near), Some(far)) } else { (None, None) };
        let (docker, what) = (self.docker.clone(), command[0].clone());
        let end = tokio::spawn(async move {
            let engine = &docker.inner.engine;
            match pumped(output, far, mark.as_bytes()).await {
                Ok(Some(end)) => Ok(end),
                Ok(None) => Err(engine.unreachable(format!("what {what} writes ended before the program did"))),
                Err(error) => Err(engine.error(format!("read what {what} writes"), &error)),
            }
        });
        let input = takes.then_some(input);
        let (docker, container) = (self.docker.clone(), self.name.clone());
        Ok(Tool { docker, container, input, output: near, end: Some(end), ended: None })
    }

    /// Puts a file into the container's memory; gives its path there.
    pub(crate) async fn put(&self, name: &str, bytes: &[u8]) -> Result<String, RuntimeError> {
        let path = format!("{FOLDER}/{name}");
        let command = ["sh", "-c", TAKE, "sh", &path].map(str::to_owned);
        let mut tool = self.run(&command, &[], (true, false)).await?;
        let doing = || format!("put {name} into the container {}", self.name);
        // One that ends early says why itself.
        let _ = tool.give(bytes).await;
        tool.close_input().await;
        match tool.end().await? {
            ToolEnd { code: 0, .. } => Ok(path),
            ToolEnd { said, .. } => Err(RuntimeError::Refused { doing: doing(), detail: said }),
        }
    }

    /// Removes the container, with whatever runs in it.
    pub(crate) async fn close(mut self) {
        if let Err(error) = container::remove(&self.docker.inner.engine, &self.name).await {
            tracing::warn!(container = self.name, %error, "a container for programs is left");
        }
        self.name.clear();
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        // Without its first process it ends by itself, and the engine removes it.
        self.life = Mutex::new(None);
        if !self.name.is_empty() {
            removed_later(&self.docker, std::mem::take(&mut self.name), None);
        }
    }
}

impl Tool {
    /// Gives it bytes; `BrokenPipe` when it has ended, or takes no more.
    pub(crate) async fn give(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (Some(input), Some(end)) = (&mut self.input, &mut self.end) else {
            return Err(ErrorKind::BrokenPipe.into());
        };
        let giving = async {
            input.write_all(bytes).await?;
            input.flush().await
        };
        tokio::select! {
            given = giving => given.map_err(|error| match error.kind() {
                // How an engine hangs up.
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::NotConnected => {
                    ErrorKind::BrokenPipe.into()
                }
                _ => error,
            }),
            ended = &mut *end => {
                (self.end, self.ended) = (None, Some(ended.unwrap_or_else(|_| Err(self.gone()))));
                Err(ErrorKind::BrokenPipe.into())
            }
        }
    }

    /// Its input is over.
    pub(crate) async fn close_input(&mut self) {
        if let Some(mut input) = self.input.take() {
            // One that has ended needs no end of its input.
            let _ = input.shutdown().await;
        }
    }

    /// What comes out of it. To be read to its end.
    pub(crate) fn take_output(&mut self) -> Option<DuplexStream> {
        self.output.take()
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Result<ToolEnd, RuntimeError> {
        if let Some(ended) = self.ended.take() {
            return ended;
        }
        let Some(end) = self.end.as_mut() else { return Err(self.gone()) };
        let ended = end.await;
        self.end = None;
        ended.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Ends it, with its container.
    pub(crate) async fn kill(mut self) {
        if let Err(error) = container::remove(&self.docker.inner.engine, &self.container).await {
            tracing::warn!(container = self.container, %error, "a container for programs is left");
        }
        self.stopped();
    }

    fn gone(&self) -> RuntimeError {
        RuntimeError::Gone { what: format!("the program in {}", self.container) }
    }

    fn stopped(&mut self) {
        if let Some(end) = self.end.take() {
            end.abort();
        }
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if self.end.is_none() {
            return;
        }
        self.stopped();
        // With the end of its input it would take what came for all there is.
        removed_later(&self.docker, std::mem::take(&mut self.container), self.input.take());
    }
}

/// Removes a container beside whatever goes on; what is given is dropped afterwards.
fn removed_later(docker: &Docker, name: String, after: Option<Pin<Box<dyn AsyncWrite + Send>>>) {
    let Ok(handle) = tokio::runtime::Handle::try_current() else { return };
    let docker = docker.clone();
    handle.spawn(async move {
        if let Err(error) = container::remove(&docker.inner.engine, &name).await {
            tracing::warn!(container = name, %error, "a container for programs is left");
        }
        drop(after);
    });
}

/// Brings what a program writes to its reader, up to the mark. `None` when it ends without one.
async fn pumped(
    mut output: impl Stream<Item = Result<LogOutput, Error>> + Unpin,
    mut reader: Option<DuplexStream>,
    mark: &[u8],
) -> Result<Option<ToolEnd>, Error> {
    let last = mark.len() + CODE_DIGITS;
    let (mut held, mut said) = (BytesMut::with_capacity(READ_BYTES), Vec::new());
    while let Some(part) = output.next().await {
        match part? {
            LogOutput::StdOut { message } => {
                held.extend_from_slice(&message);
                // The last bytes may be the mark.
                let sure = held.len().saturating_sub(last);
                if let (Some(reader), true) = (&mut reader, sure > 0) {
                    reader.write_all(&held[..sure]).await.map_err(|err| Error::IOError { err })?;
                }
                held.advance(sure);
            }
            LogOutput::StdErr { message } => {
                said.extend_from_slice(&message);
                let excess = said.len().saturating_sub(SAID_BYTES);
                said.drain(..excess);
            }
            // Half of a frame, or no frame at all.
            LogOutput::Console { .. } | LogOutput::StdIn { .. } => return Ok(None),
        }
        // Each stream comes in order, and neither waits for the other.
        if let (true, Some(code), Some(said)) = (held.len() == last, held.strip_prefix(mark), said.strip_suffix(mark)) {
            let code = std::str::from_utf8(code).ok().and_then(|code| code.parse().ok());
            return Ok(code.map(|code| ToolEnd { code, said: String::from_utf8_lossy(said).trim().to_owned() }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use tokio::io::AsyncReadExt as _;

    const MARK: &[u8] = b"\nmainstay-0123456789abcdef-";

    /// What the reader gets, and the end, of output that comes in pieces of this length.
    async fn through(text: &[u8], piece: usize) -> (Vec<u8>, Option<ToolEnd>) {
        let (words, end) =
            (LogOutput::StdErr { message: "words\n".into() }, LogOutput::StdErr { message: MARK.into() });
        let parts = text.chunks(piece).map(|part| LogOutput::StdOut { message: part.to_vec().into() });
        let mut parts: Vec<_> = [words].into_iter().chain(parts).map(Ok).collect();
        // The two streams come in any order.
        parts.insert(1 + parts.len() / 2, Ok(end));
        let (mut near, far) = tokio::io::duplex(16);
        let pumping = tokio::spawn(async move { pumped(stream::iter(parts), Some(far), MARK).await.unwrap() });
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        (got, pumping.await.unwrap())
    }

    #[tokio::test]
    async fn what_has_no_mark_at_its_end_is_not_all_there_was() {
        let ended = |code| Some(ToolEnd { code, said: "words".into() });
        for piece in [1, 7, 30, 1_000] {
            // Bytes that look like the mark are only that at the very end.
            let data = b"some \0 bytes\nmainstay-ffffffffffffffff-000 and more".to_vec();
            for (code, text) in [(0, &b"000"[..]), (137, b"137")] {
                let text = [&data[..], MARK, text].concat();
                assert_eq!(through(&text, piece).await, (data.clone(), ended(code)));
                for cut in [1, 3, 10, text.len() - 5] {
                    let (got, end) = through(&text[..text.len() - cut], piece).await;
                    assert!(end.is_none() && data.starts_with(&got), "{piece} {cut}");
                }
            }
            assert_eq!(through(&[MARK, b"001"].concat(), piece).await, (Vec::new(), ended(1)));
            assert_eq!(through(b"", piece).await.1, None);
        }
    }

    #[tokio::test]
    async fn the_marks_of_both_streams_are_the_end_and_half_a_frame_is_none() {
        let out = || Ok(LogOutput::StdOut { message: [MARK, b"007"].concat().into() });
        let err = || Ok(LogOutput::StdErr { message: [b"why", MARK].concat().into() });
        let half = || Ok(LogOutput::Console { message: "\u{1}".into() });
        let end = async |parts: Vec<_>| pumped(stream::iter(parts), None, MARK).await.unwrap();
        assert_eq!(end(vec![out()]).await, None);
        assert_eq!(end(vec![err()]).await, None);
        assert_eq!(end(vec![out(), half(), err()]).await, None);
        // The connection may go on without end.
        let open = stream::iter([err(), out()]).chain(stream::pending());
        let said = pumped(open, None, MARK).await.unwrap();
        assert_eq!(said, Some(ToolEnd { code: 7, said: "why".into() }));
    }
}
