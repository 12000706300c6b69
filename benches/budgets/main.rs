//! The budgets of the runner, measured on the real binary against a peer in the same minutes: `make bench`.
//!
//! `cargo bench --bench budgets` measures all of them, `cargo bench --bench budgets -- push ready` the named ones, and
//! `--quick` makes few repetitions. `MAINSTAY_BENCH_BINARY` names another binary than the one just built. Each figure
//! is a file of this folder; `docs/benchmarks.md` explains what is measured from where to where, and what came out.
//!
//! Ours and the peer's turns alternate, so that whatever else the machine does falls on both.

mod attach;
mod client;
mod deploy;
mod idle;
mod lab;
mod logs;
mod numbers;
#[path = "../../tests/it/support/ports.rs"]
mod ports;
mod push;
mod ready;
mod recovery;
mod row;
mod tree;
mod wide;

use lab::Lab;
use numbers::{Report, machine, print};

/// How often things are repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Few repetitions, for trying out.
    pub(crate) quick: bool,
}

impl Effort {
    /// The number for a full measurement, or the one for a quick try.
    pub(crate) fn of(self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// A figure's name and what measures it.
type Figure = (&'static str, fn(&Lab, Effort, &mut Report));

/// One with a daemon of its own.
type Apart = (&'static str, fn(Effort, &mut Report));

/// The figures with a daemon of their own, after the others.
const APART: &[Apart] = &[("deploy", deploy::measure), ("idle", idle::measure), ("recovery", recovery::measure)];

/// The figures that share one daemon, in order.
const SHARED: &[Figure] = &[
    ("push", push::measure),
    ("row", row::measure),
    ("ready", ready::measure),
    ("wide", wide::measure),
    ("logs", logs::measure),
    ("attach", attach::measure),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let effort = Effort { quick: arguments.iter().any(|argument| argument == "--quick") };
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|name| !name.starts_with("--")).collect();
    let all: Vec<&str> = SHARED.iter().map(|(name, _)| *name).chain(APART.iter().map(|(name, _)| *name)).collect();
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        panic!("there is no figure `{unknown}`; there are: {}", all.join(", "));
    }
    let wanted = |name: &str| names.is_empty() || names.contains(&name);

    let mut report = Report::default();
    print(format_args!("{}", machine()));
    if !lab::docker_run_options().is_empty() {
        print(format_args!("the peer's docker run has {}", lab::docker_run_options().join(" ")));
    }
    let shared: Vec<_> = SHARED.iter().filter(|(name, _)| wanted(name)).collect();
    if !shared.is_empty() {
        let lab = Lab::start(&tree::pipelines(), effort);
        for (name, measure) in shared {
            print(format_args!("\n{name}"));
            measure(&lab, effort, &mut report);
        }
    }
    for (name, measure) in APART.iter().filter(|(name, _)| wanted(name)) {
        print(format_args!("\n{name}"));
        measure(effort, &mut report);
    }
    report.summary();
}
