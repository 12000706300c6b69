//! The bare mirror of one watched repository: fetching into it, and reading from it.

use super::{Auth, DirEntry, GitError, Location, from_git, local, shown, to_git, transport, tree};
use crate::model::Oid;
use crate::model::trigger::CommitInfo;
use git2::{ObjectType, Repository};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A mirror of one repository. Holds no file open between calls: five hundred of them cost nothing while idle.
#[derive(Debug, Clone)]
pub struct Mirror {
    dir: PathBuf,
    url: String,
    location: Location,
    auth: Option<Auth>,
}

/// What a repository's refs hold: branches and tags only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteRefs {
    /// Full ref name to what it holds; for an annotated tag that is the tag object ([`Mirror::commit_info`] peels it).
    pub refs: BTreeMap<String, Oid>,
    /// The full ref name HEAD names: the default branch.
    pub head: Option<String>,
}

/// What a word from a person stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The full ref name, when it was one.
    pub git_ref: Option<String>,
    /// The commit; tags are peeled.
    pub commit: Oid,
}

/// Marks a folder as one that may be thrown away and made anew.
const MARKER: &str = "mainstay-mirror";
/// A commit message is kept up to this length; see [`CommitInfo::message`].
const MESSAGE_MAX_BYTES: usize = 16 * 1024;
/// Above so many moved refs the patterns for all are sent in place of each name.
const NAMED_REFSPECS_MAX: usize = 64;

/// Only branches and tags are watched, mirrored and reported.
pub(super) fn is_watched(name: &str) -> bool {
    name.starts_with("refs/heads/") || name.starts_with("refs/tags/")
}

impl Mirror {
    /// Opens the mirror in `dir`, making it when it is not there. Credentials in the URL are used when `auth` is `None`.
    /// Does not reach out to the repository.
    ///
    /// # Errors
    /// When the URL is none that can be watched, or the folder cannot be made or is something else.
    pub fn open(dir: &Path, url: &str, auth: Option<Auth>) -> Result<Mirror, GitError> {
        super::init();
        let (location, url_auth) = Location::parse(url)?;
        let mirror =
            Mirror { dir: dir.to_owned(), url: super::without_credentials(url), location, auth: auth.or(url_auth) };
        let usable = mirror.repo().is_ok_and(|r| r.is_bare()) && dir.join(MARKER).exists();
        if usable {
            return Ok(mirror);
        }
        mirror.make()?;
        Ok(mirror)
    }

    fn make(&self) -> Result<(), GitError> {
        let doing = || format!("make the mirror {}", self.dir.display());
        if self.dir.exists() {
            let empty = std::fs::read_dir(&self.dir).map_err(GitError::io(doing()))?.next().is_none();
            if !empty && !self.dir.join(MARKER).exists() {
                let detail = "the folder holds something else".to_owned();
                return Err(GitError::Git { doing: doing(), detail });
            }
            // A mirror that does not open is a cache that went bad.
            std::fs::remove_dir_all(&self.dir).map_err(GitError::io(doing()))?;
        }
        // Made beside and renamed, so that a stop in the middle leaves nothing half made under the name.
        let name = self.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let beside = self.dir.with_file_name(format!(".{name}.{}.new", std::process::id()));
        let _ = std::fs::remove_dir_all(&beside);
        std::fs::create_dir_all(&beside).map_err(GitError::io(doing()))?;
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).external_template(false).initial_head("main");
        Repository::init_opts(&beside, &options).map_err(GitError::git(doing()))?;
        std::fs::write(beside.join(MARKER), b"A cache of Mainstay's; it may be deleted while no daemon runs.\n")
            .map_err(GitError::io(doing()))?;
        match std::fs::rename(&beside, &self.dir) {
            Ok(()) => Ok(()),
            // Somebody else made it at the same time.
            Err(_) if self.dir.join(MARKER).exists() => {
                let _ = std::fs::remove_dir_all(&beside);
                Ok(())
            }
            Err(error) => Err(GitError::io(doing())(error)),
        }
    }

    /// The folder of the bare repository.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The address without credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn auth(&self) -> Option<&Auth> {
        self.auth.as_ref()
    }

    /// Where the repository is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Brings the mirror's branches and tags to what the repository has now, and returns them. What disappeared there
    /// disappears here; its objects stay.
    ///
    /// # Errors
    /// [`GitError::Unreachable`] and [`GitError::Denied`] among others.
    pub fn fetch(&self) -> Result<RemoteRefs, GitError> {
        let _lock = self.lock()?;
        let repo = self.repo()?;
        let have = self.read_refs()?;
        let now = match &self.location {
            Location::Local(path) => {
                let source = local::open(path)?;
                let now = local::list(&source)?;
                local::copy(&source, &repo, &moved(&have, &now))?;
                now
            }
            _ => transport::with_remote(&repo, &self.location, self.auth.as_ref(), |connected| {
                let now = connected.list()?;
                let names: Vec<&String> = now
                    .refs
                    .iter()
                    .filter(|(name, id)| have.refs.get(*name) != Some(id))
                    .map(|(name, _)| name)
                    .collect();
                let specs: Vec<String> = match names.len() {
                    0 => return Ok(now),
                    1..=NAMED_REFSPECS_MAX => names.iter().map(|name| format!("+{name}:{name}")).collect(),
                    _ => vec!["+refs/heads/*:refs/heads/*".into(), "+refs/tags/*:refs/tags/*".into()],
                };
                connected.download(&specs)?;
                Ok(now)
            })?,
        };
        if now != have {
            self.write_refs(&now)?;
        }
        Ok(now)
    }

    /// Makes sure that `commit` (a tag object will do) is in the mirror, in the cheapest way: nothing when it is there,
    /// that one object and what it needs from a local repository, a fetch elsewhere. The mirror's refs follow in the
    /// next [`fetch`](Self::fetch).
    ///
    /// # Errors
    /// [`GitError::NotFound`] when the repository does not have it (any more).
    pub fn ensure(&self, commit: &Oid) -> Result<(), GitError> {
        if self.contains(commit)? {
            return Ok(());
        }
        let gone = || GitError::NotFound { what: format!("the commit {commit} in {}", self.url) };
        if let Location::Local(path) = &self.location {
            let _lock = self.lock()?;
            let repo = self.repo()?;
            let source = local::open(path)?;
            let id = to_git(commit);
            if source.find_object(id, None).is_err() {
                return Err(gone());
            }
            return local::copy(&source, &repo, &[id]);
        }
        self.fetch()?;
        if self.contains(commit)? {
            return Ok(());
        }
        // A branch that moved on since: many servers hand out a commit by its id.
        let by_id = {
            let _lock = self.lock()?;
            let repo = self.repo()?;
            transport::with_remote(&repo, &self.location, self.auth.as_ref(), |c| c.download(&[commit.to_string()]))
        };
        match self.contains(commit)? {
            true => Ok(()),
            false => match by_id {
                // Over ssh the server's refusal to hand out an unknown commit looks like a broken connection.
                Err(error) if error.is_passing() && !error.to_string().contains("not our ref") => Err(error),
                _ => Err(gone()),
            },
        }
    }

    /// What the repository's refs hold now, without fetching anything.
    ///
    /// # Errors
    /// [`GitError::Unreachable`] and [`GitError::Denied`] among others.
    pub fn list_remote(&self) -> Result<RemoteRefs, GitError> {
        match &self.location {
            Location::Local(path) => local::list(&local::open(path)?),
            _ => {
                let repo = self.repo()?;
                transport::with_remote(&repo, &self.location, self.auth.as_ref(), |connected| connected.list())
            }
        }
    }

    /// What these refs hold in the repository now; cheap for a repository on this machine, a listing elsewhere. A ref
    /// that does not exist is left out.
    ///
    /// # Errors
    /// As [`list_remote`](Self::list_remote).
    pub fn remote_refs(&self, names: &[String]) -> Result<BTreeMap<String, Oid>, GitError> {
        if let Location::Local(path) = &self.location {
            let source = local::open(path)?;
            let read = |name: &String| Some((name.clone(), local::read_ref(&source, name)?));
            return Ok(names.iter().filter_map(read).collect());
        }
        let mut refs = self.list_remote()?.refs;
        refs.retain(|name, _| names.contains(name));
        Ok(refs)
    }

    /// Whether the object and all it needs is in the mirror.
    ///
    /// # Errors
    /// When the mirror cannot be opened.
    pub fn contains(&self, id: &Oid) -> Result<bool, GitError> {
        let odb_error = GitError::git(format!("look into the mirror {}", self.dir.display()));
        Ok(self.repo()?.odb().map_err(odb_error)?.exists(to_git(id)))
    }

    /// The commit behind an id; a tag object is peeled, so `sha` may differ from what was asked.
    ///
    /// # Errors
    /// [`GitError::NotFound`] when the mirror does not have it or it is no commit.
    pub fn commit_info(&self, id: &Oid) -> Result<CommitInfo, GitError> {
        let repo = self.repo()?;
        let commit = find_commit(&repo, id)?;
        let author = commit.author();
        let name = String::from_utf8_lossy(author.name_bytes()).into_owned();
        let mail = String::from_utf8_lossy(author.email_bytes()).into_owned();
        let seconds = author.when().seconds();
        Ok(CommitInfo {
            sha: from_git(commit.id()),
            message: cut(String::from_utf8_lossy(commit.message_raw_bytes()).into_owned(), MESSAGE_MAX_BYTES),
            author: cut(format!("{name} <{mail}>"), 512),
            authored_at: jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        })
    }

    /// The default branch's full ref name, as of the last fetch.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn default_branch(&self) -> Result<Option<String>, GitError> {
        let refs = self.read_refs()?;
        Ok(refs.head.filter(|head| refs.refs.contains_key(head)))
    }

    /// Branches and tags as of the last fetch.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn refs(&self) -> Result<RemoteRefs, GitError> {
        self.read_refs()
    }

    /// What a word from a person stands for, as of the last fetch: a full ref name, a branch, a tag, a commit id (7 digits
    /// or more), or the default branch for an empty word and `HEAD`.
    ///
    /// # Errors
    /// [`GitError::NotFound`].
    pub fn resolve(&self, word: &str) -> Result<Resolved, GitError> {
        let not_found = |what: String| GitError::NotFound { what };
        let refs = self.read_refs()?;
        let repo = self.repo()?;
        let by_ref = |name: String| -> Option<Result<Resolved, GitError>> {
            let id = refs.refs.get(&name)?;
            Some(find_commit(&repo, id).map(|c| Resolved { commit: from_git(c.id()), git_ref: Some(name) }))
        };
        if word.is_empty() || word == "HEAD" {
            let head = refs.head.clone().and_then(by_ref);
            return head.unwrap_or_else(|| Err(not_found(self.no_default_branch(&refs))));
        }
        for name in [word.to_owned(), format!("refs/heads/{word}"), format!("refs/tags/{word}")] {
            if let Some(found) = by_ref(name) {
                return found;
            }
        }
        if (7..=40).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_hexdigit()) {
            let found = repo.find_commit_by_prefix(word).map_err(|error| match error.code() {
                git2::ErrorCode::Ambiguous => not_found(format!("one commit `{word}`: the id is ambiguous")),
                _ => not_found(format!("the commit `{word}` in {}", self.url)),
            })?;
            return Ok(Resolved { git_ref: None, commit: from_git(found.id()) });
        }
        Err(not_found(format!("the branch, tag or commit `{}` in {}", shown(word.as_bytes()), self.url)))
    }

    /// In words why an empty ref stands for nothing. Often a bare repository was made for another first branch than the
    /// one that was pushed.
    fn no_default_branch(&self, refs: &RemoteRefs) -> String {
        let branches: Vec<_> = refs.refs.keys().filter_map(|name| name.strip_prefix("refs/heads/")).collect();
        let what = format!("the default branch of {}", self.url);
        let Some(some) = branches.iter().find(|name| **name == "main").or(branches.first()) else {
            return format!("{what}: nothing was pushed there yet");
        };
        let head = refs.head.as_deref().unwrap_or("a branch that does not exist");
        let more = if branches.len() > 1 { ", among others" } else { "" };
        format!(
            "{what}: its HEAD names {head}, and it has `{some}`{more}\nhint: name one, as in `--ref {some}`, or once, in that repository: git symbolic-ref HEAD refs/heads/{some}"
        )
    }

    /// The content of a file at a commit; `None` when there is none. A link anywhere on the way is an error.
    ///
    /// # Errors
    /// [`GitError::IsLink`], [`GitError::TooBig`], [`GitError::NotFound`] for the commit.
    pub fn read_file(&self, commit: &Oid, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, GitError> {
        let repo = self.repo()?;
        let root = root(&repo, commit)?;
        tree::read_file(&repo, root, path, max_bytes)
    }

    /// The names in a folder at a commit, sorted; `None` when there is no such folder. An empty path is the root.
    ///
    /// # Errors
    /// As [`read_file`](Self::read_file).
    pub fn list_dir(&self, commit: &Oid, path: &str) -> Result<Option<Vec<DirEntry>>, GitError> {
        let repo = self.repo()?;
        let root = root(&repo, commit)?;
        tree::list_dir(&repo, root, path)
    }

    /// Puts loose objects and little packs together when there are many. Safe beside readers and fetches, of this
    /// process or another, and when it is killed.
    ///
    /// # Errors
    /// When the mirror cannot be read or written; nothing is lost then.
    pub fn tidy(&self) -> Result<super::Tidied, GitError> {
        let _lock = self.lock()?;
        super::tidy::tidy(&self.repo()?, &self.dir)
    }

    pub(super) fn repo(&self) -> Result<Repository, GitError> {
        Repository::open_bare(&self.dir).map_err(GitError::git(format!("open the mirror {}", self.dir.display())))
    }

    /// One writer at a time, also across processes.
    pub(super) fn lock(&self) -> Result<Flock<File>, GitError> {
        let path = self.dir.join("mainstay.lock");
        let doing = || format!("lock the mirror {}", self.dir.display());
        let file = File::options().create(true).append(true).open(&path).map_err(GitError::io(doing()))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| GitError::io(doing())(errno.into()))
    }

    /// The mirror's refs live in one file that is replaced as a whole: no half-moved set is ever seen, and a thousand
    /// refs are one read.
    fn read_refs(&self) -> Result<RemoteRefs, GitError> {
        let doing = || format!("read the refs of the mirror {}", self.dir.display());
        let read = |name: &str| match std::fs::read_to_string(self.dir.join(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            other => other.map_err(GitError::io(doing())),
        };
        let mut refs = BTreeMap::new();
        for line in read("packed-refs")?.lines() {
            if let Some((id, name)) = line.split_once(' ')
                && let Ok(id) = id.parse()
                && is_watched(name)
            {
                refs.insert(name.to_owned(), id);
            }
        }
        let head = read("HEAD")?.trim().strip_prefix("ref: ").map(str::to_owned);
        Ok(RemoteRefs { refs, head })
    }

    fn write_refs(&self, refs: &RemoteRefs) -> Result<(), GitError> {
        let doing = || format!("write the refs of the mirror {}", self.dir.display());
        let replace = |name: &str, text: &str| -> std::io::Result<()> {
            let beside = self.dir.join(format!("{name}.new"));
            let mut file = File::create(&beside)?;
            file.write_all(text.as_bytes())?;
            std::fs::rename(&beside, self.dir.join(name))
        };
        let mut text = String::from("# pack-refs with: sorted \n");
        for (name, id) in &refs.refs {
            text.push_str(&format!("{id} {name}\n"));
        }
        replace("packed-refs", &text).map_err(GitError::io(doing()))?;
        if let Some(head) = refs.head.as_ref().filter(|head| git2::Reference::is_valid_name(head)) {
            replace("HEAD", &format!("ref: {head}\n")).map_err(GitError::io(doing()))?;
        }
        Ok(())
    }
}

/// What `now` holds and `have` does not.
fn moved(have: &RemoteRefs, now: &RemoteRefs) -> Vec<git2::Oid> {
    now.refs.iter().filter(|(name, id)| have.refs.get(*name) != Some(id)).map(|(_, id)| to_git(id)).collect()
}

pub(super) fn find_commit<'r>(repo: &'r Repository, id: &Oid) -> Result<git2::Commit<'r>, GitError> {
    repo.find_object(to_git(id), None)
        .and_then(|object| object.peel(ObjectType::Commit))
        .and_then(|object| object.into_commit().map_err(|_| git2::Error::from_str("not a commit")))
        .map_err(|_| GitError::NotFound { what: format!("the commit {id} in the mirror") })
}

fn root<'r>(repo: &'r Repository, commit: &Oid) -> Result<git2::Tree<'r>, GitError> {
    find_commit(repo, commit)?.tree().map_err(GitError::git(format!("read the tree of {}", commit.short())))
}

/// At most `max` bytes, cut between characters.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests;
