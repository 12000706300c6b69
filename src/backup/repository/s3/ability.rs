//! What a store can do, found out by trying on an object of our own.

use super::super::{Abilities, RepositoryError};
use super::S3;
use super::answer::Failure;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ObjectLockEnabled;

/// Under the prefix, what is ours and no object.
pub(super) const OWN: &str = ".mainstay/";
/// The object to try on. One name for all: nothing is left over, and credentials that may not delete can try too.
const PROBE: &str = ".mainstay/probe";
/// What it says to whoever finds it.
const PROBE_TEXT: &[u8] = b"Mainstay tries here what this store can do.\n";
/// A version that nothing has.
const NO_VERSION: &str = "\"00000000000000000000000000000000\"";

impl S3 {
    /// A write must be refused where it should be, and done where it should be done. Many may try at once: all write the same
    /// bytes, so the version stays what it was.
    pub(super) async fn try_abilities(&self) -> Result<Abilities, RepositoryError> {
        let doing = format!("find out what {} can do", super::super::Repository::place(self));
        let failed = |failure: Failure| failure.error(&doing, self);
        let first = self.probe(Some("*"), None).await.map_err(failed)?;
        // Whoever came first, now it is there.
        let second = self.probe(Some("*"), None).await.map_err(failed)?;
        let write_once = first != Tried::Unknown && matches!(second, Tried::Refused);
        if first == Tried::Unknown {
            self.probe(None, None).await.map_err(failed)?;
        }
        let wrong = self.probe(None, Some(NO_VERSION)).await.map_err(failed)?;
        let replace_if = match wrong {
            Tried::Refused => match self.probe_version().await.map_err(failed)? {
                Some(version) => matches!(self.probe(None, Some(&version)).await.map_err(failed)?, Tried::Done),
                None => false,
            },
            _ => false,
        };
        // A lease is first written where none is, so it needs both.
        let replace_if = replace_if && write_once;
        let object_lock = self.bucket_locks().await.map_err(failed)?;
        tracing::info!(
            place = super::super::Repository::place(self),
            write_once,
            replace_if,
            object_lock,
            "what the store can do"
        );
        Ok(Abilities { write_once, replace_if, object_lock })
    }

    async fn probe(&self, none_match: Option<&str>, matches: Option<&str>) -> Result<Tried, Failure> {
        let mut tries = self.tries();
        loop {
            let request = self.inner.client.put_object().bucket(&self.inner.settings.bucket).key(self.full(PROBE));
            let request = request
                .body(ByteStream::from_static(PROBE_TEXT))
                .set_if_none_match(none_match.map(str::to_owned))
                .set_if_match(matches.map(str::to_owned));
            match self.once(0, request.send()).await {
                Ok(_) => return Ok(Tried::Done),
                Err(failure) if failure.taken() => return Ok(Tried::Refused),
                Err(failure) if failure.unknown_request() => return Ok(Tried::Unknown),
                // A bucket that locks all by itself wants a digest; that is no answer to what was asked.
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn probe_version(&self) -> Result<Option<String>, Failure> {
        let request =
            || self.inner.client.head_object().bucket(&self.inner.settings.bucket).key(self.full(PROBE)).send();
        Ok(self.tried(request).await?.e_tag().map(str::to_owned))
    }

    async fn bucket_locks(&self) -> Result<bool, Failure> {
        let request = || self.inner.client.get_object_lock_configuration().bucket(&self.inner.settings.bucket).send();
        match self.tried(request).await {
            Ok(output) => {
                let enabled =
                    output.object_lock_configuration().and_then(|configuration| configuration.object_lock_enabled());
                Ok(enabled == Some(&ObjectLockEnabled::Enabled))
            }
            Err(failure) if failure.passes() => Err(failure),
            // Not configured, not known, or not ours to ask: then no promise is made. Locked writes are tried all the same.
            Err(failure) => {
                tracing::debug!(code = failure.code, "the bucket names no object lock");
                Ok(false)
            }
        }
    }
}

/// What became of a write on a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Done,
    Refused,
    /// The store does not know the condition.
    Unknown,
}
