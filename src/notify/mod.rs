//! Messages to people: written with what they tell about, sent afterwards, retried, never lost.
//!
//! Enters: a [`Message`], stored by whoever causes it in the transaction of its cause. Leaves: mail and posts to other
//! systems, sent by [`outbox::run`], which `daemon` starts. What to say stands in `message`, how it looks in `letter`
//! (mail) and `post` (webhooks), how it travels in `email` and `webhook`. `forge` opens pull requests, for `deploy`.

pub mod channels;
pub mod email;
pub mod forge;
pub mod letter;
pub mod message;
pub mod outbox;
mod post;
pub mod webhook;
mod words;

pub use channels::Channels;
pub use letter::Letter;
pub use message::Message;
