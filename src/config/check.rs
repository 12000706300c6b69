//! The second stage's tools: take typed values out of nodes, and note everything that is wrong instead of stopping.

use super::finding::{Finding, clean, shown};
use super::yaml::{Key, Kind, Node, Place, Scalar, Value};
use std::fmt::Display;
use std::str::FromStr;

/// Collects findings while a file is being understood.
pub(super) struct Checker<'s> {
    pub(super) source: &'s str,
    pub(super) findings: Vec<Finding>,
    /// Takes what comes after the last finding that is noted.
    spare: Finding,
    /// Comparisons of names that may still be made to find nearest ones.
    comparisons: usize,
}

/// Three typing errors in a pipeline of a thousand steps get their "did you mean".
const COMPARISONS_MAX: usize = 3_000;

/// More than are ever shown. Beyond, findings are dropped unseen: placing each and looking for the nearest word costs time
/// that a hostile file could multiply.
const NOTED_MAX: usize = 100;

/// The entries of a map whose keys are all known.
pub(super) struct Fields<'n> {
    pub(super) entries: &'n [(Key, Node)],
}

impl<'n> Fields<'n> {
    /// The value of a key.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.entry(name).map(|(_, node)| node)
    }

    pub(super) fn entry(&self, name: &str) -> Option<(&'n Key, &'n Node)> {
        self.entries.iter().find(|(key, _)| key.name == name).map(|(key, node)| (key, node))
    }
}

impl<'s> Checker<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Checker { source, findings: Vec::new(), spare: Finding::general(""), comparisons: COMPARISONS_MAX }
    }

    /// True when nothing more is noted.
    pub(super) fn is_full(&self) -> bool {
        self.findings.len() >= NOTED_MAX
    }

    /// Notes an error; hints may be added to what is returned.
    pub(super) fn error(&mut self, place: Place, message: impl AsRef<str>) -> &mut Finding {
        if self.is_full() {
            self.spare.hints.clear();
            return &mut self.spare;
        }
        self.findings.push(Finding::at(self.source, place, message));
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    /// Notes a name that nothing has, with the nearest one that exists.
    pub(super) fn unknown_name(
        &mut self,
        place: Place,
        what: &str,
        name: &str,
        known: &[&str],
        otherwise: Option<&str>,
    ) {
        if self.is_full() {
            return;
        }
        let left = self.comparisons.checked_sub(known.len());
        let near = left.and_then(|_| nearest(name, known)).map(|near| format!("did you mean `{near}`?"));
        self.comparisons = left.unwrap_or(0);
        let finding = self.error(place, format!("there is no {what} `{}`", shown(name)));
        finding.hints.extend(near.or(otherwise.map(str::to_owned)));
    }

    pub(super) fn error_with_hint(&mut self, place: Place, message: impl AsRef<str>, hint: impl AsRef<str>) {
        let finding = self.error(place, message);
        finding.hints.push(clean(hint.as_ref()));
    }

    fn wrong_type(&mut self, node: &Node, what: &str, wanted: &str) {
        let found = match &node.value {
            Value::Null => "nothing",
            Value::Scalar(Scalar { kind: Kind::Bool, .. }) => "a boolean",
            Value::Scalar(Scalar { kind: Kind::Number, .. }) => "a number",
            Value::Scalar(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        };
        self.error(node.place, format!("{what} is {wanted}, but here is {found}"));
    }

    /// The map of `node`. Keys of `later` belong to the language but not to this version; every other key that is not
    /// in `known` is unknown. A node without a value is an empty map.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        known: &[&str],
        later: &[&str],
    ) -> Option<Fields<'n>> {
        let entries = self.entries(node, what)?;
        for (key, _) in entries {
            self.known_key(key, what, known, later);
        }
        Some(Fields { entries })
    }

    /// The entries of a map whose keys are names people choose.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [(Key, Node)]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            Value::Null => Some(&[]),
            _ => {
                self.wrong_type(node, what, "a map");
                None
            }
        }
    }

    pub(super) fn known_key(&mut self, key: &Key, what: &str, known: &[&str], later: &[&str]) {
        if known.contains(&key.name.as_str()) {
            return;
        }
        if self.is_full() {
            return;
        }
        if later.contains(&key.name.as_str()) {
            self.error(key.place, format!("`{}` is part of the language, but not of this version", key.name));
            return;
        }
        let finding = self.error(key.place, format!("unknown key `{}` in {what}", shown(&key.name)));
        finding.hints.push(match nearest(&key.name, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known here: {}", known.join(", ")),
        });
    }

    /// A scalar as text; numbers and booleans count as written.
    pub(super) fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            Value::Null => {
                self.error_with_hint(
                    node.place,
                    format!("{what} has no value"),
                    "write '' for an empty text; quote a text that begins with `!`, `#`, `*`, `&` or `{`",
                );
                None
            }
            _ => {
                self.wrong_type(node, what, "a text");
                None
            }
        }
    }

    /// A scalar parsed as `T`. What the parser says is shown, unless the text is not for showing.
    pub(super) fn parsed<T: FromStr>(&mut self, node: &Node, what: &str) -> Option<T>
    where
        T::Err: Display,
    {
        let text = self.text(node, what)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let message = if is_interpolated(node) {
                    format!("{what}: the value put in here is not valid")
                } else {
                    format!("{what}: {error}")
                };
                self.error(node.place, message);
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        match &node.value {
            Value::Scalar(Scalar { text, kind, interpolated }) if *kind == Kind::Bool || *interpolated => {
                match text.as_str() {
                    "true" | "True" | "TRUE" => Some(true),
                    "false" | "False" | "FALSE" => Some(false),
                    _ => {
                        self.wrong_type(node, what, "`true` or `false`");
                        None
                    }
                }
            }
            _ => {
                self.wrong_type(node, what, "`true` or `false`");
                None
            }
        }
    }

    /// A whole number within a range.
    pub(super) fn number(&mut self, node: &Node, what: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let text = self.text(node, what)?;
        match text.parse::<u64>() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                self.error(node.place, format!("{what} is a whole number from {} to {}", range.start(), range.end()));
                None
            }
        }
    }

    /// The items of a list; a single scalar is a list of one.
    pub(super) fn items<'n>(&mut self, node: &'n Node, what: &str) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            Value::Scalar(_) => std::slice::from_ref(node),
            Value::Null => {
                self.error(node.place, format!("{what} has no value"));
                &[]
            }
            Value::Map(_) => {
                self.wrong_type(node, what, "a list");
                &[]
            }
        }
    }

    /// A text with something in it, such as a command.
    pub(super) fn line<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        if let Value::Map(_) = node.value {
            self.error_with_hint(
                node.place,
                format!("{what} is a text, but YAML reads a map here"),
                "`: ` inside a text makes it a map; put the whole text in quotes",
            );
            return None;
        }
        let text = self.text(node, what)?;
        if text.trim().is_empty() {
            self.error(node.place, format!("{what} is empty"));
            return None;
        }
        Some(text)
    }

    /// One such text, or a list of them.
    pub(super) fn lines(&mut self, node: &Node, what: &str) -> Vec<String> {
        if let Value::List(items) = &node.value {
            if items.is_empty() {
                self.error(node.place, format!("{what} is empty"));
            }
            return items.iter().filter_map(|item| self.line(item, what)).map(str::to_owned).collect();
        }
        self.line(node, what).map(str::to_owned).into_iter().collect()
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, node: &Node, what: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(node, what)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("`{}` is not known for {what}", shown_text(node, text));
        let finding = self.error(node.place, message);
        finding.hints.push(match nearest(text, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of {}", known.join(", ")),
        });
        None
    }

    /// A map of environment variables, or of other texts with such names.
    pub(super) fn variables<'n>(&mut self, node: &'n Node, what: &str) -> Vec<(&'n Key, &'n Node, &'n str)> {
        let mut list = Vec::new();
        for (key, value) in self.entries(node, what).unwrap_or_default() {
            if let Err(why) = variable_name(&key.name) {
                self.error(key.place, why);
            }
            if let Some(text) = self.text(value, &format!("`{}` of {what}", shown(&key.name))) {
                list.push((key, value, text));
            }
        }
        list
    }
}

/// The text for use in a message, or the place holder it was put in for.
pub(super) fn shown_text(node: &Node, text: &str) -> String {
    if is_interpolated(node) { "(a value that is not shown)".to_owned() } else { shown(text) }
}

pub(super) fn is_interpolated(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar(Scalar { interpolated: true, .. }))
}

/// Checks the name of an environment variable or a secret.
pub(super) fn variable_name(name: &str) -> Result<(), String> {
    let good = name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if good {
        Ok(())
    } else {
        Err(format!(
            "`{}` is not a name for a variable: letters, digits and `_`, at most 128, not beginning with a digit",
            shown(name)
        ))
    }
}

/// The known word that is most like what was written, when one is like it at all.
pub(super) fn nearest<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    // Longer than any word of ours: not a slip of the hand, and costly to compare.
    if written.len() > 40 {
        return None;
    }
    let folded = written.to_ascii_lowercase().replace('_', "-");
    let (distance, word) =
        known.iter().map(|word| (strsim::osa_distance(&folded, word), *word)).min_by_key(|(d, _)| *d)?;
    let allowed = (word.len() / 3).clamp(1, 3);
    let cut_short = folded.len() >= 3 && (word.starts_with(&folded) || folded.starts_with(word) && word.len() >= 4);
    (distance <= allowed || cut_short).then_some(word)
}
