//! Reads a log from a connection of its own, in batches of frames.
//!
//! In come an engine's address and a request; out go batches of what the engine has sent meanwhile. Called by `logs`.
//!
//! The client library wakes up for every chunk, and the engine sends one for every line, two hundred thousand a second
//! when a step is chatty. So this reader is a thread that reads whatever the socket holds and, as long as that keeps
//! coming, rests a moment before the next read. It knows as much of HTTP as one answer needs: a head, and chunks
//! (RFC 9112, section 7.1), whose last one tells a whole answer from a broken one. The frames are those of the engine's
//! attach call: a byte that names the stream, three of no meaning, four for the length, big-endian.

use crate::model::log::Stream;
use bytes::{Buf, Bytes, BytesMut};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What one read takes: little at first, since most logs are quiet and there are many; more, once that much has been
/// there. A Unix socket seldom holds more of a log.
const READ_BYTES: (usize, usize) = (8 * 1024, 64 * 1024);
/// Batches on their way: one being looked at, one to come. A slow reader holds the engine up, not our memory.
const BATCHES: usize = 1;
/// How long a chatty log gathers before it is read. A Unix socket holds some 270 short lines, and engines send fewer in
/// that time, so that they never wait for room.
const REST: Duration = Duration::from_micros(300);
/// How long the engine may take to begin its answer; afterwards a quiet log is no fault.
const HEAD_WITHIN: Duration = Duration::from_secs(120);
/// A longer head or chunk size is no engine's.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Engines cut lines at 16 KiB; far beyond that the bytes are not frames.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What of a refusal is read.
const REFUSAL_BYTES_MAX: u64 = 64 * 1024;
/// The reader's calls are shallow and its buffers are on the heap.
const STACK_BYTES: usize = 128 * 1024;

/// One frame: its stream, and the bytes with the time before them.
pub(super) type Frame = (Stream, Bytes);

/// Why there are no more frames.
#[derive(Debug)]
pub(super) enum Broken {
    /// The engine answered something else.
    Refused {
        /// HTTP's word for it.
        status: u16,
        /// The engine's words.
        message: String,
    },
    /// The connection failed, or what it brought makes no sense.
    Connection(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // How a socket says that its time is over.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Broken::Connection(format!("no answer within {} s", HEAD_WITHIN.as_secs()))
            }
            _ => Broken::Connection(error.to_string()),
        }
    }
}

/// A log that is being read. Dropping it ends the reader.
pub(super) struct Frames {
    batches: mpsc::Receiver<Result<Vec<Frame>, Broken>>,
    socket: Arc<OnceLock<Socket>>,
}

impl Frames {
    /// Begins to read the answer to `GET path` from the engine at `endpoint` (`unix://`, `tcp://` or `http://`).
    pub(super) fn open(endpoint: &str, path: &str) -> Frames {
        let (sender, batches) = mpsc::channel(BATCHES);
        let shared = Arc::new(OnceLock::new());
        let (endpoint, path, socket) = (endpoint.to_owned(), path.to_owned(), shared.clone());
        let failed = sender.clone();
        let thread = std::thread::Builder::new().name("engine-log".to_owned()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            if let Err(broken) = read(&endpoint, &path, &socket, &sender) {
                // Nobody listens any more: then nobody wants to know.
                let _ = sender.blocking_send(Err(broken));
            }
        });
        if let Err(error) = started {
            // The channel is new and has room.
            let _ = failed.try_send(Err(Broken::Connection(format!("no thread for it: {error}"))));
        }
        Frames { batches, socket: shared }
    }

    /// The next batch, never empty; `None` when the engine has said that this was all.
    pub(super) async fn next(&mut self) -> Option<Result<Vec<Frame>, Broken>> {
        self.batches.recv().await
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.batches.close();
        if let Some(socket) = self.socket.get() {
            socket.shut_down();
        }
    }
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn connect(endpoint: &str) -> io::Result<Socket> {
        if let Some(path) = endpoint.strip_prefix("unix://") {
            return Ok(Socket::Unix(UnixStream::connect(path)?));
        }
        let address = endpoint.split_once("://").map_or(endpoint, |(_, address)| address).trim_end_matches('/');
        // A bracket closes an IPv6 address that has no port either.
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        Ok(Socket::Tcp(if has_port { TcpStream::connect(address)? } else { TcpStream::connect((address, 80))? }))
    }

    fn read_within(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Socket::Unix(socket) => socket.set_read_timeout(timeout),
            Socket::Tcp(socket) => socket.set_read_timeout(timeout),
        }
    }

    fn shut_down(&self) {
        // One that is closed already is as good.
        let _ = match self {
            Socket::Unix(socket) => socket.shutdown(Shutdown::Both),
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(socket) => (&mut &*socket).read(buffer),
            Socket::Tcp(socket) => (&mut &*socket).read(buffer),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(socket) => (&mut &*socket).write(bytes),
            Socket::Tcp(socket) => (&mut &*socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Batches = mpsc::Sender<Result<Vec<Frame>, Broken>>;

fn read(endpoint: &str, path: &str, shared: &OnceLock<Socket>, batches: &Batches) -> Result<(), Broken> {
    let connected = Socket::connect(endpoint)?;
    let mut socket = shared.get_or_init(|| connected);
    // Dropped meanwhile: it found no socket to shut down.
    if batches.is_closed() {
        return Ok(());
    }
    socket.read_within(Some(HEAD_WITHIN))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: engine\r\nAccept: */*\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let mut input = BytesMut::new();
    let mut size = READ_BYTES.0;
    let head = loop {
        if let Some(head) = Head::parse(&mut input)? {
            break head;
        }
        if input.len() > HEAD_BYTES_MAX {
            return Err(Broken::Connection("the answer's head has no end".to_owned()));
        }
        fill(socket, &mut input, size)?;
    };
    if head.status != 200 {
        return Err(refusal(socket, &input, head.status));
    }
    if !head.chunked {
        return Err(Broken::Connection("the answer is not in chunks, so that its end cannot be told".to_owned()));
    }
    socket.read_within(None)?;
    let mut chunks = Chunks::default();
    let mut body = BytesMut::new();
    loop {
        let ended = chunks.decode(&mut input, &mut body)?;
        let frames = frames(&mut body)?;
        if !frames.is_empty() && batches.blocking_send(Ok(frames)).is_err() {
            return Ok(());
        }
        if ended && body.is_empty() {
            return Ok(());
        } else if ended {
            return Err(Broken::Connection("the log ended in the middle of a frame".to_owned()));
        }
        let asked = Instant::now();
        let full = fill(socket, &mut input, size)? == size;
        if full {
            size = (size * 2).min(READ_BYTES.1);
        } else if asked.elapsed() < REST {
            std::thread::sleep(REST);
        }
    }
}

/// Reads what there is, up to `size` and at least one byte, behind what is there.
fn fill(mut socket: &Socket, input: &mut BytesMut, size: usize) -> Result<usize, Broken> {
    let filled = input.len();
    input.resize(filled + size, 0);
    let read = loop {
        match socket.read(&mut input[filled..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    input.truncate(filled + *read.as_ref().unwrap_or(&0));
    match read? {
        0 => Err(Broken::Connection("the connection was closed before the end".to_owned())),
        bytes => Ok(bytes),
    }
}

/// What the engine said in place of a log.
fn refusal(socket: &Socket, begun: &[u8], status: u16) -> Broken {
    let mut body = begun.to_vec();
    // `Connection: close` was asked for; what is missing of a message after an error is no loss.
    let _ = socket.take(REFUSAL_BYTES_MAX).read_to_end(&mut body);
    let text = String::from_utf8_lossy(&body);
    let json = text.find('{').zip(text.rfind('}')).and_then(|(from, to)| text.get(from..=to));
    let message = json.and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok());
    let message = message.as_ref().and_then(|value| value["message"].as_str()).unwrap_or(text.trim());
    Broken::Refused { status, message: message.to_owned() }
}

struct Head {
    status: u16,
    chunked: bool,
}

impl Head {
    /// Takes the head off the input once it is whole.
    fn parse(input: &mut BytesMut) -> Result<Option<Head>, Broken> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(input).map_err(|e| Broken::Connection(format!("the answer is not HTTP: {e}")))?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let status = answer.code.unwrap_or_default();
        let chunked = answer.headers.iter().any(|header| {
            header.name.eq_ignore_ascii_case("transfer-encoding") && header.value.eq_ignore_ascii_case(b"chunked")
        });
        input.advance(length);
        Ok(Some(Head { status, chunked }))
    }
}

/// Where in the chunks of an answer the input stands.
#[derive(Default)]
enum Chunks {
    /// Before a chunk's size.
    #[default]
    Size,
    /// In a chunk; that many bytes of it are to come.
    Data(u64),
    /// Behind a chunk's bytes, before the line's end that closes it.
    Close,
    /// Behind the last chunk.
    Ended,
}

impl Chunks {
    /// Moves what the input holds of chunks to `body`; true behind the last one.
    fn decode(&mut self, input: &mut BytesMut, body: &mut BytesMut) -> Result<bool, Broken> {
        loop {
            match self {
                Chunks::Size => match httparse::parse_chunk_size(input) {
                    Ok(httparse::Status::Complete((length, size))) => {
                        input.advance(length);
                        *self = if size == 0 { Chunks::Ended } else { Chunks::Data(size) };
                    }
                    Ok(httparse::Status::Partial) if input.len() <= HEAD_BYTES_MAX => return Ok(false),
                    _ => return Err(Broken::Connection("the answer has a chunk without a size".to_owned())),
                },
                Chunks::Data(left) => {
                    let here = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                    body.extend_from_slice(&input[..here]);
                    input.advance(here);
                    *left -= here as u64;
                    if *left > 0 {
                        return Ok(false);
                    }
                    *self = Chunks::Close;
                }
                Chunks::Close => {
                    if input.len() < 2 {
                        return Ok(false);
                    }
                    if !input.starts_with(b"\r\n") {
                        return Err(Broken::Connection("the answer has a chunk without an end".to_owned()));
                    }
                    input.advance(2);
                    *self = Chunks::Size;
                }
                Chunks::Ended => return Ok(true),
            }
        }
    }
}

/// Takes the whole frames off the bytes.
fn frames(body: &mut BytesMut) -> Result<Vec<Frame>, Broken> {
    let mut frames = Vec::new();
    while let Some(head) = body.first_chunk::<8>() {
        let stream = match head[0] {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            other => return Err(Broken::Connection(format!("a frame of the log is of stream {other}"))),
        };
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(Broken::Connection(format!("a frame of the log has {length} bytes")));
        }
        if body.len() < 8 + length {
            break;
        }
        body.advance(8);
        frames.push((stream, body.split_to(length).freeze()));
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::BufRead;
    use std::net::TcpListener;

    fn frame(stream: u8, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![stream, 0, 0, 0];
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend(text);
        bytes
    }

    fn chunk(bytes: &[u8]) -> Vec<u8> {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend(bytes);
        chunk.extend(b"\r\n");
        chunk
    }

    /// An engine that answers one request with these pieces and hangs up.
    fn engine(pieces: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let mut request = String::new();
            let mut lines = io::BufReader::new(&socket);
            while !request.ends_with("\r\n\r\n") {
                assert!(lines.read_line(&mut request).unwrap() > 0);
            }
            for piece in pieces {
                // A reader that has seen enough is gone.
                let _ = (&socket).write_all(&piece);
            }
            request
        });
        (endpoint, served)
    }

    async fn everything(endpoint: &str) -> (Vec<Frame>, Option<Broken>) {
        let mut frames = Frames::open(endpoint, "/containers/x/logs?follow=true");
        let mut seen = Vec::new();
        while let Some(batch) = frames.next().await {
            match batch {
                Ok(batch) => seen.extend(batch),
                Err(broken) => return (seen, Some(broken)),
            }
        }
        (seen, None)
    }

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[tokio::test]
    async fn a_whole_log_is_told_from_a_broken_one() {
        let text = [chunk(&frame(1, b"a\n")), chunk(&frame(2, b"b\n"))].concat();
        let last = b"0\r\n\r\n".to_vec();
        let expected = vec![(Stream::Stdout, Bytes::from("a\n")), (Stream::Stderr, Bytes::from("b\n"))];

        let (endpoint, served) = engine(vec![OK.to_vec(), text.clone(), last.clone()]);
        let (seen, broken) = everything(&endpoint).await;
        assert_eq!(seen, expected);
        assert!(broken.is_none(), "{broken:?}");
        assert!(served.join().unwrap().starts_with("GET /containers/x/logs?follow=true HTTP/1.1\r\n"));

        let (endpoint, _served) = engine(vec![OK.to_vec(), text.clone()]);
        let (seen, broken) = everything(&endpoint).await;
        assert_eq!(seen, expected);
        assert!(matches!(broken, Some(Broken::Connection(why)) if why.contains("before the end")));

        let (endpoint, _served) = engine(vec![OK.to_vec(), chunk(&frame(1, b"cut\n")[..9]), last]);
        let (seen, broken) = everything(&endpoint).await;
        assert!(seen.is_empty());
        assert!(matches!(broken, Some(Broken::Connection(why)) if why.contains("middle of a frame")));
    }

    #[tokio::test]
    async fn what_is_no_log_is_said_in_the_engines_words() {
        let body = chunk(br#"{"message":"No such container: x"}"#);
        let head = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let (endpoint, _served) = engine(vec![head, body, b"0\r\n\r\n".to_vec()]);
        let (_, broken) = everything(&endpoint).await;
        assert!(matches!(broken, Some(Broken::Refused { status: 404, message }) if message == "No such container: x"));

        for (answer, word) in [
            ("SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", "not in chunks"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "without a size"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n\x09\0\0\0\0\0\0\0\r\n", "of stream 9"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n\x01\0\0\0\x7f\0\0\0\r\n", "2130706432 bytes"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\x01words", "without an end"),
        ] {
            let (endpoint, _served) = engine(vec![answer.as_bytes().to_vec()]);
            let (_, broken) = everything(&endpoint).await;
            assert!(matches!(&broken, Some(Broken::Connection(why)) if why.contains(word)), "{answer:?}: {broken:?}");
        }
        let (_, broken) = everything("unix:///nowhere/engine.sock").await;
        assert!(matches!(broken, Some(Broken::Connection(_))), "{broken:?}");
    }

    #[tokio::test]
    async fn dropping_the_log_hangs_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let mut frames = Frames::open(&endpoint, "/");
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(&[OK, &chunk(&frame(1, b"a\n"))].concat()).unwrap();
        assert_eq!(frames.next().await.unwrap().unwrap().len(), 1);
        drop(frames);
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
        assert!(rest.starts_with(b"GET / "));
    }

    proptest! {
        /// However the connection cuts what the engine sends, the frames are the same.
        #[test]
        fn frames_do_not_depend_on_how_they_arrive(
            texts in prop::collection::vec((1u8..=2, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
            chunk_bytes in 1usize..60,
            read_bytes in 1usize..60,
        ) {
            let plain: Vec<u8> = texts.iter().flat_map(|(stream, text)| frame(*stream, text)).collect();
            let mut wire: Vec<u8> = plain.chunks(chunk_bytes).flat_map(chunk).collect();
            wire.extend(b"0\r\n\r\n");
            let (mut chunks, mut input, mut body) = (Chunks::default(), BytesMut::new(), BytesMut::new());
            let (mut seen, mut ended) = (Vec::new(), false);
            for read in wire.chunks(read_bytes) {
                input.extend_from_slice(read);
                ended |= chunks.decode(&mut input, &mut body).unwrap();
                seen.extend(frames(&mut body).unwrap());
            }
            prop_assert!(ended && body.is_empty());
            let seen: Vec<_> = seen.iter().map(|(s, b)| (if *s == Stream::Stdout { 1 } else { 2 }, b.to_vec())).collect();
            prop_assert_eq!(seen, texts);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut input = BytesMut::from(&bytes[..]);
            let _ = Head::parse(&mut input);
            let mut body = BytesMut::new();
            let _ = Chunks::default().decode(&mut BytesMut::from(&bytes[..]), &mut body);
            let _ = frames(&mut body);
            let _ = frames(&mut BytesMut::from(&bytes[..]));
        }
    }
}
