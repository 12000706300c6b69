//! A server of local programs: a child that goes on when this process ends, its messages in a file of its folder.

use super::{
    LOG_FILE, LOOK_EVERY, LocalServer, Outcome, RestoreError, SEARCHED_BYTES, STOP_WITHIN, listens, refused, status,
};
use crate::backup::source::postgres::{Address, Connection, Purpose};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A server that was started here.
pub(in crate::backup::restore) struct Running {
    child: Child,
    data: PathBuf,
    /// Its messages from this start on begin here.
    log_begins: u64,
}

/// Starts it; it goes on when this process ends.
pub(super) fn start(server: &LocalServer, data: &Path) -> Result<Running, RestoreError> {
    let log_path = data.join(LOG_FILE);
    let wrong = |error| RestoreError::io(format!("write {}", log_path.display()), error);
    // The folder is the server's user's, who must not have us write through a link.
    let mut options = File::options();
    options.create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let log = options.open(&log_path).map_err(wrong)?;
    super::super::place::give(&log_path, server.user)?;
    let log_begins = log.metadata().map_err(wrong)?.len();
    let path = server.bin.join("postgres");
    let mut command = Command::new(&path);
    command.arg("-D").arg(data).current_dir(data).stdin(Stdio::null()).process_group(0);
    let set = |name: &str, value: &str| format!("{name}={value}");
    let mut settings = vec![
        set("port", &server.port.to_string()),
        // Its messages are read here, whatever its configuration does with them.
        set("logging_collector", "off"),
        set("log_destination", "stderr"),
        set("log_min_messages", "log"),
        set("lc_messages", "C"),
        set("config_file", &data.join("postgresql.conf").display().to_string()),
        set("hba_file", &data.join("pg_hba.conf").display().to_string()),
        set("ident_file", &data.join("pg_ident.conf").display().to_string()),
    ];
    if let Some(socket) = &server.socket {
        settings.push(set("unix_socket_directories", &super::super::settings::listed(socket)));
    }
    for setting in settings {
        command.arg("-c").arg(setting);
    }
    if let Some((user, group)) = server.user {
        command.uid(user).gid(group);
    }
    // Nothing of our environment is the server's business: it may hold credentials of the store.
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
        .env("LC_ALL", "C");
    let copy = log.try_clone().map_err(wrong)?;
    command.stdout(copy).stderr(log);
    let child = command.spawn().map_err(|error| RestoreError::io(format!("run {}", path.display()), error))?;
    Ok(Running { child, data: data.to_owned(), log_begins })
}

impl LocalServer {
    /// Whether its port is free on this machine: known before anything is fetched.
    ///
    /// # Errors
    /// When something listens there.
    pub fn check_port(&self) -> Result<(), RestoreError> {
        match std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, self.port)) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(RestoreError::Port(self.port)),
            // Whatever else is wrong, the server itself says it.
            _ => Ok(()),
        }
    }
}

impl Running {
    /// Waits until it is open or gone. May be dropped and called again.
    pub(super) async fn outcome(&mut self) -> Result<Outcome, RestoreError> {
        loop {
            let ended = self.child.try_wait().map_err(|error| RestoreError::io("watch the server", error))?;
            if let Some(status) = ended {
                return Ok(refused(&status.to_string(), &self.log(SEARCHED_BYTES)));
            }
            if status(&self.data).is_some_and(|(pid, status)| Some(pid) == self.child.id() && status == "ready") {
                return Ok(Outcome::Open);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The end of its messages since this start.
    pub(super) fn log(&self, bytes: usize) -> String {
        let bytes = bytes as u64;
        let read = || {
            let mut file = File::open(self.data.join(LOG_FILE))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.log_begins.max(length.saturating_sub(bytes))))?;
            let mut text = Vec::new();
            file.take(bytes).read_to_end(&mut text)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
        };
        read().unwrap_or_else(|error| format!("its messages cannot be read: {error}"))
    }

    /// Stops it at once, without a checkpoint, and waits until it is gone.
    pub(super) async fn stop(mut self) -> Result<(), RestoreError> {
        for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
            let Some(pid) = self.child.id() else { return Ok(()) };
            // It may have ended since.
            let _ = kill(Pid::from_raw(pid as i32), signal);
            if tokio::time::timeout(STOP_WITHIN, self.child.wait()).await.is_ok() {
                return Ok(());
            }
        }
        Err(RestoreError::Server("it does not stop".into()))
    }

    /// Has it read its configuration again.
    pub(super) fn reload(&self) {
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGHUP);
        }
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }
}

/// Asks the open server over its socket.
pub(super) async fn query(
    server: &LocalServer,
    data: &Path,
    database: &str,
    sql: &str,
) -> Result<Vec<Vec<String>>, String> {
    let (role, database, place) = (escaped(&server.role), escaped(database), escaped(&listens(data)?));
    let url = format!("postgres://{role}@{place}:{}/{database}", server.port);
    let address = Address::parse(&url).map_err(|error| error.to_string())?;
    rows_at(&address, sql).await
}

/// Asks a server of which the address is known.
async fn rows_at(address: &Address, sql: &str) -> Result<Vec<Vec<String>>, String> {
    let mut connection = Connection::open(address, None, Purpose::Sql).await.map_err(|error| error.to_string())?;
    let answer = connection.query(sql).await.map_err(|error| error.to_string())?;
    connection.close().await;
    let text = |value: &Option<bytes::Bytes>| match value {
        Some(value) => String::from_utf8_lossy(value).into_owned(),
        None => "null".into(),
    };
    Ok(answer.rows.iter().map(|row| row.iter().map(text).collect()).collect())
}

/// As a part of an address.
fn escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}
