//! One engine under test with an instance id of its own, and short words for what the cases do with it.

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use mainstay::model::log::{LogChunk, LogCursor, Stream};
use mainstay::model::plan::Resources;
use mainstay::model::{AttemptId, InstanceId, Oid, RepoName, RunId, StepName};
use mainstay::runtime::docker::{Docker, DockerConfig};
use mainstay::runtime::process::Process;
use mainstay::runtime::{
    Found, ResolvedImage, Runtime, RuntimeError, SpaceName, StepSpec, Word, WorkspaceSource, nonce,
};
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Docker,
    Process,
}

pub(super) struct Lab {
    pub(super) kind: Kind,
    pub(super) instance: InstanceId,
    pub(super) runtime: Box<dyn Runtime>,
    pub(super) folder: tempfile::TempDir,
    pub(super) run: RunId,
}

/// How one attempt went.
pub(super) struct Outcome {
    pub(super) found: Found,
    pub(super) chunks: Vec<LogChunk>,
}

impl Outcome {
    pub(super) fn code(&self) -> i32 {
        match self.found {
            Found::Exited { code, .. } => code,
            ref other => panic!("it has not ended: {other:?}"),
        }
    }
    pub(super) fn bytes(&self, stream: Stream) -> Vec<u8> {
        bytes(&self.chunks, stream)
    }
    /// Standard output without the begin mark.
    pub(super) fn stdout(&self) -> String {
        let all = String::from_utf8_lossy(&self.bytes(Stream::Stdout)).into_owned();
        let (first, rest) = all.split_once('\n').unwrap_or_else(|| panic!("no begin mark: {all:?}"));
        assert!(first.starts_with("\u{1e}mainstay:begin:"), "no begin mark: {first:?}");
        rest.to_owned()
    }
    pub(super) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.bytes(Stream::Stderr)).into_owned()
    }
}

pub(super) fn bytes(chunks: &[LogChunk], stream: Stream) -> Vec<u8> {
    chunks.iter().filter(|c| c.stream == stream).flat_map(|c| c.data.to_vec()).collect()
}

/// Runs one case, cleans up after it whatever happened, and sees that nothing is left.
pub(super) fn run(kind: Kind, name: &str, case: impl FnOnce(&Lab) -> BoxFuture<'_, ()>) {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    tokio.block_on(async {
        let random = getrandom::u32().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let instance = InstanceId(format!("{random:08x}"));
        let runtime = open(kind, &instance, folder.path());
        if let Err(error) = runtime.ping().await {
            panic!("this test needs the {} engine: failed to {error}", runtime.name());
        }
        let lab = Lab { kind, instance, runtime, folder, run: RunId(u64::from(random % 1000) + 1) };
        let ended = AssertUnwindSafe(case(&lab)).catch_unwind().await;
        let fresh = lab.again();
        fresh.sweep(None).await.unwrap_or_else(|e| panic!("{name}: failed to {e}"));
        let left = fresh.leftovers().await.unwrap();
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
        assert!(left.is_empty(), "{name}: left behind: {left:?}");
    });
}

pub(super) fn engine_host() -> String {
    std::env::var("MAINSTAY_CONFORMANCE_ENGINE").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned())
}

fn open(kind: Kind, instance: &InstanceId, folder: &Path) -> Box<dyn Runtime> {
    match kind {
        Kind::Docker => {
            let mut config = DockerConfig::new(instance.clone()).unwrap();
            config.host = Some(engine_host());
            config.pool = 2;
            let docker = Docker::connect(config);
            Box::new(docker.unwrap_or_else(|e| panic!("this test needs a Docker engine: failed to {e}")))
        }
        Kind::Process => {
            let shim = PathBuf::from(env!("CARGO_BIN_EXE_mainstay"));
            Box::new(Process::new(folder.join("processes"), instance.clone(), shim).unwrap())
        }
    }
}

impl Lab {
    /// A new client of the same engine for the same daemon instance: what a restarted daemon has.
    pub(super) fn again(&self) -> Box<dyn Runtime> {
        open(self.kind, &self.instance, self.folder.path())
    }

    pub(super) fn repo(&self) -> RepoName {
        RepoName::new("shop").unwrap()
    }

    pub(super) fn id(&self, step: &str) -> AttemptId {
        AttemptId { run: self.run, step: StepName::new(step).unwrap(), attempt: 1 }
    }

    pub(super) fn nonce(&self, step: &str) -> String {
        nonce(&self.instance, &self.id(step))
    }

    /// A space filled with a small folder: a file, an executable, a link, a file in a folder.
    pub(super) async fn space(&self) -> SpaceName {
        let space = self.runtime.take_space(self.run, &self.repo()).await.unwrap();
        self.runtime.fill(&space, &WorkspaceSource::Folder(self.source())).await.unwrap();
        space
    }

    pub(super) fn source(&self) -> PathBuf {
        let source = self.folder.path().join("source");
        if !source.exists() {
            std::fs::create_dir_all(source.join("src/deep")).unwrap();
            std::fs::write(source.join("README"), "hello\n").unwrap();
            std::fs::write(source.join("src/deep/big"), vec![b'x'; 300_000]).unwrap();
            std::fs::write(source.join("src/empty"), "").unwrap();
            std::fs::write(source.join("tool"), "#!/bin/sh\necho tool\n").unwrap();
            let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(source.join("tool"), executable).unwrap();
            std::os::unix::fs::symlink("README", source.join("link")).unwrap();
            std::os::unix::fs::symlink("/etc", source.join("out")).unwrap();
        }
        source
    }

    pub(super) async fn image(&self, reference: &str) -> ResolvedImage {
        self.runtime.resolve_image(reference, &|_| {}).await.unwrap_or_else(|e| panic!("failed to {e}"))
    }

    pub(super) async fn spec(&self, space: &SpaceName, step: &str) -> StepSpec {
        StepSpec {
            id: self.id(step),
            space: space.clone(),
            repo: self.repo(),
            image: self.image("debian:12").await,
            resources: Resources::default(),
            shares_holder: true,
        }
    }

    /// Takes all output and the exit of an attempt that was released.
    pub(super) async fn outcome(&self, step: &str) -> Outcome {
        let id = self.id(step);
        let chunks = read(&*self.runtime, &id, LogCursor::default()).await.unwrap();
        let found = self.runtime.wait(&id).await.unwrap();
        Outcome { found, chunks }
    }

    pub(super) async fn go(&self, spec: &StepSpec, word: &Word) -> Outcome {
        self.runtime.prepare(spec).await.unwrap_or_else(|e| panic!("failed to {e}"));
        self.runtime.release(spec, word).await.unwrap_or_else(|e| panic!("failed to {e}"));
        within(60, self.outcome(spec.id.step.as_str())).await
    }

    pub(super) async fn step(&self, space: &SpaceName, step: &str, commands: &[&str]) -> Outcome {
        self.go(&self.spec(space, step).await, &word(commands)).await
    }

    /// Waits until the attempt's output holds the text.
    pub(super) async fn saw(&self, step: &str, text: &str) {
        let mut log = self.runtime.logs(&self.id(step), LogCursor::default()).await.unwrap();
        let mut all = Vec::new();
        let seen = async {
            while let Some(chunk) = log.next().await {
                all.extend_from_slice(&chunk.unwrap().data);
                if String::from_utf8_lossy(&all).contains(text) {
                    return true;
                }
            }
            false
        };
        assert!(within(30, seen).await, "the step ended without saying {text:?}");
    }
}

pub(super) async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(seconds), future).await;
    waited.unwrap_or_else(|_| panic!("not over after {seconds} s"))
}

/// The whole output from a cursor on.
pub(super) async fn read(
    runtime: &dyn Runtime,
    id: &AttemptId,
    from: LogCursor,
) -> Result<Vec<LogChunk>, RuntimeError> {
    let mut log = runtime.logs(id, from).await?;
    let mut chunks = Vec::new();
    while let Some(chunk) = log.next().await {
        chunks.push(chunk?);
    }
    Ok(chunks)
}

pub(super) fn word(commands: &[&str]) -> Word {
    Word { commands: commands.iter().map(|c| (*c).to_owned()).collect(), args: Vec::new(), environment: Vec::new() }
}

/// Asks the engine with its own client, as a person would.
pub(super) fn docker(arguments: &[&str], stdin: &[u8]) -> String {
    let mut command = Command::new("docker");
    command.args(arguments).env("DOCKER_HOST", engine_host()).env("DOCKER_BUILDKIT", "0");
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|e| panic!("this test needs the `docker` client: {e}"));
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let done = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "docker {arguments:?}: {error}");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

fn git(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(dir).args(["-c", "user.name=t", "-c", "user.email=t@example.com"]).args(arguments);
    let done = command.output().unwrap_or_else(|e| panic!("this test needs `git`: {e}"));
    assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// A bare repository with two commits: `kept` stays, `changed` changes, `removed/` goes, `added` comes.
pub(super) fn mirror(folder: &Path) -> (PathBuf, Vec<Oid>) {
    let (work, bare) = (folder.join("work"), folder.join("shop.git"));
    std::fs::create_dir_all(work.join("removed")).unwrap();
    git(&work, &["init", "-q", "-b", "main"]);
    for (name, text) in [("kept", "kept\n"), ("changed", "first\n"), ("removed/x", "x\n")] {
        std::fs::write(work.join(name), text).unwrap();
    }
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-qm", "first"]);
    std::fs::remove_dir_all(work.join("removed")).unwrap();
    std::fs::write(work.join("changed"), "second\n").unwrap();
    std::fs::write(work.join("added"), "added\n").unwrap();
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-qm", "second"]);
    git(folder, &["clone", "-q", "--bare", "work", "shop.git"]);
    let commits = ["HEAD~1", "HEAD"].map(|rev| git(&bare, &["rev-parse", rev]).parse().unwrap());
    (bare, commits.to_vec())
}
