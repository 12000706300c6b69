//! Talking to a run's holder: the helper that keeps the run's network and writes its workspace.

use super::container::state_of;
use super::engine::Engine;
use crate::git::{Base, Change, checkout, folder};
use crate::runtime::helper::wire::{self, BODY_MAX_BYTES, Frames, Kind};
use crate::runtime::{Found, RuntimeError, SpaceName, WorkspaceSource};
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::query_parameters::{AttachContainerOptions, StartContainerOptions};
use futures_util::StreamExt;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

/// Frames are sent in pieces of about this size: large enough that calls do not count, small enough to keep flowing.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces waiting for the engine: reading the tree and sending it overlap, in at most 1 MiB.
const PIECES_WAITING: usize = 8;
/// A holder only has to write a tree; one that has not answered for this long is dead or its disk is.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// Turns what a sender wants into frames.
struct Writer {
    session: u64,
    buffer: Vec<u8>,
}

impl Writer {
    fn put(&mut self, kind: Kind, body: &[&[u8]]) {
        wire::frame(&mut self.buffer, self.session, kind, body);
    }

    /// Hands every full piece to `send`.
    fn change(&mut self, change: &Change<'_>, send: &mut dyn FnMut(Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        let fits = |path: &[u8]| {
            let error = || io::Error::new(io::ErrorKind::InvalidInput, "a path of the tree is too long");
            (path.len() < 4096).then_some(()).ok_or_else(error)
        };
        match change {
            Change::Remove(path) => {
                fits(path)?;
                self.put(Kind::Remove, &[path]);
            }
            Change::Dir(path) => {
                fits(path)?;
                self.put(Kind::Dir, &[path]);
            }
            Change::Link { path, target } => {
                fits(path)?;
                fits(target)?;
                self.put(Kind::Link, &[&(path.len() as u16).to_le_bytes(), path, target]);
            }
            Change::File { path, executable, data } => {
                fits(path)?;
                self.put(Kind::File, &[&[u8::from(*executable)], &(data.len() as u64).to_le_bytes(), path]);
                for part in data.chunks(BODY_MAX_BYTES) {
                    self.put(Kind::Data, &[part]);
                    self.flush(PIECE_BYTES, send)?;
                }
            }
        }
        self.flush(PIECE_BYTES, send)
    }

    fn flush(&mut self, from_bytes: usize, send: &mut dyn FnMut(Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        if self.buffer.len() < from_bytes {
            return Ok(());
        }
        send(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES + BODY_MAX_BYTES)))
    }
}

/// Fills the workspace of a space. The result says what lies there now, for commits.
pub(super) async fn fill(
    engine: &Engine,
    space: &SpaceName,
    source: &WorkspaceSource,
    base: Option<Base>,
) -> Result<Option<Base>, RuntimeError> {
    let (to_engine, pieces) = mpsc::channel::<Vec<u8>>(PIECES_WAITING);
    let session = new_session()?;
    let source = source.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut writer = Writer { session, buffer: Vec::new() };
        let mut send =
            |piece: Vec<u8>| to_engine.blocking_send(piece).map_err(|_| io::Error::other("the holder takes no more"));
        let mut sink = |change: Change<'_>| writer.change(&change, &mut send);
        let base = match &source {
            WorkspaceSource::Commit { mirror, commit, branch, origin } => {
                checkout(mirror, commit, base.as_ref(), branch.as_deref(), origin, &mut sink).map(Some)
            }
            WorkspaceSource::Folder(path) => folder(path, &mut sink).map(|()| None),
        };
        let base = base.map_err(|error| error.to_string())?;
        writer.put(Kind::Commit, &[]);
        writer.flush(1, &mut send).map_err(|error| error.to_string())?;
        Ok::<_, String>(base)
    });
    let sent = converse(engine, space, session, pieces).await;
    let read = reading.await.map_err(|error| RuntimeError::Io {
        doing: "read the tree for the workspace".to_owned(),
        source: io::Error::other(error),
    })?;
    // When the engine went away the reader only noticed that; when the tree could not be read the engine saw it end.
    match (sent, read) {
        (Err(error), Ok(_)) => Err(error),
        (Err(error @ RuntimeError::Unreachable { .. }), Err(_)) => Err(error),
        (_, Err(detail)) => Err(RuntimeError::Refused { doing: "read the tree for the workspace".to_owned(), detail }),
        (Ok(()), Ok(base)) => Ok(base),
    }
}

/// Gives the whole workspace to a user and group.
pub(super) async fn chown(engine: &Engine, space: &SpaceName, user: u32, group: u32) -> Result<(), RuntimeError> {
    let session = new_session()?;
    let (to_engine, pieces) = mpsc::channel(1);
    let mut writer = Writer { session, buffer: Vec::new() };
    writer.put(Kind::Chown, &[&user.to_le_bytes(), &group.to_le_bytes()]);
    writer.put(Kind::Commit, &[]);
    // There is room for one, so this neither waits nor fails.
    let _ = to_engine.try_send(writer.buffer);
    drop(to_engine);
    converse(engine, space, session, pieces).await
}

fn new_session() -> Result<u64, RuntimeError> {
    getrandom::u64().map_err(|error| RuntimeError::Io {
        doing: "get random bytes".to_owned(),
        source: io::Error::other(error.to_string()),
    })
}

/// Sends all pieces, the last of which ends in a commit, and takes the answer.
async fn converse(
    engine: &Engine,
    space: &SpaceName,
    session: u64,
    mut pieces: mpsc::Receiver<Vec<u8>>,
) -> Result<(), RuntimeError> {
    let doing = "write the workspace";
    // A holder does not survive a restart of the engine, and an attach to one that has ended would wait for ever.
    if !matches!(state_of(engine, &space.0).await?, Found::Alive) {
        let started = engine.api.start_container(&space.0, None::<StartContainerOptions>).await;
        started.map_err(|e| engine.error("start the run's holder again", &e))?;
    }
    let options = AttachContainerOptions { stream: true, stdin: true, stdout: true, ..Default::default() };
    let attached = engine.api.attach_container(&space.0, Some(options)).await;
    let AttachContainerResults { mut output, mut input } = attached.map_err(|e| engine.error(doing, &e))?;
    let sending = async {
        input.write_all(&wire::opening(session)).await?;
        while let Some(piece) = pieces.recv().await {
            input.write_all(&piece).await?;
        }
        input.flush().await
    };
    let answer = async {
        let mut frames = Frames::default();
        while let Some(said) = output.next().await {
            let (LogOutput::StdOut { message } | LogOutput::Console { message }) = said? else { continue };
            frames.push(&message);
            while let Some((header, body)) = frames.next() {
                match header.kind {
                    Kind::Done if header.session == session => return Ok(Some(Ok(()))),
                    Kind::Failed if header.session == session => {
                        return Ok(Some(Err(String::from_utf8_lossy(body).into_owned())));
                    }
                    _ => {}
                }
            }
        }
        Ok::<_, bollard::errors::Error>(None)
    };
    // The answer comes only after everything was sent, but the connection may end at any time.
    let both = async {
        tokio::pin!(answer);
        tokio::select! {
            sent = sending => match sent {
                Ok(()) => answer.await,
                Err(error) => Err(error.into()),
            },
            early = &mut answer => early,
        }
    };
    match tokio::time::timeout(ANSWER_WITHIN, both).await {
        Ok(Ok(Some(Ok(())))) => Ok(()),
        Ok(Ok(Some(Err(detail)))) => Err(RuntimeError::Refused { doing: doing.to_owned(), detail }),
        Ok(Ok(None)) => Err(engine.unreachable("the run's holder ended while the workspace was written")),
        Ok(Err(error)) => Err(engine.error(doing, &error)),
        Err(_) => Err(engine.unreachable("the run's holder does not answer")),
    }
}
