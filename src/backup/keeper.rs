//! Keeps sources safe: ships the log of each all the time, takes base backups when they are due, removes what is old. Of
//! sources of `kind: logical` it makes copies when they are due.
//!
//! In: the sources of `backups/*.yml` and a repository. Out: objects in the repository, and a view of each source for
//! people. The daemon has one keeper; `mainstay backup` without a daemon does [`once::back_up`] by itself. A source is
//! tended by one process at a time, under a lease in the repository. Beside the tending somebody looks on (`guard`): tells
//! people what is wrong, drops a slot that would fill the server's disk, lets commits go on without the repository.

mod chores;
mod concern;
mod forecast;
mod guard;
pub mod logical;
mod mark;
pub mod once;
mod parent;
mod tend;
mod view;
mod work;

pub use concern::Episode;
pub use guard::{Book, Entry};
pub use tend::LEASE_TTL;
pub use view::phase;

use crate::config::backup::Source;
use crate::config::daemon::Repository as RepositorySettings;
use crate::model::SourceName;
use crate::model::source_view::{BackupAsked, FailedBackup, LastBackup, SourceView};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::logical::Way;
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
    /// Where the programs of logical copies come from.
    pub programs: Way,
}

/// What kind of base backup is asked for. The later asks for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What has changed since the one before, where the source's file has `incremental` and the server can say it.
    Incremental,
    /// All of it.
    Whole,
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

/// What somebody wants of a source now. The later asks for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    /// A base backup.
    Backup(Kind),
    /// A whole one, of a server that is another cluster than the one stored. Said once, it holds for this time.
    NewCluster,
}

impl Wish {
    /// The backup that answers it.
    fn kind(self) -> Kind {
        match self {
            Wish::Backup(kind) => kind,
            Wish::NewCluster => Kind::Whole,
        }
    }
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
        let under_way = kept.view.borrow().backup.clone();
        let joined = under_way.filter(|backup| kind == Kind::Incremental || !backup.incremental);
        let since = joined.as_ref().map_or_else(Timestamp::now, |backup| backup.began);
        let asked = BackupAsked { source: source.clone(), joined: joined.is_some(), since };
        match kept.wishes.try_send(Wish::Backup(kind)) {
            // Full: it is taken out within a moment, and answered by the same backup.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(asked),
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
            Ok(()) => Ok(BackupAsked { source: source.clone(), joined: false, since: Timestamp::now() }),
            Err(mpsc::error::TrySendError::Full(_)) => Err(AskError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(AskError::Stopping),
        }
    }

    /// Asks for a backup and waits for how that ends. A future that is dropped leaves the backup going.
    ///
    /// # Errors
    /// When there is no such source, or it is no longer tended, or the daemon is stopping.
    pub async fn back_up(&self, source: &SourceName, kind: Kind) -> Result<BackedUp, AskError> {
        let view = {
            let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.get(source).map(|kept| kept.view.clone())
        };
        // What the view showed before says nothing: right after a start it knows of no backup yet.
        let since = self.ask(source, kind)?.since;
        let Some(mut view) = view else { return Err(AskError::Stopping) };
        loop {
            {
                let now = view.borrow_and_update();
                if let Some(last) = now.last_backup.as_ref().filter(|last| last.began >= since) {
                    return Ok(BackedUp::Taken(last.clone()));
                }
                if let Some(failed) = now.failed_backup.as_ref().filter(|failed| failed.at >= since) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::backup::{Around, parse};
    use crate::config::daemon::RepositoryPlace;
    use crate::model::source_view::UnderWay;
    use std::path::Path;
    use std::time::Duration;

    fn taken(id: &str, began: Timestamp) -> Option<LastBackup> {
        Some(LastBackup { id: id.to_owned(), began, ended: began, parent: None, whole_because: None, cluster: None })
    }

    #[tokio::test]
    async fn no_backup_and_no_failure_from_before_a_wish_answers_it() {
        let store = crate::config::secret::SecretStore::new(Path::new("/nowhere"));
        let around = Around { env: &|_| None, folder: Path::new("/"), store: &store, repos: None };
        let text = "postgres: \"postgres://backup@127.0.0.1/?sslmode=disable\"\n";
        let name: SourceName = "shop-db".parse().unwrap();
        let source = parse(&name, "shop-db.yml", text, &around).unwrap();
        let (view, shown) = watch::channel(view::starting(&source));
        let (wishes, _wished) = mpsc::channel(1);
        let place = RepositorySettings {
            place: RepositoryPlace::Folder("/nowhere".into()),
            encrypt_to: Vec::new(),
            sign_with: None,
            identity: None,
            trust: Vec::new(),
        };
        let stop = watch::Sender::new(false);
        let keeper = Keeper::new(stop.subscribe());
        let task = tokio::spawn(std::future::pending());
        let kept = Kept { source, place, view: shown, wishes, stop: watch::Sender::new(false), task };
        keeper.0.sources.lock().unwrap().insert(name.clone(), kept);

        let waiting = {
            let (keeper, name) = (keeper.clone(), name.clone());
            tokio::spawn(async move { keeper.back_up(&name, Kind::Whole).await })
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        // A keeper that has just started learns only now of last night's backup, and of the one that failed before it.
        let night = Timestamp::now() - Duration::from_secs(3_600);
        view.send_modify(|view| {
            view.last_backup = taken("night", night);
            view.failed_backup = Some(FailedBackup { at: night, words: "failed to connect".into() });
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        view.send_modify(|view| view.last_backup = taken("now", Timestamp::now()));
        let answer = waiting.await.unwrap().unwrap();
        assert!(matches!(&answer, BackedUp::Taken(last) if last.id == "now"), "{answer:?}");

        // One that is under way is joined, and answers though it began before.
        let began = Timestamp::now();
        let under_way = UnderWay { began, bytes: 0, of_bytes: None, phase: "reading".into(), incremental: false };
        view.send_modify(|view| view.backup = Some(under_way));
        let asked = keeper.ask(&name, Kind::Whole).unwrap();
        assert!(asked.joined && asked.since == began, "{asked:?}");
    }
}
