//! What an engine finishes making only after its run has closed goes while the daemon runs; nothing else does.

use crate::support::engine::DockerEngine;
use crate::support::http;
use jiff::Timestamp;
use mainstay::config::daemon;
use mainstay::daemon::{sweep, wire};
use mainstay::engine::Engine;
use mainstay::logs::hub::LogStore;
use mainstay::model::ids::PipelineName;
use mainstay::model::trigger::{CommitInfo, EventKind};
use mainstay::model::{InstanceId, Oid, Plan, RepoName, RunId, RunStatus, TriggerEvent};
use mainstay::runtime::docker::{Docker, DockerConfig};
use mainstay::runtime::{Runtime, WorkspaceSource};
use mainstay::store::{NewRun, Store};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const STUCK: Duration = Duration::from_secs(60);

struct Lab {
    engine: DockerEngine,
    instance: InstanceId,
}

impl Lab {
    fn runtime(&self) -> Arc<dyn Runtime> {
        let mut config = DockerConfig::new(self.instance.clone()).unwrap();
        config.host = Some(self.engine.host());
        config.pool = 1;
        Arc::new(Docker::connect(config).unwrap())
    }

    fn make(&self, path: &str, body: &serde_json::Value) {
        let body = body.to_string();
        let headers = [("Content-Type", "application/json")];
        let (status, said) = http::ask(&self.engine.socket, "POST", path, &headers, body.as_bytes()).unwrap();
        assert_eq!(status, 201, "{path}: {}", String::from_utf8_lossy(&said));
    }

    /// A container of a run's step, as one that the engine made only now; its name.
    fn container(&self, run: RunId, step: &str) -> String {
        let name = format!("mainstay-{}-r{run}-{step}-a1", self.instance);
        let labels = json!({ "mainstay.instance": self.instance.0, "mainstay.run": run.to_string() });
        let body = json!({ "Image": "debian:12", "Cmd": ["sleep", "1000"], "Labels": labels });
        self.make(&format!("/containers/create?name={name}"), &body);
        name
    }

    /// The network and the volume of a space that nobody knows; its name.
    fn space(&self, name: &str) -> String {
        let name = format!("mainstay-{}-{name}", self.instance);
        let labels = json!({ "mainstay.instance": self.instance.0, "mainstay.space": name });
        self.make("/networks/create", &json!({ "Name": name, "Internal": true, "Labels": labels }));
        self.make("/volumes/create", &json!({ "Name": name, "Labels": labels }));
        name
    }

    /// A volume that the engine made by itself, for a container made late; its name.
    fn bare_volume(&self, name: &str) -> String {
        let name = format!("mainstay-{}-{name}", self.instance);
        self.make("/volumes/create", &json!({ "Name": name }));
        name
    }

    fn holds(&self, name: &str) -> bool {
        self.engine.held(&self.instance.0).iter().any(|one| one.split(' ').nth(1) == Some(name))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.engine.forget(&self.instance.0);
    }
}

async fn new_run(store: &Store) -> RunId {
    let oid: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
    let trigger = TriggerEvent {
        repo: RepoName::new("shop").unwrap(),
        kind: EventKind::Push,
        git_ref: "refs/heads/main".into(),
        commit: CommitInfo { sha: oid, message: "m".into(), author: "a".into(), authored_at: Timestamp::now() },
        before: None,
        actor: None,
        pipeline: None,
        inputs: BTreeMap::new(),
        at: Timestamp::now(),
    };
    let pipeline = PipelineName::new("ci").unwrap();
    let plan = Plan { pipeline, file: String::new(), digest: String::new(), steps: Vec::new() };
    let new = NewRun { trigger, plan, status: RunStatus::Queued, error: None, retry_of: None, carried: None };
    store.create_runs(None, vec![new], None).await.unwrap()[0]
}

fn engine(store: &Store, dir: &Path) -> Engine {
    let text = format!("state: {}\nrepos: {{}}\n", dir.display());
    let config = daemon::parse("mainstay.yml", &text, &|_| None, dir).unwrap();
    Engine::new(store.clone(), LogStore::new(dir), wire::settings(&config), Arc::new(Notify::new()))
}

#[tokio::test(flavor = "multi_thread")]
async fn they_go_at_the_second_look_and_what_lives_stays() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("README"), "hello").unwrap();
    let source = WorkspaceSource::Folder(source);
    let store = Store::open(dir.path()).unwrap();
    let lab = Lab { engine: DockerEngine::usual(), instance: store.instance().clone() };
    let (closed, kept) = (new_run(&store).await, new_run(&store).await);
    let kept_space = lab.space("kept");
    store.close_run(closed, None).await.unwrap();
    store.close_run(kept, Some((kept_space.clone(), Timestamp::now() + Duration::from_secs(3600)))).await.unwrap();
    let open = new_run(&store).await;
    let engine = engine(&store, dir.path());
    // Two settings for one engine make two runtimes, each with a pool of its own.
    let runtimes = vec![lab.runtime(), lab.runtime()];
    let repo = RepoName::new("shop").unwrap();
    for runtime in &runtimes {
        runtime.warm(&repo, &source).await;
    }
    let taken = runtimes[0].take_space(open, &repo).await.unwrap();
    runtimes[0].warm(&repo, &source).await;
    let mut lives = vec![lab.container(open, "test"), lab.container(RunId(open.0 + 1), "newer"), taken.0, kept_space];
    lives.extend(runtimes.iter().flat_map(|runtime| runtime.held_spaces()).map(|space| space.0));
    let stays = |when: &str| {
        for name in &lives {
            assert!(lab.holds(name), "{name} is gone {when}");
        }
    };

    let late = [lab.container(closed, "test"), lab.space("late"), lab.bare_volume("p0123456789abcdef")];
    let mut round = sweep::Late::default();
    round.round(&engine, &runtimes).await.unwrap();
    for name in &late {
        assert!(lab.holds(name), "{name} was taken at first sight, when it may be in the making");
    }
    stays("after the first look");
    round.round(&engine, &runtimes).await.unwrap();
    for name in &late {
        assert!(!lab.holds(name), "{name} is still there after two looks");
    }
    stays("after the second look");

    // As the daemon does it, but oftener.
    let sweeping = tokio::spawn({
        let (engine, runtimes) = (engine.clone(), runtimes.clone());
        async move { sweep::late(&engine, || runtimes.clone(), Duration::from_millis(100)).await }
    });
    let late = [lab.container(closed, "again"), lab.space("again")];
    lab.engine.wait_gone(&lab.instance.0, STUCK, |one| late.iter().any(|name| one.contains(name.as_str())));
    tokio::time::sleep(Duration::from_millis(500)).await;
    stays("while the sweep goes on");
    sweeping.abort();
    for runtime in &runtimes {
        runtime.drain_pool().await;
    }
}
