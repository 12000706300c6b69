//! What a restore will do, before it does it: plain data, made from the catalogue without I/O, printed by `--dry-run`.
//!
//! In: [`Holdings`], a [`Wish`]. Out: a [`Plan`] that names every object, or a refusal in words that help. What a plan does
//! not name is not needed; what it names is listed.

pub use super::estimate::{Estimate, Rates};
use super::estimate::{Sizes, estimate};
use super::log::planned;
pub use super::log::{LogPart, PlannedHistory, PlannedLog, PlannedSegment};
use super::settings::Stop;
pub use super::tablespaces::Tablespace;
use super::tablespaces::tablespaces;
use crate::backup::catalog::holdings::{Backup, Holdings};
use crate::backup::catalog::manifest::{Manifest, ProofKind};
use crate::backup::catalog::path::{End, NoPath, Path, path};
use crate::backup::catalog::window::{acknowledged, line};
use crate::backup::repository::{Archive, BackupId, Item, Key};
use crate::model::text::{moment, moment_from};
use crate::model::{Lsn, SourceName, SystemId, Timeline};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Which state to go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The newest one.
    Latest,
    /// With every transaction that had ended by this time, by the server's clock, and none that ended later.
    Time(Timestamp),
    /// With everything before this place of the log: what `pg_current_wal_lsn()` said at that moment.
    Lsn(Lsn),
    /// At the newest restore point of this name (`pg_create_restore_point`).
    Point(String),
    /// When this backup ended.
    Backup(BackupId),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Latest => f.write_str("the newest state"),
            Target::Time(time) => write!(f, "the state of {time}"),
            Target::Lsn(lsn) => write!(f, "the state at {lsn}"),
            Target::Point(name) => write!(f, "the restore point `{name}`"),
            Target::Backup(id) => write!(f, "the state when backup {id} ended"),
        }
    }
}

/// The programs that will run the restored server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// Its major version.
    pub major: u32,
    /// The length of its pages in bytes, where it says so.
    pub block_size: Option<u32>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// The state.
    pub target: Target,
    /// On this timeline; on the newest unless it is given.
    pub timeline: Option<Timeline>,
    /// From this backup; from the newest that will do unless it is given.
    pub backup: Option<BackupId>,
    /// What will run it; not checked unless it is given.
    pub program: Option<Program>,
    /// Where tablespaces go that do not go where they were.
    pub tablespaces: BTreeMap<Tablespace, PathBuf>,
    /// For the estimate.
    pub rates: Rates,
}

impl Wish {
    /// That state, everything else as usual.
    pub fn new(target: Target) -> Wish {
        let (timeline, backup, program, tablespaces) = (None, None, None, BTreeMap::new());
        Wish { target, timeline, backup, program, tablespaces, rates: Rates::default() }
    }
}

/// An object of the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlannedObject {
    /// Its name.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// Its length as stored.
    pub stored_bytes: u64,
    /// Its length when opened.
    pub plain_bytes: u64,
    /// The SHA-256 of its opened bytes, as the manifest says.
    pub plain_sha256: String,
}

/// A backup that the base is the difference to, itself or through others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ancestor {
    /// It.
    pub manifest: Manifest,
    /// Its objects, without those of tablespaces that the base has no more.
    pub chunks: Vec<PlannedObject>,
    /// Where its chunks stand in their archives.
    pub index: PlannedObject,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogEnd {
    /// The byte after its last one.
    pub lsn: Lsn,
    /// On this timeline.
    pub timeline: Timeline,
    /// How far it was acknowledged to the server, as far as is known.
    pub acknowledged: Option<Lsn>,
    /// A time, by the server's clock, at which it had come this far at most.
    pub at: Option<Timestamp>,
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// The version of this form: 1.
    pub version: u32,
    /// The source.
    pub source: SourceName,
    /// Its cluster.
    pub system: SystemId,
    /// What was asked for.
    pub target: Target,
    /// The timeline that is followed.
    pub timeline: Timeline,
    /// The timelines on the way to it, oldest first, each with the place where it is left; the last is not left.
    pub line: Vec<(Timeline, Option<Lsn>)>,
    /// The backup it begins with; the newest of its chain when it is a difference.
    pub base: Manifest,
    /// What that is the difference to, the whole one first; empty when it is whole itself.
    pub ancestors: Vec<Ancestor>,
    /// Its objects.
    pub chunks: Vec<PlannedObject>,
    /// Where its chunks stand in their archives.
    pub index: PlannedObject,
    /// Where its tablespaces go.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// What is fetched for the base, its ancestors included, in stored bytes.
    pub base_bytes: u64,
    /// What the base takes on disk at the most while it is put together, in bytes, by archive: a difference lies beside what it
    /// is put on top of until that is done.
    #[serde(serialize_with = "by_name")]
    pub room: BTreeMap<Archive, u64>,
    /// What is fetched of the log up to the target, in stored bytes.
    pub log_bytes: u64,
    /// The log.
    pub log: PlannedLog,
    /// The place that must be reached.
    pub must_reach: Lsn,
    /// Where the log ends.
    pub end: LogEnd,
    /// How long it will take.
    pub estimate: Estimate,
    /// What should be known before it is done.
    pub warnings: Vec<String>,
}

/// Why there is no plan. `Display` fits after "failed to plan the restore: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing is there.
    #[error("there is no backup of {0} in the repository that can be used{1}")]
    NoBackup(SourceName, String),
    /// Which timeline is not known.
    #[error("there is no log and no backup of {0} in the repository")]
    Nothing(SourceName),
    /// No path from the backup to the target.
    #[error(transparent)]
    Path(#[from] NoPath),
    /// The time lies before every backup is consistent.
    #[error(
        "{time} lies before {}, when the oldest backup that can be used ended\nhint: that is the earliest state that can be restored",
        moment_from(*.oldest)
    )]
    TimeTooEarly {
        /// The time asked for.
        time: Timestamp,
        /// The earliest.
        oldest: Timestamp,
    },
    /// The time lies after the newest that is known of the log.
    #[error(
        "{time} lies after the end of the log{}: nothing says what happened until then\nhint: `--latest` restores all there is, up to {lsn}{}",
        .at.map(|at| format!(", which was last seen at {}", moment(at))).unwrap_or_default(),
        .at.map(|at| format!("; `--at {}` is the last time that can be named", moment(at))).unwrap_or_default()
    )]
    TimeTooLate {
        /// The time asked for.
        time: Timestamp,
        /// Where the log ends.
        lsn: Lsn,
        /// The newest time that is known.
        at: Option<Timestamp>,
    },
    /// The programs are of another version.
    #[error(
        "the backup is of PostgreSQL {backup}, and the server to be started is {program}\nhint: replay takes the same major version; `pg_upgrade` comes after the restore"
    )]
    Version {
        /// The backup's.
        backup: u32,
        /// The program's.
        program: u32,
    },
    /// The programs have pages of another length.
    #[error(
        "the backup has pages of {backup} bytes, and the server to be started was built for {program}\nhint: use a build with the same block size"
    )]
    PageSize {
        /// The backup's.
        backup: u32,
        /// The program's.
        program: u32,
    },
    /// The manifest does not name what it must.
    #[error("the manifest of backup {0} does not name its {1}")]
    Manifest(BackupId, &'static str),
    /// A backup cannot be the difference to what it names.
    #[error(
        "backup {backup} begins at {start}, and {parent}, to which it should be the difference, at {parent_start}\nhint: choose another backup with `--backup`"
    )]
    Difference {
        /// The difference.
        backup: BackupId,
        /// Where it begins.
        start: Lsn,
        /// What it names.
        parent: BackupId,
        /// Where that begins.
        parent_start: Lsn,
    },
    /// A tablespace is named that is none.
    #[error("the backup has no tablespace with {0}\nhint: it has {1}")]
    Tablespace(Tablespace, String),
}

fn as_text<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn by_name<S: Serializer>(room: &BTreeMap<Archive, u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(room.iter().map(|(archive, bytes)| (archive.to_string(), bytes)))
}

impl Plan {
    /// What tells this plan from others when a half-done restore is found: the same base to the same target.
    pub fn digest(&self) -> String {
        use sha2::{Digest as _, Sha256};
        let spaces: Vec<String> =
            self.tablespaces.iter().map(|(oid, path)| format!("{oid} {}", path.display())).collect();
        let text = format!(
            "{} {} {} {} {:?} {}",
            self.source,
            self.system,
            self.base.backup,
            self.timeline,
            self.target,
            spaces.join("\n")
        );
        hex::encode(Sha256::digest(text.as_bytes()))
    }

    /// The timeline that holds a place that was reached: the record that ends there is of it.
    pub(super) fn timeline_at(&self, reached: Lsn) -> Option<Timeline> {
        self.line.iter().find(|(_, left)| left.is_none_or(|left| reached <= left)).map(|(timeline, _)| *timeline)
    }

    /// Where recovery stops, when that is known without reading the log; `None` for its end.
    pub(super) fn stop(&self) -> Option<Stop> {
        match &self.target {
            Target::Latest => None,
            Target::Time(time) => Some(Stop::Time(*time)),
            Target::Lsn(lsn) => Some(Stop::Before(*lsn)),
            Target::Point(name) => Some(Stop::Point(name.clone())),
            Target::Backup(_) => Some(Stop::Consistent),
        }
    }
}

/// Plans a restore of a cluster.
///
/// # Errors
/// When the state cannot be restored; nothing has been read or written then.
pub fn plan(holdings: &Holdings, wish: &Wish) -> Result<Plan, PlanError> {
    let source = &holdings.cluster.source;
    let backup_wish = match &wish.target {
        Target::Backup(id) => Some(id),
        _ => wish.backup.as_ref(),
    };
    let timeline = timeline(holdings, wish, backup_wish)?;
    let mut refusals: Vec<(BackupId, PlanError)> = Vec::new();
    for backup in candidates(holdings, backup_wish)? {
        match with(holdings, wish, backup, timeline) {
            Ok(mut plan) => {
                for (id, why) in &refusals {
                    plan.warnings.push(format!("the newer backup {id} is not used: {}", first_line(why)));
                }
                check_program(&plan.base, wish.program)?;
                return Ok(plan);
            }
            Err(why) => refusals.push((backup.id().clone(), why)),
        }
    }
    // The refusal that says most: of the newest backup, unless that is merely too new.
    let too_new = |why: &PlanError| {
        matches!(
            why,
            PlanError::TimeTooEarly { .. } | PlanError::Path(NoPath::TooEarly { .. } | NoPath::OtherBranch { .. })
        )
    };
    let best = refusals.iter().position(|(_, why)| !too_new(why)).or(refusals.len().checked_sub(1));
    match best.map(|index| refusals.swap_remove(index).1) {
        Some(why) => Err(why),
        None => Err(PlanError::NoBackup(source.clone(), unusable(holdings))),
    }
}

fn first_line(error: &PlanError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Why backups that are there cannot be used.
fn unusable(holdings: &Holdings) -> String {
    let bad = holdings.backups.keys().filter_map(|id| Some(format!("; {id}: {}", holdings.chain(id).err()?)));
    let doubtful = holdings.doubtful.keys().map(|id| format!("; the manifest of {id} is not good"));
    bad.chain(doubtful).collect()
}

/// The timeline that is followed: the one asked for, the backup's own when it is its end that is asked for, the newest.
fn timeline(holdings: &Holdings, wish: &Wish, backup: Option<&BackupId>) -> Result<Timeline, PlanError> {
    let own = match &wish.target {
        Target::Backup(_) => backup.and_then(|id| holdings.backups.get(id)).map(|backup| backup.manifest.stop_timeline),
        _ => None,
    };
    let known = wish.timeline.or(own).or_else(|| holdings.newest_timeline());
    known.ok_or_else(|| PlanError::Nothing(holdings.cluster.source.clone()))
}

/// Backups to begin with, the best first: the newest leaves the least log to replay.
fn candidates<'a>(holdings: &'a Holdings, wanted: Option<&BackupId>) -> Result<Vec<&'a Backup>, PlanError> {
    match wanted {
        None => Ok(holdings.usable().collect()),
        Some(id) => {
            let chain = holdings.chain(id).map_err(NoPath::from)?;
            Ok(chain.last().copied().into_iter().collect())
        }
    }
}

fn with(holdings: &Holdings, wish: &Wish, backup: &Backup, timeline: Timeline) -> Result<Plan, PlanError> {
    let manifest = &backup.manifest;
    let end = match &wish.target {
        Target::Latest | Target::Point(_) => End::Newest,
        Target::Backup(_) => End::Consistent,
        // Everything before a place: the last byte that is needed is the one before it.
        Target::Lsn(lsn) if *lsn == manifest.stop => End::Consistent,
        Target::Lsn(lsn) => End::At(Lsn(lsn.0.saturating_sub(1))),
        Target::Time(time) => end_of_time(holdings, manifest, timeline, *time)?,
    };
    let path = path(holdings, backup.id(), timeline, end)?;
    let log = planned(holdings, &path, !matches!(end, End::Newest)).map_err(PlanError::Path)?;
    let (chunks, index) = base_objects(holdings, manifest, manifest)?;
    let ancestors = ancestors(holdings, &path.chain)?;
    let tablespaces = tablespaces(manifest, &wish.tablespaces)?;
    let below = ancestors.iter().flat_map(|one| one.chunks.iter().chain([&one.index]));
    let base_bytes = below.chain(&chunks).chain([&index]).map(|object| object.stored_bytes).sum();
    let room = room(&path.chain);
    let log_bytes = path.log_bytes();
    let must_reach = match &wish.target {
        // How far a time or a name lies is seen on the way.
        Target::Time(_) | Target::Point(_) | Target::Backup(_) => manifest.stop,
        Target::Latest | Target::Lsn(_) => path.end,
    };
    let acknowledged = acknowledged(holdings, &path.line);
    let end = LogEnd { lsn: path.to, timeline, acknowledged, at: holdings.time_of(timeline, path.to) };
    let log_plain = path.end.0.saturating_sub(path.from.0);
    let estimate = estimate(wish.rates, Sizes { base: base_bytes, log_stored: log_bytes, log: log_plain });
    Ok(Plan {
        version: 1,
        source: holdings.cluster.source.clone(),
        system: holdings.cluster.system,
        target: wish.target.clone(),
        timeline,
        line: path.line.iter().map(|step| (step.timeline, (step.ends.0 < u64::MAX).then_some(step.ends))).collect(),
        warnings: warnings(holdings, backup, &path, &end),
        base: manifest.clone(),
        ancestors,
        chunks,
        index,
        tablespaces,
        base_bytes,
        room,
        log_bytes,
        log,
        must_reach,
        end,
        estimate,
    })
}

/// How far the log must go for a time: to the first place that is known to be of a later one.
fn end_of_time(
    holdings: &Holdings,
    manifest: &Manifest,
    timeline: Timeline,
    time: Timestamp,
) -> Result<End, PlanError> {
    if time < manifest.ended {
        return Err(PlanError::TimeTooEarly { time, oldest: manifest.ended });
    }
    let line = line(holdings, timeline).map_err(|why| NoPath::Line { timeline, why })?;
    let on_line = holdings.clock.iter().filter(|tick| {
        line.iter().any(|step| step.timeline == tick.timeline && tick.lsn > step.begins && tick.lsn <= step.ends)
    });
    let later = on_line.clone().filter(|tick| tick.at >= time && tick.lsn > manifest.stop).map(|tick| tick.lsn).min();
    match later {
        Some(lsn) => Ok(End::At(Lsn(lsn.0 - 1))),
        // A silent server writes no log, and the newest frontier still says that time went by.
        None => match on_line.map(|tick| (tick.at, tick.lsn)).max() {
            Some((at, _)) if at >= time => Ok(End::Newest),
            newest => {
                let end = path(holdings, &manifest.backup, timeline, End::Newest)?.to;
                Err(PlanError::TimeTooLate { time, lsn: end, at: newest.map(|(at, _)| at) })
            }
        },
    }
}

/// All of a chain but its newest.
fn ancestors(holdings: &Holdings, chain: &[&Backup]) -> Result<Vec<Ancestor>, PlanError> {
    let mut ancestors = Vec::new();
    for pair in chain.windows(2) {
        let (parent, child) = (&pair[0].manifest, &pair[1].manifest);
        // What was read whole before its parent began may lack what that one has.
        if child.start <= parent.start || child.timeline < parent.timeline {
            let (backup, parent, start, parent_start) =
                (child.backup.clone(), parent.backup.clone(), child.start, parent.start);
            return Err(PlanError::Difference { backup, start, parent, parent_start });
        }
        let (chunks, index) = base_objects(holdings, parent, &chain[chain.len() - 1].manifest)?;
        ancestors.push(Ancestor { manifest: parent.clone(), chunks, index });
    }
    Ok(ancestors)
}

/// What lies on disk at once at the most: what comes first, and the largest difference beside it.
fn room(chain: &[&Backup]) -> BTreeMap<Archive, u64> {
    let mut room: BTreeMap<Archive, (u64, u64)> = BTreeMap::new();
    for facts in &chain[chain.len() - 1].manifest.archives {
        room.insert(facts.archive, (0, 0));
    }
    for facts in chain.iter().flat_map(|backup| &backup.manifest.archives) {
        match room.get_mut(&facts.archive) {
            Some((first @ 0, _)) => *first = facts.bytes,
            Some((_, beside)) => *beside = facts.bytes.max(*beside),
            None => {}
        }
    }
    room.into_iter().map(|(archive, (first, beside))| (archive, first.saturating_add(beside))).collect()
}

/// The objects of a backup, of the archives that `newest` of its chain has too.
fn base_objects(
    holdings: &Holdings,
    manifest: &Manifest,
    newest: &Manifest,
) -> Result<(Vec<PlannedObject>, PlannedObject), PlanError> {
    let id = &manifest.backup;
    let facts: BTreeMap<&str, _> = manifest.objects.iter().map(|object| (object.key.as_str(), object)).collect();
    let find = |item: Item, what| -> Result<PlannedObject, PlanError> {
        let key = holdings.key(item);
        let found = facts.get(key.to_string().as_str()).ok_or_else(|| PlanError::Manifest(id.clone(), what))?;
        let (stored_bytes, plain_bytes) = (found.stored.bytes, found.plain.bytes);
        Ok(PlannedObject { key, stored_bytes, plain_bytes, plain_sha256: found.plain.sha256.clone() })
    };
    let mut chunks = Vec::new();
    let wanted = |archive| newest.archives.iter().any(|facts| facts.archive == archive);
    for facts in manifest.archives.iter().filter(|facts| wanted(facts.archive)) {
        for number in 0..facts.chunks {
            chunks.push(find(Item::Chunk { backup: id.clone(), archive: facts.archive, number }, "chunks")?);
        }
    }
    Ok((chunks, find(Item::Index(id.clone()), "index")?))
}

fn check_program(manifest: &Manifest, program: Option<Program>) -> Result<(), PlanError> {
    let Some(program) = program else { return Ok(()) };
    if program.major != manifest.server.major() {
        return Err(PlanError::Version { backup: manifest.server.major(), program: program.major });
    }
    match program.block_size {
        Some(size) if size != manifest.server.block_size => {
            Err(PlanError::PageSize { backup: manifest.server.block_size, program: size })
        }
        _ => Ok(()),
    }
}

fn warnings(holdings: &Holdings, backup: &Backup, path: &Path<'_>, end: &LogEnd) -> Vec<String> {
    let mut warnings = Vec::new();
    match backup.proven() {
        Some(proof) if proof.kind == ProofKind::Started => {}
        Some(proof) => warnings.push(format!(
            "no server was ever started from backup {}; it was checked at {}",
            backup.id(),
            moment(proof.at)
        )),
        None => warnings.push(format!("backup {} was never checked", backup.id())),
    }
    if let Some(acknowledged) = end.acknowledged.filter(|acknowledged| *acknowledged < path.end) {
        warnings.push(format!(
            "the log after {acknowledged} was stored and not yet acknowledged to the server; it is used"
        ));
    }
    if let Some(first) = path.cut.iter().map(|object| object.first).min() {
        warnings.push(format!("the log has a hole at {}: what is stored from {first} on is not used", path.to));
    }
    if let Some(frontier) = holdings.newest_frontier()
        && frontier.timeline != end.timeline
    {
        warnings.push(format!(
            "the newest log is on timeline {}, and this restore follows timeline {}",
            frontier.timeline, end.timeline
        ));
    }
    if holdings.newest_frontier().is_none() {
        warnings.push(
            "nothing says how far the log was acknowledged: what was deleted at its end cannot be noticed".into(),
        );
    }
    warnings
}
