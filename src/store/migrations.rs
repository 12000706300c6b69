//! The schema, as a list of steps that is only ever added to. `user_version` counts the steps taken.

use super::StoreError;
use rusqlite::{Connection, TransactionBehavior};

/// Step n brings a database from `user_version` n to n + 1. Never edit one that was released.
const STEPS: &[&str] = &[
    r"
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

-- One row per accepted change of a ref, schedule tick or manual trigger: what may start runs. Written before anybody is answered.
CREATE TABLE inbox (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    repo        TEXT NOT NULL,
    git_ref     TEXT NOT NULL,
    kind        TEXT NOT NULL,                     -- EventKind
    old         TEXT NOT NULL,
    new         TEXT NOT NULL,
    generation  INTEGER NOT NULL,                  -- counts changes of this ref, from 1; 0 for schedule and manual
    details     TEXT NOT NULL,                     -- JSON: actor, pipeline, inputs, due time
    at          INTEGER NOT NULL,                  -- milliseconds since 1970
    state       TEXT NOT NULL DEFAULT 'pending',   -- pending | done | dropped
    reason      TEXT
) STRICT;
CREATE INDEX inbox_by_ref ON inbox (repo, git_ref, generation);
CREATE INDEX inbox_pending ON inbox (state) WHERE state = 'pending';

-- Every report of a feeder, also those that joined a row or were dropped. A delivery id is taken once.
CREATE TABLE reports (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    inbox_id    INTEGER REFERENCES inbox (id),
    feeder      TEXT NOT NULL,
    delivery    TEXT,
    repo        TEXT NOT NULL,
    git_ref     TEXT NOT NULL,
    old         TEXT NOT NULL,
    new         TEXT NOT NULL,
    at          INTEGER NOT NULL,
    verdict     TEXT NOT NULL,                     -- accepted | joined | replayed | stale | refused
    reason      TEXT
) STRICT;
CREATE UNIQUE INDEX reports_by_delivery ON reports (feeder, repo, delivery) WHERE delivery IS NOT NULL;
CREATE INDEX reports_by_inbox ON reports (inbox_id);

-- What every ref was last accepted at.
CREATE TABLE refs (
    repo        TEXT NOT NULL,
    git_ref     TEXT NOT NULL,
    oid         TEXT NOT NULL,
    generation  INTEGER NOT NULL,
    PRIMARY KEY (repo, git_ref)
) STRICT, WITHOUT ROWID;

-- What the poller knows of a repository beyond its refs.
CREATE TABLE repos (
    repo        TEXT PRIMARY KEY,
    seen_at     INTEGER NOT NULL,                  -- when its refs were first taken as a base line
    head        TEXT                               -- the default branch's full ref name
) STRICT;

CREATE TABLE schedules (
    repo        TEXT NOT NULL,
    pipeline    TEXT NOT NULL,
    spec        TEXT NOT NULL,                     -- as written: cron and zone
    next_due    INTEGER NOT NULL,                  -- milliseconds since 1970
    PRIMARY KEY (repo, pipeline, spec)
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    inbox_id    INTEGER REFERENCES inbox (id),
    repo        TEXT NOT NULL,
    pipeline    TEXT NOT NULL,
    trigger     TEXT NOT NULL,                     -- JSON TriggerEvent
    plan        TEXT NOT NULL,                     -- JSON Plan
    carried     TEXT,                              -- JSON: what a retry takes over from the run it repeats
    retry_of    INTEGER REFERENCES runs (id),
    status      TEXT NOT NULL,                     -- RunStatus, follows the events
    error       TEXT,
    created_at  INTEGER NOT NULL,
    started_at  INTEGER,
    finished_at INTEGER,
    closed      INTEGER NOT NULL DEFAULT 0,        -- 1 once the engine holds nothing of it but a kept workspace
    kept_space  TEXT,                              -- the workspace of a failed run, kept for a retry
    kept_until  INTEGER
) STRICT;
CREATE INDEX runs_open ON runs (closed) WHERE closed = 0;
CREATE INDEX runs_by_status ON runs (status);
CREATE INDEX runs_by_repo ON runs (repo, id);
CREATE INDEX runs_by_inbox ON runs (inbox_id);
CREATE INDEX runs_kept ON runs (kept_until) WHERE kept_space IS NOT NULL;

-- The facts of a run, in order. A run's state is the fold of its events.
CREATE TABLE run_events (
    run_id      INTEGER NOT NULL REFERENCES runs (id),
    seq         INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    event       TEXT NOT NULL,                     -- JSON RunEvent
    PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;
",
    r"
-- What retention and foreign keys look for.
CREATE INDEX runs_by_retried ON runs (retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX runs_finished ON runs (finished_at) WHERE closed = 1;
CREATE INDEX inbox_by_time ON inbox (at) WHERE state <> 'pending';
",
    r"
-- Personal tokens; of their text only the SHA-256 digest.
CREATE TABLE tokens (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    person      TEXT NOT NULL,
    name        TEXT,
    digest      BLOB NOT NULL UNIQUE,
    created_at  INTEGER NOT NULL,                  -- milliseconds since 1970, as are the others
    created_by  TEXT NOT NULL,
    expires_at  INTEGER,
    revoked_at  INTEGER
) STRICT;

-- Who did what. Each entry holds the hash of the one before it; the hashed form is written down in `audit.rs`.
CREATE TABLE audit (
    seq         INTEGER PRIMARY KEY,               -- from 1, without gaps
    at          INTEGER NOT NULL,                  -- milliseconds since 1970
    who         TEXT NOT NULL,
    person      INTEGER NOT NULL,                  -- 1: who is a person of mainstay.yml
    way         TEXT NOT NULL,                     -- Way: how it is known who
    act         TEXT NOT NULL,                     -- ActKind
    subject     TEXT NOT NULL,
    details     TEXT NOT NULL,                     -- JSON object
    previous    TEXT NOT NULL,
    hash        TEXT NOT NULL
) STRICT;
",
    r"
-- What an environment holds. A row is made when it is first deployed to. Times are milliseconds since 1970.
CREATE TABLE environments (
    name        TEXT PRIMARY KEY,
    current     INTEGER,                           -- the release that should serve
    verified    INTEGER,                           -- the last one that was verified: what a rollback goes back to
    observed    TEXT,                              -- JSON Observation when `current` was put in place: what drift is held against
    attention   TEXT,                              -- why a person has to act, in words
    drift       TEXT,                              -- JSON list of Drift, as of the last look
    looked_at   INTEGER                            -- when that was
) STRICT;

-- Who may act on an environment. A daemon that died leaves its lease; it is taken over once it has run out.
CREATE TABLE leases (
    environment TEXT PRIMARY KEY,
    deploy_id   INTEGER NOT NULL,
    owner       TEXT NOT NULL,                     -- one process: pid, start and a random number
    since       INTEGER NOT NULL,
    until       INTEGER NOT NULL                   -- renewed by a living owner
) STRICT, WITHOUT ROWID;

-- What was put into environments, for good.
CREATE TABLE releases (
    environment TEXT NOT NULL,
    number      INTEGER NOT NULL,                  -- from 1, without gaps
    deploy_id   INTEGER NOT NULL,
    release     TEXT NOT NULL,                     -- JSON Release
    verified_at INTEGER,
    recorded    TEXT,                              -- the commit that tells of it in the environment's ref; and where that is
    PRIMARY KEY (environment, number)
) STRICT, WITHOUT ROWID;

-- What was asked of environments, and what came of it. The state of a deploy is the fold of its events.
CREATE TABLE deploys (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT NOT NULL UNIQUE,              -- the same key is the same request
    environment TEXT NOT NULL,
    kind        TEXT NOT NULL,                     -- DeployKind
    request     TEXT NOT NULL,                     -- JSON DeployRequest
    status      TEXT NOT NULL,                     -- DeployStatus, follows the events
    release     INTEGER,                           -- its release, once it has one
    created_at  INTEGER NOT NULL,
    finished_at INTEGER,
    recorded    INTEGER NOT NULL DEFAULT 0         -- 1 once the environment's ref in Git tells of it
) STRICT;
CREATE INDEX deploys_open ON deploys (environment, id) WHERE finished_at IS NULL;
CREATE INDEX deploys_by_environment ON deploys (environment, id);

CREATE TABLE deploy_events (
    deploy_id   INTEGER NOT NULL REFERENCES deploys (id),
    seq         INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    event       TEXT NOT NULL,                     -- JSON DeployEvent
    PRIMARY KEY (deploy_id, seq)
) STRICT, WITHOUT ROWID;

-- Answers of health rules.
CREATE TABLE probes (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    deploy_id   INTEGER NOT NULL,
    rule        INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    good        INTEGER NOT NULL,
    took_us     INTEGER NOT NULL,
    said        TEXT NOT NULL
) STRICT;
CREATE INDEX probes_by_deploy ON probes (deploy_id, id);

-- Revisions that turned bad: nothing deploys them by itself again.
CREATE TABLE holds (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    environment TEXT NOT NULL,
    repo        TEXT NOT NULL,
    commit_sha  TEXT NOT NULL,
    good_sha    TEXT,                              -- what served before it
    deploy_id   INTEGER,                           -- the deploy that turned bad; none when a person held it
    reason      TEXT NOT NULL,
    by          TEXT NOT NULL,
    strict      INTEGER NOT NULL DEFAULT 0,        -- 1: a later try was rolled back too; only a person lifts it
    since       INTEGER NOT NULL,
    lifted_at   INTEGER,
    lifted_by   TEXT,
    lifted_why  TEXT
) STRICT;
CREATE INDEX holds_in_force ON holds (environment) WHERE lifted_at IS NULL;

-- What people are asked.
CREATE TABLE approvals (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT NOT NULL UNIQUE,
    request     TEXT NOT NULL,                     -- JSON ApprovalRequest
    state       TEXT NOT NULL,                     -- ApprovalState
    note        TEXT,                              -- why it ended as it did
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    ended_at    INTEGER
) STRICT;
CREATE INDEX approvals_open ON approvals (state) WHERE ended_at IS NULL;

CREATE TABLE decisions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    approval_id INTEGER NOT NULL REFERENCES approvals (id),
    person      TEXT NOT NULL,
    verdict     TEXT NOT NULL,                     -- Verdict
    channel     TEXT NOT NULL,                     -- Channel
    inputs      TEXT NOT NULL,                     -- JSON object
    message     TEXT,                              -- what they said along with it
    at          INTEGER NOT NULL,
    withdrawn_at INTEGER
) STRICT;
CREATE UNIQUE INDEX decisions_standing ON decisions (approval_id, person) WHERE withdrawn_at IS NULL;

-- Links that were mailed. The secret half is not here: it is computed from the state folder's key.
CREATE TABLE links (
    id          TEXT PRIMARY KEY,                  -- random, in hex
    approval_id INTEGER NOT NULL REFERENCES approvals (id),
    person      TEXT NOT NULL,
    expires_at  INTEGER NOT NULL,
    used_at     INTEGER,
    void_at     INTEGER,
    code_digest BLOB,                              -- of the six digits mailed last
    code_until  INTEGER,
    code_tries  INTEGER NOT NULL DEFAULT 0,        -- wrong digits, over all that were mailed
    codes       INTEGER NOT NULL DEFAULT 0         -- how often digits were mailed
) STRICT, WITHOUT ROWID;
CREATE INDEX links_by_approval ON links (approval_id, person);

-- Messages that were taken in over a signed webhook: each counts once.
CREATE TABLE heard (
    source      TEXT NOT NULL,
    message     TEXT NOT NULL,
    at          INTEGER NOT NULL,
    PRIMARY KEY (source, message)
) STRICT, WITHOUT ROWID;

-- Messages to people, written with what they tell about and sent afterwards.
CREATE TABLE outbox (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT NOT NULL UNIQUE,              -- the same key is the same message
    channel     TEXT NOT NULL,                     -- `mail`, or the name of a webhook
    recipient   TEXT NOT NULL,                     -- a person's name, or empty
    message     TEXT NOT NULL,                     -- JSON Message
    state       TEXT NOT NULL DEFAULT 'waiting',   -- waiting | sending | sent | given-up
    tries       INTEGER NOT NULL DEFAULT 0,
    next_at     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    sent_at     INTEGER,
    error       TEXT
) STRICT;
CREATE INDEX outbox_due ON outbox (next_at) WHERE state IN ('waiting', 'sending');
CREATE INDEX outbox_open ON outbox (channel, recipient, id) WHERE state IN ('waiting', 'sending');
",
    r"
-- Releases that were rolled back and are to be taken back in their repository. Times are milliseconds since 1970.
CREATE TABLE reverts (
    deploy_id   INTEGER PRIMARY KEY,               -- the deploy that rolled it back
    repo        TEXT NOT NULL,
    wanted      TEXT NOT NULL,                     -- JSON: what is to be taken back
    state       TEXT NOT NULL DEFAULT 'waiting',   -- waiting | open | needless | given-up
    commit_sha  TEXT,                              -- the commit that takes it back: pushed, or about to be
    tries       INTEGER NOT NULL DEFAULT 0,
    next_at     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    ended_at    INTEGER,
    url         TEXT,                              -- the pull request
    why         TEXT                               -- why there is none, or not yet
) STRICT;
CREATE INDEX reverts_due ON reverts (next_at) WHERE state = 'waiting';
CREATE INDEX reverts_by_commit ON reverts (commit_sha) WHERE commit_sha IS NOT NULL;
",
    r"
-- What is wrong with sources of backups now. People are told of a row when it is made.
CREATE TABLE concerns (
    source      TEXT NOT NULL,
    kind        TEXT NOT NULL,                     -- ConcernKind
    since       INTEGER NOT NULL,                  -- milliseconds since 1970
    words       TEXT NOT NULL,
    memo        TEXT,                              -- what must be remembered to undo what was done about it
    PRIMARY KEY (source, kind)
) STRICT, WITHOUT ROWID;
",
];

/// Brings the schema up to date, each step in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = STEPS.len() as i64;
    loop {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > known {
            return Err(StoreError::Newer { found, known });
        }
        let Some(step) = STEPS.get(found as usize) else { return Ok(()) };
        tx.execute_batch(step)?;
        tx.pragma_update(None, "user_version", found + 1)?;
        tx.commit()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_any_step_before_comes_up_to_date_with_its_rows() {
        for taken in 1..STEPS.len() {
            let mut db = Connection::open_in_memory().unwrap();
            for step in &STEPS[..taken] {
                db.execute_batch(step).unwrap();
            }
            db.pragma_update(None, "user_version", taken as i64).unwrap();
            db.execute_batch(
                "INSERT INTO meta VALUES ('instance', '0123abcd');
                 INSERT INTO inbox (repo, git_ref, kind, old, new, generation, details, at)
                 VALUES ('shop', 'refs/heads/main', 'push', '0', '1', 1, '{}', 7);
                 INSERT INTO runs (inbox_id, repo, pipeline, trigger, plan, status, created_at)
                 VALUES (1, 'shop', 'ci', '{}', '{}', 'queued', 8);
                 INSERT INTO run_events VALUES (1, 1, 9, '{}')",
            )
            .unwrap();
            migrate(&mut db).unwrap();
            let count = |table: &str| -> i64 {
                db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
            };
            let counts =
                ["meta", "inbox", "runs", "run_events", "tokens", "audit", "deploys", "outbox", "reverts", "concerns"]
                    .map(count);
            assert_eq!(counts, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], "from step {taken}");
            let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
            assert_eq!(version, STEPS.len() as i64);
        }
    }
}
