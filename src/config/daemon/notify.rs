//! `notify`: how people are told.

use super::people::is_address;
use super::{INBOUND_KEYS, NOTIFY_KEYS, NOTIFY_WEBHOOK_KEYS, People, Reader, SMTP_KEYS};
use crate::config::check::shown_text;
use crate::config::secret::Secret;
use crate::config::yaml::{Node, Value};
use crate::model::PersonName;
use crate::model::ids::RepoName;
use axum::http::uri::Authority;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How people are told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Notify {
    /// The mail server, if there is one.
    pub smtp: Option<Smtp>,
    /// Systems that are told, by name.
    pub webhooks: BTreeMap<String, Webhook>,
    /// Who is mailed when a source of backups is in trouble; everybody with an address when it is not said.
    pub alerts: Option<BTreeSet<PersonName>>,
}

/// A mail server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smtp {
    /// `smtps://HOST[:PORT]` (TLS from the start, 465), `smtp://HOST[:PORT]` (STARTTLS required, 587).
    pub host: String,
    /// The port.
    pub port: u16,
    /// How the connection is kept from others.
    pub security: SmtpSecurity,
    /// Who sends, as in a mail's `From`: `Mainstay <ci@example.com>`.
    pub from: String,
    /// The user, when the server wants one.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// A PEM file with the authority that signed the server's certificate, when it is one of your own.
    pub authority: Option<std::path::PathBuf>,
}

/// How a connection to a mail server is kept from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpSecurity {
    /// TLS from the first byte (`smtps://`).
    Tls,
    /// STARTTLS, and nothing is sent without it (`smtp://`).
    StartTls,
    /// None at all: only for a server on this machine (`smtp+plain://127.0.0.1:25`).
    Plain,
}

/// A system that is told, and may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where messages are posted.
    pub url: Secret,
    /// Their form.
    pub format: WebhookFormat,
    /// Signs what is sent.
    pub secret: Option<Secret>,
    /// What it may send back, if anything.
    pub inbound: Option<Inbound>,
}

/// The form of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookFormat {
    /// A JSON document of our own.
    Generic,
    /// Slack's blocks.
    Slack,
    /// A Teams adaptive card.
    Teams,
}

/// Signed decisions from another system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// Signs what comes in.
    pub secret: Secret,
    /// The people it may speak for.
    pub people: Vec<PersonName>,
}

/// Whoever finds this one out says yes in other people's names, and may try it on every message they see.
const INBOUND_SECRET_LEAST: usize = 16;
/// Each is told about everything.
const WEBHOOKS_MAX: usize = 50;

impl Reader<'_, '_> {
    pub(super) fn notify(&mut self, node: &Node, people: &People) -> Notify {
        let mut notify = Notify::default();
        let Some(fields) = self.check.fields(node, "`notify`", NOTIFY_KEYS, &[]) else { return notify };
        notify.smtp = fields.get("smtp").and_then(|node| self.smtp(node));
        notify.alerts = fields.get("alerts").map(|node| self.alerts(node, people));
        let Some(node) = fields.get("webhooks") else { return notify };
        let entries = self.check.entries(node, "`webhooks`").unwrap_or_default();
        if entries.len() > WEBHOOKS_MAX {
            self.check.error(node.place, format!("there are {} webhooks; at most {WEBHOOKS_MAX}", entries.len()));
            return notify;
        }
        for (key, node) in entries {
            // It stands in the path that the system posts its answers to.
            if RepoName::new(key.name.as_str()).is_err() {
                let message =
                    "a webhook's name has 1 to 63 letters, digits, `-`, `_` and `.`, and begins with a letter or digit";
                self.check.error(key.place, message);
            } else if key.name == "mail" {
                self.check.error(key.place, "`mail` is the name of the mail itself, and cannot be a webhook's too");
            }
            if let Some(webhook) = self.notify_webhook(node, people) {
                notify.webhooks.insert(key.name.clone(), webhook);
            }
        }
        notify
    }

    /// People and groups. Nobody at all is written as an empty list.
    fn alerts(&mut self, node: &Node, people: &People) -> BTreeSet<PersonName> {
        let users = people.users.keys().map(|name| name.as_str());
        let known: Vec<&str> = users.chain(people.groups.keys().map(|name| name.as_str())).collect();
        let mut names = Vec::new();
        for item in self.check.items(node, "`alerts`") {
            let name = self.known(item, "person or group", &known, "`people` names the people and groups");
            names.extend(name.map(str::to_owned));
        }
        people.members(&names)
    }

    fn smtp(&mut self, node: &Node) -> Option<Smtp> {
        let fields = self.check.fields(node, "`smtp`", SMTP_KEYS, &[])?;
        self.needs(&fields, node, "`smtp`", &["url", "from"]);
        let server = fields.get("url").and_then(|node| {
            let text = self.check.text(node, "`url`")?;
            match server(text) {
                Ok(server) => Some(server),
                Err((why, hint)) => {
                    // Nothing of the address is repeated: there may be a password in it.
                    self.check.error_with_hint(node.place, format!("`url` {why}"), hint);
                    None
                }
            }
        });
        let from = fields.get("from").and_then(|node| {
            let text = self.check.text(node, "`from`")?;
            if !is_sender(text) {
                let message = format!("`{}` is no sender of mail", shown_text(node, text));
                self.check.error_with_hint(node.place, message, "`ci@example.com`, or `Mainstay <ci@example.com>`");
            }
            Some(text.to_owned())
        });
        let password = fields.get("password").and_then(|node| self.secret(node, "`password`"));
        let authority = fields.get("authority").and_then(|node| self.file(node, "`authority`"));
        let Server { security, host, port, user: in_url } = server?;
        let user = match fields.entry("user") {
            Some((key, _)) if in_url.is_some() => {
                self.check.error(key.place, "the user stands in `url` already");
                in_url
            }
            Some((_, node)) => Some(self.check.line(node, "`user`")?.to_owned()),
            None => in_url,
        };
        match (fields.get("password"), &user) {
            (Some(node), None) => {
                self.check.error_with_hint(
                    node.place,
                    "there is a `password`, and nobody whose it is",
                    "write `user`, or the user into the address: `smtps://USER@HOST`",
                );
            }
            (None, Some(_)) => {
                self.check.error_with_hint(
                    node.place,
                    "there is a user, and no `password`",
                    "`password: \"${secret:SMTP}\"`, kept with `mainstay secrets set SMTP`",
                );
            }
            _ => {}
        }
        Some(Smtp { host, port, security, from: from?, user, password, authority })
    }

    fn notify_webhook(&mut self, node: &Node, people: &People) -> Option<Webhook> {
        let fields = self.check.fields(node, "a webhook", NOTIFY_WEBHOOK_KEYS, &[])?;
        self.needs(&fields, node, "a webhook", &["url"]);
        let url = fields.get("url").and_then(|node| {
            let address = self.web_address(node, "`url`")?;
            // Many systems take whoever knows the address for who it was given to.
            let url = Secret::new(address);
            self.secrets.push(url.clone());
            Some(url)
        });
        let formats =
            [("generic", WebhookFormat::Generic), ("slack", WebhookFormat::Slack), ("teams", WebhookFormat::Teams)];
        let format = fields.get("format").and_then(|node| self.check.word(node, "`format`", &formats));
        let secret = fields.get("secret").and_then(|node| self.secret(node, "`secret`"));
        let inbound = fields.get("inbound").and_then(|node| self.inbound(node, people));
        Some(Webhook { url: url?, format: format.unwrap_or(WebhookFormat::Generic), secret, inbound })
    }

    fn inbound(&mut self, node: &Node, people: &People) -> Option<Inbound> {
        let fields = self.check.fields(node, "`inbound`", INBOUND_KEYS, &[])?;
        self.needs(&fields, node, "`inbound`", INBOUND_KEYS);
        let secret = fields.get("secret").and_then(|node| {
            let secret = self.secret(node, "`secret`")?;
            if secret.expose().len() < INBOUND_SECRET_LEAST {
                self.check.error_with_hint(
                    node.place,
                    format!("the `secret` of `inbound` has at least {INBOUND_SECRET_LEAST} bytes: who guesses it approves in other people's names"),
                    "`openssl rand -hex 32` makes one",
                );
            }
            Some(secret)
        });
        let mut names = Vec::new();
        if let Some(node) = fields.get("people") {
            let users = people.users.keys().map(|name| name.as_str());
            let known: Vec<&str> = users.chain(people.groups.keys().map(|name| name.as_str())).collect();
            for item in self.check.items(node, "`people`") {
                let name = self.known(item, "person or group", &known, "`people` names the people and groups");
                names.extend(name.map(str::to_owned));
            }
            if matches!(&node.value, Value::List(items) if items.is_empty()) {
                self.check.error(node.place, "`people` is empty: it could speak for nobody");
            }
        }
        Some(Inbound { secret: secret?, people: people.members(&names).into_iter().collect() })
    }
}

struct Server {
    security: SmtpSecurity,
    host: String,
    port: u16,
    user: Option<String>,
}

/// Reads `smtps://USER@HOST:PORT`.
fn server(text: &str) -> Result<Server, (&'static str, &'static str)> {
    let forms = "`smtps://HOST` (TLS), `smtp://HOST` (STARTTLS), `smtp+plain://127.0.0.1` (a server of this machine)";
    let (scheme, rest) = text.split_once("://").ok_or(("is not an address of a mail server", forms))?;
    let (security, usual) = match scheme {
        "smtps" => (SmtpSecurity::Tls, 465),
        "smtp" => (SmtpSecurity::StartTls, 587),
        "smtp+plain" => (SmtpSecurity::Plain, 25),
        _ => return Err(("has a scheme that is not known", forms)),
    };
    // A user is often an address itself, with an `@` of its own.
    let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
    let user = match user {
        Some(user) if user.contains(':') => return Err(("holds a password", "put it under `password`")),
        Some(user) => Some(
            decoded(user)
                .filter(|u| !u.is_empty() && !u.chars().any(|c| c.is_control() || c.is_whitespace()))
                .ok_or(("has no usable user before its `@`", forms))?,
        ),
        None => None,
    };
    let place: Authority = place.trim_end_matches('/').parse().map_err(|_| ("has no usable host", forms))?;
    let host = place.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = match place.as_str().strip_prefix(place.host()) {
        Some("") => Some(usual),
        _ => place.port_u16().filter(|port| *port > 0),
    };
    let port = port.ok_or(("has no usable port", forms))?;
    if host.is_empty() {
        return Err(("has no usable host", forms));
    }
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if security == SmtpSecurity::Plain && !here {
        return Err((
            "would send mail in clear text to another machine",
            "`smtp+plain` is for a server of this machine; `smtp://HOST` uses STARTTLS, `smtps://HOST` TLS",
        ));
    }
    Ok(Server { security, host, port, user })
}

/// `%40` for `@`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

/// `ci@example.com`, or `Mainstay <ci@example.com>`. Signs that mail gives a meaning are not taken in the name: who
/// reads the header must see what is written here.
fn is_sender(text: &str) -> bool {
    let Some((name, address)) = text.strip_suffix('>').and_then(|text| text.split_once('<')) else {
        return is_address(text).is_ok();
    };
    let name = name.trim();
    let plain = !name.is_empty() && !name.chars().any(|c| c.is_control() || "<>\"()[]@,;:\\".contains(c));
    plain && is_address(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Findings;
    use crate::config::daemon::{Daemon, parse};
    use std::path::Path;

    fn read_in(folder: &Path, notify: &str) -> Result<Daemon, Findings> {
        let env = |name: &str| match name {
            "HOOK" => Some("https://chat.example.com/T0/hush-hush".to_owned()),
            "KEY" => Some("hush-hush-0123456789".to_owned()),
            _ => None,
        };
        let people = "{ users: { ana: {}, ben: {} }, groups: { all: [ana, ben] } }";
        parse("mainstay.yml", &format!("notify: {notify}\npeople: {people}\nrepos: {{a: /x}}\n"), &env, folder)
    }

    fn read(notify: &str) -> Result<Daemon, Findings> {
        read_in(Path::new("/srv/ci"), notify)
    }

    #[test]
    fn alerts_name_people_and_groups_and_nobody_is_an_answer_too() {
        let names = |text: &str| {
            let alerts = read(text).unwrap().notify.alerts;
            alerts.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(names("{}"), None);
        assert_eq!(names("{ alerts: all }").as_deref(), Some("ana ben"));
        assert_eq!(names("{ alerts: [ben] }").as_deref(), Some("ben"));
        assert_eq!(names("{ alerts: [] }").as_deref(), Some(""));
        let findings = read("{ alerts: [bem] }").unwrap_err().to_string();
        assert!(findings.contains("`bem`") && findings.contains("`ben`"), "{findings}");
    }

    #[test]
    fn everything_is_understood_and_nothing_of_it_prints() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), "x").unwrap();
        let daemon = read_in(
            folder.path(),
            r#"
  smtp: { url: "smtps://ci@example.com@mail.example.com", from: "Mainstay Ü <ci@example.com>", password: "${KEY}", authority: ca.pem }
  webhooks:
    board: { url: "${HOOK}", format: slack }
    desk: { url: "http://127.0.0.1:9000/in", secret: plain-text-1, inbound: { secret: "${KEY}", people: [all, ana] } }"#,
        )
        .unwrap();
        let smtp = daemon.notify.smtp.as_ref().unwrap();
        assert_eq!((smtp.host.as_str(), smtp.port, smtp.security), ("mail.example.com", 465, SmtpSecurity::Tls));
        assert_eq!(smtp.user.as_deref(), Some("ci@example.com"));
        assert_eq!(smtp.authority.as_deref(), Some(folder.path().join("ca.pem").as_path()));
        let board = &daemon.notify.webhooks["board"];
        assert_eq!((board.format, board.inbound.is_none()), (WebhookFormat::Slack, true));
        let desk = &daemon.notify.webhooks["desk"];
        assert_eq!((desk.format, desk.secret.as_ref().unwrap().expose()), (WebhookFormat::Generic, "plain-text-1"));
        let people: Vec<_> = desk.inbound.as_ref().unwrap().people.iter().map(PersonName::as_str).collect();
        assert_eq!(people, ["ana", "ben"]);
        let masked: Vec<_> = daemon.secret_values().iter().map(Secret::expose).collect();
        let wanted = [
            "http://127.0.0.1:9000/in",
            "https://chat.example.com/T0/hush-hush",
            "hush-hush-0123456789",
            "plain-text-1",
        ];
        assert_eq!(masked, wanted);
        let printed = format!("{daemon:?}");
        assert!(!printed.contains("hush-hush") && !printed.contains("plain-text-1"), "{printed}");
    }

    #[test]
    fn the_user_may_stand_beside_the_address() {
        let daemon = read("{ smtp: { url: 'smtp://h', from: a@b, user: 'ci@b', password: '${KEY}' } }").unwrap();
        assert_eq!(daemon.notify.smtp.unwrap().user.as_deref(), Some("ci@b"));
    }

    #[test]
    fn addresses_of_mail_servers() {
        use SmtpSecurity::{Plain, StartTls, Tls};
        let table = [
            ("smtps://h", Tls, "h", 465, None),
            ("smtp://h", StartTls, "h", 587, None),
            ("smtp://u@h:2525/", StartTls, "h", 2525, Some("u")),
            ("smtp+plain://127.0.0.1:2525", Plain, "127.0.0.1", 2525, None),
            ("smtp+plain://localhost", Plain, "localhost", 25, None),
            ("smtp+plain://[::1]:26", Plain, "::1", 26, None),
            ("smtps://ci%40example.com@h", Tls, "h", 465, Some("ci@example.com")),
        ];
        for (text, security, host, port, user) in table {
            let found = server(text).unwrap_or_else(|(why, _)| panic!("{text} {why}"));
            assert_eq!((found.security, found.host.as_str(), found.port), (security, host, port), "{text}");
            assert_eq!(found.user.as_deref(), user, "{text}");
        }
    }

    #[test]
    fn each_mistake_has_its_sentence_and_its_place() {
        let smtp = |rest: &str| format!("{{ smtp: {{ from: a@b, {rest} }} }}");
        let hook = |rest: &str| format!("{{ webhooks: {{ desk: {{ url: 'https://h/x', {rest} }} }} }}");
        let table = [
            ("[]".to_owned(), "`notify` is a map", "[]"),
            ("{ smpt: {} }".to_owned(), "unknown key `smpt`", "smpt"),
            ("{ smtp: { from: a@b } }".to_owned(), "`smtp` needs `url`", "{ from"),
            ("{ smtp: { url: 'smtps://h' } }".to_owned(), "`smtp` needs `from`", "{ url"),
            (smtp("url: h"), "is not an address of a mail server", "h }"),
            (smtp("url: 'http://h'"), "a scheme that is not known", "'http"),
            (smtp("url: 'smtps://'"), "no usable host", "'smtps"),
            (smtp("url: 'smtps://h:99999'"), "no usable", "'smtps"),
            (smtp("url: 'smtps://h:x'"), "no usable", "'smtps"),
            (smtp("url: 'smtps://u:hush-hush@h', password: x"), "holds a password", "'smtps"),
            (smtp("url: 'smtps://@h', password: x"), "no usable user", "'smtps"),
            (smtp("url: 'smtps://%zz@h', password: x"), "no usable user", "'smtps"),
            (smtp("url: 'smtp+plain://h'"), "in clear text to another machine", "'smtp+plain"),
            (smtp("url: 'smtp+plain://10.0.0.1'"), "in clear text to another machine", "'smtp+plain"),
            (smtp("url: 'smtps://u@h'"), "there is a user, and no `password`", "{ from"),
            (smtp("url: 'smtps://h', user: u"), "there is a user, and no `password`", "{ from"),
            (smtp("url: 'smtps://u@h', user: u, password: x"), "stands in `url` already", "user"),
            (smtp("url: 'smtps://h', user: '', password: x"), "`user` is empty", "''"),
            (smtp("url: 'smtps://h', password: x"), "nobody whose it is", "x }"),
            (smtp("url: 'smtps://u@h', password: ''"), "`password` is empty", "''"),
            (smtp("url: 'smtps://h', authority: nope.pem"), "there is no file `/srv/ci/nope.pem`", "nope.pem"),
            ("{ smtp: { url: 'smtps://h', from: Mainstay } }".to_owned(), "is no sender of mail", "Mainstay"),
            ("{ smtp: { url: 'smtps://h', from: '<a@b>' } }".to_owned(), "is no sender of mail", "'<a@b>'"),
            ("{ smtp: { url: 'smtps://h', from: \"a\\nBcc: x <a@b>\" } }".to_owned(), "is no sender of mail", "\"a"),
            ("{ smtp: { url: 'smtps://h', from: 'x, y <a@b>' } }".to_owned(), "is no sender of mail", "'x, y"),
            ("{ webhooks: { 'a/b': { url: 'https://h' } } }".to_owned(), "a webhook's name has", "'a/b'"),
            ("{ webhooks: { mail: { url: 'https://h' } } }".to_owned(), "the mail itself", "mail"),
            ("{ webhooks: { x: {} } }".to_owned(), "a webhook needs `url`", "{} }"),
            ("{ webhooks: { x: { url: 'ftp://h' } } }".to_owned(), "`url` is an address", "'ftp"),
            ("{ webhooks: { x: { url: /x } } }".to_owned(), "`url` is an address", "/x }"),
            (hook("format: slak"), "`slak` is not known for `format`", "slak"),
            (hook("secret: ''"), "`secret` is empty", "''"),
            (hook("inbound: { people: [ana] }"), "`inbound` needs `secret`", "{ people"),
            (hook("inbound: { secret: '${KEY}' }"), "`inbound` needs `people`", "{ secret"),
            (hook("inbound: { secret: hush-hush, people: ana }"), "at least 16 bytes", "hush-hush"),
            (hook("inbound: { secret: '${KEY}', people: [] }"), "it could speak for nobody", "[] }"),
            (hook("inbound: { secret: '${KEY}', people: [anna] }"), "no person or group `anna`", "anna"),
            (hook("inbound: { secret: '${KEY}', people: '${KEY}' }"), "is the name of no person", "'${KEY}' } }"),
        ];
        for (text, words, place) in table {
            let findings = read(&text).expect_err(&text);
            let [finding] = findings.list.as_slice() else { panic!("{text}\n{findings}") };
            assert!(finding.message.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{findings}");
            let column = format!("notify: {text}").find(place).unwrap() + 1;
            assert_eq!((finding.line, finding.column), (1, column), "{findings}");
            let said = finding.hints.iter().fold(finding.message.clone(), |all, hint| all + hint);
            assert!(!said.contains("hush-hush"), "{findings}");
        }
    }
}
