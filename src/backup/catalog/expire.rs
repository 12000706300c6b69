//! Lets go what nothing needs. In: a repository, a policy, who signs. Out: a [`Report`]; with `dry_run` only the plan.
//! Callers: the keeper, the command `expire`.
//!
//! Two phases. What is unneeded is *marked* in a signed object; what was marked for the grace, and is still unneeded by a
//! fresh reading, is deleted: manifests first, newest first, so that a backup that is seen is never a broken one; then their
//! objects; then the log, oldest first. Every step may be repeated: a run that is killed leaves marks that stand, and objects
//! that the next run finds.

use super::holdings::{Holdings, Marked, Object};
use super::index::{Bad, Catalogue, CatalogueError};
use super::manifest::{Mark, VERSION};
use super::marks::{self, MARK_KEYS, Marks, Tidy, ripe};
use super::retention::{self, Go, Plan, Policy, Refused, Sum};
use crate::backup::repository::{BackupId, Cluster, Deleted, DumpItem, Item, Key, Put, Repository, RepositoryError};
use crate::backup::seal::{Checker, SealError, Sealer};
use crate::model::{Lsn, SourceName};
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Objects marked or deleted by one run at most: some 50 MiB of names. The rest is there for the next run.
pub const OBJECTS_MAX: usize = 100_000;
/// Deletions at once, within one class of objects.
const DELETES_AT_ONCE: usize = 8;
/// Tries to find a free number for a mark; more than one means that another expiry runs.
const NUMBER_TRIES: u64 = 16;

/// What to expire, and how.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What stays.
    pub policy: Policy,
    /// How long what is marked waits: [`marks::GRACE`] unless somebody says otherwise.
    pub grace: Duration,
    /// Only the plan.
    pub dry_run: bool,
    /// The present, by our clock.
    pub now: Timestamp,
}

/// What became of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfCluster {
    /// Which.
    pub cluster: Cluster,
    /// What stays and what may go, or why nothing may.
    pub plan: Result<Plan, Refused>,
    /// What was marked long enough to go now.
    pub due: Sum,
    /// What was marked before, and still waits.
    pub waiting: Sum,
    /// What is marked by this run for the first time.
    pub fresh: Sum,
    /// What was marked before, and is needed again.
    pub rescued: Vec<String>,
}

/// What an expiry did, or with `dry_run` would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The place.
    pub place: String,
    /// Whether it was only a plan.
    pub dry_run: bool,
    /// Each cluster of the source.
    pub clusters: Vec<OfCluster>,
    /// What was deleted.
    pub deleted: Sum,
    /// What was gone already when it was to be deleted: another run, or an earlier one that was killed.
    pub absent: u64,
    /// What the place keeps, by a lock or because these credentials may not delete. Tried again by the next run.
    pub locked: Vec<String>,
    /// Names that Mainstay does not give; they stay.
    pub foreign: u64,
    /// Documents that cannot be believed; they stay, and what they may speak of.
    pub bad: Vec<Bad>,
}

impl Report {
    /// Whether something needs a person: a cluster that was refused, a document that is bad.
    pub fn troubled(&self) -> bool {
        !self.bad.is_empty() || self.clusters.iter().any(|one| one.plan.is_err())
    }
}

/// Why an expiry failed. Nothing was deleted but what [`Report`]s of earlier runs would have named. `Display` fits after
/// "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ExpireError {
    /// The repository could not be read.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The place cannot be reached, or refuses.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A mark could not be sealed.
    #[error("seal a mark: {0}")]
    Seal(#[from] SealError),
    /// Nothing is listed.
    #[error(
        "expire {source_name}: nothing is listed in {place}\nhint: is it the right place, and its disk mounted? An empty listing is \
         not believed"
    )]
    Empty {
        /// The place.
        place: String,
        /// The source.
        source_name: String,
    },
    /// Two listings of the same minute do not agree.
    #[error(
        "expire {source_name}: {name} was listed a moment ago, and is not now\nhint: another expiry may be running; try again"
    )]
    Changed {
        /// The source.
        source_name: String,
        /// What is not listed any more.
        name: String,
    },
    /// Another expiry takes the numbers of marks.
    #[error(
        "store a mark for {source_name}: every number is taken by another expiry that is running\nhint: try again when it is done"
    )]
    Crowded {
        /// The source.
        source_name: String,
    },
}

/// Lets go what nothing of `source` needs.
///
/// # Errors
/// When the repository cannot be read, its listing is doubtful, or the place fails. What was marked or deleted until then
/// stays so; running it again goes on.
pub async fn expire(
    repository: &dyn Repository,
    checker: &Checker,
    sealer: &Sealer,
    source: &SourceName,
    settings: Settings,
) -> Result<Report, ExpireError> {
    let run = Run { repository, checker, sealer, source, settings };
    let first = run.read().await?;
    let planned = run.plan(&first);
    if settings.dry_run {
        return Ok(run.report(&first, planned));
    }
    for of in &planned {
        run.mark(&first, of).await?;
    }
    // What goes is decided by a reading that is younger than any mark, and must show all that the first one did.
    let second = run.read().await?;
    run.same(&first, &second)?;
    let again = run.plan(&second);
    let mut report = run.report(&second, again);
    for (of, before) in report.clusters.iter_mut().zip(&planned) {
        // What was fresh in the first reading is what this run marked.
        if of.cluster == before.cluster {
            (of.fresh, of.waiting) = (before.fresh, before.waiting);
            of.rescued.clone_from(&before.rescued);
        }
    }
    let due: Vec<_> = report.clusters.iter().map(|of| (of.cluster.system, run.due(&first, &second, of))).collect();
    for (system, due) in due {
        if let Some(holdings) = second.clusters.get(&system) {
            run.delete(due, holdings, &mut report).await?;
        }
    }
    run.tidy(&second, &mut report).await?;
    Ok(report)
}

struct Run<'a> {
    repository: &'a dyn Repository,
    checker: &'a Checker,
    sealer: &'a Sealer,
    source: &'a SourceName,
    settings: Settings,
}

impl Run<'_> {
    async fn read(&self) -> Result<Catalogue, ExpireError> {
        let catalogue = Catalogue::read(self.repository, self.checker, self.source).await?;
        if catalogue.clusters.is_empty() {
            return Err(ExpireError::Empty { place: catalogue.place, source_name: self.source.to_string() });
        }
        Ok(catalogue)
    }

    /// What may go of each cluster, by the names that are marked now.
    fn plan(&self, catalogue: &Catalogue) -> Vec<OfCluster> {
        let as_of = retention::as_of(catalogue, self.settings.now);
        let place_now = catalogue.newest_written.unwrap_or(self.settings.now);
        let mut all = Vec::new();
        for holdings in catalogue.clusters.values() {
            let plan = retention::plan(holdings, &self.settings.policy, as_of);
            let cluster = holdings.cluster.clone();
            let (due, waiting, fresh) = (Sum::default(), Sum::default(), Sum::default());
            let mut of = OfCluster { cluster, plan, due, waiting, fresh, rescued: Vec::new() };
            if let Ok(plan) = &of.plan {
                let marks = Marks::of(holdings, self.settings.now);
                for dropped in &plan.drop {
                    let sum = match marks.get(&dropped.object.key.to_string()) {
                        None => &mut of.fresh,
                        Some(marked) if ripe(marked, self.settings.now, place_now, self.settings.grace) => &mut of.due,
                        Some(_) => &mut of.waiting,
                    };
                    (sum.objects, sum.bytes) = (sum.objects + 1, sum.bytes + dropped.object.bytes);
                }
                let going = names(plan);
                let marked = holdings.marks.iter().flat_map(|marked| &marked.mark.keys);
                of.rescued = marked.filter(|name| !going.contains(*name) && holdings.has(name)).cloned().collect();
            }
            all.push(of);
        }
        all
    }

    fn report(&self, catalogue: &Catalogue, clusters: Vec<OfCluster>) -> Report {
        Report {
            place: catalogue.place.clone(),
            dry_run: self.settings.dry_run,
            clusters,
            deleted: Sum::default(),
            absent: 0,
            locked: Vec::new(),
            foreign: catalogue.foreign.len() as u64,
            bad: catalogue.bad.clone(),
        }
    }

    /// Marks what may go and is not marked. A mark is also written when something waits, though it may be empty: the time
    /// that the place gives it is the present by the place's clock, and what waits is judged by that one too.
    async fn mark(&self, catalogue: &Catalogue, of: &OfCluster) -> Result<(), ExpireError> {
        let (Ok(plan), Some(holdings)) = (&of.plan, catalogue.clusters.get(&of.cluster.system)) else { return Ok(()) };
        let marks = Marks::of(holdings, self.settings.now);
        let fresh = plan.drop.iter().map(|dropped| dropped.object.key.to_string());
        let fresh: Vec<String> = fresh.filter(|name| marks.get(name).is_none()).take(OBJECTS_MAX).collect();
        let mut number = next_number(catalogue, holdings);
        if fresh.is_empty() && of.due.objects + of.waiting.objects > 0 && !self.recent(catalogue) {
            self.put_mark(&of.cluster, &mut number, self.settings.now, Vec::new()).await?;
        }
        for keys in fresh.chunks(MARK_KEYS) {
            self.put_mark(&of.cluster, &mut number, self.settings.now, keys.to_vec()).await?;
        }
        Ok(())
    }

    /// Whether the place's clock is known well enough: something was written in the last grace since every mark.
    fn recent(&self, catalogue: &Catalogue) -> bool {
        let Some(place_now) = catalogue.newest_written else { return false };
        let mut marks = catalogue.clusters.values().flat_map(|holdings| &holdings.marks);
        marks.all(|marked| {
            let ours = ripe(marked, self.settings.now, Timestamp::MAX, self.settings.grace);
            !ours || ripe(marked, self.settings.now, place_now, self.settings.grace)
        })
    }

    async fn put_mark(
        &self,
        cluster: &Cluster,
        number: &mut u64,
        at: Timestamp,
        keys: Vec<String>,
    ) -> Result<(), ExpireError> {
        let mark = Mark { version: VERSION, at, keys };
        let text = serde_json::to_vec(&mark).map_err(|error| SealError::Broken(error.to_string()))?;
        for _ in 0..NUMBER_TRIES {
            let key = Key::Of(cluster.clone(), Item::Mark(*number));
            *number += 1;
            let sealed = self.sealer.seal(&key, &text, BTreeMap::new())?;
            if self.repository.put_new(&key, &sealed).await? == Put::Stored {
                return Ok(());
            }
        }
        Err(ExpireError::Crowded { source_name: self.source.to_string() })
    }

    /// The second reading must show every backup of the first one.
    fn same(&self, first: &Catalogue, second: &Catalogue) -> Result<(), ExpireError> {
        for (system, before) in &first.clusters {
            let after = second.clusters.get(system);
            let has = |id| after.is_some_and(|after| after.backups.contains_key(id) || after.doubtful.contains_key(id));
            if let Some(id) = before.backups.keys().find(|id| !has(id)) {
                let name = before.key(Item::Manifest(id.clone())).to_string();
                return Err(ExpireError::Changed { source_name: self.source.to_string(), name });
            }
            let dumps = after.map(|after| &after.dumps);
            let has = |id| dumps.is_some_and(|now| now.good.contains_key(id) || now.doubtful.contains_key(id));
            if let Some(id) = before.dumps.good.keys().find(|id| !has(id)) {
                let name = before.key(Item::Dump(id.clone(), DumpItem::Manifest)).to_string();
                return Err(ExpireError::Changed { source_name: self.source.to_string(), name });
            }
        }
        Ok(())
    }

    /// What goes now: unneeded by both readings, and marked long enough by a mark of the first one.
    fn due(&self, first: &Catalogue, second: &Catalogue, of: &OfCluster) -> Vec<(Go, Object)> {
        let (Ok(plan), Some(before)) = (&of.plan, first.clusters.get(&of.cluster.system)) else { return Vec::new() };
        let Some(now) = second.clusters.get(&of.cluster.system) else { return Vec::new() };
        let place_now = second.newest_written.unwrap_or(self.settings.now);
        let marks = |holdings| Marks::of(holdings, self.settings.now);
        let (before, now) = (marks(before), marks(now));
        let due = |object: &Object| {
            let name = object.key.to_string();
            let ripe = |marked| ripe(marked, self.settings.now, place_now, self.settings.grace);
            before.get(&name).is_some_and(ripe) && now.get(&name).is_some_and(ripe)
        };
        let due = plan.drop.iter().filter(|dropped| due(&dropped.object));
        due.take(OBJECTS_MAX).map(|dropped| (dropped.why, dropped.object.clone())).collect()
    }

    /// Deletes in the plan's order, one class after the other.
    async fn delete(
        &self,
        due: Vec<(Go, Object)>,
        holdings: &Holdings,
        report: &mut Report,
    ) -> Result<(), ExpireError> {
        let mut held = Held { holdings, backups: HashSet::new(), dumps: HashSet::new(), floor: Lsn(u64::MAX) };
        // A backup of which the manifest stays is seen, so it stays whole, also when its manifest only waits: marks of one
        // backup's parts may be of different ages.
        let going: HashSet<&Key> = due.iter().map(|(_, object)| &object.key).collect();
        let seen = holdings.backups.values().map(|backup| &backup.object.key);
        let seen = seen.chain(holdings.dumps.good.values().map(|dump| &dump.object.key));
        seen.filter(|key| !going.contains(key)).for_each(|key| held.hold(key));
        for class in due.chunk_by(|a, b| a.0 == b.0) {
            // Of two manifests the newer one goes first, and is gone before the older one goes: it may be the difference to it.
            let at_once = if class[0].0 == Go::Manifest { 1 } else { DELETES_AT_ONCE };
            // Manifests one by one: what one that stays holds is known before the next is looked at.
            for some in class.chunks(if at_once == 1 { 1 } else { class.len() }) {
                let going = some.iter().filter(|(why, object)| !held.holds(*why, &object.key));
                let going: Vec<Object> = going.map(|(_, object)| object.clone()).collect();
                let deletes = going.into_iter().map(|object| async move {
                    let deleted = self.repository.delete(&object.key).await?;
                    Ok::<_, RepositoryError>((object, deleted))
                });
                let done: Vec<_> = futures_util::stream::iter(deletes).buffered(at_once).try_collect().await?;
                for (object, deleted) in done {
                    match deleted {
                        Deleted::Gone => {
                            report.deleted.objects += 1;
                            report.deleted.bytes += object.bytes;
                        }
                        Deleted::Absent => report.absent += 1,
                        Deleted::Locked => {
                            held.hold(&object.key);
                            report.locked.push(object.key.to_string());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Marks of which nothing is left go, but never the newest: numbers must not come again. One that names what is needed
    /// again is written anew without it: should that ever be unneeded again, it waits anew.
    async fn tidy(&self, before: &Catalogue, report: &mut Report) -> Result<(), ExpireError> {
        if before.clusters.values().all(|holdings| holdings.marks.is_empty()) {
            return Ok(());
        }
        let after = self.read().await?;
        let as_of = retention::as_of(&after, self.settings.now);
        for holdings in after.clusters.values() {
            let Ok(plan) = retention::plan(holdings, &self.settings.policy, as_of) else { continue };
            let newest = holdings.marks.last().map(|marked| marked.number);
            let mut number = next_number(&after, holdings);
            let Tidy { rewrite, done } = marks::tidy(holdings, &names(&plan));
            for (marked, left) in rewrite {
                self.put_mark(&holdings.cluster, &mut number, marked.mark.at, left).await?;
                self.drop_mark(marked, report).await?;
            }
            for marked in done {
                if Some(marked.number) == newest {
                    // It keeps its number taken. What it names and is needed again must wait anew when it no longer is.
                    if !marked.mark.keys.iter().any(|name| holdings.has(name)) {
                        continue;
                    }
                    self.put_mark(&holdings.cluster, &mut number, self.settings.now, Vec::new()).await?;
                }
                self.drop_mark(marked, report).await?;
            }
        }
        Ok(())
    }

    async fn drop_mark(&self, marked: &Marked, report: &mut Report) -> Result<(), ExpireError> {
        if self.repository.delete(&marked.object.key).await? == Deleted::Locked {
            report.locked.push(marked.object.key.to_string());
        }
        Ok(())
    }
}

/// A number for a mark that none has had.
fn next_number(catalogue: &Catalogue, holdings: &Holdings) -> u64 {
    let bad = catalogue.bad.iter().filter_map(|bad| match &bad.key {
        Key::Of(cluster, Item::Mark(number)) if *cluster == holdings.cluster => Some(*number),
        _ => None,
    });
    holdings.marks.iter().map(|marked| marked.number).chain(bad).max().unwrap_or(0) + 1
}

/// Backups whose manifests the place keeps: they are seen, so they stay whole, with what they are the difference to, and with
/// their log.
struct Held<'a> {
    holdings: &'a Holdings,
    backups: HashSet<BackupId>,
    dumps: HashSet<BackupId>,
    floor: Lsn,
}

impl Held<'_> {
    fn hold(&mut self, key: &Key) {
        if let Key::Of(_, Item::Dump(id, DumpItem::Manifest)) = key {
            self.dumps.insert(id.clone());
        }
        let Key::Of(_, Item::Manifest(id)) = key else { return };
        let mut next = self.holdings.backups.get(id);
        while let Some(backup) = next {
            let manifest = &backup.manifest;
            self.floor = self.floor.min(manifest.start.segment_start(manifest.server.segment_size));
            if !self.backups.insert(manifest.backup.clone()) {
                return;
            }
            next = manifest.parent.as_ref().and_then(|parent| self.holdings.backups.get(parent));
        }
    }

    fn holds(&self, why: Go, key: &Key) -> bool {
        let Key::Of(_, item) = key else { return true };
        match item {
            Item::Manifest(id) | Item::Chunk { backup: id, .. } | Item::Index(id) | Item::ServerManifest(id) => {
                why != Go::Extra && self.backups.contains(id)
            }
            Item::Proof(id, _) => self.backups.contains(id),
            Item::Dump(id, _) => why != Go::Extra && self.dumps.contains(id),
            Item::Segment(name) => {
                let start = self.holdings.segment_size.and_then(|size| Some(name.start(size)?.0 + size.bytes()));
                start.is_none_or(|end| end > self.floor.0)
            }
            Item::Piece { last, .. } => why != Go::Folded && *last > self.floor,
            Item::Gap { to, .. } => *to > self.floor,
            Item::History(_) | Item::Frontier(_) | Item::Mark(_) => false,
        }
    }
}

fn names(plan: &Plan) -> HashSet<String> {
    plan.drop.iter().map(|dropped| dropped.object.key.to_string()).collect()
}
