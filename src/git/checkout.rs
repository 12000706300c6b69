//! A commit as a stream of changes that make a real clone of depth one out of an empty folder, or out of a folder that
//! already holds another commit put there by the same means.
//!
//! Removes come first, so that a put never goes through a link that the tree no longer has. What no honest Git writes
//! into a tree is refused before the first change is sent.

use super::pack::{IndexEntry, Kind, PackWriter, index_file};
use super::tree::{EntryKind, kind_of};
use super::{GitError, from_git, shown, to_git};
use crate::model::Oid;
use git2::{ObjectType, Odb, Repository, Tree};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashSet;
use std::io;
use std::path::Path;

/// One step of turning a folder into the wished state. Paths are relative, with `/`, never through a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'a> {
    /// Whatever stands at the path goes, a folder with all it holds. Nothing there is fine.
    Remove(Vec<u8>),
    /// A folder stands at the path, its parents were sent before. One that is there is fine.
    Dir(Vec<u8>),
    /// A file with that content stands at the path, in place of an older file.
    File {
        /// Where.
        path: Vec<u8>,
        /// Mode 755, else 644.
        executable: bool,
        /// All of it.
        data: Cow<'a, [u8]>,
    },
    /// A symbolic link stands at the path. The target may point anywhere; it is data.
    Link {
        /// Where.
        path: Vec<u8>,
        /// What it holds.
        target: Vec<u8>,
    },
}

/// What a folder holds after a [`checkout`]: the starting point for bringing it to another commit by difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The commit.
    pub commit: Oid,
    /// Its tree.
    pub tree: Oid,
    /// How many packs `.git/objects/pack` holds; kept by `checkout`.
    pub packs: u32,
}

/// Entries in one tree, folders included. Chromium has 450,000; a tree bomb passes any bound.
const ENTRIES_MAX: usize = 2_000_000;
/// The longest path; Linux takes no longer one. It bounds the depth too.
const PATH_MAX_BYTES: usize = 4_095;
/// The largest file checked out; it is held in memory, once as read and once as packed.
const BLOB_MAX_BYTES: u64 = 2 << 30;
/// Objects are put into packs of about this size, so that no more than one is in memory.
const PACK_BYTES: usize = 16 << 20;
/// After so many packs a folder gets all its objects anew, because git looks through every pack.
const PACKS_MAX: u32 = 50;

/// Streams the changes that turn an empty folder (`base` is `None`) or one that holds `base` into a clone of depth one
/// of `commit`, out of the bare repository `mirror`. `branch` is the short name of the branch HEAD shall show, or a full
/// `refs/tags/...` for a tag; without it HEAD is detached. `origin` is recorded as the remote, without credentials.
///
/// Submodules become empty folders. Returns what the folder then holds. When the sink fails, the folder is in between
/// and must be thrown away.
///
/// # Errors
/// [`GitError::Hostile`] for trees that would write outside the folder or into `.git`; nothing was sent then.
pub fn checkout(
    mirror: &Path,
    commit: &Oid,
    base: Option<&Base>,
    branch: Option<&str>,
    origin: &str,
    sink: &mut dyn FnMut(Change<'_>) -> io::Result<()>,
) -> Result<Base, GitError> {
    super::init();
    let doing = || format!("check out {}", commit.short());
    let repo = Repository::open_bare(mirror).map_err(GitError::git(doing()))?;
    let odb = repo.odb().map_err(GitError::git(doing()))?;
    let commit_object = repo.find_commit(to_git(commit)).map_err(GitError::git(doing()))?;
    let tree = commit_object.tree().map_err(GitError::git(doing()))?;
    // A base the mirror no longer has (it was made anew) is the same as none: but then the folder is not empty.
    let base_tree = match base {
        None => None,
        Some(base) => Some(repo.find_tree(to_git(&base.tree)).map_err(GitError::git(doing()))?),
    };

    let mut plan = Plan::default();
    let against = base_tree.as_ref().map_or(Against::Nothing, Against::Tree);
    plan.tree(&repo, &tree, &against, &mut Vec::new())?;
    plan.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));

    let repack = base.is_some_and(|b| b.packs >= PACKS_MAX);
    let mut out = Out { sink, packs: 0, pack: PackWriter::new(), packed: HashSet::new() };
    for path in &plan.removes {
        out.send(Change::Remove(path.clone()))?;
    }
    if repack {
        out.send(Change::Remove(b".git/objects/pack".to_vec()))?;
    }
    if base.is_none() || repack {
        for dir in [
            ".git",
            ".git/objects",
            ".git/objects/info",
            ".git/objects/pack",
            ".git/refs",
            ".git/refs/heads",
            ".git/refs/tags",
        ] {
            out.send(Change::Dir(dir.into()))?;
        }
    }
    for path in &plan.dirs {
        out.send(Change::Dir(path.clone()))?;
    }
    for entry in &plan.entries {
        if !entry.changed && !repack {
            continue;
        }
        if kind_of(entry.mode as i32) == EntryKind::Submodule {
            continue;
        }
        out.blob(&odb, entry)?;
    }
    for id in if repack { &plan.all_trees } else { &plan.new_trees } {
        out.object(&odb, *id, Kind::Tree)?;
    }
    out.object(&odb, commit_object.id(), Kind::Commit)?;
    out.flush()?;

    let packs = if repack { 0 } else { base.map_or(0, |b| b.packs) } + out.packs;
    write_git_dir(&mut out, &commit_object, branch, origin, &plan)?;
    Ok(Base { commit: commit.clone(), tree: from_git(tree.id()), packs })
}

/// The files of `.git` that change with every checkout. HEAD is last: a folder without it is no repository.
fn write_git_dir(
    out: &mut Out<'_>,
    commit: &git2::Commit<'_>,
    branch: Option<&str>,
    origin: &str,
    plan: &Plan,
) -> Result<(), GitError> {
    let id = commit.id();
    let index = index_file(plan.entries.iter().map(|e| IndexEntry { mode: e.mode, oid: raw(e.id), path: &e.path }));
    out.file(".git/index", index)?;
    if commit.parent_count() > 0 {
        out.file(".git/shallow", format!("{id}\n"))?;
    } else {
        out.send(Change::Remove(b".git/shallow".to_vec()))?;
    }
    let tag = branch.and_then(|b| b.strip_prefix("refs/tags/"));
    let branch = branch.filter(|_| tag.is_none()).map(|b| b.strip_prefix("refs/heads/").unwrap_or(b));
    // Names come from refs that Git accepted; one that it would not take here leaves HEAD detached.
    let valid = |full: &String| git2::Reference::is_valid_name(full);
    let head_ref = branch.map(|b| format!("refs/heads/{b}")).filter(valid);
    let tag_ref = tag.map(|t| format!("refs/tags/{t}")).filter(valid);
    let mut refs = String::from("# pack-refs with: sorted \n");
    let mut config = String::from(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n",
    );
    let url = super::without_credentials(origin);
    config.push_str(&format!(
        "[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n",
        config_value(&url)
    ));
    if let (Some(full), Some(name)) = (&head_ref, branch) {
        refs.push_str(&format!("{id} {full}\n{id} refs/remotes/origin/{name}\n"));
        config.push_str(&format!(
            "[branch {}]\n\tremote = origin\n\tmerge = {}\n",
            config_value(name),
            config_value(full)
        ));
    }
    if let Some(full) = &tag_ref {
        refs.push_str(&format!("{id} {full}\n"));
    }
    out.file(".git/packed-refs", refs)?;
    out.file(".git/config", config)?;
    let head = head_ref.map_or_else(|| format!("{id}\n"), |full| format!("ref: {full}\n"));
    out.file(".git/HEAD", head)
}

/// A value as Git's config files quote it. Control characters were refused when the address was read.
fn config_value(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A file, link or submodule of the new tree.
struct Entry {
    path: Vec<u8>,
    mode: u32,
    id: git2::Oid,
    changed: bool,
}

/// What is to be done, found by walking the new tree beside the old one.
#[derive(Default)]
struct Plan {
    entries: Vec<Entry>,
    removes: Vec<Vec<u8>>,
    dirs: Vec<Vec<u8>>,
    new_trees: Vec<git2::Oid>,
    all_trees: Vec<git2::Oid>,
    seen: usize,
}

/// What the folder holds where a tree is to go.
enum Against<'a, 'r> {
    Nothing,
    Same,
    Tree(&'a Tree<'r>),
}

impl Plan {
    fn tree(
        &mut self,
        repo: &Repository,
        tree: &Tree<'_>,
        against: &Against<'_, '_>,
        path: &mut Vec<u8>,
    ) -> Result<(), GitError> {
        self.all_trees.push(tree.id());
        let against = match against {
            Against::Tree(old) if old.id() == tree.id() => &Against::Same,
            other => other,
        };
        if !matches!(against, Against::Same) {
            self.new_trees.push(tree.id());
        }
        let mut names = HashSet::with_capacity(tree.len());
        for entry in tree.iter() {
            let name = entry.name_bytes();
            let kind = kind_of(entry.filemode_raw());
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let refuse = |why| Err(GitError::Hostile { path: shown(path), why });
            if let Err(why) = check_name(name) {
                return refuse(why);
            }
            if !names.insert(name.to_vec()) {
                return refuse("the tree has two entries of that name");
            }
            if path.len() > PATH_MAX_BYTES {
                return refuse("the path is longer than 4095 bytes");
            }
            self.seen += 1;
            if self.seen > ENTRIES_MAX {
                return refuse("the tree has more than 2,000,000 entries");
            }
            let old = match against {
                Against::Tree(old) => old.get_name_bytes(name),
                _ => None,
            };
            let old_kind = old.as_ref().map(|o| kind_of(o.filemode_raw()));
            let same = matches!(against, Against::Same);
            if old_kind.is_some_and(|o| o != kind) {
                self.removes.push(path.clone());
            }
            let stands = same || old_kind == Some(kind);
            match kind {
                EntryKind::Dir => {
                    if !stands {
                        self.dirs.push(path.clone());
                    }
                    let doing = || format!("read the folder `{}`", shown(path));
                    let subtree = repo.find_tree(entry.id()).map_err(GitError::git(doing()))?;
                    if same {
                        self.tree(repo, &subtree, &Against::Same, path)?;
                    } else if let Some(old) = old.filter(|_| stands) {
                        let old = repo.find_tree(old.id()).map_err(GitError::git(doing()))?;
                        self.tree(repo, &subtree, &Against::Tree(&old), path)?;
                    } else {
                        self.tree(repo, &subtree, &Against::Nothing, path)?;
                    }
                }
                EntryKind::Submodule => {
                    if !stands {
                        self.dirs.push(path.clone());
                    }
                    self.entries.push(Entry { path: path.clone(), mode: 0o160_000, id: entry.id(), changed: false });
                }
                EntryKind::File | EntryKind::Link => {
                    // Old repositories hold 100664 and the like; the index knows two modes for files.
                    let mode = mode_of(kind, entry.filemode_raw());
                    let unchanged = same
                        || old
                            .is_some_and(|o| o.id() == entry.id() && mode_of(kind, o.filemode_raw()) == mode && stands);
                    self.entries.push(Entry { path: path.clone(), mode, id: entry.id(), changed: !unchanged });
                }
            }
            path.truncate(length);
        }
        if let Against::Tree(old) = against {
            for entry in old.iter().filter(|e| !names.contains(e.name_bytes())) {
                let mut gone = path.clone();
                if !gone.is_empty() {
                    gone.push(b'/');
                }
                gone.extend_from_slice(entry.name_bytes());
                self.removes.push(gone);
            }
        }
        Ok(())
    }
}

fn mode_of(kind: EntryKind, raw: i32) -> u32 {
    match kind {
        EntryKind::Link => 0o120_000,
        _ if raw & 0o100 != 0 => 0o100_755,
        _ => 0o100_644,
    }
}

/// A name in a tree that can be put into a folder: stays in it, and is no way of writing `.git` on any file system.
pub(super) fn check_name(name: &[u8]) -> Result<(), &'static str> {
    if name.is_empty() || name == b"." || name == b".." {
        return Err("a tree entry is named like a folder's own links");
    }
    if name.contains(&b'/') || name.contains(&0) {
        return Err("a tree entry's name holds a slash or a zero byte");
    }
    // A backslash separates folders elsewhere, and people do unpack workspaces there.
    if name.split(|b| *b == b'\\').any(is_dot_git) {
        return Err("a tree entry is a way of writing `.git`");
    }
    if name.split(|b| *b == b'\\').any(|part| part == b"..") {
        return Err("a tree entry's name leaves the folder");
    }
    Ok(())
}

/// `.git` as case-blind, NTFS and HFS+ file systems would also read it.
fn is_dot_git(part: &[u8]) -> bool {
    // HFS+ ignores these characters: zero-width joiners and marks, direction marks, the byte order mark.
    let text: String = String::from_utf8_lossy(part)
        .chars()
        .filter(
            |c| !matches!(*c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}'),
        )
        .collect();
    // NTFS cuts at a stream's colon and drops trailing dots and spaces.
    let name = text.split(':').next().unwrap_or("").trim_end_matches(['.', ' ']).to_ascii_lowercase();
    name == ".git" || name == "git~1"
}

fn raw(id: git2::Oid) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(&id.as_bytes()[..20]);
    out
}

/// The way out: the caller's sink and the pack that is being filled.
struct Out<'a> {
    sink: &'a mut dyn FnMut(Change<'_>) -> io::Result<()>,
    packs: u32,
    pack: PackWriter,
    packed: HashSet<git2::Oid>,
}

impl Out<'_> {
    fn send(&mut self, change: Change<'_>) -> Result<(), GitError> {
        (self.sink)(change).map_err(GitError::io("fill the workspace"))
    }

    fn file(&mut self, path: &str, data: impl Into<Vec<u8>>) -> Result<(), GitError> {
        self.send(Change::File { path: path.into(), executable: false, data: Cow::Owned(data.into()) })
    }

    /// A file or link: into the folder, when it changed, and into the pack.
    fn blob(&mut self, odb: &Odb<'_>, entry: &Entry) -> Result<(), GitError> {
        let doing = || format!("read `{}`", shown(&entry.path));
        let (size, kind) = odb.read_header(entry.id).map_err(GitError::git(doing()))?;
        if kind != ObjectType::Blob {
            return Err(GitError::Hostile { path: shown(&entry.path), why: "the object is not a file" });
        }
        if size as u64 > BLOB_MAX_BYTES {
            return Err(GitError::TooBig { what: format!("`{}`", shown(&entry.path)), limit_bytes: BLOB_MAX_BYTES });
        }
        let object = odb.read(entry.id).map_err(GitError::git(doing()))?;
        let data = object.data();
        if entry.changed {
            if entry.mode == 0o120_000 {
                if data.is_empty() || data.len() > PATH_MAX_BYTES || data.contains(&0) {
                    return Err(GitError::Hostile { path: shown(&entry.path), why: "the link's target is no path" });
                }
                self.send(Change::Link { path: entry.path.clone(), target: data.to_vec() })?;
            } else {
                let executable = entry.mode == 0o100_755;
                self.send(Change::File { path: entry.path.clone(), executable, data: Cow::Borrowed(data) })?;
            }
        }
        self.put(entry.id, Kind::Blob, data)
    }

    fn object(&mut self, odb: &Odb<'_>, id: git2::Oid, kind: Kind) -> Result<(), GitError> {
        let object = odb.read(id).map_err(GitError::git(format!("read the object {id}")))?;
        self.put(id, kind, object.data())
    }

    fn put(&mut self, id: git2::Oid, kind: Kind, data: &[u8]) -> Result<(), GitError> {
        if !self.packed.insert(id) {
            return Ok(());
        }
        if !self.pack.is_empty() && self.pack.len() + data.len() > PACK_BYTES {
            self.flush()?;
        }
        self.pack.add(kind, &raw(id), data);
        if self.pack.len() > PACK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), GitError> {
        if self.pack.is_empty() {
            return Ok(());
        }
        let pack = std::mem::replace(&mut self.pack, PackWriter::new()).finish();
        self.packs += 1;
        self.file(&format!(".git/objects/pack/pack-{}.pack", pack.name), pack.pack)?;
        // Git finds a pack by its index, so the index comes second.
        self.file(&format!(".git/objects/pack/pack-{}.idx", pack.name), pack.idx)
    }
}

#[cfg(test)]
mod tests;
