//! `mainstay audit`: who did what, and whether the record of it is whole.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::Tone;
use super::{Context, words};
use crate::model::api::{AuditEntry, AuditVerdict};
use jiff::Timestamp;

/// Show who did what, and check that the record of it is whole
///
/// Every entry holds the hash of the one before it. `--verify` walks the whole chain in the daemon and names the first
/// entry that was changed, taken out, put in or moved. It cannot see by itself that the newest entries were cut off, or that
/// somebody who may write the database computed the whole chain anew: for that, keep the newest hash, which it prints,
/// somewhere else, and give it back with `--expect` later.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay audit                          the newest entries
  mainstay audit --verify                 walk the chain; prints the newest hash
  mainstay audit --verify --expect HASH   and fail unless an entry has that hash

Exit code 1: the chain is broken, or no entry has the hash.")]
pub struct Args {
    /// At most so many entries
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Only entries before this number: the next page
    #[arg(long, value_name = "SEQ")]
    before: Option<u64>,
    /// Walk the whole chain
    #[arg(long, conflicts_with_all = ["limit", "before"])]
    verify: bool,
    /// A hash, noted earlier, that an entry must have
    #[arg(long, value_name = "HASH", requires = "verify", value_parser = hash)]
    expect: Option<String>,
}

/// Reads a hash as it was printed.
fn hash(text: &str) -> Result<String, String> {
    let text = text.trim().to_ascii_lowercase();
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text)
    } else {
        Err("it has 64 hex digits, as `mainstay audit --verify` prints it".into())
    }
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    if args.verify {
        let query: Vec<_> = args.expect.iter().map(|hash| ("expect", hash.clone())).collect();
        let verdict = client.get("audit/verify", &query).await?;
        return Ok(report(context, &verdict, args.expect.as_deref()));
    }
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.before.map(|before| ("before", before.to_string())));
    let found: Vec<AuditEntry> = client.get("audit", &query).await?;
    let ui = &context.ui;
    if ui.json {
        ui.json(&found);
        return Ok(Exit::Good);
    }
    if found.is_empty() {
        ui.say("nobody did anything yet");
        return Ok(Exit::Good);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<Cell>> = found.iter().map(|entry| row(entry, now)).collect();
    for line in table::lines(ui, &["SEQ", "WHEN", "WHO", "WAY", "ACT", "SUBJECT", "DETAILS"], &rows, ui.columns()) {
        ui.out(line);
    }
    Ok(Exit::Good)
}

fn report(context: &Context, verdict: &AuditVerdict, expect: Option<&str>) -> Exit {
    let ui = &context.ui;
    let missed = expect.filter(|_| verdict.expected_at.is_none());
    let exit = if verdict.broken.is_some() || missed.is_some() { Exit::Bad } else { Exit::Good };
    if ui.json {
        ui.json(verdict);
        return exit;
    }
    match (&verdict.broken, &verdict.newest) {
        (Some(broken), _) => {
            ui.out(format!("{} at entry {}: {}", ui.paint(Tone::Bad, "broken"), broken.seq, words::clean(&broken.why)));
            ui.say(format!("the entries before it are good: {}", verdict.entries));
        }
        (None, Some(newest)) => {
            ui.out(format!(
                "{}: {} {}, the newest has the hash {newest}",
                ui.paint(Tone::Good, "whole"),
                verdict.entries,
                if verdict.entries == 1 { "entry" } else { "entries" }
            ));
            ui.say(
                "keep that hash elsewhere: with `--expect HASH` it shows later that nothing was cut off or made anew",
            );
        }
        (None, None) => ui.out("whole: there is no entry yet"),
    }
    match (expect, verdict.expected_at) {
        (Some(_), Some(seq)) => ui.out(format!("the expected hash is that of entry {seq}")),
        (Some(hash), None) => ui.out(format!(
            "{}: no {}entry has the hash {hash}",
            ui.paint(Tone::Bad, "missing"),
            if verdict.broken.is_some() { "good " } else { "" }
        )),
        (None, _) => {}
    }
    exit
}

fn row(entry: &AuditEntry, now: Timestamp) -> Vec<Cell> {
    let details = match &entry.details {
        serde_json::Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect::<Vec<_>>().join(" ")
        }
        other => plain(other),
    };
    vec![
        Cell::toned(Tone::Strong, entry.seq.to_string()),
        words::ago(entry.at, now).into(),
        words::clean(&entry.who).into(),
        // A user of the machine may be called like a person.
        Cell::toned(Tone::Dim, words::clean(&entry.way) + if entry.person { ", person" } else { "" }),
        words::clean(&entry.act).into(),
        words::clean(&entry.subject).into(),
        words::clean(&details).into(),
    ]
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
