//! Values that must not be seen, and the folder that keeps them.

use super::check::variable_name;
use crate::small_file;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A value that prints as `(secret)`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }
    /// The value itself. Every call is a place where it may leak: search for it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why the store of secrets could not do what was asked. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The name is not one a variable can have.
    #[error("use the secret's name: {0}")]
    Name(String),
    /// Too large, or not text.
    #[error("use the secret `{name}`: {why}")]
    Value {
        /// Which one.
        name: String,
        /// What is wrong with it; never the value.
        why: &'static str,
    },
    /// The folder or a file in it.
    #[error("use the secret store {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An environment of a process takes 128 KiB per variable; a key or a certificate chain has under 16.
pub const SECRET_MAX_BYTES: u64 = 64 * 1024;

/// The folder `secrets` in the daemon's state: one file per secret, for its owner only.
#[derive(Debug, Clone)]
pub struct SecretStore {
    folder: PathBuf,
}

impl SecretStore {
    /// The store in a state folder. Nothing is made before the first `set`.
    pub fn new(state: &Path) -> Self {
        SecretStore { folder: state.join("secrets") }
    }

    fn path(&self, name: &str) -> Result<PathBuf, SecretError> {
        variable_name(name).map_err(SecretError::Name)?;
        Ok(self.folder.join(name))
    }

    /// Takes one out; `None` when there is none of that name. One newline at the end is not part of it.
    ///
    /// # Errors
    /// A bad name, an unreadable file, a value that is too large or not UTF-8.
    pub fn get(&self, name: &str) -> Result<Option<Secret>, SecretError> {
        let path = self.path(name)?;
        match read_text(&path) {
            Ok(text) => Ok(Some(Secret(text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(SecretError::Value { name: name.to_owned(), why: "it is not UTF-8 text of at most 64 KiB" })
            }
            Err(source) => Err(SecretError::Io { path, source }),
        }
    }

    /// Whether there is one of that name.
    ///
    /// # Errors
    /// A bad name.
    pub fn contains(&self, name: &str) -> Result<bool, SecretError> {
        Ok(self.path(name)?.is_file())
    }

    /// Puts one in, in place of what had the name. After a crash there is the old value or the new one.
    ///
    /// # Errors
    /// A bad name, an empty or too large value, a folder that cannot be written.
    pub fn set(&self, name: &str, value: &Secret) -> Result<(), SecretError> {
        let path = self.path(name)?;
        let wrong = |why| Err(SecretError::Value { name: name.to_owned(), why });
        if value.0.is_empty() {
            return wrong("it is empty");
        }
        if value.0.len() as u64 > SECRET_MAX_BYTES {
            return wrong("it is longer than 64 KiB");
        }
        if value.0.contains('\0') {
            return wrong("it holds a NUL byte, which no environment variable can");
        }
        self.replace(&path, value).map_err(|source| SecretError::Io { path: self.folder.clone(), source })
    }

    fn replace(&self, path: &Path, value: &Secret) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        // `mode` above does not apply to a folder that was there.
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700))?;
        // A name with a dot is no secret's name, so a leftover is never listed or read.
        let new = self.folder.join(format!(".new.{}", std::process::id()));
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(value.0.as_bytes())?;
        // A value that ends in a newline would lose it when it is read.
        if value.0.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        // Root may set a secret for a daemon that is not root: the file belongs to whoever has the state folder.
        if let Some(owner) = self.folder.parent().and_then(|state| fs::metadata(state).ok())
            && owner.uid() != file.metadata()?.uid()
        {
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            std::os::unix::fs::chown(&self.folder, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(&self.folder)?.sync_all()
    }

    /// The names, sorted.
    ///
    /// # Errors
    /// When the folder is there and cannot be read.
    pub fn list(&self) -> Result<Vec<String>, SecretError> {
        let failed = |source| SecretError::Io { path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(failed)?.file_name().into_string().ok().filter(|n| variable_name(n).is_ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Removes one; false when there was none.
    ///
    /// # Errors
    /// A bad name, or a folder that cannot be written.
    pub fn remove(&self, name: &str) -> Result<bool, SecretError> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Ok(()) => {
                let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
                synced.map_err(|source| SecretError::Io { path: self.folder.clone(), source })?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(SecretError::Io { path, source }),
        }
    }
}

/// A small text file without the newline at its end. `InvalidData` when it is too large or not UTF-8.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text of at most 64 KiB");
    // With the newline.
    let mut bytes = small_file::read(path, SECRET_MAX_BYTES + 1).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => bad(),
        _ => error,
    })?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= SECRET_MAX_BYTES);
    text.ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_kept_for_their_owner_only_and_never_print() {
        let state = tempfile::tempdir().unwrap();
        let store = SecretStore::new(state.path());
        assert_eq!(store.list().unwrap(), [""; 0]);
        assert_eq!(store.get("TOKEN").unwrap(), None);
        store.set("TOKEN", &Secret::new("old")).unwrap();
        store.set("TOKEN", &Secret::new("s3cret\n")).unwrap();
        store.set("A", &Secret::new("x")).unwrap();
        let found = store.get("TOKEN").unwrap().unwrap();
        assert_eq!(found.expose(), "s3cret\n");
        assert!(!format!("{found:?} {found} {:?}", Some(&found)).contains("s3cret"));
        assert_eq!(store.list().unwrap(), ["A", "TOKEN"]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(state.path().join("secrets")), 0o700);
        assert_eq!(mode(state.path().join("secrets/TOKEN")), 0o600);
        assert!(store.remove("A").unwrap() && !store.remove("A").unwrap());
        assert_eq!(store.list().unwrap(), ["TOKEN"]);
    }

    #[test]
    fn names_and_values_that_do_harm_are_refused() {
        let state = tempfile::tempdir().unwrap();
        let store = SecretStore::new(state.path());
        for name in ["", "../x", "a/b", "a.b", "1A", "a\0", ".new.1"] {
            assert!(matches!(store.set(name, &Secret::new("x")), Err(SecretError::Name(_))), "{name:?}");
            assert!(matches!(store.get(name), Err(SecretError::Name(_))), "{name:?}");
            assert!(matches!(store.remove(name), Err(SecretError::Name(_))), "{name:?}");
        }
        for value in ["", "a\0b", &"x".repeat(70_000)] {
            assert!(matches!(store.set("A", &Secret::new(value)), Err(SecretError::Value { .. })));
        }
        store.set("A", &Secret::new("x")).unwrap();
        fs::write(state.path().join("secrets/A"), [0xff, 0xfe]).unwrap();
        assert!(matches!(store.get("A"), Err(SecretError::Value { .. })));
    }
}
