//! The command line: arguments come in, an exit code leaves. One file per command; this one knows their names, their
//! order on the help page, and which of them need a runtime.

pub mod approvals;
pub mod approve;
pub mod audit;
pub mod backup;
pub mod backups;
pub mod cancel;
pub mod client;
pub mod completions;
pub mod demo;
mod deploys;
pub mod desk;
pub mod doctor;
pub mod end_watch;
pub mod environments;
pub mod exit;
pub mod expire;
pub mod graph;
pub mod hold;
pub mod hook;
pub mod inbox;
pub mod init;
pub mod key;
pub mod logs;
pub mod man;
pub mod place;
pub mod plan;
pub mod promote;
pub mod release_hold;
pub mod releases;
pub mod reload;
pub mod repair;
pub mod restore;
pub mod retry;
pub mod rollback;
pub mod run;
pub mod runs;
pub mod schema;
pub mod secrets;
pub mod serve;
pub mod shim;
pub mod show;
pub mod status;
pub mod table;
pub mod token;
pub mod trigger;
pub mod ui;
pub mod validate;
pub mod verify;
pub mod words;

use crate::telemetry::{self, Voice};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use exit::{Exit, Failure};
use place::Place;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use ui::Ui;

/// Keeps a command's own options apart on its help page.
const EVERYWHERE: &str = "Options of every command";

/// Runs the pipelines of your Git repositories as graphs of container steps.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, subcommand_required = true, arg_required_else_help = true)]
#[command(max_term_width = 100)]
struct Cli {
    /// The daemon's configuration [default: ./mainstay.yml, then /etc/mainstay/mainstay.yml]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "FILE", env = "MAINSTAY_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// The daemon's state folder, where its socket is [default: what the configuration says]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "DIR", env = "MAINSTAY_STATE", hide_env_values = true)]
    state: Option<PathBuf>,
    /// Write one JSON document to stdout (JSON lines where it streams), and nothing else
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    json: bool,
    /// Say more; twice for still more
    #[arg(short, long, global = true, help_heading = EVERYWHERE, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say only what was asked for, and errors
    #[arg(short, long, global = true, help_heading = EVERYWHERE, conflicts_with = "verbose")]
    quiet: bool,
    /// Colour: auto, always or never
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "WHEN", default_value = "auto", hide_default_value = true)]
    #[arg(value_parser = ["auto", "always", "never"], hide_possible_values = true)]
    color: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // start
    Init(init::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
    Serve(serve::Args),
    Reload(reload::Args),
    Status(status::Args),
    Hook(hook::Args),
    Completions(completions::Args),
    Man(man::Args),
    // pipelines
    Validate(validate::Args),
    Schema(schema::Args),
    Graph(graph::Args),
    Plan(plan::Args),
    Run(run::Args),
    // runs
    Trigger(trigger::Args),
    Runs(runs::Args),
    Show(show::Args),
    Logs(logs::Args),
    Cancel(cancel::Args),
    Retry(retry::Args),
    Inbox(inbox::Args),
    // deploys
    Environments(environments::Args),
    Releases(releases::Args),
    Promote(promote::Args),
    Rollback(rollback::Args),
    Repair(repair::Args),
    EndWatch(end_watch::Args),
    Hold(hold::Args),
    ReleaseHold(release_hold::Args),
    Approvals(approvals::Args),
    Approve(approve::ApproveArgs),
    Reject(approve::RejectArgs),
    Withdraw(approve::WithdrawArgs),
    // recovery
    Backup(backup::Args),
    Backups(backups::Args),
    Restore(Box<restore::Args>),
    Verify(verify::Args),
    Expire(expire::Args),
    // keeping
    Key(key::Args),
    Secrets(secrets::Args),
    Token(token::Args),
    Audit(audit::Args),
    // not for people
    #[command(hide = true)]
    Shim(shim::Args),
}

/// The help page's order. A test holds it against the commands that exist.
const GROUPS: &[(&str, &[&str])] = &[
    ("Start", &["init", "demo", "doctor", "serve", "reload", "status", "hook", "completions", "man"]),
    ("Pipelines", &["validate", "schema", "graph", "plan", "run"]),
    ("Runs", &["trigger", "runs", "show", "logs", "cancel", "retry", "inbox"]),
    (
        "Deploys",
        &[
            "approvals",
            "approve",
            "reject",
            "withdraw",
            "environments",
            "releases",
            "promote",
            "rollback",
            "repair",
            "end-watch",
            "hold",
            "release-hold",
        ],
    ),
    ("Recovery", &["backup", "backups", "restore", "verify", "expire"]),
    ("Keeping", &["key", "secrets", "token", "audit"]),
];

const AFTER_HELP: &str = "\
First steps:
  mainstay init                      write mainstay.yml and a first pipeline
  mainstay run .mainstay/build.yml   run it here, from the working tree
  mainstay doctor                    see whether this machine has what a daemon needs
  mainstay serve                     watch the repositories and run what is pushed

Exit codes: 0 good, 1 bad (a failed run), 2 the request or a file is wrong,
3 something it needs cannot be reached, 4 refused, 130 interrupted.";

/// The whole command line as clap knows it, with the help page in groups.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let width = command.get_subcommands().map(|c| c.get_name().len()).max().unwrap_or(0);
    let mut list = String::new();
    for (title, names) in GROUPS {
        list.push_str(&format!("{title}:\n"));
        for sub in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            list.push_str(&format!("  {:width$}  {about}\n", sub.get_name()));
        }
        list.push('\n');
    }
    command
        .help_template(format!(
            "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}\n"
        ))
        .after_help(AFTER_HELP)
        .subcommand_value_name("COMMAND")
}

/// What every command is given.
#[derive(Debug)]
pub struct Context {
    /// How to talk.
    pub ui: Ui,
    /// Where the configuration, the state folder and so the daemon are.
    pub place: Place,
}

/// Reads the arguments, runs the command, renders its failure once, and says how the process should exit.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Two crypto libraries could be in one build; the first client made would panic if nobody had chosen.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match command().try_get_matches_from(&arguments).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error, arguments.iter().any(|a| a == "--json")),
    };
    let verbosity = if cli.quiet { -1 } else { i8::try_from(cli.verbose).unwrap_or(i8::MAX) };
    let ui = Ui::new(cli.json, &cli.color, verbosity);
    let voice = if matches!(cli.command, Command::Serve(_)) { Voice::Daemon } else { Voice::Command };
    telemetry::init(voice, verbosity);
    let result =
        Place::find(cli.config, cli.state).and_then(|place| dispatch(&cli.command, &Context { ui: ui.clone(), place }));
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.render(&ui);
            failure.exit.into()
        }
    }
}

fn dispatch(command: &Command, context: &Context) -> Result<Exit, Failure> {
    let ui = &context.ui;
    let config = context.place.config.as_deref();
    match command {
        Command::Init(args) => init::run(args, ui),
        Command::Demo(args) => demo::run(args, ui),
        Command::Doctor(args) => asynchronously(doctor::run(args, context)),
        Command::Serve(args) => serve::run(args, config, ui),
        Command::Reload(args) => asynchronously(reload::run(args, context)),
        Command::Status(args) => asynchronously(status::run(args, context)),
        Command::Hook(args) => hook::run(args, context),
        Command::Completions(args) => completions::run(args, ui),
        Command::Man(args) => man::run(args, ui),
        Command::Validate(args) => validate::run(args, context),
        Command::Schema(args) => schema::run(args, ui),
        Command::Graph(args) => graph::run(args, ui),
        Command::Plan(args) => plan::run(args, ui),
        Command::Run(args) => carried_out(run::run(args, context)),
        Command::Trigger(args) => asynchronously(trigger::run(args, context)),
        Command::Runs(args) => asynchronously(runs::run(args, context)),
        Command::Show(args) => asynchronously(show::run(args, context)),
        Command::Logs(args) => asynchronously(logs::run(args, context)),
        Command::Cancel(args) => asynchronously(cancel::run(args, context)),
        Command::Retry(args) => asynchronously(retry::run(args, context)),
        Command::Inbox(args) => asynchronously(inbox::run(args, context)),
        Command::Environments(args) => asynchronously(environments::run(args, context)),
        Command::Releases(args) => asynchronously(releases::run(args, context)),
        Command::Promote(args) => asynchronously(promote::run(args, context)),
        Command::Rollback(args) => asynchronously(rollback::run(args, context)),
        Command::Repair(args) => asynchronously(repair::run(args, context)),
        Command::EndWatch(args) => asynchronously(end_watch::run(args, context)),
        Command::Hold(args) => asynchronously(hold::run(args, context)),
        Command::ReleaseHold(args) => asynchronously(release_hold::run(args, context)),
        Command::Approvals(args) => asynchronously(approvals::run(args, context)),
        Command::Approve(args) => asynchronously(approve::approve(args, context)),
        Command::Reject(args) => asynchronously(approve::reject(args, context)),
        Command::Withdraw(args) => asynchronously(approve::withdraw(args, context)),
        Command::Backup(args) => carried_out(backup::run(args, context)),
        Command::Backups(args) => asynchronously(backups::run(args, context)),
        Command::Restore(args) => carried_out(restore::run(args, context)),
        Command::Verify(args) => carried_out(verify::run(args, context)),
        Command::Expire(args) => asynchronously(expire::run(args, context)),
        Command::Key(args) => key::run(args, context),
        Command::Secrets(args) => secrets::run(args, context),
        Command::Token(args) => asynchronously(token::run(args, context)),
        Command::Audit(args) => asynchronously(audit::run(args, context)),
        Command::Shim(args) => shim::run(args),
    }
}

/// Runs a command that drives a run itself, and minds Ctrl-C itself.
fn carried_out(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// Runs a command that talks to others. Only these pay for a runtime; Ctrl-C ends them with 130.
fn asynchronously(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            // A command that has something to say about Ctrl-C says it first.
            biased;
            result = work => result,
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_for_people_is_on_the_help_page_once() {
        let listed: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let command = Cli::command();
        for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            let times = listed.iter().filter(|name| **name == sub.get_name()).count();
            assert_eq!(times, 1, "`{}` is on the help page {times} times", sub.get_name());
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }
}
