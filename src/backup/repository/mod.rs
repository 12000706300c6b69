//! Where sealed objects are kept. One contract, two kinds of place: an S3 bucket and a folder; one suite runs on both.
//!
//! Objects come from `seal` and leave as they came, with their receipt. A repository knows names and bytes, and nothing of
//! what they mean.

pub mod folder;
pub mod keys;
pub mod open;
pub mod s3;

pub use keys::{Archive, BackupId, Cluster, DumpItem, DumpStream, Form, Item, Key};

use super::seal::{Extent, Receipt, Sealed};
use crate::model::SourceName;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::path::Path;

/// What became of writing an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// It is stored and durable: read back it would be these bytes.
    Stored,
    /// Another writer, or an earlier try, has stored an object of this name: its receipt. The caller compares what the
    /// two say of the plain bytes; encryption is randomised, so the stored bytes of a repetition differ.
    Exists(Receipt),
}

/// An object as it is stored. Its bytes are digested once, when it is read, and whoever checks them compares that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    bytes: Bytes,
    receipt: Receipt,
    extent: Extent,
}

impl Stored {
    /// Digests the bytes, which takes a millisecond of a core for a MiB.
    pub fn new(bytes: Bytes, receipt: Receipt) -> Stored {
        Stored { extent: Extent::of(&bytes), bytes, receipt }
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What its writer signed about them, whether or not it is true.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Length and digest of the bytes, as they are.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name as stored; may be none that Mainstay gives.
    pub name: String,
    /// Its length as stored.
    pub bytes: u64,
    /// When the place says it was written. Its clock may be wrong: nothing is deleted on its word alone.
    pub written: Timestamp,
}

/// What became of deleting an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Gone,
    /// There was none.
    Absent,
    /// The place keeps it, by an object lock or because these credentials may not delete.
    Locked,
}

/// The one object that is replaced, and what must be named to replace it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// What it says.
    pub stored: Stored,
    /// Which version of it this is, as the place names it.
    pub version: String,
}

/// What became of replacing the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replaced {
    /// Done.
    Done,
    /// It is no longer the version that was named.
    Changed,
}

/// What a place can do, found out by trying and not by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Of two writers of one name, one is told that it exists.
    pub write_once: bool,
    /// The lease can be replaced only by who has seen it last.
    pub replace_if: bool,
    /// Objects can be locked against deletion until a time.
    pub object_lock: bool,
}

/// Why a repository could not do what was asked. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// There is no object of this name.
    #[error("read {name}: there is no such object")]
    Absent {
        /// The name.
        name: String,
    },
    /// The place does not answer, or answered that it cannot now; every try within the time allowed.
    #[error("{doing}: {detail}")]
    Unreachable {
        /// What was asked, such as `store shop-db/…`.
        doing: String,
        /// The last answer, and how often it was tried.
        detail: String,
    },
    /// The place refuses: credentials, rights, a bucket that is not there.
    #[error("{doing}: {detail}")]
    Refused {
        /// What was asked.
        doing: String,
        /// The answer, and `hint:` lines.
        detail: String,
    },
    /// What came back is not what was stored: too short, another digest, a receipt that does not read.
    #[error("read {name}: {detail}")]
    Damaged {
        /// The name.
        name: String,
        /// What is wrong.
        detail: String,
    },
}

/// The source in an object's name, when Mainstay gave it.
fn source_of(name: &str) -> Option<SourceName> {
    SourceName::new(name.split_once('/')?.0).ok()
}

/// A place for objects.
///
/// # Contract
/// - Every method may be called at any time, from many tasks at once, and may be repeated after any failure or cancel.
/// - `put_new` answers `Stored` only when the object is durable with exactly these bytes, and never changes an object that
///   is there. A reader sees nothing or the whole object. When an answer is lost it finds out by asking, and says `Stored`
///   when what is there is what it sent.
/// - `get` gives the bytes whose stored digest and length the receipt names, or fails; it does not check the signature.
/// - `list` gives every object whose name begins with the prefix, in order of names, or fails: never a part of them.
/// - Failures that pass are retried inside, with growing, jittered pauses, up to a bound; memory stays bounded whatever the
///   sizes.
/// - `replace_lease` is for the lease alone. Where `abilities().replace_if` is false it fails.
#[async_trait]
pub trait Repository: Send + Sync {
    /// The place in words for messages, without credentials: `s3://bucket/prefix`, `/var/backups`.
    fn place(&self) -> String;

    /// The folder that it is, where it is one of this machine.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// What the place can do; asked once, then remembered.
    ///
    /// # Errors
    /// When the place cannot be reached or refuses.
    async fn abilities(&self) -> Result<Abilities, RepositoryError>;

    /// Stores an object under a name that is not taken.
    ///
    /// # Errors
    /// When it could not be stored, or that could not be found out.
    async fn put_new(&self, key: &Key, object: &Sealed) -> Result<Put, RepositoryError>;

    /// Reads an object.
    ///
    /// # Errors
    /// `Absent` when the place says that there is none; any doubt is another error.
    async fn get(&self, key: &Key) -> Result<Stored, RepositoryError>;

    /// Reads what is said about an object, without its bytes.
    ///
    /// # Errors
    /// As `get`.
    async fn receipt(&self, key: &Key) -> Result<Receipt, RepositoryError>;

    /// The sources that have anything here, in order of names. Places that can say it without a whole listing do.
    ///
    /// # Errors
    /// When the listing is not whole.
    async fn sources(&self) -> Result<Vec<SourceName>, RepositoryError> {
        let listed = self.list("").await?;
        let mut names: Vec<SourceName> = listed.iter().filter_map(|object| source_of(&object.name)).collect();
        names.dedup();
        Ok(names)
    }

    /// Every object whose name begins with `prefix`.
    ///
    /// # Errors
    /// When the listing is not whole.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError>;

    /// Removes an object.
    ///
    /// # Errors
    /// When it cannot be said what became of it.
    async fn delete(&self, key: &Key) -> Result<Deleted, RepositoryError>;

    /// Reads the lease; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn lease(&self, key: &Key) -> Result<Option<Leased>, RepositoryError>;

    /// Writes the lease in place of the version that was seen, or as the first one.
    ///
    /// # Errors
    /// When it cannot be said what became of it, or the place cannot do this.
    async fn replace_lease(&self, key: &Key, object: &Sealed, seen: Option<&str>) -> Result<Replaced, RepositoryError>;
}
