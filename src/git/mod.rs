//! Git, seen from a CI runner: bare mirrors of watched repositories, reading a tree at a commit, and checkouts.
//!
//! Enters: a URL or a path from `config`, commit ids from `trigger`. Leaves: commits and files read from the mirror,
//! and a stream of changes that make a workspace. Called by `trigger` (what moved), `engine` (read the pipeline file),
//! `runtime` (fill a workspace), `deploy` (what changed since, the history of an environment) and `cli`. All functions block; async callers use `spawn_blocking`.
//!
//! A mirror is a cache: everything in it can be fetched again, and no work is lost with it. What Mainstay itself writes
//! there, the release refs (`releases`), is a copy of what the store knows. One rule keeps it honest:
//! an object is written only after everything it points at, so a commit that is there is there whole.

mod checkout;
mod difference;
mod entry;
mod fingerprint;
mod folder;
mod history;
mod http;
mod local;
mod location;
mod mirror;
mod pack;
mod push;
mod releases;
mod revert;
mod signature;
mod ssh;
mod tidy;
mod transport;
mod tree;
mod working_tree;

pub use checkout::{Base, Change, checkout};
pub use difference::unified_diff;
pub use entry::{Held, ReleaseEntry, Stands};
pub use fingerprint::{RefsFingerprint, fingerprint};
pub use folder::folder;
pub use history::{CommitsBetween, ListedCommit};
pub use location::{Auth, Location, without_credentials};
pub use mirror::{Mirror, RemoteRefs, Resolved};
pub use push::Pushed;
pub use releases::{Believed, Releases, Stopped};
pub use revert::{Revert, Reverted};
pub use tidy::Tidied;
pub use tree::{DirEntry, EntryKind};
pub use working_tree::{WorkingTree, working_tree};

use crate::model::Oid;

/// Why Git could not do what was asked. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The address is none that can be watched.
    #[error("use the repository address `{url}`: it {why}")]
    BadUrl {
        /// The address without credentials, escaped and cut.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The repository does not answer, or breaks off. Trying again later is right.
    #[error("reach the repository {url}: {detail}")]
    Unreachable {
        /// Where, without credentials.
        url: String,
        /// What the connection said.
        detail: String,
    },
    /// The repository answers and wants other credentials.
    #[error("enter the repository {url}: {detail}")]
    Denied {
        /// Where, without credentials.
        url: String,
        /// What it said.
        detail: String,
    },
    /// No such ref, commit or path.
    #[error("find {what}")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// A symbolic link stands where a file or folder is to be read; links are never followed.
    #[error("read `{path}`: it is a symbolic link, and links in a repository are never followed")]
    IsLink {
        /// The path in the tree.
        path: String,
    },
    /// Larger than what the caller wants to hold.
    #[error("read {what}: it is larger than {limit_bytes} bytes")]
    TooBig {
        /// What was read.
        what: String,
        /// The bound.
        limit_bytes: u64,
    },
    /// The tree holds what no honest Git writes.
    #[error("check out `{path}`: {why}")]
    Hostile {
        /// The path, escaped and cut.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// libgit2 said no, in most cases because the repository is damaged.
    #[error("{doing}: {detail}")]
    Git {
        /// What was attempted.
        doing: String,
        /// What it said.
        detail: String,
    },
    /// A file could not be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// What was attempted.
        doing: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl GitError {
    fn git(doing: impl Into<String>) -> impl FnOnce(git2::Error) -> GitError {
        move |error| GitError::Git { doing: doing.into(), detail: error.message().to_owned() }
    }

    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> GitError {
        move |source| GitError::Io { doing: doing.into(), source }
    }

    /// True when the same call may well succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, GitError::Unreachable { .. })
    }
}

/// Sets libgit2 up once for the process. Every entry into libgit2 from this room comes after a call of this.
fn init() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // Settings of whoever runs the daemon (`insteadOf`, proxies, ignore files) must not change what a run sees.
        use git2::ConfigLevel::{Global, ProgramData, System, XDG};
        for level in [ProgramData, System, XDG, Global] {
            // SAFETY: called once, before any other use of libgit2.
            let _ = unsafe { git2::opts::set_search_path(level, "") };
        }
        // SAFETY: as above. Watched repositories usually belong to a `git` user. The check protects programs that run
        // what a repository's config names; this room runs nothing from there.
        let _ = unsafe { git2::opts::set_verify_owner_validation(false) };
        // Idle daemons hold no object caches: 256 KiB of small objects is enough within one call.
        // SAFETY: as above.
        let _ = unsafe { git2::opts::set_cache_max_size(256 * 1024) };
        transport::register();
    });
}

fn to_git(oid: &Oid) -> git2::Oid {
    // An `Oid` is 40 hex digits by construction, which libgit2 always takes; zero is a value it has too.
    git2::Oid::from_str(oid.as_str()).unwrap_or(git2::Oid::ZERO_SHA1)
}

fn from_git(oid: git2::Oid) -> Oid {
    oid.to_string().parse().unwrap_or_else(|_| Oid::zero())
}

/// A path or name from outside, fit to be shown: escaped, at most 200 characters.
fn shown(bytes: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(bytes).chars().take(200).flat_map(char::escape_debug).collect();
    if bytes.len() > 800 {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
pub(crate) mod testing {
    //! Repositories made by the real `git`, for the tests of this room and of `trigger`.
    use std::path::Path;
    use std::process::Command;

    /// Runs `git` in a folder with a fixed identity and no foreign settings; fails the test when git fails.
    pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(args)
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("GIT_AUTHOR_NAME", "Ana")
            .env("GIT_AUTHOR_EMAIL", "ana@example.com")
            .env("GIT_COMMITTER_NAME", "Ana")
            .env("GIT_COMMITTER_EMAIL", "ana@example.com")
            .env_remove("GIT_DIR")
            .output()
            .expect("the program `git` is needed by this test and could not be started");
        assert!(
            output.status.success(),
            "git {args:?} in {dir:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}
