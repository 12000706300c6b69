//! What a restore writes down in the folder it fills: which plan it is, in which run of the operating system it began, and what
//! of it is done, a line each. Read back by the run that goes on.

use crate::backup::repository::BackupId;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
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

/// A line of 90 bytes for each 16 MiB of a database: enough for 10 TiB.
const MOST_BYTES: u64 = 64 << 20;

/// What is to become of a folder in which a restore began.
pub(super) enum Resume {
    GoOn(BTreeSet<String>, bool),
    Again,
    Other(String),
}

/// The restore that began in a folder and did not end: the digest of its plan, and the base backup it began with.
pub(in crate::backup::restore) fn begun(data: &Path) -> Option<(String, BackupId)> {
    let text = read(data).ok()?;
    let base = text.lines().find_map(|line| line.strip_prefix(BASE))?;
    Some((text.lines().next()?.to_owned(), base.parse().ok()?))
}

/// What is written down in a folder.
///
/// # Errors
/// As the system says, and of what is no file of ours: whoever owns the folder may have put something else there.
pub(super) fn read(data: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    opened(data, File::options().read(true))?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MOST_BYTES {
        true => Err(io::Error::other("it is longer than any that a restore writes")),
        false => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// The file, to be written to at its end.
///
/// # Errors
/// As [`read`].
pub(super) fn append(data: &Path) -> io::Result<File> {
    opened(data, File::options().append(true))
}

fn opened(data: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
    // Neither is a link followed nor a pipe waited for.
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(data.join(STATE))?;
    let facts = file.metadata()?;
    // What it says is done is not done again, and what it says was taken is emptied: nobody else may have written it.
    match facts.is_file() && facts.nlink() == 1 && facts.uid() == nix::unistd::geteuid().as_raw() {
        true => Ok(file),
        false => Err(io::Error::other(
            "it is no file that a restore of this user has made\nhint: go on as the user who began it, or name another folder",
        )),
    }
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

/// Whether it says which plan it is. It is synced with that before anything else is written: what lies beside one that does
/// not is somebody's.
pub(super) fn is_begun(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'\n').count() >= 3
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
    fn r21_what_is_no_file_of_a_restore_is_neither_followed_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (state, other) = (dir.path().join(STATE), dir.path().join("other"));
        fs::write(&other, "digest\n").unwrap();
        let refused = || {
            assert!(read(dir.path()).is_err() && append(dir.path()).is_err());
            fs::remove_file(&state).unwrap();
        };
        std::os::unix::fs::symlink(&other, &state).unwrap();
        refused();
        nix::unistd::mkfifo(&state, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused();
        fs::hard_link(&other, &state).unwrap();
        refused();
        fs::copy(&other, &state).unwrap();
        assert_eq!(read(dir.path()).unwrap(), "digest\n");
        File::options().append(true).open(&state).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert!(read(dir.path()).is_err());
    }

    #[test]
    fn r21_only_a_plan_s_own_tablespaces_are_cleared() {
        let own: Vec<PathBuf> = ["/srv/fast", "/srv/new"].map(PathBuf::from).into();
        let text = "digest\nboot\nthe newest state\ntablespace /etc\ntablespace /srv/fast\n";
        assert_eq!(spaces(text, &own), [PathBuf::from("/srv/fast")]);
    }
}
