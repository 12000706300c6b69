//! A proxy in front of a server that knows where its messages begin and end, and may meddle with them.

use mainstay::backup::source::postgres::Address;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What is done with one message of the server.
pub(super) enum Act {
    Pass,
    Drop,
    /// Other bytes in its place: whole messages.
    Replace(Vec<u8>),
    /// This one goes through, and then the connection is gone.
    Cut,
}

/// Sees each message: its number on its connection, its kind, its body.
pub(super) type Meddle = dyn FnMut(usize, u8, &[u8]) -> Act + Send;

pub(super) struct Proxy {
    port: u16,
    task: JoinHandle<()>,
    /// Messages of the client, as they were sent.
    pub(super) sent: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    /// In front of this port of loopback.
    pub(super) async fn start(to: u16, meddle: Box<Meddle>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let seen = sent.clone();
        let meddle = Arc::new(Mutex::new(meddle));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, to, meddle.clone(), seen.clone()));
            }
        });
        Proxy { port, task, sent }
    }

    pub(super) fn address(&self) -> Address {
        Address::parse(&format!("postgres://postgres@127.0.0.1:{}/?sslmode=disable", self.port)).unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, to: u16, meddle: Arc<Mutex<Box<Meddle>>>, sent: Arc<Mutex<Vec<u8>>>) {
    let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            sent.lock().unwrap().extend_from_slice(&buffer[..read]);
            if to_server.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    });
    let mut number = 0;
    loop {
        let mut header = [0; 5];
        if from_server.read_exact(&mut header).await.is_err() {
            break;
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length - 4];
        if from_server.read_exact(&mut body).await.is_err() {
            break;
        }
        let act = (meddle.lock().unwrap())(number, header[0], &body);
        number += 1;
        let mut cut = false;
        let bytes = match act {
            Act::Drop => continue,
            Act::Replace(bytes) => bytes,
            Act::Pass | Act::Cut => {
                cut = matches!(act, Act::Cut);
                [&header[..], &body].concat()
            }
        };
        if to_client.write_all(&bytes).await.is_err() || cut {
            break;
        }
    }
    up.abort();
}

/// A message of this kind.
pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}
