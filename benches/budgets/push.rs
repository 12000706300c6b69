//! From a moved ref to the first instruction of the user's command, against `git checkout` and `docker run` in a hook.

use crate::lab::{Daemon, Lab, docker_run_options, git, seconds};
use crate::numbers::{Budget, Report, Samples, print};
use crate::{Effort, tree};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Both hooks note the instant at which git called them. A bash builtin: no process is started for it.
const NOTE: &str = "#!/bin/bash\nentry=$EPOCHREALTIME\n";

fn write_hook(path: &Path, text: &str) {
    fs::write(path, text).expect("a hook is written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a hook is made executable");
}

fn stamps(path: &Path) -> Vec<f64> {
    let text = fs::read_to_string(path).expect("the hook has noted its time");
    text.split_whitespace().map(|stamp| stamp.parse().expect("a time")).collect()
}

/// What `date +%s%N` printed, in seconds.
pub(crate) fn clocks(text: &str) -> Vec<f64> {
    let is_clock = |word: &&str| word.len() == 19 && word.bytes().all(|b| b.is_ascii_digit());
    text.split_whitespace().filter(is_clock).map(|word| word.parse::<f64>().expect("a number") / 1e9).collect()
}

pub(crate) fn measure(lab: &Lab, effort: Effort, report: &mut Report) {
    let at = lab.folder();
    let (ours, peer) = (at.join("shop.git"), at.join("peer.git"));
    // Ours: the hook as it was installed, called by one that notes the time before and after it.
    let hook = ours.join("hooks/post-receive");
    let installed = ours.join("hooks/post-receive.installed");
    fs::rename(&hook, &installed).expect("the hook is there");
    let noted = at.join("noted.ours");
    let text = format!("{NOTE}\"{}\"\necho \"$entry $EPOCHREALTIME\" > {}\n", installed.display(), noted.display());
    write_hook(&hook, &text);
    // The peer's: what people write into such a hook by hand. Its working tree is there from the push before, so git
    // writes ten files only.
    let (noted_peer, first_peer, deploy) = (at.join("noted.peer"), at.join("first.peer"), at.join("deploy"));
    fs::create_dir_all(&deploy).expect("a folder is made");
    let text = format!(
        "{NOTE}git --work-tree={deploy} checkout -q -f main\n\
         docker run --rm {options} -v {deploy}:/workspace -w /workspace {image} sh -ec 'date +%s%N' > {first}\n\
         echo \"$entry\" > {noted}\n",
        deploy = deploy.display(),
        image = tree::IMAGE,
        options = docker_run_options().join(" "),
        first = first_peer.display(),
        noted = noted_peer.display(),
    );
    write_hook(&peer.join("hooks/post-receive"), &text);

    let (mut mine, mut theirs, mut hook_time, mut marks) =
        (Samples::default(), Samples::default(), Samples::default(), Samples::default());
    let rounds = effort.of(30, 6);
    // The first round fills the peer's working tree, and is not counted for either.
    for round in 0..=rounds {
        lab.commit();
        let work = at.join("work");
        git(&work, &["push", "-q", &peer.display().to_string(), "main"]);
        let entry = stamps(&noted_peer)[0];
        let first = clocks(&fs::read_to_string(&first_peer).expect("the peer's command has run"))[0];
        let commit = git(&work, &["rev-parse", "HEAD"]);
        git(&work, &["push", "-q", &ours.display().to_string(), "main"]);
        let noted = stamps(&noted);
        let (mark, clock) = lab.with(|daemon| {
            let run = run_of(daemon, commit.trim());
            let detail = daemon.ended(run);
            let text = daemon.command(&["logs", &run.to_string(), "first"]);
            if std::env::var_os("MAINSTAY_BENCH_EVENTS").is_some() {
                for (event_at, event) in daemon.events(run) {
                    let after = event_at as f64 - noted[0] * 1e3;
                    print(format_args!("    {after:7.1} {}", &event[..event.len().min(100)]));
                }
            }
            daemon.rest();
            (seconds(&detail["steps"][0]["attempts"][0]["began_at"]), clocks(&text)[0])
        });
        if round > 0 {
            theirs.push((first - entry) * 1e3);
            mine.push((clock - noted[0]) * 1e3);
            marks.push((mark - noted[0]) * 1e3);
            hook_time.push((noted[1] - noted[0]) * 1e3);
        }
    }
    print(format_args!("  ours: hook entry -> `date` in the step     {}", mine.shown("ms")));
    print(format_args!("  (the helper's mark, just before it:        {})", marks.shown("ms")));
    print(format_args!("  peer: hook entry -> `date` in docker run   {}", theirs.shown("ms")));
    print(format_args!("  our hook, from its start to its end        {}", hook_time.shown("ms")));
    report.figure(
        "push: to the first instruction, p50 / peer's p50",
        mine.median() / theirs.median(),
        "x",
        Budget::AtMost(0.7),
    );
    report.figure(
        "push: to the first instruction, p95 / peer's p95",
        mine.p95() / theirs.p95(),
        "x",
        Budget::AtMost(1.0),
    );
    report.figure("push: what the hook adds, p50", hook_time.median(), "ms", Budget::AtMost(20.0));
    // Whatever is measured next pushes without notes.
    fs::rename(&installed, &hook).expect("the hook is put back");
}

/// The run of a commit that was just pushed.
fn run_of(daemon: &Daemon, commit: &str) -> u64 {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        // The hook's answer comes before the run is stored.
        let runs = daemon.get("/api/v1/runs?limit=1").unwrap_or_default();
        let runs: Value = serde_json::from_str(&runs).unwrap_or_default();
        if let Some(run) = runs[0]["id"].as_u64().filter(|_| runs[0]["commit"] == commit) {
            return run;
        }
        assert!(Instant::now() < end, "the push made no run");
        std::thread::sleep(Duration::from_millis(100));
    }
}
