//! Fetching from a repository on this machine, without a protocol: list its refs, copy the objects that are missing.
//!
//! libgit2's own local transport opens every ref and every tip on each fetch, which costs more than the whole rest of
//! a push when there are a thousand of them. Objects are copied, not linked: what the source's gc does is its own affair.

use super::{GitError, Oid, RemoteRefs, from_git};
use git2::{ObjectType, Odb, OdbLookupFlags, Repository, Sort};
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;

/// Up to so many new objects are written one by one, which is fastest for a usual push; more go through a pack.
const LOOSE_MAX: usize = 400;
/// Folders in folders; deeper than what any path can name.
const DEPTH_MAX: usize = 2_048;

pub(super) fn open(path: &Path) -> Result<Repository, GitError> {
    super::init();
    Repository::open(path).map_err(|error| {
        let mut detail = error.message().to_owned();
        if !path.exists() {
            detail = "there is no such folder".into();
        } else if detail.contains("refstorage") {
            detail.push_str(
                "\nhint: the reftable format is not supported; `git refs migrate --ref-format=files` changes it",
            );
        }
        GitError::Unreachable { url: path.display().to_string(), detail }
    })
}

/// All branches and tags with what they hold, and the branch HEAD names.
pub(super) fn list(source: &Repository) -> Result<RemoteRefs, GitError> {
    let doing = || format!("list the refs of {}", source.path().display());
    let mut refs = BTreeMap::new();
    for reference in source.references().map_err(GitError::git(doing()))? {
        // One broken loose ref must not hide all others.
        let Ok(reference) = reference else { continue };
        let Ok(name) = reference.name() else { continue };
        if !super::mirror::is_watched(name) {
            continue;
        }
        let Some(id) = reference.target().or_else(|| reference.resolve().ok()?.target()) else { continue };
        refs.insert(name.to_owned(), from_git(id));
    }
    let head = source.find_reference("HEAD").ok().and_then(|h| h.symbolic_target().ok().flatten().map(str::to_owned));
    Ok(RemoteRefs { refs, head })
}

/// Copies everything reachable from `wants` that the mirror does not have. Parts come before what points at them.
pub(super) fn copy(source: &Repository, mirror: &Repository, wants: &[git2::Oid]) -> Result<(), GitError> {
    let doing = || format!("copy objects from {}", source.path().display());
    let from = source.odb().map_err(GitError::git(doing()))?;
    let to = mirror.odb().map_err(GitError::git(doing()))?;
    let mut missing = Missing { source, to: &to, seen: HashSet::new(), found: Vec::new() };
    if missing.collect(wants).map_err(|e| e.into_error(doing()))? {
        for (id, kind) in missing.found {
            let object = from.read(id).map_err(GitError::git(doing()))?;
            let written = to.write(kind, object.data()).map_err(GitError::git(doing()))?;
            if written != id {
                return Err(GitError::Git { doing: doing(), detail: format!("the object {id} is damaged") });
            }
        }
        return Ok(());
    }
    copy_pack(source, mirror, &to, wants).map_err(GitError::git(doing()))
}

/// For many objects: one pack of what is reachable from `wants` and not from the mirror's refs.
fn copy_pack(source: &Repository, mirror: &Repository, to: &Odb<'_>, wants: &[git2::Oid]) -> Result<(), git2::Error> {
    let mut pack = source.packbuilder()?;
    let mut walk = source.revwalk()?;
    walk.set_sorting(Sort::TIME)?;
    for want in wants {
        let mut object = source.find_object(*want, None)?;
        while let Some(tag) = object.as_tag() {
            pack.insert_object(tag.id(), None)?;
            let target = tag.target()?;
            object = target;
        }
        match object.kind() {
            Some(ObjectType::Commit) => walk.push(object.id())?,
            _ => pack.insert_recursive(object.id(), None)?,
        }
    }
    for reference in mirror.references()? {
        if let Some(id) = reference.ok().and_then(|r| r.target()) {
            // What the source lost, or what is no commit, hides nothing.
            if source.find_commit(id).is_ok() {
                walk.hide(id)?;
            }
        }
    }
    pack.insert_walk(&mut walk)?;
    let mut writer = to.packwriter()?;
    let mut failed = None;
    pack.foreach(|chunk| match writer.write_all(chunk) {
        Ok(()) => true,
        Err(error) => {
            failed = Some(error);
            false
        }
    })?;
    if let Some(error) = failed {
        return Err(git2::Error::from_str(&error.to_string()));
    }
    writer.commit()?;
    Ok(())
}

/// The search for what is missing, which gives up when it is much.
struct Missing<'a, 'r> {
    source: &'r Repository,
    to: &'a Odb<'r>,
    seen: HashSet<git2::Oid>,
    found: Vec<(git2::Oid, ObjectType)>,
}

enum Stop {
    Git(git2::Error),
    TooMany,
    TooDeep,
}

impl Stop {
    fn into_error(self, doing: String) -> GitError {
        let detail = match self {
            Stop::Git(error) => error.message().to_owned(),
            Stop::TooMany => "too many objects".into(),
            Stop::TooDeep => "a tree is nested too deeply".into(),
        };
        GitError::Git { doing, detail }
    }
}

impl From<git2::Error> for Stop {
    fn from(error: git2::Error) -> Self {
        Stop::Git(error)
    }
}

impl Missing<'_, '_> {
    /// True when `found` is all there is, in an order in which it may be written.
    fn collect(&mut self, wants: &[git2::Oid]) -> Result<bool, Stop> {
        for want in wants {
            match self.root(*want) {
                Ok(()) => {}
                Err(Stop::TooMany) => return Ok(false),
                Err(stop) => return Err(stop),
            }
        }
        Ok(true)
    }

    fn lacks(&self, id: git2::Oid) -> bool {
        !self.to.exists_ext(id, OdbLookupFlags::NO_REFRESH)
    }

    fn push(&mut self, id: git2::Oid, kind: ObjectType) -> Result<(), Stop> {
        if self.found.len() >= LOOSE_MAX {
            return Err(Stop::TooMany);
        }
        self.found.push((id, kind));
        Ok(())
    }

    fn root(&mut self, want: git2::Oid) -> Result<(), Stop> {
        let mut tags = Vec::new();
        let mut object = self.source.find_object(want, None)?;
        while let Some(tag) = object.as_tag() {
            tags.push(tag.id());
            if tags.len() > DEPTH_MAX {
                return Err(Stop::TooDeep);
            }
            let target = tag.target()?;
            object = target;
        }
        match object.kind() {
            Some(ObjectType::Commit) => self.commits(object.id())?,
            Some(ObjectType::Tree) => self.tree(object.id(), 0)?,
            _ => self.blob(object.id())?,
        }
        for tag in tags.into_iter().rev() {
            if self.lacks(tag) && self.seen.insert(tag) {
                self.push(tag, ObjectType::Tag)?;
            }
        }
        Ok(())
    }

    /// Commits with their parents first, without recursion: histories are long.
    fn commits(&mut self, tip: git2::Oid) -> Result<(), Stop> {
        let mut stack = vec![(tip, false)];
        while let Some((id, parents_done)) = stack.pop() {
            if parents_done {
                let tree = self.source.find_commit(id)?.tree_id();
                self.tree(tree, 0)?;
                self.push(id, ObjectType::Commit)?;
                continue;
            }
            if !self.lacks(id) || !self.seen.insert(id) {
                continue;
            }
            if stack.len() > LOOSE_MAX {
                return Err(Stop::TooMany);
            }
            stack.push((id, true));
            stack.extend(self.source.find_commit(id)?.parent_ids().map(|p| (p, false)));
        }
        Ok(())
    }

    fn tree(&mut self, id: git2::Oid, depth: usize) -> Result<(), Stop> {
        if !self.lacks(id) || !self.seen.insert(id) {
            return Ok(());
        }
        if depth > DEPTH_MAX {
            return Err(Stop::TooDeep);
        }
        let tree = self.source.find_tree(id)?;
        for entry in tree.iter() {
            match super::tree::kind_of(entry.filemode_raw()) {
                super::EntryKind::Dir => self.tree(entry.id(), depth + 1)?,
                super::EntryKind::Submodule => {}
                _ => self.blob(entry.id())?,
            }
        }
        self.push(id, ObjectType::Tree)
    }

    fn blob(&mut self, id: git2::Oid) -> Result<(), Stop> {
        if self.lacks(id) && self.seen.insert(id) {
            self.push(id, ObjectType::Blob)?;
        }
        Ok(())
    }
}

/// What one ref of the source holds now.
pub(super) fn read_ref(source: &Repository, name: &str) -> Option<Oid> {
    source.find_reference(name).ok()?.resolve().ok()?.target().map(from_git)
}
