//! Taking what a feeder says: every ref of a message is judged and its verdict stored, in one transaction.
//!
//! Enters: a [`Report`] of a feeder (`trigger`). Leaves: inbox rows, and the [`Answer`] for the feeder.

use super::judge::{Judged, judge};
use super::{Details, InboxId, NewRow, ReportRow, insert, set_inbox_state, taken};
use crate::model::trigger::{EventKind, Feeder, OWN_BRANCHES, OWN_TAGS};
use crate::model::{Oid, RepoName};
use crate::store::{Store, StoreError, reverts};
use jiff::Timestamp;
use rusqlite::{Transaction, params};
use std::collections::BTreeMap;

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
    /// A new change that starts nothing: Mainstay itself made it.
    Own(InboxId),
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
                let judged = judge(tx, &report, change)?;
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

/// What Mainstay itself pushed starts nothing: its tags, and the commits that it made on branches of its own. What is over the limit is known as accepted, so that nobody reports it again, but its row starts nothing and tells
/// how to.
fn within_limit(
    tx: &Transaction<'_>,
    report: &Report,
    id: InboxId,
    change: &RefReport,
    starts: &mut usize,
) -> Result<Verdict, StoreError> {
    let own_branch = change.git_ref.starts_with(OWN_BRANCHES) && reverts::is_own(tx, &report.repo, &change.new)?;
    if own_branch || change.git_ref.starts_with(OWN_TAGS) {
        set_inbox_state(tx, id, "dropped", Some("it is a mark of Mainstay's own, which starts nothing"))?;
        return Ok(Verdict::Own(id));
    }
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
