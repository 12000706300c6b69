//! The API of recovery: how the sources stand, and the wish for a backup now.

use super::api::Document;
use super::auth::By;
use super::{App, Problem};
use crate::backup::keeper::{AskError, Kind};
use crate::model::SourceName;
use crate::model::source_view::{BackupAsked, BackupWish, SourceView};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use std::sync::Arc;

pub(super) async fn sources(State(app): State<Arc<App>>) -> Json<Vec<SourceView>> {
    Json(app.keeper.views())
}

pub(super) async fn backup(
    State(app): State<Arc<App>>,
    Path(source): Path<String>,
    Document(wish): Document<BackupWish>,
) -> Result<(StatusCode, Json<BackupAsked>), Problem> {
    let named = SourceName::new(&source).map_err(|error| Problem::not_found(format!("back up a source: {error}")))?;
    match app.keeper.ask(&named, if wish.full { Kind::Whole } else { Kind::Incremental }) {
        Ok(asked) => Ok((StatusCode::ACCEPTED, Json(asked))),
        Err(error) => Err(refused(&named, error)),
    }
}

pub(super) async fn take_over(
    State(app): State<Arc<App>>,
    By(by): By,
    Path(source): Path<String>,
) -> Result<(StatusCode, Json<BackupAsked>), Problem> {
    Ok((StatusCode::ACCEPTED, Json(app.control.take_over(&source, &by).await?)))
}

/// Why a wish about a source is not taken.
pub(crate) fn refused(source: &SourceName, error: AskError) -> Problem {
    match error {
        AskError::Unknown(names) => Problem::not_found(format!(
            "back up {source}: there is no such source\nhint: the sources are {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        )),
        AskError::Stopping => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("back up {source}: the daemon is stopping"))
        }
        AskError::Busy => Problem::conflict(format!("back up {source}: what was asked for before was not begun yet")),
    }
}
