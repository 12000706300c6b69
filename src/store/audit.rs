//! The audit: who did what, each entry chained to the one before it.
//!
//! Enters: an [`Act`], inside the transaction that writes what it tells about, so that neither is stored without the
//! other. Leaves: the newest entries for showing, and the verdict of a walk over the whole chain. Nothing here is ever
//! changed or forgotten.
//!
//! **The format.** An entry is `seq` (1, 2, 3, …), `at` (milliseconds since 1970), `who`, `person` (1 when `who` is a
//! person of `mainstay.yml`, else 0), `way`, `act`, `subject`, `details` (the text of a JSON object), `previous` and
//! `hash`. `previous` is the `hash` of the entry before; of the first entry it is 64 zeros. `hash` is SHA-256, in lower-case
//! hex, over these ten texts, each written as its length in bytes (decimal), a colon, its bytes, and a comma:
//!
//! ```text
//! mainstay-audit-1  seq  at  who  person  way  act  subject  details  previous
//! ```
//!
//! with numbers in decimal and every text as it stands in its column. Lengths come first, so that no two entries have the
//! same form. Another form would begin with another first text; entries written before keep theirs.
//!
//! **What it proves.** An entry that was changed, taken out, put in or moved no longer fits its neighbours. Whoever may
//! write the database can cut off the newest entries, or compute every hash anew: only a copy of the newest hash,
//! kept elsewhere, shows that.

use super::{Store, StoreError, stored_time};
use crate::model::Asker;
use crate::model::api::{AuditBreak, AuditEntry, AuditVerdict};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What stands in place of a hash before the first entry.
const NOTHING_BEFORE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The first text of the hashed form.
const FORM: &str = "mainstay-audit-1";

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActKind {
    /// Pipelines were started by hand.
    Trigger,
    /// A run was asked to stop.
    Cancel,
    /// A run was repeated.
    Retry,
    /// A report was taken again.
    Replay,
    /// The configuration was read again and is in force.
    Reload,
    /// A personal token was made.
    TokenCreate,
    /// A personal token was revoked.
    TokenRevoke,
    /// A release of one environment was asked for in another.
    Promote,
    /// A rollback was asked for, or happened by itself.
    Rollback,
    /// A pull request that takes back what was rolled back was opened, or could not be.
    Revert,
    /// What was changed by hand in an environment is put back.
    Repair,
    /// Nothing is deployed to an environment any more, or a revision not.
    Hold,
    /// A hold is over.
    ReleaseHold,
    /// The watch of a deploy was ended early.
    EndWatch,
    /// The lease of a process that died was taken over.
    LeaseTaken,
    /// The history of an environment was read back from Git.
    HistoryTaken,
    /// People are asked for their yes.
    ApprovalAsked,
    /// A person said yes.
    Approve,
    /// A person said no.
    Reject,
    /// A person took back what they said.
    Withdraw,
    /// Enough people said yes.
    ApprovalGranted,
    /// A yes no longer counts, and without it there are not enough.
    ApprovalReopened,
    /// What was approved began.
    ApprovalUsed,
    /// Nobody decided in time.
    ApprovalExpired,
    /// What was asked for has changed, or is no longer wanted.
    ApprovalVoid,
    /// Wrong digits were shown for a mailed link so often that it is dead.
    ApprovalLinkDead,
    /// Commits on a source go on without the repository.
    StepDown,
    /// Commits on a source wait for the repository again.
    StepUp,
    /// Another cluster took the place of the one that is stored for a source.
    TakeOver,
    /// The replication slot of a source was dropped, so that its server's disk does not fill.
    DropSlot,
}

impl ActKind {
    fn as_str(self) -> &'static str {
        match self {
            ActKind::Trigger => "trigger",
            ActKind::Cancel => "cancel",
            ActKind::Retry => "retry",
            ActKind::Replay => "replay",
            ActKind::Reload => "reload",
            ActKind::TokenCreate => "token-create",
            ActKind::TokenRevoke => "token-revoke",
            ActKind::Promote => "promote",
            ActKind::Rollback => "rollback",
            ActKind::Revert => "revert",
            ActKind::Repair => "repair",
            ActKind::Hold => "hold",
            ActKind::ReleaseHold => "release-hold",
            ActKind::EndWatch => "end-watch",
            ActKind::LeaseTaken => "lease-taken",
            ActKind::HistoryTaken => "history-taken",
            ActKind::ApprovalAsked => "approval-asked",
            ActKind::Approve => "approve",
            ActKind::Reject => "reject",
            ActKind::Withdraw => "withdraw",
            ActKind::ApprovalGranted => "approval-granted",
            ActKind::ApprovalReopened => "approval-reopened",
            ActKind::ApprovalUsed => "approval-used",
            ActKind::ApprovalExpired => "approval-expired",
            ActKind::ApprovalVoid => "approval-void",
            ActKind::ApprovalLinkDead => "approval-link-dead",
            ActKind::StepDown => "step-down",
            ActKind::StepUp => "step-up",
            ActKind::TakeOver => "take-over",
            ActKind::DropSlot => "drop-slot",
        }
    }
}

/// Something that somebody did.
#[derive(Debug, Clone)]
pub struct Act {
    /// Who, and how that is known.
    pub by: Asker,
    /// What.
    pub kind: ActKind,
    /// To what: `run 12`, a repository, a person.
    pub subject: String,
    /// What else is to be known, a JSON object; never a secret.
    pub details: Value,
}

/// An entry as it stands in the table.
struct Stored {
    seq: i64,
    at: i64,
    who: String,
    person: i64,
    way: String,
    act: String,
    subject: String,
    details: String,
    previous: String,
    hash: String,
}

const COLUMNS: &str = "seq, at, who, person, way, act, subject, details, previous, hash";

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
        Ok(Stored {
            seq: row.get(0)?,
            at: row.get(1)?,
            who: row.get(2)?,
            person: row.get(3)?,
            way: row.get(4)?,
            act: row.get(5)?,
            subject: row.get(6)?,
            details: row.get(7)?,
            previous: row.get(8)?,
            hash: row.get(9)?,
        })
    }

    /// The hash that its content has; what stands in `hash` does not count.
    fn digest(&self) -> String {
        let (seq, at, person) = (self.seq.to_string(), self.at.to_string(), self.person.to_string());
        let texts =
            [FORM, &seq, &at, &self.who, &person, &self.way, &self.act, &self.subject, &self.details, &self.previous];
        let mut hash = Sha256::new();
        for text in texts {
            hash.update(text.len().to_string());
            hash.update(":");
            hash.update(text);
            hash.update(",");
        }
        hex::encode(hash.finalize())
    }

    fn view(self) -> AuditEntry {
        AuditEntry {
            seq: self.seq as u64,
            at: stored_time(self.at),
            who: self.who,
            person: self.person == 1,
            way: self.way,
            act: self.act,
            subject: self.subject,
            // Text that is no JSON was not written by us; showing it is better than showing nothing.
            details: serde_json::from_str(&self.details).unwrap_or(Value::String(self.details)),
            previous: self.previous,
            hash: self.hash,
        }
    }
}

/// Adds an act to the chain, in the transaction that carries it out.
pub(super) fn record(tx: &Transaction<'_>, act: &Act, now: Timestamp) -> Result<(), StoreError> {
    let last: Option<(i64, String)> = tx
        .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (seq, previous) = last.unwrap_or_else(|| (0, NOTHING_BEFORE.to_owned()));
    let mut entry = Stored {
        seq: seq + 1,
        at: now.as_millisecond(),
        who: act.by.who().to_owned(),
        person: i64::from(act.by.as_person().is_some()),
        way: act.by.way().as_str().to_owned(),
        act: act.kind.as_str().to_owned(),
        subject: act.subject.clone(),
        details: serde_json::to_string(&act.details)?,
        previous,
        hash: String::new(),
    };
    entry.hash = entry.digest();
    tx.prepare_cached(&format!("INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"))?
        .execute(params![
            entry.seq,
            entry.at,
            entry.who,
            entry.person,
            entry.way,
            entry.act,
            entry.subject,
            entry.details,
            entry.previous,
            entry.hash,
        ])?;
    Ok(())
}

impl Store {
    /// Records an act that changes nothing else in the store; answers when it is durable.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_act(&self, act: Act) -> Result<(), StoreError> {
        self.write(move |tx| record(tx, &act, Timestamp::now())).await
    }

    /// The newest entries, the newest first; only those before `before`, when it is given.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_audit(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.read(move |db| {
            let before = before.map_or(i64::MAX, |seq| i64::try_from(seq).unwrap_or(i64::MAX));
            let sql = format!("SELECT {COLUMNS} FROM audit WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2");
            let mut query = db.prepare_cached(&sql)?;
            let rows = query.query_map(params![before, limit], |row| Ok(Stored::read(row)?.view()))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Walks the whole chain, up to the first entry that does not fit; looks for the entry with the hash `expected`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn verify_audit(&self, expected: Option<String>) -> Result<AuditVerdict, StoreError> {
        self.read(move |db| verify(db, expected.as_deref())).await
    }
}

fn verify(db: &Connection, expected: Option<&str>) -> Result<AuditVerdict, StoreError> {
    let mut verdict = AuditVerdict { entries: 0, newest: None, expected_at: None, broken: None };
    let mut query = db.prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY seq"))?;
    let mut rows = query.query([])?;
    let mut previous = NOTHING_BEFORE.to_owned();
    while let Some(row) = rows.next()? {
        let entry = Stored::read(row)?;
        let seq = verdict.entries + 1;
        if let Some(why) = misfit(&entry, seq, &previous) {
            verdict.broken = Some(AuditBreak { seq, why });
            break;
        }
        if expected == Some(entry.hash.as_str()) {
            verdict.expected_at = Some(seq);
        }
        verdict.entries = seq;
        previous.clone_from(&entry.hash);
        verdict.newest = Some(entry.hash);
    }
    Ok(verdict)
}

/// Why an entry cannot be number `seq`, after one with the hash `previous`.
fn misfit(entry: &Stored, seq: u64, previous: &str) -> Option<String> {
    if entry.seq != seq as i64 {
        return Some(format!("it is missing: the next one there is has the number {}", entry.seq));
    }
    if entry.previous != previous {
        let before = if seq == 1 {
            "it does not begin the chain".to_owned()
        } else {
            format!("it does not follow entry {}", seq - 1)
        };
        return Some(format!("{before}: one was taken out, put in or moved there"));
    }
    (entry.digest() != entry.hash).then(|| "it was changed after it was written".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PersonName, Way};

    fn act(who: &str, subject: &str) -> Act {
        Act {
            by: Asker::person(PersonName::new(who).unwrap(), Way::Token),
            kind: ActKind::Cancel,
            subject: subject.into(),
            details: serde_json::json!({ "z": 1, "a": "é" }),
        }
    }

    async fn five() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for n in 1..=5 {
            store.record_act(act("ana", &format!("run {n}"))).await.unwrap();
        }
        (folder, store)
    }

    #[test]
    fn the_hashed_form_is_the_documented_one() {
        let entry = Stored {
            seq: 7,
            at: 1_772_359_200_000,
            who: "ana".into(),
            person: 1,
            way: "token".into(),
            act: "cancel".into(),
            subject: "run 12".into(),
            details: "{\"n\":\"é\"}".into(),
            previous: NOTHING_BEFORE.into(),
            hash: String::new(),
        };
        let form = format!(
            "16:mainstay-audit-1,1:7,13:1772359200000,3:ana,1:1,5:token,6:cancel,6:run 12,10:{{\"n\":\"é\"}},64:{NOTHING_BEFORE},"
        );
        assert_eq!(entry.digest(), hex::encode(Sha256::digest(form)));
    }

    #[tokio::test]
    async fn a_whole_chain_is_good_and_its_hashes_are_found() {
        let (_folder, store) = five().await;
        let entries = store.list_audit(None, 10).await.unwrap();
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
        assert_eq!(store.list_audit(Some(3), 1).await.unwrap()[0].seq, 2);
        let verdict = store.verify_audit(Some(entries[2].hash.clone())).await.unwrap();
        let newest = Some(entries[0].hash.clone());
        assert_eq!(verdict, AuditVerdict { entries: 5, newest, expected_at: Some(3), broken: None });
        assert_eq!(store.verify_audit(Some("ff".repeat(32))).await.unwrap().expected_at, None);
        let empty = tempfile::tempdir().unwrap();
        let verdict = Store::open(empty.path()).unwrap().verify_audit(None).await.unwrap();
        assert_eq!((verdict.entries, verdict.newest, verdict.broken), (0, None, None));
    }

    #[tokio::test]
    async fn every_way_to_tamper_with_one_entry_names_the_first_that_is_broken() {
        let swap = "UPDATE audit SET seq = -2 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 3;
                    UPDATE audit SET seq = 3 WHERE seq = -2";
        let table = [
            ("UPDATE audit SET who = 'ben' WHERE seq = 2", 2, "changed"),
            ("UPDATE audit SET person = 0 WHERE seq = 4", 4, "changed"),
            ("UPDATE audit SET at = at + 1 WHERE seq = 1", 1, "changed"),
            ("UPDATE audit SET way = 'socket' WHERE seq = 5", 5, "changed"),
            ("UPDATE audit SET act = 'retry' WHERE seq = 3", 3, "changed"),
            ("UPDATE audit SET subject = 'run 9' WHERE seq = 3", 3, "changed"),
            ("UPDATE audit SET details = '{}' WHERE seq = 3", 3, "changed"),
            ("UPDATE audit SET hash = previous WHERE seq = 3", 3, "changed"),
            ("UPDATE audit SET previous = hash WHERE seq = 3", 3, "does not follow entry 2"),
            ("DELETE FROM audit WHERE seq = 1", 1, "missing"),
            ("DELETE FROM audit WHERE seq = 3", 3, "missing"),
            (
                "DELETE FROM audit WHERE seq = 3; UPDATE audit SET seq = seq - 1 WHERE seq > 3",
                3,
                "does not follow entry 2",
            ),
            ("DELETE FROM audit WHERE seq = 1; UPDATE audit SET seq = seq - 1", 1, "does not begin the chain"),
            (swap, 2, "does not follow entry 1"),
            (
                "INSERT INTO audit SELECT 0, at, who, person, way, act, subject, details, previous, hash FROM audit WHERE seq = 1",
                1,
                "missing",
            ),
        ];
        for (sql, seq, why) in table {
            let (folder, store) = five().await;
            Connection::open(folder.path().join("mainstay.db")).unwrap().execute_batch(sql).unwrap();
            let broken = store.verify_audit(None).await.unwrap().broken.unwrap_or_else(|| panic!("not found: {sql}"));
            assert_eq!(broken.seq, seq, "{sql}: {}", broken.why);
            assert!(broken.why.contains(why), "{sql}: {}", broken.why);
        }
    }

    #[tokio::test]
    async fn a_cut_tail_shows_only_to_who_kept_the_newest_hash() {
        let (folder, store) = five().await;
        let newest = store.verify_audit(None).await.unwrap().newest.unwrap();
        Connection::open(folder.path().join("mainstay.db"))
            .unwrap()
            .execute_batch("DELETE FROM audit WHERE seq = 5")
            .unwrap();
        let verdict = store.verify_audit(Some(newest)).await.unwrap();
        assert_eq!((verdict.entries, verdict.expected_at, verdict.broken), (4, None, None));
    }

    #[tokio::test]
    async fn what_is_undone_leaves_no_entry() {
        let (_folder, store) = five().await;
        let undone: Result<(), _> = store
            .write(|tx| {
                record(tx, &act("ana", "run 6"), Timestamp::now())?;
                Err(StoreError::Conflict("changed our mind".into()))
            })
            .await;
        assert!(undone.is_err());
        assert_eq!(store.verify_audit(None).await.unwrap().entries, 5);
    }
}
