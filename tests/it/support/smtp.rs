//! A real mail server (Debian's `aiosmtpd`) on loopback that keeps what it takes for tests to read: it can be down, be
//! slow, refuse, and die between taking a mail and saying so.

use mainstay::config::daemon::notify::{Smtp as Settings, SmtpSecurity};
use mainstay::config::secret::Secret;
use serde::Deserialize;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The package is for Debian's own Python, whatever other comes first in the path.
const PYTHON: &str = "/usr/bin/python3";
pub(crate) const USER: &str = "ci";
pub(crate) const PASSWORD: &str = "open sesame";

pub(crate) struct MailServer {
    process: Option<Child>,
    folder: tempfile::TempDir,
    port: u16,
    security: SmtpSecurity,
}

/// A mail as it arrived.
#[derive(Debug, Clone, Deserialize)]
#[allow(dead_code, reason = "each suite reads what it is about")]
pub(crate) struct Mail {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    /// Decoded.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
    pub(crate) html: String,
    /// As it came over the wire.
    pub(crate) raw: String,
    pub(crate) encrypted: bool,
    pub(crate) login: Option<String>,
}

impl Mail {
    /// The value of a header that is there exactly once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        let found: Vec<_> = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).collect();
        let [(_, value)] = found.as_slice() else {
            panic!("{name} stands {} times in {:?}", found.len(), self.headers)
        };
        value
    }
}

#[allow(dead_code, reason = "each suite uses what it is about")]
impl MailServer {
    /// Starts one. With TLS it wants [`USER`] and [`PASSWORD`] too; its authority is made for it.
    pub(crate) fn start(security: SmtpSecurity) -> MailServer {
        let folder = tempfile::tempdir().unwrap();
        if security != SmtpSecurity::Plain {
            make_certificates(folder.path());
        }
        let port = crate::support::ports::free();
        let mut server = MailServer { process: None, folder, port, security };
        server.resume();
        server
    }

    /// Starts it again after [`MailServer::stop`], or after it died, at the same port with the mail it had.
    pub(crate) fn resume(&mut self) {
        self.stop();
        let file = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(PYTHON);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/smtp_server.py"));
        command.arg(self.folder.path()).arg(self.port.to_string());
        match self.security {
            SmtpSecurity::Plain => command.arg("plain"),
            SmtpSecurity::StartTls => {
                command.arg("starttls").args([file("server.pem"), file("server.key")]).args([USER, PASSWORD])
            }
            SmtpSecurity::Tls => {
                command.arg("tls").args([file("server.pem"), file("server.key")]).args([USER, PASSWORD])
            }
        };
        let errors = std::fs::File::create(file("errors")).unwrap();
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("this test needs {PYTHON} with python3-aiosmtpd: {e}"));
        let mut line = String::new();
        let said = BufReader::new(process.stdout.take().unwrap()).read_line(&mut line);
        assert!(
            said.is_ok() && line.trim() == "listening",
            "the mail server did not start (it needs the package python3-aiosmtpd):\n{}",
            std::fs::read_to_string(file("errors")).unwrap_or_default()
        );
        self.process = Some(process);
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// How it behaves from now on; the modes stand in `smtp_server.py`.
    pub(crate) fn behave(&self, mode: &str) {
        let file = self.folder.path().join("mode");
        std::fs::write(file.with_extension("new"), mode).unwrap();
        std::fs::rename(file.with_extension("new"), file).unwrap();
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn wait_until_dead(&mut self) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.process.as_mut().is_some_and(|p| p.try_wait().unwrap().is_none()) {
            assert!(Instant::now() < until, "the mail server lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.process = None;
    }

    /// The mail it has, in the order in which it came.
    pub(crate) fn mails(&self) -> Vec<Mail> {
        let read = |number: usize| {
            let text = std::fs::read(self.folder.path().join(format!("mail-{number}.json"))).ok()?;
            Some(serde_json::from_slice(&text).unwrap())
        };
        (1..).map_while(read).collect()
    }

    /// The mail it has as soon as it has so many.
    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Mail> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let mails = self.mails();
            if mails.len() >= count {
                return mails;
            }
            assert!(Instant::now() < until, "{} of {count} mails came", mails.len());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The settings with which a daemon reaches it.
    pub(crate) fn settings(&self) -> Settings {
        let secure = self.security != SmtpSecurity::Plain;
        Settings {
            host: "127.0.0.1".into(),
            port: self.port,
            security: self.security,
            from: "Mainstay <ci@example.com>".into(),
            user: secure.then(|| USER.into()),
            password: secure.then(|| Secret::new(PASSWORD)),
            authority: secure.then(|| self.authority()),
        }
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An authority of our own (`ca.pem`), and a certificate of it for this machine (`server.pem`, `server.key`).
fn make_certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .output()
            .unwrap_or_else(|e| panic!("this test needs openssl: {e}"));
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    };
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
        .unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-authority"));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=mail.test"));
    openssl("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names");
}
