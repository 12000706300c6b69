//! Answers over mailed links: looked at with GET, decided with POST, and only after six digits that go to the address of
//! the one whom the link was mailed to. Whoever else has the link can look, and make that person get digits; no more.

use super::decide::{Refusal, Work, view};
use super::link::{self, Asked, Shown};
use super::policy::why_not;
use super::rules::Rules;
use super::{Answer, ApprovalError, Approvals, random};
use crate::model::approval::{ApprovalState, ApprovalView, Channel, Verdict};
use crate::model::{ApprovalId, Asker, PersonName, Way};
use crate::store::{ActKind, ApprovalHeld, ApprovalRow, ApprovalWrite, LinkRow, StoreError};
use jiff::Timestamp;
use serde_json::json;
use subtle::ConstantTimeEq;

/// Why a link does not serve. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// We never mailed it.
    #[error("use the link: it is none of ours, or it is not whole")]
    Unknown,
    /// It was used.
    #[error("use the link of {person}: it was used at {at}")]
    Used {
        /// Whom it was mailed to.
        person: PersonName,
        /// When.
        at: Timestamp,
    },
    /// Another one was used, or it was replaced.
    #[error("use the link of {0}: a newer one was mailed")]
    Void(PersonName),
    /// Its time is over.
    #[error("use the link of {0}: its time is over")]
    Expired(PersonName),
    /// The request is over.
    #[error("use the link: approval {id} is {state}")]
    Over {
        /// Which request.
        id: ApprovalId,
        /// How it ended.
        state: ApprovalState,
        /// Why.
        note: Option<String>,
    },
    /// That person may not answer any more.
    #[error("use the link: {person} {why}")]
    NotYours {
        /// Whom it was mailed to.
        person: PersonName,
        /// Why, in words that fit after their name.
        why: String,
    },
    /// Wrong digits.
    #[error("use the link: the digits are wrong, {left} tries are left")]
    WrongCode {
        /// So often more may be tried.
        left: u32,
    },
    /// Wrong digits, too often.
    #[error("use the link of {0}: wrong digits were shown too often")]
    Dead(PersonName),
    /// No digits are awaited.
    #[error("use the link: its digits are too old; ask for new ones")]
    CodeOver,
    /// Digits were mailed very often.
    #[error("mail digits: they were mailed {} times for this link", link::CODES)]
    TooManyCodes,
    /// Nowhere to mail digits to.
    #[error("mail digits: there is no address of {0}, or no mail server")]
    NoMail(PersonName),
    /// The answer itself is not taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ApprovalError> for LinkError {
    fn from(error: ApprovalError) -> Self {
        match error {
            ApprovalError::Refused(refusal) => LinkError::Refused(refusal),
            ApprovalError::Store(error) => LinkError::Store(error),
            ApprovalError::Key(error) => LinkError::Store(random(error)),
        }
    }
}

/// What somebody with a good link sees.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkView {
    /// Whom it was mailed to.
    pub person: PersonName,
    /// The request.
    pub view: ApprovalView,
    /// What they say at present.
    pub standing: Option<Verdict>,
    /// A yes would not be taken from them; a no would.
    pub only_no: bool,
}

impl Approvals {
    /// What the link leads to. Changes nothing.
    ///
    /// # Errors
    /// [`LinkError`] says why it does not serve.
    pub async fn open_link(&self, text: &str) -> Result<LinkView, LinkError> {
        let shown = Shown::read(text).ok_or(LinkError::Unknown)?;
        let found = self.inner.store.approval_link(shown.id()).await?;
        let (link, row) = found.ok_or(LinkError::Unknown)?;
        let (rules, now) = (self.rules(), self.inner.clock.now());
        self.check(&shown, &link, &row, &rules, now)?;
        Ok(seen(&link, &row, &rules, now))
    }

    /// Mails six digits for this answer to the person whom the link was mailed to. Whom, and what they see.
    ///
    /// # Errors
    /// [`LinkError`]; also when the answer would not be taken.
    pub async fn ask_code(&self, text: &str, asked: Asked) -> Result<LinkView, LinkError> {
        self.over_link(text, move |approvals, work, link| {
            approvals.would_be_taken(work, link, &asked)?;
            if !work.rules.mails(&link.person) {
                return Err(LinkError::NoMail(link.person.clone()));
            }
            if link.codes >= link::CODES {
                return Err(LinkError::TooManyCodes);
            }
            let code = link::new_code().map_err(random)?;
            let digest = approvals.inner.key.code_digest(&link.id, &code, &asked);
            let until = work.now.checked_add(link::CODE_FOR).unwrap_or(Timestamp::MAX);
            work.writes.push(ApprovalWrite::Code { link: link.id.clone(), digest, until });
            work.tell_code(link, &code, asked.what);
            Ok(())
        })
        .await
    }

    /// Takes an answer with its digits. The link is worthless afterwards, as is every other of that person for this
    /// request that was mailed before.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn answer_link(&self, text: &str, asked: Asked, code: &str) -> Result<LinkView, LinkError> {
        let code: String = code.chars().filter(|c| !c.is_whitespace()).take(16).collect();
        self.over_link(text, move |approvals, work, link| {
            let key = &approvals.inner.key;
            let Some(digest) = &link.code_digest else { return Err(LinkError::CodeOver) };
            let right: bool = key.code_digest(&link.id, &code, &asked).as_slice().ct_eq(digest.as_slice()).into();
            if !right {
                return Err(work.wrong_code(link));
            }
            if link.code_until.is_none_or(|until| work.now >= until) {
                work.writes.push(ApprovalWrite::CodeOver(link.id.clone()));
                return Err(LinkError::CodeOver);
            }
            // Before what the answer itself writes: a link that is made then must not be voided.
            work.writes.push(ApprovalWrite::UseLink(link.id.clone()));
            let used = work.writes.len();
            let by = Asker::person(link.person.clone(), Way::Mail);
            let done = match answer_of(link, &asked) {
                Some(answer) => {
                    let before = work.row.decisions.len();
                    work.answer(&answer, &by).map(|()| (work.row.decisions.get(before).cloned(), false))
                }
                None => work.withdraw(&link.person, &by).map(|said| (Some(said), true)),
            };
            match done {
                Ok((said, withdrawn)) => {
                    if let Some(said) = said {
                        work.tell_decided(key, &said, withdrawn).map_err(random)?;
                    }
                    Ok(())
                }
                Err(refusal) => {
                    // What it came to on the way (its time is over) stands; the link was not used.
                    work.writes.remove(used - 1);
                    Err(refusal.into())
                }
            }
        })
        .await
    }

    /// Does something over a link in one transaction; what is written before an error stands.
    async fn over_link<F>(&self, text: &str, act: F) -> Result<LinkView, LinkError>
    where
        F: FnOnce(&Approvals, &mut Work<'_>, &LinkRow) -> Result<(), LinkError> + Send + 'static,
    {
        let shown = Shown::read(text).ok_or(LinkError::Unknown)?;
        let found = self.inner.store.approval_link(shown.id()).await?;
        let (link, _) = found.ok_or(LinkError::Unknown)?;
        let (id, approvals) = (link.approval, self.clone());
        let change = move |held: &ApprovalHeld, work: &mut Work<'_>| {
            let Some(link) = held.links.iter().find(|link| link.id == shown.id()) else {
                return Ok(Err(LinkError::Unknown));
            };
            if let Err(why) = approvals.check(&shown, link, &work.row, work.rules, held.now) {
                return Ok(Err(why));
            }
            let done = match act(&approvals, work, link) {
                // Nothing is written when the store or the random bytes fail.
                Err(LinkError::Store(error)) => return Err(error),
                done => done,
            };
            Ok(done.map(|()| seen(link, &work.row, work.rules, held.now)))
        };
        match self.change(id, None, change).await? {
            Some((_, answer)) => answer,
            None => Err(LinkError::Unknown),
        }
    }

    fn check(
        &self,
        shown: &Shown,
        link: &LinkRow,
        row: &ApprovalRow,
        rules: &Rules,
        now: Timestamp,
    ) -> Result<(), LinkError> {
        // First, so that nobody learns anything about a link whose text they do not have.
        if !self.inner.key.is(shown, link.approval, &link.person, link.expires_at) {
            return Err(LinkError::Unknown);
        }
        let person = || link.person.clone();
        if link.code_tries >= link::TRIES {
            return Err(LinkError::Dead(person()));
        }
        if row.state.is_final() {
            return Err(LinkError::Over { id: row.id, state: row.state, note: row.note.clone() });
        }
        if let Some(at) = link.used_at {
            return Err(LinkError::Used { person: person(), at });
        }
        if link.void_at.is_some() {
            return Err(LinkError::Void(person()));
        }
        if now >= link.expires_at {
            return Err(LinkError::Expired(person()));
        }
        let policy = rules.policy(&row.request);
        match why_not(&row.request, policy, &rules.people, &link.person, Verdict::Reject) {
            Some(why) => Err(LinkError::NotYours { person: person(), why }),
            None => Ok(()),
        }
    }

    /// Tries it on a copy: nobody should look for digits in their mail for an answer that is refused afterwards.
    fn would_be_taken(&self, work: &Work<'_>, link: &LinkRow, asked: &Asked) -> Result<(), Refusal> {
        let mut trial = Work { rules: work.rules, row: work.row.clone(), now: work.now, writes: Vec::new() };
        let by = Asker::person(link.person.clone(), Way::Mail);
        match answer_of(link, asked) {
            Some(answer) => trial.answer(&answer, &by),
            None => trial.withdraw(&link.person, &by).map(drop),
        }
    }
}

impl Work<'_> {
    fn wrong_code(&mut self, link: &LinkRow) -> LinkError {
        self.writes.push(ApprovalWrite::WrongCode(link.id.clone()));
        let left = link::TRIES.saturating_sub(link.code_tries + 1);
        if left > 0 {
            return LinkError::WrongCode { left };
        }
        self.writes.push(ApprovalWrite::VoidLink(link.id.clone()));
        let details = json!({ "person": link.person, "tries": link.code_tries + 1 });
        self.record(Asker::daemon(), ActKind::ApprovalLinkDead, details);
        LinkError::Dead(link.person.clone())
    }
}

/// The yes or no that is asked for; nothing when something is to be taken back.
fn answer_of(link: &LinkRow, asked: &Asked) -> Option<Answer> {
    let verdict = [Verdict::Approve, Verdict::Reject].into_iter().find(|verdict| verdict.as_str() == asked.what)?;
    let (inputs, message) = (asked.inputs.clone(), asked.message.clone());
    Some(Answer { person: link.person.clone(), verdict, channel: Channel::Mail, inputs, message })
}

fn seen(link: &LinkRow, row: &ApprovalRow, rules: &Rules, now: Timestamp) -> LinkView {
    let policy = rules.policy(&row.request);
    LinkView {
        person: link.person.clone(),
        view: view(row, rules, now),
        standing: row.standing(&link.person).map(|decision| decision.verdict),
        only_no: why_not(&row.request, policy, &rules.people, &link.person, Verdict::Approve).is_some(),
    }
}
