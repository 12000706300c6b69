//! Steps that print, fork and eat without end.

use super::lab::Lab;

/// What each prints; the heavier sizes are in the soak test.
const FLOODS: &str = r#"
steps:
  flood: { image: busybox, needs: [], commands: ["yes 0123456789abcdef | head -c 134217728; echo the end"] }
  line: { image: busybox, needs: [], commands: ["head -c 10485760 /dev/zero | tr '\\0' x; echo; echo after the line"] }
  bytes: { image: busybox, needs: [], commands: ["printf 'a\\377\\376b\\n'; head -c 65536 /dev/urandom; echo; echo after the bytes"] }
  bars: { image: busybox, needs: [], commands: ["for i in $(seq 1 2000); do printf 'progress %s\\r' $i; done; echo; echo after the bars"] }
  output: { image: busybox, needs: [], commands: ["head -c 10485760 /dev/zero | tr '\\0' x > $MAINSTAY_OUTPUT; echo after the output"] }
"#;

#[test]
fn floods_are_cut_with_a_word_and_cost_the_daemon_little() {
    let mut lab = Lab::start("limits: { log: 1MiB }", "");
    let commit = lab.push("main", &[(".mainstay/ci.yml", FLOODS.as_bytes())]);
    let run = lab.ended(&commit);
    assert_eq!(run["status"], "success", "{run}");
    let id = run["id"].to_string();
    let log = |step: &str| String::from_utf8_lossy(&lab.cli(&["logs", &id, step]).stdout).into_owned();
    let flood = log("flood");
    assert!(flood.len() < 8 << 20, "{}", flood.len());
    let last: String = flood.lines().rev().take(3).collect::<Vec<_>>().join("\n");
    assert!(last.contains("limit of 1048576 bytes"), "{last}");
    assert!(log("line").len() < 4 << 20);
    for (step, words) in [("bytes", "after the bytes"), ("bars", "after the bars"), ("output", "after the output")] {
        let said = log(step);
        assert!(said.contains(words), "{step}: {}", said.chars().take(2_000).collect::<String>());
    }
    assert!(!log("bars").contains('\r'));
    let shown = lab.json(&["show", &id]).to_string();
    assert!(shown.len() < 1 << 20, "an output of 10 MiB is not kept: {}", shown.len());
    lab.alive();
    assert!(lab.peak_mib() < 128, "{} MiB", lab.peak_mib());
}

const GREEDY: &str = r#"
steps:
  forks:
    image: busybox
    needs: []
    resources: { pids: 60 }
    timeout: 8s
    commands: ["b() { b | b & }; b; sleep 2; echo survived"]
  memory:
    image: busybox
    needs: []
    resources: { memory: 32MiB }
    commands: ["dd if=/dev/zero of=/dev/null bs=200M count=1"]
"#;

#[test]
fn who_forks_or_eats_too_much_ends_and_the_log_says_why() {
    let mut lab = Lab::start("", "");
    let commit = lab.push("main", &[(".mainstay/ci.yml", GREEDY.as_bytes())]);
    let run = lab.ended(&commit);
    assert_eq!(run["status"], "failure", "{run}");
    let said = lab.logs(&run);
    assert!(
        said.contains("out of memory") && said.contains("32MiB"),
        "{}",
        said.chars().take(4_000).collect::<String>()
    );
    let shown = super::lab::text(&lab.cli(&["show", &run["id"].to_string()]));
    assert!(shown.contains("out of memory"), "{shown}");
    lab.alive();
}
