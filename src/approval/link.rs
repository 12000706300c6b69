//! Links that are mailed, and the six digits that are mailed when one is used.
//!
//! A link's text is 64 characters: 16 random bytes that name it, and an HMAC over them, the request, the person and the
//! end of its time, under a key that never leaves the state folder. So the database alone lets nobody in. The digits'
//! digest is keyed too, and covers what they were asked for: digits that were mailed for a no do not serve for a yes.

use crate::model::{ApprovalId, PersonName};
use crate::small_file;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use subtle::ConstantTimeEq;

/// The key's file in the state folder.
pub const KEY: &str = "link.key";
/// So long the six digits are taken.
pub const CODE_FOR: SignedDuration = SignedDuration::from_mins(10);
/// Wrong digits before the link is dead: one guess in 200,000 is right by then.
pub const TRIES: u32 = 5;
/// Digits mailed for one link: whoever has somebody's link must not fill their mailbox.
pub const CODES: u32 = 10;

/// What names a link.
const ID_BYTES: usize = 16;
/// An HMAC-SHA256.
const MAC_BYTES: usize = 32;

/// Why the key cannot be used. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file.
    #[error("use the key of mailed links {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Others could have read it.
    #[error(
        "use the key of mailed links {0}: others may read it\nhint: delete it if it was read; links mailed before are not taken then"
    )]
    Open(PathBuf),
    /// It is no key.
    #[error(
        "use the key of mailed links {0}: it does not hold 64 hex digits\nhint: delete it, the daemon makes a new one; links mailed before are not taken then"
    )]
    Malformed(PathBuf),
    /// No random bytes.
    #[error("get random bytes: {0}")]
    Random(getrandom::Error),
}

/// The key of links. Does not print.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// Reads it from the state folder, or makes one when there is none. The file is whole or absent, also after a crash,
    /// and readable by its owner only.
    ///
    /// # Errors
    /// When the file cannot be read or made, others may read it, or it holds no key.
    pub fn load_or_create(state: &Path) -> Result<Key, KeyError> {
        let path = state.join(KEY);
        let io = |source| KeyError::Io { path: path.clone(), source };
        if !path.try_exists().map_err(io)? {
            create(&path)?;
        }
        if std::fs::metadata(&path).map_err(io)?.mode() & 0o077 != 0 {
            return Err(KeyError::Open(path));
        }
        let text = small_file::read_text(&path, small_file::KEY_MAX_BYTES).map_err(io)?;
        let mut key = [0_u8; 32];
        hex::decode_to_slice(text.trim(), &mut key).map_err(|_| KeyError::Malformed(path))?;
        Ok(Key(key))
    }

    /// The text of a link.
    pub fn token(&self, id: &str, approval: ApprovalId, person: &PersonName, expires_at: Timestamp) -> Option<String> {
        let id: [u8; ID_BYTES] = hex::decode(id).ok()?.try_into().ok()?;
        let mac = self.mac(id, approval, person, expires_at).finalize().into_bytes();
        Some(URL_SAFE_NO_PAD.encode([id.as_slice(), mac.as_slice()].concat()))
    }

    /// Whether the shown text is that link's. Takes a time that does not depend on where the texts differ.
    pub fn is(&self, shown: &Shown, approval: ApprovalId, person: &PersonName, expires_at: Timestamp) -> bool {
        let mac = self.mac(shown.id, approval, person, expires_at).finalize().into_bytes();
        mac.as_slice().ct_eq(&shown.mac).into()
    }

    fn mac(
        &self,
        id: [u8; ID_BYTES],
        approval: ApprovalId,
        person: &PersonName,
        expires_at: Timestamp,
    ) -> Hmac<Sha256> {
        // Only the name has no fixed length, so that no two links have the same form.
        self.keyed()
            .chain_update(b"mainstay-link-1")
            .chain_update(id)
            .chain_update(approval.0.to_be_bytes())
            .chain_update(person.as_str())
            .chain_update(expires_at.as_millisecond().to_be_bytes())
    }

    /// What is stored of the digits: for this link and this answer only.
    pub fn code_digest(&self, link: &str, code: &str, asked: &Asked) -> [u8; 32] {
        let mut mac = self.keyed().chain_update(b"mainstay-code-1");
        let inputs = asked.inputs.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        for text in [link, code, asked.what, asked.message.as_deref().unwrap_or_default()].into_iter().chain(inputs) {
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }

    fn keyed(&self) -> Hmac<Sha256> {
        Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length")
    }
}

/// What the digits are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `approve`, `reject` or `withdraw`.
    pub what: &'static str,
    /// What is given along.
    pub inputs: BTreeMap<String, String>,
    /// What is said along.
    pub message: Option<String>,
}

/// A link's text as somebody showed it, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    id: [u8; ID_BYTES],
    mac: [u8; MAC_BYTES],
}

impl Shown {
    /// Reads it; nothing when it cannot be one.
    pub fn read(text: &str) -> Option<Shown> {
        // Anything longer is no link, and not worth decoding.
        let bytes = (text.len() == 64).then(|| URL_SAFE_NO_PAD.decode(text).ok())??;
        let (id, mac) = bytes.split_at_checked(ID_BYTES)?;
        Some(Shown { id: id.try_into().ok()?, mac: mac.try_into().ok()? })
    }

    /// The name of the link, as the store has it.
    pub fn id(&self) -> String {
        hex::encode(self.id)
    }
}

/// A name for a new link.
///
/// # Errors
/// When there are no random bytes.
pub fn new_id() -> Result<String, KeyError> {
    let mut id = [0_u8; ID_BYTES];
    getrandom::fill(&mut id).map_err(KeyError::Random)?;
    Ok(hex::encode(id))
}

/// Six new digits.
///
/// # Errors
/// When there are no random bytes.
pub fn new_code() -> Result<String, KeyError> {
    /// The largest multiple of a million that fits: beyond it some digits would come more often.
    const FAIR: u32 = u32::MAX - u32::MAX % 1_000_000;
    loop {
        let drawn = getrandom::u32().map_err(KeyError::Random)?;
        if drawn < FAIR {
            return Ok(format!("{:06}", drawn % 1_000_000));
        }
    }
}

fn create(path: &Path) -> Result<(), KeyError> {
    let mut random = [0_u8; 32];
    getrandom::fill(&mut random).map_err(KeyError::Random)?;
    let scratch = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&scratch)?;
        writeln!(out, "{}", hex::encode(random))?;
        out.sync_all()?;
        match std::fs::hard_link(&scratch, path) {
            // Somebody else was faster: theirs counts.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let written = write();
    // A scratch file left by a crash holds a key that was never in force.
    let _ = std::fs::remove_file(&scratch);
    written.map_err(|source| KeyError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (tempfile::TempDir, Key, String, Timestamp) {
        let folder = tempfile::tempdir().unwrap();
        let key = Key::load_or_create(folder.path()).unwrap();
        (folder, key, new_id().unwrap(), "2026-03-01T10:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_link_is_taken_for_exactly_what_it_was_made_for() {
        let (_folder, key, id, end) = sample();
        let person = PersonName::new("ana").unwrap();
        let token = key.token(&id, ApprovalId(7), &person, end).unwrap();
        assert_eq!(token.len(), 64);
        let shown = Shown::read(&token).unwrap();
        assert_eq!(shown.id(), id);
        assert!(key.is(&shown, ApprovalId(7), &person, end));
        assert!(!key.is(&shown, ApprovalId(8), &person, end));
        assert!(!key.is(&shown, ApprovalId(7), &PersonName::new("anb").unwrap(), end));
        assert!(!key.is(&shown, ApprovalId(7), &person, end + SignedDuration::from_millis(1)));
        let (_other, another, ..) = sample();
        assert!(!another.is(&shown, ApprovalId(7), &person, end));
    }

    #[test]
    fn every_changed_character_makes_it_another_link_or_none() {
        let (_folder, key, id, end) = sample();
        let person = PersonName::new("ana").unwrap();
        let token = key.token(&id, ApprovalId(7), &person, end).unwrap();
        for at in 0..token.len() {
            for with in ['A', 'z', '-', '+', '=', ' '] {
                let mut text: Vec<char> = token.chars().collect();
                if text[at] == with {
                    continue;
                }
                text[at] = with;
                let text: String = text.into_iter().collect();
                assert!(Shown::read(&text).is_none_or(|shown| !key.is(&shown, ApprovalId(7), &person, end)), "{text}");
            }
        }
        for odd in ["", "a", &token[..63], &format!("{token}a"), &"é".repeat(32)] {
            assert!(Shown::read(odd).is_none(), "{odd}");
        }
    }

    #[test]
    fn digits_serve_for_what_they_were_asked_for() {
        let (_folder, key, id, _) = sample();
        let asked = |what, pairs: &[(&str, &str)]| Asked {
            what,
            inputs: pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            message: None,
        };
        let digest = key.code_digest(&id, "012345", &asked("approve", &[("a", "b")]));
        assert_eq!(digest, key.code_digest(&id, "012345", &asked("approve", &[("a", "b")])));
        for (link, code, asked) in [
            ("00", "012345", asked("approve", &[("a", "b")])),
            (&id, "012346", asked("approve", &[("a", "b")])),
            (&id, "012345", asked("reject", &[("a", "b")])),
            (&id, "012345", asked("approve", &[("a", "c")])),
            (&id, "012345", asked("approve", &[])),
            (&id, "012345", asked("approve", &[("ab", "")])),
        ] {
            assert_ne!(digest, key.code_digest(link, code, &asked), "{asked:?}");
        }
        let codes: std::collections::BTreeSet<_> = (0..100).map(|_| new_code().unwrap()).collect();
        assert!(codes.len() > 90 && codes.iter().all(|c| c.len() == 6 && c.bytes().all(|b| b.is_ascii_digit())));
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, key, id, end) = sample();
        let path = folder.path().join(KEY);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a scratch file was left");
        let again = Key::load_or_create(folder.path()).unwrap();
        let person = PersonName::new("ana").unwrap();
        assert_eq!(again.token(&id, ApprovalId(1), &person, end), key.token(&id, ApprovalId(1), &person, end));
        assert!(!format!("{key:?}").contains(std::fs::read_to_string(&path).unwrap().trim()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Key::load_or_create(folder.path()).unwrap_err().to_string().contains("others may read it"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "short").unwrap();
        assert!(Key::load_or_create(folder.path()).unwrap_err().to_string().contains("64 hex digits"));
    }
}
