//! Exit codes, and the failure that carries one: here an error becomes text, once.

use super::ui::{Tone, Ui};
use std::process::ExitCode;

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

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
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
    /// Files do not say what they must; what is wrong with them stands for itself.
    pub fn of_files(findings: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::new(Exit::Wrong, anyhow::Error::new(findings).context("use what the files say"))
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

    /// The error with its causes in one sentence, and all hints: those added here and those that rooms write as
    /// `hint:` lines into their messages.
    pub(super) fn told(&self) -> (String, Vec<String>) {
        let mut sentence = String::new();
        let mut hints = Vec::new();
        for cause in self.error.chain() {
            let text = cause.to_string();
            let mut words = Vec::new();
            for line in text.lines() {
                match line.trim_start().strip_prefix("hint:") {
                    Some(hint) => hints.push(hint.trim().to_owned()),
                    None => words.push(line),
                }
            }
            let words = words.join("\n");
            // Many causes repeat what the error above them already says.
            if words.is_empty() || sentence.contains(&words) {
                continue;
            }
            if !sentence.is_empty() {
                sentence.push_str(": ");
            }
            sentence.push_str(&words);
        }
        hints.extend(self.hints.iter().cloned());
        hints.dedup();
        (sentence, hints)
    }

    /// Writes the failure to stderr: text, or with `--json` one JSON document. Stdout stays empty, so that whoever
    /// reads it never takes an error for data.
    pub fn render(&self, ui: &Ui) {
        let (sentence, hints) = self.told();
        if ui.json {
            let document = serde_json::json!({ "error": sentence, "hints": hints, "exit": self.exit as u8 });
            ui.complain(document.to_string());
            return;
        }
        ui.complain(format!("{} failed to {sentence}", ui.paint_err(Tone::Bad, "mainstay:")));
        for hint in hints {
            ui.complain(format!("{} {hint}", ui.paint_err(Tone::Strong, "hint:")));
        }
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

/// Arguments that do not parse, or a wish for help: clap has the words.
pub(super) fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let mut parts = text.trim().strip_prefix("error: ").unwrap_or(text.trim()).splitn(2, '\n');
        let sentence = parts.next().unwrap_or_default();
        let document =
            serde_json::json!({ "error": sentence, "hints": ["see `mainstay --help`"], "exit": Exit::Wrong as u8 });
        Ui::new(true, "never", 0).complain(document.to_string());
    } else {
        // A closed pipe is no reason to fail: nobody reads.
        let _ = error.print();
    }
    // A command without arguments gets its help on stderr: asked for nothing is a wrong request.
    if error.use_stderr() { Exit::Wrong.into() } else { Exit::Good.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_make_one_sentence_and_their_hints_come_last() {
        let error = anyhow::anyhow!("open the state database: it is newer\nhint: run the newer Mainstay")
            .context("start the daemon");
        let (sentence, hints) = Failure::from(error).hint("see the log").told();
        assert_eq!(sentence, "start the daemon: open the state database: it is newer");
        assert_eq!(hints, ["run the newer Mainstay", "see the log"]);
    }

    #[test]
    fn what_is_wrong_with_files_makes_a_sentence_too() {
        let finding = crate::config::Finding::general("the file cannot be read: it is a socket");
        let findings = crate::config::Findings::new("backups/a.yml", "", vec![finding]);
        let (sentence, _) = Failure::of_files(findings).told();
        assert_eq!(
            sentence,
            "use what the files say: error: the file cannot be read: it is a socket\n--> backups/a.yml"
        );
    }

    #[test]
    fn a_cause_that_repeats_its_parent_is_told_once() {
        let error = Err::<(), _>(std::io::Error::other("disk on fire")).context("read x: disk on fire").unwrap_err();
        assert_eq!(Failure::from(error).told().0, "read x: disk on fire");
    }
}
