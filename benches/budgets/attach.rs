//! After `kill -9`: from the start of the new daemon until the logs of fifty running steps flow again.
//!
//! Every step prints four lines a second; a step counts as attached once the new daemon has added to its stored log.

use crate::lab::{Daemon, Lab};
use crate::numbers::{Budget, Report, Samples, print};
use crate::{Effort, tree};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) fn measure(lab: &Lab, effort: Effort, report: &mut Report) {
    let at = lab.folder().to_owned();
    let run = lab.with(|daemon| daemon.trigger("ticks"));
    let logs: Vec<PathBuf> = (0..tree::WIDE).map(|n| at.join(format!("state/logs/{run}/s{n}.1.log"))).collect();
    grown(&logs, &vec![0; logs.len()], Duration::from_secs(120));
    let mut all = Samples::default();
    for _ in 0..effort.of(7, 2) {
        lab.with(|daemon| {
            daemon.kill();
            // The steps go on talking to nobody.
            std::thread::sleep(Duration::from_secs(2));
            let before: Vec<u64> = logs.iter().map(|log| size(log)).collect();
            let started = Instant::now();
            *daemon = Daemon::spawn(&at);
            grown(&logs, &before, Duration::from_secs(60));
            all.push(started.elapsed().as_secs_f64() * 1e3);
        });
        std::thread::sleep(Duration::from_secs(2));
    }
    lab.with(|daemon| {
        daemon.command(&["cancel", &run.to_string()]);
        daemon.rest();
    });
    print(format_args!("  exec of the daemon -> the logs of {} steps flow {}", tree::WIDE, all.shown("ms")));
    report.figure("attach: 50 running steps after kill -9, p50", all.median() / 1e3, "s", Budget::AtMost(1.0));
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Waits until every file is larger than it was.
fn grown(files: &[PathBuf], before: &[u64], patience: Duration) {
    let end = Instant::now() + patience;
    let mut waiting: Vec<_> = files.iter().zip(before).collect();
    while !waiting.is_empty() {
        waiting.retain(|(file, before)| size(file) <= **before);
        assert!(Instant::now() < end, "{} of the logs do not flow", waiting.len());
        std::thread::sleep(Duration::from_millis(2));
    }
}
