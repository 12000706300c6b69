//! The folder of one attempt: what the shim writes there and what a daemon concludes from it.

use crate::runtime::Found;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One attempt's folder.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) dir: PathBuf,
}

/// What the folder says.
pub(super) struct State {
    pub(super) found: Found,
    /// A shim took the word; nobody else may.
    pub(super) begun: bool,
}

impl Attempt {
    pub(super) fn new(dir: PathBuf) -> Self {
        Attempt { dir }
    }

    pub(super) fn name(&self) -> String {
        self.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(super) fn make(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.log()).map(|_| ())
    }

    /// Captured output.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// `$MAINSTAY_OUTPUT`.
    pub(super) fn output(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// The exit code, there only when everything has ended.
    fn exit(&self) -> PathBuf {
        self.dir.join("exit")
    }

    pub(super) fn write_exit(&self, code: i32) -> io::Result<()> {
        replace(&self.exit(), code.to_string().as_bytes())
    }

    /// Becomes the one that carries the attempt out, or `None` when another one is or was. Held until it is dropped,
    /// by whatever end.
    pub(super) fn take(&self) -> io::Result<Option<Flock<File>>> {
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(self.dir.join("lock"))?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
        Ok((!self.dir.join("shim").exists()).then_some(lock))
    }

    /// Ends an attempt that only waits for its word. False when it has begun or is over.
    pub(super) fn refuse(&self) -> io::Result<bool> {
        if !self.dir.is_dir() {
            return Ok(true);
        }
        let Some(_lock) = self.take()? else { return Ok(false) };
        if !self.exit().exists() {
            // As a waiting helper does on SIGTERM.
            replace(&self.dir.join("shim"), b"0 0 -")?;
            self.write_exit(128 + 15)?;
        }
        Ok(true)
    }

    /// Writes down who carries it out.
    pub(super) fn write_shim(&self, shim: &Shim) -> io::Result<()> {
        replace(&self.dir.join("shim"), format!("{} {} {}", shim.pid, shim.started, shim.boot).as_bytes())
    }

    /// Who carries or carried it out.
    pub(super) fn shim(&self) -> io::Result<Option<Shim>> {
        let Some(text) = read(&self.dir.join("shim"))? else { return Ok(None) };
        let mut fields = text.split(' ');
        let mut number = || fields.next().and_then(|field| field.parse::<u64>().ok());
        let (Some(pid), Some(started)) = (number(), number()) else { return Ok(None) };
        let boot = fields.next().unwrap_or_default().to_owned();
        Ok(Some(Shim { pid: pid as i32, started, boot }))
    }

    pub(super) fn find(&self) -> io::Result<State> {
        if !self.dir.is_dir() {
            return Ok(State { found: Found::Absent, begun: false });
        }
        let shim = self.shim()?;
        let exited = || -> io::Result<Option<Found>> {
            let code = read(&self.exit())?.and_then(|text| text.trim().parse().ok());
            Ok(code.map(|code| Found::Exited { code, out_of_memory: false }))
        };
        let begun = shim.is_some();
        let found = match (exited()?, shim) {
            (Some(exited), _) => exited,
            // Nobody has taken the word yet.
            (None, None) => Found::Alive,
            (None, Some(shim)) if shim.is_alive() => Found::Alive,
            // It ended between the two looks, or was killed and is lost.
            (None, Some(_)) => exited()?.unwrap_or(Found::Absent),
        };
        Ok(State { found, begun })
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a file that is there whole or not at all.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

/// A process that can be told from a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shim {
    pid: i32,
    /// Clock ticks since the machine started.
    started: u64,
    /// Which start of the machine.
    boot: String,
}

/// What `/proc/PID/stat` says about a process.
struct Stat {
    state: u8,
    parent: i32,
    session: i32,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks and parentheses itself; fields are counted from behind it.
    let fields: Vec<_> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

impl Shim {
    /// This process.
    pub(super) fn this() -> io::Result<Self> {
        let pid = std::process::id() as i32;
        let stat = stat(pid).ok_or_else(|| io::Error::other("this process is not in /proc"))?;
        Ok(Shim { pid, started: stat.started, boot: boot() })
    }

    pub(super) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|s| s.started == self.started && s.state != b'Z') && self.boot == boot()
    }

    pub(super) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end at this moment; then there is nothing to signal.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Kills the whole session, the shim included: it no longer does so itself.
    pub(super) fn kill_session(&self) {
        for pid in processes() {
            if self.is_alive() && stat(pid).is_some_and(|s| s.session == self.pid) && pid != self.pid {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        self.signal(Signal::SIGKILL);
    }
}

fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// All processes that descend from this one. What leaves its session or loses its parent comes back to a shim, which
/// is its descendants' reaper.
pub(super) fn descendants() -> Vec<i32> {
    let parents: Vec<(i32, i32)> = processes().into_iter().filter_map(|pid| Some((pid, stat(pid)?.parent))).collect();
    let mut found = vec![std::process::id() as i32];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let this = Shim::this().unwrap();
        assert!(this.is_alive());
        assert!(!Shim { started: this.started + 1, ..this.clone() }.is_alive());
        assert!(!Shim { boot: "another".to_owned(), ..this }.is_alive());
    }

    #[test]
    fn an_attempt_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = Attempt::new(folder.path().join("r1-test-a1"));
        assert_eq!(attempt.find().unwrap().found, Found::Absent);
        attempt.make().unwrap();
        assert_eq!(attempt.find().unwrap().found, Found::Alive);
        let first = attempt.take().unwrap().expect("nobody else holds it");
        assert!(attempt.take().unwrap().is_none());
        attempt.write_shim(&Shim::this().unwrap()).unwrap();
        drop(first);
        assert!(attempt.take().unwrap().is_none(), "taken again after it had begun");
        assert!(!attempt.refuse().unwrap());
    }

    #[test]
    fn an_attempt_that_only_waits_is_ended_as_a_waiting_helper_ends() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = Attempt::new(folder.path().join("r1-test-a1"));
        attempt.make().unwrap();
        assert!(attempt.refuse().unwrap());
        assert_eq!(attempt.find().unwrap().found, Found::Exited { code: 143, out_of_memory: false });
        assert!(attempt.take().unwrap().is_none(), "it could still begin");
    }
}
