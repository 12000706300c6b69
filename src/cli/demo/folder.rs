//! The demo's folder: known by a mark, held by a lock, and emptied of what an earlier demo left in it and in the engine.
//!
//! Enters a name, or none. Leaves a [`Folder`] that nobody else uses, and the places in it.

use super::process::{DAEMON_STOP, LOOK, terminate};
use crate::cli::exit::Failure;
use crate::daemon::wire;
use crate::store::Store;
use anyhow::Context;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The folder's name when none is given, and how many demos may run side by side in one place.
const USUAL_DIR: &str = "mainstay-demo";
const SIDE_BY_SIDE: u32 = 9;
/// A file by which a folder is known as a demo's; its lock is held while the demo runs.
const MARK: &str = ".mainstay-demo";

/// The demo's own folder, held by the lock on its mark.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// Held open for its lock.
    _mark: File,
}

impl Folder {
    /// The named folder, or the first of the usual ones that no other demo is using.
    pub(super) fn take(named: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = named {
            return Self::claim(path)?.ok_or_else(|| {
                Failure::wrong(format!("use {}: another demo is running there", path.display()))
                    .hint("name another folder with --dir")
            });
        }
        for n in 1..=SIDE_BY_SIDE {
            let name = if n == 1 { USUAL_DIR.to_owned() } else { format!("{USUAL_DIR}-{n}") };
            if let Some(folder) = Self::claim(Path::new(&name))? {
                return Ok(folder);
            }
        }
        Err(Failure::wrong(format!("find a folder: {SIDE_BY_SIDE} demos are running here"))
            .hint("name a folder with --dir"))
    }

    /// Makes the folder, or empties one that an earlier demo left. `None` when a running demo holds it.
    pub(super) fn claim(path: &Path) -> Result<Option<Self>, Failure> {
        let mark = path.join(MARK);
        let empty = fs::read_dir(path).map(|mut entries| entries.next().is_none()).unwrap_or(true);
        if !empty && !mark.is_file() {
            return Err(Failure::wrong(format!("use {}: it holds something that no demo made", path.display()))
                .hint("name another folder with --dir"));
        }
        fs::create_dir_all(path).with_context(|| format!("make the folder {}", path.display()))?;
        let file = File::options().create(true).append(true).open(&mark)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        let folder = Folder { path: fs::canonicalize(path)?, _mark: file };
        folder.stop_orphan();
        folder.clear_engine()?;
        for entry in fs::read_dir(&folder.path)? {
            let entry = entry?;
            if entry.file_name() == MARK {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::create_dir_all(folder.work())?;
        Ok(Some(folder))
    }

    /// A demo that was killed outright could not stop its daemon. Only a process that still names our configuration
    /// in its environment is ours; the number alone may long be another's.
    fn stop_orphan(&self) {
        let Some(pid) = fs::read_to_string(self.pid()).ok().and_then(|text| text.trim().parse::<u32>().ok()) else {
            return;
        };
        let ours = format!("MAINSTAY_CONFIG={}", self.config().display());
        let alive = || {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == ours.as_bytes()))
        };
        if alive() {
            terminate(pid);
            let until = Instant::now() + DAEMON_STOP;
            while alive() && Instant::now() < until {
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Takes out of the engine what a stopped daemon left there on purpose: steps that go on without it, and the
    /// workspace of the failed run, which would wait a day for a `retry --from`.
    pub(super) fn clear_engine(&self) -> Result<(), Failure> {
        let state = self.state();
        if !state.join("mainstay.db").is_file() {
            return Ok(());
        }
        let config = crate::config::daemon::load(&self.config()).map_err(anyhow::Error::from)?;
        let clearing = async {
            let store = Store::open(&state).map_err(anyhow::Error::from)?;
            let runtime = wire::runtime(&config, store.instance())?;
            runtime.sweep(None).await.map_err(|error| Failure::unreachable(error.to_string()))?;
            for (run, ..) in store.kept_spaces().await.map_err(anyhow::Error::from)? {
                store.forget_kept_space(run).await.map_err(anyhow::Error::from)?;
            }
            // With it go the helper's volume and image, when no other daemon uses them.
            runtime.drain_pool().await;
            Ok(())
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(clearing)
    }

    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }
    pub(super) fn bare(&self) -> PathBuf {
        self.path.join("demo.git")
    }
    pub(super) fn state(&self) -> PathBuf {
        self.path.join("state")
    }
    pub(super) fn config(&self) -> PathBuf {
        self.path.join("mainstay.yml")
    }
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("daemon.log")
    }
    pub(super) fn pid(&self) -> PathBuf {
        self.path.join("daemon.pid")
    }

    /// Git in the working tree, deaf to the settings of whoever runs the demo: signing, templates, hooks.
    pub(super) fn git(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.current_dir(self.work()).arg("--no-pager").args(arguments);
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_TEMPLATE_DIR"] {
            command.env_remove(name);
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Mainstay Demo");
            command.env(format!("GIT_{who}_EMAIL"), "demo@example.com");
        }
        command
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::exit::Exit;

    /// A demo's folder that goes when the first of the two is dropped.
    pub(in crate::cli::demo) fn scratch() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::claim(&dir.path().join("demo")).unwrap().unwrap();
        (dir, folder)
    }

    #[test]
    fn a_demos_folder_is_taken_over_and_a_strangers_is_not() {
        let (dir, folder) = scratch();
        let path = folder.path.clone();
        assert!(Folder::claim(&path).unwrap().is_none(), "held by the first");
        fs::write(path.join("left"), "over").unwrap();
        drop(folder);
        let again = Folder::claim(&path).unwrap().expect("free again");
        assert!(!again.path.join("left").exists(), "an earlier demo's files go");

        let strange = dir.path().join("strange");
        fs::create_dir(&strange).unwrap();
        fs::write(strange.join("thesis.txt"), "ten years of work").unwrap();
        let refused = Folder::claim(&strange).unwrap_err();
        assert_eq!(refused.exit, Exit::Wrong);
        assert!(strange.join("thesis.txt").exists());
    }

    #[test]
    fn an_orphaned_daemon_is_stopped_and_a_reused_number_is_not() {
        let (_dir, folder) = scratch();
        let mut orphan = Command::new("sleep").arg("60").env("MAINSTAY_CONFIG", folder.config()).spawn().unwrap();
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(folder.pid(), other.id().to_string()).unwrap();
        folder.stop_orphan();
        assert!(other.try_wait().unwrap().is_none(), "a stranger with that number lives on");
        fs::write(folder.pid(), orphan.id().to_string()).unwrap();
        // Nobody but this test reaps it, so it stays as a zombie without an environment.
        folder.stop_orphan();
        assert!(orphan.wait().unwrap().code().is_none(), "ended by a signal");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
