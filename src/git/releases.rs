//! The history of an environment, in Git: one ref per environment, `refs/mainstay/ENV`, a chain of signed commits.
//!
//! Enters what was released, from `deploy`. Leaves commits in the mirror whose parents are the entry before and the
//! deployed commit, with the rendered configuration (`config`) and everything else (`release.json`) in their tree, so that
//! `git log` shows the history and a daemon that lost its state can read it back. [`Mirror::push_release`] brings the ref
//! to the repository where that is possible. Only entries whose signature holds are ever believed.

use super::push::{Pushed, Wanted};
use super::signature::{Unverified, sign, verify};
use super::{GitError, Location, Mirror, ReleaseEntry, from_git, history, local, to_git, transport};
use crate::model::ids::EnvironmentName;
use crate::model::trigger::OWN_TAGS;
use crate::model::{Oid, PublicKey};
use crate::signing::SigningKey;
use git2::{Repository, Signature, Time};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where release refs live. Feeders never see anything there: they look at branches and tags only.
const PREFIX: &str = "refs/mainstay/";
/// Names in an entry's tree.
const CONFIG: &str = "config";
const DOCUMENT: &str = "release.json";
/// A larger file in an entry is none of ours: rendered configurations are hand-written files with images put in.
const FILE_MAX_BYTES: usize = 16 << 20;
/// Entries read of one environment: ten a day for nearly thirty years.
const ENTRIES_MAX: usize = 100_000;
/// Rendered configurations read of one environment, together: what a daemon can hold without anybody noticing.
const RENDERED_MAX_BYTES: usize = 512 << 20;

/// An entry as it is stored: the configuration has a file of its own.
#[derive(Serialize, Deserialize)]
struct Document {
    /// The entry before; it is among the commit's parents.
    previous: Option<Oid>,
    #[serde(flatten)]
    entry: ReleaseEntry,
}

/// The history of an environment as far as it can be believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Releases {
    /// The newest first.
    pub entries: Vec<Believed>,
    /// Why nothing older is there, when there is something older.
    pub stopped: Option<Stopped>,
}

/// An entry that a trusted key vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Believed {
    /// The entry's own commit.
    pub commit: Oid,
    /// The key that signed it.
    pub by: PublicKey,
    /// What it says.
    pub entry: ReleaseEntry,
}

/// Where reading a history came to its end too early. `Display` says it in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The first commit that is not believed.
    pub commit: Oid,
    /// What is wrong with it.
    pub why: String,
    /// The key that signed it, when that is all that is wrong.
    pub key: Option<PublicKey>,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.commit.short(), self.why)
    }
}

/// The ref of an environment.
///
/// # Errors
/// When no ref can be called that, such as `production.lock`.
fn ref_of(environment: &EnvironmentName) -> Result<String, GitError> {
    let name = format!("{PREFIX}{environment}");
    if git2::Reference::is_valid_name(&name) {
        return Ok(name);
    }
    let detail = "Git has no ref of that name: it may not hold `..` or end in `.lock`".to_owned();
    Err(GitError::Git { doing: format!("keep the releases of {environment} in {name}"), detail })
}

impl Mirror {
    /// Appends a signed entry to the environment's ref in the mirror, and returns its commit. The same deploy again,
    /// after a crash for instance, is the entry that is there.
    ///
    /// # Errors
    /// When the mirror cannot be written.
    pub fn record_release(&self, entry: &ReleaseEntry, key: &SigningKey) -> Result<Oid, GitError> {
        let _lock = self.lock()?;
        let repo = self.repo()?;
        let name = ref_of(&entry.release.environment)?;
        let doing = || format!("record a release in {name}");
        let tip = repo.refname_to_id(&name).ok();
        if let Some(tip) = tip
            && let Ok((there, _)) = read_entry(&repo, tip)
            && (there.deploy, there.release.number) == (entry.deploy, entry.release.number)
        {
            return Ok(from_git(tip));
        }
        let written = write_entry(&repo, tip, entry, key).map_err(GitError::git(doing()))?;
        crate::failpoint!("git.release.written");
        let title = entry.title();
        match tip {
            Some(tip) => repo.reference_matching(&name, written, true, tip, &title),
            None => repo.reference(&name, written, false, &title),
        }
        .map_err(GitError::git(doing()))?;
        crate::failpoint!("git.release.recorded");
        Ok(from_git(written))
    }

    /// Brings the environment's ref to the repository, if that one holds nothing that this chain does not: somebody
    /// else's entries are never overwritten. What cannot be pushed there stays in the mirror, and the answer says why.
    ///
    /// # Errors
    /// [`GitError::Unreachable`] among others: later may work. [`GitError::NotFound`] when there is nothing to push.
    pub fn push_release(&self, environment: &EnvironmentName) -> Result<Pushed, GitError> {
        let name = ref_of(environment)?;
        let tip = self.release_tip(environment)?;
        let tip =
            tip.ok_or_else(|| GitError::NotFound { what: format!("a release of {environment} in the mirror") })?;
        self.push(&name, &tip, Wanted::PartOfIt)
    }

    /// Puts a tag of Mainstay's own on a commit, in the repository: `mainstay/rolled-back/production-7`. Feeders record
    /// it and run nothing. One of that name on another commit stays as it is.
    ///
    /// # Errors
    /// [`GitError::Unreachable`] among others: later may work.
    pub fn push_own_tag(&self, name: &str, commit: &Oid) -> Result<Pushed, GitError> {
        let full = format!("{OWN_TAGS}{}", name.strip_prefix("mainstay/").unwrap_or(name));
        if !git2::Reference::is_valid_name(&full) {
            return Err(GitError::Git {
                doing: format!("set the tag {full}"),
                detail: "no ref has such a name".into(),
            });
        }
        self.push(&full, commit, Wanted::Absent)
    }

    /// The newest entry's commit in the mirror.
    ///
    /// # Errors
    /// When the mirror cannot be opened.
    pub fn release_tip(&self, environment: &EnvironmentName) -> Result<Option<Oid>, GitError> {
        Ok(self.repo()?.refname_to_id(&ref_of(environment)?).ok().map(from_git))
    }

    /// The environment's history in the mirror, as far as signatures of `trusted` keys vouch for it.
    ///
    /// # Errors
    /// When the mirror cannot be opened.
    pub fn read_releases(&self, environment: &EnvironmentName, trusted: &[PublicKey]) -> Result<Releases, GitError> {
        match self.release_tip(environment)? {
            Some(tip) => self.releases_from(environment, to_git(&tip), trusted),
            None => Ok(Releases::default()),
        }
    }

    fn releases_from(
        &self,
        environment: &EnvironmentName,
        tip: git2::Oid,
        trusted: &[PublicKey],
    ) -> Result<Releases, GitError> {
        let mut releases = Releases::default();
        let repo = self.repo()?;
        let (mut next, mut bytes) = (Some(tip), 0);
        while let Some(at) = next.take() {
            let stopped = |why: String, key| Some(Stopped { commit: from_git(at), why, key });
            if releases.entries.len() == ENTRIES_MAX || bytes > RENDERED_MAX_BYTES {
                let bounds = format!("more than {ENTRIES_MAX} entries, or {RENDERED_MAX_BYTES} bytes, are not read");
                releases.stopped = stopped(bounds, None);
                break;
            }
            match believed(&repo, at, environment, trusted) {
                Ok((entry, previous, by)) => {
                    bytes += entry.release.rendered.len();
                    releases.entries.push(Believed { commit: from_git(at), by, entry });
                    next = previous;
                }
                Err(Unverified::Untrusted(key)) => {
                    let why = Unverified::Untrusted(key.clone()).to_string();
                    releases.stopped = stopped(why, Some(key));
                }
                Err(Unverified::Broken(why)) => releases.stopped = stopped(why, None),
            }
        }
        Ok(releases)
    }

    /// Takes the environment's history over from the repository when it goes on from what the mirror has, or the mirror
    /// has none: after the loss of the daemon's disk. Returns what the mirror has then. What no `trusted` key vouches for,
    /// down to the first entry, is not taken: there are no entries then, and it is said what stopped it.
    ///
    /// # Errors
    /// When the repository cannot be reached, or the mirror cannot be written.
    pub fn take_over_releases(
        &self,
        environment: &EnvironmentName,
        trusted: &[PublicKey],
    ) -> Result<Releases, GitError> {
        let name = ref_of(environment)?;
        let here = self.release_tip(environment)?;
        let there = self.fetch_one(&name)?;
        let Some(there) = there.filter(|there| here.as_ref() != Some(there)) else {
            return self.read_releases(environment, trusted);
        };
        let mut found = self.releases_from(environment, to_git(&there), trusted)?;
        if found.stopped.is_some() {
            found.entries.clear();
            return Ok(found);
        }
        let doing = || format!("take over the releases of {environment} from {}", self.url());
        let locked = self.lock()?;
        let repo = self.repo()?;
        let id = to_git(&there);
        match &here {
            None => repo.reference(&name, id, false, "taken over"),
            Some(here) if chain_holds(&repo, id, to_git(here)) => {
                repo.reference_matching(&name, id, true, to_git(here), "taken over")
            }
            // The mirror is ahead, or knows better; the push says so when it is tried.
            Some(_) => {
                drop(locked);
                return self.read_releases(environment, trusted);
            }
        }
        .map_err(GitError::git(doing()))?;
        crate::failpoint!("git.release.taken_over");
        Ok(found)
    }

    /// The newest entry in the mirror, whoever signed it: what is there came from this process, or was believed before.
    ///
    /// # Errors
    /// When the mirror cannot be opened.
    pub fn newest_release(&self, environment: &EnvironmentName) -> Result<Option<ReleaseEntry>, GitError> {
        let Some(tip) = self.release_tip(environment)? else { return Ok(None) };
        Ok(read_entry(&self.repo()?, to_git(&tip)).ok().map(|(entry, _)| entry))
    }

    /// Brings one ref's objects into the mirror and says what it holds in the repository.
    fn fetch_one(&self, name: &str) -> Result<Option<Oid>, GitError> {
        let _lock = self.lock()?;
        let repo = self.repo()?;
        if let Location::Local(path) = self.location() {
            let source = local::open(path)?;
            let Some(id) = local::read_ref(&source, name) else { return Ok(None) };
            local::copy(&source, &repo, &[to_git(&id)])?;
            return Ok(Some(id));
        }
        transport::with_remote(&repo, self.location(), self.auth(), |connected| {
            let found = connected.find(name)?;
            if found.is_some() {
                connected.download(&[format!("+{name}:{name}")])?;
            }
            Ok(found)
        })
    }
}

/// Whether the chain that ends in `tip` holds `entry`.
pub(super) fn chain_holds(repo: &Repository, tip: git2::Oid, entry: git2::Oid) -> bool {
    let mut next = Some(tip);
    for _ in 0..ENTRIES_MAX {
        match next {
            Some(at) if at == entry => return true,
            Some(at) => next = read_entry(repo, at).ok().and_then(|(_, previous)| previous),
            None => return false,
        }
    }
    false
}

fn write_entry(
    repo: &Repository,
    tip: Option<git2::Oid>,
    entry: &ReleaseEntry,
    key: &SigningKey,
) -> Result<git2::Oid, git2::Error> {
    let text = |error: serde_json::Error| git2::Error::from_str(&error.to_string());
    let mut document = Document { previous: tip.map(from_git), entry: entry.clone() };
    let config = std::mem::take(&mut document.entry.release.rendered);
    let mut json = serde_json::to_vec_pretty(&document).map_err(text)?;
    json.push(b'\n');
    let mut tree = repo.treebuilder(None)?;
    tree.insert(CONFIG, repo.blob(config.as_bytes())?, 0o100_644)?;
    tree.insert(DOCUMENT, repo.blob(&json)?, 0o100_644)?;
    let tree = repo.find_tree(tree.write()?)?;
    let mut parents = Vec::new();
    parents.extend(tip.map(|tip| repo.find_commit(tip)).transpose()?);
    // A deployed commit that the mirror has lost is still named in the document.
    let deployed = &entry.release.provenance.commit;
    if history::holds(repo, deployed) {
        parents.push(repo.find_commit(to_git(deployed))?);
    }
    let by = Signature::new("Mainstay", "mainstay@localhost", &Time::new(entry.at.as_second(), 0))?;
    let parents: Vec<_> = parents.iter().collect();
    let content = repo.commit_create_buffer(&by, &by, &entry.message(), &tree, &parents)?;
    let content = std::str::from_utf8(&content).map_err(|_| git2::Error::from_str("the entry is not UTF-8"))?;
    repo.commit_signed(content, &sign(key, content.as_bytes()), Some("gpgsig"))
}

/// An entry and the commit before it, whoever wrote it.
fn read_entry(repo: &Repository, at: git2::Oid) -> Result<(ReleaseEntry, Option<git2::Oid>), String> {
    let broken = |error: git2::Error| error.message().to_owned();
    let commit = repo.find_commit(at).map_err(broken)?;
    let tree = commit.tree().map_err(broken)?;
    let file = |name: &str| -> Result<Vec<u8>, String> {
        let entry = tree.get_name(name).ok_or_else(|| format!("it has no `{name}`"))?;
        let odb = repo.odb().map_err(broken)?;
        let (size, _) = odb.read_header(entry.id()).map_err(broken)?;
        if size > FILE_MAX_BYTES {
            return Err(format!("its `{name}` is larger than {FILE_MAX_BYTES} bytes"));
        }
        Ok(repo.find_blob(entry.id()).map_err(broken)?.content().to_vec())
    };
    let document: Document =
        serde_json::from_slice(&file(DOCUMENT)?).map_err(|error| format!("its `{DOCUMENT}` is damaged: {error}"))?;
    let mut entry = document.entry;
    entry.release.rendered = String::from_utf8(file(CONFIG)?).map_err(|_| format!("its `{CONFIG}` is not UTF-8"))?;
    let previous = document.previous.as_ref().map(to_git);
    if previous.is_some_and(|previous| !commit.parent_ids().any(|parent| parent == previous)) {
        return Err("the entry that it names as the one before is not its parent".to_owned());
    }
    Ok((entry, previous))
}

/// An entry that a trusted key vouches for, the commit before it, and the key.
fn believed(
    repo: &Repository,
    at: git2::Oid,
    environment: &EnvironmentName,
    trusted: &[PublicKey],
) -> Result<(ReleaseEntry, Option<git2::Oid>, PublicKey), Unverified> {
    let (signature, content) = repo.extract_signature(&at, Some("gpgsig")).map_err(|error| match error.code() {
        git2::ErrorCode::NotFound => Unverified::from("it is not signed"),
        _ => Unverified::from(error.message()),
    })?;
    let by = verify(&signature, &content, trusted)?;
    let (entry, previous) = read_entry(repo, at).map_err(Unverified::Broken)?;
    if entry.release.environment != *environment {
        return Err(Unverified::Broken(format!("it is a release of {}", entry.release.environment)));
    }
    Ok((entry, previous, by))
}

#[cfg(test)]
mod tests;
