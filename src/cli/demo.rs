//! `mainstay demo`: the whole way from a push to its result, on this machine, in a folder of its own.
//!
//! Enters a project (a folder, or the small one in the binary); leaves two finished runs on the screen, one good and
//! one with a broken test. Everything is done by the commands a user would type, so what is seen is what users get.
//! The daemon is a child that is stopped, and waited for, however the demo ends. Here is the story; its `folder`, its
//! `project`, the `process`es it runs and the `telling` are below.

mod folder;
mod process;
mod project;
mod telling;

use super::exit::{Exit, Failure};
use super::ui::Ui;
use crate::model::api::RunSummary;
use anyhow::{Context, anyhow};
use folder::Folder;
use process::{Interrupted, LOOK, listen_for_signals, pause};
use project::BUILT_IN_IMAGE;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// See two pushes run on this machine: one passes, one breaks a test
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay demo
  mainstay demo --image busybox --dir /tmp/try")]
pub struct Args {
    /// A project to push: a folder with `source/` (the first commit, with its pipeline) and `break.patch` (the second)
    /// [default: a word counter of ten lines]
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// The image for the built-in project's steps; it needs a shell and the usual small commands
    #[arg(long, value_name = "IMAGE", default_value = BUILT_IN_IMAGE, conflicts_with = "project")]
    image: String,
    /// Where to put the repository, the working tree and the daemon's state [default: ./mainstay-demo]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// From the end of the push to a stored run: milliseconds with the hook, and one poll without it.
const RUN_APPEARS: Duration = Duration::from_secs(30);

/// Runs the command.
///
/// # Errors
/// When Git or the engine is missing, the folder is somebody else's, or a run does not end as it should.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit, Failure> {
    listen_for_signals()?;
    let folder = Folder::take(args.dir.as_deref())?;
    let demo = Demo::new(folder, ui)?;
    match play(&demo, args) {
        Err(failure) if failure.error.is::<Interrupted>() => {
            ui.say("interrupted; the demo's daemon has been stopped");
            Ok(Exit::Interrupted)
        }
        other => other,
    }
}

/// The story, stage by stage.
fn play(demo: &Demo<'_>, args: &Args) -> Result<Exit, Failure> {
    demo.title("A repository with a project and its pipeline");
    let patch = demo.make_project(args)?;
    demo.make_repository()?;
    demo.write_config()?;
    for file in demo.pipelines()? {
        demo.mainstay(&["validate", &file])?.good()?;
        demo.mainstay(&["graph", &file])?.good()?;
    }

    demo.title("A daemon that watches it");
    let daemon = demo.start_daemon()?;
    demo.mainstay(&["hook", "install", &demo.folder.bare().to_string_lossy()])?.good()?;

    demo.title("A push");
    let first = demo.push_and_follow()?;
    if !first.good {
        return Err(Failure::new(Exit::Bad, anyhow!("get the first run through: run {} failed", first.run))
            .hint(format!("the daemon's log is in {}", demo.folder.log().display())));
    }

    demo.title("A push that breaks a test");
    demo.git(&["am", "--quiet", &patch.to_string_lossy()])?.good()?;
    demo.git(&["show", "--unified=1", "--format=%s", "HEAD"])?.good()?;
    let second = demo.push_and_follow()?;
    if second.good {
        return Err(Failure::new(Exit::Bad, anyhow!("see run {} fail: its broken test passed", second.run)));
    }
    demo.say("That is what was to be seen: the run failed, and `logs --follow` left with exit code 1.");
    demo.mainstay(&["runs"])?.good()?;

    demo.title("Stopping the daemon");
    daemon.stop()?;
    demo.next_steps(second.run);
    if demo.ui.json {
        demo.ui.json(&serde_json::json!({
            "dir": demo.folder.path, "runs": [
                { "id": first.run, "exit": 0 }, { "id": second.run, "exit": 1 },
            ],
        }));
    }
    Ok(Exit::Good)
}

/// How a followed run ended.
struct Followed {
    run: u64,
    good: bool,
}

struct Demo<'a> {
    ui: &'a Ui,
    folder: Folder,
    /// This very binary.
    program: PathBuf,
}

impl<'a> Demo<'a> {
    fn new(folder: Folder, ui: &'a Ui) -> Result<Self, Failure> {
        let program = std::env::current_exe().context("find this program's own file")?;
        Ok(Demo { ui, folder, program })
    }

    fn push_and_follow(&self) -> Result<Followed, Failure> {
        // Without the counters that Git would draw for a terminal.
        self.shown("git", self.folder.git(&["push", "--no-progress", "origin", "main"]), "push origin main")?.good()?;
        let run = self.run_of_head()?;
        let good = match self.mainstay(&["logs", &run.to_string(), "--follow"])?.0.code() {
            Some(0) => true,
            Some(1) => false,
            _ => return Err(self.daemon_failure(&format!("follow run {run}"))),
        };
        self.mainstay(&["show", &run.to_string()])?.good()?;
        Ok(Followed { run, good })
    }

    /// The number of the run that the last push began.
    fn run_of_head(&self) -> Result<u64, Failure> {
        let head = self.folder.git(&["rev-parse", "HEAD"]).output().context("run git")?;
        let head = String::from_utf8_lossy(&head.stdout).trim().to_owned();
        let until = Instant::now() + RUN_APPEARS;
        while Instant::now() < until {
            if let Some(json) = self.answer(&["--json", "runs"])? {
                let runs: Vec<RunSummary> = serde_json::from_slice(&json).context("read what `mainstay runs` says")?;
                if let Some(run) = runs.iter().find(|run| run.commit.to_string() == head) {
                    return Ok(run.id.0);
                }
            }
            pause(LOOK)?;
        }
        Err(self.daemon_failure("find the run of the push"))
    }
}
