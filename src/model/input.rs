//! Values that a person may give along with a trigger or an approval.

use serde::{Deserialize, Serialize};

/// One input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub kind: InputKind,
    /// Its value when it is not given.
    pub default: Option<String>,
    /// It must be given.
    pub required: bool,
    /// What it is for, in words.
    pub description: Option<String>,
}

/// What an input takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InputKind {
    /// Any text.
    Text,
    /// `true` or `false`.
    Boolean,
    /// A decimal number.
    Number,
    /// One of these.
    Choice(Vec<String>),
}

impl InputKind {
    /// Checks a value.
    ///
    /// # Errors
    /// What would be right, as a fragment that fits after "must be".
    pub fn check(&self, value: &str) -> Result<(), String> {
        match self {
            InputKind::Text => Ok(()),
            InputKind::Boolean if matches!(value, "true" | "false") => Ok(()),
            InputKind::Boolean => Err("`true` or `false`".to_owned()),
            InputKind::Number if value.parse::<f64>().is_ok_and(f64::is_finite) => Ok(()),
            InputKind::Number => Err("a number".to_owned()),
            InputKind::Choice(options) if options.iter().any(|o| o == value) => Ok(()),
            InputKind::Choice(options) => Err(format!("one of {}", options.join(", "))),
        }
    }
}
