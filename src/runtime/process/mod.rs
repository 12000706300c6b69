//! Steps as plain processes of this machine, for repositories that `mainstay.yml` trusts with it. Never a silent
//! stand-in for an engine: it runs only where the configuration or the command line names it.
//!
//! A step runs under `mainstay shim`, in a session of its own, and so outlives the daemon. Everything a successor needs
//! is in the attempt's folder: who the shim is, what it has captured, how the command ended.
//!
//! ```text
//! DIR/spaces/SPACE/workspace       what /workspace is elsewhere
//! DIR/attempts/r1-test-a1/         lock, shim, log, output, exit
//! ```

mod alone;
mod files;
mod logs;
mod shim;
mod trees;

pub use alone::{Alone, Task};
pub use shim::shim_main;
pub use trees::Trees;

use super::helper::wire;
use super::{
    Found, Leftover, Living, ResolvedImage, Runtime, RuntimeError, SpaceName, StepSpec, Word, WorkspaceSource, helper,
    nonce,
};
use crate::git::{Change, checkout, folder};
use crate::model::log::{LogChunk, LogCursor};
use crate::model::{AttemptId, InstanceId, RepoName, RunId};
use async_trait::async_trait;
use files::{Attempt, Shim};
use futures_util::stream::BoxStream;
use nix::sys::signal::Signal;
use shim::tree::Tree;
use std::collections::BTreeSet;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How often files are looked at for news. Half of what people notice, and nothing for the machine.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A shim that got its word says so at once; starting a process on a busy machine may take seconds.
const SHIM_STARTS_WITHIN: Duration = Duration::from_secs(30);
/// After SIGKILL only the kernel has work left.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// Plain processes of this machine.
#[derive(Debug, Clone)]
pub struct Process {
    dir: PathBuf,
    instance: InstanceId,
    shim: PathBuf,
    made: Arc<Mutex<BTreeSet<SpaceName>>>,
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let doing = doing.into();
    move |source| RuntimeError::Io { doing, source }
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, RuntimeError> {
    let done = tokio::task::spawn_blocking(act).await;
    done.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(io_error(doing))
}

impl Process {
    /// Keeps spaces and attempts in `dir`; `shim` is the program that is started as `SHIM shim FOLDER` (ourselves).
    pub fn new(dir: PathBuf, instance: InstanceId, shim: PathBuf) -> Result<Self, RuntimeError> {
        for part in ["spaces", "attempts"] {
            std::fs::create_dir_all(dir.join(part)).map_err(io_error("make the folder for processes"))?;
        }
        let dir = dir.canonicalize().map_err(io_error("find the folder for processes"))?;
        Ok(Process { dir, instance, shim, made: Arc::default() })
    }

    /// Spaces made by this process and not closed.
    fn made(&self) -> MutexGuard<'_, BTreeSet<SpaceName>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self, id: &AttemptId) -> Attempt {
        Attempt::new(self.dir.join("attempts").join(format!("r{}-{}-a{}", id.run, id.step, id.attempt)))
    }

    fn workspace(&self, space: &SpaceName) -> Result<PathBuf, RuntimeError> {
        // Names come back from the database; still none of them may lead elsewhere.
        if space.0.is_empty() || space.0.contains(['/', '\0']) || space.0.starts_with('.') {
            return Err(RuntimeError::Gone { what: format!("the space `{}`", space.0.escape_debug()) });
        }
        Ok(self.dir.join("spaces").join(&space.0).join("workspace"))
    }

    fn attempts(&self) -> io::Result<Vec<(RunId, Attempt)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("attempts"))? {
            let entry = entry?;
            let name = entry.file_name();
            let run = name.to_str().and_then(|n| n.strip_prefix('r')?.split_once('-')?.0.parse().ok());
            all.push((RunId(run.unwrap_or(0)), Attempt::new(entry.path())));
        }
        Ok(all)
    }

    fn spaces(&self) -> io::Result<Vec<SpaceName>> {
        let entries = std::fs::read_dir(self.dir.join("spaces"))?;
        entries.map(|entry| Ok(SpaceName(entry?.file_name().to_string_lossy().into_owned()))).collect()
    }

    fn write_workspace(root: &Path, source: &WorkspaceSource) -> io::Result<()> {
        let mut tree = Tree::open(root)?;
        let mut sink = |change: Change<'_>| match change {
            Change::Remove(path) => tree.remove(&path),
            Change::Dir(path) => tree.dir(&path),
            Change::File { path, executable, data } => tree.file(&path, executable)?.write_all(&data),
            Change::Link { path, target } => tree.link(&path, &target),
        };
        match source {
            WorkspaceSource::Commit { mirror, commit, branch, origin } => {
                checkout(mirror, commit, None, branch.as_deref(), origin, &mut sink).map(|_| ())
            }
            WorkspaceSource::Folder(path) => folder(path, &mut sink),
        }
        .map_err(|error| io::Error::other(error.to_string()))
    }

    /// Ends whatever of the attempt runs, then removes its folder.
    async fn remove_attempt(attempt: Attempt) -> Result<(), RuntimeError> {
        Self::end(&attempt, Duration::ZERO).await?;
        blocking("remove the attempt's folder", move || gone_is_fine(std::fs::remove_dir_all(&attempt.dir))).await
    }

    async fn end(attempt: &Attempt, grace: Duration) -> Result<(), RuntimeError> {
        let doing = "stop the step's processes";
        let until = Instant::now() + grace;
        let mut asked = false;
        loop {
            // One that waits for its word is ended by taking its place.
            if attempt.refuse().map_err(io_error(doing))? {
                return Ok(());
            }
            match attempt.shim().map_err(io_error(doing))? {
                // Its shim has taken the place, and is about to write down who it is.
                None => {}
                Some(shim) if !shim.is_alive() => return Ok(()),
                Some(shim) if Instant::now() >= until => return Self::kill(&shim).await,
                Some(shim) if !asked => {
                    shim.signal(Signal::SIGTERM);
                    asked = true;
                }
                Some(_) => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// SIGQUIT asks the shim to kill everything below it and to write down how that ended.
    async fn kill(shim: &Shim) -> Result<(), RuntimeError> {
        shim.signal(Signal::SIGQUIT);
        let asked = Instant::now();
        while shim.is_alive() {
            if asked.elapsed() > KILLED_WITHIN {
                shim.kill_session();
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// Starts the shim of an attempt and tells it the word.
async fn start_shim(shim: &Path, attempt: &Attempt, line: &[u8]) -> Result<(), RuntimeError> {
    let doing = "start the step's shim";
    let environment = |name: &str, default: &str| std::env::var_os(name).unwrap_or_else(|| default.into());
    let mut child = tokio::process::Command::new(shim)
        .arg("shim")
        .arg(&attempt.dir)
        // The daemon's environment holds its secrets.
        .env_clear()
        .env("PATH", environment("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
        .env("HOME", environment("HOME", "/"))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(false)
        .spawn()
        .map_err(io_error(doing))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // Somebody has to take its exit code from the kernel, for as long as this daemon lives.
    tokio::spawn(async move { child.wait().await });
    let talk = async {
        let (Some(mut stdin), Some(mut stdout)) = (stdin, stdout) else {
            return Err(io::Error::other("it has no pipes"));
        };
        stdin.write_all(line).await?;
        drop(stdin);
        let mut said = String::new();
        stdout.read_to_string(&mut said).await?;
        if said.trim() == "ready" { Ok(()) } else { Err(io::Error::other(said.trim().to_owned())) }
    };
    match tokio::time::timeout(SHIM_STARTS_WITHIN, talk).await {
        Ok(talked) => talked.map_err(io_error(doing)),
        Err(_) => Err(io_error(doing)(io::ErrorKind::TimedOut.into())),
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[async_trait]
impl Runtime for Process {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn ping(&self) -> Result<String, RuntimeError> {
        Ok("plain processes".to_owned())
    }

    async fn resolve_image(
        &self,
        reference: &str,
        _progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<ResolvedImage, RuntimeError> {
        Ok(ResolvedImage { reference: reference.to_owned(), id: String::new() })
    }

    async fn take_space(&self, _run: RunId, _repo: &RepoName) -> Result<SpaceName, RuntimeError> {
        let random = getrandom::u64().map_err(|e| io_error("get random bytes")(io::Error::other(e.to_string())))?;
        let space = SpaceName(format!("mainstay-{}-p{random:016x}", self.instance));
        let workspace = self.workspace(&space)?;
        // Known before it exists: a sweep at this moment must not take it for an earlier daemon's.
        self.made().insert(space.clone());
        blocking("make the workspace", move || std::fs::create_dir_all(workspace)).await?;
        Ok(space)
    }

    async fn reopen_space(&self, _run: RunId, _repo: &RepoName, kept: &SpaceName) -> Result<SpaceName, RuntimeError> {
        if !self.workspace(kept)?.is_dir() {
            return Err(RuntimeError::Gone { what: format!("the kept workspace {}", kept.0) });
        }
        Ok(kept.clone())
    }

    async fn fill(&self, space: &SpaceName, source: &WorkspaceSource) -> Result<(), RuntimeError> {
        let (root, source) = (self.workspace(space)?, source.clone());
        blocking("write the workspace", move || Self::write_workspace(&root, &source)).await
    }

    async fn prepare(&self, spec: &StepSpec) -> Result<(), RuntimeError> {
        let attempt = self.attempt(&spec.id);
        blocking("make the attempt's folder", move || attempt.make()).await
    }

    async fn release(&self, spec: &StepSpec, word: &Word) -> Result<bool, RuntimeError> {
        self.prepare(spec).await?;
        let attempt = self.attempt(&spec.id);
        if attempt.find().map_err(io_error("look at the attempt"))?.begun {
            return Ok(true);
        }
        if word.commands.is_empty() && word.args.is_empty() {
            return Err(RuntimeError::Refused {
                doing: "start the step".to_owned(),
                detail: "without an image there is no entrypoint to run; the step needs `commands` here".to_owned(),
            });
        }
        let text = |path: PathBuf| {
            let bad = || io_error("name the workspace")(io::Error::other("its path is not UTF-8"));
            path.into_os_string().into_string().map_err(|_| bad())
        };
        let (cwd, output) = (text(self.workspace(&spec.space)?)?, text(attempt.output())?);
        let mut order = helper::order(word, &word.args, &cwd, &output);
        // The marks' nonce goes to the shim in front of the word, like everything by pipe.
        order.env.insert(0, (b"MAINSTAY_NONCE".to_vec(), nonce(&self.instance, &spec.id).into_bytes()));
        start_shim(&self.shim, &attempt, &wire::word_line(&order)).await.map(|()| true)
    }

    async fn logs(
        &self,
        id: &AttemptId,
        from: LogCursor,
    ) -> Result<BoxStream<'static, Result<LogChunk, RuntimeError>>, RuntimeError> {
        let attempt = self.attempt(id);
        if !attempt.dir.is_dir() {
            return Err(RuntimeError::Gone { what: format!("the log of {id}") });
        }
        Ok(logs::follow(attempt, from))
    }

    async fn wait(&self, id: &AttemptId) -> Result<Found, RuntimeError> {
        loop {
            match self.find(id).await? {
                Found::Absent => return Err(RuntimeError::Gone { what: format!("the process of {id}") }),
                Found::Alive => tokio::time::sleep(LOOK_EVERY).await,
                exited @ Found::Exited { .. } => return Ok(exited),
            }
        }
    }

    async fn find(&self, id: &AttemptId) -> Result<Found, RuntimeError> {
        Ok(self.attempt(id).find().map_err(io_error("look at the attempt"))?.found)
    }

    async fn undisturbed(&self, _space: &SpaceName, _id: &AttemptId) -> Result<bool, RuntimeError> {
        // Nobody stands between us and the process; what a reboot ends has no exit code here.
        Ok(true)
    }

    async fn stop(&self, id: &AttemptId, grace: Duration) -> Result<(), RuntimeError> {
        Self::end(&self.attempt(id), grace).await
    }

    async fn remove(&self, id: &AttemptId) -> Result<(), RuntimeError> {
        Self::remove_attempt(self.attempt(id)).await
    }

    async fn close(&self, run: RunId, space: Option<&SpaceName>, keep_workspace: bool) -> Result<(), RuntimeError> {
        for (of, attempt) in self.attempts().map_err(io_error("list the attempts"))? {
            if of == run {
                Self::remove_attempt(attempt).await?;
            }
        }
        let Some(space) = space.filter(|_| !keep_workspace) else { return Ok(()) };
        self.made().remove(space);
        let workspace = self.workspace(space)?;
        blocking("remove the workspace", move || {
            workspace.parent().map_or(Ok(()), |dir| gone_is_fine(std::fs::remove_dir_all(dir)))
        })
        .await
    }

    async fn leftovers(&self) -> Result<Vec<Leftover>, RuntimeError> {
        let doing = "list what is left";
        let mut all = Vec::new();
        for (run, attempt) in self.attempts().map_err(io_error(doing))? {
            all.push(Leftover { kind: "process", name: attempt.name(), run: Some(run) });
        }
        for space in self.spaces().map_err(io_error(doing))? {
            all.push(Leftover { kind: "volume", name: space.0, run: None });
        }
        all.sort();
        Ok(all)
    }

    fn held_spaces(&self) -> Vec<SpaceName> {
        self.made().iter().cloned().collect()
    }

    async fn stale(&self, living: Option<&Living>) -> Result<Vec<Leftover>, RuntimeError> {
        let mut all = self.leftovers().await?;
        all.retain(|one| {
            let space = SpaceName(one.name.clone());
            !living.is_some_and(|living| match one.run {
                Some(run) => living.has_run(run),
                None => living.spaces.contains(&space) || self.made().contains(&space),
            })
        });
        Ok(all)
    }

    async fn discard(&self, things: &[Leftover]) -> Result<(), RuntimeError> {
        let named = |kind, name: &str| things.iter().any(|thing| thing.kind == kind && thing.name == name);
        for (_, attempt) in self.attempts().map_err(io_error("list the attempts"))? {
            if named("process", &attempt.name()) {
                Self::remove_attempt(attempt).await?;
            }
        }
        for space in self.spaces().map_err(io_error("list the workspaces"))? {
            if named("volume", &space.0) {
                let dir = self.dir.join("spaces").join(&space.0);
                blocking("remove the workspace", move || gone_is_fine(std::fs::remove_dir_all(dir))).await?;
            }
        }
        Ok(())
    }

    async fn warm(&self, _repo: &RepoName, _source: &WorkspaceSource) {
        // Making a folder costs nothing worth saving.
    }

    async fn drain_pool(&self) {}
}

#[cfg(test)]
mod tests {
    use super::shim::tree::Tree;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_workspace_is_never_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        for dir in [&root, &outside] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(outside.join("kept"), "kept").unwrap();
        symlink(&outside, root.join("out")).unwrap();
        symlink(outside.join("kept"), root.join("file")).unwrap();
        let mut tree = Tree::open(&root).unwrap();
        assert!(tree.file(b"out/kept", false).is_err());
        assert!(tree.file(b"out/new", false).is_err());
        assert!(tree.dir(b"out/sub").is_err());
        assert!(tree.link(b"out/link", b"x").is_err());
        // Below a link there is nothing of the tree to remove; the link itself is.
        tree.remove(b"out/kept").unwrap();
        // A file takes the place of a link, not of what it points to.
        tree.file(b"file", false).unwrap().write_all(b"new").unwrap();
        tree.remove(b"out").unwrap();
        assert!(!root.join("out").exists());
        assert_eq!(std::fs::read_to_string(outside.join("kept")).unwrap(), "kept");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(root.join("file")).unwrap(), "new");
    }

    #[test]
    fn paths_that_lead_out_are_refused_and_folders_give_way_to_files() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::open(root.path()).unwrap();
        for bad in [&b""[..], b"/etc/passwd", b"../x", b"a/../../x", b"a//b", b"./a", b"a/", b"a\0b"] {
            assert!(tree.file(bad, false).is_err(), "{:?}", String::from_utf8_lossy(bad));
            assert!(tree.dir(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        tree.file(b"a/b/c", true).unwrap();
        tree.file(b"a/b/d", false).unwrap();
        tree.remove(b"a/b").unwrap();
        tree.remove(b"a/b").unwrap();
        tree.remove(b"a/b/c/d").unwrap();
        tree.file(b"a/b", false).unwrap();
        tree.dir(b"x/y").unwrap();
        tree.link(b"x", b"a").unwrap();
        // The folder that was open a moment ago is gone, and a link stands there.
        assert!(tree.file(b"x/y/z", false).is_err());
        assert!(root.path().join("a/b").is_file() && root.path().join("x").is_symlink());
    }
}
