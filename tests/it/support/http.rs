//! One request over a Unix socket, by hand: HTTP/1.0, so that the end of the answer is the end of the connection.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Status and body of the answer; an error when nobody answers, or the answer breaks off.
pub(crate) fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut request = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n").as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let broken = || std::io::Error::other("the answer is no HTTP");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(broken)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    Ok((status, answer.split_off(end + 4)))
}

/// GET a JSON document.
pub(crate) fn get(socket: &Path, path: &str) -> std::io::Result<serde_json::Value> {
    let (status, body) = ask(socket, "GET", path, &[], b"")?;
    if status != 200 {
        return Err(std::io::Error::other(format!("GET {path}: {status} {}", String::from_utf8_lossy(&body))));
    }
    serde_json::from_slice(&body).map_err(std::io::Error::other)
}
