//! Steps that keep data or bring it back: `backup` and `restore`.

use super::{BACKUP_KEYS, RESTORE_KEYS, Reader};
use crate::config::check::Fields;
use crate::config::expression::Reference;
use crate::config::yaml::{Node, Place, Value};
use crate::model::ids::SourceName;
use crate::model::plan::{BackupStep, RestoreStep, RestoreTo};

/// A name of a restore point has 63 bytes, a backup's 30, a time 40; what is longer is a slip.
const STATE_MAX_BYTES: usize = 200;

impl Reader<'_> {
    pub(super) fn backup(&mut self, node: &Node) -> Option<BackupStep> {
        let fields = self.check.fields(node, "`backup`", BACKUP_KEYS, &[])?;
        self.source(&fields, node, "backup").map(|source| BackupStep { source })
    }

    pub(super) fn restore(&mut self, node: &Node, references: &mut Vec<(Reference, Place)>) -> Option<RestoreStep> {
        let fields = self.check.fields(node, "`restore`", RESTORE_KEYS, &[])?;
        let source = self.source(&fields, node, "restore");
        let states: Vec<_> = RESTORE_KEYS[1..].iter().filter_map(|key| fields.entry(key)).collect();
        if let [(first, _), (second, _), ..] = states.as_slice() {
            self.check.error_with_hint(
                second.place,
                format!("`restore` has both `{}` and `{}`", first.name, second.name),
                "one state is brought back: that of a time, a place in the log, a restore point or a backup; the newest where none is named",
            );
        }
        let Some((key, node)) = states.first() else {
            return Some(RestoreStep { source: source?, to: RestoreTo::Latest });
        };
        let text = self.check.text(node, &format!("`{}`", key.name))?;
        if text.is_empty() || text.len() > STATE_MAX_BYTES {
            self.check.error(node.place, format!("`{}` has 1 to {STATE_MAX_BYTES} bytes", key.name));
        }
        if self.expressions(node, text, references) == 0
            && let Err((why, hint)) = state(&key.name, text)
        {
            self.check.error_with_hint(node.place, format!("`{}`: {why}", key.name), hint);
        }
        let to = RestoreTo::from_option(&key.name, text.to_owned())?;
        Some(RestoreStep { source: source?, to })
    }

    fn source(&mut self, fields: &Fields<'_>, node: &Node, what: &str) -> Option<SourceName> {
        let Some(node) = fields.get("source") else {
            self.check.error_with_hint(
                node.place,
                format!("`{what}` needs `source`"),
                format!("name a file of `backups/` beside `mainstay.yml`: `{what}: {{ source: shop-db }}`"),
            );
            return None;
        };
        if let Value::Scalar(scalar) = &node.value
            && scalar.text.contains("${{")
        {
            self.check.error_with_hint(
                node.place,
                "a source is named, never computed",
                "which pipelines may touch it stands in its own file; write a step for each source",
            );
            return None;
        }
        self.check.parsed(node, "`source`")
    }
}

/// What is wrong with a state that is written out.
fn state(key: &str, text: &str) -> Result<(), (String, &'static str)> {
    let bad = |what: &str| format!("`{}` is no {what}", crate::config::finding::shown(text));
    match key {
        "at" => text.parse::<jiff::Timestamp>().map(|_| ()).map_err(|_| {
            (bad("moment"), "with its time zone or `Z`: `2026-11-23T02:59:59Z`; or an input: `${{ inputs.at }}`")
        }),
        "lsn" => text
            .parse::<crate::model::Lsn>()
            .map(|_| ())
            .map_err(|_| (bad("place in a log"), "two hexadecimal numbers, as PostgreSQL writes them: `0/16B3748`")),
        _ => Ok(()),
    }
}
