//! One base backup beside a shipper: connect, ask for facts, take it, wait for its log. Called by the keeper when one is due,
//! and by `mainstay backup` where no daemon does it.

use super::{Kind, Setup, parent};
use crate::backup::catalog::index::CatalogueError;
use crate::backup::catalog::manifest::{Manifest, ServerFacts};
use crate::backup::logical::DumpError;
use crate::backup::repository::{Cluster, Key, Put, RepositoryError};
use crate::backup::seal::{Extent, SealError};
use crate::backup::ship::{Activity, Job as ShipJob, Status};
use crate::backup::source::postgres::{Address, BaseBackup, BaseOptions, Connection, Facts, PostgresError, Purpose};
use crate::backup::take::{self, Job, LogSpan, TakeError, Telling, Wish};
use crate::model::{SourceName, SystemId};
use bytes::Bytes;
use futures_util::FutureExt as _;
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;
use tokio::sync::watch;

/// The log of a backup may take its time behind a slow store; without any of it stored for so long, it will not come.
const LOG_STANDS_STILL: Duration = Duration::from_secs(600);
/// By then it is known whose log is shipped, or why none is.
const LOG_BEGINS: Duration = Duration::from_secs(60);
/// A source's file is changed by people: more tries at once for a free number are a fault.
const NUMBERS_TRIED: u64 = 100;

/// Why there is no backup. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum BackUpError {
    /// The server.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The backup itself.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// The logical copy itself.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// What the repository holds.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The seal.
    #[error("seal the source's file: {0}")]
    Seal(#[from] SealError),
    /// Its log is not shipped: with such a backup alone nothing can be restored.
    #[error("take a base backup of a server whose log is not shipped: {0}")]
    NotShipped(String),
    /// Since its log began to be shipped, another cluster answers at its address.
    #[error(
        "take a base backup: the server is the cluster {found}, and the log that is shipped is of {shipped}\nhint: if the \
         cluster was made anew (initdb, pg_upgrade, a restored dump), `mainstay backup {source_name} --new-cluster` says yes to it, once"
    )]
    OtherCluster {
        /// The source.
        source_name: SourceName,
        /// The one that answered.
        found: SystemId,
        /// The one that is known.
        shipped: SystemId,
    },
}

/// What shipping this source takes.
///
/// With `new_cluster` a server that is another cluster than the one stored is taken over: a person has said so.
pub fn shipping(setup: &Setup, new_cluster: bool) -> ShipJob {
    let source = &setup.source;
    ShipJob {
        source: source.name.clone(),
        address: source.postgres.clone(),
        password: None,
        slot: source.slot.clone(),
        ship_every: source.ship_every.0,
        synchronous: source.synchronous,
        standby: false,
        new_cluster,
        repository: setup.repository.clone(),
        sealer: setup.sealer.clone(),
        checker: setup.checker.clone(),
    }
}

/// Takes a base backup of a source whose log is being shipped. An incremental one becomes a whole one where it cannot be had:
/// its manifest says why.
///
/// # Errors
/// When there is none in the end; the error says why.
pub async fn back_up(
    setup: &Setup,
    kind: Kind,
    shipped: watch::Receiver<Status>,
    tell: Telling,
) -> Result<Manifest, BackUpError> {
    let address = setup.source.postgres.clone();
    let server = ask(&setup.source.name, &address).await?;
    // Which clusters may be this source is decided where the log comes in, once for both.
    let system = of_the_log(shipped.clone()).await?;
    if server.system != system {
        let (source_name, found) = (setup.source.name.clone(), server.system);
        return Err(BackUpError::OtherCluster { source_name, found, shipped: system });
    }
    let cluster = Cluster { source: setup.source.name.clone(), system: server.system };
    let wish = match (kind, &setup.source.incremental) {
        (Kind::Incremental, Some(incremental)) => parent::wish(setup, &cluster, incremental).await?,
        _ => Wish::Whole,
    };
    let job = Job { cluster, server, repository: setup.repository.clone(), sealer: setup.sealer.clone(), wish, tell };
    let open = move |parent: Option<Bytes>| {
        let address = address.clone();
        async move {
            let connection = Connection::open(&address, None, Purpose::Replication).await?;
            let mut manifest = parent.map(std::io::Cursor::new);
            let parent = manifest.as_mut().map(|reader| reader as _);
            Ok(take::events(BaseBackup::start(connection, &BaseOptions::default(), parent).await?))
        }
        .boxed()
    };
    let durable = move |span: LogSpan| until_durable(shipped, span).boxed();
    let taken = take::take(job, open, durable).await?;
    parent::keep(setup, &taken).await;
    if let Some(why) = &taken.manifest.whole_because {
        let (source, backup) = (&setup.source.name, &taken.manifest.backup);
        tracing::warn!(%source, %backup, "the backup is a whole one and not an incremental one: {why}");
    }
    store_source(setup).await?;
    Ok(taken.manifest)
}

async fn ask(source: &SourceName, address: &Address) -> Result<ServerFacts, PostgresError> {
    let mut connection = Connection::open(address, None, Purpose::Replication).await?;
    let found = connection.facts(address, None).await;
    connection.close().await;
    let Facts { server, left_out } = found?;
    for why in left_out {
        tracing::warn!(%source, "a fact of the server is left out of its backup: {why}");
    }
    Ok(server)
}

/// Waits until it is known whose log is shipped.
async fn of_the_log(mut shipped: watch::Receiver<Status>) -> Result<SystemId, BackUpError> {
    let known = shipped
        .wait_for(|status| status.system.is_some() || matches!(status.activity, Activity::Refused | Activity::Stopped));
    // What it stands at then says it all, also that it has ended.
    let _ = tokio::time::timeout(LOG_BEGINS, known).await;
    let status = shipped.borrow();
    status.system.ok_or_else(|| BackUpError::NotShipped(status.words.clone()))
}

/// Waits until a span of the log is in the repository.
async fn until_durable(
    mut shipped: watch::Receiver<Status>,
    span: LogSpan,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    // A gap from before the backup is what the backup is for.
    let known = shipped.borrow().needs_base.clone();
    loop {
        let waiting = {
            let status = shipped.borrow_and_update();
            if status.has(span.stop_timeline, span.stop) {
                return Ok(());
            }
            if status.activity == Activity::Stopped {
                return Err("shipping was stopped".into());
            }
            if let Some(why) = status.needs_base.as_ref().filter(|why| Some(*why) != known.as_ref()) {
                return Err(why.clone().into());
            }
            (status.durable, status.words.clone())
        };
        let moved = shipped.wait_for(|status| {
            status.durable != waiting.0 || status.activity == Activity::Stopped || status.needs_base != known
        });
        match tokio::time::timeout(LOG_STANDS_STILL, moved).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err("shipping has ended".into()),
            Err(_) => {
                let minutes = LOG_STANDS_STILL.as_secs() / 60;
                return Err(format!("no log was stored for {minutes} minutes: {}", waiting.1).into());
            }
        }
    }
}

/// Stores the source's file when it is not what was stored last, so that a bare machine knows how to restore it.
pub(super) async fn store_source(setup: &Setup) -> Result<(), BackUpError> {
    let name = &setup.source.name;
    let text = setup.source.written.as_bytes();
    let listed = setup.repository.list(&format!("{}source/", Key::of_source(name))).await?;
    let newest = listed.iter().filter_map(|object| match object.name.parse() {
        Ok(Key::Source(_, number)) => Some(number),
        _ => None,
    });
    let mut number = newest.max().unwrap_or(0);
    if number > 0 {
        let receipt = setup.repository.receipt(&Key::Source(name.clone(), number)).await?;
        if receipt.unchecked().is_ok_and(|seal| seal.plain == Extent::of(text)) {
            return Ok(());
        }
    }
    for _ in 0..NUMBERS_TRIED {
        number += 1;
        let key = Key::Source(name.clone(), number);
        let sealed = setup.sealer.seal(&key, text, BTreeMap::new())?;
        match setup.repository.put_new(&key, &sealed).await? {
            Put::Stored => return Ok(()),
            Put::Exists(_) => {}
        }
    }
    Ok(())
}
