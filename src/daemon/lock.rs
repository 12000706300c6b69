//! One daemon for each state folder: a lock that the kernel lets go when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a folder that is in use is waited for. A program that a killed daemon was about to start holds what that daemon
/// had open until it runs: a moment, on a busy machine a longer one. Who starts the next daemon at once must not be told
/// that there are two.
const GRACE: Duration = Duration::from_secs(2);

/// Holds the state folder; let go when dropped.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the folder, making it (mode 0700) when it is not there.
    ///
    /// # Errors
    /// When another daemon has it, or the folder cannot be made or written.
    pub(super) fn take(state: &Path) -> anyhow::Result<StateLock> {
        let failed = |error: std::io::Error| {
            anyhow::anyhow!(
                "use the state folder {}: {error}\nhint: `state` in mainstay.yml must name a folder this user may write to",
                state.display()
            )
        };
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(state).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(state.join("lock"))
            .map_err(failed)?;
        let until = Instant::now() + GRACE;
        let mut tried = file.try_lock();
        while matches!(tried, Err(TryLockError::WouldBlock)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            tried = file.try_lock();
        }
        match tried {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                anyhow::bail!(
                    "use the state folder {}: another daemon has it (pid {})\n\
                     hint: stop that one, or give this one a `state` folder of its own",
                    state.display(),
                    holder.trim()
                );
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // The folder's usual place is beside mainstay.yml, maybe in a working tree: Git passes over it then.
        let ignore = state.join(".gitignore");
        if !ignore.exists() {
            std::fs::write(&ignore, "*\n").map_err(failed)?;
        }
        // For people who look: who has it. The lock itself is what counts.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .and_then(|()| file.flush());
        written.map_err(failed)?;
        Ok(StateLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::StateLock;

    #[test]
    fn a_second_daemon_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateLock::take(folder.path()).unwrap();
        let message = StateLock::take(folder.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("pid {}", std::process::id())) && message.contains("hint:"), "{message}");
        // As when the first one was killed and something that it was starting lets go a little later.
        let later = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            drop(first);
        });
        StateLock::take(folder.path()).unwrap();
        later.join().unwrap();
    }
}
