//! When something about a source is worth telling people, and when it is over. No I/O, no clock of its own.
//!
//! In: what is seen of a source, again and again, and which episodes are open. Out: those that begin and those that end. An
//! episode begins once, and ends only after things have been good for a while: what flickers is told once.

use super::forecast::{is_hopeless, is_near};
use crate::backup::restore::estimate::Estimate;
use crate::config::backup::Source;
use crate::model::Span;
use crate::model::quantity::rounded_bytes;
use crate::model::source_view::{ConcernKind, SourceState, SourceView};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A server that restarts, or a store that answers 503 for a moment, is nobody's business; longer is.
pub(super) const GRACE: Duration = Duration::from_secs(60);
/// It must have been good for so long before it is over: two tries of whatever failed.
const CALM: Duration = Duration::from_secs(10);

/// Something that is wrong, as it is kept beyond the life of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Episode {
    /// What.
    pub kind: ConcernKind,
    /// Since when.
    pub since: Timestamp,
    /// In words.
    pub words: String,
    /// What must be remembered to finish or to undo what was done about it.
    pub memo: Option<String>,
}

/// What is seen of a source at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) now: Instant,
    pub(super) view: &'a SourceView,
    /// Bytes of the log that the slot holds back on the server, where that is known now.
    pub(super) held: Option<u64>,
}

/// What changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Begin(ConcernKind, String),
    End(ConcernKind, String),
}

/// How one thing stands.
enum Worry {
    Yes(String),
    No(String),
    Unknown,
}

/// Looks at a source and remembers since when it has been how.
#[derive(Debug)]
pub(super) struct Judge {
    source: Source,
    /// Since when it has not been good; none while it is.
    bad: Option<Instant>,
    /// Everything that was committed before this moment is safe, as far as is known.
    safe: Instant,
    /// Since when a thing that was wrong has been good again.
    calm: BTreeMap<ConcernKind, Instant>,
}

impl Judge {
    pub(super) fn new(source: Source, now: Instant) -> Judge {
        Judge { source, bad: None, safe: now, calm: BTreeMap::new() }
    }

    /// Whether what the server writes is stored: it arrives, and nothing has waited for longer than `limit`.
    pub(super) fn is_safe(view: &SourceView, limit: Duration) -> bool {
        let waited = view.log.as_ref().map_or(0, |log| log.lag_ms);
        matches!(view.state, SourceState::Elsewhere | SourceState::Scheduled)
            || (view.state == SourceState::Shipping && u128::from(waited) < limit.as_millis())
    }

    /// For how long what the server writes has not been stored.
    pub(super) fn unsafe_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.safe)
    }

    /// What begins and what ends now.
    pub(super) fn look(&mut self, seen: Seen<'_>, open: &[Episode]) -> Vec<Change> {
        let Seen { now, view, .. } = seen;
        // The first logical copy takes what it takes; a physical source ships by then.
        let first_copy = self.source.logical.is_some() && view.state == SourceState::Starting;
        let good = first_copy || Judge::is_safe(view, GRACE);
        self.bad = if good { None } else { self.bad.or(Some(now)) };
        match view.state {
            // Copies on a schedule are late or not; that is in their state.
            SourceState::Elsewhere | SourceState::Scheduled => self.safe = now,
            SourceState::Shipping => {
                let waited = Duration::from_millis(view.log.as_ref().map_or(0, |log| log.lag_ms));
                self.safe = now.checked_sub(waited).unwrap_or(now).max(self.safe);
            }
            SourceState::Starting | SourceState::Failing | SourceState::Stuck => {}
        }
        let is_open = |kind| open.iter().find(|episode| episode.kind == kind);
        let worries = [
            (ConcernKind::NotSafe, self.not_safe(seen, good)),
            (ConcernKind::LagWarn, self.lag_warn(seen)),
            (ConcernKind::LagAlarm, self.lag_alarm(seen)),
            (ConcernKind::Rpo, self.rpo(seen)),
            (ConcernKind::Rto, rto(view)),
            (ConcernKind::BackupFailed, backup_failed(view, is_open(ConcernKind::BackupFailed))),
            (ConcernKind::Damaged, damaged(view)),
            (ConcernKind::SlotDropped, slot_dropped(view, is_open(ConcernKind::SlotDropped))),
        ];
        let mut changes = Vec::new();
        for (kind, worry) in worries {
            match (worry, is_open(kind)) {
                (Worry::Yes(words), None) => changes.push(Change::Begin(kind, words)),
                (Worry::No(words), Some(_)) => {
                    let since = *self.calm.entry(kind).or_insert(now);
                    if now.saturating_duration_since(since) >= calm(kind) {
                        changes.push(Change::End(kind, words));
                    }
                    continue;
                }
                _ => {}
            }
            self.calm.remove(&kind);
        }
        changes
    }

    fn not_safe(&self, seen: Seen<'_>, good: bool) -> Worry {
        let view = seen.view;
        match self.bad {
            _ if good => Worry::No("what the server writes is stored again".into()),
            Some(since) if seen.now.saturating_duration_since(since) >= GRACE => Worry::Yes(match view.state {
                SourceState::Shipping => {
                    let waited = view.log.as_ref().map_or(0, |log| log.lag_ms / 1000);
                    format!("the log arrives, and for {waited} s none of it was stored")
                }
                SourceState::Starting => format!("nothing new is safe: it is still {}", view.words),
                _ => format!("nothing new is safe: {}", view.words),
            }),
            _ => Worry::Unknown,
        }
    }

    fn lag_warn(&self, seen: Seen<'_>) -> Worry {
        let lag = self.source.wal_lag;
        match seen.held {
            // Of the louder one only.
            Some(held) if held > lag.alarm.0 => Worry::Unknown,
            Some(held) if held > lag.warn.0 => Worry::Yes(format!(
                "the slot {} holds back {} of log on the server's disk, more than `wal-lag.warn`",
                self.source.slot,
                rounded_bytes(held)
            )),
            Some(held) => Worry::No(format!("the slot holds back {} of log", rounded_bytes(held))),
            None => Worry::Unknown,
        }
    }

    fn lag_alarm(&self, seen: Seen<'_>) -> Worry {
        let lag = self.source.wal_lag;
        match seen.held {
            Some(held) if held > lag.alarm.0 => Worry::Yes(format!(
                "the slot {} holds back {} of log on the server's disk, more than `wal-lag.alarm`: when the disk is full \
                 the server stops",
                self.source.slot,
                rounded_bytes(held)
            )),
            Some(held) if held <= lag.warn.0 => {
                Worry::No(format!("the slot holds back {} of log", rounded_bytes(held)))
            }
            _ => Worry::Unknown,
        }
    }

    fn rpo(&self, seen: Seen<'_>) -> Worry {
        // A copy that is too old is in its source's state, which `not_safe` tells.
        let rpo = self.source.rpo.filter(|_| self.source.logical.is_none());
        let Some(rpo) = rpo.map(|span| span.0).filter(|rpo| !rpo.is_zero()) else {
            return Worry::No("there is no `rpo` any more".into());
        };
        let exposed = self.unsafe_for(seen.now);
        if exposed >= near(rpo, self.source.ship_every.0) {
            let whole = |time: Duration| Span(Duration::from_secs(time.as_secs()));
            return Worry::Yes(format!(
                "{} of work would be lost with the server now, and the `rpo` is {}: {}",
                whole(exposed),
                whole(rpo),
                seen.view.words
            ));
        }
        Worry::No("what would be lost is well under the `rpo` again".into())
    }
}

/// Of a restore that would take too long, and whether a base backup helps.
fn rto(view: &SourceView) -> Worry {
    let (Some(rto), Some(restore)) = (view.rto_secs, view.restore) else { return Worry::Unknown };
    let whole = |secs| Span(Duration::from_secs(secs));
    let now = Estimate { base_secs: restore.base_secs, log_secs: restore.log_secs, total_secs: restore.total_secs };
    if is_hopeless(now, rto) {
        return Worry::Yes(format!(
            "a restore takes {} for its base alone, and the `rto` is {}: no base backup mends that. More bandwidth to the \
             repository or a larger `rto` does",
            whole(restore.base_secs),
            whole(rto)
        ));
    }
    if is_near(restore.total_secs, rto) {
        return Worry::Yes(format!(
            "a restore would take {} now, {} of them for the log since the last base backup, and the `rto` is {}",
            whole(restore.total_secs),
            whole(restore.log_secs),
            whole(rto)
        ));
    }
    Worry::No(format!("a restore would take {} now", whole(restore.total_secs)))
}

/// From here on people are told: a quarter of the time is left. With an `rpo` of a few pieces' length, what is usual is not
/// told.
fn near(rpo: Duration, ship_every: Duration) -> Duration {
    (rpo * 3 / 4).max(ship_every * 2).min(rpo)
}

fn calm(kind: ConcernKind) -> Duration {
    match kind {
        // A fact each, which does not flicker.
        ConcernKind::BackupFailed | ConcernKind::Damaged | ConcernKind::SlotDropped => Duration::ZERO,
        _ => CALM,
    }
}

fn backup_failed(view: &SourceView, open: Option<&Episode>) -> Worry {
    match (&view.failed_backup, &view.last_backup, open) {
        (Some(failed), _, _) => Worry::Yes(format!("the last try at a backup {}", failed.words)),
        (None, Some(last), Some(open)) if last.ended > open.since => {
            Worry::No(format!("backup {} is complete", last.id))
        }
        _ => Worry::Unknown,
    }
}

fn damaged(view: &SourceView) -> Worry {
    match &view.checked {
        Some(checked) if checked.wrong > 0 => {
            let first = checked.first.as_deref().unwrap_or_default();
            Worry::Yes(match checked.wrong {
                1 => format!("one thing is wrong with what is stored: {first}"),
                n => format!("{n} things are wrong with what is stored, the first: {first}"),
            })
        }
        Some(checked) => Worry::No(match checked.objects {
            1 => "one object was read, and nothing is wrong".to_owned(),
            n => format!("{n} objects were read, and nothing is wrong"),
        }),
        None => Worry::Unknown,
    }
}

/// Begun by whoever drops it.
fn slot_dropped(view: &SourceView, open: Option<&Episode>) -> Worry {
    match (&view.last_backup, open) {
        (Some(last), Some(open)) if last.began > open.since => {
            Worry::No(format!("backup {} was taken since: what comes after it can be restored", last.id))
        }
        _ => Worry::Unknown,
    }
}

/// Whether a slot may be dropped: never twice without a base backup in between. One of which it was written down that it
/// would be, and that is still there as it was then, is dropped after all.
pub(super) fn may_drop(open: &[Episode], restart: &str) -> bool {
    match open.iter().find(|episode| episode.kind == ConcernKind::SlotDropped) {
        None => true,
        Some(episode) => episode.memo.as_deref() == Some(restart),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::source_view::{CheckedObjects, FailedBackup, LastBackup, LogView, RestoreForecast};
    use crate::model::{ByteSize, Lsn, Timeline};

    fn source(more: &str) -> Source {
        let store = crate::config::secret::SecretStore::new(std::path::Path::new("/nowhere"));
        let around = crate::config::backup::Around {
            env: &|_| None,
            folder: std::path::Path::new("/"),
            store: &store,
            repos: None,
        };
        let text = format!("postgres: \"postgres://backup@127.0.0.1/?sslmode=disable\"\n{more}");
        crate::config::backup::parse(&"shop-db".parse().unwrap(), "shop-db.yml", &text, &around).unwrap()
    }

    struct Lab {
        judge: Judge,
        view: SourceView,
        held: Option<u64>,
        open: Vec<Episode>,
        begin: Instant,
        at: u64,
    }

    impl Lab {
        fn new(more: &str) -> Lab {
            let (source, begin) = (source(more), Instant::now());
            let mut view = super::super::view::starting(&source);
            view.state = SourceState::Shipping;
            Lab { judge: Judge::new(source, begin), view, held: Some(0), open: Vec::new(), begin, at: 0 }
        }

        /// Looks every second up to then; what changed, in words.
        fn until(&mut self, at: u64) -> Vec<String> {
            let mut told = Vec::new();
            while self.at < at {
                self.at += 1;
                let now = self.begin + Duration::from_secs(self.at);
                for change in self.judge.look(Seen { now, view: &self.view, held: self.held }, &self.open) {
                    match change {
                        Change::Begin(kind, words) => {
                            told.push(format!("{} {}", self.at, kind.as_str()));
                            self.open.push(Episode {
                                kind,
                                since: Timestamp::from_second(1_000).unwrap(),
                                words,
                                memo: None,
                            });
                        }
                        Change::End(kind, _) => {
                            told.push(format!("{} {} over", self.at, kind.as_str()));
                            self.open.retain(|episode| episode.kind != kind);
                        }
                    }
                }
            }
            told
        }
    }

    #[test]
    fn a_source_that_fails_is_told_after_the_grace_once_and_over_when_it_has_been_good_for_a_while() {
        let mut lab = Lab::new("");
        assert_eq!(lab.until(10), [""; 0]);
        lab.view.state = SourceState::Failing;
        assert_eq!(lab.until(60), [""; 0], "a minute has not passed");
        // A try in between does not begin the minute anew.
        lab.view.state = SourceState::Starting;
        lab.until(62);
        lab.view.state = SourceState::Stuck;
        assert_eq!(lab.until(500), ["71 not-safe"]);
        // It flickers.
        for at in [505, 510, 515, 520] {
            lab.view.state = SourceState::Shipping;
            assert_eq!(lab.until(at - 2), [""; 0]);
            lab.view.state = SourceState::Failing;
            assert_eq!(lab.until(at), [""; 0]);
        }
        lab.view.state = SourceState::Shipping;
        assert_eq!(lab.until(600), ["531 not-safe over"]);
        // The log arrives and is not stored: as bad.
        lab.view.log = Some(LogView { timeline: Timeline(1), server_end: Lsn(9), durable: Lsn(1), lag_ms: 60_000 });
        assert_eq!(lab.until(700), ["661 not-safe"]);
    }

    #[test]
    fn r09_lag_is_told_at_two_steps_and_over_below_both() {
        let mut lab = Lab::new("wal-lag: { warn: 16MiB, alarm: 32MiB }\n");
        lab.held = Some(17 << 20);
        assert_eq!(lab.until(5), ["1 lag-warn"]);
        lab.held = Some(33 << 20);
        assert_eq!(lab.until(10), ["6 lag-alarm"]);
        lab.held = None;
        assert_eq!(lab.until(100), [""; 0], "what is not known ends nothing");
        lab.held = Some(20 << 20);
        assert_eq!(lab.until(200), [""; 0]);
        lab.held = Some(1 << 20);
        assert_eq!(lab.until(300), ["211 lag-warn over", "211 lag-alarm over"]);
        // Both passed between two looks: the louder one only.
        lab.held = Some(40 << 20);
        assert_eq!(lab.until(310), ["301 lag-alarm"]);
    }

    #[test]
    fn people_hear_of_an_rpo_before_it_is_missed() {
        let mut lab = Lab::new("rpo: 40s\n");
        lab.until(10);
        lab.view.state = SourceState::Failing;
        assert_eq!(lab.until(50), ["40 rpo"], "30 s of 40 have passed");
        lab.view.state = SourceState::Shipping;
        assert_eq!(lab.until(70), ["61 rpo over"]);
        // An rpo as long as a piece: what is usual is not told, and what is not usual is.
        assert_eq!(near(Duration::from_secs(1), Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(near(Duration::from_secs(60), Duration::from_secs(1)), Duration::from_secs(45));
        let mut idle = Lab::new("rpo: 0s\nsynchronous: true\n");
        idle.view.state = SourceState::Failing;
        assert_eq!(idle.until(50), [""; 0], "0 s is what a synchronous standby holds, or steps down from");
    }

    #[test]
    fn people_hear_when_the_rto_cannot_be_kept() {
        let mut lab = Lab::new("rto: 10m\n");
        let restore =
            |base_secs, log_secs| Some(RestoreForecast { base_secs, log_secs, total_secs: base_secs + log_secs + 3 });
        assert_eq!(lab.until(5), [""; 0]);
        lab.view.restore = restore(100, 460);
        assert_eq!(lab.until(10), [""; 0], "a base backup is under way by then");
        lab.view.restore = restore(100, 470);
        assert_eq!(lab.until(15), ["11 rto"]);
        assert!(lab.open[0].words.contains("470s of them for the log"), "{:?}", lab.open);
        lab.view.restore = restore(100, 0);
        assert_eq!(lab.until(30), ["26 rto over"]);
        lab.view.restore = restore(500, 0);
        assert_eq!(lab.until(35), ["31 rto"]);
        assert!(lab.open[0].words.contains("no base backup mends that"), "{:?}", lab.open);
    }

    #[test]
    fn a_failed_backup_is_one_episode_until_the_next_good_one() {
        let mut lab = Lab::new("");
        let time = |second| Timestamp::from_second(second).unwrap();
        lab.view.failed_backup = Some(FailedBackup { at: time(900), words: "failed to read".into() });
        assert_eq!(lab.until(3), ["1 backup-failed"]);
        assert_eq!(lab.open[0].words, "the last try at a backup failed to read", "of a logical copy, too");
        lab.view.failed_backup = Some(FailedBackup { at: time(950), words: "failed to read again".into() });
        assert_eq!(lab.until(6), [""; 0]);
        // After a restart nothing is known of it, and an older backup proves nothing.
        lab.view.failed_backup = None;
        let last = |at| {
            Some(LastBackup {
                id: "b".into(),
                began: time(at),
                ended: time(at),
                parent: None,
                whole_because: None,
                cluster: None,
            })
        };
        lab.view.last_backup = last(999);
        assert_eq!(lab.until(9), [""; 0]);
        lab.view.last_backup = last(1_001);
        assert_eq!(lab.until(12), ["10 backup-failed over"]);
    }

    #[test]
    fn damage_is_told_until_a_check_finds_none() {
        let mut lab = Lab::new("");
        let at = Timestamp::from_second(2_000).unwrap();
        let checked = |wrong, first: Option<&str>| {
            Some(CheckedObjects { at, objects: 9, wrong, first: first.map(str::to_owned) })
        };
        lab.view.checked = checked(0, None);
        assert_eq!(lab.until(3), [""; 0]);
        lab.view.checked = checked(1, Some("a/b"));
        assert!(matches!(damaged(&lab.view), Worry::Yes(words) if words.starts_with("one thing is wrong")));
        lab.view.checked = checked(2, Some("a/b/c: it is not there"));
        assert_eq!(lab.until(6), ["4 damaged"]);
        assert!(lab.open[0].words.contains("a/b/c"), "{:?}", lab.open);
        // After a restart nothing is known, which ends nothing.
        lab.view.checked = None;
        assert_eq!(lab.until(9), [""; 0]);
        lab.view.checked = checked(0, None);
        assert_eq!(lab.until(12), ["10 damaged over"]);
    }

    #[test]
    fn r09_a_slot_is_not_dropped_again_before_a_new_base_backup() {
        let mut lab = Lab::new("");
        assert!(may_drop(&lab.open, "0/3000000"));
        let since = Timestamp::from_second(1_000).unwrap();
        lab.open.push(Episode {
            kind: ConcernKind::SlotDropped,
            since,
            words: String::new(),
            memo: Some("0/3000000".into()),
        });
        assert!(may_drop(&lab.open, "0/3000000"), "killed before it was dropped: it is dropped after all");
        assert!(!may_drop(&lab.open, "0/9000000"), "this is the next one");
        lab.view.last_backup = Some(LastBackup {
            id: "b".into(),
            began: since,
            ended: since,
            parent: None,
            whole_because: None,
            cluster: None,
        });
        assert_eq!(lab.until(5), [""; 0], "it began before");
        lab.view.last_backup.as_mut().unwrap().began = Timestamp::from_second(1_001).unwrap();
        assert_eq!(lab.until(6), ["6 slot-dropped over"]);
        assert!(may_drop(&lab.open, "0/9000000"));
        assert_eq!(lab.judge.source.wal_lag.warn, ByteSize(1 << 30));
    }
}
