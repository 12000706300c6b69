//! Signatures on the commits that Mainstay writes: Ed25519, in the form that `ssh-keygen -Y` and `git verify-commit` know.
//!
//! The key is made in the state folder at first use and never leaves it; its public line is what people put into their
//! `gpg.ssh.allowedSignersFile`, and what the next daemon is told to trust. The encodings are written out by hand: they
//! are three strings with their lengths in front, and checked in a test against the real programs.

use crate::model::public_key::{KIND, PublicKey, put, take};
use crate::signing::{SigningKey, verifies};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha512};

/// Begins every signature of this form, and what is signed.
const MAGIC: &[u8] = b"SSHSIG";
/// What the signature is for; git uses this word.
const NAMESPACE: &str = "git";
const HASH: &str = "sha512";
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
/// Bytes of base64 in a line, as `ssh-keygen` breaks them.
const LINE: usize = 70;

/// Why a signature does not count. `Display` says it in words, as a sentence about the signed thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unverified {
    /// The signature fits, and its key is none of those that are trusted.
    #[error("it is signed with a key that is not trusted: {0}")]
    Untrusted(PublicKey),
    /// There is no signature that fits.
    #[error("{0}")]
    Broken(String),
}

impl From<&str> for Unverified {
    fn from(why: &str) -> Self {
        Unverified::Broken(why.to_owned())
    }
}

/// The armoured signature over a commit's text.
pub(super) fn sign(key: &SigningKey, text: &[u8]) -> String {
    let mut signature = Vec::new();
    put(&mut signature, KIND.as_bytes());
    put(&mut signature, &key.sign(&signed_part(text)));
    let mut blob = MAGIC.to_vec();
    blob.extend(1_u32.to_be_bytes());
    put(&mut blob, &key.public().blob());
    put(&mut blob, NAMESPACE.as_bytes());
    put(&mut blob, b"");
    put(&mut blob, HASH.as_bytes());
    put(&mut blob, &signature);
    let encoded = STANDARD.encode(blob);
    let mut armoured = format!("{BEGIN}\n");
    for line in encoded.as_bytes().chunks(LINE) {
        armoured.push_str(&String::from_utf8_lossy(line));
        armoured.push('\n');
    }
    armoured + END
}

/// Checks that `text` was signed by one of `trusted`, and says by which.
///
/// # Errors
/// What is wrong with the signature.
pub(super) fn verify(armoured: &[u8], text: &[u8], trusted: &[PublicKey]) -> Result<PublicKey, Unverified> {
    let damaged = || Unverified::from("its signature is damaged");
    let armoured = std::str::from_utf8(armoured).map_err(|_| damaged())?;
    let body = armoured.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let body: String = body.ok_or("its signature is none that Mainstay makes")?.split_whitespace().collect();
    let blob = STANDARD.decode(body).map_err(|_| damaged())?;
    let mut rest =
        blob.strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix(&1_u32.to_be_bytes()[..])).ok_or_else(damaged)?;
    let mut next = || take(&mut rest).ok_or_else(damaged);
    let (key, namespace, reserved, hash, mut signature) = (next()?, next()?, next()?, next()?, next()?);
    if !rest.is_empty() || !reserved.is_empty() {
        return Err(damaged());
    }
    let key = PublicKey::from_blob(key).ok_or("it is signed with another kind of key")?;
    if namespace != NAMESPACE.as_bytes() || hash != HASH.as_bytes() {
        return Err("its signature is for another purpose".into());
    }
    let kind = take(&mut signature).ok_or_else(damaged)?;
    let raw = take(&mut signature).filter(|_| kind == KIND.as_bytes()).ok_or_else(damaged)?;
    if !signature.is_empty() {
        return Err(damaged());
    }
    if !verifies(&key, &signed_part(text), raw) {
        return Err("its signature does not fit what it says".into());
    }
    // Last: people are told to trust a key only where that would help.
    if trusted.contains(&key) { Ok(key) } else { Err(Unverified::Untrusted(key)) }
}

/// What is signed in place of the text itself.
fn signed_part(text: &[u8]) -> Vec<u8> {
    let mut part = MAGIC.to_vec();
    put(&mut part, NAMESPACE.as_bytes());
    put(&mut part, b"");
    put(&mut part, HASH.as_bytes());
    put(&mut part, &Sha512::digest(text));
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn key(dir: &tempfile::TempDir, name: &str) -> SigningKey {
        SigningKey::open(&dir.path().join(name)).unwrap()
    }

    #[test]
    fn ssh_keygen_believes_our_signatures_and_nobody_believes_changed_ones() {
        let dir = tempfile::tempdir().unwrap();
        let key = key(&dir, "key");
        let text = b"tree 1234\n\nproduction 7\n";
        let signature = sign(&key, text);
        std::fs::write(dir.path().join("sig"), &signature).unwrap();
        std::fs::write(dir.path().join("allowed"), format!("mainstay {}\n", key.public())).unwrap();
        let check = |text: &[u8]| {
            let mut child = Command::new("ssh-keygen")
                .args(["-Y", "verify", "-f", "allowed", "-I", "mainstay", "-n", "git", "-s", "sig"])
                .current_dir(dir.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the program `ssh-keygen` is needed by this test");
            child.stdin.take().unwrap().write_all(text).unwrap();
            child.wait().unwrap().success()
        };
        assert!(check(text), "{signature}");
        assert!(!check(b"tree 1235\n\nproduction 7\n"));

        let trusted = [key.public()];
        assert_eq!(verify(signature.as_bytes(), text, &trusted), Ok(key.public()));
        assert!(verify(signature.as_bytes(), b"other", &trusted).unwrap_err().to_string().contains("does not fit"));
        let other = self::key(&dir, "other").public();
        let untrusted = verify(signature.as_bytes(), text, &[other]);
        assert_eq!(untrusted, Err(Unverified::Untrusted(key.public())));
        for n in 0..signature.len() {
            let mut bytes = signature.clone().into_bytes();
            bytes[n] = if bytes[n] == b'A' { b'B' } else { b'A' };
            // White space between lines carries nothing.
            if signature.as_bytes()[n] != b'\n' {
                assert!(verify(&bytes, text, &trusted).is_err(), "changed at {n}");
            }
            let _ = verify(&signature.as_bytes()[..n], text, &trusted).unwrap_err();
        }
    }
}
