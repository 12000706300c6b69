//! `mainstay trigger`: starts the pipelines of a repository by hand.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Context, logs, words};
use crate::model::RepoName;
use crate::model::api::{Started, TriggerRequest};
use crate::model::ids::PipelineName;

/// Start pipelines of a repository by hand
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay trigger shop                               the default branch, every pipeline with `on: manual`
  mainstay trigger shop --ref v1.4 --pipeline release
  mainstay trigger shop --input level=full --follow   show the log until it ends; exit code 1 if it failed")]
pub struct Args {
    /// The repository, as `mainstay.yml` names it
    repo: RepoName,
    /// A branch, a tag, a full ref or a commit id [default: the default branch]
    #[arg(long = "ref", value_name = "REF")]
    git_ref: Option<String>,
    /// Only this pipeline
    #[arg(long, value_name = "NAME")]
    pipeline: Option<PipelineName>,
    /// An input of the pipeline; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = words::key_value)]
    input: Vec<(String, String)>,
    /// Show the log of what starts, until it ends
    #[arg(short, long)]
    follow: bool,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let mut request = TriggerRequest {
        repo: args.repo.clone(),
        git_ref: args.git_ref.clone(),
        pipeline: args.pipeline.clone(),
        inputs: Default::default(),
    };
    for (key, value) in &args.input {
        if request.inputs.insert(key.clone(), value.clone()).is_some() {
            return Err(Failure::wrong(format!("take the input `{key}`: it is given twice")));
        }
    }
    let started: Started = client.post("trigger", &request).await?;
    report(context, &started, args.follow);
    if !args.follow || started.runs.is_empty() {
        return Ok(if started.runs.is_empty() { Exit::Bad } else { Exit::Good });
    }
    let mut exit = Exit::Good;
    for run in &started.runs {
        match logs::follow(&client, context, *run, &logs::Wish::default()).await? {
            Exit::Good => {}
            Exit::Interrupted => return Ok(Exit::Interrupted),
            _ => exit = Exit::Bad,
        }
    }
    Ok(exit)
}

/// Says what was started; shared with `retry` and `inbox replay`.
pub(super) fn report(context: &Context, started: &Started, follow: bool) {
    let ui = &context.ui;
    if ui.json {
        // A followed run streams lines; what was started is then the first of them.
        return ui.json(started);
    }
    for note in &started.notes {
        ui.say(words::clean(note));
    }
    if started.runs.is_empty() {
        return ui.say("nothing runs");
    }
    let list = words::run_list(&started.runs);
    if follow {
        return ui.say(format!("started {list}"));
    }
    ui.out(format!("started {list}"));
    if let Some(first) = started.runs.first() {
        ui.say(format!("watch it with `mainstay logs -f {first}`"));
    }
}
