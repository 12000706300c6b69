//! A million lines through the daemon to disk, twenty secrets masked, against `docker logs -f` into a file.

use crate::lab::{Daemon, Lab, TICKS_PER_SECOND, docker, docker_run_options, now, seconds};
use crate::numbers::{Budget, Report, Samples, print};
use crate::{Effort, tree};
use serde_json::Value;
use std::fs::File;
use std::process::Command;

pub(crate) fn measure(lab: &Lab, effort: Effort, report: &mut Report) {
    let (mut mine, mut theirs) = (Samples::default(), Samples::default());
    let (mut cpu, mut memory) = (Samples::default(), Samples::default());
    // A fresh daemon: the memory measured is that of the log's way, not what two hundred steps before it left behind.
    lab.with(|daemon| {
        daemon.kill();
        *daemon = Daemon::start(lab.folder());
        daemon.ended(daemon.trigger("row"));
        daemon.rest();
    });
    for _ in 0..effort.of(5, 1) {
        lab.with(|daemon| {
            daemon.reset_peak();
            let before = daemon.cpu_ticks();
            let run = daemon.trigger("talk");
            let detail = daemon.ended(run);
            cpu.push((daemon.cpu_ticks() - before) as f64 / TICKS_PER_SECOND);
            memory.push(daemon.memory_mib("VmHWM"));
            let attempt = &detail["steps"][0]["attempts"][0];
            mine.push(seconds(&attempt["ended_at"]) - seconds(&attempt["began_at"]));
            daemon.rest();
        });
        theirs.push(docker_logs(lab));
    }
    let per_second = |s: f64| tree::LINES as f64 / s / 1e3;
    print(format_args!("  ours: process began -> log durable     {}", mine.shown("s")));
    print(format_args!("  peer: started -> `docker logs -f` ends {}", theirs.shown("s")));
    print(format_args!(
        "  thousand lines a second: {:.0} and {:.0}",
        per_second(mine.median()),
        per_second(theirs.median())
    ));
    print(format_args!("  daemon: CPU seconds per million lines  {}", cpu.shown("s")));
    print(format_args!("  daemon: highest resident memory        {}", memory.shown("MiB")));
    report.figure("logs: lines a second / docker logs -f", theirs.median() / mine.median(), "x", Budget::AtLeast(0.9));
    report.figure("logs: CPU per million lines", cpu.median(), "s", Budget::AtMost(4.0));
    report.figure("logs: resident memory at most", memory.quantile(1.0), "MiB", Budget::AtMost(64.0));
}

/// The same words in a container of its own, its log followed into a file.
fn docker_logs(lab: &Lab) -> f64 {
    let (talk, options) = (tree::talk(), docker_run_options());
    let mut create = vec!["create", "--log-driver", "json-file"];
    create.extend(options.iter().map(String::as_str));
    create.extend([tree::IMAGE, "sh", "-ec", &talk]);
    let id = docker(&create);
    let id = id.trim();
    docker(&["start", id]);
    let file = File::create(lab.folder().join("docker-logs")).expect("a file is made");
    let followed = Command::new("docker").args(["logs", "-f", id]).stdout(file).status().expect("docker starts");
    let ended = now();
    assert!(followed.success(), "docker logs ended with {followed}");
    let began = docker(&["inspect", "--format", "{{.State.StartedAt}}", id]);
    let began = seconds(&Value::String(began.trim().to_owned()));
    docker(&["rm", "-f", id]);
    ended - began
}
