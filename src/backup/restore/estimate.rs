//! How long a restore takes. One way to say it: for a plan, for `--dry-run`, and for the keeper, which takes a base backup
//! when it would become too long. No I/O.

use serde::Serialize;

/// How fast things go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Stored bytes fetched, opened and written, in a second.
    pub fetch_bytes_per_sec: f64,
    /// Bytes of log replayed in a second.
    pub replay_bytes_per_sec: f64,
    /// Seconds that a restore takes whatever its size: listing, starting, opening.
    pub fixed_secs: f64,
}

impl Default for Rates {
    /// Of a small machine with an ordinary disk, where nothing has been measured yet: its restores took 240 to 425 MiB of
    /// plain data in a second, a third of it stored, and replayed 85 MiB.
    fn default() -> Rates {
        Rates { fetch_bytes_per_sec: 80e6, replay_bytes_per_sec: 85e6, fixed_secs: 3.0 }
    }
}

/// How long it will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Estimate {
    /// Fetching the base.
    pub base_secs: u64,
    /// Fetching and replaying the log, whichever takes longer.
    pub log_secs: u64,
    /// All of it.
    pub total_secs: u64,
}

/// What is to be fetched and replayed, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// The base as stored, with all that it builds on.
    pub base: u64,
    /// The log as stored.
    pub log_stored: u64,
    /// The log when opened.
    pub log: u64,
}

/// How long it takes at these rates. The log is fetched while it is replayed, so the slower of the two counts.
pub fn estimate(rates: Rates, sizes: Sizes) -> Estimate {
    let secs = |bytes: u64, rate: f64| bytes as f64 / rate.max(1.0);
    let base = secs(sizes.base, rates.fetch_bytes_per_sec);
    let log = secs(sizes.log_stored, rates.fetch_bytes_per_sec).max(secs(sizes.log, rates.replay_bytes_per_sec));
    let whole = |secs: f64| secs.ceil() as u64;
    Estimate { base_secs: whole(base), log_secs: whole(log), total_secs: whole(base + log + rates.fixed_secs) }
}
