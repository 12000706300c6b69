//! Pipeline files that want to do harm, from a pushed commit and on the command line.

use super::lab::{Lab, text};
use crate::git_transports::git;
use std::time::{Duration, Instant};

/// A name, the file, and words that its error must hold.
fn bad_files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let before = format!("*a{}", n - 1);
        bomb += &format!("a{n}: &a{n} [{}]\n", vec![before; 9].join(", "));
    }
    let mut huge = b"steps:\n".to_vec();
    huge.resize(10 << 20, b'#');
    vec![
        ("bomb", bomb.into_bytes(), "too"),
        ("huge", huge, "larger than 1048576 bytes"),
        ("deep", [b"a: ".as_slice(), "[".repeat(20_000).as_bytes()].concat(), "nested"),
        (
            "cycle",
            b"steps:\n  a: { image: busybox, commands: [x], needs: [b] }\n  b: { image: busybox, commands: [x], needs: [a] }\n".to_vec(),
            "a -> b",
        ),
        ("unknown", b"steps:\n  a:\n    image: busybox\n    comands: [x]\n".to_vec(), "commands"),
        ("binary", (0..=255_u8).cycle().take(4_096).collect(), "UTF-8"),
        ("nul", b"steps:\n  a: { image: busybox, commands: [\"x\0\"] }\n".to_vec(), "control character"),
        ("empty", Vec::new(), "steps"),
        ("path", b"steps:\n  ../../etc/passwd: { image: busybox, commands: [x] }\n".to_vec(), "the step name"),
        ("dots", b"steps:\n  ..: { image: busybox, commands: [x] }\n".to_vec(), "the step name"),
    ]
}

#[test]
fn a_bad_pipeline_file_is_an_error_of_its_run_with_the_place_underlined() {
    let mut lab = Lab::start("limits: { runs-per-push: 100 }", "");
    let files = bad_files();
    let paths: Vec<String> = files.iter().map(|(name, ..)| format!(".mainstay/{name}.yml")).collect();
    let all: Vec<(&str, &[u8])> =
        paths.iter().zip(&files).map(|(path, (_, content, _))| (path.as_str(), content.as_slice())).collect();
    let before = Instant::now();
    lab.push("main", &all);
    lab.wait("a run for every file", || (lab.runs().len() == files.len()).then_some(()));
    assert!(before.elapsed() < Duration::from_secs(15), "{:?}", before.elapsed());
    let runs = lab.runs();
    for (name, _, words) in &files {
        let run = runs.iter().find(|run| run["pipeline"] == *name).unwrap_or_else(|| panic!("no run of {name}"));
        assert_eq!(run["status"], "error", "{name}");
        let shown = text(&lab.cli(&["show", &run["id"].to_string()]));
        assert!(shown.contains(words), "{name}: `{words}` is missing in:\n{shown}");
        assert!(shown.len() < 16 * 1_024, "{name}: {} bytes", shown.len());
        assert!(!shown.contains(['\0', '\u{1b}']), "{name}: {shown:?}");
        if ["unknown", "cycle", "path", "nul"].contains(name) {
            assert!(shown.contains(&format!(".mainstay/{name}.yml")) && shown.contains('^'), "{name}: {shown}");
        }
    }
    lab.alive();
    assert!(lab.peak_mib() < 128, "{} MiB", lab.peak_mib());
}

#[test]
fn validate_ends_soon_and_says_little_whatever_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content, _) in bad_files() {
        let file = dir.path().join(format!("{name}.yml"));
        std::fs::write(&file, content).unwrap();
        let before = Instant::now();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_mainstay"))
            .args(["validate", file.to_str().unwrap()])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {}", text(&output));
        assert!(before.elapsed() < Duration::from_secs(5), "{name}: {:?}", before.elapsed());
        assert!(text(&output).len() < 16 * 1_024, "{name}: {} bytes", text(&output).len());
        assert!(!text(&output).contains("panicked"), "{name}: {}", text(&output));
    }
}

#[test]
fn links_are_kept_and_never_followed() {
    let mut lab = Lab::start("", "");
    let good = b"steps:\n  look:\n    image: busybox\n    commands:\n      - test -L etc && test \"$(readlink etc)\" = /etc\n      - test -L up && test \"$(readlink up)\" = ../../../../../../etc/passwd\n      - find many -type f | wc -l\n      - echo all there\n";
    // A link as the pipeline file, then as the folder.
    std::fs::create_dir(lab.work.join(".mainstay")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", lab.work.join(".mainstay/ci.yml")).unwrap();
    let file = lab.push("main", &[]);
    let run = lab.ended(&file);
    assert_eq!(run["status"], "error");
    assert!(run["error"].as_str().unwrap().contains("symbolic link"), "{run}");
    std::fs::remove_dir_all(lab.work.join(".mainstay")).unwrap();
    std::fs::create_dir(lab.work.join("elsewhere")).unwrap();
    std::fs::write(lab.work.join("elsewhere/ci.yml"), good).unwrap();
    std::os::unix::fs::symlink("elsewhere", lab.work.join(".mainstay")).unwrap();
    let folder = lab.push("main", &[]);
    let said = lab.wait("the outcome of a linked folder", || {
        let inbox = lab.json(&["inbox"]);
        let row = inbox.as_array()?.iter().find(|row| row["new"] == *folder)?.clone();
        (row["state"] != "pending").then_some(row)
    });
    assert!(said["reason"].as_str().unwrap().contains("symbolic link"), "{said}");
    assert_eq!(said["runs"], serde_json::json!([]));
    // Links out of the workspace, many files; then a folder takes a link's place.
    std::fs::remove_file(lab.work.join(".mainstay")).unwrap();
    std::os::unix::fs::symlink("/etc", lab.work.join("etc")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/passwd", lab.work.join("up")).unwrap();
    for n in 0..5_000 {
        let folder = lab.work.join(format!("many/{}", n % 50));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{n}")), n.to_string()).unwrap();
    }
    let linked = lab.push("main", &[(".mainstay/ci.yml", good)]);
    let run = lab.ended(&linked);
    let said = lab.logs(&run);
    assert_eq!(run["status"], "success", "{said}");
    assert!(said.contains("5000") && said.contains("all there"), "{said}");
    std::fs::remove_file(lab.work.join("etc")).unwrap();
    let passwd = b"steps:\n  look: { image: busybox, commands: [\"test ! -L etc\", \"grep ours etc/passwd\", \"grep -q root /etc/passwd\"] }\n";
    let through = lab.push("main", &[("etc/passwd", b"ours\n"), (".mainstay/ci.yml", passwd)]);
    let run = lab.ended(&through);
    assert_eq!(run["status"], "success", "{}", lab.logs(&run));
    assert!(!std::fs::read_to_string("/etc/passwd").unwrap().contains("ours"));
    lab.alive();
}

#[test]
fn words_of_commits_and_branches_are_text_and_nothing_else() {
    let mut lab = Lab::start("", "");
    // Commands that show what they were given, byte for byte.
    let pipeline = b"steps:\n  show:\n    image: busybox\n    commands:\n      - printf '%s' \"$CI_COMMIT_BRANCH\" | od -An -c | tr -d '\\n'\n      - printf '%s' \"$CI_COMMIT_MESSAGE\" | wc -c\n      - test ! -e /tmp/owned && echo safe\n";
    lab.push("main", &[(".mainstay/ci.yml", pipeline)]);
    let branches = [
        "$(touch${IFS}/tmp/owned)",
        "`id`",
        "a;reboot",
        "x|y&z",
        "'quoted'",
        "\"double\"",
        "żółw-\u{202e}evil",
        "-n",
        "a{b,c}",
    ];
    for branch in branches {
        let commit = lab.commit_and_push(branch, &format!("\u{1b}]0;title\u{7}\u{1b}[31mred {branch}\r\nsecond"));
        let run = lab.ended(&commit);
        let said = lab.logs(&run);
        assert_eq!(run["status"], "success", "{branch}: {said}");
        assert!(said.contains("safe"), "{branch}: {said}");
        assert_eq!(run["git_ref"], format!("refs/heads/{branch}"));
    }
    for command in [&["runs"][..], &["inbox"], &["show", "latest"], &["show", "2"]] {
        let said = text(&lab.cli(command));
        assert!(!said.contains(['\u{1b}', '\u{7}', '\u{202e}', '\r']), "{command:?}: {said:?}");
    }
    // A message of a MiB is cut; one with a NUL, which git itself refuses to write, is passed without it.
    let large = lab.commit_and_push("large", &format!("title\n\n{}", "words ".repeat(180_000)));
    let run = lab.ended(&large);
    assert_eq!(run["status"], "success", "{}", lab.logs(&run));
    let tree = git(&lab.work, &["rev-parse", "HEAD^{tree}"]);
    let raw = format!("tree {}\nauthor A <a@b.c> 1 +0000\ncommitter A <a@b.c> 1 +0000\n\nbefore\0after\n", tree.trim());
    let odd = crate::git_transports::git_with_input(
        &lab.work,
        &["hash-object", "-t", "commit", "-w", "--literally", "--stdin"],
        &raw,
    );
    let odd = odd.trim();
    git(&lab.work, &["push", "-q", "origin", &format!("{odd}:refs/heads/nul")]);
    let run = lab.ended(odd);
    assert_eq!(run["status"], "success", "{run}\n{}", lab.logs(&run));
    lab.alive();
}
