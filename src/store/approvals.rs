//! Approvals: what people are asked, what they say, and the links that were mailed to them.
//!
//! Every change of a request is one transaction: it is read whole ([`ApprovalHeld`]), `approval` decides without doing
//! anything, and what it wants written ([`ApprovalWrite`]) is written before anybody else may look. So two people who say
//! yes at once are counted one after the other, and what is told to whom is stored with what it tells about.

use super::audit::{self, Act};
use super::{Store, StoreError, outbox, stored_time};
use crate::model::approval::{ApprovalRequest, ApprovalState, Channel, Decision, Verdict};
use crate::model::{ApprovalId, PersonName};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A request with everything that was said about it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApprovalRow {
    /// Its number.
    pub id: ApprovalId,
    /// As it was made.
    pub request: ApprovalRequest,
    /// Where it stands.
    pub state: ApprovalState,
    /// Why it ended as it did.
    pub note: Option<String>,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When it is rejected by itself.
    pub expires_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// All decisions in their order, also those that were taken back.
    pub decisions: Vec<Decision>,
}

impl ApprovalRow {
    /// What that person says at present.
    pub fn standing(&self, person: &PersonName) -> Option<&Decision> {
        self.decisions.iter().find(|decision| decision.withdrawn_at.is_none() && decision.person == *person)
    }
}

/// A link that was mailed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkRow {
    /// Its name, in hex.
    pub id: String,
    /// Which request it is for.
    pub approval: ApprovalId,
    /// Whom it was mailed to.
    pub person: PersonName,
    /// From then on it is not taken.
    pub expires_at: Timestamp,
    /// When it was used.
    pub used_at: Option<Timestamp>,
    /// When it was made worthless.
    pub void_at: Option<Timestamp>,
    /// Digest of the six digits that were mailed last.
    pub code_digest: Option<Vec<u8>>,
    /// Until then these are taken.
    pub code_until: Option<Timestamp>,
    /// How often wrong digits were shown.
    pub code_tries: u32,
    /// How often digits were mailed.
    pub codes: u32,
}

/// A request as it is read in the transaction that changes it.
#[derive(Debug, Clone)]
pub struct ApprovalHeld {
    /// The request.
    pub row: ApprovalRow,
    /// Its links.
    pub links: Vec<LinkRow>,
    /// The message that brings the change was taken in before.
    pub heard_before: bool,
    /// The time of the transaction.
    pub now: Timestamp,
}

/// Something to be written.
#[derive(Debug, Clone)]
pub enum ApprovalWrite {
    /// Somebody says something.
    Decide(Decision),
    /// What that person says at present is taken back.
    Withdraw(PersonName),
    /// The request gets somewhere, and why.
    Become(ApprovalState, Option<String>),
    /// A new link.
    Link(LinkRow),
    /// A link was used: it and every other of that person for this request are worthless from now on.
    UseLink(String),
    /// A link is worthless from now on.
    VoidLink(String),
    /// All links of this request are.
    VoidLinks,
    /// Digits were mailed for a link.
    Code {
        /// Which link.
        link: String,
        /// Their digest.
        digest: [u8; 32],
        /// Until then they are taken.
        until: Timestamp,
    },
    /// The digits for a link are not taken any more.
    CodeOver(String),
    /// Wrong digits were shown for a link.
    WrongCode(String),
    /// For the audit.
    Record(Act),
    /// For the outbox.
    Tell(Outgoing),
}

/// A message for the outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// The same key is the same message.
    pub key: String,
    /// `mail`, or the name of a webhook.
    pub channel: String,
    /// A person's name for mail; empty for a webhook.
    pub recipient: String,
    /// The message.
    pub message: Value,
}

/// A message from another system that counts once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeardMessage {
    /// The name of the system.
    pub source: String,
    /// Its own id for the message.
    pub message: String,
}

/// A message that could still come in is at most minutes old; those older than this are forgotten.
const HEARD_FOR: SignedDuration = SignedDuration::from_hours(48);
/// Requests in one list: far more than wait at a time.
const LIST_MAX: i64 = 500;

impl Store {
    /// Stores a request unless one of that key is there, with what `first` wants written along; its number. `clock` is
    /// asked in the transaction.
    ///
    /// # Errors
    /// When the database fails, or `first` does.
    pub async fn create_approval<C, F>(
        &self,
        request: ApprovalRequest,
        clock: C,
        first: F,
    ) -> Result<(ApprovalId, bool), StoreError>
    where
        C: FnOnce() -> Timestamp + Send + 'static,
        F: FnOnce(&ApprovalHeld) -> Result<Vec<ApprovalWrite>, StoreError> + Send + 'static,
    {
        self.write(move |tx| {
            let known = tx.query_row("SELECT id FROM approvals WHERE key = ?1", [&request.key], |row| numbered(row, 0));
            if let Some(id) = known.optional()? {
                return Ok((id, false));
            }
            let now = clock();
            // Spans are at most ten years.
            let expires = SignedDuration::try_from(request.policy.expires.0).unwrap_or(SignedDuration::MAX);
            let expires_at = now.checked_add(expires).unwrap_or(Timestamp::MAX);
            tx.execute(
                "INSERT INTO approvals (key, request, state, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    request.key,
                    serde_json::to_string(&request)?,
                    ApprovalState::Open.as_str(),
                    now.as_millisecond(),
                    expires_at.as_millisecond(),
                ],
            )?;
            let id = ApprovalId(tx.last_insert_rowid().cast_unsigned());
            let row = load(tx, id)?.ok_or_else(|| StoreError::Conflict("store a request: it is gone".into()))?;
            let held = ApprovalHeld { row, links: Vec::new(), heard_before: false, now };
            for write in first(&held)? {
                apply(tx, id, &write, now)?;
            }
            Ok((id, true))
        })
        .await
    }

    /// Reads a request, has `decide` say what is to be written, and writes it, in one transaction; nothing when there is no
    /// such request. `heard` is recorded along with it.
    ///
    /// # Errors
    /// When the database fails, or `decide` does; then nothing is written.
    pub async fn change_approval<T, C, F>(
        &self,
        id: ApprovalId,
        heard: Option<HeardMessage>,
        clock: C,
        decide: F,
    ) -> Result<Option<T>, StoreError>
    where
        T: Send + 'static,
        C: FnOnce() -> Timestamp + Send + 'static,
        F: FnOnce(&ApprovalHeld) -> Result<(T, Vec<ApprovalWrite>), StoreError> + Send + 'static,
    {
        self.write(move |tx| {
            let now = clock();
            let heard_before = match heard {
                Some(message) => !note_heard(tx, &message, now)?,
                None => false,
            };
            let Some(row) = load(tx, id)? else { return Ok(None) };
            let links = links(tx, id)?;
            let (answer, writes) = decide(&ApprovalHeld { row, links, heard_before, now })?;
            for write in &writes {
                apply(tx, id, write, now)?;
            }
            Ok(Some(answer))
        })
        .await
    }

    /// One request.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn approval(&self, id: ApprovalId) -> Result<Option<ApprovalRow>, StoreError> {
        self.read(move |db| load(db, id)).await
    }

    /// The number of the request with that key.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn approval_of_key(&self, key: String) -> Result<Option<ApprovalId>, StoreError> {
        self.read(move |db| {
            let mut query = db.prepare_cached("SELECT id FROM approvals WHERE key = ?1")?;
            Ok(query.query_row([key], |row| numbered(row, 0)).optional()?)
        })
        .await
    }

    /// Requests, the newest first, 500 at the most; with `unfinished` only those that are open or granted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_approvals(&self, unfinished: bool) -> Result<Vec<ApprovalRow>, StoreError> {
        self.read(move |db| {
            let sql = if unfinished {
                "SELECT id FROM approvals WHERE ended_at IS NULL ORDER BY id DESC LIMIT ?1"
            } else {
                "SELECT id FROM approvals ORDER BY id DESC LIMIT ?1"
            };
            let mut query = db.prepare_cached(sql)?;
            let ids: Vec<ApprovalId> =
                query.query_map([LIST_MAX], |row| numbered(row, 0))?.collect::<Result<_, _>>()?;
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                found.extend(load(db, id)?);
            }
            Ok(found)
        })
        .await
    }

    /// Numbers of open requests whose time is over at `now`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn overdue_approvals(&self, now: Timestamp) -> Result<Vec<ApprovalId>, StoreError> {
        self.read(move |db| {
            let mut query = db.prepare_cached(
                "SELECT id FROM approvals WHERE ended_at IS NULL AND state = 'open' AND expires_at <= ?1",
            )?;
            let ids = query.query_map([now.as_millisecond()], |row| numbered(row, 0))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// A link, with its request.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn approval_link(&self, link: String) -> Result<Option<(LinkRow, ApprovalRow)>, StoreError> {
        self.read(move |db| {
            let sql = format!("SELECT {LINK_COLUMNS} FROM links WHERE id = ?1");
            let mut query = db.prepare_cached(&sql)?;
            let mut rows = query.query([link])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let link = link_row(row)?;
            Ok(load(db, link.approval)?.map(|approval| (link, approval)))
        })
        .await
    }

    /// The time of the newest entry of the audit: the clock was that late once.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn last_recorded(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT at FROM audit ORDER BY seq DESC LIMIT 1")?;
            Ok(query.query_row([], |row| row.get(0)).optional()?.map(stored_time))
        })
        .await
    }
}

/// Whether the message is a new one.
fn note_heard(tx: &Transaction<'_>, heard: &HeardMessage, now: Timestamp) -> Result<bool, StoreError> {
    tx.execute("DELETE FROM heard WHERE at < ?1", [(now - HEARD_FOR).as_millisecond()])?;
    let added = tx.execute(
        "INSERT OR IGNORE INTO heard (source, message, at) VALUES (?1, ?2, ?3)",
        params![heard.source, heard.message, now.as_millisecond()],
    )?;
    Ok(added == 1)
}

fn apply(tx: &Transaction<'_>, id: ApprovalId, write: &ApprovalWrite, now: Timestamp) -> Result<(), StoreError> {
    let (number, at) = (id.0.cast_signed(), now.as_millisecond());
    match write {
        ApprovalWrite::Decide(decision) => {
            tx.execute(
                "INSERT INTO decisions (approval_id, person, verdict, channel, inputs, message, at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    number,
                    decision.person.as_str(),
                    decision.verdict.as_str(),
                    word(&decision.channel)?,
                    serde_json::to_string(&decision.inputs)?,
                    decision.message,
                    decision.at.as_millisecond(),
                ],
            )?;
        }
        ApprovalWrite::Withdraw(person) => {
            tx.execute(
                "UPDATE decisions SET withdrawn_at = ?3 WHERE approval_id = ?1 AND person = ?2 AND withdrawn_at IS NULL",
                params![number, person.as_str(), at],
            )?;
        }
        ApprovalWrite::Become(state, note) => {
            let changed = tx.execute(
                "UPDATE approvals SET state = ?2, note = ?3, ended_at = ?4 WHERE id = ?1 AND ended_at IS NULL",
                params![number, state.as_str(), note, state.is_final().then_some(at)],
            )?;
            if changed != 1 {
                return Err(StoreError::Conflict(format!("change approval {id}: it is over")));
            }
        }
        ApprovalWrite::Link(link) => {
            tx.execute(
                "INSERT INTO links (id, approval_id, person, expires_at) VALUES (?1, ?2, ?3, ?4)",
                params![link.id, number, link.person.as_str(), link.expires_at.as_millisecond()],
            )?;
        }
        ApprovalWrite::UseLink(link) => {
            tx.execute(
                "UPDATE links SET void_at = ?3 WHERE approval_id = ?1 AND id <> ?2 AND void_at IS NULL AND used_at IS NULL
                 AND person = (SELECT person FROM links WHERE id = ?2)",
                params![number, link, at],
            )?;
            let changed = tx.execute(
                "UPDATE links SET used_at = ?2, code_digest = NULL WHERE id = ?1 AND used_at IS NULL AND void_at IS NULL",
                params![link, at],
            )?;
            if changed != 1 {
                return Err(StoreError::Conflict(format!("use a link of approval {id}: it was used")));
            }
        }
        ApprovalWrite::VoidLink(link) => {
            tx.execute(
                "UPDATE links SET void_at = ?2, code_digest = NULL WHERE id = ?1 AND void_at IS NULL",
                params![link, at],
            )?;
        }
        ApprovalWrite::VoidLinks => {
            tx.execute(
                "UPDATE links SET void_at = ?2, code_digest = NULL WHERE approval_id = ?1 AND void_at IS NULL AND used_at IS NULL",
                params![number, at],
            )?;
        }
        ApprovalWrite::Code { link, digest, until } => {
            tx.execute(
                "UPDATE links SET code_digest = ?2, code_until = ?3, codes = codes + 1 WHERE id = ?1",
                params![link, digest, until.as_millisecond()],
            )?;
        }
        ApprovalWrite::CodeOver(link) => {
            tx.execute("UPDATE links SET code_digest = NULL WHERE id = ?1", [link])?;
        }
        ApprovalWrite::WrongCode(link) => {
            tx.execute("UPDATE links SET code_tries = code_tries + 1 WHERE id = ?1", [link])?;
        }
        ApprovalWrite::Record(act) => audit::record(tx, act, now)?,
        ApprovalWrite::Tell(out) => outbox::put(tx, &out.key, &out.channel, &out.recipient, &out.message, now)?,
    }
    Ok(())
}

fn load(db: &Connection, id: ApprovalId) -> Result<Option<ApprovalRow>, StoreError> {
    // A number beyond what the database counts to is of no request.
    let Ok(number) = i64::try_from(id.0) else { return Ok(None) };
    let mut query = db
        .prepare_cached("SELECT request, state, note, created_at, expires_at, ended_at FROM approvals WHERE id = ?1")?;
    let mut rows = query.query([number])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let state: String = row.get(1)?;
    Ok(Some(ApprovalRow {
        id,
        request: serde_json::from_str(&row.get::<_, String>(0)?)?,
        state: state.parse().map_err(StoreError::Conflict)?,
        note: row.get(2)?,
        created_at: stored_time(row.get(3)?),
        expires_at: stored_time(row.get(4)?),
        ended_at: row.get::<_, Option<i64>>(5)?.map(stored_time),
        decisions: decisions(db, number)?,
    }))
}

fn decisions(db: &Connection, approval: i64) -> Result<Vec<Decision>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT person, verdict, channel, inputs, message, at, withdrawn_at FROM decisions WHERE approval_id = ?1 ORDER BY id",
    )?;
    let mut rows = query.query([approval])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(Decision {
            person: person(row.get(0)?)?,
            verdict: read_word::<Verdict>(row.get(1)?)?,
            channel: read_word::<Channel>(row.get(2)?)?,
            inputs: serde_json::from_str(&row.get::<_, String>(3)?)?,
            message: row.get(4)?,
            at: stored_time(row.get(5)?),
            withdrawn_at: row.get::<_, Option<i64>>(6)?.map(stored_time),
        });
    }
    Ok(found)
}

const LINK_COLUMNS: &str =
    "id, approval_id, person, expires_at, used_at, void_at, code_digest, code_until, code_tries, codes";

fn links(db: &Connection, approval: ApprovalId) -> Result<Vec<LinkRow>, StoreError> {
    let sql = format!("SELECT {LINK_COLUMNS} FROM links WHERE approval_id = ?1");
    let mut query = db.prepare_cached(&sql)?;
    let mut rows = query.query([approval.0.cast_signed()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(link_row(row)?);
    }
    Ok(found)
}

fn link_row(row: &Row<'_>) -> Result<LinkRow, StoreError> {
    Ok(LinkRow {
        id: row.get(0)?,
        approval: numbered(row, 1)?,
        person: person(row.get(2)?)?,
        expires_at: stored_time(row.get(3)?),
        used_at: row.get::<_, Option<i64>>(4)?.map(stored_time),
        void_at: row.get::<_, Option<i64>>(5)?.map(stored_time),
        code_digest: row.get(6)?,
        code_until: row.get::<_, Option<i64>>(7)?.map(stored_time),
        code_tries: row.get(8)?,
        codes: row.get(9)?,
    })
}

/// The database counts from 1, with a sign.
fn numbered(row: &Row<'_>, column: usize) -> rusqlite::Result<ApprovalId> {
    Ok(ApprovalId(row.get::<_, i64>(column)?.cast_unsigned()))
}

fn person(name: String) -> Result<PersonName, StoreError> {
    PersonName::new(name).map_err(|error| StoreError::Conflict(format!("read a stored decision: {error}")))
}

/// The word of a value that is written as one.
fn word(value: &impl serde::Serialize) -> Result<String, StoreError> {
    match serde_json::to_value(value)? {
        Value::String(word) => Ok(word),
        other => Err(StoreError::Conflict(format!("store `{other}`: it is no word"))),
    }
}

fn read_word<T: DeserializeOwned>(word: String) -> Result<T, StoreError> {
    Ok(serde_json::from_value(Value::String(word))?)
}
