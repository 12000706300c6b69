//! Programs out of an image, on the real engine: what only that way has. What both ways have is in the other files, by one
//! suite.

use super::bench::{Bench, IMAGE, ask};
use super::broken::{running, shop, with_shop};
use crate::support::postgres::{Options, Server};
use mainstay::backup::logical::{self, DumpError, InImage, LABEL, ProgramError, RestoreError, Way};
use mainstay::backup::source::postgres::{Address, Connection, Purpose};
use mainstay::config::secret::Secret;
use mainstay::runtime::RuntimeError;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// The `docker` program.
pub(super) fn docker(words: &[&str]) -> (bool, String) {
    let output = Command::new("docker").args(words).stdin(Stdio::null()).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
}

/// Names of containers with this label, running or not.
fn containers(label: &str) -> Vec<String> {
    let (_, said) =
        docker(&["ps", "-a", "--no-trunc", "--format", "{{.Names}}", "--filter", &format!("label={label}")]);
    said.lines().map(str::to_owned).collect()
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The label that tells containers of one bench.
fn label_of(container: &str) -> String {
    let format = "{{index .Config.Labels \"mainstay.copy.of\"}}";
    let (good, said) = docker(&["inspect", "-f", format, container]);
    assert!(good && !said.is_empty(), "{said}");
    format!("mainstay.copy.of={said}")
}

/// The container in which a program runs: its cgroup names it, or else the engine is asked for its processes.
fn container_of(pid: i32) -> String {
    let all = containers(LABEL);
    let pid = pid.to_string();
    let has = |name: &&String| {
        let (_, listed) = docker(&["top", name, "-eo", "pid"]);
        listed.lines().any(|line| line.trim() == pid)
    };
    all.iter().find(has).unwrap_or_else(|| panic!("no container of {all:?} runs {pid}")).clone()
}

const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' AND wait_event_type = 'Lock'";

/// A session that keeps `pg_dump` waiting.
async fn lock(server: &Server) -> Connection {
    let shop_of = Address { database: Some("shop".into()), ..server.address() };
    let mut session = Connection::open(&shop_of, None, Purpose::Sql).await.unwrap();
    session.query("BEGIN; LOCK TABLE orders").await.unwrap();
    session
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_with_odd_characters_gets_there_and_is_seen_nowhere() {
    const PASSWORD: &str = r#" it's: a \ "pass:word" # $x `y` äß; "#;
    let hba = vec!["hostssl all guarded all scram-sha-256".to_owned(), "host all guarded all reject".to_owned()];
    let server = Server::start(15, Options { hba, tls: true, ..Options::default() }).await;
    server.sql("CREATE DATABASE shop").await;
    ask(&server, "shop", "CREATE TABLE orders AS SELECT generate_series(1, 100) id").await;
    let quoted = PASSWORD.replace('\'', "''");
    server.sql(&format!("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{quoted}'")).await;
    // The server's certificate is checked in the container, too.
    let ca = server.ca().display().to_string().replace('/', "%2F");
    let text = format!("postgres://guarded@localhost:{}/?sslmode=verify-full&sslrootcert={ca}", server.port());
    let address = Address { password: Some(Secret::new(PASSWORD)), ..Address::parse(&text).unwrap() };
    let bench = Bench::in_image();
    let session = lock(&server).await;
    let dumping = tokio::spawn(logical::dump(bench.job(&address, shop())));
    server.until(WAITS, "1").await;
    let pid = running("pg_dump", server.port()).expect("pg_dump runs").as_raw();
    let container = container_of(pid);
    let (_, told) = docker(&["inspect", &container]);
    let mut seen = vec![told];
    for name in ["environ", "cmdline"] {
        seen.push(String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap()).into_owned());
    }
    assert!(seen[1].contains("PGPASSFILE=/mainstay/passwords"), "{}", seen[1]);
    assert!(seen.iter().all(|one| !one.contains("pass:word") && !one.contains("pass\\\\:word")), "{seen:?}");
    // Nothing of it is on a disk: what the container has changed, the engine tells.
    let (_, changed) = docker(&["diff", &container]);
    assert!(!changed.contains("passwords"), "{changed}");
    let (_, facts) = docker(&[
        "inspect",
        "-f",
        "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}",
        &container,
    ]);
    assert_eq!(facts, "65534:65534 true [ALL]");
    session.close().await;
    dumping.await.unwrap().unwrap();
    // It is removed before the copy is told of.
    assert!(!containers(LABEL).contains(&container));

    server.sql("ALTER DATABASE shop RENAME TO elsewhere").await;
    let options = logical::Options { into: address.clone(), ..bench.options(&server) };
    bench.restore(&options).await.unwrap();
    assert_eq!(ask(&server, "shop", "SELECT count(*) FROM orders").await, "100");

    // A wrong one is told by the server, before there is a container; one that no file can hold is told as such.
    let wrong = Address { password: Some(Secret::new("wrong")), ..address.clone() };
    let refused = bench.dump_from(&wrong, shop()).await.unwrap_err();
    assert!(matches!(&refused, DumpError::Postgres(_)) && refused.to_string().contains("28P01"), "{refused}");
    server.sql("ALTER ROLE guarded PASSWORD E'two\\nlines'").await;
    let lines = Address { password: Some(Secret::new("two\nlines")), ..address };
    let refused = bench.dump_from(&lines, shop()).await.unwrap_err().to_string();
    assert!(refused.contains("line break") && !refused.contains("two\n"), "{refused}");
    assert_eq!(bench.holdings().await.dumps.good.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_will_not_do_is_told_by_its_name() {
    let (server, newer) = tokio::join!(with_shop(), Server::start(17, Options::default()));
    let bench = Bench::in_image();
    let Way::Image(usual) = bench.way.clone() else { panic!() };
    let from = async |image: InImage, server: &Server| {
        let job = logical::Job { programs: Way::Image(image), ..bench.job(&server.address(), shop()) };
        logical::dump(job).await.unwrap_err()
    };
    let named = |image: &str| InImage { image: image.into(), ..usual.clone() };
    let error = from(named("mainstay-test/no-such-image:1"), &server).await;
    assert!(
        matches!(&error, DumpError::Program(ProgramError::Engine { error: RuntimeError::Image { .. } }))
            && error.to_string().contains("mainstay-test/no-such-image:1")
            && error.to_string().contains("docker image ls"),
        "{error}"
    );
    let error = from(named("busybox:latest"), &server).await.to_string();
    assert!(error.contains("busybox:latest: there is none in its PATH"), "{error}");
    let empty = format!("mainstay-logical-empty-{}", std::process::id());
    let tar = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(tar.path(), [0; 10_240]).unwrap();
    let (good, said) = docker(&["import", tar.path().to_str().unwrap(), &empty]);
    assert!(good, "{said}");
    let error = from(named(&empty), &server).await;
    docker(&["rmi", &empty]);
    assert!(matches!(&error, DumpError::Program(ProgramError::NotInImage { .. })), "{error}");
    // Its version, before anything is done.
    newer.sql("CREATE DATABASE shop").await;
    let error = from(usual.clone(), &newer).await;
    let DumpError::Program(ProgramError::NotInImage { program: "pg_dump", at_least: 17, what, .. }) = &error else {
        panic!("{error}")
    };
    assert!(what.contains("pg_dump (PostgreSQL) 15.") && error.to_string().contains("`postgres:17`"), "{error}");

    // A network from where it is not reached, one that is not there, and a socket that nobody sees.
    let error = from(InImage { network: "bridge".into(), ..usual.clone() }, &server).await;
    assert!(
        matches!(&error, DumpError::Program(ProgramError::Elsewhere { .. }))
            && error.to_string().contains("hint: `network`"),
        "{error}"
    );
    let error = from(InImage { network: "no-such-net".into(), ..usual.clone() }, &server).await.to_string();
    assert!(error.contains("no-such-net: there is no such network"), "{error}");
    let error = bench.dump_from(&server.socket_address(), shop()).await.unwrap_err().to_string();
    assert!(error.contains("a Unix socket"), "{error}");
    // Another server answers the container.
    let address = two_faced(server.port(), newer.port()).await;
    let error = bench.dump_from(&address, shop()).await.unwrap_err().to_string();
    assert!(error.contains("another server answers there"), "{error}");
    assert!(bench.names().await.is_empty());
    let nobody = Bench::in_image();
    nobody.dump(&server, shop()).await.unwrap();
    let options = logical::Options {
        programs: Way::Image(named("mainstay-test/no-such-image:1")),
        into: Address { application_name: "never".into(), ..newer.address() },
        ..nobody.options(&newer)
    };
    let error = nobody.restore(&options).await.unwrap_err();
    assert!(
        matches!(&error, RestoreError::Program(ProgramError::Engine { error: RuntimeError::Image { .. } })),
        "{error}"
    );
}

/// An address at which the first connection meets one server, and all others another.
async fn two_faced(first: u16, others: u16) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let count = AtomicUsize::new(0);
        while let Ok((mut near, _)) = listener.accept().await {
            let to = if count.fetch_add(1, Ordering::SeqCst) == 0 { first } else { others };
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    Address::parse(&format!("postgres://postgres@127.0.0.1:{port}/?sslmode=disable")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_stopped_takes_its_container_along() {
    let server = with_shop().await;
    let bench = Bench::in_image();
    let session = lock(&server).await;
    let dumping = tokio::spawn(logical::dump(bench.job(&server.address(), shop())));
    server.until(WAITS, "1").await;
    let container = container_of(running("pg_dump", server.port()).unwrap().as_raw());
    dumping.abort();
    until("the container stays", || !containers(LABEL).contains(&container));
    assert_eq!(running("pg_dump", server.port()), None);
    session.close().await;
    bench.dump(&server, shop()).await.unwrap();
    assert_eq!(bench.holdings().await.dumps.good.len(), 1);
    // Somebody removes it in the midst: what came is not all there is.
    let session = lock(&server).await;
    let dumping = tokio::spawn(logical::dump(bench.job(&server.address(), shop())));
    server.until(WAITS, "1").await;
    let container = container_of(running("pg_dump", server.port()).unwrap().as_raw());
    docker(&["rm", "-f", &container]);
    let failed = dumping.await.unwrap().unwrap_err();
    session.close().await;
    assert!(matches!(&failed, DumpError::Program(ProgramError::Engine { .. })), "{failed}");
    assert_eq!(bench.holdings().await.dumps.good.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_others_and_of_the_living_are_left_alone() {
    let server = with_shop().await;
    let bench = Bench::in_image();
    let name = |what: &str| format!("mainstay-logical-{what}-{}", std::process::id());
    // As a killed client leaves them: made and never started.
    let make = |what: &str, labels: [&str; 2]| {
        let [one, two] = labels;
        let (good, said) =
            docker(&["create", "--name", &name(what), "--label", one, "--label", two, "busybox:latest", "true"]);
        assert!(good, "{said}");
    };
    let session = lock(&server).await;
    let dumping = tokio::spawn(logical::dump(bench.job(&server.address(), shop())));
    server.until(WAITS, "1").await;
    let of = label_of(&container_of(running("pg_dump", server.port()).unwrap().as_raw()));
    let source = format!("{LABEL}=shop-db");
    make("left", [&source, &of]);
    make("other", [&source, "mainstay.copy.of=0123456789abcdef"]);
    make("anybody", [&source, "mainstay.copy.of=anybody"]);
    session.close().await;
    dumping.await.unwrap().unwrap();
    bench.dump(&server, shop()).await.unwrap();
    let there = containers(LABEL);
    // Several restores may be under way: what was made a moment ago is somebody's.
    let Way::Image(usual) = bench.way.clone() else { panic!() };
    server.sql("ALTER DATABASE shop RENAME TO elsewhere").await;
    let restoring = Way::Image(InImage { whose: logical::Whose::Anybody, ..usual });
    bench.restore(&logical::Options { programs: restoring, ..bench.options(&server) }).await.unwrap();
    let then = containers(LABEL);
    for what in ["other", "anybody"] {
        docker(&["rm", "-f", &name(what)]);
    }
    assert!(!there.contains(&name("left")), "{there:?}");
    assert!(["other", "anybody"].into_iter().all(|what| then.contains(&name(what))), "{then:?}");
}

/// The real program, with `image` in the source's file.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new(server: &Server) -> Lab {
        let lab = Lab(tempfile::tempdir().unwrap());
        lab.code(&["key", "new", "keys"]);
        std::fs::rename(lab.at("keys/identity.txt"), lab.at("identity.txt")).unwrap();
        let identity = std::fs::read_to_string(lab.at("identity.txt")).unwrap();
        let recipient = identity.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
        let config = format!(
            "server: {{ listen: \"127.0.0.1:0\" }}\nstate: state\nrepository:\n  url: repository\n  encrypt-to: [{recipient}]\n  \
             sign-with: keys/sign.key\n"
        );
        std::fs::write(lab.at("mainstay.yml"), config).unwrap();
        std::fs::create_dir(lab.at("backups")).unwrap();
        let source = format!(
            "kind: logical\npostgres: \"postgres://postgres@127.0.0.1:{port}/shop?sslmode=disable\"\nimage: \"{IMAGE}\"\n\
             restore:\n  into: \"postgres://postgres@127.0.0.1:{port}/?sslmode=disable\"\n  image: \"{IMAGE}\"\n  network: host\n",
            port = server.port(),
        );
        std::fs::write(lab.at("backups/shop.yml"), source).unwrap();
        lab
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        // No program of this machine is found.
        command.env("PATH", "/nonexistent");
        for name in ["MAINSTAY_CONFIG", "MAINSTAY_STATE", "MAINSTAY_URL", "PGPASSWORD"] {
            command.env_remove(name);
        }
        command
    }

    fn code(&self, args: &[&str]) -> (i32, String) {
        let out = self.command(args).output().unwrap();
        (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_client_leaves_no_copy_and_after_the_next_try_no_container() {
    let server = with_shop().await;
    let lab = Lab::new(&server);
    assert_eq!(lab.code(&["validate"]).0, 0);
    let (_, found) = lab.code(&["doctor", "--no-run"]);
    assert!(found.contains(&format!("of {IMAGE}, which reach it on the network host")), "{found}");

    let session = lock(&server).await;
    let log = std::fs::File::create(lab.at("log")).unwrap();
    let mut client = lab.command(&["backup", "--alone"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    server.until(WAITS, "1").await;
    let container = container_of(running("pg_dump", server.port()).unwrap().as_raw());
    let of = label_of(&container);
    client.kill().unwrap();
    client.wait().unwrap();
    // Nobody is told anything, and still it ends: the engine closes what was held open.
    until("a container outlives its client", || containers(&of).is_empty());
    assert_eq!(running("pg_dump", server.port()), None);
    session.close().await;
    let listed: Value = serde_json::from_str(&lab.code(&["--json", "backups"]).1).unwrap_or_default();
    let copies = |listed: &Value| listed[0]["clusters"][0]["copies"].as_array().map_or(0, Vec::len);
    assert_eq!(copies(&listed), 0, "{listed:#}");
    // Killed between making and starting it.
    let left = format!("mainstay-logical-made-{}", std::process::id());
    let source = format!("{LABEL}=shop");
    docker(&["create", "--name", &left, "--label", &of, "--label", &source, "busybox:latest", "true"]);
    assert_eq!(containers(&of), [left]);
    // How long a dead client's lease holds others up is another test's matter.
    std::fs::remove_file(lab.at("repository/shop/lease.json")).unwrap();
    let (code, said) = lab.code(&["backup", "--alone"]);
    assert!(code == 0 && said.contains("is complete"), "{said}");
    assert_eq!(containers(&of), Vec::<String>::new());
    let listed: Value = serde_json::from_str(&lab.code(&["--json", "backups"]).1).unwrap();
    assert_eq!(copies(&listed), 1, "{listed:#}");

    // Back, as the file says; and on a bare machine, as the command says.
    server.sql("ALTER DATABASE shop RENAME TO elsewhere").await;
    let (code, said) = lab.code(&["restore", "shop", "--latest", "--identity", "identity.txt"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(ask(&server, "shop", "SELECT count(*) FROM orders").await, "40000");
    std::fs::create_dir(lab.at("bare")).unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/?sslmode=disable", server.port());
    let bare = |more: &[&str]| {
        let repository = lab.at("repository").display().to_string();
        let words =
            ["restore", "shop", "--latest", "--repository", &repository, "--identity", "identity.txt", "--into", &url];
        lab.code(&[&words[..], more].concat())
    };
    for (more, exit, words) in [
        (&["--force", "--image", IMAGE][..], 0, "is in"),
        (&["--force", "--image", IMAGE, "--network", "none"], 2, "on the network none"),
        (&["--force", "--image", "mainstay-test/no-such-image:1"], 3, "mainstay-test/no-such-image:1"),
        (&["--force", "--image", IMAGE, "--bin", "/usr/bin"], 2, "`--image` takes its place"),
        (&["--force", "--bin", "/nowhere"], 2, "there is none in /nowhere"),
        (&["--force", "--image", IMAGE, "--volume", "data"], 2, "is about base backups"),
    ] {
        let (code, said) = bare(more);
        assert!(code == exit && said.contains(words), "{more:?} {code}: {said}");
    }
    assert_eq!(ask(&server, "shop", "SELECT count(*) FROM orders").await, "40000");
}
