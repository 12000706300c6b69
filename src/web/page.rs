//! The pages behind mailed links: what a person on a phone has to know to decide, and one form. Text only comes in; HTML
//! leaves. No scripts, nothing loaded from anywhere, and every value escaped.

use super::links::{Filled, may_approve};
use crate::approval::{LinkView, MESSAGE_MAX_CHARS};
use crate::markup::escape;
use crate::model::approval::{ApprovalState, ApprovalView, Decision, Verdict};
use crate::model::input::{Input, InputKind};
use jiff::Timestamp;
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");
/// Lines of a configuration diff that are shown: more than anybody reads, and still a page that a phone can show.
const DIFF_LINES: usize = 1_500;
/// A longer diff is folded away.
const DIFF_FOLDED: usize = 30;

/// One page.
pub(super) struct Page {
    title: String,
    corner: String,
    body: String,
}

impl Page {
    pub(super) fn html(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta name=\"referrer\" content=\"no-referrer\"><title>{}</title><style>{STYLE}</style></head>\n\
             <body><main><header><b>Mainstay</b><span>{}</span></header>\n{}</main></body></html>\n",
            escape(&self.title),
            escape(&self.corner),
            self.body
        )
    }

    fn about(view: &ApprovalView, body: String) -> Page {
        Page { title: view.subject.title.clone(), corner: format!("approval {}", view.id), body }
    }
}

/// What is asked, and the form for the answer.
pub(super) fn ask(seen: &LinkView, trouble: Option<&str>, filled: &Filled, now: Timestamp) -> Page {
    let view = &seen.view;
    let mut out = String::new();
    if let Some(trouble) = trouble {
        note(&mut out, "bad", "Not taken", trouble);
    }
    if let Some(warning) = &view.subject.warning {
        note(&mut out, "bad", "Read this first", warning);
    }
    tag(&mut out, "h1", &view.subject.title);
    if let Some(why) = &view.note {
        note(&mut out, "warn", "It cannot be granted as things are", why);
    }
    facts(&mut out, seen, now);
    subject(&mut out, view);
    votes(&mut out, view, now);
    form(&mut out, seen, filled);
    Page::about(view, out)
}

/// Asks for the digits.
pub(super) fn code(seen: &LinkView, filled: &Filled, trouble: Option<&str>) -> Page {
    let mut out = String::new();
    if let Some(trouble) = trouble {
        note(&mut out, "bad", "Not taken", trouble);
    }
    let what = match filled.verdict {
        Some("approve") => "Approve",
        Some("reject") => "Reject",
        _ => "Take back your answer",
    };
    tag(&mut out, "h1", &format!("{what}: {}", seen.view.subject.title));
    if let Some(warning) = &seen.view.subject.warning {
        note(&mut out, "bad", "Read this first", warning);
    }
    tag(
        &mut out,
        "p",
        &format!(
            "Six digits were mailed to {} just now. They are good for 10 minutes, and for this answer only.",
            seen.person
        ),
    );
    if !filled.inputs.is_empty() && filled.verdict == Some("approve") {
        out.push_str("<dl class=\"facts\">");
        for (name, value) in &filled.inputs {
            fact(&mut out, name, value);
        }
        out.push_str("</dl>");
    }
    out.push_str("<form method=\"post\">");
    let hidden = |out: &mut String, name: &str, value: &str| {
        let _ = write!(out, "<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value));
    };
    hidden(&mut out, "verdict", filled.verdict.unwrap_or_default());
    for (name, value) in &filled.inputs {
        hidden(&mut out, &format!("input.{name}"), value);
    }
    if let Some(message) = &filled.message {
        hidden(&mut out, "message", message);
    }
    out.push_str(
        "<label for=\"code\">The six digits</label><input class=\"digits\" id=\"code\" name=\"code\" inputmode=\"numeric\" \
         autocomplete=\"one-time-code\" pattern=\"[0-9 ]{6,8}\" maxlength=\"8\" required autofocus>",
    );
    let button = if filled.verdict == Some("approve") { "yes" } else { "no" };
    let _ = write!(out, "<div class=\"buttons one\"><button class=\"{button}\">{}</button></div></form>", escape(what));
    Page::about(&seen.view, out)
}

/// It was taken.
pub(super) fn done(seen: &LinkView, filled: &Filled) -> Page {
    let view = &seen.view;
    let mut out = String::new();
    let (class, said) = match filled.verdict {
        Some("approve") => ("good", "You approved it"),
        Some("reject") => ("bad", "You rejected it"),
        _ => ("warn", "You took back your answer"),
    };
    note(&mut out, class, said, &standing(view));
    tag(&mut out, "h1", &view.subject.title);
    if !view.state.is_final() {
        let hint = if filled.verdict == Some("withdraw") {
            format!("You can still answer: a new link is in your mail, or use `mainstay approve {}`.", view.id)
        } else {
            format!(
                "Until it begins you can take it back: a new link is in your mail, or use `mainstay withdraw {}`.",
                view.id
            )
        };
        tag(&mut out, "p", &hint);
    }
    tag(&mut out, "p", "You can close this page.");
    Page::about(view, out)
}

/// Nothing to do here, and why.
pub(super) fn sorry(title: &str, told: &str) -> Page {
    let mut out = String::new();
    tag(&mut out, "h1", title);
    tag(&mut out, "p", told);
    Page { title: title.to_owned(), corner: String::new(), body: out }
}

fn facts(out: &mut String, seen: &LinkView, now: Timestamp) {
    let (view, subject) = (&seen.view, &seen.view.subject);
    out.push_str("<dl class=\"facts\">");
    fact(out, "Asked", &format!("{}, {}", seen.person, ago(view.created_at, now)));
    if let Some(environment) = &view.environment {
        fact(out, "Environment", environment.as_str());
    }
    if !subject.repo.is_empty() {
        let branch = subject.git_ref.strip_prefix("refs/heads/").or(subject.git_ref.strip_prefix("refs/tags/"));
        let commit: String = subject.commit.chars().take(8).collect();
        fact(out, "Code", &format!("{} {} @ {commit}", subject.repo, branch.unwrap_or(&subject.git_ref)));
    }
    if let Some(run) = view.run {
        fact(out, "Run", &format!("#{run}"));
    }
    fact(out, "Votes", &standing(view));
    fact(out, "Until", &format!("{} ({})", time(view.expires_at), left(view.expires_at, now)));
    out.push_str("</dl>");
}

fn subject(out: &mut String, view: &ApprovalView) {
    let subject = &view.subject;
    if let Some(message) = &subject.message {
        heading(out, "What the pipeline says");
        paragraphs(out, message);
    }
    if !subject.commits.is_empty() {
        heading(out, &format!("What changes: {}", count(subject.commits.len(), "commit", "commits")));
        out.push_str("<ul>");
        for commit in &subject.commits {
            let (id, rest) = commit.split_once(' ').unwrap_or(("", commit));
            let _ = write!(out, "<li><span class=\"id\">{}</span> {}</li>", escape(id), escape(rest));
        }
        out.push_str("</ul>");
    }
    if !subject.images.is_empty() {
        heading(out, "Images");
        out.push_str("<ul>");
        for (service, image) in &subject.images {
            let _ = write!(out, "<li>{} <span class=\"id\">{}</span></li>", escape(service), escape(image));
        }
        out.push_str("</ul>");
    }
    heading(out, "Configuration");
    diff(out, &subject.config_diff);
    if !subject.results.is_empty() {
        heading(out, "Checks so far");
        out.push_str("<ul>");
        for (what, how) in &subject.results {
            let _ = write!(out, "<li class=\"row\"><span>{}</span>{}</li>", escape(what), result(how));
        }
        out.push_str("</ul>");
    }
    if let Some(staging) = &subject.staging {
        heading(out, "The environment before this one");
        paragraphs(out, staging);
    }
    if !subject.way_back.is_empty() {
        heading(out, "The way back");
        paragraphs(out, &subject.way_back);
    }
}

/// How something ended, coloured by its first word.
fn result(how: &str) -> String {
    let first = how.split(|c: char| !c.is_alphanumeric() && c != '-').next().unwrap_or_default().to_lowercase();
    let class = match first.as_str() {
        "succeeded" | "success" | "verified" | "passed" | "ok" | "good" => " ok",
        "failed" | "failure" | "rolled-back" | "errored" | "bad" | "cancelled" => " no",
        _ => "",
    };
    format!("<span class=\"word{class}\">{}</span>", escape(how))
}

fn diff(out: &mut String, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return tag(out, "p", "Nothing changes.");
    }
    let folded = lines.len() > DIFF_FOLDED;
    if folded {
        let _ = write!(out, "<details><summary>{}</summary>", count(lines.len(), "line", "lines"));
    }
    out.push_str("<pre>");
    for line in lines.iter().take(DIFF_LINES) {
        let class = match line.as_bytes() {
            [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] | [b'@', b'@', ..] => "at",
            [b'+', ..] => "add",
            [b'-', ..] => "del",
            _ => "",
        };
        // An empty line keeps its height.
        let shown = if line.is_empty() { " ".to_owned() } else { escape(line) };
        let _ = write!(out, "<span class=\"{class}\">{shown}</span>");
    }
    if lines.len() > DIFF_LINES {
        let more = lines.len() - DIFF_LINES;
        let _ = write!(out, "<span class=\"at\">… and {}</span>", count(more, "more line", "more lines"));
    }
    out.push_str("</pre>");
    if folded {
        out.push_str("</details>");
    }
}

fn votes(out: &mut String, view: &ApprovalView, now: Timestamp) {
    let standing: Vec<&Decision> = view.decisions.iter().filter(|decision| decision.withdrawn_at.is_none()).collect();
    if standing.is_empty() && view.excluded.is_empty() {
        return;
    }
    heading(out, "Who said what");
    out.push_str("<ul>");
    for decision in standing {
        let counts = decision.verdict == Verdict::Reject || view.counted.contains(&decision.person);
        let word = match decision.verdict {
            Verdict::Approve => "<span class=\"word ok\">approved</span>",
            Verdict::Reject => "<span class=\"word no\">rejected</span>",
        };
        let mut about = ago(decision.at, now);
        if !counts {
            about.push_str(", which does not count any more");
        }
        for (name, value) in &decision.inputs {
            let _ = write!(about, ", {name} = {value}");
        }
        let said = decision.message.as_ref().map(|text| format!("<br>“{}”", escape(text))).unwrap_or_default();
        let _ = write!(
            out,
            "<li>{} {word} <span class=\"dim\">{}</span>{said}</li>",
            escape(decision.person.as_str()),
            escape(&about)
        );
    }
    for excluded in &view.excluded {
        let _ = write!(
            out,
            "<li>{} <span class=\"dim\">does not count: {}</span></li>",
            escape(excluded.person.as_str()),
            escape(&excluded.why)
        );
    }
    out.push_str("</ul>");
}

fn form(out: &mut String, seen: &LinkView, filled: &Filled) {
    out.push_str("<form method=\"post\">");
    if seen.standing == Some(Verdict::Approve) {
        note(out, "good", "You approved it", "Until it begins you can take that back, or reject it.");
        out.push_str(
            "<div class=\"buttons\"><button class=\"plain\" name=\"verdict\" value=\"withdraw\">Take it back</button>\
             <button class=\"no\" name=\"verdict\" value=\"reject\">Reject</button></div>",
        );
    } else {
        if may_approve(seen) {
            for input in &seen.view.inputs {
                field(out, input, filled.inputs.get(&input.name).map(String::as_str));
            }
        }
        let _ = write!(
            out,
            "<label for=\"message\">A word about it <small>(if you like)</small></label>\
             <textarea id=\"message\" name=\"message\" rows=\"2\" maxlength=\"{MESSAGE_MAX_CHARS}\">{}</textarea>",
            escape(filled.message.as_deref().unwrap_or_default())
        );
        let no = "<button class=\"no\" name=\"verdict\" value=\"reject\" formnovalidate>Reject</button>";
        if may_approve(seen) {
            let _ = write!(
                out,
                "<div class=\"buttons\"><button class=\"yes\" name=\"verdict\" value=\"approve\">Approve</button>{no}</div>"
            );
        } else {
            let _ = write!(out, "<div class=\"buttons one\">{no}</div>");
        }
    }
    out.push_str(
        "<p class=\"dim\">Then you are asked for six digits, which are mailed to you at that moment.</p></form>",
    );
}

fn field(out: &mut String, input: &Input, given: Option<&str>) {
    let (name, id) = (format!("input.{}", input.name), format!("in-{}", input.name));
    let value = given.or(input.default.as_deref()).unwrap_or_default();
    let about = input.description.as_ref().map(|text| format!(" <small>{}</small>", escape(text))).unwrap_or_default();
    let required = if input.required { " required" } else { "" };
    let _ = write!(out, "<label for=\"{}\">{}{about}</label>", escape(&id), escape(&input.name));
    let options = |out: &mut String, options: &[String]| {
        let _ = write!(out, "<select id=\"{}\" name=\"{}\"{required}>", escape(&id), escape(&name));
        if !options.iter().any(|option| option == value) {
            out.push_str("<option value=\"\"></option>");
        }
        for option in options {
            let selected = if option == value { " selected" } else { "" };
            let _ = write!(out, "<option value=\"{0}\"{selected}>{0}</option>", escape(option));
        }
        out.push_str("</select>");
    };
    match &input.kind {
        InputKind::Choice(choices) => options(out, choices),
        InputKind::Boolean => options(out, &["true".to_owned(), "false".to_owned()]),
        kind => {
            let mode = if *kind == InputKind::Number { " inputmode=\"decimal\"" } else { "" };
            let _ = write!(
                out,
                "<input id=\"{}\" name=\"{}\" value=\"{}\"{mode}{required} maxlength=\"1000\">",
                escape(&id),
                escape(&name),
                escape(value)
            );
        }
    }
}

fn standing(view: &ApprovalView) -> String {
    let votes = format!("{} of {} said yes", view.counted.len(), view.required);
    match view.state {
        ApprovalState::Open if view.decisions.is_empty() && view.required == 1 => "nobody said anything yet".to_owned(),
        ApprovalState::Open => votes,
        state => match &view.note {
            Some(note) => format!("{state}: {note}"),
            None => format!("{state}: {votes}"),
        },
    }
}

fn heading(out: &mut String, text: &str) {
    tag(out, "h2", text);
}

fn tag(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "<{name}>{}</{name}>", escape(text));
}

fn paragraphs(out: &mut String, text: &str) {
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        tag(out, "p", line);
    }
}

fn note(out: &mut String, class: &str, title: &str, text: &str) {
    let _ = writeln!(out, "<div class=\"note {class}\"><b>{}</b>{}</div>", escape(title), escape(text));
}

fn fact(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
}

/// `1 commit`, `2 commits`.
pub(super) fn count<N: TryInto<u64>>(number: N, one: &str, many: &str) -> String {
    let number: u64 = number.try_into().unwrap_or(u64::MAX);
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

/// An error's text as a sentence: what stands before its first colon is what we tried.
pub(super) fn sentence(error: &str) -> String {
    let told = error.split_once(": ").map_or(error, |(_, told)| told);
    let mut chars = told.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

/// A time as people anywhere read it.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%a %-d %b %Y %H:%M UTC").to_string()
}

fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3_600 => format!("{} min", s / 60),
        s @ 3_600..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.as_second() - then.as_second()))
}

fn left(end: Timestamp, now: Timestamp) -> String {
    format!("{} left", span(end.as_second() - now.as_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_escaped_wherever_it_stands() {
        let evil = "\"><script>alert('x')</script>\u{202e}\u{1b}[0m&";
        let input = serde_json::json!({
            "name": evil, "kind": {"choice": [evil, "b"]}, "default": null, "required": true, "description": evil
        });
        let text = serde_json::json!({ "name": evil, "kind": "text", "default": evil, "required": false, "description": null });
        let view: ApprovalView = serde_json::from_value(serde_json::json!({
            "id": 3, "environment": "production", "run": 12, "step": null, "state": "open", "deploy": null,
            "subject": {
                "title": evil, "warning": evil, "repo": evil, "git_ref": evil, "commit": evil,
                "commits": [evil], "images": { evil: evil }, "config_diff": format!("+{evil}\n-{evil}\n@@ {evil}\n{evil}"),
                "results": [[evil, evil]], "staging": evil, "way_back": evil, "message": evil
            },
            "required": 2, "eligible": ["ana"], "counted": [], "excluded": [{"person": "ben", "why": evil}],
            "inputs": [input, text],
            "decisions": [{"person": "ana", "verdict": "approve", "channel": "cli", "inputs": {"a": evil}, "message": evil,
                           "at": "2026-03-01T10:00:00Z", "withdrawn_at": null}],
            "created_at": "2026-03-01T10:00:00Z", "expires_at": "2026-03-02T10:00:00Z", "note": evil
        }))
        .unwrap();
        let seen = |standing| LinkView { person: "ana".parse().unwrap(), view: view.clone(), standing, only_no: false };
        let filled = Filled {
            verdict: Some("approve"),
            inputs: [(evil.to_owned(), evil.to_owned())].into(),
            message: Some(evil.to_owned()),
            code: None,
        };
        let now = view.created_at;
        let pages = [
            ask(&seen(None), Some(evil), &filled, now),
            ask(&seen(Some(Verdict::Approve)), None, &filled, now),
            code(&seen(None), &filled, Some(evil)),
            done(&seen(None), &filled),
            sorry(evil, evil),
        ];
        for page in pages {
            let html = page.html();
            let (_, body) = html.split_once("</style>").unwrap();
            assert!(html.contains("<title>&quot;&gt;&lt;script&gt;"), "{html}");
            for raw in ["<script", "alert('x')", "\u{202e}", "\u{1b}"] {
                let hit = body.find(raw).map(|at| body[at.saturating_sub(60)..].chars().take(160).collect::<String>());
                assert_eq!(hit, None, "{raw} stands in the page as it came");
            }
            // Every tag is one of ours, and what came in closed none.
            for piece in body.split('<').skip(1) {
                let tag: String =
                    piece.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
                let ours = [
                    "head", "body", "html", "main", "header", "b", "span", "div", "h1", "h2", "p", "dl", "dt", "dd",
                    "ul", "li", "pre", "br", "form", "label", "small", "input", "select", "option", "textarea",
                    "button", "details", "summary",
                ];
                assert!(ours.contains(&tag.as_str()), "<{piece}");
            }
        }
    }

    #[test]
    fn errors_become_sentences() {
        assert_eq!(sentence("answer approval 3: ana is away"), "Ana is away.");
        assert_eq!(sentence("ouch"), "Ouch.");
        assert_eq!((count(1_u32, "try", "tries"), count(4_u32, "try", "tries")), ("1 try".into(), "4 tries".into()));
    }
}
