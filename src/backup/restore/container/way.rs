//! What is in the way of a restore into a container engine, and how the place is made ready.
//!
//! In: an image that was looked at, a plan. Out: a data directory as this machine sees it, or why not. That the engine's
//! folder is the one seen here is asked of the folder itself: a container of the image and this process must see the same
//! inode of the same kernel.

use super::super::RestoreError;
use super::super::place::{self, STATE, Watched};
use super::super::plan::Plan;
use super::{Container, Keep, LABEL, Published, answers, refused};
use crate::runtime::RuntimeError;
use crate::runtime::docker::server::{Seen, Source, VolumeFacts};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::{AccessFlags, Uid, access};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where the place is shown to a container that is only asked whether it is the same as here.
const LOOK_AT: &str = "/mainstay-look";
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const USERS: &str = "/proc/self/uid_map";

fn stamp() -> String {
    jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string()
}

impl Container {
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
            if let Some(network) = &server.network {
                let name = format!("the container {}", server.name);
                if ["host", "none"].contains(&network.as_str()) {
                    return Err(refused(name, format!("on the network {network} no port can be published")));
                }
                if !self.docker.has_network(network).await? {
                    return Err(refused(name, format!("there is no network {network}")));
                }
            }
        }
        if volume || matches!(self.wanted.keep, Keep::Folder(_)) {
            self.same_place(&root).await?;
            self.holds_nothing_else(&root, force)?;
            place::check(&self.data(&root), plan, force, Watched::ByEngine)?;
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
        let data = self.data(&root);
        let looked = self.holds_nothing_else(&root, false);
        let looked = looked.and_then(|()| place::check(&data, plan, false, Watched::ByEngine));
        let foreign = match looked {
            Ok(_) => false,
            Err(RestoreError::Place { .. } | RestoreError::Container { .. }) => true,
            Err(error) => return Err(error),
        };
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
        let (at, rights_at, there) = match self.docker.volume(name).await? {
            Some(VolumeFacts { plain: false, .. }) => {
                let why =
                    "it has a driver or options of its own, so that its files are there only while a container uses it";
                return Err(refused(
                    self.words(),
                    format!("{why}\nhint: name a plain volume, or a folder of this machine with `--target DIR`"),
                ));
            }
            Some(facts) => (facts.place.clone(), facts.place, true),
            None => {
                // Where it will be; that is asked again when it is made.
                let volumes = self.docker.root().await?.join("volumes");
                (volumes.join(name).join("_data"), volumes, false)
            }
        };
        match access(&rights_at, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) => Ok((at, there)),
            Err(error) => Err(refused(
                self.words(),
                format!(
                    "its files are in {} on the engine's machine, and this process cannot write there: {}\nhint: run this \
                     as root on the engine's machine, or keep the data in a folder with `--target DIR`",
                    rights_at.display(),
                    error.desc()
                ),
            )),
        }
    }

    /// The data directory in it.
    fn data(&self, root: &Path) -> PathBuf {
        match self.below.as_os_str().is_empty() {
            true => root.to_owned(),
            false => root.join(&self.below),
        }
    }

    /// The data directory as this machine sees it, where the place is there already.
    ///
    /// # Errors
    /// When the place cannot be had, or cannot be reached by its path.
    pub async fn data_directory(&self) -> Result<Option<PathBuf>, RestoreError> {
        let (root, there) = self.root().await?;
        Ok(there.then(|| self.data(&root)))
    }

    /// What an interrupted restore of this source into this place has left.
    pub(super) fn left_over(&self, one: &Seen, root: &Path) -> bool {
        let named = self.wanted.server.as_ref().is_some_and(|server| server.name == one.name);
        let ours = one.labels.get(LABEL).is_some_and(|source| source == self.wanted.source.as_str());
        named && ours && self.used_by(one, root) && self.data(root).join(STATE).exists()
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
        if let Some(one) = seen.iter().find(|one| one.ports.contains(&server.port)) {
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
            Err(RuntimeError::Refused { detail, .. }) => return Err(self.elsewhere(here, &detail)),
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
