//! The graph as a picture: no script, no font of its own, readable on any background.

use super::{State, Tone};
use crate::markup::escape;
use crate::model::{Plan, PlannedStep, StepName};
use crate::plan::layers;
use std::collections::HashMap;
use std::fmt::Write as _;

/// Colours that keep a contrast of at least 4.5 to 1 between text and fill, and 3 to 1 between line and white.
pub(super) struct Colors {
    pub(super) fill: &'static str,
    pub(super) line: &'static str,
    pub(super) text: &'static str,
}

pub(super) fn colors(tone: Tone) -> Colors {
    match tone {
        Tone::Plain => Colors { fill: "#ffffff", line: "#57606a", text: "#1f2328" },
        Tone::Good => Colors { fill: "#dafbe1", line: "#1a7f37", text: "#0b4a1c" },
        Tone::Bad => Colors { fill: "#ffebe9", line: "#cf222e", text: "#82061e" },
        Tone::Active => Colors { fill: "#fff8c5", line: "#7d4e00", text: "#4d2d00" },
        Tone::Dim => Colors { fill: "#f6f8fa", line: "#6e7781", text: "#4b535b" },
    }
}

const BOX_HEIGHT: usize = 44;
const GAP_X: usize = 56;
const GAP_Y: usize = 18;
const MARGIN: usize = 16;
/// Room for a line that passes below the boxes of a layer on its way to a later one.
const LANE_HEIGHT: usize = 14;
/// A character of the 14 px font is never much wider; boxes are made as wide as the longest text of their layer.
const CHAR_WIDTH: usize = 9;

/// Where a line passes a layer.
struct Lane {
    from: usize,
    to: usize,
    y: usize,
}

/// For each layer the steps whose lines to later layers pass it: they would run behind its boxes otherwise.
fn lanes<'p>(plan: &'p Plan, layers: &[Vec<&StepName>]) -> Vec<Vec<&'p StepName>> {
    let layer_of: HashMap<&str, usize> =
        layers.iter().enumerate().flat_map(|(at, layer)| layer.iter().map(move |name| (name.as_str(), at))).collect();
    let mut lanes: Vec<Vec<&StepName>> = vec![Vec::new(); layers.len()];
    for step in &plan.steps {
        for need in &step.needs {
            let (Some(&from), Some(&to)) = (layer_of.get(need.as_str()), layer_of.get(step.name.as_str())) else {
                continue;
            };
            for lane in lanes.iter_mut().take(to).skip(from + 1) {
                if !lane.contains(&need) {
                    lane.push(need);
                }
            }
        }
    }
    lanes
}

/// The picture as an SVG document.
pub fn svg(plan: &Plan, state: State<'_>) -> String {
    let layers = layers(plan);
    let lanes = lanes(plan, &layers);
    let mut at: HashMap<&str, (usize, usize, usize)> = HashMap::new();
    let mut lane_at: HashMap<(&str, usize), Lane> = HashMap::new();
    let column_height =
        |boxes: usize, lanes: usize| boxes * BOX_HEIGHT + boxes.saturating_sub(1) * GAP_Y + lanes * LANE_HEIGHT;
    let tallest = layers.iter().zip(&lanes).map(|(boxes, lanes)| column_height(boxes.len(), lanes.len())).max();
    let height = tallest.unwrap_or(0) + 2 * MARGIN;
    let mut x = MARGIN;
    for (column, (layer, lanes)) in layers.iter().zip(&lanes).enumerate() {
        let steps = layer.iter().filter_map(|name| plan.step(name));
        let chars = steps.map(|step| second_line(state, step).chars().count().max(step.name.as_str().len() + 2));
        let width = chars.max().unwrap_or(0) * CHAR_WIDTH + 24;
        let mut y = MARGIN + (height - 2 * MARGIN - column_height(layer.len(), lanes.len())) / 2;
        for name in layer {
            at.insert(name.as_str(), (x, y, width));
            y += BOX_HEIGHT + GAP_Y;
        }
        for name in lanes {
            // The gap below the last box is the lane's as well.
            y += LANE_HEIGHT;
            lane_at.insert((name.as_str(), column), Lane { from: x, to: x + width, y: y - GAP_Y });
        }
        x += width + GAP_X;
    }
    let width = x.saturating_sub(GAP_X) + MARGIN;
    let title = escape(plan.pipeline.as_str());
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-labelledby=\"title\" font-family=\"system-ui, sans-serif\" font-size=\"14\">\n\
         <title id=\"title\">Steps of the pipeline {title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<g fill=\"none\" stroke=\"#57606a\" stroke-width=\"1.5\">\n"
    );
    for step in &plan.steps {
        for need in &step.needs {
            if let (Some(&(fx, fy, fw)), Some(&(tx, ty, _))) = (at.get(need.as_str()), at.get(step.name.as_str())) {
                let (mut x1, mut y1, y2) = (fx + fw, fy + BOX_HEIGHT / 2, ty + BOX_HEIGHT / 2);
                let bend = GAP_X / 2;
                let mut path = format!("M{x1} {y1}");
                for lane in (0..layers.len()).filter_map(|column| lane_at.get(&(need.as_str(), column))) {
                    if lane.from > x1 && lane.to < tx {
                        let _ = write!(
                            path,
                            " C{} {y1} {} {y} {} {y} H{}",
                            x1 + bend,
                            lane.from.saturating_sub(bend),
                            lane.from,
                            lane.to,
                            y = lane.y
                        );
                        (x1, y1) = (lane.to, lane.y);
                    }
                }
                let _ = writeln!(
                    out,
                    "<path d=\"{path} C{} {y1} {} {y2} {} {y2}\"/><path fill=\"#57606a\" stroke=\"none\" d=\"M{} {} l7 4 l-7 4 z\"/>",
                    x1 + bend,
                    tx.saturating_sub(bend),
                    tx.saturating_sub(7),
                    tx.saturating_sub(8),
                    y2 - 4,
                );
            }
        }
    }
    out.push_str("</g>\n");
    for step in &plan.steps {
        let Some(&(x, y, width)) = at.get(step.name.as_str()) else { continue };
        let cell = state(&step.name);
        let colors = colors(cell.as_ref().map_or(Tone::Plain, |cell| cell.tone));
        let name = escape(step.name.as_str());
        let name = cell.as_ref().map_or(name.clone(), |cell| format!("{} {name}", escape(&cell.glyph.to_string())));
        let below = second_line(state, step);
        let _ = write!(
            out,
            "<g><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{BOX_HEIGHT}\" rx=\"8\" fill=\"{}\" stroke=\"{}\" stroke-width=\"1.5\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{}\" font-weight=\"600\">{name}</text>",
            colors.fill,
            colors.line,
            x + 12,
            y + if below.is_empty() { 27 } else { 19 },
            colors.text,
        );
        if !below.is_empty() {
            let below = escape(&below);
            let _ = write!(
                out,
                "<text x=\"{}\" y=\"{}\" fill=\"{}\" font-size=\"12\">{below}</text>",
                x + 12,
                y + 36,
                colors.text
            );
        }
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// What it does when it is no container, and how it stands.
fn second_line(state: State<'_>, step: &PlannedStep) -> String {
    let stands = state(&step.name).map(|cell| format!("{} {}", cell.word, cell.time).trim().to_owned());
    let parts: Vec<String> = step.kind.words().into_iter().chain(stands).filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}
