//! `health`: what must hold for a release to be well.

use super::super::{CHECK_KEYS, HEALTH_KEYS, PROMETHEUS_KEYS, Reader};
use super::{Compare, Expect, HealthCheck, HealthRule};
use crate::config::check::Fields;
use crate::config::finding::shown;
use crate::config::secret::Secret;
use crate::config::yaml::{Key, Node, Value};
use crate::model::Span;
use axum::http::Uri;
use axum::http::uri::Authority;
use std::str::FromStr;
use std::time::Duration;

const EVERY: Span = Span(Duration::from_secs(1));
/// More often than this, asking is a load of its own.
const EVERY_LEAST: Duration = Duration::from_millis(100);
const FAILURES: u32 = 3;
const WITHIN: Span = Span(Duration::from_secs(60));
const WITHIN_LEAST: Duration = Duration::from_secs(1);
const TIMEOUT: Span = Span(Duration::from_secs(5));
const TIMEOUT_LEAST: Duration = Duration::from_millis(10);
/// Each rule is asked about once a second; more of them than this nobody can tell apart.
const RULES_MAX: usize = 50;
/// Only `http` has these.
const HTTP_KEYS: [&str; 3] = ["status", "body", "latency"];

impl Reader<'_, '_> {
    pub(super) fn health(&mut self, node: &Node) -> Vec<HealthRule> {
        let mut rules = Vec::new();
        let items = self.check.items(node, "`health`");
        if items.len() > RULES_MAX {
            self.check.error(node.place, format!("there are {} rules; at most {RULES_MAX}", items.len()));
            return rules;
        }
        for item in items {
            rules.extend(self.rule(item));
        }
        rules
    }

    fn rule(&mut self, node: &Node) -> Option<HealthRule> {
        let fields = self.check.fields(node, "a rule of `health`", HEALTH_KEYS, &[])?;
        let kinds: Vec<_> = fields.entries.iter().filter(|(k, _)| CHECK_KEYS.contains(&k.name.as_str())).collect();
        let (kind, asked) = match kinds.as_slice() {
            // A key that does not exist is told about already; it was probably meant to be this one.
            [] if fields.entries.iter().any(|(k, _)| !HEALTH_KEYS.contains(&k.name.as_str())) => return None,
            [] => {
                let one = CHECK_KEYS.map(|key| format!("`{key}`")).join(", ");
                self.check.error(node.place, format!("a rule of `health` asks something: one of {one}"));
                return None;
            }
            [(key, node)] => (key, node),
            [(first, _), (second, _), ..] => {
                let message = format!("a rule asks one thing; here are `{}` and `{}`", first.name, second.name);
                self.check.error_with_hint(second.place, message, "write two rules");
                return None;
            }
        };
        if kind.name != "http" {
            for (key, _) in HTTP_KEYS.iter().filter_map(|key| fields.entry(key)) {
                self.check
                    .error(key.place, format!("`{}` belongs to `http`, and this rule asks `{}`", key.name, kind.name));
            }
        }
        let every = self.span(&fields, "every", EVERY, EVERY_LEAST);
        let within = self.span(&fields, "within", WITHIN, WITHIN_LEAST);
        let timeout = self.span(&fields, "timeout", TIMEOUT, TIMEOUT_LEAST);
        let failures = fields.get("failures").and_then(|n| self.check.number(n, "`failures`", 1..=1_000));
        let check = self.asked(kind, asked, &fields, timeout)?;
        Some(HealthRule { check, every, failures: failures.map_or(FAILURES, |n| n as u32), within, timeout })
    }

    fn asked(&mut self, kind: &Key, node: &Node, fields: &Fields<'_>, timeout: Span) -> Option<HealthCheck> {
        match kind.name.as_str() {
            "http" => {
                let url = self.web_address(node, "`http`");
                let mut status = Vec::new();
                if let Some(node) = fields.get("status") {
                    for item in self.check.items(node, "`status`") {
                        status.extend(self.check.number(item, "`status`", 100..=599).map(|n| n as u16));
                    }
                }
                let body = fields.get("body").and_then(|n| self.check.line(n, "`body`")).map(str::to_owned);
                let latency = fields.get("latency").and_then(|node| {
                    let span = self.check.parsed::<Span>(node, "`latency`")?;
                    if span.0.is_zero() || span > timeout {
                        let message = format!("`latency` is above 0 and at most the rule's `timeout`, {timeout}");
                        self.check.error(node.place, message);
                    }
                    Some(span)
                });
                Some(HealthCheck::Http { url: url?, status, body, latency })
            }
            "tcp" => {
                let text = self.check.text(node, "`tcp`")?;
                let address = text.parse::<Authority>().ok();
                if !address.is_some_and(|a| a.port_u16().is_some() && !a.host().is_empty() && !text.contains('@')) {
                    self.check.error(node.place, "`tcp` is `HOST:PORT`");
                    return None;
                }
                Some(HealthCheck::Tcp(text.to_owned()))
            }
            "command" => self.check.line(node, "`command`").map(|line| HealthCheck::Command(line.to_owned())),
            "restarts" => self.check.number(node, "`restarts`", 0..=1_000).map(HealthCheck::Restarts),
            _ => {
                let fields = self.check.fields(node, "`prometheus`", PROMETHEUS_KEYS, &[])?;
                self.needs(&fields, node, "`prometheus`", PROMETHEUS_KEYS);
                let url = fields.get("url").and_then(|n| self.web_address(n, "`url`"));
                let query = fields.get("query").and_then(|n| self.check.line(n, "`query`")).map(str::to_owned);
                let expect = fields.get("expect").and_then(|n| self.check.parsed::<Expect>(n, "`expect`"));
                Some(HealthCheck::Prometheus { url: url?, query: query?, expect: expect? })
            }
        }
    }

    /// An `http://` or `https://` address. One that was put in, or that holds a password, is masked in logs.
    pub(in crate::config::daemon) fn web_address(&mut self, node: &Node, what: &str) -> Option<String> {
        let text = self.check.text(node, what)?;
        let parsed = text.parse::<Uri>().ok().filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        });
        let Some(uri) = parsed else {
            self.check.error(node.place, format!("{what} is an address: `http://HOST/PATH` or `https://HOST/PATH`"));
            return None;
        };
        let user = uri.authority().and_then(|a| a.as_str().rsplit_once('@')).map(|(user, _)| user);
        if let Some((_, password)) = user.and_then(|user| user.split_once(':')).filter(|(_, p)| !p.is_empty()) {
            self.secrets.push(Secret::new(password));
        }
        if matches!(&node.value, Value::Scalar(scalar) if scalar.interpolated) {
            self.secrets.push(Secret::new(text));
        }
        Some(text.to_owned())
    }
}

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{}` is no comparison; write one such as `< 0.01` or `>= 3`", shown(text));
        // The longer signs first: `<` begins `<=`.
        let signs = [
            ("<=", Compare::LessOrEqual),
            (">=", Compare::GreaterOrEqual),
            ("==", Compare::Equal),
            ("<", Compare::Less),
            (">", Compare::Greater),
        ];
        let trimmed = text.trim();
        let (rest, compare) =
            signs.iter().find_map(|(sign, compare)| Some((trimmed.strip_prefix(sign)?, *compare))).ok_or_else(bad)?;
        let than = rest.trim().parse::<f64>().ok().filter(|than| than.is_finite()).ok_or_else(bad)?;
        Ok(Expect { compare, than })
    }
}
