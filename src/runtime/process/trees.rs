//! The files of releases on this machine: one folder for each, with the tree of a commit, in which commands are said.
//!
//! A folder is there whole or not at all. Whoever brings a release up and whoever only looks may want the same one at the
//! same moment, and whoever looks may go away in the middle: one changes folders at a time, to its end.

use super::{Process, blocking, gone_is_fine};
use crate::model::Oid;
use crate::runtime::{RuntimeError, WorkspaceSource};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One for all: a reload makes targets anew, and the deploy under way still has the one from before.
static CHANGING: Mutex<()> = Mutex::new(());

/// A folder of such folders.
#[derive(Debug, Clone)]
pub struct Trees(PathBuf);

impl Trees {
    /// Keeps them in `dir`, which need not be there.
    pub fn new(dir: PathBuf) -> Trees {
        Trees(dir)
    }

    /// Where that one is, or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes one from a commit; one that is there is whole and stays as it is, unless it has to be `fresh`.
    ///
    /// # Errors
    /// When the commit is not in the mirror, or the disk does not take it.
    pub async fn make(&self, name: &str, mirror: &Path, commit: &Oid, fresh: bool) -> Result<(), RuntimeError> {
        let (root, new) = (self.path(name), self.0.join(format!(".{name}.new")));
        let source = WorkspaceSource::Commit {
            mirror: mirror.to_owned(),
            commit: commit.clone(),
            branch: None,
            origin: String::new(),
        };
        change("check out the files of the release", move || {
            if fresh {
                gone_is_fine(std::fs::remove_dir_all(&root))?;
            } else if root.exists() {
                return Ok(());
            }
            // Renamed when it is whole: a daemon that was killed leaves nothing under the name.
            gone_is_fine(std::fs::remove_dir_all(&new))?;
            std::fs::create_dir_all(&new)?;
            Process::write_workspace(&new, &source)?;
            std::fs::rename(new, root)
        })
        .await
    }

    /// Gives one another name, unless that is there. Nothing to rename is success.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), RuntimeError> {
        let (from, to) = (self.path(from), self.path(to));
        change("take over the files of the release", move || match to.exists() {
            true => Ok(()),
            false => gone_is_fine(std::fs::rename(from, to)),
        })
        .await
    }

    /// Removes all but one.
    ///
    /// # Errors
    /// When the disk does not let go.
    pub async fn keep_only(&self, name: &str) -> Result<(), RuntimeError> {
        let (dir, keep) = (self.0.clone(), name.to_owned());
        change("remove the files of releases that are gone", move || {
            let entries = match std::fs::read_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_name() != keep.as_str() {
                    gone_is_fine(std::fs::remove_dir_all(entry.path()))?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes all. Nothing there is success.
    ///
    /// # Errors
    /// When the disk does not let go.
    pub async fn remove(&self) -> Result<(), RuntimeError> {
        let dir = self.0.clone();
        change("remove the files of releases", move || gone_is_fine(std::fs::remove_dir_all(dir))).await
    }
}

async fn change(
    doing: &'static str,
    act: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), RuntimeError> {
    blocking(doing, move || {
        let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        act()
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn git(dir: &Path, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=Ana", "-c", "user.email=ana@example.com"]).args(args).current_dir(dir);
        let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[tokio::test]
    async fn many_who_want_the_same_files_at_once_all_find_them_whole() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("work");
        std::fs::create_dir(&work).unwrap();
        git(&work, &["init", "-q", "-b", "main", "."]);
        for n in 0..200 {
            std::fs::write(work.join(format!("file{n}")), "text\n").unwrap();
        }
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-q", "-m", "one"]);
        let commit: Oid = git(&work, &["rev-parse", "HEAD"]).parse().unwrap();
        git(folder.path(), &["clone", "-q", "--bare", "work", "mirror.git"]);
        let (trees, mirror) = (Trees::new(folder.path().join("trees")), folder.path().join("mirror.git"));
        for round in 0..10 {
            let one = |fresh| {
                let (trees, mirror, commit) = (trees.clone(), mirror.clone(), commit.clone());
                tokio::spawn(async move { trees.make("r1", &mirror, &commit, fresh).await })
            };
            // One of those that look goes away in the middle.
            let looking = [one(false), one(false), one(false)];
            looking[2].abort();
            trees.keep_only("r1").await.unwrap();
            trees.make("r1", &mirror, &commit, true).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
            for (n, looked) in looking.into_iter().enumerate() {
                match looked.await {
                    Ok(made) => made.unwrap_or_else(|error| panic!("round {round}: {error}")),
                    Err(aborted) => assert!(n == 2, "{aborted}"),
                }
            }
            assert_eq!(
                std::fs::read_dir(trees.path("r1"))
                    .unwrap()
                    .filter(|e| !e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'))
                    .count(),
                200
            );
        }
        trees.keep_only("r2").await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("trees")).unwrap().count(), 0);
        trees.remove().await.unwrap();
        trees.remove().await.unwrap();
        trees.keep_only("r2").await.unwrap();
    }
}
