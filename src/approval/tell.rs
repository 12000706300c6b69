//! Who is told what, in the forms that `notify` reads: JSON documents for the outbox, written in the transaction that
//! changes what they tell about.

use super::decide::Work;
use super::link::{self, Key, KeyError};
use crate::model::approval::{ApprovalState, Channel, Decision};
use crate::model::{ApprovalId, PersonName};
use crate::store::{ApprovalHeld, ApprovalWrite, LinkRow, Outgoing};
use serde_json::{Value, json};
use std::collections::BTreeSet;

impl Work<'_> {
    /// Asks everybody whose answer counts, and who was not asked before.
    pub(super) fn tell_asked(&mut self, held: &ApprovalHeld, key: &Key, first: bool) -> Result<(), KeyError> {
        let asked: BTreeSet<&PersonName> = held.links.iter().map(|link| &link.person).collect();
        let eligible = self.tally().eligible;
        for person in eligible.iter().filter(|person| !asked.contains(person) && self.rules.mails(person)) {
            let link = self.new_link(key, person)?;
            // Without a link there is nothing that tells who was asked, so only the first time.
            if first || link.is_some() {
                self.mail(format!("asked/mail/{person}"), person, self.asked(Some(person), link));
            }
        }
        if first {
            self.post("asked", self.asked(None, None));
        }
        Ok(())
    }

    fn asked(&self, person: Option<&PersonName>, link: Option<String>) -> Value {
        let (row, request) = (&self.row, &self.row.request);
        json!({
            "kind": "approval-asked",
            "approval": row.id,
            "environment": request.environment,
            "person": person,
            "subject": request.subject,
            "link": link,
            "required": self.rules.policy(request).required.max(1),
            "expires_at": row.expires_at,
            "run": request.run,
            "run_url": self.rules.run_url(request.run),
            "how_by_cli": format!("mainstay approve {}", row.id),
        })
    }

    /// Tells all approvers, and whoever said it, what was said. The giver gets a link of their own: to take it back, or to
    /// say something else.
    pub(super) fn tell_decided(&mut self, key: &Key, said: &Decision, withdrawn: bool) -> Result<(), KeyError> {
        let tally = self.tally();
        let taken_back = self.row.decisions.iter().filter(|decision| decision.withdrawn_at.is_some()).count();
        // Grows with everything that is said or taken back.
        let nth = self.row.decisions.len() + taken_back;
        let required = self.rules.policy(&self.row.request).required.max(1);
        let standing = match self.row.state {
            ApprovalState::Open => format!("{} of {required}", tally.counted.len()),
            state => format!("{} of {required}, {state}", tally.counted.len()),
        };
        let request = &self.row.request;
        let document = json!({
            "kind": "approval-decided",
            "approval": self.row.id,
            "environment": request.environment,
            "title": request.subject.title,
            "person": said.person,
            "verdict": said.verdict,
            "channel": said.channel,
            "withdrawn": withdrawn,
            "message": said.message,
            "inputs": said.inputs,
            "standing": standing,
            "state": self.row.state,
            "withdraw_hint": null,
            "link": null,
            "run": request.run,
            "run_url": self.rules.run_url(request.run),
        });
        let mut all = tally.eligible;
        all.insert(said.person.clone());
        for person in all.iter().filter(|person| self.rules.mails(person)) {
            let mut mine = document.clone();
            if *person == said.person && !self.row.state.is_final() {
                if !withdrawn {
                    mine["withdraw_hint"] = json!(format!(
                        "{person} can take it back until what was asked for begins: mainstay withdraw {}",
                        self.row.id
                    ));
                }
                mine["link"] = json!(self.new_link(key, person)?);
            }
            self.mail(format!("decided/{nth}/mail/{person}"), person, mine);
        }
        self.post(&format!("decided/{nth}"), document);
        Ok(())
    }

    /// Tells all approvers that it is over without anybody's doing.
    pub(super) fn tell_ended(&mut self) {
        let request = &self.row.request;
        let document = json!({
            "kind": "approval-ended",
            "approval": self.row.id,
            "environment": request.environment,
            "title": request.subject.title,
            "state": self.row.state,
            "note": self.row.note,
            "run": request.run,
            "run_url": self.rules.run_url(request.run),
        });
        for person in self.tally().eligible.iter().filter(|person| self.rules.mails(person)) {
            self.mail(format!("ended/mail/{person}"), person, document.clone());
        }
        self.post("ended", document);
    }

    /// The six digits, to the address of the one whom the link was mailed to, whoever has the link now.
    pub(super) fn tell_code(&mut self, link: &LinkRow, code: &str, what: &str) {
        let document = json!({
            "kind": "approval-code",
            "approval": self.row.id,
            "person": link.person,
            "code": code,
            "what": what,
            "title": self.row.request.subject.title,
            "minutes": link::CODE_FOR.as_mins(),
            "run": self.row.request.run,
        });
        self.mail(format!("code/{}/{}", link.id, link.codes + 1), &link.person, document);
    }

    /// The address of a new link, where links count.
    fn new_link(&mut self, key: &Key, person: &PersonName) -> Result<Option<String>, KeyError> {
        if !self.rules.policy(&self.row.request).by.contains(&Channel::Mail) {
            return Ok(None);
        }
        let row = LinkRow {
            id: link::new_id()?,
            approval: self.row.id,
            person: person.clone(),
            expires_at: self.row.expires_at,
            used_at: None,
            void_at: None,
            code_digest: None,
            code_until: None,
            code_tries: 0,
            codes: 0,
        };
        let token = key.token(&row.id, row.approval, person, row.expires_at);
        self.writes.push(ApprovalWrite::Link(row));
        Ok(token.map(|token| format!("{}/a/{token}", self.rules.public_url)))
    }

    fn mail(&mut self, what: String, person: &PersonName, message: Value) {
        let key = message_key(self.row.id, &what);
        let (channel, recipient) = ("mail".to_owned(), person.to_string());
        self.writes.push(ApprovalWrite::Tell(Outgoing { key, channel, recipient, message }));
    }

    /// To every system.
    fn post(&mut self, what: &str, message: Value) {
        for name in self.rules.webhooks.keys() {
            let key = message_key(self.row.id, &format!("{what}/webhook/{name}"));
            let (channel, recipient) = (name.clone(), String::new());
            self.writes.push(ApprovalWrite::Tell(Outgoing { key, channel, recipient, message: message.clone() }));
        }
    }
}

fn message_key(id: ApprovalId, what: &str) -> String {
    format!("approval/{id}/{what}")
}
