//! From an accepted inbox row to stored runs: fetch, read the pipeline files at that commit, plan, store.
//!
//! The runs and the end of their inbox row are one transaction; a daemon killed before it begins the row again, one
//! killed after it finds the row done. The branch is not read again.

use super::{Engine, EngineError, Origin, RepoSetup, Shared};
use crate::config::finding::{Finding, Findings};
use crate::config::pipeline::{self, Pipeline};
use crate::git::{GitError, Mirror};
use crate::model::ids::PipelineName;
use crate::model::trigger::CommitInfo;
use crate::model::{EventKind, Oid, Plan, RepoName, RunId, RunStatus, TriggerEvent};
use crate::plan;
use crate::store::{InboxRow, NewRun, StoreError};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where pipelines live in a repository: the first of these folders that exists.
pub const PIPELINE_FOLDERS: [&str; 2] = [".mainstay", "pipelines"];
/// A larger pipeline file is refused; hand-written ones stay far below.
const PIPELINE_MAX_BYTES: u64 = 1 << 20;
/// More pipeline files than this in one repository are refused: each costs a read at every push.
const PIPELINES_MAX: usize = 100;
/// Inbox rows looked at in one tick; the rest come with the next.
const ROWS_PER_TICK: usize = 256;

/// A pipeline file at a commit, good or not.
#[derive(Debug)]
pub struct PipelineFile {
    /// The pipeline's name.
    pub name: PipelineName,
    /// Its path in the repository.
    pub path: String,
    /// SHA-256 of its bytes, in hex.
    pub digest: String,
    /// What it says, or what is wrong with it.
    pub pipeline: Result<Pipeline, Findings>,
}

/// What a row came to.
enum Begun {
    Runs(Vec<RunId>, Vec<String>),
    /// The repository cannot be reached now; the row stays pending.
    Later(String),
}

impl Engine {
    /// Begins pending inbox rows, each repository in its own task and in order, so that a slow one holds up nobody.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn begin_pending(&self) -> Result<(), EngineError> {
        let mut by_repo: BTreeMap<RepoName, Vec<InboxRow>> = BTreeMap::new();
        for row in self.shared.store.pending_inbox(ROWS_PER_TICK).await? {
            by_repo.entry(row.repo.clone()).or_default().push(row);
        }
        for (repo, rows) in by_repo {
            if !self.shared.beginning().insert(repo.clone()) {
                continue;
            }
            let engine = self.clone();
            tokio::spawn(async move {
                for row in rows {
                    match engine.shared.begin(&row).await {
                        Ok(Begun::Runs(..)) => engine.shared.wake.notify_one(),
                        Ok(Begun::Later(why)) => {
                            tracing::warn!(repo = %row.repo, inbox = %row.id, why, "failed to fetch; will try again");
                            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
                            break;
                        }
                        // Somebody who waited for the answer began it meanwhile.
                        Err(EngineError::Store(StoreError::Conflict(_))) => {}
                        Err(error) => {
                            tracing::error!(repo = %row.repo, inbox = %row.id, %error, "failed to begin an inbox row");
                            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                            break;
                        }
                    }
                }
                engine.shared.beginning().remove(&repo);
                engine.shared.wake.notify_one();
            });
        }
        Ok(())
    }

    /// Begins one row now and says what it came to; for people who wait for the answer.
    ///
    /// # Errors
    /// When the store does not answer, or the repository cannot be reached.
    pub async fn begin_now(&self, row: &InboxRow) -> Result<(Vec<RunId>, Vec<String>), EngineError> {
        let begun = self.shared.begin(row).await;
        self.shared.wake.notify_one();
        match begun {
            Ok(Begun::Runs(runs, notes)) => Ok((runs, notes)),
            Ok(Begun::Later(why)) => Err(EngineError::NotNow(why)),
            // The loop was quicker: its runs are the answer.
            Err(EngineError::Store(StoreError::Conflict(_))) => {
                let note = self.shared.store.inbox_note(row.id).await?;
                Ok((self.shared.store.runs_of_inbox(row.id).await?, note.into_iter().collect()))
            }
            Err(error) => Err(error),
        }
    }
}

impl Shared {
    async fn begin(&self, row: &InboxRow) -> Result<Begun, EngineError> {
        let close = |note: String| async move {
            self.store.create_runs(Some(row.id), Vec::new(), Some(note.clone())).await?;
            self.announce();
            Ok(Begun::Runs(Vec::new(), vec![note]))
        };
        let Some(repo) = self.repo(&row.repo) else {
            return close(format!("`{}` is not in mainstay.yml", row.repo)).await;
        };
        if row.new.is_zero() {
            return close(format!("{} was deleted: nothing runs", row.git_ref)).await;
        }
        let (commit, files) = match self.read(&repo, row).await {
            Ok(read) => read,
            // Wrong credentials are mended in mainstay.yml: the push must not be lost until then.
            Err(error) if error.is_passing() || matches!(error, GitError::Denied { .. }) => {
                return Ok(Begun::Later(format!("failed to {error}")));
            }
            Err(error) => return close(format!("failed to {error}")).await,
        };
        if matches!(row.kind, EventKind::Push | EventKind::Tag) && asks_to_skip(&commit.message) {
            return close("the commit message says [skip ci]".into()).await;
        }
        let event = trigger_event(row, commit);
        let (runs, notes) = self.plan_runs(&event, files);
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        let ids = self.store.create_runs(Some(row.id), runs, note).await?;
        self.announce();
        Ok(Begun::Runs(ids, notes))
    }

    async fn read(&self, repo: &RepoSetup, row: &InboxRow) -> Result<(CommitInfo, Vec<PipelineFile>), GitError> {
        let Origin::Mirror { mirror, .. } = &repo.origin else {
            return Err(GitError::NotFound { what: "a mirror: this repository is a working tree".into() });
        };
        let (mirror, commit) = (Arc::clone(mirror), row.new.clone());
        let read = tokio::task::spawn_blocking(move || {
            mirror.ensure(&commit)?;
            // A tag may point at a tag object; what runs is the commit behind it.
            let info = mirror.commit_info(&commit)?;
            let files = pipelines_at(&mirror, &info.sha)?;
            Ok((info, files))
        });
        let lost = |panic| GitError::Git { doing: "read the repository".into(), detail: format!("{panic}") };
        read.await.map_err(lost)?
    }

    /// A run for every pipeline that the event starts, and a word on each that it does not start.
    fn plan_runs(&self, event: &TriggerEvent, files: Vec<PipelineFile>) -> (Vec<NewRun>, Vec<String>) {
        let settings = self.settings();
        let mut runs = Vec::new();
        let mut notes = Vec::new();
        if files.is_empty() {
            notes.push(format!(
                "no pipeline file in {} at {}",
                PIPELINE_FOLDERS.join("/ or "),
                event.commit.sha.short()
            ));
        }
        let known: Vec<String> = files.iter().map(|file| file.name.to_string()).collect();
        let mut asked_for_found = event.pipeline.is_none();
        for file in files {
            if event.pipeline.as_ref().is_some_and(|only| *only != file.name) {
                continue;
            }
            asked_for_found = true;
            match planned(&file, event, &settings.plan_defaults) {
                Planned::Run(plan, inputs) => {
                    let mut trigger = event.clone();
                    trigger.inputs = inputs;
                    runs.push(NewRun {
                        trigger,
                        plan,
                        status: RunStatus::Queued,
                        error: None,
                        retry_of: None,
                        carried: None,
                    });
                }
                Planned::Not(why) => notes.push(format!("{}: {why}", file.name)),
                Planned::Wrong(error) => runs.push(NewRun {
                    trigger: event.clone(),
                    plan: Plan { pipeline: file.name, file: file.path, digest: file.digest, steps: Vec::new() },
                    status: RunStatus::Errored,
                    error: Some(error),
                    retry_of: None,
                    carried: None,
                }),
            }
        }
        if let (false, Some(only)) = (asked_for_found, &event.pipeline) {
            notes.push(format!(
                "no pipeline `{only}` at {}; there are: {}",
                event.commit.sha.short(),
                known.join(", ")
            ));
        }
        (runs, notes)
    }

    fn beginning(&self) -> std::sync::MutexGuard<'_, BTreeSet<RepoName>> {
        self.beginning.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

enum Planned {
    Run(Plan, BTreeMap<String, String>),
    Not(String),
    Wrong(String),
}

fn planned(file: &PipelineFile, event: &TriggerEvent, defaults: &plan::Defaults) -> Planned {
    let pipeline = match &file.pipeline {
        Ok(pipeline) => pipeline,
        // Which events a broken file wants cannot be known: a push shows its author what is wrong with it.
        Err(findings) => return Planned::Wrong(findings.render(false)),
    };
    if let Err(why) = plan::matches(pipeline, event) {
        return Planned::Not(why);
    }
    let inputs = match event.kind {
        EventKind::Manual => match plan::inputs::check(pipeline, &event.inputs) {
            Ok(inputs) => inputs,
            Err(complaints) => return Planned::Not(complaints.join("; ")),
        },
        _ => plan::inputs::defaults(pipeline),
    };
    match plan::make(pipeline, &file.path, &file.digest, defaults) {
        Ok(plan) => Planned::Run(plan, inputs),
        Err(findings) => Planned::Wrong(findings.render(false)),
    }
}

/// Every pipeline file at a commit. Links are not followed: one in the folder is reported as a broken file.
///
/// # Errors
/// When the mirror cannot be read.
pub fn pipelines_at(mirror: &Mirror, commit: &Oid) -> Result<Vec<PipelineFile>, GitError> {
    let mut files = Vec::new();
    for folder in PIPELINE_FOLDERS {
        let Some(entries) = mirror.list_dir(commit, folder)? else { continue };
        for entry in entries {
            let path = format!("{folder}/{}", entry.name);
            let Some(stem) = entry.name.strip_suffix(".yml").or_else(|| entry.name.strip_suffix(".yaml")) else {
                continue;
            };
            if files.len() == PIPELINES_MAX {
                let detail = format!("it holds more than {PIPELINES_MAX} pipeline files");
                return Err(GitError::Git { doing: format!("read {folder}"), detail });
            }
            files.push(read_pipeline(mirror, commit, stem, path));
        }
        break;
    }
    Ok(files)
}

fn read_pipeline(mirror: &Mirror, commit: &Oid, stem: &str, path: String) -> PipelineFile {
    let broken = |name: PipelineName, digest: String, message: String| PipelineFile {
        name,
        path: path.clone(),
        digest,
        pipeline: Err(Findings::new(&path, "", vec![Finding::general(message)])),
    };
    let name = match PipelineName::new(stem) {
        Ok(name) => name,
        Err(bad) => {
            let safe: String = stem.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
            let stand_in = PipelineName::new(format!("x{safe}"));
            return match stand_in {
                Ok(name) => broken(name, String::new(), bad.to_string()),
                // `x` and letters and digits are always a name; said for the compiler, not for anybody's run.
                Err(never) => unreachable!("{never}"),
            };
        }
    };
    match mirror.read_file(commit, &path, PIPELINE_MAX_BYTES) {
        Err(error) => broken(name, String::new(), format!("failed to {error}")),
        Ok(None) => broken(name, String::new(), "the file is not there".into()),
        Ok(Some(bytes)) => {
            let digest = hex::encode(Sha256::digest(&bytes));
            match String::from_utf8(bytes) {
                Err(_) => broken(name, digest, "the file is not UTF-8 text".into()),
                Ok(text) => {
                    let pipeline = pipeline::parse(name.clone(), &path, &text);
                    PipelineFile { name, path, digest, pipeline }
                }
            }
        }
    }
}

fn trigger_event(row: &InboxRow, commit: CommitInfo) -> TriggerEvent {
    TriggerEvent {
        repo: row.repo.clone(),
        kind: row.kind,
        git_ref: row.git_ref.clone(),
        before: matches!(row.kind, EventKind::Push | EventKind::Tag).then(|| row.old.clone()),
        actor: row.actor.clone(),
        pipeline: row.pipeline.clone(),
        inputs: row.inputs.clone(),
        at: row.at,
        commit,
    }
}

/// The usual words, anywhere in the message and in any case.
fn asks_to_skip(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["[skip ci]", "[ci skip]", "[no ci]"].iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::asks_to_skip;

    #[test]
    fn skip_ci_is_seen_in_every_usual_spelling() {
        assert!(asks_to_skip("docs\n\n[CI Skip]"));
        assert!(asks_to_skip("[skip ci] typo"));
        assert!(!asks_to_skip("skip ci without brackets"));
    }
}
