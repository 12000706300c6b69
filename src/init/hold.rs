//! PID 1 of a run's holder: keeps the run's network namespace, and writes into the workspace what it is sent.

use crate::tree::Tree;
use crate::wire::{self, Frames, Header, Kind};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

/// What one sender has said so far.
struct Session {
    id: u64,
    tree: Tree,
    file: Option<(File, u64)>,
    /// The first thing that went wrong; the rest is read and dropped.
    failed: Option<String>,
}

/// Serves until it is killed.
pub(crate) fn run(workspace: &Path) -> io::Result<i32> {
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut frames = Frames::default();
    let mut session: Option<Session> = None;
    let mut chunk = vec![0; 256 << 10];
    loop {
        let count = match stdin.read(&mut chunk) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if count == 0 {
            // Nobody will ever speak again; the namespace is still needed.
            loop {
                std::thread::park();
            }
        }
        frames.push(&chunk[..count]);
        while let Some((header, body)) = frames.next() {
            if header.kind == Kind::Open {
                session = Some(Session { id: header.session, tree: Tree::open(workspace)?, file: None, failed: None });
                continue;
            }
            let Some(current) = session.as_mut().filter(|s| s.id == header.session) else {
                continue;
            };
            if header.kind == Kind::Commit {
                let mut answer = Vec::new();
                match current.finish() {
                    Ok(()) => wire::frame(&mut answer, current.id, Kind::Done, &[]),
                    Err(why) => {
                        let shown = &why.as_bytes()[..why.len().min(1_000)];
                        wire::frame(&mut answer, current.id, Kind::Failed, &[shown]);
                    }
                }
                stdout.write_all(&answer)?;
            } else if current.failed.is_none()
                && let Err(e) = current.apply(header, body)
            {
                let path = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
                current.failed = Some(format!("{:?} {}: {e}", header.kind, path.escape_debug()));
            }
        }
    }
}

impl Session {
    fn finish(&mut self) -> Result<(), String> {
        if self.failed.is_none() && self.file.is_some() {
            self.failed = Some("a file was left half written".to_owned());
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    fn apply(&mut self, header: Header, body: &[u8]) -> io::Result<()> {
        let short = || io::Error::other("the frame is too short");
        if header.kind == Kind::Data {
            let (file, left) = self.file.as_mut().ok_or_else(|| io::Error::other("no file is open"))?;
            file.write_all(body)?;
            *left = left.checked_sub(body.len() as u64).ok_or_else(|| io::Error::other("more bytes than said"))?;
            if *left == 0 {
                self.file = None;
            }
            return Ok(());
        }
        if self.file.is_some() {
            return Err(io::Error::other("the file before is not whole"));
        }
        match header.kind {
            Kind::Remove => self.tree.remove(body),
            Kind::Dir => self.tree.dir(body),
            Kind::File => {
                let (executable, rest) = body.split_first().ok_or_else(short)?;
                let (size, path) = rest.split_first_chunk::<8>().ok_or_else(short)?;
                let file = self.tree.file(path, *executable != 0)?;
                let size = u64::from_le_bytes(*size);
                self.file = (size > 0).then_some((file, size));
                Ok(())
            }
            Kind::Link => {
                let (length, rest) = body.split_first_chunk::<2>().ok_or_else(short)?;
                let (path, target) = rest.split_at_checked(u16::from_le_bytes(*length).into()).ok_or_else(short)?;
                self.tree.link(path, target)
            }
            Kind::Chown => {
                let (user, group) = body.split_first_chunk::<4>().ok_or_else(short)?;
                let group = group.first_chunk::<4>().ok_or_else(short)?;
                self.tree.chown(u32::from_le_bytes(*user), u32::from_le_bytes(*group))
            }
            Kind::Open | Kind::Data | Kind::Commit | Kind::Done | Kind::Failed => Err(io::Error::other("not an order")),
        }
    }
}
