//! An error as an HTTP answer: one shape for every route.

use crate::approval::{ApprovalError, Refusal};
use crate::engine::EngineError;
use crate::model::api::ApiError;
use crate::store::StoreError;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// Why a request was not granted. `error` fits after "failed to ...", so that the command line can say it as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is wrong.
    pub error: String,
    /// What to try.
    pub hints: Vec<String>,
}

impl Problem {
    /// Any status.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Problem { status, error: error.into(), hints: Vec::new() }
    }
    /// 400: the request makes no sense.
    pub fn wrong(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
    /// 404: there is no such thing.
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }
    /// 409: it does not fit how things stand.
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }
    /// 403: not allowed.
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }
    /// 503: not now.
    pub fn unavailable(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }
    /// Adds what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
    /// Errors of rooms carry their hints as lines of their own; answers have a place for them.
    pub(super) fn told(status: StatusCode, text: &str) -> Self {
        let mut lines = text.lines();
        let problem = Self::new(status, lines.next().unwrap_or_default());
        lines.filter_map(|line| line.strip_prefix("hint: ")).fold(problem, Problem::hint)
    }
    /// 404 for a run.
    pub(super) fn no_run(run: crate::model::RunId) -> Self {
        Self::not_found(format!("find run #{run}")).hint("`mainstay runs` lists them")
    }
}

impl From<StoreError> for Problem {
    /// The daemon's own trouble: logged here with its cause, and told without.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(text) => Self::conflict(text),
            other => {
                tracing::error!(error = %other, "the state database did not do what was asked");
                Self::unavailable("use the state database").hint("the daemon's log says why")
            }
        }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NoSuchRun(run) => Self::no_run(run),
            EngineError::NotNow(text) => Self::conflict(text),
            EngineError::Wrong(text) => Self::wrong(text),
            EngineError::Store(error) => error.into(),
            other => {
                tracing::error!(error = %other, "a stored run cannot be read");
                Self::unavailable("read a stored run").hint("the daemon's log says why")
            }
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Unknown(_) => StatusCode::NOT_FOUND,
            Refusal::Over { .. } | Refusal::Differs { .. } | Refusal::NothingSaid { .. } => StatusCode::CONFLICT,
            Refusal::NotYours { .. } | Refusal::Channel { .. } => StatusCode::FORBIDDEN,
            Refusal::Inputs { .. } => StatusCode::BAD_REQUEST,
        };
        Self::told(status, &refusal.to_string())
    }
}

impl From<ApprovalError> for Problem {
    fn from(error: ApprovalError) -> Self {
        match error {
            ApprovalError::Refused(refusal) => refusal.into(),
            ApprovalError::Store(error) => error.into(),
            ApprovalError::Key(error) => {
                tracing::error!(%error, "links cannot be made");
                Self::unavailable("make a link").hint("the daemon's log says why")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(ApiError { error: self.error, hints: self.hints })).into_response()
    }
}
