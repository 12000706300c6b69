//! PostgreSQL's own programs, in one of two ways: those of this machine, or those of an image in a container made for them.
//! Chosen by version, told where the server is by their environment, and believed only when they end with 0.
//!
//! Who copies and restores sees no difference: a [`Way`] is opened to [`Programs`], these meet a server as a [`Client`], and
//! that starts programs whose streams go through [`Running`]. The password is never an argument, which every user of the
//! machine could read.

mod here;
mod image;
mod variables;

pub use here::{places, usual_folders};
pub use image::{InImage, LABEL, Whose};
pub(super) use variables::database;

use crate::backup::source::postgres::Address;
use crate::config::backup::ProgramsOf;
use crate::model::{SourceName, SystemId};
use crate::runtime::RuntimeError;
use crate::runtime::docker::Docker;
use crate::runtime::docker::tools::Tool;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use tokio::io::AsyncRead;

/// Where the programs come from.
#[derive(Debug, Clone)]
pub enum Way {
    /// This machine: the folder that they are in; looked for when `None`.
    Here(Option<PathBuf>),
    /// An image.
    Image(InImage),
}

impl Way {
    /// As the configuration says it. The engine is asked for only where there is an image; `progress` hears what is pulled.
    ///
    /// # Errors
    /// What the engine says.
    pub fn of<E>(
        said: &ProgramsOf,
        source: &SourceName,
        whose: Whose,
        progress: Arc<dyn Fn(String) + Send + Sync>,
        engine: impl FnOnce() -> Result<Docker, E>,
    ) -> Result<Way, E> {
        Ok(match said {
            ProgramsOf::Machine(bin) => Way::Here(bin.clone()),
            ProgramsOf::Image { image, network } => Way::Image(InImage {
                docker: engine()?,
                image: image.clone(),
                network: network.clone(),
                source: source.clone(),
                whose,
                progress,
            }),
        })
    }
}

/// Why a program was of no use. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there in a version that will do.
    #[error(
        "find {program} of PostgreSQL {at_least} or later: {what}\nhint: install the client programs of PostgreSQL {at_least}, or \
         name their folder with {}, or an image that has them with `image`\nhint: without that they are looked for in {}",
        named_by(.program), places(*.at_least)
    )]
    NotFound {
        /// Which.
        program: &'static str,
        /// The oldest major version that will do.
        at_least: u32,
        /// What was found instead.
        what: String,
    },
    /// The image does not have it in a version that will do.
    #[error(
        "find {program} of PostgreSQL {at_least} or later in the image {image}: {what}\nhint: name an image of that version, \
         such as `postgres:{at_least}`"
    )]
    NotInImage {
        /// Which.
        program: &'static str,
        /// The oldest major version that will do.
        at_least: u32,
        /// Where.
        image: String,
        /// What was found instead.
        what: String,
    },
    /// The container engine, or the image could not be had.
    #[error("{error}{}", hint(.error))]
    Engine {
        /// Why.
        #[from]
        error: RuntimeError,
    },
    /// The server is not reached from the container as it is from here.
    #[error("reach the server from a container of {image} on the network {network}: {why}")]
    Elsewhere {
        /// The image.
        image: String,
        /// The network.
        network: String,
        /// What is wrong, with hints.
        why: String,
    },
    /// It could not be started, or talked with.
    #[error("run {program}: {error}")]
    Io {
        /// Which.
        program: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// It failed.
    #[error("run {program}: it ended with {status}{}{said}", if .said.is_empty() { "" } else { ": " })]
    Ended {
        /// Which.
        program: &'static str,
        /// How.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
}

fn hint(error: &RuntimeError) -> &'static str {
    match error {
        RuntimeError::Image { .. } => {
            "\nhint: name an image that the engine has or can pull: `docker image ls` shows those that it has"
        }
        _ => "",
    }
}

/// PostgreSQL's programs of one version.
pub struct Programs {
    /// Their major version.
    pub major: u32,
    /// What `--version` says.
    pub version: String,
    place: Place,
}

enum Place {
    Here(PathBuf),
    Image(image::Opened),
}

impl Programs {
    /// Finds `program`, and those beside it, of this major version or a later one. Of this machine the oldest that will do is
    /// taken. An image is pulled when the engine does not have it, and its container is there until [`Programs::close`].
    ///
    /// # Errors
    /// When there is none that will do.
    pub async fn find(program: &'static str, way: &Way, at_least: u32) -> Result<Programs, ProgramError> {
        let (major, version, place) = match way {
            Way::Here(bin) => {
                let (bin, major, version) = here::find(program, bin.as_deref(), at_least).await?;
                (major, version, Place::Here(bin))
            }
            Way::Image(image) => {
                let (opened, major, version) = image::open(program, image, at_least).await?;
                (major, version, Place::Image(opened))
            }
        };
        Ok(Programs { major, version, place })
    }

    /// Leads them to a server. From a container it is looked, in the database `meeting`, whether the server there is the one
    /// that is known here: an address may lead elsewhere from another network.
    ///
    /// # Errors
    /// When the server is not reached in this way.
    pub(super) async fn against(
        self,
        address: &Address,
        meeting: &str,
        system: SystemId,
    ) -> Result<Client, ProgramError> {
        let environment = match &self.place {
            Place::Here(_) => Ok(here::environment(address)),
            Place::Image(opened) => opened.led(address, meeting, system).await,
        };
        match environment {
            Ok(environment) => Ok(Client { programs: self, environment }),
            Err(error) => {
                self.close().await;
                Err(error)
            }
        }
    }

    /// They are not needed any more.
    pub async fn close(self) {
        match self.place {
            Place::Here(_) => {}
            Place::Image(opened) => opened.close().await,
        }
    }
}

/// Which streams of a program go through our hands. Without `takes` its input is empty; without `gives` what it writes is
/// thrown away.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Streams {
    pub(super) takes: bool,
    pub(super) gives: bool,
}

/// Programs that know their server.
pub(super) struct Client {
    programs: Programs,
    environment: Vec<(String, String)>,
}

impl Client {
    /// What `--version` says.
    pub(super) fn version(&self) -> &str {
        &self.programs.version
    }

    /// Begins one of them.
    pub(super) async fn start(
        &self,
        program: &'static str,
        args: &[&str],
        streams: Streams,
    ) -> Result<Running, ProgramError> {
        let of = match &self.programs.place {
            Place::Here(bin) => Of::Here(
                here::start(&bin.join(program), args, &self.environment, streams)
                    .map_err(|error| ProgramError::Io { program, error })?,
            ),
            Place::Image(opened) => Of::Image(opened.start(program, args, &self.environment, streams).await?),
        };
        Ok(Running { program, of })
    }

    /// A file for them. It is there as long as what this gives.
    pub(super) async fn file(&self, text: &str) -> Result<Handed, ProgramError> {
        match &self.programs.place {
            Place::Here(_) => {
                let file =
                    here::List::write(text).map_err(|error| ProgramError::Io { program: "pg_restore", error })?;
                Ok(Handed { path: file.path(), _file: Some(file) })
            }
            Place::Image(opened) => Ok(Handed { path: opened.put("list", text.as_bytes()).await?, _file: None }),
        }
    }

    /// They are not needed any more.
    pub(super) async fn close(self) {
        self.programs.close().await;
    }
}

/// A file that programs see under this path.
pub(super) struct Handed {
    pub(super) path: String,
    _file: Option<here::List>,
}

/// A program that runs. Dropped, it is killed, and only then its input ends.
pub(super) struct Running {
    program: &'static str,
    of: Of,
}

enum Of {
    Here(here::Child),
    Image(Tool),
}

impl Running {
    /// Gives it bytes.
    ///
    /// # Errors
    /// `BrokenPipe` when it takes no more.
    pub(super) async fn give(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.of {
            Of::Here(child) => child.give(bytes).await,
            Of::Image(tool) => tool.give(bytes).await,
        }
    }

    /// There is no more for it.
    pub(super) async fn close_input(&mut self) {
        match &mut self.of {
            Of::Here(child) => child.close_input(),
            Of::Image(tool) => tool.close_input().await,
        }
    }

    /// What it writes. To be read to its end, or dropped.
    ///
    /// # Errors
    /// When it was not asked for.
    pub(super) fn output(&mut self) -> Result<Box<dyn AsyncRead + Send + Unpin>, ProgramError> {
        let output: Option<Box<dyn AsyncRead + Send + Unpin>> = match &mut self.of {
            Of::Here(child) => child.output().map(|output| Box::new(output) as _),
            Of::Image(tool) => tool.take_output().map(|output| Box::new(output) as _),
        };
        output.ok_or_else(|| self.io(std::io::Error::other("its output is not to be had")))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it failed.
    pub(super) async fn end(self) -> Result<(), ProgramError> {
        let program = self.program;
        let (status, said) = match self.of {
            Of::Here(child) => child.end().await.map_err(|error| ProgramError::Io { program, error })?,
            Of::Image(tool) => image::ended(tool.end().await?),
        };
        if status.success() { Ok(()) } else { Err(ProgramError::Ended { program, status, said }) }
    }

    /// Ends it, whatever it is doing.
    pub(super) async fn kill(self) {
        match self.of {
            Of::Here(child) => child.kill().await,
            Of::Image(tool) => tool.kill().await,
        }
    }

    pub(super) fn io(&self, error: std::io::Error) -> ProgramError {
        ProgramError::Io { program: self.program, error }
    }
}

/// What names the folder of a program.
fn named_by(program: &str) -> &'static str {
    match program {
        "pg_restore" => "`--bin DIR`, or `bin` under `restore` in the source's file",
        _ => "`bin` in the source's file",
    }
}

/// 15 of `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, 19 of `pg_dump (PostgreSQL) 19beta1`.
fn major_of(said: &str) -> Option<u32> {
    let digits = said.split_once("(PostgreSQL) ")?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (said, major) in [
            ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some(15)),
            ("pg_restore (PostgreSQL) 19beta1", Some(19)),
            ("pg_dump (PostgreSQL) 9.6.24", Some(9)),
            ("pg_dump", None),
            ("", None),
        ] {
            assert_eq!(major_of(said), major, "{said}");
        }
    }
}
