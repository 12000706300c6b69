//! `restore`: what `mainstay restore` does with a source when it is not told.

use super::keys::{CHECK_KEYS, RESTORE_KEYS};
use crate::config::check::{Fields, shown_text};
use crate::config::daemon::{Reader, plain_path};
use crate::config::yaml::{Node, Value};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// What a restore does when it is not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// How far it goes.
    pub into: RestoreInto,
    /// The new data folder; the command says it when `None`, or there is a volume in its place.
    pub target: Option<PathBuf>,
    /// The user that the files belong to, and that the server runs as: of the machine, and whoever restores when `None`; with
    /// an image, of that.
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
    /// To a volume of the container engine that a server of an image can be started on.
    Volume(RestoreVolume),
    /// To a container of an image whose server answers.
    Container(RestoreContainer),
}

/// A volume for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreVolume {
    /// The image of PostgreSQL that will run on it.
    pub image: String,
    /// Its name; made from that of the source when `None`.
    pub volume: Option<String>,
}

/// A container that is left running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreContainer {
    /// The image of PostgreSQL.
    pub image: String,
    /// The volume of its data; the container's name when `None` and there is no folder.
    pub volume: Option<String>,
    /// The container's name; made from that of the source when `None`.
    pub name: Option<String>,
    /// The address of the machine that it is published at.
    pub listen: IpAddr,
    /// And the port.
    pub port: u16,
    /// The engine's network that it joins in place of the usual one.
    pub network: Option<String>,
    /// What it is asked; each must answer true.
    pub checks: Vec<SqlCheck>,
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
/// Whoever wants others to reach it says so.
const USUAL_LISTEN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The engine takes longer ones, and hosts do not.
const NAME_MAX_BYTES: usize = 63;
const IMAGE_MAX_BYTES: usize = 255;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Into {
    Folder,
    Server,
    Volume,
    Container,
}

impl Into {
    const WORDS: [(&'static str, Into); 4] =
        [("folder", Into::Folder), ("server", Into::Server), ("volume", Into::Volume), ("container", Into::Container)];

    /// The keys that mean something with some of them only, and with which.
    fn of_key(key: &str) -> &'static [Into] {
        match key {
            "bin" => &[Into::Server],
            "port" | "checks" => &[Into::Server, Into::Container],
            "image" | "volume" => &[Into::Volume, Into::Container],
            "name" | "listen" | "network" => &[Into::Container],
            "target" => &[Into::Folder, Into::Server, Into::Container],
            _ => &[Into::Folder, Into::Server, Into::Volume, Into::Container],
        }
    }

    fn word(self) -> &'static str {
        Into::WORDS.iter().find(|(_, into)| *into == self).map_or("", |(word, _)| word)
    }
}

pub(super) fn read(reader: &mut Reader<'_, '_>, node: &Node) -> Option<Restore> {
    let fields = reader.check.fields(node, "`restore`", RESTORE_KEYS, &[])?;
    reader.needs(&fields, node, "`restore`", &["into"]);
    let into = fields.get("into").and_then(|n| reader.check.word(n, "`into`", &Into::WORDS));
    if let Some(into) = into {
        belongs(reader, &fields, into);
        if matches!(into, Into::Volume | Into::Container) {
            reader.needs(&fields, node, "a restore into a container engine", &["image"]);
        }
    }
    if let (Some((key, _)), Some(Into::Container), Some(_)) = (fields.entry("volume"), into, fields.get("target")) {
        reader.check.error_with_hint(
            key.place,
            "the data goes into a volume or into a folder, not into both",
            "leave out `volume` or `target`",
        );
    }
    if let Some((key, _)) = fields.entry("password") {
        reader.check.error_with_hint(
            key.place,
            "`password` goes with the address of a server that logical copies are restored into",
            "leave it out: a restored server is asked over its own socket",
        );
    }
    let target = fields.get("target").and_then(|n| folder(reader, n, "`target`"));
    let of_image = matches!(into, Some(Into::Volume | Into::Container));
    let user = fields.get("user").and_then(|n| user(reader, n, of_image));
    let bin = fields.get("bin").and_then(|n| folder(reader, n, "`bin`"));
    let port = fields.get("port").and_then(|n| reader.check.number(n, "`port`", 1..=65_535));
    let port = port.map_or(USUAL_PORT, |n| n as u16);
    let checks = checks(reader, &fields);
    let then = fields.get("then").map(|n| reader.check.lines(n, "`then`")).unwrap_or_default();
    let image = fields.get("image").and_then(|n| image(reader, n));
    let mut named = |key: &str| fields.get(key).and_then(|n| engine_name(reader, n, &format!("`{key}`")));
    let (volume, name, network) = (named("volume"), named("name"), named("network"));
    let listen = fields.get("listen").and_then(|n| listen(reader, n)).unwrap_or(USUAL_LISTEN);
    let into = match into? {
        Into::Folder => RestoreInto::Folder,
        Into::Server => RestoreInto::Server(RestoreServer { bin, port, checks }),
        Into::Volume => RestoreInto::Volume(RestoreVolume { image: image?, volume }),
        Into::Container => {
            let image = image?;
            RestoreInto::Container(RestoreContainer { image, volume, name, listen, port, network, checks })
        }
    };
    Some(Restore { into, target, user, then })
}

/// Tells of keys that mean nothing with what is wanted.
fn belongs(reader: &mut Reader<'_, '_>, fields: &Fields<'_>, into: Into) {
    let foreign = RESTORE_KEYS.iter().filter(|key| !Into::of_key(key).contains(&into));
    for (key, _) in foreign.filter_map(|key| fields.entry(key)) {
        let with: Vec<_> = Into::of_key(&key.name).iter().map(|into| format!("`into: {}`", into.word())).collect();
        reader.check.error_with_hint(
            key.place,
            format!("`{}` means nothing with `into: {}`", key.name, into.word()),
            format!("it belongs to {}", with.join(", ")),
        );
    }
}

pub(super) fn image(reader: &mut Reader<'_, '_>, node: &Node) -> Option<String> {
    let text = reader.check.line(node, "`image`")?;
    if text.len() > IMAGE_MAX_BYTES
        || text.chars().any(|c| c.is_whitespace() || c.is_control())
        || text.starts_with('-')
    {
        let message = format!("`{}` is not the name of an image", shown_text(node, text));
        reader.check.error_with_hint(node.place, message, "such as `postgres:17`");
        return None;
    }
    Some(text.to_owned())
}

/// The name of a container, volume or network.
pub(super) fn engine_name(reader: &mut Reader<'_, '_>, node: &Node, what: &str) -> Option<String> {
    let text = reader.check.line(node, what)?;
    if !is_engine_name(text) {
        let message = format!("{what}: `{}` is not a name for the container engine", shown_text(node, text));
        reader.check.error_with_hint(
            node.place,
            message,
            format!("letters, digits, `_`, `.` and `-`, beginning with a letter or digit, 2 to {NAME_MAX_BYTES}"),
        );
        return None;
    }
    Some(text.to_owned())
}

/// Whether a container, volume or network may have this name.
pub fn is_engine_name(text: &str) -> bool {
    (2..=NAME_MAX_BYTES).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn listen(reader: &mut Reader<'_, '_>, node: &Node) -> Option<IpAddr> {
    let text = reader.check.line(node, "`listen`")?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let message = format!("`{}` is not an address of a machine", shown_text(node, text));
        reader.check.error_with_hint(node.place, message, "such as `0.0.0.0`, which is every address that it has");
    }
    parsed
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

fn user(reader: &mut Reader<'_, '_>, node: &Node, of_image: bool) -> Option<String> {
    let text = reader.check.line(node, "`user`")?;
    let number = |text: &str| text.parse::<u32>().is_ok();
    // Images have users without a name.
    let numbers = of_image && text.split_once(':').map_or(number(text), |(user, group)| number(user) && number(group));
    let plain = text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !plain && !numbers {
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
