//! Images from a private registry: pulled with the credentials of `mainstay.yml`, once, and pinned by content.
//!
//! A real registry (Debian's `docker-registry`) on loopback, which asks for a name and a password.

use mainstay::model::InstanceId;
use mainstay::runtime::docker::{Docker, DockerConfig};
use mainstay::runtime::{Runtime, RuntimeError};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

struct Registry {
    process: Child,
    host: String,
    folder: tempfile::TempDir,
}

impl Registry {
    fn start() -> Registry {
        let folder = tempfile::tempdir().unwrap();
        let port = crate::support::ports::free();
        let host = format!("127.0.0.1:{port}");
        let passwords = needed("htpasswd", Command::new("htpasswd").args(["-Bbn", "ana", "open sesame"]).output());
        std::fs::write(folder.path().join("htpasswd"), passwords.stdout).unwrap();
        let config = format!(
            "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {0}/data }} }}\nhttp: {{ addr: '{host}' }}\n\
             auth: {{ htpasswd: {{ realm: test, path: {0}/htpasswd }} }}\n",
            folder.path().display()
        );
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let process = needed(
            "docker-registry",
            Command::new("docker-registry").arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn(),
        );
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&host).is_err() {
            assert!(Instant::now() < until, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Registry { process, host, folder }
    }

    /// Puts a small image there, and nowhere else.
    fn publish(&self, name: &str) -> String {
        let image = format!("{}/{name}", self.host);
        let tag = self.docker(&["tag", "busybox:latest", &image]);
        assert!(tag.status.success(), "this test needs the image busybox:latest: {}", text(&tag.stderr));
        for arguments in [
            vec!["login", "-u", "ana", "-p", "open sesame", &self.host],
            vec!["push", "-q", &image],
            vec!["rmi", &image],
        ] {
            let done = self.docker(&arguments);
            assert!(done.status.success(), "docker {}: {}", arguments[0], text(&done.stderr));
        }
        image
    }

    fn docker(&self, arguments: &[&str]) -> std::process::Output {
        // A configuration of its own: the user's logins are not ours to change.
        let mut command = Command::new("docker");
        needed("docker", command.env("DOCKER_CONFIG", self.folder.path()).args(arguments).output())
    }

    fn engine(&self, password: &str) -> Docker {
        let mut config = DockerConfig::new(InstanceId("7e57ab1e".into())).unwrap();
        config.registries.insert(self.host.clone(), ("ana".into(), password.into()));
        Docker::connect(config).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn needed<T>(program: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("this test needs `{program}`: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn an_image_is_pulled_with_its_credentials_told_about_and_pinned() {
    let registry = Registry::start();
    let image = registry.publish("team/tool:1");
    let said = Mutex::new(Vec::new());
    let told = |words: String| said.lock().unwrap().push(words);

    let pinned = registry.engine("open sesame").resolve_image(&image, &told).await.unwrap();
    assert_eq!(pinned.reference, image);
    assert!(pinned.id.starts_with("sha256:"), "{}", pinned.id);
    assert!(said.lock().unwrap().iter().any(|words| words.contains("team/tool")), "{:?}", said.lock().unwrap());

    // A second run finds it in the engine, also with the registry gone.
    drop(said);
    let host = registry.host.clone();
    let engine = registry.engine("not asked any more");
    let again = engine.resolve_image(&image, &|words| panic!("pulled again from {host}: {words}")).await.unwrap();
    assert_eq!(again.id, pinned.id);
    registry.docker(&["rmi", &image]);
}

#[tokio::test]
async fn a_wrong_password_is_an_error_about_the_image_and_does_not_show_it() {
    let registry = Registry::start();
    let image = registry.publish("team/secret:1");
    let error = registry.engine("open barley").resolve_image(&image, &|_| {}).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Image { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains(&image) && message.to_lowercase().contains("auth"), "{message}");
    assert!(!message.contains("barley"), "{message}");
}
