//! The two halves of a repository's keys: recipients and a signing key on the writer, identities and the writer's public
//! key wherever somebody restores.

use super::SealError;
use crate::model::PublicKey;
use crate::signing::SigningKey;
use age::secrecy::ExposeSecret as _;
use age::x25519;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Says in an identity file whose signatures go with it. A comment for `age` itself, which reads the same file.
const SIGNED_BY: &str = "# signed by: ";
/// More lines than an identity file has; a large file given by mistake is not read to its end.
const LINES_MAX: usize = 1_000;

/// Age recipients: what objects are encrypted to.
#[derive(Clone)]
pub(super) struct Recipients(Arc<Vec<x25519::Recipient>>);

impl Recipients {
    pub(super) fn parse(texts: &[String]) -> Result<Recipients, SealError> {
        let one = |text: &String| {
            let parsed = x25519::Recipient::from_str(text.trim());
            parsed.map_err(|why| SealError::Broken(format!("`{text}` is no age recipient (`age1…`): {why}")))
        };
        let found = texts.iter().map(one).collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() {
            return Err(SealError::Broken(
                "nobody is named to encrypt to\nhint: `encrypt-to` in `repository` takes what `mainstay key new` prints".into(),
            ));
        }
        Ok(Recipients(Arc::new(found)))
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &dyn age::Recipient> {
        self.0.iter().map(|one| one as &dyn age::Recipient)
    }

    pub(super) fn fingerprints(&self) -> Vec<String> {
        self.0.iter().map(|one| fingerprint(&one.to_string())).collect()
    }
}

/// What tells recipients apart in messages and receipts: the first 16 digits of the SHA-256 of the recipient's text.
pub fn fingerprint(recipient: &str) -> String {
    hex::encode(&Sha256::digest(recipient.as_bytes())[..8])
}

/// Age identities, and the public keys of the writers that come with them. Never printed.
#[derive(Clone)]
pub struct Identities {
    keys: Arc<Vec<x25519::Identity>>,
    signers: Vec<PublicKey>,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("fingerprints", &self.fingerprints()).finish_non_exhaustive()
    }
}

impl Identities {
    /// Reads an identity file, as `mainstay key new` and `age-keygen` write it.
    ///
    /// # Errors
    /// When it holds no identity, or a line that is none. No message shows a line.
    pub fn parse(text: &str) -> Result<Identities, SealError> {
        let (mut keys, mut signers) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().take(LINES_MAX).enumerate() {
            let line = line.trim();
            let wrong = |what: &str| SealError::Broken(format!("line {} of the identity file {what}", number + 1));
            if let Some(key) = line.strip_prefix(SIGNED_BY) {
                signers.push(key.parse().map_err(|why| wrong(&format!("names no public key: {why}")))?);
            } else if !line.is_empty() && !line.starts_with('#') {
                keys.push(
                    x25519::Identity::from_str(line).map_err(|_| wrong("is no age identity (`AGE-SECRET-KEY-1…`)"))?,
                );
            }
        }
        if keys.is_empty() {
            return Err(SealError::Broken("the identity file holds no identity".into()));
        }
        Ok(Identities { keys: Arc::new(keys), signers })
    }

    /// Those of several files together; `None` of no file.
    pub fn all(files: Vec<Identities>) -> Option<Identities> {
        let keys: Vec<_> = files.iter().flat_map(|one| one.keys.iter().cloned()).collect();
        let signers = files.into_iter().flat_map(|one| one.signers).collect();
        (!keys.is_empty()).then(|| Identities { keys: Arc::new(keys), signers })
    }

    /// The writers whose public keys stand in the file.
    pub fn signers(&self) -> &[PublicKey] {
        &self.signers
    }

    /// What receipts call them.
    pub fn fingerprints(&self) -> Vec<String> {
        self.keys.iter().map(|key| fingerprint(&key.to_public().to_string())).collect()
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.keys.iter().map(|key| key as &dyn age::Identity)
    }
}

/// A new pair of halves.
#[derive(Debug, Clone)]
pub struct KeySet {
    /// What goes into `encrypt-to`.
    pub recipient: String,
    /// What opens it.
    pub identity: Identities,
    /// What signs.
    pub signing: SigningKey,
}

impl KeySet {
    /// The identity file's text: a secret. It reads as one of `age` too.
    pub fn identity_file(&self, now: jiff::Timestamp) -> String {
        let mut text = format!("# created: {}\n# public key: {}\n", now.strftime("%Y-%m-%dT%H:%M:%SZ"), self.recipient);
        text += &format!("{SIGNED_BY}{}\n", self.signing.public());
        for key in self.identity.keys.iter() {
            text += key.to_string().expose_secret();
            text.push('\n');
        }
        text
    }
}

/// Makes an identity; `signing` is whose signatures it goes with.
pub fn new_key_set_for(signing: SigningKey) -> KeySet {
    let key = x25519::Identity::generate();
    let recipient = key.to_public().to_string();
    KeySet { recipient, identity: Identities { keys: Arc::new(vec![key]), signers: vec![signing.public()] }, signing }
}

/// Makes both halves anew, in memory.
///
/// # Errors
/// When the system gives no random numbers.
pub fn new_key_set() -> Result<KeySet, SealError> {
    let signing = SigningKey::generate().map_err(|error| SealError::Broken(error.to_string()))?;
    Ok(new_key_set_for(signing))
}
