//! What a daemon costs that watches five hundred quiet repositories.

use crate::Effort;
use crate::lab::{Daemon, TICKS_PER_SECOND, git};
use crate::numbers::{Budget, Report, print};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const REPOS: usize = 500;
const REFS: usize = 1_000;
/// Refs of these that are files of their own, as recent pushes leave them; the rest is packed, as `git gc` does.
const LOOSE: usize = 50;
const POLL: Duration = Duration::from_secs(60);

pub(crate) fn measure(effort: Effort, report: &mut Report) {
    let folder = tempfile::Builder::new().prefix("mainstay-bench-").tempdir().expect("there is room");
    let at = folder.path();
    make_template(&at.join("template.git"));
    let mut config = format!("server: {{ listen: \"127.0.0.1:0\" }}\nstate: {}\nrepos:\n", at.join("state").display());
    for n in 0..REPOS {
        let repo = at.join(format!("repo{n:03}.git"));
        let copied = Command::new("cp").arg("-a").arg(at.join("template.git")).arg(&repo).status();
        assert!(copied.is_ok_and(|status| status.success()), "the repository is copied");
        let _ = writeln!(config, "  repo{n:03}: {{ url: {}, poll: {}s }}", repo.display(), POLL.as_secs());
    }
    fs::write(at.join("mainstay.yml"), config).expect("the configuration is written");
    let started = Instant::now();
    let daemon = Daemon::start(at);
    let ready = started.elapsed();
    // The first look takes down all refs; the second one, a poll later, finds nothing moved.
    let settled = POLL + POLL / 4;
    std::thread::sleep(if effort.quick { POLL / 2 } else { settled });
    let first = daemon.cpu_ticks() as f64 / TICKS_PER_SECOND;
    let (before, watched) = (daemon.cpu_ticks(), Instant::now());
    let mut highest = 0.0_f64;
    let long = if effort.quick { POLL } else { POLL * 5 / 2 };
    while watched.elapsed() < long {
        std::thread::sleep(Duration::from_secs(1));
        highest = highest.max(daemon.memory_mib("VmRSS"));
    }
    let used = (daemon.cpu_ticks() - before) as f64 / TICKS_PER_SECOND;
    print(format_args!(
        "  {REPOS} repositories of {REFS} refs: ready after {:.1} s, {first:.1} CPU s for the first looks",
        ready.as_secs_f64()
    ));
    print(format_args!("  then {used:.2} CPU s in {:.0} s, at most {highest:.1} MiB", watched.elapsed().as_secs_f64()));
    report.figure("idle: resident memory", highest, "MiB", Budget::AtMost(40.0));
    report.figure("idle: share of a core", 100.0 * used / watched.elapsed().as_secs_f64(), "%", Budget::AtMost(1.0));
}

fn make_template(bare: &Path) {
    let parent = bare.parent().expect("it is in a folder");
    git(parent, &["init", "-q", "--bare", "-b", "main", &bare.display().to_string()]);
    let tree = git(bare, &["write-tree"]);
    let commit = git(bare, &["commit-tree", "-m", "one", tree.trim()]);
    let make = |range: std::ops::Range<usize>| {
        for n in range {
            let path = bare.join(format!("refs/heads/branch{n:04}"));
            fs::write(path, &commit).expect("a ref is written");
        }
    };
    make(0..REFS - LOOSE);
    git(bare, &["update-ref", "refs/heads/main", commit.trim()]);
    git(bare, &["pack-refs", "--all"]);
    make(REFS - LOOSE..REFS - 1);
}
