//! The way back: a stored object is what its writer signed, and opens to the bytes that were sealed.

use super::{Extent, Identities, Receipt, Seal, SealError};
use crate::backup::repository::{Form, Key, Stored};
use crate::model::PublicKey;
use crate::signing::verifies;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use std::io::Read as _;
use std::sync::Arc;

/// The most that an object may hold: more than any chunk, segment or document has. What claims more is refused before a
/// byte of it is unpacked.
const PLAIN_MAX_BYTES: u64 = (1 << 30) + 1;

/// Checks receipts and stored bytes; needs no identity.
#[derive(Debug, Clone)]
pub struct Checker {
    trusted: Arc<Vec<PublicKey>>,
}

impl Checker {
    /// Believes what these keys signed.
    pub fn new(trusted: Vec<PublicKey>) -> Checker {
        Checker { trusted: Arc::new(trusted) }
    }

    /// Checks that a receipt is this object's, and signed by one who is trusted.
    ///
    /// # Errors
    /// When it is not.
    pub fn receipt(&self, key: &Key, receipt: &Receipt) -> Result<Seal, SealError> {
        let seal = receipt.unchecked()?;
        let signer: PublicKey = seal.signer.parse().map_err(SealError::Unreadable)?;
        let signature = STANDARD.decode(&receipt.signature).map_err(|_| SealError::Forged)?;
        if !verifies(&signer, receipt.seal.as_bytes(), &signature) {
            return Err(SealError::Forged);
        }
        // After the signature: people are told to trust a key only where that would help.
        if !self.trusted.contains(&signer) {
            return Err(SealError::Untrusted(signer));
        }
        if seal.key != key.to_string() {
            return Err(SealError::Mismatch(format!("it was written as {}, and somebody moved it", seal.key)));
        }
        let encrypted = !seal.recipients.is_empty();
        if encrypted != (key.form() == Form::Sealed) || seal.plain.bytes > PLAIN_MAX_BYTES {
            return Err(SealError::Mismatch("its receipt does not fit this kind of object".into()));
        }
        Ok(seal)
    }

    /// Checks the receipt, and that the stored bytes are those it names.
    ///
    /// # Errors
    /// When one of them is not as it should be.
    pub fn check(&self, key: &Key, stored: &Stored) -> Result<Seal, SealError> {
        let seal = self.receipt(key, &stored.receipt)?;
        match Extent::of(&stored.bytes) == seal.stored {
            true => Ok(seal),
            false => Err(SealError::Mismatch(format!(
                "its {} bytes are not the {} that were stored",
                stored.bytes.len(),
                seal.stored.bytes
            ))),
        }
    }

    /// Reads a document that is signed and not encrypted.
    ///
    /// # Errors
    /// When it is not what was written, or does not read.
    pub fn document<T: DeserializeOwned>(&self, key: &Key, stored: &Stored) -> Result<(Seal, T), SealError> {
        let seal = self.check(key, stored)?;
        if key.form() != Form::Open {
            return Err(SealError::Broken(format!("{key} is encrypted: it takes an identity")));
        }
        let read = serde_json::from_slice(&stored.bytes);
        Ok((seal, read.map_err(|error| SealError::Unreadable(error.to_string()))?))
    }
}

/// Opens objects.
#[derive(Debug, Clone)]
pub struct Opener {
    identities: Identities,
    checker: Checker,
}

impl Opener {
    /// Opens with these identities what `checker` believes.
    pub fn new(identities: Identities, checker: Checker) -> Opener {
        Opener { identities, checker }
    }

    /// What checks for it.
    pub fn checker(&self) -> &Checker {
        &self.checker
    }

    /// Whether one of the identities opens what was sealed so; asked before a byte is fetched.
    ///
    /// # Errors
    /// `NoIdentity` when none does.
    pub fn fits(&self, seal: &Seal) -> Result<(), SealError> {
        let ours = self.identities.fingerprints();
        match seal.recipients.is_empty() || seal.recipients.iter().any(|one| ours.contains(one)) {
            true => Ok(()),
            false => Err(SealError::NoIdentity { recipients: seal.recipients.clone() }),
        }
    }

    /// The plain bytes of an object. Takes about 2 ms of a core for a MiB.
    ///
    /// # Errors
    /// When it is not what was written, or none of the identities opens it.
    pub fn open(&self, key: &Key, stored: &Stored) -> Result<(Seal, Vec<u8>), SealError> {
        let seal = self.checker.check(key, stored)?;
        if key.form() == Form::Open {
            return Ok((seal, stored.bytes.to_vec()));
        }
        self.fits(&seal)?;
        let damaged = |error: &dyn std::fmt::Display| SealError::Damaged(error.to_string());
        let sealed = age::Decryptor::new_buffered(&stored.bytes[..]).map_err(|error| damaged(&error))?;
        let mut decrypting = sealed.decrypt(self.identities.each()).map_err(|error| damaged(&error))?;
        let mut compressed = Vec::with_capacity(stored.bytes.len());
        decrypting.read_to_end(&mut compressed).map_err(|error| damaged(&error))?;
        // In one go, into as much room as was sealed: what is longer is an error, and nothing is copied on its way.
        let plain = zstd::bulk::decompress(&compressed, seal.plain.bytes as usize).map_err(|error| damaged(&error))?;
        if Extent::of(&plain) != seal.plain {
            return Err(SealError::Damaged("it opens to other bytes than were sealed".into()));
        }
        Ok((seal, plain))
    }
}
