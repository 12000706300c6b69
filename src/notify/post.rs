//! A message as other systems take it: a document of our own, Slack's blocks, a Teams card.
//!
//! No links: what is posted is read by a channel full of people, and a link there would look like the one that decides.
//! Whoever wants to decide finds the command.

use super::channels::Delivery;
use super::letter::Letter;
use super::words::{Body, Tone, Words};
use crate::model::InstanceId;
use serde_json::{Value, json};

/// The form of the document below. A receiver may rely on its fields; new ones may come.
const VERSION: u32 = 1;
/// Slack takes 150 characters in a header, 3,000 in a section, 2,000 in each of ten fields, and fifty blocks; Teams takes
/// 28 KB in a card. These stay below, with room for escapes.
const HEADER_MAX_CHARS: usize = 140;
const SECTION_MAX_CHARS: usize = 1_500;
const FIELD_MAX_CHARS: usize = 400;
const FIELDS_MAX: usize = 10;

/// Our own document.
pub(super) fn generic(delivery: &Delivery<'_>, instance: &InstanceId) -> Value {
    let public = delivery.message.clone().without_secrets();
    let letter = Letter::without_link(&public);
    json!({
        "version": VERSION,
        "delivery": delivery.id,
        "instance": instance.0,
        "written_at": delivery.written,
        "title": letter.subject,
        "text": letter.text,
        "message": public,
    })
}

/// For an incoming webhook of Slack, and of what understands its blocks (Mattermost, Rocket.Chat).
pub(super) fn slack(delivery: &Delivery<'_>) -> Value {
    let words = public_words(delivery);
    let plain = |text: &str| json!({ "type": "plain_text", "text": text, "emoji": false });
    // `verbatim`: names like @here and #general stay text.
    let marked = |text: String| json!({ "type": "mrkdwn", "text": text, "verbatim": true });
    let section = |text: Value| json!({ "type": "section", "text": text });
    let mut blocks = vec![json!({ "type": "header", "text": plain(&short(&words.headline, HEADER_MAX_CHARS)) })];
    if let Some(warning) = &words.warning {
        blocks.push(section(plain(&format!("⚠ {}", short(warning, SECTION_MAX_CHARS)))));
    }
    for sentence in &words.intro {
        blocks.push(section(plain(&short(sentence, SECTION_MAX_CHARS))));
    }
    if !words.facts.is_empty() {
        let fields: Vec<Value> = words
            .facts
            .iter()
            .take(FIELDS_MAX)
            .map(|(name, value)| plain(&format!("{name}\n{}", short(value, FIELD_MAX_CHARS))))
            .collect();
        blocks.push(json!({ "type": "section", "fields": fields }));
    }
    for (title, body) in &words.sections {
        // A fence of three back ticks ends at the next three: none may come from inside.
        let text = escaped(&short(&flat(body), SECTION_MAX_CHARS)).replace("```", "'''");
        blocks.push(section(marked(format!("*{title}*\n```\n{text}\n```"))));
    }
    if let Some((what, command)) = &words.command {
        blocks.push(section(marked(format!("{what}: `{}`", escaped(command).replace('`', "'")))));
    }
    // `text` is what notifications show.
    json!({ "text": escaped(&words.subject), "blocks": blocks })
}

/// For a workflow of Teams that posts what a webhook received: an adaptive card in a message.
pub(super) fn teams(delivery: &Delivery<'_>) -> Value {
    let words = public_words(delivery);
    let colour = match words.tone {
        Tone::Ask => "Accent",
        Tone::Good => "Good",
        Tone::Bad => "Attention",
        Tone::Note => "Default",
    };
    // Runs of text, not text blocks: those read Markdown, and a commit's subject could make a link of itself.
    let run = |text: &str| json!({ "type": "TextRun", "text": text });
    let strong = |text: &str| json!({ "type": "TextRun", "text": text, "weight": "Bolder" });
    let rich = |runs: Vec<Value>| json!({ "type": "RichTextBlock", "inlines": runs });
    let mut body = vec![rich(vec![json!({
        "type": "TextRun", "text": short(&words.headline, HEADER_MAX_CHARS),
        "weight": "Bolder", "size": "Large", "color": colour,
    })])];
    if let Some(warning) = &words.warning {
        body.push(rich(vec![json!({
            "type": "TextRun", "text": short(warning, SECTION_MAX_CHARS), "weight": "Bolder", "color": "Attention",
        })]));
    }
    for sentence in &words.intro {
        body.push(rich(vec![run(&short(sentence, SECTION_MAX_CHARS))]));
    }
    for (name, value) in words.facts.iter().take(FIELDS_MAX) {
        body.push(rich(vec![strong(&format!("{name}: ")), run(&short(value, FIELD_MAX_CHARS))]));
    }
    for (title, content) in &words.sections {
        body.push(rich(vec![strong(title)]));
        let rows = short(&flat(content), SECTION_MAX_CHARS);
        body.extend(rows.lines().filter(|row| !row.trim().is_empty()).map(|row| {
            let mut block = rich(vec![json!({ "type": "TextRun", "text": row, "fontType": "Monospace" })]);
            block["spacing"] = "None".into();
            block
        }));
    }
    if let Some((what, command)) = &words.command {
        let command = json!({ "type": "TextRun", "text": command, "fontType": "Monospace" });
        body.push(rich(vec![run(&format!("{what}: ")), command]));
    }
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "msteams": { "width": "Full" },
                "fallbackText": words.subject,
                "body": body,
            },
        }],
    })
}

fn public_words(delivery: &Delivery<'_>) -> Words {
    let mut words = delivery.message.clone().without_secrets().words();
    words.action = None;
    words.code = None;
    words
}

fn flat(body: &Body) -> String {
    match body {
        Body::Lines(lines) => lines.join("\n"),
        Body::Pairs(pairs) => {
            pairs.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\n")
        }
        Body::Text(text) | Body::Diff(text) => text.clone(),
    }
}

fn short(text: &str, max_chars: usize) -> String {
    let mut short: String = text.chars().take(max_chars).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The three characters that mean something to Slack in any text.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
