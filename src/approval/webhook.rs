//! Decisions of people that another system brings: signed, fresh, each counted once, and only for the people whom the
//! system's key may speak for.
//!
//! `X-Mainstay-Timestamp` holds seconds since 1970; `X-Mainstay-Signature` holds `sha256=` and, in hex, HMAC-SHA256 under the
//! secret of `inbound` over the timestamp, a dot, and the body as it is sent. The body is JSON:
//! `{"id": "…", "approval": 3, "person": "ana", "verdict": "approve", "inputs": {}, "message": "…"}`.

use super::{Answer, ApprovalError, Approvals, Refusal};
use crate::config::daemon::notify::Inbound;
use crate::model::approval::{ApprovalView, Channel, Verdict};
use crate::model::{ApprovalId, Asker, PersonName, Way};
use crate::store::{HeardMessage, StoreError};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::collections::BTreeMap;

/// Messages older or younger than this are not taken: clocks differ, networks are slow, and replays should be of no use.
pub const FRESH_SECS: i64 = 5 * 60;
/// The longest id of a message.
const ID_MAX_BYTES: usize = 200;

/// A decision as another system sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spoken {
    /// The sender's own id for this message; a second one with the same id changes nothing.
    pub id: String,
    /// Which request.
    pub approval: ApprovalId,
    /// For whom it speaks.
    pub person: PersonName,
    /// What they say.
    pub verdict: Verdict,
    /// What they give along.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// What they say along with it.
    #[serde(default)]
    pub message: Option<String>,
}

/// Why a message is not taken. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum SpokenError {
    /// Nobody of that name may send.
    #[error("take the message: no system of that name may send decisions")]
    UnknownSource,
    /// The signature is absent or wrong, or the time it was made at.
    #[error("take the message: its signature or its timestamp is absent or wrong")]
    Signature,
    /// The time is too far from ours.
    #[error("take the message: its timestamp is more than {FRESH_SECS} s away from the time here")]
    Stale,
    /// The body is not what it should be.
    #[error("read the message: {0}")]
    Unreadable(String),
    /// The key may not speak for that person.
    #[error("take the message: the key of `{source_name}` may not speak for {person}")]
    NotTheirs {
        /// The system.
        source_name: String,
        /// For whom it spoke.
        person: PersonName,
    },
    /// The decision is not taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Approvals {
    /// Takes a message of the system `name`: the view of the request after it, and whether it had been taken before.
    ///
    /// # Errors
    /// [`SpokenError`]. Before the signature is known to be right, nothing about the body is told.
    pub async fn hear(
        &self,
        name: &str,
        timestamp: Option<&str>,
        signature: Option<&str>,
        body: &[u8],
    ) -> Result<(ApprovalView, bool), SpokenError> {
        let rules = self.rules();
        let inbound = rules.webhooks.get(name).and_then(Option::as_ref).ok_or(SpokenError::UnknownSource)?;
        let spoken = read(inbound, self.inner.clock.now(), timestamp, signature, body)?;
        if !inbound.people.contains(&spoken.person) {
            return Err(SpokenError::NotTheirs { source_name: name.to_owned(), person: spoken.person });
        }
        let by = Asker::person(spoken.person.clone(), Way::Webhook);
        let heard = HeardMessage { source: name.to_owned(), message: spoken.id };
        let answer = Answer {
            person: spoken.person,
            verdict: spoken.verdict,
            channel: Channel::Webhook,
            inputs: spoken.inputs,
            message: spoken.message,
        };
        self.decide_heard(spoken.approval, answer, &by, Some(heard)).await.map_err(|error| match error {
            ApprovalError::Refused(refusal) => SpokenError::Refused(refusal),
            ApprovalError::Store(error) => SpokenError::Store(error),
            ApprovalError::Key(error) => SpokenError::Store(super::random(error)),
        })
    }
}

/// What stands in `X-Mainstay-Signature`, for documentation and tests.
pub fn sign(secret: &[u8], timestamp: &str, body: &[u8]) -> String {
    format!("sha256={}", hex::encode(keyed(secret, timestamp, body).finalize().into_bytes()))
}

fn keyed(secret: &[u8], timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.chain_update(timestamp).chain_update(b".").chain_update(body)
}

fn read(
    inbound: &Inbound,
    now: Timestamp,
    timestamp: Option<&str>,
    signature: Option<&str>,
    body: &[u8],
) -> Result<Spoken, SpokenError> {
    let secret = inbound.secret.expose().as_bytes();
    // Everybody knows the HMAC under an empty key.
    if secret.is_empty() {
        return Err(SpokenError::UnknownSource);
    }
    let (Some(timestamp), Some(signature)) = (timestamp, signature) else { return Err(SpokenError::Signature) };
    let digits = signature.strip_prefix("sha256=").and_then(|digits| hex::decode(digits).ok());
    let digits = digits.ok_or(SpokenError::Signature)?;
    // Compares in constant time.
    keyed(secret, timestamp, body).verify_slice(&digits).map_err(|_| SpokenError::Signature)?;
    let made: i64 = timestamp.parse().map_err(|_| SpokenError::Signature)?;
    if now.as_second().abs_diff(made) > FRESH_SECS.unsigned_abs() {
        return Err(SpokenError::Stale);
    }
    let spoken: Spoken = serde_json::from_slice(body).map_err(|error| SpokenError::Unreadable(error.to_string()))?;
    if spoken.id.is_empty() || spoken.id.len() > ID_MAX_BYTES || spoken.id.chars().any(char::is_control) {
        return Err(SpokenError::Unreadable(format!("`id` is no text of 1 to {ID_MAX_BYTES} bytes")));
    }
    Ok(spoken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::secret::Secret;

    #[test]
    fn only_what_the_key_signed_and_only_when_it_is_fresh() {
        let inbound = Inbound { secret: Secret::new("s3cret"), people: vec![] };
        let now: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        let body = br#"{"id":"m1","approval":3,"person":"ana","verdict":"approve"}"#;
        let at = |seconds: i64| (now.as_second() + seconds).to_string();
        let good =
            |stamp: &str, body: &[u8]| read(&inbound, now, Some(stamp), Some(&sign(b"s3cret", stamp, body)), body);
        for seconds in [-300, 0, 300] {
            assert_eq!(good(&at(seconds), body).unwrap().person.as_str(), "ana");
        }
        for seconds in [-301, 301, i64::MAX / 2] {
            assert!(matches!(
                good(&at(0).replace(&at(0), &seconds.saturating_add(now.as_second()).to_string()), body),
                Err(SpokenError::Stale)
            ));
        }
        assert!(matches!(good("soon", body), Err(SpokenError::Signature)));
        let signature = sign(b"s3cret", &at(0), body);
        let tries: [(Option<&str>, Option<&str>, &[u8]); 6] = [
            (None, Some(&signature), body),
            (Some(&at(0)), None, body),
            (Some(&at(1)), Some(&signature), body),
            (Some(&at(0)), Some(&signature[7..]), body),
            (Some(&at(0)), Some(&signature), b"{}"),
            (Some(&at(0)), Some(&sign(b"other", &at(0), body)), body),
        ];
        for (stamp, signature, body) in tries {
            assert!(matches!(read(&inbound, now, stamp, signature, body), Err(SpokenError::Signature)), "{stamp:?}");
        }
        for odd in [
            "",
            "{}",
            r#"{"id":"","approval":3,"person":"ana","verdict":"approve"}"#,
            r#"{"id":"m","approval":3,"person":"ana","verdict":"maybe"}"#,
            r#"{"id":"m","approval":3,"person":"a b","verdict":"approve"}"#,
        ] {
            assert!(matches!(good(&at(0), odd.as_bytes()), Err(SpokenError::Unreadable(_))), "{odd}");
        }
        let empty = Inbound { secret: Secret::new(""), people: vec![] };
        let signature = sign(b"", &at(0), body);
        assert!(matches!(read(&empty, now, Some(&at(0)), Some(&signature), body), Err(SpokenError::UnknownSource)));
    }
}
