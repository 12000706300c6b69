//! What the web room may ask of the daemon: its traits, answered from engine, store, logs and triggers.

use super::Core;
use crate::backup::keeper::AskError;
use crate::engine::EngineError;
use crate::model::SourceName;
use crate::model::api::{DaemonStatus, HookAccepted, InboxView, Reloaded, RetryRequest, Started, TriggerRequest};
use crate::model::source_view::BackupAsked;
use crate::model::{Asker, RepoName, RunId};
use crate::store::{Act, ActKind, InboxId, StoreError, Verdict};
use crate::trigger::IntakeError;
use crate::trigger::webhook::{Taken, WebhookError};
use crate::web::{Control, Headers, HookError, Intake, Problem, recovery};
use async_trait::async_trait;
use std::sync::{Arc, PoisonError};

impl Core {
    /// Begins an inbox row for somebody who waits to hear what it came to.
    async fn begin(&self, id: InboxId) -> Result<Started, Problem> {
        let row = self.engine.store().inbox_row(id).await.map_err(broken)?;
        let row = row.ok_or_else(|| Problem::not_found(format!("find inbox row {id}")))?;
        let (runs, notes) = self.engine.begin_now(&row).await.map_err(refused)?;
        Ok(Started { runs, notes })
    }
}

#[async_trait]
impl Control for Arc<Core> {
    async fn trigger(&self, request: TriggerRequest, by: &Asker) -> Result<Started, Problem> {
        let id = self.intake.trigger(request, by).await.map_err(not_taken)?;
        self.begin(id).await
    }

    async fn cancel(&self, run: RunId, by: &Asker) -> Result<(), Problem> {
        self.engine.cancel(run, by).await.map_err(refused)
    }

    async fn retry(&self, run: RunId, request: RetryRequest, by: &Asker) -> Result<Started, Problem> {
        let (run, notes) = self.engine.retry(run, request.from.as_ref(), by).await.map_err(refused)?;
        Ok(Started { runs: vec![run], notes })
    }

    async fn reload(&self, by: &Asker) -> Result<Reloaded, Problem> {
        match Core::reload(self, by.clone()).await {
            Ok(changes) => Ok(Reloaded { changes }),
            Err(error) => Err(Problem::wrong(format!("read the configuration again, the old one stays: {error:#}"))),
        }
    }

    async fn take_over(&self, source: &str, by: &Asker) -> Result<BackupAsked, Problem> {
        let named =
            SourceName::new(source).map_err(|error| Problem::not_found(format!("take over a source: {error}")))?;
        let refused = |error| recovery::refused(&named, error);
        self.keeper.source(&named).map_err(|known| refused(AskError::Unknown(known)))?;
        // First the record, then the deed: a wish that is then refused was a person's word all the same.
        let act = Act {
            by: by.clone(),
            kind: ActKind::TakeOver,
            subject: format!("source {named}"),
            details: serde_json::json!({}),
        };
        self.engine.store().record_act(act).await.map_err(broken)?;
        self.keeper.take_over(&named).map_err(refused)
    }

    async fn status(&self) -> DaemonStatus {
        let health = self.health.read().unwrap_or_else(PoisonError::into_inner).clone();
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            runtime_ok: health.runtime_ok,
            runtime: health.runtime,
            repos: self.config().repos.len(),
            queued: health.queued,
            running: health.running,
            inbox_pending: health.inbox_pending,
            finished: health.finished,
            messages: health.messages,
            sources: self.keeper.views(),
            not_ready: health.not_ready,
        }
    }
}

#[async_trait]
impl Intake for Core {
    async fn webhook(&self, repo: &RepoName, headers: &Headers, body: bytes::Bytes) -> Result<HookAccepted, HookError> {
        let header = |name: &str| headers.get(name).map(String::as_str);
        let taken = self.intake.webhook(repo, &header, &body).await.map_err(|error| match error {
            IntakeError::UnknownRepo(_) | IntakeError::Webhook(WebhookError::NotConfigured) => HookError::UnknownRepo,
            IntakeError::Webhook(WebhookError::BadSignature) => HookError::Signature,
            IntakeError::Webhook(other) => HookError::Unreadable(other.to_string()),
            other => HookError::Unavailable(other.to_string()),
        })?;
        let mut accepted = HookAccepted::default();
        match taken {
            Taken::Ping => accepted.notes.push("the webhook works".into()),
            Taken::Ignored(what) => accepted.notes.push(format!("nothing runs for `{what}`")),
            Taken::Look => accepted.notes.push("the repository is looked at".into()),
            Taken::Push(verdicts) => {
                let over = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::OverLimit(_))).count();
                if over > 0 {
                    accepted
                        .notes
                        .push(format!("{over} refs start nothing: one push moved more than limits.runs-per-push"));
                }
                for verdict in verdicts {
                    match verdict {
                        Verdict::Accepted(id) | Verdict::Joined(id) | Verdict::OverLimit(id) | Verdict::Own(id) => {
                            accepted.inbox.push(id.0);
                        }
                        Verdict::Replayed => accepted.notes.push("this delivery was taken before".into()),
                        Verdict::Stale(why) | Verdict::Refused(why) => accepted.notes.push(why),
                    }
                }
            }
        }
        Ok(accepted)
    }

    async fn inbox(&self, limit: u32) -> Result<Vec<InboxView>, Problem> {
        self.engine.store().list_inbox(limit as usize).await.map_err(broken)
    }

    async fn replay(&self, id: u64, by: &Asker) -> Result<Started, Problem> {
        let id = self.engine.store().replay_inbox(InboxId(id), by).await.map_err(|error| match error {
            StoreError::Conflict(why) => Problem::not_found(why),
            other => broken(other),
        })?;
        self.begin(id).await
    }
}

pub(super) fn broken(error: StoreError) -> Problem {
    error.into()
}

/// The daemon's own trouble: logged here with its cause, and told without.
fn internal(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "a request failed for a reason of our own");
    Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "serve the request").hint("the daemon's log says why")
}

/// Errors carry their hints as lines of their own; answers have a place for them.
pub(super) fn with_hints(make: fn(String) -> Problem, text: &str) -> Problem {
    let mut lines = text.lines();
    let problem = make(lines.next().unwrap_or_default().to_owned());
    lines.filter_map(|line| line.strip_prefix("hint: ")).fold(problem, Problem::hint)
}

fn refused(error: EngineError) -> Problem {
    match error {
        EngineError::NoSuchRun(_) => Problem::not_found(error.to_string()).hint("`mainstay runs` lists them"),
        EngineError::NotNow(why) => with_hints(Problem::conflict, &why),
        EngineError::Wrong(why) => with_hints(Problem::wrong, &why),
        EngineError::Store(error) => error.into(),
        other => internal(&other),
    }
}

fn not_taken(error: IntakeError) -> Problem {
    match error {
        IntakeError::UnknownRepo(_) => {
            Problem::not_found(error.to_string()).hint("`repos` in mainstay.yml names those that are watched")
        }
        IntakeError::Git(git) if git.is_passing() => Problem::unavailable(git.to_string()),
        IntakeError::Git(git) => Problem::wrong(git.to_string()),
        IntakeError::Store(error) => error.into(),
        other => internal(&other),
    }
}
