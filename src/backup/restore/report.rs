//! What was restored, as plain data: for people, for scripts, for the record of a drill.

use super::checks::Checked;
use super::container::{Container, Keep};
use super::place::Place;
use super::plan::{Plan, Target};
use super::start::{Host, LOG_FILE, Reached, listens};
use crate::backup::repository::BackupId;
use crate::model::text::{moment, shell_word};
use crate::model::{Lsn, SourceName, SystemId, Timeline};
use jiff::Timestamp;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How long each part took, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Seconds {
    /// The base, to the last byte synced.
    pub base: f64,
    /// The log: until the server was open, or all of it was laid out.
    pub log: f64,
    /// All.
    pub total: f64,
    /// What the plan said.
    pub planned: u64,
}

/// What was made in a container engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Contained {
    /// The image.
    pub image: String,
    /// The volume that holds the data; `None` for a folder.
    pub volume: Option<String>,
    /// The volume that what was there before is in.
    pub moved_aside: Option<String>,
    /// The container that runs; `None` where no server was started.
    pub name: Option<String>,
    /// Where it is published.
    pub published: Option<String>,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The source.
    pub source: SourceName,
    /// Its cluster.
    pub system: SystemId,
    /// What was asked for.
    pub target: Target,
    /// The backup it began with.
    pub base: BackupId,
    /// Where the files are.
    pub data: PathBuf,
    /// Where that is now which was in the place before, and in the folders of tablespaces.
    pub moved_aside: Vec<PathBuf>,
    /// Where that is in a container engine; `None` where none is concerned.
    pub container: Option<Contained>,
    /// The timeline that was replayed last; `None` while no server was started.
    pub timeline: Option<Timeline>,
    /// The byte after the last one that was replayed.
    pub reached: Option<Lsn>,
    /// The timeline that the server writes now.
    pub new_timeline: Option<Timeline>,
    /// When the last transaction that was restored had ended, by the source's clock, as the server says: one whose commit is
    /// the very last record is not counted. `None` when there was no other after the base, or no server was started.
    pub last_transaction: Option<Timestamp>,
    /// What the server was asked, and answered.
    pub checks: Vec<Checked>,
    /// How long it took.
    pub seconds: Seconds,
    /// How to reach the server, or to start it.
    pub next: String,
    /// What was changed on the way.
    pub notes: Vec<String>,
    /// What should be looked at, with what to do.
    pub warnings: Vec<String>,
}

impl Report {
    pub(super) fn new(plan: &Plan, place: &Place, notes: Vec<String>) -> Report {
        Report {
            source: plan.source.clone(),
            system: plan.system,
            target: plan.target.clone(),
            base: plan.base.backup.clone(),
            data: place.data.clone(),
            moved_aside: place.moved_aside.clone(),
            container: None,
            timeline: None,
            reached: None,
            new_timeline: None,
            last_transaction: None,
            checks: Vec::new(),
            seconds: Seconds { planned: plan.estimate.total_secs, ..Seconds::default() },
            next: String::new(),
            notes,
            warnings: plan.warnings.iter().cloned().chain(collations(plan)).collect(),
        }
    }

    /// Whether every check passed.
    pub fn good(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    /// In a container engine: what was made there.
    pub(super) fn contained(&mut self, container: &Container) {
        let (wanted, server) = (&container.wanted, container.wanted.server.as_ref());
        let volume = match &wanted.keep {
            Keep::Volume(name) => Some(name.clone()),
            Keep::Folder(_) => None,
        };
        self.notes
            .extend(container.aside.as_ref().map(|aside| format!("what was in that volume is in the volume {aside}")));
        self.container = Some(Contained {
            image: wanted.image.clone(),
            volume,
            moved_aside: container.aside.clone(),
            name: server.map(|server| server.name.clone()),
            published: server.map(|server| std::net::SocketAddr::new(server.listen, server.port).to_string()),
        });
    }

    /// Files for an image: how to go on.
    pub(super) fn run_by_hand(&mut self, container: &Container) {
        let at = match &container.wanted.keep {
            Keep::Volume(name) => name.clone(),
            Keep::Folder(path) => path.display().to_string(),
        };
        let volume = shell_word(&format!("{at}:{}", container.mount));
        self.next = format!("docker run -d -v {volume} {}", container.wanted.image);
        let stage = super::feeder::STAGE;
        self.notes.push(format!(
            "a server that is started on it recovers, then opens; all of the log is in {stage}/ in it; remove that then"
        ));
    }

    /// Files only: how to go on.
    pub(super) fn start_by_hand(&mut self, plan: &Plan, data: &Path) {
        let (folder, major) = (shell_word(&data.display().to_string()), plan.base.server.major());
        self.next = format!(
            "postgres -D {folder}    # PostgreSQL {major}, as the owner of the folder; it recovers, then opens"
        );
        let stage = super::feeder::STAGE;
        self.notes.push(format!("all of the log is in {stage}/ there; remove it when the server is open"));
    }

    /// A server: how far it came, and how to reach it.
    pub(super) fn reached(&mut self, plan: &Plan, reached: &Reached, host: Host<'_>) {
        self.timeline = Some(reached.timeline);
        self.reached = Some(reached.lsn);
        self.new_timeline = Some(reached.now);
        self.last_transaction = reached.last_transaction;
        match host {
            Host::Local(server) => {
                // A client's own idea of where the socket is differs from package to package.
                let at = listens(&self.data).map(|at| format!("-h {} ", shell_word(&at))).unwrap_or_default();
                self.next = format!("psql {at}-p {} -U {} -d postgres", server.port, shell_word(&server.role));
                self.notes.push(format!("the messages of the server are in {LOG_FILE} in its folder"));
            }
            Host::Container(container) => {
                let name = container.wanted.server.as_ref().map_or("", |server| &server.name);
                self.next = format!("docker exec -it -u {} {name} psql -d postgres", container.user());
                self.notes.push(format!("the messages of the server: docker logs {name}"));
                self.notes.push("who may connect to its port stands in its pg_hba.conf".to_owned());
            }
        }
        if let Some(at) = plan.end.at.filter(|_| plan.target == Target::Latest && reached.last_transaction.is_none()) {
            // Servers do not count the one whose commit is the log's last record.
            self.notes.push(format!(
                "between the base backup and the log's last record no transaction ended; the log was last seen at {}",
                moment(at)
            ));
        }
    }
}

/// Indexes of text are sorted by the machine's collation, which may have another version than the source's.
fn collations(plan: &Plan) -> Vec<String> {
    // These sort by code point, the same everywhere.
    let fixed =
        |collation: &str| matches!(collation.split_whitespace().nth(1), Some("C" | "C.UTF-8" | "C.utf8" | "POSIX"));
    let of = |(name, facts): (&String, &crate::backup::catalog::manifest::DatabaseFacts)| {
        let collation = facts.collation.as_ref().filter(|collation| !fixed(collation))?;
        let quoted = name.replace('"', "\"\"");
        Some(format!(
            "indexes of text in database {name} were built with collation {collation}: where this machine has another version, run \
             REINDEX DATABASE \"{quoted}\"; ALTER DATABASE \"{quoted}\" REFRESH COLLATION VERSION"
        ))
    };
    plan.base.server.databases.iter().filter_map(of).collect()
}

/// Times the parts of a restore.
pub(super) struct Clock {
    began: Instant,
    base: Option<f64>,
    planned: u64,
}

impl Clock {
    pub(super) fn new(planned: u64) -> Clock {
        Clock { began: Instant::now(), base: None, planned }
    }

    pub(super) fn base_done(&mut self) {
        self.base = Some(self.began.elapsed().as_secs_f64());
    }

    pub(super) fn end(&self) -> Seconds {
        let total = self.began.elapsed().as_secs_f64();
        let base = self.base.unwrap_or(total);
        Seconds { base, log: total - base, total, planned: self.planned }
    }
}
