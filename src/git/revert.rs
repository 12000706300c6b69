//! Taking a release back as a commit: what changed from a good commit to a bad one, undone on top of a branch.
//!
//! Enter commits that are in the mirror. Leaves a commit in the mirror, made of nothing but what is given, so that the same
//! revert made again is the same commit; or the paths on which a person has to decide. Called by `deploy`.

use super::history::tree_of;
use super::push::{Pushed, Wanted};
use super::{GitError, Mirror, from_git, mirror::find_commit};
use crate::model::Oid;
use crate::model::trigger::OWN_BRANCHES;
use git2::{Index, MergeOptions, Signature, Time};
use jiff::Timestamp;

/// Paths of a conflict that are named.
const PATHS_MAX: usize = 10;

/// What is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revert {
    /// The commit that turned bad.
    pub bad: Oid,
    /// What served before it.
    pub good: Oid,
    /// The commit on top of which it is undone.
    pub onto: Oid,
    /// What the commit says.
    pub message: String,
    /// The time it bears.
    pub at: Timestamp,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reverted {
    /// The commit that takes it back.
    Commit(Oid),
    /// There is nothing to take back there.
    Nothing {
        /// Why, in words.
        why: String,
    },
    /// What came later changed the same lines.
    Conflict {
        /// The paths, the first few.
        paths: Vec<String>,
        /// How many there are.
        count: usize,
    },
}

impl Mirror {
    /// Undoes what changed from `good` to `bad` on top of `onto`, as a three-way merge does: what others changed since
    /// stays.
    ///
    /// # Errors
    /// [`GitError::NotFound`] when one of the commits is not in the mirror.
    pub fn make_revert(&self, revert: &Revert) -> Result<Reverted, GitError> {
        if !self.is_ancestor(&revert.bad, &revert.onto)? {
            let why = format!("the branch does not hold {} any more", revert.bad.short());
            return Ok(Reverted::Nothing { why });
        }
        let _lock = self.lock()?;
        let repo = self.repo()?;
        let onto = find_commit(&repo, &revert.onto)?;
        let bad = tree_of(&find_commit(&repo, &revert.bad)?)?;
        let good = tree_of(&find_commit(&repo, &revert.good)?)?;
        let ours = tree_of(&onto)?;
        let doing = || format!("take {} back on top of {}", revert.bad.short(), revert.onto.short());
        let mut index =
            repo.merge_trees(&bad, &ours, &good, Some(&MergeOptions::new())).map_err(GitError::git(doing()))?;
        if index.has_conflicts() {
            let (paths, count) = conflicts(&index).map_err(GitError::git(doing()))?;
            return Ok(Reverted::Conflict { paths, count });
        }
        let tree = index.write_tree_to(&repo).map_err(GitError::git(doing()))?;
        if tree == ours.id() {
            let why = if good.id() == bad.id() {
                "no file differs between the two releases".to_owned()
            } else {
                format!("the branch has taken {} back already", revert.bad.short())
            };
            return Ok(Reverted::Nothing { why });
        }
        let tree = repo.find_tree(tree).map_err(GitError::git(doing()))?;
        let by = Signature::new("Mainstay", "mainstay@localhost", &Time::new(revert.at.as_second(), 0))
            .map_err(GitError::git(doing()))?;
        let commit = repo.commit(None, &by, &by, &revert.message, &tree, &[&onto]).map_err(GitError::git(doing()))?;
        Ok(Reverted::Commit(from_git(commit)))
    }

    /// Makes a branch of Mainstay's own in the repository: `mainstay/revert-production-7`. Feeders record it and run
    /// nothing. One of that name that holds another commit stays as it is.
    ///
    /// # Errors
    /// [`GitError::Unreachable`] among others: later may work.
    pub fn push_own_branch(&self, name: &str, commit: &Oid) -> Result<Pushed, GitError> {
        let full = format!("{OWN_BRANCHES}{}", name.strip_prefix("mainstay/").unwrap_or(name));
        if !git2::Reference::is_valid_name(&full) {
            let detail = "no ref has such a name".to_owned();
            return Err(GitError::Git { doing: format!("make the branch {full}"), detail });
        }
        self.push(&full, commit, Wanted::Absent)
    }
}

fn conflicts(index: &Index) -> Result<(Vec<String>, usize), git2::Error> {
    let mut paths = std::collections::BTreeSet::new();
    for conflict in index.conflicts()? {
        let conflict = conflict?;
        let sides = [conflict.our, conflict.ancestor, conflict.their];
        paths.extend(sides.into_iter().flatten().next().map(|entry| super::shown(&entry.path)));
    }
    let count = paths.len();
    Ok((paths.into_iter().take(PATHS_MAX).collect(), count))
}

#[cfg(test)]
mod tests {
    use super::super::testing::git;
    use super::*;
    use std::path::PathBuf;

    /// A bare repository, a working tree and a mirror: `good`, then `bad` on top of it.
    struct Story {
        _dir: tempfile::TempDir,
        work: PathBuf,
        bare: PathBuf,
        mirror: Mirror,
        good: Oid,
        bad: Oid,
    }

    const LINES: &str = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n";

    impl Story {
        fn new() -> Story {
            let dir = tempfile::tempdir().unwrap();
            git(dir.path(), &["init", "-q", "--bare", "-b", "main", "shop.git"]);
            git(dir.path(), &["init", "-q", "-b", "main", "work"]);
            let (work, bare) = (dir.path().join("work"), dir.path().join("shop.git"));
            git(&work, &["remote", "add", "origin", "../shop.git"]);
            let mirror = Mirror::open(&dir.path().join("mirror.git"), bare.to_str().unwrap(), None).unwrap();
            let nobody = Oid::zero();
            let mut story = Story { _dir: dir, work, bare, mirror, good: nobody.clone(), bad: nobody };
            story.good = story.commit(&[("app", LINES), ("conf", "level=1\n")]);
            story.commit(&[("app", &LINES.replace("two", "2"))]);
            story.bad = story.commit(&[("conf", "level=9\n"), ("new", "x\n")]);
            story
        }
        fn commit(&self, files: &[(&str, &str)]) -> Oid {
            for (path, text) in files {
                std::fs::write(self.work.join(path), text).unwrap();
            }
            git(&self.work, &["add", "-A"]);
            git(&self.work, &["commit", "-q", "--allow-empty", "-m", "change"]);
            git(&self.work, &["push", "-q", "--force", "origin", "main"]);
            self.mirror.fetch().unwrap();
            git(&self.work, &["rev-parse", "HEAD"]).parse().unwrap()
        }
        fn revert(&self, onto: &Oid) -> Reverted {
            let at = Timestamp::from_second(1_700_000_000).unwrap();
            let (bad, good, onto) = (self.bad.clone(), self.good.clone(), onto.clone());
            self.mirror.make_revert(&Revert { bad, good, onto, message: "Take it back\n".into(), at }).unwrap()
        }
        #[track_caller]
        fn made(&self, onto: &Oid) -> Oid {
            match self.revert(onto) {
                Reverted::Commit(commit) => commit,
                other => panic!("{other:?}"),
            }
        }
        fn shown(&self, commit: &Oid, path: &str) -> Option<String> {
            let read = self.mirror.read_file(commit, path, 10_000).unwrap();
            read.map(|bytes| String::from_utf8(bytes).unwrap())
        }
    }

    #[test]
    fn everything_since_the_good_one_is_undone_and_the_rule_of_holds_sees_it() {
        let story = Story::new();
        let commit = story.made(&story.bad);
        assert_eq!(story.shown(&commit, "app").as_deref(), Some(LINES));
        assert_eq!((story.shown(&commit, "conf").as_deref(), story.shown(&commit, "new")), (Some("level=1\n"), None));
        assert!(story.mirror.undoes(&story.bad, Some(&story.good), &commit).unwrap());
        assert_eq!(story.made(&story.bad), commit, "made again it is the same one");
        let info = story.mirror.commit_info(&commit).unwrap();
        assert_eq!((info.author.as_str(), info.message.as_str()), ("Mainstay <mainstay@localhost>", "Take it back\n"));
    }

    #[test]
    fn what_others_changed_since_stays() {
        let story = Story::new();
        let text = LINES.replace("two", "2").replace("eight", "8");
        let tip = story.commit(&[("app", &text), ("readme", "hello\n")]);
        let commit = story.made(&tip);
        assert_eq!(story.shown(&commit, "app"), Some(LINES.replace("eight", "8")));
        assert_eq!(story.shown(&commit, "readme").as_deref(), Some("hello\n"));
        assert!(story.mirror.is_ancestor(&tip, &commit).unwrap());
    }

    #[test]
    fn a_change_in_the_same_place_is_for_a_person() {
        let story = Story::new();
        let tip = story.commit(&[("conf", "level=10\n"), ("new", "y\n")]);
        let wanted = Reverted::Conflict { paths: vec!["conf".into(), "new".into()], count: 2 };
        assert_eq!(story.revert(&tip), wanted);
    }

    #[test]
    fn what_is_taken_back_already_or_gone_from_the_branch_is_not_taken_back_again() {
        let story = Story::new();
        git(&story.work, &["revert", "--no-edit", "HEAD~2..HEAD"]);
        let tip = story.commit(&[("readme", "hello\n")]);
        let why = |reverted| match reverted {
            Reverted::Nothing { why } => why,
            other => panic!("{other:?}"),
        };
        assert!(why(story.revert(&tip)).contains("taken"), "{:?}", story.revert(&tip));
        git(&story.work, &["reset", "-q", "--hard", story.good.as_str()]);
        let tip = story.commit(&[("readme", "hello\n")]);
        assert!(why(story.revert(&tip)).contains("does not hold"));
        let same = Story { good: story.bad.clone(), ..story };
        assert!(why(same.revert(&same.bad)).contains("no file differs"));
    }

    #[test]
    fn its_branch_is_made_once_and_nobody_elses_is_moved() {
        let story = Story::new();
        let commit = story.made(&story.bad);
        let push = |commit: &Oid| story.mirror.push_own_branch("mainstay/revert-production-2", commit).unwrap();
        assert_eq!((push(&commit), push(&commit)), (Pushed::Done, Pushed::AlreadyThere));
        let there = git(&story.bare, &["rev-parse", "refs/heads/mainstay/revert-production-2"]);
        assert_eq!(there, commit.as_str());
        assert_eq!(push(&story.good), Pushed::Overtaken { found: commit });
        git(&story.bare, &["fsck", "--full", "--strict"]);
        assert!(story.mirror.push_own_branch("mainstay/a..b", &story.good).is_err());
    }
}
