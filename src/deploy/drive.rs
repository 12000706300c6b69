//! One task per environment: it looks at what is stored, does the one thing that is next, and looks again. Being woken only
//! makes it look sooner.

use super::admit::Admission;
use super::candidate::{Candidate, Words, short};
use super::carry::{Carrier, Stopped};
use super::state::{DeployEvent, DeployState};
use super::{Command, DeployError, Setup, Shared, host, points, tell};
use crate::model::deploy::{DeployKind, DeployRequest, DeployStatus, Release};
use crate::model::{Asker, DeployId, EnvironmentName};
use crate::notify::message::DriftStage;
use crate::step::container::turned;
use crate::store::{Act, ActKind, DeployRow, Effects, NewHold, Taken};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// At least this often everything is looked at: bounds what a lost wake-up costs.
const TICK: Duration = Duration::from_secs(2);
/// Pause after an error of our own, such as a full disk.
const AFTER_ERROR: Duration = Duration::from_secs(5);

/// What reaches an environment's task from outside.
pub(super) struct Ears {
    commands: mpsc::UnboundedReceiver<Command>,
    changed: watch::Receiver<u64>,
    approvals: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
}

/// What was heard first.
pub(super) enum Heard<T> {
    /// The work is done.
    Done(T),
    /// A person asks for something.
    Command(Command),
    /// Something is stored that may concern the environment.
    Woken,
    /// Another process has the lease.
    LeaseLost,
    /// The daemon stops.
    Stopping,
}

impl Ears {
    /// Listens while work goes on. Nothing of the work is lost when something else is heard first, if it is polled again.
    pub(super) async fn listen<T>(
        &mut self,
        lost: &mut watch::Receiver<bool>,
        work: impl Future<Output = T>,
    ) -> Heard<T> {
        tokio::select! {
            biased;
            () = turned(&mut self.stop) => Heard::Stopping,
            () = turned(lost) => Heard::LeaseLost,
            Some(command) = self.commands.recv() => Heard::Command(command),
            done = work => Heard::Done(done),
            Ok(()) = self.changed.changed() => Heard::Woken,
            Ok(()) = self.approvals.changed() => Heard::Woken,
        }
    }
}

/// Starts the environment's task when there is none.
pub(super) fn ensure(shared: &Arc<Shared>, name: &EnvironmentName) {
    let mut drivers = shared.drivers();
    if *shared.stop.borrow() || drivers.contains_key(name) {
        return;
    }
    let (sender, commands) = mpsc::unbounded_channel();
    drivers.insert(name.clone(), sender);
    let ears = Ears {
        commands,
        changed: shared.changed.subscribe(),
        approvals: shared.approvals.changes(),
        stop: shared.stop.subscribe(),
    };
    let (shared, name) = (Arc::clone(shared), name.clone());
    tokio::spawn(async move {
        let _end = End { shared: Arc::clone(&shared), name: name.clone() };
        environment(&shared, &name, ears).await;
    });
}

/// Takes the task off the list however it ends.
struct End {
    shared: Arc<Shared>,
    name: EnvironmentName,
}

impl Drop for End {
    fn drop(&mut self) {
        self.shared.drivers().remove(&self.name);
    }
}

async fn environment(shared: &Arc<Shared>, name: &EnvironmentName, mut ears: Ears) {
    let (_never, mut not_lost) = watch::channel(false);
    loop {
        let pause = match look(shared, name, &mut ears).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::error!(environment = %name, %error, "failed to look after the environment; it will be tried again");
                AFTER_ERROR
            }
        };
        match ears.listen(&mut not_lost, tokio::time::sleep(pause)).await {
            Heard::Stopping | Heard::LeaseLost => return,
            Heard::Command(Command::Rollback { done, .. } | Command::EndWatch { done, .. }) => {
                let _ = done.send(Err(DeployError::NotNow(format!("do that: no deploy of {name} is under way"))));
            }
            Heard::Done(()) | Heard::Woken => {}
        }
    }
}

/// Does the next thing; returns how long nothing will be due.
async fn look(shared: &Arc<Shared>, name: &EnvironmentName, ears: &mut Ears) -> Result<Duration, DeployError> {
    let Ok(setup) = shared.setup(name) else {
        // It has left the configuration: what serves there is nobody's business any more.
        return Ok(AFTER_ERROR);
    };
    let open = shared.store.open_deploys(Some(name.clone())).await?;
    if let Some(row) = open.iter().find(|row| row.status.holds_environment()) {
        let state = shared.standing(row.id).await?.state;
        return Ok(match Carrier::new(shared, setup, row.clone(), state, ears).carry().await? {
            Stopped::Ended | Stopped::Stopping => Duration::ZERO,
            Stopped::NotOurs(pause) => pause,
        });
    }
    match shared.history(&setup, name).await {
        Ok(_) => {}
        Err(DeployError::Git(error)) if error.is_passing() => {
            tracing::warn!(environment = %name, %error, "whether there is a history is not known yet; trying again");
            return Ok(AFTER_ERROR);
        }
        Err(error) => return Err(error),
    }
    let admitted = admit_waiting(shared, &setup, name, false).await?;
    if let Some(ready) = admitted.ready {
        return begin(shared, &setup, *ready).await;
    }
    super::record::catch_up(shared, name).await?;
    reconcile(shared, &setup, name).await
}

/// What came of looking at the deploys that have not begun.
#[derive(Default)]
pub(super) struct Admitted {
    /// The one that may begin as soon as the environment is free.
    pub(super) ready: Option<Box<Ready>>,
    /// Somebody does not want to wait for the end of the watch.
    pub(super) wants_it_now: Option<String>,
}

/// A deploy that may begin.
pub(super) struct Ready {
    row: DeployRow,
    state: DeployState,
    candidate: Candidate,
    lifts: Vec<u64>,
}

/// Looks at every deploy that has not begun: refuses, asks people, and finds the one that is next. `busy`: another one has
/// the environment.
pub(super) async fn admit_waiting(
    shared: &Arc<Shared>,
    setup: &Arc<Setup>,
    name: &EnvironmentName,
    busy: bool,
) -> Result<Admitted, DeployError> {
    let open = shared.store.open_deploys(Some(name.clone())).await?;
    let mut waiting: Vec<_> =
        open.iter().filter(|row| matches!(row.status, DeployStatus::Queued | DeployStatus::Waiting)).collect();
    // The way back comes first; then commit order, which is the order of the requests.
    waiting.sort_by_key(|row| (row.request.kind != DeployKind::Rollback, row.id));
    let mut admitted = Admitted::default();
    for row in waiting {
        let mut state = shared.standing(row.id).await?.state;
        if state.status.is_final() || state.status.holds_environment() {
            continue;
        }
        let candidate = match shared.candidate(setup, row, &open).await {
            Ok(candidate) => candidate,
            Err(DeployError::Refused(why) | DeployError::Unknown(why)) => {
                refuse(shared, row, &mut state, why).await?;
                continue;
            }
            Err(DeployError::Git(error)) if error.is_passing() => {
                tracing::warn!(environment = %name, deploy = %row.id, %error, "the repository does not answer; trying again");
                continue;
            }
            Err(DeployError::Git(error)) => {
                refuse(shared, row, &mut state, error.to_string()).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        // What people said yes to is no longer what would be deployed.
        if let Some(asked) = state.approval
            && candidate.approval != Some(asked)
        {
            shared.approvals.void(asked, "what it was asked for has changed").await?;
        }
        match candidate.admission.clone() {
            Admission::Refuse(why) => refuse(shared, row, &mut state, why).await?,
            Admission::Supersede(by) => {
                void(shared, &candidate, &format!("deploy #{by} is newer")).await?;
                shared.note(row.id, &mut state, DeployEvent::Superseded { by }, Effects::default()).await?;
            }
            Admission::Ask(warning) => {
                let words = Words { deploy: Some(row.id), warning, ..Words::default() };
                let request = shared.approval_request(&candidate, &row.request, words).await;
                match request {
                    Ok(Some(request)) => {
                        let approval = shared.approvals.ensure(request).await?;
                        asked(shared, row.id, &mut state, approval).await?;
                    }
                    Ok(None) => {}
                    Err(DeployError::Refused(why)) => refuse(shared, row, &mut state, why).await?,
                    Err(error) => return Err(error),
                }
            }
            Admission::Wait => {
                if let Some(approval) = candidate.approval {
                    asked(shared, row.id, &mut state, approval).await?;
                }
            }
            Admission::Begin { lifts, .. } => {
                if let Some(approval) = candidate.approval {
                    asked(shared, row.id, &mut state, approval).await?;
                }
                if busy && row.request.skip_watch {
                    admitted.wants_it_now.get_or_insert_with(|| row.request.by.clone());
                }
                if admitted.ready.is_none() {
                    admitted.ready = Some(Box::new(Ready { row: row.clone(), state, candidate, lifts }));
                }
            }
        }
    }
    Ok(admitted)
}

async fn asked(
    shared: &Shared,
    id: DeployId,
    state: &mut DeployState,
    approval: crate::model::ApprovalId,
) -> Result<(), DeployError> {
    if state.approval == Some(approval) {
        return Ok(());
    }
    shared.note(id, state, DeployEvent::Asked { approval }, Effects::default()).await
}

async fn refuse(shared: &Shared, row: &DeployRow, state: &mut DeployState, why: String) -> Result<(), DeployError> {
    tracing::info!(environment = %row.request.environment, deploy = %row.id, why, "refused");
    if let Some(approval) = state.approval {
        let first = why.lines().next().unwrap_or_default();
        shared.approvals.void(approval, first).await?;
    }
    let messages = repair_refused(shared, row, &why).await?;
    shared.note(row.id, state, DeployEvent::Refused { why }, Effects { messages, ..Effects::default() }).await
}

/// Nobody waits for the answer where an environment heals itself: people are told, once a day as long as it stays so.
async fn repair_refused(shared: &Shared, row: &DeployRow, why: &str) -> Result<Vec<tell::Outgoing>, DeployError> {
    let request = &row.request;
    let name = &request.environment;
    if request.kind != DeployKind::Repair || request.by != Asker::daemon().who() {
        return Ok(Vec::new());
    }
    let drift = shared.store.environment(name).await?.drift;
    let digest = hex::encode(&Sha256::digest(serde_json::to_string(&drift)?.as_bytes())[..8]);
    let key = format!("drift/{name}/{digest}/{}", Timestamp::now().strftime("%Y-%m-%d"));
    let release = request.release.unwrap_or_default();
    Ok(shared.told_of_drift(&key, name, release, drift, DriftStage::RepairFailed, Some(why.to_owned())))
}

async fn void(shared: &Shared, candidate: &Candidate, why: &str) -> Result<(), DeployError> {
    if let Some(approval) = candidate.approval {
        shared.approvals.void(approval, why).await?;
    }
    Ok(())
}

/// Takes the environment, uses up the approval, makes the release.
async fn begin(shared: &Arc<Shared>, setup: &Arc<Setup>, ready: Ready) -> Result<Duration, DeployError> {
    let Ready { row, mut state, candidate, lifts } = ready;
    let name = &row.request.environment;
    let is_rollback = row.request.kind == DeployKind::Rollback;
    let stored = shared.store.environment(name).await?;
    let made = match row.request.release {
        Some(number) if is_rollback => match shared.schema_bars(setup, name, number).await? {
            Some(why) => Err(DeployError::Refused(why)),
            None => Ok((number, None)),
        },
        Some(number) => Ok((number, None)),
        None => {
            let number = shared.store.next_release(name).await?;
            let release = release_of(setup, &row.request, &candidate, number).await;
            match release {
                Ok(release) => Ok((number, Some(marked(shared, release).await))),
                Err(why) => Err(why),
            }
        }
    };
    let (number, release) = match made {
        Ok(made) => made,
        Err(DeployError::Refused(why)) => {
            refuse(shared, &row, &mut state, why).await?;
            return Ok(Duration::ZERO);
        }
        Err(error) => return Err(error),
    };
    if let Some(approval) = candidate.approval
        && row.request.kind != DeployKind::Repair
        && let Err(error) = shared.approvals.use_for(approval, &candidate.what.binding).await
    {
        // Withdrawn at the last moment, or a role was: the next look tells.
        tracing::info!(environment = %name, deploy = %row.id, %error, "the approval no longer counts");
        return Ok(TICK);
    }
    let lease = setup.config.lease.0;
    match shared.store.take_lease(name, row.id, &shared.owner, lease, super::owner::is_dead).await? {
        Taken::Yes | Taken::Over(_) => {}
        Taken::No(held) => {
            let left = held.until.duration_since(Timestamp::now()).max(SignedDuration::from_millis(100));
            return Ok(left.unsigned_abs());
        }
    }
    let fallback = stored.verified.filter(|verified| *verified != number && !is_rollback);
    let hold = if is_rollback { hold_of_what_served(shared, &row, stored.current, number).await? } else { None };
    let lift = lifts
        .into_iter()
        .map(|hold| (hold, "mainstay".to_owned(), format!("{} takes it back", short(&row.request.provenance.commit))));
    let effects = Effects {
        owner: Some(shared.owner.clone()),
        release,
        release_number: Some(number),
        hold,
        lift: lift.collect(),
        ..Effects::default()
    };
    tracing::info!(environment = %name, deploy = %row.id, release = number, "begins");
    let (instead, drift) = (stored.current, stored.drift);
    let begun = DeployEvent::Begun { release: number, fallback, instead, drift };
    shared.note(row.id, &mut state, begun, effects).await?;
    Ok(Duration::ZERO)
}

async fn release_of(
    setup: &Setup,
    request: &DeployRequest,
    candidate: &Candidate,
    number: u64,
) -> Result<Release, DeployError> {
    let what = &candidate.what;
    let mut release = Release {
        environment: request.environment.clone(),
        number,
        at: Timestamp::now(),
        provenance: request.provenance.clone(),
        images: what.images.clone(),
        target: setup.config.target.kind().to_owned(),
        rendered: what.rendered.text.clone(),
        config_hash: what.config_hash.clone(),
        replicas: what.rendered.replicas.clone(),
        secrets: what.secrets.clone(),
        schema: None,
        recovery_point: "none".to_owned(),
        promoted_from: request.promoted_from.clone(),
    };
    if let Some(schema) = &setup.config.schema {
        let variables = host::environment(&release, None);
        let version = host::run(std::slice::from_ref(&schema.version), &variables).await;
        let version = version.map_err(|why| DeployError::Refused(format!("ask for the schema's version: {why}")))?;
        release.schema = Some(version.trim().to_owned());
    }
    Ok(release)
}

/// The release, with the point right before it. One that could not be marked does not keep a deploy from beginning: it says
/// `none`, and the log says why.
async fn marked(shared: &Shared, mut release: Release) -> Release {
    let points = Arc::clone(&shared.points.read().unwrap_or_else(PoisonError::into_inner));
    let name = points::name(&release.environment, release.number);
    release.recovery_point = points::words(&name, &points.mark(&name).await);
    release
}

/// A person who goes back does not want what served until now to come again by itself.
async fn hold_of_what_served(
    shared: &Shared,
    row: &DeployRow,
    current: Option<u64>,
    to: u64,
) -> Result<Option<NewHold>, DeployError> {
    let name = &row.request.environment;
    let Some(current) = current.filter(|current| *current != to) else { return Ok(None) };
    let Some(served) = shared.store.release(name, current).await? else { return Ok(None) };
    let (served, good) = (served.release.provenance, &row.request.provenance);
    if served.repo != good.repo || served.commit == good.commit {
        return Ok(None);
    }
    Ok(Some(NewHold {
        environment: name.clone(),
        revision: Some((served.repo, served.commit)),
        good: Some(good.commit.clone()),
        deploy: Some(row.id),
        reason: format!("{} rolled it back", row.request.by),
        by: row.request.by.clone(),
        strict: false,
    }))
}

/// Holds what runs against what should; returns how long nothing is due.
async fn reconcile(shared: &Arc<Shared>, setup: &Setup, name: &EnvironmentName) -> Result<Duration, DeployError> {
    let stored = shared.store.environment(name).await?;
    let (Some(current), Some(wanted)) = (stored.current, &stored.observed) else { return Ok(TICK) };
    let every = setup.config.reconcile.0;
    if let Some(looked_at) = stored.looked_at {
        let since = Timestamp::now().duration_since(looked_at);
        // A clock that was set back must not keep it from looking.
        if since >= SignedDuration::ZERO && since.unsigned_abs() < every {
            return Ok((every - since.unsigned_abs()).min(TICK));
        }
    }
    let observed = match setup.target.observe().await {
        Ok(observed) => observed,
        Err(error) => {
            tracing::warn!(environment = %name, %error, "failed to look at the target");
            return Ok(AFTER_ERROR);
        }
    };
    let drift = observed.drift_from(wanted);
    let news = drift != stored.drift && !drift.is_empty();
    let held = shared.store.holds(name).await?.iter().any(|hold| hold.revision.is_none());
    let heals = setup.config.self_heal && stored.attention.is_none() && !held && !drift.is_empty();
    let mut messages = Vec::new();
    if news {
        tracing::warn!(environment = %name, release = current, items = drift.len(), "what runs is not what should");
    }
    // Where it is put back at once, people are told how that went.
    if news && !heals {
        let key = format!("drift/{name}/{current}/{}", Timestamp::now().as_millisecond());
        messages = shared.told_of_drift(&key, name, current, drift.clone(), DriftStage::Found, None);
    }
    let changed = drift != stored.drift;
    shared.store.set_drift(name, drift, messages).await?;
    if changed {
        shared.announce();
    }
    if heals {
        repair(shared, name, current, &Asker::daemon()).await?;
        return Ok(Duration::ZERO);
    }
    Ok(TICK)
}

/// Asks for the release that should serve.
pub(super) async fn repair(
    shared: &Shared,
    name: &EnvironmentName,
    current: u64,
    by: &Asker,
) -> Result<DeployId, DeployError> {
    let row = shared.store.release(name, current).await?;
    let release = row.ok_or_else(|| DeployError::Unknown(format!("find release {current} of {name}")))?.release;
    let request = DeployRequest {
        environment: name.clone(),
        kind: DeployKind::Repair,
        key: format!("repair/{name}/{current}/{:016x}", super::random()),
        provenance: release.provenance,
        started_by: vec![by.who().to_owned()],
        step: None,
        images: release.images,
        release: Some(current),
        promoted_from: None,
        by: by.who().to_owned(),
        skip_watch: false,
    };
    let details = serde_json::json!({ "release": current });
    let act = Act { by: by.clone(), kind: ActKind::Repair, subject: format!("environment {name}"), details };
    let (id, _) = shared.store.create_deploy(request, Some(act)).await?;
    shared.announce();
    Ok(id)
}
