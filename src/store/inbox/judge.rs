//! The rule of the inbox: what one reported change of a ref means, given what was accepted before.
//!
//! Enters: a report and one of its changes, with the look at the repository when there was one. Leaves: a [`Judged`].
//! Only reads; [`report`](super::report) writes what was judged.

use super::InboxId;
use super::report::{RefReport, Report};
use crate::model::trigger::Feeder;
use crate::model::{Oid, RepoName};
use crate::store::StoreError;
use rusqlite::{OptionalExtension, Transaction, params};

/// What is to be done with one change.
pub(super) enum Judged {
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
/// 3. A hook's report that goes on from where hooks left the ref, having told its last generations, is accepted: hooks see
///    every push, in order.
/// 4. Any other is accepted when it is what the ref holds now, and that is not what was accepted last.
/// 5. The rest came too late.
pub(super) fn judge(tx: &Transaction<'_>, report: &Report, change: &RefReport) -> Result<Judged, StoreError> {
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
    // A hook's report that is judged here broke the chain of hook reports: it may be an older one with the same ends, and
    // the hook's report of what the look found may still come.
    let is_this_change = last == change.old && report.feeder != Feeder::Hook;
    if is_this_change { Ok(next) } else { Ok(Judged::AcceptLook(generation + 1, last)) }
}

/// So many of the newest generations a hook must have reported for its next report to count as going on from there: one
/// alone may have been an older report with the same ends.
const CHAIN: u64 = 4;

/// Whether this feeder has reported that generation and those just before it.
fn told(tx: &Transaction<'_>, report: &Report, change: &RefReport, generation: u64) -> Result<bool, StoreError> {
    if generation == 0 {
        return Ok(true);
    }
    let untold = tx
        .prepare_cached(&format!(
            "SELECT 1 FROM inbox WHERE repo = ?1 AND git_ref = ?2 AND generation BETWEEN ?3 AND ?4 AND {NOT_TOLD_BY} ?5)"
        ))?
        .exists(params![
            report.repo.as_str(),
            change.git_ref,
            (generation + 1).saturating_sub(CHAIN).max(1) as i64,
            generation as i64,
            report.feeder.as_str()
        ])?;
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
