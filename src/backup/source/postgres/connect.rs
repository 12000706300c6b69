//! From an address to a signed-in connection.
//!
//! Each host is tried in turn, within its own time. Sign-in knows trust, password, md5 and SCRAM-SHA-256, bound to the TLS
//! connection where the server can.

use super::address::{Address, ChannelBinding, Host, Target, Tls};
use super::error::PostgresError;
use super::tls;
use super::wire::{Stream, Wire};
use crate::config::secret::Secret;
use bytes::{Buf as _, Bytes, BytesMut};
use nix::sys::socket::{setsockopt, sockopt};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// A silent connection is asked for a sign of life after this time, then every 10 s; after 3 without one it is dead. A
/// firewall that forgets connections does so after minutes.
const KEEPALIVE_IDLE_SECS: libc::c_int = 30;
const KEEPALIVE_EVERY_SECS: libc::c_int = 10;
const KEEPALIVE_COUNT: libc::c_int = 3;
/// How long bytes that we sent may go without a receipt.
const UNACKNOWLEDGED_MILLIS: libc::c_int = 60_000;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Replication: base backups, the log, slots, `SHOW`.
    Replication,
    /// SQL in the address's database.
    Sql,
}

/// A signed-in connection. Dropped, it closes; what the server was doing for it stops.
pub struct Connection {
    pub(super) wire: Wire,
    /// Whom it is connected to.
    pub(super) host: Host,
    /// Whether it is encrypted.
    pub(super) encrypted: bool,
    pub(super) version: u32,
    pub(super) purpose: Purpose,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({}, version {})", self.host, self.version)
    }
}

impl Connection {
    /// Connects to the first host that will do. A password given here goes before the one in the address.
    ///
    /// # Errors
    /// [`PostgresError::Unreachable`] with each host's reason when none will do; [`PostgresError::Tls`] when the files that
    /// TLS needs cannot be used.
    pub async fn open(
        address: &Address,
        password: Option<&Secret>,
        purpose: Purpose,
    ) -> Result<Connection, PostgresError> {
        let (mode, roots) = (address.tls, address.roots.clone());
        let config = match mode {
            Tls::Disable => None,
            _ => Some(
                tokio::task::spawn_blocking(move || tls::config(mode, &roots))
                    .await
                    .map_err(|e| PostgresError::Tls(e.to_string()))??,
            ),
        };
        let password = password.or(address.password.as_ref());
        let mut reasons = Vec::new();
        let mut refusal = None;
        // Two rounds where a standby is only preferred: the second takes what there is.
        let rounds: &[Target] = match address.target {
            Target::PreferStandby => &[Target::Standby, Target::Any],
            Target::Any => &[Target::Any],
            Target::Primary => &[Target::Primary],
            Target::Standby => &[Target::Standby],
        };
        for target in rounds {
            reasons.clear();
            for host in &address.hosts {
                let attempt = Attempt { address, host, password, purpose, config: config.as_ref() };
                match attempt.any_way(*target).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => {
                        let text = match error {
                            PostgresError::Refused { error, .. } | PostgresError::ShuttingDown { error, .. } => {
                                let text = error.to_string();
                                refusal = Some(error);
                                text
                            }
                            PostgresError::Io { source, .. } => source.to_string(),
                            other => other.to_string(),
                        };
                        reasons.push(format!("{host}: {text}"));
                    }
                }
            }
        }
        Err(PostgresError::Unreachable { address: address.to_string(), reasons: reasons.join("; "), refusal })
    }

    /// `server_version_num`, such as 150018.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The major version, such as 15.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }

    /// Whom it is connected to.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Says goodbye, so that the server's log has no word of a lost connection.
    pub async fn close(self) {
        // A server that does not take even this is left to the kernel.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.wire.close()).await;
    }
}

/// One host, one try.
struct Attempt<'a> {
    address: &'a Address,
    host: &'a Host,
    password: Option<&'a Secret>,
    purpose: Purpose,
    config: Option<&'a Arc<ClientConfig>>,
}

/// How a connection is to be secured on one try.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    /// Plain if the server has no TLS.
    TlsIfAny,
    Tls,
}

impl Attempt<'_> {
    /// As the mode allows, the first way that works.
    async fn any_way(&self, target: Target) -> Result<Connection, PostgresError> {
        let (first, second) = match (self.host, self.address.tls) {
            (Host::Unix(..), _) | (_, Tls::Disable) => (Way::Plain, None),
            (_, Tls::Allow) => (Way::Plain, Some(Way::Tls)),
            (_, Tls::Prefer) => (Way::TlsIfAny, Some(Way::Plain)),
            (_, Tls::Require | Tls::VerifyCa | Tls::VerifyFull) => (Way::Tls, None),
        };
        let error = match self.in_time(first, target).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        // 28000: pg_hba.conf has no line for this way, perhaps for the other.
        match second {
            Some(way) if matches!(error, PostgresError::Tls(_)) || error.code() == Some("28000") => {
                self.in_time(way, target).await.map_err(|_| error)
            }
            _ => Err(error),
        }
    }

    async fn in_time(&self, way: Way, target: Target) -> Result<Connection, PostgresError> {
        let limit = self.address.connect_timeout;
        tokio::time::timeout(limit, self.open(way, target)).await.unwrap_or_else(|_| {
            let source = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()));
            Err(PostgresError::Io { doing: "connect".to_owned(), source })
        })
    }

    async fn open(&self, way: Way, target: Target) -> Result<Connection, PostgresError> {
        let failed = |source| PostgresError::Io { doing: "connect".to_owned(), source };
        let (stream, end_point, encrypted): (Box<dyn Stream>, _, _) = match self.host {
            Host::Unix(folder, port) => {
                let stream = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await.map_err(failed)?;
                (Box::new(stream), None, false)
            }
            Host::Tcp(name, port) => {
                let mut tcp = TcpStream::connect((name.as_str(), *port)).await.map_err(failed)?;
                keep_alive(&tcp).map_err(failed)?;
                let secured = match (way, self.config) {
                    (Way::Plain, _) | (_, None) => None,
                    (_, Some(config)) => {
                        if !wants_tls(&mut tcp).await.map_err(failed)? {
                            if way == Way::Tls {
                                return Err(PostgresError::Tls(
                                    "the server has no TLS\nhint: set ssl = on with a certificate there, or use sslmode=prefer on a network you trust".into(),
                                ));
                            }
                            None
                        } else {
                            Some(config.clone())
                        }
                    }
                };
                match secured {
                    None => (Box::new(tcp), None, false),
                    Some(config) => {
                        let stream = tls::secure(config, tcp, name).await?;
                        let end_point = tls::end_point(&stream);
                        (Box::new(stream), end_point, true)
                    }
                }
            }
        };
        let mut wire = Wire::new(stream);
        self.start(&mut wire).await?;
        let protection = Protection { encrypted, end_point };
        self.sign_in(&mut wire, protection).await?;
        self.ready(&mut wire).await?;
        let version = version_of(wire.parameters.get("server_version").map_or("", String::as_str));
        let version = version.ok_or_else(|| wire.wrong("a server that does not say its version"))?;
        let mut connection = Connection { wire, host: self.host.clone(), encrypted, version, purpose: self.purpose };
        if version < 130_000 {
            return Err(PostgresError::protocol(
                "connect",
                format!("its version is {}; 13 is the oldest that is known here", version / 10_000),
            ));
        }
        if target != Target::Any && (target == Target::Standby) != connection.in_recovery().await? {
            let is = if target == Target::Standby { "it is not a standby" } else { "it is a standby" };
            return Err(PostgresError::protocol("connect", is));
        }
        Ok(connection)
    }

    async fn start(&self, wire: &mut Wire) -> Result<(), PostgresError> {
        let mut parameters = vec![
            ("user", self.address.user.as_str()),
            ("application_name", &self.address.application_name),
            ("client_encoding", "UTF8"),
            // Else a primary that forbids writes by default could not be told from a standby.
            ("default_transaction_read_only", "off"),
            ("DateStyle", "ISO"),
        ];
        match self.purpose {
            Purpose::Replication => parameters.push(("replication", "true")),
            Purpose::Sql => parameters.push(("database", self.address.database())),
        }
        let mut message = BytesMut::new();
        frontend::startup_message(parameters, &mut message)
            .map_err(|source| PostgresError::Io { doing: "connect".to_owned(), source })?;
        wire.send(&message).await
    }

    /// Until the server says that it knows us.
    async fn sign_in(&self, wire: &mut Wire, protection: Protection) -> Result<(), PostgresError> {
        wire.doing = "sign in".to_owned();
        let bound = self.address.channel_binding == ChannelBinding::Require;
        let mut scram: Option<Scram> = None;
        loop {
            let mut body = authentication(wire).await?;
            let kind = body.try_get_i32().map_err(|_| wire.wrong("an empty request to sign in"))?;
            if bound && matches!(kind, 3 | 5) {
                return Err(sign_in(
                    "the server wants a way to sign in that cannot be bound to the TLS connection, and channel_binding=require is set",
                ));
            }
            match kind {
                0 => {
                    // The server has to prove that it knows the password too, once it began to ask for proof.
                    if !scram.as_ref().is_none_or(|s| s.proved) || (bound && !scram.as_ref().is_some_and(|s| s.bound)) {
                        return Err(sign_in("the server did not prove that it knows the password"));
                    }
                    return Ok(());
                }
                3 => {
                    let safe = protection.encrypted || matches!(self.host, Host::Unix(..));
                    if !safe && self.address.tls != Tls::Disable {
                        return Err(sign_in(
                            "the server wants the password in clear text over a connection without TLS\nhint: use scram-sha-256 in pg_hba.conf, or sslmode=require; sslmode=disable sends it all the same",
                        ));
                    }
                    self.answer(wire, self.secret()?.expose().as_bytes()).await?;
                }
                5 => {
                    let salt = body.first_chunk::<4>().ok_or_else(|| wire.wrong("an md5 salt that is cut off"))?;
                    let hash = md5_hash(self.address.user.as_bytes(), self.secret()?.expose().as_bytes(), *salt);
                    self.answer(wire, hash.as_bytes()).await?;
                }
                10 => scram = Some(self.begin_scram(wire, &body, &protection).await?),
                11 => {
                    let state =
                        scram.as_mut().ok_or_else(|| wire.wrong("an answer to a sign-in that did not begin"))?;
                    // Thousands of rounds of hashing: a few ms, as the protocol's crate bounds it.
                    state.exchange.update(&body).map_err(|e| sign_in(e.to_string()))?;
                    let mut message = BytesMut::new();
                    frontend::sasl_response(state.exchange.message(), &mut message)
                        .map_err(|e| sign_in(e.to_string()))?;
                    wire.send(&message).await?;
                }
                12 => {
                    let state =
                        scram.as_mut().ok_or_else(|| wire.wrong("an answer to a sign-in that did not begin"))?;
                    state
                        .exchange
                        .finish(&body)
                        .map_err(|_| sign_in("the server does not know the password that it asks for"))?;
                    state.proved = true;
                }
                7..=9 => {
                    return Err(sign_in(
                        "the server wants GSSAPI or SSPI, which is not known here\nhint: add a line with scram-sha-256 for this role to pg_hba.conf",
                    ));
                }
                other => {
                    return Err(sign_in(format!(
                        "the server wants a way that is not known here ({other})\nhint: add a line with scram-sha-256 for this role to pg_hba.conf"
                    )));
                }
            }
        }
    }

    fn secret(&self) -> Result<&Secret, PostgresError> {
        self.password.ok_or_else(|| sign_in("the server wants a password, and none is given"))
    }

    async fn answer(&self, wire: &mut Wire, password: &[u8]) -> Result<(), PostgresError> {
        let mut message = BytesMut::new();
        frontend::password_message(password, &mut message).map_err(|e| sign_in(e.to_string()))?;
        wire.send(&message).await
    }

    async fn begin_scram(
        &self,
        wire: &mut Wire,
        offered: &Bytes,
        protection: &Protection,
    ) -> Result<Scram, PostgresError> {
        let offered: Vec<_> = offered.split(|b| *b == 0).collect();
        let plain = offered.contains(&sasl::SCRAM_SHA_256.as_bytes());
        let plus = offered.contains(&sasl::SCRAM_SHA_256_PLUS.as_bytes());
        let binding = self.address.channel_binding;
        let (mechanism, channel, bound) = match (&protection.end_point, binding) {
            (Some(end_point), ChannelBinding::Prefer | ChannelBinding::Require) if plus => {
                (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point.clone()), true)
            }
            (_, ChannelBinding::Require) => {
                return Err(sign_in(
                    "channel_binding=require is set, and the server cannot bind the sign-in to a TLS connection",
                ));
            }
            _ if !plain => return Err(sign_in("the server offers no way of SCRAM that is known here")),
            // Says that we could have; a server that could too knows then that somebody in between hid it.
            (Some(_), ChannelBinding::Prefer) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
            _ => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
        };
        let exchange = ScramSha256::new(self.secret()?.expose().as_bytes(), channel);
        let mut message = BytesMut::new();
        frontend::sasl_initial_response(mechanism, exchange.message(), &mut message)
            .map_err(|e| sign_in(e.to_string()))?;
        wire.send(&message).await?;
        Ok(Scram { exchange, bound, proved: false })
    }

    async fn ready(&self, wire: &mut Wire) -> Result<(), PostgresError> {
        loop {
            let frame = wire.read().await?;
            match frame.tag {
                b'Z' => return Ok(()),
                b'E' => return Err(wire.refused(&frame.body)),
                // The key with which a command could be cancelled. Ours end with their connection.
                b'K' => {}
                other => return Err(wire.wrong(format!("a message `{}` after the sign-in", other.escape_ascii()))),
            }
        }
    }
}

/// What a sign-in is protected by.
struct Protection {
    encrypted: bool,
    end_point: Option<Vec<u8>>,
}

/// A SCRAM exchange that began.
struct Scram {
    exchange: ScramSha256,
    bound: bool,
    proved: bool,
}

fn sign_in(what: impl Into<String>) -> PostgresError {
    PostgresError::SignIn(what.into())
}

/// The next request to sign in.
async fn authentication(wire: &mut Wire) -> Result<Bytes, PostgresError> {
    let frame = wire.read().await?;
    match frame.tag {
        b'R' => Ok(frame.body),
        // After FATAL nothing comes any more.
        b'E' => Err(wire.refused(&frame.body)),
        // A newer server that does not know all of what we asked for says so; we asked for nothing optional.
        other => Err(wire.wrong(format!("a message `{}` before the sign-in", other.escape_ascii()))),
    }
}

/// Asks whether the server has TLS. Exactly one byte is read, so that nothing sent in clear text behind it is ever taken
/// for a part of what comes encrypted.
async fn wants_tls(tcp: &mut TcpStream) -> io::Result<bool> {
    let mut message = BytesMut::new();
    frontend::ssl_request(&mut message);
    tcp.write_all(&message).await?;
    match tcp.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not answer as PostgreSQL does")),
    }
}

fn keep_alive(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    tcp_option(tcp, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_SECS)?;
    tcp_option(tcp, libc::TCP_KEEPINTVL, KEEPALIVE_EVERY_SECS)?;
    tcp_option(tcp, libc::TCP_KEEPCNT, KEEPALIVE_COUNT)?;
    tcp_option(tcp, libc::TCP_USER_TIMEOUT, UNACKNOWLEDGED_MILLIS)
}

fn tcp_option(tcp: &TcpStream, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the socket is open for the length of the borrow, and the option's value is a c_int of this length.
    let done =
        unsafe { libc::setsockopt(tcp.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `15.18 (Debian 15.18-0+deb12u1)`, `18beta1` and `16.2` as `server_version_num`.
fn version_of(text: &str) -> Option<u32> {
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    let first = text.split_whitespace().next()?;
    let major = number(first).filter(|major| (1..1000).contains(major))?;
    let minor = first.split_once('.').and_then(|(_, minor)| number(minor)).filter(|minor| *minor < 10_000).unwrap_or(0);
    Some(major * 10_000 + minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        for (text, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("18beta1", Some(180_000)),
            ("19devel", Some(190_000)),
            ("13.0", Some(130_000)),
            ("", None),
            ("x", None),
            ("9999999999.1", None),
        ] {
            assert_eq!(version_of(text), number, "{text}");
        }
    }
}
