//! Another system that is posted to: a small HTTP server on loopback that keeps what it is sent and answers as told.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone)]
pub(crate) struct Receiver {
    port: u16,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    posts: Vec<Post>,
    answers: VecDeque<String>,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Post {
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        &found.unwrap_or_else(|| panic!("no {name} in {:?}", self.headers)).1
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

impl Receiver {
    pub(crate) fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let receiver = Receiver { port: listener.local_addr().unwrap().port(), kept: Arc::default() };
        let serving = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let receiver = serving.clone();
                std::thread::spawn(move || receiver.serve(stream));
            }
        });
        receiver
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook/T0KEN", self.port)
    }

    /// How the next posts are answered, one each: status line and further headers. After that each with 200.
    pub(crate) fn answer(&self, answers: &[&str]) {
        self.kept.lock().unwrap().answers.extend(answers.iter().map(|&a| a.to_owned()));
    }

    pub(crate) fn posts(&self) -> Vec<Post> {
        self.kept.lock().unwrap().posts.clone()
    }

    /// What it was sent, as soon as it is so many.
    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Post> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let posts = self.posts();
            if posts.len() >= count {
                return posts;
            }
            assert!(Instant::now() < until, "{} of {count} posts came", posts.len());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut from = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            from.read_line(&mut header).ok()?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let length = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("content-length"))?.1.parse().ok()?;
        let mut body = vec![0; length];
        from.read_exact(&mut body).ok()?;
        let post = Post { line: line.trim_end().to_owned(), headers, body: String::from_utf8(body).ok()? };
        let answer = {
            let mut kept = self.kept.lock().unwrap();
            kept.posts.push(post);
            kept.answers.pop_front().unwrap_or_else(|| "200 OK".to_owned())
        };
        let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 9\r\nConnection: close\r\n\r\nit's said");
        (&stream).write_all(text.as_bytes()).ok()
    }
}
