//! The log of a plan, as a server asks for it: whole segments by name, history files, and the names that are proven absent.
//! In: a path through the catalogue. Out: a [`PlannedLog`]. No I/O.

use crate::backup::catalog::holdings::{Holdings, LogObject};
use crate::backup::catalog::path::{NoPath, Path};
use crate::backup::catalog::window::{Step, on_line};
use crate::backup::repository::{Item, Key};
use crate::model::{Lsn, SegmentName, SegmentSize, Timeline};
use serde::Serialize;
use std::collections::BTreeMap;

/// The log of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlannedLog {
    /// In the order of the log, without a hole.
    pub segments: Vec<PlannedSegment>,
    /// The first so many reach the target; the server may read on from there.
    pub wanted: usize,
    /// All the history files that the repository has.
    pub histories: Vec<PlannedHistory>,
    /// Names that a server may ask for at the end, and that the repository does not have.
    pub end_names: Vec<String>,
    /// The names of the segment behind those that reach the target.
    #[serde(skip)]
    pub(super) behind_wanted: Vec<String>,
    /// The length of a segment.
    pub segment_size: SegmentSize,
}

/// One segment, from one or several objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlannedSegment {
    /// As the server asks for it.
    pub name: SegmentName,
    /// Its first byte.
    pub begins: Lsn,
    /// The byte after the last one that there is: the next segment's first, or the end of the log.
    pub ends: Lsn,
    /// Its parts in order; each begins at or before the end of the one before it.
    pub parts: Vec<LogPart>,
}

/// An object of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogPart {
    /// Its name.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// Its first byte.
    pub first: Lsn,
    /// The byte after its last one.
    pub last: Lsn,
    /// The byte after the last one that counts: there the history leaves its timeline.
    pub until: Lsn,
    /// Its length as stored.
    pub stored_bytes: u64,
}

/// A history file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlannedHistory {
    /// As the server asks for it.
    pub name: String,
    /// Its object.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// Its length as stored.
    pub stored_bytes: u64,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// The log of a path. `further` when more log than the target needs may be listed after the path's end.
pub(super) fn planned(holdings: &Holdings, path: &Path<'_>, further: bool) -> Result<PlannedLog, NoPath> {
    let size = path.chain[path.chain.len() - 1].manifest.server.segment_size;
    let mut segments: BTreeMap<Lsn, PlannedSegment> = BTreeMap::new();
    for (object, until) in
        beginning(holdings, path, size)?.into_iter().chain(path.log.iter().map(|part| (part.object, part.to)))
    {
        let begins = object.first.segment_start(size);
        let name = size.name(timeline_at(&path.line, begins, size), begins);
        let ends = Lsn((begins.0 + size.bytes()).min(path.to.0));
        let segment =
            segments.entry(begins).or_insert_with(|| PlannedSegment { name, begins, ends, parts: Vec::new() });
        let (key, stored_bytes) = (holdings.log_key(&object), object.bytes);
        segment.parts.push(LogPart { key, first: object.first, last: object.last, until, stored_bytes });
    }
    let segments: Vec<PlannedSegment> = segments.into_values().collect();
    let wanted = segments.iter().position(|segment| segment.ends >= path.end).map_or(segments.len(), |index| index + 1);
    let histories = holdings.histories.iter().map(|(timeline, history)| PlannedHistory {
        name: timeline.history_file(),
        key: holdings.key(Item::History(*timeline)),
        stored_bytes: history.object.bytes,
    });
    let histories = histories.collect();
    let end_names = end_names(holdings, path, size, further);
    let behind_wanted = on_each(&path.line, path.end.segment_end(size), size);
    Ok(PlannedLog { segments, wanted, histories, end_names, behind_wanted, segment_size: size })
}

/// A server reads the segment that a backup began in from its first byte, and the path begins where replay does: what lies
/// between.
fn beginning(holdings: &Holdings, path: &Path<'_>, size: SegmentSize) -> Result<Vec<(LogObject, Lsn)>, NoPath> {
    let start = path.from.segment_start(size);
    let first = path.log.first().map_or(path.from, |part| part.object.first);
    let mut at = start;
    let mut parts = Vec::new();
    let listed = on_line(holdings, &path.line);
    while at < first {
        let best = listed
            .iter()
            .filter(|(from, to, _)| *from <= at && *to > at && *from >= start)
            .max_by_key(|(_, to, _)| *to);
        let Some((_, to, object)) = best else {
            let timeline = timeline_at(&path.line, start, size);
            return Err(NoPath::Hole { timeline, from: at, to: first });
        };
        parts.push((*object, *to));
        at = *to;
    }
    Ok(parts)
}

/// The timeline under whose name a server asks first for the segment that begins at this place: the newest that has begun
/// before the segment ends (`XLogFileReadAnyTLI`).
fn timeline_at(line: &[Step], begins: Lsn, size: SegmentSize) -> Timeline {
    let begun = line.iter().rev().find(|step| step.begins.segment_start(size) <= begins);
    begun.or(line.first()).map_or(Timeline(1), |step| step.timeline)
}

/// What a server may ask for at the end of its recovery, and the repository does not have.
fn end_names(holdings: &Holdings, path: &Path<'_>, size: SegmentSize, further: bool) -> Vec<String> {
    let mut names = Vec::new();
    // Every timeline that this cluster may have had. A server asks for the histories between the backup's timeline and its
    // own, then upward for a number that is free for its new one, and then for that of the one it leaves, be it the first.
    let listed =
        holdings.histories.keys().chain(holdings.log.keys()).chain(path.line.iter().map(|step| &step.timeline));
    let newest = listed.map(|timeline| timeline.0).max().unwrap_or(1);
    for timeline in (1..=newest + 1).map(Timeline) {
        if !holdings.histories.contains_key(&timeline) {
            names.push(timeline.history_file());
        }
    }
    // The segment after the last one, on each timeline it might be asked for. Where the log goes on after a hole, it has
    // not ended: nothing is proven, and a target that lies before the hole never leads there.
    let next = path.to.segment_end(size);
    let goes_on = further && !path.cut.is_empty();
    if !goes_on {
        names.extend(on_each(&path.line, next, size));
    }
    names
}

/// The names that the segment which begins at this place may be asked for by: one on each timeline.
fn on_each(line: &[Step], begins: Lsn, size: SegmentSize) -> Vec<String> {
    line.iter().map(|step| size.name(step.timeline, begins).to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_the_name_that_servers_ask_for_first() {
        let size = SegmentSize::USUAL;
        let border = 16 << 20;
        let step = |timeline, begins, ends| Step { timeline: Timeline(timeline), begins: Lsn(begins), ends: Lsn(ends) };
        let line = [step(1, 0, 3 * border + 100), step(3, 3 * border + 100, 5 * border), step(4, 5 * border, u64::MAX)];
        for (segment, timeline) in [(2, 1), (3, 3), (4, 3), (5, 4), (6, 4)] {
            assert_eq!(timeline_at(&line, Lsn(segment * border), size), Timeline(timeline), "segment {segment}");
        }
    }
}
