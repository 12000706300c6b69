//! Where a restore writes: an empty or new folder, its own half-done work, or, when forced, a place whose content is moved
//! aside. Nothing is ever erased that this restore did not write.
//!
//! [`STATE`] in the folder says which plan it is being filled by, and what of it is done. While it is there the folder is
//! not a restored server; `global/pg_control`, without which none starts, is put in place last.

mod folders;
mod state;

pub use folders::apart_from;
pub use state::STATE;
pub(super) use state::begun;

use super::plan::Plan;
use super::{RestoreError, occupied};
use crate::small_file;
use folders::{absolute, of_plan};
use state::{BASE, BASE_COMPLETE, Resume, boot_id, resume, space_line};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Why a folder is not written into. `Display` fits after "failed to restore into PATH: ".
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A server runs in it.
    #[error("a PostgreSQL server runs in it ({0})\nhint: stop it first, or restore into another folder")]
    Running(String),
    /// It is the folder of a tablespace of a server that runs.
    #[error(
        "it is a tablespace of {0}\nhint: a restore of this source alone, beside that server, takes another folder for it: \
         `--tablespace {1}=DIR`; a restore in its stead begins when it is stopped"
    )]
    Tablespace(String, u32),
    /// Something is in the folder of a tablespace.
    #[error(
        "tablespace {1} belongs there, and it is not empty: {0}\nhint: `--tablespace {1}=DIR` puts it into another folder, when this \
         source is restored alone; or add `--force` to move what is there aside, to a folder beside it"
    )]
    TablespaceNotEmpty(String, u32),
    /// Something is in it.
    #[error(
        "it is not empty: {0}\nhint: name an empty or new folder, or add `--force` to move what is there aside, to a folder beside it"
    )]
    NotEmpty(String),
    /// Another restore began here.
    #[error(
        "another restore, of {0}, began here and did not end\nhint: give that restore's options again to let it go on, unless its base backup has expired since; or add `--force` to move it aside"
    )]
    Other(String),
    /// Another restore is at it now.
    #[error("another restore is writing into it now")]
    Busy,
    /// It and the repository are one in the other.
    #[error("the repository is {}, and one would be in the other\nhint: name a folder that is apart from it", .0.display())]
    Repository(PathBuf),
    /// It is no folder.
    #[error("it is {0}, not a folder")]
    NoFolder(&'static str),
    /// Its name cannot be used.
    #[error("{0}")]
    Name(String),
}

/// A folder that is ready to be written into, locked against a second restore.
#[derive(Debug)]
pub(super) struct Place {
    /// The data directory.
    pub(super) data: PathBuf,
    /// Chunks that are unpacked already, by key.
    pub(super) done: BTreeSet<String>,
    /// What was there before, in the data directory and in tablespaces' folders, went here.
    pub(super) moved_aside: Vec<PathBuf>,
    /// The base is complete and synced, and its `pg_control` in place; only the log is to be replayed.
    pub(super) base_complete: bool,
    state: File,
    /// The folders of tablespaces, each locked.
    spaces: Vec<File>,
    owner: Option<(u32, u32)>,
}

fn io<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> RestoreError + 'a {
    move |source| RestoreError::io(format!("{doing} {}", path.display()), source)
}

fn refused(path: &Path, source: PlaceError) -> RestoreError {
    RestoreError::Place { path: path.to_owned(), source }
}

/// Who knows whether a server runs in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// Its `postmaster.pid`: the process and the socket that it names are of this machine.
    ByItsFile,
    /// A container engine, which was asked. What the file names is in a container, and this machine may have another of
    /// the same name.
    ByEngine,
}

/// Makes the data directory ready, when nothing stands in the way of it or of a tablespace.
///
/// # Errors
/// When one of them holds something else, or cannot be written.
pub(super) fn prepare(
    data: &Path,
    owner: Option<(u32, u32)>,
    plan: &Plan,
    force: bool,
    watched: Watched,
) -> Result<Place, RestoreError> {
    check(data, plan, force, watched)?;
    let base = format!("{BASE}{}", plan.base.backup);
    let spaces = of_plan(plan, &absolute(data)?)?;
    let mut place = take(data, &spaces, owner, &plan.digest(), &plan.target.to_string(), force, watched)?;
    if !place.done.contains(&base) {
        place.note(&base)?;
    }
    Ok(place)
}

/// Whether every folder of a plan could be used, without touching one: for `--dry-run`. Gives those whose content would be
/// moved aside.
///
/// # Errors
/// As a restore into them would fail.
pub fn check(data: &Path, plan: &Plan, force: bool, watched: Watched) -> Result<Vec<PathBuf>, RestoreError> {
    let data = &absolute(data)?;
    let spaces = of_plan(plan, data)?;
    let (mut aside, mut taken) = (Vec::new(), BTreeSet::new());
    match look(data, watched)? {
        Found::Foreign(_) if force => aside.push(data.clone()),
        Found::Foreign(what) => return Err(refused(data, PlaceError::NotEmpty(what))),
        Found::Ours { text } => match resume(data, &text, &plan.digest()) {
            Resume::Other(_) if force => aside.push(data.clone()),
            Resume::Other(about) => return Err(refused(data, PlaceError::Other(about))),
            // What it had taken is its own, also when it begins anew.
            Resume::Again => taken = text.lines().map(str::to_owned).collect(),
            Resume::GoOn(done, _) => taken = done,
        },
        Found::Nothing | Found::Empty => {}
    }
    for (oid, space) in plan.tablespaces.keys().zip(&spaces) {
        let ours = taken.contains(&space_line(space));
        if look_at_space(*oid, space, force || ours)? == Space::Aside && !ours {
            aside.push(space.clone());
        }
    }
    Ok(aside)
}

/// What is to be done with the folder of a tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    New,
    Empty,
    Aside,
}

fn look_at_space(oid: u32, path: &Path, force: bool) -> Result<Space, RestoreError> {
    let found = look(path, Watched::ByItsFile)?;
    if matches!(found, Found::Nothing) {
        return Ok(Space::New);
    }
    if let Some(server) = occupied::as_a_tablespace(path).map_err(io("see who uses", path))? {
        return Err(refused(path, PlaceError::Tablespace(server, oid)));
    }
    match found {
        Found::Nothing => Ok(Space::New),
        Found::Empty => Ok(Space::Empty),
        Found::Ours { .. } | Found::Foreign(_) if force => Ok(Space::Aside),
        Found::Ours { .. } => {
            Err(refused(path, PlaceError::TablespaceNotEmpty("another restore writes into it".into(), oid)))
        }
        Found::Foreign(what) => Err(refused(path, PlaceError::TablespaceNotEmpty(what, oid))),
    }
}

/// Takes the data directory. `spaces` are the folders of the plan's tablespaces, `plan` is its digest, and `about` says in words
/// which it is.
fn take(
    data: &Path,
    spaces: &[PathBuf],
    owner: Option<(u32, u32)>,
    plan: &str,
    about: &str,
    force: bool,
    watched: Watched,
) -> Result<Place, RestoreError> {
    let data = &absolute(data)?;
    let found = look(data, watched)?;
    let mut moved_aside = Vec::new();
    match found {
        Found::Nothing => make(data, owner)?,
        Found::Empty => {}
        Found::Ours { text } => match resume(data, &text, plan) {
            Resume::GoOn(done, base_complete) => {
                let mut state = state::append(data).map_err(io("open", &data.join(STATE)))?;
                lock(data, &state)?;
                // Ends a line that the end of the last run may have cut.
                state.write_all(b"\n").map_err(io("write", &data.join(STATE)))?;
                let spaces = Vec::new();
                return Ok(Place { data: data.clone(), done, moved_aside, base_complete, state, spaces, owner });
            }
            Resume::Again => {
                idle(data)?;
                clear(data, &state::spaces(&text, spaces))?;
            }
            Resume::Other(_) if force => {
                idle(data)?;
                moved_aside.push(move_aside(data, owner)?);
            }
            Resume::Other(about) => return Err(refused(data, PlaceError::Other(about))),
        },
        Found::Foreign(_) if force => moved_aside.push(move_aside(data, owner)?),
        Found::Foreign(what) => return Err(refused(data, PlaceError::NotEmpty(what))),
    }
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).map_err(io("set the mode of", data))?;
    give(data, owner)?;
    let path = data.join(STATE);
    let mut state = File::options().append(true).create_new(true).open(&path).map_err(io("write", &path))?;
    lock(data, &state)?;
    let head = format!("{plan}\n{}\n{}\n", boot_id(), about.replace('\n', " "));
    state.write_all(head.as_bytes()).and_then(|()| state.sync_all()).map_err(io("write", &path))?;
    File::open(data).and_then(|dir| dir.sync_all()).map_err(io("sync", data))?;
    crate::failpoint!("restore-place-ready");
    let (done, spaces) = (BTreeSet::new(), Vec::new());
    Ok(Place { data: data.clone(), done, moved_aside, base_complete: false, state, spaces, owner })
}

impl Place {
    /// Whether a server has ended its recovery here: then it has taken away what told it to recover. It does so after it has
    /// met its target, and never before.
    pub(super) fn opened(&self) -> bool {
        self.base_complete && !["backup_label", "recovery.signal"].iter().any(|name| self.data.join(name).exists())
    }

    /// Notes that a chunk is in place.
    pub(super) fn chunk_done(&mut self, key: &str) -> Result<(), RestoreError> {
        self.note(key)
    }

    /// Takes a folder for a tablespace: an empty or new one, or the one that an earlier run of this restore took.
    pub(super) fn tablespace(&mut self, oid: u32, path: &Path, force: bool) -> Result<(), RestoreError> {
        let path = &absolute(path)?;
        let line = space_line(path);
        if self.done.contains(&line) && path.is_dir() {
            self.spaces.push(locked(path)?);
            return Ok(());
        }
        match look_at_space(oid, path, force)? {
            Space::New => make(path, self.owner)?,
            Space::Empty => {}
            Space::Aside => {
                let _nobody_else = locked(path)?;
                self.moved_aside.push(move_aside(path, self.owner)?);
            }
        }
        self.spaces.push(locked(path)?);
        if fs::read_dir(path).map_err(io("read", path))?.next().is_some() {
            return Err(refused(path, PlaceError::Busy));
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io("set the mode of", path))?;
        give(path, self.owner)?;
        self.note(&line)
    }

    /// Writes a line down, for a run that goes on after this one.
    pub(super) fn note(&mut self, line: &str) -> Result<(), RestoreError> {
        // One write, so that a line is there or not; a torn one is no chunk's name and is done again.
        self.state.write_all(format!("{line}\n").as_bytes()).map_err(io("write", &self.data.join(STATE)))
    }

    /// The lock of this place once more, for work that goes on when nobody waits for it any longer.
    pub(super) fn hold(&self) -> Result<File, RestoreError> {
        self.state.try_clone().map_err(io("lock", &self.data.join(STATE)))
    }

    /// Notes that the base is complete and durable.
    pub(super) fn base_complete(&mut self) -> Result<(), RestoreError> {
        self.note(BASE_COMPLETE)?;
        self.state.sync_all().map_err(io("sync", &self.data.join(STATE)))
    }

    /// Ends the restore: from now on the folder is a server's.
    pub(super) fn finish(self) -> Result<(), RestoreError> {
        let path = self.data.join(STATE);
        fs::remove_file(&path).map_err(io("remove", &path))?;
        File::open(&self.data).and_then(|dir| dir.sync_all()).map_err(io("sync", &self.data))
    }

    /// Whose files are to be.
    pub(super) fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }
}

/// Hands a file to the server's user.
pub(super) fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<(), RestoreError> {
    let Some((user, group)) = owner else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(io("give away", path))
}

/// Hands a folder and all in it to the server's user, without following links. The log that lies in it is given away file
/// by file, by who lays it out, perhaps at this moment.
pub(super) fn give_all(path: &Path, owner: Option<(u32, u32)>) -> Result<(), RestoreError> {
    let Some(wanted) = owner else { return Ok(()) };
    let facts = fs::symlink_metadata(path).map_err(io("read", path))?;
    if facts.is_dir() {
        for entry in fs::read_dir(path).map_err(io("read", path))? {
            let entry = entry.map_err(io("read", path))?;
            // What is written down stays ours: a run that goes on believes it.
            if entry.file_name() != super::feeder::STAGE && entry.file_name() != STATE {
                give_all(&entry.path(), owner)?;
            }
        }
    }
    if (facts.uid(), facts.gid()) == wanted { Ok(()) } else { give(path, owner) }
}

/// Makes everything in the file systems of these folders durable.
pub(super) fn sync(folders: &[PathBuf]) -> Result<(), RestoreError> {
    let mut synced = BTreeSet::new();
    for folder in folders {
        let dir = File::open(folder).map_err(io("open", folder))?;
        let device = dir.metadata().map_err(io("read", folder))?.dev();
        if synced.insert(device) {
            // One call writes back and waits for all; file by file takes as many waits as there are files. It reports
            // what could not be written since Linux 5.8.
            nix::unistd::syncfs(&dir)
                .map_err(|error| RestoreError::io(format!("sync {}", folder.display()), error.into()))?;
        }
    }
    Ok(())
}

enum Found {
    Nothing,
    Empty,
    Ours { text: String },
    Foreign(String),
}

fn look(data: &Path, watched: Watched) -> Result<Found, RestoreError> {
    let facts = match fs::metadata(data) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let dangling = fs::symlink_metadata(data).is_ok();
            return if dangling {
                Err(refused(data, PlaceError::NoFolder("a link to nothing")))
            } else {
                Ok(Found::Nothing)
            };
        }
        facts => facts.map_err(io("read", data))?,
    };
    if !facts.is_dir() {
        return Err(refused(data, PlaceError::NoFolder("a file")));
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(data).map_err(io("read", data))? {
        names.push(entry.map_err(io("read", data))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    // A server that was started on a half-done restore counts too.
    if watched == Watched::ByItsFile {
        running(data)?;
    }
    if names.is_empty() {
        return Ok(Found::Empty);
    }
    if names.iter().any(|name| name == STATE) {
        let text = state::read(data).map_err(io("read", &data.join(STATE)))?;
        if names.len() == 1 || state::is_begun(&text) {
            return Ok(Found::Ours { text });
        }
    }
    let version = small_file::read_text(&data.join("PG_VERSION"), small_file::KEY_MAX_BYTES).ok();
    let shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(4);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Ok(Found::Foreign(match version {
        Some(version) => format!("it is the data directory of a PostgreSQL {} server", version.trim()),
        None => format!("it holds {shown}{more}"),
    }))
}

/// Refuses a folder that a server has open.
fn running(data: &Path) -> Result<(), RestoreError> {
    match occupied::by_a_server(data).map_err(io("read", &data.join("postmaster.pid")))? {
        Some(server) => Err(refused(data, PlaceError::Running(server))),
        None => Ok(()),
    }
}

fn make(data: &Path, owner: Option<(u32, u32)>) -> Result<(), RestoreError> {
    if let Some(above) = data.parent() {
        fs::create_dir_all(above).map_err(io("make", above))?;
    }
    fs::DirBuilder::new().mode(0o700).create(data).map_err(io("make", data))?;
    give(data, owner)
}

/// Removes what an earlier run of this restore wrote, here and in the folders of tablespaces that it took.
fn clear(data: &Path, spaces: &[PathBuf]) -> Result<(), RestoreError> {
    let state = data.join(STATE);
    for path in spaces.iter().filter(|path| path.is_dir()) {
        empty(path, None)?;
    }
    empty(data, Some(&state))?;
    // Last: until here the folder says whose it is.
    fs::remove_file(&state).map_err(io("remove", &state))
}

fn empty(folder: &Path, but: Option<&Path>) -> Result<(), RestoreError> {
    for entry in fs::read_dir(folder).map_err(io("read", folder))? {
        let entry = entry.map_err(io("read", folder))?;
        let path = entry.path();
        if Some(&*path) != but {
            let directory = entry.file_type().map_err(io("read", &path))?.is_dir();
            if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

/// Moves a folder to a new name beside it, and makes an empty one in its place.
fn move_aside(data: &Path, owner: Option<(u32, u32)>) -> Result<PathBuf, RestoreError> {
    let name = data.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    for number in 0..100 {
        let more = if number == 0 { String::new() } else { format!("-{number}") };
        let aside = data.with_file_name(format!("{name}.before-restore-{stamp}{more}"));
        if fs::symlink_metadata(&aside).is_ok() {
            continue;
        }
        match fs::rename(data, &aside) {
            Ok(()) => {
                make(data, owner)?;
                return Ok(aside);
            }
            // A mount point cannot be moved: its content goes into a folder of its own, on the same file system.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EXDEV)) => {
                return Err(refused(
                    data,
                    PlaceError::Name("it is a mount point, which cannot be moved aside: empty it first".into()),
                ));
            }
            Err(error) => return Err(io("move aside", data)(error)),
        }
    }
    Err(refused(data, PlaceError::Name("a hundred folders were moved aside within this second".into())))
}

/// Makes sure that no restore writes into a folder at this moment.
pub(super) fn idle(data: &Path) -> Result<(), RestoreError> {
    match state::append(data) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        state => lock(data, &state.map_err(io("open", &data.join(STATE)))?),
    }
}

/// A folder of a tablespace, which two restores at once may both have found empty.
fn locked(path: &Path) -> Result<File, RestoreError> {
    let folder = File::open(path).map_err(io("open", path))?;
    lock(path, &folder)?;
    Ok(folder)
}

fn lock(data: &Path, state: &File) -> Result<(), RestoreError> {
    match state.try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => Err(refused(data, PlaceError::Busy)),
        Err(fs::TryLockError::Error(error)) => Err(io("lock", &data.join(STATE))(error)),
    }
}

#[cfg(test)]
mod tests;
