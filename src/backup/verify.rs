//! Is everything still what it was? In: a repository, whom to believe; for the full mode an identity. Out: a [`Report`] with
//! findings by name, and [`Proof`] objects that say of each backup what was found. Callers: the keeper, the command `verify`.
//!
//! A check is incremental. What a signed proof says was read before is not read again, but for a sample; what is new is. That
//! every object is there with its length is seen from the listing each time. *Damage* (an object that is gone, or not what was
//! written) is a finding; a place that *cannot be reached* is none: it ends the check, and nothing is proven by it.

mod dumps;
mod object;

use crate::backup::catalog::holdings::{Backup, Holdings, LogObject, Missing, Object};
use crate::backup::catalog::index::{BadKind, Catalogue, CatalogueError};
use crate::backup::catalog::manifest::{LogRead, Manifest, ObjectFacts, Proof, ProofKind, VERSION};
use crate::backup::catalog::retention::Sum;
use crate::backup::catalog::window::{Hole, HoleKind, line, on_line, ranges, window};
use crate::backup::repository::{BackupId, Cluster, DumpItem, Item, Key, Put, Repository, RepositoryError};
use crate::backup::seal::{Checker, Opener, SealError, Sealer};
use crate::model::text::count;
use crate::model::{Lsn, SourceName, Timeline};
use futures_util::stream::StreamExt as _;
use jiff::Timestamp;
use object::{Asked, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;

/// Objects read at once: with segments and chunks of 16 MiB, sealed and plain, some 130 MiB at most.
const READS_AT_ONCE: usize = 4;
/// Names that a proof carries: enough to see what kind of damage it is.
const NAMES_MAX: usize = 5;
/// Tries to find a free number for a proof; more than one means that another check runs.
const NUMBER_TRIES: u64 = 16;

/// How to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Of what was read by an earlier check, one object in so many is read again; 0 for none. 1 reads everything.
    pub sample: u64,
    /// Chooses which: another number, another sample.
    pub seed: u64,
    /// The present, by our clock.
    pub now: Timestamp,
}

/// An object, or a stretch of the log, that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name.
    pub name: String,
    /// What kind of thing is wrong.
    pub kind: BadKind,
    /// The same in words.
    pub why: String,
}

/// What was found of one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfBackup {
    /// Which.
    pub backup: BackupId,
    /// What was read of it now.
    pub read: Sum,
    /// What earlier checks had read, and this one did not.
    pub known: Sum,
    /// What is wrong with it, its own stretch of the log included. Empty: it is good.
    pub findings: Vec<Finding>,
    /// Whether all of it that was to be read could be. When not, nothing is said of it.
    pub whole: bool,
}

/// What was found of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfCluster {
    /// Which.
    pub cluster: Cluster,
    /// Its backups, by age.
    pub backups: Vec<OfBackup>,
    /// Its logical copies, by age.
    pub dumps: Vec<OfBackup>,
    /// What was read of the log, and its history files.
    pub log_read: Sum,
    /// What earlier checks had read of the log, and this one did not.
    pub log_known: Sum,
    /// Holes in the log; those that were acknowledged are findings as well.
    pub holes: Vec<Hole>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The place.
    pub place: String,
    /// What was done.
    pub kind: ProofKind,
    /// Each cluster of the source.
    pub clusters: Vec<OfCluster>,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// Names that Mainstay does not give.
    pub foreign: u64,
    /// Proofs that were stored.
    pub proofs: u64,
    /// Why the check ended before it was done: the place cannot be reached, or refuses. No sign of damage.
    pub ended_early: Option<String>,
}

impl Report {
    /// Exit code of a command: 0 all is good, 1 something is damaged, 3 the place could not be reached and nothing was seen.
    pub fn exit_code(&self) -> u8 {
        match (&self.findings[..], &self.ended_early) {
            ([], None) => 0,
            ([], Some(_)) => 3,
            _ => 1,
        }
    }
}

/// Why a check could not be done. No sign of damage. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The repository could not be read.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The identity does not open what is there.
    #[error("open {name}: {error}")]
    Identity {
        /// What.
        name: String,
        /// Why.
        error: SealError,
    },
    /// A proof could not be sealed or stored.
    #[error("store a proof: {0}")]
    Proof(String),
}

/// Checks what `repository` holds of `source`; with an `opener`, everything that is read is opened too. With a `sealer`, what
/// was found is stored as proofs.
///
/// # Errors
/// When the repository cannot be read at all, or the identity is the wrong one. A place that fails later ends the check early.
pub async fn verify(
    repository: &dyn Repository,
    checker: &Checker,
    opener: Option<&Opener>,
    sealer: Option<&Sealer>,
    source: &SourceName,
    settings: Settings,
) -> Result<Report, VerifyError> {
    let catalogue = Catalogue::read(repository, checker, source).await?;
    let kind = if opener.is_some() { ProofKind::Opened } else { ProofKind::Stored };
    let bad = catalogue.bad.iter().filter(|bad| bad.kind != BadKind::Gone || !marked(&catalogue, &bad.key));
    let findings = bad.map(|bad| Finding { name: bad.key.to_string(), kind: bad.kind, why: bad.why.clone() });
    let mut report = Report {
        place: catalogue.place.clone(),
        kind,
        clusters: Vec::new(),
        findings: findings.collect(),
        foreign: catalogue.foreign.len() as u64,
        proofs: 0,
        ended_early: None,
    };
    for holdings in catalogue.clusters.values() {
        let check = Check { repository, checker, opener, holdings, kind, settings };
        let began = std::time::Instant::now();
        let (of, log) = check.cluster(&mut report).await?;
        for backup in of.backups.iter().chain(&of.dumps) {
            report.findings.extend(backup.findings.iter().cloned());
        }
        if let Some(sealer) = sealer {
            report.proofs += check.prove(sealer, &of, log, began.elapsed().as_secs()).await?;
            report.proofs += check.prove_dumps(sealer, &of, began.elapsed().as_secs()).await?;
        }
        report.clusters.push(of);
    }
    if let Some((_, newest)) = catalogue.sources.last_key_value()
        && report.ended_early.is_none()
    {
        let asked = Asked { key: newest.key.clone(), facts: None, log: None };
        match object::ask(repository, checker, opener, asked).await? {
            Outcome::Good(_) | Outcome::Passed => {}
            Outcome::Bad(finding) => report.findings.push(finding),
            Outcome::Unread(why) => report.ended_early = Some(why),
        }
    }
    // A stretch of the log that is wrong is wrong for a backup too: said once.
    report.findings.sort_by(|a, b| (&a.name, &a.why).cmp(&(&b.name, &b.why)));
    report.findings.dedup();
    Ok(report)
}

fn marked(catalogue: &Catalogue, key: &Key) -> bool {
    let name = key.to_string();
    let mut marks = catalogue.clusters.values().flat_map(|holdings| &holdings.marks);
    marks.any(|marked| marked.mark.keys.contains(&name))
}

struct Check<'a> {
    repository: &'a dyn Repository,
    checker: &'a Checker,
    opener: Option<&'a Opener>,
    holdings: &'a Holdings,
    kind: ProofKind,
    settings: Settings,
}

impl Check<'_> {
    async fn cluster(&self, report: &mut Report) -> Result<(OfCluster, Vec<LogRead>), VerifyError> {
        let holdings = self.holdings;
        let cluster = holdings.cluster.clone();
        let (log_read, log_known) = (Sum::default(), Sum::default());
        let (backups, dumps) = (Vec::new(), Vec::new());
        let mut of = OfCluster { cluster, backups, dumps, log_read, log_known, holes: window(holdings).holes };
        for hole in of.holes.iter().filter(|hole| hole.kind == HoleKind::Acknowledged) {
            let name = format!("the log of timeline {} from {} to {}", hole.timeline, hole.from, hole.to);
            let why = "it was acknowledged, and is not there".to_owned();
            report.findings.push(Finding { name, kind: BadKind::Gone, why });
        }
        let (known, log_wrong) = self.log(&mut of, report).await?;
        for backup in holdings.backups.values() {
            let of_backup = self.backup(backup, &log_wrong, report).await?;
            of.backups.push(of_backup);
        }
        for dump in holdings.dumps.good.values() {
            let of_dump = self.dump(dump, report).await?;
            of.dumps.push(of_dump);
        }
        Ok((of, known))
    }

    /// The log and the history files. Answers what of the log is known to be good, and which parts are not.
    async fn log(
        &self,
        of: &mut OfCluster,
        report: &mut Report,
    ) -> Result<(Vec<LogRead>, Vec<(LogObject, Finding)>), VerifyError> {
        let before = known_log(self.holdings, self.kind);
        let mut asked = Vec::new();
        for history in self.holdings.histories.values() {
            asked.push((None, Asked { key: history.object.key.clone(), facts: None, log: None }));
        }
        let mut good: BTreeMap<Timeline, Vec<(Lsn, Lsn)>> = BTreeMap::new();
        for object in self.holdings.log.values().flatten() {
            let key = self.holdings.log_key(object);
            // Pieces are always read: a range that was read as pieces says nothing of the segment that comes after them.
            let known = object.whole && before.iter().any(|range| holds(range, object));
            if known {
                good.entry(object.timeline).or_default().push((object.first, object.last));
            }
            if known && !self.sampled(&key) {
                of.log_known.objects += 1;
                of.log_known.bytes += object.bytes;
                continue;
            }
            let size = self.holdings.segment_size;
            asked.push((
                Some(*object),
                Asked { key, facts: None, log: Some((*object, size, self.holdings.cluster.system)) },
            ));
        }
        let mut wrong = Vec::new();
        let mut outcomes = futures_util::stream::iter(asked)
            .map(|(log, asked)| async move { (log, self.ask(asked).await) })
            .buffered(READS_AT_ONCE);
        while let Some((log, outcome)) = outcomes.next().await {
            match outcome? {
                Outcome::Good(bytes) => {
                    (of.log_read.objects, of.log_read.bytes) = (of.log_read.objects + 1, of.log_read.bytes + bytes);
                    if let Some(object) = log.filter(|object| object.whole) {
                        good.entry(object.timeline).or_default().push((object.first, object.last));
                    }
                }
                Outcome::Passed => {}
                Outcome::Bad(finding) => {
                    report.findings.push(finding.clone());
                    wrong.extend(log.map(|object| (object, finding)));
                }
                Outcome::Unread(why) => {
                    report.ended_early.get_or_insert(why);
                    break;
                }
            }
        }
        let mut known = Vec::new();
        for (timeline, mut ranges) in good {
            ranges.retain(|(first, _)| {
                !wrong.iter().any(|(object, _)| object.timeline == timeline && object.first == *first)
            });
            known.extend(merged(timeline, ranges));
        }
        Ok((known, wrong))
    }

    /// One backup, and its own stretch of the log.
    async fn backup(
        &self,
        backup: &Backup,
        log_wrong: &[(LogObject, Finding)],
        report: &mut Report,
    ) -> Result<OfBackup, VerifyError> {
        let manifest = &backup.manifest;
        let (read, known) = (Sum::default(), Sum::default());
        let mut of = OfBackup {
            backup: manifest.backup.clone(),
            read,
            known,
            findings: Vec::new(),
            whole: report.ended_early.is_none(),
        };
        let missing = backup.missing.iter();
        of.findings.extend(missing.map(|Missing { name, kind, why }| Finding {
            name: name.clone(),
            kind: *kind,
            why: why.clone(),
        }));
        let own = |object: &LogObject| object.first <= manifest.stop && object.last > manifest.start;
        of.findings.extend(log_wrong.iter().filter(|(object, _)| own(object)).map(|(_, finding)| finding.clone()));
        // Without what it is the difference to it is nothing.
        if let Err(why) = self.holdings.parent(backup) {
            of.findings.push(Finding {
                name: backup.object.key.to_string(),
                kind: BadKind::Gone,
                why: why.to_string(),
            });
        }
        // Without its log it never becomes consistent.
        if let Some(why) = lacks_log(self.holdings, manifest) {
            of.findings.push(Finding { name: backup.object.key.to_string(), kind: BadKind::Gone, why });
        }
        let proven = backup.proven().is_some_and(|proof| proof.kind >= self.kind);
        let gone = |facts: &&ObjectFacts| backup.missing.iter().all(|missing| missing.name != facts.key);
        let mut asked = Vec::new();
        for facts in manifest.objects.iter().filter(gone) {
            let Ok(key) = facts.key.parse::<Key>() else { continue };
            if proven && !self.sampled(&key) {
                of.known.objects += 1;
                of.known.bytes += facts.stored.bytes;
                continue;
            }
            asked.push(Asked { key, facts: Some(facts.clone()), log: None });
        }
        if report.ended_early.is_some() {
            return Ok(of);
        }
        self.read(asked, &mut of, report).await?;
        Ok(of)
    }

    /// Reads objects of a backup, and takes down what was found.
    async fn read(&self, asked: Vec<Asked>, of: &mut OfBackup, report: &mut Report) -> Result<(), VerifyError> {
        let mut outcomes = futures_util::stream::iter(asked).map(|asked| self.ask(asked)).buffered(READS_AT_ONCE);
        while let Some(outcome) = outcomes.next().await {
            match outcome? {
                Outcome::Good(bytes) => (of.read.objects, of.read.bytes) = (of.read.objects + 1, of.read.bytes + bytes),
                Outcome::Passed => {}
                Outcome::Bad(finding) => of.findings.push(finding),
                Outcome::Unread(why) => {
                    report.ended_early.get_or_insert(why);
                    of.whole = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads one object and judges it.
    async fn ask(&self, asked: Asked) -> Result<Outcome, VerifyError> {
        let outcome = object::ask(self.repository, self.checker, self.opener, asked.clone()).await?;
        if let Outcome::Bad(Finding { kind: BadKind::Gone, .. }) = &outcome
            && self.let_go(&asked.key).await
        {
            return Ok(Outcome::Passed);
        }
        Ok(outcome)
    }

    /// Whether an object that was listed and is gone was taken by those who may: an expiry that had marked it, or a segment
    /// that has taken the place of its pieces.
    async fn let_go(&self, key: &Key) -> bool {
        if self.holdings.marks.iter().any(|marked| marked.mark.keys.contains(&key.to_string())) {
            return true;
        }
        let Key::Of(cluster, Item::Piece { timeline, first, .. }) = key else { return false };
        let Some(size) = self.holdings.segment_size else { return false };
        let segment = Key::Of(cluster.clone(), Item::Segment(size.name(*timeline, *first)));
        match self.repository.receipt(&segment).await {
            Ok(receipt) => self.checker.receipt(&segment, &receipt).is_ok(),
            Err(_) => false,
        }
    }

    /// Whether an object that is known to be good is read again this time.
    fn sampled(&self, key: &Key) -> bool {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        (self.settings.seed, key).hash(&mut hasher);
        self.settings.sample > 0 && hasher.finish().is_multiple_of(self.settings.sample)
    }

    /// Stores what was found: for each backup that is newly good or newly bad, and for the newest good one how much of the log
    /// has been read.
    async fn prove(
        &self,
        sealer: &Sealer,
        of: &OfCluster,
        log: Vec<LogRead>,
        took_secs: u64,
    ) -> Result<u64, VerifyError> {
        let newest_good =
            of.backups.iter().rev().find(|one| one.whole && one.findings.is_empty()).map(|one| &one.backup);
        let mut stored = 0;
        for one in of.backups.iter().filter(|one| one.whole) {
            let Some(backup) = self.holdings.backups.get(&one.backup) else { continue };
            let good = one.findings.is_empty();
            let detail = detail(one);
            let carries = Some(&one.backup) == newest_good;
            let news = match (good, backup.proofs.last().map(|(_, last)| last)) {
                (true, _) if backup.proven().is_none_or(|proof| proof.kind < self.kind) => true,
                (true, Some(last)) => carries && last.log != log,
                (true, None) => true,
                (false, last) => last.is_none_or(|last| last.good || last.detail != detail),
            };
            if !news {
                continue;
            }
            let log = if carries { log.clone() } else { Vec::new() };
            let (version, at, kind) = (VERSION, self.settings.now, self.kind);
            let proof = Proof { version, at, kind, good, detail, reached: None, took_secs, log };
            let item = |number| Item::Proof(backup.id().clone(), number);
            self.put_proof(sealer, item, &backup.proof_objects, &proof).await?;
            stored += 1;
        }
        Ok(stored)
    }

    async fn put_proof(
        &self,
        sealer: &Sealer,
        item: impl Fn(u64) -> Item,
        before: &[Object],
        proof: &Proof,
    ) -> Result<(), VerifyError> {
        let number = |key: &Key| match key {
            Key::Of(_, Item::Proof(_, number) | Item::Dump(_, DumpItem::Proof(number))) => *number,
            _ => 0,
        };
        let next = before.iter().map(|object| number(&object.key)).max().unwrap_or(0) + 1;
        let failed = |error: &dyn std::fmt::Display| VerifyError::Proof(error.to_string());
        let text = serde_json::to_vec(proof).map_err(|error| failed(&error))?;
        for number in next..next + NUMBER_TRIES {
            let key = self.holdings.key(item(number));
            let sealed = sealer.seal(&key, &text, BTreeMap::new()).map_err(|error| failed(&error))?;
            let put: Result<Put, RepositoryError> = self.repository.put_new(&key, &sealed).await;
            if put.map_err(|error| failed(&error))? == Put::Stored {
                return Ok(());
            }
        }
        Err(failed(&"every number is taken by another check that is running"))
    }
}

/// What is missing of the log between where a backup starts and where it is consistent.
fn lacks_log(holdings: &Holdings, manifest: &Manifest) -> Option<String> {
    let line = match line(holdings, manifest.stop_timeline) {
        Ok(line) => line,
        Err(why) => return Some(format!("timeline {} cannot be followed: {why}", manifest.stop_timeline)),
    };
    let ranges = ranges(&on_line(holdings, &line));
    let reach = ranges.iter().find(|range| range.0 <= manifest.start && manifest.start < range.1).map(|range| range.1);
    let to = reach.unwrap_or(manifest.start);
    (to < manifest.stop).then(|| {
        format!("the log that it needs, from {} to {}, is missing from {to} on", manifest.start, manifest.stop)
    })
}

fn detail(of: &OfBackup) -> String {
    if of.findings.is_empty() {
        return format!("{} read, {} read before", count(of.read.objects, "object"), of.known.objects);
    }
    let named: Vec<String> =
        of.findings.iter().take(NAMES_MAX).map(|finding| format!("{}: {}", finding.name, finding.why)).collect();
    let more = of.findings.len().saturating_sub(NAMES_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{more}", named.join("; "))
}

/// What earlier checks of this kind or a stronger one have read of the log.
fn known_log(holdings: &Holdings, kind: ProofKind) -> Vec<LogRead> {
    let mut by_timeline: BTreeMap<Timeline, Vec<(Lsn, Lsn)>> = BTreeMap::new();
    let proofs = holdings.backups.values().flat_map(|backup| &backup.proofs).map(|(_, proof)| proof);
    for range in proofs.filter(|proof| proof.good && proof.kind >= kind).flat_map(|proof| &proof.log) {
        by_timeline.entry(range.timeline).or_default().push((range.from, range.to));
    }
    by_timeline.into_iter().flat_map(|(timeline, ranges)| merged(timeline, ranges)).collect()
}

fn merged(timeline: Timeline, mut ranges: Vec<(Lsn, Lsn)>) -> Vec<LogRead> {
    ranges.sort_unstable();
    let mut merged: Vec<LogRead> = Vec::new();
    for (from, to) in ranges {
        match merged.last_mut() {
            Some(last) if from <= last.to => last.to = last.to.max(to),
            _ => merged.push(LogRead { timeline, from, to }),
        }
    }
    merged
}

fn holds(range: &LogRead, object: &LogObject) -> bool {
    range.timeline == object.timeline && range.from <= object.first && object.last <= range.to
}
