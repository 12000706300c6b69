//! One writer of a name at a time, over all processes: a lock on a file, which the kernel frees when its holder dies.

use super::super::RepositoryError;
use super::place::Place;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

/// Names share this many locks: few files, and seldom one waits for another.
const LOCKS: u8 = 64;
/// A lock is held for a few syncs. Whoever holds it longer hangs with its disk.
const WAIT: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(3);

/// A held lock; freed when dropped.
pub(super) struct Lock(#[expect(dead_code, reason = "held, not used")] Option<Flock<File>>);

impl Lock {
    /// Alone among all who lock this name.
    pub(super) fn to_write(place: &Place, name: &str) -> Result<Lock, RepositoryError> {
        let path = place.lock_file(Sha256::digest(name.as_bytes())[0] % LOCKS);
        let doing = format!("lock {name}");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        wait(place, &doing, file.map_err(|error| place.fault(&doing, error))?, FlockArg::LockExclusiveNonblock)
    }

    /// While nobody writes this name. Where nobody ever wrote there is no lock, and none is made: the place may be one
    /// that can only be read.
    pub(super) fn to_read(place: &Place, name: &str) -> Result<Lock, RepositoryError> {
        let path = place.lock_file(Sha256::digest(name.as_bytes())[0] % LOCKS);
        let doing = format!("lock {name}");
        match File::open(path) {
            Ok(file) => wait(place, &doing, file, FlockArg::LockSharedNonblock),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Lock(None)),
            Err(error) => Err(place.fault(&doing, error)),
        }
    }
}

fn wait(place: &Place, doing: &str, mut file: File, how: FlockArg) -> Result<Lock, RepositoryError> {
    let end = Instant::now() + WAIT;
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(Lock(Some(lock))),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < end => {
                file = back;
                thread::sleep(PAUSE);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let detail = format!(
                    "another process has held its lock for {} s\nhint: `lsof +D {}/.mainstay/lock` names it",
                    WAIT.as_secs(),
                    place.root.display()
                );
                return Err(RepositoryError::Unreachable { doing: doing.to_owned(), detail });
            }
            Err((_, other)) => return Err(place.fault(doing, other.into())),
        }
    }
}
