//! What people see of a source, made from what its parts say.

use super::Kind;
use crate::backup::catalog::manifest::Manifest;
use crate::backup::ship::{Activity, Status};
use crate::backup::take::{Phase, Progress};
use crate::config::backup::Source;
use crate::model::source_view::{LastBackup, LogView, SourceState, SourceView, UnderWay};
use jiff::Timestamp;

/// Nothing is known yet.
pub(super) fn starting(source: &Source) -> SourceView {
    SourceView {
        name: source.name.clone(),
        state: SourceState::Starting,
        words: "starting".into(),
        since: Timestamp::now(),
        log: None,
        backup: None,
        last_backup: None,
        window_start: None,
        checked: None,
        restore: None,
        next_backup: None,
        failed_backup: None,
        rpo_secs: source.rpo.map(|span| span.0.as_secs()),
        rto_secs: source.rto.map(|span| span.0.as_secs()),
        concerns: Vec::new(),
    }
}

/// Takes over a state and its words; `since` moves only when the state does.
pub(super) fn turn(view: &mut SourceView, state: SourceState, words: impl Into<String>) {
    if view.state != state {
        view.since = Timestamp::now();
    }
    view.state = state;
    view.words = words.into();
}

/// Takes over what the shipper says.
pub(super) fn shipping(view: &mut SourceView, status: &Status) {
    let state = match status.activity {
        Activity::Starting => SourceState::Starting,
        Activity::Streaming => SourceState::Shipping,
        Activity::Waiting | Activity::Stopped => SourceState::Failing,
        Activity::Refused => SourceState::Stuck,
    };
    // Log arrives and is not stored: whatever the server's side says, nothing new is safe.
    let (state, words) = match &status.last_error {
        Some(error) if state == SourceState::Shipping => (SourceState::Failing, format!("failed to {error}")),
        _ => (state, status.words.clone()),
    };
    turn(view, state, words);
    if let (Some(timeline), Some(durable), Some(server_end)) = (status.timeline, status.durable, status.server_end) {
        let lag_ms = u64::try_from(status.waiting.as_millis()).unwrap_or(u64::MAX);
        view.log = Some(LogView { timeline, server_end, durable, lag_ms });
    }
}

/// Takes over how far a backup is.
pub(super) fn under_way(view: &mut SourceView, began: Timestamp, kind: Kind, progress: Progress) {
    let phase = phase(progress.phase);
    let of_bytes = progress.estimated_bytes.or_else(|| view.backup.as_ref().and_then(|before| before.of_bytes));
    let incremental = kind == Kind::Incremental;
    view.backup = Some(UnderWay { began, bytes: progress.received_bytes, of_bytes, phase: phase.into(), incremental });
}

impl From<&Manifest> for LastBackup {
    fn from(manifest: &Manifest) -> LastBackup {
        LastBackup {
            id: manifest.backup.to_string(),
            began: manifest.began,
            ended: manifest.ended,
            parent: manifest.parent.as_ref().map(ToString::to_string),
            whole_because: manifest.whole_because.clone(),
            cluster: Some(manifest.server.system.to_string()),
        }
    }
}

/// A phase in words, such as fit behind "backup: ".
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Opening => "the server makes a checkpoint",
        Phase::Receiving => "data arrives and is stored",
        Phase::WaitingForLog => "waiting until its log is stored",
        Phase::ReadingBack => "what was stored is read back",
        Phase::Done => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::backup::parse;

    #[test]
    fn log_that_arrives_and_is_not_stored_is_never_shown_as_safe() {
        let store = crate::config::secret::SecretStore::new(std::path::Path::new("/nowhere"));
        let around = crate::config::backup::Around {
            env: &|_| None,
            folder: std::path::Path::new("/"),
            store: &store,
            repos: None,
        };
        let text = "postgres: \"postgres://backup@127.0.0.1/?sslmode=disable\"\n";
        let source = parse(&"shop-db".parse().unwrap(), "shop-db.yml", text, &around).unwrap();
        let mut view = starting(&source);
        let mut status = Status { activity: Activity::Streaming, words: "reading".into(), ..Status::default() };
        shipping(&mut view, &status);
        assert_eq!((view.state, view.words.as_str()), (SourceState::Shipping, "reading"));
        status.last_error = Some("store a piece: the disk is not mounted".into());
        shipping(&mut view, &status);
        assert_eq!(
            (view.state, view.words.as_str()),
            (SourceState::Failing, "failed to store a piece: the disk is not mounted")
        );
        status.last_error = None;
        shipping(&mut view, &status);
        assert_eq!(view.state, SourceState::Shipping);
    }
}
