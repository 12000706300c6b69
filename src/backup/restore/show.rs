//! A plan as people read it.

use super::plan::Plan;
use std::fmt;

/// Bytes with a unit, to three digits.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

fn time(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs.div_ceil(60)),
        _ => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = &self.log.segments[..self.log.wanted];
        let parts: usize = log.iter().map(|segment| segment.parts.len()).sum();
        writeln!(f, "restore {} to {}", self.source, self.target)?;
        let (base, server) = (&self.base, &self.base.server);
        writeln!(f, "  cluster   {}, PostgreSQL {}, timeline {}", self.system, server.major(), self.timeline)?;
        let chunks = self.chunks.len();
        writeln!(f, "  base      {} of {}: {chunks} objects, {}", base.backup, base.ended, size(self.base_bytes))?;
        let from = base.start;
        writeln!(f, "  log       from {from}: {} segments in {parts} objects, {}", log.len(), size(self.log_bytes))?;
        write!(f, "  log ends  at {}", self.end.lsn)?;
        if let Some(acknowledged) = self.end.acknowledged {
            write!(f, ", acknowledged to {acknowledged}")?;
        }
        if let Some(at) = self.end.at {
            write!(f, ", last seen at {at}")?;
        }
        writeln!(f)?;
        for (oid, path) in &self.tablespaces {
            writeln!(f, "  tablespace {oid} in {}", path.display())?;
        }
        let estimate = self.estimate;
        let (base, log) = (time(estimate.base_secs), time(estimate.log_secs));
        writeln!(f, "  takes     about {}: {base} for the base, {log} for the log", time(estimate.total_secs))?;
        for warning in &self.warnings {
            writeln!(f, "  warning: {}", warning.replace('\n', "\n           "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!([0, 999, 1 << 10, 3 << 30].map(size), ["0 B", "999 B", "1.0 KiB", "3.0 GiB"]);
        assert_eq!([5, 119, 121, 7_260].map(time), ["5 s", "119 s", "3 min", "2 h 1 min"]);
    }
}
