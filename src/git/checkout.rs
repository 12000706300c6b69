//! (stand-in until the real one is merged)
#![allow(missing_docs)]
use crate::model::Oid;
use std::io;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GitError(pub String);
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub tree: Oid,
    pub commit: Oid,
}
pub enum Change {
    Remove(Vec<u8>),
    Dir(Vec<u8>),
    File { path: Vec<u8>, executable: bool, data: Vec<u8> },
    Link { path: Vec<u8>, target: Vec<u8> },
}
pub fn checkout(
    _mirror: &Path,
    _commit: &Oid,
    _base: Option<&Base>,
    _branch: Option<&str>,
    _origin: &str,
    _sink: &mut dyn FnMut(Change) -> io::Result<()>,
) -> Result<Base, GitError> {
    Err(GitError("stand-in".into()))
}
pub fn folder(path: &Path, sink: &mut dyn FnMut(Change) -> io::Result<()>) -> Result<(), GitError> {
    fn walk(at: &Path, rel: &str, sink: &mut dyn FnMut(Change) -> io::Result<()>) -> io::Result<()> {
        for e in std::fs::read_dir(at)? {
            let e = e?;
            let name = format!("{rel}{}", e.file_name().to_string_lossy());
            let t = e.file_type()?;
            if t.is_dir() {
                sink(Change::Dir(name.clone().into_bytes()))?;
                walk(&e.path(), &format!("{name}/"), sink)?;
            } else if t.is_symlink() {
                use std::os::unix::ffi::OsStrExt;
                sink(Change::Link {
                    path: name.into_bytes(),
                    target: std::fs::read_link(e.path())?.as_os_str().as_bytes().to_vec(),
                })?;
            } else {
                use std::os::unix::fs::PermissionsExt;
                let executable = e.metadata()?.permissions().mode() & 0o111 != 0;
                sink(Change::File { path: name.into_bytes(), executable, data: std::fs::read(e.path())? })?;
            }
        }
        Ok(())
    }
    walk(path, "", sink).map_err(|e| GitError(e.to_string()))
}
