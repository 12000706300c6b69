//! What a deploy's events add up to. Loading a deploy and carrying it out go through the same [`DeployState::apply`].

use crate::model::deploy::{DeployKind, DeployStatus, Drift, Observation};
use crate::model::{ApprovalId, DeployId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A fact about a deploy, in the order in which facts come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum DeployEvent {
    /// It is not allowed to begin.
    Refused {
        /// Why, in words.
        why: String,
    },
    /// A newer one took its place before it began.
    Superseded {
        /// Which.
        by: DeployId,
    },
    /// Somebody stopped it before it began.
    Cancelled {
        /// Who.
        by: String,
    },
    /// People are asked.
    Asked {
        /// The request.
        approval: ApprovalId,
    },
    /// The environment is its own from here on, and the release is made.
    Begun {
        /// The release to bring about.
        release: u64,
        /// The release that is put back when this one turns bad.
        fallback: Option<u64>,
        /// The release that served until then.
        #[serde(default)]
        instead: Option<u64>,
        /// What ran otherwise than it should until then.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        drift: Vec<Drift>,
    },
    /// What is to be done before the target is touched has been done.
    Prepared,
    /// The target serves the release.
    Applied {
        /// What it shows.
        observed: Observation,
    },
    /// The health rules held.
    Healthy,
    /// The watch is over, and the rules held all the while.
    Verified,
    /// A person ended the watch.
    WatchEnded {
        /// Who.
        by: String,
    },
    /// It turned bad.
    TurnedBad {
        /// Why, in words.
        why: String,
        /// Who says so, when it is a person who asks for the rollback.
        by: Option<String>,
        /// The release to put back, when it is another than the last verified one.
        #[serde(default)]
        to: Option<u64>,
    },
    /// The fallback is put back from here on.
    RollingBack {
        /// The release.
        to: u64,
    },
    /// The fallback serves.
    PutBack {
        /// What the target shows.
        observed: Observation,
    },
    /// The fallback serves and its health rules hold.
    RolledBack,
    /// It turned bad, and nothing is put back.
    Failed {
        /// Why nothing is.
        why: String,
    },
    /// Putting the fallback back failed.
    RollbackFailed {
        /// Why.
        why: String,
    },
    /// The only fact about a deploy that another daemon carried out: how it ended, as the environment's history in Git
    /// has it.
    ReadBack {
        /// How it ended.
        status: DeployStatus,
        /// Its release.
        release: u64,
        /// What was put back.
        fallback: Option<u64>,
        /// Why it ended so.
        why: Option<String>,
    },
}

/// An event that cannot follow what came before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("apply deploy event `{event}`: {why}")]
pub struct IllegalDeployEvent {
    event: String,
    why: String,
}

/// A deploy as its events describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeployState {
    /// Why it is asked for: a rollback is never rolled back.
    pub kind: DeployKind,
    /// Number of events applied.
    pub seq: u64,
    /// Where it stands.
    pub status: DeployStatus,
    /// The request that people were asked with last.
    pub approval: Option<ApprovalId>,
    /// Its release.
    pub release: Option<u64>,
    /// The release that is put back when it turns bad.
    pub fallback: Option<u64>,
    /// The release that served before it.
    pub instead: Option<u64>,
    /// What ran otherwise than it should before it.
    pub drift: Vec<Drift>,
    /// The hooks before it were run.
    pub prepared: bool,
    /// When the target served it.
    pub applied_at: Option<Timestamp>,
    /// How often any one container had been started anew when the target served what it serves now.
    pub restarts: u64,
    /// When the health rules had held.
    pub healthy_at: Option<Timestamp>,
    /// Why it turned bad, and when.
    pub bad: Option<(Timestamp, String)>,
    /// A person said so, and wants the rollback.
    pub bad_by: Option<String>,
    /// When the fallback served.
    pub put_back_at: Option<Timestamp>,
    /// Why it ended as it did, in words.
    pub why: Option<String>,
}

impl DeployState {
    /// A deploy before its first event.
    pub fn new(kind: DeployKind) -> Self {
        DeployState {
            kind,
            seq: 0,
            status: DeployStatus::Queued,
            approval: None,
            release: None,
            fallback: None,
            instead: None,
            drift: Vec::new(),
            prepared: false,
            applied_at: None,
            restarts: 0,
            healthy_at: None,
            bad: None,
            bad_by: None,
            put_back_at: None,
            why: None,
        }
    }

    /// Moves to the next state, or says why the event cannot be.
    ///
    /// # Errors
    /// [`IllegalDeployEvent`] when it contradicts what came before; the state is unchanged then.
    pub fn apply(&mut self, event: &DeployEvent, at: Timestamp) -> Result<(), IllegalDeployEvent> {
        use DeployStatus as S;
        let refuse = |why: &str| {
            let event = serde_json::to_string(event).unwrap_or_default().chars().take(200).collect();
            Err(IllegalDeployEvent { event, why: why.to_owned() })
        };
        let not_begun = matches!(self.status, S::Queued | S::Waiting);
        let serving = matches!(self.status, S::Applying | S::Checking | S::Watching);
        let well = self.bad.is_none();
        match event {
            DeployEvent::Refused { why } if not_begun => {
                self.status = S::Refused;
                self.why = Some(why.clone());
            }
            DeployEvent::Superseded { by } if not_begun => {
                self.status = S::Superseded;
                self.why = Some(format!("deploy #{by} is newer"));
            }
            DeployEvent::Cancelled { by } if not_begun => {
                self.status = S::Cancelled;
                self.why = Some(format!("{by} stopped it"));
            }
            DeployEvent::Asked { approval } if not_begun => {
                self.status = S::Waiting;
                self.approval = Some(*approval);
            }
            DeployEvent::Begun { release, fallback, instead, drift } if not_begun => {
                if *fallback == Some(*release) {
                    return refuse("a release cannot be what it is taken back to");
                }
                if self.kind == DeployKind::Rollback && fallback.is_some() {
                    return refuse("a rollback is never rolled back");
                }
                self.status = S::Applying;
                self.release = Some(*release);
                self.fallback = *fallback;
                self.instead = *instead;
                self.drift.clone_from(drift);
            }
            DeployEvent::Prepared if self.status == S::Applying && well && !self.prepared => self.prepared = true,
            DeployEvent::Applied { observed } if self.status == S::Applying && well => {
                self.restarts = observed.restarts();
                self.status = S::Checking;
                self.applied_at = Some(at);
            }
            DeployEvent::Healthy if self.status == S::Checking && well => {
                self.status = S::Watching;
                self.healthy_at = Some(at);
            }
            DeployEvent::Verified if self.status == S::Watching && well => self.status = S::Verified,
            DeployEvent::WatchEnded { by } if self.status == S::Watching && well => {
                self.status = S::Unverified;
                self.why = Some(format!("{by} ended the watch"));
            }
            DeployEvent::TurnedBad { why, by, to } if serving && well => {
                if to.is_some() && *to == self.release {
                    return refuse("a release cannot be what it is taken back to");
                }
                self.fallback = to.or(self.fallback);
                self.bad = Some((at, why.clone()));
                self.bad_by.clone_from(by);
                self.why = Some(why.clone());
            }
            DeployEvent::RollingBack { to } if serving && !well => {
                if self.release == Some(*to) {
                    return refuse("a release cannot be what it is taken back to");
                }
                if self.kind == DeployKind::Rollback {
                    return refuse("a rollback is never rolled back");
                }
                self.status = S::RollingBack;
                self.fallback = Some(*to);
            }
            DeployEvent::PutBack { observed } if self.status == S::RollingBack && self.put_back_at.is_none() => {
                self.put_back_at = Some(at);
                self.restarts = observed.restarts();
            }
            DeployEvent::RolledBack if self.status == S::RollingBack && self.put_back_at.is_some() => {
                self.status = S::RolledBack;
            }
            DeployEvent::Failed { why } if serving && !well => {
                self.status = if self.kind == DeployKind::Rollback { S::RollbackFailed } else { S::Failed };
                self.also(why);
            }
            DeployEvent::RollbackFailed { why } if self.status == S::RollingBack => {
                self.status = S::RollbackFailed;
                self.also(why);
            }
            DeployEvent::ReadBack { status, release, fallback, why } if self.seq == 0 => {
                let began = !matches!(status, S::Refused | S::Superseded | S::Cancelled);
                let back = *status == S::RolledBack || fallback.is_some();
                if !status.is_final() || !began || back && self.kind == DeployKind::Rollback {
                    return refuse(&format!("a deploy that began does not end as {status}"));
                }
                self.status = *status;
                self.release = Some(*release);
                self.fallback = *fallback;
                self.why.clone_from(why);
                if matches!(status, S::RolledBack | S::Failed | S::RollbackFailed) {
                    self.bad = Some((at, why.clone().unwrap_or_default()));
                }
                self.put_back_at = (*status == S::RolledBack).then_some(at);
            }
            _ => return refuse(&format!("it is {}", self.status)),
        }
        self.seq += 1;
        Ok(())
    }

    fn also(&mut self, why: &str) {
        self.why = Some(self.why.take().map_or_else(|| why.to_owned(), |before| format!("{before}; {why}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn folded(kind: DeployKind, events: &[DeployEvent]) -> Result<DeployState, IllegalDeployEvent> {
        let mut state = DeployState::new(kind);
        for (n, event) in events.iter().enumerate() {
            state.apply(event, at(n as i64))?;
        }
        Ok(state)
    }

    fn begins(release: u64, fallback: Option<u64>) -> DeployEvent {
        DeployEvent::Begun { release, fallback, instead: None, drift: Vec::new() }
    }

    #[test]
    fn what_was_recorded_before_there_was_more_to_say_reads_back() {
        let old = r#"{"event":"begun","release":2,"fallback":1}"#;
        assert_eq!(serde_json::from_str::<DeployEvent>(old).unwrap(), begins(2, Some(1)));
    }

    fn applied() -> DeployEvent {
        DeployEvent::Applied { observed: Observation::default() }
    }

    fn bad() -> DeployEvent {
        DeployEvent::TurnedBad { why: "503".into(), by: None, to: None }
    }

    #[test]
    fn a_good_one_goes_through_to_verified() {
        let begun = begins(2, Some(1));
        let events = [begun, DeployEvent::Prepared, applied(), DeployEvent::Healthy, DeployEvent::Verified];
        let state = folded(DeployKind::Deploy, &events).unwrap();
        assert_eq!((state.status, state.release, state.fallback), (DeployStatus::Verified, Some(2), Some(1)));
        assert_eq!((state.applied_at, state.healthy_at), (Some(at(2)), Some(at(3))));
    }

    #[test]
    fn a_bad_one_goes_back_and_ends_where_it_says() {
        let begun = begins(2, Some(1));
        let back = DeployEvent::RollingBack { to: 1 };
        let put = DeployEvent::PutBack { observed: Observation::default() };
        let whole = [begun.clone(), applied(), DeployEvent::Healthy, bad(), back.clone(), put, DeployEvent::RolledBack];
        let state = folded(DeployKind::Deploy, &whole).unwrap();
        assert_eq!((state.status, state.why.as_deref()), (DeployStatus::RolledBack, Some("503")));
        let failed = DeployEvent::RollbackFailed { why: "the node is gone".into() };
        let state = folded(DeployKind::Deploy, &[begun, bad(), back, failed]).unwrap();
        assert_eq!(state.status, DeployStatus::RollbackFailed);
        assert_eq!(state.why.as_deref(), Some("503; the node is gone"));
    }

    #[test]
    fn a_rollback_is_never_rolled_back() {
        assert!(folded(DeployKind::Rollback, &[begins(1, Some(2))]).is_err());
        let begun = begins(1, None);
        let events = [begun, bad(), DeployEvent::Failed { why: "it was a rollback".into() }];
        assert_eq!(folded(DeployKind::Rollback, &events).unwrap().status, DeployStatus::RollbackFailed);
    }

    fn any_event() -> impl Strategy<Value = DeployEvent> {
        let words = || "[a-z]{0,6}";
        prop_oneof![
            words().prop_map(|why| DeployEvent::Refused { why }),
            Just(DeployEvent::Superseded { by: DeployId(9) }),
            words().prop_map(|by| DeployEvent::Cancelled { by }),
            Just(DeployEvent::Asked { approval: ApprovalId(3) }),
            (0_u64..3, proptest::option::of(0_u64..3)).prop_map(|(release, fallback)| begins(release, fallback)),
            Just(DeployEvent::Prepared),
            Just(applied()),
            Just(DeployEvent::Healthy),
            Just(DeployEvent::Verified),
            words().prop_map(|by| DeployEvent::WatchEnded { by }),
            Just(bad()),
            (0_u64..3).prop_map(|to| DeployEvent::RollingBack { to }),
            Just(DeployEvent::PutBack { observed: Observation::default() }),
            Just(DeployEvent::RolledBack),
            words().prop_map(|why| DeployEvent::Failed { why }),
            words().prop_map(|why| DeployEvent::RollbackFailed { why }),
            (0..DeployStatus::ALL.len(), proptest::option::of(0_u64..3)).prop_map(|(status, fallback)| {
                DeployEvent::ReadBack { status: DeployStatus::ALL[status], release: 2, fallback, why: None }
            }),
        ]
    }

    proptest! {
        /// Whatever comes: an end is an end, a refused event changes nothing, a rolled-back deploy had a fallback that
        /// served, and nothing that began says that it did not.
        #[test]
        fn no_order_of_events_leads_to_nonsense(
            rollback in any::<bool>(),
            events in proptest::collection::vec(any_event(), 0..60),
        ) {
            let mut state = DeployState::new(if rollback { DeployKind::Rollback } else { DeployKind::Deploy });
            for (n, event) in events.iter().enumerate() {
                let before = state.clone();
                if state.apply(event, at(n as i64)).is_err() {
                    prop_assert_eq!(&state, &before);
                    continue;
                }
                prop_assert!(!before.status.is_final(), "{} was the end, then came {:?}", before.status, event);
                prop_assert_eq!(state.seq, before.seq + 1);
                let never_began = matches!(
                    state.status,
                    DeployStatus::Queued | DeployStatus::Waiting | DeployStatus::Refused
                        | DeployStatus::Superseded | DeployStatus::Cancelled
                );
                prop_assert_eq!(never_began, state.release.is_none());
                prop_assert!(state.status != DeployStatus::RolledBack || state.put_back_at.is_some());
                prop_assert!(state.status != DeployStatus::Verified || state.bad.is_none());
                prop_assert!(!rollback || state.fallback.is_none());
            }
        }
    }
}
