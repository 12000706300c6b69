//! Every route there is, in one table: the router, the guard and the OpenAPI document are made from it, so none of
//! them can know a route that the others do not.

use super::{App, api, approvals, auth, deploys, health, hooks, links, logs, openapi, recovery};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use std::sync::Arc;
use std::time::Duration;

/// One method on one path.
pub struct Route {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// As axum and OpenAPI write it.
    pub path: &'static str,
    /// Needs no token over TCP.
    pub open: bool,
    /// Is served over the Unix socket only.
    pub local: bool,
    /// Only a person may: by a personal token, or as a user of this machine who is one.
    pub person: bool,
    /// One sentence for the OpenAPI document.
    pub summary: &'static str,
    /// Query parameters: name, JSON type, meaning.
    pub(super) query: &'static [(&'static str, &'static str, &'static str)],
    /// Status of the good answer.
    pub(super) good: u16,
    pub(super) schemas: fn(&mut schemars::SchemaGenerator) -> openapi::Bodies,
    handler: fn() -> MethodRouter<Arc<App>>,
}

/// API requests are small documents.
const BODY_MAX: usize = 1024 * 1024;
/// Every request is answered, or its stream begins, in this time; also one whose body comes drop by drop.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Who reaches a route.
enum Access {
    /// Everybody.
    Open,
    /// The Unix socket, and over TCP any token.
    Token,
    /// A personal token, or the Unix socket as a user who is a person.
    Person,
    /// The Unix socket alone.
    Socket,
}

macro_rules! route {
    ($method:literal $path:literal, $access:ident, $summary:literal, $good:literal, $bodies:expr, $handler:expr $(, $query:expr)?) => {
        Route {
            method: $method,
            path: $path,
            open: matches!(Access::$access, Access::Open),
            local: matches!(Access::$access, Access::Socket),
            person: matches!(Access::$access, Access::Person),
            summary: $summary,
            query: route!(@query $($query)?),
            good: $good,
            schemas: $bodies,
            handler: || $handler,
        }
    };
    (@query) => { &[] };
    (@query $query:expr) => { $query };
}

const LIST: &[(&str, &str, &str)] = &[
    ("repo", "string", "Only runs of this repository"),
    ("status", "string", "Only runs in this state"),
    ("before", "integer", "Only runs with a smaller number: the next page"),
    ("limit", "integer", "At most so many, 500 at the most; 20 when absent"),
];
const LOGS: &[(&str, &str, &str)] = &[
    ("step", "string", "Only this step"),
    ("attempt", "integer", "Only this attempt; needs `step`"),
    ("after", "integer", "Only lines with a greater number; needs `attempt`"),
    ("tail", "integer", "Only the last so many lines of each attempt, 10000 at the most; not with `follow`"),
    ("follow", "boolean", "Go on with what is still written, until the run ends"),
];
const AUDIT: &[(&str, &str, &str)] = &[
    ("before", "integer", "Only entries with a smaller number: the next page"),
    ("limit", "integer", "At most so many, 500 at the most; 20 when absent"),
];

/// Of lists that are shown from their newest end.
const LIMIT: &[(&str, &str, &str)] = &[("limit", "integer", "At most so many; 20 when it is not said")];

/// All routes.
pub const ROUTES: &[Route] = &[
    route!("GET" "/healthz", Open, "The process answers", 200, openapi::text, get(health::healthz)),
    route!("GET" "/readyz", Open, "Runs can be carried out; 503 with reasons when not", 200, openapi::text, get(health::readyz)),
    route!("GET" "/metrics", Token, "Figures in the OpenMetrics text format", 200, openapi::text, get(health::metrics)),
    route!("POST" "/hooks/{repo}", Open, "A forge reports a push; signed with the repository's webhook secret", 202, openapi::webhook, post(hooks::webhook)),
    route!("GET" "/api/v1/runs", Token, "Runs, the newest first", 200, openapi::runs, get(api::runs), LIST),
    route!("GET" "/api/v1/runs/{id}", Token, "One run, whole; `latest` is the newest", 200, openapi::run, get(api::run)),
    route!("GET" "/api/v1/runs/{id}/logs", Token, "Log lines as JSON lines", 200, openapi::log_lines, get(logs::lines), LOGS),
    route!("POST" "/api/v1/runs/{id}/cancel", Token, "Stop a run", 202, openapi::cancel, post(api::cancel)),
    route!("POST" "/api/v1/runs/{id}/retry", Token, "Repeat a run as a new one", 202, openapi::retry, post(api::retry)),
    route!("POST" "/api/v1/trigger", Token, "Start pipelines by hand", 202, openapi::trigger, post(api::trigger)),
    route!("GET" "/api/v1/inbox", Token, "Reports of the world, the newest first", 200, openapi::inbox, get(api::inbox), &[("limit", "integer", "At most so many, 500 at the most; 20 when absent")]),
    route!("POST" "/api/v1/inbox/{id}/replay", Token, "Take a report again", 202, openapi::replay, post(api::replay)),
    route!("GET" "/api/v1/sources", Token, "Sources of backups, and how each stands", 200, openapi::sources, get(recovery::sources)),
    route!("POST" "/api/v1/sources/{source}/backup", Token, "Back a source up now", 202, openapi::backup, post(recovery::backup)),
    route!("POST" "/api/v1/sources/{source}/take-over", Token, "Take over another cluster as this source, and back it up", 202, openapi::backup, post(recovery::take_over)),
    route!("POST" "/api/v1/reload", Token, "Read the configuration again", 200, openapi::reload, post(api::reload)),
    route!("GET" "/api/v1/tokens", Token, "Personal tokens, without their texts", 200, openapi::tokens, get(api::tokens)),
    route!("POST" "/api/v1/tokens", Socket, "Make a personal token; over the Unix socket only", 201, openapi::create_token, post(api::create_token)),
    route!("POST" "/api/v1/tokens/{id}/revoke", Socket, "End a personal token; over the Unix socket only", 200, openapi::revoke_token, post(api::revoke_token)),
    route!("GET" "/api/v1/audit", Token, "Who did what, the newest first", 200, openapi::audit, get(api::audit), AUDIT),
    route!("GET" "/api/v1/audit/verify", Token, "Walk the whole chain of the audit", 200, openapi::audit_verdict, get(api::verify_audit), &[("expect", "string", "A hash, noted earlier, that an entry must have")]),
    route!("GET" "/api/v1/environments", Token, "All environments", 200, openapi::environments, get(deploys::environments)),
    route!("GET" "/api/v1/environments/{name}", Token, "One environment, and what its target says runs there", 200, openapi::environment, get(deploys::environment)),
    route!("GET" "/api/v1/environments/{name}/releases", Token, "Its releases, the newest first", 200, openapi::releases, get(deploys::releases), LIMIT),
    route!("GET" "/api/v1/environments/{name}/deploys", Token, "Its deploys, the newest first", 200, openapi::deploys, get(deploys::deploys), LIMIT),
    route!("POST" "/api/v1/environments/{name}/promote", Token, "Deploy the release of another environment", 202, openapi::promote, post(deploys::promote)),
    route!("POST" "/api/v1/environments/{name}/rollback", Token, "Put an earlier release back", 202, openapi::rollback, post(deploys::rollback)),
    route!("POST" "/api/v1/environments/{name}/repair", Token, "Put the release that should serve back", 202, openapi::deploy_started, post(deploys::repair)),
    route!("POST" "/api/v1/environments/{name}/hold", Token, "Deploy nothing there for now", 200, openapi::hold, post(deploys::hold)),
    route!("POST" "/api/v1/environments/{name}/release-hold", Token, "Lift its holds", 200, openapi::hold_released, post(deploys::release_hold)),
    route!("POST" "/api/v1/environments/{name}/end-watch", Token, "End the watch of the deploy under way: it serves, unverified", 200, openapi::environment, post(deploys::end_watch)),
    route!("GET" "/api/v1/deploys/{id}", Token, "One deploy, with the newest answers of its health rules", 200, openapi::deploy, get(deploys::deploy)),
    route!("GET" "/api/v1/approvals", Token, "What people are asked, the newest first", 200, openapi::approvals, get(approvals::list), &[("all", "boolean", "Also those that are over")]),
    route!("GET" "/api/v1/approvals/{id}", Token, "One request, whole", 200, openapi::approval, get(approvals::one)),
    route!("POST" "/api/v1/approvals/{id}/approve", Person, "Say yes; people only", 200, openapi::decide, post(approvals::approve)),
    route!("POST" "/api/v1/approvals/{id}/withdraw", Person, "Take back what one said; people only", 200, openapi::approval, post(approvals::withdraw)),
    route!("POST" "/api/v1/approvals/{id}/reject", Person, "Say no, which ends it; people only", 200, openapi::decide, post(approvals::reject)),
    route!("POST" "/webhooks/approvals/{name}", Open, "A system brings a person's decision; signed with its own secret", 200, openapi::spoken, post(approvals::webhook)),
    route!("GET" "/a/{token}", Open, "The page behind a mailed link; changes nothing", 200, openapi::page, get(links::show)),
    route!("POST" "/a/{token}", Open, "Decide over a mailed link; asks for mailed digits first", 200, openapi::page, post(links::decide)),
    route!("GET" "/api/v1/status", Token, "How the daemon stands", 200, openapi::status, get(api::status)),
    route!("GET" "/api/v1/openapi.json", Token, "This document", 200, openapi::any, get(openapi::document)),
];

/// The router over the table, behind the guard.
pub fn router(app: Arc<App>) -> Router {
    let router = ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)()));
    router
        .fallback(api::no_route)
        .method_not_allowed_fallback(api::no_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::guard))
        .with_state(app)
}

async fn in_time(request: Request, next: Next) -> Response {
    let mut answer = match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => super::Problem::new(StatusCode::REQUEST_TIMEOUT, "answer in time: the request took longer than 30 s")
            .into_response(),
    };
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
