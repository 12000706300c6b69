//! What a restore writes down in the folder it fills: which plan it is, in which run of the operating system it began, and what
//! of it is done, a line each. Read back by the run that goes on.

use crate::backup::repository::BackupId;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The file that says what is done.
pub const STATE: &str = ".mainstay-restore";

/// What identifies one run of the operating system: what was written and not synced survives a killed process, but not
/// the end of this.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The line that says that the base is complete.
pub(super) const BASE_COMPLETE: &str = "base complete";
/// Begins the line that names the base backup.
pub(super) const BASE: &str = "base ";
/// Begins a line that names the folder of a tablespace.
const TABLESPACE: &str = "tablespace ";

/// What is to become of a folder in which a restore began.
pub(super) enum Resume {
    GoOn(BTreeSet<String>, bool),
    Again,
    Other(String),
}

/// The restore that began in a folder and did not end: the digest of its plan, and the base backup it began with.
pub(in crate::backup::restore) fn begun(data: &Path) -> Option<(String, BackupId)> {
    let text = fs::read_to_string(data.join(STATE)).ok()?;
    let base = text.lines().find_map(|line| line.strip_prefix(BASE))?;
    Some((text.lines().next()?.to_owned(), base.parse().ok()?))
}

pub(super) fn boot_id() -> String {
    // Where it cannot be read, nothing that was not synced is believed.
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_else(|_| "unknown".into())
}

pub(super) fn resume(data: &Path, text: &str, plan: &str) -> Resume {
    let lines: Vec<&str> = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).collect();
    let [of, boot, about, done @ ..] = &lines[..] else { return Resume::Again };
    if *of != plan {
        return Resume::Other((*about).to_owned());
    }
    let complete = done.contains(&BASE_COMPLETE) && data.join("global/pg_control").exists();
    if !complete && (*boot != boot_id() || *boot == "unknown") {
        return Resume::Again;
    }
    Resume::GoOn(done.iter().map(|line| (*line).to_owned()).collect(), complete)
}

pub(super) fn space_line(path: &Path) -> String {
    format!("{TABLESPACE}{}", path.display())
}

/// Those of a plan's folders for tablespaces that an earlier run has taken. What else the file may name is nobody's: whoever
/// owns the folder could have written it there.
pub(super) fn spaces(text: &str, of_plan: &[PathBuf]) -> Vec<PathBuf> {
    let taken: BTreeSet<&str> = text.lines().collect();
    of_plan.iter().filter(|path| taken.contains(space_line(path).as_str())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r21_only_a_plan_s_own_tablespaces_are_cleared() {
        let own: Vec<PathBuf> = ["/srv/fast", "/srv/new"].map(PathBuf::from).into();
        let text = "digest\nboot\nthe newest state\ntablespace /etc\ntablespace /srv/fast\n";
        assert_eq!(spaces(text, &own), [PathBuf::from("/srv/fast")]);
    }
}
