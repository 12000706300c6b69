//! Asked of every plan before anything is deleted: does what stays keep all that it has? Written apart from the plan.

use super::{Plan, Refused};
use crate::backup::catalog::holdings::{Holdings, Missing};
use crate::backup::catalog::index::BadKind;
use crate::backup::catalog::window::{Step, line, on, on_line, ranges};
use crate::backup::repository::BackupId;
use crate::model::{Lsn, Timeline};
use std::collections::HashSet;

/// What is left when a plan is carried out.
pub fn remaining(holdings: &Holdings, plan: &Plan) -> Holdings {
    let gone: HashSet<String> = plan.drop.iter().map(|dropped| dropped.object.key.to_string()).collect();
    let mut left = holdings.clone();
    left.backups.retain(|_, backup| !gone.contains(&backup.object.key.to_string()));
    for backup in left.backups.values_mut() {
        let lost = backup.manifest.objects.iter().filter(|object| gone.contains(&object.key));
        backup.missing.extend(lost.map(|object| {
            let why = "the plan takes it".to_owned();
            Missing { name: object.key.clone(), kind: BadKind::Gone, why }
        }));
    }
    left.dumps.good.retain(|_, dump| !gone.contains(&dump.object.key.to_string()));
    for dump in left.dumps.good.values_mut() {
        let lost = dump.manifest.objects.iter().filter(|object| gone.contains(&object.key));
        dump.missing.extend(lost.map(|object| {
            let why = "the plan takes it".to_owned();
            Missing { name: object.key.clone(), kind: BadKind::Gone, why }
        }));
    }
    for log in left.log.values_mut() {
        log.retain(|object| !gone.contains(&holdings.log_key(object).to_string()));
    }
    left.histories.retain(|_, history| !gone.contains(&history.object.key.to_string()));
    left.gaps.retain(|(object, _)| !gone.contains(&object.key.to_string()));
    left
}

/// Whether everything that stays keeps all that it has: its chain, every byte of log that it can reach on any line, the
/// history files. Written apart from the plan, and asked before anything is deleted.
///
/// # Errors
/// `Loses`, naming the first loss.
pub fn check(holdings: &Holdings, plan: &Plan) -> Result<(), Refused> {
    let left = remaining(holdings, plan);
    let loses = |backup: &BackupId, what: String| Err(Refused::Loses { backup: backup.clone(), what });
    let lines: Vec<Vec<Step>> = holdings.log.keys().filter_map(|timeline| line(holdings, *timeline).ok()).collect();
    let reach = |of: &Holdings, line: &[Step]| ranges(&on_line(of, line));
    let reaches: Vec<_> = lines.iter().map(|line| (reach(holdings, line), reach(&left, line))).collect();
    let end = |ranges: &[(Lsn, Lsn)], from: Lsn| {
        ranges.iter().find(|range| range.0 <= from && from < range.1).map(|range| range.1)
    };
    for id in plan.backups.keys() {
        if holdings.chain(id).is_err() {
            continue;
        }
        if let Err(why) = left.chain(id) {
            return loses(id, why.to_string());
        }
        let manifest = &holdings.backups[id].manifest;
        for (line, (before, after)) in lines.iter().zip(&reaches).filter(|(line, _)| on(line, manifest)) {
            let (had, has) = (end(before, manifest.start), end(after, manifest.start));
            if had != has {
                let timeline = line.last().map_or(Timeline(1), |step| step.timeline);
                let at = has.unwrap_or(manifest.start);
                return loses(id, format!("the log of timeline {timeline} at {at}"));
            }
        }
    }
    if let Some((timeline, _)) = holdings.histories.iter().find(|(timeline, _)| !left.histories.contains_key(timeline))
    {
        return loses(&plan.floor_of, timeline.history_file());
    }
    let good = |dump: &crate::backup::catalog::dumps::Dump| dump.unusable().is_none();
    for id in plan.dumps.keys() {
        // What was no use before is not made worse by anything.
        if holdings.dumps.good.get(id).is_some_and(good) && !left.dumps.good.get(id).is_some_and(good) {
            return loses(id, "its objects".into());
        }
    }
    let had_dumps = holdings.dumps.usable().next().is_some();
    if had_dumps && !plan.dumps.keys().any(|id| left.dumps.good.get(id).is_some_and(good)) {
        return loses(&plan.floor_of, "the last good logical copy".into());
    }
    let physical = holdings.has_physical() || !had_dumps;
    if physical && !plan.backups.keys().any(|id| left.chain(id).is_ok()) {
        return loses(&plan.floor_of, "the last good backup".into());
    }
    Ok(())
}
