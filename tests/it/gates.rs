//! Steps that wait for people and deploys: a run that only waits holds nothing but its workspace, goes on whenever it is
//! answered, and survives a daemon that is killed anywhere in between.
//!
//! The engine is the daemon's own, on a real Docker. Who answers is the test: a [`Desk`] of files, so that a killed
//! process and its successor find the same answers.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

use crate::support::daemon::{STUCK, short_socket};
use crate::support::engine::DockerEngine;
use crate::support::proxy::{Proxy, When};
use crate::support::{Random, soak};
use async_trait::async_trait;
use futures_util::StreamExt;
use jiff::Timestamp;
use mainstay::config::daemon;
use mainstay::daemon::{sweep, wire};
use mainstay::engine::gate::{GateAsk, Gates};
use mainstay::engine::{Engine, Origin, RepoSetup, Settings};
use mainstay::logs::hub::LogStore;
use mainstay::model::api::{RunDetail, StepState};
use mainstay::model::ids::{EnvironmentName, PipelineName};
use mainstay::model::outcome::AttemptResult;
use mainstay::model::plan::{ApprovalStep, DeployStep, PlannedStep, Resources, Retries, StepKind, WhenStatus};
use mainstay::model::trigger::{CommitInfo, EventKind};
use mainstay::model::{
    Asker, AttemptEnd, AttemptId, Oid, Plan, RepoName, RunId, RunStatus, Span, StepName, StepOutcome, TriggerEvent,
};
use mainstay::runtime::docker::{Docker, DockerConfig};
use mainstay::runtime::{Living, Runtime};
use mainstay::store::{NewRun, Store};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// Where questions are noted, one line each, and answers are laid: `STEP` holds how the step ends.
#[derive(Clone)]
struct Desk(PathBuf);

impl Desk {
    fn at(folder: &Path) -> Desk {
        let dir = folder.join("desk");
        std::fs::create_dir_all(&dir).unwrap();
        Desk(dir)
    }

    /// Lays an answer where the gate finds it whole.
    fn answer(&self, step: &str, end: &AttemptEnd, outputs: &[(&str, &str)]) {
        let outputs: BTreeMap<&str, &str> = outputs.iter().copied().collect();
        let text = serde_json::json!({ "end": end, "outputs": outputs }).to_string();
        std::fs::write(self.0.join("new"), text).unwrap();
        std::fs::rename(self.0.join("new"), self.0.join(format!("{step}.answer"))).unwrap();
    }

    fn yes(&self, step: &str) {
        self.answer(step, &AttemptEnd::Exited { code: 0 }, &[]);
    }

    /// Which attempts asked, oldest first; a restart asks again.
    fn asked(&self) -> Vec<String> {
        std::fs::read_to_string(self.0.join("asked")).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

#[async_trait]
impl Gates for Desk {
    async fn pass(&self, ask: GateAsk, cancel: watch::Receiver<bool>) -> AttemptResult {
        let mut asked = std::fs::File::options().create(true).append(true).open(self.0.join("asked")).unwrap();
        writeln!(asked, "{}.{}", ask.attempt.step, ask.attempt.attempt).unwrap();
        std::fs::write(self.0.join(format!("{}.ask", ask.attempt.step)), format!("{ask:?}")).unwrap();
        let answer = self.0.join(format!("{}.answer", ask.attempt.step));
        let (end, outputs) = loop {
            if let Ok(text) = std::fs::read_to_string(&answer) {
                let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
                let outputs = serde_json::from_value(answer["outputs"].clone()).unwrap();
                break (serde_json::from_value(answer["end"].clone()).unwrap(), outputs);
            }
            if *cancel.borrow() {
                break (AttemptEnd::Cancelled, BTreeMap::new());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        AttemptResult { end, outputs, began_at: None, ended_at: Timestamp::now() }
    }
}

fn name(text: &str) -> StepName {
    StepName::new(text).unwrap()
}

fn step(text: &str, needs: &[&str], commands: &[&str]) -> PlannedStep {
    PlannedStep {
        name: name(text),
        image: "busybox:latest".into(),
        commands: commands.iter().map(|line| (*line).to_owned()).collect(),
        args: Vec::new(),
        environment: BTreeMap::new(),
        secrets: Vec::new(),
        needs: needs.iter().map(|need| name(need)).collect(),
        timeout: Span(Duration::from_secs(120)),
        retries: Retries::default(),
        allow_failure: false,
        when_status: vec![WhenStatus::Success],
        once: false,
        resources: Resources::default(),
        shares_holder: false,
        kind: StepKind::Container,
    }
}

fn production() -> EnvironmentName {
    EnvironmentName::new("production").unwrap()
}

fn approval(text: &str, needs: &[&str]) -> PlannedStep {
    let kind = StepKind::Approval(ApprovalStep {
        environment: Some(production()),
        from: Vec::new(),
        required: 1,
        expires: None,
        message: Some("built ${{ steps.build.what }}".into()),
        inputs: Vec::new(),
    });
    PlannedStep { kind, image: String::new(), ..step(text, needs, &[]) }
}

fn deploy(text: &str, needs: &[&str], image: &str) -> PlannedStep {
    let images = BTreeMap::from([("api".to_owned(), image.to_owned())]);
    let kind = StepKind::Deploy(DeployStep { environment: production(), images, promote: None, rollback: None });
    PlannedStep { kind, image: String::new(), ..step(text, needs, &[]) }
}

/// A build, a yes, and what needs both the yes and what was built.
fn build_go_check() -> Vec<PlannedStep> {
    let build = ["echo 'made by build' > made", "echo build >> journal", "echo what=api:7 >> \"$MAINSTAY_OUTPUT\""];
    vec![step("build", &[], &build), approval("go", &["build"]), step("check", &["go"], &["cat made journal"])]
}

/// An engine over a state folder: the first daemon of it, or a later one.
struct Lab {
    engine: Engine,
    wake: Arc<Notify>,
    runtime: Arc<dyn Runtime>,
    ticking: tokio::task::JoinHandle<()>,
}

/// How long a run waits before it is parked here: long enough to be caught by a kill that is armed meanwhile.
const PARK_AFTER: Duration = Duration::from_millis(400);

impl Lab {
    async fn open(folder: &Path, host: &str, limit: usize) -> Lab {
        let store = Store::open(&folder.join("state")).unwrap();
        let config = daemon::parse("built-in", "repos: {}\n", &|_| None, folder).unwrap();
        let settings = Settings {
            steps: limit,
            keep: None,
            keep_spaces_ready: false,
            park_after: PARK_AFTER,
            ..wire::settings(&config)
        };
        let mut docker = DockerConfig::new(store.instance().clone()).unwrap();
        docker.host = Some(host.to_owned());
        docker.pool = 0;
        let runtime: Arc<dyn Runtime> = Arc::new(Docker::connect(docker).unwrap());
        let source = folder.join("source");
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join("README"), "hello\n").unwrap();
        let repo =
            RepoSetup { runtime: Arc::clone(&runtime), origin: Origin::Folder(source), secrets: BTreeMap::new() };
        let wake = Arc::new(Notify::new());
        let engine = Engine::new(store, LogStore::new(&folder.join("state")), settings.clone(), Arc::clone(&wake));
        engine.set_gates(Arc::new(Desk::at(folder)));
        let repos = ["shop", "other"].map(|name| (RepoName::new(name).unwrap(), repo.clone()));
        engine.configure(repos.into(), settings);
        engine.recover().await.unwrap();
        let ticking = tokio::spawn({
            let (engine, wake) = (engine.clone(), Arc::clone(&wake));
            async move {
                loop {
                    engine.tick().await.unwrap();
                    tokio::select! {
                        () = wake.notified() => {}
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                }
            }
        });
        Lab { engine, wake, runtime, ticking }
    }

    async fn begin(&self, repo: &str, steps: Vec<PlannedStep>) -> RunId {
        let oid: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
        let trigger = TriggerEvent {
            repo: RepoName::new(repo).unwrap(),
            kind: EventKind::Push,
            git_ref: "refs/heads/main".into(),
            commit: CommitInfo { sha: oid, message: "m".into(), author: "a".into(), authored_at: Timestamp::now() },
            before: None,
            actor: Some("ana".into()),
            pipeline: None,
            inputs: BTreeMap::new(),
            at: Timestamp::now(),
        };
        let pipeline = PipelineName::new("release").unwrap();
        let plan = Plan { pipeline, file: String::new(), digest: String::new(), steps };
        let new = NewRun { trigger, plan, status: RunStatus::Queued, error: None, retry_of: None, carried: None };
        let run = self.engine.store().create_runs(None, vec![new], None).await.unwrap()[0];
        self.wake.notify_one();
        run
    }

    async fn detail(&self, run: RunId) -> RunDetail {
        self.engine.run_detail(run).await.unwrap().unwrap()
    }

    /// Waits until the run is as wanted.
    async fn until(&self, run: RunId, what: &str, wanted: impl Fn(&RunDetail) -> bool) -> RunDetail {
        let until = Instant::now() + STUCK;
        loop {
            let detail = self.detail(run).await;
            if wanted(&detail) {
                return detail;
            }
            assert!(Instant::now() < until, "not {what}: {detail:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The run's end, its things given back.
    async fn ended(&self, run: RunId) -> RunDetail {
        let detail = self.until(run, "over", |detail| detail.summary.status.is_final()).await;
        let until = Instant::now() + STUCK;
        while self.engine.store().open_runs().await.unwrap().iter().any(|open| open.id == run) {
            assert!(Instant::now() < until, "the run is not closed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        detail
    }

    async fn log(&self, run: RunId, step: &str) -> Vec<String> {
        let id = AttemptId { run, step: name(step), attempt: 1 };
        let lines = self.engine.logs().follow(&id, 1);
        lines.map(|line| String::from_utf8_lossy(&line.unwrap().bytes).into_owned()).collect().await
    }

    fn held(&self) -> Vec<String> {
        DockerEngine::usual().held(&self.engine.store().instance().0)
    }

    /// Waits until the engine holds nothing of this daemon but `wanted` kinds of things.
    async fn holds_only(&self, wanted: &[&str]) {
        let until = Instant::now() + STUCK;
        loop {
            let held = self.held();
            let kinds: Vec<&str> = held.iter().map(|one| one.split(' ').next().unwrap()).collect();
            if kinds == wanted {
                return;
            }
            assert!(Instant::now() < until, "the engine should hold {wanted:?}, and holds {held:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends as a daemon that is told to stop.
    async fn stop(self) {
        self.ticking.abort();
        self.engine.stop().await;
    }
}

/// Removes what a failed test leaves in the engine.
struct Swept(PathBuf);

impl Drop for Swept {
    fn drop(&mut self) {
        if let Ok(store) = Store::open(&self.0.join("state")) {
            DockerEngine::usual().forget(&store.instance().0);
        }
    }
}

fn folder() -> (tempfile::TempDir, Swept) {
    let folder = tempfile::tempdir().unwrap();
    let swept = Swept(folder.path().to_owned());
    (folder, swept)
}

fn outcome(detail: &RunDetail, step: &str) -> Option<StepOutcome> {
    detail.steps.iter().find(|one| one.name == name(step)).unwrap().outcome
}

fn end<'a>(detail: &'a RunDetail, step: &str) -> &'a AttemptEnd {
    let step = detail.steps.iter().find(|one| one.name == name(step)).unwrap();
    step.attempts.last().unwrap().end.as_ref().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_only_waits_holds_its_workspace_and_nothing_else() {
    let (folder, _swept) = folder();
    let desk = Desk::at(folder.path());
    // One run at a time.
    let lab = Lab::open(folder.path(), &DockerEngine::usual().host(), 1).await;
    let mut steps = build_go_check();
    steps.push(deploy("production", &["check"], "${{ steps.build.what }}"));
    steps.push(deploy("later", &["production"], "${{ steps.check.digest }}"));
    let run = lab.begin("shop", steps).await;
    let detail = lab.until(run, "parked", |detail| detail.parked).await;
    let go = &detail.steps[1];
    assert_eq!((go.state, go.reason.as_deref()), (StepState::Running, Some("waits for approval for production")));
    let ask = std::fs::read_to_string(desk.0.join("go.ask")).unwrap();
    for part in ["built api:7", "(\"build\", \"succeeded\")", "actor: Some(\"ana\")", "original_actor: []"] {
        assert!(ask.contains(part), "no {part} in {ask}");
    }
    // Both deploys name `api`; what stands there last is not known yet, and nobody can say yes to it.
    assert!(ask.contains("deploy_images: {\"api\": \"${{ steps.check.digest }}\"}"), "{ask}");
    lab.holds_only(&["volume"]).await;

    // Its place is free for others, and no sweep takes what it still has.
    let other = lab.begin("other", vec![step("quick", &[], &["echo hello"])]).await;
    assert_eq!(lab.ended(other).await.summary.status, RunStatus::Succeeded);
    let mut late = sweep::Late::default();
    for _ in 0..3 {
        late.round(&lab.engine, std::slice::from_ref(&lab.runtime)).await.unwrap();
    }
    lab.holds_only(&["volume"]).await;

    // A place that is taken is waited for.
    let busy = lab.begin("other", vec![step("busy", &[], &["sleep 2"])]).await;
    lab.until(busy, "under way", |detail| !detail.steps[0].attempts.is_empty()).await;
    desk.yes("go");
    lab.until(run, "answered", |detail| outcome(detail, "go").is_some()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waits = lab.detail(run).await;
    assert!(waits.parked && waits.steps[2].attempts.is_empty(), "it went on above the limit: {waits:#?}");
    desk.yes("production");
    desk.yes("later");
    assert_eq!(lab.ended(busy).await.summary.status, RunStatus::Succeeded);
    let detail = lab.ended(run).await;
    assert_eq!(detail.summary.status, RunStatus::Succeeded, "{detail:#?}");
    assert!(!detail.parked);
    let log = lab.log(run, "check").await;
    assert_eq!(log.last_chunk::<2>().unwrap(), &["made by build", "build"], "{log:?}");
    assert_eq!(desk.asked(), ["go.1", "production.1", "later.1"]);
    lab.holds_only(&[]).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_run_is_cancelled_and_what_must_run_runs_in_its_workspace() {
    let (folder, _swept) = folder();
    let lab = Lab::open(folder.path(), &DockerEngine::usual().host(), 4).await;
    let mut steps = build_go_check();
    let always = vec![WhenStatus::Success, WhenStatus::Failure, WhenStatus::Cancelled, WhenStatus::RolledBack];
    steps.push(PlannedStep { when_status: always, ..step("always", &["check"], &["cat made", "echo $CI_RUN_STATUS"]) });
    let run = lab.begin("shop", steps).await;
    lab.until(run, "parked", |detail| detail.parked).await;
    lab.engine.cancel(run, &Asker::user("ben")).await.unwrap();
    let detail = lab.ended(run).await;
    assert_eq!(detail.summary.status, RunStatus::Cancelled, "{detail:#?}");
    assert_eq!(end(&detail, "go"), &AttemptEnd::Cancelled);
    assert_eq!(outcome(&detail, "check"), Some(StepOutcome::Cancelled));
    let log = lab.log(run, "always").await;
    assert!(log.contains(&"made by build".into()) && log.contains(&"cancelled".into()), "{log:?}");
    lab.holds_only(&[]).await;

    // One that nothing runs after gives everything back as it is.
    let run = lab.begin("shop", build_go_check()).await;
    lab.until(run, "parked", |detail| detail.parked).await;
    lab.engine.cancel(run, &Asker::user("ben")).await.unwrap();
    assert_eq!(lab.ended(run).await.summary.status, RunStatus::Cancelled);
    lab.holds_only(&[]).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_daemon_leaves_the_question_open_for_the_next_one() {
    let (folder, _swept) = folder();
    let desk = Desk::at(folder.path());
    let host = DockerEngine::usual().host();
    let lab = Lab::open(folder.path(), &host, 4).await;
    let mut steps = build_go_check();
    steps[2].environment = BTreeMap::from([("LEVEL".to_owned(), "${{ steps.go.level }}".to_owned())]);
    steps[2].commands = vec!["cat made".into(), "echo level=$LEVEL".into()];
    let run = lab.begin("shop", steps).await;
    lab.until(run, "parked", |detail| detail.parked).await;
    lab.holds_only(&["volume"]).await;
    lab.stop().await;
    desk.answer("go", &AttemptEnd::Exited { code: 0 }, &[("level", "full")]);
    let lab = Lab::open(folder.path(), &host, 4).await;
    let detail = lab.ended(run).await;
    assert_eq!(detail.summary.status, RunStatus::Succeeded, "{detail:#?}");
    assert_eq!(detail.steps[1].attempts.len(), 1, "asked again is the same attempt");
    assert_eq!(desk.asked(), ["go.1", "go.1"]);
    let log = lab.log(run, "check").await;
    assert!(log.contains(&"made by build".into()) && log.contains(&"level=full".into()), "{log:?}");
    lab.holds_only(&[]).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_ends_the_run_as_it_says() {
    let (folder, _swept) = folder();
    let desk = Desk::at(folder.path());
    // Nobody listens there: runs without containers need no engine.
    let lab = Lab::open(folder.path(), "unix:///nonexistent/docker.sock", 4).await;
    let two = || vec![approval("go", &[]), deploy("production", &["go"], "api:7")];

    // The timeout is told to the gate, which gives up.
    let mut steps = two();
    steps[0].kind = deploy("go", &[], "").kind;
    steps[0].timeout = Span(Duration::from_millis(300));
    let run = lab.begin("shop", steps).await;
    let detail = lab.ended(run).await;
    assert_eq!((detail.summary.status, end(&detail, "go")), (RunStatus::Failed, &AttemptEnd::TimedOut));
    assert_eq!(outcome(&detail, "production"), Some(StepOutcome::Skipped));

    let refused = AttemptEnd::Refused { detail: "superseded by run #13".into() };
    desk.answer("go", &refused, &[]);
    let mut steps = two();
    steps[0].kind = deploy("go", &[], "").kind;
    let run = lab.begin("shop", steps).await;
    let detail = lab.ended(run).await;
    assert_eq!((detail.summary.status, end(&detail, "go")), (RunStatus::Failed, &refused));
    assert_eq!(detail.steps[0].reason.as_deref(), Some("refused: superseded by run #13"));

    desk.yes("go");
    desk.answer("production", &AttemptEnd::RolledBack { detail: "http answered 500".into() }, &[]);
    let mut steps = two();
    steps[0].kind = deploy("go", &[], "").kind;
    let told = vec![WhenStatus::RolledBack];
    steps.push(PlannedStep { when_status: told, ..deploy("tell", &["production"], "") });
    desk.yes("tell");
    let run = lab.begin("shop", steps).await;
    let detail = lab.ended(run).await;
    assert_eq!(detail.summary.status, RunStatus::Failed);
    assert_eq!(outcome(&detail, "tell"), Some(StepOutcome::Succeeded));

    // Again from the deploy: it is tried again, the approval that it needs directly is asked again, and whoever is asked
    // knows who began.
    desk.yes("production");
    let mut steps = two();
    steps[0].kind = StepKind::Approval(ApprovalStep {
        environment: None,
        from: vec!["ben".into()],
        required: 1,
        expires: None,
        message: None,
        inputs: Vec::new(),
    });
    desk.answer("production", &AttemptEnd::DeployFailed { detail: "no image".into() }, &[]);
    let first = lab.begin("shop", steps).await;
    assert_eq!(end(&lab.ended(first).await, "production"), &AttemptEnd::DeployFailed { detail: "no image".into() });
    desk.yes("production");
    let before = desk.asked().len();
    let (again, notes) = lab.engine.retry(first, Some(&name("production")), &Asker::user("ben")).await.unwrap();
    assert!(notes.iter().any(|note| note.starts_with("`go` is asked again")), "{notes:?}");
    assert_eq!(lab.ended(again).await.summary.status, RunStatus::Succeeded);
    assert_eq!(desk.asked()[before..], ["go.1", "production.1"]);
    let ask = std::fs::read_to_string(desk.0.join("production.ask")).unwrap();
    assert!(ask.contains("original_actor: [\"ana\"]") && ask.contains("actor: Some(\"ben\")"), "{ask}");
    lab.stop().await;
}

/// Tells this program that it is the daemon of a test, and where.
const CHILD: &str = "MAINSTAY_TEST_GATES_DAEMON";

/// A daemon in a process of its own, which a test may kill. It begins the run when there is none, writes down how the
/// run stands, and ends when the run is over and what nobody needs is swept.
async fn daemon_of(folder: &Path) {
    let host = std::fs::read_to_string(folder.join("host")).unwrap();
    let lab = Lab::open(folder, &host, 4).await;
    let newest = lab.engine.store().latest_run().await.unwrap();
    sweep(&lab, newest.unwrap_or(RunId(0))).await;
    let run = match newest {
        Some(run) => run,
        None => lab.begin("shop", build_go_check()).await,
    };
    loop {
        let detail = lab.detail(run).await;
        std::fs::write(folder.join("status.new"), serde_json::to_string(&detail).unwrap()).unwrap();
        std::fs::rename(folder.join("status.new"), folder.join("status")).unwrap();
        if detail.summary.status.is_final() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    lab.ended(run).await;
    if lab.detail(run).await.steps[2].outcome.is_some() {
        std::fs::write(folder.join("check.log"), lab.log(run, "check").await.join("\n")).unwrap();
    }
    sweep(&lab, run).await;
    lab.stop().await;
}

/// What a daemon does at its start and at its stop.
async fn sweep(lab: &Lab, newest: RunId) {
    let runs: Vec<RunId> = lab.engine.store().open_runs().await.unwrap().into_iter().map(|run| run.id).collect();
    let spaces = lab.engine.spaces_of(&runs).await.unwrap();
    lab.runtime.sweep(Some(&Living { runs, newest, spaces })).await.unwrap();
}

struct Killed {
    folder: PathBuf,
    process: Child,
}

impl Killed {
    fn spawn(folder: &Path) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(folder.join("daemon.log")).unwrap();
        Command::new(std::env::current_exe().unwrap())
            .args(["gates::at_every_call_to_the_engine_while_it_waits", "--exact", "--nocapture"])
            .env(CHILD, folder)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn status(&self) -> Option<RunDetail> {
        serde_json::from_str(&std::fs::read_to_string(self.folder.join("status")).ok()?).ok()
    }

    fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Waits for that, or for the daemon's death; true when it died. A dead one gets a successor.
    fn until(&mut self, what: &str, wanted: impl Fn(&Killed) -> bool) -> bool {
        let until = Instant::now() + STUCK;
        while !wanted(self) {
            if self.has_ended() {
                return !wanted(self);
            }
            let log = || std::fs::read_to_string(self.folder.join("daemon.log")).unwrap_or_default();
            assert!(Instant::now() < until, "not {what}: {:#?}\n{}", self.status(), log());
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn again(&mut self) {
        self.process = Killed::spawn(&self.folder);
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One run whose daemon is killed at that call, counted from when it begins to wait. False when there was no such call.
fn killed_at(n: usize, when: When) -> bool {
    let (folder, _swept) = folder();
    let folder = folder.path();
    let engine = DockerEngine::usual();
    let proxy = Proxy::start(&short_socket(folder, "engine.sock"), &engine.socket);
    std::fs::write(folder.join("host"), format!("unix://{}", proxy.socket.display())).unwrap();
    let desk = Desk::at(folder);
    let mut daemon = Killed { folder: folder.to_owned(), process: Killed::spawn(folder) };
    assert!(!daemon.until("waiting", |_| desk.asked() == ["go.1"]), "it died by itself");
    proxy.kill_at(Pid::from_raw(daemon.process.id() as i32), n, when);
    let mut died = daemon.until("parked", |daemon| daemon.status().is_some_and(|status| status.parked));
    if died {
        daemon.again();
    }
    desk.yes("go");
    let mut successors = 0;
    while daemon.until("over", |daemon| daemon.folder.join("check.log").exists()) {
        died = true;
        successors += 1;
        let log = || std::fs::read_to_string(folder.join("daemon.log")).unwrap_or_default();
        assert!(successors < 3, "{when:?} call {n}: its successors die too\n{}", log());
        daemon.again();
    }
    let until = Instant::now() + STUCK;
    while !daemon.has_ended() {
        assert!(Instant::now() < until, "the daemon does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    if !daemon.process.wait().unwrap().success() {
        // Killed while it closed the run, or swept.
        died = true;
        daemon.again();
        assert!(daemon.process.wait().unwrap().success(), "its successor failed");
    }
    let what = format!("{when:?} call {n}: {:?}", proxy.told().1);
    let status = daemon.status().unwrap();
    assert_eq!(status.summary.status, RunStatus::Succeeded, "{what}: {status:#?}");
    for step in &status.steps {
        assert_eq!(step.attempts.len(), 1, "{what}: {} was tried again: {status:#?}", step.name);
    }
    let log = std::fs::read_to_string(folder.join("check.log")).unwrap();
    assert!(log.ends_with("made by build\nbuild"), "{what}: the workspace is not what it was: {log}");
    assert!(desk.asked().iter().all(|one| one == "go.1"), "{what}: {:?}", desk.asked());
    let instance = Store::open(&folder.join("state")).unwrap().instance().0.clone();
    assert_eq!(engine.held(&instance), [""; 0], "{what}: left in the engine");
    died
}

#[test]
fn at_every_call_to_the_engine_while_it_waits() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return tokio.block_on(daemon_of(Path::new(&folder)));
    }
    let mut random = Random::new("at_every_call_to_the_engine_while_it_waits");
    let mut kills = 0;
    for when in [When::Before, When::After] {
        if soak().is_some() {
            let hit = (1..).take_while(|n| killed_at(*n, when)).count();
            println!("{when:?}: killed at each of {hit} calls");
            kills += hit;
            continue;
        }
        // Giving back takes about eight calls, taking up again and the rest about thirty.
        let n = match when {
            When::Before => 1 + random.below(8),
            When::After => 9 + random.below(12),
        };
        kills += usize::from(killed_at(n as usize, when));
    }
    println!("at_every_call_to_the_engine_while_it_waits: {kills} kills, 0 stuck, 0 workspaces lost, nothing left");
    assert!(kills >= 1, "the proxy killed nobody");
}
