//! Objects of a copy, read, checked and opened, into a program of PostgreSQL. Every byte that a program gets is one that was
//! sealed; one that is not ends the program before it can take what came for all there is.

use super::RestoreError;
use super::programs::{Programs, Running};
use crate::backup::catalog::manifest::ObjectFacts;
use crate::backup::repository::{Key, Repository};
use crate::backup::seal::Opener;
use crate::backup::source::postgres::Address;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;

/// Objects read ahead: each is 16 MiB plain, and as much again stored and in its codecs.
const READ_AHEAD: usize = 3;
/// The most that is taken of what a program writes: the description of a database, never its rows.
const OUTPUT_MAX_BYTES: u64 = 256 << 20;
const PROGRAM: &str = "pg_restore";

/// Where objects come from.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) repository: Arc<dyn Repository>,
    pub(super) opener: Opener,
    /// Told of every object: its bytes as stored.
    pub(super) tell: Arc<dyn Fn(u64) + Send + Sync>,
}

/// How feeding a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fed {
    /// It took everything.
    All,
    /// It closed its input before.
    Closed,
}

impl Feed {
    /// One object, as it was before it was sealed.
    pub(super) async fn object(&self, facts: ObjectFacts) -> Result<Vec<u8>, RestoreError> {
        let damaged = |why: String| RestoreError::Damaged { name: facts.key.clone(), why };
        let key: Key = facts.key.parse().map_err(|_| damaged("it is no name that Mainstay gives".into()))?;
        let stored = self.repository.get(&key).await?;
        let bytes = stored.bytes.len() as u64;
        let (opener, of) = (self.opener.clone(), key.clone());
        let opened = tokio::task::spawn_blocking(move || opener.open(&of, &stored)).await;
        let opened = opened.map_err(|error| damaged(error.to_string()))?;
        let (seal, plain) = opened.map_err(|source| RestoreError::Open { name: key.to_string(), source })?;
        if seal.plain != facts.plain || seal.stored != facts.stored {
            return Err(damaged("it is signed, and is not the object that the copy's manifest names".into()));
        }
        (self.tell)(bytes);
        Ok(plain)
    }

    /// Gives objects to a program in their order.
    async fn give(&self, objects: &[ObjectFacts], stdin: &mut ChildStdin) -> Result<Fed, RestoreError> {
        let objects = objects.to_vec();
        let mut coming = stream::iter(objects).map(|facts| self.object(facts).boxed()).buffered(READ_AHEAD);
        while let Some(plain) = coming.next().await {
            match stdin.write_all(&plain?).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Fed::Closed),
                Err(error) => return Err(RestoreError::Feed(error)),
            }
        }
        match stdin.flush().await {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(RestoreError::Feed(error)),
            _ => Ok(Fed::All),
        }
    }

    /// What `pg_restore` says of an archive. It reads the beginning only.
    pub(super) async fn told(
        &self,
        programs: &Programs,
        address: &Address,
        objects: &[ObjectFacts],
        args: &[&str],
    ) -> Result<Vec<u8>, RestoreError> {
        let mut command = programs.command(PROGRAM, address);
        command.arg("--format=custom").args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(PROGRAM, &mut command)?;
        let (Some(mut stdin), Some(stdout)) = (running.child.stdin.take(), running.child.stdout.take()) else {
            return Err(running.io(std::io::Error::other("its input and output are not to be had")).into());
        };
        let reading = tokio::spawn(async move {
            let mut out = Vec::new();
            stdout.take(OUTPUT_MAX_BYTES).read_to_end(&mut out).await.map(|_| out)
        });
        if let Err(error) = self.give(objects, &mut stdin).await {
            running.kill().await;
            return Err(error);
        }
        drop(stdin);
        let out = reading.await.map_err(std::io::Error::other).and_then(|out| out).map_err(RestoreError::Feed)?;
        running.end().await?;
        Ok(out)
    }

    /// Has `pg_restore` put an archive into a database. It must take every byte, and end well.
    pub(super) async fn put(
        &self,
        programs: &Programs,
        address: &Address,
        objects: &[ObjectFacts],
        database: &str,
    ) -> Result<(), RestoreError> {
        let mut command = programs.command(PROGRAM, address);
        command.args(["--format=custom", "--exit-on-error", "--no-tablespaces", "--no-password", "--dbname"]);
        command.arg(super::programs::database(database)).stdin(Stdio::piped());
        let mut running = Running::start(PROGRAM, &mut command)?;
        let Some(mut stdin) = running.child.stdin.take() else {
            return Err(running.io(std::io::Error::other("its input is not to be had")).into());
        };
        let fed = match self.give(objects, &mut stdin).await {
            Ok(fed) => fed,
            // Killed before its input ends: it must not take what came for all there is.
            Err(error) => {
                running.kill().await;
                return Err(error);
            }
        };
        drop(stdin);
        running.end().await?;
        match fed {
            Fed::All => Ok(()),
            Fed::Closed => Err(RestoreError::NotTaken),
        }
    }
}
