//! `mainstay logs`: the lines of a run, stored or live, each with the step it came from.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::ui::Tone;
use super::{Context, words};
use crate::model::api::{LogLineView, RunDetail};
use crate::model::log::Stream;
use crate::model::{RunId, RunStatus, StepName};
use futures_util::StreamExt;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Print the log of a run, or follow it live
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay logs 12              every step, each line with its step's name
  mainstay logs latest test -f  one step, until the run ends; exit code 1 if the run failed
  mainstay logs 12 test --attempt 1 > test.log")]
pub struct Args {
    /// The run: 12, #12 or latest
    run: String,
    /// Only this step
    step: Option<StepName>,
    /// Follow what is still written, until the run ends
    #[arg(short, long)]
    follow: bool,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// An earlier attempt of the step [default: every attempt]
    #[arg(long, value_name = "N", requires = "step", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
    /// Only the last N lines of each attempt
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    tail: Option<u32>,
}

/// Which lines are wanted and how they are shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    step: Option<StepName>,
    attempt: Option<u32>,
    tail: Option<u32>,
    timestamps: bool,
}

impl Wish {
    fn query(&self, follow: bool) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        query.extend(self.step.as_ref().map(|step| ("step", step.to_string())));
        query.extend(self.attempt.map(|n| ("attempt", n.to_string())));
        query.extend(self.tail.map(|n| ("tail", n.to_string())));
        if follow {
            query.push(("follow", "true".into()));
        }
        query
    }
}

/// A daemon that is restarted is back well within this time.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
/// Between two tries to reach it again.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or does not know the run or the step.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let run = client.run_number(&args.run).await?;
    let wish = Wish { step: args.step.clone(), attempt: args.attempt, tail: args.tail, timestamps: args.timestamps };
    if args.follow {
        return follow(&client, context, run, &wish).await;
    }
    let detail = client.run(run).await?;
    if let Some(step) = detail.steps.iter().find(|step| Some(&step.name) == args.step.as_ref() && !step.has_log()) {
        let reason = step.reason.as_deref().map(|reason| format!("; {}", words::clean(reason))).unwrap_or_default();
        context.ui.say(format!("`{}` runs no container and has no log{reason}", step.name));
        return Ok(Exit::Good);
    }
    let mut printer = Printer::new(context, &detail, &wish);
    let mut lines = Box::pin(client.log_lines(run, &wish.query(false)).await?);
    while let Some(line) = lines.next().await {
        printer.print(&line?);
    }
    Ok(Exit::Good)
}

/// Prints lines until the run has ended, also over a restart of the daemon; then says how it ended.
pub(super) async fn follow(client: &Client, context: &Context, run: RunId, wish: &Wish) -> Result<Exit, Failure> {
    let ui = &context.ui;
    let detail = client.run(run).await?;
    let mut printer = Printer::new(context, &detail, wish);
    let mut lost_since: Option<Instant> = None;
    let work = async {
        loop {
            let failure = match pass(client, run, wish, &mut printer).await {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => None,
                Err(failure) if failure.exit == Exit::Unreachable => Some(failure),
                Err(failure) => return Err(failure),
            };
            let printed = std::mem::take(&mut printer.progressed);
            let since = *lost_since.get_or_insert_with(Instant::now);
            match failure {
                _ if printed => lost_since = None,
                Some(failure) if since.elapsed() > GIVE_UP_AFTER => return Err(failure),
                _ => {}
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    };
    let ended = tokio::select! {
        ended = work => ended?,
        _ = tokio::signal::ctrl_c() => {
            ui.say(format!("run #{run} goes on; stop it with `mainstay cancel {run}`"));
            return Ok(Exit::Interrupted);
        }
    };
    if ui.json {
        return Ok(verdict(ended));
    }
    let (sign, tone) = words::status_sign(ended);
    ui.say(ui.paint_err(tone, format!("{sign} run #{run}: {ended}")));
    if matches!(ended, RunStatus::Failed | RunStatus::Errored) {
        ui.say(format!("see why with `mainstay show {run}`"));
    }
    Ok(verdict(ended))
}

fn verdict(status: RunStatus) -> Exit {
    if status == RunStatus::Succeeded { Exit::Good } else { Exit::Bad }
}

/// One connection: prints what comes; the status once the run is over, `None` when the stream ended before that.
async fn pass(
    client: &Client,
    run: RunId,
    wish: &Wish,
    printer: &mut Printer<'_>,
) -> Result<Option<RunStatus>, Failure> {
    let mut lines = Box::pin(client.log_lines(run, &wish.query(true)).await?);
    while let Some(line) = lines.next().await {
        printer.print(&line?);
    }
    let status = client.run(run).await?.summary.status;
    Ok(status.is_final().then_some(status))
}

pub(super) struct Printer<'a> {
    context: &'a Context,
    timestamps: bool,
    /// Without it the whole run is printed, and lines carry their step's name.
    prefixed: bool,
    width: usize,
    order: BTreeMap<StepName, usize>,
    /// The last line printed of each attempt: after a new connection lines come again.
    seen: BTreeMap<(StepName, u32), u64>,
    progressed: bool,
    zone: TimeZone,
}

impl<'a> Printer<'a> {
    pub(super) fn new(context: &'a Context, detail: &RunDetail, wish: &Wish) -> Self {
        let order: BTreeMap<StepName, usize> =
            detail.steps.iter().enumerate().map(|(n, step)| (step.name.clone(), n)).collect();
        Printer {
            context,
            timestamps: wish.timestamps,
            prefixed: wish.step.is_none(),
            width: order.keys().map(|name| name.as_str().len()).max().unwrap_or(0),
            order,
            seen: BTreeMap::new(),
            progressed: false,
            zone: TimeZone::system(),
        }
    }

    pub(super) fn print(&mut self, line: &LogLineView) {
        let seen = self.seen.entry((line.step.clone(), line.attempt)).or_insert(0);
        if line.n <= *seen {
            return;
        }
        *seen = line.n;
        self.progressed = true;
        let ui = &self.context.ui;
        if ui.json {
            return ui.json(line);
        }
        let mut out = String::new();
        if self.timestamps {
            let at = line.at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
            out.push_str(&ui.paint(Tone::Dim, at));
            out.push(' ');
        }
        if self.prefixed {
            let name = if line.attempt > 1 { format!("{}.{}", line.step, line.attempt) } else { line.step.to_string() };
            let nth = self.order.get(&line.step).copied().unwrap_or(0);
            out.push_str(&words::step_color(ui, nth, &format!("{name:width$} | ", width = self.width)));
        }
        let text = words::safe_log(&line.text, ui.color);
        match line.stream {
            Stream::System => out.push_str(&ui.paint(Tone::Dim, text)),
            Stream::Stdout | Stream::Stderr => out.push_str(&text),
        }
        ui.out(out);
    }
}
