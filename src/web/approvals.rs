//! Approvals over the API, and decisions that other systems bring.

use super::api::{Document, Parameters};
use super::auth::By;
use super::{App, Problem};
use crate::approval::webhook::SpokenError;
use crate::approval::{Answer as Said, Refusal};
use crate::model::api::{DecisionHeard, DecisionRequest};
use crate::model::approval::{ApprovalView, Channel, Verdict};
use crate::model::{ApprovalId, Asker, PersonName};
use axum::Json;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use std::sync::Arc;

type Answer<T> = Result<Json<T>, Problem>;

/// Decisions are small; whoever signs may still send a long list of inputs.
const BODY_MAX: usize = 1024 * 1024;

/// The request that `{id}` names.
pub(super) struct Numbered(ApprovalId);

impl FromRequestParts<Arc<App>> for Numbered {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Path(text) =
            Path::<String>::from_request_parts(parts, app).await.map_err(|e| Problem::wrong(e.body_text()))?;
        text.parse().map(Numbered).map_err(|_| {
            Problem::wrong("read the approval's number: it is `3` or `#3`").hint("`mainstay approvals` lists them")
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    #[serde(default)]
    all: bool,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Parameters(wish): Parameters<Which>,
) -> Answer<Vec<ApprovalView>> {
    Ok(Json(app.approvals.list(!wish.all).await?))
}

pub(super) async fn one(State(app): State<Arc<App>>, Numbered(id): Numbered) -> Answer<ApprovalView> {
    let view = app.approvals.view(id).await?;
    view.map(Json).ok_or_else(|| Refusal::Unknown(id).into())
}

pub(super) async fn approve(
    State(app): State<Arc<App>>,
    By(by): By,
    Numbered(id): Numbered,
    Document(wish): Document<DecisionRequest>,
) -> Answer<ApprovalView> {
    decide(&app, &by, id, Verdict::Approve, wish).await
}

pub(super) async fn reject(
    State(app): State<Arc<App>>,
    By(by): By,
    Numbered(id): Numbered,
    Document(wish): Document<DecisionRequest>,
) -> Answer<ApprovalView> {
    decide(&app, &by, id, Verdict::Reject, wish).await
}

async fn decide(
    app: &App,
    by: &Asker,
    id: ApprovalId,
    verdict: Verdict,
    wish: DecisionRequest,
) -> Answer<ApprovalView> {
    let DecisionRequest { inputs, message } = wish;
    let answer = Said { person: person(by)?, verdict, channel: Channel::Cli, inputs, message };
    Ok(Json(app.approvals.decide(id, answer, by).await?))
}

pub(super) async fn withdraw(State(app): State<Arc<App>>, By(by): By, Numbered(id): Numbered) -> Answer<ApprovalView> {
    Ok(Json(app.approvals.withdraw(id, &person(&by)?, &by).await?))
}

/// The guard lets nobody else through; nothing is decided in the name of nobody if it ever does.
fn person(by: &Asker) -> Result<PersonName, Problem> {
    by.as_person().cloned().ok_or_else(|| Problem::forbidden("answer: only people of mainstay.yml may"))
}

pub(super) async fn webhook(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Answer<DecisionHeard> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let body = axum::body::to_bytes(body, BODY_MAX).await.map_err(|_| {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "read the message: it is larger than 1 MiB, or ended early")
    })?;
    let heard = app.approvals.hear(&name, header("x-mainstay-timestamp"), header("x-mainstay-signature"), &body).await;
    match heard {
        Ok((view, again)) => Ok(Json(DecisionHeard { approval: view.id, state: view.state, again })),
        Err(error) => {
            tracing::warn!(source = %name.escape_debug(), %error, "a decision of another system was not taken");
            Err(told(error))
        }
    }
}

fn told(error: SpokenError) -> Problem {
    let status = match error {
        SpokenError::Refused(refusal) => return refusal.into(),
        SpokenError::Store(error) => return error.into(),
        SpokenError::UnknownSource => StatusCode::NOT_FOUND,
        SpokenError::Signature | SpokenError::Stale => StatusCode::UNAUTHORIZED,
        SpokenError::Unreadable(_) => StatusCode::BAD_REQUEST,
        SpokenError::NotTheirs { .. } => StatusCode::FORBIDDEN,
    };
    Problem::new(status, error.to_string())
}
