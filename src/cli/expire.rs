//! `mainstay expire`: lets go what nothing needs any more, and says why the rest stays.

use super::desk::{self, Desk, Where};
use super::exit::{Exit, Failure};
use super::ui::Tone;
use super::{Context, words};
use crate::backup::catalog::expire::{self, ExpireError, Report};
use crate::backup::catalog::marks;
use crate::backup::catalog::retention::Policy;
use crate::model::SourceName;
use crate::model::quantity::rounded_bytes;
use crate::model::text::count;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Delete backups and log that the source's `keep` no longer asks for
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay expire shop-db --dry-run    what would stay and go, and why
  mainstay expire shop-db

Deletes in two steps: what nothing needs is marked, and goes a day later if still nothing needs it. The last good backup
never goes. The daemon does this after each base backup.")]
pub struct Args {
    /// The source [default: the only one]
    source: Option<SourceName>,
    /// Say it, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// When the repository cannot be read, or its listing is not to be believed.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let desk = Desk::open(&Where::default(), context).await?;
    let source = desk.source(args.source.as_ref(), "expire SOURCE").await?;
    let of = desk.sources.sources.get(&source).ok_or_else(|| {
        Failure::wrong(format!("expire {source}: there is no file of this name in `backups/`, which says what to keep"))
    })?;
    let settings = expire::Settings {
        policy: Policy { window: of.keep.window.0, backups: of.keep.backups },
        grace: marks::GRACE,
        dry_run: args.dry_run,
        now: Timestamp::now(),
    };
    let sealer = desk.sealer()?;
    let done = expire::expire(desk.repository.as_ref(), &desk.checker, &sealer, &source, settings).await;
    let report = done.map_err(|error| match error {
        ExpireError::Catalogue(error) => desk::unread(&error),
        ExpireError::Repository(error) => desk::unreachable(error),
        other => Failure::new(Exit::Bad, other),
    })?;
    match context.ui.json {
        true => context.ui.json(&document(&report)),
        false => tell(context, &report),
    }
    Ok(if report.troubled() { Exit::Bad } else { Exit::Good })
}

fn tell(context: &Context, report: &Report) {
    let ui = &context.ui;
    for of in &report.clusters {
        ui.out(ui.paint(Tone::Strong, format!("{} cluster {}", of.cluster.source, of.cluster.system)));
        let plan = match &of.plan {
            Ok(plan) => plan,
            Err(why) => {
                ui.out(format!("  {}", ui.paint(Tone::Bad, words::clean(&why.to_string()))));
                continue;
            }
        };
        for (backup, reasons) in &plan.backups {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            ui.out(format!("  {backup} stays: {}", reasons.join("; ")));
        }
        for (copy, reasons) in &plan.dumps {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            ui.out(format!("  {copy} stays: {}", reasons.join("; ")));
        }
        if !plan.backups.is_empty() {
            ui.out(format!("  the log stays from {} on, for {}", plan.floor, plan.floor_of));
        }
        let sum = |objects: u64, bytes: u64| format!("{}, {}", count(objects, "object"), rounded_bytes(bytes));
        ui.out(format!(
            "  to go now: {}; marked and waiting: {}; marked now: {}",
            sum(of.due.objects, of.due.bytes),
            sum(of.waiting.objects, of.waiting.bytes),
            sum(of.fresh.objects, of.fresh.bytes)
        ));
    }
    if !report.locked.is_empty() {
        let kept = count(report.locked.len(), "object");
        ui.out(format!("kept by the place itself, and tried again: {kept}"));
    }
    for bad in &report.bad {
        ui.out(format!("{} {}: {}", ui.paint(Tone::Bad, "✗"), bad.key, words::clean(&bad.why)));
    }
    match report.dry_run {
        true => ui.say("nothing was done"),
        false => ui.say(format!(
            "deleted {}, {}",
            count(report.deleted.objects, "object"),
            rounded_bytes(report.deleted.bytes)
        )),
    }
}

fn document(report: &Report) -> Value {
    let clusters: Vec<Value> = report
        .clusters
        .iter()
        .map(|of| {
            let refused = of.plan.as_ref().err().map(ToString::to_string);
            let plan = of.plan.as_ref().ok();
            let backups: Option<BTreeMap<String, _>> =
                plan.map(|plan| plan.backups.iter().map(|(id, why)| (id.to_string(), why)).collect());
            let copies: Option<BTreeMap<String, _>> =
                plan.map(|plan| plan.dumps.iter().map(|(id, why)| (id.to_string(), why)).collect());
            let drop: Option<BTreeMap<String, _>> =
                plan.map(|plan| plan.drop.iter().map(|gone| (gone.object.key.to_string(), gone.why)).collect());
            json!({
                "system": of.cluster.system, "refused": refused, "backups": backups, "copies": copies, "drop": drop,
                "log-from": plan.map(|plan| plan.floor),
                "due": of.due, "waiting": of.waiting, "marked": of.fresh, "rescued": of.rescued,
            })
        })
        .collect();
    json!({
        "place": report.place, "dry-run": report.dry_run, "clusters": clusters, "deleted": report.deleted,
        "absent": report.absent, "locked": report.locked, "foreign": report.foreign,
        "bad": report.bad.iter().map(|bad| (bad.key.to_string(), bad.why.clone())).collect::<BTreeMap<_, _>>(),
    })
}
