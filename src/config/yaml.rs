//! The first stage of reading a file: YAML 1.2 text becomes a tree of nodes that know their place in the text.
//!
//! Nothing here knows what keys mean. Every scalar keeps the text as written, so that `version: 3.10` stays `3.10`.
//! Text from a stranger's commit enters here, so every dimension of it is bounded.

use super::finding::{Finding, Findings};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned, options::DuplicateKeyPolicy};
use std::fmt;

/// A place in the source text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) offset: usize,
    pub(crate) length: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A scalar as written.
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    pub(crate) kind: Kind,
    /// The text came from the environment, a file or the secret store, and is never shown.
    pub(crate) interpolated: bool,
}

/// What YAML makes of a scalar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Bool,
    Number,
}

/// A key of a map.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) place: Place,
}

/// Pipelines of a thousand steps stay under 300 KiB; a megabyte is never written by hand.
pub(crate) const TEXT_MAX_BYTES: usize = crate::small_file::TEXT_MAX_BYTES as usize;
/// A thousand steps of ten nodes each, twice over; aliases count every time they are used.
const NODES_MAX: usize = 20_000;
/// The language needs six levels. The reader recurses, and an unoptimised build overflows a thread's 2 MiB at about 60.
const DEPTH_MAX: usize = 24;

/// Reads one document. A text without any is `Value::Null`.
pub(crate) fn read(file: &str, text: &str) -> Result<Node, Findings> {
    if text.len() > TEXT_MAX_BYTES {
        let message = format!("the file has {} bytes; at most {TEXT_MAX_BYTES} (1 MiB) are read", text.len());
        return Err(Findings::new(file, "", vec![Finding::general(message)]));
    }
    if let Some((offset, bad)) = text.char_indices().find(|(_, c)| is_binary(*c)) {
        let message = format!("the text holds the control character {}", bad.escape_unicode());
        let finding = Finding::at(text, Place { offset, length: bad.len_utf8() }, message)
            .hint("a pipeline or settings file is plain UTF-8 text; is this the right file?");
        return Err(Findings::new(file, text, vec![finding]));
    }
    let document: Result<Option<Raw>, _> = serde_saphyr::from_str_with_options(text, options());
    match document {
        Ok(None) => Ok(Node { value: Value::Null, place: Place::default() }),
        Ok(Some(raw)) => Ok(settle(raw, text)),
        Err(error) => Err(Findings::new(file, text, vec![refused(&error, text)])),
    }
}

/// Reads one document of somebody else's format into plain values.
pub(crate) fn json(file: &str, text: &str) -> Result<serde_json::Value, Findings> {
    // The first stage bounds the text and says what is wrong with it, and where.
    read(file, text)?;
    let document: Result<serde_json::Value, _> = serde_saphyr::from_str_with_options(text, options());
    document.map_err(|error| Findings::new(file, text, vec![refused(&error, text)]))
}

/// What YAML allows in a file, minus nothing people type: tabs and line ends only.
fn is_binary(c: char) -> bool {
    (c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')) || matches!(c, '\u{fffe}' | '\u{ffff}')
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            max_events: 4 * NODES_MAX,
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_documents: 1,
            max_aliases: 1_000,
            max_anchors: 200,
            max_merge_keys: 200,
            // Anchored text may be used several times, and each use costs its length again.
            max_total_scalar_bytes: 4 * TEXT_MAX_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 2 * NODES_MAX, max_replay_stack_depth: 16, max_alias_expansions_per_anchor: 1_000 },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
        emit_comments: false,
    }
}

/// What the YAML reader says, in our words where they are clearer, always bounded.
fn refused(error: &serde_saphyr::Error, text: &str) -> Finding {
    let said = error.without_snippet().to_string();
    // The reader appends the place, which is shown with the source line anyway.
    let said = said.split(" at line ").next().unwrap_or_default().trim();
    let said: String = said.chars().take(300).collect();
    let place = error.location().map(|l| place_of(l, text));
    let lower = said.to_ascii_lowercase();
    let (message, hint) = if lower.contains("budget") || lower.contains("limit") || lower.contains("recursion") {
        (
            format!("the file is too large or too deeply nested: {said}"),
            Some(format!(
                "at most {NODES_MAX} values (an alias counts each time it is used), {DEPTH_MAX} levels deep, one document"
            )),
        )
    } else if lower.contains("tab") {
        (said, Some("YAML indents with spaces, never with tabs".to_owned()))
    } else if lower.contains("alias") || lower.contains("anchor") {
        (said, Some("a text that begins with `*` or `&` must be in quotes".to_owned()))
    } else {
        (said, None)
    };
    let mut finding = match place {
        Some(place) => Finding::at(text, place, message),
        None => Finding::general(message),
    };
    finding.hints.extend(hint);
    finding
}

fn place_of(location: Location, text: &str) -> Place {
    let span = location.span();
    let offset = match span.byte_offset() {
        Some(offset) => offset as usize,
        None => offset_of(text, location.line() as usize, location.column() as usize),
    };
    let length = span.byte_len().map_or(0, |length| length as usize);
    let offset = floor(text, offset);
    let end = floor(text, offset.saturating_add(length));
    Place { offset, length: end - offset }
}

fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let rest = &text[start..];
    start + rest.char_indices().nth(column.saturating_sub(1)).map_or(rest.len(), |(i, _)| i)
}

/// The nearest character border at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at.min(text.len()))
}

/// What the deserialiser yields: places are still line, column and span.
type Raw = Spanned<RawValue>;

enum RawValue {
    Null,
    Text(String),
    /// Something YAML takes for a boolean or a number; its text is taken from the source.
    Other(Kind, String),
    List(Vec<Raw>),
    Map(Vec<(Spanned<String>, Raw)>),
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, a list or a map")
    }
    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }
    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Other(Kind::Bool, value.to_string()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
        Ok(RawValue::Other(Kind::Number, value.to_string()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
        Ok(RawValue::Other(Kind::Number, value.to_string()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
        Ok(RawValue::Other(Kind::Number, value.to_string()))
    }
    fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<RawValue, E> {
        Ok(RawValue::Text(value))
    }
    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<RawValue, E> {
        Err(E::custom("binary values are not used here"))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawValue, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(RawValue::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        if entries.len() > NODES_MAX {
            return Err(A::Error::custom("budget: too many keys"));
        }
        Ok(RawValue::Map(entries))
    }
}

fn settle(raw: Raw, text: &str) -> Node {
    // Where an alias is used is what people look for; what its text was stands where it is defined.
    let place = place_of(raw.referenced, text);
    let value = match raw.value {
        RawValue::Null => Value::Null,
        RawValue::Text(text) => Value::Scalar(Scalar { text, kind: Kind::Text, interpolated: false }),
        RawValue::Other(kind, parsed) => {
            let defined = place_of(raw.defined, text);
            let written = text[defined.offset..defined.offset + defined.length].trim();
            // An explicit tag (`!!int "3"`) makes the written form differ; then what YAML made of it counts.
            let plain = !written.is_empty() && !written.starts_with(['"', '\'', '!', '&', '|', '>', '*']);
            let text = if plain { written.to_owned() } else { parsed };
            Value::Scalar(Scalar { text, kind, interpolated: false })
        }
        RawValue::List(items) => Value::List(items.into_iter().map(|item| settle(item, text)).collect()),
        RawValue::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    (Key { place: place_of(key.referenced, text), name: key.value }, settle(value, text))
                })
                .collect(),
        ),
    };
    Node { value, place }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Vec<(Key, Node)> {
        match read("t.yml", text).unwrap().value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scalars_keep_the_text_as_written_and_know_their_place() {
        let text = "version: 3.10\nzip: 01234\nhex: 0x1F\nflag: true\nword: yes\nname: 'a b'\n";
        let entries = map(text);
        let texts: Vec<_> = entries
            .iter()
            .map(|(key, node)| match &node.value {
                Value::Scalar(s) => {
                    (key.name.as_str(), s.text.as_str(), s.kind, &text[node.place.offset..][..node.place.length])
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            texts,
            [
                ("version", "3.10", Kind::Number, "3.10"),
                ("zip", "01234", Kind::Number, "01234"),
                ("hex", "0x1F", Kind::Number, "0x1F"),
                ("flag", "true", Kind::Bool, "true"),
                ("word", "yes", Kind::Text, "yes"),
                ("name", "a b", Kind::Text, "'a b'"),
            ]
        );
        assert_eq!(&text[entries[1].0.place.offset..][..3], "zip");
    }

    #[test]
    fn an_alias_has_the_text_of_its_anchor_and_the_place_of_its_use() {
        let text = "é: 'ü'\na: &v 1.50\nb: *v\n";
        let entries = map(text);
        let Value::Scalar(scalar) = &entries[2].1.value else { panic!() };
        assert_eq!(scalar.text, "1.50");
        assert_eq!(entries[2].1.place.offset, text.find("*v").unwrap());
    }

    #[test]
    fn depth_is_bounded_before_the_stack_ends() {
        let block = |depth: usize| -> String { (0..depth).map(|n| format!("{}a:\n", " ".repeat(n))).collect() };
        let flow = |depth: usize| format!("{}1{}", "{a: ".repeat(depth), "}".repeat(depth));
        let list = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        for depth in [DEPTH_MAX - 1, DEPTH_MAX + 1, 62, 100, 1_000] {
            for text in [block(depth), flow(depth), list(depth)] {
                assert_eq!(read("t.yml", &text).is_ok(), depth < DEPTH_MAX, "{depth} {}", &text[..4]);
            }
        }
    }

    #[test]
    fn merge_keys_and_empty_documents() {
        let entries = map("base: &b {image: x}\nstep: {<<: *b, args: [1]}\n");
        let Value::Map(step) = &entries[1].1.value else { panic!() };
        let mut keys: Vec<_> = step.iter().map(|(k, _)| k.name.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["args", "image"]);
        for empty in ["", "   \n", "# only words\n", "---\n"] {
            assert!(matches!(read("t.yml", empty).unwrap().value, Value::Null), "{empty:?}");
        }
    }
}
