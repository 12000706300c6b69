//! One deploy carried from where it stands to its end: the target is brought to the release, asked, watched, and taken
//! back when it turns bad. A rollback goes through the same calls with an earlier release.

use super::asked::Asked;
use super::candidate::short;
use super::drive::{Ears, Heard};
use super::health::judge::Verdict;
use super::owner::Heart;
use super::state::{DeployEvent, DeployState};
use super::target::{Apply, TargetError};
use super::tell::Outgoing;
use super::{Command, DeployError, Setup, Shared, host};
use crate::model::deploy::{DeployKind, DeployStatus, Observation, Release};
use crate::model::{Asker, EnvironmentName};
use crate::notify::message::{Back, DriftStage};
use crate::store::{Act, ActKind, DeployRow, Effects, NewHold, StoreError, Taken};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Pause before a target that does not answer is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What was lost under way is begun anew so often: once for each of a few deaths in a row of machine and daemon.
const LOST_TRIES: u32 = 3;
/// A release is put back with at least this much time, however short the environment's own.
const BACK_WITHIN: Duration = Duration::from_secs(120);

/// How carrying a deploy came to a stop.
pub(super) enum Stopped {
    /// It ended.
    Ended,
    /// Another process has the environment; to be looked at again after this long.
    NotOurs(Duration),
    /// The daemon stops.
    Stopping,
}

/// Why a phase was left before its end.
enum Cut {
    Stopping,
    LeaseLost,
    Broken(DeployError),
    /// The phase no longer fits the state: look again.
    Changed,
}

impl<E: Into<DeployError>> From<E> for Cut {
    fn from(error: E) -> Self {
        Cut::Broken(error.into())
    }
}

pub(super) struct Carrier<'a> {
    shared: &'a Arc<Shared>,
    setup: Arc<Setup>,
    name: EnvironmentName,
    row: DeployRow,
    state: DeployState,
    ears: &'a mut Ears,
}

impl<'a> Carrier<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        setup: Arc<Setup>,
        row: DeployRow,
        state: DeployState,
        ears: &'a mut Ears,
    ) -> Self {
        Carrier { shared, setup, name: row.request.environment.clone(), row, state, ears }
    }

    /// Goes on with a deploy that has begun, to its end.
    pub(super) async fn carry(mut self) -> Result<Stopped, DeployError> {
        let lease = self.setup.config.lease.0;
        let dead = super::owner::is_dead;
        match self.shared.store.take_lease(&self.name, self.row.id, &self.shared.owner, lease, dead).await? {
            Taken::Yes => {}
            Taken::Over(before) => {
                tracing::warn!(environment = %self.name, deploy = %self.row.id, from = before.owner, "took over the lease of a dead owner");
            }
            Taken::No(held) => {
                let left = held.until.duration_since(Timestamp::now()).max(SignedDuration::from_millis(100));
                return Ok(Stopped::NotOurs(left.unsigned_abs()));
            }
        }
        let mut heart = Heart::beat(self.shared, &self.name, self.row.id, lease);
        while !self.state.status.is_final() {
            match self.step(&mut heart.lost).await {
                Ok(()) | Err(Cut::Changed) => {}
                Err(Cut::Stopping) => return Ok(Stopped::Stopping),
                Err(Cut::LeaseLost) => {
                    tracing::error!(environment = %self.name, deploy = %self.row.id, "lost the lease: another process goes on with it");
                    return Ok(Stopped::NotOurs(lease));
                }
                Err(Cut::Broken(DeployError::Store(StoreError::Conflict(why)))) => {
                    tracing::error!(environment = %self.name, deploy = %self.row.id, why, "another process goes on with it");
                    return Ok(Stopped::NotOurs(lease));
                }
                Err(Cut::Broken(error)) => return Err(error),
            }
        }
        Ok(Stopped::Ended)
    }

    async fn step(&mut self, lost: &mut watch::Receiver<bool>) -> Result<(), Cut> {
        if self.state.bad.is_some() && self.state.status != DeployStatus::RollingBack {
            return self.turn_back().await;
        }
        match self.state.status {
            DeployStatus::Applying => self.bring(lost).await,
            DeployStatus::Checking | DeployStatus::Watching => self.watch(lost).await,
            DeployStatus::RollingBack => self.put_back(lost).await,
            _ => Ok(()),
        }
    }

    /// The target is brought to the release.
    async fn bring(&mut self, lost: &mut watch::Receiver<bool>) -> Result<(), Cut> {
        let release = self.release(self.state.release).await?;
        if !self.state.prepared {
            let variables = host::environment(&release, self.state.fallback);
            let before = self.setup.config.hooks.before.clone();
            let done = self.meanwhile(lost, async move { host::run(&before, &variables).await }).await?;
            if let Err(why) = done {
                return Ok(self.turned_bad(format!("the hook before it failed: {why}"), None).await?);
            }
            self.note(DeployEvent::Prepared, Effects::default()).await?;
        }
        let within = self.setup.config.timeout.0;
        match self.apply(lost, release, "up", within).await? {
            Ok(observed) => {
                let number = self.state.release.unwrap_or_default();
                let effects = Effects { current: Some((number, Some(observed.clone()))), ..Effects::default() };
                Ok(self.note(DeployEvent::Applied { observed }, effects).await?)
            }
            Err(why) => Ok(self.turned_bad(why, None).await?),
        }
    }

    /// Applies a release until it serves, or says in words why it does not.
    async fn apply(
        &mut self,
        lost: &mut watch::Receiver<bool>,
        release: Release,
        direction: &str,
        within: Duration,
    ) -> Result<Result<Observation, String>, Cut> {
        let setup = Arc::clone(&self.setup);
        let name = format!("mainstay-{}-d{}-{direction}", self.shared.store.instance(), self.row.id);
        let (id, environment) = (self.row.id, self.name.clone());
        let work = async move {
            let secrets = setup.config.secrets();
            let progress = |words: String| tracing::info!(%environment, deploy = %id, "{words}");
            let until = tokio::time::Instant::now() + within;
            let (first, mut lost_tries) = (name.clone(), 0);
            let mut name = name;
            loop {
                let left = until.saturating_duration_since(tokio::time::Instant::now());
                let apply =
                    Apply { release: &release, secrets: &secrets, name: &name, timeout: left, progress: &progress };
                crate::failpoint!("deploy.apply.before");
                let applied = setup.target.apply(&apply).await;
                crate::failpoint!("deploy.apply.after");
                let error = match applied {
                    Ok(()) => match setup.target.observe().await {
                        Ok(observed) => return Ok(observed),
                        Err(error) => error,
                    },
                    Err(error) => error,
                };
                if matches!(error, TargetError::Lost(_)) && lost_tries < LOST_TRIES {
                    tracing::warn!(%environment, deploy = %id, %error, "the target is brought to the release anew");
                    lost_tries += 1;
                    name = format!("{first}-{}", lost_tries + 1);
                    continue;
                }
                let passing = matches!(error, TargetError::Unreachable { .. });
                if !passing || until <= tokio::time::Instant::now() + AGAIN_AFTER {
                    return Err(error.to_string());
                }
                tracing::warn!(%environment, deploy = %id, %error, "the target does not answer; trying again");
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        };
        self.meanwhile(lost, work).await
    }

    /// The health rules are asked until all have held, and then until the watch is over.
    async fn watch(&mut self, lost: &mut watch::Receiver<bool>) -> Result<(), Cut> {
        let since = self.state.applied_at.unwrap_or_else(Timestamp::now);
        let mut asked = self.ask(since).await?;
        loop {
            if self.state.status == DeployStatus::Checking && asked.judge.verdict(Timestamp::now()) == Verdict::Healthy
            {
                asked.store(self.shared).await?;
                self.became_healthy(lost).await?;
            }
            let over = self.state.healthy_at.map(|at| at + self.setup.config.watch.0);
            if let Some(over) = over
                && self.state.status == DeployStatus::Watching
                && (self.row.request.skip_watch || over <= Timestamp::now())
            {
                return Ok(self.watch_is_over().await?);
            }
            if let Verdict::Bad { why } = asked.judge.verdict(Timestamp::now()) {
                asked.store(self.shared).await?;
                return Ok(self.turned_bad(why, None).await?);
            }
            let next = over.map_or(LOOK_EVERY, |over| {
                over.duration_since(Timestamp::now()).max(SignedDuration::ZERO).unsigned_abs().min(LOOK_EVERY)
            });
            let answers = &mut asked.answers;
            let heard =
                self.ears.listen(lost, async { tokio::time::timeout(next, answers.recv()).await.ok().flatten() });
            match heard.await {
                Heard::Done(Some(probe)) => {
                    let news = !probe.good || self.state.status == DeployStatus::Checking;
                    asked.take(self.shared, probe, news).await?;
                }
                Heard::Done(None) => asked.store(self.shared).await?,
                Heard::Command(command) => {
                    asked.store(self.shared).await?;
                    self.obey(command).await?;
                    if self.state.bad.is_some() || self.state.status.is_final() {
                        return Err(Cut::Changed);
                    }
                }
                Heard::Woken => self.admit_others().await?,
                Heard::LeaseLost => return Err(Cut::LeaseLost),
                Heard::Stopping => return Err(Cut::Stopping),
            }
        }
    }

    async fn became_healthy(&mut self, lost: &mut watch::Receiver<bool>) -> Result<(), Cut> {
        let release = self.release(self.state.release).await?;
        let lines = match self.row.request.kind {
            DeployKind::Rollback => self.setup.config.hooks.rollback.clone(),
            _ => self.setup.config.hooks.after.clone(),
        };
        let variables = host::environment(&release, self.state.fallback);
        if let Err(why) = self.meanwhile(lost, async move { host::run(&lines, &variables).await }).await? {
            return Ok(self.turned_bad(format!("the hook after it failed: {why}"), None).await?);
        }
        Ok(self.note(DeployEvent::Healthy, Effects::default()).await?)
    }

    async fn watch_is_over(&mut self) -> Result<(), DeployError> {
        let number = self.state.release.unwrap_or_default();
        if self.row.request.skip_watch {
            let by = self.row.request.by.clone();
            return self.end_unverified(by, Vec::new()).await;
        }
        // What is good for good lifts the holds of what it contains: a person let it in, or it took them back.
        let lift = self.holds_it_contains().await?;
        let lift = lift.into_iter().map(|hold| (hold, "mainstay".to_owned(), format!("release {number} was verified")));
        let effects = Effects {
            verified: Some(number),
            attention: Some(None),
            lift: lift.collect(),
            frees: true,
            messages: self.news(DeployStatus::Verified, None).await?,
            ..Effects::default()
        };
        self.note(DeployEvent::Verified, effects).await
    }

    async fn end_unverified(&mut self, by: String, acts: Vec<Act>) -> Result<(), DeployError> {
        let messages = self.news(DeployStatus::Unverified, None).await?;
        let effects = Effects { frees: true, acts, messages, ..Effects::default() };
        self.note(DeployEvent::WatchEnded { by }, effects).await
    }

    /// Records that it is bad, and holds its revision.
    async fn turned_bad(&mut self, why: String, by: Option<(&Asker, u64)>) -> Result<(), DeployError> {
        tracing::warn!(environment = %self.name, deploy = %self.row.id, why, "the release turned bad");
        let from = &self.row.request.provenance;
        // What never touched the target says nothing about the revision.
        let held = matches!(self.row.request.kind, DeployKind::Deploy | DeployKind::Promote) && self.state.prepared;
        let (by, to) = (by.map(|(by, _)| by), by.map(|(_, to)| to));
        let strict = held && !self.holds_it_contains().await?.is_empty();
        let good = match self.state.fallback {
            Some(number) => self.shared.store.release(&self.name, number).await?,
            None => None,
        };
        let good = good.filter(|row| row.release.provenance.repo == from.repo).map(|row| row.release.provenance.commit);
        let same = good.as_ref() == Some(&from.commit);
        let hold = (held && !same).then(|| NewHold {
            environment: self.name.clone(),
            revision: Some((from.repo.clone(), from.commit.clone())),
            good,
            deploy: Some(self.row.id),
            reason: why.clone(),
            by: by.map_or("mainstay", Asker::who).to_owned(),
            strict,
        });
        let acts = by.map(|by| Act {
            by: by.clone(),
            kind: ActKind::Rollback,
            subject: format!("environment {}", self.name),
            details: serde_json::json!({ "deploy": self.row.id, "from": self.state.release }),
        });
        let effects = Effects { hold, acts: acts.into_iter().collect(), ..Effects::default() };
        let by = by.map(|by| by.who().to_owned());
        self.note(DeployEvent::TurnedBad { why, by, to }, effects).await
    }

    /// Decides what follows from being bad.
    async fn turn_back(&mut self) -> Result<(), Cut> {
        let by_person = self.state.bad_by.is_some();
        if !self.state.prepared {
            return Ok(self.fail("nothing was changed").await?);
        }
        if self.row.request.kind == DeployKind::Rollback {
            return Ok(self.fail("a rollback is not rolled back").await?);
        }
        if !self.setup.config.rollback.auto && !by_person {
            return Ok(self.fail("`rollback.auto` is off: nothing is put back").await?);
        }
        let Some(to) = self.state.fallback else {
            return Ok(self.fail("there is no verified release to go back to").await?);
        };
        if let Some(why) = self.shared.schema_bars(&self.setup, &self.name, to).await? {
            return Ok(self.fail(&why).await?);
        }
        let details = serde_json::json!({ "deploy": self.row.id, "from": self.state.release, "to": to });
        let subject = format!("environment {}", self.name);
        let act = Act { by: Asker::daemon(), kind: ActKind::Rollback, subject, details };
        let effects = Effects { acts: if by_person { Vec::new() } else { vec![act] }, ..Effects::default() };
        Ok(self.note(DeployEvent::RollingBack { to }, effects).await?)
    }

    /// The release before is put back, and asked.
    async fn put_back(&mut self, lost: &mut watch::Receiver<bool>) -> Result<(), Cut> {
        let number = self.state.fallback.unwrap_or_default();
        let release = self.release(Some(number)).await?;
        if self.state.put_back_at.is_none() {
            let within = self.setup.config.timeout.0.max(BACK_WITHIN);
            match self.apply(lost, release.clone(), "back", within).await? {
                Ok(observed) => {
                    let effects = Effects { current: Some((number, Some(observed.clone()))), ..Effects::default() };
                    self.note(DeployEvent::PutBack { observed }, effects).await?;
                }
                Err(why) => {
                    return Ok(self.rollback_failed(format!("putting release {number} back failed: {why}")).await?);
                }
            }
        }
        let mut asked = self.ask(self.state.put_back_at.unwrap_or_else(Timestamp::now)).await?;
        let verdict = loop {
            match asked.judge.verdict(Timestamp::now()) {
                Verdict::Pending => {}
                verdict => break verdict,
            }
            let answers = &mut asked.answers;
            let next = self.meanwhile(lost, async {
                let next = tokio::time::timeout(LOOK_EVERY, answers.recv()).await.ok().flatten();
                (next, answers)
            });
            if let (Some(probe), _) = next.await? {
                asked.take(self.shared, probe, false).await?;
            }
        };
        asked.store(self.shared).await?;
        if let Verdict::Bad { why } = verdict {
            let why = format!("release {number} was put back and is not well either: {why}");
            return Ok(self.rollback_failed(why).await?);
        }
        let variables = host::environment(&release, self.state.release);
        let lines = self.setup.config.hooks.rollback.clone();
        if let Err(why) = self.meanwhile(lost, async move { host::run(&lines, &variables).await }).await? {
            let why = format!("release {number} serves again, but the hook after the rollback failed: {why}");
            return Ok(self.rollback_failed(why).await?);
        }
        let why = self.state.why.clone();
        let effects = Effects {
            attention: Some(None),
            frees: true,
            messages: self.news(DeployStatus::RolledBack, why).await?,
            ..Effects::default()
        };
        Ok(self.note(DeployEvent::RolledBack, effects).await?)
    }

    /// Ends it with nothing put back.
    async fn fail(&mut self, why: &str) -> Result<(), DeployError> {
        let words = format!("deploy #{}: {}; {why}", self.row.id, self.state.why.as_deref().unwrap_or_default());
        let status = match self.row.request.kind {
            DeployKind::Rollback => DeployStatus::RollbackFailed,
            _ => DeployStatus::Failed,
        };
        let untouched = !self.state.prepared;
        let effects = Effects {
            attention: (!untouched).then(|| Some(words.clone())),
            frees: true,
            messages: self.news(status, Some(words)).await?,
            ..Effects::default()
        };
        self.note(DeployEvent::Failed { why: why.to_owned() }, effects).await
    }

    async fn rollback_failed(&mut self, why: String) -> Result<(), DeployError> {
        let words = format!("deploy #{}: {}; {why}", self.row.id, self.state.why.as_deref().unwrap_or_default());
        tracing::error!(environment = %self.name, deploy = %self.row.id, why, "the rollback failed: a person has to act");
        let status = DeployStatus::RollbackFailed;
        let effects = Effects {
            attention: Some(Some(words.clone())),
            frees: true,
            messages: self.news(status, Some(words)).await?,
            ..Effects::default()
        };
        self.note(DeployEvent::RollbackFailed { why }, effects).await
    }

    /// What people are told of its end.
    async fn news(&self, status: DeployStatus, why: Option<String>) -> Result<Vec<Outgoing>, DeployError> {
        let (id, request, release) = (self.row.id, &self.row.request, self.state.release);
        let stage = match status {
            DeployStatus::Verified | DeployStatus::Unverified => Some(DriftStage::Repaired),
            DeployStatus::Failed | DeployStatus::RollbackFailed => Some(DriftStage::RepairFailed),
            _ => None,
        };
        if let Some(stage) = stage.filter(|_| request.kind == DeployKind::Repair && !self.state.drift.is_empty()) {
            let (key, drift) = (format!("deploy/{id}/{status}"), self.state.drift.clone());
            return Ok(self.shared.told_of_drift(&key, &self.name, release.unwrap_or_default(), drift, stage, why));
        }
        let (bad, to) = match request.kind {
            DeployKind::Rollback => (self.state.instead, release),
            _ if matches!(status, DeployStatus::RolledBack | DeployStatus::RollbackFailed) => {
                (release, self.state.fallback)
            }
            _ => (None, None),
        };
        let back = match (self.named(bad).await?, self.named(to).await?) {
            (Some((bad, bad_what)), Some((to, to_what))) if bad != to => Some(Back { bad, bad_what, to, to_what }),
            _ => None,
        };
        Ok(self.shared.told(id, request, release, (status, why), back))
    }

    /// A release and what it is: `shop 1a2b3c4`.
    async fn named(&self, number: Option<u64>) -> Result<Option<(u64, String)>, DeployError> {
        let Some(number) = number else { return Ok(None) };
        let row = self.shared.store.release(&self.name, number).await?;
        Ok(row.map(|row| {
            let from = &row.release.provenance;
            (number, format!("{} {}", from.repo, short(&from.commit)))
        }))
    }

    /// Waits for work; commands are answered meanwhile, and one that makes the work useless cuts it off.
    async fn meanwhile<T>(
        &mut self,
        lost: &mut watch::Receiver<bool>,
        work: impl Future<Output = T>,
    ) -> Result<T, Cut> {
        let mut work = std::pin::pin!(work);
        loop {
            match self.ears.listen(lost, &mut work).await {
                Heard::Done(value) => return Ok(value),
                Heard::Command(command) => {
                    self.obey(command).await?;
                    if self.state.bad.is_some() && self.state.status != DeployStatus::RollingBack {
                        return Err(Cut::Changed);
                    }
                }
                Heard::Woken => self.admit_others().await?,
                Heard::LeaseLost => return Err(Cut::LeaseLost),
                Heard::Stopping => return Err(Cut::Stopping),
            }
        }
    }

    async fn obey(&mut self, command: Command) -> Result<(), Cut> {
        match command {
            Command::Rollback { by, to, done } => {
                let answer = self.roll_back_for(&by, to).await;
                reply(done, answer)
            }
            Command::EndWatch { by, done } => {
                let answer = match self.state.status {
                    DeployStatus::Watching if self.state.bad.is_none() => {
                        let act = Act {
                            by: by.clone(),
                            kind: ActKind::EndWatch,
                            subject: format!("environment {}", self.name),
                            details: serde_json::json!({ "deploy": self.row.id }),
                        };
                        self.end_unverified(by.who().to_owned(), vec![act]).await
                    }
                    other => Err(DeployError::NotNow(format!(
                        "end the watch of {}: deploy #{} is {other}",
                        self.name, self.row.id
                    ))),
                };
                reply(done, answer)
            }
        }
    }

    async fn roll_back_for(&mut self, by: &Asker, to: Option<u64>) -> Result<(), DeployError> {
        let refuse = |why: &str| Err(DeployError::NotNow(format!("roll {} back: {why}", self.name)));
        if self.state.bad.is_some() || self.row.request.kind == DeployKind::Rollback {
            return refuse(&format!("deploy #{} is doing that", self.row.id));
        }
        let Some(target) = to.or(self.state.fallback) else {
            return refuse("nothing was verified there before");
        };
        if self.state.release == Some(target) || self.shared.store.release(&self.name, target).await?.is_none() {
            return refuse(&format!("release {target} is not one to go back to"));
        }
        self.turned_bad(format!("{} asked for the rollback", by.who()), Some((by, target))).await
    }

    async fn admit_others(&mut self) -> Result<(), Cut> {
        let wants_it_now = super::drive::admit_waiting(self.shared, &self.setup, &self.name, true).await?.wants_it_now;
        if let Some(by) = wants_it_now
            && self.state.status == DeployStatus::Watching
            && self.state.bad.is_none()
        {
            self.end_unverified(by, Vec::new()).await?;
            return Err(Cut::Changed);
        }
        Ok(())
    }

    async fn ask(&self, since: Timestamp) -> Result<Asked, DeployError> {
        Asked::begin(self.shared, &self.setup, self.row.id, since, self.state.restarts).await
    }

    /// Holds in force of revisions that this deploy's commit contains, itself among them.
    async fn holds_it_contains(&self) -> Result<Vec<u64>, DeployError> {
        let from = &self.row.request.provenance;
        let Some(mirror) = self.shared.setups().mirrors.get(&from.repo).cloned() else { return Ok(Vec::new()) };
        let holds = self.shared.store.holds(&self.name).await?;
        let (repo, commit) = (from.repo.clone(), from.commit.clone());
        let contained = tokio::task::spawn_blocking(move || {
            let inside = holds.into_iter().filter(|hold| {
                let Some((held_repo, held)) = &hold.revision else { return false };
                *held_repo == repo && (*held == commit || mirror.is_ancestor(held, &commit).unwrap_or(false))
            });
            inside.map(|hold| hold.id).collect()
        });
        contained.await.map_err(|error| DeployError::NotNow(format!("read the history: {error}")))
    }

    async fn release(&self, number: Option<u64>) -> Result<Release, DeployError> {
        let number = number.unwrap_or_default();
        let row = self.shared.store.release(&self.name, number).await?;
        Ok(row.ok_or_else(|| DeployError::Unknown(format!("find release {number} of {}", self.name)))?.release)
    }

    async fn note(&mut self, event: DeployEvent, effects: Effects) -> Result<(), DeployError> {
        let effects = Effects { owner: Some(self.shared.owner.clone()), ..effects };
        self.shared.note(self.row.id, &mut self.state, event, effects).await
    }
}

/// At least this often the clock is looked at while rules are asked.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What is wrong with the request is for whoever asked; what is wrong with us ends the carrying.
fn reply(done: oneshot::Sender<Result<(), DeployError>>, answer: Result<(), DeployError>) -> Result<(), Cut> {
    let _ = done.send(answer);
    Ok(())
}
