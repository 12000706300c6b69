//! Real PostgreSQL servers of every supported version, each in a folder of its own, gone with the test.
//!
//! 15 is Debian's; the others are in the cache where `tests/setup/prepare.sh` puts them. Servers listen on loopback and a
//! Unix socket, run as the user `postgres` when the test is root's (PostgreSQL refuses root), and die with this process.

#![allow(dead_code, reason = "a harness for several rooms; none uses all of it")]

use mainstay::backup::repository::Archive;
use mainstay::backup::source::postgres::{Address, BaseBackup, BaseEvent, BaseOptions, Connection, Purpose, Rows};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server may take this long to answer or to stop on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a server is made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Length of a WAL segment in MiB; 16 unless it is given. Also for a data folder that is there already.
    pub(crate) segment_mib: Option<u32>,
    /// Checksums on pages.
    pub(crate) checksums: bool,
    /// A certificate for `localhost`, signed by the CA at [`Server::ca`].
    pub(crate) tls: bool,
    /// More lines for `postgresql.conf`.
    pub(crate) settings: Vec<String>,
    /// Lines that come first in `pg_hba.conf`.
    pub(crate) hba: Vec<String>,
}

impl Options {
    /// With these lines in `postgresql.conf`.
    pub(crate) fn with(settings: &[&str]) -> Options {
        Options { settings: settings.iter().map(|line| (*line).to_owned()).collect(), ..Options::default() }
    }
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// `pg_ctl stop -m fast`: sessions end, the log is sent to the end.
    Fast,
    /// `pg_ctl stop -m immediate`: as a crash, but in order.
    Immediate,
    /// All its processes at once, as when the host dies.
    Kill,
}

/// A server, running or stopped.
pub(crate) struct Server {
    version: u32,
    port: u16,
    data: PathBuf,
    running: Option<Child>,
    /// What was killed beside it and may not be gone yet.
    orphans: std::sync::Mutex<Vec<i32>>,
    /// Holds the socket, the log, tablespaces, the CA.
    folder: tempfile::TempDir,
}

impl Server {
    /// The versions that a test runs on: two in the gate, all of them under `make soak`.
    pub(crate) fn versions() -> Vec<u32> {
        if std::env::var_os("MAINSTAY_SOAK").is_some() { vec![13, 14, 15, 16, 17, 18] } else { vec![15, 17] }
    }

    /// The folder of a version's programs (`initdb`, `postgres`, `pg_ctl`; on 15 all others too).
    pub(crate) fn bin(version: u32) -> PathBuf {
        let mut places = vec![PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))];
        if version != 15 {
            let cache = if nix::unistd::geteuid().is_root() {
                vec![PathBuf::from("/var/cache/mainstay/postgres")]
            } else {
                let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
                let cache = std::env::var_os("XDG_CACHE_HOME")
                    .map(PathBuf::from)
                    .filter(|p| !p.as_os_str().is_empty())
                    .or(home);
                let own = cache.map(|cache| cache.join("mainstay/postgres"));
                own.into_iter().chain([Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cache/postgres")]).collect()
            };
            places = cache.into_iter().map(|dir| dir.join(version.to_string()).join("bin")).collect();
        }
        let found = places.iter().find(|dir| dir.join("postgres").exists());
        let what = if matches!(version, 15 | 17) { "test" } else { "soak" };
        found
            .cloned()
            .unwrap_or_else(|| panic!("PostgreSQL {version} is not at {places:?}: run tests/setup/prepare.sh {what}"))
    }

    /// Whom servers run as, when not as ourselves.
    fn user() -> Option<User> {
        nix::unistd::geteuid().is_root().then(|| {
            let user = User::from_name("postgres").unwrap();
            user.unwrap_or_else(|| {
                panic!("there is no user `postgres` to run servers as: run tests/setup/prepare.sh test")
            })
        })
    }

    /// Gives a file or folder, with all in it, to the user that servers run as.
    pub(crate) fn give(path: &Path) {
        let Some(user) = Server::user() else { return };
        let mut todo = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            std::os::unix::fs::lchown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            if path.symlink_metadata().unwrap().is_dir() {
                todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
    }

    /// One of a version's programs, as the user that servers run as. It ends when this process does.
    pub(crate) fn command(version: u32, program: &str) -> Command {
        let mut command = Command::new(Server::bin(version).join(program));
        command.env("LC_ALL", "C").env("TZ", "UTC").current_dir("/").stdin(Stdio::null());
        for name in ["PGHOST", "PGPORT", "PGUSER", "PGDATA", "PGPASSWORD", "PGOPTIONS"] {
            command.env_remove(name);
        }
        if let Some(user) = Server::user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("HOME", &user.dir);
        }
        // SAFETY: one system call between fork and exec. It is set last: a change of the user clears it. SIGQUIT stops a
        // server with all its processes at once.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }

    /// A new cluster, started.
    pub(crate) async fn start(version: u32, options: Options) -> Server {
        let server = Server::stopped(version);
        let mut init = Server::command(version, "initdb");
        init.arg("-D").arg(&server.data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        if let Some(mib) = options.segment_mib {
            init.arg(format!("--wal-segsize={mib}"));
        }
        match (options.checksums, version) {
            (true, _) => drop(init.arg("--data-checksums")),
            (false, 18..) => drop(init.arg("--no-data-checksums")),
            _ => {}
        }
        run(&mut init);
        server.begin(&options).await
    }

    /// A server on a data folder that is there already, such as a restored one, which is given to the user that servers
    /// run as. Its `postgresql.conf` and `pg_hba.conf` are replaced; signal files stay as they are.
    pub(crate) async fn on(version: u32, data: &Path, options: Options) -> Server {
        let mut server = Server::stopped(version);
        server.data = data.to_owned();
        Server::give(data);
        server.begin(&options).await
    }

    /// A standby of a server, which follows it without a slot.
    pub(crate) async fn standby(primary: &Server, options: Options) -> Server {
        let server = Server::stopped(primary.version);
        let mut backup = BaseBackup::start(primary.replication().await, &BaseOptions::default(), None).await.unwrap();
        unpack(&mut backup, &server.data, &server.folder.path().join("tablespaces")).await;
        fs::write(server.data.join("standby.signal"), "").unwrap();
        Server::give(server.folder.path());
        let mut options = options;
        options.settings.push(format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres'", primary.port));
        server.begin(&options).await
    }

    fn stopped(version: u32) -> Server {
        let folder = tempfile::Builder::new().prefix("mainstay-pg").tempdir().unwrap();
        // Its own user has to get through it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = folder.path().join("data");
        for dir in [&data, &folder.path().join("s")] {
            fs::create_dir(dir).unwrap();
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
            Server::give(dir);
        }
        Server {
            version,
            port: super::ports::free(),
            data,
            running: None,
            orphans: std::sync::Mutex::default(),
            folder,
        }
    }

    /// Writes the settings and starts.
    async fn begin(mut self, options: &Options) -> Server {
        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nfsync = off\nwal_level = replica\n\
             max_wal_senders = 10\nmax_replication_slots = 10\nwal_keep_size = 256\nhot_standby = on\nshared_buffers = 16MB\ndynamic_shared_memory_type = mmap\n\
             max_connections = 30\nlog_line_prefix = '%m [%p] %b %q%a '\nlog_timezone = 'UTC'\ntimezone = 'UTC'\n\
             password_encryption = 'scram-sha-256'\n",
            self.port,
            self.socket().display()
        );
        // As initdb writes them: a server with large segments does not start with less.
        let mib = options.segment_mib.unwrap_or(16);
        conf.push_str(&format!("min_wal_size = '{}MB'\nmax_wal_size = '{}MB'\n", mib * 5, mib * 64));
        if options.tls {
            self.certificates();
            conf.push_str("ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\n");
        }
        for line in &options.settings {
            conf.push_str(line);
            conf.push('\n');
        }
        fs::write(self.data.join("postgresql.conf"), conf).unwrap();
        let mut hba = options.hba.join("\n");
        hba.push_str("\nlocal all all trust\nhost all all 127.0.0.1/32 trust\nlocal replication all trust\nhost replication all 127.0.0.1/32 trust\n");
        fs::write(self.data.join("pg_hba.conf"), hba).unwrap();
        fs::write(self.data.join("pg_ident.conf"), "").unwrap();
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            Server::give(&self.data.join(name));
        }
        self.start_again().await;
        self
    }

    /// Starts it, and waits until it answers.
    pub(crate) async fn start_again(&mut self) {
        self.spawn();
        self.answers().await;
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(&mut self) {
        assert!(self.running.is_none(), "it is running");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = Server::command(self.version, "postgres");
        command.arg("-D").arg(&self.data).stdout(log.try_clone().unwrap()).stderr(log);
        self.running = Some(command.spawn().unwrap());
    }

    /// Waits until it answers; panics with its log when it ends instead.
    pub(crate) async fn answers(&mut self) {
        let address = self.socket_address();
        let until = Instant::now() + PATIENCE;
        loop {
            let error = match Connection::open(&address, None, Purpose::Sql).await {
                Ok(connection) => return connection.close().await,
                Err(error) => error,
            };
            if let Some(status) = self.running.as_mut().unwrap().try_wait().unwrap() {
                self.running = None;
                panic!("PostgreSQL {} ended with {status}:\n{}", self.version, self.log());
            }
            assert!(Instant::now() < until, "PostgreSQL {} does not answer: {error}\n{}", self.version, self.log());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until it ended, with all of its processes: one that still holds its memory would keep the next one from
    /// starting. Says how.
    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            let alone = {
                let mut orphans = self.orphans.lock().unwrap();
                orphans.retain(|pid| lives(*pid));
                orphans.is_empty()
            };
            let ended = self.running.as_mut().unwrap().try_wait().unwrap();
            if let (Some(status), true) = (ended, alone) {
                self.running = None;
                return status;
            }
            assert!(Instant::now() < until, "PostgreSQL {} goes on:\n{}", self.version, self.log());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Stops it, and waits until it is gone.
    pub(crate) async fn stop(&mut self, how: Stop) {
        self.signal_stop(how);
        self.ended().await;
    }

    /// Stops it without waiting.
    pub(crate) fn signal_stop(&self, how: Stop) {
        let child = self.running.as_ref().expect("it is running");
        let pid = Pid::from_raw(child.id() as i32);
        match how {
            Stop::Fast => kill(pid, Signal::SIGINT).unwrap(),
            Stop::Immediate => kill(pid, Signal::SIGQUIT).unwrap(),
            Stop::Kill => {
                // Each of its processes leads a group of its own. First it is kept from starting more, and has stopped
                // before they are counted.
                kill(pid, Signal::SIGSTOP).unwrap();
                while state_of(pid.as_raw()).is_some_and(|state| !matches!(state, 'T' | 'Z')) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
                kill(pid, Signal::SIGKILL).unwrap();
                for child in children.split_whitespace().map(|child| child.parse().unwrap()) {
                    let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                    self.orphans.lock().unwrap().push(child);
                }
            }
        }
    }

    /// Makes a standby a primary on a new timeline.
    pub(crate) async fn promote(&self) {
        assert_eq!(self.value("SELECT pg_promote(true, 60)").await, "t", "{}", self.log());
    }

    /// Runs SQL in the database `postgres`.
    pub(crate) async fn sql(&self, sql: &str) -> Rows {
        let mut connection = Connection::open(&self.socket_address(), None, Purpose::Sql).await.unwrap();
        let rows = connection.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().await;
        rows
    }

    /// The first value that SQL gives; empty for NULL and for no row.
    pub(crate) async fn value(&self, sql: &str) -> String {
        let rows = self.sql(sql).await;
        let value = rows.rows.first().and_then(|row| row.first().cloned().flatten());
        String::from_utf8(value.unwrap_or_default().to_vec()).unwrap()
    }

    /// Waits until SQL gives that value.
    pub(crate) async fn until(&self, sql: &str, wanted: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let value = self.value(sql).await;
            if value == wanted {
                return;
            }
            assert!(Instant::now() < until, "{sql} gives {value}, not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection for replication, over TCP.
    pub(crate) async fn replication(&self) -> Connection {
        Connection::open(&self.address(), None, Purpose::Replication).await.unwrap()
    }

    /// A connection for SQL, over TCP.
    pub(crate) async fn connection(&self) -> Connection {
        Connection::open(&self.address(), None, Purpose::Sql).await.unwrap()
    }

    /// Its address over TCP as a superuser, without TLS.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/?sslmode=disable", self.port)
    }

    /// [`Server::url`], read.
    pub(crate) fn address(&self) -> Address {
        Address::parse(&self.url()).unwrap()
    }

    /// Its address over the Unix socket as a superuser.
    pub(crate) fn socket_address(&self) -> Address {
        let folder = self.socket().display().to_string().replace('/', "%2F");
        Address::parse(&format!("postgres://postgres@{folder}:{}/", self.port)).unwrap()
    }

    /// The major version.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The CA's certificate, where [`Options::tls`] was set.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// A new folder of this name beside the data, which the server may write to: a tablespace.
    pub(crate) fn new_folder(&self, name: &std::ffi::OsStr) -> PathBuf {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        Server::give(&folder);
        folder
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let text = fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(6000)..]).into_owned()
    }

    /// Its process; none when it is stopped.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Child::id)
    }

    /// A CA, and a certificate of it for `localhost`.
    fn certificates(&self) {
        let dir = self.folder.path();
        let openssl = |args: &[&str]| {
            let mut command = Command::new("openssl");
            command.current_dir(dir).args(args);
            run(&mut command);
        };
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3"];
        openssl(&[&["req", "-x509", "-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.crt"][..], &key].concat());
        openssl(
            &[&["req", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"][..], &key[..5]]
                .concat(),
        );
        fs::write(dir.join("san"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
        openssl(&[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "san",
            "-out",
            "server.crt",
        ]);
        for (name, mode) in [("server.crt", 0o644), ("server.key", 0o600)] {
            let to = self.data.join(name);
            fs::copy(dir.join(name), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
            Server::give(&to);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running.is_none() {
            return;
        }
        self.signal_stop(Stop::Kill);
        let _ = self.running.take().unwrap().wait();
    }
}

/// Runs a program to its end; panics with what it said when it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let program = command.get_program().to_owned();
    let output = command.output().unwrap_or_else(|error| panic!("start {program:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// The letter that the kernel gives a process's state; none when there is no such process.
fn state_of(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether a process still has its memory.
fn lives(pid: i32) -> bool {
    state_of(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// What a base backup brought, besides its files.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub(crate) events: Vec<BaseEvent>,
    pub(crate) tablespaces: BTreeMap<u32, PathBuf>,
    pub(crate) server_manifest: Vec<u8>,
    /// The length of each archive.
    pub(crate) bytes: Vec<(Archive, u64)>,
}

/// Unpacks a base backup with GNU tar, which refuses what is cut off: the data into a folder, each tablespace into a folder
/// named by its number in `spaces`, with its link in `pg_tblspc`. Panics when it fails.
pub(crate) async fn unpack(backup: &mut BaseBackup, data: &Path, spaces: &Path) -> Unpacked {
    let mut unpacked = Unpacked::default();
    let mut tar: Option<Child> = None;
    let finish = |tar: Option<Child>| {
        let Some(mut tar) = tar else { return };
        drop(tar.stdin.take());
        assert!(tar.wait().unwrap().success(), "tar failed");
    };
    while let Some(event) = backup.next().await.unwrap() {
        match event {
            BaseEvent::Archive(archive) => {
                finish(tar.take());
                let to = match archive {
                    Archive::Base => data.to_owned(),
                    Archive::Tablespace(oid) => {
                        let to = spaces.join(oid.to_string());
                        fs::create_dir_all(&to).unwrap();
                        unpacked.tablespaces.insert(oid, to.clone());
                        to
                    }
                };
                let child =
                    Command::new("tar").args(["-x", "-p", "-f", "-", "-C"]).arg(&to).stdin(Stdio::piped()).spawn();
                tar = Some(child.unwrap());
                unpacked.bytes.push((archive, 0));
            }
            BaseEvent::Data(bytes) => {
                tar.as_mut().unwrap().stdin.as_mut().unwrap().write_all(&bytes).unwrap();
                unpacked.bytes.last_mut().unwrap().1 += bytes.len() as u64;
            }
            BaseEvent::ServerManifest(bytes) => unpacked.server_manifest.extend_from_slice(&bytes),
            other => unpacked.events.push(other),
        }
    }
    finish(tar.take());
    for (oid, place) in &unpacked.tablespaces {
        let link = data.join("pg_tblspc").join(oid.to_string());
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(place, &link).unwrap();
    }
    // Servers do not start in a folder that others may read, and tar leaves the mode of the top as it was.
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).unwrap();
    if !unpacked.tablespaces.is_empty() {
        let map: String =
            unpacked.tablespaces.iter().map(|(oid, place)| format!("{oid} {}\n", place.display())).collect();
        fs::write(data.join("tablespace_map"), map).unwrap();
    }
    unpacked
}
