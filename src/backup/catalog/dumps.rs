//! Logical copies in a repository: the document that makes one exist, and what is held of them. Plain data, no I/O; made by
//! `index`, asked by `retention`, `expire`, `verify` and `logical`.

use super::holdings::{self, Missing, Object};
use super::manifest::{ObjectFacts, Proof};
use crate::backup::repository::{BackupId, Cluster, DumpItem, DumpStream, Item, Key};
use crate::model::SystemId;
use crate::model::text::moment;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What makes a logical copy exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DumpManifest {
    /// The version of this document; the same as that of all documents.
    pub version: u32,
    /// The copy.
    pub backup: BackupId,
    /// Which cluster it is of.
    pub system: SystemId,
    /// The server's `server_version_num`, such as 150018.
    pub server_version: u32,
    /// What `pg_dump --version` said. A `pg_restore` of this or a later major version reads it.
    pub program: String,
    /// When it began, by the writer's clock: no database in it is of an earlier moment.
    pub began: Timestamp,
    /// When its last byte was stored.
    pub ended: Timestamp,
    /// Roles and the like, as SQL.
    pub globals: StreamFacts,
    /// Whether the passwords of roles are among them: the server shows them to superusers only.
    pub role_passwords: bool,
    /// Its databases, in the order of their names.
    pub databases: Vec<DatabaseDump>,
    /// The objects of the globals in order, then those of each database.
    pub objects: Vec<ObjectFacts>,
    /// What it was made by.
    pub made_by: String,
}

/// How long a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StreamFacts {
    /// Its objects; at least one.
    pub chunks: u32,
    /// Its bytes.
    pub bytes: u64,
}

/// One database of a logical copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DatabaseDump {
    /// Its OID on the server, which names its objects.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its encoding, such as `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// How long its archive is.
    #[serde(flatten)]
    pub stream: StreamFacts,
}

impl DumpManifest {
    /// The major version of the server, such as 15.
    pub fn major(&self) -> u32 {
        self.server_version / 10_000
    }

    /// Bytes of its streams.
    pub fn bytes(&self) -> u64 {
        self.globals.bytes + self.databases.iter().map(|database| database.stream.bytes).sum::<u64>()
    }

    /// The objects of one of its streams, in order.
    pub fn objects_of(&self, stream: DumpStream) -> &[ObjectFacts] {
        let mut from = 0;
        for (one, facts) in self.streams() {
            let to = from + facts.chunks as usize;
            if one == stream {
                return self.objects.get(from..to).unwrap_or_default();
            }
            from = to;
        }
        &[]
    }

    /// Its streams in order.
    fn streams(&self) -> impl Iterator<Item = (DumpStream, StreamFacts)> {
        let databases = self.databases.iter().map(|one| (DumpStream::Database(one.oid), one.stream));
        std::iter::once((DumpStream::Globals, self.globals)).chain(databases)
    }

    /// What is wrong with it as the manifest of the copy `id` of a cluster: it names exactly the chunks of its streams, in
    /// order and of the lengths that it says.
    ///
    /// # Errors
    /// When it does not.
    pub fn sound(&self, cluster: &Cluster, id: &BackupId) -> Result<(), String> {
        if self.backup != *id {
            return Err(format!("it is the manifest of {}", self.backup));
        }
        if self.system != cluster.system {
            return Err(format!("it is of the cluster {}", self.system));
        }
        let mut objects = self.objects.iter();
        for (stream, facts) in self.streams() {
            let mut bytes = 0_u64;
            for number in 0..facts.chunks {
                let item = Item::Dump(id.clone(), DumpItem::Chunk { stream, number });
                let name = Key::Of(cluster.clone(), item).to_string();
                let Some(object) = objects.next().filter(|object| object.key == name) else {
                    return Err(format!("it does not name {name} in its place"));
                };
                bytes = bytes.saturating_add(object.plain.bytes);
            }
            if facts.chunks == 0 || bytes != facts.bytes {
                return Err(format!(
                    "its stream {stream} has {bytes} bytes in objects, and {} by its word",
                    facts.bytes
                ));
            }
        }
        match objects.next() {
            Some(object) => Err(format!("it names {}, which is no part of it", object.key)),
            None => Ok(()),
        }
    }
}

/// A logical copy whose manifest is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// What makes it exist.
    pub manifest: DumpManifest,
    /// The object of that.
    pub object: Object,
    /// All it takes in the repository, in bytes.
    pub stored_bytes: u64,
    /// Objects of its manifest that the listing lacks, or shows with another length.
    pub missing: Vec<Missing>,
    /// Objects in its folder that its manifest does not name.
    pub extra: Vec<Object>,
    /// The newest checks of it that were read, oldest first.
    pub proofs: Vec<(u64, Proof)>,
    /// The objects of all its checks.
    pub proof_objects: Vec<Object>,
}

impl Dump {
    /// Its name.
    pub fn id(&self) -> &BackupId {
        &self.manifest.backup
    }

    /// The newest check, when that found it bad.
    pub fn failed(&self) -> Option<&Proof> {
        holdings::failed(&self.proofs)
    }

    /// The strongest check that it passed since the last one that it failed.
    pub fn proven(&self) -> Option<&Proof> {
        holdings::proven(&self.proofs)
    }

    /// Why it cannot be used, in words; `None` when it can.
    pub fn unusable(&self) -> Option<String> {
        let lacks = self.missing.first().map(|first| {
            format!(
                "{} lacks {} of its objects, the first is {}: {}",
                self.id(),
                self.missing.len(),
                first.name,
                first.why
            )
        });
        let failed = || {
            let proof = self.failed()?;
            Some(format!("the check of {} at {} found it bad: {}", self.id(), moment(proof.at), proof.detail))
        };
        lacks.or_else(failed)
    }
}

/// The logical copies of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dumps {
    /// Those whose manifest is good, by age.
    pub good: BTreeMap<BackupId, Dump>,
    /// Those whose manifest is listed and is not good: kept, never used.
    pub doubtful: BTreeMap<BackupId, Vec<Object>>,
    /// Objects of copies without a manifest: running, interrupted, or half expired.
    pub unfinished: BTreeMap<BackupId, Vec<Object>>,
}

impl Dumps {
    /// Copies that can be used, **newest first**.
    pub fn usable(&self) -> impl Iterator<Item = &Dump> {
        self.good.values().rev().filter(|dump| dump.unusable().is_none())
    }

    /// Whether nothing of any copy is there.
    pub fn is_empty(&self) -> bool {
        self.good.is_empty() && self.doubtful.is_empty() && self.unfinished.is_empty()
    }

    /// Whether an object of this name was listed.
    pub(super) fn has(&self, id: &BackupId, key: &Key) -> bool {
        let one_of = |objects: &[Object]| objects.iter().any(|object| object.key == *key);
        if let Some(objects) = self.unfinished.get(id).or_else(|| self.doubtful.get(id)) {
            return one_of(objects);
        }
        let Some(dump) = self.good.get(id) else { return false };
        let name = key.to_string();
        let named = dump.manifest.objects.iter().any(|object| object.key == name);
        let missing = dump.missing.iter().any(|missing| missing.name == name);
        dump.object.key == *key || one_of(&dump.extra) || one_of(&dump.proof_objects) || (named && !missing)
    }
}

/// Logical copies for tests of what does no I/O.
#[cfg(test)]
pub(crate) mod make {
    use super::*;
    use crate::backup::catalog::holdings::Holdings;
    pub(crate) use crate::backup::catalog::holdings::make::{at, id};
    use crate::backup::catalog::holdings::make::{empty, object};
    use crate::backup::catalog::manifest::VERSION;
    use crate::backup::seal::Extent;

    /// A copy begun at each of these hours, of one database, an hour long.
    pub(crate) fn with_copies(hours: &[i64]) -> Holdings {
        let mut holdings = empty();
        for hour in hours {
            let (began, id) = (at(*hour), id(*hour));
            let of = |stream| {
                let item = Item::Dump(id.clone(), DumpItem::Chunk { stream, number: 0 });
                let key = holdings.key(item).to_string();
                ObjectFacts { key, plain: Extent::of(b"plain"), stored: Extent::of(b"stored") }
            };
            let objects = vec![of(DumpStream::Globals), of(DumpStream::Database(5))];
            let stream = StreamFacts { chunks: 1, bytes: 5 };
            let text = |text: &str| text.to_owned();
            let (name, encoding, collate, ctype) = (text("shop"), text("UTF8"), text("C"), text("C"));
            let manifest = DumpManifest {
                version: VERSION,
                backup: id.clone(),
                system: holdings.cluster.system,
                server_version: 150_018,
                program: text("pg_dump (PostgreSQL) 15.18"),
                began,
                ended: at(*hour + 1),
                globals: stream,
                role_passwords: true,
                databases: vec![DatabaseDump { oid: 5, name, encoding, collate, ctype, stream }],
                objects,
                made_by: text("a test"),
            };
            manifest.sound(&holdings.cluster, &id).unwrap();
            let object = object(&holdings, Item::Dump(id.clone(), DumpItem::Manifest));
            let (missing, extra, proofs, proof_objects) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let dump = Dump { manifest, object, stored_bytes: 1_000, missing, extra, proofs, proof_objects };
            holdings.dumps.good.insert(id, dump);
        }
        holdings
    }
}
