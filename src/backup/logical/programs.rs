//! PostgreSQL's own programs on this machine: found by version, told where the server is by their environment, and believed
//! only when they end with 0.
//!
//! The password is never an argument, which every user of the machine could read. Source of the variables: the manual's
//! section "Environment Variables" of libpq.

use crate::backup::source::postgres::{Address, ChannelBinding, Host, Roots, Target, Tls};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

/// Later major versions than this are looked for in the usual folders, too: a number well beyond the next years.
const MAJOR_MAX: u32 = 40;
/// A file that can never be there: libpq says nothing of it, and does not look into the home folder instead.
const NOWHERE: &str = "/dev/null/none";
/// As much of what a program says is kept, from the end.
const SAID_BYTES: usize = 4 << 10;
/// A program says its version at once, or it is none.
const VERSION_WITHIN: Duration = Duration::from_secs(10);
/// What systems keep the authorities in that they trust; a libpq before 16 has no word for them.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why a program was of no use. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there in a version that will do.
    #[error(
        "find {program} of PostgreSQL {at_least} or later: {what}\nhint: install the client programs of PostgreSQL {at_least}, or \
         name their folder with {}\nhint: without that they are looked for in {}",
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

/// A folder with PostgreSQL's programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    bin: PathBuf,
    /// Their major version.
    pub major: u32,
    /// What `--version` says.
    pub version: String,
}

impl Programs {
    /// The folder of `program` in this major version or the next later one that there is: in `bin`, or else where systems
    /// put it.
    ///
    /// # Errors
    /// When there is none that will do.
    pub async fn find(program: &'static str, bin: Option<&Path>, at_least: u32) -> Result<Programs, ProgramError> {
        let candidates: Vec<PathBuf> = match bin {
            Some(bin) => vec![bin.to_owned()],
            None => usual(at_least).collect(),
        };
        let mut what = "there is none".to_owned();
        for bin in candidates.into_iter().filter(|bin| bin.join(program).is_file()) {
            let path = bin.join(program);
            match version(&path).await {
                Ok((major, version)) if major >= at_least => return Ok(Programs { bin, major, version }),
                Ok((_, version)) => what = format!("{} is {version}", path.display()),
                Err(why) => what = format!("{}: {why}", path.display()),
            }
        }
        if let (Some(bin), "there is none") = (bin, what.as_str()) {
            what = format!("there is none in {}", bin.display());
        }
        Err(ProgramError::NotFound { program, at_least, what })
    }

    /// One of them, to be run against a server.
    pub(super) fn command(&self, program: &str, address: &Address) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("LC_ALL", "C").envs(variables(address));
        command
    }
}

/// What names the folder of a program.
fn named_by(program: &str) -> &'static str {
    match program {
        "pg_restore" => "`--bin DIR`, or `bin` under `restore` in the source's file",
        _ => "`bin` in the source's file",
    }
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

/// 15 of `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, 19 of `pg_dump (PostgreSQL) 19beta1`.
fn major_of(said: &str) -> Option<u32> {
    let digits = said.split_once("(PostgreSQL) ")?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// What tells libpq where the server is. Nothing is taken from password files: where to sign in is said in one place.
fn variables(address: &Address) -> Vec<(&'static str, String)> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for host in &address.hosts {
        match host {
            Host::Tcp(name, port) => {
                hosts.push(name.clone());
                ports.push(port.to_string());
            }
            Host::Unix(folder, port) => {
                hosts.push(folder.display().to_string());
                ports.push(port.to_string());
            }
        }
    }
    let mode = match address.tls {
        Tls::Disable => "disable",
        Tls::Allow => "allow",
        Tls::Prefer => "prefer",
        Tls::Require => "require",
        Tls::VerifyCa => "verify-ca",
        Tls::VerifyFull => "verify-full",
    };
    let binding = match address.channel_binding {
        ChannelBinding::Disable => "disable",
        ChannelBinding::Prefer => "prefer",
        ChannelBinding::Require => "require",
    };
    let target = match address.target {
        Target::Any => "any",
        Target::Primary => "read-write",
        Target::Standby => "standby",
        Target::PreferStandby => "prefer-standby",
    };
    let mut variables = vec![
        ("PGHOST", hosts.join(",")),
        ("PGPORT", ports.join(",")),
        ("PGUSER", address.user.clone()),
        ("PGSSLMODE", mode.to_owned()),
        ("PGCHANNELBINDING", binding.to_owned()),
        ("PGTARGETSESSIONATTRS", target.to_owned()),
        ("PGCONNECT_TIMEOUT", address.connect_timeout.as_secs().max(2).to_string()),
        ("PGAPPNAME", address.application_name.clone()),
        ("PGPASSFILE", NOWHERE.to_owned()),
    ];
    let verified = matches!(address.tls, Tls::VerifyCa | Tls::VerifyFull);
    match &address.roots {
        Roots::File(path) => variables.push(("PGSSLROOTCERT", path.display().to_string())),
        Roots::System if verified => {
            let bundle = SYSTEM_ROOTS.into_iter().find(|path| Path::new(path).is_file()).unwrap_or("system");
            variables.push(("PGSSLROOTCERT", bundle.to_owned()));
        }
        // A file in the home folder of whoever runs this must not change what `require` means.
        Roots::System => variables.push(("PGSSLROOTCERT", NOWHERE.to_owned())),
    }
    if let Some(password) = &address.password {
        variables.push(("PGPASSWORD", password.expose().to_owned()));
    }
    variables
}

/// The name of a database as a connection string, so that no character of it means anything else.
pub(super) fn database(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A program that runs. Dropped, it is killed.
pub(super) struct Running {
    program: &'static str,
    pub(super) child: Child,
    said: JoinHandle<String>,
}

impl Running {
    pub(super) fn start(program: &'static str, command: &mut Command) -> Result<Running, ProgramError> {
        let io = |error| ProgramError::Io { program, error };
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(io)?;
        let stderr = child.stderr.take();
        Ok(Running { program, child, said: tokio::spawn(async move { last_words(stderr).await }) })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it failed.
    pub(super) async fn end(mut self) -> Result<(), ProgramError> {
        let program = self.program;
        let status = self.child.wait().await.map_err(|error| ProgramError::Io { program, error })?;
        let said = (&mut self.said).await.unwrap_or_default();
        if status.success() { Ok(()) } else { Err(ProgramError::Ended { program, status, said }) }
    }

    /// Ends it, whatever it is doing.
    pub(super) async fn kill(mut self) {
        let _ = self.child.kill().await;
    }

    pub(super) fn io(&self, error: std::io::Error) -> ProgramError {
        ProgramError::Io { program: self.program, error }
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

    #[test]
    fn the_server_is_said_by_the_environment_alone() {
        let text =
            "postgres://u%20x:p%27w@a:1,[::1]/d?sslmode=verify-ca&sslrootcert=/ca.pem&target_session_attrs=primary";
        let variables = variables(&Address::parse(text).unwrap());
        let of = |name| variables.iter().find(|(one, _)| *one == name).map(|(_, value)| value.as_str());
        assert_eq!((of("PGHOST"), of("PGPORT"), of("PGUSER")), (Some("a,::1"), Some("1,5432"), Some("u x")));
        assert_eq!((of("PGSSLMODE"), of("PGSSLROOTCERT")), (Some("verify-ca"), Some("/ca.pem")));
        assert_eq!((of("PGPASSWORD"), of("PGTARGETSESSIONATTRS")), (Some("p'w"), Some("read-write")));
        assert_eq!(database(r"it's \ one"), r"dbname='it\'s \\ one'");
    }
}
