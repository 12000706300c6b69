//! `mainstay hook`: installs the post-receive hook into a bare repository, and is what that hook calls.

use super::Context;
use super::exit::{Exit, Failure};
use crate::daemon::HOOK_SOCKET;
use crate::model::RepoName;
use crate::trigger::hook::{self, Installed};
use std::path::{Path, PathBuf};

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
    /// A hook that is already there keeps working: it is called after ours.
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
        /// The repository's folder
        #[arg(long)]
        git_dir: PathBuf,
        /// The daemon's socket for hooks
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
                None => match named_in_config(repository, context) {
                    Some(name) => name,
                    None => name_of(repository)?,
                },
            };
            install(repository, &name, context)
        }
        Act::Notify { repo, git_dir, socket } => {
            let told = hook::notify(git_dir, repo, socket, std::io::stdin());
            told.map(|_| Exit::Good)
                .map_err(|error| Failure::unreachable(format!("tell the daemon about the push: {error}")))
        }
    }
}

fn install(repository: &Path, name: &RepoName, context: &Context) -> Result<Exit, Failure> {
    let state = std::path::absolute(&context.place.state)?;
    let program = std::env::current_exe()?;
    let report = hook::install(repository, name, &state.join(HOOK_SOCKET), &program).map_err(|error| {
        let text = error.to_string();
        let mut lines = text.lines();
        let failure = Failure::wrong(lines.next().unwrap_or_default());
        lines.filter_map(|line| line.strip_prefix("hint: ")).fold(failure, Failure::hint)
    })?;
    let ui = &context.ui;
    if ui.json {
        ui.json(&serde_json::json!({
            "repo": name, "hook": report.hook, "done": format!("{:?}", report.done).to_lowercase(),
            "chained": report.chained,
        }));
        return Ok(Exit::Good);
    }
    let hook_file = report.hook.display();
    ui.out(match report.done {
        Installed::New => format!("{hook_file} tells Mainstay about pushes to `{name}`"),
        Installed::Renewed => format!("{hook_file} is renewed; it tells Mainstay about pushes to `{name}`"),
        Installed::Unchanged => format!("{hook_file} was there already, for `{name}`"),
    });
    if let Some(chained) = report.chained {
        ui.say(format!("the hook that was there before is called after it: {}", chained.display()));
    }
    Ok(Exit::Good)
}

/// The name under which mainstay.yml watches this very folder.
fn named_in_config(repository: &Path, context: &Context) -> Option<RepoName> {
    let config = crate::config::daemon::load(context.place.config.as_deref()?).ok()?;
    let wanted = repository.canonicalize().ok()?;
    let same = |url: &str| Path::new(url.trim_start_matches("file://")).canonicalize().is_ok_and(|path| path == wanted);
    config.repos.iter().find(|(_, repo)| same(&repo.url)).map(|(name, _)| name.clone())
}

/// `shop` for `/srv/git/shop.git`.
fn name_of(repository: &Path) -> Result<RepoName, Failure> {
    let whole = repository
        .canonicalize()
        .map_err(|error| Failure::wrong(format!("open the repository {}: {error}", repository.display())))?;
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    RepoName::new(name.strip_suffix(".git").unwrap_or(&name)).map_err(|error| {
        Failure::wrong(format!("name the repository: {error}")).hint("give its name in mainstay.yml with --repo")
    })
}
