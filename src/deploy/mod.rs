//! Deploys: an environment is brought to a release, watched, and taken back when it turns bad.
//!
//! ```text
//! asked --admit--> (people say yes) --> begun: release made --> applied --> healthy --> watched --> verified
//!                                          \___________________\___________\_________ turned bad --> rolled back
//! ```
//!
//! Enters: requests of steps and of people ([`Deploys::request`], [`Deploys::rollback`]). Leaves: what the targets serve, the
//! facts about it in the store, and messages. A deploy's state is the fold of its events (`state`), whether one may
//! begin is a pure function (`admit`), and one task per environment (`drive`) records and acts; recording comes first, and
//! every act may happen twice. A rollback is a deploy of an earlier release by the same code (`carry`).
//!
//! `daemon` makes the targets and owns the handle; `web` and steps that wait use it.

mod admit;
mod asked;
mod candidate;
mod carry;
mod drive;
pub mod gate;
pub mod health;
mod history;
mod host;
mod line;
pub mod owner;
pub mod points;
mod record;
mod revert;
pub mod shell;
pub mod state;
pub mod target;
mod tell;
pub mod view;

use crate::approval::Approvals;
use crate::config::daemon::Environment;
use crate::git::Mirror;
use crate::model::deploy::{DeployKind, DeployRequest, DeployStatus, Release};
use crate::model::{Asker, DeployId, EnvironmentName, PublicKey, RepoName};
use crate::notify::forge::Forge;
use crate::signing::SigningKey;
use crate::store::{Act, ActKind, DeployRow, NewHold, ReleaseRow, Store, StoreError};
use state::{DeployEvent, DeployState, IllegalDeployEvent};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use target::Target;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// What is known of one environment beside what is stored.
pub struct Setup {
    /// What `mainstay.yml` says.
    pub config: Environment,
    /// What is deployed to.
    pub target: Arc<dyn Target>,
}

/// Everything that changes with the configuration.
#[derive(Default)]
pub struct Setups {
    /// By name.
    pub environments: BTreeMap<EnvironmentName, Arc<Setup>>,
    /// The mirrors of all watched repositories.
    pub mirrors: BTreeMap<RepoName, Arc<Mirror>>,
    /// The forges of those that have one.
    pub forges: BTreeMap<RepoName, Arc<Forge>>,
    /// Whom messages about deploys go to: channel and recipient, by environment.
    pub told: BTreeMap<EnvironmentName, Vec<(String, String)>>,
    /// Keys whose entries in the history of an environment are believed, beside the daemon's own.
    pub trusted: Vec<PublicKey>,
}

/// Why a request about deploys was refused. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// No such environment, release or deploy.
    #[error("{0}")]
    Unknown(String),
    /// It does not fit what is.
    #[error("{0}")]
    NotNow(String),
    /// It is not allowed: rights, hold.
    #[error("{0}")]
    Refused(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored document does not read back.
    #[error("read a stored document: {0}")]
    Document(#[from] serde_json::Error),
    /// The facts about a deploy contradict each other.
    #[error(transparent)]
    Illegal(#[from] IllegalDeployEvent),
    /// A repository could not be read.
    #[error(transparent)]
    Git(#[from] crate::git::GitError),
    /// The approval room failed.
    #[error(transparent)]
    Approval(#[from] crate::approval::ApprovalError),
}

/// A handle on all deploys; cheap to clone.
#[derive(Clone)]
pub struct Deploys {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    approvals: Approvals,
    /// Signs what is written into Git.
    key: Arc<SigningKey>,
    setups: RwLock<Arc<Setups>>,
    /// What is known of the environments' histories in Git.
    histories: Mutex<BTreeMap<EnvironmentName, history::History>>,
    /// This process, as the owner of leases.
    owner: String,
    drivers: Mutex<BTreeMap<EnvironmentName, mpsc::UnboundedSender<Command>>>,
    reverts: Mutex<Option<JoinHandle<()>>>,
    /// Steps that have reached an approval.
    line: line::Line,
    points: RwLock<Arc<dyn points::Points>>,
    stop: watch::Sender<bool>,
    changed: watch::Sender<u64>,
}

/// What a person asks of an environment's task.
enum Command {
    /// Take the deploy under way back.
    Rollback { by: Asker, to: Option<u64>, done: oneshot::Sender<Result<(), DeployError>> },
    /// End its watch.
    EndWatch { by: Asker, done: oneshot::Sender<Result<(), DeployError>> },
}

/// A deploy as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// What is stored of it.
    pub row: DeployRow,
    /// What its events add up to.
    pub state: DeployState,
    /// Its events, with their times.
    pub events: Vec<(jiff::Timestamp, DeployEvent)>,
}

impl Deploys {
    /// Deploys over a store, with nothing under way yet.
    pub fn new(store: Store, approvals: Approvals, key: SigningKey, setups: Setups) -> Self {
        let shared = Shared {
            store,
            approvals,
            key: Arc::new(key),
            setups: RwLock::new(Arc::new(setups)),
            histories: Mutex::default(),
            owner: owner::this_process(),
            drivers: Mutex::default(),
            reverts: Mutex::default(),
            line: line::Line::default(),
            points: RwLock::new(Arc::new(points::NoPoints)),
            stop: watch::Sender::new(false),
            changed: watch::Sender::new(0),
        };
        Deploys { shared: Arc::new(shared) }
    }

    /// Says who marks recovery points from now on; nobody does before.
    pub fn set_points(&self, points: Arc<dyn points::Points>) {
        *self.shared.points.write().unwrap_or_else(PoisonError::into_inner) = points;
    }

    /// Replaces what the configuration says. A deploy under way goes on with what it began with.
    pub fn configure(&self, setups: Setups) {
        *self.shared.setups.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(setups);
        self.shared.forget_barred_histories();
        self.start();
        self.shared.announce();
    }

    /// Starts the task of every environment that has none. Called at start, and again by [`configure`](Self::configure).
    pub fn start(&self) {
        for name in self.shared.setups().environments.keys() {
            drive::ensure(&self.shared, name);
        }
        revert::ensure(&self.shared);
    }

    /// Tells every task to let go of what it does, and waits for that. Targets go on serving.
    pub async fn stop(&self) {
        self.shared.stop.send_replace(true);
        let reverts = self.shared.reverts().take();
        if let Some(reverts) = reverts
            && let Err(error) = reverts.await
        {
            tracing::error!(%error, "the task that takes releases back ended badly");
        }
        while !self.shared.drivers().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Ticks whenever any deploy, hold or environment changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Stores what is asked, once per key, and says which deploy it is. Whether it may begin is decided afterwards.
    ///
    /// # Errors
    /// When there is no such environment, or the store does not answer.
    pub async fn request(&self, request: DeployRequest, act: Option<Act>) -> Result<DeployId, DeployError> {
        self.shared.setup(&request.environment)?;
        let (id, _) = self.shared.store.create_deploy(request, act).await?;
        self.shared.announce();
        Ok(id)
    }

    /// A deploy as it stands.
    ///
    /// # Errors
    /// When there is none of that number.
    pub async fn standing(&self, id: DeployId) -> Result<Standing, DeployError> {
        self.shared.standing(id).await
    }

    /// Brings an environment back: the deploy under way is taken back, or the release before the one that serves is
    /// deployed. What served is held.
    ///
    /// # Errors
    /// When there is nothing to go back to.
    pub async fn rollback(
        &self,
        environment: &EnvironmentName,
        to: Option<u64>,
        by: &Asker,
    ) -> Result<DeployId, DeployError> {
        self.go_back(environment, to, None, by).await
    }

    /// The same for a request that may come twice.
    async fn go_back(
        &self,
        environment: &EnvironmentName,
        to: Option<u64>,
        key: Option<String>,
        by: &Asker,
    ) -> Result<DeployId, DeployError> {
        self.history(environment).await?;
        if let Some(key) = &key
            && let Some(known) = self.shared.store.deploy_of_key(key.clone()).await?
        {
            return Ok(known);
        }
        let open = self.shared.store.open_deploys(Some(environment.clone())).await?;
        if let Some(under_way) = open.iter().find(|deploy| deploy.status.holds_environment()) {
            if under_way.request.kind == DeployKind::Rollback || under_way.status == DeployStatus::RollingBack {
                return Err(DeployError::NotNow(format!(
                    "roll {environment} back: deploy #{} is doing that",
                    under_way.id
                )));
            }
            let id = under_way.id;
            let (by_whom, fallback) = (by.clone(), self.shared.standing(id).await?.state.fallback);
            let Some(key) = key else {
                self.command(environment, |done| Command::Rollback { by: by_whom, to, done }).await?;
                return Ok(id);
            };
            // A step waits for a deploy of its own, which is found again after a crash: it comes next, and puts there what
            // is there by then.
            let to = self.release_to_go_back_to(environment, under_way.release, fallback, to).await?.release;
            let own = self.back(key, to.clone(), under_way.release, by).await?;
            let number = Some(to.number);
            match self.command(environment, |done| Command::Rollback { by: by_whom, to: number, done }).await {
                // It has just ended, or goes back already.
                Ok(()) | Err(DeployError::NotNow(_)) => return Ok(own),
                Err(error) => return Err(error),
            }
        }
        let row = self.shared.store.environment(environment).await?;
        let to = self.release_to_go_back_to(environment, row.current, row.verified, to).await?;
        let key = key.unwrap_or_else(|| format!("rollback/{environment}/{:016x}", random()));
        self.back(key, to.release, row.current, by).await
    }

    /// Asks for a deploy of an earlier release.
    async fn back(
        &self,
        key: String,
        release: Release,
        from: Option<u64>,
        by: &Asker,
    ) -> Result<DeployId, DeployError> {
        let environment = release.environment.clone();
        let details = serde_json::json!({ "from": from, "to": release.number });
        let subject = format!("environment {environment}");
        let request = DeployRequest {
            environment,
            kind: DeployKind::Rollback,
            key,
            provenance: release.provenance.clone(),
            started_by: vec![by.who().to_owned()],
            step: None,
            images: release.images.clone(),
            release: Some(release.number),
            promoted_from: None,
            by: by.who().to_owned(),
            skip_watch: false,
        };
        self.request(request, Some(Act { by: by.clone(), kind: ActKind::Rollback, subject, details })).await
    }

    async fn release_to_go_back_to(
        &self,
        environment: &EnvironmentName,
        current: Option<u64>,
        verified: Option<u64>,
        to: Option<u64>,
    ) -> Result<ReleaseRow, DeployError> {
        let hint = format!("hint: mainstay releases {environment}");
        if let Some(number) = to {
            let release = self.shared.store.release(environment, number).await?;
            let release = release
                .ok_or_else(|| DeployError::Unknown(format!("find release {number} of {environment}\n{hint}")))?;
            if release.verified_at.is_none() {
                let why = format!("roll {environment} back to release {number}: it was never verified\n{hint}");
                return Err(DeployError::NotNow(why));
            }
            return Ok(release);
        }
        // The last good one that is not the one that serves.
        if let Some(number) = verified.filter(|number| Some(*number) != current)
            && let Some(release) = self.shared.store.release(environment, number).await?
        {
            return Ok(release);
        }
        let releases = self.shared.store.releases(environment, RELEASES_LOOKED_AT).await?;
        let before = releases.into_iter().find(|row| row.verified_at.is_some() && current > Some(row.release.number));
        before.ok_or_else(|| {
            DeployError::NotNow(format!(
                "roll {environment} back: no verified release came before the one that serves\n{hint}"
            ))
        })
    }

    /// Asks for the release that serves in another environment, or an earlier one of it.
    ///
    /// # Errors
    /// When there is no such release, or it was never verified there.
    pub async fn promote(
        &self,
        environment: &EnvironmentName,
        from: Option<&EnvironmentName>,
        number: Option<u64>,
        now: bool,
        by: &Asker,
    ) -> Result<DeployId, DeployError> {
        let setup = self.history(environment).await?;
        let from = from.or(setup.config.promote_from.as_ref()).ok_or_else(|| {
            DeployError::Unknown(format!(
                "promote to {environment}: from which environment?\nhint: `--from ENV`, or `promote-from` of {environment} in mainstay.yml"
            ))
        })?;
        if from == environment {
            return Err(DeployError::Unknown(format!(
                "promote {from} to itself\nhint: mainstay rollback {environment} --to N"
            )));
        }
        self.history(from).await?;
        let stored = self.shared.store.environment(from).await?;
        let Some(number) = number.or(stored.verified) else {
            return Err(DeployError::NotNow(format!(
                "promote {from} to {environment}: nothing was verified in {from} yet\nhint: mainstay releases {from}"
            )));
        };
        let row = self.shared.store.release(from, number).await?.ok_or_else(|| {
            DeployError::Unknown(format!("find release {number} of {from}\nhint: mainstay releases {from}"))
        })?;
        if row.verified_at.is_none() {
            return Err(DeployError::NotNow(format!(
                "promote release {number} of {from}: it was never verified there\nhint: mainstay releases {from} shows which were"
            )));
        }
        let request = DeployRequest {
            environment: environment.clone(),
            kind: DeployKind::Promote,
            key: format!("promote/{environment}/{:016x}", random()),
            provenance: row.release.provenance.clone(),
            started_by: vec![by.who().to_owned()],
            step: None,
            images: row.release.images.clone(),
            release: None,
            promoted_from: Some((from.clone(), number)),
            by: by.who().to_owned(),
            skip_watch: now,
        };
        let details = serde_json::json!({ "from": from, "release": number });
        let subject = format!("environment {environment}");
        self.request(request, Some(Act { by: by.clone(), kind: ActKind::Promote, subject, details })).await
    }

    /// Nothing is deployed to the environment until the hold is released.
    ///
    /// # Errors
    /// When there is no such environment.
    pub async fn hold(&self, environment: &EnvironmentName, reason: String, by: &Asker) -> Result<(), DeployError> {
        self.shared.setup(environment)?;
        let new = NewHold {
            environment: environment.clone(),
            revision: None,
            good: None,
            deploy: None,
            reason: reason.clone(),
            by: by.who().to_owned(),
            strict: true,
        };
        let subject = format!("environment {environment}");
        let details = serde_json::json!({ "reason": reason });
        self.shared.store.make_hold(new, Act { by: by.clone(), kind: ActKind::Hold, subject, details }).await?;
        self.shared.announce();
        Ok(())
    }

    /// Lifts every hold of an environment, and says that a person has seen to it; how many holds there were.
    ///
    /// # Errors
    /// When there is no such environment.
    pub async fn release_hold(&self, environment: &EnvironmentName, by: &Asker) -> Result<usize, DeployError> {
        self.shared.setup(environment)?;
        let act = |details| Act {
            by: by.clone(),
            kind: ActKind::ReleaseHold,
            subject: format!("environment {environment}"),
            details,
        };
        let store = &self.shared.store;
        let lifted = store.lift_holds(environment, by.who(), act(serde_json::json!({}))).await?;
        if let Some(attention) = store.environment(environment).await?.attention {
            store.clear_attention(environment, act(serde_json::json!({ "attention": attention }))).await?;
        }
        self.shared.announce();
        Ok(lifted)
    }

    /// Puts the release that should serve back.
    ///
    /// # Errors
    /// When nothing was deployed there yet.
    pub async fn repair(&self, environment: &EnvironmentName, by: &Asker) -> Result<DeployId, DeployError> {
        self.history(environment).await?;
        let current = self.shared.store.environment(environment).await?.current;
        let current = current
            .ok_or_else(|| DeployError::NotNow(format!("repair {environment}: nothing was deployed there yet")))?;
        drive::repair(&self.shared, environment, current, by).await
    }

    /// Ends the watch of the deploy under way: it serves, and nobody says that it is good.
    ///
    /// # Errors
    /// When nothing is being watched there.
    pub async fn end_watch(&self, environment: &EnvironmentName, by: &Asker) -> Result<(), DeployError> {
        self.shared.setup(environment)?;
        let by = by.clone();
        self.command(environment, |done| Command::EndWatch { by, done }).await
    }

    /// Stops a deploy that has not begun.
    ///
    /// # Errors
    /// When it has begun or ended.
    pub async fn cancel(&self, id: DeployId, by: &str) -> Result<(), DeployError> {
        let standing = self.shared.standing(id).await?;
        if !matches!(standing.row.status, DeployStatus::Queued | DeployStatus::Waiting) {
            return Err(DeployError::NotNow(format!("stop deploy #{id}: it is {}", standing.row.status)));
        }
        if let Some(approval) = standing.state.approval {
            self.shared.approvals.void(approval, &format!("{by} stopped the deploy")).await?;
        }
        let mut state = standing.state;
        self.shared.note(id, &mut state, DeployEvent::Cancelled { by: by.to_owned() }, Default::default()).await
    }

    /// Makes sure that what is stored of an environment is all there is to know of it.
    async fn history(&self, environment: &EnvironmentName) -> Result<Arc<Setup>, DeployError> {
        let setup = self.shared.setup(environment)?;
        match self.shared.history(&setup, environment).await? {
            Some(why) => Err(DeployError::Refused(format!("decide about {environment}: {why}"))),
            None => Ok(setup),
        }
    }

    async fn command(
        &self,
        environment: &EnvironmentName,
        make: impl FnOnce(oneshot::Sender<Result<(), DeployError>>) -> Command,
    ) -> Result<(), DeployError> {
        let (done, answer) = oneshot::channel();
        let gone = || DeployError::NotNow(format!("reach {environment}: the daemon is stopping"));
        drive::ensure(&self.shared, environment);
        self.shared.drivers().get(environment).ok_or_else(gone)?.send(make(done)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Releases looked through for the last good one before the one that serves.
const RELEASES_LOOKED_AT: u32 = 200;

/// What makes the key of a request that no step makes different from all others.
fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| jiff::Timestamp::now().as_nanosecond() as u64)
}

impl Shared {
    fn setups(&self) -> Arc<Setups> {
        Arc::clone(&self.setups.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn setup(&self, name: &EnvironmentName) -> Result<Arc<Setup>, DeployError> {
        let setups = self.setups();
        setups.environments.get(name).cloned().ok_or_else(|| {
            let names: Vec<_> = setups.environments.keys().map(EnvironmentName::as_str).collect();
            let hint = if names.is_empty() {
                "mainstay.yml has no `environments`".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            DeployError::Unknown(format!("find the environment `{name}`\nhint: {hint}"))
        })
    }

    fn drivers(&self) -> MutexGuard<'_, BTreeMap<EnvironmentName, mpsc::UnboundedSender<Command>>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reverts(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.reverts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    async fn standing(&self, id: DeployId) -> Result<Standing, DeployError> {
        let found = self.store.load_deploy(id).await?;
        let (row, stored) = found.ok_or_else(|| DeployError::Unknown(format!("find deploy #{id}")))?;
        let mut state = DeployState::new(row.request.kind);
        let mut events = Vec::new();
        for one in stored {
            let event: DeployEvent = serde_json::from_str(&one.event)?;
            state.apply(&event, one.at)?;
            events.push((one.at, event));
        }
        Ok(Standing { row, state, events })
    }

    /// Moves a deploy by one event: recorded with what it changes, then told.
    async fn note(
        &self,
        id: DeployId,
        state: &mut DeployState,
        event: DeployEvent,
        effects: crate::store::Effects,
    ) -> Result<(), DeployError> {
        let at = jiff::Timestamp::now();
        let mut next = state.clone();
        next.apply(&event, at)?;
        let row = crate::store::DeployEventRow { seq: next.seq, at, event: serde_json::to_string(&event)? };
        crate::failpoint!("deploy.note.before");
        self.store.append_deploy(id, row, next.status, effects).await?;
        crate::failpoint!("deploy.note.after");
        *state = next;
        self.announce();
        Ok(())
    }
}
