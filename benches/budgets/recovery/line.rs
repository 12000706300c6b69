//! A line to the store on which everything takes longer, and as much fits as before.

use std::net::{Ipv4Addr, TcpListener as Listening};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What may be on its way in one direction of a connection: 64 MiB, so that the line never holds up anybody.
const UNDER_WAY: usize = 1024;
const PART_BYTES: usize = 64 << 10;

/// A port that leads to another one, with this much added to each round trip. It lives as long as this process.
pub(super) fn slowed(to: u16, by: Duration) -> u16 {
    let listening = Listening::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
    listening.set_nonblocking(true).expect("a socket is set");
    let port = listening.local_addr().expect("it has an address").port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime is made");
        runtime.block_on(async move {
            let listening = TcpListener::from_std(listening).expect("a socket is taken over");
            while let Ok((ours, _)) = listening.accept().await {
                tokio::spawn(async move {
                    let Ok(theirs) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else { return };
                    let _ = (ours.set_nodelay(true), theirs.set_nodelay(true));
                    let ((from, back), (answers, there)) = (ours.into_split(), theirs.into_split());
                    tokio::join!(later(from, there, by / 2), later(answers, back, by / 2));
                });
            }
        });
    });
    port
}

/// One direction.
async fn later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, by: Duration) {
    let (put, mut get) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        loop {
            let mut part = vec![0; PART_BYTES];
            match from.read(&mut part).await {
                Ok(read) if read > 0 => part.truncate(read),
                _ => return,
            }
            if put.send((Instant::now() + by, part)).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, part)) = get.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&part).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
