//! How long a restore would take now, and whether a base backup is needed to keep it under the `rto`. No I/O.
//!
//! In: the newest base backup and how much log was written since. What is replayed faster or slower than usual, and a disk that
//! is slower than the store, cannot be seen from here: a restore that was tried says more.

use crate::backup::restore::estimate::{Estimate, Rates, Sizes, estimate};
use std::time::Duration;

/// A backup that stored less says more of the server's checkpoint than of the way to the repository.
const MEASURED_FROM_BYTES: u64 = 64 << 20;
/// What a measurement may say, in bytes a second: an hour for 3.6 GB, and ten times what one disk takes.
const RATE_LEAST: f64 = 1e6;
const RATE_MOST: f64 = 2e9;
/// At this part of the `rto` a base backup is taken: it needs time itself.
const NEAR_PERCENT: u64 = 80;
/// At this part people are told.
const TOLD_PERCENT: u64 = 95;

/// The newest base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    /// Bytes as stored, with all that it builds on.
    pub(super) chain_bytes: u64,
    /// Bytes as stored of itself alone.
    pub(super) own_bytes: u64,
    /// How long it took.
    pub(super) took: Duration,
}

impl Base {
    /// The way to the repository was measured when it was taken. Back it is as long, or shorter: nothing is compressed then.
    fn rates(&self) -> Rates {
        let usual = Rates::default();
        if self.own_bytes < MEASURED_FROM_BYTES {
            return usual;
        }
        let measured = self.own_bytes as f64 / self.took.as_secs_f64().max(1.0);
        Rates { fetch_bytes_per_sec: measured.clamp(RATE_LEAST, RATE_MOST), ..usual }
    }

    /// How long a restore to the newest state takes, with so much log since this base began.
    pub(super) fn restore(&self, log: u64) -> Estimate {
        // How well the log is compressed is not known here: not at all is the most that it can be.
        estimate(self.rates(), Sizes { base: self.chain_bytes, log_stored: log, log })
    }
}

/// Whether a base backup is to be taken so that the `rto` is kept: the log since the last one has made a restore long, and
/// without that log it is not. At most half of the time goes into such backups.
pub(super) fn needs_base(now: Estimate, rto_secs: u64, since_last: Duration, took: Duration) -> bool {
    let near = rto_secs.saturating_mul(NEAR_PERCENT) / 100;
    now.total_secs >= near && !is_hopeless(now, rto_secs) && since_last >= took * 2
}

/// Whether no base backup brings a restore under the `rto`: the base itself takes too long.
pub(super) fn is_hopeless(now: Estimate, rto_secs: u64) -> bool {
    now.total_secs.saturating_sub(now.log_secs) >= rto_secs.saturating_mul(NEAR_PERCENT) / 100
}

/// Whether people are told.
pub(super) fn is_near(total_secs: u64, rto_secs: u64) -> bool {
    total_secs >= rto_secs.saturating_mul(TOLD_PERCENT) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn base(own_gb: u64, secs: u64) -> Base {
        Base { chain_bytes: own_gb * GB, own_bytes: own_gb * GB, took: Duration::from_secs(secs) }
    }

    #[test]
    fn the_way_to_the_repository_is_what_the_last_backup_measured() {
        // 10 GB in 100 s: 100 MB/s, so 100 s for the base.
        assert_eq!(base(10, 100).restore(0), Estimate { base_secs: 100, log_secs: 0, total_secs: 103 });
        // Of a small one nothing is measured, and nothing measured goes beyond its bounds.
        let small = Base { chain_bytes: 8_000_000, own_bytes: 8_000_000, took: Duration::from_secs(60) };
        assert_eq!(small.restore(0).base_secs, 1);
        assert_eq!(base(10, 100_000).restore(0).base_secs, 10_000);
        assert_eq!(base(10, 1).restore(0).base_secs, 5);
        // With all that it builds on.
        let chain = Base { chain_bytes: 30 * GB, ..base(10, 100) };
        assert_eq!(chain.restore(0).base_secs, 300);
        // 17 GB of log at 85 MB/s.
        assert_eq!(base(10, 100).restore(17 * GB).log_secs, 200);
    }

    #[test]
    fn a_base_is_needed_when_the_log_makes_a_restore_long_and_a_base_would_help() {
        let (base, hour, took) = (base(10, 100), Duration::from_secs(3600), Duration::from_secs(100));
        let at = |log_gb: u64| base.restore(log_gb * GB);
        // 103 s and 11.8 s for each GB; the rto is 10 minutes, 80 % of it are 480 s.
        assert!(!needs_base(at(30), 600, hour, took));
        assert!(needs_base(at(33), 600, hour, took));
        // Not again and again.
        assert!(!needs_base(at(33), 600, Duration::from_secs(150), took));
        // It would not help: the base alone takes 103 s.
        assert!(is_hopeless(at(0), 120) && !needs_base(at(33), 120, hour, took));
        assert!(!is_hopeless(at(1_000), 600), "it is the log that is long");
        assert!(is_near(570, 600) && !is_near(569, 600));
        // Nothing overflows.
        assert!(needs_base(base.restore(u64::MAX), 600, hour, took));
        assert!(!needs_base(at(0), u64::MAX, hour, took));
    }
}
