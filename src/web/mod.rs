//! The HTTP side: API, webhooks, live logs, health and metrics.
//!
//! In come connections on the Unix socket and the TCP listener ([`listen`]); every request passes one guard ([`auth`]);
//! answers are made from the store, and wishes are handed to the daemon through [`Control`] and [`Intake`], which
//! `daemon` implements. The routes are one table ([`ROUTES`]), from which router and OpenAPI document are both made.

mod api;
mod approvals;
pub mod auth;
mod deploys;
mod health;
mod hooks;
mod links;
pub mod listen;
mod logs;
mod openapi;
mod page;
mod problem;
pub(crate) mod recovery;
mod routes;

pub use problem::Problem;
pub use routes::{ROUTES, Route, router};

use crate::approval::Approvals;
use crate::backup::keeper::Keeper;
use crate::deploy::Deploys;
use crate::engine::Engine;
use crate::logs::hub::LogStore;
use crate::model::api::{
    AuditEntry, AuditFilter, AuditVerdict, DaemonStatus, HookAccepted, InboxView, Reloaded, RetryRequest, RunDetail,
    RunFilter, RunSummary, Started, TokenCreated, TokenRequest, TokenView, TriggerRequest,
};
use crate::model::source_view::BackupAsked;
use crate::model::{Asker, PersonName, RepoName, RunId};
use crate::store::Store;
use async_trait::async_trait;
use auth::{Hosts, Token};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// Log streams at the same time, those of all clients together: each holds an open file and a buffer of about 1 MiB.
const LOG_STREAMS: usize = 64;

/// What the web room works with. Wired in `daemon`.
pub struct App {
    /// Reads runs.
    pub runs: Arc<dyn Runs>,
    /// Reads log lines.
    pub logs: LogStore,
    /// Takes wishes.
    pub control: Arc<dyn Control>,
    /// Takes reports.
    pub intake: Arc<dyn Intake>,
    /// Knows who is who, and keeps personal tokens.
    pub people: Arc<dyn People>,
    /// Reads who did what.
    pub audit: Arc<dyn Audit>,
    /// Asks people, and takes what they say.
    pub approvals: Approvals,
    /// Environments, and what is deployed to them.
    pub deploys: Deploys,
    /// Sources of backups.
    pub keeper: Keeper,
    /// What a TCP client without a token of its own must show.
    pub token: Token,
    /// Names under which TCP clients may speak to us.
    pub hosts: Hosts,
    /// Ticks when anything about any run was recorded.
    pub changes: watch::Receiver<u64>,
    /// Turns true when the daemon begins to stop: streams end, listeners close.
    pub stopping: watch::Receiver<bool>,
    /// Free places for log streams; make it with [`App::log_places`].
    pub log_places: Arc<Semaphore>,
}

impl App {
    /// The places for log streams.
    pub fn log_places() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(LOG_STREAMS))
    }
}

/// Waits until the daemon begins to stop, or is gone.
async fn stopped(stopping: &watch::Receiver<bool>) {
    // An error means that nobody is left to tell us: stop, too.
    let _ = stopping.clone().wait_for(|stop| *stop).await;
}

/// What is read of runs. The engine and its store have these; every call sees what was committed before it.
#[async_trait]
pub trait Runs: Send + Sync {
    /// Runs by filter, the newest first.
    async fn list_runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, Problem>;
    /// One run, whole; `None` when there is none of that number.
    async fn run_detail(&self, run: RunId) -> Result<Option<RunDetail>, Problem>;
    /// How many events the run has: a number that differs whenever anything about it changed. 0 when there is no such run.
    async fn run_version(&self, run: RunId) -> Result<u64, Problem>;
}

#[async_trait]
impl Runs for Engine {
    async fn list_runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, Problem> {
        Ok(self.store().list_runs(filter).await?)
    }
    async fn run_detail(&self, run: RunId) -> Result<Option<RunDetail>, Problem> {
        Ok(Engine::run_detail(self, run).await?)
    }
    async fn run_version(&self, run: RunId) -> Result<u64, Problem> {
        Ok(self.store().run_version(run).await?)
    }
}

/// What people ask the daemon to do, and who asks: that is recorded with the effect. Each call returns after its effect is
/// durable, not after it is carried out, and a caller that goes away cancels nothing. Calls may come at the same time. A wish that makes no sense is a [`Problem`]
/// of the right kind: not found, conflict (the run is over), wrong request.
#[async_trait]
pub trait Control: Send + Sync {
    /// Starts pipelines by hand. Several runs may start; none, with notes that say why, is no error.
    async fn trigger(&self, request: TriggerRequest, by: &Asker) -> Result<Started, Problem>;
    /// Asks a run to stop. Asking twice is fine; a run that is over is a conflict.
    async fn cancel(&self, run: RunId, by: &Asker) -> Result<(), Problem>;
    /// Repeats a run that is over.
    async fn retry(&self, run: RunId, request: RetryRequest, by: &Asker) -> Result<Started, Problem>;
    /// Reads the configuration again: all of it, or on error nothing.
    async fn reload(&self, by: &Asker) -> Result<Reloaded, Problem>;
    /// Takes over the server of a source although it is another cluster than the one stored, and backs it up.
    async fn take_over(&self, source: &str, by: &Asker) -> Result<BackupAsked, Problem>;
    /// How the daemon stands. Must answer from memory: health checks ask it without a token, as often as they like.
    async fn status(&self) -> DaemonStatus;
}

/// Who is who, by the `mainstay.yml` in force and the stored tokens. What is changed here is recorded with who asked.
#[async_trait]
pub trait People: Send + Sync {
    /// The person who is that user of this machine, if any.
    fn of_unix(&self, user: &str) -> Option<PersonName>;
    /// The person whose token that is, as things stand at this moment. Otherwise a 401 that says why: to somebody who
    /// shows the token of a person, what became of it; to anybody else, nothing.
    async fn of_token(&self, shown: &str) -> Result<PersonName, Problem>;
    /// All personal tokens, the newest first.
    async fn tokens(&self) -> Result<Vec<TokenView>, Problem>;
    /// Makes one. Its text is in the answer, and nowhere else.
    async fn create_token(&self, request: TokenRequest, by: &Asker) -> Result<TokenCreated, Problem>;
    /// Ends one.
    async fn revoke_token(&self, id: u64, by: &Asker) -> Result<TokenView, Problem>;
}

/// What is read of the audit.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Entries by filter, the newest first.
    async fn list(&self, filter: &AuditFilter) -> Result<Vec<AuditEntry>, Problem>;
    /// Walks the whole chain; says which entry has the hash `expected`.
    async fn verify(&self, expected: Option<String>) -> Result<AuditVerdict, Problem>;
}

#[async_trait]
impl Audit for Store {
    async fn list(&self, filter: &AuditFilter) -> Result<Vec<AuditEntry>, Problem> {
        Ok(self.list_audit(filter.before, filter.limit).await?)
    }
    async fn verify(&self, expected: Option<String>) -> Result<AuditVerdict, Problem> {
        Ok(self.verify_audit(expected).await?)
    }
}

/// A webhook's headers, names in lower case; a header that came twice keeps its first value, and values that are not
/// ASCII are left out.
pub type Headers = HashMap<String, String>;

/// Takes reports of the world into the inbox.
#[async_trait]
pub trait Intake: Send + Sync {
    /// One webhook delivery as it came. Verifies the signature over `body` before it looks at anything in it. Returns
    /// after the report is durable; a delivery that came before is accepted again and joins what it made then.
    async fn webhook(&self, repo: &RepoName, headers: &Headers, body: bytes::Bytes) -> Result<HookAccepted, HookError>;
    /// The newest reports first.
    async fn inbox(&self, limit: u32) -> Result<Vec<InboxView>, Problem>;
    /// Takes a report again, as if it had just come.
    async fn replay(&self, id: u64, by: &Asker) -> Result<Started, Problem>;
}

/// Why a webhook was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// No repository of that name, or none that takes webhooks: the two look alike from outside.
    #[error("take the webhook: no repository of that name takes webhooks")]
    UnknownRepo,
    /// The signature is absent or wrong.
    #[error("verify the webhook: its signature is absent or wrong")]
    Signature,
    /// The signature is good and the body is not what the forge sends.
    #[error("read the webhook: {0}")]
    Unreadable(String),
    /// It could not be stored; the forge should send it again.
    #[error("store the webhook: {0}")]
    Unavailable(String),
}
