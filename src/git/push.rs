//! Setting one ref in the watched repository, under a condition on what it holds: Mainstay writes there only what is its
//! own, and never over what somebody else wrote.
//!
//! Into a repository on this machine objects go as one pack, and the ref is moved by compare-and-swap; nothing of its
//! hooks is run. Over http and ssh it is a usual push whose condition is checked against what the server says it holds,
//! and which the server checks again when it moves the ref.

use super::releases::chain_holds;
use super::{GitError, Location, Mirror, from_git, local, to_git, transport};
use crate::model::Oid;
use git2::Repository;
use nix::unistd::{Gid, Uid};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// The repository has it now.
    Done,
    /// It had it already.
    AlreadyThere,
    /// It may not or cannot be written; the mirror keeps it.
    OnlyInMirror {
        /// In words.
        why: String,
    },
    /// The repository's ref holds something of somebody else, and was left alone.
    Overtaken {
        /// What it holds.
        found: Oid,
    },
}

/// What the ref may hold before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing.
    Absent,
    /// Nothing, or an earlier entry of the chain that is pushed.
    PartOfIt,
}

impl Wanted {
    /// Whether a ref that holds `found` may be set to `tip`; else what the push comes to.
    pub(super) fn check(self, repo: &Repository, found: Option<git2::Oid>, tip: git2::Oid) -> Result<(), Pushed> {
        match found {
            None => Ok(()),
            Some(found) if found == tip => Err(Pushed::AlreadyThere),
            Some(found) if self == Wanted::PartOfIt && chain_holds(repo, tip, found) => Ok(()),
            Some(found) => Err(Pushed::Overtaken { found: from_git(found) }),
        }
    }
}

impl Mirror {
    /// Sets a ref of the repository to a commit of the mirror.
    pub(super) fn push(&self, name: &str, tip: &Oid, wanted: Wanted) -> Result<Pushed, GitError> {
        let _lock = self.lock()?;
        let repo = self.repo()?;
        let tip = to_git(tip);
        if repo.find_commit(tip).is_err() {
            return Err(GitError::NotFound { what: format!("the commit {tip} in the mirror") });
        }
        let pushed = match self.location() {
            Location::Local(path) => push_local(&repo, path, name, tip, wanted)?,
            _ => match transport::push(&repo, self.location(), self.auth(), name, tip, wanted) {
                // It answers, and does not let us: that will not change by itself.
                Err(error @ (GitError::Denied { .. } | GitError::Git { .. })) => {
                    Pushed::OnlyInMirror { why: format!("failed to {error}") }
                }
                other => other?,
            },
        };
        Ok(pushed)
    }
}

fn push_local(
    mirror: &Repository,
    path: &Path,
    name: &str,
    tip: git2::Oid,
    wanted: Wanted,
) -> Result<Pushed, GitError> {
    let target = local::open(path)?;
    let found = local::read_ref(&target, name).map(|id| to_git(&id));
    if let Err(pushed) = wanted.check(mirror, found, tip) {
        return Ok(pushed);
    }
    let git_dir = target.path().to_owned();
    let owner = Owner::of(&git_dir);
    let pack = match bring_objects(mirror, &target, tip) {
        Ok(pack) => pack,
        Err(why) => return Ok(Pushed::OnlyInMirror { why: format!("failed to write into {}: {why}", path.display()) }),
    };
    for extension in ["pack", "idx"] {
        owner.give(pack.iter().map(|pack| pack.with_extension(extension)));
    }
    crate::failpoint!("git.push.objects");
    // Opened anew: what has just been written is to be seen.
    let target = local::open(path)?;
    let folders = folders_below(&git_dir, name);
    let set = match found {
        Some(found) => target.reference_matching(name, tip, true, found, "mainstay"),
        None => target.reference(name, tip, false, "mainstay"),
    };
    owner.give(folders);
    match set {
        Ok(_) => {
            owner.give([git_dir.join(name)]);
            crate::failpoint!("git.push.ref");
            Ok(Pushed::Done)
        }
        // Somebody was quicker.
        Err(error) if matches!(error.code(), git2::ErrorCode::Modified | git2::ErrorCode::Exists) => {
            let found = local::read_ref(&target, name).unwrap_or_else(Oid::zero);
            Ok(if to_git(&found) == tip { Pushed::AlreadyThere } else { Pushed::Overtaken { found } })
        }
        Err(error) => {
            Ok(Pushed::OnlyInMirror { why: format!("failed to set {name} in {}: {}", path.display(), error.message()) })
        }
    }
}

/// Writes what the target lacks as one pack. Returns it without its extension; `None` when nothing was lacking.
fn bring_objects(mirror: &Repository, target: &Repository, tip: git2::Oid) -> Result<Option<PathBuf>, git2::Error> {
    if target.find_commit(tip).is_ok() {
        return Ok(None);
    }
    let mut walk = mirror.revwalk()?;
    walk.push(tip)?;
    for reference in target.references()? {
        let Some(id) = reference.ok().and_then(|r| r.peel_to_commit().ok()).map(|commit| commit.id()) else { continue };
        if mirror.find_commit(id).is_ok() {
            walk.hide(id)?;
        }
    }
    let mut pack = mirror.packbuilder()?;
    pack.insert_walk(&mut walk)?;
    let folder = target.path().join("objects/pack");
    std::fs::create_dir_all(&folder).map_err(|error| git2::Error::from_str(&error.to_string()))?;
    pack.write(&folder, 0o444)?;
    let name = pack.name().ok().flatten().map(|name| folder.join(format!("pack-{name}.pack")));
    name.map(Some).ok_or_else(|| git2::Error::from_str("the pack has no name"))
}

/// The folders on the way to a loose ref that are not there yet.
fn folders_below(git_dir: &Path, name: &str) -> Vec<PathBuf> {
    let path = git_dir.join(name);
    let folders = path.ancestors().skip(1).take_while(|folder| *folder != git_dir && !folder.exists());
    folders.map(Path::to_owned).collect()
}

/// Whose repository it is. A daemon that runs as root leaves nothing there that its owner could not write or remove.
struct Owner(Option<(Uid, Gid)>);

impl Owner {
    fn of(git_dir: &Path) -> Owner {
        let owner = std::fs::metadata(git_dir).ok().map(|meta| (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid())));
        Owner(owner.filter(|(uid, _)| Uid::effective().is_root() && !uid.is_root()))
    }

    fn give(&self, paths: impl IntoIterator<Item = PathBuf>) {
        let Some((uid, gid)) = self.0 else { return };
        for path in paths {
            if let Err(error) = nix::unistd::chown(&path, Some(uid), Some(gid)) {
                tracing::warn!(path = %path.display(), %error, "failed to give a file to the repository's owner");
            }
        }
    }
}
