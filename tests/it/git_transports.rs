//! Mirrors over https' and ssh's own machinery: the real `git http-backend` and a real `sshd`, both on loopback.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mainstay::git::{Auth, GitError, Mirror, Pushed, ReleaseEntry};
use mainstay::model::deploy::{DeployKind, DeployStatus, Provenance, Release};
use mainstay::model::ids::{DeployId, EnvironmentName, PipelineName};
use mainstay::model::{Oid, RepoName, RunId};
use mainstay::signing::SigningKey;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Runs `git` with a fixed identity and no foreign settings.
pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    git_with_input(dir, args, "")
}

pub(crate) fn git_with_input(dir: &Path, args: &[&str], input: &str) -> String {
    let mut child = Command::new("git")
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_AUTHOR_NAME", "Ana")
        .env("GIT_AUTHOR_EMAIL", "ana@example.com")
        .env("GIT_COMMITTER_NAME", "Ana")
        .env("GIT_COMMITTER_EMAIL", "ana@example.com")
        .env_remove("GIT_DIR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program `git` is needed by this test and could not be started");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A bare repository with a few branches, and a working tree beside it.
struct Source {
    dir: tempfile::TempDir,
    work: PathBuf,
    bare: PathBuf,
}

impl Source {
    fn new() -> Source {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q", "--bare", "-b", "main", "shop.git"]);
        git(dir.path(), &["init", "-q", "-b", "main", "work"]);
        let (work, bare) = (dir.path().join("work"), dir.path().join("shop.git"));
        git(&work, &["remote", "add", "origin", "../shop.git"]);
        let source = Source { dir, work, bare };
        for n in 0..30 {
            source.commit(&format!("f{n}"), &format!("{n}\n").repeat(2_000));
        }
        git(&source.work, &["tag", "-m", "one", "v1"]);
        git(&source.work, &["push", "-q", "origin", "main", "main:team/x", "v1"]);
        source
    }

    fn commit(&self, file: &str, text: &str) -> Oid {
        std::fs::write(self.work.join(file), text).unwrap();
        git(&self.work, &["add", "-A"]);
        git(&self.work, &["commit", "-q", "-m", file]);
        git(&self.work, &["rev-parse", "HEAD"]).parse().unwrap()
    }
}

/// What every transport must do; blocks.
fn suite(source: &Source, url: &str, auth: Option<Auth>) {
    let dir = source.dir.path().join("mirror.git");
    let mirror = Mirror::open(&dir, url, auth.clone()).unwrap();
    let refs = mirror.fetch().unwrap();
    let local = Mirror::open(&source.dir.path().join("local.git"), source.bare.to_str().unwrap(), None).unwrap();
    assert_eq!(refs, local.fetch().unwrap(), "the same as seen on this machine");
    assert_eq!(refs.head.as_deref(), Some("refs/heads/main"));
    assert_eq!(refs.refs.len(), 3);
    let head: Oid = git(&source.work, &["rev-parse", "HEAD"]).parse().unwrap();
    assert_eq!(mirror.resolve("v1").unwrap().commit, head);
    assert_eq!(mirror.read_file(&head, "f7", 100_000).unwrap().unwrap(), "7\n".repeat(2_000).as_bytes());
    assert_eq!(mirror.fetch().unwrap(), refs, "nothing new is no failure");

    // More: a new commit, a deleted branch, a forced one, and a commit whose branch has moved away again.
    let second = source.commit("f1", "changed");
    git(&source.work, &["push", "-q", "origin", "main", ":team/x"]);
    mirror.ensure(&second).unwrap();
    let refs = mirror.refs().unwrap().refs;
    assert_eq!((refs.len(), &refs["refs/heads/main"]), (2, &second));
    assert_eq!(mirror.list_remote().unwrap().refs, refs);
    git(&source.work, &["reset", "-q", "--hard", "HEAD~5"]);
    let third = source.commit("f1", "forced");
    git(&source.work, &["push", "-q", "--force", "origin", "main"]);
    assert_eq!(mirror.fetch().unwrap().refs["refs/heads/main"], third);
    assert!(mirror.contains(&second).unwrap());
    let names = ["refs/heads/main".to_owned(), "refs/heads/none".to_owned()];
    assert_eq!(mirror.remote_refs(&names).unwrap().into_iter().collect::<Vec<_>>(), [(names[0].clone(), third)]);

    // A hundred branches at once.
    let update: String = (0..100).map(|n| format!("create refs/heads/b{n} {second}\n")).collect();
    git_with_input(&source.bare, &["update-ref", "--stdin"], &update);
    assert_eq!(mirror.fetch().unwrap().refs.len(), 102);
    let unknown: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
    let error = mirror.ensure(&unknown).unwrap_err();
    assert!(matches!(error, GitError::NotFound { .. }), "{error}");
    git(&dir, &["fsck", "--full", "--strict"]);
    pushes(source, &mirror, url, auth);
}

/// A release of that commit.
fn release(number: u64, commit: &Oid) -> ReleaseEntry {
    let at = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    let provenance = Provenance {
        repo: RepoName::new("shop").unwrap(),
        git_ref: "refs/heads/main".into(),
        commit: commit.clone(),
        pipeline: PipelineName::new("release").unwrap(),
        run: RunId(1),
        actor: None,
    };
    let release = Release {
        environment: EnvironmentName::new("production").unwrap(),
        number,
        at,
        provenance,
        images: BTreeMap::new(),
        target: "swarm".into(),
        rendered: "services: {}\n".repeat(10_000),
        config_hash: String::new(),
        replicas: BTreeMap::new(),
        secrets: BTreeMap::new(),
        schema: None,
        recovery_point: "none".into(),
        promoted_from: None,
    };
    let (kind, status) = (DeployKind::Deploy, DeployStatus::Verified);
    ReleaseEntry { release, deploy: DeployId(number), kind, status, at, by: "ana".into(), because: None, stands: None }
}

/// Release refs and tags of our own, as far as the other side lets us.
fn pushes(source: &Source, mirror: &Mirror, url: &str, auth: Option<Auth>) {
    let production = EnvironmentName::new("production").unwrap();
    let key = SigningKey::open(&source.dir.path().join("key")).unwrap();
    let before = mirror.fetch().unwrap();
    let commit = before.refs["refs/heads/main"].clone();
    let first = mirror.record_release(&release(1, &commit), &key).unwrap();
    let push = || mirror.push_release(&production).unwrap();
    if url.starts_with("http") {
        let pushed = push();
        assert!(matches!(&pushed, Pushed::OnlyInMirror { why } if why.contains("403")), "{pushed:?}");
        git(&source.bare, &["config", "http.receivepack", "true"]);
    }
    let remote = || git(&source.bare, &["rev-parse", "refs/mainstay/production"]);
    assert_eq!((push(), push()), (Pushed::Done, Pushed::AlreadyThere));
    assert_eq!(remote(), first.as_str());
    let second = mirror.record_release(&release(2, &commit), &key).unwrap();
    assert_eq!(push(), Pushed::Done);
    assert_eq!(remote(), second.as_str());
    assert_eq!(mirror.fetch().unwrap(), before, "no feeder sees them");
    git(&source.bare, &["fsck", "--full", "--strict"]);

    let again = Mirror::open(&source.dir.path().join("again.git"), url, auth).unwrap();
    let taken = again.take_over_releases(&production, &[key.public()]).unwrap();
    assert_eq!(taken.entries[0].commit, second);
    assert_eq!(again.read_releases(&production, &[key.public()]).unwrap().entries.len(), 2);

    let tag = |commit: &Oid| mirror.push_own_tag("mainstay/rolled-back/production-1", commit).unwrap();
    assert_eq!((tag(&commit), tag(&commit)), (Pushed::Done, Pushed::AlreadyThere));
    assert_eq!(tag(&first), Pushed::Overtaken { found: commit.clone() });

    git(&source.bare, &["update-ref", "refs/mainstay/production", commit.as_str()]);
    mirror.record_release(&release(3, &commit), &key).unwrap();
    assert_eq!(push(), Pushed::Overtaken { found: commit.clone() });
    assert_eq!(remote(), commit.as_str());
}

/// `git http-backend` behind the smallest HTTP server: it wants a password for paths under `/private`, and redirects
/// those under `/moved`, `/away` and `/loop`.
#[derive(Clone)]
struct Backend {
    root: Arc<PathBuf>,
    requests: Arc<AtomicUsize>,
    /// Where `/away` redirects to: another server.
    elsewhere: Arc<String>,
}

async fn serve(State(backend): State<Backend>, request: Request) -> Response {
    backend.requests.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or("").to_owned();
    let to = |to: String| (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, to)]).into_response();
    if let Some(rest) = path.strip_prefix("/moved/") {
        return to(format!("/{rest}?{query}"));
    }
    if let Some(rest) = path.strip_prefix("/away/") {
        return to(format!("{}/{rest}?{query}", backend.elsewhere));
    }
    if path.starts_with("/loop/") {
        return to(format!("{path}?{query}"));
    }
    if path.starts_with("/login/") {
        return to("/sign-in".into());
    }
    if path.starts_with("/html/") {
        return ([(header::CONTENT_TYPE, "text/html")], "<h1>hello</h1>").into_response();
    }
    let path = match path.strip_prefix("/private") {
        Some(rest) if authorized(&parts.headers) => rest.to_owned(),
        Some(_) => return StatusCode::UNAUTHORIZED.into_response(),
        None => path,
    };
    let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    tokio::task::spawn_blocking(move || cgi(&backend.root, parts.method.as_str(), &path, &query, &kind, body))
        .await
        .unwrap()
}

fn authorized(headers: &HeaderMap) -> bool {
    // ana:p@ss
    headers.get(header::AUTHORIZATION).is_some_and(|v| v == "Basic YW5hOnBAc3M=")
}

fn cgi(root: &Path, method: &str, path: &str, query: &str, kind: &str, body: Bytes) -> Response {
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", kind)
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`git http-backend` is needed by this test and could not be started");
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&body)));
    let output = child.wait_with_output().unwrap().stdout;
    writer.join().unwrap();
    let split = output.windows(4).position(|w| w == b"\r\n\r\n").expect("http-backend sent no headers");
    let mut answer = Response::builder();
    for line in String::from_utf8_lossy(&output[..split]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        answer = match name {
            "Status" => answer.status(value[..3].parse::<u16>().unwrap()),
            _ => answer.header(name, value),
        };
    }
    answer.body(axum::body::Body::from(output[split + 4..].to_vec())).unwrap()
}

async fn start(root: &Path, elsewhere: String) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let backend =
        Backend { root: Arc::new(root.to_owned()), requests: Arc::clone(&requests), elsewhere: Arc::new(elsewhere) };
    let app = Router::new().fallback(serve).with_state(backend);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (format!("http://{address}"), requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_over_http_does_what_a_local_one_does() {
    let source = Source::new();
    git(&source.bare, &["config", "uploadpack.allowReachableSHA1InWant", "true"]);
    let (base, _) = start(source.dir.path(), String::new()).await;
    tokio::task::spawn_blocking(move || suite(&source, &format!("{base}/shop.git"), None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_a_private_repository_and_go_to_no_other_host() {
    let source = Source::new();
    // The other server wants the password as well, so that it would notice whether it got it.
    let (elsewhere, seen) = start(source.dir.path(), String::new()).await;
    let (base, _) = start(source.dir.path(), format!("{elsewhere}/private")).await;
    tokio::task::spawn_blocking(move || {
        let open = |name: &str, url: String| Mirror::open(&source.dir.path().join(name), &url, None).unwrap();
        let error = open("1", format!("{base}/private/shop.git")).fetch().unwrap_err();
        assert!(matches!(&error, GitError::Denied { detail, .. } if detail.contains("none are configured")), "{error}");
        let with = base.replace("http://", "http://ana:p%40ss@");
        assert_eq!(open("2", format!("{with}/private/shop.git")).fetch().unwrap().refs.len(), 3);
        let wrong = base.replace("http://", "http://ana:wrong@");
        let error = open("3", format!("{wrong}/private/shop.git")).fetch().unwrap_err();
        assert!(!error.to_string().contains("wrong"), "{error}");
        let auth = Some(Auth::Basic { user: "ana".into(), password: "p@ss".into() });
        let given = Mirror::open(&source.dir.path().join("4"), &format!("{base}/private/shop.git"), auth).unwrap();
        assert_eq!(given.fetch().unwrap().refs.len(), 3);
        let error = open("5", format!("{with}/away/shop.git")).fetch().unwrap_err();
        assert!(matches!(error, GitError::Denied { .. }), "{error}");
        assert_eq!(seen.load(Ordering::SeqCst), 1, "it was asked, without the password");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_a_few_times_and_nonsense_is_named() {
    let source = Source::new();
    let (base, requests) = start(source.dir.path(), String::new()).await;
    tokio::task::spawn_blocking(move || {
        let open = |name: &str, path: &str| {
            Mirror::open(&source.dir.path().join(name), &format!("{base}{path}"), None).unwrap()
        };
        assert_eq!(open("1", "/moved/moved/shop.git").fetch().unwrap().refs.len(), 3);
        let before = requests.load(Ordering::SeqCst);
        let error = open("2", "/loop/shop.git").fetch().unwrap_err();
        assert!(error.to_string().contains("redirects too often"), "{error}");
        assert!(requests.load(Ordering::SeqCst) - before <= 6);
        let error = open("3", "/login/shop.git").fetch().unwrap_err();
        assert!(error.to_string().contains("no Git repository"), "{error}");
        let error = open("4", "/html/shop.git").fetch().unwrap_err();
        assert!(error.to_string().contains("not as a Git server does"), "{error}");
        let error = open("5", "/none.git").fetch().unwrap_err();
        assert!(matches!(error, GitError::Denied { .. }), "{error}");
        let gone = Mirror::open(&source.dir.path().join("6"), "http://127.0.0.1:1/x.git", None).unwrap();
        let error = gone.fetch().unwrap_err();
        assert!(error.is_passing() && error.to_string().contains("127.0.0.1:1"), "{error}");
    })
    .await
    .unwrap();
}

/// A real sshd with keys of its own; ended by its id.
struct Sshd {
    child: Child,
    port: u16,
    options: Vec<String>,
}

impl Sshd {
    fn start(dir: &Path) -> Sshd {
        let program = "/usr/sbin/sshd";
        assert!(Path::new(program).exists(), "{program} is needed by this test (Debian: openssh-server)");
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(key))
                .status()
                .expect("ssh-keygen is needed by this test (Debian: openssh-client)");
            assert!(made.success());
        }
        std::fs::copy(dir.join("user.pub"), dir.join("authorized")).unwrap();
        let port = crate::support::ports::free();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {d}/host\nAuthorizedKeysFile {d}/authorized\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n",
            d = dir.display()
        );
        std::fs::write(dir.join("sshd_config"), config).unwrap();
        // sshd insists on this folder when root starts it.
        let _ = std::fs::create_dir_all("/run/sshd");
        let child = Command::new(program)
            .args(["-D", "-e", "-f"])
            .arg(dir.join("sshd_config"))
            .stderr(std::fs::File::create(dir.join("sshd.log")).unwrap())
            .spawn()
            .unwrap();
        let host = std::fs::read_to_string(dir.join("host.pub")).unwrap();
        std::fs::write(dir.join("known"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        let before = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = std::fs::read_to_string(dir.join("sshd.log")).unwrap_or_default();
            assert!(before.elapsed() < Duration::from_secs(10), "sshd does not answer: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let d = dir.display();
        let options = ["ssh", "-F", "/dev/null", "-i"].map(str::to_owned).into_iter().chain([
            format!("{d}/user"),
            "-oIdentitiesOnly=yes".into(),
            format!("-oUserKnownHostsFile={d}/known"),
            "-oStrictHostKeyChecking=yes".into(),
        ]);
        Sshd { child, port, options: options.collect() }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_mirror_over_ssh_does_what_a_local_one_does() {
    let source = Source::new();
    git(&source.bare, &["config", "uploadpack.allowReachableSHA1InWant", "true"]);
    let keys = tempfile::tempdir().unwrap();
    let sshd = Sshd::start(keys.path());
    let url = format!("ssh://127.0.0.1:{}{}", sshd.port, source.bare.display());
    suite(&source, &url, Some(Auth::Ssh(sshd.options.clone())));
}

#[test]
fn ssh_failures_are_told_apart() {
    let source = Source::new();
    let keys = tempfile::tempdir().unwrap();
    let sshd = Sshd::start(keys.path());
    let open = |name: &str, url: String, options: &[String]| {
        Mirror::open(&source.dir.path().join(name), &url, Some(Auth::Ssh(options.to_vec()))).unwrap()
    };
    let at = |path: &str| format!("ssh://127.0.0.1:{}{path}", sshd.port);
    // A path with everything a shell would read.
    let odd = source.dir.path().join("it's $(touch pwned) `x`.git");
    std::fs::rename(&source.bare, &odd).unwrap();
    assert_eq!(open("1", at(odd.to_str().unwrap()), &sshd.options).fetch().unwrap().refs.len(), 3);
    let error = open("2", at("/nonexistent.git"), &sshd.options).fetch().unwrap_err();
    assert!(error.to_string().contains("does not appear to be a git repository"), "{error}");
    // A key the server does not know.
    let mut other = sshd.options.clone();
    other[4] = format!("{}/host", keys.path().display());
    let error = open("3", at(odd.to_str().unwrap()), &other).fetch().unwrap_err();
    assert!(matches!(error, GitError::Denied { .. }) && error.to_string().contains("Permission denied"), "{error}");
    // A host whose key is not known: refused, nobody is asked.
    let mut stranger = sshd.options.clone();
    stranger[6] = "-oUserKnownHostsFile=/dev/null".into();
    let before = Instant::now();
    let error = open("4", at(odd.to_str().unwrap()), &stranger).fetch().unwrap_err();
    assert!(matches!(error, GitError::Denied { .. }), "{error}");
    assert!(before.elapsed() < Duration::from_secs(5));
    let error = open("5", "ssh://127.0.0.1:1/x.git".into(), &sshd.options).fetch().unwrap_err();
    assert!(error.is_passing() && error.to_string().contains("refused"), "{error}");
    let error = open("6", at("/x.git"), &["/nonexistent/ssh".into()]).fetch().unwrap_err();
    assert!(error.to_string().contains("/nonexistent/ssh"), "{error}");
}
