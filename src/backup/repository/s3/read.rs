//! What comes back: objects, their receipts, their names.

use super::super::{Listed, RepositoryError, Stored};
use super::answer::Failure;
use super::{PART_BYTES, PARTS_AT_ONCE, S3};
use crate::backup::seal::Receipt;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use std::collections::HashMap;
use std::future::ready;

/// Metadata of an object: its seal, in base64.
pub(super) const SEAL: &str = "seal";
/// Metadata of an object: the signature, which is base64 by itself.
pub(super) const SIGNATURE: &str = "signature";
/// Nothing that Mainstay stores is larger; what says that it is, is damaged. A segment is 1 GiB at most.
const BYTES_MAX: u64 = 2 << 30;
/// How often an object is fetched whose bytes are not those of its receipt. A fault on the way passes, one in the store
/// does not.
const FETCHES: usize = 3;
/// Digests of more than this are made where they block nobody: a MiB takes less than a millisecond.
const DIGEST_HERE_MAX: usize = 1 << 20;

/// What a store says of an object without sending it.
pub(super) struct Head {
    pub(super) bytes: u64,
    pub(super) receipt: Result<Receipt, String>,
    pub(super) version: Option<String>,
    /// SHA-256 in base64, where the store has one of the whole object.
    pub(super) sha256: Option<String>,
}

/// An object's bytes, receipt and ETag, as they came.
struct Fetched {
    bytes: Bytes,
    receipt: Result<Receipt, String>,
    etag: Option<String>,
}

impl S3 {
    /// What the store says of an object; `None` when it answers that there is none. A bucket that is missing looks the
    /// same, so this proves no absence.
    pub(super) async fn head(&self, client: &aws_sdk_s3::Client, name: &str) -> Result<Option<Head>, Failure> {
        let key = self.full(name);
        let request = || {
            let request = client.head_object().bucket(&self.inner.settings.bucket).key(&key);
            request.checksum_mode(ChecksumMode::Enabled).send()
        };
        match self.tried(request).await {
            Ok(output) => Ok(Some(Head {
                bytes: output.content_length().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default(),
                receipt: receipt(output.metadata()),
                version: output.version_id().map(str::to_owned),
                // One of parts has a dash and their number behind it.
                sha256: output.checksum_sha256().filter(|text| !text.contains('-')).map(str::to_owned),
            })),
            Err(failure) if failure.is(404) && !failure.has_code(&["NoSuchBucket"]) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn read_receipt(&self, name: &str) -> Result<Receipt, RepositoryError> {
        let doing = format!("read {name}");
        match self.head(&self.inner.client, name).await.map_err(|failure| failure.error(&doing, self))? {
            Some(head) => sound(name, head),
            // A HEAD has no body that could say which thing is missing. A GET has.
            None => self.proven_absent(name).await,
        }
    }

    /// After a HEAD that answered 404: an error that says `Absent` only when the store says it in words.
    pub(super) async fn proven_absent<T>(&self, name: &str) -> Result<T, RepositoryError> {
        let doing = format!("read {name}");
        let key = self.full(name);
        let request = || {
            let request = self.inner.client.get_object().bucket(&self.inner.settings.bucket).key(&key);
            request.range("bytes=0-0").send()
        };
        match self.tried(request).await {
            Ok(_) => {
                Err(Failure::passing("the store says first that it is not there, then that it is").error(&doing, self))
            }
            Err(failure) if failure.absent() => Err(RepositoryError::Absent { name: name.to_owned() }),
            Err(failure) => Err(failure.error(&doing, self)),
        }
    }

    /// An object, checked against its receipt, and its ETag.
    pub(super) async fn read(&self, name: &str) -> Result<(Stored, String), RepositoryError> {
        let doing = format!("read {name}");
        let mut wrong = String::new();
        for _ in 0..FETCHES {
            let fetched = match self.fetch(name).await {
                Ok(fetched) => fetched,
                Err(failure) if failure.absent() => return Err(RepositoryError::Absent { name: name.to_owned() }),
                Err(failure) => return Err(failure.error(&doing, self)),
            };
            match checked(fetched).await {
                Ok(sound) => return Ok(sound),
                Err(detail) => {
                    tracing::warn!(name, "what the store sent is not what was stored: {detail}");
                    wrong = detail;
                }
            }
        }
        Err(RepositoryError::Damaged { name: name.to_owned(), detail: format!("{wrong}; fetched {FETCHES} times") })
    }

    /// An object's bytes: the first part shows how many there are, the others come a few at a time.
    async fn fetch(&self, name: &str) -> Result<Fetched, Failure> {
        let key = self.full(name);
        let mut tries = self.tries();
        loop {
            match self.fetch_once(&key).await {
                Ok(fetched) => return Ok(fetched),
                // It was replaced while its parts were fetched, as only the lease is.
                Err(failure) if failure.taken() => {
                    tries.again(Failure::passing("it changed while it was read")).await?;
                }
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn fetch_once(&self, key: &str) -> Result<Fetched, Failure> {
        let request = self.inner.client.get_object().bucket(&self.inner.settings.bucket).key(key);
        let first = self.once(0, request.range(format!("bytes=0-{}", PART_BYTES - 1)).send()).await?;
        let total = length(&first)?;
        let (etag, receipt) = (first.e_tag().map(str::to_owned), receipt(first.metadata()));
        let mut whole = BytesMut::zeroed(usize::try_from(total).unwrap_or(usize::MAX));
        let mut slots = Vec::new();
        let (mut rest, mut at) = (whole.split_off(whole.len().min(PART_BYTES as usize)), PART_BYTES);
        self.fill(first.body, &mut whole).await?;
        while !rest.is_empty() {
            let next = rest.split_off(rest.len().min(PART_BYTES as usize));
            slots.push((at, std::mem::replace(&mut rest, next)));
            at += PART_BYTES;
        }
        let parts = stream::iter(slots).map(|(at, slot)| self.fetch_part(key, etag.as_deref(), at, slot));
        // In order, and side by side in one allocation: putting them together copies nothing.
        let joined = |mut whole: BytesMut, part| {
            whole.unsplit(part);
            ready(Ok(whole))
        };
        let whole = parts.buffered(PARTS_AT_ONCE).try_fold(whole, joined).await?;
        Ok(Fetched { bytes: whole.freeze(), receipt, etag })
    }

    async fn fetch_part(
        &self,
        key: &str,
        etag: Option<&str>,
        at: u64,
        mut slot: BytesMut,
    ) -> Result<BytesMut, Failure> {
        let mut tries = self.tries();
        let range = format!("bytes={at}-{}", at + slot.len() as u64 - 1);
        loop {
            let request = self.inner.client.get_object().bucket(&self.inner.settings.bucket).key(key);
            let request = request.range(&range).set_if_match(etag.map(str::to_owned)).send();
            let filled = match self.once(0, request).await {
                Ok(output) => self.fill(output.body, &mut slot).await,
                Err(failure) => Err(failure),
            };
            match filled {
                Ok(()) => return Ok(slot),
                Err(failure) if failure.taken() => return Err(failure),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    /// Reads a body that must be exactly as long as its place.
    async fn fill(&self, mut body: ByteStream, slot: &mut [u8]) -> Result<(), Failure> {
        let length = slot.len();
        let all = async {
            let mut at = 0;
            while let Some(next) =
                body.try_next().await.map_err(|error| Failure::passing(format!("the answer broke off: {error}")))?
            {
                let Some(free) = slot.get_mut(at..at + next.len()) else {
                    return Err(Failure::passing(format!("more than the {length} bytes that were announced")));
                };
                free.copy_from_slice(&next);
                at += next.len();
            }
            match at == length {
                true => Ok(()),
                false => Err(Failure::passing(format!("the answer broke off after {at} of {length} bytes"))),
            }
        };
        let allowed = self.allowed(length as u64);
        let late =
            |_| Err(Failure::passing(format!("{length} bytes did not come within {:.1} s", allowed.as_secs_f64())));
        tokio::time::timeout(allowed, all).await.unwrap_or_else(late)
    }

    pub(super) async fn read_names(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        let (mut found, mut token): (Vec<Listed>, Option<String>) = (Vec::new(), None);
        loop {
            let mut tries = self.tries();
            let (page, next) = loop {
                match self.page(prefix, token.as_deref()).await {
                    Ok(page) => break page,
                    Err(failure) => {
                        tries.again(failure).await.map_err(|failure| failure.error(&self.listing(prefix), self))?;
                    }
                }
            };
            let own = |name: &str| name.starts_with(super::ability::OWN);
            // What is ours and no object is seen only by who asks for it.
            found.extend(page.into_iter().filter(|listed| own(prefix) || !own(&listed.name)));
            token = next;
            if token.is_none() {
                found.sort_by(|a, b| a.name.cmp(&b.name));
                return Ok(found);
            }
        }
    }

    /// What is done, in words.
    fn listing(&self, prefix: &str) -> String {
        match prefix {
            "" => format!("list the bucket {}", self.inner.settings.bucket),
            _ => format!("list {prefix}"),
        }
    }

    /// A page of a listing, and where the next one begins.
    async fn page(&self, prefix: &str, token: Option<&str>) -> Result<(Vec<Listed>, Option<String>), Failure> {
        let request = self.inner.client.list_objects_v2().bucket(&self.inner.settings.bucket).prefix(self.full(prefix));
        let page = self.once(0, request.set_continuation_token(token.map(str::to_owned)).send()).await?;
        let mut found = Vec::with_capacity(page.contents().len());
        for object in page.contents() {
            let (Some(key), Some(bytes), Some(written)) = (object.key(), object.size(), object.last_modified()) else {
                return Err(Failure::passing("the store left out a name, a length or a time"));
            };
            let name = key.strip_prefix(&self.inner.settings.prefix).filter(|name| name.starts_with(prefix));
            let name = name.ok_or_else(|| Failure::passing("the store listed what was not asked for"))?.to_owned();
            let bytes = u64::try_from(bytes).map_err(|_| Failure::passing("the store listed a negative length"))?;
            let nanos = i32::try_from(written.subsec_nanos()).unwrap_or_default();
            let written = Timestamp::new(written.secs(), nanos)
                .map_err(|_| Failure::passing("the store listed a time that is none"))?;
            found.push(Listed { name, bytes, written });
        }
        // A page that was cut on its way may still read as one.
        if page.key_count().is_some_and(|count| usize::try_from(count) != Ok(found.len())) {
            return Err(Failure::passing("the store listed fewer names than it says"));
        }
        match (page.is_truncated(), page.next_continuation_token()) {
            (Some(false), _) => Ok((found, None)),
            (Some(true), Some(next)) if token != Some(next) => Ok((found, Some(next.to_owned()))),
            (Some(true), _) => Err(Failure::passing("the listing is cut, and the store does not say where it goes on")),
            (None, _) => Err(Failure::passing("the store does not say whether the listing goes on")),
        }
    }
}

/// How many bytes the whole object has.
fn length(first: &GetObjectOutput) -> Result<u64, Failure> {
    let total = match first.content_range() {
        // A store that knows no ranges sends all of it.
        None => first.content_length().and_then(|bytes| u64::try_from(bytes).ok()),
        Some(range) => range.rsplit_once('/').and_then(|(_, total)| total.parse().ok()),
    };
    match total {
        Some(total) if total <= BYTES_MAX => Ok(total),
        Some(total) => Err(Failure::passing(format!("{total} bytes long, more than anything that Mainstay stores"))),
        None => Err(Failure::passing("the store did not say how long it is")),
    }
}

async fn checked(fetched: Fetched) -> Result<(Stored, String), String> {
    let receipt = fetched.receipt?;
    let extent = receipt.unchecked().map_err(|error| error.to_string())?.stored;
    let (length, bytes) = (fetched.bytes.len(), fetched.bytes);
    if length as u64 != extent.bytes {
        return Err(format!("{length} bytes long instead of {}", extent.bytes));
    }
    let digest = move || Stored::new(bytes, receipt);
    let stored = if length <= DIGEST_HERE_MAX {
        digest()
    } else {
        tokio::task::spawn_blocking(digest).await.map_err(|error| error.to_string())?
    };
    if *stored.extent() != extent {
        return Err("its content is not what its receipt names".to_owned());
    }
    let etag = fetched.etag.ok_or("the store gave no version of it")?;
    Ok((stored, etag))
}

/// What a HEAD says must fit together too.
pub(super) fn sound(name: &str, head: Head) -> Result<Receipt, RepositoryError> {
    let damaged = |detail: String| RepositoryError::Damaged { name: name.to_owned(), detail };
    let receipt = head.receipt.map_err(damaged)?;
    let stored = receipt.unchecked().map_err(|error| damaged(error.to_string()))?.stored;
    if head.bytes != stored.bytes {
        return Err(damaged(format!("{} bytes long instead of {}", head.bytes, stored.bytes)));
    }
    match head.sha256 {
        Some(sha256) if Some(&sha256) != base64_of(&stored.sha256).as_ref() => {
            Err(damaged("the store's own digest of it is not that of its receipt".to_owned()))
        }
        _ => Ok(receipt),
    }
}

/// A digest in hexadecimal as S3 writes it.
pub(super) fn base64_of(sha256: &str) -> Option<String> {
    Some(STANDARD.encode(hex::decode(sha256).ok()?))
}

fn receipt(metadata: Option<&HashMap<String, String>>) -> Result<Receipt, String> {
    // Some stores give names back with capitals.
    let value = |name: &str| {
        let found = metadata?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(found.1.clone())
    };
    let (Some(seal), Some(signature)) = (value(SEAL), value(SIGNATURE)) else {
        return Err("it has no receipt: it was not stored by Mainstay, or copied without its metadata".to_owned());
    };
    let seal = STANDARD.decode(seal).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(Receipt { seal: seal.ok_or("its receipt is no base64 of text")?, signature })
}
