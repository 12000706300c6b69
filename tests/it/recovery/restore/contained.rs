//! Into a container engine: a server in a container does what one of local programs does, by one suite; what is in the way
//! is told before anything is written; a killed restore never opens and goes on.

use super::world::World;
use crate::support::faulty::Deadly;
use crate::support::ports;
use crate::support::postgres::Options as ServerOptions;
use jiff::Timestamp;
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::restore::container::{Keep, LABEL, Published, Wanted};
use mainstay::backup::restore::{
    self, Check, Container, Feeding, Into, Options, Plan, Program, Progress, Report, RestoreError, Target, Wish,
};
use mainstay::backup::seal::{Checker, Identities, Opener};
use mainstay::backup::source::postgres::{Address, Connection, Purpose};
use mainstay::model::{InstanceId, SourceName};
use mainstay::runtime::docker::{Docker, DockerConfig};
use nix::sys::signal::Signal;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Made by `tests/setup/prepare.sh test`.
const IMAGE: &str = "mainstay-test/postgres:15";
/// Where that has its data.
const DATA: &str = "/var/lib/postgresql/data";

fn docker_at(host: Option<&str>) -> Docker {
    let config = DockerConfig::new(InstanceId("restore".into())).unwrap();
    Docker::connect(DockerConfig { host: host.map(str::to_owned), ..config }).unwrap()
}

/// The `docker` program.
fn docker(words: &[&str]) -> (bool, String) {
    let output = Command::new("docker").args(words).stdin(Stdio::null()).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
}

fn docker_must(words: &[&str]) -> String {
    let (good, said) = docker(words);
    assert!(good, "docker {words:?}: {said}");
    said
}

/// What a test makes in the engine; gone with it.
struct Things {
    prefix: String,
}

impl Things {
    fn new(test: &str) -> Things {
        Things { prefix: format!("mainstay-into-{test}-{}", std::process::id()) }
    }
}

impl Drop for Things {
    fn drop(&mut self) {
        let filter = format!("name={}", self.prefix);
        for (list, remove) in [(["ps", "-aq"], ["rm", "-fv"]), (["volume", "ls"], ["volume", "rm"])] {
            let mut words = list.to_vec();
            words.extend(["--filter", &filter]);
            if list[0] == "volume" {
                words.push("-q");
            }
            let (_, found) = docker(&words);
            for one in found.lines() {
                let mut words = remove.to_vec();
                words.push(one);
                docker(&words);
            }
        }
    }
}

fn wanted(name: &str, keep: Keep, server: bool) -> Wanted {
    Wanted {
        source: SourceName::new("shop-db").unwrap(),
        image: IMAGE.into(),
        user: None,
        keep,
        server: server.then(|| Published {
            name: name.to_owned(),
            listen: [127, 0, 0, 1].into(),
            port: ports::free(),
            network: None,
            role: "postgres".into(),
        }),
    }
}

async fn look(wanted: Wanted) -> Result<Container, RestoreError> {
    Container::look(docker_at(None), wanted, &|_| {}).await
}

/// As the command does it.
async fn placed(mut container: Container, plan: &Plan, force: bool) -> Result<Options, RestoreError> {
    let data = container.place(plan, force).await?;
    let feeding = Feeding { patience: Duration::from_secs(2), ..Feeding::default() };
    let check = |sql: &str| Check { sql: sql.into(), database: "postgres".into() };
    let checks = vec![check("SELECT count(*) > 0 FROM t"), check("SELECT 1, 2")];
    Ok(Options { data, into: Into::Container(Box::new(container)), force, feeding, checks })
}

async fn restore_with(world: &World, plan: &Plan, options: &Options) -> Result<Report, RestoreError> {
    restore::restore(world.repository.clone(), world.opener(), plan, options, Arc::new(Progress::default())).await
}

/// What an open server in a container answers.
fn ask(name: &str, sql: &str) -> String {
    docker_must(&["exec", "-u", "postgres", name, "psql", "-XAtc", sql])
}

fn open_to_all() -> ServerOptions {
    // Who comes by the published port comes from the engine's network.
    ServerOptions { hba: vec!["host all all 0.0.0.0/0 trust".into()], ..ServerOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn r24_a_container_is_restored_into_as_a_local_server_is() {
    let things = Things::new("suite");
    let world = World::new(15, open_to_all()).await;
    world.server.sql("CREATE TABLE t (i int PRIMARY KEY)").await;
    world.rows_to(10).await;
    world.backup().await;
    world.rows_to(20).await;
    world.server.sql("SELECT pg_switch_wal()").await;
    world.rows_to(30).await;
    world.ship().await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let idle: Timestamp = world.server.value("SELECT clock_timestamp()").await.parse().unwrap();
    world.ship().await;
    let latest = world.plan(Target::Latest).await;

    // By local programs, into a volume, into a folder of this machine: the report says the same.
    let local = world.back_to(Target::Latest).await;
    let said = |report: &Report| (report.reached, report.timeline, report.new_timeline, report.last_transaction);
    let name = format!("{}-v", things.prefix);
    let by_folder = format!("{}-f", things.prefix);
    let folder = world.folder.path().join("kept");
    for (name, keep) in [(&name, Keep::Volume(name.clone())), (&by_folder, Keep::Folder(folder))] {
        let container = look(wanted(name, keep, true)).await.unwrap();
        assert_eq!(container.program(), Program { major: 15, block_size: Some(8_192) });
        let options = placed(container, &latest, false).await.unwrap();
        let report = restore_with(&world, &latest, &options).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(said(&report), said(&local.report));
        assert_eq!(ask(name, "SELECT count(*), max(i), pg_is_in_recovery() FROM t"), "30|30|f");
        assert_eq!(ask(name, "SHOW archive_mode"), "off");
        for setting in ["restore_command", "log_min_messages"] {
            let now = ask(name, &format!("SHOW {setting}"));
            assert!(now.is_empty() || now == "warning", "{setting} = {now}");
        }
        assert!(!options.data.join(".mainstay-restore").exists() && !options.data.join("mainstay-restore").exists());
        let checked: Vec<_> = report.checks.iter().map(|check| (check.passed, check.answer.as_str())).collect();
        assert_eq!(checked, [(true, "t"), (false, "it gave 1 rows of 2 columns, not one of one")]);
        // It is left running, to be started again with the machine, known by its label, reached by its port.
        let format =
            "{{.HostConfig.RestartPolicy.Name}} {{.State.Running}} {{index .Config.Labels \"mainstay.restore\"}}";
        assert_eq!(docker_must(&["inspect", "-f", format, name]), "unless-stopped true shop-db");
        let published = report.container.unwrap().published.unwrap();
        let address = Address::parse(&format!("postgres://postgres@{published}/")).unwrap();
        let mut connection = Connection::open(&address, None, Purpose::Sql).await.unwrap();
        let rows = connection.query("SELECT sum(i) FROM t").await.unwrap();
        assert_eq!(rows.rows[0][0].as_deref(), Some("465".as_bytes()));
    }
    drop(local);

    // The log is over before the time: it is started a second time, to its last record. In the same place, by force, after
    // the first container is stopped and has another volume.
    let plan = world.plan(Target::Time(idle)).await;
    docker_must(&["stop", &name]);
    let volume = Keep::Volume(format!("{}-again", things.prefix));
    let why =
        placed(look(wanted(&name, volume.clone(), true)).await.unwrap(), &plan, false).await.unwrap_err().to_string();
    assert!(why.contains("there is one of this name") && why.contains("--force"), "{why}");
    let options = placed(look(wanted(&name, volume, true)).await.unwrap(), &plan, true).await.unwrap();
    let report = restore_with(&world, &plan, &options).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(report.notes.iter().any(|note| note.contains("nothing was written between")), "{:?}", report.notes);
    assert_eq!(ask(&name, "SELECT count(*) FROM t"), "30");
    let aside =
        docker_must(&["ps", "-a", "--format", "{{.Names}}", "--filter", &format!("name={name}.before-restore-")]);
    assert!(!aside.is_empty(), "the stopped container has another name");

    // A state that is nowhere: all of the log is read, and nothing opens.
    let plan = world.plan(Target::Point("no such point".into())).await;
    let (name, volume) = (format!("{}-p", things.prefix), Keep::Volume(format!("{}-p", things.prefix)));
    let options = placed(look(wanted(&name, volume, true)).await.unwrap(), &plan, false).await.unwrap();
    let error = restore_with(&world, &plan, &options).await.unwrap_err().to_string();
    assert!(error.contains("did not open"), "{error}");
    let format = "{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(docker_must(&["inspect", "-f", format, &name]), "false no");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_holds_the_state_before_a_table_was_dropped() {
    let things = Things::new("volume");
    let world = World::new(15, open_to_all()).await;
    world.server.sql("CREATE TABLE t (i int PRIMARY KEY)").await;
    world.backup().await;
    world.rows_to(25).await;
    let before: Timestamp = world.server.value("SELECT clock_timestamp()").await.parse().unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    world.server.sql("DROP TABLE t").await;
    world.ship().await;
    let plan = world.plan(Target::Time(before)).await;

    // A volume that an application has, with a stopped container: its content is moved into another volume.
    let volume = format!("{}-data", things.prefix);
    let app = format!("{}-app", things.prefix);
    let mount = format!("{volume}:{DATA}");
    let write = format!("echo old >{DATA}/kept; exec sleep 600");
    docker_must(&["run", "-d", "--name", &app, "-v", &mount, "busybox:latest", "sh", "-c", &write]);
    let until = Instant::now() + Duration::from_secs(30);
    while docker(&["exec", &app, "cat", &format!("{DATA}/kept")]) != (true, "old".into()) {
        assert!(Instant::now() < until, "the application does not write");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let into = || look(wanted("", Keep::Volume(volume.clone()), false));
    let why = placed(into().await.unwrap(), &plan, true).await.unwrap_err().to_string();
    assert!(why.contains(&format!("the container {app} runs on it")), "{why}");
    docker_must(&["stop", "-t", "0", &app]);
    let why = placed(into().await.unwrap(), &plan, false).await.unwrap_err().to_string();
    assert!(why.contains("it is not empty: it holds ") && why.contains("kept"), "{why}");
    let options = placed(into().await.unwrap(), &plan, true).await.unwrap();
    let report = restore_with(&world, &plan, &options).await.unwrap_or_else(|error| panic!("{error}"));
    let aside = report.container.as_ref().and_then(|made| made.moved_aside.clone()).unwrap();
    assert!(aside.starts_with(&format!("{volume}.before-restore-")), "{aside}");
    let kept = docker_must(&["run", "--rm", "-v", &format!("{aside}:/aside"), IMAGE, "cat", "/aside/kept"]);
    assert_eq!(kept, "old");
    assert!(report.next.starts_with(&format!("docker run -d -v {mount} {IMAGE}")), "{}", report.next);

    // Whoever starts the image on it has the state: neither this program nor the repository is needed.
    fs::rename(world.folder.path().join("repository"), world.folder.path().join("gone")).unwrap();
    let server = format!("{}-server", things.prefix);
    // The source's configuration came along, and names places of its machine.
    let sockets = "unix_socket_directories=/var/run/postgresql";
    docker_must(&["run", "-d", "--name", &server, "-v", &mount, IMAGE, "postgres", "-c", sockets, "-c", "port=5432"]);
    let until = Instant::now() + Duration::from_secs(30);
    while !docker(&["exec", &server, "pg_isready", "-q"]).0 {
        assert!(Instant::now() < until, "{}", docker(&["logs", &server]).1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ask(&server, "SELECT count(*), pg_is_in_recovery() FROM t"), "25|f");
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_what_is_in_the_way_of_a_container_is_told_before_anything_is_written() {
    let things = Things::new("way");
    let world = World::new(15, ServerOptions::default()).await;
    world.server.sql("CREATE TABLE t (i int PRIMARY KEY)").await;
    world.backup().await;
    world.ship().await;
    let plan = world.plan(Target::Latest).await;
    let name = format!("{}-db", things.prefix);
    let volume = || Keep::Volume(name.clone());
    let usual = || wanted(&name, volume(), true);
    let why = async |wanted: Wanted| match look(wanted).await {
        Ok(container) => container.check(&plan, false).await.unwrap_err(),
        Err(error) => error,
    };

    // The image.
    let image = |image: &str| Wanted { image: image.into(), ..usual() };
    let error = why(image("mainstay-test/no-such-image:1")).await;
    assert!(matches!(&error, RestoreError::Engine(mainstay::runtime::RuntimeError::Image { .. })), "{error}");
    let error = why(image("busybox:latest")).await.to_string();
    assert!(error.contains("there is no `postgres` in its PATH"), "{error}");
    let (tar, empty) = (world.folder.path().join("nothing.tar"), format!("{}-empty", things.prefix));
    fs::write(&tar, [0; 10_240]).unwrap();
    docker_must(&["import", tar.to_str().unwrap(), &empty]);
    let error = why(image(&empty)).await.to_string();
    docker_must(&["rmi", &empty]);
    assert!(error.contains("it cannot be asked what it holds"), "{error}");
    for user in ["nobody-here", "root", "a b"] {
        let error = why(Wanted { user: Some(user.into()), ..usual() }).await.to_string();
        assert!(error.contains("user") || error.contains("root"), "{user}: {error}");
    }
    // Its version is known before there is a plan.
    let newer = World::new(17, ServerOptions::default()).await;
    newer.backup().await;
    let program = look(usual()).await.unwrap().program();
    let error = newer.try_plan(Wish { program: Some(program), ..Wish::new(Target::Latest) }).await.unwrap_err();
    assert!(matches!(error, restore::PlanError::Version { .. }), "{error}");

    // The engine.
    let nobody = Container::look(docker_at(Some("unix:///nonexistent/docker.sock")), usual(), &|_| {}).await;
    let error = nobody.err().unwrap();
    assert!(matches!(&error, RestoreError::Engine(mainstay::runtime::RuntimeError::Unreachable { .. })), "{error}");

    // The port, of a program and of a container.
    let with_port = |port: u16| {
        let mut wanted = usual();
        wanted.server.as_mut().unwrap().port = port;
        wanted
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = why(with_port(listener.local_addr().unwrap().port())).await.to_string();
    assert!(error.contains("another program listens there") && error.contains("--port"), "{error}");
    let (other, port) = (format!("{}-other", things.prefix), ports::free());
    let own = format!("{other}-data");
    docker_must(&[
        "run",
        "-d",
        "--name",
        &other,
        "-p",
        &format!("127.0.0.1:{port}:5432"),
        "-v",
        &format!("{own}:/x"),
        "busybox:latest",
        "sleep",
        "600",
    ]);
    let error = why(with_port(port)).await.to_string();
    assert!(error.contains(&format!("it leads to the container {other}")), "{error}");
    // Its name, also of a container that the restore of another source has left; and its volume.
    let error = why(wanted(&other, volume(), true)).await.to_string();
    assert!(error.contains("it runs"), "{error}");
    let error = why(wanted(&name, Keep::Volume(own.clone()), true)).await.to_string();
    assert!(error.contains(&format!("the container {other} runs on it")), "{error}");
    docker_must(&["stop", "-t", "0", &other]);
    let error = why(wanted(&name, Keep::Volume(own), true)).await.to_string();
    assert!(error.contains("could be started beside"), "{error}");
    docker_must(&["create", "--name", &name, "--label", &format!("{LABEL}=another"), "busybox:latest", "true"]);
    let error = why(usual()).await.to_string();
    assert!(error.contains("there is one of this name"), "{error}");
    docker_must(&["rm", &name]);

    // A volume that is not a folder of the engine, a network that is not there, a folder that holds something.
    let odd = format!("{}-odd", things.prefix);
    docker_must(&["volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", &odd]);
    let error = why(wanted(&name, Keep::Volume(odd), true)).await.to_string();
    assert!(error.contains("a driver or options of its own") && error.contains("--target"), "{error}");
    let mut on_the_host = usual();
    on_the_host.server.as_mut().unwrap().network = Some("host".into());
    let error = why(on_the_host).await.to_string();
    assert!(error.contains("no port can be published"), "{error}");
    let mut nowhere = usual();
    nowhere.server.as_mut().unwrap().network = Some("mainstay-no-such-network".into());
    let error = why(nowhere).await.to_string();
    assert!(error.contains("there is no network"), "{error}");
    let error = why(wanted(&name, Keep::Folder(world.folder.path().to_owned()), true)).await.to_string();
    assert!(error.contains("it is not empty"), "{error}");
    let mut spaced = plan.clone();
    spaced.tablespaces.insert(1, "/srv/fast".into());
    let error = look(usual()).await.unwrap().check(&spaced, true).await.unwrap_err().to_string();
    assert!(error.contains("/srv/fast"), "{error}");

    // After all this, nothing was made.
    look(usual()).await.unwrap().check(&plan, false).await.unwrap();
    assert!(!docker(&["volume", "inspect", &name]).0 && !docker(&["inspect", &name]).0);
}

const CHILD: &str = "MAINSTAY_TEST_CONTAINER_CHILD";

/// Everything a restore into a container needs, from a folder.
async fn again(folder: &Path, name: &str, at: usize) -> Report {
    let identities = Identities::parse(&fs::read_to_string(folder.join("identity")).unwrap()).unwrap();
    let checker = Checker::new(identities.signers().to_vec());
    let opener = Opener::new(identities, checker);
    let inner = Folder::open(folder.join("repository")).unwrap();
    let holdings = restore::survey(&inner, &opener, &SourceName::new("shop-db").unwrap(), None).await.unwrap();
    let plan = restore::plan(&holdings, &Wish::new(Target::Latest)).unwrap();
    let mut wanted = wanted(name, Keep::Volume(name.to_owned()), true);
    let port = fs::read_to_string(folder.join("port")).unwrap().parse().unwrap();
    wanted.server.as_mut().unwrap().port = port;
    let mut options = placed(look(wanted).await.unwrap(), &plan, false).await.unwrap();
    options.feeding = Feeding { patience: Duration::from_millis(500), at_once: 1, ..options.feeding };
    options.checks.clear();
    let deadly = Deadly::before(Arc::new(inner), at);
    restore::restore(deadly, opener, &plan, &options, Arc::new(Progress::default())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_killed_restore_into_a_container_never_opens_and_goes_on() {
    if let Ok(child) = std::env::var(CHILD) {
        let parts: Vec<&str> = child.split('\n').collect();
        again(Path::new(parts[0]), parts[1], parts[2].parse().unwrap()).await;
        return;
    }
    let things = Things::new("killed");
    let world = World::new(15, ServerOptions { segment_mib: Some(1), ..ServerOptions::default() }).await;
    world.server.sql("CREATE TABLE t (i int)").await;
    world.backup().await;
    for rows in 1..=12 {
        world.rows_to(rows).await;
        world.server.sql("SELECT pg_switch_wal()").await;
    }
    world.ship().await;
    let folder = world.folder.path();
    fs::write(folder.join("identity"), world.keys.identity_file(Timestamp::now())).unwrap();
    fs::write(folder.join("port"), ports::free().to_string()).unwrap();
    let name = &things.prefix;

    // One place is restored into again and again, killed ever later: at first in its base, then while its server recovers.
    let (mut killed, mut recovering) = (0, 0);
    for at in [2, 9, 6, 10, 14, 18, 24, 28, 32, 34, 1000] {
        let died = child(folder, name, at);
        let state = docker(&["inspect", "-f", "{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}", name]);
        if !died {
            assert_eq!(state, (true, "true unless-stopped".into()));
            break;
        }
        killed += 1;
        if !state.0 {
            continue;
        }
        // Its server gives up by itself, since nobody brings the log; started by hand it does so again.
        recovering += 1;
        closes(name);
        if recovering == 1 {
            docker_must(&["start", name]);
            closes(name);
        }
    }
    assert!(killed >= 3 && recovering >= 2, "killed {killed} times, {recovering} with a server");
    assert_eq!(ask(name, "SELECT count(*), pg_is_in_recovery() FROM t"), "12|f");
    assert_eq!(
        docker_must(&["volume", "ls", "-q", "--filter", &format!("name={name}")]),
        *name,
        "one volume, used again"
    );

    // It died when its server was open, before the last step: the same server is found, and goes on in a new container.
    let place = PathBuf::from(docker_must(&["volume", "inspect", "-f", "{{.Mountpoint}}", name]));
    let plan = world.plan(Target::Latest).await;
    let state = format!("{}\nan earlier boot\nthe newest state\nbase complete\n", plan.digest());
    fs::write(place.join(".mainstay-restore"), state).unwrap();
    let report = again(folder, name, usize::MAX).await;
    assert_eq!((report.new_timeline.unwrap().0, ask(name, "SELECT count(*) FROM t")), (2, "12".into()));
}

/// Waits until its server has ended, and makes sure that it never opens.
fn closes(name: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while docker_must(&["inspect", "-f", "{{.State.Running}}", name]) == "true" {
        assert!(!docker(&["exec", name, "pg_isready", "-q"]).0, "it opened");
        assert!(Instant::now() < until, "it neither opens nor ends");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs this test in a process of its own that restores and is killed at that call. Whether it was.
fn child(folder: &Path, name: &str, at: usize) -> bool {
    let test = "recovery::restore::contained::r21_a_killed_restore_into_a_container_never_opens_and_goes_on";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, format!("{}\n{name}\n{at}", folder.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    use std::os::unix::process::ExitStatusExt as _;
    if output.status.signal() == Some(Signal::SIGKILL as i32) {
        return true;
    }
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "killed at {at}: {}", String::from_utf8_lossy(&said));
    false
}
