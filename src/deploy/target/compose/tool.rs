//! The Compose tool: which one is installed, and how it is started so that it outlives this daemon.

use super::{Compose, FILE, Project, TargetError, bad};
use crate::deploy::shell;
use crate::deploy::target::{Apply, Left};
use crate::logs::mask::Masker;
use crate::runtime::RuntimeError;
use crate::runtime::apart::CommandEnd;
use crate::runtime::process::Task;
use std::time::{Duration, Instant};

/// A program that prints its version; one written in Python takes seconds on a busy machine.
const VERSION_WITHIN: Duration = Duration::from_secs(30);

/// An installed Compose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tool {
    /// How it is called, as shell text.
    pub(super) call: &'static str,
    /// Its name and version, for people.
    pub(super) version: String,
}

/// What it is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Make everything, and start nothing.
    Create,
    /// Make what is absent or other than it should be, and start it.
    Up,
}

/// The plugin of the engine's client, or else the program of its own. Asked until there is one, and then never again.
pub(super) async fn find() -> Result<Tool, TargetError> {
    static FOUND: tokio::sync::OnceCell<Tool> = tokio::sync::OnceCell::const_new();
    FOUND.get_or_try_init(look_for).await.cloned()
}

async fn look_for() -> Result<Tool, TargetError> {
    for (call, name) in [("docker compose", "docker compose"), ("docker-compose", "docker-compose")] {
        let line = format!("{call} version --short");
        let line = shell::Line { line: &line, folder: None, environment: &[], timeout: VERSION_WITHIN };
        if let Ok(ended) = shell::run(&line).await
            && ended.code == Some(0)
        {
            return Ok(Tool { call, version: format!("{name} {}", ended.stdout.trim()) });
        }
    }
    Err(TargetError::Missing(
        "find the Compose tool: neither `docker compose` nor `docker-compose` answers\nhint: install the package docker-compose-plugin, or docker-compose"
            .to_owned(),
    ))
}

/// A word that the shell reads as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What went wrong, with the last lines that were printed.
pub(super) fn why(what: &str, end: &CommandEnd) -> String {
    let how = if end.timed_out { "took too long and was stopped" } else { "failed" };
    let lines = end.tail.join("\n  ");
    match end.tail.is_empty() {
        true => format!("{what} {how} (exit code {}), and printed nothing", end.code),
        false => format!("{what} {how} (exit code {}); it printed last:\n  {lines}", end.code),
    }
}

impl Compose {
    /// Has the tool do something with a project, to its end. One that a daemon left running is waited for first; both
    /// acts may happen twice.
    pub(super) async fn compose(
        &self,
        apply: &Apply<'_>,
        project: &Project,
        act: Act,
        until: Instant,
    ) -> Result<(), TargetError> {
        let tool = find().await?;
        let folder = self.folder(&project.name);
        let file = folder.join(FILE);
        let options = match act {
            Act::Create => "--no-start --no-build --remove-orphans",
            Act::Up => "--detach --no-build --remove-orphans",
        };
        let script = format!(
            "exec {} --project-name {} --file {} --project-directory {} up {options}",
            tool.call,
            quoted(&project.name),
            quoted(&file.display().to_string()),
            quoted(&folder.display().to_string()),
        );
        let mut environment: Vec<(String, String)> =
            apply.secrets.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let host = self.parts.config.host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
        environment.extend(host.map(|host| ("DOCKER_HOST".to_owned(), host)));
        let name = format!("{}-{}", apply.name, if act == Act::Create { "create" } else { "up" });
        let task =
            Task { name: &name, script: &script, folder: &folder, environment: &environment, leaves_servers: false };
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let error = |error: RuntimeError| bad(format!("failed to {error}"), Left::Mixed);
        if self.alone.has_begun(&name).map_err(error)? {
            // Begun by a daemon that was killed. However it ended, it is asked anew: something may have changed since.
            let _ = self.alone.run(&task, left()).await;
            self.alone.forget(&name).await.map_err(error)?;
        }
        let ended = self.alone.run(&task, left()).await;
        self.alone.forget(&name).await.map_err(error)?;
        let mut end = ended.map_err(error)?;
        if end.code == 0 && !end.timed_out {
            return Ok(());
        }
        let masker = Masker::new(apply.secrets.values().map(|value| value.clone().into_bytes()));
        for line in &mut end.tail {
            *line = String::from_utf8_lossy(&masker.mask_line(line.as_bytes())).into_owned();
        }
        Err(bad(why(&format!("`{} up`", tool.call), &end), Left::Mixed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_tool_as_they_are() {
        assert_eq!(quoted("/srv/it's here"), "'/srv/it'\\''s here'");
    }

    #[tokio::test]
    async fn an_installed_tool_is_found() {
        let tool = find().await.expect("`docker compose` or `docker-compose` is needed by this test");
        assert!(tool.version.contains("compose "), "{tool:?}");
    }
}
