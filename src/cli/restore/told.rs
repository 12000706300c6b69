//! What is said of a restore of base backups when it is done.

use super::Followed;
use crate::backup::restore::{Plan, Report};
use crate::cli::ui::Tone;
use crate::cli::{Context, words};
use serde::Serialize;
use serde_json::{Value, json};

/// Says to people what was restored.
pub(super) fn tell(context: &Context, planned: &Plan, report: &Report, followed: &[Followed], good: bool) {
    let ui = &context.ui;
    if ui.json {
        return;
    }
    let (sign, tone) = if good { ("✓", Tone::Good) } else { ("✗", Tone::Bad) };
    let (source, target) = (&report.source, &report.target);
    // Nobody has looked for the target before a server has.
    let done = match report.reached {
        Some(lsn) => format!("{source} restored to {target}, at {lsn}"),
        None => format!(
            "{source}: the files are there; a server that is started on them recovers to {target}, or does not open"
        ),
    };
    ui.out(format!("{} {done}", ui.paint(tone, sign)));
    if let Some(at) = report.last_transaction {
        ui.out(format!("  its last transaction ended at {}", at.strftime("%Y-%m-%d %H:%M:%S%.3fZ")));
    }
    let secs = &report.seconds;
    ui.out(format!(
        "  {:.1} s: base {:.1} s, log {:.1} s; the plan said {} s",
        secs.total, secs.base, secs.log, secs.planned
    ));
    match report.container.as_ref().and_then(|made| made.name.as_ref().zip(made.published.as_ref())) {
        Some((name, published)) => ui.out(format!("  in the container {name}, published at {published}")),
        None => ui.out(format!("  in {}", report.data.display())),
    }
    for aside in &report.moved_aside {
        ui.out(format!("  what was there is in {}", aside.display()));
    }
    ui.out(format!("  {}", report.next));
    for note in &report.notes {
        ui.say(format!("note: {}", words::clean(note)));
    }
    for warning in not_said(&planned.warnings, &report.warnings) {
        ui.say(format!("warning: {}", words::clean(warning)));
    }
    for one in followed {
        let (sign, tone) = if one.good { ("✓", Tone::Good) } else { ("✗", Tone::Bad) };
        ui.out(format!("  {} {} ({})", ui.paint(tone, sign), words::clean(&one.what), words::clean(&one.said)));
    }
}

/// The same for programs.
pub(super) fn document(report: &impl Serialize, followed: &[Followed], good: bool) -> Value {
    let then: Vec<_> =
        followed.iter().map(|one| json!({ "what": one.what, "good": one.good, "said": one.said })).collect();
    json!({ "report": report, "then": then, "good": good })
}

/// Those that do not stand in the plan, which was shown before.
fn not_said<'a>(planned: &[String], warnings: &'a [String]) -> Vec<&'a String> {
    warnings.iter().filter(|warning| !planned.contains(warning)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_of_the_plan_is_not_said_again() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let (planned, all) = (texts(&["a", "b"]), texts(&["a", "b", "c"]));
        assert_eq!(not_said(&planned, &all), ["c"]);
    }
}
