//! An environment to deploy to: an application that is one file and a server that behaves as the file says, deployed by
//! commands of this machine; and a daemon that deploys to it.

use super::daemon::{Daemon, STUCK, Setup, hmac_of};
use super::http;
use crate::git_transports::git;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The application: answers as the file `serving` in its folder says. `bad-…` is bad from the beginning, `turns-bad-…`
/// after a second and a half, everything else is good.
pub(crate) struct Application {
    folder: PathBuf,
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Application {
    fn start(folder: &Path) -> Application {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, folder) = (Arc::new(AtomicBool::new(false)), folder.to_owned());
        let (ends, serving) = (Arc::clone(&stop), folder.join("serving"));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let serving = serving.clone();
                std::thread::spawn(move || {
                    let mut request = BufReader::new(stream.try_clone().unwrap());
                    let mut line = String::new();
                    while request.read_line(&mut line).is_ok_and(|count| count > 2) {
                        line.clear();
                    }
                    let (status, body) = answer(&serving);
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                        body.len()
                    );
                });
            }
        });
        Application { folder, port, stop }
    }

    /// What it serves; nothing before the first deploy.
    pub(crate) fn serves(&self) -> Option<String> {
        std::fs::read_to_string(self.folder.join("serving")).ok()
    }

    /// Something that somebody does by hand.
    pub(crate) fn change_by_hand(&self, image: &str) {
        std::fs::write(self.folder.join("serving"), image).unwrap();
    }

    /// How often each image was put there, in order.
    pub(crate) fn journal(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join("journal")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn answer(serving: &Path) -> (&'static str, String) {
    let Ok(image) = std::fs::read_to_string(serving) else { return ("503 Nothing", "nothing is deployed".into()) };
    let since = std::fs::metadata(serving).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let age = SystemTime::now().duration_since(since).unwrap_or_default();
    let bad = image.starts_with("bad") || image.starts_with("turns-bad") && age > Duration::from_millis(1500);
    if bad { ("503 Bad", format!("{image} is bad")) } else { ("200 OK", format!("{image} is ok")) }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// A daemon with one environment, `production`.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    pub(crate) app: Application,
    _folder: tempfile::TempDir,
}

/// What the environment says beside its target.
pub(crate) const USUAL: &str = "watch: 1s";

impl Stage {
    /// `more` are further lines of the environment, `beside` further lines of `mainstay.yml`.
    pub(crate) fn new(program: Option<PathBuf>, more: &str, beside: &str) -> Stage {
        Stage::made(program, "1h", more, beside)
    }

    /// A daemon that looks at its repository that often, and has started.
    pub(crate) fn with_poll(poll: &str, more: &str) -> Stage {
        let mut stage = Stage::made(None, poll, more, "");
        stage.daemon.start();
        stage
    }

    fn made(program: Option<PathBuf>, poll: &str, more: &str, beside: &str) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let app = Application::start(folder.path());
        let mut setup = Setup { poll, ..Setup::new(Stage::NOTHING) };
        if let Some(program) = program {
            setup.program = program;
        }
        let daemon = Daemon::new(&setup);
        let path = daemon.dir.path().join("mainstay.yml");
        let mut config = std::fs::read_to_string(&path).unwrap();
        config.push_str(&format!(
            "environments:\n  production:\n    from: [{{ repo: shop, branches: [main] }}]\n    downtime: allowed\n    \
             lease: 5s\n    reconcile: 1s\n    target:\n      command:\n        repo: shop\n        \
             up: ['printf %s \"$MAINSTAY_IMAGE_API\" > {0}/new', 'echo \"$MAINSTAY_IMAGE_API\" >> {0}/journal', 'mv {0}/new {0}/serving']\n        \
             status: ['echo api.image=$(cat {0}/serving)']\n        down: ['rm -f {0}/serving']\n    \
             health: [{{ http: \"http://127.0.0.1:{1}/\", every: 100ms, failures: 3, within: 3s }}]\n",
            folder.path().display(),
            app.port,
        ));
        for line in more.lines() {
            config.push_str(&format!("    {line}\n"));
        }
        config.push_str(beside);
        std::fs::write(&path, config).unwrap();
        Stage { daemon, app, _folder: folder }
    }

    pub(crate) fn started(more: &str, beside: &str) -> Stage {
        let mut stage = Stage::new(None, more, beside);
        stage.daemon.start();
        stage
    }

    const NOTHING: &'static str =
        "on: { manual: {} }\nsteps:\n  nothing: { image: busybox:latest, commands: ['true'] }\n";

    /// The pipeline that deploys an image.
    pub(crate) fn pipeline(image: &str) -> String {
        format!(
            "on: {{ push: {{ branches: [main] }}, manual: {{}} }}\nsteps:\n  production:\n    deploy: {{ environment: production, images: {{ api: {image} }} }}\n"
        )
    }

    /// Pushes a commit that deploys an image; the commit.
    pub(crate) fn push(&self, image: &str) -> String {
        self.push_files(&[(".mainstay/release.yml", &Stage::pipeline(image))], &format!("deploy {image}"))
    }

    pub(crate) fn push_files(&self, files: &[(&str, &str)], message: &str) -> String {
        let work = &self.daemon.work;
        for (path, text) in files {
            std::fs::write(work.join(path), text).unwrap();
        }
        git(work, &["add", "-A"]);
        git(work, &["commit", "-q", "--allow-empty", "-m", message]);
        self.push_head()
    }

    pub(crate) fn push_head(&self) -> String {
        git(&self.daemon.work, &["push", "-q", "origin", "HEAD:main"]);
        git(&self.daemon.work, &["rev-parse", "HEAD"])
    }

    /// The run of a commit, when it has ended.
    pub(crate) fn ended(&self, commit: &str) -> Value {
        let run = self.daemon.wait_begun(commit);
        self.daemon.wait_run(run)
    }

    /// Deploys an image and expects it to be verified.
    pub(crate) fn good(&self, image: &str) -> String {
        let commit = self.push(image);
        let run = self.ended(&commit);
        assert_eq!(run["status"], "success", "{run:#}\n{}", self.daemon.log_end());
        assert_eq!(self.app.serves().as_deref(), Some(image));
        commit
    }

    pub(crate) fn api(&self, path: &str) -> Value {
        http::get(&self.daemon.socket(), &format!("/api/v1/{path}")).unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// Status and answer of a request.
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let headers = [("Content-Type", "application/json")];
        let body = body.to_string();
        let path = format!("/api/v1/{path}");
        let (status, said) = http::ask(&self.daemon.socket(), "POST", &path, &headers, body.as_bytes())
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        (status, serde_json::from_slice(&said).unwrap_or(json!(String::from_utf8_lossy(&said))))
    }

    /// What a forge would send about main; the answer's status.
    pub(crate) fn webhook(&self, old: &str, new: &str, delivery: &str) -> u16 {
        let body = json!({ "delivery": delivery, "refs": [{ "ref": "refs/heads/main", "old": old, "new": new }] });
        let body = body.to_string();
        let signature = hmac_of(body.as_bytes());
        let headers = [("X-Mainstay-Signature", signature.as_str()), ("Content-Type", "application/json")];
        http::ask(&self.daemon.socket(), "POST", "/hooks/shop", &headers, body.as_bytes()).unwrap().0
    }

    pub(crate) fn environment(&self) -> Value {
        self.api("environments/production")
    }

    /// Deploys of the environment, the newest first.
    pub(crate) fn deploys(&self) -> Vec<Value> {
        self.api("environments/production/deploys?limit=1000").as_array().unwrap().clone()
    }

    pub(crate) fn wait<T>(&self, what: &str, ready: impl Fn(&Stage) -> Option<T>) -> T {
        let until = Instant::now() + STUCK;
        loop {
            if let Some(found) = ready(self) {
                return found;
            }
            assert!(
                Instant::now() < until,
                "{what} does not come\n{:#}\n{}",
                self.environment(),
                self.daemon.log_end()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
