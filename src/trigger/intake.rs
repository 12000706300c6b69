//! The one way into the inbox: every feeder's report passes here, and the engine is woken when something new is stored.

use crate::git::{GitError, Mirror};
use crate::model::api::TriggerRequest;
use crate::model::trigger::Feeder;
use crate::model::{Asker, Oid, RepoName};
use crate::store::{Answer, InboxId, RefReport, Report, Seen, Store, StoreError, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;

/// One ref that a feeder says has moved. All zeros stand for "does not exist".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefChange {
    /// The full ref name.
    pub git_ref: String,
    /// What it held before.
    pub old: Oid,
    /// What it holds since.
    pub new: Oid,
}

/// A repository as the triggers need it.
#[derive(Debug, Clone)]
pub struct WatchedRepo {
    /// Its name.
    pub name: RepoName,
    /// Its mirror, which knows its address.
    pub mirror: Mirror,
    /// How often to look at its refs; `None` looks once at start and when something asks for it.
    pub poll: Option<Duration>,
    /// The only branch that is watched; all when `None`. Tags are watched in any case.
    pub branch: Option<String>,
    /// Refs of one push that may start runs.
    pub runs_per_push: usize,
    /// How its forge's webhooks are to be believed; `None` refuses them.
    pub webhook: Option<WebhookConfig>,
}

impl WatchedRepo {
    /// Whether changes of that ref count.
    pub fn watches(&self, git_ref: &str) -> bool {
        let branch = git_ref.strip_prefix("refs/heads/");
        self.branch.as_deref().is_none_or(|only| branch.is_none_or(|name| name == only))
    }
}

/// How webhooks of one repository are checked.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Which forge.
    pub kind: super::webhook::Kind,
    /// The secret shared with it.
    pub secret: String,
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Why a report was not taken. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// No such repository in `mainstay.yml`.
    #[error("find the repository `{0}` among those watched")]
    UnknownRepo(RepoName),
    /// The repository could not be looked at.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The row could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The webhook is not to be believed, or says nothing that can be understood.
    #[error(transparent)]
    Webhook(#[from] super::webhook::WebhookError),
    /// The refs moved on faster than they could be looked at.
    #[error("take the report: the refs keep moving")]
    Restless,
    /// The daemon is stopping.
    #[error("take the report: the daemon is stopping")]
    Stopping,
}

/// All feeders' way into the inbox.
pub struct Intake {
    store: Store,
    repos: RwLock<BTreeMap<RepoName, Arc<Entry>>>,
    /// Wakes the engine: something is pending.
    wake: Arc<Notify>,
    /// The list of repositories was replaced.
    pub(super) repos_changed: Notify,
    /// Repositories whose pipeline files may name other schedules now.
    rescheduled: Mutex<BTreeSet<RepoName>>,
    pub(super) reschedule: Notify,
}

pub(super) struct Entry {
    pub(super) repo: WatchedRepo,
    pub(super) poll_soon: Notify,
}

/// Refs per transaction; a larger push is taken in pieces, each of which a reader sees at once.
const CHUNK: usize = 10_000;
/// Looks at the repository before a report is given up: each failed one means that a push came in between.
const LOOKS_MAX: usize = 5;

impl Intake {
    /// The intake for these repositories. `wake` is notified whenever a row is pending.
    pub fn new(store: Store, repos: Vec<WatchedRepo>, wake: Arc<Notify>) -> Arc<Intake> {
        let intake = Intake {
            store,
            repos: RwLock::default(),
            wake,
            repos_changed: Notify::new(),
            rescheduled: Mutex::default(),
            reschedule: Notify::new(),
        };
        intake.replace(repos);
        Arc::new(intake)
    }

    /// Watches these repositories from now on, and no others.
    pub fn replace(&self, repos: Vec<WatchedRepo>) {
        let entries: BTreeMap<_, _> = repos
            .into_iter()
            .map(|repo| (repo.name.clone(), Arc::new(Entry { repo, poll_soon: Notify::new() })))
            .collect();
        for name in entries.keys() {
            self.note_schedules(name);
        }
        *self.repos.write().unwrap_or_else(PoisonError::into_inner) = entries;
        self.repos_changed.notify_one();
    }

    /// The store behind it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The names of the watched repositories.
    pub fn names(&self) -> Vec<RepoName> {
        self.repos.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// A watched repository.
    pub fn repo(&self, name: &RepoName) -> Option<WatchedRepo> {
        Some(self.entry(name).ok()?.repo.clone())
    }

    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.repos.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn entry(&self, name: &RepoName) -> Result<Arc<Entry>, IntakeError> {
        let repos = self.repos.read().unwrap_or_else(PoisonError::into_inner);
        repos.get(name).cloned().ok_or_else(|| IntakeError::UnknownRepo(name.clone()))
    }

    /// Looks at the repository's refs as soon as possible.
    pub fn poll_soon(&self, name: &RepoName) {
        if let Ok(entry) = self.entry(name) {
            entry.poll_soon.notify_one();
        }
    }

    /// Takes what a feeder says: stored when this returns. The verdicts are in the order of the changes.
    ///
    /// # Errors
    /// When the repository is not watched, or it or the store cannot be read. Nothing is lost then: hooks keep their
    /// spool file, and the next look at the refs finds what moved.
    pub async fn report_push(
        &self,
        feeder: Feeder,
        name: &RepoName,
        delivery: Option<String>,
        actor: Option<String>,
        changes: Vec<RefChange>,
    ) -> Result<Vec<Verdict>, IntakeError> {
        let repo = &self.entry(name)?.repo;
        let watched: Vec<bool> = changes.iter().map(|change| repo.watches(&change.git_ref)).collect();
        let changes = changes.into_iter().zip(&watched).filter(|(_, watched)| **watched);
        let changes =
            changes.map(|(c, _)| RefReport { git_ref: c.git_ref, old: c.old, new: c.new, seen: None }).collect();
        let mut verdicts = self.report(feeder, name, delivery, actor, changes).await?.into_iter();
        let refused = || Verdict::Refused("mainstay.yml watches another branch of this repository".into());
        Ok(watched.into_iter().map(|w| if w { verdicts.next() } else { None }.unwrap_or_else(refused)).collect())
    }

    pub(super) async fn report(
        &self,
        feeder: Feeder,
        name: &RepoName,
        delivery: Option<String>,
        actor: Option<String>,
        mut changes: Vec<RefReport>,
    ) -> Result<Vec<Verdict>, IntakeError> {
        let entry = self.entry(name)?;
        let mut starts = entry.repo.runs_per_push;
        // Where the limit bites, the default branch comes first, then the order of the report.
        let moved = if changes.len() > starts { self.default_first(name, &mut changes).await? } else { 0 };
        let mut verdicts = Vec::with_capacity(changes.len());
        let mut piece = 0;
        while !changes.is_empty() {
            let rest = changes.split_off(changes.len().min(CHUNK));
            let delivery = delivery.as_ref().map(|id| if piece == 0 { id.clone() } else { format!("{id}+{piece}") });
            let report = Report { feeder, repo: name.clone(), delivery, actor: actor.clone(), changes, starts };
            let changes_of = report.changes.iter().map(|change| !change.new.is_zero()).collect::<Vec<_>>();
            let decided = self.decided(&entry, report).await?;
            let started = |(v, runs): (&Verdict, &bool)| *runs && matches!(v, Verdict::Accepted(_));
            starts -= decided.iter().zip(&changes_of).filter(|pair| started(*pair)).count().min(starts);
            verdicts.extend(decided);
            changes = rest;
            piece += 1;
        }
        if verdicts.iter().any(|v| matches!(v, Verdict::Accepted(_))) {
            self.wake.notify_one();
            self.note_schedules(name);
        }
        let over = verdicts.iter().filter(|v| matches!(v, Verdict::OverLimit(_))).count();
        if over > 0 {
            let limit = entry.repo.runs_per_push;
            tracing::warn!(repo = %name, over, limit, "a push moved more refs than may start runs; see `mainstay inbox`");
        }
        if let Some(front) = verdicts.get_mut(..=moved) {
            front.rotate_left(1);
        }
        Ok(verdicts)
    }

    /// Brings the default branch's change to the front; returns where it was.
    async fn default_first(&self, name: &RepoName, changes: &mut [RefReport]) -> Result<usize, IntakeError> {
        let Some(head) = self.store.head(name).await? else { return Ok(0) };
        let at = changes.iter().position(|change| change.git_ref == head).unwrap_or(0);
        changes[..=at].rotate_right(1);
        Ok(at)
    }

    async fn decided(&self, entry: &Entry, mut report: Report) -> Result<Vec<Verdict>, IntakeError> {
        for _ in 0..LOOKS_MAX {
            let look = match self.store.report(report.clone()).await? {
                Answer::Decided(verdicts) => return Ok(verdicts),
                Answer::Look(look) => look,
            };
            let mirror = entry.repo.mirror.clone();
            let names: Vec<String> = look.iter().map(|(name, _)| name.clone()).collect();
            let now = blocking(move || mirror.remote_refs(&names)).await??;
            let look: BTreeMap<String, u64> = look.into_iter().collect();
            for change in &mut report.changes {
                if let Some(generation) = look.get(&change.git_ref) {
                    let oid = now.get(&change.git_ref).cloned().unwrap_or_else(Oid::zero);
                    change.seen = Some(Seen { oid, generation: *generation });
                }
            }
        }
        Err(IntakeError::Restless)
    }

    /// A webhook for a repository: checked, understood, stored. See [`super::webhook::verify_and_parse`].
    ///
    /// # Errors
    /// [`IntakeError::Webhook`] says how to answer a request that is not to be believed.
    pub async fn webhook<'h>(
        &self,
        name: &RepoName,
        headers: &(dyn Fn(&str) -> Option<&'h str> + Sync),
        body: &[u8],
    ) -> Result<super::webhook::Taken, IntakeError> {
        use super::webhook::{Notification, Taken, WebhookError, verify_and_parse};
        let entry = self.entry(name)?;
        let config = entry.repo.webhook.as_ref().ok_or(WebhookError::NotConfigured)?;
        match verify_and_parse(config.kind, config.secret.as_bytes(), headers, body)? {
            Notification::Ping => Ok(Taken::Ping),
            Notification::Ignored(what) => Ok(Taken::Ignored(what)),
            Notification::Look => {
                entry.poll_soon.notify_one();
                Ok(Taken::Look)
            }
            Notification::Push { delivery, actor, changes } => {
                let taken = self.report_push(Feeder::Webhook, name, Some(delivery), actor, changes).await;
                match taken {
                    Ok(verdicts) => Ok(Taken::Push(verdicts)),
                    Err(error) => {
                        // The forge may not say it again, so look ourselves as soon as that works.
                        entry.poll_soon.notify_one();
                        Err(error)
                    }
                }
            }
        }
    }

    /// A person's wish: resolves the ref in the repository as it is now and stores a row.
    ///
    /// # Errors
    /// [`GitError::NotFound`] when there is no such ref or commit.
    pub async fn trigger(&self, request: TriggerRequest, by: &Asker) -> Result<InboxId, IntakeError> {
        let entry = self.entry(&request.repo)?;
        let mirror = entry.repo.mirror.clone();
        let word = request.git_ref.clone().unwrap_or_default();
        let (git_ref, commit) = blocking(move || {
            mirror.fetch()?;
            let found = mirror.resolve(&word)?;
            Ok::<_, GitError>((found.git_ref.unwrap_or_else(|| found.commit.as_str().to_owned()), found.commit))
        })
        .await??;
        let id = self.store.accept_manual(&request.repo, git_ref, commit, by, request.pipeline, request.inputs).await?;
        self.wake.notify_one();
        Ok(id)
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The pipeline files of this repository may have changed.
    pub(super) fn note_schedules(&self, name: &RepoName) {
        self.rescheduled.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        self.reschedule.notify_one();
    }

    pub(super) fn take_rescheduled(&self) -> BTreeSet<RepoName> {
        std::mem::take(&mut *self.rescheduled.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Git blocks; a panic in it is the daemon's end, not this room's to hide.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, IntakeError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| IntakeError::Stopping)
}
