//! The repository that is measured with: 2,000 files, 10 MB, and a pipeline for each figure.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Files of the tree, in folders of fifty.
pub(crate) const FILES: usize = 2_000;
/// Bytes of each; together 10 MB.
const FILE_BYTES: usize = 5_000;
/// Files that each commit changes.
const CHANGED: usize = 10;
/// Every step runs in it; `make bench` brings it to the engine.
pub(crate) const IMAGE: &str = "debian:12";
/// Steps of the row.
pub(crate) const ROW: usize = 20;
/// Steps side by side in the wide graph, and how many such layers it has.
pub(crate) const WIDE: usize = 50;
pub(crate) const LAYERS: usize = 4;
/// Steps of the chain in which each has a predecessor that takes a second.
pub(crate) const CHAIN: usize = 11;
/// Lines that the talking step prints.
pub(crate) const LINES: usize = 1_000_000;

/// Prints that many lines of 80 bytes.
pub(crate) fn talk() -> String {
    format!(
        r#"awk 'BEGIN {{ for (i = 0; i < {LINES}; i++) printf "2026-01-01T00:00:00Z INFO request %09d took 1234 us, id 0123456789abcdefghijk\n", i }}'"#
    )
}

/// The text of a file: words like those of a source file, so that it compresses like one.
fn text(file: usize, version: usize) -> String {
    const WORDS: [&str; 16] = [
        "fn ", "let mut ", "self.", "return ", "match ", "if ", "value", "index", "count", " = ", "();\n", " {\n",
        "}\n", ".await?", "Result<", ">\n",
    ];
    let mut state = (file as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version as u64;
    let mut text = String::with_capacity(FILE_BYTES + 16);
    while text.len() < FILE_BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 60) as usize]);
    }
    text.truncate(FILE_BYTES);
    text
}

fn path(file: usize) -> String {
    format!("part{:02}/file{file:04}.rs", file / 50)
}

/// Writes the whole tree.
pub(crate) fn write(folder: &Path) {
    for file in 0..FILES {
        let path = folder.join(path(file));
        fs::create_dir_all(path.parent().expect("files are in folders")).expect("the folder is made");
        fs::write(path, text(file, 0)).expect("the file is written");
    }
}

/// Changes ten files, spread over the folders.
pub(crate) fn change(folder: &Path, version: usize) {
    for n in 0..CHANGED {
        let file = (n * FILES / CHANGED + version * 7) % FILES;
        fs::write(folder.join(path(file)), text(file, version)).expect("the file is written");
    }
}

/// Name and text of every pipeline of the repository.
pub(crate) fn pipelines() -> Vec<(&'static str, String)> {
    let manual = "on: { manual: {} }\nsteps:\n";
    let step = |name: &str, needs: &str, commands: &str| {
        format!("  {name}:\n    image: {IMAGE}\n{needs}    commands:\n      - |-\n        {commands}\n")
    };
    let push = format!("on: {{ push: {{ branches: [main] }} }}\nsteps:\n{}", step("first", "", "date +%s%N"));

    let row = (0..ROW).fold(manual.to_owned(), |text, n| text + &step(&format!("s{n}"), "", "true"));

    let chain = (0..CHAIN)
        .fold(manual.to_owned(), |text, n| text + &step(&format!("s{n}"), "", "date +%s%N; sleep 1; date +%s%N"));

    let mut wide = manual.to_owned();
    for n in 0..WIDE * LAYERS {
        let needs = if n < WIDE { "    needs: []\n".to_owned() } else { format!("    needs: [s{}]\n", n - WIDE) };
        let _ = write!(wide, "{}", step(&format!("s{n}"), &needs, "true"));
    }

    let beside =
        (0..2).fold(manual.to_owned(), |text, n| text + &step(&format!("s{n}"), "    needs: []\n", "sleep 600"));

    let talk = format!("{manual}{}", step("talk", "", &talk()));

    // A shell that prints without starting a process for each line: fifty of them must not keep the machine busy.
    let ticking = "exec bash -c 'exec 3<> <(:); while :; do echo tick; read -t 0.25 -u 3 _ || :; done'";
    let ticks = (0..WIDE).fold(manual.to_owned(), |text, n| text + &step(&format!("s{n}"), "    needs: []\n", ticking));

    vec![
        ("push", push),
        ("row", row),
        ("chain", chain),
        ("wide", wide),
        ("beside", beside),
        ("talk", talk),
        ("ticks", ticks),
    ]
}
