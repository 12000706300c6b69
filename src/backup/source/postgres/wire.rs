//! Messages on a connection: whole frames in, without copies; queries and their answers.
//!
//! Frames leave as slices of the buffer they were read into. A server cannot make us hold more than [`FRAME_BYTES`] for
//! one frame or [`ANSWER_BYTES`] for one answer. Source: the manual's chapter "Message Formats".

use super::error::{PostgresError, ServerError, ServerWords};
use bytes::{Buf as _, Bytes, BytesMut};
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The largest frame we take. Base backups come in 32 KiB, the log in 16 of its pages: 128 KiB as servers are built
/// usually, 1 MiB with the largest pages there are. What is larger is no server's.
pub const FRAME_BYTES: usize = 2 << 20;
/// The most that one answer may hold, as it was sent: a history file or a list of extensions has a few KiB.
pub const ANSWER_BYTES: usize = 4 << 20;
/// Read at once. The kernel's socket buffer holds about as much; more does not make it faster.
const READ_BYTES: usize = 256 << 10;
/// Settings a server reports by itself: it has about 15.
const MAX_PARAMETERS: usize = 64;
/// Warnings kept to be told later: the first ones name the cause.
const MAX_NOTICES: usize = 32;

/// The bytes under a connection: TCP, a Unix socket, TLS over TCP.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One message of a server.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

/// The rows of one result set, as text; `None` is NULL.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<Option<Bytes>>>,
}

impl Rows {
    /// A value of the first row, if it is there, not NULL, and UTF-8.
    pub fn first(&self, column: &str) -> Option<&str> {
        self.text(0, column)
    }

    /// A value by row and column, if it is there, not NULL, and UTF-8.
    pub fn text(&self, row: usize, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|name| name == column)?;
        std::str::from_utf8(self.rows.get(row)?.get(at)?.as_deref()?).ok()
    }
}

/// A connection, message by message.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    /// What is being done, for errors.
    pub(super) doing: String,
    /// What the server reports of itself: `server_version`, `in_hot_standby`, …
    pub(super) parameters: BTreeMap<String, String>,
    /// Warnings since the last command.
    pub(super) notices: Vec<ServerError>,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>) -> Wire {
        Wire {
            stream,
            buffer: BytesMut::with_capacity(READ_BYTES),
            doing: "connect".to_owned(),
            parameters: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    fn io(&self, source: io::Error) -> PostgresError {
        PostgresError::Io { doing: self.doing.clone(), source }
    }

    pub(super) fn wrong(&self, what: impl Into<String>) -> PostgresError {
        PostgresError::protocol(&self.doing, what)
    }

    /// What an `ErrorResponse` says, as an error of what is being done.
    pub(super) fn refused(&self, body: &[u8]) -> PostgresError {
        PostgresError::from_server(&self.doing, fields(body))
    }

    /// Takes a frame out of the buffer when a whole one is there.
    fn take(&mut self) -> Result<Option<Frame>, PostgresError> {
        let Some(header) = self.buffer.first_chunk::<5>() else { return Ok(None) };
        let [tag, length @ ..] = *header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if !(4..=FRAME_BYTES).contains(&length) {
            return Err(self.wrong(format!("a message `{}` of {length} bytes", tag.escape_ascii())));
        }
        if self.buffer.len() <= length {
            self.buffer.reserve(length + 1 - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(length + 1);
        frame.advance(5);
        Ok(Some(Frame { tag, body: frame.freeze() }))
    }

    /// The next message; notices and reported settings are kept aside. May be dropped at any time without losing bytes.
    pub(super) async fn read(&mut self) -> Result<Frame, PostgresError> {
        loop {
            while let Some(frame) = self.take()? {
                match frame.tag {
                    b'N' => {
                        if self.notices.len() < MAX_NOTICES {
                            self.notices.push(fields(&frame.body));
                        }
                    }
                    b'S' => self.parameter(&frame.body),
                    // Asynchronous notifications; nobody listens.
                    b'A' => {}
                    _ => return Ok(frame),
                }
            }
            if self.buffer.capacity() == self.buffer.len() {
                self.buffer.reserve(READ_BYTES);
            }
            let read = self.stream.read_buf(&mut self.buffer).await.map_err(|e| self.io(e))?;
            if read == 0 {
                return Err(PostgresError::Cut { doing: self.doing.clone() });
            }
        }
    }

    fn parameter(&mut self, body: &[u8]) {
        let mut parts = body.split(|b| *b == 0).map(|part| String::from_utf8_lossy(part).into_owned());
        if let (Some(name), Some(value)) = (parts.next(), parts.next())
            && (self.parameters.len() < MAX_PARAMETERS || self.parameters.contains_key(&name))
            && name.len() + value.len() < 4096
        {
            self.parameters.insert(name, value);
        }
    }

    /// Sends whole messages.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), PostgresError> {
        self.stream.write_all(bytes).await.map_err(|e| self.io(e))?;
        self.stream.flush().await.map_err(|e| self.io(e))
    }

    /// Sends a command of the simple protocol; its answer is read by the caller.
    pub(super) async fn command(&mut self, doing: &str, text: &str) -> Result<(), PostgresError> {
        self.doing.clear();
        self.doing.push_str(doing);
        self.notices.clear();
        let mut message = BytesMut::new();
        postgres_protocol::message::frontend::query(text, &mut message).map_err(|e| self.io(e))?;
        self.send(&message).await
    }

    /// Reads on to `ReadyForQuery` after an error, or every later answer would be that of the command before.
    pub(super) async fn settle(&mut self) -> Result<(), PostgresError> {
        loop {
            match self.read().await {
                Ok(frame) if frame.tag == b'Z' => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// An error of the server to what was asked, with the connection ready for the next question where that is possible.
    pub(super) async fn fail<T>(&mut self, body: &[u8]) -> Result<T, PostgresError> {
        let error = self.refused(body);
        // After FATAL nothing more comes; the server's words matter more than how the connection ended.
        if !matches!(error, PostgresError::ShuttingDown { .. }) {
            let _ = self.settle().await;
        }
        Err(error)
    }

    /// Asks, and gives the result sets of the answer.
    pub(super) async fn ask(&mut self, doing: &str, text: &str) -> Result<Vec<Rows>, PostgresError> {
        self.command(doing, text).await?;
        let (mut sets, mut held) = (Vec::new(), 0);
        loop {
            let frame = self.read().await?;
            held += frame.body.len();
            if held > ANSWER_BYTES {
                return Err(self.wrong(format!("an answer of more than {ANSWER_BYTES} bytes")));
            }
            match frame.tag {
                b'T' => sets.push(Rows { columns: columns(&frame.body), rows: Vec::new() }),
                b'D' => {
                    let row = row(&frame.body).ok_or_else(|| self.wrong("a row that is cut off"))?;
                    sets.last_mut()
                        .ok_or_else(|| PostgresError::protocol(doing, "a row before its columns"))?
                        .rows
                        .push(row);
                }
                b'C' | b'I' => {}
                b'Z' => return Ok(sets),
                b'E' => return self.fail(&frame.body).await,
                other => return Err(self.wrong(format!("a message `{}` in an answer", other.escape_ascii()))),
            }
        }
    }

    /// The next message that is not an error.
    pub(super) async fn expect(&mut self) -> Result<Frame, PostgresError> {
        let frame = self.read().await?;
        if frame.tag == b'E' {
            return self.fail(&frame.body).await;
        }
        Ok(frame)
    }

    /// Says goodbye. What goes wrong here matters to nobody.
    pub(super) async fn close(mut self) {
        let _ = self.send(b"X\0\0\0\x04").await;
        let _ = self.stream.shutdown().await;
    }
}

/// The fields of an `ErrorResponse` or a `NoticeResponse`.
pub(super) fn fields(body: &[u8]) -> ServerError {
    let mut error = ServerWords::default();
    for field in body.split(|b| *b == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        // Enough for a sentence with names in it; a server's log has the rest.
        let text = String::from_utf8_lossy(&text[..text.len().min(2000)]).into_owned();
        match kind {
            b'V' => error.severity = text,
            b'S' if error.severity.is_empty() => error.severity = text,
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            _ => {}
        }
    }
    error.into()
}

/// The names in a `RowDescription`.
pub(super) fn columns(mut body: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(count) = body.try_get_u16() else { return names };
    for _ in 0..count {
        let Some(end) = body.iter().position(|b| *b == 0) else { break };
        names.push(String::from_utf8_lossy(&body[..end]).into_owned());
        // Table, column, type, length, modifier, format.
        let Some(rest) = body.get(end + 1 + 18..) else { break };
        body = rest;
    }
    names
}

/// The values of a `DataRow`, as slices of it.
pub(super) fn row(body: &Bytes) -> Option<Vec<Option<Bytes>>> {
    let mut rest = body.clone();
    let count = rest.try_get_u16().ok()?;
    let mut values = Vec::new();
    for _ in 0..count {
        let length = rest.try_get_i32().ok()?;
        if length < 0 {
            values.push(None);
            continue;
        }
        let length = usize::try_from(length).ok().filter(|length| *length <= rest.len())?;
        values.push(Some(rest.split_to(length)));
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// A connection whose server says these bytes, in parts of that length, and is gone.
    fn says(bytes: Vec<u8>, part: usize) -> Wire {
        let (ours, mut theirs) = tokio::io::duplex(part);
        tokio::spawn(async move {
            let _ = theirs.write_all(&bytes).await;
            let mut sink = Vec::new();
            let _ = tokio::time::timeout(std::time::Duration::from_millis(1), theirs.read_to_end(&mut sink)).await;
        });
        Wire::new(Box::new(ours))
    }

    #[tokio::test]
    async fn frames_come_whole_however_they_are_cut() {
        for part in [1, 3, 7, 4096] {
            let mut bytes = frame(b'd', &[7; 5000]);
            bytes.extend(frame(b'N', b"SWARNING\0VWARNING\0C01000\0Mcareful\0\0"));
            bytes.extend(frame(b'S', b"server_version\x0015.1\0"));
            bytes.extend(frame(b'c', b""));
            let mut wire = says(bytes, part);
            let first = wire.read().await.unwrap();
            assert_eq!((first.tag, first.body.len()), (b'd', 5000));
            assert_eq!(wire.read().await.unwrap().tag, b'c');
            assert_eq!(wire.notices[0].message, "careful");
            assert_eq!(wire.parameters["server_version"], "15.1");
            assert!(matches!(wire.read().await, Err(PostgresError::Cut { .. })));
        }
    }

    #[tokio::test]
    async fn an_error_leaves_the_connection_ready() {
        let mut bytes = frame(b'E', b"SFEHLER\0VERROR\0C42704\0Mno such thing\0Dreally\0Htry another\0\0");
        bytes.extend(frame(b'Z', b"I"));
        bytes.extend(frame(b'T', b"\0\x01name\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
        bytes.extend(frame(b'D', b"\0\x01\0\0\0\x02on"));
        bytes.extend(frame(b'C', b"SHOW\0"));
        bytes.extend(frame(b'Z', b"I"));
        let mut wire = says(bytes, 64);
        let error = wire.ask("ask for a thing", "SHOW thing").await.unwrap_err();
        assert_eq!(error.code(), Some("42704"));
        assert_eq!(error.to_string(), "ask for a thing: no such thing (42704): really\nhint: try another");
        let rows = wire.ask("ask again", "SHOW name").await.unwrap();
        assert_eq!(rows[0].first("name"), Some("on"));
    }

    #[tokio::test]
    async fn no_length_makes_us_hold_more_than_a_frame() {
        for length in [0, 3, u32::try_from(FRAME_BYTES).unwrap() + 1, u32::MAX] {
            let mut bytes = vec![b'd'];
            bytes.extend(length.to_be_bytes());
            let mut wire = says(bytes, 64);
            assert!(matches!(wire.read().await, Err(PostgresError::Protocol { .. })), "{length}");
            assert!(wire.buffer.capacity() <= 2 * READ_BYTES);
        }
        // Rows without end.
        let mut bytes = frame(b'T', b"\0\0");
        for _ in 0..20 {
            bytes.extend(frame(b'D', &[0; 1 << 20]));
        }
        let error = says(bytes, 1 << 20).ask("ask", "SELECT").await.unwrap_err();
        assert!(matches!(error, PostgresError::Protocol { .. }), "{error}");
    }

    #[test]
    fn bad_rows_are_none() {
        for bytes in [&b""[..], b"\0", b"\0\x01", b"\0\x01\0\0\0\x05abc", b"\0\x02\0\0\0\x01a"] {
            assert_eq!(row(&Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
        assert_eq!(row(&Bytes::from_static(b"\0\x01\xff\xff\xff\xff")), Some(vec![None]));
    }
}
