//! What stands under `on`: pushes, times, people.

use super::{
    Globs, INPUT_KEYS, INPUTS_MAX, Input, InputKind, ManualTrigger, ON_KEYS, ON_LATER, PUSH_KEYS, PUSH_LATER,
    PushTrigger, Reader, Triggers,
};
use crate::config::expression;
use crate::config::finding::{Finding, shown};
use crate::config::schedule::Schedule;
use crate::config::yaml::{Key, Node, Value};

impl Reader<'_> {
    pub(super) fn triggers(&mut self, node: &Node) -> Triggers {
        let mut on = Triggers::default();
        // `on: push` and `on: [push, manual]` are short for maps without settings.
        if matches!(node.value, Value::Scalar(_) | Value::List(_)) {
            for item in self.check.items(node, "`on`") {
                let Some(word) = self.check.text(item, "an event under `on`") else { continue };
                match word {
                    "push" => on.push = Some(PushTrigger { branches: Some(Globs::all()), tags: None }),
                    "manual" => on.manual = Some(ManualTrigger::default()),
                    _ => {
                        let key = Key { name: word.to_owned(), place: item.place };
                        self.check.known_key(&key, "`on`", &["push", "manual"], ON_LATER);
                    }
                }
            }
            return on;
        }
        let Some(fields) = self.check.fields(node, "`on`", ON_KEYS, ON_LATER) else { return on };
        if let Some(node) = fields.get("push") {
            on.push = self.push(node);
        }
        if let Some(node) = fields.get("schedule") {
            for item in self.check.items(node, "`schedule`") {
                on.schedule.extend(self.check.parsed::<Schedule>(item, "schedule"));
            }
        }
        if let Some(node) = fields.get("manual") {
            on.manual = Some(self.manual(node));
        }
        if fields.entries.is_empty() {
            let warning = Finding::at(self.check.source, node.place, "nothing starts this pipeline: `on` is empty");
            self.check.findings.push(warning.warning().hint("leave `on` out for every push and manual runs"));
        }
        on
    }

    fn push(&mut self, node: &Node) -> Option<PushTrigger> {
        let fields = self.check.fields(node, "`push`", PUSH_KEYS, PUSH_LATER)?;
        let branches = fields.get("branches").map(|node| self.check.globs(node, "`branches`"));
        let tags = fields.get("tags").map(|node| self.check.globs(node, "`tags`"));
        // With `tags` alone, branches do not start it; with nothing, branches do.
        let branches = if branches.is_none() && tags.is_none() { Some(Globs::all()) } else { branches };
        Some(PushTrigger { branches, tags })
    }

    fn manual(&mut self, node: &Node) -> ManualTrigger {
        let mut manual = ManualTrigger::default();
        let Some(fields) = self.check.fields(node, "`manual`", &["inputs"], &[]) else { return manual };
        if let Some(node) = fields.get("inputs") {
            manual.inputs = self.inputs(node);
        }
        manual
    }

    /// What people may give along with a trigger or an approval.
    pub(super) fn inputs(&mut self, inputs: &Node) -> Vec<Input> {
        let mut list = Vec::new();
        for (key, node) in self.check.entries(inputs, "`inputs`").unwrap_or_default() {
            if !expression::is_key(&key.name) {
                let message =
                    format!("`{}` is not a name for an input: letters, digits, `_` and `-`", shown(&key.name));
                self.check.error(key.place, message);
            }
            list.extend(self.input(key, node));
        }
        if list.len() > INPUTS_MAX {
            self.check.error(inputs.place, format!("there are {} inputs; at most {INPUTS_MAX}", list.len()));
        }
        list
    }

    fn input(&mut self, key: &Key, node: &Node) -> Option<Input> {
        let what = format!("the input `{}`", shown(&key.name));
        let fields = self.check.fields(node, &what, INPUT_KEYS, &[])?;
        let mut options = Vec::new();
        if let Some(node) = fields.get("options") {
            for item in self.check.items(node, "`options`") {
                options.extend(self.check.text(item, "an option").map(str::to_owned));
            }
        }
        let words = [("string", 0), ("boolean", 1), ("number", 2), ("choice", 3)];
        let kind = match fields.get("type") {
            Some(node) => self.check.word(node, "`type`", &words)?,
            None => 0,
        };
        let kind = match kind {
            0 => InputKind::Text,
            1 => InputKind::Boolean,
            2 => InputKind::Number,
            _ => InputKind::Choice(options.clone()),
        };
        match &kind {
            InputKind::Choice(_) if options.is_empty() => {
                self.check.error(key.place, format!("{what} is a choice and needs `options`"));
            }
            InputKind::Choice(_) => {}
            _ if fields.get("options").is_some() => {
                self.check.error(key.place, format!("{what} has `options`, which only `type: choice` has"));
            }
            _ => {}
        }
        let default = fields.get("default").and_then(|node| {
            let text = self.check.text(node, "`default`")?.to_owned();
            if let Err(why) = kind.check(&text) {
                self.check.error(node.place, format!("the default of {what} must be {why}"));
            }
            Some(text)
        });
        let required = fields.get("required").and_then(|n| self.check.boolean(n, "`required`")).unwrap_or(false);
        let description =
            fields.get("description").and_then(|n| self.check.text(n, "`description`")).map(str::to_owned);
        Some(Input { name: key.name.clone(), kind, default, required, description })
    }
}
