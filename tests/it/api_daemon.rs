//! The web room on its real listeners, over runs kept in memory: what the API and the command line need to be asked.

use async_trait::async_trait;
use mainstay::approval::{Approvals, Clock, Rules};
use mainstay::config::daemon::Person;
use mainstay::deploy::{Deploys, Setups};
use mainstay::logs::file::{LogLimit, LogWriter};
use mainstay::logs::hub::LogStore;
use mainstay::logs::mask::Masker;
use mainstay::model::api::{
    AuditEntry, AuditFilter, AuditVerdict, DaemonStatus, HookAccepted, InboxView, MessageFigures, Reloaded,
    RetryRequest, RunDetail, RunFilter, RunSummary, Started, TokenCreated, TokenRequest, TokenView, TriggerRequest,
};
use mainstay::model::approval::{ApprovalPolicy, ApprovalRequest, Channel, Subject};
use mainstay::model::log::{LogChunk, Stream};
use mainstay::model::source_view::BackupAsked;
use mainstay::model::{Asker, AttemptId, PersonName, RepoName, RunId, RunStatus, Span};
use mainstay::signing::SigningKey;
use mainstay::store::Store;
use mainstay::web::auth::{Hosts, Token};
use mainstay::web::listen::{Socket, serve};
use mainstay::web::{App, Audit, Control, Headers, HookError, Intake, People, Problem, Runs, router};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

#[derive(Default)]
struct Kept {
    runs: Vec<RunDetail>,
    versions: BTreeMap<u64, u64>,
    logs: BTreeMap<AttemptId, (LogWriter, i64)>,
    wishes: Vec<String>,
    askers: Vec<Asker>,
    reasons: Vec<String>,
}

/// Runs and wishes in memory, logs where they always are.
#[derive(Clone)]
pub(crate) struct Memory {
    kept: Arc<Mutex<Kept>>,
    logs: LogStore,
    changes: watch::Sender<u64>,
}

impl Memory {
    /// Adds or replaces a run.
    pub(crate) fn put(&self, run: RunDetail) {
        let mut kept = self.kept.lock().unwrap();
        *kept.versions.entry(run.summary.id.0).or_default() += 1;
        kept.runs.retain(|known| known.summary.id != run.summary.id);
        kept.runs.push(run);
        kept.runs.sort_by_key(|run| std::cmp::Reverse(run.summary.id));
        drop(kept);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Adds a line to an attempt's log; `end` finishes it.
    pub(crate) fn log(&self, run: u64, step: &str, attempt: u32, text: &str, end: bool) {
        let id = AttemptId { run: RunId(run), step: step.parse().unwrap(), attempt };
        let mut kept = self.kept.lock().unwrap();
        let (writer, lines) = kept.logs.entry(id.clone()).or_insert_with(|| {
            let (writer, _) = self.logs.writer(&id, Arc::new(Masker::none()), LogLimit::default()).unwrap();
            (writer, 0)
        });
        *lines += 1;
        let at_nanos = 1_772_359_200_000_000_000 + *lines * 1_000_000;
        writer.push(&LogChunk { stream: Stream::Stdout, at_nanos, data: format!("{text}\n").into() }).unwrap();
        writer.flush().unwrap();
        if end {
            writer.finish(false).unwrap();
        }
    }

    /// What was asked for so far.
    pub(crate) fn wishes(&self) -> Vec<String> {
        self.kept.lock().unwrap().wishes.clone()
    }

    /// Why the daemon is not ready.
    pub(crate) fn not_ready(&self, reason: &str) {
        self.kept.lock().unwrap().reasons.push(reason.into());
    }

    /// Who asked for each of them, webhooks left out.
    pub(crate) fn askers(&self) -> Vec<Asker> {
        self.kept.lock().unwrap().askers.clone()
    }

    fn wish(&self, wish: String) {
        self.kept.lock().unwrap().wishes.push(wish);
    }

    fn wish_of(&self, by: &Asker, wish: String) {
        let mut kept = self.kept.lock().unwrap();
        kept.askers.push(by.clone());
        kept.wishes.push(wish);
    }

    fn known(&self, run: RunId) -> Result<RunStatus, Problem> {
        let kept = self.kept.lock().unwrap();
        let run = kept.runs.iter().find(|known| known.summary.id == run);
        run.map(|run| run.summary.status).ok_or_else(|| Problem::not_found("find that run"))
    }
}

#[async_trait]
impl Runs for Memory {
    async fn list_runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, Problem> {
        let kept = self.kept.lock().unwrap();
        let wanted = |run: &&RunDetail| {
            filter.status.is_none_or(|status| run.summary.status == status)
                && filter.repo.as_ref().is_none_or(|repo| run.summary.repo == *repo)
                && filter.before.is_none_or(|before| run.summary.id < before)
        };
        Ok(kept.runs.iter().filter(wanted).take(filter.limit as usize).map(|run| run.summary.clone()).collect())
    }
    async fn run_detail(&self, run: RunId) -> Result<Option<RunDetail>, Problem> {
        Ok(self.kept.lock().unwrap().runs.iter().find(|known| known.summary.id == run).cloned())
    }
    async fn run_version(&self, run: RunId) -> Result<u64, Problem> {
        Ok(self.kept.lock().unwrap().versions.get(&run.0).copied().unwrap_or(0))
    }
}

#[async_trait]
impl Control for Memory {
    async fn trigger(&self, request: TriggerRequest, by: &Asker) -> Result<Started, Problem> {
        if request.repo.as_str() != "shop" {
            return Err(
                Problem::not_found(format!("find the repository `{}`", request.repo)).hint("mainstay.yml names shop")
            );
        }
        self.wish_of(
            by,
            format!("trigger {} {:?} {:?} {:?}", request.repo, request.git_ref, request.pipeline, request.inputs),
        );
        Ok(Started { runs: vec![RunId(12)], notes: vec![] })
    }
    async fn cancel(&self, run: RunId, by: &Asker) -> Result<(), Problem> {
        if self.known(run)?.is_final() {
            return Err(Problem::conflict(format!("cancel run #{run}: it is over already")));
        }
        self.wish_of(by, format!("cancel {run}"));
        Ok(())
    }
    async fn retry(&self, run: RunId, request: RetryRequest, by: &Asker) -> Result<Started, Problem> {
        self.known(run)?;
        self.wish_of(by, format!("retry {run} {:?}", request.from));
        Ok(Started { runs: vec![RunId(run.0 + 1)], notes: vec![] })
    }
    async fn take_over(&self, source: &str, by: &Asker) -> Result<BackupAsked, Problem> {
        self.wish_of(by, format!("take over {source}"));
        Err(Problem::not_found("find a source: there is none"))
    }
    async fn reload(&self, by: &Asker) -> Result<Reloaded, Problem> {
        self.wish_of(by, "reload".into());
        Ok(Reloaded { changes: vec!["watches `till`".into()] })
    }
    async fn status(&self) -> DaemonStatus {
        let kept = self.kept.lock().unwrap();
        let mut finished = BTreeMap::new();
        for run in kept.runs.iter().filter(|run| run.summary.status.is_final()) {
            *finished.entry(run.summary.status.as_str().to_owned()).or_insert(0) += 1;
        }
        DaemonStatus {
            version: "1.2.3".into(),
            started_at: jiff::Timestamp::now(),
            runtime: "docker 20.10".into(),
            runtime_ok: true,
            repos: 2,
            queued: 0,
            running: kept.runs.iter().filter(|run| run.summary.status == RunStatus::Running).count(),
            inbox_pending: 3,
            finished,
            messages: MessageFigures { waiting: 2, given_up: 1, ..MessageFigures::default() },
            sources: Vec::new(),
            not_ready: kept.reasons.clone(),
        }
    }
}

#[async_trait]
impl Intake for Memory {
    async fn webhook(&self, repo: &RepoName, headers: &Headers, body: bytes::Bytes) -> Result<HookAccepted, HookError> {
        match (repo.as_str(), headers.get("x-signature").map(String::as_str), body.first()) {
            ("shop", Some("good"), Some(b'{')) => {
                self.wish(format!("webhook {} bytes", body.len()));
                Ok(HookAccepted { inbox: vec![41], notes: vec![] })
            }
            ("shop", Some("good"), _) => Err(HookError::Unreadable("it is no JSON".into())),
            ("shop", ..) => Err(HookError::Signature),
            _ => Err(HookError::UnknownRepo),
        }
    }
    async fn inbox(&self, limit: u32) -> Result<Vec<InboxView>, Problem> {
        let entry = serde_json::json!({
            "id": 41, "repo": "shop", "git_ref": "refs/heads/main", "old": "0".repeat(40), "new": "1a2b3c4d".repeat(5),
            "event": "push", "feeders": ["hook", "poll"], "at": "2026-03-01T10:00:00Z", "state": "done",
            "reason": null, "runs": [12]
        });
        Ok(std::iter::repeat_n(serde_json::from_value(entry).unwrap(), 1).take(limit as usize).collect())
    }
    async fn replay(&self, id: u64, by: &Asker) -> Result<Started, Problem> {
        if id != 41 {
            return Err(Problem::not_found(format!("find report {id} in the inbox")));
        }
        self.wish_of(by, format!("replay {id}"));
        Ok(Started { runs: vec![RunId(13)], notes: vec![] })
    }
}

/// The only personal token there is, and it is Ana's.
pub(crate) const ANAS_TOKEN: &str = "mainstay_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn token(id: u64) -> TokenView {
    serde_json::from_value(serde_json::json!({
        "id": id, "person": "ana", "name": null, "state": "in-force", "created_at": "2026-03-01T10:00:00Z",
        "created_by": "root", "expires_at": null, "revoked_at": null
    }))
    .unwrap()
}

#[async_trait]
impl People for Memory {
    fn of_unix(&self, user: &str) -> Option<PersonName> {
        let own = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap();
        (user == own.name).then(|| PersonName::new("ana").unwrap())
    }
    async fn of_token(&self, shown: &str) -> Result<PersonName, Problem> {
        if shown == ANAS_TOKEN {
            return Ok(PersonName::new("ana").unwrap());
        }
        Err(Problem::new(axum::http::StatusCode::UNAUTHORIZED, "prove who asks: no such token"))
    }
    async fn tokens(&self) -> Result<Vec<TokenView>, Problem> {
        Ok(vec![token(12)])
    }
    async fn create_token(&self, request: TokenRequest, by: &Asker) -> Result<TokenCreated, Problem> {
        self.wish_of(by, format!("token for {}", request.person));
        Ok(TokenCreated { token: ANAS_TOKEN.into(), stored: token(12) })
    }
    async fn revoke_token(&self, id: u64, by: &Asker) -> Result<TokenView, Problem> {
        self.wish_of(by, format!("revoke {id}"));
        Ok(token(id))
    }
}

#[async_trait]
impl Audit for Memory {
    async fn list(&self, _: &AuditFilter) -> Result<Vec<AuditEntry>, Problem> {
        Ok(Vec::new())
    }
    async fn verify(&self, _: Option<String>) -> Result<AuditVerdict, Problem> {
        Ok(AuditVerdict { entries: 0, newest: None, expected_at: None, broken: None })
    }
}

/// Ana, Ben and Cem, who get mail, and Dee, who does not.
pub(crate) fn rules() -> Rules {
    let person = |name: &str| Person { mail: Some(format!("{name}@example.com")), ..Person::default() };
    let mut rules = Rules { mail: true, public_url: "https://ci.example.com".into(), ..Rules::default() };
    for name in ["ana", "ben", "cem"] {
        rules.people.users.insert(name.parse().unwrap(), person(name));
    }
    rules.people.users.insert("dee".parse().unwrap(), Person::default());
    let managers = ["ana", "ben"].map(|name| name.parse().unwrap());
    rules.people.groups.insert("managers".parse().unwrap(), managers.into());
    rules
}

/// A request to those people: so many of them must say yes within an hour.
pub(crate) fn asked(key: &str, from: &[&str], required: u32) -> ApprovalRequest {
    ApprovalRequest {
        key: key.to_owned(),
        environment: None,
        run: Some(RunId(12)),
        step: Some("go-live".parse().unwrap()),
        deploy: None,
        binding: format!("binding of {key}"),
        subject: Subject {
            title: "deploy shop 1a2b3c4d to production".into(),
            repo: "shop".into(),
            git_ref: "refs/heads/main".into(),
            commit: "1a2b3c4d".repeat(5),
            way_back: "mainstay rollback production".into(),
            ..Subject::default()
        },
        policy: ApprovalPolicy {
            from: from.iter().map(ToString::to_string).collect(),
            required,
            expires: Span(std::time::Duration::from_secs(3_600)),
            by: vec![Channel::Mail, Channel::Webhook, Channel::Cli],
            allow_self: false,
            allow_unknown_pusher: false,
            newer: Default::default(),
        },
        excluded: vec![],
        unknown_pusher: None,
        inputs: vec![],
    }
}

/// A running web room.
pub(crate) struct Daemon {
    pub(crate) memory: Memory,
    pub(crate) approvals: Approvals,
    pub(crate) store: Store,
    pub(crate) tcp: SocketAddr,
    pub(crate) token: String,
    folder: tempfile::TempDir,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
}

impl Daemon {
    /// Listens on a socket in a new state folder and on a free TCP port.
    pub(crate) async fn start() -> Daemon {
        Self::with(rules(), Clock::default()).await
    }

    /// The same by other rules and another clock for approvals.
    pub(crate) async fn with(rules: Rules, clock: Clock) -> Daemon {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let logs = LogStore::new(folder.path());
        let memory = Memory { kept: Arc::default(), logs, changes: watch::Sender::new(0) };
        Self::on(folder, memory, rules, clock).await
    }

    async fn on(folder: tempfile::TempDir, memory: Memory, rules: Rules, clock: Clock) -> Daemon {
        let store = Store::open(folder.path()).unwrap();
        let approvals = Approvals::with_clock(store.clone(), folder.path(), rules, clock).unwrap();
        approvals.recover().await.unwrap();
        let socket = Socket::bind(&folder.path().join("mainstay.sock")).unwrap();
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let stop = watch::Sender::new(false);
        let token = Token::load_or_create(&folder.path().join("token")).unwrap();
        let key = SigningKey::open(&folder.path().join("sign.key")).unwrap();
        let deploys = Deploys::new(store.clone(), approvals.clone(), key, Setups::default());
        let app = Arc::new(App {
            runs: Arc::new(memory.clone()),
            logs: memory.logs.clone(),
            control: Arc::new(memory.clone()),
            intake: Arc::new(memory.clone()),
            people: Arc::new(memory.clone()),
            audit: Arc::new(memory.clone()),
            approvals: approvals.clone(),
            deploys,
            keeper: mainstay::backup::keeper::Keeper::new(stop.subscribe()),
            token,
            hosts: Hosts::new(Some(address), Some("https://ci.example.com")),
            changes: memory.changes.subscribe(),
            stopping: stop.subscribe(),
            log_places: App::log_places(),
        });
        let served = tokio::spawn(serve(router(app), socket, Some(tcp), stop.subscribe()));
        let token = std::fs::read_to_string(folder.path().join("token")).unwrap().trim().to_owned();
        Daemon { memory, approvals, store, tcp: address, token, folder, stop, served }
    }

    /// The state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// A URL over TCP.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.tcp)
    }

    /// Stops; `Err` when it took longer than `within`.
    pub(crate) async fn stop(self, within: std::time::Duration) -> Result<Stopped, tokio::time::error::Elapsed> {
        self.stop.send_replace(true);
        tokio::time::timeout(within, self.served).await?.unwrap();
        Ok(Stopped { folder: self.folder, memory: self.memory })
    }
}

/// What a stopped one leaves.
pub(crate) struct Stopped {
    folder: tempfile::TempDir,
    memory: Memory,
}

impl Stopped {
    /// Listens again on the same state folder, with the same runs.
    pub(crate) async fn start(self) -> Daemon {
        Daemon::on(self.folder, self.memory, rules(), Clock::default()).await
    }
}

/// A run with one step `test`: under way with `status` running, otherwise ended.
pub(crate) fn sample(id: u64, status: &str) -> RunDetail {
    let over = status != "running";
    let code = i32::from(status != "success");
    let outcome = if status == "success" { "succeeded" } else { "failed" };
    serde_json::from_value(serde_json::json!({
        "id": id, "repo": "shop", "pipeline": "ci", "event": "push", "git_ref": "refs/heads/main",
        "commit": "1a2b3c4d".repeat(5), "title": "Fix the till", "author": "Ana <ana@example.com>", "status": status,
        "created_at": "2026-03-01T10:00:00Z", "started_at": "2026-03-01T10:00:01Z",
        "finished_at": over.then_some("2026-03-01T10:00:31Z"), "file": ".mainstay/ci.yml",
        "steps": [
            {"name": "build", "image": "debian:12", "needs": [], "state": "done", "outcome": "succeeded", "attempts": [
                {"attempt": 1, "started_at": "2026-03-01T10:00:01Z", "began_at": "2026-03-01T10:00:02Z",
                 "ended_at": "2026-03-01T10:00:10Z", "end": {"how": "exited", "code": 0}}]},
            {"name": "test", "image": "debian:12", "needs": ["build"], "state": if over { "done" } else { "running" },
             "outcome": over.then_some(outcome), "attempts": [
                {"attempt": 1, "started_at": "2026-03-01T10:00:11Z", "began_at": "2026-03-01T10:00:12Z",
                 "ended_at": over.then_some("2026-03-01T10:00:31Z"),
                 "end": over.then_some(serde_json::json!({"how": "exited", "code": code}))}]}
        ]
    }))
    .unwrap()
}
