//! The drawing of a graph in characters, layers from left to right.
//!
//! An edge over several layers passes the ones between in a slot of its own. Between two layers, slots with the same
//! targets share one vertical line (a bus); a line that only crosses another is drawn over it as `│` or under it, never
//! with a joint. Where rows would have to be shared by lines that do not belong together, there is no drawing.

use super::{State, Tone, label};
use crate::config::needs::Needs;
use crate::model::Plan;
use std::collections::BTreeMap;

/// More rows are a list's business.
const ROWS_MAX: usize = 24;
/// Above this many steps nothing readable comes out.
const STEPS_MAX: usize = 80;

/// A place in a layer: a step, or an edge of a step that passes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    step: usize,
    passes: bool,
}

struct Layer {
    slots: Vec<Slot>,
    /// The row of the first slot.
    top: usize,
}

/// Lines between two layers that share one vertical: rows on the left, rows on the right.
struct Bus {
    from: Vec<usize>,
    to: Vec<usize>,
}

impl Bus {
    fn is_straight(&self) -> bool {
        self.from.len() == 1 && self.from == self.to
    }
    fn span(&self) -> (usize, usize) {
        let rows = || self.from.iter().chain(&self.to).copied();
        (rows().min().unwrap_or(0), rows().max().unwrap_or(0))
    }
}

const NORTH: u8 = 1;
const EAST: u8 = 2;
const SOUTH: u8 = 4;
const WEST: u8 = 8;

pub(super) fn draw(
    plan: &Plan,
    state: State<'_>,
    columns: usize,
    words: bool,
    paint: &dyn Fn(Tone, &str) -> String,
) -> Option<String> {
    if plan.steps.len() > STEPS_MAX {
        return None;
    }
    let needs = reduced(&Needs::of(plan.steps.iter().map(|step| (&step.name, step.needs.as_slice()))));
    let layers = arrange(&needs);
    let rows = layers.iter().map(|layer| layer.slots.len()).max()?;
    if rows > ROWS_MAX {
        return None;
    }
    let labels: Vec<(String, Tone)> = plan.steps.iter().map(|step| label(step, state, words)).collect();
    let mut lines = vec![String::new(); rows];
    let mut width = 0;
    for (n, layer) in layers.iter().enumerate() {
        let next = layers.get(n + 1);
        let steps = layer.slots.iter().filter(|slot| !slot.passes);
        let widest = steps.map(|slot| labels[slot.step].0.chars().count()).max().unwrap_or(0);
        // The first layer has no line coming in, and so no space before its labels.
        let column = widest + if n == 0 { 1 } else { 2 };
        let goes_on = |slot: &Slot| next.is_some_and(|next| !targets(*slot, next, &needs).is_empty());
        for (row, line) in lines.iter_mut().enumerate() {
            let slot = row.checked_sub(layer.top).and_then(|at| layer.slots.get(at));
            match slot {
                None => line.push_str(&" ".repeat(column)),
                Some(slot) if slot.passes => line.push_str(&"─".repeat(column)),
                Some(slot) => {
                    let (text, tone) = &labels[slot.step];
                    line.push_str(if n == 0 { "" } else { " " });
                    line.push_str(&paint(*tone, text));
                    let fill = widest + 1 - text.chars().count();
                    if goes_on(slot) {
                        line.push(' ');
                        line.push_str(&"─".repeat(fill - 1));
                    } else {
                        line.push_str(&" ".repeat(fill));
                    }
                }
            }
        }
        width += column;
        if let Some(next) = next {
            let channel = channel(layer, next, &needs, rows)?;
            width += channel[0].chars().count();
            for (line, part) in lines.iter_mut().zip(channel) {
                line.push_str(&part);
            }
        }
        // The last label has a space behind it.
        if width > columns + 1 {
            return None;
        }
    }
    Some(lines.into_iter().map(|line| line.trim_end().to_owned() + "\n").collect())
}

/// Without edges that follow from others: what `c` needs through `b` it need not show.
fn reduced(needs: &Needs) -> Needs {
    let before: Vec<_> = (0..needs.0.len()).map(|step| needs.before(step)).collect();
    let direct = |step: usize| -> Vec<usize> {
        let list = &needs.0[step];
        list.iter().copied().filter(|need| !list.iter().any(|other| before[*other].contains(need))).collect()
    };
    Needs((0..needs.0.len()).map(direct).collect())
}

/// Puts every step into the layer after the last of its needs, and orders each layer by where its lines come from.
fn arrange(needs: &Needs) -> Vec<Layer> {
    let order = needs.order();
    let mut depth = vec![0_usize; needs.0.len()];
    for &step in &order {
        depth[step] = needs.0[step].iter().map(|&need| depth[need] + 1).max().unwrap_or(0);
    }
    let mut last_use = depth.clone();
    for (step, list) in needs.0.iter().enumerate() {
        for &need in list {
            last_use[need] = last_use[need].max(depth[step]);
        }
    }
    let count = depth.iter().max().map_or(0, |d| d + 1);
    let mut layers: Vec<Vec<Slot>> = vec![Vec::new(); count];
    for &step in &order {
        layers[depth[step]].push(Slot { step, passes: false });
        for layer in layers.iter_mut().take(last_use[step]).skip(depth[step] + 1) {
            layer.push(Slot { step, passes: true });
        }
    }
    let most = layers.iter().map(Vec::len).max().unwrap_or(0);
    let mut done: Vec<Layer> = Vec::new();
    for mut slots in layers {
        if let Some(before) = done.last() {
            let height = |slot: &Slot| {
                let rows: Vec<usize> = (0..before.slots.len())
                    .filter(|&at| targets_slot(before.slots[at], *slot, needs))
                    .map(|at| 2 * (before.top + at))
                    .collect();
                // Steps that nothing leads to come last.
                if rows.is_empty() { usize::MAX } else { rows.iter().sum::<usize>() * 8 / rows.len() }
            };
            slots.sort_by_key(height);
        }
        let top = (most - slots.len()) / 2;
        done.push(Layer { slots, top });
    }
    done
}

/// Whether a line leads from a slot to one of the next layer.
fn targets_slot(from: Slot, to: Slot, needs: &Needs) -> bool {
    if to.passes { to.step == from.step } else { needs.0[to.step].contains(&from.step) }
}

/// The rows of the next layer that a slot leads to.
fn targets(from: Slot, next: &Layer, needs: &Needs) -> Vec<usize> {
    let hit = |at: &usize| targets_slot(from, next.slots[*at], needs);
    (0..next.slots.len()).filter(hit).map(|at| next.top + at).collect()
}

/// The lines between two layers, a text for each row.
fn channel(layer: &Layer, next: &Layer, needs: &Needs, rows: usize) -> Option<Vec<String>> {
    let mut by_targets: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (at, slot) in layer.slots.iter().enumerate() {
        let to = targets(*slot, next, needs);
        if !to.is_empty() {
            by_targets.entry(to).or_default().push(layer.top + at);
        }
    }
    let buses: Vec<Bus> = by_targets.into_iter().map(|(to, from)| Bus { from, to }).collect();
    let tracks = tracks(&buses)?;
    let width = 2 * tracks.len() + 1;
    let mut grid = vec![vec![0_u8; width]; rows];
    for bus in &buses {
        let x = tracks.iter().position(|&b| std::ptr::eq(b, bus)).map(|n| 2 * n + 1);
        for &row in &bus.from {
            grid[row][..x.unwrap_or(width)].fill(EAST | WEST);
        }
        for &row in &bus.to {
            grid[row][x.map_or(0, |x| x + 1)..].fill(EAST | WEST);
        }
    }
    for (n, bus) in tracks.iter().enumerate() {
        let x = 2 * n + 1;
        let (top, bottom) = bus.span();
        for (row, line) in grid.iter_mut().enumerate().take(bottom + 1).skip(top) {
            let joint = bus.from.contains(&row) || bus.to.contains(&row);
            if !joint {
                line[x] = NORTH | SOUTH;
                continue;
            }
            line[x] |= if row > top { NORTH } else { 0 } | if row < bottom { SOUTH } else { 0 };
            line[x] |= if bus.from.contains(&row) { WEST } else { 0 } | if bus.to.contains(&row) { EAST } else { 0 };
        }
    }
    Some(grid.into_iter().map(|line| line.into_iter().map(glyph).collect()).collect())
}

/// The verticals from left to right, so that no line runs along another's row. `None` when there is no such order.
fn tracks(buses: &[Bus]) -> Option<Vec<&Bus>> {
    let mut left: Vec<&Bus> = buses.iter().filter(|bus| !bus.is_straight()).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        // A bus may come next when no row it leads to is one that another, still to come, comes from.
        let free = |bus: &&Bus| {
            !left.iter().any(|other| !std::ptr::eq(*other, *bus) && bus.to.iter().any(|row| other.from.contains(row)))
        };
        let at = left.iter().position(free)?;
        order.push(left.remove(at));
    }
    Some(order)
}

fn glyph(lines: u8) -> char {
    const NE: u8 = NORTH | EAST;
    const NS: u8 = NORTH | SOUTH;
    const NW: u8 = NORTH | WEST;
    const ES: u8 = EAST | SOUTH;
    const EW: u8 = EAST | WEST;
    const SW: u8 = SOUTH | WEST;
    match lines {
        0 => ' ',
        NS | NORTH | SOUTH => '│',
        EW | EAST | WEST => '─',
        NE => '╰',
        NW => '╯',
        ES => '╭',
        SW => '╮',
        l if l == NS | EAST => '├',
        l if l == NS | WEST => '┤',
        l if l == EW | SOUTH => '┬',
        l if l == EW | NORTH => '┴',
        _ => '┼',
    }
}
