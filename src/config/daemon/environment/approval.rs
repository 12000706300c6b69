//! `approval`: who has to say yes before something is deployed here.

use super::super::{APPROVAL_KEYS, Reader};
use super::read::Around;
use crate::config::check::Fields;
use crate::config::yaml::{Node, Value};
use crate::model::approval::{ApprovalPolicy, Channel, Newer};
use crate::model::{PersonName, Span};
use std::collections::BTreeSet;
use std::time::Duration;

const EXPIRES: Span = Span(Duration::from_secs(24 * 3_600));
/// Nobody decides in less.
const EXPIRES_LEAST: Duration = Duration::from_secs(1);
const WAYS: [(&str, Channel); 3] = [("mail", Channel::Mail), ("webhook", Channel::Webhook), ("cli", Channel::Cli)];

impl Reader<'_, '_> {
    pub(super) fn approval(&mut self, node: &Node, around: &Around<'_>) -> Option<ApprovalPolicy> {
        let fields = self.check.fields(node, "`approval`", APPROVAL_KEYS, &[])?;
        let before = self.check.findings.len();
        let from = match fields.get("from") {
            Some(node) => self.approvers(node, around),
            None => {
                let hint = "name people and groups: `approval: { from: [release-managers] }`";
                self.check.error_with_hint(node.place, "`approval` needs `from`: who may say yes", hint);
                Vec::new()
            }
        };
        let required = fields.get("required").and_then(|n| self.check.number(n, "`required`", 1..=100));
        let expires = self.span(&fields, "expires", EXPIRES, EXPIRES_LEAST);
        let by = fields.get("by").map(|n| self.ways(n)).unwrap_or_else(|| WAYS.map(|(_, way)| way).to_vec());
        let mut flag =
            |key: &str| fields.get(key).and_then(|n| self.check.boolean(n, &format!("`{key}`"))).unwrap_or(false);
        let (allow_self, allow_unknown_pusher) = (flag("allow-self"), flag("allow-unknown-pusher"));
        let required = required.map_or(1, |n| n as u32);
        let words = [("supersede", Newer::Supersede), ("wait", Newer::Wait)];
        let newer = fields.get("newer").and_then(|n| self.check.word(n, "`newer`", &words)).unwrap_or_default();
        let policy = ApprovalPolicy { from, required, expires, by, allow_self, allow_unknown_pusher, newer };
        // What did not read would only bring a second sentence about the same mistake.
        if self.check.findings.len() == before {
            self.can_be_given(&policy, node, &fields, around);
        }
        Some(policy)
    }

    fn approvers(&mut self, node: &Node, around: &Around<'_>) -> Vec<String> {
        let people = around.people;
        let users = people.users.keys().map(|name| name.as_str());
        let known: Vec<&str> = users.chain(people.groups.keys().map(|name| name.as_str())).collect();
        let mut from: Vec<String> = Vec::new();
        for item in self.check.items(node, "`from`") {
            let otherwise = "`people` names the people and groups";
            let Some(name) = self.known(item, "person or group", &known, otherwise) else { continue };
            if from.iter().any(|other| other == name) {
                self.check.error(item.place, format!("`{name}` is named twice"));
            } else {
                from.push(name.to_owned());
            }
        }
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            self.check.error(node.place, "`from` is empty: nobody could ever say yes");
        }
        from
    }

    fn ways(&mut self, node: &Node) -> Vec<Channel> {
        let mut by = Vec::new();
        for item in self.check.items(node, "`by`") {
            let Some(way) = self.check.word(item, "`by`", &WAYS) else { continue };
            if !by.contains(&way) {
                by.push(way);
            }
        }
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            self.check.error(node.place, "`by` is empty: nobody could ever say yes");
        }
        by
    }

    /// A policy that nobody can meet would be found out at the first deploy, and then it is late.
    fn can_be_given(&mut self, policy: &ApprovalPolicy, node: &Node, fields: &Fields<'_>, around: &Around<'_>) {
        let people = around.people.members(&policy.from);
        let at = |key: &str| fields.get(key).unwrap_or(node).place;
        if (people.len() as u64) < u64::from(policy.required) {
            let message = format!("{} must say yes, but `from` names {}", policy.required, counted(people.len()));
            self.check.error(if people.is_empty() { at("from") } else { at("required") }, message);
            return;
        }
        // Without `by`, the ways there are count.
        if fields.get("by").is_none() {
            return;
        }
        let has_address = |name: &&PersonName| around.people.address(name).is_some();
        let spoken_for: BTreeSet<&PersonName> =
            around.notify.webhooks.values().filter_map(|hook| hook.inbound.as_ref()).flat_map(|i| &i.people).collect();
        let mut wrong = |message: &str, hint: &str| self.check.error_with_hint(at("by"), message, hint);
        let mail = policy.by.contains(&Channel::Mail);
        let webhook = policy.by.contains(&Channel::Webhook);
        if mail && !around.has_smtp {
            wrong("`mail` needs a mail server", "`notify: { smtp: { url: \"smtps://HOST\", from: ADDRESS } }`");
        } else if mail && !people.iter().any(|name| has_address(&name)) {
            wrong("`mail` reaches nobody of `from`", "give them a `mail` under `people.users`");
        } else if webhook && !people.iter().any(|name| spoken_for.contains(name)) {
            wrong(
                "no `webhook` may speak for anybody of `from`",
                "`notify.webhooks.NAME.inbound` has the `secret` that signs and the `people` it speaks for",
            );
        } else {
            let can = |name: &&PersonName| {
                policy.by.contains(&Channel::Cli) || mail && has_address(name) || webhook && spoken_for.contains(*name)
            };
            let able = people.iter().filter(can).count();
            if (able as u64) < u64::from(policy.required) {
                let required = policy.required;
                let message = format!("{required} must say yes, but these ways are open to {} only", counted(able));
                wrong(&message, "give the others an address, or add `cli`");
            }
        }
    }
}

fn counted(people: usize) -> String {
    match people {
        0 => "nobody".to_owned(),
        1 => "one person".to_owned(),
        n => format!("{n} people"),
    }
}
