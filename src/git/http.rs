//! Carrying the Git smart protocol over http and https, with reqwest and rustls in place of libgit2's own client.

use super::transport::{Target, fail};
use super::{Auth, GitError, Location};
use bytes::Bytes;
use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};
use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use std::future::Future;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Forges redirect once or twice (renamed repository, missing `.git`).
const REDIRECTS_MAX: usize = 5;
/// What we send is the list of commits we have and want; libgit2 sends some KiB at a time.
const REQUEST_MAX_BYTES: usize = 64 << 20;
/// The other side may think this long before the next byte.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Requests run on a small runtime of their own, so that this room can be called from any blocking thread.
fn runtime() -> Result<&'static (tokio::runtime::Runtime, Client), GitError> {
    static RUNTIME: OnceLock<Result<(tokio::runtime::Runtime, Client), String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        // Set already by `main`; a second time is an error that says just that.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("git-http")
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let client = Client::builder()
            .user_agent(concat!("git/2.0 (mainstay ", env!("CARGO_PKG_VERSION"), ")"))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE_MAX)
            // One connection per poll is cheap; five hundred idle ones are not.
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(15))
            .build()
            .map_err(|e| causes(&e))?;
        Ok((runtime, client))
    });
    made.as_ref().map_err(|why| GitError::Git { doing: "make an HTTP client".into(), detail: why.clone() })
}

pub(super) struct Subtransport {
    target: Target,
    /// Where the repository turned out to be, after redirects of the first request.
    base: Arc<Mutex<Option<Url>>>,
}

impl Subtransport {
    pub(super) fn new(target: Target) -> Self {
        Subtransport { target, base: Arc::default() }
    }
}

impl SmartSubtransport for Subtransport {
    fn action(&self, _url: &str, action: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let Location::Http(url) = &self.target.location else {
            return Err(git2::Error::from_str("not an http address"));
        };
        let (service, post) = match action {
            Service::UploadPackLs => ("git-upload-pack", false),
            Service::UploadPack => ("git-upload-pack", true),
            Service::ReceivePackLs => ("git-receive-pack", false),
            Service::ReceivePack => ("git-receive-pack", true),
        };
        Ok(Box::new(Stream {
            url: url.clone(),
            auth: self.target.auth.clone(),
            base: Arc::clone(&self.base),
            service,
            post,
            request: Vec::new(),
            answer: None,
            rest: Bytes::new(),
        }))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One request and its answer: what libgit2 writes is sent at its first read.
struct Stream {
    url: String,
    auth: Option<Auth>,
    base: Arc<Mutex<Option<Url>>>,
    /// The program on the other side, as the protocol names it.
    service: &'static str,
    post: bool,
    request: Vec<u8>,
    answer: Option<Response>,
    rest: Bytes,
}

impl Stream {
    fn unreachable(&self, detail: impl Into<String>) -> GitError {
        GitError::Unreachable { url: self.url.clone(), detail: detail.into() }
    }

    async fn send(&mut self, client: &Client) -> Result<Response, GitError> {
        let service = self.service;
        if self.post {
            let known = self.base.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            let base = known.map_or_else(|| self.url.clone(), String::from);
            let body = std::mem::take(&mut self.request);
            let request = client
                .post(format!("{}/{service}", base.trim_end_matches('/')))
                .header(CONTENT_TYPE, format!("application/x-{service}-request"))
                .header(ACCEPT, format!("application/x-{service}-result"))
                .body(body);
            let answer = self.with_auth(request, &base).send().await.map_err(|e| self.unreachable(causes(&e)))?;
            return self.check(answer, &format!("application/x-{service}-result"));
        }
        let ask = format!("/info/refs?service={service}");
        let mut at = Url::parse(&format!("{}{ask}", self.url.trim_end_matches('/')))
            .map_err(|e| self.unreachable(e.to_string()))?;
        for _ in 0..=REDIRECTS_MAX {
            let answer = self
                .with_auth(client.get(at.clone()), at.as_str())
                .send()
                .await
                .map_err(|e| self.unreachable(causes(&e)))?;
            if !answer.status().is_redirection() {
                // Where the listing came from is where the pack comes from.
                if let Some(base) = at.as_str().strip_suffix(ask.as_str()).and_then(|b| Url::parse(b).ok()) {
                    *self.base.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(base);
                }
                return self.check(answer, &format!("application/x-{service}-advertisement"));
            }
            let next = answer
                .headers()
                .get(LOCATION)
                .and_then(|to| to.to_str().ok())
                .and_then(|to| at.join(to).ok())
                .ok_or_else(|| self.unreachable("it redirects to nowhere"))?;
            if at.scheme() == "https" && next.scheme() != "https" {
                return Err(self.unreachable("it redirects from https to an open connection"));
            }
            if !next.as_str().ends_with(&ask) {
                return Err(self.unreachable("it redirects to something that is no Git repository (a login page?)"));
            }
            at = next;
        }
        Err(self.unreachable("it redirects too often"))
    }

    /// Credentials go to the host they were configured for, and to no other.
    fn with_auth(&self, request: RequestBuilder, to: &str) -> RequestBuilder {
        let origin = |url: &str| Url::parse(url).ok().map(|u| u.origin());
        match &self.auth {
            Some(Auth::Basic { user, password }) if origin(to) == origin(&self.url) => {
                request.basic_auth(user, Some(password))
            }
            _ => request,
        }
    }

    fn check(&self, answer: Response, wanted: &str) -> Result<Response, GitError> {
        let status = answer.status();
        let url = self.url.clone();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let detail = match self.auth {
                    Some(_) => format!("{status}: the user name or token was not accepted"),
                    None => format!("{status}: it wants credentials and none are configured"),
                };
                Err(GitError::Denied { url, detail })
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(GitError::Denied {
                url,
                detail: format!("{status}: there is none, or it is hidden without credentials"),
            }),
            status if !status.is_success() => Err(self.unreachable(format!("it answers {status}"))),
            _ => {
                let kind = answer.headers().get(CONTENT_TYPE).and_then(|k| k.to_str().ok()).unwrap_or("");
                if kind == wanted {
                    Ok(answer)
                } else {
                    Err(self.unreachable("it answers, but not as a Git server does"))
                }
            }
        }
    }

    fn fill(&mut self) -> Result<(), GitError> {
        let (runtime, client) = runtime()?;
        let answer = match self.answer.take() {
            Some(answer) => answer,
            None => wait(runtime, self.send(client))?,
        };
        let answer = self.answer.insert(answer);
        // An empty chunk is no end; `None` is.
        loop {
            match wait(runtime, answer.chunk()) {
                Ok(Some(chunk)) if chunk.is_empty() => {}
                Ok(Some(chunk)) => {
                    self.rest = chunk;
                    return Ok(());
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.unreachable(causes(&error))),
            }
        }
    }
}

/// Waits on this thread, which is a blocking one by this room's contract.
fn wait<F: Future>(runtime: &tokio::runtime::Runtime, future: F) -> F::Output {
    runtime.handle().block_on(future)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.fill().map_err(|error| io::Error::other(fail(error).message().to_owned()))?;
        }
        let n = self.rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.rest.split_to(n));
        Ok(n)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.answer.is_some() || self.request.len() + buffer.len() > REQUEST_MAX_BYTES {
            return Err(io::Error::other("the Git protocol wants to say more than it may"));
        }
        self.request.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error with its causes: reqwest's own first sentence says only that something failed.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words = error.to_string();
        // The URL in reqwest's words is shown by the caller already.
        let words = words.split(" for url (").next().unwrap_or("").to_owned();
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        next = error.source();
    }
    text
}
