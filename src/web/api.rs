//! The API's plain requests: read a noun from the store, hand a wish to the daemon.

use super::auth::By;
use super::{App, Problem};
use crate::model::RunId;
use crate::model::api::{
    AuditEntry, AuditFilter, AuditVerdict, Cancelling, DaemonStatus, InboxView, Reloaded, RetryRequest, RunDetail,
    RunFilter, RunSummary, Started, TokenCreated, TokenRequest, TokenView, TriggerRequest,
};
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::{StatusCode, request::Parts};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

type Answer<T> = Result<Json<T>, Problem>;
type Accepted<T> = Result<(StatusCode, Json<T>), Problem>;

/// A body that is a JSON document; what is wrong with it is told in our own shape. An empty body is `{}`. The content
/// type must say JSON when there is a body: a form of a foreign web page cannot send that without being asked about.
pub(super) struct Document<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Document<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let kind =
            request.headers().get(axum::http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let is_json = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        let body = bytes::Bytes::from_request(request, app)
            .await
            .map_err(|e| Problem::new(e.status(), format!("read the request: {}", e.body_text())))?;
        if !body.is_empty() && !is_json {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "read the request: its content type is not application/json",
            ));
        }
        let bytes: &[u8] = if body.is_empty() { b"{}" } else { &body };
        serde_json::from_slice(bytes).map(Document).map_err(|e| Problem::wrong(format!("read the request: {e}")))
    }
}

/// A query string; what is wrong with it is told in our own shape.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Parameters<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(t)| Parameters(t))
            .map_err(|e| Problem::wrong(format!("read the query: {}", e.body_text())))
    }
}

/// The run that `{id}` names: a number, or `latest`.
pub(super) struct Named(pub(super) RunId);

impl FromRequestParts<Arc<App>> for Named {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Path(text) =
            Path::<String>::from_request_parts(parts, app).await.map_err(|e| Problem::wrong(e.body_text()))?;
        if text == "latest" {
            let newest = app.runs.list_runs(&RunFilter { limit: 1, ..RunFilter::default() }).await?;
            return newest
                .first()
                .map(|run| Named(run.id))
                .ok_or_else(|| Problem::not_found("find the latest run: there is none yet"));
        }
        text.parse().map(Named).map_err(|_| Problem::wrong("read the run's number: it is a number or `latest`"))
    }
}

pub(super) async fn runs(
    State(app): State<Arc<App>>,
    Parameters(mut filter): Parameters<RunFilter>,
) -> Answer<Vec<RunSummary>> {
    filter.limit = filter.limit.clamp(1, RunFilter::LIMIT_MAX);
    Ok(Json(app.runs.list_runs(&filter).await?))
}

pub(super) async fn run(State(app): State<Arc<App>>, Named(run): Named) -> Answer<RunDetail> {
    app.runs.run_detail(run).await?.map(Json).ok_or_else(|| Problem::no_run(run))
}

pub(super) async fn cancel(State(app): State<Arc<App>>, By(by): By, Named(run): Named) -> Accepted<Cancelling> {
    app.control.cancel(run, &by).await?;
    Ok((StatusCode::ACCEPTED, Json(Cancelling { run })))
}

pub(super) async fn retry(
    State(app): State<Arc<App>>,
    By(by): By,
    Named(run): Named,
    Document(wish): Document<RetryRequest>,
) -> Accepted<Started> {
    Ok((StatusCode::ACCEPTED, Json(app.control.retry(run, wish, &by).await?)))
}

pub(super) async fn trigger(
    State(app): State<Arc<App>>,
    By(by): By,
    Document(wish): Document<TriggerRequest>,
) -> Accepted<Started> {
    Ok((StatusCode::ACCEPTED, Json(app.control.trigger(wish, &by).await?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    #[serde(default = "RunFilter::limit_default")]
    limit: u32,
}

pub(super) async fn inbox(State(app): State<Arc<App>>, Parameters(wish): Parameters<Limit>) -> Answer<Vec<InboxView>> {
    Ok(Json(app.intake.inbox(wish.limit.clamp(1, RunFilter::LIMIT_MAX)).await?))
}

pub(super) async fn replay(
    State(app): State<Arc<App>>,
    By(by): By,
    id: Result<Path<u64>, axum::extract::rejection::PathRejection>,
) -> Accepted<Started> {
    let Path(id) = id.map_err(|_| Problem::wrong("read the report's number"))?;
    Ok((StatusCode::ACCEPTED, Json(app.intake.replay(id, &by).await?)))
}

pub(super) async fn reload(State(app): State<Arc<App>>, By(by): By) -> Answer<Reloaded> {
    Ok(Json(app.control.reload(&by).await?))
}

pub(super) async fn tokens(State(app): State<Arc<App>>) -> Answer<Vec<TokenView>> {
    Ok(Json(app.people.tokens().await?))
}

pub(super) async fn create_token(
    State(app): State<Arc<App>>,
    By(by): By,
    Document(wish): Document<TokenRequest>,
) -> Accepted<TokenCreated> {
    Ok((StatusCode::CREATED, Json(app.people.create_token(wish, &by).await?)))
}

pub(super) async fn revoke_token(
    State(app): State<Arc<App>>,
    By(by): By,
    id: Result<Path<u64>, axum::extract::rejection::PathRejection>,
) -> Answer<TokenView> {
    let Path(id) = id.map_err(|_| Problem::wrong("read the token's number"))?;
    Ok(Json(app.people.revoke_token(id, &by).await?))
}

pub(super) async fn audit(
    State(app): State<Arc<App>>,
    Parameters(mut filter): Parameters<AuditFilter>,
) -> Answer<Vec<AuditEntry>> {
    filter.limit = filter.limit.clamp(1, RunFilter::LIMIT_MAX);
    Ok(Json(app.audit.list(&filter).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Verify {
    expect: Option<String>,
}

pub(super) async fn verify_audit(
    State(app): State<Arc<App>>,
    Parameters(wish): Parameters<Verify>,
) -> Answer<AuditVerdict> {
    let expected = wish.expect.map(|hash| hash.to_ascii_lowercase());
    if expected.as_ref().is_some_and(|hash| hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(Problem::wrong("read `expect`: a hash of the audit has 64 hex digits"));
    }
    Ok(Json(app.audit.verify(expected).await?))
}

pub(super) async fn status(State(app): State<Arc<App>>) -> Json<DaemonStatus> {
    Json(app.control.status().await)
}

pub(super) async fn no_route() -> Problem {
    Problem::not_found("find that path").hint("GET /api/v1/openapi.json lists them")
}

pub(super) async fn no_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "do that: the path takes another method")
        .hint("GET /api/v1/openapi.json lists them")
}
