//! `mainstay backups`: what can be restored, read from the repository itself.

mod dumps;

use super::desk::{Desk, Where};
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::{Tone, Ui};
use super::{Context, words};
use crate::backup::catalog::holdings::{Backup, Holdings};
use crate::backup::catalog::index::Catalogue;
use crate::backup::catalog::manifest::{Manifest, Proof, ProofKind};
use crate::backup::catalog::window::{self, Hole, HoleKind, Point, Window};
use crate::backup::repository::BackupId;
use crate::model::SourceName;
use crate::model::quantity::rounded_bytes;
use crate::model::text::count;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Show from when to when each source can be restored, and its backups
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay backups
  mainstay backups shop-db
  mainstay backups --repository s3://shop-recovery/mainstay --trust sign.pub

Reads the repository and asks neither the daemon nor the server. What is damaged or missing inside the window is exit
code 1. `mainstay status` says how far the log of a running server is behind.")]
pub struct Args {
    /// Only this source
    source: Option<SourceName>,
    #[command(flatten)]
    place: Where,
}

/// Runs the command.
///
/// # Errors
/// When the repository cannot be read, or knows no such source.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let desk = Desk::open(&args.place, context).await?;
    let names = match &args.source {
        Some(named) => vec![desk.source(Some(named), "backups SOURCE").await?],
        None => desk.names().await?,
    };
    let ui = &context.ui;
    let (mut documents, mut good) = (Vec::new(), true);
    if names.is_empty() && !ui.json {
        ui.say(format!("{} holds no backups; `mainstay backup SOURCE` begins", desk.repository.place()));
    }
    for (nth, name) in names.iter().enumerate() {
        let catalogue = desk.catalogue(name).await?;
        let windows: Vec<(&Holdings, Window)> =
            catalogue.clusters.values().map(|holdings| (holdings, window::window(holdings))).collect();
        good &= catalogue.bad.is_empty() && windows.iter().all(|(_, window)| !window.damaged());
        good &= windows.iter().all(|(holdings, _)| holdings.dumps.good.values().all(|dump| dump.unusable().is_none()));
        if ui.json {
            documents.push(document(&catalogue, &windows));
            continue;
        }
        if nth > 0 {
            ui.out("");
        }
        tell(ui, &catalogue, &windows);
    }
    if ui.json {
        ui.json(&documents);
    }
    Ok(if good { Exit::Good } else { Exit::Bad })
}

fn tell(ui: &Ui, catalogue: &Catalogue, windows: &[(&Holdings, Window)]) {
    let now = Timestamp::now();
    ui.out(ui.paint(Tone::Strong, catalogue.source.as_str()));
    if windows.is_empty() {
        ui.out("  nothing yet");
    }
    let current = catalogue.newest_cluster().map(|holdings| holdings.cluster.system);
    for (holdings, window) in windows {
        let system = holdings.cluster.system;
        let version = holdings.backups.values().next_back().map(|backup| backup.manifest.server.major());
        let version = version.or_else(|| holdings.dumps.good.values().next_back().map(|dump| dump.manifest.major()));
        let version = version.map_or_else(String::new, |major| format!(", PostgreSQL {major}"));
        let was = if Some(system) == current { "" } else { " (an earlier one)" };
        ui.out(format!("  cluster {system}{version}{was}"));
        for span in &window.spans {
            ui.out(format!("  from {} to {}", point(&span.from), point(&span.to)));
        }
        if window.spans.is_empty() && (holdings.has_physical() || holdings.dumps.is_empty()) {
            ui.out(format!("  {}", ui.paint(Tone::Bad, "nothing of it can be restored")));
        }
        for hole in &window.holes {
            ui.out(format!("  {}", ui.paint(tone(hole), said(hole))));
        }
        for (_, why) in &window.unusable {
            ui.out(format!("  {}", ui.paint(Tone::Bad, words::clean(&why.to_string()))));
        }
        for (timeline, why) in &window.unknown {
            ui.out(format!("  {}", ui.paint(Tone::Bad, format!("timeline {timeline}: {why}"))));
        }
        if let Some(doubt) = &window.doubt {
            ui.out(format!("  {}", ui.paint(Tone::Bad, words::clean(doubt))));
        }
        let rows: Vec<Vec<Cell>> = holdings.backups.values().rev().map(|backup| row(backup, window, now)).collect();
        if holdings.has_physical() || holdings.dumps.is_empty() {
            for line in
                table::lines(ui, &["BACKUP", "KIND", "WHEN", "TOOK", "SIZE", "STORED", "PROOF"], &rows, ui.columns())
            {
                ui.out(format!("  {line}"));
            }
        }
        for backup in holdings.backups.values().rev() {
            if let Some(why) = &backup.manifest.whole_because {
                ui.out(format!("  {} is not incremental: {}", backup.id(), words::clean(why)));
            }
        }
        dumps::tell(ui, &holdings.dumps, now);
    }
    for bad in &catalogue.bad {
        ui.out(format!("  {}", ui.paint(Tone::Bad, format!("{}: {}", bad.key, words::clean(&bad.why)))));
    }
    if !catalogue.foreign.is_empty() {
        ui.out(format!("  not Mainstay's, and left alone: {}", count(catalogue.foreign.len(), "object")));
    }
}

fn point(point: &Point) -> String {
    match point.at {
        Some(at) => format!("{} ({})", at.strftime("%Y-%m-%d %H:%M:%SZ"), point.lsn),
        None => point.lsn.to_string(),
    }
}

fn tone(hole: &Hole) -> Tone {
    match hole.kind {
        HoleKind::Acknowledged => Tone::Bad,
        HoleKind::Recorded(_) => Tone::Active,
        HoleKind::Tail => Tone::Dim,
    }
}

fn said(hole: &Hole) -> String {
    let place = format!("from {} to {} on timeline {}", hole.from, hole.to, hole.timeline);
    match &hole.kind {
        HoleKind::Acknowledged => format!("log is missing that was stored once: {place}"),
        HoleKind::Recorded(why) => format!("log is missing for good {place}: {}", words::clean(why)),
        HoleKind::Tail => format!("the log {place} was on its way and never acknowledged"),
    }
}

fn row(backup: &Backup, window: &Window, now: Timestamp) -> Vec<Cell> {
    let manifest = &backup.manifest;
    let bytes = manifest.archives.iter().map(|archive| archive.bytes).sum();
    let usable = !window.unusable.iter().any(|(id, _)| id == backup.id());
    let proof = proof(usable, backup.failed(), backup.proven(), now);
    vec![
        Cell::toned(Tone::Strong, manifest.backup.to_string()),
        kind(manifest),
        words::ago(manifest.ended, now).into(),
        words::took(words::between(manifest.began, manifest.ended)).into(),
        rounded_bytes(bytes).into(),
        rounded_bytes(backup.stored_bytes).into(),
        proof,
    ]
}

fn proof(usable: bool, failed: Option<&Proof>, proven: Option<&Proof>, now: Timestamp) -> Cell {
    match (usable, failed, proven) {
        (_, Some(failed), _) => Cell::toned(Tone::Bad, format!("✗ {}", words::clean(&failed.detail))),
        (false, ..) => Cell::toned(Tone::Bad, "✗ cannot be used"),
        (true, None, Some(proof)) => {
            let what = match proof.kind {
                ProofKind::Stored => "stored",
                ProofKind::Opened => "opened",
                ProofKind::Started => "started",
            };
            Cell::toned(Tone::Good, format!("✓ {what} {}", words::ago(proof.at, now)))
        }
        (true, None, None) => Cell::toned(Tone::Dim, "not checked since"),
    }
}

/// Whole, or the difference to which one; names begin with their time, which is enough to find it in the list.
fn kind(manifest: &Manifest) -> Cell {
    match (&manifest.parent, &manifest.whole_because) {
        (Some(parent), _) => format!("since {parent}").into(),
        (None, Some(_)) => Cell::toned(Tone::Active, "whole, see below"),
        (None, None) => "whole".into(),
    }
}

fn document(catalogue: &Catalogue, windows: &[(&Holdings, Window)]) -> Value {
    let clusters: Vec<Value> = windows.iter().map(|(holdings, window)| cluster(holdings, window)).collect();
    let bad: BTreeMap<String, &str> = catalogue.bad.iter().map(|bad| (bad.key.to_string(), bad.why.as_str())).collect();
    json!({
        "source": catalogue.source,
        "place": catalogue.place,
        "clusters": clusters,
        "current": catalogue.newest_cluster().map(|holdings| holdings.cluster.system),
        "bad": bad,
        "foreign": catalogue.foreign.iter().map(|one| &one.name).collect::<Vec<_>>(),
    })
}

fn cluster(holdings: &Holdings, window: &Window) -> Value {
    let unusable: BTreeMap<&BackupId, String> = window.unusable.iter().map(|(id, why)| (id, why.to_string())).collect();
    let backups: Vec<Value> = holdings
        .backups
        .values()
        .map(|backup| {
            json!({
                "manifest": backup.manifest,
                "stored-bytes": backup.stored_bytes,
                "proofs": backup.proofs.iter().map(|(_, proof)| proof).collect::<Vec<_>>(),
            })
        })
        .collect();
    let unknown: BTreeMap<String, String> =
        window.unknown.iter().map(|(timeline, why)| (timeline.to_string(), why.to_string())).collect();
    json!({
        "system": holdings.cluster.system,
        "spans": window.spans,
        "holes": window.holes,
        "unusable": unusable.into_iter().map(|(id, why)| (id.to_string(), why)).collect::<BTreeMap<_, _>>(),
        "unknown": unknown,
        "doubt": window.doubt,
        "newest": window.newest(),
        "backups": backups,
        "copies": dumps::documents(&holdings.dumps),
    })
}
