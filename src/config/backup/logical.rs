//! `kind: logical`: copies of databases by `pg_dump`, instead of the whole cluster with its log.

use super::keys::{LOGICAL_KEYS, PHYSICAL_KEYS, RESTORE_KEYS, RESTORE_PHYSICAL_KEYS};
use super::restore::{checks, engine_name, folder, image};
use super::{Around, SqlCheck, fill, server};
use crate::backup::source::postgres::{Address, Host};
use crate::config::check::{Checker, Fields};
use crate::config::daemon::Reader;
use crate::config::finding::Findings;
use crate::config::yaml::{self, Node, Scalar, Value};
use std::path::PathBuf;

/// What is copied, and with which programs.
#[derive(Debug, Clone, PartialEq)]
pub struct Logical {
    /// The databases.
    pub databases: Databases,
    /// Where `pg_dump` and `pg_dumpall` come from.
    pub programs: ProgramsOf,
    /// What a restore does when it is not told.
    pub restore: Option<LogicalRestore>,
}

/// Which databases are copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Databases {
    /// All that accept connections, but for templates.
    All,
    /// These; at least one.
    Named(Vec<String>),
}

/// Where PostgreSQL's programs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramsOf {
    /// The machine: the folder that they are in; looked for when `None`.
    Machine(Option<PathBuf>),
    /// An image, in a container on a network of the engine.
    Image {
        /// The image.
        image: String,
        /// The network.
        network: String,
    },
}

/// The network of containers for programs when none is named: an address that leads somewhere from the machine leads there
/// from a container, too.
pub const USUAL_NETWORK: &str = "host";

/// What a restore of logical copies does when it is not told.
#[derive(Debug, Clone, PartialEq)]
pub struct LogicalRestore {
    /// The running server that they go into; the command says it when `None`.
    pub into: Option<Address>,
    /// Where `pg_restore` comes from.
    pub programs: ProgramsOf,
    /// Commands that follow a good restore, each run by `sh -e`.
    pub then: Vec<String>,
    /// What the server is asked; each must answer true.
    pub checks: Vec<SqlCheck>,
}

/// Each is a connection and a stream of its own; a server with more takes base backups.
const DATABASES_MAX: usize = 1_000;
/// What servers cut longer names to (`NAMEDATALEN`).
const NAME_BYTES: usize = 63;

/// Refuses what has no meaning for the kind that the source is of.
pub(super) fn refuse(reader: &mut Reader<'_, '_>, fields: &Fields<'_>, logical: bool) {
    let (keys, what, hint) = match logical {
        true => {
            (PHYSICAL_KEYS, "is about base backups and their log, and `kind: logical` has neither", "`kind: physical`")
        }
        false => (LOGICAL_KEYS, "is about logical copies", "`kind: logical`"),
    };
    for (key, _) in keys.iter().filter_map(|key| fields.entry(key)) {
        let message = format!("`{}` {what}", key.name);
        reader.check.error_with_hint(key.place, message, format!("leave it out, or write {hint}"));
    }
}

/// Reads what `kind: logical` needs beside the address.
pub(super) fn read(reader: &mut Reader<'_, '_>, fields: &Fields<'_>, postgres: Option<&Address>) -> Option<Logical> {
    let databases = match (fields.get("databases"), fields.get("postgres")) {
        (Some(node), _) => databases(reader, node),
        (None, Some(node)) => match postgres.map(|address| address.database.clone()) {
            Some(Some(name)) => Some(Databases::Named(vec![name])),
            Some(None) => {
                reader.check.error_with_hint(
                    node.place,
                    "nothing says which databases are copied",
                    "name one in the address, `postgres://USER@HOST/DATABASE`, or write `databases: all`",
                );
                None
            }
            // The address has a finding of its own.
            None => None,
        },
        (None, None) => None,
    };
    let programs = programs(reader, fields, postgres);
    let restore = fields.get("restore").map(|node| read_restore(reader, node));
    let restore = match restore {
        Some(None) => return None,
        Some(read) => read,
        None => None,
    };
    Some(Logical { databases: databases?, programs: programs?, restore })
}

fn databases(reader: &mut Reader<'_, '_>, node: &Node) -> Option<Databases> {
    if let Value::Scalar(Scalar { text, .. }) = &node.value
        && text == "all"
    {
        return Some(Databases::All);
    }
    let names = reader.check.lines(node, "`databases`");
    if names.len() > DATABASES_MAX {
        let message = format!("there are {} `databases`; at most {DATABASES_MAX}", names.len());
        reader.check.error_with_hint(node.place, message, "`databases: all` copies every one");
        return None;
    }
    // What is wrong with an empty list is said already.
    if names.is_empty() {
        return None;
    }
    let mut seen = std::collections::BTreeSet::new();
    for name in &names {
        let plain = (1..=NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
        if !plain || !seen.insert(name) {
            let what = if plain { "stands there twice" } else { "cannot be the name of a database" };
            let shown = crate::config::check::shown_text(node, name);
            reader.check.error(node.place, format!("`databases`: `{shown}` {what}"));
            return None;
        }
    }
    Some(Databases::Named(names))
}

/// `bin`, or `image` with `network`; of a server at this address, where it is known.
fn programs(reader: &mut Reader<'_, '_>, fields: &Fields<'_>, address: Option<&Address>) -> Option<ProgramsOf> {
    let Some(node) = fields.get("image") else {
        if let Some((key, _)) = fields.entry("network") {
            let hint = "write `image: \"postgres:17\"` beside it, or leave it out";
            reader.check.error_with_hint(key.place, "`network` is about programs of an `image`", hint);
        }
        return Some(ProgramsOf::Machine(fields.get("bin").and_then(|node| folder(reader, node, "`bin`"))));
    };
    if let Some((key, _)) = fields.entry("bin") {
        let message = "the programs are those of `image`, and `bin` is a folder of the machine";
        reader.check.error_with_hint(key.place, message, "leave one of the two out");
    }
    let image = image(reader, node);
    let named = fields.get("network").map(|node| (node, engine_name(reader, node, "`network`")));
    let network = match named {
        Some((node, Some(name))) => {
            in_the_way(reader, node, &name, address);
            Some(name)
        }
        Some((_, None)) => None,
        None => Some(USUAL_NETWORK.to_owned()),
    };
    let socket = address.is_some_and(|address| address.hosts.iter().any(|host| matches!(host, Host::Unix(..))));
    if socket {
        reader.check.error_with_hint(
            node.place,
            "the address of the server is a Unix socket, which a container does not see",
            "name the server's host in the address, or take `bin` in place of `image`",
        );
    }
    Some(ProgramsOf::Image { image: image?, network: network? })
}

/// Tells of a network on which the server cannot be.
fn in_the_way(reader: &mut Reader<'_, '_>, node: &Node, network: &str, address: Option<&Address>) {
    if network == "none" {
        reader.check.error_with_hint(node.place, "on the network `none` no server is reached", "leave it out");
    }
    let own = |host: &Host| match host {
        Host::Tcp(name, _) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        Host::Unix(..) => false,
    };
    if network != USUAL_NETWORK && address.is_some_and(|address| address.hosts.iter().any(own)) {
        let shown = crate::config::check::shown_text(node, network);
        let message = format!("on the network `{shown}` the address of this machine is that of the container");
        reader.check.error_with_hint(
            node.place,
            message,
            "leave `network` out, or name the server as it is named there",
        );
    }
}

fn read_restore(reader: &mut Reader<'_, '_>, node: &Node) -> Option<LogicalRestore> {
    let fields = reader.check.fields(node, "`restore`", RESTORE_KEYS, &[])?;
    for (key, _) in RESTORE_PHYSICAL_KEYS.iter().filter_map(|key| fields.entry(key)) {
        reader.check.error_with_hint(
            key.place,
            format!("`{}` is about a data folder, and logical copies go into a running server", key.name),
            "leave it out",
        );
    }
    if let (Some((key, _)), None) = (fields.entry("password"), fields.get("into")) {
        let hint = "write `into: \"postgres://USER@HOST\"` beside it";
        reader.check.error_with_hint(key.place, "`password` has no server that it is for", hint);
    }
    let into = fields.get("into").map(|node| server(reader, "into", node, fields.entry("password")));
    let known = into.as_ref().and_then(Option::as_ref);
    let programs = programs(reader, &fields, known);
    let checks = checks(reader, &fields);
    let then = fields.get("then").map(|node| reader.check.lines(node, "`then`")).unwrap_or_default();
    let into = match into {
        Some(None) => return None,
        Some(address) => address,
        None => None,
    };
    Some(LogicalRestore { into, programs: programs?, then, checks })
}

/// Whether the text of a source's file is one of logical copies. A text that does not read is none.
pub fn is_logical(file: &str, text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Ok(Node { value: Value::Map(entries), .. }) = yaml::read(file, text) else { return false };
    let mut kinds = entries.iter().filter(|(key, _)| key.name == "kind");
    kinds.any(|(_, node)| matches!(&node.value, Value::Scalar(Scalar { text, .. }) if text == "logical"))
}

/// The `restore` of a file of logical copies that may name what is not to be had here. `without_server` leaves out the
/// address and its password, for a restore that is told where to: their secrets may be of another machine.
///
/// # Errors
/// Everything that is wrong with this part.
pub fn parse_logical_restore(
    file: &str,
    text: &str,
    without_server: bool,
    around: &Around<'_>,
) -> Result<Option<LogicalRestore>, Findings> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = yaml::read(file, text)?;
    let Value::Map(entries) = root.value else { return Ok(None) };
    let Some((_, mut node)) = entries.into_iter().find(|(key, _)| key.name == "restore") else { return Ok(None) };
    if let (Value::Map(entries), true) = (&mut node.value, without_server) {
        entries.retain(|(key, _)| !["into", "password"].contains(&key.name.as_str()));
    }
    let (mut check, mut secrets) = (Checker::new(text), Vec::new());
    fill(&mut node, &mut check, &mut secrets, around);
    let restore = read_restore(&mut super::reader(&mut check, &mut secrets, around), &node);
    let findings = Findings::new(file, text, check.findings);
    if findings.has_errors() { Err(findings) } else { Ok(restore) }
}
