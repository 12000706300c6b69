//! One logical copy, from the first byte to the manifest that makes it exist.
//!
//! A failure at any place, and a kill, leaves no manifest and so no copy; objects that were stored lie there until expiry finds
//! that nothing names them. A stream counts only when its program ended with 0.

use super::programs::{Client, ProgramError, Programs, Streams, Way, database};
use super::server::{Found, Seen, look, open};
use crate::backup::catalog::dumps::{DatabaseDump, DumpManifest, StreamFacts};
use crate::backup::catalog::manifest::VERSION;
use crate::backup::repository::{BackupId, Cluster, DumpItem, DumpStream, Item, Key, Repository};
use crate::backup::seal::Sealer;
use crate::backup::source::postgres::{Address, PostgresError};
use crate::backup::take::{Phase, Progress, Stow, TakeError, Telling};
use crate::config::backup::Databases;
use crate::model::SourceName;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// How long objects are made, in bytes: as those of base backups, for the same reasons.
const CHUNK_BYTES: usize = 16 << 20;
/// A table that is locked for longer is being rewritten; waiting without end would hold back the vacuum of the whole cluster.
const LOCK_WAIT: &str = "--lock-wait-timeout=600s";
/// How every archive of the custom format begins. Source: `pg_backup_archiver.c` of PostgreSQL.
const ARCHIVE_BEGINS: &[u8] = b"PGDMP";
/// How every output of `pg_dumpall` ends, before one empty line or more.
const GLOBALS_END: &[u8] = b"-- PostgreSQL database cluster dump complete\n--";
/// The SQLSTATE of a connection to a database that is not there.
const NO_SUCH_DATABASE: &str = "3D000";
/// Roles, their settings and their memberships: more is no such thing. Kept in memory by a restore.
pub(super) const GLOBALS_MAX_BYTES: u64 = 64 << 20;

/// What is copied, and where it goes.
#[derive(Clone)]
pub struct Job {
    /// The source.
    pub source: SourceName,
    /// Its server.
    pub address: Address,
    /// Its databases.
    pub databases: Databases,
    /// Where the programs come from.
    pub programs: Way,
    /// Where the copy goes.
    pub repository: Arc<dyn Repository>,
    /// Who seals it.
    pub sealer: Sealer,
    /// Who is told how far it is.
    pub tell: Telling,
}

/// Why there is no copy. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The server.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A program of PostgreSQL.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Sealing, storing or reading back.
    #[error(transparent)]
    Stow(#[from] TakeError),
    /// A database that is to be copied is not there, or lets nobody in.
    #[error(
        "copy the database {0}: there is none of this name that accepts connections\nhint: `databases` in the source's file names it"
    )]
    NoDatabase(String),
    /// There is none at all.
    #[error("copy databases: the server has none that accepts connections, but for templates")]
    NoDatabases,
    /// What a program wrote is not what it writes, although it ended well.
    #[error("copy {stream}: {what}")]
    Strange {
        /// Which stream.
        stream: String,
        /// What is wrong.
        what: String,
    },
}

/// Makes one logical copy. When this returns it exists and can be restored. Dropped or failed, there is none; only a
/// manifest whose storing was not answered may be there, and then everything behind it is too.
///
/// # Errors
/// When any part of it fails; the error says which.
pub async fn dump(job: Job) -> Result<DumpManifest, DumpError> {
    let began = Timestamp::now();
    let copy = BackupId::new(began).map_err(|error| TakeError::Broken(error.to_string()))?;
    (job.tell)(Progress { phase: Phase::Opening, received_bytes: 0, estimated_bytes: None, stored_bytes: 0 });

    let meeting = meeting(&job.address, &job.databases);
    let seen = ask(&job.address, meeting).await?;
    let wanted = wanted(&seen, &job.databases)?;
    let programs = Programs::find("pg_dump", &job.programs, seen.major()).await?;
    let client = programs.against(&job.address, meeting, seen.system).await?;
    let made = with(&client, &job, began, copy, &seen, wanted).await;
    client.close().await;
    made
}

/// The copy, with programs that know their server.
async fn with(
    client: &Client,
    job: &Job,
    began: Timestamp,
    copy: BackupId,
    seen: &Seen,
    wanted: Vec<&Found>,
) -> Result<DumpManifest, DumpError> {
    let cluster = Cluster { source: job.source.clone(), system: seen.system };
    let stow = Stow::new(Arc::clone(&job.repository), job.sealer.clone());
    let mut out = Out { job, cluster, copy, stow, received: 0 };

    let globals = globals(job, client, seen, &mut out).await?;
    let mut databases = Vec::with_capacity(wanted.len());
    for found in wanted {
        let stream = one(client, found, &mut out).await?;
        let Found { oid, name, encoding, collate, ctype, .. } = found.clone();
        databases.push(DatabaseDump { oid, name, encoding, collate, ctype, stream });
    }
    out.stow.all().await?;
    let ended = Timestamp::now();

    out.tell(Phase::ReadingBack);
    out.stow.read_back(&Key::of_dump(&out.cluster, &out.copy)).await?;
    let manifest = DumpManifest {
        version: VERSION,
        backup: out.copy.clone(),
        system: seen.system,
        server_version: seen.version,
        program: client.version().to_owned(),
        began,
        ended,
        globals,
        role_passwords: seen.reads_passwords,
        databases,
        objects: out.stow.facts(),
        made_by: concat!("mainstay ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    manifest.sound(&out.cluster, &out.copy).map_err(TakeError::Broken)?;
    let text = serde_json::to_vec(&manifest).map_err(|error| TakeError::Broken(error.to_string()))?;
    crate::failpoint!("dump: before its manifest is stored");
    out.stow.lay(out.key(DumpItem::Manifest), text.into()).await?;
    out.stow.all().await?;
    out.stow.read_back_newest().await?;
    out.tell(Phase::Done);
    Ok(manifest)
}

/// Looks whether a copy could be made: asks the server and leads the programs to it. Gives what these say of their version.
///
/// # Errors
/// When one of them is not as it must be.
pub async fn reaches(address: &Address, databases: &Databases, programs: &Way) -> Result<String, DumpError> {
    let meeting = meeting(address, databases);
    let seen = ask(address, meeting).await?;
    wanted(&seen, databases)?;
    let client =
        Programs::find("pg_dump", programs, seen.major()).await?.against(address, meeting, seen.system).await?;
    let version = client.version().to_owned();
    client.close().await;
    Ok(version)
}

async fn ask(address: &Address, meeting: &str) -> Result<Seen, DumpError> {
    let mut connection = open(address, meeting).await.map_err(|error| match error {
        PostgresError::Unreachable { refusal: Some(error), .. } if error.code == NO_SUCH_DATABASE => {
            DumpError::NoDatabase(meeting.to_owned())
        }
        error => error.into(),
    })?;
    let seen = look(&mut connection).await;
    connection.close().await;
    Ok(seen?)
}

/// The database in which questions about the whole server are asked.
fn meeting<'a>(address: &'a Address, databases: &'a Databases) -> &'a str {
    match (&address.database, databases) {
        (Some(name), _) => name,
        (None, Databases::Named(names)) => names.first().map_or("postgres", String::as_str),
        (None, Databases::All) => "postgres",
    }
}

/// The databases to copy, in the order of their names.
fn wanted<'a>(seen: &'a Seen, databases: &Databases) -> Result<Vec<&'a Found>, DumpError> {
    let found: Vec<&Found> = match databases {
        Databases::All => seen.databases.iter().filter(|one| one.connectable && !one.template).collect(),
        Databases::Named(names) => {
            let one = |name: &String| {
                let found = seen.database(name).filter(|one| one.connectable);
                found.ok_or_else(|| DumpError::NoDatabase(name.clone()))
            };
            let mut found = names.iter().map(one).collect::<Result<Vec<_>, _>>()?;
            found.sort_by(|a, b| a.name.cmp(&b.name));
            found
        }
    };
    if found.is_empty() { Err(DumpError::NoDatabases) } else { Ok(found) }
}

/// Where the streams go.
struct Out<'a> {
    job: &'a Job,
    cluster: Cluster,
    copy: BackupId,
    stow: Stow,
    received: u64,
}

impl Out<'_> {
    fn key(&self, item: DumpItem) -> Key {
        Key::Of(self.cluster.clone(), Item::Dump(self.copy.clone(), item))
    }

    fn tell(&self, phase: Phase) {
        let (received_bytes, stored_bytes) = (self.received, self.stow.stored());
        (self.job.tell)(Progress { phase, received_bytes, estimated_bytes: None, stored_bytes });
    }

    /// Stores what a program writes. Its end is not looked at here. Answers how long it is, its first and its last bytes.
    async fn store(
        &mut self,
        stream: DumpStream,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Result<Result<(StreamFacts, Bytes, Bytes), std::io::Error>, TakeError> {
        let (mut chunks, mut bytes) = (0_u32, 0_u64);
        let (mut first, mut last) = (Bytes::new(), Bytes::new());
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
            let mut over = false;
            while chunk.len() < CHUNK_BYTES && !over {
                // Reads into what is left of the capacity, which is the length of an object.
                let mut room = (&mut *from).take((CHUNK_BYTES - chunk.len()) as u64);
                match room.read_buf(&mut chunk).await {
                    Ok(0) => over = true,
                    Ok(read) => self.received += read as u64,
                    Err(error) => return Ok(Err(error)),
                }
            }
            if chunk.is_empty() && chunks > 0 {
                return Ok(Ok((StreamFacts { chunks, bytes }, first, last)));
            }
            let chunk = chunk.freeze();
            if chunks == 0 {
                first = Bytes::copy_from_slice(&chunk[..chunk.len().min(ARCHIVE_BEGINS.len())]);
            }
            // An end that lies across a border of objects is put together again.
            let mut tail = BytesMut::from(&last[..]);
            tail.extend_from_slice(&chunk[chunk.len().saturating_sub(TAIL_BYTES)..]);
            last = tail.split_off(tail.len().saturating_sub(TAIL_BYTES)).freeze();
            bytes += chunk.len() as u64;
            let key = self.key(DumpItem::Chunk { stream, number: chunks });
            chunks = chunks.checked_add(1).ok_or_else(|| TakeError::Broken("too many objects".into()))?;
            self.stow.lay(key, chunk).await?;
            self.tell(Phase::Receiving);
            if over {
                return Ok(Ok((StreamFacts { chunks, bytes }, first, last)));
            }
        }
    }
}

/// As much of the end of a stream as is looked at.
const TAIL_BYTES: usize = 256;

/// Runs a program to its end and stores what it writes.
async fn run(
    client: &Client,
    program: &'static str,
    args: &[&str],
    stream: DumpStream,
    out: &mut Out<'_>,
) -> Result<(StreamFacts, Bytes, Bytes), DumpError> {
    let mut running = client.start(program, args, Streams { takes: false, gives: true }).await?;
    let mut output = running.output()?;
    // A failure here drops the program, which kills it.
    let stored = out.store(stream, &mut output).await?.map_err(|error| running.io(error))?;
    running.end().await?;
    Ok(stored)
}

async fn globals(job: &Job, client: &Client, seen: &Seen, out: &mut Out<'_>) -> Result<StreamFacts, DumpError> {
    let meeting = database(meeting(&job.address, &job.databases));
    let mut args = vec!["--globals-only", "--no-password", "--encoding=UTF8", "--database", &meeting];
    if !seen.reads_passwords {
        args.push("--no-role-passwords");
    }
    let (facts, _, last) = run(client, "pg_dumpall", &args, DumpStream::Globals, out).await?;
    let strange = |what: &str| DumpError::Strange { stream: "roles".into(), what: what.to_owned() };
    if !last.trim_ascii_end().ends_with(GLOBALS_END) && !ends_unrestricted(&last) {
        return Err(strange("pg_dumpall ended well and did not say that its output is complete"));
    }
    if facts.bytes > GLOBALS_MAX_BYTES {
        return Err(strange("they take more than a restore reads"));
    }
    Ok(facts)
}

/// Since 2025 the last line is one for `psql`, and the word that it is complete stands before or after it.
fn ends_unrestricted(last: &[u8]) -> bool {
    let text = String::from_utf8_lossy(last);
    let mut lines = text.lines().rev().filter(|line| !line.trim().is_empty() && line.trim() != "--");
    let end = String::from_utf8_lossy(&GLOBALS_END[..GLOBALS_END.len() - 3]).into_owned();
    match (lines.next(), lines.next()) {
        (Some(a), Some(b)) => a.starts_with("\\unrestrict ") && b == end,
        _ => false,
    }
}

async fn one(client: &Client, found: &Found, out: &mut Out<'_>) -> Result<StreamFacts, DumpError> {
    let name = database(&found.name);
    // Not compressed: that comes with sealing, and better.
    let args = ["--format=custom", "--compress=0", "--no-password", LOCK_WAIT, "--dbname", &name];
    let (facts, first, _) = run(client, "pg_dump", &args, DumpStream::Database(found.oid), out).await?;
    if first != ARCHIVE_BEGINS {
        let (stream, what) = (format!("the database {}", found.name), "pg_dump wrote no archive".to_owned());
        return Err(DumpError::Strange { stream, what });
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_globals_is_known_in_both_forms() {
        for (text, good) in [
            ("--\n-- PostgreSQL database cluster dump complete\n--\n\n", true),
            ("--\n-- PostgreSQL database cluster dump complete\n--\n\n\\unrestrict abc\n\n", true),
            ("\\unrestrict abc\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n", true),
            ("--\n-- PostgreSQL database cluster dump comp", false),
            ("CREATE ROLE a;\n\\unrestrict abc\n", false),
            ("", false),
        ] {
            let bytes = text.as_bytes();
            assert_eq!(bytes.trim_ascii_end().ends_with(GLOBALS_END) || ends_unrestricted(bytes), good, "{text:?}");
        }
    }
}
