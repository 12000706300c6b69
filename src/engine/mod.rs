//! Runs: from an inbox row to the last recorded event.
//!
//! ```text
//! inbox row --begin--> runs stored --queue--> drive: decide -> record -> act -> record -> decide ... -> ended -> closed
//! ```
//!
//! A run's state is the fold of its events (`state`), what comes next is a pure function of it (`decide`), and exactly
//! one task per run (`drive`) records and acts. Recording comes before acting, and everything made outside carries a
//! name from run, step and attempt, so a new daemon that loads the events goes on where the old one was killed.
//!
//! `daemon` owns the loop that calls [`Engine::tick`]; `web` and `cli` use [`Engine::cancel`] and [`Engine::retry`].

pub mod begin;
mod close;
pub mod decide;
mod drive;
pub mod event;
pub mod gate;
pub mod state;
#[cfg(test)]
mod tests;
pub mod turns;
pub mod view;

use crate::config::secret::Secret;
use crate::git::Mirror;
use crate::logs::file::LogLimit;
use crate::logs::hub::LogStore;
use crate::logs::mask::Masker;
use crate::model::plan::{PlannedStep, StepKind};
use crate::model::{Asker, RepoName, RunId, RunStatus, StepName, StepOutcome};
use crate::runtime::{Runtime, SpaceName, WorkspaceSource};
use crate::store::{NewRun, OpenRun, RunRow, Store, StoreError};
use futures_util::FutureExt as _;
use gate::Gates;
use state::{Carried, CarriedStep, RunState};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use turns::Turns;

/// Pause before a run that could not be driven is taken up again: a full disk must not fill the daemon's log too.
const TAKEN_UP_AFTER: Duration = Duration::from_secs(5);

/// Where a repository's workspaces come from.
#[derive(Clone)]
pub enum Origin {
    /// The daemon's bare mirror of it.
    Mirror {
        /// The mirror.
        mirror: Arc<Mirror>,
        /// The URL to record as `origin`, without credentials.
        url: String,
    },
    /// A working tree as it is (`mainstay run`).
    Folder(PathBuf),
}

/// What the engine must know about one repository.
#[derive(Clone)]
pub struct RepoSetup {
    /// Executes its steps.
    pub runtime: Arc<dyn Runtime>,
    /// Fills its workspaces.
    pub origin: Origin,
    /// Secrets its pipelines may ask for, by name.
    pub secrets: BTreeMap<String, Secret>,
}

/// The engine's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Attempts at once over all runs.
    pub steps: usize,
    /// Containers started ahead and waiting, over all runs.
    pub waiting: usize,
    /// Bound of one attempt's log.
    pub log: LogLimit,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// How long the workspace of a failed run is kept; `None` keeps none.
    pub keep: Option<Duration>,
    /// A run that only waits for others is parked after this long: it gives back what it holds but its workspace.
    pub park_after: Duration,
    /// Makes a space ready for the next run of a repository when one has ended.
    pub keep_spaces_ready: bool,
    /// Where people see runs, if anywhere.
    pub public_url: Option<String>,
    /// Masked in every log, whatever the step was given.
    pub masked: Vec<String>,
    /// What steps take when their pipeline does not say.
    pub plan_defaults: crate::plan::Defaults,
}

/// Between SIGTERM and SIGKILL: long enough for a database to shut down, as engines have it by default.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long the workspace of a failed run is kept for `retry --from`.
pub const KEEP_FAILED: Duration = Duration::from_secs(24 * 3600);

/// When a run that only waits is parked: giving a space back and making it anew costs two seconds or so, which a deploy
/// without a watch or an answer at once should not pay.
pub const PARK_AFTER: Duration = Duration::from_secs(15);

/// Why the engine refused a request. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such run.
    #[error("find run #{0}")]
    NoSuchRun(RunId),
    /// The run has ended, or has not: the request does not fit.
    #[error("{0}")]
    NotNow(String),
    /// The request names something that does not exist.
    #[error("{0}")]
    Wrong(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored document does not read back.
    #[error("read a stored document: {0}")]
    Document(#[from] serde_json::Error),
    /// The events of a run contradict each other.
    #[error(transparent)]
    Illegal(#[from] state::IllegalEvent),
}

/// A handle on the engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    logs: LogStore,
    settings: RwLock<Arc<Settings>>,
    repos: RwLock<BTreeMap<RepoName, RepoSetup>>,
    turns: Turns,
    waiting: Arc<Semaphore>,
    wake: Arc<Notify>,
    drivers: Mutex<BTreeMap<RunId, mpsc::UnboundedSender<Command>>>,
    beginning: Mutex<BTreeSet<RepoName>>,
    gates: RwLock<Arc<dyn Gates>>,
    /// Runs that gave up their place under the limit, and whether they want one again.
    parked: Mutex<BTreeMap<RunId, bool>>,
    stop: watch::Sender<bool>,
    changed: watch::Sender<u64>,
}

/// What a person asks of a run being driven.
enum Command {
    Cancel {
        by: Asker,
        done: oneshot::Sender<Result<(), EngineError>>,
    },
    /// A place under the limit of runs is free for this parked one.
    Resume,
}

impl Engine {
    /// An engine over a store, with nothing running yet.
    pub fn new(store: Store, logs: LogStore, settings: Settings, wake: Arc<Notify>) -> Self {
        let shared = Shared {
            store,
            logs,
            turns: Turns::new(settings.steps),
            waiting: Arc::new(Semaphore::new(settings.waiting)),
            settings: RwLock::new(Arc::new(settings)),
            repos: RwLock::default(),
            wake,
            drivers: Mutex::default(),
            beginning: Mutex::default(),
            gates: RwLock::new(Arc::new(gate::Nobody)),
            parked: Mutex::default(),
            stop: watch::Sender::new(false),
            changed: watch::Sender::new(0),
        };
        Engine { shared: Arc::new(shared) }
    }

    /// Replaces the repositories and settings, at start and on reload. Runs under way keep what they began with.
    pub fn configure(&self, repos: BTreeMap<RepoName, RepoSetup>, settings: Settings) {
        self.shared.turns.set_limit(settings.steps);
        *self.shared.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        *self.shared.repos.write().unwrap_or_else(PoisonError::into_inner) = repos;
        self.shared.wake.notify_one();
    }

    /// Who lets steps pass that wait for people and deploys; [`gate::Nobody`] until this is called. Belongs before
    /// [`Engine::recover`]: attempts that are under way then ask whom they were told to ask.
    pub fn set_gates(&self, gates: Arc<dyn Gates>) {
        *self.shared.gates.write().unwrap_or_else(PoisonError::into_inner) = gates;
    }

    /// Ticks whenever any run changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// The repositories as they were last configured.
    pub fn repos(&self) -> BTreeMap<RepoName, RepoSetup> {
        self.shared.repos.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The logs.
    pub fn logs(&self) -> &LogStore {
        &self.shared.logs
    }

    /// Tells every run to leave its processes running and return, and waits for that.
    pub async fn stop(&self) {
        self.shared.stop.send_replace(true);
        while !self.shared.drivers().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Picks up after an earlier daemon: goes on with every run that had begun. Called once, before [`Engine::tick`].
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn recover(&self) -> Result<(), EngineError> {
        for open in self.shared.store.open_runs().await? {
            if open.status == RunStatus::Running {
                self.shared.ensure_driver(open.id, None);
            }
        }
        Ok(())
    }

    /// The spaces of runs that are not closed: nobody may sweep them.
    ///
    /// # Errors
    /// When the store does not answer or a run's events contradict each other.
    pub async fn spaces_of(&self, runs: &[RunId]) -> Result<Vec<SpaceName>, EngineError> {
        let mut spaces = Vec::new();
        for run in runs {
            let (row, state) = self.shared.load(*run).await?;
            let carried: Option<Carried> = row.carried.as_deref().map(serde_json::from_str).transpose()?;
            spaces.extend(state.space);
            spaces.extend(carried.and_then(|carried| carried.space));
        }
        Ok(spaces)
    }

    /// Makes a space ready for the next run of the repository of that run. Best effort.
    pub async fn warm(&self, run: RunId) {
        let Ok((row, _)) = self.shared.load(run).await else { return };
        if let Some(repo) = self.shared.repo(&row.trigger.repo) {
            let source = self.shared.workspace_source(&repo, &row.trigger);
            repo.runtime.warm(&row.trigger.repo, &source).await;
        }
    }

    /// Starts what is due: queued runs, as far as limits allow, and the clean-up of ended ones. Called by the daemon's
    /// loop whenever it is woken, and from time to time: the stored state decides, a lost wake-up only costs time.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn tick(&self) -> Result<(), EngineError> {
        let open = self.shared.store.open_runs().await?;
        let limit = self.shared.settings().steps.max(1);
        let mut active: BTreeMap<RepoName, usize> = BTreeMap::new();
        let driven: BTreeSet<RunId> = self.shared.drivers().keys().copied().collect();
        let parked = self.shared.parked().clone();
        for run in open.iter().filter(|run| driven.contains(&run.id) && !parked.contains_key(&run.id)) {
            *active.entry(run.repo.clone()).or_default() += 1;
        }
        let waits = |run: &&OpenRun| match parked.get(&run.id) {
            Some(wants_place) => *wants_place,
            None => run.status == RunStatus::Queued && !driven.contains(&run.id),
        };
        let mut queued: Vec<_> = open.iter().filter(waits).collect();
        while active.values().sum::<usize>() < limit && !queued.is_empty() {
            // Fair between repositories: the one with the fewest runs under way comes first, its oldest run first.
            let next =
                (0..queued.len()).min_by_key(|&i| (active.get(&queued[i].repo).copied().unwrap_or(0), queued[i].id));
            let Some(next) = next else { break };
            let run = queued.remove(next);
            *active.entry(run.repo.clone()).or_default() += 1;
            if parked.contains_key(&run.id) {
                self.shared.resume(run.id);
            } else {
                self.shared.ensure_driver(run.id, None);
            }
        }
        for run in &open {
            // Its driver broke off, as when nothing could be recorded on a full disk.
            if run.status == RunStatus::Running && !driven.contains(&run.id) {
                self.shared.ensure_driver(run.id, None);
            }
            if run.status.is_final() && !driven.contains(&run.id) {
                close::close_later(&self.shared, run.id);
            }
        }
        Ok(())
    }

    /// Closes runs that have ended and are not closed, such as those whose end an earlier daemon recorded just before it was
    /// killed. For the stop, when nothing is driven any more.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn close_ended(&self) -> Result<(), EngineError> {
        for run in self.shared.store.open_runs().await? {
            if run.status.is_final() {
                close::close(&self.shared, run.id).await?;
            }
        }
        Ok(())
    }

    /// Removes kept workspaces whose time has come.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn expire_kept(&self) -> Result<(), EngineError> {
        close::expire_kept(&self.shared).await
    }

    /// Whether nothing is being driven.
    pub fn is_idle(&self) -> bool {
        self.shared.drivers().is_empty()
    }

    /// Asks a run to stop; returns when the request is durable.
    ///
    /// # Errors
    /// When there is no such run or it has ended.
    pub async fn cancel(&self, run: RunId, by: &Asker) -> Result<(), EngineError> {
        let (row, _) = self.shared.store.load_run(run).await?.ok_or(EngineError::NoSuchRun(run))?;
        if row.status.is_final() {
            return Err(EngineError::NotNow(format!("cancel run #{run}: it has ended ({})", row.status)));
        }
        let (done, answer) = oneshot::channel();
        self.shared.ensure_driver(run, Some(Command::Cancel { by: by.clone(), done }));
        answer.await.map_err(|_| EngineError::NotNow(format!("cancel run #{run}: it has just ended")))?
    }

    /// Stores a new run that repeats an ended one, whole or from a step; what ended well before that step is kept. The
    /// new run is `by`'s; who pushed or triggered the first one stands there and in the audit.
    ///
    /// # Errors
    /// When there is no such run, it has not ended, or the plan has no such step.
    pub async fn retry(
        &self,
        run: RunId,
        from: Option<&StepName>,
        by: &Asker,
    ) -> Result<(RunId, Vec<String>), EngineError> {
        let (row, state) = self.shared.load(run).await?;
        if !row.status.is_final() {
            return Err(EngineError::NotNow(format!(
                "retry run #{run}: it has not ended\nhint: mainstay cancel {run}"
            )));
        }
        if row.plan.steps.is_empty() {
            return Err(EngineError::NotNow(format!(
                "retry run #{run}: it has no plan, its pipeline file was wrong\nhint: push a commit that mends the file"
            )));
        }
        let mut notes = Vec::new();
        let carried = match from {
            None => Carried::default(),
            Some(step) => carry_over(&row, &state, step, &mut notes)?,
        };
        let takes_space_of = carried.space.is_some().then_some(run);
        let mut trigger = row.trigger.clone();
        trigger.at = jiff::Timestamp::now();
        let mut details = serde_json::json!({});
        if let Some(step) = from {
            details["from"] = step.as_str().into();
        }
        if let Some(actor) = trigger.actor.replace(by.who().to_owned()) {
            details["actor"] = actor.into();
        }
        let new = NewRun {
            trigger,
            plan: row.plan.clone(),
            status: RunStatus::Queued,
            error: None,
            retry_of: Some(run),
            carried: Some(serde_json::to_string(&carried)?),
        };
        let id = self.shared.store.create_retry(new, takes_space_of, by, details).await?;
        self.shared.announce();
        self.shared.wake.notify_one();
        Ok((id, notes))
    }
}

/// What a retry from `step` keeps: every step that ended well and does not come after it.
fn carry_over(
    row: &RunRow,
    state: &RunState,
    step: &StepName,
    notes: &mut Vec<String>,
) -> Result<Carried, EngineError> {
    if row.plan.step(step).is_none() {
        let names: Vec<_> = row.plan.steps.iter().map(|s| s.name.as_str()).collect();
        return Err(EngineError::Wrong(format!(
            "find the step `{step}` in run #{}\nhint: its steps are {}",
            row.id,
            names.join(", ")
        )));
    }
    let mut again: BTreeSet<&StepName> = BTreeSet::from([step]);
    // Plan order puts every step after what it needs, so one pass finds all that come after.
    for other in &row.plan.steps {
        let kept = matches!(state.outcome(&other.name), Some(StepOutcome::Succeeded | StepOutcome::FailedAllowed));
        if !kept || other.needs.iter().any(|need| again.contains(need)) {
            again.insert(&other.name);
        }
    }
    // A yes is given for one run. Where nothing that it opened the way for runs again, it need not be asked for again.
    for other in row.plan.steps.iter().rev() {
        let opens = |later: &PlannedStep| again.contains(&later.name) && later.needs.contains(&other.name);
        if matches!(other.kind, StepKind::Approval(_)) && row.plan.steps.iter().any(opens) && again.insert(&other.name)
        {
            notes.push(format!("`{}` is asked again: an approval is given for one run only", other.name));
        }
    }
    let steps = row
        .plan
        .steps
        .iter()
        .filter(|other| !again.contains(&other.name))
        .filter_map(|other| {
            let outcome = state.outcome(&other.name)?;
            let outputs = state.outputs(&other.name).cloned().unwrap_or_default();
            Some((other.name.clone(), CarriedStep { outcome, outputs }))
        })
        .collect();
    let space = row.kept_space.clone().map(SpaceName);
    notes.push(match space {
        Some(_) => format!(
            "the workspace is the one that run #{} left behind, not the state in which `{step}` first began",
            row.id
        ),
        None => format!(
            "the workspace of run #{} is gone: `{step}` begins with a fresh checkout, without files made by earlier steps",
            row.id
        ),
    });
    Ok(Carried { space, steps })
}

impl Shared {
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn repo(&self, name: &RepoName) -> Option<RepoSetup> {
        self.repos.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn drivers(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, mpsc::UnboundedSender<Command>>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gates(&self) -> Arc<dyn Gates> {
        Arc::clone(&self.gates.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn parked(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, bool>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a parked run its place.
    fn resume(&self, run: RunId) {
        self.parked().remove(&run);
        if let Some(commands) = self.drivers().get(&run) {
            // A driver that has just ended needs no place.
            let _ = commands.send(Command::Resume);
        }
    }

    fn announce(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    async fn load(&self, run: RunId) -> Result<(RunRow, RunState), EngineError> {
        let (row, events) = self.store.load_run(run).await?.ok_or(EngineError::NoSuchRun(run))?;
        let state = fold(&row, &events)?;
        Ok((row, state))
    }

    /// The run's one driver: the task that records and acts. Starts it when there is none.
    /// A command given along is in its hands before it does anything.
    fn ensure_driver(self: &Arc<Self>, run: RunId, mut command: Option<Command>) {
        let mut drivers = self.drivers();
        if let Some(commands) = drivers.get(&run) {
            match command.take().map(|command| commands.send(command)) {
                None if !commands.is_closed() => return,
                Some(Ok(())) => return,
                // It is just ending; a new one takes its place.
                None => {}
                Some(Err(mpsc::error::SendError(unsent))) => command = Some(unsent),
            }
        }
        let (sender, commands) = mpsc::unbounded_channel();
        if let Some(command) = command {
            // The receiver is in our hands: this cannot fail.
            let _ = sender.send(command);
        }
        drivers.insert(run, sender.clone());
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            // A panic must not leave a run that looks driven and is not.
            match AssertUnwindSafe(drive::drive(&shared, run, commands)).catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(%run, %error, "failed to drive a run; it will be taken up again");
                    tokio::time::sleep(TAKEN_UP_AFTER).await;
                }
                Err(_) => {
                    tracing::error!(%run, "driving a run broke off with a defect of Mainstay; it will be taken up again");
                    tokio::time::sleep(6 * TAKEN_UP_AFTER).await;
                }
            }
            let mut drivers = shared.drivers();
            if drivers.get(&run).is_some_and(|current| current.same_channel(&sender)) {
                drivers.remove(&run);
                shared.parked().remove(&run);
            }
            drop(drivers);
            shared.wake.notify_one();
        });
    }

    fn workspace_source(&self, repo: &RepoSetup, trigger: &crate::model::TriggerEvent) -> WorkspaceSource {
        match &repo.origin {
            Origin::Folder(path) => WorkspaceSource::Folder(path.clone()),
            Origin::Mirror { mirror, url } => WorkspaceSource::Commit {
                mirror: mirror.dir().to_owned(),
                commit: trigger.commit.sha.clone(),
                branch: trigger.branch().or(trigger.tag()).map(str::to_owned),
                origin: url.clone(),
            },
        }
    }

    fn masker(&self, repo: &RepoSetup) -> Arc<Masker> {
        let settings = self.settings();
        let all = settings.masked.iter().map(String::as_str).chain(repo.secrets.values().map(Secret::expose));
        Arc::new(Masker::new(all.map(|value| value.as_bytes().to_vec())))
    }
}

/// Adds up a run's events.
fn fold(row: &RunRow, events: &[crate::store::EventRow]) -> Result<RunState, EngineError> {
    let carried: Option<Carried> = row.carried.as_deref().map(serde_json::from_str).transpose()?;
    let mut state = RunState::new(Arc::new(row.plan.clone()), carried.as_ref());
    for stored in events {
        state.apply(&serde_json::from_str(&stored.event)?, stored.at)?;
    }
    Ok(state)
}
