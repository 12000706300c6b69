//! `mainstay hook`: installs the post-receive hook into a bare repository, and is what that hook calls.

use super::Context;
use super::exit::{Exit, Failure};
use crate::model::RepoName;
use std::path::PathBuf;

/// Install the hook that tells the daemon about pushes at once
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Install the hook into a bare repository on this machine
    ///
    /// A hook that is already there keeps working: it is called first.
    #[command(after_help = "Example:
  mainstay hook install /srv/git/shop.git")]
    Install {
        /// The bare repository
        repository: PathBuf,
        /// Its name in mainstay.yml [default: the folder's name without .git]
        #[arg(long, value_name = "NAME")]
        repo: Option<RepoName>,
    },
    /// Called by the hook: reads `old new ref` lines and passes them on
    #[command(hide = true)]
    Notify {
        /// The repository's name in mainstay.yml
        #[arg(long)]
        repo: String,
        /// The bare repository, where the report waits when nobody takes it
        #[arg(long)]
        git_dir: PathBuf,
        /// The socket for hooks
        #[arg(long)]
        socket: PathBuf,
    },
}

/// Runs the command.
///
/// # Errors
/// When the repository is none, or the hook cannot be written.
pub fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    match &args.act {
        Act::Install { repository, repo } => {
            let name = match repo {
                Some(name) => name.clone(),
                None => name_of(repository)?,
            };
            let _ = (name, context);
            // Integration: `trigger::hook::install(repository, &name, SOCKET in context.place.state, &std::env::current_exe()?)`.
            Err(Failure::wrong("install the hook: this build holds no hook"))
        }
        // Integration: `trigger::hook::notify(git_dir, repo, socket, std::io::stdin())`; its errors are the hook's to mend.
        Act::Notify { repo, git_dir, socket } => {
            let _ = (repo, git_dir, socket);
            Err(Failure::wrong("pass on the push: this build holds no hook"))
        }
    }
}

/// `shop` for `/srv/git/shop.git`.
fn name_of(repository: &std::path::Path) -> Result<RepoName, Failure> {
    let whole = repository
        .canonicalize()
        .map_err(|error| Failure::wrong(format!("open the repository {}: {error}", repository.display())))?;
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    RepoName::new(name.strip_suffix(".git").unwrap_or(&name)).map_err(|error| {
        Failure::wrong(format!("name the repository: {error}")).hint("give its name in mainstay.yml with --repo")
    })
}
