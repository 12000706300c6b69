//! A Docker engine of the test's own, that may be stopped, killed and started without disturbing anybody.

use super::engine::DockerEngine;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// An engine lays out its folder and starts its helpers in a second or two; busy machines were seen to take ten.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

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
        dockerd.up();
        let copied = Command::new("sh")
            .arg("-c")
            .arg(format!("docker save {image} | DOCKER_HOST={} docker load -q", dockerd.engine.host()))
            .output()
            .unwrap();
        assert!(copied.status.success(), "failed to copy {image}: {}", String::from_utf8_lossy(&copied.stderr));
        dockerd
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("d.pid")
    }

    /// Starts the engine and waits until it answers.
    pub(crate) fn up(&self) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = as_root("dockerd");
        command
            .arg("--host")
            .arg(self.engine.host())
            .arg("--data-root")
            .arg(self.dir.join("data"))
            .arg("--exec-root")
            .arg(self.dir.join("exec"))
            .arg("--pidfile")
            .arg(self.pid_file())
            // Nothing of the machine's network is touched, nor the names of another engine's containers.
            .args(["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .args(["--userland-proxy=false", "--containerd-namespace"])
            .arg(self.dir.file_name().unwrap())
            .arg("--containerd-plugins-namespace")
            .arg(format!("{}p", self.dir.file_name().unwrap().to_string_lossy()))
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
        let Ok(pid) = std::fs::read_to_string(self.pid_file()) else { return };
        let _ = as_root("kill").args([signal, pid.trim()]).output();
        let process = PathBuf::from(format!("/proc/{}", pid.trim()));
        let until = Instant::now() + STARTS_WITHIN;
        while process.exists() {
            assert!(Instant::now() < until, "dockerd does not end\n{}", self.log_end());
            std::thread::sleep(Duration::from_millis(20));
        }
        // A killed one leaves its file, and refuses to start over it when the number is in use again.
        let _ = as_root("rm").arg("-f").arg(self.pid_file()).output();
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
        // Its folders belong to root, and what it mounted may outlive it for a moment.
        let script =
            "grep -o \" $0/[^ ]*\" /proc/mounts | sort -r | xargs -r umount -l; rm -rf \"$0/data\" \"$0/exec\"";
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
