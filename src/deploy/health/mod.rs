//! Health rules: asked, judged, and followed.
//!
//! `probe` asks one rule once. `watch` asks all rules, each in its own rhythm, and hands the answers over. `judge` folds
//! answers into a verdict, without I/O, so that it can be made again from stored answers. Called by `deploy`.

pub mod judge;
pub mod probe;
pub mod watch;

pub use judge::{Judge, Verdict};
pub use probe::ask;
pub use watch::follow;

use crate::config::daemon::environment::{Compare, Expect, HealthCheck, HealthRule};

/// What rules need to know that is not theirs to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// The most that any one container of the target was started anew since the release serves, as the target's
    /// `observe` counts it; `None` as long as nobody has counted.
    pub restarts_since: Option<u64>,
}

/// So much of a URL, a command or a query is shown: a line on a screen.
const SHOWN_CHARS: usize = 120;

fn shown(text: &str) -> String {
    let mut short: String = text.trim().chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.trim().chars().count() > SHOWN_CHARS {
        short.push_str("...");
    }
    short
}

/// A rule as people name it: `http http://127.0.0.1:8080/healthz`. Credentials in a URL are left out.
pub fn words(rule: &HealthRule) -> String {
    match &rule.check {
        HealthCheck::Http { url, .. } => format!("http {}", shown(&crate::git::without_credentials(url))),
        HealthCheck::Tcp(address) => format!("tcp {}", shown(address)),
        HealthCheck::Command(line) => format!("command `{}`", shown(line)),
        HealthCheck::Restarts(most) => format!("restarts, at most {most}"),
        HealthCheck::Prometheus { query, expect, .. } => {
            format!("prometheus `{}` {}", shown(query), expectation(*expect))
        }
    }
}

fn expectation(expect: Expect) -> String {
    let sign = match expect.compare {
        Compare::Less => "<",
        Compare::LessOrEqual => "<=",
        Compare::Greater => ">",
        Compare::GreaterOrEqual => ">=",
        Compare::Equal => "==",
    };
    format!("{sign} {}", expect.than)
}

/// Whether a value satisfies the comparison. A value that is no number satisfies none.
fn satisfies(expect: Expect, value: f64) -> bool {
    match expect.compare {
        Compare::Less => value < expect.than,
        Compare::LessOrEqual => value <= expect.than,
        Compare::Greater => value > expect.than,
        Compare::GreaterOrEqual => value >= expect.than,
        // Counts and flags are compared for being equal, and those are exact.
        Compare::Equal => value == expect.than,
    }
}
