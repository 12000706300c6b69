//! The working tree that a person stands in, for `mainstay run`.

use super::{GitError, from_git};
use crate::model::Oid;
use crate::model::trigger::CommitInfo;
use git2::Repository;
use jiff::Timestamp;
use std::path::{Path, PathBuf};

/// A working tree and what is checked out in it.
#[derive(Debug, Clone)]
pub struct WorkingTree {
    /// Its top folder.
    pub root: PathBuf,
    /// The full ref name that HEAD names; `HEAD` when it names none.
    pub git_ref: String,
    /// The commit it was made from; zero and without words where there is none yet.
    pub head: CommitInfo,
}

/// Finds the working tree that a folder belongs to. A folder that belongs to none is its own.
///
/// # Errors
/// When the folder does not exist or its repository is damaged.
pub fn working_tree(folder: &Path) -> Result<WorkingTree, GitError> {
    super::init();
    let folder = folder.canonicalize().map_err(GitError::io(format!("open the folder {}", folder.display())))?;
    let nothing = CommitInfo {
        sha: Oid::zero(),
        message: String::new(),
        author: String::new(),
        authored_at: Timestamp::UNIX_EPOCH,
    };
    let none = WorkingTree { root: folder.clone(), git_ref: "HEAD".into(), head: nothing };
    let Ok(repo) = Repository::discover(&folder) else { return Ok(none) };
    let Some(root) = repo.workdir().map(Path::to_owned) else { return Ok(none) };
    let Ok(head) = repo.head() else { return Ok(WorkingTree { root, ..none }) };
    let commit = head.peel_to_commit().map_err(GitError::git("read the commit that HEAD names"))?;
    let author = commit.author();
    let head_info = CommitInfo {
        sha: from_git(commit.id()),
        message: String::from_utf8_lossy(commit.message_bytes()).into_owned(),
        author: format!(
            "{} <{}>",
            String::from_utf8_lossy(author.name_bytes()),
            String::from_utf8_lossy(author.email_bytes())
        ),
        authored_at: Timestamp::from_second(author.when().seconds()).unwrap_or(Timestamp::UNIX_EPOCH),
    };
    let git_ref = head.name().unwrap_or("HEAD").to_owned();
    Ok(WorkingTree { root, git_ref, head: head_info })
}
