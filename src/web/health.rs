//! What watches the daemon: health, readiness, figures.

use super::App;
use crate::model::source_view::{ConcernKind, SourceState, SourceView};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The process answers; says nothing else.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether runs can be carried out. Open to everybody, so the reasons must not name anything secret.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    if *app.stopping.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n".into());
    }
    let status = app.control.status().await;
    let mut reasons = status.not_ready;
    if !status.runtime_ok && reasons.is_empty() {
        reasons.push("the container engine does not answer".into());
    }
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n".into());
    }
    reasons.push(String::new());
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n"))
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Status {
    status: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfSource {
    source: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateOfSource {
    source: String,
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConcernOfSource {
    source: String,
    concern: &'static str,
}

/// The words of a source's state, each with 1 or 0, so that an alert can be written for any of them.
const STATES: [(SourceState, &str); 6] = [
    (SourceState::Starting, "starting"),
    (SourceState::Shipping, "shipping"),
    (SourceState::Scheduled, "scheduled"),
    (SourceState::Elsewhere, "elsewhere"),
    (SourceState::Failing, "failing"),
    (SourceState::Stuck, "stuck"),
];

/// Figures of the sources of backups. What is not known has no line: a zero would say that all is well.
fn sources(registry: &mut Registry, sources: &[SourceView]) {
    let state = Family::<StateOfSource, Gauge>::default();
    let concerns = Family::<ConcernOfSource, Gauge>::default();
    let figures = [
        ("source_lag_bytes", "Bytes of the server's log that are not in the repository"),
        ("source_last_backup_time_seconds", "When the newest backup ended, in seconds since 1970"),
        ("source_backup_failed", "1 when the last try at a backup failed"),
        ("source_window_start_time_seconds", "From when on it can be restored, in seconds since 1970"),
        ("source_restore_seconds", "How long a restore to the newest state would take"),
        ("source_rpo_seconds", "The most that may be lost, as its file says"),
        ("source_rto_seconds", "The longest that a restore may take, as its file says"),
    ];
    let families = figures.map(|(name, help)| (name, help, Family::<OfSource, Gauge>::default()));
    let lag = Family::<OfSource, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    for view in sources {
        let source = view.name.to_string();
        let of = OfSource { source: source.clone() };
        for (one, word) in STATES {
            let label = StateOfSource { source: source.clone(), state: word.to_owned() };
            state.get_or_create(&label).set(i64::from(one == view.state));
        }
        for kind in ConcernKind::ALL {
            let label = ConcernOfSource { source: source.clone(), concern: kind.as_str() };
            let is_open = view.concerns.iter().any(|concern| concern.kind == kind);
            concerns.get_or_create(&label).set(i64::from(is_open));
        }
        if let Some(log) = &view.log {
            lag.get_or_create(&of).set(log.lag_ms as f64 / 1000.0);
        }
        let values = [
            view.log.as_ref().map(|log| whole(log.lag_bytes())),
            view.last_backup.as_ref().map(|last| last.ended.as_second()),
            Some(i64::from(view.failed_backup.is_some())),
            view.window_start.map(|start| start.as_second()),
            view.restore.map(|restore| whole(restore.total_secs)),
            view.rpo_secs.map(whole),
            view.rto_secs.map(whole),
        ];
        for ((_, _, family), value) in families.iter().zip(values) {
            if let Some(value) = value {
                family.get_or_create(&of).set(value);
            }
        }
    }
    if sources.is_empty() {
        return;
    }
    registry.register("source_state", "1 for the state that a source of backups is in", state);
    registry.register("source_concern", "1 for what is wrong with a source of backups now", concerns);
    registry.register("source_lag_seconds", "The age of the oldest byte that is not in the repository", lag);
    for (name, help, family) in families {
        registry.register(name, help, family);
    }
}

/// Figures, made from the daemon's status at the moment they are asked for: nothing to keep in step.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let status = app.control.status().await;
    let mut registry = Registry::with_prefix("mainstay");
    let runs = Family::<Status, Gauge>::default();
    let figure = |status: &str, n: u64| {
        runs.get_or_create(&Status { status: status.to_owned() }).set(i64::try_from(n).unwrap_or(i64::MAX));
    };
    figure("queued", status.queued as u64);
    figure("running", status.running as u64);
    for (word, n) in &status.finished {
        figure(word, *n);
    }
    registry.register("runs", "Stored runs by status", runs.clone());
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge(&mut registry, "queue_length", "Runs that wait for their turn", status.queued as i64);
    gauge(&mut registry, "inbox_pending", "Accepted reports that are not looked at yet", status.inbox_pending as i64);
    gauge(&mut registry, "messages_waiting", "Messages that are not sent yet", status.messages.waiting as i64);
    gauge(
        &mut registry,
        "messages_given_up",
        "Messages given up in the last thirty days",
        status.messages.given_up as i64,
    );
    gauge(&mut registry, "engine_up", "1 when the container engine answers", i64::from(status.runtime_ok));
    gauge(
        &mut registry,
        "ready",
        "1 when runs can be carried out",
        i64::from(status.runtime_ok && status.not_ready.is_empty()),
    );
    gauge(&mut registry, "repositories", "Watched repositories", status.repos as i64);
    gauge(
        &mut registry,
        "start_time_seconds",
        "When the daemon started, in seconds since 1970",
        status.started_at.as_second(),
    );
    sources(&mut registry, &status.sources);
    registry.register(
        "build",
        "The version that runs",
        prometheus_client::metrics::info::Info::new(vec![("version", status.version)]),
    );
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
