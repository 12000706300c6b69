//! The time that approvals go by: it never goes back, whatever the machine's clock does.
//!
//! What has expired stays expired when somebody sets the clock back. While the daemon runs, the time is the later of what
//! the clock says and what it said at the start plus the time since; at the start it is not earlier than the newest thing
//! on record. A clock that is set forward makes things expire early, which refuses, and never grants.

use jiff::{SignedDuration, Timestamp};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A clock that does not go back. Cheap to clone; clones agree.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    anchor: Arc<Mutex<(Timestamp, Instant)>>,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new(Timestamp::now)
    }
}

impl Clock {
    /// Over a clock that may be wrong.
    pub fn new(wall: impl Fn() -> Timestamp + Send + Sync + 'static) -> Clock {
        let anchor = Mutex::new((wall(), Instant::now()));
        Clock { wall: Arc::new(wall), anchor: Arc::new(anchor) }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        let (at, since) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = SignedDuration::try_from(since.elapsed()).ok().and_then(|passed| at.checked_add(passed).ok());
        (self.wall)().max(passed.unwrap_or(at))
    }

    /// From now on it is at least this late: something was on record with that time.
    pub fn not_before(&self, recorded: Timestamp) {
        let now = self.now();
        if recorded > now {
            let back = recorded.duration_since(now);
            tracing::warn!(%recorded, seconds = back.as_secs(), "the clock was set back; approvals go by the later time");
            *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = (recorded, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() {
        let told = Arc::new(Mutex::new("2026-03-01T10:00:00Z".parse::<Timestamp>().unwrap()));
        let wall = Arc::clone(&told);
        let clock = Clock::new(move || *wall.lock().unwrap());
        let began = clock.now();
        *told.lock().unwrap() = "2026-02-01T10:00:00Z".parse().unwrap();
        assert!(clock.now() >= began);
        *told.lock().unwrap() = "2026-03-01T12:00:00Z".parse().unwrap();
        assert_eq!(clock.now(), "2026-03-01T12:00:00Z".parse().unwrap());
        // A clock that ran ahead by mistake for a moment, and was put right.
        *told.lock().unwrap() = "2026-03-01T10:00:01Z".parse().unwrap();
        assert!(clock.now() < "2026-03-01T10:10:00Z".parse().unwrap());
        clock.not_before("2026-03-02T00:00:00Z".parse().unwrap());
        assert!(clock.now() >= "2026-03-02T00:00:00Z".parse().unwrap());
    }
}
