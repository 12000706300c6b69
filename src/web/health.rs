//! What watches the daemon: health, readiness, figures.

use super::App;
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
