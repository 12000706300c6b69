//! Ed25519 keys that sign what Mainstay writes: entries of a deploy history in Git, objects of a repository.
//!
//! A key is a file (PKCS#8, PEM) for its owner only; its public half lies beside it in the form of OpenSSH, as a line that
//! people copy into the settings of whoever is to believe it.

use crate::model::PublicKey;
use crate::small_file;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

/// Why a key could not be had. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The file cannot be read or written.
    #[error("{doing} the signing key {}: {source}", .path.display())]
    Io {
        /// `read` or `make`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("read the signing key {}: it is no Ed25519 key in PKCS#8\nhint: `mainstay key new` makes one", .0.display())]
    NoKey(PathBuf),
    /// The system's random numbers failed.
    #[error("make a signing key: no random numbers were to be had")]
    NoRandom,
}

/// A key that signs.
#[derive(Clone)]
pub struct SigningKey(Arc<Ed25519KeyPair>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public()).finish()
    }
}

impl SigningKey {
    /// The key in that file, made when there is none. A `.pub` file beside it holds the public line.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds something else.
    pub fn open(path: &Path) -> Result<SigningKey, SigningError> {
        if !path.exists() {
            make(path)?;
        }
        let key = SigningKey::read(path)?;
        let public = path.with_extension("pub");
        let line = format!("{} mainstay\n", key.public());
        if std::fs::read_to_string(&public).is_ok_and(|there| there == line) {
            return Ok(key);
        }
        std::fs::write(&public, line).map_err(|source| SigningError::Io { doing: "make", path: public, source })?;
        Ok(key)
    }

    /// A new key, in memory only.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<SigningKey, SigningError> {
        Ok(SigningKey(Arc::new(Ed25519KeyPair::generate().map_err(|_| SigningError::NoRandom)?)))
    }

    /// The key in that file.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<SigningKey, SigningError> {
        let text = small_file::read_text(path, small_file::KEY_MAX_BYTES);
        let text = text.map_err(|source| SigningError::Io { doing: "read", path: path.to_owned(), source })?;
        let bad = || SigningError::NoKey(path.to_owned());
        let body = text.trim().strip_prefix(PEM_BEGIN).and_then(|rest| rest.strip_suffix(PEM_END)).ok_or_else(bad)?;
        let body: String = body.split_whitespace().collect();
        let document = STANDARD.decode(body).map_err(|_| bad())?;
        Ok(SigningKey(Arc::new(Ed25519KeyPair::from_pkcs8(&document).map_err(|_| bad())?)))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        // Ed25519 public keys are 32 bytes by definition; the copy says so to the compiler.
        let mut key = [0; 32];
        key.copy_from_slice(&self.0.public_key().as_ref()[..32]);
        PublicKey::new(key)
    }

    /// The signature over these bytes: 64 of them.
    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(bytes).as_ref().to_vec()
    }
}

/// Whether `signature` is this key's over these bytes.
pub fn verifies(key: &PublicKey, bytes: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key.bytes()).verify(bytes, signature).is_ok()
}

/// Makes a key under its final name at once: whoever comes second, after a kill for instance, takes the first one's.
fn make(path: &Path) -> Result<(), SigningError> {
    let document = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8()).map_err(|_| SigningError::NoRandom)?;
    let write = || {
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&beside);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        writeln!(file, "{PEM_BEGIN}\n{}\n{PEM_END}", STANDARD.encode(document.as_ref()))?;
        file.sync_all()?;
        let linked = std::fs::hard_link(&beside, path);
        std::fs::remove_file(&beside)?;
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    write().map_err(|source| SigningError::Io { doing: "make", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_only_and_read_back() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = |name: &str| SigningKey::open(&dir.path().join(name)).unwrap();
        let first = key("key");
        assert_eq!(first.public(), key("key").public());
        assert_ne!(first.public(), key("other").public());
        let mode = std::fs::metadata(dir.path().join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let line = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
        assert_eq!(line.parse::<PublicKey>().unwrap(), first.public());
        std::fs::write(dir.path().join("bad"), "no key").unwrap();
        assert!(SigningKey::open(&dir.path().join("bad")).is_err());
        assert!(SigningKey::read(&dir.path().join("none")).is_err());
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_signature_fits_its_key_and_its_bytes_only() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) =
            (SigningKey::open(&dir.path().join("a")).unwrap(), SigningKey::open(&dir.path().join("b")).unwrap());
        let signature = a.sign(b"said");
        assert!(verifies(&a.public(), b"said", &signature));
        assert!(!verifies(&a.public(), b"sait", &signature));
        assert!(!verifies(&b.public(), b"said", &signature));
        assert!(!verifies(&a.public(), b"said", &signature[..63]));
    }
}
