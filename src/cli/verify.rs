//! `mainstay verify`: are the backups what they were?

use super::desk::{self, Desk, Where};
use super::exit::{Exit, Failure};
use super::ui::Tone;
use super::{Context, words};
use crate::backup::verify::{self, Report, Settings, VerifyError};
use crate::model::SourceName;
use crate::model::quantity::rounded_bytes;
use crate::model::text::count;
use jiff::Timestamp;
use serde_json::json;

/// Read what is stored again, and say what is not what it was
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay verify shop-db
  mainstay verify shop-db --full --identity identity.txt    open every object, too

Reads what no check has read before, and a sample of the rest; what was found is stored as a proof, which `mainstay
backups` shows. Without an identity the stored bytes are compared with their signed digests; with one, they are opened.

Exit codes: 0 all is good, 1 something is damaged or missing, 3 the place could not be reached.")]
pub struct Args {
    /// The source [default: the only one]
    source: Option<SourceName>,
    /// Read everything, whatever was read before
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    place: Where,
}

/// One of so many objects that were read before is read again.
const SAMPLE: u64 = 50;

/// Runs the command.
///
/// # Errors
/// When nothing can be said: the place or the identity.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let desk = Desk::open(&args.place, context).await?;
    let source = desk.source(args.source.as_ref(), "verify SOURCE").await?;
    let now = Timestamp::now();
    let seed = now.as_second().unsigned_abs();
    let settings = Settings { sample: if args.full { 1 } else { SAMPLE }, seed, now };
    // Who only reads stores no proofs.
    let sealer = desk.config.as_ref().and_then(|config| desk::sealer(config).ok());
    let repository = desk.repository.as_ref();
    let done = verify::verify(repository, &desk.checker, desk.opener.as_ref(), sealer.as_ref(), &source, settings);
    let report = done.await.map_err(|error| match error {
        VerifyError::Catalogue(error) => desk::unread(&error),
        VerifyError::Identity { .. } => Failure::new(Exit::Wrong, error),
        VerifyError::Proof(_) => Failure::new(Exit::Unreachable, error),
    })?;
    tell(context, &source, &report);
    Ok(match report.exit_code() {
        0 => Exit::Good,
        3 => Exit::Unreachable,
        _ => Exit::Bad,
    })
}

fn tell(context: &Context, source: &SourceName, report: &Report) {
    let ui = &context.ui;
    let read = report.clusters.iter().fold((0, 0), |(objects, bytes), cluster| {
        let backups = cluster.backups.iter().chain(&cluster.dumps).map(|backup| backup.read);
        backups.chain([cluster.log_read]).fold((objects, bytes), |(o, b), sum| (o + sum.objects, b + sum.bytes))
    });
    if ui.json {
        return ui.json(&json!({
            "source": source,
            "place": report.place,
            "kind": report.kind,
            "read": { "objects": read.0, "bytes": read.1 },
            "findings": report.findings,
            "proofs": report.proofs,
            "ended-early": report.ended_early,
        }));
    }
    for finding in &report.findings {
        ui.out(format!("{} {}: {}", ui.paint(Tone::Bad, "✗"), finding.name, words::clean(&finding.why)));
    }
    if let Some(why) = &report.ended_early {
        ui.complain(format!("the check ended before it was done: {}", words::clean(why)));
    }
    let (sign, tone) = if report.findings.is_empty() { ("✓", Tone::Good) } else { ("✗", Tone::Bad) };
    let wrong = match report.findings.len() {
        0 => "nothing is wrong".to_owned(),
        n => format!("{n} wrong"),
    };
    ui.out(format!(
        "{} {source}: {}, {} read; {wrong}; {} stored",
        ui.paint(tone, sign),
        count(read.0, "object"),
        rounded_bytes(read.1),
        count(report.proofs, "proof")
    ));
}
