//! Samples, their middle and tail, and the lines that are printed.

use std::fmt::Arguments;
use std::io::Write;
use std::process::Command;

/// Prints a line at once: some figures take minutes.
pub(crate) fn print(line: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Measured values, in milliseconds unless said otherwise.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a value.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least that share of the values does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        assert!(!self.0.is_empty(), "nothing was measured");
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// The value in the middle.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value that one in twenty exceeds.
    pub(crate) fn p95(&self) -> f64 {
        self.quantile(0.95)
    }

    /// Median, tail, extremes and number, for a line.
    pub(crate) fn shown(&self, unit: &str) -> String {
        let (low, high) = (self.quantile(0.0), self.quantile(1.0));
        let digits = usize::from(high < 100.0);
        format!(
            "p50 {:.digits$} p95 {:.digits$} [{low:.digits$}..{high:.digits$}] {unit}, n={}",
            self.median(),
            self.p95(),
            self.count()
        )
    }
}

/// What a budget asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Budget {
    fn is_kept(self, value: f64) -> bool {
        match self {
            Budget::AtMost(limit) => value <= limit,
            Budget::AtLeast(limit) => value >= limit,
        }
    }
}

/// All figures with their budgets.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<(String, bool)>,
}

impl Report {
    /// Adds a figure and prints it.
    pub(crate) fn figure(&mut self, what: &str, value: f64, unit: &str, budget: Budget) {
        let kept = budget.is_kept(value);
        let (sign, limit) = match budget {
            Budget::AtMost(limit) => ("<=", limit),
            Budget::AtLeast(limit) => (">=", limit),
        };
        let verdict = if kept { "kept" } else { "MISSED" };
        let line = format!("{what:<58} {value:>8.2} {unit:<6} budget {sign} {limit:<6} {verdict}");
        print(format_args!("  {line}"));
        self.lines.push((line, kept));
    }

    /// Prints all figures together.
    pub(crate) fn summary(&self) {
        print(format_args!("\n{}", machine()));
        for (line, _) in &self.lines {
            print(format_args!("{line}"));
        }
        let missed = self.lines.iter().filter(|(_, kept)| !kept).count();
        print(format_args!("{} of {} budgets kept", self.lines.len() - missed, self.lines.len()));
    }
}

/// The machine, its engine and how busy it is, in a line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let engine = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
    let engine = engine.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    format!(
        "machine: {cores} cores, {}, {} GiB, Linux {}, Docker Engine {engine}, load {}",
        model.unwrap_or("unknown processor"),
        kib.unwrap_or(0) >> 20,
        kernel.trim(),
        load.split(' ').next().unwrap_or("?")
    )
}
