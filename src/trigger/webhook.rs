//! Webhooks of forges: believed first, understood second. Pure: bytes in, a typed notification out.
//!
//! The signature or token is checked on the raw body before anything parses it. What tells one delivery from another
//! stops replays in the inbox. A forge that only signs the body (all but `generic` leave the delivery id out) could be
//! replayed with a new id by somebody who saw the request; the inbox's own rule then finds that the ref is not new.

use super::RefChange;
use super::message::{clean_actor, is_delivery};
use crate::store::Verdict;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Which forge sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// GitHub: `X-Hub-Signature-256`.
    Github,
    /// GitLab: `X-Gitlab-Token`.
    Gitlab,
    /// Gitea: `X-Gitea-Signature`.
    Gitea,
    /// Forgejo: `X-Forgejo-Signature`, or the one of Gitea.
    Forgejo,
    /// Anything that can compute an HMAC: `X-Mainstay-Signature`.
    Generic,
}

/// What a believed webhook says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// The forge tries whether anybody is there.
    Ping,
    /// Refs moved.
    Push {
        /// What tells this delivery from others.
        delivery: String,
        /// Who pushed, as the forge names them.
        actor: Option<String>,
        /// Which refs, from where to where.
        changes: Vec<RefChange>,
    },
    /// Something moved; look at the refs.
    Look,
    /// An event that starts nothing here.
    Ignored(String),
}

/// What became of a believed webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Answered.
    Ping,
    /// A verdict for each ref.
    Push(Vec<Verdict>),
    /// The refs are being looked at.
    Look,
    /// Nothing to do.
    Ignored(String),
}

/// Why a webhook is not taken. `Display` fits after "failed to ...".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// No secret is configured for this repository.
    #[error("take the webhook: none is configured for this repository")]
    NotConfigured,
    /// A header is missing or odd.
    #[error("take the webhook: the header {0} is missing or malformed")]
    Header(&'static str),
    /// The signature or token is wrong. Says nothing more.
    #[error("take the webhook: its signature does not match")]
    BadSignature,
    /// The body does not say what it should.
    #[error("understand the webhook: {0}")]
    Body(String),
}

impl WebhookError {
    /// The HTTP status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            WebhookError::NotConfigured => 404,
            WebhookError::BadSignature => 401,
            WebhookError::Header(_) | WebhookError::Body(_) => 400,
        }
    }
}

/// The largest body worth reading; forges cut at 25 MB and list at most 20 commits. The web layer cuts there.
pub const BODY_MAX_BYTES: usize = 8 << 20;
/// Refs in one generic delivery.
const REFS_MAX: usize = 10_000;

/// Checks that the holder of the secret sent this body, then reads it. `headers` looks a header up by its lower-case name.
///
/// # Errors
/// See [`WebhookError`]. Before the signature is known to be right, nothing about the body is told.
pub fn verify_and_parse<'h>(
    kind: Kind,
    secret: &[u8],
    headers: &(dyn Fn(&str) -> Option<&'h str> + Sync),
    body: &[u8],
) -> Result<Notification, WebhookError> {
    // Everybody knows the HMAC under an empty key.
    if secret.is_empty() {
        return Err(WebhookError::NotConfigured);
    }
    if body.len() > BODY_MAX_BYTES {
        return Err(WebhookError::Body(format!("the body is longer than {BODY_MAX_BYTES} bytes")));
    }
    match kind {
        Kind::Github => {
            let header = headers("x-hub-signature-256").ok_or(WebhookError::Header("X-Hub-Signature-256"))?;
            let hex = header.strip_prefix("sha256=").ok_or(WebhookError::Header("X-Hub-Signature-256"))?;
            check_hmac(secret, body, hex)?;
            let event = headers("x-github-event").ok_or(WebhookError::Header("X-GitHub-Event"))?;
            let delivery = delivery(headers("x-github-delivery"), "X-GitHub-Delivery")?;
            forge_push(event, "push", delivery, headers, body)
        }
        Kind::Gitea | Kind::Forgejo => {
            let (own, gitea) = (headers("x-forgejo-signature"), headers("x-gitea-signature"));
            let hex = own.filter(|_| kind == Kind::Forgejo).or(gitea);
            check_hmac(secret, body, hex.ok_or(WebhookError::Header("X-Gitea-Signature"))?)?;
            let either = |forgejo: &str, gitea: &str| {
                headers(forgejo).filter(|_| kind == Kind::Forgejo).or_else(|| headers(gitea))
            };
            let event = either("x-forgejo-event", "x-gitea-event").ok_or(WebhookError::Header("X-Gitea-Event"))?;
            let delivery = delivery(either("x-forgejo-delivery", "x-gitea-delivery"), "X-Gitea-Delivery")?;
            forge_push(event, "push", delivery, headers, body)
        }
        Kind::Gitlab => {
            let token = headers("x-gitlab-token").ok_or(WebhookError::Header("X-Gitlab-Token"))?;
            // Digests have one length, so that not even the secret's length is told by time.
            if !bool::from(digest(token.as_bytes()).ct_eq(&digest(secret))) {
                return Err(WebhookError::BadSignature);
            }
            let event = headers("x-gitlab-event").ok_or(WebhookError::Header("X-Gitlab-Event"))?;
            // The key stays the same over GitLab's own retries; older versions have only the event's id.
            let id = headers("idempotency-key").or_else(|| headers("x-gitlab-event-uuid"));
            let delivery = delivery(id, "X-Gitlab-Event-UUID")?;
            let event = if matches!(event, "Push Hook" | "Tag Push Hook") { "push" } else { event };
            forge_push(event, "push", delivery, headers, body)
        }
        Kind::Generic => {
            let header = headers("x-mainstay-signature").ok_or(WebhookError::Header("X-Mainstay-Signature"))?;
            let hex = header.strip_prefix("sha256=").ok_or(WebhookError::Header("X-Mainstay-Signature"))?;
            check_hmac(secret, body, hex)?;
            generic(body)
        }
    }
}

/// The signature that `generic` and the HMAC forges use, for documentation and tests.
pub fn sign(secret: &[u8], body: &[u8]) -> String {
    hex::encode(keyed(secret).chain_update(body).finalize().into_bytes())
}

fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length")
}

fn check_hmac(secret: &[u8], body: &[u8], hex_digits: &str) -> Result<(), WebhookError> {
    let given = hex::decode(hex_digits.trim()).map_err(|_| WebhookError::BadSignature)?;
    // Compares in constant time.
    keyed(secret).chain_update(body).verify_slice(&given).map_err(|_| WebhookError::BadSignature)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    Sha256::digest(bytes).into()
}

fn delivery(header: Option<&str>, name: &'static str) -> Result<String, WebhookError> {
    header.filter(|id| is_delivery(id)).map(str::to_owned).ok_or(WebhookError::Header(name))
}

/// The push event as GitHub, GitLab, Gitea and Forgejo send it: they differ in where the sender's name is.
#[derive(Deserialize)]
struct ForgePush {
    #[serde(rename = "ref")]
    git_ref: String,
    before: String,
    after: String,
    #[serde(default)]
    sender: Option<Person>,
    #[serde(default)]
    pusher: Option<Person>,
    #[serde(default)]
    user_username: Option<String>,
}

#[derive(Deserialize)]
struct Person {
    #[serde(default)]
    login: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

fn forge_push<'h>(
    event: &str,
    push: &str,
    delivery: String,
    headers: &(dyn Fn(&str) -> Option<&'h str> + Sync),
    body: &[u8],
) -> Result<Notification, WebhookError> {
    if event == "ping" {
        return Ok(Notification::Ping);
    }
    if event != push {
        return Ok(Notification::Ignored(format!(
            "the event `{}`",
            event.escape_debug().to_string().chars().take(60).collect::<String>()
        )));
    }
    if headers("content-type").is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
        let hint = "it comes as a form\nhint: set the webhook's content type to application/json";
        return Err(WebhookError::Body(hint.into()));
    }
    let push: ForgePush = serde_json::from_slice(body).map_err(|e| WebhookError::Body(e.to_string()))?;
    let login = |person: Option<Person>| person.and_then(|p| p.login.or(p.username).or(p.name));
    let actor = login(push.sender).or(push.user_username).or(login(push.pusher));
    let changes = vec![ref_change(push.git_ref, &push.before, &push.after)?];
    Ok(Notification::Push { delivery, actor: actor.as_deref().and_then(clean_actor), changes })
}

/// `{"delivery": "...", "actor": "...", "refs": [{"ref": "refs/heads/main", "old": "...", "new": "..."}]}`; without refs
/// it means "something moved, look".
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GenericPush {
    delivery: String,
    #[serde(default)]
    actor: Option<String>,
    #[serde(default)]
    refs: Vec<GenericRef>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GenericRef {
    #[serde(rename = "ref")]
    git_ref: String,
    old: String,
    new: String,
}

fn generic(body: &[u8]) -> Result<Notification, WebhookError> {
    let push: GenericPush = serde_json::from_slice(body).map_err(|e| WebhookError::Body(e.to_string()))?;
    if !is_delivery(&push.delivery) {
        return Err(WebhookError::Body("`delivery` is no word of 1 to 200 characters".into()));
    }
    if push.refs.len() > REFS_MAX {
        return Err(WebhookError::Body(format!("more than {REFS_MAX} refs")));
    }
    if push.refs.is_empty() {
        return Ok(Notification::Look);
    }
    let changes: Result<_, _> = push.refs.into_iter().map(|r| ref_change(r.git_ref, &r.old, &r.new)).collect();
    Ok(Notification::Push {
        delivery: push.delivery,
        actor: push.actor.as_deref().and_then(clean_actor),
        changes: changes?,
    })
}

fn ref_change(git_ref: String, old: &str, new: &str) -> Result<RefChange, WebhookError> {
    let id = |text: &str| text.parse().map_err(|e: crate::model::ids::BadName| WebhookError::Body(e.to_string()));
    Ok(RefChange { git_ref, old: id(old)?, new: id(new)? })
}

#[cfg(test)]
mod tests;
