//! A container engine as the place of a restore: an image of the right version, and a volume or folder that its containers
//! see, reached by its path on this machine so that nothing is written twice.
//!
//! In: what is wanted, and an engine. Out: a data directory to write into, and whose its files are. Everything that can be
//! refused is refused in [`Container::check`], before anything is fetched or written. `way` has that, and makes the place;
//! `start/container` then runs the server.

mod way;

use super::RestoreError;
use super::plan::Program;
use super::start::{PAGE_QUESTION, major_of};
use crate::model::SourceName;
use crate::runtime::RuntimeError;
use crate::runtime::docker::Docker;
use crate::runtime::docker::server::Source;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// On containers and volumes that a restore made: the source. By it what an interrupted restore left is known.
pub const LABEL: &str = "mainstay.restore";

/// Where images keep a cluster that do not say it themselves.
const USUAL_DATA: &str = "/var/lib/postgresql/data";
/// Who runs the server in an image that nobody says otherwise of.
const USUAL_USER: &str = "postgres";
/// Where Debian's and the usual images have the socket; `/tmp` is PostgreSQL's own choice.
const SOCKETS: &str = "/var/run/postgresql";

/// What is wanted of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The source; what is made carries its name in a label.
    pub source: SourceName,
    /// The image, as the engine knows it.
    pub image: String,
    /// The image's user that files belong to and that the server runs as; `postgres` unless it is given.
    pub user: Option<String>,
    /// Where the data goes.
    pub keep: Keep,
    /// The server; files only when there is none.
    pub server: Option<Published>,
}

/// Where the data goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// A volume of the engine; made when it is not there.
    Volume(String),
    /// A folder of this machine.
    Folder(PathBuf),
}

/// How a started container is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The container's name.
    pub name: String,
    /// The address of this machine that it is published at.
    pub listen: IpAddr,
    /// And the port.
    pub port: u16,
    /// The engine's network that it joins in place of the usual one.
    pub network: Option<String>,
    /// The role that checks are asked as, in the container, over its socket.
    pub role: String,
}

/// An image that was looked at, and a place that was not yet.
#[derive(Clone)]
pub struct Container {
    pub(super) docker: Docker,
    pub(super) wanted: Wanted,
    /// The image's content.
    pub(super) image: String,
    /// The path of `postgres` in it.
    pub(super) postgres: String,
    /// The folder of its socket in it.
    pub(super) socket: String,
    program: Program,
    owner: (u32, u32),
    /// Where the volume or folder stands in the container.
    pub(super) mount: String,
    /// The data directory below that.
    below: PathBuf,
    /// Where the content of the place went that was there before.
    pub(super) aside: Option<String>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("wanted", &self.wanted).field("image", &self.image).finish_non_exhaustive()
    }
}

impl fmt::Display for Container {
    /// What is made where, for the plan.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, for {}", self.words(), self.wanted.image)?;
        match &self.wanted.server {
            Some(server) => write!(f, " in the container {} at {}:{}", server.name, server.listen, server.port),
            None => Ok(()),
        }
    }
}

fn refused(what: impl ToString, why: impl Into<String>) -> RestoreError {
    RestoreError::Container { what: what.to_string(), why: why.into() }
}

impl Container {
    /// Looks at the image, which is pulled when the engine does not have it; `progress` is told in sentences.
    ///
    /// # Errors
    /// When the engine does not answer, or the image cannot be had or holds no PostgreSQL.
    pub async fn look(
        docker: Docker,
        wanted: Wanted,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Container, RestoreError> {
        let name = format!("the image {}", wanted.image);
        let says = docker.image_says(&wanted.image, progress).await?;
        let user = wanted.user.as_deref().unwrap_or(USUAL_USER);
        let numbers = numbers(user);
        let plain = user.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) && !user.starts_with('-');
        if !plain && numbers.is_none() {
            return Err(refused(name, format!("`{user}` is not the name of a user, nor its numbers `USER:GROUP`")));
        }
        let told = match docker.ask_image(&says.id, &questions(user), None).await {
            Err(RuntimeError::Refused { detail, .. }) => {
                return Err(refused(name, format!("it cannot be asked what it holds: {}", detail.trim())));
            }
            told => told?,
        };
        let answers = answers(&told);
        let answer = |key: &str| answers.get(key).copied().filter(|text| !text.is_empty());
        if answer("end").is_none() {
            return Err(refused(name, format!("its shell does not answer: {}", told.trim())));
        }
        let (Some(postgres), Some(version)) = (answer("postgres"), answer("version")) else {
            return Err(refused(
                name,
                "there is no `postgres` in its PATH\nhint: `--image postgres:N` names the usual image of PostgreSQL N",
            ));
        };
        let major = major_of(version).ok_or_else(|| refused(&name, format!("its postgres says `{version}`")))?;
        let own = || Some((answer("uid")?.parse().ok()?, answer("gid")?.parse().ok()?));
        let owner = numbers.or_else(own).ok_or_else(|| {
            refused(
                &name,
                format!("it has no user `{user}`\nhint: name who the server runs as there with `--user NAME`"),
            )
        })?;
        if owner.0 == 0 {
            return Err(refused(
                name,
                "PostgreSQL refuses to run as root: name another of its users with `--user NAME`",
            ));
        }
        let data = says.environment.get("PGDATA").map_or(USUAL_DATA, String::as_str);
        let (mount, below) = match &wanted.keep {
            Keep::Volume(_) => place_of(data, &says.volumes),
            // It is the data directory itself, wherever its parents come from.
            Keep::Folder(_) => (data.to_owned(), PathBuf::new()),
        };
        let program = Program { major, block_size: answer("pages").and_then(|bytes| bytes.parse().ok()) };
        let (image, postgres) = (says.id, postgres.to_owned());
        let socket = answer("socket").unwrap_or("/tmp").to_owned();
        Ok(Container { docker, wanted, image, postgres, socket, program, owner, mount, below, aside: None })
    }

    /// The version that the image has.
    pub fn program(&self) -> Program {
        self.program
    }

    /// Whether a server is to run.
    pub(super) fn serves(&self) -> bool {
        self.wanted.server.is_some()
    }

    /// Whose files are to be.
    pub(super) fn owner(&self) -> Option<(u32, u32)> {
        Some(self.owner)
    }

    /// The data directory as the container sees it.
    pub(super) fn inner_data(&self) -> String {
        match self.below.as_os_str().is_empty() {
            true => self.mount.clone(),
            false => format!("{}/{}", self.mount, self.below.display()),
        }
    }

    /// As the engine takes it: a name brings its other groups along.
    pub(super) fn user(&self) -> String {
        match numbers(self.wanted.user.as_deref().unwrap_or(USUAL_USER)) {
            Some((user, group)) => format!("{user}:{group}"),
            None => self.wanted.user.clone().unwrap_or_else(|| USUAL_USER.to_owned()),
        }
    }

    pub(super) fn source(&self) -> Source {
        match &self.wanted.keep {
            Keep::Volume(name) => Source::Volume(name.clone()),
            Keep::Folder(path) => Source::Folder(path.clone()),
        }
    }

    pub(super) fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(LABEL.to_owned(), self.wanted.source.to_string())])
    }

    /// In words, for errors and the report.
    pub(super) fn words(&self) -> String {
        match &self.wanted.keep {
            Keep::Volume(name) => format!("the volume {name}"),
            Keep::Folder(path) => path.display().to_string(),
        }
    }
}

/// `999:999`, or `999` for both.
fn numbers(user: &str) -> Option<(u32, u32)> {
    let (user, group) = user.split_once(':').unwrap_or((user, user));
    Some((user.parse().ok()?, group.parse().ok()?))
}

/// What an image is asked; each answer a word and a text on one line.
fn questions(user: &str) -> String {
    let pages = PAGE_QUESTION.join(" ");
    format!(
        "p=$(command -v postgres) && echo postgres $p && echo version $(\"$p\" --version)\n\
         [ -n \"$p\" ] && echo pages $(\"$p\" {pages} 2>/dev/null)\n\
         [ -d {SOCKETS} ] && echo socket {SOCKETS} || echo socket /tmp\n\
         echo uid $(id -u {user} 2>/dev/null); echo gid $(id -g {user} 2>/dev/null); echo end yes"
    )
}

fn answers(text: &str) -> HashMap<&str, &str> {
    text.lines().filter_map(|line| line.trim().split_once(' ')).collect()
}

/// Where a volume stands for this data directory: at the place that the image declares above it, or else at it. And the
/// rest of the way.
fn place_of(data: &str, declared: &[String]) -> (String, PathBuf) {
    let above = declared.iter().filter(|volume| Path::new(data).starts_with(volume)).max_by_key(|volume| volume.len());
    match above {
        Some(volume) => {
            let below = Path::new(data).strip_prefix(volume).unwrap_or(Path::new(""));
            (volume.trim_end_matches('/').to_owned(), below.to_owned())
        }
        None => (data.to_owned(), PathBuf::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_stands_where_the_image_wants_one() {
        let of = |data: &str, declared: &[&str]| {
            let declared: Vec<String> = declared.iter().map(|&one| one.to_owned()).collect();
            let (mount, below) = place_of(data, &declared);
            (mount, below.display().to_string())
        };
        let pair = |mount: &str, below: &str| (mount.to_owned(), below.to_owned());
        assert_eq!(of("/var/lib/postgresql/data", &["/var/lib/postgresql/data"]), pair("/var/lib/postgresql/data", ""));
        // As the images of 18 and later have it.
        assert_eq!(
            of("/var/lib/postgresql/18/docker", &["/x", "/var/lib/postgresql/"]),
            pair("/var/lib/postgresql", "18/docker")
        );
        assert_eq!(of("/data", &["/dat"]), pair("/data", ""));
    }

    #[test]
    fn users_are_names_or_numbers() {
        assert_eq!((numbers("999"), numbers("70:71"), numbers("postgres")), (Some((999, 999)), Some((70, 71)), None));
        let told = "postgres /usr/bin/postgres\nversion postgres (PostgreSQL) 15.1\nuid \nend yes\n";
        let answers = answers(told);
        assert_eq!(answers.get("version"), Some(&"postgres (PostgreSQL) 15.1"));
        assert_eq!(answers.get("uid"), None);
    }
}
