//! A large object in parts: a few at a time, each repeated by itself, and none left behind.

use super::answer::Failure;
use super::read::base64_of;
use super::write::{Said, Terms, md5};
use super::{PART_BYTES, PARTS_AT_ONCE, S3};
use crate::backup::seal::{Extent, Sealed};
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, ObjectLockMode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// An upload this old has no writer any more.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// How long giving an upload up may take: it is a courtesy, and whoever waits for the failure wants to hear it.
const GIVE_UP: Duration = Duration::from_secs(10);

/// An upload that has begun; given up when dropped before it is complete, also when the caller went away.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    open: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if std::mem::take(&mut self.open) {
            let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(&self.id);
            runtime.spawn(tokio::time::timeout(GIVE_UP, request.send()));
        }
    }
}

impl Upload {
    /// Gives it up and waits for that, so that nothing is left when the failure is told. What this cannot do the sweep does.
    async fn give_up(mut self) {
        self.open = false;
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(&self.id);
        if !matches!(tokio::time::timeout(GIVE_UP, request.send()).await, Ok(Ok(_))) {
            tracing::debug!(key = self.key, "an upload in parts stays behind for now");
        }
    }
}

impl S3 {
    /// One object in parts, once. Completing it is what makes it exist.
    pub(super) async fn send_parts(&self, name: &str, object: &Sealed, terms: &Terms) -> Result<Said, Failure> {
        let (bucket, key) = (self.inner.settings.bucket.clone(), self.full(name));
        self.sweep_uploads().await;
        let begin = || {
            let request = self.inner.client.create_multipart_upload().bucket(&bucket).key(&key);
            let request = request
                .set_metadata(Some(terms.metadata.clone()))
                .set_checksum_algorithm(terms.sha256.as_ref().map(|_| ChecksumAlgorithm::Sha256))
                .set_object_lock_mode(terms.locked_until.map(|_| ObjectLockMode::Compliance))
                .set_object_lock_retain_until_date(terms.locked_until);
            request.send()
        };
        let begun = self.tried(begin).await?;
        let id = begun.upload_id().ok_or_else(|| Failure::passing("the store gave no name to the upload"))?.to_owned();
        let upload = Upload { client: self.inner.client.clone(), bucket, key, id, open: true };
        match self.fill_and_complete(&upload, object, terms).await {
            Ok(said) => {
                let mut upload = upload;
                upload.open = false;
                Ok(said)
            }
            Err(failure) => {
                upload.give_up().await;
                Err(failure)
            }
        }
    }

    async fn fill_and_complete(&self, upload: &Upload, object: &Sealed, terms: &Terms) -> Result<Said, Failure> {
        let count = object.bytes.len().div_ceil(PART_BYTES as usize);
        let part = |index: usize| {
            let from = index * PART_BYTES as usize;
            let bytes = object.bytes.slice(from..object.bytes.len().min(from + PART_BYTES as usize));
            self.send_part(upload, index, bytes, terms.sha256.is_some())
        };
        let parts: Vec<CompletedPart> = stream::iter(0..count).map(part).buffered(PARTS_AT_ONCE).try_collect().await?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let mut tries = self.tries();
        loop {
            let request = self.inner.client.complete_multipart_upload().bucket(&upload.bucket).key(&upload.key);
            let request = request
                .upload_id(&upload.id)
                .multipart_upload(parts.clone())
                .set_if_none_match(terms.only_if.none_match())
                .set_if_match(terms.only_if.matches());
            // Stores copy parts together at this point, so it may take as long as sending them did.
            match self.once(object.bytes.len() as u64, request.send()).await {
                // Its digest is one of digests: the caller looks for itself.
                Ok(_) => return Ok(Said { digest: false }),
                // An earlier try was heard, and its answer was not: looking tells.
                Err(failure) if failure.has_code(&["NoSuchUpload"]) => return Ok(Said { digest: false }),
                // The upload is spent; S3 wants a new one.
                Err(failure) if failure.conflict() => return Err(failure),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn send_part(
        &self,
        upload: &Upload,
        index: usize,
        bytes: Bytes,
        checksum: bool,
    ) -> Result<CompletedPart, Failure> {
        let number = i32::try_from(index + 1).unwrap_or(i32::MAX);
        let content = bytes.clone();
        let (digest, md5) = if checksum {
            let digest = tokio::task::spawn_blocking(move || base64_of(&Extent::of(&content).sha256)).await;
            (digest.map_err(|error| Failure::passing(error.to_string()))?, None)
        } else {
            (None, Some(STANDARD.encode(md5(content).await?)))
        };
        let mut tries = self.tries();
        loop {
            let request = self.inner.client.upload_part().bucket(&upload.bucket).key(&upload.key).upload_id(&upload.id);
            let request = request
                .part_number(number)
                .set_checksum_sha256(digest.clone())
                .set_content_md5(md5.clone())
                .body(ByteStream::from(bytes.clone()));
            let failure = match self.once(bytes.len() as u64, request.send()).await {
                Ok(output) => {
                    let said = output.checksum_sha256();
                    if said.is_none() || said == digest.as_deref() || digest.is_none() {
                        let part =
                            CompletedPart::builder().part_number(number).set_e_tag(output.e_tag().map(str::to_owned));
                        return Ok(part.set_checksum_sha256(digest).build());
                    }
                    Failure::passing(format!("the store has another digest of part {number}"))
                }
                Err(failure) => failure,
            };
            tries.again(failure).await?;
        }
    }

    /// Gives up the uploads that killed writers left under our prefix, once in a process. They cost money and are seen by
    /// nobody; a rule of the bucket's own does the same where these credentials may not.
    async fn sweep_uploads(&self) {
        if self.inner.swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let bucket = &self.inner.settings.bucket;
        let listed = self.inner.client.list_multipart_uploads().bucket(bucket).prefix(&self.inner.settings.prefix);
        let Ok(listed) = self.once(0, listed.send()).await else { return };
        let old = DateTime::from(SystemTime::now() - STALE);
        for upload in listed.uploads() {
            let (Some(key), Some(id), Some(begun)) = (upload.key(), upload.upload_id(), upload.initiated()) else {
                continue;
            };
            if *begun < old {
                let request = self.inner.client.abort_multipart_upload().bucket(bucket).key(key).upload_id(id);
                let _ = self.once(0, request.send()).await;
            }
        }
    }
}
