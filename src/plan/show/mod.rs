//! A plan for people's eyes: as text, for Graphviz, for Mermaid, and as a picture.
//!
//! A plan comes in from `cli` (and from `show RUN`, with the state of each step); text goes out.

mod drawing;
mod svg;

pub use svg::svg;

use super::layers;
use crate::model::{Plan, PlannedStep, StepName};
use std::fmt::Write as _;

/// What a part of a picture says by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Not begun, or nothing to say.
    Plain,
    /// Went well.
    Good,
    /// Went wrong.
    Bad,
    /// Under way.
    Active,
    /// Left out, or less important.
    Dim,
}

/// How a step stands. The word says it too, so that nothing depends on colour or glyph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// One character before the name.
    pub glyph: char,
    /// A word after the name; empty for none.
    pub word: String,
    /// How long it took or has been taking, in words; empty for none.
    pub time: String,
    /// The colour.
    pub tone: Tone,
}

/// The state of a step, when there is one.
pub type State<'a> = &'a dyn Fn(&StepName) -> Option<Cell>;

/// Where nobody knows the terminal's width, this one is assumed; a drawing that does not fit becomes a list.
pub const COLUMNS: usize = 100;

/// For a terminal of 100 columns: a drawing where it fits, else a list by layers.
pub fn text(plan: &Plan, state: State<'_>) -> String {
    text_painted(plan, state, None, &|_, label| label.to_owned())
}

/// Like [`text`], for a terminal of that many columns, with each step's label passed through `paint`, which may only add what has no width.
pub fn text_painted(
    plan: &Plan,
    state: State<'_>,
    columns: Option<usize>,
    paint: &dyn Fn(Tone, &str) -> String,
) -> String {
    let columns = columns.unwrap_or(COLUMNS);
    // What a step does is worth its room in a drawing, but not the drawing: then it stands below.
    let drawn = drawing::draw(plan, state, columns, true, paint);
    let drawn = drawn.or_else(|| Some(drawing::draw(plan, state, columns, false, paint)? + &below(plan)));
    drawn.unwrap_or_else(|| list(plan, state, paint))
}

/// A line for each step that is no container: its name and what it does.
fn below(plan: &Plan) -> String {
    let rows: Vec<_> = plan.steps.iter().filter_map(|step| Some((step.name.as_str(), step.kind.words()?))).collect();
    let widest = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = if rows.is_empty() { String::new() } else { "\n".to_owned() };
    for (name, words) in rows {
        let _ = writeln!(out, "{name:<widest$}  {words}");
    }
    out
}

/// One line a step: its layer, its label, what it needs.
fn list(plan: &Plan, state: State<'_>, paint: &dyn Fn(Tone, &str) -> String) -> String {
    let mut out = String::new();
    let widest = plan.steps.iter().map(|s| label(s, state, true).0.chars().count()).max().unwrap_or(0).min(60);
    for (depth, layer) in layers(plan).into_iter().enumerate() {
        for (n, step) in layer.into_iter().filter_map(|name| plan.step(name)).enumerate() {
            let number = if n == 0 { (depth + 1).to_string() } else { String::new() };
            let (text, tone) = label(step, state, true);
            let pad = " ".repeat(widest.saturating_sub(text.chars().count()));
            let needs = match step.needs.as_slice() {
                [] => String::new(),
                few if few.len() <= 4 => {
                    format!("{pad}  after {}", few.iter().map(StepName::as_str).collect::<Vec<_>>().join(", "))
                }
                many => format!("{pad}  after {}, {} and {} more", many[0], many[1], many.len() - 2),
            };
            let _ = writeln!(out, "{number:>4}  {}{needs}", paint(tone, &text));
        }
    }
    out
}

/// Sign, name, what it does when it is no container and that is wanted, and how it stands.
fn label(step: &PlannedStep, state: State<'_>, words: bool) -> (String, Tone) {
    let does = step.kind.words().filter(|_| words).map(|words| format!(" ({words})")).unwrap_or_default();
    match state(&step.name) {
        None => (format!("○ {}{does}", step.name), Tone::Plain),
        Some(cell) => {
            let mut text = format!("{} {}{does}", cell.glyph, step.name);
            for more in [&cell.word, &cell.time] {
                if !more.is_empty() {
                    text.push(' ');
                    text.push_str(more);
                }
            }
            (text, cell.tone)
        }
    }
}

/// The lines of a box: name and how it stands, and what it does when it is no container.
fn lines(step: &PlannedStep, state: State<'_>) -> (String, Option<String>, Tone) {
    let (text, tone) = label(step, state, false);
    let text = if state(&step.name).is_some() { text } else { step.name.to_string() };
    (text, step.kind.words(), tone)
}

/// For Graphviz.
pub fn dot(plan: &Plan, state: State<'_>) -> String {
    let mut out = String::new();
    // Names hold only letters, digits, `-`, `_` and `.`; states come from us, but are escaped all the same.
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let quoted = |text: &str| format!("\"{}\"", escaped(text));
    let _ = writeln!(out, "digraph {} {{", quoted(plan.pipeline.as_str()));
    out.push_str(
        "  rankdir=LR;\n  node [shape=box, style=\"rounded,filled\", fillcolor=white, fontname=\"sans-serif\"];\n",
    );
    for step in &plan.steps {
        let (text, does, tone) = lines(step, state);
        let does = does.map(|does| format!("\\n{}", escaped(&does))).unwrap_or_default();
        let colors = svg::colors(tone);
        let _ = writeln!(
            out,
            "  {} [label=\"{}{does}\", fillcolor=\"{}\", color=\"{}\"];",
            quoted(step.name.as_str()),
            escaped(&text),
            colors.fill,
            colors.line
        );
    }
    for step in &plan.steps {
        for need in &step.needs {
            let _ = writeln!(out, "  {} -> {};", quoted(need.as_str()), quoted(step.name.as_str()));
        }
    }
    out.push_str("}\n");
    out
}

/// For Mermaid, as Markdown pages of forges draw it.
pub fn mermaid(plan: &Plan, state: State<'_>) -> String {
    let mut out = "flowchart LR\n".to_owned();
    // Step names may be words of Mermaid (`end`), so nodes have numbers and names are labels.
    let number = |name: &StepName| plan.steps.iter().position(|s| s.name == *name).unwrap_or_default();
    for (n, step) in plan.steps.iter().enumerate() {
        let (text, does, tone) = lines(step, state);
        let escaped =
            |text: &str| text.replace('&', "#amp;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;");
        let does = does.map(|does| format!("<br/>{}", escaped(&does))).unwrap_or_default();
        let _ = writeln!(out, "  s{n}[\"{}{does}\"]", escaped(&text));
        if tone != Tone::Plain {
            let colors = svg::colors(tone);
            let _ = writeln!(out, "  style s{n} fill:{},stroke:{},color:{}", colors.fill, colors.line, colors.text);
        }
    }
    for (n, step) in plan.steps.iter().enumerate() {
        for need in &step.needs {
            let _ = writeln!(out, "  s{} --> s{n}", number(need));
        }
    }
    out
}

#[cfg(test)]
mod tests;
