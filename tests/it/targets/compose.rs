//! Compose projects on the real engine, by the Compose tool that is installed.

use super::lab::{Lab, Version, apply, good, release_of, serves};
use super::{cases, lab};
use crate::support::engine::DockerEngine;
use crate::support::http;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use mainstay::config::daemon::environment::ComposeTarget;
use mainstay::deploy::target::compose::{Compose, ComposeParts};
use mainstay::deploy::target::{Left, RenderInput, Target, TargetError};
use mainstay::model::deploy::Release;
use mainstay::model::{EnvironmentName, InstanceId, Oid};
use mainstay::runtime::docker::{Docker, DockerConfig};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A second project beside the first, and a command between them.
mod switched {
    every_case! { || super::ComposeLab::make(super::Mode::Switched) }
}

/// The old containers are stopped first: cases in which something has to serve at any moment are not for it, and what
/// has nothing to do with the old ones is seen above.
mod stopped_first {
    on! { || super::ComposeLab::make(super::Mode::StoppedFirst), cases:
        a_new_release_takes_the_place_of_the_old_and_the_way_back_too,
        a_release_that_crashes_or_is_never_well_leaves_the_old_one_serving,
        another_release_can_be_applied_over_one_that_was_cut_off,
    }
}

const FILE: &str = "
services:
  app:
    image: nobody/knows:this
    environment: { LEVEL: '${LEVEL}' }
    volumes: ['data:/data', './conf:/conf:ro']
    deploy: { replicas: 2 }
volumes: { data: {} }
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Switched,
    StoppedFirst,
}

struct ComposeLab {
    mode: Mode,
    environment: EnvironmentName,
    /// Of the first daemon; each later one has another.
    instance: u32,
    /// How many daemons lost their state.
    lost: AtomicUsize,
    engine: DockerEngine,
    folder: tempfile::TempDir,
    commit: Oid,
}

fn run(dir: &Path, program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").output();
    let output =
        output.unwrap_or_else(|e| panic!("`{program}` is needed by this test: {e}: tests/setup/prepare.sh test"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl ComposeLab {
    fn make(mode: Mode) -> Box<dyn Lab> {
        Box::new(ComposeLab::new(mode))
    }

    fn new(mode: Mode) -> ComposeLab {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("work");
        std::fs::create_dir_all(work.join("deploy/conf")).unwrap();
        std::fs::write(work.join("deploy/compose.yml"), FILE).unwrap();
        std::fs::write(work.join("deploy/conf/setting"), "from the commit\n").unwrap();
        run(&work, "git", &["init", "-q", "-b", "main", "."]);
        run(&work, "git", &["add", "-A"]);
        run(&work, "git", &["-c", "user.name=Ana", "-c", "user.email=ana@example.com", "commit", "-q", "-m", "one"]);
        let commit = run(&work, "git", &["rev-parse", "HEAD"]).parse().unwrap();
        run(folder.path(), "git", &["clone", "-q", "--bare", "work", "shop.git"]);
        let random = getrandom::u32().unwrap();
        ComposeLab {
            mode,
            environment: format!("T{random:08x}").parse().unwrap(),
            instance: random,
            lost: AtomicUsize::new(0),
            engine: DockerEngine::usual(),
            folder,
            commit,
        }
    }

    fn base(&self) -> String {
        self.environment.as_str().to_lowercase()
    }

    fn instance(&self) -> InstanceId {
        let lost = u32::try_from(self.lost.load(Ordering::SeqCst)).unwrap();
        InstanceId(format!("{:08x}", self.instance.wrapping_add(lost)))
    }

    /// Where the switch command says who serves.
    fn switched_to(&self) -> PathBuf {
        self.folder.path().join("switched-to")
    }

    fn compose(&self) -> Compose {
        let mut config = DockerConfig::new(self.instance()).unwrap();
        config.host = Some(self.engine.host());
        let file = self.switched_to().display().to_string();
        // Fails while somebody wants it to, as a proxy's control program would.
        let line = format!(
            "test ! -e {file}-fails-for-$MAINSTAY_NEW; echo $MAINSTAY_NEW > {file}.new; mv {file}.new {file}; echo $MAINSTAY_OLD '>' $MAINSTAY_NEW >> {file}.log"
        );
        Compose::new(ComposeParts {
            environment: self.environment.clone(),
            instance: self.instance(),
            config: ComposeTarget {
                file: "deploy/compose.yml".to_owned(),
                repo: "shop".parse().unwrap(),
                project: self.environment.to_string(),
                host: Some(self.engine.host()),
                switch: (self.mode == Mode::Switched).then_some(line),
            },
            downtime_allowed: self.mode == Mode::StoppedFirst,
            mirror: self.folder.path().join("shop.git"),
            dir: self.folder.path().join(match self.lost.load(Ordering::SeqCst) {
                0 => "state".to_owned(),
                lost => format!("state-{lost}"),
            }),
            shim: PathBuf::from(env!("CARGO_BIN_EXE_mainstay")),
            docker: Docker::connect(config).unwrap(),
            secrets: BTreeMap::new(),
        })
    }

    fn containers(&self) -> Vec<Value> {
        let label = format!("mainstay.environment={}/{}", self.instance(), self.environment);
        let filters = format!("%7B%22label%22%3A%5B%22{}%22%5D%7D", label.replace('/', "%2F").replace('=', "%3D"));
        let all = http::get(&self.engine.socket, &format!("/containers/json?all=1&filters={filters}")).unwrap();
        all.as_array().cloned().unwrap_or_default()
    }

    /// What the containers answer to which traffic is led.
    fn answers(&self) -> Vec<String> {
        let project = std::fs::read_to_string(self.switched_to()).unwrap_or_default();
        let mut answers = Vec::new();
        for container in self.containers() {
            let of = container["Labels"]["com.docker.compose.project"].as_str().unwrap_or_default();
            if self.mode == Mode::Switched && of != project.trim() {
                continue;
            }
            let networks = container["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
            let address = networks.values().find_map(|network| network["IPAddress"].as_str().filter(|a| !a.is_empty()));
            answers.extend(address.and_then(|address| get(address).ok()));
        }
        answers.sort();
        answers
    }
}

fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&format!("{address}:8080").parse().unwrap(), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("half an answer"))?;
    match head.contains(" 200 ") {
        true => Ok(body.trim().to_owned()),
        false => Err(std::io::Error::other(head.to_owned())),
    }
}

#[async_trait]
impl Lab for ComposeLab {
    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.compose())
    }

    fn release(&self, number: u64, version: Version) -> Release {
        let tag = format!("mainstay-test/app:{}", version.word());
        let found = http::get(&self.engine.socket, &format!("/images/{tag}/json"));
        let found = found.unwrap_or_else(|e| panic!("the image {tag} is needed: {e}: tests/setup/prepare.sh test"));
        let images = BTreeMap::from([("app".to_owned(), found["Id"].as_str().unwrap().to_owned())]);
        let input = RenderInput {
            environment: self.environment.clone(),
            file: Some(FILE.to_owned()),
            commit: self.commit.clone(),
            images: images.clone(),
            variables: BTreeMap::from([("LEVEL".to_owned(), "info".to_owned())]),
            secret_names: Vec::new(),
        };
        let rendered = self.compose().render(&input).unwrap_or_else(|error| panic!("failed to {error}"));
        release_of("compose", &self.environment, number, images, rendered)
    }

    async fn serving(&self) -> Vec<String> {
        self.answers()
    }

    fn instances(&self) -> usize {
        2
    }

    async fn started(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.containers().iter().map(|one| one["Id"].to_string()).collect();
        ids.sort();
        ids
    }

    async fn change_by_hand(&self) -> String {
        let one = self.containers()[0]["Id"].as_str().unwrap().to_owned();
        run(Path::new("/"), "docker", &["rm", "-f", &one]);
        "app.replicas".to_owned()
    }

    async fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self.containers().iter().map(|one| one["Names"][0].to_string()).collect();
        let networks = http::get(&self.engine.socket, "/networks").unwrap();
        let names = networks.as_array().unwrap().iter().filter_map(|network| network["Name"].as_str());
        left.extend(names.filter(|name| name.starts_with(&format!("{}-r", self.base()))).map(str::to_owned));
        left
    }

    async fn clean(&self) {
        if let Err(error) = self.compose().remove().await {
            println!("failed to {error}");
        }
        let _ = Command::new("docker").args(["volume", "rm", "-f", &format!("{}_data", self.base())]).output();
    }
}

fn with(mode: Mode, case: impl FnOnce(&ComposeLab) -> BoxFuture<'_, ()>) {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    tokio.block_on(async {
        let lab = ComposeLab::new(mode);
        let ended = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(case(&lab))).await;
        lab.clean().await;
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn while_it_is_switched_somebody_always_serves() {
    with(Mode::Switched, |lab| {
        Box::pin(async move {
            good(lab, &lab.release(1, Version::One)).await;
            let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
            let silent = std::thread::scope(|scope| {
                let asking = scope.spawn(|| {
                    let mut silent = Vec::new();
                    let began = Instant::now();
                    while !over.load(Ordering::SeqCst) {
                        asked.fetch_add(1, Ordering::SeqCst);
                        // Whoever is led to a project a moment before it goes asks once more, as a proxy does.
                        if lab.answers().is_empty() && lab.answers().is_empty() {
                            silent.push(began.elapsed());
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    silent
                });
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(async {
                        good(lab, &lab.release(2, Version::Two)).await;
                        assert!(apply(lab, &lab.release(3, Version::Crashes)).await.is_err());
                        good(lab, &lab.release(1, Version::One)).await;
                    });
                });
                over.store(true, Ordering::SeqCst);
                asking.join().unwrap()
            });
            println!("asked {} times", asked.load(Ordering::SeqCst));
            assert!(silent.is_empty(), "nobody answered after {silent:?}");
            serves(lab, Version::One).await;
            let log = std::fs::read_to_string(lab.switched_to().with_extension("log")).unwrap();
            let base = lab.base();
            assert_eq!(log, format!("> {base}-r1\n{base}-r1 > {base}-r2\n{base}-r2 > {base}-r1\n"));
        })
    });
}

#[test]
fn a_switch_that_fails_leads_back_and_leaves_the_old_one() {
    with(Mode::Switched, |lab| {
        Box::pin(async move {
            good(lab, &lab.release(1, Version::One)).await;
            let never = format!("{}-fails-for-{}-r2", lab.switched_to().display(), lab.base());
            std::fs::write(&never, "").unwrap();
            match apply(lab, &lab.release(2, Version::Two)).await {
                Err(TargetError::Bad { why, left: Left::Before }) => {
                    assert!(why.contains("the switch command failed (exit code 1)"), "{why}");
                }
                other => panic!("it ended as {other:?}"),
            }
            serves(lab, Version::One).await;
            let others = lab.containers().iter().filter(|one| one["Labels"]["mainstay.release"] != "1").count();
            assert_eq!(others, 0, "containers of the new version are left");
            std::fs::remove_file(never).unwrap();
            good(lab, &lab.release(3, Version::Two)).await;
            serves(lab, Version::Two).await;
        })
    });
}

#[test]
fn a_try_that_was_cut_off_while_nothing_served_is_taken_up() {
    with(Mode::StoppedFirst, |lab| {
        Box::pin(async move {
            good(lab, &lab.release(1, Version::One)).await;
            for (number, moment) in [(2, 1_500), (3, 4_000)] {
                let version = if number % 2 == 0 { Version::Two } else { Version::Three };
                let release = lab.release(number, version);
                let cut = tokio::time::timeout(Duration::from_millis(moment), apply(lab, &release)).await;
                println!("cut off after {moment} ms: {}, serving {:?}", cut.is_err(), lab.answers());
                good(lab, &release).await;
                serves(lab, version).await;
            }
        })
    });
}

#[test]
fn volumes_are_shared_by_versions_and_files_are_of_the_commit() {
    with(Mode::StoppedFirst, |lab| {
        Box::pin(async move {
            for (number, version) in [(1, Version::One), (2, Version::Two)] {
                good(lab, &lab.release(number, version)).await;
                let seen = lab.target().observe().await.unwrap();
                assert_eq!(seen.items["app.mount./data"], format!("{}_data", lab.base()));
                assert_eq!(seen.items["app.env.LEVEL"], "info");
                assert_eq!(seen.items["app.replicas"], "2");
                let conf = PathBuf::from(&seen.items["app.mount./conf"]).join("setting");
                assert_eq!(std::fs::read_to_string(conf).unwrap(), "from the commit\n");
            }
            let trees = std::fs::read_dir(lab.folder.path().join("state/trees")).unwrap().count();
            assert_eq!(trees, 1, "files of versions that are gone are left");
        })
    });
}

/// Another daemon, which was told by the history what serves, goes on where the first one stopped.
fn what_another_daemon_brought_is_taken_over(mode: Mode) {
    with(mode, |lab| {
        Box::pin(async move {
            let first = lab.release(1, Version::One);
            good(lab, &first).await;
            let before = lab.target().observe().await.unwrap();
            lab.lost.fetch_add(1, Ordering::SeqCst);
            assert!(lab.target().observe().await.unwrap().items.is_empty(), "nobody told it yet");
            for _ in 0..2 {
                lab.target().taken_over(&first).await.unwrap();
                assert_eq!(lab.target().observe().await.unwrap().drift_from(&before), []);
            }
            good(lab, &lab.release(2, Version::Two)).await;
            serves(lab, Version::Two).await;
            let project = format!("{}-r1", lab.base());
            let filters = format!("%7B%22label%22%3A%5B%22com.docker.compose.project%3D{project}%22%5D%7D");
            let path = format!("/containers/json?all=1&filters={filters}");
            assert_eq!(http::get(&lab.engine.socket, &path).unwrap(), serde_json::json!([]), "the old project is left");
            let networks = lab.left().await.into_iter().filter(|name| name.starts_with(&project)).count();
            assert_eq!(networks, 0, "a network of the old project is left");
            if mode == Mode::Switched {
                let log = std::fs::read_to_string(lab.switched_to().with_extension("log")).unwrap();
                let base = lab.base();
                assert_eq!(log, format!("> {base}-r1\n{base}-r1 > {base}-r2\n"));
            }
        })
    });
}

#[test]
fn a_daemon_without_notes_switches_away_from_what_another_brought() {
    what_another_daemon_brought_is_taken_over(Mode::Switched);
}

#[test]
fn a_daemon_without_notes_stops_what_another_brought() {
    what_another_daemon_brought_is_taken_over(Mode::StoppedFirst);
}
