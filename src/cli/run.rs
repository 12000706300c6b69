//! `mainstay run`: a pipeline here and now, from the working tree, by the daemon's own engine and without a daemon.

use super::exit::{Exit, Failure};
use super::logs::{Printer, Wish};
use super::{Context, show, words};
use crate::config::daemon::{Daemon, RuntimeChoice};
use crate::config::pipeline;
use crate::daemon::wire;
use crate::engine::{Engine, Origin, RepoSetup, Settings};
use crate::git::{WorkingTree, working_tree};
use crate::logs::hub::LogStore;
use crate::model::api::{LogLineView, RunDetail};
use crate::model::ids::PipelineName;
use crate::model::{
    Asker, AttemptEnd, AttemptId, EventKind, Plan, RepoName, RunId, RunStatus, StepName, StepOutcome, TriggerEvent,
};
use crate::plan;
use crate::store::{NewRun, Store};
use futures_util::StreamExt;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Run a pipeline here, from the working tree, without a daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay run .mainstay/build.yml            files as they are, also uncommitted ones; ignored ones stay out
  mainstay run .mainstay/release.yml --input level=full
Exit code 1 when the run fails. Nothing is left behind but what the steps sent elsewhere.")]
pub struct Args {
    /// The pipeline file
    file: PathBuf,
    /// An input of `on.manual.inputs`, as KEY=VALUE
    #[arg(long = "input", value_name = "KEY=VALUE", value_parser = words::key_value)]
    inputs: Vec<(String, String)>,
    /// Run the steps as plain processes of yours instead of containers: no isolation at all
    #[arg(long)]
    process: bool,
}

/// Runs the command.
///
/// # Errors
/// When the file is wrong, or the engine cannot be reached.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let (text, name) = read(&args.file)?;
    let folder = args.file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let tree = working_tree(folder).map_err(|error| Failure::wrong(error.to_string()))?;
    let plan = plan(&args.file, &text, name, args, context)?;
    let scratch = Scratch::new()?;
    let store = Store::open(&scratch.0).map_err(anyhow::Error::from)?;
    let config = config(args, context, &scratch.0)?;
    let runtime = wire::runtime(&config, store.instance())?;
    runtime.ping().await.map_err(|error| Failure::unreachable(error.to_string()).hint("mainstay doctor"))?;

    let wake = Arc::new(Notify::new());
    // Nothing is made ready for a next run: there is none.
    let settings = Settings { keep_spaces_ready: false, keep: None, ..wire::settings(&config) };
    let engine = Engine::new(store, LogStore::new(&scratch.0), settings.clone(), wake.clone());
    let repo = repo_name(&tree)?;
    let setup = RepoSetup {
        runtime: Arc::clone(&runtime),
        origin: Origin::Folder(tree.root.clone()),
        secrets: BTreeMap::new(),
    };
    engine.configure(BTreeMap::from([(repo.clone(), setup)]), settings);
    let id = begin(&engine, repo, &tree, plan).await?;
    let status = drive(&engine, id, &wake, context).await;
    engine.stop().await;
    // Whatever is left after a failure above; a run that ended has closed itself.
    if let Err(error) = runtime.sweep(None).await {
        context.ui.say(format!("mainstay: failed to clean up: {error}"));
    }
    runtime.drain_pool().await;
    let detail = engine.run_detail(id).await.map_err(anyhow::Error::from)?;
    let status = status?;
    let refused = detail.as_ref().is_some_and(was_refused);
    if let Some(detail) = detail {
        tell(context, &detail);
    }
    Ok(match status {
        RunStatus::Succeeded => Exit::Good,
        RunStatus::Failed if refused => Exit::Refused,
        RunStatus::Cancelled => Exit::Interrupted,
        _ => Exit::Bad,
    })
}

fn read(file: &Path) -> Result<(String, PipelineName), Failure> {
    let text = crate::config::read_file(file).map_err(|finding| {
        let why = finding.message.trim_start_matches("the file cannot be read: ");
        Failure::wrong(format!("read {}: {why}", file.display()))
    })?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = PipelineName::new(stem).map_err(|bad| Failure::wrong(bad.to_string()))?;
    Ok((text, name))
}

fn plan(
    file: &Path,
    text: &str,
    name: PipelineName,
    args: &Args,
    context: &Context,
) -> Result<(Plan, BTreeMap<String, String>), Failure> {
    let shown = file.display().to_string();
    let wrong = |findings: crate::config::Findings| {
        context.ui.say(findings.render(context.ui.color_err));
        Failure::wrong(format!("run {shown}: the file is wrong"))
    };
    let pipeline = pipeline::parse(name, &shown, text).map_err(wrong)?;
    let digest = hex::encode(Sha256::digest(text.as_bytes()));
    let plan = plan::make(&pipeline, &shown, &digest, &plan::Defaults::default()).map_err(wrong)?;
    if let Some(step) = plan.steps.iter().find(|step| !step.secrets.is_empty()) {
        return Err(Failure::wrong(format!("run `{}` here: it wants the secret `{}`", step.name, step.secrets[0]))
            .hint("secrets are given to steps by the daemon only"));
    }
    let given: BTreeMap<String, String> = args.inputs.iter().cloned().collect();
    let inputs = match (pipeline.on.manual.is_some(), given.is_empty()) {
        // A pipeline that is not for people may still be tried by one.
        (false, true) => BTreeMap::new(),
        _ => plan::inputs::check(&pipeline, &given).map_err(|complaints| {
            Failure::wrong(format!("run {shown} with these inputs: {}", complaints.join("; ")))
                .hint("give them as `--input KEY=VALUE`")
        })?,
    };
    Ok((plan, inputs))
}

/// The daemon's configuration where there is one, for its runtime and limits; else the defaults.
fn config(args: &Args, context: &Context, scratch: &Path) -> Result<Daemon, Failure> {
    let found = context.place.config.as_deref().and_then(|path| crate::config::daemon::load(path).ok());
    let mut config = match found {
        Some(config) => config,
        None => crate::config::daemon::parse("built-in", "repos: {}\n", &|_| None, scratch)
            .map_err(|findings| Failure::wrong(findings.render(false)))?,
    };
    config.state = scratch.to_owned();
    if args.process {
        config.runtime = RuntimeChoice::Process;
    }
    Ok(config)
}

fn repo_name(tree: &WorkingTree) -> Result<RepoName, Failure> {
    let name = tree.root.file_name().unwrap_or_default().to_string_lossy();
    let fallback = RepoName::new("here");
    RepoName::new(name).or(fallback).map_err(|bad| Failure::wrong(bad.to_string()))
}

async fn begin(
    engine: &Engine,
    repo: RepoName,
    tree: &WorkingTree,
    (plan, inputs): (Plan, BTreeMap<String, String>),
) -> Result<RunId, Failure> {
    let trigger = TriggerEvent {
        repo,
        kind: EventKind::Manual,
        git_ref: tree.git_ref.clone(),
        commit: tree.head.clone(),
        before: None,
        actor: std::env::var("USER").ok(),
        pipeline: None,
        inputs,
        at: Timestamp::now(),
    };
    let new = NewRun { trigger, plan, status: RunStatus::Queued, error: None, retry_of: None, carried: None };
    let runs = engine.store().create_runs(None, vec![new], None).await.map_err(anyhow::Error::from)?;
    runs.first().copied().ok_or_else(|| Failure::wrong("store the run"))
}

/// Drives the run and prints its lines as they come. Ctrl-C cancels it, a second one leaves at once.
async fn drive(engine: &Engine, run: RunId, wake: &Notify, context: &Context) -> Result<RunStatus, Failure> {
    let mut changes = engine.changes();
    let (sender, mut lines) = mpsc::channel(256);
    let mut followed: BTreeSet<(StepName, u32)> = BTreeSet::new();
    let mut printer = None;
    let mut cancelled = false;
    // Dropped when the run is over, so that the channel ends with its last follower.
    let mut sender = Some(sender);
    loop {
        engine.tick().await.map_err(anyhow::Error::from)?;
        let detail = engine.run_detail(run).await.map_err(anyhow::Error::from)?;
        let Some(detail) = detail else { return Err(Failure::wrong("find the run")) };
        let printer = printer.get_or_insert_with(|| Printer::new(context, &detail, &Wish::default()));
        for step in detail.steps.iter().filter(|step| step.has_log()) {
            for attempt in &step.attempts {
                if let Some(sender) = &sender
                    && followed.insert((step.name.clone(), attempt.attempt))
                {
                    follow(
                        engine,
                        AttemptId { run, step: step.name.clone(), attempt: attempt.attempt },
                        sender.clone(),
                    );
                }
            }
        }
        if detail.summary.status.is_final() {
            drop(sender.take());
            while let Some(line) = lines.recv().await {
                printer.print(&line);
            }
            while !engine.is_idle() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            return Ok(detail.summary.status);
        }
        tokio::select! {
            Some(line) = lines.recv() => {
                printer.print(&line);
                while let Ok(line) = lines.try_recv() {
                    printer.print(&line);
                }
            }
            _ = changes.changed() => {}
            () = wake.notified() => {}
            _ = tokio::signal::ctrl_c() => {
                if std::mem::replace(&mut cancelled, true) {
                    return Ok(RunStatus::Cancelled);
                }
                context.ui.say("stopping; once more leaves at once");
                engine.cancel(run, &Asker::signal("Ctrl-C")).await.map_err(anyhow::Error::from)?;
            }
        }
    }
}

fn follow(engine: &Engine, id: AttemptId, sender: mpsc::Sender<LogLineView>) {
    let lines = engine.logs().follow(&id, 1);
    tokio::spawn(async move {
        let mut lines = std::pin::pin!(lines);
        while let Some(Ok(line)) = lines.next().await {
            let view = LogLineView::new(&id, line);
            if sender.send(view).await.is_err() {
                return;
            }
        }
    });
}

/// Whether a step was refused, and nothing else failed.
fn was_refused(detail: &RunDetail) -> bool {
    let failed = detail.steps.iter().filter(|step| step.outcome == Some(StepOutcome::Failed));
    let mut ends = failed.map(|step| step.attempts.last().and_then(|last| last.end.as_ref())).peekable();
    ends.peek().is_some() && ends.all(|end| matches!(end, Some(AttemptEnd::Refused { .. })))
}

fn tell(context: &Context, detail: &RunDetail) {
    if context.ui.json {
        context.ui.json(detail);
        return;
    }
    context.ui.say("");
    for line in show::graph(&context.ui, detail, Timestamp::now()) {
        context.ui.say(line);
    }
    if let Some(error) = &detail.summary.error {
        context.ui.say(format!("mainstay: {error}"));
    }
}

/// A state folder for this run only, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let random = getrandom::u64().map_err(|error| Failure::wrong(format!("get random bytes: {error}")))?;
        let path = std::env::temp_dir().join(format!("mainstay-run-{random:016x}"));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
