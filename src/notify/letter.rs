//! A message as a mail is read: subject, plain text, HTML.

use super::message::Message;
use super::words::{Body, Tone, Words};
use crate::markup::escape;
use std::fmt::Write as _;

/// A mail's content, without addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// One line.
    pub subject: String,
    /// For programs that show no HTML.
    pub text: String,
    /// Inline styles only, no images, nothing fetched; readable at the width of a phone.
    pub html: String,
}

impl Letter {
    /// Puts a message into the form of a mail.
    pub fn of(message: &Message) -> Letter {
        let words = message.words();
        Letter { text: text(&words), html: html(&words), subject: words.subject }
    }

    /// The same for many readers: without the link.
    pub(super) fn without_link(message: &Message) -> Letter {
        let words = Words { action: None, ..message.words() };
        Letter { text: text(&words), html: html(&words), subject: words.subject }
    }
}

const FOOTER: &str = "Sent by Mainstay. Nobody reads answers to this address.";

fn text(words: &Words) -> String {
    let mut out = String::new();
    if let Some(warning) = &words.warning {
        let _ = writeln!(out, "!! {warning}\n");
    }
    let _ = writeln!(out, "{}\n", words.headline);
    if let Some(code) = &words.code {
        let _ = writeln!(out, "    {code}\n");
    }
    for sentence in &words.intro {
        let _ = writeln!(out, "{sentence}\n");
    }
    let width = words.facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in &words.facts {
        let _ = writeln!(out, "{name:width$}  {value}");
    }
    if !words.facts.is_empty() {
        out.push('\n');
    }
    if let Some(action) = &words.action {
        let _ = writeln!(out, "{}:\n{}\n", action.label, action.url);
        if !action.note.is_empty() {
            let _ = writeln!(out, "{}\n", action.note);
        }
    }
    for (title, body) in &words.sections {
        let _ = writeln!(out, "{title}");
        // Indented, so that what somebody else wrote cannot look like a line of ours.
        let rows: Vec<String> = match body {
            Body::Lines(lines) => lines.iter().map(|line| format!("- {line}")).collect(),
            Body::Pairs(pairs) => pairs.iter().map(|(name, value)| format!("{name}: {value}")).collect(),
            Body::Text(text) | Body::Diff(text) => text.lines().map(|line| format!("| {line}")).collect(),
        };
        for row in rows {
            let _ = writeln!(out, "  {row}");
        }
        out.push('\n');
    }
    if let Some((what, command)) = &words.command {
        let _ = writeln!(out, "{what}:\n    {command}\n");
    }
    // The mark that tells mail programs where the message ends.
    let _ = write!(out, "-- \n{FOOTER}\n");
    out
}

const MONO: &str = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px";

fn html(words: &Words) -> String {
    let colour = match words.tone {
        Tone::Ask => "#1f4fd8",
        Tone::Good => "#14713d",
        Tone::Bad => "#b3261e",
        Tone::Note => "#5b6472",
    };
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light\">\
         <meta name=\"format-detection\" content=\"telephone=no,date=no,address=no,email=no,url=no\">",
    );
    let _ = write!(
        out,
        "<title>{}</title></head><body style=\"margin:0;padding:0;background:#f2f3f5\">\
         <div style=\"max-width:600px;margin:0 auto;padding:16px;background:#ffffff;border-top:4px solid {colour};\
         font-family:-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif;font-size:16px;line-height:1.45;\
         color:#1b1f24;overflow-wrap:anywhere\">",
        escape(&words.subject)
    );
    if let Some(warning) = &words.warning {
        let _ = write!(
            out,
            "<p style=\"margin:0 0 16px;padding:12px;background:#fdecea;border:1px solid #b3261e;border-radius:6px;\
             color:#8c1d18;font-weight:bold\">{}</p>",
            escape(warning)
        );
    }
    let _ =
        write!(out, "<h1 style=\"margin:0 0 12px;font-size:22px;line-height:1.25\">{}</h1>", escape(&words.headline));
    if let Some(code) = &words.code {
        let _ = write!(
            out,
            "<p style=\"margin:0 0 16px;font-size:36px;letter-spacing:8px;font-weight:bold;\
             font-family:ui-monospace,Menlo,Consolas,monospace\">{}</p>",
            escape(code)
        );
    }
    for sentence in &words.intro {
        let _ = write!(out, "<p style=\"margin:0 0 12px\">{}</p>", escape(sentence));
    }
    if !words.facts.is_empty() {
        pairs(&mut out, words.facts.iter().map(|(name, value)| (*name, value.as_str())));
    }
    if let Some(action) = &words.action {
        let _ = write!(
            out,
            "<p style=\"margin:16px 0 8px\"><a href=\"{}\" style=\"display:block;padding:14px 16px;background:{colour};\
             color:#ffffff;text-decoration:none;text-align:center;border-radius:6px;font-weight:bold\">{}</a></p>",
            escape(&action.url),
            escape(action.label)
        );
        if !action.note.is_empty() {
            let _ =
                write!(out, "<p style=\"margin:0 0 12px;font-size:14px;color:#5b6472\">{}</p>", escape(action.note));
        }
    }
    for (title, body) in &words.sections {
        let _ = write!(out, "<h2 style=\"margin:20px 0 6px;font-size:16px\">{}</h2>", escape(title));
        section(&mut out, body);
    }
    if let Some((what, command)) = &words.command {
        let _ = write!(
            out,
            "<h2 style=\"margin:20px 0 6px;font-size:16px\">{}</h2><p style=\"margin:0 0 12px\">\
             <code style=\"{MONO};background:#f2f3f5;padding:3px 6px;border-radius:4px\">{}</code></p>",
            escape(what),
            escape(command)
        );
    }
    let _ = write!(
        out,
        "<p style=\"margin:24px 0 0;padding-top:12px;border-top:1px solid #dfe2e6;font-size:13px;color:#5b6472\">\
         {FOOTER}</p></div></body></html>"
    );
    out
}

fn section(out: &mut String, body: &Body) {
    match body {
        Body::Lines(lines) => {
            out.push_str("<ul style=\"margin:0 0 12px;padding-left:20px\">");
            for line in lines {
                let _ = write!(out, "<li style=\"margin:0 0 4px\">{}</li>", escape(line));
            }
            out.push_str("</ul>");
        }
        Body::Pairs(all) => pairs(out, all.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
        Body::Text(text) => {
            let _ = write!(out, "<p style=\"margin:0 0 12px;white-space:pre-wrap\">{}</p>", escape(text));
        }
        Body::Diff(diff) => {
            // A row each, wrapped: a phone does not scroll sideways inside a mail.
            let _ = write!(
                out,
                "<div style=\"{MONO};line-height:1.5;margin:0 0 12px;border:1px solid #dfe2e6;border-radius:6px;\
                 padding:8px 0;background:#fafbfc\">"
            );
            for line in diff.lines() {
                let (colour, background) = match line.as_bytes().first() {
                    _ if line.starts_with("+++") || line.starts_with("---") => ("#5b6472", "transparent"),
                    Some(b'+') => ("#14532d", "#e3f6e8"),
                    Some(b'-') => ("#8c1d18", "#fdecea"),
                    Some(b'@') => ("#5b6472", "transparent"),
                    _ => ("#1b1f24", "transparent"),
                };
                let shown = if line.is_empty() { " " } else { line };
                let _ = write!(
                    out,
                    "<div style=\"white-space:pre-wrap;padding:0 8px;color:{colour};background:{background}\">{}</div>",
                    escape(shown)
                );
            }
            out.push_str("</div>");
        }
    }
}

fn pairs<'a>(out: &mut String, all: impl Iterator<Item = (&'a str, &'a str)>) {
    out.push_str("<table role=\"presentation\" style=\"border-collapse:collapse;margin:0 0 12px;width:100%\">");
    for (name, value) in all {
        let _ = write!(
            out,
            "<tr><td style=\"padding:2px 12px 2px 0;color:#5b6472;vertical-align:top;white-space:nowrap\">{}</td>\
             <td style=\"padding:2px 0;vertical-align:top;width:100%;overflow-wrap:anywhere\">{}</td></tr>",
            escape(name),
            escape(value)
        );
    }
    out.push_str("</table>");
}
