//! Steps of pipelines that keep data or bring it back. Called by the gates, for each attempt again by a later daemon: a backup
//! is asked for anew then, which does no harm, and a restore is found where it was left.
//!
//! In: the step, where its pipeline comes from, and the keeper. Out: how it ended. Which pipelines may touch a source, and
//! where it is restored to, stands in the source's file alone.

use crate::backup::keeper::{AskError, BackedUp, Keeper, Kind};
use crate::config::backup::Source;
use crate::engine::gate::GateAsk;
use crate::model::plan::{BackupStep, RestoreStep};
use crate::model::source_view::LastBackup;
use crate::model::{AttemptEnd, AttemptId, RunId, SourceName};
use crate::runtime::RuntimeError;
use crate::runtime::apart::CommandEnd;
use crate::runtime::process::{Alone, Task};
use crate::step::container::turned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// The engine ends a step when its own time is over; this is far behind that.
const PATIENCE: Duration = Duration::from_secs(7 * 86_400);
/// So many of the last words of a restore that failed say why.
const LAST_LINES: usize = 8;

/// How an attempt ended, and its outputs.
pub(in crate::daemon) type Ended = (AttemptEnd, BTreeMap<String, String>);

/// What steps need of the daemon.
#[derive(Clone)]
pub(in crate::daemon) struct DataSteps {
    keeper: Keeper,
    restores: Alone,
    program: PathBuf,
    config: PathBuf,
}

impl DataSteps {
    /// Restores are commands of this machine, kept in the state folder, that outlive the daemon.
    ///
    /// # Errors
    /// When this program's own file or the configuration's cannot be named.
    pub(in crate::daemon) fn new(keeper: Keeper, state: &Path, config: &Path) -> anyhow::Result<DataSteps> {
        use anyhow::Context as _;
        let program = std::env::current_exe().context("find this program's own file")?;
        let config = std::path::absolute(config).context("find the configuration")?;
        Ok(DataSteps { keeper, restores: Alone::new(state.join("restores"), program.clone()), program, config })
    }

    /// A base backup now; one that is under way already is as good.
    pub(in crate::daemon) async fn back_up(
        &self,
        ask: &GateAsk,
        step: &BackupStep,
        mut cancel: watch::Receiver<bool>,
    ) -> Ended {
        if let Err(why) = self.allowed(ask, &step.source, "back up") {
            return refused(why);
        }
        let taken = tokio::select! {
            taken = self.keeper.back_up(&step.source, Kind::Incremental) => taken,
            // The backup goes on: it is of use to everybody.
            () = turned(&mut cancel) => return (AttemptEnd::Cancelled, BTreeMap::new()),
        };
        match taken {
            Ok(BackedUp::Taken(LastBackup { id, began, ended, .. })) => {
                let outputs = [("backup", id), ("began", began.to_string()), ("ended", ended.to_string())];
                (AttemptEnd::Exited { code: 0 }, outputs.map(|(key, value)| (key.to_owned(), value)).into())
            }
            Ok(BackedUp::Failed(failed)) => recovery_failed(failed.words),
            Err(AskError::Unknown(known)) => refused(unknown(&step.source, &known)),
            Err(AskError::Busy) => {
                recovery_failed(format!("back up {}: what was asked for before was not begun yet", step.source))
            }
            Err(AskError::Stopping) => {
                recovery_failed(format!("back up {}: it is no longer tended, or the daemon stops", step.source))
            }
        }
    }

    /// What `mainstay restore` does, by that very command.
    pub(in crate::daemon) async fn restore(
        &self,
        ask: &GateAsk,
        step: &RestoreStep,
        mut cancel: watch::Receiver<bool>,
    ) -> Ended {
        let source = match self.allowed(ask, &step.source, "restore") {
            Ok(source) => source,
            Err(why) => return refused(why),
        };
        let server = source.logical.as_ref().and_then(|copies| copies.restore.as_ref()?.into.as_ref());
        if source.restore.is_none() && server.is_none() {
            return refused(format!(
                "restore {}: its file does not say where to\nhint: `restore:` in backups/{}.yml",
                step.source, step.source
            ));
        }
        let name = name(&ask.attempt);
        loop {
            let (script, environment) = (self.script(step), environment());
            let folder = self.config.parent().unwrap_or(Path::new("/"));
            let task = Task { name: &name, script: &script, folder, environment: &environment, leaves_servers: true };
            let ran = tokio::select! {
                ran = self.restores.run(&task, PATIENCE) => ran,
                () = turned(&mut cancel) => {
                    // What it wrote cannot be started by mistake, and another restore goes on with it.
                    if let Err(error) = self.restores.forget(&name).await {
                        tracing::warn!(attempt = %ask.attempt, %error, "failed to end a restore");
                    }
                    return (AttemptEnd::Cancelled, BTreeMap::new());
                }
            };
            return match ran {
                Ok(end) => told(&end),
                // The machine was restarted. A restore goes on where it was.
                Err(RuntimeError::Gone { .. }) => match self.restores.forget(&name).await {
                    Ok(()) => continue,
                    Err(error) => recovery_failed(format!("failed to {error}")),
                },
                Err(error) => recovery_failed(format!("failed to {error}")),
            };
        }
    }

    /// The restores that are kept, each with its run.
    pub(in crate::daemon) fn kept(&self) -> Result<Vec<(String, Option<RunId>)>, RuntimeError> {
        let run = |name: &str| name.split_once('-').and_then(|(run, _)| run.parse().ok()).map(RunId);
        Ok(self.restores.names()?.into_iter().map(|name| (name.clone(), run(&name))).collect())
    }

    /// Forgets a restore, which ends it where it is under way.
    pub(in crate::daemon) async fn forget(&self, name: &str) -> Result<(), RuntimeError> {
        self.restores.forget(name).await
    }

    /// The source, when the pipeline may touch it.
    fn allowed(&self, ask: &GateAsk, source: &SourceName, what: &str) -> Result<Source, String> {
        let found = self.keeper.source(source).map_err(|known| unknown(source, &known))?;
        let (repo, git_ref) = (&ask.trigger.repo, &ask.trigger.git_ref);
        if found.from.iter().any(|from| from.allows(repo, git_ref, &ask.pipeline)) {
            return Ok(found);
        }
        Err(format!(
            "{what} {source}: {repo}, {git_ref}, pipeline {} may not\nhint: `from` in backups/{source}.yml names who may",
            ask.pipeline
        ))
    }

    /// Everything in it is quoted: what stands in a step is no code.
    fn script(&self, step: &RestoreStep) -> String {
        let (option, value) = step.to.option();
        let state = value.map_or_else(|| format!("--{option}"), |value| quoted(&format!("--{option}={value}")));
        let (program, config) = (quoted(&self.program.to_string_lossy()), quoted(&self.config.to_string_lossy()));
        format!("exec {program} --config {config} restore {state} -- {}", step.source)
    }
}

/// What follows a mainstay of this daemon needs its surroundings: the store's credentials, what the files interpolate.
fn environment() -> Vec<(String, String)> {
    let told_by_the_service_manager = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID"];
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !told_by_the_service_manager.contains(&name.as_str()))
        .collect()
}

fn name(AttemptId { run, step, attempt }: &AttemptId) -> String {
    format!("{run}-{step}-{attempt}")
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn told(end: &CommandEnd) -> Ended {
    let said = why(&end.tail);
    match end.code {
        0 => (AttemptEnd::Exited { code: 0 }, BTreeMap::from([("report".to_owned(), end.stdout.trim().to_owned())])),
        // The documented codes of `mainstay restore`: what was asked for cannot be, or is not allowed.
        2 | 4 => refused(said),
        code => recovery_failed(format!("`mainstay restore` ended with {code}: {said}")),
    }
}

/// What the command says of its failure: a sentence, and lines with what to try, each once. Without that, its last words.
fn why(tail: &[String]) -> String {
    const FAILED: &str = "mainstay: failed to ";
    let Some(at) = tail.iter().rposition(|line| line.starts_with(FAILED)) else {
        return tail[tail.len().saturating_sub(LAST_LINES)..].join("\n");
    };
    let mut lines = vec![tail[at].trim_start_matches(FAILED)];
    for line in &tail[at + 1..] {
        if !lines.contains(&line.as_str()) {
            lines.push(line);
        }
    }
    lines.join("\n")
}

fn unknown(source: &SourceName, known: &[String]) -> String {
    let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
    format!("find the source {source}: the daemon tends none of this name; {known}")
}

fn refused(detail: String) -> Ended {
    (AttemptEnd::Refused { detail }, BTreeMap::new())
}

fn recovery_failed(detail: String) -> Ended {
    (AttemptEnd::RecoveryFailed { detail }, BTreeMap::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::RestoreTo;

    #[test]
    fn nothing_in_a_step_is_code() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("it's");
        let keeper = Keeper::new(watch::Sender::new(false).subscribe());
        let mut steps = DataSteps::new(keeper, &state, Path::new("/etc/mainstay/it's.yml")).unwrap();
        steps.program = PathBuf::from("/bin/echo");
        let step = RestoreStep {
            source: "shop-db".parse().unwrap(),
            to: RestoreTo::Point("a' $(touch /tmp/x) `id`; rm -rf '/".to_owned()),
        };
        let said = std::process::Command::new("sh").args(["-e", "-c", &steps.script(&step)]).output().unwrap();
        assert_eq!(
            String::from_utf8(said.stdout).unwrap(),
            "--config /etc/mainstay/it's.yml restore --point=a' $(touch /tmp/x) `id`; rm -rf '/ -- shop-db\n"
        );
    }

    #[test]
    fn a_restore_ends_as_its_exit_code_says() {
        let end = |code| CommandEnd { code, timed_out: false, stdout: String::new(), tail: vec!["why".to_owned()] };
        assert!(matches!(told(&end(0)).0, AttemptEnd::Exited { code: 0 }));
        assert!(matches!(told(&end(2)).0, AttemptEnd::Refused { detail } if detail == "why"));
        assert!(matches!(told(&end(1)).0, AttemptEnd::RecoveryFailed { detail } if detail.ends_with("why")));
        assert!(matches!(told(&end(137)).0, AttemptEnd::RecoveryFailed { .. }));
        let tail =
            ["[1/3] the base", "mainstay: failed to restore x: no", "and so on", "hint: a", "hint: b", "hint: a"];
        let tail = tail.map(str::to_owned).to_vec();
        assert_eq!(why(&tail), "restore x: no\nand so on\nhint: a\nhint: b");
        assert_eq!(why(&tail[..1]), "[1/3] the base");
    }
}
