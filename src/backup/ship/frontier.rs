//! When the next frontier is due. No I/O.

use crate::model::{Lsn, Timeline};
use std::time::{Duration, Instant};

/// After something was acknowledged: what a thief or a fault may delete unnoticed is at most what came since.
const CHANGED: Duration = Duration::from_secs(60);
/// When nothing was: an idle server's newest restorable time must go on too, and a frontier is all that says "nothing was
/// written until now". Five minutes are 288 requests a day.
const IDLE: Duration = Duration::from_secs(300);

/// Counts frontiers and knows when the next is due.
#[derive(Debug, Clone)]
pub(super) struct Frontiers {
    /// The number of the next.
    pub(super) number: u64,
    written: Option<(Timeline, Lsn)>,
    at: Option<Instant>,
    began: Instant,
}

impl Frontiers {
    /// After the newest one that is stored, and what it says.
    pub(super) fn after(newest: Option<u64>, says: Option<(Timeline, Lsn)>, now: Instant) -> Frontiers {
        Frontiers { number: newest.map_or(1, |newest| newest + 1), written: says, at: None, began: now }
    }

    /// Whether one is due, when this much is acknowledged. The first one of a writer is due with its first progress, so
    /// that one which is killed every minute leaves them too.
    pub(super) fn due(&self, acknowledged: (Timeline, Lsn), now: Instant) -> bool {
        match self.changed(acknowledged) {
            true => self.at.is_none_or(|at| now.saturating_duration_since(at) >= CHANGED),
            false => now.saturating_duration_since(self.at.unwrap_or(self.began)) >= IDLE,
        }
    }

    /// Whether there is anything to say at a stop.
    pub(super) fn changed(&self, acknowledged: (Timeline, Lsn)) -> bool {
        self.written != Some(acknowledged)
    }

    /// One was written.
    pub(super) fn wrote(&mut self, number: u64, acknowledged: (Timeline, Lsn), now: Instant) {
        (self.number, self.written, self.at) = (number + 1, Some(acknowledged), Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontiers_come_with_progress_and_on_an_idle_server_too() {
        let now = Instant::now();
        let (one, two) = ((Timeline(1), Lsn(1)), (Timeline(1), Lsn(2)));
        let mut frontiers = Frontiers::after(Some(6), None, now);
        assert!(frontiers.due(one, now));
        frontiers.wrote(9, one, now);
        assert_eq!(frontiers.number, 10);
        assert!(
            !frontiers.due(two, now + Duration::from_secs(59)) && frontiers.due(two, now + Duration::from_secs(60))
        );
        assert!(
            !frontiers.due(one, now + Duration::from_secs(299)) && frontiers.due(one, now + Duration::from_secs(300))
        );
    }

    #[test]
    fn a_writer_that_begins_where_the_last_one_ended_does_not_repeat_it() {
        let now = Instant::now();
        let frontiers = Frontiers::after(Some(6), Some((Timeline(1), Lsn(1))), now);
        assert!(!frontiers.due((Timeline(1), Lsn(1)), now) && !frontiers.changed((Timeline(1), Lsn(1))));
        assert!(frontiers.due((Timeline(1), Lsn(1)), now + Duration::from_secs(300)));
    }
}
