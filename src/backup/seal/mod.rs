//! Plain bytes become sealed objects: compressed (zstd), encrypted to public keys (age), digested, signed (Ed25519).
//!
//! Callers are `take`, `ship` and `catalog` on the way in, and `restore` and `verify` on the way out. Sealing needs no
//! identity; opening needs one of those it was sealed to. Objects of [`Form::Open`](super::repository::Form::Open) are signed and left readable.

mod keys;
mod open;
#[expect(clippy::module_inception, reason = "sealing is what the room is named after")]
mod seal;
#[cfg(test)]
mod tests;

pub use self::seal::Sealer;
pub use crate::signing::SigningKey;
pub use keys::{Identities, KeySet, fingerprint, new_key_set, new_key_set_for};
pub use open::{Checker, Opener, Pieces};

use crate::model::PublicKey;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An object ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The bytes to store.
    pub bytes: Bytes,
    /// What is signed about them.
    pub receipt: Receipt,
}

/// What a writer says about an object, and the signature under exactly that text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// A [`Seal`] as JSON, byte for byte as it was signed.
    pub seal: String,
    /// The Ed25519 signature over it, in base64.
    pub signature: String,
}

/// Length and digest of some bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// How many.
    pub bytes: u64,
    /// SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

impl Extent {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Extent {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        Extent { bytes: bytes.len() as u64, sha256: hex::encode(digest) }
    }
}

/// What is signed about an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Seal {
    /// The version of this form: 1. Readers refuse what they do not know.
    pub version: u32,
    /// The object's name, so that no object can stand in for another.
    pub key: String,
    /// The bytes before sealing.
    pub plain: Extent,
    /// The bytes as stored.
    pub stored: Extent,
    /// Fingerprints of the age recipients it is encrypted to; empty for an open object.
    pub recipients: Vec<String>,
    /// When it was sealed, by the writer's clock.
    pub at: Timestamp,
    /// Facts that go with the object, such as the acknowledged LSN of a piece.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub note: BTreeMap<String, String>,
    /// The writer's public key.
    pub signer: String,
}

impl Receipt {
    /// What it says, without a look at the signature: for comparing, never for trusting.
    ///
    /// # Errors
    /// When it is no seal of a known version.
    pub fn unchecked(&self) -> Result<Seal, SealError> {
        let seal: Seal = serde_json::from_str(&self.seal).map_err(|error| SealError::Unreadable(error.to_string()))?;
        match seal.version {
            1 => Ok(seal),
            other => Err(SealError::Unreadable(format!("it is of version {other}, this Mainstay knows 1"))),
        }
    }

    /// Whether both say that the same plain bytes were stored under the same name.
    pub fn same_content(&self, other: &Receipt) -> bool {
        matches!((self.unchecked(), other.unchecked()), (Ok(a), Ok(b)) if a.plain == b.plain && a.key == b.key)
    }
}

/// Why something could not be sealed or opened. `Display` fits after "failed to open NAME: ".
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The receipt does not read.
    #[error("its receipt does not read: {0}")]
    Unreadable(String),
    /// The receipt is another object's, or the bytes are not those it names.
    #[error("{0}")]
    Mismatch(String),
    /// The signature does not fit.
    #[error("its signature does not fit: somebody changed it after it was written")]
    Forged,
    /// The signature fits, by a key that nobody vouches for.
    #[error(
        "it is signed with a key that is not trusted: {0}\nhint: trust it with `--trust KEY` when you know whose it is"
    )]
    Untrusted(PublicKey),
    /// None of the identities opens it.
    #[error(
        "none of the identities opens it: it was encrypted to {}\nhint: give the identity that `mainstay key new` made for this repository with `--identity FILE`",
        .recipients.join(", ")
    )]
    NoIdentity {
        /// Fingerprints of those who can.
        recipients: Vec<String>,
    },
    /// It was encrypted to us, and is damaged.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The writer's own side failed.
    #[error("{0}")]
    Broken(String),
}
