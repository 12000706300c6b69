//! `restore`: what `mainstay restore` does with a source when it is not told.

use super::keys::{CHECK_KEYS, RESTORE_KEYS, RESTORE_LATER};
use crate::config::check::{Fields, shown_text};
use crate::config::daemon::{Reader, plain_path};
use crate::config::yaml::{Node, Value};
use std::path::PathBuf;

/// What a restore does when it is not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// How far it goes.
    pub into: RestoreInto,
    /// The new data folder; the command says it when `None`.
    pub target: Option<PathBuf>,
    /// The user of the machine that the files belong to, and that the server runs as; whoever restores when `None`.
    pub user: Option<String>,
    /// Commands that follow a good restore, each run by `sh -e`.
    pub then: Vec<String>,
}

/// How far a restore goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreInto {
    /// To a data folder that a server can be started in.
    Folder,
    /// To a server that answers.
    Server(RestoreServer),
}

/// A server that is started in the restored folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreServer {
    /// The folder with `postgres` and `pg_ctl` of the right major version; looked for when `None`.
    pub bin: Option<PathBuf>,
    /// The port it answers on.
    pub port: u16,
    /// What it is asked; each must answer true.
    pub checks: Vec<SqlCheck>,
}

/// A question to a restored server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlCheck {
    /// A query with one row of one column, true when all is well.
    pub sql: String,
    /// The database it is asked in.
    pub database: String,
}

const USUAL_PORT: u16 = 5432;
/// Each is asked while people wait for their database.
const CHECKS_MAX: usize = 100;
/// What a folder without a server has no use for.
const SERVER_KEYS: [&str; 3] = ["bin", "port", "checks"];

#[derive(Clone, Copy)]
enum Into {
    Folder,
    Server,
    Container,
}

pub(super) fn read(reader: &mut Reader<'_, '_>, node: &Node) -> Option<Restore> {
    let fields = reader.check.fields(node, "`restore`", RESTORE_KEYS, RESTORE_LATER)?;
    reader.needs(&fields, node, "`restore`", &["into"]);
    let words = [("folder", Into::Folder), ("server", Into::Server), ("container", Into::Container)];
    let into = fields.get("into").and_then(|n| reader.check.word(n, "`into`", &words));
    if let (Some(Into::Container), Some(node)) = (into, fields.get("into")) {
        reader.check.error_with_hint(
            node.place,
            "`container` is part of the language, but not of this version",
            "`server` starts a server of this machine, `folder` makes its data folder only",
        );
    }
    if let Some(Into::Folder) = into {
        for (key, _) in SERVER_KEYS.iter().filter_map(|key| fields.entry(key)) {
            reader.check.error_with_hint(
                key.place,
                format!("`{}` is about a server, and this restore ends with a folder", key.name),
                "write `into: server`, or leave it out",
            );
        }
    }
    if let Some((key, _)) = fields.entry("password") {
        reader.check.error_with_hint(
            key.place,
            "`password` goes with the address of a server that logical copies are restored into",
            "leave it out: a restored server is asked over its own socket",
        );
    }
    let target = fields.get("target").and_then(|n| folder(reader, n, "`target`"));
    let user = fields.get("user").and_then(|n| user(reader, n));
    let bin = fields.get("bin").and_then(|n| folder(reader, n, "`bin`"));
    let port = fields.get("port").and_then(|n| reader.check.number(n, "`port`", 1..=65_535));
    let checks = checks(reader, &fields);
    let then = fields.get("then").map(|n| reader.check.lines(n, "`then`")).unwrap_or_default();
    let into = match into? {
        Into::Server => RestoreInto::Server(RestoreServer { bin, port: port.map_or(USUAL_PORT, |n| n as u16), checks }),
        Into::Folder | Into::Container => RestoreInto::Folder,
    };
    Some(Restore { into, target, user, then })
}

/// A folder that need not be there: a restore may be for another machine.
pub(super) fn folder(reader: &mut Reader<'_, '_>, node: &Node, what: &str) -> Option<PathBuf> {
    let text = reader.check.line(node, what)?;
    let path = plain_path(&reader.folder.join(text));
    if path.file_name().is_none() || text.chars().any(char::is_control) {
        reader.check.error(node.place, format!("{what} is the path of a folder other than `/`"));
        return None;
    }
    Some(path)
}

fn user(reader: &mut Reader<'_, '_>, node: &Node) -> Option<String> {
    let text = reader.check.line(node, "`user`")?;
    let plain = text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !plain {
        let message = format!("`{}` is not the name of a user of a machine", shown_text(node, text));
        reader.check.error(node.place, message);
        return None;
    }
    Some(text.to_owned())
}

pub(super) fn checks(reader: &mut Reader<'_, '_>, fields: &Fields<'_>) -> Vec<SqlCheck> {
    let Some(node) = fields.get("checks") else { return Vec::new() };
    let items = match &node.value {
        // One check may stand without the brackets of a list.
        Value::Map(_) => std::slice::from_ref(node),
        _ => reader.check.items(node, "`checks`"),
    };
    if items.len() > CHECKS_MAX {
        reader.check.error(node.place, format!("there are {} checks; at most {CHECKS_MAX}", items.len()));
        return Vec::new();
    }
    let mut list = Vec::new();
    for item in items {
        let Some(fields) = reader.check.fields(item, "an entry of `checks`", CHECK_KEYS, &[]) else { continue };
        reader.needs(&fields, item, "an entry of `checks`", &["sql"]);
        let sql = fields.get("sql").and_then(|n| reader.check.line(n, "`sql`"));
        let database = match fields.get("database") {
            Some(node) => reader.check.line(node, "`database`"),
            None => Some("postgres"),
        };
        if let (Some(sql), Some(database)) = (sql, database) {
            list.push(SqlCheck { sql: sql.to_owned(), database: database.to_owned() });
        }
    }
    list
}
