//! A container engine as the place of a restore: an image of the right version, and a volume or folder that its containers
//! see, reached by its path on this machine so that nothing is written twice.
//!
//! In: what is wanted, and an engine. Out: a data directory to write into, and whose its files are. Everything that can be
//! refused is refused in [`Container::check`], before anything is fetched or written. That the engine's folder is the one
//! seen here is asked of the folder itself: a container of the image and this process must see the same inode of the
//! same kernel. `start/container` then runs the server.

use super::RestoreError;
use super::place::{self, STATE, Watched};
use super::plan::{Plan, Program};
use super::start::major_of;
use crate::model::SourceName;
use crate::runtime::docker::Docker;
use crate::runtime::docker::server::{Seen, Source, VolumeFacts};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::{AccessFlags, Uid, access};
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// On containers and volumes that a restore made: the source. By it what an interrupted restore left is known.
pub const LABEL: &str = "mainstay.restore";

/// Where images keep a cluster that do not say it themselves.
const USUAL_DATA: &str = "/var/lib/postgresql/data";
/// Who runs the server in an image that nobody says otherwise of.
const USUAL_USER: &str = "postgres";
/// Where Debian's and the usual images have the socket; `/tmp` is PostgreSQL's own choice.
const SOCKETS: &str = "/var/run/postgresql";
/// Where the place is shown to a container that is only asked whether it is the same as here.
const LOOK_AT: &str = "/mainstay-look";

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
        let told = docker.ask_image(&says.id, &questions(user), None).await?;
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
        let program = Program { major, block_size: None };
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

    /// Everything that can stand in the way, without touching anything: also for `--dry-run`.
    ///
    /// # Errors
    /// When the place or its name is in use, cannot be reached by its path, or holds something else.
    pub async fn check(&self, plan: &Plan, force: bool) -> Result<(), RestoreError> {
        if let Some(place) = plan.tablespaces.values().next() {
            return Err(refused(
                self.words(),
                format!(
                    "the cluster has a tablespace at {}, which a container does not see\nhint: restore it with `--into \
                     server` or `--into folder`",
                    place.display()
                ),
            ));
        }
        let (root, volume) = self.root().await?;
        let seen = self.docker.all_containers().await?;
        self.nobody_in_the_way(&seen, &root, force)?;
        if let Some(server) = &self.wanted.server {
            self.port_is_free(server, &seen, &root)?;
            if let Some(network) = &server.network
                && !self.docker.has_network(network).await?
            {
                return Err(refused(
                    format!("the container {}", server.name),
                    format!("there is no network {network}"),
                ));
            }
        }
        if volume || matches!(self.wanted.keep, Keep::Folder(_)) {
            self.same_place(&root).await?;
            self.holds_nothing_else(&root, force)?;
            place::check(&root.join(&self.below), &plan.digest(), force, Watched::ByEngine)?;
        }
        Ok(())
    }

    /// Makes the place ready to be written into, and gives the data directory as this machine sees it. What is there is
    /// moved aside when that is wished: the volume's content into another volume, a container to another name.
    ///
    /// # Errors
    /// As [`Container::check`].
    pub async fn place(&mut self, plan: &Plan, force: bool) -> Result<PathBuf, RestoreError> {
        self.check(plan, force).await?;
        if let Some(server) = self.wanted.server.clone() {
            let (root, _) = self.root().await?;
            let seen = self.docker.all_containers().await?;
            let other = seen.iter().find(|one| one.name == server.name && !self.left_over(one, &root));
            if let Some(other) = other {
                self.docker.rename_server(&other.name, &format!("{}.before-restore-{}", other.name, stamp())).await?;
            }
        }
        let Keep::Volume(name) = self.wanted.keep.clone() else { return Ok(self.root().await?.0) };
        let (mut root, there) = self.root().await?;
        if !there {
            self.docker.make_volume(&name, self.labels()).await?;
            root = self.root().await?.0;
            if let Err(error) = self.same_place(&root).await {
                self.docker.unmake_volume(&name).await?;
                return Err(error);
            }
        }
        let data = root.join(&self.below);
        let foreign = self.holds_nothing_else(&root, false).is_err()
            || place::check(&data, &plan.digest(), false, Watched::ByEngine).is_err();
        if foreign {
            // Only when forced: without that the check has refused it.
            place::idle(&data)?;
            self.aside = Some(self.swap(&name, &root).await?);
        }
        Ok(data)
    }

    /// The folder behind the volume or the folder itself, and whether the volume is there.
    async fn root(&self) -> Result<(PathBuf, bool), RestoreError> {
        let name = match &self.wanted.keep {
            Keep::Folder(path) => {
                if !Uid::effective().is_root() && Uid::effective().as_raw() != self.owner.0 {
                    let why = "its files are to belong to the image's user, and only root can give them away";
                    return Err(refused(self.words(), format!("{why}\nhint: run this as root")));
                }
                let path = std::path::absolute(path).map_err(|e| RestoreError::io("find the folder", e))?;
                return Ok((path, true));
            }
            Keep::Volume(name) => name,
        };
        let (at, there) = match self.docker.volume(name).await? {
            Some(VolumeFacts { plain: false, .. }) => {
                let why =
                    "it has a driver or options of its own, so that its files are there only while a container uses it";
                return Err(refused(
                    self.words(),
                    format!("{why}\nhint: name a plain volume, or a folder of this machine with `--target DIR`"),
                ));
            }
            Some(facts) => (facts.place, true),
            None => (self.docker.root().await?.join("volumes"), false),
        };
        let rights = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
        match access(&at, rights) {
            Ok(()) => Ok((at, there)),
            Err(error) => Err(refused(
                self.words(),
                format!(
                    "its files are in {} on the engine's machine, and this process cannot write there: {}\nhint: run this \
                     as root on the engine's machine, or keep the data in a folder with `--target DIR`",
                    at.display(),
                    error.desc()
                ),
            )),
        }
    }

    /// What an interrupted restore of this source into this place has left.
    pub(super) fn left_over(&self, one: &Seen, root: &Path) -> bool {
        let named = self.wanted.server.as_ref().is_some_and(|server| server.name == one.name);
        let ours = one.labels.get(LABEL).is_some_and(|source| source == self.wanted.source.as_str());
        named && ours && self.used_by(one, root) && root.join(&self.below).join(STATE).exists()
    }

    /// Whether a container uses the place: by the volume's name, or a folder that is it or lies in it. Folders above it are
    /// mounted by those who only look (monitoring, backups), and say nothing.
    fn used_by(&self, one: &Seen, root: &Path) -> bool {
        let place = self.source();
        one.uses.iter().any(|used| match used {
            Source::Folder(path) => path.starts_with(root),
            volume => *volume == place,
        })
    }

    fn nobody_in_the_way(&self, seen: &[Seen], root: &Path, force: bool) -> Result<(), RestoreError> {
        for one in seen.iter().filter(|one| !self.left_over(one, root)) {
            let named = self.wanted.server.as_ref().is_some_and(|server| server.name == one.name);
            let name = &one.name;
            if self.used_by(one, root) {
                if one.lives {
                    let why = format!("the container {name} runs on it\nhint: stop that first, or name another place");
                    return Err(refused(self.words(), why));
                }
                if self.wanted.server.is_some() {
                    let why = format!(
                        "the container {name} uses it, and could be started beside the restored server\nhint: name another \
                         place with `--volume` or `--target`, or remove that container"
                    );
                    return Err(refused(self.words(), why));
                }
            }
            if named && one.lives {
                let why = "it runs\nhint: stop it first, or name another with `--name NAME`";
                return Err(refused(format!("the container {name}"), why));
            }
            if named && !force {
                let why = "there is one of this name\nhint: name another with `--name NAME`, or add `--force` to give that \
                           one another name";
                return Err(refused(format!("the container {name}"), why));
            }
        }
        Ok(())
    }

    fn port_is_free(&self, server: &Published, seen: &[Seen], root: &Path) -> Result<(), RestoreError> {
        let at = format!("port {} of {}", server.port, server.listen);
        let hint = "hint: name another with `--port N`";
        for one in seen.iter().filter(|one| one.ports.contains(&server.port)) {
            if self.left_over(one, root) {
                return Ok(());
            }
            return Err(refused(at, format!("it leads to the container {}\n{hint}", one.name)));
        }
        match TcpListener::bind((server.listen, server.port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Err(refused(at, format!("another program listens there\n{hint}")))
            }
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                Err(refused(at, "this machine has no such address\nhint: name one of its own with `--listen ADDRESS`"))
            }
            // The engine may open what we may not.
            _ => Ok(()),
        }
    }

    /// Beside the way to the data directory the volume holds nothing.
    fn holds_nothing_else(&self, root: &Path, force: bool) -> Result<(), RestoreError> {
        let mut at = root.to_owned();
        for part in &self.below {
            let entries = match fs::read_dir(&at) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                entries => entries.map_err(|e| RestoreError::io(format!("read {}", at.display()), e))?,
            };
            for entry in entries {
                let name = entry.map_err(|e| RestoreError::io(format!("read {}", at.display()), e))?.file_name();
                if name != part && !force {
                    let hint = "hint: name another volume, or add `--force` to move its content into another volume";
                    return Err(refused(self.words(), format!("it holds {}\n{hint}", name.to_string_lossy())));
                }
            }
            at.push(part);
        }
        Ok(())
    }

    /// Makes sure that the engine's containers and this process see one and the same place, and users by the same numbers.
    async fn same_place(&self, root: &Path) -> Result<(), RestoreError> {
        // A folder that is not there yet is looked for by what is above it.
        let here = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let source = match &self.wanted.keep {
            Keep::Volume(name) => Source::Volume(name.clone()),
            Keep::Folder(_) => Source::Folder(here.to_owned()),
        };
        let script = format!(
            "echo boot $(cat {BOOT}); echo users $(cat {USERS}); echo at $(stat -c '%d %i' {LOOK_AT}); echo end yes"
        );
        let told = match self.docker.ask_image(&self.image, &script, Some((&source, LOOK_AT))).await {
            // It has no such folder, or may not show it.
            Err(crate::runtime::RuntimeError::Refused { detail, .. }) => return Err(self.elsewhere(here, &detail)),
            told => told?,
        };
        let answers = answers(&told);
        let read =
            |path: &str| fs::read_to_string(path).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let facts = fs::metadata(here).map_err(|e| RestoreError::io(format!("read {}", here.display()), e))?;
        let at = format!("{} {}", facts.dev(), facts.ino());
        if answers.get("boot").copied() != Some(read(BOOT).as_str()) || answers.get("at").copied() != Some(at.as_str())
        {
            return Err(self.elsewhere(here, "a container sees another folder there"));
        }
        if answers.get("users").copied() != Some(read(USERS).as_str()) {
            let why = "its containers have users of other numbers than this machine (userns-remap, or an engine without \
                       root), so that files cannot be given to the server";
            return Err(refused(
                "the container engine",
                format!("{why}\nhint: restore with `--into folder`, and give the files away there"),
            ));
        }
        Ok(())
    }

    fn elsewhere(&self, here: &Path, detail: &str) -> RestoreError {
        let hint = "hint: run this on the engine's machine, as root and not in a container";
        refused(self.words(), format!("{} is not the engine's: {}\n{hint}", here.display(), detail.trim()))
    }

    /// Exchanges the volume's folder with that of a new volume, in one step; gives the new volume's name.
    async fn swap(&self, name: &str, root: &Path) -> Result<String, RestoreError> {
        let stamp = stamp();
        for number in 0..100 {
            let more = if number == 0 { String::new() } else { format!("-{number}") };
            let aside = format!("{name}.before-restore-{stamp}{more}");
            if self.docker.volume(&aside).await?.is_some() {
                continue;
            }
            self.docker.make_volume(&aside, self.labels()).await?;
            let made = self.docker.volume(&aside).await?;
            let made = made.ok_or_else(|| refused(self.words(), format!("the volume {aside} was made and is gone")))?;
            renameat2(AT_FDCWD, root, AT_FDCWD, &made.place, RenameFlags::RENAME_EXCHANGE).map_err(|error| {
                RestoreError::io(format!("move the content of the volume {name} into {aside}"), error.into())
            })?;
            crate::failpoint!("restore-volume-aside");
            return Ok(aside);
        }
        Err(refused(self.words(), "a hundred volumes were moved aside within this second"))
    }
}

const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const USERS: &str = "/proc/self/uid_map";

fn stamp() -> String {
    jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// `999:999`, or `999` for both.
fn numbers(user: &str) -> Option<(u32, u32)> {
    let (user, group) = user.split_once(':').unwrap_or((user, user));
    Some((user.parse().ok()?, group.parse().ok()?))
}

/// What an image is asked; each answer a word and a text on one line.
fn questions(user: &str) -> String {
    format!(
        "p=$(command -v postgres) && echo postgres $p && echo version $(\"$p\" --version)\n\
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
