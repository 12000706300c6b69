//! Objects of a copy, read, checked and opened, into a program of PostgreSQL. Every byte that a program gets is one that was
//! sealed; one that is not ends the program before it can take what came for all there is.

use super::RestoreError;
use super::programs::{Client, Running, Streams};
use crate::backup::catalog::manifest::ObjectFacts;
use crate::backup::repository::{Key, Repository};
use crate::backup::seal::Opener;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;

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
        let bytes = stored.extent().bytes;
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
    async fn give(&self, objects: &[ObjectFacts], running: &mut Running) -> Result<Fed, RestoreError> {
        let objects = objects.to_vec();
        let mut coming = stream::iter(objects).map(|facts| self.object(facts).boxed()).buffered(READ_AHEAD);
        while let Some(plain) = coming.next().await {
            match running.give(&plain?).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Fed::Closed),
                Err(error) => return Err(RestoreError::Feed(error)),
            }
        }
        Ok(Fed::All)
    }

    /// What `pg_restore` says of an archive. It reads the beginning only.
    pub(super) async fn told(
        &self,
        client: &Client,
        objects: &[ObjectFacts],
        args: &[&str],
    ) -> Result<Vec<u8>, RestoreError> {
        let args = [&["--format=custom"], args].concat();
        let mut running = client.start(PROGRAM, &args, Streams { takes: true, gives: true }).await?;
        let output = running.output()?;
        let reading = tokio::spawn(async move {
            let mut out = Vec::new();
            output.take(OUTPUT_MAX_BYTES).read_to_end(&mut out).await.map(|_| out)
        });
        if let Err(error) = self.give(objects, &mut running).await {
            running.kill().await;
            return Err(error);
        }
        running.close_input().await;
        let out = reading.await.map_err(std::io::Error::other).and_then(|out| out).map_err(RestoreError::Feed)?;
        running.end().await?;
        Ok(out)
    }

    /// Has `pg_restore` put an archive into a database. It must take every byte, and end well.
    pub(super) async fn put(
        &self,
        client: &Client,
        objects: &[ObjectFacts],
        database: &str,
    ) -> Result<(), RestoreError> {
        let name = super::programs::database(database);
        let args =
            ["--format=custom", "--exit-on-error", "--no-tablespaces", "--no-password", "--dbname", name.as_str()];
        let mut running = client.start(PROGRAM, &args, Streams { takes: true, gives: false }).await?;
        let fed = match self.give(objects, &mut running).await {
            Ok(fed) => fed,
            // Killed before its input ends: it must not take what came for all there is.
            Err(error) => {
                running.kill().await;
                return Err(error);
            }
        };
        running.close_input().await;
        running.end().await?;
        match fed {
            Fed::All => Ok(()),
            Fed::Closed => Err(RestoreError::NotTaken),
        }
    }
}
