//! The two listeners: a Unix socket for this machine's owner, TCP for everybody with a token.
//!
//! In come connections; each becomes a task that serves HTTP/1 requests, marked with who is there ([`Peer`]). When the
//! daemon stops, no more are taken, those that serve a request may finish it, and everyone is waited for.

use super::auth::Peer;
use super::stopped;
use anyhow::Context as _;
use axum::Router;
use axum::extract::Request;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Connections at the same time for each listener, so that the network cannot lock out the machine's owner. Far below
/// the 1,024 files a process usually may have open, of which runs need their share.
const CONNECTIONS: usize = 256;
/// A whole request head must be there in this time; also the longest an idle connection is kept.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Room for a request head. The largest that browsers and forges send are near 16 KiB.
const HEAD_MAX: usize = 64 * 1024;
/// Header lines in one head; forges send about 20.
const HEADERS_MAX: usize = 100;
/// What a request under way gets to finish when the daemon stops. Log streams end by themselves at once.
const FINISH_WITHIN: Duration = Duration::from_secs(5);
/// After a failed accept, which means that files ran out: time for some connection to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The bound socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds the socket with mode 0600. A file left by a daemon that was killed is replaced; a daemon that answers
    /// there is an error. At no moment is there a socket that others may use.
    ///
    /// # Errors
    /// When another daemon answers, or the file cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Socket> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            anyhow::bail!(
                "listen on {}: another daemon answers there\nhint: stop it, or give this one a `state` folder of its own",
                path.display()
            );
        }
        let scratch = path.with_extension(format!("new-{}", std::process::id()));
        let _ = std::fs::remove_file(&scratch);
        let listener = UnixListener::bind(&scratch).with_context(|| {
            format!(
                "listen on {}\nhint: a socket's path may have 107 bytes; choose a shorter `state` folder",
                path.display()
            )
        })?;
        let published = std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&scratch, path));
        if published.is_err() {
            let _ = std::fs::remove_file(&scratch);
        }
        published.with_context(|| format!("listen on {}", path.display()))?;
        Ok(Socket { listener, path: path.to_owned() })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves both listeners until `stopping` turns true and every connection has ended or had its time.
pub async fn serve(router: Router, socket: Socket, tcp: Option<TcpListener>, stopping: watch::Receiver<bool>) {
    let local = accept(&router, &stopping, async || {
        let (stream, _) = socket.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, Peer::Local { uid }))
    });
    let network = async {
        let Some(tcp) = &tcp else { return };
        let next = async || {
            let (stream, _) = tcp.accept().await?;
            // Log lines are small and wanted at once.
            stream.set_nodelay(true)?;
            Ok((stream, Peer::Network))
        };
        accept(&router, &stopping, next).await;
    };
    tokio::join!(local, network);
}

async fn accept<S>(
    router: &Router,
    stopping: &watch::Receiver<bool>,
    next: impl AsyncFn() -> std::io::Result<(S, Peer)>,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let taken = tokio::select! {
            biased;
            () = stopped(stopping) => break,
            // Ended connections are taken out as we go, so that the set stays as small as what is open.
            Some(_) = connections.join_next() => continue,
            taken = async { (Arc::clone(&places).acquire_owned().await, next().await) } => taken,
        };
        match taken {
            (Ok(place), Ok((stream, peer))) => {
                let work = connection(stream, peer, router.clone(), stopping.clone());
                connections.spawn(async move {
                    work.await;
                    drop(place);
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "failed to take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (Err(_), _) => break,
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn connection<S>(stream: S, peer: Peer, router: Router, stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        inner.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_headers(HEADERS_MAX).max_buf_size(HEAD_MAX);
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopped(&stopping) => {
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(FINISH_WITHIN, served).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        // Clients go away in many ways, none of which is ours to mend.
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_by_a_killed_daemon_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mainstay.sock");
        // Dropping a plain listener leaves its file, as a kill does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Socket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("another daemon answers there"), "{error}");
        drop(socket);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a file was left");
    }
}
