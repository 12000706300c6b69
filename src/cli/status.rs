//! `mainstay status`: one look at the daemon.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::ui::{Tone, Ui};
use super::{Context, words};
use crate::model::api::{DaemonStatus, MessageFigures, StuckMessage};
use crate::model::quantity::rounded_bytes;
use crate::model::source_view::{Concern, SourceState, SourceView};
use jiff::Timestamp;

/// Say whether the daemon runs and what it does
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command. A daemon that cannot carry out runs now, or keep a source safe, is exit code 1.
///
/// # Errors
/// When the daemon does not answer.
pub async fn run(_args: &Args, context: &Context) -> Result<Exit, Failure> {
    let status: DaemonStatus = Client::new(&context.place)?.get("status", &[]).await?;
    let ui = &context.ui;
    let failing = |source: &SourceView| {
        matches!(source.state, SourceState::Failing | SourceState::Stuck) || !source.concerns.is_empty()
    };
    let ready = status.runtime_ok && status.not_ready.is_empty() && !status.sources.iter().any(failing);
    if ui.json {
        ui.json(&status);
    } else {
        let (sign, tone) = if ready { ("✓", Tone::Good) } else { ("✗", Tone::Bad) };
        // Empty where nothing is run: a daemon that only keeps sources safe.
        let runtime = Some(words::clean(&status.runtime)).filter(|runtime| !runtime.is_empty());
        ui.out(format!(
            "{} mainstay {}, up {}; {}{}; {} running, {} waiting",
            ui.paint(tone, sign),
            words::clean(&status.version),
            words::took(words::between(status.started_at, Timestamp::now())),
            runtime.map_or_else(String::new, |runtime| format!("{runtime}; ")),
            words::repositories(status.repos),
            status.running,
            status.queued,
        ));
        for reason in &status.not_ready {
            ui.out(format!("  {}", ui.paint(Tone::Bad, words::clean(reason))));
        }
        for source in &status.sources {
            ui.out(format!("  {}", source_line(ui, source, Timestamp::now())));
            for concern in &source.concerns {
                ui.out(format!("    {}", ui.paint(Tone::Bad, concern_line(concern, Timestamp::now()))));
            }
        }
        for line in messages(&status.messages, Timestamp::now()) {
            ui.out(format!("  {}", ui.paint(Tone::Bad, words::clean(&line))));
        }
    }
    Ok(if ready { Exit::Good } else { Exit::Bad })
}

/// How a source of backups stands.
fn source_line(ui: &Ui, source: &SourceView, now: Timestamp) -> String {
    let (sign, tone) = match source.state {
        SourceState::Shipping | SourceState::Scheduled => ("✓", Tone::Good),
        SourceState::Starting | SourceState::Elsewhere => ("·", Tone::Active),
        SourceState::Failing | SourceState::Stuck => ("✗", Tone::Bad),
    };
    let log = source.log.as_ref().map_or_else(String::new, |log| {
        format!("; log safe up to {}, {} behind", log.durable, rounded_bytes(log.lag_bytes()))
    });
    let backup = match (&source.backup, &source.last_backup) {
        (Some(under_way), _) => format!("; backup: {}", under_way.phase),
        (None, Some(last)) => {
            let why = last.whole_because.as_ref();
            let why = why.map_or_else(String::new, |why| format!(" (not incremental: {})", words::clean(why)));
            format!("; last backup {}{why}", words::ago(last.ended, now))
        }
        (None, None) => "; no backup yet".to_owned(),
    };
    let failed = source.failed_backup.as_ref().map_or_else(String::new, |failed| {
        format!("; the last try at a backup, {}, {}", words::ago(failed.at, now), on_one_line(&failed.words))
    });
    let checked =
        source.checked.as_ref().filter(|checked| checked.wrong == 0).map_or_else(String::new, |checked| {
            format!("; what is stored was checked {}", words::ago(checked.at, now))
        });
    format!("{} {}: {}{log}{backup}{checked}{failed}", ui.paint(tone, sign), source.name, on_one_line(&source.words))
}

/// What is wrong with a source: what people were told.
fn concern_line(concern: &Concern, now: Timestamp) -> String {
    format!("{}: {}", words::ago(concern.since, now), on_one_line(&concern.words))
}

/// An error with what it says to try, as one sentence.
fn on_one_line(text: &str) -> String {
    words::clean(&text.replace("\nhint: ", "; "))
}

/// What is to be said about messages: nothing, unless some are not where they should be.
fn messages(figures: &MessageFigures, now: Timestamp) -> Vec<String> {
    let count = |n: u64| if n == 1 { "1 message".to_owned() } else { format!("{n} messages") };
    let to = |message: &StuckMessage| match message.recipient.as_str() {
        "" => message.channel.clone(),
        person => format!("{person} by {}", message.channel),
    };
    let mut lines = Vec::new();
    if let Some(stuck) = &figures.stuck {
        lines.push(format!(
            "{} to be sent; the oldest, to {}, written {}: {}",
            if figures.waiting == 1 {
                "1 message waits".to_owned()
            } else {
                format!("{} messages wait", figures.waiting)
            },
            to(stuck),
            words::ago(stuck.since, now),
            stuck.error
        ));
    }
    if let Some(last) = &figures.last_given_up {
        lines.push(format!(
            "{} given up in the last thirty days; the last, to {}: {}",
            count(figures.given_up),
            to(last),
            last.error
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_says_to_try_does_not_run_into_its_sentence() {
        assert_eq!(
            on_one_line("failed to read: no\nhint: mend it\nhint: or wait"),
            "failed to read: no; mend it; or wait"
        );
    }

    #[test]
    fn messages_are_spoken_of_only_when_some_are_not_where_they_should_be() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let figures = MessageFigures { waiting: 3, ..MessageFigures::default() };
        assert_eq!(messages(&figures, now), [""; 0], "they are on their way");
        let stuck = |channel: &str, recipient: &str, error: &str| {
            Some(StuckMessage {
                channel: channel.into(),
                recipient: recipient.into(),
                since: Timestamp::from_second(1_000_000 - 90).unwrap(),
                error: error.into(),
            })
        };
        let figures = MessageFigures {
            waiting: 3,
            stuck: stuck("mail", "ana", "mail.example.com:587 was silent too long"),
            given_up: 1,
            last_given_up: stuck("board", "", "it answered 404 Not Found"),
        };
        assert_eq!(
            messages(&figures, now),
            [
                "3 messages wait to be sent; the oldest, to ana by mail, written 1m ago: mail.example.com:587 was silent \
                 too long",
                "1 message given up in the last thirty days; the last, to board: it answered 404 Not Found",
            ]
        );
    }
}
