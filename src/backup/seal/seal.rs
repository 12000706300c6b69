//! The way in: plain bytes become an object and a signed receipt.

use super::keys::Recipients;
use super::{Extent, Receipt, Seal, SealError, Sealed, SigningKey};
use crate::backup::repository::{Form, Key};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::io::{self, Write as _};

/// Level 3 is zstd's own default: 390 MB/s on two cores, a third smaller than level 1.
const ZSTD_LEVEL: i32 = 3;

/// Seals objects for one repository.
#[derive(Clone)]
pub struct Sealer {
    recipients: Recipients,
    key: SigningKey,
}

impl Sealer {
    /// A sealer to these age recipients that signs with this key.
    ///
    /// # Errors
    /// When a recipient is none, or there is none.
    pub fn new(recipients: &[String], key: SigningKey) -> Result<Sealer, SealError> {
        Ok(Sealer { recipients: Recipients::parse(recipients)?, key })
    }

    /// The public half of what it signs with.
    pub fn public(&self) -> crate::model::PublicKey {
        self.key.public()
    }

    /// Seals `plain` as the object of this name. Takes about 5 ms of a core for a MiB: large objects belong on a thread of
    /// their own. Randomised: the same bytes seal to others each time.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn seal(&self, key: &Key, plain: &[u8], note: BTreeMap<String, String>) -> Result<Sealed, SealError> {
        let (bytes, recipients) = match key.form() {
            Form::Open => (Bytes::copy_from_slice(plain), Vec::new()),
            Form::Sealed => {
                let broken = |error: io::Error| SealError::Broken(format!("compress and encrypt: {error}"));
                (self.encrypt(plain).map_err(broken)?, self.recipients.fingerprints())
            }
        };
        let seal = Seal {
            version: 1,
            key: key.to_string(),
            plain: Extent::of(plain),
            stored: Extent::of(&bytes),
            recipients,
            at: Timestamp::now(),
            note,
            signer: self.key.public().to_string(),
        };
        let seal = serde_json::to_string(&seal).map_err(|error| SealError::Broken(error.to_string()))?;
        let signature = STANDARD.encode(self.key.sign(seal.as_bytes()));
        Ok(Sealed { bytes, receipt: Receipt { seal, signature } })
    }

    fn encrypt(&self, plain: &[u8]) -> io::Result<Bytes> {
        // In one go: a stream would copy every byte into its window first.
        let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        // With its length and a checksum in the frame, a stock zstd checks what it unpacks.
        compressor.include_contentsize(true)?;
        compressor.include_checksum(true)?;
        let compressed = compressor.compress(plain)?;
        drop(compressor);
        let to = age::Encryptor::with_recipients(self.recipients.each()).map_err(io::Error::other)?;
        // A header of some hundred bytes, and a tag of 16 for each 64 KiB.
        let room = compressed.len() + compressed.len() / 4_096 + 4_096;
        let mut encrypted = to.wrap_output(Vec::with_capacity(room))?;
        encrypted.write_all(&compressed)?;
        Ok(Bytes::from(encrypted.finish()?))
    }
}
