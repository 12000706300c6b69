//! Commands of this machine around a deploy: hooks, and the version of a database schema. `mainstay.yml` alone names them.

use super::shell::{self, Line};
use super::{DeployError, Setup, Shared};
use crate::model::EnvironmentName;
use crate::model::deploy::Release;
use std::collections::BTreeMap;
use std::time::Duration;

/// A hook that takes longer is stopped: a deploy waits for it, and with it the environment.
const WITHIN: Duration = Duration::from_secs(600);
/// So much of a line is shown when it fails.
const SHOWN_CHARS: usize = 120;

/// What a command is told about the deploy, as variables.
pub(super) fn environment(release: &Release, previous: Option<u64>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::from([
        ("MAINSTAY_ENVIRONMENT".to_owned(), release.environment.to_string()),
        ("MAINSTAY_RELEASE".to_owned(), release.number.to_string()),
        ("MAINSTAY_COMMIT".to_owned(), release.provenance.commit.to_string()),
        ("MAINSTAY_REPO".to_owned(), release.provenance.repo.to_string()),
    ]);
    variables.extend(previous.map(|number| ("MAINSTAY_PREVIOUS_RELEASE".to_owned(), number.to_string())));
    variables
}

/// Runs lines one after the other, up to the first that fails; what they printed, or why one failed in words.
pub(super) async fn run(lines: &[String], variables: &BTreeMap<String, String>) -> Result<String, String> {
    let environment: Vec<_> = variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut said = String::new();
    for line in lines {
        let shown: String = line.chars().take(SHOWN_CHARS).collect();
        let ended = shell::run(&Line { line, folder: None, environment: &environment, timeout: WITHIN }).await;
        let ended = ended.map_err(|error| format!("`{shown}` cannot be started: {error}"))?;
        let last = ended.last_line().unwrap_or("it said nothing").to_owned();
        match ended.code {
            Some(0) => said.push_str(&ended.stdout),
            Some(code) => return Err(format!("`{shown}` ended with {code}: {last}")),
            None => return Err(format!("`{shown}` did not end within {} s: {last}", WITHIN.as_secs())),
        }
    }
    Ok(said)
}

impl Shared {
    /// Why the schema of the database does not let an environment go back to a release, in words. The version that the
    /// release worked with is what was found when the one after it was made.
    pub(super) async fn schema_bars(
        &self,
        setup: &Setup,
        name: &EnvironmentName,
        to: u64,
    ) -> Result<Option<String>, DeployError> {
        let Some(schema) = &setup.config.schema else { return Ok(None) };
        let (Some(back), Some(after)) = (self.store.release(name, to).await?, self.store.release(name, to + 1).await?)
        else {
            return Ok(None);
        };
        let mut variables = environment(&back.release, None);
        let now = match run(std::slice::from_ref(&schema.version), &variables).await {
            Ok(version) => version.trim().to_owned(),
            Err(why) => return Ok(Some(format!("the schema's version is not known: {why}"))),
        };
        let then = after.release.schema.clone().unwrap_or_default();
        if now == then {
            return Ok(None);
        }
        variables.extend([("FROM".to_owned(), now.clone()), ("TO".to_owned(), then.clone())]);
        let barred = match &schema.reversible {
            None => "nothing says that the way back is safe".to_owned(),
            Some(line) => match run(std::slice::from_ref(line), &variables).await {
                Ok(_) => return Ok(None),
                Err(why) => why,
            },
        };
        Ok(Some(format!(
            "the schema moved from `{then}` to `{now}` since release {to}, and cannot go back ({barred})\nhint: code and data together: `mainstay restore --all --to-release {name}/{to}`, then `mainstay rollback {name} --to {to}`"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_run_until_one_fails_and_the_last_word_is_told() {
        let none = BTreeMap::new();
        assert_eq!(run(&[], &none).await, Ok(String::new()));
        let named = BTreeMap::from([("MAINSTAY_RELEASE".to_owned(), "7".to_owned())]);
        assert_eq!(run(&["echo $MAINSTAY_RELEASE".into()], &named).await, Ok("7\n".into()));
        let why = run(&["echo first".into(), "echo why >&2; exit 3".into(), "touch /never".into()], &none).await;
        assert_eq!(why, Err("`echo why >&2; exit 3` ended with 3: why".into()));
    }
}
