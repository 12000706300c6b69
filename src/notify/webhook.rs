//! Webhooks out: a message posted to another system.
//!
//! Enters: one message, from `channels`. Leaves: a post that the other side has answered with success, or why it has not.
//!
//! What a receiver can rely on: `X-Mainstay-Delivery` is the same in every try at one message, so that a repeated one can
//! be told. With a `secret`, `X-Mainstay-Signature` is `sha256=` and the HMAC-SHA-256, in hex, of
//! `X-Mainstay-Timestamp`, a dot, and the body; the time (in seconds since 1970) is that of the try. Neither a
//! person's link nor a code is ever in a post.

use super::channels::{ChannelError, Delivery, Failure, causes, outward_client};
use super::post;
use crate::config::daemon::notify::{self, WebhookFormat};
use crate::config::secret::Secret;
use crate::model::InstanceId;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use sha2::Sha256;
use std::time::Duration;

/// As much of an error's text as is read and shown.
const ERROR_MAX_CHARS: usize = 200;

/// Another system, ready to be posted to.
#[derive(Debug)]
pub struct Webhook {
    url: Secret,
    format: WebhookFormat,
    secret: Option<Secret>,
    client: Client,
    instance: InstanceId,
}

impl Webhook {
    /// Takes the settings; connects to nothing.
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(name: &str, settings: &notify::Webhook, instance: &InstanceId) -> Result<Webhook, ChannelError> {
        let wrong = |why: String| ChannelError::Webhook { name: name.to_owned(), why };
        let usable = Url::parse(settings.url.expose()).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !usable {
            return Err(wrong("its `url` is no http or https address".into()));
        }
        let client = outward_client().map_err(|error| wrong(causes(&error)))?;
        let (url, secret) = (settings.url.clone(), settings.secret.clone());
        Ok(Webhook { url, format: settings.format, secret, client, instance: instance.clone() })
    }

    /// Posts one message.
    pub(super) async fn send(&self, delivery: &Delivery<'_>) -> Result<(), Failure> {
        let document = match self.format {
            WebhookFormat::Generic => post::generic(delivery, &self.instance),
            WebhookFormat::Slack => post::slack(delivery),
            WebhookFormat::Teams => post::teams(delivery),
        };
        let body = document.to_string();
        let time = Timestamp::now().as_second().to_string();
        let mut request = self
            .client
            .post(self.url.expose())
            .header(CONTENT_TYPE, "application/json; charset=utf-8")
            .header("X-Mainstay-Delivery", &delivery.id)
            .header("X-Mainstay-Timestamp", &time);
        if let Some(secret) = &self.secret {
            request = request.header("X-Mainstay-Signature", signature(secret, &time, &body));
        }
        // The address may hold a token: no error of ours shows it.
        let failed = |error: reqwest::Error| Failure::later(causes(&error.without_url()));
        judge(request.body(body).send().await.map_err(failed)?).await
    }
}

/// What stands in `X-Mainstay-Signature`.
pub(crate) fn signature(secret: &Secret, time: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

async fn judge(mut answer: Response) -> Result<(), Failure> {
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let after = seconds.map(Duration::from_secs);
    // One piece is enough for a sentence, and a huge page is not worth reading.
    let text = match answer.chunk().await {
        Ok(Some(piece)) => String::from_utf8_lossy(&piece[..piece.len().min(4 * ERROR_MAX_CHARS)]).into_owned(),
        _ => String::new(),
    };
    let text: String = super::words::line(&text).chars().take(ERROR_MAX_CHARS).collect();
    let why = format!("it answered {status} {text}").trim_end().to_owned();
    let never = match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => false,
        status => status.is_client_error() || status.is_redirection(),
    };
    Err(if never { Failure::Never(why) } else { Failure::Later { why, after } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_that_other_tools_compute() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac "It's a secret"
        let made = signature(&Secret::new("It's a secret"), "1700000000", "{\"a\":1}");
        assert_eq!(made, "sha256=063c01779d2db19173363fe63eef90a220a70862d2f4742cbb8b449a2c73c877");
    }
}
