//! A secret given to a step is in no file of the state folder but its own, and in no record of the engine.

use super::lab::{Lab, docker, files_below, text};
use std::io::Write;
use std::process::Stdio;

const VALUE: &str = "hunter2/\"two\" words&more=100%";

/// What a step can make of it with the tools it has. Nothing of these is in the pipeline's text.
const FORMS: [(&str, &str); 5] = [
    ("raw", "printf 'raw <%s>\\n' \"$TOKEN\""),
    ("base64", "printf %s \"$TOKEN\" | base64"),
    ("url", "printf %s \"$TOKEN\" | sed 's/%/%25/g; s/ /%20/g; s/\"/%22/g; s,/,%2F,g; s/&/%26/g; s/=/%3D/g'; echo"),
    ("json", "printf '{\"t\":\"%s\"}\\n' \"$(printf %s \"$TOKEN\" | sed 's/\"/\\\\\"/g')\""),
    ("split", "printf 'half '; printf %s \"$TOKEN\" | head -c 12; sleep 0.4; printf %s \"$TOKEN\" | tail -c +13; echo"),
];

fn store(lab: &Lab, value: &str) {
    let mut set = lab.command().args(["secrets", "set", "TOKEN"]).stdin(Stdio::piped()).spawn().unwrap();
    set.stdin.take().unwrap().write_all(format!("{value}\n").as_bytes()).unwrap();
    assert!(set.wait().unwrap().success());
}

#[test]
fn a_changed_secret_reaches_steps_after_a_reload() {
    let lab = Lab::start_with("", "    secrets: [TOKEN]\n", |lab| store(lab, "the first value"));
    store(&lab, "the second value");
    let reloaded = lab.cli(&["reload"]);
    assert!(reloaded.status.success() && text(&reloaded).contains("other secrets"), "{}", text(&reloaded));
    let again = text(&lab.cli(&["reload"]));
    assert!(!again.contains("other secrets"), "nothing changed since: {again}");
    let pipeline = "steps:
  ask:
    image: busybox
    secrets: [TOKEN]
    commands: ['test \"$TOKEN\" = \"the second value\"', 'echo \"it is $TOKEN\"']
";
    let run = lab.ended(&lab.push("main", &[(".mainstay/ci.yml", pipeline.as_bytes())]));
    let said = lab.logs(&run);
    assert_eq!(run["status"], "success", "{said}");
    assert!(said.contains("it is ***"), "{said}");
}

#[test]
fn a_secret_is_stored_nowhere_else_and_shown_to_nobody() {
    let lab = Lab::start_with("", "    secrets: [TOKEN]\n", |lab| store(lab, VALUE));
    let mut pipeline = String::from("steps:\n  show:\n    image: busybox\n    secrets: [TOKEN]\n    commands:\n");
    for (_, command) in FORMS {
        pipeline += &format!("      - |\n        {command}\n");
    }
    pipeline += "      - |\n        echo \"out=$TOKEN\" >> \"$MAINSTAY_OUTPUT\"\n";
    pipeline += "      - |\n        echo \"$TOKEN\" >&2; sleep 1.5\n";
    let commit = lab.push("main", &[(".mainstay/ci.yml", pipeline.as_bytes())]);
    let filter = format!("label=mainstay.instance={}", lab.instance().unwrap());
    // What fills the workspace comes and goes, and is the daemon's too: the step's own is waited for.
    let inspected = lab.wait("the step's container", || {
        let ids = docker(&["ps", "-aq", "--filter", &filter, "--filter", "label=mainstay.step"]);
        let ids: Vec<_> = ids.split_whitespace().collect();
        let inspected = if ids.is_empty() { String::new() } else { docker(&[&["inspect"][..], &ids].concat()) };
        inspected.contains("mainstay.step").then_some(inspected)
    });
    let forms = [
        VALUE.to_owned(),
        base64(VALUE),
        VALUE
            .replace('%', "%25")
            .replace(' ', "%20")
            .replace('"', "%22")
            .replace('/', "%2F")
            .replace('&', "%26")
            .replace('=', "%3D"),
        VALUE.replace('"', "\\\""),
        "hunter2".to_owned(),
        "words&more".to_owned(),
    ];
    let clean = |where_: &str, content: &[u8]| {
        for form in &forms {
            let found = memchr::memmem::find(content, form.as_bytes());
            assert!(found.is_none(), "{where_} holds `{form}`:\n{}", String::from_utf8_lossy(content));
        }
    };
    clean("docker inspect", inspected.as_bytes());
    let run = lab.ended(&commit);
    let said = lab.logs(&run);
    assert_eq!(run["status"], "success", "{said}");
    assert!(said.contains("raw <***>") && said.contains("half ***"), "{said}");
    clean("the log", said.as_bytes());
    clean("show", run.to_string().as_bytes());
    clean("inbox", text(&lab.cli(&["inbox"])).as_bytes());
    clean("the daemon's log", lab.log().as_bytes());
    let own = lab.state().join("secrets/TOKEN");
    let mut looked_at = 0;
    for file in files_below(&lab.state()) {
        if file != own {
            clean(&file.display().to_string(), &std::fs::read(&file).unwrap());
            looked_at += 1;
        }
    }
    assert!(looked_at > 5, "only {looked_at} files");
    // The command line shows names only.
    clean("secrets list", text(&lab.cli(&["secrets", "list"])).as_bytes());
    assert_eq!(lab.json(&["secrets", "list"]), serde_json::json!(["TOKEN"]));
    assert_eq!(lab.cli(&["secrets", "rm", "NONE"]).status.code(), Some(2));
    assert_eq!(lab.cli(&["secrets", "set", "../x"]).status.code(), Some(2));
    assert!(lab.cli(&["secrets", "rm", "TOKEN"]).status.success() && !own.exists());
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}
