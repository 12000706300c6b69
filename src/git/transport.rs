//! How libgit2 reaches repositories elsewhere: it speaks the protocol, our two transports carry it (`http`, `ssh`).
//!
//! libgit2 calls a transport on the thread that called libgit2, and gives it nothing but a URL. Where to go and with
//! which credentials is therefore left in a thread-local for the time of one call, and so is what went wrong.

use super::mirror::is_watched;
use super::push::{Pushed, Wanted};
use super::{Auth, GitError, Location, Oid, RemoteRefs, from_git, http, ssh};
use git2::transport::Transport;
use git2::{AutotagOption, Direction, FetchOptions, PushOptions, Remote, RemoteCallbacks, Repository};
use std::cell::RefCell;

/// What the transports of the running call need to know.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) location: Location,
    pub(super) auth: Option<Auth>,
}

thread_local! {
    static TARGET: RefCell<Option<Target>> = const { RefCell::new(None) };
    static FAILURE: RefCell<Option<GitError>> = const { RefCell::new(None) };
}

/// Registers both transports; called once, by [`init`](super::init).
pub(super) fn register() {
    for scheme in ["http", "https", "ssh"] {
        let make = move |remote: &Remote<'_>| match target() {
            Some(target) if scheme == "ssh" => Transport::smart(remote, false, ssh::Subtransport::new(target)),
            Some(target) => Transport::smart(remote, true, http::Subtransport::new(target)),
            None => Err(git2::Error::from_str("no repository was named")),
        };
        // SAFETY: called once, before anything in this process could make a transport.
        if let Err(error) = unsafe { git2::transport::register(scheme, make) } {
            tracing::error!(scheme, %error, "failed to register a Git transport");
        }
    }
}

fn target() -> Option<Target> {
    TARGET.with_borrow(Clone::clone)
}

/// Keeps the exact reason of a failure, which libgit2 would reduce to a sentence, and returns what libgit2 wants.
pub(super) fn fail(error: GitError) -> git2::Error {
    let words = git2::Error::from_str(&error.to_string());
    FAILURE.with_borrow_mut(|failure| {
        failure.get_or_insert(error);
    });
    words
}

/// A connection to the repository, for the time of one call of [`with_remote`].
pub(super) struct Connected<'a, 'r> {
    remote: &'a mut Remote<'r>,
    url: String,
}

/// A server that names more is listed only up to here; forges with so many hide most of them.
const REFS_MAX: usize = 500_000;

impl Connected<'_, '_> {
    /// Branches and tags, and the branch HEAD names.
    pub(super) fn list(&self) -> Result<RemoteRefs, GitError> {
        let mut found = RemoteRefs::default();
        for head in self.remote.list().map_err(|e| explain(&self.url, &e))?.iter().take(REFS_MAX) {
            let name = head.name();
            if name == "HEAD" {
                found.head = head.symref_target().map(str::to_owned);
            } else if is_watched(name) && git2::Reference::is_valid_name(name) {
                // Peeled values come as `NAME^{}`, which is no valid name.
                found.refs.insert(name.to_owned(), from_git(head.oid()));
            }
        }
        Ok(found)
    }

    /// What one ref holds, whatever its kind.
    pub(super) fn find(&self, name: &str) -> Result<Option<Oid>, GitError> {
        let heads = self.remote.list().map_err(|e| explain(&self.url, &e))?;
        Ok(heads.iter().find(|head| head.name() == name).map(|head| from_git(head.oid())))
    }

    /// Downloads what the refspecs name and the repository does not have.
    pub(super) fn download(&mut self, specs: &[String]) -> Result<(), GitError> {
        let mut options = FetchOptions::new();
        options.download_tags(AutotagOption::None).update_fetchhead(false);
        self.remote.download(specs, Some(&mut options)).map_err(|error| {
            // The line held, or the transport would have said why not: it is the other side that did not want to.
            let refused = |error: &git2::Error| GitError::Git {
                doing: format!("fetch from {}", self.url),
                detail: error.message().to_owned(),
            };
            FAILURE.take().unwrap_or_else(|| refused(&error))
        })
    }
}

/// The time of one call, in which the transports know where to go.
struct Call;

impl Call {
    fn to(location: &Location, auth: Option<&Auth>) -> Call {
        FAILURE.set(None);
        TARGET.set(Some(Target { location: location.clone(), auth: auth.cloned() }));
        Call
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        TARGET.set(None);
        FAILURE.set(None);
    }
}

/// Sets `name` to a commit, if what the server says it holds is `wanted`. The server moves it only from there.
pub(super) fn push(
    repo: &Repository,
    location: &Location,
    auth: Option<&Auth>,
    name: &str,
    tip: git2::Oid,
    wanted: Wanted,
) -> Result<Pushed, GitError> {
    let _call = Call::to(location, auth);
    let url = location.as_url();
    let mut remote = repo.remote_anonymous(&url).map_err(|e| explain(&url, &e))?;
    let doing = || format!("push {name} to {url}");
    let (decided, refused) = (RefCell::new(None), RefCell::new(None));
    let result = {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.push_negotiation(|updates| {
            let found = updates.first().map(|update| update.src()).filter(|id| !id.is_zero());
            wanted.check(repo, found, tip).map_err(|pushed| {
                decided.replace(Some(pushed));
                git2::Error::from_str("nothing is to be pushed")
            })
        });
        callbacks.push_update_reference(|_, status| {
            refused.replace(status.map(str::to_owned));
            Ok(())
        });
        let mut options = PushOptions::new();
        options.remote_callbacks(callbacks);
        remote.push(&[format!("+{tip}:{name}")], Some(&mut options))
    };
    if let Some(pushed) = decided.into_inner() {
        return Ok(pushed);
    }
    match (result, refused.into_inner()) {
        (Ok(()), None) => Ok(Pushed::Done),
        (Ok(()), Some(why)) => Err(GitError::Git { doing: doing(), detail: why }),
        (Err(error), _) => {
            Err(FAILURE.take().unwrap_or_else(|| GitError::Git { doing: doing(), detail: error.message().to_owned() }))
        }
    }
}

/// Connects to `location`, lets `work` use the connection, and closes it.
pub(super) fn with_remote<T>(
    repo: &Repository,
    location: &Location,
    auth: Option<&Auth>,
    work: impl FnOnce(&mut Connected<'_, '_>) -> Result<T, GitError>,
) -> Result<T, GitError> {
    let _call = Call::to(location, auth);
    let url = location.as_url();
    let mut remote = repo.remote_anonymous(&url).map_err(|e| explain(&url, &e))?;
    remote.connect(Direction::Fetch).map_err(|e| explain(&url, &e))?;
    let result = work(&mut Connected { remote: &mut remote, url });
    // What was wanted is there; a connection that does not close well changes nothing.
    let _ = remote.disconnect();
    result
}

/// The exact reason, when a transport left one; else what libgit2 said.
fn explain(url: &str, error: &git2::Error) -> GitError {
    FAILURE.take().unwrap_or_else(|| GitError::Unreachable { url: url.to_owned(), detail: error.message().to_owned() })
}
