//! Carrying the Git protocol over the `ssh` program: its keys, agent, known hosts and `~/.ssh/config` are what people
//! have set up already.

use super::transport::{Target, fail};
use super::{Auth, GitError, Location};
use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The other side may think this long before it says the next word; packing a large repository takes a while.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// What is kept of ssh's own words, for the error message.
const STDERR_KEPT_BYTES: usize = 4_096;

pub(super) struct Subtransport {
    target: Target,
}

impl Subtransport {
    pub(super) fn new(target: Target) -> Self {
        Subtransport { target }
    }
}

impl SmartSubtransport for Subtransport {
    fn action(&self, _url: &str, action: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let Location::Ssh { user, host, port, path } = &self.target.location else {
            return Err(git2::Error::from_str("not an ssh address"));
        };
        let program = match action {
            Service::UploadPackLs | Service::UploadPack => "git-upload-pack",
            Service::ReceivePackLs | Service::ReceivePack => "git-receive-pack",
        };
        let destination = match user {
            Some(user) => format!("{user}@{host}"),
            None => host.clone(),
        };
        let words = match &self.target.auth {
            Some(Auth::Ssh(words)) if !words.is_empty() => words.clone(),
            // The same as GIT_SSH_COMMAND, without a shell to read it.
            _ => std::env::var("MAINSTAY_SSH")
                .ok()
                .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
                .filter(|words| !words.is_empty())
                .unwrap_or_else(|| vec!["ssh".into()]),
        };
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        // Never ask (nobody is there), give up on a dead host, notice a dead connection.
        command.args(["-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=15", "-oServerAliveCountMax=4"]);
        command.args(["-T", "-x"]);
        if let Some(port) = port {
            command.arg("-p").arg(port.to_string());
        }
        command.arg("--").arg(&destination).arg(format!("{program} {}", quoted(path)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = self.target.location.as_url();
        let mut child = command.spawn().map_err(|error| {
            fail(GitError::Unreachable { url: shown.clone(), detail: format!("start `{}`: {error}", words[0]) })
        })?;
        let missing = || git2::Error::from_str("ssh was started without pipes");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let listener = {
            let said = Arc::clone(&said);
            std::thread::Builder::new().name("ssh-stderr".into()).spawn(move || listen(stderr, &said)).ok()
        };
        Ok(Box::new(Stream { child, stdin: Some(stdin), stdout, said, listener, url: shown, got_any: false }))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// A path as one word for the shell on the other side.
fn quoted(path: &str) -> String {
    // `~ana/x` must stay open to the shell up to its first slash, as git itself leaves it to `git-upload-pack`,
    // which expands it; so quoting all of it is right.
    format!("'{}'", path.replace('\'', r"'\''").replace('!', r"'\!'"))
}

fn listen(mut stderr: ChildStderr, said: &Mutex<Vec<u8>>) {
    let mut piece = [0; 1_024];
    while let Ok(n) = stderr.read(&mut piece) {
        if n == 0 {
            break;
        }
        let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let room = STDERR_KEPT_BYTES.saturating_sub(said.len());
        said.extend_from_slice(&piece[..n.min(room)]);
    }
}

struct Stream {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    said: Arc<Mutex<Vec<u8>>>,
    listener: Option<std::thread::JoinHandle<()>>,
    url: String,
    got_any: bool,
}

impl Stream {
    /// The connection ended before it said anything: what ssh told us on stderr is the reason.
    fn broken(&mut self, what: &str) -> io::Error {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        let said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said);
        let said: String = said.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let detail = if said.is_empty() { what.to_owned() } else { said };
        let url = self.url.clone();
        let denied = [
            "Permission denied",
            "read only",
            "read-only",
            "Host key verification failed",
            "Too many authentication failures",
        ];
        let error = if denied.iter().any(|d| detail.contains(d)) {
            GitError::Denied { url, detail }
        } else {
            GitError::Unreachable { url, detail }
        };
        io::Error::other(fail(error).message().to_owned())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let timeout = PollTimeout::try_from(SILENCE_MAX).unwrap_or(PollTimeout::MAX);
        loop {
            let ready = {
                let mut fds = [PollFd::new(self.stdout.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, timeout)
            };
            match ready {
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(0) => return Err(self.broken("the other side was silent for two minutes")),
                Ok(_) => break,
            }
        }
        let n = self.stdout.read(buffer)?;
        if n == 0 && !self.got_any {
            // Let ssh say its last words: it closes stdout just before it writes them at times.
            for _ in 0..20 {
                if self.child.try_wait()?.is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            return Err(self.broken("the other side closed the connection"));
        }
        self.got_any |= n > 0;
        Ok(n)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self.stdin.as_mut().map(|stdin| stdin.write(buffer)) {
            Some(Ok(n)) => Ok(n),
            Some(Err(_)) | None => Err(self.broken("the other side closed the connection")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Closing stdin ends an honest upload-pack; the kill is for the others.
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        let path = "/srv/it's $(here) `x`;!rm -rf.git";
        let output =
            std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(path))).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().replace('\\', ""), path);
        assert_eq!(quoted("a b"), "'a b'");
    }
}
