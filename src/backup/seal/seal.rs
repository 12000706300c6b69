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
        let to = age::Encryptor::with_recipients(self.recipients.each()).map_err(io::Error::other)?;
        let encrypted = to.wrap_output(Vec::with_capacity(plain.len() / 2 + 1_024))?;
        let mut compressed = zstd::stream::write::Encoder::new(encrypted, ZSTD_LEVEL)?;
        // With its length and a checksum in the frame, a stock zstd checks what it unpacks.
        compressed.set_pledged_src_size(Some(plain.len() as u64))?;
        compressed.include_contentsize(true)?;
        compressed.include_checksum(true)?;
        compressed.write_all(plain)?;
        Ok(Bytes::from(compressed.finish()?.finish()?))
    }
}
