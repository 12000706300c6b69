//! Stands between a client and an S3 server, counts what is asked, and misbehaves by rule: delays, cuts, answers by itself,
//! loses an answer after the server has acted, lies about what is stored, or kills a process at the n-th call.
//!
//! ```ignore
//! let proxy = StoreProxy::start(&server.address());
//! let settings = S3Settings { endpoint: Some(proxy.endpoint()), ..server.settings() };
//! proxy.rule(Rule::new(Fault::Answer(503)).method("PUT").key("/frontier/").times(2));     // the first two
//! proxy.rule(Rule::new(Fault::LoseAnswer).method("PUT").from(3).times(1));                // the third only
//! proxy.kill_at(daemon, 17, When::After);                                                 // sweeps; `told` says what it was
//! ```
//!
//! Plain TCP on loopback. A signature covers the `Host` header, which is the proxy's own address and is passed on as it came.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// On which side of a call: before the store hears of it, or after it has acted and before anybody hears of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// What goes wrong with a call.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "each suite uses what it is about")]
pub(crate) enum Fault {
    /// Nothing, later.
    Delay(Duration),
    /// The connection is cut; the store never hears of it.
    CutBefore,
    /// The connection is cut when half of what is sent has passed.
    CutRequest,
    /// The store acts, and the connection is cut in the middle of the answer.
    CutAnswer,
    /// The store acts, and nothing of its answer comes through.
    LoseAnswer,
    /// Answered with this status and S3's usual code for it; the store never hears of it.
    Answer(u16),
    /// Answered with this status and code.
    AnswerCode(u16, &'static str),
    /// Answered with 404, because somebody deleted the object in a bucket that keeps versions.
    Hide,
    /// Answered with 200 and nothing else; the store never hears of it.
    Pretend,
    /// One bit in the middle of what is sent is another.
    FlipSent,
    /// One bit in the middle of the answer's body is another; refusals come through as they are.
    Flip,
    /// The answer's body ends so many bytes early, and its length says that this is all.
    Shorten(usize),
    /// The store acts, and its answer does not name the digest of what it stored.
    NoChecksum,
    /// Kills the process; the call goes no further.
    Kill(Pid, When),
}

/// Which calls a fault is for. Without conditions it is all of them, for ever.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    fault: Fault,
    method: Option<&'static str>,
    key: String,
    query: String,
    header: &'static str,
    from: usize,
    times: usize,
    every: usize,
    seen: usize,
}

#[allow(dead_code, reason = "each suite uses what it is about")]
impl Rule {
    pub(crate) fn new(fault: Fault) -> Rule {
        let (key, query) = (String::new(), String::new());
        Rule { fault, method: None, key, query, header: "", from: 1, times: usize::MAX, every: 1, seen: 0 }
    }

    /// Only calls with this method.
    pub(crate) fn method(self, method: &'static str) -> Rule {
        Rule { method: Some(method), ..self }
    }

    /// Only calls whose path, without the bucket, has this in it: a prefix, `/piece/`, `manifest.json`.
    pub(crate) fn key(self, part: impl Into<String>) -> Rule {
        Rule { key: part.into(), ..self }
    }

    /// Only calls whose query has this in it: `list-type=2`, `partNumber=2`, `uploads`.
    pub(crate) fn query(self, part: impl Into<String>) -> Rule {
        Rule { query: part.into(), ..self }
    }

    /// Only calls that have this header.
    pub(crate) fn header(self, header: &'static str) -> Rule {
        Rule { header, ..self }
    }

    /// Only each n-th such call.
    pub(crate) fn every(self, n: usize) -> Rule {
        Rule { every: n, from: n, ..self }
    }

    /// Only from the n-th such call on, counted from 1 since the rule was made.
    pub(crate) fn from(self, n: usize) -> Rule {
        Rule { from: n, ..self }
    }

    /// Only so many of them.
    pub(crate) fn times(self, times: usize) -> Rule {
        Rule { times, ..self }
    }

    fn takes(&mut self, call: &Call, head: &[u8]) -> bool {
        let fits = self.method.is_none_or(|method| method == call.method)
            && call.key.contains(&self.key)
            && call.query.contains(&self.query)
            && (self.header.is_empty() || value(head, self.header).is_some());
        if !fits {
            return false;
        }
        self.seen += 1;
        self.seen >= self.from
            && (self.seen - self.from).is_multiple_of(self.every)
            && (self.seen - self.from) / self.every < self.times
    }
}

/// A call as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code, reason = "each suite reads what it is about")]
pub(crate) struct Call {
    pub(crate) method: String,
    /// The path without the bucket, percent-encoding taken off.
    pub(crate) key: String,
    pub(crate) query: String,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let question = if self.query.is_empty() { "" } else { "?" };
        write!(f, "{} {}{question}{}", self.method, self.key, self.query)
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    calls: Vec<Call>,
    at_once: usize,
    most_at_once: usize,
    /// Whom to kill, at which call, on which side.
    target: Option<(Pid, usize, When)>,
    killed_at: Option<String>,
}

#[derive(Clone)]
pub(crate) struct StoreProxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[allow(dead_code, reason = "each suite uses what it is about")]
impl StoreProxy {
    /// Listens on a free port of loopback until the process ends. `store` is `HOST:PORT`.
    pub(crate) fn start(store: &str) -> StoreProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = StoreProxy { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let (serving, store) = (proxy.clone(), store.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (proxy, store) = (serving.clone(), store.clone());
                thread::spawn(move || {
                    let _ = proxy.serve(&client, &store);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        proxy
    }

    /// What a client is given in place of the store's own.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Adds a rule. Of several that fit a call the first one made counts; each counts its own calls.
    pub(crate) fn rule(&self, rule: Rule) {
        self.state.lock().unwrap().rules.push(rule);
    }

    /// Behaves from now on: no rules, nobody to kill.
    pub(crate) fn calm(&self) {
        let mut state = self.state.lock().unwrap();
        state.rules.clear();
        state.target = None;
    }

    /// From now on counts from zero, and kills `pid` at the `n`-th call.
    pub(crate) fn kill_at(&self, pid: Pid, n: usize, when: When) {
        let mut state = self.state.lock().unwrap();
        state.calls.clear();
        (state.target, state.killed_at) = (Some((pid, n, when)), None);
    }

    /// Calls since the start or the last `kill_at` or `forget`, and at which one a process was killed.
    pub(crate) fn told(&self) -> (usize, Option<String>) {
        let state = self.state.lock().unwrap();
        (state.calls.len(), state.killed_at.clone())
    }

    /// What was asked, in order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }

    /// How many calls of this method had `key` in their path.
    pub(crate) fn count(&self, method: &str, key: &str) -> usize {
        self.state.lock().unwrap().calls.iter().filter(|call| call.method == method && call.key.contains(key)).count()
    }

    /// The most calls that were under way at one time.
    pub(crate) fn most_at_once(&self) -> usize {
        self.state.lock().unwrap().most_at_once
    }

    /// Counts anew; rules stay.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        state.calls.clear();
        state.most_at_once = state.at_once;
    }

    fn heard(&self, call: &Call, head: &[u8]) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(call.clone());
        state.at_once += 1;
        state.most_at_once = state.most_at_once.max(state.at_once);
        let number = state.calls.len();
        if let Some((pid, n, when)) = state.target
            && n == number
        {
            return Some(Fault::Kill(pid, when));
        }
        // Each rule counts what fits it, also when another one comes first.
        let mut fault = None;
        for rule in &mut state.rules {
            if rule.takes(call, head) && fault.is_none() {
                fault = Some(rule.fault.clone());
            }
        }
        fault
    }

    fn kill(&self, pid: Pid, when: When, call: &Call) {
        self.state.lock().unwrap().killed_at = Some(format!("{when:?} {call}"));
        let _ = kill(pid, Signal::SIGKILL);
    }

    fn serve(&self, client: &TcpStream, store: &str) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut from = BufReader::with_capacity(64 << 10, client);
        let mut server: Option<BufReader<TcpStream>> = None;
        while let Some(head) = read_head(&mut from)? {
            if value(&head, "expect").is_some_and(|text| text.eq_ignore_ascii_case("100-continue")) {
                { client }.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let mut body = Vec::new();
            read_body(&mut from, &head, false, &mut body)?;
            let call = parse_call(&head);
            let fault = self.heard(&call, &head);
            let done = self.pass(client, store, &mut server, &call, (&head, &body), fault);
            self.state.lock().unwrap().at_once -= 1;
            done?;
        }
        Ok(())
    }

    /// One call, there and back. An error cuts the connection.
    fn pass(
        &self,
        mut client: &TcpStream,
        store: &str,
        server: &mut Option<BufReader<TcpStream>>,
        call: &Call,
        (head, body): (&[u8], &[u8]),
        fault: Option<Fault>,
    ) -> io::Result<()> {
        let cut = || Err(io::ErrorKind::ConnectionAborted.into());
        match fault {
            Some(Fault::Delay(time)) => thread::sleep(time),
            Some(Fault::CutBefore) => return cut(),
            Some(Fault::Kill(pid, When::Before)) => {
                self.kill(pid, When::Before, call);
                return cut();
            }
            Some(Fault::CutRequest) => {
                let mut half = TcpStream::connect(store)?;
                half.write_all(head)?;
                half.write_all(&body[..body.len() / 2])?;
                half.shutdown(Shutdown::Both)?;
                return cut();
            }
            Some(Fault::Answer(status)) => return client.write_all(&refusal(status, usual_code(status), call)),
            Some(Fault::AnswerCode(status, code)) => return client.write_all(&refusal(status, code, call)),
            Some(Fault::Hide) => {
                let head = refusal(404, "NoSuchKey", call);
                return client
                    .write_all(&[&b"HTTP/1.1 404 Told\r\nx-amz-delete-marker: true\r\n"[..], &head[19..]].concat());
            }
            Some(Fault::Pretend) => {
                return client.write_all(b"HTTP/1.1 200 OK\r\nETag: \"0\"\r\nContent-Length: 0\r\n\r\n");
            }
            _ => {}
        }
        if server.is_none() {
            let stream = TcpStream::connect(store)?;
            stream.set_nodelay(true)?;
            *server = Some(BufReader::with_capacity(64 << 10, stream));
        }
        let Some(open) = server.as_mut() else { return cut() };
        open.get_mut().write_all(head)?;
        match fault {
            Some(Fault::FlipSent) if !body.is_empty() => open.get_mut().write_all(&flipped(body))?,
            _ => open.get_mut().write_all(body)?,
        }
        let (mut answer, mut content) = loop {
            let Some(answer) = read_head(open)? else { return cut() };
            // A server that was asked to say so goes ahead with an answer of its own; ours has gone out already.
            if !answer.starts_with(b"HTTP/1.1 1") {
                let mut content = Vec::new();
                read_body(open, &answer, call.method == "HEAD", &mut content)?;
                break (answer, content);
            }
        };
        if value(&answer, "connection").is_some_and(|text| text.eq_ignore_ascii_case("close")) {
            *server = None;
        }
        match fault {
            Some(Fault::LoseAnswer) => return cut(),
            Some(Fault::Kill(pid, when)) => {
                self.kill(pid, when, call);
                return cut();
            }
            Some(Fault::CutAnswer) => {
                let whole = if content.is_empty() { answer.len() / 2 } else { answer.len() };
                client.write_all(&answer[..whole])?;
                client.write_all(&content[..content.len() / 2])?;
                return cut();
            }
            Some(Fault::Flip) if !content.is_empty() && answer.starts_with(b"HTTP/1.1 2") => {
                content = flipped(&content);
            }
            Some(Fault::Shorten(bytes)) => {
                content.truncate(content.len().saturating_sub(bytes));
                answer = with_header(&answer, "content-length", Some(&content.len().to_string()));
            }
            Some(Fault::NoChecksum) => answer = with_header(&answer, "x-amz-checksum-sha256", None),
            _ => {}
        }
        client.write_all(&answer)?;
        client.write_all(&content)
    }
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}

/// Everything up to and with the empty line; `None` when the other side has closed.
fn read_head(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if from.read_until(b'\n', &mut head)? == 0 {
            return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
    Ok(Some(head))
}

/// The body as it is on the wire, whatever its framing.
fn read_body(from: &mut impl BufRead, head: &[u8], none: bool, body: &mut Vec<u8>) -> io::Result<()> {
    let bare = head.starts_with(b"HTTP/1.1 204") || head.starts_with(b"HTTP/1.1 304");
    if none || bare {
        return Ok(());
    }
    if value(head, "transfer-encoding").is_some_and(|text| text.eq_ignore_ascii_case("chunked")) {
        loop {
            let start = body.len();
            from.read_until(b'\n', body)?;
            let line = String::from_utf8_lossy(&body[start..]).trim().to_owned();
            let size = line.split(';').next().and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
            let size = size.ok_or(io::ErrorKind::InvalidData)?;
            if from.by_ref().take(size + 2).read_to_end(body)? as u64 != size + 2 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if size == 0 {
                return Ok(());
            }
        }
    }
    let length = value(head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    if from.by_ref().take(length).read_to_end(body)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn lines(head: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(head).split("\r\n").filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn value(head: &[u8], name: &str) -> Option<String> {
    lines(head).iter().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// The head with this header replaced, or left out.
fn with_header(head: &[u8], name: &str, value: Option<&str>) -> Vec<u8> {
    let mut all = lines(head);
    all.retain(|line| !line.split_once(':').is_some_and(|(key, _)| key.trim().eq_ignore_ascii_case(name)));
    all.extend(value.map(|value| format!("{name}: {value}")));
    format!("{}\r\n\r\n", all.join("\r\n")).into_bytes()
}

fn parse_call(head: &[u8]) -> Call {
    let first = lines(head).into_iter().next().unwrap_or_default();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
    Call { method: method.to_owned(), key: decoded(key), query: decoded(query) }
}

fn decoded(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn usual_code(status: u16) -> &'static str {
    match status {
        403 => "AccessDenied",
        404 => "NoSuchKey",
        409 => "ConditionalRequestConflict",
        412 => "PreconditionFailed",
        429 | 503 => "SlowDown",
        501 => "NotImplemented",
        _ => "InternalError",
    }
}

fn refusal(status: u16, code: &str, call: &Call) -> Vec<u8> {
    let body = if call.method == "HEAD" || code.is_empty() {
        String::new()
    } else {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>by the proxy</Message></Error>"
        )
    };
    format!("HTTP/1.1 {status} Told\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}
