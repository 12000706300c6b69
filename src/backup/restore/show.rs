//! A plan as people read it.

use super::plan::Plan;
use crate::model::quantity::rounded_bytes;
use crate::model::text::{count, moment};
use std::fmt;

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
        let mut word = "base";
        let below = self.ancestors.iter().map(|one| (&one.manifest, &one.chunks, &one.index));
        for (backup, chunks, index) in below.chain([(base, &self.chunks, &self.index)]) {
            let stored = chunks.iter().chain([index]).map(|object| object.stored_bytes).sum();
            let (name, ended, objects) = (&backup.backup, moment(backup.ended), count(chunks.len(), "object"));
            writeln!(f, "  {word:<9} {name} of {ended}: {objects}, {}", rounded_bytes(stored))?;
            // What lies on top of the whole one.
            word = "+ changes";
        }
        writeln!(f, "  on disk   {}", rounded_bytes(self.room.values().sum()))?;
        let from = base.start;
        writeln!(
            f,
            "  log       from {from}: {} in {}, {}",
            count(log.len(), "segment"),
            count(parts, "object"),
            rounded_bytes(self.log_bytes)
        )?;
        write!(f, "  log ends  at {}", self.end.lsn)?;
        if let Some(acknowledged) = self.end.acknowledged {
            write!(f, ", acknowledged to {acknowledged}")?;
        }
        if let Some(at) = self.end.at {
            write!(f, ", last seen at {}", moment(at))?;
        }
        writeln!(f)?;
        for (oid, path) in &self.tablespaces {
            writeln!(f, "  tablespace {oid} in {}", path.display())?;
        }
        let estimate = self.estimate;
        let (base, log) = (time(estimate.base_secs), time(estimate.log_secs));
        let rest = time(estimate.total_secs.saturating_sub(estimate.base_secs + estimate.log_secs));
        let total = time(estimate.total_secs);
        writeln!(f, "  takes     about {total}: {base} for the base, {log} for the log, {rest} to begin and to open")?;
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
    fn times_are_short() {
        assert_eq!([5, 119, 121, 7_260].map(time), ["5 s", "119 s", "3 min", "2 h 1 min"]);
    }
}
