//! Whether a server is ready to be backed up, and the exact words that mend what is not. For `doctor`.
//!
//! What is wrong is told by the server's own error codes, not by guessing; what mends it is SQL, or a line of `pg_hba.conf`.

use super::address::{Address, Host};
use super::connect::{Connection, Purpose};
use super::error::{PostgresError, ServerError};
use super::facts::size;
use super::wal::duration;
use crate::config::secret::Secret;
use std::time::Duration;

/// What a source wants of its server.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// The slot that it uses.
    pub slot: Option<String>,
    /// Mainstay is to be a synchronous standby.
    pub synchronous: bool,
    /// Mainstay is to let commits go on when the repository is away for long.
    pub step_down: bool,
    /// Differences are wanted where the version can.
    pub incremental: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it must be.
    Good,
    /// It works, and will hurt some day.
    Careful,
    /// It cannot work.
    Bad,
}

/// One check, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, in a word or two: `wal_level`, `sign-in`.
    pub what: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found, and why it matters.
    pub found: String,
    /// What to do, in order: SQL to run as a superuser, lines of `pg_hba.conf`, or words.
    pub mend: Vec<String>,
}

/// A base backup beside the log, and one to spare for a connection that broke and is not yet missed.
const SENDERS: u64 = 3;
/// A server that gives up sooner does so while a machine is merely busy.
const SHORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Clocks that are this far apart are wrong, and not merely late.
const CLOCKS_APART_SECS: i64 = 60;
/// With less, a repository that is away for minutes costs a new base backup.
const SMALL_SLOT: u64 = 1 << 30;

/// Asks the server, and never fails: that it cannot be asked is an answer too.
pub async fn check(address: &Address, password: Option<&Secret>, needs: &Needs) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut replication = opened(&mut checks, "replication", address, password, Purpose::Replication).await;
    let mut sql = opened(&mut checks, "SQL", address, password, Purpose::Sql).await;
    // Either one answers SHOW.
    if let Some(connection) = replication.as_mut().or(sql.as_mut())
        && let Err(error) = settings(connection, address, needs, &mut checks).await
    {
        checks.push(Check { what: "settings", verdict: Verdict::Bad, found: error.to_string(), mend: Vec::new() });
    }
    if let Some(connection) = sql.as_mut()
        && let Err(error) = slots(connection, needs, &mut checks).await
    {
        checks.push(Check { what: "slots", verdict: Verdict::Careful, found: error.to_string(), mend: Vec::new() });
    }
    if let Some(connection) = sql.as_mut() {
        checks.extend(clock(connection).await);
    }
    if needs.step_down {
        checks.push(step_down(sql.as_mut(), address).await);
    }
    for connection in [replication, sql].into_iter().flatten() {
        connection.close().await;
    }
    checks
}

async fn opened(
    checks: &mut Vec<Check>,
    what: &'static str,
    address: &Address,
    password: Option<&Secret>,
    purpose: Purpose,
) -> Option<Connection> {
    match Connection::open(address, password, purpose).await {
        Ok(connection) => {
            let open = matches!(connection.host(), Host::Tcp(name, _) if !connection.is_encrypted() && !is_local(name));
            checks.push(if open && purpose == Purpose::Replication {
                Check {
                    what,
                    verdict: Verdict::Careful,
                    found: "the connection is not encrypted, and all data go over it".into(),
                    mend: vec![
                        "ALTER SYSTEM SET ssl = on;".into(),
                        "and sslmode=verify-full in the source's address".into(),
                    ],
                }
            } else {
                good(what, format!("connects to {}", connection.host()))
            });
            Some(connection)
        }
        Err(error) => {
            // Without SQL there are fewer facts, and no backup the less.
            let verdict = if purpose == Purpose::Replication { Verdict::Bad } else { Verdict::Careful };
            checks.push(Check { what, verdict, mend: mend_of(&error, address, purpose), found: error.to_string() });
            None
        }
    }
}

/// Restores to a moment go by the server's clock.
async fn clock(connection: &mut Connection) -> Option<Check> {
    let rows = connection.query("SELECT extract(epoch FROM clock_timestamp())::bigint AS at").await.ok()?;
    let there = rows.first("at")?.parse::<i64>().ok()?;
    let apart = there - jiff::Timestamp::now().as_second();
    if apart.abs() < CLOCKS_APART_SECS {
        return None;
    }
    let which = if apart < 0 { "behind" } else { "ahead of" };
    Some(Check {
        what: "clock",
        verdict: Verdict::Careful,
        found: format!("{} s {which} this machine's: a restore to a moment goes by the server's", apart.abs()),
        mend: vec!["let both keep time with NTP".into()],
    })
}

/// Whether the role may let commits go on.
async fn step_down(sql: Option<&mut Connection>, address: &Address) -> Check {
    const WHAT: &str = "step-down";
    let bad = |found: String, mend: Vec<String>| Check { what: WHAT, verdict: Verdict::Bad, found, mend };
    let Some(connection) = sql else {
        return bad("needs SQL, and this role may not connect for that".into(), Vec::new());
    };
    match connection.may_set_standby_names().await {
        Ok(true) => good(WHAT, "the role may set synchronous_standby_names"),
        Ok(false) => bad(
            "the role may not set synchronous_standby_names: commits would hang until the repository is back".into(),
            super::standby::grants(&address.user, connection.major()),
        ),
        Err(error) => bad(error.to_string(), Vec::new()),
    }
}

fn is_local(name: &str) -> bool {
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn good(what: &'static str, found: impl Into<String>) -> Check {
    Check { what, verdict: Verdict::Good, found: found.into(), mend: Vec::new() }
}

/// A name in SQL and in `pg_hba.conf`, which quote alike.
fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// What mends a refused connection.
pub fn mend_of(error: &PostgresError, address: &Address, purpose: Purpose) -> Vec<String> {
    let role = name(&address.user);
    let refusal = match error {
        PostgresError::Unreachable { refusal: Some(refusal), .. } => refusal,
        PostgresError::Refused { error, .. } => error,
        PostgresError::Unreachable { .. } => {
            return vec!["is the server running, and does it listen there? SHOW listen_addresses; SHOW port;".into()];
        }
        _ => return Vec::new(),
    };
    match refusal.code.as_str() {
        // invalid_authorization_specification: no line of pg_hba.conf, or no such role.
        "28000" if refusal.message.contains("pg_hba.conf") => hba(refusal, address, purpose),
        "28000" => vec![
            format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';"),
            format!("or, if it exists: ALTER ROLE {role} LOGIN REPLICATION;"),
        ],
        // invalid_password
        "28P01" => vec![format!("ALTER ROLE {role} PASSWORD '…'; and give the source the same")],
        // insufficient_privilege
        "42501" if purpose == Purpose::Replication => vec![format!("ALTER ROLE {role} REPLICATION;")],
        "42501" => vec![format!("GRANT CONNECT ON DATABASE {} TO {role};", name(address.database()))],
        // invalid_catalog_name
        "3D000" => vec!["name a database that exists at the end of the source's address".into()],
        // too_many_connections
        "53300" if purpose == Purpose::Replication => vec![
            "ALTER SYSTEM SET wal_level = 'replica';".into(),
            "ALTER SYSTEM SET max_wal_senders = 10;".into(),
            "restart the server".into(),
        ],
        "53300" => vec!["ALTER SYSTEM SET max_connections = …; (more than now), and restart the server".into()],
        // cannot_connect_now
        "57P03" => vec!["wait: the server is starting, stopping or recovering".into()],
        _ => Vec::new(),
    }
}

/// The line that lets us in, for the address that the server saw.
fn hba(refusal: &ServerError, address: &Address, purpose: Purpose) -> Vec<String> {
    let database = if purpose == Purpose::Replication { "replication".to_owned() } else { name(address.database()) };
    // Translated messages keep the address between quotes.
    let from = refusal.message.split('"').find_map(|part| part.parse::<std::net::IpAddr>().ok());
    let role = name(&address.user);
    let line = match (from, &address.hosts[..]) {
        (Some(ip), _) => {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            let kind = if ip.is_loopback() { "host" } else { "hostssl" };
            format!("{kind} {database} {role} {ip}/{bits} scram-sha-256")
        }
        (None, [Host::Unix(..), ..]) => format!("local {database} {role} scram-sha-256"),
        _ => format!("hostssl {database} {role} ADDRESS-OF-THIS-MACHINE/32 scram-sha-256"),
    };
    vec![format!("add to pg_hba.conf, above any line that refuses it: {line}"), "SELECT pg_reload_conf();".into()]
}

async fn settings(
    connection: &mut Connection,
    address: &Address,
    needs: &Needs,
    checks: &mut Vec<Check>,
) -> Result<(), PostgresError> {
    const RESTART: &str = "restart the server";
    const RELOAD: &str = "SELECT pg_reload_conf();";
    let mut say = |what, verdict, found: String, mend: &[&str]| {
        checks.push(Check { what, verdict, found, mend: mend.iter().map(|text| (*text).to_owned()).collect() });
    };
    if connection.in_recovery().await? {
        let found = "this server is a standby: its backups are good, and it must keep its log for us (13 to 18: slots do not follow a promotion)";
        say(
            "role of the server",
            Verdict::Careful,
            found.into(),
            &["or add target_session_attrs=primary and the other servers to the address"],
        );
    }
    let level = connection.show("wal_level").await?.unwrap_or_default();
    if matches!(level.as_str(), "replica" | "logical") {
        say("wal_level", Verdict::Good, level, &[]);
    } else {
        say(
            "wal_level",
            Verdict::Bad,
            format!("{level}: its log is not enough to restore from"),
            &["ALTER SYSTEM SET wal_level = 'replica';", RESTART],
        );
    }
    let senders = connection.show("max_wal_senders").await?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    match senders {
        0 => say(
            "max_wal_senders",
            Verdict::Bad,
            "0: nobody can read the log".into(),
            &["ALTER SYSTEM SET max_wal_senders = 10;", RESTART],
        ),
        few if few < SENDERS => {
            let found = format!("{few}: the log and a base backup at once leave none for a standby");
            say("max_wal_senders", Verdict::Careful, found, &["ALTER SYSTEM SET max_wal_senders = 10;", RESTART]);
        }
        enough => say("max_wal_senders", Verdict::Good, enough.to_string(), &[]),
    }
    let slots = connection.show("max_replication_slots").await?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    if slots == 0 {
        let found = "0: the server cannot keep its log for us".to_owned();
        say("max_replication_slots", Verdict::Bad, found, &["ALTER SYSTEM SET max_replication_slots = 10;", RESTART]);
    } else {
        say("max_replication_slots", Verdict::Good, slots.to_string(), &[]);
    }
    let keep = connection.show("max_slot_wal_keep_size").await?.unwrap_or_default();
    let mend = ["ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; -- well under the free space of its disk", RELOAD];
    match size(&keep) {
        None => say(
            "max_slot_wal_keep_size",
            Verdict::Careful,
            format!("{keep}: if the repository is away for long, the server's disk fills and it stops"),
            &mend,
        ),
        Some(bytes) if bytes < SMALL_SLOT => {
            say(
                "max_slot_wal_keep_size",
                Verdict::Careful,
                format!("{keep}: if the repository is away for minutes, the log has a gap"),
                &mend,
            );
        }
        Some(_) => say("max_slot_wal_keep_size", Verdict::Good, keep, &[]),
    }
    let timeout = connection.show("wal_sender_timeout").await?.unwrap_or_default();
    let mend = ["ALTER SYSTEM SET wal_sender_timeout = '60s';", RELOAD];
    match duration(&timeout) {
        Some(Duration::ZERO) => {
            say(
                "wal_sender_timeout",
                Verdict::Careful,
                "0: a connection that died keeps its slot in use for ever".into(),
                &mend,
            );
        }
        Some(short) if short < SHORT_TIMEOUT => {
            say(
                "wal_sender_timeout",
                Verdict::Careful,
                format!("{timeout}: connections break when a machine is merely busy"),
                &mend,
            );
        }
        _ => say("wal_sender_timeout", Verdict::Good, timeout, &[]),
    }
    if let Some(idle) = connection.show("idle_replication_slot_timeout").await?
        && duration(&idle).is_some_and(|idle| !idle.is_zero())
    {
        let found = format!("{idle}: if the repository or this host is away for longer, the log has a gap");
        say(
            "idle_replication_slot_timeout",
            Verdict::Careful,
            found,
            &["ALTER SYSTEM SET idle_replication_slot_timeout = 0;", RELOAD],
        );
    }
    if needs.incremental && connection.major() < 17 {
        let found =
            format!("this server is PostgreSQL {}: every base backup is a whole one before 17", connection.major());
        let mend = "upgrade the server to 17 or later, or take `incremental` out of the source's file";
        say("incremental", Verdict::Careful, found, &[mend]);
    }
    if needs.incremental && connection.major() >= 17 {
        match connection.show("summarize_wal").await?.as_deref() {
            Some("on") => say("summarize_wal", Verdict::Good, "on".into(), &[]),
            _ => say(
                "summarize_wal",
                Verdict::Careful,
                "off: every base backup is a whole one".into(),
                &["ALTER SYSTEM SET summarize_wal = on;", RELOAD],
            ),
        }
    }
    if needs.synchronous {
        let names = connection.show("synchronous_standby_names").await?.unwrap_or_default();
        let ours = &address.application_name;
        if super::standby::names_standby(&names, ours) {
            say("synchronous_standby_names", Verdict::Good, names, &[]);
        } else {
            let mend = format!("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 ({})';", name(ours));
            let found = format!("`{names}` does not name {ours}: commits do not wait for the repository");
            say("synchronous_standby_names", Verdict::Bad, found, &[&mend, RELOAD]);
        }
    }
    Ok(())
}

/// Whether a slot is there or free.
async fn slots(connection: &mut Connection, needs: &Needs, checks: &mut Vec<Check>) -> Result<(), PostgresError> {
    let Some(slot) = &needs.slot else { return Ok(()) };
    let state = connection.slot(slot).await?;
    let what = "slot";
    let Some(state) = state else {
        let rows = connection.query("SELECT count(*) AS used FROM pg_catalog.pg_replication_slots").await?;
        let used = rows.first("used").and_then(|text| text.parse::<u64>().ok());
        let all = connection.show("max_replication_slots").await?.and_then(|text| text.parse::<u64>().ok());
        checks.push(match used.zip(all) {
            Some((used, all)) if used >= all => Check {
                what,
                verdict: Verdict::Bad,
                found: format!("all {all} slots are in use"),
                mend: vec![
                    format!("ALTER SYSTEM SET max_replication_slots = {};", all + 5),
                    "restart the server".into(),
                ],
            },
            _ => good(what, format!("{slot} will be made")),
        });
        return Ok(());
    };
    checks.push(match state.wal_status {
        Some(super::WalStatus::Lost) => Check {
            what,
            verdict: Verdict::Bad,
            found: format!(
                "the server has removed log that {slot} was to keep: there is a gap up to the next base backup"
            ),
            mend: vec![format!("SELECT pg_drop_replication_slot('{slot}');"), "and take a base backup".into()],
        },
        Some(super::WalStatus::Unreserved) => Check {
            what,
            verdict: Verdict::Careful,
            found: format!("the log that {slot} keeps goes at the next checkpoint"),
            mend: vec!["is Mainstay running, and does the repository answer?".into()],
        },
        _ => good(
            what,
            format!("{slot} keeps the log from {}", state.restart.map_or("nowhere".into(), |at| at.to_string())),
        ),
    });
    Ok(())
}
