//! A service of two replicas behind a proxy on a swarm of one node, asked fifty times a second: what a good deploy, a
//! version that turns bad and a rollback by hand cost whoever asks, and how long they take.

use crate::Effort;
use crate::client::{Answer, Client};
use crate::lab::{Daemon, docker, git, now, seconds};
use crate::numbers::{Budget, Report, Samples, print};
use crate::ports;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The health rule: how often it is asked, and so many bad answers in a row are too many.
const EVERY: Duration = Duration::from_millis(500);
const FAILURES: u32 = 3;
/// A version that turns bad does so this long after its start: well after the last replica of the old one is gone, which
/// takes 8 s. One that is bad before it was ever good is another story: its rules are waited for as long as `within` says.
const TURNS_BAD_AFTER_SECS: u32 = 14;
/// A deploy is watched for so long: past the moment at which a version turns bad.
const WATCH_SECS: u32 = 25;
/// The longest that a deploy may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// A daemon with one environment; its stack goes with it.
struct Shop {
    daemon: Daemon,
    folder: tempfile::TempDir,
    stack: String,
    port: u16,
    versions: usize,
}

fn stack_file(word: &str, bad_after: Option<u32>, port: &str) -> String {
    let environment =
        bad_after.map_or_else(String::new, |after| format!("\n    environment: {{ TURNS_BAD_AFTER_SECS: '{after}' }}"));
    format!(
        "version: '3.9'
services:
  app:
    image: mainstay-test/app:{word}{environment}
    networks: [net]
    healthcheck: {{ test: [CMD, /app, health], interval: 1s }}
    stop_grace_period: 5s
    deploy:
      replicas: 2
      endpoint_mode: dnsrr
      update_config: {{ order: start-first, monitor: 1s }}
  proxy:
    image: mainstay-test/proxy:1
    networks: [net]
    ports: [{{ target: 80, published: {port}, mode: host }}]
    deploy: {{ endpoint_mode: dnsrr }}
networks: {{ net: {{}} }}
"
    )
}

fn remove_stack(name: &str) {
    let _ = std::process::Command::new("docker").args(["stack", "rm", name]).output();
    let filter = format!("label=com.docker.stack.namespace={name}");
    let end = Instant::now() + Duration::from_secs(60);
    let left = || {
        let networks = docker(&["network", "ls", "-q", "--filter", &filter]);
        networks + &docker(&["ps", "-aq", "--filter", &filter])
    };
    while !left().trim().is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200));
    }
}

impl Shop {
    fn start() -> Shop {
        let folder = tempfile::Builder::new().prefix("mainstay-bench-").tempdir().expect("there is room");
        let at = folder.path();
        let stack = format!("bench{}", std::process::id());
        let port = ports::free();
        let work = at.join("work");
        fs::create_dir_all(work.join(".mainstay")).expect("a folder is made");
        git(at, &["init", "-q", "--bare", "-b", "main", "shop.git"]);
        git(&work, &["init", "-q", "-b", "main"]);
        let pipeline = "on: { manual: {} }\nsteps:\n  production:\n    deploy: { environment: production }\n";
        fs::write(work.join(".mainstay/deploy.yml"), pipeline).expect("a pipeline is written");
        let config = format!(
            "server: {{ listen: \"127.0.0.1:0\" }}
state: {state}
repos:
  shop: {{ url: {bare}, poll: 1h }}
environments:
  production:
    from: [{{ repo: shop, branches: [main], pipelines: [deploy] }}]
    target: {{ swarm: {{ stack: stack.yml, repo: shop, name: {stack} }} }}
    health: [{{ http: \"http://127.0.0.1:{port}/\", every: {every}ms, failures: {FAILURES}, within: 60s }}]
    watch: {WATCH_SECS}s
    downtime: allowed
",
            state = at.join("state").display(),
            bare = at.join("shop.git").display(),
            every = EVERY.as_millis(),
        );
        fs::write(at.join("mainstay.yml"), config).expect("the configuration is written");
        fs::write(work.join("stack.yml"), stack_file("one", None, &port.to_string())).expect("a stack is written");
        let shop = Shop { daemon: Daemon::spawn(at), folder, stack, port, versions: 0 };
        let end = Instant::now() + PATIENCE;
        while shop.daemon.get("/readyz").is_none() {
            assert!(Instant::now() < end, "the daemon is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        shop
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Commits a version, pushes it, and waits until its deploy is over.
    fn deploy(&mut self, word: &str, bad_after: Option<u32>) -> Value {
        self.versions += 1;
        let work = self.work();
        fs::write(work.join("stack.yml"), stack_file(word, bad_after, &self.port.to_string()))
            .expect("a stack is written");
        fs::write(work.join("number"), self.versions.to_string()).expect("a file is written");
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-q", "-m", &format!("version {}", self.versions)]);
        git(&work, &["push", "-q", &self.folder.path().join("shop.git").display().to_string(), "main"]);
        let before = self.last().map(|deploy| deploy["id"].clone());
        self.daemon.trigger("deploy");
        self.over(before.as_ref())
    }

    fn roll_back(&self) -> Value {
        let before = self.last().map(|deploy| deploy["id"].clone());
        self.daemon.command(&["rollback", "production"]);
        self.over(before.as_ref())
    }

    fn last(&self) -> Option<Value> {
        let answer = self.daemon.get("/api/v1/environments/production/deploys?limit=1")?;
        serde_json::from_str::<Value>(&answer).ok()?.get(0).cloned()
    }

    fn over(&self, before: Option<&Value>) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let last = self.last().filter(|deploy| Some(&deploy["id"]) != before);
            if let Some(deploy) = last.filter(|deploy| !deploy["finished_at"].is_null()) {
                return deploy;
            }
            assert!(Instant::now() < end, "a deploy is not over after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("daemon.log")).unwrap_or_default();
            print(format_args!("the end of the daemon's log:\n{}", &log[log.len().saturating_sub(4_000)..]));
        }
        remove_stack(&self.stack);
    }
}

/// The same stack, brought up by hand: the engine's own client, which waits until the engine calls the update done, and
/// then until the old tasks have ended, which a deploy waits for too.
struct Peer {
    stack: String,
    port: u16,
    file: PathBuf,
}

impl Peer {
    fn start(folder: &Path) -> Peer {
        let peer =
            Peer { stack: format!("peer{}", std::process::id()), port: ports::free(), file: folder.join("peer.yml") };
        fs::write(&peer.file, stack_file("one", None, &peer.port.to_string())).expect("a stack is written");
        docker(&["stack", "deploy", "-c", &peer.file.display().to_string(), &peer.stack]);
        peer
    }

    fn update(&self, word: &str) -> f64 {
        let began = Instant::now();
        let image = docker(&["image", "inspect", "--format", "{{.Id}}", &format!("mainstay-test/app:{word}")]);
        let service = format!("{}_app", self.stack);
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let running = || docker(&["ps", "-q", "--no-trunc", "--filter", &filter]);
        let old = running();
        docker(&["service", "update", "-q", "--detach=false", "--no-resolve-image", "--image", image.trim(), &service]);
        while running().lines().any(|one| old.contains(one)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        began.elapsed().as_secs_f64()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        remove_stack(&self.stack);
    }
}

fn failed(answers: &[Answer]) -> Vec<&Answer> {
    answers.iter().filter(|answer| answer.said.is_err()).collect()
}

fn expect(deploy: &Value, status: &str) {
    assert_eq!(deploy["status"], status, "{deploy}");
}

pub(crate) fn measure(effort: Effort, report: &mut Report) {
    let mut shop = Shop::start();
    expect(&shop.deploy("one", None), "verified");
    let peer = Peer::start(shop.folder.path());
    let client = Client::start(shop.port);
    let [mut ours, mut theirs, mut partly, mut found, mut last, mut whole, mut back] =
        std::array::from_fn(|_| Samples::default());
    let (mut asked, mut failed_good, mut failed_bad) = (0, 0, Samples::default());
    for round in 0..effort.of(5, 1) {
        let (new, old) = if round % 2 == 0 { ("two", "one") } else { ("one", "two") };
        let from = now();
        let good = shop.deploy(new, None);
        expect(&good, "verified");
        ours.push(seconds(&good["applied_at"]) - seconds(&good["created_at"]));
        theirs.push(peer.update(new));
        let answers = client.since(from);
        asked += answers.len();
        failed_good += failed(&answers).len();
        for answer in failed(&answers) {
            print(format_args!("  in a good deploy, {:.1} s after its begin: {answer:?}", answer.at - from));
        }

        let from = now();
        let bad = shop.deploy("three", Some(TURNS_BAD_AFTER_SECS));
        expect(&bad, "rolled-back");
        let answers = client.since(from);
        let wrong = failed(&answers);
        let (first, end) = (wrong.first().expect("it turned bad"), wrong.last().expect("it turned bad"));
        let at = seconds(&bad["bad_at"]);
        partly.push(at - first.at);
        // Its replicas turn bad one after the other, as they were started; so long good answers lie between the bad ones.
        let good_until = answers.iter().filter(|answer| answer.at < at && answer.said.as_deref() == Ok("three"));
        found.push(at - good_until.map(|answer| answer.at).fold(0.0, f64::max));
        last.push(end.at - at);
        whole.push(seconds(&bad["put_back_at"]) - at);
        failed_bad.push(wrong.len() as f64);
        shop.daemon.command(&["release-hold", "production"]);

        expect(&shop.deploy(old, None), "verified");
        let from = now();
        let undone = shop.roll_back();
        expect(&undone, "verified");
        back.push(seconds(&undone["applied_at"]) - seconds(&undone["created_at"]));
        let answers = client.since(from);
        asked += answers.len();
        failed_good += failed(&answers).len();
        for answer in failed(&answers) {
            print(format_args!("  in a rollback by hand, {:.1} s after its begin: {answer:?}", answer.at - from));
        }
        shop.daemon.command(&["release-hold", "production"]);
    }
    drop(client);
    print(format_args!("  ours: asked -> two replicas serve, watch aside   {}", ours.shown("s")));
    print(format_args!("  peer: docker service update, old tasks gone      {}", theirs.shown("s")));
    print(format_args!("  rollback by hand: asked -> the old one serves    {}", back.shown("s")));
    print(format_args!("  bad: first failed request -> found               {}", partly.shown("s")));
    print(format_args!("  bad: last good answer -> found                   {}", found.shown("s")));
    print(format_args!("  bad: found -> last failed request                {}", last.shown("s")));
    print(format_args!("  bad: found -> the old release whole              {}", whole.shown("s")));
    print(format_args!("  bad: requests that failed, of 50 a second        {}", failed_bad.shown("requests")));
    print(format_args!("  good deploys and rollbacks: {asked} requests"));
    report.figure(
        "deploy: two replicas / docker service update",
        ours.median() / theirs.median(),
        "x",
        Budget::AtMost(1.25),
    );
    report.figure("deploy: failed requests while nothing is wrong", failed_good as f64, "", Budget::AtMost(0.0));
    let within = 2.0 * EVERY.as_secs_f64() * f64::from(FAILURES);
    report.figure("deploy: bad -> found, the longest", found.quantile(1.0), "s", Budget::AtMost(within));
    report.figure("deploy: found -> last failed request, the longest", last.quantile(1.0), "s", Budget::AtMost(5.0));
}
