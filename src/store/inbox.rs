//! The inbox: one durable row per thing that may start runs, whoever told us about it.
//!
//! Enters: reports of feeders (`trigger`), manual triggers (`web`), schedule ticks. Leaves: rows for the engine, oldest
//! first. Everything is written before anybody is answered.
//!
//! A change of a ref is a *generation*: old -> new, counted per ref. Several feeders tell about the same push; the
//! first is accepted, the others join. What a feeder says late is dropped, with a reason. [`decide`] is the one place
//! where that is judged.

use super::{Store, StoreError};
use crate::model::api::InboxView;
use crate::model::ids::PipelineName;
use crate::model::trigger::{EventKind, Feeder};
use crate::model::{Oid, RepoName, RunId};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The number of an inbox row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InboxId(pub u64);

impl fmt::Display for InboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// What one feeder says about one repository, in one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Who says it.
    pub feeder: Feeder,
    /// The watched repository.
    pub repo: RepoName,
    /// What tells this message from every other of that feeder; taken once.
    pub delivery: Option<String>,
    /// Who pushed, as far as the feeder knows.
    pub actor: Option<String>,
    /// The refs that changed, in order.
    pub changes: Vec<RefReport>,
    /// How many of them may start runs; deletions do not count. The first ones do.
    pub starts: usize,
}

/// One ref that changed. All zeros stand for "does not exist".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefReport {
    /// The full ref name.
    pub git_ref: String,
    /// What it held before.
    pub old: Oid,
    /// What it holds since.
    pub new: Oid,
    /// What the ref holds now, when the caller looked.
    pub seen: Option<Seen>,
}

/// A look at a ref in its repository. It only counts while nothing else was accepted for that ref since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What the ref holds; zero when it does not exist.
    pub oid: Oid,
    /// The ref's generation in the store, read *before* the look.
    pub generation: u64,
}

/// What became of one reported ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A new change: this row may start runs (or, for a deletion, records it).
    Accepted(InboxId),
    /// Another feeder told us already.
    Joined(InboxId),
    /// A new change that starts nothing: the push held more refs than may start runs.
    OverLimit(InboxId),
    /// This message was taken before.
    Replayed,
    /// Too late to mean anything; the words say why.
    Stale(String),
    /// Not a branch or tag.
    Refused(String),
}

/// The answer to a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Stored; a verdict for each change, in order.
    Decided(Vec<Verdict>),
    /// Nothing was stored: for these refs (with their generations) somebody has to look at the repository first.
    Look(Vec<(String, u64)>),
}

/// An accepted thing, with all that is needed to make a [`TriggerEvent`](crate::model::TriggerEvent) of it but the commit's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxRow {
    /// Its number.
    pub id: InboxId,
    /// The watched repository.
    pub repo: RepoName,
    /// The full ref name; for a manual trigger of a bare commit it may be a commit id.
    pub git_ref: String,
    /// What kind of event.
    pub kind: EventKind,
    /// What the ref held before; zero when it was created or when this is not about a change.
    pub old: Oid,
    /// What to run: a commit, or the tag object of an annotated tag.
    pub new: Oid,
    /// Who pushed or triggered.
    pub actor: Option<String>,
    /// Only this pipeline.
    pub pipeline: Option<PipelineName>,
    /// Inputs of a manual trigger.
    pub inputs: BTreeMap<String, String>,
    /// When it was accepted; for a schedule, the time it was due.
    pub at: Timestamp,
}

/// The columns that are kept as one document.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Details {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    actor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pipeline: Option<PipelineName>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    inputs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    due: Option<Timestamp>,
}

/// A thing to be written into the inbox.
pub(super) struct NewRow<'a> {
    pub(super) repo: &'a RepoName,
    pub(super) git_ref: &'a str,
    pub(super) kind: EventKind,
    pub(super) old: &'a Oid,
    pub(super) new: &'a Oid,
    pub(super) actor: Option<String>,
    pub(super) pipeline: Option<PipelineName>,
    pub(super) inputs: BTreeMap<String, String>,
    pub(super) due: Option<Timestamp>,
}

/// What the store last accepted for the refs of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownRefs {
    /// Full ref name to what it held and its generation. A deleted ref stays, with zero.
    pub refs: BTreeMap<String, (Oid, u64)>,
    /// The default branch's full ref name.
    pub head: Option<String>,
}

/// Changes in one report; a push of more refs comes in several reports.
pub const CHANGES_MAX: usize = 100_000;

impl Store {
    /// Takes a report, in one transaction. When a ref cannot be judged without a look at the repository and the report
    /// does not bring one, nothing is stored and the answer names the refs.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn report(&self, report: Report) -> Result<Answer, StoreError> {
        if report.changes.len() > CHANGES_MAX {
            return Err(StoreError::Conflict(format!("take a report of more than {CHANGES_MAX} refs")));
        }
        self.write(move |tx| {
            if let Some(delivery) = &report.delivery
                && taken(tx, report.feeder, &report.repo, delivery)?
            {
                return Ok(Answer::Decided(vec![Verdict::Replayed; report.changes.len()]));
            }
            tx.execute_batch("SAVEPOINT report")?;
            let now = Timestamp::now();
            let mut verdicts = Vec::with_capacity(report.changes.len());
            let mut look = Vec::new();
            let mut n = 0;
            let mut starts = report.starts;
            for change in &report.changes {
                let judged = decide(tx, &report, change)?;
                let stored = !matches!(judged, Judged::Look(_) | Judged::Refuse(_));
                match judged {
                    Judged::Look(generation) => look.push((change.git_ref.clone(), generation)),
                    Judged::Refuse(why) => verdicts.push(Verdict::Refused(why.to_owned())),
                    Judged::Accept(generation) => {
                        let id = accept(tx, &report, n, change, &change.old, generation, now)?;
                        verdicts.push(within_limit(tx, &report, id, change, &mut starts)?);
                    }
                    Judged::AcceptLook(generation, old) => {
                        let id = accept(tx, &report, n, change, &old, generation, now)?;
                        verdicts.push(within_limit(tx, &report, id, change, &mut starts)?);
                    }
                    Judged::Join(id) => {
                        record(tx, &report, n, change, Some(id), "joined", None, now)?;
                        add_actor(tx, id, report.actor.as_deref())?;
                        verdicts.push(Verdict::Joined(id));
                    }
                    Judged::Drop(why) => {
                        let id = drop_change(tx, &report, change, &why, now)?;
                        record(tx, &report, n, change, Some(id), "stale", Some(&why), now)?;
                        verdicts.push(Verdict::Stale(why));
                    }
                }
                n += usize::from(stored);
            }
            if look.is_empty() {
                tx.execute_batch("RELEASE report")?;
                Ok(Answer::Decided(verdicts))
            } else {
                tx.execute_batch("ROLLBACK TO report; RELEASE report")?;
                Ok(Answer::Look(look))
            }
        })
        .await
    }

    /// What was last accepted for a repository's refs; `None` before its base line was taken.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn known_refs(&self, repo: &RepoName) -> Result<Option<KnownRefs>, StoreError> {
        let repo = repo.clone();
        self.read(move |db| {
            let head: Option<Option<String>> = db
                .prepare_cached("SELECT head FROM repos WHERE repo = ?1")?
                .query_row([repo.as_str()], |row| row.get(0))
                .optional()?;
            let Some(head) = head else { return Ok(None) };
            let mut refs = BTreeMap::new();
            let mut query = db.prepare_cached("SELECT git_ref, oid, generation FROM refs WHERE repo = ?1")?;
            let mut rows = query.query([repo.as_str()])?;
            while let Some(row) = rows.next()? {
                refs.insert(row.get(0)?, (parsed(row, 1)?, row.get::<_, i64>(2)? as u64));
            }
            Ok(Some(KnownRefs { refs, head }))
        })
        .await
    }

    /// Takes the refs of a repository seen for the first time as they are, without runs. What a hook reported before is
    /// kept: where it differs, the next comparison tells. Does nothing the second time. Says whether it was the first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn base_line(
        &self,
        repo: &RepoName,
        refs: BTreeMap<String, Oid>,
        head: Option<String>,
    ) -> Result<bool, StoreError> {
        let repo = repo.clone();
        self.write(move |tx| {
            let first = tx.execute(
                "INSERT OR IGNORE INTO repos (repo, seen_at, head) VALUES (?1, ?2, ?3)",
                params![repo.as_str(), Timestamp::now().as_millisecond(), head],
            )? == 1;
            if first {
                let mut insert = tx.prepare_cached(
                    "INSERT OR IGNORE INTO refs (repo, git_ref, oid, generation) VALUES (?1, ?2, ?3, 0)",
                )?;
                for (git_ref, oid) in &refs {
                    insert.execute(params![repo.as_str(), git_ref, oid.as_str()])?;
                }
            }
            Ok(first)
        })
        .await
    }

    /// The default branch's full ref name, as far as it is known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn head(&self, repo: &RepoName) -> Result<Option<String>, StoreError> {
        let repo = repo.clone();
        self.read(move |db| {
            let mut query = db.prepare_cached("SELECT head FROM repos WHERE repo = ?1")?;
            Ok(query.query_row([repo.as_str()], |row| row.get(0)).optional()?.flatten())
        })
        .await
    }

    /// Records which branch HEAD names.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_head(&self, repo: &RepoName, head: Option<String>) -> Result<(), StoreError> {
        let repo = repo.clone();
        self.write(move |tx| {
            tx.execute("UPDATE repos SET head = ?2 WHERE repo = ?1", params![repo.as_str(), head])?;
            Ok(())
        })
        .await
    }

    /// Stores a manual trigger.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accept_manual(
        &self,
        repo: &RepoName,
        git_ref: String,
        commit: Oid,
        actor: Option<String>,
        pipeline: Option<PipelineName>,
        inputs: BTreeMap<String, String>,
    ) -> Result<InboxId, StoreError> {
        let repo = repo.clone();
        self.write(move |tx| {
            let row = NewRow {
                repo: &repo,
                git_ref: &git_ref,
                kind: EventKind::Manual,
                old: &Oid::zero(),
                new: &commit,
                actor,
                pipeline,
                inputs,
                due: None,
            };
            insert(tx, row, 0, Feeder::Manual, None, Timestamp::now())
        })
        .await
    }

    /// Rows the engine has not handled, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pending_inbox(&self, limit: usize) -> Result<Vec<InboxRow>, StoreError> {
        self.read(move |db| {
            let sql = "SELECT id, repo, git_ref, kind, old, new, details, at FROM inbox WHERE state = 'pending' ORDER BY id LIMIT ?1";
            let mut query = db.prepare_cached(sql)?;
            let mut rows = query.query([limit as i64])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(inbox_row(row)?);
            }
            Ok(found)
        })
        .await
    }

    /// One row, whatever its state.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn inbox_row(&self, id: InboxId) -> Result<Option<InboxRow>, StoreError> {
        self.read(move |db| find_row(db, id)).await
    }

    /// The newest rows, for showing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_inbox(&self, limit: usize) -> Result<Vec<InboxView>, StoreError> {
        self.read(move |db| {
            let sql =
                "SELECT id, repo, git_ref, kind, old, new, at, state, reason FROM inbox ORDER BY id DESC LIMIT ?1";
            let mut query = db.prepare_cached(sql)?;
            let mut feeders =
                db.prepare_cached("SELECT DISTINCT feeder FROM reports WHERE inbox_id = ?1 ORDER BY feeder")?;
            let mut runs = db.prepare_cached("SELECT id FROM runs WHERE inbox_id = ?1 ORDER BY id")?;
            let mut rows = query.query([limit as i64])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                let mut view = InboxView {
                    id: id as u64,
                    repo: parsed(row, 1)?,
                    git_ref: row.get(2)?,
                    event: word(row, 3)?,
                    old: parsed(row, 4)?,
                    new: parsed(row, 5)?,
                    feeders: Vec::new(),
                    at: time(row.get(6)?),
                    state: row.get(7)?,
                    reason: row.get(8)?,
                    runs: Vec::new(),
                };
                let mut told = feeders.query([id])?;
                while let Some(row) = told.next()? {
                    view.feeders.push(word(row, 0)?);
                }
                let mut started = runs.query([id])?;
                while let Some(row) = started.next()? {
                    view.runs.push(RunId(row.get::<_, i64>(0)? as u64));
                }
                found.push(view);
            }
            Ok(found)
        })
        .await
    }

    /// Stores the content of a row once more, as a person's wish; the kind of event stays.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when there is no such row, or it was a deletion.
    pub async fn replay_inbox(&self, id: InboxId, actor: Option<String>) -> Result<InboxId, StoreError> {
        self.write(move |tx| {
            let Some(row) = find_row(tx, id)? else {
                return Err(StoreError::Conflict(format!("find the inbox entry {id}")));
            };
            if row.new.is_zero() {
                return Err(StoreError::Conflict(format!("replay the inbox entry {id}: it records a deletion")));
            }
            let again = NewRow {
                repo: &row.repo,
                git_ref: &row.git_ref,
                kind: row.kind,
                old: &row.old,
                new: &row.new,
                actor: actor.or(row.actor),
                pipeline: row.pipeline,
                inputs: row.inputs,
                due: None,
            };
            insert(tx, again, 0, Feeder::Manual, None, Timestamp::now())
        })
        .await
    }

    /// How many rows wait to be begun.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count_pending_inbox(&self) -> Result<u64, StoreError> {
        self.read(|db| {
            let count: i64 =
                db.query_row("SELECT count(*) FROM inbox WHERE state = 'pending'", [], |row| row.get(0))?;
            Ok(count as u64)
        })
        .await
    }
}

/// Marks a pending row as handled (`done`) or given up (`dropped`), inside the transaction that writes what followed
/// from it. A row that was handled before is a conflict, which undoes that transaction: what follows from a row is
/// written once.
pub(super) fn set_inbox_state(
    tx: &Transaction<'_>,
    id: InboxId,
    state: &str,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    let sql = "UPDATE inbox SET state = ?2, reason = ?3 WHERE id = ?1 AND state = 'pending'";
    let changed = tx.prepare_cached(sql)?.execute(params![id.0 as i64, state, reason])?;
    if changed == 0 {
        return Err(StoreError::Conflict(format!("close inbox row {id}: it is not pending")));
    }
    Ok(())
}

/// Writes a row and the report that made it.
pub(super) fn insert(
    tx: &Transaction<'_>,
    row: NewRow<'_>,
    generation: u64,
    feeder: Feeder,
    delivery: Option<&str>,
    now: Timestamp,
) -> Result<InboxId, StoreError> {
    let details = Details { actor: row.actor, pipeline: row.pipeline, inputs: row.inputs, due: row.due };
    let deleted = row.new.is_zero();
    let (state, reason) = if deleted { ("done", Some("deleted: nothing runs")) } else { ("pending", None) };
    tx.prepare_cached(
        "INSERT INTO inbox (repo, git_ref, kind, old, new, generation, details, at, state, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        row.repo.as_str(),
        row.git_ref,
        row.kind.as_str(),
        row.old.as_str(),
        row.new.as_str(),
        generation as i64,
        serde_json::to_string(&details)?,
        now.as_millisecond(),
        state,
        reason,
    ])?;
    let id = InboxId(tx.last_insert_rowid() as u64);
    let report = ReportRow {
        feeder,
        delivery: delivery.map(str::to_owned),
        repo: row.repo,
        git_ref: row.git_ref,
        old: row.old,
        new: row.new,
    };
    report.insert(tx, Some(id), "accepted", None, now)?;
    Ok(id)
}

/// What is to be done with one change.
enum Judged {
    Accept(u64),
    /// The report does not go on from what was accepted last, but where it ends is where the ref is now: what runs is
    /// the change from the last accepted to there. The report of that very change may still come, and joins.
    AcceptLook(u64, Oid),
    Join(InboxId),
    Drop(String),
    Refuse(&'static str),
    Look(u64),
}

/// The rule of the inbox.
///
/// 1. Only branches and tags count.
/// 2. A report joins the newest generation with the same old -> new that its feeder has not reported yet; unless it is a
///    poll's that looked after the newest generation.
/// 3. A hook's report that goes on from where a hook left the ref is accepted: hooks see every push, in order.
/// 4. Any other is accepted when it is what the ref holds now, and that is not what was accepted last.
/// 5. The rest came too late.
fn decide(tx: &Transaction<'_>, report: &Report, change: &RefReport) -> Result<Judged, StoreError> {
    if !(change.git_ref.starts_with("refs/heads/") || change.git_ref.starts_with("refs/tags/")) {
        return Ok(Judged::Refuse("only branches and tags start runs"));
    }
    // Git allows longer names, file systems do not; a bound keeps a hostile sender's rows small.
    if change.git_ref.len() > 1_024 || change.git_ref.chars().any(char::is_control) {
        return Ok(Judged::Refuse("the ref name is longer than 1024 bytes or holds control characters"));
    }
    if change.old == change.new {
        return Ok(Judged::Refuse("nothing changed"));
    }
    let repo = report.repo.as_str();
    let last: Option<(String, i64)> = tx
        .prepare_cached("SELECT oid, generation FROM refs WHERE repo = ?1 AND git_ref = ?2")?
        .query_row(params![repo, change.git_ref], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let generation = last.as_ref().map_or(0, |(_, generation)| *generation as u64);
    let looked = change.seen.as_ref().is_some_and(|seen| seen.generation == generation);
    // A poll that looked since the last change was accepted saw a later one: an older generation with the same ends,
    // as after A -> B -> A -> B, must not swallow it.
    if !(report.feeder == Feeder::Poll && looked)
        && let Some(id) = to_join(tx, report, change)?
    {
        return Ok(Judged::Join(id));
    }
    let next = Judged::Accept(generation + 1);
    if report.feeder == Feeder::Hook {
        let goes_on = match &last {
            // What a look found may be ahead of the hooks' messages under way: then one that seems to go on from there
            // may be an old one, as after A -> B -> A.
            Some((oid, _)) => oid == change.old.as_str() && told(tx, report, change, generation)?,
            // Unknown ref: it was created, or nobody looked at this repository before.
            None => change.old.is_zero() || !has_base_line(tx, &report.repo)?,
        };
        if goes_on {
            return Ok(next);
        }
    }
    let Some(seen) = &change.seen else { return Ok(Judged::Look(generation)) };
    if seen.generation != generation {
        // Somebody was faster between the look and this transaction: look again.
        return Ok(Judged::Look(generation));
    }
    if seen.oid != change.new {
        let now = if seen.oid.is_zero() { "is gone".to_owned() } else { format!("is at {}", seen.oid.short()) };
        return Ok(Judged::Drop(format!("came late: {} {now} now", change.git_ref)));
    }
    let last = last.map_or_else(Oid::zero, |(oid, _)| oid.parse().unwrap_or_else(|_| Oid::zero()));
    if last == change.new {
        return Ok(Judged::Drop(format!("{} at {} was accepted before", change.git_ref, change.new.short())));
    }
    if last == change.old { Ok(next) } else { Ok(Judged::AcceptLook(generation + 1, last)) }
}

/// Whether this feeder has reported that generation.
fn told(tx: &Transaction<'_>, report: &Report, change: &RefReport, generation: u64) -> Result<bool, StoreError> {
    if generation == 0 {
        return Ok(true);
    }
    let untold = tx
        .prepare_cached(&format!(
            "SELECT 1 FROM inbox WHERE repo = ?1 AND git_ref = ?2 AND generation = ?3 AND {NOT_TOLD_BY} ?4)"
        ))?
        .exists(params![report.repo.as_str(), change.git_ref, generation as i64, report.feeder.as_str()])?;
    Ok(!untold)
}

/// A report that was only the reason to look is not yet the report of what was found; see [`Judged::AcceptLook`].
const NOT_TOLD_BY: &str =
    "NOT EXISTS (SELECT 1 FROM reports WHERE inbox_id = inbox.id AND verdict <> 'looked' AND feeder =";

/// The newest generation with the same ends that this feeder has not reported.
fn to_join(tx: &Transaction<'_>, report: &Report, change: &RefReport) -> Result<Option<InboxId>, StoreError> {
    let found: Option<i64> = tx
        .prepare_cached(&format!(
            "SELECT id FROM inbox WHERE repo = ?1 AND git_ref = ?2 AND generation > 0 AND old = ?3 AND new = ?4
             AND {NOT_TOLD_BY} ?5) ORDER BY generation DESC LIMIT 1"
        ))?
        .query_row(
            params![
                report.repo.as_str(),
                change.git_ref,
                change.old.as_str(),
                change.new.as_str(),
                report.feeder.as_str()
            ],
            |row| row.get(0),
        )
        .optional()?;
    Ok(found.map(|id| InboxId(id as u64)))
}

fn has_base_line(tx: &Transaction<'_>, repo: &RepoName) -> Result<bool, StoreError> {
    Ok(tx.prepare_cached("SELECT 1 FROM repos WHERE repo = ?1")?.exists([repo.as_str()])?)
}

/// True when the delivery id was taken before. The refs of one message are told apart by a number after the id, and
/// the first that is stored gets 0.
pub(super) fn taken(tx: &Transaction<'_>, feeder: Feeder, repo: &RepoName, delivery: &str) -> Result<bool, StoreError> {
    let mut query = tx.prepare_cached("SELECT 1 FROM reports WHERE feeder = ?1 AND repo = ?2 AND delivery = ?3")?;
    Ok(query.exists(params![feeder.as_str(), repo.as_str(), format!("{delivery}/0")])?)
}

fn accept(
    tx: &Transaction<'_>,
    report: &Report,
    n: usize,
    change: &RefReport,
    old: &Oid,
    generation: u64,
    now: Timestamp,
) -> Result<InboxId, StoreError> {
    let row = NewRow {
        repo: &report.repo,
        git_ref: &change.git_ref,
        kind: kind_of(&change.git_ref),
        old,
        new: &change.new,
        actor: report.actor.clone(),
        pipeline: None,
        inputs: BTreeMap::new(),
        due: None,
    };
    let delivery = delivery_of(report, n);
    let id = insert(tx, row, generation, report.feeder, delivery.as_deref(), now)?;
    if *old != change.old {
        tx.prepare_cached("UPDATE reports SET verdict = 'looked', old = ?2 WHERE inbox_id = ?1")?
            .execute(params![id.0 as i64, change.old.as_str()])?;
    }
    tx.prepare_cached(
        "INSERT INTO refs (repo, git_ref, oid, generation) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (repo, git_ref) DO UPDATE SET oid = excluded.oid, generation = excluded.generation",
    )?
    .execute(params![report.repo.as_str(), change.git_ref, change.new.as_str(), generation as i64])?;
    Ok(id)
}

/// What is over the limit is known as accepted, so that nobody reports it again, but its row starts nothing and tells
/// how to.
fn within_limit(
    tx: &Transaction<'_>,
    report: &Report,
    id: InboxId,
    change: &RefReport,
    starts: &mut usize,
) -> Result<Verdict, StoreError> {
    if change.new.is_zero() {
        return Ok(Verdict::Accepted(id));
    }
    if *starts > 0 {
        *starts -= 1;
        return Ok(Verdict::Accepted(id));
    }
    let short = change.git_ref.strip_prefix("refs/heads/").unwrap_or(&change.git_ref);
    let reason = format!(
        "one push moved more refs than limits.runs-per-push lets start runs; `mainstay inbox replay {id}` runs this one \
         as pushed, `mainstay trigger {} --ref {}` by hand",
        report.repo,
        quoted(short)
    );
    set_inbox_state(tx, id, "dropped", Some(&reason))?;
    Ok(Verdict::OverLimit(id))
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+@".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// A row that only tells people why their push did not run.
fn drop_change(
    tx: &Transaction<'_>,
    report: &Report,
    change: &RefReport,
    why: &str,
    now: Timestamp,
) -> Result<InboxId, StoreError> {
    let details = Details { actor: report.actor.clone(), ..Details::default() };
    tx.prepare_cached(
        "INSERT INTO inbox (repo, git_ref, kind, old, new, generation, details, at, state, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, 'dropped', ?8)",
    )?
    .execute(params![
        report.repo.as_str(),
        change.git_ref,
        kind_of(&change.git_ref).as_str(),
        change.old.as_str(),
        change.new.as_str(),
        serde_json::to_string(&details)?,
        now.as_millisecond(),
        why,
    ])?;
    Ok(InboxId(tx.last_insert_rowid() as u64))
}

fn kind_of(git_ref: &str) -> EventKind {
    if git_ref.starts_with("refs/tags/") { EventKind::Tag } else { EventKind::Push }
}

fn delivery_of(report: &Report, n: usize) -> Option<String> {
    report.delivery.as_ref().map(|id| format!("{id}/{n}"))
}

#[allow(clippy::too_many_arguments)] // One call per verdict; a struct would only repeat the names.
fn record(
    tx: &Transaction<'_>,
    report: &Report,
    n: usize,
    change: &RefReport,
    id: Option<InboxId>,
    verdict: &str,
    reason: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let row = ReportRow {
        feeder: report.feeder,
        delivery: delivery_of(report, n),
        repo: &report.repo,
        git_ref: &change.git_ref,
        old: &change.old,
        new: &change.new,
    };
    row.insert(tx, id, verdict, reason, now)
}

struct ReportRow<'a> {
    feeder: Feeder,
    delivery: Option<String>,
    repo: &'a RepoName,
    git_ref: &'a str,
    old: &'a Oid,
    new: &'a Oid,
}

impl ReportRow<'_> {
    fn insert(
        self,
        tx: &Transaction<'_>,
        id: Option<InboxId>,
        verdict: &str,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        tx.prepare_cached(
            "INSERT INTO reports (inbox_id, feeder, delivery, repo, git_ref, old, new, at, verdict, reason)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            id.map(|id| id.0 as i64),
            self.feeder.as_str(),
            self.delivery,
            self.repo.as_str(),
            self.git_ref,
            self.old.as_str(),
            self.new.as_str(),
            now.as_millisecond(),
            verdict,
            reason,
        ])?;
        Ok(())
    }
}

/// A poll knows nobody; who pushed is filled in by the first feeder that does.
fn add_actor(tx: &Transaction<'_>, id: InboxId, actor: Option<&str>) -> Result<(), StoreError> {
    let Some(actor) = actor else { return Ok(()) };
    let stored: String =
        tx.prepare_cached("SELECT details FROM inbox WHERE id = ?1")?.query_row([id.0 as i64], |row| row.get(0))?;
    let mut details: Details = serde_json::from_str(&stored)?;
    if details.actor.is_none() {
        details.actor = Some(actor.to_owned());
        tx.prepare_cached("UPDATE inbox SET details = ?2 WHERE id = ?1")?
            .execute(params![id.0 as i64, serde_json::to_string(&details)?])?;
    }
    Ok(())
}

fn find_row(db: &Connection, id: InboxId) -> Result<Option<InboxRow>, StoreError> {
    let sql = "SELECT id, repo, git_ref, kind, old, new, details, at FROM inbox WHERE id = ?1";
    let mut query = db.prepare_cached(sql)?;
    let mut rows = query.query([id.0 as i64])?;
    rows.next()?.map(inbox_row).transpose()
}

fn inbox_row(row: &Row<'_>) -> Result<InboxRow, StoreError> {
    let details: Details = serde_json::from_str(&row.get::<_, String>(6)?)?;
    Ok(InboxRow {
        id: InboxId(row.get::<_, i64>(0)? as u64),
        repo: parsed(row, 1)?,
        git_ref: row.get(2)?,
        kind: word(row, 3)?,
        old: parsed(row, 4)?,
        new: parsed(row, 5)?,
        actor: details.actor,
        pipeline: details.pipeline,
        inputs: details.inputs,
        at: details.due.unwrap_or(time(row.get(7)?)),
    })
}

fn time(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A column that holds a checked name or id.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: fmt::Display,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| StoreError::Conflict(format!("read a stored value: {error}")))
}

/// A column that holds the word of an enum, as serde writes it.
fn word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    Ok(serde_json::from_value(serde_json::Value::String(text))?)
}
