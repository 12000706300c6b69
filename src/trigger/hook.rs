//! The post-receive hook: putting it into a bare repository, and what it calls on each push.
//!
//! The hook (`hooks/post-receive`) calls `mainstay hook notify`, which is [`notify`]; without the program it leaves the
//! same message in the spool by itself. Neither ever fails a push.

use super::message::{self, Message};
use crate::model::RepoName;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

/// The hook as it ships.
const TEMPLATE: &str = include_str!("../../hooks/post-receive");
/// By this line a hook of ours is recognised, whatever its version.
const MARK: &str = "# mainstay-hook ";
/// The folder in the bare repository for messages nobody took.
pub const SPOOL_DIR: &str = "mainstay-spool";
/// All the time a push may wait for us is one second; this leaves some for the program's start and the spool file.
const ANSWER_WITHIN: Duration = Duration::from_millis(800);
/// What is read from git; a push of more refs than fit is found by the next look at the refs.
const STDIN_MAX_BYTES: u64 = super::message::MESSAGE_MAX_BYTES as u64 - 4_096;

/// Why a hook could not be installed. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Not a bare repository.
    #[error("install the hook in {path}: it {why}\nhint: {hint}")]
    NotBare {
        /// Where.
        path: PathBuf,
        /// What it is.
        why: &'static str,
        /// What to try.
        hint: &'static str,
    },
    /// Another hook is in the way, and the place beside is taken as well.
    #[error(
        "install the hook in {path}: both `post-receive` and `post-receive.before-mainstay` are hooks of somebody else\nhint: put what is still needed of them into `post-receive.before-mainstay`, remove `post-receive`, and try again"
    )]
    Crowded {
        /// The repository.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// What was attempted.
        doing: String,
        /// The cause.
        source: io::Error,
    },
}

/// What an installation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallReport {
    /// The hook.
    pub hook: PathBuf,
    /// What was done.
    pub done: Installed,
    /// The hook that was there before and goes on being called.
    pub chained: Option<PathBuf>,
}

/// What an installation did with the hook file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// There was none of ours.
    New,
    /// There was one of ours with other words in it.
    Renewed,
    /// It was there already, word for word.
    Unchanged,
}

/// Puts the hook into the bare repository `repo_git`, to tell the daemon at `socket` about pushes to the watched
/// repository `repo` through the binary `program`. May be repeated. A hook that is there already is kept and called.
///
/// # Errors
/// [`InstallError::NotBare`] with a hint for folders that are something else.
pub fn install(repo_git: &Path, repo: &RepoName, socket: &Path, program: &Path) -> Result<InstallReport, InstallError> {
    let io = |doing: String| move |source| InstallError::Io { doing, source };
    let path = repo_git.canonicalize().map_err(io(format!("open {}", repo_git.display())))?;
    check_bare(&path)?;
    let hooks = path.join("hooks");
    fs::create_dir_all(&hooks).map_err(io(format!("make {}", hooks.display())))?;
    let hook = hooks.join("post-receive");
    let before = hooks.join("post-receive.before-mainstay");
    let text = TEMPLATE
        .replacen("@PROGRAM@", &quoted(program), 1)
        .replacen("@REPO@", &format!("'{repo}'"), 1)
        .replacen("@SOCKET@", &quoted(socket), 1);

    let there = read_if_there(&hook).map_err(io(format!("read {}", hook.display())))?;
    let done = match &there {
        None => Installed::New,
        Some(old) if *old == text.as_bytes() => Installed::Unchanged,
        Some(old) if is_ours(old) => Installed::Renewed,
        Some(foreign) => {
            let kept = read_if_there(&before).map_err(io(format!("read {}", before.display())))?;
            match kept {
                // A second name first, then ours over the first one: at no instant is the foreign hook not called.
                None => fs::hard_link(&hook, &before).map_err(io(format!("keep {}", hook.display())))?,
                Some(kept) if kept == *foreign => {}
                Some(_) => return Err(InstallError::Crowded { path }),
            }
            Installed::New
        }
    };
    let executable = fs::metadata(&hook).is_ok_and(|m| m.permissions().mode() & 0o111 == 0o111);
    if done != Installed::Unchanged || !executable {
        put(&hook, text.as_bytes()).map_err(io(format!("write {}", hook.display())))?;
    }
    make_spool(&path).map_err(io(format!("make {}", path.join(SPOOL_DIR).display())))?;
    Ok(InstallReport { hook, done, chained: before.exists().then_some(before) })
}

fn check_bare(path: &Path) -> Result<(), InstallError> {
    let refuse = |why, hint| Err(InstallError::NotBare { path: path.to_owned(), why, hint });
    if path.join(".git").exists() {
        return refuse(
            "is a working tree",
            "hooks belong into the bare repository that people push to; for a working tree use `poll`",
        );
    }
    if !(path.join("HEAD").is_file() && path.join("objects").is_dir() && path.join("refs").is_dir()) {
        return refuse("is no Git repository", "name a bare repository, made by `git init --bare`");
    }
    let config = fs::read_to_string(path.join("config")).unwrap_or_default().to_ascii_lowercase();
    let sets = |key: &str, value: &str| {
        config.lines().any(|line| {
            let line: String = line.split_whitespace().collect();
            line.strip_prefix(key).and_then(|l| l.strip_prefix('=')).is_some_and(|v| value.is_empty() || v == value)
        })
    };
    if path.ends_with(".git") || sets("bare", "false") {
        return refuse(
            "is the inside of a working tree",
            "hooks belong into the bare repository that people push to; for a working tree use `poll`",
        );
    }
    if sets("hookspath", "") {
        return refuse(
            "has `core.hooksPath` set, so its own hooks are not called",
            "call `mainstay hook notify` from the hooks in that folder, or unset `core.hooksPath`",
        );
    }
    Ok(())
}

fn is_ours(text: &[u8]) -> bool {
    String::from_utf8_lossy(text).lines().take(3).any(|line| line.starts_with(MARK))
}

fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes beside and renames, so that a push at this instant finds the old hook or the new one, whole.
fn put(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_file_name(format!(".post-receive.{}.new", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o755).open(&beside)?;
    file.write_all(text)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

fn make_spool(repo_git: &Path) -> io::Result<()> {
    let spool = repo_git.join(SPOOL_DIR);
    match fs::create_dir(&spool) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    // Whoever pushes writes here, whoever runs the daemon takes away: the repository's group is meant for both.
    fs::set_permissions(&spool, fs::Permissions::from_mode(0o2770))?;
    let owner = fs::metadata(repo_git)?;
    // Only root may give it away; anybody else owns the repository already or could not have come here.
    let _ = std::os::unix::fs::chown(&spool, Some(owner.uid()), Some(owner.gid()));
    Ok(())
}

/// A path as one word for the shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// What became of a push's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notified {
    /// The daemon has stored it.
    Told,
    /// Nobody took it in time: it is in this file.
    Spooled(PathBuf),
    /// Git gave us nothing to tell.
    Nothing,
}

/// Tells the daemon what a push moved, as git's lines on `stdin` say. Waits for at most a second; leaves a spool file in
/// `repo_git` when nobody took it by then. Uses nothing but the standard library's blocking calls, for a fast start.
///
/// # Errors
/// When neither could be done; the hook then tries its own way.
pub fn notify(repo_git: &Path, repo: &str, socket: &Path, stdin: impl Read) -> io::Result<Notified> {
    let mut text = String::new();
    stdin.take(STDIN_MAX_BYTES).read_to_string(&mut text)?;
    let changes: Vec<_> = text.lines().filter_map(message::change).collect();
    if changes.is_empty() {
        return Ok(Notified::Nothing);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let delivery = format!("{:010}.{:09}-{}", now.as_secs(), now.subsec_nanos(), std::process::id());
    let message = Message { repo: repo.to_owned(), delivery, actor: pusher(), changes };
    let text = message.format();
    if tell(socket, &text) {
        return Ok(Notified::Told);
    }
    spool(repo_git, &message.delivery, &text).map(Notified::Spooled)
}

/// Who pushed: what the server around git says, else the user this runs as.
fn pusher() -> Option<String> {
    let named = ["MAINSTAY_PUSHER", "GL_USERNAME", "REMOTE_USER"]
        .iter()
        .find_map(|name| std::env::var(name).ok().and_then(|v| message::clean_actor(&v)));
    named.or_else(|| {
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok()??;
        message::clean_actor(&user.name)
    })
}

/// True when the daemon says that it has stored the message. A connection can hang in more places than timeouts
/// reach (a full backlog, for one), so it is made on a thread that is left behind when time is up. Should the daemon
/// store it after all, the delivery id makes the spool file a repetition.
fn tell(socket: &Path, text: &str) -> bool {
    let (said, heard) = mpsc::channel();
    let (socket, text) = (socket.to_owned(), text.to_owned());
    let talk = move || -> io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(text.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).take(1_024).read_line(&mut answer)?;
        Ok(answer.trim_end() == "ok")
    };
    let spawned = std::thread::Builder::new().spawn(move || said.send(talk().unwrap_or(false)));
    spawned.is_ok() && heard.recv_timeout(ANSWER_WITHIN).unwrap_or(false)
}

fn spool(repo_git: &Path, delivery: &str, text: &str) -> io::Result<PathBuf> {
    make_spool(repo_git)?;
    let dir = repo_git.join(SPOOL_DIR);
    let (beside, path) = (dir.join(format!(".{delivery}.tmp")), dir.join(format!("{delivery}.push")));
    // The daemon may run as another user of the same group.
    let mut file = File::options().write(true).create_new(true).mode(0o660).open(&beside)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&beside, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests;
