//! From a connection to a stretch of the log: whose server it is, what is stored of it, its history files, its slot.
//!
//! Everything here may be done again at any time, and nothing is decided by what an earlier run remembers.

use super::assemble::{Known, Rules};
use super::frontier::Frontiers;
use super::resume::{self, Archive, Leg};
use super::store::Store;
use super::sweep::Sweeper;
use super::{Job, ShipError};
use crate::backup::catalog::history::{self, Ancestor};
use crate::backup::catalog::manifest::{Frontier, Gap, VERSION};
use crate::backup::repository::{Cluster, Item, Key, RepositoryError};
use crate::backup::source::postgres::{Connection, Identity, PostgresError, Purpose};
use crate::model::{Lsn, SegmentSize, Timeline};
use jiff::Timestamp;
use std::time::Instant;

/// The SQLSTATE for a file that the server does not have.
const NO_SUCH_FILE: &str = "58P01";
/// From this major version on the replication protocol tells a slot's place; before, SQL does.
const SLOTS_ARE_TOLD: u32 = 15;

/// A stretch of the log, and all that is known around it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) cluster: Cluster,
    pub(super) rules: Rules,
    pub(super) leg: Leg,
    /// Pieces that are stored and will come again.
    pub(super) known: Vec<Known>,
    pub(super) frontiers: Frontiers,
    identity: Identity,
    ancestors: Vec<Ancestor>,
    /// From here on the slot keeps the log.
    kept: Lsn,
}

/// Finds out where to go on, and makes sure that everything before is as it must be.
pub(super) async fn prepare(
    job: &Job,
    store: &Store,
    sweeper: &Sweeper,
    server: &mut Connection,
) -> Result<Prepared, ShipError> {
    let identity = server.identify().await?;
    // Before anything is made on it.
    if !job.standby && server.in_recovery().await? {
        return Err(PostgresError::Standby.into());
    }
    let cluster = Cluster { source: job.source.clone(), system: identity.system };
    let rules =
        Rules { segment: segment_size(server).await?, ship_every: job.ship_every, synchronous: job.synchronous };
    let archive = read(job, store, &cluster, rules).await?;
    let ancestors = store_histories(store, server, &cluster, identity.timeline, &archive).await?;
    let kept = slot(job, server, identity).await?;

    let leg = archive
        .next_leg(rules, identity.timeline, &ancestors)
        .map_err(|refused| ShipError::Refused(refused.to_string()))?;
    let leg = leg.unwrap_or_else(|| resume::first_leg(rules, kept, identity.timeline, &ancestors));
    if leg.timeline == identity.timeline && leg.frontier > identity.flushed {
        return Err(ShipError::ServerBehind {
            timeline: leg.timeline,
            stored: leg.frontier,
            flushed: identity.flushed,
        });
    }
    let known = store.known(&cluster, leg.timeline, archive.pieces(leg.timeline, leg.start)).await?;
    let folded = archive.folded().into_iter().map(|(timeline, start, pieces)| {
        let segment = Key::Of(cluster.clone(), Item::Segment(rules.segment.name(timeline, start)));
        (segment, pieces.into_iter().map(|(first, last)| Item::Piece { timeline, first, last }).collect())
    });
    sweeper.left_over(store, &cluster, folded.collect());
    let frontiers = Frontiers::after(archive.newest_frontier, archive.acknowledged, Instant::now());
    Ok(Prepared { cluster, rules, leg, known, frontiers, identity, ancestors, kept })
}

impl Prepared {
    /// What is missing, when the server has said that the log at the beginning of this stretch is gone from it.
    ///
    /// # Errors
    /// With that answer, when by all other signs the log is there: then nothing goes on record.
    pub(super) fn gaps(&self, error: &PostgresError) -> Result<Vec<Gap>, ShipError> {
        let border = |at: Lsn| at.segment_start(self.rules.segment);
        // Where the slot keeps it from; or else the segment that is being written, which no server removes.
        let goes_on = [border(self.kept), border(self.identity.flushed)].into_iter().find(|at| *at > self.leg.frontier);
        let goes_on = goes_on.ok_or_else(|| ShipError::Broken(error.to_string()))?;
        let parts = resume::missing(self.rules, self.leg, goes_on, self.identity.timeline, &self.ancestors);
        let why = error.to_string().lines().next().unwrap_or_default().to_owned();
        let gap = |(timeline, (from, to))| Gap {
            version: VERSION,
            timeline,
            from,
            to,
            at: Timestamp::now(),
            why: why.clone(),
        };
        Ok(parts.into_iter().map(gap).collect())
    }
}

/// What the repository holds of this cluster's log.
async fn read(job: &Job, store: &Store, cluster: &Cluster, rules: Rules) -> Result<Archive, ShipError> {
    let mut names = Vec::new();
    // Not the base backups: they are most of the objects.
    for kind in ["history/", "wal/", "piece/", "gap/", "frontier/"] {
        let listed = store.repository.list(&format!("{}{kind}", Key::of_cluster(cluster))).await?;
        names.extend(listed.into_iter().map(|object| object.name));
    }
    if names.is_empty() {
        same_cluster(job, store, cluster).await?;
    }
    let archive = Archive::read(names.iter().map(String::as_str), cluster, rules);
    let mut archive = archive.map_err(|refused| ShipError::Refused(refused.to_string()))?;
    archive.acknowledged = acknowledged(store, cluster, archive.newest_frontier).await?;
    Ok(archive)
}

/// A cluster of which nothing is stored is taken for this source when it is its first, or somebody said so.
async fn same_cluster(job: &Job, store: &Store, cluster: &Cluster) -> Result<(), ShipError> {
    let mut stored = Vec::new();
    for object in store.repository.list(&Key::of_source(&job.source)).await? {
        if let Ok(Key::Of(of, _)) = object.name.parse() {
            stored.push(of.system);
        }
    }
    stored.sort_unstable();
    stored.dedup();
    match stored.is_empty() || stored.contains(&cluster.system) || job.new_cluster {
        true => Ok(()),
        false => Err(ShipError::OtherCluster { source_name: job.source.clone(), stored, found: cluster.system }),
    }
}

/// What the newest frontier says. It only says where to look for the end of what is stored: one that cannot be read is told
/// and passed over, for the log goes on.
async fn acknowledged(
    store: &Store,
    cluster: &Cluster,
    newest: Option<u64>,
) -> Result<Option<(Timeline, Lsn)>, ShipError> {
    let Some(newest) = newest else { return Ok(None) };
    // The one before it stands in; three damaged in a row are no accident.
    for number in (newest.saturating_sub(2)..=newest).rev() {
        let key = Key::Of(cluster.clone(), Item::Frontier(number));
        let doubt = match store.repository.get(&key).await {
            Ok(stored) => match store.checker.document::<Frontier>(&key, &stored) {
                Ok((_, frontier)) if frontier.version == VERSION => {
                    return Ok(Some((frontier.timeline, frontier.acknowledged)));
                }
                Ok((_, frontier)) => format!("it is of version {}", frontier.version),
                Err(error) => error.to_string(),
            },
            Err(error @ (RepositoryError::Absent { .. } | RepositoryError::Damaged { .. })) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        tracing::error!(key = %key, doubt, "a frontier cannot be used");
    }
    Ok(None)
}

/// Stores the history files of the server's timeline and of all that it came from; answers the latter.
///
/// Before any log of the timeline is acknowledged: without them it cannot be replayed.
async fn store_histories(
    store: &Store,
    server: &mut Connection,
    cluster: &Cluster,
    current: Timeline,
    archive: &Archive,
) -> Result<Vec<Ancestor>, ShipError> {
    let Some(newest) = server.history(current).await? else { return Ok(Vec::new()) };
    let bad = |timeline: Timeline, error: &dyn std::fmt::Display| {
        ShipError::Refused(format!("the server's {} does not read: {error}", timeline.history_file()))
    };
    let ancestors = history::parse(current, &newest).map_err(|error| bad(current, &error))?;
    for timeline in ancestors.iter().map(|ancestor| ancestor.timeline).filter(|timeline| timeline.0 > 1) {
        let listed = archive.histories.contains(&timeline);
        let file = match server.history(timeline).await {
            Ok(file) => file.unwrap_or_default().to_vec(),
            // A server that was restored from a backup of a later timeline never had the older files.
            Err(error) if error.code() == Some(NO_SUCH_FILE) && listed => continue,
            Err(error) if error.code() == Some(NO_SUCH_FILE) => resume::file_of_ancestor(&newest, timeline),
            Err(error) => return Err(error.into()),
        };
        let before = history::parse(timeline, &file).map_err(|error| bad(timeline, &error))?;
        store.put_history(cluster, timeline, file, &before, listed).await?;
    }
    store.put_history(cluster, current, newest.to_vec(), &ancestors, archive.histories.contains(&current)).await?;
    Ok(ancestors)
}

/// Makes sure of the slot; answers from where on it keeps the log.
async fn slot(job: &Job, server: &mut Connection, identity: Identity) -> Result<Lsn, ShipError> {
    if server.create_slot(&job.slot).await? {
        tracing::info!(source = %job.source, slot = %job.slot, "made the replication slot");
    }
    let mut place = place_of_slot(job, server).await?;
    if place == Some(None) {
        // Its log is lost, or it never kept any: only a new one keeps it again.
        tracing::warn!(source = %job.source, slot = %job.slot, "the replication slot kept nothing any more; making it anew");
        server.drop_slot(&job.slot).await?;
        server.create_slot(&job.slot).await?;
        place = place_of_slot(job, server).await?;
    }
    // A place beyond the server's end, which a careless receiver leaves, keeps nothing either.
    Ok(place.flatten().unwrap_or(identity.flushed).min(identity.flushed))
}

/// Where the slot keeps the log from: `None` when the server does not tell, `Some(None)` when it keeps nothing.
async fn place_of_slot(job: &Job, server: &mut Connection) -> Result<Option<Option<Lsn>>, ShipError> {
    if server.major() >= SLOTS_ARE_TOLD {
        return Ok(server.slot(&job.slot).await?.map(|slot| slot.restart));
    }
    let sql = Connection::open(&job.address, job.password.as_ref(), Purpose::Sql).await;
    let told = match sql {
        Ok(mut sql) => sql.slot(&job.slot).await,
        Err(error) => Err(error),
    };
    match told {
        Ok(slot) => Ok(slot.map(|slot| slot.restart)),
        Err(error) => {
            tracing::debug!(%error, "this server tells a slot's place to SQL only, and does not let us in for that");
            Ok(None)
        }
    }
}

/// The length of the server's segments.
async fn segment_size(server: &mut Connection) -> Result<SegmentSize, ShipError> {
    let text = server.show("wal_segment_size").await?.unwrap_or_default();
    let bytes = bytes_of(&text).and_then(|bytes| SegmentSize::new(bytes).ok());
    bytes.ok_or_else(|| {
        ShipError::Broken(format!("learn the size of the server's segments: it says `{}`", text.escape_debug()))
    })
}

/// A size as `SHOW` prints it: `16MB`, `1GB`.
fn bytes_of(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[at..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    text[..at].parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_servers_print_them() {
        for (text, bytes) in
            [("16MB", Some(16 << 20)), ("1GB", Some(1 << 30)), ("1048576", Some(1 << 20)), ("16 MB", None), ("", None)]
        {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
    }
}
