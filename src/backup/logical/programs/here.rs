//! PostgreSQL's own programs on this machine. The password goes to them by their environment, which only the same user and
//! root can read.

use super::variables::{NOWHERE, variables};
use super::{ProgramError, Streams, major_of};
use crate::backup::source::postgres::{Address, Roots, Tls};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

/// Later major versions than this are looked for in the usual folders, too: a number well beyond the next years.
const MAJOR_MAX: u32 = 40;
/// As much of what a program says is kept, from the end.
const SAID_BYTES: usize = 4 << 10;
/// A program says its version at once, or it is none.
const VERSION_WITHIN: Duration = Duration::from_secs(10);
/// What systems keep the authorities in that they trust; a libpq before 16 has no word for them.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The folder of `program` in this major version or the next later one that there is: in `bin`, or else where systems put
/// it.
pub(super) async fn find(
    program: &'static str,
    bin: Option<&Path>,
    at_least: u32,
) -> Result<(PathBuf, u32, String), ProgramError> {
    let candidates: Vec<PathBuf> = match bin {
        Some(bin) => vec![bin.to_owned()],
        None => usual(at_least).collect(),
    };
    let mut what = "there is none".to_owned();
    for bin in candidates.into_iter().filter(|bin| bin.join(program).is_file()) {
        let path = bin.join(program);
        match version(&path).await {
            Ok((major, version)) if major >= at_least => return Ok((bin, major, version)),
            Ok((_, version)) => what = format!("{} is {version}", path.display()),
            Err(why) => what = format!("{}: {why}", path.display()),
        }
    }
    if let (Some(bin), "there is none") = (bin, what.as_str()) {
        what = format!("there is none in {}", bin.display());
    }
    Err(ProgramError::NotFound { program, at_least, what })
}

/// Where Debian and others put the programs of a major version.
pub fn usual_folders(major: u32) -> [PathBuf; 3] {
    ["/usr/lib/postgresql/N/bin", "/usr/pgsql-N/bin", "/usr/local/pgsql-N/bin"]
        .map(|folder| folder.replace('N', &major.to_string()).into())
}

/// The same in words, for hints.
pub fn places(major: u32) -> String {
    let folders = usual_folders(major).map(|folder| folder.display().to_string());
    format!("{}, and the folders of PATH", folders.join(", "))
}

fn usual(at_least: u32) -> impl Iterator<Item = PathBuf> {
    let folders = (at_least..=MAJOR_MAX).flat_map(usual_folders);
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.chain(std::env::split_paths(&path).collect::<Vec<_>>())
}

async fn version(path: &Path) -> Result<(u32, String), String> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_WITHIN, command.output()).await;
    let output = output.map_err(|_| "it does not say its version".to_owned())?.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    major_of(&said).map(|major| (major, said.clone())).ok_or_else(|| format!("it says of itself `{said}`"))
}

/// The file with the authorities that the system trusts.
pub(super) fn system_roots() -> Option<&'static str> {
    SYSTEM_ROOTS.into_iter().find(|path| Path::new(path).is_file())
}

/// What leads a program to a server.
pub(super) fn environment(address: &Address) -> Vec<(String, String)> {
    let roots = match &address.roots {
        Roots::File(path) => Some(path.display().to_string()),
        Roots::System if matches!(address.tls, Tls::VerifyCa | Tls::VerifyFull) => {
            Some(system_roots().unwrap_or("system").to_owned())
        }
        Roots::System => None,
    };
    let mut environment = variables(address, NOWHERE, roots);
    if let Some(password) = &address.password {
        environment.push(("PGPASSWORD".to_owned(), password.expose().to_owned()));
    }
    environment
}

/// Begins a program.
pub(super) fn start(
    program: &Path,
    args: &[&str],
    environment: &[(String, String)],
    streams: Streams,
) -> io::Result<Child> {
    let stream = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
    let mut command = Command::new(program);
    command.args(args).env_clear().kill_on_drop(true);
    command.stdin(stream(streams.takes)).stdout(stream(streams.gives)).stderr(Stdio::piped());
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut process = command.spawn()?;
    let (input, stderr) = (process.stdin.take(), process.stderr.take());
    Ok(Child { process, input, said: tokio::spawn(async move { last_words(stderr).await }) })
}

/// A process. Dropped, it is killed: first, since with the end of its input it would take what came for all there is.
pub(super) struct Child {
    process: tokio::process::Child,
    input: Option<ChildStdin>,
    said: JoinHandle<String>,
}

impl Child {
    pub(super) async fn give(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.input {
            Some(input) => input.write_all(bytes).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    pub(super) fn close_input(&mut self) {
        self.input = None;
    }

    pub(super) fn output(&mut self) -> Option<ChildStdout> {
        self.process.stdout.take()
    }

    pub(super) async fn end(mut self) -> io::Result<(ExitStatus, String)> {
        let status = self.process.wait().await?;
        Ok((status, (&mut self.said).await.unwrap_or_default()))
    }

    pub(super) async fn kill(mut self) {
        let _ = self.process.kill().await;
    }
}

/// Everything is read, so that the program never waits for us, and the end of it kept.
async fn last_words(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        let excess = kept.len().saturating_sub(SAID_BYTES);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// A list for `pg_restore`, which reads it from a file only. Numbers stand in it; gone when dropped.
pub(super) struct List(PathBuf);

impl List {
    pub(super) fn write(text: &str) -> io::Result<List> {
        use std::io::Write as _;
        let random = getrandom::u64().map_err(io::Error::other)?;
        let path = std::env::temp_dir().join(format!("mainstay-{random:016x}.list"));
        let mut file = std::fs::File::create_new(&path)?;
        let list = List(path);
        file.write_all(text.as_bytes())?;
        Ok(list)
    }

    pub(super) fn path(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

impl Drop for List {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
