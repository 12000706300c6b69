//! Names and numbers that identify things, each a type of its own, checked once where it enters.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a name was refused; fits after "the name ...".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{shown}` {why}")]
pub struct BadName {
    what: &'static str,
    shown: String,
    why: &'static str,
}

/// The longest step or repository name, so that container names made from it stay under the 128 bytes engines accept.
pub const NAME_MAX_BYTES: usize = 63;

fn check_name(what: &'static str, name: &str) -> Result<(), BadName> {
    let refuse = |why| {
        // A hostile name may be huge or hold terminal control bytes: show a bounded, escaped piece of it.
        Err(BadName { what, shown: name.chars().take(40).flat_map(char::escape_debug).collect(), why })
    };
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > NAME_MAX_BYTES {
        return refuse("is longer than 63 bytes");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return refuse("may hold only letters, digits, `-`, `_` and `.`");
    }
    if !name.as_bytes()[0].is_ascii_alphanumeric() {
        return refuse("must begin with a letter or a digit");
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a name: 1 to 63 bytes of letters, digits, `-`, `_`, `.`, beginning with a letter or digit.
            pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
                let name = name.into();
                check_name($what, &name)?;
                Ok(Self(name))
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(s: &str) -> Result<Self, BadName> {
                Self::new(s)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// The name of a step, unique in its pipeline.
    StepName,
    "the step name"
);
name_type!(
    /// The name of a watched repository: its key under `repos:` in `mainstay.yml`.
    RepoName,
    "the repository name"
);
name_type!(
    /// The name of a pipeline: its file's name without the extension.
    PipelineName,
    "the pipeline name"
);
name_type!(
    /// The name of a person: their key under `people.users` in `mainstay.yml`.
    PersonName,
    "the person's name"
);
name_type!(
    /// The name of a group of people: its key under `people.groups` in `mainstay.yml`.
    GroupName,
    "the group's name"
);

name_type!(
    /// The name of an environment: its key under `environments` in `mainstay.yml`.
    EnvironmentName,
    "the environment's name"
);

name_type!(
    /// The name of a source of backups: its file's name in `backups/` without the extension.
    SourceName,
    "the source's name"
);

/// The number of a deploy, counted by one daemon from 1 over all environments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct DeployId(pub u64);

/// The number of a request for approval, counted by one daemon from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct ApprovalId(pub u64);

macro_rules! number_type {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0.to_string())
            }
        }
        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.strip_prefix('#').unwrap_or(s).parse().map(Self)
            }
        }
    };
}
number_type!(DeployId);
number_type!(ApprovalId);

/// The number of a run, counted by one daemon from 1; shown as `#12`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl FromStr for RunId {
    type Err = std::num::ParseIntError;
    /// Takes `12` and `#12`.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.strip_prefix('#').unwrap_or(s).parse().map(RunId)
    }
}

/// One try at one step of one run; attempts count from 1. Names of outside things are made from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The run.
    pub run: RunId,
    /// The step in the run.
    pub step: StepName,
    /// Which try, from 1.
    pub attempt: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}/{}.{}", self.run, self.step, self.attempt)
    }
}

/// What tells one daemon's things in a shared engine from another's: 8 hex digits, made once with the state folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub String);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A Git object id in lower-case hex: 40 digits (SHA-1). All zeros stands for "no such object", as in hooks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Oid(String);

impl Oid {
    /// The id that hooks and webhooks use for "does not exist".
    pub fn zero() -> Self {
        Oid("0".repeat(40))
    }
    /// True for the id that stands for "does not exist".
    pub fn is_zero(&self) -> bool {
        self.0.bytes().all(|b| b == b'0')
    }
    /// All 40 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The first eight digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl FromStr for Oid {
    type Err = BadName;
    fn from_str(s: &str) -> Result<Self, BadName> {
        if s.len() == 40 && s.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Oid(s.to_ascii_lowercase()))
        } else {
            Err(BadName {
                what: "the commit id",
                shown: s.chars().take(40).flat_map(char::escape_debug).collect(),
                why: "is not 40 hex digits",
            })
        }
    }
}

impl<'de> Deserialize<'de> for Oid {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for bad in ["", "..", ".", "../x", "a/b", "-rf", "a\0b", "a b", "é", &"x".repeat(64)] {
            assert!(StepName::new(bad).is_err(), "{bad:?} was accepted");
            assert!(RepoName::new(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["test", "a.b", "x86_64-unit", "0", &"x".repeat(63)] {
            assert!(StepName::new(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_refused_name_is_shown_bounded_and_escaped() {
        let shown = StepName::new(format!("\u{1b}[31m{}", "a".repeat(5_000))).unwrap_err().to_string();
        assert!(shown.len() < 200 && !shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn run_numbers_are_read_with_and_without_the_hash() {
        assert_eq!("#12".parse::<RunId>().unwrap(), RunId(12));
        assert_eq!("12".parse::<RunId>().unwrap(), RunId(12));
        assert!("twelve".parse::<RunId>().is_err());
    }
}
