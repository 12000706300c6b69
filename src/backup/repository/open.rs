//! From what the settings say to a repository that can be used.

use super::folder::Folder;
use super::s3::{self, S3, S3Credentials, S3Settings};
use super::{Repository, RepositoryError};
use crate::config::daemon::RepositoryPlace;
use crate::config::daemon::repository::{AccessKeys, Bucket, Checksums};
use std::path::Path;
use std::sync::Arc;

/// Where the places are noted that this machine has used.
const KNOWN: &str = "repositories";

/// Whether a folder that holds nothing yet becomes a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Making<'a> {
    /// Never: whoever reads wants one that is there.
    Never,
    /// When this machine has not used the place before. One that was used and is empty now is a disk that is not mounted,
    /// and nothing is begun there anew. The state folder remembers.
    First(&'a Path),
}

/// Opens the repository at a place.
///
/// # Errors
/// When it is not there, cannot be reached, or refuses.
pub async fn open(place: &RepositoryPlace, making: Making<'_>) -> Result<Arc<dyn Repository>, RepositoryError> {
    match place {
        RepositoryPlace::Folder(path) => Ok(Arc::new(folder(path, making)?)),
        RepositoryPlace::Bucket(bucket) => {
            let opened = S3::open(settings(bucket)).await?;
            // A writer's first word with the store: whether it answers at all, and what it can do. It is found out by writing,
            // which whoever reads may not be allowed to; restores in particular need not wait for it.
            if making != Making::Never {
                opened.abilities().await?;
            }
            Ok(Arc::new(opened))
        }
    }
}

fn folder(path: &Path, making: Making<'_>) -> Result<Folder, RepositoryError> {
    let Making::First(state) = making else { return Folder::open(path) };
    let known = state.join(KNOWN);
    let doing = || format!("note the repository {} in {}", path.display(), known.display());
    let failed = |error: std::io::Error| RepositoryError::Refused { doing: doing(), detail: error.to_string() };
    let line = path.to_string_lossy().into_owned();
    let listed = match std::fs::read_to_string(&known) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.map_err(failed)?,
    };
    if listed.lines().any(|one| one == line) {
        return Folder::open(path);
    }
    let folder = Folder::create(path)?;
    // After it was made: a kill in between makes nothing a second time, since a folder that is one is opened.
    std::fs::create_dir_all(state).map_err(failed)?;
    std::fs::write(&known, format!("{listed}{line}\n")).map_err(failed)?;
    Ok(folder)
}

fn settings(bucket: &Bucket) -> S3Settings {
    let keys = |keys: &AccessKeys| S3Credentials {
        access_key: keys.id.expose().to_owned(),
        secret_key: keys.secret.clone(),
        session_token: None,
    };
    let mut settings = S3Settings::new(&bucket.name);
    settings.prefix.clone_from(&bucket.prefix);
    settings.endpoint.clone_from(&bucket.endpoint);
    let region = bucket.region.clone().or_else(|| std::env::var("AWS_REGION").ok());
    if let Some(region) = region.or_else(|| std::env::var("AWS_DEFAULT_REGION").ok()) {
        settings.region = region;
    }
    settings.path_style = bucket.path_style;
    settings.ca.clone_from(&bucket.ca);
    settings.credentials = bucket.keys.as_ref().map(keys);
    settings.delete_credentials = bucket.delete_keys.as_ref().map(keys);
    settings.object_lock = bucket.object_lock.map(|span| span.0);
    settings.piece_lock = bucket.piece_lock.map(|span| span.0);
    settings.checksums = match bucket.checksums {
        Checksums::WhenRequired => s3::Checksums::WhenRequired,
        Checksums::WhenSupported => s3::Checksums::WhenSupported,
    };
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_made_once_and_missed_ever_after() {
        let dir = tempfile::tempdir().unwrap();
        let (state, path) = (dir.path().join("state"), dir.path().join("disk"));
        let place = RepositoryPlace::Folder(path.clone());
        assert!(open(&place, Making::Never).await.is_err(), "nobody made it");
        assert!(!path.exists());
        open(&place, Making::First(&state)).await.unwrap();
        open(&place, Making::First(&state)).await.unwrap();
        open(&place, Making::Never).await.unwrap();
        // The disk is not mounted.
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(open(&place, Making::First(&state)).await.is_err());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }
}
