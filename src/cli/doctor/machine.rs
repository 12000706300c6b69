//! What `doctor` looks at without asking anybody: the state folder, programs, limits.

use super::Check;
use crate::cli::place::Place;
use crate::model::ByteSize;
use nix::sys::resource::{Resource, getrlimit};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

/// Below this a day of logs and one checkout of a large repository may fill the disk.
const DISK_POOR_BYTES: u64 = 5 << 30;
/// Below this the database may fail at any moment.
const DISK_MISSING_BYTES: u64 = 256 << 20;
/// 64 log followers, 512 connections, 50 running steps with two streams each, and some room.
const FILES_WANTED: u64 = 1024;

pub(super) fn look(place: &Place, checks: &mut Vec<Check>) {
    checks.push(state_folder(&place.state));
    checks.push(disk("state disk", &place.state));
    checks.extend(socket(&place.socket()));
    checks.push(program("git", "--version", "some Git hosts and `mainstay demo` need it"));
    checks.push(program("ssh", "-V", "repositories with an ssh address need it"));
    checks.push(program("docker", "--version", "stacks of a swarm and Compose projects are deployed with it"));
    checks.push(open_files());
}

fn state_folder(state: &Path) -> Check {
    const NAME: &str = "state folder";
    // Not there yet is fine when it can be made.
    let there = existing(state);
    let probe = there.join(format!(".mainstay-doctor-{}", std::process::id()));
    let written = std::fs::write(&probe, b"x");
    let _ = std::fs::remove_file(&probe);
    if let Err(error) = written {
        let mend = format!(
            "give the daemon's user the folder: `chown USER {}`, or set `state` to one it may write",
            there.display()
        );
        return Check::missing(NAME, format!("{}: {error}", there.display()), mend);
    }
    if there != state {
        return Check::good(NAME, format!("{} will be made", state.display()));
    }
    match std::fs::metadata(state) {
        Ok(about) if about.mode() & 0o007 != 0 => {
            let mend = format!("`chmod 750 {}`: others need nothing in it", state.display());
            Check::poor(NAME, format!("{} is open to every user", state.display()), mend)
        }
        _ => Check::good(NAME, state.display().to_string()),
    }
}

/// The folder itself or the nearest one above it that exists.
fn existing(path: &Path) -> &Path {
    let found = path.ancestors().find(|folder| folder.is_dir());
    // A relative path's last ancestor is empty, which stands for the folder we are in.
    found.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// How much room there is where that folder is or will be.
pub(super) fn disk(name: &'static str, folder: &Path) -> Check {
    let folder = existing(folder);
    match nix::sys::statvfs::statvfs(folder) {
        Ok(about) => {
            let free = about.blocks_available().saturating_mul(about.fragment_size());
            // Whole GiB, or MiB where there is little, read better than an exact count.
            let unit = if free >= DISK_POOR_BYTES { 30 } else { 20 };
            let shown = format!("{} free at {}", ByteSize(free >> unit << unit), folder.display());
            let mend = "make room, or move it to another disk";
            match free {
                ..DISK_MISSING_BYTES => Check::missing(name, shown, mend),
                DISK_MISSING_BYTES..DISK_POOR_BYTES => Check::poor(name, shown, mend),
                _ => Check::good(name, shown),
            }
        }
        Err(error) => Check::poor(name, format!("{}: {error}", folder.display()), "look at the disk by hand"),
    }
}

/// The rights on the daemon's socket, when there is one.
fn socket(path: &Path) -> Option<Check> {
    const NAME: &str = "socket";
    let about = std::fs::symlink_metadata(path).ok()?;
    let own = nix::unistd::geteuid().as_raw();
    let shown = format!("{}, mode {:o}, user {}", path.display(), about.mode() & 0o777, about.uid());
    if !about.file_type().is_socket() {
        return Some(Check::missing(
            NAME,
            format!("{} is no socket", path.display()),
            "remove it; the daemon makes it when it starts",
        ));
    }
    if about.mode() & 0o077 != 0 {
        return Some(Check::poor(NAME, shown, format!("`chmod 600 {}`", path.display())));
    }
    if about.uid() != own && own != 0 {
        return Some(Check::poor(
            NAME,
            shown,
            "commands work for the daemon's user and root: `sudo -u USER mainstay …`",
        ));
    }
    Some(Check::good(NAME, shown))
}

fn program(name: &'static str, flag: &str, needed: &str) -> Check {
    match Command::new(name).arg(flag).output() {
        Ok(output) => {
            // ssh says its version on stderr.
            let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            Check::good(name, String::from_utf8_lossy(&text).lines().next().unwrap_or_default())
        }
        Err(error) => Check::poor(name, format!("{error}"), format!("install it: {needed}")),
    }
}

fn open_files() -> Check {
    const NAME: &str = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < FILES_WANTED => Check::poor(
            NAME,
            format!("a process may open {soft}"),
            format!("raise it to {FILES_WANTED} or more: LimitNOFILE= in the unit, or `ulimit -n`"),
        ),
        Ok((soft, _)) => Check::good(NAME, format!("a process may open {soft}")),
        Err(error) => Check::poor(NAME, error.to_string(), "look at `ulimit -n` by hand"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_state_folder_that_does_not_exist_yet_is_fine_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let check = state_folder(&folder.path().join("a/b"));
        assert_eq!(check.state, State::Good, "{check:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mainstay.sock");
        assert_eq!(socket(&path), None);
        std::fs::write(&path, "").unwrap();
        assert_eq!(socket(&path).unwrap().state, State::Missing);
    }

    #[test]
    fn a_program_that_is_not_there_says_who_needs_it() {
        let check = program("no-such-program-here", "--version", "nobody needs it");
        assert_eq!((check.state, check.mend), (State::Poor, vec!["install it: nobody needs it".to_owned()]));
    }
}
