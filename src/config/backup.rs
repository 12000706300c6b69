//! `backups/*.yml` beside `mainstay.yml`: one file, one source, named after the file. Reference:
//! `docs/user-guide/recovery.md`.

mod address;
mod folder;
mod keys;
mod logical;
mod restore;

pub use folder::{Backups, BadBackups, Checked, FOLDER, check, load, without_keys};
pub use logical::{Databases, Logical, LogicalRestore, ProgramsOf, USUAL_NETWORK, is_logical, parse_logical_restore};
pub use restore::{Restore, RestoreContainer, RestoreInto, RestoreServer, RestoreVolume, SqlCheck, is_engine_name};

pub(super) use keys::*;

use super::check::{Checker, is_interpolated};
use super::daemon::{Reader, environment, plain_path};
use super::finding::{Finding, Findings};
use super::interpolate::{self, Sources};
use super::schedule::Schedule;
use super::secret::{Secret, SecretStore};
use super::yaml::{self, Node, Place, Scalar, Value};
use crate::backup::source::postgres::{Address, Roots};
use crate::model::{ByteSize, SourceName, Span};
use std::path::Path;
use std::time::Duration;

/// A PostgreSQL cluster whose base backups and log are kept, or logical copies of its databases.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its name: that of its file.
    pub name: SourceName,
    /// Where it answers, and who asks there, with the password where there is one.
    pub postgres: Address,
    /// How much may be lost at the most; nobody watches over it when `None`.
    pub rpo: Option<Span>,
    /// How long a restore may take at the most; nobody watches over it when `None`.
    pub rto: Option<Span>,
    /// When a base backup is taken, whether there is need of one or not; with `incremental`, when a whole one is.
    pub schedule: Option<Schedule>,
    /// Between whole backups only what has changed is taken, where the server can say that; never when `None`.
    pub incremental: Option<Incremental>,
    /// How often what is new in the log is stored.
    pub ship_every: Span,
    /// Mainstay is a synchronous standby: what is new is stored at once, and commits wait for it.
    pub synchronous: bool,
    /// After so long without the repository a synchronous standby steps down, so that commits go on; never when `None`.
    pub step_down: Option<Span>,
    /// The replication slot on the server.
    pub slot: String,
    /// What is done about a slot that holds back too much of the log.
    pub wal_lag: WalLag,
    /// What an expiry leaves.
    pub keep: Keep,
    /// The pipelines that may back it up or restore it; none when empty.
    pub from: Vec<environment::Source>,
    /// What a restore does when it is not told; of base backups.
    pub restore: Option<Restore>,
    /// Logical copies are kept, and neither base backups nor the log; then what is said above of those means nothing.
    pub logical: Option<Logical>,
    /// The file as written, for the repository. There is no password in it: one that is not put in from elsewhere is
    /// refused.
    pub written: String,
    secrets: Vec<Secret>,
}

impl Source {
    /// Every secret and password that stands in the file or was put into it, for masking logs.
    pub fn secret_values(&self) -> &[Secret] {
        &self.secrets
    }
}

/// What is done about a slot that holds back too much of the log on the server's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLag {
    /// What is done in the end.
    pub policy: LagPolicy,
    /// Held back so much, people are told.
    pub warn: ByteSize,
    /// Held back so much, they are told again, in other words.
    pub alarm: ByteSize,
}

/// What is done in the end about a slot that holds back too much of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LagPolicy {
    /// Nothing: the log stays whole, and the server's disk may fill.
    Alert,
    /// The slot is dropped: the server lives on, the log has a gap from there to the next base backup.
    DropSlot {
        /// Held back so much.
        at: ByteSize,
    },
}

/// Backups of what has changed since the one before (PostgreSQL 17 and later).
#[derive(Debug, Clone, PartialEq)]
pub struct Incremental {
    /// When one is taken.
    pub schedule: Schedule,
    /// So many rest on one whole backup at the most; the next one is whole.
    pub chain: u32,
}

/// What an expiry leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Every moment of this much past can be restored.
    pub window: Span,
    /// So many of the newest base backups stay however old they are.
    pub backups: u32,
}

impl Default for Keep {
    fn default() -> Self {
        Keep { window: Span(Duration::from_secs(14 * 86_400)), backups: 7 }
    }
}

impl Default for WalLag {
    fn default() -> Self {
        // 64 and 256 segments of 16 MiB: an hour without the repository on a busy server, and room on any disk of today.
        WalLag { policy: LagPolicy::Alert, warn: ByteSize(1 << 30), alarm: ByteSize(4 << 30) }
    }
}

const SHIP_EVERY: Span = Span(Duration::from_secs(1));
/// More often than this, most requests to the repository carry next to nothing.
const SHIP_EVERY_LEAST: Span = Span(Duration::from_millis(100));
/// Later than this, it is the segments that are stored and not what is new in them.
const SHIP_EVERY_MOST: Span = Span(Duration::from_secs(3_600));
const SECOND: Duration = Duration::from_secs(1);
/// Under a segment of the usual size a slot is never more than a moment behind.
const LAG_LEAST: ByteSize = ByteSize(16 << 20);
/// What a server takes as the name of a slot.
const SLOT_MAX_BYTES: usize = 63;
const BACKUPS_MAX: u64 = 1_000;
/// A day of hourly ones. Each is one more that a restore needs, and that must be good.
const CHAIN: u32 = 24;
const CHAIN_MAX: u64 = 200;

/// What a source's file is read with.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// Environment variables.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Relative paths start here: the folder of the file; absolute.
    pub folder: &'a Path,
    /// The store of secrets.
    pub store: &'a SecretStore,
    /// The names of the watched repositories, where they are known.
    pub repos: Option<&'a [&'a str]>,
}

/// Reads the text of a source's file.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn parse(name: &SourceName, file: &str, text: &str, around: &Around<'_>) -> Result<Source, Findings> {
    read(name, file, text, around).map(|(source, _)| source)
}

/// What a restore does when it is not told, out of a file that may name what is not to be had here: only `restore` is
/// read. A bare machine takes it from the repository.
///
/// # Errors
/// Everything that is wrong with this part.
pub fn parse_restore(file: &str, text: &str, around: &Around<'_>) -> Result<Option<Restore>, Findings> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = yaml::read(file, text)?;
    let Value::Map(entries) = root.value else { return Ok(None) };
    let Some((_, mut node)) = entries.into_iter().find(|(key, _)| key.name == "restore") else { return Ok(None) };
    let (mut check, mut secrets) = (Checker::new(text), Vec::new());
    fill(&mut node, &mut check, &mut secrets, around);
    let restore = restore::read(&mut reader(&mut check, &mut secrets, around), &node);
    let findings = Findings::new(file, text, check.findings);
    if findings.has_errors() { Err(findings) } else { Ok(restore) }
}

fn fill(node: &mut Node, check: &mut Checker<'_>, secrets: &mut Vec<Secret>, around: &Around<'_>) {
    let from = Sources { env: around.env, folder: around.folder, secrets: Some(around.store) };
    interpolate::fill(node, check.source, &from, secrets, &mut check.findings);
}

fn reader<'c, 's>(check: &'c mut Checker<'s>, secrets: &'c mut Vec<Secret>, around: &Around<'c>) -> Reader<'c, 's> {
    Reader { check, secrets, store: around.store, folder: around.folder }
}

/// As `parse`; the place is that of what says which slot of which server it is.
fn read(name: &SourceName, file: &str, text: &str, around: &Around<'_>) -> Result<(Source, Place), Findings> {
    let bare = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut root = yaml::read(file, bare)?;
    let (mut check, mut secrets) = (Checker::new(bare), Vec::new());
    let shown = refuse_passwords(&root, &mut check);
    fill(&mut root, &mut check, &mut secrets, around);
    let source = source(&mut reader(&mut check, &mut secrets, around), name, &root, around);
    let findings = Findings::new(file, &shown, check.findings);
    match source {
        Some((mut source, place)) if !findings.has_errors() => {
            secrets.sort();
            secrets.dedup();
            source.secrets = secrets;
            bare.clone_into(&mut source.written);
            Ok((source, place))
        }
        _ => Err(findings),
    }
}

/// The file goes into the repository as it is written, so no password may stand in it. Gives the text for showing lines
/// of it: with stars for passwords.
fn refuse_passwords(root: &Node, check: &mut Checker<'_>) -> String {
    let Value::Map(entries) = &root.value else { return check.source.to_owned() };
    let mut places = Vec::new();
    // A logical copy's `restore` names a server, too.
    let within = entries.iter().filter(|(key, _)| key.name == "restore").filter_map(|(_, node)| match &node.value {
        Value::Map(entries) => Some(entries),
        _ => None,
    });
    for (key, node) in entries.iter().chain(within.flatten()) {
        let Value::Scalar(Scalar { text, .. }) = &node.value else { continue };
        let (stands, hint) = match key.name.as_str() {
            "postgres" | "into" => (
                address::has_plain_password(text),
                "write `password: \"${secret:NAME}\"` beside it, kept with `mainstay secrets set NAME`",
            ),
            "password" => (
                !text.is_empty() && !text.replace("$${", "").contains("${"),
                "write `\"${secret:NAME}\"`, kept with `mainstay secrets set NAME`; there are `${file:PATH}` and `${NAME}` too",
            ),
            _ => continue,
        };
        if stands {
            let message = format!("a password stands in `{}`, and this file goes into the repository", key.name);
            check.error_with_hint(node.place, message, hint);
            places.push(node.place);
        }
    }
    // From behind: a star may be shorter than what it stands for.
    places.sort_by_key(|place| std::cmp::Reverse(place.offset));
    places.into_iter().fold(check.source.to_owned(), |shown, place| starred(&shown, place))
}

/// The same lines and columns, with stars in one place: all of it, but for `postgres://` in front and `@HOST` behind.
fn starred(text: &str, place: Place) -> String {
    let from = text.floor_char_boundary(place.offset.min(text.len()));
    let to = text.floor_char_boundary((place.offset + place.length).min(text.len()));
    let value = &text[from..to];
    let begin = value.find("://").map_or(0, |at| at + 3);
    let end = value.rfind('@').filter(|at| *at >= begin && !value.contains("password=")).unwrap_or(value.len());
    let stars = value[begin..end].chars().map(|c| if c == '\n' { c } else { '*' });
    let mut out = text[..from + begin].to_owned();
    out.extend(stars);
    out.push_str(&text[from + end..]);
    out
}

fn source(reader: &mut Reader<'_, '_>, name: &SourceName, root: &Node, around: &Around<'_>) -> Option<(Source, Place)> {
    let fields = reader.check.fields(root, "the source", TOP_KEYS, TOP_LATER)?;
    if fields.get("postgres").is_none() && fields.get("redis").is_none() {
        let finding = Finding::general("there is no `postgres` in the file");
        let hint = "say where the server answers: `postgres: \"postgres://USER@HOST/?sslmode=verify-full\"`";
        reader.check.findings.push(finding.hint(hint));
    }
    let postgres = fields.get("postgres").and_then(|node| postgres(reader, node, fields.entry("password")));
    let kind = fields
        .get("kind")
        .and_then(|node| reader.check.word(node, "`kind`", &[("physical", false), ("logical", true)]));
    let is_logical = kind == Some(true);
    logical::refuse(reader, &fields, is_logical);
    let ship_every = span(reader, &fields, "ship-every", SHIP_EVERY_LEAST.0).unwrap_or(SHIP_EVERY);
    if let Some(node) = fields.get("ship-every")
        && ship_every > SHIP_EVERY_MOST
    {
        reader.check.error(node.place, format!("`ship-every` is at most {SHIP_EVERY_MOST}"));
    }
    let synchronous = fields.get("synchronous").and_then(|node| reader.check.boolean(node, "`synchronous`"));
    let synchronous = synchronous.unwrap_or(false);
    if let Some((key, _)) = fields.entry("ship-every").filter(|_| synchronous) {
        reader.check.error_with_hint(
            key.place,
            "`ship-every` has no meaning with `synchronous`: commits wait, so what is new is stored at once",
            "leave one of the two out",
        );
    }
    let step_down = span(reader, &fields, "step-down", SECOND);
    if let Some((key, _)) = fields.entry("step-down").filter(|_| !synchronous) {
        reader.check.error_with_hint(
            key.place,
            "`step-down` says when a synchronous standby lets commits go on, and this one is none",
            "write `synchronous: true`, or leave it out",
        );
    }
    let rpo = span(reader, &fields, "rpo", Duration::ZERO);
    if let (Some(rpo), Some(node)) = (rpo, fields.get("rpo"))
        && !synchronous
        && rpo < ship_every
    {
        let message = format!("`rpo` is under `ship-every`, {ship_every}: it would be broken all the time");
        reader.check.error_with_hint(node.place, message, "a shorter `ship-every`, or `synchronous: true`");
    }
    let rto = span(reader, &fields, "rto", SECOND);
    let whole = fields.get("schedule").and_then(|node| schedule(reader, node));
    let incremental = fields.get("incremental").and_then(|node| incremental(reader, node));
    let slot = match fields.get("slot") {
        Some(node) => slot(reader, node),
        None => Some(usual_slot(name)),
    };
    let wal_lag = fields.get("wal-lag").map(|node| wal_lag(reader, node)).unwrap_or_default();
    let keep = fields.get("keep").map(|node| keep(reader, node)).unwrap_or_default();
    let from = fields.get("from");
    let from = from.map(|node| reader.sources(node, around.repos, "leave it out where no pipeline may"));
    let restore = fields.get("restore").filter(|_| !is_logical).and_then(|node| restore::read(reader, node));
    let logical = match is_logical {
        true => Some(logical::read(reader, &fields, postgres.as_ref())?),
        false => None,
    };
    let place = fields.get("slot").or(fields.get("postgres")).map_or(root.place, |node| node.place);
    let source = Source {
        name: name.clone(),
        postgres: postgres?,
        rpo,
        rto,
        schedule: whole,
        incremental,
        ship_every,
        synchronous,
        step_down,
        slot: slot?,
        wal_lag,
        keep,
        from: from.unwrap_or_default(),
        restore,
        logical,
        written: String::new(),
        secrets: Vec::new(),
    };
    Some((source, place))
}

fn span(reader: &mut Reader<'_, '_>, fields: &super::check::Fields<'_>, key: &str, least: Duration) -> Option<Span> {
    let node = fields.get(key)?;
    let span = reader.check.parsed::<Span>(node, &format!("`{key}`"))?;
    if span.0 < least {
        reader.check.error(node.place, format!("`{key}` is at least {}", Span(least)));
        return None;
    }
    Some(span)
}

fn postgres(reader: &mut Reader<'_, '_>, node: &Node, password: Option<(&yaml::Key, &Node)>) -> Option<Address> {
    server(reader, "postgres", node, password)
}

/// The address of a server under the key `what`, with the password that stands beside it.
fn server(
    reader: &mut Reader<'_, '_>,
    what: &str,
    node: &Node,
    password: Option<(&yaml::Key, &Node)>,
) -> Option<Address> {
    let apart = password.and_then(|(_, node)| reader.secret(node, "`password`"));
    let text = reader.check.text(node, &format!("`{what}`"))?;
    let mut address = match address::parse(text) {
        Ok(address) => address,
        // Names of parameters are repeated in some, which no part of a value that was put in may be.
        Err((why, hint)) if is_interpolated(node) && why.contains('`') => {
            let message = format!("`{what}`: the value put in here is not the address of a server");
            reader.check.error_with_hint(node.place, message, hint);
            return None;
        }
        Err((why, hint)) => {
            reader.check.error_with_hint(node.place, format!("`{what}`: {why}"), hint);
            return None;
        }
    };
    if let Roots::File(path) = &mut address.roots {
        *path = plain_path(&reader.folder.join(&*path));
        if !path.is_file() {
            let message = format!("`{what}`: there is no file of the name that `sslrootcert` says");
            reader.check.error(node.place, message);
        }
    }
    reader.secrets.extend(address.password.clone());
    match (password, &address.password) {
        (Some((key, _)), Some(_)) => {
            let message = format!("the password stands in `{what}` already");
            reader.check.error_with_hint(key.place, message, "leave it out there: `postgres://USER@HOST`");
        }
        (Some(_), None) => address.password = apart,
        _ => {}
    }
    Some(address)
}

fn schedule(reader: &mut Reader<'_, '_>, node: &Node) -> Option<Schedule> {
    if let Value::List(_) = node.value {
        reader.check.error_with_hint(
            node.place,
            "a source has one schedule",
            "one line of cron can name several times: `0 2,14 * * * Europe/Paris`",
        );
        return None;
    }
    reader.check.parsed(node, "`schedule`")
}

fn incremental(reader: &mut Reader<'_, '_>, node: &Node) -> Option<Incremental> {
    let fields = reader.check.fields(node, "`incremental`", INCREMENTAL_KEYS, &[])?;
    let schedule = match fields.get("schedule") {
        Some(node) => schedule(reader, node),
        None => {
            let message = "`incremental` needs `schedule`: when what has changed is taken";
            let hint = "each hour, between the whole ones of the night: `schedule: \"30 * * * *\"`";
            reader.check.error_with_hint(node.place, message, hint);
            None
        }
    };
    let chain = fields.get("chain").and_then(|node| reader.check.number(node, "`chain`", 1..=CHAIN_MAX));
    Some(Incremental { schedule: schedule?, chain: chain.map_or(CHAIN, |n| n as u32) })
}

/// The rule of PostgreSQL.
fn slot(reader: &mut Reader<'_, '_>, node: &Node) -> Option<String> {
    let text = reader.check.text(node, "`slot`")?;
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=SLOT_MAX_BYTES).contains(&text.len()) && text.bytes().all(known) {
        return Some(text.to_owned());
    }
    let message = format!("`{}` cannot be the name of a replication slot", super::check::shown_text(node, text));
    reader.check.error_with_hint(node.place, message, "1 to 63 small letters, digits and `_`");
    None
}

/// `mainstay_` and the source's name, made into what PostgreSQL takes.
fn usual_slot(name: &SourceName) -> String {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let plain = name.as_str().to_ascii_lowercase().replace(|c| !known(c), "_");
    let mut slot = format!("mainstay_{plain}");
    slot.truncate(SLOT_MAX_BYTES);
    slot
}

fn keep(reader: &mut Reader<'_, '_>, node: &Node) -> Keep {
    let usual = Keep::default();
    let Some(fields) = reader.check.fields(node, "`keep`", KEEP_KEYS, &[]) else { return usual };
    let window = span(reader, &fields, "window", SECOND).unwrap_or(usual.window);
    // The last good backup is never deleted, so none is no number to ask for.
    let backups = fields.get("backups").and_then(|node| reader.check.number(node, "`backups`", 1..=BACKUPS_MAX));
    Keep { window, backups: backups.map_or(usual.backups, |n| n as u32) }
}

fn wal_lag(reader: &mut Reader<'_, '_>, node: &Node) -> WalLag {
    let usual = WalLag::default();
    let Some(fields) = reader.check.fields(node, "`wal-lag`", WAL_LAG_KEYS, &[]) else { return usual };
    let words = [("alert", false), ("drop-slot", true)];
    let drops = fields.get("policy").map(|node| reader.check.word(node, "`policy`", &words));
    let mut size = |key: &str| {
        let node = fields.get(key)?;
        let size = reader.check.parsed::<ByteSize>(node, &format!("`{key}`"))?;
        if size < LAG_LEAST {
            reader.check.error(node.place, format!("`{key}` is at least {LAG_LEAST}"));
            return None;
        }
        Some(size)
    };
    let (warn, alarm, drop) = (size("warn"), size("alarm"), size("drop"));
    // One that is written moves the other along, unless that is written too.
    let warn_or = warn.unwrap_or(alarm.map_or(usual.warn, |alarm| usual.warn.min(ByteSize(alarm.0 / 2))));
    let alarm_or = alarm.unwrap_or(usual.alarm.max(ByteSize(warn_or.0.saturating_mul(2))));
    if let (Some(node), true) = (fields.get("alarm"), alarm_or <= warn_or) {
        reader.check.error(node.place, format!("`alarm` is above `warn`, {warn_or}"));
    }
    match (drops, fields.entry("drop")) {
        (Some(Some(true)), None) => reader.check.error_with_hint(
            node.place,
            "`drop-slot` needs `drop`: how much the slot may hold back before it is dropped",
            "less than the server's disk has room for: `drop: 32GiB`",
        ),
        (None | Some(Some(false)), Some((key, _))) => reader.check.error_with_hint(
            key.place,
            "`drop` says when the slot is dropped, and with the policy `alert` it never is",
            "write `policy: drop-slot`, or leave it out",
        ),
        (_, Some((_, node))) if drop.is_some_and(|drop| drop <= alarm_or) => reader.check.error_with_hint(
            node.place,
            format!("`drop` is above `alarm`, {alarm_or}"),
            "people are told before the log has a gap",
        ),
        _ => {}
    }
    let policy = match (drops, drop) {
        (Some(Some(true)), Some(at)) => LagPolicy::DropSlot { at },
        _ => LagPolicy::Alert,
    };
    WalLag { policy, warn: warn_or, alarm: alarm_or }
}

#[cfg(test)]
mod tests;
