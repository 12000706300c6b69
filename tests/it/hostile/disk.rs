//! The disk of the state folder is full: the daemon says so, lives, and goes on when there is space again.

use super::lab::{Lab, text};
use crate::support::engine::DockerEngine;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of memory at a folder, until dropped.
struct Small(PathBuf);

impl Small {
    fn at(folder: &Path) -> Small {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.to_str().unwrap();
        run(&["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "mainstay-test", path]);
        if !nix::unistd::geteuid().is_root() {
            run(&["chown", &nix::unistd::geteuid().to_string(), path]);
        }
        Small(folder.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(&["umount", "-l", self.0.to_str().unwrap()]);
    }
}

fn run(words: &[&str]) {
    let words = if nix::unistd::geteuid().is_root() { words.to_vec() } else { [&["sudo", "-n"], words].concat() };
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "this test needs root or sudo for {words:?}: {}", text(&output));
}

const SLOW: &[u8] =
    b"steps:\n  slow: { image: busybox, commands: [\"for i in $(seq 1 30); do echo line $i; sleep 0.1; done\"] }\n";

#[test]
fn a_full_disk_is_told_and_survived() {
    let mut small = None;
    let mut lab = Lab::start_with("", "", |lab| small = Some(Small::at(&lab.state())));
    let first = lab.push("main", &[(".mainstay/ci.yml", SLOW)]);
    lab.wait("the first run", || lab.runs().iter().any(|run| run["status"] == "running").then_some(()));
    // Full in the middle of a run.
    let filler = lab.state().join("filler");
    fill(&filler);
    let told = lab.wait("a word about it", || {
        let status = lab.cli(&["status"]);
        text(&status).contains("is full").then_some(status)
    });
    assert_eq!(told.status.code(), Some(1));
    // A push meanwhile is not lost: its hook leaves a message.
    let pushed = std::time::Instant::now();
    let second = lab.commit_and_push("main", "while it was full");
    assert!(pushed.elapsed().as_secs() < 20, "{:?}", pushed.elapsed());
    std::thread::sleep(std::time::Duration::from_secs(4));
    let said = lab.log();
    assert!(said.contains("full"), "{said}");
    assert!(said.lines().count() < 200, "it talks too much: {} lines", said.lines().count());
    std::fs::remove_file(&filler).unwrap();
    let run = lab.ended(&first);
    assert!(["success", "failure", "error"].contains(&run["status"].as_str().unwrap()), "{run}");
    assert_eq!(lab.ended(&second)["status"], "success");
    lab.alive();
    let instance = lab.instance().unwrap();
    lab.stop();
    let held = DockerEngine::usual().held(&instance);
    assert!(!held.iter().any(|one| one.starts_with("container")), "left in the engine: {held:#?}");
    drop(small);
}

fn fill(file: &Path) {
    use std::io::Write;
    let mut filler = std::fs::File::create(file).unwrap();
    let mut piece = 1 << 20;
    // Down to the last page.
    while piece >= 1 << 10 {
        if filler.write_all(&vec![7; piece]).is_err() {
            piece /= 2;
        }
    }
}
