//! Looking at the refs ourselves: at start, on a timer, and when somebody asks for it.
//!
//! One small task per repository. A repository on this machine is first asked by its files' times whether any ref can
//! have moved at all, so that hundreds of quiet ones cost next to nothing. What moved is reported like a push; what the
//! inbox knows already is not even listed.

use super::intake::{Entry, blocking};
use super::{Intake, IntakeError, hook, spool};
use crate::git::{self, GitError, RefsFingerprint, RemoteRefs};
use crate::model::trigger::Feeder;
use crate::model::{Oid, RepoName};
use crate::store::{KnownRefs, RefReport, Seen, Verdict};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

/// Looks at the same time. More would only wait for each other's disk or line.
const AT_ONCE: usize = 4;
/// The first pause after a failure is twice this at most: who is looked at once an hour must not wait hours for a look that
/// failed by accident.
const BACK_OFF_MIN: Duration = Duration::from_secs(15);
/// The longest pause after failures.
const BACK_OFF_MAX: Duration = Duration::from_secs(3_600);
/// How long a look is put off when a ref moved a moment ago and a hook is about to tell: it knows more than we see.
const LET_THE_HOOK_SPEAK: Duration = Duration::from_millis(2_200);
/// How often in a row: a repository in which something moves all the time is looked at all the same.
const PUT_OFF_MAX: u32 = 3;

/// Watches all repositories of the intake, until dropped. Follows [`Intake::replace`].
pub async fn run(intake: Arc<Intake>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<RepoName, (Arc<Entry>, AbortHandle)> = BTreeMap::new();
    loop {
        let entries = intake.entries();
        // A replaced list has new entries throughout; whoever belongs to an old one ends.
        running.retain(|_, (entry, task)| {
            let keep = entries.iter().any(|e| Arc::ptr_eq(e, entry));
            if !keep {
                task.abort();
            }
            keep
        });
        for entry in entries {
            let name = entry.repo.name.clone();
            running.entry(name).or_insert_with(|| {
                let task = tasks.spawn(watch(Arc::clone(&intake), Arc::clone(&entry), Arc::clone(&turns)));
                (entry, task)
            });
        }
        loop {
            tokio::select! {
                () = intake.repos_changed.notified() => break,
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended
                        && error.is_panic()
                    {
                        tracing::error!(%error, "the watch over a repository broke off");
                    }
                }
            }
        }
    }
}

async fn watch(intake: Arc<Intake>, entry: Arc<Entry>, turns: Arc<Semaphore>) {
    let name = &entry.repo.name;
    let mut state = State::default();
    let mut failures = 0_u32;
    loop {
        let looked = {
            let Ok(_turn) = turns.acquire().await else { return };
            look(&intake, &entry, &mut state).await
        };
        let pause = match looked {
            Ok(Looked::Later) => Some(LET_THE_HOOK_SPEAK),
            Ok(Looked::Done { moved }) => {
                if failures > 0 {
                    tracing::info!(repo = %name, failures, "the repository answers again");
                }
                if moved > 0 {
                    tracing::info!(repo = %name, moved, "refs moved");
                }
                failures = 0;
                entry.repo.poll.map(jittered)
            }
            Err(error) => {
                // Once per change of state: a forge that is down for a night is one line, not a thousand.
                if failures == 0 {
                    tracing::warn!(repo = %name, %error, "failed to look at the repository's refs");
                }
                failures = failures.saturating_add(1);
                let every = entry.repo.poll.unwrap_or(BACK_OFF_MIN).min(BACK_OFF_MIN);
                Some(jittered(back_off(every, failures)))
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause.unwrap_or(Duration::MAX)) => {}
            () = entry.poll_soon.notified() => state.fingerprint = None,
        }
    }
}

/// Doubles from the usual pause up to an hour.
fn back_off(every: Duration, failures: u32) -> Duration {
    every.saturating_mul(1 << failures.min(20)).clamp(every, BACK_OFF_MAX.max(every))
}

/// A tenth more or less, so that repositories drift apart and a forge is not asked by all at once.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

#[derive(Default)]
struct State {
    fingerprint: Option<RefsFingerprint>,
    put_off: u32,
}

enum Looked {
    /// Something moved so lately that its hook should speak first.
    Later,
    Done {
        moved: usize,
    },
}

/// One look at one repository, for tests and for whoever needs it done now. Returns how many refs moved.
///
/// # Errors
/// When the repository or the store cannot be read.
pub async fn look_now(intake: &Intake, name: &RepoName) -> Result<usize, IntakeError> {
    let entry = intake.entry(name)?;
    match look(intake, &entry, &mut State { fingerprint: None, put_off: PUT_OFF_MAX }).await? {
        Looked::Done { moved } => Ok(moved),
        Looked::Later => Ok(0),
    }
}

async fn look(intake: &Intake, entry: &Entry, state: &mut State) -> Result<Looked, IntakeError> {
    let name = &entry.repo.name;
    let mirror = &entry.repo.mirror;
    let mut fingerprint = None;
    if let Some(path) = mirror.location().local_path().map(std::path::Path::to_owned) {
        let (now, hooked) = blocking(move || (git::fingerprint(&path), path.join(hook::SPOOL_DIR).is_dir())).await?;
        if now.is_some() && now == state.fingerprint {
            return Ok(Looked::Done { moved: 0 });
        }
        if now.is_none() && hooked && state.put_off < PUT_OFF_MAX {
            state.put_off += 1;
            return Ok(Looked::Later);
        }
        state.put_off = 0;
        fingerprint = now;
        // What a hook could not tell comes before what we see: it knows each push and who made it.
        spool::take(intake, name).await?;
    }
    let store = intake.store();
    // What is known is read before the look, so that whatever is accepted in between is noticed by its generation.
    let known = store.known_refs(name).await?;
    let mut listed = {
        let mirror = mirror.clone();
        blocking(move || mirror.list_remote()).await??
    };
    listed.refs.retain(|git_ref, _| entry.repo.watches(git_ref));
    let mut known = match known {
        Some(known) => known,
        None => {
            store.base_line(name, listed.refs.clone(), listed.head.clone()).await?;
            intake.note_schedules(name);
            // What a hook reported before the base line may differ from it.
            store.known_refs(name).await?.unwrap_or_default()
        }
    };
    if listed.head != known.head {
        store.set_head(name, listed.head.clone()).await?;
        intake.note_schedules(name);
    }
    known.refs.retain(|git_ref, _| entry.repo.watches(git_ref));
    let changes = differences(&known, &listed);
    let mut moved = 0;
    if !changes.is_empty() {
        let verdicts = match intake.report(Feeder::Poll, name, None, None, changes).await {
            // Something moved while we looked: the next look sees it as it is.
            Err(IntakeError::Restless) => return Ok(Looked::Later),
            other => other?,
        };
        moved = verdicts.iter().filter(|v| matches!(v, Verdict::Accepted(_) | Verdict::OverLimit(_))).count();
    }
    state.fingerprint = fingerprint;
    Ok(Looked::Done { moved })
}

/// What the inbox does not know yet.
fn differences(known: &KnownRefs, listed: &RemoteRefs) -> Vec<RefReport> {
    let zero = Oid::zero();
    let mut changes = Vec::new();
    for (git_ref, now) in &listed.refs {
        let (old, generation) = known.refs.get(git_ref).map_or((&zero, 0), |(oid, generation)| (oid, *generation));
        if old != now {
            let seen = Some(Seen { oid: now.clone(), generation });
            changes.push(RefReport { git_ref: git_ref.clone(), old: old.clone(), new: now.clone(), seen });
        }
    }
    for (git_ref, (old, generation)) in &known.refs {
        if !old.is_zero() && !listed.refs.contains_key(git_ref) {
            let seen = Some(Seen { oid: zero.clone(), generation: *generation });
            changes.push(RefReport { git_ref: git_ref.clone(), old: old.clone(), new: zero.clone(), seen });
        }
    }
    changes
}

/// True for failures that say more about the line than about the settings; for `doctor`.
pub fn is_passing(error: &IntakeError) -> bool {
    matches!(error, IntakeError::Git(GitError::Unreachable { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour_and_never_fall_below_the_usual_one() {
        let minute = Duration::from_secs(60);
        let pauses: Vec<u64> = (1..=8).map(|n| back_off(minute, n).as_secs() / 60).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(back_off(minute, u32::MAX), BACK_OFF_MAX);
        assert_eq!(back_off(Duration::from_secs(7_200), 3), Duration::from_secs(7_200));
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        let all: Vec<Duration> = (0..200).map(|_| jittered(Duration::from_secs(60))).collect();
        assert!(all.iter().all(|d| (54.0..=66.0).contains(&d.as_secs_f64())), "{all:?}");
        assert!(all.iter().any(|d| *d != all[0]));
    }
}
