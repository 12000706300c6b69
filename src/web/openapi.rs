//! The OpenAPI document, made from the table of routes and the types that are sent.

use super::routes::{ROUTES, Route};
use crate::approval::webhook::Spoken;
use crate::model::api;
use crate::model::approval::ApprovalView;
use crate::model::deploy_view;
use crate::model::source_view;
use axum::Json;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// What a route takes and gives.
pub(super) struct Bodies {
    request: Option<Schema>,
    answer: Option<Schema>,
    /// Of the answer.
    kind: &'static str,
}

impl Bodies {
    fn answer(answer: Schema) -> Self {
        Bodies { request: None, answer: Some(answer), kind: "application/json" }
    }
    fn taking(self, request: Schema) -> Self {
        Bodies { request: Some(request), ..self }
    }
}

pub(super) fn text(_: &mut SchemaGenerator) -> Bodies {
    Bodies { request: None, answer: None, kind: "text/plain" }
}
pub(super) fn any(_: &mut SchemaGenerator) -> Bodies {
    Bodies { request: None, answer: None, kind: "application/json" }
}
pub(super) fn webhook(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<api::HookAccepted>())
}
pub(super) fn runs(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<api::RunSummary>>())
}
pub(super) fn run(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<api::RunDetail>())
}
pub(super) fn log_lines(g: &mut SchemaGenerator) -> Bodies {
    Bodies { kind: "application/x-ndjson", ..Bodies::answer(g.subschema_for::<api::LogLineView>()) }
}
pub(super) fn cancel(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<api::Cancelling>())
}
pub(super) fn retry(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<api::RetryRequest>();
    Bodies::answer(g.subschema_for::<api::Started>()).taking(request)
}
pub(super) fn trigger(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<api::TriggerRequest>();
    Bodies::answer(g.subschema_for::<api::Started>()).taking(request)
}
pub(super) fn inbox(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<api::InboxView>>())
}
pub(super) fn replay(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<api::Started>())
}
pub(super) fn reload(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<api::Reloaded>())
}
pub(super) fn status(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<api::DaemonStatus>())
}

pub(super) fn sources(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<source_view::SourceView>>())
}
pub(super) fn backup(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<source_view::BackupWish>();
    Bodies::answer(g.subschema_for::<source_view::BackupAsked>()).taking(request)
}
pub(super) fn tokens(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<api::TokenView>>())
}
pub(super) fn create_token(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<api::TokenRequest>();
    Bodies::answer(g.subschema_for::<api::TokenCreated>()).taking(request)
}
pub(super) fn revoke_token(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<api::TokenView>())
}
pub(super) fn environments(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<deploy_view::EnvironmentView>>())
}
pub(super) fn environment(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<deploy_view::EnvironmentView>())
}
pub(super) fn releases(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<deploy_view::ReleaseView>>())
}
pub(super) fn deploys(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<deploy_view::DeployView>>())
}
pub(super) fn deploy(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<deploy_view::DeployView>())
}
pub(super) fn deploy_started(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<deploy_view::DeployStarted>())
}
pub(super) fn promote(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<deploy_view::PromoteRequest>();
    deploy_started(g).taking(request)
}
pub(super) fn rollback(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<deploy_view::RollbackRequest>();
    deploy_started(g).taking(request)
}
pub(super) fn hold(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<deploy_view::HoldRequest>();
    environment(g).taking(request)
}
pub(super) fn hold_released(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<deploy_view::HoldReleased>())
}
pub(super) fn approvals(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<ApprovalView>>())
}
pub(super) fn approval(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<ApprovalView>())
}
pub(super) fn decide(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<api::DecisionRequest>();
    Bodies::answer(g.subschema_for::<ApprovalView>()).taking(request)
}
pub(super) fn spoken(g: &mut SchemaGenerator) -> Bodies {
    let request = g.subschema_for::<Spoken>();
    Bodies::answer(g.subschema_for::<api::DecisionHeard>()).taking(request)
}
pub(super) fn page(_: &mut SchemaGenerator) -> Bodies {
    Bodies { request: None, answer: None, kind: "text/html" }
}
pub(super) fn audit(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<Vec<api::AuditEntry>>())
}
pub(super) fn audit_verdict(g: &mut SchemaGenerator) -> Bodies {
    Bodies::answer(g.subschema_for::<api::AuditVerdict>())
}

pub(super) async fn document() -> Json<Value> {
    Json(make())
}

fn make() -> Value {
    let settings =
        schemars::generate::SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let error = generator.subschema_for::<api::ApiError>();
    let mut paths = Map::new();
    for route in ROUTES {
        let bodies = (route.schemas)(&mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation(route, bodies, &error);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Mainstay",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Over the Unix socket in the state folder every request of the daemon's own user is allowed; over TCP a bearer token is needed where an operation says so: a personal one, or the shared one of the state folder.",
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route, bodies: Bodies, error: &Schema) -> Value {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(route.query.iter().map(
        |(name, kind, about)| json!({ "name": name, "in": "query", "description": about, "schema": { "type": kind } }),
    ));
    let answer = bodies.answer.map_or_else(|| json!({}), |schema| json!({ "schema": schema }));
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            route.good.to_string(): { "description": "Good", "content": { bodies.kind: answer } },
            "default": { "description": "Not granted", "content": { "application/json": { "schema": error } } },
        },
        "security": if route.open { json!([]) } else { json!([{ "token": [] }]) },
    });
    if let Some(request) = bodies.request {
        operation["requestBody"] = json!({ "content": { "application/json": { "schema": request } } });
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                out.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, out));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, out)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let document = make();
        for route in ROUTES {
            let operation = &document["paths"][route.path][route.method.to_lowercase()];
            assert_eq!(operation["summary"], route.summary, "{} {}", route.method, route.path);
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 10, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("references stay in the document");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }
}
