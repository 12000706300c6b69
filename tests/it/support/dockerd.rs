//! A Docker engine of the test's own, that may be stopped, killed and started without disturbing anybody.

use super::engine::DockerEngine;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// An engine lays out its folder and starts its helpers in a second or two; busy machines were seen to take ten.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// The engine and its containerd, which outlives it as it does where a service manager starts both.
pub(crate) struct Dockerd {
    pub(crate) engine: DockerEngine,
    dir: PathBuf,
    _folder: tempfile::TempDir,
}

impl Dockerd {
    /// Starts one that has the image, taken from the machine's own engine.
    pub(crate) fn start(image: &str) -> Dockerd {
        let folder = tempfile::Builder::new().prefix("md").tempdir().unwrap();
        let dir = folder.path().to_owned();
        let dockerd = Dockerd { engine: DockerEngine { socket: dir.join("d.sock") }, dir, _folder: folder };
        dockerd.containerd();
        dockerd.up();
        let copied = Command::new("sh")
            .arg("-c")
            .arg(format!("docker save {image} | DOCKER_HOST={} docker load -q", dockerd.engine.host()))
            .output()
            .unwrap();
        assert!(copied.status.success(), "failed to copy {image}: {}", String::from_utf8_lossy(&copied.stderr));
        dockerd
    }

    fn containerd(&self) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        std::fs::write(self.dir.join("c.toml"), "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")
            .unwrap();
        let mut command = as_root("sh");
        // The shell leaves its number and becomes containerd, also behind sudo.
        command.arg("-c").arg(
            "echo $$ > \"$0/c.pid\"; exec containerd --config \"$0/c.toml\" --address \"$0/c.sock\" --root \"$0/croot\" --state \"$0/crun\"",
        );
        command.arg(&self.dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let until = Instant::now() + STARTS_WITHIN;
        while !self.dir.join("c.sock").exists() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "containerd does not start\n{}", self.log_end());
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::spawn(move || child.wait());
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("d.pid")
    }

    /// Starts the engine and waits until it answers.
    pub(crate) fn up(&self) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        // In a network namespace of its own: an engine started without a bridge takes the machine's `docker0` away, and
        // one started with it would share it with the machine's own engine.
        let mut command = as_root("unshare");
        command
            .args(["--net", "dockerd"])
            .arg("--host")
            .arg(self.engine.host())
            .arg("--data-root")
            .arg(self.dir.join("data"))
            .arg("--exec-root")
            .arg(self.dir.join("exec"))
            .arg("--pidfile")
            .arg(self.pid_file())
            // The kernel's switches are the machine's, in whatever namespace.
            .args(["--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .args(["--userland-proxy=false", "--containerd"])
            .arg(self.dir.join("c.sock"))
            .arg("--config-file")
            .arg(self.dir.join("none.json"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        std::fs::write(self.dir.join("none.json"), "{}").unwrap();
        let mut child = command.spawn().expect("`dockerd` is needed by this test: tests/setup/prepare.sh test");
        let until = Instant::now() + STARTS_WITHIN;
        while !self.engine.answers() {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "dockerd does not start ({ended:?})\n{}",
                self.log_end()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        // Its end is seen by the pid file; somebody has to take its exit code.
        std::thread::spawn(move || child.wait());
    }

    /// SIGTERM or SIGKILL, and waits until it is gone.
    pub(crate) fn down(&self, signal: &str) {
        self.end(&self.pid_file(), signal);
        // A killed one leaves its file, and refuses to start over it when the number is in use again.
        let _ = as_root("rm").arg("-f").arg(self.pid_file()).output();
    }

    fn end(&self, pid_file: &Path, signal: &str) {
        let Ok(pid) = std::fs::read_to_string(pid_file) else { return };
        let _ = as_root("kill").args([signal, pid.trim()]).output();
        let process = PathBuf::from(format!("/proc/{}", pid.trim()));
        let until = Instant::now() + STARTS_WITHIN;
        while process.exists() {
            assert!(Instant::now() < until, "dockerd does not end\n{}", self.log_end());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a killed engine had running outlives it under containerd's shims, which carry our socket's path.
    fn end_containers(&self) {
        let socket = self.dir.join("c.sock").display().to_string();
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(arguments) = std::fs::read_to_string(entry.path().join("cmdline")) else { continue };
            let (program, rest) = arguments.split_once('\0').unwrap_or_default();
            if program.contains("containerd-shim") && rest.split('\0').any(|word| word == socket) {
                let pid = entry.file_name().to_string_lossy().into_owned();
                let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
                pids.extend(children.split_whitespace().map(str::to_owned));
                pids.push(pid);
            }
        }
        if !pids.is_empty() {
            let _ = as_root("kill").arg("-KILL").args(pids).output();
        }
    }

    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("dockerd's log:\n{}", self.log_end());
        }
        self.down("-TERM");
        self.end(&self.dir.join("c.pid"), "-TERM");
        self.end_containers();
        // Its folders belong to root, and what it mounted may outlive it for a moment.
        let script = "grep -o \" $0/[^ ]*\" /proc/mounts | sort -r | xargs -r umount -l; rm -rf \"$0\"/*";
        let _ = as_root("sh").arg("-c").arg(script).arg(&self.dir).output();
    }
}

/// A program as root: an engine cannot be started otherwise.
fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}
