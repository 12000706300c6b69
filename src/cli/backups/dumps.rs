//! Logical copies in the answer of `mainstay backups`.

use super::proof;
use crate::backup::catalog::dumps::{Dump, Dumps};
use crate::cli::table::{self, Cell};
use crate::cli::ui::{Tone, Ui};
use crate::cli::words;
use crate::model::quantity::rounded_bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) fn tell(ui: &Ui, dumps: &Dumps, now: Timestamp) {
    if dumps.is_empty() {
        return;
    }
    for why in dumps.good.values().filter_map(Dump::unusable) {
        ui.out(format!("  {}", ui.paint(Tone::Bad, words::clean(&why))));
    }
    let rows: Vec<Vec<Cell>> = dumps.good.values().rev().map(|dump| row(dump, now)).collect();
    let head = ["LOGICAL COPY", "WHEN", "TOOK", "SIZE", "STORED", "DATABASES", "PROOF"];
    for line in table::lines(ui, &head, &rows, ui.columns()) {
        ui.out(format!("  {line}"));
    }
}

fn row(dump: &Dump, now: Timestamp) -> Vec<Cell> {
    let manifest = &dump.manifest;
    let databases = match &manifest.databases[..] {
        [only] => words::clean(&only.name),
        several => several.len().to_string(),
    };
    vec![
        Cell::toned(Tone::Strong, manifest.backup.to_string()),
        words::ago(manifest.ended, now).into(),
        words::took(words::between(manifest.began, manifest.ended)).into(),
        rounded_bytes(manifest.bytes()).into(),
        rounded_bytes(dump.stored_bytes).into(),
        databases.into(),
        proof(dump.unusable().is_none(), dump.failed(), dump.proven(), now),
    ]
}

pub(super) fn documents(dumps: &Dumps) -> Vec<Value> {
    let one = |dump: &Dump| {
        json!({
            "manifest": dump.manifest,
            "stored-bytes": dump.stored_bytes,
            "unusable": dump.unusable(),
            "proofs": dump.proofs.iter().map(|(_, proof)| proof).collect::<Vec<_>>(),
        })
    };
    dumps.good.values().map(one).collect()
}
