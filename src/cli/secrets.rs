//! `mainstay secrets`: puts values into the store in the state folder, where the daemon reads them. Needs no daemon.
//!
//! A value never comes as an argument: every user of the machine could read it in the list of processes, and the shell
//! keeps it in its history.

use super::Context;
use super::exit::{Exit, Failure};
use crate::config::secret::{SECRET_MAX_BYTES, Secret, SecretError, SecretStore};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use serde_json::json;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

/// Keep passwords and tokens for steps and for mainstay.yml
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "Examples:
  mainstay secrets set DEPLOY_TOKEN                      asks for it, without showing it
  pass show deploy | mainstay secrets set DEPLOY_TOKEN   one newline at the end is left out
  mainstay secrets set SSH_KEY --from-file ~/.ssh/id_ed25519
  mainstay secrets list                                  names only

In mainstay.yml `repos.NAME.secrets` says which repositories may ask for it, and `${secret:NAME}` is its value.
A running daemon sees a change after `mainstay reload`.")]
pub struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Store a value, read from stdin, in place of what had the name
    Set {
        /// Its name: letters, digits and `_`, as of an environment variable
        name: String,
        /// Take the content of this file, to the last byte, in place of stdin
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
    },
    /// List the names; values are never shown
    List,
    /// Remove one
    Rm {
        /// Its name
        name: String,
    },
}

/// Runs the command.
///
/// # Errors
/// A bad name or value, a store that cannot be read or written.
pub fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let ui = &context.ui;
    let state = &context.place.state;
    let store = SecretStore::new(state);
    let failed = |error: SecretError| {
        let hint = match &error {
            SecretError::Io { .. } => {
                format!("the state folder is {}, because {}", state.display(), context.place.why)
            }
            SecretError::Name(_) => "a name such as DEPLOY_TOKEN will do".to_owned(),
            SecretError::Value { .. } => "see `mainstay secrets set --help`".to_owned(),
        };
        Failure::wrong(error.to_string()).hint(hint)
    };
    match &args.act {
        Act::Set { name, from_file } => {
            // The name first: nobody should type a password to hear that the name is wrong.
            let known = store.contains(name).map_err(failed)?;
            let value = match from_file {
                Some(file) => from(file)?,
                None => from_stdin(name, context)?,
            };
            store.set(name, &value).map_err(failed)?;
            if ui.json {
                ui.json(&json!({ "name": name, "replaced": known }));
            } else {
                ui.out(if known { format!("replaced {name}") } else { format!("stored {name}") });
                ui.say(format!("in {}; a running daemon sees it after `mainstay reload`", state.display()));
            }
        }
        Act::List => {
            let names = store.list().map_err(failed)?;
            if ui.json {
                ui.json(&names);
            } else if names.is_empty() {
                ui.say(format!("no secrets are stored in {}", state.display()));
            } else {
                names.iter().for_each(|name| ui.out(name));
            }
        }
        Act::Rm { name } => {
            if !store.remove(name).map_err(failed)? {
                return Err(Failure::wrong(format!("remove the secret `{name}`: none of that name is stored"))
                    .hint("`mainstay secrets list` has the names"));
            }
            if ui.json {
                ui.json(&json!({ "name": name, "removed": true }));
            } else {
                ui.out(format!("removed {name}"));
                ui.say("a running daemon keeps the value it has read until `mainstay reload`");
            }
        }
    }
    Ok(Exit::Good)
}

fn from(file: &Path) -> Result<Secret, Failure> {
    let failed = |error: io::Error| Failure::wrong(format!("read {}: {error}", file.display()));
    text(std::fs::File::open(file).map_err(failed)?, false)
        .map_err(|error| Failure::wrong(format!("read {}: {error}", file.display())))
}

fn from_stdin(name: &str, context: &Context) -> Result<Secret, Failure> {
    let stdin = io::stdin();
    let read = if stdin.is_terminal() {
        context.ui.say(format!("the value of {name} (it is not shown; Enter ends it):"));
        let _quiet = Quiet::new()?;
        let mut line = String::new();
        stdin.read_line(&mut line).map(|_| Secret::new(line.strip_suffix('\n').unwrap_or(&line)))
    } else {
        text(stdin.lock(), true)
    };
    read.map_err(|error| Failure::wrong(format!("read the value from stdin: {error}")))
}

/// The text, of bounded size; without the one newline that `echo` adds, when asked for.
fn text(input: impl Read, strip: bool) -> io::Result<Secret> {
    let mut bytes = Vec::new();
    input.take(SECRET_MAX_BYTES + 2).read_to_end(&mut bytes)?;
    if strip && bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() as u64 > SECRET_MAX_BYTES {
        return Err(io::Error::other("it is longer than 64 KiB"));
    }
    String::from_utf8(bytes).map(Secret::new).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

/// The terminal does not show what is typed until this is dropped.
struct Quiet(nix::sys::termios::Termios);

impl Quiet {
    fn new() -> io::Result<Quiet> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &quiet)?;
        Ok(Quiet(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that is gone has nobody left to show anything.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
