//! PostgreSQL's own programs out of an image, in a container that is made for them.
//!
//! The password goes into a file in the container's memory, through the input of a program there: it stands in no argument, in
//! no environment, on no disk, and in nothing that the engine tells of a container.

use super::here::system_roots;
use super::variables::{database, password_line, variables};
use super::{ProgramError, Streams, major_of};
use crate::backup::source::postgres::{Address, Host, Roots, Tls};
use crate::model::{SourceName, SystemId};
use crate::runtime::RuntimeError;
use crate::runtime::docker::Docker;
use crate::runtime::docker::tools::{Tool, ToolEnd, Tools, ToolsSpec};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;

/// On containers for programs: the source.
pub const LABEL: &str = "mainstay.copy";
/// And whose they are.
const LABEL_OF: &str = "mainstay.copy.of";
/// What is read of a program that answers a question.
const ANSWER_BYTES: u64 = 64 << 10;
/// What a shell ends with when it does not find a program, and when it may not run it.
const NOT_THERE: [i32; 2] = [127, 126];
/// Codes beyond this are those of signals.
const SIGNALS: i32 = 128;

/// Whose containers for programs of a source are. Says which are left over from an earlier time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// The one who holds the source's lease: all that were made before are left over. The text says who that is: another
    /// daemon on the same engine may have a source of the same name.
    Holder(String),
    /// Anybody, several at once.
    Anybody,
}

/// Programs of an image.
#[derive(Clone)]
pub struct InImage {
    /// The engine.
    pub docker: Docker,
    /// The image, as the engine knows it.
    pub image: String,
    /// `host`, or a network of the engine.
    pub network: String,
    /// The source.
    pub source: SourceName,
    /// Whose its container is.
    pub whose: Whose,
    /// Is told what is pulled, in sentences.
    pub progress: Arc<dyn Fn(String) + Send + Sync>,
}

impl fmt::Debug for InImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InImage").field("image", &self.image).field("network", &self.network).finish_non_exhaustive()
    }
}

impl InImage {
    fn labels(&self) -> HashMap<String, String> {
        let of = match &self.whose {
            // What tells daemons apart may be long, and is nobody else's affair.
            Whose::Holder(whose) => hex::encode(&Sha256::digest(whose)[..8]),
            Whose::Anybody => "anybody".to_owned(),
        };
        HashMap::from([(LABEL.to_owned(), self.source.to_string()), (LABEL_OF.to_owned(), of)])
    }

    /// Removes what earlier ones have left that were killed.
    async fn sweep(&self) -> Result<(), RuntimeError> {
        let labels: Vec<String> = self.labels().iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.docker.sweep_tools(&labels, matches!(self.whose, Whose::Holder(_))).await
    }
}

/// A container in which the programs are.
pub(super) struct Opened {
    tools: Tools,
    image: String,
    network: String,
}

/// Starts a container of the image; gives it with the version of `program` in it.
pub(super) async fn open(
    program: &'static str,
    of: &InImage,
    at_least: u32,
) -> Result<(Opened, u32, String), ProgramError> {
    let id = of.docker.image_says(&of.image, &*of.progress).await?.id;
    if of.network != "host" && !of.docker.has_network(&of.network).await? {
        return Err(of.elsewhere("there is no such network\nhint: `docker network ls` shows those that there are"));
    }
    of.sweep().await?;
    let random = getrandom::u64().map_err(|error| ProgramError::Io { program, error: std::io::Error::other(error) })?;
    let name = format!("mainstay-copy-{}-{random:016x}", of.source);
    let spec = ToolsSpec { name: &name, labels: of.labels(), image: &id, network: &of.network };
    let not_in = |what: String| {
        let image = of.image.clone();
        ProgramError::NotInImage { program, at_least, image, what }
    };
    let tools = match of.docker.start_tools(&spec).await {
        // It has no shell. Engines say it in these words.
        Err(RuntimeError::Refused { detail, .. })
            if detail.contains("not found") || detail.contains("no such file") =>
        {
            return Err(not_in(format!("it cannot be asked: {}", detail.trim())));
        }
        tools => tools?,
    };
    let opened = Opened { tools, image: of.image.clone(), network: of.network.clone() };
    let said = match opened.answer(&[program, "--version"], &[]).await {
        Ok((ToolEnd { code: 0, .. }, said)) => Ok(said),
        Ok((ToolEnd { code, .. }, _)) if NOT_THERE.contains(&code) => Err(not_in("there is none in its PATH".into())),
        Ok((ToolEnd { said, .. }, _)) => Err(not_in(format!("it does not run: {said}"))),
        Err(error) => Err(error.into()),
    };
    let version = said.and_then(|said| match major_of(&said) {
        Some(major) if major >= at_least => Ok((major, said)),
        Some(_) => Err(not_in(format!("it has {said}"))),
        None => Err(not_in(format!("it says of itself `{said}`"))),
    });
    match version {
        Ok((major, said)) => Ok((opened, major, said)),
        Err(error) => {
            opened.close().await;
            Err(error)
        }
    }
}

impl InImage {
    fn elsewhere(&self, why: &str) -> ProgramError {
        let (image, network) = (self.image.clone(), self.network.clone());
        ProgramError::Elsewhere { image, network, why: why.to_owned() }
    }
}

impl Opened {
    fn elsewhere(&self, why: impl Into<String>) -> ProgramError {
        ProgramError::Elsewhere { image: self.image.clone(), network: self.network.clone(), why: why.into() }
    }

    /// Hands over what leads to a server, and looks whether it is this one.
    pub(super) async fn led(
        &self,
        address: &Address,
        meeting: &str,
        system: SystemId,
    ) -> Result<Vec<(String, String)>, ProgramError> {
        if address.hosts.iter().any(|host| matches!(host, Host::Unix(..))) {
            return Err(self.elsewhere(
                "its address is a Unix socket, which a container does not see\nhint: name the server's host, or use programs \
                 of this machine in place of the image",
            ));
        }
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| self.elsewhere(format!("read {}: {error}", path.display())))
        };
        let roots = match &address.roots {
            Roots::File(path) => Some(self.put("roots.pem", &read(path)?).await?),
            // What this machine trusts: most images trust nobody.
            Roots::System if matches!(address.tls, Tls::VerifyCa | Tls::VerifyFull) => match system_roots() {
                Some(path) => Some(self.put("roots.pem", &read(path.as_ref())?).await?),
                None => Some("system".to_owned()),
            },
            Roots::System => None,
        };
        let line = match &address.password {
            Some(password) => password_line(password.expose()).ok_or_else(|| {
                self.elsewhere(
                    "the password has a line break, which no password file can hold\nhint: give the role another one, or use \
                     programs of this machine in place of the image",
                )
            })?,
            None => String::new(),
        };
        let passwords = self.put("passwords", line.as_bytes()).await?;
        let environment = variables(address, &passwords, roots);
        let sql = "SELECT system_identifier FROM pg_catalog.pg_control_system()";
        let place = database(meeting);
        let (end, said) = self.answer(&["psql", "-XAtqw", "-d", &place, "-c", sql], &environment).await?;
        let hint = "hint: `network` says which network of the engine it is on; `host` is that of the engine's machine";
        match end {
            // The server prints it as a signed number.
            ToolEnd { code: 0, .. } if said.parse() == Ok(system.0.cast_signed()) => Ok(environment),
            ToolEnd { code: 0, .. } => {
                Err(self.elsewhere(format!("another server answers there, of the cluster {said}\n{hint}")))
            }
            ToolEnd { said, .. } => Err(self.elsewhere(format!("{said}\n{hint}"))),
        }
    }

    /// Begins a program.
    pub(super) async fn start(
        &self,
        program: &str,
        args: &[&str],
        environment: &[(String, String)],
        streams: Streams,
    ) -> Result<Tool, RuntimeError> {
        let command: Vec<String> = [&[program], args].concat().into_iter().map(str::to_owned).collect();
        self.tools.run(&command, environment, (streams.takes, streams.gives)).await
    }

    /// How a program ends that is asked something, and what it answers.
    async fn answer(
        &self,
        command: &[&str],
        environment: &[(String, String)],
    ) -> Result<(ToolEnd, String), RuntimeError> {
        let streams = Streams { takes: false, gives: true };
        let mut tool = self.start(command[0], &command[1..], environment, streams).await?;
        let mut said = Vec::new();
        if let Some(output) = tool.take_output() {
            // An end without all of it is told by the program's own.
            let _ = output.take(ANSWER_BYTES).read_to_end(&mut said).await;
        }
        Ok((tool.end().await?, String::from_utf8_lossy(&said).trim().to_owned()))
    }

    /// Puts a file into the container's memory; gives its path there.
    pub(super) async fn put(&self, name: &str, bytes: &[u8]) -> Result<String, RuntimeError> {
        self.tools.put(name, bytes).await
    }

    pub(super) async fn close(self) {
        self.tools.close().await;
    }
}

/// How a program ended, as if it had been one of this machine.
pub(super) fn ended(end: ToolEnd) -> (ExitStatus, String) {
    let raw = if end.code > SIGNALS { end.code - SIGNALS } else { end.code << 8 };
    (ExitStatus::from_raw(raw), end.said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_told_from_codes() {
        let told = |code| ended(ToolEnd { code, said: String::new() }).0.to_string();
        assert_eq!(
            (told(0), told(3), told(137)),
            ("exit status: 0".into(), "exit status: 3".into(), "signal: 9 (SIGKILL)".into())
        );
    }
}
