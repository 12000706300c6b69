//! The daemon's API as commands see it: over the Unix socket in the state folder, or over TCP when `MAINSTAY_URL`
//! names a daemon. Requests go in, typed answers or a [`Failure`] with the right exit code come out.

use super::exit::{Exit, Failure};
use super::place::Place;
use crate::model::RunId;
use crate::model::api::{ApiError, LogLineView, RunDetail, RunFilter, RunSummary};
use crate::small_file;
use bytes::BytesMut;
use futures_util::{Stream, StreamExt};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::time::Duration;

/// Names a daemon elsewhere, such as `https://ci.example.com`.
pub const URL_VARIABLE: &str = "MAINSTAY_URL";
/// Names the file with its token; without it the state folder's is taken.
pub const TOKEN_VARIABLE: &str = "MAINSTAY_TOKEN_FILE";

/// A daemon that does not take a connection in this time is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A little more than the daemon's own limit for one request, so that its answer arrives.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);
/// What may be held of log lines not yet read: one long line, escaped, and one more read of the connection.
const LINE_MAX: usize = 2 * 1024 * 1024;

/// A way to the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    tried: String,
    hints: Vec<String>,
}

impl Client {
    /// Chooses the way; connects only with the first request.
    ///
    /// # Errors
    /// When `MAINSTAY_URL` or the token file is unusable.
    pub fn new(place: &Place) -> Result<Client, Failure> {
        match std::env::var(URL_VARIABLE) {
            Ok(url) if !url.trim().is_empty() => Self::over_tcp(url.trim(), place),
            _ => Self::over_socket(place),
        }
    }

    fn over_socket(place: &Place) -> Result<Client, Failure> {
        let socket = place.socket();
        let http = reqwest::Client::builder().unix_socket(socket.clone()).connect_timeout(CONNECT_WITHIN);
        let start = match &place.config {
            Some(file) => format!("start it with `mainstay serve --config {}`", file.display()),
            None => "start it with `mainstay serve`; `mainstay init` writes a configuration first".into(),
        };
        Ok(Client {
            http: http.build().map_err(|e| Failure::new(Exit::Wrong, e))?,
            base: Url::parse("http://localhost/").map_err(|e| Failure::wrong(format!("build a URL: {e}")))?,
            token: None,
            tried: socket.display().to_string(),
            hints: vec![
                start,
                format!(
                    "looked there because {}; `--state DIR`, MAINSTAY_STATE or {URL_VARIABLE} name another daemon",
                    place.why
                ),
            ],
        })
    }

    fn over_tcp(url: &str, place: &Place) -> Result<Client, Failure> {
        let base = Url::parse(url).map_err(|e| Failure::wrong(format!("use {URL_VARIABLE}={url}: {e}")))?;
        let here = matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if base.scheme() != "https" && !(base.scheme() == "http" && here) {
            return Err(Failure::wrong(format!(
                "use {URL_VARIABLE}={url}: the token would cross the network in clear text"
            ))
            .hint("use https, or http to this machine through a tunnel"));
        }
        let file = std::env::var_os(TOKEN_VARIABLE).map_or_else(|| place.token(), PathBuf::from);
        let token = small_file::read_named(&file, small_file::KEY_MAX_BYTES).map_err(|error| {
            Failure::wrong(format!("read the token file {}: {error}", file.display()))
                .hint(format!("copy the file `token` of the daemon's state folder, and name it in {TOKEN_VARIABLE}"))
        })?;
        let http =
            reqwest::Client::builder().connect_timeout(CONNECT_WITHIN).redirect(reqwest::redirect::Policy::none());
        Ok(Client {
            http: http.build().map_err(|e| Failure::new(Exit::Wrong, e))?,
            base,
            token: Some(token.trim().to_owned()),
            tried: url.to_owned(),
            hints: vec![format!("looked there because {URL_VARIABLE} says so")],
        })
    }

    /// GET and read the answer.
    ///
    /// # Errors
    /// With exit code 3 when nobody answers, 4 when refused, 2 when the request is wrong.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, Failure> {
        let response = self.send(Method::GET, path, query, None::<&()>, Some(ANSWER_WITHIN)).await?;
        self.document(response).await
    }

    /// POST a document and read the answer.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let response = self.send(Method::POST, path, &[], Some(body), Some(ANSWER_WITHIN)).await?;
        self.document(response).await
    }

    /// The number behind `12`, `#12` or `latest`.
    ///
    /// # Errors
    /// When it is none of these, or there is no run yet.
    pub async fn run_number(&self, text: &str) -> Result<RunId, Failure> {
        if text == "latest" {
            let newest: Vec<RunSummary> = self.get("runs", &[("limit", "1".into())]).await?;
            return newest.first().map(|run| run.id).ok_or_else(|| {
                Failure::wrong("find the latest run: there is none yet").hint("`mainstay trigger REPO` starts one")
            });
        }
        text.parse().map_err(|_| {
            Failure::wrong(format!("find the run `{text}`: a run is `12`, `#12` or `latest`"))
                .hint("`mainstay runs` lists them")
        })
    }

    /// One run.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn run(&self, run: RunId) -> Result<RunDetail, Failure> {
        self.get(&format!("runs/{run}"), &[]).await
    }

    /// A list of runs.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, Failure> {
        let mut query = vec![("limit", filter.limit.to_string())];
        query.extend(filter.repo.as_ref().map(|repo| ("repo", repo.to_string())));
        query.extend(filter.status.map(|status| ("status", status.as_str().to_owned())));
        query.extend(filter.before.map(|before| ("before", before.to_string())));
        self.get("runs", &query).await
    }

    /// Log lines of a run, as they come.
    ///
    /// # Errors
    /// As for [`Client::get`]; a broken stream yields one error and ends.
    pub async fn log_lines(
        &self,
        run: RunId,
        query: &[(&str, String)],
    ) -> Result<impl Stream<Item = Result<LogLineView, Failure>> + use<>, Failure> {
        let response = self.send(Method::GET, &format!("runs/{run}/logs"), query, None::<&()>, None).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let client = self.clone();
        let bytes = response.bytes_stream().boxed();
        Ok(futures_util::stream::unfold((bytes, BytesMut::new(), client), |(mut bytes, mut held, client)| async move {
            loop {
                if let Some(end) = memchr::memchr(b'\n', &held) {
                    let line = held.split_to(end + 1);
                    let read = serde_json::from_slice(&line)
                        .map_err(|e| Failure::unreachable(format!("read the log stream of {}: {e}", client.tried)));
                    return Some((read, (bytes, held, client)));
                }
                let broken = match bytes.next().await {
                    Some(Ok(more)) if held.len() + more.len() <= LINE_MAX => {
                        held.extend_from_slice(&more);
                        continue;
                    }
                    Some(Ok(_)) => "a line is too long".to_owned(),
                    Some(Err(error)) => innermost(&error),
                    // Half a line at the end means that the daemon was stopped in the middle of it.
                    None if !held.is_empty() => "it ended in the middle of a line".to_owned(),
                    None => return None,
                };
                let failure = Failure::unreachable(format!("read the log stream of {}: {broken}", client.tried));
                return Some((Err(failure), (futures_util::stream::empty().boxed(), BytesMut::new(), client)));
            }
        }))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
        within: Option<Duration>,
    ) -> Result<Response, Failure> {
        let mut url =
            self.base.join(&format!("api/v1/{path}")).map_err(|e| Failure::wrong(format!("build a URL: {e}")))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(within) = within {
            request = request.timeout(within);
        }
        request.send().await.map_err(|error| self.nobody(&error))
    }

    async fn document<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let bytes = response.bytes().await.map_err(|error| self.nobody(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::unreachable(format!("read the answer of {}: {error}", self.tried))
                .hint("daemon and command may be of different versions; `mainstay status` shows the daemon's")
        })
    }

    fn nobody(&self, error: &reqwest::Error) -> Failure {
        let cause = innermost(error);
        let mut failure = if error.is_timeout() && !error.is_connect() {
            return Failure::unreachable(format!(
                "get an answer from {} within {} s",
                self.tried,
                ANSWER_WITHIN.as_secs()
            ));
        } else {
            Failure::unreachable(format!("reach the daemon: nobody answers on {} ({cause})", self.tried))
        };
        if cause.contains("ermission denied") {
            failure =
                failure.hint("the socket takes only the daemon's own user and root: try `sudo -u USER mainstay …`");
        }
        failure.hints.extend(self.hints.iter().cloned());
        failure
    }

    async fn refused(&self, response: Response) -> Failure {
        let status = response.status();
        let told = response.bytes().await.ok().and_then(|bytes| serde_json::from_slice::<ApiError>(&bytes).ok());
        let told = told.unwrap_or_else(|| ApiError {
            error: format!("do that: {} answered {status}", self.tried),
            hints: vec!["is that a Mainstay daemon?".into()],
        });
        let exit = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Refused,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Exit::Unreachable,
            status if status.is_server_error() => Exit::Unreachable,
            _ => Exit::Wrong,
        };
        let mut failure = Failure::new(exit, anyhow::anyhow!(told.error));
        failure.hints = told.hints;
        failure
    }
}

/// The innermost cause: `No such file or directory`, not `error sending request`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
