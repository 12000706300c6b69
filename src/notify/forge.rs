//! Pull requests: a branch that was pushed is proposed at the repository's forge.
//!
//! Enters: a [`Proposal`], from `deploy`, which has pushed its branch. Leaves: the address of the pull request, or why
//! there is none. What is asked of each kind of forge stands in `dialect`. Asked again for the same branch, it is the one
//! that is there. The token travels in one header and in nothing that is logged, stored or said.

mod dialect;

use super::channels::{Failure, causes, outward_client};
use super::words;
use crate::config::daemon;
use reqwest::header::{HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, StatusCode, Url};
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// Fifty pull requests with everything that a forge tells of each are well under a tenth of this.
const ANSWER_MAX_BYTES: usize = 16 << 20;
/// As much of an error's text as is shown.
const ERROR_MAX_CHARS: usize = 200;

/// What is proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The branch that holds it.
    pub branch: String,
    /// The branch that it is for.
    pub base: String,
    /// The commit that was pushed.
    pub commit: String,
    /// One line.
    pub title: String,
    /// Markdown.
    pub body: String,
}

/// The forge of a repository, ready to be asked.
pub struct Forge {
    settings: daemon::Forge,
    api: Url,
    client: Client,
    /// Who we are there: the header and its value.
    token: (HeaderName, HeaderValue),
}

impl fmt::Debug for Forge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forge").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Forge {
    /// Takes the settings; connects to nothing.
    ///
    /// # Errors
    /// When the address or the token cannot be used; in words, without the token.
    pub fn new(settings: &daemon::Forge) -> Result<Forge, String> {
        let api = Url::parse(&settings.url).map_err(|_| "`forge.url` is no http or https address".to_owned())?;
        if !matches!(api.scheme(), "http" | "https") {
            return Err("`forge.url` is no http or https address".to_owned());
        }
        let client = outward_client().map_err(|error| causes(&error))?;
        let (name, value) = dialect::token(settings.kind, settings.token.expose());
        let mut value =
            HeaderValue::from_str(&value).map_err(|_| "`forge.token` cannot stand in a header".to_owned())?;
        value.set_sensitive(true);
        Ok(Forge { settings: settings.clone(), api, client, token: (name, value) })
    }

    /// Makes the pull request unless there is one for that branch, and returns the address at which people find it.
    ///
    /// # Errors
    /// [`Failure::Later`] when it may work later, [`Failure::Never`] when a person has to do something first.
    pub async fn propose(&self, proposal: &Proposal) -> Result<String, Failure> {
        if let Some(there) = self.find(proposal).await? {
            return Ok(there);
        }
        let (path, body) = dialect::create(&self.settings, proposal);
        let (status, answer) = self.ask(Method::POST, &path, &[], Some(body)).await?;
        if status.is_success() {
            return self.address(&answer);
        }
        // Whoever came between, this one before it was killed perhaps.
        let said = said(&answer);
        if dialect::is_there_already(status, &said) {
            let there = self.find(proposal).await?;
            return there.ok_or_else(|| Failure::later(format!("{}, and shows none", self.refusal(status, &said))));
        }
        Err(self.refused(status, &said))
    }

    /// The pull request of that branch, open or, with the very commit, of any state.
    ///
    /// # Errors
    /// As for [`propose`](Self::propose).
    pub async fn find(&self, proposal: &Proposal) -> Result<Option<String>, Failure> {
        for page in 1..=dialect::pages(self.settings.kind) {
            let (path, query) = dialect::list(&self.settings, proposal, page);
            let (status, answer) = self.ask(Method::GET, &path, &query, None).await?;
            if !status.is_success() {
                return Err(self.refused(status, &said(&answer)));
            }
            let Value::Array(all) = &answer else {
                return Err(Failure::Never(format!(
                    "{} answered with something that is no list of pull requests\nhint: is `forge.url` where its API begins?",
                    self.host()
                )));
            };
            if let Some(found) = all.iter().find(|one| dialect::is_it(self.settings.kind, one, proposal)) {
                return self.address(found).map(Some);
            }
            if all.is_empty() {
                break;
            }
        }
        Ok(None)
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), Failure> {
        let mut url = self.api.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(method, url).header(self.token.0.clone(), self.token.1.clone());
        for (name, value) in dialect::headers(self.settings.kind) {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let failed = |error: reqwest::Error| {
            Failure::later(self.clean(&format!("{}: {}", self.host(), causes(&error.without_url()))))
        };
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let after: Option<u64> = header(RETRY_AFTER.as_str()).and_then(|value| value.parse().ok());
        // GitHub says so with 403: https://docs.github.com/rest, "rate limits".
        let too_many =
            status == StatusCode::FORBIDDEN && (after.is_some() || header("x-ratelimit-remaining") == Some("0"));
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > ANSWER_MAX_BYTES {
                let why = format!("{} answered with more than {ANSWER_MAX_BYTES} bytes", self.host());
                return Err(Failure::later(why));
            }
        }
        let parsed: Option<Value> = serde_json::from_slice(&bytes).ok();
        let passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        if passing || too_many || status.is_server_error() {
            let why = self.refusal(status, &parsed.as_ref().map(said).unwrap_or_default());
            return Err(Failure::Later { why, after: after.map(Duration::from_secs) });
        }
        match parsed {
            Some(parsed) => Ok((status, parsed)),
            None if status.is_success() => Err(Failure::Never(format!(
                "{} answered {status} with something that is no JSON\nhint: is `forge.url` where its API begins?",
                self.host()
            ))),
            None => Ok((status, Value::Null)),
        }
    }

    /// Where people look at it. It is shown and mailed as a link, so it has to be one.
    fn address(&self, one: &Value) -> Result<String, Failure> {
        let text = dialect::address(self.settings.kind, one).unwrap_or_default();
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        match url.map(String::from).filter(|url| url.len() <= 2_000) {
            Some(url) if !url.contains(self.settings.token.expose()) => Ok(url),
            _ => Err(Failure::Never(format!("{} made a pull request and did not say where it is", self.host()))),
        }
    }

    fn host(&self) -> String {
        let port = self.api.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{port}", self.api.host_str().unwrap_or("the forge"))
    }

    fn refusal(&self, status: StatusCode, said: &str) -> String {
        let said = self.clean(said);
        let colon = if said.is_empty() { "" } else { ": " };
        format!("{} answered {status}{colon}{said}", self.host())
    }

    fn refused(&self, status: StatusCode, said: &str) -> Failure {
        let project = &self.settings.project;
        let hint = match status {
            StatusCode::UNAUTHORIZED => {
                "\nhint: `forge.token` of the repository is none that it takes, or no longer".to_owned()
            }
            StatusCode::FORBIDDEN => {
                format!("\nhint: whose `forge.token` it is must be allowed to open pull requests of {project}")
            }
            StatusCode::NOT_FOUND => {
                format!("\nhint: `forge.project` is {project}: is it called so, and may `forge.token` see it?")
            }
            status if status.is_redirection() => {
                "\nhint: `forge.url` or `forge.project` has moved; nobody is followed with the token".to_owned()
            }
            _ => String::new(),
        };
        Failure::Never(format!("{}{hint}", self.refusal(status, said)))
    }

    /// What a forge says, fit to be shown; one that repeats the token is not repeated.
    fn clean(&self, text: &str) -> String {
        let text = text.replace(self.settings.token.expose(), "(secret)");
        words::line(&text).chars().take(ERROR_MAX_CHARS).collect()
    }
}

/// The words in an error's document: `message` as a text or a list, and those of `errors`.
fn said(answer: &Value) -> String {
    let mut all = Vec::new();
    let mut take = |value: &Value| match value {
        Value::String(text) => all.push(text.clone()),
        Value::Array(list) => all.extend(list.iter().filter_map(|one| one.as_str().map(str::to_owned))),
        _ => {}
    };
    take(&answer["message"]);
    take(&answer["error"]);
    for one in answer["errors"].as_array().into_iter().flatten() {
        take(if one.is_string() { one } else { &one["message"] });
    }
    all.join("; ")
}
