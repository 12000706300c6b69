//! Twenty steps that do nothing, one after the other, against as many `docker run --rm`.

use crate::lab::{Lab, docker, docker_run_options, now, seconds};
use crate::numbers::{Budget, Report, Samples, print};
use crate::{Effort, tree};

pub(crate) fn measure(lab: &Lab, effort: Effort, report: &mut Report) {
    let (mut mine, mut theirs) = (Samples::default(), Samples::default());
    let peer: Vec<String> = ["run", "--rm"]
        .map(str::to_owned)
        .into_iter()
        .chain(docker_run_options())
        .chain([tree::IMAGE, "true"].map(str::to_owned))
        .collect();
    for _ in 0..effort.of(7, 2) {
        let asked = now();
        let ended = lab.with(|daemon| {
            let detail = daemon.ended(daemon.trigger("row"));
            daemon.rest();
            seconds(&detail["finished_at"])
        });
        mine.push((ended - asked) * 1e3);
        let before = now();
        for _ in 0..tree::ROW {
            docker(&peer.iter().map(String::as_str).collect::<Vec<_>>());
        }
        theirs.push((now() - before) * 1e3);
    }
    print(format_args!("  ours: `mainstay trigger` typed -> run ended {}", mine.shown("ms")));
    print(format_args!("  peer: {} x docker run --rm                  {}", tree::ROW, theirs.shown("ms")));
    report.figure(
        "row: 20 steps with checkout and logs / 20 x docker run",
        mine.median() / theirs.median(),
        "x",
        Budget::AtMost(0.4),
    );
}
