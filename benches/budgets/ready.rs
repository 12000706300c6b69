//! How long after it became ready a step runs, when its predecessor gave time enough to start its container ahead.

use super::push::clocks;
use crate::lab::{Lab, seconds};
use crate::numbers::{Budget, Report, Samples, print};
use crate::{Effort, tree};

pub(crate) fn measure(lab: &Lab, effort: Effort, report: &mut Report) {
    let (mut to_mark, mut between) = (Samples::default(), Samples::default());
    for _ in 0..effort.of(4, 1) {
        lab.with(|daemon| {
            let run = daemon.trigger("chain");
            let detail = daemon.ended(run);
            let attempt = |n: usize| &detail["steps"][n]["attempts"][0];
            let said: Vec<Vec<f64>> = (0..tree::CHAIN)
                .map(|n| clocks(&daemon.command(&["logs", &run.to_string(), &format!("s{n}")])))
                .collect();
            for n in 1..tree::CHAIN {
                to_mark.push((seconds(&attempt(n)["began_at"]) - seconds(&attempt(n - 1)["ended_at"])) * 1e3);
                between.push((said[n][0] - said[n - 1][1]) * 1e3);
            }
            daemon.rest();
        });
    }
    print(format_args!("  ready (predecessor's end seen) -> its process begins      {}", to_mark.shown("ms")));
    print(format_args!("  (last command of one -> first command of the next, in all {})", between.shown("ms")));
    report.figure("ready: ready -> its process runs, p95", to_mark.p95(), "ms", Budget::AtMost(20.0));
}
