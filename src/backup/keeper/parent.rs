//! What the next incremental backup is the difference to.
//!
//! A server gives the difference to a backup of which it is shown its own manifest. In the repository that is encrypted, and whoever
//! takes backups cannot open it; so the newest one is kept in the state folder too: names, lengths and checksums of files,
//! nothing of what is in them. When it is lost, or is of a backup that is not there or not good, the next backup is whole and says
//! why.

use super::Setup;
use crate::backup::catalog::holdings::{Backup, Holdings};
use crate::backup::catalog::index::{Catalogue, CatalogueError};
use crate::backup::catalog::manifest::Manifest;
use crate::backup::repository::{Cluster, Item};
use crate::backup::seal::Extent;
use crate::backup::take::{Parent, Taken, Wish};
use crate::config::backup::Incremental;
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Where the server's manifest of the newest backup is kept.
fn path(setup: &Setup) -> PathBuf {
    setup.state.join("backups").join(format!("{}.manifest", setup.source.name))
}

/// The difference to the backup whose manifest is kept, or a whole backup and why.
///
/// # Errors
/// When the repository cannot be read.
pub(super) async fn wish(setup: &Setup, cluster: &Cluster, incremental: &Incremental) -> Result<Wish, CatalogueError> {
    let path = path(setup);
    let read = tokio::task::spawn_blocking(move || fs::read(&path).map_err(|error| (path, error)));
    let server_manifest = match read.await {
        Ok(Ok(bytes)) => Bytes::from(bytes),
        Ok(Err((_, error))) if error.kind() == ErrorKind::NotFound => {
            return Ok(Wish::WholeBecause("the server's manifest of the last backup is not kept here".into()));
        }
        Ok(Err((path, error))) => return Ok(Wish::WholeBecause(format!("read {}: {error}", path.display()))),
        Err(error) => return Ok(Wish::WholeBecause(error.to_string())),
    };
    let catalogue = Catalogue::read(setup.repository.as_ref(), &setup.checker, &setup.source.name).await?;
    let Some(holdings) = catalogue.clusters.get(&cluster.system) else {
        return Ok(Wish::WholeBecause("the last backup is of another cluster".into()));
    };
    let extent = Extent::of(&server_manifest);
    Ok(match choose(holdings, &extent, incremental.chain) {
        Ok(manifest) => {
            Wish::Difference(Box::new(Parent { manifest, server_manifest, checker: setup.checker.clone() }))
        }
        Err(why) => Wish::WholeBecause(why),
    })
}

/// The backup that this manifest of the server's is of, when it is good and its chain may grow.
fn choose(holdings: &Holdings, server_manifest: &Extent, most: u32) -> Result<Manifest, String> {
    let of = |backup: &&Backup| {
        let name = holdings.key(Item::ServerManifest(backup.id().clone())).to_string();
        backup.manifest.objects.iter().any(|object| object.key == name && object.plain == *server_manifest)
    };
    let Some(backup) = holdings.backups.values().rev().find(of) else {
        return Err("the backup whose manifest is kept here is not in the repository any more".into());
    };
    let chain = holdings.chain(backup.id()).map_err(|why| format!("the last backup cannot be used: {why}"))?;
    // The whole one is no difference.
    let differences = chain.len() - 1;
    if differences as u64 >= u64::from(most) {
        return Err(format!("{differences} incremental backups rest on {} already", chain[0].id()));
    }
    Ok(backup.manifest.clone())
}

/// Keeps the server's manifest of a backup that exists. Failing here is no failure of that backup: the next one is whole.
pub(super) async fn keep(setup: &Setup, taken: &Taken) {
    let (path, bytes) = (path(setup), taken.server_manifest.clone());
    let written = tokio::task::spawn_blocking(move || write(&path, &bytes).map_err(|error| (path, error)));
    if let Ok(Err((path, error))) = written.await {
        tracing::warn!(source = %setup.source.name, "the next backup will be a whole one: write {}: {error}", path.display());
    }
}

/// In one step, so that what is there is whole.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Whoever holds the lease of the source is alone here.
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::catalog::holdings::make::{empty, id};
    use crate::backup::catalog::holdings::{Missing, Unusable};
    use crate::backup::catalog::index::BadKind;
    use crate::backup::catalog::manifest::ObjectFacts;

    /// What the server's manifest of the backup of that hour would be.
    fn text(hours: i64) -> Extent {
        Extent::of(format!("the manifest of {hours}").as_bytes())
    }

    fn holdings() -> Holdings {
        let mut holdings = empty()
            .with_backup(1, 1, 1, 2, None)
            .with_backup(2, 1, 3, 4, Some(1))
            .with_backup(3, 1, 5, 6, Some(2))
            .with_backup(4, 1, 7, 8, None);
        for hours in 1..=4 {
            let key = holdings.key(Item::ServerManifest(id(hours))).to_string();
            let facts = ObjectFacts { key, plain: text(hours), stored: text(0) };
            holdings.backups.get_mut(&id(hours)).unwrap().manifest.objects.push(facts);
        }
        holdings
    }

    fn chosen(holdings: &Holdings, hours: i64, most: u32) -> Result<crate::backup::repository::BackupId, String> {
        choose(holdings, &text(hours), most).map(|manifest| manifest.backup)
    }

    #[test]
    fn r14_a_difference_is_to_the_backup_whose_manifest_is_kept() {
        let holdings = holdings();
        for hours in 1..=4 {
            assert_eq!(chosen(&holdings, hours, 3), Ok(id(hours)));
        }
        let why = chosen(&holdings, 5, 3).unwrap_err();
        assert!(why.contains("not in the repository any more"), "{why}");
    }

    #[test]
    fn r14_a_chain_ends_where_it_is_long_enough() {
        let holdings = holdings();
        assert_eq!(chosen(&holdings, 2, 2), Ok(id(2)));
        assert_eq!(chosen(&holdings, 4, 1), Ok(id(4)), "a whole one begins a chain");
        let why = chosen(&holdings, 3, 2).unwrap_err();
        assert_eq!(why, format!("2 incremental backups rest on {} already", id(1)));
    }

    #[test]
    fn r14_nothing_is_built_on_a_chain_that_is_not_whole() {
        let mut broken = holdings();
        let (name, kind) = ("x".to_owned(), BadKind::Gone);
        broken.backups.get_mut(&id(1)).unwrap().missing.push(Missing { name, kind, why: "it is gone".into() });
        let why = chosen(&broken, 3, 9).unwrap_err();
        assert!(why.contains("cannot be used") && why.contains(&id(1).to_string()), "{why}");
        let mut gone = holdings();
        gone.backups.remove(&id(1));
        assert!(matches!(gone.chain(&id(3)), Err(Unusable::Orphan { .. })));
        assert!(chosen(&gone, 3, 9).unwrap_err().contains("which is not there"));
        // Checksums were switched on in between.
        let mut other = holdings();
        other.backups.get_mut(&id(1)).unwrap().manifest.server.data_checksums = false;
        assert!(chosen(&other, 2, 9).unwrap_err().contains("checksums"));
    }

    #[test]
    fn what_is_kept_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/backups/db.manifest");
        for text in [&b"first, and longer"[..], b"second"] {
            write(&path, text).unwrap();
            assert_eq!(fs::read(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
