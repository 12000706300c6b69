//! `notify`: how people are told.

use crate::config::secret::Secret;
use crate::model::PersonName;
use std::collections::BTreeMap;

/// How people are told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Notify {
    /// The mail server, if there is one.
    pub smtp: Option<Smtp>,
    /// Systems that are told, by name.
    pub webhooks: BTreeMap<String, Webhook>,
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
