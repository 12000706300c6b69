//! Exit codes, and the failure that carries one.

/// What the process says to its caller; the numbers are documented in the user guide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done and good.
    Good = 0,
    /// Done and bad: a failed run.
    Bad = 1,
    /// The request or a file is wrong.
    Wrong = 2,
    /// Something it needs cannot be reached.
    Unreachable = 3,
    /// Refused: rights, hold, freeze, approval missing.
    Refused = 4,
    /// Interrupted by the user.
    Interrupted = 130,
}

/// An error with its exit code and what to try next.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong, with its causes.
    pub error: anyhow::Error,
    /// What to try, a sentence each.
    pub hints: Vec<String>,
}

impl Failure {
    /// A failure with a code of its own.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Failure { exit, error: error.into(), hints: Vec::new() }
    }
    /// The request or a file is wrong.
    pub fn wrong(message: impl Into<String>) -> Self {
        Self::new(Exit::Wrong, anyhow::anyhow!(message.into()))
    }
    /// Something needed does not answer.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, anyhow::anyhow!(message.into()))
    }
    /// Adds what to try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl From<anyhow::Error> for Failure {
    /// An error nobody gave a code to is about the request or this machine: 2.
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Wrong, error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Wrong, error)
    }
}
