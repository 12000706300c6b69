//! The way back: a stored object is what its writer signed, and opens to the bytes that were sealed.

use super::{Identities, Receipt, Seal, SealError};
use crate::backup::repository::{Form, Key, Stored};
use crate::model::PublicKey;
use crate::signing::verifies;
use age::stream::StreamReader;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use std::io::{BufRead as _, BufReader, Read as _};
use std::sync::Arc;

/// The most that an object may hold: more than any chunk, segment or document has. What claims more is refused before a
/// byte of it is unpacked.
const PLAIN_MAX_BYTES: u64 = (1 << 30) + 1;

/// What an object is opened into at once. Together with zstd's window, 2 MiB at the level that objects are sealed with, it
/// stays in a core's own cache on its way to the disk: a buffer for a whole chunk goes through the memory four times.
const PIECE_BYTES: usize = 128 << 10;

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
        let seal = self.receipt(key, stored.receipt())?;
        match *stored.extent() == seal.stored {
            true => Ok(seal),
            false => Err(SealError::Mismatch(format!(
                "its {} bytes are not the {} that were stored",
                stored.extent().bytes,
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
        let read = serde_json::from_slice(stored.bytes());
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
        if key.form() == Form::Open {
            return Ok((self.checker.check(key, stored)?, stored.bytes().to_vec()));
        }
        let mut pieces = self.pieces(key, stored)?;
        pieces.digest.get_or_insert_with(|| digest::Context::new(&digest::SHA256));
        let mut plain = Vec::with_capacity(pieces.seal.plain.bytes as usize);
        while let Some(piece) = pieces.next()? {
            plain.extend_from_slice(piece);
        }
        Ok((pieces.seal, plain))
    }

    /// The plain bytes of a sealed object, one piece after the other. Their SHA-256 is not computed, other than by
    /// [`Opener::open`], when a frame's checksum stands for it: `docs/decisions/0016-which-digests-a-restore-computes.md`.
    ///
    /// # Errors
    /// When it is not what was written, or none of the identities opens it.
    pub fn pieces<'a>(&self, key: &Key, stored: &'a Stored) -> Result<Pieces<'a>, SealError> {
        let seal = self.checker.check(key, stored)?;
        if key.form() == Form::Open {
            return Err(SealError::Broken(format!("{key} is not encrypted")));
        }
        self.fits(&seal)?;
        let sealed = age::Decryptor::new_buffered(&stored.bytes()[..]).map_err(damaged)?;
        let decrypting = sealed.decrypt(self.identities.each()).map_err(damaged)?;
        let mut compressed = BufReader::with_capacity(zstd::zstd_safe::DCtx::in_size(), decrypting);
        let checked = has_checksum(compressed.fill_buf().map_err(damaged)?);
        let digest = (!checked).then(|| digest::Context::new(&digest::SHA256));
        // The checksum is of this frame; there is no other in an object.
        let opening = zstd::Decoder::with_buffer(compressed).map_err(damaged)?.single_frame();
        Ok(Pieces { opening, piece: vec![0; PIECE_BYTES].into(), digest, read: 0, seal })
    }
}

/// Whether what begins here is a zstd frame with a checksum over its content, which then is checked while it is unpacked.
/// Source: RFC 8878, 3.1.1 (the magic number) and 3.1.1.1.1.5 (the flag in the frame header descriptor).
fn has_checksum(frame: &[u8]) -> bool {
    matches!(frame, [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] if descriptor & 4 != 0)
}

fn damaged(error: impl std::fmt::Display) -> SealError {
    SealError::Damaged(error.to_string())
}

/// An object that is being opened. The stored bytes are those that were signed; that the plain ones are, too, is known when
/// [`Pieces::next`] has said that there are no more.
pub struct Pieces<'a> {
    opening: zstd::Decoder<'static, BufReader<StreamReader<&'a [u8]>>>,
    piece: Box<[u8]>,
    /// Of the plain bytes, where it is computed.
    digest: Option<digest::Context>,
    read: u64,
    seal: Seal,
}

impl Pieces<'_> {
    /// What was signed about it.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// The next bytes; `None` behind the last ones, when all of them are what was sealed.
    ///
    /// # Errors
    /// When they are not.
    #[expect(clippy::should_implement_trait, reason = "a piece is lent until the next one is asked for")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, SealError> {
        let bytes = self.opening.read(&mut self.piece).map_err(damaged)?;
        self.read += bytes as u64;
        let other = || Err(SealError::Damaged("it opens to other bytes than were sealed".into()));
        if bytes > 0 {
            // What is longer is refused as soon as it is.
            if self.read > self.seal.plain.bytes {
                return other();
            }
            if let Some(digest) = &mut self.digest {
                digest.update(&self.piece[..bytes]);
            }
            return Ok(Some(&self.piece[..bytes]));
        }
        let found = self.digest.clone().map(|digest| hex::encode(digest.finish()));
        let same = found.is_none_or(|found| found == self.seal.plain.sha256);
        if same && self.read == self.seal.plain.bytes { Ok(None) } else { other() }
    }
}
