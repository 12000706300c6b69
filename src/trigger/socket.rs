//! The socket on which hooks tell about pushes. It can only notify: no question is answered but "did you store it".

use super::message::{MESSAGE_MAX_BYTES, Message, clean_actor};
use super::{Intake, IntakeError};
use crate::model::RepoName;
use crate::model::trigger::Feeder;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Pushes told at the same time; more wait in the backlog for their turn.
const AT_ONCE: usize = 64;
/// A hook has all of its message at hand; whoever takes longer is no hook.
const MESSAGE_WITHIN: Duration = Duration::from_secs(5);

/// The socket, bound; removed when dropped.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds the socket with mode 0660: the group of the state folder may notify. One that a killed daemon left is
    /// replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when another daemon answers there.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers on the hook socket"));
        }
        // Made beside, given its mode, and renamed: nobody connects to a socket that is open to all for an instant.
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&beside, path)?;
        Ok(Listener { listener, path: path.to_owned() })
    }

    /// Takes messages until dropped.
    pub async fn run(self, intake: Arc<Intake>) {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut talks = JoinSet::new();
        loop {
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let intake = Arc::clone(&intake);
                        talks.spawn(async move {
                            talk(&intake, stream).await;
                            drop(turn);
                        });
                    }
                    Err(error) => {
                        // Out of file handles, most likely: let some talks end.
                        tracing::warn!(%error, "failed to accept a hook's connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = talks.join_next() => {}
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn talk(intake: &Intake, mut stream: UnixStream) {
    let answer = match tokio::time::timeout(MESSAGE_WITHIN, receive(&mut stream)).await {
        Err(_) => "error the message did not come in time".to_owned(),
        Ok(Err(error)) => format!("error {error}"),
        Ok(Ok(text)) => match Message::parse(&text) {
            Err(why) => format!("error {why}"),
            Ok(message) => {
                let peer = stream.peer_cred().ok().map(|c| c.uid());
                match take(intake, message, peer).await {
                    Ok(()) => "ok".to_owned(),
                    Err(error) => {
                        tracing::warn!(%error, "failed to take a hook's report");
                        format!("error failed to {}", error.to_string().replace('\n', " "))
                    }
                }
            }
        },
    };
    // A hook that did not wait has left a spool file; what is stored is known by its delivery id.
    let _ = tokio::time::timeout(MESSAGE_WITHIN, stream.write_all(format!("{answer}\n").as_bytes())).await;
}

async fn take(intake: &Intake, message: Message, peer: Option<u32>) -> Result<(), IntakeError> {
    let Ok(repo) = RepoName::new(&*message.repo) else {
        return Err(crate::store::StoreError::Conflict("find the repository: its name is no name".into()).into());
    };
    let actor = message.actor.or_else(|| peer.and_then(user_name));
    intake.report_push(Feeder::Hook, &repo, Some(message.delivery), actor, message.changes).await?;
    Ok(())
}

/// The user at the other end of the socket, as the kernel says.
fn user_name(uid: u32) -> Option<String> {
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    clean_actor(&user.map_or_else(|| format!("uid {uid}"), |u| u.name))
}

/// Reads up to the line `end`.
async fn receive(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut piece = vec![0; 16 * 1_024];
    loop {
        let n = stream.read(&mut piece).await?;
        text.extend_from_slice(&piece[..n]);
        if n == 0 || text.ends_with(b"\nend\n") {
            return Ok(text);
        }
        if text.len() > MESSAGE_MAX_BYTES {
            return Err(io::Error::other("the message is longer than 16 MiB"));
        }
    }
}
