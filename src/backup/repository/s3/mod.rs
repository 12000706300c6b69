//! A repository in a bucket of Amazon S3 or of any store that speaks its language.
//!
//! An object is stored under `PREFIX/NAME` with its receipt as user metadata (`seal` is base64 of the signed JSON, `signature`
//! the signature), so that object and receipt appear at once and cannot be parted. `.mainstay/` under
//! the prefix is ours and no object.
//!
//! What a store can do is found out by trying once (`ability`). Where it has conditional writes, two writers of a name
//! never overwrite each other; elsewhere each looks before and after, which finds most, and `abilities` says so.
//!
//! **Repeating.** The client's own repetitions are off. `answer` alone decides what is asked again: lost connections,
//! timeouts, 408, 429, 5xx and, for writes, 409, with pauses of full jitter until [`S3Settings::trying`] is used up. What
//! became of a write whose answer was lost is found out by asking, never guessed.
//!
//! **Is it stored?** Each write carries the SHA-256 that its receipt names, or another digest ([`Checksums`]), and the store
//! refuses a body that does not fit. A 200 counts when the store names that digest in its answer; where it does not, and
//! after each upload in parts, the object is asked for ([`ReadBack`]).

mod ability;
mod answer;
mod change;
pub mod line;
mod parts;
mod read;
mod write;

use super::{Abilities, Deleted, Key, Leased, Listed, Put, Replaced, Repository, RepositoryError, Stored};
use crate::backup::seal::{Receipt, Sealed};
use crate::config::secret::Secret;
use crate::small_file;
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::OnceCell;

/// Objects are sent and fetched in parts of this size once they are larger than [`WHOLE_MAX`]. A part repeated is not much
/// lost, and a few at once fill a fast line.
const PART_BYTES: u64 = 8 << 20;
/// The largest object that goes in one request.
const WHOLE_MAX: u64 = 16 << 20;
/// Parts of one object under way at a time.
const PARTS_AT_ONCE: usize = 4;
/// A line slower than 128 KiB/s is taken for a dead one: so much longer may a request take for each byte.
const TIME_PER_BYTE: Duration = Duration::from_nanos(7_630);
/// A connection within a continent takes a fifth of a second with TLS.
const CONNECT: Duration = Duration::from_secs(5);

/// Access key and secret key.
#[derive(Debug, Clone)]
pub struct S3Credentials {
    /// The access key's id.
    pub access_key: String,
    /// Its secret.
    pub secret_key: Secret,
    /// The token of temporary credentials.
    pub session_token: Option<Secret>,
}

/// The digest that each write carries as a header, for the store to compare with what arrived. The signature covers the
/// bytes too, but not every store looks at that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksums {
    /// SHA-256, which Amazon and most stores take, and name again in their answer.
    #[default]
    WhenSupported,
    /// MD5, which all know, for stores that refuse the other. Objects that are locked have SHA-256 all the same.
    WhenRequired,
}

/// What is asked of the store after it said that an object is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadBack {
    /// Nothing when its answer names the right digest; else length, receipt and, where the store has it, digest.
    #[default]
    Answer,
    /// Length, receipt and, where the store has it, digest, each time: one more request for an object.
    Head,
    /// The object itself: all its bytes travel back.
    Whole,
}

/// Where a bucket is and how to speak to it.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// The bucket. It must exist.
    pub bucket: String,
    /// Goes before each name; `a/b` and `a/b/` are the same. May be empty.
    pub prefix: String,
    /// The store, such as `https://s3.example.com:9000`; none is Amazon's of the region.
    pub endpoint: Option<String>,
    /// The bucket's region; stores without regions take any.
    pub region: String,
    /// The bucket is in the path and not in the host's name, as most stores other than Amazon's want it.
    pub path_style: bool,
    /// A file with the certificates (PEM) of authorities to trust instead of the machine's own.
    pub ca: Option<PathBuf>,
    /// Without them the usual chain: environment, profile, web identity, the machine's role.
    pub credentials: Option<S3Credentials>,
    /// For deleting alone; without them those above.
    pub delete_credentials: Option<S3Credentials>,
    /// For how long what a restore needs is locked (mode COMPLIANCE: nobody can unlock it).
    pub object_lock: Option<Duration>,
    /// For how long pieces of log and frontiers are locked, which whole segments and newer frontiers replace.
    pub piece_lock: Option<Duration>,
    /// See there.
    pub checksums: Checksums,
    /// See there.
    pub read_back: ReadBack,
    /// For how long a request is repeated; the last repetition may end later by the time one may take.
    pub trying: Duration,
    /// How long one request may take, and one second more for each 128 KiB that it carries.
    pub attempt: Duration,
}

impl S3Settings {
    /// A bucket with everything else as usual: repeated for 60 s, 30 s for a request.
    pub fn new(bucket: impl Into<String>) -> S3Settings {
        S3Settings {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: "us-east-1".to_owned(),
            path_style: false,
            ca: None,
            credentials: None,
            delete_credentials: None,
            object_lock: None,
            piece_lock: None,
            checksums: Checksums::default(),
            read_back: ReadBack::default(),
            trying: Duration::from_secs(60),
            attempt: Duration::from_secs(30),
        }
    }
}

/// A bucket as a repository. Clones are the same one.
#[derive(Clone)]
pub struct S3 {
    inner: Arc<Inner>,
}

struct Inner {
    settings: S3Settings,
    client: Client,
    deleter: Client,
    abilities: OnceCell<Abilities>,
    /// Whether the store has answered anything yet.
    answered: AtomicBool,
    /// Whether uploads of killed writers were looked for.
    swept: AtomicBool,
}

impl S3 {
    /// Makes ready to speak to a bucket. Nothing is asked of it yet: `abilities` is the first thing to call where one wants
    /// to know that it answers.
    ///
    /// # Errors
    /// When the settings cannot be: a file of certificates that does not read, a prefix that is none.
    pub async fn open(mut settings: S3Settings) -> Result<S3, RepositoryError> {
        let doing = format!("use the bucket {}", settings.bucket);
        let refused = |detail: String| RepositoryError::Refused { doing: doing.clone(), detail };
        settings.prefix = prefix(&settings.prefix).map_err(refused)?;
        if settings.bucket.is_empty() || settings.bucket.contains('/') {
            return Err(refused(format!(
                "`{}` is no name of a bucket\nhint: what comes after it is the prefix",
                settings.bucket
            )));
        }
        let client = client(&settings, settings.credentials.as_ref()).await.map_err(refused)?;
        let deleter = match &settings.delete_credentials {
            Some(credentials) => self::client(&settings, Some(credentials)).await.map_err(refused)?,
            None => client.clone(),
        };
        let inner = Inner {
            settings,
            client,
            deleter,
            abilities: OnceCell::new(),
            answered: AtomicBool::new(false),
            swept: AtomicBool::new(false),
        };
        Ok(S3 { inner: Arc::new(inner) })
    }

    /// The name in the bucket.
    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.inner.settings.prefix)
    }
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3").field("place", &self.place()).finish_non_exhaustive()
    }
}

/// A prefix as it goes before names: empty, or with one `/` at its end.
fn prefix(text: &str) -> Result<String, String> {
    let text = text.trim_matches('/');
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.chars().any(char::is_control);
    match text {
        "" => Ok(String::new()),
        text if text.split('/').all(plain) && text.len() <= 512 => Ok(format!("{text}/")),
        text => Err(format!("`{}` is no prefix", text.escape_debug())),
    }
}

async fn client(settings: &S3Settings, credentials: Option<&S3Credentials>) -> Result<Client, String> {
    let http = match &settings.ca {
        None => line::client(None)?,
        Some(path) => {
            let pem = small_file::read(path, small_file::TEXT_MAX_BYTES).map_err(|error| error.to_string());
            let client = pem.and_then(|pem| line::client(Some(&pem)));
            client.map_err(|error| format!("{}: {error}", path.display()))?
        }
    };
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .region(Region::new(settings.region.clone()))
        // Once only: `answer` decides what is asked again.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    let loader = match credentials {
        None => loader,
        Some(given) => loader.credentials_provider(Credentials::new(
            &given.access_key,
            given.secret_key.expose(),
            given.session_token.as_ref().map(|token| token.expose().to_owned()),
            None,
            "settings",
        )),
    };
    let mut config = aws_sdk_s3::config::Builder::from(&loader.load().await)
        .force_path_style(settings.path_style)
        // We give digests of our own, and check them on the way back.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

#[async_trait]
impl Repository for S3 {
    fn place(&self) -> String {
        let Inner { settings, .. } = &*self.inner;
        format!("s3://{}/{}", settings.bucket, settings.prefix).trim_end_matches('/').to_owned()
    }

    async fn abilities(&self) -> Result<Abilities, RepositoryError> {
        self.inner.abilities.get_or_try_init(|| self.try_abilities()).await.copied()
    }

    async fn put_new(&self, key: &Key, object: &Sealed) -> Result<Put, RepositoryError> {
        self.write_new(key, object).await
    }

    async fn get(&self, key: &Key) -> Result<Stored, RepositoryError> {
        Ok(self.read(&key.to_string()).await?.0)
    }

    async fn receipt(&self, key: &Key) -> Result<Receipt, RepositoryError> {
        self.read_receipt(&key.to_string()).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        self.read_names(prefix).await
    }

    async fn delete(&self, key: &Key) -> Result<Deleted, RepositoryError> {
        self.remove(&key.to_string()).await
    }

    async fn lease(&self, key: &Key) -> Result<Option<Leased>, RepositoryError> {
        self.read_lease(&key.to_string()).await
    }

    async fn replace_lease(&self, key: &Key, object: &Sealed, seen: Option<&str>) -> Result<Replaced, RepositoryError> {
        self.write_lease(&key.to_string(), object, seen).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_one_form() {
        assert_eq!(prefix("").unwrap(), "");
        assert_eq!(prefix("/").unwrap(), "");
        assert_eq!(prefix("/shop/main").unwrap(), "shop/main/");
        assert_eq!(prefix("shop/main/").unwrap(), "shop/main/");
        for text in ["a//b", "../a", "a/./b", "a\nb"] {
            assert!(prefix(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn settings_that_cannot_be_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, "no certificate").unwrap();
        for settings in [
            S3Settings { ca: Some(dir.path().join("absent.pem")), ..S3Settings::new("shop") },
            S3Settings { ca: Some(ca), ..S3Settings::new("shop") },
            S3Settings { prefix: "a//b".to_owned(), ..S3Settings::new("shop") },
            S3Settings::new("shop/backups"),
            S3Settings::new(""),
        ] {
            let error = S3::open(settings).await.unwrap_err();
            assert!(matches!(error, RepositoryError::Refused { .. }), "{error}");
        }
    }

    #[test]
    fn credentials_are_not_printed() {
        let credentials = S3Credentials {
            access_key: "AKIA".to_owned(),
            secret_key: Secret::new("hush-hush"),
            session_token: Some(Secret::new("token-token")),
        };
        let text = format!("{:?}", S3Settings { credentials: Some(credentials), ..S3Settings::new("shop") });
        assert!(text.contains("AKIA") && !text.contains("hush") && !text.contains("token-token"), "{text}");
    }
}
