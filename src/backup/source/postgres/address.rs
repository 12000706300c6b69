//! Where a server is and how to reach it: `postgres://user:password@host:port,host2/database?sslmode=verify-full`.
//!
//! The form is that of libpq (the manual's section "Connection URIs"), with the parameters that mean something here. Others
//! are refused by name: a setting that is silently dropped is a surprise on the worst day.

use crate::config::secret::Secret;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Servers, and how to sign in to them.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Tried in this order.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// Its password, when it stands in the address. It never prints.
    pub password: Option<Secret>,
    /// The database for what needs SQL; `postgres` unless it is named.
    pub database: Option<String>,
    /// How the connection is secured. Says nothing about Unix sockets, which never carry TLS.
    pub tls: Tls,
    /// Whose certificates are trusted.
    pub roots: Roots,
    /// Whether the sign-in must be bound to the TLS connection.
    pub channel_binding: ChannelBinding,
    /// How long each host may take, from the first packet to signed in.
    pub connect_timeout: Duration,
    /// Which of several servers will do.
    pub target: Target,
    /// What the server shows in `pg_stat_replication.application_name`, and matches `synchronous_standby_names` with.
    pub application_name: String,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// By name or address.
    Tcp(String, u16),
    /// By the folder of its Unix socket, and the port that is part of the socket's name.
    Unix(PathBuf, u16),
}

/// What a connection is secured with, as libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Never.
    Disable,
    /// Only when the server refuses without it.
    Allow,
    /// When the server can.
    Prefer,
    /// Always, with anybody; with `sslrootcert`, like verify-ca.
    Require,
    /// Always, with a server whose certificate one of ours signed.
    VerifyCa,
    /// Always, and the certificate names the host that was asked for.
    VerifyFull,
}

/// Whose certificates are trusted: `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those that the system trusts.
    System,
    /// Those in a PEM file.
    File(PathBuf),
}

/// Whether SCRAM is bound to the TLS connection, so that nobody sits in between: `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server can.
    Prefer,
    /// Or not at all.
    Require,
}

/// Which server will do: `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Any.
    Any,
    /// One that accepts writes.
    Primary,
    /// One that replays another's log.
    Standby,
    /// A standby when there is one among them, else any.
    PreferStandby,
}

/// Why a text is no address. Never holds the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the address of the server: {what}\nhint: {hint}")]
pub struct AddressError {
    what: String,
    hint: String,
}

/// A server that does not answer within this time is down; libpq's default is to wait for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What `connect_timeout` may be at most: an hour is for ever here.
const CONNECT_TIMEOUT_MAX_SECS: u64 = 3600;
/// Hosts in one address; a name that stands for many more is a mistake.
const MAX_HOSTS: usize = 16;
/// What servers cut longer names to (`NAMEDATALEN`).
const NAME_BYTES: usize = 63;

const EXAMPLE: &str =
    "such as postgres://backup@db.example.org:5432/?sslmode=verify-full&sslrootcert=/etc/ssl/db-ca.pem";
const PARAMETERS: [&str; 11] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "password",
    "port",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
];

fn bad(what: impl Into<String>, hint: impl Into<String>) -> AddressError {
    AddressError { what: what.into(), hint: hint.into() }
}

/// What stands for one of a few words.
fn one_of<T: Copy>(parameter: &str, text: &str, words: &[(&str, T)]) -> Result<T, AddressError> {
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        bad(format!("`{parameter}={}` is not known", text.escape_debug()), format!("{parameter} is one of {known}"))
    })
}

/// `%41` becomes `A`. `what` is named in the error, the text is not: it may be the password.
fn decode(what: &str, text: &str) -> Result<String, AddressError> {
    let wrong = || {
        bad(
            format!("the {what} has a `%` that no two hexadecimal digits follow, or is not UTF-8"),
            "write special characters as %XX: % is %25, @ is %40, : is %3A, / is %2F, # is %23",
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit(), digit());
        let (high, low) = high.zip(low).ok_or_else(wrong)?;
        bytes.push((high * 16 + low) as u8);
    }
    if bytes.contains(&0) {
        return Err(bad(format!("the {what} holds a NUL byte"), "no name or password of a server can hold one"));
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn port(text: &str) -> Result<u16, AddressError> {
    // The digits may be half a password whose `@` or `:` was not escaped: they are not repeated.
    let port = text.parse().ok().filter(|port| *port > 0 && text.bytes().all(|b| b.is_ascii_digit()));
    port.ok_or_else(|| {
        bad(
            "a port is not a number from 1 to 65535",
            format!("special characters in a password are written as %XX; an address is {EXAMPLE}"),
        )
    })
}

/// `host`, `host:port`, `[::1]:port`, or nothing; the host decoded.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), AddressError> {
    let (host, rest) = if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) =
            inner.split_once(']').ok_or_else(|| bad("an IPv6 address has no `]`", "write it as [::1]:5432"))?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(bad("what stands in [ ] is no IPv6 address", "write it as [::1]:5432"));
        }
        (address.to_owned(), rest)
    } else {
        let at = text.find(':').unwrap_or(text.len());
        (decode("host", &text[..at])?, &text[at..])
    };
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Ok((host, None)),
        Some("") => Ok((host, None)),
        Some(digits) if digits.contains(':') => Err(bad(
            "a host has more than one `:`",
            "write an IPv6 address in brackets, [::1]:5432; a `:` in a password is %3A",
        )),
        Some(digits) => Ok((host, Some(port(digits)?))),
        None => Err(bad("something follows the `]` of an IPv6 address", "write it as [::1]:5432")),
    }
}

fn host(name: String, port: Option<u16>) -> Result<Host, AddressError> {
    let port = port.unwrap_or(5432);
    if name.starts_with('/') {
        return Ok(Host::Unix(name.into(), port));
    }
    // As libpq does without a host: the folder that Debian's and most other builds put their socket into.
    if name.is_empty() {
        return Ok(Host::Unix("/var/run/postgresql".into(), port));
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/' || c == '@') {
        return Err(bad(
            "a host holds characters that no host has",
            format!("special characters in a password are written as %XX: @ is %40; an address is {EXAMPLE}"),
        ));
    }
    Ok(Host::Tcp(name, port))
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// When it is none, names no role, or has a parameter that is not known here. The error never holds the password.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest =
            rest.ok_or_else(|| bad("it does not begin with `postgres://`", format!("an address is {EXAMPLE}")))?;
        if rest.contains('#') {
            return Err(bad("it has a `#`", "in a name or password write it as %23"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // The last one: an `@` that was not escaped in a password then fails as a host without being repeated.
        let (sign_in, places) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match sign_in.split_once(':') {
            Some((user, password)) => (decode("user", user)?, Some(decode("password", password)?)),
            None => (decode("user", sign_in)?, None),
        };
        let mut raw = Raw { user, password, ..Raw::default() };
        for place in places.split(',').filter(|_| !places.is_empty()) {
            raw.hosts.push(host_and_port(place)?);
        }
        if !path.is_empty() {
            raw.database = Some(decode("database", path)?);
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| bad("a parameter after `?` has no `=`", format!("an address is {EXAMPLE}")))?;
            raw.parameter(&decode("name of a parameter", key)?, value)?;
        }
        raw.build()
    }

    /// The database that SQL goes to.
    pub fn database(&self) -> &str {
        self.database.as_deref().unwrap_or("postgres")
    }
}

/// An address as it is written.
#[derive(Default)]
struct Raw {
    hosts: Vec<(String, Option<u16>)>,
    ports: Option<String>,
    user: String,
    password: Option<String>,
    database: Option<String>,
    tls: Option<Tls>,
    roots: Option<Roots>,
    channel_binding: Option<ChannelBinding>,
    connect_timeout: Option<Duration>,
    target: Option<Target>,
    application_name: Option<String>,
}

impl Raw {
    fn parameter(&mut self, key: &str, value: &str) -> Result<(), AddressError> {
        let value = decode(key, value)?;
        match key {
            "user" => self.user = value,
            "password" => self.password = Some(value),
            "dbname" => self.database = Some(value),
            "host" => {
                self.hosts = value.split(',').map(|name| (name.to_owned(), None)).collect();
            }
            "port" => self.ports = Some(value),
            "sslmode" => {
                self.tls = Some(one_of(
                    key,
                    &value,
                    &[
                        ("disable", Tls::Disable),
                        ("allow", Tls::Allow),
                        ("prefer", Tls::Prefer),
                        ("require", Tls::Require),
                        ("verify-ca", Tls::VerifyCa),
                        ("verify-full", Tls::VerifyFull),
                    ],
                )?);
            }
            "sslrootcert" if value == "system" => self.roots = Some(Roots::System),
            "sslrootcert" if value.is_empty() => {
                return Err(bad("`sslrootcert` is empty", "it is the path of a PEM file, or `system`"));
            }
            "sslrootcert" => self.roots = Some(Roots::File(value.into())),
            "channel_binding" => {
                let words = [
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ];
                self.channel_binding = Some(one_of(key, &value, &words)?);
            }
            "connect_timeout" => {
                let seconds = value.parse().ok().filter(|s| (1..=CONNECT_TIMEOUT_MAX_SECS).contains(s));
                let wrong =
                    || bad("`connect_timeout` is not a number of seconds from 1 to 3600", "such as connect_timeout=10");
                self.connect_timeout = Some(Duration::from_secs(seconds.ok_or_else(wrong)?));
            }
            "target_session_attrs" => {
                let words = [
                    ("any", Target::Any),
                    ("read-write", Target::Primary),
                    ("primary", Target::Primary),
                    ("read-only", Target::Standby),
                    ("standby", Target::Standby),
                    ("prefer-standby", Target::PreferStandby),
                ];
                self.target = Some(one_of(key, &value, &words)?);
            }
            "application_name" => self.application_name = Some(value),
            other => {
                let near = PARAMETERS.iter().map(|known| (strsim::damerau_levenshtein(known, other), *known)).min();
                let hint = match near {
                    Some((distance, known)) if distance <= 3 => format!("did you mean `{known}`?"),
                    _ => format!("known are {}", PARAMETERS.join(", ")),
                };
                return Err(bad(
                    format!("it has the parameter `{}`, which means nothing here", other.escape_debug()),
                    hint,
                ));
            }
        }
        Ok(())
    }

    fn build(mut self) -> Result<Address, AddressError> {
        if let Some(ports) = self.ports {
            let ports: Vec<_> = ports.split(',').map(port).collect::<Result<_, _>>()?;
            if self.hosts.is_empty() {
                self.hosts.push((String::new(), None));
            }
            if ports.len() != 1 && ports.len() != self.hosts.len() {
                return Err(bad("there are more or fewer ports than hosts", "give one port, or one for each host"));
            }
            for (at, host) in self.hosts.iter_mut().enumerate() {
                host.1 = Some(ports[at.min(ports.len() - 1)]);
            }
        }
        if self.hosts.is_empty() {
            self.hosts.push((String::new(), None));
        }
        if self.hosts.len() > MAX_HOSTS {
            return Err(bad(format!("it names more than {MAX_HOSTS} hosts"), "name the servers of one cluster"));
        }
        if self.user.is_empty() {
            return Err(bad("it names no role", format!("an address is {EXAMPLE}")));
        }
        let application_name = self.application_name.unwrap_or_else(|| "mainstay".to_owned());
        for (what, text) in [
            ("role", Some(&self.user)),
            ("database", self.database.as_ref()),
            ("application_name", Some(&application_name)),
        ] {
            if text.is_some_and(|text| text.len() > NAME_BYTES) {
                return Err(bad(format!("its {what} is longer than {NAME_BYTES} bytes"), "no server knows such names"));
            }
        }
        let tls = self.tls.unwrap_or(match self.roots {
            // As libpq: who names the system's certificates means them.
            Some(Roots::System) => Tls::VerifyFull,
            _ => Tls::Prefer,
        });
        let roots = match (tls, self.roots) {
            (Tls::VerifyFull, roots) => roots.unwrap_or(Roots::System),
            (_, Some(Roots::System)) | (Tls::VerifyCa, None) => {
                return Err(bad(
                    "anybody can have a certificate that the system trusts, so without a check of the name it proves nothing",
                    "use sslmode=verify-full, or give your own CA with sslrootcert=FILE",
                ));
            }
            (_, roots) => roots.unwrap_or(Roots::System),
        };
        Ok(Address {
            hosts: self.hosts.into_iter().map(|(name, port)| host(name, port)).collect::<Result<_, _>>()?,
            user: self.user,
            password: self.password.map(Secret::new),
            database: self.database,
            tls,
            roots,
            channel_binding: self.channel_binding.unwrap_or(ChannelBinding::Prefer),
            connect_timeout: self.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            target: self.target.unwrap_or(Target::Any),
            application_name,
        })
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Address::parse(text)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp(name, port) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Host::Tcp(name, port) => write!(f, "{name}:{port}"),
            Host::Unix(folder, port) => write!(f, "{}/.s.PGSQL.{port}", folder.display()),
        }
    }
}

/// Without the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}@", self.user)?;
        for (at, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if at > 0 { "," } else { "" })?;
        }
        if let Some(database) = &self.database {
            write!(f, "/{database}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self}, {:?}, {:?})", self.tls, self.roots)
    }
}

#[cfg(test)]
mod tests;
