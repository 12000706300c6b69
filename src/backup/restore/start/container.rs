//! A server in a container that is to be left running. Its first process is `postgres` itself, so its status is in its
//! folder as everywhere, and its messages are the container's.
//!
//! Until it has recovered the engine does not start it again by itself; started by hand, it meets the feeding script whose
//! other side is gone, and does not open.

use super::super::container::{Container, LABEL, Published};
use super::{LOOK_EVERY, Outcome, RestoreError, SEARCHED_BYTES, listens, refused, status};
use crate::runtime::docker::server::ServerSpec;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The port in the container, as in every image of PostgreSQL; the published one is the host's affair.
const PORT: u16 = 5432;
/// How `psql` parts columns and rows: bytes that stand for this, and that no number or word holds.
const COLUMN: char = '\u{1f}';
const ROW: char = '\u{1e}';

fn published(container: &Container) -> Result<&Published, RestoreError> {
    container.wanted.server.as_ref().ok_or_else(|| RestoreError::Server("no container was asked for".into()))
}

/// Ends and removes the container that an interrupted restore of this source left on this place. Nobody else's is touched.
pub(super) async fn clear(container: &Container) -> Result<(), RestoreError> {
    let server = published(container)?;
    let seen = container.docker.all_containers().await?;
    let Some(one) = seen.iter().find(|one| one.name == server.name) else { return Ok(()) };
    let ours = one.labels.get(LABEL).is_some_and(|source| source == container.wanted.source.as_str());
    if !ours || !one.uses.contains(&container.source()) {
        return Err(RestoreError::Container {
            what: format!("the container {}", server.name),
            why: "somebody has made one of this name meanwhile\nhint: name another with `--name NAME`".into(),
        });
    }
    // What it has written is whole without a checkpoint, too.
    container.docker.end_server(&server.name, "SIGQUIT").await?;
    Ok(container.docker.remove_server(&server.name).await?)
}

/// A server that was started here.
pub(in crate::backup::restore) struct Running {
    container: Box<Container>,
    name: String,
    data: PathBuf,
}

/// Starts it in a new container.
pub(super) async fn start(container: &Container, data: &Path) -> Result<Running, RestoreError> {
    let server = published(container)?;
    clear(container).await?;
    // Nobody runs here. A server that was ended has left the word that it is ready.
    match fs::remove_file(data.join("postmaster.pid")) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(RestoreError::io("remove postmaster.pid", error));
        }
        _ => {}
    }
    let inner = container.inner_data();
    let mut command = vec![container.postgres.clone(), "-D".into(), inner.clone()];
    let settings = [
        format!("config_file={inner}/postgresql.conf"),
        format!("hba_file={inner}/pg_hba.conf"),
        format!("ident_file={inner}/pg_ident.conf"),
        // The port that is published leads to its address in the container.
        "listen_addresses=*".into(),
        format!("port={PORT}"),
        // Where `psql` in the image looks for it; the folder of the source's machine is not there.
        format!("unix_socket_directories={}", container.socket),
        // Its messages are the container's.
        "logging_collector=off".into(),
        "log_destination=stderr".into(),
    ];
    for setting in settings {
        command.extend(["-c".into(), setting]);
    }
    let source = container.source();
    let user = container.user();
    let spec = ServerSpec {
        name: &server.name,
        labels: container.labels(),
        image: &container.image,
        user: &user,
        command,
        data: (&source, &container.mount),
        published: (server.listen, server.port, PORT),
        network: server.network.as_deref(),
    };
    container.docker.start_server(&spec).await?;
    Ok(Running { container: Box::new(container.clone()), name: server.name.clone(), data: data.to_owned() })
}

impl Running {
    pub(super) async fn outcome(&mut self) -> Result<Outcome, RestoreError> {
        let docker = self.container.docker.clone();
        let ended = docker.server_ended(&self.name);
        tokio::pin!(ended);
        loop {
            tokio::select! {
                code = &mut ended => {
                    let code = code?;
                    return Ok(refused(&format!("exit code {code}"), &self.log(SEARCHED_BYTES).await));
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if status(&self.data).is_some_and(|(_, status)| status == "ready") {
                return Ok(Outcome::Open);
            }
        }
    }

    /// The end of its messages.
    pub(super) async fn log(&self, bytes: usize) -> String {
        let read = self.container.docker.server_says(&self.name, bytes).await;
        read.unwrap_or_else(|error| format!("its messages cannot be read: {error}"))
    }

    /// The container stays, so that its messages can be read; the next restore into this place removes it.
    pub(super) async fn stop(self) -> Result<(), RestoreError> {
        Ok(self.container.docker.end_server(&self.name, "SIGQUIT").await?)
    }

    pub(super) async fn settle(&self) -> Result<(), RestoreError> {
        self.container.docker.signal_server(&self.name, "SIGHUP").await?;
        Ok(self.container.docker.keep_server(&self.name).await?)
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }
}

/// Asks the open server with the image's `psql`, over the socket in the container.
pub(super) async fn query(
    container: &Container,
    data: &Path,
    database: &str,
    sql: &str,
) -> Result<Vec<Vec<String>>, String> {
    let server = published(container).map_err(|error| error.to_string())?;
    let (host, port) = (listens(data)?, PORT.to_string());
    let (column, row) = (COLUMN.to_string(), ROW.to_string());
    let words = [
        "psql",
        "-X",
        "-q",
        "-A",
        "-t",
        "-w",
        "-F",
        &column,
        "-R",
        &row,
        "-P",
        "null=null",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        &host,
        "-p",
        &port,
        "-U",
        &server.role,
        "-d",
        database,
        "-c",
        sql,
    ];
    let command = words.iter().map(|&word| word.to_owned()).collect();
    let asked = container.docker.ask_server(&server.name, &container.user(), command).await;
    let (code, said, wrong) = asked.map_err(|error| error.to_string())?;
    if code != 0 {
        return Err(wrong.trim().to_owned());
    }
    let said = said.strip_suffix('\n').unwrap_or(&said);
    // No row at all, and one that is empty, are told apart by the line's end alone; neither is an answer.
    if said.is_empty() {
        return Ok(Vec::new());
    }
    Ok(said.split(ROW).map(|row| row.split(COLUMN).map(str::to_owned).collect()).collect())
}
