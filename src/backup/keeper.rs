//! Keeps sources safe: ships the log of each all the time, takes base backups when they are due, removes what is old. Of
//! sources of `kind: logical` it makes copies when they are due.
//!
//! In: the sources of `backups/*.yml` and a repository. Out: objects in the repository, and a view of each source for
//! people. The daemon has one keeper; `mainstay backup` without a daemon does [`once::back_up`] by itself. A source is
//! tended by one process at a time, under a lease in the repository. Beside the tending somebody looks on (`guard`): tells
//! people what is wrong, drops a slot that would fill the server's disk, lets commits go on without the repository.

mod concern;
mod forecast;
mod guard;
pub mod logical;
mod mark;
pub mod once;
mod parent;
mod tend;
mod view;

pub use concern::Episode;
pub use guard::{Book, Entry};
pub use tend::LEASE_TTL;
pub use view::phase;

use crate::config::backup::Source;
use crate::config::daemon::Repository as RepositorySettings;
use crate::model::SourceName;
use crate::model::source_view::{BackupAsked, FailedBackup, LastBackup, SourceView};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::repository::Repository;
use super::seal::{Checker, Sealer};

/// What tending a source takes.
#[derive(Clone)]
pub struct Setup {
    /// The source.
    pub source: Source,
    /// Where it goes.
    pub repository: Arc<dyn Repository>,
    /// Seals it.
    pub sealer: Sealer,
    /// Whom to believe of what is stored.
    pub checker: Checker,
    /// Who this is, in the words of a lease.
    pub owner: String,
    /// The folder of what is kept from one backup to the next: the server's own manifest of the newest one.
    pub state: PathBuf,
}

/// What kind of base backup is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Whole,
    /// What has changed since the one before, where the source's file has `incremental` and the server can say it.
    Incremental,
}

/// A source that is to be tended.
pub struct Wanted {
    /// The source.
    pub source: Source,
    /// Where it goes, as the settings say: another place begins its tending anew.
    pub place: RepositorySettings,
    /// Opens that.
    pub opening: Opening,
    /// Where it is written down what is wrong with the source, and from where people are told.
    pub book: Book,
}

/// Opens a repository; called again until it works, since a store may be away when the daemon starts.
pub type Opening = Arc<dyn Fn() -> futures_util::future::BoxFuture<'static, Result<Setup, String>> + Send + Sync>;

/// The sources of a daemon. Clones are the same one.
#[derive(Clone)]
pub struct Keeper(Arc<Inner>);

struct Inner {
    sources: Mutex<BTreeMap<SourceName, Kept>>,
    stopping: watch::Receiver<bool>,
}

/// One source, and the task that tends it.
struct Kept {
    source: Source,
    place: RepositorySettings,
    view: watch::Receiver<SourceView>,
    /// Room for one wish: a second one is answered by the same backup.
    wishes: mpsc::Sender<Wish>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// How a wish for a backup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackedUp {
    /// It exists.
    Taken(LastBackup),
    /// There is none.
    Failed(FailedBackup),
}

/// What somebody wants of a source now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// A base backup.
    Backup(Kind),
    /// A whole one, of a server that is another cluster than the one stored. Said once, it holds for this time.
    NewCluster,
}

/// Why a wish is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskError {
    /// There is no such source; these there are.
    Unknown(Vec<String>),
    /// The daemon is stopping.
    Stopping,
    /// Something else that was asked for is still to be begun.
    Busy,
}

impl Keeper {
    /// A keeper without sources, which ends its tasks when `stopping` turns true.
    pub fn new(stopping: watch::Receiver<bool>) -> Keeper {
        Keeper(Arc::new(Inner { sources: Mutex::default(), stopping }))
    }

    /// Tends these sources from now on. What is tended already and has not changed goes on untouched; a source that is not
    /// among them is left alone, and its log stays on its server until somebody ships it or drops its slot.
    pub fn configure(&self, wanted: Vec<Wanted>) {
        let mut sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *sources);
        for one in wanted {
            let name = one.source.name.clone();
            let kept = match before.remove(&name) {
                Some(kept) if kept.is(&one) && !kept.task.is_finished() => kept,
                changed => {
                    // The old task gives its lease back before the new one can have it.
                    let after = changed.map(Kept::end);
                    self.begin(one, after)
                }
            };
            sources.insert(name, kept);
        }
        for gone in before.into_values() {
            drop(gone.end());
        }
    }

    /// What `configure` would change, in words.
    pub fn differences(&self, wanted: &[Wanted]) -> Vec<String> {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        for one in wanted {
            match sources.get(&one.source.name) {
                None => changes.push(format!("{} is kept safe now", one.source.name)),
                Some(kept) if !kept.is(one) => changes.push(format!("{} is kept safe in another way", one.source.name)),
                Some(_) => {}
            }
        }
        let gone = sources.keys().filter(|name| !wanted.iter().any(|one| one.source.name == **name));
        changes.extend(gone.map(|name| format!("{name} is no longer kept safe; its slot is left on its server")));
        changes
    }

    fn begin(&self, wanted: Wanted, after: Option<JoinHandle<()>>) -> Kept {
        let Wanted { source, place, opening, book } = wanted;
        let (view, shown) = watch::channel(view::starting(&source));
        let (wishes, wished) = mpsc::channel(1);
        let (stop, mut stopped) = watch::channel(false);
        let mut stopping = self.0.stopping.clone();
        let (tell, told) = watch::channel(false);
        // One word to stop, whoever says it.
        tokio::spawn(async move {
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
            tell.send_replace(true);
        });
        let tended = source.clone();
        let task = tokio::spawn(async move {
            if let Some(after) = after {
                let _ = after.await;
            }
            tend::tend(tended, opening, book, wished, view, told).await;
        });
        Kept { source, place, view: shown, wishes, stop, task }
    }

    /// How each source stands.
    pub fn views(&self) -> Vec<SourceView> {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.values().map(|kept| kept.view.borrow().clone()).collect()
    }

    /// Asks for a backup of a source now. A whole one comes after an incremental one that is under way.
    ///
    /// # Errors
    /// When there is no such source, or the daemon is stopping.
    pub fn ask(&self, source: &SourceName, kind: Kind) -> Result<BackupAsked, AskError> {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = sources.get(source) else {
            return Err(AskError::Unknown(sources.keys().map(ToString::to_string).collect()));
        };
        let joined =
            kept.view.borrow().backup.as_ref().is_some_and(|backup| kind == Kind::Incremental || !backup.incremental);
        match kept.wishes.try_send(Wish::Backup(kind)) {
            // Full: it is taken out within a moment, and answered by the same backup.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(BackupAsked { source: source.clone(), joined }),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(AskError::Stopping),
        }
    }

    /// Takes over the server of a source although it is another cluster than the one stored, and begins a backup of it. What
    /// is stored of the old one stays. Of a server that is the same one nothing is taken over: it is a backup like any other.
    ///
    /// # Errors
    /// When there is no such source, the daemon is stopping, or an earlier wish was not begun yet.
    pub fn take_over(&self, source: &SourceName) -> Result<BackupAsked, AskError> {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = sources.get(source) else {
            return Err(AskError::Unknown(sources.keys().map(ToString::to_string).collect()));
        };
        match kept.wishes.try_send(Wish::NewCluster) {
            Ok(()) => Ok(BackupAsked { source: source.clone(), joined: false }),
            Err(mpsc::error::TrySendError::Full(_)) => Err(AskError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(AskError::Stopping),
        }
    }

    /// Asks for a backup and waits for how that ends. A future that is dropped leaves the backup going.
    ///
    /// # Errors
    /// When there is no such source, or it is no longer tended, or the daemon is stopping.
    pub async fn back_up(&self, source: &SourceName, kind: Kind) -> Result<BackedUp, AskError> {
        let mut view = {
            let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.get(source).map(|kept| kept.view.clone())
        };
        let before = view.as_mut().map(|view| view.borrow_and_update().clone());
        self.ask(source, kind)?;
        let (Some(mut view), Some(before)) = (view, before) else { return Err(AskError::Stopping) };
        loop {
            {
                let now = view.borrow_and_update();
                if let Some(last) = now.last_backup.as_ref().filter(|last| before.last_backup.as_ref() != Some(last)) {
                    return Ok(BackedUp::Taken(last.clone()));
                }
                if let Some(failed) =
                    now.failed_backup.as_ref().filter(|failed| before.failed_backup.as_ref() != Some(failed))
                {
                    return Ok(BackedUp::Failed(failed.clone()));
                }
            }
            view.changed().await.map_err(|_| AskError::Stopping)?;
        }
    }

    /// A source as it is configured.
    ///
    /// # Errors
    /// When there is none of this name; those that there are.
    pub fn source(&self, name: &SourceName) -> Result<Source, Vec<String>> {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let known = || sources.keys().map(ToString::to_string).collect();
        sources.get(name).map(|kept| kept.source.clone()).ok_or_else(known)
    }

    /// Waits until every source was left in order; call it once the daemon is stopping.
    pub async fn join(&self) {
        let sources = std::mem::take(&mut *self.0.sources.lock().unwrap_or_else(PoisonError::into_inner));
        for kept in sources.into_values() {
            let _ = kept.end().await;
        }
    }
}

impl Kept {
    fn is(&self, wanted: &Wanted) -> bool {
        self.source == wanted.source && self.place == wanted.place
    }

    /// Tells the task to end.
    fn end(self) -> JoinHandle<()> {
        self.stop.send_replace(true);
        self.task
    }
}
