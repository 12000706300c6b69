//! What lies between two commits: who wrote it, whether one holds the other, and whether a change was taken back.
//!
//! Enter commit ids that are in the mirror. Leave facts on which `deploy` and `approval` decide who may approve and
//! whether a held revision is gone. Content decides here, never what a commit message says of itself.

use super::{GitError, Mirror, from_git, mirror::find_commit, to_git};
use crate::model::Oid;
use git2::{Commit, Repository, Sort, Tree};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A commit as much as a policy and its readers need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedCommit {
    /// Its id.
    pub sha: Oid,
    /// The first line of its message.
    pub subject: String,
    /// Who wrote it.
    pub author_name: String,
    /// Their mail address.
    pub author_mail: String,
    /// The mail address of who committed it.
    pub committer_mail: String,
}

/// Commits of one state of a repository that another does not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitsBetween {
    /// The newest first.
    pub commits: Vec<ListedCommit>,
    /// There are more. Whoever decides about people by this list has to refuse: it does not name all of them.
    pub more: bool,
}

impl Mirror {
    /// The commits reachable from `to` and not from `from`, newest first, at most `max`. Both must be in the mirror.
    ///
    /// # Errors
    /// [`GitError::NotFound`] when one of them is not.
    pub fn commits_between(&self, from: Option<&Oid>, to: &Oid, max: usize) -> Result<CommitsBetween, GitError> {
        let repo = self.repo()?;
        let to = find_commit(&repo, to)?.id();
        let from = from.map(|from| find_commit(&repo, from)).transpose()?.map(|from| from.id());
        let doing = || format!("list the commits up to {to}");
        let mut walk = repo.revwalk().map_err(GitError::git(doing()))?;
        walk.set_sorting(Sort::TIME).map_err(GitError::git(doing()))?;
        walk.push(to).map_err(GitError::git(doing()))?;
        if let Some(from) = from {
            walk.hide(from).map_err(GitError::git(doing()))?;
        }
        let mut between = CommitsBetween::default();
        for id in walk {
            if between.commits.len() == max {
                between.more = true;
                break;
            }
            let id = id.map_err(GitError::git(doing()))?;
            let commit = repo.find_commit(id).map_err(GitError::git(doing()))?;
            between.commits.push(listed(&commit));
        }
        Ok(between)
    }

    /// Whether `ancestor` is `descendant` or reachable from it. Both must be in the mirror.
    ///
    /// # Errors
    /// [`GitError::NotFound`] when one of them is not.
    pub fn is_ancestor(&self, ancestor: &Oid, descendant: &Oid) -> Result<bool, GitError> {
        let repo = self.repo()?;
        let (ancestor, descendant) = (find_commit(&repo, ancestor)?.id(), find_commit(&repo, descendant)?.id());
        let doing = || format!("look for {ancestor} in the history of {descendant}");
        Ok(ancestor == descendant || repo.graph_descendant_of(descendant, ancestor).map_err(GitError::git(doing()))?)
    }

    /// Whether `candidate`, whose history holds `held`, has taken it back: every path that `held` changed against its
    /// first parent, or else against `good`, has in `candidate` the very content and mode that it had there, or is as
    /// absent. What else `candidate` changed does not matter.
    ///
    /// # Errors
    /// [`GitError::NotFound`] when one of the commits is not in the mirror.
    pub fn undoes(&self, held: &Oid, good: Option<&Oid>, candidate: &Oid) -> Result<bool, GitError> {
        let repo = self.repo()?;
        let held = find_commit(&repo, held)?;
        let candidate = tree_of(&find_commit(&repo, candidate)?)?;
        let changed = tree_of(&held)?;
        let parent = held.parents().next();
        let good = good.map(|good| find_commit(&repo, good)).transpose()?;
        for base in parent.iter().chain(&good) {
            let base = tree_of(base)?;
            let paths = differing(&repo, &base, &changed)?;
            // Nothing differs: there is nothing that could have been taken back, so nothing was.
            if !paths.is_empty() && paths.iter().all(|path| content(&base, path) == content(&candidate, path)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn listed(commit: &Commit<'_>) -> ListedCommit {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (author, committer) = (commit.author(), commit.committer());
    ListedCommit {
        sha: from_git(commit.id()),
        subject: text(commit.message_bytes()).lines().next().unwrap_or_default().to_owned(),
        author_name: text(author.name_bytes()),
        author_mail: text(author.email_bytes()),
        committer_mail: text(committer.email_bytes()),
    }
}

pub(super) fn tree_of<'r>(commit: &Commit<'r>) -> Result<Tree<'r>, GitError> {
    commit.tree().map_err(GitError::git(format!("read the tree of {}", commit.id())))
}

/// Every path whose content or mode is not the same in both. A file that became a folder is there with both.
fn differing(repo: &Repository, one: &Tree<'_>, other: &Tree<'_>) -> Result<BTreeSet<PathBuf>, GitError> {
    let diff = repo.diff_tree_to_tree(Some(one), Some(other), None).map_err(GitError::git("compare two commits"))?;
    let mut paths = BTreeSet::new();
    for delta in diff.deltas() {
        paths.extend([delta.old_file(), delta.new_file()].iter().filter_map(|file| file.path()).map(PathBuf::from));
    }
    Ok(paths)
}

/// Mode and content of what stands at a path, if it is no folder: what is in a folder has paths of its own.
fn content(tree: &Tree<'_>, path: &std::path::Path) -> Option<(i32, git2::Oid)> {
    let entry = tree.get_path(path).ok()?;
    (entry.kind() != Some(git2::ObjectType::Tree)).then(|| (entry.filemode_raw(), entry.id()))
}

/// A commit that is certainly there, by id.
pub(super) fn holds(repo: &Repository, id: &Oid) -> bool {
    repo.find_commit(to_git(id)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::git;
    use super::*;
    use std::path::Path;

    /// A working tree that is watched as it is: what it commits, the mirror has after a fetch.
    struct Story {
        _dir: tempfile::TempDir,
        work: PathBuf,
        mirror: Mirror,
    }

    impl Story {
        fn new() -> Story {
            let dir = tempfile::tempdir().unwrap();
            git(dir.path(), &["init", "-q", "-b", "main", "work"]);
            let work = dir.path().join("work");
            let mirror =
                Mirror::open(&dir.path().join("mirrors/shop.git"), work.join(".git").to_str().unwrap(), None).unwrap();
            let story = Story { _dir: dir, work, mirror };
            story.commit(&[("app", "good\n"), ("conf/a", "1\n"), ("conf/b", "1\n")]);
            story
        }
        fn put(&self, path: &str, text: &str) {
            let path = self.work.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        fn commit(&self, files: &[(&str, &str)]) -> Oid {
            for (path, text) in files {
                self.put(path, text);
            }
            git(&self.work, &["add", "-A"]);
            git(&self.work, &["commit", "-q", "--allow-empty", "-m", "change"]);
            self.head()
        }
        fn git(&self, args: &[&str]) -> Oid {
            git(&self.work, args);
            self.head()
        }
        fn head(&self) -> Oid {
            self.mirror.fetch().unwrap();
            let head: Oid = git(&self.work, &["rev-parse", "HEAD"]).parse().unwrap();
            self.mirror.ensure(&head).unwrap();
            head
        }
        fn undone(&self, held: &Oid, good: Option<&Oid>) -> bool {
            self.mirror.undoes(held, good, &self.head()).unwrap()
        }
    }

    #[test]
    fn a_revert_takes_back_and_further_work_elsewhere_does_not_change_that() {
        let story = Story::new();
        let held = story.commit(&[("app", "bad\n"), ("conf/a", "2\n"), ("new/file", "x\n")]);
        assert!(!story.undone(&held, None), "the held commit itself");
        story.commit(&[("readme", "hello\n")]);
        assert!(!story.undone(&held, None), "a commit on top of it");
        story.git(&["revert", "--no-edit", held.as_str()]);
        assert!(story.undone(&held, None), "git revert");
        story.commit(&[("readme", "more\n"), ("conf/c", "1\n")]);
        assert!(story.undone(&held, None), "further work elsewhere");
        story.git(&["revert", "--no-edit", "HEAD~1"]);
        assert!(!story.undone(&held, None), "the revert was reverted");
    }

    #[test]
    fn half_a_revert_is_none_and_words_do_not_count() {
        let story = Story::new();
        let held = story.commit(&[("app", "bad\n"), ("conf/a", "2\n")]);
        story.commit(&[("app", "good\n")]);
        assert!(!story.undone(&held, None), "one file of two");
        git(&story.work, &["commit", "-q", "--allow-empty", "-m", &format!("Revert\n\nThis reverts commit {held}.")]);
        assert!(!story.undone(&held, None), "a message that says so");
        story.commit(&[("conf/a", "1\n")]);
        assert!(story.undone(&held, None), "by hand, in two commits");
        story.git(&["update-index", "--chmod=+x", "app"]);
        git(&story.work, &["commit", "-q", "-m", "mode"]);
        assert!(!story.undone(&held, None), "the mode is content too");
    }

    #[test]
    fn files_that_came_went_and_became_folders_count() {
        let story = Story::new();
        std::fs::remove_file(story.work.join("app")).unwrap();
        std::fs::remove_file(story.work.join("conf/b")).unwrap();
        let held = story.commit(&[("app/main", "bad\n"), ("extra", "x\n")]);
        story.commit(&[("conf/b", "1\n")]);
        assert!(!story.undone(&held, None));
        std::fs::remove_dir_all(story.work.join("app")).unwrap();
        std::fs::remove_file(story.work.join("extra")).unwrap();
        story.commit(&[("app", "good\n")]);
        assert!(story.undone(&held, None));
    }

    #[test]
    fn going_back_to_the_last_good_state_takes_back_too_and_an_empty_change_cannot_be() {
        let story = Story::new();
        let good = story.head();
        story.commit(&[("app", "first half\n")]);
        let held = story.commit(&[("app", "bad\n"), ("conf/a", "2\n")]);
        story.git(&["revert", "--no-edit", "HEAD~2..HEAD"]);
        assert!(!story.undone(&held, None), "it stands where it did before both");
        assert!(story.undone(&held, Some(&good)));

        let empty = story.commit(&[]);
        assert!(!story.undone(&empty, None) && !story.undone(&empty, Some(&empty)));
        story.commit(&[("readme", "1\n")]);
        assert!(!story.undone(&empty, None), "nothing to take back is nothing taken back");
    }

    #[test]
    fn a_merge_is_taken_back_as_a_whole() {
        let story = Story::new();
        story.git(&["checkout", "-q", "-b", "topic"]);
        story.commit(&[("app", "bad\n")]);
        story.commit(&[("conf/a", "2\n")]);
        story.git(&["checkout", "-q", "main"]);
        story.commit(&[("readme", "1\n")]);
        let held = story.git(&["merge", "-q", "--no-ff", "-m", "merge", "topic"]);
        story.git(&["revert", "--no-edit", "topic"]);
        assert!(!story.undone(&held, None), "one commit of the merged two");
        story.git(&["reset", "-q", "--hard", held.as_str()]);
        story.git(&["revert", "--no-edit", "-m", "1", held.as_str()]);
        assert!(story.undone(&held, None));
        // A revert that comes in by a merge of its own.
        story.git(&["reset", "-q", "--hard", held.as_str()]);
        story.git(&["checkout", "-q", "-b", "undo"]);
        story.git(&["revert", "--no-edit", "-m", "1", held.as_str()]);
        story.git(&["checkout", "-q", "main"]);
        story.commit(&[("readme", "2\n")]);
        story.git(&["merge", "-q", "--no-ff", "-m", "merge the undo", "undo"]);
        assert!(story.undone(&held, None));
    }

    #[test]
    fn commits_between_are_those_of_one_side_with_their_people() {
        let story = Story::new();
        let from = story.head();
        story.git(&["checkout", "-q", "-b", "topic"]);
        let author = ["-c", "user.name=Ben", "-c", "user.email=ben@example.com"];
        story.put("b", "1\n");
        git(&story.work, &["add", "-A"]);
        let commit = ["commit", "-q", "--author", "Ben <ben@example.com>", "-m", "by Ben\n\nand more"];
        git(&story.work, &[author.as_slice(), commit.as_slice()].concat());
        let by_ben = story.head();
        story.git(&["checkout", "-q", "main"]);
        let by_ana = story.commit(&[("a", "1\n")]);
        let to = story.git(&["merge", "-q", "--no-ff", "-m", "merge", "topic"]);
        let between = story.mirror.commits_between(Some(&from), &to, 10).unwrap();
        let mut found: Vec<_> = between.commits.iter().map(|c| c.sha.clone()).collect();
        assert_eq!(found[0], to, "the newest first");
        found.sort();
        let mut wanted = vec![to.clone(), by_ana.clone(), by_ben.clone()];
        wanted.sort();
        assert_eq!((found, between.more), (wanted, false));
        let ben = between.commits.iter().find(|c| c.sha == by_ben).unwrap();
        assert_eq!((ben.subject.as_str(), ben.author_name.as_str()), ("by Ben", "Ben"));
        assert_eq!((ben.author_mail.as_str(), ben.committer_mail.as_str()), ("ben@example.com", "ana@example.com"));

        let cut = story.mirror.commits_between(Some(&from), &to, 2).unwrap();
        assert_eq!((cut.commits.len(), cut.more), (2, true));
        let exact = story.mirror.commits_between(Some(&from), &to, 3).unwrap();
        assert_eq!((exact.commits.len(), exact.more), (3, false));
        assert_eq!(story.mirror.commits_between(Some(&to), &from, 10).unwrap(), CommitsBetween::default());
        assert_eq!(story.mirror.commits_between(None, &to, 10).unwrap().commits.len(), 4);
        let nowhere: Oid = "1".repeat(40).parse().unwrap();
        assert!(matches!(story.mirror.commits_between(Some(&nowhere), &to, 9), Err(GitError::NotFound { .. })));

        for (one, other, is) in
            [(&from, &to, true), (&by_ben, &to, true), (&to, &to, true), (&to, &from, false), (&by_ben, &by_ana, false)]
        {
            assert_eq!(story.mirror.is_ancestor(one, other).unwrap(), is, "{one} {other}");
        }
        assert!(Path::new(&story.work).exists());
    }
}
