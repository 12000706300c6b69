//! Is a server at work in a folder? Asked of every folder that a restore writes into, before anything is touched.
//!
//! A data directory says it itself, in `postmaster.pid`. The folder of a tablespace does not: only the data directory that
//! links to it knows, so the servers that run on this machine are asked for theirs.

use crate::small_file;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The server that has this data directory open, in words: its process is alive, or its socket answers.
///
/// # Errors
/// When `postmaster.pid` cannot be read.
pub(super) fn by_a_server(data: &Path) -> std::io::Result<Option<String>> {
    let path = data.join("postmaster.pid");
    let text = match small_file::read_text(&path, small_file::KEY_MAX_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    // Process, data directory, start time, port, folder of the socket, address, …
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let line = |index: usize| lines.get(index).copied().unwrap_or_default();
    let pid: i32 = line(0).parse().unwrap_or(0);
    // A server of another container has another number here; its socket may still be seen.
    let alive =
        pid > 1 && nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH);
    let here = fs::read_link(format!("/proc/{pid}/cwd")).ok().zip(fs::canonicalize(data).ok());
    // The number may have gone to another process since.
    if alive && here.is_none_or(|(cwd, data)| cwd == data) {
        return Ok(Some(format!("postmaster.pid names process {pid}, which is alive")));
    }
    let socket = Path::new(line(4)).join(format!(".s.PGSQL.{}", line(3)));
    if !line(4).is_empty() && std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return Ok(Some(format!("something answers at {}", socket.display())));
    }
    Ok(None)
}

/// The server that has this folder for a tablespace, in words. Servers in containers are seen, too; where a server's
/// process may not be looked into, it is taken for one that has.
///
/// # Errors
/// When the folder or the list of processes cannot be read.
pub(super) fn as_a_tablespace(folder: &Path) -> std::io::Result<Option<String>> {
    let wanted = fs::metadata(folder)?;
    for entry in fs::read_dir("/proc")? {
        // A process that ends meanwhile uses nothing.
        let Ok(process) = entry.map(|entry| entry.path()) else { continue };
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else { continue };
        // A server's processes have its data directory for their working directory.
        let cwd = process.join("cwd");
        match fs::read_dir(cwd.join("pg_tblspc")) {
            Ok(links) => {
                let mut places = links.flatten().filter_map(|link| seen_by(&process, &link.path()));
                if places.any(|place| (place.dev(), place.ino()) == (wanted.dev(), wanted.ino())) {
                    let data = fs::read_link(&cwd).unwrap_or_else(|_| PathBuf::from("another folder"));
                    return Ok(Some(format!("the server of process {pid} on {}", data.display())));
                }
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                if matches!(name.trim(), "postgres" | "postmaster") {
                    return Ok(Some(format!(
                        "perhaps the server of process {pid}, which its own user and root may look into"
                    )));
                }
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// What a link in a server's `pg_tblspc` leads to, as that server sees the file system.
fn seen_by(process: &Path, link: &Path) -> Option<fs::Metadata> {
    let target = fs::read_link(link).ok()?;
    let place = match target.strip_prefix("/") {
        Ok(below) => process.join("root").join(below),
        Err(_) => link.with_file_name(target),
    };
    fs::metadata(place).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn r20_a_running_server_s_tablespace_is_known_by_the_link_in_its_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (data, space, other) = (dir.path().join("data"), dir.path().join("fast"), dir.path().join("other"));
        for folder in [&data.join("pg_tblspc"), &space, &other] {
            fs::create_dir_all(folder).unwrap();
        }
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16400")).unwrap();
        assert_eq!(as_a_tablespace(&space).unwrap(), None);
        // Any process in that folder: what counts is whose links lead here.
        let mut server = Command::new("sleep").arg("60").current_dir(&data).stdin(Stdio::null()).spawn().unwrap();
        let said = as_a_tablespace(&space).unwrap();
        let found = as_a_tablespace(&other).unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        let said = said.unwrap();
        assert!(said.contains(&format!("process {}", server.id())) && said.contains(data.to_str().unwrap()), "{said}");
        assert_eq!(found, None);
        assert_eq!(as_a_tablespace(&space).unwrap(), None);
    }
}
