//! The environment every step is given: `CI_*`, inputs, its own `environment`, its secrets.

use crate::config::secret::Secret;
use crate::model::plan::PlannedStep;
use crate::model::{RunId, TriggerEvent};
use std::collections::BTreeMap;

/// Commit messages longer than this are cut in `CI_COMMIT_MESSAGE`: the kernel takes at most 128 KiB for one variable.
const MESSAGE_MAX_BYTES: usize = 16 * 1024;

/// What the variables are made from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The run.
    pub run: RunId,
    /// What made it.
    pub trigger: &'a TriggerEvent,
    /// Where people see the run; empty without `server.public-url`.
    pub url: String,
    /// The state of the run as this step sees it.
    pub status: &'static str,
}

/// Everything in the order in which later entries win: `CI_*` can be overridden by nobody, so it comes last.
pub fn environment(
    facts: &Facts<'_>,
    step: &PlannedStep,
    own: BTreeMap<String, String>,
    secrets: &BTreeMap<String, Secret>,
) -> Vec<(String, String)> {
    let mut all = own;
    for name in &step.secrets {
        if let Some(secret) = secrets.get(name) {
            all.insert(name.clone(), secret.expose().to_owned());
        }
    }
    all.extend(ci_variables(facts, step));
    all.into_iter().collect()
}

fn ci_variables(facts: &Facts<'_>, step: &PlannedStep) -> BTreeMap<String, String> {
    let trigger = facts.trigger;
    let commit = &trigger.commit;
    let mut vars = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        vars.insert(name.to_owned(), value.to_owned());
    };
    set("CI", "true");
    set("CI_REPO", trigger.repo.as_str());
    set("CI_COMMIT_SHA", commit.sha.as_str());
    set("CI_COMMIT_BRANCH", trigger.branch().unwrap_or(""));
    set("CI_COMMIT_TAG", trigger.tag().unwrap_or(""));
    set("CI_COMMIT_MESSAGE", cut(&commit.message, MESSAGE_MAX_BYTES));
    set("CI_COMMIT_AUTHOR", &commit.author);
    set("CI_RUN_NUMBER", &facts.run.to_string());
    set("CI_RUN_EVENT", trigger.kind.as_str());
    set("CI_RUN_STATUS", facts.status);
    set("CI_RUN_URL", &facts.url);
    set("CI_STEP_NAME", step.name.as_str());
    for (name, value) in &trigger.inputs {
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
        set(&format!("CI_INPUT_{name}"), value);
    }
    // A NUL cannot be in an environment, and a commit message may hold one.
    for value in vars.values_mut() {
        value.retain(|c| c != '\0');
    }
    vars
}

/// The longest prefix of at most `max` bytes that ends at a character.
fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max { text } else { &text[..text.floor_char_boundary(max)] }
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(cut("héllo", 2), "h");
        assert_eq!(cut("héllo", 3), "hé");
        assert_eq!(cut("ok", 9), "ok");
    }
}
