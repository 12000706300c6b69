//! Environments, releases and deploys over the API.

use super::api::{Document, Parameters};
use super::auth::By;
use super::{App, Problem};
use crate::model::deploy_view::{
    DeployStarted, DeployView, EnvironmentView, HoldReleased, HoldRequest, PromoteRequest, ReleaseView, RollbackRequest,
};
use crate::model::{DeployId, EnvironmentName};
use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use std::sync::Arc;

type Answer<T> = Result<Json<T>, Problem>;
type Accepted<T> = Result<(StatusCode, Json<T>), Problem>;

/// The most releases or deploys in one answer.
const LIMIT_MAX: u32 = 1_000;
/// A reason is a sentence.
const REASON_MAX_CHARS: usize = 500;

/// The environment that `{name}` names.
pub(super) struct Named(EnvironmentName);

impl FromRequestParts<Arc<App>> for Named {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Path(text) =
            Path::<String>::from_request_parts(parts, app).await.map_err(|e| Problem::wrong(e.body_text()))?;
        text.parse().map(Named).map_err(|error: crate::model::ids::BadName| {
            Problem::wrong(error.to_string()).hint("`mainstay environments` lists them")
        })
    }
}

/// The deploy that `{id}` names.
pub(super) struct Numbered(DeployId);

impl FromRequestParts<Arc<App>> for Numbered {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Path(text) =
            Path::<String>::from_request_parts(parts, app).await.map_err(|e| Problem::wrong(e.body_text()))?;
        text.parse().map(Numbered).map_err(|_| Problem::wrong("read the deploy's number: it is `3` or `#3`"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    #[serde(default = "usual_limit")]
    limit: u32,
}

fn usual_limit() -> u32 {
    20
}

pub(super) async fn environments(State(app): State<Arc<App>>) -> Answer<Vec<EnvironmentView>> {
    Ok(Json(app.deploys.environments().await?))
}

pub(super) async fn environment(State(app): State<Arc<App>>, Named(name): Named) -> Answer<EnvironmentView> {
    Ok(Json(app.deploys.environment(&name).await?))
}

pub(super) async fn releases(
    State(app): State<Arc<App>>,
    Named(name): Named,
    Parameters(wish): Parameters<Limit>,
) -> Answer<Vec<ReleaseView>> {
    Ok(Json(app.deploys.releases(&name, wish.limit.clamp(1, LIMIT_MAX)).await?))
}

pub(super) async fn deploys(
    State(app): State<Arc<App>>,
    Named(name): Named,
    Parameters(wish): Parameters<Limit>,
) -> Answer<Vec<DeployView>> {
    Ok(Json(app.deploys.deploys(&name, wish.limit.clamp(1, LIMIT_MAX)).await?))
}

pub(super) async fn deploy(State(app): State<Arc<App>>, Numbered(id): Numbered) -> Answer<DeployView> {
    Ok(Json(app.deploys.deploy(id).await?))
}

pub(super) async fn promote(
    State(app): State<Arc<App>>,
    By(by): By,
    Named(name): Named,
    Document(wish): Document<PromoteRequest>,
) -> Accepted<DeployStarted> {
    let deploy = app.deploys.promote(&name, wish.from.as_ref(), wish.release, wish.now, &by).await?;
    Ok((StatusCode::ACCEPTED, Json(DeployStarted { deploy })))
}

pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    By(by): By,
    Named(name): Named,
    Document(wish): Document<RollbackRequest>,
) -> Accepted<DeployStarted> {
    let deploy = app.deploys.rollback(&name, wish.to, &by).await?;
    Ok((StatusCode::ACCEPTED, Json(DeployStarted { deploy })))
}

pub(super) async fn repair(State(app): State<Arc<App>>, By(by): By, Named(name): Named) -> Accepted<DeployStarted> {
    let deploy = app.deploys.repair(&name, &by).await?;
    Ok((StatusCode::ACCEPTED, Json(DeployStarted { deploy })))
}

pub(super) async fn hold(
    State(app): State<Arc<App>>,
    By(by): By,
    Named(name): Named,
    Document(wish): Document<HoldRequest>,
) -> Answer<EnvironmentView> {
    let reason = wish.reason.unwrap_or_else(|| "no reason was given".to_owned());
    if reason.chars().count() > REASON_MAX_CHARS || reason.chars().any(char::is_control) {
        return Err(Problem::wrong(format!(
            "hold {name}: a reason has at most {REASON_MAX_CHARS} characters, and no control characters"
        )));
    }
    app.deploys.hold(&name, reason, &by).await?;
    Ok(Json(app.deploys.environment(&name).await?))
}

pub(super) async fn release_hold(State(app): State<Arc<App>>, By(by): By, Named(name): Named) -> Answer<HoldReleased> {
    Ok(Json(HoldReleased { lifted: app.deploys.release_hold(&name, &by).await? }))
}

pub(super) async fn end_watch(State(app): State<Arc<App>>, By(by): By, Named(name): Named) -> Answer<EnvironmentView> {
    app.deploys.end_watch(&name, &by).await?;
    Ok(Json(app.deploys.environment(&name).await?))
}
