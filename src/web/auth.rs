//! Who may ask what: one guard in front of every route, and it says no unless a rule says yes.
//!
//! Over the Unix socket: the daemon's own user and root, by what the kernel says about the peer; they may do everything.
//! Over TCP: a personal token or the shared one, except for the routes that the table marks as open; and never those that it
//! marks as local, or else whoever has the shared token could make themselves a person's. Every request that is let in,
//! but for those to open routes, carries an [`Asker`] that says who it is from. A web page in a browser on this machine
//! must not reach us through a name that it points at 127.0.0.1, so requests over TCP must name one of our own hosts.

use super::routes::{ROUTES, Route};
use super::{App, Problem};
use crate::model::{Asker, Way};
use crate::small_file;
use crate::store::TOKEN_PREFIX;
use anyhow::Context as _;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::{StatusCode, header, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// How a connection came in; put into every request by `listen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Over the Unix socket, with the user the kernel names.
    Local {
        /// The user id.
        uid: u32,
    },
    /// Over TCP.
    Network,
}

/// The secret that TCP clients show: 256 random bits. Only its digest is kept, and it never prints.
#[derive(Clone)]
pub struct Token {
    digest: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// 256 bits in hex.
const TOKEN_DIGITS: usize = 64;

impl Token {
    /// From its text.
    pub fn new(text: &str) -> Self {
        Token { digest: Sha256::digest(text.as_bytes()).into() }
    }

    /// Reads the token from its file, or makes a new one when there is no file. The file is whole or absent, also
    /// after a crash, and readable by its owner only.
    ///
    /// # Errors
    /// When the file cannot be read or made, others may read it, or it holds no token.
    pub fn load_or_create(file: &Path) -> anyhow::Result<Self> {
        if !file.try_exists().with_context(|| format!("look for the token file {}", file.display()))? {
            create(file)?;
        }
        let about = std::fs::metadata(file).with_context(|| format!("look at the token file {}", file.display()))?;
        if about.mode() & 0o077 != 0 {
            anyhow::bail!(
                "use the token file {}: others may read it\nhint: `chmod 600 {0}`, and delete it to get a new one if it was read",
                file.display()
            );
        }
        let text = small_file::read_text(file, small_file::KEY_MAX_BYTES)
            .with_context(|| format!("read the token file {}", file.display()))?;
        let text = text.trim();
        if text.len() != TOKEN_DIGITS || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            anyhow::bail!(
                "use the token file {}: it does not hold {TOKEN_DIGITS} hex digits\nhint: delete it, the daemon makes a new one when it starts",
                file.display()
            );
        }
        Ok(Self::new(text))
    }

    /// Compares in a time that does not depend on where the texts differ: both sides are digests of one length.
    pub fn matches(&self, shown: &str) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        self.digest.ct_eq(&shown).into()
    }
}

fn create(file: &Path) -> anyhow::Result<()> {
    let mut random = [0_u8; TOKEN_DIGITS / 2];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("get random bytes: {error}"))?;
    let scratch = file.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&scratch)?;
        writeln!(out, "{}", hex::encode(random))?;
        out.sync_all()?;
        match std::fs::hard_link(&scratch, file) {
            // Somebody else was faster: theirs counts.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let written = write();
    // A scratch file left by a crash holds a token that was never in force.
    let _ = std::fs::remove_file(&scratch);
    written.with_context(|| format!("make the token file {}", file.display()))
}

/// Host names under which TCP clients may speak to us: this machine's, the listener's own address, the public URL's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// `listen` is the address of the TCP listener, if there is one; `public_url` the configured one.
    pub fn new(listen: Option<std::net::SocketAddr>, public_url: Option<&str>) -> Self {
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).into();
        // An unspecified address (0.0.0.0) is no name anybody uses.
        names.extend(listen.filter(|a| !a.ip().is_unspecified()).map(|a| match a.ip() {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        }));
        names.extend(
            public_url.and_then(|url| url.parse::<axum::http::Uri>().ok()?.host().map(str::to_ascii_lowercase)),
        );
        Hosts(names)
    }

    /// Whether a form may have been sent from a page of ours. Browsers that are told to send no referrer, as our pages tell
    /// them, say `null`; other programs say nothing.
    pub(super) fn allow_origin(&self, origin: Option<&str>) -> bool {
        match origin {
            None | Some("null") => true,
            Some(origin) => {
                origin.parse::<axum::http::Uri>().is_ok_and(|uri| uri.host().is_some_and(|h| self.allow(h)))
            }
        }
    }

    /// `host` as in the header, with or without a port.
    fn allow(&self, host: &str) -> bool {
        let name = match host.rfind(':') {
            // The colon of a port comes after the bracket of an IPv6 address.
            Some(colon) if !host[colon..].contains(']') => &host[..colon],
            _ => host,
        };
        self.0.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Who asks, for handlers of routes that are not open to everybody.
pub(super) struct By(pub(super) Asker);

impl FromRequestParts<Arc<App>> for By {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        let asker = parts.extensions.get::<Asker>().cloned().map(By);
        // A mistake of ours in the table: what is recorded must not be left to an open route.
        asker.ok_or_else(|| Problem::forbidden("say who asks: the route is open to everybody"))
    }
}

/// The guard. Runs for every request, also for paths that do not exist.
pub(super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match allowed(&app, &Shown::of(&request)).await {
        Ok(asker) => {
            if let Some(asker) = asker {
                request.extensions_mut().insert(asker);
            }
            next.run(request).await
        }
        Err(problem) => {
            let mut answer = problem.into_response();
            if answer.status() == StatusCode::UNAUTHORIZED {
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            }
            answer
        }
    }
}

/// What the guard looks at of a request.
struct Shown {
    peer: Option<Peer>,
    /// Every host that it names.
    hosts: Vec<String>,
    route: Option<&'static Route>,
    bearer: Option<String>,
}

impl Shown {
    fn of(request: &Request) -> Shown {
        let header = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let bearer = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim().to_owned());
        Shown {
            peer: request.extensions().get::<Peer>().copied(),
            // A request line with a whole URL names a host of its own, which then counts too.
            hosts: header.into_iter().chain(request.uri().host()).map(str::to_owned).collect(),
            route: path.and_then(|path| find(request.method().as_str(), path)),
            bearer,
        }
    }
}

/// Who asks; nobody, when the route is open to everybody.
async fn allowed(app: &App, shown: &Shown) -> Result<Option<Asker>, Problem> {
    match shown.peer {
        Some(Peer::Local { uid }) => person_where_needed(shown.route, local(app, uid).await?).map(Some),
        Some(Peer::Network) => network(app, shown).await,
        // A listener that does not say who is there: a mistake of ours, and not one to be generous about.
        None => Err(Problem::forbidden("say who asks: the connection is of no known kind")),
    }
}

async fn local(app: &App, uid: u32) -> Result<Asker, Problem> {
    let own = nix::unistd::geteuid().as_raw();
    if uid != own && uid != 0 {
        let problem =
            Problem::forbidden(format!("use the socket as user {uid}: it takes only the daemon's own user and root"));
        return Err(problem.hint("over TCP a token gives access"));
    }
    // The names of users may come from a server elsewhere.
    let named = tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(uid.into()).ok().flatten()).await;
    let Some(user) = named.ok().flatten() else { return Ok(Asker::user(format!("uid {uid}"))) };
    Ok(match app.people.of_unix(&user.name) {
        Some(person) => Asker::person(person, Way::Socket),
        None => Asker::user(user.name),
    })
}

async fn network(app: &App, shown: &Shown) -> Result<Option<Asker>, Problem> {
    if shown.hosts.is_empty() || !shown.hosts.iter().all(|host| app.hosts.allow(host)) {
        let hint = "use localhost or the host of `server.public-url` in mainstay.yml";
        return Err(
            Problem::new(StatusCode::MISDIRECTED_REQUEST, "serve that host name: it is not one of ours").hint(hint)
        );
    }
    if shown.route.is_some_and(|route| route.open) {
        return Ok(None);
    }
    let asker = match &shown.bearer {
        Some(token) if token.starts_with(TOKEN_PREFIX) => Asker::person(app.people.of_token(token).await?, Way::Token),
        Some(token) if app.token.matches(token) => Asker::shared_token(),
        _ => return Err(unknown_token()),
    };
    if shown.route.is_some_and(|route| route.local) {
        return Err(Problem::forbidden(
            "do that over TCP: personal tokens are made and revoked over the Unix socket only",
        )
        .hint("run `mainstay token` on the daemon's machine, as its user or root, without MAINSTAY_URL"));
    }
    person_where_needed(shown.route, asker).map(Some)
}

/// Some things only a person may do: whoever has the shared token, or another user's account, is not known to be one.
fn person_where_needed(route: Option<&Route>, asker: Asker) -> Result<Asker, Problem> {
    if asker.as_person().is_some() || route.is_none_or(|route| !route.person) {
        return Ok(asker);
    }
    let problem = Problem::forbidden(format!("do that as {}: only people of mainstay.yml may", asker.who()));
    Err(match asker.way() {
        Way::Socket => problem.hint("add the name of that user under `unix` of a person in `people.users`"),
        _ => problem.hint(
            "use a personal token: `mainstay token create PERSON` makes one, and MAINSTAY_TOKEN_FILE names its file",
        ),
    })
}

/// 401 for a token that is nobody's.
pub(crate) fn unknown_token() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "prove who asks: the token is absent or wrong").hint(
        "send `Authorization: Bearer …` with a personal token, or with the content of the file `token` in the daemon's state folder",
    )
}

fn find(method: &str, path: &str) -> Option<&'static Route> {
    // HEAD is answered wherever GET is.
    let method = if method == "HEAD" { "GET" } else { method };
    ROUTES.iter().find(|route| route.method == method && route.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        let hosts = Hosts::new(Some("10.0.0.7:8420".parse().unwrap()), Some("https://CI.example.com/mainstay"));
        for good in
            ["localhost", "localhost:8420", "127.0.0.1:1", "[::1]", "[::1]:8420", "10.0.0.7", "ci.Example.com:443"]
        {
            assert!(hosts.allow(good), "{good}");
        }
        for bad in
            ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::2]", "10.0.0.8", ":80"]
        {
            assert!(!hosts.allow(bad), "{bad}");
        }
    }

    #[test]
    fn a_token_is_made_once_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        Token::load_or_create(&file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(text.trim().len(), 64);
        let again = Token::load_or_create(&file).unwrap();
        assert!(again.matches(text.trim()) && !again.matches("") && !again.matches(&text.trim()[1..]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a scratch file was left");
        assert!(!format!("{again:?}").contains(text.trim()));
    }

    #[test]
    fn a_token_that_others_may_read_or_that_is_short_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        Token::load_or_create(&file).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Token::load_or_create(&file).unwrap_err().to_string().contains("others may read it"));
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Token::load_or_create(&file).unwrap_err().to_string().contains("hex digits"));
    }
}
