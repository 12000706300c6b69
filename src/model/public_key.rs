//! Public keys that sign what Mainstay writes into Git, in the form of OpenSSH.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// The kind of key, as OpenSSH names it.
pub(crate) const KIND: &str = "ssh-ed25519";

/// An Ed25519 public key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes.
    pub fn new(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What `ssh-keygen -l` shows of it: `SHA256:…`.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(self.blob())))
    }

    /// The key as OpenSSH encodes it.
    pub(crate) fn blob(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        put(&mut blob, KIND.as_bytes());
        put(&mut blob, &self.0);
        blob
    }

    pub(crate) fn from_blob(mut blob: &[u8]) -> Option<PublicKey> {
        let is_ours = take(&mut blob)? == KIND.as_bytes();
        let key = take(&mut blob)?.try_into().ok()?;
        (is_ours && blob.is_empty()).then_some(PublicKey(key))
    }
}

impl fmt::Display for PublicKey {
    /// The line of a `.pub` file: `ssh-ed25519 AAAA…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND} {}", STANDARD.encode(self.blob()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = String;
    /// Takes the line of a `.pub` file, with or without a comment.
    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        if words.next() != Some(KIND) {
            return Err(format!("the key does not begin with `{KIND}`"));
        }
        let blob = words.next().and_then(|word| STANDARD.decode(word).ok());
        blob.and_then(|blob| PublicKey::from_blob(&blob)).ok_or_else(|| "the key is damaged".to_owned())
    }
}

/// Appends a text with its length in front, as OpenSSH writes all its texts.
pub(crate) fn put(to: &mut Vec<u8>, text: &[u8]) {
    // Everything put here is shorter than a line of text.
    to.extend((text.len() as u32).to_be_bytes());
    to.extend(text);
}

/// Takes such a text off the front.
pub(crate) fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = from.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *from = rest;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_has_the_fingerprint_that_ssh_shows() {
        // As `ssh-keygen -lf` says it of this key.
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f somebody";
        let key: PublicKey = line.parse().unwrap();
        assert_eq!(key.bytes()[31], 31);
        assert_eq!(format!("{key} somebody"), line);
        assert_eq!(key.fingerprint(), "SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA");
        for bad in ["", "ssh-rsa AAAA", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 %"] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }
}
