use super::*;
use crate::config::pipeline::parse;
use crate::plan::{Defaults, make};

fn plan(steps: &[(&str, &str)]) -> Plan {
    let lines: String =
        steps.iter().map(|(name, needs)| format!("  {name}: {{image: x, needs: [{needs}]}}\n")).collect();
    let pipeline =
        parse("build".parse().unwrap(), "build.yml", &format!("steps:\n{lines}")).unwrap_or_else(|e| panic!("{e}"));
    make(&pipeline, "build.yml", "", &Defaults::default()).unwrap()
}

fn fan() -> Plan {
    plan(&[
        ("fetch", ""),
        ("lint", "fetch"),
        ("unit", "fetch"),
        ("docs", "fetch"),
        ("package", "lint, unit, docs"),
        ("tell", "package"),
    ])
}

fn drawn(steps: &[(&str, &str)]) -> String {
    format!("\n{}", text(&plan(steps), &|_| None))
}

#[test]
fn fan_out_and_in_is_drawn_from_left_to_right() {
    let drawing = format!("\n{}", text(&fan(), &|_| None));
    assert_eq!(
        drawing,
        "
         ╭─ ○ lint ─╮
○ fetch ─┼─ ○ unit ─┼─ ○ package ─ ○ tell
         ╰─ ○ docs ─╯
"
    );
    let running = format!("\n{}", text_painted(&fan(), &states, None, &|_, label| label.to_owned()));
    assert_eq!(
        running,
        "
            ╭─ ✗ lint failed 1m 3s ─╮
✓ fetch 2s ─┼─ ● unit running 12s ──┼─ ○ package ─ ○ tell
            ╰─ – docs skipped ──────╯
"
    );
}

#[test]
fn edges_pass_layers_and_what_follows_from_others_is_not_drawn() {
    let passing = drawn(&[("a", ""), ("long-name", "a"), ("c", "a"), ("d", "c"), ("e", "d, long-name, a")]);
    assert_eq!(
        passing,
        "
○ a ─┬─ ○ long-name ───────┬─ ○ e
     ╰─ ○ c ───────── ○ d ─╯
"
    );
    let lines = drawn(&[("a", ""), ("b", "a"), ("c", "a"), ("d", "b"), ("e", "c"), ("f", "d, e")]);
    assert_eq!(
        lines,
        "
○ a ─┬─ ○ b ─ ○ d ─┬─ ○ f
     ╰─ ○ c ─ ○ e ─╯
"
    );
    assert_eq!(drawn(&[("a", ""), ("b", ""), ("c", "")]), "\n○ a\n○ b\n○ c\n");
}

#[test]
fn what_does_not_fit_is_a_list() {
    let names: Vec<String> = (0..30).map(|n| format!("a-step-with-a-long-name-{n}")).collect();
    let steps: Vec<(&str, &str)> = names
        .iter()
        .enumerate()
        .map(|(n, name)| (name.as_str(), if n == 0 { "" } else { names[n - 1].as_str() }))
        .collect();
    let list = drawn(&steps);
    assert!(list.contains("   2  ○ a-step-with-a-long-name-1   after a-step-with-a-long-name-0\n"), "{list}");
    let wide: Vec<(String, String)> = (0..200).map(|n| (format!("s{n}"), String::new())).collect();
    let wide: Vec<(&str, &str)> = wide.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(drawn(&wide).lines().count(), 201);
}

#[test]
fn pictures_hold_every_step_and_edge_and_escape_what_they_are_given() {
    let hostile = |name: &StepName| {
        (name.as_str() == "lint").then(|| Cell {
            glyph: '<',
            word: "\"</text><script>\u{1b}".to_owned(),
            time: "&".to_owned(),
            tone: Tone::Bad,
        })
    };
    let picture = svg(&fan(), &hostile);
    assert!(picture.contains("&quot;&lt;/text&gt;&lt;script&gt;\u{fffd} &amp;") && !picture.contains("<script"));
    assert_eq!(picture.matches("<g><rect").count(), 6);
    assert_eq!(picture.matches("<path d=").count(), 7);
    let graph = dot(&fan(), &hostile);
    assert_eq!(graph.matches(" -> ").count(), 7);
    assert!(graph.contains("label=\"< lint \\\"</text>"), "{graph}");
    let flow = mermaid(&fan(), &hostile);
    assert_eq!(flow.matches(" --> ").count(), 7);
    assert!(flow.contains("[\"#lt; lint #quot;#lt;/text#gt;"), "{flow}");
}

#[test]
fn what_runs_no_container_says_what_it_does() {
    let text_of = "steps:
  image: {image: x}
  staging: {deploy: {environment: staging}}
  ask: {approval: {environment: live}}
  live: {deploy: {environment: live, promote: staging}}
";
    let pipeline = parse("build".parse().unwrap(), "build.yml", text_of).unwrap_or_else(|e| panic!("{e}"));
    let plan = make(&pipeline, "build.yml", "", &Defaults::default()).unwrap();
    let drawn = |columns| text_painted(&plan, &|_| None, Some(columns), &|_, label| label.to_owned());
    assert_eq!(
        drawn(120),
        "○ image ─ ○ staging (deploy → staging) ─ ○ ask (approval · live) ─ ○ live (promote staging → live)\n"
    );
    // Where it does not fit, the drawing is worth more.
    let wanted = "○ image ─ ○ staging ─ ○ ask ─ ○ live\n
staging  deploy → staging
ask      approval · live
live     promote staging → live
";
    assert_eq!(drawn(60), wanted);
    assert!(drawn(20).contains("   2  ○ staging (deploy → staging)     after image\n"), "{}", drawn(20));
    let waits = |name: &StepName| {
        (name.as_str() == "ask").then(|| Cell {
            glyph: '●',
            word: "runs".to_owned(),
            time: "2m".to_owned(),
            tone: Tone::Active,
        })
    };
    let stands = text_painted(&plan, &waits, Some(120), &|_, label| label.to_owned());
    assert!(stands.contains("● ask (approval · live) runs 2m"), "{stands}");
    assert!(dot(&plan, &waits).contains(r#""staging" [label="staging\ndeploy → staging","#), "{}", dot(&plan, &waits));
    assert!(mermaid(&plan, &waits).contains("[\"● ask runs 2m<br/>approval · live\"]"), "{}", mermaid(&plan, &waits));
    let picture = svg(&plan, &waits);
    for words in [">deploy → staging<", ">approval · live, runs 2m<", ">promote staging → live<"] {
        assert!(picture.contains(words), "{words} is not in {picture}");
    }
}

#[test]
fn colours_can_be_told_apart_from_what_is_under_them() {
    let luminance = |color: &str| {
        let part = |at: usize| {
            let value = f64::from(u8::from_str_radix(&color[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.03928 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    };
    let contrast = |a: &str, b: &str| {
        let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
        a.max(b) / a.min(b)
    };
    for tone in [Tone::Plain, Tone::Good, Tone::Bad, Tone::Active, Tone::Dim] {
        let colors = svg::colors(tone);
        assert!(contrast(colors.text, colors.fill) >= 4.5, "{tone:?}");
        assert!(contrast(colors.line, "#ffffff") >= 3.0, "{tone:?}");
    }
}

fn states(name: &StepName) -> Option<Cell> {
    let cell =
        |glyph, word: &str, time: &str, tone| Some(Cell { glyph, word: word.to_owned(), time: time.to_owned(), tone });
    match name.as_str() {
        "fetch" => cell('✓', "", "2s", Tone::Good),
        "lint" => cell('✗', "failed", "1m 3s", Tone::Bad),
        "unit" => cell('●', "running", "12s", Tone::Active),
        "docs" => cell('–', "skipped", "", Tone::Dim),
        _ => None,
    }
}
