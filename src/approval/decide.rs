//! What an answer changes. Pure: a request as it is held in a transaction goes in; what is to be written comes out, and
//! nothing is done. Called by [`Approvals`](super::Approvals), inside the store's transaction.

use super::Answer;
use super::policy::{Standing, Tally, tally, why_not};
use super::rules::Rules;
use crate::model::approval::{ApprovalState, ApprovalView, Decision, Verdict};
use crate::model::input::{Input, InputKind};
use crate::model::{ApprovalId, Asker, PersonName};
use crate::store::{Act, ActKind, ApprovalHeld, ApprovalRow, ApprovalWrite};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Why an answer is not taken. `Display` fits after "failed to ...".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such request.
    #[error("find approval {0}\nhint: `mainstay approvals` lists them")]
    Unknown(ApprovalId),
    /// Nothing more can be said about it.
    #[error("answer approval {id}: it is {state}{}", why(.note))]
    Over {
        /// Which one.
        id: ApprovalId,
        /// How it ended.
        state: ApprovalState,
        /// Why.
        note: Option<String>,
    },
    /// That person's answer does not count.
    #[error("answer approval {id}: {person} {why}")]
    NotYours {
        /// Which one.
        id: ApprovalId,
        /// Who.
        person: PersonName,
        /// Why, in words that fit after their name.
        why: String,
    },
    /// Answers do not count that come in this way.
    #[error("answer approval {id}: answers by {channel} do not count here, only by {counts}")]
    Channel {
        /// Which one.
        id: ApprovalId,
        /// How it came.
        channel: String,
        /// How it would count.
        counts: String,
    },
    /// What was given along cannot be taken.
    #[error("answer approval {id}: {}", .wrong.join("; "))]
    Inputs {
        /// Which one.
        id: ApprovalId,
        /// Everything that is wrong.
        wrong: Vec<String>,
    },
    /// What was given along is not what others gave.
    #[error("answer approval {id}: {why}")]
    Differs {
        /// Which one.
        id: ApprovalId,
        /// What differs, and what to do.
        why: String,
    },
    /// There is nothing to take back.
    #[error("withdraw from approval {id}: {person} has not said anything about it")]
    NothingSaid {
        /// Which one.
        id: ApprovalId,
        /// Who.
        person: PersonName,
    },
}

fn why(note: &Option<String>) -> String {
    note.as_ref().map(|note| format!(", {note}")).unwrap_or_default()
}

/// The longest that is said along with an answer: a few sentences.
pub const MESSAGE_MAX_CHARS: usize = 1_000;
/// The longest value of an input.
const INPUT_MAX_CHARS: usize = 1_000;

/// A change in the making: the request as it will be, and what has to be written for that.
pub(super) struct Work<'a> {
    pub(super) rules: &'a Rules,
    pub(super) row: ApprovalRow,
    pub(super) now: Timestamp,
    pub(super) writes: Vec<ApprovalWrite>,
}

impl<'a> Work<'a> {
    pub(super) fn on(held: &ApprovalHeld, rules: &'a Rules) -> Self {
        Work { rules, row: held.row.clone(), now: held.now, writes: Vec::new() }
    }

    pub(super) fn tally(&self) -> Tally {
        count(&self.row, self.rules, self.now)
    }

    /// A yes or a no.
    pub(super) fn answer(&mut self, answer: &Answer, by: &Asker) -> Result<(), Refusal> {
        self.settle();
        self.not_over()?;
        let id = self.row.id;
        let policy = self.rules.policy(&self.row.request);
        if !policy.by.contains(&answer.channel) {
            let counts = policy.by.iter().map(word).collect::<Vec<_>>().join(" and ");
            return Err(Refusal::Channel { id, channel: word(&answer.channel), counts });
        }
        if let Some(why) = why_not(&self.row.request, policy, &self.rules.people, &answer.person, answer.verdict) {
            return Err(Refusal::NotYours { id, person: answer.person.clone(), why });
        }
        let said = answer.message.as_deref().map(str::trim).filter(|text| !text.is_empty());
        if said.is_some_and(|text| text.chars().count() > MESSAGE_MAX_CHARS) {
            let wrong = vec![format!("the message is longer than {MESSAGE_MAX_CHARS} characters")];
            return Err(Refusal::Inputs { id, wrong });
        }
        let inputs = match answer.verdict {
            Verdict::Approve => {
                check(&self.row.request.inputs, &answer.inputs).map_err(|wrong| Refusal::Inputs { id, wrong })?
            }
            // A no needs nothing along.
            Verdict::Reject => BTreeMap::new(),
        };
        if let Some(standing) = self.row.standing(&answer.person) {
            if standing.verdict == answer.verdict && standing.inputs == inputs {
                // The same again, as after an answer that got lost on the way.
                return Ok(());
            }
            if answer.verdict == Verdict::Approve {
                let why = format!(
                    "{} has approved it with other inputs\nhint: `mainstay withdraw {id}` first",
                    answer.person
                );
                return Err(Refusal::Differs { id, why });
            }
            // A no goes over one's own yes.
            self.take_back(&answer.person);
        }
        if answer.verdict == Verdict::Approve {
            self.same_inputs(&inputs)?;
        }
        let decision = Decision {
            person: answer.person.clone(),
            verdict: answer.verdict,
            channel: answer.channel,
            inputs,
            message: said.map(str::to_owned),
            at: self.now,
            withdrawn_at: None,
        };
        self.writes.push(ApprovalWrite::Decide(decision.clone()));
        self.row.decisions.push(decision.clone());
        let kind = if answer.verdict == Verdict::Approve { ActKind::Approve } else { ActKind::Reject };
        let mut details = json!({ "channel": word(&answer.channel), "binding": self.row.request.binding });
        for (key, value) in [("inputs", json!(decision.inputs)), ("message", json!(decision.message))] {
            if !value.is_null() && value.as_object().is_none_or(|map| !map.is_empty()) {
                details[key] = value;
            }
        }
        self.record(by.clone(), kind, details);
        self.settle();
        Ok(())
    }

    /// What they said is taken back.
    pub(super) fn withdraw(&mut self, person: &PersonName, by: &Asker) -> Result<Decision, Refusal> {
        self.not_over()?;
        let id = self.row.id;
        let Some(standing) = self.row.standing(person).cloned() else {
            return Err(Refusal::NothingSaid { id, person: person.clone() });
        };
        self.take_back(person);
        self.record(by.clone(), ActKind::Withdraw, json!({ "verdict": standing.verdict.as_str() }));
        self.settle();
        Ok(standing)
    }

    /// It was asked for.
    pub(super) fn asked_for(&mut self) {
        let request = &self.row.request;
        let details = json!({
            "environment": request.environment,
            "run": request.run,
            "from": request.policy.from,
            "binding": request.binding,
        });
        self.record(Asker::daemon(), ActKind::ApprovalAsked, details);
    }

    /// It is no longer wanted, or no longer the same.
    pub(super) fn void(&mut self, why: &str) {
        self.end(ApprovalState::Void, why.to_owned(), ActKind::ApprovalVoid);
    }

    /// What was approved begins.
    pub(super) fn used(&mut self) {
        self.become_state(ApprovalState::Used, None);
        self.writes.push(ApprovalWrite::VoidLinks);
        let details = json!({ "approved_by": self.tally().counted, "binding": self.row.request.binding });
        self.record(Asker::daemon(), ActKind::ApprovalUsed, details);
    }

    /// Moves the request to where the votes and the time say that it stands.
    pub(super) fn settle(&mut self) {
        use ApprovalState::{Granted, Open, Rejected};
        let tally = self.tally();
        match (self.row.state, &tally.state) {
            (Open, Standing::Granted) => {
                self.become_state(Granted, None);
                self.record(Asker::daemon(), ActKind::ApprovalGranted, json!({ "approved_by": tally.counted }));
            }
            (Granted, Standing::Open) => {
                self.become_state(Open, None);
                self.record(Asker::daemon(), ActKind::ApprovalReopened, json!({ "missing": tally.missing }));
            }
            (Open | Granted, Standing::Rejected(person)) => {
                // The act on record is the no itself.
                self.become_state(Rejected, Some(format!("rejected by {person}")));
                self.writes.push(ApprovalWrite::VoidLinks);
            }
            (Open | Granted, Standing::Expired) => {
                let required = self.rules.policy(&self.row.request).required.max(1);
                let note = format!("{} of {required} said yes in time", tally.counted.len());
                self.end(ApprovalState::Expired, note, ActKind::ApprovalExpired);
            }
            _ => {}
        }
    }

    fn end(&mut self, state: ApprovalState, note: String, kind: ActKind) {
        self.become_state(state, Some(note.clone()));
        self.writes.push(ApprovalWrite::VoidLinks);
        self.record(Asker::daemon(), kind, json!({ "why": note }));
        self.tell_ended();
    }

    fn become_state(&mut self, state: ApprovalState, note: Option<String>) {
        self.row.state = state;
        self.row.note.clone_from(&note);
        self.writes.push(ApprovalWrite::Become(state, note));
    }

    fn take_back(&mut self, person: &PersonName) {
        let standing = self.row.decisions.iter_mut().filter(|d| d.person == *person && d.withdrawn_at.is_none());
        standing.for_each(|decision| decision.withdrawn_at = Some(self.now));
        self.writes.push(ApprovalWrite::Withdraw(person.clone()));
    }

    pub(super) fn record(&mut self, by: Asker, kind: ActKind, mut details: Value) {
        details["title"] = json!(self.row.request.subject.title);
        let subject = format!("approval {}", self.row.id);
        self.writes.push(ApprovalWrite::Record(Act { by, kind, subject, details }));
    }

    fn not_over(&self) -> Result<(), Refusal> {
        if self.row.state.is_final() {
            return Err(Refusal::Over { id: self.row.id, state: self.row.state, note: self.row.note.clone() });
        }
        Ok(())
    }

    fn same_inputs(&self, inputs: &BTreeMap<String, String>) -> Result<(), Refusal> {
        let counted = self.tally().counted;
        let other = self.row.decisions.iter().find(|d| {
            d.withdrawn_at.is_none()
                && d.verdict == Verdict::Approve
                && counted.contains(&d.person)
                && d.inputs != *inputs
        });
        let Some(other) = other else { return Ok(()) };
        let differs =
            self.row.request.inputs.iter().find(|input| other.inputs.get(&input.name) != inputs.get(&input.name));
        let name = differs.map(|input| input.name.as_str()).unwrap_or_default();
        let shown = |map: &BTreeMap<String, String>| map.get(name).cloned().unwrap_or_default();
        let why = format!(
            "{} has approved it with `{name}` = `{}`, not `{}`\nhint: all have to approve the same; give the same value, or reject",
            other.person,
            shown(&other.inputs),
            shown(inputs)
        );
        Err(Refusal::Differs { id: self.row.id, why })
    }
}

/// The votes of a request, counted as things are now.
pub(super) fn count(row: &ApprovalRow, rules: &Rules, now: Timestamp) -> Tally {
    let request = &row.request;
    tally(request, rules.policy(request), &rules.people, &row.decisions, row.expires_at, now)
}

/// The values that everybody who counts gave.
pub(super) fn given(row: &ApprovalRow, tally: &Tally) -> BTreeMap<String, String> {
    let first = row.decisions.iter().find(|decision| {
        decision.withdrawn_at.is_none()
            && decision.verdict == Verdict::Approve
            && tally.counted.contains(&decision.person)
    });
    first.map(|decision| decision.inputs.clone()).unwrap_or_default()
}

/// As it is shown.
pub(super) fn view(row: &ApprovalRow, rules: &Rules, now: Timestamp) -> ApprovalView {
    let tally = count(row, rules, now);
    let note = row.note.clone().or_else(|| tally.impossible.clone().filter(|_| !row.state.is_final()));
    ApprovalView {
        id: row.id,
        environment: row.request.environment.clone(),
        run: row.request.run,
        step: row.request.step.clone(),
        state: row.state,
        deploy: row.request.deploy,
        subject: row.request.subject.clone(),
        required: rules.policy(&row.request).required.max(1),
        eligible: tally.eligible.into_iter().collect(),
        counted: tally.counted.into_iter().collect(),
        excluded: row.request.excluded.clone(),
        inputs: row.request.inputs.clone(),
        decisions: row.decisions.clone(),
        created_at: row.created_at,
        expires_at: row.expires_at,
        note,
    }
}

/// Checks what was given along with a yes, and fills in the rest.
fn check(inputs: &[Input], given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Vec<String>> {
    let mut wrong = Vec::new();
    for name in given.keys().filter(|name| !inputs.iter().any(|input| input.name == **name)) {
        let known: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        let known =
            if known.is_empty() { "it takes none".to_owned() } else { format!("it takes {}", known.join(", ")) };
        wrong.push(format!(
            "there is no input `{}`: {known}",
            name.chars().take(40).flat_map(char::escape_debug).collect::<String>()
        ));
    }
    let mut values = BTreeMap::new();
    for input in inputs {
        let value = match (given.get(&input.name), &input.default, &input.kind) {
            (Some(value), ..) => {
                if value.chars().count() > INPUT_MAX_CHARS {
                    wrong.push(format!("the input `{}` is longer than {INPUT_MAX_CHARS} characters", input.name));
                } else if let Err(right) = input.kind.check(value) {
                    wrong.push(format!("the input `{}` must be {right}", input.name));
                } else if input.required && value.is_empty() {
                    wrong.push(format!("the input `{}` must be given", input.name));
                }
                value.clone()
            }
            (None, Some(default), _) => default.clone(),
            (None, None, _) if input.required => {
                wrong.push(format!("the input `{}` must be given", input.name));
                continue;
            }
            (None, None, InputKind::Boolean) => "false".to_owned(),
            (None, None, _) => String::new(),
        };
        values.insert(input.name.clone(), value);
    }
    if wrong.is_empty() { Ok(values) } else { Err(wrong) }
}

/// The word of a way.
pub(super) fn word(channel: &crate::model::approval::Channel) -> String {
    use crate::model::approval::Channel;
    let word = match channel {
        Channel::Mail => "mail",
        Channel::Webhook => "webhook",
        Channel::Cli => "command line",
    };
    word.to_owned()
}
