//! What a target has to know after a crash and cannot ask of the place itself: small JSON files in a folder of the
//! environment's own, each there whole or not at all.

use super::TargetError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

fn error(path: &Path, doing: &str, error: &io::Error) -> TargetError {
    TargetError::Missing(format!("{doing} {}: {error}\nhint: it is in the state folder", path.display()))
}

/// What is noted there; `None` when nothing is. What cannot be read is an error, since acting without it could end what
/// serves.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TargetError> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| error(path, "read", &e))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| error(path, "read", &e.into()))
}

/// Notes something; it is on the disk when this returns.
pub(super) fn write<T: Serialize>(path: &Path, note: &T) -> Result<(), TargetError> {
    let put = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        serde_json::to_writer(&mut file, note)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    put().map_err(|e| error(path, "write", &e))
}

/// Removes a note, a file or a folder with all in it. Nothing there is success.
pub(super) fn remove(path: &Path) -> Result<(), TargetError> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(path, "remove", &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/note.json");
        assert_eq!(read::<Vec<u8>>(&path).unwrap(), None);
        write(&path, &vec![1u8, 2]).unwrap();
        write(&path, &vec![3u8]).unwrap();
        assert_eq!(read::<Vec<u8>>(&path).unwrap(), Some(vec![3]));
        std::fs::write(&path, "[3").unwrap();
        assert!(read::<Vec<u8>>(&path).is_err(), "half a note was taken for none");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read::<Vec<u8>>(&path).unwrap(), None);
    }
}
