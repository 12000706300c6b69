//! `mainstay backup`: a base backup now, by the daemon that tends the source, or without one.

use super::client::Client;
use super::desk;
use super::exit::{Exit, Failure};
use super::{Context, words};
use crate::backup::catalog::index::Catalogue;
use crate::backup::keeper::{Kind, LEASE_TTL, Setup, logical, once, phase};
use crate::backup::logical::{DumpError, ProgramError};
use crate::backup::repository::open::{self, Making};
use crate::backup::ship::Shipper;
use crate::backup::ship::lease::{Lease, LeaseError};
use crate::backup::take::Progress;
use crate::config::backup::Source;
use crate::daemon::wire;
use crate::model::SourceName;
use crate::model::quantity::rounded_bytes;
use crate::model::source_view::{BackupAsked, BackupWish, LastBackup, SourceView, UnderWay};
use crate::runtime::RuntimeError;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Take a base backup of a source now, or a logical copy
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay backup shop-db
  mainstay backup shop-db --full     all of it, where `incremental` would take what has changed
  mainstay backup shop-db --alone    without asking a daemon

Waits until the backup exists: every object is stored and read back, and so is the log that it needs. A daemon that tends
the source takes it; where none runs, this command does everything by itself and then ends, log and all.")]
pub struct Args {
    /// The source: a file of `backups/` without its extension [default: the only one]
    source: Option<SourceName>,
    /// All of it, even if the source's file has `incremental`
    #[arg(long)]
    full: bool,
    /// Do it here even if a daemon answers
    #[arg(long)]
    alone: bool,
    /// Yes, the server was made anew: let it take the place of what is stored
    #[arg(long)]
    new_cluster: bool,
}

/// How often the daemon is asked how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// Who waits longer than this is told what for.
const WITHOUT_A_WORD: Duration = Duration::from_secs(2);
/// What has come is put before we end.
const GRACE: Duration = Duration::from_secs(30);

/// Runs the command.
///
/// # Errors
/// When there is no such source, or there is no backup in the end.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    if !args.alone {
        let client = Client::new(&context.place)?;
        match client.get::<Vec<SourceView>>("sources", &[]).await {
            Ok(views) => return by_daemon(args, context, &client, &views).await,
            Err(failure) if failure.exit == Exit::Unreachable => {}
            Err(failure) => return Err(failure),
        }
    }
    by_ourselves(args, context).await
}

async fn by_daemon(args: &Args, context: &Context, client: &Client, views: &[SourceView]) -> Result<Exit, Failure> {
    let names: Vec<&SourceName> = views.iter().map(|view| &view.name).collect();
    let name = match (&args.source, names.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => (*only).clone(),
        (None, _) => return Err(which(&names)),
    };
    let asked: BackupAsked = match args.new_cluster {
        true => client.post(&format!("sources/{name}/take-over"), &json!({})).await?,
        false => client.post(&format!("sources/{name}/backup"), &BackupWish { full: args.full }).await?,
    };
    let stored =
        views.iter().find(|view| view.name == name).and_then(|view| view.last_backup.as_ref()?.cluster.clone());
    let bar = bar(context);
    loop {
        tokio::time::sleep(LOOK).await;
        let views: Vec<SourceView> = client.get("sources", &[]).await?;
        let view = views.into_iter().find(|view| view.name == name);
        let view = view.ok_or_else(|| Failure::wrong(format!("back up {name}: the daemon tends it no longer")))?;
        if let Some(under_way) = &view.backup {
            show(&bar, under_way);
            continue;
        }
        // An incremental one that was under way comes first, and does not answer the wish for a whole one.
        let whole = args.full || args.new_cluster;
        let answers = |last: &LastBackup| last.began >= asked.since && (!whole || last.parent.is_none());
        if let Some(last) = view.last_backup.filter(answers) {
            bar.finish_and_clear();
            not_taken_over(args, context, stored.as_slice(), &last);
            return Ok(done(context, &name, &last));
        }
        // One that ended between two looks was never seen under way.
        if let Some(failed) = view.failed_backup.filter(|failed| failed.at >= asked.since) {
            bar.finish_and_clear();
            let why = failed.words.strip_prefix("failed to ").unwrap_or(&failed.words).to_owned();
            return Err(Failure::new(Exit::Bad, anyhow::anyhow!(why)));
        }
        bar.set_message(words::clean(&view.words));
    }
}

fn which(names: &[&SourceName]) -> Failure {
    let failure = Failure::wrong("find the source: there is not exactly one");
    match names {
        [] => failure.hint("a source is a file in `backups/` beside mainstay.yml; `mainstay reload` reads them again"),
        _ => names.iter().fold(failure, |failure, name| failure.hint(format!("mainstay backup {name}"))),
    }
}

async fn by_ourselves(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let (config, sources) = desk::configured(context)?;
    let names: Vec<&SourceName> = sources.sources.keys().collect();
    let source: Source = match (&args.source, names.as_slice()) {
        (Some(name), _) => sources.sources.get(name).cloned().ok_or_else(|| {
            let there: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            Failure::wrong(format!("back up {name}: there is no file of this name in `backups/`"))
                .hint(format!("there is {}", if there.is_empty() { "none".to_owned() } else { there.join(", ") }))
        })?,
        (None, [only]) => sources.sources[*only].clone(),
        (None, _) => return Err(which(&names)),
    };
    let sealer = desk::sealer(&config)?;
    let mut trusted = config.repository.trust.clone();
    trusted.push(sealer.public());
    let opened = open::open(&config.repository.place, Making::First(&config.state)).await;
    let ui = context.ui.clone();
    let programs = wire::programs(&config, &source, Arc::new(move |text| ui.say(text)));
    let setup = Setup {
        repository: opened.map_err(desk::unreachable)?,
        sealer,
        checker: crate::backup::seal::Checker::new(trusted),
        owner: format!("`mainstay backup`, process {}", std::process::id()),
        programs: programs.map_err(|error| Failure::new(Exit::Wrong, error))?,
        source,
        state: config.state.clone(),
    };
    take(&setup, args, context).await
}

async fn take(setup: &Setup, args: &Args, context: &Context) -> Result<Exit, Failure> {
    let kind = if args.full || args.new_cluster { Kind::Whole } else { Kind::Incremental };
    let (repository, name) = (setup.repository.clone(), setup.source.name.clone());
    let stored = match args.new_cluster {
        true => clusters(setup).await?,
        false => Vec::new(),
    };
    let (sealer, checker) = (setup.sealer.clone(), setup.checker.clone());
    let taking = Lease::take(repository, sealer, checker, name.clone(), &setup.owner, LEASE_TTL);
    let lease = waited_for(taking, || {
        let most = words::took(LEASE_TTL);
        context
            .ui
            .say(format!("{name}: somebody else had it a moment ago; for {most} it is seen whether they still do"));
    });
    let lease = lease.await.map_err(|error| match error {
        LeaseError::Held { .. } => Failure::new(Exit::Refused, error),
        other => Failure::new(Exit::Unreachable, other),
    })?;
    let bar = bar(context);
    let shown = bar.clone();
    let began = jiff::Timestamp::now();
    let words = if setup.source.logical.is_some() { logical::phase } else { phase };
    let tell = move |progress: Progress| {
        let phase = words(progress.phase).to_owned();
        let (bytes, of_bytes, incremental) =
            (progress.received_bytes, progress.estimated_bytes, kind == Kind::Incremental);
        show(&shown, &UnderWay { began, bytes, of_bytes, phase, incremental });
    };
    if let Some(what) = &setup.source.logical {
        let taken = logical::copy(setup, what, Arc::new(tell)).await;
        bar.finish_and_clear();
        lease.release().await;
        let manifest = taken.map_err(|error| Failure::new(exit(&error), error))?;
        let last = LastBackup::from(&manifest);
        not_taken_over(args, context, &stored, &last);
        return Ok(done(context, &name, &last));
    }
    let shipper = Shipper::start(once::shipping(setup, args.new_cluster));
    let taken = once::back_up(setup, kind, shipper.status(), Arc::new(tell)).await;
    bar.finish_and_clear();
    shipper.stop(GRACE).await;
    lease.release().await;
    let manifest = taken.map_err(|error| Failure::new(exit(&error), error))?;
    let last = LastBackup::from(&manifest);
    not_taken_over(args, context, &stored, &last);
    Ok(done(context, &name, &last))
}

/// The clusters that the repository holds of a source, by their system identifiers.
async fn clusters(setup: &Setup) -> Result<Vec<String>, Failure> {
    let read = Catalogue::read(setup.repository.as_ref(), &setup.checker, &setup.source.name).await;
    Ok(read.map_err(|error| desk::unread(&error))?.clusters.keys().map(ToString::to_string).collect())
}

/// Says so when `--new-cluster` was said of a cluster that is stored already: it was a backup like any other.
fn not_taken_over(args: &Args, context: &Context, stored: &[String], last: &LastBackup) {
    if let Some(cluster) = last.cluster.as_ref().filter(|cluster| args.new_cluster && stored.contains(cluster)) {
        context.ui.say(format!(
            "note: the server is the cluster {cluster}, which is stored already: nothing had to be taken over"
        ));
    }
}

/// What this gives; says so when it takes longer than people wait without a word.
async fn waited_for<T>(work: impl Future<Output = T>, say: impl FnOnce()) -> T {
    let mut work = std::pin::pin!(work);
    match tokio::time::timeout(WITHOUT_A_WORD, work.as_mut()).await {
        Ok(done) => done,
        Err(_) => {
            say();
            work.await
        }
    }
}

fn exit(error: &once::BackUpError) -> Exit {
    match error {
        once::BackUpError::Postgres(_) | once::BackUpError::Repository(_) | once::BackUpError::Catalogue(_) => {
            Exit::Unreachable
        }
        once::BackUpError::Dump(
            DumpError::Postgres(_)
            | DumpError::Program(ProgramError::Engine {
                error: RuntimeError::Unreachable { .. } | RuntimeError::Image { .. },
            }),
        ) => Exit::Unreachable,
        once::BackUpError::Dump(_) => Exit::Bad,
        once::BackUpError::Take(_)
        | once::BackUpError::Seal(_)
        | once::BackUpError::NotShipped(_)
        | once::BackUpError::OtherCluster { .. } => Exit::Bad,
    }
}

fn done(context: &Context, source: &SourceName, backup: &LastBackup) -> Exit {
    let (ui, id) = (&context.ui, &backup.id);
    if ui.json {
        ui.json(&json!({
            "source": source,
            "backup": id,
            "parent": backup.parent,
            "whole-because": backup.whole_because,
        }));
        return Exit::Good;
    }
    match (&backup.parent, &backup.whole_because) {
        (Some(parent), _) => ui.out(format!("{source}: backup {id} is complete: what has changed since {parent}")),
        (None, Some(why)) => {
            ui.out(format!("{source}: backup {id} is complete: a whole one, because {}", words::clean(why)));
        }
        (None, None) => ui.out(format!("{source}: backup {id} is complete")),
    }
    Exit::Good
}

/// A bar on a terminal; nothing elsewhere.
fn bar(context: &Context) -> ProgressBar {
    use std::io::IsTerminal as _;
    if context.ui.json || context.ui.verbosity < 0 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    // The template is a constant that indicatif knows.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {bytes}{prefix} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn show(bar: &ProgressBar, under_way: &UnderWay) {
    bar.set_position(under_way.bytes);
    if let Some(of) = under_way.of_bytes {
        bar.set_prefix(format!(" of {}", rounded_bytes(of)));
    }
    bar.set_message(under_way.phase.clone());
}
