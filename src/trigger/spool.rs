//! Messages that hooks left because nobody answered: taken at start, before each look at the refs, and every 30 s.

use super::hook::SPOOL_DIR;
use super::intake::blocking;
use super::message::{MESSAGE_MAX_BYTES, Message};
use super::{Intake, IntakeError};
use crate::model::RepoName;
use crate::model::trigger::Feeder;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Messages taken in one pass over one repository; the rest waits for the next.
const FILES_MAX: usize = 1_000;
/// A message is in the spool because nobody answered, so nobody waits for it by the second.
const EVERY: Duration = Duration::from_secs(30);

/// Looks through all spools every 30 s, until dropped.
pub async fn run(intake: Arc<Intake>) {
    loop {
        for name in intake.names() {
            if let Err(error) = take(&intake, &name).await {
                tracing::warn!(repo = %name, %error, "failed to take the spooled pushes");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Takes the messages in one repository's spool, oldest first. A file is removed after its rows are stored.
///
/// # Errors
/// When a message could not be stored; it stays where it is.
pub async fn take(intake: &Intake, name: &RepoName) -> Result<usize, IntakeError> {
    let entry = intake.entry(name)?;
    let Some(path) = entry.repo.mirror.location().local_path() else { return Ok(0) };
    let dir = path.join(SPOOL_DIR);
    let files = blocking({
        let dir = dir.clone();
        move || list(&dir)
    })
    .await?;
    let mut taken = 0;
    for file in files {
        let read = blocking({
            let file = file.clone();
            move || read(&file)
        })
        .await?;
        let message = match read.as_deref().map(Message::parse) {
            Ok(Ok(message)) => message,
            Ok(Err(why)) => {
                tracing::warn!(file = %file.display(), why, "a spooled push is damaged and was put aside");
                let _ = fs::rename(&file, file.with_extension("bad"));
                continue;
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "failed to read a spooled push");
                continue;
            }
        };
        // The file lies in this repository: that counts, not the name it was installed with.
        intake.report_push(Feeder::Hook, name, Some(message.delivery), message.actor, message.changes).await?;
        // Two looks at once (at start, and before a poll) both find it; one of them removes it.
        if let Err(error) = fs::remove_file(&file)
            && error.kind() != io::ErrorKind::NotFound
        {
            // It is taken once all the same: the delivery id is known now.
            tracing::warn!(file = %file.display(), %error, "failed to remove a spooled push that was taken");
        }
        taken += 1;
    }
    Ok(taken)
}

/// The oldest messages; names begin with the time.
fn list(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "push")).collect();
    files.sort();
    files.truncate(FILES_MAX);
    files
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A link or a pipe put here by somebody else is not read and does not hold us up.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut text = Vec::new();
    file.take(MESSAGE_MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}
