//! The restore of a source of `kind: logical`: into a running server.

use super::job::engine;
use super::{Args, Done, Followed, Step, bar, document, follow, only_shown, with_surroundings};
use crate::backup::catalog::index::Catalogue;
use crate::backup::logical::{self, Options, Plan, ProgramError, Report, RestoreError, Wanted, Way, Whose};
use crate::backup::repository::RepositoryError;
use crate::backup::restore::Check;
use crate::backup::seal::SealError;
use crate::backup::source::postgres::Address;
use crate::cli::desk::{self, Desk};
use crate::cli::exit::{Exit, Failure};
use crate::cli::ui::Tone;
use crate::cli::{Context, words};
use crate::config::backup::{LogicalRestore, ProgramsOf, USUAL_NETWORK, is_logical, parse_logical_restore};
use crate::config::secret::Secret;
use crate::model::SourceName;
use crate::model::quantity::rounded_bytes;
use crate::model::text::moment;
use crate::runtime::RuntimeError;
use serde_json::json;
use std::sync::Arc;

/// Whether the source is one of logical copies: as its file says, or else what is there.
pub(super) async fn meant(desk: &Desk, source: &SourceName, text: Option<&str>) -> Result<bool, Failure> {
    if let Some(text) = text {
        return Ok(is_logical(super::SOURCE_FILE, text));
    }
    let newest = catalogue(desk, source).await?;
    Ok(newest.newest_cluster().is_some_and(|holdings| !holdings.dumps.is_empty() && holdings.backups.is_empty()))
}

async fn catalogue(desk: &Desk, source: &SourceName) -> Result<Catalogue, Failure> {
    let read = Catalogue::read(desk.repository.as_ref(), &desk.checker, source).await;
    read.map_err(|error| desk::unread(&error))
}

pub(super) async fn run(
    args: &Args,
    context: &Context,
    desk: &Desk,
    source: &SourceName,
    text: Option<&str>,
    step: Step,
) -> Result<Done, Failure> {
    let wanted = wanted(args, source)?;
    let written = written(args, context, desk, source, text)?;
    let into = into(args, written.as_ref())?;
    let catalogue = catalogue(desk, source).await?;
    let holdings = match args.system {
        Some(system) => catalogue.clusters.get(&system),
        None => catalogue.newest_cluster(),
    };
    let holdings = holdings.ok_or_else(|| {
        Failure::wrong(format!("restore {source}: {} holds nothing of it", catalogue.place))
            .hint(format!("`mainstay backup {source}` makes a copy"))
    })?;
    let plan = logical::plan(holdings, wanted).map_err(|error| failed(error.into()))?;
    let aside = args.contained.server().is_some()
        && written.as_ref().is_some_and(|written| written.into.as_ref() != Some(&into));
    let LogicalRestore { programs, mut then, checks, .. } = written.unwrap_or_else(|| LogicalRestore {
        into: None,
        programs: ProgramsOf::Machine(None),
        then: Vec::new(),
        checks: Vec::new(),
    });
    let (programs, ui) = (programs_of(args, programs)?, context.ui.clone());
    let progress = Arc::new(move |text: String| ui.say(text));
    let programs = Way::of(&programs, source, Whose::Anybody, progress, || engine(desk))?;
    // Somewhere else than where the file says is a look aside: what follows a real restore does not follow it.
    if aside {
        then.clear();
    }
    if args.place.repository.is_some() && !args.then && !then.is_empty() {
        let lines = then.drain(..);
        if step != Step::Check {
            only_shown(context, lines);
        }
    }
    let checks = checks.into_iter().map(|check| Check { sql: check.sql, database: check.database }).collect();
    let options = Options { into, programs, force: args.force, checks };
    let ui = &context.ui;
    if step != Step::CarryOut {
        let notes = logical::survey(&plan, &options).await.map_err(failed)?;
        if !ui.json && step == Step::Show {
            ui.out(plan.to_string());
            ui.out(format!("  into {}", options.into));
            notes.iter().for_each(|note| ui.out(format!("  {}", words::clean(note))));
        }
        let document = json!({ "plan": plan, "into": options.into.to_string(), "notes": notes });
        // Several copies go into one server side by side, each into databases of its own.
        let takes = plan.copy.databases.iter().map(|one| format!("the database {} of {}", one.name, options.into));
        return Ok(Done::planned(document, takes.collect()));
    }
    ui.say(plan.to_string());
    ui.say(format!("  into {}", options.into));
    let report = carried_out(context, desk, &plan, &options).await?;
    let mut followed = Vec::new();
    if report.good() {
        let around = [("MAINSTAY_INTO", options.into.to_string().into())];
        followed = follow(context, &then, source, &around).await;
    }
    let good = report.good() && followed.iter().all(|one| one.good);
    tell(context, &report, &followed, good);
    let exit = if good { Exit::Good } else { Exit::Bad };
    Ok(Done { exit, document: document(&report, &followed, good), takes: Vec::new() })
}

fn wanted(args: &Args, source: &SourceName) -> Result<Wanted, Failure> {
    let no = |option: &str| {
        Err(Failure::wrong(format!("restore {source}: it has logical copies, and `{option}` is about base backups"))
            .hint("name a copy with `--latest`, `--at TIME` or `--backup ID`, and a server with `--into URL`"))
    };
    let given = [
        (args.lsn.is_some(), "--lsn"),
        (args.point.is_some(), "--point"),
        (args.to_release.is_some(), "--to-release"),
        (args.timeline.is_some(), "--timeline"),
        (args.target.is_some(), "--target"),
        (args.files_only, "--files-only"),
        (args.port.is_some(), "--port"),
        (args.user.is_some(), "--user"),
        (!args.tablespace.is_empty(), "--tablespace"),
    ];
    let given = given.into_iter().find(|(given, _)| *given).map(|(_, option)| option);
    if let Some(option) = given.or(args.contained.about_files()) {
        return no(option);
    }
    Ok(match (&args.at, &args.backup) {
        (Some(at), _) => Wanted::At(*at),
        (_, Some(copy)) => Wanted::Copy(copy.clone()),
        _ => Wanted::Latest,
    })
}

/// What the source's file says of its restore.
fn written(
    args: &Args,
    context: &Context,
    desk: &Desk,
    source: &SourceName,
    text: Option<&str>,
) -> Result<Option<LogicalRestore>, Failure> {
    if let Some(here) = desk.sources.sources.get(source) {
        return Ok(here.logical.as_ref().and_then(|logical| logical.restore.clone()));
    }
    let Some(text) = text else { return Ok(None) };
    let without_server = args.contained.server().is_some();
    with_surroundings(context, |around| parse_logical_restore(super::SOURCE_FILE, text, without_server, around))
}

/// Options go before the file.
fn programs_of(args: &Args, written: ProgramsOf) -> Result<ProgramsOf, Failure> {
    let of_file = match &written {
        ProgramsOf::Image { image, network } => Some((image.clone(), network.clone())),
        ProgramsOf::Machine(_) => None,
    };
    match (args.contained.programs(), &args.bin) {
        ((Some(_), _), Some(_)) => {
            Err(Failure::wrong("restore: `--bin` is a folder of this machine, and `--image` takes its place")
                .hint("leave one of the two out"))
        }
        ((None, None), Some(bin)) => Ok(ProgramsOf::Machine(Some(bin.clone()))),
        ((None, None), None) => Ok(written),
        ((image, network), _) => {
            let (image, network) = (image.cloned(), network.cloned());
            let from =
                image.or_else(|| of_file.as_ref().map(|(image, _)| image.clone()).filter(|_| args.bin.is_none()));
            let image = from.ok_or_else(|| {
                Failure::wrong("restore: `--network` is about programs of an image")
                    .hint("name one with `--image postgres:17`, or leave it out")
            })?;
            let network = network.or_else(|| of_file.map(|(_, network)| network));
            Ok(ProgramsOf::Image { image, network: network.unwrap_or_else(|| USUAL_NETWORK.to_owned()) })
        }
    }
}

fn into(args: &Args, written: Option<&LogicalRestore>) -> Result<Address, Failure> {
    let Some(text) = args.contained.server() else {
        return written.and_then(|written| written.into.clone()).ok_or_else(|| {
            Failure::wrong("restore: nothing says into which server")
                .hint("name a running one with `--into postgres://USER@HOST/?sslmode=verify-full`")
        });
    };
    let mut into = Address::parse(text).map_err(|error| Failure::wrong(error.to_string()))?;
    if into.password.is_none() {
        let password = std::env::var("PGPASSWORD").ok().filter(|password| !password.is_empty());
        into.password = password.map(Secret::new);
    }
    Ok(into)
}

async fn carried_out(context: &Context, desk: &Desk, plan: &Plan, options: &Options) -> Result<Report, Failure> {
    let bar = bar(context);
    bar.set_length(plan.stored_bytes.max(1));
    let shown = bar.clone();
    let tell: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(move |bytes| shown.inc(bytes));
    let done = logical::restore(desk.repository.clone(), desk.opener()?.clone(), plan, options, tell).await;
    bar.finish_and_clear();
    done.map_err(failed)
}

fn tell(context: &Context, report: &Report, followed: &[Followed], good: bool) {
    let ui = &context.ui;
    if ui.json {
        return;
    }
    let mark = |good: bool| if good { ui.paint(Tone::Good, "✓") } else { ui.paint(Tone::Bad, "✗") };
    ui.out(format!(
        "{} {}: the copy {}, begun {}, is in {}",
        mark(good),
        report.source,
        report.copy,
        moment(report.began),
        report.into
    ));
    for database in &report.databases {
        let aside = database.moved_aside.as_ref();
        let aside = aside.map_or_else(String::new, |name| format!("; what was there is in {}", words::clean(name)));
        ui.out(format!("  database {}: {}{aside}", words::clean(&database.name), rounded_bytes(database.bytes)));
    }
    let roles = |what: &str, names: &std::collections::BTreeSet<String>| {
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(|name| words::clean(name)).collect();
            ui.out(format!("  roles {what}: {}", names.join(", ")));
        }
    };
    roles("that were made", &report.roles_made);
    roles("that were there and stay as they are", &report.roles_left);
    ui.out(format!("  {:.1} s", report.seconds));
    report.notes.iter().for_each(|note| ui.say(format!("note: {}", words::clean(note))));
    report.warnings.iter().for_each(|warning| ui.say(format!("warning: {}", words::clean(warning))));
    for check in &report.checks {
        ui.out(format!("  {} {} ({})", mark(check.passed), words::clean(&check.sql), words::clean(&check.answer)));
    }
    for one in followed {
        ui.out(format!("  {} {} ({})", mark(one.good), words::clean(&one.what), words::clean(&one.said)));
    }
}

/// The exit code of a restore that did not come about.
fn failed(error: RestoreError) -> Failure {
    let exit = match &error {
        RestoreError::Plan(_) | RestoreError::Refused(_) => Exit::Wrong,
        RestoreError::Program(
            ProgramError::NotFound { .. } | ProgramError::NotInImage { .. } | ProgramError::Elsewhere { .. },
        ) => Exit::Wrong,
        RestoreError::Program(ProgramError::Engine {
            error: RuntimeError::Unreachable { .. } | RuntimeError::Image { .. },
        }) => Exit::Unreachable,
        RestoreError::Repository(RepositoryError::Unreachable { .. } | RepositoryError::Refused { .. }) => {
            Exit::Unreachable
        }
        RestoreError::Postgres(_) => Exit::Unreachable,
        RestoreError::Catalogue(error) => return desk::unread(error),
        RestoreError::Open { source: SealError::NoIdentity { .. }, .. } => Exit::Wrong,
        _ => Exit::Bad,
    };
    Failure::new(exit, anyhow::anyhow!("restore: {error}"))
}
