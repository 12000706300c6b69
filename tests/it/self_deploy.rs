//! Mainstay deploys its own next version: the run that does it ends green under the new one, once.

use crate::git_transports::git;
use crate::support::daemon::{Daemon, STUCK, Setup};
use crate::support::http;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A supervisor as an init system is one: what ended is started again.
const SUPERVISOR: &str = "cd \"$1\" && while [ ! -e stop ]; do ./bin/mainstay serve >> daemon.log 2>&1 & echo $! > pid; wait $!; echo ended >> ends; done";

#[test]
fn the_run_that_replaces_the_daemon_ends_green_under_the_new_one() {
    let daemon = Daemon::new(&Setup::new(
        "on: { manual: {} }\nsteps:\n  nothing: { image: busybox:latest, commands: ['true'] }\n",
    ));
    let folder = daemon.dir.path().to_owned();
    std::fs::create_dir(folder.join("bin")).unwrap();
    std::fs::copy(&daemon.program, folder.join("bin/mainstay")).unwrap();
    std::fs::copy(&daemon.program, folder.join("next")).unwrap();
    let config = folder.join("mainstay.yml");
    let mut text = std::fs::read_to_string(&config).unwrap();
    let port: u16 = text.split("127.0.0.1:").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    text.push_str(&format!(
        "environments:\n  ci:\n    from: [{{ repo: shop, branches: [main] }}]\n    downtime: allowed\n    watch: 1s\n    \
         target:\n      command:\n        repo: shop\n        \
         up: ['echo up >> {0}/ups', 'cp {0}/next {0}/bin/mainstay.new', 'mv {0}/bin/mainstay.new {0}/bin/mainstay', 'kill -TERM $(cat {0}/pid)']\n        \
         status: ['echo ups=$(wc -l < {0}/ups)']\n        down: ['true']\n    \
         health: [{{ http: \"http://127.0.0.1:{port}/readyz\", every: 200ms, within: 30s }}]\n",
        folder.display()
    ));
    std::fs::write(&config, text).unwrap();
    let mut supervisor = Command::new("sh")
        .args(["-c", SUPERVISOR, "supervisor"])
        .arg(&folder)
        .env("MAINSTAY_LOG", "warn,mainstay=debug")
        .env_remove("MAINSTAY_CONFIG")
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let group = nix::unistd::Pid::from_raw(i32::try_from(supervisor.id()).unwrap());
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let get = |path: &str| http::get(&daemon.socket(), &format!("/api/v1/{path}")).ok();
    let wait = |what: &str, ready: &dyn Fn() -> bool| {
        let until = Instant::now() + STUCK;
        while !ready() {
            assert!(Instant::now() < until, "{what} does not come\n{}", read("daemon.log"));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("the daemon", &|| get("status").is_some());
    let first = read("pid");
    let work = &daemon.work;
    std::fs::write(
        work.join(".mainstay/self.yml"),
        "on: { push: { branches: [main] } }\nsteps:\n  next:\n    deploy: { environment: ci, images: { mainstay: next } }\n",
    )
    .unwrap();
    git(work, &["add", "-A"]);
    git(work, &["commit", "-q", "-m", "the next version"]);
    git(work, &["push", "-q", "origin", "main"]);
    let commit = git(work, &["rev-parse", "HEAD"]);
    wait("the end of the run", &|| {
        let runs = daemon.runs_of(&commit);
        let run = runs.first().and_then(|run| daemon.run(*run));
        run.is_some_and(|run| !matches!(run["status"].as_str(), Some("queued" | "running")))
    });
    let run = daemon.run(daemon.runs_of(&commit)[0]).unwrap();
    assert_eq!(run["status"], "success", "{run:#}\n{}", read("daemon.log"));
    assert_ne!(read("pid"), first, "the daemon is the same");
    // Long enough for a loop to show itself.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((read("ups"), read("ends")), ("up\n".to_owned(), "ended\n".to_owned()), "once, and no loop");
    assert_eq!(daemon.runs_of(&commit).len(), 1);
    assert_eq!(get("environments/ci").unwrap()["state"], "verified");
    std::fs::write(folder.join("stop"), "").unwrap();
    let last: i32 = read("pid").trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(last), nix::sys::signal::Signal::SIGTERM).unwrap();
    let until = Instant::now() + STUCK;
    while supervisor.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            panic!("the daemon does not stop\n{}", read("daemon.log"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
