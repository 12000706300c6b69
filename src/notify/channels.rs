//! The ways in which people and systems are told, as `mainstay.yml` names them.
//!
//! Built by `daemon` from the configuration in force, and replaced as a whole on reload; used by `outbox`.

use super::email::Email;
use super::message::Message;
use super::webhook::Webhook;
use crate::config::daemon::People;
use crate::config::daemon::notify::Notify;
use crate::model::{InstanceId, PersonName};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Chat systems answer within a second; a receiver of one's own may do its work first, and a forge compares two branches.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The name of the channel to people's mailboxes; every other channel is the name of a webhook.
pub const MAIL: &str = "mail";

/// Why a way to send could not be made. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The settings of the mail server cannot be used.
    #[error("set up mail: {0}")]
    Mail(String),
    /// The settings of a webhook cannot be used.
    #[error("set up the webhook `{name}`: {why}")]
    Webhook {
        /// Which.
        name: String,
        /// What is wrong; never its address, which may be a secret.
        why: String,
    },
}

/// Why a message was not taken. `Display` is for people, in `mainstay status` and the log; it never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It may work later.
    #[error("{why}")]
    Later {
        /// What happened.
        why: String,
        /// The other side named the time to wait.
        after: Option<Duration>,
    },
    /// It will never be taken.
    #[error("{0}")]
    Never(String),
}

impl Failure {
    pub(super) fn later(why: impl Into<String>) -> Failure {
        Failure::Later { why: why.into(), after: None }
    }
}

/// One message on its way to one recipient; the same in every try.
#[derive(Debug, Clone)]
pub struct Delivery<'a> {
    /// What the other side may tell repeated tries by: 32 hex digits.
    pub id: String,
    /// What to tell.
    pub message: &'a Message,
    /// When it was written.
    pub written: Timestamp,
}

/// The ways to send.
#[derive(Debug)]
pub struct Channels {
    mail: Option<Email>,
    webhooks: BTreeMap<String, Webhook>,
    addresses: BTreeMap<PersonName, String>,
    instance: InstanceId,
}

impl Channels {
    /// Makes them; connects to nothing.
    ///
    /// # Errors
    /// When an authority's file cannot be read, or an address cannot be used.
    pub fn new(notify: &Notify, people: &People, instance: &InstanceId) -> Result<Channels, ChannelError> {
        let mail = notify.smtp.as_ref().map(|smtp| Email::new(smtp, instance)).transpose()?;
        let mut webhooks = BTreeMap::new();
        for (name, settings) in &notify.webhooks {
            webhooks.insert(name.clone(), Webhook::new(name, settings, instance)?);
        }
        let addresses =
            people.users.iter().filter_map(|(name, person)| Some((name.clone(), person.mail.clone()?))).collect();
        Ok(Channels { mail, webhooks, addresses, instance: instance.clone() })
    }

    /// Whether mail can be sent at all, and to that person.
    pub fn reaches_by_mail(&self, person: &PersonName) -> bool {
        self.mail.is_some() && self.addresses.contains_key(person)
    }

    /// The names of the webhooks.
    pub fn webhooks(&self) -> impl Iterator<Item = &str> {
        self.webhooks.keys().map(String::as_str)
    }

    /// The mail server, if there is one: `doctor` tries it.
    pub fn mail(&self) -> Option<&Email> {
        self.mail.as_ref()
    }

    /// Sends one message; returns when the other side has taken it.
    ///
    /// # Errors
    /// See [`Failure`]. After `Later` the other side may have it nevertheless.
    pub async fn send(
        &self,
        key: &str,
        channel: &str,
        recipient: &str,
        message: &Message,
        written: Timestamp,
    ) -> Result<(), Failure> {
        let delivery = Delivery { id: self.delivery_id(key, channel, recipient), message, written };
        if channel == MAIL {
            // What is missing may come back with the next reload: waiting costs nothing, and `status` shows it.
            let Some(mail) = &self.mail else {
                return Err(Failure::later("mainstay.yml names no mail server (`notify.smtp`)"));
            };
            let Some(address) = self.addresses.get(recipient) else {
                return Err(Failure::later(format!("`{recipient}` has no `mail` in mainstay.yml")));
            };
            return mail.send(&delivery, address).await;
        }
        if message.is_private() {
            return Err(Failure::Never("it holds what only one person may read, and goes to mailboxes only".into()));
        }
        match self.webhooks.get(channel) {
            Some(webhook) => webhook.send(&delivery).await,
            None => Err(Failure::later(format!("mainstay.yml names no webhook `{channel}`"))),
        }
    }

    /// The same for every try at one row, and for no other row of any daemon.
    fn delivery_id(&self, key: &str, channel: &str, recipient: &str) -> String {
        let mut hash = Sha256::new();
        for part in [self.instance.0.as_str(), channel, recipient, key] {
            hash.update(part.len().to_string());
            hash.update(":");
            hash.update(part);
        }
        hex::encode(&hash.finalize()[..16])
    }
}

/// A client for what `mainstay.yml` names outside this machine: webhooks of others and their forges.
pub(super) fn outward_client() -> reqwest::Result<reqwest::Client> {
    // Set already by the program's start; a second time is an error that says just that.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("mainstay/", env!("CARGO_PKG_VERSION")))
        // Tokens and messages are for the one that mainstay.yml names, and for nobody it sends us to.
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_WITHIN)
        .timeout(ANSWER_WITHIN)
        // Minutes lie between messages: a kept connection would be closed when it is wanted.
        .pool_max_idle_per_host(0)
        .build()
}

/// All causes of an error in one line: the outermost alone often says only "error sending request".
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
