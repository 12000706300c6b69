//! Approvals: people say yes or no, by mail, webhook or command line, and it counts for exactly what they were shown.
//!
//! Enters: a request ([`Approvals::ensure`], by whoever has to wait), answers (from `web`: API, mailed links, signed
//! webhooks), the configuration on reload. Leaves: the request as it stands, and, once, the permission to begin
//! ([`Approvals::use_for`]). What an answer changes is decided by pure functions ([`policy`], `decide`) inside one
//! transaction of the store, so that answers that come at the same time are counted one after the other.

mod clock;
mod decide;
pub mod link;
mod links;
mod lookup;
pub mod policy;
mod rules;
mod tell;
pub mod webhook;

pub use clock::Clock;
pub use decide::{MESSAGE_MAX_CHARS, Refusal};
pub use links::{LinkError, LinkView};
pub use rules::Rules;

use crate::model::approval::{ApprovalPolicy, ApprovalRequest, ApprovalState, ApprovalView, Channel, Verdict};
use crate::model::{ApprovalId, Asker, EnvironmentName, PersonName};
use crate::store::{ApprovalHeld, HeardMessage, Store, StoreError};
use decide::Work;
use link::{Key, KeyError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// Why something could not be done. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    /// The answer is not taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key of links.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Why what was asked for may not begin. `Display` fits after a name and "may not begin: ".
#[derive(Debug, thiserror::Error)]
pub enum NotGranted {
    /// There is no such request.
    #[error("approval {0} does not exist")]
    Unknown(ApprovalId),
    /// It is not the same as what people were shown; the request is void from now on.
    #[error("approval {0} was for something else: run, commit, images or configuration changed since")]
    Changed(ApprovalId),
    /// People have not decided yet.
    #[error("approval {id} lacks {missing} more{}", .impossible.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Open {
        /// Which one.
        id: ApprovalId,
        /// How many have to say yes still.
        missing: u32,
        /// Why they cannot, if they cannot.
        impossible: Option<String>,
    },
    /// It ended otherwise.
    #[error("approval {id} is {state}{}", .note.as_ref().map(|note| format!(": {note}")).unwrap_or_default())]
    Ended {
        /// Which one.
        id: ApprovalId,
        /// How.
        state: ApprovalState,
        /// Why.
        note: Option<String>,
    },
    /// The store.
    #[error("failed to {0}")]
    Store(#[from] StoreError),
}

/// Somebody's answer, as it comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whose.
    pub person: PersonName,
    /// What they say.
    pub verdict: Verdict,
    /// How it came.
    pub channel: Channel,
    /// What they give along.
    pub inputs: BTreeMap<String, String>,
    /// What they say along with it.
    pub message: Option<String>,
}

/// The approvals of one daemon; cheap to clone.
#[derive(Clone)]
pub struct Approvals {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    key: Key,
    clock: Clock,
    rules: RwLock<Arc<Rules>>,
    changes: watch::Sender<u64>,
}

impl Approvals {
    /// Over the store, with the key of links in the state folder.
    ///
    /// # Errors
    /// When the key cannot be read or made.
    pub fn open(store: Store, state: &Path, rules: Rules) -> Result<Approvals, KeyError> {
        Self::with_clock(store, state, rules, Clock::default())
    }

    /// The same, by a clock of one's own.
    ///
    /// # Errors
    /// When the key cannot be read or made.
    pub fn with_clock(store: Store, state: &Path, rules: Rules, clock: Clock) -> Result<Approvals, KeyError> {
        let key = Key::load_or_create(state)?;
        let (rules, changes) = (RwLock::new(Arc::new(rules)), watch::Sender::new(0));
        Ok(Approvals { inner: Arc::new(Inner { store, key, clock, rules, changes }) })
    }

    /// Called once at start, before anything is asked or answered: time goes on from the newest thing on record, and
    /// requests are brought to where the configuration says they stand.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn recover(&self) -> Result<(), ApprovalError> {
        if let Some(recorded) = self.inner.store.last_recorded().await? {
            self.inner.clock.not_before(recorded);
        }
        self.recount().await
    }

    /// Puts another configuration in force. Votes of people who may no longer vote stop counting; those who now may are
    /// asked.
    ///
    /// # Errors
    /// When the store fails; the configuration is in force all the same, for it is asked again at every answer and use.
    pub async fn configure(&self, rules: Rules) -> Result<(), ApprovalError> {
        *self.inner.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.recount().await
    }

    /// The policy of an environment, if it has one.
    pub fn policy_of(&self, environment: &EnvironmentName) -> Option<ApprovalPolicy> {
        self.rules().policies.get(environment).cloned()
    }

    /// Ticks when anything about any request changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The request with that key: found, or stored and told to everybody who may answer it.
    ///
    /// # Errors
    /// When the store fails, or there are no random bytes for links.
    pub async fn ensure(&self, request: ApprovalRequest) -> Result<ApprovalId, ApprovalError> {
        if let Some(known) = self.inner.store.approval_of_key(request.key.clone()).await? {
            return Ok(known);
        }
        let (rules, key) = (self.rules(), self.inner.key.clone());
        let first = move |held: &ApprovalHeld| {
            let mut work = Work::on(held, &rules);
            work.asked_for();
            work.tell_asked(held, &key, true).map_err(random)?;
            Ok(work.writes)
        };
        let (id, new) = self.inner.store.create_approval(request, self.clock(), first).await?;
        if new {
            self.changed();
        }
        Ok(id)
    }

    /// A request as it stands.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn view(&self, id: ApprovalId) -> Result<Option<ApprovalView>, ApprovalError> {
        let row = self.inner.store.approval(id).await?;
        Ok(row.map(|row| decide::view(&row, &self.rules(), self.inner.clock.now())))
    }

    /// Requests, the newest first; with `unfinished` only those that are open or granted and not used.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, unfinished: bool) -> Result<Vec<ApprovalView>, ApprovalError> {
        let (rules, now) = (self.rules(), self.inner.clock.now());
        let rows = self.inner.store.list_approvals(unfinished).await?;
        Ok(rows.iter().map(|row| decide::view(row, &rules, now)).collect())
    }

    /// Takes somebody's answer. `by` is what the audit is told. The same answer again changes nothing.
    ///
    /// # Errors
    /// [`Refusal`] when it does not count; the store.
    pub async fn decide(&self, id: ApprovalId, answer: Answer, by: &Asker) -> Result<ApprovalView, ApprovalError> {
        self.decide_heard(id, answer, by, None).await.map(|(view, _)| view)
    }

    /// The same for a message that counts once; also whether it had been taken before, and changed nothing now.
    async fn decide_heard(
        &self,
        id: ApprovalId,
        answer: Answer,
        by: &Asker,
        heard: Option<HeardMessage>,
    ) -> Result<(ApprovalView, bool), ApprovalError> {
        let (key, by) = (self.inner.key.clone(), by.clone());
        let change = move |held: &ApprovalHeld, work: &mut Work<'_>| {
            if held.heard_before {
                return Ok(Ok(true));
            }
            let before = work.row.decisions.len();
            let answered = work.answer(&answer, &by);
            if let Some(said) = work.row.decisions.get(before).cloned() {
                work.tell_decided(&key, &said, false).map_err(random)?;
            }
            Ok(answered.map(|()| false))
        };
        let (view, refused) = self.change(id, heard, change).await?.ok_or(Refusal::Unknown(id))?;
        Ok((view, refused?))
    }

    /// Takes back what that person said, as long as it was not used.
    ///
    /// # Errors
    /// [`Refusal`] when it is over, or they said nothing; the store.
    pub async fn withdraw(
        &self,
        id: ApprovalId,
        person: &PersonName,
        by: &Asker,
    ) -> Result<ApprovalView, ApprovalError> {
        let (key, by, person) = (self.inner.key.clone(), by.clone(), person.clone());
        let change = move |_: &ApprovalHeld, work: &mut Work<'_>| {
            let withdrawn = work.withdraw(&person, &by);
            if let Ok(said) = &withdrawn {
                work.tell_decided(&key, said, true).map_err(random)?;
            }
            Ok(withdrawn.map(drop))
        };
        let (view, refused) = self.change(id, None, change).await?.ok_or(Refusal::Unknown(id))?;
        refused?;
        Ok(view)
    }

    /// Begins what was approved: exactly once in effect, and again with the same answer for the same binding. Votes are
    /// counted anew, by the people and policies of this moment. What was given along comes back.
    ///
    /// # Errors
    /// [`NotGranted`] says why it may not begin. A binding that is not the request's makes the request void.
    pub async fn use_for(&self, id: ApprovalId, binding: &str) -> Result<BTreeMap<String, String>, NotGranted> {
        let binding = binding.to_owned();
        let change = move |_: &ApprovalHeld, work: &mut Work<'_>| {
            let same = work.row.request.binding == binding;
            if work.row.state == ApprovalState::Used && same {
                return Ok(Ok(decide::given(&work.row, &work.tally())));
            }
            work.settle();
            if work.row.state.is_final() {
                let (state, note) = (work.row.state, work.row.note.clone());
                return Ok(Err(NotGranted::Ended { id, state, note }));
            }
            if !same {
                work.void("what it was asked for has changed");
                return Ok(Err(NotGranted::Changed(id)));
            }
            let tally = work.tally();
            if work.row.state != ApprovalState::Granted {
                return Ok(Err(NotGranted::Open { id, missing: tally.missing, impossible: tally.impossible }));
            }
            work.used();
            Ok(Ok(decide::given(&work.row, &tally)))
        };
        let changed = self.change(id, None, change).await?;
        changed.ok_or(NotGranted::Unknown(id))?.1
    }

    /// Ends a request that is no longer wanted, or is no longer about what it was. One that is over stays as it is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn void(&self, id: ApprovalId, why: &str) -> Result<(), ApprovalError> {
        let why = why.to_owned();
        let change = move |_: &ApprovalHeld, work: &mut Work<'_>| {
            if !work.row.state.is_final() {
                work.void(&why);
            }
            Ok(())
        };
        self.change(id, None, change).await?;
        Ok(())
    }

    /// Ends what nobody decided in time; how many. To be called every few seconds: a link or an answer that comes too
    /// late is refused in any case.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn expire_due(&self) -> Result<usize, ApprovalError> {
        let due = self.inner.store.overdue_approvals(self.inner.clock.now()).await?;
        let count = due.len();
        for id in due {
            self.change(id, None, |_, work| {
                work.settle();
                Ok(())
            })
            .await?;
        }
        Ok(count)
    }

    async fn recount(&self) -> Result<(), ApprovalError> {
        for row in self.inner.store.list_approvals(true).await? {
            let key = self.inner.key.clone();
            let change = move |held: &ApprovalHeld, work: &mut Work<'_>| {
                work.settle();
                if !work.row.state.is_final() {
                    work.tell_asked(held, &key, false).map_err(random)?;
                }
                Ok(())
            };
            self.change(row.id, None, change).await?;
        }
        Ok(())
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.inner.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn clock(&self) -> impl FnOnce() -> jiff::Timestamp + Send + use<> {
        let clock = self.inner.clock.clone();
        move || clock.now()
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|n| *n += 1);
    }

    /// Reads, has `change` work on it, and writes, in one transaction; the request as it is afterwards.
    async fn change<T, F>(
        &self,
        id: ApprovalId,
        heard: Option<HeardMessage>,
        change: F,
    ) -> Result<Option<(ApprovalView, T)>, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&ApprovalHeld, &mut Work<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let approvals = self.clone();
        let decide = move |held: &ApprovalHeld| {
            // Asked for inside the transaction: a configuration that came in while this waited for its turn counts.
            let rules = approvals.rules();
            let mut work = Work::on(held, &rules);
            let answer = change(held, &mut work)?;
            let (view, writes) = (decide::view(&work.row, &rules, held.now), work.writes);
            let silent = writes.is_empty();
            Ok((((view, answer), silent), writes))
        };
        let done = self.inner.store.change_approval(id, heard, self.clock(), decide).await?;
        Ok(done.map(|(answer, silent)| {
            if !silent {
                self.changed();
            }
            answer
        }))
    }
}

/// The store's transaction is given up: nothing is told without its link.
fn random(error: KeyError) -> StoreError {
    StoreError::Conflict(error.to_string())
}
