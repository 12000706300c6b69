//! Where a repository is: the address as configured, checked once, and the credentials that go with it.

use super::GitError;
use std::fmt;
use std::path::PathBuf;

/// Credentials and options for reaching a repository. Prints without its secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// User name and password or token, for http and https.
    Basic {
        /// The user name; forges take any word with a token.
        user: String,
        /// The password or token.
        password: String,
    },
    /// The ssh program and its options, such as `["ssh", "-i", "/etc/mainstay/key"]`.
    Ssh(Vec<String>),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::Basic { user, .. } => f.debug_struct("Basic").field("user", user).finish_non_exhaustive(),
            Auth::Ssh(command) => f.debug_tuple("Ssh").field(command).finish(),
        }
    }
}

/// A checked address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A repository on this machine.
    Local(PathBuf),
    /// `http://` or `https://`, without credentials.
    Http(String),
    /// `ssh://user@host:port/path` or `user@host:path`.
    Ssh {
        /// The login name, when given.
        user: Option<String>,
        /// The host.
        host: String,
        /// The port, when given.
        port: Option<u16>,
        /// The path as the remote side reads it.
        path: String,
    },
}

/// The longest address taken; forges stay far below.
const URL_MAX_BYTES: usize = 2_048;

impl Location {
    /// Checks an address. Nothing that begins with `-` or holds control characters gets through, because host and
    /// path become arguments of the ssh program and words of a shell on the other side.
    ///
    /// # Errors
    /// [`GitError::BadUrl`].
    pub fn parse(url: &str) -> Result<(Location, Option<Auth>), GitError> {
        let refuse = |why| Err(GitError::BadUrl { url: super::shown(without_credentials(url).as_bytes()), why });
        if url.is_empty() {
            return refuse("is empty");
        }
        if url.len() > URL_MAX_BYTES {
            return refuse("is longer than 2048 bytes");
        }
        if url.chars().any(char::is_control) {
            return refuse("holds control characters");
        }
        if url.starts_with('-') {
            return refuse("begins with `-`");
        }
        if let Some(path) = url.strip_prefix("file://") {
            return if path.starts_with('/') {
                Ok((Location::Local(path.into()), None))
            } else {
                refuse("names a host; a `file://` address has three slashes")
            };
        }
        if let Some((scheme, rest)) = url.split_once("://") {
            let (authority, path) = match rest.find('/') {
                Some(at) => rest.split_at(at),
                None => (rest, ""),
            };
            let (userinfo, hostport) = match authority.rsplit_once('@') {
                Some((user, host)) => (Some(user), host),
                None => (None, authority),
            };
            if hostport.is_empty() || hostport.starts_with('-') {
                return refuse("has no usable host");
            }
            return match scheme {
                "http" | "https" => {
                    if reqwest::Url::parse(url).is_err() {
                        return refuse("is not a valid URL");
                    }
                    let auth = userinfo.map(|info| {
                        let (user, password) = info.split_once(':').unwrap_or((info, ""));
                        Auth::Basic { user: percent_decoded(user), password: percent_decoded(password) }
                    });
                    Ok((Location::Http(format!("{scheme}://{hostport}{path}")), auth))
                }
                "ssh" | "git+ssh" => {
                    let (host, port) = split_port(hostport);
                    let port = match port.map(str::parse::<u16>) {
                        None => None,
                        Some(Ok(port)) => Some(port),
                        Some(Err(_)) => return refuse("has a port that is no number"),
                    };
                    // `ssh://host/~ana/x` means a home folder, as git reads it.
                    let path = if path.starts_with("/~") { &path[1..] } else { path };
                    ssh(userinfo, host, port, path).or_else(refuse)
                }
                _ => refuse("has a scheme other than https, http, ssh or file"),
            };
        }
        if url.starts_with('/') || url.starts_with("./") || url.starts_with("../") {
            return Ok((Location::Local(url.into()), None));
        }
        // `user@host:path`, where no slash comes before the colon.
        if let Some((authority, path)) = url.split_once(':')
            && !authority.contains('/')
        {
            if path.starts_with(':') {
                return refuse("names a remote helper program");
            }
            let (user, host) = match authority.rsplit_once('@') {
                Some((user, host)) => (Some(user), host),
                None => (None, authority),
            };
            return ssh(user, host, None, path).or_else(refuse);
        }
        refuse("is neither an absolute path nor an https, http or ssh address")
    }

    /// The path, when the repository is on this machine.
    pub fn local_path(&self) -> Option<&std::path::Path> {
        match self {
            Location::Local(path) => Some(path),
            _ => None,
        }
    }

    /// The address for libgit2, without credentials. What an ssh transport does with it is decided by the parts.
    pub(super) fn as_url(&self) -> String {
        match self {
            Location::Local(path) => path.display().to_string(),
            Location::Http(url) => url.clone(),
            Location::Ssh { host, port, path, .. } => {
                let port = port.map(|p| format!(":{p}")).unwrap_or_default();
                format!("ssh://{host}{port}/{}", path.trim_start_matches('/'))
            }
        }
    }
}

fn split_port(hostport: &str) -> (&str, Option<&str>) {
    // `[::1]:22`: the colons inside the brackets are no port.
    if let Some(rest) = hostport.strip_prefix('[')
        && let Some((host, after)) = rest.split_once(']')
    {
        return (host, after.strip_prefix(':'));
    }
    match hostport.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (hostport, None),
    }
}

fn ssh(
    user: Option<&str>,
    host: &str,
    port: Option<u16>,
    path: &str,
) -> Result<(Location, Option<Auth>), &'static str> {
    // A password in an ssh address is of no use with BatchMode.
    let user = user.map(|u| u.split(':').next().unwrap_or(u));
    let word = |w: &str| !w.is_empty() && !w.starts_with('-') && w.bytes().all(|b| b.is_ascii_graphic());
    if !word(host) || host.bytes().any(|b| matches!(b, b'\'' | b'"' | b'`' | b'$' | b'\\' | b'/' | b'@')) {
        return Err("has no usable host");
    }
    if user.is_some_and(|u| !word(u) || u.contains(['\'', '"', '`', '$', '\\', '/', '@'])) {
        return Err("has no usable user name");
    }
    if path.is_empty() || path == "/" {
        return Err("has no path");
    }
    if path.starts_with('-') {
        return Err("has a path that begins with `-`");
    }
    let location = Location::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port, path: path.to_owned() };
    Ok((location, None))
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let decoded = (first == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        match decoded {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The address without user name and password where those are secrets (http); fit for logs and `.git/config`.
pub fn without_credentials(url: &str) -> String {
    for scheme in ["http://", "https://"] {
        if let Some(rest) = url.strip_prefix(scheme) {
            let end = rest.find('/').unwrap_or(rest.len());
            if let Some(at) = rest[..end].rfind('@') {
                return format!("{scheme}{}", &rest[at + 1..]);
            }
        }
    }
    url.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let parse = |url: &str| Location::parse(url).map(|(location, _)| location);
        assert_eq!(parse("/srv/git/shop.git").unwrap(), Location::Local("/srv/git/shop.git".into()));
        assert_eq!(parse("file:///srv/git/shop.git").unwrap(), Location::Local("/srv/git/shop.git".into()));
        assert_eq!(parse("https://x/y.git").unwrap(), Location::Http("https://x/y.git".into()));
        let ssh = |user: Option<&str>, host: &str, port, path: &str| Location::Ssh {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        };
        assert_eq!(
            parse("git@forge.example.com:team/shop.git").unwrap(),
            ssh(Some("git"), "forge.example.com", None, "team/shop.git")
        );
        assert_eq!(
            parse("ssh://git@h:2222/team/shop.git").unwrap(),
            ssh(Some("git"), "h", Some(2222), "/team/shop.git")
        );
        assert_eq!(parse("ssh://[::1]:22/x").unwrap(), ssh(None, "::1", Some(22), "/x"));
        assert_eq!(parse("ssh://h/~ana/x").unwrap(), ssh(None, "h", None, "~ana/x"));
    }

    #[test]
    fn addresses_that_would_become_options_or_shell_words_are_refused() {
        for bad in [
            "",
            "-oProxyCommand=touch /tmp/x",
            "ssh://-oProxyCommand=x/y",
            "-oProxyCommand=x:y",
            "ssh://a@-oProxyCommand=x/y",
            "ssh://-l@host/y",
            "ssh://host/",
            "host:-x",
            "git@ho st:x",
            "ssh://h$(id)/x",
            "ssh://h:99999/x",
            "git@host:a\nb",
            "ext::sh -c id",
            "git://host/x",
            "file://host/x",
            "fd::17",
            "shop.git",
            "https:///x",
        ] {
            let Err(error) = Location::parse(bad) else { panic!("{bad:?} was accepted") };
            assert!(matches!(error, GitError::BadUrl { .. }), "{bad:?}: {error}");
        }
    }

    #[test]
    fn credentials_leave_the_address_and_are_not_printed() {
        let (location, auth) = Location::parse("https://ana:p%40ss@forge.example.com/x.git").unwrap();
        assert_eq!(location, Location::Http("https://forge.example.com/x.git".into()));
        let auth = auth.unwrap();
        assert_eq!(auth, Auth::Basic { user: "ana".into(), password: "p@ss".into() });
        assert!(!format!("{auth:?}").contains("p@ss"));
        assert_eq!(without_credentials("https://ana:x@h/y@z"), "https://h/y@z");
        assert_eq!(without_credentials("git@h:y"), "git@h:y");
        let error = Location::parse("https://ana:geheim@ho st/x\u{7}").unwrap_err().to_string();
        assert!(!error.contains("geheim") && !error.contains('\u{7}'), "{error}");
    }
}
