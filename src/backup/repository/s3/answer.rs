//! What a store answered, whether it is worth asking again, and what a person can do about it.

use super::super::RepositoryError;
use super::{S3, TIME_PER_BYTE};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The first pause is up to this; each next one up to twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// No pause is longer, so that a store that is back is found soon.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A store that has never answered and refuses connections is most likely named wrongly: no use in waiting for long.
const NEVER_ANSWERED: Duration = Duration::from_secs(3);

/// Why one request did not succeed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) status: Option<u16>,
    /// S3's name for it, such as `NoSuchKey`; not every answer has one.
    pub(super) code: Option<String>,
    /// In words.
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Asked again, the answer may be another.
    Passing,
    /// There was none: no connection, no such host.
    NoConnection,
    /// It stays.
    Final,
}

impl Failure {
    /// Something that passes, found by us.
    pub(super) fn passing(text: impl Into<String>) -> Failure {
        Failure { status: None, code: None, text: text.into(), kind: Kind::Passing }
    }

    pub(super) fn of<E>(error: SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = error.raw_response().map(|raw| raw.status().as_u16());
        let deleted = error.raw_response().is_some_and(|raw| raw.headers().get("x-amz-delete-marker") == Some("true"));
        let code = match (deleted, error.code()) {
            (true, _) => Some(DELETE_MARKER.to_owned()),
            (false, code) => code.map(str::to_owned),
        };
        let said = error.message().map(str::to_owned);
        let (kind, text) = match &error {
            SdkError::TimeoutError(_) => (Kind::Passing, "no answer in time".to_owned()),
            SdkError::DispatchFailure(failure) => {
                let text = chain(&error);
                let kind = if text.contains("invalid peer certificate") || text.contains(NO_TLS) || failure.is_user() {
                    Kind::Final
                } else if ["refused", "lookup", "resolve", "unreachable"].iter().any(|word| text.contains(word)) {
                    Kind::NoConnection
                } else if text.contains("credential") {
                    Kind::Final
                } else {
                    Kind::Passing
                };
                (kind, text)
            }
            // Cut in the middle, or no answer of S3's; whatever its status says, it was not read to its end.
            SdkError::ResponseError(_) => (Kind::Passing, chain(&error)),
            SdkError::ConstructionFailure(_) => (Kind::Final, chain(&error)),
            _ => {
                let status = status.unwrap_or_default();
                let kind = if passes(status) || code.as_deref().is_some_and(code_passes) {
                    Kind::Passing
                } else {
                    Kind::Final
                };
                let words = [code.clone(), said].into_iter().flatten().collect::<Vec<_>>().join(": ");
                (
                    kind,
                    if words.is_empty() {
                        format!("the store answered {status}")
                    } else {
                        format!("the store answered {status} {words}")
                    },
                )
            }
        };
        Failure { status, code, text, kind }
    }

    pub(super) fn is(&self, status: u16) -> bool {
        self.status == Some(status)
    }

    pub(super) fn has_code(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// A write that had to be the first one was not.
    pub(super) fn taken(&self) -> bool {
        self.is(412) || self.has_code(&["PreconditionFailed"])
    }

    /// Another write of the same name was under way; which of them will be the one is not said.
    pub(super) fn conflict(&self) -> bool {
        self.is(409)
    }

    /// The store says of its own accord that there is no such object. A 404 without that word may come from anybody.
    pub(super) fn absent(&self) -> bool {
        self.is(404) && self.has_code(&["NoSuchKey"])
    }

    /// It does not know this kind of request.
    pub(super) fn unknown_request(&self) -> bool {
        self.is(501) || self.is(405) || self.has_code(&["NotImplemented"])
    }

    /// Rights are missing, while the credentials themselves are good.
    pub(super) fn denied(&self) -> bool {
        self.has_code(&["AccessDenied", "ObjectLocked"]) || self.is(403) && self.code.is_none()
    }

    pub(super) fn passes(&self) -> bool {
        self.kind != Kind::Final
    }

    /// As an error for the caller.
    pub(super) fn error(self, doing: &str, s3: &S3) -> RepositoryError {
        let doing = doing.to_owned();
        let hints: String = hints(&self, s3).iter().map(|hint| format!("\nhint: {hint}")).collect();
        let detail = format!("{}{hints}", self.text);
        match self.kind {
            Kind::Final => RepositoryError::Refused { doing, detail },
            Kind::Passing | Kind::NoConnection => RepositoryError::Unreachable { doing, detail },
        }
    }
}

/// What stands in an error when the answer to a TLS greeting was none of TLS.
const NO_TLS: &str = "InvalidContentType";

/// Our own name for a 404 of an object that somebody hid behind a delete marker.
const DELETE_MARKER: &str = "delete-marker";

fn passes(status: u16) -> bool {
    matches!(status, 408 | 425 | 429) || (500..600).contains(&status) && status != 501
}

fn code_passes(code: &str) -> bool {
    let busy =
        ["RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError", "ServiceUnavailable"];
    // What arrived was not what was sent.
    let bent = ["BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"];
    // Temporary credentials are fetched anew for the next request.
    busy.contains(&code) || bent.contains(&code) || code == "ExpiredToken"
}

/// All of an error's causes, each once.
fn chain<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let mut words: Vec<String> = Vec::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
        cause = error.source();
    }
    if words.is_empty() { DisplayErrorContext(error).to_string() } else { words.join(": ") }
}

fn hints(failure: &Failure, s3: &S3) -> Vec<String> {
    let bucket = &s3.inner.settings.bucket;
    let endpoint = s3.inner.settings.endpoint.as_deref().unwrap_or("Amazon's own endpoint");
    let text = failure.text.as_str();
    let one = |hint: String| vec![hint];
    match failure.code.as_deref() {
        Some("NoSuchBucket") => {
            one(format!("make the bucket `{bucket}` first, or mend its name; Mainstay makes no buckets"))
        }
        Some("InvalidAccessKeyId") => one(format!("the access key is not known at {endpoint}: is it another store's?")),
        Some("SignatureDoesNotMatch") => vec![
            "the secret key is not that of the access key".to_owned(),
            "or something between changes requests: a proxy must pass `Host` on as it came".to_owned(),
        ],
        Some("RequestTimeTooSkewed") => one("set this machine's clock: the store's differs".to_owned()),
        Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            one(format!("the bucket `{bucket}` is in another region than `{}`", s3.inner.settings.region))
        }
        Some("AccessDenied") => one(rights(bucket, &s3.inner.settings.prefix)),
        Some("InvalidRequest") if s3.inner.settings.object_lock.is_some() || s3.inner.settings.piece_lock.is_some() => {
            one(format!(
                "objects are to be locked: does the bucket `{bucket}` have object lock? it is given when a bucket is made"
            ))
        }
        Some(DELETE_MARKER) => one(format!(
            "somebody deleted it, and the bucket `{bucket}` keeps what was deleted: remove the delete marker to have it back"
        )),
        _ if failure.is(403) => one(rights(bucket, &s3.inner.settings.prefix)),
        _ if failure.is(301) || failure.is(307) => vec![
            format!("the bucket `{bucket}` is in another region than `{}`", s3.inner.settings.region),
            format!("or {endpoint} sends elsewhere, and is no S3 store"),
        ],
        _ if failure.is(200) => one(format!("is {endpoint} an S3 store? its answer is none of S3's")),
        _ if text.contains("invalid peer certificate") => vec![
            format!("give the certificate of the authority that signed {endpoint}'s with `ca`"),
            "or the endpoint has a name that its certificate does not".to_owned(),
        ],
        _ if text.contains(NO_TLS) => one(format!("does {endpoint} speak http:// and not https://?")),
        _ if text.contains("credential") => {
            one("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the keys in the settings"
                .to_owned())
        }
        _ if failure.kind == Kind::NoConnection => one(format!("is {endpoint} right, and is the store running?")),
        _ if failure.is(404) => one(format!("is {endpoint} an S3 store, and does it have the bucket `{bucket}`?")),
        _ => Vec::new(),
    }
}

fn rights(bucket: &str, prefix: &str) -> String {
    format!(
        "these credentials need s3:ListBucket on `{bucket}`, and s3:GetObject, s3:PutObject and s3:AbortMultipartUpload on `{bucket}/{prefix}*`"
    )
}

/// How long something has been tried, and what comes next.
pub(super) struct Tries<'a> {
    s3: &'a S3,
    began: Instant,
    count: u32,
}

impl Tries<'_> {
    /// Waits before the next try, or gives the failure back when it stays or the time is used up.
    pub(super) async fn again(&mut self, failure: Failure) -> Result<(), Failure> {
        self.count += 1;
        let allowed = match failure.kind {
            Kind::Final if !failure.conflict() => return Err(failure),
            Kind::NoConnection if !self.s3.inner.answered.load(Ordering::Relaxed) => {
                NEVER_ANSWERED.min(self.s3.inner.settings.trying)
            }
            _ => self.s3.inner.settings.trying,
        };
        let pause = pause(self.count);
        if self.began.elapsed() + pause > allowed {
            let text =
                format!("{}; tried {} times in {:.1} s", failure.text, self.count, self.began.elapsed().as_secs_f64());
            // What was in the way to the end is no refusal.
            return Err(Failure {
                text,
                kind: if failure.conflict() { Kind::Passing } else { failure.kind },
                ..failure
            });
        }
        tracing::debug!(tries = self.count, pause_ms = pause.as_millis(), "the store did not do it: {}", failure.text);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Full jitter: anything from nothing to the bound, so that many writers do not come back at once.
fn pause(count: u32) -> Duration {
    let bound = PAUSE_FIRST.saturating_mul(1 << count.saturating_sub(1).min(10)).min(PAUSE_MAX);
    let bound = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
    // Without random numbers the bound itself will do.
    let random = getrandom::u64().map_or(bound, |random| random % (bound + 1));
    Duration::from_micros(random)
}

impl S3 {
    pub(super) fn tries(&self) -> Tries<'_> {
        Tries { s3: self, began: Instant::now(), count: 0 }
    }

    /// One request that carries `bytes` there or back, in the time that one may take.
    pub(super) async fn once<T, E>(
        &self,
        bytes: u64,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let allowed = self.allowed(bytes);
        let done = match tokio::time::timeout(allowed, request).await {
            Ok(done) => done.map_err(Failure::of),
            Err(_) => Err(Failure::passing(format!("no answer within {:.1} s", allowed.as_secs_f64()))),
        };
        if done.as_ref().is_ok() || done.as_ref().is_err_and(|failure| failure.status.is_some()) {
            note(&self.inner.answered);
        }
        done
    }

    /// How long one request with so many bytes may take.
    pub(super) fn allowed(&self, bytes: u64) -> Duration {
        self.inner.settings.attempt + TIME_PER_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// A request that may be repeated as it is, until it succeeds, is refused, or the time is used up.
    pub(super) async fn tried<T, E, F>(&self, mut request: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let mut tries = self.tries();
        loop {
            match self.once(0, request()).await {
                Ok(done) => return Ok(done),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }
}

/// Written once; asking first keeps the cache line shared.
fn note(answered: &AtomicBool) {
    if !answered.load(Ordering::Relaxed) {
        answered.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_never_the_same() {
        for count in 1..100 {
            assert!(pause(count) <= PAUSE_MAX);
        }
        let many: Vec<_> = (0..32).map(|_| pause(7)).collect();
        assert!(many.iter().any(|pause| *pause != many[0]), "{many:?}");
        assert!((0..200).map(|_| pause(1)).all(|pause| pause <= PAUSE_FIRST));
    }

    #[test]
    fn an_answer_of_the_store_passes_or_stays() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(passes(status), "{status}");
        }
        for status in [200, 301, 400, 403, 404, 409, 412, 501] {
            assert!(!passes(status), "{status}");
        }
    }
}
