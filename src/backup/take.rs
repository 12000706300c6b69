//! One base backup, from the first byte to the manifest that makes it exist.
//!
//! A stream of [`BaseEvent`]s enters, with what the server says of itself; objects go into the repository, and the manifest
//! last, when everything that a restore needs lies there and was read back. Called by the daemon's keeper and by `mainstay
//! backup`. [`Unpacker`] is the way out again, and [`combine()`] puts a difference on top of what it is the difference to; both
//! are for `restore`.
//!
//! A failure at any place, and a kill, leaves no manifest and so no backup; objects that were stored lie there until expiry
//! finds that nothing names them.

mod chunks;
mod combine;
mod receive;
mod stow;
mod tar;
#[cfg(test)]
mod tests_tar;
mod unpack;

pub use chunks::CHUNK_LIMIT;
pub use combine::{CombineError, Pages, USUAL_SEGMENT_BYTES, combine};
pub(in crate::backup) use stow::Stow;
pub use tar::TarError;
pub use unpack::{Chunk, Target, UnpackError, Unpacker, Withheld, Written};

use super::catalog::manifest::{Manifest, ServerFacts, VERSION};
use super::catalog::marks::{self, Adopt};
use super::repository::{Archive, BackupId, Cluster, Item, Key, Repository, RepositoryError};
use super::seal::{Checker, Extent, SealError, Sealer};
use super::source::postgres::{BaseBackup, BaseEvent, PostgresError};
use crate::model::{Lsn, Timeline};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use receive::{Begun, Received, Way};
use std::error::Error;
use std::sync::Arc;

/// The first server that can give the difference to an earlier backup.
const FIRST_WITH_DIFFERENCES: u32 = 17;

/// A base backup as it arrives.
pub type BaseStream = BoxStream<'static, Result<BaseEvent, PostgresError>>;

/// Who is told how far it is. Called often; must not block.
pub type Telling = Arc<dyn Fn(Progress) + Send + Sync>;

/// What is taken, and where it goes.
#[derive(Clone)]
pub struct Job {
    /// The cluster, as the repository names it.
    pub cluster: Cluster,
    /// What the server says of itself.
    pub server: ServerFacts,
    /// Where it goes.
    pub repository: Arc<dyn Repository>,
    /// Who seals it.
    pub sealer: Sealer,
    /// Whole, or the difference to another one.
    pub wish: Wish,
    /// Who is told how far it is.
    pub tell: Telling,
}

/// What kind of backup is wanted.
#[derive(Debug, Clone)]
pub enum Wish {
    /// All of it.
    Whole,
    /// All of it, although a difference would have been taken: why there is nothing that it could be the difference to.
    WholeBecause(String),
    /// What has changed since another backup; where the server cannot say that, all of it.
    Difference(Box<Parent>),
}

/// The backup that the next one is the difference to.
#[derive(Debug, Clone)]
pub struct Parent {
    /// What made it exist. The caller has just seen that it and all that it rests on are there and good; that no expiry means to
    /// delete it is looked at here, when the difference begins and right before it exists.
    pub manifest: Manifest,
    /// The server's own manifest of it, byte for byte as [`Taken::server_manifest`] gave it: in the repository it is encrypted, and
    /// whoever takes backups cannot open it.
    pub server_manifest: Bytes,
    /// Whom to believe of what expiries have marked.
    pub checker: Checker,
}

/// The log that a backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSpan {
    /// The timeline it began on.
    pub timeline: Timeline,
    /// The first byte.
    pub start: Lsn,
    /// The timeline it ended on.
    pub stop_timeline: Timeline,
    /// The byte after the last one.
    pub stop: Lsn,
}

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes that came from the server.
    pub received_bytes: u64,
    /// Bytes that it expected to send, where it said so.
    pub estimated_bytes: Option<u64>,
    /// Bytes that lie in the repository.
    pub stored_bytes: u64,
}

/// What is being done for a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The server is asked; it makes a checkpoint.
    Opening,
    /// Its data come, and are stored.
    Receiving,
    /// The log that it needs is not yet in the repository.
    WaitingForLog,
    /// What was stored is read back.
    ReadingBack,
    /// It exists.
    Done,
}

/// A backup that exists.
#[derive(Debug, Clone)]
pub struct Taken {
    /// What made it exist.
    pub manifest: Manifest,
    /// The server's own manifest of it: what the next one is asked the difference to with.
    pub server_manifest: Bytes,
}

/// Why there is no backup. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The server refused, or its stream broke: what came is no backup.
    #[error("{0}")]
    Stream(Box<PostgresError>),
    /// The stream is not what a base backup is.
    #[error("take a base backup: what the server sent is not whole: {0}")]
    OutOfOrder(String),
    /// An archive is damaged, or holds what could not be restored.
    #[error("take a base backup: archive {archive}: {error}")]
    Archive {
        /// Which.
        archive: Archive,
        /// What is wrong.
        error: TarError,
    },
    /// An object could not be sealed, or what lies in its place is not ours.
    #[error("seal {key}: {error}")]
    Seal {
        /// Its name.
        key: String,
        /// Why.
        error: SealError,
    },
    /// An object could not be stored.
    #[error("{error}")]
    Store {
        /// The repository's words.
        error: RepositoryError,
    },
    /// Something else lies where an object of this backup should.
    #[error(
        "store {key}: an object of that name and other content is there already\nhint: does another Mainstay write for this source?"
    )]
    Taken {
        /// Its name.
        key: String,
    },
    /// The log that it needs did not become durable.
    #[error("keep the log from {} to {} that the backup needs: {error}", .span.start, .span.stop)]
    Log {
        /// Which.
        span: LogSpan,
        /// Why.
        error: Box<dyn Error + Send + Sync>,
    },
    /// What was stored could not be read back.
    #[error("read back what was stored: {error}")]
    ReadBack {
        /// The repository's words.
        error: RepositoryError,
    },
    /// What was read back is not what was stored.
    #[error(
        "read back what was stored: {key}: {what}\nhint: something else changes this repository, or the store is broken; no backup was made of it"
    )]
    NotAsStored {
        /// The object's name.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// What it is the difference to is not there any more, or will not be.
    #[error("build on backup {parent}: {error}")]
    Parent {
        /// What it is the difference to.
        parent: BackupId,
        /// Why.
        error: NoParent,
    },
    /// Our own side failed.
    #[error("take a base backup: {0}")]
    Broken(String),
}

/// Why nothing can be built on an earlier backup.
#[derive(Debug, thiserror::Error)]
pub enum NoParent {
    /// An expiry means to delete it, or that cannot be said.
    #[error(transparent)]
    Marked(#[from] Adopt),
    /// Its manifest is not there.
    #[error("it is gone")]
    Gone,
}

impl From<PostgresError> for TakeError {
    fn from(error: PostgresError) -> TakeError {
        TakeError::Stream(Box::new(error))
    }
}

/// The events of a connection's backup as a stream.
pub fn events(backup: BaseBackup) -> BaseStream {
    let next = |mut backup: BaseBackup| async { Ok(backup.next().await?.map(|event| (event, backup))) };
    stream::try_unfold(backup, next).boxed()
}

/// Takes one base backup. `open` asks the server for one, with the server's manifest of the parent for a difference; it may be
/// called twice, since a server that has no difference is asked for the whole. `durable` waits until every byte of a span
/// of the log is in the repository; the caller bounds that wait.
///
/// When this returns, the backup exists and can be restored. Dropped or failed, there is none; only a manifest whose storing
/// was not answered may be there, and then everything behind it is too.
///
/// # Errors
/// When any part of it fails; the error says which.
pub async fn take<O, D>(job: Job, open: O, durable: D) -> Result<Taken, TakeError>
where
    O: Fn(Option<Bytes>) -> BoxFuture<'static, Result<BaseStream, PostgresError>> + Send,
    D: FnOnce(LogSpan) -> BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>> + Send,
{
    // Chains go back in time by the names of their backups, which count seconds: a difference is of a later one than its parent.
    if let Wish::Difference(parent) = &job.wish
        && parent.manifest.began.as_second() >= Timestamp::now().as_second()
    {
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    }
    let began = Timestamp::now();
    let backup = BackupId::new(began).map_err(|error| TakeError::Broken(error.to_string()))?;
    let tell = |phase, received_bytes, stored_bytes| {
        (job.tell)(Progress { phase, received_bytes, estimated_bytes: None, stored_bytes });
    };

    tell(Phase::Opening, 0, 0);
    let mut opened = open_stream(&job, open).await?;

    let mut stow = Stow::new(Arc::clone(&job.repository), job.sealer.clone());
    let way = Way { cluster: &job.cluster, backup: &backup, stow: &mut stow, tell: &job.tell };
    let received = receive::receive(&mut opened.events, &opened.begun, way).await?;
    drop(opened.events);
    store_lists(&job, &backup, &received, &mut stow).await?;
    let ended = Timestamp::now();

    let bytes = received.archives.iter().map(|archive| archive.bytes).sum();
    tell(Phase::WaitingForLog, bytes, stow.stored);
    let Begun { start, timeline, .. } = opened.begun;
    let span = LogSpan { timeline, start, stop_timeline: received.stop_timeline, stop: received.stop };
    durable(span).await.map_err(|error| TakeError::Log { span, error })?;

    tell(Phase::ReadingBack, bytes, stow.stored);
    stow.read_back(&Key::of_backup(&job.cluster, &backup)).await?;

    let manifest = Manifest {
        version: VERSION,
        backup: backup.clone(),
        server: job.server.clone(),
        timeline,
        start,
        stop: received.stop,
        stop_timeline: received.stop_timeline,
        began,
        ended,
        parent: opened.parent,
        whole_because: opened.whole_because,
        archives: received.archives,
        objects: stow.laid().map(|laid| laid.facts.clone()).collect(),
        made_by: concat!("mainstay ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    if let Wish::Difference(parent) = &job.wish
        && let Some(id) = &manifest.parent
    {
        let parent = adopt(&job, parent).await;
        parent.map_err(|error| TakeError::Parent { parent: id.clone(), error })?;
    }
    store_manifest(&job, &manifest, &mut stow).await?;
    tell(Phase::Done, bytes, stow.stored);
    Ok(Taken { manifest, server_manifest: received.server_manifest })
}

struct Opened {
    events: BaseStream,
    begun: Begun,
    parent: Option<BackupId>,
    whole_because: Option<String>,
}

/// Asks for the difference where that can be had, else for the whole.
async fn open_stream<O>(job: &Job, open: O) -> Result<Opened, TakeError>
where
    O: Fn(Option<Bytes>) -> BoxFuture<'static, Result<BaseStream, PostgresError>>,
{
    let whole_because = match &job.wish {
        Wish::Whole => None,
        Wish::WholeBecause(why) => Some(why.clone()),
        Wish::Difference(parent) => match no_parent(job, parent).await? {
            Some(why) => Some(why),
            None => match begin(&open, Some(parent.server_manifest.clone())).await {
                Ok((events, begun)) => {
                    let parent = Some(parent.manifest.backup.clone());
                    return Ok(Opened { events, begun, parent, whole_because: None });
                }
                Err(TakeError::Stream(error)) => match *error {
                    PostgresError::TakeWhole { why } => Some(why),
                    other => return Err(other.into()),
                },
                Err(other) => return Err(other),
            },
        },
    };
    let (events, begun) = begin(&open, None).await?;
    Ok(Opened { events, begun, parent: None, whole_because })
}

/// Why the server need not even be asked for the difference to this parent. A repository that does not answer is no reason for a
/// whole backup, but for none.
async fn no_parent(job: &Job, parent: &Parent) -> Result<Option<String>, TakeError> {
    if let Some(why) = no_difference(job, parent) {
        return Ok(Some(why));
    }
    match adopt(job, parent).await {
        Ok(()) => Ok(None),
        Err(NoParent::Marked(Adopt::Repository(error))) => Err(TakeError::Store { error }),
        Err(error) => {
            let why = error.to_string();
            Ok(Some(format!("the last backup: {}", why.lines().next().unwrap_or_default())))
        }
    }
}

/// Makes sure that no expiry means to delete the parent. The marks come first: an expiry takes its marks away when it has
/// deleted what they name, and manifests go first, so that whoever sees no mark of it and then its manifest may build on it.
async fn adopt(job: &Job, parent: &Parent) -> Result<(), NoParent> {
    let names = marks::adopted(&job.cluster, &parent.manifest);
    marks::refuse_marked(job.repository.as_ref(), &parent.checker, &job.cluster, &names).await?;
    let manifest = Key::Of(job.cluster.clone(), Item::Manifest(parent.manifest.backup.clone()));
    match job.repository.receipt(&manifest).await {
        Ok(_) => Ok(()),
        Err(RepositoryError::Absent { .. }) => Err(NoParent::Gone),
        Err(error) => Err(NoParent::Marked(error.into())),
    }
}

/// What of that is known without the repository.
fn no_difference(job: &Job, parent: &Parent) -> Option<String> {
    let (now, then) = (&job.server, &parent.manifest.server);
    let why = |text: &str| Some(text.to_owned());
    if now.major() < FIRST_WITH_DIFFERENCES {
        return Some(format!("PostgreSQL {} has no incremental backups; 17 and later have", now.major()));
    }
    if (now.system, now.major(), now.block_size) != (then.system, then.major(), then.block_size) {
        return why("the last backup is of another cluster or of another major version");
    }
    if now.data_checksums != then.data_checksums {
        return why("page checksums were switched on or off since the last backup");
    }
    let stored = Key::Of(job.cluster.clone(), Item::ServerManifest(parent.manifest.backup.clone())).to_string();
    let stored = parent.manifest.objects.iter().find(|object| object.key == stored);
    if stored.is_none_or(|object| object.plain != Extent::of(&parent.server_manifest)) {
        return why("the server's manifest of the last backup is not the one that was stored with it");
    }
    None
}

/// Opens a stream and takes its first event.
async fn begin<O>(open: &O, parent: Option<Bytes>) -> Result<(BaseStream, Begun), TakeError>
where
    O: Fn(Option<Bytes>) -> BoxFuture<'static, Result<BaseStream, PostgresError>>,
{
    let mut events = open(parent).await?;
    match events.try_next().await? {
        Some(BaseEvent::Begin { start, timeline, archives, estimated_bytes }) => {
            if archives.last().map(|(archive, _)| *archive) != Some(Archive::Base) {
                return Err(TakeError::OutOfOrder("the data directory is not its last archive".into()));
            }
            Ok((events, Begun { start, timeline, archives, estimated_bytes }))
        }
        _ => Err(TakeError::OutOfOrder("it does not begin with its beginning".into())),
    }
}

/// Stores the index and the server's manifest, and waits until every object lies in the repository.
async fn store_lists(job: &Job, backup: &BackupId, received: &Received, stow: &mut Stow) -> Result<(), TakeError> {
    let index = serde_json::to_vec(&received.index).map_err(|error| TakeError::Broken(error.to_string()))?;
    let key = |item| Key::Of(job.cluster.clone(), item);
    stow.lay(key(Item::Index(backup.clone())), index.into()).await?;
    stow.lay(key(Item::ServerManifest(backup.clone())), received.server_manifest.clone()).await?;
    stow.all().await
}

/// Stores what makes the backup exist, and looks whether it is there.
async fn store_manifest(job: &Job, manifest: &Manifest, stow: &mut Stow) -> Result<(), TakeError> {
    let key = Key::Of(job.cluster.clone(), Item::Manifest(manifest.backup.clone()));
    let text = serde_json::to_vec(manifest).map_err(|error| TakeError::Broken(error.to_string()))?;
    crate::failpoint!("backup: before its manifest is stored");
    stow.lay(key, text.into()).await?;
    stow.all().await?;
    crate::failpoint!("backup: its manifest is stored");
    stow.read_back_newest().await
}

#[cfg(test)]
#[path = "take/take_tests.rs"]
mod tests;
