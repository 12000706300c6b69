//! Somebody who asks all the while, and what they saw.

use crate::lab::now;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Fifty requests a second.
const EVERY: Duration = Duration::from_millis(20);
/// Whoever waits longer has gone elsewhere.
const PATIENCE: Duration = Duration::from_secs(3);

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// When it was asked, in seconds since 1970.
    pub(crate) at: f64,
    /// The body of a 200, or what went wrong.
    pub(crate) said: Result<String, String>,
}

/// Asks until it is dropped. Each request has a thread of its own, so that a slow one holds up nobody.
pub(crate) struct Client {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    asking: Option<JoinHandle<()>>,
}

impl Client {
    pub(crate) fn start(port: u16) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let answers: Arc<Mutex<Vec<Answer>>> = Arc::default();
        let (stopped, collected) = (stop.clone(), answers.clone());
        let asking = std::thread::spawn(move || {
            let mut requests = Vec::new();
            let mut next = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let collected = collected.clone();
                requests.push(std::thread::spawn(move || {
                    let at = now();
                    let said = ask(port);
                    collected.lock().unwrap_or_else(PoisonError::into_inner).push(Answer { at, said });
                }));
                requests.retain(|request| !request.is_finished());
                next += EVERY;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            for request in requests {
                let _ = request.join();
            }
        });
        Client { stop, answers, asking: Some(asking) }
    }

    /// What was asked since a moment, in that order.
    pub(crate) fn since(&self, from: f64) -> Vec<Answer> {
        // The last ones are still on their way.
        std::thread::sleep(Duration::from_millis(500));
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answers: Vec<_> = answers.iter().filter(|answer| answer.at >= from).cloned().collect();
        answers.sort_by(|a, b| a.at.total_cmp(&b.at));
        answers
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(asking) = self.asking.take() {
            let _ = asking.join();
        }
    }
}

fn ask(port: u16) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), PATIENCE).map_err(text)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {answer:?}"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.trim().to_owned()),
        _ => Err(head.lines().next().unwrap_or_default().to_owned()),
    }
}
