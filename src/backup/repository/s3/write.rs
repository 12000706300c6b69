//! New objects: stored once, known to be stored, or known not to be.

use super::super::{DumpItem, Item, Key, Put, Repository as _, RepositoryError};
use super::answer::Failure;
use super::read::{SEAL, SIGNATURE, base64_of, sound};
use super::{Checksums, ReadBack, S3, WHOLE_MAX};
use crate::backup::seal::Sealed;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::ObjectLockMode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// S3 takes 2 KB of metadata, names included.
const METADATA_BYTES_MAX: usize = 2_000;

/// What a write is told besides the bytes.
pub(super) struct Terms {
    pub(super) metadata: HashMap<String, String>,
    /// Until when nobody may delete it.
    pub(super) locked_until: Option<DateTime>,
    /// SHA-256 of the bytes in base64, where that is the digest to send.
    pub(super) sha256: Option<String>,
    /// What must be so for the write to happen.
    pub(super) only_if: OnlyIf,
}

/// What must be so for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OnlyIf {
    Always,
    /// Nothing has the name.
    New,
    /// What has the name is this version.
    Version(String),
}

impl OnlyIf {
    pub(super) fn none_match(&self) -> Option<String> {
        (*self == OnlyIf::New).then(|| "*".to_owned())
    }

    pub(super) fn matches(&self) -> Option<String> {
        match self {
            OnlyIf::Version(version) => Some(version.clone()),
            _ => None,
        }
    }
}

/// Whether the store, when it said that it has the object, named the digest of our bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) digest: bool,
}

impl S3 {
    pub(super) async fn write_new(&self, key: &Key, object: &Sealed) -> Result<Put, RepositoryError> {
        let name = key.to_string();
        let doing = format!("store {name}");
        let write_once = self.abilities().await?.write_once;
        let only_if = if write_once { OnlyIf::New } else { OnlyIf::Always };
        let terms = self.terms(&doing, object, self.locked_for(key), only_if)?;
        let large = object.bytes.len() as u64 > WHOLE_MAX;
        let mut tries = self.tries();
        loop {
            // A store that would overwrite is asked first, each time: an earlier try may have succeeded. And a question costs
            // nothing beside an upload that is refused at its end.
            if (!write_once || large)
                && let Some(put) = self.look(&name, object).await?
            {
                return Ok(put);
            }
            let sent = match large {
                false => self.send(&name, object, &terms).await,
                true => self.send_parts(&name, object, &terms).await,
            };
            let failure = match sent {
                Ok(said) => match self.confirmed(&name, object, said).await? {
                    Some(put) => return Ok(put),
                    None => Failure::passing("the store said that it is stored, and has nothing of that name"),
                },
                Err(failure) if failure.taken() => match self.look(&name, object).await? {
                    Some(put) => return Ok(put),
                    None => Failure::passing("the store said that the name is taken, and has nothing of that name"),
                },
                Err(failure) => failure,
            };
            tries.again(failure).await.map_err(|failure| failure.error(&doing, self))?;
        }
    }

    /// For how long an object of this name is locked. What a restore needs and what proves how far it must come, each as
    /// long as it is needed; what is rewritten by the minute, or only speeds things up, not at all.
    fn locked_for(&self, key: &Key) -> Option<Duration> {
        let settings = &self.inner.settings;
        match key {
            Key::Source(..) => settings.object_lock,
            Key::Lease(_) => None,
            Key::Of(_, item) => match item {
                Item::History(_) | Item::Segment(_) | Item::Gap { .. } => settings.object_lock,
                Item::Chunk { .. } | Item::Index(_) | Item::ServerManifest(_) | Item::Manifest(_) => {
                    settings.object_lock
                }
                Item::Piece { .. } | Item::Frontier(_) => settings.piece_lock,
                Item::Dump(_, DumpItem::Chunk { .. } | DumpItem::Manifest) => settings.object_lock,
                Item::Mark(_) | Item::Proof(..) | Item::Dump(_, DumpItem::Proof(_)) => None,
            },
        }
    }

    /// What goes with an object.
    pub(super) fn terms(
        &self,
        doing: &str,
        object: &Sealed,
        locked_for: Option<Duration>,
        only_if: OnlyIf,
    ) -> Result<Terms, RepositoryError> {
        let refused = |detail: String| RepositoryError::Refused { doing: doing.to_owned(), detail };
        let extent = object.receipt.unchecked().map_err(|error| refused(error.to_string()))?.stored;
        if extent.bytes != object.bytes.len() as u64 {
            return Err(refused(format!("its receipt is of {} bytes, it has {}", extent.bytes, object.bytes.len())));
        }
        let digest = base64_of(&extent.sha256).ok_or_else(|| refused("its receipt names no digest".to_owned()))?;
        let metadata = HashMap::from([
            (SEAL.to_owned(), STANDARD.encode(&object.receipt.seal)),
            (SIGNATURE.to_owned(), object.receipt.signature.clone()),
        ]);
        let bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > METADATA_BYTES_MAX {
            return Err(refused(format!(
                "its receipt takes {bytes} bytes, and S3 keeps {METADATA_BYTES_MAX}\nhint: encrypt to fewer recipients"
            )));
        }
        let locked_until = locked_for.map(|time| DateTime::from(SystemTime::now() + time));
        let wanted = self.inner.settings.checksums == Checksums::WhenSupported || locked_until.is_some();
        Ok(Terms { metadata, locked_until, sha256: wanted.then_some(digest), only_if })
    }

    /// One object in one request, once.
    pub(super) async fn send(&self, name: &str, object: &Sealed, terms: &Terms) -> Result<Said, Failure> {
        let md5 = match &terms.sha256 {
            None => Some(md5(object.bytes.clone()).await?),
            Some(_) => None,
        };
        let request = self.inner.client.put_object().bucket(&self.inner.settings.bucket).key(self.full(name));
        let request = request
            .set_content_md5(md5.map(|md5| STANDARD.encode(md5)))
            .body(ByteStream::from(object.bytes.clone()))
            .set_metadata(Some(terms.metadata.clone()))
            .set_checksum_sha256(terms.sha256.clone())
            .set_if_none_match(terms.only_if.none_match())
            .set_if_match(terms.only_if.matches())
            .set_object_lock_mode(terms.locked_until.map(|_| ObjectLockMode::Compliance))
            .set_object_lock_retain_until_date(terms.locked_until);
        let output = self.once(object.bytes.len() as u64, request.send()).await?;
        let named = match md5 {
            // An object in one piece has its MD5 as ETag, but for stores that encrypt it.
            Some(md5) => output.e_tag().map(|etag| etag.trim_matches('"').eq_ignore_ascii_case(&hex::encode(md5))),
            None => output.checksum_sha256().map(|sha256| Some(sha256) == terms.sha256.as_deref()),
        };
        Ok(Said { digest: named == Some(true) })
    }

    /// After the store said that it has it: whether that is so. `None` when it has nothing of that name.
    pub(super) async fn confirmed(
        &self,
        name: &str,
        object: &Sealed,
        said: Said,
    ) -> Result<Option<Put>, RepositoryError> {
        let read_back = self.inner.settings.read_back;
        // Without conditional writes another one's may be over it already, whatever was said of ours.
        let sure = self.abilities().await?.write_once && said.digest;
        if sure && read_back == ReadBack::Answer {
            return Ok(Some(Put::Stored));
        }
        let put = self.look(name, object).await?;
        if read_back == ReadBack::Whole && put == Some(Put::Stored) {
            self.read(name).await?;
        }
        Ok(put)
    }

    /// What has this name: our own object, another one's, or nothing.
    pub(super) async fn look(&self, name: &str, object: &Sealed) -> Result<Option<Put>, RepositoryError> {
        let head = self.head(&self.inner.client, name).await;
        let Some(head) = head.map_err(|failure| failure.error(&format!("store {name}"), self))? else {
            return Ok(None);
        };
        let found = sound(name, head)?;
        Ok(Some(if found == object.receipt { Put::Stored } else { Put::Exists(found) }))
    }
}

/// For a store that knows no better digest. A core makes 600 MB/s of it.
pub(super) async fn md5(bytes: Bytes) -> Result<[u8; 16], Failure> {
    let digest = tokio::task::spawn_blocking(move || Md5::digest(&bytes).into()).await;
    digest.map_err(|error| Failure::passing(error.to_string()))
}
