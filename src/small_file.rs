//! The one way in for files that people write or name: settings, sources, pipelines, keys, secrets.
//!
//! Whoever can put a file beside others must not make us wait for ever, nor read without end: a pipe, a socket, a device and a
//! folder are refused, before a byte is read, and what is longer than such a file ever is, too. Links are followed.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Settings, sources, pipelines, certificates: more is no such file.
pub const TEXT_MAX_BYTES: u64 = 1 << 20;
/// A key is a few lines, and a file of identities some hundred.
pub const KEY_MAX_BYTES: u64 = 64 << 10;

/// Reads a regular file of at most so many bytes.
///
/// # Errors
/// As the system says; `InvalidInput` of what is no regular file, `FileTooLarge` of what is longer.
pub fn read(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
    bounded(&open(path)?.0, most_bytes)
}

/// The same, as text.
///
/// # Errors
/// As [`read`]; `InvalidData` of what is not UTF-8.
pub fn read_text(path: &Path, most_bytes: u64) -> io::Result<String> {
    text(read(path, most_bytes)?)
}

/// The text of what a person names in a command, who may name a pipe: a shell makes one of `<(…)`. That person waits for it.
///
/// # Errors
/// As [`read_text`], but for pipes.
pub fn read_named(path: &Path, most_bytes: u64) -> io::Result<String> {
    match std::fs::metadata(path)?.file_type().is_fifo() {
        true => text(bounded(&File::open(path)?, most_bytes)?),
        false => read_text(path, most_bytes),
    }
}

/// Opens a regular file, and says what it is.
///
/// # Errors
/// As the system says; `InvalidInput` of what is no regular file.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path);
    let file = opened.map_err(|error| match std::fs::metadata(path) {
        // A socket cannot be opened at all, and the system's words for it say nothing.
        Ok(about) if !about.is_file() => irregular(&about),
        _ => error,
    })?;
    // Of what was opened, and not of what has the name by now.
    let about = file.metadata()?;
    if about.is_file() { Ok((file, about)) } else { Err(irregular(&about)) }
}

fn irregular(about: &Metadata) -> io::Error {
    let kind = about.file_type();
    let what = match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe (FIFO)",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    io::Error::new(ErrorKind::InvalidInput, format!("it is {what}, and no regular file"))
}

fn bounded(file: &File, most_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 <= most_bytes {
        return Ok(bytes);
    }
    let most = match most_bytes {
        whole if whole % (1 << 20) == 0 => format!("{} MiB", whole >> 20),
        _ => format!("{} KiB", most_bytes >> 10),
    };
    Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is longer than {most}, which no such file is")))
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        io::Error::new(ErrorKind::InvalidData, format!("it is not UTF-8 text (line {line})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_regular_files_of_some_length_are_read_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text\n").unwrap();
        symlink("file", at("link")).unwrap();
        assert_eq!(read_text(&at("file"), 5).unwrap(), "text\n");
        assert_eq!(read_text(&at("link"), TEXT_MAX_BYTES).unwrap(), "text\n");
        nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        symlink("pipe", at("link to a pipe")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        for (name, words) in [
            ("pipe", "a pipe (FIFO)"),
            ("link to a pipe", "a pipe (FIFO)"),
            ("socket", "a socket"),
            ("folder", "a folder"),
            ("zero", "a device"),
        ] {
            let error = read(&at(name), TEXT_MAX_BYTES).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
            assert_eq!(error.to_string(), format!("it is {words}, and no regular file"));
        }
        assert_eq!(read(&at("none"), 1).unwrap_err().kind(), ErrorKind::NotFound);
        let long = read(&at("file"), 4).unwrap_err();
        assert_eq!(long.kind(), ErrorKind::FileTooLarge, "{long}");
        std::fs::write(at("bytes"), b"a\n\xff").unwrap();
        assert_eq!(read_text(&at("bytes"), 9).unwrap_err().to_string(), "it is not UTF-8 text (line 2)");
    }

    #[test]
    fn a_person_may_name_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let writer = {
            let pipe = pipe.clone();
            std::thread::spawn(move || OpenOptions::new().write(true).open(pipe).unwrap().write_all(b"key").unwrap())
        };
        assert_eq!(read_named(&pipe, KEY_MAX_BYTES).unwrap(), "key");
        writer.join().unwrap();
        assert!(read_named(Path::new("/dev/zero"), KEY_MAX_BYTES).is_err());
    }
}
