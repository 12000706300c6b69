//! A copy into a running server. In: a [`Plan`], the server's address. Out: databases that are whole, and a [`Report`].
//!
//! Every database is made under a name that says that it is not finished. When all of them are, one transaction gives them
//! their names; what was there before is put aside in the same transaction. Interrupted anywhere, what was there is untouched,
//! and what was begun is seen to be unfinished. Nothing is ever dropped.

use super::dump::GLOBALS_MAX_BYTES;
use super::feed::Feed;
use super::ground::{Ground, drop_of, unfinished};
use super::plan::{NoCopy, Plan, Wanted};
use super::programs::{Client, ProgramError, Programs, Way};
use super::roles::{Act, act};
use super::server::open;
use super::sql::{quoted, statements};
use crate::backup::catalog::dumps::DatabaseDump;
use crate::backup::catalog::index::CatalogueError;
use crate::backup::catalog::manifest::ObjectFacts;
use crate::backup::repository::{BackupId, DumpStream, Repository, RepositoryError};
use crate::backup::restore::{Check, Checked, ask_at};
use crate::backup::seal::{Opener, SealError};
use crate::backup::source::postgres::{Address, Connection, PostgresError};
use crate::model::text::clean;
use crate::model::{SourceName, SystemId};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// What servers cut longer names to (`NAMEDATALEN`).
pub(super) const NAME_BYTES: usize = 63;

/// Where a copy goes, and how.
#[derive(Clone)]
pub struct Options {
    /// The running server. Its database is where questions about the whole server are asked.
    pub into: Address,
    /// Where `pg_restore` comes from.
    pub programs: Way,
    /// Put aside databases that hold something.
    pub force: bool,
    /// What the server is asked afterwards.
    pub checks: Vec<Check>,
}

/// Why a copy was not restored. `Display` fits after "failed to restore: ".
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Which copy is not known.
    #[error(transparent)]
    Plan(#[from] NoCopy),
    /// The repository could not be read.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// An object does not open.
    #[error("open {name}: {source}")]
    Open {
        /// Its name.
        name: String,
        /// Why.
        source: SealError,
    },
    /// An object is not the one that it should be.
    #[error("read {name}: {why}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The server.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A program of PostgreSQL.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A pipe to it.
    #[error("hand the copy to pg_restore: {0}")]
    Feed(std::io::Error),
    /// It ended well and had not read everything.
    #[error("restore the database: pg_restore ended before it had read all of it")]
    NotTaken,
    /// The server is not as it must be. Nothing was done.
    #[error("{0}")]
    Refused(String),
    /// What a program or a copy says does not read.
    #[error("{0}")]
    Strange(String),
    /// It failed after it had begun.
    #[error(
        "{error}\nhint: unfinished databases are left for you to look at, and the same command begins anew; remove them with: {}{}",
        .left.join("; "), .before.iter().map(|note| format!("\nhint: from before: {note}")).collect::<String>()
    )]
    Left {
        /// Why.
        error: Box<RestoreError>,
        /// What removes what was begun.
        left: Vec<String>,
        /// What is left of restores before this one, in words: it takes room, too.
        before: Option<String>,
    },
}

/// A database that was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Restored {
    /// Its name.
    pub name: String,
    /// Bytes of its archive.
    pub bytes: u64,
    /// The name of what was there before.
    pub moved_aside: Option<String>,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The source.
    pub source: SourceName,
    /// The cluster that the copy is of.
    pub system: SystemId,
    /// What was asked for.
    pub wanted: Wanted,
    /// The copy.
    pub copy: BackupId,
    /// When that began: nothing that was committed before is missing.
    pub began: Timestamp,
    /// When it ended: nothing later is in it.
    pub ended: Timestamp,
    /// The server, without a password.
    pub into: String,
    /// Its databases.
    pub databases: Vec<Restored>,
    /// Roles that were made.
    pub roles_made: BTreeSet<String>,
    /// Roles that were there, and were left as they are.
    pub roles_left: BTreeSet<String>,
    /// What the server was asked, and answered.
    pub checks: Vec<Checked>,
    /// What was done on the way.
    pub notes: Vec<String>,
    /// What should be looked at.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// Whether every check passed.
    pub fn good(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }
}

/// Looks whether the copy can go there, and does nothing: what stands in its way, what will be put aside, what is left there
/// of restores that did not end.
///
/// # Errors
/// When it cannot, or that cannot be found out.
pub async fn survey(plan: &Plan, options: &Options) -> Result<Vec<String>, RestoreError> {
    let (ground, client) = ready(plan, options).await?;
    client.close().await;
    let aside = ground.aside.iter().map(|name| format!("the database {} is put aside", clean(name)));
    Ok(aside.chain(ground.left()).collect())
}

/// The server as it is, and programs that reach it.
async fn ready(plan: &Plan, options: &Options) -> Result<(Ground, Client), RestoreError> {
    let programs = Programs::find("pg_restore", &options.programs, archive_major(plan)).await?;
    match Ground::survey(plan, options).await {
        Ok(ground) => {
            let client = programs.against(&options.into, &ground.place, ground.seen.system).await?;
            Ok((ground, client))
        }
        Err(error) => {
            programs.close().await;
            Err(error)
        }
    }
}

/// Restores a copy. `tell` hears of every object that was read, with its bytes as stored.
///
/// # Errors
/// When any part of it fails. Then no database has got its name, and what was there is as it was; roles that were made stay.
pub async fn restore(
    repository: Arc<dyn Repository>,
    opener: Opener,
    plan: &Plan,
    options: &Options,
    tell: Arc<dyn Fn(u64) + Send + Sync>,
) -> Result<Report, RestoreError> {
    let began = Instant::now();
    let (ground, client) = ready(plan, options).await?;
    let feed = Feed { repository, opener, tell };
    let report = report(plan, options);
    let mut work = Work { plan, options, client, feed, ground, report, begun: Vec::new() };
    let done = work.all().await;
    let Work { client, begun, ground, mut report, .. } = work;
    client.close().await;
    if let Err(error) = done {
        let left: Vec<String> = begun.iter().map(|name| drop_of(name)).collect();
        let before = ground.left();
        return Err(if left.is_empty() { error } else { RestoreError::Left { error: Box::new(error), left, before } });
    }
    report.notes.extend(ground.left());
    for check in &options.checks {
        report.checks.push(ask_at(&options.into, check).await);
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

fn report(plan: &Plan, options: &Options) -> Report {
    let mut report = Report {
        source: plan.cluster.source.clone(),
        system: plan.cluster.system,
        wanted: plan.wanted.clone(),
        copy: plan.copy.backup.clone(),
        began: plan.copy.began,
        ended: plan.copy.ended,
        into: options.into.to_string(),
        databases: Vec::new(),
        roles_made: BTreeSet::new(),
        roles_left: BTreeSet::new(),
        checks: Vec::new(),
        notes: Vec::new(),
        warnings: Vec::new(),
        seconds: 0.0,
    };
    if !plan.copy.role_passwords {
        report.warnings.push(
            "the copy has no passwords of roles, since its role could not read them: give them to the roles that were made"
                .to_owned(),
        );
    }
    report.notes.push("plans are made without statistics until ANALYZE has run in each database".to_owned());
    report
}

/// The oldest `pg_restore` that reads the archives.
fn archive_major(plan: &Plan) -> u32 {
    let digits = plan.copy.program.split_once("(PostgreSQL) ").map_or("", |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or_else(|_| plan.copy.major())
}

struct Work<'a> {
    plan: &'a Plan,
    options: &'a Options,
    client: Client,
    feed: Feed,
    ground: Ground,
    report: Report,
    /// Unfinished databases.
    begun: Vec<String>,
}

impl Work<'_> {
    async fn all(&mut self) -> Result<(), RestoreError> {
        self.globals().await?;
        let now = Timestamp::now();
        // One transaction for all: every database has its name, or none.
        let mut last = vec!["BEGIN".to_owned()];
        for database in &self.plan.copy.databases {
            let random = getrandom::u32().map_err(|error| RestoreError::Feed(std::io::Error::other(error)))?;
            let unfinished = unfinished(database.oid, now, random);
            last.extend(self.one(database, &unfinished).await?);
            let moved_aside = self.ground.aside.contains(&database.name).then(|| aside(&database.name, now));
            if let Some(aside) = &moved_aside {
                last.push(format!("ALTER DATABASE {} RENAME TO {}", quoted(&database.name), quoted(aside)));
            }
            last.push(format!("ALTER DATABASE {} RENAME TO {}", quoted(&unfinished), quoted(&database.name)));
            self.report.databases.push(Restored {
                name: database.name.clone(),
                bytes: database.stream.bytes,
                moved_aside,
            });
        }
        crate::failpoint!("dump: before restored databases take their names");
        last.push("COMMIT".to_owned());
        let mut connection = self.connect().await?;
        connection.query(&last.join(";\n")).await?;
        connection.close().await;
        self.begun.clear();
        Ok(())
    }

    /// A connection of its own for each part: filling a database takes hours, and one that idles for so long may be cut.
    async fn connect(&self) -> Result<Connection, PostgresError> {
        open(&self.options.into, &self.ground.place).await
    }

    /// Roles, and what belongs to them.
    async fn globals(&mut self) -> Result<(), RestoreError> {
        let copy = &self.plan.copy;
        if copy.globals.bytes > GLOBALS_MAX_BYTES {
            return Err(RestoreError::Strange(format!(
                "read the roles of the copy: they take {} bytes",
                copy.globals.bytes
            )));
        }
        let mut text = Vec::new();
        for facts in copy.objects_of(DumpStream::Globals) {
            text.extend(self.feed.object(facts.clone()).await?);
        }
        let text = text_of(text, "the roles of the copy")?;
        let statements =
            statements(&text).map_err(|why| RestoreError::Strange(format!("read the roles of the copy: {why}")))?;
        let mut connection = self.connect().await?;
        let before = self.ground.seen.roles.clone();
        let mut now = before.clone();
        let mut tablespaces = false;
        for statement in &statements {
            let sql = match act(statement, &before, &now) {
                Act::Make(name, sql) => {
                    now.insert(name.clone());
                    self.report.roles_made.insert(name);
                    sql
                }
                Act::Run(sql) => sql,
                Act::LeaveRole(name) => {
                    self.report.roles_left.insert(name);
                    continue;
                }
                Act::LeaveTablespace => {
                    tablespaces = true;
                    continue;
                }
                Act::Unknown(head) => {
                    let warning = format!("a statement among the roles of the copy was left out: {head} …");
                    self.report.warnings.push(warning);
                    continue;
                }
            };
            connection.query(&sql).await?;
        }
        connection.close().await;
        if tablespaces {
            let note = "tablespaces were left out: everything is in the default one of the server".to_owned();
            self.report.notes.push(note);
        }
        Ok(())
    }

    /// Makes one database under an unfinished name and fills it. Answers what is still to be run when it takes its own.
    async fn one(&mut self, database: &DatabaseDump, unfinished: &str) -> Result<Vec<String>, RestoreError> {
        let objects = self.plan.copy.objects_of(DumpStream::Database(database.oid)).to_vec();
        let sql = self.about_database(&objects).await?;
        let sql =
            statements(&sql).map_err(|why| RestoreError::Strange(format!("read what makes the database: {why}")))?;
        let mut later = vec![format!("COMMENT ON DATABASE {} IS NULL", quoted(unfinished))];
        let mut made = false;
        let mut connection = self.connect().await?;
        for statement in &sql {
            let renamed = statement.renamed(&database.name, unfinished);
            if statement.begins(&["create", "database"]) {
                if made || statement.name(2).as_deref() != Some(database.name.as_str()) {
                    return Err(RestoreError::Strange("read what makes the database: it makes another one".into()));
                }
                // Noted before it is made: a lost answer leaves one, too.
                self.begun.push(unfinished.to_owned());
                connection.query(&renamed).await?;
                made = true;
                let words = format!("not a whole copy of {} of {}", database.name, self.plan.copy.backup);
                let words = words.replace('\\', "\\\\").replace('\'', "''");
                let comment = format!("COMMENT ON DATABASE {} IS E'{words}'", quoted(unfinished));
                connection.query(&comment).await?;
            } else if statement.find("database").is_some() {
                later.push(renamed);
            }
        }
        connection.close().await;
        if !made {
            return Err(RestoreError::Strange("read what makes the database: nothing does".into()));
        }
        self.feed.put(&self.client, &objects, unfinished).await?;
        Ok(later)
    }

    /// The statements of an archive that are about the database itself: they name it.
    async fn about_database(&self, objects: &[ObjectFacts]) -> Result<String, RestoreError> {
        let list = self.feed.told(&self.client, objects, &["--create", "--list"]).await?;
        let list = self.client.file(&about(&String::from_utf8_lossy(&list))).await?;
        let args = ["--create", "--schema-only", "--no-tablespaces", "--use-list", &list.path, "--file=-"];
        let sql = self.feed.told(&self.client, objects, &args).await?;
        text_of(sql, "what makes the database")
    }
}

/// The lines of an archive's list that are about the database itself.
fn about(list: &str) -> String {
    const KINDS: [&str; 5] =
        ["DATABASE ", "DATABASE PROPERTIES ", "ACL - DATABASE ", "COMMENT - DATABASE ", "SECURITY LABEL - DATABASE "];
    let is = |line: &&str| {
        // `3390; 1262 16388 DATABASE - shop postgres`
        let mut words = line.splitn(4, ' ');
        let number = words.next().is_some_and(|word| word.ends_with(';') && !word.starts_with(';'));
        let rest = words.nth(2).unwrap_or_default();
        number && KINDS.iter().any(|kind| rest.starts_with(kind))
    };
    let numbers = list.lines().filter(is).filter_map(|line| line.split_once(';'));
    numbers.map(|(number, _)| format!("{number};\n")).collect()
}

fn text_of(bytes: Vec<u8>, what: &str) -> Result<String, RestoreError> {
    String::from_utf8(bytes).map_err(|_| {
        RestoreError::Strange(format!(
            "read {what}: it is not UTF-8\nhint: restore this copy with pg_restore by hand; docs/repository-format.md says how"
        ))
    })
}

/// A name for what was there, short enough for every server.
fn aside(name: &str, now: Timestamp) -> String {
    let end = format!("_before_{}", now.strftime("%Y%m%d%H%M%S"));
    let fits = name.floor_char_boundary(NAME_BYTES - end.len());
    format!("{}{end}", &name[..fits])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_the_database_is_found_in_a_list() {
        let list = ";\n; Archive created at 2026-11-23\n;     dbname: DATABASE \n3390; 1262 16388 DATABASE - shop postgres\n\
                    215; 1259 16389 TABLE public DATABASE postgres\n3391; 0 0 ACL - DATABASE shop postgres\n\
                    3392; 0 0 DATABASE PROPERTIES - my shop postgres\n3393; 0 0 ACL public TABLE t postgres\n";
        assert_eq!(about(list), "3390;\n3391;\n3392;\n");
    }

    #[test]
    fn what_is_put_aside_has_a_name_that_fits() {
        let now: Timestamp = "2026-11-23T10:15:00Z".parse().unwrap();
        assert_eq!(aside("shop", now), "shop_before_20261123101500");
        let long = aside(&"ä".repeat(31), now);
        assert!(long.len() <= NAME_BYTES && long.ends_with("_before_20261123101500"), "{long}");
    }
}
