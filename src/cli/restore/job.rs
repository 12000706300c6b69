//! What is to be done with a restore, from the source's file and the options together: where to, and how far.

use super::{Args, failed};
use crate::backup::logical::{places, usual_folders};
use crate::backup::restore::container::{Keep, Published, Wanted};
use crate::backup::restore::{Check, Container, Into as Files, LocalServer};
use crate::cli::Context;
use crate::cli::desk::Desk;
use crate::cli::exit::{Exit, Failure};
use crate::config::backup::{Restore, RestoreInto, SqlCheck, is_engine_name};
use crate::daemon::wire;
use crate::model::SourceName;
use crate::runtime::docker::Docker;
use nix::unistd::{Uid, User};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Who exists in every cluster that nobody renamed its first role in.
const SUPERUSER: &str = "postgres";
const USUAL_PORT: u16 = 5432;

/// How far a restore goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// The files in a folder.
    Folder,
    /// A server of this machine that answers.
    Server,
    /// The files in a volume of the container engine.
    Volume,
    /// A container that answers, and is left running.
    Container,
}

/// Where a restore goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// As far as this, with base backups.
    Kind(Kind),
    /// Into this running server, with logical copies: its address as it was given.
    Server(String),
}

fn destination(text: &str) -> Result<Destination, String> {
    use clap::ValueEnum as _;
    if text.contains("://") {
        return Ok(Destination::Server(text.to_owned()));
    }
    let kind = Kind::from_str(text, true).map(Destination::Kind);
    kind.map_err(|_| {
        "`folder`, `server`, `volume` or `container`; for logical copies `postgres://USER@HOST/`".to_owned()
    })
}

/// Options about where to, and about a container engine.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Contained {
    /// How far it goes: `folder`, `server`, `volume` or `container`; for logical copies the address of a running server,
    /// `postgres://USER@HOST/`, its password in PGPASSWORD [default: what the source's file says]
    #[arg(long, value_parser = destination, value_name = "WHAT", conflicts_with = "files_only")]
    into: Option<Destination>,
    /// The image of PostgreSQL that runs on it, such as postgres:17; for logical copies the one that `pg_restore` is taken
    /// from
    #[arg(long)]
    image: Option<String>,
    /// The volume that the data goes into [default: the container's name]
    #[arg(long, value_name = "NAME", value_parser = engine_name, conflicts_with = "target")]
    volume: Option<String>,
    /// The container that is left running [default: SOURCE-restored]
    #[arg(long, value_name = "NAME", value_parser = engine_name)]
    name: Option<String>,
    /// The address of this machine that the container is published at [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<IpAddr>,
    /// The engine's network that the container joins [default: for logical copies `host`]
    #[arg(long, value_name = "NAME", value_parser = engine_name)]
    network: Option<String>,
}

impl Contained {
    fn kind(&self) -> Option<Kind> {
        match &self.into {
            Some(Destination::Kind(kind)) => Some(*kind),
            Some(Destination::Server(_)) | None => None,
        }
    }

    /// The address of the running server that is meant.
    pub(super) fn server(&self) -> Option<&str> {
        match &self.into {
            Some(Destination::Server(address)) => Some(address),
            Some(Destination::Kind(_)) | None => None,
        }
    }

    /// The image that programs are taken from, and its network.
    pub(super) fn programs(&self) -> (Option<&String>, Option<&String>) {
        (self.image.as_ref(), self.network.as_ref())
    }

    /// The first option here that says something about files, or about a container that is left running.
    pub(super) fn about_files(&self) -> Option<&'static str> {
        let given = [
            (self.kind().is_some(), "--into"),
            (self.volume.is_some(), "--volume"),
            (self.name.is_some(), "--name"),
            (self.listen.is_some(), "--listen"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, option)| option)
    }
}

fn engine_name(text: &str) -> Result<String, String> {
    match is_engine_name(text) {
        true => Ok(text.to_owned()),
        false => Err("letters, digits, `_`, `.` and `-`, beginning with a letter or digit, 2 to 63".into()),
    }
}

/// Where to.
enum Place {
    /// A folder of this machine, with a server or without.
    Here { target: PathBuf, server: Option<(Option<PathBuf>, u16)>, owner: Option<(u32, u32)> },
    /// What a container engine's containers see.
    Engine(Wanted),
}

/// What is to be done.
pub(super) struct Job {
    place: Place,
    checks: Vec<SqlCheck>,
    /// What follows.
    pub(super) then: Vec<String>,
}

impl Job {
    pub(super) fn new(args: &Args, source: &SourceName, written: Option<Restore>) -> Result<Job, Failure> {
        let nothing = || Restore { into: RestoreInto::Folder, target: None, user: None, then: Vec::new() };
        let written = written.unwrap_or_else(nothing);
        let kind = kind(args, &written.into);
        // A user of an image is none of this machine, and the other way round.
        let in_engine = |kind: Kind| matches!(kind, Kind::Volume | Kind::Container);
        let same = in_engine(kind) == in_engine(kind_of(&written.into));
        let user = args.user.clone().or_else(|| written.user.clone().filter(|_| same));
        let place = match in_engine(kind) {
            true => Place::Engine(wanted(args, source, &written, kind == Kind::Container, user)?),
            false => here(args, &written, kind == Kind::Server, user.as_deref())?,
        };
        let checks = match (&kind, &written.into) {
            (Kind::Server | Kind::Container, RestoreInto::Server(server)) => server.checks.clone(),
            (Kind::Server | Kind::Container, RestoreInto::Container(container)) => container.checks.clone(),
            _ => Vec::new(),
        };
        // Somewhere else than where the file says is a look aside: what follows a real restore does not follow it.
        let then = if is_aside(args, &written) { Vec::new() } else { written.then };
        Ok(Job { place, checks, then })
    }

    /// The folder; none of this machine's when it is for a container engine.
    pub(super) fn target(&self) -> &Path {
        match &self.place {
            Place::Here { target, .. } => target,
            Place::Engine(_) => Path::new(""),
        }
    }

    /// What it takes for itself on this machine: two restores cannot have one.
    pub(super) fn takes(&self) -> Vec<String> {
        let place = match &self.place {
            Place::Engine(wanted) => match &wanted.keep {
                Keep::Volume(name) => format!("the volume {name}"),
                Keep::Folder(path) => format!("the folder {}", path.display()),
            },
            Place::Here { target, .. } => format!("the folder {}", target.display()),
        };
        let name = match &self.place {
            Place::Engine(wanted) => wanted.server.as_ref().map(|server| format!("the container {}", server.name)),
            Place::Here { .. } => None,
        };
        [Some(place), name, self.port().map(|port| format!("the port {port}"))].into_iter().flatten().collect()
    }

    /// Where the server answers on this machine, when there is one.
    pub(super) fn port(&self) -> Option<u16> {
        match &self.place {
            Place::Here { server, .. } => server.as_ref().map(|(_, port)| *port),
            Place::Engine(wanted) => wanted.server.as_ref().map(|server| server.port),
        }
    }

    pub(super) fn checks(&self) -> Vec<Check> {
        let check = |check: &SqlCheck| Check { sql: check.sql.clone(), database: check.database.clone() };
        self.checks.iter().map(check).collect()
    }

    /// Programs of this machine for this major version, or the image, looked at.
    pub(super) async fn files(&self, major: Option<u32>, desk: &Desk, context: &Context) -> Result<Files, Failure> {
        let (owner, server) = match &self.place {
            Place::Engine(wanted) => {
                let progress = |text: String| context.ui.say(text);
                let looked = Container::look(engine(desk)?, wanted.clone(), &progress).await;
                return looked.map(|container| Files::Container(Box::new(container))).map_err(failed);
            }
            Place::Here { owner, server, .. } => (*owner, server),
        };
        let Some((bin, port)) = server else { return Ok(Files::Folder { owner }) };
        let bin = match bin {
            Some(bin) => bin.clone(),
            None => found(major).ok_or_else(|| {
                let what = major.map_or_else(|| "PostgreSQL".to_owned(), |major| format!("PostgreSQL {major}"));
                Failure::wrong(format!("find the programs of {what} on this machine"))
                    .hint("name the folder of `postgres` with `--bin DIR`, or take `--files-only`")
                    .hint(looked_for(major))
                    .hint("or a container: `--into container --image postgres:N`")
            })?,
        };
        Ok(Files::Server(LocalServer { bin, user: owner, port: *port, role: SUPERUSER.to_owned(), socket: None }))
    }
}

fn kind_of(into: &RestoreInto) -> Kind {
    match into {
        RestoreInto::Folder => Kind::Folder,
        RestoreInto::Server(_) => Kind::Server,
        RestoreInto::Volume(_) => Kind::Volume,
        RestoreInto::Container(_) => Kind::Container,
    }
}

/// Options go before the file: the one that says it, then those that mean something with one kind only.
fn kind(args: &Args, written: &RestoreInto) -> Kind {
    let Contained { image, volume, name, listen, network, .. } = &args.contained;
    let given = args.contained.kind();
    let written = kind_of(written);
    let of_container = name.is_some() || listen.is_some() || network.is_some();
    if let Some(given) = given {
        return given;
    }
    match written {
        Kind::Volume | Kind::Container if args.files_only && args.target.is_none() => Kind::Volume,
        _ if args.files_only => Kind::Folder,
        _ if args.bin.is_some() => Kind::Server,
        _ if of_container => Kind::Container,
        Kind::Volume | Kind::Container => written,
        _ if image.is_some() || volume.is_some() => Kind::Container,
        Kind::Folder if args.port.is_some() => Kind::Server,
        _ => written,
    }
}

fn is_aside(args: &Args, written: &Restore) -> bool {
    let (name, volume) = match &written.into {
        RestoreInto::Container(container) => (container.name.as_ref(), container.volume.as_ref()),
        RestoreInto::Volume(volume) => (None, volume.volume.as_ref()),
        _ => (None, None),
    };
    let other = |given: Option<&String>, written| given.is_some() && given != written;
    let target = args.target.is_some() && args.target != written.target;
    target || other(args.contained.name.as_ref(), name) || other(args.contained.volume.as_ref(), volume)
}

fn here(args: &Args, written: &Restore, server: bool, user: Option<&str>) -> Result<Place, Failure> {
    let target = args.target.clone().or_else(|| written.target.clone()).ok_or_else(|| {
        Failure::wrong("restore: nothing says where to")
            .hint("name a new or empty folder with `--target DIR`, or take `--into container --image postgres:N`")
    })?;
    let (bin, port) = match &written.into {
        RestoreInto::Server(server) => (server.bin.clone(), server.port),
        _ => (None, USUAL_PORT),
    };
    let server = server.then(|| (args.bin.clone().or(bin), args.port.unwrap_or(port)));
    Ok(Place::Here { target, server, owner: owner(user)? })
}

fn wanted(
    args: &Args,
    source: &SourceName,
    written: &Restore,
    serves: bool,
    user: Option<String>,
) -> Result<Wanted, Failure> {
    let given = &args.contained;
    let (image, volume) = match &written.into {
        RestoreInto::Container(container) => (Some(&container.image), container.volume.as_ref()),
        RestoreInto::Volume(volume) => (Some(&volume.image), volume.volume.as_ref()),
        _ => (None, None),
    };
    let container = match &written.into {
        RestoreInto::Container(container) => Some(container),
        _ => None,
    };
    let image = given.image.as_ref().or(image).ok_or_else(|| {
        Failure::wrong("restore: nothing says which image runs on it")
            .hint("name one of the same major version, such as `--image postgres:17`")
    })?;
    let usual_name = || format!("{source}-restored");
    let name = given.name.clone().or_else(|| container?.name.clone()).unwrap_or_else(usual_name);
    let folder = match (&args.target, &given.volume) {
        (Some(target), _) if serves => Some(target),
        (Some(_), _) => {
            return Err(Failure::wrong("restore into a volume: `--target` names a folder").hint("take `--volume NAME`"));
        }
        (None, None) if serves => written.target.as_ref().filter(|_| container.is_some()),
        _ => None,
    };
    let keep = match folder {
        Some(folder) => Keep::Folder(std::path::absolute(folder).map_err(|error| Failure::wrong(error.to_string()))?),
        None => Keep::Volume(given.volume.as_ref().or(volume).cloned().unwrap_or_else(|| name.clone())),
    };
    let server = serves.then(|| Published {
        name,
        listen: given.listen.or(container.map(|it| it.listen)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        port: args.port.or(container.map(|it| it.port)).unwrap_or(USUAL_PORT),
        network: given.network.clone().or_else(|| container?.network.clone()),
        role: SUPERUSER.to_owned(),
    });
    Ok(Wanted { source: source.clone(), image: image.clone(), user, keep, server })
}

/// The engine of the configuration, where there is one.
pub(super) fn engine(desk: &Desk) -> Result<Docker, Failure> {
    wire::engine(desk.config.as_ref()).map_err(|error| failed(error.into()))
}

/// Where programs are looked for that nobody names.
pub(super) fn looked_for(major: Option<u32>) -> String {
    match major {
        Some(major) => format!("without it they are looked for in {}", places(major)),
        None => "without it they are looked for in the folders of PATH".to_owned(),
    }
}

/// Where Debian and others put the programs of a major version.
fn found(major: Option<u32>) -> Option<PathBuf> {
    let usual = major.into_iter().flat_map(usual_folders);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = usual.chain(std::env::split_paths(&path).collect::<Vec<_>>());
    folders.into_iter().find(|folder| folder.join("postgres").is_file())
}

/// User and group that the files are to belong to; `None` for our own.
fn owner(name: Option<&str>) -> Result<Option<(u32, u32)>, Failure> {
    let root = Uid::effective().is_root();
    let Some(name) = name.or(root.then_some(SUPERUSER)) else { return Ok(None) };
    let found = User::from_name(name).map_err(|error| Failure::wrong(format!("look up the user {name}: {error}")))?;
    let user = found.ok_or_else(|| {
        Failure::wrong(format!("give the files to {name}: there is no such user on this machine"))
            .hint("PostgreSQL refuses to run as root; name who it runs as with `--user NAME`")
    })?;
    if user.uid == Uid::effective() {
        return Ok(None);
    }
    if !root {
        return Err(Failure::new(Exit::Refused, anyhow::anyhow!("give the files to {name}: only root can do that"))
            .hint(format!("run this as root or as {name}")));
    }
    Ok(Some((user.uid.as_raw(), user.gid.as_raw())))
}
