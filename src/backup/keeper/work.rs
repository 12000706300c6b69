//! A backup that is under way, and how long a source is left alone after one that failed: the same for base backups and for
//! logical copies.

use super::once::BackUpError;
use crate::model::source_view::{FailedBackup, SourceView};
use jiff::Timestamp;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// After a failure a source is left alone for so long, and longer with each further one.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(300);

/// A backup under way.
pub(super) type Work<T> = JoinHandle<Result<T, BackUpError>>;

/// The end of the backup under way; never, without one.
pub(super) async fn ended<T>(work: &mut Option<Work<T>>) -> Result<T, String> {
    match work {
        None => std::future::pending().await,
        Some(task) => match task.await {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("go on: {error}")),
        },
    }
}

/// Shows that none is under way any more, and how the last one failed, where it did.
pub(super) fn show_end<T>(view: &watch::Sender<SourceView>, ended: &Result<T, String>) {
    let failed = |why| FailedBackup { at: Timestamp::now(), words: format!("failed to {why}") };
    let failed = ended.as_ref().err().map(failed);
    view.send_modify(|view| (view.backup, view.failed_backup) = (None, failed));
}

/// How long a source is left alone: doubled with each failure, and never more than five minutes.
pub(super) fn pause(failures: u32) -> Duration {
    (AGAIN * 2_u32.saturating_pow(failures.min(10))).min(AGAIN_MAX)
}

/// Tries that came to nothing, one after the other.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tries {
    /// When the last of them ended.
    last: Option<Timestamp>,
    failures: u32,
}

impl Tries {
    /// One more has failed.
    pub(super) fn failed(&mut self, now: Timestamp) {
        (self.last, self.failures) = (Some(now), self.failures.saturating_add(1));
    }

    /// Whether it has been left alone for long enough.
    pub(super) fn have_rested(&self, now: Timestamp) -> bool {
        self.last.is_none_or(|at| now.duration_since(at).unsigned_abs() >= pause(self.failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_from_ten_seconds_to_five_minutes() {
        let at = |second: i64| Timestamp::from_second(1_000_000 + second).unwrap();
        let mut tries = Tries::default();
        assert!(tries.have_rested(at(0)));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            tries.failed(at(0));
            pauses.push((0..1_000).find(|second| tries.have_rested(at(*second))).unwrap());
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(pause(0), AGAIN);
    }
}
