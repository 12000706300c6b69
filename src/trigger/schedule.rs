//! Pipelines that run by the clock.
//!
//! Enters: what the pipeline files of the default branch say (through [`Specs`], so that this room does not read
//! them). Leaves: one inbox row per tick. The rule for ticks missed while the daemon was down: the latest one is made up
//! for when it is less than 24 hours old, the others are passed over.

use super::Intake;
use super::intake::blocking;
use crate::model::ids::PipelineName;
use crate::model::{Oid, RepoName};
use crate::store::ScheduleKey;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// Reads the schedules that the pipeline files of a repository's default branch name, each as written. Blocks. Reads
/// the repository as it is now: fetches first. `None` when nothing of it was ever fetched, which whoever looks at it
/// reports; that and an error keep the schedules as they are.
pub type Specs = Arc<dyn Fn(&RepoName) -> Result<Option<Vec<(PipelineName, String)>>, String> + Send + Sync>;
/// The first instant after the given one at which a schedule, as written, is due.
pub type NextAfter = Arc<dyn Fn(&str, Timestamp) -> Option<Timestamp> + Send + Sync>;

/// A missed tick is made up for this long.
const CATCH_UP: SignedDuration = SignedDuration::from_hours(24);
/// The longest sleep: a clock that is set, or a machine that slept, is noticed within it.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// Ticks passed over in one step; every minute for a day is 1,440.
const STEPS_MAX: usize = 2_000;
/// When a repository's files could not be read, they are read again after this long.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// Stores a row whenever a schedule is due, until dropped.
pub async fn run(intake: Arc<Intake>, specs: Specs, next_after: NextAfter) {
    loop {
        refresh(&intake, &specs, &next_after).await;
        if let Err(error) = tick(&intake, &next_after, Timestamp::now()).await {
            tracing::warn!(%error, "failed to take the due schedules");
            // What is due stays due; a store that fails is not asked again at once.
            tokio::time::sleep(SLEEP_MAX).await;
        }
        let pause = match intake.store().next_schedule().await {
            Ok(Some(next)) => {
                let left = Timestamp::now().duration_until(next);
                // A millisecond more, so that the instant is over when we look.
                Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1)
            }
            _ => SLEEP_MAX,
        };
        tokio::select! {
            () = tokio::time::sleep(pause.min(SLEEP_MAX)) => {}
            () = intake.reschedule.notified() => {}
        }
    }
}

/// Reads the schedules of every repository whose files may have changed.
async fn refresh(intake: &Arc<Intake>, specs: &Specs, next_after: &NextAfter) {
    let watched = intake.names();
    if let Err(error) = intake.store().keep_schedules_of(watched.clone()).await {
        tracing::warn!(%error, "failed to forget the schedules of repositories no longer watched");
    }
    for name in intake.take_rescheduled() {
        if !watched.contains(&name) {
            continue;
        }
        let read = blocking({
            let (specs, name) = (Arc::clone(specs), name.clone());
            move || specs(&name)
        })
        .await;
        let found = match read {
            Ok(Ok(Some(found))) => found,
            Ok(unknown) => {
                match unknown {
                    Err(error) => {
                        tracing::warn!(repo = %name, error, "failed to read the schedules of the default branch");
                    }
                    Ok(_) => tracing::debug!(repo = %name, "its schedules are read when it could be fetched"),
                }
                let intake = Arc::clone(intake);
                tokio::spawn(async move {
                    tokio::time::sleep(READ_AGAIN).await;
                    intake.note_schedules(&name);
                });
                continue;
            }
            Err(_) => return,
        };
        let now = Timestamp::now();
        let wanted = found
            .into_iter()
            .filter_map(|(pipeline, spec)| {
                let next = next_after(&spec, now)?;
                Some((pipeline, spec, next))
            })
            .collect();
        if let Err(error) = intake.store().set_schedules(&name, wanted).await {
            tracing::warn!(repo = %name, %error, "failed to store the schedules");
        }
    }
}

/// Takes everything that is due at `now`. Returns how many rows were stored.
///
/// # Errors
/// When the store fails; what was not taken is still due.
pub async fn tick(intake: &Intake, next_after: &NextAfter, now: Timestamp) -> Result<usize, super::IntakeError> {
    let mut stored = 0;
    for (key, due) in intake.store().due_schedules(now).await? {
        let step = step(&key.spec, due, now, next_after);
        let run = match step.run {
            Some(at) => head(intake, &key).await.map(|(git_ref, commit)| (at, git_ref, commit)),
            None => None,
        };
        if step.missed > 0 {
            tracing::info!(repo = %key.repo, pipeline = %key.pipeline, missed = step.missed, "passed over missed ticks");
        }
        if intake.store().accept_scheduled(&key, due, step.next, run).await?.is_some() {
            stored += 1;
            intake.wake();
        }
    }
    Ok(stored)
}

/// The default branch and its commit, as of now; as last seen when the repository does not answer.
async fn head(intake: &Intake, key: &ScheduleKey) -> Option<(String, Oid)> {
    let mirror = intake.repo(&key.repo)?.mirror;
    let found = blocking(move || {
        if let Err(error) = mirror.fetch() {
            tracing::warn!(url = mirror.url(), %error, "a scheduled run uses the commit seen last");
        }
        let found = mirror.resolve("")?;
        Ok::<_, crate::git::GitError>((found.git_ref.unwrap_or_else(|| "HEAD".into()), found.commit))
    })
    .await;
    match found {
        Ok(Ok(found)) => Some(found),
        Ok(Err(error)) => {
            tracing::warn!(repo = %key.repo, pipeline = %key.pipeline, %error, "a scheduled run is passed over");
            None
        }
        Err(_) => None,
    }
}

/// What to do about a schedule that is due.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    /// The tick to run.
    run: Option<Timestamp>,
    /// Ticks passed over.
    missed: usize,
    /// When it is due next.
    next: Timestamp,
}

/// The latest tick up to `now` is run when it is young enough; all before it are passed over.
fn step(spec: &str, due: Timestamp, now: Timestamp, next_after: &NextAfter) -> Step {
    // A schedule that is never due again (30 February) waits for the end of time.
    let next_after = |after| next_after(spec, after).unwrap_or(Timestamp::MAX);
    let oldest = now - CATCH_UP;
    let (mut latest, mut missed) = (due, 0);
    if due < oldest {
        // Skip the days nobody will make up for, in one stride.
        missed = 1;
        match next_after(oldest) {
            first if first <= now => latest = first,
            next => return Step { run: None, missed, next },
        }
    }
    for _ in 0..STEPS_MAX {
        match next_after(latest) {
            next if next <= now => {
                latest = next;
                missed += 1;
            }
            next => return Step { run: Some(latest), missed, next },
        }
    }
    // Denser than once a minute, which five fields cannot say: go on from here.
    Step { run: Some(latest), missed, next: next_after(now) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Every day at three.
    fn daily() -> NextAfter {
        Arc::new(|_, after: Timestamp| {
            let day = SignedDuration::from_hours(24).as_secs();
            let three = SignedDuration::from_hours(3).as_secs();
            let seconds = (after.as_second() - three).div_euclid(day) * day + day + three;
            Timestamp::from_second(seconds).ok()
        })
    }

    #[test]
    fn a_tick_in_time_runs_once() {
        let step = step("", at("2026-11-22T03:00:00Z"), at("2026-11-22T03:00:01Z"), &daily());
        assert_eq!(step, Step { run: Some(at("2026-11-22T03:00:00Z")), missed: 0, next: at("2026-11-23T03:00:00Z") });
    }

    #[test]
    fn of_missed_ticks_the_latest_is_made_up_for_within_a_day() {
        let step = step("", at("2026-11-01T03:00:00Z"), at("2026-11-22T01:00:00Z"), &daily());
        assert_eq!(step.run, Some(at("2026-11-21T03:00:00Z")));
        assert_eq!(step.next, at("2026-11-22T03:00:00Z"));
    }

    #[test]
    fn a_tick_older_than_a_day_is_passed_over() {
        // Once a week.
        let weekly: NextAfter = Arc::new(|_, after| {
            let week = 7 * 24 * 3_600;
            Timestamp::from_second(after.as_second().div_euclid(week) * week + week).ok()
        });
        let due = weekly("", at("2026-11-01T00:00:00Z")).unwrap();
        let now = due + SignedDuration::from_hours(25);
        let step = step("", due, now, &weekly);
        assert_eq!((step.run, step.next), (None, due + SignedDuration::from_hours(7 * 24)));
    }

    #[test]
    fn a_schedule_that_ends_is_left_alone() {
        let never: NextAfter = Arc::new(|_, _| None);
        let due = at("2026-11-01T03:00:00Z");
        assert_eq!(step("", due, due, &never), Step { run: Some(due), missed: 0, next: Timestamp::MAX });
    }
}
