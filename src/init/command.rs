//! Starting the user's command, and the marks that say when it began and what it put out. Shared by the helper and by
//! the shim of the process runtime, so that a step begins and ends in one way.

use super::sys::{self, ENOENT, SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use super::wire::{self, Order};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

/// What is passed on to the command, and the news of children that ended.
pub(crate) const WATCHED: [i32; 7] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD];
/// Outputs are short facts (versions, digests) that are kept with the run in the database.
const OUTPUT_MAX_BYTES: u64 = 64 << 10;

/// The line that says that the command is about to begin.
pub(crate) fn begin_mark(nonce: &str) -> String {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("\x1emainstay:begin:{nonce}:{nanos}\n")
}

/// The line that hands over what the command wrote to its output file; empty when it wrote nothing.
pub(crate) fn end_mark(nonce: &str, output: &[u8]) -> io::Result<String> {
    let raw = read_output(Path::new(std::ffi::OsStr::from_bytes(output)))?;
    if raw.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("\x1emainstay:end:{nonce}:{}\n", wire::base64(&raw)))
}

/// Makes the empty output file, writable for whichever user the command turns into. When that fails the command
/// finds out by itself if it needs the file at all.
pub(crate) fn make_output(output: &[u8]) {
    if output.is_empty() {
        return;
    }
    let path = Path::new(std::ffi::OsStr::from_bytes(output));
    if let Ok(file) = OpenOptions::new().write(true).create(true).truncate(false).mode(0o666).open(path) {
        let _ = file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    }
}

fn read_output(path: &Path) -> io::Result<Vec<u8>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    use std::os::fd::AsFd;
    let folder = File::open(folder)?;
    let file = match sys::open_file(folder.as_fd(), name.as_bytes()) {
        Err(e) if e.raw_os_error() == Some(ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no longer a plain file"));
    }
    let mut raw = Vec::new();
    file.take(OUTPUT_MAX_BYTES + 1).read_to_end(&mut raw)?;
    if raw.len() as u64 > OUTPUT_MAX_BYTES {
        return Err(io::Error::other("it is longer than 64 KiB"));
    }
    Ok(raw)
}

/// Starts the command in a process group of its own, with nothing on stdin. `captured` asks for pipes on its outputs.
/// The error is the exit code a shell would give, and a sentence.
pub(crate) fn spawn(order: &Order, captured: Option<()>) -> Result<Child, (i32, String)> {
    let text = |bytes: &Vec<u8>| OsString::from_vec(bytes.clone());
    let Some(program) = order.argv.first() else {
        return Err((127, "cannot start the step: the image names no command".to_owned()));
    };
    let mut command = Command::new(text(program));
    command.args(order.argv[1..].iter().map(text));
    command.envs(order.env.iter().map(|(name, value)| (text(name), text(value))));
    command.current_dir(text(&order.cwd)).stdin(Stdio::null()).process_group(0);
    if captured.is_some() {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    // SAFETY: between fork and exec only one system call is made; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(|| sys::unblock(&WATCHED));
    }
    command.spawn().map_err(|error| why_not(order, program, &error))
}

fn why_not(order: &Order, program: &[u8], error: &io::Error) -> (i32, String) {
    let shown = String::from_utf8_lossy(program);
    let cwd = Path::new(std::ffi::OsStr::from_bytes(&order.cwd));
    if !cwd.is_dir() {
        return (126, format!("cannot start `{shown}`: the folder {} is not there", cwd.display()));
    }
    match error.raw_os_error() {
        Some(ENOENT) if program == b"/bin/sh" => (
            127,
            "cannot start `/bin/sh`: the image has no shell, and `commands` need one\n\
             hint: take an image with /bin/sh, or leave `commands` out to run the image's entrypoint with `args`"
                .to_owned(),
        ),
        Some(ENOENT) => (127, format!("cannot start `{shown}`: not found")),
        _ => (126, format!("cannot start `{shown}`: {error}")),
    }
}
