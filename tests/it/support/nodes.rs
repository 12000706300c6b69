//! A swarm of several engines on one machine, one of which may be lost: each engine in a network namespace and with a
//! host name of its own, joined by a bridge, and a registry that all reach.

use std::fs::File;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An engine lays out its folder and starts its helpers; several at once on a busy machine take their time.
const STARTS_WITHIN: Duration = Duration::from_secs(120);

pub(crate) struct Nodes {
    /// In names of namespaces, links and folders; short, for links have 15 characters.
    mark: String,
    /// The first three numbers of every address.
    net: String,
    folder: tempfile::TempDir,
    pub(crate) names: Vec<String>,
    registry: Option<Child>,
    registry_port: u16,
}

impl Nodes {
    /// So many engines, the first of which is the manager.
    pub(crate) fn start(count: usize) -> Nodes {
        let random = getrandom::u32().unwrap();
        let mark = format!("mn{:04x}", random & 0xffff);
        let net = format!("10.{}.{}", 200 + (random >> 16) % 50, (random >> 24) % 250);
        let folder = tempfile::Builder::new().prefix("mn").tempdir_in("/var/tmp").unwrap();
        let names = (1..=count).map(|n| format!("{mark}-{n}")).collect();
        let mut nodes = Nodes { mark, net, folder, names, registry: None, registry_port: 0 };
        nodes.bridge();
        nodes.registry();
        for n in 1..=count {
            nodes.engine(n);
        }
        let until = Instant::now() + STARTS_WITHIN;
        for n in 1..=count {
            while nodes.try_docker(n, &["version"]).is_err() {
                assert!(Instant::now() < until, "engine {n} does not answer\n{}", nodes.log_end(n));
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        nodes.docker(1, &["swarm", "init", "--advertise-addr", &nodes.address(1)]);
        let token = nodes.docker(1, &["swarm", "join-token", "-q", "worker"]);
        for n in 2..=count {
            nodes.docker(n, &["swarm", "join", "--token", &token, &format!("{}:2377", nodes.address(1))]);
        }
        nodes
    }

    fn bridge(&self) {
        let (mark, net) = (&self.mark, &self.net);
        // Without the rule the machine's own engine drops what goes over the bridge.
        root(&format!(
            "ip link add {mark} type bridge && ip addr add {net}.1/24 dev {mark} && ip link set {mark} up \
             && iptables -I FORWARD -i {mark} -o {mark} -j ACCEPT"
        ));
        for (n, name) in (1..).zip(&self.names) {
            root(&format!(
                "ip netns add {name} && ip link add {mark}v{n} type veth peer name eth0 netns {name} \
                 && ip link set {mark}v{n} master {mark} up && ip -n {name} link set lo up \
                 && ip -n {name} addr add {net}.{}/24 dev eth0 && ip -n {name} link set eth0 up \
                 && ip -n {name} route add default via {net}.1",
                n + 1
            ));
        }
    }

    fn registry(&mut self) {
        let listener = std::net::TcpListener::bind((format!("{}.1", self.net).as_str(), 0)).unwrap();
        self.registry_port = listener.local_addr().unwrap().port();
        drop(listener);
        let file = self.folder.path().join("registry.yml");
        let config = format!(
            "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {}/registry }} }}\nhttp: {{ addr: '{}' }}\n",
            self.folder.path().display(),
            self.registry_host()
        );
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        self.registry = Some(command.spawn().expect("`docker-registry` is needed: tests/setup/prepare.sh test"));
        let until = Instant::now() + STARTS_WITHIN;
        while TcpStream::connect(self.registry_host()).is_err() {
            assert!(Instant::now() < until, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn registry_host(&self) -> String {
        format!("{}.1:{}", self.net, self.registry_port)
    }

    fn engine(&self, n: usize) {
        let (name, dir) = (&self.names[n - 1], self.dir(n));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("none.json"), "{}").unwrap();
        let log = File::create(dir.join("log")).unwrap();
        // `ip netns exec` would hide the control groups from it.
        let start = format!(
            "hostname {name} && exec dockerd --config-file {0}/none.json --host unix://{0}/d.sock --data-root {0}/data \
             --exec-root {0}/exec --pidfile {0}/d.pid --insecure-registry {1} --log-level warn",
            dir.display(),
            self.registry_host()
        );
        let mut command = as_root("nsenter");
        command.arg(format!("--net=/var/run/netns/{name}")).args(["unshare", "--uts", "sh", "-c", &start]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().expect("`dockerd` is needed by this test: tests/setup/prepare.sh test");
        std::thread::spawn(move || child.wait());
    }

    fn dir(&self, n: usize) -> PathBuf {
        self.folder.path().join(n.to_string())
    }

    fn address(&self, n: usize) -> String {
        format!("{}.{}", self.net, n + 1)
    }

    pub(crate) fn host(&self, n: usize) -> String {
        format!("unix://{}/d.sock", self.dir(n).display())
    }

    pub(crate) fn docker(&self, n: usize, arguments: &[&str]) -> String {
        self.try_docker(n, arguments).unwrap_or_else(|error| panic!("docker {arguments:?} on node {n}: {error}"))
    }

    fn try_docker(&self, n: usize, arguments: &[&str]) -> Result<String, String> {
        let done = Command::new("docker").args(arguments).env("DOCKER_HOST", self.host(n)).output();
        let done = done.map_err(|error| error.to_string())?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned());
        }
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// Brings an image of the machine's own engine to all nodes by the registry; its name with its digest.
    pub(crate) fn publish(&self, image: &str, name: &str) -> String {
        let there = format!("{}/{name}", self.registry_host());
        let copied = Command::new("sh")
            .arg("-c")
            .arg(format!("docker save {image} | DOCKER_HOST={} docker load -q", self.host(1)))
            .output()
            .unwrap();
        assert!(copied.status.success(), "failed to copy {image}: {}", String::from_utf8_lossy(&copied.stderr));
        self.docker(1, &["tag", image, &there]);
        self.docker(1, &["push", "-q", &there]);
        self.docker(1, &["image", "inspect", "--format", "{{index .RepoDigests 0}}", &there])
    }

    /// The node is gone from one moment to the next, as when its power fails.
    pub(crate) fn lose(&self, n: usize) {
        root(&format!("ip link set {}v{n} down", self.mark));
        self.kill(n);
    }

    /// Everything that runs in the node's namespace or belongs to its folder, and what runs in its containers: children of
    /// the engine's shims, started by any of their threads.
    fn kill(&self, n: usize) {
        let dir = self.dir(n).display().to_string();
        let name = &self.names[n - 1];
        root(&format!(
            "for pid in $(ip netns pids {name}); do kill -9 $pid 2>/dev/null; done; \
             for cmd in /proc/[0-9]*/cmdline; do pid=${{cmd#/proc/}}; pid=${{pid%/cmdline}}; \
               if tr '\\0' ' ' <$cmd 2>/dev/null | grep -qF '{dir}/'; then \
                 for child in $(cat /proc/$pid/task/*/children 2>/dev/null); do kill -9 $child 2>/dev/null; done; \
                 [ $pid = $$ ] || kill -9 $pid 2>/dev/null; fi; done; true"
        ));
    }

    fn log_end(&self, n: usize) -> String {
        let log = std::fs::read_to_string(self.dir(n).join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if let Some(mut registry) = self.registry.take() {
            let _ = registry.kill();
            let _ = registry.wait();
        }
        for n in 1..=self.names.len() {
            if std::thread::panicking() {
                eprintln!("engine {n}:\n{}", self.log_end(n));
            }
            self.kill(n);
        }
        std::thread::sleep(Duration::from_millis(500));
        let (mark, dir) = (&self.mark, self.folder.path().display());
        let names = self.names.join(" ");
        root(&format!(
            "for name in {names}; do ip netns del $name; ip link del {mark}v${{name##*-}}; done; ip link del {mark}; \
             iptables -D FORWARD -i {mark} -o {mark} -j ACCEPT; \
             grep -o ' {dir}/[^ ]*' /proc/mounts | sort -r | xargs -r umount -l; rm -rf {dir}/*; true"
        ));
    }
}

/// A line of shell as root.
fn root(line: &str) {
    let done = as_root("sh").args(["-c", line]).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}
