//! Reading one file or one folder of a commit, without following links.

use super::{GitError, shown};
use git2::{ObjectType, Repository, Tree};

/// What stands under a name in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Dir,
    /// A symbolic link; never followed.
    Link,
    /// A commit of another repository.
    Submodule,
}

/// One name in a folder of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, where it is UTF-8; others are left out of listings.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

pub(super) fn kind_of(mode: i32) -> EntryKind {
    match mode & 0o170_000 {
        0o040_000 => EntryKind::Dir,
        0o120_000 => EntryKind::Link,
        0o160_000 => EntryKind::Submodule,
        _ => EntryKind::File,
    }
}

/// Walks down to the entry at `path`; `None` when there is nothing. An empty path is the tree itself.
enum At<'r> {
    Dir(Tree<'r>),
    File(git2::Oid),
}

fn walk<'r>(repo: &'r Repository, root: Tree<'r>, path: &str) -> Result<Option<At<'r>>, GitError> {
    let doing = || format!("read `{}`", shown(path.as_bytes()));
    let mut here = root;
    let mut parts = path.split('/').filter(|p| !p.is_empty() && *p != ".").peekable();
    while let Some(part) = parts.next() {
        let Some((id, kind)) = here.get_name(part).map(|e| (e.id(), kind_of(e.filemode_raw()))) else {
            return Ok(None);
        };
        match kind {
            EntryKind::Dir => here = repo.find_tree(id).map_err(GitError::git(doing()))?,
            EntryKind::Link => return Err(GitError::IsLink { path: shown(path.as_bytes()) }),
            EntryKind::File if parts.peek().is_none() => return Ok(Some(At::File(id))),
            EntryKind::File | EntryKind::Submodule => return Ok(None),
        }
    }
    Ok(Some(At::Dir(here)))
}

/// The content of a file at a tree; `None` when there is no file of that name.
pub(super) fn read_file(
    repo: &Repository,
    root: Tree<'_>,
    path: &str,
    max_bytes: u64,
) -> Result<Option<Vec<u8>>, GitError> {
    let Some(At::File(id)) = walk(repo, root, path)? else { return Ok(None) };
    let doing = || format!("read `{}`", shown(path.as_bytes()));
    let odb = repo.odb().map_err(GitError::git(doing()))?;
    let (size, kind) = odb.read_header(id).map_err(GitError::git(doing()))?;
    if kind != ObjectType::Blob {
        return Err(GitError::Git { doing: doing(), detail: "the object is not a file".into() });
    }
    if size as u64 > max_bytes {
        return Err(GitError::TooBig { what: format!("`{}`", shown(path.as_bytes())), limit_bytes: max_bytes });
    }
    let object = odb.read(id).map_err(GitError::git(doing()))?;
    Ok(Some(object.data().to_vec()))
}

/// The names in a folder at a tree, sorted; `None` when there is no such folder.
pub(super) fn list_dir(repo: &Repository, root: Tree<'_>, path: &str) -> Result<Option<Vec<DirEntry>>, GitError> {
    let Some(At::Dir(tree)) = walk(repo, root, path)? else { return Ok(None) };
    let mut entries: Vec<DirEntry> = tree
        .iter()
        .filter_map(|entry| {
            let name = std::str::from_utf8(entry.name_bytes()).ok()?.to_owned();
            Some(DirEntry { name, kind: kind_of(entry.filemode_raw()) })
        })
        .collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(entries))
}
