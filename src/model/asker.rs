//! Who asked for something, and how that is known.

use super::ids::PersonName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How it is known who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Over the Unix socket: the kernel named the user.
    Socket,
    /// Over TCP with a personal token.
    Token,
    /// Over TCP with the shared token of the state folder: whoever has that file.
    SharedToken,
    /// A signal to the process: whoever may send one.
    Signal,
    /// A link that was mailed to that person.
    Mail,
    /// A signed message from a system that may speak for that person.
    Webhook,
    /// Nobody asked: the daemon acts by its own rules.
    Daemon,
}

impl Way {
    /// The word used in the store and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Socket => "socket",
            Way::Token => "token",
            Way::SharedToken => "shared-token",
            Way::Signal => "signal",
            Way::Mail => "mail",
            Way::Webhook => "webhook",
            Way::Daemon => "daemon",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who asks. A name alone does not make a person: a user of the machine may be called like one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    who: String,
    person: Option<PersonName>,
    way: Way,
}

/// Who asks when the shared token was shown. No person's name has blanks in it.
const SHARED: &str = "the token file";

impl Asker {
    /// A person of `mainstay.yml`.
    pub fn person(name: PersonName, way: Way) -> Self {
        Asker { who: name.to_string(), person: Some(name), way }
    }
    /// A user of this machine who is no person of `mainstay.yml`.
    pub fn user(name: impl Into<String>) -> Self {
        Asker { who: name.into(), person: None, way: Way::Socket }
    }
    /// Whoever has the shared token.
    pub fn shared_token() -> Self {
        Asker { who: SHARED.to_owned(), person: None, way: Way::SharedToken }
    }
    /// Whoever sent that signal.
    pub fn signal(name: &str) -> Self {
        Asker { who: name.to_owned(), person: None, way: Way::Signal }
    }
    /// The daemon itself.
    pub fn daemon() -> Self {
        Asker { who: "mainstay".to_owned(), person: None, way: Way::Daemon }
    }
    /// The name that is recorded.
    pub fn who(&self) -> &str {
        &self.who
    }
    /// The person, when it is one.
    pub fn as_person(&self) -> Option<&PersonName> {
        self.person.as_ref()
    }
    /// How that is known.
    pub fn way(&self) -> Way {
        self.way
    }
}
