//! Stands between a daemon and its engine, counts what the daemon asks, and kills it at the n-th call: before the
//! engine hears of it, or after the engine has done it and before the daemon hears of that.
//!
//! A call is a request, or a piece of what goes to a process over a connection that was handed over (`attach`).

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

/// On which side of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

#[derive(Default)]
struct Plan {
    /// Whom to kill, at which call, on which side.
    target: Option<(Pid, usize, When)>,
    calls: usize,
    /// What the fatal call was.
    killed_at: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) socket: PathBuf,
    plan: Arc<Mutex<Plan>>,
}

enum Verdict {
    Pass,
    Die,
    DieAtTheAnswer,
}

impl Proxy {
    pub(crate) fn start(socket: &Path, engine: &Path) -> Proxy {
        let listener = UnixListener::bind(socket).unwrap();
        let proxy = Proxy { socket: socket.to_owned(), plan: Arc::default() };
        let (serving, engine) = (proxy.clone(), engine.to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&engine)) else { continue };
                let proxy = serving.clone();
                thread::spawn(move || proxy.relay(client, server));
            }
        });
        proxy
    }

    /// From now on counts from zero, and kills at the `n`-th call.
    pub(crate) fn kill_at(&self, pid: Pid, n: usize, when: When) {
        *self.plan.lock().unwrap() = Plan { target: Some((pid, n, when)), calls: 0, killed_at: None };
    }

    /// Kills nobody any more.
    pub(crate) fn calm(&self) {
        self.plan.lock().unwrap().target = None;
    }

    /// Calls so far, and at which one the daemon was killed.
    pub(crate) fn told(&self) -> (usize, Option<String>) {
        let plan = self.plan.lock().unwrap();
        (plan.calls, plan.killed_at.clone())
    }

    fn call(&self, what: &str) -> Verdict {
        let mut plan = self.plan.lock().unwrap();
        plan.calls += 1;
        match plan.target {
            Some((pid, n, when)) if n == plan.calls => {
                plan.killed_at = Some(format!("{when:?} {what}"));
                if when == When::After {
                    return Verdict::DieAtTheAnswer;
                }
                let _ = kill(pid, Signal::SIGKILL);
                Verdict::Die
            }
            _ => Verdict::Pass,
        }
    }

    fn die(&self) {
        if let Some((pid, ..)) = self.plan.lock().unwrap().target {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    fn relay(&self, client: UnixStream, server: UnixStream) {
        let deadly = Arc::new(Mutex::new(false));
        let back = {
            let (proxy, deadly) = (self.clone(), Arc::clone(&deadly));
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || {
                let mut buffer = [0; 64 << 10];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    if *deadly.lock().unwrap() {
                        proxy.die();
                        break;
                    }
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                // The engine may answer by closing, as it does when a word was given.
                if *deadly.lock().unwrap() {
                    proxy.die();
                }
                // The daemon hears that the engine is done; what it says itself may still be on its way.
                let _ = to.shutdown(std::net::Shutdown::Write);
            })
        };
        let _ = self.forward(&client, &server, &deadly);
        // An engine that is done with the connection closes it by itself, as after our half.
        let _ = server.shutdown(std::net::Shutdown::Write);
        let _ = back.join();
        let _ = (client.shutdown(std::net::Shutdown::Both), server.shutdown(std::net::Shutdown::Both));
    }

    /// What goes to the engine, one call after the other, until the daemon closes its half.
    fn forward(&self, client: &UnixStream, mut server: &UnixStream, deadly: &Mutex<bool>) -> std::io::Result<()> {
        let mut from = BufReader::with_capacity(64 << 10, client);
        let heard = |verdict| match verdict {
            Verdict::Pass => Ok(()),
            Verdict::Die => Err(std::io::ErrorKind::ConnectionAborted.into()),
            Verdict::DieAtTheAnswer => {
                *deadly.lock().unwrap() = true;
                Ok::<(), std::io::Error>(())
            }
        };
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if from.read_until(b'\n', &mut head)? == 0 {
                    return Ok(());
                }
            }
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let what = text.lines().next().unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
            heard(self.call(&what))?;
            server.write_all(&head)?;
            let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
            if value("upgrade:").is_some() {
                loop {
                    let piece = from.fill_buf()?;
                    if piece.is_empty() {
                        return Ok(());
                    }
                    heard(self.call(&format!("a piece of {what}")))?;
                    server.write_all(piece)?;
                    let count = piece.len();
                    from.consume(count);
                }
            }
            if value("transfer-encoding:").is_some_and(|coding| coding.contains("chunked")) {
                loop {
                    let mut line = Vec::new();
                    from.read_until(b'\n', &mut line)?;
                    let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).unwrap_or(0);
                    server.write_all(&line)?;
                    std::io::copy(&mut (&mut from).take(size as u64 + 2), &mut server)?;
                    if size == 0 {
                        break;
                    }
                }
            } else {
                let length = value("content-length:").and_then(|n| n.parse().ok()).unwrap_or(0);
                std::io::copy(&mut (&mut from).take(length), &mut server)?;
            }
        }
    }
}
