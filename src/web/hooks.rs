//! Webhooks: bytes come in with their headers, and go to the inbox unread. Who verifies them is `trigger`.

use super::{App, Headers, HookError, Problem};
use crate::model::RepoName;
use crate::model::api::HookAccepted;
use axum::Json;
use axum::body::{self, Body};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use std::sync::Arc;
use std::time::Duration;

/// What GitHub allows itself is 25 MiB, but pushes that anybody makes stay far below 8.
const BODY_MAX: usize = 8 * 1024 * 1024;
/// Bodies held in memory at the same time: 64 MiB in all. Anybody may send here, before any signature is looked at.
const AT_ONCE: usize = 8;
/// A forge sends its body at once; a place is not kept for one that dribbles.
const BODY_WITHIN: Duration = Duration::from_secs(10);

static PLACES: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(AT_ONCE);

pub(super) async fn webhook(
    State(app): State<Arc<App>>,
    Path(repo): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<HookAccepted>), Problem> {
    let repo = RepoName::new(repo).map_err(|_| told(&HookError::UnknownRepo))?;
    let (parts, body) = request.into_parts();
    let length =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY_MAX as u64) {
        // Answered before a byte of it is read; the connection closes.
        return Err(too_large());
    }
    let Ok(_place) = PLACES.acquire().await else { return Err(Problem::unavailable("take the webhook")) };
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "read the webhook: its body took longer than 10 s");
    let body = tokio::time::timeout(BODY_WITHIN, bounded(body)).await.map_err(late)??;
    match app.intake.webhook(&repo, &plain(&parts.headers), body).await {
        Ok(accepted) => Ok((StatusCode::ACCEPTED, Json(accepted))),
        Err(error) => {
            tracing::warn!(repo = %repo, %error, "a webhook was not accepted");
            Err(told(&error))
        }
    }
}

async fn bounded(body: Body) -> Result<bytes::Bytes, Problem> {
    // A body without a length is cut as soon as it passes the bound.
    body::to_bytes(body, BODY_MAX).await.map_err(|error| {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(now) = cause {
            if now.to_string().contains("length limit exceeded") {
                return too_large();
            }
            cause = now.source();
        }
        Problem::wrong("read the webhook: its body ended early")
    })
}

fn too_large() -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "take the webhook: its body is larger than 8 MiB")
}

fn plain(headers: &HeaderMap) -> Headers {
    // `HeaderMap` iterates values of one name in the order they came; the first one counts.
    let mut out = Headers::new();
    for (name, value) in headers {
        if let Ok(value) = value.to_str() {
            out.entry(name.as_str().to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    out
}

fn told(error: &HookError) -> Problem {
    let status = match error {
        HookError::UnknownRepo => StatusCode::NOT_FOUND,
        HookError::Signature => StatusCode::UNAUTHORIZED,
        HookError::Unreadable(_) => StatusCode::BAD_REQUEST,
        HookError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Problem::new(status, error.to_string())
}
