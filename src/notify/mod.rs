//! Messages to people: written with what they tell about, sent afterwards, retried, never lost.

pub mod letter;
pub mod message;
mod words;

pub use letter::Letter;
pub use message::Message;
