//! A base backup as the server sends it, in one form for both framings.
//!
//! 13 and 14 send one COPY for each archive and cut the two zero blocks off each tar file; 15 and later send one COPY with
//! archives, progress and the manifest in frames of their own. Source: the manual's "Streaming Replication Protocol",
//! command `BASE_BACKUP`, and `basebackup_copy.c` of each version.
//!
//! It is whole only when the server sent the stop position, two `CommandComplete`s and `ReadyForQuery`, and every archive it
//! had announced came. Anything else is an error.

use super::BaseEvent;
use super::ask::{place, quoted};
use super::connect::{Connection, Purpose};
use super::error::PostgresError;
use super::wire::{ANSWER_BYTES, Rows, columns, row};
use crate::backup::repository::Archive;
use bytes::{Buf as _, Bytes, BytesMut};
use std::collections::VecDeque;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What a tar file ends with.
static ZERO_BLOCKS: [u8; 1024] = [0; 1024];
/// What servers take: `MAX_RATE_LOWER` and `MAX_RATE_UPPER` of `basebackup.h`, in KiB a second.
const RATE_KIB: std::ops::RangeInclusive<u32> = 32..=1_048_576;
/// The longest label that servers take (`MAXPGPATH`).
const LABEL_BYTES: usize = 1023;
/// A part of the parent's manifest, going up.
const UPLOAD_BYTES: usize = 64 << 10;
/// Tablespaces of one cluster that we believe.
const MAX_ARCHIVES: usize = 10_000;

/// How a base backup is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseOptions {
    /// What it is called in `backup_label` and in the server's progress view.
    pub label: String,
    /// Begin at once with a checkpoint at full speed, rather than with one spread over minutes.
    pub fast_checkpoint: bool,
    /// At most so many KiB a second, from 32 to 1,048,576.
    pub max_rate_kib: Option<u32>,
    /// Ask the server to look how much it will send. It walks its data directory once for that.
    pub estimate: bool,
}

impl Default for BaseOptions {
    fn default() -> Self {
        BaseOptions { label: "mainstay".into(), fast_checkpoint: true, max_rate_kib: None, estimate: true }
    }
}

/// A base backup that is being sent.
pub struct BaseBackup {
    connection: Connection,
    state: State,
    /// Parts of the answer that are being read: result sets, and how many commands are complete.
    sets: Vec<Rows>,
    held: usize,
    completed: usize,
    /// Announced, and not begun.
    coming: VecDeque<Archive>,
    /// Events that are known already.
    ready: VecDeque<BaseEvent>,
    /// Whether a difference was asked for.
    incremental: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The start position and the list of archives.
    Beginning,
    /// 13 and 14: between two COPYs.
    Between,
    /// 13 and 14: in an archive.
    OldArchive,
    /// 13 and 14: in the manifest.
    OldManifest,
    /// 15 and later: in the one COPY, before the first archive.
    Copy,
    /// In an archive of it.
    Archive,
    /// In its manifest.
    Manifest,
    /// The stop position.
    Ending,
    /// It is whole.
    Done,
    /// It is none.
    Failed,
}

impl std::fmt::Debug for BaseBackup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BaseBackup({:?}, {:?})", self.connection, self.state)
    }
}

impl BaseBackup {
    /// Asks for a base backup. With the manifest of an earlier one as `parent`, asks for the difference to it, which
    /// servers from 17 on can give.
    ///
    /// The log is not part of it: until every byte from the start to the stop position is kept elsewhere, it is worthless.
    ///
    /// # Errors
    /// [`PostgresError::TakeWhole`] when a difference cannot be had and a whole backup can; otherwise when the server
    /// refuses or the connection breaks.
    pub async fn start(
        mut connection: Connection,
        options: &BaseOptions,
        parent: Option<&mut (dyn AsyncRead + Send + Unpin)>,
    ) -> Result<BaseBackup, PostgresError> {
        if connection.purpose != Purpose::Replication {
            return Err(PostgresError::Usage("take a base backup: this connection is for SQL".into()));
        }
        let incremental = parent.is_some();
        if let Some(parent) = parent {
            upload(&mut connection, parent).await?;
        }
        let text = command(options, connection.major(), incremental)?;
        connection.wire.command("take a base backup", &text).await?;
        Ok(BaseBackup {
            connection,
            state: State::Beginning,
            sets: Vec::new(),
            held: 0,
            completed: 0,
            coming: VecDeque::new(),
            ready: VecDeque::new(),
            incremental,
        })
    }

    /// The next event; `None` after `End`. May be dropped and called again.
    ///
    /// # Errors
    /// When the stream is cut, breaks the protocol, or the server says that it failed: [`PostgresError::Damaged`] when
    /// it found damaged pages. Then this is no backup, whatever came before.
    pub async fn next(&mut self) -> Result<Option<BaseEvent>, PostgresError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            match self.state {
                State::Done => return Ok(None),
                State::Failed => return Err(PostgresError::Cut { doing: "take a base backup".into() }),
                _ => {}
            }
            let frame = self.connection.wire.read().await;
            let step = frame.and_then(|frame| self.step(frame.tag, frame.body));
            if let Err(error) = step {
                self.state = State::Failed;
                return Err(error);
            }
        }
    }

    /// The connection, ready for the next command; `None` unless the backup came to its end.
    pub fn into_connection(self) -> Option<Connection> {
        (self.state == State::Done).then_some(self.connection)
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, PostgresError> {
        Err(self.connection.wire.wrong(what))
    }

    /// One message moves the state.
    fn step(&mut self, tag: u8, mut body: Bytes) -> Result<(), PostgresError> {
        match (self.state, tag) {
            (_, b'E') => return Err(self.failed(&body)),
            (State::Beginning | State::Ending, b'T' | b'D' | b'C') => return self.answer(tag, &body),
            (State::Beginning, b'H') => {
                self.begin()?;
                self.state = if self.connection.major() < 15 { self.old_copy()? } else { State::Copy };
            }
            (State::Between, b'H') => self.state = self.old_copy()?,
            (State::OldArchive, b'd') => self.ready.push_back(BaseEvent::Data(body)),
            (State::OldArchive, b'c') => {
                self.ready.push_back(BaseEvent::Data(Bytes::from_static(&ZERO_BLOCKS)));
                self.state = State::Between;
            }
            (State::OldManifest, b'd') => self.ready.push_back(BaseEvent::ServerManifest(body)),
            (State::OldManifest, b'c') => self.state = State::Ending,
            (State::Copy | State::Archive | State::Manifest, b'd') => {
                let kind = body.try_get_u8().unwrap_or(0);
                match (self.state, kind) {
                    (State::Copy | State::Archive, b'n') => {
                        let archive = self.archive_named(&body)?;
                        self.ready.push_back(BaseEvent::Archive(archive));
                        self.state = State::Archive;
                    }
                    (State::Archive, b'm') if self.coming.is_empty() => self.state = State::Manifest,
                    (State::Archive, b'd') => self.ready.push_back(BaseEvent::Data(body)),
                    (State::Manifest, b'd') => self.ready.push_back(BaseEvent::ServerManifest(body)),
                    // Progress.
                    (_, b'p') => {}
                    (_, kind) => return self.wrong(format!("a part `{}` at the wrong time", kind.escape_ascii())),
                }
            }
            (State::Manifest, b'c') => self.state = State::Ending,
            (State::Ending, b'Z') => {
                // One for the stop position, one for the whole.
                let end = self.sets.first().and_then(|rows| place(rows, "recptr", "tli"));
                match end {
                    Some((stop, timeline)) if self.completed == 2 && self.sets.len() == 1 => {
                        self.ready.push_back(BaseEvent::End { stop, timeline });
                        self.state = State::Done;
                    }
                    _ => return self.wrong("an end without the stop position or without both of its confirmations"),
                }
            }
            (_, tag) => return self.wrong(format!("a message `{}` at the wrong time", tag.escape_ascii())),
        }
        Ok(())
    }

    /// A part of a result set.
    fn answer(&mut self, tag: u8, body: &Bytes) -> Result<(), PostgresError> {
        self.held += body.len();
        if self.held > ANSWER_BYTES {
            return self.wrong(format!("an answer of more than {ANSWER_BYTES} bytes"));
        }
        match tag {
            b'T' => self.sets.push(Rows { columns: columns(body), rows: Vec::new() }),
            b'D' => match (self.sets.last_mut(), row(body)) {
                (Some(set), Some(row)) => set.rows.push(row),
                _ => return self.wrong("a row that is cut off or has no columns"),
            },
            _ => self.completed += 1,
        }
        Ok(())
    }

    /// The answer before the data is there.
    fn begin(&mut self) -> Result<(), PostgresError> {
        let sets = std::mem::take(&mut self.sets);
        (self.held, self.completed) = (0, 0);
        let [start, list] = sets.as_slice() else { return self.wrong("a beginning without its two answers") };
        let Some((start, timeline)) = place(start, "recptr", "tli") else { return self.wrong("no start position") };
        let mut archives = Vec::new();
        let mut size_kib = Some(0_u64);
        for at in 0..list.rows.len() {
            let archive = match list.text(at, "spcoid") {
                None => Archive::Base,
                Some(oid) => match oid.parse() {
                    Ok(oid) => Archive::Tablespace(oid),
                    Err(_) => return self.wrong("a tablespace without a number"),
                },
            };
            // A place that is not UTF-8 cannot be said in our documents, nor by most tools; the server's own
            // tablespace_map, which is kept byte for byte, has it.
            let location = list.text(at, "spclocation").filter(|text| !text.is_empty()).map(str::to_owned);
            if archive != Archive::Base && location.is_none() {
                return Err(PostgresError::Usage(
                    "take a base backup: a tablespace is at a place whose name is not UTF-8\nhint: move it".into(),
                ));
            }
            archives.push((archive, location));
            let size = list.text(at, "size").and_then(|text| text.parse::<u64>().ok());
            size_kib = size_kib.zip(size).map(|(sum, size)| sum.saturating_add(size));
        }
        if archives.len() > MAX_ARCHIVES || archives.iter().filter(|(a, _)| *a == Archive::Base).count() != 1 {
            return self.wrong("a list of archives without the data directory");
        }
        if archives.last().map(|(a, _)| *a) != Some(Archive::Base) {
            return self.wrong("a data directory that does not come last");
        }
        self.coming = archives.iter().map(|(archive, _)| *archive).collect();
        let estimated_bytes = size_kib.map(|kib| kib.saturating_mul(1024));
        self.ready.push_back(BaseEvent::Begin { start, timeline, archives, estimated_bytes });
        Ok(())
    }

    /// 13 and 14: the next COPY is the next archive of the list, or after them the manifest.
    fn old_copy(&mut self) -> Result<State, PostgresError> {
        Ok(match self.coming.pop_front() {
            Some(archive) => {
                self.ready.push_back(BaseEvent::Archive(archive));
                State::OldArchive
            }
            None => State::OldManifest,
        })
    }

    /// 15 and later: an archive by its file's name. It must be the next one of the list.
    fn archive_named(&mut self, body: &[u8]) -> Result<Archive, PostgresError> {
        let name = body.split(|b| *b == 0).next().and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
        let archive = match name.strip_suffix(".tar") {
            Some("base") => Some(Archive::Base),
            Some(oid) => oid.parse().ok().map(Archive::Tablespace),
            None => None,
        };
        match (archive, self.coming.pop_front()) {
            (Some(archive), Some(next)) if archive == next => Ok(archive),
            _ => self.wrong(format!("an archive `{}` that was not announced as the next one", name.escape_debug())),
        }
    }

    /// What an error means here.
    fn failed(&self, body: &[u8]) -> PostgresError {
        let error = self.connection.wire.refused(body);
        match error {
            // data_corrupted, at the end of all data.
            PostgresError::Refused { error, .. } if error.code == "XX001" => {
                let files =
                    self.connection.wire.notices.iter().map(|notice| format!("\n  {}", notice.message)).collect();
                PostgresError::Damaged { error, files }
            }
            // object_not_in_prerequisite_state: every reason for which this server has no difference to this parent.
            PostgresError::Refused { error, .. }
                if self.incremental && self.state == State::Beginning && error.code == "55000" =>
            {
                PostgresError::TakeWhole { why: words(&error) }
            }
            other => other,
        }
    }
}

fn words(error: &super::ServerError) -> String {
    match &error.detail {
        Some(detail) => format!("{}: {detail}", error.message),
        None => error.message.clone(),
    }
}

fn command(options: &BaseOptions, major: u32, incremental: bool) -> Result<String, PostgresError> {
    if options.label.len() > LABEL_BYTES || options.label.contains(['\n', '\r', '\0']) {
        return Err(PostgresError::Usage("take a base backup: its label is too long or has more than one line".into()));
    }
    if options.max_rate_kib.is_some_and(|rate| !RATE_KIB.contains(&rate)) {
        return Err(PostgresError::Usage(format!(
            "take a base backup: the rate is not from {} to {} KiB a second",
            RATE_KIB.start(),
            RATE_KIB.end()
        )));
    }
    let label = quoted(&options.label);
    if major < 15 {
        let mut text = format!("BASE_BACKUP LABEL {label}");
        let rate = options.max_rate_kib.map(|rate| format!(" MAX_RATE {rate}")).unwrap_or_default();
        for (on, word) in
            [(options.estimate, " PROGRESS"), (options.fast_checkpoint, " FAST"), (true, " NOWAIT"), (true, &rate)]
        {
            text.push_str(if on { word } else { "" });
        }
        text.push_str(" TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'");
        return Ok(text);
    }
    let checkpoint = if options.fast_checkpoint { "fast" } else { "spread" };
    let mut text =
        format!("BASE_BACKUP (LABEL {label}, PROGRESS {}, CHECKPOINT '{checkpoint}', WAIT false", options.estimate);
    if let Some(rate) = options.max_rate_kib {
        text.push_str(&format!(", MAX_RATE {rate}"));
    }
    text.push_str(", TABLESPACE_MAP true, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'");
    text.push_str(if incremental { ", INCREMENTAL)" } else { ")" });
    Ok(text)
}

/// Gives the server the manifest of the backup that the next one is to be the difference to.
async fn upload(connection: &mut Connection, parent: &mut (dyn AsyncRead + Send + Unpin)) -> Result<(), PostgresError> {
    let whole = |why: String| Err(PostgresError::TakeWhole { why });
    if connection.major() < 17 {
        return whole(format!("PostgreSQL {} has no incremental backups; 17 and later have", connection.major()));
    }
    if connection.show("summarize_wal").await?.as_deref() != Some("on") {
        return whole("the server keeps no summaries of its log: set summarize_wal = on there".into());
    }
    let wire = &mut connection.wire;
    wire.command("give the server the parent's manifest", "UPLOAD_MANIFEST").await?;
    let frame = wire.expect().await?;
    if frame.tag != b'G' {
        return Err(wire.wrong(format!("a message `{}` in place of a wish for the manifest", frame.tag.escape_ascii())));
    }
    let mut message = BytesMut::with_capacity(UPLOAD_BYTES + 64);
    loop {
        message.clear();
        message.extend_from_slice(b"d\0\0\0\0");
        let mut read = 0;
        while read < UPLOAD_BYTES {
            let mut part = (&mut *parent).take((UPLOAD_BYTES - read) as u64);
            match part.read_buf(&mut message).await {
                Ok(0) => break,
                Ok(bytes) => read += bytes,
                Err(source) => return Err(PostgresError::Io { doing: "read the parent's manifest".into(), source }),
            }
        }
        if read == 0 {
            break;
        }
        // At most 64 KiB and four, which fit.
        message[1..5].copy_from_slice(&(read as u32 + 4).to_be_bytes());
        // Servers check it only at its end, so that none stops reading in the middle.
        wire.send(&message).await?;
    }
    wire.send(b"c\0\0\0\x04").await?;
    let answer = loop {
        match wire.expect().await {
            Ok(frame) if frame.tag == b'Z' => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    match answer {
        // The manifest is of another cluster, or the server cannot make sense of it: internal_error and the like, but
        // nothing about rights or the connection.
        Err(PostgresError::Refused { error, .. })
            if matches!(error.code.as_str(), "XX000" | "XX001" | "55000" | "22023") =>
        {
            whole(format!("the server cannot use the parent's manifest: {}", words(&error)))
        }
        other => other,
    }
}
