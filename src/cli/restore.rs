//! `mainstay restore`: from a repository back to a server that answers. Needs no daemon, no configuration and nothing of the
//! host that was lost.

mod all;
mod job;
mod logical;
mod told;

use self::job::{Contained, Job, looked_for};
use self::told::{document, tell};
use super::desk::{self, Desk, Where};
use super::exit::{Exit, Failure};
use super::{Context, words};
use crate::backup::catalog::index::Catalogue;
use crate::backup::repository::{BackupId, Key, RepositoryError};
use crate::backup::restore::place::Watched;
use crate::backup::restore::start::program;
use crate::backup::restore::{
    Checked, Feeding, Into as Files, Options, Plan, PlanError, Progress, Report, RestoreError, Tablespace, Target,
    Wish, plan_for, restore, survey,
};
use crate::backup::restore::{check_keys, place};
use crate::config::backup::{Around, Restore, parse_restore};
use crate::config::finding::Findings;
use crate::config::secret::SecretStore;
use crate::deploy::points;
use crate::model::{EnvironmentName, Lsn, SourceName, SystemId, Timeline};
use crate::runtime::RuntimeError;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

/// Bring a database back: its newest state, or that of a time, a place or a backup
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay restore shop-db --latest --dry-run              the plan: which objects, how far, how long
  mainstay restore --latest --repository s3://shop-recovery/mainstay --identity identity.txt
  mainstay restore shop-db --at 2026-11-23T02:59:59Z --target /srv/pg/before --port 5433 --identity identity.txt
  mainstay restore shop-db --latest --into container --image postgres:17 --identity identity.txt
  mainstay restore crm --latest --into postgres://postgres@new-db/?sslmode=verify-full --identity identity.txt
  mainstay restore --all --to-release production/12 --dry-run

`restore:` in the source's file says where to and what then; it lies in the repository, too. Options here go before it.
Only an empty or new folder is written into; --force moves aside what is there. An interrupted restore cannot be started
by mistake, and the same command goes on with it. A source of `kind: logical` goes into a running server: --into, or `into`
in its file. There only databases that do not exist or are empty are made; --force puts others aside under another name.

Exit codes: 0 the state that was asked for is there, 1 it is not, 2 the request cannot be, 3 the place cannot be reached.")]
#[command(group = clap::ArgGroup::new("wanted").required(true).args(["latest", "at", "lsn", "point", "to_release", "backup"]))]
pub struct Args {
    /// The source [default: the only one]
    source: Option<SourceName>,
    /// All sources, each as its file says; none is touched before every one of them can be
    #[arg(long, conflicts_with_all = [
        "source", "lsn", "backup", "timeline", "system", "target", "bin", "port", "into", "image", "volume", "name",
        "listen", "network", "tablespace",
    ])]
    all: bool,
    /// The newest state that there is
    #[arg(long)]
    latest: bool,
    /// The state at this time, such as 2026-11-23T02:59:59Z
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// The state at this place of the log
    #[arg(long, value_name = "LSN")]
    lsn: Option<Lsn>,
    /// The state at this restore point
    #[arg(long, value_name = "NAME")]
    point: Option<String>,
    /// The last state with which this release ran: right before the next one of its environment
    #[arg(long, value_name = "ENV/N")]
    to_release: Option<ReleaseOf>,
    /// The state at the end of this backup
    #[arg(long, value_name = "ID")]
    backup: Option<BackupId>,
    /// On this timeline [default: the newest]
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
    /// Of this cluster, when the source has had several
    #[arg(long, value_name = "ID")]
    system: Option<SystemId>,
    /// The new data folder
    #[arg(long, value_name = "DIR")]
    target: Option<PathBuf>,
    /// Only the files: start the server yourself
    #[arg(long, conflicts_with_all = ["bin", "port"])]
    files_only: bool,
    /// The folder of `postgres`, or of `pg_restore` for logical copies [default: looked for]
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
    /// The port of the restored server
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Whose the files are and who the server runs as [default: whoever restores; for root, and in an image, `postgres`]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    contained: Contained,
    /// Put a tablespace, by its OID or the folder it was in, into another folder [repeatable]
    #[arg(long, value_name = "OLD=DIR")]
    tablespace: Vec<Elsewhere>,
    /// Move aside what is in the target
    #[arg(long)]
    force: bool,
    /// Run the commands under `then` also when the source's file comes out of the repository
    #[arg(long, requires = "repository")]
    then: bool,
    /// Print the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Where,
}

/// A tablespace that goes elsewhere, as `16400=/srv/fast`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Elsewhere {
    what: Tablespace,
    to: PathBuf,
}

impl std::str::FromStr for Elsewhere {
    type Err = String;
    fn from_str(text: &str) -> Result<Elsewhere, String> {
        let form = "a tablespace's new folder is written as OLD=DIR, such as 16400=/srv/fast";
        let (what, to) = text.split_once('=').filter(|(_, to)| !to.is_empty()).ok_or(form)?;
        let to = std::path::absolute(to).map_err(|error| error.to_string())?;
        Ok(Elsewhere { what: what.parse()?, to })
    }
}

/// A release of an environment, as `production/12`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ReleaseOf {
    environment: EnvironmentName,
    number: u64,
}

impl ReleaseOf {
    /// The point at its end is the one right before the next.
    fn point(&self) -> String {
        points::name(&self.environment, self.number.saturating_add(1))
    }
}

impl std::str::FromStr for ReleaseOf {
    type Err = String;
    fn from_str(text: &str) -> Result<ReleaseOf, String> {
        let form = || "a release is written as ENVIRONMENT/NUMBER, such as production/12".to_owned();
        let (environment, number) = text.rsplit_once('/').ok_or_else(form)?;
        let number = number.parse().map_err(|_| form())?;
        let environment = environment.parse().map_err(|why: crate::model::ids::BadName| why.to_string())?;
        Ok(ReleaseOf { environment, number })
    }
}

/// A source's file is a page of text.
const SOURCE_FILE: &str = "the source's file in the repository";

/// Runs the command.
///
/// # Errors
/// When the state that was asked for cannot be had.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let desk = Desk::open(&args.place, context).await?;
    desk.opener()?;
    if args.all {
        return all::run(args, context, &desk).await;
    }
    let asked = args.asked();
    let source = match desk.source(args.source.as_ref(), &format!("restore SOURCE {asked}")).await {
        Err(failure) if args.source.is_none() && desk.names().await?.len() > 1 => {
            return Err(failure.hint(format!("all of them: mainstay restore --all {asked}{}", args.place.given())));
        }
        source => source?,
    };
    let step = if args.dry_run { Step::Show } else { Step::CarryOut };
    let done = one(args, context, &desk, &source, step).await?;
    if context.ui.json {
        context.ui.json(&done.document);
    }
    Ok(done.exit)
}

/// How far a restore is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Planned, and looked whether it can be done, without a word.
    Check,
    /// The same, and the plan is shown.
    Show,
    /// Done.
    CarryOut,
}

/// What came of it.
struct Done {
    exit: Exit,
    /// The plan, or the report, for programs.
    document: Value,
    /// What it takes for itself on this machine: a folder, a volume, a port. Two restores cannot have one.
    takes: Vec<String>,
}

impl Done {
    fn planned(document: Value, takes: Vec<String>) -> Done {
        Done { exit: Exit::Good, document, takes }
    }
}

/// Restores one source, or looks whether it could be.
async fn one(args: &Args, context: &Context, desk: &Desk, source: &SourceName, step: Step) -> Result<Done, Failure> {
    let opener = desk.opener()?.clone();
    let quiet = step == Step::Check;
    let text = match desk.sources.sources.get(source) {
        Some(here) => Some(here.written.clone()),
        None => stored_text(desk, source).await?,
    };
    if logical::meant(desk, source, text.as_deref()).await? {
        return logical::run(args, context, desk, source, text.as_deref(), step).await;
    }
    if args.contained.server().is_some() {
        return Err(Failure::wrong(format!(
            "restore {source}: `--into` a running server is for logical copies, and it has base backups"
        ))
        .hint("name a new or empty folder with `--target DIR`, or take `--into container --image postgres:N`"));
    }
    let holdings = survey(desk.repository.as_ref(), &opener, source, args.system).await.map_err(failed)?;
    let written = written(desk, source, text.as_deref(), context)?;
    let mut job = Job::new(args, source, written)?;
    if args.place.repository.is_some() && !args.then && !job.then.is_empty() {
        // Whoever may sign could have written them, and here they would run as who restores.
        let lines = job.then.drain(..);
        if !quiet {
            only_shown(context, lines);
        }
    }
    let mut wish = Wish::new(args.state());
    wish.timeline = args.timeline.map(Timeline);
    wish.tablespaces = args.tablespace.iter().map(|one| (one.what.clone(), one.to.clone())).collect();
    let newest = holdings.newest_usable().map(|backup| backup.manifest.server.major());
    let mut into = job.files(newest, desk, context).await?;
    wish.program = match &into {
        Files::Folder { .. } => None,
        Files::Server(server) => Some(program(&server.bin).await.map_err(failed)?),
        Files::Container(container) => Some(container.program()),
    };
    let data = match &into {
        Files::Container(container) => container.data_directory().await.map_err(failed)?,
        _ => Some(job.target().to_owned()),
    };
    let planned = plan_for(data.as_deref(), &holdings, &wish).map_err(|error| unplanned(error, &into))?;
    // Before a container's place is made: that moves aside what is there. A volume that is yet to be made holds nothing.
    if let Some(data) = &data {
        place::apart_from(desk.repository.as_ref(), data, &planned).map_err(failed)?;
    }
    let ui = &context.ui;
    if step != Step::CarryOut {
        let aside = match &into {
            Files::Container(container) => container.check(&planned, args.force).await.map(|()| Vec::new()),
            _ => place::check(job.target(), &planned, args.force, Watched::ByItsFile),
        }
        .map_err(failed)?;
        if let Files::Server(server) = &into {
            server.check_port().map_err(failed)?;
        }
        check_keys(desk.repository.as_ref(), &opener, &planned).await.map_err(failed)?;
        if !ui.json && !quiet {
            ui.out(planned.to_string().trim_end());
            if let Files::Container(container) = &into {
                ui.out(format!("  into      {container}"));
            }
            for folder in aside {
                ui.out(format!("  aside     goes what is in {}", folder.display()));
            }
        }
        let spaces = planned.tablespaces.values().map(|space| format!("the folder {}", space.display()));
        return Ok(Done::planned(json!(planned), job.takes().into_iter().chain(spaces).collect()));
    }
    ui.say(planned.to_string().trim_end());
    let data = match &mut into {
        Files::Container(container) => {
            // Nothing is made or moved aside for what nobody here can open.
            check_keys(desk.repository.as_ref(), &opener, &planned).await.map_err(failed)?;
            container.place(&planned, args.force).await.map_err(failed)?
        }
        _ => job.target().to_owned(),
    };
    let checks = job.checks();
    let options = Options { data, into, force: args.force, feeding: Feeding::default(), checks };
    let report = carried_out(context, desk, opener, &planned, &options).await?;
    let then = after(context, &job, &report).await;
    let good = then.iter().all(|one| one.good);
    tell(context, &planned, &report, &then, good);
    let exit = if good { Exit::Good } else { Exit::Bad };
    Ok(Done { exit, document: document(&report, &then, good), takes: Vec::new() })
}

/// Commands of a source's file that nobody here has said yes to.
fn only_shown(context: &Context, lines: impl Iterator<Item = String>) {
    context.ui.say("commands that the source's file has run after a restore are only shown; `--then` runs them:");
    lines.for_each(|line| context.ui.say(format!("  {line}")));
}

impl Args {
    /// The command that restores one source as all of them would be.
    fn alone(&self, source: &SourceName) -> String {
        let force = if self.force { " --force" } else { "" };
        let then = if self.then { " --then" } else { "" };
        format!("mainstay restore {source} {}{}{force}{then}", self.asked(), self.place.given())
    }

    /// The state that is asked for, as it is written.
    fn asked(&self) -> String {
        let release = self.to_release.as_ref();
        let asked = match self.state() {
            Target::Latest => vec!["--latest".to_owned()],
            Target::Time(at) => vec!["--at".to_owned(), at.to_string()],
            Target::Lsn(lsn) => vec!["--lsn".to_owned(), lsn.to_string()],
            Target::Point(point) => match release {
                Some(of) => vec!["--to-release".to_owned(), format!("{}/{}", of.environment, of.number)],
                None => vec!["--point".to_owned(), point],
            },
            Target::Backup(backup) => vec!["--backup".to_owned(), backup.to_string()],
        };
        let dry_run = self.dry_run.then(|| "--dry-run".to_owned());
        asked.into_iter().chain(dry_run).map(|word| words::shell_word(&word)).collect::<Vec<_>>().join(" ")
    }

    fn state(&self) -> Target {
        let of_release = self.to_release.as_ref().map(ReleaseOf::point);
        match (&self.at, &self.lsn, self.point.as_ref().or(of_release.as_ref()), &self.backup) {
            (Some(at), ..) => Target::Time(*at),
            (_, Some(lsn), ..) => Target::Lsn(*lsn),
            (_, _, Some(name), _) => Target::Point(name.clone()),
            (.., Some(backup)) => Target::Backup(backup.clone()),
            // clap demands one of the six.
            _ => Target::Latest,
        }
    }
}

/// The source's own file as the repository has it.
async fn stored_text(desk: &Desk, source: &SourceName) -> Result<Option<String>, Failure> {
    let read = Catalogue::read(desk.repository.as_ref(), &desk.checker, source).await;
    let catalogue = read.map_err(|error| desk::unread(&error))?;
    let Some(number) = catalogue.sources.keys().next_back() else { return Ok(None) };
    let key = Key::Source(source.clone(), *number);
    let stored = desk.repository.get(&key).await.map_err(desk::unreachable)?;
    let opened = desk.opener()?.open(&key, &stored);
    let (_, text) = opened.map_err(|error| Failure::new(Exit::Bad, anyhow::anyhow!("open {key}: {error}")))?;
    String::from_utf8(text).map(Some).map_err(|_| Failure::wrong(format!("read {key}: it is no text")))
}

/// What the source's own file says of its restore: the one here, or else the newest in the repository.
fn written(
    desk: &Desk,
    source: &SourceName,
    text: Option<&str>,
    context: &Context,
) -> Result<Option<Restore>, Failure> {
    if let Some(here) = desk.sources.sources.get(source) {
        return Ok(here.restore.clone());
    }
    let Some(text) = text else { return Ok(None) };
    with_surroundings(context, |around| parse_restore(SOURCE_FILE, text, around))
}

/// Reads a part of a source's file out of the repository with what this machine has of secrets and variables.
fn with_surroundings<T>(
    context: &Context,
    read: impl FnOnce(&Around<'_>) -> Result<T, Findings>,
) -> Result<T, Failure> {
    let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let store = SecretStore::new(&context.place.state);
    let env = |name: &str| std::env::var(name).ok();
    let around = Around { env: &env, folder: &folder, store: &store, repos: None };
    read(&around).map_err(Failure::of_files)
}

async fn carried_out(
    context: &Context,
    desk: &Desk,
    opener: crate::backup::seal::Opener,
    planned: &Plan,
    options: &Options,
) -> Result<Report, Failure> {
    let progress = Arc::new(Progress::default());
    let bar = bar(context);
    let (shown, seen) = (bar.clone(), Arc::clone(&progress));
    let showing = tokio::spawn(async move {
        loop {
            let now = seen.now();
            shown.set_length((now.base_total_bytes + now.log_total_bytes).max(1));
            shown.set_position(now.base_done_bytes + now.log_done_bytes);
            let left = now
                .left_secs
                .map_or_else(String::new, |secs| format!("about {} left", words::took(Duration::from_secs(secs))));
            shown.set_message(left);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let done = restore(desk.repository.clone(), opener, planned, options, progress).await;
    showing.abort();
    bar.finish_and_clear();
    done.map_err(failed)
}

fn bar(context: &Context) -> ProgressBar {
    use std::io::IsTerminal as _;
    if context.ui.json || context.ui.verbosity < 0 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(1);
    // The template is a constant that indicatif knows.
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {bytes} of {total_bytes}  {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// One thing that follows a restore.
struct Followed {
    what: String,
    good: bool,
    said: String,
}

/// What the checks found, then the commands; the first that fails ends it.
async fn after(context: &Context, job: &Job, report: &Report) -> Vec<Followed> {
    let checks = report.checks.iter();
    let asked = |one: &Checked| Followed { what: one.sql.clone(), good: one.passed, said: one.answer.clone() };
    let mut followed: Vec<Followed> = checks.map(asked).collect();
    if followed.iter().any(|one| !one.good) {
        return followed;
    }
    let mut around = vec![("MAINSTAY_DATA", report.data.clone().into_os_string())];
    if let Some(port) = job.port() {
        around.push(("MAINSTAY_PORT", port.to_string().into()));
    }
    if let Some(made) = &report.container {
        let named = [("MAINSTAY_CONTAINER", &made.name), ("MAINSTAY_VOLUME", &made.volume)];
        around.extend(named.into_iter().filter_map(|(key, name)| Some((key, name.clone()?.into()))));
    }
    followed.extend(follow(context, &job.then, &report.source, &around).await);
    followed
}

/// Runs commands one after the other; the first that fails ends it.
async fn follow(
    context: &Context,
    lines: &[String],
    source: &SourceName,
    around: &[(&str, OsString)],
) -> Vec<Followed> {
    let mut followed = Vec::new();
    for line in lines {
        context.ui.say(format!("$ {line}"));
        let mut command = tokio::process::Command::new("sh");
        command.args(["-e", "-c", line]).stdin(Stdio::null()).env("MAINSTAY_SOURCE", source.as_str());
        command.envs(around.iter().map(|(name, value)| (name, value)));
        // Stdout is for the report.
        command.stdout(Stdio::from(std::io::stderr()));
        let (good, said) = match command.status().await {
            Ok(status) => (status.success(), status.to_string()),
            Err(error) => (false, error.to_string()),
        };
        followed.push(Followed { what: line.clone(), good, said });
        if !good {
            break;
        }
    }
    followed
}

/// The exit code of a restore that did not come about.
fn failed(error: RestoreError) -> Failure {
    let exit = match &error {
        RestoreError::Plan(_) | RestoreError::Place { .. } | RestoreError::Container { .. } | RestoreError::Port(_) => {
            Exit::Wrong
        }
        RestoreError::Engine(RuntimeError::Unreachable { .. }) => Exit::Unreachable,
        RestoreError::Engine(RuntimeError::Image { .. }) => {
            return Failure::new(Exit::Unreachable, anyhow::anyhow!("restore: {error}"))
                .hint("name an image that the engine has or can pull: `docker image ls` shows those that it has");
        }
        RestoreError::Repository(RepositoryError::Unreachable { .. } | RepositoryError::Refused { .. }) => {
            Exit::Unreachable
        }
        RestoreError::Catalogue(error) => return desk::unread(error),
        RestoreError::Open { source: crate::backup::seal::SealError::NoIdentity { .. }, .. } => Exit::Wrong,
        _ => Exit::Bad,
    };
    Failure::new(exit, anyhow::anyhow!("restore: {error}"))
}

/// The same of one that there is no plan for; with where the right programs would be found.
fn unplanned(error: PlanError, into: &Files) -> Failure {
    let right = match &error {
        PlanError::Version { backup, .. } => Some(*backup),
        _ => None,
    };
    let failure = failed(error.into());
    match (right, into) {
        (Some(major), Files::Server(_)) => failure
            .hint(format!("name the folder of PostgreSQL {major}'s programs with `--bin DIR`"))
            .hint(looked_for(Some(major))),
        (Some(major), Files::Container(_)) => {
            failure.hint(format!("name an image of PostgreSQL {major}: `--image postgres:{major}`"))
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::logical::ProgramError;
    use crate::backup::restore::LocalServer;

    #[test]
    fn programs_of_another_version_come_with_where_the_right_ones_are() {
        let hints = |into: &Files| unplanned(PlanError::Version { backup: 16, program: 15 }, into).hints.join("\n");
        let server = LocalServer { bin: "/x".into(), user: None, port: 1, role: "r".into(), socket: None };
        let said = hints(&Files::Server(server));
        assert!(
            said.contains("`--bin DIR`") && said.contains("/usr/lib/postgresql/16/bin, /usr/pgsql-16/bin"),
            "{said}"
        );
        assert_eq!(hints(&Files::Folder { owner: None }), "");
        let places = ProgramError::NotFound { program: "pg_restore", at_least: 17, what: "there is none".into() };
        let said = places.to_string();
        assert!(said.contains("`--bin DIR`") && said.contains("/usr/pgsql-17/bin") && said.contains("PATH"), "{said}");
    }

    #[test]
    fn a_hint_names_the_state_that_was_asked_for() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        for line in [
            "--latest",
            "--at 2026-11-23T02:59:59Z --dry-run",
            "--lsn 0/1A3F2C48",
            "--point 'before it'",
            "--to-release production/12",
            "--backup 20261123T020000Z-1a2b3c4d",
        ] {
            let words = line.replace("'before it'", "before\u{a0}it");
            let words = words.split(' ').map(|word| word.replace('\u{a0}', " "));
            let parsed: Line = clap::Parser::parse_from(["restore".to_owned()].into_iter().chain(words));
            assert_eq!(parsed.args.asked(), line);
        }
    }

    #[test]
    fn the_end_of_a_release_is_the_point_before_the_next() {
        let release: ReleaseOf = "production/12".parse().unwrap();
        assert_eq!(release.point(), "mainstay:production/13");
        for bad in ["production", "production/", "production/x", "/1", "a b/1", "production/-1"] {
            assert!(bad.parse::<ReleaseOf>().is_err(), "{bad}");
        }
    }
}
