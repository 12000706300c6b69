//! What is written into a restored data directory so that it recovers as planned, opens as a server of its own, and never
//! touches the source's archive. Plain text in, plain text out, then a few files. Called by the flow before the start and
//! after it.

use super::RestoreError;
use super::place::give;
use crate::backup::catalog::manifest::ServerFacts;
use crate::model::{Lsn, Timeline};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Where recovery stops. A server that does not get there does not open (13 and later).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// After the record that begins here: the last one of the log.
    After(Lsn),
    /// Before the first record that begins here or later.
    Before(Lsn),
    /// After the last transaction that ended by this time.
    Time(Timestamp),
    /// At the restore point of this name.
    Point(String),
    /// As soon as the backup is consistent.
    Consistent,
}

/// Settings that make a restored server write to, follow, or wait for servers of its former life, or that recover it to
/// somewhere else. None of them is kept, in any file.
const NOT_KEPT: [&str; 22] = [
    "archive_mode",
    "archive_command",
    "archive_library",
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "sync_replication_slots",
    "synchronized_standby_slots",
    "standby_slot_names",
    "synchronous_standby_names",
];

/// Settings that recovery refuses to run with when they are lower than where the log was written.
///
/// Each with what a server has that nobody told otherwise (13 to 18): where the source had that, nobody need be told.
const AT_LEAST: [(&str, u64); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// Settings that a server without its configuration file is given from what the source said of itself.
const FROM_FACTS: [&str; 4] =
    ["shared_preload_libraries", "wal_level", "max_replication_slots", "track_commit_timestamp"];

/// In `postgresql.auto.conf`, between these lines, is what is only for recovery.
const ONLY_FOR_RECOVERY: &str = "# only for recovery: mainstay restore takes these lines away when the server is up";
const END: &str = "# end";

fn io<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> RestoreError + 'a {
    move |source| RestoreError::io(format!("{doing} {}", path.display()), source)
}

/// A value as configuration files take it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// The command that runs the feeding script. The path is relative to the data directory, where a server runs it, so that the
/// folder may be moved or mounted elsewhere. Only the script's own word, 77, is an end of the log: a shell that cannot read
/// the script says 2, which a server would take for one.
pub(super) fn restore_command() -> String {
    format!("sh {}/feed.sh %f %p; case $? in 0) exit 0 ;; 77) exit 1 ;; *) exit 200 ;; esac", super::feeder::STAGE)
}

/// A folder as one entry of a setting that is a list.
pub(super) fn listed(folder: &Path) -> String {
    format!("\"{}\"", folder.display().to_string().replace('"', "\"\""))
}

/// What is only for recovery.
fn for_recovery(stop: &Stop, timeline: Timeline, major: u32) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        ("restore_command", restore_command()),
        ("recovery_target_timeline", timeline.to_string()),
        ("recovery_target_action", "promote".into()),
        // Nobody reads a half recovered database, so what that takes is not paid for.
        ("hot_standby", "off".into()),
        // Fewer restart points: each writes out all that replay has changed. The log kept for it stays below this.
        ("max_wal_size", "8GB".into()),
        ("checkpoint_timeout", "30min".into()),
        ("maintenance_io_concurrency", "64".into()),
        // How far it came is read from its messages.
        ("log_min_messages", "log".into()),
        ("lc_messages", "C".into()),
    ];
    if major >= 14 && cfg!(target_os = "linux") {
        // What is in place is synced. The server makes sure once more, of each file by itself unless it is told otherwise.
        settings.push(("recovery_init_sync_method", "syncfs".into()));
    }
    if major >= 15 {
        // How far replay looks ahead for pages to read.
        settings.push(("wal_decode_buffer_size", "4MB".into()));
    }
    match stop {
        Stop::After(lsn) => {
            settings.push(("recovery_target_lsn", lsn.to_string()));
            settings.push(("recovery_target_inclusive", "on".into()));
        }
        Stop::Before(lsn) => {
            settings.push(("recovery_target_lsn", lsn.to_string()));
            settings.push(("recovery_target_inclusive", "off".into()));
        }
        Stop::Time(time) => {
            settings.push(("recovery_target_time", time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()));
            settings.push(("recovery_target_inclusive", "on".into()));
        }
        Stop::Point(name) => settings.push(("recovery_target_name", name.clone())),
        Stop::Consistent => settings.push(("recovery_target", "immediate".into())),
    }
    settings
}

/// The name that a line of a configuration file sets, in lower case.
fn name_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    let name: String = line.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).collect();
    (!name.is_empty() && !line.starts_with('#')).then(|| name.to_ascii_lowercase())
}

/// A value as a line of a configuration file gives it, without quotes.
fn value_of(line: &str) -> String {
    let rest = line.trim_start().trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    let rest = rest.trim_start().trim_start_matches('=').trim_start();
    match rest.strip_prefix('\'') {
        Some(quoted) => quoted.split('\'').next().unwrap_or_default().to_owned(),
        None => rest.split(['#', ' ', '\t']).next().unwrap_or_default().to_owned(),
    }
}

/// A file without what is not kept, and the names that were taken out. Values are dropped with their lines: one of them
/// may be a password.
fn without(text: &str, dropped: impl Fn(&str) -> bool) -> (String, Vec<String>) {
    let mut names = Vec::new();
    let mut kept = String::new();
    let mut ours = false;
    for line in text.lines() {
        if line == ONLY_FOR_RECOVERY || line == END {
            ours = line == ONLY_FOR_RECOVERY;
            continue;
        }
        match name_of(line) {
            _ if ours => {}
            Some(name) if dropped(&name) => names.push(name),
            _ => {
                kept += line;
                kept.push('\n');
            }
        }
    }
    names.dedup();
    (kept, names)
}

/// What was changed, for the report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Changes {
    /// In words.
    pub(super) notes: Vec<String>,
}

/// From where a server is reached whose own configuration was not in the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doors {
    /// This machine, by its socket.
    Machine,
    /// A container: whoever reaches its port, with a password.
    Container,
}

impl Doors {
    fn hba(self) -> &'static str {
        match self {
            Doors::Machine => "local all all peer\n",
            Doors::Container => "local all all peer\nhost all all all scram-sha-256\n",
        }
    }

    fn listen(self) -> &'static str {
        match self {
            Doors::Machine => "localhost",
            Doors::Container => "*",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Doors::Machine => "listens on this machine only",
            Doors::Container => "listens at every address of its container",
        }
    }
}

/// Writes everything a server needs to recover to `stop` and nowhere else. May be done again.
pub(super) fn before(
    data: &Path,
    owner: Option<(u32, u32)>,
    facts: &ServerFacts,
    stop: &Stop,
    timeline: Timeline,
    doors: Doors,
) -> Result<Changes, RestoreError> {
    let mut notes = Vec::new();
    let conf = data.join("postgresql.conf");
    match read(&conf)? {
        Some(text) => {
            let (kept, names) = without(&text, |name| NOT_KEPT.contains(&name));
            if !names.is_empty() {
                write(&conf, owner, &kept)?;
                notes.push(format!("taken out of postgresql.conf: {}", names.join(", ")));
            }
        }
        None => {
            write(&conf, owner, &minimal(facts, doors))?;
            notes.push(format!(
                "the source kept its configuration outside its data directory, where a backup does not see it: \
                 postgresql.conf is a minimal one, and {}",
                doors.words()
            ));
        }
    }
    for (file, text) in [("pg_hba.conf", doors.hba()), ("pg_ident.conf", "")] {
        let path = data.join(file);
        if read(&path)?.is_none() {
            write(&path, owner, text)?;
            notes.push(format!("{file} was not in the backup: a minimal one was made"));
        }
    }
    let auto = data.join("postgresql.auto.conf");
    let text = read(&auto)?.unwrap_or_default();
    let main = read(&conf)?.unwrap_or_default();
    let (text, raised) = auto_conf(&main, &text, facts, stop, timeline);
    write(&auto, owner, &text)?;
    notes.extend(raised);
    for file in ["standby.signal", "backup_label.old", "tablespace_map.old", "postmaster.pid", "postmaster.opts"] {
        remove(&data.join(file))?;
    }
    write(&data.join("recovery.signal"), owner, "")?;
    Ok(Changes { notes })
}

/// Takes away what was only for recovery.
pub(super) fn after(data: &Path, owner: Option<(u32, u32)>) -> Result<(), RestoreError> {
    let auto = data.join("postgresql.auto.conf");
    let (kept, _) = without(&read(&auto)?.unwrap_or_default(), |_| false);
    write(&auto, owner, &kept)
}

/// `postgresql.auto.conf`, and in words what was raised or taken out.
fn auto_conf(main: &str, auto: &str, facts: &ServerFacts, stop: &Stop, timeline: Timeline) -> (String, Vec<String>) {
    let (mut text, names) = without(auto, |name| NOT_KEPT.contains(&name));
    let mut notes = Vec::new();
    let names: Vec<String> = names.into_iter().filter(|name| name != "archive_mode").collect();
    if names.iter().any(|name| name != "synchronous_standby_names") {
        notes.push(format!("taken out of postgresql.auto.conf: {}", names.join(", ")));
    }
    // The last line that sets a name counts.
    let set: BTreeMap<String, String> =
        main.lines().chain(text.lines()).filter_map(|line| Some((name_of(line)?, value_of(line)))).collect();
    for (name, usual) in AT_LEAST {
        let Some(needed) = facts.settings.get(name).and_then(|value| value.parse::<u64>().ok()) else { continue };
        let has = set.get(name).and_then(|value| value.parse::<u64>().ok());
        if has.is_none_or(|has| has < needed) {
            if has.unwrap_or(usual) != needed {
                let old = has.map_or("the default".to_owned(), |has| has.to_string());
                notes.push(format!("{name} is {needed}, as it was on the source, in place of {old}"));
            }
            text += &format!("{name} = {needed}\n");
        }
    }
    // Its new life is its own: no archive, nobody to follow, nobody to wait for with each commit.
    text += "archive_mode = off\nsynchronous_standby_names = ''\n";
    text += &format!("{ONLY_FOR_RECOVERY}\n");
    for (name, value) in for_recovery(stop, timeline, facts.major()) {
        text += &format!("{name} = {}\n", quoted(&value));
    }
    text += &format!("{END}\n");
    (text, notes)
}

fn minimal(facts: &ServerFacts, doors: Doors) -> String {
    let mut text = format!(
        "# Made by mainstay restore: the source kept its own outside the data directory.\nlisten_addresses = '{}'\n",
        doors.listen()
    );
    for name in FROM_FACTS {
        if let Some(value) = facts.settings.get(name).filter(|value| !value.is_empty()) {
            text += &format!("{name} = {}\n", quoted(value));
        }
    }
    text
}

fn read(path: &Path) -> Result<Option<String>, RestoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

fn remove(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file of the server so that it is there whole, or as it was.
pub(super) fn write(path: &Path, owner: Option<(u32, u32)>, text: &str) -> Result<(), RestoreError> {
    write_bytes(path, owner, 0o600, text.as_bytes())
}

/// As [`write`], with permission bits.
pub(super) fn write_bytes(path: &Path, owner: Option<(u32, u32)>, mode: u32, bytes: &[u8]) -> Result<(), RestoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".mainstay");
    let new = path.with_file_name(name);
    remove(&new)?;
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&new).map_err(io("write", &new))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", &new))?;
    give(&new, owner)?;
    fs::rename(&new, path).map_err(io("write", path))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SegmentSize, SystemId};

    fn facts(settings: &[(&str, &str)]) -> ServerFacts {
        ServerFacts {
            system: SystemId(7),
            version: 150_018,
            segment_size: SegmentSize::USUAL,
            block_size: 8192,
            data_checksums: false,
            settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            tablespaces: BTreeMap::new(),
            databases: BTreeMap::new(),
        }
    }

    #[test]
    fn r25_nothing_of_the_former_life_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("postgresql.conf"),
            "port = 5433\n  Archive_Command 'aws s3 cp'\n#restore_command = 'x'\nsynchronous_standby_names = 'mainstay'\n",
        )
        .unwrap();
        fs::write(
            dir.path().join("postgresql.auto.conf"),
            "primary_conninfo = 'host=a password=hunter2'\nprimary_slot_name = 's'\nwork_mem = '64MB'\narchive_mode = 'on'\n",
        )
        .unwrap();
        fs::write(dir.path().join("standby.signal"), "").unwrap();
        let facts = facts(&[]);
        // Twice is as once.
        for _ in 0..2 {
            before(dir.path(), None, &facts, &Stop::After(Lsn(0x300_0148)), Timeline(1), Doors::Machine).unwrap();
        }
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(read("postgresql.conf"), "port = 5433\n#restore_command = 'x'\n");
        let auto = read("postgresql.auto.conf");
        assert!(!auto.contains("hunter2") && !auto.contains("primary_"), "{auto}");
        assert!(auto.contains("archive_mode = off\nsynchronous_standby_names = ''\n"), "{auto}");
        assert!(auto.contains("recovery_target_lsn = '0/3000148'\nrecovery_target_inclusive = 'on'\n"), "{auto}");
        assert_eq!(auto.matches("restore_command").count(), 1);
        assert!(!dir.path().join("standby.signal").exists() && dir.path().join("recovery.signal").exists());
        after(dir.path(), None).unwrap();
        assert_eq!(
            read("postgresql.auto.conf"),
            "work_mem = '64MB'\narchive_mode = off\nsynchronous_standby_names = ''\n"
        );
    }

    #[test]
    fn r26_what_is_too_small_is_raised_and_said() {
        let needed = facts(&[("max_connections", "300"), ("max_wal_senders", "10"), ("max_worker_processes", "8")]);
        let main = "max_connections = 100 # few\nmax_wal_senders = '20'\nmax_worker_processes=8\n";
        let (text, notes) = auto_conf(main, "", &needed, &Stop::Consistent, Timeline(3));
        assert!(text.starts_with("max_connections = 300\narchive_mode"), "{text}");
        assert_eq!(notes, ["max_connections is 300, as it was on the source, in place of 100"]);
        // What every server has that nobody told otherwise is set, and is nobody's business.
        let usual =
            facts(&[("max_connections", "100"), ("max_worker_processes", "16"), ("max_prepared_transactions", "0")]);
        let (text, notes) = auto_conf("", "", &usual, &Stop::Consistent, Timeline(3));
        assert!(text.contains("max_connections = 100\n"), "{text}");
        assert_eq!(notes, ["max_worker_processes is 16, as it was on the source, in place of the default"]);
        // The last one counts, and the automatic file is read last.
        let (text, notes) = auto_conf(main, "max_connections = 400\n", &needed, &Stop::Consistent, Timeline(3));
        assert!(notes.is_empty() && !text.contains("= 300"), "{text}");
        assert!(text.contains("recovery_target_timeline = '3'\n") && text.contains("recovery_target = 'immediate'\n"));
    }

    #[test]
    fn r26_a_missing_configuration_is_made_from_the_facts() {
        let dir = tempfile::tempdir().unwrap();
        let facts = facts(&[("max_connections", "300"), ("shared_preload_libraries", "it's, b\\c")]);
        let stop = Stop::Point("be'fore".into());
        let changes = before(dir.path(), None, &facts, &stop, Timeline(1), Doors::Machine).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(
            read("postgresql.conf")
                .contains("listen_addresses = 'localhost'\nshared_preload_libraries = 'it''s, b\\\\c'\n")
        );
        assert!(read("postgresql.auto.conf").contains("recovery_target_name = 'be''fore'\n"));
        assert_eq!(read("pg_hba.conf"), "local all all peer\n");
        assert!(changes.notes.iter().any(|note| note.contains("outside its data directory")), "{changes:?}");

        // In a container nobody comes from the machine itself.
        let dir = tempfile::tempdir().unwrap();
        before(dir.path(), None, &facts, &stop, Timeline(1), Doors::Container).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(read("postgresql.conf").contains("listen_addresses = '*'\n"));
        assert_eq!(read("pg_hba.conf"), "local all all peer\nhost all all all scram-sha-256\n");
    }
}
