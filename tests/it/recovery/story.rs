//! The whole of it as its users see it: the real program, a daemon, a server that is lost, and what comes back.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

mod kills;

use crate::support::ports;
use crate::support::postgres::{Options, Server, Stop};
use crate::support::store::{BUCKET, READER, S3Server};
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::restore;
use mainstay::backup::seal::{Checker, Identities, Opener};
use mainstay::model::Lsn;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A folder with a configuration, keys, and the programs that run there.
struct Lab {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
    /// Data folders of servers that `mainstay restore` has started.
    restored: Vec<PathBuf>,
    version: u32,
}

/// What a command said, and how it ended.
struct Said {
    out: String,
    err: String,
    code: i32,
}

impl Lab {
    /// Keys, a repository as `repository` has it, and the server as the source `shop-db`.
    fn new(server: &Server, repository: &str) -> Lab {
        let folder = tempfile::Builder::new().prefix("mainstay-story-").tempdir().unwrap();
        // The user that servers run as looks into the folders of restored ones.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let lab = Lab { folder, daemon: None, restored: Vec::new(), version: server.version() };
        lab.mainstay(&["key", "new", "keys"]);
        let identity = std::fs::read_to_string(lab.at("keys/identity.txt")).unwrap();
        let recipient = identity.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
        std::fs::rename(lab.at("keys/identity.txt"), lab.at("identity.txt")).unwrap();
        let config = format!(
            "server: {{ listen: \"127.0.0.1:0\" }}\nstate: state\nrepository:\n{repository}  encrypt-to: [{recipient}]\n  \
             sign-with: keys/sign.key\n"
        );
        std::fs::write(lab.at("mainstay.yml"), config).unwrap();
        std::fs::create_dir(lab.at("backups")).unwrap();
        let source = format!(
            "postgres: \"postgres://postgres@127.0.0.1:{}/?sslmode=disable\"\nship-every: 250ms\nrestore: {{ into: server, \
             bin: {}, port: 5499, checks: [{{ sql: \"select count(*) > 0 from orders\" }}] }}\n",
            server.port(),
            Server::bin(server.version()).display()
        );
        std::fs::write(lab.at("backups/shop-db.yml"), source).unwrap();
        lab
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        for name in ["MAINSTAY_CONFIG", "MAINSTAY_STATE", "MAINSTAY_URL"] {
            command.env_remove(name);
        }
        command
    }

    fn said(&self, args: &[&str]) -> Said {
        let out = self.command(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { out: text(&out.stdout), err: text(&out.stderr), code: out.status.code().unwrap_or(-1) }
    }

    /// What a command that must go well said.
    fn mainstay(&self, args: &[&str]) -> String {
        let said = self.said(args);
        assert_eq!(said.code, 0, "mainstay {}:\n{}{}", args.join(" "), said.out, said.err);
        said.out
    }

    fn json(&self, args: &[&str]) -> Value {
        let all: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        serde_json::from_str(&self.mainstay(&all)).unwrap()
    }

    fn serve(&mut self) {
        let log = std::fs::File::create(self.at("daemon.log")).unwrap();
        let child = self.command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        let so = self.until(|status| status["sources"][0]["state"] == "shipping");
        assert!(so, "{}\n{}", self.said(&["status"]).out, self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.at("daemon.log")).unwrap_or_default()
    }

    /// Waits until the daemon says so of itself.
    fn until(&self, so: impl Fn(&Value) -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            let said = self.said(&["--json", "status"]);
            if serde_json::from_str(&said.out).is_ok_and(|status: Value| so(&status)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    }

    /// Waits until all that the server has written is in the repository.
    async fn until_safe(&self, server: &Server) {
        let end: Lsn = server.value("select pg_current_wal_lsn()").await.parse().unwrap();
        let durable = |status: &Value| {
            let durable = status["sources"][0]["log"]["durable"].as_str().and_then(|text| text.parse::<Lsn>().ok());
            durable.is_some_and(|durable| durable >= end)
        };
        assert!(self.until(durable), "{}", self.log());
    }

    /// Commits these pipelines to the watched repository.
    fn commit(&self, pipelines: &[(&str, &str)]) {
        let work = self.at("shop");
        std::fs::create_dir_all(work.join(".mainstay")).unwrap();
        for (name, text) in pipelines {
            std::fs::write(work.join(format!(".mainstay/{name}.yml")), text).unwrap();
        }
        let git = |dir: &Path, args: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=Ana", "-c", "user.email=ana@example.com"]).args(args).current_dir(dir);
            let said = git.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
            assert!(said.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&said.stderr));
        };
        if !work.join(".git").exists() {
            git(&work, &["init", "-q", "-b", "main", "."]);
            git(self.folder.path(), &["init", "-q", "--bare", "-b", "main", "shop.git"]);
        }
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-q", "-m", "pipelines"]);
        git(&work, &["push", "-q", "../shop.git", "HEAD:main"]);
    }

    /// Starts a pipeline by hand.
    fn start(&self, pipeline: &str, more: &[&str]) -> u64 {
        let started = self.json(&[&["trigger", "shop", "--pipeline", pipeline], more].concat());
        started["runs"][0].as_u64().unwrap_or_else(|| panic!("{started:#}"))
    }

    /// A run once it is over.
    fn ended(&self, run: u64) -> Value {
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            let shown = self.said(&["--json", "show", &run.to_string()]);
            let shown: Value = serde_json::from_str(&shown.out).unwrap_or_default();
            if !matches!(shown["status"].as_str(), None | Some("queued" | "running")) {
                return shown;
            }
            assert!(Instant::now() < until, "run {run} does not end: {shown:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn run(&self, pipeline: &str, more: &[&str]) -> Value {
        self.ended(self.start(pipeline, more))
    }

    fn kill_daemon(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Rows of `orders` in a server on that port.
    async fn orders(&self, port: u16) -> String {
        let address = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable").parse().unwrap();
        let open = mainstay::backup::source::postgres::Connection::open(
            &address,
            None,
            mainstay::backup::source::postgres::Purpose::Sql,
        );
        let mut connection = open.await.unwrap();
        let rows = connection.query("select count(*) from orders").await.unwrap();
        rows.text(0, "count").unwrap().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill_daemon();
        }
        for data in &self.restored {
            let mut stop = Server::command(self.version, "pg_ctl");
            let _ = stop.arg("-D").arg(data).args(["-m", "immediate", "-w", "stop"]).output();
        }
    }
}

/// Fills a table, in transactions of which each counts.
async fn sell(server: &Server, from: u32, count: u32) {
    for n in from..from + count {
        server.sql(&format!("insert into orders values ({n}, repeat('x', 500))")).await;
    }
}

/// A server that sells, backed up, then lost together with the daemon and all of its files: what was acknowledged 3 s
/// before is there again, from the bucket and one key.
#[tokio::test]
async fn r27_from_a_bucket_and_a_key_everything_comes_back() {
    let store = S3Server::shared();
    let settings = store.settings();
    let keys = settings.credentials.clone().unwrap();
    let repository = format!(
        "  url: \"s3://{BUCKET}/{}\"\n  endpoint: \"{}\"\n  path-style: true\n  access-key: \"{}\"\n  secret-key: \
         \"${{STORE_SECRET}}\"\n",
        settings.prefix.trim_matches('/'),
        settings.endpoint.clone().unwrap(),
        keys.access_key,
    );
    let mut server = Server::start(17, Options::default()).await;
    // SAFETY: nextest runs each test in a process of its own, and nothing else here reads the environment meanwhile.
    unsafe { std::env::set_var("STORE_SECRET", keys.secret_key.expose()) };
    let mut lab = Lab::new(&server, &repository);
    server.sql("create table orders (id int primary key, what text)").await;
    lab.serve();
    lab.mainstay(&["backup", "shop-db"]);
    sell(&server, 0, 200).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.stop(Stop::Kill).await;
    lab.kill_daemon();
    for gone in ["state", "mainstay.yml", "backups", "keys"] {
        let path = lab.at(gone);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }

    // Whoever restores need not be allowed to write there.
    // SAFETY: as above.
    unsafe {
        std::env::set_var("AWS_ACCESS_KEY_ID", READER.0);
        std::env::set_var("AWS_SECRET_ACCESS_KEY", READER.1);
        std::env::set_var("AWS_ENDPOINT_URL", settings.endpoint.as_deref().unwrap());
        std::env::set_var("AWS_REGION", "us-east-1");
    }
    let url = format!("s3://{BUCKET}/{}", settings.prefix.trim_matches('/'));
    let (data, port) = (lab.at("restored"), ports::free());
    let from = ["--repository", &url, "--identity", "identity.txt"];
    let place = ["--target", data.to_str().unwrap(), "--port", &port.to_string()].map(str::to_owned);
    let place: Vec<&str> = place.iter().map(String::as_str).collect();
    let plan = lab.mainstay(&[&["restore", "--latest", "--dry-run"], &from[..], &place].concat());
    assert!(plan.contains("log ends") && !data.exists(), "{plan}");
    lab.restored.push(data.clone());
    let report = lab.json(&[&["restore", "--latest"], &from[..], &place].concat());
    assert_eq!(report["good"], true, "{report:#}");
    assert_eq!(lab.orders(port).await, "200");

    // A second time: the folder is somebody's, and stays as it is.
    let again = lab.said(&[&["restore", "--latest"], &from[..], &place].concat());
    assert_eq!(again.code, 2, "{}", again.err);
    // Another key is told before anything is downloaded.
    lab.mainstay(&["key", "new", "other"]);
    let other = ["--repository", &url, "--identity", "other/identity.txt", "--target", "nowhere", "--files-only"];
    let refused = lab.said(&[&["restore", "--latest"], &other[..]].concat());
    assert!(refused.code == 1 || refused.code == 2, "{}", refused.err);
    assert!(!lab.at("nowhere").exists(), "{}", refused.err);
}

/// Two sources are lost at once and one command brings both back, each to its own place; while one of them cannot be, neither
/// is touched.
#[tokio::test]
async fn all_sources_come_back_with_one_command_or_none_is_touched() {
    let (shop, crm) = (Server::start(15, Options::default()).await, Server::start(17, Options::default()).await);
    let mut lab = Lab::new(&shop, "  url: repository\n");
    let of = |server: &Server, place: &Path, port: u16| {
        format!(
            "postgres: \"postgres://postgres@127.0.0.1:{}/?sslmode=disable\"\nrestore: {{ into: server, bin: {}, target: {}, \
             port: {port} }}\n",
            server.port(),
            Server::bin(server.version()).display(),
            place.display()
        )
    };
    let (one, two) = (lab.at("one"), lab.at("two"));
    let ports = [ports::free(), ports::free()];
    std::fs::write(lab.at("backups/shop-db.yml"), of(&shop, &one, ports[0])).unwrap();
    std::fs::write(lab.at("backups/crm.yml"), of(&crm, &one, ports[1])).unwrap();
    for (server, rows) in [(&shop, 7), (&crm, 5)] {
        server.sql("create table orders (id int primary key, what text)").await;
        sell(server, 0, rows).await;
    }
    let all = ["restore", "--all", "--latest", "--identity", "identity.txt"];
    lab.mainstay(&["backup", "shop-db", "--alone"]);
    let said = lab.said(&all);
    assert!(said.code == 2 && said.err.contains("crm") && said.err.contains("nothing was touched"), "{}", said.err);
    lab.mainstay(&["backup", "crm", "--alone"]);
    let said = lab.said(&all);
    assert!(said.code == 2 && said.err.contains("goes into the folder"), "both into one place: {}", said.err);
    assert!(!one.exists());

    std::fs::write(lab.at("backups/crm.yml"), of(&crm, &two, ports[1])).unwrap();
    let said = lab.said(&[&all[..], &["--dry-run"]].concat());
    assert!(said.code == 0 && said.out.matches("log ends").count() == 2 && !two.exists(), "{}{}", said.out, said.err);
    let wrong = lab.said(&[&all[..], &["--target", "elsewhere"]].concat());
    assert!(wrong.code == 2 && wrong.err.contains("--target"), "{}", wrong.err);
    let taken = std::net::TcpListener::bind(("127.0.0.1", ports[1])).unwrap();
    let said = lab.said(&all);
    assert!(
        said.code == 2 && said.err.contains(&format!("port {} of this machine is in use", ports[1])),
        "{}",
        said.err
    );
    assert!(!one.exists() && !two.exists());
    drop(taken);
    lab.restored.extend([one, two]);
    let done = lab.json(&all);
    let sources: Vec<_> = done.as_array().unwrap().iter().map(|one| (&one["source"], &one["good"])).collect();
    assert_eq!(format!("{sources:?}"), r#"[(String("crm"), Bool(true)), (String("shop-db"), Bool(true))]"#);
    assert_eq!((lab.orders(ports[0]).await, lab.orders(ports[1]).await), ("7".into(), "5".into()));
    // Again: one that is back stands in the way, and the command for what is without it can be taken as it is.
    let again = lab.said(&all);
    let without = "\n  mainstay restore shop-db --latest --identity identity.txt";
    assert!(again.code == 2 && again.err.contains("a PostgreSQL server runs in it"), "{}", again.err);
    assert!(again.err.contains(without), "{}", again.err);
    // Nor does a container get the folder that it would be read from: `--force` would move that aside.
    let from = ["restore", "shop-db", "--latest", "--identity", "identity.txt", "--force"];
    let into = ["--into", "container", "--image", "mainstay-test/postgres:15", "--target", "repository"];
    for more in [&[][..], &["--dry-run"]] {
        let said = lab.said(&[&from[..], &into, more].concat());
        assert!(said.code == 2 && said.err.contains("the repository"), "{}{}", said.out, said.err);
    }
    lab.mainstay(&["backups"]);
}

/// Pipelines back up and restore what their source's file allows, and what was restored serves on when the run is over.
#[tokio::test]
async fn pipelines_back_up_and_restore_what_they_may() {
    let server = Server::start(15, Options::default()).await;
    let mut lab = Lab::new(&server, "  url: repository\n");
    let (data, port) = (lab.at("restored"), ports::free());
    let source = std::fs::read_to_string(lab.at("backups/shop-db.yml")).unwrap();
    let source = source.replace("port: 5499", &format!("port: {port}, target: {}", data.display()));
    let allowed = "from: [{ repo: shop, branches: [main], pipelines: [save, back] }]\n";
    std::fs::write(lab.at("backups/shop-db.yml"), source + allowed).unwrap();
    let config = std::fs::read_to_string(lab.at("mainstay.yml")).unwrap();
    let more =
        "  identity: identity.txt\nruntime: process\nrepos: { shop: { url: shop.git, poll: 1h, trusted: true } }\n";
    std::fs::write(lab.at("mainstay.yml"), config + more).unwrap();
    lab.commit(&[
        ("save", "on: { manual: {} }\nsteps: { save: { backup: { source: shop-db } } }\n"),
        (
            "back",
            "on: { manual: { inputs: { when: {} } } }\nsteps: { back: { restore: { source: shop-db, at: '${{ inputs.when }}' } } }\n",
        ),
        ("other", "on: { manual: {} }\nsteps: { save: { backup: { source: shop-db } } }\n"),
        ("nobody", "on: { manual: {} }\nsteps: { save: { backup: { source: shop } } }\n"),
    ]);
    server.sql("create table orders (id int primary key, what text)").await;
    sell(&server, 0, 30).await;
    lab.serve();

    let refused = lab.run("other", &[]);
    assert_eq!(refused["status"], "failure", "{refused:#}");
    let why = refused["steps"][0]["attempts"][0]["end"]["detail"].as_str().unwrap();
    assert!(why.contains("refs/heads/main, pipeline other may not"), "{why}");
    let unknown = lab.run("nobody", &[]);
    let why = unknown["steps"][0]["attempts"][0]["end"]["detail"].as_str().unwrap();
    assert!(why.contains("none of this name; it has shop-db"), "{why}");

    let saved = lab.run("save", &[]);
    assert_eq!(saved["status"], "success", "{saved:#}\n{}", lab.log());
    let backup = saved["steps"][0]["outputs"]["backup"].as_str().unwrap();
    assert!(lab.mainstay(&["backups"]).contains(backup));

    sell(&server, 30, 10).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let when = server.value("select clock_timestamp() at time zone 'UTC'").await.replace(' ', "T") + "Z";
    tokio::time::sleep(Duration::from_millis(20)).await;
    server.sql("drop table orders").await;
    server.sql("create table later (n int)").await;
    lab.until_safe(&server).await;
    let wrong = lab.run("back", &["--input", "when=yesterday"]);
    assert_eq!(wrong["steps"][0]["attempts"][0]["end"]["how"], "refused", "{wrong:#}");
    assert!(!data.exists());

    // The daemon dies in the middle of the restore, or after it: whoever comes next finds how it ended.
    lab.restored.push(data.clone());
    let input = format!("when={when}");
    let id = lab.start("back", &["--input", &input]);
    let until = Instant::now() + Duration::from_secs(30);
    while !data.exists() {
        assert!(Instant::now() < until, "the restore has not begun\n{}", lab.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lab.kill_daemon();
    lab.serve();
    let back = lab.ended(id);
    assert_eq!(back["status"], "success", "{back:#}\n{}", lab.log());
    assert!(back["steps"][0]["outputs"]["report"].as_str().unwrap().contains("restored to"), "{back:#}");
    assert_eq!(lab.orders(port).await, "40");
    let again = lab.run("back", &["--input", &input]);
    assert_eq!(
        again["steps"][0]["attempts"][0]["end"]["how"], "refused",
        "a place that serves was written into: {again:#}"
    );
    // A sentence, then what to try, each once.
    let why = again["steps"][0]["attempts"][0]["end"]["detail"].as_str().unwrap();
    let (first, rest) = why.split_once('\n').unwrap_or((why, ""));
    assert!(first.starts_with("restore") && !first.contains("hint:"), "{why}");
    let hints: Vec<&str> = rest.lines().collect();
    assert!(hints.iter().all(|hint| hint.starts_with("hint: ")) && hints.len() < 4, "{why}");
}

/// Right before a release the data have a point by its name, and go back to it without the daemon that made it.
#[tokio::test]
async fn the_data_go_back_to_where_a_release_ended() {
    let mut server = Server::start(15, Options::default()).await;
    let mut lab = Lab::new(&server, "  url: repository\n");
    let config = std::fs::read_to_string(lab.at("mainstay.yml")).unwrap();
    let more = "runtime: process\nrepos: { shop: { url: shop.git, poll: 1h, trusted: true } }\nenvironments:\n  live:\n    from: [{ repo: shop, branches: [main] }]\n    \
                downtime: allowed\n    watch: 200ms\n    target: { command: { repo: shop, up: ['true'], status: ['echo up=1'], down: ['true'] } }\n";
    std::fs::write(lab.at("mainstay.yml"), config + more).unwrap();
    let pipeline = |image: &str| {
        format!(
            "on: {{ manual: {{}} }}\nsteps: {{ live: {{ deploy: {{ environment: live, images: {{ api: {image} }} }} }} }}\n"
        )
    };
    lab.commit(&[("live", &pipeline("one"))]);
    server.sql("create table orders (id int primary key, what text)").await;
    lab.serve();
    lab.mainstay(&["backup", "shop-db"]);
    sell(&server, 0, 10).await;
    assert_eq!(lab.run("live", &[])["status"], "success", "{}", lab.log());
    sell(&server, 10, 10).await;
    lab.commit(&[("live", &pipeline("two"))]);
    assert_eq!(lab.run("live", &[])["status"], "success", "{}", lab.log());
    // What the second release did to the data.
    server.sql("delete from orders").await;
    let second = lab.json(&["releases", "live"]);
    let point = second[0]["release"]["recovery_point"].as_str().unwrap_or_else(|| panic!("{second:#}"));
    assert!(point.starts_with("mainstay:live/2: shop-db at 0/"), "{point}");
    lab.until_safe(&server).await;
    server.stop(Stop::Kill).await;
    lab.kill_daemon();
    std::fs::remove_dir_all(lab.at("state")).unwrap();

    let (data, port) = (lab.at("restored"), ports::free());
    let (target, at) = (data.display().to_string(), port.to_string());
    lab.restored.push(data);
    let place = ["--target", &target, "--port", &at, "--identity", "identity.txt"];
    lab.mainstay(&[&["restore", "shop-db", "--to-release", "live/1"], &place[..]].concat());
    assert_eq!(lab.orders(port).await, "20");
}

/// The commands of `docs/repository-format.md`, as they stand there, bring the database back without Mainstay.
#[tokio::test]
async fn what_the_format_says_restores_with_public_tools_alone() {
    let mut server = Server::start(15, Options::default()).await;
    let mut lab = Lab::new(&server, "  url: repository\n");
    server.sql("create table orders (id int primary key, what text)").await;
    lab.serve();
    lab.mainstay(&["backup", "shop-db"]);
    sell(&server, 0, 20).await;
    server.sql("select pg_switch_wal()").await;
    sell(&server, 20, 40).await;
    lab.until_safe(&server).await;

    let listed = lab.json(&["backups"]);
    let cluster = &listed[0]["clusters"][0];
    let backup = cluster["backups"][0]["manifest"]["backup"].as_str().unwrap();
    let system = cluster["system"].as_str().unwrap();
    let verified = lab.mainstay(&["verify", "shop-db", "--full", "--identity", "identity.txt"]);
    assert!(verified.contains("nothing is wrong"), "{verified}");
    assert!(lab.mainstay(&["backups"]).contains("✓ opened"));
    let kept = lab.mainstay(&["expire", "shop-db", "--dry-run"]);
    assert!(kept.contains(&format!("{backup} stays: ")), "{kept}");

    // Somebody restores beside the running server; meanwhile the last segment is full, and its pieces are gone.
    let text = std::fs::read_to_string(lab.at("identity.txt")).unwrap();
    let identities = Identities::parse(&text).unwrap();
    let checker = Checker::new(identities.signers().to_vec());
    let (opener, repository) =
        (Opener::new(identities, checker), Arc::new(Folder::open(lab.at("repository")).unwrap()));
    let source = "shop-db".parse().unwrap();
    let holdings = restore::survey(repository.as_ref(), &opener, &source, None).await.unwrap();
    let planned = restore::plan(&holdings, &restore::Wish::new(restore::Target::Latest)).unwrap();
    let mut piece = planned.log.segments.iter().flat_map(|segment| &segment.parts).map(|part| part.key.to_string());
    let piece = piece.rfind(|name| name.contains("/piece/")).expect("the last segment is not whole");
    server.sql("select pg_switch_wal()").await;
    sell(&server, 60, 1).await;
    let until = Instant::now() + Duration::from_secs(30);
    while lab.at("repository").join(&piece).exists() {
        assert!(Instant::now() < until, "{piece} stays\n{}", lab.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let files = restore::Options {
        data: lab.at("aside"),
        into: restore::Into::Folder { owner: None },
        force: false,
        feeding: restore::Feeding::default(),
        checks: Vec::new(),
    };
    restore::restore(repository, opener, &planned, &files, Arc::default()).await.unwrap();
    let aside = Server::on(15, &lab.at("aside"), Options::default()).await;
    aside.until("select pg_is_in_recovery()", "f").await;
    assert_eq!(aside.value("select count(*) from orders").await, "60");
    drop(aside);
    lab.until_safe(&server).await;

    server.stop(Stop::Kill).await;
    lab.kill_daemon();
    // Its settings came with its data: it listens where the lost one did.
    let (hand, port) = (lab.at("hand"), server.port());
    std::fs::create_dir(&hand).unwrap();
    std::fs::copy(lab.at("identity.txt"), hand.join("identity.txt")).unwrap();
    let copied = Command::new("cp").arg("-r").arg(lab.at("repository")).arg(hand.join("R")).status().unwrap();
    assert!(copied.success());
    std::fs::write(hand.join("by-hand.sh"), by_hand(system, backup)).unwrap();
    Server::give(&hand);
    // `pg_ctl` is the one of this version, and what it starts listens where we look.
    let mut shell = Command::new("sh");
    shell.args(["-eu", "by-hand.sh"]).current_dir(&hand);
    shell.env("PATH", format!("{}:/usr/bin:/bin", Server::bin(15).display()));
    as_servers_do(&mut shell);
    lab.restored.push(hand.join("data"));
    let out = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        // Open for reading before all of the log was replayed.
        let orders = lab.orders(port).await;
        if orders == "61" {
            break;
        }
        assert!(Instant::now() < until, "{orders} orders of 61");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Runs `command` as the user that servers run as.
fn as_servers_do(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().expect("the user `postgres`");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("HOME", user.dir);
    }
}

/// The shell lines of the page's last section, with this cluster's names.
fn by_hand(system: &str, backup: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/repository-format.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split_once("\n## By hand\n").expect("the section is there").1;
    let blocks: Vec<&str> = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 3, "base and log, the last segment, the start");
    blocks.concat().replace("7432101234567890123", system).replace("20261123T101500Z-1a2b3c4d", backup)
}
