//! Mail, over SMTP.
//!
//! Enters: one message and one address, from `channels`. Leaves: a mail that the server has taken, or why it has not.
//! A connection per mail: there are few, and none is kept open for a server to close at a bad moment.
//!
//! The mail is the same to the byte in every try, its `Message-ID` too, so that a mailbox can tell a repeated one.
//! Messages of one thread all name the same id in `References`; nobody ever sent a mail with that id, which mail programs
//! do not mind, and so no mail depends on another having arrived.

use super::channels::{ChannelError, Delivery, Failure, causes};
use super::letter::Letter;
use crate::config::daemon::notify::{Smtp, SmtpSecurity};
use crate::model::InstanceId;
use crate::small_file;
use lettre::message::header::{ContentTransferEncoding, ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Body, Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use lettre::{Address, Message as MailMessage};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::time::Duration;

/// A server that is there answers a connection within a moment; one that is not should not hold up the others.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// From the connection to the end of the login. Some servers make unknown senders wait before they greet.
const GREET_WITHIN: Duration = Duration::from_secs(40);
/// For a good-bye, beside which nothing waits.
const QUIT_WITHIN: Duration = Duration::from_secs(5);

/// How a certificate begins in a PEM file.
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// A mail server, ready to be talked to.
pub struct Email {
    host: String,
    port: u16,
    security: SmtpSecurity,
    tls: Option<TlsParameters>,
    from: Mailbox,
    login: Option<Credentials>,
    instance: InstanceId,
}

impl std::fmt::Debug for Email {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Email({}:{}, {:?})", self.host, self.port, self.security)
    }
}

impl Email {
    /// Takes the settings; connects to nothing.
    ///
    /// # Errors
    /// When `from` is no address, the authority's file is no certificate, or a plain connection would leave this machine.
    pub fn new(smtp: &Smtp, instance: &InstanceId) -> Result<Email, ChannelError> {
        let wrong = |why: String| ChannelError::Mail(why);
        let from: Mailbox =
            smtp.from.parse().map_err(|e| wrong(format!("`{}` is no address to send from: {e}", smtp.from)))?;
        let tls = match smtp.security {
            SmtpSecurity::Plain if !is_this_machine(&smtp.host) => {
                return Err(wrong(format!(
                    "{} is another machine, and a plain connection can be read on the way\nhint: `smtp://` uses \
                     STARTTLS, `smtps://` TLS from the start",
                    smtp.host
                )));
            }
            SmtpSecurity::Plain => None,
            SmtpSecurity::Tls | SmtpSecurity::StartTls => Some(tls(smtp)?),
        };
        let login = match (&smtp.user, &smtp.password) {
            (Some(user), Some(password)) => Some(Credentials::new(user.clone(), password.expose().to_owned())),
            (None, None) => None,
            _ => return Err(wrong("a login is a user and a password".into())),
        };
        let (host, port, security) = (smtp.host.clone(), smtp.port, smtp.security);
        Ok(Email { host, port, security, tls, from, login, instance: instance.clone() })
    }

    /// Connects and logs in, and sends nothing. Says what was found.
    ///
    /// # Errors
    /// When it does not get that far.
    pub async fn check(&self) -> Result<String, Failure> {
        let mut connection = self.connect().await?;
        let _ = tokio::time::timeout(QUIT_WITHIN, connection.quit()).await;
        let security = match self.security {
            SmtpSecurity::Tls => "TLS",
            SmtpSecurity::StartTls => "STARTTLS",
            SmtpSecurity::Plain => "plain, on this machine",
        };
        let login = if self.login.is_some() { "logged in" } else { "no login asked for" };
        Ok(format!("{}:{} answers, {security}, {login}", self.host, self.port))
    }

    /// Sends one mail.
    pub(super) async fn send(&self, delivery: &Delivery<'_>, address: &str) -> Result<(), Failure> {
        let to: Address =
            address.parse().map_err(|e| Failure::Never(format!("`{address}` is no address for mail: {e}")))?;
        let mail = self.compose(delivery, to.clone())?;
        let mut connection = self.connect().await?;
        let mut options = Vec::new();
        if !to.to_string().is_ascii() {
            if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
                connection.abort().await;
                return Err(Failure::Never(format!("{} takes no addresses like `{address}`", self.host)));
            }
            options.push(MailParameter::SmtpUtfEight);
        }
        // A sender who is refused is a setting to be mended, for which the message can wait. From the recipient on, a
        // refusal is about this mail.
        let sender = Mail::new(Some(self.from.email.clone()), options);
        self.step(connection.command(sender).await, "the sender", false)?;
        self.step(connection.command(Rcpt::new(to, Vec::new())).await, "the recipient", true)?;
        self.step(connection.command(Data).await, "the mail", true)?;
        self.step(connection.message(&mail.formatted()).await, "the mail", true)?;
        // It is theirs now, and that is to be recorded at once: nobody waits for the good-bye.
        tokio::spawn(async move {
            let _ = tokio::time::timeout(QUIT_WITHIN, connection.quit()).await;
        });
        Ok(())
    }

    /// Greets, secures the connection and logs in. Nothing that fails here is about one message.
    async fn connect(&self) -> Result<AsyncSmtpConnection, Failure> {
        let late = || Failure::later(format!("{}:{} was silent too long", self.host, self.port));
        tokio::time::timeout(GREET_WITHIN, self.greet()).await.unwrap_or_else(|_| Err(late()))
    }

    async fn greet(&self) -> Result<AsyncSmtpConnection, Failure> {
        let us = ClientId::default();
        let at_once = self.tls.clone().filter(|_| self.security == SmtpSecurity::Tls);
        let server = (self.host.as_str(), self.port);
        let connected = AsyncSmtpConnection::connect_tokio1(server, Some(CONNECT_WITHIN), &us, at_once, None).await;
        let mut connection = self.step(connected, "the connection", false)?;
        if self.security == SmtpSecurity::StartTls {
            let Some(tls) = self.tls.clone() else { return Err(Failure::later("there are no settings for TLS")) };
            if !connection.can_starttls() {
                connection.abort().await;
                return Err(Failure::later(format!(
                    "{} offers no STARTTLS, and nothing is sent without it; `smtps://` is TLS from the start",
                    self.host
                )));
            }
            self.step(connection.starttls(tls, &us).await, "STARTTLS", false)?;
        }
        if let Some(login) = &self.login {
            let answer = connection.auth(&[Mechanism::Plain, Mechanism::Login], login).await;
            self.step(answer, "the login", false)?;
        }
        Ok(connection)
    }

    /// An answer of the server; a refusal for good only counts as one where it is about this message.
    fn step<T>(
        &self,
        answer: Result<T, lettre::transport::smtp::Error>,
        what: &str,
        about_this_mail: bool,
    ) -> Result<T, Failure> {
        answer.map_err(|error| {
            let said = match error.status() {
                Some(code) => {
                    let text = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    format!("{} refused {what}: {code} {}", self.host, super::words::line(&text)).trim_end().to_owned()
                }
                None => format!("{}:{} failed at {what}: {}", self.host, self.port, causes(&error)),
            };
            if error.is_permanent() && about_this_mail { Failure::Never(said) } else { Failure::later(said) }
        })
    }

    fn compose(&self, delivery: &Delivery<'_>, to: Address) -> Result<MailMessage, Failure> {
        let letter = Letter::of(delivery.message);
        let thread = format!("<{}@{}>", self.thread_id(delivery), self.from.email.domain());
        let part = |kind: ContentType, text: String| {
            // One encoding for all: plain ASCII on the wire, for servers that know nothing newer.
            let body = Body::new_with_encoding(text, ContentTransferEncoding::QuotedPrintable);
            body.map(|body| SinglePart::builder().header(kind).body(body))
        };
        let unsendable = |_| Failure::Never("its text cannot be put into a mail".into());
        let parts = MultiPart::builder()
            .kind(lettre::message::MultiPartKind::Alternative)
            .boundary(&delivery.id)
            .singlepart(part(ContentType::TEXT_PLAIN, letter.text).map_err(unsendable)?)
            .singlepart(part(ContentType::TEXT_HTML, letter.html).map_err(unsendable)?);
        MailMessage::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(letter.subject)
            .date(delivery.written.into())
            .message_id(Some(format!("<{}@{}>", delivery.id, self.from.email.domain())))
            .in_reply_to(thread.clone())
            .references(thread)
            .header(AutoSubmitted)
            .header(NoAutomaticAnswers)
            .multipart(parts)
            .map_err(|e| Failure::Never(format!("it cannot be put into a mail: {e}")))
    }

    fn thread_id(&self, delivery: &Delivery<'_>) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("thread:{}:{}", self.instance, delivery.message.thread()));
        hex::encode(&hash.finalize()[..16])
    }
}

fn tls(smtp: &Smtp) -> Result<TlsParameters, ChannelError> {
    let mut builder = TlsParameters::builder(smtp.host.clone());
    if let Some(path) = &smtp.authority {
        let wrong = |why: String| ChannelError::Mail(format!("use the authority {}: {why}", path.display()));
        let pem = small_file::read(path, small_file::TEXT_MAX_BYTES).map_err(|e| wrong(e.to_string()))?;
        // Text without a certificate in it is read as none at all, and then no server would ever be trusted.
        if !pem.windows(BEGIN.len()).any(|window| window == BEGIN) {
            return Err(wrong("it holds no certificate in PEM form".into()));
        }
        let authority = Certificate::from_pem(&pem).map_err(|e| wrong(causes(&e)))?;
        // Whoever names an authority means that one, and no other of the hundred and forty.
        builder = builder.certificate_store(CertificateStore::None).add_root_certificate(authority);
    }
    builder.build_rustls().map_err(|e| ChannelError::Mail(causes(&e)))
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A program wrote it (RFC 3834), so programs do not answer.
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }
    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }
    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".into())
    }
}

/// The same for servers that do not know the one above: no notices of absence.
#[derive(Clone)]
struct NoAutomaticAnswers;

impl Header for NoAutomaticAnswers {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("X-Auto-Response-Suppress")
    }
    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(NoAutomaticAnswers)
    }
    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "OOF, AutoReply".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smtp(host: &str, security: SmtpSecurity) -> Smtp {
        Smtp {
            host: host.into(),
            port: 25,
            security,
            from: "Mainstay <ci@example.com>".into(),
            user: None,
            password: None,
            authority: None,
        }
    }

    #[test]
    fn nothing_leaves_this_machine_unprotected() {
        let instance = InstanceId("0123abcd".into());
        for host in ["mail.example.com", "10.0.0.1", "localhost.example.com", "0.0.0.0", "127.0.0.1.example.com"] {
            let error = Email::new(&smtp(host, SmtpSecurity::Plain), &instance).unwrap_err().to_string();
            assert!(error.contains("another machine") && error.contains("hint:"), "{error}");
        }
        for host in ["localhost", "127.0.0.1", "::1", "127.8.8.8"] {
            Email::new(&smtp(host, SmtpSecurity::Plain), &instance).unwrap();
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_when_they_are_read() {
        let instance = InstanceId("0123abcd".into());
        let mut settings = smtp("localhost", SmtpSecurity::Plain);
        settings.from = "nobody".into();
        assert!(Email::new(&settings, &instance).unwrap_err().to_string().contains("`nobody` is no address"));
        let mut settings = smtp("mail.example.com", SmtpSecurity::Tls);
        settings.user = Some("ci".into());
        assert!(Email::new(&settings, &instance).unwrap_err().to_string().contains("a user and a password"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no certificate").unwrap();
        let mut settings = smtp("mail.example.com", SmtpSecurity::Tls);
        settings.authority = Some(file.path().to_owned());
        assert!(Email::new(&settings, &instance).unwrap_err().to_string().contains("use the authority"));
    }
}
