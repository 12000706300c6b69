//! One question of one health rule, and its answer in words.
//!
//! In come a rule and what the target knows; out comes a [`Probe`]. Every way of not getting an answer is an answer:
//! nothing here fails. Called by `watch`.

use super::{Surroundings, expectation, satisfies, shown};
use crate::config::daemon::environment::{Expect, HealthCheck, HealthRule};
use crate::deploy::shell;
use crate::model::deploy::Probe;
use jiff::Timestamp;
use reqwest::{Client, Response, Url};
use serde_json::Value;
use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// So much of a body is read: a health page is a line, a metric's answer some hundred.
const BODY_MAX_BYTES: usize = 1 << 20;
/// What a command said last is shown up to this length.
const SAID_MAX_CHARS: usize = 200;

/// No connection is kept: the next question must reach whoever serves then, and a name is looked up every time. No proxy
/// and no redirect either, for then somebody else would answer.
static CLIENT: LazyLock<Result<Client, String>> = LazyLock::new(|| {
    // Set already by `main`; a second time is an error that says just that.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("mainstay/", env!("CARGO_PKG_VERSION"), " (health)"))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()
        .map_err(|error| root_cause(&error))
});

/// Whether it held, and in words.
type Answer = Result<String, String>;

/// Asks one rule once. Takes at most the rule's timeout, and a moment.
pub async fn ask(rule_index: usize, rule: &HealthRule, around: &Surroundings) -> Probe {
    let (at, began) = (Timestamp::now(), Instant::now());
    let limit = rule.timeout.0;
    let asking = async {
        match &rule.check {
            HealthCheck::Http { url, status, body, latency } => {
                http(url, status, body.as_deref(), latency.map(|span| span.0), began).await
            }
            HealthCheck::Tcp(address) => tcp(address, began).await,
            HealthCheck::Command(line) => command(line, limit).await,
            HealthCheck::Restarts(most) => restarts(*most, *around),
            HealthCheck::Prometheus { url, query, expect } => prometheus(url, query, *expect).await,
        }
    };
    let answer = match tokio::time::timeout(limit, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {}", rule.timeout)),
    };
    let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (good, said) = match answer {
        Ok(said) => (true, said),
        Err(said) => (false, said),
    };
    Probe { rule: rule_index, at, good, took_us, said }
}

/// `3 ms`, `1.2 s`.
fn took(time: Duration) -> String {
    match time.as_millis() {
        0 => "0 ms".to_owned(),
        millis @ 1..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// The words at the bottom of an error, where the system speaks.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    while let Some(cause) = at.source() {
        at = cause;
    }
    if let Some(io) = at.downcast_ref::<io::Error>() {
        return io_words(io);
    }
    shown(&at.to_string())
}

fn io_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "the connection was reset".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection ended before the answer".to_owned(),
        _ => {
            let said = error.to_string();
            // The number says nothing that the words do not.
            shown(said.split(" (os error").next().unwrap_or_default())
        }
    }
}

fn client() -> Result<&'static Client, String> {
    CLIENT.as_ref().map_err(|why| format!("there is no HTTP client: {why}"))
}

/// The body, cut where it is too long.
async fn body_of(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| root_cause(&error))? {
        body.extend_from_slice(&part);
        if body.len() >= BODY_MAX_BYTES {
            body.truncate(BODY_MAX_BYTES);
            break;
        }
    }
    Ok(body)
}

async fn http(url: &str, wanted: &[u16], text: Option<&str>, latency: Option<Duration>, began: Instant) -> Answer {
    let response = client()?.get(url).send().await.map_err(|error| root_cause(&error))?;
    let status = response.status();
    let is_wanted = if wanted.is_empty() { status.is_success() } else { wanted.contains(&status.as_u16()) };
    // Read also where nobody looks at it: an answer that breaks off in the middle is none.
    let body = body_of(response).await.map_err(|why| format!("{}, and then {why}", status.as_u16()))?;
    let time = began.elapsed();
    let said = format!("{} in {}", status.as_u16(), took(time));
    if !is_wanted {
        return Err(said);
    }
    if let Some(text) = text
        && memchr::memmem::find(&body, text.as_bytes()).is_none()
    {
        let cut = if body.len() == BODY_MAX_BYTES { "the first MiB of the body" } else { "the body" };
        return Err(format!("{}, but {cut} has no \"{}\"", status.as_u16(), shown(text)));
    }
    match latency {
        Some(most) if time > most => Err(format!("{said}, more than {}", took(most))),
        _ => Ok(said),
    }
}

async fn tcp(address: &str, began: Instant) -> Answer {
    match tokio::net::TcpStream::connect(address).await {
        Ok(_) => Ok(format!("connected in {}", took(began.elapsed()))),
        Err(error) => Err(io_words(&error)),
    }
}

async fn command(line: &str, timeout: Duration) -> Answer {
    let ended = shell::run(&shell::Line { line, folder: None, environment: &[], timeout }).await;
    let ended = ended.map_err(|error| format!("the command cannot be started: {}", io_words(&error)))?;
    let last: String =
        ended.last_line().unwrap_or_default().chars().take(SAID_MAX_CHARS).flat_map(char::escape_debug).collect();
    let with = |what: String| if last.is_empty() { what } else { format!("{what}: {last}") };
    match ended.code {
        Some(0) => Ok(with("exit 0".to_owned())),
        Some(code) => Err(with(format!("exit {code}"))),
        None => Err(with("no end in time, killed".to_owned())),
    }
}

fn restarts(most: u64, around: Surroundings) -> Answer {
    match around.restarts_since {
        None => Err("nobody has counted the restarts yet".to_owned()),
        Some(count) => {
            let said = format!("{count} restart{} since it serves", if count == 1 { "" } else { "s" });
            if count <= most { Ok(said) } else { Err(format!("{said}, more than {most}")) }
        }
    }
}

async fn prometheus(server: &str, query: &str, expect: Expect) -> Answer {
    let mut url = Url::parse(server).map_err(|error| format!("`{}` is no address: {error}", shown(server)))?;
    match url.path_segments_mut() {
        Ok(mut path) => path.pop_if_empty().extend(["api", "v1", "query"]),
        Err(()) => return Err(format!("`{}` is no address", shown(server))),
    };
    url.query_pairs_mut().append_pair("query", query);
    let response = client()?.get(url).send().await.map_err(|error| root_cause(&error))?;
    let status = response.status();
    let body = body_of(response).await?;
    let document: Option<Value> = serde_json::from_slice(&body).ok();
    match document {
        Some(document) if document["status"] == "success" => judge_answer(&document["data"], expect),
        Some(document) if document["error"].is_string() => {
            Err(format!("{}: {}", status.as_u16(), shown(document["error"].as_str().unwrap_or_default())))
        }
        _ if status.is_success() => Err("200, but the answer is none of Prometheus".to_owned()),
        _ => Err(format!("{} from Prometheus", status.as_u16())),
    }
}

/// What the answer of a query says about the expectation.
fn judge_answer(data: &Value, expect: Expect) -> Answer {
    let number = |sample: &Value| sample[1].as_str().and_then(|text| text.parse::<f64>().ok());
    let values: Vec<(String, Option<f64>)> = match data["resultType"].as_str() {
        Some("scalar") => vec![(String::new(), number(&data["result"]))],
        Some("vector") => {
            let series = data["result"].as_array().map_or(&[][..], Vec::as_slice);
            series.iter().map(|one| (labels(&one["metric"]), number(&one["value"]))).collect()
        }
        other => {
            let kind = other.unwrap_or("nothing known");
            return Err(format!("the query answers with {}; it has to give numbers of one moment", shown(kind)));
        }
    };
    let Some(((_, first), rest)) = values.split_first() else {
        return Err("the query found nothing".to_owned());
    };
    for (name, value) in &values {
        let of = if name.is_empty() { String::new() } else { format!(" of {name}") };
        match value {
            None => return Err(format!("the value{of} is no number")),
            Some(value) if value.is_nan() => return Err(format!("NaN{of}")),
            Some(value) if !satisfies(expect, *value) => {
                return Err(format!("{value}{of}, not {}", expectation(expect)));
            }
            Some(_) => {}
        }
    }
    Ok(match rest.len() {
        0 => format!("{}, {}", first.unwrap_or_default(), expectation(expect)),
        _ => format!("all {} values {}", values.len(), expectation(expect)),
    })
}

/// The labels of a series, as Prometheus writes them, as far as they fit.
fn labels(metric: &Value) -> String {
    let Some(labels) = metric.as_object().filter(|labels| !labels.is_empty()) else { return String::new() };
    let name = labels.get("__name__").and_then(Value::as_str).unwrap_or_default();
    let pairs: Vec<_> = labels
        .iter()
        .filter(|(key, _)| *key != "__name__")
        .map(|(key, value)| format!("{key}=\"{}\"", value.as_str().unwrap_or_default()))
        .collect();
    shown(&format!("{name}{{{}}}", pairs.join(",")))
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
