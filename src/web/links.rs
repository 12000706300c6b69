//! Mailed links: GET shows a page and changes nothing; POST asks for mailed digits, and with them decides. Every answer is a
//! page, also when a link does not serve.

use super::page::{self, Page};
use super::{App, Problem};
use crate::approval::link::Asked;
use crate::approval::{LinkError, LinkView};
use axum::extract::rejection::FormRejection;
use axum::extract::{Form, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Nothing is loaded, nothing runs, nobody frames it, and forms go to us.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) async fn show(State(app): State<Arc<App>>, Path(token): Path<String>) -> Response {
    match app.approvals.open_link(&token).await {
        Ok(seen) => answer(StatusCode::OK, page::ask(&seen, None, &Filled::default(), Timestamp::now())),
        Err(error) => refuse(&error),
    }
}

pub(super) async fn decide(
    State(app): State<Arc<App>>,
    Path(token): Path<String>,
    headers: HeaderMap,
    form: Result<Form<Vec<(String, String)>>, FormRejection>,
) -> Response {
    let origin = headers.get(header::ORIGIN).map(|value| value.to_str().unwrap_or("unreadable"));
    if !app.hosts.allow_origin(origin) {
        return answer(
            StatusCode::FORBIDDEN,
            page::sorry("Not from here", "The form was sent by a page of another site."),
        );
    }
    let Ok(Form(fields)) = form else {
        return answer(StatusCode::BAD_REQUEST, page::sorry("Not understood", "The form could not be read."));
    };
    let filled = Filled::of(fields);
    let Some(asked) = filled.asked() else {
        return again(&app, &token, &filled, StatusCode::BAD_REQUEST, "Choose what you want to say.").await;
    };
    let Some(code) = &filled.code else {
        return match app.approvals.ask_code(&token, asked).await {
            Ok(seen) => answer(StatusCode::OK, page::code(&seen, &filled, None)),
            Err(error) => troubled(&app, &token, &filled, error).await,
        };
    };
    match app.approvals.answer_link(&token, asked, code).await {
        Ok(seen) => answer(StatusCode::OK, page::done(&seen, &filled)),
        Err(error) => troubled(&app, &token, &filled, error).await,
    }
}

/// What stands in the form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) verdict: Option<&'static str>,
    pub(super) inputs: BTreeMap<String, String>,
    pub(super) message: Option<String>,
    pub(super) code: Option<String>,
}

impl Filled {
    fn of(fields: Vec<(String, String)>) -> Filled {
        let mut filled = Filled::default();
        for (name, value) in fields {
            // Browsers write line ends in their own ways, and the digits are for exactly one text.
            let value = value.replace("\r\n", "\n").replace('\r', "\n").trim().to_owned();
            match name.as_str() {
                "verdict" => {
                    filled.verdict = ["approve", "reject", "withdraw"].into_iter().find(|word| *word == value);
                }
                "message" if !value.is_empty() => filled.message = Some(value),
                "code" => filled.code = Some(value),
                name => {
                    // An empty field was not filled in.
                    if let Some(name) = name.strip_prefix("input.").filter(|_| !value.is_empty()) {
                        filled.inputs.insert(name.to_owned(), value);
                    }
                }
            }
        }
        filled
    }

    fn asked(&self) -> Option<Asked> {
        let what = self.verdict?;
        // A no takes nothing along.
        let inputs = if what == "approve" { self.inputs.clone() } else { BTreeMap::new() };
        Some(Asked { what, inputs, message: self.message.clone() })
    }
}

/// A page for what a person can mend; otherwise one that says why not.
async fn troubled(app: &App, token: &str, filled: &Filled, error: LinkError) -> Response {
    match &error {
        LinkError::WrongCode { left } => {
            let told = format!("These digits are wrong. {} left.", page::count(*left, "try is", "tries are"));
            match app.approvals.open_link(token).await {
                Ok(seen) => answer(StatusCode::FORBIDDEN, page::code(&seen, filled, Some(&told))),
                Err(error) => refuse(&error),
            }
        }
        LinkError::CodeOver => {
            again(
                app,
                token,
                filled,
                StatusCode::GONE,
                "The digits are too old. Answer again, and new ones are mailed.",
            )
            .await
        }
        LinkError::Refused(refusal) => {
            let problem = Problem::from(refusal.clone());
            let (status, told) = (problem.status, page::sentence(&problem.error));
            // Most refusals are the end of the link; what was filled in wrongly is not.
            again(app, token, filled, status, &told).await
        }
        error => refuse(error),
    }
}

async fn again(app: &App, token: &str, filled: &Filled, status: StatusCode, told: &str) -> Response {
    match app.approvals.open_link(token).await {
        Ok(seen) => answer(status, page::ask(&seen, Some(told), filled, Timestamp::now())),
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &LinkError) -> Response {
    let by_cli = "On the command line, `mainstay approvals` shows what waits for you.";
    let (status, title, told) = match error {
        LinkError::Unknown => {
            (StatusCode::NOT_FOUND, "No such link", "It is none of ours, or part of it got lost on the way.".to_owned())
        }
        LinkError::Used { person, at } => (
            StatusCode::GONE,
            "This link was used",
            format!(
                "{person} answered with it at {}. A link serves once; the newest mail about this has another.",
                page::time(*at)
            ),
        ),
        LinkError::Void(_) => (
            StatusCode::GONE,
            "A newer link was mailed",
            "This one no longer serves; the newest mail about this has another.".to_owned(),
        ),
        LinkError::Expired(_) => (StatusCode::GONE, "Too late", "The time to answer is over.".to_owned()),
        LinkError::Over { id, state, note } => {
            let note = note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            (StatusCode::GONE, "Nothing to answer any more", format!("Approval {id} is {state}{note}."))
        }
        LinkError::NotYours { person, why } => {
            (StatusCode::FORBIDDEN, "Not for you to answer", format!("{person} {why}."))
        }
        LinkError::Dead(_) => (
            StatusCode::TOO_MANY_REQUESTS,
            "This link is dead",
            format!("Wrong digits were shown for it too often. {by_cli}"),
        ),
        LinkError::TooManyCodes => (
            StatusCode::TOO_MANY_REQUESTS,
            "No more digits",
            format!("Digits were mailed too often for this link. {by_cli}"),
        ),
        LinkError::NoMail(person) => (
            StatusCode::CONFLICT,
            "Digits cannot be mailed",
            format!("There is no mail address of {person} any more, or no mail server. {by_cli}"),
        ),
        LinkError::WrongCode { .. } | LinkError::CodeOver => (StatusCode::FORBIDDEN, "Wrong digits", by_cli.to_owned()),
        LinkError::Refused(refusal) => {
            let problem = Problem::from(refusal.clone());
            (problem.status, "Not taken", page::sentence(&problem.error))
        }
        LinkError::Store(error) => {
            tracing::error!(%error, "a link could not be looked up");
            (StatusCode::SERVICE_UNAVAILABLE, "Not now", "Something is wrong here. Try again in a minute.".to_owned())
        }
    };
    answer(status, page::sorry(title, &told))
}

fn answer(status: StatusCode, page: Page) -> Response {
    let mut response = (status, Html(page.html())).into_response();
    let headers = response.headers_mut();
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // Pages behind secret addresses are nothing for search engines.
    headers.insert("x-robots-tag", HeaderValue::from_static("noindex, nofollow"));
    response
}

/// Whether a yes can be given with this view.
pub(super) fn may_approve(seen: &LinkView) -> bool {
    !seen.only_no
}
