//! The database that is backed up, and the programs and processes around it.

use super::MIB;
use super::cost::cpu_of_tree;
use crate::lab::run;
use crate::ports;
use nix::unistd::User;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Debian's; the peer's package depends on nothing else.
pub(super) const BIN: &str = "/usr/lib/postgresql/15/bin";
/// The longest that a server may take for anything.
const PATIENCE: Duration = Duration::from_secs(600);
/// A table has so many rows, and about 140 MiB with its index.
const TABLE_ROWS: u32 = 1_000_000;
const TABLE_MIB: u64 = 140;
/// Says how far the rows go that are written last.
pub(super) const LAST_ROW: &str = "select count(*), max(id) from mark";

/// A server under a folder of its own.
pub(super) struct Cluster {
    folder: PathBuf,
    pub(super) data: PathBuf,
    pub(super) port: u16,
    tables: u64,
}

/// A folder that the server's user gets through.
pub(super) fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("mainstay-bench-").tempdir().expect("there is room");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode is set");
    folder
}

/// Whom servers run as, when not as ourselves: they refuse root.
fn user() -> Option<User> {
    let postgres = || User::from_name("postgres").expect("users are read").expect("there is the user postgres");
    nix::unistd::geteuid().is_root().then(postgres)
}

/// A program as the server's user.
pub(super) fn as_user(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    if let Some(user) = user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("HOME", &user.dir);
    }
    command
}

/// Makes a folder that belongs to the server's user.
pub(super) fn make(path: &Path) {
    fs::create_dir_all(path).expect("a folder is made");
    if let Some(user) = user() {
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("it is given away");
    }
}

pub(super) fn version() -> String {
    let said = run(Command::new(format!("{BIN}/postgres")).arg("--version"));
    said.split_whitespace().nth(2).unwrap_or("?").to_owned()
}

/// What a server answers, as text.
pub(super) fn ask(port: u16, sql: &str) -> String {
    let mut psql = as_user(format!("{BIN}/psql"));
    psql.args(["-h", "127.0.0.1", "-U", "postgres", "-qAtX", "-v", "ON_ERROR_STOP=1", "-p", &port.to_string()]);
    run(psql.args(["-c", sql, "postgres"])).trim().to_owned()
}

/// Stops a server at once.
pub(super) fn stop(data: &Path) {
    run(as_user(format!("{BIN}/pg_ctl")).arg("-D").arg(data).args(["-m", "immediate", "-w", "stop"]));
}

/// Waits until a server says in its log that it takes writes: `ready` in `postmaster.pid` stands for reads already.
pub(super) fn wait_until_open(log: &Path) {
    let end = Instant::now() + PATIENCE;
    while !fs::read_to_string(log).unwrap_or_default().contains("database system is ready to accept connections") {
        assert!(Instant::now() < end, "the server does not open: see {}", log.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Cluster {
    /// A new one with about this much in it, of which no two rows are alike and which zstd makes about three times smaller.
    pub(super) fn start(folder: &Path, mib: u64) -> Cluster {
        let pg = folder.join("pg");
        make(&pg);
        let data = pg.join("main");
        run(as_user(format!("{BIN}/initdb")).arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "--no-sync"]));
        let port = ports::free();
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nshared_buffers = 256MB\n\
             max_wal_size = 4GB\nlogging_collector = off\n",
            pg.display()
        );
        let path = data.join("postgresql.conf");
        let usual = fs::read_to_string(&path).expect("there is a configuration") + &settings;
        let cluster = Cluster { folder: folder.to_owned(), data, port, tables: mib.div_ceil(TABLE_MIB).max(2) };
        // Filled without a log, which is not what is measured.
        let filling = "wal_level = minimal\nmax_wal_senders = 0\nfsync = off\nsynchronous_commit = off\n";
        fs::write(&path, format!("{usual}{filling}")).expect("the configuration is written");
        cluster.up();
        cluster.fill();
        cluster.down();
        let lasting = "wal_level = replica\narchive_mode = on\narchive_command = '/bin/true'\n";
        fs::write(&path, format!("{usual}{lasting}")).expect("the configuration is written");
        cluster.up();
        cluster
    }

    fn up(&self) {
        let log = self.data.with_extension("log");
        run(as_user(format!("{BIN}/pg_ctl"))
            .arg("-D")
            .arg(&self.data)
            .arg("-l")
            .arg(log)
            .args(["-w", "-t", "600", "start"])
            .stdout(Stdio::null()));
    }

    fn down(&self) {
        run(as_user(format!("{BIN}/pg_ctl")).arg("-D").arg(&self.data).args(["-m", "fast", "-w", "-t", "600", "stop"]));
    }

    fn fill(&self) {
        for table in 0..self.tables {
            let from = table * u64::from(TABLE_ROWS);
            self.ask(&format!(
                "begin; create table t{table} (id bigint, n int, amount numeric, words text, digest text);
                 insert into t{table} select g, (random() * 1e6)::int, (random() * 1e5)::numeric(12, 2),
                   (array['shipped','pending','cancelled','returned','delivered'])[1 + (random() * 4)::int]
                   || ' to customer ' || (random() * 50000)::int || ' in the city of '
                   || (array['Paris','Berlin','Madrid','Lisbon','Rome','Vienna'])[1 + (random() * 5)::int],
                   md5(g::text) from generate_series({from}, {from} + {TABLE_ROWS} - 1) g;
                 create index on t{table} (id); commit"
            ));
        }
        self.ask("create table mark (id bigserial primary key, at timestamptz default clock_timestamp())");
        self.ask("create role backup login replication");
        self.ask("vacuum (freeze, analyze)");
    }

    /// What the server answers, as text.
    pub(super) fn ask(&self, sql: &str) -> String {
        ask(self.port, sql)
    }

    /// A folder of the server's user beside the data.
    pub(super) fn room(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        make(&path);
        path
    }

    /// How much a base backup of it is, without the log.
    pub(super) fn data_mib(&self) -> f64 {
        let bytes = self.ask("select sum(pg_database_size(oid)) from pg_database");
        bytes.parse::<f64>().expect("a number") / MIB
    }

    /// By how much zstd at level 3 makes a table smaller.
    pub(super) fn compresses(&self) -> f64 {
        let path = self.data.join(self.ask("select pg_relation_filepath('t0')"));
        let plain = fs::read(path).expect("a table is read");
        let packed = zstd::bulk::compress(&plain, 3).expect("it is compressed");
        plain.len() as f64 / packed.len() as f64
    }

    /// Processor time of the server so far.
    pub(super) fn cpu(&self) -> f64 {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).expect("the server runs");
        cpu_of_tree(text.lines().next().and_then(|line| line.trim().parse().ok()).expect("it says its number"))
    }

    /// Sets what the server does with whole segments of its log.
    pub(super) fn archive(&self, command: &str) {
        self.ask(&format!("alter system set archive_command = '{}'", command.replace('\'', "''")));
        self.ask("select pg_reload_conf()");
    }

    /// Writes about this much log: batches of rows here and there, as jobs do, each a transaction. Gives how much it was.
    pub(super) fn write_log(&self, mib: u64) -> f64 {
        let begun = self.ask("select pg_current_wal_lsn()");
        let written = || -> f64 {
            let bytes = self.ask(&format!("select pg_wal_lsn_diff(pg_current_wal_lsn(), '{begun}')"));
            bytes.parse::<f64>().expect("a number") / MIB
        };
        let mut seed = 1_u64;
        while written() < mib as f64 {
            let mut batch = String::new();
            for _ in 0..40 {
                // Knuth's constants: the same places in every measurement.
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (table, at) = ((seed >> 33) % self.tables, (seed >> 20) % u64::from(TABLE_ROWS - 500));
                let from = table * u64::from(TABLE_ROWS) + at;
                batch += &format!("update t{table} set n = n + 1 where id between {from} and {from} + 500; commit; ");
            }
            self.ask(&format!("do $$ begin {batch} end $$"));
        }
        self.ask("insert into mark default values");
        written()
    }

    /// Waits until the archive has everything up to now.
    pub(super) fn wait_for_archive(&self) {
        let name = self.ask("select pg_walfile_name(pg_switch_wal())");
        let end = Instant::now() + PATIENCE;
        let done = format!("select last_archived_wal >= '{name}' from pg_stat_archiver");
        while self.ask(&done) != "t" {
            assert!(Instant::now() < end, "segment {name} is not archived");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut stop = as_user(format!("{BIN}/pg_ctl"));
        let _ = stop.arg("-D").arg(&self.data).args(["-m", "immediate", "-w", "stop"]).output();
    }
}
