//! `mainstay plan FILE`: what an event would run, in which order, and why not.

use super::exit::{Exit, Failure};
use super::ui::{Tone, Ui};
use super::validate::read_pipeline;
use crate::config::pipeline::Pipeline;
use crate::model::ids::RepoName;
use crate::model::plan::{DeployStep, StepKind, WhenStatus};
use crate::model::trigger::CommitInfo;
use crate::model::{EventKind, Oid, Plan, PlannedStep, TriggerEvent};
use crate::plan;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Say what an event would run, and why not the rest
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What happens; `tag` when --tag is given, otherwise `push`.
    #[arg(long, value_enum)]
    pub event: Option<Event>,
    /// The branch.
    #[arg(long, value_name = "B", default_value = "main", conflicts_with = "tag")]
    pub branch: String,
    /// The tag.
    #[arg(long, value_name = "T")]
    pub tag: Option<String>,
    /// An input of a manual run.
    #[arg(long = "input", value_name = "KEY=VALUE", value_parser = super::words::key_value)]
    pub inputs: Vec<(String, String)>,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Event {
    /// A branch moved.
    Push,
    /// A tag was made.
    Tag,
    /// A time came.
    Schedule,
    /// Somebody asked for it.
    Manual,
}

/// Runs the command.
///
/// # Errors
/// When the file is not a valid pipeline, or the request contradicts itself.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit, Failure> {
    let (pipeline, digest) = read_pipeline(&args.file).map_err(Failure::of_files)?;
    let file = args.file.display().to_string();
    let plan = plan::make(&pipeline, &file, &digest, &plan::Defaults::default()).map_err(Failure::of_files)?;
    let event = event(args, &pipeline)?;
    let mut why_not: Vec<String> = plan::matches(&pipeline, &event).err().into_iter().collect();
    if event.kind == EventKind::Manual && why_not.is_empty() {
        why_not = plan::inputs::check(&pipeline, &event.inputs).err().unwrap_or_default();
    }
    let layers = plan::layers(&plan);
    if ui.json {
        ui.json(&serde_json::json!({
            "event": event.kind, "ref": event.git_ref, "runs": why_not.is_empty(), "reasons": why_not,
            "layers": layers, "plan": plan,
        }));
        return Ok(Exit::Good);
    }
    let what = match event.kind {
        EventKind::Push => format!("a push to the branch `{}`", args.branch),
        EventKind::Tag => format!("the tag `{}`", event.tag().unwrap_or_default()),
        EventKind::Schedule => "its schedule".to_owned(),
        EventKind::Manual => "`mainstay trigger`".to_owned(),
    };
    if why_not.is_empty() {
        ui.out(format!("{} {what} runs `{}`", ui.paint(Tone::Good, "yes:"), pipeline.name));
    } else {
        ui.out(format!("{} {what} does not run `{}`:", ui.paint(Tone::Bad, "no:"), pipeline.name));
        for reason in &why_not {
            ui.out(format!("     {reason}"));
        }
    }
    for schedule in &pipeline.on.schedule {
        if let Some(next) = schedule.next_after(Timestamp::now()) {
            ui.out(format!("     schedule `{}`: next at {next}", schedule.as_str()));
        }
    }
    ui.out("");
    for (n, layer) in layers.iter().enumerate() {
        let together = if layer.len() > 1 { format!("  ({} may run at once)", layer.len()) } else { String::new() };
        ui.out(ui.paint(Tone::Dim, format!("stage {}{together}", n + 1)));
        for step in layer.iter().filter_map(|name| plan.step(name)) {
            ui.out(format!("  {}", sentence(step, &plan, ui)));
        }
    }
    Ok(Exit::Good)
}

/// One step in a line: name, image, and everything about when it runs that is not usual.
fn sentence(step: &PlannedStep, plan: &Plan, ui: &Ui) -> String {
    let widest = plan.steps.iter().map(|s| s.name.as_str().len()).max().unwrap_or(0).min(30);
    let mut words = vec![match &step.kind {
        StepKind::Container => format!("in {}", step.image),
        StepKind::Deploy(DeployStep { environment, rollback: Some(to), .. }) => {
            format!("roll back {environment} to {to}")
        }
        kind => kind.words().unwrap_or_default(),
    }];
    if let StepKind::Deploy(deploy) = &step.kind
        && !deploy.images.is_empty()
    {
        let services: Vec<&str> = deploy.images.keys().map(String::as_str).collect();
        words.push(format!("with images for {}", services.join(", ")));
    }
    if !step.needs.is_empty() {
        let needs: Vec<&str> = step.needs.iter().map(|name| name.as_str()).collect();
        words.push(format!("after {}", needs.join(", ")));
    }
    let status: Vec<&str> = step
        .when_status
        .iter()
        .map(|status| match status {
            WhenStatus::Success => "success",
            WhenStatus::Failure => "failure",
            WhenStatus::Cancelled => "cancel",
            WhenStatus::RolledBack => "rollback",
        })
        .collect();
    match status.as_slice() {
        ["success"] => {}
        ["failure"] => words.push("only when something failed".to_owned()),
        ["rollback"] => words.push("only when a deploy was rolled back".to_owned()),
        list => words.push(format!("on {}", list.join(", "))),
    }
    if step.allow_failure {
        words.push("may fail".to_owned());
    }
    if step.once {
        words.push("never begun twice".to_owned());
    }
    if step.retries.max > 0 {
        words.push(format!("up to {} more attempts", step.retries.max));
    }
    if !step.secrets.is_empty() {
        words.push(format!("with secrets {}", step.secrets.join(", ")));
    }
    format!("{} {}", ui.paint(Tone::Strong, format!("{:<widest$}", step.name.as_str())), words.join("; "))
}

/// The event that is asked about; its commit stands for any.
fn event(args: &Args, pipeline: &Pipeline) -> Result<TriggerEvent, Failure> {
    let kind = match (args.event, &args.tag) {
        (Some(Event::Push), None) | (None, None) => EventKind::Push,
        (Some(Event::Push), Some(_)) => {
            return Err(
                Failure::wrong("a push to a tag is the event `tag`").hint("leave --event out, or say --event tag")
            );
        }
        (Some(Event::Tag), None) => return Err(Failure::wrong("the event `tag` needs --tag NAME")),
        (Some(Event::Tag) | None, Some(_)) => EventKind::Tag,
        (Some(Event::Schedule), _) => EventKind::Schedule,
        (Some(Event::Manual), _) => EventKind::Manual,
    };
    if !args.inputs.is_empty() && kind != EventKind::Manual {
        return Err(Failure::wrong("only a manual run has inputs").hint("add --event manual"));
    }
    let git_ref = args.tag.as_ref().map_or_else(|| format!("refs/heads/{}", args.branch), |t| format!("refs/tags/{t}"));
    let mut inputs = BTreeMap::new();
    for (name, value) in &args.inputs {
        if inputs.insert(name.clone(), value.clone()).is_some() {
            return Err(Failure::wrong(format!("the input `{name}` is given twice")));
        }
    }
    let repo = RepoName::new("here").map_err(anyhow::Error::from)?;
    let now = Timestamp::now();
    let commit = CommitInfo { sha: Oid::zero(), message: String::new(), author: String::new(), authored_at: now };
    let pipeline = Some(pipeline.name.clone());
    Ok(TriggerEvent { repo, kind, git_ref, commit, before: None, actor: None, pipeline, inputs, at: now })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn run_with(flags: &[&str]) -> Result<Exit, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("build.yml");
        std::fs::write(
            &file,
            "on: {push: {tags: ['v*']}, manual: {inputs: {n: {type: number}}}}\nsteps: {a: {image: x}}",
        )
        .unwrap();
        let args = Cli::try_parse_from([&["plan", file.to_str().unwrap()], flags].concat()).unwrap().args;
        run(&args, &Ui::new(true, "never", 0))
    }

    #[test]
    fn questions_are_answered_and_contradictions_refused() {
        for flags in [&[][..], &["--tag", "v1"], &["--event", "manual", "--input", "n=1"], &["--event", "schedule"]] {
            assert_eq!(run_with(flags).unwrap(), Exit::Good, "{flags:?}");
        }
        for flags in [&["--event", "tag"][..], &["--event", "push", "--tag", "v1"], &["--input", "n=1"]] {
            assert_eq!(run_with(flags).unwrap_err().exit, Exit::Wrong, "{flags:?}");
        }
        let twice = ["--event", "manual", "--input", "n=1", "--input", "n=2"];
        assert!(run_with(&twice).unwrap_err().error.to_string().contains("given twice"));
    }
}
